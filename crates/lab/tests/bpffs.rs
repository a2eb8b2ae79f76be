//! A private bpffs works as a mounted one does, and is in no mount table.

mod bpf;

use std::fs::{self, File};
use std::io::ErrorKind;

use packet_traits_lab::{Bpffs, kernel_tests_enabled};

#[test]
fn pins_work_below_the_path() {
    if !kernel_tests_enabled() {
        return;
    }
    let (bpffs, other) = (Bpffs::new().unwrap(), Bpffs::new().unwrap());
    let root = bpffs.path();
    let map = bpf::create_map().unwrap();
    fs::create_dir_all(root.join("registry/deep")).unwrap();
    bpf::pin(&map, &root.join("registry/deep/first")).unwrap();
    fs::rename(root.join("registry/deep/first"), root.join("registry/second")).unwrap();
    let opened = bpf::open_pin(&root.join("registry/second")).unwrap();
    assert_eq!(bpf::map_id(&opened).unwrap(), bpf::map_id(&map).unwrap());
    assert_eq!(bpf::open_pin(&root.join("registry/deep/first")).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!other.path().join("registry").exists());

    let names = fs::read_dir(root.join("registry")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["deep", "second"]);

    fs::remove_file(root.join("registry/second")).unwrap();
    fs::remove_dir(root.join("registry/deep")).unwrap();
    assert!(fs::read_dir(root.join("registry")).unwrap().next().is_none());
}

#[test]
fn folder_can_be_locked() {
    if !kernel_tests_enabled() {
        return;
    }
    let bpffs = Bpffs::new().unwrap();
    let folder = bpffs.path().join("registry");
    fs::create_dir(&folder).unwrap();
    let holder = File::open(&folder).unwrap();
    holder.lock().unwrap();
    let second = File::open(&folder).unwrap();
    assert!(matches!(second.try_lock(), Err(fs::TryLockError::WouldBlock)));
    drop(holder);
    second.try_lock().unwrap();
}

#[test]
fn mount_is_in_no_table_and_children_find_the_path() {
    if !kernel_tests_enabled() {
        return;
    }
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let bpffs = Bpffs::new().unwrap();
    fs::create_dir(bpffs.path().join("seen")).unwrap();
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    let listed = std::process::Command::new("ls").arg(bpffs.path().join(".")).output().unwrap();
    assert!(String::from_utf8(listed.stdout).unwrap().contains("seen"));
}
