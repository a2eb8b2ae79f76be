//! Binding an opened, not yet loaded object.

use std::path::{Path, PathBuf};

use libbpf_rs::{
    AsRawLibbpf, ObjectBuilder, OpenObject,
    btf::{Btf, BtfType, types},
};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use packet_traits_core::{Key, KeyName, Merge, Nonces, Region, layout::KEY_COUNT};

use super::{
    BindError,
    ctype::{CType, expected},
};
use crate::{
    descriptor::{
        self, ABI_VERSION, ANCHOR_COUNT, ANCHOR_MAX, AreaDescriptor, At, Descriptors, KeyDescriptor, SlotEntry,
    },
    registry::{KeyEntry, Registry},
};

/// Name of the map in which XDP programs publish the headrooms they see (`pt_anchors` in the header).
pub(crate) const ANCHORS_MAP: &str = "pt_anchors";

/// The headroom that drivers with native XDP leave in front of a packet, in bytes (`XDP_PACKET_HEADROOM` in
/// include/uapi/linux/bpf.h); every program knows it from the start.
const XDP_PACKET_HEADROOM: u32 = 256;

/// A key that an object declares, as bound.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BoundKey {
    /// The key.
    pub key: Key,
    /// Which registration of that number it is.
    pub generation: u64,
}

/// What an object was bound to. Check it with [`Binding::holds`] once the object is loaded.
#[derive(Clone, Debug)]
pub struct Binding {
    keys: Vec<BoundKey>,
    /// Number and generation of every key in the table that the calls by number use; empty if the object has none.
    by_number: Vec<(usize, u64)>,
    nonces: Nonces,
}

impl Binding {
    /// The keys the object declares.
    pub fn keys(&self) -> &[BoundKey] {
        &self.keys
    }

    /// The secrets that the object has.
    pub(super) fn nonces(&self) -> Nonces {
        self.nonces
    }

    /// Whether all keys are still registered as they were: those the object declares and, if it uses calls by number,
    /// all that were registered when it was bound; and whether the registry still has the secrets it had.
    ///
    /// From the moment a program is loaded, the registry refuses to give up its keys and to [`rotate`](crate::rotate) its
    /// secrets; what was given up before that moment shows here.
    pub fn holds(&self, registry: &Registry) -> Result<bool, BindError> {
        let declared = self.keys.iter().map(|bound| (bound.key.number(), bound.generation));
        let keys: Vec<_> = declared.chain(self.by_number.iter().copied()).collect();
        Ok(registry.still_binds(&keys, Some(self.nonces))?)
    }
}

/// Binds an open object's keys to a registry, so that it can be loaded.
///
/// `name` stands for the object in errors. The map `pt_anchors` is replaced by the registry's. Binding an object again
/// to the same registry is allowed and brings it up to date.
pub fn bind_open_object(object: &mut OpenObject, name: &str, registry: &Registry) -> Result<Binding, BindError> {
    let binding = fill(object, name, registry)?;
    for mut map in object.maps_mut() {
        if map.name() == ANCHORS_MAP {
            map.reuse_pinned_map(anchors_pin(registry))
                .map_err(|source| BindError::Prepare { object: name.to_owned(), source })?;
        }
    }
    Ok(binding)
}

fn anchors_pin(registry: &Registry) -> PathBuf {
    Path::new(registry.dir()).join("anchors")
}

/// What is no text in an object, though libbpf prints it. (A message that is no text ends the process: libbpf-rs panics in a
/// function that C calls.)
fn not_text(bytes: &[u8]) -> Option<&'static str> {
    let is_text = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok();
    let elf = object::File::parse(bytes).ok()?;
    for section in elf.sections() {
        let name = section.name_bytes().unwrap_or_default();
        let (what, text) = match name {
            b"license" => ("licence", section.data().unwrap_or_default()),
            b".BTF" => ("name in its BTF", btf_strings(section.data().unwrap_or_default()).unwrap_or_default()),
            _ => ("section name", name),
        };
        if !is_text(text) || !is_text(name) {
            return Some(what);
        }
    }
    let symbols_are = elf.symbols().all(|symbol| symbol.name_bytes().is_ok_and(is_text));
    (!symbols_are).then_some("symbol name")
}

/// The strings of BTF, `struct btf_header` in include/uapi/linux/btf.h; `None` if it is malformed, which libbpf says.
fn btf_strings(btf: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_ne_bytes(*btf.get(at..)?.first_chunk()?) as usize);
    let (header, start, len) = (word(4)?, word(16)?, word(20)?);
    btf.get(header.checked_add(start)?..)?.get(..len)
}

/// Opens an object file's contents; `name` stands for it in errors.
pub(super) fn open_bytes(bytes: &[u8], name: &str) -> Result<OpenObject, BindError> {
    if let Some(what) = not_text(bytes) {
        return Err(BindError::NotText { object: name.to_owned(), what });
    }
    ObjectBuilder::default().open_memory(bytes).map_err(|source| {
        // libbpf does not say that this is what it misses
        let without_btf = object::File::parse(bytes).is_ok_and(|elf| {
            elf.section_by_name(descriptor::SECTION).is_some() && elf.section_by_name(".BTF").is_none()
        });
        let object = name.to_owned();
        match (without_btf, no_bpf_object(bytes)) {
            (true, _) => BindError::NoBtf { object },
            (false, Some(reason)) => BindError::NotBpf { object, reason },
            (false, None) => BindError::Open { object, source },
        }
    })
}

/// Why the contents of a file that libbpf refuses are no BPF object at all: libbpf has one error for all of these.
fn no_bpf_object(bytes: &[u8]) -> Option<&'static str> {
    if bytes.is_empty() {
        return Some("it is empty");
    }
    if !bytes.starts_with(&object::elf::ELFMAG) {
        return Some("it does not start like one");
    }
    match object::File::parse(bytes) {
        Err(_) => Some("it is damaged or cut short"),
        Ok(elf) if elf.architecture() != object::Architecture::Bpf => {
            Some("it is for another machine; compile it with `clang -target bpf`")
        }
        Ok(elf) if elf.kind() != object::ObjectKind::Relocatable => {
            Some("it is linked; bind what `clang -c` or `bpftool gen object` writes")
        }
        Ok(_) => None,
    }
}

/// Fills the object's descriptors in.
pub(super) fn fill(object: &mut OpenObject, name: &str, registry: &Registry) -> Result<Binding, BindError> {
    let no_keys = || BindError::NoKeys { object: name.to_owned() };
    let mut map = object.maps_mut().find(|map| map.name() == descriptor::SECTION).ok_or_else(no_keys)?;
    let mut section = map.initial_value_mut().ok_or_else(no_keys)?.to_vec();

    let found = Descriptors::parse(&section);
    if found.areas.is_empty() {
        return Err(no_keys());
    }
    for area in found.areas.iter().map(|area| area.value) {
        if area.abi != ABI_VERSION {
            return Err(BindError::Version { object: name.to_owned(), found: area.abi });
        }
        if area.flow_nonce != 0 && area.registry_id != registry.id() {
            return Err(BindError::OtherRegistry {
                object: name.to_owned(),
                found: area.registry_id,
                registry: registry.name().to_string(),
                id: registry.id(),
            });
        }
    }

    let entries = registry.list()?;
    // SAFETY: the object outlives `btf`, which is dropped before the object is used again.
    let raw = unsafe { object.as_libbpf_object().as_ref() };
    let btf = Btf::from_bpf_object(raw)
        .map_err(|source| BindError::Prepare { object: name.to_owned(), source })?
        .ok_or_else(|| BindError::NoBtf { object: name.to_owned() })?;
    let mut keys: Vec<BoundKey> = Vec::with_capacity(found.keys.len());
    for declared in &found.keys {
        let entry = check(name, registry, &entries, &btf, &found.keys, declared)?;
        let slot = entry.key.slot();
        KeyDescriptor {
            bit: entry.key.bit(),
            distance: slot.distance() as u32,
            number: entry.key.number() as u8,
            generation: entry.generation,
            ..declared.value
        }
        .write(&mut section[declared.offset..]);
        let bound = BoundKey { key: entry.key, generation: entry.generation };
        if !keys.contains(&bound) {
            keys.push(bound);
        }
    }

    let layout = registry.layout();
    let nonces = registry.current_nonces()?;
    let filled = AreaDescriptor {
        abi: ABI_VERSION,
        area_len: layout.area_len() as u32,
        flow_len: layout.region_len(Region::Flow) as u32,
        packet_len: layout.region_len(Region::Packet) as u32,
        flow_nonce: nonces.flow,
        packet_nonce: nonces.packet,
        registry_id: registry.id(),
        anchors: known_anchors(registry.anchors()?),
        tag_keys: nonces.tag_keys(),
        check_keys: nonces.check_keys(),
        discard: entries
            .iter()
            .filter(|entry| entry.merge == Merge::Discard)
            .fold(0, |bits, entry| bits | entry.key.bit()),
        sender_nonce: registry.sender_nonce(),
    };
    for area in &found.areas {
        filled.write(&mut section[area.offset..]);
    }
    let mut by_number = Vec::new();
    if !found.slots.is_empty() {
        by_number.extend(entries.iter().map(|entry| (entry.key.number(), entry.generation)));
    }
    for slots in &found.slots {
        slot_table(&entries).write(&mut section[slots.offset..]);
    }

    let mut map = object.maps_mut().find(|map| map.name() == descriptor::SECTION).ok_or_else(no_keys)?;
    map.initial_value_mut().ok_or_else(no_keys)?.copy_from_slice(&section);
    Ok(Binding { keys, by_number, nonces })
}

/// Checks one declaration against the registry.
fn check<'e>(
    object: &str,
    registry: &Registry,
    entries: &'e [KeyEntry],
    btf: &Btf<'_>,
    all: &[At<KeyDescriptor>],
    declared: &At<KeyDescriptor>,
) -> Result<&'e KeyEntry, BindError> {
    let damaged = |reason: String| BindError::Descriptor { object: object.to_owned(), reason };
    let name = KeyName::from_padded(&declared.value.name)
        .map_err(|error| damaged(format!("{:?}: {error}", String::from_utf8_lossy(&declared.value.name))))?;
    let merge = Merge::from_code(declared.value.merge)
        .ok_or_else(|| damaged(format!("key {name} has merge policy {}", declared.value.merge)))?;
    let entry = entries.iter().find(|entry| *entry.key.name() == name).ok_or_else(|| BindError::UnknownKey {
        object: object.to_owned(),
        key: name.to_string(),
        registry: registry.name().to_string(),
        known: match entries {
            [] => "no keys".to_owned(),
            _ => entries.iter().map(|entry| entry.key.name().as_str()).collect::<Vec<_>>().join(", "),
        },
    })?;
    // a copy that linking left has no variable of its own; it must say what the one says that has
    let same = |other: &&At<KeyDescriptor>| other.value.name == declared.value.name;
    let c_type = declared_type(btf, declared.offset)
        .or_else(|| all.iter().filter(same).find_map(|other| declared_type(btf, other.offset)))
        .ok_or_else(|| damaged(format!("key {name} has no type in the object's BTF")))?;
    if !c_type.holds(entry.key.key_type()) || usize::from(declared.value.size) != entry.key.slot().size() {
        return Err(BindError::Type {
            object: object.to_owned(),
            key: name,
            declared: c_type.name,
            registry: registry.name().to_string(),
            registered: entry.key.key_type(),
            expected: expected(entry.key.key_type()),
        });
    }
    if merge != entry.merge {
        return Err(BindError::MergePolicy {
            object: object.to_owned(),
            key: name,
            declared: merge,
            registry: registry.name().to_string(),
            registered: entry.merge,
        });
    }
    Ok(entry)
}

/// The C type of the key whose descriptor is at `offset` in the section.
fn declared_type(btf: &Btf<'_>, offset: usize) -> Option<CType> {
    let section: types::DataSec<'_> = btf.type_by_name(descriptor::SECTION)?;
    let place = section.iter().find(|place| place.offset as usize == offset)?;
    let variable: types::Var<'_> = btf.type_by_id::<BtfType<'_>>(place.ty)?.try_into().ok()?;
    CType::of_descriptor(btf, variable)
}

/// The headrooms a program starts with: the usual one, then what the registry has seen.
fn known_anchors(seen: [u32; ANCHOR_MAX]) -> [u32; ANCHOR_COUNT] {
    let mut known = [0; ANCHOR_COUNT];
    let others = seen.into_iter().filter(|headroom| *headroom != 0 && *headroom != XDP_PACKET_HEADROOM);
    for (place, headroom) in known.iter_mut().zip([XDP_PACKET_HEADROOM].into_iter().chain(others)) {
        *place = headroom;
    }
    known
}

fn slot_table(entries: &[KeyEntry]) -> descriptor::SlotsDescriptor {
    let mut table = descriptor::SlotsDescriptor { mask: 0, slots: [SlotEntry::default(); KEY_COUNT] };
    for entry in entries {
        let slot = entry.key.slot();
        table.mask |= entry.key.bit();
        table.slots[entry.key.number()] =
            SlotEntry { distance: slot.distance() as u8, size: slot.size() as u8, merge: entry.merge as u8 };
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_headroom_comes_first_and_once() {
        let seen = |first: &[u32]| std::array::from_fn(|i| first.get(i).copied().unwrap_or(0));
        assert_eq!(known_anchors(seen(&[])), [256, 0, 0, 0]);
        assert_eq!(known_anchors(seen(&[192, 256])), [256, 192, 0, 0]);
        assert_eq!(known_anchors(seen(&[1, 2, 3, 4])), [256, 1, 2, 3]);
    }
}
