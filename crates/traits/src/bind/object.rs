//! An object that is bound, and one that is loaded: the types keep the order.

use std::{ffi::CStr, os::fd::AsFd, path::Path};

use libbpf_rs::{AsRawLibbpf, MapCore, Object, OpenObject};

use super::{BindError, Binding, bind_open_object, needs::Needs, open::open_bytes, redirects, secrets};
use crate::registry::Registry;

/// Bytes kept of each program's verifier log. From Linux 6.4 on the kernel keeps the log's end (`bpf_verifier_vlog`), before
/// its start, so that there must be room for all of it; memory that is not written to is not used. As libbpf's own
/// `BPF_LOG_BUF_SIZE`.
const LOG_LEN: usize = 1 << 24;

/// An object whose keys are bound to a registry and which is not loaded yet.
///
/// Unlike an [`OpenObject`], it cannot be loaded unbound.
pub struct BoundObject<'r> {
    object: OpenObject,
    name: String,
    binding: Binding,
    registry: &'r Registry,
    bytes: Vec<u8>,
}

/// An object that the kernel has accepted. Its programs are unloaded when it is dropped, unless attached or pinned.
pub struct LoadedObject {
    object: Object,
    binding: Binding,
}

impl<'r> BoundObject<'r> {
    /// Opens an object file and binds it.
    pub fn open(path: &Path, registry: &'r Registry) -> Result<BoundObject<'r>, BindError> {
        let bytes =
            std::fs::read(path).map_err(|error| BindError::File { action: "reading", path: path.to_owned(), error })?;
        BoundObject::from_bytes(&bytes, &path.display().to_string(), registry)
    }

    /// Binds an object file's contents; `name` stands for it in errors.
    pub fn from_bytes(bytes: &[u8], name: &str, registry: &'r Registry) -> Result<BoundObject<'r>, BindError> {
        let mut object = open_bytes(bytes, name)?;
        let binding = bind_open_object(&mut object, name, registry)?;
        Ok(BoundObject { object, name: name.to_owned(), binding, registry, bytes: bytes.to_owned() })
    }

    /// Whether its XDP programs redirect packets.
    pub(crate) fn redirects(&self) -> bool {
        redirects::in_object(&self.bytes)
    }

    /// The object file's contents.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Binds it again, to the keys and secrets that the registry has now.
    pub(crate) fn bind_again(&mut self) -> Result<(), BindError> {
        self.binding = bind_open_object(&mut self.object, &self.name, self.registry)?;
        Ok(())
    }

    /// What it was bound to.
    pub fn binding(&self) -> &Binding {
        &self.binding
    }

    /// The open object, to set its other variables, map sizes and which programs to load.
    pub fn open_object_mut(&mut self) -> &mut OpenObject {
        &mut self.object
    }

    /// Loads every program (unless autoload was turned off).
    ///
    /// If a key was unregistered, or the registry's secrets were exchanged, between binding and loading, the object is
    /// unloaded and the error is [`BindError::Changed`].
    pub fn load(self) -> Result<LoadedObject, BindError> {
        let BoundObject { mut object, name, binding, registry, .. } = self;
        // The kernel answers what it does not know with EINVAL. A failed load takes the object with it.
        let needs = Needs::of(&object);
        let mut logs = Vec::new();
        for program in object.progs_mut() {
            let mut log = vec![0u8; LOG_LEN];
            // SAFETY: the buffer is on the heap, is not resized, and is dropped only after the load.
            let err = unsafe {
                libbpf_sys::bpf_program__set_log_buf(
                    program.as_libbpf_object().as_ptr(),
                    log.as_mut_ptr().cast(),
                    log.len() as _,
                )
            };
            if err == 0 {
                logs.push((program.name().to_string_lossy().into_owned(), log));
            }
        }
        let loaded = object.load();
        let object = loaded.map_err(|source| {
            if let Some(missing) = needs.missing(&name) {
                return missing;
            }
            let (program, log) = refusal(&logs);
            let log = secrets::masked(&log, binding.nonces(), registry.sender_nonce());
            BindError::Load { object: name.clone(), program, log, source }
        })?;
        for program in object.progs_mut() {
            // SAFETY: taking the buffer away again, before it is dropped; a null buffer of length 0 is allowed.
            unsafe {
                libbpf_sys::bpf_program__set_log_buf(program.as_libbpf_object().as_ptr(), std::ptr::null_mut(), 0)
            };
        }
        if !binding.holds(registry)? {
            return Err(BindError::Changed { object: name, registry: registry.name().to_string() });
        }
        Ok(LoadedObject { object, binding })
    }
}

/// The program that the verifier wrote about, and what it wrote: loading stops at the first refusal.
fn refusal(logs: &[(String, Vec<u8>)]) -> (Option<String>, String) {
    logs.iter()
        .find_map(|(name, log)| {
            let text = CStr::from_bytes_until_nul(log).ok()?.to_string_lossy().into_owned();
            (!text.is_empty()).then(|| (Some(name.clone()), text))
        })
        .unwrap_or_default()
}

impl LoadedObject {
    /// What it was bound to.
    pub fn binding(&self) -> &Binding {
        &self.binding
    }

    /// The loaded object.
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// The loaded object, to change its maps and programs.
    pub fn object_mut(&mut self) -> &mut Object {
        &mut self.object
    }

    /// Ids of its programs.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        let loaded = self.object.progs().filter(libbpf_rs::ProgramImpl::autoload);
        loaded.filter_map(|program| libbpf_rs::Program::id_from_fd(program.as_fd()).ok())
    }

    /// The program of this name.
    pub fn program(&self, name: &str) -> Option<libbpf_rs::Program<'_>> {
        self.object.progs().find(|program| program.name() == name)
    }

    /// The map of this name.
    pub fn map(&self, name: &str) -> Option<libbpf_rs::Map<'_>> {
        self.object.maps().find(|map| map.name() == name)
    }
}
