//! Nothing that a file can contain makes the checker panic, hang or run out of stack.

mod common;

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use common::{check_text, good, robust::assert_robust, said};
use packet_traits_policy::{
    check::{CheckOptions, Texts, check},
    diagnostic::{Code, DIAGNOSTICS_MAX},
};
use proptest::prelude::*;

/// Policies to make others of: together they have every word of the language.
const SEEDS: &[&str] = &[
    include_str!("texts/language.traits"),
    "key a u32\nxdp {\n tcp dport { 1, 2-3 } set a = ip ttl map { 1-5 : 2, 3 : 4 }\n}\n",
    "xdp { not (tcp or udp) and ip saddr 10.0.0.0/8 drop; accept }",
];

/// Pieces that texts are put together from.
fn pieces() -> Vec<&'static str> {
    let mut pieces: Vec<&str> = SEEDS.iter().flat_map(|seed| seed.split_inclusive([' ', '\n'])).collect();
    pieces.extend([
        "{",
        "}",
        "(",
        ")",
        ",",
        ";",
        ":",
        "/",
        "-",
        "|",
        "&",
        "=",
        "==",
        "!=",
        "<",
        ">=",
        "\\\n",
        "#",
        "\"",
        "\"\\\"\"",
        "$ssh",
        "@bogons",
        "$",
        "@",
        "0",
        "1",
        "65535",
        "65536",
        "340282366920938463463374607431768211456",
        "0x",
        "0xff",
        "10.0.0.0/8",
        "10.0.0.1/0",
        "::/0",
        "fd00::1",
        "::",
        ":::",
        "02:00:00:00:00:01",
        "1.5s",
        "0.5ns",
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "not",
        "not not",
        "include \"other\"\n",
        "include \"none\"",
        "é",
        "\u{feff}",
        "\0",
        "\r\n",
        "5-tuple",
        "-9223372036854775808",
        "match m {",
        "netfilter input priority 0 {",
        "define d = { 1, 2 }\n",
    ]);
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        assert_robust(&bytes);
    }

    #[test]
    fn any_order_of_words(words in prop::collection::vec(prop::sample::select(pieces()), 0..80)) {
        assert_robust(words.join(" ").as_bytes());
        assert_robust(words.concat().as_bytes());
    }

    #[test]
    fn good_policies_with_changes(
        seed in prop::sample::select(SEEDS),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, prop::sample::select(pieces())), 1..6),
    ) {
        let mut text = seed.as_bytes().to_vec();
        for (place, removed, piece) in changes {
            let place = place.index(text.len() + 1);
            let end = (place + removed).min(text.len());
            text.splice(place..end, piece.bytes());
        }
        assert_robust(&text);
    }
}

/// The codes of what is wrong with a text.
fn codes(text: &str) -> Vec<Code> {
    assert_robust(text.as_bytes());
    check_text(text).err().map_or_else(Vec::new, |rejected| rejected.diagnostics.iter().map(|d| d.code).collect())
}

#[test]
fn nesting_has_a_limit() {
    for inside in ["not ", "(", "not (", "( not not "] {
        let nested = |depth| {
            let close = ")".repeat(depth * inside.matches('(').count());
            format!("xdp {{\n{} tcp {close} drop\n ip ttl 300 drop\n}}", inside.repeat(depth))
        };
        assert_eq!(codes(&nested(100_000)), [Code::TooDeep, Code::OutOfRange], "{inside}");
        assert_eq!(codes(&nested(10)), [Code::OutOfRange], "{inside}");
    }
    assert!(!codes(&"{".repeat(100_000)).is_empty());
    assert!(!codes(&format!("xdp {}", "{".repeat(100_000))).is_empty());
    assert!(!codes(&format!("define a = {}", "{".repeat(100_000))).is_empty());
    assert!(!codes(&")}".repeat(100_000)).is_empty());
}

#[test]
fn names_for_lists_of_names_do_not_blow_up() {
    let mut text = "define l0 = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }\n".to_owned();
    for level in 1..40 {
        let name = format!("$l{}, ", level - 1);
        let _ = writeln!(text, "define l{level} = {{ {} }}", name.repeat(10));
    }
    text.push_str("xdp { tcp dport $l39 drop }");
    assert!(codes(&text).contains(&Code::TooMany));

    let mut text = format!("define big = {{ {} }}\nxdp {{\n", (0..10_000).map(|n| format!("{n},")).collect::<String>());
    text.push_str(&"tcp dport $big drop\n".repeat(1_000));
    text.push('}');
    assert!(codes(&text).contains(&Code::TooMany));
}

#[test]
fn files_that_include_themselves_are_taken_in_once() {
    let texts = Texts::from_iter([
        ("a", "include \"b\"\ninclude \"./x/../a\"\nxdp { tcp dport $ssh drop }"),
        ("b", "include \"a\"\ninclude \"b\"\ndefine ssh = 22"),
    ]);
    let checked = check("a".as_ref(), &texts, &CheckOptions::default()).unwrap();
    assert_eq!(checked.sources.iter().count(), 2);

    let chain = (0..1_000).map(|n| (format!("f{n}"), format!("include \"f{}\"", n + 1)));
    let rejected = check("f0".as_ref(), &Texts::from_iter(chain), &CheckOptions::default()).unwrap_err();
    assert_eq!(rejected.diagnostics[0].code, Code::TooDeep);

    let many: String = (0..1_100).map(|n| format!("include \"f{n}\"\n")).collect();
    let files = (0..1_100).map(|n| (format!("f{n}"), String::new())).chain([("main".to_owned(), many)]);
    let rejected = check("main".as_ref(), &Texts::from_iter(files), &CheckOptions::default()).unwrap_err();
    assert_eq!(rejected.diagnostics[0].code, Code::TooMany);
}

#[test]
fn a_flood_of_mistakes_is_cut_off() {
    let rejected = check_text(&format!("xdp {{\n{}}}", "ip ttl 300 drop\n".repeat(2_000))).unwrap_err();
    assert_eq!(rejected.diagnostics.len(), DIAGNOSTICS_MAX);
    // no warning keeps an error out
    let warnings: String = (0..200).map(|n| format!("define d{n} = 1\n")).collect();
    let rejected = check_text(&format!("{warnings}xdp {{ ip ttl 300 drop }}")).unwrap_err();
    assert!(rejected.diagnostics.iter().any(|diagnostic| diagnostic.code == Code::OutOfRange));
}

/// Debug builds on a busy machine are what this is generous for; quadratic work would take minutes.
const SOON: Duration = Duration::from_secs(30);

fn soon(what: &str, work: impl FnOnce()) {
    let start = Instant::now();
    work();
    assert!(start.elapsed() < SOON, "{what}: {:?}", start.elapsed());
}

#[test]
fn large_files_are_checked_soon() {
    const LEN: usize = 1 << 19;
    const RULES: &str = "xdp {\n";
    const LIST: &str = "set s u32 = {";
    for (start, piece) in [
        ("", "tc ingress {}\n"),
        ("", "key a u32\n"),
        ("", "define a = 1\n"),
        ("", "set a u32 = { 1 }\n"),
        ("", "xdp {\n"),
        ("", "}\n"),
        ("", "{"),
        ("", "x"),
        ("", "\""),
        ("", "1."),
        ("", "::"),
        ("", "a\0"),
        ("", "# comment "),
        ("", "\\\n"),
        (RULES, "ip saddr 10.0.0.1 drop\n"),
        (RULES, "not "),
        (RULES, "tcp and "),
        (RULES, "ip ttl 300 or "),
        (RULES, "count "),
        (RULES, "bad\n"),
        (LIST, "1, "),
        (LIST, "1 "),
        (LIST, "1-"),
    ] {
        let text = start.to_owned() + &piece.repeat(LEN / piece.len());
        soon(piece, || drop(check_text(&text)));
    }
    let long = format!("xdp {{ {} ip ttl 300 drop }}", "tcp dport 1 ".repeat(100_000));
    soon("one long line", || {
        let rejected = check_text(&long).unwrap_err();
        assert!(said(&rejected).len() < 10_000);
    });
    let different: String = (0..20_000).map(|n| format!("and tcp dport != {n} and not udp sport {n} ")).collect();
    soon("one long condition", || drop(good(&format!("xdp {{ tcp {different} drop }}"))));
    let either: String = (0..20_000).map(|n| format!("or tcp dport {n} ")).collect();
    soon("one wide condition", || drop(good(&format!("xdp {{ tcp dport 1 {either} drop }}"))));
}

#[test]
fn a_map_of_many_prefixes_is_checked_soon() {
    let mut entries = String::new();
    for n in 0..10_000u32 {
        let _ = write!(entries, "10.{}.{}.0/24 : {n}, ", n >> 8, n & 0xff);
    }
    let text = format!(
        "key tenant u32\nmap big ipv4 : u32 = {{ 10.0.0.0/8 : 7, {entries} }}\n\
         xdp {{\n set tenant = ip saddr map @big\n ip saddr @big drop\n ip saddr != @big ip saddr 10.1.2.3 drop\n}}"
    );
    let start = Instant::now();
    let checked = good(&text);
    assert_eq!(checked.policy.tables[0].entries.len(), 10_001);
    assert_eq!(checked.warnings.len(), 1);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
