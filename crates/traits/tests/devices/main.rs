//! Every device that packets come in by: what XDP set is there at every stage, or absent where that is known, and never
//! another packet's.
//!
//! Devices that this kernel or machine does not have are skipped by name. All are there in the emulated machine of
//! `make test-devices`, which writes `docs/devices.md` from the rows that these tests print.

#[path = "../common/mod.rs"]
mod common;

mod reports;
mod rig;
mod run;
mod stacks;

use std::fs;

use packet_traits::attach::XdpMode::{self, Generic, Native};
use packet_traits_lab::{Family, KernelFeature, NetkitMode, TunKind, kernel_has_for, skipped};

use rig::with_rig;
use run::{
    Expected::{self, Kept, NotAttached, NotSet},
    Place::{self, Both, Lower, Upper},
    check,
};
use stacks::{Made, NotMade, above};

const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];
const BOTH: &[Family] = &Family::BOTH;

/// Runs traffic over a device with XDP in these places.
fn test(
    name: &'static str,
    make: impl FnOnce() -> Made + Send + 'static,
    cases: &'static [(Place, XdpMode, Expected)],
) {
    if !common::enabled() {
        return;
    }
    let done = with_rig(move |rig| {
        let stack = match make() {
            Ok(stack) => stack,
            Err(NotMade::Missing(reason)) => return Err(reason),
            Err(NotMade::Failed(reason)) => panic!("cannot make {name}: {reason}"),
        };
        for (place, mode, expected) in cases {
            let seen = stack.run(rig, *place, *mode);
            check(rig, name, &stack, *place, *mode, *expected, &seen);
        }
        Ok(())
    });
    match done {
        Ok(()) => drop(kernel_has_for(KernelFeature::NetfilterLinks, "netfilter's stages")),
        Err(reason) => {
            println!("device-skipped\t{name}\t{reason}");
            skipped(format_args!("{name}: {reason}"));
        }
    }
}

/// Over a veth, with XDP below in both modes, and above in generic mode.
fn over_veth(name: &'static str, families: &'static [Family], commands: &'static str, cases: Cases) {
    test(name, move || above(stacks::veth()?, families, commands), cases);
}

const VLAN: &str = "link add link LOWER name up0 mtu 1400 type vlan id 5";

type Cases = &'static [(Place, XdpMode, Expected)];

/// All is kept, wherever XDP is.
const ALL_KEPT: Cases = &[(Lower, Native, Kept), (Lower, Generic, Kept), (Upper, Generic, Kept), (Both, Native, Kept)];

/// Why XDP is not in the driver.
const NO_NATIVE: Expected = NotAttached("the driver has no native XDP");

#[test]
fn veth() {
    test("veth", stacks::veth, &[(Lower, Native, Kept), (Lower, Generic, Kept)]);
}

/// A pair of network cards, and a VLAN on them, whose tag the card may take off.
fn nic(driver: &'static str, native: Expected) {
    let cases = move |native| -> Cases { Box::leak(Box::new([(Lower, Native, native), (Lower, Generic, Kept)])) };
    test(driver, move || stacks::nic(driver), cases(native));
    let name: &'static str = Box::leak(format!("VLAN over {driver}").into_boxed_str());
    test(name, move || above(stacks::nic(driver)?, BOTH, VLAN), cases(native));
}

#[test]
fn virtio_net() {
    nic("virtio_net", Kept);
}

#[test]
fn vmxnet3() {
    nic("vmxnet3", NotSet("the driver gives native XDP no metadata"));
}

#[test]
fn e1000e() {
    nic("e1000e", NO_NATIVE);
}

#[test]
fn igb() {
    nic("igb", Kept);
}

#[test]
fn tun() {
    test("tun", || stacks::tun(TunKind::Tun, false), &[(Lower, Native, NO_NATIVE), (Lower, Generic, Kept)]);
}

#[test]
fn tun_with_napi() {
    test("tun, NAPI", || stacks::tun(TunKind::Tun, true), &[(Lower, Native, NO_NATIVE), (Lower, Generic, Kept)]);
}

/// The running kernel's: nothing else shows what `tun_build_skb` (drivers/net/tun.c) does.
fn kernel_version() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().expect("a number"));
    (numbers.next().expect("a version"), numbers.next().expect("a minor version"))
}

fn tap_device(name: &'static str, napi: bool) {
    const NOT_YET: Expected = NotSet("before Linux 6.15 the driver gives native XDP no metadata");
    let cases: Cases = if kernel_version() >= (6, 15) {
        &[(Lower, Native, Kept), (Lower, Generic, Kept)]
    } else {
        &[(Lower, Native, NOT_YET), (Lower, Generic, Kept)]
    };
    test(name, move || stacks::tun(TunKind::Tap, napi), cases);
}

#[test]
fn tap() {
    tap_device("tap", false);
}

#[test]
fn tap_with_napi() {
    tap_device("tap, NAPI", true);
}

#[test]
fn netkit_l2() {
    test("netkit, L2", || stacks::netkit(NetkitMode::L2), &[(Lower, Native, NO_NATIVE), (Lower, Generic, Kept)]);
}

#[test]
fn netkit_l3() {
    test("netkit, L3", || stacks::netkit(NetkitMode::L3), &[(Lower, Native, NO_NATIVE), (Lower, Generic, Kept)]);
}

#[test]
fn forwarded_to_netkit_l2() {
    test("netkit, L2, forwarded to", || stacks::forwarded_to_netkit(NetkitMode::L2), ALL_KEPT);
}

#[test]
fn forwarded_to_netkit_l3() {
    test("netkit, L3, forwarded to", || stacks::forwarded_to_netkit(NetkitMode::L3), ALL_KEPT);
}

#[test]
fn vlan() {
    over_veth("VLAN", BOTH, VLAN, ALL_KEPT);
}

#[test]
fn qinq() {
    let commands = "link add link LOWER name outer0 type vlan proto 802.1ad id 5
        link set outer0 up
        link add link outer0 name up0 mtu 1400 type vlan id 6";
    over_veth("QinQ", BOTH, commands, ALL_KEPT);
}

#[test]
fn bond() {
    let commands = "link add up0 type bond mode active-backup
        link set LOWER down
        link set LOWER master up0";
    over_veth("bond", BOTH, commands, ALL_KEPT);
    // the bond has its own ports run the program
    over_veth("bond", BOTH, commands, &[(Upper, Native, Kept)]);
}

#[test]
fn bridge() {
    over_veth("bridge", BOTH, "link add up0 type bridge\nlink set LOWER master up0", ALL_KEPT);
}

#[test]
fn macvlan() {
    over_veth("macvlan", BOTH, "link add link LOWER name up0 type macvlan mode bridge", ALL_KEPT);
}

#[test]
fn ipvlan_l2() {
    over_veth("ipvlan, L2", BOTH, "link add link LOWER name up0 type ipvlan mode l2", ALL_KEPT);
}

#[test]
fn ipvlan_l3() {
    test("ipvlan, L3", || stacks::ipvlan_l3(stacks::veth()?), ALL_KEPT);
}

#[test]
fn vxlan() {
    let commands = "link add up0 type vxlan id 77 dev LOWER local LOCAL remote REMOTE dstport 4789 nolearning udpcsum";
    over_veth("VXLAN", BOTH, commands, ALL_KEPT);
}

#[test]
fn geneve() {
    over_veth("Geneve", BOTH, "link add up0 type geneve id 77 remote REMOTE", ALL_KEPT);
}

#[test]
fn gre() {
    over_veth("GRE", BOTH, "link add up0 type gre local LOCAL remote REMOTE", ALL_KEPT);
}

#[test]
fn gretap() {
    over_veth("GRE, Ethernet", BOTH, "link add up0 type gretap local LOCAL remote REMOTE", ALL_KEPT);
}

#[test]
fn ipip() {
    over_veth("IPIP", V4, "link add up0 type ipip local LOCAL remote REMOTE", ALL_KEPT);
}

#[test]
fn sit() {
    over_veth("SIT", V6, "link add up0 type sit local LOCAL remote REMOTE", ALL_KEPT);
}

#[test]
fn wireguard() {
    test("WireGuard", || stacks::wireguard(stacks::veth()?), ALL_KEPT);
}
