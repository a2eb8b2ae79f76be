//! Commands beside `ip netns`: what it calls network namespaces, and the mount namespace that `ip netns exec` makes for each
//! command. On a host without a bpffs, none must be mounted that goes away with it.

mod common;

use common::{Traits, on_host, text};

/// What is in the way of a registry.
const REFUSED: &str = "this process is in a mount namespace of its own (`ip netns exec` makes one)";

#[test]
fn ip_netns_exec_mounts_nothing_that_goes_with_the_command() {
    let Some(_) = Traits::new() else { return };
    for command in ["registry create", "keys add tenant u32", "status", "registry show"] {
        let script = format!("ip netns add blue && ip netns exec blue $TRAITS {command}");
        let output = on_host(&script);
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""), "{command}: {said}");
        assert!(said.contains(REFUSED) && said.contains("`nsenter --net=/run/netns/NAME`"), "{command}: {said}");
    }
}

#[test]
fn what_is_advised_works() {
    let Some(_) = Traits::new() else { return };
    let script = "
        ip netns add blue
        nsenter --net=/run/netns/blue $TRAITS registry create >/dev/null 2>&1 || exit 2
        nsenter --net=/run/netns/blue $TRAITS keys add tenant u32 >/dev/null || exit 3
        $TRAITS keys list
        ip netns exec blue $TRAITS keys list";
    let output = on_host(script);
    let (printed, said) = (text(&output.stdout), text(&output.stderr));
    assert!(printed.contains("tenant"), "it outlives the command: {printed}{said}");
    assert!(said.contains("is hidden from this process"), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
}

#[test]
fn status_calls_a_network_namespace_by_its_name() {
    let Some(traits) = Traits::new() else { return };
    let edge = traits.policy("edge", "xdp { accept }\n");
    let script = format!(
        "
        $TRAITS registry create >/dev/null 2>&1 || exit 2
        ip netns add blue
        ip netns exec blue ip link add veth7 type veth || exit 3
        nsenter --net=/run/netns/blue $TRAITS up {} --dev veth7 >/dev/null || exit 4
        $TRAITS status
        $TRAITS status --json | grep netns_name
        $TRAITS down edge >/dev/null",
        edge.display()
    );
    let output = on_host(&script);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}{}", text(&output.stderr));
    assert!(printed.contains("  veth7 (ifindex ") && printed.contains(") in netns blue "), "{printed}");
    assert_eq!(printed.matches("\"netns_name\": \"blue\"").count(), printed.matches("netns_name").count(), "{printed}");
}

/// Says that pins do not stay.
const PASSING: &str = "the BPF file system at /sys/fs/bpf is in this process's mount namespace only";

#[test]
fn what_goes_away_with_the_mount_namespace_is_said_to() {
    let Some(traits) = Traits::new() else { return };
    let edge = traits.policy("edge", "xdp { accept }\n");
    let script = format!(
        "
        ip netns add blue
        ip netns exec blue ip link add veth7 type veth peer name veth8 || exit 2
        ip netns exec blue sh -c '
            mount -t bpf -o mode=0700 bpf /sys/fs/bpf
            mount -t cgroup2 cgroup2 /sys/fs/cgroup
            for command in \"registry create\" \"up {} --dev veth7\" \"border attach --dev veth8\" \\
                    \"sockets attach --cgroup /sys/fs/cgroup\"; do
                echo \"# $command\"
                $TRAITS $command 2>&1 >/dev/null || exit 3
            done
            $TRAITS sockets detach --cgroup /sys/fs/cgroup >/dev/null
            echo \"# keys\"
            $TRAITS keys list 2>&1'",
        edge.display()
    );
    let output = on_host(&script);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}{}", text(&output.stderr));
    let commands: Vec<&str> = printed.split("# ").skip(1).collect();
    assert_eq!(commands.len(), 5, "{printed}");
    for (number, said) in commands.iter().enumerate() {
        assert_eq!(said.matches(PASSING).count(), usize::from(number < 4), "{said}");
        assert_eq!(said.contains("`nsenter --net=/run/netns/NAME`"), number < 4, "{said}");
    }
}

#[test]
fn a_container_that_has_a_bpffs_keeps_it() {
    let Some(_) = Traits::new() else { return };
    // its first process is in the same mount namespace, or has the file system elsewhere
    for place in ["sh -c", "unshare --mount sh -c"] {
        let script = format!(
            "
            mkdir /run/bpf && mount -t bpf -o mode=0700 bpf /run/bpf
            {place} '
                mount --bind /run/bpf /sys/fs/bpf
                $TRAITS registry create 2>&1 >/dev/null | grep \"mount namespace\" && exit 2
                $TRAITS keys add tenant u32'"
        );
        let output = on_host(&script);
        assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
        assert!(text(&output.stdout).starts_with("tenant: "));
    }
}

/// A command that looks for the tree, and changes nothing: nothing is attached.
const FIND_CGROUPS: &str = "{ $TRAITS registry create >/dev/null 2>&1; $TRAITS sockets detach 2>&1; }";

#[test]
fn the_way_to_cgroups_that_is_advised_works() {
    let Some(_) = Traits::new() else { return };
    let script = format!(
        "
        ip netns add blue
        ip netns exec blue sh -c 'mount -t bpf -o mode=0700 bpf /sys/fs/bpf; {FIND_CGROUPS}'
        echo instead
        nsenter --net=/run/netns/blue sh -c '{FIND_CGROUPS}'"
    );
    let said = text(&on_host(&script).stdout);
    let (hidden, found) = said.split_once("instead\n").unwrap();
    assert!(
        hidden.contains("the tree is hidden from this process, which is in a mount namespace of its own"),
        "{said}"
    );
    assert!(hidden.contains("`nsenter --net=/run/netns/NAME`"), "{said}");
    assert!(!found.contains("v2 tree") && !found.is_empty(), "{said}");
}

#[test]
fn a_cgroup_tree_is_to_be_mounted_where_there_is_a_folder() {
    let Some(_) = Traits::new() else { return };
    // nobody has the tree
    let script = format!(
        "
        while umount -l $(findmnt -nfo TARGET -t cgroup2) 2>/dev/null; do :; done
        ip netns add blue
        ip netns exec blue sh -c 'mount -t bpf -o mode=0700 bpf /sys/fs/bpf; {FIND_CGROUPS}; ls -d /sys/fs/cgroup'"
    );
    let said = text(&on_host(&script).stdout);
    assert!(said.contains("`mount -t cgroup2 cgroup2 /sys/fs/cgroup`"), "{said}");
    assert!(said.ends_with("/sys/fs/cgroup\n"), "{said}");
}

#[test]
fn mounts_that_spread_are_no_obstacle() {
    let Some(_) = Traits::new() else { return };
    let script = "
        mount --make-rshared /
        unshare --mount --propagation unchanged $TRAITS registry create >/dev/null 2>&1
        $TRAITS keys add tenant u32";
    let output = on_host(script);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}
