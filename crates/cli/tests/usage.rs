//! What the command line takes, and what its help looks like.

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

use common::text;

fn traits(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_traits")).args(line.split_whitespace()).output().unwrap()
}

/// The help of a command, in a terminal of `columns` columns.
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

#[test]
fn bench_becomes_the_program_beside_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let command = folder.path().join("traits");
    fs::copy(env!("CARGO_BIN_EXE_traits"), &command).unwrap();
    let run = |arguments: &[&str]| Command::new(&command).args(arguments).env("PATH", folder.path()).output().unwrap();

    let said = text(&run(&["bench", "ops"]).stderr);
    assert!(said.starts_with("traits: traits-bench not found") && said.contains("cargo build"), "{said}");

    let program = folder.path().join("traits-bench");
    fs::write(&program, "#!/bin/sh\necho \"$*\"\nexit 3\n").unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    for (arguments, passed) in [
        (&["bench", "ops", "--rounds", "3", "--json"][..], "ops --rounds 3 --json"),
        (&["bench", "--help"], "--help"),
        (&["-vv", "bench", "ops", "-v"], "-v -v ops -v"),
    ] {
        let output = run(arguments);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(3), format!("{passed}\n")));
    }
    let refused = run(&["--registry", "lab", "bench", "ops"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("does not take --registry: "), "{}", text(&refused.stderr));
}

/// Every command and subcommand, as words behind `traits`.
fn commands() -> Vec<String> {
    let mut found = vec![String::new()];
    let mut next = 0;
    while let Some(command) = found.get(next).cloned() {
        let help = help(&command, 120);
        let listed = section(&help, "Commands:").filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
        // `bench` is another program
        let below = listed.filter(|name| !["", "help", "bench"].contains(name));
        found.extend(below.map(|name| format!("{command} {name}").trim_start().to_owned()));
        next += 1;
    }
    found
}

/// The lines of help below a title.
fn section<'h>(help: &'h str, title: &str) -> impl Iterator<Item = &'h str> {
    let lines = help.lines().skip_while(move |line| *line != title).skip(1);
    // options of long help have empty lines between them
    lines.take_while(|line| line.is_empty() || line.starts_with(' '))
}

/// The lines of help that are in no section: what the command does, and remarks.
fn prose(help: &str) -> Vec<&str> {
    help.lines().filter(|line| !line.starts_with("Usage: ") && !line.starts_with(' ') && !line.ends_with(':')).collect()
}

#[test]
fn help_follows_the_width_of_the_terminal() {
    let all = commands();
    assert!(all.len() > 20, "{all:?}");
    for columns in [60, 80, 120] {
        for command in &all {
            let help = help(command, columns);
            let examples: Vec<_> = section(&help, "Examples:").collect();
            for line in help.lines().filter(|line| !examples.contains(line)) {
                assert!(line.chars().count() <= columns, "{command} at {columns}: {line}");
            }
            for pair in prose(&help).windows(2).filter(|pair| pair.iter().all(|line| !line.is_empty())) {
                let word = pair[1].split(' ').next().unwrap();
                let joined = pair[0].chars().count() + 1 + word.chars().count();
                assert!(joined > columns, "{command} at {columns}: {word:?} had room in {:?}", pair[0]);
            }
            for line in examples.iter().filter(|line| columns >= 80 && !line.is_empty()) {
                let begins = ["  traits", "  sudo traits", "  CLANG=", "  xxd "];
                assert!(begins.iter().any(|begin| line.starts_with(begin)), "{command} at {columns}: {line}");
            }
        }
    }
}

#[test]
fn help_is_short_and_has_global_options_apart() {
    for command in commands() {
        let help = help(&command, 80);
        let prose = prose(&help).iter().filter(|line| !line.is_empty()).count();
        assert!(prose <= 15, "{command} has {prose} lines of text:\n{help}");
        let options = |title| section(&help, title).collect::<Vec<_>>().join("\n");
        let (own, global) = (options("Options:"), options("Global options:"));
        assert!(own.contains("--help") && global.contains("--verbose"), "{command}:\n{help}");
        for option in ["--registry", "--bpffs", "--verbose"] {
            assert!(!own.contains(option), "{command} has {option} among its own:\n{help}");
        }
    }
}

#[test]
fn shells_and_man_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&traits(&format!("completions {shell}")).stdout);
        assert!(script.contains("save-syn") && script.contains("explain"), "{shell}: {script}");
    }
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man/man1");
    let output = traits(&format!("man {}", pages.display()));
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    for command in commands() {
        let page = pages.join(format!("traits {command}").trim_end().replace(' ', "-") + ".1");
        let written = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(written.contains(".SH SYNOPSIS"), "{written}");
    }
    let refused = traits(&format!("man {}/file/below", env!("CARGO_BIN_EXE_traits")));
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).starts_with("traits: cannot write man pages to "), "{}", text(&refused.stderr));
}
