//! What is said to bring an object up: where its programs go ([`UpOptions`]), and what else it needs ([`Setup`]).

use std::path::PathBuf;

use crate::attach::{NetfilterOptions, XdpMode};

/// Where the programs of an object go.
#[derive(Clone, Debug, Default)]
pub struct UpOptions {
    /// The interface for XDP and TC programs: its index in the calling thread's network namespace.
    pub interface: Option<u32>,
    /// How XDP programs are attached. [`XdpMode::Auto`] is native if the driver does it, else generic; at a veth it is generic,
    /// unless the programs redirect packets or use hints of the driver: with native XDP at one end of a veth the other sends no
    /// large packets, which slows bulk TCP down to a fraction (`traits bench containers`).
    pub xdp_mode: XdpMode,
    /// The directory of the cgroup for cgroup programs.
    pub cgroup: Option<PathBuf>,
    /// The hooks of netfilter programs, by program name. A program may be given several times.
    pub netfilter: Vec<(String, NetfilterOptions)>,
    /// TC programs become clsact filters even if the kernel has TCX. What they take over from stays as it is.
    pub force_clsact: bool,
    /// Programs at TC ingress run before those that are there, instead of behind them.
    pub ingress_first: bool,
    /// What is up under the same name is replaced, see [`Deployment::up`](super::Deployment::up).
    pub replace: bool,
    /// What else the object needs.
    pub setup: Setup,
}

/// What an object needs besides being loaded and attached. It names maps, variables and programs of the object; one that
/// the object does not have is an error.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Values of variables in `.rodata`, which the verifier takes for constants.
    pub variables: Vec<(String, Vec<u8>)>,
    /// Entries that maps have before a program is attached.
    pub tables: Vec<Table>,
    /// CPUMAPs, in which every CPU that is online gets an entry.
    pub cpu_maps: Vec<String>,
    /// Maps that all deployments of the bpffs share: each is pinned beside them, made by the first that needs it, and
    /// stays when all are down.
    pub shared_maps: Vec<String>,
    /// Maps that are pinned with the deployment, for others to read and write: see
    /// [`Deployment::map`](super::Deployment::map). When the deployment is replaced, the new version has maps of its own.
    pub pinned_maps: Vec<String>,
    /// Those of [`pinned_maps`](Self::pinned_maps) that the version to be replaced hands on to the new one, if they have
    /// the same shape there.
    pub kept_maps: Vec<String>,
    /// XDP programs that call the kernel's XDP metadata functions, so they are loaded for the one interface
    /// (`BPF_F_XDP_DEV_BOUND_ONLY`).
    pub device_bound: Vec<String>,
    /// A variable in `.rodata`, of 4 bytes, which becomes 0 if no packet comes to the interface with traits of an interface
    /// before it: in native mode at a network card.
    pub may_inherit: Option<String>,
    /// Interfaces, of the calling thread's network namespace, that XDP programs redirect packets to: in auto mode these are
    /// generic if one of them [loses](crate::attach::loses_redirects) what native ones redirect.
    pub redirects_to: Vec<u32>,
    /// Socket filters that are not attached but pinned for others.
    pub filters: Vec<Filter>,
    /// Something to remember with the deployment: [`Deployment::notes`](super::Deployment::notes).
    pub notes: Vec<u8>,
}

/// Entries of a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The map.
    pub map: String,
    /// Keys and values as the map has them.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A socket filter that is pinned for others, at `<deployment>/filters/<program>`.
///
/// What is pinned runs the program as long as the deployment is up, and its successor when it is replaced; afterwards it
/// does what its [`usage`](Self::usage) says, for whoever still holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The program.
    pub program: String,
    /// Who attaches it.
    pub usage: FilterUse,
}

/// Who attaches a pinned socket filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FilterUse {
    /// iptables (`-m bpf --object-pinned PATH`). It matches nothing when the deployment is down.
    Match,
    /// A SO_REUSEPORT group (SO_ATTACH_REUSEPORT_EBPF). It leaves the choice to the kernel when the deployment is down.
    Steer,
}
