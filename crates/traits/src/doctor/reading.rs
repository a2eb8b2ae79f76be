//! Ways from a program's context to the fields of the kernel's packet. Each program compares the length that it finds so
//! with the one that its context shows, and is run on a made-up packet.

use std::os::fd::AsFd;

use libbpf_rs::{
    HasSize,
    btf::{
        Btf,
        types::{Func, MemberAttr, Struct},
    },
};
use libbpf_sys::{BPF_FUNC_probe_read_kernel, BPF_PROG_TYPE_SCHED_CLS, bpf_insn};

use super::{Finding, Probe};
use crate::insn::{Source, add, call, call_kernel, copy, exit, load32, run, set, skip_if, skip_if_equal, store64};

/// Offset of `len` in `struct __sk_buff` (include/uapi/linux/bpf.h).
const CONTEXT_LEN: i16 = 0;

/// Bytes of `struct bpf_dynptr`.
const DYNPTR: i32 = 16;

/// What a program returns if it found what it should, and if not.
const RIGHT: u32 = 1;
const WRONG: i32 = 0;

/// Tries the ways that headers of traits choose from.
pub fn reading() -> Vec<Finding> {
    let all = [Probe::CastToKernCtx, Probe::RdonlyCast, Probe::ProbeReadContext, Probe::SkbMetaDynptr];
    let kernel = match Kernel::look() {
        Ok(kernel) => kernel,
        Err(why) => return all.map(|probe| Finding::untried(probe, &why)).into(),
    };
    let programs = [kernel.cast(), kernel.rdonly_cast(), Ok(kernel.probe_read()), kernel.metadata()];
    all.into_iter().zip(programs).map(|(probe, program)| Finding::tried(probe, program.and_then(right))).collect()
}

/// Loads and runs a program.
fn right(instructions: Vec<bpf_insn>) -> Result<(), String> {
    let program = Source::new(BPF_PROG_TYPE_SCHED_CLS, instructions).load()?;
    match run(program.as_fd())? {
        RIGHT => Ok(()),
        _ => Err("what the program read is not the packet's".to_owned()),
    }
}

/// What BTF tells of this kernel.
struct Kernel<'b> {
    btf: Btf<'b>,
    /// The number of `struct sk_buff`.
    skb: u32,
    /// The offset of `len` in it.
    len: i16,
}

impl Kernel<'_> {
    fn look() -> Result<Kernel<'static>, String> {
        let btf = Btf::from_vmlinux().map_err(|error| format!("the kernel's BTF: {error}"))?;
        let (skb, len) = {
            let skb = btf.type_by_name::<Struct<'_>>("sk_buff").ok_or("BTF has no struct sk_buff")?;
            let len = skb.iter().find(|member| member.name.is_some_and(|name| name == "len"));
            let len = len.and_then(|member| match member.attr {
                MemberAttr::Normal { offset } => i16::try_from(offset / 8).ok(),
                MemberAttr::BitField { .. } => None,
            });
            debug_assert!(skb.size() > 0);
            (skb.type_id().into(), len.ok_or("BTF has no len in struct sk_buff")?)
        };
        Ok(Kernel { btf, skb, len })
    }

    /// A function that programs may call.
    fn function(&self, name: &str) -> Result<u32, String> {
        let function = self.btf.type_by_name::<Func<'_>>(name);
        function.map(|function| function.type_id().into()).ok_or_else(|| format!("this kernel has no {name}"))
    }

    /// `return length == context->len`, where the length is in r0 and the context in r6.
    fn compare() -> [bpf_insn; 5] {
        [
            load32(1, 6, CONTEXT_LEN),
            copy(2, 0),
            set(0, RIGHT.cast_signed()),
            // over nothing but the wrong answer
            skip_if_equal(1, 2, 1),
            set(0, WRONG),
        ]
    }

    /// `((struct sk_buff *)bpf_cast_to_kern_ctx(context))->len`
    fn cast(&self) -> Result<Vec<bpf_insn>, String> {
        let cast = self.function("bpf_cast_to_kern_ctx")?;
        let mut program = vec![copy(6, 1), call_kernel(cast), load32(0, 0, self.len)];
        program.extend(Self::compare());
        program.push(exit());
        Ok(program)
    }

    /// `((struct sk_buff *)bpf_rdonly_cast(context, …))->len`
    fn rdonly_cast(&self) -> Result<Vec<bpf_insn>, String> {
        let (cast, rdonly) = (self.function("bpf_cast_to_kern_ctx")?, self.function("bpf_rdonly_cast")?);
        let mut program = vec![copy(6, 1), call_kernel(cast), copy(1, 0)];
        program.extend([set(2, self.skb.cast_signed()), call_kernel(rdonly), load32(0, 0, self.len)]);
        program.extend(Self::compare());
        program.push(exit());
        Ok(program)
    }

    /// `bpf_probe_read_kernel(&length, sizeof(length), (void *)context + offset of len)`
    fn probe_read(&self) -> Vec<bpf_insn> {
        let mut program = vec![copy(6, 1), copy(3, 1), add(3, self.len.into()), store64(10, -8, 0)];
        program.extend([copy(1, 10), add(1, -8), set(2, 4), call(BPF_FUNC_probe_read_kernel), load32(0, 10, -8)]);
        program.extend(Self::compare());
        program.push(exit());
        program
    }

    /// `bpf_dynptr_from_skb_meta(context, 0, &dynptr) == 0`
    fn metadata(&self) -> Result<Vec<bpf_insn>, String> {
        let dynptr = self.function("bpf_dynptr_from_skb_meta")?;
        Ok(vec![
            set(2, 0),
            copy(3, 10),
            add(3, -DYNPTR),
            call_kernel(dynptr),
            copy(1, 0),
            set(0, RIGHT.cast_signed()),
            skip_if(1, 0, 1),
            set(0, WRONG),
            exit(),
        ])
    }
}
