//! How much XDP metadata the running kernel takes, found by trying, and the area that fits into it.
//!
//! Before Linux 6.8 it is 32 bytes (`xdp_metalen_invalid` in include/net/xdp.h), unless the change was ported back.

use std::sync::OnceLock;

use libbpf_rs::{ObjectBuilder, ProgramInput};
use packet_traits_core::{
    Layout,
    layout::{AREA_LEN_MAX, AREA_LEN_PORTABLE},
};

use super::{RegistryError, RegistryName};

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/metadata.bpf.o"));

/// `XDP_PASS`, include/uapi/linux/bpf.h.
const XDP_PASS: u32 = 2;

/// The most bytes of metadata that an XDP program can reserve, as far as the kernel itself limits it: 252, before Linux 6.8
/// 32. Found by trying, once.
///
/// # Errors
/// [`RegistryError::Metadata`] if it cannot be tried.
pub fn longest() -> Result<usize, RegistryError> {
    static FOUND: OnceLock<usize> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(*found);
    }
    let found = try_lengths().map_err(|error| RegistryError::Metadata { error })?;
    Ok(*FOUND.get_or_init(|| found))
}

/// What the kernel takes, if that is why there can be no area of `area_len` bytes.
pub(super) fn in_the_way(area_len: usize) -> Option<usize> {
    longest().ok().filter(|longest| area_len > *longest && *longest < AREA_LEN_PORTABLE)
}

fn try_lengths() -> Result<usize, libbpf_rs::Error> {
    let object = ObjectBuilder::default().open_memory(OBJECT)?.load()?;
    let program = object.progs_mut().next().expect("the object has a program");
    // A test run has the headroom of veth: where that is all used, the kernel's limit is not in the way.
    for len in (4..=AREA_LEN_PORTABLE).rev().filter(|len| len.is_multiple_of(4)) {
        let mut packet = [0; 64];
        packet[..4].copy_from_slice(&(len as u32).to_ne_bytes());
        let input = ProgramInput { data_in: Some(&packet), ..ProgramInput::default() };
        if program.test_run(input)?.return_value == XDP_PASS {
            return Ok(if len == AREA_LEN_PORTABLE { AREA_LEN_MAX } else { len });
        }
    }
    Ok(0)
}

/// The layout of a new registry where a program can reserve `longest` bytes: the one asked for, or the default as far as it
/// fits.
pub(super) fn fitting(name: &RegistryName, wanted: Option<Layout>, longest: usize) -> Result<Layout, RegistryError> {
    let too_long = |area_len| RegistryError::TooLong { name: name.clone(), area_len, longest };
    match wanted {
        Some(layout) if layout.area_len() > longest => Err(too_long(layout.area_len())),
        Some(layout) => Ok(layout),
        None => Layout::default_within(longest).ok_or_else(|| too_long(Layout::DEFAULT.area_len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_with_short_metadata_gets_the_area_that_fits() {
        let name = RegistryName::default();
        let layout = |flow, packet| Layout::new(flow, packet).unwrap();
        assert_eq!(fitting(&name, None, AREA_LEN_MAX).unwrap(), Layout::DEFAULT);
        assert_eq!(fitting(&name, None, 32).unwrap(), layout(32, 0));
        assert_eq!(fitting(&name, Some(layout(24, 0)), 32).unwrap(), layout(24, 0));
        let error = fitting(&name, Some(layout(32, 32)), 32).unwrap_err();
        assert!(matches!(error, RegistryError::TooLong { area_len: 64, longest: 32, .. }), "{error}");
        for says in ["64 bytes", "32 bytes", "Linux 6.8", "make the regions smaller"] {
            assert!(error.to_string().contains(says), "{error}");
        }
        assert!(matches!(fitting(&name, None, 0), Err(RegistryError::TooLong { .. })));
    }

    #[test]
    fn this_kernel_takes_what_trying_finds() {
        use packet_traits_lab::KernelFeature;
        if !packet_traits_testing::kernel::enabled() {
            return;
        }
        let expected = if KernelFeature::LongMetadata.is_here() { AREA_LEN_MAX } else { 32 };
        assert_eq!(longest().unwrap(), expected);
    }
}
