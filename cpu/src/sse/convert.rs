//! Conversions between integers, singles and doubles.

use super::float::singles;
use super::lanes::unpack32;
use super::mov::enter_both;
use super::operand::{Place, Xmm};
use crate::exec::{Gen, Operand};
use crate::insn::{Insn, Res};
use crate::softfloat::Sse;
use crate::state::Cpu;

/// Low and high 32 bits of a word.
fn lo(x: u64) -> u32 {
    x as u32
}

fn hi(x: u64) -> u32 {
    (x >> 32) as u32
}

/// Conversions of four lanes.
macro_rules! of_singles {
    ($($(#[$doc:meta])* $name:ident: |$s:ident, $a:ident| $e:expr;)*) => {$(
        $(#[$doc])*
        pub(super) fn $name<P: Place>(cpu: &mut Cpu, i: &Insn) -> Res {
            enter!(cpu);
            let b = P::xmm(cpu, i)?;
            let mut $s = Sse::new(cpu.fpu.mxcsr);
            let r = singles(b, b, |$a, _| $e);
            cpu.settle($s)?;
            cpu.set_xmm_reg(i, r);
            Ok(())
        }
    )*};
}

of_singles! {
    /// CVTDQ2PS.
    cvtdq2ps: |s, a| s.i32_to_f32(a as i32);
    /// CVTPS2DQ.
    cvtps2dq: |s, a| s.f32_to_i32(a) as u32;
    /// CVTTPS2DQ.
    cvttps2dq: |s, a| s.f32_to_i32_truncated(a) as u32;
}

/// Conversions of two doubles to four bytes each; the upper half of the result is clear.
macro_rules! of_doubles {
    ($($(#[$doc:meta])* $name:ident: |$s:ident, $a:ident| $e:expr;)*) => {$(
        $(#[$doc])*
        pub(super) fn $name<P: Place>(cpu: &mut Cpu, i: &Insn) -> Res {
            enter!(cpu);
            let b = P::xmm(cpu, i)?;
            let mut $s = Sse::new(cpu.fpu.mxcsr);
            let [low, high] = b.map(|$a| $e);
            cpu.settle($s)?;
            cpu.set_xmm_reg(i, [unpack32(low, high), 0]);
            Ok(())
        }
    )*};
}

of_doubles! {
    /// CVTPD2PS.
    cvtpd2ps: |s, a| s.f64_to_f32(a);
    /// CVTPD2DQ.
    cvtpd2dq: |s, a| s.f64_to_i32(a) as u32;
    /// CVTTPD2DQ.
    cvttpd2dq: |s, a| s.f64_to_i32_truncated(a) as u32;
}

/// CVTPS2PD: two singles of 8 bytes.
pub(super) fn cvtps2pd<P: Place>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let b = P::low::<u64>(cpu, i)?;
    let mut s = Sse::new(cpu.fpu.mxcsr);
    let r = [lo(b), hi(b)].map(|a| s.f32_to_f64(a));
    cpu.settle(s)?;
    cpu.set_xmm_reg(i, r);
    Ok(())
}

/// CVTDQ2PD: two integers of 8 bytes, always exact.
pub(super) fn cvtdq2pd<P: Place>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let b = P::low::<u64>(cpu, i)?;
    cpu.set_xmm_reg(i, [lo(b), hi(b)].map(|a| Sse::i32_to_f64(a as i32)));
    Ok(())
}

/// CVTSS2SD.
pub(super) fn cvtss2sd<P: Place>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let b = P::low::<u32>(cpu, i)?;
    let mut s = Sse::new(cpu.fpu.mxcsr);
    let r = s.f32_to_f64(b);
    cpu.settle(s)?;
    cpu.fpu.xmm[usize::from(i.reg & 15)][0] = r;
    Ok(())
}

/// CVTSD2SS.
pub(super) fn cvtsd2ss<P: Place>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let b = P::low::<u64>(cpu, i)?;
    let mut s = Sse::new(cpu.fpu.mxcsr);
    let r = s.f64_to_f32(b);
    cpu.settle(s)?;
    set_low_single(cpu, i, r);
    Ok(())
}

fn set_low_single(cpu: &mut Cpu, i: &Insn, r: u32) {
    let slot = &mut cpu.fpu.xmm[usize::from(i.reg & 15)][0];
    *slot = *slot & !0xffff_ffff | u64::from(r);
}

/// CVTSI2SS from a general register or memory, of 64 bits or 32.
pub(super) fn cvtsi2ss<P: Operand, const W: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let mut s = Sse::new(cpu.fpu.mxcsr);
    let r = if W {
        let a = P::get::<u64>(cpu, i)?;
        s.i64_to_f32(a as i64)
    } else {
        let a = P::get::<u32>(cpu, i)?;
        s.i32_to_f32(a as i32)
    };
    cpu.settle(s)?;
    set_low_single(cpu, i, r);
    Ok(())
}

/// CVTSI2SD.
pub(super) fn cvtsi2sd<P: Operand, const W: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let mut s = Sse::new(cpu.fpu.mxcsr);
    let r = if W {
        let a = P::get::<u64>(cpu, i)?;
        s.i64_to_f64(a as i64)
    } else {
        let a = P::get::<u32>(cpu, i)?;
        Sse::i32_to_f64(a as i32)
    };
    cpu.settle(s)?;
    cpu.fpu.xmm[usize::from(i.reg & 15)][0] = r;
    Ok(())
}

/// CVTSS2SI and CVTTSS2SI, to 64 bits or 32.
pub(super) fn cvtss2si<P: Place, const TRUNCATE: bool, const W: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let a = P::low::<u32>(cpu, i)?;
    let mut s = Sse::new(cpu.fpu.mxcsr);
    let r = match (W, TRUNCATE) {
        (true, true) => s.f32_to_i64_truncated(a) as u64,
        (true, false) => s.f32_to_i64(a) as u64,
        (false, true) => u64::from(s.f32_to_i32_truncated(a) as u32),
        (false, false) => u64::from(s.f32_to_i32(a) as u32),
    };
    cpu.settle(s)?;
    cpu.set_reg(i.reg, r);
    Ok(())
}

/// CVTSD2SI and CVTTSD2SI.
pub(super) fn cvtsd2si<P: Place, const TRUNCATE: bool, const W: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let a = P::low::<u64>(cpu, i)?;
    let mut s = Sse::new(cpu.fpu.mxcsr);
    let r = match (W, TRUNCATE) {
        (true, true) => s.f64_to_i64_truncated(a) as u64,
        (true, false) => s.f64_to_i64(a) as u64,
        (false, true) => u64::from(s.f64_to_i32_truncated(a) as u32),
        (false, false) => u64::from(s.f64_to_i32(a) as u32),
    };
    cpu.settle(s)?;
    cpu.set_reg(i.reg, r);
    Ok(())
}

/// CVTPI2PS from an MMX register: two integers become the lower two singles.
pub(super) fn cvtpi2ps(cpu: &mut Cpu, i: &Insn) -> Res {
    enter_both(cpu, i)?;
    cpu.fpu.enter_mmx();
    set_low_pair(cpu, i, cpu.fpu.mm(i.rm))
}

/// CVTPI2PS from memory, which has nothing to do with MMX registers.
pub(super) fn cvtpi2ps_mem(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let b = cpu.read_mem::<Gen, u64>(i)?;
    set_low_pair(cpu, i, b)
}

fn set_low_pair(cpu: &mut Cpu, i: &Insn, b: u64) -> Res {
    let mut s = Sse::new(cpu.fpu.mxcsr);
    let [low, high] = [lo(b), hi(b)].map(|a| s.i32_to_f32(a as i32));
    cpu.settle(s)?;
    cpu.fpu.xmm[usize::from(i.reg & 15)][0] = unpack32(low, high);
    Ok(())
}

/// CVTPI2PD from an MMX register.
pub(super) fn cvtpi2pd(cpu: &mut Cpu, i: &Insn) -> Res {
    enter_both(cpu, i)?;
    cpu.fpu.enter_mmx();
    let b = cpu.fpu.mm(i.rm);
    cpu.set_xmm_reg(i, [lo(b), hi(b)].map(|a| Sse::i32_to_f64(a as i32)));
    Ok(())
}

/// CVTPS2PI and CVTTPS2PI, from the low half of an XMM register or 8 bytes.
pub(super) fn cvtps2pi<P: Place, const TRUNCATE: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter_both(cpu, i)?;
    let b = P::low::<u64>(cpu, i)?;
    cpu.fpu.enter_mmx();
    let mut s = Sse::new(cpu.fpu.mxcsr);
    let [low, high] = [lo(b), hi(b)].map(|a| if TRUNCATE { s.f32_to_i32_truncated(a) } else { s.f32_to_i32(a) } as u32);
    cpu.settle(s)?;
    cpu.fpu.set_mm(i.reg, unpack32(low, high));
    Ok(())
}

/// CVTPD2PI and CVTTPD2PI, from an XMM register or 16 aligned bytes.
pub(super) fn cvtpd2pi<P: Place, const TRUNCATE: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter_both(cpu, i)?;
    let b: Xmm = P::xmm(cpu, i)?;
    cpu.fpu.enter_mmx();
    let mut s = Sse::new(cpu.fpu.mxcsr);
    let [low, high] = b.map(|a| if TRUNCATE { s.f64_to_i32_truncated(a) } else { s.f64_to_i32(a) } as u32);
    cpu.settle(s)?;
    cpu.fpu.set_mm(i.reg, unpack32(low, high));
    Ok(())
}
