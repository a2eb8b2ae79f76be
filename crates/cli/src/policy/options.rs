//! IP options of a received packet, as the kernel judges them: which of them has it dropped.

use super::{
    frame::{IPV4_LEN, IPV6_LEN},
    stack::{IP_LENGTH_MAX, number},
};

// include/uapi/linux/ip.h
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const RECORD_ROUTE: u8 = 7;
const TIMESTAMP: u8 = 68;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const CIPSO: u8 = 134;
const STRICT_SOURCE_ROUTE: u8 = 137;
const ROUTER_ALERT: u8 = 148;
/// Kinds of timestamps: with addresses, which the sender may have given.
const WITH_ADDRESS: u8 = 1;
const OF_ADDRESSES: u8 = 3;

// include/uapi/linux/in6.h
const PAD_1: u8 = 0;
const PAD_N: u8 = 1;
const ROUTER_ALERT_6: u8 = 5;
const CALIPSO: u8 = 7;
const IOAM: u8 = 49;
const JUMBO: u8 = 194;
/// `IP6_DEFAULT_MAX_HBH_OPTS_CNT` in include/net/ipv6.h; the setting is net.ipv6.max_hbh_opts_number.
const HOP_BY_HOP_MAX: usize = 8;

/// Why the kernel may drop a packet with these options.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It does.
    Wrong(String),
    /// It depends on what is not known.
    Unknown(String),
}

/// What is wrong with the options of an IPv4 header (`__ip_options_compile` in net/ipv4/ip_options.c, `ip_rcv_options`).
pub(super) fn ipv4(options: &[u8]) -> Result<(), Fault> {
    let is_source_route = |kind: &u8| matches!(*kind, LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE);
    let mut seen = Vec::new();
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        if kind == END {
            break;
        }
        if kind == NO_OPERATION {
            at += 1;
            continue;
        }
        let bad = || Err(Fault::Wrong(format!("bad IPv4 option {kind}, at byte {} of its header", at + IPV4_LEN)));
        let len = options.get(at + 1).map_or(0, |len| usize::from(*len));
        let Some(option) = options.get(at..at + len).filter(|option| option.len() >= 2) else { return bad() };
        // where the next entry goes, counted from 1
        let pointer = option.get(2).map_or(0, |pointer| usize::from(*pointer));
        let right = match kind {
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => !seen.iter().any(is_source_route) && pointer >= 4,
            RECORD_ROUTE => !seen.contains(&kind) && pointer >= 4 && (pointer > len || pointer + 3 <= len),
            TIMESTAMP => !seen.contains(&kind) && pointer >= 5 && has_right_timestamps(option, pointer),
            ROUTER_ALERT => len >= 4,
            CIPSO => !seen.contains(&kind) && has_right_tags(option),
            _ => true,
        };
        if !right {
            return bad();
        }
        seen.push(kind);
        at += len;
    }
    match seen.iter().any(is_source_route) {
        true => Err(Fault::Wrong(
            "it has a source route, which the kernel takes only with accept_source_route".to_owned(),
        )),
        false if seen.contains(&CIPSO) => Err(Fault::Unknown(
            "the kernel drops it before if it does not know the domain of its CIPSO option, or what its tags say there \
             (cipso_v4_validate); a kernel without CONFIG_NETLABEL takes it"
                .to_owned(),
        )),
        false => Ok(()),
    }
}

/// What every kernel wants of a CIPSO option (`cipso_v4_validate`, of which there are two: in net/ipv4/cipso_ipv4.c, and in
/// include/net/cipso_ipv4.h for kernels without CONFIG_NETLABEL): a domain, and tags of the lengths they say.
fn has_right_tags(option: &[u8]) -> bool {
    const HEADER_LEN: usize = 6;
    if option.len() < HEADER_LEN + 2 || option[2..HEADER_LEN] == [0; 4] {
        return false;
    }
    let mut tags = &option[HEADER_LEN..];
    while !tags.is_empty() {
        let Some(&[_, len]) = tags.first_chunk() else { return false };
        let Some(rest) = tags.get(usize::from(len)..).filter(|_| len != 0) else { return false };
        tags = rest;
    }
    true
}

fn has_right_timestamps(option: &[u8], pointer: usize) -> bool {
    let Some(&flags) = option.get(3) else { return false };
    let (overflow, kind) = (flags >> 4, flags & 0xf);
    match kind {
        _ if pointer > option.len() => kind == OF_ADDRESSES || overflow != 15,
        WITH_ADDRESS | OF_ADDRESSES => pointer + 7 <= option.len(),
        _ => pointer + 3 <= option.len(),
    }
}

/// What is wrong with the hop-by-hop options of an IPv6 packet of `length` bytes, if all of them are in `options`; they start
/// behind the IPv6 header, with the type of the next one (`ip6_parse_tlv` in net/ipv6/exthdrs.c). What IOAM and CALIPSO say is
/// not looked at.
pub(super) fn hop_by_hop(options: &[u8], payload_len: usize, length: usize) -> Result<(), String> {
    let bad = |what: &str| Err(format!("bad hop-by-hop options: {what}"));
    let (mut at, mut padding, mut count) = (2, 0, 0);
    while let Some(&kind) = options.get(at) {
        let len = match (kind, options.get(at + 1)) {
            (PAD_1, _) => 1,
            (_, Some(len)) => usize::from(*len) + 2,
            (_, None) => return bad("the last one is cut short"),
        };
        let Some(option) = options.get(at..at + len) else { return bad("the last one is cut short") };
        if matches!(kind, PAD_1 | PAD_N) {
            padding += len;
            if padding > 7 {
                return bad("more than 7 bytes of padding");
            }
            if option[len.min(2)..].iter().any(|byte| *byte != 0) {
                return bad("padding that is not 0");
            }
            at += len;
            continue;
        }
        padding = 0;
        count += 1;
        if count > HOP_BY_HOP_MAX {
            let why =
                format!("more than {HOP_BY_HOP_MAX}, which is what net.ipv6.max_hbh_opts_number allows by default");
            return bad(&why);
        }
        match kind {
            ROUTER_ALERT_6 if len != 4 => return bad("a router alert of another length"),
            ROUTER_ALERT_6 | IOAM | CALIPSO => {}
            JUMBO => check_jumbo(option, at, payload_len, length)?,
            // its highest bits say what those do who do not know it
            _ if kind >> 6 != 0 => {
                return Err(format!(
                    "hop-by-hop option {kind} is not known here, and says that the packet is dropped then"
                ));
            }
            _ => {}
        }
        at += len;
    }
    Ok(())
}

/// `ipv6_hop_jumbo`: a jumbo payload is longer than any other (`IPV6_MAXPLEN`). `at` is where the option starts in the header of options.
fn check_jumbo(option: &[u8], at: usize, payload_len: usize, length: usize) -> Result<(), String> {
    let bad = |what: String| Err(format!("bad jumbo payload option: {what}"));
    let jumbo = match option {
        [_, _, jumbo @ ..] if jumbo.len() == 4 && at % 4 == 2 => number(jumbo),
        _ => return bad("its length or its place".to_owned()),
    };
    if jumbo <= IP_LENGTH_MAX {
        return bad(format!("{jumbo} bytes are not more than {IP_LENGTH_MAX}"));
    }
    if payload_len != 0 {
        return bad("the IPv6 header has a payload length, too".to_owned());
    }
    if jumbo > length.saturating_sub(IPV6_LEN) {
        return bad(format!("it says {jumbo} bytes, but only {} are there", length.saturating_sub(IPV6_LEN)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every kernel refuses.
    fn why(options: &[u8]) -> String {
        match ipv4(options) {
            Err(Fault::Wrong(why)) => why,
            other => panic!("{options:?}: {other:?}"),
        }
    }

    #[test]
    fn ipv4_options_that_the_kernel_refuses() {
        for right in [
            &[][..],
            &[NO_OPERATION, NO_OPERATION, END, 9],
            &[RECORD_ROUTE, 7, 4, 0, 0, 0, 0, END],
            &[RECORD_ROUTE, 7, 8, 0, 0, 0, 0, END],
            &[ROUTER_ALERT, 4, 0, 0],
            &[TIMESTAMP, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[TIMESTAMP, 12, 5, WITH_ADDRESS, 0, 0, 0, 0, 0, 0, 0, 0],
            &[TIMESTAMP, 4, 5, OF_ADDRESSES | 0xf0],
            &[130, 3, 1, END],
        ] {
            assert_eq!(ipv4(right), Ok(()), "{right:?}");
        }
        for wrong in [
            &[RECORD_ROUTE][..],
            &[RECORD_ROUTE, 1],
            &[RECORD_ROUTE, 9, 4, 0, 0, 0, 0, END],
            &[RECORD_ROUTE, 7, 3, 0, 0, 0, 0, END],
            &[RECORD_ROUTE, 7, 5, 0, 0, 0, 0, END],
            &[RECORD_ROUTE, 3, 4, RECORD_ROUTE, 3, 4],
            &[ROUTER_ALERT, 2, 0, 0],
            &[TIMESTAMP, 3, 5, END],
            &[TIMESTAMP, 8, 5, WITH_ADDRESS, 0, 0, 0, 0],
            &[TIMESTAMP, 4, 5, 0xf0],
            &[LOOSE_SOURCE_ROUTE, 3, 3, END],
            &[LOOSE_SOURCE_ROUTE, 3, 4, STRICT_SOURCE_ROUTE, 3, 4],
            &[CIPSO, 2, CIPSO, 2],
            &[CIPSO, 6, 0, 0, 0, 1, END, END],
            &[CIPSO, 8, 0, 0, 0, 0, 1, 2],
            &[CIPSO, 8, 0, 0, 0, 1, 0, 0],
            &[CIPSO, 8, 0, 0, 0, 1, 1, 3],
            &[CIPSO, 9, 0, 0, 0, 1, 1, 2, 1, END, END, END],
            &[CIPSO, 8, 0, 0, 0, 1, 1, 2, CIPSO, 8, 0, 0, 0, 1, 1, 2],
            &[222, 0, 0, 0],
        ] {
            let why = why(wrong);
            assert!(why.starts_with("bad IPv4 option "), "{wrong:?}: {why}");
        }
        assert_eq!(why(&[NO_OPERATION, 222, 9, 0]), "bad IPv4 option 222, at byte 21 of its header");
        for route in [&[LOOSE_SOURCE_ROUTE, 7, 4, 10, 0, 0, 1, END][..], &[NO_OPERATION, STRICT_SOURCE_ROUTE, 3, 4]] {
            assert!(why(route).contains("accept_source_route"), "{route:?}");
        }
        let cipso = [CIPSO, 10, 0, 0, 0, 1, 1, 4, 0, 0];
        assert!(matches!(ipv4(&cipso), Err(Fault::Unknown(why)) if why.contains("cipso_v4_validate")));
        assert!(why(&[&cipso[..], &[STRICT_SOURCE_ROUTE, 3, 4]].concat()).contains("accept_source_route"));
    }

    #[test]
    fn hop_by_hop_options_that_the_kernel_refuses() {
        let judge = |options: &[u8]| hop_by_hop(&[&[17, 0], options].concat(), 8, 48);
        for right in [
            &[ROUTER_ALERT_6, 2, 0, 0, PAD_N, 0][..],
            &[PAD_N, 4, 0, 0, 0, 0],
            &[PAD_1, PAD_1, PAD_1, PAD_1, PAD_1, PAD_1],
            // one that nobody knows, and that may be skipped
            &[0x1e, 4, 1, 2, 3, 4],
        ] {
            assert_eq!(judge(right), Ok(()), "{right:?}");
        }
        for (wrong, expected) in [
            (&[PAD_N, 5, 0, 0, 0, 0][..], "bad hop-by-hop options: the last one is cut short"),
            (&[0x1e, 3, 0, 0, 0, 0x1e], "bad hop-by-hop options: the last one is cut short"),
            (&[PAD_N, 4, 0, 0, 1, 0], "bad hop-by-hop options: padding that is not 0"),
            (
                &[PAD_N, 4, 0, 0, 0, 0, PAD_1, PAD_1, PAD_1, PAD_1, PAD_1, PAD_1, PAD_1, PAD_1],
                "bad hop-by-hop options: more than 7 bytes of padding",
            ),
            (&[ROUTER_ALERT_6, 3, 0, 0, 0, PAD_1], "bad hop-by-hop options: a router alert of another length"),
            (
                &[0x5e, 4, 0, 0, 0, 0],
                "hop-by-hop option 94 is not known here, and says that the packet is dropped then",
            ),
            (&[0xde, 0].repeat(3), "hop-by-hop option 222 is not known here, and says that the packet is dropped then"),
            (
                &[0x1e, 0].repeat(9),
                "bad hop-by-hop options: more than 8, which is what net.ipv6.max_hbh_opts_number allows by default",
            ),
        ] {
            assert_eq!(judge(wrong), Err(expected.to_owned()), "{wrong:?}");
        }
    }

    #[test]
    fn a_jumbo_payload_is_one() {
        let jumbo = |bytes: u32| [&[17, 0, JUMBO, 4][..], &bytes.to_be_bytes()].concat();
        assert_eq!(hop_by_hop(&jumbo(70_000), 0, 70_040), Ok(()));
        for (options, payload_len, length, expected) in [
            (jumbo(65_535), 0, 70_040, "65535 bytes are not more than 65535"),
            (jumbo(70_000), 8, 70_040, "the IPv6 header has a payload length, too"),
            (jumbo(70_001), 0, 70_040, "it says 70001 bytes, but only 70000 are there"),
            (vec![17, 0, JUMBO, 2, 0, 1, PAD_1, PAD_1], 0, 70_040, "its length or its place"),
            (vec![17, 1, PAD_1, JUMBO, 4, 0, 1, 0, 0, PAD_1], 0, 70_040, "its length or its place"),
        ] {
            let why = hop_by_hop(&options, payload_len, length).unwrap_err();
            assert_eq!(why, format!("bad jumbo payload option: {expected}"));
        }
    }
}
