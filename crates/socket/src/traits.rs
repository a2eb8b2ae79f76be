//! The traits of one packet, one datagram or one socket, as a value.

use std::{fmt, slice};

use packet_traits_core::{Key, Layout, SetError, TraitValue, TypeMismatch, TypedKey, Value};

use super::{
    abi::{self, TRAITS_FOUND, TRAITS_VALUES_MAX, traits},
    keys::Keys,
    values,
};

/// The traits of one packet, one datagram or one socket. A copy: it holds no lock and no reference.
///
/// Use it with keys of the [`Keys`] that it was made with.
#[derive(Clone, Copy)]
pub struct Traits {
    raw: traits,
    layout: Layout,
}

impl Traits {
    /// No traits, to [set](Self::set) some and send them.
    pub fn new(keys: &Keys) -> Traits {
        Traits::empty(keys.layout())
    }

    /// Neither found nor set.
    #[inline]
    pub(crate) const fn empty(layout: Layout) -> Traits {
        Traits { raw: traits { present: 0, flags: 0, mark: 0, values: [0; TRAITS_VALUES_MAX] }, layout }
    }

    /// A datagram that had no traits and whose mark was 0.
    pub(crate) const fn plain(layout: Layout) -> Traits {
        let mut traits = Traits::empty(layout);
        traits.raw.flags = TRAITS_FOUND;
        traits
    }

    /// Of another layout from now on. The values are to be written, with [`record_mut`](Self::record_mut).
    #[inline]
    pub(crate) fn reset(&mut self, layout: Layout) {
        if self.layout != layout {
            *self = Traits::empty(layout);
        }
    }

    /// Those in `record`, which is as long as [`values::traits_len`] says.
    pub(crate) fn from_record(layout: Layout, record: &[u8]) -> Traits {
        let mut traits = Traits::empty(layout);
        traits.record_mut().copy_from_slice(record);
        traits
    }

    /// The bytes that the kernel side writes and wants.
    pub(crate) fn record(&self) -> &[u8] {
        &abi::bytes(&self.raw)[..values::traits_len(&self.layout)]
    }

    /// The same, to be written. As many as [`values::traits_len`] says.
    #[inline]
    pub(crate) fn record_mut(&mut self) -> &mut [u8] {
        &mut abi::bytes_mut(slice::from_mut(&mut self.raw))[..values::traits_len(&self.layout)]
    }

    /// Whether there was such a packet, so that what is here is what it carried, be it nothing.
    ///
    /// If not, no key is set: the SYN was not kept, no data has come yet, or the socket lags behind so far that the
    /// datagram's slot was given to a newer one.
    #[inline]
    pub fn is_found(&self) -> bool {
        self.raw.flags & TRAITS_FOUND != 0
    }

    /// The datagram's own mark (`skb->mark`), in place of which the socket sees a handle. `None` if the datagram was not
    /// found. 0 for what is not a datagram.
    pub fn mark(&self) -> Option<u32> {
        self.is_found().then_some(self.raw.mark)
    }

    /// Whether no key is set.
    pub fn is_empty(&self) -> bool {
        self.raw.present == 0
    }

    /// Whether a key has a value.
    pub fn is_set(&self, key: &Key) -> bool {
        self.bytes(key).is_some()
    }

    /// A key's value.
    #[inline]
    pub fn get<T: TraitValue>(&self, key: &TypedKey<T>) -> Option<T> {
        // the type is known here, so that there is nothing to tell apart at run time
        T::from_value(Value::from_bytes(T::KEY_TYPE, self.bytes(key.key())?)?)
    }

    /// A key's value, with its type.
    #[inline]
    pub fn value(&self, key: &Key) -> Option<Value> {
        Value::from_bytes(key.key_type(), self.bytes(key)?)
    }

    /// The bytes of a key's value, in the order of [`KeyType`](packet_traits_core::KeyType); none for a flag that is set.
    #[inline]
    pub fn bytes(&self, key: &Key) -> Option<&[u8]> {
        if self.raw.present & key.bit() == 0 {
            return None;
        }
        self.raw.values.get(values::range(&self.layout, key.slot())?)
    }

    /// Those of `keys` that have a value, in the order of their numbers.
    pub fn iter<'k>(&self, keys: &'k Keys) -> impl Iterator<Item = (&'k Key, Value)> + use<'_, 'k> {
        keys.iter().filter_map(|key| Some((key, self.value(key)?)))
    }

    /// Sets a key's value.
    ///
    /// # Errors
    /// [`SetError::NoSlot`] if the key is not one of the [`Keys`] that this was made with. Nothing is changed then.
    pub fn set<T: TraitValue>(&mut self, key: &TypedKey<T>, value: T) -> Result<(), SetError> {
        self.set_value(key.key(), &value.into())
    }

    /// Sets a key's value; it must be of the key's type. A flag is set with [`Value::Flag`].
    ///
    /// # Errors
    /// [`SetError::Type`], and as for [`set`](Self::set). Nothing is changed then.
    pub fn set_value(&mut self, key: &Key, value: &Value) -> Result<(), SetError> {
        check_type(key, value)?;
        let no_slot = || SetError::NoSlot(*key.name());
        let range = values::range(&self.layout, key.slot()).ok_or_else(no_slot)?;
        self.raw.values.get_mut(range).ok_or_else(no_slot)?.copy_from_slice(&value.to_bytes());
        self.raw.present |= key.bit();
        Ok(())
    }

    /// Takes a key's value away; whether it had one.
    pub fn delete(&mut self, key: &Key) -> bool {
        let was_set = self.is_set(key);
        self.raw.present &= !key.bit();
        was_set
    }

    /// Takes the values of all keys away.
    pub fn clear(&mut self) {
        self.raw.present = 0;
    }
}

impl fmt::Debug for Traits {
    /// The values have no meaning without their keys: [`iter`](Traits::iter) has them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traits")
            .field("is_found", &self.is_found())
            .field("mark", &self.mark())
            .field("present", &format_args!("{:#x}", self.raw.present))
            .finish_non_exhaustive()
    }
}

/// Refuses a value that is not of the key's type.
pub(crate) fn check_type(key: &Key, value: &Value) -> Result<(), TypeMismatch> {
    if key.key_type() == value.key_type() {
        return Ok(());
    }
    Err(TypeMismatch { key: *key.name(), key_type: key.key_type(), wanted: value.key_type() })
}

#[cfg(test)]
mod tests {
    use packet_traits_core::Region;

    use super::{super::keys::tests::keys, *};
    use crate::SocketError;

    #[test]
    fn values_are_where_the_table_says() {
        let keys = keys();
        let (tenant, hop) = (keys.typed::<u32>("tenant").unwrap(), keys.typed::<u16>("hop").unwrap());
        let mut traits = Traits::new(&keys);
        assert_eq!((traits.is_found(), traits.mark(), traits.is_empty()), (false, None, true));
        traits.set(&tenant, 0x0102_0304).unwrap();
        traits.set(&hop, 0x0506).unwrap();
        traits.set_value(keys.get("seen").unwrap(), &Value::Flag).unwrap();

        let record = traits.record();
        assert_eq!(record.len(), 16 + 40 + 32);
        assert_eq!(record[..8], (1u64 | 1 << 9 | 1 << 63).to_ne_bytes());
        assert_eq!(record[16 + 36..][..4], 0x0102_0304u32.to_ne_bytes());
        assert_eq!(record[16 + 70..][..2], 0x0506u16.to_ne_bytes());

        let copy = Traits::from_record(keys.layout(), record);
        assert_eq!((copy.get(&tenant), copy.get(&hop)), (Some(0x0102_0304), Some(0x0506)));
        let set: Vec<_> = copy.iter(&keys).map(|(key, value)| (key.name().as_str(), value)).collect();
        assert_eq!(set, [("tenant", Value::U32(0x0102_0304)), ("hop", Value::U16(0x0506)), ("seen", Value::Flag)]);
    }

    #[test]
    fn deleting_takes_one_value_away_and_clearing_all() {
        let keys = keys();
        let (tenant, hop) = (keys.typed::<u32>("tenant").unwrap(), keys.typed::<u16>("hop").unwrap());
        let mut traits = Traits::new(&keys);
        traits.set(&tenant, 7).unwrap();
        traits.set(&hop, 8).unwrap();
        assert!(traits.delete(tenant.key()));
        assert!(!traits.delete(tenant.key()));
        assert_eq!((traits.get(&tenant), traits.get(&hop)), (None, Some(8)));
        traits.clear();
        assert!(traits.is_empty() && !traits.is_set(hop.key()));
    }

    #[test]
    fn wrong_values_and_foreign_keys_are_refused() {
        let keys = keys();
        let mut traits = Traits::new(&keys);
        let error = traits.set_value(keys.get("tenant").unwrap(), &Value::U16(1)).unwrap_err();
        assert!(matches!(error, SetError::Type(_)), "{error}");

        let large = Layout::new(128, 64).unwrap();
        let name = *keys.get("tenant").unwrap().name();
        let slot = large.slot(Region::Flow, 4, 128).unwrap();
        let foreign = Key::new(3, name, packet_traits_core::KeyType::U32, slot).unwrap();
        assert_eq!(traits.set_value(&foreign, &Value::U32(1)), Err(SetError::NoSlot(name)));
        assert!(traits.is_empty());

        // where what else is called fails with the crate's error
        let mut set = || -> Result<(), SocketError> { Ok(traits.set_value(&foreign, &Value::U32(1))?) };
        let error = set().unwrap_err();
        assert!(matches!(error, SocketError::Set(SetError::NoSlot(_))), "{error}");
        assert_eq!((error.errno(), error.to_string()), (libc::EINVAL, SetError::NoSlot(name).to_string()));
    }

    #[test]
    fn a_datagram_without_traits_is_found_and_has_mark_0() {
        let plain = Traits::plain(keys().layout());
        assert_eq!((plain.is_found(), plain.mark(), plain.is_empty()), (true, Some(0), true));
    }
}
