//! A guest that knows an IDE controller.

use emu::bench::Rng;

use super::{Op, PORTS};

const BMI: u16 = PORTS as u16;
/// Where it builds its descriptors.
const TABLE: u64 = 0xf_0000;

const COMMANDS: &[u8] = &[
    0x00, 0x08, 0x10, 0x20, 0x24, 0x25, 0x27, 0x29, 0x30, 0x34, 0x35, 0x39, 0x40, 0x42, 0x70, 0x90, 0x91, 0xa1, 0xb0,
    0xc4, 0xc5, 0xc6, 0xc8, 0xc8, 0xca, 0xca, 0xe0, 0xe1, 0xe5, 0xe7, 0xea, 0xec, 0xef, 0xf8,
];
const PACKETS: &[u8] = &[
    0x00, 0x00, 0x03, 0x12, 0x15, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x28, 0x28, 0x2b, 0x43, 0x46, 0x4a, 0x51, 0x55, 0x5a,
    0xa8, 0xbb, 0xbd, 0xbe,
];

/// Something that it does.
pub(super) fn guest(r: &mut Rng) -> Vec<Op> {
    let base = r.pick(&[0x1f0, 0x170]);
    match r.below(32) {
        0..6 => {
            let port = match r.below(4) {
                0 => BMI + r.below(16) as u16,
                1 => base + 0x206,
                _ => base + r.below(8) as u16,
            };
            let value = r.pick(&[0, 1, 2, 4, 8, 9, 0x80, 0xa0, 0xb0, 0xe0, 0xff, r.0 as u32]);
            vec![Op::Out(port, r.pick(&[1, 1, 1, 2, 4]), value)]
        }
        6..10 => vec![Op::OutMany(base, r.pick(&[1, 2, 4]), 1 + r.below(600))],
        10..16 => vec![Op::InMany(base, r.pick(&[1, 2, 4]), 1 + r.below(600))],
        16..24 => {
            let device = r.pick(&[0xe0, 0xe0, 0xf0, 0xa0, 0xa3]);
            // Often where there is something.
            let low = r.below(160) as u8;
            let high = if r.below(8) == 0 { r.next() as u8 } else { 0 };
            let count = r.pick(&[0, 1, 2, 8, 17, 40]);
            let registers = [count, low, high, 0, device, r.pick(COMMANDS)];
            (2..).zip(registers).map(|(n, value)| Op::Out(base + n, 1, value.into())).collect()
        }
        24..29 => {
            let mut bytes: Vec<u8> = (0..12).map(|_| r.pick(&[0, 0, 0, 0, 1, 2, 8, 0x10, 0x3f, 0xff])).collect();
            bytes[0] = r.pick(PACKETS);
            if r.one_in(2) {
                bytes[2..5].fill(0);
            }
            let count: u32 = r.pick(&[0, 1, 2, 7, 2048, 5000, 0xffff]);
            let by_dma = u32::from(r.one_in(2));
            let registers = [(1, by_dma), (4, count & 255), (5, count >> 8), (7, 0xa0)];
            let writes = registers.into_iter().map(|(n, value)| Op::Out(base + n, 1, value));
            writes.chain([Op::OutBytes(base, bytes)]).collect()
        }
        _ => {
            let n = 1 + r.below(5);
            let table = (0..n).map(|k| {
                let at = if r.one_in(12) { r.next() as u32 } else { r.below(0xe_0000) as u32 };
                let len: u32 = r.pick(&[0, 2, 3, 100, 512, 2048, 4096, 0xfffe]);
                let last = k == n - 1 && !r.0.is_multiple_of(16);
                u64::from(at) | u64::from(len | u32::from(last) << 31) << 32
            });
            let table = Op::Poke(TABLE, table.collect());
            let channel = BMI + r.pick(&[0, 8]);
            let start = r.pick(&[1, 9, 9]);
            vec![table, Op::Out(channel, 1, 0), Op::Out(channel + 4, 4, TABLE as u32), Op::Out(channel, 1, start)]
        }
    }
}
