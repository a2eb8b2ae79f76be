//! Which deployment holds a place, for errors and reports that would else send people to look for it.

use std::{fmt, path::Path};

use super::{Deployed, Deployment, Location, namespace::Namespace};
use crate::{
    attach::{AttachError, Hook, Target, xdp},
    bpffs::DEFAULT_ROOT,
};

/// A deployment that has a program attached. Displayed as what takes it down: `traits down NAME`.
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

    /// Has the error for a place that a deployment holds name it, and say how to take it down. It is looked for in all
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
            AttachError::Busy { attempt, holder, hint, errno } => {
                let holder = format!("{holder}, by {}", self.name);
                let hint = match attempt.hook {
                    Hook::Xdp => format!("`{self}` detaches it"),
                    _ => format!("`{self}` detaches it; or {hint}"),
                };
                AttachError::Busy { attempt, holder, hint, errno }
            }
            other => other,
        }
    }

    /// The deployment's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn find(bpffs: &Path, holds: impl Fn(&Deployment, &Deployed) -> bool) -> Option<Holder> {
        Location::all(bpffs).into_iter().find_map(|location| {
            let up = Deployment::list(&location).ok()?;
            let holder = up.iter().find(|one| one.attached().iter().any(|deployed| holds(one, deployed)))?;
            Some(Holder { name: holder.name().to_owned(), location })
        })
    }

    /// The command `traits` with the options that lead to the deployment's registry.
    fn command(&self) -> impl fmt::Display {
        let Location { bpffs, registry, .. } = &self.location;
        let mut command = "traits".to_owned();
        if bpffs != Path::new(DEFAULT_ROOT) {
            command += &format!(" --bpffs {}", bpffs.display());
        }
        if *registry != Default::default() {
            command += &format!(" --registry {registry}");
        }
        command
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} down {}", self.command(), self.name)
    }
}

/// Has the error of [`Deployment::up`] name the holder, and say how to replace it.
pub(super) fn explain(error: AttachError, bpffs: &Path) -> AttachError {
    let Some(found) = Holder::in_the_way(&error, bpffs) else { return error };
    let replace = format!("`{} up --replace --name {}` puts another version in its place", found.command(), found.name);
    match found.named_by(error) {
        AttachError::Busy { attempt, holder, hint, errno } if attempt.hook == Hook::Xdp => {
            AttachError::Busy { hint: format!("{hint}, {replace}"), attempt, holder, errno }
        }
        other => other,
    }
}
