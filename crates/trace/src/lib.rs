//! Follows packets through the kernel by a trait that travels with them.
//!
//! # Phases
//! Each phase of a trace is a type, which has the calls that make sense in it. [`Options`] say what to trace. [`Tracer::load`]
//! loads the programs, and [`Loaded::attach`] attaches them; [`Tracer::start`] does both. [`Tracer::end`] detaches them, and
//! returns the last counters. [`Paths`] puts the events of a packet together, [`Summary`] counts, and the module
//! [`write`](mod@write) has the output formats.
//!
//! ```no_run
//! use std::{thread, time::Duration};
//!
//! use packet_traits::registry::Registry;
//! use packet_traits_trace::{Namespace, Options, Tracer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = Registry::options().open()?;
//! let options = Options { namespaces: vec![Namespace::current()?], ..Options::default() };
//! let mut tracer = Tracer::start(&registry, &options)?;
//! let reader = tracer.reader(|event| println!("{} at {}", event.id(), event.point()))?;
//! for _ in 0..1000 {
//!     tracer.adapt()?;
//!     reader.read()?;
//!     thread::sleep(Duration::from_millis(5));
//! }
//! println!("{} events were lost", tracer.end().counters?.lost_events());
//! # Ok(())
//! # }
//! ```
//!
//! # Identity
//! A packet is what carries an id: the value of a trait, written in XDP. It is not guessed from the addresses of buffers,
//! so it holds through GRO, decapsulation, forwarding, and from one network namespace to the next. If nobody assigns ids,
//! the tracer's own XDP program does, for as long as it runs, with two keep-first keys that it registers and removes again:
//! `trace.id` and `trace.entered`. Where the registry has no packet region they are block keys, in its flow region. Linux
//! before 6.8 has room for just these. GRO compares the flow region, so it does not merge packets that are traced there; a note
//! says so ([`Tracer::notes`]). Ids of two tracers that run at the same time differ in their high 16 bits.
//!
//! # Points
//! [`Point`] lists them, with the hook that each uses. Most are tracepoints with BTF arguments and hooks that this process
//! holds by links, so it works where the kernel refuses kprobes and fentry. Where the kernel lets programs run at functions,
//! which is found by trying, there are more ([`Point::is_of_function`], [`Tracer::points`]), and the delivery of a datagram is
//! seen. Each is left out by itself if its function is not in this kernel. Programs on tracepoints and functions see the packets
//! of all namespaces; one without an id costs them a few loads.
//!
//! Where the kernel lacks a hook or a tracepoint, its point is left out with a note. Before 6.6 the programs at TC are `clsact`
//! filters, which no link holds: they stay if the tracer is killed, pass every packet, and go with
//! `tc filter del dev INTERFACE ingress` and `egress`.
//!
//! # Other software's XDP programs
//! Where another program is attached the tracer cannot attach its own. Packets have the ids that it assigns, if it does
//! ([`Options::id`]); else a program at TC ingress gives ids to those that it gave traits, with two keys more, in the region
//! that TC can write: `trace.tc_id` and `trace.tc_entered`. Conditions on traits are looked at there too. This needs 6.18
//! (`bpf_dynptr_from_skb_meta`): before, TC would take clones their traits. A packet that others have as well, a capture for
//! one, gets no id ([`Counters::shared`]), nor does one that another tracer follows ([`Counters::taken`]). GRO compares that
//! region, so where such packets go on to another namespace, they are merged there only if this tracer is there too and moves
//! the id over. With fentry,
//! [`Point::XdpVerdict`] shows what it decided for each packet that has an id when it returns or, if the tracer assigns ids, had
//! one when it was called. The program is looked up when tracing starts, and needs type information (`clang -g`); of a dispatcher
//! what all its programs together decided is seen. A program that is traced stays loaded until the trace ends, also if it is
//! detached before. Packets of test runs, and of interfaces that are not traced, are left out.
//! On every kernel, what tracepoints tell of such programs is counted ([`Counters::xdp`]): how many packets they redirected, and
//! how many were dropped because the program failed, or to redirect or send them did. Not which packets, so these are packets
//! that the tracer cannot tell. Packets that were redirected, but dropped later, when the driver sends those it has collected,
//! count as redirected.
//!
//! # What is not seen
//! - **Other software's XDP programs**, without fentry: tracing starts behind them. A packet that such a program drops does not bring
//!   back the points of a tracer that stands by ([`Standby`]).
//! - **What a policy drops in XDP**, by an id that it gives: a policy writes its traits on what it lets pass. `traits status`
//!   has the hits of its rules.
//! - **The delivery of a datagram** has no tracepoint that shows the packet (6.18, when it is in one piece). Without fentry,
//!   what is reported is when a process received from its socket and the datagram was no longer in the queue: `inferred`. Two
//!   processes that read the same socket at the same instant may be taken for each other.
//! - **Fragments**: the whole has the id of the first; what the kernel itself cuts a packet into has none. Over IPv6 with
//!   connection tracking, fragments are put together in a module whose functions are not looked at.
//! - **Routing** and **being put into a socket's queue** are known by what the CPU was at: `inferred` as well.
//! - **Packets that a socket of this host sends** have no traits until they enter somewhere.
//! - **Acceptance by TCP.** Between the socket's queue and the process's read, TCP may merge or copy data.
//! - **What policies log.** Their ring buffer gives each record to one reader, which is `traits log`, and a record names a
//!   packet's id only if the rules beside it use that key.
//! - A packet that the kernel copies (`pskb_expand_head`) loses its traits, and with them its trace.
//!
//! # Files
//! | file | what it holds |
//! |---|---|
//! | `point` | the points |
//! | `event` | one packet at one point, as the programs report it |
//! | `packet` | what its first bytes say |
//! | `keys` | the traits in an event, by the registry |
//! | `filter`, `config` | which packets are reported; what the programs are told |
//! | `namespace` | namespaces and interfaces by name |
//! | `tracer` | the phases: loading, attaching, reading, ending |
//! | `functions` | the same for what runs at functions, and with other software's XDP programs |
//! | `xdp` | which those are, and what they decide |
//! | `standby` | when points that nothing matches are taken away |
//! | `path` | events put together to packets' ways |
//! | `histogram`, `summary` | many packets in a few numbers |
//! | `symbols`, `names` | what numbers in events are called |
//! | `write` | text, JSON, pcapng, Chrome's and Perfetto's trace format, HTML |
//! | `bpf` | the programs |

mod config;
mod devices;
mod error;
mod event;
mod filter;
mod functions;
mod histogram;
mod keys;
mod names;
mod namespace;
mod object;
mod packet;
mod path;
mod point;
mod standby;
mod summary;
mod symbols;
mod tracer;
pub mod write;
mod xdp;

pub use config::CAPTURE_MAX;
pub use error::{Hint, TraceError};
pub use event::{Event, GroResult};
pub use filter::{CONDITIONS_MAX, Condition, FilterError};
pub use histogram::{Bucket, Histogram};
pub use keys::{ENTERED_KEY, ID_KEY, Keys, TC_ENTERED_KEY, TC_ID_KEY, TracedKey};
pub use names::Names;
pub use namespace::{Interface, Namespace};
pub use packet::{Headers, Tcp};
pub use path::{Added, Cause, Detail, Outcome, PACKETS_MAX, Packet, Paths, STEPS_MAX, Step};
pub use point::Point;
pub use standby::{BUSY, Change, QUIET, QUIET_AGAIN, Standby};
pub use summary::{DropPlace, OTHERS, PointSummary, Summary, Times, VALUES_MAX, ValueSummary};
pub use symbols::{NamedPlaces, Symbols};
pub use tracer::{Counters, Draining, Ended, Loaded, Options, RING_LEN, Reader, Tracer};
pub use xdp::{Fate, Verdict, XdpCount, XdpProgram};
