//! The tracer's programs when they are loaded: which this kernel has, which are of use, and the switches that they share.

use std::os::fd::{AsFd, OwnedFd};

use libbpf_rs::{MapCore, MapFlags, ProgramImpl};
use packet_traits::{
    attach::{Attachment, NetfilterHook, tracing as tracepoint},
    bind::LoadedObject,
};

use crate::{
    error::{TraceError, libbpf, system},
    functions::Functions,
    object::handle,
    point::Point,
};

/// The program at a point that every packet passes that enters the stack.
pub(super) const RECEIVE: &str = "trace_receive";
/// Place of the count of these, in words of `struct current_packet` of bpf/trace.bpf.c.
const CURRENT_RECEIVED: usize = 7;

/// The other programs on tracepoints, and what they show. The kernel may lack one: then that is not seen.
pub(super) const TRACEPOINTS: [(&str, Point); 15] = [
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
pub(super) const NETFILTER: [(&str, NetfilterHook); 5] = [
    ("trace_local_in", NetfilterHook::Input),
    ("trace_forward", NetfilterHook::Forward),
    ("trace_local_out", NetfilterHook::Output),
    ("trace_post_routing", NetfilterHook::PostRouting),
    ("trace_pre_routing", NetfilterHook::PreRouting),
];

/// The programs in the kernel.
pub(super) struct Programs {
    // closed in this order
    /// Gives packets ids by XDP; none if another program gives them.
    pub(super) assign: Option<LoadedObject>,
    /// The entry behind other people's XDP programs; it counts in the map of `assign`.
    pub(super) enter: Option<LoadedObject>,
    pub(super) functions: Functions,
    pub(super) trace: LoadedObject,
    /// Whether veth does not tell XDP programs the skb, so that it must be seen when it is sent.
    pub(super) finds_sent: bool,
    pub(super) only_drops: bool,
}

impl Programs {
    /// The program at this tracepoint, attached; none if the kernel lacks the tracepoint.
    pub(super) fn attach_tracepoint(&self, name: &str) -> Result<Option<Attachment>, TraceError> {
        let program = self.trace.program(name).filter(ProgramImpl::autoload);
        Ok(program.map(|program| tracepoint::attach(program.as_fd())).transpose()?)
    }

    fn is_loaded(&self, program: &str) -> bool {
        self.trace.program(program).is_some_and(|program| program.autoload())
    }

    /// Whether this kernel takes netfilter programs.
    pub(super) fn has_netfilter(&self) -> bool {
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
    pub(super) fn needs(&self, program: &str) -> bool {
        !self.only_drops
            || match program {
                "trace_drop" => true,
                RECEIVE | "trace_tc_ingress" => self.assign.is_some(),
                "trace_xmit" => self.assign.is_some() && self.finds_sent,
                _ => false,
            }
    }

    /// The objects that have counters of their own.
    pub(super) fn counting(&self) -> Vec<&LoadedObject> {
        [Some(&self.trace), self.assign.as_ref()].into_iter().flatten().chain(self.functions.objects()).collect()
    }

    /// Has packets followed, or only those counted that match.
    pub(super) fn set_armed(&self, armed: bool) -> Result<(), TraceError> {
        // what counts packets that are too early last, so that none is neither counted nor followed
        let entries = [self.assign.as_ref(), self.enter.as_ref()];
        for object in entries.into_iter().flatten().chain(self.functions.objects()).chain([&self.trace]) {
            switch(object, ".data.armed", armed)?;
        }
        Ok(())
    }

    /// Says whether the programs at functions see the delivery of datagrams.
    pub(super) fn set_delivery(&self, exact: bool) -> Result<(), TraceError> {
        switch(&self.trace, ".data.delivery", exact)
    }

    /// Forgets the datagrams that wait in sockets' queues.
    pub(super) fn forget_waiting(&self) -> Result<(), TraceError> {
        let waiting = handle(&self.trace, "waiting")?;
        for key in waiting.keys() {
            // the kernel may have removed it in the meantime
            let _ = waiting.delete(&key);
        }
        Ok(())
    }

    /// Packets that the host received, as far as the programs were attached.
    pub(super) fn received(&self) -> Result<u64, TraceError> {
        let map = handle(&self.trace, "current")?;
        let values = map.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).map_err(libbpf("count packets"))?;
        let count = |value: &Vec<u8>| value.as_chunks().0.get(CURRENT_RECEIVED).copied().map_or(0, u64::from_ne_bytes);
        Ok(values.iter().flatten().map(count).sum())
    }
}

pub(super) fn fd_of(object: &LoadedObject, name: &str) -> Result<OwnedFd, TraceError> {
    let program =
        object.program(name).ok_or_else(|| TraceError::Option(format!("the tracer has no program {name}")))?;
    program.as_fd().try_clone_to_owned().map_err(system("keep a program open"))
}

/// Sets a switch of an object's programs: a section with one word.
fn switch(object: &LoadedObject, section: &str, on: bool) -> Result<(), TraceError> {
    let (key, value) = (0u32.to_ne_bytes(), u64::from(on).to_ne_bytes());
    handle(object, section)?.update(&key, &value, MapFlags::ANY).map_err(libbpf("switch the tracer's programs"))
}

#[cfg(test)]
mod tests {
    use packet_traits_testing::layout::Types;

    use super::*;
    use crate::tracer::load::TRACE_OBJECT;

    #[test]
    fn received_packets_are_counted_there() {
        let types = Types::of(TRACE_OBJECT);
        assert_eq!(types.structure("current_packet").offset_of("received"), CURRENT_RECEIVED * size_of::<u64>());
    }
}
