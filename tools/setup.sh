#!/bin/sh
# Installs the system packages that building (and, with `test`, testing) needs, if they are missing.
# Usage: tools/setup.sh [build|test]
set -eu

what=${1:-build}
# where system tools are, which is not on every user's PATH
PATH=$PATH:/usr/sbin:/sbin
missing=""

# need PACKAGE REASON TEST...: notes PACKAGE if the command TEST fails
need() {
	package=$1 reason=$2
	shift 2
	if ! "$@" >/dev/null 2>&1; then
		echo "setup: installing $package: $reason"
		missing="$missing $package"
	fi
}

have() { command -v "$1"; }
header() { echo "#include <$1>" | "${CC:-cc}" -E -x c -; }

if ! have cargo >/dev/null; then
	echo "setup: cargo is not on the PATH; install Rust 1.89 or newer from https://rustup.rs" >&2
	exit 1
fi

need gcc "C compiler for libbpf" have cc
need make "builds libbpf" have make
need clang "compiles BPF programs" have clang
need pkg-config "finds libraries" have pkg-config
need libelf-dev "libbpf reads object files with it" header libelf.h
need zlib1g-dev "libelf needs it" header zlib.h
need libbpf-dev "headers of BPF programs" header bpf/bpf_helpers.h
need iproute2 "makes the namespaces' devices" have ip
need nftables "the demo drops packets with it" have nft
if [ "$what" = test ]; then
	need clang-19 "tests the header with a newer clang" have clang-19
	need clang-format-19 "checks the style of C" have clang-format-19
	need python3 "tests that JSON output is JSON" have python3
	need iptables "its rules match by a policy's program" have iptables-legacy
	need redis-tools "a server the tests save traits of SYNs for" have redis-check-rdb
	need golang-go "runs the example in Go" have go
	need tshark "reads the captures of traits trace" have tshark
	need chromium "opens the reports of traits trace" have chromium
	need tmux "the terminal traits top is tested in" have tmux
	need bpftrace "what traits bench trace compares with" have bpftrace
fi

[ -n "$missing" ] || exit 0

if ! have apt-get >/dev/null; then
	echo "setup: no apt-get here; install with your package manager:$missing" >&2
	exit 1
fi
as_root=""
if [ "$(id -u)" != 0 ]; then
	if ! have sudo >/dev/null; then
		echo "setup: not root and no sudo; run as root: apt-get install$missing" >&2
		exit 1
	fi
	as_root=sudo
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086 # a list of words
if ! { $as_root apt-get update && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
	tail -20 "$log" >&2
	echo "setup: could not install$missing" >&2
	exit 1
fi
