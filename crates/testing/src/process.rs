//! Commands that a test runs.

use std::{
    fs,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Sends Ctrl-C's signal to a command as soon as it wants to be told.
pub fn interrupt(process: &Child) {
    let status = format!("/proc/{}/status", process.id());
    // proc_pid_status(5): a mask, in which the signal of number 1 is bit 0
    let has = |mask: &str| {
        let status = fs::read_to_string(&status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(mask)).expect(mask);
        u64::from_str_radix(line.trim(), 16).unwrap() >> (Signal::INT.as_raw() - 1) & 1 == 1
    };
    soon("the command catches SIGINT", || has("SigCgt:"));
    kill_process(Pid::from_child(process), Signal::INT).unwrap();
    soon("it has got it", || !has("ShdPnd:"));
}

/// Waits until a command waits for a lock that the test holds.
pub fn wait_for_lock(process: &Child) {
    let pid = process.id().to_string();
    // proc_locks(5): `1: -> FLOCK ADVISORY WRITE PID …` is one that waits
    let waits = |line: &str| line.contains("->") && line.split_whitespace().any(|word| word == pid);
    soon("the command waits for the lock", || fs::read_to_string("/proc/locks").unwrap().lines().any(waits));
}

/// Waits for what another process does.
pub fn soon(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Output as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
