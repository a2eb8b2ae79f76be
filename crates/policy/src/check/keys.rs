//! Declarations of keys, and whether a registry can take them.

use packet_traits_core::{KeyName, KeyType, Layout, Merge, Region, Slot, layout::KEY_COUNT};

use super::{Checker, Declared};
use crate::{
    diagnostic::{Code, Diagnostic, Diagnostics, alternatives, closest, quoted},
    foreign,
    policy::{KeyDeclaration, KeyId},
    syntax::ast,
};

/// Bytes of a key's longest description in a registry.
const DESCRIPTION_LEN_MAX: usize = 127;

/// What a registry has: sizes of its regions, and its keys.
#[derive(Clone, Debug, Default)]
pub struct RegistryKeys {
    /// Its name; `None` if there is none and this stands for one to come.
    pub name: Option<String>,
    /// Sizes of its regions.
    pub layout: Layout,
    /// Its keys.
    pub keys: Vec<HeldKey>,
    /// Bytes of XDP metadata that the kernel takes, if it is known and less than a driver has room for: before Linux 6.8, 32.
    /// No registry's area can be longer.
    pub longest_metadata: Option<usize>,
}

impl RegistryKeys {
    /// How to get room for a key in a region that has none.
    fn more_room(&self, region: Region, size: usize) -> String {
        let (other, merge, option) = match region {
            Region::Flow => (Region::Packet, Merge::KeepFirst, "flow"),
            Region::Packet => (Region::Flow, Merge::Block, "packet"),
        };
        let larger = match self.longest_metadata {
            Some(longest) if self.layout.longer_area_len(region, size) > longest => {
                format!("a larger area needs Linux 6.8: this kernel takes {longest} bytes of XDP metadata")
            }
            _ => format!("`traits registry create NAME --{option} BYTES` makes a larger one"),
        };
        match self.layout.region_len(other) {
            0 => larger,
            _ => format!("merge policy {merge} takes from the other region; {larger}"),
        }
    }
}

/// A key in a registry.
#[derive(Clone, Debug)]
pub struct HeldKey {
    /// Its name.
    pub name: KeyName,
    /// Its type.
    pub key_type: KeyType,
    /// What GRO does with differing values.
    pub merge: Merge,
    /// Where its value lies.
    pub slot: Slot,
    /// Who registered it, for people.
    pub holder: String,
}

impl<'a> Checker<'a> {
    pub(super) fn key(&mut self, key: &'a ast::Key) {
        if let Some(first) = self.keys.get(key.name.value.as_str()).map(|first| first.span) {
            return self.duplicate("key", &key.name, first);
        }
        let value = self.key_declaration(key).map(|declaration| {
            self.policy.keys.push(declaration);
            KeyId(self.policy.keys.len() - 1)
        });
        self.keys.insert(&key.name.value, Declared { span: key.name.span, value, used: true });
    }

    fn key_declaration(&mut self, key: &ast::Key) -> Option<KeyDeclaration> {
        let name = match KeyName::new(&key.name.value) {
            Ok(name) => Some(name),
            Err(why) => {
                let message = format!("{} cannot be a key's name: {why}", quoted(&key.name.value));
                self.error(Diagnostic::new(Code::BadName, key.name.span, message));
                None
            }
        };
        let key_type = self.type_name(&key.key_type);
        let merge = match &key.merge {
            None => Some(Merge::default()),
            Some(merge) => {
                let known = merge.value.parse().ok();
                if known.is_none() {
                    let message = format!("{} is not a merge policy", quoted(&merge.value));
                    let hint = "block (default): packets whose values differ are not merged; \
                                keep-first: the merged packet has the first one's value; discard: it has none";
                    self.error(Diagnostic::new(Code::UnknownWord, merge.span, message).hint(hint));
                }
                known
            }
        };
        let description = match &key.description {
            None => Some(String::new()),
            Some(text) if text.value.len() > DESCRIPTION_LEN_MAX => {
                let message =
                    format!("a description has at most {DESCRIPTION_LEN_MAX} bytes, this one has {}", text.value.len());
                self.error(Diagnostic::new(Code::TooMany, text.span, message));
                None
            }
            Some(text) if text.value.chars().any(char::is_control) => {
                let message = "a description cannot have control characters";
                self.error(Diagnostic::new(Code::BadConstant, text.span, message));
                None
            }
            Some(text) => Some(text.value.clone()),
        };
        Some(KeyDeclaration {
            name: name?,
            key_type: key_type?,
            merge: merge?,
            description: description?,
            span: key.span,
        })
    }

    /// The type of this name.
    pub(super) fn type_name(&mut self, word: &ast::Spanned<String>) -> Option<KeyType> {
        let known = word.value.parse().ok();
        if known.is_none() {
            let names = KeyType::ALL.map(KeyType::name);
            let hint = foreign::hint(&word.value)
                .or_else(|| closest(&word.value, names).map(|meant| format!("did you mean `{meant}`?")))
                .unwrap_or_else(|| format!("types are {}", alternatives(names)));
            let message = format!("{} is not a type", quoted(&word.value));
            self.error(Diagnostic::new(Code::UnknownWord, word.span, message).hint(hint));
        }
        known
    }
}

/// Says which keys the registry has in another way, and which it has no room for.
pub(super) fn check_room(keys: &[KeyDeclaration], registry: &RegistryKeys, diagnostics: &mut Diagnostics) {
    let of = match &registry.name {
        Some(name) => format!("registry `{name}`"),
        None => "a registry of the default layout".to_owned(),
    };
    let mut slots: Vec<Slot> = registry.keys.iter().map(|key| key.slot).collect();
    let mut taken: Vec<(Region, String)> =
        registry.keys.iter().map(|key| (key.merge.region(), format!("{} {}", key.name, key.key_type))).collect();
    let mut full: Vec<Region> = Vec::new();
    for key in keys {
        if let Some(held) = registry.keys.iter().find(|held| held.name == key.name) {
            if (held.key_type, held.merge) != (key.key_type, key.merge) {
                let message = format!(
                    "key `{}` is held as {}, {} in {of}, not as {}, {}",
                    key.name, held.key_type, held.merge, key.key_type, key.merge
                );
                let label = format!("{} holds it as {}, {}", held.holder, held.key_type, held.merge);
                let hint = "declare it that way, or choose another name";
                diagnostics.push(Diagnostic::new(Code::KeyHeld, key.span, message).label(label).hint(hint));
            }
            continue;
        }
        if taken.len() == KEY_COUNT {
            let message = format!("key `{}` has no number left: {of} has {KEY_COUNT} keys", key.name);
            diagnostics.push(Diagnostic::new(Code::NoRoom, key.span, message));
            return;
        }
        let region = key.merge.region();
        if full.contains(&region) {
            continue;
        }
        let free = |place: &Slot| slots.iter().all(|slot| !slot.overlaps(place));
        let slot = registry.layout.places(region, key.key_type.size()).find(free);
        match slot {
            Some(slot) => slots.push(slot),
            None => {
                let held: usize = slots.iter().filter(|slot| slot.region() == region).map(Slot::size).sum();
                let space = registry.layout.slot_space(region);
                let others: Vec<&str> =
                    taken.iter().filter(|(other, _)| *other == region).map(|(_, key)| key.as_str()).collect();
                let message = format!(
                    "key `{}` does not fit: {of} has {space} bytes for keys in its {region} region, {} of them are free",
                    key.name,
                    space.saturating_sub(held),
                );
                let label = match key.key_type.size() {
                    0 => "there is no such region".to_owned(),
                    1 => format!("type {} takes 1 byte", key.key_type),
                    size => format!("type {} takes {size} bytes, aligned", key.key_type),
                };
                let mut diagnostic = Diagnostic::new(Code::NoRoom, key.span, message).label(label);
                if !others.is_empty() {
                    diagnostic = diagnostic.hint(format!("there are {}", others.join(", ")));
                }
                diagnostics.push(diagnostic.hint(registry.more_room(region, key.key_type.size())));
                full.push(region);
                continue;
            }
        }
        taken.push((region, format!("{} {}", key.name, key.key_type)));
    }
}
