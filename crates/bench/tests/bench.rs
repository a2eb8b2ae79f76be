//! `traits bench` on the kernel: what it prints, never how fast it is.
//!
//! Not even a generous bound on a time: on a busy or emulated machine an operation can take ten times as long as it
//! should, and then the failure says something about the machine. Whether the expectation held is in the report, for
//! people to compare on a quiet one. What a program costs that does not depend on the machine, the instructions the
//! verifier counts, is bounded in packet-traits' verifier_budget.rs.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output, Stdio},
};

use packet_traits_testing::{kernel::enabled, process};
use serde_json::Value;

/// What every kernel has, in the order of the report.
const REQUIRED: [&str; 12] = [
    "get",
    "set",
    "del",
    "batch_get4",
    "reserve_seal",
    "skb_get",
    "raw_get",
    "raw_set",
    "call",
    "helper",
    "array",
    "lru_percpu_hash",
];

fn bench_ops(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_traits-bench"));
    command.arg("ops").args(arguments).output().unwrap()
}

fn stdout_of(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn json_has_every_operation_with_its_baseline() {
    if !enabled() {
        return;
    }
    let report: Value = serde_json::from_str(&stdout_of(bench_ops(&["--json", "--rounds", "5"]))).unwrap();
    let cases = report["cases"].as_array().unwrap();
    let names: Vec<&str> = cases.iter().map(|case| case["name"].as_str().unwrap()).collect();
    assert_eq!(names[..REQUIRED.len()], REQUIRED);
    for case in cases {
        let number = |member: &str| case[member].as_f64().unwrap_or_else(|| panic!("{member} of {case}"));
        assert!(number("ns") > 0.0, "{case}");
        assert!(number("spread_ns") >= 0.0, "{case}");
        assert!(number("over_empty_ns").abs() <= 1e6, "{case}");
        assert!(names.contains(&case["raw"].as_str().unwrap()), "{case}");
        assert!(case["baseline"].is_string(), "{case}");
    }
    let member = |case: &str, member: &str| cases[names.iter().position(|name| *name == case).unwrap()][member].clone();
    // what takes tens of nanoseconds anywhere is above nothing, however busy the machine is
    assert!(member("lru_percpu_hash", "over_empty_ns").as_f64().unwrap() > 0.0);
    assert!(member("reserve_seal", "over_empty_ns").as_f64().unwrap() > 0.0);
    assert!(report["expectation"]["held"].is_boolean());
    assert_eq!(report["rounds"], 5);
}

#[test]
fn text_ends_with_whether_the_expectation_held() {
    if !enabled() {
        return;
    }
    let text = stdout_of(bench_ops(&["--rounds", "1"]));
    for name in REQUIRED {
        assert!(text.lines().any(|line| line.split_whitespace().next() == Some(name)), "no {name} in\n{text}");
    }
    let last = text.lines().last().unwrap();
    assert!(last.ends_with("held in this run") || last.ends_with("did not hold in this run"), "{last}");
}

#[test]
fn an_interrupted_bench_ends_and_says_so() {
    if !enabled() {
        return;
    }
    for bench in ["ops", "sockets", "trace", "policy", "containers"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_traits-bench"));
        command
            .args([
                bench,
                "--rounds",
                if matches!(bench, "trace" | "policy" | "containers") { "1000" } else { "100000" },
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let running = command.spawn().unwrap();
        process::interrupt(&running);
        let output = running.wait_with_output().unwrap();
        let said = (output.status.code(), process::text(&output.stdout), process::text(&output.stderr));
        assert_eq!(said, (Some(130), String::new(), "traits: interrupted, nothing is left\n".to_owned()), "{bench}");
    }
}

#[test]
fn every_bench_needs_root_and_says_so() {
    if !enabled() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("traits-bench");
    fs::copy(env!("CARGO_BIN_EXE_traits-bench"), &program).unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for bench in ["ops", "policy", "sockets", "trace", "containers", "border"] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).arg(bench);
        let output = command.output().unwrap();
        let said = process::text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{bench}: {said}");
        let says_so = ["run as root", "run it as root", "run `sudo traits ", "needs root"];
        assert!(says_so.iter().any(|words| said.contains(words)), "{bench}: {said}");
    }
}

#[test]
fn no_rounds_are_wrong_usage() {
    let output = bench_ops(&["--rounds", "0"]);
    assert_eq!(output.status.code(), Some(2));
}

/// What `traits bench sockets` reports, by kind.
const SOCKET_CASES: [(&str, &[&str]); 3] = [
    (
        "receive",
        &["recvmsg", "recvmsg_attached", "recvmsg_mark", "recv_ring", "recv_getsockopt", "recvmmsg", "batch_ring"],
    ),
    ("deliver", &["recvmsg", "recvmsg_attached", "recv_ring", "send", "send_with_traits"]),
    ("option", &["getsockopt", "getsockopt_attached", "syn_one", "syn_all", "last_all", "set_socket_trait"]),
];

#[test]
fn bench_sockets_reports_every_case_against_its_baseline() {
    if !enabled() {
        return;
    }
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_traits-bench"));
        let output = command.args(["sockets", "--rounds", "2"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let report: Value = serde_json::from_str(&run(&["--json"])).unwrap();
    let cases = report["cases"].as_array().unwrap();
    for (kind, names) in SOCKET_CASES {
        for name in names {
            let case = cases.iter().find(|case| case["kind"] == kind && case["name"] == *name);
            let case = case.unwrap_or_else(|| panic!("no {kind} {name} in {report}"));
            assert!(case["ns"].as_f64().unwrap() > 0.0 && case["to_baseline"].as_f64().unwrap() > 0.0, "{case}");
        }
    }
    assert!(report["expectation"]["recv_ring_to_recvmsg"].as_f64().unwrap() > 0.0);
    assert!(report["expectation"]["held"].is_boolean());
    assert!(run(&[]).contains("of plain recvmsg's rate"));
}

#[test]
fn bench_trace_reports_every_case_against_untraced_packets() {
    if !enabled() {
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_traits-bench"));
    let output = command.args(["trace", "--rounds", "1", "--packets", "2000", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (ids, names) in [
        ("own", &["untraced", "none", "armed", "sampled", "all"][..]),
        ("policy", &["untraced", "none", "armed", "sampled", "all"]),
    ] {
        for name in names {
            let cases = report["cases"].as_array().unwrap();
            let case = cases.iter().find(|case| case["ids"] == ids && case["name"] == *name);
            let case = case.unwrap_or_else(|| panic!("no {ids} {name} in {report}"));
            assert!(case["pps"].as_f64().unwrap() > 0.0 && case["to_untraced"].as_f64().unwrap() > 0.0, "{case}");
            // of 2100 packets, nine events each, or none
            let traced = case["events_per_s"].as_f64().unwrap() > 0.0;
            assert_eq!(traced, matches!(*name, "all" | "sampled"), "{case}");
        }
    }
    assert!(report["bpftrace"]["events_per_s"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["expectation"]["none_to_untraced_policy"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["expectation"]["held"].is_boolean());
}

#[test]
fn bench_containers_reports_every_kind_of_traffic_against_its_links_first_case() {
    if !enabled() {
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_traits-bench"));
    let few = ["containers", "--rounds", "1", "--time", "50", "--json"];
    let report: Value = serde_json::from_str(&stdout_of(command.args(few).output().unwrap())).unwrap();
    let names = [
        ("veth", &["no_xdp", "empty_native", "traits_native", "traits_native_gro", "traits_generic"][..]),
        ("bridge", &["untraced", "none", "armed", "armed_generic", "sampled", "sampled_generic"]),
    ];
    let cases = report["cases"].as_array().unwrap();
    let expected: Vec<_> =
        names.iter().flat_map(|(link, names)| names.iter().map(move |name| (*link, *name))).collect();
    let found: Vec<_> =
        cases.iter().map(|case| (case["link"].as_str().unwrap(), case["name"].as_str().unwrap())).collect();
    assert_eq!(found, expected);
    for case in cases {
        for traffic in ["stream", "streams", "small"] {
            let number = |member: &str| case[traffic][member].as_f64().unwrap();
            assert!(number("rate") > 0.0 && number("to_first") > 0.0 && number("spread") == 0.0, "{case}");
        }
    }
}

#[test]
fn bench_border_reports_both_directions_against_an_empty_program() {
    if !enabled() {
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_traits-bench"));
    let few = ["border", "--rounds", "1", "--packets", "500", "--json"];
    let report: Value = serde_json::from_str(&stdout_of(command.args(few).output().unwrap())).unwrap();
    let cases = report["cases"].as_array().unwrap();
    let found: Vec<_> =
        cases.iter().map(|case| (case["direction"].as_str().unwrap(), case["at"].as_str().unwrap())).collect();
    let at = ["nothing", "empty", "border"];
    let expected: Vec<_> = ["out", "in"].into_iter().flat_map(|direction| at.map(|at| (direction, at))).collect();
    assert_eq!(found, expected);
    for case in cases {
        assert!(case["ns"].as_f64().unwrap() > 0.0, "{case}");
        assert!(case["at"] != "empty" || case["over_empty_ns"] == 0.0, "{case}");
    }
}

#[test]
fn bench_policy_reports_every_place_against_nftables() {
    if !enabled() {
        return;
    }
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_traits-bench"));
        let few = ["policy", "--rounds", "1", "--packets", "1000"];
        stdout_of(command.args(few).args(arguments).output().unwrap())
    };
    let report: Value = serde_json::from_str(&run(&["--sizes", "1,100", "--json"])).unwrap();
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 3 * 2 * 3);
    for rules in ["rules", "set", "map"] {
        for size in [1, 100] {
            for place in ["xdp", "tc", "nft"] {
                let is_it = |case: &&Value| case["rules"] == rules && case["size"] == size && case["place"] == place;
                let case = cases.iter().find(is_it).unwrap_or_else(|| panic!("no {rules} {size} {place} in {report}"));
                assert!(case["ns"].as_f64().unwrap() > 0.0 && case["pps"].as_f64().unwrap() > 0.0, "{case}");
                let to_nft = case["to_nft"].as_f64().unwrap();
                assert!(if place == "nft" { to_nft == 1.0 } else { to_nft > 0.0 }, "{case}");
            }
        }
    }
    assert!(report["expectation"]["held"].is_boolean());
    assert!(run(&["--sizes", "1"]).contains("times as fast as nft"));
}
