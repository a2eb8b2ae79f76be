//! Running a program on one packet: BPF_PROG_TEST_RUN.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use packet_traits_policy::hook::{NetfilterFamily, NetfilterHook};

/// Bytes of an Ethernet header, which the kernel wants in front of every packet it is to run a program on.
const ETH_LEN: usize = 14;

/// What an XDP program made of a packet.
pub struct XdpRan {
    pub verdict: u32,
    pub metadata: Vec<u8>,
    pub packet: Vec<u8>,
}

/// Runs an XDP program on a packet with metadata in front of it.
pub fn xdp(program: BorrowedFd<'_>, metadata: &[u8], packet: &[u8]) -> io::Result<XdpRan> {
    let data = [metadata, packet].concat();
    let mut context = xdp_context(metadata.len(), data.len());
    let mut out = vec![0; data.len() + 512];
    let (verdict, len) = run(program, &data, &mut context, Some(&mut out))?;
    let meta_len = (context.data - context.data_meta) as usize;
    // `data_end` is the end of the first buffer
    out.truncate(len);
    let packet = out.split_off(meta_len);
    Ok(XdpRan { verdict, metadata: out, packet })
}

/// Lets an XDP program, and then the network stack of the current namespace, have a packet that came in by an interface.
pub fn receive(program: BorrowedFd<'_>, ifindex: u32, metadata: &[u8], packet: &[u8]) -> io::Result<()> {
    const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
    let data = [metadata, packet].concat();
    let mut context = xdp_context(metadata.len(), data.len());
    context.ingress_ifindex = ifindex;
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        data_in: data.as_ptr().cast(),
        data_size_in: data.len() as u32,
        ctx_in: (&raw const context).cast(),
        ctx_size_in: size_of_val(&context) as u32,
        flags: BPF_F_TEST_XDP_LIVE_FRAMES,
        repeat: 1,
        batch_size: 1,
        ..Default::default()
    };
    test_run(program, &mut opts)
}

fn xdp_context(meta_len: usize, len: usize) -> libbpf_sys::xdp_md {
    libbpf_sys::xdp_md { data: meta_len as u32, data_end: len as u32, ..Default::default() }
}

/// The members of `struct __sk_buff` that a program can be given and that it can change (`convert___skb_to_skb` and
/// `convert_skb_to___skb` in net/bpf/test_run.c). The others are 0.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct SkBuff {
    pub len_pkt_type: [u32; 2],
    pub mark: u32,
    pub queue_mapping_to_vlan_proto: [u32; 5],
    pub priority: u32,
    pub ingress_ifindex: u32,
    pub ifindex: u32,
    pub tc_index_on: [[u32; 13]; 2],
    pub rest: [u32; 11],
}

/// What a program made of an skb.
pub struct SkbRan {
    pub verdict: u32,
    pub context: SkBuff,
    pub packet: Vec<u8>,
}

/// Runs a program that takes an skb: a packet that starts with its Ethernet header, though only programs of TC see that.
pub fn skb(program: BorrowedFd<'_>, context: SkBuff, packet: &[u8]) -> io::Result<SkbRan> {
    let mut context = context;
    let mut out = vec![0; packet.len() + 512];
    let (verdict, _) = run(program, packet, &mut context, Some(&mut out))?;
    out.truncate(packet.len());
    Ok(SkbRan { verdict, context, packet: out })
}

/// Runs a netfilter program on an IP packet at a hook; its verdict.
pub fn netfilter(
    program: BorrowedFd<'_>,
    family: NetfilterFamily,
    hook: NetfilterHook,
    packet: &[u8],
) -> io::Result<u32> {
    /// `struct nf_hook_state`: the numbers of uapi/linux/netfilter.h, then pointers that are not ours to give.
    #[repr(C)]
    #[derive(Default)]
    struct HookState {
        hook: u8,
        family: u8,
        _pointers: [u64; 5],
    }
    let (family, ether_type) = match family {
        NetfilterFamily::Ipv4 => (2, 0x0800u16),
        NetfilterFamily::Ipv6 => (10, 0x86dd),
    };
    let mut state = HookState { family, ..HookState::default() };
    let mut data = Vec::new();
    state.hook = match hook {
        NetfilterHook::PreRouting => 0,
        NetfilterHook::Input => 1,
        NetfilterHook::Forward => 2,
        NetfilterHook::Output => 3,
        NetfilterHook::PostRouting => 4,
    };
    if hook != NetfilterHook::Output {
        data = ethernet(ether_type);
    }
    data.extend(packet);
    run(program, &data, &mut state, None).map(|(verdict, _)| verdict)
}

/// An Ethernet header.
pub fn ethernet(ether_type: u16) -> Vec<u8> {
    let mut header = vec![0; ETH_LEN];
    header[12..].copy_from_slice(&ether_type.to_be_bytes());
    header
}

/// Runs a program once; its return value. With `out`, what it made of the packet goes there, and what it made of the context,
/// there; the number is the packet's length then, with its metadata.
fn run<C>(program: BorrowedFd<'_>, data: &[u8], context: &mut C, out: Option<&mut [u8]>) -> io::Result<(u32, usize)> {
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        data_in: data.as_ptr().cast(),
        data_size_in: data.len() as u32,
        ctx_in: ptr::from_ref(context).cast(),
        ctx_size_in: size_of::<C>() as u32,
        ..Default::default()
    };
    if let Some(out) = out {
        opts.data_out = out.as_mut_ptr().cast();
        opts.data_size_out = out.len() as u32;
        opts.ctx_out = ptr::from_mut(context).cast();
        opts.ctx_size_out = size_of::<C>() as u32;
    }
    test_run(program, &mut opts)?;
    Ok((opts.retval, opts.data_size_out as usize))
}

fn test_run(program: BorrowedFd<'_>, opts: &mut libbpf_sys::bpf_test_run_opts) -> io::Result<()> {
    // SAFETY: every pointer in `opts` is to a live buffer of the length given beside it.
    let err = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), opts) };
    if err == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-err)) }
}
