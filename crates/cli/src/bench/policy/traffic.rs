//! Packets for the measurement: the kernel sends one frame over and over from the other end of the link, without a socket or an
//! skb, so that little but the receiving side is in the time.

use std::{
    error::Error,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::{Duration, Instant},
};

use libbpf_rs::{Object, ObjectBuilder};
use packet_traits_lab::{Family, Pair, frame::Flow};

use super::rules::PORT;

/// The object compiled from `../bpf/traffic.bpf.c`.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/traffic.bpf.o"));

/// Frames that are sent before the receiver is polled; its ring has 256 places (`VETH_RING_SIZE` in drivers/net/veth.c).
const BATCH: u32 = 64;
/// Bytes of a datagram's payload.
const PAYLOAD: usize = 22;

/// Sends from one end of a link.
pub(super) struct Traffic {
    object: Object,
    frame: Vec<u8>,
    pair: Pair,
}

impl Traffic {
    pub(super) fn new(pair: &Pair) -> Result<Traffic, Box<dyn Error>> {
        let mut object = ObjectBuilder::default().open_memory(OBJECT)?;
        let mut rodata = object
            .maps_mut()
            .find(|map| map.name().to_string_lossy().ends_with(".rodata"))
            .ok_or("traffic.bpf.o has no .rodata")?;
        let interface = rodata.initial_value_mut().and_then(|data| data.first_chunk_mut::<4>());
        *interface.ok_or("traffic.bpf.o has no variable `interface`")? = pair.tx().ifindex().to_ne_bytes();
        let flow = Flow::between(pair.tx(), pair.rx(), Family::V4, 4000, PORT);
        Ok(Traffic { object: object.load()?, frame: flow.udp(&[0; PAYLOAD]), pair: pair.clone() })
    }

    /// Sends `count` packets and returns how long it took until the last one had been received.
    pub(super) fn send(&self, count: u32) -> Result<Duration, Box<dyn Error>> {
        let program = self.object.progs().next().ok_or("traffic.bpf.o has no program")?;
        let fd = program.as_fd();
        // the namespace in which the interface has its number
        self.pair.tx().netns().enter(|| run(fd, &self.frame, count)).map_err(|error| {
            format!("sending {count} frames by BPF_F_TEST_XDP_LIVE_FRAMES, which needs Linux 5.18: {error}").into()
        })
    }
}

fn run(program: BorrowedFd<'_>, frame: &[u8], count: u32) -> io::Result<Duration> {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        repeat: count as i32,
        flags: libbpf_sys::BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size: BATCH,
        ..Default::default()
    };
    let start = Instant::now();
    // SAFETY: the frame is readable for the length given, and with this flag the kernel writes nothing back.
    match unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut options) } {
        0 => Ok(start.elapsed()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}
