//! Packets that the network stack receives: through the block at XDP and then the one at TC, which reads and changes what XDP has set.
//!
//! This is where traits meet an skb, with the packet region sealed or not, and where the kernel takes VLAN tags out.

use std::{borrow::Cow, os::fd::AsFd};

use libbpf_rs::{MapCore, MapFlags, ObjectBuilder};
use packet_traits::{
    Merge,
    attach::{Attachment, Direction, Position, TcxOptions, XdpMode, tcx, xdp},
};
use packet_traits_policy::{
    interpret::{self, Context, Decision, Outcome},
    policy::Policy,
};

use crate::{
    case::{self, Input, Ran, same},
    kernel::{Loaded, fd},
    test_run,
};

/// The interface that packets come in by: one end of a pair.
pub const INTERFACE: u32 = 2;

/// Where the blocks are in the policy.
const XDP: usize = 0;
const TC: usize = 1;

const ETHERNET_LEN: usize = 14;
/// The kernel makes frames for the network stack of a page (`bpf_prog_test_run_xdp` in net/bpf/test_run.c), in which the
/// headroom and the traits are, too.
const RECEIVED_LEN_MAX: usize = 3000;
/// A tagged packet that is shorter is dropped (`skb_vlan_untag` in net/core/skbuff.c wants what is behind the tag, too).
const TAGGED_LEN_MIN: usize = ETHERNET_LEN + 6;
/// Where a VLAN tag is in a packet.
const TAG: std::ops::Range<usize> = 12..16;

/// The interface, with a program behind the policy's at TC that writes down what it sees.
pub struct Receiver {
    observer: libbpf_rs::Object,
    _attachments: Vec<Attachment>,
}

/// `struct observed` of observer.bpf.c.
struct Observed {
    packets: u32,
    mark: u32,
    priority: u32,
    queue_mapping: u32,
    meta_len: usize,
    length: u32,
    in_front: Vec<u8>,
}

impl Receiver {
    /// One in the namespace of this thread.
    pub fn new(observer: &[u8]) -> Receiver {
        let observer = ObjectBuilder::default().open_memory(observer).unwrap().load().unwrap();
        let program = |name| observer.progs().find(|program| program.name() == name).unwrap();
        // An interface without an XDP program of its own takes no frames from BPF_PROG_TEST_RUN.
        let (swallow, _) = xdp::attach(program("swallow").as_fd(), INTERFACE, XdpMode::Native).unwrap();
        let observe = tcx::attach(program("observe").as_fd(), INTERFACE, &TcxOptions::new(Direction::Ingress)).unwrap();
        Receiver { observer, _attachments: vec![swallow, observe] }
    }

    /// Puts a policy's block at TC in front of the observer, as long as the result lives.
    pub fn attach(&self, loaded: &Loaded, policy: &Policy) -> Attachment {
        let options = TcxOptions::new(Direction::Ingress).position(Position::First);
        tcx::attach(loaded.program(policy, TC).as_fd(), INTERFACE, &options).unwrap()
    }

    fn observed(&self) -> Observed {
        let map = self.observer.maps().find(|map| map.name() == "observed").unwrap();
        let raw = map.lookup(&[0; 4], MapFlags::ANY).unwrap().expect("an array has all its entries");
        let word = |at: usize| u32::from_ne_bytes(raw[at..at + 4].try_into().unwrap());
        Observed {
            packets: word(0),
            mark: word(4),
            priority: word(8),
            queue_mapping: word(12),
            meta_len: word(16) as usize,
            length: word(20),
            in_front: raw[24..].to_vec(),
        }
    }

    /// Has both programs and the interpreter look at a packet. `Err` says how they differ.
    pub fn check(
        &self,
        loaded: &mut Loaded,
        policy: &Policy,
        input: &Input,
        seal: bool,
        cpu: usize,
    ) -> Result<Ran, String> {
        if !(ETHERNET_LEN..=RECEIVED_LEN_MAX).contains(&input.packet.len()) {
            return Ok(Ran::Refused);
        }
        let mut at_xdp = input.context.clone();
        at_xdp.input = Some(INTERFACE);
        at_xdp.time = case::now();
        at_xdp.unique = loaded.next_unique(cpu);
        let first = interpret::run(policy, XDP, &input.packet, &at_xdp);
        let (packet, vlan) = without_tag(&input.packet);
        let mut at_tc = Context { vlan, traits: first.traits.clone(), ..at_xdp.clone() };
        let sealed = seal && input.foreign.is_empty();
        // how long the packet was must be known, and is of a sealed area only
        let discarded = |merge| merge == Merge::Discard && !(sealed && has_known_length(&input.packet));
        for (key, value) in policy.keys.iter().zip(&mut at_tc.traits) {
            *value = value.filter(|_| !discarded(key.merge));
        }
        at_tc.has_area |= first.traits.iter().any(Option::is_some);
        at_tc.unique += first.unique_taken;
        let reaches = passes(&first) && (!is_tagged(&input.packet) || input.packet.len() >= TAGGED_LEN_MIN);
        let second = reaches.then(|| interpret::run(policy, TC, &packet, &at_tc));

        let before = self.observed().packets;
        let program = loaded.program(policy, XDP);
        test_run::receive(fd(&program), INTERFACE, &input.metadata(loaded, policy), &input.packet)
            .map_err(|error| format!("receiving: {error}"))?;
        let observed = self.observed();
        // they are there, though nobody reads them
        let hidden = policy.keys.iter().zip(&first.traits).map(|(key, value)| value.filter(|_| discarded(key.merge)));
        let hidden: Vec<_> = hidden.collect();
        self.compare(loaded, policy, &observed, before, &at_tc, second.as_ref(), &hidden, sealed)
            .and_then(|()| {
                let outcomes: Vec<(&Outcome<'_>, &[u8])> = [(&first, &*input.packet)]
                    .into_iter()
                    .chain(second.as_ref().map(|second| (second, &*packet)))
                    .collect();
                case::account(loaded, policy, &outcomes, &at_tc)
            })
            .map_err(|difference| {
                let second = second.as_ref().map(case::told).unwrap_or_default();
                format!("{difference}\nat XDP {}\nat TC {second}", case::told(&first))
            })?;
        Ok(Ran::Same)
    }

    #[expect(clippy::too_many_arguments, reason = "all that is compared")]
    fn compare(
        &self,
        loaded: &Loaded,
        policy: &Policy,
        observed: &Observed,
        before: u32,
        at_tc: &Context,
        outcome: Option<&Outcome<'_>>,
        hidden: &[Option<u128>],
        sealed: bool,
    ) -> Result<(), String> {
        let Some(outcome) = outcome.filter(|outcome| outcome.decision == Decision::Accept) else {
            return same("packets behind TC", observed.packets, before);
        };
        same("packets behind TC", observed.packets, before + 1)?;
        same("the length behind TC", observed.length, outcome.length as u32)?;
        same("the mark", observed.mark, outcome.mark.unwrap_or(0) as u32)?;
        same("the priority", observed.priority, outcome.priority.unwrap_or(0) as u32)?;
        if let Some(queue) = outcome.queue {
            // A recorded receive queue is counted from 1.
            same("the recorded queue", observed.queue_mapping, queue as u32 + 1)?;
        }
        // Where a tag was taken out, what is hidden is not moved along.
        let sealed = sealed && at_tc.vlan.is_some();
        let traits: Vec<_> = outcome.traits.iter().zip(hidden).map(|(read, hidden)| read.or(*hidden)).collect();
        case::same_traits(loaded, policy, (&observed.in_front, observed.meta_len), &traits, sealed, at_tc)
    }
}

/// Whether the network stack gets a packet: there are no CPUs and no AF_XDP sockets that it could be redirected to.
fn passes(outcome: &Outcome<'_>) -> bool {
    matches!(outcome.decision, Decision::Accept | Decision::RedirectCpu(_) | Decision::RedirectXsk(_))
}

fn is_tagged(packet: &[u8]) -> bool {
    matches!(packet.get(TAG.start..TAG.start + 2), Some([0x81, 0x00] | [0x88, 0xa8]))
}

/// Whether XDP can tell where a packet ends, whatever pads it: keys to discard are absent if not.
fn has_known_length(packet: &[u8]) -> bool {
    const IPV6: [u8; 2] = [0x86, 0xdd];
    const PPPOE_SESSION: [u8; 2] = [0x88, 0x64];
    let tags = (0..3).take_while(|tags| is_tagged(packet.get(4 * tags..).unwrap_or_default())).count();
    let Some((ethertype, rest)) = packet.get(12 + 4 * tags..).and_then(|rest| rest.split_first_chunk()) else {
        return false;
    };
    let is_jumbogram = *ethertype == IPV6 && rest.get(4..6) == Some(&[0, 0]);
    // what the check is over, and up to the length of IPv6
    packet.len() >= 38 && rest.len() >= 6 && tags < 3 && *ethertype != PPPOE_SESSION && !is_jumbogram
}

/// The packet without its outermost VLAN tag, which the kernel takes out on receive, and the tag.
fn without_tag(packet: &[u8]) -> (Cow<'_, [u8]>, Option<u16>) {
    match packet.get(TAG) {
        Some(&[0x81, 0x00, high, low] | &[0x88, 0xa8, high, low]) => {
            let rest = [&packet[..TAG.start], &packet[TAG.end..]].concat();
            (rest.into(), Some(u16::from_be_bytes([high, low])))
        }
        _ => (packet.into(), None),
    }
}
