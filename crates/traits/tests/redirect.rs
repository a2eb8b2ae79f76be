//! What XDP sets is read, and can be changed, by a second XDP program that a frame is redirected to, in an entry of a
//! DEVMAP or of a CPUMAP, and is right at the stages behind it.
//!
//! That holds for native XDP. Generic XDP hands an skb from program to program and starts each with empty metadata
//! (`bpf_prog_run_generic_xdp` in net/core/dev.c); metadata becomes the skb's only when a program passes it. So the
//! second program finds nothing there, and what it sets itself is what later stages read.

mod common;

use std::os::fd::{AsFd, BorrowedFd};

use common::{
    Lab, TEST_PORT, attach_netfilter, attach_tc, attach_xdp, program,
    record::{HAS_ALL, Record, Records, Stage, set_global, shown},
};
use packet_traits::{
    attach::{Attachment, Direction, NetfilterHook, XdpMode, redirect_map},
    bind::LoadedObject,
};
use packet_traits_lab::{Chain, End, Family, Feature, Mac, Pair, recv_numbered, send_numbered, udp_socket};

const PACKETS: u64 = 100;
/// Frames that wait for the other CPU at most.
const QUEUE_SIZE: u32 = 192;

/// Bits of the keys in `record.bpf.h`.
const TENANT: u32 = 1;
const PORT: u32 = 2;
const SRC: u32 = 32;
const TINY: u32 = 64;

const AT_RECEIVER: [Stage; 2] = [Stage::TcIngress, Stage::LocalIn];

fn observe(object: &LoadedObject, receiver: &End) -> Vec<Attachment> {
    let mut attached = attach_netfilter(object, receiver, Family::V4, &[("local_in", NetfilterHook::Input)]);
    attached.push(attach_tc(object, "tc_ingress", receiver, Direction::Ingress));
    attached
}

/// Sends numbered datagrams, one at a time. They have their checksums: a redirected frame forgets that they are missing.
fn send(from: &End, to: &End) {
    from.netns().set_feature(from.name(), Feature::TxChecksum, false).unwrap();
    let addr = to.addr(Family::V4, TEST_PORT);
    let receiver = udp_socket(to.netns(), addr).unwrap();
    let sender = udp_socket(from.netns(), from.addr(Family::V4, 0)).unwrap();
    for number in 0..PACKETS {
        send_numbered(&sender, addr, number..number + 1, 64).unwrap();
        assert_eq!(recv_numbered(&receiver).unwrap(), number);
    }
}

fn collect(object: &LoadedObject) -> Records {
    let records = Records::collect(object, |r| {
        [Stage::XdpAgain, Stage::TcIngress].iter().all(|s| r.count(*s) >= PACKETS as usize)
    });
    assert_eq!(records.set().len(), PACKETS as usize);
    records
}

/// A router whose `first` program redirects to the server's link, with `second` in the entry.
fn through_a_device(mode: XdpMode, first: &str, second: Option<&str>, behind: Option<&str>) -> Records {
    let lab = Lab::new();
    let object = lab.load("redirect");
    let chain = Chain::new().unwrap();
    let server = chain.server();
    // a veth takes XDP frames only if the other side receives through NAPI: by GRO, or an XDP program
    server.netns().set_feature(server.name(), Feature::Gro, true).unwrap();
    let devices = object.map("devices").unwrap();
    let second = second.map(|name| program(&object, name));
    let ifindex = chain.router_out().ifindex();
    let set = |map: BorrowedFd<'_>| redirect_map::set_device(map, 0, ifindex, second.as_ref().map(AsFd::as_fd));
    let map = devices.as_fd();
    chain.router_out().netns().enter(|| set(map)).unwrap();
    let Mac([a, b, c, d, e, f]) = server.mac();
    set_global(&object, "next_hop", u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]));
    let _first = attach_xdp(&object, first, chain.router_in(), mode);
    let _behind = behind.map(|name| attach_xdp(&object, name, server, XdpMode::Native));
    let _observed = observe(&object, server);
    send(chain.client(), server);
    collect(&object)
}

/// A receiver whose `first` program redirects to another CPU, or the same, with `second` in the entry.
fn through_a_cpu(mode: XdpMode, first: &str, second: Option<&str>) -> Records {
    let lab = Lab::new();
    let object = lab.load("redirect");
    let pair = Pair::new().unwrap();
    let cpus = object.map("cpus").unwrap();
    let second = second.map(|name| program(&object, name));
    redirect_map::set_cpu(cpus.as_fd(), 0, QUEUE_SIZE, second.as_ref().map(AsFd::as_fd)).unwrap();
    let _first = attach_xdp(&object, first, pair.rx(), mode);
    let _observed = observe(&object, pair.rx());
    send(pair.tx(), pair.rx());
    collect(&object)
}

/// Checks that the second program read what the first had set, and the receiver what the second made of it.
#[track_caller]
fn assert_changed(records: &Records) {
    records.assert_all_read(Stage::XdpAgain, 0..PACKETS);
    let set = records.set();
    for stage in shown(AT_RECEIVER) {
        assert_eq!(records.count(stage), PACKETS as usize, "{stage:?}");
        for Record { present, traits, .. } in records.at(stage) {
            let mut expected = set[&traits.seq];
            expected.tenant = expected.tenant.wrapping_add(1);
            expected.tiny = expected.tiny.wrapping_add(1);
            (expected.port, expected.src) = (0, [0; 16]);
            assert_eq!((*present, *traits), (HAS_ALL & !(PORT | SRC), expected), "{stage:?}");
        }
    }
}

/// Checks that the second program ran on every packet and found nothing.
#[track_caller]
fn assert_nothing_found_by_the_second(records: &Records) {
    assert_eq!(records.count(Stage::XdpAgain), PACKETS as usize);
    assert!(records.at(Stage::XdpAgain).all(|record| record.present == 0));
}

/// Checks that the receiver read what the second program had set, and nothing else.
#[track_caller]
fn assert_only_what_the_second_set(records: &Records) {
    for stage in shown(AT_RECEIVER) {
        assert_eq!(records.count(stage), PACKETS as usize, "{stage:?}");
        for Record { present, traits, .. } in records.at(stage) {
            assert_eq!((*present, traits.tenant, traits.tiny), (TENANT | TINY, 1, 1), "{stage:?}");
        }
    }
}

#[test]
fn a_program_in_a_devmap_reads_what_the_first_set_and_so_does_who_receives_the_frame() {
    if !common::area_enabled() {
        return;
    }
    for first in ["to_device_sealed", "to_device_open"] {
        let records = through_a_device(XdpMode::Native, first, Some("device_read"), None);
        for stage in shown([Stage::XdpAgain, Stage::TcIngress, Stage::LocalIn]) {
            records.assert_all_read(stage, 0..PACKETS);
        }
    }
}

#[test]
fn a_program_in_a_devmap_changes_what_the_first_set() {
    if !common::area_enabled() {
        return;
    }
    for first in ["to_device_sealed", "to_device_open"] {
        assert_changed(&through_a_device(XdpMode::Native, first, Some("device_change"), None));
    }
}

/// A frame keeps its metadata on the way through a veth, unlike an skb: see `forwarding.rs`.
#[test]
fn xdp_at_the_other_end_reads_a_frame_that_a_devmap_sent() {
    if !common::area_enabled() {
        return;
    }
    for first in ["to_device_sealed", "to_device_open"] {
        let records = through_a_device(XdpMode::Native, first, None, Some("read_again"));
        for stage in shown([Stage::XdpAgain, Stage::TcIngress, Stage::LocalIn]) {
            records.assert_all_read(stage, 0..PACKETS);
        }
    }
}

#[test]
fn generic_xdp_loses_traits_on_the_way_to_a_devmap() {
    if !common::area_enabled() {
        return;
    }
    for first in ["to_device_sealed", "to_device_open"] {
        let records = through_a_device(XdpMode::Generic, first, Some("device_read"), None);
        assert_nothing_found_by_the_second(&records);
        assert!(AT_RECEIVER.iter().all(|stage| records.count(*stage) == 0));
        let records = through_a_device(XdpMode::Generic, first, Some("device_set"), None);
        assert_nothing_found_by_the_second(&records);
        assert_only_what_the_second_set(&records);
    }
}

#[test]
fn a_program_in_a_cpumap_reads_what_the_first_set_and_so_does_the_stack() {
    if !common::area_enabled() {
        return;
    }
    for first in ["to_cpu_sealed", "to_cpu_open"] {
        let records = through_a_cpu(XdpMode::Native, first, Some("cpu_read"));
        for stage in shown([Stage::XdpAgain, Stage::TcIngress, Stage::LocalIn]) {
            records.assert_all_read(stage, 0..PACKETS);
        }
    }
}

#[test]
fn the_stack_reads_what_went_through_a_cpumap_without_a_program() {
    if !common::area_enabled() {
        return;
    }
    for first in ["to_cpu_sealed", "to_cpu_open"] {
        let records = through_a_cpu(XdpMode::Native, first, None);
        for stage in shown(AT_RECEIVER) {
            records.assert_all_read(stage, 0..PACKETS);
        }
    }
}

#[test]
fn a_program_in_a_cpumap_changes_what_the_first_set() {
    if !common::area_enabled() {
        return;
    }
    for first in ["to_cpu_sealed", "to_cpu_open"] {
        assert_changed(&through_a_cpu(XdpMode::Native, first, Some("cpu_change")));
    }
}

#[test]
fn generic_xdp_loses_traits_on_the_way_to_a_cpumap() {
    if !common::area_enabled() {
        return;
    }
    for first in ["to_cpu_sealed", "to_cpu_open"] {
        let records = through_a_cpu(XdpMode::Generic, first, Some("cpu_read"));
        assert_nothing_found_by_the_second(&records);
        assert!(AT_RECEIVER.iter().all(|stage| records.count(*stage) == 0));
        let records = through_a_cpu(XdpMode::Generic, first, Some("cpu_set"));
        assert_nothing_found_by_the_second(&records);
        assert_only_what_the_second_set(&records);
    }
}
