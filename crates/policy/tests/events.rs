//! What `log`, `count by` and `unique` leave behind when a program has seen a packet.

mod common;

use std::{os::fd::AsRawFd, time::Duration};

use common::{Draft, Lab, area_enabled, enabled, outer, set};
use libbpf_rs::{MapCore, MapFlags, RingBufferBuilder, libbpf_sys};
use packet_traits::{KeyType, Merge, bind::LoadedObject};
use packet_traits_policy::{
    field::FieldKind,
    hook::Hook,
    log_event::{LogEvent, LogTrait, PACKET_MAX},
    policy::{Action, Condition, Type, Value, Verdict},
};

/// Ethernet, IPv4 and UDP from 10.1.2.3, and as many bytes in all as asked for.
fn packet(len: usize) -> Vec<u8> {
    let mut packet = vec![0; len];
    packet[12..14].copy_from_slice(&[0x08, 0x00]);
    packet[14] = 0x45;
    packet[23] = 17;
    packet[26..30].copy_from_slice(&[10, 1, 2, 3]);
    packet
}

fn run(object: &LoadedObject, program: &str, packet: &[u8]) -> u32 {
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        data_in: packet.as_ptr().cast(),
        data_size_in: packet.len() as u32,
        ..Default::default()
    };
    let fd = object.object().progs().find(|found| found.name() == program).unwrap();
    // SAFETY: `data_in` is as long as `data_size_in` says.
    let err = unsafe { libbpf_sys::bpf_prog_test_run_opts(std::os::fd::AsFd::as_fd(&fd).as_raw_fd(), &mut opts) };
    assert_eq!(err, 0, "{}", std::io::Error::last_os_error());
    opts.retval
}

fn events(object: &LoadedObject) -> Vec<LogEvent> {
    let map = object.object().maps().find(|map| map.name() == "pt_log").unwrap();
    let mut found = Vec::new();
    let mut ring = RingBufferBuilder::new();
    ring.add(&map, |record| {
        found.push(LogEvent::parse(record).unwrap());
        0
    })
    .unwrap();
    let ring = ring.build().unwrap();
    ring.poll(Duration::ZERO).unwrap();
    drop(ring);
    found
}

#[test]
fn an_event_tells_of_the_packet_and_its_traits() {
    if !area_enabled() {
        return;
    }
    let mut draft = Draft::new();
    let tenant = draft.key("tenant", KeyType::U32, Merge::Block);
    let from = draft.key("from", KeyType::Ipv6, Merge::KeepFirst);
    let suspect = draft.key("suspect", KeyType::Flag, Merge::Block);
    draft.block("telling", Hook::Xdp);
    draft.plain(
        Condition::Always,
        vec![set(tenant, Value::Constant(7)), Action::Log { text: "first".to_owned(), sample: 1 }],
    );
    draft.plain(
        Condition::Always,
        vec![
            Action::Delete(tenant),
            set(from, Value::Constant(0xfd00 << 112 | 5)),
            set(suspect, Value::Constant(0)),
            Action::Log { text: "second".to_owned(), sample: 1 },
            Action::Log { text: "never".to_owned(), sample: u32::MAX },
            Action::Verdict(Verdict::Drop),
        ],
    );
    assert_eq!(draft.emit().manifest.logs, ["first", "second", "never"]);

    let lab = Lab::new();
    let object = lab.load(&draft.compile(packet_traits_lab::clang())).unwrap();
    for len in [200, PACKET_MAX, 42] {
        let bytes = packet(len);
        assert_eq!(run(&object, "telling", &bytes), 1, "dropped");
        let found = events(&object);
        let [first, second] = &found[..] else { panic!("{found:?}") };
        for event in [first, second] {
            assert_eq!(event.length as usize, len);
            assert_eq!(event.packet, bytes[..len.min(PACKET_MAX)]);
            assert!(event.time > 0);
        }
        assert_eq!((first.rule, first.text, second.rule, second.text), (0, 0, 1, 1));
        let value = |event: &LogEvent, key| {
            event.traits.iter().find(|shown| shown.key == key).map(|LogTrait { value, .. }| *value).unwrap()
        };
        assert_eq!([0, 1, 2].map(|key| value(first, key)), [Some(7), None, None]);
        assert_eq!([0, 1, 2].map(|key| value(second, key)), [None, Some(0xfd00 << 112 | 5), Some(0)]);
    }
}

#[test]
fn packets_are_counted_under_values_as_slots_have_them() {
    if !enabled() {
        return;
    }
    let mut draft = Draft::new();
    let counter = draft.counter("sources", Some(Type::Ipv4));
    let plain = draft.counter("all", None);
    draft.block("counting", Hook::Xdp);
    draft.plain(
        Condition::Always,
        vec![
            Action::Count { counter, by: Some(outer(FieldKind::Ipv4Source)) },
            Action::Count { counter: plain, by: None },
        ],
    );
    let lab = Lab::new();
    let object = lab.load(&draft.compile(packet_traits_lab::clang())).unwrap();
    for len in [100, 200] {
        run(&object, "counting", &packet(len));
    }
    // no IPv4 header: nothing to count under
    run(&object, "counting", &[0; 60]);

    let map = |name: &str| object.object().maps().find(|map| map.name() == name).unwrap();
    let numbers = |bytes: &[u8]| {
        let word = |at| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        (word(0), word(8))
    };
    let by = map("pt_by_sources");
    assert_eq!(by.keys().collect::<Vec<_>>(), [vec![10, 1, 2, 3]]);
    assert_eq!(numbers(&by.lookup(&[10, 1, 2, 3], MapFlags::ANY).unwrap().unwrap()), (2, 300));
    let index = draft.emit().manifest.counters[1].index.unwrap() as usize;
    let all = map("pt_counters").lookup_percpu(&[0; 4], MapFlags::ANY).unwrap().unwrap();
    let sum = all.iter().map(|cpu| numbers(&cpu[16 * index..])).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert_eq!(sum, (3, 360));
}

#[test]
fn unique_numbers_differ() {
    if !enabled() {
        return;
    }
    let mut draft = Draft::new();
    let [one, other] = ["one", "other"].map(|name| draft.key(name, KeyType::U64, Merge::Block));
    draft.block("numbering", Hook::Xdp);
    draft.plain(
        Condition::Always,
        vec![set(one, Value::Unique), set(other, Value::Unique), Action::Log { text: String::new(), sample: 1 }],
    );
    let lab = Lab::new();
    let object = lab.load(&draft.compile(packet_traits_lab::clang())).unwrap();
    for _ in 0..50 {
        run(&object, "numbering", &packet(100));
    }
    let mut given: Vec<u128> =
        events(&object).iter().flat_map(|event| &event.traits).map(|shown| shown.value.unwrap()).collect();
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), 100);
    assert!(!given.contains(&0));
}
