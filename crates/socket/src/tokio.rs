//! Waiting for datagrams with tokio.

use std::{borrow::Borrow, future::Future, io, net::SocketAddr, os::fd::AsFd};

use ::tokio::{io::Interest, net::UdpSocket};

use super::{Batch, Keys, Received, Receiver, SocketError, Traits, UdpTraits, error::Attempt};

/// Datagrams with traits on tokio's UDP sockets: [`UdpTraits`] that wait.
///
/// ```no_run
/// # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
/// use packet_traits_socket::{AsyncUdpTraits, Keys, SocketTraits};
///
/// let socket = tokio::net::UdpSocket::bind("[::]:5000").await?;
/// socket.receive_traits(true)?;
/// let keys = Keys::of(&socket)?;
/// let mut buffer = [0; 2048];
/// let received = socket.recv_with_traits_async(&keys, &mut buffer).await?;
/// socket.send_to_with_traits_async(&buffer[..received.len], received.from, &received.traits).await?;
/// # Ok(())
/// # }
/// ```
pub trait AsyncUdpTraits {
    /// [`recv_with_traits`](UdpTraits::recv_with_traits), once a datagram is there.
    ///
    /// # Errors
    /// As for [`recv_with_traits`](UdpTraits::recv_with_traits), but never
    /// [`WouldBlock`](io::ErrorKind::WouldBlock).
    fn recv_with_traits_async(
        &self,
        keys: &Keys,
        buffer: &mut [u8],
    ) -> impl Future<Output = Result<Received, SocketError>> + Send;

    /// [`send_with_traits`](UdpTraits::send_with_traits), once the socket has room.
    ///
    /// # Errors
    /// As for [`send_with_traits`](UdpTraits::send_with_traits), but never [`WouldBlock`](io::ErrorKind::WouldBlock).
    fn send_with_traits_async(
        &self,
        data: &[u8],
        traits: &Traits,
    ) -> impl Future<Output = Result<usize, SocketError>> + Send;

    /// [`send_to_with_traits`](UdpTraits::send_to_with_traits), once the socket has room.
    ///
    /// # Errors
    /// As for [`send_to_with_traits`](UdpTraits::send_to_with_traits), but never
    /// [`WouldBlock`](io::ErrorKind::WouldBlock).
    fn send_to_with_traits_async(
        &self,
        data: &[u8],
        to: SocketAddr,
        traits: &Traits,
    ) -> impl Future<Output = Result<usize, SocketError>> + Send;
}

impl AsyncUdpTraits for UdpSocket {
    async fn recv_with_traits_async(&self, keys: &Keys, buffer: &mut [u8]) -> Result<Received, SocketError> {
        ready(self, Interest::READABLE, || self.recv_with_traits(keys, buffer)).await
    }

    async fn send_with_traits_async(&self, data: &[u8], traits: &Traits) -> Result<usize, SocketError> {
        ready(self, Interest::WRITABLE, || self.send_with_traits(data, traits)).await
    }

    async fn send_to_with_traits_async(
        &self,
        data: &[u8],
        to: SocketAddr,
        traits: &Traits,
    ) -> Result<usize, SocketError> {
        ready(self, Interest::WRITABLE, || self.send_to_with_traits(data, to, traits)).await
    }
}

/// Of a tokio socket, a reference to one or an `Arc` of one.
impl<S: AsFd + Borrow<UdpSocket>> Receiver<S> {
    /// [`recv`](Self::recv), once a datagram is there.
    ///
    /// # Errors
    /// As for [`recv`](Self::recv), but never [`WouldBlock`](io::ErrorKind::WouldBlock).
    pub async fn recv_async(&self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        ready(self.socket().borrow(), Interest::READABLE, || self.recv(buffer)).await
    }

    /// [`recv_batch`](Self::recv_batch), once a datagram is there.
    ///
    /// # Errors
    /// As for [`recv_batch`](Self::recv_batch), but never [`WouldBlock`](io::ErrorKind::WouldBlock).
    pub async fn recv_batch_async(&mut self) -> Result<Batch<'_>, SocketError> {
        let (socket, mut filling) = self.split();
        let socket: &UdpSocket = socket.borrow();
        let len = ready(socket, Interest::READABLE, || filling.fill(socket.as_fd())).await?;
        Ok(self.batch(len))
    }
}

/// What `attempt` gives when it does not answer that it would have to wait.
async fn ready<T>(
    socket: &UdpSocket,
    interest: Interest,
    mut attempt: impl FnMut() -> Result<T, SocketError>,
) -> Result<T, SocketError> {
    let answer = socket.async_io(interest, || match attempt() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error.into()),
        answer => Ok(answer),
    });
    answer.await.map_err(|error| waiting(socket, error))?
}

/// The error of waiting for a socket, as when the runtime shuts down.
fn waiting(socket: &UdpSocket, error: io::Error) -> SocketError {
    SocketError::Io { attempt: Attempt::new("wait", socket.as_fd()), error }
}
