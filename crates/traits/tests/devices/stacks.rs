//! How the devices are made. Addresses are 10.77.0.1 and 10.77.0.2 below, 10.78.0.1 and 10.78.0.2 above, and so for IPv6.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use packet_traits_lab::{
    End, Error, Family, NetkitMode, NetkitPair, Netns, NicPair, Pair, TunKind, TunPair, VethOptions,
};

use crate::run::Stack;

/// Why a device cannot be made here, or what went wrong.
#[derive(Debug)]
pub(crate) enum NotMade {
    /// The kernel or the machine does not have it.
    Missing(String),
    Failed(String),
}

impl From<Error> for NotMade {
    fn from(error: Error) -> NotMade {
        let said = error.to_string();
        let unknown = ["Unknown device type", "Operation not supported", "command found", "none that are joined"];
        let errnos = [libc::EOPNOTSUPP, libc::ENOENT, libc::ENODEV];
        if unknown.iter().any(|text| said.contains(text)) || error.errno().is_some_and(|errno| errnos.contains(&errno))
        {
            NotMade::Missing(said.replace('\n', " "))
        } else {
            NotMade::Failed(said)
        }
    }
}

pub(crate) type Made = Result<Stack, NotMade>;

/// The sender's (1) or the receiver's (2) addresses in block 77 (below) or 78 (above).
fn addresses(block: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    let hexadecimal = u16::from(block / 10 * 16 + block % 10);
    (Ipv4Addr::new(10, block, 0, host), Ipv6Addr::new(0xfd00 | hexadecimal, 0, 0, 0, 0, 0, 0, host.into()))
}

/// Joins interfaces that exist.
fn join(block: u8, sides: [(&Netns, &str); 2]) -> Result<[End; 2], Error> {
    let [(tx, tx_name), (rx, rx_name)] = sides;
    let ((tx4, tx6), (rx4, rx6)) = (addresses(block, 1), addresses(block, 2));
    End::join([(tx, tx_name, tx4, tx6), (rx, rx_name, rx4, rx6)])
}

fn alone(lower: [End; 2]) -> Stack {
    Stack { lower, upper: None, families: &Family::BOTH, _held: Vec::new() }
}

/// With GRO, and without TSO, which would keep it from GRO.
pub(crate) fn veth() -> Made {
    let pair = Pair::with(&VethOptions::new().gro(true))?;
    Ok(alone([pair.tx().clone(), pair.rx().clone()]))
}

thread_local! {
    /// Cards that are in namespaces already: they would come back late.
    static CARDS: RefCell<HashMap<&'static str, [End; 2]>> = RefCell::default();
}

/// Two network cards.
pub(crate) fn nic(driver: &'static str) -> Made {
    if let Some(known) = CARDS.with_borrow(|cards| cards.get(driver).cloned()) {
        return Ok(alone(known));
    }
    let cards = NicPair::of(driver)?;
    let (tx, rx) = (Netns::new()?, Netns::new()?);
    cards.move_to([(&tx, "tx0"), (&rx, "rx0")])?;
    let ends = join(77, [(&tx, "tx0"), (&rx, "rx0")])?;
    CARDS.with_borrow_mut(|cards| cards.insert(driver, ends.clone()));
    Ok(alone(ends))
}

pub(crate) fn tun(kind: TunKind, napi: bool) -> Made {
    let (tx, rx) = (Netns::new()?, Netns::new()?);
    let sides = [(&tx, "tx0"), (&rx, "rx0")];
    let carried = TunPair::connect(sides, kind, napi)?;
    let ends = join(77, sides)?;
    if napi {
        // each packet is written, and polled, by itself: without a rest, GRO has nothing to merge it with
        rx.defer_receive("rx0", Duration::from_micros(500))?;
    }
    Ok(Stack { _held: vec![Box::new(carried)], ..alone(ends) })
}

pub(crate) fn netkit(mode: NetkitMode) -> Made {
    let (tx, rx) = (Netns::new()?, Netns::new()?);
    let sides = [(&tx, "tx0"), (&rx, "rx0")];
    NetkitPair::connect(sides, mode)?;
    Ok(alone(join(77, sides)?))
}

/// A veth's packets, forwarded into a netkit.
pub(crate) fn forwarded_to_netkit(mode: NetkitMode) -> Made {
    let below = veth()?;
    let ([client, router], server) = (&below.lower, Netns::new()?);
    let sides = [(router.netns(), "nk0"), (&server, "up0")];
    NetkitPair::connect(sides, mode)?;
    let [gateway, server] = join(78, sides)?;
    router.netns().set_sysctl("net/ipv4/ip_forward", "1")?;
    router.netns().set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
    for (end, gateway) in [(client, router), (&server, &gateway)] {
        let (ipv4, ipv6) = (gateway.ipv4(), gateway.ipv6());
        end.netns().ip(&format!("route add default via {ipv4}\nroute add default via {ipv6}"))?;
    }
    Ok(Stack { upper: Some([client.clone(), server]), ..below })
}

/// Devices that `ip` makes on both sides, called `up0`. In the commands `LOWER` stands for the interface below, `LOCAL` and
/// `REMOTE` for the IPv4 addresses there.
pub(crate) fn above(below: Stack, families: &'static [Family], commands: &str) -> Made {
    let [tx, rx] = &below.lower;
    for (end, peer) in [(tx, rx), (rx, tx)] {
        let commands = commands
            .replace("LOWER", end.name())
            .replace("LOCAL", &end.ipv4().to_string())
            .replace("REMOTE", &peer.ipv4().to_string());
        end.netns().ip(&commands)?;
        // else a bridge's packets pass PRE_ROUTING at the port, before XDP on the bridge
        if let Ok(enabled) = end.netns().sysctl("net/bridge/bridge-nf-call-iptables")
            && enabled != "0"
        {
            end.netns().set_sysctl("net/bridge/bridge-nf-call-iptables", "0")?;
            end.netns().set_sysctl("net/bridge/bridge-nf-call-ip6tables", "0")?;
        }
    }
    let upper = join(78, [(tx.netns(), "up0"), (rx.netns(), "up0")])?;
    Ok(Stack { upper: Some(upper), families, ..below })
}

/// ipvlan in L3 mode: what it sends is routed again, by the interface below. IPv6 does so without regard to the interface
/// (`ipvlan_process_v6_outbound` in drivers/net/ipvlan/ipvlan_core.c), so there the sender takes the one below at once.
pub(crate) fn ipvlan_l3(below: Stack) -> Made {
    let stack = above(below, &Family::BOTH, "link add link LOWER name up0 type ipvlan mode l3")?;
    let [tx, rx] = &stack.lower;
    for (end, peer, host) in [(tx, rx, 2), (rx, tx, 1)] {
        let ((ipv4, ipv6), name, mac) = (addresses(78, host), end.name(), peer.mac());
        end.netns().ip(&format!(
            "route add {ipv4} dev {name} metric 4096
            route add {ipv4} dev up0
            route add {ipv6} dev {name}
            neigh replace {ipv4} lladdr {mac} dev {name} nud permanent
            neigh replace {ipv6} lladdr {mac} dev {name} nud permanent"
        ))?;
    }
    Ok(stack)
}

/// Private and public keys of WireGuard, made by `wg genkey` and `wg pubkey` for this test.
const WIREGUARD_KEYS: [(&str, &str); 2] = [
    ("ED/3mntn6jANWYvrejZMD4kGJb7DVkgD5onoCVcuN2I=", "faVnEX51pU7xIWpU6reiQAvx3a7YKd6VKLag2gt1zXU="),
    ("0CzcPtmVQdDOobJLyE/pbZ7QdgHcIRlrDG1XIgjLK3g=", "Hbe5hQ97KxfzDZJNSEy97etAdJu3YRRJfLxEegEvayM="),
];
/// `WIREGUARD_PORT` of devices.bpf.c
const WIREGUARD_PORT: u16 = 51820;

pub(crate) fn wireguard(below: Stack) -> Made {
    let [tx, rx] = &below.lower;
    let sides = [(tx, rx, WIREGUARD_KEYS[0], WIREGUARD_KEYS[1]), (rx, tx, WIREGUARD_KEYS[1], WIREGUARD_KEYS[0])];
    for (end, peer, (private, _), (_, public)) in sides {
        end.netns().ip("link add up0 type wireguard")?;
        end.netns().wg(
            "up0",
            &format!(
                "[Interface]
            PrivateKey = {private}
            ListenPort = {WIREGUARD_PORT}
            [Peer]
            PublicKey = {public}
            AllowedIPs = 0.0.0.0/0, ::/0
            Endpoint = {}:{WIREGUARD_PORT}",
                peer.ipv4()
            ),
        )?;
    }
    let upper = join(78, [(tx.netns(), "up0"), (rx.netns(), "up0")])?;
    Ok(Stack { upper: Some(upper), ..below })
}
