#!/bin/sh
# Checks the C: its style, and that every BPF program compiles without a warning with each compiler of tools/clangs. What
# cannot be checked here is named with the reason.
#
# Compilers are those on the PATH and in target/clang, where `tools/setup.sh clang` puts those that this distribution does
# not have. To run tests with the newest of them: PATH=$PWD/target/clang/bin:$PATH cargo test -p packet-traits --test header
# Usage: tools/lint-c.sh; it starts itself for each program: tools/lint-c.sh compile COMPILER SOURCE
set -eu

if [ "${1:-}" = compile ]; then
	# with more warnings than people have; libbpf's BPF_PROG leaves a parameter unused
	said=$("$2" -O2 -g -mcpu=v3 -target bpf -Wall -Wextra -Wno-unused-parameter -Werror -Iinclude \
		"-I/usr/include/$(uname -m)-linux-gnu" -c "$3" -o /dev/null 2>&1) && exit 0
	printf 'lint-c: %s does not take %s without warnings:\n%s\n' "${2##*/}" "$3" "$said" >&2
	exit 1
fi

cd "$(dirname "$0")/.."
this=$PWD/tools/lint-c.sh
clangs=$(realpath -m "${CARGO_TARGET_DIR:-target}")/clang
formatter=clang-format-19
failed=0

# find_clang VERSION|newest: its program
find_clang() {
	echo "$PATH:$clangs/bin" | tr : '\n' | while read -r folder; do
		for program in "$folder"/clang-*; do
			[ ! -x "$program" ] || echo "$program"
		done
	done | sed -n 's,.*/clang-\([0-9][0-9]*\)$,\1 &,p' | sort -nr | if [ "$1" = newest ]; then
		head -1
	else
		grep -m1 "^$1 " || true
	fi | cut -d' ' -f2
}

# shellcheck disable=SC2046 # files of ours have no spaces
if command -v "$formatter" >/dev/null; then
	"$formatter" --dry-run --Werror $(find crates examples -name '*.[ch]') || failed=1
else
	echo "skipped: the style of C ($formatter is not installed)"
fi

while read -r version suite; do
	case $version in "#"* | "") continue ;; esac
	clang=$(find_clang "$version")
	# the newest is the suite's, not what happens to be installed
	if [ -z "$clang" ] || { [ "$version" = newest ] && [ ! -e "$clangs/newest" ]; }; then
		why=$(cat "$clangs/$version.why" 2>/dev/null || echo "tools/setup.sh clang fetches it")
		echo "skipped: BPF programs with clang $version of $suite ($why)"
		continue
	fi
	find crates examples -name '*.bpf.c' | xargs -n1 -P"$(nproc)" "$this" compile "$clang" || failed=1
done <tools/clangs
exit $failed
