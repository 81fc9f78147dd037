//! Single lanes in and out of registers, and widening moves (PINSR, PEXTR, PMOVSX, PMOVZX), and PTEST.

use super::operand::{Place, Xmm};
use crate::exec::Gen;
use crate::flags::{CF, Flags, ZF};
use crate::insn::{Insn, Res};
use crate::state::{Cpu, Int};

/// The lane of width `T` that an immediate chooses.
fn lane<T: Int>(x: Xmm, n: u8) -> T {
    let bit = u32::from(n) * T::BITS & 127;
    T::from_u64(x[(bit >> 6) as usize] >> (bit & 63))
}

/// `x` with one lane replaced.
fn with_lane<T: Int>(mut x: Xmm, n: u8, v: T) -> Xmm {
    let bit = u32::from(n) * T::BITS & 127;
    let word = &mut x[(bit >> 6) as usize];
    *word = *word & !(u64::MAX >> (64 - T::BITS) << (bit & 63)) | v.to_u64() << (bit & 63);
    x
}

/// PINSRB, PINSRW, PINSRD, PINSRQ from a general register.
pub(super) fn insert<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let v = T::from_u64(cpu.reg::<u64>(i.rm));
    cpu.set_xmm_reg(i, with_lane(cpu.xmm_reg(i), i.imm as u8, v));
    Ok(())
}

/// The same from memory.
pub(super) fn insert_mem<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let v = cpu.read_mem::<Gen, T>(i)?;
    cpu.set_xmm_reg(i, with_lane(cpu.xmm_reg(i), i.imm as u8, v));
    Ok(())
}

/// PEXTRB, PEXTRW, PEXTRD, PEXTRQ and EXTRACTPS to the general register in ModRM.rm, zero-extended.
pub(super) fn extract<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    cpu.set_reg(i.rm, lane::<T>(cpu.xmm_reg(i), i.imm as u8).to_u64());
    Ok(())
}

/// The same to memory.
pub(super) fn extract_mem<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    cpu.write_mem::<Gen, T>(i, lane(cpu.xmm_reg(i), i.imm as u8))
}

/// PEXTRW as SSE2 has it: from the register in ModRM.rm to that in ModRM.reg.
pub(super) fn pextrw(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let v = lane::<u16>(cpu.fpu.xmm[usize::from(i.rm & 15)], i.imm as u8);
    cpu.set_reg(i.reg, u32::from(v));
    Ok(())
}

/// PEXTRW from an MMX register.
pub(super) fn mm_pextrw(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    cpu.fpu.enter_mmx();
    cpu.set_reg(i.reg, u32::from((cpu.fpu.mm(i.rm) >> (16 * (i.imm & 3))) as u16));
    Ok(())
}

fn insert_mm(cpu: &mut Cpu, i: &Insn, v: u16) {
    cpu.fpu.enter_mmx();
    let [r, _] = with_lane([cpu.fpu.mm(i.reg), 0], i.imm as u8 & 3, v);
    cpu.fpu.set_mm(i.reg, r);
}

/// PINSRW to an MMX register.
pub(super) fn mm_pinsrw(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    let v = cpu.reg::<u16>(i.rm);
    insert_mm(cpu, i, v);
    Ok(())
}

/// The same from memory.
pub(super) fn mm_pinsrw_mem(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    let v = cpu.read_mem::<Gen, u16>(i)?;
    insert_mm(cpu, i, v);
    Ok(())
}

/// PMOVSX and PMOVZX: lanes of `T` become lanes of `U`. `S` holds as many `T` as there are `U` in a register.
pub(super) fn widen<P: Place, S: Int, T: Int, U: Int, const SIGNED: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let src = P::low::<S>(cpu, i)?.to_u64();
    let mut r = [0; 2];
    for n in 0..128 / U::BITS {
        let v = T::from_u64(src >> (n * T::BITS));
        let v = U::from_u64(if SIGNED { v.sext() } else { v.to_u64() });
        r[(n * U::BITS >> 6) as usize] |= v.to_u64() << (n * U::BITS & 63);
    }
    cpu.set_xmm_reg(i, r);
    Ok(())
}

/// PTEST.
pub(super) fn ptest<P: Place>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let b = P::xmm(cpu, i)?;
    let a = cpu.xmm_reg(i);
    let zf = if a[0] & b[0] | a[1] & b[1] == 0 { ZF } else { 0 };
    let cf = if !a[0] & b[0] | !a[1] & b[1] == 0 { CF } else { 0 };
    cpu.flags = Flags::from_bits(zf | cf);
    Ok(())
}
