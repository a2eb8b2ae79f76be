//! Compares structures of Rust with those of a compiled BPF object, as its BTF describes them.
//!
//! ```ignore
//! let types = Types::of(OBJECT);
//! same_layout!(types.structure("event"), RawEvent { id, at, skb });
//! ```

use std::{collections::BTreeMap, fmt};

use libbpf_rs::btf::{
    Btf, BtfKind, BtfType, HasSize as _, ReferencesType as _,
    types::{Array, Composite, Enum, Enum64, Int, MemberAttr, Struct, Var},
};

/// A member of a structure.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Bytes in front of it.
    pub offset: usize,
    /// Its bytes.
    pub size: usize,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes at {}", self.name, self.size, self.offset)
    }
}

/// A structure.
#[derive(Clone, Debug)]
pub struct Structure {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub size: usize,
    /// In the order of their places; without those that have no bytes.
    pub members: Vec<Member>,
}

impl Structure {
    /// Bytes in front of a member.
    ///
    /// # Panics
    /// If there is none of this name.
    #[must_use]
    pub fn offset_of(&self, member: &str) -> usize {
        let found = self.members.iter().find(|one| one.name == member);
        found.unwrap_or_else(|| panic!("{} has no {member}", self.name)).offset
    }

    /// What differs in bytes that were written by hand, a line each: each member must be there with the value it was given.
    ///
    /// # Panics
    /// If there are fewer bytes than the structure has.
    #[must_use]
    pub fn misplaced(&self, bytes: &[u8], given: &[(&str, Vec<u8>)]) -> Vec<String> {
        let unknown = given.iter().filter(|(name, _)| !self.members.iter().any(|member| member.name == *name));
        let mut found: Vec<String> = unknown.map(|(name, _)| format!("{} has no {name}", self.name)).collect();
        for member in &self.members {
            let there = &bytes[member.offset..member.offset + member.size];
            match given.iter().find(|(name, _)| *name == member.name) {
                Some((_, value)) if value == there => {}
                Some((_, value)) => found.push(format!("{}: {member}: {there:02x?}, not {value:02x?}", self.name)),
                None => found.push(format!("{}: {member}: nothing was given for it", self.name)),
            }
        }
        found
    }

    /// What differs in another one, a line each; the name aside.
    #[must_use]
    pub fn differences(&self, other: &Structure) -> Vec<String> {
        let missing = |from: &Structure, of: &Structure| -> Vec<String> {
            let lacks = |member: &&Member| !of.members.contains(member);
            from.members.iter().filter(lacks).map(|member| format!("{}: {member}", from.name)).collect()
        };
        let mut found = [missing(self, other), missing(other, self)].concat();
        if self.size != other.size {
            found.push(format!("{} has {} bytes, {} {}", self.name, self.size, other.name, other.size));
        }
        found
    }
}

/// The types of a compiled object.
pub struct Types<'o>(Btf<'o>);

impl<'o> Types<'o> {
    /// Reads an ELF file's BTF.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn of(object: &'o [u8]) -> Types<'o> {
        Types(Btf::from_raw("object", object).expect("the object's BTF").expect("the object has BTF"))
    }

    /// The structure of this name.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn structure(&self, name: &str) -> Structure {
        let found: Struct<'_> = self.0.type_by_name(name).unwrap_or_else(|| panic!("the object has no struct {name}"));
        describe(&self.0, format!("struct {name}"), *found)
    }

    /// The structure of a variable, which need not have a name.
    ///
    /// # Panics
    /// If there is no variable of this name, or it is no structure.
    #[must_use]
    pub fn variable(&self, name: &str) -> Structure {
        let found: Var<'_> = self.0.type_by_name(name).unwrap_or_else(|| panic!("the object has no variable {name}"));
        describe(&self.0, format!("variable {name}"), found.referenced_type().skip_mods_and_typedefs())
    }
}

/// The enumerators of C source, with their values. BTF has only those of enums that are types of something.
///
/// # Panics
/// If a value is not a plain number.
#[must_use]
pub fn enumerators(source: &str) -> BTreeMap<String, i64> {
    let mut code = String::new();
    for (number, part) in source.split("/*").enumerate() {
        code.push_str(if number == 0 { part } else { part.split_once("*/").map_or("", |(_, behind)| behind) });
    }
    let mut found = BTreeMap::new();
    for part in code.split("enum").skip(1) {
        let Some((name, rest)) = part.split_once('{') else { continue };
        let is_name = name.trim().chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let Some((body, _)) = rest.split_once('}').filter(|_| is_name) else { continue };
        let mut next = 0;
        for one in body.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let (name, value) = one.split_once('=').map_or((one, None), |(name, value)| (name, Some(value)));
            if let Some(value) = value {
                next = value.trim().parse().unwrap_or_else(|_| panic!("enumerator {one}"));
            }
            found.insert(name.trim().to_owned(), next);
            next += 1;
        }
    }
    found
}

/// What a variant of Rust is called in C: `NetifRx` is `NETIF_RX`.
#[must_use]
pub fn screaming(variant: &str) -> String {
    let mut name = String::new();
    for c in variant.chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

fn describe(types: &Btf<'_>, name: String, found: BtfType<'_>) -> Structure {
    let composite = Composite::try_from(found).unwrap_or_else(|_| panic!("{name} is not a structure"));
    let member = |one: libbpf_rs::btf::types::CompositeMember<'_>| {
        let MemberAttr::Normal { offset } = one.attr else { panic!("{name} has a bit field") };
        let ty = types.type_by_id::<BtfType<'_>>(one.ty).expect("a member's type");
        let name = one.name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Member { offset: offset as usize / 8, size: bytes_of(ty), name }
    };
    let members = composite.iter().map(member).filter(|member| member.size > 0).collect();
    Structure { size: composite.size(), members, name }
}

fn bytes_of(ty: BtfType<'_>) -> usize {
    let ty = ty.skip_mods_and_typedefs();
    match ty.kind() {
        BtfKind::Array => {
            let array = Array::try_from(ty).expect("an array");
            array.capacity() * bytes_of(array.contained_type())
        }
        BtfKind::Struct | BtfKind::Union => Composite::try_from(ty).expect("a structure").size(),
        BtfKind::Enum => Enum::try_from(ty).expect("an enum").size(),
        BtfKind::Enum64 => Enum64::try_from(ty).expect("an enum").size(),
        BtfKind::Int => usize::from(Int::try_from(ty).expect("a number").bits) / 8,
        BtfKind::Ptr => 8,
        kind => panic!("a member of kind {kind:?}"),
    }
}

/// The size of what a function gives.
pub const fn size_of_given<S, T>(_: fn(&S) -> &T) -> usize {
    size_of::<T>()
}

/// A structure of Rust with these members.
#[macro_export]
macro_rules! rust_structure {
    ($type:ty { $($member:ident),* $(,)? }) => {
        $crate::layout::Structure {
            name: stringify!($type).to_owned(),
            size: ::std::mem::size_of::<$type>(),
            members: vec![$($crate::layout::Member {
                offset: ::std::mem::offset_of!($type, $member),
                size: $crate::layout::size_of_given(|it: &$type| &it.$member),
                name: stringify!($member).trim_start_matches("r#").to_owned(),
            }),*],
        }
    };
}

/// Asserts that a structure of Rust has the members of one of C, all of them and at the same places. Of a member that is a
/// structure it compares the size: compare that one by itself.
#[macro_export]
macro_rules! same_layout {
    ($c:expr, $type:ty { $($member:ident),* $(,)? }) => {
        let differences = $c.differences(&$crate::rust_structure!($type { $($member),* }));
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    struct Right {
        id: u64,
        len: u32,
        flags: u16,
    }

    #[repr(C)]
    struct Swapped {
        len: u32,
        id: u64,
        flags: u16,
    }

    fn c() -> Structure {
        let member = |name: &str, offset, size| Member { name: name.to_owned(), offset, size };
        Structure {
            name: "struct c".to_owned(),
            size: 16,
            members: vec![member("id", 0, 8), member("len", 8, 4), member("flags", 12, 2)],
        }
    }

    #[test]
    fn swapped_members_are_found() {
        same_layout!(c(), Right { id, len, flags });
        let found = c().differences(&rust_structure!(Swapped { id, len, flags }));
        let expected = [
            "struct c: id of 8 bytes at 0",
            "struct c: len of 4 bytes at 8",
            "struct c: flags of 2 bytes at 12",
            "Swapped: id of 8 bytes at 8",
            "Swapped: len of 4 bytes at 0",
            "Swapped: flags of 2 bytes at 16",
            "struct c has 16 bytes, Swapped 24",
        ];
        assert_eq!(found, expected);
        // a member that the test does not name
        assert_eq!(c().differences(&rust_structure!(Right { id, len })), ["struct c: flags of 2 bytes at 12"]);
    }

    #[test]
    fn enumerators_are_read_from_source() {
        let source = "enum a { ONE, /* enum no { X } */ TWO = 5, THREE };\nenum a f(enum a x) { return ONE; }\nenum { FOUR = 4, };";
        let found: Vec<(String, i64)> = enumerators(source).into_iter().collect();
        let expected = [("FOUR", 4), ("ONE", 0), ("THREE", 6), ("TWO", 5)];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value)));
        assert_eq!(screaming("NetifRx"), "NETIF_RX");
    }
}
