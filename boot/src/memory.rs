//! The guest-physical memory map of a PC, as INT 15h E820 and every boot protocol tell it.
//!
//! RAM fills the space from zero up to the low limit (the start of the PCI hole), the rest is moved above 4 GiB.
//! Below 1 MiB the map is what a BIOS of the time reports: conventional memory to 0x9FC00, one KiB of extended BIOS
//! data area, and the BIOS at 0xF0000. The display window and option ROM space between are left unlisted, as BIOSes
//! do: Linux marks reserved entries below 1 MiB busy, and a busy 0xA0000 keeps frame buffer drivers from claiming
//! their own window.
//!
//! Firmware tables then take their share of low RAM through [`MemoryMap::reserve`].

use crate::bytes::Put;
use anyhow::{Result, ensure};
use std::ops::Range;

const PAGE: u64 = 0x1000;
const MIB: u64 = 1 << 20;
const FOUR_GIB: u64 = 1 << 32;

/// First byte of the extended BIOS data area; conventional memory ends here (BDA word 0x413 reads 639 KiB).
pub(crate) const EBDA: u64 = 0x9_FC00;

/// What a range of the map is for; the values are E820's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Free for the operating system.
    Ram = 1,
    /// Never to be used.
    Reserved = 2,
    /// ACPI tables; free once the system has read them.
    AcpiReclaim = 3,
    /// Kept by ACPI firmware for ever (holds the FACS).
    AcpiNvs = 4,
}

/// One entry of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address of the first byte.
    pub base: u64,
    /// Length in bytes, never zero.
    pub len: u64,
    /// Use of the range.
    pub kind: Kind,
}

impl Region {
    /// Guest-physical address behind the last byte.
    pub fn end(&self) -> u64 {
        self.base + self.len
    }
}

/// The machine's memory: which ranges RAM stands behind, and what the guest may do with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    ram: u64,
    low_limit: u64,
    regions: Vec<Region>,
}

impl MemoryMap {
    /// The map of a PC with `ram` bytes of memory, of which at most `low_limit` bytes lie below the PCI hole.
    ///
    /// # Errors
    /// `ram` below 1 MiB or not whole pages; `low_limit` outside 1 MiB to 4 GiB or not whole pages.
    pub fn new(ram: u64, low_limit: u64) -> Result<Self> {
        ensure!(
            ram.is_multiple_of(PAGE) && (MIB..=1 << 46).contains(&ram),
            "memory of {ram} bytes: need at least 1 MiB, at most 64 TiB, in whole 4 KiB pages"
        );
        ensure!(
            low_limit.is_multiple_of(PAGE) && (MIB..=FOUR_GIB).contains(&low_limit),
            "low memory limit 0x{low_limit:x}: need 1 MiB to 4 GiB in whole 4 KiB pages"
        );
        let mut map = Self { ram, low_limit, regions: Vec::new() };
        for range in map.ram_ranges() {
            map.regions.push(Region { base: range.start, len: range.end - range.start, kind: Kind::Ram });
        }
        map.punch(EBDA..MIB);
        map.insert(Region { base: EBDA, len: 0xA_0000 - EBDA, kind: Kind::Reserved });
        map.insert(Region { base: 0xF_0000, len: 0x1_0000, kind: Kind::Reserved });
        Ok(map)
    }

    /// The ranges that RAM stands behind, in ascending order: what the hypervisor maps.
    ///
    /// Includes the RAM below 1 MiB that shadows ROM and display memory; the chipset decides when it is seen.
    pub fn ram_ranges(&self) -> Vec<Range<u64>> {
        let low = self.low_ram();
        let mut ranges = vec![Range { start: 0, end: low }];
        if self.ram > low {
            ranges.push(FOUR_GIB..FOUR_GIB + (self.ram - low));
        }
        ranges
    }

    /// All of the guest's memory in bytes.
    pub fn ram(&self) -> u64 {
        self.ram
    }

    /// Bytes of RAM below the PCI hole, counted from address zero.
    pub fn low_ram(&self) -> u64 {
        self.ram.min(self.low_limit)
    }

    /// The entries, ascending and without overlap.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Takes `len` bytes at `base` out of RAM and lists them as `kind`. Any earlier entry there is cut.
    pub fn reserve(&mut self, base: u64, len: u64, kind: Kind) {
        if len > 0 {
            self.punch(base..base.saturating_add(len));
            self.insert(Region { base, len, kind });
        }
    }

    /// The highest `len` bytes of free RAM below the PCI hole at a multiple of `align` (a power of two).
    pub(crate) fn top_of_low_ram(&self, len: u64, align: u64) -> Option<u64> {
        self.regions.iter().rev().filter(|r| r.kind == Kind::Ram && r.end() <= FOUR_GIB).find_map(|r| {
            let base = r.end().checked_sub(len)? & !(align - 1);
            (base >= r.base && base >= MIB).then_some(base)
        })
    }

    /// The map as E820 entries of 20 bytes: base, length, type.
    pub fn e820(&self) -> Vec<u8> {
        let mut table = Vec::with_capacity(self.regions.len() * 20);
        for region in &self.regions {
            table.put64(region.base);
            table.put64(region.len);
            table.put32(region.kind as u32);
        }
        table
    }

    fn insert(&mut self, region: Region) {
        let at = self.regions.partition_point(|r| r.base < region.base);
        self.regions.insert(at, region);
    }

    fn punch(&mut self, hole: Range<u64>) {
        let mut left = Vec::with_capacity(self.regions.len() + 1);
        for r in &self.regions {
            for part in [r.base..r.end().min(hole.start), r.base.max(hole.end)..r.end()] {
                if part.start < part.end {
                    left.push(Region { base: part.start, len: part.end - part.start, kind: r.kind });
                }
            }
        }
        self.regions = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: u64 = 0xC000_0000;

    fn ranges(map: &MemoryMap, kind: Kind) -> Vec<Range<u64>> {
        map.regions().iter().filter(|r| r.kind == kind).map(|r| r.base..r.end()).collect()
    }

    #[test]
    fn small_machine_has_conventional_and_extended_memory() {
        let map = MemoryMap::new(64 * MIB, LOW).unwrap();
        assert_eq!(ranges(&map, Kind::Ram), [0..0x9_FC00, MIB..64 * MIB]);
        assert_eq!(ranges(&map, Kind::Reserved), [0x9_FC00..0xA_0000, 0xF_0000..0x10_0000]);
        assert_eq!(map.ram_ranges(), [Range { start: 0, end: 64 * MIB }]);
    }

    #[test]
    fn memory_past_the_limit_moves_above_4_gib_without_loss() {
        let map = MemoryMap::new(8 << 30, LOW).unwrap();
        assert_eq!(map.ram_ranges(), [0..LOW, FOUR_GIB..FOUR_GIB + (5 << 30)]);
        let listed: u64 = ranges(&map, Kind::Ram).iter().map(|r| r.end - r.start).sum();
        assert_eq!(listed, (8 << 30) - (MIB - EBDA));
    }

    #[test]
    fn reserve_splits_ram_and_keeps_order() {
        let mut map = MemoryMap::new(64 * MIB, LOW).unwrap();
        map.reserve(32 * MIB, MIB, Kind::AcpiReclaim);
        map.reserve(33 * MIB, PAGE, Kind::AcpiNvs);
        assert_eq!(ranges(&map, Kind::Ram), [0..0x9_FC00, MIB..32 * MIB, 33 * MIB + PAGE..64 * MIB]);
        assert!(map.regions().is_sorted_by_key(|r| r.base));
        assert!(map.regions().windows(2).all(|w| w[0].end() <= w[1].base));
    }

    #[test]
    fn top_of_low_ram_skips_what_is_reserved() {
        let mut map = MemoryMap::new(64 * MIB, LOW).unwrap();
        map.reserve(64 * MIB - PAGE, PAGE, Kind::AcpiNvs);
        assert_eq!(map.top_of_low_ram(0x1234, PAGE), Some(64 * MIB - 3 * PAGE));
        assert_eq!(map.top_of_low_ram(64 * MIB, PAGE), None);
        let large = MemoryMap::new(8 << 30, LOW).unwrap();
        assert_eq!(large.top_of_low_ram(PAGE, PAGE), Some(LOW - PAGE));
    }

    #[test]
    fn e820_is_20_bytes_an_entry() {
        let map = MemoryMap::new(64 * MIB, LOW).unwrap();
        let table = map.e820();
        assert_eq!(table.len(), 4 * 20);
        assert_eq!(table[8..16], 0x9_FC00u64.to_le_bytes());
        assert_eq!(table[20..28], 0x9_FC00u64.to_le_bytes());
        assert_eq!(table[36..40], 2u32.to_le_bytes());
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(MemoryMap::new(MIB - PAGE, LOW).is_err());
        assert!(MemoryMap::new(64 * MIB + 1, LOW).is_err());
        assert!(MemoryMap::new(64 * MIB, FOUR_GIB + PAGE).is_err());
        assert!(MemoryMap::new(!0xFFF, LOW).is_err());
    }
}
