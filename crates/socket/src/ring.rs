//! The slots of datagrams as memory: for applications that are trusted with the traits of every socket of an attachment.
//!
//! A slot is read without a system call. A writer in the kernel may be at it at the same time, so a slot is copied and then
//! looked at again: what changed in the meantime is not used (a seqlock whose sequence is the datagram's handle).

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    ptr, slice,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
};

use libc::{c_int, c_long};
use memmap2::{MmapOptions, MmapRaw};

use super::{
    abi::{TRAITS_SLOT_HEADER_LEN, traits_receive},
    error::SocketError,
};

/// Where `traits sockets attach` pins the slots of the registry `default`.
const DEFAULT: &str = "/sys/fs/bpf/packet_traits/default/sockets/slots";

/// The slots of an attachment, mapped into this process read-only. A clone is the same mapping.
///
/// It shows the traits of the datagrams of *all* sockets that `traits sockets attach` serves, which is why only root can
/// open the pin unless an administrator has changed that: it takes permission to read **and write** it, and to go through
/// its directories. Applications that are not trusted do without.
#[derive(Clone, Debug)]
pub struct Ring {
    slots: Arc<Slots>,
}

#[derive(Debug)]
struct Slots {
    path: PathBuf,
    memory: MmapRaw,
    /// Bytes from one slot to the next, a multiple of 8.
    slot_len: usize,
    /// How many slots all sockets have together. One more element follows, whose first word is the instance.
    count: usize,
}

impl Ring {
    /// Opens the slots that are pinned at `path`: `/sys/fs/bpf/packet_traits/<registry>/sockets/slots`.
    ///
    /// # Errors
    /// [`SocketError::Ring`] if they cannot be opened or mapped, [`SocketError::NotRing`] if it is something else.
    pub fn open(path: impl AsRef<Path>) -> Result<Ring, SocketError> {
        let path = path.as_ref();
        let failed = |error: io::Error| SocketError::Ring { path: path.to_owned(), error };
        let not_ring = |why: String| SocketError::NotRing { path: path.to_owned(), why };
        // Not with BPF_F_RDONLY: the kernel maps no BPF map through a descriptor that cannot write, because it then takes
        // the mapping for a private one (do_mmap in mm/mmap.c, bpf_map_mmap in kernel/bpf/syscall.c). The slots are frozen: such
        // a descriptor cannot change them either.
        let pinned = open_pinned(path).map_err(failed)?;
        // BPF_OBJ_GET opens programs and links as well; only the name of the descriptor tells them from a map.
        let kind = fs::read_link(format!("/proc/self/fd/{}", pinned.as_raw_fd())).map_err(failed)?;
        if kind.as_os_str() != "anon_inode:bpf-map" {
            return Err(not_ring(format!("it is not a map but {}", kind.display())));
        }
        let info = MapInfo::of(&pinned).map_err(failed)?;
        let (slot_len, elements) = (info.value_size as usize, info.max_entries as usize);
        let has_slots = slot_len > TRAITS_SLOT_HEADER_LEN && slot_len.is_multiple_of(8) && elements >= 2;
        if !has_slots || info.map_type != BPF_MAP_TYPE_ARRAY || info.map_flags & BPF_F_MMAPABLE == 0 {
            return Err(not_ring(format!(
                "it is a map of type {} with flags {:#x} and {elements} entries of {slot_len} bytes",
                info.map_type, info.map_flags
            )));
        }
        let len = slot_len.checked_mul(elements).ok_or_else(|| not_ring("it is too long".to_owned()))?;
        let memory = MmapOptions::new().len(len).map_raw_read_only(pinned.as_raw_fd()).map_err(failed)?;
        Ok(Ring { slots: Arc::new(Slots { path: path.to_owned(), memory, slot_len, count: elements - 1 }) })
    }

    /// Opens the slots of the registry `default` on the usual bpffs.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_default() -> Result<Ring, SocketError> {
        Ring::open(DEFAULT)
    }

    /// A socket's part of the registry `default`'s, if the process may open them and they are the socket's.
    pub(crate) fn part_if_allowed(state: &traits_receive) -> Option<Part> {
        Ring::open_default().ok()?.part(state)
    }

    /// Where they are pinned.
    pub fn path(&self) -> &Path {
        &self.slots.path
    }

    /// Which attachment they are of, as in [`traits_receive::instance`].
    pub fn instance(&self) -> u64 {
        self.slots.words()[self.slots.instance_at()].load(Ordering::Relaxed)
    }

    /// The part that is a socket's. `None` if the state is not one that this attachment can have given.
    pub(crate) fn part(&self, state: &traits_receive) -> Option<Part> {
        let (slots, ring) = (state.slots as usize, state.ring as usize);
        let start = ring.checked_mul(slots)?;
        let fits = slots.is_power_of_two() && start.checked_add(slots)? <= self.slots.count;
        let is_same = state.instance != 0
            && state.instance == self.instance()
            && state.slot_len as usize == self.slots.slot_len
            && state.traits_len as usize <= self.slots.slot_len - TRAITS_SLOT_HEADER_LEN;
        (fits && is_same).then(|| Part {
            ring: self.clone(),
            start,
            mask: state.slots - 1,
            generation: state.generation,
            revision: AtomicU64::new(state.revision),
            seen: AtomicU64::new(0),
            next: AtomicU32::new(0),
        })
    }
}

// include/uapi/linux/bpf.h: `enum bpf_cmd`, `enum bpf_map_type`, and flags of BPF_MAP_CREATE.
const BPF_OBJ_GET: c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: c_int = 15;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// What BPF_OBJ_GET takes: the members of `union bpf_attr` up to `file_flags`.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// What BPF_OBJ_GET_INFO_BY_FD takes.
#[repr(C)]
struct ObjGetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The first members of `struct bpf_map_info`. The kernel writes no more than there is room for.
#[derive(Default)]
#[repr(C)]
struct MapInfo {
    map_type: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

impl MapInfo {
    /// Of an open map.
    fn of(map: &OwnedFd) -> io::Result<MapInfo> {
        let mut info = MapInfo::default();
        let attributes = ObjGetInfo {
            bpf_fd: map.as_raw_fd() as u32,
            info_len: size_of::<MapInfo>() as u32,
            info: (&raw mut info) as u64,
        };
        // SAFETY: `info` is writable for `info_len` bytes, all of integers.
        unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes) }?;
        Ok(info)
    }
}

/// Opens what is pinned at a path: a map, a program or a link.
fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the path is readable up to its NUL and outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &attributes) }?;
    // SAFETY: a descriptor that was just made for this call and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// bpf(2).
///
/// # Safety
/// `attributes` are those of the command, all of their bytes are initialized, and what they point at is valid for it.
unsafe fn bpf<T>(command: c_int, attributes: &T) -> io::Result<c_long> {
    // SAFETY: guaranteed by the caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Slots {
    #[inline]
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, has that many bytes and lives as long as `self`. Nothing in this process
        // writes to it; what the kernel writes is only read with relaxed atomic loads, which are defined on read-only
        // memory for 8 bytes (std::sync::atomic, "Atomic accesses to read-only memory").
        unsafe { slice::from_raw_parts(self.memory.as_ptr().cast(), (self.count + 1) * self.slot_len / 8) }
    }

    fn instance_at(&self) -> usize {
        self.count * self.slot_len / 8
    }
}

/// The slots of one socket.
#[derive(Debug)]
pub(crate) struct Part {
    ring: Ring,
    /// The first one.
    start: usize,
    /// Which bits of a handle are the slot's number.
    mask: u32,
    generation: u32,
    /// The registry's revision of which the reader's keys are.
    revision: AtomicU64,
    /// The latest one that was met.
    seen: AtomicU64,
    /// The handle that most likely comes next.
    next: AtomicU32,
}

/// What was found in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The datagram's traits.
    Traits,
    /// Its traits, of the keys that there were at this revision of the registry: which of them are the reader's is not known.
    Other(u64),
    /// It is not there any more.
    Nothing,
}

impl Part {
    /// Has the processor fetch the slot that will most likely be read next, while something else is done.
    #[inline]
    pub(crate) fn prefetch(&self) {
        let first = self.first_word(self.next.load(Ordering::Relaxed));
        let words = self.ring.slots.words();
        // Each in a cache line of its own.
        words[first..first + self.ring.slots.slot_len / 8].iter().step_by(8).for_each(prefetch);
    }

    /// Where a handle's slot begins among the words.
    #[inline]
    fn first_word(&self, handle: u32) -> usize {
        (self.start + (handle & self.mask) as usize) * (self.ring.slots.slot_len / 8)
    }

    /// Copies the traits of the datagram with this handle, if they are still there and of the reader's keys. If not,
    /// `record` is whatever.
    #[inline]
    pub(crate) fn read(&self, handle: u32, record: &mut [u8]) -> Found {
        let slots = &*self.ring.slots;
        let at = self.first_word(handle);
        self.next.store(handle.wrapping_add(1), Ordering::Relaxed);
        let slot = &slots.words()[at..at + slots.slot_len / 8];
        match read_slot(slot, handle, self.generation, record) {
            None => Found::Nothing,
            Some(revision) if revision == self.revision() => Found::Traits,
            Some(revision) => Found::Other(revision),
        }
    }

    /// The registry's revision of which the reader's keys are.
    #[inline]
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// Says that they are of this one, too.
    pub(crate) fn set_revision(&self, revision: u64) {
        self.revision.store(revision, Ordering::Relaxed);
    }

    /// Whether it is later than any that this was asked of before: each is worth one look at the keys.
    pub(crate) fn is_news(&self, revision: u64) -> bool {
        revision > self.revision().max(self.seen.fetch_max(revision, Ordering::Relaxed))
    }

    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }
}

/// Has the processor fetch the cache line of a word, and goes on.
#[cfg(target_arch = "x86_64")]
#[inline]
fn prefetch(word: &AtomicU64) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint, which may be of any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(ptr::from_ref(word).cast()) };
}

/// The same by a load, which the processor may have to wait for.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn prefetch(word: &AtomicU64) {
    std::hint::black_box(word.load(Ordering::Relaxed));
}

/// Copies what follows a slot's first words, as much as `record` has room for (a multiple of 8 bytes), if the slot is the
/// handle's before and after. Returns the revision.
#[inline]
fn read_slot(slot: &[AtomicU64], handle: u32, generation: u32, record: &mut [u8]) -> Option<u64> {
    let [a, b, c, d] = handle.to_ne_bytes();
    let [e, f, g, h] = generation.to_ne_bytes();
    let wanted = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    if slot[0].load(Ordering::Relaxed) != wanted {
        return None;
    }
    // A relaxed load and a fence are an acquire load, which is not defined on read-only memory.
    fence(Ordering::Acquire);
    let revision = slot[1].load(Ordering::Relaxed);
    for (to, from) in record.as_chunks_mut().0.iter_mut().zip(&slot[2..]) {
        *to = from.load(Ordering::Relaxed).to_ne_bytes();
    }
    fence(Ordering::Acquire);
    (slot[0].load(Ordering::Relaxed) == wanted).then_some(revision)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::AtomicBool,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    const NONE: u32 = u32::MAX;
    const REVISION: u64 = 12;

    fn first_word(handle: u32, generation: u32) -> u64 {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&handle.to_ne_bytes());
        bytes[4..].copy_from_slice(&generation.to_ne_bytes());
        u64::from_ne_bytes(bytes)
    }

    /// Writes a slot as the kernel side does.
    fn write(slot: &[AtomicU64], handle: u32, generation: u32, value: u64) {
        slot[0].store(first_word(NONE, generation), Ordering::Relaxed);
        fence(Ordering::Release);
        slot[1].store(REVISION, Ordering::Relaxed);
        for word in &slot[2..] {
            word.store(value, Ordering::Relaxed);
        }
        slot[0].store(first_word(handle, generation), Ordering::Release);
    }

    fn slot(words: usize) -> Vec<AtomicU64> {
        (0..words).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn a_slot_is_read_by_its_handle_and_generation_only() {
        let slot = slot(5);
        write(&slot, 7, 2, 0x1111);
        let mut record = [0; 24];
        assert_eq!(read_slot(&slot, 7, 2, &mut record), Some(REVISION));
        assert_eq!(record.as_chunks().0, [0x1111u64.to_ne_bytes(); 3]);
        assert_eq!(read_slot(&slot, 8, 2, &mut record), None);
        assert_eq!(read_slot(&slot, 7, 3, &mut record), None);
        let mut short = [0; 8];
        assert_eq!(read_slot(&slot, 7, 2, &mut short), Some(REVISION));
    }

    #[test]
    fn a_slot_that_is_being_written_is_not_read() {
        let slot = slot(5);
        write(&slot, 7, 2, 1);
        slot[0].store(first_word(NONE, 2), Ordering::Relaxed);
        assert_eq!(read_slot(&slot, 7, 2, &mut [0; 24]), None);
    }

    /// What was read is never of two datagrams, nor of another than was asked for.
    #[test]
    fn a_writer_at_the_same_time_is_noticed() {
        const SLOTS: u32 = 4;
        const WORDS: usize = 31;
        let slots: Vec<_> = (0..SLOTS).map(|_| slot(WORDS)).collect();
        let value = |handle: u32| u64::from(handle) << 32 | u64::from(!handle);
        let (newest, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let (mut found, mut lost) = (0u64, 0u64);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut handle = 1u32;
                while !stop.load(Ordering::Relaxed) {
                    write(&slots[(handle % SLOTS) as usize], handle, 9, value(handle));
                    newest.store(handle.into(), Ordering::Release);
                    handle += 1;
                }
            });
            let end = Instant::now() + Duration::from_millis(300);
            let mut record = [0; 8 * (WORDS - 2)];
            while Instant::now() < end {
                for lag in 0..SLOTS {
                    let Some(handle) = (newest.load(Ordering::Acquire) as u32).checked_sub(lag).filter(|h| *h != 0)
                    else {
                        continue;
                    };
                    if read_slot(&slots[(handle % SLOTS) as usize], handle, 9, &mut record).is_some() {
                        assert_eq!(record.as_chunks().0, [value(handle).to_ne_bytes(); WORDS - 2]);
                        found += 1;
                    } else {
                        lost += 1;
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(found > 0, "{found} found, {lost} lost");
    }

    /// The memory of an attachment with `rings` rings of `slots` slots of 7 words, without a map.
    fn ring(rings: usize, slots: usize, instance: u64) -> Ring {
        let (slot_len, count) = (56, rings * slots);
        let memory = MmapOptions::new().len((count + 1) * slot_len).map_anon().unwrap();
        let ring = Ring { slots: Arc::new(Slots { path: "memory".into(), memory: memory.into(), slot_len, count }) };
        ring.slots.words()[ring.slots.instance_at()].store(instance, Ordering::Relaxed);
        ring
    }

    fn state() -> traits_receive {
        traits_receive {
            enabled: 1,
            traits_len: 40,
            flow_len: 40,
            packet_len: 0,
            ring: 1,
            slots: 8,
            generation: 3,
            slot_len: 56,
            instance: 77,
            revision: REVISION,
        }
    }

    #[test]
    fn a_socket_reads_the_slots_of_its_ring() {
        let ring = ring(2, 8, 77);
        let part = ring.part(&state()).unwrap();
        let handle = 0x1005;
        let at = (8 + 5) * 7;
        write(&ring.slots.words()[at..at + 7], handle, 3, 0xabcd);
        let mut record = [0; 40];
        assert_eq!(part.read(handle, &mut record), Found::Traits);
        assert_eq!(record.as_chunks().0, [0xabcdu64.to_ne_bytes(); 5]);
        assert_eq!(part.read(handle - 8, &mut record), Found::Nothing);
    }

    #[test]
    fn traits_of_other_keys_are_told_from_those_of_the_readers() {
        let ring = ring(2, 8, 77);
        for revision in [REVISION - 1, REVISION + 1] {
            let part = ring.part(&traits_receive { revision, ..state() }).unwrap();
            write(&ring.slots.words()[8 * 7..9 * 7], 0x1000, 3, 0xabcd);
            assert_eq!(part.read(0x1000, &mut [0; 40]), Found::Other(REVISION));
            assert_eq!(part.is_news(REVISION), revision < REVISION);
            assert!(!part.is_news(REVISION), "only once");
            part.set_revision(REVISION);
            assert_eq!(part.read(0x1000, &mut [0; 40]), Found::Traits);
        }
    }

    #[test]
    fn a_ring_of_another_attachment_is_refused() {
        let ring = ring(2, 8, 77);
        for other in [
            traits_receive { instance: 78, ..state() },
            traits_receive { ring: 2, ..state() },
            traits_receive { ring: u32::MAX, slots: 1 << 31, ..state() },
            traits_receive { slots: 7, ..state() },
            traits_receive { slots: 0, ..state() },
            traits_receive { slot_len: 48, ..state() },
            traits_receive { traits_len: 48, ..state() },
        ] {
            assert!(ring.part(&other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = Ring::open("/sys/fs/bpf/no/such/ring").unwrap_err();
        assert!(matches!(error, SocketError::Ring { .. }), "{error:?}");
        assert!(error.to_string().contains("/sys/fs/bpf/no/such/ring"), "{error}");
        assert!(matches!(Ring::open("a\0b"), Err(SocketError::Ring { .. })));
    }
}
