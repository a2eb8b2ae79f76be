//! Compiles the demo's BPF programs.

fn main() {
    packet_traits_headers::build::compile(&["src/bpf/demo.bpf.c", "src/bpf/demo_short.bpf.c"]);
}
