//! Receiving UDP datagrams with their traits in every way there is, and by the numbers of `include/packet_traits/socket.h`
//! alone: getsockopt, setsockopt and recvmsg on bytes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd, FromRawFd},
    ptr, thread,
    time::{Duration, Instant},
};

use libc::{c_int, c_void};
use packet_traits::{TypedKey, registry::Registry};
use packet_traits_lab::{RECV_TIMEOUT, number_of};
use packet_traits_socket::{
    Keys, Received, Receiver, ReceiverOptions, Ring, SocketTraits, Traits, UdpTraits,
    abi::{
        RCV_TRAITS, SOL_TRAITS, SOL_TRAITS_DATAGRAM, SOL_TRAITS_DATAGRAMS, TRAITS_BATCH_MAX, TRAITS_FOUND,
        TRAITS_HEADER_LEN, TRAITS_KEYS, traits_key,
    },
};

use super::{
    sockets::{Assigned, SocketLab},
    sockopt::{self, UNTOUCHED, set_int},
};

/// include/uapi/asm-generic/socket.h; from Linux 5.19.
pub const SO_RCVMARK: c_int = 75;

/// A way for an application to receive datagrams with their traits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// [`recv_with_traits`].
    Once,
    /// [`Receiver::recv`], which asks the kernel.
    Receiver,
    /// [`Receiver::recv`] from the mapped ring.
    MappedReceiver,
    /// [`Receiver::recv_batch`], which asks the kernel.
    Batch,
    /// [`Receiver::recv_batch`] from the mapped ring.
    MappedBatch,
    /// recvmsg, and a get at level `SOL_TRAITS_DATAGRAM` for each datagram.
    Number,
    /// recvmsg for each datagram, and a get at level `SOL_TRAITS_DATAGRAMS` for several.
    Numbers,
}

impl Way {
    pub const ALL: [Way; 7] =
        [Way::Once, Way::Receiver, Way::MappedReceiver, Way::Batch, Way::MappedBatch, Way::Number, Way::Numbers];

    /// Whether it takes a [`Ring`].
    pub fn is_mapped(self) -> bool {
        matches!(self, Way::MappedReceiver | Way::MappedBatch)
    }

    fn is_batch(self) -> bool {
        matches!(self, Way::Batch | Way::MappedBatch)
    }
}

/// What a datagram that was found came with, of the keys of `sockets.bpf.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Its own mark.
    pub mark: u32,
    pub tenant: Option<u32>,
    pub flow_id: Option<u64>,
}

impl Carried {
    /// Neither traits nor a mark.
    pub const NOTHING: Carried = Carried { mark: 0, tenant: None, flow_id: None };

    /// What `assign` gives the datagram with this number, and a mark.
    pub fn by_xdp(number: u64, mark: u32) -> Carried {
        let Assigned { tenant, flow_id } = Assigned::datagram(number);
        Carried { mark, tenant: Some(tenant), flow_id: Some(flow_id) }
    }
}

/// A datagram, and what it carried; `None` if that was not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub data: Vec<u8>,
    pub from: SocketAddr,
    pub carried: Option<Carried>,
}

impl Datagram {
    fn new(mut data: Vec<u8>, received: &Received, names: &Names) -> Datagram {
        data.truncate(received.len);
        Datagram { data, from: received.from, carried: names.read(&received.traits) }
    }

    /// The number that it begins with.
    pub fn number(&self) -> u64 {
        number_of(&self.data).expect("the datagram has a number")
    }
}

/// Receives the datagrams of a socket in one way.
pub struct Reader {
    source: Source,
    room: usize,
}

enum Source {
    Once { socket: UdpSocket, keys: Keys, names: Names },
    Receiver { receiver: Box<Receiver<UdpSocket>>, names: Names, batch: bool },
    Number { socket: UdpSocket, places: Places, together: usize },
}

/// The keys of `sockets.bpf.c`, as the crate has them.
struct Names {
    tenant: TypedKey<u32>,
    flow_id: TypedKey<u64>,
}

impl Names {
    fn of(keys: &Keys) -> Names {
        Names { tenant: keys.typed("tenant").unwrap(), flow_id: keys.typed("flow_id").unwrap() }
    }

    fn read(&self, traits: &Traits) -> Option<Carried> {
        let carried = |mark| Carried { mark, tenant: traits.get(&self.tenant), flow_id: traits.get(&self.flow_id) };
        assert!(traits.is_found() || traits.is_empty(), "what was not found has no traits");
        traits.mark().map(carried)
    }
}

/// The same keys, as the table has them.
struct Places {
    tenant: traits_key,
    flow_id: traits_key,
    /// `traits_receive.traits_len`
    traits_len: usize,
}

impl Places {
    fn of(socket: &UdpSocket) -> Places {
        let keys = key_table(socket);
        let named = |name: &str| *keys.iter().find(|key| key_name(key) == name).unwrap();
        let receive = get(socket, SOL_TRAITS, RCV_TRAITS, 40).unwrap();
        let traits_len = u32::from_ne_bytes(*receive[4..].first_chunk().unwrap()) as usize;
        Places { tenant: named("tenant"), flow_id: named("flow_id"), traits_len }
    }

    /// What a `struct traits` says.
    fn read(&self, raw: &[u8]) -> Option<Carried> {
        assert_eq!(raw.len(), self.traits_len);
        let raw = RawTraits::parse(raw);
        let of = |key: &traits_key| (raw.present >> key.number & 1 == 1).then(|| &raw.values[key.offset.into()..]);
        if raw.flags != TRAITS_FOUND {
            assert_eq!(raw, RawTraits { values: vec![0; raw.values.len()], ..RawTraits::default() });
            return None;
        }
        Some(Carried {
            mark: raw.mark,
            tenant: of(&self.tenant).map(|bytes| u32::from_ne_bytes(*bytes.first_chunk().unwrap())),
            flow_id: of(&self.flow_id).map(|bytes| u64::from_ne_bytes(*bytes.first_chunk().unwrap())),
        })
    }
}

impl Reader {
    /// For datagrams of any length.
    pub fn new(way: Way, socket: UdpSocket, lab: &SocketLab) -> Reader {
        Reader::with_room(way, socket, lab, 2048)
    }

    /// Cuts datagrams off behind `room` bytes.
    pub fn with_room(way: Way, socket: UdpSocket, lab: &SocketLab, room: usize) -> Reader {
        Reader::build(way, socket, way.is_mapped().then(|| ring(lab)).as_ref(), room)
    }

    /// With a ring if the way is one that needs it.
    pub fn build(way: Way, socket: UdpSocket, ring: Option<&Ring>, room: usize) -> Reader {
        let source = match way {
            Way::Once => {
                socket.receive_traits(true).unwrap();
                let keys = Keys::of(&socket).unwrap();
                Source::Once { names: Names::of(&keys), keys, socket }
            }
            Way::Number | Way::Numbers => {
                set_int(&socket, SOL_TRAITS, RCV_TRAITS, 1).unwrap();
                let together = if way == Way::Numbers { TRAITS_BATCH_MAX } else { 1 };
                Source::Number { places: Places::of(&socket), socket, together }
            }
            _ => {
                let options = ReceiverOptions::new().batch(16, room);
                let options = match ring {
                    Some(ring) => options.ring(ring),
                    None => options.without_ring(),
                };
                let receiver = Box::new(options.build(socket).unwrap());
                assert_eq!(receiver.ring().is_some(), way.is_mapped());
                Source::Receiver { names: Names::of(receiver.keys()), receiver, batch: way.is_batch() }
            }
        };
        Reader { source, room }
    }

    pub fn socket(&self) -> &UdpSocket {
        match &self.source {
            Source::Once { socket, .. } | Source::Number { socket, .. } => socket,
            Source::Receiver { receiver, .. } => receiver.socket(),
        }
    }

    /// Receives at least one datagram, and others that are there already if it is a way to receive several at once.
    pub fn recv(&mut self) -> io::Result<Vec<Datagram>> {
        match &mut self.source {
            Source::Once { socket, keys, names } => {
                let mut buffer = vec![0; self.room];
                let received = socket.recv_with_traits(keys, &mut buffer)?;
                Ok(vec![Datagram::new(buffer, &received, names)])
            }
            Source::Receiver { receiver, names, batch: false } => {
                let mut buffer = vec![0; self.room];
                let received = receiver.recv(&mut buffer)?;
                Ok(vec![Datagram::new(buffer, &received, names)])
            }
            Source::Receiver { receiver, names, batch: true } => {
                let datagram = |datagram: packet_traits_socket::Datagram<'_>| Datagram {
                    data: datagram.data().to_vec(),
                    from: datagram.from(),
                    carried: names.read(&datagram.traits()),
                };
                Ok(receiver.recv_batch()?.iter().map(datagram).collect())
            }
            Source::Number { socket, places, together } => recv_by_number(socket, places, *together, self.room),
        }
    }

    /// Receives until there are this many.
    pub fn recv_all(&mut self, count: usize) -> Vec<Datagram> {
        let mut received = Vec::new();
        while received.len() < count {
            let more = self.recv().unwrap_or_else(|error| panic!("{error} after {} datagrams", received.len()));
            received.extend(more);
        }
        assert_eq!(received.len(), count);
        received
    }
}

fn recv_by_number(socket: &UdpSocket, places: &Places, together: usize, room: usize) -> io::Result<Vec<Datagram>> {
    let mut messages = vec![recvmsg(socket, room, 0)?];
    while messages.len() < together
        && let Ok(message) = recvmsg(socket, room, libc::MSG_DONTWAIT)
    {
        messages.push(message);
    }
    let handles: Vec<u32> = messages.iter().map(|message| message.mark().unwrap()).collect();
    let mut carried = Vec::new();
    while carried.len() < handles.len() {
        let first = handles[carried.len()];
        let rest = handles[carried.len()..].iter().zip(0..);
        let run = rest.take_while(|(handle, i)| **handle == first.wrapping_add(*i)).count();
        // for one datagram the one level, for several the other; asked for more than there are, it answers for those too
        let (level, len) = if together == 1 { (SOL_TRAITS_DATAGRAM, 1) } else { (SOL_TRAITS_DATAGRAMS, run) };
        let raw =
            get(socket, level, first.cast_signed(), len * places.traits_len).map_err(io::Error::from_raw_os_error)?;
        assert_eq!(raw.len(), len * places.traits_len);
        carried.extend(raw.chunks(places.traits_len).map(|raw| places.read(raw)));
    }
    let datagram = |(message, carried): (Message, _)| Datagram { data: message.data, from: message.from, carried };
    Ok(messages.into_iter().zip(carried).map(datagram).collect())
}

/// The slots of the lab's sockets, mapped.
pub fn ring(lab: &SocketLab) -> Ring {
    Ring::open(Registry::options().bpffs(lab.lab.bpffs().path()).slots_path()).unwrap()
}

/// A `struct traits`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawTraits {
    pub present: u64,
    pub flags: u32,
    pub mark: u32,
    pub values: Vec<u8>,
}

impl RawTraits {
    pub fn parse(raw: &[u8]) -> RawTraits {
        let u32_at = |at: usize| u32::from_ne_bytes(*raw[at..].first_chunk().unwrap());
        RawTraits {
            present: u64::from_ne_bytes(*raw.first_chunk().unwrap()),
            flags: u32_at(8),
            mark: u32_at(12),
            values: raw[TRAITS_HEADER_LEN..].to_vec(),
        }
    }

    /// Of the datagram with this handle.
    pub fn of(socket: &impl AsFd, handle: u32) -> RawTraits {
        RawTraits::parse(&get(socket, SOL_TRAITS_DATAGRAM, handle.cast_signed(), 240).unwrap())
    }
}

/// The table of keys.
pub fn key_table(socket: &impl AsFd) -> Vec<traits_key> {
    let raw = get(socket, SOL_TRAITS, TRAITS_KEYS, 64 * size_of::<traits_key>()).unwrap();
    let (rows, rest) = raw.as_chunks::<40>();
    assert!(rest.is_empty());
    let u16_at = |row: &[u8; 40], at: usize| u16::from_ne_bytes([row[at], row[at + 1]]);
    let parse = |row: &[u8; 40]| traits_key {
        name: *row.first_chunk().unwrap(),
        number: row[32],
        key_type: row[33],
        size: row[34],
        merge: row[35],
        offset: u16_at(row, 36),
        distance: u16_at(row, 38),
    };
    rows.iter().map(parse).collect()
}

pub fn key_name(key: &traits_key) -> &str {
    let end = key.name.iter().position(|byte| *byte == 0).expect("the name ends with NUL");
    str::from_utf8(&key.name[..end]).unwrap()
}

/// getsockopt into a buffer of `room` bytes. Nothing may be written behind what it answers with, nor anything if it fails.
#[track_caller]
pub fn get(socket: &impl AsFd, level: c_int, option: c_int, room: usize) -> Result<Vec<u8>, c_int> {
    let mut value = vec![UNTOUCHED; room];
    let answer = sockopt::get(socket, level, option, &mut value);
    let written = answer.unwrap_or(0);
    let rest = &value[written..];
    assert!(rest.iter().all(|byte| *byte == UNTOUCHED), "level {level:#x}, option {option:#x}: {answer:?}, {value:x?}");
    value.truncate(written);
    answer.map(|_| value)
}

/// A UDP socket that has these options (level, option, value) before it is bound. Receives time out.
pub fn bind_with(addr: SocketAddr, options: &[(c_int, c_int, c_int)]) -> io::Result<UdpSocket> {
    let family = if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which nobody else has.
    let socket = unsafe { UdpSocket::from_raw_fd(fd) };
    for (level, option, value) in options {
        set_int(&socket, *level, *option, *value).map_err(io::Error::from_raw_os_error)?;
    }
    let name = encode(addr);
    let deadline = Instant::now() + RECV_TIMEOUT;
    // SAFETY: the address is readable for the length given.
    while unsafe { libc::bind(fd, name.as_ptr().cast(), name.len() as libc::socklen_t) } != 0 {
        let error = io::Error::last_os_error();
        // A process that another test starts may have a copy of a socket that was here, until it executes its program.
        if error.kind() != io::ErrorKind::AddrInUse || Instant::now() > deadline {
            return Err(error);
        }
        thread::sleep(Duration::from_millis(1));
    }
    socket.set_read_timeout(Some(RECV_TIMEOUT))?;
    Ok(socket)
}

/// `struct sockaddr_in` or `struct sockaddr_in6`.
fn encode(addr: SocketAddr) -> Vec<u8> {
    let port = addr.port().to_be_bytes();
    match addr {
        SocketAddr::V4(addr) => {
            [&(libc::AF_INET as u16).to_ne_bytes()[..], &port, &addr.ip().octets(), &[0; 8]].concat()
        }
        SocketAddr::V6(addr) => {
            let (family, scope) = ((libc::AF_INET6 as u16).to_ne_bytes(), addr.scope_id().to_ne_bytes());
            [&family[..], &port, &[0; 4], &addr.ip().octets(), &scope].concat()
        }
    }
}

fn decode(name: &[u8]) -> SocketAddr {
    let port = u16::from_be_bytes([name[2], name[3]]);
    let ip = match c_int::from(u16::from_ne_bytes([name[0], name[1]])) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(*name[4..].first_chunk::<4>().unwrap())),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(*name[8..].first_chunk::<16>().unwrap())),
        other => panic!("address family {other}"),
    };
    SocketAddr::new(ip, port)
}

/// What recvmsg gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub data: Vec<u8>,
    pub from: SocketAddr,
    pub flags: c_int,
    pub control: Vec<Control>,
}

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    pub level: c_int,
    pub kind: c_int,
    pub data: Vec<u8>,
}

impl Message {
    /// The value of a control message that is an int.
    pub fn int(&self, level: c_int, kind: c_int) -> Option<u32> {
        let control = self.control.iter().find(|control| (control.level, control.kind) == (level, kind))?;
        Some(u32::from_ne_bytes(control.data[..].try_into().unwrap()))
    }

    /// The `SO_MARK` control message: a handle, on a socket with `RCV_TRAITS`.
    pub fn mark(&self) -> Option<u32> {
        self.int(libc::SOL_SOCKET, libc::SO_MARK)
    }
}

/// Receives one datagram, at most `room` bytes of it, with all its control messages.
pub fn recvmsg(socket: &impl AsFd, room: usize, flags: c_int) -> io::Result<Message> {
    let mut data = vec![0; room];
    let mut name = [0u8; size_of::<libc::sockaddr_storage>()];
    let mut control = [0u64; 128];
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast::<c_void>(), iov_len: data.len() };
    // SAFETY: it is made of integers and pointers, for which zeroes are a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = name.len() as libc::socklen_t;
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    // SAFETY: everything the header points at is writable for the lengths it gives, and outlives the call.
    let len = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) };
    let Ok(len) = usize::try_from(len) else { return Err(io::Error::last_os_error()) };
    data.truncate(len);
    assert_eq!(header.msg_flags & libc::MSG_CTRUNC, 0, "there is room for all control messages");
    let mut controls = Vec::new();
    // SAFETY: the kernel has filled the header in, and what it points at is still there.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    // SAFETY: null, or a control message that the kernel has written.
    while let Some(message) = unsafe { next.as_ref() } {
        // SAFETY: computes a number.
        let header_len = unsafe { libc::CMSG_LEN(0) } as usize;
        let mut data = vec![0; message.cmsg_len - header_len];
        // SAFETY: the message has that many bytes of data, says its length.
        unsafe { ptr::copy_nonoverlapping(libc::CMSG_DATA(message), data.as_mut_ptr(), data.len()) };
        controls.push(Control { level: message.cmsg_level, kind: message.cmsg_type, data });
        // SAFETY: `message` is one of this header's.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Ok(Message { data, from: decode(&name), flags: header.msg_flags, control: controls })
}

/// Waits until this many datagrams, none of them empty, are in the socket's queue.
pub fn wait_until_queued(socket: &UdpSocket, count: usize) {
    // from here on each look shows the next one (socket(7))
    set_int(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0).unwrap();
    for _ in 0..count {
        recvmsg(socket, 2048, libc::MSG_PEEK).unwrap();
    }
    set_int(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1).unwrap();
}
