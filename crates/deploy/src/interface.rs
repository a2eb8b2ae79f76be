//! Interfaces of this network namespace, by name.

use packet_traits::attach::interface_index;

use crate::PolicyError;

/// The index of an interface of this network namespace.
///
/// # Errors
/// [`PolicyError::NoInterface`].
pub fn index(name: &str) -> Result<u32, PolicyError> {
    interface_index(name).ok_or_else(|| PolicyError::NoInterface { name: name.to_owned() })
}
