//! Traits of TCP connections: of their SYN and of the newest data.

use std::os::fd::AsFd;

use packet_traits_core::{Key, TraitValue, TypedKey, Value};

use super::{
    abi::SAVE_SYN_TRAITS,
    error::SocketError,
    keys::Keys,
    options::{self, Source},
    traits::Traits,
};

/// Traits of TCP sockets.
///
/// ```no_run
/// use std::net::TcpListener;
/// use packet_traits_socket::{Keys, TcpTraits};
///
/// let listener = TcpListener::bind("[::]:80")?;
/// listener.save_syn_traits(true)?;
/// let tenant = Keys::of(&listener)?.typed::<u32>("tenant")?;
/// let (stream, _) = listener.accept()?;
/// let who: Option<u32> = stream.syn_trait(&tenant)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait TcpTraits: AsFd {
    /// Has a socket keep the traits of its SYN, or not. On a listener this concerns the sockets that it accepts from now on.
    ///
    /// # Errors
    /// [`SocketError::NotAttached`]; [`SocketError::Connected`] if it is too late; [`SocketError::WrongSocket`];
    /// [`SocketError::NoRoom`].
    fn save_syn_traits(&self, save: bool) -> Result<(), SocketError> {
        options::set_switch(self.as_fd(), SAVE_SYN_TRAITS, "set SAVE_SYN_TRAITS", save)
    }

    /// The traits of the SYN of a connection that was accepted. Not [found](Traits::is_found) if they were not kept, or the
    /// socket is not connected.
    ///
    /// # Errors
    /// [`SocketError::NotAttached`]; [`SocketError::WrongSocket`] if the socket is not TCP;
    /// [`SocketError::Damaged`] if `keys` are those of another registry.
    fn syn_traits(&self, keys: &Keys) -> Result<Traits, SocketError> {
        options::read_all(self.as_fd(), Source::Syn, keys)
    }

    /// One trait of the SYN, by one system call; `None` if it is not set.
    ///
    /// # Errors
    /// [`SocketError::NotAttached`]; [`SocketError::Refused`] if the key is no longer registered;
    /// [`SocketError::WrongSocket`].
    fn syn_trait<T: TraitValue>(&self, key: &TypedKey<T>) -> Result<Option<T>, SocketError> {
        Ok(self.syn_value(key.key())?.and_then(T::from_value))
    }

    /// The same of a key whose type is known only at run time, or of a flag.
    ///
    /// # Errors
    /// As for [`syn_trait`](Self::syn_trait).
    fn syn_value(&self, key: &Key) -> Result<Option<Value>, SocketError> {
        options::read_value(self.as_fd(), Source::Syn, key)
    }

    /// The traits of the newest data that has arrived, read or not. Not [found](Traits::is_found) if none has.
    ///
    /// # Errors
    /// As for [`syn_traits`](Self::syn_traits).
    fn last_traits(&self, keys: &Keys) -> Result<Traits, SocketError> {
        options::read_all(self.as_fd(), Source::Last, keys)
    }

    /// One trait of the newest data, by one system call; `None` if it is not set.
    ///
    /// # Errors
    /// As for [`syn_trait`](Self::syn_trait).
    fn last_trait<T: TraitValue>(&self, key: &TypedKey<T>) -> Result<Option<T>, SocketError> {
        Ok(self.last_value(key.key())?.and_then(T::from_value))
    }

    /// The same of a key whose type is known only at run time, or of a flag.
    ///
    /// # Errors
    /// As for [`syn_trait`](Self::syn_trait).
    fn last_value(&self, key: &Key) -> Result<Option<Value>, SocketError> {
        options::read_value(self.as_fd(), Source::Last, key)
    }
}

impl<S: AsFd + ?Sized> TcpTraits for S {}
