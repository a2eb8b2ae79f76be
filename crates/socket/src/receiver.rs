//! Many datagrams on one socket: what does not change is looked up once, and their traits are read together.

use std::{
    fmt,
    iter::FusedIterator,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
};

use libc::c_int;

use packet_traits_core::Layout;

use super::{
    abi::{SOL_TRAITS_DATAGRAMS, TRAITS_HEADER_LEN, traits_receive},
    error::{Attempt, SocketError},
    handle::{self, Handle},
    keys::Keys,
    message::{self, MESSAGES_MAX, Message, Room},
    ring::{Found, Part, Ring},
    socket::SocketTraits as _,
    sockopt,
    traits::Traits,
    udp::{self, Received},
    values,
};

/// Datagrams of one [`Receiver::recv_batch`] if nothing else is asked for.
const BATCH_DEFAULT: usize = 32;

/// Longer than any UDP datagram: its header's length field has 16 bits (RFC 768).
const DATAGRAM_LEN_DEFAULT: usize = 65_536;

/// Receives the datagrams of one UDP socket, with their traits.
///
/// `S` is the socket or a reference to it: a std or tokio `UdpSocket`, an `Arc` of one, an `OwnedFd`. A non-blocking socket
/// gives [`WouldBlock`](std::io::ErrorKind::WouldBlock). With the feature `tokio`, `recv_async` and `recv_batch_async` wait
/// for datagrams.
///
/// With the feature `ring` the traits are read from shared memory if the process may open it, and by getsockopt(2) otherwise.
/// Both give the same traits.
///
/// A receiver lasts as long as its socket is served: after `traits sockets detach` and another attach, or
/// [`receive_traits`](crate::SocketTraits::receive_traits) on the socket, it finds no traits; make a new one. An attach that
/// replaces the programs of another build changes nothing.
pub struct Receiver<S: AsFd> {
    socket: S,
    keys: Keys,
    part: Option<Part>,
    batch: BatchSize,
    /// Made by the first [`Receiver::recv_batch`].
    buffers: Option<Buffers>,
}

/// How a [`Receiver`] reads.
///
/// ```no_run
/// use std::net::UdpSocket;
/// use packet_traits_socket::ReceiverOptions;
///
/// let options = ReceiverOptions::new().batch(64, 1500);
/// let receivers = [4000, 4001].map(|port| options.build(UdpSocket::bind(("::", port)).unwrap()));
/// # Ok::<(), packet_traits_socket::SocketError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ReceiverOptions {
    ring: RingChoice,
    batch: BatchSize,
}

#[derive(Clone, Debug, Default)]
enum RingChoice {
    /// The default registry's, if the process may open it and it is the socket's.
    #[default]
    IfAllowed,
    Never,
    #[cfg(feature = "ring")]
    This(Ring),
}

#[derive(Clone, Copy, Debug)]
struct BatchSize {
    datagrams: usize,
    datagram_len: usize,
}

impl Default for BatchSize {
    fn default() -> Self {
        BatchSize { datagrams: BATCH_DEFAULT, datagram_len: DATAGRAM_LEN_DEFAULT }
    }
}

impl ReceiverOptions {
    /// Those of [`Receiver::new`].
    pub fn new() -> ReceiverOptions {
        ReceiverOptions::default()
    }

    /// Reads traits from this ring, which must be of the attachment that serves the socket. Without it, the ring of the
    /// registry `default` is opened, and getsockopt(2) is used if that is not permitted or it is not the socket's.
    ///
    /// Opening a ring maps all of it. With many sockets, open it once.
    #[cfg(feature = "ring")]
    pub fn ring(self, ring: &Ring) -> Self {
        ReceiverOptions { ring: RingChoice::This(ring.clone()), ..self }
    }

    /// Reads traits by getsockopt(2), also if a ring could be opened.
    pub fn without_ring(self) -> Self {
        ReceiverOptions { ring: RingChoice::Never, ..self }
    }

    /// How many datagrams [`Receiver::recv_batch`] receives at once (1 to 64), and how many bytes each may have; longer
    /// ones are cut off. 32 of any length without this.
    ///
    /// The buffers take up address space of the product; memory only where datagrams have been.
    pub fn batch(self, datagrams: usize, datagram_len: usize) -> Self {
        ReceiverOptions { batch: BatchSize { datagrams: datagrams.clamp(1, MESSAGES_MAX), datagram_len }, ..self }
    }

    /// Makes the receiver: turns [`receive_traits`](crate::SocketTraits::receive_traits) on and reads the keys.
    ///
    /// # Errors
    /// Those of [`receive_traits`](crate::SocketTraits::receive_traits) and [`Keys::of`]; [`SocketError::WrongSocket`] if the
    /// socket is not UDP; [`SocketError::ForeignRing`] if the ring that was asked for is not the socket's.
    pub fn build<S: AsFd>(&self, socket: S) -> Result<Receiver<S>, SocketError> {
        socket.receive_traits(true)?;
        let fd = socket.as_fd();
        let (keys, state) = Keys::with_state(fd)?;
        if state.slots == 0 {
            return Err(SocketError::WrongSocket { attempt: Attempt::new("receive datagrams", fd) });
        }
        let part = self.ring.part(fd, &state)?;
        Ok(Receiver { socket, keys, part, batch: self.batch, buffers: None })
    }
}

impl RingChoice {
    #[cfg_attr(
        not(feature = "ring"),
        expect(clippy::unnecessary_wraps, reason = "a ring that was asked for may not fit")
    )]
    fn part(&self, _socket: BorrowedFd<'_>, state: &traits_receive) -> Result<Option<Part>, SocketError> {
        match self {
            RingChoice::Never => Ok(None),
            #[cfg(feature = "ring")]
            RingChoice::This(ring) => ring.part(state).map(Some).ok_or_else(|| SocketError::ForeignRing {
                path: ring.path().to_owned(),
                descriptor: std::os::fd::AsRawFd::as_raw_fd(&_socket),
            }),
            RingChoice::IfAllowed => Ok(Ring::part_if_allowed(state)),
        }
    }
}

impl<S: AsFd> Receiver<S> {
    /// Receives on this socket: turns [`receive_traits`](crate::SocketTraits::receive_traits) on, reads the keys and, with the
    /// feature `ring`, opens the default registry's ring if that is permitted.
    ///
    /// # Errors
    /// As for [`ReceiverOptions::build`].
    pub fn new(socket: S) -> Result<Receiver<S>, SocketError> {
        ReceiverOptions::default().build(socket)
    }

    /// The socket.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    /// The socket, which keeps receiving traits.
    pub fn into_socket(self) -> S {
        self.socket
    }

    /// The keys that were registered when the receiver was made.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The ring that traits are read from; `None` if they are read by getsockopt(2).
    #[cfg(feature = "ring")]
    pub fn ring(&self) -> Option<&Ring> {
        self.part.as_ref().map(Part::ring)
    }

    /// Receives one datagram, as [`recv_with_traits`](crate::UdpTraits::recv_with_traits) does.
    ///
    /// # Errors
    /// Those of recvmsg(2), among them [`WouldBlock`](std::io::ErrorKind::WouldBlock) on a non-blocking socket.
    #[inline]
    pub fn recv(&self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        let mut received = Received::none(&self.keys);
        self.recv_into(buffer, &mut received)?;
        Ok(received)
    }

    /// The same, into a [`Received`] that is used again: the cheapest way for one datagram.
    ///
    /// # Errors
    /// As for [`recv`](Self::recv); `received` is then as before.
    #[inline]
    pub fn recv_into(&self, buffer: &mut [u8], received: &mut Received) -> Result<(), SocketError> {
        let fd = self.socket.as_fd();
        if let Some(part) = &self.part {
            part.prefetch();
        }
        let message = message::receive(fd, buffer)
            .map_err(|error| SocketError::Io { attempt: Attempt::new("receive a datagram", fd), error })?;
        let layout = self.keys.layout();
        let traits = &mut received.traits;
        match (&self.part, message.handle) {
            (Some(part), Handle::Slot(slot)) => {
                traits.reset(layout);
                match part.read(slot, traits.record_mut()) {
                    Found::Traits => {}
                    Found::Nothing => *traits = Traits::empty(layout),
                    Found::Other(revision) => {
                        follow(fd, part, &self.keys, revision);
                        *traits = udp::look_up(fd, layout, message.handle);
                    }
                }
            }
            (_, handle) => *traits = udp::look_up(fd, layout, handle),
        }
        received.len = message.len;
        received.is_truncated = message.is_truncated;
        received.from = message.from;
        Ok(())
    }

    /// Receives datagrams: at least one, for which it waits unless the socket is non-blocking, and those that are there
    /// already, as many as the [batch](ReceiverOptions::batch) has room for.
    ///
    /// One system call, and without a ring one more for each 16 datagrams with traits or a mark. The batch holds the
    /// receiver's buffers until it is dropped.
    ///
    /// # Errors
    /// Those of recvmmsg(2), among them [`WouldBlock`](std::io::ErrorKind::WouldBlock) on a non-blocking socket.
    pub fn recv_batch(&mut self) -> Result<Batch<'_>, SocketError> {
        let (socket, mut filling) = self.split();
        let len = filling.fill(socket.as_fd())?;
        Ok(self.batch(len))
    }

    /// The socket, and what a batch is received with.
    pub(crate) fn split(&mut self) -> (&S, Filling<'_>) {
        let record_len = values::traits_len(&self.keys.layout());
        let buffers = self.buffers.get_or_insert_with(|| Buffers::new(self.batch, record_len));
        (&self.socket, Filling { part: self.part.as_ref(), keys: &self.keys, buffers })
    }

    /// The first `len` datagrams in the buffers.
    pub(crate) fn batch(&self, len: usize) -> Batch<'_> {
        let buffers = self.buffers.as_ref().expect("a batch was received");
        Batch { buffers, layout: self.keys.layout(), len }
    }
}

impl<S: AsFd> fmt::Debug for Receiver<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("socket", &self.socket.as_fd())
            .field("keys", &self.keys)
            .field("has_ring", &self.part.is_some())
            .field("batch", &self.batch)
            .finish_non_exhaustive()
    }
}

/// What a batch is received with.
pub(crate) struct Filling<'a> {
    part: Option<&'a Part>,
    keys: &'a Keys,
    buffers: &'a mut Buffers,
}

impl Filling<'_> {
    /// Receives into the buffers. Returns how many datagrams.
    pub(crate) fn fill(&mut self, socket: BorrowedFd<'_>) -> Result<usize, SocketError> {
        let len = self
            .buffers
            .receive(socket)
            .map_err(|error| SocketError::Io { attempt: Attempt::new("receive datagrams", socket), error })?;
        self.buffers.read_records(socket, self.part, self.keys, len);
        Ok(len)
    }
}

/// What a batch is received into.
struct Buffers {
    /// The datagrams, `stride` bytes apart.
    data: Vec<u8>,
    stride: usize,
    datagram_len: usize,
    room: Room,
    messages: Box<[Option<Message>]>,
    /// The handles of the datagrams that have slots, in their order.
    slots: Vec<u32>,
    /// What is in those slots, as the kernel side gives it.
    records: Box<[u8]>,
    record_len: usize,
}

impl Buffers {
    fn new(size: BatchSize, record_len: usize) -> Buffers {
        let BatchSize { datagrams, datagram_len } = size;
        // Datagrams that all begin at the same place in a page would take the same lines of the cache from each other.
        let stride = datagram_len.next_multiple_of(64) + 64;
        Buffers {
            data: vec![0; datagrams * stride],
            stride,
            datagram_len,
            room: Room::new(datagrams),
            messages: vec![None; datagrams].into(),
            slots: Vec::with_capacity(datagrams),
            records: vec![0; datagrams * record_len].into(),
            record_len,
        }
    }

    fn receive(&mut self, socket: BorrowedFd<'_>) -> std::io::Result<usize> {
        let Buffers { data, stride, datagram_len, room, messages, .. } = self;
        message::receive_many(socket, data, *stride, *datagram_len, room, messages)
    }

    /// Reads the traits of the first `len` datagrams.
    fn read_records(&mut self, socket: BorrowedFd<'_>, part: Option<&Part>, keys: &Keys, len: usize) {
        self.slots.clear();
        self.slots.extend(self.messages[..len].iter().flatten().filter_map(|message| match message.handle {
            Handle::Slot(slot) => Some(slot),
            Handle::Plain | Handle::Lost => None,
        }));
        let (slots, record_len) = (&self.slots, self.record_len);
        let records = &mut self.records[..slots.len() * record_len];
        match part {
            Some(part) => {
                for (slot, record) in slots.iter().zip(records.chunks_exact_mut(record_len)) {
                    match part.read(*slot, record) {
                        Found::Traits => {}
                        Found::Nothing => not_found(record),
                        Found::Other(revision) => {
                            follow(socket, part, keys, revision);
                            if !udp::read_record(socket, *slot, record) {
                                not_found(record);
                            }
                        }
                    }
                }
            }
            None => read_runs(slots, record_len, records, |first, records| {
                sockopt::get(socket, SOL_TRAITS_DATAGRAMS, first as c_int, records)
            }),
        }
    }

    /// The traits of datagram `index`, of which `slot` of those in front of it have slots.
    fn traits(&self, layout: Layout, handle: Handle, slot: usize) -> Traits {
        match handle {
            Handle::Plain => Traits::plain(layout),
            Handle::Lost => Traits::empty(layout),
            Handle::Slot(_) => Traits::from_record(layout, &self.records[slot * self.record_len..][..self.record_len]),
        }
    }
}

/// Has datagrams be read from the ring again whose keys are of this revision of the registry or a later one, if the keys are
/// still the same.
#[cold]
fn follow(socket: BorrowedFd<'_>, part: &Part, keys: &Keys, revision: u64) {
    if part.is_news(revision)
        && let Ok((now, state)) = Keys::with_state(socket)
        && keys.are_among(&now)
    {
        part.set_revision(state.revision);
    }
}

/// Makes a record one of a datagram that is not found.
fn not_found(record: &mut [u8]) {
    record[..TRAITS_HEADER_LEN].fill(0);
}

/// Fills in the records of slots, with one `get` (first handle, records from there on; bytes written) for each run of
/// handles, or more if one does not answer for all.
fn read_runs(
    slots: &[u32],
    record_len: usize,
    records: &mut [u8],
    mut get: impl FnMut(u32, &mut [u8]) -> std::io::Result<usize>,
) {
    for run in handle::runs(slots) {
        let mut at = run.start;
        while at < run.end {
            let rest = &mut records[at * record_len..run.end * record_len];
            let answered = match get(slots[at], rest) {
                Ok(len) => len.min(rest.len()) / record_len,
                Err(_) => 0,
            };
            if answered == 0 {
                rest.chunks_exact_mut(record_len).for_each(not_found);
                break;
            }
            at += answered;
        }
    }
}

/// Datagrams that were received together.
pub struct Batch<'a> {
    buffers: &'a Buffers,
    layout: Layout,
    len: usize,
}

impl<'a> Batch<'a> {
    /// How many there are, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The datagrams, in the order they came.
    pub fn iter(&self) -> Datagrams<'a> {
        Datagrams { buffers: self.buffers, layout: self.layout, next: 0, len: self.len, slots: 0 }
    }
}

impl<'a> IntoIterator for Batch<'a> {
    type Item = Datagram<'a>;
    type IntoIter = Datagrams<'a>;

    fn into_iter(self) -> Datagrams<'a> {
        self.iter()
    }
}

impl<'a> IntoIterator for &Batch<'a> {
    type Item = Datagram<'a>;
    type IntoIter = Datagrams<'a>;

    fn into_iter(self) -> Datagrams<'a> {
        self.iter()
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The datagrams of a [`Batch`], in the order they came.
#[derive(Clone)]
pub struct Datagrams<'a> {
    buffers: &'a Buffers,
    layout: Layout,
    next: usize,
    len: usize,
    /// How many of those in front of `next` have slots.
    slots: usize,
}

impl<'a> Iterator for Datagrams<'a> {
    type Item = Datagram<'a>;

    fn next(&mut self) -> Option<Datagram<'a>> {
        let message = self.buffers.messages[..self.len].get(self.next)?.as_ref()?;
        let datagram = Datagram {
            data: &self.buffers.data[self.next * self.buffers.stride..][..message.len],
            message,
            buffers: self.buffers,
            layout: self.layout,
            slot: self.slots,
        };
        self.next += 1;
        self.slots += usize::from(matches!(message.handle, Handle::Slot(_)));
        Some(datagram)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len - self.next, Some(self.len - self.next))
    }
}

impl ExactSizeIterator for Datagrams<'_> {}

impl FusedIterator for Datagrams<'_> {}

impl fmt::Debug for Datagrams<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
    }
}

/// One datagram of a [`Batch`].
#[derive(Clone, Copy)]
pub struct Datagram<'a> {
    data: &'a [u8],
    message: &'a Message,
    buffers: &'a Buffers,
    layout: Layout,
    /// Where its record is, if it has a slot.
    slot: usize,
}

impl<'a> Datagram<'a> {
    /// Its bytes.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Whether it was longer than the [batch](ReceiverOptions::batch) has room for, so that its end is missing.
    pub fn is_truncated(&self) -> bool {
        self.message.is_truncated
    }

    /// Who sent it.
    pub fn from(&self) -> SocketAddr {
        self.message.from
    }

    /// A copy of its traits.
    pub fn traits(&self) -> Traits {
        self.buffers.traits(self.layout, self.message.handle, self.slot)
    }
}

impl fmt::Debug for Datagram<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datagram")
            .field("len", &self.data.len())
            .field("is_truncated", &self.is_truncated())
            .field("from", &self.from())
            .field("traits", &self.traits())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{super::keys::tests::keys, *};

    /// A record that tells the handle it is of.
    fn record(handle: u32) -> [u8; 24] {
        let mut record = [0; 24];
        record[..4].copy_from_slice(&handle.to_ne_bytes());
        record[8] = 1;
        record[16..20].copy_from_slice(&handle.to_ne_bytes());
        record
    }

    /// Answers for as many records as there is room for, but no more than `at_most`, and counts the calls.
    fn kernel(at_most: usize, calls: &mut usize) -> impl FnMut(u32, &mut [u8]) -> io::Result<usize> {
        move |first, records| {
            *calls += 1;
            let mut count = 0;
            for (place, handle) in records.as_chunks_mut().0.iter_mut().zip(first..).take(at_most) {
                *place = record(handle);
                count += 1;
            }
            Ok(count * 24)
        }
    }

    fn read(slots: &[u32], get: impl FnMut(u32, &mut [u8]) -> io::Result<usize>) -> Vec<[u8; 24]> {
        let mut records = vec![0xff; slots.len() * 24];
        read_runs(slots, 24, &mut records, get);
        records.as_chunks().0.to_vec()
    }

    #[test]
    fn one_call_reads_a_run_of_handles() {
        let mut calls = 0;
        let slots: Vec<u32> = (7..23).chain([90]).collect();
        let records = read(&slots, kernel(16, &mut calls));
        assert_eq!(records, slots.iter().map(|slot| record(*slot)).collect::<Vec<_>>());
        assert_eq!(calls, 2);
    }

    #[test]
    fn what_one_call_does_not_answer_the_next_does() {
        let mut calls = 0;
        let slots: Vec<u32> = (7..12).collect();
        let records = read(&slots, kernel(2, &mut calls));
        assert_eq!(records, slots.iter().map(|slot| record(*slot)).collect::<Vec<_>>());
        assert_eq!(calls, 3);
    }

    #[test]
    fn records_that_cannot_be_read_are_not_found() {
        let mut calls = 0;
        for get in [|_: u32, _: &mut [u8]| Ok(0), |_: u32, _: &mut [u8]| Err(io::ErrorKind::Other.into())] {
            let records = read(&[7, 8, 20], |first, records| {
                calls += 1;
                get(first, records)
            });
            assert!(records.iter().all(|record| record[..TRAITS_HEADER_LEN] == [0; TRAITS_HEADER_LEN]));
        }
        assert_eq!(calls, 4);
    }

    #[test]
    fn a_datagram_without_a_slot_takes_no_record() {
        let keys = keys();
        let tenant = keys.typed::<u32>("tenant").unwrap();
        let record_len = values::traits_len(&keys.layout());
        let mut buffers = Buffers::new(BatchSize { datagrams: 6, datagram_len: 10 }, record_len);
        let handles = [Handle::Slot(5), Handle::Plain, Handle::Slot(6), Handle::Lost, Handle::Slot(7)];
        for (place, handle) in buffers.messages.iter_mut().zip(handles) {
            let from = ([127, 0, 0, 1], 9).into();
            *place = Some(Message { len: 1, is_truncated: false, from, handle });
        }
        for (i, record) in buffers.records.chunks_exact_mut(record_len).enumerate() {
            let mut traits = Traits::plain(keys.layout());
            traits.set(&tenant, 100 + i as u32).unwrap();
            record.copy_from_slice(traits.record());
        }

        let batch = Batch { buffers: &buffers, layout: keys.layout(), len: handles.len() };
        let seen: Vec<_> = batch.iter().map(|d| (d.traits().is_found(), d.traits().get(&tenant))).collect();
        let expected = [(true, Some(100)), (true, None), (true, Some(101)), (false, None), (true, Some(102))];
        assert_eq!((batch.len(), batch.iter().len()), (5, 5));
        assert_eq!(seen, expected);
        assert_eq!(batch.iter().last().unwrap().data(), [0]);
    }
}
