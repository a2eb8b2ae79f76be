//! Which way a packet takes through the kernel's stack, and which hooks are on it.
//!
//! | way | hooks, in order |
//! |---|---|
//! | in | `xdp`, `tc ingress`, `netfilter prerouting`, `netfilter input`, `cgroup ingress` |
//! | forward | `xdp`, `tc ingress`, `netfilter prerouting`, `netfilter forward`, `netfilter postrouting`, `tc egress` |
//! | out | `netfilter output`, `netfilter postrouting`, `cgroup egress`, `tc egress` |
//!
//! `cgroup egress` runs behind POSTROUTING (`ip_finish_output` in net/ipv4/ip_output.c, `ip6_finish_output`), and for
//! packets that have a socket, which forwarded ones have not (`BPF_CGROUP_RUN_PROG_INET_EGRESS`). `cgroup ingress` runs
//! where a socket takes the packet (`sk_filter_trim_cap` in net/core/filter.c).

use std::net::IpAddr;

use clap::ValueEnum;
use packet_traits_policy::hook::{Direction, Hook, NetfilterHook};

use super::{
    frame::{Frame, NoIp, is_group},
    host::Host,
};

/// A way through the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// Received, for this host
    In,
    /// Received, for another host
    Forward,
    /// Sent by this host
    Out,
}

/// A packet's way and how it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// `None`: not known.
    pub(crate) way: Option<Way>,
    /// Why this one, or why none.
    pub(crate) why: String,
}

impl Way {
    /// Its word on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Way::In => "in",
            Way::Forward => "forward",
            Way::Out => "out",
        }
    }

    /// Where a hook is on it: earlier ones are lower, and of one hook of netfilter lower priorities are. `None` if it is
    /// not on it.
    pub(crate) fn place(self, hook: Hook) -> Option<(u8, i32)> {
        let (hooks, priority): (&[NetfilterHook], i32) = match hook {
            Hook::Netfilter { priority, .. } => (
                match self {
                    Way::In => &[NetfilterHook::PreRouting, NetfilterHook::Input],
                    Way::Forward => &[NetfilterHook::PreRouting, NetfilterHook::Forward, NetfilterHook::PostRouting],
                    Way::Out => &[NetfilterHook::Output, NetfilterHook::PostRouting],
                },
                priority,
            ),
            _ => (&[], 0),
        };
        let place = match (hook, self) {
            (Hook::Xdp, Way::In | Way::Forward) => 0,
            (Hook::Tc(Direction::Ingress), Way::In | Way::Forward) => 1,
            (Hook::Netfilter { hook, .. }, _) => 2 + hooks.iter().position(|on_way| *on_way == hook)? as u8,
            (Hook::Cgroup(Direction::Ingress), Way::In) | (Hook::Cgroup(Direction::Egress), Way::Out) => 5,
            (Hook::Tc(Direction::Egress), Way::Forward | Way::Out) => 6,
            _ => return None,
        };
        Some((place, priority))
    }
}

/// Guesses the way from a packet's addresses. Those of its frame count only where those of its IP header say nothing:
/// a frame that was captured on this host need not be for it.
/// It came in if `arrived`.
pub(crate) fn guess(frame: &Frame<'_>, host: &Host, arrived: bool) -> Choice {
    let choice = |way, why: String| Choice { way, why };
    // frames of the loopback interface have no addresses
    let macs = frame.macs.filter(|(destination, _)| *destination != [0; 6]);
    let from = macs.and_then(|(_, source)| host.owner_of_mac(source));
    let to = macs.and_then(|(destination, _)| host.owner_of_mac(destination));
    let to_group = macs.is_some_and(|(destination, _)| is_group(destination));
    let Some((source, destination)) = frame.ip.ok().and_then(|ip| ip.addresses()) else {
        let what = if frame.ip == Err(NoIp::Other) { "it is not IP" } else { "its IP addresses were not captured" };
        return match (from.filter(|_| !arrived), to) {
            (Some(from), _) => choice(Some(Way::Out), format!("{from} sent its frame")),
            (None, Some(to)) => choice(Some(Way::In), format!("its frame is for {to}")),
            (None, None) if to_group => choice(Some(Way::In), "its frame has a multicast MAC address".to_owned()),
            (None, None) => choice(None, what.to_owned()),
        };
    };
    if let Some(owner) = host.owner(destination) {
        return choice(Some(Way::In), format!("{destination} is an address of {owner}"));
    }
    if let Some(owner) = host.owner_of_anycast(destination) {
        return choice(Some(Way::In), format!("{destination} is an anycast address of {owner}"));
    }
    if destination.is_loopback() {
        return choice(Some(Way::In), format!("{destination} is a loopback address"));
    }
    // one that claims to come from the loopback interface, and goes elsewhere, is forged
    if let (Some(owner), false) = (host.owner(source), source.is_loopback() || arrived) {
        return choice(Some(Way::Out), format!("{source} is an address of {owner}"));
    }
    if let Some(owner) = host.broadcasts_to(destination) {
        return choice(Some(Way::In), format!("{destination} is the broadcast address of {owner}"));
    }
    if is_for_all(destination) {
        return choice(Some(Way::In), format!("{destination} is a broadcast address"));
    }
    if destination.is_multicast() {
        return choice(Some(Way::In), format!("{destination} is a multicast address"));
    }
    if let Some(to) = to {
        return choice(
            Some(Way::Forward),
            format!("its frame is for {to}, and {destination} is not an address of this host"),
        );
    }
    if to_group {
        let why = format!("its frame has a multicast MAC address, and {destination} is not an address of this host");
        return choice(Some(Way::Forward), why);
    }
    if let Some(from) = from {
        return choice(
            None,
            format!("{from} sent its frame, and neither {source} nor {destination} is an address of this host"),
        );
    }
    choice(None, format!("neither {source} nor {destination} is an address of this host"))
}

/// 255.255.255.255.
fn is_for_all(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_broadcast())
}

#[cfg(test)]
mod tests {
    use packet_traits::NetfilterFamily;

    use super::{super::frame::Datagram, *};

    fn hooks(way: Way) -> Vec<String> {
        let mut all = vec![Hook::Steer, Hook::Match];
        for direction in [Direction::Egress, Direction::Ingress] {
            all.extend([Hook::Cgroup(direction), Hook::Tc(direction)]);
        }
        for hook in NetfilterHook::ALL.into_iter().rev() {
            all.extend([5, -5].map(|priority| Hook::Netfilter { family: None, hook, priority }));
        }
        all.push(Hook::Xdp);
        let mut hooks: Vec<Hook> = all.into_iter().filter(|hook| way.place(*hook).is_some()).collect();
        hooks.sort_by_key(|hook| way.place(*hook));
        hooks.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_way_has_its_hooks_in_order() {
        let expected = [
            "xdp, tc ingress, netfilter prerouting priority -5, netfilter prerouting priority 5, netfilter input \
             priority -5, netfilter input priority 5, cgroup ingress",
            "xdp, tc ingress, netfilter prerouting priority -5, netfilter prerouting priority 5, netfilter forward \
             priority -5, netfilter forward priority 5, netfilter postrouting priority -5, netfilter postrouting \
             priority 5, tc egress",
            "netfilter output priority -5, netfilter output priority 5, netfilter postrouting priority -5, netfilter \
             postrouting priority 5, cgroup egress, tc egress",
        ];
        for (way, expected) in [Way::In, Way::Forward, Way::Out].into_iter().zip(expected) {
            assert_eq!(hooks(way).join(", "), expected, "{way:?}");
        }
    }

    fn host() -> Host {
        let eth0 = || "eth0".to_owned();
        Host {
            addresses: vec![
                ("lo".to_owned(), "127.0.0.1".parse().unwrap()),
                (eth0(), "10.1.0.1".parse().unwrap()),
                (eth0(), "fd00::1".parse().unwrap()),
            ],
            anycasts: vec![(eth0(), "fd00::".parse().unwrap())],
            broadcasts: vec![(eth0(), "10.1.0.255".parse().unwrap())],
            macs: vec![("lo".to_owned(), [0; 6]), (eth0(), OURS)],
            vlans: Some(Vec::new()),
            forwards: (true, true),
        }
    }

    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

    fn of(to: [u8; 6], from: [u8; 6], addresses: Option<(&str, &str)>) -> (Option<Way>, String) {
        let mut bytes = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0];
        let mut family = NetfilterFamily::Ipv4;
        if let Some((source, destination)) = addresses {
            match (source.parse().unwrap(), destination.parse().unwrap()) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    bytes.extend([source.octets(), destination.octets()].concat());
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    family = NetfilterFamily::Ipv6;
                    bytes = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
                    bytes.extend([source.octets(), destination.octets()].concat());
                }
                _ => panic!("addresses of two families"),
            }
        }
        let ip = match addresses {
            Some(_) => Ok(Datagram { family, bytes: &bytes, length: bytes.len() }),
            None => Err(NoIp::Other),
        };
        let Choice { way, why } = guess(&Frame { macs: Some((to, from)), vlans: Vec::new(), ip }, &host(), false);
        (way, why)
    }

    #[test]
    fn a_way_is_guessed_from_addresses() {
        let cases = [
            (OURS, OTHER, "10.9.0.9", "10.1.0.1", Some(Way::In), "10.1.0.1 is an address of eth0"),
            (OTHER, OTHER, "fd00::9", "fd00::1", Some(Way::In), "fd00::1 is an address of eth0"),
            (OURS, OTHER, "fd00::9", "fd00::", Some(Way::In), "fd00:: is an anycast address of eth0"),
            ([0; 6], [0; 6], "127.0.0.1", "127.9.9.9", Some(Way::In), "127.9.9.9 is a loopback address"),
            ([0; 6], [0; 6], "10.1.0.1", "10.1.0.1", Some(Way::In), "10.1.0.1 is an address of eth0"),
            (OTHER, OURS, "10.1.0.1", "10.9.0.9", Some(Way::Out), "10.1.0.1 is an address of eth0"),
            (GROUP, OURS, "fd00::1", "ff02::1", Some(Way::Out), "fd00::1 is an address of eth0"),
            (GROUP, OTHER, "fd00::9", "ff02::1", Some(Way::In), "ff02::1 is a multicast address"),
            (GROUP, OTHER, "10.1.0.9", "10.1.0.255", Some(Way::In), "10.1.0.255 is the broadcast address of eth0"),
            (GROUP, OTHER, "0.0.0.0", "255.255.255.255", Some(Way::In), "255.255.255.255 is a broadcast address"),
            (OURS, OTHER, "10.9.0.9", "10.8.0.8", Some(Way::Forward), "its frame is for eth0, and 10.8.0.8 is not an"),
            (OURS, OTHER, "127.0.0.1", "10.8.0.8", Some(Way::Forward), "its frame is for eth0, and 10.8.0.8 is not an"),
            (
                GROUP,
                OTHER,
                "10.9.0.9",
                "10.8.0.8",
                Some(Way::Forward),
                "its frame has a multicast MAC address, and 10.8.0.8",
            ),
            (OTHER, OURS, "10.9.0.9", "10.8.0.8", None, "eth0 sent its frame, and neither 10.9.0.9 nor 10.8.0.8 is"),
            (OTHER, OTHER, "10.9.0.9", "10.8.0.8", None, "neither 10.9.0.9 nor 10.8.0.8 is an address of this host"),
        ];
        for (to, from, source, destination, way, why) in cases {
            let guessed = of(to, from, Some((source, destination)));
            assert!(guessed.0 == way && guessed.1.starts_with(why), "{source} to {destination}: {guessed:?}");
        }
    }

    #[test]
    fn what_is_not_ip_goes_by_its_frame() {
        for (to, from, way) in [
            (OURS, OTHER, Some(Way::In)),
            ([0xff; 6], OTHER, Some(Way::In)),
            ([0xff; 6], OURS, Some(Way::Out)),
            (OTHER, OTHER, None),
        ] {
            assert_eq!(of(to, from, None).0, way);
        }
    }
}
