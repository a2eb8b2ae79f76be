//! The descriptors a BPF program carries in its section `.rodata.packet_traits`: one for the area, one for each key it
//! declares, and one slot table if it uses the calls by number.
//!
//! The C side of this format is `include/packet_traits/traits.bpf.h`; both must agree, and [`ABI_VERSION`] says on
//! what. Descriptors are native-endian, aligned to 16 bytes, start with a magic number, and can be found by walking
//! the section in steps of 16 bytes. What a declaration does not give is zero until a registry fills it in.

use packet_traits_core::layout::KEY_COUNT;

/// The ELF section, and the libbpf name of the map, that holds the descriptors.
pub(crate) const SECTION: &str = ".rodata.packet_traits";

/// Version of this format; `TRAITS_ABI_VERSION` in the header.
pub(crate) const ABI_VERSION: u32 = 2;

/// How many headroom anchors a program carries; `TRAITS_ANCHOR_COUNT` in the header.
pub(crate) const ANCHOR_COUNT: usize = 4;

/// How many headroom anchors the registry's map holds; `TRAITS_ANCHOR_MAX` in the header.
pub(crate) const ANCHOR_MAX: usize = 16;

/// How many CPUs have an entry of their own in that map; `TRAITS_CPU_MAX` in the header.
pub(crate) const CPU_MAX: usize = 512;

const STEP: usize = 16;
const AREA_MAGIC: [u8; 8] = *b"PTRAREA\0";
const KEY_MAGIC: [u8; 8] = *b"PTRKEY\0\0";
const SLOTS_MAGIC: [u8; 8] = *b"PTRSLOT\0";

/// `struct trait_area_desc`: which registry's areas the program works on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AreaDescriptor {
    pub(crate) abi: u32,
    pub(crate) area_len: u32,
    pub(crate) flow_len: u32,
    pub(crate) packet_len: u32,
    /// 0: not bound.
    pub(crate) flow_nonce: u64,
    pub(crate) packet_nonce: u64,
    /// Not secret; tells registries apart.
    pub(crate) registry_id: u64,
    /// Headroom seen in XDP (`data - data_hard_start`), in bytes; 0: none.
    pub(crate) anchors: [u32; ANCHOR_COUNT],
    /// [`Nonces::tag_keys`](packet_traits_core::Nonces::tag_keys).
    pub(crate) tag_keys: [u64; 2],
    /// [`Nonces::check_keys`](packet_traits_core::Nonces::check_keys).
    pub(crate) check_keys: [u64; 2],
    /// Bits of the keys with the merge policy `discard`.
    pub(crate) discard: u64,
    /// What sockets keep for their packets begins with it.
    pub(crate) sender_nonce: u64,
}

/// `struct trait_key_desc`: one key the program declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyDescriptor {
    /// `1 << number`; 0: not bound.
    pub(crate) bit: u64,
    /// Bytes from the packet data back to the slot.
    pub(crate) distance: u32,
    /// Declared size of the value in bytes.
    pub(crate) size: u16,
    /// Declared merge policy's code.
    pub(crate) merge: u8,
    pub(crate) number: u8,
    /// The key's generation in the registry, so that a later key of the same number is told apart.
    pub(crate) generation: u64,
    /// Declared name, NUL-padded.
    pub(crate) name: [u8; 32],
}

/// `struct trait_slots_desc`: every key of the registry at the time of binding, for the calls by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotsDescriptor {
    /// Bit *k*: key *k* is in the table.
    pub(crate) mask: u64,
    pub(crate) slots: [SlotEntry; KEY_COUNT],
}

/// `struct trait_slot`: one row of a [`SlotsDescriptor`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotEntry {
    pub(crate) distance: u8,
    pub(crate) size: u8,
    pub(crate) merge: u8,
}

/// A descriptor and where it starts in the section.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<T> {
    pub(crate) offset: usize,
    pub(crate) value: T,
}

/// All descriptors of one section.
///
/// An object that was linked from several (`bpftool gen object`) has copies: each file's descriptors are in the
/// section, while code refers only to the first of those that are the same variable.
#[derive(Clone, Debug, Default)]
pub(crate) struct Descriptors {
    pub(crate) areas: Vec<At<AreaDescriptor>>,
    pub(crate) keys: Vec<At<KeyDescriptor>>,
    pub(crate) slots: Vec<At<SlotsDescriptor>>,
}

impl Descriptors {
    /// Finds the descriptors in a section's bytes. What is cut short is not there.
    pub(crate) fn parse(section: &[u8]) -> Descriptors {
        let mut found = Descriptors::default();
        let mut offset = 0;
        while let Some(rest) = section.get(offset..).filter(|rest| rest.len() >= 8) {
            let magic = &rest[..8];
            let len = if magic == AREA_MAGIC && rest.len() >= AreaDescriptor::len(rest) {
                found.areas.push(At { offset, value: AreaDescriptor::read(rest) });
                AreaDescriptor::len(rest)
            } else if magic == KEY_MAGIC && rest.len() >= KeyDescriptor::LEN {
                found.keys.push(At { offset, value: KeyDescriptor::read(rest) });
                KeyDescriptor::LEN
            } else if magic == SLOTS_MAGIC && rest.len() >= SlotsDescriptor::LEN {
                found.slots.push(At { offset, value: SlotsDescriptor::read(rest) });
                SlotsDescriptor::LEN
            } else {
                STEP
            };
            offset += len;
        }
        found
    }
}

impl AreaDescriptor {
    const LEN: usize = 112;

    /// Bytes in version 1, which had no keys for tags and checks.
    const LEN_1: usize = 64;

    /// Bytes of the descriptor that `raw` begins with. Of programs that were loaded by an earlier version is told, too, which
    /// registry they use.
    fn len(raw: &[u8]) -> usize {
        match raw.get(8..12) {
            Some(abi) if abi == 1u32.to_ne_bytes() => Self::LEN_1,
            _ => Self::LEN,
        }
    }

    fn read(raw: &[u8]) -> AreaDescriptor {
        let is_old = Self::len(raw) == Self::LEN_1;
        let mut from = Cursor { raw, at: 8 };
        AreaDescriptor {
            abi: from.u32(),
            area_len: from.u32(),
            flow_len: from.u32(),
            packet_len: from.u32(),
            flow_nonce: from.u64(),
            packet_nonce: from.u64(),
            registry_id: from.u64(),
            anchors: std::array::from_fn(|_| from.u32()),
            tag_keys: if is_old { [0; 2] } else { std::array::from_fn(|_| from.u64()) },
            check_keys: if is_old { [0; 2] } else { std::array::from_fn(|_| from.u64()) },
            discard: if is_old { 0 } else { from.u64() },
            sender_nonce: if is_old { 0 } else { from.u64() },
        }
    }

    /// Overwrites the descriptor at the start of `raw`, magic aside.
    pub(crate) fn write(&self, raw: &mut [u8]) {
        let mut to = CursorMut { raw, at: 8 };
        to.put(&self.abi.to_ne_bytes());
        to.put(&self.area_len.to_ne_bytes());
        to.put(&self.flow_len.to_ne_bytes());
        to.put(&self.packet_len.to_ne_bytes());
        to.put(&self.flow_nonce.to_ne_bytes());
        to.put(&self.packet_nonce.to_ne_bytes());
        to.put(&self.registry_id.to_ne_bytes());
        for anchor in self.anchors {
            to.put(&anchor.to_ne_bytes());
        }
        for key in self.tag_keys.into_iter().chain(self.check_keys) {
            to.put(&key.to_ne_bytes());
        }
        to.put(&self.discard.to_ne_bytes());
        to.put(&self.sender_nonce.to_ne_bytes());
    }
}

impl KeyDescriptor {
    const LEN: usize = 64;

    fn read(raw: &[u8]) -> KeyDescriptor {
        let mut from = Cursor { raw, at: 8 };
        KeyDescriptor {
            bit: from.u64(),
            distance: from.u32(),
            size: from.u16(),
            merge: from.u8(),
            number: from.u8(),
            generation: from.u64(),
            name: from.take(),
        }
    }

    /// Overwrites the descriptor at the start of `raw`, magic aside.
    pub(crate) fn write(&self, raw: &mut [u8]) {
        let mut to = CursorMut { raw, at: 8 };
        to.put(&self.bit.to_ne_bytes());
        to.put(&self.distance.to_ne_bytes());
        to.put(&self.size.to_ne_bytes());
        to.put(&[self.merge, self.number]);
        to.put(&self.generation.to_ne_bytes());
        to.put(&self.name);
    }
}

impl SlotsDescriptor {
    const LEN: usize = 16 + 4 * KEY_COUNT;

    fn read(raw: &[u8]) -> SlotsDescriptor {
        let mut from = Cursor { raw, at: 8 };
        SlotsDescriptor {
            mask: from.u64(),
            slots: std::array::from_fn(|_| {
                let [distance, size, merge, _] = from.take();
                SlotEntry { distance, size, merge }
            }),
        }
    }

    /// Overwrites the descriptor at the start of `raw`, magic aside.
    pub(crate) fn write(&self, raw: &mut [u8]) {
        let mut to = CursorMut { raw, at: 8 };
        to.put(&self.mask.to_ne_bytes());
        for slot in self.slots {
            to.put(&[slot.distance, slot.size, slot.merge, 0]);
        }
    }
}

struct Cursor<'a> {
    raw: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let bytes = std::array::from_fn(|i| self.raw[self.at + i]);
        self.at += N;
        bytes
    }

    fn u8(&mut self) -> u8 {
        u8::from_ne_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }
}

struct CursorMut<'a> {
    raw: &'a mut [u8],
    at: usize,
}

impl CursorMut<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.raw[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use packet_traits_testing::layout::Types;

    use super::*;

    fn section() -> Vec<u8> {
        let mut raw = vec![0; 16 + AreaDescriptor::LEN + KeyDescriptor::LEN + SlotsDescriptor::LEN];
        raw[16..24].copy_from_slice(&AREA_MAGIC);
        raw[128..136].copy_from_slice(&KEY_MAGIC);
        raw[192..200].copy_from_slice(&SLOTS_MAGIC);
        raw
    }

    fn descriptors() -> (AreaDescriptor, KeyDescriptor, SlotsDescriptor) {
        let area = AreaDescriptor {
            abi: 2,
            area_len: 144,
            flow_len: 64,
            packet_len: 80,
            flow_nonce: 2,
            packet_nonce: 4,
            registry_id: 9,
            anchors: [256, 0, 0, 1],
            tag_keys: [3, 5],
            check_keys: [7, u64::MAX],
            discard: 6,
            sender_nonce: 8,
        };
        let key = KeyDescriptor {
            bit: 8,
            distance: 24,
            size: 4,
            merge: 1,
            number: 3,
            generation: 77,
            name: *b"tenant\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        };
        let mut slots = SlotsDescriptor { mask: 8, slots: [SlotEntry::default(); KEY_COUNT] };
        slots.slots[3] = SlotEntry { distance: 24, size: 4, merge: 1 };
        (area, key, slots)
    }

    /// An object with a descriptor of each kind, made of the headers.
    fn object() -> Vec<u8> {
        const SOURCE: &str = "#include <linux/bpf.h>\n#include <packet_traits/rfc.bpf.h>\nTRAIT_KEY(tenant, __u32);\n";
        let folder = tempfile::tempdir().unwrap();
        let (include, source, object) =
            (folder.path().join("include"), folder.path().join("all.bpf.c"), folder.path().join("all.bpf.o"));
        packet_traits_headers::write_to(&include).unwrap();
        std::fs::write(&source, SOURCE).unwrap();
        let done = std::process::Command::new(packet_traits_lab::clang())
            .args(["-O2", "-g", "-mcpu=v3", "-target", "bpf", "-c"])
            .arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH))
            .arg("-I")
            .arg(&include)
            .arg("-o")
            .args([&object, &source])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        std::fs::read(object).unwrap()
    }

    #[test]
    fn programs_read_descriptors_like_that() {
        let object = object();
        let types = Types::of(&object);
        let (area, key, slots) = descriptors();
        let mut raw = section();
        area.write(&mut raw[16..]);
        key.write(&mut raw[128..]);
        slots.write(&mut raw[192..]);
        let ne = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_ne_bytes()).collect::<Vec<u8>>();
        let ne32 = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_ne_bytes()).collect::<Vec<u8>>();

        let given = [
            ("magic", AREA_MAGIC.to_vec()),
            ("abi", ne32(&[area.abi])),
            ("area_len", ne32(&[area.area_len])),
            ("flow_len", ne32(&[area.flow_len])),
            ("packet_len", ne32(&[area.packet_len])),
            ("flow_nonce", ne(&[area.flow_nonce])),
            ("packet_nonce", ne(&[area.packet_nonce])),
            ("registry_id", ne(&[area.registry_id])),
            ("anchors", ne32(&area.anchors)),
            ("tag_keys", ne(&area.tag_keys)),
            ("check_keys", ne(&area.check_keys)),
            ("discard", ne(&[area.discard])),
            ("sender_nonce", ne(&[area.sender_nonce])),
        ];
        let c = types.structure("trait_area_desc");
        assert_eq!((c.size, c.misplaced(&raw[16..], &given)), (AreaDescriptor::LEN, Vec::new()));

        let given = [
            ("magic", KEY_MAGIC.to_vec()),
            ("bit", ne(&[key.bit])),
            ("dist", ne32(&[key.distance])),
            ("size", key.size.to_ne_bytes().to_vec()),
            ("merge", vec![key.merge]),
            ("number", vec![key.number]),
            ("generation", ne(&[key.generation])),
            ("name", key.name.to_vec()),
        ];
        let c = types.structure("trait_key_desc");
        assert_eq!((c.size, c.misplaced(&raw[128..], &given)), (KeyDescriptor::LEN, Vec::new()));

        let row = |slot: &SlotEntry| [slot.distance, slot.size, slot.merge, 0];
        let given = [
            ("magic", SLOTS_MAGIC.to_vec()),
            ("mask", ne(&[slots.mask])),
            ("slot", slots.slots.iter().flat_map(row).collect()),
        ];
        let c = types.structure("trait_slots_desc");
        assert_eq!((c.size, c.misplaced(&raw[192..], &given)), (SlotsDescriptor::LEN, Vec::new()));
        let row = types.structure("trait_slot");
        assert_eq!(["dist", "size", "merge"].map(|name| row.offset_of(name)), [0, 1, 2]);
    }

    #[test]
    fn what_is_written_is_parsed_again() {
        let mut raw = section();
        let (area, key, slots) = descriptors();
        area.write(&mut raw[16..]);
        key.write(&mut raw[128..]);
        slots.write(&mut raw[192..]);

        let found = Descriptors::parse(&raw);
        let (a, s) = (found.areas[0], found.slots[0]);
        assert_eq!((a.offset, a.value), (16, area));
        assert_eq!((found.keys[0].offset, found.keys[0].value), (128, key));
        assert_eq!((s.offset, s.value), (192, slots));
    }

    #[test]
    fn descriptors_of_programs_of_the_version_before_are_found() {
        let mut raw = vec![0; AreaDescriptor::LEN_1 + KeyDescriptor::LEN];
        raw[..8].copy_from_slice(&AREA_MAGIC);
        raw[8..12].copy_from_slice(&1u32.to_ne_bytes());
        raw[40..48].copy_from_slice(&9u64.to_ne_bytes());
        raw[64..72].copy_from_slice(&KEY_MAGIC);
        let found = Descriptors::parse(&raw);
        assert_eq!((found.areas[0].value.abi, found.areas[0].value.registry_id), (1, 9));
        assert_eq!(found.keys[0].offset, 64);
    }

    #[test]
    fn a_descriptor_cut_short_is_not_found() {
        let raw = section();
        for len in 0..raw.len() {
            let found = Descriptors::parse(&raw[..len]);
            assert_eq!(found.areas.len(), usize::from(len >= 128));
            assert_eq!(found.keys.len(), usize::from(len >= 192));
            assert!(found.slots.is_empty());
        }
    }
}
