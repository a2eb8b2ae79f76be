//! What must hold before the laboratory can be used, and how a person switches the kernel tests off.

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

/// Whether kernel tests should run: `false`, after saying so on standard error, if `TRAITS_SKIP_KERNEL=1`.
///
/// A test that needs the kernel starts with `if !kernel_tests_enabled() { return }`. Without root it then fails rather
/// than passes unseen.
#[must_use]
pub fn kernel_tests_enabled() -> bool {
    let skip = std::env::var_os(SKIP_VARIABLE).is_some_and(|value| value == "1");
    if skip {
        let thread = std::thread::current();
        eprintln!("skipped: {} ({SKIP_VARIABLE}=1)", thread.name().unwrap_or("kernel test"));
    }
    !skip
}

/// Whether this kernel has a function: `false`, after saying so on standard error, if it has not.
///
/// A test of what not all kernels have starts with `if !kernel_has("NAME") { return }`.
#[must_use]
pub fn kernel_has(function: &str) -> bool {
    let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let has = symbols.lines().any(|line| line.split(' ').nth(2) == Some(function));
    if !has {
        let thread = std::thread::current();
        eprintln!("skipped: {} (this kernel has no {function})", thread.name().unwrap_or("kernel test"));
    }
    has
}
