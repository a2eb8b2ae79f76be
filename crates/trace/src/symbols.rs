//! Names of places in the kernel: where a packet was dropped, as `function+0x12`.

use std::{collections::HashMap, fs, io};

/// The kernel's functions, by address.
pub struct Symbols {
    /// Ascending.
    functions: Vec<(u64, String)>,
}

impl Symbols {
    /// Reads `/proc/kallsyms`. Empty if the kernel hides addresses from this process (`kernel.kptr_restrict`).
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read() -> io::Result<Symbols> {
        Ok(Symbols::parse(&fs::read_to_string("/proc/kallsyms")?))
    }

    /// None at all.
    #[cfg(test)]
    pub(crate) fn none() -> Symbols {
        Symbols { functions: Vec::new() }
    }

    fn parse(text: &str) -> Symbols {
        let line = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
            let address = u64::from_str_radix(address, 16).ok()?;
            (address != 0 && matches!(kind, "t" | "T" | "w" | "W")).then(|| (address, name.to_owned()))
        };
        let mut functions: Vec<_> = text.lines().filter_map(line).collect();
        functions.sort_by_key(|(address, _)| *address);
        Symbols { functions }
    }

    /// Where a function begins and the next one does; `None` if it is not known.
    pub(crate) fn range(&self, name: &str) -> Option<(u64, u64)> {
        let at = self.functions.iter().position(|(_, function)| function == name)?;
        let (start, _) = self.functions[at];
        // it may have several names
        let (end, _) = self.functions[at..].iter().find(|(other, _)| *other > start)?;
        Some((start, *end))
    }

    /// The function an address is in, and how far from its start; the address itself if that is not known.
    pub fn name(&self, address: u64) -> String {
        let after = self.functions.partition_point(|(start, _)| *start <= address);
        match after.checked_sub(1).and_then(|at| self.functions.get(at)) {
            Some((start, name)) => format!("{name}+{:#x}", address - start),
            None => format!("{address:#x}"),
        }
    }
}

/// Names that were looked up before: a few places drop all packets.
pub struct NamedPlaces {
    symbols: Symbols,
    names: HashMap<u64, String>,
}

/// How many names are kept.
const NAMES_MAX: usize = 4096;

impl NamedPlaces {
    /// Looks names up in `symbols`.
    pub fn new(symbols: Symbols) -> NamedPlaces {
        NamedPlaces { symbols, names: HashMap::new() }
    }

    /// As [`Symbols::name`].
    pub fn name(&mut self, address: u64) -> &str {
        if self.names.len() >= NAMES_MAX && !self.names.contains_key(&address) {
            self.names.clear();
        }
        self.names.entry(address).or_insert_with(|| self.symbols.name(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_function_that_starts_before_it() {
        let symbols = Symbols::parse("00000010 T first\n00000040 t second\n00000030 D data\n00000000 A nothing\n");
        assert_eq!(symbols.name(0x10), "first+0x0");
        assert_eq!(symbols.name(0x3f), "first+0x2f");
        assert_eq!(symbols.name(0x41), "second+0x1");
        assert_eq!(symbols.name(0xf), "0xf");
        assert_eq!(Symbols::parse("00000000 T hidden\n").name(5), "0x5");
        assert_eq!((symbols.range("first"), symbols.range("second")), (Some((0x10, 0x40)), None));
    }
}
