//! The numbers and structs of `include/packet_traits/socket.h`, which are what the kernel side and every application
//! agree on. Their names are those of the header. No policy here.

use std::slice;

use libc::c_int;

/// Level of the options below.
pub const SOL_TRAITS: c_int = 0x5452;
/// Level whose options are handles of datagrams: the traits of one.
pub const SOL_TRAITS_DATAGRAM: c_int = 0x5453;
/// Level whose options are handles of datagrams: the traits of that one and of those after it.
pub const SOL_TRAITS_DATAGRAMS: c_int = 0x5454;

/// Get, plus a key's number: the keys from that number on, an array of [`traits_key`] in order of their numbers.
pub const TRAITS_KEYS: c_int = 0x000;
/// Get and set, an int: whether a TCP socket keeps the traits of its SYN.
pub const SAVE_SYN_TRAITS: c_int = 0x100;
/// Set, an int: whether a socket keeps the traits of what it receives. Get: [`traits_receive`].
pub const RCV_TRAITS: c_int = 0x200;
/// Get, plus a key's number or [`TRAITS_ALL`]: traits of the SYN.
pub const SYN_TRAITS: c_int = 0x300;
/// Get, plus a key's number or [`TRAITS_ALL`]: traits of the newest data.
pub const LAST_TRAITS: c_int = 0x400;
/// Get and set, plus a key's number or [`TRAITS_ALL`]: the socket's own traits.
pub const SOCKET_TRAITS: c_int = 0x500;
/// Set, plus a key's number or [`TRAITS_ALL`]: traits of the next datagram that this thread sends.
pub const NEXT_TRAITS: c_int = 0x600;

/// In place of a key's number: all traits at once, as [`traits`].
pub const TRAITS_ALL: c_int = 0xff;

/// Keys of a registry, at most.
pub const TRAITS_KEY_MAX: usize = 64;
/// Bytes of values of a packet, at most.
pub const TRAITS_VALUES_MAX: usize = 232;
/// Datagrams that one get at level [`SOL_TRAITS_DATAGRAMS`] answers for, at most.
pub const TRAITS_BATCH_MAX: usize = 16;

/// In [`traits::flags`]: there was such a packet, and this is what it carried, be it nothing.
pub const TRAITS_FOUND: u32 = 1;

/// Bytes of [`traits`] in front of the values.
pub const TRAITS_HEADER_LEN: usize = 16;

/// Bytes of a slot's first words: the handle (u32), then the generation (u32), then the registry's revision (u64) when the
/// datagram came. [`traits`] follow.
pub const TRAITS_SLOT_HEADER_LEN: usize = 16;

/// A key: an element of what [`TRAITS_KEYS`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct traits_key {
    /// Name, padded with NUL.
    pub name: [u8; 32],
    /// Number, 0 to 63.
    pub number: u8,
    /// `type` in C: the code of a [`KeyType`](packet_traits_core::KeyType).
    pub key_type: u8,
    /// Bytes of a value; 0: a flag.
    pub size: u8,
    /// Code of a [`Merge`](packet_traits_core::Merge).
    pub merge: u8,
    /// Bytes from the start of [`traits::values`] to the value.
    pub offset: u16,
    /// Bytes from the packet data back to the value, in the packet's area.
    pub distance: u16,
}

/// The traits of a packet, a datagram or a socket. The kernel side writes and wants no more of `values` than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct traits {
    /// Bit *k*: key *k* is set.
    pub present: u64,
    /// [`TRAITS_FOUND`].
    pub flags: u32,
    /// A datagram's own mark, if [`TRAITS_FOUND`].
    pub mark: u32,
    /// The values: those of the flow region, then those of the packet region.
    pub values: [u8; TRAITS_VALUES_MAX],
}

/// What a get of [`RCV_TRAITS`] gives. From `ring` on it is 0 unless the socket is a UDP socket with [`RCV_TRAITS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct traits_receive {
    /// 1: it is on.
    pub enabled: u32,
    /// Bytes of a [`traits`] that are used.
    pub traits_len: u32,
    /// Bytes of the area's flow region, footer included.
    pub flow_len: u32,
    /// Bytes of the area's packet region, footer included; 0: it has none.
    pub packet_len: u32,
    /// Which ring of slots the socket has.
    pub ring: u32,
    /// Slots of a ring, a power of two.
    pub slots: u32,
    /// Tells the socket from an earlier owner of its ring.
    pub generation: u32,
    /// Bytes from one slot to the next.
    pub slot_len: u32,
    /// Which attachment the ring is of; never 0 for a socket that has a ring.
    pub instance: u64,
    /// Revision of the registry: another one once a key is registered or removed. Given if there is room for it.
    pub revision: u64,
}

/// A type that is nothing but its bytes.
///
/// # Safety
/// Any bytes are a valid value, and no value has bytes that are not initialized (padding).
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: an integer.
unsafe impl Plain for c_int {}
// SAFETY: integers without padding: 32 + 4 * 1 + 2 * 2 bytes, aligned to 2.
unsafe impl Plain for traits_key {}
// SAFETY: integers without padding: 8 + 2 * 4 + 232 bytes, aligned to 8.
unsafe impl Plain for traits {}
// SAFETY: integers without padding: 8 * 4 + 2 * 8 bytes, aligned to 8.
unsafe impl Plain for traits_receive {}

/// The bytes of a value.
pub(crate) fn bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: the bytes are those of `value`, which is borrowed as long; all are initialized, says `Plain`.
    unsafe { slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) }
}

/// The bytes of values, to be overwritten.
pub(crate) fn bytes_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: the bytes are those of `values`, which is borrowed as long; all are initialized, and whatever is written
    // to them is a valid value, says `Plain`.
    unsafe { slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
