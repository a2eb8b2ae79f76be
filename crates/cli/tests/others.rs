//! What other users of the host put in the command's way: folders that are taken first, files under names that it will use.

mod common;

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use common::{Traits, compile_bpf, compile_example, on_host, text};

const NOBODY: u32 = 65534;

/// Runs a script with a bpffs that everybody may write to, as mount(8) makes one, and `$NOBODY` in front of what nobody does.
fn beside_others(script: &str) -> (String, String) {
    let set_up = "mount -t bpf bpf /sys/fs/bpf
        NOBODY='setpriv --reuid 65534 --regid 65534 --clear-groups'
        cd /sys/fs/bpf";
    let output = on_host(&format!("{set_up}\n{script}"));
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_bpffs_that_others_may_write_to_is_refused() {
    let Some(_) = Traits::new() else { return };
    for command in ["registry create", "keys list", "registry remove --force", "status", "down edge", "sockets status"]
    {
        let (printed, said) = beside_others(&format!("$TRAITS {command}; echo status $?; ls -d packet_*"));
        assert_eq!(printed, "status 1\n", "{command}: {said}");
        for part in ["others than root may write", "mode 1777", "mount -t bpf -o mode=0700 bpf /sys/fs/bpf"] {
            assert!(said.contains(part), "{command}: {said}");
        }
    }
    // what is advised
    let (printed, said) = beside_others(
        "mount -t bpf -o mode=0700 bpf /sys/fs/bpf
        $TRAITS registry create && $TRAITS keys add tenant u32",
    );
    assert!(printed.contains("tenant: "), "{said}");
    let (printed, said) =
        beside_others("chown 0:0 . && chmod 0700 .; $TRAITS registry create && $TRAITS keys add tenant u32");
    assert!(printed.contains("tenant: "), "{said}");
}

#[test]
fn folders_that_others_made_are_refused() {
    let Some(_) = Traits::new() else { return };
    for folders in ["packet_traits", "packet_traits packet_traits/default"] {
        for command in ["registry create", "keys list", "registry remove --force"] {
            let script = format!(
                "$NOBODY sh -c 'umask 0; mkdir {folders}'; chmod 0700 .
                timeout 20 $TRAITS {command}; echo status $?; find packet_traits"
            );
            let (printed, said) = beside_others(&script);
            assert!(printed.starts_with("status 1\npacket_traits\n"), "{command}: {printed}{said}");
            let there = printed.lines().count() - 1;
            assert_eq!(there, folders.split(' ').count(), "nothing is made there: {command}: {printed}");
            for part in ["packet_traits is a folder of user 65534", "`rm -r "] {
                assert!(said.contains(part), "{command}: {said}");
            }
        }
    }
    for command in ["status", "down edge"] {
        let script = "$NOBODY mkdir packet_traits_up; chmod 0700 .; $TRAITS registry create 2>&1; $TRAITS ";
        let (_, said) = beside_others(&format!("{script}{command}"));
        assert!(said.contains("packet_traits_up is a folder of user 65534"), "{command}: {said}");
    }
    let script =
        "chmod 0700 .; $TRAITS registry create >/dev/null 2>&1; chmod 0775 packet_traits/default; $TRAITS keys list";
    let (_, said) = beside_others(script);
    assert!(
        said.contains("packet_traits/default is a folder that others than root may write to (mode 0775)"),
        "{said}"
    );
    let (_, said) = beside_others(
        "$NOBODY sh -c 'mkdir mine; ln -s mine packet_traits'; chmod 0700 .; chown -h 0:0 packet_traits
        $TRAITS registry create",
    );
    assert!(said.contains("packet_traits is no folder"), "{said}");
}

/// A folder like /tmp: every user may create files in it, and only the owner of a file may remove it.
fn shared_folder(traits: &Traits) -> PathBuf {
    let folder = traits.folder.path().join("shared");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o1777)).unwrap();
    folder
}

#[test]
fn bytes_that_are_no_text_end_no_process() {
    let Some(traits) = Traits::new() else { return };
    traits.create_registry("default");
    traits.ok("keys add tenant u32");
    let whole = fs::read(compile_example("cgroup_count", traits.folder.path())).unwrap();
    let broken = traits.folder.path().join("broken.o");
    let bind = format!("bind {} -o {} --check -v", broken.display(), traits.folder.path().join("out.o").display());
    // names of sections and symbols, the licence, names of types; an example of each, and all over the file
    let names = ["cgroup_skb/ingress", "pt_anchors", "Dual MIT/GPL", "iphdr", "license", ".rodata"];
    let places = names.iter().filter_map(|name| whole.windows(name.len()).position(|window| window == name.as_bytes()));
    let mut refused = 0;
    for place in places.chain((0..whole.len()).step_by(whole.len() / 60)) {
        let mut bytes = whole.clone();
        bytes[place] = 0xff;
        fs::write(&broken, bytes).unwrap();
        let output = traits.run(&bind);
        assert!(matches!(output.status.code(), Some(0 | 1)), "byte {place}: {output:?}");
        refused += usize::from(text(&output.stderr).contains("that is no text (UTF-8)"));
    }
    assert!(refused >= 3, "{refused}");
}

/// Both nonces and the keys for tags and checks, from a bound object.
fn nonces(bound: &[u8]) -> [u64; 6] {
    let area = bound.windows(7).position(|window| window == b"PTRAREA").unwrap();
    [24, 32, 64, 72, 80, 88].map(|at| u64::from_ne_bytes(*bound[area + at..].first_chunk().unwrap()))
}

/// A program that compares what it reads with the nonce, as all do, and then reads where it may not.
const REFUSED: &str = r#"
#include <linux/bpf.h>
#include <packet_traits/traits.bpf.h>
TRAIT_KEY(tenant, __u32);
SEC("xdp")
int refused(struct xdp_md *ctx)
{
	__u32 tenant = 0;

	if (trait_set(ctx, tenant, 7) == 0 && trait_get(ctx, tenant, &tenant) > 0)
		return *(volatile int *)(long)tenant;
	return XDP_PASS;
}
char LICENSE[] SEC("license") = "Dual MIT/GPL";
"#;

#[test]
fn no_output_has_a_nonce_in_it() {
    let Some(traits) = Traits::new() else { return };
    traits.create_registry("default");
    traits.ok("keys add tenant u32");
    let source = traits.folder.path().join("refused.bpf.c");
    fs::write(&source, REFUSED).unwrap();
    let object = compile_bpf(&source, traits.folder.path());
    let bound = traits.folder.path().join("bound.o");
    traits.ok(&format!("bind {} -o {}", object.display(), bound.display()));
    let nonces = nonces(&fs::read(&bound).unwrap());
    for line in [
        format!("bind {} -o {} --check -v", object.display(), bound.display()),
        format!("bind {} -o {} --check -vv", object.display(), bound.display()),
        format!("up {} --dev lo -vv", object.display()),
    ] {
        let output = traits.run(&line);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {said}");
        assert!(said.contains("<nonce>"), "{line}: {said}");
        for nonce in nonces.into_iter().flat_map(|nonce| [nonce, nonce | 1, nonce >> 32, u64::from(nonce as u32)]) {
            let signed = nonce.cast_signed();
            for shown in [format!("{nonce:x}"), format!("={nonce}"), format!("={signed}")] {
                assert!(shown.len() < 6 || !said.contains(&shown), "{line}: {shown}: {said}");
            }
        }
    }
}

#[test]
fn bound_objects_are_not_written_to_where_others_want_them() {
    let Some(traits) = Traits::new() else { return };
    traits.create_registry("default");
    traits.ok("keys add tenant u32");
    let object = compile_example("cgroup_count", traits.folder.path());
    let shared = shared_folder(&traits);
    let theirs = |name: &str| {
        let path = shared.join(name);
        lchown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        path
    };
    let bind = |to: &Path| format!("bind {} -o {}", object.display(), to.display());

    // a file of theirs is replaced, not written to
    fs::write(shared.join("out.o"), "theirs").unwrap();
    let kept = fs::File::open(shared.join("out.o")).unwrap();
    let out = theirs("out.o");
    traits.ok(&bind(&out));
    let (written, was) = (fs::metadata(&out).unwrap(), kept.metadata().unwrap());
    assert_eq!((written.uid(), written.mode() & 0o777), (0, 0o600));
    assert_eq!((was.len(), was.nlink()), (6, 0));

    // where they lead to is neither replaced nor made
    for (name, target) in [("link", "../victim"), ("dangling", "../nothing")] {
        fs::write(traits.folder.path().join("victim"), "whole").unwrap();
        symlink(target, shared.join(name)).unwrap();
        let error = traits.fails(&bind(&theirs(name)), 1);
        assert!(error.contains("is a link of user 65534, in a folder that others may write to"), "{error}");
        assert_eq!(fs::read(traits.folder.path().join("victim")).unwrap(), b"whole");
        assert!(!traits.folder.path().join("nothing").exists());
    }
    assert!(Command::new("mkfifo").arg(shared.join("pipe")).status().unwrap().success());
    let error = traits.fails(&bind(&theirs("pipe")), 1);
    assert!(error.contains("is no file of user 65534"), "{error}");
    let left: Vec<_> = fs::read_dir(&shared).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "no other file is left there: {left:?}");

    // one's own are followed
    symlink("../own.o", shared.join("own")).unwrap();
    traits.ok(&bind(&shared.join("own")));
    assert!(fs::metadata(traits.folder.path().join("own.o")).unwrap().len() > 6);
}
