//! What C is made of a policy, so that changes of it are read: `tests/golden/NAME.traits` must give `NAME.bpf.c.txt`.
//!
//! `BLESS=1 cargo test -p packet-traits-policy --test golden` writes it again; read it before you keep it.

use std::{fs, path::Path};

use packet_traits_policy::{
    check::{CheckOptions, Texts, check},
    emit::{EmitOptions, emit},
};

#[test]
fn a_policy_becomes_this_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let name = "tenants.traits";
    let texts: Texts = [(name.to_owned(), fs::read(folder.join(name)).unwrap())].into_iter().collect();
    let checked = match check(name.as_ref(), &texts, &CheckOptions::default()) {
        Ok(checked) => checked,
        Err(rejected) => {
            let said: Vec<_> =
                rejected.diagnostics.iter().map(|found| found.render(&rejected.sources, false)).collect();
            panic!("{}", said.join("\n"));
        }
    };
    assert!(checked.warnings.is_empty());
    let emitted = emit(&checked.policy, &checked.sources, &EmitOptions::default()).unwrap();
    let expected = folder.join("tenants.bpf.c.txt");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&expected, &emitted.source).unwrap();
    }
    let expected = fs::read_to_string(&expected).unwrap();
    for (number, (is, was)) in emitted.source.lines().zip(expected.lines()).enumerate() {
        assert_eq!(is, was, "line {}; BLESS=1 writes it again", number + 1);
    }
    assert_eq!(emitted.source.lines().count(), expected.lines().count());
}
