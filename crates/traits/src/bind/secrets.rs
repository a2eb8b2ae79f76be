//! What must not be seen: the verifier's log of a bound program has the nonces in it, by which traits can be forged.

use packet_traits_core::Nonces;

/// What stands for a number that tells of a nonce.
const MASK: &str = "<nonce>";

/// The log without numbers that tell of a nonce, that of senders among them: itself, either half of it, and what is close to these,
/// as bounds are.
pub(super) fn masked(log: &str, nonces: Nonces, sender: u64) -> String {
    let secrets = Secrets::of(nonces, sender);
    let mut text = String::with_capacity(log.len());
    let mut rest = log;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, number) = rest.split_at(start);
        let end = number.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(number.len());
        let (number, behind) = number.split_at(end);
        let negative = before.ends_with('-');
        text.push_str(before);
        let secret = value(number, negative).is_some_and(|value| secrets.tell(value));
        text.push_str(if secret { MASK } else { number });
        rest = behind;
    }
    text + rest
}

/// The number as the verifier prints it: decimal, signed or not, or hexadecimal; in 64 bits.
fn value(digits: &str, negative: bool) -> Option<u64> {
    // as constants of 64 bits end in the source
    let digits = digits.trim_end_matches(['l', 'L', 'u', 'U']);
    let value = match digits.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok()?,
        None => digits.parse().ok()?,
    };
    Some(if negative { value.wrapping_neg() } else { value })
}

struct Secrets {
    whole: [u64; 7],
    halves: [u32; 14],
}

/// How close to a secret a number tells of it: bounds are one away, and the nonce of senders differs by the number of its layout.
const CLOSE: u32 = 3;

impl Secrets {
    fn of(nonces: Nonces, sender: u64) -> Secrets {
        let [tag, check] = [nonces.tag_keys(), nonces.check_keys()];
        let whole = [nonces.flow, nonces.packet, tag[0], tag[1], check[0], check[1], sender];
        let halves = std::array::from_fn(|i| (whole[i / 2] >> (i % 2 * 32)) as u32);
        Secrets { whole, halves }
    }

    /// Whether a number is one of them, of 64 bits or of 32, or close to it.
    fn tell(&self, value: u64) -> bool {
        let near = |nonce: u64| value.wrapping_sub(nonce).wrapping_add(CLOSE.into()) <= 2 * u64::from(CLOSE);
        let near_half = |half: u32| half > 1 && (value as u32).wrapping_sub(half).wrapping_add(CLOSE) <= 2 * CLOSE;
        let is_half = value >> 32 == 0 || value >> 32 == u64::from(u32::MAX);
        self.whole.into_iter().any(near) || is_half && self.halves.into_iter().any(near_half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCES: Nonces = Nonces { flow: 0x0000_9abc_def0_1234, packet: 0xf234_5678_8765_4320 };
    const SENDER: u64 = 0x1357_9bdf_0246_8ac0;

    #[test]
    fn numbers_that_tell_of_a_nonce_are_masked_however_they_are_printed() {
        let flow = NONCES.flow;
        let packet = NONCES.packet as i64;
        for line in [
            format!("12: (18) r1 = {flow:#x}"),
            format!("12: (18) r1 = {flow:#x}ll"),
            format!("R1_w={flow} R2=scalar(umin={},umax={})", flow - 1, flow + 1),
            format!("R1_w={packet}"),
            format!("R3=scalar(smin={packet},smax={packet},var_off=({packet:#x}; 0x0))"),
            format!("R3=P{}", NONCES.packet + 1),
            format!("R3=scalar(smin32={})", NONCES.packet as i32),
            format!("R3=scalar(umin32={})", NONCES.packet as u32),
            format!("14: (b7) r1 = {:#x}", NONCES.packet >> 32),
            format!("R2_w={:#x} R3={SENDER}", SENDER ^ 2),
        ] {
            let masked = masked(&line, NONCES, SENDER);
            assert!(masked.contains(MASK), "{line}: {masked}");
            for part in ["9abc", "def0", "f234", "8765", "5678", "4320", "4321", "1357", "0246"] {
                assert!(!masked.contains(part), "{line}: {masked}");
            }
            let digits = |number: u64| number.to_string();
            for secret in [flow, flow - 1, flow + 1, NONCES.packet, NONCES.packet + 1, SENDER].map(digits) {
                assert!(!masked.contains(&secret), "{line}: {masked}");
            }
        }
    }

    #[test]
    fn all_else_stays_as_it_is() {
        let log = "0: R1=ctx(off=0,imm=0) R10=fp0\n; trait_set(ctx, tenant, 7) @ classify.bpf.c:20\n3: (7b) *(u64 *)(r10 -8) = r1\n\
                   R2=scalar(umax=4294967295,var_off=(0x0; 0xffffffff)) R3=pkt(r=14) r7=40000\nprocessed 12 insns ü\n";
        assert_eq!(masked(log, NONCES, SENDER), log);
        assert_eq!(masked("", NONCES, SENDER), "");
        assert_eq!(masked("no digit", NONCES, SENDER), "no digit");
    }
}
