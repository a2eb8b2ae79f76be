//! Compiles the benches' BPF programs.

fn main() {
    packet_traits_headers::build::compile(&[
        "src/bpf/border.bpf.c",
        "src/bpf/ops.bpf.c",
        "src/bpf/sockets.bpf.c",
        "src/bpf/trace.bpf.c",
        "src/bpf/traffic.bpf.c",
    ]);
}
