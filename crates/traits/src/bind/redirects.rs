//! Whether XDP programs redirect packets: generic XDP does that too, but without their traits and more slowly, and never to a
//! queue of an AF_XDP socket without a copy.

use object::{Object as _, ObjectSection as _};

/// `BPF_JMP | BPF_CALL`, include/uapi/linux/bpf.h.
const CALL: u8 = 0x85;

/// `bpf_redirect` and `bpf_redirect_map`, enum bpf_func_id of include/uapi/linux/bpf.h.
const REDIRECT: [i32; 2] = [23, 51];

/// Whether the XDP programs of an object file, or functions of it, which they may call, call a helper that redirects.
pub(super) fn in_object(bytes: &[u8]) -> bool {
    let Ok(elf) = object::File::parse(bytes) else { return false };
    elf.sections().any(|section| {
        let is_code =
            section.name().is_ok_and(|name| name == ".text" || name.trim_start_matches('?').starts_with("xdp"));
        is_code && section.data().is_ok_and(calls_redirect)
    })
}

fn calls_redirect(code: &[u8]) -> bool {
    let (instructions, _) = code.as_chunks::<8>();
    instructions.iter().any(|instruction| {
        let [code, registers, _, _, immediate @ ..] = *instruction;
        // with a source register it is a call of a function
        code == CALL && registers == 0 && REDIRECT.contains(&i32::from_ne_bytes(immediate))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_helpers_that_redirect_do() {
        let call = |registers: u8, number: i32| {
            let [a, b, c, d] = number.to_ne_bytes();
            [CALL, registers, 0, 0, a, b, c, d]
        };
        assert!(calls_redirect(&[call(0, 1), call(0, 51)].concat()));
        assert!(calls_redirect(&call(0, 23)));
        assert!(!calls_redirect(&[call(0, 54), call(0x10, 51), [0x95, 0, 0, 0, 51, 0, 0, 0]].concat()));
    }
}
