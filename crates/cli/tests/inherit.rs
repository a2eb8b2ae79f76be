//! A policy's XDP block drops the traits that a packet has from another interface, unless it inherits.

mod common;

use common::{Traits, text};
use packet_traits_lab::{Chain, Family, Netns, recv_numbered, send_numbered, udp_socket};
use serde_json::Value;

const PORT: u16 = 7013;
const PACKETS: u64 = 20;

/// Runs a command in a namespace that must succeed.
#[track_caller]
fn ok(traits: &Traits, netns: &Netns, line: &str) -> String {
    let mut command = netns.command(env!("CARGO_BIN_EXE_traits"));
    let output = command.arg("--bpffs").arg(traits.bpffs.path()).args(line.split_whitespace()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{line}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Packets that a counter of the policy `inner` has counted.
fn counted(traits: &Traits, counter: &str) -> u64 {
    let status: Value = serde_json::from_str(&traits.ok("status inner --json")).unwrap();
    let counters = status["deployments"][0]["policy"]["counters"].as_array().unwrap();
    let found = counters.iter().find(|one| one["name"] == counter).unwrap_or_else(|| panic!("{counters:?}"));
    found["packets"].as_u64().unwrap()
}

/// A router's policy sets a trait of every packet. The server, in another namespace, has a policy whose block begins so.
/// Returns how many datagrams of the client its TC block found with the trait, and how many with one that its own XDP block
/// sets on every second.
fn found_behind(block: &str, mode: &str) -> Option<(u64, u64)> {
    let traits = Traits::new()?;
    traits.create_registry("default");
    let chain = Chain::new().unwrap();
    let edge = traits.policy("edge", "key tenant u32\nxdp { udp set tenant = 7 }\n");
    ok(&traits, chain.router_in().netns(), &format!("up {} --dev rt0 --mode native", edge.display()));
    let own = PORT + 1;
    let inner = traits.policy(
        "inner",
        &format!(
            "key tenant u32\nkey own u16\n{block} {{ udp dport {own} set own = 1 }}\n\
             tc ingress {{\n udp dport {PORT}-{own} trait tenant is set count brought\n udp trait own is set count own\n}}\n"
        ),
    );
    ok(&traits, chain.server().netns(), &format!("up {} --dev sv0 --mode {mode}", inner.display()));
    for port in [PORT, own] {
        let receiver = udp_socket(chain.server().netns(), chain.server().addr(Family::V4, port)).unwrap();
        let sender = udp_socket(chain.client().netns(), chain.client().addr(Family::V4, 0)).unwrap();
        for number in 0..PACKETS {
            send_numbered(&sender, receiver.local_addr().unwrap(), number..number + 1, 64).unwrap();
            assert_eq!(recv_numbered(&receiver).unwrap(), number);
        }
    }
    Some((counted(&traits, "brought"), counted(&traits, "own")))
}

#[test]
fn a_block_drops_inherited_traits() {
    for mode in ["native", "generic"] {
        let Some(found) = found_behind("xdp", mode) else { return };
        assert_eq!(found, (0, PACKETS), "{mode}");
    }
}

#[test]
fn a_block_that_inherits_keeps_them() {
    for mode in ["native", "generic"] {
        let Some(found) = found_behind("xdp inherit", mode) else { return };
        // where the block sets a trait, the area is its own
        assert_eq!(found, (PACKETS, PACKETS), "{mode}");
    }
}
