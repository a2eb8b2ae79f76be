//! What the command line takes, and what its help looks like.

mod common;

use std::process::{Command, Output};

use common::text;

fn traits(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_traits")).args(line.split_whitespace()).output().unwrap()
}

/// The help of a command, in a terminal of so many columns.
fn help(command: &str, columns: usize) -> String {
    let mut traits = Command::new(env!("CARGO_BIN_EXE_traits"));
    traits.args(command.split_whitespace()).arg("--help").env("COLUMNS", columns.to_string());
    let output = traits.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{command}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn options_that_a_command_would_ignore_are_refused() {
    let ignored = [
        ("demo", "registry"),
        ("demo", "bpffs"),
        ("bench ops", "registry"),
        ("bench policy", "bpffs"),
        ("bench sockets", "registry"),
        ("bench trace", "bpffs"),
        ("doctor", "registry"),
        ("sockets show 1", "registry"),
        ("sockets show 1", "bpffs"),
        ("sockets save-syn 1", "registry"),
        ("sockets save-syn 1", "bpffs"),
    ];
    for (command, option) in ignored {
        for line in [format!("--{option} lab {command}"), format!("{command} --{option} lab")] {
            let output = traits(&line);
            let said = text(&output.stderr);
            assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), ""), "{line}: {said}");
            assert!(said.contains(&format!("does not take --{option}: ")), "{line}: {said}");
        }
        let command = command.trim_end_matches(" 1");
        assert!(!help(command, 80).contains(&format!("--{option}")), "{command} --help has --{option}");
    }
    let twice = traits("--registry lab registry show other");
    assert_eq!(twice.status.code(), Some(2));
    assert!(text(&twice.stderr).contains("not both"), "{}", text(&twice.stderr));
    for command in ["status", "registry show", "sockets status", "trace"] {
        let help = help(command, 80);
        assert!(help.contains("--registry") && help.contains("--bpffs"), "{help}");
    }
}
