//! Attaching loaded programs to the hooks of the network stack.
//!
//! Every attach function takes a [`BorrowedFd`](std::os::fd::BorrowedFd) of a loaded program (so that
//! `program.as_fd()` of libbpf-rs works) and returns one type, [`Attachment`]: dropping it detaches the program,
//! [`Attachment::pin`] makes it outlive the process.
//!
//! | hook | function | kernel | without it |
//! |---|---|---|---|
//! | XDP, native or generic | [`xdp::attach`] | 5.9 (links) | – |
//! | TC ingress and egress | [`tcx::attach`] | 6.6 (TCX) | falls back to a clsact filter |
//! | netfilter, IPv4 and IPv6 | [`netfilter::attach`] | 6.4 | – |
//! | cgroup ingress, egress, sockops, socket options, sock_release | [`cgroup::attach`] | 5.7 (links) | – |
//! | one socket's filter | [`socket::attach`] | 3.19 | – |
//! | tracepoint with BTF arguments (`tp_btf`) | [`tracing::attach`] | 5.5 | – |
//! | function of the kernel or of a BPF program (`fentry`, `fexit`) | [`tracing::attach_function`] | 5.5, where it is not switched off | – |
//! | entry of a DEVMAP or CPUMAP | [`redirect_map`] | 5.8, 5.9 | – |
//!
//! An interface index, and the namespace a netfilter program is attached in, are those of the network namespace of the
//! **calling thread**. To attach in another namespace, `setns` a thread into it and call from there; the returned
//! [`Attachment`] may then be moved to, and dropped on, any thread.
//!
//! ```no_run
//! use std::os::fd::AsFd;
//! use packet_traits::attach::{tcx, xdp, Direction, TcxOptions, XdpMode};
//!
//! # fn example(programs: &[libbpf_rs::Program], ifindex: u32) -> Result<(), packet_traits::attach::AttachError> {
//! let (mut entry, mode) = xdp::attach(programs[0].as_fd(), ifindex, XdpMode::Auto)?;
//! println!("running in {mode} mode");
//! let ingress = tcx::attach(programs[1].as_fd(), ifindex, &TcxOptions::new(Direction::Ingress))?;
//! entry.pin("/sys/fs/bpf/entry")?; // stays when the process ends; `ingress` does not
//! # drop(ingress);
//! # Ok(())
//! # }
//! ```

mod attachment;
pub mod cgroup;
mod clsact;
mod devices;
mod error;
mod feature;
mod hook;
mod link;
mod link_layer;
pub mod netfilter;
mod program;
pub mod redirect_map;
mod rtnetlink;
pub mod socket;
mod target;
pub mod tcx;
pub mod tracing;
pub mod xdp;

pub use attachment::{Attachment, AttachmentInfo};
pub use devices::{Device, LOOPBACK, LinkChanges, NATIVE_AT_VETH, devices, is_veth, loses_redirects, namespace_number};
pub use error::{AttachError, Attempt};
pub use feature::Feature;
pub use hook::{CgroupHook, Direction, Hook};
pub use link_layer::LinkLayer;
pub use netfilter::{NetfilterFamily, NetfilterHook, NetfilterOptions};
pub use target::{Target, interface_index, interface_name};
pub use tcx::{Position, TcxOptions};
pub use xdp::XdpMode;

pub(crate) use clsact::KeptFilter;
pub(crate) use feature::kernel_release;
pub(crate) use program::{Program, type_name};
pub(crate) use rtnetlink::RouteSocket;
pub(crate) use target::{namespace_identity, udp_socket};
