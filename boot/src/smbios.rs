//! SMBIOS: names, processors and memory for inventory tools, and the strings by which guests know a hypervisor.
//!
//! The 32-bit entry point and all structures lie in the BIOS area, where a BSD boot loader looks for them to make its
//! `smbios.*` variables. Version 2.7, since it can state memory of any size in one device; readers of 2.4 take the
//! longer structures too; without ACPI it calls itself 2.3. Types 0, 1, 2 (if the machine has a board), 3, 4, 16, 17,
//! 19, 32 and 127. Source: DMTF DSP0134, System Management BIOS Reference Specification 2.7.1.

use crate::bytes::Put;
use crate::memory::MemoryMap;
use crate::platform::Platform;
use std::ops::RangeInclusive;

pub(crate) const ENTRY_LEN: usize = 31;
/// Where the structures begin behind the entry point.
pub(crate) const TABLE_AT: usize = 32;
const MEMORY_ARRAY: u16 = 0x1000;
const CHASSIS: u16 = 0x0300;
const UNKNOWN: u8 = 2;

/// Entry point and structures for address `at`.
pub(crate) fn build(platform: &Platform, map: &MemoryMap, at: u32) -> Vec<u8> {
    let table = structures(platform, map);
    let mut out = b"_SM_\0".to_vec();
    // A machine of the time before ACPI: OpenBSD/i386 uses APM only below 2.4.
    let minor = if platform.acpi.is_some() { 7 } else { 3 };
    out.extend([ENTRY_LEN as u8, 2, minor]);
    out.put16(table.longest);
    out.extend([0; 6]);
    out.extend_from_slice(b"_DMI_\0");
    out.put16(table.bytes.len() as u16);
    out.put32(at + TABLE_AT as u32);
    out.put16(table.count);
    // Revision in BCD.
    out.put8(0x20 | minor);
    out.seal(16, 21);
    out.seal(0, 4);
    out.resize(TABLE_AT, 0);
    out.extend(table.bytes);
    out
}

/// Structures under construction.
#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
    count: u16,
    longest: u16,
}

/// The string set behind a structure: numbered from 1, 0 for none.
#[derive(Default)]
struct Strings(Vec<u8>, u8);

impl Strings {
    fn add(&mut self, text: &str) -> u8 {
        // Control characters and NUL would break the set.
        let clean: String = text.chars().filter(|c| !c.is_control()).collect();
        if clean.is_empty() || self.1 == u8::MAX {
            return 0;
        }
        self.0.extend_from_slice(clean.as_bytes());
        self.0.push(0);
        self.1 += 1;
        self.1
    }
}

impl Table {
    /// Appends a structure: `body` is everything behind the four header bytes.
    fn add(&mut self, kind: u8, handle: u16, body: &[u8], strings: Strings) {
        let start = self.bytes.len();
        self.bytes.extend([kind, body.len() as u8 + 4]);
        self.bytes.put16(handle);
        self.bytes.extend_from_slice(body);
        self.bytes.extend_from_slice(&strings.0);
        self.bytes.resize(self.bytes.len() + if strings.0.is_empty() { 2 } else { 1 }, 0);
        self.count += 1;
        self.longest = self.longest.max((self.bytes.len() - start) as u16);
    }
}

fn structures(platform: &Platform, map: &MemoryMap) -> Table {
    let mut table = Table::default();
    bios(&mut table, platform);
    system(&mut table, platform);
    board(&mut table, platform);
    chassis(&mut table, platform);
    processors(&mut table, platform);
    memory(&mut table, map);
    // Type 32, boot status: no errors detected.
    table.add(32, 0x2000, &[0; 7], Strings::default());
    table.add(127, 0x7F00, &[], Strings::default());
    table
}

/// Type 0.
fn bios(table: &mut Table, platform: &Platform) {
    const ISA: u64 = 1 << 4;
    const PCI: u64 = 1 << 7;
    const BOOT_FROM_CD: u64 = 1 << 15;
    const SELECTABLE_BOOT: u64 = 1 << 16;
    let (id, mut s, mut b) = (&platform.identity, Strings::default(), Vec::new());
    b.put8(s.add(&id.bios_vendor));
    b.put8(s.add(&id.bios_version));
    b.put16(0xF000);
    b.put8(s.add(&id.bios_date));
    // One unit of 64 KiB.
    b.put8(0);
    b.put64(ISA | PCI | BOOT_FROM_CD | SELECTABLE_BOOT);
    // ACPI supported; a virtual machine. Releases of BIOS and embedded controller are not told.
    b.extend([u8::from(platform.acpi.is_some()), 0x10, 0xFF, 0xFF, 0xFF, 0xFF]);
    table.add(0, 0, &b, s);
}

/// Type 1.
fn system(table: &mut Table, platform: &Platform) {
    let (id, mut s, mut b) = (&platform.identity, Strings::default(), Vec::new());
    for text in [&id.manufacturer, &id.product, &id.version, &id.serial] {
        b.put8(s.add(text));
    }
    // Since 2.6 the first three fields are little-endian.
    let mut uuid = id.uuid;
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    b.extend(uuid);
    // Wake-up type: power switch.
    b.put8(6);
    b.put8(s.add(&id.sku));
    b.put8(s.add(&id.family));
    table.add(1, 0x0100, &b, s);
}

/// Type 2.
fn board(table: &mut Table, platform: &Platform) {
    let Some(board) = &platform.identity.board else { return };
    let (mut s, mut b) = (Strings::default(), Vec::new());
    for text in [&board.manufacturer, &board.product, &board.version, &board.serial, &board.asset_tag] {
        b.put8(s.add(text));
    }
    // Hosting board, replaceable; type motherboard; contains no listed objects.
    b.put8(9);
    b.put8(s.add(&board.location));
    b.put16(CHASSIS);
    b.extend([10, 0]);
    table.add(2, 0x0200, &b, s);
}

/// Type 3.
fn chassis(table: &mut Table, platform: &Platform) {
    let (chassis, mut s, mut b) = (&platform.identity.chassis, Strings::default(), Vec::new());
    b.put8(s.add(&chassis.manufacturer));
    // Type desktop.
    b.put8(3);
    for text in [&chassis.version, &chassis.serial, &chassis.asset_tag] {
        b.put8(s.add(text));
    }
    // Boot, power and thermal state: safe. Security unknown. OEM word, height, cords, contained elements: none.
    b.extend([3, 3, 3, UNKNOWN]);
    b.extend([0; 8]);
    b.put8(s.add(&chassis.sku));
    table.add(3, CHASSIS, &b, s);
}

/// Type 4: one for each socket.
fn processors(table: &mut Table, platform: &Platform) {
    let processor = &platform.processor;
    let mut packages: Vec<u8> = platform.cpus.iter().map(|c| c.package).collect();
    packages.sort_unstable();
    packages.dedup();
    for (index, package) in (0u16..).zip(&packages) {
        let cores = platform.cpus.iter().filter(|c| c.package == *package).count() as u8;
        let (mut s, mut b) = (Strings::default(), Vec::new());
        b.put8(s.add(&format!("CPU {package}")));
        // Central processor, family unknown.
        b.extend([3, UNKNOWN]);
        b.put8(s.add(&processor.manufacturer));
        b.put32(processor.signature);
        b.put32(processor.features);
        b.put8(s.add(&processor.version));
        // Voltage unknown, external clock unknown.
        b.extend([0; 3]);
        b.put16(processor.mhz);
        b.put16(processor.mhz);
        // Socket populated, processor enabled; upgrade unknown; no cache structures; no serial, asset tag, part number.
        b.extend([0x41, UNKNOWN]);
        b.extend([0xFF; 6]);
        b.extend([0; 3]);
        b.extend([cores, cores, cores]);
        // 64-bit capability is not told.
        b.put16(0);
        b.put16(u16::from(UNKNOWN));
        table.add(4, 0x0400 + index, &b, s);
    }
}

/// Types 16, 17 and 19: one array with one device, mapped at each range that RAM stands behind.
fn memory(table: &mut Table, map: &MemoryMap) {
    let (kib, mib) = (map.ram() >> 10, map.ram() >> 20);
    let mut b = Vec::new();
    // On the board, system memory, no error correction.
    b.extend([3, 3, 3]);
    // 0x80000000 KiB and above go to the extended field, in bytes.
    let extended = kib >= 0x8000_0000;
    b.put32(if extended { 0x8000_0000 } else { kib as u32 });
    b.put16(0xFFFE);
    b.put16(1);
    b.put64(if extended { map.ram() } else { 0 });
    table.add(16, MEMORY_ARRAY, &b, Strings::default());

    let (mut s, mut b) = (Strings::default(), Vec::new());
    b.put16(MEMORY_ARRAY);
    b.put16(0xFFFE);
    // Width unknown.
    b.put32(0xFFFF_FFFF);
    let extended = mib >= 0x7FFF;
    b.put16(if extended { 0x7FFF } else { mib as u16 });
    // Form factor DIMM, no set.
    b.extend([9, 0]);
    b.put8(s.add("DIMM 0"));
    b.put8(0);
    // Type RAM; detail unknown; speed, manufacturer, serial, asset tag, part number and rank not told.
    b.put8(7);
    b.put16(1 << 2);
    b.extend([0; 7]);
    b.put32(if extended { mib as u32 } else { 0 });
    b.put16(0);
    table.add(17, 0x1100, &b, s);

    for (index, range) in (0u16..).zip(map.ram_ranges()) {
        mapped_address(table, 0x1300 + index, range.start..=range.end - 1);
    }
}

/// Type 19.
fn mapped_address(table: &mut Table, handle: u16, range: RangeInclusive<u64>) {
    let (start, end) = (range.start() >> 10, range.end() >> 10);
    let mut b = Vec::new();
    let extended = end >= 0xFFFF_FFFF;
    b.put32(if extended { 0xFFFF_FFFF } else { start as u32 });
    b.put32(if extended { 0xFFFF_FFFF } else { end as u32 });
    b.put16(MEMORY_ARRAY);
    b.put8(1);
    b.put64(if extended { *range.start() } else { 0 });
    b.put64(if extended { *range.end() } else { 0 });
    table.add(19, handle, &b, Strings::default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{sum, u16_at, u32_at, u64_at};
    use crate::platform::tests::pc;
    use crate::platform::{Board, Platform};

    /// One structure with its strings.
    struct Structure<'a>(&'a [u8], Vec<&'a str>);

    impl Structure<'_> {
        fn text(&self, at: usize) -> &str {
            self.1[usize::from(self.0[at]) - 1]
        }
    }

    fn decode(image: &[u8], at: u32) -> Vec<Structure<'_>> {
        assert_eq!((&image[..4], &image[16..21]), (&b"_SM_"[..], &b"_DMI_"[..]));
        assert_eq!((sum(&image[..31]), sum(&image[16..31])), (0, 0));
        let start = (u32_at(image, 24).unwrap() - at) as usize;
        let mut rest = &image[start..start + usize::from(u16_at(image, 22).unwrap())];
        let (mut found, mut longest) = (Vec::new(), 0);
        while !rest.is_empty() {
            let (structure, mut tail) = rest.split_at(usize::from(rest[1]));
            let mut strings = Vec::new();
            while tail[0] != 0 {
                let end = tail.iter().position(|b| *b == 0).unwrap();
                strings.push(std::str::from_utf8(&tail[..end]).unwrap());
                tail = &tail[end + 1..];
            }
            tail = &tail[if strings.is_empty() { 2 } else { 1 }..];
            longest = longest.max(rest.len() - tail.len());
            found.push(Structure(structure, strings));
            rest = tail;
        }
        assert_eq!(usize::from(u16_at(image, 28).unwrap()), found.len());
        assert_eq!(usize::from(u16_at(image, 8).unwrap()), longest);
        found
    }

    fn map(ram: u64) -> MemoryMap {
        MemoryMap::new(ram, 0xC000_0000).unwrap()
    }

    #[test]
    fn a_machine_without_acpi_is_of_version_2_3() {
        let mut platform = pc();
        let map = MemoryMap::new(64 << 20, 0xC000_0000).unwrap();
        let version = |platform: &Platform| {
            let image = build(platform, &map, 0xF_0000);
            decode(&image, 0xF_0000);
            (image[6], image[7], image[30])
        };
        assert_eq!(version(&platform), (2, 7, 0x27));
        platform.acpi = None;
        assert_eq!(version(&platform), (2, 3, 0x23));
    }

    #[test]
    fn structures_have_the_lengths_of_version_2_7() {
        let mut platform = pc();
        platform.identity.board = Some(Board::default());
        let image = build(&platform, &map(8 << 30), 0xF_2000);
        let found = decode(&image, 0xF_2000);
        let lengths: Vec<_> = found.iter().map(|s| (s.0[0], s.0[1])).collect();
        let expected = [
            (0, 0x18),
            (1, 0x1B),
            (2, 0x0F),
            (3, 0x16),
            (4, 0x2A),
            (4, 0x2A),
            (16, 0x17),
            (17, 0x22),
            (19, 0x1F),
            (19, 0x1F),
            (32, 0x0B),
            (127, 4),
        ];
        assert_eq!(lengths, expected);
        let mut handles: Vec<_> = found.iter().map(|s| u16_at(s.0, 2)).collect();
        handles.sort_unstable();
        handles.dedup();
        assert_eq!(handles.len(), found.len());
    }

    #[test]
    fn identity_strings_and_uuid_are_where_readers_look() {
        let mut platform: Platform = pc();
        platform.identity.bios_vendor = "Xen".into();
        platform.identity.product = "HVM domU".into();
        platform.identity.serial = "a\0b\n".into();
        platform.identity.uuid = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xAA\xBB\xCC\xDD\xEE\xFF";
        let image = build(&platform, &map(64 << 20), 0);
        let found = decode(&image, 0);
        assert_eq!((found[0].text(4), found[0].text(8)), ("Xen", "01/01/2026"));
        assert_eq!((found[1].text(5), found[1].text(7)), ("HVM domU", "ab"));
        assert_eq!(found[1].0[8..16], *b"\x33\x22\x11\x00\x55\x44\x77\x66");
        assert_eq!(found[1].0[16..24], *b"\x88\x99\xAA\xBB\xCC\xDD\xEE\xFF");
    }

    #[test]
    fn memory_of_any_size_is_stated_exactly() {
        for ram in [64 << 20, 8 << 30, (32 << 30) - (1 << 20), 1 << 40, 8u64 << 40] {
            let image = build(&pc(), &map(ram), 0);
            let found = decode(&image, 0);
            let of = |kind: u8| found.iter().filter(move |s| s.0[0] == kind).map(|s| s.0);
            let device = of(17).next().unwrap();
            let mib = match u16_at(device, 12).unwrap() {
                0x7FFF => u64::from(u32_at(device, 28).unwrap()),
                mib => u64::from(mib),
            };
            assert_eq!(mib << 20, ram);
            let array = of(16).next().unwrap();
            let capacity = match u32_at(array, 7).unwrap() {
                0x8000_0000 => u64_at(array, 15).unwrap(),
                kib => u64::from(kib) << 10,
            };
            assert_eq!(capacity, ram);
            let mapped: u64 = of(19)
                .map(|s| match u32_at(s, 8).unwrap() {
                    0xFFFF_FFFF => u64_at(s, 23).unwrap() + 1 - u64_at(s, 15).unwrap(),
                    end => u64::from(end + 1 - u32_at(s, 4).unwrap()) << 10,
                })
                .sum();
            assert_eq!(mapped, ram);
        }
    }

    #[test]
    fn one_processor_structure_a_socket_with_its_cores() {
        let mut platform = pc();
        platform.cpus = (0..8).map(|i| crate::platform::Cpu { apic_id: i, package: i / 4 }).collect();
        let image = build(&platform, &map(64 << 20), 0);
        let cores: Vec<_> = decode(&image, 0).iter().filter(|s| s.0[0] == 4).map(|s| s.0[0x23]).collect();
        assert_eq!(cores, [4, 4]);
    }
}
