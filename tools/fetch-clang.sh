#!/bin/sh
# Puts a compiler of a suite of Debian's into target/clang, for tools/lint-c.sh; nothing is installed.
#
#     tools/fetch-clang.sh 14 bookworm
#     tools/fetch-clang.sh newest sid
#
# The program is target/clang/bin/clang-VERSION, which starts the suite's clang with the suite's libraries, its C library
# among them, which the system's may be too old for. Put the folder on the PATH to have tests take the newest compiler there.
# Usage: tools/fetch-clang.sh VERSION|newest SUITE
set -eu

wanted=$1 suite=$2
tools=$(cd "$(dirname "$0")" && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$tools/../target}")

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

fail() {
	echo "fetch-clang: $*" >&2
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

# Of those with a package of the suite's own: apt also names what is installed.
versions() {
	names=$(in_suite apt-cache search --names-only '^clang-[0-9]+$') || return
	# shellcheck disable=SC2046 # a list of words
	in_suite apt-cache madison $(echo "$names" | cut -d' ' -f1) |
		sed -n "s,^ *clang-\([0-9]*\) |.* Packages\$,\1,p" | sort -nu
}

found=$(versions 2>log) || fail "$(tail -1 log)"
if [ "$wanted" = newest ]; then
	version=$(echo "$found" | tail -1)
else
	version=$(echo "$found" | grep -Fx "$wanted" || true)
fi
[ -n "$version" ] || fail "the suite $suite has no package clang-$wanted"
done_fetching() { [ "$wanted" != newest ] || ln -sfn "$version" "$target/clang/newest"; }
if [ -x "$target/clang/bin/clang-$version" ]; then
	done_fetching
	exit 0
fi

# The compiler, the headers that belong to it, and the libraries it is linked with, with all that those need.
packages=$(in_suite apt-cache depends --recurse --important "libclang-cpp$version" "libllvm$version" 2>log | grep '^[a-z0-9]') ||
	fail "$(tail -1 log)"
# shellcheck disable=SC2086 # a list of words
or_fail "fetch clang-$version" in_suite apt-get download "clang-$version" "libclang-common-$version-dev" $packages
for package in *.deb; do
	or_fail "unpack $package" dpkg-deb --extract "$package" "root"
done

loader=$(find root -name 'ld-linux*.so.*' | head -1)
[ -n "$loader" ] || fail "the packages of clang-$version have no loader"
root=$target/clang/$version
libraries=$(find root -name '*.so.*' -not -path '*/llvm-*/*' -printf "$root/%P\n" | xargs -n1 dirname | sort -u | tr '\n' :)
cat >wrapper <<WRAPPER
#!/bin/sh
exec "$root/${loader#root/}" --argv0 "clang-$version" --library-path "$libraries" "$root/usr/lib/llvm-$version/bin/clang" \\
	-resource-dir "$root/usr/lib/llvm-$version/lib/clang/$(ls "root/usr/lib/llvm-$version/lib/clang")" "\$@"
WRAPPER
chmod +x wrapper

# Complete or not there: the program comes last.
or_fail "write $target/clang" mkdir -p "$target/clang/bin"
rm -rf "$root"
or_fail "write $root" mv root "$root"
or_fail "run clang-$version" ./wrapper --version
mv wrapper "$target/clang/bin/clang-$version"
done_fetching
