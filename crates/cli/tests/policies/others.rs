//! Rules nobody here wrote go by a trait: iptables by a pinned program, nftables and `ip rule` by the mark.

use std::{net::UdpSocket, time::Duration};

use packet_traits_lab::{Family, KernelFeature, Netns, Pair, recv_numbered, send_numbered, udp_socket};

use crate::host::{Host, succeed};

const PORT: u16 = 7777;
const DATAGRAMS: u64 = 40;

/// Odd tenants come from odd ports.
const POLICY: &str = "\
key tenant u32
xdp {
	udp sport 5001  set tenant = 1001
	udp sport 5002  set tenant = 1002
}
";

struct Scene {
    pair: Pair,
    receiver: UdpSocket,
    family: Family,
}

impl Scene {
    fn new(family: Family) -> Scene {
        let pair = Pair::new().unwrap();
        let receiver = udp_socket(pair.rx().netns(), pair.rx().addr(family, PORT)).unwrap();
        Scene { pair, receiver, family }
    }

    fn netns(&self) -> &Netns {
        self.pair.rx().netns()
    }

    /// Sends from a port and returns how many arrive.
    fn arrive(&self, from: u16) -> usize {
        let sender = udp_socket(self.pair.tx().netns(), self.pair.tx().addr(self.family, from)).unwrap();
        send_numbered(&sender, self.receiver.local_addr().unwrap(), 0..DATAGRAMS, 64).unwrap();
        self.receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        std::iter::from_fn(|| recv_numbered(&self.receiver).ok()).count()
    }

    #[track_caller]
    fn only_tenant_1001_is_stopped(&self) {
        assert_eq!(self.arrive(5001), 0, "{:?}", self.family);
        for other in [5002, 5003] {
            assert_eq!(self.arrive(other) as u64, DATAGRAMS, "{:?} {other}", self.family);
        }
    }
}

#[test]
fn iptables_drops_by_a_trait() {
    for (family, command) in Family::BOTH.into_iter().zip(["iptables-legacy", "ip6tables-legacy"]) {
        let Some(host) = Host::new() else { return };
        let scene = Scene::new(family);
        let policy = format!("{POLICY}match tenant_1001 {{\n\ttrait tenant 1001  accept\n}}\n");
        host.up(scene.pair.rx(), &host.traits.policy("for-iptables", &policy), &[]);
        assert_eq!(scene.arrive(5001) as u64, DATAGRAMS, "before there is a rule");
        let program = host.filter("for-iptables", "tenant_1001").display().to_string();
        succeed(scene.netns().command(command).args([
            "-A",
            "INPUT",
            "-m",
            "bpf",
            "--object-pinned",
            &program,
            "-j",
            "DROP",
        ]));
        scene.only_tenant_1001_is_stopped();
        let listed = succeed(scene.netns().command(command).args(["-L", "INPUT", "-v", "-x", "-n"]));
        let counted = listed.lines().find(|line| line.contains("DROP")).unwrap().split_whitespace().next();
        assert_eq!(counted, Some(DATAGRAMS.to_string().as_str()), "{listed}");
    }
}

#[test]
fn nftables_drops_by_the_mark_that_a_trait_became() {
    for family in Family::BOTH {
        let Some(host) = Host::new() else { return };
        let scene = Scene::new(family);
        let policy = format!("{POLICY}tc ingress {{\n\ttrait tenant is set  mark trait tenant\n}}\n");
        host.up(scene.pair.rx(), &host.traits.policy("for-nft", &policy), &[]);
        scene
            .netns()
            .nft("table inet t {\nchain c {\ntype filter hook input priority 0\nmeta mark 1001 counter drop\n}\n}\n")
            .unwrap();
        scene.only_tenant_1001_is_stopped();
        let listed = scene.netns().nft("list table inet t").unwrap();
        assert!(listed.contains(&format!("counter packets {DATAGRAMS} ")), "{listed}");
    }
}

#[test]
fn netfilter_drops_by_a_trait_without_other_rules() {
    for family in Family::BOTH {
        let Some(host) = Host::on(&[KernelFeature::NetfilterLinks]) else { return };
        let scene = Scene::new(family);
        let policy = format!("{POLICY}netfilter input priority -1 {{\n\ttrait tenant 1001  count dropped  drop\n}}\n");
        host.up(scene.pair.rx(), &host.traits.policy("netfilter", &policy), &[]);
        scene.only_tenant_1001_is_stopped();
        host.wait_for("netfilter", "dropped", None, DATAGRAMS);
    }
}

#[test]
fn a_cgroup_refuses_by_a_trait() {
    let Some(host) = Host::new() else { return };
    let cgroup = packet_traits_lab::Cgroup::new().unwrap();
    let path = cgroup.path().display().to_string();
    let scene = cgroup.enter(|| Scene::new(Family::V4));
    let policy = format!("{POLICY}cgroup ingress {{\n\ttrait tenant 1001  count refused by trait tenant  drop\n}}\n");
    host.up(scene.pair.rx(), &host.traits.policy("cgroup", &policy), &["--cgroup", &path]);
    scene.only_tenant_1001_is_stopped();
    host.wait_for("cgroup", "refused", Some("1001"), DATAGRAMS);
}

#[test]
fn xdp_drops_early_by_a_trait_that_an_earlier_rule_set() {
    for mode in ["native", "generic"] {
        let Some(host) = Host::new() else { return };
        let scene = Scene::new(Family::V6);
        let policy = POLICY.replace("\n}\n", "\n\ttrait tenant 1001  count early by trait tenant  drop\n}\n");
        host.up(scene.pair.rx(), &host.traits.policy("early", &policy), &["--mode", mode]);
        scene.only_tenant_1001_is_stopped();
        host.wait_for("early", "early", Some("1001"), DATAGRAMS);
    }
}
