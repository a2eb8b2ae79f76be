//! Rules that name interfaces hold for whatever interface has the name when a packet comes.

mod common;

use std::net::{Ipv4Addr, SocketAddr};

use common::{host::Host, text};
use packet_traits_lab::{Cgroup, KernelFeature, kernel_has_for, recv_numbered, send_numbered, udp_socket};

const PORT: u16 = 7014;
/// Where nobody is: packets go out and are lost.
const AWAY: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 2);

/// Brings a policy up, and returns what it notes.
fn up(host: &Host, policy: &str, options: &str) -> String {
    let output = host.run(&format!("up {policy} {options}"));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stderr)
}

/// Makes an interface that leads to [`AWAY`].
fn make(host: &Host, name: &str) {
    let netns = host.pair.rx().netns();
    netns
        .ip(&format!(
            "link add {name} type veth peer name far\nlink set far up\naddr add 10.79.0.1/24 dev {name}\n\
             link set {name} up\nneigh add {AWAY} lladdr 02:00:00:00:79:02 dev {name}"
        ))
        .unwrap();
}

/// Sends datagrams to [`AWAY`].
fn send(host: &Host, cgroup: &Cgroup, count: u64) {
    let netns = host.pair.rx().netns();
    let socket = cgroup.enter(|| udp_socket(netns, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).unwrap());
    // those that a rule drops are refused
    for number in 0..count {
        let _ = send_numbered(&socket, SocketAddr::from((AWAY, PORT)), number..number + 1, 64);
    }
}

#[test]
fn an_interface_may_come_later_and_be_recreated() {
    let Some(host) = Host::new() else { return };
    let cgroup = Cgroup::new().unwrap();
    let netfilter = kernel_has_for(KernelFeature::NetfilterLinks, "names of interfaces at netfilter");
    let rules = "{ oif \"cx1\" udp dport 7014 count OUT  oif != \"cx1\" udp dport 7014 count OTHER }\n";
    let block = |hook: &str, name: &str| {
        // a rule is a line
        let rules = rules.replace("  oif", "\noif").replace("OTHER", &format!("{name}_other")).replace("OUT", name);
        format!("{hook} {rules}")
    };
    let mut policy = block("cgroup egress", "in_cgroup");
    let mut counters = vec!["in_cgroup"];
    if netfilter {
        policy += &block("netfilter output priority 5", "out");
        policy += &block("netfilter postrouting priority 5", "post");
        counters.extend(["out", "post"]);
    }
    let policy = host.policy("edge", &policy);
    let options = format!("--cgroup {}", cgroup.path().display());
    let noted = up(&host, &policy, &options);
    assert!(noted.contains("there is no interface cx1 now"), "{noted}");
    let assert_counted = |packets: u64, other: u64, what: &str| {
        for counter in &counters {
            let found = (host.counter("edge", counter), host.counter("edge", &format!("{counter}_other")));
            assert_eq!(found, (packets, other), "{counter}: {what}");
        }
    };

    make(&host, "cx1");
    send(&host, &cgroup, 3);
    assert_counted(3, 0, "it came later");
    let netns = host.pair.rx().netns();
    netns.ip("link del cx1").unwrap();
    make(&host, "cx1");
    send(&host, &cgroup, 3);
    assert_counted(6, 0, "it was recreated");
    netns.ip("link del cx1").unwrap();
    // the end of the longer name stays in the kernel's memory
    make(&host, "cx1-formerly");
    send(&host, &cgroup, 2);
    assert_counted(6, 2, "another name that begins so");
    netns.ip("link set cx1-formerly down\nlink set cx1-formerly name cx1").unwrap();
    netns.ip(&format!("link set cx1 up\nneigh replace {AWAY} lladdr 02:00:00:00:79:02 dev cx1")).unwrap();
    send(&host, &cgroup, 4);
    assert_counted(10, 2, "it was renamed");
    host.ok("down edge");
}

#[test]
fn a_renamed_interface_is_another_at_every_hook() {
    let Some(host) = Host::new() else { return };
    let cgroup = Cgroup::new().unwrap();
    let netfilter = kernel_has_for(KernelFeature::NetfilterLinks, "names of interfaces at netfilter");
    let mut hooks = vec![("xdp", "at_xdp"), ("tc ingress", "at_tc"), ("cgroup ingress", "at_cgroup")];
    if netfilter {
        hooks.extend([("netfilter prerouting priority 5", "at_pre"), ("netfilter input priority 5", "at_input")]);
    }
    let name = "a-longer-name-0";
    let block = |(hook, counter): &(&str, &str)| {
        format!(
            "{hook} {{\n    iif \"rx0\" udp count {counter}\n    iif \"{name}\" udp count {counter}_new\n    \
             iif != \"rx0\" udp count {counter}_not\n}}\n"
        )
    };
    let policy = host.policy("edge", &hooks.iter().map(block).collect::<String>());
    up(&host, &policy, &format!("--dev rx0 --cgroup {}", cgroup.path().display()));
    let rx = host.pair.rx();
    let send = |count: u64| {
        let receiver = cgroup.enter(|| udp_socket(rx.netns(), SocketAddr::from((rx.ipv4(), PORT))).unwrap());
        let tx = host.pair.tx();
        let sender = udp_socket(tx.netns(), SocketAddr::from((tx.ipv4(), 0))).unwrap();
        send_numbered(&sender, receiver.local_addr().unwrap(), 0..count, 64).unwrap();
        (0..count).for_each(|number| assert_eq!(recv_numbered(&receiver).unwrap(), number));
    };
    let counted = |counter: &str| host.counter("edge", counter);
    send(3);
    for (hook, counter) in &hooks {
        let (old, new, not) =
            (counted(counter), counted(&format!("{counter}_new")), counted(&format!("{counter}_not")));
        assert_eq!((old, new, not), (3, 0, 0), "{hook}");
    }
    let (mac, gateway) = (host.pair.tx().mac(), host.pair.tx().ipv4());
    rx.netns()
        .ip(&format!(
            "link set rx0 down\nlink set rx0 name {name}\nlink set {name} up\n\
             neigh replace {gateway} lladdr {mac} dev {name}"
        ))
        .unwrap();
    send(2);
    for (hook, counter) in &hooks {
        let (old, new, not) =
            (counted(counter), counted(&format!("{counter}_new")), counted(&format!("{counter}_not")));
        assert_eq!((old, new, not), (3, 2, 2), "{hook}");
    }
    host.ok("down edge");
}

#[test]
fn an_interface_to_redirect_to_must_be_there_and_be_called_so() {
    let Some(host) = Host::new() else { return };
    let redirect = host.policy("edge", "tc ingress { udp dport 7014 redirect \"cx1\" }\n");
    let error = host.fails(&format!("up {redirect} --dev rx0"));
    assert!(error.contains("no interface cx1"), "{error}");
    host.pair.rx().netns().ip("link property add dev rx0 altname uplink0").unwrap();
    let alternative = host.policy("edge", "tc ingress { iif \"uplink0\" count seen }\n");
    let error = host.fails(&format!("up {alternative} --dev rx0"));
    assert!(error.contains("uplink0 is an alternative name of interface rx0"), "{error}");
    assert_eq!(host.up(), [""; 0]);
}
