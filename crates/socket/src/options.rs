//! The socket options as functions, which the traits for sockets call.

use std::{io, os::fd::BorrowedFd, thread, time::Duration};

use libc::c_int;

use packet_traits_core::{Key, KeyType, Value, value::VALUE_LEN_MAX};

use super::{
    abi::{self, LAST_TRAITS, SOCKET_TRAITS, SOL_TRAITS, SYN_TRAITS, TRAITS_ALL},
    error::{Attempt, SocketError},
    keys::Keys,
    sockopt,
    traits::{Traits, check_type},
};

/// How often an option is read again at once if data arrived while it was read.
const GET_ATTEMPTS: usize = 100;

/// How often after that, with a pause in between: the CPU that writes it may be a guest's that does not run.
const LATE_ATTEMPTS: usize = 200;

const PAUSE: Duration = Duration::from_micros(100);

/// Which traits of a socket to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    /// TCP: those of the SYN of a connection that was accepted.
    Syn,
    /// TCP: those of the newest data that has arrived, read or not.
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

/// One value, by one system call; `None` if it is not set.
pub(crate) fn read_value(socket: BorrowedFd<'_>, source: Source, key: &Key) -> Result<Option<Value>, SocketError> {
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

/// All values, by one system call.
pub(crate) fn read_all(socket: BorrowedFd<'_>, source: Source, keys: &Keys) -> Result<Traits, SocketError> {
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

/// Turns an option on or off.
pub(crate) fn set_switch(
    socket: BorrowedFd<'_>,
    option: c_int,
    action: &'static str,
    on: bool,
) -> Result<(), SocketError> {
    set(socket, option, Attempt::new(action, socket), abi::bytes(&c_int::from(on)))
}

/// Sets all of the traits that `option` is of.
pub(crate) fn set_all(
    socket: BorrowedFd<'_>,
    option: c_int,
    action: &'static str,
    traits: &Traits,
) -> Result<(), SocketError> {
    set(socket, option | TRAITS_ALL, Attempt::new(action, socket), traits.record())
}

/// Sets one of the socket's own traits.
pub(crate) fn set_own(socket: BorrowedFd<'_>, key: &Key, value: &Value) -> Result<(), SocketError> {
    check_type(key, value)?;
    let bytes = value.to_bytes();
    let bytes = if key.key_type() == KeyType::Flag { &[1] } else { &*bytes };
    set_key(socket, key, "set SOCKET_TRAITS", bytes)
}

/// Deletes one of the socket's own traits, if it is set.
pub(crate) fn delete_own(socket: BorrowedFd<'_>, key: &Key) -> Result<(), SocketError> {
    match set_key(socket, key, "delete SOCKET_TRAITS", &[]) {
        Err(error) if error.errno() == libc::ENOENT => Ok(()),
        other => other,
    }
}

/// Gets an option of a socket. EAGAIN says that data came in all the time, as it was read.
fn get(socket: BorrowedFd<'_>, option: c_int, value: &mut [u8]) -> io::Result<usize> {
    let mut attempts = 0;
    loop {
        match sockopt::get(socket, SOL_TRAITS, option, value) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempts < GET_ATTEMPTS + LATE_ATTEMPTS => {
                if attempts >= GET_ATTEMPTS {
                    thread::sleep(PAUSE);
                }
                attempts += 1;
            }
            answer => return answer,
        }
    }
}

fn set_key(socket: BorrowedFd<'_>, key: &Key, action: &'static str, value: &[u8]) -> Result<(), SocketError> {
    set(socket, SOCKET_TRAITS | key.number() as c_int, Attempt::with_key(action, socket, key), value)
}

fn set(socket: BorrowedFd<'_>, option: c_int, attempt: Attempt, value: &[u8]) -> Result<(), SocketError> {
    sockopt::set(socket, SOL_TRAITS, option, value).map_err(|error| attempt.failed(socket, error))
}
