//! A policy or an object, and where its programs go.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use libbpf_rs::libbpf_sys;
use packet_traits::{
    KeyName,
    attach::{NetfilterOptions, XdpMode},
    bind::BoundObject,
    deployment::{Deployment, Location, UpOptions},
    registry::{Registry, RegistryError},
};
use packet_traits_policy::{
    check::{CheckOptions, Checked, Files, Texts, check},
    compile::Compiler,
    emit::{EmitOptions, emit},
    manifest::Manifest,
};

use crate::{Note, PolicyError, interface, keys, setup};

/// The end of the names of policies' files.
const EXTENSION: &str = "traits";

/// A policy, compiled or as text, or an object with other programs; and where the programs go.
#[derive(Clone, Debug)]
pub struct Policy {
    /// An object file.
    object: Vec<u8>,
    /// `None` if the object was not made of a policy.
    manifest: Option<Manifest>,
    /// What the object or the policy is called in messages.
    file: String,
    name: String,
    interface: Option<String>,
    mode: XdpMode,
    cgroup: Option<PathBuf>,
    netfilter: Vec<(String, NetfilterOptions)>,
    replace: bool,
}

/// What came up.
#[derive(Debug)]
#[non_exhaustive]
pub struct Up {
    /// Its programs and maps.
    pub deployment: Deployment,
    /// Keys that were registered for it.
    pub new_keys: Vec<KeyName>,
    /// Whether it took over from another version.
    pub replaced: bool,
    /// What its user may not expect.
    pub notes: Vec<Note>,
}

impl Policy {
    /// Reads an object file, or compiles a policy: a file whose name ends in `.traits`. Compiling requires clang.
    ///
    /// # Errors
    /// [`PolicyError::File`], [`PolicyError::Rejected`], [`PolicyError::Emit`], [`PolicyError::Compile`],
    /// [`PolicyError::Manifest`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Policy, PolicyError> {
        let path = path.as_ref();
        if Policy::is_text(path) {
            let checked = check(path, &Files, &CheckOptions::default())
                .map_err(|rejected| PolicyError::Rejected(Box::new(rejected)))?;
            return Policy::compile(path, &checked);
        }
        let object = fs::read(path).map_err(|error| PolicyError::File { path: path.to_owned(), error })?;
        Policy::from_object(path, object)
    }

    /// Compiles a policy that is given as text. `file` is its name in messages.
    ///
    /// # Errors
    /// As for [`from_file`](Self::from_file).
    pub fn from_text(file: &str, text: &str) -> Result<Policy, PolicyError> {
        let path = Path::new(file);
        let checked = check(path, &Texts::from_iter([(file, text.to_owned())]), &CheckOptions::default())
            .map_err(|rejected| PolicyError::Rejected(Box::new(rejected)))?;
        Policy::compile(path, &checked)
    }

    /// Compiles a policy that was checked. `file` is its name in messages.
    ///
    /// # Errors
    /// [`PolicyError::Emit`], [`PolicyError::Compile`].
    pub fn compile(file: &Path, checked: &Checked) -> Result<Policy, PolicyError> {
        let emitted = emit(&checked.policy, &checked.sources, &EmitOptions::default())?;
        let object = Compiler::new(&libbpf_sys::API_HEADERS).compile(&emitted)?;
        Ok(Policy::new(file, object, Some(emitted.manifest)))
    }

    /// The object file's contents.
    #[cfg(test)]
    pub(crate) fn object(&self) -> &[u8] {
        &self.object
    }

    /// Takes an object file's contents. `file` is its name in messages.
    ///
    /// # Errors
    /// [`PolicyError::Manifest`].
    pub fn from_object(file: &Path, object: Vec<u8>) -> Result<Policy, PolicyError> {
        // What is no object file at all, binding explains better.
        let manifest = match object.starts_with(b"\x7fELF") {
            true => Manifest::from_object(&object)
                .map_err(|error| PolicyError::Manifest { file: file.display().to_string(), error })?,
            false => None,
        };
        Ok(Policy::new(file, object, manifest))
    }

    /// Whether a file is a policy's text, by its name.
    pub fn is_text(path: &Path) -> bool {
        path.extension() == Some(OsStr::new(EXTENSION))
    }

    fn new(file: &Path, object: Vec<u8>, manifest: Option<Manifest>) -> Policy {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        Policy {
            object,
            manifest,
            file: file.display().to_string(),
            name: name.split('.').next().unwrap_or_default().to_owned(),
            interface: None,
            mode: XdpMode::Auto,
            cgroup: None,
            netfilter: Vec::new(),
            replace: false,
        }
    }

    /// The description of the policy; `None` if the object was not made of a policy.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// The name that it comes up under. Default: the file's name up to the first dot.
    pub fn named(self, name: impl Into<String>) -> Policy {
        Policy { name: name.into(), ..self }
    }

    /// The interface for XDP and TC programs, in the calling thread's network namespace.
    pub fn on_interface(self, name: impl Into<String>) -> Policy {
        Policy { interface: Some(name.into()), ..self }
    }

    /// How XDP programs are attached: see [`UpOptions::xdp_mode`].
    pub fn mode(self, mode: XdpMode) -> Policy {
        Policy { mode, ..self }
    }

    /// The directory of the cgroup for cgroup programs.
    pub fn in_cgroup(self, path: impl Into<PathBuf>) -> Policy {
        Policy { cgroup: Some(path.into()), ..self }
    }

    /// Attaches a netfilter program of an object to a hook, once more at each call. A policy names the hooks of its own programs.
    pub fn netfilter(mut self, program: impl Into<String>, place: NetfilterOptions) -> Policy {
        self.netfilter.push((program.into(), place));
        self
    }

    /// Whether to take over from what is up under the same name.
    pub fn replace(self, replace: bool) -> Policy {
        Policy { replace, ..self }
    }

    /// Registers the policy's keys, and attaches all programs persistently. Does all of it or nothing.
    ///
    /// # Errors
    /// Those of [`Deployment::up`], and every [`PolicyError`] about interfaces.
    pub fn up(&self, registry: &Registry) -> Result<Up, PolicyError> {
        let interface = match &self.interface {
            Some(name) => Some((interface::index(name)?, name.as_str())),
            None => None,
        };
        let mut options = UpOptions {
            interface: interface.map(|(index, _)| index),
            xdp_mode: self.mode,
            cgroup: self.cgroup.clone(),
            netfilter: self.netfilter.clone(),
            replace: self.replace,
            ..UpOptions::default()
        };
        if self.manifest.is_some() && !self.netfilter.is_empty() {
            return Err(PolicyError::NetfilterGiven { file: self.file.clone() });
        }
        let specs = self.manifest.as_ref().map(setup::keys).transpose()?.unwrap_or_default();
        let keys = registry.register_provisionally(&specs)?;
        let mut object = BoundObject::from_bytes(&self.object, &self.file, registry)?;
        if let Some(manifest) = &self.manifest {
            options.netfilter = setup::netfilter(manifest)?;
            options.setup = setup::setup(manifest, object.open_object_mut(), interface)?;
        }
        let deployment = Deployment::up(&self.name, object, registry, &options)?;
        let new_keys = keys.new_keys().iter().map(|entry| *entry.key.name()).collect();
        keys.keep();
        let notes = self.notes(&deployment, interface);
        Ok(Up { replaced: deployment.replaced(), deployment, new_keys, notes })
    }

    fn notes(&self, deployment: &Deployment, interface: Option<(u32, &str)>) -> Vec<Note> {
        let Some(manifest) = &self.manifest else { return Vec::new() };
        let native = deployment.attached().iter().any(|deployed| deployed.xdp_mode == Some(XdpMode::Native));
        let never = interface.and_then(|(index, name)| Note::never_holds(manifest, index, name));
        let lost = if native { Note::lost_redirects(manifest) } else { None };
        never.into_iter().chain(lost).chain(Note::missing_interfaces(manifest)).collect()
    }
}

impl Up {
    /// Takes it down again, and removes the keys that were registered for it.
    ///
    /// # Errors
    /// Those of [`Deployment::down`] and [`Registry::unregister`], except for keys that other programs use by now.
    pub fn undo(self, registry: &Registry) -> Result<(), PolicyError> {
        Deployment::down(self.deployment.name(), &Location::from(registry))?;
        for key in &self.new_keys {
            match keys::unregister(registry, key, &self.deployment) {
                Ok(_) | Err(RegistryError::KeyInUse { .. } | RegistryError::UnknownKey { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
