//! The packed store against a naive model: results, header, values and every byte around them.

use std::collections::BTreeMap;

use packet_traits_core::packed::{Error, HEADER_LEN, Packed, Version};
use proptest::{collection::vec, prelude::*, test_runner::Config};

const CASES: u32 = 400;
const OPS_MIN: usize = 300;
/// Every run compares at least a hundred thousand operations for each version.
const _: () = assert!(CASES as usize * OPS_MIN >= 100_000);

const GUARD: usize = 32;

const ENOENT: i32 = 2;
const ENOMEM: i32 = 12;
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;

#[derive(Clone, Debug)]
enum Op {
    Set { key: u64, len: usize, fill: u8, flags: u64 },
    Get { key: u64, room: usize },
    Del { key: u64 },
    IsSet { key: u64 },
}

/// Mostly keys of a store, at times one that is none.
fn key() -> impl Strategy<Value = u64> {
    (any::<u8>(), any::<u64>()).prop_map(|(choice, far)| match choice {
        0 => far,
        1..4 => 64,
        _ => u64::from(choice) % 64,
    })
}

fn op() -> impl Strategy<Value = Op> {
    (0u8..20, key(), any::<u8>(), any::<u8>()).prop_map(|(choice, key, size, fill)| match choice {
        // Three of four sizes are valid in one version or the other.
        0..11 => {
            let len = if size < 192 { [0, 2, 4, 8][usize::from(size % 4)] } else { usize::from(size % 20) };
            Op::Set { key, len, fill, flags: u64::from(fill == 0) }
        }
        11..14 => Op::Get { key, room: usize::from(size % 12) },
        14..19 => Op::Del { key },
        _ => Op::IsSet { key },
    })
}

/// What the RFC says, with a map for the values.
struct Model {
    values: BTreeMap<u64, Vec<u8>>,
    room: usize,
    version: Version,
}

impl Model {
    fn used(&self) -> usize {
        HEADER_LEN + self.values.values().map(Vec::len).sum::<usize>()
    }

    fn set(&mut self, key: u64, value: &[u8], flags: u64) -> Result<(), i32> {
        let lens = match self.version {
            Version::V1 => [2, 4, 8],
            Version::V2 => [0, 4, 8],
        };
        if key > 63 || !lens.contains(&value.len()) || flags != 0 {
            return Err(EINVAL);
        }
        match self.values.get(&key) {
            Some(held) if held.len() != value.len() => return Err(EBUSY),
            None if self.used() + value.len() > self.room => return Err(ENOSPC),
            _ => {}
        }
        self.values.insert(key, value.to_vec());
        Ok(())
    }

    fn get(&self, key: u64, room: usize) -> Result<&[u8], i32> {
        if key > 63 {
            return Err(EINVAL);
        }
        let value = self.values.get(&key).ok_or(ENOENT)?;
        if value.len() > room { Err(ENOSPC) } else { Ok(value) }
    }

    fn del(&mut self, key: u64) -> Result<(), i32> {
        if key > 63 {
            return Err(EINVAL);
        }
        self.values.remove(&key).map(drop).ok_or(ENOENT)
    }

    fn is_set(&self, key: u64) -> Result<bool, i32> {
        if key > 63 { Err(EINVAL) } else { Ok(self.values.contains_key(&key)) }
    }

    /// Header and values as the RFC lays them out.
    fn image(&self) -> Vec<u8> {
        let (mut high, mut low) = (0u64, 0u64);
        for (key, value) in &self.values {
            match value.len() {
                0 | 2 => low |= 1 << key,
                4 => high |= 1 << key,
                8 => {
                    low |= 1 << key;
                    high |= 1 << key;
                }
                len => unreachable!("a value of {len} bytes"),
            }
        }
        let mut image = [high.to_ne_bytes(), low.to_ne_bytes()].concat();
        image.extend(self.values.values().flatten());
        image
    }
}

fn agrees_with_the_model(version: Version, room: usize, junk: u8, ops: &[Op]) -> Result<(), TestCaseError> {
    let mut memory = vec![junk; GUARD + room + GUARD];
    let mut model = Model { values: BTreeMap::new(), room, version };
    let mut expected = memory.clone();
    Packed::init(&mut memory[GUARD..GUARD + room], version).unwrap();
    expected[GUARD..GUARD + HEADER_LEN].fill(0);
    prop_assert_eq!(&memory, &expected);

    for op in ops {
        let mut store = Packed::from_bytes(&mut memory[GUARD..GUARD + room], version).unwrap();
        match *op {
            Op::Set { key, len, fill, flags } => {
                let value: Vec<u8> = (0..len).map(|i| fill.wrapping_add(i as u8)).collect();
                let result = store.set(key, &value, flags).map_err(Error::errno);
                prop_assert_eq!(result, model.set(key, &value, flags), "{:?}", op);
            }
            Op::Get { key, room } => {
                let mut buffer = vec![!junk; room];
                let result = store.get(key, &mut buffer).map_err(Error::errno);
                let value = model.get(key, room);
                prop_assert_eq!(result, value.map(<[u8]>::len), "{:?}", op);
                let value = value.unwrap_or_default();
                prop_assert_eq!(&buffer[..value.len()], value);
                prop_assert!(buffer[value.len()..].iter().all(|byte| *byte == !junk));
            }
            Op::Del { key } => prop_assert_eq!(store.del(key).map_err(Error::errno), model.del(key), "{:?}", op),
            Op::IsSet { key } => prop_assert_eq!(store.is_set(key).map_err(Error::errno), model.is_set(key)),
        }
        prop_assert_eq!(store.store_len(), model.used());
        // Only header and values are written: what lies behind them, and around the store, is as it was.
        let image = model.image();
        expected[GUARD..GUARD + image.len()].copy_from_slice(&image);
        prop_assert_eq!(&memory, &expected, "{:?}", op);
    }
    Ok(())
}

/// From a store that holds nothing to one that holds everything (16 + 64 * 8 bytes).
fn room() -> impl Strategy<Value = usize> {
    prop_oneof![HEADER_LEN..64, 64..200usize, Just(216), 200..600usize]
}

proptest! {
    #![proptest_config(Config { cases: CASES, failure_persistence: None, ..Config::default() })]

    #[test]
    fn version_1_agrees_with_the_model(room in room(), junk in any::<u8>(), ops in vec(op(), OPS_MIN..OPS_MIN + 50)) {
        agrees_with_the_model(Version::V1, room, junk, &ops)?;
    }

    #[test]
    fn version_2_agrees_with_the_model(room in room(), junk in any::<u8>(), ops in vec(op(), OPS_MIN..OPS_MIN + 50)) {
        agrees_with_the_model(Version::V2, room, junk, &ops)?;
    }

    #[test]
    fn foreign_bytes_are_refused_or_read_without_a_panic(
        mut bytes in vec(any::<u8>(), 0..200),
        sparse in any::<bool>(),
        op in op(),
    ) {
        if sparse {
            // Few keys, so that the values are likely to fit.
            bytes.iter_mut().take(HEADER_LEN).skip(1).for_each(|byte| *byte &= 1);
        }
        for version in [Version::V1, Version::V2] {
            let mut bytes = bytes.clone();
            let len = bytes.len();
            match Packed::from_bytes(&mut bytes, version) {
                Err(Error::NoRoomForHeader { found }) => prop_assert!(found == len && len < HEADER_LEN),
                Err(Error::Truncated { needed, found }) => {
                    prop_assert!(found == len && len >= HEADER_LEN && needed > len);
                }
                Err(error) => prop_assert!(false, "{}", error),
                Ok(mut store) => {
                    prop_assert!(store.store_len() <= len);
                    let _ = match op {
                        Op::Set { key, len, fill, flags } => store.set(key, &vec![fill; len], flags),
                        Op::Get { key, room } => store.get(key, &mut vec![0; room]).map(drop),
                        Op::Del { key } => store.del(key),
                        Op::IsSet { key } => store.is_set(key).map(drop),
                    };
                    prop_assert!(Packed::from_bytes(bytes, version).is_ok());
                }
            }
        }
    }
}

#[test]
fn init_needs_room_for_the_header() {
    for version in [Version::V1, Version::V2] {
        for len in 0..HEADER_LEN {
            let mut bytes = vec![0xa5; len];
            assert_eq!(Packed::init(&mut bytes, version).unwrap_err().errno(), ENOMEM);
            assert_eq!(Packed::from_bytes(&bytes, version).unwrap_err().errno(), ENOMEM);
            assert_eq!(bytes, vec![0xa5; len]);
        }
        assert_eq!(Packed::init([0xa5; HEADER_LEN], version).unwrap().into_inner(), [0; HEADER_LEN]);
    }
}

/// The RFC's selftest, patch 3.
#[test]
fn version_1_passes_the_rfc_selftest() {
    let mut store = Packed::init([0; 200], Version::V1).unwrap();
    let mut value = [0; 2];
    assert_eq!(store.get(32, &mut value).unwrap_err().errno(), ENOENT);
    for round in [0, 1000] {
        for key in 0..64 {
            store.set(key, &(key as u16 + round).to_ne_bytes(), 0).unwrap();
        }
        for key in 0..64 {
            assert_eq!(store.get(key, &mut value), Ok(2));
            assert_eq!(u16::from_ne_bytes(value), key as u16 + round);
        }
    }
    for key in (0..64).step_by(2) {
        store.del(key).unwrap();
    }
    for key in 0..64 {
        let expected = if key % 2 == 0 { Err(Error::NotSet) } else { Ok(2) };
        assert_eq!(store.get(key, &mut value), expected);
        assert!(key % 2 == 0 || u16::from_ne_bytes(value) == key as u16 + 1000);
    }
}

/// What version 2 of the selftest adds: 200 bytes of values fit behind the header.
#[test]
fn version_2_passes_the_rfc_selftest() {
    let mut store = Packed::init([0; HEADER_LEN + 200], Version::V2).unwrap();
    let value = |key: u64| (key * 0x0101_0101_0101).to_ne_bytes();
    let len = |key: u64| if key.is_multiple_of(2) { 4 } else { 8 };
    let mut keys = 0;
    let full = loop {
        match store.set(keys, &value(keys)[..len(keys)], 0) {
            Ok(()) => keys += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((keys, full.errno()), (33, ENOSPC));
    for key in 0..keys {
        let mut buffer = [0; 8];
        assert_eq!(store.get(key, &mut buffer), Ok(len(key)));
        assert_eq!(buffer[..len(key)], value(key)[..len(key)]);
        assert_eq!(store.get(key, &mut buffer[..3]).unwrap_err().errno(), ENOSPC);
        assert_eq!(store.set(key, &value(key)[..12 - len(key)], 0).unwrap_err().errno(), EBUSY);
    }
    assert_eq!(store.set(65, &[0; 4], 0).unwrap_err().errno(), EINVAL);
    assert_eq!(store.set(0, &[0; 3], 0).unwrap_err().errno(), EINVAL);
    assert_eq!(store.set(60, &[], 0), Ok(()));
    assert_eq!(store.get(60, &mut []), Ok(0));
    assert_eq!(store.is_set(60), Ok(true));
    assert_eq!(store.is_set(61), Ok(false));
    assert_eq!(store.is_set(64).unwrap_err().errno(), EINVAL);
}

#[test]
fn errors_are_checked_in_the_order_of_the_rfc() {
    let mut store = Packed::init([0; HEADER_LEN + 4], Version::V2).unwrap();
    store.set(1, &[1; 4], 0).unwrap();
    // A bad size or bad flags come before a busy key, and a busy key before a lack of room.
    assert_eq!(store.set(1, &[0; 3], 0), Err(Error::ValueLen { len: 3, version: Version::V2 }));
    assert_eq!(store.set(1, &[0; 8], 1), Err(Error::Flags(1)));
    assert_eq!(store.set(1, &[0; 8], 0), Err(Error::OtherLen { held: 4, len: 8 }));
    assert_eq!(store.set(2, &[0; 8], 0), Err(Error::NoSpace { needed: 8, left: 0 }));
    assert_eq!(store.set(64, &[0; 3], 1), Err(Error::Key(64)));
    // A key that is not set comes before a small buffer.
    assert_eq!(store.get(2, &mut []), Err(Error::NotSet));
    assert_eq!(store.get(1, &mut [0; 3]), Err(Error::BufferTooSmall { needed: 4, found: 3 }));
}

#[test]
fn header_and_values_are_laid_out_as_in_the_rfc() {
    let mut v1 = Packed::init([0xff; 32], Version::V1).unwrap();
    v1.set(63, &[6; 2], 0).unwrap();
    v1.set(0, &[1; 8], 0).unwrap();
    v1.set(1, &[3; 4], 0).unwrap();
    let expected = [
        &0b11u64.to_ne_bytes()[..],
        &(1u64 << 63 | 0b01).to_ne_bytes(),
        &[1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 6, 6, 0xff, 0xff],
    ];
    assert_eq!(v1.into_inner()[..], expected.concat());

    let mut v2 = Packed::init([0xff; 32], Version::V2).unwrap();
    v2.set(63, &[6; 4], 0).unwrap();
    v2.set(5, &[], 0).unwrap();
    v2.set(0, &[1; 8], 0).unwrap();
    let expected = [
        &(1u64 << 63 | 1).to_ne_bytes()[..],
        &0b10_0001u64.to_ne_bytes(),
        &[1, 1, 1, 1, 1, 1, 1, 1, 6, 6, 6, 6, 0xff, 0xff, 0xff, 0xff],
    ];
    assert_eq!(v2.into_inner()[..], expected.concat());
}
