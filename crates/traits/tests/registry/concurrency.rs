//! Many processes change one registry at random, and are killed at random.

use std::{
    collections::BTreeMap,
    env,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use packet_traits::{
    KeyType, Merge,
    registry::{KeySpec, Registry, RegistryError},
};

use super::{name, registry, spec};

const WRITERS: usize = 8;
/// At least; and as long as it takes for enough to happen.
const RUN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(300);
const KILL_EVERY: Duration = Duration::from_millis(50);

/// Set for a writer process: where its bpffs is.
const BPFFS: &str = "TRAITS_TEST_BPFFS";
/// Set for a writer process: which writer it is, or `once` for one that registers a key and ends.
const WRITER: &str = "TRAITS_TEST_WRITER";

/// Keys that every writer fights over.
fn shared(i: usize) -> KeySpec {
    let key_type = KeyType::ALL[i % KeyType::ALL.len()];
    spec(&format!("shared{i}"), key_type, Merge::ALL[i % 2])
}

/// Keys that nobody removes.
fn permanent() -> [KeySpec; 3] {
    [
        spec("permanent-a", KeyType::U64, Merge::Block),
        spec("permanent-b", KeyType::U16, Merge::KeepFirst),
        spec("permanent-c", KeyType::Flag, Merge::Block),
    ]
}

/// A process that runs [`write`] on this registry.
fn writer(registry: &Registry, which: &str) -> Child {
    let bpffs = registry.dir().ancestors().nth(2).unwrap();
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "concurrency::dying_writers_leave_a_whole_table", "--nocapture"])
        .env(BPFFS, bpffs)
        .env(WRITER, which)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn dying_writers_leave_a_whole_table() {
    if let (Some(bpffs), Ok(which)) = (env::var_os(BPFFS), env::var(WRITER)) {
        return write(&Registry::options().bpffs(bpffs).open().unwrap(), &which);
    }
    let Some((_bpffs, registry)) = registry(80, 80) else { return };
    let permanent = permanent().map(|spec| registry.register(&spec).unwrap());
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);

    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let keys = registry.list().expect("a reader always sees a whole table");
                    assert!(permanent.iter().all(|entry| keys.contains(entry)), "a key nobody removed is missing");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }

        let mut writers: Vec<Child> = (0..WRITERS).map(|i| writer(&registry, &i.to_string())).collect();
        let mut random = Random::new();
        let (mut kills, mut changes) = (0, 0);
        let started = Instant::now();
        let enough = |kills, changes| kills > 20 && changes > 200 && reads.load(Ordering::Relaxed) > 200;
        while started.elapsed() < RUN || !enough(kills, changes) {
            let late = started.elapsed() > PATIENCE;
            if late {
                stop.store(true, Ordering::Relaxed);
            }
            assert!(!late, "only {kills} kills, {changes} changes and {reads:?} reads");
            thread::sleep(KILL_EVERY);
            let i = random.below(WRITERS);
            let early = writers[i].try_wait().unwrap();
            if early.is_some() {
                stop.store(true, Ordering::Relaxed);
            }
            assert_eq!(early, None, "writer {i} gave up");
            writers[i].kill().unwrap();
            writers[i].wait().unwrap();
            writers[i] = writer(&registry, &i.to_string());
            kills += 1;
            changes = registry.list().unwrap().iter().map(|entry| entry.generation).max().unwrap();
        }
        for mut writer in writers {
            writer.kill().unwrap();
            writer.wait().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });

    // `list` itself refuses a table with doubled or overlapping keys.
    let keys = registry.list().unwrap();
    let mut names = BTreeMap::new();
    for entry in &keys {
        assert_eq!(names.insert(entry.key.name().as_str(), entry.key.number()), None);
    }
    assert!(permanent.iter().all(|entry| keys.contains(entry)));
    let changes = keys.iter().map(|entry| entry.generation).max().unwrap();
    eprintln!("{changes} changes, {reads:?} reads, {} keys left", keys.len());

    for entry in keys.iter().filter(|entry| !permanent.contains(entry)) {
        registry.unregister(entry.key.name(), true).unwrap();
    }
    assert!(writer(&registry, "once").wait().unwrap().success());
    assert!(registry.lookup(&name("afterwards")).unwrap().is_some());
    assert_eq!(registry.list().unwrap().len(), permanent.len() + 1);
}

/// Registers and removes keys until it is killed.
fn write(registry: &Registry, which: &str) {
    if which == "once" {
        registry.register(&spec("afterwards", KeyType::U128, Merge::Block)).unwrap();
        return;
    }
    // Nobody else touches this one, so what this process does to it must stay.
    let own = spec(&format!("own{which}"), KeyType::U8, Merge::Block);
    let mut random = Random::new();
    // An orphan of a test that died ends by itself.
    let started = Instant::now();
    while started.elapsed() < 2 * PATIENCE {
        match random.below(8) {
            0 => match registry.register(&own) {
                Ok(entry) => assert_eq!(registry.lookup(&own.name).unwrap(), Some(entry)),
                Err(error) => assert_eq!(error.errno(), libc::ENOSPC, "{error}"),
            },
            1 => {
                match registry.unregister(&own.name, random.below(2) == 0) {
                    Ok(_) | Err(RegistryError::UnknownKey { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                assert_eq!(registry.lookup(&own.name).unwrap(), None);
            }
            2..5 => match registry.register(&shared(random.below(24))) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.errno(), libc::ENOSPC, "{error}"),
            },
            _ => match registry.unregister(&shared(random.below(24)).name, true) {
                Ok(_) | Err(RegistryError::UnknownKey { .. }) => {}
                Err(error) => panic!("{error}"),
            },
        }
    }
    panic!("nobody killed writer {which}");
}

/// Registries are made and removed over each other: whoever opens one gets all of one, or none.
#[test]
fn registries_appear_and_disappear_whole() {
    let Some(bpffs) = super::bpffs() else { return };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match super::options(&bpffs).create() {
                        Ok(registry) => drop(registry.register(&spec("tenant", KeyType::U32, Merge::Block))),
                        Err(RegistryError::Exists { .. } | RegistryError::NotFound { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    match super::options(&bpffs).remove(false) {
                        Ok(()) | Err(RegistryError::NotFound { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(2) {
            match super::options(&bpffs).open() {
                Ok(registry) => match registry.register(&spec("tenant", KeyType::U32, Merge::Block)) {
                    Ok(_) | Err(RegistryError::Gone { .. }) => {}
                    Err(error) => panic!("{error}"),
                },
                Err(RegistryError::NotFound { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// xorshift64, seeded by time and process.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        Random((nanos ^ u64::from(std::process::id()) << 32) | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}
