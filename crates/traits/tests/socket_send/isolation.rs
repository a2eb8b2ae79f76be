//! Other hosts see nothing of what a sender says, and other programs of its cgroup see what is bound to its datagrams.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
};

use packet_traits::{
    attach::{CgroupHook, Direction, NetfilterHook, cgroup},
    socket_programs::{AttachOptions, SocketPrograms},
};
use packet_traits_lab::{Cgroup, Chain, End, Family, udp_socket};
use packet_traits_socket::{Keys, SocketTraits, Traits, UdpTraits};

use crate::{
    ABSENT, NOTHING, by_number,
    common::{
        self, Lab, TEST_PORT, attach_netfilter, attach_tc, attach_tracing, program,
        record::{self, HAS_SEQ, Records, Stage, set_global, shown},
        sockets::{RECORDED_KEYS, Setup, SocketLab},
        sockopt,
    },
    datagram,
};

#[test]
fn a_router_sees_nothing_of_what_a_sender_says() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let lab = Lab::new();
        let chain = Chain::new().unwrap();
        let cgroup = Cgroup::new().unwrap();
        let few = Some(2);
        let options = AttachOptions {
            cgroup: Some(cgroup.path().to_owned()),
            sockets: few,
            slots: few,
            pending_syns: few,
            ..AttachOptions::default()
        };
        SocketPrograms::attach(&lab.registry, &options).unwrap();
        let watch = |end: &End, incoming: Option<&End>| {
            let object = lab.load("sender");
            set_global(&object, "netns_cookie", sockopt::netns_cookie(end.netns()));
            let mut attached = attach_netfilter(&object, end, family, &[("post_routing", NetfilterHook::PostRouting)]);
            attached.push(attach_tc(&object, "tc_egress", end, Direction::Egress));
            attached.extend(attach_tracing(&object, &["net_dev_queue"]));
            attached.extend(incoming.map(|end| attach_tc(&object, "tc_ingress", end, Direction::Ingress)));
            (object, attached)
        };
        let (at_client, _client) = watch(chain.client(), None);
        let (at_router, _router) = watch(chain.router_out(), Some(chain.router_in()));
        let sink = udp_socket(chain.server().netns(), chain.server().addr(family, TEST_PORT)).unwrap();
        let from = chain.client().addr(family, 0);
        let socket = cgroup.enter(|| chain.client().netns().enter(|| UdpSocket::bind(from))).unwrap();
        let keys = Keys::of(&socket).unwrap();
        let mut traits = Traits::new(&keys);
        traits.set(&keys.typed("seq").unwrap(), 5u64).unwrap();
        socket.set_traits(&traits).unwrap();
        for number in 0..20 {
            let to = chain.server().addr(family, TEST_PORT);
            if number % 2 == 0 {
                socket.send_to(&datagram(number), to).unwrap();
            } else {
                socket.send_to_with_traits(&datagram(number), to, &traits).unwrap();
            }
            sink.recv(&mut [0; 64]).unwrap();
        }
        for (object, present) in [(&at_client, HAS_SEQ), (&at_router, 0)] {
            let records = Records::collect(object, |_| true);
            for hook in shown([Stage::PostRouting, Stage::TcEgress, Stage::NetDevQueue]) {
                assert_eq!(records.count(hook), 20, "{hook:?}");
                assert!(records.at(hook).all(|record| record.present == present), "{hook:?}");
            }
            let came_in = if present == 0 { 20 } else { 0 };
            assert_eq!(records.count(Stage::TcIngress), came_in);
            assert!(records.at(Stage::TcIngress).all(|record| record.present == 0), "it has just come in");
        }
    }
}

/// Whichever order other programs of the cgroup are attached in, they see what the one sees that binds traits to datagrams.
#[test]
fn programs_attached_to_the_cgroup_before_and_after_see_the_same() {
    const DATAGRAMS: u64 = 1000;
    if !common::area_enabled() {
        return;
    }
    let lab = SocketLab::with(&Setup { keys: RECORDED_KEYS, xdp: None, options: None, ..Setup::default() });
    let below = lab.cgroup.child().unwrap();
    let watch = |cgroup_dir: &Cgroup| {
        let object = lab.lab.load("sender");
        let egress = program(&object, "cgroup_egress");
        let attached = cgroup::attach_path(egress.as_fd(), cgroup_dir.path(), CgroupHook::Egress).unwrap();
        (object, attached)
    };
    let above = watch(&lab.cgroup);
    let before = watch(&below);
    let options = AttachOptions { cgroup: Some(below.path().to_owned()), ..Setup::default().options.unwrap() };
    SocketPrograms::attach(&lab.lab.registry, &options).unwrap();
    let after = watch(&below);

    let from = SocketAddr::new(lab.addr(Family::V4).ip(), 0);
    let socket = below.enter(|| lab.pair.rx().netns().enter(|| UdpSocket::bind(from))).unwrap();
    let to = lab.pair.tx().addr(Family::V4, TEST_PORT);
    let sink = udp_socket(lab.pair.tx().netns(), to).unwrap();
    sockopt::set_int(&sink, libc::SOL_SOCKET, libc::SO_RCVBUF, 1).unwrap();
    let keys = Keys::of(&socket).unwrap();
    let mut traits = Traits::new(&keys);
    for number in 0..DATAGRAMS {
        if number % 2 == 0 {
            socket.send_to(&datagram(number), to).unwrap();
        } else {
            traits.set(&keys.typed("seq").unwrap(), number).unwrap();
            socket.send_to_with_traits(&datagram(number), to, &traits).unwrap();
        }
    }
    let seen = |number: u64| match number % 2 {
        0 => ABSENT,
        _ => (HAS_SEQ, record::Traits { seq: number, ..NOTHING }),
    };
    let expected: BTreeMap<u32, _> = (0..DATAGRAMS).map(|number| (number as u32, seen(number))).collect();
    for (object, _attached) in [above, before, after] {
        let records = Records::collect(&object, |_| true);
        assert!(by_number(&records, Stage::CgroupEgress) == expected);
    }
}
