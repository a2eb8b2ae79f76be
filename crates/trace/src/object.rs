//! Objects with programs of the tracer: what is done with all of them.

use libbpf_rs::{
    MapHandle,
    btf::{Btf, types},
};
use packet_traits::bind::{BoundObject, LoadedObject};

use crate::error::{TraceError, libbpf};

/// The function by which netfilter programs are attached (6.4).
const NETFILTER_LINK: &str = "bpf_nf_link_attach";

/// Has programs not loaded whose tracepoint or function this kernel does not have.
pub(crate) fn leave_out_unknown(bound: &mut BoundObject<'_>, btf: &Btf<'_>, notes: &mut Vec<String>) {
    for mut program in bound.open_object_mut().progs_mut() {
        let section = program.section().to_string_lossy().into_owned();
        let (kind, name, known) = match section.split_once('/') {
            Some(("tp_btf", name)) => {
                ("tracepoint", name, btf.type_by_name::<types::Typedef<'_>>(&format!("btf_trace_{name}")).is_some())
            }
            Some(("fentry", name)) => ("function", name, btf.type_by_name::<types::Func<'_>>(name).is_some()),
            None if section == "netfilter" && btf.type_by_name::<types::Func<'_>>(NETFILTER_LINK).is_none() => {
                program.set_autoload(false);
                continue;
            }
            _ => continue,
        };
        if !known {
            notes.push(format!("this kernel has no {kind} {name}: what it would show is not seen"));
            program.set_autoload(false);
        }
    }
}

pub(crate) fn handle(object: &LoadedObject, name: &str) -> Result<MapHandle, TraceError> {
    let map = object.map(name).ok_or_else(|| TraceError::Option(format!("the tracer has no map {name}")))?;
    MapHandle::try_from(&map).map_err(libbpf("keep a map open"))
}
