//! A real loaded program that is bound to a registry, made without any loader: a frozen map of read-only data as
//! libbpf makes it from the section `.rodata.packet_traits`, and three instructions that refer to it.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use libbpf_rs::{
    MapCore, MapFlags, MapHandle, MapType,
    libbpf_sys::{self, bpf_insn},
};
use packet_traits::{
    Region,
    registry::{KeyEntry, Registry},
};

/// A loaded program, unloaded when this is dropped.
pub(crate) struct BoundProgram {
    fd: OwnedFd,
    pub(crate) name: &'static str,
}

impl BoundProgram {
    /// A program that declares `declared` by name and has `numbered` in its table for the calls by number.
    pub(crate) fn load(registry: &Registry, declared: &[&KeyEntry], numbered: Option<u64>) -> BoundProgram {
        let mut section = area(registry);
        for entry in declared {
            section.extend(key(entry));
        }
        if let Some(mask) = numbered {
            section.extend(b"PTRSLOT\0");
            section.extend(mask.to_ne_bytes());
            section.resize(section.len() + 4 * 64, 0);
        }
        let data = read_only_data(&section);
        BoundProgram { fd: load(c"reads_traits", Some(&data)), name: "reads_traits" }
    }

    /// What keeps it loaded as long as it is open.
    pub(crate) fn held(&self) -> OwnedFd {
        self.fd.try_clone().unwrap()
    }
}

/// `struct trait_area_desc`.
fn area(registry: &Registry) -> Vec<u8> {
    let (layout, nonces) = (registry.layout(), registry.nonces());
    let mut raw = b"PTRAREA\0".to_vec();
    for word in [2, layout.area_len(), layout.region_len(Region::Flow), layout.region_len(Region::Packet)] {
        raw.extend((word as u32).to_ne_bytes());
    }
    for word in [nonces.flow, nonces.packet, registry.id()] {
        raw.extend(word.to_ne_bytes());
    }
    raw.extend([0; 64]); // anchors, keys for tags and checks, bits to discard, padding
    raw
}

/// `struct trait_key_desc`.
fn key(entry: &KeyEntry) -> Vec<u8> {
    let slot = entry.key.slot();
    let mut raw = b"PTRKEY\0\0".to_vec();
    raw.extend(entry.key.bit().to_ne_bytes());
    raw.extend((slot.distance() as u32).to_ne_bytes());
    raw.extend((slot.size() as u16).to_ne_bytes());
    raw.extend([entry.merge as u8, entry.key.number() as u8]);
    raw.extend(entry.generation.to_ne_bytes());
    raw.extend(entry.key.name().padded());
    raw
}

fn read_only_data(section: &[u8]) -> MapHandle {
    let opts = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        map_flags: libbpf_sys::BPF_F_RDONLY_PROG,
        ..Default::default()
    };
    let map = MapHandle::create(MapType::Array, Some(".rodata.packet_"), 4, section.len() as u32, 1, &opts).unwrap();
    map.update(&[0; 4], section, MapFlags::ANY).unwrap();
    map.freeze().unwrap();
    map
}

/// Loads `r1 = address of the map's value; r0 = 0; exit` as a socket filter; without a map, just the rest.
pub(crate) fn load(name: &std::ffi::CStr, map: Option<&MapHandle>) -> OwnedFd {
    const LD_IMM64: u8 = (libbpf_sys::BPF_LD | libbpf_sys::BPF_IMM | libbpf_sys::BPF_DW) as u8;
    const MOV_IMM: u8 = (libbpf_sys::BPF_ALU64 | libbpf_sys::BPF_MOV | libbpf_sys::BPF_K) as u8;
    const EXIT: u8 = (libbpf_sys::BPF_JMP | libbpf_sys::BPF_EXIT) as u8;
    let mut insns = Vec::new();
    if let Some(map) = map {
        let mut address = bpf_insn { code: LD_IMM64, imm: map.as_fd().as_raw_fd(), ..Default::default() };
        address.set_dst_reg(1);
        address.set_src_reg(libbpf_sys::BPF_PSEUDO_MAP_VALUE as u8);
        insns.extend([address, bpf_insn::default()]);
    }
    insns.push(bpf_insn { code: MOV_IMM, ..Default::default() });
    insns.push(bpf_insn { code: EXIT, ..Default::default() });
    // SAFETY: the instructions and both strings outlive the call, and options may be null.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_SOCKET_FILTER,
            name.as_ptr(),
            c"Dual MIT/GPL".as_ptr(),
            insns.as_ptr(),
            insns.len() as libbpf_sys::size_t,
            std::ptr::null_mut(),
        )
    };
    assert!(fd >= 0, "the program is not accepted: {fd}");
    // SAFETY: a descriptor that was just made for this call and has no other owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
