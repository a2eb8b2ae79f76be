//! Packets for the measurement: the kernel sends one frame over and over from the other end of the link, without a socket or an
//! skb, so that little but the receiving side is in the time.

use std::{
    error::Error,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};

use libbpf_rs::{MapCore, MapFlags, Object, ObjectBuilder, OpenObject};
use packet_traits_lab::{End, Family, frame::Flow};

/// The object compiled from `bpf/traffic.bpf.c`.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/traffic.bpf.o"));

/// Frames that are sent before the receiver is polled; its ring has 256 places (`VETH_RING_SIZE` in drivers/net/veth.c).
const BATCH: u32 = 64;
/// How often a measurement is tried.
const TRIES: usize = 20;
/// Bytes of a datagram's payload.
const PAYLOAD: usize = 22;

/// Sends from one end of a link.
pub(super) struct Traffic {
    object: Object,
    frame: Vec<u8>,
    from: End,
}

impl Traffic {
    /// From one end of a link to a port of the other.
    pub(super) fn new(from: &End, to: &End, port: u16) -> Result<Traffic, Box<dyn Error>> {
        let mut object = ObjectBuilder::default().open_memory(OBJECT)?;
        set_interface(&mut object, from.ifindex())?;
        let flow = Flow::between(from, to, Family::V4, 4000, port);
        Ok(Traffic { object: object.load()?, frame: flow.udp(&[0; PAYLOAD]), from: from.clone() })
    }

    /// What one packet takes, by a time in which all of them arrived, which `arrived` counts. On a busy machine the receiver may
    /// be put off until its ring is full: such a time is of something else, and is taken again. `name` stands for the case in errors.
    pub(super) fn ns_per_packet(
        &self,
        packets: u32,
        name: &str,
        arrived: impl Fn() -> Result<u64, Box<dyn Error>>,
    ) -> Result<f64, Box<dyn Error>> {
        let mut now = arrived()?;
        for _ in 0..TRIES {
            let took = self.send(packets)?;
            let before = now;
            now = arrived()?;
            if now - before == u64::from(packets) {
                return Ok(took.as_nanos() as f64 / f64::from(packets));
            }
        }
        Err(format!("of {TRIES} times {packets} packets, {name} never got all").into())
    }

    /// Sends `count` packets and returns how long it took from the first to the last. The last few, up to [`BATCH`], are received
    /// after that.
    fn send(&self, count: u32) -> Result<Duration, Box<dyn Error>> {
        let program = self.object.progs().next().ok_or("traffic.bpf.o has no program")?;
        let fd = program.as_fd();
        self.set_run(Run { frames: count.into(), ..Run::default() })?;
        // the namespace in which the interface has its number
        self.from.netns().enter(|| run(fd, &self.frame, count)).map_err(|error| {
            format!("sending {count} frames by BPF_F_TEST_XDP_LIVE_FRAMES, which needs Linux 5.18: {error}")
        })?;
        let Run { frames, sent, started, ended } = self.run()?;
        match sent == frames {
            true => Ok(Duration::from_nanos(ended - started)),
            false => Err(format!("the kernel sent {sent} of {frames} frames").into()),
        }
    }

    fn set_run(&self, run: Run) -> Result<(), Box<dyn Error>> {
        let words = [run.frames, run.sent, run.started, run.ended].map(u64::to_ne_bytes);
        Ok(variables(&self.object)?.update(&[0; 4], words.as_flattened(), MapFlags::ANY)?)
    }

    fn run(&self) -> Result<Run, Box<dyn Error>> {
        let value = variables(&self.object)?.lookup(&[0; 4], MapFlags::ANY)?.unwrap_or_default();
        let words: Vec<u64> = value.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        match words[..] {
            [frames, sent, started, ended] => Ok(Run { frames, sent, started, ended }),
            _ => Err("traffic.bpf.o does not belong to this command".into()),
        }
    }
}

/// Sets the one constant of an object, the interface that its program sends to.
pub(super) fn set_interface(object: &mut OpenObject, interface: u32) -> Result<(), &'static str> {
    let mut maps = object.maps_mut();
    let mut constants =
        maps.find(|map| map.name().to_string_lossy().ends_with(".rodata")).ok_or("the object has no .rodata")?;
    let place = constants.initial_value_mut().and_then(|data| data.first_chunk_mut::<4>());
    *place.ok_or("the object has no variable `interface`")? = interface.to_ne_bytes();
    Ok(())
}

/// The map of an object's variables.
pub(super) fn variables(object: &Object) -> Result<libbpf_rs::Map<'_>, &'static str> {
    object.maps().find(|map| map.name().to_string_lossy().ends_with(".bss")).ok_or("the object has no .bss")
}

/// `run` in `traffic.bpf.c`.
#[derive(Clone, Copy, Default)]
struct Run {
    frames: u64,
    sent: u64,
    started: u64,
    ended: u64,
}

fn run(program: BorrowedFd<'_>, frame: &[u8], count: u32) -> io::Result<()> {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        repeat: count as i32,
        flags: libbpf_sys::BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size: BATCH,
        ..Default::default()
    };
    // SAFETY: the frame is readable for the length given, and with this flag the kernel writes nothing back.
    match unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut options) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}
