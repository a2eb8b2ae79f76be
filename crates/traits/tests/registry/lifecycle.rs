//! Creating, opening and removing registries.

use std::{ffi::CStr, fs, io, os::unix::fs::PermissionsExt, ptr, thread};

use libbpf_rs::{MapCore, MapFlags};
use packet_traits::{
    KeyType, Layout, Merge,
    bpffs::{self, BpffsError},
    registry::{Registry, RegistryError},
};

use packet_traits_lab::{KernelFeature, kernel_has};

use super::{options, registry, registry_name, spec};

#[test]
fn a_registry_keeps_what_it_was_created_with() {
    let Some(bpffs) = super::bpffs() else { return };
    let error = options(&bpffs).open().unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("traits registry create default"), "{error}");

    let (flow, packet) = if KernelFeature::LongMetadata.is_here() { (96, 40) } else { (32, 0) };
    let layout = Layout::new(flow, packet).unwrap();
    let made = options(&bpffs).layout(layout).create().unwrap();
    let opened = options(&bpffs).open().unwrap();
    assert_eq!((opened.layout(), opened.id()), (layout, made.id()));
    assert_eq!((opened.nonces(), opened.created_at()), (made.nonces(), made.created_at()));
    assert_eq!(opened.dir(), bpffs.path().join("packet_traits/default"));
    assert!(options(&bpffs).create().unwrap_err().to_string().contains("already exists"));
    assert_eq!(options(&bpffs).open_or_create().unwrap().id(), made.id());
    let error = options(&bpffs).layout(Layout::DEFAULT).open_or_create().unwrap_err();
    assert!(matches!(error, RegistryError::OtherLayout { .. }), "{error}");
    assert_eq!(fs::metadata(opened.dir()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn registries_of_other_names_are_separate() {
    let Some((bpffs, first)) = registry(48, 48) else { return };
    let second = options(&bpffs).name(registry_name("lab-2")).open_or_create().unwrap();
    assert_ne!(first.id(), second.id());
    assert_ne!(first.nonces(), second.nonces());
    first.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    second.register(&spec("tenant", KeyType::U64, Merge::KeepFirst)).unwrap();
    options(&bpffs).remove(false).unwrap();
    assert_eq!(options(&bpffs).name(registry_name("lab-2")).open().unwrap().list().unwrap().len(), 1);
    assert!(matches!(options(&bpffs).open(), Err(RegistryError::NotFound { .. })));
    assert!(matches!(options(&bpffs).remove(true), Err(RegistryError::NotFound { .. })));
}

#[test]
fn an_oversize_area_must_be_asked_for() {
    let Some(bpffs) = super::bpffs() else { return };
    if !kernel_has(KernelFeature::LongMetadata) {
        return;
    }
    let oversize = options(&bpffs).layout(Layout::new(128, 96).unwrap());
    assert!(matches!(oversize.create(), Err(RegistryError::Oversize { area_len: 224, .. })));
    assert!(matches!(oversize.open(), Err(RegistryError::NotFound { .. })));
    assert_eq!(oversize.allow_oversize(true).create().unwrap().layout().area_len(), 224);
}

#[test]
fn what_a_killed_creator_left_is_cleared() {
    let Some((bpffs, _)) = registry(48, 48) else { return };
    let parent = bpffs.path().join("packet_traits");
    for left in ["_new", "_old"] {
        let dir = options(&bpffs).name(registry_name("half")).create().unwrap().dir().to_owned();
        fs::remove_file(dir.join("keys")).unwrap();
        fs::rename(dir, parent.join(left)).unwrap();
    }
    let whole = options(&bpffs).name(registry_name("whole"));
    whole.create().unwrap();
    assert!(!parent.join("_new").exists());
    whole.remove(false).unwrap();
    assert!(!parent.join("_old").exists());
}

#[test]
fn what_others_pinned_is_not_removed_unasked() {
    let Some((bpffs, registry)) = registry(48, 48) else { return };
    fs::create_dir_all(registry.dir().join("links/eth0")).unwrap();
    let error = options(&bpffs).remove(false).unwrap_err();
    assert_eq!(error.errno(), libc::ENOTEMPTY);
    assert!(error.to_string().contains("links"), "{error}");
    assert!(registry.dir().join("links/eth0").exists());
    options(&bpffs).remove(true).unwrap();
    assert!(!registry.dir().exists());
}

#[test]
fn anchors_are_what_programs_published() {
    let Some((_bpffs, registry)) = registry(48, 48) else { return };
    assert_eq!(registry.anchors().unwrap(), [0; 16]);
    let map = registry.anchors_map();
    assert_eq!((map.name().to_str(), map.value_size(), map.max_entries()), (Some("pt_anchors"), 64, 513));
    let mut published = [0u32; 16];
    published[..2].copy_from_slice(&[256, 192]);
    let value: Vec<u8> = published.into_iter().flat_map(u32::to_ne_bytes).collect();
    map.update(&[0; 4], &value, MapFlags::ANY).unwrap();
    assert_eq!(registry.anchors().unwrap(), published);
}

/// In a mount namespace of its own, which ends with the thread: neither on a host whose bpffs is mounted nor on one whose
/// bpffs is not, the registry must be made on one that nobody else sees.
#[test]
fn no_bpffs_is_mounted_that_goes_with_the_mount_namespace() {
    if super::bpffs().is_none() {
        return;
    }
    let at = |root: &str| bpffs::require(root.as_ref());
    let mounts_of_init = std::fs::read_to_string("/proc/1/mountinfo").unwrap();
    let mounted_for_init =
        mounts_of_init.lines().any(|line| line.contains(" /sys/fs/bpf ") && line.contains(" - bpf "));
    let apart = thread::spawn(move || {
        own_mounts(c"/sys/fs/bpf");
        for created in [Registry::options().create(), Registry::options().open_or_create()] {
            match created {
                Err(RegistryError::Bpffs(BpffsError::Hidden)) if mounted_for_init => {}
                Err(RegistryError::Bpffs(BpffsError::Apart)) if !mounted_for_init => {}
                other => panic!("{other:?}"),
            }
            assert!(at(bpffs::DEFAULT_ROOT).is_err());
        }
    });
    apart.join().unwrap();
    assert_eq!(std::fs::read_to_string("/proc/1/mountinfo").unwrap(), mounts_of_init);
}

/// Gives this thread mounts of its own, without what is mounted at `hide`.
fn own_mounts(hide: &CStr) {
    let check = |ret: libc::c_int| assert_eq!(ret, 0, "{}", io::Error::last_os_error());
    // SAFETY: unshare takes flags only; it affects this thread alone.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) });
    // SAFETY: `/` is a C string; what is null is not used when only the propagation changes.
    check(unsafe {
        libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), libc::MS_REC | libc::MS_PRIVATE, ptr::null())
    });
    // SAFETY: `hide` is a C string. It fails with EINVAL once nothing is mounted there any more.
    while unsafe { libc::umount2(hide.as_ptr(), libc::MNT_DETACH) } == 0 {}
}
