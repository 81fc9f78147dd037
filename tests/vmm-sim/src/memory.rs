//! Segments and mappings: guest memory as the kernel keeps it.
//!
//! A segment is a memfd, so that user space can map it, and a piece of the kernel's own arena that is mapped over the
//! same file, where the processors find it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use emu::{AddressSpace, Backing, PAGE_SIZE, Ram, RamAddr, RegionId, Rights};

use crate::version::Version;
use crate::wire::Res;

/// A piece of memory.
pub(crate) struct Segment {
    pub(crate) id: i32,
    pub(crate) len: u64,
    /// Empty for system memory.
    pub(crate) name: String,
    pub(crate) file: Arc<OwnedFd>,
    at: RamAddr,
}

/// A range of a segment at a guest physical address.
#[derive(Clone, Copy)]
pub(crate) struct Mapping {
    pub(crate) gpa: u64,
    pub(crate) len: u64,
    pub(crate) segid: i32,
    pub(crate) segoff: u64,
    pub(crate) prot: i32,
    pub(crate) flags: i32,
    region: RegionId,
}

pub(crate) struct Memory {
    version: Version,
    space: Arc<AddressSpace>,
    segments: Vec<Segment>,
    mappings: Vec<Mapping>,
}

fn aligned(n: u64) -> bool {
    n.is_multiple_of(PAGE_SIZE)
}

const READ: i32 = 1;
const WRITE: i32 = 2;
const ALL: i32 = 7;
const WIRED: i32 = 1;

impl Memory {
    pub(crate) fn new(version: Version, space: Arc<AddressSpace>) -> Memory {
        Memory { version, space, segments: Vec::new(), mappings: Vec::new() }
    }

    pub(crate) fn segment(&self, id: i32) -> Option<&Segment> {
        self.segments.iter().find(|s| s.id == id)
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Segment> {
        self.segments.iter().find(|s| !s.name.is_empty() && s.name == name)
    }

    pub(crate) fn is_device(&self, id: i32) -> bool {
        id >= self.version.first_device_segment()
    }

    /// VM_ALLOC_MEMSEG.
    pub(crate) fn alloc(&mut self, id: i32, len: u64, name: String) -> Res {
        if id < 0 || id as usize >= self.version.segments() || len == 0 || !aligned(len) {
            return Err(libc::EINVAL);
        }
        if let Some(old) = self.segment(id) {
            let same = old.len == len && old.name.is_empty() == name.is_empty();
            return Err(if same { libc::EEXIST } else { libc::EINVAL });
        }
        let (file, at) = allocate(self.space.ram(), id, len).map_err(|_| libc::ENOMEM)?;
        self.segments.push(Segment { id, len, name, file: Arc::new(file), at });
        Ok(())
    }

    /// VM_MMAP_MEMSEG.
    pub(crate) fn map(&mut self, gpa: u64, segid: i32, segoff: u64, len: u64, prot: i32, flags: i32) -> Res {
        let end = gpa.checked_add(len).ok_or(libc::EINVAL)?;
        let last = segoff.checked_add(len).ok_or(libc::EINVAL)?;
        let seg = self.segment(segid).ok_or(libc::EINVAL)?;
        if prot == 0 || prot & !ALL != 0 || flags & !WIRED != 0 || len == 0 || last > seg.len {
            return Err(libc::EINVAL);
        }
        if !aligned(gpa | segoff | len) {
            return Err(libc::EINVAL);
        }
        if self.mappings.len() == self.version.mappings() {
            return Err(libc::ENOSPC);
        }
        if self.mappings.iter().any(|m| gpa < m.gpa + m.len && m.gpa < end) {
            return Err(libc::EFAULT);
        }
        let rights = if prot & WRITE != 0 { Rights::ReadWrite } else { Rights::Read };
        let region = self.space.add_memory(gpa, len, 0, rights, Backing::Ram(RamAddr(seg.at.0 + segoff)));
        self.space.enable(region, gpa, true);
        self.mappings.push(Mapping { gpa, len, segid, segoff, prot, flags, region });
        self.mappings.sort_by_key(|m| m.gpa);
        Ok(())
    }

    /// VM_MUNMAP_MEMSEG.
    pub(crate) fn unmap(&mut self, gpa: u64, len: u64) -> Res {
        let n = self.mappings.iter().position(|m| (m.gpa, m.len) == (gpa, len)).ok_or(libc::EINVAL)?;
        self.remove(n);
        Ok(())
    }

    fn remove(&mut self, n: usize) {
        let m = self.mappings.remove(n);
        self.space.enable(m.region, m.gpa, false);
    }

    /// VM_MMAP_GETNEXT: the first mapping from `gpa` on.
    pub(crate) fn next(&self, gpa: u64) -> Res<Mapping> {
        self.mappings.iter().find(|m| m.gpa >= gpa).copied().ok_or(libc::ENOENT)
    }

    /// The mapping that holds an address.
    pub(crate) fn at(&self, gpa: u64) -> Option<&Mapping> {
        self.mappings.iter().find(|m| m.gpa <= gpa && gpa < m.gpa + m.len)
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.len).sum()
    }

    /// VM_REINIT takes device memory out of the map; the segments stay.
    pub(crate) fn reinit(&mut self) {
        while let Some(n) = self.mappings.iter().position(|m| self.is_device(m.segid)) {
            self.remove(n);
        }
    }

    /// Where mmap(2) of `/dev/vmm/NAME` leads: inside one mapping of system memory.
    pub(crate) fn host_view(&self, gpa: u64, len: u64) -> Res<(Arc<OwnedFd>, u64)> {
        let m = self.at(gpa).ok_or(libc::EINVAL)?;
        if len == 0 || gpa + len > m.gpa + m.len || self.is_device(m.segid) {
            return Err(libc::EINVAL);
        }
        let seg = self.segment(m.segid).ok_or(libc::EINVAL)?;
        Ok((seg.file.clone(), m.segoff + (gpa - m.gpa)))
    }

    /// The place in the arena of a byte of a file that user space has mapped.
    pub(crate) fn arena(&self, file: &Arc<OwnedFd>, offset: u64) -> Option<RamAddr> {
        self.segments.iter().find(|s| Arc::ptr_eq(&s.file, file)).map(|s| RamAddr(s.at.0 + offset))
    }

    /// Whether anything may be read at an address.
    pub(crate) fn readable(&self, gpa: u64) -> bool {
        self.at(gpa).is_some_and(|m| m.prot & READ != 0)
    }
}

/// A file, and its place in the arena.
#[expect(unsafe_code, reason = "memfd_create(2), and mmap(2) over a block of the arena")]
fn allocate(ram: &Ram, id: i32, len: u64) -> io::Result<(OwnedFd, RamAddr)> {
    let block = ram.alloc(&format!("segment {id}"), len)?;
    // SAFETY: a constant name.
    let fd = unsafe { libc::memfd_create(c"vmm-sim".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: an own descriptor.
    if unsafe { libc::ftruncate(fd, len as i64) } != 0 {
        return Err(io::Error::last_os_error());
    }
    map_file(&file, 0, ram.host(block.start), len as usize)?;
    Ok((file, block.start))
}

/// Maps a file in place of what is at `at`.
#[expect(unsafe_code, reason = "mmap(2) at an address")]
pub(crate) fn map_file(file: &OwnedFd, offset: u64, at: *mut u8, len: usize) -> io::Result<()> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    // SAFETY: `at..at + len` is a mapping of the caller's that no Rust reference points into.
    let p = unsafe { libc::mmap(at.cast(), len, prot, flags, file.as_raw_fd(), offset as i64) };
    if p == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}
