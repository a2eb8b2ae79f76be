#!/usr/bin/env python3
"""Runs kernel tests on the kernels of tools/kernels, in the machines of tools/on-kernel.sh.

    cargo test --workspace --no-run --message-format=json | sudo -E tools/test-kernels.py chosen
    cargo test --workspace --profile emulated --no-run --message-format=json | sudo -E tools/test-kernels.py all [KERNEL...] \
        [CRATE/TEST...]

Cargo says where it put them. `chosen` runs those of tools/test-kernels.chosen. `all` runs every kernel test of the
workspace on each kernel and on this machine's ("host"), or on those given, and writes docs/kernels.md. Which tests are
kernel tests the test binaries say: with TRAITS_SKIP_KERNEL=1 these report that they are skipped. CRATE/TEST names a
binary, such as traits/registry: then only those named are run.

What came of each binary is kept in target/kernels/results, with its output: `all` runs again only what failed or was
built since. What docs/kernels.md says is kept in docs/kernels.json, so that a run of some binaries or on some kernels
leaves the others as they were. A kernel that is not there is skipped by name; on Debian, which has them, that is a
failure where CI is set.
"""

import concurrent.futures
import datetime
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
PROJECT = TOOLS.parent
KERNELS = Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target")).resolve() / "kernels"
RESULTS = KERNELS / "results"
DOCUMENT = PROJECT / "docs/kernels.md"
# what is in it, by kernel
SEEN = PROJECT / "docs/kernels.json"
# the kernel that this runs on
HOST = "host"
# Seconds that a binary may take: far more than it does. One that hangs is to be seen before whoever waits gives up.
TIMEOUT_CHOSEN = 600
TIMEOUT_ALL = 3600
# Binaries a boot: a boot costs some seconds, and what runs in it is lost if the kernel dies.
BOOT = 4
# What tests do less of where all is emulated: see policy_differential, policy_up, loads of policies, and trace.
EMULATED = {
    "TRAITS_POLICY_CASES": "8",
    "TRAITS_KILLED_COMMANDS": "6",
    "TRAITS_FEWER_POLICIES": "1",
    "TRAITS_NO_BROWSER": "1",
}
# What is not run there, by (crate, binary), and why.
NOT_EMULATED = {("bench", "bench"): "it measures time, which emulation makes meaningless"}
# The lines of crates/lab/src/requirements.rs, which may stand within a line of libtest's.
REPORT = re.compile(r"(skipped|left out): (\S+): (.*)\n")
FINE = ("passed", "skipped")


@dataclass
class Job:
    """A command of one boot, and the tests that it runs, if that is known."""

    crate: str
    name: str
    command: list[str]
    tests: list[str] = field(default_factory=list)

    def title(self):
        return f"{self.crate} {self.name}"


@dataclass
class Outcome:
    """What came of a job: per test what and why, what tests left out, and seconds; of one that was kept also when."""

    tests: dict[str, tuple[str, str]]
    left_out: list[tuple[str, str]]
    seconds: int
    commit: str = ""
    date: str = ""

    def count(self, what):
        return sum(result == what for result, _ in self.tests.values())

    def failed(self):
        return any(result not in FINE for result, _ in self.tests.values())

    def summary(self):
        return ", ".join(f"{self.count(what)} {what}" for what in ("passed", "skipped", "failed"))


lock = threading.Lock()


def say(*words):
    with lock:
        print(*words, flush=True)


def kernels():
    """The names in tools/kernels."""
    lines = (TOOLS / "kernels").read_text().splitlines()
    return [line.split()[0] for line in lines if line and not line.startswith("#")]


def why_not(kernel):
    """Why tests cannot run on a kernel, or None."""
    if os.environ.get("TRAITS_SKIP_KERNEL") == "1":
        return "TRAITS_SKIP_KERNEL=1"
    if kernel == HOST or (KERNELS / kernel / "vmlinuz").exists():
        return None
    reason = KERNELS / f"{kernel}.why"
    if reason.exists():
        return reason.read_text().strip()
    return f"no kernel in {KERNELS / kernel}; tools/setup.sh kernel fetches it or says why not"


def release(kernel):
    if kernel == HOST:
        return os.uname().release
    return (KERNELS / kernel / "release").read_text().strip()


def is_debian():
    return "\nID=debian\n" in "\n" + Path("/etc/os-release").read_text()


def available(wanted):
    """Those of the kernels that are there; names the others."""
    missing = {kernel: reason for kernel in wanted if (reason := why_not(kernel))}
    for kernel, reason in missing.items():
        print(f"skipped: tests on the kernel {kernel}: {reason}")
    if missing and os.environ.get("CI") and os.environ.get("TRAITS_SKIP_KERNEL") != "1" and is_debian():
        sys.exit("test-kernels: CI is set, so all kernels must be there")
    return [kernel for kernel in wanted if kernel not in missing]


def built(messages):
    """The executables among cargo's messages: tests by (crate, test), and programs by name."""
    tests, programs = {}, {}
    for line in messages:
        message = json.loads(line)
        if not message.get("executable"):
            continue
        crate = Path(message["manifest_path"]).parent.name
        target = message["target"]
        if not message["profile"]["test"]:
            programs[target["name"]] = message["executable"]
        elif "test" in target["kind"]:
            tests[crate, target["name"]] = message["executable"]
        else:
            tests[crate, f"({target['kind'][0]})"] = message["executable"]
    return tests, programs


def script(jobs, timeout):
    """What runs the jobs, and marks where the output of each begins and ends."""
    lines = []
    for number, job in enumerate(jobs):
        lines += [
            f"cd {shlex.quote(str(PROJECT / 'crates' / job.crate))}",
            f'echo "@@ begin {number}"; start=$SECONDS',
            f"timeout --kill-after=5 {timeout} {shlex.join(job.command)} 2>&1; status=$?",
            f'echo; echo "@@ end {number} $status $((SECONDS - start))"',
        ]
    return "\n".join(lines)


def judge(job, output, status, seconds):
    """The outcome of a job from its output. `status` is None if the machine died."""
    # what is kept names files of the project as everyone has them
    output = output.replace(f"{PROJECT}/", "")
    reports = REPORT.findall(output)
    plain = REPORT.sub("", output)
    skipped = {test: why for kind, test, why in reports if kind == "skipped"}
    left_out = [(test, why) for kind, test, why in reports if kind == "left out"]
    lines = dict(re.findall(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED)", plain, re.MULTILINE))
    failures = set(re.findall(r"^---- (\S+) stdout ----", plain, re.MULTILINE))
    names = job.tests or list(lines) or [job.name]
    if status is None:
        unended = "the kernel died"
    elif status in (124, 137):
        unended = f"not ended after {seconds} s"
    else:
        unended = f"status {status}"
    ended = "test result: " in plain
    tests = {}
    for name in names:
        if status == 0 or (ended and name not in failures) or lines.get(name) == "ok":
            tests[name] = ("skipped", skipped[name]) if name in skipped else ("passed", "")
        else:
            tests[name] = ("failed", "" if name in failures or lines.get(name) == "FAILED" else unended)
    if status != 0 and all(result in FINE for result, _ in tests.values()):
        tests[job.name] = ("failed", unended)
    return Outcome(tests, left_out, seconds)


def run(kernel, jobs, timeout, ended):
    """Runs jobs on a kernel, in one boot; calls `ended` with each job, its outcome and its output. The jobs not begun."""
    environment = {"ON_KERNEL_TIMEOUT": str(timeout * len(jobs) + 120)} | dict(os.environ)
    command = ["bash", "-c", script(jobs, timeout)]
    if kernel != HOST:
        # it ends when this program does
        command = ["setpriv", "--pdeathsig", "TERM", str(TOOLS / "on-kernel.sh"), *command]
        # reading what a backtrace needs takes minutes there
        environment = EMULATED | environment | {"ON_KERNEL": kernel, "RUST_BACKTRACE": "0"}
    machine = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    current, begun, output, rest = None, 0, [], []
    for line in machine.stdout:
        words = line.split()
        if words[:2] == ["@@", "begin"]:
            current, output = int(words[2]), []
            begun, start = current + 1, time.monotonic()
            continue
        if words[:2] == ["@@", "end"]:
            text = "".join(output)
            ended(jobs[current], judge(jobs[current], text, int(words[3]), int(words[4])), text)
            current = None
            continue
        (rest if current is None else output).append(line)
    status = machine.wait()
    if current is not None:
        text = "".join(output)
        ended(jobs[current], judge(jobs[current], text, None, int(time.monotonic() - start)), text)
    elif status != 0 and begun == 0:
        sys.exit(f"test-kernels: nothing ran on the kernel {kernel}:\n{''.join(rest)}")
    return jobs[begun:]


def side_by_side(function, items):
    """Calls the function for the items, as many at once as there are processors: a machine has one thread."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


def chosen_jobs(tests, programs):
    """The jobs of tools/test-kernels.chosen by kernel."""
    jobs = {}
    for line in (TOOLS / "test-kernels.chosen").read_text().splitlines():
        words = line.split("#")[0].split()
        if not words:
            continue
        where, crate, name, *arguments = words
        if crate == "run":
            executable, crate, title = programs.get(name), "cli", " ".join([name, *arguments])
        else:
            executable, title = tests.get((crate, name)), name
        if not executable:
            sys.exit(f"test-kernels: cargo has not built {crate} {name} of tools/test-kernels.chosen")
        for kernel in where.split(","):
            jobs.setdefault(kernel, []).append(Job(crate, title, [executable, *arguments]))
    return jobs


def run_chosen(tests, programs):
    jobs = chosen_jobs(tests, programs)
    failed = []

    def on(kernel):
        def ended(job, outcome, output):
            say(f"{kernel}: {job.title()}: {outcome.summary()}, in {outcome.seconds} s")
            for test, (result, why) in outcome.tests.items():
                if result == "skipped":
                    say(f"{kernel}: skipped: {test}: {why}")
            if outcome.failed():
                failed.append(f"{job.title()} on {release(kernel)}")
                say(output)

        lost = run(kernel, jobs[kernel], TIMEOUT_CHOSEN, ended)
        failed.extend(f"{job.title()} on {release(kernel)}: not run" for job in lost)

    side_by_side(on, available(list(jobs)))
    if failed:
        sys.exit("test-kernels: failed: " + "; ".join(failed))


def kernel_tests(tests):
    """The kernel tests of each binary: those that say they are skipped when asked to skip them."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = RESULTS / "kernel-tests.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    found = {}
    for (crate, name), executable in tests.items():
        stamp = f"{executable} {Path(executable).stat().st_mtime_ns}"
        if stamp not in known:
            say(f"asking {crate} {name} for its kernel tests")
            asked = subprocess.run(
                [executable],
                cwd=PROJECT / "crates" / crate,
                env=dict(os.environ) | {"TRAITS_SKIP_KERNEL": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            known[stamp] = sorted({test for _, test, why in REPORT.findall(asked.stderr) if why.startswith("TRAITS_")})
        found[stamp] = known[stamp]
    kept.write_text(json.dumps(found))
    return {key: found[f"{path} {Path(path).stat().st_mtime_ns}"] for key, path in tests.items()}


def result_file(kernel, job, suffix):
    return RESULTS / kernel / f"{job.crate}.{job.name.strip('()')}{suffix}"


def stamp(kernel, job):
    return [release(kernel), job.command, Path(job.command[0]).stat().st_mtime_ns]


def kept(kernel, job):
    """The outcome that was kept, or None: of another kernel or build."""
    file = result_file(kernel, job, ".json")
    if not file.exists():
        return None
    result = json.loads(file.read_text())
    if result["of"] != json.loads(json.dumps(stamp(kernel, job))):
        return None
    tests = {test: tuple(what) for test, what in result["tests"].items()}
    return Outcome(tests, result["left_out"], result["seconds"], result["commit"], result["date"])


def run_all(tests, only):
    only_kernels = [word for word in only if "/" not in word]
    only_tests = [tuple(word.split("/", 1)) for word in only if "/" in word]
    if unknown := set(only_tests) - set(tests):
        sys.exit("test-kernels: no such test: " + ", ".join("/".join(test) for test in sorted(unknown)))
    if only_tests:
        tests = {test: tests[test] for test in only_tests}
    jobs = [
        Job(crate, name, [tests[crate, name], "--exact", *names], names)
        for (crate, name), names in sorted(kernel_tests(tests).items())
        if names
    ]
    there = available(only_kernels or [HOST, *kernels()])
    commit = described_commit()

    def on(kernel):
        """What runs the open jobs of a kernel, by boot."""

        def ended(job, outcome, output):
            say(f"{kernel}: {job.title()}: {outcome.summary()}, in {outcome.seconds} s")
            for test, (result, why) in outcome.tests.items():
                if result == "failed":
                    say(f"{kernel}: failed: {test} {why}".rstrip())
            result_file(kernel, job, ".log").write_text(output)
            result = {
                "of": stamp(kernel, job),
                "commit": commit,
                "date": str(datetime.date.today()),
                "tests": outcome.tests,
                "left_out": outcome.left_out,
                "seconds": outcome.seconds,
            }
            result_file(kernel, job, ".json").write_text(json.dumps(result, indent=1))

        (RESULTS / kernel).mkdir(parents=True, exist_ok=True)
        for job in jobs:
            if kernel != HOST and (reason := NOT_EMULATED.get((job.crate, job.name))):
                ended(job, Outcome({test: ("skipped", reason) for test in job.tests}, [], 0), "")
        open_jobs = [job for job in jobs if not (outcome := kept(kernel, job)) or outcome.failed()]
        say(f"{kernel}: {release(kernel)}: {len(open_jobs)} of {len(jobs)} binaries to run")

        def boots(jobs):
            while jobs:
                jobs = run(kernel, jobs, TIMEOUT_ALL, ended)

        return [partial(boots, open_jobs[first : first + BOOT]) for first in range(0, len(open_jobs), BOOT)]

    # This machine's kernel alone: emulation beside it would disturb what it measures.
    if HOST in there:
        for boots in on(HOST):
            boots()
    # Kernels in turn, so that no processor is left with a whole one.
    turns = itertools.zip_longest(*(on(kernel) for kernel in there if kernel != HOST))
    side_by_side(lambda boots: boots(), [boots for turn in turns for boots in turn if boots])
    seen = json.loads(SEEN.read_text()) if SEEN.exists() else {}
    failed = set()
    for kernel in there:
        run_on = seen.setdefault(kernel, {"binaries": {}})
        run_on["release"] = release(kernel)
        if not only_tests:
            run_on["binaries"] = {}
        for job in jobs:
            outcome = kept(kernel, job)
            run_on["binaries"][job.title()] = described(outcome)
            if outcome.failed():
                failed.add(job.title())
    SEEN.parent.mkdir(exist_ok=True)
    SEEN.write_text(json.dumps(seen, indent=1) + "\n")
    DOCUMENT.write_text(document({kernel: seen[kernel] for kernel in [HOST, *kernels()] if kernel in seen}))
    say(f"wrote {DOCUMENT}")
    if failed:
        sys.exit(f"test-kernels: failed: {', '.join(sorted(failed))}; their output is in {RESULTS}")


def described_commit():
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True).stdout.strip()


def described(outcome):
    """What docs/kernels.json keeps of a binary: when it ran, how many tests passed, and which did not."""
    of = lambda what: {test: why for test, (result, why) in outcome.tests.items() if result == what}
    return {
        "commit": outcome.commit,
        "date": outcome.date,
        "passed": outcome.count("passed"),
        "skipped": of("skipped"),
        "failed": of("failed"),
        "left_out": outcome.left_out,
    }


def document(seen):
    """What docs/kernels.md says: of each kernel what was seen last."""
    names = {kernel: ".".join(run["release"].split(".")[:2]) for kernel, run in seen.items()}
    titles = sorted({title for run in seen.values() for title in run["binaries"]})
    lines = [
        "# Kernel tests by kernel",
        "",
        "Written by `make test-kernels`: every kernel test of the workspace, on the kernel of the machine that it ran on",
        "(\"host\") and, in the emulated machine of `tools/on-kernel.sh`, on Debian's.",
        "A number is of tests passed; \"skipped\" and \"failed\" are named below. What failed is run again alone: the",
        "commit of each binary is in `docs/kernels.json`.",
        "",
        "| kernel | version | dates | commits (binaries) |",
        "|---|---|---|---|",
    ]
    for kernel, run in seen.items():
        host = " (host)" if kernel == HOST else ""
        dates = sorted({outcome["date"] for outcome in run["binaries"].values()})
        commits = Counter(outcome["commit"] for outcome in run["binaries"].values())
        by_commit = ", ".join(f"{commit} ({count})" for commit, count in commits.most_common())
        lines.append(f"| {names[kernel]}{host} | {run['release']} | {', '.join(dates)} | {by_commit} |")
    lines += ["", "| tests | " + " | ".join(names.values()) + " |", "|---" * (len(names) + 1) + "|"]
    for title in titles:
        cells = []
        for run in seen.values():
            outcome = run["binaries"].get(title)
            if not outcome:
                cells.append("-")
                continue
            others = [f"{len(outcome[what])} {what}" for what in ("skipped", "failed") if outcome[what]]
            cells.append(", ".join([str(outcome["passed"]), *others]))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    cells = []
    for run in seen.values():
        passed = sum(outcome["passed"] for outcome in run["binaries"].values())
        others = [f"{sum(len(o[what]) for o in run['binaries'].values())} {what}" for what in ("skipped", "failed")]
        cells.append(", ".join([f"{passed} passed", *others]))
    lines += ["| all | " + " | ".join(cells) + " |", ""]

    def listed(heading, what):
        """Those for the same reason on the same kernels in one item."""
        by_reason = {}
        for kernel, run in seen.items():
            for title, outcome in run["binaries"].items():
                # what is left out may have several reasons
                tests = outcome[what].items() if isinstance(outcome[what], dict) else outcome[what]
                for test, why in tests:
                    by_test = by_reason.setdefault(why or "an assertion", {})
                    by_test.setdefault(f"{title} {test}", []).append(names[kernel])
        lines.extend([f"## {heading}", ""])
        for reason, by_test in sorted(by_reason.items()):
            lines.append(f"- {reason}")
            by_where = {}
            for test, where in by_test.items():
                by_where.setdefault(", ".join(dict.fromkeys(where)), []).append(test)
            for where, those in by_where.items():
                lines.append(f"  - on {where}: " + ", ".join(f"`{test}`" for test in sorted(those)))
        if not by_reason:
            lines.append("None.")
        lines.append("")

    listed("Skipped", "skipped")
    listed("Left out by tests that passed", "left_out")
    listed("Failed", "failed")
    return "\n".join(lines).rstrip() + "\n"


def main():
    what, *only = sys.argv[1:] or ["?"]
    tests, programs = built(sys.stdin)
    if what == "chosen":
        run_chosen(tests, programs)
    elif what == "all":
        run_all(tests, only)
    else:
        sys.exit("usage: tools/test-kernels.py chosen|all [KERNEL...] [CRATE/TEST...]")


main()
