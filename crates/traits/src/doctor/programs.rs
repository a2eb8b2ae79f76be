//! Types of programs: each is loaded, attached where it belongs, and detached.

use std::{
    ffi::CStr,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use libbpf_sys::{
    BPF_CGROUP_GETSOCKOPT, BPF_CGROUP_INET_INGRESS, BPF_CGROUP_INET_SOCK_RELEASE, BPF_CGROUP_SETSOCKOPT,
    BPF_CGROUP_SOCK_OPS, BPF_F_XDP_HAS_FRAGS, BPF_MAP_TYPE_CPUMAP, BPF_MAP_TYPE_DEVMAP, BPF_MAP_TYPE_SOCKMAP,
    BPF_NETFILTER, BPF_PROG_TYPE_CGROUP_SKB, BPF_PROG_TYPE_CGROUP_SOCK, BPF_PROG_TYPE_CGROUP_SOCKOPT,
    BPF_PROG_TYPE_LWT_IN, BPF_PROG_TYPE_NETFILTER, BPF_PROG_TYPE_SCHED_CLS, BPF_PROG_TYPE_SK_REUSEPORT,
    BPF_PROG_TYPE_SK_SKB, BPF_PROG_TYPE_SOCK_OPS, BPF_PROG_TYPE_SOCKET_FILTER, BPF_PROG_TYPE_TRACING,
    BPF_PROG_TYPE_XDP, BPF_SK_SKB_STREAM_VERDICT, BPF_TRACE_RAW_TP, BPF_XDP, BPF_XDP_CPUMAP, BPF_XDP_DEVMAP,
    bpf_cpumap_val, bpf_devmap_val,
};

use super::{Finding, Ground, Probe, maps};
use crate::{
    attach::{
        CgroupHook, Direction, Hook, NetfilterFamily, NetfilterHook, NetfilterOptions, RouteSocket, TcxOptions,
        XdpMode, cgroup, netfilter, redirect_map, socket, tcx, tracing, xdp,
    },
    insn::{Source, words},
};

/// Verdicts by which a packet goes on.
const XDP_PASS: i32 = 2;
const TC_ACT_UNSPEC: i32 = -1;
const NF_ACCEPT: i32 = 1;
const ALLOW: i32 = 1;
const BPF_OK: i32 = 0;
const SK_PASS: i32 = 1;
/// As many bytes as there are.
const WHOLE: i32 = -1;

/// For tests of networks (RFC 2544), so that nothing else is sent there.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// A tracepoint that `traits trace` needs, and its type in BTF.
const TRACEPOINT: &CStr = c"kfree_skb";

/// Loads and attaches a program of each type that traits are used in.
///
/// Everything is detached before it returns. The calling thread must be in the namespace of `ground`.
pub fn programs(ground: &Ground) -> Vec<Finding> {
    let tried = Finding::tried::<(), String>;
    let mut found = vec![
        tried(Probe::Xdp(XdpMode::Native), at_xdp(ground, XdpMode::Native, 0)),
        tried(Probe::Xdp(XdpMode::Generic), at_xdp(ground, XdpMode::Generic, 0)),
        tried(Probe::XdpFrags, at_xdp(ground, XdpMode::Native, BPF_F_XDP_HAS_FRAGS)),
        tried(Probe::Devmap, in_device_map(ground)),
        tried(Probe::Cpumap, in_cpu_map()),
        tried(Probe::Tcx, at_tcx(ground)),
        tried(Probe::Clsact, at_clsact(ground)),
        tried(Probe::Netfilter, at_netfilter()),
    ];
    found.extend(CGROUP_PROGRAMS.iter().map(|program| program.finding(ground.cgroup.as_deref())));
    found.extend([
        tried(Probe::SocketFilter, at_socket()),
        tried(Probe::SkSkb, in_socket_map()),
        tried(Probe::SkReuseport, in_reuseport_group()),
        tried(Probe::Lwt, at_route(ground)),
        tried(Probe::TpBtf, at_tracepoint()),
        tried(Probe::Fentry, at_function()),
    ]);
    found
}

fn at_xdp(ground: &Ground, mode: XdpMode, flags: u32) -> Result<(), String> {
    let program = Source { flags, ..Source::returning(BPF_PROG_TYPE_XDP, XDP_PASS).at(BPF_XDP) }.load()?;
    xdp::attach(program.as_fd(), ground.ifindex, mode).map(drop).map_err(|error| error.to_string())
}

fn in_device_map(ground: &Ground) -> Result<(), String> {
    let program = Source::returning(BPF_PROG_TYPE_XDP, XDP_PASS).at(BPF_XDP_DEVMAP).load()?;
    let map = maps::create(BPF_MAP_TYPE_DEVMAP, 4, size_of::<bpf_devmap_val>() as u32, 1, 0)?;
    redirect_map::set_device(map.as_fd(), 0, ground.ifindex, Some(program.as_fd())).map_err(|error| error.to_string())
}

fn in_cpu_map() -> Result<(), String> {
    const QUEUE: u32 = 64;
    let program = Source::returning(BPF_PROG_TYPE_XDP, XDP_PASS).at(BPF_XDP_CPUMAP).load()?;
    let map = maps::create(BPF_MAP_TYPE_CPUMAP, 4, size_of::<bpf_cpumap_val>() as u32, 1, 0)?;
    redirect_map::set_cpu(map.as_fd(), 0, QUEUE, Some(program.as_fd())).map_err(|error| error.to_string())
}

fn tc_program() -> Result<OwnedFd, String> {
    Source::returning(BPF_PROG_TYPE_SCHED_CLS, TC_ACT_UNSPEC).load()
}

fn at_tcx(ground: &Ground) -> Result<(), String> {
    let program = tc_program()?;
    let options = TcxOptions::new(Direction::Ingress);
    let attached = tcx::attach(program.as_fd(), ground.ifindex, &options).map_err(|error| error.to_string())?;
    match attached.info().hook {
        Hook::Tcx(_) => Ok(()),
        _ => Err("this kernel has no TCX".to_owned()),
    }
}

fn at_clsact(ground: &Ground) -> Result<(), String> {
    let program = tc_program()?;
    let options = TcxOptions::new(Direction::Ingress).force_clsact(true);
    tcx::attach(program.as_fd(), ground.ifindex, &options).map(drop).map_err(|error| error.to_string())
}

fn at_netfilter() -> Result<(), String> {
    let program = Source::returning(BPF_PROG_TYPE_NETFILTER, NF_ACCEPT).at(BPF_NETFILTER).load()?;
    for family in [NetfilterFamily::Ipv4, NetfilterFamily::Ipv6] {
        let options = NetfilterOptions::new(family, NetfilterHook::Input);
        netfilter::attach(program.as_fd(), &options).map(drop).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// A program of a cgroup.
struct CgroupProgram {
    probe: Probe,
    hook: CgroupHook,
    type_: libbpf_sys::bpf_prog_type,
    attach_type: libbpf_sys::bpf_attach_type,
}

const CGROUP_PROGRAMS: [CgroupProgram; 5] = [
    CgroupProgram {
        probe: Probe::CgroupSkb,
        hook: CgroupHook::Ingress,
        type_: BPF_PROG_TYPE_CGROUP_SKB,
        attach_type: BPF_CGROUP_INET_INGRESS,
    },
    CgroupProgram {
        probe: Probe::CgroupGetSockOpt,
        hook: CgroupHook::GetSockOpt,
        type_: BPF_PROG_TYPE_CGROUP_SOCKOPT,
        attach_type: BPF_CGROUP_GETSOCKOPT,
    },
    CgroupProgram {
        probe: Probe::CgroupSetSockOpt,
        hook: CgroupHook::SetSockOpt,
        type_: BPF_PROG_TYPE_CGROUP_SOCKOPT,
        attach_type: BPF_CGROUP_SETSOCKOPT,
    },
    CgroupProgram {
        probe: Probe::CgroupSockRelease,
        hook: CgroupHook::SockRelease,
        type_: BPF_PROG_TYPE_CGROUP_SOCK,
        attach_type: BPF_CGROUP_INET_SOCK_RELEASE,
    },
    CgroupProgram {
        probe: Probe::SockOps,
        hook: CgroupHook::SockOps,
        type_: BPF_PROG_TYPE_SOCK_OPS,
        attach_type: BPF_CGROUP_SOCK_OPS,
    },
];

impl CgroupProgram {
    fn finding(&self, cgroup: Option<&Path>) -> Finding {
        match cgroup {
            Some(cgroup) => Finding::tried(self.probe, self.attach(cgroup)),
            None => Finding::untried(self.probe, "there is no cgroup to try it in"),
        }
    }

    fn attach(&self, cgroup: &Path) -> Result<(), String> {
        let program = Source::returning(self.type_, ALLOW).at(self.attach_type).load()?;
        cgroup::attach_path(program.as_fd(), cgroup, self.hook).map(drop).map_err(|error| error.to_string())
    }
}

fn udp_socket() -> Result<UdpSocket, String> {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| format!("making a UDP socket: {error}"))
}

fn at_socket() -> Result<(), String> {
    let program = Source::returning(BPF_PROG_TYPE_SOCKET_FILTER, WHOLE).load()?;
    socket::attach(program.as_fd(), udp_socket()?.as_fd()).map(drop).map_err(|error| error.to_string())
}

fn in_socket_map() -> Result<(), String> {
    let program = Source::returning(BPF_PROG_TYPE_SK_SKB, SK_PASS).at(BPF_SK_SKB_STREAM_VERDICT).load()?;
    let map = maps::create(BPF_MAP_TYPE_SOCKMAP, 4, 4, 1, 0)?;
    // SAFETY: takes descriptors and numbers. The program is detached when the map goes.
    let result =
        unsafe { libbpf_sys::bpf_prog_attach(program.as_raw_fd(), map.as_raw_fd(), BPF_SK_SKB_STREAM_VERDICT, 0) };
    kernel(result, "the socket map does not take the program")
}

fn in_reuseport_group() -> Result<(), String> {
    const SO_ATTACH_REUSEPORT_EBPF: libc::c_int = 52; // include/uapi/asm-generic/socket.h
    let program = Source::returning(BPF_PROG_TYPE_SK_REUSEPORT, SK_PASS).load()?;
    // The option is only for sockets that share their port.
    let socket = crate::attach::udp_socket().map_err(|error| format!("making a UDP socket: {error}"))?;
    let set = |option, value| super::sockets::set_option(socket.as_fd(), libc::SOL_SOCKET, option, value);
    set(libc::SO_REUSEPORT, 1)
        .and_then(|()| set(SO_ATTACH_REUSEPORT_EBPF, program.as_raw_fd()))
        .map_err(|errno| format!("the socket does not take the program ({})", words(errno)))
}

fn at_route(ground: &Ground) -> Result<(), String> {
    let program = Source::returning(BPF_PROG_TYPE_LWT_IN, BPF_OK).load()?;
    let routes = RouteSocket::open().map_err(|error| format!("opening a route netlink socket: {error}"))?;
    routes
        .add_route_with_program(NOWHERE, ground.ifindex, program.as_fd())
        .and_then(|()| routes.delete_route(NOWHERE, ground.ifindex))
        .map_err(|error| format!("a route does not take the program ({}; {})", words(error.errno), error.message))
}

fn at_tracepoint() -> Result<(), String> {
    // SAFETY: takes a NUL-terminated name and a number. libbpf knows how BTF names tracepoints.
    let btf_id = unsafe { libbpf_sys::libbpf_find_vmlinux_btf_id(TRACEPOINT.as_ptr(), BPF_TRACE_RAW_TP) };
    let Ok(btf_id) = u32::try_from(btf_id) else {
        return Err(format!("BTF has no tracepoint kfree_skb ({})", words(-btf_id)));
    };
    let source = Source::returning(BPF_PROG_TYPE_TRACING, 0).at(BPF_TRACE_RAW_TP);
    let program = Source { btf_id, ..source }.load()?;
    tracing::attach(program.as_fd()).map(drop).map_err(|error| error.to_string())
}

fn at_function() -> Result<(), String> {
    tracing::try_functions().map_err(|errno| format!("no program runs at a function here ({})", words(errno)))
}

fn kernel(result: libc::c_int, what: &str) -> Result<(), String> {
    if result < 0 { Err(format!("{what} ({})", words(-result))) } else { Ok(()) }
}
