//! What `traits up` is given: an object file, with or without a policy in it, or a policy to compile.

use std::{error::Error, ffi::OsStr, fs, path::Path};

use libbpf_rs::libbpf_sys;
use packet_traits::bind::BindError;
use packet_traits_policy::{
    compile::Compiler,
    emit::{EmitOptions, emit},
    manifest::Manifest,
};

use crate::{Global, policy};

/// What the names of policies end in.
const POLICY_EXTENSION: &str = "traits";

/// An object, and what its policy says of it.
pub(super) struct Input {
    /// The object file's contents.
    pub(super) object: Vec<u8>,
    /// None if it was not made of a policy.
    pub(super) manifest: Option<Manifest>,
}

impl Input {
    /// Reads an object file, or compiles a policy.
    pub(super) fn read(file: &Path, global: &Global) -> Result<Input, Box<dyn Error>> {
        if file.extension() == Some(OsStr::new(POLICY_EXTENSION)) {
            let checked = policy::load(file, global)?;
            let emitted = emit(&checked.policy, &checked.sources, &EmitOptions::default())?;
            let object = Compiler::new(&libbpf_sys::API_HEADERS).compile(&emitted)?;
            return Ok(Input { object, manifest: Some(emitted.manifest) });
        }
        let object =
            fs::read(file).map_err(|source| BindError::File { action: "reading", path: file.to_owned(), source })?;
        // What is no object file at all, binding explains better.
        let manifest = match object.starts_with(b"\x7fELF") {
            true => Manifest::from_object(&object).map_err(|error| format!("{}: {error}", file.display()))?,
            false => None,
        };
        Ok(Input { object, manifest })
    }
}
