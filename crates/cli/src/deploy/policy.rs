//! What a policy's manifest means to whoever brings it up: keys to register, places of its programs, and what its maps
//! are filled with.

use std::error::Error;

use libbpf_rs::OpenObject;
use packet_traits::{
    attach::{LinkLayer, NetfilterFamily, NetfilterHook, NetfilterOptions, interface_name, loses_redirects},
    core::KeyName,
    deployment::{Filter, FilterUse, Setup, Table},
    registry::{Description, KeySpec},
};
use packet_traits_policy::manifest::{self, Hook, Manifest};

use super::interface_index;

/// What the names of a policy's maps begin with, and those of the header.
const PREFIX: &str = "pt_";

/// The header's map of headrooms, which binding takes care of.
const ANCHORS: &str = "pt_anchors";

/// What `unique` counts, of all policies.
const UNIQUE: &str = "pt_unique";

/// AF_XDP sockets by queue: applications put theirs in.
pub(super) const XSKS: &str = "pt_xsks";

/// CPUs to redirect to.
const CPUS: &str = "pt_cpus";

/// Indexes of interfaces.
const INTERFACES: &str = "pt_interfaces";

/// Whether packets have no link header.
const NO_LINK_HEADER: &str = "pt_no_link_header";
/// Whether packets may have traits from another interface.
const MAY_INHERIT: &str = "pt_may_inherit";

/// The keys to register.
pub(crate) fn keys(manifest: &Manifest) -> Result<Vec<KeySpec>, Box<dyn Error>> {
    let spec = |key: &manifest::Key| -> Result<KeySpec, Box<dyn Error>> {
        Ok(KeySpec::new(KeyName::new(&key.name)?, key.key_type.parse()?)
            .merge(key.merge.parse()?)
            .description(Description::new(&key.description)?))
    };
    manifest.keys.iter().map(spec).collect()
}

/// The places of netfilter programs.
pub(super) fn netfilter(manifest: &Manifest) -> Result<Vec<(String, NetfilterOptions)>, String> {
    let mut places = Vec::new();
    for program in &manifest.programs {
        let Hook::Netfilter { families, point, priority } = &program.hook else { continue };
        let hook = match point.as_str() {
            "prerouting" => NetfilterHook::PreRouting,
            "input" => NetfilterHook::LocalIn,
            "forward" => NetfilterHook::Forward,
            "output" => NetfilterHook::LocalOut,
            "postrouting" => NetfilterHook::PostRouting,
            other => return Err(format!("program {} is for netfilter's {other}, which is not known", program.name)),
        };
        for family in families {
            let family = match family.as_str() {
                "ipv4" => NetfilterFamily::Ipv4,
                "ipv6" => NetfilterFamily::Ipv6,
                other => return Err(format!("program {} is for {other}, which is not known", program.name)),
            };
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
) -> Result<Setup, Box<dyn Error>> {
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
        .filter(|map| map.starts_with(PREFIX) && map != ANCHORS && map != UNIQUE);
    let mut variables = interfaces(manifest)?;
    if let Some(bare) = no_link_header(manifest, interface)? {
        variables.push((NO_LINK_HEADER.to_owned(), u32::from(bare).to_ne_bytes().to_vec()));
    }
    Ok(Setup {
        variables,
        tables: manifest.tables.iter().map(table).collect::<Result<_, _>>()?,
        cpu_maps: only(CPUS),
        shared_maps: only(UNIQUE),
        pinned_maps: pinned_maps.collect(),
        kept_maps: only(XSKS),
        device_bound: programs(|program| program.device_bound).collect(),
        may_inherit: manifest.may_inherit.then(|| MAY_INHERIT.to_owned()),
        redirects_to: redirect_targets(manifest).map(|(_, index)| index).collect(),
        filters: filters.collect(),
        notes: notes(manifest)?,
    })
}

/// The manifest without what is in the maps anyway.
fn notes(manifest: &Manifest) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Manifest { tables: Vec::new(), ..manifest.clone() })
}

/// What [`setup`] noted down; `None` if it is no policy.
pub(super) fn noted(notes: &[u8]) -> Option<Manifest> {
    let manifest: Manifest = serde_json::from_slice(notes).ok()?;
    (manifest.version == manifest::VERSION).then_some(manifest)
}

/// Interfaces that rules name and that are not there. The rules match once they are.
pub(super) fn missing_interfaces(manifest: &Manifest) -> Vec<&str> {
    let names = manifest.interfaces.iter().map(|interface| interface.name.as_str());
    names.filter(|name| interface_index(name).is_err()).collect()
}

/// The array of interfaces' indexes.
fn interfaces(manifest: &Manifest) -> Result<Vec<(String, Vec<u8>)>, String> {
    let Some(last) = manifest.interfaces.iter().map(|interface| interface.index).max() else { return Ok(Vec::new()) };
    let mut indexes = vec![0u32; last as usize + 1];
    for interface in &manifest.interfaces {
        let name = &interface.name;
        let of_policy = |error| format!("{}: {error}", manifest.source);
        match interface_index(name) {
            Ok(index) => {
                if let Some(first) = interface_name(index).filter(|first| first != name) {
                    let error = format!("{name} is an alternative name of interface {first}: write \"{first}\"");
                    return Err(of_policy(error));
                }
                indexes[interface.index as usize] = index;
            }
            Err(error) if interface.must_exist => return Err(of_policy(error)),
            Err(_) => {}
        }
    }
    Ok(vec![(INTERFACES.to_owned(), indexes.into_iter().flat_map(u32::to_ne_bytes).collect())])
}

/// Whether packets of the interface begin with their IP header. Without an interface, programs that ask are refused later.
fn no_link_header(manifest: &Manifest, interface: Option<(u32, &str)>) -> Result<Option<bool>, Box<dyn Error>> {
    let Some((interface, name)) = interface.filter(|_| manifest.sees_links) else { return Ok(None) };
    match LinkLayer::of(interface)? {
        LinkLayer::Ethernet => Ok(Some(false)),
        LinkLayer::None => Ok(Some(true)),
        other => Err(format!(
            "packets of {name} begin with {other}, which rules at XDP and TC do not know: attach the policy to \
             another interface that they pass, or test their headers at netfilter"
        )
        .into()),
    }
}

/// The interfaces that rules at XDP redirect to, by name and index.
fn redirect_targets(manifest: &Manifest) -> impl Iterator<Item = (&str, u32)> {
    let targets = manifest.interfaces.iter().filter(|interface| interface.by_xdp);
    targets.filter_map(|interface| Some((interface.name.as_str(), interface_index(&interface.name).ok()?)))
}

/// What is to be said of interfaces that lose what XDP in native mode redirects to them.
pub(super) fn lost_redirects(manifest: &Manifest) -> Option<String> {
    let names: Vec<&str> =
        redirect_targets(manifest).filter(|(_, index)| loses_redirects(*index)).map(|(name, _)| name).collect();
    (!names.is_empty()).then(|| {
        format!(
            "packets that native XDP redirects to {} are lost: its driver does not send them (a veth's does if its other end \
             has GRO, `ethtool -K PEER gro on`); `--mode generic` delivers them",
            names.join(", ")
        )
    })
}

/// What is to be said of rules that never hold at this interface.
pub(super) fn never_holds(manifest: &Manifest, interface: u32, name: &str) -> Option<String> {
    let bare = manifest.tests_ethernet && LinkLayer::of(interface).is_ok_and(|layer| layer == LinkLayer::None);
    bare.then(|| {
        format!("packets of {name} have no Ethernet header: rules that test `ether` or `vlan` never hold there")
    })
}

fn table(table: &manifest::Table) -> Result<Table, String> {
    let entry = |(key, value): &(String, String)| Some((bytes(key)?, bytes(value)?));
    let entries = table.entries.iter().map(entry).collect::<Option<_>>();
    let entries = entries.ok_or_else(|| format!("an entry of table {} is not hexadecimal", table.map))?;
    Ok(Table { map: table.map.clone(), entries })
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

    #[test]
    fn digits_become_bytes() {
        assert_eq!(bytes("00fFa1"), Some(vec![0, 0xff, 0xa1]));
        assert_eq!(bytes(""), Some(Vec::new()));
        assert_eq!(bytes("0"), None);
        assert_eq!(bytes("0g"), None);
    }
}
