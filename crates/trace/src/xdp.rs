//! Other software's XDP programs: which are attached, and what they decide.

use std::{fmt, io, os::fd::OwnedFd};

use libbpf_rs::{
    Program,
    btf::{Btf, TypeId, types},
    query::{ProgInfoIter, ProgInfoQueryOptions, ProgramInfo},
};
use packet_traits::attach::xdp;

use crate::{
    event::text,
    namespace::{Interface, Namespace},
};

/// What an XDP program decided; `enum xdp_action`, include/uapi/linux/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// It failed: the packet is dropped.
    Aborted,
    /// To drop it.
    Drop,
    /// To let the kernel have it.
    Pass,
    /// To send it back out of the interface it came in by.
    Tx,
    /// To send it to another interface, CPU or socket.
    Redirect,
    /// Nothing the kernel knows: the packet is dropped.
    Invalid,
}

impl Verdict {
    /// The verdict with this number.
    pub fn from_code(code: u32) -> Verdict {
        match code {
            0 => Verdict::Aborted,
            1 => Verdict::Drop,
            2 => Verdict::Pass,
            3 => Verdict::Tx,
            4 => Verdict::Redirect,
            _ => Verdict::Invalid,
        }
    }

    /// Its name. Never changes.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Aborted => "aborted",
            Verdict::Drop => "drop",
            Verdict::Pass => "pass",
            Verdict::Tx => "tx",
            Verdict::Redirect => "redirect",
            Verdict::Invalid => "invalid",
        }
    }

    /// What it is called as a reason to drop a packet; `None` if the packet is not dropped. Never changes.
    pub const fn drop_reason(self) -> Option<&'static str> {
        match self {
            Verdict::Aborted => Some("xdp_aborted"),
            Verdict::Drop => Some("xdp_drop"),
            Verdict::Invalid => Some("xdp_invalid"),
            Verdict::Pass | Verdict::Tx | Verdict::Redirect => None,
        }
    }

    /// Whether the packet leaves the way it was on without being dropped.
    pub const fn sends_elsewhere(self) -> bool {
        matches!(self, Verdict::Tx | Verdict::Redirect)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XdpProgram {
    /// Its id, as `bpftool prog` shows it.
    pub id: u32,
    name: [u8; 16],
}

impl XdpProgram {
    /// `name` is cut to 15 bytes, as the kernel does.
    pub fn new(id: u32, name: &str) -> XdpProgram {
        let mut bytes = [0; 16];
        let len = name.len().min(15);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        XdpProgram { id, name: bytes }
    }

    /// Its name, up to 15 bytes; empty if it has none.
    pub fn name(&self) -> &str {
        text(&self.name)
    }

    /// As `target` of bpf/verdict.bpf.c.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [&u64::from(self.id).to_ne_bytes()[..], &self.name].concat()
    }
}

/// `firewall[12]`.
impl fmt::Display for XdpProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.name(), self.id)
    }
}

/// What became of packets, where the kernel does not say which they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Fate {
    /// Redirected.
    Redirected,
    /// They were to be redirected, and were dropped because that failed.
    RedirectFailed,
    /// Dropped: the program failed.
    Aborted,
    /// They were to be sent back, and were dropped because that failed.
    TxFailed,
    /// Dropped for another reason, as for a verdict that there is not.
    OtherFailed,
}

impl Fate {
    /// `enum fate` of bpf/xdp_counts.bpf.c.
    pub(crate) fn from_code(code: u32) -> Fate {
        match (code & 0xff, Verdict::from_code(code >> 8)) {
            (0, _) => Fate::Redirected,
            (1, _) => Fate::RedirectFailed,
            (_, Verdict::Aborted) => Fate::Aborted,
            (_, Verdict::Tx) => Fate::TxFailed,
            _ => Fate::OtherFailed,
        }
    }

    /// Its name. Never changes.
    pub const fn name(self) -> &'static str {
        match self {
            Fate::Redirected => "redirected",
            Fate::RedirectFailed => "redirect-failed",
            Fate::Aborted => "aborted",
            Fate::TxFailed => "tx-failed",
            Fate::OtherFailed => "other-failed",
        }
    }
}

/// How many packets came to this at one interface, by one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpCount {
    /// What became of them.
    pub fate: Fate,
    /// The interface.
    pub interface: Interface,
    /// The namespace's inode number.
    pub netns: u32,
    /// What the namespace is called; empty if it has no name.
    pub namespace: String,
    /// The program.
    pub program: XdpProgram,
    /// How many, traced or not.
    pub packets: u64,
}

/// Another XDP program, attached to a traced interface, as the tracer traces it.
pub(crate) struct Attached {
    pub(crate) program: XdpProgram,
    /// The name of its main function.
    pub(crate) function: String,
}

/// The ids of the XDP programs that these interfaces have, each once.
pub(crate) fn attached(places: &[(Namespace, Interface)]) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for (namespace, interface) in places {
        if let Some((id, _)) = namespace.enter(|| xdp::attached(interface.index))?
            && !found.contains(&id)
        {
            found.push(id);
        }
    }
    Ok(found)
}

/// The program with this id; without a name if it is gone.
pub(crate) fn program(id: u32) -> XdpProgram {
    XdpProgram::new(id, &info(id).map(|info| info.name.to_string_lossy().into_owned()).unwrap_or_default())
}

fn info(id: u32) -> Option<ProgramInfo> {
    let options = ProgInfoQueryOptions::default().include_func_info(true);
    ProgInfoIter::with_query_opts(options).find(|info| info.id == id)
}

impl Attached {
    /// Looks a program up, and opens it. Its type information says which function is its main one: the kernel's name of the
    /// program is cut.
    pub(crate) fn open(id: u32) -> Result<(Attached, OwnedFd), String> {
        let info = info(id).ok_or("it is gone")?;
        let program = XdpProgram::new(id, &info.name.to_string_lossy());
        let main = info.func_info.first().ok_or("it has no type information (clang writes it with -g)")?;
        let btf = Btf::from_prog_id(id).map_err(|error| format!("its type information cannot be read: {error}"))?;
        let function: Option<types::Func<'_>> = btf.type_by_id(TypeId::from(main.type_id));
        let function = function.and_then(|function| Some(function.name()?.to_string_lossy().into_owned()));
        let function = function.ok_or("its main function has no name")?;
        let fd = Program::fd_from_id(id).map_err(|error| error.to_string())?;
        Ok((Attached { program, function }, fd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_as_the_kernel_does() {
        let program = XdpProgram::new(12, "a_name_of_twenty_six_bytes");
        assert_eq!(program.to_string(), "a_name_of_twent[12]");
        assert_eq!(program.bytes().len(), 24);
    }

    #[test]
    fn verdicts_that_drop_have_a_reason() {
        let dropped: Vec<&str> = (0..6).filter_map(|code| Verdict::from_code(code).drop_reason()).collect();
        assert_eq!(dropped, ["xdp_aborted", "xdp_drop", "xdp_invalid"]);
        assert_eq!(Fate::from_code(2), Fate::Aborted);
        assert_eq!(Fate::from_code(2 | 3 << 8), Fate::TxFailed);
        assert_eq!(Fate::from_code(2 | 9 << 8), Fate::OtherFailed);
    }
}
