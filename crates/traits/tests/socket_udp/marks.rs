//! The mark of a datagram is its own for whoever asks: in its traits, or, without RCV_TRAITS, as it always was.

use packet_traits::attach::XdpMode;
use packet_traits_lab::Family;
use packet_traits_socket::{
    SocketTraits,
    abi::{RCV_TRAITS, SOL_TRAITS},
};

use crate::{
    SIZE, assert_carried,
    common::{
        self, attach_xdp,
        datagrams::{Carried, RawTraits, Reader, SO_RCVMARK, Way, recvmsg, wait_until_queued},
        load, register_fitting,
        sockets::{MARK, SOCKET_KEYS},
        sockopt::{get_int, set_int},
    },
    mark_of, marking_lab, own, send,
};

/// What a datagram comes with if only `mark_some` has seen it.
fn only_mark(number: u64) -> Carried {
    Carried { mark: mark_of(number), ..Carried::NOTHING }
}

#[test]
fn a_datagram_without_traits_is_found_with_its_mark() {
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(None);
    for way in Way::ALL {
        for family in Family::BOTH {
            let (client, mut reader) = (lab.udp_client(family), Reader::new(way, lab.udp(family), &lab));
            send(&lab, &client, family, 0..40);
            assert_carried(&reader.recv_all(40), 0..40, |number| Some(only_mark(number)));
        }
    }
}

#[test]
fn datagrams_with_and_without_traits_are_told_apart_in_one_batch() {
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(None);
    for way in Way::ALL {
        let (client, mut reader) = (lab.udp_client(Family::V4), Reader::new(way, lab.udp(Family::V4), &lab));
        send(&lab, &client, Family::V4, 0..4);
        wait_until_queued(reader.socket(), 4);
        let xdp = attach_xdp(&lab.object, "assign", lab.pair.rx(), XdpMode::Native);
        send(&lab, &client, Family::V4, 4..8);
        wait_until_queued(reader.socket(), 8);
        drop(xdp);
        send(&lab, &client, Family::V4, 8..12);
        let carried = |number| if (4..8).contains(&number) { own(number) } else { only_mark(number) };
        assert_carried(&reader.recv_all(12), 0..12, |number| Some(carried(number)));
    }
}

/// Neither traits nor a mark: nothing to remember.
#[test]
fn a_datagram_without_traits_and_mark_takes_no_slot() {
    const SLOTS: u64 = 64;
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(None);
    let (client, mut reader) = (lab.udp_client(Family::V4), Reader::new(Way::Once, lab.udp(Family::V4), &lab));
    send(&lab, &client, Family::V4, 0..1);
    let handle = recvmsg(reader.socket(), SIZE, 0).unwrap().mark().unwrap();
    let marked = RawTraits::of(reader.socket(), handle);
    assert_eq!((marked.flags, marked.mark, marked.present), (1, MARK, 0));

    for _ in 0..2 * SLOTS {
        send(&lab, &client, Family::V4, 1..2);
        assert_carried(&reader.recv_all(1), 1..2, |_| Some(Carried::NOTHING));
    }
    assert_eq!(RawTraits::of(reader.socket(), handle), marked, "its slot was not given to another");

    // what does take slots gets it in the end
    for _ in 0..SLOTS {
        send(&lab, &client, Family::V4, 3..4);
        assert_carried(&reader.recv_all(1), 3..4, |_| Some(Carried { mark: MARK, ..Carried::NOTHING }));
    }
    assert_eq!(
        RawTraits::of(reader.socket(), handle),
        RawTraits { values: vec![0; lab.values_len()], ..RawTraits::default() }
    );
}

#[test]
fn a_socket_that_did_not_ask_sees_the_mark_itself() {
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(Some(XdpMode::Native));
    for family in Family::BOTH {
        let (client, socket) = (lab.udp_client(family), lab.udp(family));
        set_int(&socket, libc::SOL_SOCKET, SO_RCVMARK, 1).unwrap();
        send(&lab, &client, family, 0..10);
        for number in 0..10 {
            assert_eq!(recvmsg(&socket, SIZE, 0).unwrap().mark(), Some(mark_of(number)));
        }
        assert_eq!(lab.sockets_used(), 0);
    }
}

#[test]
fn turning_it_off_gives_the_marks_back() {
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(Some(XdpMode::Native));
    for family in Family::BOTH {
        for wanted_marks in [0, 1] {
            let (client, socket) = (lab.udp_client(family), lab.udp(family));
            set_int(&socket, libc::SOL_SOCKET, SO_RCVMARK, wanted_marks).unwrap();
            let mark = |number| (wanted_marks == 1).then_some(mark_of(number));
            for round in 0..3 {
                let first = 10 * round;
                send(&lab, &client, family, first..first + 3);
                for number in first..first + 3 {
                    assert_eq!(recvmsg(&socket, SIZE, 0).unwrap().mark(), mark(number));
                }

                set_int(&socket, SOL_TRAITS, RCV_TRAITS, 1).unwrap();
                assert_eq!(get_int(&socket, libc::SOL_SOCKET, SO_RCVMARK).unwrap(), 1);
                let state = socket.receive_state().unwrap();
                assert_eq!((state.enabled, state.slots), (1, 64));
                send(&lab, &client, family, 3..4);
                let handle = recvmsg(&socket, SIZE, 0).unwrap().mark().unwrap();
                assert_ne!(handle, MARK);
                assert_eq!(RawTraits::of(&socket, handle).mark, MARK);

                // its setting back is for new datagrams
                set_int(&socket, SOL_TRAITS, RCV_TRAITS, 0).unwrap();
                socket.receive_traits(false).unwrap();
                assert_eq!(get_int(&socket, libc::SOL_SOCKET, SO_RCVMARK).unwrap(), wanted_marks);
                assert_eq!(socket.receive_state().unwrap().enabled, 0);
            }
        }
    }
}

/// Turned off before it was ever on: nothing happens, and it takes no place.
#[test]
fn turning_it_off_first_changes_nothing() {
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(Some(XdpMode::Native));
    let (client, socket) = (lab.udp_client(Family::V4), lab.udp(Family::V4));
    set_int(&socket, libc::SOL_SOCKET, SO_RCVMARK, 1).unwrap();
    socket.receive_traits(false).unwrap();
    send(&lab, &client, Family::V4, 3..4);
    assert_eq!(recvmsg(&socket, SIZE, 0).unwrap().mark(), Some(MARK));
    assert_eq!(lab.sockets_used(), 0);
}

#[test]
fn what_was_queued_before_is_not_found() {
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(Some(XdpMode::Native));
    for way in Way::ALL {
        for family in Family::BOTH {
            let (client, socket) = (lab.udp_client(family), lab.udp(family));
            // marks and none, traits all of them
            send(&lab, &client, family, 0..6);
            wait_until_queued(&socket, 6);
            let mut reader = Reader::new(way, socket, &lab);
            send(&lab, &client, family, 6..12);
            assert_carried(&reader.recv_all(12), 0..12, |number| (number >= 6).then(|| own(number)));
        }
    }
}

#[test]
fn traits_of_another_registry_are_none() {
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(None);
    let other = lab.lab.another("other", lab.lab.registry.layout());
    register_fitting(&other, SOCKET_KEYS);
    let object = load("sockets", &other);
    let _xdp = attach_xdp(&object, "assign", lab.pair.rx(), XdpMode::Native);
    for way in Way::ALL {
        let (client, mut reader) = (lab.udp_client(Family::V4), Reader::new(way, lab.udp(Family::V4), &lab));
        send(&lab, &client, Family::V4, 0..20);
        assert_carried(&reader.recv_all(20), 0..20, |number| Some(only_mark(number)));
    }
}

#[test]
fn an_application_that_turns_marks_on_or_off_itself_has_its_way() {
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(Some(XdpMode::Native));
    let socket = lab.udp(Family::V4);
    socket.receive_traits(true).unwrap();
    // off: there are no handles, and nothing is changed
    set_int(&socket, libc::SOL_SOCKET, SO_RCVMARK, 0).unwrap();
    assert_eq!(socket.receive_state().unwrap().enabled, 0);
    let client = lab.udp_client(Family::V4);
    send(&lab, &client, Family::V4, 0..1);
    wait_until_queued(&socket, 1);
    set_int(&socket, libc::SOL_SOCKET, SO_RCVMARK, 1).unwrap();
    assert_eq!(recvmsg(&socket, SIZE, 0).unwrap().mark(), Some(MARK), "datagram 0 has it");
    // on again, by itself: it stays on
    assert_eq!(socket.receive_state().unwrap().enabled, 1);
    socket.receive_traits(false).unwrap();
    assert_eq!(get_int(&socket, libc::SOL_SOCKET, SO_RCVMARK), Ok(1));
}
