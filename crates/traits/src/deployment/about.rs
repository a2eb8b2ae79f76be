//! What a deployment says of itself: a frozen map in its folder, with what the links do not tell.

use std::{
    fs,
    os::{
        fd::AsFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use libbpf_rs::MapInfo;

use super::{
    DeployError,
    source::{frozen_map, frozen_value},
};
use crate::{attach::XdpMode, bpffs};

/// Version of the encoding. The first one had no name.
const VERSION: u32 = 2;
const VERSION_WITHOUT_NAME: u32 = 1;

/// Name of the map in the kernel.
const MAP: &str = "pt_about";

/// What the links do not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct About {
    /// The deployment's name, which its folder does not have yet while it is being made.
    pub(super) name: String,
    /// Cookie of the network namespace it was brought up in; the kernel never gives one twice.
    pub(super) namespace: u64,
    /// The mode of its XDP program.
    pub(super) xdp_mode: Option<XdpMode>,
    /// The directory of its cgroup.
    pub(super) cgroup: Option<PathBuf>,
    /// What who brought it up had to say: [`Setup::notes`](super::Setup::notes).
    pub(super) notes: Vec<u8>,
}

impl About {
    fn encode(&self) -> Vec<u8> {
        let mode = match self.xdp_mode {
            Some(XdpMode::Native) => 1u32,
            Some(XdpMode::Generic) => 2,
            Some(XdpMode::Auto) | None => 0,
        };
        let cgroup = self.cgroup.as_deref().map(|path| path.as_os_str().as_bytes()).unwrap_or_default();
        let mut raw = Vec::with_capacity(28 + cgroup.len() + self.notes.len() + self.name.len());
        raw.extend(VERSION.to_ne_bytes());
        raw.extend(mode.to_ne_bytes());
        raw.extend(self.namespace.to_ne_bytes());
        raw.extend((cgroup.len() as u32).to_ne_bytes());
        raw.extend((self.notes.len() as u32).to_ne_bytes());
        raw.extend((self.name.len() as u32).to_ne_bytes());
        raw.extend(cgroup);
        raw.extend(&self.notes);
        raw.extend(self.name.as_bytes());
        raw
    }

    fn decode(mut raw: &[u8]) -> Option<About> {
        let mut word = || {
            let (word, rest) = raw.split_first_chunk()?;
            raw = rest;
            Some(u32::from_ne_bytes(*word))
        };
        let has_name = match word()? {
            VERSION => true,
            VERSION_WITHOUT_NAME => false,
            _ => return None,
        };
        let xdp_mode = match word()? {
            1 => Some(XdpMode::Native),
            2 => Some(XdpMode::Generic),
            _ => None,
        };
        let halves = [word()?, word()?];
        let (cgroup, notes) = (word()? as usize, word()? as usize);
        let name = if has_name { word()? as usize } else { 0 };
        let (cgroup, rest) = raw.split_at_checked(cgroup)?;
        let (notes, rest) = rest.split_at_checked(notes)?;
        let mut namespace = [0; 8];
        namespace[..4].copy_from_slice(&halves[0].to_ne_bytes());
        namespace[4..].copy_from_slice(&halves[1].to_ne_bytes());
        Some(About {
            namespace: u64::from_ne_bytes(namespace),
            xdp_mode,
            cgroup: (!cgroup.is_empty()).then(|| std::ffi::OsString::from_vec(cgroup.to_vec()).into()),
            notes: notes.to_vec(),
            name: String::from_utf8(rest.get(..name)?.to_vec()).ok()?,
        })
    }

    /// Writes it down at `path`, for good.
    pub(super) fn pin(&self, path: &Path) -> Result<(), DeployError> {
        let map = frozen_map(MAP, &self.encode())?;
        bpffs::pin(map.as_fd(), path).map_err(super::error::failed("pin", path))
    }

    /// The id of the map at `path`: another one for each version.
    pub(super) fn id(path: &Path) -> Option<u32> {
        Some(MapInfo::new(bpffs::open_map(path).ok()?.as_fd()).ok()?.info.id)
    }

    /// Reads what is written at `path`; the error says why it cannot be read.
    pub(super) fn open(path: &Path) -> Result<About, String> {
        let map = bpffs::open_map(path).map_err(|error| error.to_string())?;
        About::decode(&frozen_value(&map)?).ok_or_else(|| "it is of another version".to_owned())
    }
}

/// The path of a cgroup's directory as others find it.
pub(super) fn absolute(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_a_piece_is_not() {
        let about = About {
            name: "edge".to_owned(),
            namespace: 1 << 40 | 7,
            xdp_mode: Some(XdpMode::Generic),
            cgroup: Some("/sys/fs/cgroup/a".into()),
            notes: b"{}".to_vec(),
        };
        let raw = about.encode();
        assert_eq!(About::decode(&raw), Some(about));
        for len in 0..raw.len() {
            assert_eq!(About::decode(&raw[..len]), None, "{len}");
        }
        assert_eq!(About::decode(&About::default().encode()), Some(About::default()));
    }
}
