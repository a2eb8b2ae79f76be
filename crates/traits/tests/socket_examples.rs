//! The example servers, those of `examples/sockets` and of packet-traits-socket, are run as an
//! unprivileged user: what they print of datagrams, connections and data is what XDP set, in every language, and what they
//! send carries the traits they gave it.

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use common::{
    TEST_PORT, attach_xdp,
    examples::{Folder, PATIENCE, Running, binary},
    include_dir, repository,
    sockets::{Assigned, EVERY_TYPE, MARK, Sent, Setup, SocketLab},
    tcp,
};
use packet_traits::{Layout, attach::XdpMode, socket_programs::SocketPrograms};

use packet_traits_lab::{Family, Netns, left_out, number_of, send_numbered};

/// Has a server ready to be run, with what that takes in `folder`. `None`, after saying so, if its language is not installed.
type Build = fn(folder: &Folder) -> Option<Command>;

fn rust(folder: &Folder) -> Option<Command> {
    Some(Command::new(folder.copy(&binary("echo"))))
}

fn tokio(folder: &Folder) -> Option<Command> {
    Some(Command::new(folder.copy(&binary("echo_tokio"))))
}

fn python(folder: &Folder) -> Option<Command> {
    let mut python = Command::new("python3");
    python.arg(folder.copy(&repository("examples/sockets/echo.py")));
    Some(python)
}

fn c(folder: &Folder) -> Option<Command> {
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-std=gnu11", "-pthread"]).arg("-I").arg(include_dir());
    Some(compile(cc, "echo.c", folder))
}

fn go(folder: &Folder) -> Option<Command> {
    if Command::new("go").arg("version").output().is_err() {
        left_out("the Go server", "no `go` on the PATH");
        return None;
    }
    let mut go = Command::new("go");
    go.arg("build")
        .env("GOCACHE", folder.path().join("cache"))
        .env("GO111MODULE", "off")
        .env("GOFLAGS", "")
        .env("GOTOOLCHAIN", "local");
    Some(compile(go, "echo.go", folder))
}

#[test]
fn rust_server_reads_and_sets_traits() {
    check(rust);
}

#[test]
fn tokio_server_reads_and_sets_traits() {
    check(tokio);
}

#[test]
fn python_server_reads_and_sets_traits() {
    check(python);
}

#[test]
fn c_server_reads_and_sets_traits() {
    check(c);
}

#[test]
fn go_server_reads_and_sets_traits() {
    check(go);
}

/// Compiles an example: `compiler <its options> -o echo <example>`.
fn compile(mut compiler: Command, example: &str, folder: &Folder) -> Command {
    let binary = folder.path().join("echo");
    compiler.arg("-o").arg(&binary).arg(repository("examples/sockets").join(example));
    let output = compiler.output().unwrap_or_else(|error| panic!("running {compiler:?}: {error}"));
    assert!(output.status.success(), "{compiler:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    Command::new(binary)
}

fn check(build: Build) {
    if !common::area_enabled() {
        return;
    }
    let folder = Folder::new();
    let Some(command) = build(&folder) else { return };
    let unattached = SocketLab::with(&Setup { options: None, ..Setup::default() });
    let mut lab = SocketLab::new();
    lab.mark_some();
    for family in Family::BOTH {
        says_how_to_attach(&unattached, &command, family);
        prints_what_xdp_set(&lab, &command, family);
    }
    prints_every_type(&command);
}

fn says_how_to_attach(lab: &SocketLab, command: &Command, family: Family) {
    let output = server_command(lab, command, family, &[]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.trim_end().ends_with(r#"not attached: run "traits sockets attach" as root"#), "{said}");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
}

fn prints_what_xdp_set(lab: &SocketLab, command: &Command, family: Family) {
    const TENANT: u32 = 42;
    let server = start(lab, command, family, &["--tenant", &TENANT.to_string()]);

    let client = lab.udp_client(family);
    let peer = client.local_addr().unwrap();
    let datagrams = 100..120;
    let mut expected = Vec::new();
    for number in datagrams.clone() {
        send_numbered(&client, lab.addr(family), number..number + 1, 64).unwrap();
        let mut echo = [0xff; 65];
        let len = client.recv(&mut echo).unwrap();
        assert_eq!((len, number_of(&echo[..len])), (64, Some(number)));
        assert!(echo[8..64].iter().all(|byte| *byte == 0));
        let mark = if number % 3 == 0 { format!(" mark={MARK}") } else { String::new() };
        expected.push(format!("udp {peer} {}{mark}", text(Assigned::datagram(number))));
    }
    let sent = |number| Sent { number, tenant: Some(TENANT), flow_id: Some(number) };
    assert_eq!(lab.sent(), datagrams.map(sent).collect::<Vec<_>>());

    let mut connections: Vec<(TcpStream, SocketAddr)> = Vec::new();
    let mut numbers = 1000..;
    for _ in 0..3 {
        let stream = lab.tcp_client(family);
        let peer = stream.local_addr().unwrap();
        expected.push(format!("tcp {peer} syn {}", text(Assigned::syn(peer))));
        connections.push((stream, peer));
        // all of them, so that the server has others open each time
        for (stream, peer) in &mut connections {
            let number = numbers.next().unwrap();
            echo(stream, number);
            expected.push(format!("tcp {peer} data {}", text(Assigned::data(*peer, number))));
        }
    }

    let mut lines = server.lines(expected.len());
    // what it says of one peer is in order; another peer's lines may be printed in the meantime
    let peer_of = |line: &String| line.split(' ').nth(1).map(str::to_owned);
    lines.sort_by_key(peer_of);
    expected.sort_by_key(peer_of);
    assert_eq!(lines, expected);
    serves_on_without_programs(lab, &client, family, &mut connections[0].0, &server);
    drop(connections);
    let signal = if family == Family::V4 { libc::SIGTERM } else { libc::SIGINT };
    server.signal(signal);
    server.assert_ends_cleanly();
}

/// Detaches the programs from under the server, which goes on without traits, and attaches them again.
fn serves_on_without_programs(
    lab: &SocketLab,
    client: &UdpSocket,
    family: Family,
    connection: &mut TcpStream,
    server: &Running,
) {
    SocketPrograms::detach(&lab.lab.registry, lab.cgroup.path()).unwrap();
    // not one that has a mark
    send_numbered(client, lab.addr(family), 1..2, 64).unwrap();
    assert_eq!(client.recv(&mut [0; 65]).unwrap(), 64);
    let peer = client.local_addr().unwrap();
    let connected = connection.local_addr().unwrap();
    echo(connection, 1);
    let mut late = lab.tcp_client(family);
    let late_peer = late.local_addr().unwrap();
    echo(&mut late, 2);
    let mut lines = server.lines(4);
    lines.sort();
    let mut expected = [
        format!("udp {peer} none"),
        format!("tcp {connected} data none"),
        format!("tcp {late_peer} syn none"),
        format!("tcp {late_peer} data none"),
    ];
    expected.sort();
    assert_eq!(lines, expected);
    assert_eq!(lab.sent().len(), 1);
    lab.attach_options(&Setup::default().options.unwrap());
}

fn text(assigned: Assigned) -> String {
    format!("tenant={} flow_id={}", assigned.tenant, assigned.flow_id)
}

/// Sends a number and receives it back.
fn echo(stream: &mut TcpStream, number: u64) {
    let sent = [number.to_be_bytes(), [7; 8]].concat();
    stream.write_all(&sent).unwrap();
    let mut received = [0; 16];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(received[..], sent);
}

fn prints_every_type(command: &Command) {
    // 91 bytes of values
    let layout = Some(Layout::new(72, 80).unwrap());
    let lab = SocketLab::with(&Setup { keys: EVERY_TYPE, xdp: None, layout, ..Setup::default() });
    let server = start(&lab, command, Family::V4, &[]);
    let client = lab.udp_client(Family::V4);
    let peer = client.local_addr().unwrap();
    let exchange = || {
        client.send(&[1; 64]).unwrap();
        assert_eq!(client.recv(&mut [0; 65]).unwrap(), 64);
    };
    exchange();
    assert_eq!(lab.sent()[0].flow_id, None, "an answer to a datagram without flow_id has none");
    let object = lab.lab.load("every_type");
    let _xdp = attach_xdp(&object, "assign", lab.pair.rx(), XdpMode::Native);
    exchange();

    // `hash` is { 3, 1 << 63 } as words
    let hash = u128::from_ne_bytes([3u64.to_ne_bytes(), (1u64 << 63).to_ne_bytes()].concat().try_into().unwrap());
    let every = format!(
        "udp {peer} tenant=4294967295 flow_id=18446744073709551615 sampled hops=200 port=65000 hash={hash} offset=-5 \
         via=192.0.2.1 source=2001:db8::1 gateway=02:00:5e:10:00:01 session=123e4567-e89b-12d3-a456-426614174000 \
         rx_ts=12000345678"
    );
    assert_eq!(server.lines(2), [format!("udp {peer} none"), every]);
    assert_eq!(lab.sockets_used(), 1);
    server.signal(libc::SIGTERM);
    server.assert_ends_cleanly();
    assert_eq!(lab.sockets_used(), 0);
}

/// The server's command: `echo <options> <address> <port>`, as an unprivileged user.
fn server_command(lab: &SocketLab, command: &Command, family: Family, options: &[&str]) -> Command {
    let addr = lab.addr(family);
    let mut server = lab.unprivileged(command);
    server.args(options).arg(addr.ip().to_string()).arg(addr.port().to_string());
    // root's may have folders that only root can read
    server.env("PATH", "/usr/local/bin:/usr/bin:/bin").current_dir("/");
    server
}

/// Starts a server and waits until it listens.
fn start(lab: &SocketLab, command: &Command, family: Family, options: &[&str]) -> Running {
    let mut server = Running::start(&mut server_command(lab, command, family, options));
    let deadline = Instant::now() + PATIENCE;
    while !listens(lab.pair.rx().netns(), family) {
        server.assert_runs();
        assert!(Instant::now() < deadline, "{command:?} does not listen");
        thread::sleep(Duration::from_millis(5));
    }
    assert_unprivileged(&server);
    server
}

fn assert_unprivileged(server: &Running) {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    for line in ["Uid:\t65534\t65534\t65534\t65534", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000"] {
        assert!(status.lines().any(|found| found == line), "no {line:?} in\n{status}");
    }
}

/// Whether a socket in the namespace listens to TCP connections at [`TEST_PORT`].
fn listens(netns: &Netns, family: Family) -> bool {
    const LISTEN: &str = "0A";
    tcp::is_in_state(netns, family, TEST_PORT, LISTEN)
}
