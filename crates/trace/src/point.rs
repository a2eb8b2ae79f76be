//! The points at which packets are seen, in the order in which a packet that is not dropped passes them.

use std::fmt;

/// Where a packet was seen; `enum point` of bpf/trace.bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum Point {
    /// The tracer's own XDP program: the packet enters. Its verdict is always to pass.
    Xdp,
    /// Another XDP program has decided on it (`fexit` on that program). To drop it, to send it back or to
    /// redirect it ends its way here.
    XdpVerdict,
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
    /// A fragment: kept until all are there (`ip_defrag`, `ipv6_frag_rcv`). Where connections are tracked, it comes before
    /// [`Route`](Point::Route). The whole has the id of the first fragment.
    Defrag,
    /// Netfilter LOCAL_IN: it is for this namespace.
    Input,
    /// Netfilter FORWARD: it goes on to another interface.
    Forward,
    /// Netfilter LOCAL_OUT: a tunnel has packed it.
    Output,
    /// Netfilter POST_ROUTING: it is about to leave.
    PostRouting,
    /// Too long for its way out: it is cut into fragments (`ip_do_fragment`, `ip6_fragment`), which have no id.
    Fragment,
    /// The next host's address is asked for, and it is kept until then (`__neigh_event_send`).
    Neighbour,
    /// TC egress (TCX), before all other programs there.
    TcEgress,
    /// Given to an interface (`net_dev_queue`): before its queueing discipline.
    Queue,
    /// Given to a driver (`net_dev_start_xmit`). A veth's other end comes next.
    Xmit,
    /// Given to TCP (`tcp_v4_rcv`, `tcp_v6_rcv`).
    Tcp,
    /// Found its socket (`cgroup_skb/ingress` of the root cgroup).
    Cgroup,
    /// A process is at work with its socket, and it is kept until then (`tcp_add_backlog`).
    Backlog,
    /// TCP keeps it until what comes before it has come (`tcp_data_queue`).
    OutOfOrder,
    /// Put into its socket's queue, whose owner is woken (`sk_data_ready`).
    Enqueue,
    /// Its socket's queue is full, or the accounting refuses it (`sock_rcvqueue_full`, `udp_fail_queue_rcv_skb`). A drop
    /// follows.
    QueueFull,
    /// The kernel answers it with an ICMP error (`icmp_send`).
    Icmp,
    /// A process looked at a datagram and left it in the queue (`skb_consume_udp`, `MSG_PEEK`).
    Peek,
    /// A process took it, or a part of it (`skb_copy_datagram_iovec`; of datagrams, `skb_consume_udp` or else
    /// `sock_recv_length`).
    Deliver,
    /// Freed after use (`consume_skb`).
    Consume,
    /// Dropped (`kfree_skb`).
    Drop,
}

impl Point {
    /// Every point, by its number.
    pub const ALL: [Point; 30] = [
        Point::Xdp,
        Point::XdpVerdict,
        Point::NetifRx,
        Point::Gro,
        Point::GroResult,
        Point::Receive,
        Point::TcIngress,
        Point::PreRouting,
        Point::Route,
        Point::Defrag,
        Point::Input,
        Point::Forward,
        Point::Output,
        Point::PostRouting,
        Point::Fragment,
        Point::Neighbour,
        Point::TcEgress,
        Point::Queue,
        Point::Xmit,
        Point::Tcp,
        Point::Cgroup,
        Point::Backlog,
        Point::OutOfOrder,
        Point::Enqueue,
        Point::QueueFull,
        Point::Icmp,
        Point::Peek,
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
            Point::XdpVerdict => "xdp-verdict",
            Point::NetifRx => "netif-rx",
            Point::Gro => "gro",
            Point::GroResult => "gro-result",
            Point::Receive => "receive",
            Point::TcIngress => "tc-ingress",
            Point::PreRouting => "prerouting",
            Point::Route => "route",
            Point::Defrag => "defrag",
            Point::Input => "input",
            Point::Forward => "forward",
            Point::Output => "output",
            Point::PostRouting => "postrouting",
            Point::Fragment => "fragment",
            Point::Neighbour => "neighbour",
            Point::TcEgress => "tc-egress",
            Point::Queue => "queue",
            Point::Xmit => "xmit",
            Point::Tcp => "tcp",
            Point::Cgroup => "cgroup",
            Point::Backlog => "backlog",
            Point::OutOfOrder => "out-of-order",
            Point::Enqueue => "enqueue",
            Point::QueueFull => "queue-full",
            Point::Icmp => "icmp",
            Point::Peek => "peek",
            Point::Deliver => "deliver",
            Point::Consume => "consume",
            Point::Drop => "drop",
        }
    }

    /// Whether only functions show it (`fentry`), which not every kernel lets programs run at.
    pub const fn is_of_function(self) -> bool {
        matches!(
            self,
            Point::XdpVerdict
                | Point::Defrag
                | Point::Fragment
                | Point::Neighbour
                | Point::Tcp
                | Point::Backlog
                | Point::OutOfOrder
                | Point::Peek
        )
    }

    /// Whether netfilter programs show it (Linux 6.4), or what they know of the packet.
    pub const fn is_of_netfilter(self) -> bool {
        matches!(
            self,
            Point::PreRouting | Point::Route | Point::Input | Point::Forward | Point::Output | Point::PostRouting
        )
    }

    /// The kernel's name of what the tracer attaches to there.
    pub const fn hook(self) -> &'static str {
        match self {
            Point::Xdp => "xdp",
            Point::XdpVerdict => "fexit of the interface's XDP program",
            Point::NetifRx => "tp_btf/netif_rx",
            Point::Gro => "tp_btf/napi_gro_receive_entry",
            Point::GroResult => "tp_btf/napi_gro_receive_exit",
            Point::Receive => "tp_btf/netif_receive_skb",
            Point::TcIngress => "tcx/ingress",
            Point::PreRouting => "netfilter PRE_ROUTING, IPv4 and IPv6",
            Point::Route => "tp_btf/fib_table_lookup, tp_btf/fib6_table_lookup",
            Point::Defrag => "fentry/ip_defrag, fentry/ipv6_frag_rcv",
            Point::Input => "netfilter LOCAL_IN, IPv4 and IPv6",
            Point::Forward => "netfilter FORWARD, IPv4 and IPv6",
            Point::Output => "netfilter LOCAL_OUT, IPv4 and IPv6",
            Point::PostRouting => "netfilter POST_ROUTING, IPv4 and IPv6",
            Point::Fragment => "fentry/ip_do_fragment, fentry/ip6_fragment",
            Point::Neighbour => "fentry/__neigh_event_send",
            Point::TcEgress => "tcx/egress",
            Point::Queue => "tp_btf/net_dev_queue",
            Point::Xmit => "tp_btf/net_dev_start_xmit",
            Point::Tcp => "fentry/tcp_v4_rcv, fentry/tcp_v6_rcv",
            Point::Cgroup => "cgroup_skb/ingress",
            Point::Backlog => "fentry/tcp_add_backlog",
            Point::OutOfOrder => "fentry/tcp_data_queue",
            Point::Enqueue => "tp_btf/sk_data_ready",
            Point::QueueFull => "tp_btf/sock_rcvqueue_full, tp_btf/udp_fail_queue_rcv_skb",
            Point::Icmp => "tp_btf/icmp_send",
            Point::Peek => "fentry/skb_consume_udp",
            Point::Deliver => "tp_btf/skb_copy_datagram_iovec, fentry/skb_consume_udp or tp_btf/sock_recv_length",
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
    use packet_traits_testing::layout::{enumerators, screaming};

    use super::*;

    #[test]
    fn the_programs_have_the_same_points() {
        let in_c = enumerators(include_str!("bpf/trace.bpf.h"));
        for point in Point::ALL {
            let name = format!("POINT_{}", screaming(&format!("{point:?}")));
            assert_eq!(in_c.get(&name), Some(&(point as i64)), "{name}");
        }
        assert_eq!(in_c["POINT_COUNT"], Point::ALL.len() as i64);
    }

    #[test]
    fn numbers_are_places_in_the_list() {
        for (place, point) in Point::ALL.into_iter().enumerate() {
            assert_eq!(point as usize, place, "{point}");
            assert_eq!(Point::from_code(place as u16), Some(point));
        }
        assert_eq!(Point::from_code(Point::ALL.len() as u16), None);
    }
}
