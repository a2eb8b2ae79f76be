//! Internet addresses as recvmsg(2) and sendto(2) have them.

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

use libc::{sa_family_t, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};

/// An address as a system call has it: room for any, and how many bytes are used.
#[derive(Clone, Copy)]
pub(crate) struct RawAddress {
    pub(crate) storage: sockaddr_storage,
    pub(crate) len: socklen_t,
}

impl RawAddress {
    /// Room for any address.
    pub(crate) const CAPACITY: socklen_t = size_of::<sockaddr_storage>() as socklen_t;

    pub(crate) const fn empty() -> RawAddress {
        // SAFETY: it is made of integers, for which zeroes are a value.
        RawAddress { storage: unsafe { std::mem::zeroed() }, len: 0 }
    }

    /// The IPv4 or IPv6 address that it is; `None` for any other.
    #[inline]
    pub(crate) fn decode(&self) -> Option<SocketAddr> {
        let holds = |len: usize| self.len as usize >= len;
        match i32::from(self.storage.ss_family) {
            libc::AF_INET if holds(size_of::<sockaddr_in>()) => {
                // SAFETY: the storage is larger, aligned for every address, and of this family.
                let raw = unsafe { &*(&raw const self.storage).cast::<sockaddr_in>() };
                let ip = raw.sin_addr.s_addr.to_ne_bytes();
                Some(SocketAddrV4::new(ip.into(), u16::from_be(raw.sin_port)).into())
            }
            libc::AF_INET6 if holds(size_of::<sockaddr_in6>()) => {
                // SAFETY: as above.
                let raw = unsafe { &*(&raw const self.storage).cast::<sockaddr_in6>() };
                let (ip, port) = (raw.sin6_addr.s6_addr, u16::from_be(raw.sin6_port));
                Some(SocketAddrV6::new(ip.into(), port, raw.sin6_flowinfo, raw.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> RawAddress {
        let mut raw = RawAddress::empty();
        match address {
            SocketAddr::V4(address) => {
                let v4 = sockaddr_in {
                    sin_family: libc::AF_INET as sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is larger and aligned for every address.
                unsafe { (&raw mut raw.storage).cast::<sockaddr_in>().write(v4) };
                raw.len = size_of_val(&v4) as socklen_t;
            }
            SocketAddr::V6(address) => {
                let v6 = sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                // SAFETY: the storage is larger and aligned for every address.
                unsafe { (&raw mut raw.storage).cast::<sockaddr_in6>().write(v6) };
                raw.len = size_of_val(&v6) as socklen_t;
            }
        }
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 5353, 7, 3);
        for address in ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap(), scoped.into()] {
            assert_eq!(RawAddress::from(address).decode(), Some(address));
        }
    }

    #[test]
    fn what_is_no_internet_address_is_none() {
        assert_eq!(RawAddress::empty().decode(), None);
        let mut short = RawAddress::from("[::1]:1".parse::<SocketAddr>().unwrap());
        short.len = size_of::<sockaddr_in>() as socklen_t;
        assert_eq!(short.decode(), None);
    }
}
