#!/bin/sh
# Puts a kernel of a suite of Debian's into target/kernels/NAME, for tools/on-kernel.sh; nothing is installed.
#
#     tools/fetch-kernel.sh 6.1 bookworm linux-image-cloud-amd64
#
# There are then: vmlinuz; lib/modules; release, what uname says on it; and initramfs, where what serves the machine its
# files is a module. It needs depmod (package kmod). It replaces what was there, or leaves it alone if it fails.
# Usage: tools/fetch-kernel.sh NAME SUITE PACKAGE
set -eu

name=$1 suite=$2 package=$3
PATH=$PATH:/usr/sbin:/sbin
tools=$(cd "$(dirname "$0")" && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$tools/../target}")
# what the first process needs: its files, and where it writes what the command prints
boot_modules="virtio_pci virtiofs virtio_console"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

fail() {
	echo "fetch-kernel: $*" >&2
	exit 1
}

# or_fail WHAT COMMAND...: runs COMMAND quietly; if it fails, shows what it said and ends
or_fail() {
	doing=$1
	shift
	if ! "$@" >log 2>&1; then
		tail -5 log >&2
		fail "could not $doing"
	fi
}

in_suite() { "$tools/suite.sh" "$suite" "$@"; }

# depends PACKAGE: what it depends on
depends() { in_suite apt-cache depends --important "$1" | sed -n 's/^ *Depends: //p'; }

# The module's file without its compression, which busybox may not know.
plain() {
	case $1 in
	*.xz) xz -dc "$1" ;;
	*.zst) zstd -dcq "$1" ;;
	*.gz) gzip -dc "$1" ;;
	*) cat "$1" ;;
	esac
}

# The modules of boot_modules and those they need, in the order in which they load.
modules_in_order() {
	for module in $boot_modules; do
		modprobe -d "$scratch/kernel" -S "$version" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
	done | awk '!seen[$0]++'
}

# Makes kernel/initramfs, whose only program loads the modules, mounts the machine's files and starts its arguments there.
write_initramfs() {
	or_fail "fetch busybox-static of $suite" in_suite apt-get download busybox-static
	or_fail "unpack busybox-static" dpkg-deb --extract busybox-static_*.deb busybox
	mkdir -p root/bin root/dev root/host root/modules
	for busybox in busybox/bin/busybox busybox/usr/bin/busybox; do
		[ ! -e "$busybox" ] || mv "$busybox" root/bin/busybox
	done
	number=10
	for module in $1; do
		plain "$module" >"root/modules/$number-$(basename "${module%%.ko*}").ko"
		number=$((number + 1))
	done
	cat >root/init <<'INIT'
#!/bin/busybox sh
for module in /modules/*; do
	/bin/busybox insmod "$module"
done
/bin/busybox mount -t virtiofs -o ro host /host
exec /bin/busybox switch_root /host "$@"
INIT
	chmod +x root/init
	(cd root && find . | bin/busybox cpio -o -H newc 2>/dev/null) >kernel/initramfs
}

command -v depmod >/dev/null || fail "depmod not found: install kmod"
packages=$(depends "$package" 2>log) || fail "$(tail -1 log)"
version=$(echo "$packages" | sed -n 's/^linux-image-//p' | head -1)
[ -n "$version" ] || fail "the suite $suite has no package $package"
# From Linux 6.19 the image is in several packages.
parts=$(depends "linux-image-$version" | grep -Fx -e "linux-binary-$version" -e "linux-modules-$version" || true)
# shellcheck disable=SC2086 # a list of words
or_fail "fetch linux-image-$version" in_suite apt-get download "linux-image-$version" $parts
for part in linux-*.deb; do
	or_fail "unpack $part" dpkg-deb --extract "$part" package
done

mkdir -p kernel/lib
for modules in package/lib/modules package/usr/lib/modules; do
	[ ! -d "$modules" ] || mv "$modules" kernel/lib/modules
done
for image in "package/boot/vmlinuz-$version" "kernel/lib/modules/$version/vmlinuz"; do
	[ ! -e "$image" ] || mv "$image" kernel/vmlinuz
done
[ -e kernel/vmlinuz ] || fail "the packages of linux-image-$version have no vmlinuz"
or_fail "list the modules of linux-image-$version" depmod --basedir "$scratch/kernel" "$version"
echo "$version" >kernel/release
modules=$(modules_in_order 2>log) || fail "$(tail -1 log)"
[ -z "$modules" ] || write_initramfs "$modules"

# Complete or not there.
or_fail "write $target/kernels" mkdir -p "$target/kernels"
rm -rf "$target/kernels/.$name"
or_fail "write $target/kernels" mv kernel "$target/kernels/.$name"
rm -rf "$target/kernels/$name"
mv "$target/kernels/.$name" "$target/kernels/$name"
