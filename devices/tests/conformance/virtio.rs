//! A guest that knows virtio, of either age.

use emu::bench::Rng;

use super::{Op, PORTS};

/// The modern registers, where BAR 4 comes to lie behind the MSI-X table.
const MODERN: u64 = super::MEMORY + 0x4000;
/// The rings of a queue: descriptors, available, used; legacy ones follow each other.
const RINGS: u64 = 0x1_0000;
const RING: u64 = 0x4000;
/// Headers, data and answers.
const DATA: u64 = 0x4_0000;

/// Commands that make sense, most of them.
pub fn guest(r: &mut Rng) -> Vec<Op> {
    match r.below(8) {
        0 => start_modern(r),
        1 => start_legacy(r),
        _ => requests(r),
    }
}

/// The same with a SCSI adapter's commands.
pub fn scsi(r: &mut Rng) -> Vec<Op> {
    if r.one_in(4) {
        return guest(r);
    }
    let queue = r.pick(&[0, 2, 2, 2]);
    let (desc, at) = (RINGS + RING * queue, DATA);
    let target = r.pick(&[0, 0, 1, 4, 200]);
    let code = r.pick(&[0x00, 0x03, 0x08, 0x0a, 0x12, 0x1a, 0x1b, 0x28, 0x2a, 0x35, 0x41, 0x42, 0x43, 0x93, 0x9e]);
    let lun = 0x40_0001 | target << 8;
    let entry = |addr: u64, len: u64, flags: u64, next: u64| [addr, len | flags << 32 | next << 48];
    let words = match queue {
        // A function of task management for any of the first few tags.
        0 => vec![(r.below(8) as u64) << 32, lun, r.below(3) as u64],
        // The command begins at byte 19: code, address and length of READ and WRITE (10).
        _ => vec![lun, r.below(3) as u64, code << 24, (r.below(3) as u64) << 16 | r.value() << 40, 0, 0, 0],
    };
    let writes = 2 * u64::from(r.one_in(2));
    let (head, answer) = if queue == 0 { (24, 1) } else { (51, 108) };
    let data = entry(at + 0x1000, r.pick(&[0, 36, 512, 4096]), 1 | writes, if writes == 0 { 2 } else { 3 });
    let chain = match (queue, writes) {
        (0, _) => [entry(at, head, 1, 2), [0; 2], entry(at + 0x100, answer, 2, 0), [0; 2]],
        (_, 0) => [entry(at, head, 1, 1), data, entry(at + 0x100, answer, 2, 0), [0; 2]],
        _ => [entry(at, head, 1, 2), [0; 2], entry(at + 0x100, answer, 3, 3), entry(at + 0x1000, 512, 2, 0)],
    };
    let index = r.below(6) as u64;
    vec![
        Op::Poke(at, words),
        Op::Poke(desc, chain.concat()),
        Op::Poke(desc + 0x1000, vec![index << 16, 0, 0]),
        Op::Store(MODERN + 0x3000 + 4 * queue, 2, queue),
        Op::Advance(r.pick(&[0, 1, 1000])),
    ]
}

fn start_modern(r: &mut Rng) -> Vec<Op> {
    let put = |at: u64, width: u8, value: u64| Op::Store(MODERN + at, width, value);
    let features = r.pick(&[0, 0x3000_7e00, 0x2000_0000, 0x30bf_fe34, 0xffff_ffff]);
    let mut ops = vec![put(0x14, 1, 0), put(0x14, 1, 3)];
    for (select, half) in [(0, features), (1, 1)] {
        ops.extend([put(8, 4, select), put(0xc, 4, half)]);
    }
    ops.push(put(0x14, 1, 11));
    for n in 0..r.below(4) as u64 {
        let desc = RINGS + RING * n;
        ops.extend([put(0x16, 2, n), put(0x18, 2, r.pick(&[8, 64, 256]))]);
        ops.extend([put(0x20, 8, desc), put(0x28, 8, desc + 0x1000), put(0x30, 8, desc + 0x2000)]);
        ops.extend([put(0x1c, 2, 1), Op::Poke(desc + 0x1000, vec![0]), Op::Poke(desc + 0x2000, vec![0])]);
    }
    ops.push(put(0x14, 1, 15));
    ops
}

fn start_legacy(r: &mut Rng) -> Vec<Op> {
    let out = |at: u64, width: u8, value: u64| Op::Out((PORTS + at) as u16, width, value as u32);
    let mut ops = vec![out(0x12, 1, 0), out(0x12, 1, 3), out(4, 4, r.pick(&[0, 0x3000_7e00, 0x2000_0000]))];
    for n in 0..r.below(4) as u64 {
        let desc = RINGS + RING * n;
        ops.extend([out(0xe, 2, n), out(8, 4, desc >> 12)]);
        ops.extend([Op::Poke(desc + 0x1000, vec![0]), Op::Poke(desc + 0x2000, vec![0])]);
    }
    ops.push(out(0x12, 1, 7));
    ops
}

/// Some chains, and a kick.
fn requests(r: &mut Rng) -> Vec<Op> {
    let queue = r.below(3) as u64;
    let desc = RINGS + RING * queue;
    let entry = |addr: u64, len: u32, flags: u64, next: u64| [addr, u64::from(len) | flags << 32 | next << 48];
    let count = 1 + r.below(3) as u64;
    let mut ops = Vec::new();
    for n in 0..count {
        let at = DATA + 0x2000 * n;
        let kind = r.pick(&[0, 1, 4, 8, 11, 13, 99]);
        let writes = u64::from(matches!(kind, 0 | 8)) * 2;
        let len = r.pick(&[16, 20, 512, 1024, 4096]);
        // Header, or a frame, or a command; what belongs to it; the answer.
        ops.push(Op::Poke(at, vec![kind | r.pick(&[0, 0x100]), r.pick(&[0, 1, 50, 136, 1 << 60])]));
        ops.push(Op::Poke(at + 0x100, vec![r.below(100) as u64, r.pick(&[1, 8, 40])]));
        let last = 0x1fff + r.pick(&[0, 0, 0, 0xe000_0000]);
        let chain = |first: u64| -> Vec<u64> {
            let middle = entry(at + 0x100, len, 1 | writes, first + 2);
            [entry(at, 16, 1, first + 1), middle, entry(at + last, 1, 2, 0)].concat()
        };
        if r.one_in(4) {
            // In a table of its own.
            ops.push(Op::Poke(at + 0x1800, chain(0)));
            ops.push(Op::Poke(desc + 48 * n, entry(at + 0x1800, 48, 4, 0).into()));
        } else {
            ops.push(Op::Poke(desc + 48 * n, chain(3 * n)));
        }
    }
    let index = r.below(6) as u64;
    let heads = (0..count).fold(0, |heads, n| heads | (3 * n) << (16 * n));
    ops.push(Op::Poke(desc + 0x1000, vec![index << 16 | heads << 32, heads]));
    ops.push(match r.below(3) {
        0 => Op::Store(MODERN + 0x3000 + 4 * queue, 2, queue),
        1 => Op::Out(PORTS as u16 + 0x10, 2, queue as u32),
        _ => Op::Store(MODERN + 0x3000 + 4 * queue, 4, queue),
    });
    ops.push(Op::Advance(r.pick(&[0, 1, 1000])));
    if r.one_in(4) {
        ops.push(Op::In(PORTS as u16 + 0x13, 1));
    }
    ops
}
