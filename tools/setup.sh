#!/bin/sh
# Installs the system packages that building (and, with `test`, testing) needs, if they are missing.
# With `test` it also puts another kernel into target/kernel, for tools/on-kernel.sh. Nothing of that is installed.
# Usage: tools/setup.sh [build|test]
set -eu

what=${1:-build}
# where system tools are, which is not on every user's PATH
PATH=$PATH:/usr/sbin:/sbin
missing=""
# the other kernel: a package of Debian's that stands for its newest update
kernel_package=linux-image-6.12-cloud-amd64
kernel=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/kernel

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

wants_kernel() {
	[ "$what" = test ] && ! { [ -e "$kernel/vmlinuz" ] && have qemu-system-x86_64 && have depmod; } >/dev/null
}

[ -n "$missing" ] || wants_kernel || exit 0

if ! have apt-get >/dev/null; then
	if [ -z "$missing" ]; then
		echo "setup: no apt-get here, so no other kernel to test on"
		exit 0
	fi
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
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
log=$scratch/log

# or_stop WHAT COMMAND...: runs COMMAND quietly; if it fails, shows what it said and stops
or_stop() {
	doing=$1
	shift
	if ! "$@" >>"$log" 2>&1; then
		tail -20 "$log" >&2
		echo "setup: could not $doing" >&2
		exit 1
	fi
}

# install PACKAGES
install() {
	# shellcheck disable=SC2086 # a list of words
	or_stop "install$1" $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $1
}

or_stop "read the lists of packages" $as_root apt-get update
[ -z "$missing" ] || install "$missing"

wants_kernel || exit 0
version=$(apt-cache depends --important "$kernel_package" 2>/dev/null | sed -n 's/^ *Depends: linux-image-//p')
if [ -z "$version" ]; then
	echo "setup: no package $kernel_package here, so no other kernel to test on"
	exit 0
fi
missing=""
need qemu-system-x86 "runs tests on another kernel" have qemu-system-x86_64
need kmod "loads that kernel's modules" have depmod
[ -z "$missing" ] || install "$missing"
echo "setup: fetching linux-image-$version: the kernel that tests are run on beside this machine's"
# apt would fetch as a user who may not write here
(cd "$scratch" && or_stop "fetch linux-image-$version" apt-get -o APT::Sandbox::User=root download "linux-image-$version")
or_stop "unpack linux-image-$version" dpkg-deb --extract "$scratch"/linux-image-*.deb "$scratch/package"
or_stop "list the modules of linux-image-$version" depmod --basedir "$scratch/package" "$version"
# Complete or not there: vmlinuz comes last.
rm -rf "$kernel"
mkdir -p "$kernel"
mv "$scratch/package/lib" "$kernel/lib"
mv "$scratch/package/boot/vmlinuz-$version" "$kernel/vmlinuz"
