//! Packed integer operations with two operands, for MMX and XMM registers.

use super::lanes::{
    abs, add, add_signed_saturating, add_unsigned_saturating, average, dwords, eq, greater, max_signed, max_unsigned,
    min_signed, min_unsigned, pack16, pack32, sar, shl, shr, sign, sub, sub_signed_saturating, sub_unsigned_saturating,
    unpack8, unpack16, unpack32, words,
};
use super::operand::{Place, Xmm};
use crate::insn::{Insn, Res};
use crate::state::Cpu;

/// An operation on MMX registers.
pub(super) trait Op64: 'static {
    fn mm(a: u64, b: u64) -> u64;
}

/// An operation on XMM registers.
pub(super) trait Op128: 'static {
    fn xmm(a: Xmm, b: Xmm) -> Xmm;
}

/// Operations that treat each 64-bit word by itself.
macro_rules! wordwise {
    ($($name:ident: |$a:ident, $b:ident| $e:expr;)*) => {$(
        pub(super) struct $name;
        impl Op64 for $name {
            #[inline(always)]
            fn mm($a: u64, $b: u64) -> u64 {
                $e
            }
        }
        impl Op128 for $name {
            #[inline(always)]
            fn xmm(a: Xmm, b: Xmm) -> Xmm {
                [$name::mm(a[0], b[0]), $name::mm(a[1], b[1])]
            }
        }
    )*};
}

/// The low half of a sum or product of two halves.
fn high16(product: i32) -> u16 {
    (product >> 16) as u16
}

/// Sign-extends a 16-bit lane.
fn s16(x: u16) -> i32 {
    x as i16 as i32
}

/// The sum of the absolute differences of eight bytes.
#[inline(always)]
pub(super) fn sad(a: u64, b: u64) -> u64 {
    let d = sub_unsigned_saturating::<8>(a, b) | sub_unsigned_saturating::<8>(b, a);
    let pairs = (d & 0x00ff_00ff_00ff_00ff) + (d >> 8 & 0x00ff_00ff_00ff_00ff);
    pairs.wrapping_mul(0x0001_0001_0001_0001) >> 48
}

fn saturate16(x: i32) -> u16 {
    x.clamp(i16::MIN.into(), i16::MAX.into()) as i16 as u16
}

/// PMADDUBSW: unsigned bytes of `a` times signed bytes of `b`, neighbours added.
fn maddubs(a: u16, b: u16) -> u16 {
    let product = |n: u32| i32::from((a >> n) as u8) * i32::from((b >> n) as i8);
    saturate16(product(0) + product(8))
}

wordwise! {
    And: |a, b| a & b;
    Andn: |a, b| !a & b;
    Or: |a, b| a | b;
    Xor: |a, b| a ^ b;
    Addb: |a, b| add::<8>(a, b);
    Addw: |a, b| add::<16>(a, b);
    Addd: |a, b| add::<32>(a, b);
    Addq: |a, b| a.wrapping_add(b);
    Subb: |a, b| sub::<8>(a, b);
    Subw: |a, b| sub::<16>(a, b);
    Subd: |a, b| sub::<32>(a, b);
    Subq: |a, b| a.wrapping_sub(b);
    Addsb: |a, b| add_signed_saturating::<8>(a, b);
    Addsw: |a, b| add_signed_saturating::<16>(a, b);
    Addusb: |a, b| add_unsigned_saturating::<8>(a, b);
    Addusw: |a, b| add_unsigned_saturating::<16>(a, b);
    Subsb: |a, b| sub_signed_saturating::<8>(a, b);
    Subsw: |a, b| sub_signed_saturating::<16>(a, b);
    Subusb: |a, b| sub_unsigned_saturating::<8>(a, b);
    Subusw: |a, b| sub_unsigned_saturating::<16>(a, b);
    Avgb: |a, b| average::<8>(a, b);
    Avgw: |a, b| average::<16>(a, b);
    Cmpeqb: |a, b| eq::<8>(a, b);
    Cmpeqw: |a, b| eq::<16>(a, b);
    Cmpeqd: |a, b| eq::<32>(a, b);
    Cmpeqq: |a, b| eq::<64>(a, b);
    Cmpgtb: |a, b| greater::<8>(a, b);
    Cmpgtw: |a, b| greater::<16>(a, b);
    Cmpgtd: |a, b| greater::<32>(a, b);
    Cmpgtq: |a, b| greater::<64>(a, b);
    Minub: |a, b| min_unsigned::<8>(a, b);
    Minuw: |a, b| min_unsigned::<16>(a, b);
    Minud: |a, b| min_unsigned::<32>(a, b);
    Minsb: |a, b| min_signed::<8>(a, b);
    Minsw: |a, b| min_signed::<16>(a, b);
    Minsd: |a, b| min_signed::<32>(a, b);
    Maxub: |a, b| max_unsigned::<8>(a, b);
    Maxuw: |a, b| max_unsigned::<16>(a, b);
    Maxud: |a, b| max_unsigned::<32>(a, b);
    Maxsb: |a, b| max_signed::<8>(a, b);
    Maxsw: |a, b| max_signed::<16>(a, b);
    Maxsd: |a, b| max_signed::<32>(a, b);
    Absb: |_a, b| abs::<8>(b);
    Absw: |_a, b| abs::<16>(b);
    Absd: |_a, b| abs::<32>(b);
    Signb: |a, b| sign::<8>(a, b);
    Signw: |a, b| sign::<16>(a, b);
    Signd: |a, b| sign::<32>(a, b);
    Mullw: |a, b| words(a, b, u16::wrapping_mul);
    Mulld: |a, b| dwords(a, b, u32::wrapping_mul);
    Mulhw: |a, b| words(a, b, |x, y| high16(s16(x) * s16(y)));
    Mulhuw: |a, b| words(a, b, |x, y| ((u32::from(x) * u32::from(y)) >> 16) as u16);
    Mulhrsw: |a, b| words(a, b, |x, y| (((s16(x) * s16(y) >> 14) + 1) >> 1) as u16);
    Muludq: |a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff);
    Muldq: |a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64;
    Maddwd: |a, b| dwords(a, b, |x, y| {
        let low = s16(x as u16) * s16(y as u16);
        low.wrapping_add(s16((x >> 16) as u16) * s16((y >> 16) as u16)) as u32
    });
    Maddubsw: |a, b| words(a, b, maddubs);
    Sadbw: |a, b| sad(a, b);
}

/// Shifts of all lanes by the count in the low word of the second operand.
macro_rules! shifts {
    ($($name:ident: $f:ident $w:literal;)*) => {$(
        pub(super) struct $name;
        impl Op64 for $name {
            #[inline(always)]
            fn mm(a: u64, b: u64) -> u64 {
                $f::<$w>(a, b)
            }
        }
        impl Op128 for $name {
            #[inline(always)]
            fn xmm(a: Xmm, b: Xmm) -> Xmm {
                [$f::<$w>(a[0], b[0]), $f::<$w>(a[1], b[0])]
            }
        }
    )*};
}

shifts! {
    Srlw: shr 16;
    Srld: shr 32;
    Srlq: shr 64;
    Sraw: sar 16;
    Srad: sar 32;
    Sllw: shl 16;
    Slld: shl 32;
    Sllq: shl 64;
}

/// Operations that mix words: one formula for each register size.
macro_rules! mixing {
    ($($name:ident: |$a:ident, $b:ident| $mm:expr, $xmm:expr;)*) => {$(
        pub(super) struct $name;
        impl Op64 for $name {
            #[inline(always)]
            fn mm($a: u64, $b: u64) -> u64 {
                $mm
            }
        }
        impl Op128 for $name {
            #[inline(always)]
            fn xmm($a: Xmm, $b: Xmm) -> Xmm {
                $xmm
            }
        }
    )*};
}

/// The halves of a word.
#[inline(always)]
fn lo(x: u64) -> u32 {
    x as u32
}

#[inline(always)]
fn hi(x: u64) -> u32 {
    (x >> 32) as u32
}

fn to_i8(x: i16) -> u8 {
    x.clamp(i8::MIN.into(), i8::MAX.into()) as i8 as u8
}

fn to_u8(x: i16) -> u8 {
    x.clamp(0, 255) as u8
}

fn to_u16(x: i32) -> u16 {
    x.clamp(0, 0xffff) as u16
}

/// Four results from the eight words of two registers, each of two neighbours.
#[inline(always)]
fn pairs16(a: u64, b: u64, f: impl Fn(u16, u16) -> u16) -> u64 {
    let pair = |x: u32| u32::from(f(x as u16, (x >> 16) as u16));
    unpack32(pair(lo(a)) | pair(hi(a)) << 16, pair(lo(b)) | pair(hi(b)) << 16)
}

#[inline(always)]
fn pairs32(a: u64, b: u64, f: impl Fn(u32, u32) -> u32) -> u64 {
    unpack32(f(lo(a), hi(a)), f(lo(b), hi(b)))
}

fn adds16(x: u16, y: u16) -> u16 {
    (x as i16).saturating_add(y as i16) as u16
}

fn subs16(x: u16, y: u16) -> u16 {
    (x as i16).saturating_sub(y as i16) as u16
}

fn shuffle(a: &[u8], b: u64) -> u64 {
    let mask = a.len() - 1;
    let picked = b.to_le_bytes().map(|n| if n & 0x80 != 0 { 0 } else { a[usize::from(n) & mask] });
    u64::from_le_bytes(picked)
}

/// The sixteen bytes of a register.
#[inline(always)]
pub(super) fn bytes(x: Xmm) -> [u8; 16] {
    (u128::from(x[0]) | u128::from(x[1]) << 64).to_le_bytes()
}

#[inline(always)]
pub(super) fn from_bytes(x: [u8; 16]) -> Xmm {
    let x = u128::from_le_bytes(x);
    [x as u64, (x >> 64) as u64]
}

mixing! {
    Unpcklbw: |a, b| unpack8(lo(a), lo(b)), [unpack8(lo(a[0]), lo(b[0])), unpack8(hi(a[0]), hi(b[0]))];
    Unpcklwd: |a, b| unpack16(lo(a), lo(b)), [unpack16(lo(a[0]), lo(b[0])), unpack16(hi(a[0]), hi(b[0]))];
    Unpckldq: |a, b| unpack32(lo(a), lo(b)), [unpack32(lo(a[0]), lo(b[0])), unpack32(hi(a[0]), hi(b[0]))];
    Unpckhbw: |a, b| unpack8(hi(a), hi(b)), [unpack8(lo(a[1]), lo(b[1])), unpack8(hi(a[1]), hi(b[1]))];
    Unpckhwd: |a, b| unpack16(hi(a), hi(b)), [unpack16(lo(a[1]), lo(b[1])), unpack16(hi(a[1]), hi(b[1]))];
    Unpckhdq: |a, b| unpack32(hi(a), hi(b)), [unpack32(lo(a[1]), lo(b[1])), unpack32(hi(a[1]), hi(b[1]))];
    Packsswb: |a, b| unpack32(pack16(a, to_i8), pack16(b, to_i8)), [
        unpack32(pack16(a[0], to_i8), pack16(a[1], to_i8)), unpack32(pack16(b[0], to_i8), pack16(b[1], to_i8)),
    ];
    Packuswb: |a, b| unpack32(pack16(a, to_u8), pack16(b, to_u8)), [
        unpack32(pack16(a[0], to_u8), pack16(a[1], to_u8)), unpack32(pack16(b[0], to_u8), pack16(b[1], to_u8)),
    ];
    Packssdw: |a, b| unpack32(pack32(a, saturate16), pack32(b, saturate16)), [
        unpack32(pack32(a[0], saturate16), pack32(a[1], saturate16)),
        unpack32(pack32(b[0], saturate16), pack32(b[1], saturate16)),
    ];
    Shufb: |a, b| shuffle(&a.to_le_bytes(), b), {
        let a = bytes(a);
        [shuffle(&a, b[0]), shuffle(&a, b[1])]
    };
    Haddw: |a, b| pairs16(a, b, u16::wrapping_add), [
        pairs16(a[0], a[1], u16::wrapping_add), pairs16(b[0], b[1], u16::wrapping_add),
    ];
    Haddd: |a, b| pairs32(a, b, u32::wrapping_add), [
        pairs32(a[0], a[1], u32::wrapping_add), pairs32(b[0], b[1], u32::wrapping_add),
    ];
    Haddsw: |a, b| pairs16(a, b, adds16), [pairs16(a[0], a[1], adds16), pairs16(b[0], b[1], adds16)];
    Hsubw: |a, b| pairs16(a, b, u16::wrapping_sub), [
        pairs16(a[0], a[1], u16::wrapping_sub), pairs16(b[0], b[1], u16::wrapping_sub),
    ];
    Hsubd: |a, b| pairs32(a, b, u32::wrapping_sub), [
        pairs32(a[0], a[1], u32::wrapping_sub), pairs32(b[0], b[1], u32::wrapping_sub),
    ];
    Hsubsw: |a, b| pairs16(a, b, subs16), [pairs16(a[0], a[1], subs16), pairs16(b[0], b[1], subs16)];
}

/// Operations that XMM registers alone have.
macro_rules! wide {
    ($($name:ident: |$a:ident, $b:ident| $xmm:expr;)*) => {$(
        pub(super) struct $name;
        impl Op128 for $name {
            #[inline(always)]
            fn xmm($a: Xmm, $b: Xmm) -> Xmm {
                $xmm
            }
        }
    )*};
}

wide! {
    Unpcklqdq: |a, b| [a[0], b[0]];
    Unpckhqdq: |a, b| [a[1], b[1]];
    Packusdw: |a, b| [
        unpack32(pack32(a[0], to_u16), pack32(a[1], to_u16)), unpack32(pack32(b[0], to_u16), pack32(b[1], to_u16)),
    ];
    Phminposuw: |_a, b| {
        let (min, at) = (0..8).map(|n| ((b[n / 4] >> (16 * (n % 4))) as u16, n as u64)).min().unwrap_or_default();
        [u64::from(min) | at << 16, 0]
    };
    Movsldup: |_a, b| [unpack32(lo(b[0]), lo(b[0])), unpack32(lo(b[1]), lo(b[1]))];
    Movshdup: |_a, b| [unpack32(hi(b[0]), hi(b[0])), unpack32(hi(b[1]), hi(b[1]))];
}

/// `mm = op(mm, mm/m64)`.
pub(super) fn mm_op<O: Op64, P: Place>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    let b = P::mm(cpu, i)?;
    cpu.fpu.enter_mmx();
    let a = cpu.fpu.mm(i.reg);
    cpu.fpu.set_mm(i.reg, O::mm(a, b));
    Ok(())
}

/// `mm = op(mm, m32)`: PUNPCKLBW, PUNPCKLWD and PUNPCKLDQ read but four bytes.
pub(super) fn mm_op_m32<O: Op64, P: Place>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    let b = P::low::<u32>(cpu, i)?;
    cpu.fpu.enter_mmx();
    let a = cpu.fpu.mm(i.reg);
    cpu.fpu.set_mm(i.reg, O::mm(a, b.into()));
    Ok(())
}

handlers! {
    /// `xmm = op(xmm, xmm/m128)`.
    fn xmm_op<O: Op128, @ P: Place>(cpu, i) {
        let b = P::xmm(cpu, i)?;
        let r = &mut cpu.fpu.xmm[usize::from(i.reg & 15)];
        *r = O::xmm(*r, b);
        Ok(())
    }
}

/// Shifts of an MMX register by an immediate count.
pub(super) fn mm_shift<O: Op64>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    cpu.fpu.enter_mmx();
    let a = cpu.fpu.mm(i.rm);
    cpu.fpu.set_mm(i.rm, O::mm(a, i.imm & 0xff));
    Ok(())
}

/// Shifts of an XMM register by an immediate count.
pub(super) fn xmm_shift<O: Op128>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let r = &mut cpu.fpu.xmm[usize::from(i.rm & 15)];
    *r = O::xmm(*r, [i.imm & 0xff, 0]);
    Ok(())
}

/// PSLLDQ and PSRLDQ: shifts by bytes.
pub(super) fn shift_bytes<const LEFT: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let r = &mut cpu.fpu.xmm[usize::from(i.rm & 15)];
    let x = u128::from(r[0]) | u128::from(r[1]) << 64;
    let n = 8 * (i.imm as u8).min(16) as u32;
    let x = if LEFT { x.checked_shl(n) } else { x.checked_shr(n) }.unwrap_or(0);
    *r = [x as u64, (x >> 64) as u64];
    Ok(())
}
