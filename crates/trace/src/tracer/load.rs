//! Loading the programs, as the options and the registry's keys have them.

use std::os::fd::AsFd;

use libbpf_rs::btf::{Btf, types};
use packet_traits::{
    KeyType, Merge,
    bind::{BindError, BoundObject, LoadedObject},
    registry::Registry,
};
use rustix::rand::{GetRandomFlags, getrandom};

use super::{
    options::Options,
    own_keys::{self, OwnKeys},
    programs::Programs,
    reader::EventSource,
    targets::Targets,
};
use crate::{
    config::{self, Config},
    devices,
    error::{TraceError, libbpf, system},
    event::EVENT_LEN,
    filter,
    functions::Functions,
    keys::{ENTERED_KEY, ID_KEY, Keys, OWN_KEYS, TC_ENTERED_KEY, TC_ID_KEY, TracedKey},
    namespace::Namespace,
    object::{handle, leave_out_unknown},
    symbols::Symbols,
};

pub(crate) static TRACE_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/trace.bpf.o"));
static ENTER_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/enter.bpf.o"));
static ASSIGN_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/assign.bpf.o"));
/// The same with the tracer's keys in the flow region.
static ASSIGN_FLOW_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/assign_flow.bpf.o"));

/// The function by which TC writes metadata without a loss for clones of the packet (6.18).
const TC_WRITE: &str = "bpf_dynptr_from_skb_meta";
/// The tracepoint at a datagram that its socket does not take; it shows the packet from 6.11 on.
const UDP_FAIL: &str = "udp_fail_queue_rcv_skb";
/// A function that came with the skb beside veth's XDP buffers (6.3), whose type may be a module's.
const VETH_SKB: &str = "bpf_xdp_metadata_rx_timestamp";
/// The function that ends TCP connections.
const TCP_END: &str = "tcp_rcv_state_process";

/// Loads the programs. Returns them, where they put events, and notes of what this kernel lacks.
pub(super) fn load(
    registry: &Registry,
    options: &Options,
    targets: &Targets,
    mut own_keys: Option<&mut OwnKeys<'_>>,
) -> Result<(Programs, EventSource, Vec<String>), TraceError> {
    let mut notes = Vec::new();
    if let Some(own_keys) = own_keys.as_deref_mut() {
        own_keys.register()?;
        if own_keys::merge(registry) == Merge::Block {
            notes.push(format!(
                "registry {} has no packet region, so the ids are in its flow region: GRO does not merge packets that \
                 are traced",
                registry.name()
            ));
        }
    }
    let btf = Btf::from_vmlinux().map_err(libbpf("read the kernel's type information, /sys/kernel/btf/vmlinux"))?;
    let behind_xdp = own_keys.as_deref_mut().filter(|_| !targets.occupied.is_empty()).is_some_and(|own_keys| {
        let refused = if btf.type_by_name::<types::Func<'_>>(TC_WRITE).is_none() {
            Some(format!("this kernel has no {TC_WRITE}, by which TC sets traits and leaves those of clones alone"))
        } else {
            own_keys.register_behind_xdp().err().map(|error| error.to_string())
        };
        notes.extend(refused.as_ref().map(|why| format!("packets get no id behind other XDP programs: {why}")));
        refused.is_none()
    });
    let keys = Keys::read(registry)?;
    let consume_place = arguments(&btf, "consume_skb") > 1;
    let tcp_end = Symbols::read().ok().and_then(|symbols| symbols.range(TCP_END)).unwrap_or_default();
    let config = Config { consume_place, tcp_end, ..configure(registry, options, &keys, behind_xdp)? };

    let mut bound = BoundObject::from_bytes(TRACE_OBJECT, "the tracer's programs", registry)?;
    prepare(&mut bound, &config, options)?;
    devices::set_room(&mut bound, targets.interfaces.len())?;
    leave_out_unknown(&mut bound, &btf, &mut notes);
    if (1..3).contains(&arguments(&btf, UDP_FAIL)) {
        leave_out(&mut bound, UDP_FAIL);
        notes.push(format!(
            "tracepoint {UDP_FAIL} shows no packet: datagrams are seen dropped, not that a queue is full"
        ));
    }
    let trace = bound.load()?;

    let share = |bound: &mut BoundObject<'_>| {
        prepare(bound, &config, options)?;
        share_maps(bound, &trace, &["events", "before_xdp", "sent"])
    };
    let functions = Functions::load(registry, &share, &btf, &targets.interfaces, &config, &mut notes)?;

    let assign = if own_keys.is_some() {
        let object = match own_keys::merge(registry) {
            Merge::Block => ASSIGN_FLOW_OBJECT,
            Merge::KeepFirst | Merge::Discard => ASSIGN_OBJECT,
        };
        let mut bound = BoundObject::from_bytes(object, "the tracer's XDP program", registry)?;
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
    if let Some(own_keys) = own_keys {
        let objects = [Some(&trace), assign.as_ref(), enter.as_ref()];
        own_keys.used_by(&objects.into_iter().flatten().chain(functions.objects()).collect::<Vec<_>>());
    }
    let events = EventSource::new(handle(&trace, "events")?, keys, config.run, options.ring_len);
    let finds_sent = btf.type_by_name::<types::Func<'_>>(VETH_SKB).is_none();
    let only_drops = options.reports_only_drops();
    Ok((Programs { assign, enter, functions, trace, finds_sent, only_drops }, events, notes))
}

pub(super) fn id_candidates(keys: &Keys) -> String {
    let fits = |key: &&TracedKey| id_type_fits(key.entry.key.key_type()) && !key.name().starts_with(OWN_KEYS);
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
        only_drops: options.reports_only_drops(),
        conditions,
        consume_place: false,
        tcp_end: (0, 0),
    })
}

/// How many arguments a tracepoint has on this kernel.
fn arguments(btf: &Btf<'_>, tracepoint: &str) -> usize {
    let typedef = btf.type_by_name::<types::Typedef<'_>>(&format!("btf_trace_{tracepoint}"));
    let function = typedef.and_then(|typedef| typedef.next_type()?.next_type());
    let prototype = function.and_then(|function| types::FuncProto::try_from(function).ok());
    // the first is not of the tracepoint (`__bpf_trace_##template`, include/trace/bpf_probe.h)
    prototype.map_or(0, |prototype| prototype.len().saturating_sub(1))
}

/// The high bits of this tracer's ids, by which it tells them from those of others that run at the same time. Not 0.
fn random_run() -> Result<u64, TraceError> {
    let mut bytes = [0; 2];
    loop {
        // The kernel gives so few bytes whole or not at all (getrandom(2)).
        getrandom(&mut bytes, GetRandomFlags::empty()).map_err(|error| system("get a random number")(error.into()))?;
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

/// Has the program at this tracepoint not loaded.
fn leave_out(bound: &mut BoundObject<'_>, tracepoint: &str) {
    let section = format!("tp_btf/{tracepoint}");
    let mut programs = bound.open_object_mut().progs_mut();
    if let Some(mut program) = programs.find(|program| program.section() == &*section) {
        program.set_autoload(false);
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
