//! Views over an area against a model: what was set is read, nothing else is, and nothing outside the area is touched.

use std::collections::BTreeMap;

use packet_traits_core::{
    Key, KeyName, KeyType, Layout, Nonces, PacketRegion, Region, SetError, Timestamp, TraitsMut, TraitsView, TypedKey,
    Value, ViewError,
};
use proptest::{collection::vec, prelude::*};

#[derive(Clone, Debug)]
enum Op {
    Set { key: usize, bits: u128 },
    SetAsOtherType { key: usize },
    Delete { key: usize },
    Clear,
    Seal,
}

fn op() -> impl Strategy<Value = Op> {
    (0u8..32, 0usize..64, any::<u128>()).prop_map(|(choice, key, bits)| match choice {
        0..18 => Op::Set { key, bits },
        18..20 => Op::SetAsOtherType { key },
        20..29 => Op::Delete { key },
        29 => Op::Clear,
        _ => Op::Seal,
    })
}

fn layout() -> impl Strategy<Value = Layout> {
    (3usize..16, 0usize..15).prop_map(|(flow, packet)| {
        let packet = if packet < 4 { 0 } else { packet * 8 };
        Layout::new(flow * 8, packet).unwrap()
    })
}

fn nonces() -> impl Strategy<Value = Nonces> {
    (any::<u64>(), any::<u64>()).prop_map(|(flow, packet)| Nonces::from_random(flow, packet))
}

/// A layout and keys of it, at places that do not overlap.
fn registry() -> impl Strategy<Value = (Layout, Vec<Key>)> {
    (layout(), vec((0..KeyType::ALL.len(), any::<bool>()), 1..64)).prop_map(|(layout, wishes)| {
        let mut keys: Vec<Key> = Vec::new();
        for (number, (key_type, region)) in wishes.into_iter().enumerate() {
            let key_type = KeyType::ALL[key_type];
            let region = if region { Region::Flow } else { Region::Packet };
            let free =
                layout.places(region, key_type.size()).find(|slot| keys.iter().all(|key| !key.slot().overlaps(slot)));
            if let Some(slot) = free {
                let name = KeyName::new(&format!("k{number}")).unwrap();
                keys.push(Key::new(number, name, key_type, slot).unwrap());
            }
        }
        (layout, keys)
    })
}

/// A value of a key's type.
fn value_of(key: &Key, bits: u128) -> Value {
    Value::from_bytes(key.key_type(), &bits.to_ne_bytes()[..key.key_type().size()]).unwrap()
}

/// Seals the area in front of a packet as XDP programs do. Returns the length of the metadata from then on.
fn seal(bytes: &mut [u8], layout: &Layout, nonces: &Nonces) -> usize {
    let (flow_len, end, id, stamp) = (layout.region_len(Region::Flow), bytes.len(), 7 << 48 | 1234, 256);
    let mut put = |at: usize, word: u64| bytes[at..at + 8].copy_from_slice(&word.to_ne_bytes());
    if layout.region_len(Region::Packet) != 0 {
        put(end - 24, stamp);
        put(end - flow_len - 32, id);
        put(end - flow_len - 8, nonces.tag(id, stamp));
    }
    flow_len
}

fn other_type_than(key: &Key) -> Value {
    if key.key_type() == KeyType::U16 { Value::Flag } else { Value::U16(1) }
}

/// What `view` reads of `keys`, by every way of reading.
fn read(view: &TraitsView<'_>, keys: &[Key]) -> BTreeMap<usize, Value> {
    let by_iter: BTreeMap<usize, Value> = view.iter(keys).map(|(key, value)| (key.number(), value)).collect();
    let mut present = [(Region::Flow, 0), (Region::Packet, 0)];
    for key in keys {
        let value = by_iter.get(&key.number());
        assert_eq!(view.value(key).as_ref(), value);
        assert_eq!(view.is_set(key), value.is_some());
        assert_eq!(view.bytes(key).is_some(), value.is_some());
        // The 2 bytes of padding of a MAC address are not part of its value.
        let len = if key.key_type() == KeyType::Mac { 6 } else { key.key_type().size() };
        assert_eq!(view.bytes(key).map(|bytes| bytes[..len].to_vec()), value.map(|v| v.to_bytes()[..len].to_vec()));
        if let Ok(key) = key.typed::<u64>() {
            assert_eq!(view.get(&key).map(Value::from), value.copied());
        }
        if value.is_some() {
            present[key.slot().region() as usize].1 |= key.bit();
        }
    }
    for (region, bits) in present {
        assert_eq!(view.present(region), bits);
    }
    by_iter
}

fn only(values: &BTreeMap<usize, Value>, keys: &[Key], region: Region) -> BTreeMap<usize, Value> {
    let in_region = |number| keys.iter().any(|key| key.number() == number && key.slot().region() == region);
    values.iter().filter(|(number, _)| in_region(**number)).map(|(number, value)| (*number, *value)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reads_what_was_set_and_touches_nothing_else(
        (layout, keys) in registry(),
        nonces in nonces(),
        foreign in vec(any::<u8>(), 0..40),
        mut area in vec(any::<u8>(), 252),
        ops in vec(op(), 0..60),
    ) {
        area.truncate(layout.area_len());
        let mut bytes = [foreign.clone(), area].concat();
        let flow_len = layout.region_len(Region::Flow);
        let mut model: BTreeMap<usize, Value> = BTreeMap::new();
        let mut sealed = false;
        TraitsMut::init(&mut bytes, &layout, &nonces).unwrap();

        for op in &ops {
            if matches!(op, Op::Seal) && !sealed {
                prop_assert_eq!(seal(&mut bytes, &layout, &nonces), flow_len);
                sealed = layout.region_len(Region::Packet) != 0;
            }
            let metadata_len = if sealed { flow_len } else { bytes.len() };
            let mut traits = TraitsMut::new_checked(&mut bytes, &layout, &nonces, metadata_len).unwrap();
            match *op {
                Op::Set { key, bits } if !keys.is_empty() => {
                    let key = &keys[key % keys.len()];
                    let value = value_of(key, bits);
                    match value {
                        Value::Flag => traits.set_flag(key).unwrap(),
                        Value::U64(n) => traits.set(&key.typed().unwrap(), n).unwrap(),
                        Value::Timestamp(ns) => traits.set(&key.typed().unwrap(), Timestamp(ns)).unwrap(),
                        _ => traits.set_value(key, &value).unwrap(),
                    }
                    model.insert(key.number(), value);
                }
                Op::SetAsOtherType { key } if !keys.is_empty() => {
                    let key = &keys[key % keys.len()];
                    let result = traits.set_value(key, &other_type_than(key));
                    prop_assert!(matches!(result, Err(SetError::Type(_))));
                    if key.key_type() != KeyType::Flag {
                        prop_assert!(matches!(traits.set_flag(key), Err(SetError::Type(_))));
                    }
                }
                Op::Delete { key } if !keys.is_empty() => {
                    let key = &keys[key % keys.len()];
                    prop_assert_eq!(traits.delete(key), model.remove(&key.number()).is_some());
                }
                Op::Clear => {
                    traits.clear();
                    model.clear();
                }
                _ => {}
            }
            prop_assert_eq!(read(&traits.as_view(), &keys), model.clone());
        }

        prop_assert_eq!(&bytes[..foreign.len()], &foreign);
        let flow_only = only(&model, &keys, Region::Flow);
        for metadata_len in 0..bytes.len() + 8 {
            let view = TraitsView::new_checked(&bytes, &layout, &nonces, metadata_len);
            if metadata_len < flow_len {
                prop_assert_eq!(
                    view.unwrap_err(),
                    ViewError::MetadataTooShort { needed: flow_len, found: metadata_len }
                );
                continue;
            }
            let view = view.unwrap();
            let expected = match (layout.region_len(Region::Packet), sealed) {
                (0, _) => PacketRegion::Absent,
                (_, true) if metadata_len == flow_len => PacketRegion::Sealed,
                (_, false) if metadata_len >= layout.area_len() => PacketRegion::Open,
                _ => PacketRegion::Absent,
            };
            prop_assert_eq!(view.packet_region(), expected);
            let expected = if expected == PacketRegion::Absent { &flow_only } else { &model };
            prop_assert_eq!(&read(&view, &keys), expected);
        }
    }

    #[test]
    fn truncated_bytes_never_panic((layout, keys) in registry(), nonces in nonces(), bits in any::<u128>()) {
        let mut bytes = vec![0; layout.area_len() + 4];
        let mut traits = TraitsMut::init(&mut bytes, &layout, &nonces).unwrap();
        for key in &keys {
            traits.set_value(key, &value_of(key, bits)).unwrap();
        }
        let flow_len = layout.region_len(Region::Flow);
        for len in 0..=bytes.len() {
            let mut tail = bytes[bytes.len() - len..].to_vec();
            let init = TraitsMut::init(&mut tail, &layout, &nonces).map(drop);
            let too_short = ViewError::TooShort { needed: layout.area_len(), found: len };
            prop_assert_eq!(init, if len < layout.area_len() { Err(too_short) } else { Ok(()) });
            prop_assert!(init.is_ok() || tail == bytes[bytes.len() - len..]);

            let tail = &bytes[bytes.len() - len..];
            for metadata_len in [0, len, flow_len, layout.area_len(), usize::MAX] {
                let Ok(view) = TraitsView::new_checked(tail, &layout, &nonces, metadata_len) else {
                    prop_assert!(len < flow_len || metadata_len < flow_len);
                    continue;
                };
                prop_assert!(len >= flow_len);
                let whole = view.packet_region() == PacketRegion::Open;
                prop_assert_eq!(whole, layout.region_len(Region::Packet) != 0
                    && len >= layout.area_len() && metadata_len >= layout.area_len());
                for key in &keys {
                    prop_assert_eq!(view.is_set(key), whole || key.slot().region() == Region::Flow);
                }
            }
            // The same bytes cut at the packet's side end in no nonce.
            let head = &bytes[..len];
            if len < bytes.len() && nonces.flow.to_ne_bytes() != *head.last_chunk().unwrap_or(&[0; 8]) {
                prop_assert!(TraitsView::open(head, &layout, &nonces).is_err());
            }
        }
    }

    #[test]
    fn bytes_without_the_nonce_are_no_traits(
        layout in layout(),
        nonces in nonces(),
        other in nonces(),
        noise in vec(any::<u8>(), 0..300),
        metadata_len in 0usize..300,
    ) {
        prop_assume!(nonces.flow != other.flow && nonces.packet != other.packet);
        prop_assert!(TraitsView::new_checked(&noise, &layout, &nonces, metadata_len).is_err());
        let zeroes = [0; 300];
        prop_assert_eq!(TraitsView::open(&zeroes, &layout, &nonces).unwrap_err(), ViewError::Nonce);

        let mut bytes = [0; 252];
        TraitsMut::init(&mut bytes, &layout, &nonces).unwrap();
        prop_assert_eq!(TraitsView::open(&bytes, &layout, &other).unwrap_err(), ViewError::Nonce);
        prop_assert_eq!(TraitsMut::open(&mut bytes, &layout, &other).unwrap_err(), ViewError::Nonce);
        let half = Nonces { flow: nonces.flow, packet: other.packet };
        let view = TraitsView::open(&bytes, &layout, &half).unwrap();
        prop_assert_eq!(view.packet_region(), PacketRegion::Absent);
    }

    #[test]
    fn keys_of_another_layout_are_not_set(
        (layout, _) in registry(),
        (other_layout, other_keys) in registry(),
        nonces in nonces(),
        mut bytes in vec(any::<u8>(), 252),
    ) {
        TraitsMut::init(&mut bytes, &layout, &nonces).unwrap();
        // All keys set, wherever their values lie.
        let end = bytes.len() - layout.region_end(Region::Flow);
        bytes[end - 16..end - 8].fill(0xff);
        let before = bytes.clone();
        let mut traits = TraitsMut::open(&mut bytes, &layout, &nonces).unwrap();
        for key in &other_keys {
            let slot = key.slot();
            let belongs = layout.slot(slot.region(), slot.size(), slot.distance()) == Some(slot);
            prop_assert!(belongs || layout != other_layout);
            prop_assert_eq!(traits.as_view().is_set(key), belongs && slot.region() == Region::Flow);
            if !belongs {
                prop_assert_eq!(traits.set_value(key, &value_of(key, 1)), Err(SetError::NoSlot(*key.name())));
                prop_assert!(!traits.delete(key));
            }
        }
        prop_assert_eq!(bytes, before);
    }
}

fn key(number: usize, key_type: KeyType, region: Region, distance: usize) -> Key {
    let slot = Layout::DEFAULT.slot(region, key_type.size(), distance).unwrap();
    Key::new(number, KeyName::new(&format!("k{number}")).unwrap(), key_type, slot).unwrap()
}

/// The last two bytes of the flow region's nonce are 0.
const FLOW_NONCE: [u8; 8] = [0x12, 0x22, 0x33, 0x44, 0x55, 0x66, 0, 0];
const NONCES: Nonces = Nonces::from_random(u64::from_ne_bytes(FLOW_NONCE), 0x99aa_bbcc_ddee_ff00);

/// The area's bytes, written by hand from the design: slots, `id`, `check`, `present`, nonce; slots, `stamp`, `present`, nonce.
#[test]
fn area_has_the_documented_bytes() {
    let mut bytes = [0xee; 156];
    let tenant: TypedKey<u32> = key(0, KeyType::U32, Region::Flow, 28).typed().unwrap();
    let flow_id: TypedKey<u64> = key(63, KeyType::U64, Region::Packet, 144).typed().unwrap();
    let mut traits = TraitsMut::init(&mut bytes, &Layout::DEFAULT, &NONCES).unwrap();
    traits.set(&tenant, 0x0102_0304).unwrap();
    traits.set(&flow_id, 5).unwrap();
    let expected = [
        &[0xee; 12][..],
        &5u64.to_ne_bytes(),
        &[0; 40],
        &[0; 16],
        &(1u64 << 63).to_ne_bytes(),
        &0x99aa_bbcc_ddee_ff00u64.to_ne_bytes(),
        &[0; 36],
        &0x0102_0304u32.to_ne_bytes(),
        &[0; 8],
        &1u64.to_ne_bytes(),
        &FLOW_NONCE,
    ];
    assert_eq!(bytes[..], expected.concat());
}

#[test]
fn erased_bytes_are_no_area() {
    let mut bytes = [0xee; 156];
    TraitsMut::init(&mut bytes, &Layout::DEFAULT, &NONCES).unwrap();
    TraitsMut::erase(&mut bytes, &Layout::DEFAULT);
    assert_eq!(TraitsView::open(&bytes, &Layout::DEFAULT, &NONCES).unwrap_err(), ViewError::Nonce);
    // the packet region neither: an area that has only its flow region copied over it does not revive it
    bytes[148..].copy_from_slice(&FLOW_NONCE);
    let view = TraitsView::open(&bytes, &Layout::DEFAULT, &NONCES).unwrap();
    assert_eq!(view.packet_region(), PacketRegion::Absent);
    TraitsMut::erase(&mut bytes[..8], &Layout::DEFAULT);
    assert_eq!(bytes[..12], [0xee; 12]);
}

#[test]
fn what_was_deleted_or_cleared_leaves_no_byte() {
    let (tenant, flow_id) = (key(0, KeyType::U32, Region::Flow, 28), key(1, KeyType::U64, Region::Packet, 104));
    let values = [(&tenant, Value::U32(7)), (&flow_id, Value::U64(8))];
    for sealed in [false, true] {
        let fresh = |bytes: &mut [u8]| {
            TraitsMut::init(bytes, &Layout::DEFAULT, &NONCES).unwrap();
            if sealed { seal(bytes, &Layout::DEFAULT, &NONCES) } else { Layout::DEFAULT.area_len() }
        };
        let mut empty = [0; 144];
        let metadata_len = fresh(&mut empty);
        let mut bytes = empty;
        let mut traits = TraitsMut::new_checked(&mut bytes, &Layout::DEFAULT, &NONCES, metadata_len).unwrap();
        for (key, value) in &values {
            traits.set_value(key, value).unwrap();
        }
        for (key, _) in &values {
            assert!(traits.delete(key));
            assert!(!traits.delete(key));
            assert_eq!(traits.as_view().value(key), None);
        }
        assert_eq!(bytes, empty);

        let mut traits = TraitsMut::new_checked(&mut bytes, &Layout::DEFAULT, &NONCES, metadata_len).unwrap();
        for (key, value) in &values {
            traits.set_value(key, value).unwrap();
        }
        traits.clear();
        assert_eq!(bytes, empty);
    }
}

#[test]
fn grown_metadata_does_not_revive_a_sealed_packet_region() {
    let mut bytes = [0; 200];
    let (tenant, flow_id) = (key(0, KeyType::U32, Region::Flow, 28), key(1, KeyType::U64, Region::Packet, 104));
    let mut traits = TraitsMut::init(&mut bytes, &Layout::DEFAULT, &NONCES).unwrap();
    traits.set_value(&tenant, &Value::U32(7)).unwrap();
    traits.set_value(&flow_id, &Value::U64(8)).unwrap();
    seal(&mut bytes, &Layout::DEFAULT, &NONCES);
    for metadata_len in 65..=200 {
        let mut traits = TraitsMut::new_checked(&mut bytes, &Layout::DEFAULT, &NONCES, metadata_len).unwrap();
        assert!(traits.as_view().is_set(&tenant));
        assert!(!traits.as_view().is_set(&flow_id));
        let result = traits.set_value(&flow_id, &Value::U64(9));
        assert_eq!(result, Err(SetError::NoPacketRegion(*flow_id.name())));
        assert!(!traits.delete(&flow_id));
    }
    let view = TraitsView::new_checked(&bytes, &Layout::DEFAULT, &NONCES, 64).unwrap();
    assert_eq!(view.value(&flow_id), Some(Value::U64(8)));
}

#[test]
fn nonces_of_zero_are_refused() {
    let mut bytes = [0; 144];
    let flow_zero = Nonces { flow: 0, packet: 2 };
    let packet_zero = Nonces { flow: 2, packet: 0 };
    for nonces in [flow_zero, packet_zero] {
        assert_eq!(TraitsView::open(&bytes, &Layout::DEFAULT, &nonces).unwrap_err(), ViewError::ZeroNonce);
        assert_eq!(TraitsMut::init(&mut bytes, &Layout::DEFAULT, &nonces).unwrap_err(), ViewError::ZeroNonce);
    }
    assert_eq!(bytes, [0; 144]);
    assert!(TraitsMut::init(&mut bytes, &Layout::new(64, 0).unwrap(), &packet_zero).is_ok());
}

#[test]
fn debug_output_does_not_show_the_nonces() {
    let mut bytes = [0; 144];
    let traits = TraitsMut::init(&mut bytes, &Layout::DEFAULT, &NONCES).unwrap();
    let text = format!("{traits:?}");
    assert_eq!(text, format!("{:?}", traits.as_view()));
    assert!(!text.contains(&NONCES.flow.to_string()) && !text.contains(&NONCES.packet.to_string()), "{text}");
}
