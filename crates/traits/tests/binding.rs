//! Binding finds what is wrong before a program is loaded, changes nothing then, and what it writes any loader can load.

mod common;

use std::{
    ffi::CString,
    io::{BufRead, BufReader},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileTypeExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use common::{Lab, TEST_PORT, attach_tc, compile_with, name, record, spec, test_run};
use libbpf_rs::{MapCore, MapFlags, MapHandle, ObjectBuilder};
use packet_traits::{
    KeyType, Layout, Merge, TraitsView, Value,
    attach::{Direction, cgroup::cgroup_root},
    bind::{BindError, BoundObject, bind_file, bind_open_object},
    registry::{Registry, RegistryError},
};
use packet_traits_lab::{Family, Pair, left_out, recv_numbered, send_numbered, udp_socket};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Compiles C from a string.
    fn compile(&self, name: &str, text: &str, extra: &[&str]) -> PathBuf {
        let source = self.write(&format!("{name}.bpf.c"), text.as_bytes());
        self.write(&format!("{name}.bpf.o"), &compile_with(packet_traits_lab::clang(), &source, extra))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // left behind, it is in the build's own folder
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const LICENSE: &str = "char LICENSE[] SEC(\"license\") = \"Dual MIT/GPL\";\n";

/// An XDP program that sets the tenant, with these declarations.
fn source(declarations: &str, body: &str) -> String {
    format!(
        "#include <linux/bpf.h>\n#include <linux/in.h>\n#include <linux/in6.h>\n#include <linux/types.h>\n\
         #include <packet_traits/traits.bpf.h>\n{declarations}\n\
         SEC(\"xdp\") int first(struct xdp_md *ctx) {{ {body}; return XDP_PASS; }}\n{LICENSE}"
    )
}

fn tenant_source() -> String {
    source("TRAIT_KEY(tenant, __u32);", "trait_set(ctx, tenant, 7)")
}

fn tenant_lab() -> Lab {
    let lab = Lab::fitting();
    lab.registry.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    lab
}

/// Binds a file, which must fail and leave the output as it was. Returns what it says.
#[track_caller]
fn refused(folder: &Folder, input: &Path, registry: &Registry, words: &[&str]) -> BindError {
    let output = folder.write("output.o", b"as before");
    let error = match bind_file(input, &output, registry) {
        Ok(_) => panic!("{} was bound", input.display()),
        Err(error) => error,
    };
    assert_eq!(std::fs::read(&output).unwrap(), b"as before", "{error}");
    std::fs::remove_file(&output).unwrap();
    assert!(bind_file(input, &output, registry).is_err());
    assert!(!output.exists(), "{error}");
    // not in the file's folder either
    let left: Vec<_> = std::fs::read_dir(&folder.0)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains("output"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let text = error.to_string();
    for word in words.iter().copied().chain([input.file_name().unwrap().to_str().unwrap()]) {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    error
}

#[test]
fn a_key_the_registry_does_not_have_is_named_with_those_it_has() {
    if !common::area_enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("unknown"));
    lab.registry.register(&spec("flow_id", KeyType::U64, Merge::Block)).unwrap();
    let input = folder.compile("stray", &source("TRAIT_KEY(stray, __u32);", "trait_set(ctx, stray, 7)"), &[]);
    let error = refused(&folder, &input, &lab.registry, &["stray", "tenant", "flow_id", "default", "traits keys add"]);
    assert!(matches!(error, BindError::UnknownKey { .. }));
    let empty = lab.another("empty", Layout::DEFAULT);
    refused(&folder, &input, &empty, &["stray", "empty", "no keys"]);
}

#[test]
fn c_types_fit_the_registered_types_they_should_and_no_others() {
    if !common::area_enabled() {
        return;
    }
    use KeyType::{Flag, I64, Ipv4, Ipv6, Mac, Timestamp, U8, U16, U32, U64, U128, Uuid};
    let declarations = "struct mac { __u8 byte[8]; };\nstruct uuid { __u8 byte[16]; };\n\
         typedef __u8 bytes4[4];\ntypedef __u8 bytes8[8];\ntypedef __u8 bytes16[16];\n\
         typedef __u32 tenant_id;\ntypedef const tenant_id fixed_tenant_id;\n\
         union address4 { __be32 whole; __u8 byte[4]; };\n\
         enum verdict { ACCEPT, DROP };\nenum signed_verdict { LESS = -1, MORE = 1 };\n\
         typedef __int128 signed16;\ntypedef unsigned __int128 unsigned16;\n";
    let lab = Lab::empty(Layout::DEFAULT);
    let registries: Vec<(KeyType, Registry)> = KeyType::ALL
        .into_iter()
        .map(|key_type| {
            let registry = lab.another(key_type.name(), Layout::DEFAULT);
            registry.register(&spec("k", key_type, Merge::Block)).unwrap();
            (key_type, registry)
        })
        .collect();
    let folder = Folder::new("types");
    for (c_type, fits) in [
        ("struct trait_flag", &[Flag][..]),
        ("__u8", &[U8]),
        ("_Bool", &[U8]),
        ("__s8", &[]),
        ("__u16", &[U16]),
        ("__be16", &[]),
        ("__s16", &[]),
        ("__u32", &[U32, Ipv4]),
        ("unsigned int", &[U32, Ipv4]),
        ("tenant_id", &[U32, Ipv4]),
        ("fixed_tenant_id", &[U32, Ipv4]),
        ("volatile __u32", &[U32, Ipv4]),
        ("enum verdict", &[U32, Ipv4]),
        ("__s32", &[]),
        ("__be32", &[Ipv4]),
        ("struct in_addr", &[Ipv4]),
        ("union address4", &[Ipv4]),
        ("bytes4", &[Ipv4]),
        ("__u64", &[U64, Timestamp, Mac]),
        ("unsigned long", &[U64, Timestamp, Mac]),
        ("__s64", &[I64]),
        ("__be64", &[]),
        ("struct mac", &[Mac]),
        ("bytes8", &[Mac]),
        ("unsigned16", &[U128]),
        ("signed16", &[]),
        ("struct in6_addr", &[U128, Ipv6, Uuid]),
        ("struct uuid", &[U128, Ipv6, Uuid]),
        ("bytes16", &[U128, Ipv6, Uuid]),
    ] {
        let text = source(&format!("{declarations}TRAIT_KEY(k, {c_type});"), "trait_is_set(ctx, k)");
        let input = folder.compile("typed", &text, &[]);
        for (key_type, registry) in &registries {
            if fits.contains(key_type) {
                let binding = bind_file(&input, &folder.file("bound.o"), registry)
                    .unwrap_or_else(|error| panic!("{c_type} as {key_type}: {error}"));
                assert_eq!(binding.keys()[0].key.key_type(), *key_type);
            } else {
                let error = refused(&folder, &input, registry, &["key k", key_type.name()]);
                let BindError::Type { declared, .. } = &error else { panic!("{c_type}: {error}") };
                let word = c_type.rsplit(' ').next().unwrap();
                assert!(declared.contains(word) || c_type.contains(declared.as_str()), "{c_type}: {error}");
            }
        }
    }
}

#[test]
fn another_merge_policy_than_the_registered_one_is_refused_with_the_word_to_use() {
    if !common::area_enabled() {
        return;
    }
    let folder = Folder::new("merge");
    let lab = Lab::empty(Layout::DEFAULT);
    for (declared, registered, word) in
        [("TRAIT_KEEP_FIRST", Merge::Block, "TRAIT_BLOCK"), ("TRAIT_BLOCK", Merge::KeepFirst, "TRAIT_KEEP_FIRST")]
    {
        let registry = lab.another(registered.name(), Layout::DEFAULT);
        registry.register(&spec("tenant", KeyType::U32, registered)).unwrap();
        let text = source(&format!("TRAIT_KEY(tenant, __u32, {declared});"), "trait_set(ctx, tenant, 7)");
        let input = folder.compile("merge", &text, &[]);
        let error = refused(&folder, &input, &registry, &["tenant", word, "keep-first", "block"]);
        assert!(matches!(error, BindError::MergePolicy { .. }));
    }
    // a policy that there is not
    let input = folder.compile("odd", &source("TRAIT_KEY(tenant, __u32, 9);", "trait_set(ctx, tenant, 7)"), &[]);
    refused(&folder, &input, &lab.another("odd", Layout::DEFAULT), &["tenant", "merge policy 9"]);
}

#[test]
fn a_name_that_is_none_is_refused() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("names"));
    for bad in ["Tenant", "1st", "ten ant", "ten/ant"] {
        let text = source(&format!("TRAIT_KEY_NAMED(k, \"{bad}\", __u32);"), "trait_set(ctx, k, 7)");
        let input = folder.compile("named", &text, &[]);
        let error = refused(&folder, &input, &lab.registry, &[bad]);
        assert!(matches!(error, BindError::Descriptor { .. }), "{error}");
    }
}

#[test]
fn one_wrong_key_keeps_all_the_others_unbound() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("all"));
    let text = source(
        "TRAIT_KEY(tenant, __u32); TRAIT_KEY(stray, __u8);",
        "trait_set(ctx, tenant, 7); trait_set(ctx, stray, 1)",
    );
    let input = folder.compile("two", &text, &[]);
    refused(&folder, &input, &lab.registry, &["stray"]);

    let bytes = std::fs::read(&input).unwrap();
    let mut open = ObjectBuilder::default().open_memory(&bytes).unwrap();
    assert!(bind_open_object(&mut open, "two", &lab.registry).is_err());
    let object = open.load().unwrap();
    let program = object.progs().next().unwrap();
    assert_eq!(test_run::xdp(program.as_fd(), &[], &[0; 64]).metadata, [0u8; 0], "it is still unbound");
}

#[test]
fn a_bound_object_is_bound_again_to_its_registry_and_to_no_other() {
    if !common::area_enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("again"));
    let (input, once, twice) =
        (folder.compile("tenant", &tenant_source(), &[]), folder.file("once.o"), folder.file("twice.o"));
    bind_file(&input, &once, &lab.registry).unwrap();
    bind_file(&once, &twice, &lab.registry).unwrap();
    assert_eq!(std::fs::read(&once).unwrap(), std::fs::read(&twice).unwrap());
    // in place
    bind_file(&twice, &twice, &lab.registry).unwrap();
    assert_eq!(std::fs::read(&once).unwrap(), std::fs::read(&twice).unwrap());
    let mode = std::fs::metadata(&twice).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds the registry's secrets");

    let other = lab.another("other", Layout::DEFAULT);
    other.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    let id = format!("{:016x}", lab.registry.id());
    let error = refused(&folder, &once, &other, &["another registry", "other", &id, "as the compiler wrote it"]);
    assert!(matches!(error, BindError::OtherRegistry { .. }));

    // after the key has moved, binding again brings it up to date
    lab.registry.unregister(&name("tenant"), false).unwrap();
    lab.registry.register(&spec("first", KeyType::U32, Merge::Block)).unwrap();
    let moved = lab.registry.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    let binding = bind_file(&once, &twice, &lab.registry).unwrap();
    assert_eq!(binding.keys()[0].key, moved.key);
    assert_ne!(std::fs::read(&once).unwrap(), std::fs::read(&twice).unwrap());
}

#[test]
fn an_object_without_keys_is_told_what_to_include() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("none"));
    let text = format!(
        "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n\
         SEC(\"xdp\") int first(struct xdp_md *ctx) {{ return XDP_PASS; }}\n{LICENSE}"
    );
    let error = refused(&folder, &folder.compile("plain", &text, &[]), &lab.registry, &["traits.bpf.h", "TRAIT_KEY"]);
    assert!(matches!(error, BindError::NoKeys { .. }));
}

#[test]
fn an_object_without_type_information_is_told_to_be_compiled_with_it() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("btf"));
    let mut bytes = std::fs::read(folder.compile("whole", &tenant_source(), &[])).unwrap();
    for section in [&b".BTF\0"[..], b".BTF.ext\0"] {
        // the header does not compile without -g, so the sections are made to be something else
        let name = bytes.windows(section.len()).position(|window| window == section).unwrap();
        bytes[name + 1] = b'X';
    }
    let error = refused(&folder, &folder.write("no-btf.o", &bytes), &lab.registry, &["BTF", "-g"]);
    assert!(matches!(error, BindError::NoBtf { .. }), "{error}");

    // without debugging information, which is not that, it is bound like any other
    let stripped = folder.compile("stripped", &tenant_source(), &[]);
    let strip = ["llvm-strip", "llvm-strip-19", "llvm-strip-14"]
        .into_iter()
        .find(|strip| Command::new(strip).arg("--version").stdout(Stdio::null()).status().is_ok());
    match strip {
        None => left_out("an object without debugging information", "there is no llvm-strip"),
        Some(strip) => {
            assert!(Command::new(strip).arg("-g").arg(&stripped).status().unwrap().success());
            let bound = folder.file("bound.o");
            bind_file(&stripped, &bound, &lab.registry).unwrap();
            let object = BoundObject::open(&bound, &lab.registry).unwrap().load().unwrap();
            assert_tenant(&lab.registry, object.program("first").unwrap().as_fd());
        }
    }
}

/// Runs a program on a packet, which must get tenant 7.
#[track_caller]
fn assert_tenant(registry: &Registry, program: BorrowedFd<'_>) {
    let ran = test_run::xdp(program, &[], &[0; 64]);
    let view = TraitsView::open(&ran.metadata, &registry.layout(), &registry.nonces()).unwrap();
    let tenant = registry.lookup(&name("tenant")).unwrap().unwrap().key;
    assert_eq!(view.value(&tenant), Some(Value::U32(7)));
}

#[test]
fn what_is_not_a_whole_object_file_is_refused_in_words() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("damaged"));
    let whole = std::fs::read(folder.compile("whole", &tenant_source(), &[])).unwrap();
    const NONE: &str = "is not a BPF object file (ELF)";
    for (name, bytes, reason) in [
        ("empty.o", &b""[..], "it is empty"),
        ("text.o", b"int main;", "does not start like one"),
        ("zeroes.o", &[0; 4096], "does not start like one"),
        ("magic.o", b"\x7fELF", "damaged or cut short"),
    ] {
        let error = refused(&folder, &folder.write(name, bytes), &lab.registry, &[NONE, reason]);
        assert!(matches!(error, BindError::NotBpf { .. }), "{error:?}");
    }
    for cut in 1..64 {
        let len = whole.len() * cut / 64;
        refused(&folder, &folder.write("cut.o", &whole[..len]), &lab.registry, &[NONE, "cut short"]);
    }
    // whole, but not as libbpf wants it, for which it has a code of its own
    let odd = source(
        "TRAIT_KEY(tenant, __u32); char odd_version[3] SEC(\"version\") = { 1, 2, 3 };",
        "trait_set(ctx, tenant, 7)",
    );
    let odd = folder.compile("odd", &odd, &[]);
    let error = refused(&folder, &odd, &lab.registry, &["section, symbol or map definition"]);
    assert!(!error.to_string().contains("os error"), "{error}");
    // the host's own kind of object
    let main = folder.write("main.c", b"int main(void) { return 0; }");
    let native = folder.file("native.o");
    assert!(Command::new("cc").arg("-c").arg(main).arg("-o").arg(&native).status().unwrap().success());
    refused(&folder, &native, &lab.registry, &[NONE, "for another machine", "-target bpf"]);
    // a file that is no regular one
    let error = bind_file(Path::new("/dev/null"), &folder.file("output.o"), &lab.registry).unwrap_err();
    assert_eq!(error.to_string(), format!("/dev/null {NONE}: it is empty"));
    // files that cannot be read or written
    refused(&folder, &folder.file("missing.o"), &lab.registry, &["reading", "No such file"]);
    let error = bind_file(&folder.file("whole.bpf.o"), &folder.file("no/such/folder.o"), &lab.registry).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("writing") && text.contains("no/such/folder.o"), "{text}");
}

/// A registry from which another process takes away what binding requires.
#[test]
fn a_registry_that_is_damaged_after_it_was_opened_is_named() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("spoilt"));
    let bytes = std::fs::read(folder.compile("tenant", &tenant_source(), &[])).unwrap();
    let refusal = || BoundObject::from_bytes(&bytes, "tenant", &lab.registry).err();
    assert!(refusal().is_none());
    std::fs::remove_file(lab.registry.dir().join("anchors")).unwrap();
    let error = refusal().unwrap();
    assert!(matches!(error, BindError::Prepare { .. }), "{error}");
    assert!(error.to_string().contains("preparing tenant") && error.to_string().contains("No such file"), "{error}");

    let state = MapHandle::from_pinned_path(lab.registry.dir().join("state")).unwrap();
    state.update(&[0; 4], &vec![0xff; state.value_size() as usize], MapFlags::ANY).unwrap();
    let error = refusal().unwrap();
    assert!(matches!(error, BindError::Registry(RegistryError::Damaged { .. })), "{error}");
}

#[test]
fn descriptors_of_another_version_are_refused() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("version"));
    let mut bytes = std::fs::read(folder.compile("tenant", &tenant_source(), &[])).unwrap();
    let magic = bytes.windows(8).position(|window| window == b"PTRAREA\0").unwrap();
    bytes[magic + 8..magic + 12].copy_from_slice(&3u32.to_ne_bytes());
    let error =
        refused(&folder, &folder.write("newer.o", &bytes), &lab.registry, &["version 3", "version 2", "header"]);
    assert!(matches!(error, BindError::Version { found: 3, .. }));
}

#[test]
fn an_open_object_is_bound_as_a_skeleton_does_it() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("skeleton"));
    let bytes = std::fs::read(folder.compile("tenant", &tenant_source(), &[])).unwrap();
    let mut open = ObjectBuilder::default().open_memory(&bytes).unwrap();
    let binding = bind_open_object(&mut open, "skeleton", &lab.registry).unwrap();
    let object = open.load().unwrap();
    assert!(binding.holds(&lab.registry).unwrap());
    let program = object.progs().next().unwrap();
    assert_tenant(&lab.registry, program.as_fd());
    let anchors = object.maps().find(|map| map.name() == "pt_anchors").unwrap();
    assert_eq!(anchors.info().unwrap().info.id, lab.registry.anchors_map().info().unwrap().info.id);

    // as long as it is loaded, its key is in use
    let error = lab.registry.unregister(&name("tenant"), false).unwrap_err();
    assert!(matches!(error, RegistryError::KeyInUse { .. }), "{error}");
    drop(object);
    lab.registry.unregister(&name("tenant"), false).unwrap();
    assert!(!binding.holds(&lab.registry).unwrap());
}

#[test]
fn a_key_that_goes_between_binding_and_loading_is_noticed() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("race"));
    let input = folder.compile("tenant", &tenant_source(), &[]);
    let bound = BoundObject::open(&input, &lab.registry).unwrap();
    lab.registry.unregister(&name("tenant"), false).unwrap();
    let error = bound.load().err().unwrap();
    assert!(matches!(error, BindError::Changed { .. }), "{error}");
    assert!(error.to_string().contains("bind and load it again"), "{error}");
    lab.assert_unused();
}

#[test]
fn a_key_used_by_number_that_goes_between_binding_and_loading_is_noticed() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("race-by-number"));
    let text = format!(
        "#include <linux/bpf.h>\n#include <packet_traits/rfc.bpf.h>\n\
         SEC(\"xdp\") int first(struct xdp_md *ctx)\n\
         {{ __u32 who = 7; bpf_xdp_trait_set(ctx, 0, &who, sizeof(who), 0); return XDP_PASS; }}\n{LICENSE}"
    );
    let input = folder.compile("numbered", &text, &[]);
    let open = || BoundObject::open(&input, &lab.registry).unwrap();

    let kept = open();
    assert!(kept.binding().keys().is_empty(), "it declares none");
    // a key more changes nothing for what was bound before
    lab.registry.register(&spec("later", KeyType::U8, Merge::Block)).unwrap();
    drop(kept.load().unwrap());

    let bound = open();
    lab.registry.unregister(&name("tenant"), false).unwrap();
    // registered again, it is another key
    lab.registry.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    let error = bound.load().err().unwrap();
    assert!(matches!(error, BindError::Changed { .. }), "{error}");
    lab.assert_unused();
    drop(open().load().unwrap());
}

#[test]
fn an_output_that_is_no_regular_file_is_written_to_and_stays_what_it_is() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("special"));
    let input = folder.compile("tenant", &tenant_source(), &[]);
    let plain = folder.file("plain.o");
    bind_file(&input, &plain, &lab.registry).unwrap();
    let bound = std::fs::read(&plain).unwrap();

    // the null device, and a link to it
    let null = folder.file("null");
    let path = CString::new(null.to_str().unwrap()).unwrap();
    // SAFETY: the path is a C string.
    let made = unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 3)) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    let to_null = folder.file("to-null");
    symlink("null", &to_null).unwrap();
    for output in [&null, &to_null] {
        bind_file(&input, output, &lab.registry).unwrap();
        assert!(std::fs::metadata(output).unwrap().file_type().is_char_device());
    }
    assert!(std::fs::symlink_metadata(&to_null).unwrap().is_symlink());

    // a pipe
    let pipe = folder.file("pipe");
    let path = CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: the path is a C string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0, "{}", std::io::Error::last_os_error());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).unwrap()
    });
    bind_file(&input, &pipe, &lab.registry).unwrap();
    assert_eq!(reader.join().unwrap(), bound);
    assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());

    // a folder
    let error = bind_file(&input, &folder.0, &lab.registry).unwrap_err();
    assert!(error.to_string().contains("directory"), "{error}");
}

#[test]
fn an_output_that_is_a_link_stays_one_and_what_it_leads_to_is_replaced() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("links"));
    let input = folder.compile("tenant", &tenant_source(), &[]);
    let plain = folder.file("plain.o");
    bind_file(&input, &plain, &lab.registry).unwrap();
    let bound = std::fs::read(&plain).unwrap();

    std::fs::create_dir(folder.file("there")).unwrap();
    std::fs::create_dir(folder.file("here")).unwrap();
    let (target, middle, link) = (folder.file("there/out.o"), folder.file("here/middle.o"), folder.file("link.o"));
    symlink("../there/out.o", &middle).unwrap();
    symlink(&middle, &link).unwrap();
    // at first it leads nowhere
    for before in [None, Some(b"as before")] {
        if let Some(before) = before {
            std::fs::write(&target, before).unwrap();
        }
        bind_file(&input, &link, &lab.registry).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), bound);
        assert!(std::fs::symlink_metadata(&target).unwrap().is_file());
        assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            (std::fs::read_link(&link).unwrap(), std::fs::read_link(&middle).unwrap()),
            (middle.clone(), PathBuf::from("../there/out.o"))
        );
        assert_eq!(std::fs::read_dir(folder.file("there")).unwrap().count(), 1, "nothing else is left there");
    }

    // a circle
    symlink("circle.o", folder.file("circle.o")).unwrap();
    let error = bind_file(&input, &folder.file("circle.o"), &lab.registry).unwrap_err();
    assert!(error.to_string().contains("symbolic links"), "{error}");
}

#[test]
fn a_refused_program_is_named_with_the_verifiers_last_word() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("refused"));
    let text = source("TRAIT_KEY(tenant, __u32);", "trait_set(ctx, tenant, 7); return *(int *)(long)ctx->data_end");
    let bound = BoundObject::open(&folder.compile("refused", &text, &[]), &lab.registry).unwrap();
    let error = bound.load().err().unwrap();
    let text = error.to_string();
    for word in ["refused.bpf.o", "first", "pkt_end", "-v"] {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    assert!(error.verifier_log().unwrap().lines().count() > 5);
}

/// Another loader's process.
struct PlainLoader {
    child: Child,
    anchors_id: u32,
}

impl PlainLoader {
    fn compile(folder: &Folder) -> PathBuf {
        let binary = folder.file("plain_loader");
        let output = Command::new("cc")
            .args(["-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&binary)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plain_loader.c"))
            .args(["-lbpf", "-lelf", "-lz"])
            .output()
            .expect("cc");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        binary
    }

    fn start(mut command: Command) -> PlainLoader {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let Some(id) = line.trim().strip_prefix("ready ") else {
            let output = child.wait_with_output().unwrap();
            panic!("{}", String::from_utf8_lossy(&output.stderr));
        };
        PlainLoader { anchors_id: id.parse().unwrap(), child }
    }

    fn stop(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn a_bound_file_loaded_by_another_loader_sets_traits_that_our_programs_read() {
    if !common::area_enabled() {
        return;
    }
    const PACKETS: u64 = 20;
    let (lab, folder) = (Lab::new(), Folder::new("plain"));
    let binary = PlainLoader::compile(&folder);
    let (input, output) = (folder.write("stages.bpf.o", &common::compile("stages")), folder.file("bound.o"));
    bind_file(&input, &output, &lab.registry).unwrap();

    let readers = lab.load("stages");
    let pair = Pair::new().unwrap();
    let rx = pair.rx();
    let _tc = attach_tc(&readers, "tc_ingress", rx, Direction::Ingress);
    let receiver = udp_socket(rx.netns(), rx.addr(Family::V4, TEST_PORT)).unwrap();
    let sender = udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).unwrap();

    let registrys_anchors = lab.registry.anchors_map().info().unwrap().info.id;
    for shared in [false, true] {
        let mut command = rx.netns().command(&binary);
        command.arg(&output).arg("assign").arg(rx.ifindex().to_string());
        if shared {
            command.arg(lab.registry.dir().join("anchors"));
        }
        let loader = PlainLoader::start(command);
        assert_eq!(loader.anchors_id == registrys_anchors, shared);

        for number in 0..PACKETS {
            send_numbered(&sender, rx.addr(Family::V4, TEST_PORT), number..number + 1, 64).unwrap();
            assert_eq!(recv_numbered(&receiver).unwrap(), number);
        }
        let records =
            record::Records::collect(&readers, |records| records.count(record::Stage::TcIngress) as u64 == PACKETS);
        let read: Vec<_> = records.at(record::Stage::TcIngress).collect();
        assert_eq!(read.len() as u64, PACKETS);
        for (number, record) in (0u64..).zip(read) {
            assert_eq!(record.present, record::HAS_ALL);
            assert_eq!((record.traits.seq, record.traits.tenant), (number, (number as u32).wrapping_mul(2654435761)));
        }
        loader.stop();
    }
}

#[test]
fn keys_of_a_program_that_another_loader_has_loaded_are_in_use_until_it_ends() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("in-use"));
    let binary = PlainLoader::compile(&folder);
    let (input, output) = (folder.compile("tenant", &tenant_source(), &[]), folder.file("bound.o"));
    bind_file(&input, &output, &lab.registry).unwrap();
    // a file is not a user
    lab.assert_unused();

    let pair = Pair::new().unwrap();
    let mut command = pair.rx().netns().command(&binary);
    command.arg(&output).arg("first").arg(pair.rx().ifindex().to_string());
    let loader = PlainLoader::start(command);
    let programs = lab.registry.programs().unwrap();
    assert_eq!(programs.len(), 1);
    assert_eq!(programs[0].name, "first");
    let error = lab.registry.unregister(&name("tenant"), false).unwrap_err();
    assert!(matches!(error, RegistryError::KeyInUse { .. }), "{error}");
    loader.stop();
    lab.assert_unused();
    lab.registry.unregister(&name("tenant"), false).unwrap();
}

#[test]
fn aya_loads_a_bound_file_and_its_programs_share_traits() {
    if !common::area_enabled() {
        return;
    }
    const PACKETS: u64 = 20;
    let (lab, folder) = (tenant_lab(), Folder::new("aya"));
    let (input, output) =
        (folder.write("other_loaders.bpf.o", &common::compile("other_loaders")), folder.file("bound.o"));
    bind_file(&input, &output, &lab.registry).unwrap();

    let pair = Pair::new().unwrap();
    let (rx, to) = (pair.rx(), pair.rx().addr(Family::V4, TEST_PORT));
    let receiver = udp_socket(rx.netns(), to).unwrap();
    let sender = udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).unwrap();
    let mut object = aya::Ebpf::load_file(&output).unwrap();
    let kept = rx.netns().enter(|| {
        let xdp: &mut aya::programs::Xdp = object.program_mut("assign").unwrap().try_into().unwrap();
        xdp.load().unwrap();
        xdp.attach(rx.name(), aya::programs::XdpMode::Driver).unwrap();
        let tc: &mut aya::programs::SchedClassifier = object.program_mut("at_tc").unwrap().try_into().unwrap();
        tc.load().unwrap();
        // before 6.6 aya attaches to a qdisc that is there
        let _ = aya::programs::tc::qdisc_add_clsact(rx.name());
        tc.attach(rx.name(), aya::programs::TcAttachType::Ingress).unwrap();
        let cgroup: &mut aya::programs::CgroupSkb = object.program_mut("at_cgroup").unwrap().try_into().unwrap();
        cgroup.load().unwrap();
        let root = std::fs::File::open(cgroup_root().unwrap()).unwrap();
        let (at, mode) = (aya::programs::CgroupSkbAttachType::Ingress, aya::programs::CgroupAttachMode::Single);
        cgroup.attach(root, at, mode).unwrap();
        object
    });
    for number in 0..PACKETS {
        send_numbered(&sender, to, number..number + 1, 64).unwrap();
        assert_eq!(recv_numbered(&receiver).unwrap(), number);
    }
    let counts = aya::maps::Array::<_, u64>::try_from(kept.map("counts").unwrap()).unwrap();
    assert_eq!([0, 1].map(|place| counts.get(&place, 0).unwrap()), [PACKETS; 2]);
}

#[test]
fn what_only_a_loader_can_resolve_is_left_to_it() {
    if !common::enabled() {
        return;
    }
    let (lab, folder) = (tenant_lab(), Folder::new("unresolved"));
    for (what, declaration, body) in [
        ("function", "extern int no_such_function(void) __ksym;", "trait_set(ctx, tenant, no_such_function())"),
        ("variable", "extern const int bpf_prog_active __ksym;", "trait_set(ctx, tenant, bpf_prog_active)"),
    ] {
        let text = source(&format!("TRAIT_KEY(tenant, __u32);\n{declaration}"), body);
        let (input, output) = (folder.compile(what, &text, &[]), folder.file("bound.o"));
        bind_file(&input, &output, &lab.registry).unwrap();
        ObjectBuilder::default().open_memory(&std::fs::read(&output).unwrap()).unwrap();
        let section = libbpf_rs::btf::Btf::from_path(&output).unwrap();
        assert!(section.type_by_name::<libbpf_rs::btf::types::DataSec<'_>>(".ksyms").is_some(), "{what}");
    }
}
