//! Registers by the kernel's numbers.

use cpu::{Regs, Segment, Table};

/// Numbers of the general registers, as the kernel orders them, to those that instructions use.
pub(crate) fn general(id: i32) -> Option<u8> {
    const ORDER: [u8; 15] = [0, 3, 1, 2, 6, 7, 5, 8, 9, 10, 11, 12, 13, 14, 15];
    match id {
        19 => Some(4),
        _ => ORDER.get(usize::try_from(id).ok()?).copied(),
    }
}

pub(crate) const RIP: i32 = 20;
pub(crate) const ENTRY_INST_LENGTH: i32 = 44;

fn segment(r: &mut Regs, id: i32) -> Option<&mut Segment> {
    Some(match id {
        22 => &mut r.es,
        23 => &mut r.cs,
        24 => &mut r.ss,
        25 => &mut r.ds,
        26 => &mut r.fs,
        27 => &mut r.gs,
        28 => &mut r.ldtr,
        29 => &mut r.tr,
        _ => return None,
    })
}

fn table(r: &mut Regs, id: i32) -> Option<&mut Table> {
    match id {
        30 => Some(&mut r.idtr),
        31 => Some(&mut r.gdtr),
        _ => None,
    }
}

/// The register's place, where it is a plain 64-bit value.
fn plain(r: &mut Regs, id: i32) -> Option<&mut u64> {
    if let Some(n) = general(id) {
        return Some(&mut r.gpr[usize::from(n)]);
    }
    Some(match id {
        15 => &mut r.cr0,
        16 => &mut r.cr3,
        17 => &mut r.cr4,
        18 => &mut r.dr7,
        21 => &mut r.rflags,
        32 => &mut r.msrs.efer,
        33 => &mut r.cr2,
        34..=37 => &mut r.pdpte[(id - 34) as usize],
        39..=42 => &mut r.dr[(id - 39) as usize],
        43 => &mut r.dr6,
        45 => &mut r.fs.base,
        46 => &mut r.gs.base,
        47 => &mut r.msrs.kernel_gs_base,
        _ => return None,
    })
}

pub(crate) fn get(r: &mut Regs, id: i32) -> Option<u64> {
    if let Some(s) = segment(r, id) {
        return Some(s.selector.into());
    }
    match id {
        38 => Some(u64::from(r.shadow)),
        _ => plain(r, id).copied(),
    }
}

pub(crate) fn set(r: &mut Regs, id: i32, value: u64) -> bool {
    if let Some(s) = segment(r, id) {
        s.selector = value as u16;
        return true;
    }
    match id {
        38 => r.shadow = value & 1 != 0,
        _ => match plain(r, id) {
            Some(place) => *place = value,
            None => return false,
        },
    }
    settle(r);
    true
}

/// Base, limit and access.
pub(crate) fn get_descriptor(r: &mut Regs, id: i32) -> Option<(u64, u32, u32)> {
    if let Some(t) = table(r, id) {
        return Some((t.base, t.limit.into(), 0));
    }
    segment(r, id).map(|s| (s.base, s.limit, s.access))
}

pub(crate) fn set_descriptor(r: &mut Regs, id: i32, base: u64, limit: u32, access: u32) -> bool {
    if let Some(t) = table(r, id) {
        (t.base, t.limit) = (base, limit as u16);
    } else if let Some(s) = segment(r, id) {
        (s.base, s.limit, s.access) = (base, limit, access);
    } else {
        return false;
    }
    settle(r);
    true
}

/// What the processor derives from registers: LMA, and CPL from SS.
fn settle(r: &mut Regs) {
    const LME: u64 = 1 << 8;
    const LMA: u64 = 1 << 10;
    let (pe, paging) = (r.cr0 & 1 != 0, r.cr0 >> 31 & 1 != 0);
    r.msrs.efer = r.msrs.efer & !LMA | if paging && r.msrs.efer & LME != 0 { LMA } else { 0 };
    r.cpl = match (pe, r.rflags >> 17 & 1 != 0) {
        (false, _) => 0,
        (true, true) => 3,
        (true, false) => (r.ss.access >> 5 & 3) as u8,
    };
}

/// cr3, cpl, cpu_mode, paging_mode: how the guest translates now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paging {
    pub(crate) cr3: u64,
    pub(crate) cpl: i32,
    pub(crate) cpu_mode: i32,
    pub(crate) paging_mode: i32,
}

pub(crate) const REAL: i32 = 0;
pub(crate) const PROTECTED: i32 = 1;
pub(crate) const COMPATIBILITY: i32 = 2;
pub(crate) const LONG: i32 = 3;

impl Paging {
    pub(crate) fn of(r: &Regs) -> Paging {
        let lma = r.msrs.efer >> 10 & 1 != 0;
        let cpu_mode = if r.cr0 & 1 == 0 {
            REAL
        } else if !lma {
            PROTECTED
        } else if r.cs.access & Segment::L != 0 {
            LONG
        } else {
            COMPATIBILITY
        };
        let paging_mode = if r.cr0 >> 31 & 1 == 0 {
            0
        } else if r.cr4 & 1 << 5 == 0 {
            1
        } else if !lma {
            2
        } else {
            3
        };
        Paging { cr3: r.cr3, cpl: r.cpl.into(), cpu_mode, paging_mode }
    }

    pub(crate) fn bytes(&self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..8].copy_from_slice(&self.cr3.to_le_bytes());
        out[8..12].copy_from_slice(&self.cpl.to_le_bytes());
        out[12..16].copy_from_slice(&self.cpu_mode.to_le_bytes());
        out[16..20].copy_from_slice(&self.paging_mode.to_le_bytes());
        out
    }
}
