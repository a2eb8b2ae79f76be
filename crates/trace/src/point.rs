//! The points at which packets are seen, in the order in which a packet that is not dropped passes them.

use std::fmt;

/// Where a packet was seen; `enum point` of bpf/trace.bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Point {
    /// The tracer's own XDP program: the packet enters. Its verdict is always to pass.
    Xdp,
    /// Given to the stack without NAPI (`netif_rx`), as by a veth without XDP.
    NetifRx,
    /// Given to GRO (`napi_gro_receive_entry`).
    Gro,
    /// What GRO did with it, unless it just passed it on (`napi_gro_receive_exit`).
    GroResult,
    /// Received by the stack (`netif_receive_skb`): after GRO; again after each decapsulation.
    Receive,
    /// TC ingress (TCX), before all other programs there.
    TcIngress,
    /// Netfilter PRE_ROUTING.
    PreRouting,
    /// A routing table had an answer (`fib_table_lookup`, `fib6_table_lookup`).
    Route,
    /// Netfilter LOCAL_IN: it is for this namespace.
    LocalIn,
    /// Netfilter FORWARD: it goes on to another interface.
    Forward,
    /// Netfilter LOCAL_OUT: a tunnel has packed it.
    LocalOut,
    /// Netfilter POST_ROUTING: it is about to leave.
    PostRouting,
    /// TC egress (TCX), before all other programs there.
    TcEgress,
    /// Given to an interface (`net_dev_queue`): before its queueing discipline.
    Queue,
    /// Given to a driver (`net_dev_start_xmit`). A veth's other end comes next.
    Xmit,
    /// Found its socket (`cgroup_skb/ingress` of the root cgroup).
    Cgroup,
    /// Put into its socket's queue, whose owner is woken (`sk_data_ready`).
    Enqueue,
    /// Its socket's queue is full, or the accounting refuses it (`sock_rcvqueue_full`, `udp_fail_queue_rcv_skb`). A drop
    /// follows.
    QueueFull,
    /// The kernel answers it with an ICMP error (`icmp_send`).
    Icmp,
    /// A process took it, or a part of it (`skb_copy_datagram_iovec`; of datagrams, `sock_recv_length`).
    Deliver,
    /// Freed after use (`consume_skb`).
    Consume,
    /// Dropped (`kfree_skb`).
    Drop,
}

impl Point {
    /// Every point, by its number.
    pub const ALL: [Point; 22] = [
        Point::Xdp,
        Point::NetifRx,
        Point::Gro,
        Point::GroResult,
        Point::Receive,
        Point::TcIngress,
        Point::PreRouting,
        Point::Route,
        Point::LocalIn,
        Point::Forward,
        Point::LocalOut,
        Point::PostRouting,
        Point::TcEgress,
        Point::Queue,
        Point::Xmit,
        Point::Cgroup,
        Point::Enqueue,
        Point::QueueFull,
        Point::Icmp,
        Point::Deliver,
        Point::Consume,
        Point::Drop,
    ];

    /// The point with this number.
    pub fn from_code(code: u16) -> Option<Point> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// Its name, in lines, JSON and files. Never changes.
    pub const fn name(self) -> &'static str {
        match self {
            Point::Xdp => "xdp",
            Point::NetifRx => "netif-rx",
            Point::Gro => "gro",
            Point::GroResult => "gro-result",
            Point::Receive => "receive",
            Point::TcIngress => "tc-ingress",
            Point::PreRouting => "prerouting",
            Point::Route => "route",
            Point::LocalIn => "local-in",
            Point::Forward => "forward",
            Point::LocalOut => "local-out",
            Point::PostRouting => "postrouting",
            Point::TcEgress => "tc-egress",
            Point::Queue => "queue",
            Point::Xmit => "xmit",
            Point::Cgroup => "cgroup",
            Point::Enqueue => "enqueue",
            Point::QueueFull => "queue-full",
            Point::Icmp => "icmp",
            Point::Deliver => "deliver",
            Point::Consume => "consume",
            Point::Drop => "drop",
        }
    }

    /// The kernel's name of what the tracer attaches to there.
    pub const fn hook(self) -> &'static str {
        match self {
            Point::Xdp => "xdp",
            Point::NetifRx => "tp_btf/netif_rx",
            Point::Gro => "tp_btf/napi_gro_receive_entry",
            Point::GroResult => "tp_btf/napi_gro_receive_exit",
            Point::Receive => "tp_btf/netif_receive_skb",
            Point::TcIngress => "tcx/ingress",
            Point::PreRouting => "netfilter PRE_ROUTING, IPv4 and IPv6",
            Point::Route => "tp_btf/fib_table_lookup, tp_btf/fib6_table_lookup",
            Point::LocalIn => "netfilter LOCAL_IN, IPv4 and IPv6",
            Point::Forward => "netfilter FORWARD, IPv4 and IPv6",
            Point::LocalOut => "netfilter LOCAL_OUT, IPv4 and IPv6",
            Point::PostRouting => "netfilter POST_ROUTING, IPv4 and IPv6",
            Point::TcEgress => "tcx/egress",
            Point::Queue => "tp_btf/net_dev_queue",
            Point::Xmit => "tp_btf/net_dev_start_xmit",
            Point::Cgroup => "cgroup_skb/ingress",
            Point::Enqueue => "tp_btf/sk_data_ready",
            Point::QueueFull => "tp_btf/sock_rcvqueue_full, tp_btf/udp_fail_queue_rcv_skb",
            Point::Icmp => "tp_btf/icmp_send",
            Point::Deliver => "tp_btf/skb_copy_datagram_iovec, tp_btf/sock_recv_length",
            Point::Consume => "tp_btf/consume_skb",
            Point::Drop => "tp_btf/kfree_skb",
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places_in_the_list() {
        for (place, point) in Point::ALL.into_iter().enumerate() {
            assert_eq!(point as usize, place, "{point}");
            assert_eq!(Point::from_code(place as u16), Some(point));
        }
        assert_eq!(Point::from_code(Point::ALL.len() as u16), None);
    }
}
