//! A guest that knows an AHCI controller.

use emu::bench::Rng;

use super::{MEMORY, Op};

/// Where it has the command list and the received FISes of all ports, and the command tables.
const LIST: u64 = 0xe_0000;
const TABLES: u64 = 0xe_1000;

const COMMANDS: &[u8] = &[
    0x00, 0x06, 0x06, 0x08, 0x20, 0x24, 0x25, 0x25, 0x29, 0x2f, 0x2f, 0x30, 0x34, 0x35, 0x39, 0x3d, 0x42, 0x60, 0x60,
    0x60, 0x60, 0x61, 0x61, 0x61, 0x90, 0xa0, 0xa0, 0xa0, 0xa0, 0xa1, 0xb0, 0xc4, 0xc6, 0xc8, 0xca, 0xce, 0xe0, 0xe5,
    0xe7, 0xea, 0xec, 0xef, 0xf8,
];
const PACKETS: &[u8] =
    &[0x00, 0x03, 0x12, 0x15, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x28, 0x28, 0x43, 0x46, 0x4a, 0x55, 0xbe];

fn set(port: u64, at: u64, value: u64) -> Op {
    Op::Store(MEMORY + 0x100 + 0x80 * port + at, 4, value)
}

/// A command in a slot: header, frame, packet and regions.
fn command(r: &mut Rng, slot: u64) -> Vec<Op> {
    let table = TABLES + 0x200 * slot;
    let entries = 1 + r.below(6) as u64;
    let header = if r.one_in(40) { 4 } else { 5 } | entries << 16;
    let code = r.pick(COMMANDS);
    let count = r.pick(&[0, 1, 1, 1, 2, 8, 17, 40]);
    let mut fis = [0; 24];
    fis[..3].copy_from_slice(&[0x27, 0x80, code]);
    // Often where there is something.
    (fis[4], fis[5], fis[7], fis[12]) = (r.below(130) as u8, 0, r.pick(&[0x40, 0x40, 0xc0, 0xa0]), count);
    match code {
        0x60 | 0x61 => (fis[3], fis[12]) = (count, (if r.one_in(8) { r.below(32) as u64 } else { slot } as u8) << 3),
        0x06 | 0xa0 => fis[3] = r.pick(&[0, 1]),
        0x2f => (fis[4], fis[12]) = (r.pick(&[0, 0x10, 0x10, 0x30]), 1),
        _ if r.one_in(8) => (fis[5], fis[6]) = (0x4f, 0xc2),
        _ => {}
    }
    if r.one_in(30) {
        // Device control: a reset, perhaps only its beginning.
        (fis[1], fis[15]) = (0, r.pick(&[0, 4]));
    }
    let word = |bytes: &[u8]| u64::from_le_bytes(std::array::from_fn(|n| bytes[n]));
    let frame = fis.chunks(8).map(word).collect();
    let mut packet: Vec<u8> = (0..16).map(|_| r.pick(&[0, 0, 0, 0, 1, 2, 8, 0x10, 0xff])).collect();
    packet[0] = r.pick(PACKETS);
    packet[2..5].fill(0);
    let regions = (0..entries).flat_map(|_| {
        let at = if r.one_in(60) { r.next() } else { r.below(0xd_0000) as u64 };
        let len: u64 = r.pick(&[1, 99, 511, 511, 4095, 4095, 4095, 0x1_ffff]);
        [at, len << 32]
    });
    vec![
        Op::Poke(LIST + 32 * slot, vec![header, table]),
        Op::Poke(table, frame),
        Op::Poke(table + 0x40, packet.chunks(8).map(word).collect()),
        Op::Poke(table + 0x80, regions.collect()),
    ]
}

/// Something that it does.
pub(super) fn guest(r: &mut Rng) -> Vec<Op> {
    let port = r.pick(&[0, 0, 0, 0, 1, 1, 3, 6]);
    let start = [
        Op::Store(MEMORY + 4, 4, 0x8000_0002),
        set(port, 0, LIST),
        set(port, 8, LIST + 0x400),
        set(port, 0x14, u64::MAX),
        set(port, 0x18, 0x16),
        // After an error of the queue the drive takes nothing before its reset.
        set(port, 0x2c, 1),
        set(port, 0x2c, 0),
        set(port, 0x18, 0x17),
    ];
    match r.below(16) {
        0..3 => start.into(),
        3 => vec![set(port, 0x2c, 1), set(port, 0x2c, r.pick(&[0, 0, 4])), set(port, 0x30, u64::MAX)],
        4 => vec![set(port, 0x10, u64::MAX), Op::Store(MEMORY + 8, 4, u64::MAX)],
        5 => vec![set(port, 0x18, 0x16), set(port, 0x18, 0x1e), set(port, 0x18, 0x17)],
        6 => vec![set(port, r.below(0x40) as u64 & !3, r.value())],
        _ => {
            let slots: Vec<u64> = (0..1 + r.below(4)).map(|_| r.below(32) as u64).collect();
            let bits = slots.iter().fold(0, |bits, slot| bits | 1 << slot);
            let mut ops: Vec<Op> = if r.one_in(4) { Vec::new() } else { start.into() };
            ops.extend(slots.iter().flat_map(|slot| command(r, *slot)));
            ops.extend([set(port, 0x34, bits), set(port, 0x38, bits)]);
            if !r.one_in(3) {
                ops.push(Op::Advance(0));
            }
            ops
        }
    }
}
