//! Shuffles, blends and the other operations that an immediate byte governs.

use super::int::{bytes, sad};
use super::lanes::unpack32;
use super::operand::{Place, Xmm};
use crate::exec::Addr;
use crate::insn::{Insn, Res};
use crate::state::Cpu;

/// An operation on XMM registers with an immediate byte.
pub(super) trait OpImm: 'static {
    fn xmm(a: Xmm, b: Xmm, imm: u8) -> Xmm;
}

macro_rules! immediate {
    ($($name:ident: |$a:ident, $b:ident, $n:ident| $e:expr;)*) => {$(
        pub(super) struct $name;
        impl OpImm for $name {
            #[inline(always)]
            fn xmm($a: Xmm, $b: Xmm, $n: u8) -> Xmm {
                $e
            }
        }
    )*};
}

/// The 32-bit lane that two bits of an immediate choose.
#[inline(always)]
fn pick32(x: Xmm, n: u8) -> u32 {
    (x[usize::from(n >> 1 & 1)] >> (32 * (n & 1))) as u32
}

/// Four 16-bit lanes of a word, each chosen by two bits.
#[inline(always)]
pub(super) fn pick16(x: u64, n: u8) -> u64 {
    (0..4).fold(0, |r, k| r | (x >> (16 * (n >> (2 * k) & 3)) & 0xffff) << (16 * k))
}

#[inline(always)]
fn wide(x: Xmm) -> u128 {
    u128::from(x[0]) | u128::from(x[1]) << 64
}

#[inline(always)]
fn narrow(x: u128) -> Xmm {
    [x as u64, (x >> 64) as u64]
}

/// Lanes of `size` bits of `b` where the immediate has a bit, else of `a`.
fn blend(a: Xmm, b: Xmm, imm: u8, size: u32) -> Xmm {
    let lane = u128::MAX >> (128 - size);
    let mask = (0..128 / size).fold(0, |m, n| if imm >> n & 1 != 0 { m | lane << (n * size) } else { m });
    narrow(wide(a) & !mask | wide(b) & mask)
}

immediate! {
    Shufd: |_a, b, n| [unpack32(pick32(b, n), pick32(b, n >> 2)), unpack32(pick32(b, n >> 4), pick32(b, n >> 6))];
    Shuflw: |_a, b, n| [pick16(b[0], n), b[1]];
    Shufhw: |_a, b, n| [b[0], pick16(b[1], n)];
    Shufps: |a, b, n| [unpack32(pick32(a, n), pick32(a, n >> 2)), unpack32(pick32(b, n >> 4), pick32(b, n >> 6))];
    Shufpd: |a, b, n| [a[usize::from(n & 1)], b[usize::from(n >> 1 & 1)]];
    Alignr: |a, b, n| match n {
        0 => b,
        1..16 => narrow(wide(b) >> (8 * n) | wide(a) << (128 - 8 * u32::from(n))),
        16..32 => narrow(wide(a) >> (8 * (n - 16))),
        _ => [0; 2],
    };
    Blendps: |a, b, n| blend(a, b, n, 32);
    Blendpd: |a, b, n| blend(a, b, n & 3, 64);
    Blendw: |a, b, n| blend(a, b, n, 16);
    Mpsadbw: |a, b, n| {
        let block = (wide(b) >> (32 * u32::from(n & 3))) as u32;
        let from = wide(a) >> (32 * u32::from(n >> 2 & 1));
        let sum = |k: u32| sad((from >> (8 * k)) as u64 & 0xffff_ffff, block.into());
        [0, 4].map(|k| sum(k) | sum(k + 1) << 16 | sum(k + 2) << 32 | sum(k + 3) << 48)
    };
}

handlers! {
    /// `xmm = op(xmm, xmm/m128, imm8)`.
    fn xmm_imm<O: OpImm, @ P: Place>(cpu, i) {
        let b = P::xmm(cpu, i)?;
        let r = &mut cpu.fpu.xmm[usize::from(i.reg & 15)];
        *r = O::xmm(*r, b, i.imm as u8);
        Ok(())
    }
}

/// PSHUFW.
pub(super) fn pshufw<P: Place>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    let b = P::mm(cpu, i)?;
    cpu.fpu.enter_mmx();
    cpu.fpu.set_mm(i.reg, pick16(b, i.imm as u8));
    Ok(())
}

/// PALIGNR with MMX registers.
pub(super) fn mm_palignr<P: Place>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    let b = P::mm(cpu, i)?;
    cpu.fpu.enter_mmx();
    let both = u128::from(cpu.fpu.mm(i.reg)) << 64 | u128::from(b);
    let r = both.checked_shr(8 * u32::from(i.imm as u8)).unwrap_or(0);
    cpu.fpu.set_mm(i.reg, r as u64);
    Ok(())
}

/// INSERTPS: a lane of the source goes to a lane of the destination, then lanes are cleared.
fn insert_lane(cpu: &mut Cpu, i: &Insn, value: u32) {
    let imm = i.imm as u8;
    let to = 32 * u32::from(imm >> 4 & 3);
    let kept = wide(cpu.xmm_reg(i)) & !(0xffff_ffff << to);
    let r = blend(narrow(kept | u128::from(value) << to), [0; 2], imm & 15, 32);
    cpu.set_xmm_reg(i, r);
}

/// INSERTPS xmm, xmm.
pub(super) fn insertps(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let value = pick32(cpu.fpu.xmm[usize::from(i.rm & 15)], (i.imm >> 6) as u8);
    insert_lane(cpu, i, value);
    Ok(())
}

/// INSERTPS xmm, m32: the source lane's number does not count.
pub(super) fn insertps_mem<A: Addr>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let value = cpu.read_mem::<A, u32>(i)?;
    insert_lane(cpu, i, value);
    Ok(())
}

/// PBLENDVB, BLENDVPS and BLENDVPD: XMM0's sign bits choose, lane by lane of `size` bytes.
pub(super) fn blendv<P: Place, const SIZE: usize>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let b = bytes(P::xmm(cpu, i)?);
    let (a, mask) = (bytes(cpu.xmm_reg(i)), bytes(cpu.fpu.xmm[0]));
    let r = std::array::from_fn(|n| if mask[n | (SIZE - 1)] & 0x80 != 0 { b[n] } else { a[n] });
    cpu.set_xmm_reg(i, super::int::from_bytes(r));
    Ok(())
}
