//! The rules that are measured, in both languages. Each set of rules drops the measured packet in its last rule.

use std::fmt::Write;

/// UDP port that the measured packets go to.
pub(super) const PORT: u16 = 9;
/// The first of the ports that they do not go to.
const OTHER_PORTS: u16 = 20_000;

/// A shape of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// As many rules as the size says, each about one port; only the last one is about the packet's.
    Rules,
    /// One rule with a set of as many ports, the packet's among them.
    Set,
    /// One rule that gives the packet a mark from a map of as many ports, one that drops it.
    Map,
}

impl Shape {
    /// Every shape.
    pub(super) const ALL: [Shape; 3] = [Shape::Rules, Shape::Set, Shape::Map];

    pub(super) fn name(self) -> &'static str {
        match self {
            Shape::Rules => "rules",
            Shape::Set => "set",
            Shape::Map => "map",
        }
    }

    /// The block of a policy for a hook (`xdp` or `tc ingress`). XDP has no mark: there a trait is set.
    pub(super) fn policy(self, size: u16, hook: &str) -> String {
        let ports = ports(size);
        let (keys, mark) = match hook {
            "xdp" => ("key class u32\n", "set class ="),
            _ => ("", "mark"),
        };
        let rules = match self {
            Shape::Rules => rules(&ports, |port| format!("udp dport {port} drop")),
            Shape::Set => format!("udp dport {{ {} }} drop", list(&ports, u16::to_string)),
            Shape::Map => format!(
                "{mark} udp dport map {{ {} }}\nudp dport {PORT} drop",
                list(&ports, |port| format!("{port} : {port}"))
            ),
        };
        format!("{keys}{hook} {{\n{rules}\n}}\n")
    }

    /// The same as a table of nftables at the ingress of an interface.
    pub(super) fn nftables(self, size: u16, interface: &str) -> String {
        let ports = ports(size);
        let rules = match self {
            Shape::Rules => rules(&ports, |port| format!("udp dport {port} counter drop")),
            Shape::Set => format!("udp dport {{ {} }} counter drop", list(&ports, u16::to_string)),
            Shape::Map => format!(
                "meta mark set udp dport map {{ {} }}\nudp dport {PORT} counter drop",
                list(&ports, |port| format!("{port} : {port}"))
            ),
        };
        format!(
            "table netdev bench {{\nchain ingress {{\n\
             type filter hook ingress device {interface} priority 0; policy accept;\n{rules}\n}}\n}}\n"
        )
    }
}

/// As many ports; the packet's is the last.
fn ports(size: u16) -> Vec<u16> {
    (1..size).map(|number| OTHER_PORTS + number).chain([PORT]).collect()
}

fn rules(ports: &[u16], rule: impl Fn(u16) -> String) -> String {
    ports.iter().fold(String::new(), |mut text, port| {
        // writing to a String does not fail
        let _ = writeln!(text, "{}", rule(*port));
        text
    })
}

fn list(ports: &[u16], element: impl Fn(&u16) -> String) -> String {
    ports.iter().map(element).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_languages_have_the_same_ports() {
        for shape in Shape::ALL {
            for size in [1, 10] {
                let (policy, nftables) = (shape.policy(size, "tc ingress"), shape.nftables(size, "rx0"));
                for port in ports(size) {
                    let port = port.to_string();
                    assert!(policy.contains(&port) && nftables.contains(&port), "{shape:?} {size} {port}");
                }
                assert_eq!(policy.matches("drop").count(), nftables.matches("drop").count());
            }
        }
    }
}
