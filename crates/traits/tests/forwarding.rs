//! What XDP sets on the interface where a packet enters a router is read unchanged until the packet leaves it, and where
//! it arrives if that is another namespace of the same host.

mod common;

use std::os::fd::AsFd;

use common::{
    BOTH_MODES, Lab, TEST_PORT, attach_netfilter, attach_tc, attach_xdp, load,
    record::{Records, Stage},
};
use packet_traits::attach::{Attachment, Direction, NetfilterHook, XdpMode};
use packet_traits::bind::LoadedObject;
use packet_traits_lab::{Chain, Family, TcpSink, recv_numbered, send_numbered, tcp_transfer, udp_socket};

const PACKETS: u64 = 100;

/// What a forwarded packet passes between the two interfaces.
const FORWARDING: [Stage; 4] = [Stage::PreRouting, Stage::Forward, Stage::PostRouting, Stage::TcEgress];

fn observe_router(object: &LoadedObject, chain: &Chain, family: Family) -> Vec<Attachment> {
    let mut attached = attach_netfilter(
        object,
        chain.router_in(),
        family,
        &[
            ("pre_routing", NetfilterHook::PreRouting),
            ("forward", NetfilterHook::Forward),
            ("post_routing", NetfilterHook::PostRouting),
        ],
    );
    attached.push(attach_tc(object, "tc_egress", chain.router_out(), Direction::Egress));
    attached
}

/// Sends numbered datagrams from the client to the server, one at a time.
fn send_through(chain: &Chain, family: Family) {
    let to = chain.server().addr(family, TEST_PORT);
    let receiver = udp_socket(chain.server().netns(), to).unwrap();
    let sender = udp_socket(chain.client().netns(), chain.client().addr(family, 0)).unwrap();
    for number in 0..PACKETS {
        send_numbered(&sender, to, number..number + 1, 64).unwrap();
        assert_eq!(recv_numbered(&receiver).unwrap(), number);
    }
}

fn udp_through_a_router(mode: XdpMode, family: Family) {
    let lab = Lab::new();
    let object = lab.load("stages");
    let chain = Chain::new().unwrap();
    let _xdp = attach_xdp(&object, "assign", chain.router_in(), mode);
    let _router = observe_router(&object, &chain, family);
    send_through(&chain, family);

    let expected = PACKETS as usize;
    let records = Records::collect(&object, |r| r.count(Stage::TcEgress) >= expected);
    for stage in FORWARDING {
        records.assert_all_read(stage, 0..PACKETS);
    }
}

#[test]
fn udp_is_read_on_its_whole_way_through_a_router() {
    if common::enabled() {
        for mode in BOTH_MODES {
            for family in Family::BOTH {
                udp_through_a_router(mode, family);
            }
        }
    }
}
