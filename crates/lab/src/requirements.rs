//! What must hold before the laboratory can be used, and how a person switches the kernel tests off;
//! how a test reports that it is skipped, or that it leaves something out.

use std::{
    collections::HashSet,
    ffi::c_long,
    fmt::{Arguments, Display},
    io::Write,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::OnceLock,
};

/// Environment variable that, set to `1`, skips every test that needs the kernel.
const SKIP_VARIABLE: &str = "TRAITS_SKIP_KERNEL";

/// Checks that the process has root's user id.
///
/// # Errors
/// One line that says how to run instead.
pub fn require_root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() {
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
    /// `xdp_metalen_invalid` in `include/net/xdp.h`: XDP metadata of more than 32 bytes, as the default area is.
    LongMetadata,
    /// `bpf_dynptr_from_skb_meta`: TC programs write to metadata.
    MetadataDynptr,
    /// `__bpf_skb_meta_store_bytes` in `net/core/filter.c`, which came with it: visible metadata moves along when a packet's
    /// head does, and a clone that is written to gets a head of its own.
    MovedMetadata,
}

impl KernelFeature {
    /// Its name, the first version of Linux that has it, and a function of the kernel's that is there exactly with it, if
    /// there is one.
    fn facts(self) -> (&'static str, &'static str, Option<&'static str>) {
        match self {
            KernelFeature::XdpHints => ("XDP hints", "6.3", Some("bpf_xdp_metadata_rx_timestamp")),
            KernelFeature::NetfilterLinks => ("netfilter program", "6.4", Some("bpf_nf_link_attach")),
            KernelFeature::Tcx => ("TCX", "6.6", Some("tcx_link_attach")),
            KernelFeature::Netkit => ("netkit", "6.7", Some("netkit_link_attach")),
            KernelFeature::LongMetadata => ("XDP metadata of more than 32 bytes", "6.8", None),
            KernelFeature::MetadataDynptr => ("metadata dynptr", "6.18", Some("bpf_dynptr_from_skb_meta")),
            KernelFeature::MovedMetadata => ("metadata that moves along", "6.19", Some("__bpf_skb_meta_store_bytes")),
        }
    }

    /// Why a kernel without it skips a test.
    fn why(self) -> String {
        let (name, since, _) = self.facts();
        format!("{name} needs Linux {since}")
    }

    const ALL: [KernelFeature; 7] = [
        KernelFeature::XdpHints,
        KernelFeature::NetfilterLinks,
        KernelFeature::Tcx,
        KernelFeature::Netkit,
        KernelFeature::LongMetadata,
        KernelFeature::MetadataDynptr,
        KernelFeature::MovedMetadata,
    ];

    /// Whether this kernel has it.
    #[must_use]
    pub fn is_here(self) -> bool {
        static HERE: OnceLock<Vec<KernelFeature>> = OnceLock::new();
        HERE.get_or_init(|| {
            let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
            let names: HashSet<&str> = symbols.lines().filter_map(|line| line.split([' ', '\t']).nth(2)).collect();
            let here = |feature: &KernelFeature| {
                feature.facts().2.map_or_else(takes_long_metadata, |symbol| names.contains(symbol))
            };
            Self::ALL.into_iter().filter(here).collect()
        })
        .contains(&self)
    }
}

/// Whether an XDP program can reserve 36 bytes of metadata, by trying. Without the privilege to try: no.
fn takes_long_metadata() -> bool {
    // enum bpf_cmd and enum bpf_prog_type, include/uapi/linux/bpf.h
    const PROG_LOAD: c_long = 5;
    const PROG_TEST_RUN: c_long = 10;
    const PROG_TYPE_XDP: u32 = 6;
    /// `union bpf_attr`, as far as these commands use it.
    type Attr = [u64; 16];
    fn bpf(command: c_long, attr: &mut Attr) -> c_long {
        // SAFETY: takes a number, and the union with its size; what it points to outlives the call.
        unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<Attr>()) }
    }
    let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    // r2 = -36; r0 = bpf_xdp_adjust_meta(r1, r2); return r0
    let instructions = [pair(0x02b7, -36_i32 as u32), pair(0x85, 54), pair(0x95, 0)];
    let license = c"GPL";
    let mut load: Attr = [0; 16];
    load[0] = pair(PROG_TYPE_XDP, instructions.len() as u32);
    load[1] = instructions.as_ptr().addr() as u64;
    load[2] = license.as_ptr().addr() as u64;
    let Ok(fd @ 0..) = RawFd::try_from(bpf(PROG_LOAD, &mut load)) else { return false };
    // SAFETY: the kernel has just given us this descriptor.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let packet = [0_u8; 64];
    let mut run: Attr = [0; 16];
    run[0] = pair(program.as_raw_fd() as u32, 0);
    run[1] = pair(packet.len() as u32, 0);
    run[2] = packet.as_ptr().addr() as u64;
    // the second half of the first word is what the program returned
    bpf(PROG_TEST_RUN, &mut run) == 0 && run[0] >> 32 == 0
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
