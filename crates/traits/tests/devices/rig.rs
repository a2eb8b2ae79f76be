//! What all devices share, because it takes long to load: a registry, the programs, and a cgroup whose sockets have the
//! socket options. It lives on a thread of its own, which does one thing after another.

use std::{
    any::Any,
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{OnceLock, mpsc},
    thread,
};

use packet_traits::{
    Layout,
    attach::{Attachment, CgroupHook, cgroup},
    bind::{BoundObject, LoadedObject},
    socket_programs::{AttachOptions, SocketPrograms},
};

use packet_traits_lab::{Cgroup, KernelFeature, Netns};

use crate::common::{Lab, compile, load_bound, program, register, sockets::SOCKET_KEYS};

pub(crate) struct Rig {
    pub(crate) object: LoadedObject,
    /// Whether there are netfilter programs (Linux 6.4).
    pub(crate) netfilter: bool,
    _attached: Attachment,
    _lab: Lab,
    cgroup: Cgroup,
}

impl Rig {
    /// # Errors
    /// Why not, where the kernel cannot carry what the tests set.
    fn new() -> Result<Rig, String> {
        let lab = Lab::fitting();
        if lab.registry.layout() != Layout::DEFAULT {
            return Err("keep-first keys need XDP metadata of more than 32 bytes, which came with Linux 6.8".into());
        }
        register(&lab.registry, SOCKET_KEYS);
        let netfilter = KernelFeature::NetfilterLinks.is_here();
        let mut bound = BoundObject::from_bytes(&compile("devices"), "devices", &lab.registry).unwrap();
        for mut program in bound.open_object_mut().progs_mut() {
            let of_netfilter = ["pre_routing", "local_in"].contains(&program.name().to_str().unwrap());
            program.set_autoload(netfilter || !of_netfilter);
        }
        let object = load_bound(bound);
        let cgroup = Cgroup::new().unwrap();
        let options = AttachOptions {
            cgroup: Some(cgroup.path().to_owned()),
            sockets: Some(8),
            slots: Some(256),
            pending_syns: Some(64),
            ..AttachOptions::default()
        };
        SocketPrograms::attach(&lab.registry, &options).unwrap_or_else(|error| panic!("{error}"));
        let ingress = program(&object, "cgroup_ingress");
        let attached = cgroup::attach_path(ingress.as_fd(), cgroup.path(), CgroupHook::Ingress).unwrap();
        Ok(Rig { object, netfilter, _attached: attached, _lab: lab, cgroup })
    }

    /// Runs `f` in a namespace and in the cgroup.
    pub(crate) fn inside<R: Send>(&self, netns: &Netns, f: impl FnOnce() -> R + Send) -> R {
        self.cgroup.enter(|| netns.enter(f))
    }
}

type Job = Box<dyn FnOnce(&Result<Rig, String>) + Send>;

/// Runs `f` with the rig, when those that came before are done.
///
/// # Errors
/// Why there is none on this kernel, or what `f` returns.
pub(crate) fn with_rig<R: Send + 'static>(
    f: impl FnOnce(&Rig) -> Result<R, String> + Send + 'static,
) -> Result<R, String> {
    static JOBS: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let serve = move || {
            let rig = Rig::new();
            jobs.iter().for_each(|job| job(&rig));
        };
        thread::Builder::new().name("rig".into()).spawn(serve).unwrap();
        sender
    });
    let (sender, result) = mpsc::channel::<Result<Result<R, String>, Box<dyn Any + Send>>>();
    let job = move |rig: &Result<Rig, String>| {
        let run = || rig.as_ref().map_err(Clone::clone).and_then(f);
        drop(sender.send(catch_unwind(AssertUnwindSafe(run))));
    };
    jobs.send(Box::new(job)).expect("the rig could not be made: see above");
    let result = result.recv().expect("the rig could not be made: see above");
    result.unwrap_or_else(|panic| match panic.downcast::<String>() {
        // said on this thread, too, whose output is the test's
        Ok(message) => panic!("{message}"),
        Err(panic) => resume_unwind(panic),
    })
}
