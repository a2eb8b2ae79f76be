//! `traits compile`: what it writes, and what it says when it cannot.

mod common;

use std::fs;

use common::Traits;
use packet_traits_policy::manifest::Manifest;

const POLICY: &str = "\
key tenant u32
set admins ipv4 = { 10.0.0.1, 10.0.1.0/24 }

xdp {
    ip saddr @admins  set tenant = 7
    count seen
}
netfilter ip input priority -5 {
    trait tenant != 7  drop
}
";

#[test]
fn a_policy_becomes_an_object_or_c() {
    let Some(traits) = Traits::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let (policy, object) = (file("edge.traits"), file("edge.bpf.o"));
    fs::write(&policy, POLICY).unwrap();
    let (policy, object) = (policy.display(), object.display());

    let said = traits.ok(&format!("compile {policy} -o {object}"));
    assert_eq!(said, format!("compiled {policy} as {object}: 2 programs, 3 rules, 1 key\n"));
    let manifest = Manifest::from_object(&fs::read(object.to_string()).unwrap()).unwrap().unwrap();
    assert_eq!(manifest.source, policy.to_string());
    assert_eq!(manifest.programs.len(), 2);

    let json = traits.json(&format!("compile {policy} -o {object} --json"));
    assert_eq!(json["emitted"], "object");
    assert_eq!(json["programs"][1]["hook"]["families"], serde_json::json!(["ipv4"]));
    assert_eq!(json["programs"][1]["hook"]["priority"], -5);
    assert_eq!(json["keys"], serde_json::json!(["tenant"]));

    let c = traits.ok(&format!("compile {policy} --emit c"));
    assert!(c.contains("ip saddr @admins  set tenant = 7\n"), "{c}");
    assert!(c.contains("trait_seal(ctx);"), "{c}");
    let open = traits.ok(&format!("compile {policy} --emit c --no-seal"));
    assert!(!open.contains("trait_seal(ctx);"), "{open}");

    let error = traits.fails(&format!("compile {policy}"), 1);
    assert!(error.contains("-o"), "{error}");
    let error = traits.fails(&format!("compile {policy} -o /no/such/folder/edge.bpf.o"), 1);
    assert!(error.starts_with("traits: writing /no/such/folder/edge.bpf.o: "), "{error}");
    fs::write(policy.to_string(), "xdp { member 1 }\n").unwrap();
    let error = traits.fails(&format!("compile {policy} -o {object}"), 1);
    assert!(error.contains("steer"), "{error}");
    let options: String = (0..33).map(|kind| format!("geneve option 0x0102:{kind} 7 count\n")).collect();
    fs::write(policy.to_string(), format!("xdp {{\n{options}}}\n")).unwrap();
    let error = traits.fails(&format!("compile {policy} -o {object}"), 1);
    assert!(error.contains("33 different Geneve options and can ask for 32"), "{error}");
}
