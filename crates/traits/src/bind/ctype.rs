//! The C type a key was declared with, from the object's BTF, and which registry types it may hold.

use libbpf_rs::{
    HasSize, ReferencesType,
    btf::{Btf, BtfKind, BtfType, types},
};
use packet_traits_core::KeyType;

/// A declared C type, as far as it matters for a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CType {
    /// As in the source: the outermost name.
    pub(super) name: String,
    size: usize,
    class: Class,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Unsigned,
    Signed,
    /// `__be16`, `__be32`, `__be64`: an integer in network order.
    BigEndian,
    /// A struct, union or array: bytes.
    Bytes,
}

impl CType {
    /// The type of the `value` member of the descriptor variable `variable` (see `TRAIT_KEY` in the header).
    pub(super) fn of_descriptor(btf: &Btf<'_>, variable: types::Var<'_>) -> Option<CType> {
        let holder: types::Struct<'_> = btf
            .type_by_id::<BtfType<'_>>(variable.referenced_type().type_id())?
            .skip_mods_and_typedefs()
            .try_into()
            .ok()?;
        let member = holder.iter().find(|member| member.name.is_some_and(|name| name == "value"))?;
        let array: types::Array<'_> =
            btf.type_by_id::<BtfType<'_>>(member.ty)?.skip_mods_and_typedefs().try_into().ok()?;
        // the outermost name is the header's own typedef `trait_type_<key>`
        let declared = array.contained_type();
        CType::of(declared.next_type().unwrap_or(declared))
    }

    fn of(declared: BtfType<'_>) -> Option<CType> {
        let mut big_endian = false;
        let mut at = declared;
        loop {
            let name = at.name().unwrap_or_default();
            big_endian |= name == "__be16" || name == "__be32" || name == "__be64";
            match at.next_type() {
                Some(next) if !matches!(at.kind(), BtfKind::Ptr) => at = next,
                _ => break,
            }
        }
        let (size, class) = match at.kind() {
            BtfKind::Int => {
                let int: types::Int<'_> = at.try_into().ok()?;
                let class = match int.encoding {
                    types::IntEncoding::Signed => Class::Signed,
                    _ if big_endian => Class::BigEndian,
                    _ => Class::Unsigned,
                };
                (usize::from(int.bits) / 8, class)
            }
            BtfKind::Enum => (types::Enum::try_from(at).ok()?.size(), Class::Unsigned),
            BtfKind::Enum64 => (types::Enum64::try_from(at).ok()?.size(), Class::Unsigned),
            BtfKind::Struct => (types::Struct::try_from(at).ok()?.size(), Class::Bytes),
            BtfKind::Union => (types::Union::try_from(at).ok()?.size(), Class::Bytes),
            BtfKind::Array => {
                let array = types::Array::try_from(at).ok()?;
                (array.capacity() * CType::of(array.contained_type())?.size, Class::Bytes)
            }
            _ => return None,
        };
        // `const` and `volatile` have no name
        let mut named = declared;
        while let (None, Some(next)) = (named.name(), named.next_type()) {
            named = next;
        }
        let name = match (named.name(), named.kind()) {
            (Some(name), BtfKind::Struct) => format!("struct {}", name.to_string_lossy()),
            (Some(name), BtfKind::Union) => format!("union {}", name.to_string_lossy()),
            (Some(name), BtfKind::Enum | BtfKind::Enum64) => format!("enum {}", name.to_string_lossy()),
            (Some(name), _) => name.to_string_lossy().into_owned(),
            (None, _) => format!("{size} bytes"),
        };
        Some(CType { name, size, class })
    }

    /// Whether values of `key_type` may be declared so.
    pub(super) fn holds(&self, key_type: KeyType) -> bool {
        if self.size != key_type.size() {
            return false;
        }
        match key_type {
            KeyType::Flag => true,
            KeyType::U8 | KeyType::U16 | KeyType::U32 | KeyType::U64 | KeyType::Timestamp => {
                self.class == Class::Unsigned
            }
            KeyType::I64 => self.class == Class::Signed,
            KeyType::U128 => matches!(self.class, Class::Unsigned | Class::Bytes),
            KeyType::Ipv4 => matches!(self.class, Class::BigEndian | Class::Unsigned | Class::Bytes),
            KeyType::Ipv6 | KeyType::Uuid => self.class == Class::Bytes,
            KeyType::Mac => matches!(self.class, Class::Unsigned | Class::Bytes),
        }
    }
}

/// The C types that values of a registry type may be declared with, for people.
pub(super) fn expected(key_type: KeyType) -> &'static str {
    match key_type {
        KeyType::Flag => "TRAIT_FLAG",
        KeyType::U8 => "__u8",
        KeyType::U16 => "__u16",
        KeyType::U32 => "__u32",
        KeyType::U64 => "__u64",
        KeyType::Timestamp => "__u64",
        KeyType::U128 => "unsigned __int128 or 16 bytes",
        KeyType::I64 => "__s64",
        KeyType::Ipv4 => "__be32 or struct in_addr",
        KeyType::Ipv6 => "struct in6_addr or 16 bytes",
        KeyType::Mac => "a struct of 8 bytes or __u64",
        KeyType::Uuid => "a struct of 16 bytes",
    }
}
