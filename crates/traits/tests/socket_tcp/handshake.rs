//! Which SYN is a connection's, and which data comes with the handshake: with and without SYN cookies, with repeated and
//! spoofed SYNs, and with TCP Fast Open.

use std::{
    fs,
    io::Read,
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use packet_traits_lab::{
    Family, Netns, Pair,
    frame::{Flow, SYN},
};
use packet_traits_socket::{SocketTraits, TcpTraits};

use crate::{
    Numbered, Source, all,
    common::{self, TEST_PORT, crafted::Crafted, record::Record, sockopt, tcp},
    read_number, saving_listener, write_number,
};

/// Has the kernel of a namespace drop TCP segments from a port, until it is dropped.
struct Deaf<'n>(&'n Netns);

impl<'n> Deaf<'n> {
    fn to(netns: &'n Netns, port: u16) -> Deaf<'n> {
        let chain = "{ type filter hook input priority 0; }";
        let rule = format!("add rule inet deaf c tcp sport {port} drop");
        netns.nft(&format!("add table inet deaf; add chain inet deaf c {chain}; {rule}")).unwrap();
        Deaf(netns)
    }
}

impl Drop for Deaf<'_> {
    fn drop(&mut self) {
        self.0.nft("delete table inet deaf").unwrap();
    }
}

/// Counters of a namespace's TCP (`TcpExt` in `/proc/net/netstat`).
fn tcp_counter(netns: &Netns, name: &str) -> u64 {
    let table = netns.enter(|| fs::read_to_string("/proc/thread-self/net/netstat")).unwrap();
    let mut lines = table.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(found, _)| *found == name).unwrap_or_else(|| panic!("no counter {name}")).1.parse().unwrap()
}

/// Longer than any that connects needs.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a test for both families, with SYN cookies only when the queue is full, which is the default, and always.
fn with_and_without_cookies(test: impl Fn(Numbered, Family) + Sync) {
    if !common::area_enabled() {
        return;
    }
    let cases = Family::BOTH.into_iter().flat_map(|family| [(family, false), (family, true)]);
    let run = |(family, cookies)| {
        let link = Numbered::new();
        let rx = link.lab.pair.rx().netns().clone();
        rx.set_sysctl("net/ipv4/tcp_syncookies", if cookies { "2" } else { "1" }).unwrap();
        test(link, family);
        assert_eq!(tcp_counter(&rx, "SyncookiesRecv") > 0, cookies, "it was not what was to be tested");
    };
    thread::scope(|scope| cases.for_each(|case| drop(scope.spawn(move || run(case)))));
}

/// The client does not hear of the first answer, and sends its SYN again a second later. In the meantime someone sends SYNs of
/// other connections from its address and port.
#[test]
fn the_syn_that_was_sent_again_is_saved_and_no_spoofed_one() {
    with_and_without_cookies(|mut link, family| {
        let listener = saving_listener(&link.lab, family);
        let (tx, rx) = (link.lab.pair.tx().clone(), link.lab.pair.rx().clone());
        let deaf = Deaf::to(tx.netns(), TEST_PORT);
        let client = TcpStream::from(tx.netns().enter(|| tcp::socket(family)));
        // 3 s, or 7 where the second answer is not yet heard
        client.set_write_timeout(Some(CONNECT_TIMEOUT)).unwrap();
        tcp::bind(&client, tx.addr(family, 40000));
        let to = link.lab.addr(family);
        let mut spoofer = Crafted::new(&link.lab.pair, family, 40000);
        spoofer.flow = Flow::between(&tx, &rx, family, 40000, TEST_PORT);
        let spoofed_len = spoofer.flow.tcp(0, 0, SYN, &[]).len() as u32;
        thread::scope(|scope| {
            let connecting = scope.spawn(|| tcp::connect(&client, to));
            link.wait_for_arrived(1);
            for sequence in [1, 0x7fff_ffff, 0x8000_0000] {
                spoofer.inject(sequence, SYN, &[]);
            }
            // those, and the client's again, before it can hear an answer to the first
            link.wait_for_arrived(5);
            drop(deaf);
            assert_eq!(connecting.join().unwrap(), Ok(()));
        });
        let (accepted, _) = tcp::accept(&listener);
        let saved = link.number(&accepted, Source::Syn).unwrap();
        // the client's own have TCP options
        let is_spoofed = |record: &Record| record.len == spoofed_len;
        let spoofed: Vec<u64> = link
            .wait_for_arrived(6)
            .iter()
            .filter(|record| is_spoofed(record))
            .map(|record| record.traits.seq)
            .collect();
        assert_eq!(spoofed.len(), 3);
        assert!(!spoofed.contains(&saved), "{saved} is one of {spoofed:?}");
        assert!(saved < link.arrived.len() as u64 - 1, "it ended the handshake");
    });
}

#[test]
fn a_spoofed_syn_after_it_does_not_change_what_is_saved() {
    with_and_without_cookies(|link, family| {
        let listener = saving_listener(&link.lab, family);
        let mut client = Crafted::new(&link.lab.pair, family, 40000);
        client.syn(&[]);
        // the kernel resets a connection for which one in the window comes (tcp_check_req in net/ipv4/tcp_minisocks.c)
        for sequence in [client.sequence - 2, client.sequence + 100_000, client.sequence ^ 0x8000_0000] {
            client.inject(sequence, SYN, &[]);
        }
        client.send(&[]);
        let (accepted, _) = tcp::accept(&listener);
        assert_eq!(link.number(&accepted, Source::Syn), Some(0));
    });
}

/// Two namespaces with the same addresses, in which clients send the same SYN.
#[test]
fn a_syn_in_another_namespace_is_another_one() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let (link, other) = (Numbered::new(), Pair::new().unwrap());
        let listener = saving_listener(&link.lab, family);
        let bind = || TcpListener::bind(other.rx().addr(family, TEST_PORT));
        let other_listener = link.lab.cgroup.enter(|| other.rx().netns().enter(bind)).unwrap();
        other_listener.save_syn_traits(true).unwrap();
        let mut clients = [&link.lab.pair, &other].map(|pair| Crafted::new(pair, family, 40000));
        for client in &mut clients {
            client.syn(&[]);
        }
        for client in &mut clients {
            client.send(&[]);
        }
        let [(accepted, peer), (other_accepted, other_peer)] = [&listener, &other_listener].map(tcp::accept);
        assert_eq!(peer, other_peer);
        assert_eq!(link.number(&accepted, Source::Syn), Some(0));
        // there, nobody gives traits
        let syn = all(&other_accepted, Source::Syn, &link.keys);
        assert!(syn.is_found() && syn.is_empty());
    }
}

#[test]
fn what_ends_the_handshake_may_be_the_newest_data() {
    with_and_without_cookies(|link, family| {
        let listener = saving_listener(&link.lab, family);
        listener.receive_traits(true).unwrap();
        let mut client = Crafted::new(&link.lab.pair, family, 40000);
        client.connect(b"first");
        let (mut accepted, _) = tcp::accept(&listener);
        let mut first = [0; 5];
        accepted.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"first");
        assert_eq!(link.number(&accepted, Source::Syn), Some(0));
        assert_eq!(link.number(&accepted, Source::Last), Some(1));
    });
}

#[test]
fn a_connection_that_is_accepted_with_its_first_data_has_both() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let link = Numbered::new();
        let listener = saving_listener(&link.lab, family);
        listener.receive_traits(true).unwrap();
        sockopt::set_int(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 10).unwrap();
        let mut client = Crafted::new(&link.lab.pair, family, 40000);
        client.connect(&[]);
        client.send(b"first");
        let (accepted, _) = tcp::accept(&listener);
        assert_eq!(link.number(&accepted, Source::Syn), Some(0));
        assert_eq!(link.number(&accepted, Source::Last), Some(2));
    }
}

#[test]
fn fast_open_has_the_newest_data_in_the_syn() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let link = Numbered::new();
        let (tx, rx) = (link.lab.pair.tx(), link.lab.pair.rx());
        // include/net/tcp.h: TFO_CLIENT_ENABLE | TFO_CLIENT_NO_COOKIE, TFO_SERVER_ENABLE | TFO_SERVER_COOKIE_NOT_REQD
        tx.netns().set_sysctl("net/ipv4/tcp_fastopen", "5").unwrap();
        rx.netns().set_sysctl("net/ipv4/tcp_fastopen", "514").unwrap();
        let listener = saving_listener(&link.lab, family);
        listener.receive_traits(true).unwrap();
        sockopt::set_int(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16).unwrap();
        let client = tx.netns().enter(|| tcp::socket(family));
        sockopt::set_int(&client, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1).unwrap();
        tcp::connect(&client, link.lab.addr(family)).unwrap();
        let mut client = TcpStream::from(client);
        write_number(&mut client, 3);
        let (mut accepted, _) = tcp::accept(&listener);
        assert_eq!(read_number(&mut accepted), 3);
        assert_eq!(tcp_counter(rx.netns(), "TCPFastOpenPassive"), 1, "the data did not come with the SYN");
        assert_eq!(link.number(&accepted, Source::Syn), Some(0));
        assert_eq!(link.number(&accepted, Source::Last), Some(0));
    }
}
