//! The hash of a flow (`hash(5-tuple)`), the same in generated programs and in the interpreter.
//!
//! Seven 64-bit words go in, in this order: `protocol | version << 8`, source address (high half, low half),
//! destination address (high half, low half), `source port << 16 | destination port`, and the number of the hash's
//! [`VERSION`]. An IPv4 address is the low half, the high half 0. Ports are those of TCP, UDP, DCCP, SCTP or UDP-Lite, 0 if
//! there are none: later fragments of a datagram have another hash than the first.

/// Tells later ways to hash from this one.
pub const VERSION: u64 = 2;

/// Multiplier of splitmix64's first step (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
/// 2014).
pub const MULTIPLIER: u64 = 0xbf58_476d_1ce4_e5b9;

/// What is hashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FiveTuple {
    /// 4 or 6.
    pub version: u8,
    /// Behind extension headers.
    pub protocol: u8,
    /// Source address, as a number.
    pub source: u128,
    /// Destination address.
    pub destination: u128,
    /// Source port; 0 if there is none.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

impl FiveTuple {
    /// The hash: 64 bits.
    pub fn hash(&self) -> u64 {
        let words = [
            u64::from(self.protocol) | u64::from(self.version) << 8,
            (self.source >> 64) as u64,
            self.source as u64,
            (self.destination >> 64) as u64,
            self.destination as u64,
            u64::from(self.source_port) << 16 | u64::from(self.destination_port),
            VERSION,
        ];
        words.into_iter().fold(0, mix)
    }
}

/// Takes one more word in.
fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(MULTIPLIER);
    mixed ^ mixed >> 29
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_counts_and_directions_differ() {
        let flow =
            FiveTuple { version: 4, protocol: 6, source: 1, destination: 2, source_port: 3, destination_port: 4 };
        let others = [
            FiveTuple { version: 6, ..flow },
            FiveTuple { protocol: 17, ..flow },
            FiveTuple { source: 1 << 64 | 1, ..flow },
            FiveTuple { source: 2, destination: 1, ..flow },
            FiveTuple { source_port: 4, destination_port: 3, ..flow },
        ];
        for other in others {
            assert_ne!(other.hash(), flow.hash(), "{other:?}");
        }
    }
}
