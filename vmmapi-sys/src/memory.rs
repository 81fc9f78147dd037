//! Guest memory: segments, their mappings, and the host's view of both.

use std::io;

use crate::abi::MemsegLayout;
use crate::common::{self, MAX_SEGMENT_NAME, vm_memmap};
use crate::kernel::{Access, Node};
use crate::layout::Plain;
use crate::vm::{Vm, call_pointing};
use crate::vmm::field;
use crate::{v13, v15};

/// A mapping can be read.
pub const PROT_READ: i32 = 1;
/// It can be written.
pub const PROT_WRITE: i32 = 2;
/// It can be executed.
pub const PROT_EXEC: i32 = 4;

/// A memory segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memseg {
    /// Its length.
    pub len: u64,
    /// The name of its device node; system memory has none.
    pub name: Option<String>,
}

impl Vm {
    /// `VM_ALLOC_MEMSEG`: makes a segment; with a name it is device memory, and has the node that [`Self::devmem`]
    /// opens. The numbers are [`crate::abi::Segments`]'.
    ///
    /// # Errors
    /// `EEXIST`: it is there, and the same. `EINVAL`: it is there and differs, or the length is no multiple of a page,
    /// or the name is too long.
    #[expect(unsafe_code, reason = "the boundary to the kernel")]
    pub fn alloc_memseg(&self, segid: i32, len: u64, name: Option<&str>) -> io::Result<()> {
        let name = name.unwrap_or_default();
        if name.len() > MAX_SEGMENT_NAME {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        match self.abi().memseg_layout {
            MemsegLayout::Plain => {
                let mut memseg = v13::vm_memseg_14 { segid, len, name: field(name), ..Plain::ZERO };
                self.call(v13::VM_ALLOC_MEMSEG, &mut memseg)
            }
            MemsegLayout::Domains => {
                let mut memseg = v15::vm_memseg { segid, len, name: field(name), ..Plain::ZERO };
                // SAFETY: the pointer is null: the default policy.
                unsafe { call_pointing(&*self.node, v15::VM_ALLOC_MEMSEG, &mut memseg) }
            }
        }
    }

    /// `VM_GET_MEMSEG`: a segment, if it was made.
    ///
    /// # Errors
    /// `EINVAL`: no segment can have this number.
    #[expect(unsafe_code, reason = "the boundary to the kernel")]
    pub fn memseg(&self, segid: i32) -> io::Result<Option<Memseg>> {
        let (len, name) = match self.abi().memseg_layout {
            MemsegLayout::Plain => {
                let mut memseg = v13::vm_memseg_14 { segid, ..Plain::ZERO };
                self.call(v13::VM_GET_MEMSEG, &mut memseg)?;
                (memseg.len, memseg.name)
            }
            MemsegLayout::Domains => {
                let mut memseg = v15::vm_memseg { segid, ..Plain::ZERO };
                // SAFETY: the pointer is null: the policy is not asked for.
                unsafe { call_pointing(&*self.node, v15::VM_GET_MEMSEG, &mut memseg)? };
                (memseg.len, memseg.name)
            }
        };
        let name = text(&name);
        Ok((len != 0).then_some(Memseg { len, name: (!name.is_empty()).then_some(name) }))
    }

    /// `VM_MMAP_MEMSEG`: maps a part of a segment at a guest-physical address.
    ///
    /// # Errors
    /// `EINVAL`: no such segment or part of it, or no multiple of a page. `ENOSPC`: no mapping is left. `EFAULT`:
    /// another is there.
    pub fn mmap_memseg(&self, mapping: &vm_memmap) -> io::Result<()> {
        self.call(common::VM_MMAP_MEMSEG, &mut vm_memmap { pad: 0, ..*mapping })
    }

    /// `VM_MMAP_GETNEXT`: the lowest mapping that starts at `gpa` or above.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn next_mapping(&self, gpa: u64) -> io::Result<Option<vm_memmap>> {
        let mut mapping = vm_memmap { gpa, ..Plain::ZERO };
        match self.call(common::VM_MMAP_GETNEXT, &mut mapping) {
            Ok(()) => Ok(Some(mapping)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `VM_MUNMAP_MEMSEG`: unmaps exactly one mapping.
    ///
    /// # Errors
    /// `EINVAL`: there is none of just this range.
    pub fn munmap_memseg(&self, gpa: u64, len: u64) -> io::Result<()> {
        self.call(common::VM_MUNMAP_MEMSEG, &mut common::vm_munmap { gpa, len })
    }

    /// Maps guest memory at `gpa` into the process. It has to lie inside one mapping of system memory.
    ///
    /// # Errors
    /// `EINVAL`: it does not.
    ///
    /// # Safety
    /// As of [`Node::map`].
    #[expect(unsafe_code, reason = "mmap")]
    pub unsafe fn map_memory(&self, at: *mut u8, len: usize, gpa: u64) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.node.map(at, len, gpa) }
    }

    /// The node of a segment of device memory, to be mapped by offsets in the segment.
    ///
    /// # Errors
    /// `ENOENT`: there is none of this name.
    pub fn devmem(&self, segment: &str) -> io::Result<Box<dyn Node>> {
        self.kernel.open(&format!("/dev/vmm.io/{}.{segment}", self.name().as_str()), Access::ReadWrite)
    }

    /// `VM_GET_GPA_PMAP`: the nested page table entries that translate an address, to look at.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn gpa_pmap(&self, gpa: u64) -> io::Result<Vec<u64>> {
        let mut entries = common::vm_gpa_pte { gpa, ..Plain::ZERO };
        self.call(common::VM_GET_GPA_PMAP, &mut entries)?;
        let count = usize::try_from(entries.ptenum).unwrap_or(0).min(entries.pte.len());
        Ok(entries.pte[..count].to_vec())
    }
}

/// What is before the first NUL.
pub(crate) fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}
