//! A server nobody here wrote, Redis, which knows nothing of traits: another process has them saved on its listener, and
//! reads those of its connections.

mod common;

use std::{
    fs, io,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::symlink,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{
    c_program::Folder,
    sockets::{Assigned, SocketLab},
    sockopt,
};
use libc::c_long;
use packet_traits_lab::{Family, RECV_TIMEOUT};
use packet_traits_socket::{Keys, SocketTraits, TcpTraits, Traits};

/// A command without arguments that gets an answer, as Redis's protocol has it. The first 8 bytes are the number of its
/// packet.
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const PONG: &[u8] = b"+PONG\r\n";

/// Redis, which listens at both addresses of the receiver. Dropping it kills it.
struct Server {
    process: Child,
    descriptor: OwnedFd,
}

impl Server {
    fn start(lab: &SocketLab, folder: &Folder) -> Server {
        let mut redis = Command::new(redis_server(folder));
        redis.args(["--port", "7777", "--save", "", "--appendonly", "no", "--protected-mode", "no", "--bind"]);
        redis.args(Family::BOTH.map(|family| lab.addr(family).ip().to_string()));
        let process = lab.unprivileged(&redis).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let process = process.unwrap_or_else(|error| panic!("running setpriv: {error}; install util-linux"));
        // SAFETY: takes numbers only; the process has not been waited for, so it is still this one's child.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, process.id(), 0) };
        let descriptor = owned(descriptor).unwrap_or_else(|error| panic!("pidfd_open: {error}"));
        Server { process, descriptor }
    }

    /// A copy of a descriptor of the server's; `None` if it is closed in the meantime.
    fn descriptor(&self, number: RawFd) -> Option<OwnedFd> {
        // SAFETY: takes numbers only.
        let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.descriptor.as_raw_fd(), number, 0) };
        owned(copy).ok()
    }

    /// The first of the server's sockets that `wanted` accepts, as soon as it has one.
    fn socket<T>(&mut self, what: &str, wanted: impl Fn(OwnedFd) -> Option<T>) -> T {
        let deadline = Instant::now() + RECV_TIMEOUT;
        loop {
            // while it begins, its process is another program's
            let descriptors = fs::read_dir(format!("/proc/{}/fd", self.process.id()));
            let mut numbers = descriptors.into_iter().flatten().flatten().filter_map(|entry| {
                let is_socket = fs::read_link(entry.path()).ok()?.to_string_lossy().starts_with("socket:");
                is_socket.then(|| entry.file_name().to_str()?.parse().ok()).flatten()
            });
            if let Some(found) = numbers.find_map(|number| wanted(self.descriptor(number)?)) {
                return found;
            }
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("Redis ended with {status}");
            }
            assert!(Instant::now() < deadline, "Redis has no {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn listener(&mut self, addr: SocketAddr) -> TcpListener {
        self.socket("listener", |socket| {
            let listens = sockopt::get_int(&socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN) == Ok(1);
            let listener = TcpListener::from(socket);
            (listens && listener.local_addr().ok()? == addr).then_some(listener)
        })
    }

    fn connection(&mut self, peer: SocketAddr) -> TcpStream {
        self.socket("connection", |socket| {
            let stream = TcpStream::from(socket);
            (stream.peer_addr().ok()? == peer).then_some(stream)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a system call that makes a descriptor has returned.
fn owned(returned: c_long) -> io::Result<OwnedFd> {
    let descriptor = RawFd::try_from(returned).unwrap();
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new: nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Debian's redis-server starts a service when it is installed; redis-tools has the same program, which goes by its name,
/// and does not.
fn redis_server(folder: &Folder) -> PathBuf {
    let Some(program) = ["redis-server", "redis-check-rdb"].into_iter().find_map(find) else {
        panic!("there is no redis-server and no redis-check-rdb; install redis-tools, as `make test` does");
    };
    let server = folder.path().join("redis-server");
    symlink(program, &server).unwrap();
    server
}

/// Where a program is.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(["/usr/bin", "/usr/sbin"].map(PathBuf::from));
    folders.find_map(|folder| fs::canonicalize(folder.join(program)).ok().filter(|found| Path::new(found).is_file()))
}

#[track_caller]
fn exchange(client: &mut TcpStream) {
    client.write_all(PING).unwrap();
    let mut answer = [0; PONG.len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, PONG);
}

/// The values of the keys that `assign` of `sockets.bpf.c` sets.
fn values(traits: &Traits, keys: &Keys) -> (Option<u32>, Option<u64>) {
    (traits.get(&keys.typed("tenant").unwrap()), traits.get(&keys.typed("flow_id").unwrap()))
}

#[test]
fn another_process_reads_the_traits_of_redis_connections() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let folder = Folder::new("redis");
    let mut server = Server::start(&lab, &folder);
    for family in Family::BOTH {
        let listener = server.listener(lab.addr(family));
        let keys = Keys::of(&listener).unwrap();
        // a connection of before
        let mut earlier = lab.tcp_client(family);
        exchange(&mut earlier);
        let unsaved = server.connection(earlier.local_addr().unwrap());
        assert!(!unsaved.syn_traits(&keys).unwrap().is_found());

        listener.save_syn_traits(true).unwrap();
        listener.receive_traits(true).unwrap();
        let mut clients: Vec<TcpStream> = (0..10).map(|_| lab.tcp_client(family)).collect();
        for client in &mut clients {
            exchange(client);
        }
        for client in &mut clients {
            let peer = client.local_addr().unwrap();
            let accepted = server.connection(peer);
            let set = |assigned: Assigned| (Some(assigned.tenant), Some(assigned.flow_id));
            let number = u64::from_be_bytes(PING[..8].try_into().unwrap());
            let (syn, last) = (accepted.syn_traits(&keys).unwrap(), accepted.last_traits(&keys).unwrap());
            assert_eq!(values(&syn, &keys), set(Assigned::syn(peer)));
            assert_eq!(values(&last, &keys), set(Assigned::data(peer, number)));
            // and it has not come in anybody's way
            exchange(client);
        }
        exchange(&mut earlier);
    }
}
