//! Binding an object file for another loader.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
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
        fs::read(input).map_err(|source| BindError::File { action: "reading", path: input.to_owned(), source })?;
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
    write_whole(output, &bytes).map_err(|source| BindError::File {
        action: "writing",
        path: output.to_owned(),
        source,
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
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    let path = behind_links(path)?;
    let mut beside = path.file_name().unwrap_or_default().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(beside);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // the error to report is the first one
        let _ = fs::remove_file(&beside);
    }
    written
}

/// The file that a path leads to, which need not be there: renaming to a symbolic link would replace the link.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            // a relative target is as seen from the link's folder
            Ok(target) => path = path.with_file_name("").join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}
