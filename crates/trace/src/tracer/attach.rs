//! Attaching the programs.

use std::os::fd::AsFd;

use libbpf_rs::ProgramImpl;
use packet_traits::attach::{
    AttachError, Attachment, CgroupHook, Direction, Feature, NetfilterFamily, NetfilterHook, NetfilterOptions,
    Position, TcxOptions, cgroup, netfilter, tcx, tracing as tracepoint,
};

use super::{
    Tracer,
    load::{fd_of, switch},
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
/// The program at a point that every packet passes that enters the stack.
pub(super) const RECEIVE: &str = "trace_receive";
/// Place of the count of these, in words of `struct current_packet` of bpf/trace.bpf.c.
pub(super) const CURRENT_RECEIVED: usize = 7;

/// The other programs on tracepoints, and what they show. The kernel may lack one: then that is not seen.
const TRACEPOINTS: [(&str, Point); 15] = [
    ("trace_drop", Point::Drop),
    ("trace_consume", Point::Consume),
    ("trace_udp_fail", Point::QueueFull),
    ("trace_queue_full", Point::QueueFull),
    ("trace_copy", Point::Deliver),
    ("trace_received", Point::Deliver),
    ("trace_enqueue", Point::Enqueue),
    ("trace_icmp", Point::Icmp),
    ("trace_route4", Point::Route),
    ("trace_route6", Point::Route),
    ("trace_xmit", Point::Xmit),
    ("trace_queue", Point::Queue),
    ("trace_gro_result", Point::GroResult),
    ("trace_gro", Point::Gro),
    ("trace_netif_rx", Point::NetifRx),
];

/// Netfilter programs and their hooks.
const NETFILTER: [(&str, NetfilterHook); 5] = [
    ("trace_local_in", NetfilterHook::Input),
    ("trace_forward", NetfilterHook::Forward),
    ("trace_local_out", NetfilterHook::Output),
    ("trace_post_routing", NetfilterHook::PostRouting),
    ("trace_pre_routing", NetfilterHook::PreRouting),
];

/// Points of a kind, by name.
fn names_of(kind: impl Fn(Point) -> bool) -> String {
    let points = Point::ALL.into_iter().filter(|point| kind(*point));
    points.map(Point::name).collect::<Vec<_>>().join(", ")
}

impl Tracer<'_> {
    pub(super) fn attach_tracepoint(&self, name: &str) -> Result<Option<Attachment>, TraceError> {
        let program = self.trace.program(name).filter(ProgramImpl::autoload);
        Ok(program.map(|program| tracepoint::attach(program.as_fd())).transpose()?)
    }

    pub(super) fn attach(&self) -> Result<(), TraceError> {
        let (namespaces, interfaces) = &self.places;
        let mut attachments = self.attachments.borrow_mut();
        let mut notes = Vec::new();
        let exact = self.functions.attach(&mut attachments, &mut notes);
        notes.into_iter().for_each(|note| self.note(note));
        switch(&self.trace, ".data.delivery", exact)?;
        let tracepoints = TRACEPOINTS.into_iter().map(|(name, _)| name);
        for name in tracepoints.filter(|name| self.needs(name) && !(exact && *name == "trace_received")) {
            attachments.extend(self.attach_tracepoint(name)?);
        }
        let mut receive = self.receive.borrow_mut();
        if receive.is_none() && self.needs(RECEIVE) {
            *receive = self.attach_tracepoint(RECEIVE)?;
        }
        match cgroup::cgroup_tree() {
            _ if !self.needs("trace_cgroup") => {}
            Ok(tree) => {
                let program = fd_of(&self.trace, "trace_cgroup")?;
                attachments.push(cgroup::attach_path(program.as_fd(), &tree.path, CgroupHook::Ingress)?);
                if !tree.whole {
                    self.note(format!(
                        "{} is the root of a cgroup namespace, not the host's: the queues of sockets outside of it, and \
                         datagrams' delivery to them, are not seen (`nsenter --target 1 --mount --cgroup` leads to the host's)",
                        tree.path.display()
                    ));
                }
            }
            Err(error) => self.note(format!("{error}: sockets' queues and delivery of datagrams are not seen")),
        }
        if self.has_netfilter() {
            for namespace in namespaces.iter().filter(|_| !self.only_drops) {
                self.attach_netfilter(namespace, &mut attachments)?;
            }
        } else if !self.only_drops {
            self.note(format!("{}: {} are not seen", Feature::NetfilterLink, names_of(Point::is_of_netfilter)));
        }
        for place @ (namespace, interface) in interfaces {
            for (name, direction) in [("trace_tc_egress", Direction::Egress), ("trace_tc_ingress", Direction::Ingress)]
            {
                let entry = direction == Direction::Ingress && self.occupied.contains(&place_id(place));
                if entry || !self.needs(name) {
                    continue;
                }
                let program = fd_of(&self.trace, name)?;
                let options = TcxOptions::new(direction).position(Position::First);
                let attached = namespace.enter(|| tcx::attach(program.as_fd(), interface.index, &options));
                match attached.map_err(system("enter a network namespace"))? {
                    Ok(attachment) => attachments.push(attachment),
                    Err(AttachError::NoDevice { .. }) => {
                        self.note(format!("{} is gone, and is not traced any more", interface.name));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn is_loaded(&self, program: &str) -> bool {
        self.trace.program(program).is_some_and(|program| program.autoload())
    }

    /// Whether this kernel takes netfilter programs.
    fn has_netfilter(&self) -> bool {
        NETFILTER.iter().all(|(name, _)| self.is_loaded(name))
    }

    /// Whether this kernel has what shows this point.
    pub(super) fn has(&self, point: Point) -> bool {
        let mut tracepoints = TRACEPOINTS.iter().filter(|(_, shown)| *shown == point).peekable();
        (!point.is_of_function() || self.functions.has(point))
            && (!point.is_of_netfilter() || self.has_netfilter())
            && (tracepoints.peek().is_none() || tracepoints.any(|(name, _)| self.is_loaded(name)))
    }

    /// Whether this program is of use. For drops only, few are: those that see drops, and those that let an id survive a
    /// second XDP program of the tracer.
    fn needs(&self, program: &str) -> bool {
        !self.only_drops
            || match program {
                "trace_drop" => true,
                RECEIVE | "trace_tc_ingress" => self.assign.is_some(),
                "trace_xmit" => self.assign.is_some() && self.finds_sent,
                _ => false,
            }
    }

    /// Notes what people should know, once.
    pub(super) fn note(&self, note: String) {
        let mut notes = self.notes.borrow_mut();
        if !notes.contains(&note) {
            notes.push(note);
        }
    }

    fn attach_netfilter(&self, namespace: &Namespace, attachments: &mut Vec<Attachment>) -> Result<(), TraceError> {
        for (name, hook) in NETFILTER {
            let program = fd_of(&self.trace, name)?;
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
                    Some(Ok(attachment)) => attachments.push(attachment),
                    Some(Err(AttachError::Refused { errno: libc::EAFNOSUPPORT, .. })) | None => {
                        self.note(format!("this kernel has no netfilter for {family}: {hook} is not seen"));
                    }
                    Some(Err(error)) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}
