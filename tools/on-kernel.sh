#!/usr/bin/env bash
# Runs a command as root on another kernel, one of those that `tools/setup.sh kernel` put into target/kernels, in an
# emulated machine that sees this machine's files, read-only, at the same paths. Its exit status is the command's.
#
#     tools/on-kernel.sh target/debug/deps/packet_path-0123456789abcdef --nocapture
#     ON_KERNEL=newest tools/on-kernel.sh bash -c 'uname -r; target/debug/traits demo'
#     CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$PWD/tools/on-kernel.sh cargo test -p packet-traits --test packet_path
#
# Environment and current folder are those it was started with. /tmp, /run and target/tmp are empty and forgotten
# afterwards; there is no network, and no standard input. It boots in some four seconds; all runs ten to twenty times slower
# than here. So clang and the C compiler, where the command finds them by name, run outside of the machine, by Python.
# What the command prints is printed; the kernel's messages are shown if it dies.
# ON_KERNEL: the kernel: a name of tools/kernels (6.1, 6.12, newest), a version ("7.3") or a folder with a /. 6.12 unless set.
# ON_KERNEL_TIMEOUT: seconds the machine may live, 600 unless set. ON_KERNEL_MEMORY: its memory in MiB, 2048.
# ON_KERNEL_NICS: models of network cards ("virtio-net-pci e1000e"); none unless set. The machine has two of each, which a
# hub joins: the second pair's have the addresses 02:4e:49:43:02:01 and :02. Their drivers are loaded. A model that this
# QEMU does not have is left out, and that is said; target/qemu (tools/fetch-qemu.sh) is taken if it has more of them.
# Status 125: the machine could not be started, died or was too slow.
set -euo pipefail

project=$(cd "$(dirname "$0")/.." && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$project/target}")
name=${ON_KERNEL:-6.12}
memory=${ON_KERNEL_MEMORY:-2048}
limit=${ON_KERNEL_TIMEOUT:-600}

fail() {
	echo "on-kernel: $*" >&2
	exit 125
}

[ $# -gt 0 ] || fail "usage: tools/on-kernel.sh COMMAND [ARGUMENT...]"
case $name in
*/*) kernel=$(realpath -m "$name") ;;
*) kernel=$target/kernels/$name ;;
esac
if [ ! -e "$kernel/vmlinuz" ]; then
	# a version, then: of one that is there under a name
	for release in "$target"/kernels/*/release; do
		case $(cat "$release" 2>/dev/null) in
		"$name" | "$name"[.+-]*) kernel=${release%/release} ;;
		esac
	done
fi
[ -e "$kernel/vmlinuz" ] || fail "there is no kernel in $kernel; run: tools/setup.sh kernel"
[ "$(id -u)" = 0 ] || fail "serving files to the machine needs root; run: sudo -E $0 $*"
for virtiofsd in /usr/lib/qemu/virtiofsd /usr/libexec/virtiofsd; do
	[ ! -x "$virtiofsd" ] || break
done
[ -x "$virtiofsd" ] || fail "there is no virtiofsd, which serves files to the machine; run: tools/setup.sh kernel"

# has MODEL QEMU: whether that QEMU has a device of this name
has() { "$2" -device "$1,help" 2>&1 | grep -qFx "$1 options:"; }

qemu=qemu-system-x86_64
newer=$target/qemu/qemu-system-x86_64
for model in ${ON_KERNEL_NICS:-}; do
	if [ -x "$newer" ] && ! has "$model" "$qemu" && has "$model" "$newer"; then
		qemu=$newer
	fi
done
ON_KERNEL_QEMU=$("$qemu" --version | sed -n 's/^QEMU emulator version \([^ ]*\).*/\1/p')
export ON_KERNEL_QEMU
nics=()
pair=0
for model in ${ON_KERNEL_NICS:-}; do
	pair=$((pair + 1))
	if ! has "$model" "$qemu"; then
		echo "on-kernel: skipped: $model (QEMU $ON_KERNEL_QEMU has no such device)" >&2
		continue
	fi
	for card in 1 2; do
		address=$(printf '02:4e:49:43:%02x:%02x' "$pair" "$card")
		# each behind a port of its own: igb's virtual functions take places on its bus
		nics+=(-device "pcie-root-port,id=port$pair-$card,chassis=$pair,slot=$card")
		nics+=(-netdev "hubport,hubid=$pair,id=nic$pair-$card")
		nics+=(-device "$model,netdev=nic$pair-$card,mac=$address,bus=port$pair-$card")
	done
done
# The default machine has no PCI Express, and boots faster.
[ "${#nics[@]}" = 0 ] || nics+=(-machine q35)

# Those that run outside.
compilers=""
if command -v python3 >/dev/null; then
	compilers=$(compgen -c | grep -xE 'cc|gcc|clang(-[0-9]+)?' | sort -u | tr '\n' ' ')
fi

# What the machine reads and writes. The cleaner removes it when this process is gone, however it ended: its input ends.
files=$(mktemp -d /var/tmp/on-kernel.XXXXXXXX)
coproc cleaner { trap '' INT TERM HUP; cat >/dev/null; rm -rf "$files"; }

{
	export -p
	printf 'export TMPDIR=/tmp\n'
	[ -z "$compilers" ] || printf 'export PATH=/run/compile:$PATH ON_KERNEL_TARGET=%q\n' "$target"
	printf 'cd %q\n' "$PWD"
	printf '%q ' "$@"
} >"$files/command"

# Children die with this process; so nothing is left when it is killed.
bound=(setpriv --pdeathsig KILL)

"${bound[@]}" "$virtiofsd" --socket-path="$files/socket" -o source=/ -o sandbox=chroot -o cache=always \
	>"$files/virtiofsd" 2>&1 &
for _ in $(seq 100); do
	[ ! -S "$files/socket" ] || break
	sleep 0.05
done
[ -S "$files/socket" ] || fail "virtiofsd did not start: $(tail -3 "$files/virtiofsd")"

# shellcheck disable=SC2054 # commas are within QEMU's options
# Emulated even where there is KVM: the same everywhere. In one thread: with more, QEMU 7.2 at times lets a CPU run into
# the breakpoint by which the kernel changes code (static keys), and the kernel dies of it.
machine=(
	-accel tcg,thread=single -cpu max -smp 2 -m "$memory" -nodefaults -no-reboot -display none
	-object "memory-backend-memfd,id=memory,size=${memory}M,share=on" -numa node,memdev=memory
	-chardev "socket,id=files,path=$files/socket" -device vhost-user-fs-pci,chardev=files,tag=host
	-serial "file:$files/console"
	-device virtio-serial-pci
	-chardev stdio,id=output,signal=on -device virtserialport,chardev=output,name=output
	-chardev "file,id=status,path=$files/status" -device virtserialport,chardev=status,name=status
	-chardev "socket,id=compile,path=$files/compile,server=on,wait=off"
	-device virtserialport,chardev=compile,name=compile.port
	-kernel "$kernel/vmlinuz" "${nics[@]}"
)
init=$project/tools/on-kernel-init.sh
# Without the timer check: on a busy host an emulated timer may be late for it, and the kernel would not boot.
arguments="console=ttyS0 panic=-1 oops=panic no_timer_check"
if [ -e "$kernel/initramfs" ]; then
	# its first process starts the one that is named to it
	machine+=(-initrd "$kernel/initramfs" -append "$arguments -- $init $files $kernel $target $compilers")
else
	machine+=(-append "$arguments root=host rootfstype=virtiofs ro init=$init -- $files $kernel $target $compilers")
fi
if [ -n "$compilers" ]; then
	(
		until [ -S "$files/compile" ]; do sleep 0.1; done
		exec unshare --mount "${bound[@]}" "$project/tools/on-kernel-compile.py" "$files/compile" "$target"
	) </dev/null >"$files/compiling" 2>&1 &
fi
ended=0
# Its input is the silent cleaner: at an end of input it would take no output either.
"${bound[@]}" timeout --foreground --kill-after=5 "$limit" "${bound[@]}" "$qemu" "${machine[@]}" <&"${cleaner[0]}" || ended=$?

if [ -s "$files/status" ]; then
	exit "$(cat "$files/status")"
fi
{
	echo "on-kernel: the last messages of the kernel:"
	tail -40 "$files/console" 2>/dev/null || true
} >&2
[ "$ended" != 124 ] || fail "still not done after $limit seconds (ON_KERNEL_TIMEOUT)"
fail "the machine died before the command had ended ($qemu: status $ended)"
