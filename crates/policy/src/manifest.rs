//! What a compiled policy says of itself to whoever loads it: it is in the object, in the section [`SECTION`], as JSON.
//!
//! With it an object can be loaded on a host without clang and without the policy's source: which keys to register,
//! where each program goes, what is in the tables, which numbers stand for interfaces, and what the counters count.

use object::{Object as _, ObjectSection as _};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// ELF section of the manifest. It is not loaded; libbpf skips sections of unknown names.
pub const SECTION: &str = "packet_traits.policy";

/// Version of what is described here. A reader refuses any other.
pub const VERSION: u32 = 2;

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// Path of the policy's file, as it was given to the compiler.
    pub source: String,
    /// The keys, which are registered before the object is bound.
    pub keys: Vec<Key>,
    /// The programs, one for each block.
    pub programs: Vec<Program>,
    /// The contents of maps.
    pub tables: Vec<Table>,
    /// The named counters.
    pub counters: Vec<Counter>,
    /// Interfaces by name.
    pub interfaces: Vec<Interface>,
    /// Texts of `log` actions; an event says which by its place here.
    pub logs: Vec<String>,
    /// The object has the variable `pt_no_link_header` in its `.rodata`, 4 bytes: 1 if packets of the interface that its
    /// XDP and TC programs are attached to begin with their IP header, 0 if with an Ethernet header.
    #[serde(default)]
    pub sees_links: bool,
    /// The object has the variable `pt_may_inherit` in its `.rodata`, 4 bytes: 0 if no packet comes to the interface with
    /// traits from another one.
    #[serde(default)]
    pub may_inherit: bool,
    /// Rules at XDP or TC test the Ethernet header or a VLAN tag, which packets of some interfaces do not have.
    #[serde(default)]
    pub tests_ethernet: bool,
}

/// Why an object's manifest cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The file is no object file.
    #[error("this is no object file: {0}")]
    NoObject(object::Error),
    /// Its section holds something else.
    #[error("the object's section {SECTION} is damaged: {0}")]
    Damaged(serde_json::Error),
    /// It was made by another version.
    #[error(
        "the object's policy is described in version {found} and this program knows version {VERSION}: compile the policy again"
    )]
    Version {
        /// The version it has.
        found: u64,
    },
}

impl From<object::Error> for ManifestError {
    fn from(error: object::Error) -> ManifestError {
        ManifestError::NoObject(error)
    }
}

impl From<serde_json::Error> for ManifestError {
    fn from(error: serde_json::Error) -> ManifestError {
        ManifestError::Damaged(error)
    }
}

impl Manifest {
    /// The manifest of an object file; `None` if it was not made of a policy.
    pub fn from_object(bytes: &[u8]) -> Result<Option<Manifest>, ManifestError> {
        let elf = object::File::parse(bytes)?;
        let Some(section) = elf.section_by_name(SECTION) else { return Ok(None) };
        let json: serde_json::Value = serde_json::from_slice(section.data()?)?;
        match json.get("version").and_then(serde_json::Value::as_u64) {
            Some(found) if found != u64::from(VERSION) => Err(ManifestError::Version { found }),
            _ => Ok(Some(serde_json::from_value(json)?)),
        }
    }
}

/// A key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Key {
    /// Its name.
    pub name: String,
    /// Its type's name (`packet_traits_core::KeyType`).
    #[serde(rename = "type")]
    pub key_type: String,
    /// `block`, `keep-first` or `discard`.
    pub merge: String,
    /// May be empty.
    pub description: String,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Program {
    /// Its name in the object.
    pub name: String,
    /// Where it goes.
    pub hook: Hook,
    /// It calls XDP metadata functions, so it must be loaded for the one interface it is attached to
    /// (`BPF_F_XDP_DEV_BOUND_ONLY`).
    pub device_bound: bool,
    /// It redirects to AF_XDP sockets, whose map is `pt_xsks`.
    pub redirects_to_xsk: bool,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "hook", rename_all = "snake_case")]
pub enum Hook {
    /// The interface's XDP.
    Xdp,
    /// The interface's TC ingress.
    TcIngress,
    /// The interface's TC egress.
    TcEgress,
    /// Netfilter.
    Netfilter {
        /// `ipv4` and `ipv6`, or one of them.
        families: Vec<String>,
        /// `prerouting`, `input`, `forward`, `output`, `postrouting`.
        point: String,
        /// Lower runs earlier.
        priority: i32,
    },
    /// The cgroup's ingress.
    CgroupIngress,
    /// The cgroup's egress.
    CgroupEgress,
    /// Not attached: a socket filter that is pinned for xt_bpf.
    Match,
    /// Not attached: a socket filter that is pinned for SO_ATTACH_REUSEPORT_EBPF.
    Steer,
}

/// A rule. Its hits are at its number in the map `pt_hits`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rule {
    /// Its number in the policy, from 0.
    pub number: u32,
    /// The file it is in.
    pub file: String,
    /// The line it starts in, from 1.
    pub line: u32,
    /// The rule as it is written, in one line.
    pub text: String,
}

/// What a map of the object is filled with before a program is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Table {
    /// The map.
    pub map: String,
    /// Keys and values as the map has them, in hexadecimal digits.
    pub entries: Vec<(String, String)>,
}

/// A named counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Counter {
    /// Its name.
    pub name: String,
    /// The map with its numbers.
    pub map: String,
    /// The place of its numbers there; none if they are by value.
    pub index: Option<u32>,
    /// Name of the core type of the values it counts by, whose bytes are the map's keys.
    pub by: Option<String>,
}

fn yes() -> bool {
    true
}

/// An interface by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The place of its index in the array variable `pt_interfaces` of the object's `.rodata`; 0 if there is no interface
    /// of that name.
    pub index: u32,
    /// Rules redirect to it, so there must be one: the others compare names.
    #[serde(default = "yes")]
    pub must_exist: bool,
    /// Rules at XDP redirect to it.
    #[serde(default)]
    pub by_xdp: bool,
}
