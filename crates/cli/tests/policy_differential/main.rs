//! The generated programs do what the language says: random policies and random packets, the kernel against the interpreter.
//!
//! `TRAITS_POLICY_CASES` says how many policies are tried (40, and a quarter of that on packets that the network stack receives),
//! `TRAITS_POLICY_SEED` which is the first (1), `TRAITS_POLICY_PACKETS` how many packets each meets (200). A failure names the seed of its
//! policy, and shows the policy made as small as it still fails. 40 take one to two minutes on two processors; after a change
//! to the language or to what programs are made of it, run 200 or more.
#![allow(unreachable_pub, missing_docs)]

mod case;
mod kernel;
mod received;
mod test_run;

use std::{
    env,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use self::case::{INTERFACES, Input, NAMES, Ran};
use self::kernel::Loaded;
use self::received::Receiver;
use packet_traits::registry::{Registry, RegistryName, RegistryOptions};
use packet_traits_lab::{Bpffs, KernelFeature, Netns, kernel_has};
use packet_traits_policy::{
    emit::{EmitOptions, emit},
    hook::{Direction, Hook},
    policy::Policy,
    print::{print, print_rule},
    random::{self, PolicyOptions, Rng},
    source::{SourceId, Sources, Span},
};

/// How many smaller policies are tried when one fails.
const MINIMISE_TRIES: usize = 60;

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

/// Where programs are loaded and run.
struct Place {
    bpffs: Bpffs,
    cpu: usize,
    registries: u64,
    /// Packets come in by its interface.
    receiver: Option<Receiver>,
}

impl Place {
    /// A place of this thread's, which stays on one CPU from now on.
    fn new(cpu: usize, receiver: Option<Receiver>) -> Place {
        // SAFETY: all zeroes is an empty set; it is large enough for any CPU that this machine numbers.
        let err = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
        };
        assert_eq!(err, 0, "staying on CPU {cpu}");
        Place { bpffs: Bpffs::new().unwrap(), cpu, registries: 0, receiver }
    }

    /// A registry that is there as long as the result.
    fn registry(&mut self) -> TemporaryRegistry {
        self.registries += 1;
        let name = RegistryName::new(&format!("r{}", self.registries)).unwrap();
        let options = Registry::options().name(name).bpffs(self.bpffs.path());
        TemporaryRegistry { registry: options.create().unwrap(), options }
    }
}

/// A registry that is removed with all that is in it.
struct TemporaryRegistry {
    registry: Registry,
    options: RegistryOptions,
}

impl Drop for TemporaryRegistry {
    fn drop(&mut self) {
        self.options.remove(true).unwrap();
    }
}

impl Case {
    /// A policy of one block or two, each of which sees packets on its own.
    fn of_any_hook(seed: u64) -> Case {
        let mut rng = Rng::with_seed(seed);
        let first = hook(&mut rng);
        let second = hook(&mut rng);
        let second = (rng.u32(..5) == 0 && (first != Hook::Xdp || second != Hook::Xdp)).then_some(second);
        Case::new(seed, &mut rng, [first].into_iter().chain(second).collect())
    }

    /// A policy of the blocks that a packet meets that is received.
    fn of_received(seed: u64) -> Case {
        Case::new(seed, &mut Rng::with_seed(seed), vec![Hook::Xdp, Hook::Tc(Direction::Ingress)])
    }

    fn new(seed: u64, rng: &mut Rng, hooks: Vec<Hook>) -> Case {
        let options = PolicyOptions { hooks, rules: 1..=10, ..PolicyOptions::default() };
        let mut policy = random::policy(rng, &options);
        let interfaces: Vec<u32> = policy.interfaces.iter().map(|_| rng.u32(INTERFACES)).collect();
        for (name, index) in policy.interfaces.iter_mut().zip(&interfaces) {
            *name = NAMES[*index as usize - 1].to_owned();
        }
        let sources = write_down(&mut policy);
        Case { seed, policy, sources, seal: rng.u32(..4) == 0, interfaces }
    }

    /// Compares `packets` packets; how many the kernel took.
    fn run(&self, packets: u64, place: &mut Place) -> Result<u64, String> {
        self.try_packets(packets, place).map_err(|failure| match failure {
            Failure::NotRun(why) => format!("policy {}: {why}\n{}", self.seed, self.show(&self.policy)),
            Failure::Differs { number, block, input, difference } => {
                self.report(number, block, &input, &difference, place)
            }
        })
    }

    fn try_packets(&self, packets: u64, place: &mut Place) -> Result<u64, Failure> {
        let temporary = place.registry();
        let mut loaded = self.load(&self.policy, &self.sources, &temporary.registry).map_err(Failure::NotRun)?;
        let _attached = place.receiver.as_ref().map(|receiver| receiver.attach(&loaded, &self.policy));
        let mut taken = 0;
        for number in 0..packets {
            let mut rng = Rng::with_seed(self.seed << 32 | number);
            let block = if place.receiver.is_some() { 0 } else { rng.usize(..self.policy.blocks.len()) };
            let input = Input::random(&mut rng, &self.policy, block, &self.interfaces);
            match self.check(&mut loaded, &self.policy, block, &input, place) {
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

    fn load(&self, policy: &Policy, sources: &Sources, registry: &Registry) -> Result<Loaded, String> {
        let object = kernel::compile(policy, sources, self.seal)?;
        Loaded::new(policy, &object, registry, &self.interfaces)
    }

    fn check(
        &self,
        loaded: &mut Loaded,
        policy: &Policy,
        block: usize,
        input: &Input,
        place: &Place,
    ) -> Result<Ran, String> {
        match &place.receiver {
            Some(receiver) => receiver.check(loaded, policy, input, self.seal, place.cpu),
            None => case::check(loaded, policy, block, input, self.seal, place.cpu),
        }
    }

    /// Tells of a difference, with the policy made smaller.
    fn report(&self, number: u64, block: usize, input: &Input, difference: &str, place: &mut Place) -> String {
        let mut last = difference.to_owned();
        let small = random::minimise(self.policy.clone(), MINIMISE_TRIES, |policy| {
            let mut policy = policy.clone();
            let sources = write_down(&mut policy);
            let temporary = place.registry();
            let Ok(mut loaded) = self.load(&policy, &sources, &temporary.registry) else { return false };
            let _attached = place.receiver.as_ref().map(|receiver| receiver.attach(&loaded, &policy));
            let found = self.check(&mut loaded, &policy, block, input, place).err();
            if let Some(found) = &found {
                last.clone_from(found);
            }
            found.is_some()
        });
        let hex: String = input.packet.iter().map(|byte| format!("{byte:02x}")).collect();
        let test = if place.receiver.is_some() { RECEIVED } else { ANY_HOOK };
        format!(
            "policy {}, packet {number}, block {block} ({}), seal {}: {last}\npacket {hex}\n{input:x?}\n{}\n\
             again: TRAITS_POLICY_SEED={} TRAITS_POLICY_CASES=1 cargo test -p packet-traits-cli --test policy_differential {test}",
            self.seed,
            self.policy.blocks[block].hook,
            self.seal,
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
    if !packet_traits_testing::kernel::enabled() {
        return false;
    }
    libbpf_rs::set_print(None);
    // random keys are of both regions
    kernel_has(KernelFeature::LongMetadata)
}

/// A namespace with the interfaces of [`INTERFACES`].
fn namespace() -> Netns {
    let namespace = Netns::new().unwrap();
    namespace.ip("link add veth1 type veth peer name veth2\nlink set veth1 up\nlink set veth2 up").unwrap();
    namespace
}

/// Tries policies on all CPUs.
fn try_policies(cases: u64, case: fn(u64) -> Case, receiver: &(dyn Fn() -> Option<Receiver> + Sync)) {
    let (first, packets) = (setting("TRAITS_POLICY_SEED", 1), setting("TRAITS_POLICY_PACKETS", 200));
    let (next, taken) = (AtomicU64::new(0), AtomicU64::new(0));
    let failures = Mutex::new(Vec::new());
    let work = |cpu| {
        let mut place = Place::new(cpu, receiver());
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= cases {
                return;
            }
            match case(first + number).run(packets, &mut place) {
                Ok(count) => _ = taken.fetch_add(count, Ordering::Relaxed),
                Err(failure) => {
                    failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
                    // What else fails, most likely fails for the same reason.
                    next.store(cases, Ordering::Relaxed);
                }
            }
        }
    };
    let cpus = thread::available_parallelism().unwrap().get();
    thread::scope(|scope| {
        for cpu in 0..cpus {
            let work = &work;
            scope.spawn(move || namespace().enter(|| work(cpu)));
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    let taken = taken.into_inner();
    println!("{cases} policies from seed {first}, {taken} packets");
    assert!(taken * 10 >= cases * packets * 8, "the kernel took {taken} packets of {}", cases * packets);
}

fn cases() -> u64 {
    setting("TRAITS_POLICY_CASES", 40)
}

const ANY_HOOK: &str = "programs_of_every_hook_do_what_the_interpreter_says";
const RECEIVED: &str = "received_packets_carry_what_the_interpreter_says";

#[test]
fn programs_of_every_hook_do_what_the_interpreter_says() {
    if enabled() {
        try_policies(cases(), Case::of_any_hook, &|| None);
    }
}

#[test]
fn received_packets_carry_what_the_interpreter_says() {
    if enabled() {
        let observer = kernel::compile_observer();
        try_policies(cases().div_ceil(4), Case::of_received, &|| Some(Receiver::new(&observer)));
    }
}
