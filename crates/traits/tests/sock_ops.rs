//! The callbacks of a TCP socket (`SEC("sockops")`) that have a packet read its traits: the SYN at the listener, what
//! ends the handshake at the accepted socket, and then every packet that is parsed.

mod common;

use common::{
    BOTH_MODES, Lab, TEST_PORT, attach_cgroup, attach_xdp,
    record::{Record, Records, Stage, set_global},
    sockopt,
};
use packet_traits::attach::{CgroupHook, XdpMode};
use packet_traits_lab::{Family, Pair, TcpSink, tcp_transfer};

// include/uapi/linux/bpf.h
const PASSIVE_ESTABLISHED: u64 = 5;
const PARSE_HDR_OPT: u64 = 13;
const HDR_OPT_LEN: u64 = 14;

/// The numbers of the packets that a callback read; the connection's packets are counted from 0, the SYN.
#[track_caller]
fn read_by(records: &Records, callback: u64) -> Vec<u64> {
    let of_callback = |record: &&Record| record.extra == callback;
    records.at(Stage::SockOps).filter(of_callback).map(|record| record.traits.seq).collect()
}

fn callbacks_of_a_connection(mode: XdpMode, family: Family) {
    let lab = Lab::new();
    let object = lab.load("sock_ops");
    let pair = Pair::new().unwrap();
    set_global(&object, "netns_cookie", sockopt::netns_cookie(pair.rx().netns()));
    let _xdp = attach_xdp(&object, "assign", pair.rx(), mode);
    let _sock_ops = attach_cgroup(&object, "callbacks", CgroupHook::SockOps);
    let sink = TcpSink::start(pair.rx().netns(), pair.rx().addr(family, TEST_PORT)).unwrap();
    tcp_transfer(pair.tx().netns(), sink.addr(), 1 << 16).unwrap();

    let records = Records::collect(&object, |_| false);
    let read = records.assert_right(Stage::SockOps);
    assert_eq!(read_by(&records, HDR_OPT_LEN), [0], "the listener answers the SYN");
    assert_eq!(read_by(&records, PASSIVE_ESTABLISHED), [1], "the second packet ends the handshake");
    let parsed = read_by(&records, PARSE_HDR_OPT);
    assert!(parsed.iter().any(|number| *number > 1), "{parsed:?}");
    assert!(parsed.is_sorted() && parsed.iter().all(|number| *number > 0), "{parsed:?}");
    assert_eq!(read.values().sum::<usize>(), parsed.len() + 2, "no other callback has a packet");
}

#[test]
fn callbacks_read_the_packet_they_are_called_for() {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            for family in Family::BOTH {
                callbacks_of_a_connection(mode, family);
            }
        }
    }
}
