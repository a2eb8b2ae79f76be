#!/usr/bin/env python3
"""Runs the tests of tools/on-kernel.tests on another kernel, in one boot of tools/on-kernel.sh.

    cargo test --workspace --no-run --message-format=json | sudo -E tools/test-on-kernel.py

Cargo says where it put them. Without the other kernel, or with TRAITS_SKIP_KERNEL=1, says so and which tests are not
run; on Debian, which has it, there must be one where CI is set.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
PROJECT = TOOLS.parent
KERNEL = Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target")) / "kernel"
# far more than they take; one that hangs is to be seen before whoever waits for it gives up
TIMEOUT = 900


def wanted():
    """The lines of the list: (crate, test, arguments)."""
    for line in (TOOLS / "on-kernel.tests").read_text().splitlines():
        words = line.split("#")[0].split()
        if words:
            yield words[0], words[1], words[2:]


def built(messages):
    """The executables among cargo's messages, by (crate, test)."""
    found = {}
    for line in messages:
        message = json.loads(line)
        if message.get("executable") and "test" in message["target"]["kind"]:
            crate = Path(message["manifest_path"]).parent.name
            found[crate, message["target"]["name"]] = message["executable"]
    return found


def why_not():
    if os.environ.get("TRAITS_SKIP_KERNEL") == "1":
        return "TRAITS_SKIP_KERNEL=1"
    if not (KERNEL / "vmlinuz").exists():
        return f"no kernel in {KERNEL}; tools/setup.sh kernel says why"
    return None


def is_debian():
    return "\nID=debian\n" in "\n" + Path("/etc/os-release").read_text()


def main():
    executables = built(sys.stdin)
    tests = list(wanted())
    if reason := why_not():
        for crate, test, _ in tests:
            print(f"skipped: {crate} {test} on another kernel ({reason})")
        if os.environ.get("CI") and os.environ.get("TRAITS_SKIP_KERNEL") != "1" and is_debian():
            sys.exit("test-on-kernel: CI is set, so the other kernel must be there")
        return
    script = ["failed=0"]
    for crate, test, arguments in tests:
        if (crate, test) not in executables:
            sys.exit(f"test-on-kernel: cargo has not built {crate} {test} of tools/on-kernel.tests")
        command = shlex.join([executables[crate, test], *arguments])
        script += [
            f'echo; echo "     Running {crate} {test} on $(uname -r)"',
            f"cd {shlex.quote(str(PROJECT / 'crates' / crate))}",
            f"start=$SECONDS; {command} || failed=1",
            'echo "in $((SECONDS - start)) s"',
        ]
    script.append("exit $failed")
    environment = {"ON_KERNEL_TIMEOUT": str(TIMEOUT)} | dict(os.environ)
    machine = [TOOLS / "on-kernel.sh", "bash", "-c", "\n".join(script)]
    sys.exit(subprocess.run(machine, env=environment, stdin=subprocess.DEVNULL).returncode)


main()
