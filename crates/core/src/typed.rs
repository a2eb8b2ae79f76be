//! Keys and values whose type is known at compile time: a `TypedKey<u32>` reads and writes a `u32` and nothing else.
//!
//! ```
//! use packet_traits_core::{Key, KeyName, KeyType, Layout, Nonces, Region, TraitsMut, TypedKey};
//!
//! let (layout, nonces) = (Layout::DEFAULT, Nonces::from_random(0x1234_5678, 0x9abc_def0));
//! let slot = layout.slot(Region::Flow, 4, 28).unwrap();
//! let tenant = Key::new(0, KeyName::new("tenant")?, KeyType::U32, slot).unwrap();
//!
//! let tenant: TypedKey<u32> = tenant.typed()?;
//! let mut headroom = [0; 256];
//! let mut traits = TraitsMut::init(&mut headroom, &layout, &nonces)?;
//! traits.set(&tenant, 7)?;
//! let read: Option<u32> = traits.as_view().get(&tenant);
//! assert_eq!(read, Some(7));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Reading it as a `u64` does not compile:
//!
//! ```compile_fail,E0308
//! use packet_traits_core::{TraitsView, TypedKey};
//!
//! fn read(traits: &TraitsView<'_>, tenant: &TypedKey<u32>) -> Option<u64> {
//!     traits.get(tenant)
//! }
//! ```

use core::{
    fmt,
    marker::PhantomData,
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::{
    key::{Key, KeyName, KeyType},
    value::Value,
};

/// An Ethernet address, first byte on the wire first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// A UUID, first byte of the text form first (RFC 9562).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uuid(pub [u8; 16]);

/// A point in time: nanoseconds of `CLOCK_MONOTONIC`, as `bpf_ktime_get_ns` returns them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

mod sealed {
    /// Keeps the set of value types closed: each stands for exactly one [`KeyType`](crate::KeyType).
    pub trait Sealed {}
}

/// A Rust type that stands for exactly one [`KeyType`]. Flags have none: they are read with `is_set`.
pub trait TraitValue: Copy + Into<Value> + sealed::Sealed {
    /// The key type it stands for.
    const KEY_TYPE: KeyType;

    /// The value, if it is of this type.
    fn from_value(value: Value) -> Option<Self>;
}

macro_rules! trait_value {
    ($($type:ty, $variant:ident, $inner:ident => $make:expr, $get:expr;)+) => {$(
        impl sealed::Sealed for $type {}

        impl TraitValue for $type {
            const KEY_TYPE: KeyType = KeyType::$variant;

            #[inline]
            fn from_value(value: Value) -> Option<Self> {
                match value {
                    Value::$variant($inner) => Some($make),
                    _ => None,
                }
            }
        }

        impl From<$type> for Value {
            fn from($inner: $type) -> Value {
                Value::$variant($get)
            }
        }
    )+};
}

trait_value! {
    u8, U8, n => n, n;
    u16, U16, n => n, n;
    u32, U32, n => n, n;
    u64, U64, n => n, n;
    u128, U128, n => n, n;
    i64, I64, n => n, n;
    Ipv4Addr, Ipv4, address => address, address;
    Ipv6Addr, Ipv6, address => address, address;
    Mac, Mac, address => Mac(address), address.0;
    Uuid, Uuid, id => Uuid(id), id.0;
    Timestamp, Timestamp, ns => Timestamp(ns), ns.0;
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Value::from(*self).fmt(f)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Value::from(*self).fmt(f)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Value::from(*self).fmt(f)
    }
}

/// A [`Key`] that is known to hold values of type `T`. Made by [`Key::typed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypedKey<T: TraitValue> {
    key: Key,
    value: PhantomData<T>,
}

impl<T: TraitValue> TypedKey<T> {
    /// The key without its compile-time type.
    pub const fn key(&self) -> &Key {
        &self.key
    }
}

impl Key {
    /// The key as one that holds values of type `T`.
    ///
    /// [`TypeMismatch`] unless [`key_type`](Key::key_type) is the one that `T` stands for; types of the same size are
    /// not exchanged, so a `timestamp` is not read as a `u64`.
    pub fn typed<T: TraitValue>(&self) -> Result<TypedKey<T>, TypeMismatch> {
        TypeMismatch::check(self, T::KEY_TYPE)?;
        Ok(TypedKey { key: *self, value: PhantomData })
    }
}

/// A key was used with a type that is not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeMismatch {
    /// The key's name.
    pub key: KeyName,
    /// The type it was registered with.
    pub key_type: KeyType,
    /// The type that was asked for.
    pub wanted: KeyType,
}

impl TypeMismatch {
    pub(crate) fn check(key: &Key, wanted: KeyType) -> Result<(), TypeMismatch> {
        if key.key_type() == wanted {
            Ok(())
        } else {
            Err(TypeMismatch { key: *key.name(), key_type: key.key_type(), wanted })
        }
    }
}

impl fmt::Display for TypeMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key '{}' has type {}, not {}", self.key, self.key_type, self.wanted)
    }
}

impl core::error::Error for TypeMismatch {}
