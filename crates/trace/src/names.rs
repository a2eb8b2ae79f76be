//! What numbers in events are called: drop reasons, places in the kernel, namespaces, routing tables.

use std::{collections::BTreeMap, collections::HashMap, io};

use packet_traits::drop_reason;

use crate::{
    namespace::{self, Namespace},
    path::Cause,
    symbols::{NamedPlaces, Symbols},
};

/// Names of namespaces that are kept.
const NAMESPACES_MAX: usize = 1024;

/// The names.
pub struct Names {
    reasons: BTreeMap<u32, String>,
    places: NamedPlaces,
    namespaces: HashMap<u32, String>,
}

impl Names {
    /// Reads the running kernel's.
    ///
    /// # Errors
    /// The kernel has no BTF, or `/proc` is not mounted.
    pub fn read(namespaces: &[Namespace]) -> io::Result<Names> {
        let mut names = Names {
            reasons: drop_reason::names()?,
            places: NamedPlaces::new(Symbols::read()?),
            namespaces: HashMap::new(),
        };
        if let Ok(current) = Namespace::current() {
            names.namespaces.insert(current.inode(), current.name().to_owned());
        }
        for namespace in namespaces {
            names.namespaces.insert(namespace.inode(), namespace.name().to_owned());
        }
        Ok(names)
    }

    /// Names for tests and files that have been read back.
    #[cfg(test)]
    pub(crate) fn none() -> Names {
        let places = NamedPlaces::new(Symbols::none());
        Names { reasons: BTreeMap::from([(3, "NO_SOCKET".to_owned())]), places, namespaces: HashMap::new() }
    }

    /// A drop reason; its number if the kernel has no name for it.
    pub fn reason(&self, reason: u32) -> String {
        self.reasons.get(&reason).cloned().unwrap_or_else(|| format!("reason {reason}"))
    }

    /// A place in the kernel.
    pub fn place(&mut self, address: u64) -> &str {
        self.places.name(address)
    }

    /// Why a packet was dropped.
    pub fn drop_reason(&self, cause: &Cause) -> String {
        match cause {
            Cause::Kernel { reason, .. } => self.reason(*reason),
            Cause::Xdp(verdict, _) => verdict.drop_reason().unwrap_or_default().to_owned(),
        }
    }

    /// By what: a place in the kernel, or an XDP program.
    pub fn drop_place(&mut self, cause: &Cause) -> String {
        match cause {
            Cause::Kernel { place, .. } => self.place(*place).to_owned(),
            Cause::Xdp(_, program) => program.to_string(),
        }
    }

    /// A namespace: its name, or its number. Empty if it is 0.
    pub fn namespace(&mut self, inode: u32) -> String {
        if inode == 0 {
            return String::new();
        }
        if self.namespaces.len() >= NAMESPACES_MAX && !self.namespaces.contains_key(&inode) {
            self.namespaces.clear();
        }
        let name = self.namespaces.entry(inode).or_insert_with(|| namespace::known_name(inode).unwrap_or_default());
        if name.is_empty() { inode.to_string() } else { name.clone() }
    }
}

/// `RT_TABLE_*`, include/uapi/linux/rtnetlink.h.
pub(crate) fn table(number: u32) -> String {
    match number {
        253 => "default".to_owned(),
        254 => "main".to_owned(),
        255 => "local".to_owned(),
        other => other.to_string(),
    }
}
