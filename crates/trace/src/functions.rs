//! Points that functions of the kernel show, and other people's XDP programs: `fentry` and `fexit`, where the kernel lets us.
//!
//! Whether it does is found by trying; where it does not there are fewer points, and nothing else changes. A function that
//! is not in this kernel, or at which it refuses a program, is left out by itself.

use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::{MapCore, MapFlags, MapHandle, ProgramImpl, btf::Btf};
use packet_traits::{
    attach::{Attachment, tracing as function},
    bind::{BindError, BoundObject, LoadedObject},
    registry::Registry,
};

use zerocopy::FromBytes;

use crate::{
    config::Config,
    devices::{self, DEVICES, RawDevice},
    error::{TraceError, libbpf},
    namespace::{Interface, Namespace, place_id},
    object::{handle, leave_out_unknown},
    point::Point,
    xdp::{self, Attached, Fate, XdpCount, XdpProgram},
};

static FUNCTIONS_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/fentry.bpf.o"));
static VERDICT_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/verdict.bpf.o"));
static COUNTS_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/xdp_counts.bpf.o"));

/// `struct counted` of bpf/xdp_counts.bpf.c.
#[derive(FromBytes)]
#[repr(C)]
struct RawCounted {
    device: RawDevice,
    program: u32,
    fate: u32,
}

/// The program that sees each datagram that a process takes.
const DELIVERY: &str = "trace_udp";

/// Programs at functions, in the order in which they are attached, and the point that each shows.
const FUNCTIONS: [(&str, Point); 10] = [
    (DELIVERY, Point::Peek),
    ("trace_out_of_order", Point::OutOfOrder),
    ("trace_backlog", Point::Backlog),
    ("trace_tcp4", Point::Tcp),
    ("trace_tcp6", Point::Tcp),
    ("trace_neighbour", Point::Neighbour),
    ("trace_fragment4", Point::Fragment),
    ("trace_fragment6", Point::Fragment),
    ("trace_defrag4", Point::Defrag),
    ("trace_defrag6", Point::Defrag),
];

/// Programs at the end and at the start of an XDP program.
const VERDICT: &str = "trace_verdict";
const BEFORE_VERDICT: &str = "trace_before_verdict";

/// Counts of verdicts, by tracepoints.
const COUNTS: [&str; 3] = ["count_exception", "count_redirect", "count_redirect_failed"];

/// Sets an object up as the tracer's others are, before it is loaded.
type Setup<'s> = &'s dyn Fn(&mut BoundObject<'_>) -> Result<(), TraceError>;

/// The programs that are loaded.
#[derive(Default)]
pub(crate) struct Functions {
    /// Those at the kernel's functions.
    kernel: Option<LoadedObject>,
    /// One for each other XDP program.
    verdicts: Vec<(LoadedObject, Attached)>,
    counts: Option<Counts>,
}

/// What tracepoints tell of those programs.
struct Counts {
    object: LoadedObject,
    places: Vec<(Namespace, Interface)>,
    /// The programs there are at the start.
    programs: Vec<XdpProgram>,
}

impl Functions {
    /// Loads what this kernel takes; `notes` gets what it does not.
    pub(crate) fn load(
        registry: &Registry,
        setup: Setup<'_>,
        btf: &Btf<'_>,
        places: &[(Namespace, Interface)],
        config: &Config,
        notes: &mut Vec<String>,
    ) -> Result<Functions, TraceError> {
        let mut all = Functions::default();
        let programs = xdp::attached(places)
            .map_err(|error| TraceError::System { action: "enter a network namespace".to_owned(), error })?;
        let fentry = function::try_functions().inspect_err(|errno| {
            let error = std::io::Error::from_raw_os_error(*errno);
            tracing::debug!("this kernel lets no program run at its functions, so there are fewer points: {error}");
        });
        let fentry = fentry.is_ok();
        if fentry && !config.only_drops {
            all.kernel = load_kernel(registry, setup, btf, notes)?;
        }
        if programs.is_empty() {
            return Ok(all);
        }
        let programs: Vec<XdpProgram> = programs.into_iter().map(xdp::program).collect();
        let object = load_counts(registry, setup, btf, places, notes)?;
        let devices = handle(&object, DEVICES)?;
        for program in programs.iter().filter(|_| fentry) {
            match load_verdict(registry, setup, &devices, program.id, config.run != 0) {
                Ok(loaded) => all.verdicts.push(loaded),
                Err(why) => notes.push(format!("verdicts of the XDP program {program} are not seen: {why}")),
            }
        }
        all.counts = Some(Counts { object, places: places.to_vec(), programs });
        Ok(all)
    }

    /// Attaches what counts verdicts at tracepoints.
    pub(crate) fn attach_counts(&self) -> Result<Vec<Attachment>, TraceError> {
        let mut attachments = Vec::new();
        if let Some(Counts { object, .. }) = &self.counts {
            for program in COUNTS.into_iter().filter_map(|name| object.program(name)).filter(ProgramImpl::autoload) {
                attachments.push(function::attach(program.as_fd())?);
            }
        }
        Ok(attachments)
    }

    /// Attaches all others. Returns whether the delivery of datagrams is seen.
    pub(crate) fn attach(&self, attachments: &mut Vec<Attachment>, notes: &mut Vec<String>) -> bool {
        let mut delivery = false;
        if let Some(kernel) = &self.kernel {
            for (name, _) in FUNCTIONS {
                let Some(program) = kernel.program(name).filter(ProgramImpl::autoload) else { continue };
                match function::attach_function(program.as_fd(), &function_of(&program.section().to_string_lossy())) {
                    Ok(attachment) => {
                        attachments.push(attachment);
                        delivery |= name == DELIVERY;
                    }
                    Err(error) => notes.push(format!("{error}: what it would show is not seen")),
                }
            }
        }
        for (object, attached) in &self.verdicts {
            for name in [VERDICT, BEFORE_VERDICT] {
                let Some(program) = object.program(name).filter(ProgramImpl::autoload) else { continue };
                match function::attach_function(program.as_fd(), &attached.function) {
                    Ok(attachment) => attachments.push(attachment),
                    Err(error) => {
                        notes.push(format!("verdicts of the XDP program {} are not seen: {error}", attached.program));
                    }
                }
            }
        }
        delivery
    }

    /// The points that there are because of them.
    pub(crate) fn has(&self, point: Point) -> bool {
        let loaded = |name: &str| {
            self.kernel.as_ref().and_then(|kernel| kernel.program(name)).is_some_and(|program| program.autoload())
        };
        match point {
            Point::XdpVerdict => !self.verdicts.is_empty(),
            point => FUNCTIONS.iter().any(|(name, shown)| *shown == point && loaded(name)),
        }
    }

    /// All objects that report events.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &LoadedObject> {
        self.kernel.iter().chain(self.verdicts.iter().map(|(object, _)| object))
    }

    /// What was counted by tracepoints.
    pub(crate) fn xdp_counts(&self) -> Result<Vec<XdpCount>, TraceError> {
        let Some(Counts { object, places, programs, .. }) = &self.counts else { return Ok(Vec::new()) };
        let map = handle(object, "xdp_counts")?;
        let mut all = Vec::new();
        for key in map.keys() {
            let value = map.lookup(&key, MapFlags::ANY).map_err(libbpf("read the tracer's counters"))?;
            let Ok(counted) = RawCounted::read_from_bytes(&key) else { continue };
            let RawCounted { device: RawDevice { netns, ifindex }, program, fate } = counted;
            let place = places.iter().find(|(namespace, it)| namespace.inode() == netns && it.index == ifindex);
            let Some(((namespace, interface), packets)) =
                place.zip(value.as_deref().and_then(<[u8]>::first_chunk).map(|bytes| u64::from_ne_bytes(*bytes)))
            else {
                continue;
            };
            let known = programs.iter().find(|known| known.id == program);
            all.push(XdpCount {
                fate: Fate::from_code(fate),
                interface: interface.clone(),
                netns,
                namespace: namespace.name().to_owned(),
                program: known.copied().unwrap_or_else(|| XdpProgram::new(program, "")),
                packets,
            });
        }
        all.sort_by(|one, other| {
            let order = |count: &XdpCount| (count.netns, count.interface.index, count.program, count.fate);
            order(one).cmp(&order(other))
        });
        Ok(all)
    }
}

/// Opens an object of which only these programs are to be loaded.
fn open<'r>(
    bytes: &[u8],
    registry: &'r Registry,
    setup: Setup<'_>,
    wanted: impl Fn(&str) -> bool,
) -> Result<BoundObject<'r>, TraceError> {
    let mut bound = BoundObject::from_bytes(bytes, "the tracer's programs", registry)?;
    setup(&mut bound)?;
    for mut program in bound.open_object_mut().progs_mut() {
        let load = wanted(&program.name().to_string_lossy());
        program.set_autoload(load);
    }
    Ok(bound)
}

/// The function in `fentry/FUNCTION`.
fn function_of(section: &str) -> String {
    section.split_once('/').map_or(section, |(_, function)| function).to_owned()
}

fn load_kernel(
    registry: &Registry,
    setup: Setup<'_>,
    btf: &Btf<'_>,
    notes: &mut Vec<String>,
) -> Result<Option<LoadedObject>, TraceError> {
    let mut bound = open(FUNCTIONS_OBJECT, registry, setup, |_| true)?;
    leave_out_unknown(&mut bound, btf, notes);
    let known = bound.open_object_mut().progs_mut().filter(|program| program.autoload());
    let mut known: Vec<String> = known.map(|program| program.name().to_string_lossy().into_owned()).collect();
    match bound.load() {
        Ok(loaded) => return Ok(Some(loaded)),
        Err(error) => tracing::debug!("not all programs at functions can be loaded: {error}"),
    }
    let load = |names: &[String]| {
        open(FUNCTIONS_OBJECT, registry, setup, |name| names.iter().any(|wanted| wanted == name))
            .and_then(|bound| Ok(bound.load()?))
    };
    known.retain(|name| match load(std::slice::from_ref(name)) {
        Ok(_) => true,
        Err(error) => {
            notes.push(format!("this kernel refuses {name}: what it would show is not seen: {error}"));
            false
        }
    });
    if known.is_empty() { Ok(None) } else { load(&known).map(Some) }
}

fn load_counts(
    registry: &Registry,
    setup: Setup<'_>,
    btf: &Btf<'_>,
    places: &[(Namespace, Interface)],
    notes: &mut Vec<String>,
) -> Result<LoadedObject, TraceError> {
    let mut bound = open(COUNTS_OBJECT, registry, setup, |_| true)?;
    leave_out_unknown(&mut bound, btf, notes);
    devices::set_room(&mut bound, places.len())?;
    let loaded = bound.load()?;
    for place in places {
        devices::add(&loaded, place_id(place))?;
    }
    Ok(loaded)
}

/// Loads the program that runs when an XDP program returns.
fn load_verdict(
    registry: &Registry,
    setup: Setup<'_>,
    devices: &MapHandle,
    id: u32,
    own_ids: bool,
) -> Result<(LoadedObject, Attached), String> {
    let (attached, fd) = Attached::open(id)?;
    let changed = || "the tracer's programs are not of this version".to_owned();
    let wanted = |name: &str| own_ids || name == VERDICT;
    let mut bound = open(VERDICT_OBJECT, registry, setup, wanted).map_err(|error| error.to_string())?;
    let object = bound.open_object_mut();
    for mut map in object.maps_mut() {
        match map.name().to_str() {
            Some(DEVICES) => map.reuse_fd(devices.as_fd()).map_err(|error| error.to_string())?,
            Some(".rodata.target") => {
                let bytes = attached.program.bytes();
                let value = map.initial_value_mut().and_then(|value| value.get_mut(..bytes.len()));
                value.ok_or_else(changed)?.copy_from_slice(&bytes);
            }
            _ => {}
        }
    }
    for mut program in object.progs_mut() {
        let target = program.set_attach_target(fd.as_raw_fd(), Some(attached.function.clone()));
        target.map_err(|error| format!("its function {} is not found: {error}", attached.function))?;
    }
    let loaded = bound.load().map_err(|error| match &error {
        BindError::Load { log, .. } if !log.is_empty() => {
            format!("{error}: {}", log.lines().last().unwrap_or_default())
        }
        error => error.to_string(),
    })?;
    Ok((loaded, attached))
}

#[cfg(test)]
mod tests {
    use packet_traits_testing::{
        layout::{Types, enumerators},
        same_layout,
    };

    use super::*;

    #[test]
    fn the_programs_count_like_that() {
        let types = Types::of(COUNTS_OBJECT);
        same_layout!(types.structure("device"), RawDevice { netns, ifindex });
        same_layout!(types.structure("counted"), RawCounted { device, program, fate });
        let in_c = enumerators(include_str!("bpf/xdp_counts.bpf.c"));
        assert_eq!(Fate::from_code(in_c["FATE_REDIRECTED"] as u32), Fate::Redirected);
        assert_eq!(Fate::from_code(in_c["FATE_REDIRECT_FAILED"] as u32), Fate::RedirectFailed);
        // the verdict above it is XDP_TX
        assert_eq!(Fate::from_code(in_c["FATE_EXCEPTION"] as u32 | 3 << 8), Fate::TxFailed);
        assert_eq!(in_c.keys().filter(|name| name.starts_with("FATE_")).count(), 3);
    }
}
