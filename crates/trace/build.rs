//! Compiles the tracer's BPF programs.

#[path = "../../tools/compile_bpf.rs"]
mod compile_bpf;

fn main() {
    compile_bpf::compile(&[
        "src/bpf/trace.bpf.c",
        "src/bpf/assign.bpf.c",
        "src/bpf/assign_flow.bpf.c",
        "src/bpf/enter.bpf.c",
        "src/bpf/fentry.bpf.c",
        "src/bpf/verdict.bpf.c",
        "src/bpf/xdp_counts.bpf.c",
    ]);
}
