#!/bin/sh
# Installs the system packages that building (and, with `test`, testing) needs, if they are missing.
# With `kernel` it instead puts another kernel into target/kernel, for tools/on-kernel.sh, which is not installed, and
# installs what runs it. Where that cannot be, it says why and succeeds: tests are then run on this machine's kernel only.
# Usage: tools/setup.sh [build|test|kernel]
set -eu

what=${1:-build}
# where system tools are, which is not on every user's PATH
PATH=$PATH:/usr/sbin:/sbin
missing=""
# the other kernel: a package of Debian's that stands for its newest update
kernel_package=linux-image-6.12-cloud-amd64
kernel=$(realpath -m "${CARGO_TARGET_DIR:-$(dirname "$0")/../target}")/kernel

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

# stop WHY: ends without what was wanted
stop() {
	if [ "$what" = kernel ]; then
		echo "setup: $1, so no other kernel to test on"
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

newest_kernel() {
	apt-cache depends --important "$kernel_package" 2>/dev/null | sed -n 's/^ *Depends: linux-image-//p'
}

# Fetches it into the current folder.
download() {
	# apt would fetch as a user who may not write here
	apt-get -o APT::Sandbox::User=root download "linux-image-$(newest_kernel)"
}

# Puts the kernel into target/kernel.
fetch_kernel() {
	echo "setup: fetching the newest $kernel_package: the kernel that tests are run on beside this machine's"
	cd "$scratch"
	if ! download >/dev/null 2>&1; then
		# lists that are old name one that is no longer to be had
		read_lists
		or_stop "fetch $kernel_package" download
	fi
	version=$(newest_kernel)
	or_stop "unpack linux-image-$version" dpkg-deb --extract linux-image-*.deb package
	or_stop "list the modules of linux-image-$version" depmod --basedir "$scratch/package" "$version"
	# Complete or not there: vmlinuz comes last.
	or_stop "write $kernel" rm -rf "$kernel"
	or_stop "write $kernel" mkdir -p "$kernel"
	or_stop "write $kernel" mv package/lib "$kernel/lib"
	or_stop "write $kernel" mv "package/boot/vmlinuz-$version" "$kernel/vmlinuz"
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ "$what" = kernel ]; then
	if [ -e "$kernel/vmlinuz" ] && have qemu-system-x86_64 && have depmod; then
		exit 0
	fi >/dev/null
	have apt-get >/dev/null || stop "no apt-get here"
	# only Debian has the package; its lists may not have been read yet
	[ -n "$(newest_kernel)" ] || ! grep -qsx "ID=debian" /etc/os-release || read_lists
	[ -n "$(newest_kernel)" ] || stop "no package $kernel_package here"
	need qemu-system-x86 "runs tests on another kernel" have qemu-system-x86_64
	need kmod "loads that kernel's modules" have depmod
	install_missing
	[ -e "$kernel/vmlinuz" ] || fetch_kernel
	exit 0
fi

have cargo >/dev/null || stop "cargo is not on the PATH; install Rust 1.89 or newer from https://rustup.rs"

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
	need wireguard-tools "makes the tunnels that traits are tested behind" have wg
	need bpftrace "what traits bench trace compares with" have bpftrace
fi

[ -n "$missing" ] || exit 0
have apt-get >/dev/null || stop "no apt-get here; install with your package manager:$missing"
install_missing
