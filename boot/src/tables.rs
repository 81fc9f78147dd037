//! Lays out all firmware tables in guest memory.
//!
//! What a guest finds by searching (RSDP, MP floating pointer, $PIR, SMBIOS entry point) lies on paragraph boundaries
//! in the lower half of the BIOS segment at 0xF0000; the other half is left to the BIOS itself, whose entry points
//! are at fixed addresses there. The ACPI tables lie at the top of low RAM, listed as reclaimable, and the FACS
//! behind them in a page of non-volatile storage since the guest writes to it.

use crate::acpi::{self, FACS_LEN};
use crate::bytes::{Put, round_up};
use crate::image::Piece;
use crate::memory::{EBDA, Kind, MemoryMap};
use crate::platform::Platform;
use crate::{mp, pir, smbios};
use anyhow::{Context, Result, ensure};
use std::ops::Range;

/// Where the tables that guests search for may lie.
pub const BIOS_WINDOW: Range<u64> = 0xF_0000..0xF_8000;

const PAGE: u64 = 0x1000;

/// All firmware tables of a machine.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Memory contents. Those inside [`BIOS_WINDOW`] belong to the BIOS ROM (and its shadow), the rest to RAM.
    pub pieces: Vec<Piece>,
    /// Guest-physical address of the RSDP, if there is ACPI.
    pub rsdp: Option<u64>,
    /// Guest-physical address of the MP floating pointer, if there is an I/O APIC and the table is wanted.
    pub mp: Option<u64>,
    /// Guest-physical address of the $PIR table, if there is an interrupt router and a PIC.
    pub pir: Option<u64>,
    /// Guest-physical address of the SMBIOS entry point.
    pub smbios: u64,
}

/// Makes all tables of `platform` and reserves in `map` what they take of RAM.
///
/// # Errors
/// One line: the platform contradicts itself ([`Platform::check`]), or the tables do not fit.
pub fn build(platform: &Platform, map: &mut MemoryMap) -> Result<Tables> {
    platform.check()?;
    let mut tables = Tables::default();
    let mut next = BIOS_WINDOW.start;
    let mut place = |make: &dyn Fn(u32) -> Option<Vec<u8>>| -> Option<Piece> {
        let piece = Piece { gpa: next, bytes: make(next as u32)? };
        next = round_up(piece.range().end, 16);
        Some(piece)
    };

    let mut high = Vec::new();
    let mut rsdp = None;
    if let Some((version, pm)) = platform.acpi.zip(platform.pm) {
        // The size is the same at any address.
        let len = round_up(acpi::build(platform, version, &pm, 0, 0).tables.len() as u64, PAGE);
        let base = map.top_of_low_ram(len + PAGE, PAGE).context("no room for ACPI tables below 4 GiB")?;
        let facs = base + len;
        let acpi = acpi::build(platform, version, &pm, base as u32, facs as u32);
        debug_assert_eq!(acpi.facs.len() as u64, FACS_LEN);
        map.reserve(base, len, Kind::AcpiReclaim);
        map.reserve(facs, PAGE, Kind::AcpiNvs);
        high.push(Piece { gpa: base, bytes: acpi.tables });
        high.push(Piece { gpa: facs, bytes: acpi.facs });
        rsdp = place(&|_| Some(acpi.rsdp.clone()));
    }
    let mp = if platform.mptable { place(&|at| mp::build(platform, at)) } else { None };
    let pir = place(&|_| pir::build(platform));
    let smbios = place(&|at| Some(smbios::build(platform, map, at))).context("no SMBIOS table")?;
    ensure!(
        smbios.range().end <= BIOS_WINDOW.end,
        "firmware tables of {} bytes do not fit into the BIOS area",
        smbios.range().end - BIOS_WINDOW.start
    );
    let address = |piece: &Option<Piece>| piece.as_ref().map(|p| p.gpa);
    (tables.rsdp, tables.mp, tables.pir, tables.smbios) = (address(&rsdp), address(&mp), address(&pir), smbios.gpa);
    tables.pieces = [rsdp, mp, pir, Some(smbios)].into_iter().flatten().chain(high).collect();
    Ok(tables)
}

/// BIOS data for kernels that are started without a BIOS: they read port addresses, the size of conventional memory
/// (639 KiB) and the EBDA's segment from the BIOS data area, and search the EBDA for tables.
pub fn bios_data(platform: &Platform) -> Vec<Piece> {
    let mut area = Vec::new();
    let port = |ports: &[crate::platform::IsaPort], index: usize| ports.get(index).map_or(0, |p| p.port);
    for index in 0..4 {
        area.put16(port(&platform.serial, index));
    }
    for index in 0..3 {
        area.put16(port(&platform.parallel, index));
    }
    area.put16((EBDA >> 4) as u16);
    // Equipment: floppy, coprocessor, mouse, 80-column text, serial and parallel ports.
    let serial = platform.serial.len().min(4) as u16;
    let parallel = platform.parallel.len().min(3) as u16;
    area.put16(u16::from(platform.floppy) | 0x22 | u16::from(platform.mouse) << 2 | serial << 9 | parallel << 14);
    area.put8(0);
    area.put16((EBDA >> 10) as u16);
    // The EBDA begins with its own size in KiB.
    vec![Piece { gpa: 0x400, bytes: area }, Piece { gpa: EBDA, bytes: vec![1] }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{u16_at, u32_at};
    use crate::dsdt::{APIC_ROUTES, PIC_ROUTES};
    use crate::platform::Pin;
    use crate::platform::tests::pc;
    use std::collections::BTreeMap;

    const MIB: u64 = 1 << 20;

    fn build_for(platform: &Platform, ram: u64) -> (Tables, MemoryMap) {
        let mut map = MemoryMap::new(ram, 0xC000_0000).unwrap();
        let tables = build(platform, &mut map).unwrap();
        (tables, map)
    }

    fn at(tables: &Tables, gpa: u64) -> &[u8] {
        let piece = tables.pieces.iter().find(|p| p.range().contains(&gpa)).unwrap();
        &piece.bytes[(gpa - piece.gpa) as usize..]
    }

    #[test]
    fn searchable_tables_are_on_paragraphs_in_the_bios_area() {
        let (tables, _) = build_for(&pc(), 256 * MIB);
        for (address, signature) in [
            (tables.rsdp.unwrap(), &b"RSD PTR "[..]),
            (tables.mp.unwrap(), b"_MP_"),
            (tables.pir.unwrap(), b"$PIR"),
            (tables.smbios, b"_SM_"),
        ] {
            assert!(address.is_multiple_of(16) && BIOS_WINDOW.contains(&address));
            assert!(at(&tables, address).starts_with(signature));
        }
    }

    #[test]
    fn acpi_memory_is_reserved_at_the_top_of_low_ram() {
        for (ram, top) in [(64 * MIB, 64 * MIB), (8 << 30, 0xC000_0000)] {
            let (tables, map) = build_for(&pc(), ram);
            let of = |kind: Kind| map.regions().iter().find(|r| r.kind == kind).unwrap();
            let (reclaim, nvs) = (of(Kind::AcpiReclaim), of(Kind::AcpiNvs));
            assert_eq!((reclaim.end(), nvs.end()), (nvs.base, top));
            assert!(at(&tables, nvs.base).starts_with(b"FACS"));
            let high: Vec<_> = tables.pieces.iter().filter(|p| p.gpa >= MIB).collect();
            assert!(high.iter().all(|p| reclaim.base <= p.gpa && p.range().end <= nvs.end()));
            assert_eq!(u32_at(at(&tables, tables.rsdp.unwrap()), 16).map(u64::from), Some(reclaim.base));
        }
    }

    #[test]
    fn pieces_never_overlap_even_in_a_large_machine() {
        let mut platform = pc();
        platform.cpus = (0..64).map(|i| crate::platform::Cpu { apic_id: i, package: i }).collect();
        platform.ioapic.as_mut().unwrap().id = 64;
        let (tables, _) = build_for(&platform, 512 << 30);
        let mut ranges: Vec<_> = tables.pieces.iter().map(|p| p.range()).collect();
        ranges.sort_by_key(|r| r.start);
        assert!(ranges.windows(2).all(|w| w[0].end <= w[1].start), "{ranges:x?}");
    }

    #[test]
    fn machine_without_acpi_apic_or_router_has_only_smbios() {
        let mut platform = pc();
        (platform.acpi, platform.pm, platform.ioapic, platform.pci.router) = (None, None, None, None);
        let (tables, map) = build_for(&platform, 64 * MIB);
        assert_eq!((tables.rsdp, tables.mp, tables.pir, tables.pieces.len()), (None, None, None, 1));
        assert_eq!(map, MemoryMap::new(64 * MIB, 0xC000_0000).unwrap());
    }

    #[test]
    fn bios_data_names_ports_and_the_end_of_conventional_memory() {
        let pieces = bios_data(&pc());
        let (area, ebda) = (&pieces[0], &pieces[1]);
        let word = |address: usize| u16_at(&area.bytes, address - 0x400).unwrap();
        assert_eq!((area.gpa, word(0x400), word(0x402), word(0x404)), (0x400, 0x3F8, 0x2F8, 0));
        assert_eq!((word(0x408), word(0x40E), word(0x413)), (0x378, 0x9FC0, 639));
        assert_eq!(word(0x410), 0x4427);
        assert_eq!((ebda.gpa, &ebda.bytes[..]), (0x9_FC00, &[1][..]));
    }

    /// Device and pin to what a table says of them.
    type Routes = BTreeMap<(u8, u8), u32>;

    /// An integer or a link's name, and what follows it.
    fn term(aml: &[u8]) -> (Result<u32, &str>, &[u8]) {
        match aml[0] {
            0x00 => (Ok(0), &aml[1..]),
            0x01 => (Ok(1), &aml[1..]),
            0x0A => (Ok(aml[1].into()), &aml[2..]),
            0x0B => (Ok(u16_at(aml, 1).unwrap().into()), &aml[3..]),
            0x0C => (Ok(u32_at(aml, 1).unwrap()), &aml[5..]),
            // \_SB_.LNKx: root, two segments.
            b'\\' => (Err(std::str::from_utf8(&aml[6..10]).unwrap()), &aml[10..]),
            other => panic!("opcode {other:x} in _PRT"),
        }
    }

    /// Contents of the package at `aml`: count byte and elements.
    fn package(aml: &[u8]) -> &[u8] {
        assert_eq!(aml[0], 0x12);
        let following = usize::from(aml[1] >> 6);
        let mut len = usize::from(aml[1] & if following == 0 { 0x3F } else { 0x0F });
        for index in 0..following {
            len |= usize::from(aml[2 + index]) << (4 + 8 * index);
        }
        &aml[2 + following..1 + len]
    }

    /// A named _PRT table of the DSDT; links become their letter's index.
    fn prt(dsdt: &[u8], name: &str) -> Routes {
        let pattern = [&[0x08], name.as_bytes()].concat();
        let start = dsdt.windows(5).position(|w| w == pattern).unwrap();
        let all = package(&dsdt[start + 5..]);
        let (count, mut rest) = (all[0], &all[1..]);
        let mut routes = Routes::new();
        for _ in 0..count {
            let entry = package(rest);
            rest = &rest[entry.as_ptr() as usize + entry.len() - rest.as_ptr() as usize..];
            assert_eq!(entry[0], 4);
            let (address, entry) = term(&entry[1..]);
            let (pin, entry) = term(entry);
            let (source, entry) = term(entry);
            let (index, entry) = term(entry);
            assert!(entry.is_empty());
            let address = address.unwrap();
            assert_eq!(address & 0xFFFF, 0xFFFF);
            let target = match source {
                Ok(0) => index.unwrap(),
                Ok(other) => panic!("source {other}"),
                Err(link) => u32::from(link.as_bytes()[3] - b'A'),
            };
            assert_eq!(routes.insert(((address >> 16) as u8, pin.unwrap() as u8), target), None);
        }
        assert!(rest.is_empty());
        routes
    }

    #[test]
    fn prt_mp_pir_and_interrupt_lines_agree() {
        let mut platform = pc();
        // Links are not in register order, one is off, one device has a single pin.
        platform.pci.links.swap(0, 2);
        platform.pci.links[3].irq = None;
        platform.pci.routes.retain(|r| r.device != 2 || r.pin == Pin::C);
        let (tables, map) = build_for(&platform, 256 * MIB);
        let reclaim = map.regions().iter().find(|r| r.kind == Kind::AcpiReclaim).unwrap().base;
        let acpi = at(&tables, reclaim);
        let dsdt = &acpi[acpi.windows(4).position(|w| w == b"DSDT").unwrap()..];
        let (by_link, by_pin) = (prt(dsdt, PIC_ROUTES), prt(dsdt, APIC_ROUTES));
        assert_eq!(by_link.len(), 30 * 4 + 1);

        let mp_at = tables.mp.unwrap();
        let mp: Routes = mp::tests::entries(at(&tables, mp_at), mp_at as u32)
            .iter()
            .filter(|e| e[0] == 3 && e[4] == 0)
            .map(|e| ((e[5] >> 2, e[5] & 3), u32::from(e[7])))
            .collect();
        assert_eq!(mp, by_pin);

        let pir = at(&tables, tables.pir.unwrap());
        let slots = pir[..usize::from(u16_at(pir, 6).unwrap())][32..].chunks(16);
        let registers: Routes = slots
            .flat_map(|s| (0..4).map(move |pin| ((s[1] >> 3, pin), u32::from(s[2 + 3 * usize::from(pin)]))))
            .filter(|(_, register)| *register != 0)
            .collect();
        let links = &platform.pci.links;
        let expected: Routes =
            by_link.iter().map(|(k, link)| (*k, u32::from(links[*link as usize].register))).collect();
        assert_eq!(registers, expected);

        for ((device, pin), link) in &by_link {
            let pin = Pin::ALL[usize::from(*pin)];
            assert_eq!(platform.pci.irq(0, *device, pin), links[*link as usize].irq);
        }
        // The register that LNKA's methods work on is the one that $PIR calls by the same link.
        let field = dsdt.windows(5).position(|w| w == b"PIRQ\x01").unwrap() + 5;
        let names: Vec<_> = dsdt[field..].chunks(5).take(4).map(|f| (f[3], f[4])).collect();
        assert_eq!(names, [(b'C', 8), (b'B', 8), (b'A', 8), (b'D', 8)], "fields in register order");
    }
}
