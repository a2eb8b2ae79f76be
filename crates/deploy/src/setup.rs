//! What a policy's manifest means for bringing it up: keys to register, places of its programs, and what its maps
//! are filled with.

use std::fmt::Display;

use libbpf_rs::OpenObject;
use packet_traits::{
    KeyName,
    attach::{LinkLayer, NetfilterFamily, NetfilterHook, NetfilterOptions, interface_name},
    deployment::{Filter, FilterUse, Setup, Table},
    registry::{Description, KeySpec},
};
use packet_traits_policy::{
    manifest::{self, Hook, Manifest},
    symbols,
};

use crate::{PolicyError, interface};

/// The keys to register.
pub(crate) fn keys(manifest: &Manifest) -> Result<Vec<KeySpec>, PolicyError> {
    let spec = |key: &manifest::Key| -> Result<KeySpec, PolicyError> {
        let damaged = |why: &dyn Display| damaged(manifest, format!("key {}: {why}", key.name));
        Ok(KeySpec::new(
            KeyName::new(&key.name).map_err(|why| damaged(&why))?,
            key.key_type.parse().map_err(|why| damaged(&why))?,
        )
        .merge(key.merge.parse().map_err(|why| damaged(&why))?)
        .description(Description::new(&key.description).map_err(|why| damaged(&why))?))
    };
    manifest.keys.iter().map(spec).collect()
}

/// The places of netfilter programs.
pub(crate) fn netfilter(manifest: &Manifest) -> Result<Vec<(String, NetfilterOptions)>, PolicyError> {
    let mut places = Vec::new();
    for program in &manifest.programs {
        let Hook::Netfilter { families, point, priority } = &program.hook else { continue };
        let unknown = |what: &str, why: &dyn Display| {
            damaged(manifest, format!("program {} is for netfilter's {what}: {why}", program.name))
        };
        let hook: NetfilterHook = point.parse().map_err(|why| unknown(point, &why))?;
        for family in families {
            let family: NetfilterFamily = family.parse().map_err(|why| unknown(family, &why))?;
            places.push((program.name.clone(), NetfilterOptions::new(family, hook).priority(*priority)));
        }
    }
    Ok(places)
}

/// What the object needs besides being attached to an interface, by index and name. Interfaces are those of this network
/// namespace.
pub(crate) fn setup(
    manifest: &Manifest,
    object: &OpenObject,
    interface: Option<(u32, &str)>,
) -> Result<Setup, PolicyError> {
    let has = |map: &str| object.maps().any(|one| one.name() == map);
    let only = |map: &str| Vec::from_iter(has(map).then(|| map.to_owned()));
    let programs = |of: fn(&manifest::Program) -> bool| {
        manifest.programs.iter().filter(move |program| of(program)).map(|program| program.name.clone())
    };
    let filters = manifest.programs.iter().filter_map(|program| {
        let usage = match program.hook {
            Hook::Match => FilterUse::Match,
            Hook::Steer => FilterUse::Steer,
            _ => return None,
        };
        Some(Filter { program: program.name.clone(), usage })
    });
    let pinned_maps = object
        .maps()
        .map(|map| map.name().to_string_lossy().into_owned())
        .filter(|map| map.starts_with(symbols::PREFIX) && map != symbols::ANCHORS && map != symbols::UNIQUE);
    let mut variables = interfaces(manifest)?;
    if let Some(bare) = no_link_header(manifest, interface)? {
        variables.push((symbols::NO_LINK_HEADER.to_owned(), u32::from(bare).to_ne_bytes().to_vec()));
    }
    Ok(Setup {
        variables,
        tables: manifest.tables.iter().map(|one| table(manifest, one)).collect::<Result<_, _>>()?,
        cpu_maps: only(symbols::CPUS),
        shared_maps: only(symbols::UNIQUE),
        pinned_maps: pinned_maps.collect(),
        kept_maps: only(symbols::XSKS),
        device_bound: programs(|program| program.device_bound).collect(),
        may_inherit: manifest.may_inherit.then(|| symbols::MAY_INHERIT.to_owned()),
        redirects_to: redirect_targets(manifest).map(|(_, index)| index).collect(),
        filters: filters.collect(),
        notes: notes(manifest),
    })
}

/// The manifest without what is in the maps anyway.
fn notes(manifest: &Manifest) -> Vec<u8> {
    let mut notes = manifest.clone();
    notes.tables.clear();
    serde_json::to_vec(&notes).expect("a manifest is made of texts and numbers")
}

/// What [`setup`] noted down; `None` if it is no policy.
pub(crate) fn noted(notes: &[u8]) -> Option<Manifest> {
    let manifest: Manifest = serde_json::from_slice(notes).ok()?;
    (manifest.version == manifest::VERSION).then_some(manifest)
}

/// The array of interfaces' indexes.
fn interfaces(manifest: &Manifest) -> Result<Vec<(String, Vec<u8>)>, PolicyError> {
    let Some(last) = manifest.interfaces.iter().map(|interface| interface.index).max() else { return Ok(Vec::new()) };
    let mut indexes = vec![0u32; last as usize + 1];
    for interface in &manifest.interfaces {
        let (file, name) = (|| manifest.source.clone(), &interface.name);
        match interface::index(name) {
            Ok(index) => {
                if let Some(first) = interface_name(index).filter(|first| first != name) {
                    return Err(PolicyError::AlternativeName { file: file(), name: name.clone(), first });
                }
                indexes[interface.index as usize] = index;
            }
            Err(_) if interface.must_exist => return Err(PolicyError::NoTarget { file: file(), name: name.clone() }),
            Err(_) => {}
        }
    }
    Ok(vec![(symbols::INTERFACES.to_owned(), indexes.into_iter().flat_map(u32::to_ne_bytes).collect())])
}

/// Whether packets of the interface begin with their IP header. Without an interface, programs that ask are refused later.
fn no_link_header(manifest: &Manifest, interface: Option<(u32, &str)>) -> Result<Option<bool>, PolicyError> {
    let Some((index, name)) = interface.filter(|_| manifest.sees_links) else { return Ok(None) };
    let interface = || name.to_owned();
    match LinkLayer::of(index).map_err(|error| PolicyError::Interface { interface: interface(), error })? {
        LinkLayer::Ethernet => Ok(Some(false)),
        LinkLayer::None => Ok(Some(true)),
        other => Err(PolicyError::LinkLayer { interface: interface(), header: other.to_string() }),
    }
}

/// The interfaces that rules at XDP redirect to, by name and index.
pub(crate) fn redirect_targets(manifest: &Manifest) -> impl Iterator<Item = (&str, u32)> {
    let targets = manifest.interfaces.iter().filter(|interface| interface.by_xdp);
    targets.filter_map(|interface| Some((interface.name.as_str(), interface::index(&interface.name).ok()?)))
}

fn table(manifest: &Manifest, table: &manifest::Table) -> Result<Table, PolicyError> {
    let entry = |(key, value): &(String, String)| Some((bytes(key)?, bytes(value)?));
    let entries = table.entries.iter().map(entry).collect::<Option<_>>();
    let entries =
        entries.ok_or_else(|| damaged(manifest, format!("an entry of table {} is not hexadecimal", table.map)))?;
    Ok(Table { map: table.map.clone(), entries })
}

fn damaged(manifest: &Manifest, why: String) -> PolicyError {
    PolicyError::Damaged { file: manifest.source.clone(), why }
}

/// The bytes that hexadecimal digits stand for.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else { return None };
    let digit = |byte: u8| Some(char::from(byte).to_digit(16)? as u8);
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Policy;

    /// The manifest of a policy, changed.
    fn manifest(change: impl FnOnce(&mut Manifest)) -> Manifest {
        let names: Vec<String> = (0..256).map(|number| format!("10.0.{number}.0/24 : {number}")).collect();
        let policy = format!(
            "key tenant u32\nmap names ipv4 : u32 = {{ {} }}\nnetfilter input priority 1 {{ udp dport 1 drop }}\n\
             xdp {{ set tenant = ip saddr map @names }}\n",
            names.join(", ")
        );
        let mut manifest = Policy::from_text("edge.traits", &policy).unwrap().manifest().unwrap().clone();
        change(&mut manifest);
        manifest
    }

    #[track_caller]
    fn assert_damaged<T>(result: Result<T, PolicyError>, part: &str) {
        let error = result.err().expect("a damaged manifest");
        let PolicyError::Damaged { file, why } = &error else { panic!("{error}") };
        assert_eq!(file, "edge.traits");
        assert!(why.contains(part), "{part} in {why}");
    }

    #[test]
    fn a_manifest_that_contradicts_this_version_is_refused() {
        let whole = manifest(|_| {});
        assert_eq!((keys(&whole).unwrap().len(), netfilter(&whole).unwrap().len()), (1, 2));
        assert_eq!(table(&whole, &whole.tables[0]).unwrap().entries.len(), 256);

        assert_damaged(keys(&manifest(|one| one.keys[0].name = "0".to_owned())), "key 0: ");
        assert_damaged(keys(&manifest(|one| one.keys[0].key_type = "u33".to_owned())), "key tenant: ");
        assert_damaged(keys(&manifest(|one| one.keys[0].merge = "last".to_owned())), "expected block");
        assert_damaged(keys(&manifest(|one| one.keys[0].description = "\n".to_owned())), "control characters");
        let nowhere = manifest(|one| {
            let Hook::Netfilter { point, .. } = &mut one.programs[0].hook else { panic!("{one:?}") };
            *point = "middle".to_owned();
        });
        assert_damaged(netfilter(&nowhere), "netfilter's middle");
        let ipx = manifest(|one| {
            let Hook::Netfilter { families, .. } = &mut one.programs[0].hook else { panic!("{one:?}") };
            families[0] = "ipx".to_owned();
        });
        assert_damaged(netfilter(&ipx), "netfilter's ipx");
        let odd = manifest(|one| one.tables[0].entries[0].1 = "1".to_owned());
        assert_damaged(table(&odd, &odd.tables[0]), "not hexadecimal");
    }

    #[test]
    fn an_interface_that_is_gone_has_no_link_layer() {
        let mut sees_links = manifest(|one| one.sees_links = true);
        let gone = Some((u32::MAX, "gone0"));
        let error = no_link_header(&sees_links, gone).unwrap_err();
        assert!(matches!(&error, PolicyError::Interface { interface, .. } if interface == "gone0"), "{error}");
        sees_links.sees_links = false;
        assert_eq!(no_link_header(&sees_links, gone).unwrap(), None, "nobody asks");
    }

    #[test]
    fn digits_become_bytes() {
        assert_eq!(bytes("00fFa1"), Some(vec![0, 0xff, 0xa1]));
        assert_eq!(bytes(""), Some(Vec::new()));
        assert_eq!(bytes("0"), None);
        assert_eq!(bytes("0g"), None);
    }
}
