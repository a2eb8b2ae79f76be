//! The questions: their names, what an answer means to a user of traits, and what to do about a bad one.
//!
//! Versions are named in advice only. No answer depends on one.

use crate::attach::XdpMode;

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Subject {
    /// The kernel, the process and the file systems.
    Host,
    /// Types of BPF programs: loaded and attached.
    Programs,
    /// Ways to the fields of a packet.
    Reading,
    /// Maps and helpers.
    Maps,
    /// Options of sockets.
    Sockets,
    /// What a real packet keeps on its way through two namespaces.
    Path,
    /// One of the host's interfaces.
    Interface,
}

impl Subject {
    /// All, in the order in which they are shown.
    pub const ALL: [Subject; 7] = [
        Subject::Host,
        Subject::Programs,
        Subject::Reading,
        Subject::Maps,
        Subject::Sockets,
        Subject::Path,
        Subject::Interface,
    ];

    /// `host`, `programs`, …
    pub fn name(self) -> &'static str {
        match self {
            Subject::Host => "host",
            Subject::Programs => "programs",
            Subject::Reading => "reading",
            Subject::Maps => "maps",
            Subject::Sockets => "sockets",
            Subject::Path => "path",
            Subject::Interface => "interface",
        }
    }
}

/// Where a packet's traits are looked for, on its way from XDP to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// A TC program at ingress.
    Tc,
    /// A netfilter program.
    Netfilter,
    /// A program of the receiver's cgroup.
    Cgroup,
    /// The filter of the receiver's socket.
    SocketFilter,
    /// The application, by a socket option.
    SocketOption,
}

impl Stage {
    /// All, in the order in which a packet meets them.
    pub const ALL: [Stage; 5] = [Stage::Tc, Stage::Netfilter, Stage::Cgroup, Stage::SocketFilter, Stage::SocketOption];
}

/// A question that the doctor asks by trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Probe {
    /// Capabilities of this process.
    Privileges,
    /// Type information of the running kernel.
    Btf,
    /// What lockdown forbids.
    Lockdown,
    /// BPF programs become machine code.
    Jit,
    /// The BPF file system.
    Bpffs,
    /// A registry on it.
    Registry,
    /// Borders on links to namespaces of other users.
    Borders,
    /// The cgroup v2 tree.
    Cgroup,
    /// The compiler that policies need.
    Clang,
    /// Network namespaces, and a link between two.
    Namespaces,

    /// XDP in this mode ([`XdpMode::Auto`] is not asked for).
    Xdp(XdpMode),
    /// XDP programs that see packets in several fragments.
    XdpFrags,
    /// XDP programs in the entries of a DEVMAP.
    Devmap,
    /// XDP programs in the entries of a CPUMAP.
    Cpumap,
    /// TC programs held by a link.
    Tcx,
    /// TC programs as filters of a clsact qdisc.
    Clsact,
    /// Netfilter programs.
    Netfilter,
    /// `cgroup_skb` programs.
    CgroupSkb,
    /// `cgroup/getsockopt` programs.
    CgroupGetSockOpt,
    /// `cgroup/setsockopt` programs.
    CgroupSetSockOpt,
    /// `cgroup/sock_release` programs.
    CgroupSockRelease,
    /// `sockops` programs.
    SockOps,
    /// Programs as the filter of a socket.
    SocketFilter,
    /// Programs of a socket map.
    SkSkb,
    /// Programs that choose the socket of a SO_REUSEPORT group.
    SkReuseport,
    /// Programs of a route.
    Lwt,
    /// Programs at tracepoints.
    TpBtf,
    /// Programs at functions of the kernel.
    Fentry,

    /// kfunc `bpf_cast_to_kern_ctx`.
    CastToKernCtx,
    /// kfunc `bpf_rdonly_cast`.
    RdonlyCast,
    /// Helper `bpf_probe_read_kernel` on the program's context.
    ProbeReadContext,
    /// kfunc `bpf_dynptr_from_skb_meta`.
    SkbMetaDynptr,

    /// Ring buffers.
    RingBuffer,
    /// Arrays that a process can map.
    MmapableArray,
    /// Storage of a socket, which accepted sockets get a copy of.
    SkStorage,
    /// Helper `bpf_loop`.
    Loop,

    /// Socket option `SO_RCVMARK`.
    RcvMark,
    /// The same for a process without privileges.
    RcvMarkUnprivileged,
    /// Socket option `SO_RCVPRIORITY`.
    RcvPriority,
    /// AF_XDP sockets.
    AfXdp,

    /// Bytes of metadata that XDP can put in front of a packet.
    Metadata(XdpMode),
    /// Bytes in front of a packet that XDP can use.
    Headroom(XdpMode),
    /// What XDP sets is read at a later stage.
    Reads(XdpMode, Stage),

    /// The interface's driver.
    Driver,
    /// An XDP program that is attached.
    XdpAttached,
    /// What the driver says it does of XDP.
    XdpFeatures,
    /// What the device tells XDP of a packet.
    Hints,
    /// Merging of received packets.
    Gro,
    /// Merging of received packets in the device, by which they are not what was sent.
    Lro,
}

impl Probe {
    /// Of each of these, one must work for a trait to get from XDP to a later hook.
    pub(super) const BASICS: [&'static [Probe]; 5] = [
        &[Probe::Privileges],
        &[Probe::Btf],
        &[Probe::Xdp(XdpMode::Native), Probe::Xdp(XdpMode::Generic)],
        &[Probe::Tcx, Probe::Clsact],
        &[Probe::Reads(XdpMode::Native, Stage::Tc), Probe::Reads(XdpMode::Generic, Stage::Tc)],
    ];

    /// All, in the order in which they are shown.
    pub fn all() -> impl Iterator<Item = Probe> {
        use Probe::*;
        const MODES: [XdpMode; 2] = [XdpMode::Native, XdpMode::Generic];
        let host = [Privileges, Btf, Lockdown, Jit, Bpffs, Registry, Borders, Cgroup, Clang, Namespaces];
        let programs = [
            XdpFrags,
            Devmap,
            Cpumap,
            Tcx,
            Clsact,
            Netfilter,
            CgroupSkb,
            CgroupGetSockOpt,
            CgroupSetSockOpt,
            CgroupSockRelease,
            SockOps,
            SocketFilter,
            SkSkb,
            SkReuseport,
            Lwt,
            TpBtf,
            Fentry,
        ];
        let reading = [CastToKernCtx, RdonlyCast, ProbeReadContext, SkbMetaDynptr];
        let maps = [RingBuffer, MmapableArray, SkStorage, Loop];
        let sockets = [RcvMark, RcvMarkUnprivileged, RcvPriority, AfXdp];
        let path = MODES.into_iter().flat_map(|mode| {
            [Metadata(mode), Headroom(mode)].into_iter().chain(Stage::ALL.map(|stage| Reads(mode, stage)))
        });
        let interface = [Driver, XdpAttached, XdpFeatures, Hints, Gro, Lro];
        host.into_iter()
            .chain(MODES.map(Xdp))
            .chain(programs)
            .chain(reading)
            .chain(maps)
            .chain(sockets)
            .chain(path)
            .chain(interface)
    }

    /// What it is about.
    pub fn subject(self) -> Subject {
        use Probe::*;
        match self {
            Privileges | Btf | Lockdown | Jit | Bpffs | Registry | Borders | Cgroup | Clang | Namespaces => {
                Subject::Host
            }
            Xdp(_) | XdpFrags | Devmap | Cpumap | Tcx | Clsact | Netfilter | CgroupSkb | CgroupGetSockOpt
            | CgroupSetSockOpt | CgroupSockRelease | SockOps | SocketFilter | SkSkb | SkReuseport | Lwt | TpBtf
            | Fentry => Subject::Programs,
            CastToKernCtx | RdonlyCast | ProbeReadContext | SkbMetaDynptr => Subject::Reading,
            RingBuffer | MmapableArray | SkStorage | Loop => Subject::Maps,
            RcvMark | RcvMarkUnprivileged | RcvPriority | AfXdp => Subject::Sockets,
            Metadata(_) | Headroom(_) | Reads(..) => Subject::Path,
            Driver | XdpAttached | XdpFeatures | Hints | Gro | Lro => Subject::Interface,
        }
    }

    /// A name for machines, which does not change.
    pub fn id(self) -> &'static str {
        use Probe::*;
        use XdpMode::Generic;
        match self {
            Privileges => "privileges",
            Btf => "btf",
            Lockdown => "lockdown",
            Jit => "jit",
            Bpffs => "bpffs",
            Registry => "registry",
            Borders => "borders",
            Cgroup => "cgroup",
            Clang => "clang",
            Namespaces => "namespaces",
            Xdp(Generic) => "xdp-generic",
            Xdp(_) => "xdp-native",
            XdpFrags => "xdp-frags",
            Devmap => "xdp-devmap",
            Cpumap => "xdp-cpumap",
            Tcx => "tcx",
            Clsact => "clsact",
            Netfilter => "netfilter",
            CgroupSkb => "cgroup-skb",
            CgroupGetSockOpt => "cgroup-getsockopt",
            CgroupSetSockOpt => "cgroup-setsockopt",
            CgroupSockRelease => "cgroup-sock-release",
            SockOps => "sockops",
            SocketFilter => "socket-filter",
            SkSkb => "sk-skb",
            SkReuseport => "sk-reuseport",
            Lwt => "lwt",
            TpBtf => "tp-btf",
            Fentry => "fentry",
            CastToKernCtx => "cast-to-kern-ctx",
            RdonlyCast => "rdonly-cast",
            ProbeReadContext => "probe-read-context",
            SkbMetaDynptr => "skb-meta-dynptr",
            RingBuffer => "ring-buffer",
            MmapableArray => "mmapable-array",
            SkStorage => "sk-storage",
            Loop => "loop",
            RcvMark => "rcvmark",
            RcvMarkUnprivileged => "rcvmark-unprivileged",
            RcvPriority => "rcvpriority",
            AfXdp => "af-xdp",
            Metadata(Generic) => "metadata-generic",
            Metadata(_) => "metadata-native",
            Headroom(Generic) => "headroom-generic",
            Headroom(_) => "headroom-native",
            Reads(Generic, Stage::Tc) => "tc-generic",
            Reads(_, Stage::Tc) => "tc-native",
            Reads(Generic, Stage::Netfilter) => "netfilter-generic",
            Reads(_, Stage::Netfilter) => "netfilter-native",
            Reads(Generic, Stage::Cgroup) => "cgroup-generic",
            Reads(_, Stage::Cgroup) => "cgroup-native",
            Reads(Generic, Stage::SocketFilter) => "filter-generic",
            Reads(_, Stage::SocketFilter) => "filter-native",
            Reads(Generic, Stage::SocketOption) => "socket-generic",
            Reads(_, Stage::SocketOption) => "socket-native",
            Driver => "driver",
            XdpAttached => "xdp-attached",
            XdpFeatures => "xdp-features",
            Hints => "hints",
            Gro => "gro",
            Lro => "lro",
        }
    }

    /// The unit of [`Finding::number`](super::Finding::number); empty if there is none.
    pub fn unit(self) -> &'static str {
        match self {
            Probe::Metadata(_) | Probe::Headroom(_) | Probe::Registry => "bytes",
            Probe::Reads(..) => "packets",
            Probe::XdpAttached => "program id",
            _ => "",
        }
    }

    /// What it is good for.
    pub fn means(self) -> &'static str {
        use Probe::*;
        match self {
            Privileges => "loading and attaching programs",
            Btf => "programs find the fields of this kernel's packets",
            Lockdown => "programs may read the kernel's memory, as skb hooks must",
            Jit => "programs run as machine code",
            Bpffs => "registries and attached programs stay when the command ends",
            Registry => "keys and their places in a packet's metadata",
            Borders => "traits stay on this side of links to other users' namespaces",
            Cgroup => "traits at sockets: `traits sockets`, cgroup blocks of policies",
            Clang => "policies are compiled on this host",
            Namespaces => "the probes below run in two namespaces of their own",
            Xdp(XdpMode::Generic) => "XDP sets traits on any interface, more slowly",
            Xdp(_) => "XDP sets traits in the driver (here: of veth)",
            XdpFrags => "XDP on interfaces with a large MTU",
            Devmap => "traits of frames that XDP redirects to an interface",
            Cpumap => "traits of frames that XDP redirects to a CPU",
            Tcx => "TC programs held by a link: `traits up` of tc blocks",
            Clsact => "TC programs where there is no TCX",
            Netfilter => "netfilter blocks of policies",
            CgroupSkb => "traits of packets at the sockets of a cgroup",
            CgroupGetSockOpt => "applications read traits by socket options",
            CgroupSetSockOpt => "applications ask for traits, and set them",
            CgroupSockRelease => "slots of closed sockets are used again",
            SockOps => "traits of the SYN, for the accepted socket",
            SocketFilter => "traits in a socket's own filter, and in `iptables -m bpf`",
            SkSkb => "traits in programs of socket maps",
            SkReuseport => "`steer` blocks of policies",
            Lwt => "traits in programs of routes",
            TpBtf => "`traits trace` follows packets, and names drops",
            Fentry => "`traits trace` counts in other XDP programs",
            CastToKernCtx | RdonlyCast => "skb hooks read traits directly",
            ProbeReadContext => "skb hooks read traits by a helper, where the casts are missing",
            SkbMetaDynptr => "TC programs change traits of packets that are clones, without losing them",
            RingBuffer => "`log` of policies, `traits trace`",
            MmapableArray => "applications read datagrams' traits without a system call",
            SkStorage => "traits that belong to a socket, and to those accepted from it",
            Loop => "policies with long searches",
            RcvMark => "traits of each UDP datagram",
            RcvMarkUnprivileged => "traits of UDP datagrams for processes without CAP_NET_RAW",
            RcvPriority => "a second way to a datagram's traits",
            AfXdp => "traits in front of frames that go past the stack",
            Metadata(XdpMode::Generic) => "longest area in generic mode",
            Metadata(_) => "longest area in native mode (here: of veth)",
            Headroom(XdpMode::Generic) => "room for the area and for encapsulation, in generic mode",
            Headroom(_) => "room for the area and for encapsulation, in native mode (here: of veth)",
            Reads(_, Stage::Tc) => "TC reads what XDP set",
            Reads(_, Stage::Netfilter) => "netfilter reads what XDP set",
            Reads(_, Stage::Cgroup) => "the cgroup's program reads what XDP set",
            Reads(_, Stage::SocketFilter) => "the socket's filter reads what XDP set",
            Reads(_, Stage::SocketOption) => "the application reads what XDP set",
            Driver => "what runs the interface",
            XdpAttached => "an interface has room for one XDP program",
            XdpFeatures => "native mode, as the driver tells",
            Hints => "`hardware timestamp`, `hardware hash` and `hardware vlan` of policies",
            Gro => "packets are merged; `block` keys keep those apart that differ",
            Lro => "packets merged by the device; drivers refuse native XDP then",
        }
    }

    /// What to do if it does not work; empty if there is nothing to do.
    pub(super) fn next(self) -> &'static str {
        use Probe::*;
        match self {
            Privileges => "run as root, or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN",
            Btf => "use a kernel with CONFIG_DEBUG_INFO_BTF",
            Lockdown => "boot without lockdown=confidentiality; `integrity` is no obstacle",
            Jit => "`sysctl net.core.bpf_jit_enable=1`",
            Bpffs => "`mount -t bpf -o mode=0700 bpf /sys/fs/bpf`; `traits registry create` does that, too",
            Registry => "`traits registry create`",
            Borders => "`traits border attach --dev INTERFACE` (docs/security.md)",
            Cgroup => "`mount -t cgroup2 cgroup2 /sys/fs/cgroup`, or beside cgroup v1 at /sys/fs/cgroup/unified",
            Clang => {
                "install clang 14 or later and linux-libc-dev, or compile policies elsewhere with `traits compile`"
            }
            Namespaces => "run as root on the host; the probes need `ip` of iproute2 and CONFIG_VETH",
            Xdp(_) => "use a kernel with CONFIG_BPF_SYSCALL and CONFIG_NET, from Linux 5.9 (XDP links)",
            XdpFrags => "keep the MTU below about 3500, or use generic mode; Linux 5.18 or later has it",
            Devmap => "needed for programs in a DEVMAP only; Linux 5.8 or later has them",
            Cpumap => "needed for programs in a CPUMAP only; Linux 5.9 or later has them",
            Tcx => {
                "nothing: clsact filters are used instead, also by `traits up`; Linux 6.6 or later has TCX \
                 (CONFIG_NET_XGRESS)"
            }
            Clsact => "needed only without TCX: CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF",
            Netfilter => {
                "leave netfilter blocks out, or use a `match` block with `iptables -m bpf`; Linux 6.4 or later has it \
                 (CONFIG_NETFILTER_BPF_LINK)"
            }
            CgroupSkb | CgroupGetSockOpt | CgroupSetSockOpt | CgroupSockRelease | SockOps => {
                "use a kernel with CONFIG_CGROUP_BPF, from Linux 5.9, and a cgroup v2 tree"
            }
            SocketFilter => "use a kernel with CONFIG_BPF_SYSCALL, and a `net.core.optmem_max` of 20480 or more",
            SkSkb => "needed for programs of socket maps only: CONFIG_BPF_STREAM_PARSER",
            SkReuseport => "needed for `steer` only: CONFIG_INET, from Linux 4.19",
            Lwt => "needed for programs of routes only: CONFIG_LWTUNNEL_BPF",
            TpBtf => "`traits trace` does not work here; it needs CONFIG_BPF_EVENTS and CAP_PERFMON",
            Fentry => "`traits trace` works without: it needs CONFIG_FUNCTION_TRACER and CONFIG_DYNAMIC_FTRACE",
            CastToKernCtx | RdonlyCast => "the helper is used instead; Linux 6.2 or later has the casts",
            ProbeReadContext => "needed only without the casts; it needs CAP_PERFMON and no lockdown",
            SkbMetaDynptr => "TC programs write directly, and a clone loses its traits; Linux 6.18 or later has it",
            RingBuffer => "use Linux 5.8 or later",
            MmapableArray => "use Linux 5.5 or later",
            SkStorage => "use Linux 5.3 or later, with CONFIG_BPF_SYSCALL and CONFIG_NET",
            Loop => "use Linux 5.17 or later",
            RcvMark => "TCP and every hook work without; traits of UDP datagrams need Linux 5.19 or later",
            RcvMarkUnprivileged => "give such a server CAP_NET_RAW, or use a later kernel (6.18 needs no privilege)",
            RcvPriority => "nothing needs it; Linux 6.14 or later has it",
            AfXdp => "needed for AF_XDP only: CONFIG_XDP_SOCKETS",
            Metadata(_) => "make a registry whose area fits: `traits registry create --flow BYTES --packet BYTES`",
            Headroom(_) => "use generic mode, or a smaller area",
            Reads(_, Stage::SocketFilter) => "see `cast-to-kern-ctx`, `probe-read-context` and `socket-filter` above",
            Reads(_, Stage::Netfilter) => "see `cast-to-kern-ctx` and `netfilter` above",
            Reads(_, Stage::Cgroup) => "see `cast-to-kern-ctx`, `probe-read-context` and `cgroup-skb` above",
            Reads(_, Stage::SocketOption) => "see `cgroup-getsockopt`, `rcvmark` and `sk-storage` above",
            Reads(_, Stage::Tc) => "try the other mode; see `tcx` and `clsact` above",
            XdpAttached => "to take its place, detach it first; `bpftool net` tells whose it is",
            XdpFeatures => "use `--mode generic`; `traits doctor --dev X --try` attaches a program to find out",
            Driver | Hints | Gro => "",
            Lro => "`ethtool -K X lro off`",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_probe_has_an_id_of_its_own_and_says_what_it_means() {
        let mut seen = HashSet::new();
        for probe in Probe::all() {
            assert!(seen.insert(probe.id()), "{} twice", probe.id());
            assert!(!probe.means().is_empty(), "{}", probe.id());
        }
    }

    #[test]
    fn probes_of_a_subject_lie_together() {
        let mut subjects: Vec<Subject> = Probe::all().map(Probe::subject).collect();
        assert!(subjects.is_sorted());
        subjects.dedup();
        assert_eq!(subjects, Subject::ALL);
    }
}
