//! Page tables: 32-bit paging with 4 MiB pages (PSE-36), PAE, and 4-level paging (Intel SDM volume 3, chapter 4).
//!
//! A walk that succeeds sets the accessed bits of all levels, and the dirty bit of the last for a write, by
//! compare-exchange where the tables are in RAM; a walk that faults sets none. There are no caches of upper levels: a
//! guest that changed any level sees it at the next miss. The four PDPTEs of PAE paging are registers, loaded with CR3.
//!
//! Not offered, thus reserved or ignored: PCID, 5-level paging, protection keys, shadow stacks.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use emu::{PAGE_SIZE, RamAddr, Target};

use crate::feature::Feature;
use crate::insn::{Res, Stop};
use crate::mem::{Access, canonical};
use crate::state::{Cpu, Fault, Why};

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_NXE: u64 = 1 << 11;

/// Error code bits of #PF.
const PF_P: u32 = 1;
const PF_W: u32 = 1 << 1;
const PF_U: u32 = 1 << 2;
const PF_RSVD: u32 = 1 << 3;
const PF_I: u32 = 1 << 4;

/// What the page tables say of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// The guest physical address of the byte asked for.
    pub(crate) gpa: u64,
    /// Whether whoever asked may write.
    pub(crate) write: bool,
    /// The dirty bit is set.
    pub(crate) dirty: bool,
    pub(crate) global: bool,
    /// 0 for 4 KiB, 1 for 2 MiB, 2 for 4 MiB, 3 for 1 GiB.
    pub(crate) size: u8,
}

impl Leaf {
    /// log2 of the number of bytes in a page of a size.
    pub(crate) fn shift(size: u8) -> u32 {
        [12, 21, 22, 30][usize::from(size & 3)]
    }
}

impl Cpu {
    /// Translates a linear address for an access with the rights of a user or a supervisor, the latter with user pages
    /// open to it or not (where CR4.SMAP closes them).
    pub(crate) fn walk(&mut self, lin: u64, access: Access, user: bool, open: bool) -> Res<Leaf> {
        if self.cr0 & CR0_PG == 0 {
            let gpa = lin & 0xffff_ffff & self.a20_mask;
            return Ok(Leaf { gpa, write: true, dirty: true, global: false, size: 0 });
        }
        if self.lma() && !canonical(lin) {
            return Err(self.gp(0));
        }
        loop {
            if let Some(leaf) = self.walk_once(lin, access, user, open)? {
                return Ok(leaf);
            }
        }
    }

    /// `None`: an entry was changed by somebody else meanwhile.
    fn walk_once(&mut self, lin: u64, access: Access, user: bool, open: bool) -> Res<Option<Leaf>> {
        let wide = self.cr4 & CR4_PAE != 0;
        let address = self.address_mask();
        let (mut level, mut table) = if self.lma() {
            (3, self.cr3 & address)
        } else if wide {
            let pdpte = self.pdpte[(lin >> 30 & 3) as usize];
            if pdpte & P == 0 {
                return Err(self.page_fault(lin, access, user, 0));
            }
            (1, pdpte & address)
        } else {
            (1, self.cr3 & 0xffff_f000)
        };
        let bits = if wide { 9 } else { 10 };
        let mut rights = RW | US;
        let mut nx = 0;
        let mut seen = [(0, 0); 4];
        let (entry, shift) = loop {
            let shift = 12 + bits * level;
            let index = lin >> shift & ((1 << bits) - 1);
            let at = (table + (index << if wide { 3 } else { 2 })) & self.a20_mask;
            let e = self.table_entry(at, wide);
            if e & P == 0 {
                return Err(self.page_fault(lin, access, user, 0));
            }
            let last = level == 0 || e & PS != 0 && self.large_pages(level, wide);
            if e & self.reserved(level, last, wide) != 0 {
                return Err(self.page_fault(lin, access, user, PF_P | PF_RSVD));
            }
            rights &= e;
            nx |= e & NX;
            seen[level as usize] = (at, e);
            if last {
                break (e, shift);
            }
            table = e & if wide { address } else { 0xffff_f000 };
            level -= 1;
        };

        let user_page = rights & US != 0;
        let write = rights & RW != 0 || !user && self.cr0 & CR0_WP == 0;
        let allowed = match access {
            Access::Fetch => nx == 0 && if user { user_page } else { !(user_page && self.cr4 & CR4_SMEP != 0) },
            Access::Read | Access::Write => {
                let reach = if user { user_page } else { !user_page || open || self.cr4 & CR4_SMAP == 0 };
                reach && (write || access == Access::Read)
            }
        };
        if !allowed {
            return Err(self.page_fault(lin, access, user, PF_P));
        }

        let mut dirty = entry & D != 0;
        for (n, (at, old)) in seen.into_iter().enumerate().rev() {
            let mut new = old | A;
            if n as u32 == level && access == Access::Write {
                new |= D;
                dirty = true;
            }
            if old & P != 0 && new != old && !self.update_entry(at, wide, old, new) {
                return Ok(None);
            }
        }
        let base = match shift {
            22 => entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32,
            12 if !wide => entry & 0xffff_f000,
            _ => entry & address & !((1 << shift) - 1),
        };
        Ok(Some(Leaf {
            gpa: (base | lin & ((1 << shift) - 1)) & self.a20_mask,
            write,
            dirty,
            global: entry & G != 0 && self.cr4 & CR4_PGE != 0,
            size: match shift {
                12 => 0,
                21 => 1,
                22 => 2,
                _ => 3,
            },
        }))
    }

    /// Bits of a physical address in an entry.
    fn address_mask(&self) -> u64 {
        ((1 << self.model.phys_bits) - 1) & !(PAGE_SIZE - 1)
    }

    /// Whether PS makes an entry of this level a page.
    fn large_pages(&self, level: u32, wide: bool) -> bool {
        match level {
            1 => wide || self.cr4 & CR4_PSE != 0,
            2 => self.model.has(Feature::Pdpe1gb),
            _ => false,
        }
    }

    /// The bits that must be 0.
    fn reserved(&self, level: u32, last: bool, wide: bool) -> u64 {
        if !wide {
            // Bits 20:13 are address bits 39:32, as far as there are any.
            let address = if self.model.has(Feature::Pse36) { self.model.phys_bits.clamp(32, 40) } else { 32 };
            let extra = u32::from(address) - 19;
            return if last && level == 1 { 0x3f_e000 & !((1 << extra) - 1) } else { 0 };
        }
        let mut mask = 0xf_ffff_ffff_f000 & !self.address_mask();
        if self.msr.efer & EFER_NXE == 0 {
            mask |= NX;
        }
        if !self.lma() {
            mask |= 0x7ff0_0000_0000_0000;
        }
        match (level, last) {
            (3, _) | (2, false) => mask | PS,
            (2, true) => mask | 0x3fff_e000,
            (1, true) => mask | 0x1f_e000,
            _ => mask,
        }
    }

    fn page_fault(&mut self, lin: u64, access: Access, user: bool, cause: u32) -> Stop {
        let nx = self.msr.efer & EFER_NXE != 0 && self.cr4 & CR4_PAE != 0 || self.cr4 & CR4_SMEP != 0;
        let error = cause
            | if user { PF_U } else { 0 }
            | match access {
                Access::Write => PF_W,
                Access::Fetch if nx => PF_I,
                _ => 0,
            };
        self.why = Why::Fault(Fault { vector: 14, error: Some(error), cr2: lin });
        Stop
    }

    /// Reads an entry of a table.
    #[inline]
    #[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
    fn table_entry(&mut self, at: u64, wide: bool) -> u64 {
        let (start, len, host) = self.tlb.walked;
        let offset = at.wrapping_sub(start);
        if offset >= len {
            return self.find_table(at, wide);
        }
        let host = (host + offset) as usize;
        if wide {
            // SAFETY: the stretch is memory of the arena and aligned, and so are the tables in it.
            u64::from_le(unsafe { std::ptr::with_exposed_provenance::<u64>(host).read_volatile() })
        } else {
            // SAFETY: as above.
            u64::from(u32::from_le(unsafe { std::ptr::with_exposed_provenance::<u32>(host).read_volatile() }))
        }
    }

    /// [`Cpu::table_entry`] in another stretch of memory than the last.
    #[cold]
    fn find_table(&mut self, at: u64, wide: bool) -> u64 {
        let map = self.bus.map();
        let n = map.read.partition_point(|r| r.end <= at);
        let found = map.read.get(n).filter(|r| r.start <= at && (r.start | r.end).is_multiple_of(8));
        let Some((start, end, ram)) = found.and_then(|r| match r.target {
            Target::Ram(ram) if ram.0.is_multiple_of(8) => Some((r.start, r.end, ram)),
            _ => None,
        }) else {
            return self.bus.read(at, if wide { 8 } else { 4 });
        };
        let host = self.bus.ram().host(ram).expose_provenance() as u64;
        self.tlb.walked = (start, end - start, host);
        self.table_entry(at, wide)
    }

    /// Sets accessed and dirty bits. False if the entry is not `old` any more.
    #[expect(unsafe_code, reason = "atomic access to guest memory")]
    fn update_entry(&mut self, at: u64, wide: bool, old: u64, new: u64) -> bool {
        let size = if wide { 8 } else { 4 };
        let map = self.bus.map();
        let target = match (map.ram_for_read(at), map.ram_for_write(at)) {
            (Some((r, _)), Some((w, _))) if r == w && (r.0 ^ at) & 7 == 0 => r,
            _ => {
                // Tables in ROM, where the write goes nowhere, or in something stranger.
                self.bus.write(at, size, new);
                return true;
            }
        };
        let host = self.bus.ram().host(target);
        let done = if wide {
            // SAFETY: memory of the arena, aligned; all threads access it by volatile or atomic operations only.
            let entry = unsafe { AtomicU64::from_ptr(host.cast()) };
            entry.compare_exchange(old.to_le(), new.to_le(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
        } else {
            // SAFETY: as above.
            let entry = unsafe { AtomicU32::from_ptr(host.cast()) };
            let (old, new) = ((old as u32).to_le(), (new as u32).to_le());
            entry.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        self.bus.ram().wrote(RamAddr(target.0), u64::from(size));
        done
    }

    /// Loads the PDPTEs of PAE paging from the table that `cr3` names. False, and no change, if one is malformed: #GP.
    pub(crate) fn load_pdptes(&mut self, cr3: u64) -> bool {
        let reserved = !(self.address_mask() | P | 1 << 3 | 1 << 4 | 7 << 9);
        let mut new = [0; 4];
        for (n, e) in new.iter_mut().enumerate() {
            let at = ((cr3 & 0xffff_ffe0) + 8 * n as u64) & self.a20_mask;
            *e = self.table_entry(at, true);
            if *e & P != 0 && *e & reserved != 0 {
                return false;
            }
        }
        self.pdpte = new;
        true
    }
}
