//! Loading the programs, attaching them, reading what they report.
//!
//! Everything is held by descriptors of this process: when it ends, however it ends, all of it is gone. The one thing that
//! stays after a SIGKILL is the names of the tracer's own keys in the registry, which the next tracer takes over.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use libbpf_rs::{
    MapCore, MapFlags, MapHandle, RingBuffer, RingBufferBuilder,
    btf::{Btf, types},
};
use packet_traits::{
    attach::{
        AttachError, Attachment, CgroupHook, Direction, NetfilterFamily, NetfilterHook, NetfilterOptions, Position,
        TcxOptions, XdpMode, cgroup, netfilter, tcx, tracing as tracepoint, xdp,
    },
    bind::{BindError, BoundObject, LoadedObject},
    core::{KeyName, KeyType, Merge},
    registry::{Description, KeySpec, Registry, RegistryError},
};

use crate::{
    config::{self, CAPTURE_MAX, Config, NAMESPACES_MAX},
    event::{EVENT_LEN, Event},
    filter::{self, Condition, FilterError},
    functions::Functions,
    keys::{ENTERED_KEY, ID_KEY, Keys, TC_ENTERED_KEY, TC_ID_KEY, TracedKey},
    namespace::{Interface, Namespace},
    path::{Outcome, Packet},
    point::Point,
    standby::{Change, Pace, Standby},
    xdp::{self as other_xdp, XdpCount},
};

static TRACE_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/trace.bpf.o"));
static ENTER_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/enter.bpf.o"));
static ASSIGN_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/assign.bpf.o"));

/// Size of the ring buffer, unless it is said: 16 MiB.
pub const RING_LEN: usize = 1 << 24;
/// Where the netfilter programs run: before defragmentation, and with it everything else (`NF_IP_PRI_CONNTRACK_DEFRAG`,
/// include/uapi/linux/netfilter_ipv4.h). If the number is taken, the next is tried.
const PRIORITY: i32 = -500;
const PRIORITIES: i32 = 16;
/// How often the programs are loaded anew if keys go meanwhile.
const LOAD_ATTEMPTS: u32 = 10;
/// How long the kernel may take to forget programs that were closed.
const UNLOAD: Duration = Duration::from_secs(2);

/// The program at a point that every packet passes that enters the stack.
const RECEIVE: &str = "trace_receive";
/// Place of the count of these, in words of `struct current_packet` of bpf/trace.bpf.c.
const CURRENT_RECEIVED: usize = 7;

/// The other programs on tracepoints. The kernel may lack one: then what it would show is not seen.
const TRACEPOINTS: [&str; 15] = [
    "trace_drop",
    "trace_consume",
    "trace_udp_fail",
    "trace_queue_full",
    "trace_copy",
    "trace_received",
    "trace_enqueue",
    "trace_icmp",
    "trace_route4",
    "trace_route6",
    "trace_xmit",
    "trace_queue",
    "trace_gro_result",
    "trace_gro",
    "trace_netif_rx",
];

/// Netfilter programs and their hooks.
const NETFILTER: [(&str, NetfilterHook); 5] = [
    ("trace_local_in", NetfilterHook::LocalIn),
    ("trace_forward", NetfilterHook::Forward),
    ("trace_local_out", NetfilterHook::LocalOut),
    ("trace_post_routing", NetfilterHook::PostRouting),
    ("trace_pre_routing", NetfilterHook::PreRouting),
];

/// What to trace, and how.
#[derive(Debug)]
pub struct Options {
    /// The namespaces whose interfaces and netfilter hooks get programs. If the ids are someone else's, only what is
    /// seen in these is reported.
    pub namespaces: Vec<Namespace>,
    /// The interfaces; empty: all that are up, but for loopback.
    pub devices: Vec<String>,
    /// How the tracer's own XDP program is attached.
    pub xdp_mode: XdpMode,
    /// The key that has packets' ids; none: the tracer assigns ids itself.
    pub id: Option<String>,
    /// The key of type timestamp that says when a packet entered, if the ids are someone else's.
    pub entered: Option<String>,
    /// All of which must hold.
    pub conditions: Vec<Condition>,
    /// Report drops only.
    pub only_drops: bool,
    /// Report what is older than that when it is seen.
    pub slower: Option<Duration>,
    /// Report all else as well, so that whole paths are known of the packets that [`wants`](Options::wants) chooses: those
    /// dropped, if `only_drops`, and those slow as a whole, if `slower`.
    pub whole_paths: bool,
    /// Report one packet in so many.
    pub sample: u32,
    /// Bytes of each packet that are reported, at most [`CAPTURE_MAX`].
    pub capture: usize,
    /// Whether the points behind the entry are taken away while nothing matches; then call [`Tracer::adapt`] regularly.
    pub standby: Standby,
    /// Size of the ring buffer: a power of two, in bytes.
    pub ring_len: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            namespaces: Vec::new(),
            devices: Vec::new(),
            xdp_mode: XdpMode::Auto,
            id: None,
            entered: None,
            conditions: Vec::new(),
            only_drops: false,
            slower: None,
            whole_paths: false,
            sample: 1,
            capture: 96,
            standby: Standby::Never,
            ring_len: RING_LEN,
        }
    }
}

impl Options {
    /// Whether a packet of which nothing more is expected is one that `only_drops` and `slower` ask for.
    pub fn wants(&self, packet: &Packet) -> bool {
        (!self.only_drops || packet.outcome == Outcome::Dropped)
            && self.slower.is_none_or(|slower| u128::from(packet.duration()) >= slower.as_nanos())
    }

    /// Whether an event, so many nanoseconds after its packet entered, is one that is reported without `whole_paths`.
    pub fn wants_event(&self, event: &Event<'_>, since_entered: u64) -> bool {
        (!self.only_drops || event.point() == Point::Drop)
            && self.slower.is_none_or(|slower| u128::from(since_entered) >= slower.as_nanos())
    }
}

/// Why tracing did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// A condition is wrong.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The registry cannot be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The programs were refused.
    #[error(transparent)]
    Bind(Box<BindError>),
    /// A program cannot be attached.
    #[error(transparent)]
    Attach(Box<AttachError>),
    /// A key that was named is not one of the registry.
    #[error("there is no key {key} in the registry; it has {keys}")]
    NoKey {
        /// What was named.
        key: String,
        /// The registry's keys.
        keys: String,
    },
    /// A key is of a type that does not fit.
    #[error("key {key} is of type {found}; {expected}")]
    KeyType {
        /// The key.
        key: String,
        /// Its type.
        found: KeyType,
        /// What it should be.
        expected: &'static str,
    },
    /// `slower` needs to know when packets entered.
    #[error(
        "cannot tell which packets are slow: no key says when a packet entered; name one of type timestamp by \
         `--entered KEY`, or leave `--id` out, and the tracer has its own"
    )]
    NoEntered,
    /// There is no interface to trace.
    #[error("cannot trace {what}: {why}")]
    NoInterface {
        /// What was asked for.
        what: String,
        /// Why there is none.
        why: String,
    },
    /// No interface has room for the tracer's XDP program.
    #[error(
        "packets get no id: {why}. If the program that is there assigns one, name its key by `--id KEY` ({keys}); else \
         detach it, or trace another interface by `--dev`"
    )]
    NoEntry {
        /// What stands in the way, of the first interface.
        why: String,
        /// Keys that could be ids.
        keys: String,
    },
    /// Something of the system failed.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// libbpf failed.
    #[error("cannot {action}: {source}")]
    Libbpf {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: libbpf_rs::Error,
    },
    /// An option is out of range.
    #[error("{0}")]
    Option(String),
}

impl TraceError {
    /// What the verifier wrote, if it refused a program.
    pub fn verifier_log(&self) -> Option<&str> {
        match self {
            TraceError::Bind(error) => error.verifier_log(),
            _ => None,
        }
    }

    /// Whether keys went between their registration and the loading of programs that use them, as they do when another
    /// tracer ends then.
    fn keys_changed(&self) -> bool {
        match self {
            TraceError::Bind(error) => matches!(**error, BindError::Changed { .. } | BindError::UnknownKey { .. }),
            TraceError::NoKey { key, .. } => [ID_KEY, ENTERED_KEY].contains(&&**key),
            _ => false,
        }
    }
}

impl From<BindError> for TraceError {
    fn from(error: BindError) -> TraceError {
        TraceError::Bind(Box::new(error))
    }
}

impl From<AttachError> for TraceError {
    fn from(error: AttachError) -> TraceError {
        TraceError::Attach(Box::new(error))
    }
}

fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> TraceError {
    let action = action.into();
    move |source| TraceError::System { action, source }
}

pub(crate) fn libbpf(action: &'static str) -> impl FnOnce(libbpf_rs::Error) -> TraceError {
    move |source| TraceError::Libbpf { action, source }
}

/// `POINTS_MAX` in bpf/trace.bpf.h.
const POINTS_MAX: usize = 32;

/// What was counted rather than reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that got an id of the tracer.
    pub assigned: u64,
    /// Events that did not fit into the ring buffer, by the number of their [`Point`].
    pub lost: [u64; POINTS_MAX],
    /// Packets that have no room for an id in front of them.
    pub no_room: u64,
    /// Packets that matched while the tracer stood by, and were not followed.
    pub too_early: u64,
    /// Datagrams whose delivery is not followed, because too many waited in their socket's queue.
    pub unfollowed: u64,
    /// What became of packets by XDP programs of others, where the kernel does not say which packets, traced or not.
    pub xdp: Vec<XdpCount>,
}

impl Counters {
    /// All events that were lost.
    pub fn lost_events(&self) -> u64 {
        self.lost.iter().sum()
    }
}

/// Tracing in progress. Dropping it ends it.
pub struct Tracer<'r> {
    // dropped in this order: who assigns ids first, the keys last
    assigning: Vec<Attachment>,
    attachments: RefCell<Vec<Attachment>>,
    /// The point that stays while the tracer stands by, and counts what is received.
    receive: RefCell<Option<Attachment>>,
    /// Where the points behind the entry are attached.
    places: (Vec<Namespace>, Vec<Place>),
    standby: Standby,
    armed: Cell<bool>,
    pace: RefCell<Pace>,
    /// `Counters::too_early` when the tracer was armed last.
    too_early: Cell<u64>,
    read: Cell<u64>,
    assign: Option<LoadedObject>,
    /// The entry behind other people's XDP programs; it counts in the map of `assign`.
    enter: Option<LoadedObject>,
    /// The interfaces that have such a program.
    occupied: Vec<PlaceId>,
    functions: Functions,
    trace: LoadedObject,
    events: MapHandle,
    keys: Keys,
    run: u64,
    /// So many events fit into the ring buffer.
    ring_events: usize,
    only_drops: bool,
    notes: RefCell<Vec<String>>,
    _own_keys: Option<OwnKeys<'r>>,
}

/// The programs in the kernel, before they are attached.
struct Loaded {
    keys: Keys,
    run: u64,
    trace: LoadedObject,
    functions: Functions,
    assign: Option<LoadedObject>,
    enter: Option<LoadedObject>,
    notes: Vec<String>,
}

impl Loaded {
    fn load(
        registry: &Registry,
        options: &Options,
        interfaces: &[Place],
        occupied: &[PlaceId],
        own_keys: Option<&OwnKeys<'_>>,
    ) -> Result<Loaded, TraceError> {
        let mut notes = Vec::new();
        own_keys.map_or(Ok(()), OwnKeys::register)?;
        let behind_xdp = own_keys.filter(|_| !occupied.is_empty()).is_some_and(|own_keys| {
            own_keys
                .register_behind_xdp()
                .inspect_err(|error| notes.push(format!("packets get no id behind other XDP programs: {error}")))
                .is_ok()
        });
        let keys = Keys::read(registry)?;
        let config = configure(registry, options, &keys, behind_xdp)?;

        let mut bound = BoundObject::from_bytes(TRACE_OBJECT, "the tracer's programs", registry)?;
        prepare(&mut bound, &config, options)?;
        let btf = Btf::from_vmlinux().map_err(libbpf("read the kernel's type information, /sys/kernel/btf/vmlinux"))?;
        leave_out_unknown(&mut bound, &btf, &mut notes);
        let trace = bound.load()?;

        let share = |bound: &mut BoundObject<'_>| {
            prepare(bound, &config, options)?;
            share_maps(bound, &trace, &["events", "before_xdp"])
        };
        let functions = Functions::load(registry, &share, &btf, interfaces, &config, &mut notes)?;

        let assign = if own_keys.is_some() {
            let mut bound = BoundObject::from_bytes(ASSIGN_OBJECT, "the tracer's XDP program", registry)?;
            share(&mut bound)?;
            Some(bound.load()?)
        } else {
            None
        };
        let enter = match &assign {
            Some(assign) if behind_xdp => {
                let mut bound = BoundObject::from_bytes(ENTER_OBJECT, "the tracer's TC program", registry)?;
                share(&mut bound)?;
                // both give out ids, each only once
                share_maps(&mut bound, assign, &[".data.counters"])?;
                Some(bound.load()?)
            }
            _ => None,
        };
        // the configuration has places that were read before the programs were bound
        if !keys.hold(registry)? {
            let object = "the tracer's programs".to_owned();
            return Err(BindError::Changed { object, registry: registry.name().to_string() }.into());
        }
        Ok(Loaded { keys, run: config.run, trace, functions, assign, enter, notes })
    }
}

impl<'r> Tracer<'r> {
    /// Starts tracing.
    ///
    /// # Errors
    /// See [`TraceError`]; then nothing is left attached.
    pub fn start(registry: &'r Registry, options: &Options) -> Result<Tracer<'r>, TraceError> {
        check(options)?;
        let interfaces = interfaces(options)?;
        let own_keys = options.id.is_none().then(|| OwnKeys::new(registry));
        let mut occupied = if own_keys.is_some() { occupied(&interfaces)? } else { Vec::new() };
        let mut attempts = LOAD_ATTEMPTS;
        let Loaded { keys, run, trace, functions, assign, enter, notes } = loop {
            attempts -= 1;
            match Loaded::load(registry, options, &interfaces, &occupied, own_keys.as_ref()) {
                Err(error) if attempts > 0 && error.keys_changed() => tracing::debug!("once more: {error}"),
                loaded => break loaded?,
            }
        };
        if enter.is_none() {
            occupied.clear();
        }
        let events = handle(&trace, "events")?;
        let only_drops = options.only_drops && !options.whole_paths;
        let standby = match options.standby {
            // what sees drops only is cheap
            _ if only_drops => Standby::Never,
            // without conditions everything matches
            Standby::Auto if options.conditions.is_empty() => Standby::Never,
            standby => standby,
        };
        let mut tracer = Tracer {
            assigning: Vec::new(),
            attachments: RefCell::default(),
            receive: RefCell::default(),
            places: (options.namespaces.clone(), interfaces),
            standby,
            armed: Cell::new(false),
            pace: RefCell::new(Pace::new(Instant::now())),
            too_early: Cell::new(0),
            read: Cell::new(0),
            assign,
            enter,
            occupied,
            functions,
            trace,
            events,
            keys,
            run,
            ring_events: options.ring_len / EVENT_LEN + 1,
            only_drops,
            notes: RefCell::new(notes),
            _own_keys: own_keys,
        };
        if tracer.standby == Standby::FromStart {
            tracer.watch()?;
        } else {
            tracer.arm()?;
        }
        // the entry last: what has an id is then seen at all points
        tracer.attach_entry(options)?;
        Ok(tracer)
    }

    /// Attaches the points behind the entry, if they are not, and has packets followed from then on. Takes some tens of
    /// milliseconds.
    ///
    /// # Errors
    /// A program cannot be attached.
    pub fn arm(&self) -> Result<(), TraceError> {
        if self.armed.get() {
            return Ok(());
        }
        // what waited when the points were taken away is long gone
        let waiting = handle(&self.trace, "waiting")?;
        for key in waiting.keys() {
            // the kernel may have removed it meanwhile
            let _ = waiting.delete(&key);
        }
        self.attach()?;
        self.set_armed(true)?;
        self.too_early.set(self.counters()?.too_early);
        self.pace.borrow_mut().restart(Instant::now());
        Ok(())
    }

    /// Takes the points behind the entry away until a packet matches.
    fn stand_by(&self) -> Result<(), TraceError> {
        self.watch()?;
        self.set_armed(false)?;
        self.attachments.borrow_mut().clear();
        if self.assign.is_some() {
            *self.receive.borrow_mut() = None;
        }
        Ok(())
    }

    /// Sees to it that a packet that matches is noticed while the tracer stands by.
    fn watch(&self) -> Result<(), TraceError> {
        // the tracer's own XDP program does that itself
        if self.assign.is_none() && self.receive.borrow().is_none() {
            *self.receive.borrow_mut() = self.attach_tracepoint(RECEIVE)?;
        }
        Ok(())
    }

    fn set_armed(&self, armed: bool) -> Result<(), TraceError> {
        for object in self.objects().chain(&self.enter) {
            switch(object, ".data.armed", armed)?;
        }
        self.armed.set(armed);
        Ok(())
    }

    /// All objects that have counters of their own.
    fn objects(&self) -> impl Iterator<Item = &LoadedObject> {
        [Some(&self.trace), self.assign.as_ref()].into_iter().flatten().chain(self.functions.objects())
    }

    /// Stands by if nothing matches, and attaches all points again when a packet does: see [`Standby`]. To be called
    /// every few milliseconds; returns what has changed.
    ///
    /// # Errors
    /// As [`arm`](Tracer::arm), and if the counters cannot be read.
    pub fn adapt(&self) -> Result<Option<Change>, TraceError> {
        if self.standby == Standby::Never {
            return Ok(None);
        }
        if !self.armed.get() {
            if self.counters()?.too_early == self.too_early.get() {
                return Ok(None);
            }
            self.arm()?;
            return Ok(Some(Change::Armed));
        }
        let now = Instant::now();
        if self.standby != Standby::Auto || !self.pace.borrow().due(now) {
            return Ok(None);
        }
        let matched = if self.assign.is_some() { self.counters()?.assigned } else { self.read.get() };
        if !self.pace.borrow_mut().look(now, self.received()?, matched) {
            return Ok(None);
        }
        self.stand_by()?;
        Ok(Some(Change::StoodBy))
    }

    /// Whether the points behind the entry are in place.
    pub fn is_armed(&self) -> bool {
        self.armed.get()
    }

    /// Packets that the host received, as far as the programs were attached.
    fn received(&self) -> Result<u64, TraceError> {
        let map = handle(&self.trace, "current")?;
        let values = map.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).map_err(libbpf("count packets"))?;
        let count = |value: &Vec<u8>| value.as_chunks().0.get(CURRENT_RECEIVED).copied().map_or(0, u64::from_ne_bytes);
        Ok(values.iter().flatten().map(count).sum())
    }

    fn attach_tracepoint(&self, name: &str) -> Result<Option<Attachment>, TraceError> {
        let program = self.trace.program(name).filter(libbpf_rs::ProgramImpl::autoload);
        Ok(program.map(|program| tracepoint::attach(program.as_fd())).transpose()?)
    }

    fn attach(&self) -> Result<(), TraceError> {
        let (namespaces, interfaces) = &self.places;
        let mut attachments = self.attachments.borrow_mut();
        let exact = self.functions.attach(&mut attachments, &mut self.notes.borrow_mut());
        if exact {
            switch(&self.trace, ".data.delivery", true)?;
        }
        for name in TRACEPOINTS.into_iter().filter(|name| self.needs(name) && !(exact && *name == "trace_received")) {
            attachments.extend(self.attach_tracepoint(name)?);
        }
        let mut receive = self.receive.borrow_mut();
        if receive.is_none() && self.needs(RECEIVE) {
            *receive = self.attach_tracepoint(RECEIVE)?;
        }
        match cgroup::cgroup_root() {
            _ if !self.needs("trace_cgroup") => {}
            Ok(root) => {
                let program = fd_of(&self.trace, "trace_cgroup")?;
                attachments.push(cgroup::attach_path(program.as_fd(), root, CgroupHook::Ingress)?);
            }
            Err(error) => self.note(format!("{error}: sockets' queues and delivery of datagrams are not seen")),
        }
        for namespace in namespaces.iter().filter(|_| !self.only_drops) {
            self.attach_netfilter(namespace, &mut attachments)?;
        }
        for place @ (namespace, interface) in interfaces {
            for (name, direction) in [("trace_tc_egress", Direction::Egress), ("trace_tc_ingress", Direction::Ingress)]
            {
                let entry = direction == Direction::Ingress && self.occupied.contains(&place_id(place));
                if entry || !self.needs(name) {
                    continue;
                }
                let program = fd_of(&self.trace, name)?;
                let options = TcxOptions::new(direction).position(Position::First);
                let attached = namespace.enter(|| tcx::attach(program.as_fd(), interface.index, &options));
                attachments.push(attached.map_err(system("enter a network namespace"))??);
            }
        }
        Ok(())
    }

    /// Whether this program is of use. For drops only, few are: those that see drops, and those that let an id survive a
    /// second XDP program of the tracer.
    fn needs(&self, program: &str) -> bool {
        !self.only_drops
            || match program {
                "trace_drop" => true,
                RECEIVE | "trace_tc_ingress" => self.assign.is_some(),
                _ => false,
            }
    }

    fn note(&self, note: String) {
        self.notes.borrow_mut().push(note);
    }

    fn attach_netfilter(&self, namespace: &Namespace, attachments: &mut Vec<Attachment>) -> Result<(), TraceError> {
        for (name, hook) in NETFILTER {
            let program = fd_of(&self.trace, name)?;
            for family in [NetfilterFamily::Ipv4, NetfilterFamily::Ipv6] {
                let attach = || {
                    let mut attached = None;
                    for priority in PRIORITY..PRIORITY + PRIORITIES {
                        let options = NetfilterOptions::new(family, hook).priority(priority);
                        attached = Some(netfilter::attach(program.as_fd(), &options));
                        if !matches!(attached, Some(Err(AttachError::Busy { .. }))) {
                            break;
                        }
                    }
                    attached
                };
                match namespace.enter(attach).map_err(system("enter a network namespace"))? {
                    Some(Ok(attachment)) => attachments.push(attachment),
                    Some(Err(AttachError::Refused { errno: libc::EAFNOSUPPORT, .. })) | None => {
                        self.note(format!("this kernel has no netfilter for {family}: {hook} is not seen"));
                    }
                    Some(Err(error)) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn attach_entry(&mut self, options: &Options) -> Result<(), TraceError> {
        let Some(assign) = &self.assign else { return Ok(()) };
        let program = fd_of(assign, "trace_xdp")?;
        let mut refused = Vec::new();
        for place @ (namespace, interface) in &self.places.1 {
            if self.occupied.contains(&place_id(place)) {
                self.assigning.push(self.attach_behind_xdp(place)?);
                continue;
            }
            let attached = namespace.enter(|| xdp::attach(program.as_fd(), interface.index, options.xdp_mode));
            match attached.map_err(system("enter a network namespace"))? {
                Ok((attachment, mode)) => {
                    tracing::debug!("assigning ids at {} in {mode} mode", interface.name);
                    self.assigning.push(attachment);
                }
                Err(error @ (AttachError::Busy { .. } | AttachError::Refused { .. })) => {
                    refused.push(error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
        }
        if self.assigning.is_empty() {
            return Err(TraceError::NoEntry { why: refused.swap_remove(0), keys: id_candidates(&self.keys) });
        }
        refused.into_iter().for_each(|why| self.note(format!("packets that enter there get no id: {why}")));
        Ok(())
    }

    /// Has packets get their ids at TC ingress.
    fn attach_behind_xdp(&self, (namespace, interface): &Place) -> Result<Attachment, TraceError> {
        let enter = self.enter.as_ref().ok_or_else(|| TraceError::Option("the tracer has no TC program".to_owned()))?;
        let program = fd_of(enter, "trace_tc_enter")?;
        let options = TcxOptions::new(Direction::Ingress).position(Position::First);
        let attached = namespace.enter(|| {
            let theirs = xdp::attached(interface.index).map(|(id, _)| other_xdp::program(id));
            (theirs, tcx::attach(program.as_fd(), interface.index, &options))
        });
        let (theirs, attached) = attached.map_err(system("enter a network namespace"))?;
        let theirs = theirs.map_or_else(String::new, |program| format!(" {program}"));
        self.note(format!(
            "{} has the XDP program{theirs}: packets get their ids behind it, at TC ingress, if it gave them traits",
            interface.name
        ));
        Ok(attached?)
    }

    /// What people should know of this tracing: what is not seen, and why.
    pub fn notes(&self) -> Vec<String> {
        self.notes.borrow().clone()
    }

    /// The keys that events are decoded by.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The points that this kernel has.
    pub fn points(&self) -> impl Iterator<Item = Point> {
        Point::ALL.into_iter().filter(|point| !point.is_of_function() || self.functions.has(*point))
    }

    /// Whether the tracer assigns the ids.
    pub fn assigns_ids(&self) -> bool {
        self.assign.is_some()
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// The kernel does not let the counters be read.
    pub fn counters(&self) -> Result<Counters, TraceError> {
        let mut sum = Counters::default();
        for object in self.objects() {
            let map = handle(object, ".data.counters")?;
            let value = map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).map_err(libbpf("read the tracer's counters"))?;
            let value = value.unwrap_or_default();
            let (words, _) = value.as_chunks();
            let mut words = words.iter().map(|word| u64::from_ne_bytes(*word));
            let mut next = || words.next().unwrap_or(0);
            sum.assigned += next();
            next();
            for lost in &mut sum.lost {
                *lost += next();
            }
            sum.no_room += next();
            next();
            sum.too_early += next();
            sum.unfollowed += next();
        }
        sum.xdp = self.functions.xdp_counts()?;
        Ok(sum)
    }

    /// Ends the assigning of ids. What is under way is still seen.
    pub fn stop_assigning(&mut self) {
        self.assigning.clear();
    }

    /// Reads events, for `sink`.
    ///
    /// # Errors
    /// The ring buffer cannot be mapped.
    pub fn reader<'a>(&'a self, mut sink: impl FnMut(Event<'_>) + 'a) -> Result<Reader<'a>, TraceError> {
        let mut builder = RingBufferBuilder::new();
        builder
            .add(&self.events, move |raw| {
                if let Some(event) = Event::new(raw, &self.keys, self.run) {
                    self.read.set(self.read.get() + 1);
                    sink(event);
                }
                0
            })
            .map_err(libbpf("map the ring buffer"))?;
        let ring = builder.build().map_err(libbpf("map the ring buffer"))?;
        Ok(Reader { ring, at_once: self.ring_events })
    }
}

/// The reading end of the ring buffer.
pub struct Reader<'a> {
    ring: RingBuffer<'a>,
    at_once: usize,
}

impl Reader<'_> {
    /// Takes everything that was reported so far, and returns how much that was. It comes back also if events are reported
    /// faster than `sink` takes them: no more than a full ring buffer is taken at a time.
    ///
    /// The programs wake nobody, which would cost them more than the rest of their work: read again after a few
    /// milliseconds.
    ///
    /// # Errors
    /// libbpf failed.
    pub fn read(&self) -> Result<usize, TraceError> {
        let count = self.ring.consume_raw_n(self.at_once);
        usize::try_from(count).map_err(|_| TraceError::System {
            action: "read events".to_owned(),
            source: io::Error::from_raw_os_error(-count),
        })
    }
}

/// An interface, in its namespace.
type Place = (Namespace, Interface);
/// The namespace's inode number, the interface's index.
type PlaceId = (u32, u32);

fn place_id((namespace, interface): &Place) -> PlaceId {
    (namespace.inode(), interface.index)
}

/// The tracer's own keys. Dropping it removes them, unless another tracer uses them: one whose programs are loaded. One that
/// is about to load its programs registers them again.
struct OwnKeys<'r> {
    registry: &'r Registry,
    names: RefCell<Vec<&'static str>>,
}

impl<'r> OwnKeys<'r> {
    fn new(registry: &'r Registry) -> OwnKeys<'r> {
        OwnKeys { registry, names: RefCell::default() }
    }

    /// Registers those that XDP sets, if they are not.
    fn register(&self) -> Result<(), TraceError> {
        let keep_first = Merge::KeepFirst;
        self.add(ID_KEY, KeyType::U64, keep_first, "traits trace: tells packets from each other")?;
        self.add(ENTERED_KEY, KeyType::Timestamp, keep_first, "traits trace: when XDP saw the packet")
    }

    /// Registers those that TC sets, behind other people's XDP programs.
    fn register_behind_xdp(&self) -> Result<(), TraceError> {
        self.add(TC_ID_KEY, KeyType::U64, Merge::Block, "traits trace: tells packets from each other")?;
        self.add(TC_ENTERED_KEY, KeyType::Timestamp, Merge::Block, "traits trace: when TC saw the packet")
    }

    fn add(
        &self,
        name: &'static str,
        key_type: KeyType,
        merge: Merge,
        description: &'static str,
    ) -> Result<(), TraceError> {
        let description = Description::new(description).unwrap_or_default();
        self.registry.register(&KeySpec::new(key_name(name)?, key_type).merge(merge).description(description))?;
        let mut names = self.names.borrow_mut();
        if !names.contains(&name) {
            names.push(name);
        }
        Ok(())
    }
}

impl Drop for OwnKeys<'_> {
    fn drop(&mut self) {
        let deadline = Instant::now() + UNLOAD;
        for &name in self.names.borrow().iter() {
            let Ok(name) = key_name(name) else { continue };
            loop {
                match self.registry.unregister(&name, false) {
                    // closed programs go when all CPUs have left them
                    Err(RegistryError::KeyInUse { .. }) if Instant::now() < deadline => {
                        thread::sleep(Duration::from_millis(10));
                    }
                    Err(error) => {
                        tracing::debug!("key {name} stays: {error}");
                        break;
                    }
                    Ok(_) => break,
                }
            }
        }
    }
}

fn key_name(name: &str) -> Result<KeyName, TraceError> {
    KeyName::new(name).map_err(|error| TraceError::Option(format!("`{name}` is no key's name: {error}")))
}

fn check(options: &Options) -> Result<(), TraceError> {
    let wrong = if options.capture > CAPTURE_MAX {
        format!("{} bytes of each packet: at most {CAPTURE_MAX} can be reported", options.capture)
    } else if options.sample == 0 {
        "one packet in 0: give 1 for every packet".to_owned()
    } else if !options.ring_len.is_power_of_two() || !(1 << 12..=1 << 30).contains(&options.ring_len) {
        format!("a ring buffer of {} bytes: its size is a power of two from 4096 to 1073741824", options.ring_len)
    } else if options.namespaces.is_empty() || options.namespaces.len() > NAMESPACES_MAX {
        format!("{} namespaces: from 1 to {NAMESPACES_MAX} can be traced at once", options.namespaces.len())
    } else {
        return Ok(());
    };
    Err(TraceError::Option(wrong))
}

/// The interfaces that the options mean.
fn interfaces(options: &Options) -> Result<Vec<Place>, TraceError> {
    let mut found = Vec::new();
    for namespace in &options.namespaces {
        for interface in namespace.interfaces().map_err(system("list interfaces"))? {
            let wanted = match &options.devices[..] {
                [] => interface.up && !interface.loopback,
                devices => devices.contains(&interface.name),
            };
            if wanted {
                found.push((namespace.clone(), interface));
            }
        }
    }
    let missing = options.devices.iter().find(|device| !found.iter().any(|(_, found)| found.name == **device));
    if let Some(device) = missing {
        return Err(TraceError::NoInterface {
            what: format!("interface {device}"),
            why: "there is none of that name in the namespaces that are traced; `ip link` lists them, and `--netns` \
                  names other namespaces"
                .to_owned(),
        });
    }
    if found.is_empty() {
        return Err(TraceError::NoInterface {
            what: "this network namespace".to_owned(),
            why: "it has no interface that is up, but for loopback; name one by `--dev`, or another namespace by \
                  `--netns`"
                .to_owned(),
        });
    }
    Ok(found)
}

/// Those that have an XDP program, of someone else.
fn occupied(places: &[Place]) -> Result<Vec<PlaceId>, TraceError> {
    let mut found = Vec::new();
    for place @ (namespace, interface) in places {
        let theirs = namespace.enter(|| xdp::attached(interface.index));
        if theirs.map_err(system("enter a network namespace"))?.is_some() {
            found.push(place_id(place));
        }
    }
    Ok(found)
}

fn id_candidates(keys: &Keys) -> String {
    let fits = |key: &&TracedKey| id_type_fits(key.entry.key.key_type()) && !key.name().starts_with("trace.");
    let names: Vec<&str> = keys.iter().filter(fits).map(TracedKey::name).collect();
    if names.is_empty() { "the registry has none that could be".to_owned() } else { format!("of {}", names.join(", ")) }
}

fn id_type_fits(key_type: KeyType) -> bool {
    matches!(key_type, KeyType::U32 | KeyType::U64)
}

fn configure(registry: &Registry, options: &Options, keys: &Keys, behind_xdp: bool) -> Result<Config, TraceError> {
    let find =
        |name: &str| keys.find(name).ok_or_else(|| TraceError::NoKey { key: name.to_owned(), keys: keys.names() });
    let place = |key: &TracedKey| config::Place {
        bit: key.entry.key.bit(),
        dist: key.entry.key.slot().distance() as u32,
        size: key.entry.key.key_type().size() as u8,
        merge: key.entry.merge as u8,
    };
    let id = find(options.id.as_deref().unwrap_or(ID_KEY))?;
    if !id_type_fits(id.entry.key.key_type()) {
        return Err(TraceError::KeyType {
            key: id.name().to_owned(),
            found: id.entry.key.key_type(),
            expected: "packets' ids are of type u64 or u32",
        });
    }
    let entered = match (&options.entered, &options.id) {
        (Some(name), _) => Some(find(name)?),
        (None, None) => Some(find(ENTERED_KEY)?),
        (None, Some(_)) => None,
    };
    if let Some(key) = entered.filter(|key| key.entry.key.key_type() != KeyType::Timestamp) {
        return Err(TraceError::KeyType {
            key: key.name().to_owned(),
            found: key.entry.key.key_type(),
            expected: "when a packet entered is of type timestamp",
        });
    }
    if options.slower.is_some() && entered.is_none() {
        return Err(TraceError::NoEntered);
    }
    let conditions = filter::resolve(&options.conditions, keys)?;
    let run = if options.id.is_none() { random_run()? } else { 0 };
    let lens = [EVENT_LEN, keys.flow_slots, keys.packet_slots, options.capture];
    tracing::debug!("tracing with the keys of registry '{}'", registry.name());
    Ok(Config {
        id: place(id),
        entered: entered.map(place).unwrap_or_default(),
        tc_id: if behind_xdp { place(find(TC_ID_KEY)?) } else { config::Place::default() },
        tc_entered: if behind_xdp { place(find(TC_ENTERED_KEY)?) } else { config::Place::default() },
        run,
        slower_ns: options.slower.filter(|_| !options.whole_paths).map_or(0, |time| time.as_nanos() as u64),
        sample: options.sample,
        event_len: lens.iter().sum::<usize>().next_multiple_of(8) as u32,
        flow_slots: keys.flow_slots as u32,
        packet_slots: keys.packet_slots as u32,
        capture: options.capture as u32,
        netns: if options.id.is_some() {
            options.namespaces.iter().map(Namespace::inode).collect()
        } else {
            Vec::new()
        },
        only_drops: options.only_drops && !options.whole_paths,
        conditions,
    })
}

/// The high bits of this tracer's ids, by which it tells them from those of others that run at the same time. Not 0.
fn random_run() -> Result<u64, TraceError> {
    let mut bytes = [0; 2];
    loop {
        // SAFETY: `bytes` is valid for writing its length.
        if unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } != bytes.len() as isize {
            return Err(system("get a random number")(io::Error::last_os_error()));
        }
        match u16::from_ne_bytes(bytes) {
            0 => {}
            run => return Ok(u64::from(run)),
        }
    }
}

/// Sets what must be set before an object is loaded.
fn prepare(bound: &mut BoundObject<'_>, config: &Config, options: &Options) -> Result<(), TraceError> {
    let object = bound.open_object_mut();
    let changed = || TraceError::Option("the tracer's programs are not of this version".to_owned());
    config.write(object).ok_or_else(changed)?;
    let mut maps = object.maps_mut();
    let mut events = maps.find(|map| map.name() == "events").ok_or_else(changed)?;
    events.set_max_entries(options.ring_len as u32).map_err(libbpf("set the ring buffer's size"))
}

/// Has programs not loaded whose tracepoint or function this kernel does not have.
pub(crate) fn leave_out_unknown(bound: &mut BoundObject<'_>, btf: &Btf<'_>, notes: &mut Vec<String>) {
    for mut program in bound.open_object_mut().progs_mut() {
        let section = program.section().to_string_lossy().into_owned();
        let (kind, name, known) = match section.split_once('/') {
            Some(("tp_btf", name)) => {
                ("tracepoint", name, btf.type_by_name::<types::Typedef<'_>>(&format!("btf_trace_{name}")).is_some())
            }
            Some(("fentry", name)) => ("function", name, btf.type_by_name::<types::Func<'_>>(name).is_some()),
            _ => continue,
        };
        if !known {
            notes.push(format!("this kernel has no {kind} {name}: what it would show is not seen"));
            program.set_autoload(false);
        }
    }
}

/// Has an object use these maps of another, before it is loaded.
fn share_maps(bound: &mut BoundObject<'_>, with: &LoadedObject, names: &[&str]) -> Result<(), TraceError> {
    for mut map in bound.open_object_mut().maps_mut() {
        if let Some(name) = map.name().to_str().filter(|name| names.contains(name)) {
            let shared = handle(with, name)?;
            map.reuse_fd(shared.as_fd()).map_err(libbpf("share maps between the tracer's programs"))?;
        }
    }
    Ok(())
}

fn fd_of(object: &LoadedObject, name: &str) -> Result<OwnedFd, TraceError> {
    let program =
        object.program(name).ok_or_else(|| TraceError::Option(format!("the tracer has no program {name}")))?;
    program.as_fd().try_clone_to_owned().map_err(system("keep a program open"))
}

/// Sets a switch of an object's programs: a section with one word.
fn switch(object: &LoadedObject, section: &str, on: bool) -> Result<(), TraceError> {
    let (key, value) = (0u32.to_ne_bytes(), u64::from(on).to_ne_bytes());
    handle(object, section)?.update(&key, &value, MapFlags::ANY).map_err(libbpf("switch the tracer's programs"))
}

fn handle(object: &LoadedObject, name: &str) -> Result<MapHandle, TraceError> {
    let map = object.map(name).ok_or_else(|| TraceError::Option(format!("the tracer has no map {name}")))?;
    MapHandle::try_from(&map).map_err(libbpf("keep a map open"))
}
