//! PCMPESTRI, PCMPESTRM, PCMPISTRI and PCMPISTRM.
//!
//! Two strings of bytes or words are compared element by element in one of four ways; the result is a mask of bits,
//! from which an index or a register is made (SDM volume 2, 4.1).

use super::int::bytes;
use super::operand::{Place, Xmm};
use crate::flags::{CF, Flags, OF, SF, ZF};
use crate::insn::{Insn, OSIZE_SHIFT, RAX, RCX, RDX, Res};
use crate::state::Cpu;

/// A string in a register: its elements and how many of them count.
struct Text {
    elements: [i32; 16],
    len: usize,
}

impl Text {
    /// The elements of a register as the low two bits of the immediate say, and where it ends: `len` or the first zero.
    fn new(x: Xmm, imm: u8, len: Option<usize>) -> Text {
        let b = bytes(x);
        let mut elements = [0; 16];
        let count = count(imm);
        for (n, e) in elements.iter_mut().take(count).enumerate() {
            *e = match imm & 3 {
                0 => b[n].into(),
                1 => u16::from_le_bytes([b[2 * n], b[2 * n + 1]]).into(),
                2 => (b[n] as i8).into(),
                _ => i16::from_le_bytes([b[2 * n], b[2 * n + 1]]).into(),
            };
        }
        let zero = || elements[..count].iter().position(|e| *e == 0).unwrap_or(count);
        Text { elements, len: len.map_or_else(zero, |l| l.min(count)) }
    }

    fn used(&self) -> &[i32] {
        &self.elements[..self.len]
    }
}

/// Elements in a register.
fn count(imm: u8) -> usize {
    if imm & 1 == 0 { 16 } else { 8 }
}

/// The mask before its polarity: bit n says how element n of the second string fared.
fn aggregate(a: &Text, b: &Text, imm: u8) -> u32 {
    let count = count(imm);
    let any = |f: &dyn Fn(i32) -> bool| b.used().iter().enumerate().fold(0, |m, (n, e)| m | u32::from(f(*e)) << n);
    match imm >> 2 & 3 {
        // Equal any.
        0 => any(&|e| a.used().contains(&e)),
        // Ranges: pairs of lower and upper bound. A lower bound without its upper one does not count.
        1 => any(&|e| a.used().as_chunks().0.iter().any(|[from, to]| (*from..=*to).contains(&e))),
        // Equal each: two elements behind the ends are equal, too.
        2 => (0..count).fold(0, |m, n| {
            let equal = match (n < a.len, n < b.len) {
                (true, true) => a.elements[n] == b.elements[n],
                (false, false) => true,
                _ => false,
            };
            m | u32::from(equal) << n
        }),
        // Equal ordered: the first string occurs at this place of the second, or begins there and runs out of it.
        _ => (0..count).fold(0, |m, n| {
            let found = (0..a.len.min(count - n)).all(|k| n + k < b.len && a.elements[k] == b.elements[n + k]);
            m | u32::from(found) << n
        }),
    }
}

/// The length that PCMPESTRx finds in a register: its magnitude.
fn explicit(cpu: &Cpu, i: &Insn, r: u8) -> usize {
    let v = cpu.gpr[usize::from(r)];
    let magnitude =
        if i.flags >> OSIZE_SHIFT == 2 { (v as i64).unsigned_abs() } else { (v as i32).unsigned_abs().into() };
    magnitude.min(16) as usize
}

/// All four instructions. Memory need not be aligned.
pub(super) fn pcmpstr<P: Place, const EXPLICIT: bool, const INDEX: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let b = P::xmm_any(cpu, i)?;
    let imm = i.imm as u8;
    let lens = if EXPLICIT { (Some(explicit(cpu, i, RAX)), Some(explicit(cpu, i, RDX))) } else { (None, None) };
    let (a, b) = (Text::new(cpu.xmm_reg(i), imm, lens.0), Text::new(b, imm, lens.1));
    let count = count(imm);
    let all = (1u32 << count) - 1;
    let found = aggregate(&a, &b, imm);
    let mask = match imm >> 4 & 3 {
        1 => found ^ all,
        // Only elements that count are inverted.
        3 => found ^ ((1 << b.len) - 1),
        _ => found,
    };
    let short = |t: &Text, flag| if t.len < count { flag } else { 0 };
    let bits = if mask != 0 { CF } else { 0 } | if mask & 1 != 0 { OF } else { 0 } | short(&b, ZF) | short(&a, SF);
    cpu.flags = Flags::from_bits(bits);
    let high = imm & 0x40 != 0;
    if INDEX {
        let index = match mask {
            0 => count as u32,
            _ if high => 31 - mask.leading_zeros(),
            _ => mask.trailing_zeros(),
        };
        cpu.gpr[usize::from(RCX)] = index.into();
    } else if high {
        let width = 128 / count;
        let lane = u128::MAX >> (128 - width);
        let x = (0..count).fold(0, |x, n| if mask >> n & 1 != 0 { x | lane << (n * width) } else { x });
        cpu.fpu.xmm[0] = [x as u64, (x >> 64) as u64];
    } else {
        cpu.fpu.xmm[0] = [mask.into(), 0];
    }
    Ok(())
}
