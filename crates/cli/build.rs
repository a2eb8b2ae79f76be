//! Compiles the command's BPF programs.

#[path = "../../tools/compile_bpf.rs"]
mod compile_bpf;

fn main() {
    compile_bpf::compile(&[
        "src/bench/bpf/ops.bpf.c",
        "src/bench/bpf/sockets.bpf.c",
        "src/bench/bpf/trace.bpf.c",
        "src/bench/bpf/traffic.bpf.c",
        "src/demo/bpf/demo.bpf.c",
        "src/demo/bpf/demo_short.bpf.c",
    ]);
}
