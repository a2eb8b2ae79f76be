//! Interfaces of this network namespace, by name.

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with};

use crate::PolicyError;

/// The index of an interface of this network namespace.
///
/// # Errors
/// [`PolicyError::NoInterface`].
pub fn index(name: &str) -> Result<u32, PolicyError> {
    // any socket will do: it stands for the namespace
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let index = socket.and_then(|socket| name_to_index(socket, name));
    index.map_err(|_| PolicyError::NoInterface { name: name.to_owned() })
}
