//! One packet and one block: what the kernel does with it and what the interpreter says.

use std::{io, ops::RangeInclusive};

use packet_traits::{PacketRegion, Region, TraitsMut, TraitsView};
use packet_traits_policy::{
    hook::{Direction, Hook, NetfilterFamily, NetfilterHook},
    interpret::{self, Context, Decision, Outcome, from_value, to_value},
    log_event::{LogEvent, PACKET_MAX},
    policy::{Action, Policy},
    random::{self, Rng},
};

use crate::{
    kernel::{Loaded, fd},
    test_run::{self, SkBuff},
};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
const TCX_NEXT: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;
/// Local experimental (IEEE Std 802): the kernel does not look further.
const OTHER_ETHER_TYPE: u16 = 0x88b5;
/// What a program says that leaves the choice of a socket to the kernel.
const KERNEL_CHOOSES: u32 = u32::MAX;

/// Interfaces of the namespace that programs run in: `lo` and a pair of veth.
pub const INTERFACES: RangeInclusive<u32> = 1..=3;
/// Their names: of a pair, the kernel makes the peer first.
pub const NAMES: [&str; 3] = ["lo", "veth2", "veth1"];
const LOOPBACK: u32 = 1;

/// A packet and how it arrives.
#[derive(Clone, Debug)]
pub struct Input {
    pub packet: Vec<u8>,
    pub context: Context,
    /// What another program has left in front of the traits.
    pub foreign: Vec<u8>,
    /// The packet region is there: else what it would hold is absent.
    pub open: bool,
    pub mark: u32,
    pub priority: u32,
}

/// What became of an input.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ran {
    /// The kernel and the interpreter agree.
    Same,
    /// The kernel does not run such a program on such a packet.
    Refused,
}

impl Input {
    /// A random one. `interfaces` are the indexes of those that the policy names.
    pub fn random(rng: &mut Rng, policy: &Policy, block: usize, interfaces: &[u32]) -> Input {
        let hook = policy.blocks[block].hook;
        let packet = random::packet(rng, policy, block);
        let mut context = random::context(rng, policy, block);
        let interface = |rng: &mut Rng| Some(rng.u32(INTERFACES));
        (context.input, context.output) = match hook {
            Hook::Xdp => (Some(LOOPBACK), None),
            Hook::Tc(Direction::Ingress) => (interface(rng), None),
            Hook::Tc(Direction::Egress) | Hook::Cgroup(Direction::Egress) => (None, interface(rng)),
            Hook::Cgroup(Direction::Ingress) | Hook::Match | Hook::Steer => {
                (interface(rng).filter(|_| rng.u32(..4) > 0), None)
            }
            // The kernel's state says so at every hook (`verify_and_copy_hook_state` in net/bpf/test_run.c).
            Hook::Netfilter { .. } => (None, Some(LOOPBACK)),
        };
        context.interfaces = interfaces.iter().map(|index| Some(*index)).collect();
        // BPF_PROG_TEST_RUN makes no skb that has these.
        context.vlan = None;
        context.sampled = true;
        let mut input = Input {
            packet,
            context,
            foreign: Vec::new(),
            open: rng.u32(..4) > 0,
            mark: rng.u32(..),
            priority: rng.u32(..),
        };
        if hook != Hook::Xdp {
            input.context.has_area = false;
            input.context.traits.clear();
        } else if rng.u32(..3) == 0 {
            input.foreign = vec![0; *[4, 8, 16, 64].get(rng.usize(..4)).unwrap()];
            rng.fill(&mut input.foreign);
        }
        if !input.open {
            forget_keep_first(policy, &mut input.context);
        }
        input
    }

    /// The metadata that the packet arrives with at XDP.
    pub fn metadata(&self, loaded: &Loaded, policy: &Policy) -> Vec<u8> {
        let mut metadata = self.foreign.clone();
        if self.context.has_area {
            metadata.extend(area(loaded, policy, &self.context.traits, self.open));
        }
        metadata
    }
}

fn forget_keep_first(policy: &Policy, context: &mut Context) {
    for (key, value) in policy.keys.iter().zip(&mut context.traits) {
        if key.merge.region() == Region::Packet {
            *value = None;
        }
    }
}

/// Has a block's program and the interpreter look at a packet. `Err` says how they differ.
pub fn check(
    loaded: &mut Loaded,
    policy: &Policy,
    block: usize,
    input: &Input,
    seal: bool,
    cpu: usize,
) -> Result<Ran, String> {
    let mut context = input.context.clone();
    context.time = now();
    context.unique = loaded.next_unique(cpu);
    let outcome = interpret::run(policy, block, &input.packet, &context);
    let ran = match policy.blocks[block].hook {
        Hook::Xdp => xdp(loaded, policy, block, input, &outcome, seal, &context),
        Hook::Netfilter { family, hook, .. } => netfilter(loaded, policy, block, input, &outcome, family, hook),
        Hook::Tc(_) | Hook::Cgroup(_) | Hook::Match | Hook::Steer => skb(loaded, policy, block, input, &outcome),
    }
    .map_err(|difference| format!("{difference}\n{}", told(&outcome)))?;
    if ran == Ran::Refused {
        return Ok(ran);
    }
    account(loaded, policy, &[(&outcome, &input.packet)], &context)
        .map_err(|difference| format!("{difference}\n{}", told(&outcome)))?;
    Ok(Ran::Same)
}

/// What the interpreter did.
pub fn told(outcome: &Outcome<'_>) -> String {
    let mut text = format!(
        "the interpreter: {:?} by rule {:?}, traits {:x?}, mark {:x?}, priority {:x?}, queue {:x?}\n",
        outcome.decision, outcome.decided_by, outcome.traits, outcome.mark, outcome.priority, outcome.queue
    );
    for step in &outcome.steps {
        text += &format!("  rule {}: {}\n", step.rule, if step.holds { "holds" } else { "does not hold" });
        for test in &step.tests {
            text += &format!("    {:x?} of {:x?}: {}\n", test.test, test.value, test.passed);
        }
        for action in &step.actions {
            text += &format!("    {:x?}: {:x?}\n", action.action, action.effect);
        }
    }
    text
}

fn xdp(
    loaded: &Loaded,
    policy: &Policy,
    block: usize,
    input: &Input,
    outcome: &Outcome<'_>,
    seal: bool,
    context: &Context,
) -> Result<Ran, String> {
    let metadata = input.metadata(loaded, policy);
    let program = loaded.program(policy, block);
    let ran = match test_run::xdp(fd(&program), &metadata, &input.packet) {
        Err(error) if refuses(&error) && input.packet.len() < 14 => return Ok(Ran::Refused),
        other => other.map_err(|error| format!("running the program: {error}"))?,
    };
    // There are no AF_XDP sockets, and no CPU is in the map.
    let expected = match outcome.decision {
        Decision::Drop => XDP_DROP,
        Decision::RedirectDevice(_) => XDP_REDIRECT,
        _ => XDP_PASS,
    };
    same("the verdict", ran.verdict, expected)?;
    if ran.packet != input.packet {
        return Err(format!("the packet is now {:x?}", ran.packet));
    }
    if outcome.decision == Decision::Drop {
        return Ok(Ran::Same);
    }
    if !ran.metadata.starts_with(&input.foreign) {
        return Err(format!("the other program's metadata is gone: {:x?}", ran.metadata));
    }
    let sealed = seal && input.foreign.is_empty();
    same_traits(loaded, policy, (&ran.metadata, ran.metadata.len()), &outcome.traits, sealed, context)?;
    Ok(Ran::Same)
}

/// An area with traits in it: the whole, or the flow region alone.
fn area(loaded: &Loaded, policy: &Policy, traits: &[Option<u128>], open: bool) -> Vec<u8> {
    let mut area = vec![0; loaded.layout.area_len()];
    let mut view = TraitsMut::init(&mut area, &loaded.layout, &loaded.nonces).unwrap();
    for ((key, declared), value) in loaded.keys.iter().zip(&policy.keys).zip(traits) {
        if let Some(value) = value {
            view.set_value(key, &to_value(declared.key_type, *value)).unwrap();
        }
    }
    if open { area } else { area.split_off(loaded.layout.region_len(Region::Packet)) }
}

/// The bytes in front of a packet, and its metadata of this length, hold these traits.
pub fn same_traits(
    loaded: &Loaded,
    policy: &Policy,
    (in_front, meta_len): (&[u8], usize),
    traits: &[Option<u128>],
    sealed: bool,
    context: &Context,
) -> Result<(), String> {
    let view = TraitsView::new_checked(in_front, &loaded.layout, &loaded.nonces, meta_len).ok();
    let flow_len = loaded.layout.region_len(Region::Flow);
    if sealed && view.is_some() && meta_len != flow_len {
        return Err(format!("the area is not sealed: {meta_len} bytes of metadata"));
    }
    // What is not in the bytes given cannot be compared.
    let hidden = sealed && view.is_some_and(|view| view.packet_region() == PacketRegion::Absent);
    for ((key, declared), expected) in loaded.keys.iter().zip(&policy.keys).zip(traits) {
        if hidden && declared.merge.region() == Region::Packet {
            continue;
        }
        let found = view.and_then(|view| view.value(key)).map(|value| from_value(&value));
        if !is(found, *expected, context) {
            return Err(format!("trait {}: kernel {found:x?}, interpreter {expected:x?}", declared.name));
        }
    }
    Ok(())
}

/// Whether the kernel's value is what the interpreter says; its time is a little later.
pub fn is(found: Option<u128>, expected: Option<u128>, context: &Context) -> bool {
    let time = u128::from(context.time);
    found == expected || expected == Some(time) && found.is_some_and(|found| (time..=now().into()).contains(&found))
}

fn skb(loaded: &Loaded, policy: &Policy, block: usize, input: &Input, outcome: &Outcome<'_>) -> Result<Ran, String> {
    let hook = policy.blocks[block].hook;
    let mut packet = Vec::new();
    if !hook.sees_ethernet() {
        packet = test_run::ethernet(match ip_header(&input.packet) {
            Some(NetfilterFamily::Ipv4) => 0x0800,
            Some(NetfilterFamily::Ipv6) => 0x86dd,
            None => OTHER_ETHER_TYPE,
        });
    }
    let header_len = packet.len();
    packet.extend(&input.packet);
    let context = SkBuff {
        mark: input.mark,
        priority: input.priority,
        ingress_ifindex: input.context.input.unwrap_or(0),
        ifindex: input.context.output.or(input.context.input).unwrap_or(LOOPBACK),
        ..SkBuff::default()
    };
    let program = loaded.program(policy, block);
    let ran = match test_run::skb(fd(&program), context, &packet) {
        // The kernel makes no such skb of nothing, and none of an IP packet whose header is cut short.
        Err(error) if refuses(&error) && packet.len() < if hook.sees_ethernet() { 14 + 40 } else { 14 + 1 } => {
            return Ok(Ran::Refused);
        }
        other => other.map_err(|error| format!("running the program: {error}"))?,
    };
    let expected = match (hook, outcome.decision) {
        (Hook::Tc(_), Decision::Accept) => TCX_NEXT,
        (Hook::Tc(_), Decision::Drop) => TC_ACT_SHOT,
        (Hook::Tc(_), Decision::RedirectDevice(_)) => TC_ACT_REDIRECT,
        (Hook::Cgroup(_), Decision::Accept) => 1,
        (Hook::Cgroup(_) | Hook::Match, Decision::Drop) => 0,
        (Hook::Match, Decision::Accept) => (packet.len() - header_len) as u32,
        (Hook::Steer, Decision::Member(member)) => member as u32,
        (Hook::Steer, Decision::Kernel) => KERNEL_CHOOSES,
        (hook, decision) => unreachable!("{hook} does not come to {decision:?}"),
    };
    same("the verdict", ran.verdict, expected)?;
    same("the mark", ran.context.mark, outcome.mark.map_or(input.mark, |mark| mark as u32))?;
    same("the priority", ran.context.priority, outcome.priority.map_or(input.priority, |priority| priority as u32))?;
    if hook.sees_ethernet() && ran.packet != packet {
        return Err(format!("the packet is now {:x?}", ran.packet));
    }
    Ok(Ran::Same)
}

fn netfilter(
    loaded: &Loaded,
    policy: &Policy,
    block: usize,
    input: &Input,
    outcome: &Outcome<'_>,
    only: Option<NetfilterFamily>,
    hook: NetfilterHook,
) -> Result<Ran, String> {
    const NF_DROP: u32 = 0;
    const NF_ACCEPT: u32 = 1;
    // Netfilter sees no packet whose IP header is not there.
    let Some(family) = ip_header(&input.packet).filter(|family| only.is_none_or(|only| only == *family)) else {
        return Ok(Ran::Refused);
    };
    let program = loaded.program(policy, block);
    let verdict = test_run::netfilter(fd(&program), family, hook, &input.packet)
        .map_err(|error| format!("running the program: {error}"))?;
    same("the verdict", verdict, if outcome.decision == Decision::Drop { NF_DROP } else { NF_ACCEPT })?;
    Ok(Ran::Same)
}

/// The version of the IP header that a packet starts with, if all of it is there.
fn ip_header(packet: &[u8]) -> Option<NetfilterFamily> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => Some(NetfilterFamily::Ipv4),
        6 if packet.len() >= 40 => Some(NetfilterFamily::Ipv6),
        _ => None,
    }
}

/// What the kernel has counted and logged is what the interpreter says of the blocks that a packet has met.
pub fn account(
    loaded: &mut Loaded,
    policy: &Policy,
    outcomes: &[(&Outcome<'_>, &[u8])],
    context: &Context,
) -> Result<(), String> {
    outcomes.iter().for_each(|(outcome, _)| loaded.take_down(policy, outcome));
    loaded.compare_counts(policy)?;
    let events = loaded.logged();
    let mut events = events.iter().peekable();
    let rules: Vec<_> = policy.blocks.iter().flat_map(|block| &block.rules).collect();
    for (outcome, packet) in outcomes {
        for logged in &outcome.logged {
            let is_this = |event: &&LogEvent| {
                event.rule as usize == logged.rule
                    && loaded.manifest.logs[event.text as usize] == logged.text
                    && u128::from(event.length) == outcome.length
                    && event.packet == packet[..packet.len().min(PACKET_MAX)]
                    && event.traits.iter().all(|found| is(found.value, logged.traits[found.key as usize], context))
            };
            // The interpreter says all that is in some sample.
            let always = rules[logged.rule]
                .actions
                .iter()
                .all(|action| !matches!(action, Action::Log { text, sample } if text == logged.text && *sample > 1));
            if events.next_if(is_this).is_none() && always {
                return Err(format!("not logged as it should be: {logged:x?}; next is {:x?}", events.peek()));
            }
        }
    }
    events.next().map_or(Ok(()), |event| Err(format!("logged, but should not be: {event:x?}")))
}

pub fn same(what: &str, kernel: u32, interpreter: u32) -> Result<(), String> {
    if kernel == interpreter {
        Ok(())
    } else {
        Err(format!("{what}: kernel {kernel:#x}, interpreter {interpreter:#x}"))
    }
}

fn refuses(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to `time` only.
    let err = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert_eq!(err, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
