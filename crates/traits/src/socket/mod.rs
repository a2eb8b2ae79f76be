//! Traits in the application: of received TCP connections and UDP datagrams, and of what is sent.
//!
//! These are plain socket options and control messages (`include/packet_traits/socket.h` has them for C), for which an
//! application needs **no privilege**. Somebody with privileges has run `traits sockets attach` for the cgroup the
//! application is in; until then every call fails with [`SocketError::NotAttached`].
//!
//! | what | how | when |
//! |---|---|---|
//! | the keys | [`Keys::of`] | once |
//! | a UDP datagram's traits | [`recv_with_traits`], [`Receiver`] | after [`set_receive`] |
//! | traits of the SYN of a TCP connection | [`syn_traits`] | after [`save_syn_traits`] on the listener |
//! | traits of the newest TCP data | [`last_traits`] | after [`set_receive`] on the listener or the connection |
//! | one trait of either, in one system call | [`read`] | |
//! | traits of everything a socket sends | [`set_socket_traits`], [`set_socket_trait`] | |
//! | traits of one UDP datagram to send | [`send_with_traits`], [`send_to_with_traits`] | |
//!
//! Traits that a socket sends are visible to the programs at the host's egress hooks, which decide what they are worth.
//!
//! # Example
//! ```no_run
//! use std::net::UdpSocket;
//! use packet_traits::socket::{Receiver, Traits, send_to_with_traits};
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
//!         send_to_with_traits(&socket, b"seen", datagram.from(), &answer)?;
//!     }
//! }
//! # #[expect(unreachable_code)]
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! TCP:
//!
//! ```no_run
//! use std::net::TcpListener;
//! use packet_traits::socket::{self, Keys, Source};
//!
//! let listener = TcpListener::bind("[::]:80")?;
//! let keys = Keys::of(&listener)?;
//! let tenant = keys.typed::<u32>("tenant")?;
//! socket::save_syn_traits(&listener, true)?;
//!
//! let (stream, peer) = listener.accept()?;
//! println!("{peer} is of tenant {:?}", socket::read(&stream, Source::Syn, &tenant)?);
//! for (key, value) in socket::syn_traits(&stream, &keys)?.iter(&keys) {
//!     println!("{} = {value}", key.name());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Limits
//! - A UDP socket has places for the traits of its newest datagrams ([`traits_receive::slots`](abi::traits_receive) of
//!   them). If it lags behind by more, [`Traits::is_found`] is false and nothing is set: never another datagram's traits.
//! - After `traits sockets detach`, datagrams come as if they had no traits. After another attach, [`set_receive`] again.
//! - While a UDP socket receives traits, the mark it sees (`SO_RCVMARK`) is a handle; the datagram's own is
//!   [`Traits::mark`].
//! - Traits of one datagram to send are set on the socket first and then taken by the next datagram that the same thread
//!   sends, so threads that send with traits of their own on one socket need a lock around both.
//! - A UDP socket with `UDP_GRO` gets several datagrams at once, with the traits of the first; these functions do not tell
//!   how long each is.
//! - The keys are those of the moment [`Keys::of`] read them.

pub mod abi;
mod address;
mod error;
mod handle;
mod keys;
mod message;
mod options;
pub mod programs;
mod receiver;
mod ring;
mod sockopt;
mod traits;
mod udp;
mod values;

pub use error::{Attempt, SocketError};
pub use keys::Keys;
pub use options::{
    Source, delete_socket_trait, last_traits, read, read_value, receive_state, save_syn_traits, set_next_traits,
    set_receive, set_socket_trait, set_socket_traits, set_socket_value, socket_traits, syn_traits,
};
pub use receiver::{Batch, Datagram, Datagrams, Receiver, ReceiverOptions};
pub use ring::Ring;
pub use traits::Traits;
pub use udp::{recv_with_traits, send_to_with_traits, send_with_traits};
