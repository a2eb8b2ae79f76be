//! `traits explain`: which rules of a policy match a packet and why, and what it then carries.

use std::{collections::BTreeMap, error::Error, fmt::Write, io, path::PathBuf};

use clap::Args;
use packet_traits_policy::{
    check::Checked,
    hook::Hook,
    interpret::{ActionStep, Context, Decision, Effect, Outcome as Done, TestStep, from_value, to_value},
    policy::{Action, Block, Interface, Operand, Policy, Presence, Rule, Test, Value},
    print::{print_action, print_test, print_value},
    source::Span,
};
use serde::Serialize;

use super::{
    capture::{Captured, Link, PacketSource},
    counted,
    frame::Frame,
    host::Host,
    journey::{Journey, Meeting, Stage},
    load,
    way::{self, Choice, Way},
};
use crate::{Global, Outcome, clock, output};

const HELP: &str = "\
Examples:
  traits explain edge.traits --packet capture.pcap
  traits explain edge.traits --packet '02 00 00 00 00 01 …' --iif eth0
  xxd -p packet.bin | traits explain edge.traits --packet -
  traits explain edge.traits --packet syn.pcapng --hook 'tc ingress'
  traits explain edge.traits --packet other-host.pcap --way forward

Loads nothing and needs no privilege. The packet meets the blocks that are on its way, in order, and keeps the traits that \
earlier ones gave it. Without --way, the way is guessed from addresses of this host (this network namespace); then its VLAN \
devices, Ethernet addresses and forwarding count too. Routes and sockets are not looked at. `match` and `steer` blocks are \
judged by themselves.

Interfaces are compared as they are written: `--iif eth0` is not `iif 2`. What a network card reports is absent, \
`unique` counts from 1, and packets are in every sample.

docs/json.md lists the members of what --json prints.";

/// Show which rules of a policy match a packet and why, and what it then carries
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    /// Policy file
    file: PathBuf,
    /// Packet in hexadecimal digits; or a pcap or pcapng file, or one with such digits; or `-` for either on standard
    /// input
    #[arg(short, long, value_name = "HEX|FILE|-")]
    packet: PacketSource,
    /// A packet in hexadecimal digits starts with its IP header, not with its Ethernet header
    #[arg(long)]
    ip: bool,
    /// The packet's way through the host; required for a capture from another host
    #[arg(long)]
    way: Option<Way>,
    /// Only this block, by its name or its hook
    #[arg(long, value_name = "BLOCK")]
    hook: Option<String>,
    /// A trait that the packet arrives with; KEY alone for a flag
    #[arg(long = "trait", value_name = "KEY=VALUE")]
    traits: Vec<String>,
    /// Interface the packet comes in by, by name or index
    #[arg(long, value_name = "INTERFACE")]
    iif: Option<String>,
    /// Interface the packet goes out by
    #[arg(long, value_name = "INTERFACE")]
    oif: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: &Options, global: &Global) -> Outcome {
    let checked = load(&command.file, global)?;
    let policy = &checked.policy;
    let (blocks, only) = match &command.hook {
        Some(wanted) => {
            let block = find_block(policy, wanted)?;
            (vec![block], Some(policy.blocks[block].hook))
        }
        None if policy.blocks.is_empty() => return Err("the policy has no blocks".into()),
        None => ((0..policy.blocks.len()).collect(), None),
    };
    let mut interfaces = Interfaces::new(policy, command);
    let arriving = arriving(policy, command, &interfaces)?;
    let packets = command.packet.read(if command.ip { Link::Ip } else { Link::Ethernet })?;
    let source = WaySource::new(command.way);
    let mut explained = Vec::new();
    for (packet, number) in packets.iter().zip(1..) {
        let frame = Frame::read(packet);
        let (choice, here) = choose(&source, only, &frame, command.iif.is_some())?;
        let journey = Journey::new(packet, &frame, choice.way, here, command.iif.as_deref());
        let vlan_interface = journey.vlan_device().map(|name| interfaces.number(name));
        let context = Context { time: clock::now(), unique: number, ..arriving.clone() };
        let stages = journey.run(policy, &blocks, &context, vlan_interface);
        let report = Report { checked: &checked, interfaces: &interfaces };
        if command.json {
            explained.push(report.json(number, packet, &choice, &stages));
        } else {
            output::line(report.text(number, packets.len(), packet, &choice, &stages).trim_end())?;
        }
    }
    if command.json {
        output::json(&ExplanationJson { file: command.file.display().to_string(), packets: explained })?;
    }
    Ok(())
}

/// What a packet's way is known by.
enum WaySource {
    /// It is given.
    Given(Way),
    /// It is guessed: the packet was captured here.
    Host(Host),
    /// It is not given, and this host cannot be looked at.
    Nothing(io::Error),
}

impl WaySource {
    fn new(given: Option<Way>) -> WaySource {
        match given {
            Some(way) => WaySource::Given(way),
            None => Host::read().map_or_else(WaySource::Nothing, WaySource::Host),
        }
    }
}

/// The way that a packet takes, and this host if the packet is one of its own. With a hook that is asked for, a way that
/// the hook is on. It came in by an interface if `arrived`.
fn choose<'h>(
    source: &'h WaySource,
    only: Option<Hook>,
    frame: &Frame<'_>,
    arrived: bool,
) -> Result<(Choice, Option<&'h Host>), String> {
    let (choice, here) = match source {
        WaySource::Given(way) => (Choice { way: Some(*way), why: "--way".to_owned() }, None),
        WaySource::Host(host) => {
            let choice = way::guess(frame, host, arrived);
            let is_here = choice.way.is_some();
            (choice, is_here.then_some(host))
        }
        WaySource::Nothing(error) => {
            (Choice { way: None, why: format!("this host's addresses cannot be listed ({error})") }, None)
        }
    };
    let Some(hook) = only.filter(|hook| !matches!(hook, Hook::Match | Hook::Steer)) else { return Ok((choice, here)) };
    let has_hook = |way: &Way| way.place(hook).is_some();
    match (choice.way, source) {
        (Some(way), _) if has_hook(&way) => Ok((choice, here)),
        (Some(way), WaySource::Given(_)) => Err(format!("`{hook}` is not on the way {:?}", way.name())),
        // what is common to packets that come in can be told without
        (None, _) if has_hook(&Way::In) && has_hook(&Way::Forward) => Ok((choice, here)),
        _ => {
            let way = [Way::In, Way::Out, Way::Forward].into_iter().find(has_hook);
            Ok((Choice { way, why: "--hook".to_owned() }, None))
        }
    }
}

fn find_block(policy: &Policy, wanted: &str) -> Result<usize, Box<dyn Error>> {
    let place_of = |is: &dyn Fn(&Block) -> bool| -> Vec<usize> {
        (0..policy.blocks.len()).filter(|block| is(&policy.blocks[*block])).collect()
    };
    if let [block] = place_of(&|block| block.name == wanted)[..] {
        return Ok(block);
    }
    let of_hook = |block: &Block| {
        let hook = block.hook.to_string();
        hook.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    match place_of(&of_hook)[..] {
        [block] => Ok(block),
        [] => Err(format!("the policy has no block {wanted:?}; it has {}", list_blocks(policy)).into()),
        _ => Err(format!("{wanted:?} is more than one block; name it: {}", list_blocks(policy)).into()),
    }
}

fn list_blocks(policy: &Policy) -> String {
    let blocks: Vec<String> = policy.blocks.iter().map(|block| format!("{} ({})", block.name, block.hook)).collect();
    blocks.join(", ")
}

/// How the packet arrives.
fn arriving(policy: &Policy, command: &Options, interfaces: &Interfaces) -> Result<Context, Box<dyn Error>> {
    let mut traits = vec![None; policy.keys.len()];
    for given in &command.traits {
        let (name, text) = given.split_once('=').unwrap_or((given, "set"));
        let key = policy.keys.iter().position(|key| key.name.as_str() == name).ok_or_else(|| {
            let names: Vec<&str> = policy.keys.iter().map(|key| key.name.as_str()).collect();
            format!("--trait {given}: the policy has no key {name:?}; it has {}", names.join(", "))
        })?;
        let value = packet_traits_core::Value::parse(policy.keys[key].key_type, text)
            .map_err(|error| format!("--trait {given}: {error}"))?;
        traits[key] = Some(from_value(&value));
    }
    Ok(Context {
        has_area: traits.iter().any(Option::is_some),
        traits,
        input: interfaces.input,
        output: interfaces.output,
        interfaces: (0..policy.interfaces.len()).map(|name| Some(FIRST_NAMED + name as u32)).collect(),
        sampled: true,
        ..Context::default()
    })
}

/// The first of the numbers that stand for names of interfaces; indexes are lower (they are positive numbers of the C
/// type int).
const FIRST_NAMED: u32 = 1 << 31;

/// Interfaces by number, though only the host that loads the policy knows their indexes.
struct Interfaces {
    /// Of the policy, then those that were given.
    names: Vec<String>,
    input: Option<u32>,
    output: Option<u32>,
}

impl Interfaces {
    fn new(policy: &Policy, command: &Options) -> Interfaces {
        let mut interfaces = Interfaces { names: policy.interfaces.clone(), input: None, output: None };
        interfaces.input = command.iif.as_ref().map(|given| interfaces.number(given));
        interfaces.output = command.oif.as_ref().map(|given| interfaces.number(given));
        interfaces
    }

    fn number(&mut self, given: &str) -> u32 {
        if let Ok(index) = given.parse() {
            return index;
        }
        let place = self.names.iter().position(|name| name == given).unwrap_or_else(|| {
            self.names.push(given.to_owned());
            self.names.len() - 1
        });
        FIRST_NAMED + place as u32
    }

    fn text(&self, number: u32) -> String {
        match number.checked_sub(FIRST_NAMED).and_then(|place| self.names.get(place as usize)) {
            Some(name) => format!("{name:?}"),
            None => number.to_string(),
        }
    }
}

/// Tells what became of packets.
struct Report<'a> {
    checked: &'a Checked,
    interfaces: &'a Interfaces,
}

impl Report<'_> {
    fn policy(&self) -> &Policy {
        &self.checked.policy
    }

    fn text(&self, number: u64, of: usize, packet: &Captured, choice: &Choice, stages: &[Stage<'_>]) -> String {
        let mut text = String::new();
        if of > 1 {
            let _ = write!(text, "packet {number} of {of}: ");
        }
        let _ = write!(text, "{}", counted(packet.length, "byte"));
        if packet.bytes.len() < packet.length {
            let _ = write!(text, ", {} of them captured and looked at", packet.bytes.len());
        }
        text.push('\n');
        let _ = writeln!(text, "{}", way_text(choice));
        for stage in stages {
            let block = &self.policy().blocks[stage.block];
            let (file, line) = self.place(block.span);
            let _ = write!(text, "\n{} ({file}:{line})", block.hook);
            match &stage.meeting {
                Meeting::Judged { outcome, notes } => {
                    let _ = writeln!(text, ", {}", counted(outcome.length as usize, "byte"));
                    for note in notes {
                        let _ = writeln!(text, "  note: {note}");
                    }
                    self.block_text(&mut text, stage.block, outcome);
                }
                Meeting::NotOnWay => text.push_str("\n  not on the way\n"),
                Meeting::NotReached(why) => _ = writeln!(text, "\n  not reached: {why}"),
                Meeting::NotKnown(why) => _ = writeln!(text, "\n  not known: {why}"),
            }
        }
        if of > 1 {
            text.push('\n');
        }
        text + "\n"
    }

    fn block_text(&self, text: &mut String, number: usize, outcome: &Done<'_>) {
        let block = &self.policy().blocks[number];
        let first = self.policy().rule_numbers(number).start;
        for step in &outcome.steps {
            let rule = &block.rules[step.rule - first];
            let (_, line) = self.place(rule.span);
            let _ = writeln!(text, "  {} {line:>5}  {}", if step.holds { "yes" } else { " no" }, self.rule_text(rule));
            for test in &step.tests {
                let _ = writeln!(text, "               {}", self.test_line(test));
            }
            for action in &step.actions {
                let _ = writeln!(text, "             > {}", self.action_line(action));
            }
        }
        let _ = write!(text, "  {}", self.verdict(block, outcome.decision));
        match outcome.decided_by {
            Some(number) => _ = writeln!(text, ", by line {}", self.place(block.rules[number - first].span).1),
            None => text.push_str(", at the end of the block\n"),
        }
        let carried = self.carried(outcome);
        let carried: Vec<String> = carried.into_iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let carried = if carried.is_empty() { "no traits".to_owned() } else { carried.join(", ") };
        let _ = writeln!(text, "  carries {carried}");
        for (what, value) in [("mark", outcome.mark), ("priority", outcome.priority), ("queue", outcome.queue)] {
            if let Some(value) = value {
                let _ = writeln!(text, "  {what} {value}");
            }
        }
    }

    /// `not trait tenant is set: no, it is 7`
    fn test_line(&self, step: &TestStep<'_>) -> String {
        let test = shortened(&print_test(self.policy(), step.test));
        let answer = if step.passed { "yes" } else { "no" };
        match (self.value_of(step), step.test) {
            (None, _) => format!("{test}: {answer}, there is none"),
            // it is there, and that is all there is to say
            (Some(_), Test::Present(Presence::Field(_))) => format!("{test}: {answer}"),
            (Some(value), _) => format!("{test}: {answer}, it is {value}"),
        }
    }

    fn action_line(&self, step: &ActionStep<'_>) -> String {
        let action = shortened(&print_action(self.policy(), step.action));
        let value = self.value_in(step);
        match (step.effect, step.action) {
            (Effect::Done(_), Action::Delete(_)) => format!("{action}: it was {}", value.unwrap_or_default()),
            (Effect::Done(_), Action::Log { sample, .. }) if *sample > 1 => {
                format!("{action}: one of {sample} packets")
            }
            (Effect::Done(_), done) if !says_its_value(done) => match value {
                Some(value) => format!("{action}: {value}"),
                None => action,
            },
            (Effect::Done(_), _) => action,
            (Effect::Decided(decision), Action::Verdict(_)) => match decision {
                Decision::RedirectCpu(number) | Decision::RedirectXsk(Some(number)) | Decision::Member(number) => {
                    format!("{action}: {number}")
                }
                _ => action,
            },
            (Effect::Decided(_), _) => action,
            (Effect::Absent, Action::Delete(_)) => format!("{action}: not done, it is not set"),
            (Effect::Absent, Action::Verdict(_)) => format!("{action}: not taken, there is no value"),
            (Effect::Absent, _) => format!("{action}: not done, there is no value"),
            (Effect::NoArea, _) => format!("{action}: not done, XDP has given the packet no traits"),
            (Effect::NotSampled, _) => format!("{action}: not done, the packet is in no sample"),
        }
    }

    /// The value that a test is about.
    fn value_of(&self, step: &TestStep<'_>) -> Option<String> {
        let value = step.value?;
        Some(match *step.test {
            Test::Interface { .. } => self.interfaces.text(value as u32),
            Test::Present(Presence::Field(field)) => print_value(self.policy(), Operand::Field(field), value),
            Test::Present(Presence::Trait(key)) => self.operand_value(Operand::Trait(key), value),
            Test::Compare { operand, .. }
            | Test::Between { operand, .. }
            | Test::Masked { operand, .. }
            | Test::AnyBit { operand, .. }
            | Test::In { operand, .. } => self.operand_value(operand, value),
        })
    }

    fn operand_value(&self, operand: Operand, value: u128) -> String {
        match operand {
            Operand::Field(_) => print_value(self.policy(), operand, value),
            Operand::Trait(key) => to_value(self.policy().key(key).key_type, value).to_string(),
        }
    }

    /// The value that an action has used.
    fn value_in(&self, step: &ActionStep<'_>) -> Option<String> {
        let Effect::Done(Some(value)) = step.effect else { return None };
        Some(match step.action {
            Action::Set { key, .. } | Action::Delete(key) => self.operand_value(Operand::Trait(*key), value),
            Action::Count { by: Some(operand), .. } => self.operand_value(*operand, value),
            _ => value.to_string(),
        })
    }

    fn verdict(&self, block: &Block, decision: Decision) -> String {
        match (decision, block.hook) {
            (Decision::Accept, Hook::Match) => "match".to_owned(),
            (Decision::Drop, Hook::Match) => "no match".to_owned(),
            (Decision::Accept, _) => "accept".to_owned(),
            (Decision::Drop, _) => "drop".to_owned(),
            (Decision::RedirectDevice(Interface::Index(index)), _) => format!("redirect {index}"),
            (Decision::RedirectDevice(Interface::Name(name)), _) => {
                format!("redirect {:?}", self.policy().interfaces[name.0])
            }
            (Decision::RedirectCpu(cpu), _) => format!("redirect cpu {cpu}"),
            (Decision::RedirectXsk(Some(queue)), _) => format!("redirect xsk {queue}"),
            (Decision::RedirectXsk(None), _) => "redirect xsk".to_owned(),
            (Decision::Member(member), _) => format!("member {member}"),
            (Decision::Kernel, _) => "the kernel chooses".to_owned(),
        }
    }

    /// The traits that a packet leaves a block with: names and values.
    fn carried(&self, outcome: &Done<'_>) -> Vec<(String, String)> {
        let traits = self.policy().keys.iter().zip(&outcome.traits);
        traits
            .filter_map(|(key, value)| Some((key.name.to_string(), to_value(key.key_type, (*value)?).to_string())))
            .collect()
    }

    fn place(&self, span: Span) -> (&str, usize) {
        let sources = &self.checked.sources;
        (&sources.get(span.source).name, sources.line_column(span.source, span.start).0)
    }

    /// A rule as it is written, in one line.
    fn rule_text(&self, rule: &Rule) -> String {
        let words = self.checked.sources.text(rule.span).split_whitespace();
        // a line that goes on in the next one ends in a backslash
        words.filter(|word| *word != "\\").collect::<Vec<_>>().join(" ")
    }

    fn json(&self, number: u64, packet: &Captured, choice: &Choice, stages: &[Stage<'_>]) -> PacketJson {
        PacketJson {
            number,
            length: packet.length,
            captured: packet.bytes.len(),
            way: choice.way.map(Way::name),
            way_why: choice.why.clone(),
            blocks: stages.iter().map(|stage| self.block_json(stage)).collect(),
        }
    }

    fn block_json(&self, stage: &Stage<'_>) -> BlockJson {
        let block = &self.policy().blocks[stage.block];
        let (block_name, hook) = (block.name.clone(), block.hook.to_string());
        let absent = |state, why: &str| {
            let (block, hook, why_not) = (block_name.clone(), hook.clone(), Some(why.to_owned()));
            BlockJson { block, hook, state, why_not, ..BlockJson::default() }
        };
        let (outcome, notes) = match &stage.meeting {
            Meeting::Judged { outcome, notes } => (outcome, notes),
            Meeting::NotOnWay => return absent("not on the way", "it is not on the packet's way"),
            Meeting::NotReached(why) => return absent("not reached", why),
            Meeting::NotKnown(why) => return absent("not known", why),
        };
        let first = self.policy().rule_numbers(stage.block).start;
        let rules = outcome.steps.iter().map(|step| {
            let rule = &block.rules[step.rule - first];
            let (file, line) = self.place(rule.span);
            RuleJson {
                number: step.rule,
                file: file.to_owned(),
                line,
                text: self.rule_text(rule),
                holds: step.holds,
                tests: step
                    .tests
                    .iter()
                    .map(|test| TestJson {
                        test: print_test(self.policy(), test.test),
                        value: self.value_of(test),
                        passed: test.passed,
                    })
                    .collect(),
                actions: step
                    .actions
                    .iter()
                    .map(|action| ActionJson {
                        action: print_action(self.policy(), action.action),
                        done: matches!(action.effect, Effect::Done(_) | Effect::Decided(_)),
                        value: self.value_in(action),
                    })
                    .collect(),
            }
        });
        let actions = outcome.steps.iter().flat_map(|step| &step.actions);
        let counted = actions.filter_map(|step| match (step.action, step.effect) {
            (Action::Count { counter, .. }, Effect::Done(_)) => {
                Some(CountedJson { counter: self.policy().counters[counter.0].name.clone(), by: self.value_in(step) })
            }
            _ => None,
        });
        let text = |value: Option<u128>| value.map(|value| value.to_string());
        BlockJson {
            block: block_name,
            hook,
            state: "judged",
            reached: true,
            why_not: None,
            notes: notes.clone(),
            length: Some(outcome.length as u64),
            rules: rules.collect(),
            verdict: Some(self.verdict(block, outcome.decision)),
            decided_by: outcome.decided_by,
            traits: self.carried(outcome).into_iter().collect(),
            mark: text(outcome.mark),
            priority: text(outcome.priority),
            queue: text(outcome.queue),
            counted: counted.collect(),
            logged: outcome.logged.iter().map(|logged| logged.text.to_owned()).collect(),
        }
    }
}

/// `way: in, guessed: 10.0.0.1 is an address of eth0`
fn way_text(choice: &Choice) -> String {
    match (choice.way, choice.why.as_str()) {
        (Some(way), why @ ("--way" | "--hook")) => format!("way: {} ({why})", way.name()),
        (Some(way), why) => format!("way: {} (guessed: {why})", way.name()),
        (None, why) => format!("way: not known, judged as a received packet: {why}; use --way in, forward or out"),
    }
}

/// Whether the text of an action says what value it uses.
fn says_its_value(action: &Action) -> bool {
    match action {
        Action::Set { value, .. } | Action::Mark(value) | Action::Priority(value) | Action::Queue(value) => {
            matches!(value, Value::Constant(_))
        }
        _ => false,
    }
}

/// Text that fits a line: a set that is written in a rule can be long.
fn shortened(text: &str) -> String {
    const LENGTH_MAX: usize = 90;
    match text.char_indices().nth(LENGTH_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[derive(Serialize)]
struct ExplanationJson {
    file: String,
    packets: Vec<PacketJson>,
}

#[derive(Serialize)]
struct PacketJson {
    /// From 1.
    number: u64,
    length: usize,
    captured: usize,
    way: Option<&'static str>,
    way_why: String,
    blocks: Vec<BlockJson>,
}

#[derive(Default, Serialize)]
struct BlockJson {
    block: String,
    hook: String,
    state: &'static str,
    reached: bool,
    why_not: Option<String>,
    notes: Vec<String>,
    length: Option<u64>,
    rules: Vec<RuleJson>,
    verdict: Option<String>,
    decided_by: Option<usize>,
    traits: BTreeMap<String, String>,
    mark: Option<String>,
    priority: Option<String>,
    queue: Option<String>,
    counted: Vec<CountedJson>,
    logged: Vec<String>,
}

#[derive(Serialize)]
struct RuleJson {
    number: usize,
    file: String,
    line: usize,
    text: String,
    holds: bool,
    tests: Vec<TestJson>,
    actions: Vec<ActionJson>,
}

#[derive(Serialize)]
struct TestJson {
    test: String,
    value: Option<String>,
    passed: bool,
}

#[derive(Serialize)]
struct ActionJson {
    action: String,
    done: bool,
    value: Option<String>,
}

#[derive(Serialize)]
struct CountedJson {
    counter: String,
    by: Option<String>,
}
