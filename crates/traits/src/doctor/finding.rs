//! What a probe found.

use std::fmt;

use super::probe::{Probe, Subject};

/// How much of what was probed for is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// It works.
    Yes,
    /// It works in part, or not for everyone.
    Limited,
    /// It does not work.
    No,
    /// It could not be tried.
    Untried,
    /// A fact that is neither good nor bad.
    Info,
}

impl Status {
    /// Whether it works, at least in part.
    pub fn works(self) -> bool {
        matches!(self, Status::Yes | Status::Limited)
    }

    /// `yes`, `limited`, `no`, `untried` or `info`.
    pub fn name(self) -> &'static str {
        match self {
            Status::Yes => "yes",
            Status::Limited => "limited",
            Status::No => "no",
            Status::Untried => "untried",
            Status::Info => "info",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What was probed for.
    pub probe: Probe,
    /// The interface it was probed on; none for what belongs to the host.
    pub interface: Option<String>,
    /// Whether it is there.
    pub status: Status,
    /// What was seen: a value, or why it does not work. May be empty.
    pub found: String,
    /// The number in `found`, in the unit that [`Probe::unit`] names.
    pub number: Option<u64>,
    /// What to do, if it does not work entirely.
    pub next: Option<String>,
}

impl Finding {
    fn new(probe: Probe, status: Status, found: impl Into<String>) -> Finding {
        let next = match status {
            Status::Yes | Status::Info => None,
            _ => Some(probe.next()).filter(|next| !next.is_empty()).map(str::to_owned),
        };
        Finding { probe, interface: None, status, found: found.into(), number: None, next }
    }

    /// It works.
    pub fn yes(probe: Probe, found: impl Into<String>) -> Finding {
        Finding::new(probe, Status::Yes, found)
    }

    /// It works in part.
    pub fn limited(probe: Probe, found: impl Into<String>) -> Finding {
        Finding::new(probe, Status::Limited, found)
    }

    /// It does not work, for this reason.
    pub fn no(probe: Probe, why: impl fmt::Display) -> Finding {
        Finding::new(probe, Status::No, why.to_string())
    }

    /// It could not be tried, for this reason.
    pub fn untried(probe: Probe, why: impl fmt::Display) -> Finding {
        Finding { next: None, ..Finding::new(probe, Status::Untried, why.to_string()) }
    }

    /// A fact.
    pub fn info(probe: Probe, found: impl Into<String>) -> Finding {
        Finding::new(probe, Status::Info, found)
    }

    /// Works, or does not for the reason that the error has.
    pub(super) fn tried<T, E: fmt::Display>(probe: Probe, result: Result<T, E>) -> Finding {
        match result {
            Ok(_) => Finding::yes(probe, ""),
            Err(why) => Finding::no(probe, why),
        }
    }

    /// With another advice than the probe's usual one.
    pub fn with_next(self, next: impl Into<String>) -> Finding {
        Finding { next: Some(next.into()), ..self }
    }

    /// With the number that `found` has.
    pub fn with_number(self, number: u64) -> Finding {
        Finding { number: Some(number), ..self }
    }

    /// As found on an interface.
    pub fn on(self, interface: impl Into<String>) -> Finding {
        Finding { interface: Some(interface.into()), ..self }
    }
}

/// A finding for each probe of a subject, that it could not be tried.
pub fn untried(subject: Subject, why: &str) -> Vec<Finding> {
    Probe::all().filter(|probe| probe.subject() == subject).map(|probe| Finding::untried(probe, why)).collect()
}

/// Whether XDP can set a trait that a later hook reads, which is what everything else is built on: the ids of what is
/// missing, none if it can.
///
/// That takes the privileges, BTF, XDP in either mode, TC in either way, and a packet whose trait TC has read. What could
/// not be tried counts as missing.
pub fn missing_basics(findings: &[Finding]) -> Vec<String> {
    let works = |probe: Probe| findings.iter().any(|found| found.probe == probe && found.status.works());
    Probe::BASICS
        .iter()
        .filter(|alternatives| !alternatives.iter().any(|probe| works(*probe)))
        .map(|alternatives| alternatives.iter().map(|probe| probe.id()).collect::<Vec<_>>().join(" or "))
        .collect()
}
