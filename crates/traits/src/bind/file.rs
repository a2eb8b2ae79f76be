//! Binding an object file for another loader.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use object::{Object, ObjectSection};

use super::{
    BindError, Binding,
    open::{fill, open_bytes},
    other_loaders,
};
use crate::{descriptor, registry::Registry};

/// Symbolic links that the kernel follows in a row (`MAXSYMLINKS` in include/linux/namei.h).
const MAX_LINKS: usize = 40;

/// Writes a bound copy of the object file `input` to `output`, which any loader can load on the running kernel: calls of the
/// kernel's own functions (kfuncs) are resolved in it, too.
///
/// `output` is replaced whole or not at all. It contains the registry's nonces and is readable by its owner only. If it
/// is a symbolic link, what it leads to is replaced; a device or a pipe is written to.
/// Headrooms are those known to the registry now; see `pt_anchors` in the header for loaders that share the rest.
pub fn bind_file(input: &Path, output: &Path, registry: &Registry) -> Result<Binding, BindError> {
    let name = input.display().to_string();
    let mut bytes =
        fs::read(input).map_err(|error| BindError::File { action: "reading", path: input.to_owned(), error })?;
    let mut object = open_bytes(&bytes, &name)?;
    let binding = fill(&mut object, &name, registry)?;

    let place = section_place(&bytes).filter(|(start, len)| start + len <= bytes.len());
    let filled = object.maps().find(|map| map.name() == descriptor::SECTION);
    let (Some((start, len)), Some(filled)) = (place, filled.as_ref().and_then(|map| map.initial_value())) else {
        return Err(BindError::NoKeys { object: name });
    };
    // libbpf rounds the map up to whole words; what is behind the section is padding
    bytes[start..start + len].copy_from_slice(&filled[..len]);
    other_loaders::prepare(&mut bytes);
    write_whole(output, &bytes).map_err(|error| BindError::File {
        action: "writing",
        path: output.to_owned(),
        error,
    })?;
    Ok(binding)
}

/// Start and length of the descriptors' section in the file.
fn section_place(bytes: &[u8]) -> Option<(usize, usize)> {
    let elf = object::File::parse(bytes).ok()?;
    let (start, len) = elf.section_by_name(descriptor::SECTION)?.file_range()?;
    Some((usize::try_from(start).ok()?, usize::try_from(len).ok()?))
}

/// Writes a regular file, or one that is not there yet, beside it and renames; anything else, such as a device or a
/// pipe, it writes to.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = match fs::metadata(path) {
        Ok(there) if !there.is_file() => {
            refuse_planted(path)?;
            return OpenOptions::new().write(true).open(path)?.write_all(bytes);
        }
        _ => behind_links(path)?,
    };
    // of a name that nobody can have foreseen, and for its owner only
    let mut beside = tempfile::Builder::new().prefix(".bound.").tempfile_in(folder_of(&path))?;
    beside.write_all(bytes)?;
    beside.persist(path)?;
    Ok(())
}

/// The file that a path leads to, which need not be there: renaming to a symbolic link would replace the link.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => {
                refuse_planted(&path)?;
                // a relative target is as seen from the link's folder
                path = folder_of(&path).join(target);
            }
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// Refuses a link, pipe or device that another user has put into a folder that others may write to: it would have the
/// nonces written to where that user wants them. Where such folders are sticky, the kernel does not follow links there
/// either (`may_follow_link` in fs/namei.c), but these are not followed by the kernel.
fn refuse_planted(path: &Path) -> io::Result<()> {
    let (there, folder) = (fs::symlink_metadata(path)?, fs::metadata(folder_of(path))?);
    let own = rustix::process::geteuid().as_raw();
    if folder.mode() & 0o022 == 0 || [own, folder.uid()].contains(&there.uid()) {
        return Ok(());
    }
    let what = if there.is_symlink() { "a link" } else { "no file" };
    let message = format!("{} is {what} of user {}, in a folder that others may write to", path.display(), there.uid());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

/// The folder that a path names something in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
