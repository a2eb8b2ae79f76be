//! How many instructions the verifier goes through for each program, against the figures of last time.
//!
//! The figures are in `verifier_budget.txt`, so that growth is seen in review. They are those of one kernel and one
//! compiler; with others, this only prints.

mod common;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use common::{EVERY_KEY, Keys, RECORD_KEYS, compile_with, load_bound, repository};
use libbpf_rs::ObjectBuilder;
use packet_traits::{
    KeyType, Layout, Merge,
    bind::{BoundObject, LoadedObject},
};
use packet_traits_lab::{clang, clang_version};

/// Environment variable that, set to `1`, has the file written again.
const UPDATE: &str = "UPDATE_BUDGET";

/// How much a program may grow before it must be looked at, in percent.
const GROWTH: u64 = 25;

/// The kernel takes programs up to this many (BPF_COMPLEXITY_LIMIT_INSNS in include/linux/bpf.h).
const LIMIT: u64 = 1_000_000;

/// The key set of each source file's programs.
const SOURCES: [(&str, Keys); 9] = [
    ("examples/bpf/xdp_classify.bpf.c", EXAMPLE_KEYS),
    ("examples/bpf/tc_priority.bpf.c", EXAMPLE_KEYS),
    ("examples/bpf/netfilter_drop.bpf.c", EXAMPLE_KEYS),
    ("examples/bpf/cgroup_count.bpf.c", EXAMPLE_KEYS),
    ("examples/bpf/trace_drops.bpf.c", EXAMPLE_KEYS),
    ("crates/traits/tests/bpf/stages.bpf.c", RECORD_KEYS),
    ("crates/traits/tests/bpf/every_call.bpf.c", EVERY_KEY),
    ("crates/traits/tests/bpf/rfc.bpf.c", EXAMPLE_KEYS),
    ("crates/traits/tests/bpf/sender_calls.bpf.c", EVERY_KEY),
];

const EXAMPLE_KEYS: Keys = &[
    ("tenant", KeyType::U32, Merge::Block),
    ("flow_id", KeyType::U64, Merge::Block),
    ("rx_ts", KeyType::Timestamp, Merge::KeepFirst),
];

fn budget_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verifier_budget.txt")
}

/// The kernel's version to its second number, and the compiler's to its first.
fn measured_with() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let kernel = release.split('.').take(2).collect::<Vec<_>>().join(".");
    format!("kernel {kernel}, clang {}", clang_version(clang()))
}

fn load(source: &str, keys: Keys) -> LoadedObject {
    let lab = common::Lab::empty(Layout::DEFAULT);
    common::register(&lab.registry, keys);
    let bytes = compile_with(clang(), &repository(source), &[]);
    let mut bound = BoundObject::from_bytes(&bytes, source, &lab.registry).unwrap();
    for mut program in bound.open_object_mut().progs_mut() {
        // refused by some kernels, and the same as tp_btf
        let load = !program.section().to_string_lossy().starts_with("fentry");
        program.set_autoload(load);
    }
    load_bound(bound)
}

/// Instructions the verifier processed and instructions of the program, by source file and program.
fn measure() -> BTreeMap<String, (u64, u64)> {
    let mut found = BTreeMap::new();
    for (source, keys) in SOURCES {
        let object = load(source, keys);
        let file = Path::new(source).file_name().unwrap().to_string_lossy().into_owned();
        for program in object.object().progs().filter(libbpf_rs::Program::autoload) {
            let mut info = libbpf_sys::bpf_prog_info::default();
            let mut len = size_of_val(&info) as u32;
            // SAFETY: `info` is as long as `len` says.
            let err = unsafe { libbpf_sys::bpf_prog_get_info_by_fd(program.as_fd().as_raw_fd(), &mut info, &mut len) };
            assert_eq!(err, 0);
            let name = format!("{file}:{}", program.name().to_string_lossy());
            // an instruction has 8 bytes
            found.insert(name, (info.verified_insns.into(), u64::from(info.xlated_prog_len) / 8));
        }
    }
    found
}

fn table(with: &str, found: &BTreeMap<String, (u64, u64)>) -> String {
    let mut text =
        format!("# Instructions: processed by the verifier, in the program. Written by {UPDATE}=1.\n# {with}\n");
    for (name, (processed, len)) in found {
        writeln!(text, "{name:<44} {processed:>8} {len:>6}").unwrap();
    }
    text
}

#[test]
fn no_program_costs_the_verifier_much_more_than_it_did() {
    if !common::area_enabled() {
        return;
    }
    let (with, found) = (measured_with(), measure());
    let text = table(&with, &found);
    println!("{text}");
    if std::env::var_os(UPDATE).is_some_and(|value| value == "1") {
        std::fs::write(budget_file(), text).unwrap();
        return;
    }

    let recorded = std::fs::read_to_string(budget_file()).unwrap();
    if recorded.lines().nth(1) != Some(&format!("# {with}")) {
        packet_traits_lab::skipped(format_args!(
            "{with} is not what the figures of {} are of",
            budget_file().display()
        ));
        return;
    }
    let mut recorded: BTreeMap<&str, u64> = recorded
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split_whitespace();
            (words.next().unwrap(), words.next().unwrap().parse().unwrap())
        })
        .collect();
    let mut wrong = String::new();
    for (name, (processed, _)) in &found {
        match recorded.remove(name.as_str()) {
            Some(before) if *processed * 100 <= before * (100 + GROWTH) => {}
            Some(before) => writeln!(wrong, "{name}: {processed}, was {before}").unwrap(),
            None => writeln!(wrong, "{name}: {processed}, not recorded yet").unwrap(),
        }
    }
    for name in recorded.keys() {
        writeln!(wrong, "{name}: recorded, but there is no such program").unwrap();
    }
    assert!(
        wrong.is_empty(),
        "verifier figures have changed:\n{wrong}If that is meant, run with {UPDATE}=1 and commit {}",
        budget_file().display()
    );
}

/// A program that reads many keys one by one must stay far from the kernel's limit.
#[test]
fn reading_every_key_one_by_one_stays_far_below_the_limit() {
    if !common::area_enabled() {
        return;
    }
    let most = measure().into_iter().max_by_key(|(_, (processed, _))| *processed).unwrap();
    assert!(most.1.0 * 10 < LIMIT, "{most:?}");
    // and so do unbound programs, which the verifier sees with other constants
    let bytes = compile_with(clang(), &repository(SOURCES[5].0), &[]);
    ObjectBuilder::default().open_memory(&bytes).unwrap().load().unwrap();
}
