//! What to do about an error, in words of the command line: the options and commands that the libraries' hints stand for.
//!
//! Only this file knows how `--bpffs` and `--registry` get into a command that a person is told to run.

use std::{error::Error, fmt, path::Path};

use packet_traits::{
    Hint,
    attach::AttachError,
    bind::BindError,
    bpffs::{BpffsError, DEFAULT_ROOT},
    deployment::{DeployError, Holder},
    registry::{RegistryError, RegistryName},
    rotate::RotateError,
    socket_programs::SocketProgramsError,
};
use packet_traits_deploy::PolicyError;
use packet_traits_socket::SocketError;
use packet_traits_trace::{Hint as TraceHint, TraceError};

/// An error, with what it is about in front. Its hints are those of the error.
#[derive(Debug)]
pub struct About {
    what: String,
    pub(crate) error: Box<dyn Error>,
}

impl About {
    /// `what` is an interface's name, say.
    pub fn new(what: impl Into<String>, error: impl Into<Box<dyn Error>>) -> About {
        About { what: what.into(), error: error.into() }
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.error)
    }
}

/// Without a source: the message has all of it.
impl Error for About {}

/// The error's message, and what to do about it. `bpffs` is the BPF file system that was worked in.
pub(crate) fn message(error: &(dyn Error + 'static), bpffs: &Path) -> String {
    let mut message = error.to_string();
    if let Some(hint) = error.downcast_ref::<SocketError>().and_then(SocketError::hint) {
        message += &format!("; {hint}");
    }
    // commands that the message itself names work in the usual file system
    let names_commands = message.contains("`traits ");
    for hint in hints(error) {
        message += &clause_of_trace(&hint, bpffs);
    }
    if names_commands && bpffs != Path::new(DEFAULT_ROOT) && !message.contains("--bpffs") {
        message += &format!(" (with --bpffs {}, as here)", bpffs.display());
    }
    message
}

fn hints(error: &(dyn Error + 'static)) -> Vec<TraceHint> {
    macro_rules! hints_of {
        ($($kind:ty),*) => {
            $(if let Some(error) = error.downcast_ref::<$kind>() {
                return error.hints().into_iter().map(TraceHint::Traits).collect();
            })*
        };
    }
    if let Some(about) = error.downcast_ref::<About>() {
        return hints(about.error.as_ref());
    }
    if let Some(error) = error.downcast_ref::<TraceError>() {
        return error.hints();
    }
    hints_of!(
        PolicyError,
        DeployError,
        SocketProgramsError,
        RotateError,
        BindError,
        AttachError,
        RegistryError,
        BpffsError
    );
    Vec::new()
}

/// What a hint adds to the end of a message, which may have advice of its own there.
pub fn clause(hint: &Hint, bpffs: &Path) -> String {
    match hint {
        Hint::NameBpffs => ", or name another with --bpffs".to_owned(),
        Hint::Force => ", or do it all the same with --force".to_owned(),
        Hint::AllowOversize => ", or allow it with --allow-oversize if every interface has more".to_owned(),
        Hint::ClearAway { registry } => {
            let remove = command(&format!("registry remove --force {registry}"), &RegistryName::default(), bpffs);
            format!(". If nothing needs it, {remove} clears it away")
        }
        Hint::ListKeys { registry } => format!("; {} shows those it has", command("keys list", registry, bpffs)),
        Hint::DetachSockets { registry, bpffs: theirs, cgroup } => {
            let which = match cgroup {
                Some(cgroup) => format!("--cgroup {}", cgroup.display()),
                None => "--all".to_owned(),
            };
            let bpffs = theirs.as_deref().unwrap_or(bpffs);
            format!("; {} detaches them", command(&format!("sockets detach {which}"), registry, bpffs))
        }
        Hint::DetachSocketsElsewhere => "; detach those first, with --bpffs saying where they are pinned".to_owned(),
        Hint::TakeDown { registry, deployment } => {
            format!("; {} detaches it", command(&format!("down {deployment}"), registry, bpffs))
        }
        Hint::Replace { registry, deployment } => {
            let replace = command(&format!("up --replace --name {deployment}"), registry, bpffs);
            format!("; {replace} puts another version in its place")
        }
        Hint::NameInterface => "; name it with --dev INTERFACE".to_owned(),
        Hint::NameCgroup => "; name it with --cgroup PATH".to_owned(),
        Hint::NameNetfilterHook { program } => {
            format!("; name it with --netfilter {program}=ip:input (FAMILY:HOOK[:PRIORITY])")
        }
        Hint::OmitNetfilterHook => ", so leave --netfilter out".to_owned(),
        Hint::OmitMode => ", or leave --mode out".to_owned(),
        _ => String::new(),
    }
}

fn clause_of_trace(hint: &TraceHint, bpffs: &Path) -> String {
    let clause = match hint {
        TraceHint::Traits(hint) => return clause(hint, bpffs),
        TraceHint::NameId => "; `--id KEY` names a key of ids",
        TraceHint::OmitId => "; without `--id` it does",
        TraceHint::NameEntered => "; `--entered KEY` names the key",
        TraceHint::NameInterface => "; `--dev` names an interface",
        TraceHint::NameNamespace => "; `--netns` names other namespaces",
        _ => "",
    };
    clause.to_owned()
}

/// The command that takes a deployment down.
pub fn take_down(holder: &Holder, bpffs: &Path) -> String {
    command(&format!("down {}", holder.name()), holder.registry(), bpffs)
}

/// A command of `traits` in backquotes, with the options that lead it to a registry.
fn command(words: &str, registry: &RegistryName, bpffs: &Path) -> String {
    let mut options = String::new();
    if bpffs != Path::new(DEFAULT_ROOT) {
        options += &format!(" --bpffs {}", bpffs.display());
    }
    if *registry != RegistryName::default() {
        options += &format!(" --registry {registry}");
    }
    format!("`traits{options} {words}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> RegistryName {
        RegistryName::new(name).unwrap()
    }

    fn exists(registry: &str) -> DeployError {
        DeployError::Exists { name: "edge".to_owned(), registry: name(registry) }
    }

    #[test]
    fn commands_lead_to_the_registry_that_was_worked_in() {
        assert_eq!(
            message(&exists("default"), Path::new(DEFAULT_ROOT)),
            "edge is already up in registry default; `traits down edge` detaches it; `traits up --replace --name edge` puts \
             another version in its place"
        );
        let elsewhere = message(&exists("lab"), Path::new("/run/bpf"));
        assert!(elsewhere.contains("`traits --bpffs /run/bpf --registry lab down edge`"), "{elsewhere}");
        assert!(!elsewhere.contains("as here"), "{elsewhere}");
    }

    #[test]
    fn commands_of_a_message_get_the_file_system_once() {
        let error = RegistryError::NotFound { name: name("lab"), dir: "/run/bpf/packet_traits/lab".into() };
        assert!(message(&error, Path::new("/run/bpf")).ends_with("` (with --bpffs /run/bpf, as here)"));
        assert_eq!(message(&error, Path::new(DEFAULT_ROOT)), error.to_string());
    }

    #[test]
    fn the_hints_of_an_error_are_found_below_others() {
        let gone = || BpffsError::Absent { root: "/run/bpf".into() };
        let errors: [Box<dyn Error>; 4] = [
            gone().into(),
            PolicyError::from(RegistryError::from(gone())).into(),
            TraceError::from(BindError::from(RegistryError::from(gone()))).into(),
            About::new("rx0", DeployError::from(gone())).into(),
        ];
        for error in errors {
            let message = message(error.as_ref(), Path::new("/run/bpf"));
            assert!(message.ends_with("bpf /run/bpf`, or name another with --bpffs"), "{message}");
        }
    }

    #[test]
    fn socket_programs_of_another_file_system_are_detached_there() {
        let hint = Hint::DetachSockets {
            registry: RegistryName::default(),
            bpffs: Some(DEFAULT_ROOT.into()),
            cgroup: Some("/sys/fs/cgroup/a".into()),
        };
        assert_eq!(
            clause(&hint, Path::new("/run/bpf")),
            "; `traits sockets detach --cgroup /sys/fs/cgroup/a` detaches them"
        );
    }
}
