//! A block as a program: its functions and the program itself.

use std::ops::Range;

use packet_traits_core::KeyType;

use crate::{
    emit::{code::Code, needs::Needs, packet, place::Place, rules::Scope, traits},
    policy::{Action, Block, Rule, Verdict},
    source::Sources,
    symbols::{COUNTERS, HITS, LOG, LOG_LOST, MAY_INHERIT},
};

/// How much the rules of one function may weigh, as [`Scope::weight`] does: some ten instructions for each unit.
const PART_WEIGHT_MAX: usize = 2000;

/// Writes all that belongs to a block, whose rules' numbers start with `first_rule`.
pub(super) fn block(code: &mut Code, scope: &Scope<'_>, block: &Block, first_rule: usize, sources: &Sources) {
    let Scope { policy, keys, needs, place, .. } = *scope;
    let name = scope.block;
    code.comment(&format!("{} {{ … }}", one_line(sources.text(block.span)).trim_end_matches('{').trim_end()));
    packet::structure(code, name, place, needs);
    code.blank();
    packet::parser(code, name, block.hook, needs);
    code.blank();
    if !needs.traits().is_empty() {
        traits::structure(code, name, policy, keys, needs, place);
        code.blank();
    }
    if traits::loads(place, needs) {
        traits::load(code, name, policy, keys, needs, place);
        code.blank();
    }
    if !needs.changed.is_empty() {
        traits::store(code, name, policy, keys, needs, place);
        code.blank();
    }
    if !needs.logs.is_empty() {
        log(code, scope);
        code.blank();
    }
    program(code, scope, block, first_rule, sources);
}

/// The function `<name>_log`, which tells of the packet.
fn log(code: &mut Code, scope: &Scope<'_>) {
    let Scope { policy, keys, needs, place, block: name, .. } = *scope;
    let shown = needs.traits();
    code.open(format_args!("struct {name}_event"));
    code.line("struct pt_log_event event;");
    if !shown.is_empty() {
        code.line(format_args!("struct pt_log_trait trait[{}];", shown.len()));
    }
    code.close_with(";");
    code.blank();
    let traits_parameter = if shown.is_empty() { String::new() } else { format!("const struct {name}_traits *t, ") };
    code.function(format_args!(
        "__trait_global int {name}_log({} *ctx, {traits_parameter}__u32 rule, __u32 text, __u32 length)",
        place.context()
    ));
    code.line(format_args!("struct {name}_event *record;"));
    code.blank();
    if !shown.is_empty() {
        code.line("if (!t)");
        code.line("\treturn 0;");
    }
    code.line(format_args!("record = bpf_ringbuf_reserve(&{LOG}, sizeof(*record), 0);"));
    code.line("if (!record)");
    code.line(format_args!("\treturn pt_log_lose(&{LOG_LOST});"));
    code.line(format_args!(
        "pt_log_begin(&record->event, rule, text, {}, length, {});",
        place.any_interface(),
        shown.len()
    ));
    code.line(format_args!("{}(ctx, &record->event);", place.log_packet()));
    for (at, id) in shown.iter().enumerate() {
        let key = &keys[id.0];
        let number = if policy.key(*id).key_type == KeyType::Flag { "0".to_owned() } else { format!("t->{key}") };
        code.line(format_args!("record->trait[{at}] = pt_log_trait({}, t->_present & HAS_{key}, {number});", id.0));
    }
    code.line("bpf_ringbuf_submit(record, 0);");
    code.line("return 0;");
    code.close();
}

/// The variables that rules refer to which need this, from the declarations on.
fn variables(code: &mut Code, scope: &Scope<'_>, needs: &Needs) {
    code.line(format_args!("struct {HITS} *hits;"));
    if counts(scope, needs) {
        code.line(format_args!("struct {COUNTERS} *counters;"));
    }
    if !needs.read.is_empty() {
        code.line("__u64 zero = __trait_unknown_zero;");
    }
    if needs.redirects() {
        code.line("int verdict;");
    }
}

/// Looks up where hits and counts are kept; a statement says what to do if that fails, as it never does.
fn lookups(code: &mut Code, scope: &Scope<'_>, needs: &Needs, failed: &str) {
    for (wanted, variable) in [(true, "hits"), (counts(scope, needs), "counters")] {
        if wanted {
            code.line(format_args!("{variable} = pt_first(&pt_{variable});"));
            code.line(format_args!("if (!{variable})"));
            code.line(format_args!("\t{failed}"));
        }
    }
}

fn counts(scope: &Scope<'_>, needs: &Needs) -> bool {
    needs.counters.iter().any(|counter| scope.policy.counters[counter.0].by.is_none())
}

/// Writes rules, each under its source.
fn rules(code: &mut Code, scope: &Scope<'_>, rules: &[Rule], first: usize, sources: &Sources) {
    for (place, rule) in rules.iter().enumerate() {
        let (line, _) = sources.line_column(rule.span.source, rule.span.start);
        code.blank();
        code.comment(&format!("{}:{line}\n{}", sources.get(rule.span.source).name, outdented(sources.text(rule.span))));
        scope.rule(code, rule, first + place);
    }
}

/// The numbers of rules that go into one function each: jumps reach 32,767 instructions, and the verifier follows
/// 8,192 branches in one go (BPF_COMPLEXITY_LIMIT_JMP_SEQ in kernel/bpf/verifier.c).
fn parts(block: &Block, scope: &Scope<'_>) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let (mut start, mut weight) = (0, 0);
    for (number, rule) in block.rules.iter().enumerate() {
        let more = scope.weight(rule);
        if number > start && weight + more > PART_WEIGHT_MAX {
            parts.push(start..number);
            (start, weight) = (number, 0);
        }
        weight += more;
    }
    if start < block.rules.len() {
        parts.push(start..block.rules.len());
    }
    parts
}

/// The function `<name>_rules_<number>`: some of a block's many rules. It returns what they decide.
fn part(code: &mut Code, scope: &Scope<'_>, number: usize, some: &[Rule], first: usize, sources: &Sources) {
    let Scope { needs, place, block: name, .. } = *scope;
    let traits_parameter = match needs.traits().is_empty() {
        true => String::new(),
        false => format!(", struct {name}_traits *t"),
    };
    code.function(format_args!(
        "__trait_global __u64 {name}_rules_{number}({} *ctx, const __trait_reloaded struct {name}_packet *pkt{traits_parameter})",
        place.context()
    ));
    // not of the whole block: the compiler warns of what is not used
    let own = Needs::of(some);
    variables(code, scope, &own);
    code.blank();
    let pointers = if needs.traits().is_empty() { "!pkt" } else { "!pkt || !t" };
    code.line(format_args!("if ({pointers})"));
    code.line("\treturn PT_NEXT;");
    lookups(code, scope, &own, "return PT_NEXT;");
    rules(code, scope, some, first, sources);
    code.blank();
    code.line("return PT_NEXT;");
    if own.redirects_to_device || own.redirects_to_cpu {
        code.label("redirect");
        code.line("return (__u32)verdict;");
    }
    if own.redirects_to_xsk {
        code.label("redirect_xsk");
        code.line("return verdict == XDP_PASS ? PT_ACCEPT : PT_TO_XSK;");
    }
    code.close();
    code.blank();
}

fn program(code: &mut Code, scope: &Scope<'_>, block: &Block, first_rule: usize, sources: &Sources) {
    let Scope { needs, place, block: name, .. } = *scope;
    let parts = parts(block, scope);
    let whole = parts.len() < 2;
    if !whole {
        let scope = Scope { is_part: true, ..*scope };
        for (number, range) in parts.iter().enumerate() {
            part(code, &scope, number, &block.rules[range.clone()], first_rule + range.start, sources);
        }
    }

    code.line(format_args!("SEC(\"{}\")", place.section()));
    code.function(format_args!("int {name}({} *ctx)", place.context()));
    code.line(format_args!("struct {name}_packet packet = {{}};"));
    if !block.rules.is_empty() {
        code.line(format_args!("const __trait_reloaded struct {name}_packet *pkt = &packet;"));
    }
    if !needs.traits().is_empty() {
        code.line(format_args!("struct {name}_traits traits = {{}}, *t = &traits;"));
    }
    if !whole {
        code.line("__u64 decided;");
    } else if !block.rules.is_empty() {
        variables(code, scope, needs);
    }
    code.blank();
    code.line(format_args!("{name}_parse(ctx, &packet);"));
    if traits::loads(place, needs) {
        code.line(format_args!("{name}_load(ctx, t);"));
    }
    if whole && !block.rules.is_empty() {
        lookups(code, scope, needs, place.end_of_block());
        rules(code, scope, &block.rules, first_rule, sources);
        code.blank();
    }
    let traits_argument = if needs.traits().is_empty() { "" } else { ", t" };
    for number in 0..if whole { 0 } else { parts.len() } {
        code.line(format_args!("decided = {name}_rules_{number}(ctx, pkt{traits_argument});"));
        code.line("if (decided != PT_NEXT)");
        code.line("\tgoto decided;");
    }
    let accepts = block.rules.iter().flat_map(|rule| &rule.actions).any(|action| match action {
        Action::Verdict(Verdict::Accept) => scope.finishes,
        Action::Verdict(Verdict::RedirectXsk(_)) => true,
        _ => false,
    });
    if whole {
        if accepts {
            code.label("accept");
        }
        finish(code, scope, true);
        code.line(place.end_of_block());
        if needs.redirects_to_device || needs.redirects_to_cpu {
            code.label("redirect");
            finish(code, scope, true);
            code.line("return verdict;");
        }
        if needs.redirects_to_xsk {
            code.label("redirect_xsk");
            code.line("if (verdict == XDP_PASS) /* no such socket */");
            code.line("\tgoto accept;");
            finish(code, scope, false);
            code.line("pt_init_for_xsk(ctx);");
            code.line("return verdict;");
        }
    } else {
        finish(code, scope, true);
        code.line(place.end_of_block());
        code.label("decided");
        code.line("if (decided == PT_DROP)");
        code.line(format_args!("\t{}", place.drop()));
        if needs.redirects_to_xsk {
            code.open("if (decided == PT_TO_XSK)");
            finish(code, scope, false);
            code.line("pt_init_for_xsk(ctx);");
            code.line("return XDP_REDIRECT;");
            code.close();
        }
        finish(code, scope, true);
        if needs.redirects_to_device || needs.redirects_to_cpu || place == Place::Steer {
            code.line("if (decided != PT_ACCEPT)");
            code.line("\treturn decided;");
        }
        code.line(place.accept());
    }
    code.close();
}

/// What is done before a packet goes on; `seals` unless it goes to an AF_XDP socket, whose reader sees what is there.
fn finish(code: &mut Code, scope: &Scope<'_>, seals: bool) {
    if !scope.needs.changed.is_empty() {
        code.line(format_args!("{}_store(ctx, t);", scope.block));
    }
    if seals && scope.seal && scope.place == Place::Xdp {
        code.line("trait_seal(ctx);");
    }
    if seals && scope.drops_inherited {
        code.line(format_args!("if ({MAY_INHERIT})"));
        code.line("\ttrait_drop_inherited(ctx);");
    }
}

/// Text without its line breaks.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Text whose lines after the first do not begin with white space.
fn outdented(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("\n    ")
}
