//! What must hold before the laboratory can be used, and how a person switches the kernel tests off;
//! how a test reports that it is skipped, or that it leaves something out.

use std::{
    collections::HashSet,
    fmt::{Arguments, Display},
    io::Write,
    sync::OnceLock,
};

/// Environment variable that, set to `1`, skips every test that needs the kernel.
const SKIP_VARIABLE: &str = "TRAITS_SKIP_KERNEL";

/// Checks that the process has root's user id.
///
/// # Errors
/// One line that says how to run instead.
pub fn require_root() -> Result<(), String> {
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        return Ok(());
    }
    let program = std::env::args().next().unwrap_or_else(|| "this program".into());
    Err(format!("network namespaces need root: run `sudo -E {program}`, or set {SKIP_VARIABLE}=1 to skip kernel tests"))
}

/// What not all supported kernels have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFeature {
    /// `bpf_xdp_metadata_rx_timestamp` in `net/core/xdp.c`: programs that are loaded for a device read its hints.
    XdpHints,
    /// `net/netfilter/nf_bpf_link.c`.
    NetfilterLinks,
    /// `kernel/bpf/tcx.c`.
    Tcx,
    /// `drivers/net/netkit.c`.
    Netkit,
    /// `bpf_dynptr_from_skb_meta`: TC programs write to metadata.
    MetadataDynptr,
}

impl KernelFeature {
    /// Its name, the first version of Linux that has it, and a function of the kernel's that is there exactly with it.
    fn facts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            KernelFeature::XdpHints => ("XDP hints", "6.3", "bpf_xdp_metadata_rx_timestamp"),
            KernelFeature::NetfilterLinks => ("netfilter program", "6.4", "bpf_nf_link_attach"),
            KernelFeature::Tcx => ("TCX", "6.6", "tcx_link_attach"),
            KernelFeature::Netkit => ("netkit", "6.7", "netkit_link_attach"),
            KernelFeature::MetadataDynptr => ("metadata dynptr", "6.18", "bpf_dynptr_from_skb_meta"),
        }
    }

    /// Why a kernel without it skips a test.
    fn why(self) -> String {
        let (name, since, _) = self.facts();
        format!("{name} needs Linux {since}")
    }

    const ALL: [KernelFeature; 5] = [
        KernelFeature::XdpHints,
        KernelFeature::NetfilterLinks,
        KernelFeature::Tcx,
        KernelFeature::Netkit,
        KernelFeature::MetadataDynptr,
    ];

    /// Whether this kernel has it.
    #[must_use]
    pub fn is_here(self) -> bool {
        static HERE: OnceLock<Vec<KernelFeature>> = OnceLock::new();
        HERE.get_or_init(|| {
            let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
            let names: HashSet<&str> = symbols.lines().filter_map(|line| line.split([' ', '\t']).nth(2)).collect();
            Self::ALL.into_iter().filter(|feature| names.contains(feature.facts().2)).collect()
        })
        .contains(&self)
    }
}

/// Whether kernel tests should run: `false`, after reporting a skip, if `TRAITS_SKIP_KERNEL=1`.
///
/// A test that needs the kernel starts with `if !kernel_tests_enabled() { return }`. Without root it then fails rather
/// than passes unseen.
#[must_use]
pub fn kernel_tests_enabled() -> bool {
    let skip = std::env::var_os(SKIP_VARIABLE).is_some_and(|value| value == "1");
    if skip {
        skipped(format_args!("{SKIP_VARIABLE}=1"));
    }
    !skip
}

/// Whether this kernel has a feature: `false`, after reporting a skip, if it has not.
///
/// A test of what not all kernels have starts with `if !kernel_has(FEATURE) { return }`.
#[must_use]
pub fn kernel_has(feature: KernelFeature) -> bool {
    let has = feature.is_here();
    if !has {
        skipped(feature.why());
    }
    has
}

/// Whether this kernel has a feature: `false`, after reporting that the test leaves out its part `what`, if it has not.
#[must_use]
pub fn kernel_has_for(feature: KernelFeature, what: &str) -> bool {
    let has = feature.is_here();
    if !has {
        left_out(what, feature.why());
    }
    has
}

/// Reports that the running test is skipped: a line `skipped: TEST: WHY` on standard error, though the test passes.
/// `tools/test-kernels.py` reads it.
pub fn skipped(why: impl Display) {
    report(format_args!("skipped: {}: {why}", test()));
}

/// Reports that the running test leaves out a part: a line `left out: TEST: WHAT: WHY` on standard error.
pub fn left_out(what: &str, why: impl Display) {
    report(format_args!("left out: {}: {what}: {why}", test()));
}

/// The running test: the thread that runs it has its name.
fn test() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

/// Written as one, and not with `eprintln!`, whose output is only shown of tests that fail.
fn report(line: Arguments<'_>) {
    // where there is no standard error nobody reads it
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
