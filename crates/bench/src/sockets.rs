//! `traits bench sockets`: what traits cost the application.
//!
//! Receiving is measured on a queue that is full before the clock starts, so that neither the sender nor the delivery is in
//! the figure, and the same number of datagrams is taken out in every way that is compared, one after the other in a
//! round. Delivery is measured by sending: on a veth pair the sender's own CPU carries a datagram up to the queue of the
//! receiving socket before send returns.

use std::{
    error::Error,
    hint::black_box,
    io::{self, Read, Write},
    mem::{self, MaybeUninit},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::{Duration, Instant},
};

use clap::value_parser;
use packet_traits::{
    KeyType, Merge, TypedKey,
    attach::{Attachment, XdpMode, xdp},
    bind::{BoundObject, LoadedObject},
    registry::Registry,
    socket_programs::{AttachOptions, SocketPrograms},
};
use packet_traits_lab::{Bpffs, Cgroup, Family, Pair, udp_socket};
use packet_traits_socket::{
    Keys, Received, Receiver, ReceiverOptions, Ring, SocketTraits, TcpTraits, Traits, UdpTraits,
};
use serde::Serialize;

use super::{
    progress,
    rig::{self, kernel_release, pin_to_cpu},
    statistics::Summary,
};
use packet_traits_terminal::{
    Outcome,
    interrupt::{Interrupt, Interrupted},
    output::{self, Table, counted},
};

/// The object compiled from `bpf/sockets.bpf.c`.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sockets.bpf.o"));

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    /// How often to measure everything
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Examples:
  traits bench sockets
  traits bench sockets --rounds 1000
  traits bench sockets --json | jq .expectation

Needs root. Makes a registry, two network namespaces and a cgroup of its own, and leaves nothing behind.

NS is one datagram taken out of the socket's queue (receive), sent over a veth pair up to that queue (deliver), or one \
system call (option). RATE is how many of them one CPU does in a second, TO BASELINE that rate as a multiple of the \
baseline's in the same round, and SPREAD the distance between the quartiles of NS.

docs/bench.md describes the cases, docs/json.md the JSON.";

/// Datagrams in the queue when the clock starts.
const DATAGRAMS: usize = 64;
/// Bytes of a datagram's payload.
const PAYLOAD: usize = 64;
/// Datagrams received at once by the cases that receive several.
const BATCH: usize = 32;
/// Calls of a socket option in a round.
const CALLS: usize = 1000;
/// Bytes that may wait in a queue; a datagram takes up to a page.
const QUEUE: libc::c_int = 8 << 20;
const ON: libc::c_int = 1;
/// include/uapi/asm-generic/socket.h; libc has it not for every target.
const SO_RCVMARK: libc::c_int = 75;
/// Rounds that do not count.
const WARM_UP: u32 = 3;
/// How long what was sent last may be on its way.
const ON_ITS_WAY: Duration = Duration::from_millis(1);
const PORT: u16 = 7777;
/// The tenant that XDP sets; `assign` in `sockets.bpf.c`.
const TENANT: u32 = 7;

/// recv with traits is expected to reach this part of the rate of a plain recvmsg.
const EXPECTED_RATE: f64 = 0.9;
/// Nanoseconds that reading one trait of a SYN is expected to take at most.
const EXPECTED_SYN_NS: f64 = 2000.0;

/// What a figure is of.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Receive,
    Deliver,
    Option,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Receive => "receive",
            Kind::Deliver => "deliver",
            Kind::Option => "option",
        }
    }
}

/// What is measured in a round, and what it is compared with.
struct Case {
    name: &'static str,
    kind: Kind,
    baseline: &'static str,
}

const fn case(name: &'static str, kind: Kind, baseline: &'static str) -> Case {
    Case { name, kind, baseline }
}

const CASES: [Case; 19] = [
    case("recvmsg", Kind::Receive, "recvmsg"),
    case("recvmsg_attached", Kind::Receive, "recvmsg"),
    case("recvmsg_mark", Kind::Receive, "recvmsg"),
    case("recv_ring", Kind::Receive, "recvmsg"),
    case("recv_getsockopt", Kind::Receive, "recvmsg"),
    case("recvmmsg", Kind::Receive, "recvmmsg"),
    case("batch_ring", Kind::Receive, "recvmmsg"),
    case("batch_getsockopt", Kind::Receive, "recvmmsg"),
    case("recvmsg", Kind::Deliver, "recvmsg"),
    case("recvmsg_attached", Kind::Deliver, "recvmsg"),
    case("recv_ring", Kind::Deliver, "recvmsg"),
    case("send", Kind::Deliver, "send"),
    case("send_with_traits", Kind::Deliver, "send"),
    case("getsockopt", Kind::Option, "getsockopt"),
    case("getsockopt_attached", Kind::Option, "getsockopt"),
    case("syn_one", Kind::Option, "getsockopt"),
    case("syn_all", Kind::Option, "getsockopt"),
    case("last_all", Kind::Option, "getsockopt"),
    case("set_socket_trait", Kind::Option, "getsockopt"),
];

/// Nanoseconds of one operation of every case, in one round.
#[derive(Default)]
struct Round(Vec<(&'static str, Kind, f64)>);

impl Round {
    fn add(&mut self, name: &'static str, kind: Kind, took: Duration, operations: usize) {
        self.0.push((name, kind, took.as_nanos() as f64 / operations as f64));
    }

    fn ns(&self, name: &str, kind: Kind) -> Option<f64> {
        self.0.iter().find(|(of, of_kind, _)| *of == name && *of_kind == kind).map(|(_, _, ns)| *ns)
    }

    /// The rate as a multiple of the baseline's.
    fn to_baseline(&self, case: &Case) -> Option<f64> {
        Some(self.ns(case.baseline, case.kind)? / self.ns(case.name, case.kind)?)
    }
}

/// A namespace pair with traits on what arrives, and sockets in and outside a cgroup that has them.
struct Rig {
    /// Of the cgroup the command was started in.
    plain: UdpSocket,
    sender: UdpSocket,
    /// With SO_RCVMARK.
    marked: UdpSocket,
    /// Of the cgroup with traits.
    attached: UdpSocket,
    ring: Receiver<UdpSocket>,
    getsockopt: Receiver<UdpSocket>,
    traits_sender: UdpSocket,
    traits: Traits,
    stream: TcpStream,
    tenant: TypedKey<u32>,
    keys: Keys,
    _client: TcpStream,
    _xdp: Attachment,
    _object: LoadedObject,
    _cgroup: Cgroup,
    _pair: Pair,
    // last, since the registry is pinned in it
    _bpffs: Bpffs,
}

impl Rig {
    fn new() -> Result<Rig, Box<dyn Error>> {
        let bpffs = Bpffs::new()?;
        let keys = [("tenant", KeyType::U32, Merge::Block), ("flow_id", KeyType::U64, Merge::KeepFirst)];
        let registry = rig::registry(&bpffs, &keys)?;
        let pair = Pair::new()?;
        let object = BoundObject::from_bytes(OBJECT, "sockets.bpf.o", &registry)?.load()?;
        let program = object.program("assign").ok_or("sockets.bpf.o has no program assign")?;
        let (program, receiver) = (program.as_fd(), pair.rx());
        let (xdp, _) = receiver.netns().enter(|| xdp::attach(program, receiver.ifindex(), XdpMode::Native))?;

        let mut port = PORT;
        let mut bind = || {
            let socket = udp_socket(receiver.netns(), receiver.addr(Family::V4, port))?;
            port += 1;
            Ok::<_, packet_traits_lab::Error>(socket)
        };
        let send = || udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0));
        let (plain, marked, sender) = (bind()?, bind()?, send()?);
        set(&marked, SO_RCVMARK, &ON)?;

        let cgroup = Cgroup::new()?;
        let options = AttachOptions {
            cgroup: Some(cgroup.path().to_owned()),
            slots: Some(2 * DATAGRAMS as u32),
            sockets: Some(2),
            ..AttachOptions::default()
        };
        SocketPrograms::attach(&registry, &options)?;
        let slots = Ring::open(Registry::options().bpffs(bpffs.path()).slots_path())?;
        let [attached, ring, getsockopt] =
            [cgroup.enter(&mut bind)?, cgroup.enter(&mut bind)?, cgroup.enter(&mut bind)?];
        for socket in [&plain, &marked, &attached, &ring, &getsockopt] {
            set(socket, libc::SO_RCVBUFFORCE, &QUEUE)?;
        }
        let ring = ReceiverOptions::default().ring(&slots).batch(BATCH, PAYLOAD).build(ring)?;
        let getsockopt = ReceiverOptions::default().without_ring().batch(BATCH, PAYLOAD).build(getsockopt)?;
        let traits_sender = cgroup.enter(send)?;

        let listen = || receiver.netns().enter(|| TcpListener::bind(receiver.addr(Family::V4, PORT)));
        let listener = cgroup.enter(listen)?;
        listener.save_syn_traits(true)?;
        listener.receive_traits(true)?;
        let to = listener.local_addr()?;
        let mut client = pair.tx().netns().enter(|| TcpStream::connect(to))?;
        let (mut stream, _) = listener.accept()?;
        client.write_all(&[0])?;
        stream.read_exact(&mut [0])?;

        let keys = ring.keys().clone();
        let tenant = keys.typed("tenant")?;
        let mut traits = Traits::new(&keys);
        traits.set(&tenant, 7)?;
        Ok(Rig {
            plain,
            marked,
            sender,
            attached,
            ring,
            getsockopt,
            traits_sender,
            traits,
            stream,
            tenant,
            keys,
            _client: client,
            _xdp: xdp,
            _object: object,
            _cgroup: cgroup,
            _pair: pair,
            _bpffs: bpffs,
        })
    }

    /// Measures every case once. What receives one datagram at a time begins with another one in each round: the first one
    /// finds the caches as something else has left them.
    fn round(&mut self, number: u32) -> Result<Round, Box<dyn Error>> {
        let mut round = Round::default();
        let payload = &[0; PAYLOAD];
        for place in 0..5 {
            match (number + place) % 5 {
                0 => self.receive_plain(&self.plain, "recvmsg", &mut round)?,
                1 => self.receive_plain(&self.attached, "recvmsg_attached", &mut round)?,
                2 => self.receive_plain(&self.marked, "recvmsg_mark", &mut round)?,
                3 => self.receive_traits(&self.ring, "recv_ring", &mut round)?,
                _ => self.receive_traits(&self.getsockopt, "recv_getsockopt", &mut round)?,
            }
        }

        fill(&self.sender, &self.plain)?;
        let mut batch = PlainBatch::new();
        let start = Instant::now();
        let mut left = DATAGRAMS;
        while left > 0 {
            left -= batch.receive(&self.plain)?;
        }
        round.add("recvmmsg", Kind::Receive, start.elapsed(), DATAGRAMS);
        for (receiver, name) in [(&mut self.ring, "batch_ring"), (&mut self.getsockopt, "batch_getsockopt")] {
            fill(&self.sender, receiver.socket())?;
            let start = Instant::now();
            let mut left = DATAGRAMS;
            while left > 0 {
                for datagram in receiver.recv_batch()? {
                    check(&datagram.traits(), &self.tenant)?;
                    left -= 1;
                }
            }
            round.add(name, Kind::Receive, start.elapsed(), DATAGRAMS);
        }

        let to = self.plain.local_addr()?;
        round.add("send", Kind::Deliver, fill(&self.sender, &self.plain)?, DATAGRAMS);
        drain(&self.plain)?;
        let start = Instant::now();
        for _ in 0..DATAGRAMS {
            self.traits_sender.send_to_with_traits(payload, to, &self.traits)?;
        }
        round.add("send_with_traits", Kind::Deliver, start.elapsed(), DATAGRAMS);
        drain(&self.plain)?;

        self.options(&mut round)?;
        Ok(round)
    }

    fn receive_plain(&self, socket: &UdpSocket, name: &'static str, round: &mut Round) -> Outcome {
        round.add(name, Kind::Deliver, fill(&self.sender, socket)?, DATAGRAMS);
        let mut buffer = [0; PAYLOAD];
        let start = Instant::now();
        for _ in 0..DATAGRAMS {
            recvmsg(socket, &mut buffer)?;
        }
        round.add(name, Kind::Receive, start.elapsed(), DATAGRAMS);
        Ok(())
    }

    fn receive_traits(&self, receiver: &Receiver<UdpSocket>, name: &'static str, round: &mut Round) -> Outcome {
        round.add(name, Kind::Deliver, fill(&self.sender, receiver.socket())?, DATAGRAMS);
        let (mut buffer, mut received) = ([0; PAYLOAD], Received::none(&self.keys));
        let start = Instant::now();
        for _ in 0..DATAGRAMS {
            receiver.recv_into(&mut buffer, &mut received)?;
            check(&received.traits, &self.tenant)?;
        }
        round.add(name, Kind::Receive, start.elapsed(), DATAGRAMS);
        Ok(())
    }

    fn options(&self, round: &mut Round) -> Result<(), Box<dyn Error>> {
        let mut time = |name, call: &mut dyn FnMut() -> Result<(), Box<dyn Error>>| {
            let start = Instant::now();
            for _ in 0..CALLS {
                call()?;
            }
            round.add(name, Kind::Option, start.elapsed(), CALLS);
            Ok::<_, Box<dyn Error>>(())
        };
        time("getsockopt", &mut || Ok(socket_type(&self.plain)?))?;
        time("getsockopt_attached", &mut || Ok(socket_type(&self.attached)?))?;
        time("syn_one", &mut || match self.stream.syn_trait(&self.tenant)? {
            Some(TENANT) => Ok(()),
            other => Err(wrong(other)),
        })?;
        time("syn_all", &mut || check(&self.stream.syn_traits(&self.keys)?, &self.tenant))?;
        time("last_all", &mut || check(&self.stream.last_traits(&self.keys)?, &self.tenant))?;
        time("set_socket_trait", &mut || Ok(self.stream.set_trait(&self.tenant, TENANT)?))
    }
}

/// What is measured must be right.
fn check(traits: &Traits, tenant: &TypedKey<u32>) -> Result<(), Box<dyn Error>> {
    match black_box(traits).get(tenant) {
        Some(TENANT) => Ok(()),
        other => Err(wrong(other)),
    }
}

fn wrong(tenant: Option<u32>) -> Box<dyn Error> {
    format!("tenant {tenant:?} was read where XDP set {TENANT}").into()
}

/// Sends a queue full to a socket. Returns how long that took.
fn fill(sender: &UdpSocket, receiver: &UdpSocket) -> Result<Duration, Box<dyn Error>> {
    let to = receiver.local_addr()?;
    let start = Instant::now();
    for _ in 0..DATAGRAMS {
        sender.send_to(&[0; PAYLOAD], to)?;
    }
    let took = start.elapsed();
    thread::sleep(ON_ITS_WAY);
    Ok(took)
}

/// Takes them out again.
fn drain(socket: &UdpSocket) -> Result<(), Box<dyn Error>> {
    thread::sleep(ON_ITS_WAY);
    for _ in 0..DATAGRAMS {
        recvmsg(socket, &mut [0; PAYLOAD])?;
    }
    Ok(())
}

/// Sets an option of the socket level.
fn set(socket: &UdpSocket, option: libc::c_int, value: &libc::c_int) -> io::Result<()> {
    // SAFETY: the option's value is an int, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of_val(value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads a socket option that costs the kernel nothing.
fn socket_type(socket: &UdpSocket) -> io::Result<()> {
    let mut value: libc::c_int = 0;
    let mut len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the option's value is an int, and its size is given.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut value).cast(), &mut len)
    };
    black_box(value);
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receives one datagram and its sender's address, without traits.
fn recvmsg(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    let mut from = MaybeUninit::<libc::sockaddr_storage>::uninit();
    let mut control = [const { MaybeUninit::<u64>::uninit() }; 32];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: of a msghdr, all zeroes is a value: nothing to be received.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = from.as_mut_ptr().cast();
    message.msg_namelen = size_of_val(&from) as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: all that `message` points to outlives the call and is as long as it says.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

/// Receives several datagrams at once, without traits.
struct PlainBatch {
    buffers: Vec<[u8; PAYLOAD]>,
    from: Vec<MaybeUninit<libc::sockaddr_storage>>,
}

impl PlainBatch {
    fn new() -> PlainBatch {
        PlainBatch { buffers: vec![[0; PAYLOAD]; BATCH], from: vec![MaybeUninit::uninit(); BATCH] }
    }

    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let iovec = |buffer: &mut [u8; PAYLOAD]| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: PAYLOAD };
        let mut parts: [libc::iovec; BATCH] = std::array::from_fn(|i| iovec(&mut self.buffers[i]));
        let mut messages: [libc::mmsghdr; BATCH] = std::array::from_fn(|i| {
            // SAFETY: of a mmsghdr, all zeroes is a value: nothing to be received.
            let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
            message.msg_hdr.msg_name = self.from[i].as_mut_ptr().cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            message.msg_hdr.msg_iov = &raw mut parts[i];
            message.msg_hdr.msg_iovlen = 1;
            message
        });
        // SAFETY: all that `messages` points to outlives the call and is as long as it says.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

#[derive(Serialize)]
struct Report {
    /// Release of the running kernel.
    kernel: String,
    /// The CPU it was measured on.
    cpu: usize,
    rounds: u32,
    datagrams: usize,
    cases: Vec<Figures>,
    expectation: Expectation,
}

/// What was measured of a case.
#[derive(Serialize)]
struct Figures {
    name: &'static str,
    kind: Kind,
    ns: f64,
    spread_ns: f64,
    per_second: f64,
    baseline: &'static str,
    to_baseline: f64,
}

/// Whether this run shows what sockets with traits are built to be: never a reason to fail.
#[derive(Serialize)]
struct Expectation {
    recv_ring_to_recvmsg: f64,
    /// What an application gets that may not map the ring.
    recv_getsockopt_to_recvmsg: f64,
    syn_one_ns: f64,
    held: bool,
}

/// Measures everything as often as asked for, or until it is interrupted.
fn measure(options: &Options, interrupt: &Interrupt) -> Result<Vec<Round>, Box<dyn Error>> {
    let mut rig = Rig::new()?;
    for number in 0..WARM_UP {
        rig.round(number)?;
    }
    let mut rounds = Vec::new();
    for number in 0..options.rounds {
        progress::show(number as usize, options.rounds);
        if interrupt.came() {
            break;
        }
        rounds.push(rig.round(number)?);
    }
    progress::hide();
    Ok(rounds)
}

pub(crate) fn run(options: &Options) -> Outcome {
    let interrupt = Interrupt::catch()?;
    let cpu = pin_to_cpu().map_err(|error| format!("cannot stay on one CPU: {error}"))?;
    let rounds = interrupt.over(measure(options, &interrupt), Interrupted::NOTHING_LEFT)?;

    let cases: Vec<Figures> = CASES.iter().filter_map(|case| figures(&rounds, case)).collect();
    let find = |name, kind| cases.iter().find(|case| case.name == name && case.kind == kind);
    let to_recvmsg = |name| find(name, Kind::Receive).map_or(0.0, |case| case.to_baseline);
    let (recv_ring_to_recvmsg, recv_getsockopt_to_recvmsg) = (to_recvmsg("recv_ring"), to_recvmsg("recv_getsockopt"));
    let syn_one_ns = find("syn_one", Kind::Option).map_or(f64::INFINITY, |case| case.ns);
    let held = recv_ring_to_recvmsg >= EXPECTED_RATE && syn_one_ns <= EXPECTED_SYN_NS;
    let report = Report {
        kernel: kernel_release(),
        cpu,
        rounds: options.rounds,
        datagrams: DATAGRAMS,
        expectation: Expectation { recv_ring_to_recvmsg, recv_getsockopt_to_recvmsg, syn_one_ns, held },
        cases,
    };
    if options.json { Ok(output::json(&report)?) } else { print(&report) }
}

fn figures(rounds: &[Round], case: &Case) -> Option<Figures> {
    let ns = Summary::of(rounds.iter().filter_map(|round| round.ns(case.name, case.kind)))?;
    let to_baseline = Summary::of(rounds.iter().filter_map(|round| round.to_baseline(case)))?.median;
    Some(Figures {
        name: case.name,
        kind: case.kind,
        ns: ns.median,
        spread_ns: ns.spread,
        per_second: 1e9 / ns.median,
        baseline: case.baseline,
        to_baseline,
    })
}

fn print(report: &Report) -> Outcome {
    let Report { kernel, cpu, rounds, datagrams, .. } = report;
    let (rounds, datagrams) = (counted(rounds, "round"), counted(datagrams, "datagram"));
    output::line(format_args!("Linux {kernel}, CPU {cpu}: median of {rounds} of {datagrams}\n"))?;
    let mut table = Table::new(&["KIND", "CASE", "    NS", "SPREAD", "    RATE", "TO BASELINE", "BASELINE"]);
    for case in &report.cases {
        table.row(&[
            &case.kind.name(),
            &case.name,
            &format!("{:>6.0}", case.ns),
            &format!("{:>6.0}", case.spread_ns),
            &format!("{:>8.0}", case.per_second),
            &format!("{:>11.2}", case.to_baseline),
            &case.baseline,
        ]);
    }
    table.print()?;
    let Expectation { recv_ring_to_recvmsg, recv_getsockopt_to_recvmsg, syn_one_ns, held } = &report.expectation;
    output::line(format_args!(
        "\nrecv with traits from the ring reaches {recv_ring_to_recvmsg:.2} of plain recvmsg's rate (expected: at least \
         {EXPECTED_RATE}), by getsockopt {recv_getsockopt_to_recvmsg:.2}; a trait of a SYN is read in {syn_one_ns:.0} ns \
         (expected: at most {EXPECTED_SYN_NS:.0}): {} in this run",
        if *held { "held" } else { "did not hold" },
    ))?;
    Ok(())
}
