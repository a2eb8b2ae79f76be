#!/bin/sh
# Installs the system packages that building (and, with `test`, testing) needs, if they are missing.
# With `kernel` it instead puts the kernels of tools/kernels into target/kernels, for tools/on-kernel.sh, and installs what
# runs them, not the kernels. Where a kernel cannot be fetched, it says why, there and in target/kernels/NAME.why, and
# succeeds: tests are not run on that kernel then.
# With `clang` it puts those of the compilers of tools/clangs that are not installed into target/clang, in the same way.
# Usage: tools/setup.sh [build|test|kernel|clang|distributions]
set -eu

what=${1:-build}
# where system tools are, which is not on every user's PATH
PATH=$PATH:/usr/sbin:/sbin
missing=""
tools=$(cd "$(dirname "$0")" && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$tools/../target}")
kernels=$target/kernels
clangs=$target/clang

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

# Whether the distribution has a package.
offers() { apt-cache show "$1" >/dev/null 2>&1; }

# want PACKAGE REASON TEST...: as need, but goes on if the distribution does not have PACKAGE
want() {
	if offers "$1"; then
		need "$@"
		return
	fi
	package=$1 reason=$2
	shift 2
	"$@" >/dev/null 2>&1 || echo "setup: this distribution has no package $package, which $reason"
}

header() { echo "#include <$1>" | "${CC:-cc}" -E -x c -; }

# stop WHY: ends without what was wanted
stop() {
	if [ "$what" = kernel ]; then
		echo "setup: $1, so no tests on other kernels"
		exit 0
	fi
	echo "setup: $1" >&2
	exit 1
}

# or_stop WHAT COMMAND...: runs COMMAND quietly; if it fails, shows what it said and stops
or_stop() {
	doing=$1
	shift
	if ! "$@" >"$scratch/log" 2>&1; then
		tail -20 "$scratch/log" >&2
		stop "could not $doing"
	fi
}

# Runs a command as root.
as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

read_lists() {
	or_stop "read the lists of packages" as_root apt-get update
}

# Installs what is missing.
install_missing() {
	[ -n "$missing" ] || return 0
	if [ "$(id -u)" != 0 ] && ! have sudo >/dev/null; then
		stop "not root and no sudo; run as root: apt-get install$missing"
	fi
	read_lists
	# shellcheck disable=SC2086 # a list of words
	or_stop "install$missing" as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y --no-install-recommends $missing
}

virtiofsd() { [ -x /usr/lib/qemu/virtiofsd ] || [ -x /usr/libexec/virtiofsd ]; }

# each_kernel COMMAND...: runs it with the name, the suite and the package of each of tools/kernels
each_kernel() {
	while read -r name suite package; do
		case $name in "#"* | "") continue ;; esac
		"$@" "$name" "$suite" "$package" </dev/null
	done <"$tools/kernels"
}

# The newest clang that the distribution has, as a package: clang-19.
newest_clang() { apt-cache search --names-only '^clang-[0-9]+$' | sed 's/ .*//' | sort -V | tail -1; }

# Fetches a compiler that is not there, or says and notes why not.
fetch_clang() {
	version=$1 suite=$2
	if have "clang-$version" >/dev/null || [ -e "$clangs/$version" ]; then
		return
	fi
	echo "setup: fetching clang $version of $suite, to compile every BPF program with"
	if "$tools/fetch-clang.sh" "$version" "$suite" 2>"$scratch/log"; then
		rm -f "$clangs/$version.why"
	else
		mkdir -p "$clangs"
		tail -1 "$scratch/log" | tee "$clangs/$version.why"
		echo "setup: no clang $version"
	fi
}

# Fetches a kernel that is not there, or says and notes why not.
fetch_kernel() {
	if [ ! -e "$kernels/$1/vmlinuz" ]; then
		echo "setup: fetching $3 of $2: the kernel \"$1\" that tests are run on beside this machine's"
		if "$tools/fetch-kernel.sh" "$@" 2>"$scratch/log"; then
			rm -f "$kernels/$1.why"
		else
			mkdir -p "$kernels"
			tail -1 "$scratch/log" | tee "$kernels/$1.why"
			echo "setup: no tests on the kernel \"$1\""
		fi
	fi
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ "$what" = kernel ]; then
	have apt-get >/dev/null || stop "no apt-get here"
	need kmod "lists a kernel's modules" have depmod
	need xz-utils "unpacks a kernel's modules" have xz
	install_missing
	each_kernel fetch_kernel
	set -- "$kernels"/*/vmlinuz
	[ -e "$1" ] || exit 0
	if ! virtiofsd || ! have qemu-system-x86_64 >/dev/null; then
		missing=""
		need qemu-system-x86 "runs tests on another kernel" have qemu-system-x86_64
		# part of QEMU before Debian 13
		read_lists
		! apt-cache show virtiofsd >/dev/null 2>&1 || need virtiofsd "serves files to that kernel" virtiofsd
		install_missing
	fi
	exit 0
fi

if [ "$what" = clang ]; then
	while read -r version suite; do
		case $version in "#"* | "") continue ;; esac
		fetch_clang "$version" "$suite" </dev/null
	done <"$tools/clangs"
	exit 0
fi

if ! have cargo >/dev/null; then
	# sudo has a PATH of its own, and rustup installs for one user
	home=$(getent passwd "${SUDO_USER:-}" 2>/dev/null | cut -d: -f6)
	if [ -n "${SUDO_USER:-}" ] && [ -x "${home:-}/.cargo/bin/cargo" ]; then
		stop "cargo is not on root's PATH, but $SUDO_USER has it; run make without sudo: it asks for root itself where that is needed"
	fi
	stop "cargo is not on the PATH; install Rust 1.89 or newer from https://rustup.rs, or add its folder (\$HOME/.cargo/bin) to the PATH"
fi

if [ "$what" = distributions ]; then
	need debootstrap "makes clean trees of Debian" have debootstrap
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
	if have apt-get >/dev/null; then
		# a machine that has just been set up knows no packages
		[ -n "$(newest_clang)" ] || read_lists
		newest=$(newest_clang)
		[ -z "$newest" ] || need "$newest" "tests the header with the newest clang" have "$newest"
	fi
	want clang-format-19 "checks the style of C" have clang-format-19
	need python3 "tests that JSON output is JSON" have python3
	need jq "docs/trace.md shows how to filter JSON with it" have jq
	need iptables "its rules match by a policy's program" have iptables-legacy
	need redis-tools "a server the tests save traits of SYNs for" have redis-check-rdb
	need golang-go "runs the example in Go" have go
	need tshark "reads the captures of traits trace" have tshark
	want chromium "opens the reports of traits trace" have chromium
	need tmux "the terminal traits top is tested in" have tmux
	need wireguard-tools "makes the tunnels that traits are tested behind" have wg
	need bpftrace "what traits bench trace compares with" have bpftrace
fi

[ -n "$missing" ] || exit 0
have apt-get >/dev/null || stop "no apt-get here; install with your package manager:$missing"
install_missing
