//! The doctor's compiled programs: each is loaded alone.

use std::os::fd::{AsFd, BorrowedFd};

use libbpf_rs::{MapCore, MapFlags};

use crate::{
    bind::{BindError, BoundObject, LoadedObject},
    registry::{KeySpec, Registry},
};
use packet_traits_core::{KeyName, KeyType};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/doctor.bpf.o"));

/// The key that bpf/doctor.bpf.c declares.
pub(super) const KEY: &str = "doctor";

/// `VALUE` in bpf/doctor.bpf.c.
pub(super) const VALUE: u32 = 0x646f_6374;

/// Registers the key that the programs use.
pub(super) fn register_key(registry: &Registry) -> Result<(), String> {
    let name = KeyName::new(KEY).map_err(|error| error.to_string())?;
    registry.register(&KeySpec::new(name, KeyType::U32)).map(drop).map_err(|error| error.to_string())
}

/// One of the programs.
pub(super) struct Loaded {
    object: LoadedObject,
    program: &'static str,
}

impl Loaded {
    /// Binds and loads the program with this name, and none of the others. `register_key` comes first.
    pub(super) fn new(registry: &Registry, program: &'static str) -> Result<Loaded, String> {
        let load = || -> Result<LoadedObject, BindError> {
            let mut bound = BoundObject::from_bytes(OBJECT, "the doctor's programs", registry)?;
            for mut other in bound.open_object_mut().progs_mut() {
                if other.name() != program {
                    other.set_autoload(false);
                }
            }
            bound.load()
        };
        Ok(Loaded { object: load().map_err(|error| error.to_string())?, program })
    }

    /// The program's descriptor.
    pub(super) fn with_fd<T>(&self, f: impl FnOnce(BorrowedFd<'_>) -> T) -> Result<T, String> {
        let program = self.object.program(self.program);
        program.map(|program| f(program.as_fd())).ok_or_else(|| format!("the object has no program {}", self.program))
    }

    /// How many packets it gave or read the trait.
    pub(super) fn packets(&self) -> Result<u32, String> {
        let value = self.map()?.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).map_err(|error| error.to_string())?;
        let count = value.and_then(|bytes| Some(u32::from_ne_bytes(*bytes.first_chunk()?)));
        count.ok_or_else(|| "the map doctor_packets is empty".to_owned())
    }

    /// Starts again from 0.
    pub(super) fn forget(&self) -> Result<(), String> {
        self.map()?.update(&0u32.to_ne_bytes(), &0u32.to_ne_bytes(), MapFlags::ANY).map_err(|error| error.to_string())
    }

    fn map(&self) -> Result<libbpf_rs::Map<'_>, String> {
        self.object.map("doctor_packets").ok_or_else(|| "the object has no map doctor_packets".to_owned())
    }
}
