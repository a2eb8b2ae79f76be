//! A packet's way through the blocks of a policy, as it would be on a host that loads it.
//!
//! A block sees the traits that earlier ones have set, and the packet as it is at its hook: at TC without its outermost
//! VLAN tag, which the kernel takes out on receive; behind that from the IP header on.

use std::borrow::Cow;

use packet_traits_policy::{
    field::{Field, FieldKind},
    hook::{Direction, Family, Hook, NetfilterHook},
    interpret::{self, Context, Decision, Outcome, Packet},
    policy::{Layer, Policy},
};

use super::capture::{Captured, Link};

const ETHERNET_LEN: usize = 14;
/// Where the outermost VLAN tag is, if there is one.
const TAG_AT: usize = 12;
const TAG_LEN: usize = 4;
const TAGS_MAX: usize = 2;

/// One block on the way.
pub(crate) struct Stage<'p> {
    /// Which block.
    pub(crate) block: usize,
    /// What it did, or why the packet did not come there.
    pub(crate) outcome: Result<Outcome<'p>, &'static str>,
}

/// The blocks that a received packet meets on its way to a socket, in order.
pub(crate) fn of_received(policy: &Policy) -> Vec<usize> {
    let mut blocks: Vec<usize> = (0..policy.blocks.len()).filter(|block| place(policy, *block).is_some()).collect();
    blocks.sort_by_key(|block| place(policy, *block));
    blocks
}

/// Where a block is on that way; `None` if it is not.
fn place(policy: &Policy, block: usize) -> Option<(u8, i32)> {
    match policy.blocks[block].hook {
        Hook::Xdp => Some((0, 0)),
        Hook::Tc(Direction::Ingress) => Some((1, 0)),
        Hook::Netfilter { hook: NetfilterHook::PreRouting, priority, .. } => Some((2, priority)),
        Hook::Netfilter { hook: NetfilterHook::Input, priority, .. } => Some((3, priority)),
        Hook::Cgroup(Direction::Ingress) => Some((4, 0)),
        _ => None,
    }
}

/// Sends a packet through blocks, until one does not let it go on.
pub(crate) fn run<'p>(policy: &'p Policy, blocks: &[usize], packet: &Captured, arriving: &Context) -> Vec<Stage<'p>> {
    let mut context = arriving.clone();
    let mut stages = Vec::new();
    for block in blocks.iter().copied() {
        let hook = policy.blocks[block].hook;
        let outcome = at_hook(hook, packet).map(|(bytes, vlan)| {
            context.vlan = vlan;
            interpret::run(policy, block, &bytes, &context)
        });
        if let Ok(outcome) = &outcome {
            context.traits.clone_from(&outcome.traits);
            context.has_area |= outcome.traits.iter().any(Option::is_some);
            context.unique += outcome.unique_taken;
        }
        let goes_on = match &outcome {
            Ok(outcome) => matches!(outcome.decision, Decision::Accept | Decision::RedirectCpu(_)),
            Err(_) => true,
        };
        stages.push(Stage { block, outcome });
        if !goes_on {
            break;
        }
    }
    stages
}

/// The packet as it is at a hook, and the tag control word of the VLAN tag that was taken out of it; or why it does not
/// come there.
fn at_hook(hook: Hook, packet: &Captured) -> Result<(Cow<'_, [u8]>, Option<u16>), &'static str> {
    let bytes = packet.bytes.as_slice();
    match (packet.link, hook) {
        (Link::Ip, Hook::Xdp | Hook::Tc(_)) => Err("the packet is given without its Ethernet header"),
        (Link::Ethernet, Hook::Tc(Direction::Ingress)) => Ok(without_tag(bytes)),
        (Link::Ethernet, Hook::Xdp | Hook::Tc(Direction::Egress)) => Ok((bytes.into(), None)),
        (link, _) => {
            let ip = match link {
                Link::Ip => bytes,
                Link::Ethernet => behind_ethernet(bytes).ok_or("the packet is not IP")?,
            };
            match (hook, ip.first().map(|byte| byte >> 4)) {
                (Hook::Netfilter { family: Some(Family::Ipv4), .. }, Some(6)) => Err("it is for IPv4 only"),
                (Hook::Netfilter { family: Some(Family::Ipv6), .. }, Some(4)) => Err("it is for IPv6 only"),
                _ => Ok((ip.into(), None)),
            }
        }
    }
}

/// The packet without its outermost VLAN tag, if it has one, and that tag (`skb_vlan_untag` in net/core/skbuff.c).
fn without_tag(bytes: &[u8]) -> (Cow<'_, [u8]>, Option<u16>) {
    match bytes.get(TAG_AT..TAG_AT + TAG_LEN) {
        Some(&[0x81, 0x00, high, low] | &[0x88, 0xa8, high, low]) => {
            let rest = [&bytes[..TAG_AT], &bytes[TAG_AT + TAG_LEN..]].concat();
            (rest.into(), Some(u16::from_be_bytes([high, low])))
        }
        _ => (bytes.into(), None),
    }
}

/// What is behind the Ethernet header and the VLAN tags, if it is an IP header.
fn behind_ethernet(bytes: &[u8]) -> Option<&[u8]> {
    let dissected = Packet::dissect(bytes, Hook::Xdp, None);
    let field = |kind| dissected.field(Field { layer: Layer::Outer, kind });
    field(FieldKind::IpVersion)?;
    let is_tag = |at: usize| matches!(bytes.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8]));
    let tags = (0..TAGS_MAX).take_while(|tag| is_tag(TAG_AT + TAG_LEN * tag)).count();
    bytes.get(ETHERNET_LEN + TAG_LEN * tags..)
}
