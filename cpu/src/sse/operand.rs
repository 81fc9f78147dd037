//! Where the second operand of an MMX or SSE instruction is.

use crate::exec::Addr;
use crate::insn::{Insn, Res};
use crate::state::{Cpu, Int};

/// The contents of an XMM register, low half first.
pub(super) type Xmm = [u64; 2];

/// The operand that ModRM.rm names: a register, or memory addressed in one of the ways of [`Addr`].
pub(super) trait Place: 'static {
    /// An MMX register or 8 bytes.
    fn mm(cpu: &mut Cpu, i: &Insn) -> Res<u64>;
    /// An XMM register or 16 bytes, which must be aligned: #GP(0).
    fn xmm(cpu: &mut Cpu, i: &Insn) -> Res<Xmm>;
    /// An XMM register or 16 bytes anywhere.
    fn xmm_any(cpu: &mut Cpu, i: &Insn) -> Res<Xmm>;
    /// The low part of an XMM register, or so many bytes.
    fn low<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res<T>;
}

/// The register [`Insn::rm`].
pub(super) struct Reg;

impl Place for Reg {
    #[inline(always)]
    fn mm(cpu: &mut Cpu, i: &Insn) -> Res<u64> {
        Ok(cpu.fpu.mm(i.rm))
    }

    #[inline(always)]
    fn xmm(cpu: &mut Cpu, i: &Insn) -> Res<Xmm> {
        Ok(cpu.fpu.xmm[usize::from(i.rm & 15)])
    }

    #[inline(always)]
    fn xmm_any(cpu: &mut Cpu, i: &Insn) -> Res<Xmm> {
        Ok(cpu.fpu.xmm[usize::from(i.rm & 15)])
    }

    #[inline(always)]
    fn low<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res<T> {
        Ok(T::from_u64(cpu.fpu.xmm[usize::from(i.rm & 15)][0]))
    }
}

impl<A: Addr> Place for A {
    #[inline(always)]
    fn mm(cpu: &mut Cpu, i: &Insn) -> Res<u64> {
        cpu.read_mem::<A, u64>(i)
    }

    #[inline(always)]
    fn xmm(cpu: &mut Cpu, i: &Insn) -> Res<Xmm> {
        let lin = cpu.lin::<A>(i, 16, false)?;
        if lin & 15 != 0 {
            return Err(cpu.gp(0));
        }
        cpu.load16(i, lin)
    }

    #[inline(always)]
    fn xmm_any(cpu: &mut Cpu, i: &Insn) -> Res<Xmm> {
        let lin = cpu.lin::<A>(i, 16, false)?;
        cpu.load16(i, lin)
    }

    #[inline(always)]
    fn low<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res<T> {
        cpu.read_mem::<A, T>(i)
    }
}

impl Cpu {
    #[inline(always)]
    fn load16(&mut self, i: &Insn, lin: u64) -> Res<Xmm> {
        let Ok(low) = self.load(lin) else { return Err(self.operand_fault(i)) };
        let Ok(high) = self.load(lin.wrapping_add(8) & self.flat_mask) else { return Err(self.operand_fault(i)) };
        Ok([low, high])
    }

    /// Stores 16 bytes. Inside a page the second store succeeds if the first one does, or stops for a reason that makes
    /// the instruction run again from its start.
    #[inline(always)]
    pub(super) fn store16<A: Addr>(&mut self, i: &Insn, v: Xmm, aligned: bool) -> Res {
        let lin = self.lin::<A>(i, 16, true)?;
        if aligned && lin & 15 != 0 {
            return Err(self.gp(0));
        }
        let stored = if aligned || lin & 0xfff <= 0xff0 {
            self.store(lin, v[0]).and_then(|()| self.store(lin.wrapping_add(8), v[1]))
        } else {
            self.store16_across(lin, v)
        };
        match stored {
            Ok(()) => Ok(()),
            Err(_) => Err(self.operand_fault(i)),
        }
    }

    #[cold]
    #[inline(never)]
    fn store16_across(&mut self, lin: u64, v: Xmm) -> Res {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&v[0].to_le_bytes());
        bytes[8..].copy_from_slice(&v[1].to_le_bytes());
        self.store_bytes(lin, &bytes)
    }

    #[inline(always)]
    pub(super) fn xmm_reg(&self, i: &Insn) -> Xmm {
        self.fpu.xmm[usize::from(i.reg & 15)]
    }

    #[inline(always)]
    pub(super) fn set_xmm_reg(&mut self, i: &Insn, v: Xmm) {
        self.fpu.xmm[usize::from(i.reg & 15)] = v;
    }
}
