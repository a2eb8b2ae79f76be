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
sent=("$exchange") folders=()

# send PATH: has it go along, if it is a file or folder that is only here
send() {
	case $1 in
	/tmp/?* | /var/tmp/?* | "$ON_KERNEL_TARGET"/tmp/?*)
		if [ -e "$1" ]; then
			sent+=("$1")
		elif [ -d "${1%/*}" ]; then
			# where a file is to be written
			folders+=(--no-recursion "${1%/*}")
		fi
		;;
	esac
}

printf '%s\0' "$name" "$PWD" "$@" >"$exchange/command"
: >"$exchange/input"
send "$PWD"
before=""
for argument in "$@"; do
	[ "$argument" != - ] || [ "$before" = -o ] || cat >"$exchange/input"
	send "$(realpath -m -- "$argument")"
	# of -I/tmp/folder
	case $argument in -?*/*) send "/${argument#*/}" ;; esac
	before=$argument
done
tar -cf "$exchange/request" --exclude "$exchange/request" "${sent[@]}" "${folders[@]}" 2>/dev/null

# one at a time: the port refuses to be opened twice
exec 8>/run/compile/lock
flock 8
exec 9<>/run/compile.port
wc -c <"$exchange/request" >&9
cat "$exchange/request" >&9
read -r length <&9
head -c "$length" <&9 | tar -x --touch -C /
exec 9>&- 8>&-
cat "$exchange/stderr" >&2
cat "$exchange/stdout"
exit "$(cat "$exchange/status")"
