//! A checked policy: what the compiler and the interpreter work on, and nothing a user can have got wrong.
//!
//! Names are resolved to ids (places in the vectors of [`Policy`]), types agree, and every action is one that its hook
//! can do. Both back ends give the same meaning to it; that meaning is said here, once.
//!
//! **Numbers.** Every value is a `u128`: integers as they are (an `i64` as its 64 bits in two's complement), IPv4 and
//! IPv6 and MAC addresses and UUIDs as the number that their bytes make in network order (`10.0.0.1` is `0x0a000001`),
//! timestamps in nanoseconds. A value is never wider than its [`Type`].
//!
//! **Absence.** A header that is not in the packet, is cut short, or is malformed is absent with all its fields. A key
//! without a value is absent, too. A [`Test`] of something absent is false, whatever it asks ([`Condition::Not`] of it
//! is true). A [`Value`] can be absent as well: the action that needs it is then not done; a [`Verdict`] that needs it
//! is not taken, and the next rule is looked at.
//!
//! **Order.** A packet meets the rules of a block in order. Where the condition holds, the rule's hits go up by one
//! packet and its bytes, and its actions are done from left to right; a verdict ends the block. Actions of earlier
//! rules show: a trait that was set is read with its new value. A block that ends without a verdict accepts (in
//! [`Hook::Match`]: does not match; in [`Hook::Steer`]: leaves the choice to the kernel).

use std::ops::Range;

use packet_traits_core::{KeyName, KeyType, Merge};

use crate::{
    field::Field,
    hook::Hook,
    source::{SourceId, Span},
};

/// Place of a key in [`Policy::keys`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub usize);

/// Place of a table in [`Policy::tables`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId(pub usize);

/// Place of a counter in [`Policy::counters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CounterId(pub usize);

/// Place of an interface's name in [`Policy::interfaces`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceId(pub usize);

/// A policy without an error in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// The keys it declares, used or not.
    pub keys: Vec<KeyDeclaration>,
    /// Its sets and maps that a rule uses, named or written in place.
    pub tables: Vec<Table>,
    /// Its named counters.
    pub counters: Vec<Counter>,
    /// Names of interfaces that rules speak of. They become numbers when the policy is loaded.
    pub interfaces: Vec<String>,
    /// Its blocks, one program each.
    pub blocks: Vec<Block>,
}

/// A key as a policy declares it.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyDeclaration {
    /// Its name.
    pub name: KeyName,
    /// Its type.
    pub key_type: KeyType,
    /// What GRO does with differing values.
    pub merge: Merge,
    /// What it means; may be empty.
    pub description: String,
    /// The whole declaration.
    pub span: Span,
}

/// What a value is: decides what it may be compared with and stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// A number without a sign, of this many bits: 1 to 128.
    Unsigned(u8),
    /// A number of 64 bits with a sign; ordered as such.
    Signed,
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// An Ethernet address.
    Mac,
    /// A UUID.
    Uuid,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    Timestamp,
    /// Set, and nothing more.
    Flag,
}

impl Type {
    /// Bits of a value: 0 to 128.
    pub const fn bits(self) -> u8 {
        match self {
            Type::Unsigned(bits) => bits,
            Type::Signed | Type::Timestamp => 64,
            Type::Ipv4 => 32,
            Type::Ipv6 | Type::Uuid => 128,
            Type::Mac => 48,
            Type::Flag => 0,
        }
    }

    /// The type of the narrowest key that holds its values.
    pub const fn key_type(self) -> KeyType {
        match self {
            Type::Flag => KeyType::Flag,
            Type::Unsigned(..=8) => KeyType::U8,
            Type::Unsigned(..=16) => KeyType::U16,
            Type::Unsigned(..=32) => KeyType::U32,
            Type::Unsigned(..=64) => KeyType::U64,
            Type::Unsigned(_) => KeyType::U128,
            Type::Signed => KeyType::I64,
            Type::Ipv4 => KeyType::Ipv4,
            Type::Ipv6 => KeyType::Ipv6,
            Type::Mac => KeyType::Mac,
            Type::Uuid => KeyType::Uuid,
            Type::Timestamp => KeyType::Timestamp,
        }
    }
}

impl From<KeyType> for Type {
    fn from(key_type: KeyType) -> Type {
        match key_type {
            KeyType::Flag => Type::Flag,
            KeyType::U8 => Type::Unsigned(8),
            KeyType::U16 => Type::Unsigned(16),
            KeyType::U32 => Type::Unsigned(32),
            KeyType::U64 => Type::Unsigned(64),
            KeyType::U128 => Type::Unsigned(128),
            KeyType::I64 => Type::Signed,
            KeyType::Ipv4 => Type::Ipv4,
            KeyType::Ipv6 => Type::Ipv6,
            KeyType::Mac => Type::Mac,
            KeyType::Uuid => Type::Uuid,
            KeyType::Timestamp => Type::Timestamp,
        }
    }
}

/// A set (no value type) or a map.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its name; `None` if it is written in a rule.
    pub name: Option<String>,
    /// Type of what is looked up.
    pub key: Type,
    /// Type of what is found; `None` for a set.
    pub value: Option<Type>,
    /// At least one. Two either do not overlap or one is inside the other; then the smaller one counts. No two are the
    /// same. A range of an address type is always a prefix.
    pub entries: Vec<Entry>,
}

impl Table {
    /// The entry that counts for `key`: the smallest that contains it.
    pub fn find(&self, key: u128) -> Option<&Entry> {
        self.entries
            .iter()
            .filter(|entry| entry.low <= key && key <= entry.high)
            .min_by_key(|entry| entry.high - entry.low)
    }
}

/// The keys from `low` to `high`, both included, and what a map has for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The lowest key.
    pub low: u128,
    /// The highest key: for one key the same as `low`.
    pub high: u128,
    /// What is found; 0 in a set.
    pub value: u128,
}

/// A named counter: packets and bytes, as [`Field::LENGTH`](crate::field::Field) counts them.
#[derive(Clone, Debug, PartialEq)]
pub struct Counter {
    /// Its name.
    pub name: String,
    /// One pair of numbers for each value of this type, rather than one in all. The values that were counted least
    /// recently are forgotten where there are more than [`COUNTED_VALUES_MAX`].
    pub by: Option<Type>,
}

/// How many values a [`Counter`] holds numbers of.
pub const COUNTED_VALUES_MAX: u32 = 65_536;

/// How many blocks a policy can have.
pub const BLOCKS_MAX: usize = 256;

/// Bytes of the longest text of an [`Action::Log`].
pub const LOG_TEXT_LEN_MAX: usize = 63;

/// The rules of one hook.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The name of its program: `[a-z][a-z0-9_]{0,14}`, unlike any other block's.
    pub name: String,
    /// Where it runs.
    pub hook: Hook,
    /// A packet for which it sets no trait keeps those that it has from another interface; at XDP only.
    pub inherits: bool,
    /// Its rules in order.
    pub rules: Vec<Rule>,
    /// Its head, from the hook's name to the brace.
    pub span: Span,
}

/// What is done with packets for which a condition holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Which packets.
    pub condition: Condition,
    /// In order; a verdict comes last. None in a rule that only counts its hits, as all do.
    pub actions: Vec<Action>,
    /// The rule in its source.
    pub span: Span,
}

/// Which packets a rule is for.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// All.
    Always,
    /// Those that pass a test.
    Test(Test),
    /// Those for which all hold; at least two.
    All(Vec<Condition>),
    /// Those for which one holds; at least two.
    Any(Vec<Condition>),
    /// Those for which it does not hold.
    Not(Box<Condition>),
}

/// A question about a packet. The answer is no if what it is about is absent, also if it is `negated`.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// Is there this header, or this trait?
    Present(Presence),
    /// How does it compare with a constant of its type?
    Compare {
        /// What.
        operand: Operand,
        /// How.
        comparison: Comparison,
        /// With what.
        value: u128,
    },
    /// Is it from `low` to `high`, both included? Numbers without a sign only.
    Between {
        /// What.
        operand: Operand,
        /// The least.
        low: u128,
        /// The most; not less than `low`.
        high: u128,
        /// Is it not?
        negated: bool,
    },
    /// Are its bits under `mask` those of `value`? For prefixes and TCP flags.
    Masked {
        /// What.
        operand: Operand,
        /// Which bits; not none.
        mask: u128,
        /// What they must be; no bit outside `mask`.
        value: u128,
        /// Are they not?
        negated: bool,
    },
    /// Is one of its bits under `mask` set? For TCP flags.
    AnyBit {
        /// What.
        operand: Operand,
        /// Which bits; not none.
        mask: u128,
        /// Is none of them set?
        negated: bool,
    },
    /// Does a table have it?
    In {
        /// What.
        operand: Operand,
        /// The table: a set, or a map's keys.
        table: TableId,
        /// Does it not?
        negated: bool,
    },
    /// Is it this interface? Absent where the hook has none in that direction.
    Interface {
        /// Which way.
        direction: InterfaceDirection,
        /// Which one.
        interface: Interface,
        /// Is it another?
        negated: bool,
    },
}

/// What may be there or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// A header, by any of its fields: they come and go together, but for a Geneve option and a GRE key.
    Field(Field),
    /// A trait.
    Trait(KeyId),
}

/// A way to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

/// What a packet has and a test can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// A field of a header, or of the packet as such.
    Field(Field),
    /// A trait.
    Trait(KeyId),
}

/// Which interface of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InterfaceDirection {
    /// The one it came in by (`iif`).
    In,
    /// The one it goes out by (`oif`).
    Out,
}

impl InterfaceDirection {
    /// Both.
    pub const ALL: [InterfaceDirection; 2] = [InterfaceDirection::In, InterfaceDirection::Out];
}

/// An interface that a rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interface {
    /// By its index.
    Index(u32),
    /// By its name: a test is of the name it has when the packet comes; a redirect goes to the interface that has it when
    /// the policy is loaded.
    Name(InterfaceId),
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Gives a trait a value. One wider than the key loses its high bits: `unique` and `hash` only. Not done where the
    /// packet has no place for it: at TC, if no XDP program has given it a trait area.
    Set {
        /// Which trait.
        key: KeyId,
        /// Its value; for a flag a constant.
        value: Value,
    },
    /// Takes a trait away, if it is set.
    Delete(KeyId),
    /// Counts the packet.
    Count {
        /// Where.
        counter: CounterId,
        /// Under which value, for a counter that has one; not counted if that is absent.
        by: Option<Operand>,
    },
    /// Tells who listens, of one in `sample` packets that come here; which ones is not said.
    Log {
        /// Said with it; may be empty; at most 63 bytes.
        text: String,
        /// At least 1.
        sample: u32,
    },
    /// Sets the packet's mark (`skb->mark`).
    Mark(Value),
    /// Sets the packet's priority (`skb->priority`).
    Priority(Value),
    /// Sets the packet's queue mapping: the transmit queue on egress, the recorded receive queue else
    /// (`skb->queue_mapping`).
    Queue(Value),
    /// Ends the block.
    Verdict(Verdict),
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It goes on; in [`Hook::Match`]: it matches.
    Accept,
    /// It is gone; in [`Hook::Match`]: it does not match.
    Drop,
    /// It leaves by another interface.
    RedirectDevice(Interface),
    /// It goes on on another CPU.
    RedirectCpu(Value),
    /// It goes to the AF_XDP socket of a receive queue: the one given or, without one, the packet's own. It is accepted
    /// if there is no such socket.
    RedirectXsk(Option<Value>),
    /// It goes to this member of the group of sockets, counted from 0.
    Member(Value),
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// It is known.
    Constant(u128),
    /// From the packet.
    Operand(Operand),
    /// From a map; absent if the map does not have it.
    Lookup {
        /// What is looked up.
        operand: Operand,
        /// The map.
        table: TableId,
    },
    /// A number of 64 bits that no other packet of this host gets; where a packet takes two, they differ.
    Unique,
    /// 64 bits that are the same for all packets of a flow and as good as different for different flows:
    /// [`hash`](crate::hash) says which. Absent without an IP header.
    Hash(Layer),
    /// The time now, in nanoseconds of `CLOCK_MONOTONIC`.
    Time,
    /// What the network card says; absent if it does not.
    Hardware(Hardware),
}

/// Which of the headers of a packet in a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layer {
    /// Those the packet starts with.
    Outer,
    /// Those in the (outermost) VXLAN, Geneve or GRE header.
    Inner,
}

/// What a network card can know of a packet: the kernel's XDP metadata functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hardware {
    /// When it came, in nanoseconds of the card's clock (`bpf_xdp_metadata_rx_timestamp`), not 0; [`Type::Timestamp`].
    Timestamp,
    /// Its receive hash (`bpf_xdp_metadata_rx_hash`); 32 bits.
    Hash,
    /// The VLAN id that the card has taken out (`bpf_xdp_metadata_rx_vlan_tag`); 12 bits.
    VlanId,
}

impl Policy {
    /// A key.
    pub fn key(&self, id: KeyId) -> &KeyDeclaration {
        &self.keys[id.0]
    }

    /// A table.
    pub fn table(&self, id: TableId) -> &Table {
        &self.tables[id.0]
    }

    /// Type of what a test can be about.
    pub fn type_of(&self, operand: Operand) -> Type {
        match operand {
            Operand::Field(field) => field.value_type(),
            Operand::Trait(key) => self.key(key).key_type.into(),
        }
    }

    /// How many rules all blocks have together.
    pub fn rule_count(&self) -> usize {
        self.blocks.iter().map(|block| block.rules.len()).sum()
    }

    /// The numbers of a block's rules among all of the policy's: their places in what counts hits.
    pub fn rule_numbers(&self, block: usize) -> Range<usize> {
        let before = self.blocks[..block].iter().map(|block| block.rules.len()).sum();
        before..before + self.blocks[block].rules.len()
    }

    /// The sources that its rules are in.
    pub fn sources(&self) -> impl Iterator<Item = SourceId> {
        self.blocks.iter().map(|block| block.span.source)
    }
}
