//! The socket options, one function each.
//!
//! A TCP socket can answer for its SYN and for the newest data it has received; every socket has traits of its own,
//! which go with what it sends.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use libc::c_int;

use crate::core::{Key, KeyType, TraitValue, TypedKey, Value, value::VALUE_LEN_MAX};

use super::{
    abi::{
        self, LAST_TRAITS, NEXT_TRAITS, RCV_TRAITS, SAVE_SYN_TRAITS, SOCKET_TRAITS, SOL_TRAITS, SYN_TRAITS, TRAITS_ALL,
        traits_receive,
    },
    error::{Attempt, SocketError},
    keys::{self, Keys},
    sockopt,
    traits::{Traits, check_type},
};

/// How often an option is got anew if data came in while it was read.
const GET_ATTEMPTS: usize = 100;

/// Which traits of a socket to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// TCP: those of the SYN of a connection that was accepted. Needs [`save_syn_traits`] on the listener.
    Syn,
    /// TCP: those of the newest data that has arrived, read or not. Needs [`set_receive`].
    Last,
    /// The socket's own, which go with what it sends.
    Own,
}

impl Source {
    const fn option(self) -> c_int {
        match self {
            Source::Syn => SYN_TRAITS,
            Source::Last => LAST_TRAITS,
            Source::Own => SOCKET_TRAITS,
        }
    }

    const fn action(self) -> &'static str {
        match self {
            Source::Syn => "read SYN_TRAITS",
            Source::Last => "read LAST_TRAITS",
            Source::Own => "read SOCKET_TRAITS",
        }
    }
}

/// Has a TCP socket keep the traits of its SYN, or not. On a listener it is for the sockets accepted from it from now on.
///
/// # Errors
/// [`SocketError::NotAttached`]; [`SocketError::Connected`] if it is too late; [`SocketError::WrongSocket`];
/// [`SocketError::NoRoom`].
pub fn save_syn_traits(socket: &impl AsFd, save: bool) -> Result<(), SocketError> {
    set_switch(socket.as_fd(), SAVE_SYN_TRAITS, "set SAVE_SYN_TRAITS", save)
}

/// Has a socket keep the traits of what it receives, or not. UDP: of each datagram; TCP: of the newest data, and so do the
/// sockets accepted from a listener from now on.
///
/// Datagrams that were queued before have no traits to be found.
///
/// # Errors
/// [`SocketError::NotAttached`]; [`SocketError::NoRoom`] if all places for UDP sockets are taken;
/// [`SocketError::WrongSocket`].
pub fn set_receive(socket: &impl AsFd, receive: bool) -> Result<(), SocketError> {
    set_switch(socket.as_fd(), RCV_TRAITS, "set RCV_TRAITS", receive)
}

/// What the kernel side keeps for what a socket receives: the sizes, and for UDP which slots it has.
///
/// # Errors
/// [`SocketError::NotAttached`]; [`SocketError::Damaged`] if the answer has another length.
pub fn receive_state(socket: &impl AsFd) -> Result<traits_receive, SocketError> {
    keys::receive_state(socket.as_fd())
}

/// The traits of the SYN of a TCP connection that was accepted. Not [found](Traits::is_found) if it was not kept, or the
/// socket is not connected.
///
/// # Errors
/// [`SocketError::NotAttached`]; [`SocketError::WrongSocket`] if the socket is not TCP;
/// [`SocketError::Damaged`] if `keys` are those of another registry.
pub fn syn_traits(stream: &impl AsFd, keys: &Keys) -> Result<Traits, SocketError> {
    read_all(stream.as_fd(), Source::Syn, keys)
}

/// The traits of the newest data that has arrived on a TCP connection. Not [found](Traits::is_found) if none has.
///
/// # Errors
/// As for [`syn_traits`].
pub fn last_traits(stream: &impl AsFd, keys: &Keys) -> Result<Traits, SocketError> {
    read_all(stream.as_fd(), Source::Last, keys)
}

/// A socket's own traits, which go with what it sends.
///
/// # Errors
/// [`SocketError::NotAttached`]; [`SocketError::Damaged`] if `keys` are those of another registry.
pub fn socket_traits(socket: &impl AsFd, keys: &Keys) -> Result<Traits, SocketError> {
    read_all(socket.as_fd(), Source::Own, keys)
}

/// One trait of a socket, by one system call; `None` if it is not set.
///
/// # Errors
/// [`SocketError::NotAttached`]; [`SocketError::Refused`] if the key is no longer registered;
/// [`SocketError::WrongSocket`].
pub fn read<T: TraitValue>(socket: &impl AsFd, source: Source, key: &TypedKey<T>) -> Result<Option<T>, SocketError> {
    Ok(read_value(socket, source, key.key())?.and_then(T::from_value))
}

/// One trait of a socket, with its type, by one system call; `None` if it is not set. For flags, and for keys whose type
/// is known only at run time.
///
/// # Errors
/// As for [`read`].
pub fn read_value(socket: &impl AsFd, source: Source, key: &Key) -> Result<Option<Value>, SocketError> {
    let socket = socket.as_fd();
    let attempt = Attempt::with_key(source.action(), socket, key);
    let mut buffer = [0; VALUE_LEN_MAX];
    // A flag's value is one byte, 1 or 0.
    let value = &mut buffer[..key.key_type().size().max(1)];
    match get(socket, source.option() | key.number() as c_int, value) {
        Ok(len) if len != value.len() => {
            Err(attempt.damaged(format!("the value has {len} bytes, a {} has {}", key.key_type(), value.len())))
        }
        Ok(_) if key.key_type() == KeyType::Flag => Ok((value[0] != 0).then_some(Value::Flag)),
        Ok(_) => Ok(Value::from_bytes(key.key_type(), value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(attempt.failed(socket, error)),
    }
}

/// Sets all of a socket's own traits: those that are not set in `traits` are deleted. They go with every packet the socket
/// sends from now on, TCP or UDP.
///
/// # Errors
/// [`SocketError::NotAttached`]; [`SocketError::NoRoom`]; [`SocketError::Refused`] if a key is no longer registered. What
/// was set before stays.
pub fn set_socket_traits(socket: &impl AsFd, traits: &Traits) -> Result<(), SocketError> {
    set(socket.as_fd(), SOCKET_TRAITS | TRAITS_ALL, Attempt::new("set SOCKET_TRAITS", socket.as_fd()), traits.record())
}

/// Sets one of a socket's own traits, and leaves the others.
///
/// # Errors
/// As for [`set_socket_traits`].
pub fn set_socket_trait<T: TraitValue>(socket: &impl AsFd, key: &TypedKey<T>, value: T) -> Result<(), SocketError> {
    set_socket_value(socket, key.key(), &value.into())
}

/// Sets one of a socket's own traits, whose type is known only at run time, or a flag ([`Value::Flag`]).
///
/// # Errors
/// [`SocketError::Type`] if the value is not of the key's type, and as for [`set_socket_traits`].
pub fn set_socket_value(socket: &impl AsFd, key: &Key, value: &Value) -> Result<(), SocketError> {
    check_type(key, value)?;
    let bytes = value.to_bytes();
    let bytes = if key.key_type() == KeyType::Flag { &[1] } else { &*bytes };
    set_key(socket.as_fd(), key, "set SOCKET_TRAITS", bytes)
}

/// Deletes one of a socket's own traits. That it is not set is fine.
///
/// # Errors
/// As for [`set_socket_traits`].
pub fn delete_socket_trait(socket: &impl AsFd, key: &Key) -> Result<(), SocketError> {
    match set_key(socket.as_fd(), key, "delete SOCKET_TRAITS", &[]) {
        Err(error) if error.errno() == libc::ENOENT => Ok(()),
        other => other,
    }
}

/// Sets the traits of the next datagram that **this thread** sends on this UDP socket. They go over the socket's own. Empty
/// ones take back what was set.
///
/// Prefer [`send_with_traits`](super::send_with_traits), which takes them back if the datagram is not sent.
///
/// # Errors
/// [`SocketError::NotAttached`]; [`SocketError::WrongSocket`] if the socket is not UDP; [`SocketError::NoRoom`];
/// [`SocketError::Refused`] if a key is no longer registered.
pub fn set_next_traits(socket: &impl AsFd, traits: &Traits) -> Result<(), SocketError> {
    set(socket.as_fd(), NEXT_TRAITS | TRAITS_ALL, Attempt::new("set NEXT_TRAITS", socket.as_fd()), traits.record())
}

fn read_all(socket: BorrowedFd<'_>, source: Source, keys: &Keys) -> Result<Traits, SocketError> {
    let attempt = Attempt::new(source.action(), socket);
    let mut traits = Traits::empty(keys.layout());
    let record = traits.record_mut();
    let expected = record.len();
    let len = get(socket, source.option() | TRAITS_ALL, record).map_err(|error| attempt.failed(socket, error))?;
    if len != expected {
        return Err(attempt.damaged(format!("the answer is {len} bytes, not the {expected} that the keys call for")));
    }
    Ok(traits)
}

/// Gets an option of a socket. EAGAIN says that data came in all the time, as it was read.
fn get(socket: BorrowedFd<'_>, option: c_int, value: &mut [u8]) -> io::Result<usize> {
    let mut attempts = 0;
    loop {
        match sockopt::get(socket, SOL_TRAITS, option, value) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempts < GET_ATTEMPTS => attempts += 1,
            answer => return answer,
        }
    }
}

fn set_switch(socket: BorrowedFd<'_>, option: c_int, action: &'static str, on: bool) -> Result<(), SocketError> {
    set(socket, option, Attempt::new(action, socket), abi::bytes(&c_int::from(on)))
}

fn set_key(socket: BorrowedFd<'_>, key: &Key, action: &'static str, value: &[u8]) -> Result<(), SocketError> {
    set(socket, SOCKET_TRAITS | key.number() as c_int, Attempt::with_key(action, socket, key), value)
}

fn set(socket: BorrowedFd<'_>, option: c_int, attempt: Attempt, value: &[u8]) -> Result<(), SocketError> {
    sockopt::set(socket, SOL_TRAITS, option, value).map_err(|error| attempt.failed(socket, error))
}
