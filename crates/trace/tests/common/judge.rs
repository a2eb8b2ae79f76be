//! Another XDP program, and packets with its known verdict on each.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::os::fd::{AsFd, OwnedFd};

use packet_traits::{
    KeyType, Merge, Region,
    attach::{Attachment, XdpMode, xdp},
    bind::LoadedObject,
    registry::Registry,
};
use packet_traits_lab::{End, Family, send_numbered, udp_socket};

use super::common::load_object;

/// The name of the program, as the kernel cuts it.
pub const NAME: &str = "judge_by_destin";

/// Ports by what becomes of packets to them; all others pass.
pub const DROP: u16 = 7001;
pub const ABORTED: u16 = 7002;
pub const REDIRECT: u16 = 7003;
pub const TX: u16 = 7004;
pub const REDIRECT_FAILS: u16 = 7005;
pub const INVALID: u16 = 7006;
pub const PASS: u16 = 7007;

/// How many of 1,000 packets go to each.
pub const PACKETS: [(u16, u64); 7] =
    [(DROP, 137), (ABORTED, 61), (REDIRECT, 89), (TX, 40), (REDIRECT_FAILS, 23), (INVALID, 11), (PASS, 639)];

pub struct Judge {
    pub object: LoadedObject,
    pub program: OwnedFd,
}

/// Loads the program.
pub fn load(registry: &Registry) -> Judge {
    let merge = if registry.layout().region_len(Region::Packet) == 0 { Merge::Block } else { Merge::KeepFirst };
    let object = load_object(registry, "judge.bpf.c", &[("packet_id", KeyType::U64, merge)]);
    let program = object.program("judge_by_destination_port").unwrap().as_fd().try_clone_to_owned().unwrap();
    Judge { object, program }
}

impl Judge {
    /// Attaches it to an interface.
    pub fn attach(&self, end: &End, mode: XdpMode) -> Attachment {
        end.netns().enter(|| xdp::attach(self.program.as_fd(), end.ifindex(), mode)).unwrap().0
    }
}

/// Sends the 1,000 packets, mixed; `passed` is called after each that passes, with its number.
pub fn send(from: &End, to: &End, mut passed: impl FnMut(u64)) {
    let socket = udp_socket(from.netns(), from.addr(Family::V4, 4000)).unwrap();
    let mut ports: Vec<u16> = PACKETS.iter().flat_map(|(port, count)| (0..*count).map(|_| *port)).collect();
    // 7 and 1,000 have no common divisor: each packet once
    ports = (0..ports.len()).map(|place| ports[place * 7 % ports.len()]).collect();
    for (number, port) in (0..).zip(ports) {
        send_numbered(&socket, to.addr(Family::V4, port), number..number + 1, 64).unwrap();
        if port == PASS {
            passed(number);
        }
    }
}
