//! A guest that knows an NVMe controller.

use emu::bench::Rng;

use super::{MEMORY, Op};

/// Where queue `n` is; its completion queue is a page later.
const QUEUES: u64 = 0xd_0000;
const QUEUE: u64 = 0x2000;
/// PRP lists, and shadow doorbells with the page of events behind them.
const LISTS: u64 = 0xe_0000;
const SHADOWS: u64 = 0xf_0000;
const ENTRIES: u64 = 8;

/// A command of its double words 0, 1, the two PRPs and 10 to 12.
fn command(r: &mut Rng, admin: bool) -> [u64; 8] {
    let queue = 1 + r.below(3) as u64;
    let at = QUEUES + QUEUE * queue;
    let data = |r: &mut Rng| if r.one_in(40) { r.next() } else { r.below(0xc_0000) as u64 & !3 };
    let second = if r.one_in(3) { LISTS + 8 * r.below(512) as u64 } else { data(r) & !0xfff };
    let (first, mut rest) = (data(r), [r.below(150) as u64, r.below(9) as u64 | (r.value() & 1) << 30]);
    let nsid = r.pick(&[1, 1, 2, 3, 16, 17, 0, 0xffff_ffff]);
    let size = r.pick(&[ENTRIES - 1, ENTRIES - 1, 1, 0]);
    let (opcode, prp) = match (admin, r.below(16)) {
        (true, 0..4) => {
            rest = [queue | size << 16 | 3 << 32 | queue << 48, 0];
            (5, [at + 0x1000, 0])
        }
        (true, 4..8) => {
            rest = [queue | size << 16 | 1 << 32 | queue << 48, 0];
            (1, [at, 0])
        }
        (true, 8) => {
            rest = [queue, 0];
            (r.pick(&[0, 4]), [0, 0])
        }
        (true, 9) => (0x7c, [SHADOWS, SHADOWS + 0x1000]),
        (true, 10) => (0x0c, [0, 0]),
        (true, 11) => {
            rest = [r.below(0x10) as u64 | r.value() << 32, 0];
            (r.pick(&[9, 10]), [0, 0])
        }
        (true, 12) => {
            rest = [r.below(6) as u64 | (r.below(1100) as u64) << 16, 0];
            (2, [first, second])
        }
        (true, 13) => {
            rest = [r.below(6) as u64, 0];
            (6, [first, second])
        }
        (true, _) => (r.below(0x10) as u64, [first, second]),
        (false, 0) => {
            rest = [r.below(4) as u64 | 4 << 32, 0];
            (9, [first, second])
        }
        (false, 1) => (8, [0, 0]),
        (false, 2) => (0, [0, 0]),
        (false, 3) => (r.next() & 0xff, [first, second]),
        (false, n) => (1 + (n & 1) as u64, [first, second]),
    };
    [opcode | r.next() << 16 & 0xffff_0000 | nsid << 32, 0, 0, prp[0], prp[1], rest[0], rest[1], 0]
}

/// Something that it does.
pub(super) fn guest(r: &mut Rng) -> Vec<Op> {
    let set = |at: u64, width: u8, value: u64| Op::Store(MEMORY + at, width, value);
    let tail = r.below(ENTRIES as usize) as u64;
    match r.below(24) {
        0..3 => {
            // As drivers do: the queues from the start, and two pairs of them.
            let create = |n: u64| {
                let (at, number) = (QUEUES + QUEUE * n, n | (ENTRIES - 1) << 16);
                [
                    [5, 0, 0, at + 0x1000, 0, number | 3 << 32 | n << 48, 0, 0],
                    [1, 0, 0, at, 0, number | 1 << 32 | n << 48, 0, 0],
                ]
            };
            vec![
                set(0x14, 4, 0),
                set(0x24, 4, (ENTRIES - 1) | (ENTRIES - 1) << 16),
                set(0x28, 8, QUEUES),
                set(0x30, 8, QUEUES + 0x1000),
                set(0x14, 4, 0x0046_0001),
                Op::Poke(QUEUES, [create(1), create(2)].concat().concat()),
                set(0x1000, 4, 4),
                set(0x1004, 4, 4),
            ]
        }
        3 if r.one_in(4) => vec![set(0x14, 4, r.pick(&[0, 0, 0x0046_4001, 0x0046_8001, 0x81]))],
        3 => vec![set(r.pick(&[0x0c, 0x10]), 4, r.value())],
        4 => vec![Op::Poke(LISTS, (0..512).map(|n| (n * 0x1000) % 0xc_0000).collect())],
        5 => vec![Op::Poke(LISTS + 0xff8, vec![r.pick(&[LISTS, LISTS + 0xff8, LISTS + 0x1000])])],
        6 => vec![Op::Poke(SHADOWS + 8 * (1 + r.below(3) as u64), vec![tail | tail << 32])],
        7..10 => {
            // The heads follow as drivers' do.
            let q = r.below(4) as u64;
            vec![set(0x1004 + 8 * q, 4, if r.one_in(20) { r.value() } else { tail })]
        }
        _ => {
            let q = if r.one_in(3) { 0 } else { 1 + r.below(2) as u64 };
            let mut ops = Vec::new();
            for n in 0..ENTRIES {
                if !r.one_in(3) {
                    ops.push(Op::Poke(QUEUES + QUEUE * q + 64 * n, command(r, q == 0).to_vec()));
                }
            }
            ops.extend([set(0x1004 + 8 * q, 4, r.below(ENTRIES as usize) as u64), set(0x1000 + 8 * q, 4, tail)]);
            ops
        }
    }
}
