//! The x87 floating point unit, and the registers of MMX and SSE that live beside it.
//!
//! Source: Intel SDM volume 1 chapters 8 to 12 and appendix D, volume 2 for the instructions. The 80-bit arithmetic is
//! in [`crate::softfloat`]; this module has the register stack, the tags, the status and control words, the pointers to
//! the last instruction and operand, and the images that save all of it.
//!
//! The registers are held at their physical numbers, as the abridged tag word and MMX see them; ST(n) is the n-th from
//! TOP. An exception that is not masked sets ES and is reported by the next *waiting* instruction: as #MF with CR0.NE,
//! else the way PCs did it: FERR# rises, and the processor stands still until an interrupt comes; see [`pins`]. FERR#
//! rises when the waiting instruction is met, as since the P6; the 486 was earlier for some.
//!
//! Where parts differ, the older Intel ones are followed: FOP, FIP, FCS, FDP and FDS are kept for every instruction but
//! the control ones. Newer Intel parts keep FOP and FDP for unmasked exceptions only, and store FCS and FDS as 0; AMD's
//! EPYC saves all pointers as 0 unless ES is set.
//!
//! DOS programs use FERR# and FNSAVE in real mode; 32-bit kernels switch lazily by CR0.TS; every kernel since uses
//! FXSAVE or XSAVE; C libraries read the status word after almost every operation.

mod arith;
mod control;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod diff;
mod load;
mod pins;
mod select;
#[cfg(test)]
pub(crate) mod tests;
mod xsave;

use crate::insn::{ASIZE, CS, Insn, Res, Stop};
use crate::softfloat::{F80, IE, X87};
use crate::state::{Cpu, Why};

pub(crate) use arith::order_flags;
pub use pins::ErrorPins;
pub(crate) use select::select;

/// CR0: monitor coprocessor, emulation, task switched, numeric error.
const CR0_MP: u64 = 1 << 1;
pub(crate) const CR0_EM: u64 = 1 << 2;
pub(crate) const CR0_TS: u64 = 1 << 3;
const CR0_NE: u64 = 1 << 5;

/// Status word: stack fault, error summary, condition codes, TOP, busy.
const SF: u16 = 1 << 6;
const ES: u16 = 1 << 7;
const C0: u16 = 1 << 8;
const C1: u16 = 1 << 9;
const C2: u16 = 1 << 10;
const C3: u16 = 1 << 14;
const TOP: u16 = 7 << 11;
const BUSY: u16 = 1 << 15;
const EXCEPTIONS: u16 = 0x3f;

/// The control word's bits that can be written, and the one that always reads as 1.
const CW_BITS: u16 = 0x1f3f;
const CW_ONE: u16 = 1 << 6;
/// After FNINIT: all exceptions masked, 64-bit precision, round to nearest.
const CW_INIT: u16 = 0x37f;

/// The x87, MMX and SSE registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fpu {
    /// XMM0 to XMM15, low half first. The upper eight are out of reach outside 64-bit mode.
    pub(crate) xmm: [[u64; 2]; 16],
    /// MXCSR.
    pub(crate) mxcsr: u32,
    /// Control word.
    pub(crate) cw: u16,
    /// Status word without TOP: see [`Fpu::status`].
    pub(crate) sw: u16,
    /// TOP, 0 to 7: the physical register that is ST(0).
    pub(crate) top: u8,
    /// The abridged tag word: bit n says that physical register n is not empty.
    pub(crate) full: u8,
    /// R0 to R7, the physical registers. MMn is the significand of Rn.
    pub(crate) regs: [F80; 8],
    /// The last instruction that was not a control instruction: the low 3 bits of its first byte, then ModRM.
    pub(crate) fop: u16,
    /// Code segment of that instruction.
    pub(crate) fcs: u16,
    /// Segment of the last memory operand.
    pub(crate) fds: u16,
    /// Offset of that instruction, prefixes included.
    pub(crate) fip: u64,
    /// Offset of the last memory operand.
    pub(crate) fdp: u64,
    /// FERR#: an error waits for IRQ 13, since CR0.NE is 0.
    pub(crate) ferr: bool,
}

/// The bits of MXCSR that exist.
pub(crate) const MXCSR_MASK: u32 = 0xffff;
/// MXCSR after reset.
pub(crate) const MXCSR_INIT: u32 = 0x1f80;

impl Default for Fpu {
    /// The state after reset and FNINIT.
    fn default() -> Fpu {
        Fpu {
            xmm: [[0; 2]; 16],
            mxcsr: MXCSR_INIT,
            cw: CW_INIT,
            sw: 0,
            top: 0,
            full: 0,
            regs: [F80::ZERO; 8],
            fop: 0,
            fcs: 0,
            fds: 0,
            fip: 0,
            fdp: 0,
            ferr: false,
        }
    }
}

impl Fpu {
    /// The physical number of ST(n).
    #[inline(always)]
    fn at(&self, n: u8) -> usize {
        usize::from(self.top.wrapping_add(n) & 7)
    }

    #[inline(always)]
    fn st(&self, n: u8) -> F80 {
        self.regs[self.at(n)]
    }

    #[inline(always)]
    fn empty(&self, n: u8) -> bool {
        self.full >> self.at(n) & 1 == 0
    }

    /// Writes ST(n), which is not empty then.
    #[inline(always)]
    fn set_st(&mut self, n: u8, value: F80) {
        let at = self.at(n);
        self.regs[at] = value;
        self.full |= 1 << at;
    }

    /// Marks ST(n) empty. Its contents stay.
    #[inline(always)]
    fn free(&mut self, n: u8) {
        self.full &= !(1 << self.at(n));
    }

    #[inline(always)]
    fn pop(&mut self) {
        self.free(0);
        self.top = (self.top + 1) & 7;
    }

    #[inline(always)]
    fn push(&mut self, value: F80) {
        self.top = self.top.wrapping_sub(1) & 7;
        self.set_st(0, value);
    }

    /// Whether a push would overwrite a register in use.
    #[inline(always)]
    fn no_room(&self) -> bool {
        !self.empty(7)
    }

    /// The status word, TOP included.
    pub(crate) fn status(&self) -> u16 {
        self.sw & !TOP | u16::from(self.top) << 11
    }

    /// Replaces status word and TOP. ES and B follow from the exceptions and the control word.
    pub(crate) fn set_status(&mut self, sw: u16) {
        self.sw = sw & !TOP;
        self.top = (sw >> 11 & 7) as u8;
        self.summarize();
    }

    /// Replaces the control word. What it unmasks becomes pending.
    pub(crate) fn set_control(&mut self, cw: u16) {
        self.cw = cw & CW_BITS | CW_ONE;
        self.summarize();
    }

    /// Recomputes ES and B. FERR# falls with them.
    fn summarize(&mut self) {
        self.sw &= !(ES | BUSY);
        if self.sw & !self.cw & EXCEPTIONS != 0 {
            self.sw |= ES | BUSY;
        } else {
            self.ferr = false;
        }
    }

    /// Adds exceptions to the status word.
    #[inline(always)]
    fn raise(&mut self, flags: u16) {
        self.sw |= flags;
        if flags & !self.cw & EXCEPTIONS != 0 {
            self.sw |= ES | BUSY;
        }
    }

    #[inline(always)]
    fn set_c1(&mut self, c1: bool) {
        self.sw = self.sw & !C1 | if c1 { C1 } else { 0 };
    }

    /// Takes over what an operation left: its exceptions and C1.
    #[inline(always)]
    fn settle(&mut self, x: &X87) {
        self.set_c1(x.c1 && !x.faulted());
        self.raise(u16::from(x.flags));
    }

    /// Stack overflow or underflow. True: invalid operation is masked, the result is the default NaN.
    #[cold]
    fn stack_fault(&mut self, overflow: bool) -> bool {
        self.set_c1(overflow);
        self.raise(u16::from(IE) | SF);
        self.cw & u16::from(IE) != 0
    }

    #[cold]
    fn underflow(&mut self) -> bool {
        self.stack_fault(false)
    }

    #[cold]
    fn overflow(&mut self) -> bool {
        self.stack_fault(true)
    }

    /// FNINIT. The registers keep their contents, but all are empty.
    fn init(&mut self) {
        *self = Fpu { xmm: self.xmm, mxcsr: self.mxcsr, regs: self.regs, ..Fpu::default() };
    }

    /// What every MMX instruction but EMMS does: no register is empty, TOP is 0.
    #[inline(always)]
    pub(crate) fn enter_mmx(&mut self) {
        self.top = 0;
        self.full = 0xff;
    }

    #[inline(always)]
    pub(crate) fn mm(&self, n: u8) -> u64 {
        self.regs[usize::from(n & 7)].mant
    }

    #[inline(always)]
    pub(crate) fn set_mm(&mut self, n: u8, value: u64) {
        self.regs[usize::from(n & 7)] = F80 { mant: value, se: 0xffff };
    }
}

impl Cpu {
    /// What every waiting x87 instruction looks at first: #NM, then a pending exception.
    #[inline(always)]
    pub(crate) fn x87(&mut self, i: &Insn) -> Res {
        if self.cr0 & (CR0_EM | CR0_TS) | u64::from(self.fpu.sw & ES) != 0 { self.x87_refused(i) } else { Ok(()) }
    }

    #[cold]
    #[inline(never)]
    fn x87_refused(&mut self, i: &Insn) -> Res {
        self.x87_present()?;
        self.x87_pending(i)
    }

    /// #NM: the x87 is emulated, or its state belongs to another task.
    #[inline(always)]
    fn x87_present(&mut self) -> Res {
        if self.cr0 & (CR0_EM | CR0_TS) != 0 { Err(self.nm()) } else { Ok(()) }
    }

    /// Reports an exception that an earlier instruction left.
    fn x87_pending(&mut self, i: &Insn) -> Res {
        if self.fpu.sw & ES == 0 {
            return Ok(());
        }
        if self.cr0 & CR0_NE != 0 {
            return Err(self.fault(16, None));
        }
        if self.fpu.ferr && self.error_pins.ignored() {
            return Ok(());
        }
        // It waits for an interrupt, which the run loop can only take between blocks.
        if !self.may_io {
            self.why = Why::Alone;
            return Err(Stop);
        }
        if !self.fpu.ferr {
            self.fpu.ferr = true;
            self.error_pins.raise();
        }
        self.rip = self.this_rip(i);
        self.why = Why::None;
        Err(Stop)
    }

    /// Executes FWAIT.
    fn fwait(&mut self, i: &Insn) -> Res {
        if self.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
            return Err(self.nm());
        }
        self.x87_pending(i)
    }

    /// What every MMX instruction looks at first.
    #[inline(always)]
    pub(crate) fn mmx(&mut self, i: &Insn) -> Res {
        if self.cr0 & (CR0_EM | CR0_TS) | u64::from(self.fpu.sw & ES) != 0 { self.mmx_refused(i) } else { Ok(()) }
    }

    #[cold]
    #[inline(never)]
    fn mmx_refused(&mut self, i: &Insn) -> Res {
        if self.cr0 & CR0_EM != 0 {
            return Err(self.ud());
        }
        self.x87_present()?;
        self.x87_pending(i)
    }

    /// Records the instruction that no fault can stop any more.
    #[inline(always)]
    fn x87_record(&mut self, i: &Insn) {
        self.fpu.fip = self.this_rip(i);
        self.fpu.fcs = self.seg[usize::from(CS)].selector;
        self.fpu.fop = i.imm as u16;
    }

    /// Records the instruction and its memory operand.
    #[inline(always)]
    fn x87_record_mem(&mut self, i: &Insn) {
        self.x87_record(i);
        self.fpu.fdp = self.ea(i) & [0xffff, 0xffff_ffff, u64::MAX, u64::MAX][usize::from(i.flags & ASIZE)];
        self.fpu.fds = self.seg[usize::from(i.seg & 7)].selector;
    }
}
