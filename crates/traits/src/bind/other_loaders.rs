//! What other loaders need of a bound file that libbpf does not: changes that move nothing in it.
//!
//! - cilium/ebpf takes no map that is a weak symbol, as the header's is, so that objects can be linked. Nothing is linked
//!   with a bound file: its symbols are global.
//! - Clang leaves a function of the kernel (kfunc) that a program calls an undefined symbol, described in the section
//!   `.ksyms` of the object's BTF. libbpf resolves it when it loads the object (bpf_object__resolve_externs and
//!   bpf_object__relocate_data in tools/lib/bpf/libbpf.c); aya refuses the section. A bound file is for the running kernel
//!   anyway, since no registry outlives it: so its functions are resolved, in the same way, and the section goes away.

use std::{collections::HashMap, fs};

use libbpf_rs::btf::{Btf, types::Func};
use object::{
    NativeEndian as Native, SymbolIndex, elf,
    pod::bytes_of,
    read::elf::{ElfFile64, Rel, SectionHeader, Sym},
};

use crate::insn::{CALL, LOAD_CONSTANT, PSEUDO_KFUNC};

/// The section of functions and variables of the kernel.
const SECTION: &[u8] = b".ksyms";

/// Where the kernel shows the BTF of itself (`vmlinux`) and of its modules.
const KERNEL_BTF: &str = "/sys/kernel/btf";

/// The number of a helper that no kernel has: the verifier takes a call of it where nothing leads to. As libbpf's
/// `POISON_CALL_KFUNC_BASE`.
const NO_HELPER: u32 = 2_002_000_000;

/// What to put at a place of the file.
type Change = (usize, Vec<u8>);

/// Makes a bound file one that other loaders can load.
pub(super) fn prepare(bytes: &mut [u8]) {
    let Ok(elf) = ElfFile64::<Native>::parse(&*bytes) else { return };
    let mut changes = global_symbols(&elf);
    changes.extend(resolved_functions(&elf, bytes).into_iter().flatten());
    for (at, with) in changes {
        bytes[at..at + with.len()].copy_from_slice(&with);
    }
}

/// The place of a section in the file.
fn place(section: &elf::SectionHeader64<Native>) -> usize {
    section.sh_offset.get(Native) as usize
}

/// The symbols with their numbers and places in the file.
fn symbols<'e>(
    elf: &'e ElfFile64<'e, Native>,
) -> impl Iterator<Item = (SymbolIndex, usize, &'e elf::Sym64<Native>)> + 'e {
    let table = elf.elf_section_table().iter().find(|section| section.sh_type(Native) == elf::SHT_SYMTAB);
    let first = table.map_or(0, place);
    elf.elf_symbol_table()
        .enumerate()
        .map(move |(index, symbol)| (index, first + index.0 * size_of_val(symbol), symbol))
}

fn global_symbols(elf: &ElfFile64<'_, Native>) -> Vec<Change> {
    let weak = symbols(elf).filter(|(_, _, symbol)| symbol.is_weak() && !symbol.is_undefined(Native));
    weak.map(|(_, at, symbol)| {
        let mut symbol = *symbol;
        symbol.set_st_info(elf::STB_GLOBAL, symbol.st_type());
        (at, bytes_of(&symbol).to_vec())
    })
    .collect()
}

/// Resolves the functions of the kernel that an object file uses. `None` if it has none, or something that only a loader can
/// resolve: a variable, a function of a module, one that the kernel lacks and the object needs.
fn resolved_functions(elf: &ElfFile64<'_, Native>, bytes: &[u8]) -> Option<Vec<Change>> {
    let sections = elf.elf_section_table();
    let (_, btf) = sections.section_by_name(Native, b".BTF")?;
    let declared = Declared::find(btf.data(Native, bytes).ok()?)?;
    let mut changes = declared.hidden(place(btf));

    // each function's number, 0 of one that is not there, by its symbol
    let mut numbers = HashMap::new();
    let kernel = Btf::from_vmlinux().ok()?;
    for (index, at, symbol) in symbols(elf).filter(|(_, _, symbol)| symbol.is_undefined(Native)) {
        let name = elf.elf_symbol_table().symbol_name(Native, symbol).ok()?;
        if !declared.functions.iter().any(|(_, function)| *function == name) {
            continue;
        }
        let name = str::from_utf8(name).ok()?;
        let number = match kernel.type_by_name::<Func<'_>>(name) {
            Some(function) => u32::from(function.type_id()),
            None if symbol.is_weak() && !is_of_a_module(name) => 0,
            None => return None,
        };
        numbers.insert(index, number);
        // a symbol of no name, as the first is
        changes.push((at, vec![0; size_of_val(symbol)]));
    }

    let headers = elf.elf_header().e_shoff.get(Native) as usize;
    for (index, section) in sections.enumerate() {
        let Some((relocations, _)) = section.rel(Native, bytes).ok()? else { continue };
        let target = sections.section(section.info_link(Native)).ok()?;
        let mut kept = Vec::new();
        for relocation in relocations {
            let Some(number) = relocation.symbol(Native).and_then(|symbol| numbers.get(&symbol)) else {
                kept.extend_from_slice(bytes_of(relocation));
                continue;
            };
            if target.sh_flags(Native).0 & elf::SHF_EXECINSTR.0 != 0 {
                let at = place(target) + relocation.r_offset(Native) as usize;
                changes.push((at, resolved(bytes.get(at..at + INSTRUCTION)?, *number)?));
            }
        }
        if kept.len() < size_of_val(relocations) {
            let size = (kept.len() as u64).to_ne_bytes().to_vec();
            let header = headers + index.0 * size_of_val(section);
            changes.push((header + std::mem::offset_of!(elf::SectionHeader64<Native>, sh_size), size));
            changes.push((place(section), kept));
        }
    }
    Some(changes)
}

/// Bytes of an instruction: code, registers, offset (2), immediate (4) (struct bpf_insn in include/uapi/linux/bpf.h).
const INSTRUCTION: usize = 8;

/// What an instruction that uses a function is with the function's number: a call, or the question whether it is there.
fn resolved(instruction: &[u8], number: u32) -> Option<Vec<u8>> {
    let mut instruction = instruction.to_vec();
    let immediate = match instruction[0] {
        CALL if number == 0 => NO_HELPER,
        CALL => number,
        LOAD_CONSTANT => u32::from(number != 0),
        _ => return None,
    };
    if instruction[0] == CALL {
        let caller = if number == 0 { 0 } else { PSEUDO_KFUNC };
        instruction[1] = caller << 4;
    }
    instruction[4..].copy_from_slice(&immediate.to_ne_bytes());
    Some(instruction)
}

/// Whether a module that is loaded may have a function of this name.
fn is_of_a_module(name: &str) -> bool {
    let Ok(modules) = fs::read_dir(KERNEL_BTF) else { return false };
    let word = [b"\0", name.as_bytes(), b"\0"].concat();
    modules.flatten().map(|module| module.path()).any(|module| {
        !module.ends_with("vmlinux") && fs::read(module).is_ok_and(|btf| btf.windows(word.len()).any(|at| at == word))
    })
}

/// The functions that an object's BTF says are the kernel's.
struct Declared<'b> {
    /// Place in the BTF, and name, of each.
    functions: Vec<(usize, &'b [u8])>,
    /// Place of the section's description, and how many it describes.
    section: (usize, u32),
    /// A type that a structure's member may have.
    number: u32,
}

/// Sizes of the part of BTF's header that is used here, and of what every type begins with: name, kind and count, size or
/// type (struct btf_header and struct btf_type in include/uapi/linux/btf.h).
const BTF_HEADER: u32 = 24;
const BTF_TYPE: usize = 12;

impl<'b> Declared<'b> {
    /// `None` if there are none, or if one is not a function.
    fn find(btf: &'b [u8]) -> Option<Declared<'b>> {
        let word = |at: usize| Some(u32::from_ne_bytes(btf.get(at..at + 4)?.try_into().ok()?));
        let header = word(4)?.max(BTF_HEADER) as usize;
        let (first, len) = (header + word(8)? as usize, word(12)? as usize);
        let strings = header + word(16)? as usize;
        let name = |at: usize| btf.get(strings + word(at)? as usize..)?.split(|byte| *byte == 0).next();

        let (mut places, mut section, mut number) = (vec![0], None, None);
        let mut at = first;
        while at < first + len {
            let info = word(at + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, info & 0xffff);
            if kind == libbpf_sys::BTF_KIND_INT {
                number = Some(places.len() as u32);
            }
            if kind == libbpf_sys::BTF_KIND_DATASEC && name(at)? == SECTION {
                section = Some((at, count));
            }
            places.push(at);
            at += BTF_TYPE + count as usize * each(kind) + whole(kind);
        }

        let (at, count) = section?;
        let mut functions = Vec::new();
        for member in 0..count as usize {
            let function = *places.get(word(at + BTF_TYPE + member * each(libbpf_sys::BTF_KIND_DATASEC))? as usize)?;
            if word(function + 4)? >> 24 & 0x1f != libbpf_sys::BTF_KIND_FUNC {
                return None;
            }
            functions.push((function, name(function)?));
        }
        Some(Declared { functions, section: (at, count), number: number? })
    }

    /// What hides them in a file that has the BTF at a place: the kernel's BTF has neither functions that are elsewhere nor
    /// a section of them. A function becomes a type's name, the section a structure without one, of as many members.
    fn hidden(&self, place: usize) -> Vec<Change> {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let names = self
            .functions
            .iter()
            .map(|(function, _)| (place + function + 4, words(&[libbpf_sys::BTF_KIND_TYPEDEF << 24])));
        let (at, count) = self.section;
        let size = 16; // of the longest number
        let mut section = words(&[0, libbpf_sys::BTF_KIND_STRUCT << 24 | count, size]);
        (0..count).for_each(|_| section.extend(words(&[0, self.number, 0])));
        names.chain([(place + at, section)]).collect()
    }
}

/// Bytes behind a type for each of those it counts.
fn each(kind: u32) -> usize {
    match kind {
        libbpf_sys::BTF_KIND_STRUCT
        | libbpf_sys::BTF_KIND_UNION
        | libbpf_sys::BTF_KIND_DATASEC
        | libbpf_sys::BTF_KIND_ENUM64 => 12,
        libbpf_sys::BTF_KIND_ENUM | libbpf_sys::BTF_KIND_FUNC_PROTO => 8,
        _ => 0,
    }
}

/// Bytes behind a type in all.
fn whole(kind: u32) -> usize {
    match kind {
        libbpf_sys::BTF_KIND_ARRAY => 12,
        libbpf_sys::BTF_KIND_INT | libbpf_sys::BTF_KIND_VAR | libbpf_sys::BTF_KIND_DECL_TAG => 4,
        _ => 0,
    }
}
