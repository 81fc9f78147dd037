//! Moves of whole registers, halves and single numbers, and the masks of signs.
//!
//! Moves with a non-temporal hint are ordinary ones.

use super::lanes::byte_signs;
use super::operand::{Place, Target, Xmm};
use crate::exec::Gen;
use crate::insn::{Insn, Res};
use crate::state::{Cpu, Int};

handlers! {
    /// MOVAPS, MOVAPD, MOVDQA, MOVNTDQA: loads.
    fn load_aligned<@ P: Place>(cpu, i) {
        let v = P::xmm(cpu, i)?;
        cpu.set_xmm_reg(i, v);
        Ok(())
    }

    /// MOVUPS, MOVUPD, MOVDQU, LDDQU: loads.
    fn load_any<@ P: Place>(cpu, i) {
        let v = P::xmm_any(cpu, i)?;
        cpu.set_xmm_reg(i, v);
        Ok(())
    }

    /// The same moves, to memory.
    fn store16<@ P: Target; const ALIGNED: bool>(cpu, i) {
        P::put_xmm(cpu, i, cpu.xmm_reg(i), ALIGNED)
    }
}

/// The same moves, to a register: ModRM.rm is the destination.
pub(super) fn store_reg(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    cpu.fpu.xmm[usize::from(i.rm & 15)] = cpu.xmm_reg(i);
    Ok(())
}

handlers! {
    /// MOVSS, MOVSD, MOVQ, MOVD from memory or the low part of a register; the rest of the register is cleared.
    fn load_low<@ P: Place, T: Int>(cpu, i) {
        let v = P::low::<T>(cpu, i)?;
        cpu.set_xmm_reg(i, [v.to_u64(), 0]);
        Ok(())
    }

    /// MOVSS, MOVSD, MOVQ, MOVD, MOVLPS, MOVLPD to memory.
    fn store_low<@ P: Target, T: Int>(cpu, i) {
        P::put(cpu, i, T::from_u64(cpu.xmm_reg(i)[0]))
    }

    /// MOVHPS, MOVHPD to memory.
    fn store_high<@ P: Target>(cpu, i) {
        P::put(cpu, i, cpu.xmm_reg(i)[1])
    }

    /// MOVLPS, MOVLPD from memory.
    fn load_half<@ P: Place; const HIGH: bool>(cpu, i) {
        let v = P::low::<u64>(cpu, i)?;
        cpu.fpu.xmm[usize::from(i.reg & 15)][usize::from(HIGH)] = v;
        Ok(())
    }
}

/// Moves between registers, by what becomes of the destination.
macro_rules! between {
    ($($(#[$doc:meta])* $name:ident: |$a:ident, $b:ident| $e:expr;)*) => {$(
        $(#[$doc])*
        pub(super) fn $name(cpu: &mut Cpu, i: &Insn) -> Res {
            enter!(cpu);
            let ($a, $b): (Xmm, Xmm) = (cpu.xmm_reg(i), cpu.fpu.xmm[usize::from(i.rm & 15)]);
            cpu.set_xmm_reg(i, $e);
            Ok(())
        }
    )*};
}

between! {
    /// MOVSS xmm, xmm.
    movss: |a, b| [a[0] & !0xffff_ffff | b[0] & 0xffff_ffff, a[1]];
    /// MOVSD xmm, xmm.
    movsd: |a, b| [b[0], a[1]];
    /// MOVHLPS.
    movhlps: |a, b| [b[1], a[1]];
    /// MOVLHPS.
    movlhps: |a, b| [a[0], b[0]];
}

/// MOVSS xmm, xmm in its store form: ModRM.rm is the destination.
pub(super) fn movss_store(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let low = cpu.xmm_reg(i)[0] & 0xffff_ffff;
    let r = &mut cpu.fpu.xmm[usize::from(i.rm & 15)][0];
    *r = *r & !0xffff_ffff | low;
    Ok(())
}

/// MOVSD xmm, xmm in its store form.
pub(super) fn movsd_store(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    cpu.fpu.xmm[usize::from(i.rm & 15)][0] = cpu.xmm_reg(i)[0];
    Ok(())
}

/// MOVQ xmm, xmm in its store form.
pub(super) fn movq_store(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    cpu.fpu.xmm[usize::from(i.rm & 15)] = [cpu.xmm_reg(i)[0], 0];
    Ok(())
}

/// MOVD and MOVQ from a general register.
pub(super) fn from_gpr<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    cpu.set_xmm_reg(i, [cpu.reg::<T>(i.rm).to_u64(), 0]);
    Ok(())
}

/// MOVD and MOVQ to a general register.
pub(super) fn to_gpr<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    cpu.set_reg(i.rm, T::from_u64(cpu.xmm_reg(i)[0]));
    Ok(())
}

/// MOVD and MOVQ from a general register to MMX.
pub(super) fn mm_from_gpr<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    cpu.fpu.enter_mmx();
    cpu.fpu.set_mm(i.reg, cpu.reg::<T>(i.rm).to_u64());
    Ok(())
}

/// MOVD and MOVQ from MMX to a general register.
pub(super) fn mm_to_gpr<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    cpu.fpu.enter_mmx();
    cpu.set_reg(i.rm, T::from_u64(cpu.fpu.mm(i.reg)));
    Ok(())
}

/// MOVD and MOVQ from memory to MMX.
pub(super) fn mm_load<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    let v = cpu.read_mem::<Gen, T>(i)?;
    cpu.fpu.enter_mmx();
    cpu.fpu.set_mm(i.reg, v.to_u64());
    Ok(())
}

/// MOVD, MOVQ and MOVNTQ from MMX to memory.
pub(super) fn mm_store<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    cpu.write_mem::<Gen, T>(i, T::from_u64(cpu.fpu.mm(i.reg)))?;
    cpu.fpu.enter_mmx();
    Ok(())
}

/// MOVQ mm, mm. `STORE`: ModRM.rm is the destination.
pub(super) fn mm_move<const STORE: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    cpu.fpu.enter_mmx();
    let (to, from) = if STORE { (i.rm, i.reg) } else { (i.reg, i.rm) };
    cpu.fpu.set_mm(to, cpu.fpu.mm(from));
    Ok(())
}

/// What instructions with registers of both kinds look at first.
pub(super) fn enter_both(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    cpu.mmx(i)
}

/// MOVQ2DQ.
pub(super) fn movq2dq(cpu: &mut Cpu, i: &Insn) -> Res {
    enter_both(cpu, i)?;
    cpu.fpu.enter_mmx();
    cpu.set_xmm_reg(i, [cpu.fpu.mm(i.rm), 0]);
    Ok(())
}

/// MOVDQ2Q.
pub(super) fn movdq2q(cpu: &mut Cpu, i: &Insn) -> Res {
    enter_both(cpu, i)?;
    cpu.fpu.enter_mmx();
    cpu.fpu.set_mm(i.reg, cpu.fpu.xmm[usize::from(i.rm & 15)][0]);
    Ok(())
}

/// MOVMSKPS.
pub(super) fn movmskps(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let [a, b] = cpu.fpu.xmm[usize::from(i.rm & 15)];
    cpu.set_reg(i.reg, (a >> 31 & 1 | a >> 63 << 1 | (b >> 31 & 1) << 2 | b >> 63 << 3) as u32);
    Ok(())
}

/// MOVMSKPD.
pub(super) fn movmskpd(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let [a, b] = cpu.fpu.xmm[usize::from(i.rm & 15)];
    cpu.set_reg(i.reg, (a >> 63 | b >> 63 << 1) as u32);
    Ok(())
}

/// PMOVMSKB from an XMM register.
pub(super) fn pmovmskb(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let [a, b] = cpu.fpu.xmm[usize::from(i.rm & 15)];
    cpu.set_reg(i.reg, (byte_signs(a) | byte_signs(b) << 8) as u32);
    Ok(())
}

/// PMOVMSKB from an MMX register.
pub(super) fn mm_pmovmskb(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    cpu.fpu.enter_mmx();
    cpu.set_reg(i.reg, byte_signs(cpu.fpu.mm(i.rm)) as u32);
    Ok(())
}

/// Stores the bytes of `data` whose bit in `mask` is set. The others must be writable all the same.
fn store_masked(cpu: &mut Cpu, i: &Insn, data: &[u8], mask: u64) -> Res {
    let lin = cpu.lin_gen(i, data.len() as u32, true)?;
    if cpu.probe_write(lin, data.len() as u32).is_err() {
        return Err(cpu.operand_fault(i));
    }
    for (n, byte) in data.iter().enumerate().filter(|(n, _)| mask >> n & 1 != 0) {
        cpu.store(lin.wrapping_add(n as u64) & cpu.flat_mask, *byte)?;
    }
    Ok(())
}

/// MASKMOVDQU: the destination is at DS:rDI.
pub(super) fn maskmovdqu(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let [a, b] = cpu.fpu.xmm[usize::from(i.rm & 15)];
    let data = super::int::bytes(cpu.xmm_reg(i));
    store_masked(cpu, i, &data, byte_signs(a) | byte_signs(b) << 8)
}

/// MASKMOVQ.
pub(super) fn maskmovq(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    let (data, mask) = (cpu.fpu.mm(i.reg).to_le_bytes(), byte_signs(cpu.fpu.mm(i.rm)));
    store_masked(cpu, i, &data, mask)?;
    cpu.fpu.enter_mmx();
    Ok(())
}

/// MOVDDUP: from memory, 8 bytes are enough.
pub(super) fn movddup<P: Place>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let v = P::low::<u64>(cpu, i)?;
    cpu.set_xmm_reg(i, [v, v]);
    Ok(())
}
