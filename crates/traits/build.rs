//! Compiles the library's BPF programs.

#[path = "../../tools/compile_bpf.rs"]
mod compile_bpf;

fn main() {
    compile_bpf::compile(&[
        "src/border/bpf/border.bpf.c",
        "src/deployment/bpf/dispatch.bpf.c",
        "src/doctor/bpf/doctor.bpf.c",
        "src/doctor/bpf/room.bpf.c",
        "src/registry/bpf/metadata.bpf.c",
        "src/socket/bpf/sockets.bpf.c",
    ]);
}
