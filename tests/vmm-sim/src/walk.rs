//! Translation of linear addresses as the kernel does it for VM_GLA2GPA and for the bytes of an instruction.

use crate::chips::Chips;
use crate::regs::Paging;

/// What is wanted.
#[derive(Clone, Copy)]
pub(crate) struct Want {
    pub(crate) write: bool,
    pub(crate) fetch: bool,
    pub(crate) user: bool,
    /// Set accessed and dirty bits.
    pub(crate) mark: bool,
}

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const ADDRESS: u64 = 0xf_ffff_ffff_f000;

/// The guest physical address, or the error code of the page fault.
pub(crate) fn translate(chips: &Chips, p: &Paging, lin: u64, want: Want) -> Result<u64, u32> {
    let user = want.user;
    let code = |present: bool| {
        u32::from(present) | u32::from(want.write) << 1 | u32::from(user) << 2 | u32::from(want.fetch) << 4
    };
    let entry = |at: u64, wide: bool| {
        let mut b = [0; 8];
        chips.read_memory(at, &mut b[..if wide { 8 } else { 4 }]);
        u64::from_le_bytes(b)
    };
    let (mut table, mut level, wide) = match p.paging_mode {
        0 => return Ok(lin & 0xffff_ffff),
        1 => (p.cr3 & 0xffff_f000, 1, false),
        2 => {
            let e = entry((p.cr3 & 0xffff_ffe0) + (lin >> 30 & 3) * 8, true);
            if e & P == 0 {
                return Err(code(false));
            }
            (e & ADDRESS, 1, true)
        }
        _ => (p.cr3 & ADDRESS, 3, true),
    };
    let bits = if wide { 9 } else { 10 };
    let mut rights = W | U;
    loop {
        let shift = 12 + bits * level;
        let at = table + ((lin >> shift & ((1 << bits) - 1)) << if wide { 3 } else { 2 });
        let e = entry(at, wide);
        if e & P == 0 {
            return Err(code(false));
        }
        rights &= e;
        let last = level == 0 || e & PS != 0;
        if last && (user && rights & U == 0 || want.write && user && rights & W == 0) {
            return Err(code(true));
        }
        let marked = e | A | if last && want.write { D } else { 0 };
        if want.mark && marked != e {
            chips.write_memory(at, &marked.to_le_bytes()[..if wide { 8 } else { 4 }]);
        }
        if last {
            let mask = (1u64 << shift) - 1;
            return Ok(e & ADDRESS & !mask & if wide { u64::MAX } else { 0xffff_ffff } | lin & mask);
        }
        table = e & if wide { ADDRESS } else { 0xffff_f000 };
        level -= 1;
    }
}
