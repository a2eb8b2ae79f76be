//! Traits of UDP datagrams in the application, on the real kernel: what is received in every way there is is what XDP set.
//!
//! How much is found under load is in `socket_udp_load.rs`.

#[path = "../common/mod.rs"]
mod common;

mod delivery;
mod errors;
mod isolation;
mod marks;
mod segments;
mod unchanged;
mod unprivileged;
mod values;

use std::{
    net::UdpSocket,
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use common::{
    datagrams::{Carried, Datagram, Reader},
    sockets::{MARK, Setup, SocketLab},
};
use packet_traits::{attach::XdpMode, socket_programs::AttachOptions};
use packet_traits_lab::{Family, RECV_TIMEOUT, send_numbered};

/// Bytes of a datagram that tests send if its length does not matter.
const SIZE: usize = 64;

/// A lab with rings for this many sockets, each of `slots` slots.
fn sized(sockets: u32, slots: u32) -> Setup {
    let options = AttachOptions { sockets: Some(sockets), slots: Some(slots), ..Setup::default().options.unwrap() };
    Setup { options: Some(options), ..Setup::default() }
}

/// A lab in which datagrams have marks, and traits only if XDP gives them some.
fn marking_lab(xdp: Option<XdpMode>) -> SocketLab {
    let mut lab = SocketLab::with(&Setup { xdp, ..Setup::default() });
    lab.mark_some();
    lab
}

/// What a datagram with this number comes with if `assign` and `mark_some` are attached.
fn own(number: u64) -> Carried {
    Carried::by_xdp(number, mark_of(number))
}

/// The mark that `mark_some` gives a datagram with this number.
fn mark_of(number: u64) -> u32 {
    if number.is_multiple_of(3) { MARK } else { 0 }
}

/// Sends numbered datagrams to the lab's address.
fn send(lab: &SocketLab, client: &UdpSocket, family: Family, numbers: Range<u64>) {
    send_numbered(client, lab.addr(family), numbers, SIZE).unwrap();
}

/// Checks that these are the datagrams with these numbers, in order, each with what it carried.
#[track_caller]
fn assert_carried(received: &[Datagram], numbers: Range<u64>, carried: impl Fn(u64) -> Option<Carried>) {
    let seen: Vec<_> = received.iter().map(|datagram| (datagram.number(), datagram.carried)).collect();
    let expected: Vec<_> = numbers.map(|number| (number, carried(number))).collect();
    assert_eq!(seen, expected);
}

/// Receives `count` datagrams on sockets that share them, and answers which of them each has got.
fn recv_shared(readers: &mut [Reader], count: usize) -> Vec<Vec<Datagram>> {
    let deadline = Instant::now() + RECV_TIMEOUT;
    let mut received: Vec<Vec<Datagram>> = readers.iter().map(|_| Vec::new()).collect();
    for reader in readers.iter() {
        reader.socket().set_nonblocking(true).unwrap();
    }
    while received.iter().map(Vec::len).sum::<usize>() < count {
        for (reader, received) in readers.iter_mut().zip(&mut received) {
            received.extend(reader.recv().into_iter().flatten());
        }
        assert!(Instant::now() < deadline, "not all of {count} datagrams came");
        thread::sleep(Duration::from_millis(1));
    }
    received
}

/// Waits until this many sockets have rings: a process that is being started by another test may have a copy of each
/// descriptor for a moment.
fn wait_for_used(lab: &SocketLab, used: u32) {
    let have = common::until(|| lab.sockets_used(), |have| *have == used);
    assert_eq!(have, used, "sockets have rings");
}
