//! A laboratory for packets: network namespaces, links and traffic for the demo and the kernel tests.
//!
//! Nothing here has a name outside the process that made it. A [`Netns`] is held by a file descriptor and has no entry
//! in `/run/netns`; a [`Bpffs`] has no mount point; interfaces live inside those namespaces only. When the process
//! ends, by return, panic or SIGKILL, the kernel closes the descriptors and takes everything down, so there is no
//! clean-up code that could be skipped, and tests that run in parallel cannot meet. The one exception is a [`Cgroup`],
//! which must have a name; what a killed process leaves of it is empty, and the next process removes it.
//!
//! | file | what it holds |
//! |---|---|
//! | `netns` | the namespace: entering it, running commands in it, its sysctls |
//! | `device` | an interface of a namespace: index, counters, offload switches, sysfs attributes |
//! | `end` | one side of a link: namespace, interface, addresses |
//! | `veth`, `vxlan`, `tun`, `netkit`, `nic` | links between two namespaces |
//! | `topology` | ready-made networks: [`Pair`], [`Chain`], [`Overlay`] |
//! | `udp`, `tcp`, `packet_socket` | traffic, with a timeout on every receive |
//! | `af_xdp` | a socket that receives past the stack (feature `af-xdp`) |
//! | `frame` | crafted frames, with right checksums |
//! | `bpffs` | a bpffs that nobody else can see |
//! | `cgroup` | a cgroup: code and commands whose sockets belong to it |
//! | `clang` | the compilers that tests compile BPF programs with |
//!
//! ```no_run
//! use packet_traits_lab::{Family, Pair, UdpEcho, recv_numbered, send_numbered, udp_socket};
//!
//! let pair = Pair::new()?;
//! let echo = UdpEcho::start(pair.rx().netns(), pair.rx().addr(Family::V4, 7))?;
//! let socket = udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0))?;
//! send_numbered(&socket, echo.addr(), 0..3, 64)?;
//! assert_eq!(recv_numbered(&socket)?, 0);
//! # Ok::<(), packet_traits_lab::Error>(())
//! ```
//!
//! Everything but [`frame`] and the compilers needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW) and the `ip` command of iproute2.

#[cfg(feature = "af-xdp")]
mod af_xdp;
mod bpffs;
mod cgroup;
mod clang;
mod device;
mod end;
mod error;
pub mod frame;
mod netkit;
mod netns;
mod nic;
mod packet_socket;
mod requirements;
mod sys;
mod tcp;
mod topology;
mod tun;
mod udp;
mod veth;
mod vxlan;

#[cfg(feature = "af-xdp")]
pub use af_xdp::{AfXdp, FRAMES as AF_XDP_FRAMES, Frame as AfXdpFrame};
pub use bpffs::Bpffs;
pub use cgroup::Cgroup;
pub use clang::{clang, clang_version, clangs, newest_clang};
pub use device::{Feature, LinkStats};
pub use end::{End, EndSpec, Family};
pub use error::{Error, Result};
pub use netkit::{NetkitMode, NetkitPair};
pub use netns::Netns;
pub use nic::NicPair;
pub use packet_socket::{Captured, PacketSocket, send_frame, send_together};
pub use packet_traits_core::Mac;
pub use requirements::{
    KernelFeature, kernel_has, kernel_has_for, kernel_tests_enabled, left_out, require_root, skipped,
};
pub use tcp::{SinkEvent, TcpSink, tcp_transfer};
pub use topology::{Chain, Containers, Overlay, Pair};
pub use tun::{TunKind, TunPair};
pub use udp::{UdpEcho, number_of, recv_numbered, send_many_numbered, send_numbered, udp_socket};
pub use veth::{VethOptions, VethPair};
pub use vxlan::{VXLAN_PORT, VxlanOptions, VxlanPair};

use std::time::Duration;

/// How long a blocking receive of this crate waits before it fails: 5 seconds, long enough for a loaded machine.
pub const RECV_TIMEOUT: Duration = Duration::from_secs(5);
