//! One device, XDP at one place in one mode: traffic, what each stage read of it, and whether that is as expected.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    net::{TcpListener, TcpStream},
    os::fd::AsFd,
    sync::mpsc,
    thread,
    time::Duration,
};

use packet_traits::attach::{AttachError, Attachment, Direction, NetfilterHook, XdpMode, xdp};
use packet_traits_lab::{
    End, Family, SinkEvent, TcpSink, number_of, send_many_numbered, send_numbered, tcp_transfer, udp_socket,
};
use packet_traits_socket::{Keys, SocketTraits, TcpTraits, UdpTraits};

use crate::{
    common::{TEST_PORT, attach_netfilter, attach_tc, program, record::set_global},
    reports::{Given, Outcome, Packet, Report, Stage, Values, Verdict, When, drain},
    rig::Rig,
};

/// Datagrams that are sent one by one, then together.
const ALONE: u64 = 24;
const TOGETHER: u64 = 40;
/// Of a datagram: more than the least frame of Ethernet, which would be padded.
const SIZE: usize = 200;
/// Connections by TCP, and what each transfers: little enough for a slow machine.
const CONNECTIONS: usize = 4;
const BYTES: u64 = 64 << 10;

/// A device, or one above another.
pub(crate) struct Stack {
    /// The sender's and the receiver's interface of the device, or of the one below.
    pub(crate) lower: [End; 2],
    /// Of the one above, if there is one.
    pub(crate) upper: Option<[End; 2]>,
    /// What it carries.
    pub(crate) families: &'static [Family],
    /// What must live as long.
    pub(crate) _held: Vec<Box<dyn std::any::Any>>,
}

/// Where XDP is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Lower,
    Upper,
    /// In both, above in generic mode.
    Both,
}

/// Whether all is kept; if not, why.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expected {
    /// All is.
    Kept,
    /// XDP cannot be attached there.
    NotAttached(&'static str),
    /// XDP cannot set traits there.
    NotSet(&'static str),
}

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Why XDP could not be attached.
    not_attached: Option<String>,
    given: Given,
    verdicts: BTreeMap<Stage, Verdict>,
    wrong: Vec<String>,
    /// TCP segments at TC of the device below, and of the one above.
    segments: [usize; 2],
}

impl Seen {
    fn judge(&mut self, stage: Stage, packet: Packet, when: When, values: Values) {
        let mut verdict = self.verdicts.get(&stage).copied().unwrap_or_default();
        self.judge_into(stage, packet, when, values, &mut verdict);
        self.verdicts.insert(stage, verdict);
    }

    fn judge_into(&mut self, stage: Stage, packet: Packet, when: When, values: Values, verdict: &mut Verdict) {
        if let Err(what) = self.given.judge(packet, when, values, verdict) {
            self.wrong.push(format!("{stage:?}: {what}"));
        }
    }

    pub(crate) fn outcome(&self, stage: Stage) -> Outcome {
        self.verdicts.get(&stage).map_or(Outcome::Nothing, |verdict| verdict.outcome())
    }

    /// Why XDP set nothing, if it did not.
    fn not_set(&self) -> Option<String> {
        let (errno, times) = self.given.refused.iter().next()?;
        let error = std::io::Error::from_raw_os_error(*errno);
        Some(format!("{times} of {} packets: {error}", self.given.tried))
    }

    /// What became of the TCP segments: how many packets they were at XDP below, TC below, XDP above and TC above.
    fn gro(&self) -> String {
        let [below, above] = self.segments;
        let at_xdp = |stage| self.given.segments.get(&stage).copied().unwrap_or_default();
        let all = [at_xdp(Stage::XdpLower), below, at_xdp(Stage::XdpUpper), above];
        all.iter().filter(|count| **count > 0).map(ToString::to_string).collect::<Vec<_>>().join(" > ")
    }
}

impl Stack {
    /// The receiver's interface whose packets the application gets, and the sender's.
    fn top(&self) -> &[End; 2] {
        self.upper.as_ref().unwrap_or(&self.lower)
    }

    /// Sends traffic with XDP at a place, and judges what was read.
    pub(crate) fn run(&self, rig: &Rig, place: Place, mode: XdpMode) -> Seen {
        let [_, lower] = &self.lower;
        let [tx, rx] = self.top();
        let mut seen = Seen::default();
        set_global(&rig.object, "lower_is_ethernet", lower.is_ethernet().unwrap().into());
        set_global(&rig.object, "upper_is_ethernet", rx.is_ethernet().unwrap().into());
        drain(&rig.object, |_| {});
        let places = match place {
            Place::Lower => vec![("xdp_lower", lower, mode)],
            Place::Upper => vec![("xdp_upper", rx, mode)],
            Place::Both => vec![("xdp_lower", lower, mode), ("xdp_upper", rx, XdpMode::Generic)],
        };
        let mut attached = Vec::new();
        for (name, end, mode) in places {
            match attach_xdp(rig, name, end, mode) {
                Ok(attachment) => attached.push(attachment),
                Err(error) => {
                    seen.not_attached = Some(error.to_string());
                    return seen;
                }
            }
        }
        if self.upper.is_some() {
            attached.push(attach_tc(&rig.object, "tc_lower", lower, Direction::Ingress));
        }
        attached.push(attach_tc(&rig.object, "tc_upper", rx, Direction::Ingress));
        if rig.netfilter {
            for family in self.families {
                let hooks = [("pre_routing", NetfilterHook::PreRouting), ("local_in", NetfilterHook::Input)];
                attached.extend(attach_netfilter(&rig.object, rx, *family, &hooks));
            }
        }
        let mut reports = Vec::new();
        let mut datagrams = Vec::new();
        for (at, family) in self.families.iter().enumerate() {
            self.datagrams(rig, *family, 1000 * at as u64, &mut reports, &mut datagrams);
        }
        let syns = connections(rig, tx, rx, self.families[0]);
        // A native program's removal may take the device down for a moment, which is not the test's.
        thread::sleep(Duration::from_millis(5));
        drain(&rig.object, |report| reports.push((report, None)));
        drop(attached);
        seen.judge_all(&reports, &datagrams, &syns, self.upper.is_some().then_some(place));
        seen
    }

    /// Sends numbered datagrams and receives them; notes what was reported, and what the application was told.
    fn datagrams(
        &self,
        rig: &Rig,
        family: Family,
        first: u64,
        reports: &mut Vec<(Report, Option<u64>)>,
        datagrams: &mut Vec<(u64, Values)>,
    ) {
        let [tx, rx] = self.top();
        let to = rx.addr(family, TEST_PORT);
        let receiver = rig.inside(rx.netns(), || udp_socket(rx.netns(), to)).unwrap();
        receiver.receive_traits(true).unwrap();
        let keys = Keys::of(&receiver).unwrap();
        let (tenant, flow_id) = (keys.typed("tenant").unwrap(), keys.typed("flow_id").unwrap());
        let sender = udp_socket(tx.netns(), tx.addr(family, 0)).unwrap();
        sender.connect(to).unwrap();
        let mut buffer = [0; 2048];
        let mut receive = |expected: u64| {
            let received = receiver
                .recv_with_traits(&keys, &mut buffer)
                .unwrap_or_else(|error| panic!("datagram {expected} did not come through {}: {error}", rx.name()));
            let number = number_of(&buffer[..received.len]).unwrap();
            let traits = received.traits;
            (number, Values { tenant: traits.get(&tenant), flow_id: traits.get(&flow_id) })
        };
        for number in first..first + ALONE {
            send_numbered(&sender, to, number..number + 1, SIZE).unwrap();
            let (came, values) = receive(number);
            assert_eq!(came, number, "datagrams came in another order");
            datagrams.push((number, values));
            drain(&rig.object, |report| reports.push((report, Some(number))));
        }
        let numbers = first + ALONE..first + ALONE + TOGETHER;
        send_many_numbered(&sender, numbers.clone(), SIZE).unwrap();
        datagrams.extend(numbers.map(&mut receive));
        drain(&rig.object, |report| reports.push((report, None)));
    }
}

impl Seen {
    fn judge_all(
        &mut self,
        reports: &[(Report, Option<u64>)],
        datagrams: &[(u64, Values)],
        syns: &[Values],
        upper: Option<Place>,
    ) {
        let mut syn_packets = Vec::new();
        for (report, round) in reports {
            if report.stage.is_xdp() {
                self.given.take(*report, *round);
            }
            if report.syn && report.stage == Stage::Tc {
                syn_packets.push(report.packet);
            }
        }
        let upper_is_first = runs_upper_first(reports);
        for (report, _) in reports {
            if report.stage.is_xdp() {
                continue;
            }
            if matches!(report.packet, Packet::Tcp(_)) {
                self.segments[0] += usize::from(report.stage == Stage::TcLower);
                self.segments[1] += usize::from(report.stage == Stage::Tc);
            }
            // Must not be wrong either, but does not count: a tunnel's packet, which netfilter sees before what is in it, and
            // what comes before XDP.
            let outer = report.inside > 0 || upper.is_some() && matches!(report.packet, Packet::Opaque(_));
            let is_before = report.stage == Stage::TcLower && !upper_is_first;
            let when = if is_before { When::BeforeUpper } else { When::AfterAll };
            let before = is_before && upper == Some(Place::Upper);
            match before || outer && report.stage != Stage::TcLower {
                true => self.judge_into(
                    report.stage,
                    report.packet,
                    When::BeforeUpper,
                    report.values,
                    &mut Verdict::default(),
                ),
                false => self.judge(report.stage, report.packet, when, report.values),
            }
        }
        for (number, values) in datagrams {
            self.judge(Stage::Datagram, Packet::Udp(*number), When::AfterAll, *values);
        }
        // one after another; a SYN that had to be sent again, in an emulated machine, is of the same number
        syn_packets.dedup();
        assert_eq!(syn_packets.len(), syns.len());
        for (packet, values) in syn_packets.iter().zip(syns) {
            self.judge(Stage::Syn, *packet, When::AfterAll, *values);
        }
    }
}

/// Whether the device has those below it run its XDP program, before TC sees a packet there. Datagrams tell: none is sent twice.
fn runs_upper_first(reports: &[(Report, Option<u64>)]) -> bool {
    let mut by_upper = HashSet::new();
    reports.iter().any(|(report, _)| match (report.stage, report.packet) {
        (Stage::XdpUpper, packet @ Packet::Udp(_)) => {
            by_upper.insert(packet);
            false
        }
        (Stage::TcLower, packet) => by_upper.contains(&packet),
        _ => false,
    })
}

fn attach_xdp(rig: &Rig, name: &str, end: &End, mode: XdpMode) -> Result<Attachment, AttachError> {
    let fd = program(&rig.object, name);
    end.netns().enter(|| xdp::attach(fd.as_fd(), end.ifindex(), mode)).map(|(attachment, _)| attachment)
}

/// Transfers data by TCP; returns what the accepted sockets say of their SYNs.
fn connections(rig: &Rig, tx: &End, rx: &End, family: Family) -> Vec<Values> {
    let to = rx.addr(family, TEST_PORT);
    let listener = rig.inside(rx.netns(), || TcpListener::bind(to)).unwrap();
    listener.save_syn_traits(true).unwrap();
    let (sender, syns) = mpsc::channel();
    let watch = move |stream: &TcpStream, event| {
        if event == SinkEvent::Accepted {
            let keys = Keys::of(stream).unwrap();
            let tenant = stream.syn_trait(&keys.typed("tenant").unwrap()).unwrap();
            let flow_id = stream.syn_trait(&keys.typed("flow_id").unwrap()).unwrap();
            sender.send(Values { tenant, flow_id }).unwrap();
        }
    };
    let sink = TcpSink::serve(listener, watch).unwrap();
    for _ in 0..CONNECTIONS {
        tcp_transfer(tx.netns(), to, BYTES).unwrap_or_else(|error| panic!("no TCP through {}: {error}", rx.name()));
    }
    assert_eq!((sink.received(), sink.corrupt()), (CONNECTIONS as u64 * BYTES, 0), "through {}", rx.name());
    syns.try_iter().collect()
}

/// Prints a row of docs/devices.md (tools/test-devices.py), then fails if it is not as expected.
pub(crate) fn check(
    rig: &Rig,
    name: &str,
    stack: &Stack,
    place: Place,
    mode: XdpMode,
    expected: Expected,
    seen: &Seen,
) {
    let at = match (place, stack.upper.is_some()) {
        (_, false) => "the device",
        (Place::Lower, true) => "below",
        (Place::Upper, true) => "the device",
        (Place::Both, true) => "both",
    };
    let mut row = format!("device-row\t{name}\t{at}\t{mode}");
    let failed = |what: &str| panic!("{name}, {mode} XDP at {at}: {what}");
    let why = match expected {
        Expected::Kept => "",
        Expected::NotAttached(why) | Expected::NotSet(why) => why,
    };
    if let Some(reason) = &seen.not_attached {
        let reason = reason.replace('\n', " ");
        println!("{row}\trefused\t\t\t\t\t\t\t\t\t{why}\t{reason}");
        match expected {
            Expected::NotAttached(_) => return,
            _ => failed(&reason),
        }
    }
    let set = match seen.not_set() {
        Some(_) if seen.given.refused.values().sum::<usize>() == seen.given.tried => "refused".to_owned(),
        Some(some) => format!("in part ({some})"),
        None => "set".to_owned(),
    };
    write!(row, "\t{set}").unwrap();
    for stage in Stage::READING {
        write!(row, "\t{}", seen.verdicts.get(&stage).copied().unwrap_or_default()).unwrap();
    }
    let reason = seen.not_set().unwrap_or_default();
    println!("{row}\t{}\t{why}\t{reason}", seen.gro());
    if let Some(first) = seen.wrong.first() {
        failed(&format!("{} readings are WRONG, the first: {first}", seen.wrong.len()));
    }
    if seen.given.tried == 0 {
        failed("XDP saw no packet");
    }
    let refused = !seen.given.refused.is_empty();
    if refused != matches!(expected, Expected::NotSet(_)) {
        failed(&format!("setting: {}, expected: {expected:?}", seen.not_set().unwrap_or("worked".into())));
    }
    for stage in Stage::READING {
        let wanted = if refused { Outcome::Nothing } else { Outcome::Kept };
        let outcome = seen.outcome(stage);
        if !rig.netfilter && matches!(stage, Stage::PreRouting | Stage::LocalIn) {
            continue;
        }
        let below_itself = stage == Stage::TcLower && (stack.upper.is_none() || place == Place::Upper);
        if outcome != wanted && !(outcome == Outcome::Nothing && below_itself) {
            failed(&format!(
                "{stage:?}: {}, expected {wanted:?}",
                seen.verdicts.get(&stage).copied().unwrap_or_default()
            ));
        }
    }
}
