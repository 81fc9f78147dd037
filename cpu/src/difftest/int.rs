//! Integer instructions against the host.

use super::{Bits, Builder, Case, DATA_LEN, ENTRY, ES_SKEW, Generate, Outcome, Rng, compare};
use crate::flags::{AF, ARITH, CF, OF, PF, SF, ZF};

/// How an opcode goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Nothing more.
    Plain,
    /// ModRM with any register.
    Modrm,
    /// ModRM with one of the extensions whose bits are set.
    Group(u8),
}

/// What else an instruction needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// An immediate of 8 bits or operand size.
    Imm8,
    ImmZ,
    /// MOV r, imm: up to 64 bits.
    ImmV,
    /// Group 3: an immediate for the first two.
    Test,
    Shift1,
    ShiftCl,
    ShiftImm,
    Div,
    BitReg,
    BitImm,
    Jump8,
    JumpZ,
    JumpTo,
    Ret,
    RetImm,
    String,
    Moffs,
    Enter,
    Leave,
    Xlat,
    Bound,
    Cmpxchg,
    Bswap,
}

struct Op {
    code: &'static [u8],
    /// Opcodes that share the row: this many from `code` on.
    run: u8,
    form: Form,
    kind: Kind,
    undefined: u64,
    /// Not in 64-bit code.
    legacy: bool,
}

const fn op(code: &'static [u8], run: u8, form: Form, kind: Kind, undefined: u64) -> Op {
    Op { code, run, form, kind, undefined, legacy: false }
}

const fn legacy(code: &'static [u8], run: u8, form: Form, kind: Kind, undefined: u64) -> Op {
    Op { code, run, form, kind, undefined, legacy: true }
}

use Form::{Group, Modrm, Plain};

const ARITHMETIC: [u8; 8] = [0x00, 0x08, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38];

const OPS: &[Op] = &[
    op(&[0x80], 2, Group(0xff), Kind::Imm8, 0),
    op(&[0x83], 1, Group(0xff), Kind::Imm8, 0),
    legacy(&[0x82], 1, Group(0xff), Kind::Imm8, 0),
    op(&[0x84], 2, Modrm, Kind::Plain, AF),
    op(&[0x86], 6, Modrm, Kind::Plain, 0),
    op(&[0x8d], 1, Modrm, Kind::Plain, 0),
    op(&[0x8f], 1, Group(0xff), Kind::Plain, 0),
    op(&[0x90], 8, Plain, Kind::Plain, 0),
    op(&[0x98], 2, Plain, Kind::Plain, 0),
    op(&[0x9e], 2, Plain, Kind::Plain, 0),
    op(&[0xa0], 4, Plain, Kind::Moffs, 0),
    op(&[0xa4], 4, Plain, Kind::String, 0),
    op(&[0xa8], 1, Plain, Kind::Imm8, AF),
    op(&[0xa9], 1, Plain, Kind::ImmZ, AF),
    op(&[0xaa], 6, Plain, Kind::String, 0),
    op(&[0xb0], 8, Plain, Kind::Imm8, 0),
    op(&[0xb8], 8, Plain, Kind::ImmV, 0),
    op(&[0xc0], 2, Group(0xff), Kind::ShiftImm, 0),
    op(&[0xc0], 2, Group(0xff), Kind::ShiftImm, 0),
    op(&[0xd0], 2, Group(0xff), Kind::Shift1, 0),
    op(&[0xd2], 2, Group(0xff), Kind::ShiftCl, 0),
    op(&[0xd2], 2, Group(0xff), Kind::ShiftCl, 0),
    op(&[0xc2], 1, Plain, Kind::RetImm, 0),
    op(&[0xc3], 1, Plain, Kind::Ret, 0),
    op(&[0xc6], 1, Group(0x01), Kind::Imm8, 0),
    op(&[0xc7], 1, Group(0x01), Kind::ImmZ, 0),
    op(&[0xc8], 1, Plain, Kind::Enter, 0),
    op(&[0xc9], 1, Plain, Kind::Leave, 0),
    op(&[0xd7], 1, Plain, Kind::Xlat, 0),
    op(&[0xe0], 4, Plain, Kind::Jump8, 0),
    op(&[0xe8], 2, Plain, Kind::JumpZ, 0),
    op(&[0xeb], 1, Plain, Kind::Jump8, 0),
    op(&[0xf5], 1, Plain, Kind::Plain, 0),
    op(&[0xf8], 2, Plain, Kind::Plain, 0),
    op(&[0xfc], 2, Plain, Kind::Plain, 0),
    op(&[0xf6], 2, Group(0x0f), Kind::Test, 0),
    op(&[0xf6], 2, Group(0x30), Kind::Plain, SF | ZF | AF | PF),
    op(&[0xf6], 2, Group(0xc0), Kind::Div, ARITH),
    op(&[0xf6], 2, Group(0xc0), Kind::Div, ARITH),
    op(&[0xfe], 1, Group(0xff), Kind::Plain, 0),
    op(&[0xff], 1, Group(0xc3), Kind::Plain, 0),
    op(&[0xff], 1, Group(0x14), Kind::JumpTo, 0),
    op(&[0x50], 16, Plain, Kind::Plain, 0),
    op(&[0x68], 1, Plain, Kind::ImmZ, 0),
    op(&[0x6a], 1, Plain, Kind::Imm8, 0),
    op(&[0x69], 1, Modrm, Kind::ImmZ, SF | ZF | AF | PF),
    op(&[0x6b], 1, Modrm, Kind::Imm8, SF | ZF | AF | PF),
    op(&[0x70], 16, Plain, Kind::Jump8, 0),
    op(&[0x0f, 0x19], 5, Modrm, Kind::Plain, 0),
    op(&[0x0f, 0x1f], 1, Modrm, Kind::Plain, 0),
    op(&[0x0f, 0x40], 16, Modrm, Kind::Plain, 0),
    op(&[0x0f, 0x80], 16, Plain, Kind::JumpZ, 0),
    op(&[0x0f, 0x90], 16, Modrm, Kind::Plain, 0),
    op(&[0x0f, 0xa3], 1, Modrm, Kind::BitReg, OF | SF | AF | PF),
    op(&[0x0f, 0xab], 1, Modrm, Kind::BitReg, OF | SF | AF | PF),
    op(&[0x0f, 0xb3], 1, Modrm, Kind::BitReg, OF | SF | AF | PF),
    op(&[0x0f, 0xbb], 1, Modrm, Kind::BitReg, OF | SF | AF | PF),
    op(&[0x0f, 0xba], 1, Group(0xff), Kind::BitImm, OF | SF | AF | PF),
    op(&[0x0f, 0xa4], 1, Modrm, Kind::ShiftImm, 0),
    op(&[0x0f, 0xa5], 1, Modrm, Kind::ShiftCl, 0),
    op(&[0x0f, 0xac], 1, Modrm, Kind::ShiftImm, 0),
    op(&[0x0f, 0xad], 1, Modrm, Kind::ShiftCl, 0),
    op(&[0x0f, 0xaf], 1, Modrm, Kind::Plain, SF | ZF | AF | PF),
    op(&[0x0f, 0xb0], 2, Modrm, Kind::Cmpxchg, 0),
    op(&[0x0f, 0xb6], 2, Modrm, Kind::Plain, 0),
    op(&[0xf3, 0x0f, 0xb8], 1, Modrm, Kind::Plain, 0),
    op(&[0x0f, 0xbc], 2, Modrm, Kind::Plain, CF | OF | SF | AF | PF),
    op(&[0x0f, 0xbe], 2, Modrm, Kind::Plain, 0),
    op(&[0x0f, 0xc0], 2, Modrm, Kind::Plain, 0),
    op(&[0x0f, 0xc3], 1, Modrm, Kind::Plain, 0),
    op(&[0x0f, 0xc7], 1, Group(0x02), Kind::Cmpxchg, 0),
    op(&[0x0f, 0xc8], 8, Plain, Kind::Bswap, 0),
    op(&[0xf2, 0x0f, 0x38, 0xf0], 2, Modrm, Kind::Plain, 0),
    legacy(&[0x27], 1, Plain, Kind::Plain, OF),
    legacy(&[0x2f], 1, Plain, Kind::Plain, OF),
    legacy(&[0x37], 1, Plain, Kind::Plain, OF | SF | ZF | PF),
    legacy(&[0x3f], 1, Plain, Kind::Plain, OF | SF | ZF | PF),
    legacy(&[0x40], 16, Plain, Kind::Plain, 0),
    legacy(&[0x60], 1, Plain, Kind::Plain, 0),
    legacy(&[0x61], 1, Plain, Kind::Plain, 0),
    legacy(&[0x62], 1, Modrm, Kind::Bound, 0),
    legacy(&[0xd4], 2, Plain, Kind::Imm8, OF | AF | CF),
    legacy(&[0xd6], 1, Plain, Kind::Plain, 0),
];

struct Integer;

impl Generate for Integer {
    fn case(&mut self, rng: &mut Rng, bits: Bits) -> Option<Case> {
        // A third are the eight arithmetic operations in six forms.
        if rng.one_in(3) {
            let base = rng.pick(&ARITHMETIC);
            let form = rng.below(6) as u8;
            let logic = if matches!(base, 0x08 | 0x20 | 0x30) { AF } else { 0 };
            let (form, kind) = match form {
                0..=3 => (base + form, Kind::Plain),
                4 => (base + 4, Kind::Imm8),
                _ => (base + 5, Kind::ImmZ),
            };
            let modrm = if kind == Kind::Plain { Modrm } else { Plain };
            return build(rng, bits, &op(&[], 1, modrm, kind, logic), form);
        }
        let op = &OPS[rng.below(OPS.len() as u64) as usize];
        if op.legacy && bits == Bits::B64 {
            return None;
        }
        let last = op.code.last().unwrap() + rng.below(op.run.into()) as u8;
        build(rng, bits, op, last)
    }

    fn forgive(&self, case: &Case, host: &mut Outcome, guest: &mut Outcome) {
        // A fault in the middle of CMPS or SCAS may or may not take back the flags of the repetitions before.
        if host.vector != 3 && host.state.gpr[1] != case.state.gpr[1] {
            host.state.flags = guest.state.flags;
        }
        // Where AMD's processors do not write a 32-bit destination, CMPXCHG that fails and BSF or BSR of 0, Intel's may
        // clear its upper half.
        if case.code.windows(2).any(|w| w[0] == 0x0f && matches!(w[1], 0xb1 | 0xbc | 0xbd)) {
            for (host, guest) in host.state.gpr.iter().zip(&mut guest.state.gpr) {
                if *host == *guest & 0xffff_ffff {
                    *guest = *host;
                }
            }
        }
        // A branch that leaves the code page, by a target cut to 16 bits or read across the end of the data window, is
        // a branch done; the host then faults at its target.
        if host.vector == 14 && guest.vector == 3 && host.state.rip != case.state.rip {
            host.vector = 3;
        }
    }
}

/// Makes a case of a row of the table; `last` is the last byte of the opcode.
fn build(rng: &mut Rng, bits: Bits, op: &Op, last: u8) -> Option<Case> {
    let mut b = Builder::new(rng, bits);
    let two = op.code.contains(&0x0f);
    let near = matches!(op.kind, Kind::JumpZ | Kind::Jump8 | Kind::JumpTo | Kind::Ret | Kind::RetImm);
    // AMD cuts RIP to 16 bits where Intel ignores the prefix.
    if b.rng.one_in(4) && !(near && bits == Bits::B64) {
        b.byte(0x66);
    }
    if b.rng.one_in(8) {
        b.byte(0x67);
    }
    if b.rng.one_in(8) {
        b.segment();
    }
    if b.rng.one_in(24) {
        b.byte(0xf0);
    }
    let mandatory = op.code.first().copied().filter(|p| matches!(p, 0xf2 | 0xf3));
    let repeat = if op.kind == Kind::String && b.rng.one_in(2) { Some(b.rng.pick(&[0xf2, 0xf3])) } else { mandatory };
    if let Some(p) = repeat {
        b.byte(p);
    }
    if b.rng.one_in(2) {
        let rex = 0x40 | b.rng.next() as u8 & 15;
        b.rex(rex);
    }
    if two {
        b.byte(0x0f);
        if op.code.contains(&0x38) {
            b.byte(0x38);
        }
    }
    b.byte(last);
    let wide = last & 1 != 0;
    match op.form {
        Plain => {}
        Modrm => b.modrm(None),
        Group(set) => {
            let ext = b.rng.below(8) as u8;
            if set >> ext & 1 == 0 {
                return None;
            }
            b.modrm(Some(ext));
        }
    }
    let (mut undefined, mut patches) = (op.undefined, Vec::new());
    let mut shift_count = None;
    let ext = b.modrm >> 3 & 7;
    let size = 2 << b.osize();
    let imm_z = size.min(4);
    // Accesses of up to 16 bytes, and twice that for bounds.
    let mut at = b.target(16, 1);
    let data = bits.data();
    let mask = b.address_mask();
    match op.kind {
        Kind::Plain => {}
        // Undefined for 16 bits.
        Kind::Bswap if b.osize() == 0 => return None,
        Kind::Bswap => {}
        Kind::Imm8 => {
            b.imm(1);
            if op.code.first().is_some_and(|c| (0x80..=0x83).contains(c)) {
                if last == 0x81 {
                    b.imm(imm_z - 1);
                }
                if matches!(ext, 1 | 4 | 6) {
                    undefined = AF;
                }
            }
        }
        Kind::ImmZ => {
            b.imm(imm_z);
        }
        Kind::ImmV => {
            b.imm(size);
        }
        Kind::Test => {
            if ext < 2 {
                b.imm(if wide { imm_z } else { 1 });
                undefined = AF;
            }
        }
        Kind::Shift1 => shift_count = Some(1),
        Kind::ShiftImm => shift_count = Some(b.imm(1)),
        Kind::ShiftCl => {
            if b.rng.one_in(2) {
                let low = b.rng.below(72);
                b.set(1, low, 0xff);
            }
        }
        Kind::Div => {
            // Quotients that fit, half the time.
            if b.rng.one_in(2) {
                let v = b.rng.below(4).wrapping_sub(1);
                b.set(2, v, u64::MAX);
                if !wide {
                    let v = b.rng.below(0x400).wrapping_sub(0x200);
                    b.set(0, v, 0xffff);
                }
            }
        }
        Kind::BitReg => {
            // Keeps the bit inside the data window, mostly.
            if !b.rng.one_in(16) {
                let v = b.rng.below(4096).wrapping_sub(2048);
                let reg = ext | (b.rex & 4) << 1;
                b.set(reg, v, u64::MAX);
            }
        }
        Kind::BitImm => {
            b.imm(1);
        }
        Kind::Cmpxchg => {
            let align = if b.rng.one_in(8) { 1 } else { 16 };
            at = b.target(16, align);
            // Equal half the time.
            if b.rng.one_in(2) {
                let [a, d] = [0, 2].map(|r: usize| b.state.gpr[r].to_le_bytes());
                let bytes = match (last, size) {
                    (0xc7, 8) => [a, d].concat(),
                    (0xc7, _) => [&a[..4], &d[..4]].concat(),
                    _ => a.to_vec(),
                };
                if b.modrm >= 0xc0 {
                    let rm = b.modrm & 7 | (b.rex & 1) << 3;
                    let v = b.state.gpr[0];
                    b.set(rm, v, u64::MAX);
                } else if at as usize + bytes.len() <= DATA_LEN {
                    patches.push((at as usize, bytes));
                }
            }
        }
        Kind::Jump8 => {
            let v = b.imm(1) as i8;
            if (-16..=0).contains(&v) {
                return None;
            }
            if b.rng.one_in(2) {
                let v = b.rng.below(3);
                b.set(1, v, mask);
            }
        }
        Kind::JumpZ => {
            let v = b.rng.below(0x600).wrapping_sub(0x300);
            let n = if bits == Bits::B64 { 4 } else { imm_z };
            b.bytes.extend_from_slice(&v.to_le_bytes()[..n]);
            if (-16..=0).contains(&(v as i64)) {
                return None;
            }
        }
        Kind::JumpTo | Kind::Ret | Kind::RetImm => {
            if op.kind == Kind::RetImm {
                b.imm(2);
            }
            // In 16-bit code, sometimes beyond the limit.
            let offset = if bits == Bits::B16 && b.rng.one_in(16) { 0x1234 } else { ENTRY + 32 + b.rng.below(0x400) };
            let target = bits.entry() - ENTRY + offset;
            if op.kind != Kind::JumpTo {
                let sp = b.state.gpr[4] - data;
                patches.push((sp as usize, target.to_le_bytes().to_vec()));
            } else if b.modrm >= 0xc0 {
                let rm = b.modrm & 7 | (b.rex & 1) << 3;
                b.set(rm, target, u64::MAX);
            } else if at as usize + 8 <= DATA_LEN {
                patches.push((at as usize, target.to_le_bytes().to_vec()));
            }
        }
        Kind::String => {
            let step = 1 << b.rng.below(4);
            let (si, di) = (b.target(16, step), b.target(16, 1));
            let v = data + si;
            b.set(6, v, mask);
            let v = data + di.max(if bits == Bits::B16 { ES_SKEW } else { 0 });
            let v = v - if bits == Bits::B16 { ES_SKEW } else { 0 };
            b.set(7, v, mask);
            if repeat.is_some() {
                let v = match b.rng.below(4) {
                    0 => b.rng.below(2),
                    1 => b.rng.below(600),
                    _ => b.rng.below(20),
                };
                b.set(1, v, mask);
            }
            // Overlaps, and equal strings to compare.
            if b.rng.one_in(3) {
                let near = b.rng.below(24).wrapping_sub(12);
                let v = b.state.gpr[6].wrapping_add(near).wrapping_sub(if bits == Bits::B16 { ES_SKEW } else { 0 });
                b.set(7, v, mask);
            }
            if b.rng.one_in(3) {
                patches.push((0x400, vec![b.rng.next() as u8; 0x1800]));
            }
        }
        Kind::Moffs => {
            let n = [2, 4, 8][usize::from(b.asize())];
            let v = data + at;
            b.bytes.extend_from_slice(&v.to_le_bytes()[..n]);
        }
        Kind::Enter => {
            let size = if b.rng.one_in(8) { b.rng.next() as u16 } else { b.rng.below(512) as u16 };
            b.bytes.extend_from_slice(&size.to_le_bytes());
            let level = if b.rng.one_in(2) { 0 } else { b.rng.below(40) as u8 };
            b.byte(level);
            let v = data + b.target(512, 1);
            b.set(5, v, u64::MAX);
        }
        Kind::Leave => {
            let v = data + at;
            b.set(5, v, u64::MAX);
        }
        Kind::Xlat => {
            let v = (data + at).wrapping_sub(b.state.gpr[0] & 0xff);
            b.set(3, v, mask);
        }
        Kind::Bound => {
            let reg = b.state.gpr[usize::from(ext)];
            let (low, high) = (reg.wrapping_sub(b.rng.below(3)), reg.wrapping_add(b.rng.below(3)).wrapping_sub(1));
            if at as usize + 2 * size <= DATA_LEN {
                let bytes = [&low.to_le_bytes()[..size], &high.to_le_bytes()[..size]].concat();
                patches.push((at as usize, bytes));
            }
        }
    }
    // The two 16-bit segments for the stack and the data start together; what is placed by way of ES is moved.
    let placed = b.place(at)?;
    if placed != at {
        patches.clear();
    }
    if b.bytes.len() > 15 {
        return None;
    }
    if matches!(op.kind, Kind::Shift1 | Kind::ShiftCl | Kind::ShiftImm) {
        // CL may have become part of an address.
        let count = shift_count.unwrap_or(b.state.gpr[1]);
        let width = if !two && !wide { 8 } else { 8 * size as u64 };
        let count = count & if width == 64 { 63 } else { 31 };
        undefined = shift_undefined(two, ext, width, count);
        if two && count > width {
            return None;
        }
    }
    if !near && b.rng.one_in(64) {
        // A stack without room.
        let v = bits.data() + b.rng.below(12);
        b.set(4, v, u64::MAX);
    }
    Some(Case { bits, code: b.bytes, state: b.state, patches, undefined, fp: false })
}

/// The flags that a shift by a masked count leaves undefined.
fn shift_undefined(double: bool, ext: u8, width: u64, count: u64) -> u64 {
    if count == 0 {
        return 0;
    }
    let of = if count == 1 { 0 } else { OF };
    match ext {
        _ if double => AF | of,
        0..=3 => of,
        7 => AF | of,
        _ => AF | of | if count >= width { CF } else { 0 },
    }
}

#[test]
fn integer_instructions_do_in_64_bit_code_what_the_host_does() {
    compare(&mut Integer, &[Bits::B64], 150_000);
}

#[test]
fn integer_instructions_do_in_32_bit_code_what_the_host_does() {
    compare(&mut Integer, &[Bits::B32], 75_000);
}

#[test]
fn integer_instructions_do_in_16_bit_segments_what_the_host_does() {
    compare(&mut Integer, &[Bits::B16], 75_000);
}
