//! GRO: `keep-first` keys do not keep packets from merging, `block` keys that differ do.

mod common;

use common::{
    Lab, TEST_PORT, attach_tc, attach_xdp,
    record::{Record, Records, Stage},
};
use packet_traits::attach::{Direction, XdpMode};
use packet_traits_lab::{Family, Feature, Overlay, Pair, VethOptions, VxlanOptions, frame::Flow, send_together};

const SEGMENTS: u32 = 16;
const SIZE: u16 = 1000;
/// `TENANT` in gro.bpf.c.
const TENANT: u32 = 7;

/// What XDP set and what came out of GRO, after a burst of segments of one flow.
struct Burst {
    set: Vec<Record>,
    merged: Vec<Record>,
}

impl Burst {
    /// Only the underlay's device merges packets.
    fn send(program: &str, mode: XdpMode, family: Family, tunnelled: bool) -> Burst {
        Burst::send_with(program, mode, family, tunnelled, false)
    }

    fn send_with(program: &str, mode: XdpMode, family: Family, tunnelled: bool, tunnel_gro: bool) -> Burst {
        let lab = Lab::new();
        let object = lab.load("gro");
        let pair = Pair::with(&VethOptions::new().gro(true)).unwrap();
        let overlay = tunnelled.then(|| Overlay::over(pair.clone(), &VxlanOptions::new(family)).unwrap());
        if let Some(overlay) = &overlay {
            overlay.rx().netns().set_feature(overlay.rx().name(), Feature::Gro, tunnel_gro).unwrap();
        }
        let _xdp = attach_xdp(&object, program, pair.rx(), mode);
        let stack_side = overlay.as_ref().map_or(pair.rx(), |overlay| overlay.rx());
        let _tc = attach_tc(&object, "tc_ingress", stack_side, Direction::Ingress);

        let outer = Flow::between(pair.tx(), pair.rx(), family, 40000, packet_traits_lab::VXLAN_PORT);
        let frames = match &overlay {
            None => Flow::between(pair.tx(), pair.rx(), family, 40000, TEST_PORT).tcp_burst(1, SEGMENTS, SIZE),
            Some(overlay) => Flow::between(overlay.tx(), overlay.rx(), family, 40000, TEST_PORT)
                .tcp_burst(1, SEGMENTS, SIZE)
                .iter()
                .map(|inner| outer.vxlan(overlay.vni(), inner))
                .collect(),
        };
        send_together(pair.tx(), pair.rx(), &frames).unwrap();

        let all = SEGMENTS * u32::from(SIZE);
        let records = Records::collect(&object, |records| {
            records.at(Stage::TcIngress).map(|record| record.len - headers(family)).sum::<u32>() >= all
        });
        let burst = Burst {
            set: records.at(Stage::Xdp).copied().collect(),
            merged: records.at(Stage::TcIngress).copied().collect(),
        };
        eprintln!(
            "{program}, {mode} XDP, {family:?}{}: {} packets at XDP, at TC {:?} bytes",
            if tunnelled { " in VXLAN" } else { "" },
            burst.set.len(),
            burst.merged.iter().map(|record| record.len).collect::<Vec<_>>()
        );
        burst
    }

    /// The payload that reached TC: every packet's length without its headers.
    fn payload(&self, headers: u32) -> u32 {
        self.merged.iter().map(|record| record.len - headers).sum()
    }
}

/// Ethernet, IP and TCP headers as `tcp_burst` makes them.
fn headers(family: Family) -> u32 {
    14 + 20 + if family == Family::V4 { 20 } else { 40 }
}

fn all() -> impl Iterator<Item = (Family, bool)> {
    Family::BOTH.into_iter().flat_map(|family| [(family, false), (family, true)])
}

#[test]
fn merged_packet_keeps_first_value() {
    if !common::area_enabled() {
        return;
    }
    for (family, tunnelled) in all() {
        let burst = Burst::send("keep_first_differs", XdpMode::Native, family, tunnelled);
        assert_eq!(burst.set.len(), SEGMENTS as usize);
        assert_eq!(burst.merged.len(), 1, "{family:?} {tunnelled}");
        assert_eq!(burst.payload(headers(family)), SEGMENTS * u32::from(SIZE));
        assert_eq!(burst.merged[0].traits.seq, burst.set[0].traits.seq);
        assert_eq!(burst.merged[0].traits.tenant, TENANT);
    }
}

#[test]
fn packets_whose_block_key_differs_are_not_merged() {
    if !common::area_enabled() {
        return;
    }
    for (family, tunnelled) in all() {
        let burst = Burst::send("block_differs", XdpMode::Native, family, tunnelled);
        assert_eq!(burst.merged.len(), SEGMENTS as usize);
        let tenants = |records: &[Record]| records.iter().map(|r| r.traits.tenant).collect::<Vec<_>>();
        assert_eq!(tenants(&burst.merged), tenants(&burst.set));
    }
}

/// A tunnel device has a GRO of its own (gro_cells), which compares the bytes in front of the inner MAC header: the outer
/// headers. If these are equal, packets are merged whatever their traits are; the first one's stay.
#[test]
fn a_tunnel_devices_own_gro_does_not_see_traits() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let burst = Burst::send_with("block_differs", XdpMode::Native, family, true, true);
        assert_eq!((burst.set.len(), burst.merged.len()), (SEGMENTS as usize, 1));
        assert_eq!(burst.merged[0].traits.tenant, burst.set[0].traits.tenant);
    }
}

#[test]
fn packets_whose_keys_are_equal_are_merged() {
    if !common::area_enabled() {
        return;
    }
    for (family, tunnelled) in all() {
        let burst = Burst::send("all_equal", XdpMode::Native, family, tunnelled);
        assert_eq!((burst.set.len(), burst.merged.len()), (SEGMENTS as usize, 1));
        assert_eq!(burst.payload(headers(family)), SEGMENTS * u32::from(SIZE));
    }
}

#[test]
fn an_unsealed_area_keeps_packets_apart() {
    if common::area_enabled() {
        let burst = Burst::send("keep_first_differs_unsealed", XdpMode::Native, Family::V4, false);
        assert_eq!(burst.merged.len(), SEGMENTS as usize);
    }
}

#[test]
fn a_block_key_that_was_deleted_does_not_keep_packets_apart() {
    if common::area_enabled() {
        let burst = Burst::send("block_deleted", XdpMode::Native, Family::V4, false);
        assert_eq!(burst.merged.len(), 1);
    }
}

/// The kernel does no GRO on a device with generic XDP (netif_elide_gro in include/linux/netdevice.h).
#[test]
fn generic_xdp_keeps_packets_apart_with_a_value_each() {
    if !common::area_enabled() {
        return;
    }
    for (family, tunnelled) in all() {
        let burst = Burst::send("keep_first_differs", XdpMode::Generic, family, tunnelled);
        assert_eq!((burst.set.len(), burst.merged.len()), (SEGMENTS as usize, SEGMENTS as usize));
        let numbers = |records: &[Record]| records.iter().map(|r| r.traits.seq).collect::<Vec<_>>();
        assert_eq!(numbers(&burst.merged), numbers(&burst.set));
    }
}
