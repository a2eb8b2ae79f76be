//! What the programs of an object need of the kernel, to say which of it is missing when it cannot be loaded.

use std::ptr::null;

use libbpf_rs::{
    AsRawLibbpf, OpenObject,
    btf::{Btf, types::Func},
};
use libbpf_sys::{
    BPF_F_XDP_DEV_BOUND_ONLY, BPF_PROG_TYPE_EXT, BPF_PROG_TYPE_LSM, BPF_PROG_TYPE_NETFILTER, BPF_PROG_TYPE_STRUCT_OPS,
    BPF_PROG_TYPE_SYSCALL, BPF_PROG_TYPE_TRACING, bpf_prog_type,
};

use super::BindError;
use crate::attach::{Feature, kernel_release, type_name};

/// What each program needs that is to be loaded.
pub(super) struct Needs(Vec<Need>);

struct Need {
    program: String,
    type_: bpf_prog_type,
    device_bound: bool,
}

impl Needs {
    pub(super) fn of(object: &OpenObject) -> Needs {
        let needs = object.progs().filter_map(|program| {
            let raw = program.as_libbpf_object().as_ptr();
            // SAFETY: `program` keeps the raw program alive; the calls only read it.
            let (wanted, type_, flags) = unsafe {
                let wanted = libbpf_sys::bpf_program__autoload(raw);
                (wanted, libbpf_sys::bpf_program__type(raw), libbpf_sys::bpf_program__flags(raw))
            };
            wanted.then(|| Need {
                program: program.name().to_string_lossy().into_owned(),
                type_,
                device_bound: flags & BPF_F_XDP_DEV_BOUND_ONLY != 0,
            })
        });
        Needs(needs.collect())
    }

    /// The first thing that the kernel lacks, found by trying; `name` stands for the object.
    pub(super) fn missing(&self, name: &str) -> Option<BindError> {
        let unsupported = |need: &Need, feature| BindError::Unsupported {
            object: name.to_owned(),
            program: need.program.clone(),
            feature,
            running: kernel_release(),
        };
        self.0.iter().find_map(|need| match need.type_ {
            _ if need.device_bound && !kernel_has_hints() => Some(unsupported(need, Feature::XdpHints)),
            type_ if kernel_has_type(type_) => None,
            BPF_PROG_TYPE_NETFILTER => Some(unsupported(need, Feature::NetfilterLink)),
            type_ => Some(BindError::ProgramType {
                object: name.to_owned(),
                program: need.program.clone(),
                kind: type_name(type_),
                running: kernel_release(),
            }),
        })
    }
}

/// Whether a program of this type can be loaded; yes if it cannot be told, as of types that are loaded for a place, which the
/// kernel may refuse for another reason.
fn kernel_has_type(type_: bpf_prog_type) -> bool {
    if matches!(
        type_,
        BPF_PROG_TYPE_TRACING
            | BPF_PROG_TYPE_LSM
            | BPF_PROG_TYPE_EXT
            | BPF_PROG_TYPE_STRUCT_OPS
            | BPF_PROG_TYPE_SYSCALL
    ) {
        return true;
    }
    // SAFETY: takes a number; null options are none.
    unsafe { libbpf_sys::libbpf_probe_bpf_prog_type(type_, null()) != 0 }
}

/// Whether the kernel has the functions that a driver answers; yes if it has no BTF to look in.
fn kernel_has_hints() -> bool {
    Btf::from_vmlinux().map_or(true, |kernel| kernel.type_by_name::<Func<'_>>("bpf_xdp_metadata_rx_hash").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_lacks_is_named_with_its_version() {
        let unknown = BindError::ProgramType {
            object: "edge.o".to_owned(),
            program: "drop".to_owned(),
            kind: type_name(BPF_PROG_TYPE_NETFILTER),
            running: "6.1.0".to_owned(),
        };
        let says = "loading edge.o: program drop is of type netfilter, which this kernel (6.1.0) does not know";
        assert!(unknown.to_string().starts_with(says), "{unknown}");
        let netfilter = BindError::Unsupported {
            object: "edge.o".to_owned(),
            program: "drop".to_owned(),
            feature: Feature::NetfilterLink,
            running: "6.1.0".to_owned(),
        };
        let says = "loading edge.o: program drop: a netfilter link needs Linux 6.4 or newer; this is 6.1.0";
        assert!(netfilter.to_string().starts_with(says), "{netfilter}");
    }
}
