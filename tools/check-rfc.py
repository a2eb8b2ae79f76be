#!/usr/bin/env python3
"""Checks docs/rfc.md: each test that it names exists, and each promise under "Kept" names one.

    tools/check-rfc.py

The last cell of a row names tests: a file, then tests of that file, in backticks.
"""

import re
import sys
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
DOCUMENT = "docs/rfc.md"
KEPT = "## Kept"
# Other attributes and comments may stand between #[test] and its function.
TEST = re.compile(r"#\[test\]\s+(?:#\[[^\]]*\]\s+|//.*\n\s*)*fn (\w+)")


@cache
def tests_in(file):
    """The names of a file's tests, or None if there is no such file."""
    path = PROJECT / file
    return set(TEST.findall(path.read_text())) if path.is_file() else None


def named_in(cell):
    """The files that a cell names, each with the tests behind it."""
    found = []
    for span in re.findall(r"`([^`]+)`", cell):
        if span.endswith(".rs"):
            found.append((span, []))
        elif found:
            found[-1][1].append(span)
    return found


def check_row(cell, must_have_one):
    """What is wrong with the last cell of a row."""
    named = named_in(cell)
    if must_have_one and not named:
        yield "it names no test"
    for file, names in named:
        there = tests_in(file)
        if there is None:
            yield f"there is no file {file}"
        elif not names:
            yield f"it names no test of {file}"
        else:
            yield from (f"{file} has no test {name}" for name in names if name not in there)


def check(text):
    """What is wrong with the page, with the numbers of lines."""
    if KEPT not in text.splitlines():
        yield 1, f"there is no heading {KEPT!r}"
    heading = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("## "):
            heading = line
        elif heading and line.startswith("| ") and not line.startswith("| patches |"):
            cell = line.rstrip(" |").rsplit(" | ", 1)[-1]
            yield from ((number, what) for what in check_row(cell, heading == KEPT))


wrong = list(check((PROJECT / DOCUMENT).read_text()))
for number, what in wrong:
    print(f"{DOCUMENT}:{number}: {what}", file=sys.stderr)
sys.exit(1 if wrong else 0)
