//! What the command needs of a host: its C library, no more.

use std::process::Command;

#[test]
fn the_command_runs_where_libelf_is_not_installed() {
    let output = Command::new("ldd").arg(env!("CARGO_BIN_EXE_traits")).output().unwrap();
    let needed = String::from_utf8(output.stdout).unwrap();
    assert!(needed.contains("libc.so"), "{needed}");
    // Debian 13's libelf.a calls functions that no library has
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("uses_libelf.c");
    std::fs::write(&source, "#include <libelf.h>\nint main(void) { return elf_end(elf_begin(0, ELF_C_READ, 0)); }\n")
        .unwrap();
    let mut link = Command::new("cc");
    link.arg(&source)
        .args(["-Wl,-Bstatic", "-lelf", "-lz", "-Wl,-Bdynamic", "-o"])
        .arg(folder.path().join("uses_libelf"));
    if !link.output().unwrap().status.success() {
        packet_traits_lab::left_out("static libraries", "libelf.a or libz.a is not there, or cannot be linked alone");
        return;
    }
    for library in ["libelf", "libz", "libzstd"] {
        assert!(!needed.contains(&format!("{library}.so")), "{needed}");
    }
}
