#!/usr/bin/env python3
"""Runs the tests of crates/traits/tests/devices where all devices are, and writes docs/devices.md from what was seen.

    cargo test -p packet-traits --test devices --no-run --message-format=json | sudo -E tools/test-devices.py

That is an emulated machine with network cards and a kernel with all drivers (tools/on-kernel.sh; `make test-devices` gets
them). ON_KERNEL and ON_KERNEL_NICS choose others. Arguments are the test's: names of tests. Then, or if a test fails, the
page stays as it was.
"""

import datetime
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
PROJECT = TOOLS.parent
PAGE = PROJECT / "docs" / "devices.md"
KERNEL = os.environ.get("ON_KERNEL", "newest-devices")
NICS = os.environ.get("ON_KERNEL_NICS", "virtio-net-pci vmxnet3 e1000e igb")
# far more than it takes; one that hangs is to be seen before whoever waits for it gives up
TIMEOUT = 1800

# fields of a row that run.rs prints
FIELDS = ["device", "place", "mode", "set", "tc_below", "tc", "pre_routing", "local_in", "cgroup", "datagram", "syn"]
FIELDS += ["tcp", "why", "said"]
STAGES = FIELDS[4:11]
HEADINGS = ["device", "XDP at", "mode", "XDP", "TC below", "TC", "PRE_ROUTING", "LOCAL_IN", "cgroup", "datagram", "SYN"]
HEADINGS += ["TCP packets", "note"]

# the order of the page
FAMILIES = [
    ("Network cards", ["virtio_net", "vmxnet3", "e1000e", "igb"]),
    ("Virtual devices", ["veth", "tun", "tap", "netkit, L2", "netkit, L3"]),
    ("Above a veth", []),
]

TEXT = """# Devices

What becomes of the traits that XDP sets, by device. Written by `make test-devices`; not to be edited.

- Kernel {kernel}, emulated by QEMU {qemu}, {date}: {cases} cases on {devices} devices.
- In each case 64 UDP datagrams of each family that the device carries, and four TCP connections of 64 KiB (over IPv4,
  SIT's over IPv6), go from one network namespace to another. XDP gives a packet a `block` key and a `keep-first` key; one
  datagram in four gets none. At every stage the packet itself says which it is, so another packet's value is noticed: it
  fails the test, and then this page is not written.
- `kept`: every packet had what XDP gave to it, and packets without traits had none. `lost`: none of them had.
  `refused`: XDP cannot be attached, or cannot set traits; the note says why. `-`: no packet with traits comes here.
- *XDP at*: `the device`; `below`: at the device under it, and the traits go through the device; `both`: at both, above in
  generic mode, whose values count from there on. *TC below* is TC ingress of the device under it. *datagram* and *SYN* are
  the socket options of the application.
- WireGuard's packets are encrypted at XDP. What is read of a datagram behind it must be what XDP gave to the packet that
  came in at that time; of TCP, what it gave to one of the encrypted packets.
- *TCP packets*: how many packets the same data was at XDP below, at TC below, at XDP of the device and at TC of the device,
  as far as there are programs. Where the number falls, GRO has merged packets, which then have the first one's
  `keep-first` value. The kernel does no GRO on a device with generic XDP, netkit has none, and a netkit's sender does not
  cut data into segments.
"""


def executable(messages):
    for line in messages:
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "devices":
            return message["executable"]
    sys.exit("test-devices: cargo has not built the test `devices` of packet-traits")


def run(binary, arguments):
    """What the machine prints; ends if a test fails."""
    command = shlex.join([binary, "--nocapture", *arguments])
    script = f'printf "device-kernel\\t%s\\t%s\\n" "$(uname -r)" "$ON_KERNEL_QEMU"; exec {command}'
    defaults = {"ON_KERNEL": KERNEL, "ON_KERNEL_NICS": NICS, "ON_KERNEL_TIMEOUT": str(TIMEOUT)}
    machine = subprocess.Popen(
        [TOOLS / "on-kernel.sh", "bash", "-c", script],
        cwd=PROJECT / "crates" / "traits",
        env=defaults | dict(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    lines = []
    for line in machine.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip("\n"))
    if machine.wait() != 0:
        sys.exit(machine.returncode)
    return lines


def note(row):
    """Why something is not kept; in words of the kernel where the test has none."""
    return row["why"] or row["said"]


def cells(row):
    stages = [row[stage] or "-" for stage in STAGES]
    return [row["device"], row["place"], row["mode"], row["set"], *stages, row["tcp"] or "-", note(row)]


def table(rows):
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def rank(row):
    """The part of the page that a row belongs to, and its place there."""
    device = row["device"].split(" over ")[-1]
    for part, (_, devices) in enumerate(FAMILIES):
        # `tap, NAPI` belongs to `tap`
        for place, name in enumerate(devices):
            if device == name or device.startswith(name + ", ") and "forwarded" not in device:
                return part, place
    return len(FAMILIES) - 1, 0


def page(lines):
    kernel, qemu = next(line.split("\t")[1:] for line in lines if line.startswith("device-kernel\t"))
    rows = [dict(zip(FIELDS, line.split("\t")[1:])) for line in lines if line.startswith("device-row\t")]
    skipped = [line.split("\t")[1:] for line in lines if line.startswith("device-skipped\t")]
    text = TEXT.format(
        kernel=kernel,
        qemu=qemu,
        date=datetime.date.today().isoformat(),
        cases=len(rows),
        devices=len({row["device"] for row in rows}),
    )
    parts = [text]
    rows.sort(key=rank)
    for part, (heading, _) in enumerate(FAMILIES):
        here = [row for row in rows if rank(row)[0] == part]
        if here:
            parts.append(f"## {heading}\n\n{table(here)}\n")
    not_kept = [row for row in rows if row["set"] != "set" or not {row[s] for s in STAGES} <= {"kept", "-"}]
    if not_kept:
        parts.append("## What is not kept\n\n" + "\n".join(sentence(row) for row in not_kept) + "\n")
    if skipped:
        listed = "\n".join(f"- {name}: {reason}" for name, reason in skipped)
        parts.append(f"## Not tested here\n\n{listed}\n")
    return "\n".join(parts)


def sentence(row):
    where = f"- **{row['device']}**, {row['mode']} XDP at {row['place']}: "
    if row["set"] != "set":
        return where + f"{row['set']}: {note(row)}."
    lost = [heading for heading, stage in zip(HEADINGS[4:11], STAGES) if row[stage] not in ("kept", "-")]
    return where + f"lost at {', '.join(lost)}: {note(row)}."


def main():
    arguments = sys.argv[1:]
    lines = run(executable(sys.stdin), arguments)
    if arguments:
        return
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(lines))
    print(f"test-devices: wrote {PAGE.relative_to(PROJECT)}")


main()
