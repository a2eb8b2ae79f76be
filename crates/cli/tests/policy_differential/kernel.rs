//! A policy in the kernel: bound, filled and loaded as the `traits` command does, with what it has counted so far.

use std::{collections::HashMap, os::fd::AsFd, path::Path, process::Command};

use libbpf_rs::{MapCore, MapFlags, RingBufferBuilder};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use packet_traits::{
    Key, Layout, Nonces,
    bind::{BoundObject, LoadedObject},
    registry::{KeySpec, Registry},
};
use packet_traits_policy::{
    compile::Compiler,
    emit::{EmitOptions, emit},
    interpret::{Outcome, to_value},
    log_event::LogEvent,
    manifest::Manifest,
    policy::{Policy, Type},
    source::Sources,
};

use crate::case::now;

/// Packets and bytes.
pub type Count = (u64, u64);

/// A policy's programs, loaded, and what they must have counted.
pub struct Loaded {
    pub object: LoadedObject,
    pub manifest: Manifest,
    pub layout: Layout,
    pub nonces: Nonces,
    /// The policy's keys in the registry, by their places in the policy.
    pub keys: Vec<Key>,
    hits: Vec<Count>,
    counters: Vec<Count>,
    by: HashMap<(usize, Vec<u8>), Count>,
    /// What was counted by value since the last comparison.
    touched: Vec<(usize, Vec<u8>)>,
    /// When it was loaded: later times may be the kernel's own.
    since: u64,
}

/// Compiles a policy. `Err` says why it cannot be, and shows the program.
pub fn compile(policy: &Policy, sources: &Sources, seal: bool) -> Result<Vec<u8>, String> {
    let emitted = emit(policy, sources, &EmitOptions { seal }).map_err(|error| format!("emitting: {error}"))?;
    let object = Compiler::new(&libbpf_sys::API_HEADERS).compile(&emitted);
    object.map_err(|error| format!("{error}\n{}", numbered(&emitted.source)))
}

/// Compiles observer.bpf.c.
pub fn compile_observer() -> Vec<u8> {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(packet_traits_lab::clang())
        .args(["-O2", "-g", "-mcpu=v3", "-target", "bpf"])
        .arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH))
        .arg(format!("-I{}", manifest_dir.join("../../include").display()))
        .arg("-c")
        .arg(manifest_dir.join("tests/policy_differential/observer.bpf.c"))
        .args(["-o", "-"])
        .output()
        .unwrap_or_else(|error| panic!("running {}: {error}; `make test` installs it", packet_traits_lab::clang()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Text with its lines numbered.
pub fn numbered(text: &str) -> String {
    text.lines().zip(1..).map(|(line, number)| format!("{number:5} {line}\n")).collect()
}

impl Loaded {
    /// Loads a policy's object. `interfaces` are the indexes of those that the policy names.
    pub fn new(policy: &Policy, object: &[u8], registry: &Registry, interfaces: &[u32]) -> Result<Loaded, String> {
        let mut keys = Vec::new();
        for key in &policy.keys {
            let spec = KeySpec::new(key.name, key.key_type).merge(key.merge);
            keys.push(registry.register(&spec).map_err(|error| error.to_string())?.key);
        }
        let manifest = Manifest::from_object(object)
            .map_err(|error| error.to_string())?
            .ok_or("the object says nothing of its policy")?;
        let mut bound = BoundObject::from_bytes(object, "policy", registry).map_err(|error| error.to_string())?;
        fill_interfaces(&mut bound, object, interfaces);
        let loaded = bound.load().map_err(|error| match error.verifier_log() {
            Some(log) => format!("{error}\n{}", tail(log)),
            None => error.to_string(),
        })?;
        for table in &manifest.tables {
            let map = loaded.map(&table.map).ok_or_else(|| format!("the object has no map {}", table.map))?;
            for (key, value) in &table.entries {
                map.update(&hex(key), &hex(value), MapFlags::ANY).map_err(|error| format!("{}: {error}", table.map))?;
            }
        }
        Ok(Loaded {
            object: loaded,
            manifest,
            layout: registry.layout(),
            nonces: registry.nonces(),
            keys,
            hits: vec![(0, 0); policy.blocks.iter().map(|block| block.rules.len()).sum()],
            counters: vec![(0, 0); policy.counters.len()],
            by: HashMap::new(),
            touched: Vec::new(),
            since: now(),
        })
    }

    /// A block's program.
    pub fn program(&self, policy: &Policy, block: usize) -> libbpf_rs::Program<'_> {
        self.object.program(&policy.blocks[block].name).expect("the object has a program for each block")
    }

    /// What `unique` is next on a CPU; 0 if the policy does not ask.
    pub fn next_unique(&self, cpu: usize) -> u64 {
        let Some(map) = self.object.map("pt_unique") else { return 0 };
        let last = map.lookup_percpu(&[0; 4], MapFlags::ANY).unwrap().expect("an array has all its entries");
        let last = u64::from_ne_bytes(last[cpu][..8].try_into().unwrap());
        (cpu as u64) << 48 | (last + 1)
    }

    /// Takes down that a block has done this to a packet.
    pub fn take_down(&mut self, policy: &Policy, outcome: &Outcome<'_>) {
        let bytes = outcome.length as u64;
        let add = |count: &mut Count| *count = (count.0 + 1, count.1 + bytes);
        outcome.hits.iter().for_each(|rule| add(&mut self.hits[*rule]));
        for counted in &outcome.counted {
            match (policy.counters[counted.counter.0].by, counted.by) {
                // the kernel counts under its own time
                (Some(Type::Timestamp), Some(time)) if time >= self.since.into() && time <= now().into() => {}
                (Some(by), Some(value)) => {
                    let key_type = self.manifest.counters[counted.counter.0].by.as_ref().unwrap().parse().unwrap();
                    assert!(Type::from(key_type).bits() >= by.bits());
                    let key = (counted.counter.0, to_value(key_type, value).to_bytes().to_vec());
                    add(self.by.entry(key.clone()).or_default());
                    self.touched.push(key);
                }
                _ => add(&mut self.counters[counted.counter.0]),
            }
        }
    }

    /// What the kernel has counted must be what was taken down.
    pub fn compare_counts(&mut self, policy: &Policy) -> Result<(), String> {
        same("hits of rules", &self.read("pt_hits", self.hits.len()), &self.hits)?;
        same("counters", &self.read("pt_counters", self.counters.len()), &self.counters)?;
        for key in std::mem::take(&mut self.touched) {
            let found = self.counted_by(key.0, &key.1);
            if found != self.by[&key] {
                let name = &policy.counters[key.0].name;
                return Err(format!("{name} by {:x?}: kernel {found:?}, interpreter {:?}", key.1, self.by[&key]));
            }
        }
        Ok(())
    }

    /// The kernel must have counted under no other value than was taken down.
    pub fn assert_counted_no_other(&self, policy: &Policy) -> Result<(), String> {
        for (number, counter) in self.manifest.counters.iter().enumerate().filter(|(_, counter)| counter.by.is_some()) {
            let map = self.object.map(&counter.map).expect("every counter has its map");
            let is_time = |key: &[u8]| {
                policy.counters[number].by == Some(Type::Timestamp)
                    && key.try_into().is_ok_and(|time| u64::from_ne_bytes(time) >= self.since)
            };
            let unknown = |key: &Vec<u8>| !self.by.contains_key(&(number, key.clone())) && !is_time(key);
            if let Some(key) = map.keys().find(unknown) {
                return Err(format!("{} by {key:x?} was counted by the kernel only", policy.counters[number].name));
            }
        }
        Ok(())
    }

    /// What was logged since the last call.
    pub fn logged(&self) -> Vec<LogEvent> {
        let Some(map) = self.object.map("pt_log") else { return Vec::new() };
        let events = std::cell::RefCell::new(Vec::new());
        let mut builder = RingBufferBuilder::new();
        builder
            .add(&map, |record| {
                events.borrow_mut().push(LogEvent::parse(record).unwrap());
                0
            })
            .unwrap();
        builder.build().unwrap().consume().unwrap();
        events.into_inner()
    }

    /// The counts in the only entry of a per-CPU array; all 0 if the object has no such map.
    fn read(&self, map: &str, len: usize) -> Vec<Count> {
        let mut counts = vec![(0, 0); len];
        let Some(map) = self.object.map(map) else { return counts };
        let values = map.lookup_percpu(&[0; 4], MapFlags::ANY).unwrap().expect("an array has all its entries");
        for value in values {
            for (count, bytes) in counts.iter_mut().zip(value.chunks_exact(16)) {
                let (packets, bytes) = count_of(bytes);
                *count = (count.0 + packets, count.1 + bytes);
            }
        }
        counts
    }

    fn counted_by(&self, counter: usize, key: &[u8]) -> Count {
        let map = self.object.map(&self.manifest.counters[counter].map).expect("every counter has its map");
        map.lookup(key, MapFlags::ANY).unwrap().map_or((0, 0), |value| count_of(&value))
    }
}

fn count_of(bytes: &[u8]) -> Count {
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    (word(0), word(8))
}

/// Says where the kernel's numbers and the interpreter's differ.
fn same(what: &str, kernel: &[Count], interpreter: &[Count]) -> Result<(), String> {
    match kernel.iter().zip(interpreter).position(|(one, other)| one != other) {
        Some(at) => Err(format!("{what} differ at {at}: kernel {:?}, interpreter {:?}", kernel[at], interpreter[at])),
        None => Ok(()),
    }
}

/// Puts interfaces' indexes where the programs have them.
fn fill_interfaces(bound: &mut BoundObject<'_>, object: &[u8], interfaces: &[u32]) {
    let elf = object::File::parse(object).unwrap();
    let Some(symbol) = elf.symbols().find(|symbol| symbol.name() == Ok("pt_interfaces")) else { return };
    assert_eq!(elf.section_by_index(symbol.section_index().unwrap()).unwrap().name(), Ok(".rodata"));
    let at = symbol.address() as usize;
    let mut maps = bound.open_object_mut().maps_mut();
    let mut map = maps.find(|map| map.name().to_string_lossy().ends_with(".rodata")).expect("it has its variables");
    let value = map.initial_value_mut().unwrap();
    for (place, index) in value[at..].chunks_exact_mut(4).zip(interfaces) {
        place.copy_from_slice(&index.to_ne_bytes());
    }
}

fn hex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// The end of a verifier's log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// A program's descriptor.
pub fn fd<'p>(program: &'p libbpf_rs::Program<'_>) -> std::os::fd::BorrowedFd<'p> {
    program.as_fd()
}
