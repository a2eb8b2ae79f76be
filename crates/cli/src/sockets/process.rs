//! The TCP and UDP sockets of a running process, through duplicates of its descriptors (`pidfd_getfd(2)`). The process
//! does not notice; the duplicates are closed here.

use std::{
    collections::BTreeMap,
    fs, io,
    mem::MaybeUninit,
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use libc::c_int;
use packet_traits_socket::{
    Keys, SocketError, SocketTraits, TcpTraits, Traits,
    abi::{SAVE_SYN_TRAITS, SOL_TRAITS},
};
use rustix::{
    io::Errno,
    net::{AddressFamily, ipproto, sockopt},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};
use serde::Serialize;

use crate::{
    Outcome,
    output::{self, Table},
};

/// A process, as long as it is the same one.
struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

impl Process {
    fn open(pid: u32) -> Result<Process, String> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = number.ok_or(Errno::SRCH).and_then(|number| pidfd_open(number, PidfdFlags::empty()));
        let pidfd = pidfd.map_err(|error| match error {
            Errno::SRCH => format!("there is no process {pid}"),
            // EINVAL from older kernels
            Errno::NOENT | Errno::INVAL => format!("{pid} is a thread; give its process"),
            _ => format!("cannot open process {pid}: {}", io::Error::from(error)),
        })?;
        Ok(Process { pid, pidfd })
    }

    /// Its TCP and UDP sockets, in the order of their descriptors.
    fn sockets(&self) -> Result<Vec<Socket>, String> {
        let dir = format!("/proc/{}/fd", self.pid);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => format!("process {} has ended", self.pid),
            io::ErrorKind::PermissionDenied => {
                format!("cannot look at the descriptors of process {}: {error}; run as root", self.pid)
            }
            _ => format!("cannot read {dir}: {error}"),
        };
        let mut descriptors = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // Closed in the meantime: not there.
            let is_socket =
                fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
            if is_socket {
                descriptors.extend(entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
            }
        }
        descriptors.sort_unstable();
        let mut sockets = Vec::new();
        for number in descriptors {
            sockets.extend(self.socket(number)?);
        }
        Ok(sockets)
    }

    /// Its descriptor of this number, if that is a TCP or UDP socket.
    fn socket(&self, number: RawFd) -> Result<Option<Socket>, String> {
        let fd = match pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty()) {
            Ok(fd) => fd,
            // closed in the meantime
            Err(Errno::BADF) => return Ok(None),
            Err(Errno::SRCH) => return Err(format!("process {} has ended", self.pid)),
            Err(error) => {
                let what = format!("cannot duplicate descriptor {number} of process {}", self.pid);
                let hint = if error == Errno::PERM { "; run as root" } else { "" };
                return Err(format!("{what}: {}{hint}", io::Error::from(error)));
            }
        };
        if !matches!(sockopt::socket_domain(&fd), Ok(AddressFamily::INET | AddressFamily::INET6)) {
            return Ok(None);
        }
        let protocol = match sockopt::socket_protocol(&fd) {
            Ok(Some(ipproto::TCP)) => Protocol::Tcp,
            Ok(Some(ipproto::UDP)) => Protocol::Udp,
            _ => return Ok(None),
        };
        let listens = sockopt::socket_acceptconn(&fd).unwrap_or(false);
        let state = match protocol {
            Protocol::Tcp => tcp_state(fd.as_fd()),
            Protocol::Udp => "",
        };
        // Only its addresses are asked for, which all sockets answer in the same way.
        let addresses = TcpStream::from(fd);
        let (local, peer) = (addresses.local_addr().ok(), addresses.peer_addr().ok());
        let state = match (protocol, &peer) {
            (Protocol::Tcp, _) => state,
            (Protocol::Udp, Some(_)) => "connected",
            (Protocol::Udp, None) => "unconnected",
        };
        Ok(Some(Socket { number, fd: addresses.into(), protocol, listens, state, local, peer }))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

/// A TCP or UDP socket of another process.
struct Socket {
    /// Its descriptor there.
    number: RawFd,
    /// Its descriptor here.
    fd: OwnedFd,
    protocol: Protocol,
    listens: bool,
    /// `listen`, `established`, …
    state: &'static str,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
}

/// Names of `enum` values in include/net/tcp_states.h.
fn tcp_state(socket: BorrowedFd<'_>) -> &'static str {
    const NAMES: [&str; 14] = [
        "",
        "established",
        "syn-sent",
        "syn-recv",
        "fin-wait-1",
        "fin-wait-2",
        "time-wait",
        "closed",
        "close-wait",
        "last-ack",
        "listen",
        "closing",
        "syn-recv",
        "bound",
    ];
    let mut info = MaybeUninit::<[u8; 1]>::zeroed();
    let mut len = 1 as libc::socklen_t;
    // SAFETY: `info` is writable for the length given; the first byte of struct tcp_info is the state.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut len)
    };
    // SAFETY: zeroed, and any byte is valid.
    let [state] = unsafe { info.assume_init() };
    if result < 0 { "" } else { NAMES.get(usize::from(state)).copied().unwrap_or("") }
}

fn int_option(socket: BorrowedFd<'_>, level: c_int, option: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: `value` is writable for the length given.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// What [`save_syn`] did.
#[derive(Serialize)]
struct SaveSynJson {
    pid: u32,
    save_syn: bool,
    listeners: Vec<ListenerJson>,
}

/// A listening socket.
#[derive(Serialize)]
struct ListenerJson {
    /// Its descriptor in the process.
    fd: RawFd,
    /// Its address.
    local: Option<SocketAddr>,
}

/// Runs `traits sockets save-syn`.
pub(super) fn save_syn(pid: u32, save: bool, json: bool) -> Outcome {
    let sockets = Process::open(pid)?.sockets()?;
    let listeners: Vec<&Socket> =
        sockets.iter().filter(|socket| socket.listens && socket.protocol == Protocol::Tcp).collect();
    if listeners.is_empty() {
        return Err(format!(
            "process {pid} has no listening TCP socket; `traits sockets show {pid}` lists its sockets"
        )
        .into());
    }
    for socket in &listeners {
        socket.fd.save_syn_traits(save).map_err(|error| explain(pid, socket, &error))?;
    }
    if json {
        let listeners = listeners.iter().map(|socket| ListenerJson { fd: socket.number, local: socket.local });
        output::json(&SaveSynJson { pid, save_syn: save, listeners: listeners.collect() })?;
    } else {
        let what = if save { "are kept for connections accepted from now on" } else { "are no longer kept" };
        for socket in listeners {
            let address = socket.local.map_or_else(|| "?".to_owned(), |local| local.to_string());
            output::line(format_args!("fd {}, {address}: SYN traits {what}", socket.number))?;
        }
    }
    Ok(())
}

/// The descriptor in the error is that of the duplicate, and what to do is for who runs the process.
fn explain(pid: u32, socket: &Socket, error: &SocketError) -> String {
    let number = socket.number;
    match error {
        SocketError::NotAttached { .. } => format!(
            "descriptor {number} of process {pid}: its cgroup has no socket programs; run `traits sockets attach` for \
             the cgroup that the process made it in (`cat /proc/{pid}/cgroup` shows where it is now); a process that \
             was moved since must make it again"
        ),
        error => {
            let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            format!("descriptor {number} of process {pid}: {error}{hint}")
        }
    }
}

/// What [`show`] found.
#[derive(Serialize)]
struct ShowJson {
    pid: u32,
    sockets: Vec<SocketJson>,
}

/// A socket and its traits.
#[derive(Serialize)]
struct SocketJson {
    /// Its descriptor in the process.
    fd: RawFd,
    /// `tcp` or `udp`.
    protocol: &'static str,
    /// `listen`, `established`, …; `connected` or `unconnected` for UDP.
    state: &'static str,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    #[serde(flatten)]
    traits: TraitsJson,
}

/// Names and values.
type Named = BTreeMap<String, String>;

/// The traits of a socket.
#[derive(Default, Serialize)]
struct TraitsJson {
    /// Whether its cgroup has socket programs.
    served: bool,
    /// SAVE_SYN_TRAITS.
    save_syn: Option<bool>,
    /// RCV_TRAITS.
    receive: bool,
    /// Those of the SYN, if they were kept.
    syn: Option<Named>,
    /// Those of the newest data, if they are.
    last: Option<Named>,
    /// Those of what it sends.
    own: Option<Named>,
}

impl TraitsJson {
    fn of(socket: &Socket) -> Result<TraitsJson, SocketError> {
        let state = match socket.fd.receive_state() {
            // The kernel itself says EOPNOTSUPP to an IPv4 socket's unknown options (do_ip_getsockopt in
            // net/ipv4/ip_sockglue.c), and the programs never do to this one.
            Err(SocketError::NotAttached { .. } | SocketError::WrongSocket { .. }) => return Ok(TraitsJson::default()),
            other => other?,
        };
        let keys = Keys::of(&socket.fd)?;
        let named = |traits: &Traits| -> Named {
            traits.iter(&keys).map(|(key, value)| (key.name().to_string(), value.to_string())).collect()
        };
        let found = |traits: Result<Traits, SocketError>| match traits {
            Ok(traits) => Ok(traits.is_found().then(|| named(&traits))),
            Err(SocketError::WrongSocket { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        let is_tcp = socket.protocol == Protocol::Tcp;
        Ok(TraitsJson {
            served: true,
            save_syn: is_tcp
                .then(|| int_option(socket.fd.as_fd(), SOL_TRAITS, SAVE_SYN_TRAITS).is_ok_and(|value| value != 0)),
            receive: state.enabled != 0,
            syn: if is_tcp { found(socket.fd.syn_traits(&keys))? } else { None },
            last: if is_tcp { found(socket.fd.last_traits(&keys))? } else { None },
            own: match socket.fd.own_traits(&keys) {
                Ok(traits) => Some(named(&traits)),
                Err(SocketError::WrongSocket { .. }) => None,
                Err(error) => return Err(error),
            },
        })
    }
}

/// Runs `traits sockets show`.
pub(super) fn show(pid: u32, json: bool) -> Outcome {
    let mut shown = Vec::new();
    for socket in Process::open(pid)?.sockets()? {
        let traits = TraitsJson::of(&socket).map_err(|error| explain(pid, &socket, &error))?;
        shown.push(SocketJson {
            fd: socket.number,
            protocol: match socket.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            },
            state: socket.state,
            local: socket.local,
            peer: socket.peer,
            traits,
        });
    }
    if json {
        return Ok(output::json(&ShowJson { pid, sockets: shown })?);
    }
    if shown.is_empty() {
        return Ok(output::line(format_args!("process {pid} has no TCP or UDP socket"))?);
    }
    let address = |address: Option<SocketAddr>| address.map_or_else(|| "-".to_owned(), |address| address.to_string());
    let mut table = Table::new(&["FD", "PROTOCOL", "STATE", "LOCAL", "PEER", "KEEPS", "SYN", "LAST", "OWN"]);
    for socket in &shown {
        let traits = &socket.traits;
        let keeps = match (traits.served, traits.save_syn == Some(true), traits.receive) {
            (false, ..) => "not served",
            (true, true, true) => "syn, received",
            (true, true, false) => "syn",
            (true, false, true) => "received",
            (true, false, false) => "-",
        };
        table.row(&[
            &socket.fd,
            &socket.protocol,
            &socket.state,
            &address(socket.local),
            &address(socket.peer),
            &keeps,
            &listed(traits.syn.as_ref()),
            &listed(traits.last.as_ref()),
            &listed(traits.own.as_ref()),
        ]);
    }
    table.print()?;
    if shown.iter().any(|socket| !socket.traits.served) {
        output::line(format_args!(
            "not served: made in a cgroup without socket programs; `traits sockets status` lists those with"
        ))?;
    }
    Ok(())
}

/// `tenant = 7, flow_id = 9`
fn listed(traits: Option<&Named>) -> String {
    match traits {
        None => "-".to_owned(),
        Some(traits) if traits.is_empty() => "none".to_owned(),
        Some(traits) => traits.iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", "),
    }
}
