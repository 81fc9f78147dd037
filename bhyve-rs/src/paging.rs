//! A processor's translation of linear addresses, for those who look at its memory from outside.

use emu::CpuBus;

/// The addresses that page table entries hold.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What of a processor's state its translation depends on.
#[derive(Clone, Copy, Default)]
pub struct Paging {
    cr3: u64,
    on: bool,
    large: bool,
    wide: bool,
    long: bool,
}

impl Paging {
    const PG: u64 = 1 << 31;
    const PSE: u64 = 1 << 4;
    const PAE: u64 = 1 << 5;
    const LMA: u64 = 1 << 10;

    /// That of a processor in this state.
    pub fn of(regs: &cpu::Regs) -> Paging {
        Paging {
            cr3: regs.cr3,
            on: regs.cr0 & Paging::PG != 0,
            large: regs.cr4 & Paging::PSE != 0,
            wide: regs.cr4 & Paging::PAE != 0,
            long: regs.msrs.efer & Paging::LMA != 0,
        }
    }

    /// Whether addresses have 64 bits.
    pub fn is_long(self) -> bool {
        self.long
    }

    /// The physical address behind a linear one, if the page is there (Intel SDM volume 3, chapter 4); `a20`: the gate is
    /// open. No accessed or dirty bit is set.
    pub fn translate(self, bus: &mut CpuBus, a20: bool, linear: u64) -> Option<u64> {
        let gate = |gpa: u64| if a20 { gpa } else { gpa & !(1 << 20) };
        if !self.on {
            return Some(gate(linear & 0xffff_ffff));
        }
        let linear = if self.long { linear } else { linear & 0xffff_ffff };
        // 64-bit addresses carry bit 47 on.
        if self.long && (linear as i64) << 16 >> 16 != linear as i64 {
            return None;
        }
        let (levels, bits, entry) = match (self.long, self.wide) {
            (true, _) => (4, 9, 8),
            (_, true) => (3, 9, 8),
            _ => (2, 10, 4),
        };
        let mut table = self.cr3 & if self.wide && !self.long { 0xffff_ffe0 } else { ADDRESS };
        for level in (0..levels).rev() {
            let shift = 12 + bits * level;
            let index = linear >> shift & ((1 << bits) - 1);
            let e = bus.read(gate(table + index * entry), entry as u8);
            if e & 1 == 0 {
                return None;
            }
            let is_page =
                level == 0 || e & 0x80 != 0 && (level == 1 && (self.large || self.wide) || level == 2 && self.long);
            if is_page {
                let offset = linear & ((1 << shift) - 1);
                let mut base = e & ADDRESS & !((1 << shift) - 1);
                if level == 1 && !self.wide {
                    // PSE-36.
                    base |= (e >> 13 & 0xff) << 32;
                }
                return Some(gate(base | offset));
            }
            table = e & ADDRESS;
        }
        None
    }
}

/// The accesses that a range of device memory takes: aligned, of four bytes or one.
pub fn units(gpa: u64, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let n = if (gpa + at as u64).is_multiple_of(4) && len - at >= 4 { 4 } else { 1 };
        at += n;
        (at <= len).then_some((at - n, n))
    })
}
