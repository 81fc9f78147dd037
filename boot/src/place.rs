//! Finding room in guest RAM: every loader claims the addresses that its kernel dictates, then asks for the rest.

use crate::image::Piece;
use crate::memory::{Kind, MemoryMap};
use anyhow::{Result, bail, ensure};
use std::ops::Range;

/// Nothing is ever placed below this: interrupt vectors and BIOS data area.
const FLOOR: u64 = 0x1000;
const PAGE: u64 = 0x1000;
const FOUR_GIB: u64 = 1 << 32;

/// Free RAM that shrinks as parts of an image are placed.
pub(crate) struct Placer<'a> {
    map: &'a MemoryMap,
    free: Vec<Range<u64>>,
    used: Vec<(Range<u64>, String)>,
    pieces: Vec<Piece>,
}

impl<'a> Placer<'a> {
    pub(crate) fn new(map: &'a MemoryMap) -> Self {
        let free = map
            .regions()
            .iter()
            .filter(|r| r.kind == Kind::Ram)
            .map(|r| r.base.max(FLOOR)..r.end())
            .filter(|r| r.start < r.end)
            .collect();
        Self { map, free, used: Vec::new(), pieces: Vec::new() }
    }

    /// Takes exactly `len` bytes at `base`.
    ///
    /// # Errors
    /// The range is not free RAM; the text says which part `what` is and what stands in the way.
    pub(crate) fn claim(&mut self, base: u64, len: u64, what: &str) -> Result<()> {
        let Some(end) = base.checked_add(len) else {
            bail!("{what} at 0x{base:x} of 0x{len:x} bytes runs past the end of the address space");
        };
        if len == 0 {
            return Ok(());
        }
        if let Some((range, other)) = self.used.iter().find(|(r, _)| r.start < end && base < r.end) {
            bail!("{what} at 0x{base:x}-0x{end:x} overlaps {other} at 0x{:x}-0x{:x}", range.start, range.end);
        }
        ensure!(
            self.free.iter().any(|r| r.start <= base && end <= r.end),
            "{what} needs 0x{base:x}-0x{end:x}, which is not RAM: the guest has {}",
            self.describe_ram()
        );
        self.take(base..end, what);
        Ok(())
    }

    /// Fills a range that was claimed before.
    pub(crate) fn fill(&mut self, gpa: u64, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.pieces.push(Piece { gpa, bytes });
        }
    }

    /// The lowest free `len` bytes at or above `from` and below 4 GiB, at a multiple of a page.
    pub(crate) fn lowest(&mut self, from: u64, len: u64, what: &str) -> Option<u64> {
        let found = self.free.iter().find_map(|r| {
            let base = crate::bytes::round_up(r.start.max(from), PAGE);
            let end = base.checked_add(len)?;
            (end <= r.end && end <= FOUR_GIB).then_some(base..end)
        })?;
        self.take(found.clone(), what);
        Some(found.start)
    }

    /// The highest free `len` bytes that end at or below `limit`, at a multiple of a page.
    pub(crate) fn highest(&mut self, limit: u64, len: u64, what: &str) -> Option<u64> {
        let found = self.free.iter().rev().find_map(|r| {
            let base = r.end.min(limit).checked_sub(len)? & !(PAGE - 1);
            (base >= r.start).then_some(base..base + len)
        })?;
        self.take(found.clone(), what);
        Some(found.start)
    }

    /// Where nothing is claimed any more: behind the highest claim.
    pub(crate) fn end(&self) -> u64 {
        self.used.iter().map(|(r, _)| r.end).max().unwrap_or(FLOOR)
    }

    /// `"N MiB of RAM"`, with the part below 4 GiB when it is not all.
    pub(crate) fn describe_ram(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        match (self.map.ram(), self.map.low_ram()) {
            (all, low) if all == low => format!("{} MiB of RAM", mib(all)),
            (all, low) => format!("{} MiB of RAM, {} MiB of it below 4 GiB", mib(all), mib(low)),
        }
    }

    pub(crate) fn into_pieces(self) -> Vec<Piece> {
        self.pieces
    }

    fn take(&mut self, range: Range<u64>, what: &str) {
        let mut free = Vec::with_capacity(self.free.len() + 1);
        for r in &self.free {
            let parts = [r.start..r.end.min(range.start), r.start.max(range.end)..r.end];
            free.extend(parts.into_iter().filter(|p| p.start < p.end));
        }
        self.free = free;
        self.used.push((range, what.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn map() -> MemoryMap {
        MemoryMap::new(16 * MIB, 0xC000_0000).unwrap()
    }

    #[test]
    fn claims_do_not_overlap_and_name_the_other_side() {
        let map = map();
        let mut placer = Placer::new(&map);
        placer.claim(2 * MIB, MIB, "kernel").unwrap();
        let error = placer.claim(3 * MIB - 1, 2, "module").unwrap_err().to_string();
        assert_eq!(error, "module at 0x2fffff-0x300001 overlaps kernel at 0x200000-0x300000");
        placer.claim(3 * MIB, 1, "module").unwrap();
    }

    #[test]
    fn claims_outside_ram_are_refused() {
        let map = map();
        let mut placer = Placer::new(&map);
        for (base, len) in [(0xA_0000, 1), (0, 1), (16 * MIB - 1, 2), (u64::MAX, 2), (MIB - 1, 2)] {
            assert!(placer.claim(base, len, "x").is_err(), "{base:x}+{len:x}");
        }
    }

    #[test]
    fn lowest_and_highest_are_page_aligned_and_disjoint() {
        let map = map();
        let mut placer = Placer::new(&map);
        assert_eq!(placer.lowest(0, 5, "a"), Some(0x1000));
        assert_eq!(placer.lowest(0, 5, "b"), Some(0x2000));
        assert_eq!(placer.lowest(0x9_F000, 0x1000, "c"), Some(MIB), "half a page before the EBDA is too small");
        assert_eq!(placer.highest(u64::MAX, 5, "d"), Some(16 * MIB - 0x1000));
        assert_eq!(placer.highest(u64::MAX, 0x1000, "e"), Some(16 * MIB - 0x2000));
        assert_eq!(placer.highest(8 * MIB + 5, 0x1000, "f"), Some(8 * MIB - 0x1000));
        assert_eq!(placer.highest(u64::MAX, 16 * MIB, "g"), None);
        assert_eq!(placer.lowest(0, u64::MAX, "h"), None);
    }
}
