//! A guest that knows an HD Audio controller.

use emu::bench::Rng;

use super::{MEMORY, Op};

/// Rings, positions and a list of buffers.
const CORB: u64 = 0xd_0000;
const RIRB: u64 = 0xd_1000;
const POSITIONS: u64 = 0xd_2000;
const LIST: u64 = 0xe_0000;

fn store(at: u64, width: u8, value: u64) -> Op {
    Op::Store(MEMORY + at, width, value)
}

/// Out of reset, with rings and interrupts.
fn start() -> Vec<Op> {
    vec![
        store(0x08, 4, 0),
        store(0x08, 4, 1),
        store(0x40, 4, CORB),
        store(0x50, 4, RIRB),
        store(0x70, 4, POSITIONS | 1),
        store(0x58, 4, 0x1_8000),
        store(0x5c, 1, 3),
        store(0x4c, 1, 2),
        store(0x20, 4, 0xc000_00ff),
    ]
}

fn verb(r: &mut Rng) -> u64 {
    let node = r.below(8) as u64;
    let command = match r.below(8) {
        0 => 0xf0000 | r.below(0x14) as u64,
        1 => 0x70600 | r.pick(&[0x10, 0x20, 0x11, 0]),
        2 => 0x20000 | r.pick(&[0x11, 0x4011, 0x8000, 0x31]),
        3 => 0x30000 | r.pick(&[0xb04a, 0x704a, 0xb080, 0xf0ff]),
        4 => 0xb0000 | r.value() & 0xffff,
        5 => 0xf0000 | r.value() & 0xffff,
        6 => 0x70000 | r.value() & 0xffff,
        _ => r.value() & 0xf_ffff,
    };
    node << 20 | command
}

/// A stream with a list, which runs for a while.
fn stream(r: &mut Rng) -> Vec<Op> {
    let at = 0x80 + 0x20 * r.below(8) as u64;
    let entries = 1 + r.below(4);
    let list = (0..entries).flat_map(|_| {
        let address = if r.one_in(6) { r.next() } else { r.below(0xc_0000) as u64 };
        let length = r.pick(&[0, 1, 3, 64, 192, 4096, 0xffff_ffff]);
        [address, length | (r.below(2) as u64) << 32]
    });
    let list = list.collect();
    let format = r.pick(&[0x11, 0x11, 0x4011, 0x01, 0x31, 0x4f, 0x1f4f, 0x0770, 0x8011, 0x3811, 0x51]);
    let length = r.pick(&[0, 1, 192, 384, 8192, 0xffff_ffff]);
    let mut ops = vec![
        Op::Poke(LIST, list),
        store(at, 1, 1),
        store(at, 1, 0),
        store(at + 0x08, 4, length),
        store(at + 0x0c, 2, r.pick(&[entries as u64 - 1, 0, 255])),
        store(at + 0x12, 2, format),
        store(at + 0x18, 4, LIST),
        store(at + 2, 1, 0x10 * r.below(3) as u64),
        store(at, 1, 6),
        Op::Advance(r.pick(&[1_000_000, 3_000_000, 500_000_000])),
        Op::Load(MEMORY + 0x24, 4),
        Op::Load(MEMORY + at + 4, 4),
        store(at + 3, 1, 0x1c),
    ];
    if r.one_in(3) {
        ops.push(store(at, 1, 0));
    }
    ops
}

pub(super) fn guest(r: &mut Rng) -> Vec<Op> {
    match r.below(10) {
        0 => start(),
        1 => vec![store(0x60, 4, verb(r)), store(0x68, 2, 3), Op::Load(MEMORY + 0x64, 4), Op::Load(MEMORY + 0x68, 2)],
        2..6 => {
            let verbs = (0..4).map(|_| verb(r) | verb(r) << 32).collect();
            vec![
                Op::Poke(CORB, verbs),
                store(0x48, 2, r.below(256) as u64),
                Op::Load(MEMORY + 0x58, 2),
                store(0x5d, 1, 5),
            ]
        }
        _ => stream(r),
    }
}
