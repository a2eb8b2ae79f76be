//! A process without privileges sends with traits.

use std::process::Command;

use packet_traits_lab::Family;

use crate::{
    HAS_TENANT, NOTHING, Sender, assert_seen,
    common::{
        self,
        c_program::{Folder, compile},
        record::{self, HAS_SEQ},
    },
};

/// `tests/send.c` as nobody: what the C header says is all it takes.
#[test]
fn a_process_without_privileges_sends_with_traits() {
    if !common::area_enabled() {
        return;
    }
    let folder = Folder::new("send");
    let program = compile(&folder, "send");
    for family in Family::BOTH {
        let sender = Sender::new();
        let _sink = sender.sink(family);
        let to = sender.to(family);
        let mut command = Command::new(&program);
        command.arg(to.ip().to_string()).arg(to.port().to_string());
        let output = sender.lab.unprivileged(&command).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(said, "uid 65534\nMessage too long\nInvalid argument\n");
        let seen = |tenant, seq: Option<u64>| {
            let present = HAS_TENANT | if seq.is_some() { HAS_SEQ } else { 0 };
            (present, record::Traits { tenant, seq: seq.unwrap_or_default(), ..NOTHING })
        };
        assert_seen(
            &sender.records(),
            [(0, seen(7, None)), (1, seen(7, Some(1))), (2, seen(7, None)), (3, seen(8, Some(3))), (4, seen(7, None))],
        );
    }
}
