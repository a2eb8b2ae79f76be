//! Which deployment holds a place, for errors and reports that would else send people to look for it.

use std::path::Path;

use super::{Deployed, Deployment, Location, namespace::Namespace};
use crate::{
    Hint,
    attach::{AttachError, Hook, Target, xdp},
    registry::RegistryName,
};

/// A deployment that has a program attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    location: Location,
    name: String,
}

impl Holder {
    /// The deployment whose program this is, in whatever registry of a bpffs.
    pub fn of_program(bpffs: &Path, program_id: u32) -> Option<Holder> {
        Holder::find(bpffs, |_, deployed| deployed.info.program_id == program_id)
    }

    /// Has the error for a place that a deployment holds name it, with the hint to take it down. It is looked for in all
    /// registries of the location's bpffs. The calling thread is in the network namespace that attaching was tried in.
    pub fn explain(error: AttachError, location: &Location) -> AttachError {
        match Holder::in_the_way(&error, &location.bpffs) {
            Some(found) => found.named_by(error),
            None => error,
        }
    }

    /// The deployment that has the place which another program was to be attached to.
    fn in_the_way(error: &AttachError, bpffs: &Path) -> Option<Holder> {
        let AttachError::Busy { attempt, .. } = error else { return None };
        match (attempt.hook, &*attempt.target) {
            (Hook::Xdp, Target::Interface { ifindex, .. }) => {
                Holder::of_program(bpffs, xdp::in_the_way(*ifindex)?.program)
            }
            (hook @ Hook::Netfilter { .. }, _) => {
                let here = Namespace::current().cookie;
                Holder::find(bpffs, |one, deployed| one.about.namespace == here && deployed.info.hook == hook)
            }
            _ => None,
        }
    }

    fn named_by(&self, error: AttachError) -> AttachError {
        match error {
            AttachError::Busy { attempt, holder, hint, errno, .. } => {
                let holder = format!("{holder}, by {}", self.name);
                // at an XDP hook, the host's own tools would only detach it
                let hint = if attempt.hook == Hook::Xdp { String::new() } else { hint };
                AttachError::Busy { attempt, holder, hint, hints: vec![self.take_down()], errno }
            }
            other => other,
        }
    }

    /// The deployment's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its registry.
    pub fn registry(&self) -> &RegistryName {
        &self.location.registry
    }

    fn take_down(&self) -> Hint {
        Hint::TakeDown { registry: self.registry().clone(), deployment: self.name.clone() }
    }

    fn find(bpffs: &Path, holds: impl Fn(&Deployment, &Deployed) -> bool) -> Option<Holder> {
        Location::all(bpffs).into_iter().find_map(|location| {
            let up = Deployment::list(&location).ok()?;
            let holder = up.iter().find(|one| one.attached().iter().any(|deployed| holds(one, deployed)))?;
            Some(Holder { name: holder.name().to_owned(), location })
        })
    }
}

/// Has the error of [`Deployment::up`] name the holder, with the hint to replace it.
pub(super) fn explain(error: AttachError, bpffs: &Path) -> AttachError {
    let Some(found) = Holder::in_the_way(&error, bpffs) else { return error };
    let replace = Hint::Replace { registry: found.registry().clone(), deployment: found.name.clone() };
    let mut error = found.named_by(error);
    if let AttachError::Busy { attempt, hints, .. } = &mut error
        && attempt.hook == Hook::Xdp
    {
        hints.push(replace);
    }
    error
}
