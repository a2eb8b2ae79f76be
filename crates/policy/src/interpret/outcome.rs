//! What became of a packet, and the steps that led there.

use crate::policy::{Action, CounterId, Interface, Test};

/// What a block did to one packet. `'p` is the life of the policy, whose tests and actions the steps point to.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Outcome<'p> {
    /// What becomes of the packet.
    pub decision: Decision,
    /// The number, in the policy, of the rule that decided; `None` if the block ended without a verdict.
    pub decided_by: Option<usize>,
    /// The traits it carries from here on, by [`KeyId`](crate::policy::KeyId).
    pub traits: Vec<Option<u128>>,
    /// Its mark, if it was set.
    pub mark: Option<u128>,
    /// Its priority, if it was set.
    pub priority: Option<u128>,
    /// Its queue mapping, if it was set.
    pub queue: Option<u128>,
    /// How many bytes a hit, or a count, of this packet adds.
    pub length: u128,
    /// The numbers, in the policy, of the rules whose conditions held, in order.
    pub hits: Vec<usize>,
    /// What was counted, in order.
    pub counted: Vec<Counted>,
    /// What was logged, in order.
    pub logged: Vec<Logged<'p>>,
    /// How many `unique` numbers it took.
    pub unique_taken: u64,
    /// Every rule that was looked at, in order.
    pub steps: Vec<RuleStep<'p>>,
}

/// A verdict whose values are known, or the end of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes on; in a `match` block: it matches.
    Accept,
    /// It is gone; in a `match` block: it does not match.
    Drop,
    /// It leaves by this interface.
    RedirectDevice(Interface),
    /// It goes on on this CPU.
    RedirectCpu(u128),
    /// It goes to the AF_XDP socket of this receive queue, or of its own, if there is such a socket; else it is
    /// accepted.
    RedirectXsk(Option<u128>),
    /// It goes to this socket of the group.
    Member(u128),
    /// The kernel chooses a socket of the group.
    Kernel,
}

/// One packet more on a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Which counter.
    pub counter: CounterId,
    /// Under which value, for a counter that has one.
    pub by: Option<u128>,
}

/// A packet that was told of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Logged<'p> {
    /// The rule's number in the policy.
    pub rule: usize,
    /// What is said with it.
    pub text: &'p str,
    /// The traits the packet had then, by [`KeyId`](crate::policy::KeyId).
    pub traits: Vec<Option<u128>>,
}

/// A rule that was looked at.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RuleStep<'p> {
    /// Its number in the policy.
    pub rule: usize,
    /// The tests that were made, in order: none after the one that settles the condition.
    pub tests: Vec<TestStep<'p>>,
    /// Whether the condition holds.
    pub holds: bool,
    /// What its actions did; empty if the condition does not hold.
    pub actions: Vec<ActionStep<'p>>,
}

/// A test that was made.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct TestStep<'p> {
    /// The test.
    pub test: &'p Test,
    /// What it was about: a field's or a trait's value, an interface's index; `None` if it is absent.
    pub value: Option<u128>,
    /// Its answer.
    pub passed: bool,
}

/// An action that was come to.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ActionStep<'p> {
    /// The action.
    pub action: &'p Action,
    /// What it did.
    pub effect: Effect,
}

/// What an action did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// What it says, with this value: for a trait, the mark, the priority or the queue the one it has now; for `delete`
    /// the one it had; for `count by` the one it is counted under.
    Done(Option<u128>),
    /// The block ended.
    Decided(Decision),
    /// Nothing: the value it needs is absent, or `delete` found no trait.
    Absent,
    /// Nothing: the packet has no trait area in which a trait could be set.
    NoArea,
    /// Nothing: the packet was not in the sample.
    NotSampled,
}
