//! The three ABIs as data. All that is not here is common to them.

use crate::exit::IpiMask;
use crate::{common, v13, v14, v15};

/// An ABI of vmm(4), by the first release that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// FreeBSD 13.
    V13,
    /// FreeBSD 14, and 15-CURRENT for long.
    V14,
    /// FreeBSD 15.
    V15,
}

impl Version {
    /// What releases of this `kern.osreldate` have. Kernels in between may differ, so probe.
    #[must_use]
    pub fn of_osreldate(osreldate: u32) -> Option<Version> {
        match osreldate {
            ..1_300_000 => None,
            1_300_000..1_400_000 => Some(Version::V13),
            1_400_000..1_500_000 => Some(Version::V14),
            1_500_000.. => Some(Version::V15),
        }
    }

    /// The ABI.
    #[must_use]
    pub fn abi(self) -> &'static Abi {
        match self {
            Version::V13 => &V13,
            Version::V14 => &V14,
            Version::V15 => &V15,
        }
    }
}

/// How `VM_RUN` gives the exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunLayout {
    /// In its argument ([`v13::vm_run_13`]).
    Embedded,
    /// By pointers ([`v14::vm_run`]).
    Pointers,
}

/// How `VM_ALLOC_MEMSEG` and `VM_GET_MEMSEG` name a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemsegLayout {
    /// [`v13::vm_memseg_14`].
    Plain,
    /// [`v15::vm_memseg`].
    Domains,
}

/// How machines are made. A kernel that has the control node is asked there, whatever its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// By writing `hw.vmm.create`.
    Sysctl,
    /// By a request on `/dev/vmmctl`.
    Control,
}

/// Where the memory above 4 GiB starts in the segment of system memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HighMemory {
    /// At 4 GiB: the hole below it is part of the segment, and never touched.
    AtItsAddress,
    /// Where the memory below the hole ends.
    AfterLow,
}

/// The numbers of memory segments. System memory is 0 everywhere.
///
/// 15 translates the old numbers in the old allocation requests, but not in `VM_MMAP_MEMSEG`: never mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// The boot ROM.
    pub bootrom: i32,
    /// The frame buffer.
    pub framebuffer: i32,
    /// PCI option ROMs; on 13 a slot without a name.
    pub option_rom: i32,
    /// How many there can be.
    pub max: usize,
    /// How many mappings there can be.
    pub max_maps: usize,
}

/// What differs between the kernels.
#[derive(Debug)]
pub struct Abi {
    /// Whose it is.
    pub version: Version,
    /// `VM_RUN`'s code.
    pub run: u32,
    /// How it gives the exit.
    pub run_layout: RunLayout,
    /// `VM_ALLOC_MEMSEG`'s code.
    pub alloc_memseg: u32,
    /// `VM_GET_MEMSEG`'s code.
    pub get_memseg: u32,
    /// What those take.
    pub memseg_layout: MemsegLayout,
    /// The numbers of segments.
    pub segments: Segments,
    /// Where high memory lies in its segment.
    pub high_memory: HighMemory,
    /// `VM_STATS`'s code: with an index except on 13.
    pub stats: u32,
    /// `VM_SNAPSHOT_REQ`'s code: with a pointer more on 13.
    pub snapshot: u32,
    /// The size that `VM_GET_CPUS` wants.
    pub cpuset_bytes: usize,
    /// Where the destinations of an IPI exit are.
    pub ipi_mask: IpiMask,
    /// How machines are made.
    pub create: Create,
    /// The requests that only this and kindred ABIs have, by name.
    own: &'static [&'static [(&'static str, u32)]],
}

impl Abi {
    /// Every request on a machine's node, by name, for `cap_ioctls_limit(2)`.
    pub fn requests(&self) -> impl Iterator<Item = (&'static str, u32)> {
        common::REQUESTS.iter().chain(self.own.iter().copied().flatten()).copied()
    }
}

/// FreeBSD 13.
pub static V13: Abi = Abi {
    version: Version::V13,
    run: v13::VM_RUN.code,
    run_layout: RunLayout::Embedded,
    alloc_memseg: v13::VM_ALLOC_MEMSEG.code,
    get_memseg: v13::VM_GET_MEMSEG.code,
    memseg_layout: MemsegLayout::Plain,
    segments: Segments { bootrom: 1, framebuffer: 2, option_rom: 3, max: 4, max_maps: 8 },
    high_memory: HighMemory::AtItsAddress,
    stats: v13::VM_STATS.code,
    snapshot: v13::VM_SNAPSHOT_REQ.code,
    cpuset_bytes: v13::CPUSET_BYTES,
    ipi_mask: IpiMask::Exit,
    create: Create::Sysctl,
    own: &[v13::REQUESTS, v13::MEMSEG_REQUESTS],
};

/// FreeBSD 14.
pub static V14: Abi = Abi {
    version: Version::V14,
    run: v14::VM_RUN.code,
    run_layout: RunLayout::Pointers,
    alloc_memseg: v13::VM_ALLOC_MEMSEG.code,
    get_memseg: v13::VM_GET_MEMSEG.code,
    memseg_layout: MemsegLayout::Plain,
    segments: Segments { bootrom: 1, framebuffer: 2, option_rom: 3, max: 4, max_maps: 8 },
    high_memory: HighMemory::AtItsAddress,
    stats: v14::VM_STATS.code,
    snapshot: v14::VM_SNAPSHOT_REQ.code,
    cpuset_bytes: common::MAX_CPUS / 8,
    ipi_mask: IpiMask::Buffer,
    create: Create::Sysctl,
    own: &[v14::REQUESTS, v13::MEMSEG_REQUESTS],
};

/// FreeBSD 15.
pub static V15: Abi = Abi {
    version: Version::V15,
    run: v14::VM_RUN.code,
    run_layout: RunLayout::Pointers,
    alloc_memseg: v15::VM_ALLOC_MEMSEG.code,
    get_memseg: v15::VM_GET_MEMSEG.code,
    memseg_layout: MemsegLayout::Domains,
    segments: Segments { bootrom: 8, framebuffer: 9, option_rom: 10, max: 11, max_maps: 22 },
    high_memory: HighMemory::AfterLow,
    stats: v14::VM_STATS.code,
    snapshot: v14::VM_SNAPSHOT_REQ.code,
    cpuset_bytes: common::MAX_CPUS / 8,
    ipi_mask: IpiMask::Buffer,
    create: Create::Control,
    own: &[v14::REQUESTS, v15::REQUESTS],
};
