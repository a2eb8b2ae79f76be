#!/bin/sh
# Puts a newer QEMU than the system's into target/qemu, for tools/on-kernel.sh, which takes it where a network card is
# asked for that the system's QEMU does not have (igb: from QEMU 8.0). Nothing is installed: the program finds its files by
# the wrapper target/qemu/qemu-system-x86_64, and its libraries in the system.
#
#     tools/fetch-qemu.sh                         # from the backports of this release of Debian
#     tools/fetch-qemu.sh bookworm-backports
#
# It replaces what was there, or leaves it alone if it fails.
# Usage: tools/fetch-qemu.sh [SUITE]
set -eu

tools=$(cd "$(dirname "$0")" && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$tools/../target}")
# shellcheck disable=SC1091 # a file of the system's
suite=${1:-$(. /etc/os-release && echo "${VERSION_CODENAME:-}")-backports}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

fail() {
	echo "fetch-qemu: $*" >&2
	exit 1
}

# What must be of one version; seabios and the cards' boot code come with the machine's firmware.
for package in qemu-system-x86 qemu-system-common qemu-system-data ipxe-qemu seabios; do
	"$tools/suite.sh" "$suite" apt-get download "$package" >log 2>&1 ||
		fail "could not fetch $package of $suite: $(tail -1 log)"
done
for package in *.deb; do
	dpkg-deb --extract "$package" qemu || fail "could not unpack $package"
done
missing=$(ldd qemu/usr/bin/qemu-system-x86_64 | sed -n 's/ => not found//p' | tr -d '\t' | tr '\n' ' ')
[ -z "$missing" ] || fail "QEMU of $suite requires libraries that are not installed: $missing"

# The wrapper is made last: complete or not there.
cat >qemu/qemu-system-x86_64 <<'WRAPPER'
#!/bin/sh
here=$(dirname "$(realpath "$0")")
QEMU_MODULE_DIR=$(echo "$here"/usr/lib/*/qemu)
export QEMU_MODULE_DIR
exec "$here/usr/bin/qemu-system-x86_64" -L "$here/usr/share/qemu" -L "$here/usr/share/seabios" \
	-L "$here/usr/lib/ipxe/qemu" "$@"
WRAPPER
chmod +x qemu/qemu-system-x86_64
qemu/qemu-system-x86_64 --version >log 2>&1 || fail "QEMU of $suite does not run here: $(tail -1 log)"
mkdir -p "$target"
rm -rf "$target/qemu" "$target/.qemu"
mv qemu "$target/.qemu"
mv "$target/.qemu" "$target/qemu"
head -1 log
