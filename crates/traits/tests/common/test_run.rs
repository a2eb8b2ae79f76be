//! Running an XDP program on one packet without an interface.

use std::os::fd::{AsRawFd, BorrowedFd};

/// What a program made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub verdict: u32,
    /// The metadata it left.
    pub metadata: Vec<u8>,
    /// The packet from its first byte on.
    pub packet: Vec<u8>,
}

/// Runs `program` once on `packet` with `metadata` in front of it, as an earlier program may have left it.
pub fn xdp(program: BorrowedFd<'_>, metadata: &[u8], packet: &[u8]) -> Ran {
    let data_in = [metadata, packet].concat();
    let start = metadata.len() as u32;
    let mut context =
        libbpf_sys::xdp_md { data: start, data_end: data_in.len() as u32, data_meta: 0, ..Default::default() };
    let mut data_out = vec![0u8; data_in.len() + 512];
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        data_in: data_in.as_ptr().cast(),
        data_size_in: data_in.len() as u32,
        data_out: data_out.as_mut_ptr().cast(),
        data_size_out: data_out.len() as u32,
        ctx_in: (&raw const context).cast(),
        ctx_size_in: size_of_val(&context) as u32,
        ctx_out: (&raw mut context).cast(),
        ctx_size_out: size_of_val(&context) as u32,
        ..Default::default()
    };
    // SAFETY: every pointer in `opts` is to a live buffer of the length given beside it.
    let err = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut opts) };
    assert_eq!(err, 0, "running the program: {}", std::io::Error::last_os_error());
    let meta_len = (context.data - context.data_meta) as usize;
    let packet_len = (context.data_end - context.data) as usize;
    data_out.truncate(meta_len + packet_len);
    let packet = data_out.split_off(meta_len);
    Ran { verdict: opts.retval, metadata: data_out, packet }
}
