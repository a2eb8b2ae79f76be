//! Threads of one socket: each sends its datagrams with the traits that it has set itself.

use std::{
    sync::{Barrier, Mutex},
    thread,
    time::Duration,
};

use packet_traits_lab::Family;
use packet_traits_socket::{
    SocketTraits, Traits, UdpTraits,
    abi::{NEXT_TRAITS, SOL_TRAITS},
};

use crate::{
    ABSENT, NOTHING, Sender, assert_seen,
    common::{
        self,
        record::{self, HAS_ALL, HAS_SEQ},
        sockopt,
    },
    datagram, full, full_sink, seq_over, values,
};

/// Four threads send with traits, with a lock around that, and two without either.
#[test]
fn threads_of_one_socket_send_each_its_own_traits() {
    const EACH: u64 = 1000;
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let sender = Sender::new();
        let _sink = full_sink(&sender, family);
        let socket = sender.udp(family);
        socket.set_traits(&sender.traits(9)).unwrap();
        let lock = Mutex::new(());
        let keys = &sender.keys;
        let traits = |number| {
            let mut traits = Traits::new(keys);
            traits.set(&keys.typed("seq").unwrap(), number).unwrap();
            traits
        };
        thread::scope(|scope| {
            for first in (0..6).map(|thread| thread * EACH) {
                let (socket, lock, traits) = (&socket, &lock, &traits);
                scope.spawn(move || {
                    for number in first..first + EACH {
                        if first < 4 * EACH {
                            let _locked = lock.lock().unwrap();
                            socket.send_with_traits(&datagram(number), &traits(number)).unwrap();
                        } else {
                            socket.send(&datagram(number)).unwrap();
                        }
                    }
                });
            }
        });
        let seen = |number| if number < 4 * EACH { seq_over(number, 9) } else { full(9) };
        assert_seen(&sender.records(), (0..6 * EACH).map(|number| (number, seen(number))));
    }
}

#[test]
fn another_threads_datagram_does_not_take_what_a_thread_has_set() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    let (_sink, socket) = (sender.sink(Family::V4), sender.udp(Family::V4));
    socket.set_next_traits(&sender.traits(1)).unwrap();
    thread::scope(|scope| drop(scope.spawn(|| socket.send(&datagram(0)).unwrap())));
    socket.send(&datagram(1)).unwrap();
    socket.send(&datagram(2)).unwrap();
    // the other thread's takes the place of what this one has set: one of them at a time
    socket.set_next_traits(&sender.traits(3)).unwrap();
    let keys = &sender.keys;
    let theirs = sender.seq(4);
    thread::scope(|scope| drop(scope.spawn(|| socket.send_with_traits(&datagram(4), &theirs).unwrap())));
    socket.send(&datagram(3)).unwrap();
    // key by key, and taken back
    socket.set_next_traits(&sender.traits(5)).unwrap();
    let seq = NEXT_TRAITS + keys.get("seq").unwrap().number() as i32;
    sockopt::set(&socket, SOL_TRAITS, seq, &55u64.to_ne_bytes()).unwrap();
    socket.send(&datagram(5)).unwrap();
    socket.set_next_traits(&sender.traits(6)).unwrap();
    socket.set_next_traits(&Traits::new(keys)).unwrap();
    socket.send(&datagram(6)).unwrap();
    socket.set_next_traits(&sender.seq(7)).unwrap();
    sockopt::set(&socket, SOL_TRAITS, seq, &[]).unwrap();
    socket.send(&datagram(7)).unwrap();
    sockopt::set(&socket, SOL_TRAITS, seq, &8u64.to_ne_bytes()).unwrap();
    socket.send(&datagram(8)).unwrap();
    let only_seq = |seq| (HAS_SEQ, record::Traits { seq, ..NOTHING });
    assert_seen(
        &sender.records(),
        [
            (0, ABSENT),
            (1, full(1)),
            (2, ABSENT),
            (3, ABSENT),
            (4, only_seq(4)),
            (5, (HAS_ALL, record::Traits { seq: 55, ..values(5) })),
            (6, ABSENT),
            (7, ABSENT),
            (8, only_seq(8)),
        ],
    );
}

/// The kernel gives the memory of a thread that has ended to one that begins.
#[test]
fn what_a_thread_has_set_ends_with_it() {
    const THREADS: u64 = 30;
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    let (_sink, socket) = (sender.sink(Family::V4), sender.udp(Family::V4));
    let traits = sender.seq(1);
    for round in 0..50 {
        thread::scope(|scope| drop(scope.spawn(|| socket.set_next_traits(&traits).unwrap())));
        // its memory is free after an RCU grace period; some of the threads that begin then, all there at once, get it
        thread::sleep(Duration::from_millis(40));
        let all_there = Barrier::new(THREADS as usize);
        thread::scope(|scope| {
            for number in round * THREADS..(round + 1) * THREADS {
                let (socket, all_there) = (&socket, &all_there);
                scope.spawn(move || {
                    all_there.wait();
                    socket.send(&datagram(number)).unwrap();
                });
            }
        });
    }
    assert_seen(&sender.records(), (0..50 * THREADS).map(|number| (number, ABSENT)));
}
