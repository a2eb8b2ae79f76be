//! UDP sockets under load: whatever is dropped or overtaken, a datagram comes with its own traits or with none, never with
//! those of another. What is found is printed: `cargo test --test socket_udp_load -- --nocapture`.

mod common;

use std::{
    hint, io,
    net::UdpSocket,
    ops::{AddAssign, Range},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{
    datagrams::{Carried, Datagram, Reader, Way, bind_with, wait_until_queued},
    sockets::{Setup, SocketLab},
    sockopt::set_int,
};
use packet_traits::{attach::XdpMode, socket_programs::AttachOptions};

use packet_traits_lab::{Family, RECV_TIMEOUT, send_many_numbered};

const SIZE: usize = 64;

/// More than any queue of these tests needs.
const LARGE_BUFFER: libc::c_int = 64 << 20;

fn lab(sockets: u32, slots: u32, mode: XdpMode) -> SocketLab {
    let options = AttachOptions { sockets: Some(sockets), slots: Some(slots), ..AttachOptions::default() };
    SocketLab::with(&Setup { options: Some(options), xdp: Some(mode), ..Setup::default() })
}

/// What became of the datagrams that sockets received.
#[derive(Clone, Debug, Default)]
struct Tally {
    delivered: u64,
    /// Of those: came with their own traits.
    found: u64,
    /// Came with anything else. The first of them.
    wrong: Vec<(u64, Option<Carried>)>,
    numbers: Numbers,
}

/// A set of numbers.
#[derive(Clone, Debug, Default)]
struct Numbers(Vec<u64>);

impl Numbers {
    /// Whether it is new.
    fn add(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }
}

impl Tally {
    fn count(&mut self, datagram: &Datagram) {
        let number = datagram.number();
        assert!(self.numbers.add(number), "datagram {number} came twice");
        self.delivered += 1;
        match datagram.carried {
            Some(carried) if carried == Carried::by_xdp(number, 0) => self.found += 1,
            Some(_) => self.wrong.push((number, datagram.carried)),
            None => {}
        }
    }

    fn share(&self) -> f64 {
        self.found as f64 / self.delivered as f64
    }

    #[track_caller]
    fn assert_none_wrong(&self) {
        let shown = &self.wrong[..self.wrong.len().min(5)];
        assert!(shown.is_empty(), "{} of {} are wrong: {shown:?}", self.wrong.len(), self.delivered);
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.delivered += other.delivered;
        self.found += other.found;
        self.wrong.extend(other.wrong);
        for (i, word) in other.numbers.0.iter().enumerate() {
            for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                assert!(self.numbers.add(64 * i as u64 + bit), "a datagram came to two sockets");
            }
        }
    }
}

/// Does nothing for a time, as an application that does something does with regard to its socket.
fn work(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        hint::spin_loop();
    }
}

#[test]
fn of_more_datagrams_than_slots_the_newest_have_their_traits_and_the_others_none() {
    const SLOTS: u64 = 64;
    const SENT: u64 = 1000;
    if !common::enabled() {
        return;
    }
    for mode in common::BOTH_MODES {
        let lab = lab(1, SLOTS as u32, mode);
        for way in Way::ALL {
            let socket = lab.udp_by_default(Family::V4);
            set_int(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, LARGE_BUFFER).unwrap();
            let mut reader = Reader::new(way, socket, &lab);
            let client = lab.udp_client(Family::V4);
            for first in (0..SENT).step_by(50) {
                send_many_numbered(&client, first..first + 50, SIZE).unwrap();
                wait_until_queued(reader.socket(), (first + 50) as usize);
            }
            let seen: Vec<_> = reader.recv_all(SENT as usize).iter().map(|one| (one.number(), one.carried)).collect();
            let own = |number| (number >= SENT - SLOTS).then(|| Carried::by_xdp(number, 0));
            assert_eq!(seen, (0..SENT).map(|number| (number, own(number))).collect::<Vec<_>>(), "{way:?}");
            drop(reader);
            let deadline = Instant::now() + RECV_TIMEOUT;
            while lab.sockets_used() > 0 {
                assert!(Instant::now() < deadline);
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// The default sizes: of the socket's buffer and of its ring.
fn overload(mode: XdpMode) {
    const SENT: u64 = 60_000;
    if !common::enabled() {
        return;
    }
    let lab = lab(8, AttachOptions::SLOTS_DEFAULT, mode);
    for way in Way::ALL {
        let mut reader = Reader::new(way, lab.udp_by_default(Family::V4), &lab);
        reader.socket().set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let client = lab.udp_client(Family::V4);
        let is_sent = AtomicBool::new(false);
        let mut tally = Tally::default();
        thread::scope(|scope| {
            scope.spawn(|| {
                send_many_numbered(&client, 0..SENT, SIZE).unwrap();
                is_sent.store(true, Ordering::Relaxed);
            });
            loop {
                let was_sent = is_sent.load(Ordering::Relaxed);
                match reader.recv() {
                    Ok(datagrams) => {
                        for datagram in &datagrams {
                            tally.count(datagram);
                            work(Duration::from_micros(50));
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock && !was_sent => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let share = tally.share();
        println!("{mode} XDP, {way:?}: {SENT} sent, {} delivered, {:.2} % found", tally.delivered, 100.0 * share);
        tally.assert_none_wrong();
        assert!(tally.delivered < SENT, "the queue overflowed");
        assert!(share >= 0.9, "{way:?}: {share} of {} were found", tally.delivered);
    }
}

#[test]
fn what_an_overloaded_socket_receives_has_its_own_traits() {
    overload(XdpMode::Native);
}

#[test]
fn what_an_overloaded_socket_receives_has_its_own_traits_with_generic_xdp() {
    overload(XdpMode::Generic);
}

/// Sends numbered datagrams to a group of sockets, each read by a thread of its own.
struct Flood {
    slots: u32,
    /// How the sockets are read, one each.
    ways: [Way; 4],
    sent: u64,
    /// Datagrams that may be on their way or in a queue: the sender waits for more than that.
    under_way: u64,
    /// Datagrams that a sender sends at once.
    burst: u64,
    /// How long an application takes for each datagram.
    work: Duration,
}

/// How far a flood has come.
#[derive(Default)]
struct Progress {
    sent: AtomicU64,
    received: AtomicU64,
    done: AtomicBool,
}

impl Progress {
    /// Waits until no more than `under_way` datagrams are sent and not received; whether that came true. It does not if none
    /// is received for a while: then some were lost.
    fn wait_for_room(&self, under_way: u64) -> bool {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let received = self.received.load(Ordering::Relaxed);
            if self.sent.load(Ordering::Relaxed) <= received + under_way {
                return true;
            }
            if received != last {
                (last, since) = (received, Instant::now());
            } else if since.elapsed() > RECV_TIMEOUT {
                return false;
            }
            thread::sleep(Duration::from_micros(20));
        }
    }
}

impl Flood {
    const SENDERS: usize = 2;

    /// What became of all of them. Ends when all have been received, or none has come for a while.
    fn run(&self) -> Tally {
        let lab = lab(4, self.slots, XdpMode::Native);
        let options =
            [(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1), (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, LARGE_BUFFER)];
        let readers = self.ways.map(|way| {
            let socket = lab.inside(|| bind_with(lab.addr(Family::V4), &options)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            Reader::new(way, socket, &lab)
        });
        // the kernel chooses a socket by addresses and ports: enough of them that every socket has its part
        let clients = [(); Self::SENDERS].map(|()| [(); 64].map(|()| lab.udp_client(Family::V4)));

        let (progress, start) = (&Progress::default(), Instant::now());
        let tallies = thread::scope(|scope| {
            let receivers = readers.map(|reader| scope.spawn(|| self.receive(reader, progress)));
            let part = self.sent / Self::SENDERS as u64;
            let parts = (0..self.sent).step_by(part as usize).map(|first| first..first + part);
            let senders: Vec<_> = clients
                .iter()
                .zip(parts)
                .map(|(clients, numbers)| scope.spawn(|| self.send(clients, numbers, progress)))
                .collect();
            senders.into_iter().for_each(|sender| sender.join().unwrap());
            progress.wait_for_room(0);
            progress.done.store(true, Ordering::Relaxed);
            receivers.map(|receiver| receiver.join().unwrap())
        });
        let seconds = start.elapsed().as_secs_f64();
        let mut total = Tally::default();
        for (way, tally) in self.ways.iter().zip(tallies) {
            println!("  {way:?}: {} delivered, {:.2} % found", tally.delivered, 100.0 * tally.share());
            total += tally;
        }
        println!(
            "{} sent to 4 sockets of {} slots in {seconds:.1} s: {} delivered, {} found ({:.2} %), {} wrong",
            self.sent,
            self.slots,
            total.delivered,
            total.found,
            100.0 * total.share(),
            total.wrong.len(),
        );
        total
    }

    fn receive(&self, mut reader: Reader, progress: &Progress) -> Tally {
        let mut tally = Tally::default();
        while !progress.done.load(Ordering::Relaxed) {
            match reader.recv() {
                Ok(datagrams) => {
                    for datagram in &datagrams {
                        tally.count(datagram);
                        work(self.work);
                    }
                    progress.received.fetch_add(datagrams.len() as u64, Ordering::Relaxed);
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
            }
        }
        tally
    }

    fn send(&self, clients: &[UdpSocket], numbers: Range<u64>, progress: &Progress) {
        let mut next = numbers.start;
        for client in clients.iter().cycle() {
            let end = numbers.end.min(next + self.burst);
            if next == end || !progress.wait_for_room(self.under_way) {
                break;
            }
            progress.sent.fetch_add(end - next, Ordering::Relaxed);
            send_many_numbered(client, next..end, SIZE).unwrap();
            next = end;
        }
    }
}

#[test]
fn a_million_datagrams_on_four_sockets_come_with_their_own_traits() {
    if !common::enabled() {
        return;
    }
    let flood = Flood {
        slots: AttachOptions::SLOTS_DEFAULT,
        ways: [Way::Batch, Way::MappedBatch, Way::Numbers, Way::Receiver],
        sent: 1_000_000,
        // no queue of the device or a socket is that short, nor a ring
        under_way: 192,
        burst: 32,
        work: Duration::ZERO,
    };
    let total = flood.run();
    total.assert_none_wrong();
    assert_eq!((total.delivered, total.found), (flood.sent, flood.sent));
}

/// Rings of a few slots, in which there is always a datagram that is just being overtaken.
fn overtaken(ways: [Way; 4]) {
    if !common::enabled() {
        return;
    }
    for (slots, under_way) in [(2, 24), (16, 192)] {
        let work = Duration::from_micros(2);
        let total = Flood { slots, ways, sent: 250_000, under_way, burst: 8, work }.run();
        total.assert_none_wrong();
        assert!(total.found > 0 && total.found < total.delivered, "some are found, and some are not");
    }
}

#[test]
fn a_mapped_ring_that_is_overtaken_gives_no_wrong_traits() {
    overtaken([Way::MappedReceiver, Way::MappedBatch, Way::MappedReceiver, Way::MappedBatch]);
}

#[test]
fn a_ring_that_is_overtaken_gives_no_wrong_traits() {
    overtaken([Way::Once, Way::Batch, Way::Number, Way::Numbers]);
}
