//! What is mounted where, and which mounts the first process sees: what is mounted in a mount namespace of its own is gone
//! when that ends.

use std::{
    fs, io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

/// A mount, of those that `mountinfo` of proc_pid_mountinfo(5) lists.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Each mount has another, also if a mount namespace is copied.
    id: u64,
    /// The file system, as `major:minor`.
    device: String,
    /// What it shows of its file system: `/` all.
    pub(crate) root: String,
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// The peer group that later mounts below it spread to.
    shared: Option<u64>,
    pub(crate) file_system: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Mount> {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ');
        let id = fields.next()?.parse().ok()?;
        let device = fields.nth(1)?.to_owned();
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?).into());
        let shared = fields.find_map(|field| field.strip_prefix("shared:")?.parse().ok());
        Some(Mount { id, device, root, point, shared, file_system: right.split(' ').next()?.to_owned() })
    }

    /// The mounts in the text of `mountinfo`.
    pub(crate) fn parse_all(mountinfo: &str) -> impl Iterator<Item = Mount> {
        mountinfo.lines().filter_map(Mount::parse)
    }

    fn list(process: &str) -> io::Result<Vec<Mount>> {
        Ok(Mount::parse_all(&fs::read_to_string(format!("/proc/{process}/mountinfo"))?).collect())
    }

    /// Whether a path leads the calling thread to this mount, of those that it has: another one may be over it.
    pub(crate) fn is_reached(&self) -> bool {
        Mount::id_of(&self.point).is_ok_and(|id| id == Some(self.id))
    }

    /// The calling thread's mount that a path is on.
    fn of(path: &Path) -> io::Result<Option<Mount>> {
        let id = Mount::id_of(path)?;
        Ok(Mount::list("thread-self")?.into_iter().find(|mount| Some(mount.id) == id))
    }

    /// The id of that mount.
    fn id_of(path: &Path) -> io::Result<Option<u64>> {
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
        let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd()))?;
        Ok(info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()))
    }
}

/// Undoes mountinfo's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |field, (escape, character)| field.replace(escape, character))
}

/// Whether the first process has a file system of this type mounted at a path. `false` if that cannot be told.
pub(crate) fn has_init(path: &Path, file_system: &str) -> bool {
    let is_it = |mount: &Mount| mount.point == path && mount.file_system == file_system;
    Mount::list("1").is_ok_and(|mounts| mounts.iter().any(is_it))
}

/// Whether the first process has a file system of this type mounted anywhere. `false` if that cannot be told.
pub(crate) fn has_init_any(file_system: &str) -> bool {
    Mount::list("1").is_ok_and(|mounts| mounts.iter().any(|mount| mount.file_system == file_system))
}

/// Whether the file system that a path is on goes away with the calling thread's mount namespace: it is mounted there, and
/// the first process, which is in another one, does not have it. `false` if that cannot be told.
pub(crate) fn goes_away(path: &Path) -> bool {
    let (Ok(Some(mount)), Ok(of_init)) = (Mount::of(path), Mount::list("1")) else { return false };
    !of_init.is_empty() && of_init.iter().all(|of_init| of_init.device != mount.device)
}

/// Whether the first process sees what the calling thread mounts at a path. `true` if that cannot be told.
pub(crate) fn show_to_init(path: &Path) -> bool {
    let (Ok(Some(below)), Ok(of_init)) = (Mount::of(path), Mount::list("1")) else { return true };
    of_init.iter().any(|mount| mount.id == below.id || mount.shared.is_some() && mount.shared == below.shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_whole() {
        let plain = Mount::parse("23 27 0:22 / /sys rw,relatime - sysfs sysfs rw").unwrap();
        let mount = |id, device: &str, point: &str, shared, file_system: &str| Mount {
            id,
            device: device.to_owned(),
            root: "/".to_owned(),
            point: point.into(),
            shared,
            file_system: file_system.to_owned(),
        };
        assert_eq!(plain, mount(23, "0:22", "/sys", None, "sysfs"));
        let shared = Mount::parse("44 23 0:41 / /sys/fs/bpf rw master:7 shared:12 - bpf bpf rw,mode=700").unwrap();
        assert_eq!(shared, mount(44, "0:41", "/sys/fs/bpf", Some(12), "bpf"));
        assert_eq!(Mount::parse(""), None);
    }

    #[test]
    fn what_the_first_process_has_stays() {
        assert!(!goes_away("/proc".as_ref()));
    }

    #[test]
    fn the_root_is_on_a_mount() {
        assert_eq!(Mount::of("/proc".as_ref()).unwrap().unwrap().file_system, "proc");
    }
}
