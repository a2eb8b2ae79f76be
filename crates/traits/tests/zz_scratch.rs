mod common;
use common::*;
use packet_traits::{bind::BoundObject, core::{KeyType, Merge, Layout}};
use std::os::fd::{AsFd, AsRawFd};
fn insns(o: &packet_traits::bind::LoadedObject) {
    for p in o.object().progs() {
        let mut info = libbpf_sys::bpf_prog_info::default();
        let mut len = size_of_val(&info) as u32;
        unsafe { libbpf_sys::bpf_prog_get_info_by_fd(p.as_fd().as_raw_fd(), &mut info, &mut len) };
        println!("I {:24} {:8} {:6}", p.name().to_string_lossy(), info.verified_insns, info.xlated_prog_len / 8);
    }
}
#[test]
fn scratch() {
    let lab = Lab::new();
    insns(&lab.load("stages"));
    let lab = Lab::empty(Layout::DEFAULT);
    lab.registry.register(&spec("a", KeyType::Ipv6, Merge::Block)).unwrap();
    lab.registry.register(&spec("m", KeyType::Mac, Merge::Block)).unwrap();
    lab.registry.register(&spec("u", KeyType::Uuid, Merge::KeepFirst)).unwrap();
    for c in ["clang", "clang-19"] {
        let b = std::fs::read(format!("/tmp/rfcw/al.{c}.o")).unwrap();
        let b = BoundObject::from_bytes(&b, "al", &lab.registry).unwrap();
        match b.load() {
            Ok(o) => {println!("I {c} ok"); insns(&o) },
            Err(e) => println!("I {c} {e}"),
        }
    }
}
#[test]
fn many() {
    let lab = Lab::empty(Layout::new(104,104).unwrap());
    for n in 0..if std::env::var("AL").is_ok() {0} else {8} { lab.registry.register(&spec(&format!("f{n}"), KeyType::Mac, Merge::Block)).unwrap();
    lab.registry.register(&spec(&format!("p{n}"), KeyType::Mac, Merge::KeepFirst)).unwrap(); }
    lab.registry.register(&spec("a", KeyType::Ipv6, Merge::Block)).ok();
    lab.registry.register(&spec("m", KeyType::Mac, Merge::Block)).ok();
    lab.registry.register(&spec("u", KeyType::Uuid, Merge::KeepFirst)).ok();
    for f in std::env::var("OBJS").unwrap().split(' ') {
        let b = std::fs::read(f).unwrap();
        for only in ["t1","t2","t3","t4","x2","x4","x8","s8"] {
            let mut b = BoundObject::from_bytes(&b, "al", &lab.registry).unwrap();
            for mut p in b.open_object_mut().progs_mut() { let n = p.name().to_string_lossy().into_owned(); if n.len() == 2 { p.set_autoload(n == only); } }
            match b.load() {
                Ok(o) => { println!("I {f} ok"); insns(&o) },
Err(e) => { println!("I {f} {only} {e}"); if std::env::var("LOG").is_ok() { println!("{}", e.verifier_log().unwrap_or_default()); } }
            }
        }
    }
}
#[test]
fn stg() {
    let lab = Lab::new();
        let b = std::fs::read("/tmp/rfcw/stages.o").unwrap();
        let b = BoundObject::from_bytes(&b, "al", &lab.registry).unwrap();
        match b.load() {
            Ok(o) => {insns(&o) },
            Err(e) => println!("I {e} {}", e.verifier_log().unwrap_or_default()),
        }
}
