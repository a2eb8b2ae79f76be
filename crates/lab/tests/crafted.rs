//! The kernel takes crafted frames for what they say they are.

use std::time::Duration;

use packet_traits_lab::frame::{self, Flow};
use packet_traits_lab::{
    Family, Feature, Overlay, PacketSocket, Pair, VethOptions, VxlanOptions, kernel_tests_enabled, number_of,
    recv_numbered, send_frame, send_together, udp_socket,
};

const PORT: u16 = 9000;
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn crafted_udp_reaches_a_socket() {
    if !kernel_tests_enabled() {
        return;
    }
    let pair = Pair::new().unwrap();
    for family in Family::BOTH {
        let socket = udp_socket(pair.rx().netns(), pair.rx().addr(family, PORT)).unwrap();
        let flow = Flow::between(pair.tx(), pair.rx(), family, 1234, PORT);
        // An odd length puts half a word at the end of the checksum.
        let payload = [&99_u64.to_be_bytes()[..], b"odd"].concat();
        send_frame(pair.tx().netns(), pair.tx().ifindex(), &flow.udp(&payload)).unwrap();
        assert_eq!(recv_numbered(&socket).unwrap(), 99, "{family:?}");
    }
}

#[test]
fn crafted_vxlan_is_decapsulated() {
    if !kernel_tests_enabled() {
        return;
    }
    for underlay in Family::BOTH {
        let overlay = Overlay::new(&VxlanOptions::new(underlay)).unwrap();
        let outer = overlay.underlay();
        let socket = udp_socket(overlay.rx().netns(), overlay.rx().addr(Family::V4, PORT)).unwrap();
        let inner = Flow::between(overlay.tx(), overlay.rx(), Family::V4, 1234, PORT).udp(&5_u64.to_be_bytes());
        let tunnel = Flow::between(outer.tx(), outer.rx(), underlay, 40_000, 0);
        send_frame(outer.tx().netns(), outer.tx().ifindex(), &tunnel.vxlan(overlay.vni(), &inner)).unwrap();
        assert_eq!(recv_numbered(&socket).unwrap(), 5, "{underlay:?}");
    }
}

#[test]
fn crafted_frame_is_what_the_kernel_would_send() {
    if !kernel_tests_enabled() {
        return;
    }
    let pair = Pair::new().unwrap();
    pair.tx().netns().set_feature("tx0", Feature::TxChecksum, false).unwrap();
    // No flow label, so that the IPv6 header is predictable.
    pair.tx().netns().set_sysctl("net/ipv6/auto_flowlabels", "0").unwrap();
    let capture = PacketSocket::on(pair.rx()).unwrap();
    for family in Family::BOTH {
        let socket = udp_socket(pair.tx().netns(), pair.tx().addr(family, 4321)).unwrap();
        let to = pair.rx().addr(family, PORT);
        socket.connect(to).unwrap();
        socket.send(b"payload").unwrap();
        let sent = capture.wait_for(SECOND, |frame| !frame.outgoing).unwrap();
        let mut crafted = Flow::between(pair.tx(), pair.rx(), family, 4321, PORT).udp(b"payload");
        if family == Family::V4 {
            // A connected socket numbers its packets; that and the checksum over it are the only difference.
            crafted[18..20].copy_from_slice(&sent.bytes[18..20]);
            crafted[24..26].copy_from_slice(&sent.bytes[24..26]);
        }
        assert_eq!(sent.bytes, crafted, "{family:?}");
    }
}

#[test]
fn burst_sent_together_is_merged_by_gro() {
    if !kernel_tests_enabled() {
        return;
    }
    for family in Family::BOTH {
        let pair = Pair::with(&VethOptions::new().gro(true)).unwrap();
        let capture = PacketSocket::on(pair.rx()).unwrap();
        let flow = Flow::between(pair.tx(), pair.rx(), family, 1234, PORT);
        let headers = flow.tcp(1, 1, frame::ACK, &[]).len();
        for _ in 0..2 {
            send_together(pair.tx(), pair.rx(), &flow.tcp_burst(1, 16, 1000)).unwrap();
            let merged =
                capture.wait_for(SECOND, |frame| !frame.outgoing && frame.bytes.len() >= headers + 1000).unwrap();
            assert_eq!(merged.bytes.len(), headers + 16 * 1000, "{family:?}");
            assert!(merged.bytes[headers..].iter().enumerate().all(|(at, byte)| usize::from(*byte) == at / 1000));
        }
    }
}

#[test]
fn sending_together_without_gro_is_refused() {
    if !kernel_tests_enabled() {
        return;
    }
    let pair = Pair::new().unwrap();
    let error = send_together(pair.tx(), pair.rx(), &[[0; 60]]).unwrap_err().to_string();
    assert!(error.contains("cannot merge"), "{error}");
}

#[test]
fn sender_and_receiver_both_capture_a_frame() {
    if !kernel_tests_enabled() {
        return;
    }
    let pair = Pair::new().unwrap();
    let sockets = [PacketSocket::on(pair.tx()).unwrap(), PacketSocket::on(pair.rx()).unwrap()];
    let flow = Flow::between(pair.tx(), pair.rx(), Family::V6, 1, 2);
    let frame = flow.udp(&3_u64.to_be_bytes());
    send_frame(pair.tx().netns(), pair.tx().ifindex(), &frame).unwrap();
    for (socket, outgoing) in sockets.iter().zip([true, false]) {
        let captured = socket.wait_for(SECOND, |captured| captured.bytes == frame).unwrap();
        assert_eq!(captured.outgoing, outgoing);
        assert_eq!(number_of(&captured.bytes[frame.len() - 8..]), Some(3));
    }
}
