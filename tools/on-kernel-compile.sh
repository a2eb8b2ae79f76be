#!/usr/bin/env bash
# In the machine of tools/on-kernel.sh, under the names of compilers: has tools/on-kernel-compile.py, outside of it, run the
# compiler. Emulated, clang takes the better part of a minute for what it does in a second.
#
# Both sides see the same files but those in /tmp, /var/tmp and target/tmp: of these go along the current folder, and what
# arguments name; and the output comes back.
set -eu

name=${0##*/}
exchange=$(mktemp -d /tmp/compile.XXXXXXXX)
trap 'rm -rf "$exchange"' EXIT
sent=("$exchange")

# send PATH: has it go along, if it is a file or folder that is only here
send() {
	case $1 in
	/tmp/?* | /var/tmp/?* | "$ON_KERNEL_TARGET"/tmp/?*) [ ! -e "$1" ] || sent+=("$1") ;;
	esac
}

printf '%s\0' "$name" "$PWD" "$@" >"$exchange/command"
: >"$exchange/input"
send "$PWD"
before=""
for argument in "$@"; do
	[ "$argument" != - ] || [ "$before" = -o ] || cat >"$exchange/input"
	[ ! -e "$argument" ] || send "$(realpath "$argument")"
	# of -I/tmp/folder
	case $argument in */*) send "/${argument#*/}" ;; esac
	before=$argument
done
tar -cf "$exchange/request" --exclude "$exchange/request" "${sent[@]}" 2>/dev/null

# one at a time
exec 8>/run/compile/lock 9<>/run/compile.port
flock 8
wc -c <"$exchange/request" >&9
cat "$exchange/request" >&9
read -r length <&9
head -c "$length" <&9 | tar -x --touch -C /
exec 8>&- 9>&-
cat "$exchange/stderr" >&2
cat "$exchange/stdout"
exit "$(cat "$exchange/status")"
