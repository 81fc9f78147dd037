//! The POST Memory Manager (Specification 1.01): memory for option ROMs while they initialize, and until they boot.
//!
//! It is memory like any other that the E820 map calls free: what boots may use it, and a ROM that goes on reserves what
//! it needs by itself.

use serde::{Deserialize, Serialize};

use super::{Call, Flow};
use crate::memory::Kind;

const ALLOCATE: u16 = 0;
const FIND: u16 = 1;
const DEALLOCATE: u16 = 2;
/// Not a function of ours.
const UNSUPPORTED: u32 = 0xffff_ffff;

/// Bytes in a paragraph, in which lengths are.
const PARAGRAPH: u64 = 16;
/// No handle.
const ANONYMOUS: u32 = 0xffff_ffff;

/// Flags of an allocation.
const CONVENTIONAL: u16 = 1;
const EXTENDED: u16 = 2;
const ALIGNED: u16 = 4;

/// Conventional memory that is given out, and where extended memory begins.
const LOW: std::ops::Range<u64> = 0x2_0000..0x8_0000;
const HIGH: u64 = 2 << 20;
/// Blocks at a time.
const MOST: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Block {
    base: u64,
    len: u64,
    handle: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// From the end of memory downwards. `None` when POST is over.
    blocks: Option<Vec<Block>>,
}

pub(super) fn start(c: &mut Call) {
    c.state.pmm.blocks = Some(Vec::new());
}

pub(super) fn stop(c: &mut Call) {
    c.state.pmm.blocks = None;
}

/// Service [`super::service::PMM`].
pub(super) fn service(c: &mut Call) -> Flow {
    let long = |c: &mut Call, n: u64| u32::from(c.argument(n)) | u32::from(c.argument(n + 1)) << 16;
    let result = match c.argument(0) {
        _ if c.state.pmm.blocks.is_none() => UNSUPPORTED,
        ALLOCATE => {
            let (len, handle, flags) = (long(c, 1), long(c, 3), c.argument(5));
            allocate(c, len, handle, flags)
        }
        FIND => {
            let handle = long(c, 1);
            let mut blocks = c.state.pmm.blocks.iter().flatten();
            blocks.find(|b| b.handle == handle && handle != ANONYMOUS).map_or(0, |b| b.base as u32)
        }
        DEALLOCATE => {
            let base = long(c, 1);
            let blocks = c.state.pmm.blocks.get_or_insert_default();
            let before = blocks.len();
            blocks.retain(|b| b.base != u64::from(base));
            u32::from(blocks.len() == before)
        }
        _ => UNSUPPORTED,
    };
    c.r.set_ax(result as u16);
    c.r.set_dx((result >> 16) as u16);
    Flow::Done
}

/// The address of a new block, or 0; with length 0 how many paragraphs there are in one piece.
fn allocate(c: &mut Call, paragraphs: u32, handle: u32, flags: u16) -> u32 {
    let len = u64::from(paragraphs) * PARAGRAPH;
    let align = if flags & ALIGNED != 0 { 1 << len.max(1).trailing_zeros() } else { PARAGRAPH };
    let high = c.config.memory.iter().find(|r| r.kind == Kind::Ram && r.base <= HIGH && HIGH < r.base + r.len);
    let high = high.map_or(HIGH..HIGH, |r| HIGH..(r.base + r.len).min(1 << 32));
    let areas = [(EXTENDED, high), (CONVENTIONAL, LOW)];
    let areas = areas.iter().filter(|(kind, _)| flags & kind != 0).map(|(_, area)| area);
    let blocks = c.state.pmm.blocks.get_or_insert_default();
    if len == 0 {
        return areas.map(|area| largest(blocks, area)).max().map_or(0, |len| (len / PARAGRAPH) as u32);
    }
    if blocks.len() == MOST || handle != ANONYMOUS && blocks.iter().any(|b| b.handle == handle) {
        return 0;
    }
    for area in areas {
        for (from, to) in gaps(blocks, area) {
            let Some(base) = to.checked_sub(len).map(|base| base & !(align - 1)).filter(|base| *base >= from) else {
                continue;
            };
            blocks.push(Block { base, len, handle });
            return base as u32;
        }
    }
    0
}

/// What is free of an area, the highest first.
fn gaps(blocks: &[Block], area: &std::ops::Range<u64>) -> Vec<(u64, u64)> {
    let mut taken: Vec<_> = blocks.iter().filter(|b| area.contains(&b.base)).collect();
    taken.sort_by_key(|b| std::cmp::Reverse(b.base));
    let mut end = area.end;
    let mut free = Vec::new();
    for block in taken {
        free.push((block.base + block.len, end));
        end = block.base;
    }
    free.push((area.start, end));
    free
}

fn largest(blocks: &[Block], area: &std::ops::Range<u64>) -> u64 {
    gaps(blocks, area).into_iter().map(|(from, to)| to.saturating_sub(from)).max().unwrap_or(0)
}
