//! A block as a program: its functions and the program itself.

use packet_traits_core::KeyType;

use crate::{
    emit::{code::Code, packet, place::Place, rules::Scope, traits},
    policy::{Action, Block, Verdict},
    source::Sources,
};

/// Writes all that belongs to a block, whose rules' numbers start with `first_rule`.
pub(super) fn block(code: &mut Code, scope: &Scope<'_>, block: &Block, first_rule: usize, sources: &Sources) {
    let Scope { policy, keys, needs, place, .. } = *scope;
    let name = scope.block;
    code.comment(&format!("{} {{ … }}", one_line(sources.text(block.span)).trim_end_matches('{').trim_end()));
    packet::structure(code, name, needs);
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
        "__noinline int {name}_log({} *ctx, {traits_parameter}__u32 rule, __u32 text, __u32 length)",
        place.context()
    ));
    code.line(format_args!("struct {name}_event *record;"));
    code.blank();
    if !shown.is_empty() {
        code.line("if (!t)");
        code.line("\treturn 0;");
    }
    code.line("record = bpf_ringbuf_reserve(&pt_log, sizeof(*record), 0);");
    code.line("if (!record)");
    code.line("\treturn pt_log_lose(&pt_log_lost);");
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

fn program(code: &mut Code, scope: &Scope<'_>, block: &Block, first_rule: usize, sources: &Sources) {
    let Scope { needs, place, block: name, .. } = *scope;
    let counts = needs.counters.iter().any(|counter| scope.policy.counters[counter.0].by.is_none());
    let redirects = needs.redirects_to_device || needs.redirects_to_cpu || needs.redirects_to_xsk;
    let uses_traits = !needs.traits().is_empty();

    code.line(format_args!("SEC(\"{}\")", place.section()));
    code.function(format_args!("int {name}({} *ctx)", place.context()));
    code.line(format_args!("struct {name}_packet packet = {{}};"));
    if !block.rules.is_empty() {
        code.line(format_args!("const volatile struct {name}_packet *pkt = &packet;"));
        code.line("struct pt_hits *hits;");
    }
    if counts {
        code.line("struct pt_counters *counters;");
    }
    if uses_traits {
        code.line(format_args!("struct {name}_traits t = {{}};"));
    }
    if !needs.read.is_empty() {
        code.line("__u64 zero = pt_zero;");
    }
    if redirects {
        code.line("int verdict;");
    }
    code.blank();
    code.line(format_args!("{name}_parse(ctx, &packet);"));
    if traits::loads(place, needs) {
        code.line(format_args!("{name}_load(ctx, &t);"));
    }
    for (wanted, variable) in [(!block.rules.is_empty(), "hits"), (counts, "counters")] {
        if wanted {
            code.line(format_args!("{variable} = pt_first(&pt_{variable});"));
            code.line(format_args!("if (!{variable})"));
            code.line(format_args!("\t{}", place.end_of_block()));
        }
    }
    for (place, rule) in block.rules.iter().enumerate() {
        let (line, _) = sources.line_column(rule.span.source, rule.span.start);
        code.blank();
        code.comment(&format!("{}:{line}\n{}", sources.get(rule.span.source).name, outdented(sources.text(rule.span))));
        scope.rule(code, rule, first_rule + place);
    }
    code.blank();
    let accepts = block.rules.iter().flat_map(|rule| &rule.actions).any(|action| match action {
        Action::Verdict(Verdict::Accept) => scope.finishes,
        Action::Verdict(Verdict::RedirectXsk(_)) => true,
        _ => false,
    });
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
    code.close();
}

/// What is done before a packet goes on; `seals` unless it goes to an AF_XDP socket.
fn finish(code: &mut Code, scope: &Scope<'_>, seals: bool) {
    if !scope.needs.changed.is_empty() {
        code.line(format_args!("{}_store(ctx, &t);", scope.block));
    }
    if seals && scope.seal && scope.place == Place::Xdp {
        code.line("trait_seal(ctx);");
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
