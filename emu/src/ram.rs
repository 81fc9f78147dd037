//! Guest memory: one reserved arena of host address space that every RAM, ROM and frame buffer of the machine is cut
//! from.
//!
//! A [`RamAddr`] names a byte by its place in the arena, whatever guest physical address it appears at; shadowed and
//! aliased memory so has one name, which is what code caches, dirty logs and saved images are keyed by.
//!
//! The guest and its devices write this memory while we read it, so no Rust reference to it ever exists: all access is
//! by volatile copies. Beside each page there is a word of 64 bits, one for each 64-byte line, that says where the
//! software CPU holds decoded code; a write to such a line is reported to it.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Bytes in a page, the unit of mapping, of the dirty log and of code tracking.
pub const PAGE_SIZE: u64 = 4096;

/// The place of a byte of guest memory in the arena, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RamAddr(pub u64);

impl RamAddr {
    /// The number of the page that holds this byte.
    pub fn page(self) -> u64 {
        self.0 / PAGE_SIZE
    }
}

/// A named piece of the arena.
#[derive(Clone, Debug)]
pub struct RamBlock {
    /// Who it belongs to, as saved images name it.
    pub name: String,
    /// Its first byte.
    pub start: RamAddr,
    /// Its length in bytes, a multiple of [`PAGE_SIZE`].
    pub len: u64,
}

/// A zeroed mapping of the host that lives as long as the value does.
struct Mapping {
    base: *mut u8,
    len: usize,
}

// SAFETY: the mapping is plain memory owned by this value; every access to it is by volatile or atomic operations.
#[expect(unsafe_code, reason = "a raw mapping shared by all threads of the machine")]
unsafe impl Send for Mapping {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a raw mapping shared by all threads of the machine")]
unsafe impl Sync for Mapping {}

#[expect(unsafe_code, reason = "mmap(2) and munmap(2)")]
impl Mapping {
    fn new(len: usize, writable: bool) -> io::Result<Mapping> {
        let prot = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_NONE };
        // FreeBSD overcommits by default and has no flag for it.
        #[cfg(target_os = "linux")]
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
        #[cfg(not(target_os = "linux"))]
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len.max(1), prot, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { base: base.cast(), len: len.max(1) })
    }

    fn allow(&self, offset: usize, len: usize) -> io::Result<()> {
        assert!(offset + len <= self.len);
        // SAFETY: the range lies inside this mapping, and is only made more accessible.
        let r = unsafe { libc::mprotect(self.base.add(offset).cast(), len, libc::PROT_READ | libc::PROT_WRITE) };
        if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page aligned, zeroed, at least `len` bytes long and only ever seen as atomics.
        unsafe { std::slice::from_raw_parts(self.base.cast(), self.len / 8) }
    }
}

#[expect(unsafe_code, reason = "munmap(2)")]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody can hold a reference into it any more.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

/// The arena.
pub struct Ram {
    memory: Mapping,
    /// One word a page: the 64-byte lines that hold decoded code.
    code: Mapping,
    /// One bit a page.
    dirty: Mapping,
    dirty_on: AtomicBool,
    blocks: Mutex<Vec<RamBlock>>,
    used: AtomicU64,
    /// Pages whose code was overwritten by somebody else than the CPU, for the CPU to collect.
    stale: Mutex<Vec<u64>>,
    stale_any: AtomicBool,
}

impl Ram {
    /// Reserves address space for `capacity` bytes of guest memory. Nothing is allocated until it is used.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn new(capacity: u64) -> io::Result<Ram> {
        let pages = capacity.div_ceil(PAGE_SIZE) as usize;
        Ok(Ram {
            memory: Mapping::new(pages * PAGE_SIZE as usize, false)?,
            code: Mapping::new(pages * 8, true)?,
            dirty: Mapping::new(pages.div_ceil(64) * 8, true)?,
            dirty_on: AtomicBool::new(false),
            blocks: Mutex::default(),
            used: AtomicU64::new(0),
            stale: Mutex::default(),
            stale_any: AtomicBool::new(false),
        })
    }

    /// Takes `len` zeroed bytes (rounded up to pages) from the arena.
    ///
    /// # Errors
    /// When the arena is full, or the host refuses the memory.
    pub fn alloc(&self, name: &str, len: u64) -> io::Result<RamBlock> {
        let len = len.div_ceil(PAGE_SIZE).max(1) * PAGE_SIZE;
        let mut blocks = self.blocks.lock().unwrap();
        let start = self.used.load(Ordering::Relaxed);
        if start.checked_add(len).is_none_or(|end| end > self.memory.len as u64) {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, format!("no room for {len} bytes of {name}")));
        }
        self.memory.allow(start as usize, len as usize)?;
        self.used.store(start + len, Ordering::Release);
        let block = RamBlock { name: name.to_owned(), start: RamAddr(start), len };
        blocks.push(block.clone());
        Ok(block)
    }

    /// All pieces, in the order in which they were taken.
    pub fn blocks(&self) -> Vec<RamBlock> {
        self.blocks.lock().unwrap().clone()
    }

    /// Keeps what was taken of the arena from being swapped out.
    ///
    /// # Errors
    /// What mlock(2) says: as a rule that the limit of the process's user is lower.
    #[expect(unsafe_code, reason = "mlock(2)")]
    pub fn wire(&self) -> io::Result<()> {
        let len = self.used.load(Ordering::Acquire) as usize;
        // SAFETY: the range is in the mapping, and its contents stay as they are.
        if unsafe { libc::mlock(self.memory.base.cast(), len) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Has core dumps of the process leave out the arena, which else would be as long as the guest's memory.
    ///
    /// # Errors
    /// What madvise(2) says.
    #[expect(unsafe_code, reason = "madvise(2)")]
    pub fn leave_out_of_dumps(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        const LEAVE_OUT: libc::c_int = libc::MADV_DONTDUMP;
        #[cfg(not(target_os = "linux"))]
        const LEAVE_OUT: libc::c_int = libc::MADV_NOCORE;
        // SAFETY: the range is the mapping, and its contents stay as they are.
        let done = unsafe { libc::madvise(self.memory.base.cast(), self.memory.len, LEAVE_OUT) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Bytes of it that the host has in its own memory; 0 if the host does not say.
    #[expect(unsafe_code, reason = "mincore(2)")]
    pub fn resident(&self) -> u64 {
        let used = self.used.load(Ordering::Acquire) as usize;
        let mut states = [0; 4096];
        let mut pages = 0;
        for offset in (0..used).step_by(states.len() * PAGE_SIZE as usize) {
            let len = (used - offset).min(states.len() * PAGE_SIZE as usize);
            // SAFETY: the range lies inside this mapping, and there is a byte for each of its pages.
            let told = unsafe { libc::mincore(self.memory.base.add(offset).cast(), len, states.as_mut_ptr()) };
            if told == 0 {
                pages += states[..len / PAGE_SIZE as usize].iter().filter(|state| **state & 1 != 0).count();
            }
        }
        pages as u64 * PAGE_SIZE
    }

    /// A pointer to the byte at `addr`, for CPU back ends; it is good up to the end of the arena's allocated part.
    ///
    /// # Panics
    /// When `addr` is not in a block: the caller took it from somewhere else than this arena.
    #[expect(unsafe_code, reason = "pointer arithmetic inside the mapping")]
    pub fn host(&self, addr: RamAddr) -> *mut u8 {
        assert!(addr.0 < self.used.load(Ordering::Acquire), "{addr:?} is outside guest memory");
        // SAFETY: checked above.
        unsafe { self.memory.base.add(addr.0 as usize) }
    }

    /// Copies out of guest memory. An aligned word of 2, 4 or 8 bytes that is all there is to copy, or lies between
    /// such words, is read at once: ring indices and ownership bits are never seen half written.
    ///
    /// # Panics
    /// When the range is not in the arena.
    #[expect(unsafe_code, reason = "volatile copy out of memory that the guest may be writing")]
    pub fn read(&self, addr: RamAddr, buf: &mut [u8]) {
        let src = self.range(addr, buf.len());
        let mut i = 0;
        // SAFETY: `range` checked that all of `src..src + buf.len()` is in the mapping; `word` keeps reads aligned.
        unsafe {
            while i < buf.len() {
                let p = src.add(i);
                let step = word(p, buf.len() - i);
                let to = &mut buf[i..i + step];
                match step {
                    8 => to.copy_from_slice(&p.cast::<u64>().read_volatile().to_ne_bytes()),
                    4 => to.copy_from_slice(&p.cast::<u32>().read_volatile().to_ne_bytes()),
                    2 => to.copy_from_slice(&p.cast::<u16>().read_volatile().to_ne_bytes()),
                    _ => to[0] = p.read_volatile(),
                }
                i += step;
            }
        }
    }

    /// Copies into guest memory, aligned words at once as [`Ram::read`], keeping the dirty log and telling the software
    /// CPU of overwritten code.
    ///
    /// # Panics
    /// When the range is not in the arena.
    #[expect(unsafe_code, reason = "volatile copy into memory that the guest may be reading")]
    pub fn write(&self, addr: RamAddr, data: &[u8]) {
        let dst = self.range(addr, data.len());
        let mut i = 0;
        // SAFETY: as in `read`.
        unsafe {
            while i < data.len() {
                let p = dst.add(i);
                let step = word(p, data.len() - i);
                let from = &data[i..i + step];
                match step {
                    8 => p.cast::<u64>().write_volatile(u64::from_ne_bytes(from.try_into().unwrap())),
                    4 => p.cast::<u32>().write_volatile(u32::from_ne_bytes(from.try_into().unwrap())),
                    2 => p.cast::<u16>().write_volatile(u16::from_ne_bytes(from.try_into().unwrap())),
                    _ => p.write_volatile(from[0]),
                }
                i += step;
            }
        }
        self.wrote(addr, data.len() as u64);
    }

    /// Must follow every write to guest memory that did not go through [`Ram::write`] or the CPU that owns the code
    /// cache.
    pub fn wrote(&self, addr: RamAddr, len: u64) {
        if len == 0 {
            return;
        }
        for page in addr.page()..=RamAddr(addr.0 + len - 1).page() {
            self.mark_dirty(page);
            let from = addr.0.max(page * PAGE_SIZE) - page * PAGE_SIZE;
            let to = (addr.0 + len).min((page + 1) * PAGE_SIZE) - page * PAGE_SIZE;
            if self.code_lines(page).load(Ordering::Acquire) & line_mask(from, to) != 0 {
                self.stale.lock().unwrap().push(page);
                self.stale_any.store(true, Ordering::Release);
            }
        }
    }

    /// The lines of `page` that hold decoded code, bit n for bytes 64n to 64n+63. Owned by the software CPU.
    pub fn code_lines(&self, page: u64) -> &AtomicU64 {
        &self.code.words()[page as usize]
    }

    /// Whether [`Ram::take_stale`] has anything; one relaxed load.
    pub fn stale(&self) -> bool {
        self.stale_any.load(Ordering::Relaxed)
    }

    /// The pages with decoded code that were written by others than the CPU since the last call.
    pub fn take_stale(&self) -> Vec<u64> {
        let mut stale = self.stale.lock().unwrap();
        self.stale_any.store(false, Ordering::Release);
        std::mem::take(&mut *stale)
    }

    /// Starts or stops the log of written pages. Back ends that map memory must follow ([`crate::Map::dirty_log`]).
    pub fn set_dirty_log(&self, on: bool) {
        self.dirty_on.store(on, Ordering::Release);
        if !on {
            self.dirty.words().iter().for_each(|w| w.store(0, Ordering::Relaxed));
        }
    }

    /// Whether pages that are written are logged.
    pub fn dirty_log(&self) -> bool {
        self.dirty_on.load(Ordering::Relaxed)
    }

    /// Logs a page as written.
    pub fn mark_dirty(&self, page: u64) {
        if self.dirty_log() {
            self.dirty.words()[page as usize / 64].fetch_or(1 << (page % 64), Ordering::Relaxed);
        }
    }

    /// The pages of `block` written since the last harvest, as offsets in pages from its start.
    pub fn harvest_dirty(&self, block: &RamBlock) -> Vec<u64> {
        let first = block.start.page();
        (first..first + block.len / PAGE_SIZE)
            .filter(|page| {
                let bit = 1 << (page % 64);
                let word = &self.dirty.words()[*page as usize / 64];
                word.load(Ordering::Relaxed) & bit != 0 && word.fetch_and(!bit, Ordering::AcqRel) & bit != 0
            })
            .map(|page| page - first)
            .collect()
    }

    #[expect(unsafe_code, reason = "pointer arithmetic inside the mapping")]
    fn range(&self, addr: RamAddr, len: usize) -> *mut u8 {
        let used = self.used.load(Ordering::Acquire);
        assert!(addr.0 <= used && len as u64 <= used - addr.0, "{addr:?}+{len} is outside guest memory");
        // SAFETY: checked above.
        unsafe { self.memory.base.add(addr.0 as usize) }
    }
}

/// The widest aligned word at `p` of no more than `left` bytes, which is not 0.
#[inline]
fn word(p: *const u8, left: usize) -> usize {
    // The address's lowest bit that is set, 8 at most, and no more than fits.
    let aligned = 1 << (p as usize | 8).trailing_zeros();
    if left >= aligned { aligned } else { 1 << left.ilog2() }
}

/// The line bits of bytes `from..to` of one page.
fn line_mask(from: u64, to: u64) -> u64 {
    let first = from / 64;
    let count = to.div_ceil(64) - first;
    if count >= 64 { u64::MAX } else { ((1 << count) - 1) << first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_at_odd_addresses_comes_back() {
        let ram = Ram::new(64 << 10).unwrap();
        ram.alloc("ram", 8192).unwrap();
        let data: Vec<u8> = (0..100).collect();
        ram.write(RamAddr(4093), &data);
        let mut back = vec![0; 102];
        ram.read(RamAddr(4092), &mut back);
        assert_eq!(back[0], 0);
        assert_eq!(&back[1..101], &data[..]);
        assert_eq!(back[101], 0);
    }

    #[test]
    fn an_aligned_word_is_one_access() {
        let p = |at: usize| std::ptr::without_provenance::<u8>(0x1000 + at);
        assert_eq!([word(p(0), 100), word(p(0), 7), word(p(0), 2), word(p(4), 8), word(p(6), 8)], [8, 4, 2, 4, 2]);
        assert_eq!([word(p(1), 8), word(p(0), 1), word(p(2), 3), word(p(4), 3)], [1, 1, 2, 2]);
    }

    #[test]
    fn a_ring_index_is_never_seen_half_written() {
        let ram = Ram::new(64 << 10).unwrap();
        ram.alloc("ram", 4096).unwrap();
        std::thread::scope(|s| {
            s.spawn(|| (0..200_000u32).for_each(|n| ram.write(RamAddr(2), &[n as u8; 2])));
            for _ in 0..200_000 {
                let mut index = [0; 2];
                ram.read(RamAddr(2), &mut index);
                assert_eq!(index[0], index[1]);
            }
        });
    }

    #[test]
    #[should_panic(expected = "outside guest memory")]
    fn memory_that_was_not_allocated_cannot_be_read() {
        let ram = Ram::new(64 << 10).unwrap();
        ram.alloc("ram", 4096).unwrap();
        ram.read(RamAddr(4095), &mut [0; 2]);
    }

    #[test]
    fn memory_is_resident_when_it_has_been_written() {
        let ram = Ram::new(64 << 20).unwrap();
        ram.alloc("ram", 32 << 20).unwrap();
        assert_eq!(ram.resident(), 0);
        (0..4).for_each(|n| ram.write(RamAddr(n * (8 << 20)), &[1]));
        let resident = ram.resident();
        // The host may have larger pages.
        assert!((4 * PAGE_SIZE..=32 << 20).contains(&resident), "{resident}");
    }

    #[test]
    fn only_writes_to_code_lines_are_reported() {
        let ram = Ram::new(64 << 10).unwrap();
        ram.alloc("ram", 8192).unwrap();
        ram.code_lines(1).store(0b10, Ordering::Relaxed);
        ram.write(RamAddr(4096), &[1; 64]);
        assert!(!ram.stale());
        ram.write(RamAddr(4090), &[1; 71]);
        assert!(ram.stale());
        assert_eq!(ram.take_stale(), [1]);
        assert!(!ram.stale());
    }

    #[test]
    fn the_dirty_log_gives_each_page_once() {
        let ram = Ram::new(64 << 10).unwrap();
        let _low = ram.alloc("low", 4096).unwrap();
        let block = ram.alloc("ram", 16384).unwrap();
        ram.write(block.start, &[1]);
        assert!(ram.harvest_dirty(&block).is_empty(), "nothing is logged before it is asked for");
        ram.set_dirty_log(true);
        ram.write(RamAddr(block.start.0 + 8191), &[1, 2]);
        assert_eq!(ram.harvest_dirty(&block), [1, 2]);
        assert!(ram.harvest_dirty(&block).is_empty());
    }

    #[test]
    fn line_masks_cover_the_bytes_touched() {
        assert_eq!(line_mask(0, 1), 1);
        assert_eq!(line_mask(63, 65), 3);
        assert_eq!(line_mask(4032, 4096), 1 << 63);
        assert_eq!(line_mask(0, 4096), u64::MAX);
    }
}
