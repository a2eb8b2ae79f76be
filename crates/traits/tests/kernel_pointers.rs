//! No program of ours loads a pointer of the kernel's that it does not follow: such a pointer (`skb->head`) is a number to
//! some verifiers, and untrusted memory to others, which refuse arithmetic that clang may emit (from Linux 6.17 and 7.1).
//! `packet_traits/kernel.bpf.h` reads it as a number.
//!
//! The compiled objects tell: each load of a member of the kernel's structures has a CO-RE relocation, by which the member's
//! type is known (include/uapi/linux/btf.h and `struct bpf_core_relo` in include/uapi/linux/bpf.h).

mod common;

use std::{
    fs,
    num::NonZero,
    path::{Path, PathBuf},
    thread,
};

use common::compile_with;
use libbpf_rs::{
    ReferencesType,
    btf::{Btf, BtfKind, BtfType, TypeId, types},
};
use object::{Object as _, ObjectSection as _};
use packet_traits_lab::clang;

/// `BPF_CORE_FIELD_BYTE_OFFSET` of `enum bpf_core_relo_kind`.
const FIELD_BYTE_OFFSET: u32 = 0;
/// `BPF_CLASS` and `BPF_LDX`, include/uapi/linux/bpf_common.h and bpf.h.
const CLASS: u8 = 0x07;
const LDX: u8 = 0x01;

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// A relocated instruction: where it is, and the member of a structure that it is about.
struct Relocation {
    section: String,
    instruction: usize,
    structure: TypeId,
    /// `0:2:1`: the structure itself, its third member, the second member of that.
    access: String,
}

/// The relocations of an object's members' offsets.
fn relocations(elf: &object::File<'_>) -> Vec<Relocation> {
    let section = |name: &str| elf.section_by_name(name).unwrap().data().unwrap();
    let (btf, ext) = (section(".BTF"), section(".BTF.ext"));
    let strings = &btf[u32_at(btf, 4) + u32_at(btf, 16)..];
    let text = |at: usize| String::from_utf8(strings[at..].split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap();
    // struct btf_ext_header in tools/lib/bpf/libbpf_internal.h: core_relo_off and core_relo_len are its last members
    let header = u32_at(ext, 4);
    assert!(header >= 32, "the compiler is older than CO-RE");
    let (start, len) = (header + u32_at(ext, 24), u32_at(ext, 28));
    let mut all = Vec::new();
    if len == 0 {
        return all;
    }
    let record_len = u32_at(ext, start);
    let mut at = start + 4;
    while at < start + len {
        let (name, count) = (text(u32_at(ext, at)), u32_at(ext, at + 4));
        at += 8;
        for record in ext[at..at + count * record_len].chunks(record_len) {
            if u32_at(record, 12) as u32 == FIELD_BYTE_OFFSET {
                all.push(Relocation {
                    section: name.clone(),
                    instruction: u32_at(record, 0),
                    structure: TypeId::from(u32_at(record, 4) as u32),
                    access: text(u32_at(record, 8)),
                });
            }
        }
        at += count * record_len;
    }
    all
}

/// Name and type of the member that a relocation is about.
fn member<'b>(btf: &'b Btf<'_>, relocation: &Relocation) -> (String, BtfType<'b>) {
    let mut found: BtfType<'_> = btf.type_by_id::<BtfType<'_>>(relocation.structure).unwrap().skip_mods_and_typedefs();
    let mut name = found.name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    for index in relocation.access.split(':').skip(1).map(|index| index.parse::<usize>().unwrap()) {
        let (part, id) = if let Ok(composite) = types::Composite::try_from(found) {
            let member = composite.get(index).unwrap();
            (member.name.map_or_else(String::new, |name| name.to_string_lossy().into_owned()), member.ty)
        } else if let Ok(array) = types::Array::try_from(found) {
            (index.to_string(), array.contained_type().type_id())
        } else {
            panic!("{name} has no member {index}");
        };
        name = format!("{name}.{part}");
        found = btf.type_by_id::<BtfType<'_>>(id).unwrap().skip_mods_and_typedefs();
    }
    (name, found)
}

/// Whether a pointer is one that can be followed: to a structure. To bytes or nothing, it is good for arithmetic only.
fn can_be_followed(pointer: BtfType<'_>) -> bool {
    let pointed_to = types::Ptr::try_from(pointer).unwrap().referenced_type().skip_mods_and_typedefs();
    matches!(pointed_to.kind(), BtfKind::Struct | BtfKind::Union | BtfKind::Fwd | BtfKind::FuncProto)
}

/// The loads of pointers that cannot be followed, as text.
fn forbidden_loads(bytes: &[u8]) -> Vec<String> {
    let elf = object::File::parse(bytes).unwrap();
    if elf.section_by_name(".BTF.ext").is_none() {
        return Vec::new();
    }
    let btf = Btf::from_raw("test", bytes).unwrap().unwrap();
    let mut forbidden = Vec::new();
    for relocation in relocations(&elf) {
        let code = elf.section_by_name(&relocation.section).unwrap().data().unwrap();
        let (name, found) = member(&btf, &relocation);
        let loads = code[relocation.instruction] & CLASS == LDX;
        if loads && found.kind() == BtfKind::Ptr && !can_be_followed(found) {
            forbidden.push(format!("{} in {} at {}", name, relocation.section, relocation.instruction / 8));
        }
    }
    forbidden
}

/// Every BPF program of the repository: of the crates and their tests, and the examples.
fn sources() -> Vec<PathBuf> {
    fn add(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                add(&path, found);
            } else if path.to_string_lossy().ends_with(".bpf.c") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = Vec::new();
    add(&root.join("crates"), &mut found);
    add(&root.join("examples/bpf"), &mut found);
    found
}

fn assert_loads_none(source: &Path) {
    let forbidden = forbidden_loads(&compile_with(clang(), source, &[]));
    assert!(forbidden.is_empty(), "{}: {forbidden:?}; read it with __trait_kernel_field", source.display());
}

#[test]
fn no_program_loads_a_kernel_pointer_it_does_not_follow() {
    let sources = sources();
    assert!(sources.len() > 30, "{sources:?}");
    // clang takes a second or more for the larger ones
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for part in sources.chunks(sources.len().div_ceil(threads)) {
            scope.spawn(move || part.iter().for_each(|source| assert_loads_none(source)));
        }
    });
}

#[test]
fn a_load_of_a_kernel_pointer_is_found() {
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel_pointers.bpf.c");
    let text = "#include <linux/bpf.h>\n#include <packet_traits/kernel.bpf.h>\n\
        struct dev___t { int ifindex; } __attribute__((preserve_access_index));\n\
        struct sk_buff___t { unsigned char *head; struct dev___t *dev; int len; } __attribute__((preserve_access_index));\n\
        SEC(\"tc\") int reads(struct __sk_buff *ctx) { struct sk_buff___t *skb = bpf_cast_to_kern_ctx(ctx);\n\
        return READ; }\nchar LICENSE[] SEC(\"license\") = \"GPL\";\n";
    let forbidden = |read: &str| {
        fs::write(&source, text.replace("READ", read)).unwrap();
        forbidden_loads(&compile_with(clang(), &source, &[]))
    };
    assert_eq!(forbidden("(__u64)skb->head + skb->len"), ["sk_buff___t.head in tc at 2"]);
    let none: [&str; 0] = [];
    assert_eq!(forbidden("__trait_kernel_field(skb, struct sk_buff___t, head) + skb->dev->ifindex"), none);
}
