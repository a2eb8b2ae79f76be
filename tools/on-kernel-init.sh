#!/bin/sh
# The first process of the machine that tools/on-kernel.sh starts: mounts what a running system has, runs the command,
# says how it ended and switches the machine off.
# Usage: on-kernel-init.sh FILES KERNEL TARGET [COMPILER...]: the folders of this run, of the kernel, and that cargo builds
# into, and the compilers that run outside
set -u
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
files=$1 kernel=$2 target=$3
shift 3
project=$(dirname "$(dirname "$0")")

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
# among the kernel's messages
exec >/dev/console 2>&1
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
ln -s /proc/self/fd /dev/fd
# as a running system's: opening it loads the module
mkdir -p /dev/net
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf -o mode=0700 bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing

# Where programs write; the folders that are needed are laid over it again.
mount -t tmpfs run /run
mkdir /run/host
mount --bind / /run/host
for folder in /tmp /var/tmp; do
	mount -t tmpfs tmp $folder
done
for folder in "$project" "$target" "$files"; do
	if [ ! -d "$folder" ]; then
		mkdir -p "$folder"
		mount --bind "/run/host$folder" "$folder"
	fi
done
[ ! -d "$target/tmp" ] || mount -t tmpfs tmp "$target/tmp"

# The kernel loads its modules by a command without arguments of ours.
printf '#!/bin/sh\nexec modprobe -d "%s" "$@"\n' "$kernel" >/run/modprobe
chmod +x /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe

# What a running system does by udev: network cards (PCI class 02, virtio device 1) get their drivers.
for device in /sys/bus/pci/devices/*/modalias /sys/bus/virtio/devices/*/modalias; do
	case $(cat "$device" 2>/dev/null) in
	pci:*bc02sc* | virtio:d00000001v*) /run/modprobe -q "$(cat "$device")" ;;
	esac
done

ip link set lo up

for port in /sys/class/virtio-ports/*; do
	ln -s "/dev/${port##*/}" "/run/$(cat "$port/name")"
done
mkdir /run/compile
for compiler; do
	ln -s "$project/tools/on-kernel-compile.sh" "/run/compile/$compiler"
done

# As a process of its own, so that the first one lives whatever happens to it.
bash "$files/command" </dev/null >/run/output 2>&1
echo $? >/run/status

echo 1 >/proc/sys/kernel/sysrq
echo o >/proc/sysrq-trigger
sleep 60
