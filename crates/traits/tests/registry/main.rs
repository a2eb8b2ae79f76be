//! The registry on the real kernel: every test has a bpffs of its own, and nothing is left when it ends.

mod bound_program;
mod concurrency;
mod damage;
mod keys;
mod lifecycle;
mod migrate;
mod users;

use packet_traits::{
    KeyName, KeyType, Layout, Merge,
    registry::{KeySpec, Registry, RegistryName, RegistryOptions},
};
use packet_traits_lab::{Bpffs, KernelFeature, kernel_has};
use packet_traits_testing::kernel;

/// A bpffs for one test; `None` if kernel tests are switched off.
fn bpffs() -> Option<Bpffs> {
    if !kernel::enabled() {
        return None;
    }
    Some(Bpffs::new().unwrap())
}

/// All metadata that kernels before 6.8 take.
const SHORT: usize = 32;

/// The registry `default` on a bpffs.
fn options(bpffs: &Bpffs) -> RegistryOptions {
    Registry::options().bpffs(bpffs.path())
}

/// A bpffs and a registry on it, with `flow` and `packet` bytes of values in its regions; `None` if kernel tests are switched
/// off, or the kernel's metadata is too short for it.
fn registry(flow: usize, packet: usize) -> Option<(Bpffs, Registry)> {
    let bpffs = bpffs()?;
    let layout = Layout::for_slot_space(flow, packet).unwrap();
    if layout.area_len() > SHORT && !kernel_has(KernelFeature::LongMetadata) {
        return None;
    }
    let registry = options(&bpffs).layout(layout).create().unwrap();
    Some((bpffs, registry))
}

fn registry_name(name: &str) -> RegistryName {
    RegistryName::new(name).unwrap()
}

fn name(name: &str) -> KeyName {
    KeyName::new(name).unwrap()
}

fn spec(key: &str, key_type: KeyType, merge: Merge) -> KeySpec {
    KeySpec::new(name(key), key_type).merge(merge)
}
