//! A way for datagrams from one namespace to another.

use std::{io, net::UdpSocket, time::Duration};

/// How long a datagram may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A way for datagrams from one namespace to another.
#[derive(Debug)]
pub struct Route {
    /// In the sender's namespace.
    sender: UdpSocket,
    /// In the receiver's.
    pub(super) receiver: UdpSocket,
}

impl Route {
    /// From a socket in one namespace to one in another, each bound to an address. The receiver's was made in the cgroup of
    /// the [`Ground`](super::Ground) there.
    ///
    /// # Errors
    /// Those of setting how long a socket waits.
    pub fn new(sender: UdpSocket, receiver: UdpSocket) -> io::Result<Route> {
        for socket in [&sender, &receiver] {
            socket.set_read_timeout(Some(TIMEOUT))?;
            socket.set_write_timeout(Some(TIMEOUT))?;
        }
        Ok(Route { sender, receiver })
    }

    /// Sends a datagram and receives it by `receive`.
    pub(super) fn exchange<T>(&self, receive: impl FnOnce(&UdpSocket) -> io::Result<T>) -> Result<T, String> {
        let to = self.receiver.local_addr().map_err(|error| format!("the receiver's address: {error}"))?;
        self.sender.send_to(b"traits doctor", to).map_err(|error| format!("sending a datagram to {to}: {error}"))?;
        receive(&self.receiver).map_err(|error| format!("a datagram to {to} did not arrive: {error}"))
    }

    /// Sends a datagram and receives it, whatever its traits.
    pub(super) fn exchange_plain(&self) -> Result<(), String> {
        self.exchange(|socket| socket.recv(&mut [0; 64]).map(drop))
    }
}
