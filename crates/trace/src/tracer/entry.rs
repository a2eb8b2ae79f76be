//! Where packets get their ids: at which interfaces, by XDP or behind other people's XDP programs.
//!
//! A packet gets its id where it comes in first. An interface that stands on others (a bridge, a VLAN, a tunnel) gets no
//! XDP program if one of those gives out ids: the kernel refuses XDP to what is below an interface that has it
//! (`dev_xdp_attach` in net/core/dev.c), and generic XDP, which is all that most of them have, copies every large packet
//! of local senders.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::AsFd,
};

use packet_traits::{
    attach::{
        AttachError, Attachment, Device, Direction, NATIVE_AT_VETH, Position, TcxOptions, XdpMode, devices,
        interface_name, namespace_number, tcx, xdp,
    },
    deployment::Holder,
};

use super::{
    load::id_candidates,
    loaded::Loaded,
    programs::{Programs, fd_of},
    targets::Targets,
};
use crate::{
    devices as traced_devices,
    error::{TraceError, system},
    namespace::{Place, PlaceId, place_id},
    xdp as other_xdp,
};

/// Kinds of interfaces (`ip link add type`) whose ports bring them their packets.
const WITH_PORTS: [&str; 5] = ["bridge", "bond", "team", "hsr", "vrf"];
/// Kinds that stand on one interface.
const ON_ONE: [&str; 6] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"];
/// Kinds whose packets come inside of packets of other interfaces, and keep their traits when they are taken out.
const TUNNELS: [&str; 16] = [
    "vxlan",
    "geneve",
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "erspan",
    "ip6erspan",
    "ipip",
    "sit",
    "ip6tnl",
    "vti",
    "vti6",
    "xfrm",
    "bareudp",
    "wireguard",
];

/// What an interface stands on.
enum Below {
    /// Its packets come from outside.
    Nothing,
    /// They come from the other end of a veth.
    OtherEnd,
    /// Its ports, of which some may not be traced.
    Ports(Vec<PlaceId>),
    /// This one.
    One(PlaceId),
    /// Any other in its namespace.
    AnyOther,
}

impl Below {
    /// `elsewhere` says which namespaces have which numbers in the interface's own.
    fn of((namespace, interface): &Place, devices: &[Device], elsewhere: &HashMap<u32, u32>) -> Below {
        let id = |ifindex| (namespace.inode(), ifindex);
        let Some(device) = devices.iter().find(|device| device.ifindex == interface.index) else {
            return Below::Nothing;
        };
        match device.kind.as_str() {
            kind if WITH_PORTS.contains(&kind) => {
                let ports = devices.iter().filter(|port| port.master == Some(device.ifindex));
                Below::Ports(ports.map(|port| id(port.ifindex)).collect())
            }
            kind if ON_ONE.contains(&kind) => {
                let far = device.link_elsewhere.and_then(|(index, number)| Some((*elsewhere.get(&number)?, index)));
                // one in a namespace that is not traced is as good as none
                device.link.map(id).or(far).map_or(Below::Nothing, Below::One)
            }
            kind if TUNNELS.contains(&kind) => Below::AnyOther,
            _ if device.is_veth() => Below::OtherEnd,
            _ => Below::Nothing,
        }
    }

    /// Those of them that are known.
    fn known(&self) -> &[PlaceId] {
        match self {
            Below::Nothing | Below::OtherEnd | Below::AnyOther => &[],
            Below::Ports(ports) => ports,
            Below::One(one) => std::slice::from_ref(one),
        }
    }
}

/// The interfaces, each behind those that it stands on.
fn lowest_first(below: &[(PlaceId, Below)]) -> Vec<usize> {
    let mut waiting: Vec<usize> = (0..below.len()).collect();
    // whatever tunnels' packets come by goes first
    waiting.sort_by_key(|place| matches!(below[*place].1, Below::AnyOther));
    let mut ordered: Vec<usize> = Vec::with_capacity(below.len());
    while !waiting.is_empty() {
        let is_ready = |place: &usize| {
            let these = below[*place].1.known();
            !waiting.iter().any(|other| other != place && these.contains(&below[*other].0))
        };
        // in a circle, any order is as good
        let next = waiting.iter().position(is_ready).unwrap_or(0);
        ordered.push(waiting.remove(next));
    }
    ordered
}

/// Names of interfaces, by what is to be said of them.
#[derive(Default)]
struct Said(Vec<(String, Vec<String>)>);

impl Said {
    fn add(&mut self, what: String, name: &str) {
        match self.0.iter_mut().find(|(said, _)| *said == what) {
            Some((_, names)) => names.push(name.to_owned()),
            None => self.0.push((what, vec![name.to_owned()])),
        }
    }

    fn lines(self) -> impl Iterator<Item = String> {
        self.0.into_iter().map(|(what, names)| format!("{}: {what}", names.join(", ")))
    }
}

/// Why an attachment was refused, without the place.
fn reason(error: &AttachError) -> String {
    match error {
        AttachError::Busy { holder, .. } => holder.clone(),
        AttachError::Refused { why, .. } => why.clone(),
        other => other.to_string(),
    }
}

/// What gives packets their ids, attached.
#[derive(Default)]
pub(super) struct Entry {
    // dropped in this order
    assigning: Vec<Attachment>,
    /// At TC, behind other people's XDP programs. It stays while the tracer stands by.
    behind_xdp: Vec<Attachment>,
}

impl Entry {
    /// Has packets get ids, at all interfaces at which they do not yet. After an error, some of these give ids.
    pub(super) fn attach(&mut self, loaded: &mut Loaded<'_>) -> Result<(), TraceError> {
        let Loaded { programs, targets, events, notes, .. } = loaded;
        let Some(assign) = &programs.assign else { return Ok(()) };
        let program = fd_of(assign, "trace_xdp")?;
        let below = below(targets)?;
        let mut entries: HashSet<PlaceId> = HashSet::new();
        let (mut said, mut refused) = (Said::default(), Vec::new());
        let first = self.behind_xdp.is_empty();
        for number in lowest_first(&below) {
            let ((namespace, interface), (id, below)) = (&targets.interfaces[number], &below[number]);
            if targets.occupied.contains(id) {
                if first {
                    let (theirs, attachment) = attach_behind_xdp(programs, &targets.interfaces[number])?;
                    self.behind_xdp.push(attachment);
                    let how = "packets get their ids behind it, at TC ingress, if it gave them traits";
                    said.add(format!("XDP program{theirs} is there: {how}"), &interface.name);
                }
                entries.insert(*id);
                continue;
            }
            let covered = match below {
                Below::Nothing | Below::OtherEnd => false,
                // to a bridge without ports nothing comes
                Below::Ports(ports) if ports.is_empty() => !targets.named,
                Below::Ports(_) | Below::One(_) => below.known().iter().any(|below| entries.contains(below)),
                Below::AnyOther => entries.iter().any(|(inode, _)| *inode == namespace.inode()),
            };
            if covered {
                entries.insert(*id);
                continue;
            }
            if !namespace
                .enter(|| interface_name(interface.index).is_some())
                .map_err(system("enter a network namespace"))?
            {
                notes.add_gone(&interface.name);
                continue;
            }
            let (mode, location) = (targets.xdp_mode, &targets.location);
            let attached = namespace.enter(|| {
                xdp::attach(program.as_fd(), interface.index, mode).map_err(|error| Holder::explain(error, location))
            });
            match attached.map_err(system("enter a network namespace"))? {
                Ok((attachment, mode)) => {
                    tracing::debug!("assigning ids at {} in {mode} mode", interface.name);
                    if mode == XdpMode::Generic && targets.xdp_mode == XdpMode::Auto {
                        let how = "no native XDP, so packets get their ids by generic XDP, which copies large ones";
                        said.add(how.to_owned(), &interface.name);
                    }
                    if mode == XdpMode::Native && targets.xdp_mode == XdpMode::Auto && matches!(below, Below::OtherEnd)
                    {
                        said.add(NATIVE_AT_VETH.to_owned(), &interface.name);
                    }
                    self.assigning.push(attachment);
                    entries.insert(*id);
                    // where packets are counted that match while the tracer stands by
                    traced_devices::add(&programs.trace, *id)?;
                }
                Err(error @ (AttachError::Busy { .. } | AttachError::Refused { .. })) => {
                    said.add(format!("packets that enter there get no id: {}", reason(&error)), &interface.name);
                    refused.push(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if self.assigning.is_empty() && self.behind_xdp.is_empty() {
            // the first will do for all, and what else stands in the way
            let first = refused.first().map(ToString::to_string);
            let why: Vec<String> = first.into_iter().chain(notes.all().iter().cloned()).collect();
            let hints = refused.first().map(AttachError::hints).unwrap_or_default();
            return Err(TraceError::NoEntry { why: why.join("; "), hints, keys: id_candidates(events.keys()) });
        }
        said.lines().for_each(|line| notes.add(line));
        Ok(())
    }

    /// Takes the XDP programs away, for which drivers and the kernel cut and copy large packets.
    pub(super) fn take_away(&mut self) {
        self.assigning.clear();
    }
}

/// What each interface that is traced stands on.
fn below(targets: &Targets) -> Result<Vec<(PlaceId, Below)>, TraceError> {
    let Targets { namespaces, interfaces, .. } = targets;
    let mut known = HashMap::new();
    for namespace in namespaces {
        let look = || -> io::Result<_> {
            let devices = devices()?;
            // veths to containers say where their other ends are, too, which nobody asks for
            let asked = devices.iter().any(|it| it.link_elsewhere.is_some() && ON_ONE.contains(&it.kind.as_str()));
            let numbers = namespaces.iter().filter(|_| asked).filter_map(|other| {
                let number = namespace_number(other.fd()).transpose()?;
                Some(number.map(|number| (number, other.inode())))
            });
            let numbers = numbers.collect::<io::Result<HashMap<u32, u32>>>()?;
            Ok((devices, numbers))
        };
        let found = namespace.enter(look).and_then(|found| found);
        known.insert(namespace.inode(), found.map_err(system("list interfaces"))?);
    }
    let of = |place: &Place| {
        let below = known.get(&place.0.inode()).map(|(devices, numbers)| Below::of(place, devices, numbers));
        (place_id(place), below.unwrap_or(Below::Nothing))
    };
    Ok(interfaces.iter().map(of).collect())
}

/// Has packets get their ids at TC ingress. Returns also what the XDP program there is.
fn attach_behind_xdp(programs: &Programs, (namespace, interface): &Place) -> Result<(String, Attachment), TraceError> {
    let enter = programs.enter.as_ref().ok_or_else(|| TraceError::Option("the tracer has no TC program".to_owned()))?;
    let program = fd_of(enter, "trace_tc_enter")?;
    let options = TcxOptions::new(Direction::Ingress).position(Position::First);
    let attached = namespace.enter(|| {
        let theirs = xdp::attached(interface.index).map(|(id, _)| other_xdp::program(id));
        (theirs, tcx::attach(program.as_fd(), interface.index, &options))
    });
    let (theirs, attached) = attached.map_err(system("enter a network namespace"))?;
    Ok((theirs.map_or_else(String::new, |program| format!(" {program}")), attached?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(below: &[(PlaceId, Below)]) -> Vec<u32> {
        lowest_first(below).into_iter().map(|place| below[place].0.1).collect()
    }

    #[test]
    fn ports_come_before_their_bridge_and_tunnels_last() {
        let id = |ifindex| (1, ifindex);
        let below = [
            (id(2), Below::Ports(vec![id(4), id(9)])),
            (id(3), Below::AnyOther),
            (id(4), Below::Nothing),
            (id(5), Below::One(id(2))),
            (id(6), Below::One(id(3))),
            (id(7), Below::Nothing),
        ];
        assert_eq!(ordered(&below), [4, 2, 5, 7, 3, 6]);
    }

    #[test]
    fn a_circle_ends() {
        let id = |ifindex| (1, ifindex);
        let below = [(id(2), Below::One(id(3))), (id(3), Below::One(id(2))), (id(4), Below::One(id(4)))];
        assert_eq!(ordered(&below).len(), 3);
    }
}
