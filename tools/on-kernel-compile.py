#!/usr/bin/env python3
"""Runs compilers for the machine of tools/on-kernel.sh, whose tools/on-kernel-compile.sh asks for it.

Usage: unshare --mount tools/on-kernel-compile.py SOCKET TARGET: the machine's port, and the folder that cargo builds into

A request is its length in a line, and a tar archive: the files that only the machine has, and the command. So is the
answer: what the compiler printed, its status, and the file it wrote. In this process's mount namespace the folders that
are the machine's own are empty, so that those files lie where they do there.
"""

import io
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path


def answer(request):
    """Runs the compiler of a request; the answer to it."""
    archive = tarfile.open(fileobj=io.BytesIO(request))
    names = archive.getnames()
    archive.extractall("/", numeric_owner=True)
    exchange = Path("/", names[0])
    name, folder, *arguments = (exchange / "command").read_bytes().decode().split("\0")[:-1]
    with open(exchange / "input", "rb") as stdin:
        done = subprocess.run([name, *arguments], cwd=folder, stdin=stdin, capture_output=True)
    (exchange / "stdout").write_bytes(done.stdout)
    (exchange / "stderr").write_bytes(done.stderr)
    (exchange / "status").write_text(str(done.returncode))
    files = [exchange / "stdout", exchange / "stderr", exchange / "status"]
    outputs = [Path(folder, path) for option, path in zip(arguments, arguments[1:]) if option == "-o" and path != "-"]
    # not /dev/null, which is not removed either
    files += [path for path in outputs if path.is_file()]
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for file in files:
            archive.add(file, arcname=str(file).lstrip("/"))
    # what the machine removes must not be found here the next time
    for file in [*(Path("/", name) for name in names), *files]:
        if not file.is_dir():
            file.unlink(missing_ok=True)
    return written.getvalue()


def main():
    path, target = sys.argv[1:]
    port = socket.socket(socket.AF_UNIX)
    port.connect(path)
    folders = [Path("/tmp"), Path("/var/tmp"), Path(target, "tmp")]
    for folder in filter(Path.is_dir, folders):
        subprocess.run(["mount", "-t", "tmpfs", "tmp", folder], check=True)
    os.environ["TMPDIR"] = "/tmp"
    stream = port.makefile("rwb")
    while length := stream.readline():
        reply = answer(stream.read(int(length)))
        stream.write(b"%d\n" % len(reply) + reply)
        stream.flush()


main()
