//! The keys that can be asked for on a socket, as its attachment knows them.

use std::os::fd::{AsFd, BorrowedFd};

use packet_traits_core::{Key, KeyName, KeyType, Layout, Merge, TraitValue, TypedKey};

use super::{
    abi::{self, RCV_TRAITS, SOL_TRAITS, TRAITS_KEY_MAX, TRAITS_KEYS, traits_key, traits_receive},
    error::{Attempt, SocketError},
    sockopt, values,
};

/// The keys of the registry that serves a socket, and the layout that says where their values are.
///
/// It is what was registered when it was read. A key that is registered later is missing, and one that was removed and
/// whose number was given out again reads as the new one's bytes; read it again ([`Keys::of`]) if keys change while the
/// application runs. All sockets of a cgroup have the same keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    layout: Layout,
    /// In the order of their numbers.
    keys: Vec<Key>,
}

impl Keys {
    /// Reads the keys of a TCP or UDP socket, in whatever state it is. Three system calls.
    ///
    /// # Errors
    /// [`SocketError::NotAttached`]; [`SocketError::Damaged`] if the answers contradict themselves.
    pub fn of(socket: &impl AsFd) -> Result<Keys, SocketError> {
        Ok(Keys::with_state(socket.as_fd())?.0)
    }

    /// The same, with what [`RCV_TRAITS`] says, of the same revision of the registry.
    pub(crate) fn with_state(socket: BorrowedFd<'_>) -> Result<(Keys, traits_receive), SocketError> {
        let mut state = receive_state(socket)?;
        loop {
            let keys = Keys::read(socket, &state)?;
            let before = std::mem::replace(&mut state, receive_state(socket)?);
            if state.revision == before.revision {
                return Ok((keys, state));
            }
        }
    }

    fn read(socket: BorrowedFd<'_>, state: &traits_receive) -> Result<Keys, SocketError> {
        let attempt = Attempt::new("read TRAITS_KEYS", socket);
        let mut table = [NO_KEY; TRAITS_KEY_MAX];
        let len = match sockopt::get(socket, SOL_TRAITS, TRAITS_KEYS, abi::bytes_mut(&mut table)) {
            // There are no keys.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => 0,
            answer => answer.map_err(|error| attempt.failed(socket, error))?,
        };
        if !len.is_multiple_of(size_of::<traits_key>()) {
            return Err(attempt.damaged(format!("the answer is {len} bytes, which is no whole number of keys")));
        }
        Keys::parse(state, &table[..len / size_of::<traits_key>()]).map_err(|why| attempt.damaged(why))
    }

    fn parse(state: &traits_receive, table: &[traits_key]) -> Result<Keys, String> {
        let layout = Layout::new(state.flow_len as usize, state.packet_len as usize).map_err(|why| why.to_string())?;
        let traits_len = values::traits_len(&layout);
        if state.traits_len as usize != traits_len {
            return Err(format!(
                "the traits of a packet are said to have {} bytes, not {traits_len}",
                state.traits_len
            ));
        }
        let mut keys: Vec<Key> = Vec::with_capacity(table.len());
        for raw in table {
            let key = parse_key(&layout, raw).map_err(|why| format!("key {} is not valid: {why}", raw.number))?;
            if keys.iter().any(|other| other.number() == key.number() || other.name() == key.name()) {
                return Err(format!("key {}, '{}', is there twice", raw.number, key.name()));
            }
            keys.push(key);
        }
        keys.sort_unstable_by_key(Key::number);
        Ok(Keys { layout, keys })
    }

    /// Whether these keys are all among others, with the same numbers and places.
    pub(crate) fn are_among(&self, others: &Keys) -> bool {
        self.layout == others.layout && self.keys.iter().all(|key| others.keys.contains(key))
    }

    /// The key of this name.
    pub fn get(&self, name: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.name().as_str() == name)
    }

    /// The key of this number, 0 to 63.
    pub fn numbered(&self, number: usize) -> Option<&Key> {
        self.keys.iter().find(|key| key.number() == number)
    }

    /// The key of this name as one that holds values of type `T`. Flags have no type, see [`get`](Self::get).
    ///
    /// # Errors
    /// [`SocketError::UnknownKey`]; [`SocketError::Type`] if it was registered with another type.
    pub fn typed<T: TraitValue>(&self, name: &str) -> Result<TypedKey<T>, SocketError> {
        let key = self.get(name).ok_or_else(|| SocketError::UnknownKey {
            name: name.to_owned(),
            known: self.keys.iter().map(|key| *key.name()).collect(),
        })?;
        Ok(key.typed()?)
    }

    /// Every key, in the order of their numbers.
    pub fn iter(&self) -> std::slice::Iter<'_, Key> {
        self.keys.iter()
    }

    /// Sizes of the regions of a packet's area.
    pub fn layout(&self) -> Layout {
        self.layout
    }
}

impl<'a> IntoIterator for &'a Keys {
    type Item = &'a Key;
    type IntoIter = std::slice::Iter<'a, Key>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// What [`RCV_TRAITS`] says of a socket.
pub(crate) fn receive_state(socket: BorrowedFd<'_>) -> Result<traits_receive, SocketError> {
    let attempt = Attempt::new("read RCV_TRAITS", socket);
    let mut state = [traits_receive::default()];
    let len = sockopt::get(socket, SOL_TRAITS, RCV_TRAITS, abi::bytes_mut(&mut state))
        .map_err(|error| attempt.failed(socket, error))?;
    if len != size_of::<traits_receive>() {
        return Err(attempt.damaged(format!("the answer is {len} bytes, not {}", size_of::<traits_receive>())));
    }
    Ok(state[0])
}

const NO_KEY: traits_key =
    traits_key { name: [0; 32], number: 0, key_type: 0, size: 0, merge: 0, offset: 0, distance: 0 };

fn parse_key(layout: &Layout, raw: &traits_key) -> Result<Key, String> {
    let name = KeyName::from_padded(&raw.name).map_err(|why| why.to_string())?;
    let key_type =
        KeyType::from_code(raw.key_type).ok_or_else(|| format!("'{name}' has the unknown type {}", raw.key_type))?;
    let merge =
        Merge::from_code(raw.merge).ok_or_else(|| format!("'{name}' has the unknown merge policy {}", raw.merge))?;
    let (size, distance) = (usize::from(raw.size), usize::from(raw.distance));
    let slot = layout.slot(merge.region(), size, distance).ok_or_else(|| {
        format!("'{name}' has no place in the {} region ({size} bytes at {distance})", merge.region())
    })?;
    // A flag has no bytes, so it does not matter where they would be.
    if let Some(range) = values::range(layout, slot).filter(|range| !range.is_empty())
        && range.start != usize::from(raw.offset)
    {
        return Err(format!("the value of '{name}' is said to be at {}, not {}", raw.offset, range.start));
    }
    Key::new(usize::from(raw.number), name, key_type, slot)
        .ok_or_else(|| format!("'{name}' is of type {key_type} and has {size} bytes"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn raw(number: u8, name: &str, key_type: KeyType, merge: Merge, offset: u16, distance: u16) -> traits_key {
        traits_key {
            name: *KeyName::new(name).unwrap().padded(),
            number,
            key_type: key_type as u8,
            size: key_type.size() as u8,
            merge: merge as u8,
            offset,
            distance,
        }
    }

    /// A layout of 64 and 64 bytes: 40 and 32 of them are for values.
    fn state() -> traits_receive {
        traits_receive { traits_len: 16 + 40 + 32, flow_len: 64, packet_len: 64, ..Default::default() }
    }

    fn table() -> Vec<traits_key> {
        vec![
            raw(9, "hop", KeyType::U16, Merge::KeepFirst, 72 - 2, 96 + 2),
            raw(0, "tenant", KeyType::U32, Merge::Block, 40 - 4, 24 + 4),
            raw(63, "seen", KeyType::Flag, Merge::KeepFirst, 0, 0),
            raw(2, "flow_id", KeyType::U64, Merge::Block, 0, 64),
        ]
    }

    /// `tenant`: u32 and `flow_id`: u64 in the flow region; `hop`: u16 and `seen`: flag in the packet region.
    pub(crate) fn keys() -> Keys {
        Keys::parse(&state(), &table()).unwrap()
    }

    #[test]
    fn keys_are_found_by_name_and_number() {
        let keys = keys();
        assert_eq!(keys.layout(), Layout::new(64, 64).unwrap());
        assert_eq!(keys.iter().map(Key::number).collect::<Vec<_>>(), [0, 2, 9, 63]);
        assert_eq!(keys.get("hop"), keys.numbered(9));
        assert_eq!(keys.get("hop").unwrap().slot().distance(), 98);
        assert_eq!((keys.get("nobody"), keys.numbered(1)), (None, None));
        assert_eq!(keys.typed::<u32>("tenant").unwrap().key().number(), 0);
    }

    #[test]
    fn a_wrong_name_or_type_is_explained() {
        let keys = keys();
        let error = keys.typed::<u32>("tennant").unwrap_err();
        assert_eq!(error.to_string(), "no key 'tennant' is registered; there are: tenant, flow_id, hop, seen");
        let error = keys.typed::<u64>("tenant").unwrap_err();
        assert!(matches!(error, SocketError::Type(_)), "{error}");
        assert!(error.to_string().starts_with("key 'tenant' has type u32, not u64"), "{error}");
    }

    #[test]
    fn a_table_that_contradicts_itself_is_refused() {
        let refused = |state: &traits_receive, table: &[traits_key]| Keys::parse(state, table).unwrap_err();
        assert!(refused(&traits_receive { traits_len: 240, ..state() }, &[]).contains("240"));
        assert!(refused(&traits_receive { flow_len: 8, ..state() }, &[]).contains("flow region"));

        let change = |change: fn(&mut traits_key)| {
            let mut key = table()[1];
            change(&mut key);
            refused(&state(), &[key])
        };
        assert!(change(|key| key.offset = 40).contains("said to be at 40, not 36"));
        assert!(change(|key| key.distance = 18).contains("no place"));
        assert!(change(|key| key.key_type = 99).contains("unknown type 99"));
        assert!(change(|key| key.key_type = KeyType::U64 as u8).contains("of type u64"));
        assert!(change(|key| key.merge = 3).contains("merge policy 3"));
        assert!(change(|key| key.number = 64).contains("key 64"));
        assert!(change(|key| key.name = [b'x'; 32]).contains("1 to 31"));
        assert!(refused(&state(), &[table()[1], table()[1]]).contains("twice"));
    }
}
