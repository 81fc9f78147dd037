//! x87 instructions compared with the host's processor.
//!
//! Every encoding of D8 to DF is tried, undefined ones included, with registers, tags, control and status words that
//! are mostly sane and sometimes anything. The harness compares the whole FXSAVE image, general registers, flags and
//! memory.
//!
//! What is forgiven, since processors differ:
//! * C1 after FCOMI and its relatives: Intel documents it as 0, AMD's processors leave it alone;
//! * a unit in the last place, and C1, of the transcendental instructions.

use crate::difftest::{Bits, Case, DATA_LEN, Fx, Generate, Outcome, Rng, State};

/// Where in the FXSAVE image things are.
const FCW: usize = 0;
const FSW: usize = 2;
const FTW: usize = 4;
const FOP: usize = 6;
const FIP: usize = 8;
const FDP: usize = 16;
const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
const ST: usize = 32;
const XMM: usize = 160;
const END: usize = 416;

/// An 80-bit number: anything, or something near a boundary.
pub(crate) fn extended(rng: &mut Rng) -> [u8; 10] {
    let sign = (rng.below(2) as u16) << 15;
    let fraction = rng.value();
    let whole = fraction | 1 << 63;
    let (mant, exp) = match rng.below(16) {
        0 => (0, 0),
        1 => (1 << 63, 0x3fff),
        2 => (1 << 63, 0x7fff),
        // Quiet and signalling NaNs.
        3 => (whole | 1 << 62, 0x7fff),
        4 => (whole & !(1 << 62) | 1, 0x7fff),
        // Denormals, pseudo-denormals, and what has been invalid since the 80387.
        5 => (fraction >> 1 >> rng.below(63), 0),
        6 => (whole, 0),
        7 => (fraction >> 1, rng.below(0x8000) as u16),
        8 => (whole, rng.pick(&[1, 2, 0x7ffe, 0x7ffd])),
        // The ranges of the formats in memory.
        9 => (whole, (0x3fff + 128 + rng.below(6)) as u16 - 3),
        10 => (whole, (0x3fff - 126 + rng.below(60)) as u16 - 50),
        11 => (whole, (0x3fff + 1024 + rng.below(6)) as u16 - 3),
        12 => (whole, (0x3fff - 1022 + rng.below(100)) as u16 - 90),
        13 => (whole, (0x3fff + rng.below(70)) as u16),
        14 => (whole, (0x3fff - 70 + rng.below(75)) as u16),
        _ => (whole, rng.below(0x8000) as u16),
    };
    let mut out = [0; 10];
    out[..8].copy_from_slice(&mant.to_le_bytes());
    out[8..].copy_from_slice(&(sign | exp).to_le_bytes());
    out
}

/// The bits of a single.
pub(crate) fn single(rng: &mut Rng) -> u32 {
    let (sign, fraction) = ((rng.below(2) as u32) << 31, rng.value() as u32 & 0x7f_ffff);
    sign | match rng.below(12) {
        0 => 0,
        1 => 0x7f80_0000,
        2 => 0x7fc0_0000 | fraction,
        3 => 0x7f80_0001 | fraction & 0x3f_ffff,
        4 => fraction,
        5 => fraction >> rng.below(22),
        6 => 0x0080_0000 | fraction,
        7 => 0x7f00_0000 | fraction,
        8 => 0x3f80_0000,
        9 => ((127 + rng.below(66)) as u32) << 23 | fraction,
        10 => ((127 - rng.below(24)) as u32) << 23 | fraction,
        _ => rng.next() as u32 & 0x7fff_ffff,
    }
}

/// The bits of a double.
pub(crate) fn double(rng: &mut Rng) -> u64 {
    let (sign, fraction) = (rng.below(2) << 63, rng.value() & ((1 << 52) - 1));
    sign | match rng.below(14) {
        0 => 0,
        1 => 0x7ff << 52,
        2 => 0xfff << 51 | fraction,
        3 => 0x7ff << 52 | 1 | fraction >> 1,
        4 => fraction,
        5 => fraction >> rng.below(51),
        6 => 1 << 52 | fraction,
        7 => 0x7fe << 52 | fraction,
        8 => 0x3ff << 52,
        9 => (1023 + rng.below(66)) << 52 | fraction,
        10 => (1023 - rng.below(54)) << 52 | fraction,
        11 => (1023 + 126 + rng.below(4)) << 52 | fraction,
        12 => (1023 - 126 - 30 + rng.below(34)) << 52 | fraction,
        _ => rng.next() & !(1 << 63),
    }
}

/// An XMM register's worth of one kind of lanes.
pub(crate) fn vector(rng: &mut Rng) -> [u8; 16] {
    let mut out = [0; 16];
    match rng.below(5) {
        0 => out.chunks_exact_mut(4).for_each(|c| c.copy_from_slice(&single(rng).to_le_bytes())),
        1 => out.chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&double(rng).to_le_bytes())),
        2 => out.chunks_exact_mut(2).for_each(|c| c.copy_from_slice(&(rng.value() as u16).to_le_bytes())),
        3 => out.chunks_exact_mut(4).for_each(|c| c.copy_from_slice(&(rng.value() as u32).to_le_bytes())),
        _ => out.chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&rng.value().to_le_bytes())),
    }
    out
}

/// MXCSR: as programs have it, or anything.
pub(crate) fn mxcsr(rng: &mut Rng) -> u32 {
    match rng.below(6) {
        0 => 0x1f80,
        1 => 0x1fa0,
        2 => 0x1f80 | (rng.below(4) as u32) << 13,
        3 => 0x1f80 | rng.next() as u32 & 0xe07f,
        4 => rng.next() as u32 & 0xffff & !0x3f,
        _ => rng.next() as u32 & 0xffff,
    }
}

/// All registers that FXSAVE has. `x87` makes the x87 part interesting.
pub(crate) fn image(rng: &mut Rng, x87: bool) -> Fx {
    let mut fx = Fx([0; 512]);
    let f = &mut fx.0;
    let cw = match rng.below(4) {
        0 => 0x37f,
        1 => 0x27f | (rng.below(4) as u16) << 10,
        2 => 0x7f | rng.next() as u16 & 0xf00,
        _ => 0x40 | rng.next() as u16 & 0x1f3f,
    };
    // Precision control 1 is reserved.
    let cw = if cw >> 8 & 3 == 1 { cw | 0x200 } else { cw };
    let conditions = rng.next() as u16 & 0x4700;
    let exceptions = match rng.below(8) {
        0 => rng.next() as u16 & 0x7f,
        1 => rng.next() as u16 & cw & 0x3f,
        _ => 0,
    };
    let sw = conditions | exceptions | (rng.below(8) as u16) << 11;
    let tags = match rng.below(4) {
        0 => rng.next() as u8,
        1 => 0xff ^ 1 << rng.below(8),
        _ if x87 => 0xff,
        _ => 0,
    };
    let mut put = |at: usize, bytes: &[u8]| f[at..at + bytes.len()].copy_from_slice(bytes);
    put(FCW, &cw.to_le_bytes());
    put(FSW, &sw.to_le_bytes());
    put(FTW, &[tags]);
    put(FOP, &(rng.next() as u16 & 0x7ff).to_le_bytes());
    put(FIP, &(rng.next() >> 17).to_le_bytes());
    put(FDP, &(rng.next() >> 17).to_le_bytes());
    put(MXCSR, &mxcsr(rng).to_le_bytes());
    for n in 0..8 {
        put(ST + 16 * n, &extended(rng));
    }
    for n in 0..16 {
        put(XMM + 16 * n, &vector(rng));
    }
    fx
}

/// Makes equal what has nothing to do with instructions: the mask of MXCSR bits; the bytes that are the program's own;
/// and the pointers of an x87 without a pending exception, which the kernel of an AMD host loses when it saves them.
pub(crate) fn forgive_image(host: &mut Outcome, guest: &mut Outcome) {
    let pending = host.state.fx.0[FSW] & 0x80 != 0;
    let lost = host.state.fx.0[FDP..MXCSR].iter().all(|b| *b == 0);
    for fx in [&mut host.state.fx.0, &mut guest.state.fx.0] {
        fx[FTW + 1] = 0;
        fx[MXCSR_MASK..ST].fill(0);
        fx[END..].fill(0);
        if !pending {
            fx[FOP..FDP].fill(0);
        }
        if !pending || lost {
            fx[FDP..MXCSR].fill(0);
        }
    }
}

/// Registers and a memory operand at BX, the same in all code sizes.
pub(crate) struct Setup {
    pub(crate) state: State,
    /// ModRM, without the register field, and the displacement.
    pub(crate) address: Vec<u8>,
    /// Where the operand is in the data window.
    pub(crate) at: usize,
}

/// An operand of `len` bytes, aligned to `align` but for one time in sixteen, and inside the window but for one time in
/// a hundred.
pub(crate) fn setup(rng: &mut Rng, bits: Bits, fx: Fx, len: usize, align: u64) -> Setup {
    let room = (DATA_LEN - len) as u64;
    let at = match rng.below(100) {
        0 => DATA_LEN as u64 - rng.below(len as u64),
        1..7 => rng.below(room),
        7..12 => 0x1000 - rng.below(len as u64 + 1),
        _ => rng.below(room) & !(align - 1),
    } as usize;
    let disp = rng.below(0x400);
    let mut gpr = [0; 16];
    gpr.fill_with(|| rng.value());
    let base = bits.data().wrapping_add(at as u64).wrapping_sub(disp);
    let mut address = Vec::new();
    match bits {
        Bits::B16 => {
            gpr[3] = gpr[3] & !0xffff | base & 0xffff;
            address.push(0x87);
            address.extend_from_slice(&(disp as u16).to_le_bytes());
        }
        _ => {
            gpr[3] = base;
            address.push(0x83);
            address.extend_from_slice(&(disp as u32).to_le_bytes());
        }
    }
    if bits != Bits::B64 {
        // What 32-bit code cannot see, the host does not keep either.
        gpr[..8].iter_mut().for_each(|r| *r &= 0xffff_ffff);
        gpr[8..].fill(0);
    }
    gpr[4] = bits.data() + 0x1000;
    let flags = 0x202 | rng.next() & 0x8d5;
    Setup { state: State { gpr, rip: bits.entry(), flags, fx }, address, at }
}

/// All of D8 to DF, and FWAIT.
struct X87;

/// The length of the memory operand of an opcode and ModRM.reg, and whether it is one that is stored.
fn operand(op: u8, ext: u8, wide: bool) -> usize {
    match (op & 7, ext) {
        (1, 4 | 6) => 14 << u8::from(wide),
        (5, 4 | 6) => (14 << u8::from(wide)) + 80,
        (1, 5 | 7) | (5, 7) => 2,
        (3, 5 | 7) | (7, 4 | 6) => 10,
        (4 | 5, _) | (7, 5 | 7) => 8,
        (6 | 7, _) => 2,
        _ => 4,
    }
}

/// What a memory operand may hold.
fn contents(rng: &mut Rng, op: u8, ext: u8, len: usize) -> Vec<u8> {
    match (op & 7, ext) {
        (0, _) | (1, 0) => single(rng).to_le_bytes().to_vec(),
        (4, _) | (5, 0) => double(rng).to_le_bytes().to_vec(),
        (3, 5) => extended(rng).to_vec(),
        (7, 4) => {
            let digit = |rng: &mut Rng| rng.below(10) as u8 | (rng.below(10) as u8) << 4;
            let mut bcd: Vec<u8> = (0..9).map(|_| digit(rng)).collect();
            bcd.push(rng.pick(&[0, 0x80]));
            bcd
        }
        (1, 5) => (image(rng, true).0[..2]).to_vec(),
        _ => (0..len).map(|_| rng.next() as u8).collect(),
    }
}

impl Generate for X87 {
    fn case(&mut self, rng: &mut Rng, bits: Bits) -> Option<Case> {
        let op = 0xd8 + rng.below(8) as u8;
        let (mem, ext) = (rng.one_in(2), rng.below(8) as u8);
        let other = rng.one_in(6);
        let wide = other == (bits == Bits::B16);
        let len = if mem { operand(op, ext, wide) } else { 1 };
        let fx = image(rng, true);
        let s = setup(rng, bits, fx, len, 1);
        let mut code = if other { vec![0x66] } else { vec![] };
        if bits == Bits::B64 && rng.one_in(8) {
            // REX, whose bits mean nothing to register operands.
            code.push(0x40 | if mem { rng.pick(&[0, 4, 8]) } else { rng.below(16) as u8 });
        }
        code.push(op);
        let mut patches = vec![];
        if mem {
            let mut modrm = s.address.clone();
            modrm[0] |= ext << 3;
            code.extend(modrm);
            let data = contents(rng, op, ext, len);
            let fits = data.len().min(DATA_LEN - s.at);
            patches.push((s.at, data[..fits].to_vec()));
        } else {
            code.push(0xc0 | rng.below(64) as u8);
        }
        if rng.one_in(50) {
            code = vec![0x9b];
        }
        Some(Case { bits, code, state: s.state, patches, undefined: 0, fp: true })
    }

    fn forgive(&self, case: &Case, host: &mut Outcome, guest: &mut Outcome) {
        forgive_image(host, guest);
        let code: Vec<u8> = case.code.iter().copied().skip_while(|b| *b == 0x66 || b & 0xf0 == 0x40).collect();
        let (op, modrm) = (code[0], code.get(1).copied().unwrap_or(0));
        let (theirs, ours) = (&host.state.fx.0, &mut guest.state.fx.0);
        let same_c1 = |ours: &mut [u8; 512]| ours[FSW + 1] = ours[FSW + 1] & !2 | theirs[FSW + 1] & 2;
        match (op, modrm) {
            (0xdb | 0xdf, 0xe8..=0xf7) => same_c1(ours),
            (0xd9, 0xf0..=0xf3 | 0xf9 | 0xfb | 0xfe | 0xff) => {
                same_c1(ours);
                for at in [ST, ST + 16] {
                    if place(ours, at).abs_diff(place(theirs, at)) == 1 {
                        ours[at..at + 10].copy_from_slice(&theirs[at..at + 10]);
                    }
                }
            }
            // FNSTENV and FNSAVE.
            (0xd9 | 0xdd, 0..0xc0) if modrm >> 3 & 7 == 6 => {
                let wide = (case.bits == Bits::B16) == (case.code[0] == 0x66);
                let pointers = if wide { 12..28 } else { 6..14 };
                let at = case.patches[0].0 + pointers.start;
                let all = at..(at + pointers.len()).min(DATA_LEN);
                let lost = |b: &[u8]| b.iter().all(|b| matches!(b, 0 | 0xff));
                if host.vector == 3 && host.data.get(all.clone()).is_some_and(lost) {
                    guest.data[all.clone()].copy_from_slice(&host.data[all]);
                }
            }
            _ => {}
        }
    }
}

/// An 80-bit number's place among those of its sign.
fn place(fx: &[u8; 512], at: usize) -> u128 {
    let mut bytes = [0; 16];
    bytes[..10].copy_from_slice(&fx[at..at + 10]);
    let bits = u128::from_le_bytes(bytes);
    (bits >> 64 & 0x7fff) << 63 | bits & ((1 << 63) - 1)
}

#[test]
fn x87_instructions_do_what_the_host_does() {
    crate::difftest::compare(&mut X87, &[Bits::B64, Bits::B32, Bits::B16], 60_000);
}
