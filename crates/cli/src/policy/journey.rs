//! A packet's way through the blocks of a policy, as it would be on a host that loads it.
//!
//! A block sees the traits that earlier ones have set, and the packet as it is at its hook: at TC without its outermost
//! VLAN tag, which the kernel takes out on receive; behind that from the IP header on, and without padding. What becomes
//! of it between hooks is in [`stack`].

use std::{borrow::Cow, net::IpAddr};

use packet_traits_policy::{
    field::{FRAGMENT_NONE, Field, FieldKind},
    hook::{Direction, Hook, NetfilterFamily, NetfilterHook},
    interpret::{self, Context, Decision, Outcome, Packet},
    policy::{Layer, Policy},
};

use super::{
    capture::{Captured, Link},
    frame::{Datagram, Frame, TAG_LEN},
    host::Host,
    stack::{self, Absent, Device},
    way::Way,
};

/// Where the outermost VLAN tag is, if there is one.
const TAG_AT: usize = 12;
/// Priority at which fragments are put together in PREROUTING and OUTPUT (`NF_IP_PRI_CONNTRACK_DEFRAG` in
/// include/uapi/linux/netfilter_ipv4.h, and the same for IPv6).
const PRIORITY_DEFRAGMENTATION: i32 = -400;

/// One block and a packet.
pub(crate) struct Stage<'p> {
    /// Which block.
    pub(crate) block: usize,
    /// What came of it.
    pub(crate) meeting: Meeting<'p>,
}

/// What came of a block and a packet.
pub(crate) enum Meeting<'p> {
    /// The block has looked at it.
    Judged {
        /// What it did.
        outcome: Box<Outcome<'p>>,
        /// What is taken for granted.
        notes: Vec<String>,
    },
    /// The block's hook is not on the packet's way.
    NotOnWay,
    /// It is, but the packet does not come there, because of this.
    NotReached(String),
    /// Whether the packet comes there, or what it then is, cannot be known, because of this.
    NotKnown(String),
}

impl From<Absent> for Meeting<'_> {
    fn from(absent: Absent) -> Self {
        match absent {
            Absent::Never(why) => Meeting::NotReached(why),
            Absent::Unknown(why) => Meeting::NotKnown(why),
        }
    }
}

/// A packet on its way.
pub(crate) struct Journey<'a> {
    packet: &'a Captured,
    frame: &'a Frame<'a>,
    /// `None`: not known. It is then taken for one that comes in, as far as these ways are the same.
    way: Option<Way>,
    /// Where it happens, if that is this host.
    host: Option<&'a Host>,
    is_of_loopback: bool,
    /// What the IP stack makes of it.
    taken: Result<Taken<'a>, Absent>,
}

/// A packet that the IP stack has taken in, or has made.
struct Taken<'a> {
    ip: Datagram<'a>,
    /// Without padding.
    bytes: &'a [u8],
    device: Device,
}

/// A packet as it is at a hook.
struct Seen<'a> {
    bytes: Cow<'a, [u8]>,
    /// The tag control word of the VLAN tag that was taken out.
    vlan: Option<u16>,
    notes: Vec<String>,
}

impl<'a> From<Cow<'a, [u8]>> for Seen<'a> {
    fn from(bytes: Cow<'a, [u8]>) -> Seen<'a> {
        Seen { bytes, vlan: None, notes: Vec::new() }
    }
}

impl<'a> Journey<'a> {
    /// A packet's journey, which begins at this interface, on this host if it is known to be here.
    pub(crate) fn new(
        packet: &'a Captured,
        frame: &'a Frame<'a>,
        way: Option<Way>,
        host: Option<&'a Host>,
        interface: Option<&str>,
    ) -> Journey<'a> {
        // without a frame only the addresses can say it
        let has = |host: &Host, address| host.owner(address).or(host.owner_of_anycast(address)).is_some();
        let is_own = |address: IpAddr| address.is_loopback() || host.is_some_and(|host| has(host, address));
        let addresses = frame.ip.ok().and_then(|ip| ip.addresses()).filter(|_| frame.macs.is_none());
        let is_to_itself = addresses.is_some_and(|(source, destination)| is_own(source) && is_own(destination));
        let is_of_loopback = frame.is_of_loopback() || interface == Some("lo") || is_to_itself;
        let taken = match way {
            Some(Way::Out) => {
                stack::ip(frame).map(|ip| Taken { ip, bytes: stack::sent_ip(&ip), device: Device::default() })
            }
            Some(Way::In | Way::Forward) | None => stack::ip(frame).and_then(|ip| {
                let device = stack::receive_frame(frame, host, interface)?;
                Ok(Taken { ip, bytes: stack::receive_ip(&ip, is_of_loopback)?, device })
            }),
        };
        Journey { packet, frame, way, host, is_of_loopback, taken }
    }

    /// The VLAN device that the packet comes in by, if it is known.
    pub(crate) fn vlan_device(&self) -> Option<&str> {
        self.taken.as_ref().ok()?.device.vlan.as_deref()
    }

    /// Sends the packet through blocks. `vlan_interface` is the number of its VLAN device, from which the IP stack takes
    /// it.
    pub(crate) fn run<'p>(
        &self,
        policy: &'p Policy,
        blocks: &[usize],
        arriving: &Context,
        vlan_interface: Option<u32>,
    ) -> Vec<Stage<'p>> {
        let mut context = arriving.clone();
        let mut ended: Option<Absent> = None;
        let mut stages = Vec::new();
        for block in self.in_order(policy, blocks) {
            let hook = policy.blocks[block].hook;
            let is_on_way = match hook {
                Hook::Match | Hook::Steer => Some(true),
                _ => self.has(hook),
            };
            let is_for_itself = matches!(hook, Hook::Match | Hook::Steer);
            let meeting = match (is_on_way, &ended) {
                (Some(false), _) => Meeting::NotOnWay,
                (_, Some(why)) if !is_for_itself && self.may_have(hook) => why.clone().into(),
                (None, _) => Meeting::NotKnown("it depends on the packet's way; use --way".to_owned()),
                (Some(true), _) => match self.at(hook) {
                    Err(absent) => absent.into(),
                    Ok(seen) => {
                        context.vlan = seen.vlan;
                        context.no_link_header = self.is_bare_at(hook);
                        context.cut = self.cut(hook, &seen.bytes);
                        context.input = match (vlan_interface, hook) {
                            (Some(vlan), Hook::Netfilter { .. } | Hook::Cgroup(_) | Hook::Match | Hook::Steer) => {
                                Some(vlan)
                            }
                            _ => arriving.input,
                        };
                        let outcome = interpret::run(policy, block, &seen.bytes, &context);
                        if !is_for_itself {
                            context.traits.clone_from(&outcome.traits);
                            context.has_area |= outcome.traits.iter().any(Option::is_some);
                            ended = end(hook, &outcome);
                        }
                        context.unique += outcome.unique_taken;
                        Meeting::Judged { outcome: Box::new(outcome), notes: seen.notes }
                    }
                },
            };
            stages.push(Stage { block, meeting });
        }
        stages
    }

    /// Blocks in the order that the packet meets them; then those that something else calls, and those it does not meet.
    fn in_order(&self, policy: &Policy, blocks: &[usize]) -> Vec<usize> {
        let mut blocks = blocks.to_vec();
        blocks.sort_by_key(|block| {
            let hook = policy.blocks[*block].hook;
            let place = self.way.unwrap_or(Way::In).place(hook);
            let group = match (hook, self.has(hook)) {
                (Hook::Match | Hook::Steer, _) => 1,
                (_, Some(true)) => 0,
                (_, None) => 2,
                (_, Some(false)) => 3,
            };
            (group, if group == 0 { place } else { None })
        });
        blocks
    }

    /// Whether a hook is on the packet's way; `None` if that is not known.
    fn has(&self, hook: Hook) -> Option<bool> {
        match self.way {
            Some(way) => Some(way.place(hook).is_some()),
            None => [Way::In, Way::Forward].iter().all(|way| way.place(hook).is_some()).then_some(true),
        }
    }

    fn may_have(&self, hook: Hook) -> bool {
        let ways: &[Way] = match &self.way {
            Some(way) => std::slice::from_ref(way),
            None => &[Way::In, Way::Forward],
        };
        ways.iter().any(|way| way.place(hook).is_some())
    }

    /// The packet as it is at a hook.
    fn at(&self, hook: Hook) -> Result<Seen<'a>, Absent> {
        let bytes = self.packet.bytes.as_slice();
        if self.is_bare_at(hook) {
            return self.at_bare_device(hook);
        }
        match hook {
            Hook::Xdp => Ok(Cow::from(bytes).into()),
            Hook::Tc(Direction::Ingress) => {
                let (bytes, vlan) = without_tag(bytes);
                Ok(Seen { bytes, vlan, notes: Vec::new() })
            }
            Hook::Tc(Direction::Egress) => self.at_egress(),
            Hook::Netfilter { family, hook, priority } => {
                match (family, self.frame.ip.map(|ip| ip.family)) {
                    (Some(NetfilterFamily::Ipv4), Ok(NetfilterFamily::Ipv6)) => return never("it is for IPv4 only"),
                    (Some(NetfilterFamily::Ipv6), Ok(NetfilterFamily::Ipv4)) => return never("it is for IPv6 only"),
                    _ => {}
                }
                self.at_netfilter(hook, priority)
            }
            Hook::Cgroup(Direction::Ingress) | Hook::Steer => {
                let taken = self.routed()?;
                if taken.is_fragment() {
                    return never(
                        "it is a fragment; the kernel reassembles the packet before sockets get it (ip_local_deliver, ipv6_frag_rcv)",
                    );
                }
                Ok(taken.delivered(taken.seen(hook)))
            }
            Hook::Cgroup(Direction::Egress) => {
                let taken = self.taken()?;
                taken.not_yet_fragmented()?;
                Ok(taken.seen(hook))
            }
            Hook::Match => {
                let taken = self.taken()?;
                Ok(taken.seen_maybe_whole(hook, 0))
            }
        }
    }

    /// Whether the packet would start with its link header there, and is given without it.
    fn is_bare_at(&self, hook: Hook) -> bool {
        self.packet.link == Link::Ip && hook.sees_ethernet()
    }

    /// At XDP or TC, as at a device whose packets have no link header.
    fn at_bare_device(&self, hook: Hook) -> Result<Seen<'a>, Absent> {
        if hook == Hook::Tc(Direction::Egress) && self.way == Some(Way::Forward) {
            let why = "the packet is given without a link header, and goes out by a device that may want one";
            return Err(Absent::Unknown(why.to_owned()));
        }
        let note =
            "the packet is given without a link header; judged as at a device without one, such as tun".to_owned();
        Ok(Seen { bytes: self.packet.bytes.as_slice().into(), vlan: None, notes: vec![note] })
    }

    fn at_netfilter(&self, hook: NetfilterHook, priority: i32) -> Result<Seen<'a>, Absent> {
        let at = Hook::Netfilter { family: None, hook, priority };
        match (hook, self.way) {
            (NetfilterHook::PreRouting, _) => Ok(self.taken()?.seen_maybe_whole(at, priority)),
            (NetfilterHook::Input, _) => {
                let taken = self.routed()?;
                // IPv6 does it behind the hook (ip6_input, ip6_protocol_deliver_rcu)
                if taken.is_fragment() && taken.ip.family == NetfilterFamily::Ipv4 {
                    return never(
                        "it is a fragment; the kernel reassembles the packet before this hook (ip_local_deliver)",
                    );
                }
                Ok(taken.delivered(taken.seen_maybe_whole(at, 0)))
            }
            (NetfilterHook::Forward, _) | (NetfilterHook::PostRouting, Some(Way::Forward)) => {
                let taken = self.routed()?;
                let bytes = stack::forward(self.frame, &taken.ip, taken.bytes, self.host)?;
                Ok(Seen { bytes: bytes.into(), ..taken.seen_maybe_whole(at, 0) })
            }
            (NetfilterHook::Output | NetfilterHook::PostRouting, _) => {
                let taken = self.taken()?;
                taken.not_yet_fragmented()?;
                Ok(taken.seen(at))
            }
        }
    }

    /// The frame that goes out: with an Ethernet header as it was captured, since the one that it gets is not known.
    fn at_egress(&self) -> Result<Seen<'a>, Absent> {
        let bytes = self.packet.bytes.as_slice();
        if self.way != Some(Way::Forward) {
            let Ok(taken) = &self.taken else { return Ok(Cow::from(bytes).into()) };
            let header_len = bytes.len() - taken.ip.bytes.len();
            return Ok(Cow::from(&bytes[..header_len + taken.bytes.len()]).into());
        }
        let taken = self.routed()?;
        let forwarded = stack::forward(self.frame, &taken.ip, taken.bytes, self.host)?;
        let ether_type: [u8; 2] = match taken.ip.family {
            NetfilterFamily::Ipv4 => [0x08, 0x00],
            NetfilterFamily::Ipv6 => [0x86, 0xdd],
        };
        let frame = [&bytes[..TAG_AT], &ether_type, &forwarded].concat();
        let note = "the kernel writes a new Ethernet header; the addresses here are those that the packet arrived with"
            .to_owned();
        Ok(Seen { bytes: frame.into(), vlan: None, notes: vec![note] })
    }

    /// Bytes of the packet that were not captured, behind these.
    fn cut(&self, hook: Hook, seen: &[u8]) -> usize {
        let cut = self.packet.length.saturating_sub(self.packet.bytes.len());
        match (cut, self.frame.ip) {
            (0, _) => 0,
            // without padding
            (_, Ok(ip)) if !hook.sees_ethernet() => {
                stack::total(&ip).unwrap_or(ip.length).min(ip.length).saturating_sub(seen.len())
            }
            _ => cut,
        }
    }

    fn taken(&self) -> Result<&Taken<'a>, Absent> {
        self.taken.as_ref().map_err(Clone::clone)
    }

    /// The packet behind the routing decision.
    fn routed(&self) -> Result<&Taken<'a>, Absent> {
        let taken = self.taken()?;
        if self.way != Some(Way::Out) {
            stack::route(&taken.ip, self.is_of_loopback, self.host)?;
        }
        Ok(taken)
    }
}

impl<'a> Taken<'a> {
    fn is_fragment(&self) -> bool {
        let fragment = Field { layer: Layer::Outer, kind: FieldKind::Fragment };
        let found = Packet::dissect(self.bytes, Hook::Match, None).field(fragment);
        found.is_some_and(|found| found != FRAGMENT_NONE)
    }

    fn seen(&self, hook: Hook) -> Seen<'a> {
        let mut notes: Vec<String> = self.device.note.iter().cloned().collect();
        if matches!(hook, Hook::Match | Hook::Steer) {
            notes.push("judged by itself, with the traits that the packet has after the blocks above".to_owned());
        }
        Seen { bytes: self.bytes.into(), vlan: None, notes }
    }

    /// As `seen`, where fragments come unless they have been put together at an earlier priority.
    fn seen_maybe_whole(&self, hook: Hook, priority: i32) -> Seen<'a> {
        let mut seen = self.seen(hook);
        if priority >= PRIORITY_DEFRAGMENTATION && self.is_fragment() {
            let function = match self.ip.family {
                NetfilterFamily::Ipv4 => "ipv4_conntrack_defrag",
                NetfilterFamily::Ipv6 => "ipv6_defrag",
            };
            let note = format!(
                "it is a fragment; with connection tracking, the reassembled packet comes here instead ({function})"
            );
            seen.notes.push(note);
        }
        seen
    }

    /// As it is seen behind the decision that it is for this host.
    fn delivered(&self, mut seen: Seen<'a>) -> Seen<'a> {
        let function = match self.ip.family {
            NetfilterFamily::Ipv4 => "ip_route_input_rcu",
            NetfilterFamily::Ipv6 => "ip6_mc_input",
        };
        if let Some((_, destination)) = self.ip.addresses()
            && destination.is_multicast()
        {
            seen.notes.push(format!("assumes that the interface has joined {destination} ({function})"));
        }
        seen
    }

    /// Fragments are made behind these hooks.
    fn not_yet_fragmented(&self) -> Result<(), Absent> {
        if !self.is_fragment() {
            return Ok(());
        }
        let function = match self.ip.family {
            NetfilterFamily::Ipv4 => "ip_finish_output",
            NetfilterFamily::Ipv6 => "ip6_finish_output",
        };
        let why =
            format!("it is a fragment; unless a raw socket sent it, the kernel made it after this hook ({function})");
        Err(Absent::Unknown(why))
    }
}

fn never<T>(why: &str) -> Result<T, Absent> {
    Err(Absent::Never(why.to_owned()))
}

/// Why a packet does not come to blocks behind this one, if it does not.
fn end(hook: Hook, outcome: &Outcome<'_>) -> Option<Absent> {
    match outcome.decision {
        Decision::Accept | Decision::RedirectCpu(_) | Decision::Member(_) | Decision::Kernel => None,
        Decision::Drop => Some(Absent::Never(format!("dropped in {hook}"))),
        Decision::RedirectDevice(_) => Some(Absent::Never(format!("redirected in {hook}"))),
        Decision::RedirectXsk(_) => {
            Some(Absent::Unknown(format!("redirected in {hook}, from where it goes on if there is no such socket")))
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
