//! What the command needs of a host: its C library, no more.

use std::process::Command;

#[test]
fn the_command_runs_where_libelf_is_not_installed() {
    let output = Command::new("ldd").arg(env!("CARGO_BIN_EXE_traits")).output().unwrap();
    let needed = String::from_utf8(output.stdout).unwrap();
    assert!(needed.contains("libc.so"), "{needed}");
    // the archive, or a bare name
    let archive = |name: &str| {
        let found = Command::new("cc").arg(format!("-print-file-name={name}")).output().unwrap();
        String::from_utf8_lossy(&found.stdout).starts_with('/')
    };
    if !archive("libelf.a") || !archive("libz.a") {
        packet_traits_lab::left_out("static libraries", "libelf.a or libz.a is not installed");
        return;
    }
    for library in ["libelf", "libz", "libzstd"] {
        assert!(!needed.contains(&format!("{library}.so")), "{needed}");
    }
}
