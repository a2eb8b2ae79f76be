//! Receives the frames of one queue of an interface by AF_XDP and prints which traits each has.
//!
//! ```text
//! sudo traits registry create
//! sudo traits keys add tenant u32
//! sudo traits keys add flow_id u64
//! sudo traits keys add rx_ts timestamp --merge keep-first
//! clang -O2 -g -target bpf -Iinclude -I/usr/include/$(uname -m)-linux-gnu -c examples/bpf/af_xdp_redirect.bpf.c
//! cargo build --example af_xdp
//! sudo target/debug/examples/af_xdp af_xdp_redirect.bpf.o eth0
//! ```
//!
//! The object is one with an XDP program `redirect` that hands frames to the XSKMAP `sockets`. A line for each frame:
//!
//! ```text
//! receiving on eth0 queue 0, XDP mode native
//! 106 bytes: tenant=1 flow_id=10999411350592 rx_ts=8123.000345678s
//! 106 bytes: none
//! ```

use std::{
    error::Error,
    ffi::CString,
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use libbpf_rs::{MapCore, MapFlags};
use packet_traits::{
    Key, TraitsMut, TraitsView,
    attach::{self, XdpMode},
    bind::BoundObject,
    bpffs,
    registry::{Registry, RegistryName},
};
use xdp::{
    RingConfigBuilder, Rings, Umem,
    nic::NicIndex,
    slab::{HeapSlab, Slab},
    socket::{PollTimeout, SocketError, XdpSocket, XdpSocketBuilder},
    umem::UmemCfgBuilder,
};

/// Frames that the kernel may fill before they are read: a power of 2.
const FRAMES: u32 = 64;

/// How long to wait for a queue whose socket has just been closed: the kernel gives it back a moment later
/// (`xp_put_pool` in net/xdp/xsk_buff_pool.c).
const GIVEN_BACK: Duration = Duration::from_secs(2);

/// How often to look whether to stop.
const WAIT: PollTimeout = PollTimeout::new(Some(Duration::from_millis(100)));

/// Prints the traits of the frames that an XDP program hands to an AF_XDP socket.
#[derive(Parser)]
struct Args {
    /// Registry that has the keys
    #[arg(long, value_name = "NAME", default_value_t)]
    registry: RegistryName,
    /// BPF file system that holds the registry
    #[arg(long, value_name = "PATH", default_value = bpffs::DEFAULT_ROOT)]
    bpffs: PathBuf,
    /// Receive queue of the interface
    #[arg(long, value_name = "N", default_value_t = 0)]
    queue: u32,
    /// Stop after N frames
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
    frames: u64,
    /// BPF object file, as the compiler wrote it
    object: PathBuf,
    /// Interface to receive on
    interface: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let Err(error) = run(&args) else { return ExitCode::SUCCESS };
    eprintln!("cannot receive on {} queue {}: {error}", args.interface, args.queue);
    ExitCode::FAILURE
}

/// Prints frames until there were as many as asked for, or until SIGINT or SIGTERM.
fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;

    // What it takes to read traits: how long the area is, what its regions end in, and where the keys are.
    let registry = Registry::options().name(args.registry.clone()).bpffs(&args.bpffs).open()?;
    let (layout, nonces) = (registry.layout(), registry.nonces());
    let keys: Vec<Key> = registry.list()?.into_iter().map(|entry| entry.key).collect();

    let object = BoundObject::open(&args.object, &registry)?.load()?;
    let program = object.program("redirect").ok_or("the object has no program `redirect`")?;
    let sockets = object.map("sockets").ok_or("the object has no map `sockets`")?;

    let name = CString::new(args.interface.as_str())?;
    let interface = NicIndex::lookup_by_name(&name)?.ok_or("there is no such interface; `ip link` lists them")?;
    let mut socket = AfXdp::bind(interface, args.queue, layout.area_len())?;
    sockets.update(&args.queue.to_ne_bytes(), &socket.socket.as_raw_fd().to_ne_bytes(), MapFlags::ANY)?;
    // The program leaves the interface when this is dropped.
    let (_attachment, mode) = attach::xdp::attach(program.as_fd(), interface.0, XdpMode::Auto)?;
    println!("receiving on {} queue {}, XDP mode {mode}", args.interface, args.queue);

    let mut received = 0;
    while received < args.frames && !stop.load(Ordering::Relaxed) {
        let came = socket.recv(|in_front, frame| {
            // An error says that there is no area: the program has set nothing, or there was no room to.
            let view = TraitsView::open(in_front, &layout, &nonces).ok();
            println!("{} bytes: {}", frame.len(), words(view, &keys));
            // The kernel does not clear what it fills again, nor say whether the packet in it has metadata: without
            // this, a packet that has none would show this one's traits.
            TraitsMut::erase(in_front, &layout);
        })?;
        received += u64::from(came);
    }
    Ok(())
}

/// `tenant=1 flow_id=10999411350592`.
fn words(view: Option<TraitsView<'_>>, keys: &[Key]) -> String {
    let values = view.into_iter().flat_map(|view| view.iter(keys));
    let words: Vec<String> = values.map(|(key, value)| format!("{}={value}", key.name())).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(" ") }
}

/// A socket that receives.
struct AfXdp {
    // Dropped in this order: the memory last, since the kernel fills it and the others hold places in it.
    socket: XdpSocket,
    rings: Rings,
    received: HeapSlab,
    umem: Umem,
    headroom: usize,
}

impl AfXdp {
    /// A socket on a queue of an interface, with `headroom` bytes in front of each frame. The kernel copies the metadata
    /// to where it ends at the frame (`__xsk_rcv` in net/xdp/xsk.c).
    fn bind(interface: NicIndex, queue: u32, headroom: usize) -> Result<AfXdp, Box<dyn Error>> {
        let deadline = Instant::now() + GIVEN_BACK;
        loop {
            let error = match AfXdp::try_bind(interface, queue, headroom) {
                Ok(bound) => return Ok(bound),
                Err(error) => *error.downcast::<SocketError>()?,
            };
            match &error {
                SocketError::Bind(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                }
                _ => {
                    return Err(
                        format!("AF_XDP refuses it: {error}; `ethtool -l` shows how many queues there are").into()
                    );
                }
            }
        }
    }

    fn try_bind(interface: NicIndex, queue: u32, headroom: usize) -> Result<AfXdp, Box<dyn Error>> {
        let memory =
            UmemCfgBuilder { head_room: headroom as u32, frame_count: FRAMES, ..UmemCfgBuilder::default() }.build()?;
        let mut umem = Umem::map(memory)?;
        let counts = RingConfigBuilder { rx_count: FRAMES, tx_count: 0, fill_count: FRAMES, completion_count: FRAMES };
        let mut builder = XdpSocketBuilder::new()?;
        let (mut rings, flags) = builder.build_rings(&umem, counts.build()?)?;
        let socket = builder.bind(interface, queue, flags)?;
        // SAFETY: the memory outlives the socket: see the order of the fields.
        unsafe { rings.fill_ring.enqueue(&mut umem, FRAMES as usize) };
        Ok(AfXdp { socket, rings, received: HeapSlab::with_capacity(FRAMES as usize), umem, headroom })
    }

    /// Shows `read` the next frame, as the bytes in front of it and its own, and lets the kernel fill it again. Whether
    /// one came in a while.
    fn recv(&mut self, read: impl FnOnce(&mut [u8], &[u8])) -> Result<bool, Box<dyn Error>> {
        if self.received.is_empty()
            && self.socket.poll_read(WAIT)?
            && let Some(ring) = &mut self.rings.rx_ring
        {
            // SAFETY: the packets are dropped before the memory: see the order of the fields.
            unsafe { ring.recv(&self.umem, &mut self.received) };
        }
        let Some(mut packet) = self.received.pop_back() else { return Ok(false) };
        packet.adjust_head(-(self.headroom as i32))?;
        let (in_front, frame) = packet.split_at_mut(self.headroom);
        read(in_front, frame);
        self.umem.free_packet(packet);
        // SAFETY: as in `bind`.
        unsafe { self.rings.fill_ring.enqueue(&mut self.umem, 1) };
        Ok(true)
    }
}
