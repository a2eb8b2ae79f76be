//! The generated programs do what the language says: random policies and random packets, the kernel against the interpreter.
//!
//! `TRAITS_POLICY_CASES` says how many policies are tried (200), `TRAITS_POLICY_SEED` which is the first (1), `TRAITS_POLICY_PACKETS` how many
//! packets each meets (200). A failure names the seed of its policy, and shows the policy made as small as it still fails.
#![allow(unreachable_pub, missing_docs)]

mod case;
mod kernel;
mod test_run;

use std::{
    env,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use self::case::{INTERFACES, Input, Ran};
use self::kernel::Loaded;
use packet_traits::registry::{Registry, RegistryName};
use packet_traits_lab::{Bpffs, Netns, kernel_tests_enabled, require_root};
use packet_traits_policy::{
    emit::{EmitOptions, emit},
    hook::Hook,
    policy::Policy,
    print::{print, print_rule},
    random::{self, PolicyOptions, Rng},
    source::{SourceId, Sources, Span},
};

/// How many smaller policies are tried when one fails.
const MINIMISE_TRIES: usize = 150;

/// A policy that is tried.
struct Case {
    seed: u64,
    policy: Policy,
    sources: Sources,
    seal: bool,
    /// Indexes of the interfaces that the policy names.
    interfaces: Vec<u32>,
}

/// Why a policy failed.
enum Failure {
    /// Not on a packet.
    NotRun(String),
    /// The kernel does something else with a packet than the interpreter says.
    Differs { number: u64, block: usize, input: Box<Input>, difference: String },
}

/// Where programs are loaded.
struct Place {
    bpffs: Bpffs,
    cpu: usize,
    registries: u64,
}

impl Place {
    /// A place of this thread's, which stays on one CPU from now on.
    fn new(cpu: usize) -> Place {
        // SAFETY: all zeroes is an empty set; it is large enough for any CPU that this machine numbers.
        let err = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
        };
        assert_eq!(err, 0, "staying on CPU {cpu}");
        Place { bpffs: Bpffs::new().unwrap(), cpu, registries: 0 }
    }

    /// Does something with a registry that is there as long as that takes.
    fn with_registry<R>(&mut self, act: impl FnOnce(&Registry) -> R) -> R {
        self.registries += 1;
        let name = RegistryName::new(&format!("r{}", self.registries)).unwrap();
        let options = Registry::options().name(name).bpffs(self.bpffs.path());
        let result = act(&options.create().unwrap());
        options.remove(true).unwrap();
        result
    }
}

impl Case {
    fn new(seed: u64) -> Case {
        let mut rng = Rng::with_seed(seed);
        let rng = &mut rng;
        let first = hook(rng);
        let second = Some(hook(rng)).filter(|second| rng.u32(..5) == 0 && (*second != Hook::Xdp || first != Hook::Xdp));
        let options = PolicyOptions {
            hooks: [first].into_iter().chain(second).collect(),
            rules: 1..=10,
            ..PolicyOptions::default()
        };
        let mut policy = random::policy(rng, &options);
        let sources = write_down(&mut policy);
        let interfaces = policy.interfaces.iter().map(|_| rng.u32(INTERFACES)).collect();
        Case { seed, policy, sources, seal: rng.u32(..4) == 0, interfaces }
    }

    /// Compares `packets` packets; how many the kernel took.
    fn run(&self, packets: u64, place: &mut Place) -> Result<u64, String> {
        let object = kernel::compile(&self.policy, &self.sources, self.seal)
            .map_err(|why| format!("policy {}: {why}", self.seed))?;
        let cpu = place.cpu;
        let tried = place.with_registry(|registry| self.try_packets(packets, &object, registry, cpu));
        tried.map_err(|failure| match failure {
            Failure::NotRun(why) => format!("policy {}: {why}\n{}", self.seed, self.show(&self.policy)),
            Failure::Differs { number, block, input, difference } => {
                self.report(number, block, &input, &difference, place)
            }
        })
    }

    fn try_packets(&self, packets: u64, object: &[u8], registry: &Registry, cpu: usize) -> Result<u64, Failure> {
        let mut loaded = Loaded::new(&self.policy, object, registry, &self.interfaces).map_err(Failure::NotRun)?;
        let mut taken = 0;
        for number in 0..packets {
            let mut rng = Rng::with_seed(self.seed << 32 | number);
            let block = rng.usize(..self.policy.blocks.len());
            let input = Input::random(&mut rng, &self.policy, block, &self.interfaces);
            match case::check(&mut loaded, &self.policy, block, &input, self.seal, cpu) {
                Ok(Ran::Same) => taken += 1,
                Ok(Ran::Refused) => {}
                Err(difference) => {
                    return Err(Failure::Differs { number, block, input: Box::new(input), difference });
                }
            }
        }
        loaded.assert_counted_no_other(&self.policy).map_err(Failure::NotRun)?;
        Ok(taken)
    }

    /// Tells of a difference, with the policy made smaller.
    fn report(&self, number: u64, block: usize, input: &Input, difference: &str, place: &mut Place) -> String {
        let mut last = difference.to_owned();
        let small = random::minimise(self.policy.clone(), MINIMISE_TRIES, |policy| {
            let mut policy = policy.clone();
            let sources = write_down(&mut policy);
            let Ok(object) = kernel::compile(&policy, &sources, self.seal) else { return false };
            let cpu = place.cpu;
            let found = place.with_registry(|registry| {
                let mut loaded = Loaded::new(&policy, &object, registry, &self.interfaces).ok()?;
                case::check(&mut loaded, &policy, block, input, self.seal, cpu).err()
            });
            if let Some(found) = &found {
                last.clone_from(found);
            }
            found.is_some()
        });
        let hex: String = input.packet.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "policy {}, packet {number}, block {block} ({}), seal {}: {last}\npacket {hex}\n{:x?}\n{}\n\
             again: TRAITS_POLICY_SEED={} TRAITS_POLICY_CASES=1 cargo test -p packet-traits-cli --test policy_differential",
            self.seed,
            self.policy.blocks[block].hook,
            self.seal,
            (&input.context, &input.foreign, input.open, input.mark, input.priority),
            self.show(&small),
            self.seed,
        )
    }

    /// A policy and its program.
    fn show(&self, policy: &Policy) -> String {
        let mut policy = policy.clone();
        let sources = write_down(&mut policy);
        let program = match emit(&policy, &sources, &EmitOptions { seal: self.seal }) {
            Ok(emitted) => kernel::numbered(&emitted.source),
            Err(error) => error.to_string(),
        };
        format!("{}\n{program}", print(&policy))
    }
}

/// A random hook; half of them XDP, which shows the most.
fn hook(rng: &mut Rng) -> Hook {
    if rng.u32(..5) < 2 { Hook::Xdp } else { random::hook(rng) }
}

/// Writes a policy down, with spans that point there: programs have the rules' text in comments.
fn write_down(policy: &mut Policy) -> Sources {
    let mut text = String::new();
    for block in 0..policy.blocks.len() {
        let start = text.len();
        text += &format!("{} {}", policy.blocks[block].hook, policy.blocks[block].name);
        policy.blocks[block].span = Span::new(SourceId(0), start..text.len());
        text += " {\n";
        for rule in 0..policy.blocks[block].rules.len() {
            let start = text.len() + 4;
            text += &format!("    {}\n", print_rule(policy, block, rule));
            policy.blocks[block].rules[rule].span = Span::new(SourceId(0), start..text.len() - 1);
        }
        text += "}\n";
    }
    let mut sources = Sources::default();
    sources.add("random.traits", text);
    sources
}

fn setting(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Err(_) => default,
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is {text:?} and should be a number")),
    }
}

/// Whether kernel tests are to run.
fn enabled() -> bool {
    if !kernel_tests_enabled() {
        return false;
    }
    if let Err(how) = require_root() {
        panic!("{how}");
    }
    libbpf_rs::set_print(None);
    true
}

/// A namespace with the interfaces of [`INTERFACES`].
fn namespace() -> Netns {
    let namespace = Netns::new().unwrap();
    namespace.ip("link add veth1 type veth peer name veth2").unwrap();
    namespace
}

#[test]
fn the_kernel_does_what_the_interpreter_says() {
    if !enabled() {
        return;
    }
    let (first, cases, packets) =
        (setting("TRAITS_POLICY_SEED", 1), setting("TRAITS_POLICY_CASES", 200), setting("TRAITS_POLICY_PACKETS", 200));
    let namespace = namespace();
    let next = AtomicU64::new(0);
    let taken = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let cpus = thread::available_parallelism().unwrap().get();
    let work = |cpu| {
        let mut place = Place::new(cpu);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= cases {
                return;
            }
            match Case::new(first + number).run(packets, &mut place) {
                Ok(count) => _ = taken.fetch_add(count, Ordering::Relaxed),
                Err(failure) => {
                    failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
                    // What else fails, most likely fails for the same reason.
                    next.store(cases, Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| {
        for cpu in 0..cpus {
            let (namespace, work) = (&namespace, &work);
            scope.spawn(move || namespace.enter(|| work(cpu)));
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    let taken = taken.into_inner();
    println!("{cases} policies from seed {first}, {taken} packets");
    assert!(taken * 10 > cases * packets * 8, "the kernel took {taken} packets of {}", cases * packets);
}
