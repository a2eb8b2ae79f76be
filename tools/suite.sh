#!/bin/sh
# Runs an apt command on another suite of this machine's distribution: Debian's trixie-backports from bookworm, say.
#
#     tools/suite.sh trixie-backports apt-cache policy linux-image-cloud-amd64
#     tools/suite.sh trixie apt-get download clang-19
#
# Sources, lists of packages and cache are the suite's own, in target/suites; the system's are not touched. The mirror is
# the one that the system's sources name. A suite comes with its security updates, if the system has a source of those,
# and backports come with the suite they are for, but are preferred. The lists are read when they are older than a day.
# What is fetched is to be unpacked, not installed: it is of another release.
# Usage: tools/suite.sh SUITE apt-get|apt-cache ARGUMENT...
set -eu

fail() {
	echo "suite: $*" >&2
	exit 1
}

[ $# -ge 2 ] || fail "usage: tools/suite.sh SUITE apt-get|apt-cache ARGUMENT..."
suite=$1 program=$2
shift 2
target=$(realpath -m "${CARGO_TARGET_DIR:-$(dirname "$0")/../target}")
folder=$target/suites/$suite
base=${suite%-backports}
command -v apt-get >/dev/null || fail "no apt-get here, so no suite $suite"

# The keys of all of Debian's suites, where the package that has them is installed; else those that apt trusts.
signed=""
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ ! -e "$keys" ] || signed="[signed-by=$keys] "

# repository KIND: the address in the system's sources, of the archive itself or of its security updates
repository() {
	# shellcheck disable=SC1091 # a file of the system's
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	case $1 in
	archive) release=$codename ;;
	security) release=$codename-security ;;
	esac
	# shellcheck disable=SC2016 # apt-get's variables
	apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' "Created-By: Packages" |
		sed -n "s/^$release main //p" | head -1
}

archive=$(repository archive)
[ -n "$archive" ] || fail "the system's sources do not name this release's archive, so no suite $suite"
case $base in
sid | experimental) security="" ;;
*) security=$(repository security) ;;
esac
preferred=""
[ "$base" = "$suite" ] || preferred="APT::Default-Release \"$suite\";"

mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial" "$folder/none"
{
	echo "deb $signed$archive $suite main"
	[ -z "$preferred" ] || echo "deb $signed$archive $base main"
	[ -z "$security" ] || echo "deb $signed$security $base-security main"
} >"$folder/sources.list"
cat >"$folder/apt.conf" <<CONF
Dir::Etc::sourcelist "$folder/sources.list";
Dir::Etc::sourceparts "$folder/none";
Dir::Etc::preferences "$folder/none/preferences";
Dir::Etc::preferencesparts "$folder/none";
Dir::State::lists "$folder/lists";
Dir::Cache "$folder/cache";
Dir::Cache::pkgcache "pkgcache.bin";
$preferred
// the user apt fetches as may not write here
APT::Sandbox::User "root";
Acquire::Languages "none";
// they refresh what the system knows of its own lists
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb::DEP-11;
CONF

if [ -z "$(find "$folder/read" -mtime -1 2>/dev/null)" ]; then
	apt-get -c "$folder/apt.conf" update >"$folder/log" 2>&1 || {
		tail -5 "$folder/log" >&2
		fail "could not read the lists of the suite $suite"
	}
	touch "$folder/read"
fi
exec "$program" -c "$folder/apt.conf" "$@"
