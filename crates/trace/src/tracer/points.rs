//! The points behind the entry, attached: functions, tracepoints, cgroup, netfilter, TC, in this order.

use std::os::fd::AsFd;

use packet_traits::attach::{
    AttachError, Attachment, CgroupHook, Direction, Feature, NetfilterFamily, NetfilterOptions, Position, TcxOptions,
    cgroup, netfilter, tcx,
};

use super::{
    loaded::Loaded,
    notes::Notes,
    programs::{NETFILTER, Programs, RECEIVE, TRACEPOINTS, fd_of},
    targets::Targets,
};
use crate::{
    error::{TraceError, system},
    namespace::{Namespace, place_id},
    point::Point,
};

/// Where the netfilter programs run: before defragmentation, and with it everything else (`NF_IP_PRI_CONNTRACK_DEFRAG`,
/// include/uapi/linux/netfilter_ipv4.h). If the number is taken, the next is tried.
const PRIORITY: i32 = -500;
const PRIORITIES: i32 = 16;

/// Points of a kind, by name.
fn names_of(kind: impl Fn(Point) -> bool) -> String {
    let points = Point::ALL.into_iter().filter(|point| kind(*point));
    points.map(Point::name).collect::<Vec<_>>().join(", ")
}

/// What is attached behind the entry.
#[derive(Default)]
pub(super) struct Points {
    // dropped in this order
    attachments: Vec<Attachment>,
    /// The point that stays while the tracer stands by: it counts what is received, and notices what matches.
    receive: Option<Attachment>,
}

impl Points {
    /// Attaches all that are of use. After an error, some of them are attached.
    pub(super) fn attach(&mut self, loaded: &mut Loaded<'_>) -> Result<(), TraceError> {
        let Loaded { programs, targets, notes, .. } = loaded;
        let mut refused = Vec::new();
        let exact = programs.functions.attach(&mut self.attachments, &mut refused);
        refused.into_iter().for_each(|note| notes.add(note));
        programs.set_delivery(exact)?;
        let tracepoints = TRACEPOINTS.into_iter().map(|(name, _)| name);
        for name in tracepoints.filter(|name| programs.needs(name) && !(exact && *name == "trace_received")) {
            self.attachments.extend(programs.attach_tracepoint(name)?);
        }
        if programs.needs(RECEIVE) {
            self.attach_receive(programs)?;
        }
        if programs.needs("trace_cgroup") {
            self.attach_cgroup(programs, notes)?;
        }
        if programs.has_netfilter() {
            for namespace in targets.namespaces.iter().filter(|_| !programs.only_drops) {
                self.attach_netfilter(programs, namespace, notes)?;
            }
        } else if !programs.only_drops {
            notes.add(format!("{}: {} are not seen", Feature::NetfilterLink, names_of(Point::is_of_netfilter)));
        }
        self.attach_tc(programs, targets, notes)
    }

    /// Attaches the point that stays while the tracer stands by, if it is not.
    pub(super) fn attach_receive(&mut self, programs: &Programs) -> Result<(), TraceError> {
        if self.receive.is_none() {
            self.receive = programs.attach_tracepoint(RECEIVE)?;
        }
        Ok(())
    }

    /// Takes all away but for the point that stays.
    pub(super) fn take_away(&mut self) {
        self.attachments.clear();
    }

    fn attach_cgroup(&mut self, programs: &Programs, notes: &mut Notes) -> Result<(), TraceError> {
        match cgroup::cgroup_tree() {
            Ok(tree) => {
                let program = fd_of(&programs.trace, "trace_cgroup")?;
                self.attachments.push(cgroup::attach_path(program.as_fd(), &tree.path, CgroupHook::Ingress)?);
                if !tree.whole {
                    notes.add(format!(
                        "{} is the root of a cgroup namespace, not the host's: the queues of sockets outside of it, and \
                         datagrams' delivery to them, are not seen (`nsenter --target 1 --mount --cgroup` leads to the host's)",
                        tree.path.display()
                    ));
                }
            }
            Err(error) => notes.add(format!("{error}: sockets' queues and delivery of datagrams are not seen")),
        }
        Ok(())
    }

    fn attach_netfilter(
        &mut self,
        programs: &Programs,
        namespace: &Namespace,
        notes: &mut Notes,
    ) -> Result<(), TraceError> {
        for (name, hook) in NETFILTER {
            let program = fd_of(&programs.trace, name)?;
            for family in [NetfilterFamily::Ipv4, NetfilterFamily::Ipv6] {
                let attach = || {
                    let mut attached = None;
                    for priority in PRIORITY..PRIORITY + PRIORITIES {
                        let options = NetfilterOptions::new(family, hook).priority(priority);
                        attached = Some(netfilter::attach(program.as_fd(), &options));
                        if !matches!(attached, Some(Err(AttachError::Busy { .. }))) {
                            break;
                        }
                    }
                    attached
                };
                match namespace.enter(attach).map_err(system("enter a network namespace"))? {
                    Some(Ok(attachment)) => self.attachments.push(attachment),
                    Some(Err(AttachError::Refused { errno: libc::EAFNOSUPPORT, .. })) | None => {
                        notes.add(format!("this kernel has no netfilter for {family}: {hook} is not seen"));
                    }
                    Some(Err(error)) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn attach_tc(&mut self, programs: &Programs, targets: &Targets, notes: &mut Notes) -> Result<(), TraceError> {
        for place @ (namespace, interface) in &targets.interfaces {
            for (name, direction) in [("trace_tc_egress", Direction::Egress), ("trace_tc_ingress", Direction::Ingress)]
            {
                let entry = direction == Direction::Ingress && targets.occupied.contains(&place_id(place));
                if entry || !programs.needs(name) {
                    continue;
                }
                let program = fd_of(&programs.trace, name)?;
                let options = TcxOptions::new(direction).position(Position::First);
                let attached = namespace.enter(|| tcx::attach(program.as_fd(), interface.index, &options));
                match attached.map_err(system("enter a network namespace"))? {
                    Ok(attachment) => self.attachments.push(attachment),
                    Err(AttachError::NoDevice { .. }) => {
                        notes.add_gone(&interface.name);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}
