#!/usr/bin/env bash
# Runs `make demo` in clean trees of Debian 12 and 13, as on a machine that has only make and Rust; writes what came of it to
# docs/distributions.md. The trees are made by debootstrap from the archive that this machine's sources name, and removed.
# The kernel is this machine's. Nothing outside target/distributions is changed, and all is mounted where only this sees it.
#
# Usage, as root: tools/test-distributions.sh SYSROOT CARGO_HOME COMMIT [SUITE...]
#     SYSROOT     of Rust, as `rustc --print sysroot` says; the trees get it as it is
#     CARGO_HOME  whose registry of crates the trees read
#     COMMIT      what target/distributions/source.tar is an archive of
# With suites it tries these only, and writes no page.
set -euo pipefail

tools=$(cd "$(dirname "$0")" && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$tools/../target}")
trees=$target/distributions

fail() {
	echo "test-distributions: $*" >&2
	exit 1
}

# In namespaces of its own: makes the tree, and runs the demo in it. Mounts and processes go with it, however it ends.
inside() {
	suite=$1 tree=$2 sysroot=$3 cargo_home=$4
	mount --make-rprivate /
	# with the archive's signatures checked by the keys that suite.sh takes
	sources=$target/suites/$suite/sources.list
	archive=$(sed -n "s/^deb \(\[.*\] \)\?\([^ ]*\) $suite main/\2/p" "$sources")
	keyring=$(sed -n 's/.*\[signed-by=\([^]]*\)\].*/--keyring=\1/p' "$sources" | head -1)
	debootstrap $keyring --include=make,ca-certificates "$suite" "$tree" "$archive" || {
		tail -20 "$tree/debootstrap/debootstrap.log" || true
		fail "debootstrap could not make a tree of $suite"
	}
	cp "$sources" "$tree/etc/apt/sources.list"
	# how this machine gets at the archive
	apt-config dump | grep -E '^Acquire::(http|https)::Proxy' >"$tree/etc/apt/apt.conf.d/90proxy" || true
	cp -L /etc/resolv.conf /etc/hosts "$tree/etc/"

	mount -t proc proc "$tree/proc"
	mount --rbind /sys "$tree/sys"
	mount --rbind /dev "$tree/dev"
	mkdir -p "$tree/opt/rust" "$tree/root/packet-traits" "$tree/root/.cargo/registry" "$tree/overlay/upper" "$tree/overlay/work"
	mount --bind -o ro "$sysroot" "$tree/opt/rust"
	[ ! -e "$cargo_home/config.toml" ] || cp "$cargo_home/config.toml" "$tree/root/.cargo/"
	if [ -d "$cargo_home/registry" ]; then
		mount -t overlay overlay -o "lowerdir=$cargo_home/registry,upperdir=$tree/overlay/upper,workdir=$tree/overlay/work" \
			"$tree/root/.cargo/registry"
	fi
	tar -C "$tree/root/packet-traits" -xf "$trees/source.tar"
	# a login of root's: nothing of this machine's environment but the way out
	exec env -i HOME=/root TERM=dumb PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		${http_proxy:+"http_proxy=$http_proxy"} ${https_proxy:+"https_proxy=$https_proxy"} \
		chroot "$tree" sh -c 'cd /root/packet-traits && make demo </dev/null'
}

if [ "${1:-}" = inside ]; then
	shift
	inside "$@"
fi

[ $# -ge 3 ] || fail "usage: make test-distributions"
[ "$(id -u)" = 0 ] || fail "making trees needs root; run: make test-distributions"
sysroot=$1 cargo_home=$2 commit=$3
shift 3
suites=("$@")
[ $# -gt 0 ] || suites=(bookworm trixie)
[ -x "$sysroot/bin/cargo" ] && [ "$sysroot" != /usr ] ||
	fail "Rust is in $sysroot, which cannot be given to the trees; install it with rustup"
[ -e "$trees/source.tar" ] || fail "there is no $trees/source.tar; run: make test-distributions"
command -v debootstrap >/dev/null || fail "debootstrap not found: install it (Debian, Ubuntu: package debootstrap)"

tree=
remove_tree() { [ -z "$tree" ] || rm -rf --one-file-system "$tree"; }
trap remove_tree EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

page=$trees/page
{
	echo "# Distributions"
	echo
	echo "Written by \`make test-distributions\` on $(date -u +%F), of commit ${commit:0:12}: \`make demo\`, as root, in clean trees"
	echo "made by debootstrap, with make and Rust. The kernel is this machine's, $(uname -r)."
} >"$page"
failed=0
for suite in "${suites[@]}"; do
	log=$trees/$suite.log
	tree=$trees/$suite
	remove_tree
	echo "test-distributions: $suite; the log is $log"
	{
		echo
		echo "## $suite"
		echo
	} >>"$page"
	if ! "$tools/suite.sh" "$suite" apt-cache policy make >/dev/null 2>"$log"; then
		echo "test-distributions: skipped: $suite ($(tail -1 "$log"))"
		echo "Not run: the suite is not in this machine's archive." >>"$page"
		failed=1
		continue
	fi
	start=$SECONDS status=0
	# in the background, so that a signal is noticed at once
	unshare --mount --pid --fork --kill-child "$0" inside "$suite" "$tree" "$sysroot" "$cargo_home" >"$log" 2>&1 &
	wait $! || status=$?
	version=$(cat "$tree/etc/debian_version" 2>/dev/null || true)
	clang=$(chroot "$tree" clang --version 2>/dev/null | sed -n 's/.*clang version \([0-9.]*\).*/\1/p' || true)
	rust=$("$sysroot/bin/rustc" --version | cut -d' ' -f2)
	{
		echo "Debian ${version:-unknown}, clang ${clang:-unknown}, Rust $rust: exit status $status" \
			"after $(((SECONDS - start + 59) / 60)) minutes, most of them building."
		if [ $status = 0 ]; then
			printf '\n```\n'
			sed -n '/^Two namespaces/,$p' "$log"
			printf '```\n'
		fi
	} >>"$page"
	if [ $status = 0 ]; then
		echo "test-distributions: $suite: the demo passed"
	else
		tail -25 "$log" >&2
		echo "test-distributions: $suite: status $status; see $log" >&2
		failed=1
	fi
	remove_tree
done
if [ $# = 0 ]; then
	mkdir -p "$tools/../docs"
	cp "$page" "$tools/../docs/distributions.md"
fi
exit $failed
