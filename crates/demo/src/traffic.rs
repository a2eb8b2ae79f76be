//! Sends the flows, and counts what was sent and what came back: the ground truth.

use std::{io::ErrorKind, sync::mpsc::Sender, thread, time::Duration};

use packet_traits_lab::{Result, recv_numbered, send_numbered, tcp_transfer, udp_socket};

use super::{
    flows::{FLOWS, Flow, Kind},
    network::Network,
    servers::Servers,
};

/// Bytes of a datagram's payload.
pub(super) const DATAGRAM: usize = 64;
/// Datagrams under way at once.
pub(super) const WINDOW: u64 = 16;
/// How long an echo may take.
const ECHO_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of a TCP transfer.
const TRANSFER: u64 = 2 << 20;
/// Datagrams of a flow that is dropped.
const DROPPED: u64 = 20;

/// What was sent of a flow, as the sender counts it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) flow: Flow,
    /// Datagrams, or bytes of a transfer.
    pub(super) sent: u64,
    /// Replies, or bytes of a transfer that the server has received right.
    pub(super) returned: u64,
}

/// Sends every flow, `packets` datagrams of each echo, and tells which it is at.
pub(super) fn send(network: &Network, servers: &Servers, packets: u64, at: &Sender<Flow>) -> Result<Vec<Sent>> {
    let send = |flow: &Flow| {
        // nobody listens any more after Ctrl-C, and then the process ends
        let _ = at.send(*flow);
        let (sent, returned) = match flow.kind {
            Kind::Echo => echo(network, flow, packets)?,
            Kind::Transfer => {
                tcp_transfer(network.tx(flow.route).netns(), network.to(flow), TRANSFER)?;
                (TRANSFER, servers.received(flow))
            }
            Kind::ClosedPort | Kind::Filtered => (into_the_void(network, flow)?, 0),
        };
        Ok(Sent { flow: *flow, sent, returned })
    };
    FLOWS.iter().map(send).collect()
}

/// Returns how many datagrams were sent and how many came back. Stops at the first that does not.
fn echo(network: &Network, flow: &Flow, packets: u64) -> Result<(u64, u64)> {
    let tx = network.tx(flow.route);
    let socket = udp_socket(tx.netns(), tx.addr(flow.family, 0))?;
    socket.set_read_timeout(Some(ECHO_TIMEOUT)).ok();
    let mut sent = 0;
    while sent < packets {
        let window = sent..packets.min(sent + WINDOW);
        send_numbered(&socket, network.to(flow), window.clone(), DATAGRAM)?;
        sent = window.end;
        let mut missing: Vec<u64> = window.collect();
        while !missing.is_empty() {
            match recv_numbered(&socket) {
                Ok(number) => missing.retain(|other| *other != number),
                Err(error) if error.kind() == ErrorKind::TimedOut => return Ok((sent, sent - missing.len() as u64)),
                Err(error) => return Err(error),
            }
        }
    }
    Ok((sent, sent))
}

/// Returns how many datagrams were sent.
fn into_the_void(network: &Network, flow: &Flow) -> Result<u64> {
    let tx = network.tx(flow.route);
    let socket = udp_socket(tx.netns(), tx.addr(flow.family, 0))?;
    for number in 0..DROPPED {
        send_numbered(&socket, network.to(flow), number..number + 1, DATAGRAM)?;
        // no reply sets the pace
        thread::sleep(Duration::from_micros(200));
    }
    Ok(DROPPED)
}
