//! Traits in the application: of received TCP connections and UDP datagrams, and of what is sent.
//!
//! A *trait* is a small typed value with a name (`tenant: u32`) that a BPF program attaches to a packet when it enters the host.
//! This crate reads and sets them by plain socket options and control messages (`packet_traits/socket.h` has them for C), which
//! require **no privilege**. An administrator runs `traits sockets attach` for the cgroup that the application is in; until
//! then every call fails with [`SocketError::NotAttached`].
//!
//! | what | how | when |
//! |---|---|---|
//! | the keys | [`Keys::of`] | once |
//! | a UDP datagram's traits | [`recv_with_traits`](UdpTraits::recv_with_traits), [`Receiver`] | after [`receive_traits`](SocketTraits::receive_traits) |
//! | traits of the SYN of a TCP connection | [`syn_traits`](TcpTraits::syn_traits) | after [`save_syn_traits`](TcpTraits::save_syn_traits) on the listener |
//! | traits of the newest TCP data | [`last_traits`](TcpTraits::last_traits) | after [`receive_traits`](SocketTraits::receive_traits) on the listener or the connection |
//! | one of these, in one system call | [`syn_trait`](TcpTraits::syn_trait), [`last_trait`](TcpTraits::last_trait), [`own_trait`](SocketTraits::own_trait) | |
//! | traits of everything a socket sends | [`set_traits`](SocketTraits::set_traits), [`set_trait`](SocketTraits::set_trait) | |
//! | traits of one UDP datagram to send | [`send_with_traits`](UdpTraits::send_with_traits), [`send_to_with_traits`](UdpTraits::send_to_with_traits) | |
//!
//! [`SocketTraits`], [`TcpTraits`] and [`UdpTraits`] are implemented for everything that has a file descriptor ([`AsFd`]): the
//! standard library's sockets, tokio's, socket2's. The kernel side decides whether an option is one of that kind of socket
//! ([`SocketError::WrongSocket`]).
//!
//! Traits that a socket sends are visible to the BPF programs at the host's egress hooks, which decide what they are worth.
//!
//! # UDP
//! ```no_run
//! use std::net::UdpSocket;
//! use packet_traits_socket::{Receiver, Traits, UdpTraits};
//!
//! let socket = UdpSocket::bind("[::]:5000")?;
//! let mut receiver = Receiver::new(&socket)?;
//! let tenant = receiver.keys().typed::<u32>("tenant")?;
//! let mut answer = Traits::new(receiver.keys());
//!
//! loop {
//!     for datagram in receiver.recv_batch()? {
//!         let Some(who) = datagram.traits().get(&tenant) else { continue };
//!         println!("{} bytes from {}, tenant {who}", datagram.data().len(), datagram.from());
//!         answer.set(&tenant, who)?;
//!         socket.send_to_with_traits(b"seen", datagram.from(), &answer)?;
//!     }
//! }
//! # #[expect(unreachable_code)]
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # TCP
//! ```no_run
//! use std::net::TcpListener;
//! use packet_traits_socket::{Keys, TcpTraits};
//!
//! let listener = TcpListener::bind("[::]:80")?;
//! let keys = Keys::of(&listener)?;
//! let tenant = keys.typed::<u32>("tenant")?;
//! listener.save_syn_traits(true)?;
//!
//! let (stream, peer) = listener.accept()?;
//! println!("{peer} is of tenant {:?}", stream.syn_trait(&tenant)?);
//! for (key, value) in stream.syn_traits(&keys)?.iter(&keys) {
//!     println!("{} = {value}", key.name());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//! - `ring`: reads the traits of datagrams from memory that the kernel shares, where the process may open it.
//! - `tokio`: waits for datagrams with tokio.
//!
//! # Limits
//! - A UDP socket has places for the traits of its newest datagrams ([`traits_receive::slots`](abi::traits_receive) of
//!   them). If it lags behind by more, [`Traits::is_found`] is false and nothing is set: never another datagram's traits.
//! - After `traits sockets detach`, datagrams arrive as if they had no traits. After another attach, call
//!   [`receive_traits`](SocketTraits::receive_traits) again.
//! - While a UDP socket receives traits, the mark it sees (`SO_RCVMARK`) is a handle; [`Traits::mark`] is the datagram's own.
//! - Traits of one datagram to send are set on the socket first and then taken by the next datagram that the same thread
//!   sends. Threads that send with their own traits on one socket need a lock around both.
//! - A UDP socket with `UDP_GRO` receives several datagrams at once, with the traits of the first; these functions do not report
//!   how long each is.
//! - [`Keys::of`] reads the keys that are registered at that moment.
//!
//! [`AsFd`]: std::os::fd::AsFd

pub mod abi;
mod address;
mod error;
mod handle;
mod keys;
mod message;
mod options;
mod receiver;
#[cfg(feature = "ring")]
mod ring;
#[cfg(not(feature = "ring"))]
#[path = "no_ring.rs"]
mod ring;
mod socket;
mod sockopt;
mod tcp;
#[cfg(feature = "tokio")]
mod tokio;
mod traits;
mod udp;
mod values;

pub use packet_traits_core::{Key, KeyName, KeyType, Layout, SetError, TraitValue, TypeMismatch, TypedKey, Value};

#[cfg(feature = "tokio")]
pub use self::tokio::AsyncUdpTraits;
pub use error::{Attempt, SocketError};
pub use keys::Keys;
pub use receiver::{Batch, Datagram, Datagrams, Receiver, ReceiverOptions};
#[cfg(feature = "ring")]
pub use ring::Ring;
pub use socket::SocketTraits;
pub use tcp::TcpTraits;
pub use traits::Traits;
pub use udp::{Received, UdpTraits};
