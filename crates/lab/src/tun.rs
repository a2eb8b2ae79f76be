//! Two TUN or TAP interfaces in two namespaces, joined by a thread that carries what one sends to the other.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::netns::Netns;
use crate::sys;

/// Where the kernel gives out such interfaces.
const DEVICE: &str = "/dev/net/tun";
/// How often the carriers look whether they should stop.
const STOP_INTERVAL: Duration = Duration::from_millis(20);
/// The longest packet of an interface without offloads, and more.
const BUFFER: usize = 4096;

/// What is sent and received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunKind {
    /// IP packets, without any header in front of them.
    Tun,
    /// Ethernet frames.
    Tap,
}

/// The two interfaces. They go when it is dropped.
#[derive(Debug)]
pub struct TunPair {
    stop: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<()>>,
}

impl TunPair {
    /// Makes an interface in each namespace under these names. `napi`: they receive as hardware does, with GRO (IFF_NAPI);
    /// else each packet by itself.
    ///
    /// # Errors
    /// The kernel has no such interfaces ([`io::ErrorKind::NotFound`]), or the names are taken.
    pub fn connect(sides: [(&Netns, &str); 2], kind: TunKind, napi: bool) -> Result<Self> {
        let open = |(netns, name): (&Netns, &str)| {
            let what = || format!("cannot make interface {name} by {DEVICE}");
            let open = || OpenOptions::new().read(true).write(true).open(DEVICE);
            let file = netns.enter(open).context(what)?;
            sys::tun_interface(file.as_fd(), name, kind == TunKind::Tap, napi).context(what)?;
            Ok::<_, Error>(Arc::new(file))
        };
        let (one, other) = (open(sides[0])?, open(sides[1])?);
        let stop = Arc::new(AtomicBool::new(false));
        let mut pair = Self { stop, carriers: Vec::new() };
        for (from, to) in [(&one, &other), (&other, &one)] {
            let (from, to, stop) = (Arc::clone(from), Arc::clone(to), Arc::clone(&pair.stop));
            let carry = move || carry_until(&from, &to, &stop);
            let carrier = thread::Builder::new().name("tun-carrier".into()).spawn(carry);
            pair.carriers.push(carrier.context(|| "cannot start a thread that carries packets")?);
        }
        Ok(pair)
    }
}

impl Drop for TunPair {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for carrier in self.carriers.drain(..) {
            // It has said so on standard error if it panicked.
            let _ = carrier.join();
        }
    }
}

/// Carries packets until told to stop. What the receiver does not take (it is down, say) is lost, as on a wire.
fn carry_until(mut from: &File, mut to: &File, stop: &AtomicBool) {
    let mut packet = vec![0; BUFFER];
    while !stop.load(Ordering::Relaxed) {
        match sys::readable(from.as_fd(), STOP_INTERVAL) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(_) => return,
        }
        match from.read(&mut packet) {
            Ok(length) => drop(to.write(&packet[..length])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // down: it may come up again
            Err(_) => thread::sleep(STOP_INTERVAL),
        }
    }
}
