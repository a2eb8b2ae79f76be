//! Names of the reasons for which the kernel drops packets, from the running kernel's own type information: their
//! numbers differ between kernels.

use std::{collections::BTreeMap, io};

use libbpf_rs::btf::{Btf, types};

/// The kernel's enumeration, and how its enumerators start (include/net/dropreason-core.h, Linux 5.17).
const ENUM: &str = "skb_drop_reason";
const PREFIX: &str = "SKB_DROP_REASON_";

/// The names by number, without the common start: `NO_SOCKET` for `SKB_DROP_REASON_NO_SOCKET`.
///
/// # Errors
/// The kernel has no BTF, or drops packets without saying why.
pub fn names() -> io::Result<BTreeMap<u32, String>> {
    let btf = Btf::from_vmlinux().map_err(|error| {
        io::Error::other(format!("cannot read the kernel's type information, /sys/kernel/btf/vmlinux: {error}"))
    })?;
    let reasons: types::Enum<'_> = btf.type_by_name(ENUM).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this kernel has no enum {ENUM}, which came with Linux 5.17"),
        )
    })?;
    let named = reasons.iter().filter_map(|reason| {
        let name = reason.name?.to_string_lossy();
        Some((u32::try_from(reason.value).ok()?, name.strip_prefix(PREFIX).unwrap_or(&name).to_owned()))
    });
    Ok(named.collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn reasons_of_this_kernel_have_names() {
        if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
            packet_traits_lab::skipped("this kernel has no BTF");
            return;
        }
        let names = super::names().unwrap();
        for expected in ["NO_SOCKET", "NETFILTER_DROP", "NOT_SPECIFIED"] {
            assert!(names.values().any(|name| name == expected), "{expected} in {names:?}");
        }
    }
}
