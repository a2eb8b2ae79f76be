//! Values of every size, read one by one, all at once and by the C header; and lengths and numbers that are refused.

use std::{
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Command, Stdio},
};

use packet_traits::KeyType;
use packet_traits_lab::{Family, RECV_TIMEOUT};
use packet_traits_socket::{
    Keys, SocketTraits, TcpTraits,
    abi::{self, LAST_TRAITS, RCV_TRAITS, SAVE_SYN_TRAITS, SOCKET_TRAITS, SOL_TRAITS, SYN_TRAITS, TRAITS_ALL},
};

use crate::{
    Source, all,
    common::{
        self, TEST_PORT,
        c_program::{Folder, compile},
        sizes::{ABSENT, LAYOUTS, Sizes, VALUES},
        sockopt, tcp,
    },
};

/// A connection whose SYN had traits of every size.
fn with_every_size(test: impl Fn(&Sizes, &Keys, &TcpStream)) {
    if !common::area_enabled() {
        return;
    }
    for layout in LAYOUTS {
        let mut sizes = Sizes::new(layout);
        sizes.assign();
        let (tx, addr) = (sizes.pair.tx(), sizes.pair.rx().addr(Family::V4, TEST_PORT));
        let listener = sizes.inside(|| TcpListener::bind(addr)).unwrap();
        listener.save_syn_traits(true).unwrap();
        let _client = tx.netns().enter(|| TcpStream::connect_timeout(&addr, RECV_TIMEOUT)).unwrap();
        let (accepted, _) = tcp::accept(&listener);
        test(&sizes, &Keys::of(&accepted).unwrap(), &accepted);
    }
}

/// Lengths of buffers to try.
const LENGTHS: [usize; 14] = [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 300, 4096, 70_000];

#[test]
fn every_key_is_read_by_its_number() {
    with_every_size(|_, keys, accepted| {
        for (name, expected) in VALUES {
            let key = keys.get(name).unwrap();
            assert_eq!(accepted.syn_value(key).unwrap(), Some(expected), "{name}");
            let bytes = if key.key_type() == KeyType::Flag { vec![1] } else { expected.to_bytes().to_vec() };
            for room in LENGTHS {
                let mut value = vec![sockopt::UNTOUCHED; room];
                let result = sockopt::get(accepted, SOL_TRAITS, SYN_TRAITS + key.number() as i32, &mut value);
                let written = if room < bytes.len() { 0 } else { bytes.len() };
                assert_eq!(result, if written == 0 { Err(libc::EINVAL) } else { Ok(written) }, "{name}, {room} bytes");
                assert_eq!(value[..written], bytes[..written], "{name}");
                assert!(value[written..].iter().all(|byte| *byte == sockopt::UNTOUCHED), "{name}, {room} bytes");
            }
        }
        let absent = keys.get(ABSENT).unwrap();
        assert_eq!(accepted.syn_value(absent).unwrap(), None);
        for room in LENGTHS {
            let mut value = vec![sockopt::UNTOUCHED; room];
            let result = sockopt::get(accepted, SOL_TRAITS, SYN_TRAITS + absent.number() as i32, &mut value);
            assert_eq!(result, Err(if room < 4 { libc::EINVAL } else { libc::ENOENT }), "{room} bytes");
            assert!(value.iter().all(|byte| *byte == sockopt::UNTOUCHED));
        }
    });
}

#[test]
fn a_number_that_is_no_key_is_refused() {
    with_every_size(|sizes, keys, accepted| {
        let free = (0..64).filter(|number| keys.numbered(*number).is_none()).chain(64..TRAITS_ALL as usize);
        for number in free {
            for option in [SYN_TRAITS, LAST_TRAITS, SOCKET_TRAITS] {
                let mut value = [sockopt::UNTOUCHED; 16];
                let result = sockopt::get(accepted, SOL_TRAITS, option + number as i32, &mut value);
                assert_eq!((result, value), (Err(libc::EINVAL), [sockopt::UNTOUCHED; 16]), "{number}");
                assert_eq!(
                    sockopt::set(accepted, SOL_TRAITS, SOCKET_TRAITS + number as i32, &[1; 4]),
                    Err(libc::EINVAL)
                );
            }
        }
        for option in [SAVE_SYN_TRAITS + 1, RCV_TRAITS + TRAITS_ALL, 0x700, 0x1000, -1, i32::MIN] {
            assert_eq!(sockopt::get(accepted, SOL_TRAITS, option, &mut [0; 300]), Err(libc::EINVAL), "{option:#x}");
            assert_eq!(sockopt::set(accepted, SOL_TRAITS, option, &[0; 4]), Err(libc::EINVAL), "{option:#x}");
        }
        for option in [SYN_TRAITS, LAST_TRAITS, SYN_TRAITS + TRAITS_ALL, LAST_TRAITS + TRAITS_ALL] {
            assert_eq!(sockopt::set(accepted, SOL_TRAITS, option, &[0; 4]), Err(libc::EINVAL), "{option:#x}");
        }
        let key = *keys.get("four").unwrap().name();
        sizes.lab.registry.unregister(&key, true).unwrap();
        let number = keys.get("four").unwrap().number() as i32;
        assert_eq!(sockopt::get(accepted, SOL_TRAITS, SYN_TRAITS + number, &mut [0; 4]), Err(libc::EINVAL));
    });
}

#[test]
fn all_traits_are_read_at_once_or_nothing_is_written() {
    with_every_size(|_, keys, accepted| {
        let traits = all(accepted, Source::Syn, keys);
        let found: Vec<_> = traits.iter(keys).map(|(key, value)| (key.name().as_str(), value)).collect();
        let mut expected = VALUES.to_vec();
        expected.sort_by_key(|(name, _)| keys.get(name).unwrap().number());
        assert_eq!(found, expected);

        let needed = accepted.receive_state().unwrap().traits_len as usize;
        let lengths = LENGTHS.into_iter().chain([needed - 1, needed, needed + 1, size_of::<abi::traits>()]);
        for room in lengths {
            for (option, is_found) in [(SYN_TRAITS, true), (LAST_TRAITS, false), (SOCKET_TRAITS, false)] {
                let mut value = vec![sockopt::UNTOUCHED; room];
                let result = sockopt::get(accepted, SOL_TRAITS, option + TRAITS_ALL, &mut value);
                let written = if room < needed { 0 } else { needed };
                assert_eq!(result, if room < needed { Err(libc::EINVAL) } else { Ok(needed) }, "{room} bytes");
                assert!(value[written..].iter().all(|byte| *byte == sockopt::UNTOUCHED), "{room} bytes");
                if written > 0 {
                    assert_eq!(value[8..12], u32::from(is_found).to_ne_bytes());
                    assert!(is_found || value[12..written].iter().all(|byte| *byte == 0));
                }
            }
        }
    });
}

#[test]
fn one_call_of_the_c_header_reads_several_keys() {
    let folder = Folder::new("scatter");
    let program = compile(&folder, "scatter");
    let scatter = |accepted: &TcpStream, keys: &[&str]| {
        let connection = Stdio::from(OwnedFd::from(accepted.try_clone().unwrap()));
        let output = Command::new(&program).args(keys).stdin(connection).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    with_every_size(|_, _, accepted| {
        let keys = ["one=1", "absent=4", "sixteen=16", "flag=1", "four=64", "two=2", "eight=9"];
        assert_eq!(
            scatter(accepted, &keys),
            "6 set\none 1 a1\nabsent 0 \nsixteen 16 e8e7e6e5e4e3e2e1f8f7f6f5f4f3f2f1\nflag 1 01\nfour 4 c4c3c2c1\n\
             two 2 b2b1\neight 8 d8d7d6d5d4d3d2d1\n"
        );
        assert_eq!(scatter(accepted, &["absent=4"]), "0 set\nabsent 0 \n");
        for keys in [["one=1", "eight=7"], ["absent=3", "two=2"], ["sixteen=0", "flag=0"]] {
            assert_eq!(scatter(accepted, &keys), "failed: Invalid argument\n");
        }
        assert_eq!(scatter(accepted, &["one=1", "unheard=4"]), "no key unheard: No such file or directory\n");
    });
}
