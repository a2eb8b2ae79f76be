//! What every socket has: traits of its own, and whether it keeps those of what it receives.

use std::os::fd::AsFd;

use packet_traits_core::{Key, TraitValue, TypedKey, Value};

use super::{
    abi::{RCV_TRAITS, SOCKET_TRAITS, traits_receive},
    error::SocketError,
    keys::{self, Keys},
    options::{self, Source},
    traits::Traits,
};

/// Traits of TCP and UDP sockets.
///
/// ```no_run
/// use std::net::TcpStream;
/// use packet_traits_socket::{Keys, SocketTraits};
///
/// let stream = TcpStream::connect("[::1]:80")?;
/// let tenant = Keys::of(&stream)?.typed::<u32>("tenant")?;
/// stream.set_trait(&tenant, 7)?;          // goes with every packet that the socket sends from now on
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait SocketTraits: AsFd {
    /// Has a socket keep the traits of what it receives, or not. UDP: those of each datagram; TCP: those of the newest data; the
    /// sockets that a listener accepts from now on keep them as well.
    ///
    /// Datagrams that were queued before have no traits.
    ///
    /// # Errors
    /// [`SocketError::NotAttached`]; [`SocketError::NoRoom`] if all places for UDP sockets are taken;
    /// [`SocketError::WrongSocket`].
    fn receive_traits(&self, receive: bool) -> Result<(), SocketError> {
        options::set_switch(self.as_fd(), RCV_TRAITS, "set RCV_TRAITS", receive)
    }

    /// What the kernel side keeps for what a socket receives: the sizes, and for UDP which slots it has.
    ///
    /// # Errors
    /// [`SocketError::NotAttached`]; [`SocketError::Damaged`] if the answer has another length.
    fn receive_state(&self) -> Result<traits_receive, SocketError> {
        keys::receive_state(self.as_fd())
    }

    /// The socket's own traits, which go with what it sends.
    ///
    /// # Errors
    /// [`SocketError::NotAttached`]; [`SocketError::Damaged`] if `keys` are those of another registry.
    fn own_traits(&self, keys: &Keys) -> Result<Traits, SocketError> {
        options::read_all(self.as_fd(), Source::Own, keys)
    }

    /// One of the socket's own traits, by one system call; `None` if it is not set.
    ///
    /// # Errors
    /// [`SocketError::NotAttached`]; [`SocketError::Refused`] if the key is no longer registered.
    fn own_trait<T: TraitValue>(&self, key: &TypedKey<T>) -> Result<Option<T>, SocketError> {
        Ok(self.own_value(key.key())?.and_then(T::from_value))
    }

    /// The same of a key whose type is known only at run time, or of a flag.
    ///
    /// # Errors
    /// As for [`own_trait`](Self::own_trait).
    fn own_value(&self, key: &Key) -> Result<Option<Value>, SocketError> {
        options::read_value(self.as_fd(), Source::Own, key)
    }

    /// Sets all of the socket's own traits: deletes those that are not set in `traits`. They go with every packet that the socket
    /// sends from now on, TCP or UDP.
    ///
    /// # Errors
    /// [`SocketError::NotAttached`]; [`SocketError::NoRoom`]; [`SocketError::Refused`] if a key is no longer registered. What
    /// was set before stays.
    fn set_traits(&self, traits: &Traits) -> Result<(), SocketError> {
        options::set_all(self.as_fd(), SOCKET_TRAITS, "set SOCKET_TRAITS", traits)
    }

    /// Sets one of the socket's own traits.
    ///
    /// # Errors
    /// As for [`set_traits`](Self::set_traits).
    fn set_trait<T: TraitValue>(&self, key: &TypedKey<T>, value: T) -> Result<(), SocketError> {
        self.set_value(key.key(), &value.into())
    }

    /// The same of a key whose type is known only at run time, or of a flag ([`Value::Flag`]).
    ///
    /// # Errors
    /// [`SocketError::Type`] if the value is not of the key's type, and as for [`set_traits`](Self::set_traits).
    fn set_value(&self, key: &Key, value: &Value) -> Result<(), SocketError> {
        options::set_own(self.as_fd(), key, value)
    }

    /// Deletes one of the socket's own traits. It need not be set.
    ///
    /// # Errors
    /// As for [`set_traits`](Self::set_traits).
    fn delete_trait(&self, key: &Key) -> Result<(), SocketError> {
        options::delete_own(self.as_fd(), key)
    }
}

impl<S: AsFd + ?Sized> SocketTraits for S {}
