//! MMX and SSE instructions compared with the host's processor.
//!
//! Every opcode of ours is tried with every prefix, undefined combinations included, on lanes of all kinds, with MXCSR
//! and x87 state that is mostly sane and sometimes anything. Left out is what a host may have and we do not offer:
//! SSE4a, AES, PCLMULQDQ, SHA, GFNI.
//!
//! RCPPS and RSQRTPS are approximations that differ by maker; their relative error must be below 1.5 * 2^-12.

use crate::difftest::{Bits, Case, DATA_LEN, Generate, Outcome, Rng};
use crate::fpu::diff::{forgive_image, image, mxcsr, setup, vector};

struct Sse;

/// Opcodes with an immediate byte.
fn has_imm(op: u16) -> bool {
    matches!(op, 0x0f70..=0x0f73 | 0x0fc2 | 0x0fc4..=0x0fc6 | 0x3a00..=0x3aff)
}

/// An opcode from one of the ranges given.
fn within(rng: &mut Rng, ranges: &[(u16, u16)]) -> u16 {
    let (from, to) = rng.pick(ranges);
    from + rng.below(u64::from(to - from) + 1) as u16
}

fn opcode(rng: &mut Rng) -> u16 {
    const TWO: [(u16, u16); 6] = [(0x10, 0x17), (0x28, 0x2f), (0x50, 0x7f), (0xd0, 0xfe), (0x50, 0x5f), (0xc2, 0xc6)];
    const SECOND: [(u16, u16); 6] = [(0, 0x3f), (0x08, 0x0f), (0x14, 0x17), (0x20, 0x22), (0x40, 0x42), (0x60, 0x63)];
    match rng.below(16) {
        0..10 => 0x0f00 | within(rng, &TWO),
        10..13 => 0x3800 | rng.below(0x42) as u16,
        _ => 0x3a00 | within(rng, &SECOND),
    }
}

impl Generate for Sse {
    fn case(&mut self, rng: &mut Rng, bits: Bits) -> Option<Case> {
        let op = opcode(rng);
        // MOVNTI and CMPXCHG8B are not ours.
        if matches!(op, 0x0fc3) {
            return None;
        }
        let prefix = rng.pick(&[&[][..], &[], &[0x66], &[0x66], &[0xf3], &[0xf2], &[0x66, 0xf3], &[0xf2, 0x66]]);
        let rep = prefix.contains(&0xf3) || prefix.contains(&0xf2);
        if matches!(op, 0x0f78 | 0x0f79) || op == 0x0f2b && rep {
            return None;
        }
        let mem = rng.one_in(2);
        let fx = image(rng, false);
        let mut s = setup(rng, bits, fx, 16, 16);
        // MASKMOV's operand, and PCMPESTR's lengths.
        s.state.gpr[7] = bits.data().wrapping_add(s.at as u64);
        for r in [0, 2] {
            if rng.one_in(2) {
                s.state.gpr[r] = rng.below(40).wrapping_sub(20);
                if bits != Bits::B64 {
                    s.state.gpr[r] &= 0xffff_ffff;
                }
            }
        }
        let mut code = prefix.to_vec();
        if bits == Bits::B64 && rng.one_in(2) {
            // B would change the base register.
            code.push(0x40 | rng.below(16) as u8 & if mem { 0xe } else { 0xf });
        }
        match op >> 8 {
            0x0f => code.extend([0x0f, op as u8]),
            map => code.extend([0x0f, map as u8, op as u8]),
        }
        let reg = rng.below(8) as u8;
        if op != 0x0f77 {
            if mem {
                let mut modrm = s.address.clone();
                modrm[0] |= reg << 3;
                code.extend(modrm);
            } else {
                code.push(0xc0 | reg << 3 | rng.below(8) as u8);
            }
        }
        if has_imm(op) {
            code.push(if rng.one_in(2) { rng.next() as u8 } else { rng.below(0x20) as u8 });
        }
        let data = vector(rng);
        let fits = data.len().min(DATA_LEN - s.at);
        Some(Case { bits, code, state: s.state, patches: vec![(s.at, data[..fits].to_vec())], undefined: 0, fp: true })
    }

    fn forgive(&self, case: &Case, host: &mut Outcome, guest: &mut Outcome) {
        forgive_image(host, guest);
        let at = case.code.iter().position(|b| *b == 0x0f).unwrap_or(0);
        match case.code[at + 1] {
            0x52 | 0x53 => forgive_approximation(&host.state.fx.0, &mut guest.state.fx.0),
            // AMD's MASKMOVQ leaves the x87 state in spite of a fault.
            0xf7 if host.vector != 3 => guest.state.fx = host.state.fx,
            _ => {}
        }
    }
}

/// Takes over lanes of XMM registers that are near enough.
fn forgive_approximation(host: &[u8; 512], guest: &mut [u8; 512]) {
    for at in (160..416).step_by(4) {
        let lane = |fx: &[u8; 512]| f32::from_bits(u32::from_le_bytes([fx[at], fx[at + 1], fx[at + 2], fx[at + 3]]));
        let (a, b) = (f64::from(lane(host)), f64::from(lane(guest)));
        if (a - b).abs() <= a.abs() * (3.0 / 4096.0) {
            guest[at..at + 4].copy_from_slice(&host[at..at + 4]);
        }
    }
}

/// FXSAVE, FXRSTOR, LDMXCSR, STMXCSR, XSAVE and XRSTOR.
struct State;

impl Generate for State {
    fn case(&mut self, rng: &mut Rng, bits: Bits) -> Option<Case> {
        let ext = rng.below(6) as u8;
        let (len, align) = match ext {
            0 | 1 => (512, 16),
            2 | 3 => (4, 1),
            _ => (576, 64),
        };
        let (in_registers, in_memory) = (image(rng, true), image(rng, true));
        let mut s = setup(rng, bits, in_registers, len, align);
        // XSAVE's components: x87 and SSE, which every host has.
        s.state.gpr[0] = rng.below(4);
        s.state.gpr[2] = 0;
        let mut code = Vec::new();
        if bits == Bits::B64 && rng.one_in(2) {
            code.push(0x48);
        }
        code.extend([0x0f, 0xae]);
        let mut modrm = s.address.clone();
        modrm[0] |= ext << 3;
        code.extend(modrm);
        let mut data = in_memory.0.to_vec();
        // FXSAVE's own bytes must not look like anything; a bad MXCSR faults.
        data[416..].fill_with(|| rng.next() as u8);
        if rng.one_in(20) {
            data[26] = rng.next() as u8 & !2;
        }
        if ext == 2 || ext == 3 {
            let mxcsr = if rng.one_in(10) { rng.next() as u32 & !(1 << 17) } else { mxcsr(rng) };
            data = mxcsr.to_le_bytes().to_vec();
        }
        let mut header = [0; 64];
        header[0] = rng.below(4) as u8;
        if rng.one_in(20) {
            // Byte 15 would ask for the compacted format.
            header[rng.pick(&[1, 3, 7, 8, 11, 14, 16, 20, 23])] |= 0x80;
        }
        if ext > 3 {
            data.extend(header);
        }
        let fits = data.len().min(DATA_LEN - s.at);
        Some(Case { bits, code, state: s.state, patches: vec![(s.at, data[..fits].to_vec())], undefined: 0, fp: true })
    }

    fn forgive(&self, case: &Case, host: &mut Outcome, guest: &mut Outcome) {
        forgive_image(host, guest);
        let modrm = case.code.iter().position(|b| *b == 0xae).map_or(0, |at| case.code[at + 1]);
        let store = matches!(modrm >> 3 & 7, 0 | 4);
        if store && host.vector == 3 {
            // The mask of MXCSR bits and the pointers, as for registers.
            let at = case.patches[0].0;
            let pending = host.data[at + 2] & 0x80 != 0;
            for part in [at + 28..at + 32, if pending { 0..0 } else { at + 6..at + 24 }] {
                guest.data[part.clone()].copy_from_slice(&host.data[part]);
            }
        }
    }
}

#[test]
fn mmx_and_sse_instructions_do_what_the_host_does() {
    crate::difftest::compare(&mut Sse, &[Bits::B64, Bits::B32, Bits::B16], 90_000);
}

#[test]
fn state_images_are_saved_and_restored_as_the_host_does_it() {
    crate::difftest::compare(&mut State, &[Bits::B64, Bits::B32, Bits::B16], 30_000);
}
