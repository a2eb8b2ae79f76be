//! The object with the socket programs: loading it for a registry, and what its maps hold before anything is attached.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use packet_traits_core::{Layout, Region};

use super::error::SocketProgramsError;
use crate::{
    bind::{BindError, BoundObject, LoadedObject},
    bpffs,
    registry::{Registry, SLOTS, checksum, random},
};

/// What `bpf/sockets.bpf.c` was compiled to.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sockets.bpf.o"));

/// Stands for the object in errors.
const NAME: &str = "the socket programs";

/// Bytes of `struct slot` in front of the values.
const SLOT_HEADER_LEN: usize = 32;

/// Slots do not share cache lines.
const CACHE_LINE: usize = 64;

/// Bytes of `struct ring`.
const RING_LEN: usize = 64;

/// Bytes in front of its `next`.
const RING_NEXT: usize = 12;

/// Counts up when what the pinned maps hold comes to mean something else, or is laid out otherwise: programs do not take over
/// what those of another number have kept of sockets.
const STATE_VERSION: u32 = 2;

/// Maps that are pinned, and under which name: they outlive the programs when these are replaced.
pub(super) const PINNED: [(&str, &str); 5] =
    [("pt_receive", "receive"), ("pt_send", "send"), ("pt_rings", "rings"), ("pt_slots", SLOTS), ("pt_syns", "syns")];

/// Tells the programs of this build from those of another one.
pub(super) fn build() -> u64 {
    checksum(OBJECT)
}

/// How many of what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) sockets: u32,
    pub(super) per_user: u32,
    pub(super) slots: u32,
    pub(super) pending_syns: u32,
}

impl Sizes {
    /// Entries of the map of slots: one more than there are slots, for the instance.
    fn slot_entries(self) -> u64 {
        u64::from(self.sockets) * u64::from(self.slots) + 1
    }

    /// Sockets that all users but root may have together.
    fn of_users(self) -> u32 {
        self.sockets - self.sockets / 8
    }

    pub(super) fn check(self) -> Result<(), SocketProgramsError> {
        let rules = [
            ("sockets", self.sockets, (1..=65536).contains(&self.sockets), "1 to 65536"),
            ("sockets of one user", self.per_user, (1..=65536).contains(&self.per_user), "1 to 65536"),
            (
                "slots",
                self.slots,
                (2..=65536).contains(&self.slots) && self.slots.is_power_of_two(),
                "a power of two from 2 to 65536",
            ),
            ("pending SYNs", self.pending_syns, (1..=1 << 22).contains(&self.pending_syns), "1 to 4194304"),
        ];
        match rules.into_iter().find(|(_, _, good, _)| !good) {
            Some((what, value, _, rule)) => Err(SocketProgramsError::Size { what, value, rule }),
            None => Ok(()),
        }
    }
}

/// Bytes of a slot: its header, and the values of the layout's regions.
fn slot_len(layout: Layout) -> usize {
    let values = |region: Region| layout.slot_space(region).next_multiple_of(8);
    (SLOT_HEADER_LEN + values(Region::Flow) + values(Region::Packet)).next_multiple_of(CACHE_LINE)
}

/// Loads the programs. They take over the maps of attached ones, if given, or else have new ones, which are filled in.
pub(super) fn load(
    registry: &Registry,
    sizes: Sizes,
    kept: Option<&Kept>,
) -> Result<LoadedObject, SocketProgramsError> {
    let slot_len = slot_len(registry.layout()) as u32;
    let too_much = || SocketProgramsError::Memory { sockets: sizes.sockets, slots: sizes.slots, slot_len };
    let slot_entries = u32::try_from(sizes.slot_entries()).map_err(|_| too_much())?;
    let instance = match kept {
        Some(kept) => kept.last.instance,
        None => random()?,
    };

    let mut bound = BoundObject::from_bytes(OBJECT, NAME, registry)?;
    for mut map in bound.open_object_mut().maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        let prepared = match (name.as_str(), kept.and_then(|kept| kept.map(&name))) {
            (_, Some(kept)) => map.reuse_fd(kept.as_fd()),
            ("pt_keys", _) => map.reuse_fd(registry.keys_map().as_fd()),
            ("pt_state", _) => map.reuse_fd(registry.state_map().as_fd()),
            ("pt_rings", _) => map.set_max_entries(sizes.sockets),
            ("pt_slots", _) => map.set_value_size(slot_len).and_then(|()| map.set_max_entries(slot_entries)),
            ("pt_syns", _) => map.set_max_entries(sizes.pending_syns),
            // libbpf puts the object's name in front
            (name, _) if name.ends_with(".rodata") => {
                let section = map.initial_value_mut().unwrap_or_default();
                set_constant(section, "ring_count", &sizes.sockets.to_ne_bytes());
                set_constant(section, "rings_per_user", &sizes.per_user.to_ne_bytes());
                set_constant(section, "rings_of_users", &sizes.of_users().to_ne_bytes());
                set_constant(section, "ring_slots", &sizes.slots.to_ne_bytes());
                set_constant(section, "instance", &instance.to_ne_bytes());
                Ok(())
            }
            _ => Ok(()),
        };
        prepared.map_err(|source| BindError::Prepare { object: NAME.to_owned(), source })?;
    }
    let loaded = bound.load().map_err(|error| match error {
        BindError::Load { program: None, source, .. }
            if matches!(source.kind(), libbpf_rs::ErrorKind::OutOfMemory | libbpf_rs::ErrorKind::TooBig) =>
        {
            too_much()
        }
        error => error.into(),
    })?;
    if kept.is_none() {
        fill(&loaded, sizes, instance)?;
    }
    Ok(loaded)
}

/// Sets a `const volatile` variable of the object.
fn set_constant(section: &mut [u8], name: &str, value: &[u8]) {
    let elf = object::File::parse(OBJECT).expect("the object is what the compiler wrote");
    let index = elf.section_by_name(".rodata").map(|section| section.index());
    let symbol = elf.symbols().find(|symbol| symbol.name() == Ok(name) && symbol.section_index() == index);
    let start = symbol.expect("the object has this constant").address() as usize;
    section[start..start + value.len()].copy_from_slice(value);
}

/// What is behind the slots.
#[derive(Clone, Copy)]
struct LastSlot {
    /// Tells who maps the slots whose they are.
    instance: u64,
    /// How many rings one user may have.
    per_user: u32,
    /// [`STATE_VERSION`] of the programs that made the maps; 0 before there was one.
    version: u32,
}

impl LastSlot {
    fn read(slots: &MapHandle) -> libbpf_rs::Result<LastSlot> {
        let value = lookup(slots, slots.max_entries() - 1)?;
        let word = |at: usize| value.get(at..).and_then(<[u8]>::first_chunk).copied().map(u32::from_ne_bytes);
        Ok(LastSlot {
            instance: value.first_chunk().copied().map(u64::from_ne_bytes).unwrap_or_default(),
            per_user: word(8).unwrap_or_default(),
            version: word(12).unwrap_or_default(),
        })
    }

    fn write(self, value: &mut [u8]) {
        value[..8].copy_from_slice(&self.instance.to_ne_bytes());
        value[8..12].copy_from_slice(&self.per_user.to_ne_bytes());
        value[12..16].copy_from_slice(&self.version.to_ne_bytes());
    }
}

/// Writes what the programs count on: a random first handle for each ring, so that a mark that is none does not look
/// like one, and what is behind the slots.
fn fill(loaded: &LoadedObject, sizes: Sizes, instance: u64) -> Result<(), SocketProgramsError> {
    let write = |name: &str, index: u32, value: &[u8]| {
        let map = loaded.map(name).expect("the object has this map");
        map.update(&index.to_ne_bytes(), value, MapFlags::ANY)
            .map_err(|error| SocketProgramsError::Bpf { action: format!("fill the map {name}"), error })
    };
    for index in 0..sizes.sockets {
        let mut ring = [0; RING_LEN];
        ring[RING_NEXT..RING_NEXT + 4].copy_from_slice(&(random()? as u32).to_ne_bytes());
        write("pt_rings", index, &ring)?;
    }
    let slots = loaded.map("pt_slots").expect("the object has this map");
    let mut last = vec![0; slots.value_size() as usize];
    LastSlot { instance, per_user: sizes.per_user, version: STATE_VERSION }.write(&mut last);
    write("pt_slots", slots.max_entries() - 1, &last)?;
    // Who maps the slots needs a descriptor that can write (`bpf_map_mmap` in kernel/bpf/syscall.c); from now on it cannot.
    // SAFETY: takes a number only.
    match unsafe { libbpf_sys::bpf_map_freeze(slots.as_fd().as_raw_fd()) } {
        0 => Ok(()),
        errno => Err(SocketProgramsError::Bpf {
            action: "freeze the map pt_slots".to_owned(),
            error: libbpf_rs::Error::from_raw_os_error(-errno),
        }),
    }
}

/// What attached programs keep of sockets, for those that take their place.
pub(super) struct Kept {
    maps: Vec<(&'static str, MapHandle)>,
    last: LastSlot,
}

impl Kept {
    /// What is pinned in this folder; `None` if it is that of another [`STATE_VERSION`].
    pub(super) fn open(folder: &Path) -> libbpf_rs::Result<Option<Kept>> {
        let last = LastSlot::read(&bpffs::open_map(&folder.join(SLOTS))?)?;
        if last.version != STATE_VERSION {
            return Ok(None);
        }
        let open = |(map, pin): (&'static str, &str)| Ok((map, bpffs::open_map(&folder.join(pin))?));
        let maps = PINNED.into_iter().map(open).collect::<libbpf_rs::Result<_>>()?;
        Ok(Some(Kept { maps, last }))
    }

    fn map(&self, name: &str) -> Option<&MapHandle> {
        self.maps.iter().find(|(map, _)| *map == name).map(|(_, map)| map)
    }
}

/// The maps of attached programs, as far as user space looks into them.
pub(super) struct Maps {
    pub(super) rings: MapHandle,
    pub(super) slots: MapHandle,
    pub(super) syns: MapHandle,
}

impl Maps {
    pub(super) fn sizes(&self) -> libbpf_rs::Result<Sizes> {
        let sockets = self.rings.max_entries();
        Ok(Sizes {
            sockets,
            per_user: LastSlot::read(&self.slots)?.per_user,
            slots: (self.slots.max_entries() - 1) / sockets.max(1),
            pending_syns: self.syns.max_entries(),
        })
    }

    pub(super) fn instance(&self) -> libbpf_rs::Result<u64> {
        Ok(LastSlot::read(&self.slots)?.instance)
    }

    /// Rings that a socket has: how many of which user.
    pub(super) fn rings_in_use(&self) -> libbpf_rs::Result<BTreeMap<u32, u32>> {
        let mut used = BTreeMap::new();
        for index in 0..self.rings.max_entries() {
            let owner = lookup(&self.rings, index)?.first_chunk().copied().map(u64::from_ne_bytes).unwrap_or_default();
            if owner != 0 {
                // above the user is RING_OWNED
                *used.entry(owner as u32).or_default() += 1;
            }
        }
        Ok(used)
    }
}

fn lookup(map: &MapHandle, index: u32) -> libbpf_rs::Result<Vec<u8>> {
    Ok(map.lookup(&index.to_ne_bytes(), MapFlags::ANY)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use packet_traits_socket::abi::{TRAITS_HEADER_LEN, TRAITS_SLOT_HEADER_LEN, traits, traits_key, traits_receive};
    use packet_traits_testing::{layout::Types, same_layout};

    use super::*;

    #[test]
    fn the_programs_and_applications_mean_the_same() {
        let types = Types::of(OBJECT);
        // what is `type` in C
        let mut key = types.structure("traits_key");
        key.members
            .iter_mut()
            .filter(|member| member.name == "type")
            .for_each(|member| member.name.insert_str(0, "key_"));
        same_layout!(key, traits_key { name, number, key_type, size, merge, offset, distance });
        same_layout!(types.structure("traits"), traits { present, flags, mark, values });
        same_layout!(
            types.structure("traits_receive"),
            traits_receive {
                enabled,
                traits_len,
                flow_len,
                packet_len,
                ring,
                slots,
                generation,
                slot_len,
                instance,
                revision
            }
        );
        assert_eq!(types.structure("traits").offset_of("values"), TRAITS_HEADER_LEN);
        let slot = types.structure("slot");
        assert_eq!(["handle", "generation", "revision"].map(|word| slot.offset_of(word)), [0, 4, 8]);
        // from there on it is what applications know as `traits`
        let of_traits = ["present", "flags", "mark"].map(|word| slot.offset_of(word) - TRAITS_SLOT_HEADER_LEN);
        assert_eq!(of_traits, ["present", "flags", "mark"].map(|word| types.structure("traits").offset_of(word)));
        assert_eq!(slot.offset_of("word"), SLOT_HEADER_LEN);
        assert_eq!(SLOT_HEADER_LEN, TRAITS_SLOT_HEADER_LEN + TRAITS_HEADER_LEN);
    }

    #[test]
    fn rings_are_filled_like_that() {
        let ring = Types::of(OBJECT).structure("ring");
        assert_eq!((ring.size, ring.offset_of("next")), (RING_LEN, RING_NEXT));
    }

    #[test]
    fn a_slot_has_room_for_the_layouts_values() {
        for (flow, packet, len) in [(64, 80, 128), (64, 0, 128), (24, 0, 64), (32, 40, 64), (120, 96, 192)] {
            assert_eq!(slot_len(Layout::new(flow, packet).unwrap()), len, "{flow} + {packet}");
        }
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        let good = Sizes { sockets: 256, per_user: 128, slots: 512, pending_syns: 16384 };
        assert!(good.check().is_ok());
        for bad in [
            Sizes { sockets: 0, ..good },
            Sizes { per_user: 0, ..good },
            Sizes { per_user: 65537, ..good },
            Sizes { slots: 1, ..good },
            Sizes { slots: 500, ..good },
            Sizes { pending_syns: 0, ..good },
        ] {
            assert!(matches!(bad.check(), Err(SocketProgramsError::Size { .. })), "{bad:?}");
        }
    }

    /// What [`STATE_VERSION`] 2 is. Another answer here takes another number there; of `trait_sender`, also another
    /// TRAIT_SENDER_LAYOUT in `socket.bpf.h`.
    #[test]
    fn what_is_kept_of_sockets_is_laid_out_as_its_version_says() {
        let layout = [
            "receive 792: wants 0, ring 4, generation 8, syn_saved 12, syn 16, last_sequence 264, newest 268, epoch 272, \
             used 276, last 280",
            "arrival 256: epoch 0, end 4, values 8",
            "trait_sender 784: nonce 0, sequence 8, state 12, task 16, skb 24, pid 32, own_sequence 36, own 40, next 536",
            "trait_sender_values 248: present 0, revision 8, word 16",
            "ring 64: owner 0, generation 8, next 12, reserved 16",
            "syn_key 48: netns 0, saddr 8, daddr 24, sport 40, dport 42, sequence 44",
        ];
        let types = Types::of(OBJECT);
        let found = ["receive", "arrival", "trait_sender", "trait_sender_values", "ring", "syn_key"].map(|name| {
            let kept = types.structure(name);
            let members = kept.members.iter().map(|member| format!("{} {}", member.name, member.offset));
            format!("{name} {}: {}", kept.size, members.collect::<Vec<_>>().join(", "))
        });
        assert_eq!(found[..], layout[..]);
    }

    #[test]
    fn the_object_has_the_constants() {
        let elf = object::File::parse(OBJECT).unwrap();
        let mut section = elf.section_by_name(".rodata").unwrap().data().unwrap().to_vec();
        for name in ["ring_count", "rings_per_user", "rings_of_users", "ring_slots", "instance"] {
            set_constant(&mut section, name, &[1]);
        }
    }
}
