//! Compiles the tracer's BPF programs.

fn main() {
    packet_traits_headers::build::compile(&[
        "src/bpf/trace.bpf.c",
        "src/bpf/assign.bpf.c",
        "src/bpf/assign_flow.bpf.c",
        "src/bpf/enter.bpf.c",
        "src/bpf/fentry.bpf.c",
        "src/bpf/verdict.bpf.c",
        "src/bpf/xdp_counts.bpf.c",
    ]);
}
