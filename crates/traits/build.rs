//! Compiles the library's BPF programs.

fn main() {
    packet_traits_headers::build::compile(&[
        "src/border/bpf/border.bpf.c",
        "src/deployment/bpf/dispatch.bpf.c",
        "src/doctor/bpf/doctor.bpf.c",
        "src/doctor/bpf/room.bpf.c",
        "src/registry/bpf/metadata.bpf.c",
        "src/socket_programs/bpf/sockets.bpf.c",
    ]);
}
