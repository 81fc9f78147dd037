//! A guest that knows a Tulip.

use emu::bench::Rng;

use super::{Op, PORTS};

/// Where it has its lists and buffers.
const TX: u64 = 0xe_0000;
const RX: u64 = 0xe_1000;
const DATA: u64 = 0xe_4000;

fn csr(n: u16, value: u64) -> Op {
    Op::Out(PORTS as u16 + 8 * n, 4, value as u32)
}

/// Flags of a descriptor, often of a whole frame or a setup frame.
fn flags(r: &mut Rng) -> u64 {
    let sizes = |r: &mut Rng| {
        let pick: [u64; 2] = std::array::from_fn(|_| r.pick(&[0, 1, 60, 192, 1514, 1536, 2047]));
        pick[0] | pick[1] << 11
    };
    match r.below(8) {
        0 => 192 | r.pick(&[0, 1, 0x40, 0x41]) << 22 | 1 << 27 | r.pick(&[0, 1]) << 31,
        1 => r.next() & 0xffff_ffff,
        _ => sizes(r) | r.pick(&[0xe, 0xe, 0xe, 0x6, 0x2, 0x4, 0x8]) << 28 | r.pick(&[0, 0, 0, 1, 2, 3]) << 24,
    }
}

/// A list of descriptors.
fn list(r: &mut Rng, at: u64) -> Vec<Op> {
    let count = 1 + r.below(8) as u64;
    (0..count)
        .map(|n| {
            let own = if r.one_in(5) { 0 } else { 1 << 31 };
            let end = if n + 1 == count { 1 << 25 } else { 0 };
            let buffer = if r.one_in(30) { r.next() & 0xffff_ffff } else { DATA + r.below(0x8000) as u64 };
            let chained = if r.one_in(3) { at + 16 * r.below(8) as u64 } else { DATA + 0x4000 };
            Op::Poke(at + 16 * n, vec![own | (flags(r) | end) << 32, buffer | chained << 32])
        })
        .collect()
}

/// Something that it does.
pub(super) fn guest(r: &mut Rng) -> Vec<Op> {
    match r.below(16) {
        0 => vec![csr(0, 1), csr(3, RX), csr(4, TX), csr(0, r.pick(&[0, 0x2_0000, 0x8_0000, 0x7c]))],
        1..3 => list(r, RX),
        3..6 => {
            let mut ops = list(r, TX);
            ops.push(csr(1, 1));
            ops
        }
        6..9 => {
            vec![csr(6, 0x0200_0000 | r.pick(&[0x2002, 0x2002, 0x2402, 0x2842, 0x2082, 2, 0x2000, 0, 0x4000_2002]))]
        }
        9 => vec![csr(7, r.pick(&[0, 0x1_ffff, 0x801_fbff, 0x1_8041])), csr(5, r.pick(&[0xffff_ffff, 0x41, 1]))],
        10 => (0..r.below(80)).map(|_| csr(9, r.next() & 0xf_ffff)).collect(),
        11 => vec![csr(11, r.pick(&[0, 1, 0x1_0001, 0x1_ffff])), Op::Advance(1 + r.below(3_000_000) as u64)],
        12 => {
            vec![csr(13, r.pick(&[0, 1])), csr(14, r.pick(&[0, 0xffff, 0x3_ffff])), csr(12, r.pick(&[0x1301, 0x11f]))]
        }
        13 => vec![csr(r.below(16) as u16, r.value())],
        14 => vec![Op::In(PORTS as u16 + 8 * r.below(16) as u16, 4)],
        _ => vec![Op::Advance(r.below(2_000_000) as u64)],
    }
}
