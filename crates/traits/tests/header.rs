//! The BPF header compiles without warnings and loads wherever it says it does: with the compilers and instruction sets
//! people have, with the kernel's own types and without, in every program type of its table, bound and not; misuse does
//! not compile. The example programs do what they say.

mod common;

use std::{
    collections::BTreeSet,
    fs::File,
    io::Write,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use common::{
    Lab, TEST_PORT, attach_cgroup, attach_netfilter, attach_tc, attach_tracing, attach_xdp, include_dir, repository,
    spec, test_run,
};
use libbpf_rs::{Linker, MapCore, MapFlags, ObjectBuilder, OpenObject};
use packet_traits::{
    KeyType, Layout, Merge, TraitsView, Value,
    attach::{CgroupHook, Direction, NetfilterHook, XdpMode},
    bind::{BoundObject, LoadedObject},
    registry::Registry,
};
use packet_traits_lab::{
    Family, Pair, clang, clang_version, clangs,
    frame::{Flow, IpPair},
    left_out, send_frame, udp_socket,
};

/// The instruction sets a compiler has: of no use are those that the kernels we need do not require.
fn cpus(compiler: &str) -> &'static [&'static str] {
    if clang_version(compiler) < 18 { &["v1", "v2", "v3"] } else { &["v1", "v2", "v3", "v4"] }
}

/// Compiles C from a string. Warnings are not errors unless `arguments` say so.
fn compile(compiler: &str, text: &str, arguments: &[&str]) -> Result<Vec<u8>, String> {
    let arch = std::env::consts::ARCH;
    let target = if arch == "x86_64" { "x86" } else { "arm64" };
    let mut child = Command::new(compiler)
        .args(["-O2", "-g", "-target", "bpf", "-x", "c", "-c", "-o", "-"])
        .arg(format!("-D__TARGET_ARCH_{target}"))
        .arg(format!("-I{}", include_dir().display()))
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        .args(arguments)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("running {compiler}: {error}; `make test` installs it"));
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(output.stdout) } else { Err(said) }
}

const STRICT: [&str; 3] = ["-Wall", "-Wextra", "-Werror"];

fn compile_file(compiler: &str, source: &Path, arguments: &[&str]) -> Vec<u8> {
    let text = std::fs::read_to_string(source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    compile(compiler, &text, arguments)
        .unwrap_or_else(|said| panic!("{compiler} {arguments:?} refuses {}:\n{said}", source.display()))
}

/// The running kernel's types as a header, in a folder of its own; `None` if it cannot be made here.
fn vmlinux_dir() -> Option<&'static Path> {
    static MADE: OnceLock<Option<PathBuf>> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vmlinux");
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join(format!("vmlinux.h.{}", std::process::id()));
        let made = write_vmlinux(&path);
        if let Err(why) = &made {
            left_out("the kernel's types", why);
        }
        made.ok().map(|()| {
            std::fs::rename(path, dir.join("vmlinux.h")).unwrap();
            dir
        })
    })
    .as_deref()
}

/// Writes what `bpftool btf dump file /sys/kernel/btf/vmlinux format c` prints.
#[cfg(target_arch = "x86_64")]
fn write_vmlinux(path: &Path) -> Result<(), String> {
    /// `context` is a file descriptor.
    unsafe extern "C" fn print(
        context: *mut std::ffi::c_void,
        format: *const std::ffi::c_char,
        arguments: *mut libbpf_sys::__va_list_tag,
    ) {
        // SAFETY: libbpf passes a format and its arguments; `context` is an address of nothing, only a number.
        unsafe { libbpf_sys::vdprintf(context.addr() as i32, format, arguments) };
    }

    let mut file = File::create(path).map_err(|error| error.to_string())?;
    let before = "#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)\n";
    file.write_all(before.as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: `btf` and `dump` are checked, used between their making and their freeing, and freed once.
    unsafe {
        let btf = libbpf_sys::btf__load_vmlinux_btf();
        if btf.is_null() {
            return Err("there is no /sys/kernel/btf/vmlinux".into());
        }
        let context = std::ptr::without_provenance_mut(file.as_raw_fd() as usize);
        let dump = libbpf_sys::btf_dump__new(btf, Some(print), context, std::ptr::null());
        assert!(!dump.is_null());
        for id in 1..libbpf_sys::btf__type_cnt(btf) {
            let err = libbpf_sys::btf_dump__dump_type(dump, id);
            assert_eq!(err, 0, "type {id}");
        }
        libbpf_sys::btf_dump__free(dump);
        libbpf_sys::btf__free(btf);
    }
    file.write_all(b"#pragma clang attribute pop\n").map_err(|error| error.to_string())
}

#[cfg(not(target_arch = "x86_64"))]
fn write_vmlinux(_path: &Path) -> Result<(), String> {
    Err("how C passes a va_list is only known here on x86-64".into())
}

/// What the header's opening comment says of a kernel that is built with `-fms-extensions`.
const EMBEDDED_BY_TAG: [&str; 2] = ["-fms-extensions", "-Wno-microsoft-anon-tag"];

/// The options that the running kernel's types need, found by trying: none, or [`EMBEDDED_BY_TAG`].
fn kernel_types_options(compiler: &str, dir: &Path) -> &'static [&'static str] {
    let include = format!("-I{}", dir.display());
    let compiles = |options: &[&str]| {
        let arguments = [&STRICT[..], &[&include], options].concat();
        compile(compiler, "#include <vmlinux.h>\n", &arguments)
    };
    let Err(refused) = compiles(&[]) else { return &[] };
    assert!(refused.contains("declaration does not declare anything"), "{compiler}:\n{refused}");
    eprintln!("{compiler}: this kernel's types need {EMBEDDED_BY_TAG:?}");
    compiles(&EMBEDDED_BY_TAG).unwrap_or_else(|refused| panic!("{compiler} {EMBEDDED_BY_TAG:?}:\n{refused}"));
    &EMBEDDED_BY_TAG
}

#[test]
fn beside_the_kernels_types_the_header_compiles_with_the_options_it_names() {
    let Some(dir) = vmlinux_dir() else { return };
    let header = std::fs::read_to_string(include_dir().join("packet_traits/traits.bpf.h")).unwrap();
    assert!(EMBEDDED_BY_TAG.iter().all(|option| header.contains(option)), "the opening comment says how");
    let include = format!("-I{}", dir.display());
    for compiler in clangs() {
        for (name, _) in EVERY_CALL {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/bpf/{name}.bpf.c"));
            let arguments =
                [&STRICT[..], &["-mcpu=v3", "-DVMLINUX", &include], kernel_types_options(compiler, dir)].concat();
            assert!(!compile_file(compiler, &source, &arguments).is_empty());
        }
    }
}

/// A registry with the keys of `every_call.bpf.c`.
fn every_key(layout: Layout) -> Lab {
    let lab = Lab::empty(layout);
    common::register(&lab.registry, common::EVERY_KEY);
    lab
}

/// The programs of an object that `wanted` names are the only ones to be loaded.
fn load_only(open: &mut OpenObject, wanted: impl Fn(&str) -> bool) {
    for mut program in open.progs_mut() {
        let load = wanted(&program.section().to_string_lossy());
        program.set_autoload(load);
    }
}

/// Loads an object unbound, and bound to each of the registries.
fn load_all_ways(what: &str, bytes: &[u8], registries: &[&Registry]) {
    for fentry in [false, true] {
        let wanted = |section: &str| section.starts_with("fentry") == fentry;
        let mut open = ObjectBuilder::default().open_memory(bytes).unwrap();
        load_only(&mut open, wanted);
        match open.load() {
            Err(error) if fentry && error.kind() == libbpf_rs::ErrorKind::PermissionDenied => {
                left_out(&format!("fentry in {what}"), format_args!("this kernel refuses it: {error}"));
                return;
            }
            loaded => drop(loaded.unwrap_or_else(|error| panic!("{what}, unbound: {error:?}"))),
        }
        for registry in registries {
            let mut bound = BoundObject::from_bytes(bytes, what, registry).unwrap();
            load_only(bound.open_object_mut(), wanted);
            bound.load().unwrap_or_else(|error| {
                panic!("{what}, {:?}: {error}\n{}", registry.layout(), error.verifier_log().unwrap_or_default())
            });
        }
    }
}

/// The program types of the table in the header's opening comment.
const SECTIONS: [&str; 13] = [
    "xdp",
    "tc",
    "socket",
    "cgroup_skb/ingress",
    "cgroup_skb/egress",
    "sk_skb/stream_verdict",
    "lwt_in",
    "lwt_out",
    "lwt_xmit",
    "netfilter",
    "sockops",
    "tp_btf/netif_receive_skb",
    "fentry/ip_rcv",
];

/// Every call of `traits.bpf.h` in the program types of its table, and every call of `socket.bpf.h` in those of its own.
const EVERY_CALL: [(&str, &[&str]); 2] = [("every_call", &SECTIONS), ("sender_calls", &SENDER_SECTIONS)];

/// The program types that see packets with a sender.
const SENDER_SECTIONS: [&str; 5] =
    ["tc", "cgroup_skb/egress", "netfilter", "tp_btf/net_dev_queue", "fentry/dev_hard_start_xmit"];

fn every_call_loads(compiler: &str) {
    let layout = |flow, packet| Layout::new(flow, packet).unwrap();
    let labs = [Layout::DEFAULT, layout(48, 168), layout(160, 56)].map(every_key);
    let registries = labs.each_ref().map(|lab| &lab.registry);
    for ((name, sections), cpu) in EVERY_CALL.iter().flat_map(|call| cpus(compiler).iter().map(move |cpu| (call, cpu)))
    {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/bpf/{name}.bpf.c"));
        let (what, cpu) = (format!("{name}, {compiler} -mcpu={cpu}"), format!("-mcpu={cpu}"));
        let mut arguments = STRICT.to_vec();
        arguments.push(&cpu);
        let plain = compile_file(compiler, &source, &arguments);

        let open = ObjectBuilder::default().open_memory(&plain).unwrap();
        let found: BTreeSet<String> =
            open.progs().map(|program| program.section().to_string_lossy().into_owned()).collect();
        assert_eq!(found, sections.iter().map(ToString::to_string).collect());
        load_all_ways(&what, &plain, &registries);

        if let Some(dir) = vmlinux_dir() {
            let include = format!("-I{}", dir.display());
            arguments.extend(["-DVMLINUX", &include]);
            arguments.extend(kernel_types_options(compiler, dir));
            let with_kernel_types = compile_file(compiler, &source, &arguments);
            load_all_ways(&format!("{what} with vmlinux.h"), &with_kernel_types, &registries[..1]);
        }
    }
}

#[test]
fn every_call_in_every_program_type_compiles_cleanly_and_loads_with_clang() {
    if common::area_enabled() {
        every_call_loads(clang());
    }
}

#[test]
fn every_call_in_every_program_type_compiles_cleanly_and_loads_with_the_newest_clang() {
    if common::area_enabled()
        && let [_, newest] = clangs()[..]
    {
        every_call_loads(newest);
    }
}

#[test]
fn each_header_may_be_the_only_one_and_be_included_again() {
    for compiler in clangs() {
        for includes in [
            &["traits.bpf.h"][..],
            &["rfc.bpf.h"],
            &["rfc.bpf.h", "traits.bpf.h"],
            &["socket.bpf.h"],
            &["socket.bpf.h", "traits.bpf.h", "socket.bpf.h", "socket.h", "socket.h"],
            &["traits.bpf.h", "rfc.bpf.h", "rfc.bpf.h", "traits.bpf.h"],
        ] {
            let mut text = String::from("#include <linux/bpf.h>\n");
            for header in includes {
                text += &format!("#include <packet_traits/{header}>\n");
            }
            text += "TRAIT_KEY(tenant, __u32);\n";
            text += "SEC(\"xdp\") int first(struct xdp_md *ctx) { return trait_set(ctx, tenant, 7); }\n";
            compile(compiler, &text, &STRICT).unwrap_or_else(|said| panic!("{compiler} {includes:?}:\n{said}"));
        }
    }
}

/// What is in a header's opening comment from its first `#include` on.
fn lines_of_example(header: &str) -> Vec<String> {
    let text = std::fs::read_to_string(include_dir().join("packet_traits").join(header)).unwrap();
    let comment = &text[text.find("\n/*\n").unwrap()..];
    let comment = &comment[..comment.find("*/").unwrap()];
    comment
        .lines()
        .map(|line| line.strip_prefix(" *").unwrap_or(line))
        .map(|line| line.strip_prefix('\t').unwrap_or(line).to_owned())
        .skip_while(|line| !line.starts_with("#include"))
        .collect()
}

/// The program in a header's opening comment: from its first `#include` to its licence.
fn example_in_comment(header: &str) -> String {
    let lines = lines_of_example(header);
    let last = lines.iter().position(|line| line.contains("LICENSE")).expect("the example ends in its licence");
    lines[..=last].join("\n") + "\n"
}

#[test]
fn the_example_in_the_headers_comment_compiles_loads_and_does_what_it_says() {
    if !common::area_enabled() {
        return;
    }
    let lab = every_key(Layout::DEFAULT);
    let example = example_in_comment("traits.bpf.h");
    for compiler in clangs() {
        let bytes = compile(compiler, &example, &STRICT).unwrap_or_else(|said| panic!("{compiler}:\n{said}"));
        load_all_ways(compiler, &bytes, &[&lab.registry]);
        let object = BoundObject::from_bytes(&bytes, "the example", &lab.registry).unwrap().load().unwrap();
        let ran = test_run::xdp(object.program("classify").unwrap().as_fd(), &[], &[0; 64]);
        assert_eq!(ran.verdict, libbpf_sys::XDP_PASS);
        // sealed: the packet region is out of sight
        let registry = &lab.registry;
        let view =
            TraitsView::new_checked(&ran.metadata, &registry.layout(), &registry.nonces(), ran.metadata.len()).unwrap();
        let tenant = registry.lookup(&common::name("tenant")).unwrap().unwrap().key;
        assert_eq!(view.value(&tenant), Some(Value::U32(7)));
        assert!(object.program("only_tenant_7").is_some());
    }
}

#[test]
fn the_examples_in_the_socket_headers_comments_compile_and_load() {
    if !common::area_enabled() {
        return;
    }
    let lab = every_key(Layout::DEFAULT);
    let example = example_in_comment("socket.bpf.h");
    for compiler in clangs() {
        let bytes = compile(compiler, &example, &STRICT).unwrap_or_else(|said| panic!("{compiler}:\n{said}"));
        load_all_ways(compiler, &bytes, &[&lab.registry]);
    }
    let text = lines_of_example("socket.h");
    let end = text.iter().position(|line| line == "}").expect("the example ends with a function");
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("socket_example.{}.c", std::process::id()));
    std::fs::write(&source, text[..=end].join("\n") + "\n").unwrap();
    let mut command = Command::new("cc");
    command.args(STRICT).arg(format!("-I{}", include_dir().display())).args(["-c", "-o", "/dev/null"]).arg(&source);
    let output = command.output().unwrap();
    std::fs::remove_file(source).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn misuse_does_not_compile() {
    let start = "#include <linux/bpf.h>\n#include <packet_traits/traits.bpf.h>\n\
                 struct three { __u8 byte[3]; };\n";
    let keys = "TRAIT_KEY(tenant, __u32); TRAIT_KEY(flow_id, __u64); TRAIT_FLAG(sampled);\n\
                TRAIT_KEY(number, __u64, TRAIT_KEEP_FIRST); TRAIT_FLAG(first, TRAIT_DISCARD);\n";
    let in_xdp = |body: &str| format!("{keys}SEC(\"xdp\") int program(struct xdp_md *ctx) {{ {body}; return 0; }}\n");
    let in_tc = |body: &str| format!("{keys}SEC(\"tc\") int program(struct __sk_buff *ctx) {{ {body}; return 0; }}\n");
    let in_netfilter =
        |body: &str| format!("{keys}SEC(\"netfilter\") int program(struct bpf_nf_ctx *ctx) {{ {body}; return 1; }}\n");
    for (text, said) in [
        // pointers to something else, in every call that takes one
        (in_xdp("__u64 value; trait_get(ctx, tenant, &value)"), "incompatible pointer types"),
        (in_xdp("__u16 value; trait_get(ctx, tenant, &value)"), "incompatible pointer types"),
        (in_xdp("__u32 value = 0; trait_get(ctx, tenant, value)"), "integer to pointer"),
        (in_tc("__u64 value; trait_tc_get(ctx, tenant, &value)"), "incompatible pointer types"),
        (
            in_tc("struct trait_view view; __u64 value; trait_view(ctx, &view); trait_view_get(&view, tenant, &value)"),
            "incompatible pointer types",
        ),
        // types no key can have
        ("TRAIT_KEY(odd, struct three);\n".into(), "a trait has 0, 1, 2, 4, 8 or 16 bytes"),
        ("TRAIT_KEY_NAMED(long_one, \"abcdefghijklmnopqrstuvwxyz012345\", __u32);\n".into(), "has 1 to 31 characters"),
        ("TRAIT_KEY_NAMED(empty, \"\", __u32);\n".into(), "has 1 to 31 characters"),
        ("TRAIT_KEY(unknown, no_such_type);\n".into(), "no_such_type"),
        // flags and values
        (in_xdp("trait_set_flag(ctx, tenant)"), "tenant has a value: use trait_set"),
        (in_tc("trait_tc_set_flag(ctx, tenant)"), "tenant has a value: use trait_tc_set"),
        (in_xdp("trait_set(ctx, sampled, 1)"), "struct trait_flag"),
        // keys that were not declared, contexts that are none
        (in_xdp("trait_set(ctx, nobody, 1)"), "nobody"),
        (
            in_xdp("__u32 value; int other; trait_get(&other, tenant, &value)"),
            "not compatible with any generic association",
        ),
        // set and delete where there is no XDP
        (in_tc("trait_set(ctx, tenant, 1)"), "a TC program calls trait_tc_set"),
        (in_tc("trait_set_flag(ctx, sampled)"), "a TC program calls trait_tc_set_flag"),
        (in_tc("trait_del(ctx, tenant)"), "a TC program calls trait_tc_del"),
        // keys that only XDP changes
        (in_tc("trait_tc_set(ctx, number, 1)"), "trait_tc_set: number is keep-first or discard: only XDP programs"),
        (
            in_tc("trait_tc_set_flag(ctx, first)"),
            "trait_tc_set_flag: first is keep-first or discard: only XDP programs",
        ),
        (in_tc("trait_tc_del(ctx, number)"), "trait_tc_del: number is keep-first or discard: only XDP programs"),
        (in_netfilter("trait_set(ctx, tenant, 1)"), "this type of program can only read traits"),
        (in_netfilter("trait_del(ctx, tenant)"), "this type of program can only read traits"),
        // the same key twice
        (format!("{keys}TRAIT_KEY(tenant, __u64);\n"), "redefinition"),
    ] {
        for compiler in clangs() {
            let refused = match compile(compiler, &format!("{start}{text}"), &[]) {
                Ok(_) => panic!("{compiler} takes {text}"),
                Err(refused) => refused,
            };
            assert!(refused.contains("error:") && refused.contains(said), "{compiler} on {text}:\n{refused}");
        }
    }
    // what surrounds them is right
    for compiler in clangs() {
        for text in [
            in_xdp("__u32 value; trait_get(ctx, tenant, &value)"),
            in_xdp("trait_set_flag(ctx, sampled)"),
            in_xdp("trait_set(ctx, number, 1); trait_set_flag(ctx, first); trait_del(ctx, number)"),
            in_tc("__u64 value; trait_tc_get(ctx, number, &value); trait_tc_set_flag(ctx, sampled)"),
            "TRAIT_KEY_NAMED(long_one, \"abcdefghijklmnopqrstuvwxyz01234\", __u32);\n".into(),
        ] {
            compile(compiler, &format!("{start}{text}"), &[]).unwrap_or_else(|said| panic!("{said}"));
        }
    }
}

/// Links objects as `bpftool gen object` does.
fn link(name: &str, objects: &[Vec<u8>]) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let output = dir.join(format!("{name}.{}.o", std::process::id()));
    let mut linker = Linker::new(&output).unwrap();
    for bytes in objects {
        linker.add_buf(bytes).unwrap();
    }
    linker.link().unwrap();
    drop(linker);
    let linked = std::fs::read(&output).unwrap();
    std::fs::remove_file(output).unwrap();
    linked
}

const FIRST_UNIT: &str = r#"
#include <linux/bpf.h>
#include <packet_traits/rfc.bpf.h>
TRAIT_KEY(tenant, __u32);
TRAIT_KEY(tos, __u8);
SEC("xdp") int first(struct xdp_md *ctx)
{
	trait_set(ctx, tenant, 7);
	trait_set(ctx, tos, 9);
	return XDP_PASS;
}
char LICENSE[] SEC("license") = "Dual MIT/GPL";
"#;

const SECOND_UNIT: &str = r#"
#include <linux/bpf.h>
#include <packet_traits/rfc.bpf.h>
TRAIT_KEY(flow_id, __u64, TRAIT_KEEP_FIRST);
TRAIT_KEY(tenant, __u32);
SEC("xdp") int second(struct xdp_md *ctx)
{
	__u32 who = 0;
	__u8 tos = 0;

	trait_get(ctx, tenant, &who);
	bpf_xdp_trait_get(ctx, 4, &tos, sizeof(tos));
	trait_set(ctx, flow_id, who + tos);
	return XDP_PASS;
}
"#;

#[test]
fn files_that_are_linked_into_one_object_share_their_keys() {
    if !common::area_enabled() {
        return;
    }
    let lab = every_key(Layout::DEFAULT);
    let registry = &lab.registry;
    registry.unregister(&common::name("ip.tos"), false).unwrap();
    registry.register(&spec("tos", KeyType::U8, Merge::Block)).unwrap();
    let number = registry.lookup(&common::name("tos")).unwrap().unwrap().key.number();
    let second = SECOND_UNIT.replace("get(ctx, 4,", &format!("get(ctx, {number},"));
    for compiler in clangs() {
        let [a, b] = [FIRST_UNIT, second.as_str()].map(|text| compile(compiler, text, &STRICT).unwrap());
        for (name, objects) in [("ab", [a.clone(), b.clone()]), ("ba", [b, a])] {
            let linked = link(&format!("{name}-{compiler}"), &objects);
            let bound = BoundObject::from_bytes(&linked, "linked", registry).unwrap();
            let keys: BTreeSet<&str> = bound.binding().keys().iter().map(|bound| bound.key.name().as_str()).collect();
            assert_eq!(keys, ["flow_id", "tenant", "tos"].into());
            assert_eq!(bound.binding().keys().len(), 3);
            let object = bound.load().unwrap_or_else(|error| panic!("{error}"));
            let first = test_run::xdp(object.program("first").unwrap().as_fd(), &[], &[0; 64]);
            let second = test_run::xdp(object.program("second").unwrap().as_fd(), &first.metadata, &first.packet);
            let view = TraitsView::open(&second.metadata, &registry.layout(), &registry.nonces()).unwrap();
            let flow_id = registry.lookup(&common::name("flow_id")).unwrap().unwrap().key;
            assert_eq!(view.value(&flow_id), Some(Value::U64(16)), "{name} {compiler}");
            // and the registry sees what the object uses
            let programs = registry.programs().unwrap();
            assert!(programs.iter().any(|program| program.name == "second"), "{programs:?}");
            assert!(registry.unregister(&common::name("tos"), false).is_err());
        }
    }
}

#[test]
fn files_that_declare_a_key_differently_are_refused_when_linked() {
    if !common::area_enabled() {
        return;
    }
    let lab = every_key(Layout::DEFAULT);
    let with = |declaration: &str, name: &str| {
        let text = format!(
            "#include <linux/bpf.h>\n#include <packet_traits/traits.bpf.h>\n{declaration};\n\
             SEC(\"xdp\") int {name}(struct xdp_md *ctx) {{ return trait_is_set(ctx, tenant); }}\n"
        );
        compile(clang(), &text, &[]).unwrap()
    };
    // types that differ, the linker refuses; it does not know what a merge policy is
    let units = [with("TRAIT_KEY(tenant, __u32)", "one"), with("TRAIT_KEY(tenant, __u32, TRAIT_KEEP_FIRST)", "two")];
    for (name, order) in [("right-first", [0, 1]), ("wrong-first", [1, 0])] {
        let linked = link(name, &order.map(|unit| units[unit].clone()));
        let refused = match BoundObject::from_bytes(&linked, "linked.o", &lab.registry) {
            Ok(_) => panic!("bound although the files disagree"),
            Err(refused) => refused.to_string(),
        };
        assert!(["linked.o", "tenant", "TRAIT_BLOCK"].iter().all(|word| refused.contains(word)), "{refused}");
    }
}

/// The example programs at the repository's root.
fn examples() -> Vec<PathBuf> {
    let dir = repository("examples/bpf");
    let mut found: Vec<PathBuf> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".bpf.c"))
        .collect();
    found.sort();
    assert!(found.len() >= 5, "{found:?}");
    found
}

/// A registry with the keys of the example programs, as `xdp_classify.bpf.c` says to register them.
fn example_keys() -> Lab {
    let lab = Lab::empty(Layout::DEFAULT);
    for (key, key_type, merge) in [
        ("tenant", KeyType::U32, Merge::Block),
        ("flow_id", KeyType::U64, Merge::Block),
        ("rx_ts", KeyType::Timestamp, Merge::KeepFirst),
    ] {
        lab.registry.register(&spec(key, key_type, merge)).unwrap();
    }
    lab
}

#[test]
fn every_example_compiles_and_loads() {
    if !common::area_enabled() {
        return;
    }
    let lab = example_keys();
    for compiler in clangs() {
        for example in examples() {
            // as its comment says, and strictly: libbpf's own BPF_PROG leaves a parameter unused
            for arguments in [&[][..], &["-mcpu=v3", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror"]] {
                let bytes = compile_file(compiler, &example, arguments);
                load_all_ways(&format!("{compiler} {}", example.display()), &bytes, &[&lab.registry]);
            }
        }
    }
}

fn load_example(lab: &Lab, name: &str) -> LoadedObject {
    let source = repository(&format!("examples/bpf/{name}.bpf.c"));
    let bytes = compile_file(clang(), &source, &[]);
    BoundObject::from_bytes(&bytes, name, &lab.registry).unwrap().load().unwrap_or_else(|error| panic!("{error}"))
}

fn word(object: &LoadedObject, map: &str, key: u32, word: usize) -> Option<u64> {
    let value = object.map(map).unwrap().lookup(&key.to_ne_bytes(), MapFlags::ANY).unwrap()?;
    Some(u64::from_ne_bytes(value[8 * word..8 * word + 8].try_into().unwrap()))
}

#[test]
fn the_examples_work_together_on_one_link() {
    if !common::area_enabled() {
        return;
    }
    let lab = example_keys();
    let pair = Pair::new().unwrap();
    let rx = pair.rx();
    let receiver = udp_socket(rx.netns(), rx.addr(Family::V4, TEST_PORT)).unwrap();

    let classify = load_example(&lab, "xdp_classify");
    let priority = load_example(&lab, "tc_priority");
    let drop_blocked = load_example(&lab, "netfilter_drop");
    let count = load_example(&lab, "cgroup_count");
    let drops = load_example(&lab, "trace_drops");
    // two tenants' senders, one of them blocked
    let senders = [(7u32, Ipv4Addr::new(10, 77, 0, 1)), (8, Ipv4Addr::new(10, 77, 0, 99))];
    for (tenant, address) in senders {
        let prefix = [&32u32.to_ne_bytes(), &address.octets()[..]].concat();
        classify.map("tenants").unwrap().update(&prefix, &tenant.to_ne_bytes(), MapFlags::ANY).unwrap();
    }
    drop_blocked.map("blocked").unwrap().update(&8u32.to_ne_bytes(), &[0; 8], MapFlags::ANY).unwrap();
    let _xdp = attach_xdp(&classify, "classify", rx, XdpMode::Generic);
    let _tc = attach_tc(&priority, "prioritize", rx, Direction::Ingress);
    let _netfilter = attach_netfilter(&drop_blocked, rx, Family::V4, &[("drop_blocked", NetfilterHook::Input)]);
    let _cgroup = attach_cgroup(&count, "count", CgroupHook::Ingress);
    let _tracing = attach_tracing(&drops, &["report_drop"]);

    let mut reported = Vec::new();
    let mut builder = libbpf_rs::RingBufferBuilder::new();
    let map = drops.map("drops").unwrap();
    let (sender, receiver_of_drops) = std::sync::mpsc::channel();
    builder
        .add(&map, move |raw| {
            sender.send(raw.to_vec()).unwrap();
            0
        })
        .unwrap();
    let ring = builder.build().unwrap();

    let flow = Flow::between(pair.tx(), rx, Family::V4, 1000, TEST_PORT);
    for number in 0u64..10 {
        for (_, address) in senders {
            let frame = Flow { ip: IpPair::V4(address, rx.ipv4()), ..flow }.udp(&number.to_be_bytes());
            send_frame(pair.tx().netns(), pair.tx().ifindex(), &frame).unwrap();
        }
        assert_eq!(packet_traits_lab::recv_numbered(&receiver).unwrap(), number);
    }
    while reported.len() < 10 {
        ring.poll(std::time::Duration::from_secs(5)).unwrap();
        let before = reported.len();
        reported.extend(receiver_of_drops.try_iter().filter(|raw| raw[24..28] == 8u32.to_ne_bytes()));
        assert_ne!(before, reported.len(), "no more than {before} drops were reported");
    }

    assert_eq!(word(&drop_blocked, "blocked", 8, 0), Some(10));
    assert_eq!(word(&count, "traffic", 7, 0), Some(10));
    assert_eq!(word(&count, "traffic", 8, 0), None, "blocked before it was delivered");
    for raw in &reported {
        let u64_at = |at: usize| u64::from_ne_bytes(raw[at..at + 8].try_into().unwrap());
        assert_ne!(u64_at(8), 0, "the flow's id");
        assert!((1..1_000_000_000).contains(&u64_at(16)), "its age: {}", u64_at(16));
    }
}
