//! From bytes to an [`Insn`]: prefixes, opcode, ModRM, displacement and immediate, for 16-, 32- and 64-bit code.
//!
//! Source: the opcode maps of the Intel SDM volume 2, appendix A, as far as x86-64-v2 goes. A table of one character an
//! opcode says what follows it; which function executes it is the business of the four families of instructions
//! (integer, system, x87, and MMX with SSE), each of which has a `select`.
//!
//! An undefined opcode is an instruction too: one that raises #UD. So are VEX, EVEX and XOP encodings, a LOCK prefix
//! where none may stand, opcodes that 64-bit mode took away, and what the model does not have ([`isa`]). What the
//! processor cannot tell from the bytes it has is a [`DecodeError`].
//!
//! Branches follow Intel: the operand size prefix is ignored by near branches in 64-bit code (AMD cuts RIP to 16 bits).

use crate::feature::Features;
use crate::insn::{
    BLOCK, DS, Dec, END, HALF, Handler, Insn, Mode, NEXT, OSIZE_SHIFT, RBP, RBX, RDI, REP, REPNE, RSI, RSP, Res, SS,
    Select, ZERO,
};
use crate::state::Cpu;
use crate::{exec, fpu, isa, sse, sys};

/// The bytes at hand do not make an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// It goes on behind them.
    NeedMore,
    /// It is longer than 15 bytes: #GP(0).
    TooLong,
}

/// Longest instruction in bytes.
const MAX_LEN: usize = 15;

/// [`Dec::segment`] without a segment prefix.
pub(crate) const NO_SEGMENT: u8 = 0xff;

/// What follows a one-byte opcode:
///
/// * `.` nothing; `u` undefined; `p` prefix or escape
/// * `m` ModRM, `b` with an immediate byte, `s` with a sign-extended one, `z` with one of operand size (at most 32
///   bits)
/// * `B` an immediate byte, `S` a sign-extended one, `W` two bytes, `Z` operand size (at most 32 bits), `V` operand
///   size, `E` two bytes and one (ENTER), `F` a far pointer, `O` an offset of address size
/// * `j` a displacement of 8 bits, `J` of operand size
/// * `t` and `T` ModRM, with an immediate byte or `Z` if ModRM.reg is 0 or 1 (TEST in group 3)
const ONE: [[u8; 16]; 16] = [
    *b"mmmmBZ..mmmmBZ.p",
    *b"mmmmBZ..mmmmBZ..",
    *b"mmmmBZp.mmmmBZp.",
    *b"mmmmBZp.mmmmBZp.",
    *b"................",
    *b"................",
    *b"..mmppppZzSs....",
    *b"jjjjjjjjjjjjjjjj",
    *b"bzbsmmmmmmmmmmmm",
    *b"..........F.....",
    *b"OOOO....BZ......",
    *b"BBBBBBBBVVVVVVVV",
    *b"bbW.mmbzE.W..B..",
    *b"mmmmBB..mmmmmmmm",
    *b"jjjjBBBBJJFj....",
    *b"p.pp..tT......mm",
];

/// What follows 0F and a byte; `c` is a ModRM that names registers whatever its mod field says (MOV CR and DR).
const TWO: [[u8; 16]; 16] = [
    *b"mmmmu.....u.umuu",
    *b"mmmmmmmmmmmmmmmm",
    *b"ccccuuuummmmmmmm",
    *b"......uupupuuuuu",
    *b"mmmmmmmmmmmmmmmm",
    *b"mmmmmmmmmmmmmmmm",
    *b"mmmmmmmmmmmmmmmm",
    *b"bbbbmmm.uuuummmm",
    *b"JJJJJJJJJJJJJJJJ",
    *b"mmmmmmmmmmmmmmmm",
    *b"...mbmuu...mbmmm",
    *b"mmmmmmmmmmbmmmmm",
    *b"mmbmbbbm........",
    *b"mmmmmmmmmmmmmmmm",
    *b"mmmmmmmmmmmmmmmm",
    *b"mmmmmmmmmmmmmmmm",
];

/// One-byte opcodes that 64-bit mode took away, beside those that became prefixes: bit n of word m is opcode 64m + n.
const NOT_IN_64_BIT: [u64; 4] = {
    const GONE: [u8; 22] = [
        0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0x62, 0x82, 0x9a, 0xc4, 0xc5,
        0xce, 0xd4, 0xd5, 0xd6,
    ];
    let mut map = [0; 4];
    let mut n = 0;
    while n < GONE.len() {
        map[GONE[n] as usize >> 6] |= 1 << (GONE[n] & 63);
        n += 1;
    }
    map[3] |= 1 << (0xea & 63);
    map
};

/// The bytes of an instruction, read from the front.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    #[inline(always)]
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        match self.bytes.get(self.at..self.at + N) {
            Some(part) if self.at + N <= MAX_LEN => {
                self.at += N;
                let mut out = [0; N];
                out.copy_from_slice(part);
                Ok(out)
            }
            _ if self.at + N > MAX_LEN => Err(DecodeError::TooLong),
            _ => Err(DecodeError::NeedMore),
        }
    }

    #[inline(always)]
    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take::<1>()?[0])
    }

    #[inline(always)]
    fn i8(&mut self) -> Result<u64, DecodeError> {
        Ok(self.u8()? as i8 as u64)
    }

    #[inline(always)]
    fn u16(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from(u16::from_le_bytes(self.take()?)))
    }

    #[inline(always)]
    fn i32(&mut self) -> Result<i32, DecodeError> {
        Ok(i32::from_le_bytes(self.take()?))
    }

    /// An immediate of operand size, 32 bits at most, sign-extended.
    #[inline(always)]
    fn imm(&mut self, osize: u8) -> Result<u64, DecodeError> {
        if osize == 0 { Ok(self.u16()? as i16 as u64) } else { Ok(self.i32()? as u64) }
    }

    /// An unsigned number of a size code: 0 for 16 bits, 1 for 32, 2 for 64.
    #[inline(always)]
    fn number(&mut self, size: u8) -> Result<u64, DecodeError> {
        match size {
            0 => self.u16(),
            1 => Ok(u64::from(u32::from_le_bytes(self.take()?))),
            _ => Ok(u64::from_le_bytes(self.take()?)),
        }
    }
}

/// [`decode_for`] a processor that has everything.
#[cfg(test)]
pub(crate) fn decode(bytes: &[u8], mode: Mode) -> Result<Insn, DecodeError> {
    decode_for(bytes, mode, Features::ALL, None)
}

/// Decodes the instruction at the start of `bytes` for a processor with these features in `mode`. [`Insn::next`] is its
/// length: it stands alone in its block until [`rebase`] moves it. `bytes` need not be more than 15. If a Jcc with
/// condition `jcc` follows, the handler may do the work of both.
pub(crate) fn decode_for(bytes: &[u8], mode: Mode, features: Features, jcc: Option<u8>) -> Result<Insn, DecodeError> {
    let mut c = Cursor { bytes, at: 0 };
    let long = mode.has(Mode::LONG);
    let mut d = Dec { mode, segment: NO_SEGMENT, ..Dec::default() };
    let mut p67 = false;
    let first = loop {
        let b = c.u8()?;
        match b {
            // 64-bit code has no use for ES, CS, SS and DS, not even to undo an FS or GS prefix.
            0x26 | 0x2e | 0x36 | 0x3e if long => {}
            0x26 | 0x2e | 0x36 | 0x3e => d.segment = b >> 3 & 3,
            0x64 | 0x65 => d.segment = b & 7,
            0x66 => d.p66 = true,
            0x67 => p67 = true,
            0xf0 => d.lock = true,
            0xf2 | 0xf3 => d.rep = b,
            0x40..=0x4f if long => {
                d.rex = b;
                continue;
            }
            _ => break b,
        }
        // A REX prefix counts only right before the opcode.
        d.rex = 0;
    };
    let default = u8::from(long || mode.has(Mode::D32));
    d.osize = if d.rex & 8 != 0 { 2 } else { default ^ u8::from(d.p66) };
    d.asize = if long { 2 - u8::from(p67) } else { default ^ u8::from(p67) };

    let follows;
    if first != 0x0f {
        d.op = u16::from(first);
        follows = ONE[usize::from(first >> 4)][usize::from(first & 15)];
    } else {
        let second = c.u8()?;
        if second == 0x38 || second == 0x3a {
            d.op = u16::from(second) << 8 | u16::from(c.u8()?);
            follows = if second == 0x38 { b'm' } else { b'b' };
        } else {
            d.op = 0x0f00 | u16::from(second);
            follows = TWO[usize::from(second >> 4)][usize::from(second & 15)];
        }
    }

    let mut i = Insn {
        exec: undefined,
        imm: 0,
        disp: 0,
        base: ZERO,
        index: ZERO,
        scale: 0,
        seg: if d.segment == NO_SEGMENT { DS } else { d.segment },
        reg: first_register(&d),
        rm: 0,
        len: 0,
        flags: 0,
        next: 0,
        op: d.op,
    };
    let gone = d.op < 0x100 && long && NOT_IN_64_BIT[usize::from(d.op >> 6)] >> (d.op & 63) & 1 != 0;
    // C4, C5 and 62 with a register in ModRM have become VEX and EVEX.
    let vex = matches!(d.op, 0x62 | 0xc4 | 0xc5) && !gone && c.bytes.get(c.at).is_some_and(|b| *b >= 0xc0);
    if follows == b'u' || gone || vex {
        return Ok(finish(i, &d, c.at, None));
    }

    let mut rip_relative = false;
    match follows {
        b'm' | b'b' | b's' | b'z' | b't' | b'T' | b'c' => {
            d.modrm = c.u8()?;
            i.reg = d.ext() | (d.rex & 4) << 1;
            i.rm = d.modrm & 7 | (d.rex & 1) << 3;
            d.mem = d.modrm < 0xc0 && follows != b'c';
            if d.mem {
                rip_relative = memory(&mut c, &mut i, &d)?;
            }
        }
        b'j' => i.imm = c.i8()?,
        b'J' => i.imm = c.imm(if long { 2 } else { d.osize })?,
        b'B' => i.imm = u64::from(c.u8()?),
        b'S' => i.imm = c.i8()?,
        b'W' => i.imm = c.u16()?,
        b'Z' => i.imm = c.imm(d.osize)?,
        b'V' => i.imm = c.number(d.osize)?,
        b'E' => i.imm = c.u16()? | u64::from(c.u8()?) << 16,
        b'F' => i.imm = c.number(d.osize)? | c.u16()? << 32,
        b'O' => {
            d.mem = true;
            let offset = c.number(d.asize)?;
            if d.asize < 2 || offset == offset as i32 as u64 {
                i.disp = offset as i32;
            } else {
                i.base = NEXT;
                i.imm = offset;
            }
        }
        _ => {}
    }
    match follows {
        b'b' => i.imm = u64::from(c.u8()?),
        b's' => i.imm = c.i8()?,
        b'z' => i.imm = c.imm(d.osize)?,
        b't' if d.ext() < 2 => i.imm = u64::from(c.u8()?),
        b'T' if d.ext() < 2 => i.imm = c.imm(d.osize)?,
        _ => {}
    }
    if rip_relative {
        // The displacement counts from the end of the instruction, ours from the start of the block.
        match i.disp.checked_add(c.at as i32) {
            Some(disp) => i.disp = disp,
            None => {
                i.index = HALF;
                i.disp = i.disp.wrapping_add(c.at as i32).wrapping_add(i32::MIN);
            }
        }
    }
    if d.lock && !(d.mem && lockable(&d)) || !isa::offered(&d, features) {
        return Ok(finish(i, &d, c.at, None));
    }
    i.flags = d.asize
        | d.osize << OSIZE_SHIFT
        | match d.rep {
            0xf2 => REPNE,
            0xf3 => REP,
            _ => 0,
        };
    let select = family(&d);
    let mut exec = select(&mut i, &d);
    if let (Some(condition), Some(alone)) = (jcc, exec) {
        exec = exec::select_fused(&i, &d, condition).or(Some(alone));
    }
    Ok(finish(i, &d, c.at, exec))
}

/// Fills in what is known last.
fn finish(mut i: Insn, d: &Dec, len: usize, exec: Option<Handler>) -> Insn {
    i.len = len as u8;
    i.next = len as u16;
    match exec {
        Some(exec) => i.exec = exec,
        None => {
            i.exec = undefined;
            // Whatever it looked like, it does what UD2 does.
            i.op = 0x0f0b;
            i.flags = d.asize | d.osize << OSIZE_SHIFT | END;
        }
    }
    i
}

/// Every undefined opcode.
fn undefined(cpu: &mut Cpu, _: &Insn) -> Res {
    Err(cpu.ud())
}

/// Moves a freshly decoded instruction `offset` bytes into its block. False, and no change, if the displacement of a
/// RIP-relative operand would overflow: the instruction has to start a block of its own.
pub(crate) fn rebase(i: &mut Insn, offset: u16) -> bool {
    let Some(next) = i.next.checked_add(offset) else { return false };
    if i.base == BLOCK {
        let Some(disp) = i.disp.checked_add(i32::from(offset)) else { return false };
        i.disp = disp;
    }
    i.next = next;
    true
}

/// The register in the opcode byte.
fn first_register(d: &Dec) -> u8 {
    d.op as u8 & 7 | (d.rex & 1) << 3
}

/// Parses what ModRM says of a memory operand. True if it is relative to RIP.
fn memory(c: &mut Cursor, i: &mut Insn, d: &Dec) -> Result<bool, DecodeError> {
    let (mode, rm) = (d.modrm >> 6, d.modrm & 7);
    let mut rip_relative = false;
    // What mod 0 with no base has: a displacement of this many bytes.
    let mut wide = 0;
    if d.asize == 0 {
        (i.base, i.index) = match rm {
            0 => (RBX, RSI),
            1 => (RBX, RDI),
            2 => (RBP, RSI),
            3 => (RBP, RDI),
            4 => (RSI, ZERO),
            5 => (RDI, ZERO),
            6 if mode == 0 => (ZERO, ZERO),
            6 => (RBP, ZERO),
            _ => (RBX, ZERO),
        };
        if rm == 6 && mode == 0 || mode == 2 {
            wide = 2;
        }
    } else {
        let mut base = rm;
        if rm == 4 {
            let sib = c.u8()?;
            base = sib & 7;
            let index = sib >> 3 & 7 | (d.rex & 2) << 2;
            if index != RSP {
                i.index = index;
                i.scale = sib >> 6;
            }
        }
        if base == 5 && mode == 0 {
            wide = 4;
            if rm == 5 && d.mode.has(Mode::LONG) {
                rip_relative = true;
                i.base = BLOCK;
            }
        } else {
            i.base = base | (d.rex & 1) << 3;
            if mode == 2 {
                wide = 4;
            }
        }
    }
    i.disp = match (mode, wide) {
        (1, _) => c.i8()? as i32,
        (_, 2) => i32::from(c.u16()? as i16),
        (_, 4) => c.i32()?,
        _ => 0,
    };
    if d.segment == NO_SEGMENT && (i.base == RBP || i.base == RSP && d.asize != 0) {
        i.seg = SS;
    }
    Ok(rip_relative)
}

/// Whether LOCK may stand before the instruction if it has a memory operand.
fn lockable(d: &Dec) -> bool {
    match d.op {
        // The destination is memory in the first two forms of each group of eight; CMP writes nothing.
        0x00..=0x37 => d.op & 7 < 2,
        0x80..=0x83 => d.ext() != 7,
        0x86 | 0x87 | 0x0fab | 0x0fb0 | 0x0fb1 | 0x0fb3 | 0x0fbb | 0x0fc0 | 0x0fc1 => true,
        0xf6 | 0xf7 => matches!(d.ext(), 2 | 3),
        0xfe | 0xff => d.ext() < 2,
        0x0fba => d.ext() > 4,
        0x0fc7 => d.ext() == 1,
        _ => false,
    }
}

/// Who executes an opcode.
fn family(d: &Dec) -> Select {
    let memory = d.mem;
    match d.op {
        0x06 | 0x07 | 0x0e | 0x16 | 0x17 | 0x1e | 0x1f => sys::select,
        0x63 if !d.mode.has(Mode::LONG) => sys::select,
        0x6c..=0x6f | 0x8c | 0x8e | 0x9a | 0x9c | 0x9d | 0xc4 | 0xc5 | 0xca..=0xcf => sys::select,
        0xe4..=0xe7 | 0xea | 0xec..=0xef | 0xf1 | 0xf4 | 0xfa | 0xfb => sys::select,
        0xff if matches!(d.ext(), 3 | 5) => sys::select,
        0x9b | 0xd8..=0xdf => fpu::select,
        0x0f0d | 0x0f18..=0x0f1f => exec::select,
        0x0f00..=0x0f0f | 0x0f20..=0x0f27 | 0x0f30..=0x0f37 => sys::select,
        0x0fa0..=0x0fa2 | 0x0fa8..=0x0faa | 0x0fb2 | 0x0fb4 | 0x0fb5 | 0x0fb9 | 0x0fff => sys::select,
        // 0 to 5 are the FXSAVE group, XSAVEOPT is not offered, CLFLUSH and the fences are the system's.
        0x0fae if memory && d.ext() < 6 => fpu::select,
        0x0fae => sys::select,
        0x0fc7 if d.ext() >= 6 => sys::select,
        0x0f77 => fpu::select,
        0x0f10..=0x0f17 | 0x0f28..=0x0f2f | 0x0f50..=0x0f7f => sse::select,
        0x0fc2 | 0x0fc4..=0x0fc6 | 0x0fd0..=0x0ffe => sse::select,
        0x38f0 | 0x38f1 => exec::select,
        0x3800..=0x3aff => sse::select,
        _ => exec::select,
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{CpuidFeature, Instruction, OpKind, Register};

    use super::*;
    use crate::difftest::Rng;

    const FLAT32: Mode = Mode(Mode::D32 | Mode::STACK32 | Mode::FLAT);
    const LONG: Mode = Mode(Mode::LONG | Mode::STACK32 | Mode::FLAT);

    fn is_undefined(i: &Insn) -> bool {
        i.exec as usize == undefined as *const () as usize
    }

    /// Whether x86-64-v2 has the instruction.
    fn offered(i: &Instruction) -> bool {
        use CpuidFeature::*;
        i.cpuid_features().iter().all(|f| {
            matches!(
                *f,
                INTEL8086
                    | INTEL186
                    | INTEL286
                    | INTEL386
                    | INTEL486
                    | X64
                    | CMOV
                    | FPU
                    | FPU287
                    | FPU387
                    | MMX
                    | SSE
                    | SSE2
                    | SSE3
                    | SSSE3
                    | SSE4_1
                    | SSE4_2
                    | POPCNT
                    | CX8
                    | CMPXCHG16B
                    | FXSR
                    | SYSCALL
                    | RDTSCP
                    | MULTIBYTENOP
                    | PAUSE
                    | CLFSH
                    | CPUID
                    | TSC
                    | MSR
                    | SEP
            )
        })
    }

    /// Random bytes that get past the prefixes and into all maps.
    fn bytes(rng: &mut Rng) -> [u8; 20] {
        const PREFIXES: [u8; 12] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x26, 0x64, 0x48, 0x41, 0x4f, 0x66];
        let mut b = [0; 20];
        b.iter_mut().for_each(|b| *b = rng.next() as u8);
        let mut at = 0;
        while at < 14 && rng.one_in(2) {
            b[at] = rng.pick(&PREFIXES);
            at += 1;
        }
        match rng.below(8) {
            0..=2 => b[at] = 0x0f,
            3 => {
                b[at] = 0x0f;
                b[at + 1] = rng.pick(&[0x38, 0x3a]);
            }
            _ => {}
        }
        b
    }

    fn number(r: Register, none: u8) -> u8 {
        if r == Register::None { none } else { r.number() as u8 }
    }

    /// The memory operand must be what the other decoder sees.
    fn check_operand(ours: &Insn, theirs: &Instruction, text: &str) {
        let memory = (0..theirs.op_count()).any(|n| theirs.op_kind(n) == OpKind::Memory);
        // XLAT has AL for an index, and 64-bit offsets are an immediate to us.
        if !memory || matches!(ours.op, 0xd7 | 0xa0..=0xa3) {
            return;
        }
        let segment = match theirs.memory_segment() {
            Register::ES => 0,
            Register::CS => 1,
            Register::SS => 2,
            Register::FS => 4,
            Register::GS => 5,
            _ => 3,
        };
        // In 64-bit code the other decoder names segments that mean nothing.
        if ours.flags & crate::insn::ASIZE == 0 || theirs.code_size() != iced_x86::CodeSize::Code64 || segment > 3 {
            assert_eq!(ours.seg, segment, "{text}");
        } else {
            assert!(ours.seg < 4, "{text}");
        }
        let disp = theirs.memory_displacement64();
        if theirs.is_ip_rel_memory_operand() {
            assert_eq!((ours.base, ours.index), (BLOCK, ZERO), "{text}");
            assert_eq!(disp as u32, ours.disp as u32, "{text}");
            return;
        }
        // In 16-bit addressing the other order of base and index is the same.
        assert_eq!(ours.base, number(theirs.memory_base(), ZERO), "{text}");
        assert_eq!(ours.index, number(theirs.memory_index(), ZERO), "{text}");
        assert!(ours.index == ZERO || 1 << ours.scale == theirs.memory_index_scale(), "{text}");
        let cut = [0xffff, 0xffff_ffff, u64::MAX][usize::from(ours.flags & crate::insn::ASIZE)];
        assert_eq!(ours.disp as u64 & cut, disp & cut, "{text}");
    }

    #[test]
    fn random_bytes_decode_as_another_decoder_sees_them() {
        let mut rng = Rng::new(2024);
        let count: u64 = std::env::var("BHYVE_RS_DECODE_CASES").map_or(300_000, |n| n.parse().unwrap());
        let (mut valid, mut invalid) = (0, 0);
        for _ in 0..count {
            let b = bytes(&mut rng);
            let (bits, mode) = rng.pick(&[(16, Mode(0)), (32, FLAT32), (64, LONG), (64, LONG)]);
            let theirs = iced_x86::Decoder::with_ip(bits, &b, 0, iced_x86::DecoderOptions::NONE).decode();
            let ours = decode(&b, mode);
            let text = format!("{bits} bits {b:02x?}: {theirs:?}, here {ours:x?}");
            if theirs.is_invalid() {
                invalid += 1;
                match ours {
                    Err(e) => assert_eq!(e, DecodeError::TooLong, "{text}"),
                    // What else is undefined the other decoder knows by other rules, or the handler finds out.
                    Ok(i) => assert!(is_undefined(&i) || hint(i.op) || !ours_alone(&i, mode), "{text}"),
                }
            } else if offered(&theirs) {
                valid += 1;
                let i = ours.unwrap_or_else(|_| panic!("{text}"));
                // UD0, UD1 and UD2 are instructions there.
                assert!(!is_undefined(&i) || matches!(i.op, 0x0f0b | 0x0fb9 | 0x0fff), "{text}");
                assert_eq!(usize::from(i.len), theirs.len(), "{text}");
                check_operand(&i, &theirs, &text);
            } else if let Ok(i) = ours {
                // LZCNT and TZCNT are BSR and BSF to processors without them.
                let other = matches!(i.op, 0x0fbc | 0x0fbd) || hint(i.op) || !ours_alone(&i, mode);
                assert!(is_undefined(&i) || other, "{text}");
            }
        }
        assert!(valid > count / 3 && invalid > count / 50, "{valid} valid, {invalid} invalid");
    }

    /// Whether the opcode is of the integer family, which raises #UD in the decoder only.
    fn ours_alone(i: &Insn, mode: Mode) -> bool {
        let d = Dec { mode, op: i.op, mem: true, modrm: i.reg << 3, ..Dec::default() };
        family(&d) as usize == exec::select as *const () as usize
    }

    #[test]
    fn an_instruction_that_is_cut_off_wants_more_and_one_of_16_bytes_is_too_long() {
        let code = [0x66, 0x2e, 0xf7, 0x84, 0x8b, 0x78, 0x56, 0x34, 0x12, 0xcd, 0xab];
        for n in 0..code.len() {
            assert_eq!(decode(&code[..n], FLAT32).unwrap_err(), DecodeError::NeedMore);
        }
        assert_eq!(decode(&code, FLAT32).unwrap().len, 11);
        let mut long = [0x66; 16];
        long[14] = 0x90;
        assert_eq!(decode(&long, FLAT32).unwrap().len, 15);
        (long[14], long[15]) = (0x66, 0x90);
        assert_eq!(decode(&long, FLAT32).unwrap_err(), DecodeError::TooLong);
        assert_eq!(decode(&long[..15], FLAT32).unwrap_err(), DecodeError::TooLong);
    }

    #[test]
    fn a_rex_prefix_counts_only_before_the_opcode() {
        let i = decode(&[0x48, 0x66, 0x89, 0xc3], LONG).unwrap();
        assert_eq!(i.flags >> OSIZE_SHIFT, 0);
        let i = decode(&[0x66, 0x48, 0x89, 0xc3], LONG).unwrap();
        assert_eq!(i.flags >> OSIZE_SHIFT, 2);
        // SPL with any REX, AH without.
        assert_eq!(decode(&[0x40, 0x8a, 0x23], LONG).unwrap().reg, 4);
        assert_eq!(decode(&[0x8a, 0x23], LONG).unwrap().reg, 0x80);
    }

    #[test]
    fn vector_encodings_are_undefined_and_far_pointer_loads_are_not() {
        for code in [[0xc5u8, 0xf8, 0x77, 0, 0, 0], [0xc4, 0xe2, 0x79, 0, 0, 0], [0x62, 0xf1, 0x7c, 0x48, 0x10, 0]] {
            assert!(is_undefined(&decode(&code, LONG).unwrap()));
            assert!(is_undefined(&decode(&code, FLAT32).unwrap()));
        }
        // LDS, LES and BOUND.
        for code in [[0xc5u8, 0x03], [0xc4, 0x03], [0x62, 0x03]] {
            assert!(!is_undefined(&decode(&code, FLAT32).unwrap()));
            assert!(is_undefined(&decode(&[code[0], code[1], 0, 0], LONG).unwrap()));
        }
    }

    #[test]
    fn an_instruction_moved_into_its_block_still_finds_its_operand() {
        let mut i = decode(&[0x8b, 0x05, 0x10, 0, 0, 0], LONG).unwrap();
        assert_eq!((i.base, i.disp, i.next), (BLOCK, 0x16, 6));
        assert!(rebase(&mut i, 100));
        assert_eq!((i.disp, i.next), (0x16 + 100, 106));
        let mut i = decode(&[0x8b, 0x05, 0xf0, 0xff, 0xff, 0x7f], LONG).unwrap();
        let before = (i.disp, i.next);
        assert!(!rebase(&mut i, 100), "2 GiB ahead is as far as it goes");
        assert_eq!((i.disp, i.next), before);
        let mut i = decode(&[0x8b, 0x45, 0x10], LONG).unwrap();
        assert!(rebase(&mut i, 100));
        assert_eq!((i.disp, i.next), (0x10, 103));
    }

    /// Opcodes that are NOPs whatever they will be some day.
    fn hint(op: u16) -> bool {
        matches!(op, 0x0f0d | 0x0f18..=0x0f1f)
    }
}
