//! ACPI's static tables: RSDP, RSDT, XSDT, FADT, FACS, MADT, HPET, SRAT.
//!
//! Version 1 is ACPI 1.0: a root pointer of 20 bytes, 32-bit table pointers and the FADT of 116 bytes. Version 2 adds
//! the extended root pointer, an XSDT beside the RSDT and the FADT of ACPI 2.0 (revision 3, 244 bytes) with reset
//! register and 64-bit addresses. Systems of 2009 read either; the older ones among them read only the first form's
//! fields. The AML is in the `dsdt` module. Source: ACPI specifications 1.0b and 2.0c chapter 5; HPET specification
//! 1.0a 3.2.4. SRAT: ACPI 3.0 5.2.15, in which the form for 2.0 is a part.

use crate::bytes::{Put, set};
use crate::dsdt;
use crate::platform::{AcpiVersion, Hpet, Identity, Platform, Pm};

/// The FACS is shared with the guest (global lock, waking vector) and must be aligned to 64 bytes.
pub(crate) const FACS_LEN: u64 = 64;

/// Finished tables for one block of memory, and the root pointer to put into the BIOS area.
pub(crate) struct Acpi {
    /// All tables except FACS and RSDP, for the address that [`build`] was given.
    pub(crate) tables: Vec<u8>,
    pub(crate) facs: Vec<u8>,
    pub(crate) rsdp: Vec<u8>,
}

/// Makes all tables. `base` is where [`Acpi::tables`] will lie, `facs` where the FACS will. The lengths do not depend
/// on either, so a caller may build once to learn them.
pub(crate) fn build(platform: &Platform, version: AcpiVersion, pm: &Pm, base: u32, facs: u32) -> Acpi {
    let id = &platform.identity;
    let v2 = version == AcpiVersion::V2;
    let mut tables = Vec::new();
    // The root tables come first; their place is kept until the pointers are known.
    let optional = [platform.ioapic.is_some(), platform.hpet.is_some(), !platform.domains.is_empty()];
    let count = 1 + optional.into_iter().filter(|there| *there).count();
    let xsdt_at = (36 + 4 * count).next_multiple_of(16);
    tables.resize(if v2 { xsdt_at + 36 + 8 * count } else { 36 + 4 * count }, 0);
    let mut add = |table: Vec<u8>| {
        tables.resize(tables.len().next_multiple_of(16), 0);
        let at = base + tables.len() as u32;
        tables.extend(table);
        at
    };
    let mut body = header(b"DSDT", if v2 { 2 } else { 1 }, id);
    body.extend(dsdt::build(platform, pm));
    let dsdt = add(finish(body));
    let mut pointers = vec![add(fadt(platform, version, pm, facs, dsdt))];
    pointers.extend(madt(platform).map(&mut add));
    pointers.extend(platform.hpet.map(|h| add(hpet(&h, id))));
    pointers.extend(srat(platform).map(&mut add));

    let mut rsdt = header(b"RSDT", 1, id);
    pointers.iter().for_each(|p| rsdt.put32(*p));
    set(&mut tables, 0, &finish(rsdt));
    let mut rsdp = b"RSD PTR \0".to_vec();
    rsdp.put_padded(&id.oem_id, 6, b' ');
    rsdp.put8(if v2 { 2 } else { 0 });
    rsdp.put32(base);
    rsdp.seal(0, 8);
    if v2 {
        let mut xsdt = header(b"XSDT", 1, id);
        pointers.iter().for_each(|p| xsdt.put64(u64::from(*p)));
        set(&mut tables, xsdt_at, &finish(xsdt));
        rsdp.put32(36);
        rsdp.put64(u64::from(base) + xsdt_at as u64);
        rsdp.put32(0);
        rsdp.seal(0, 32);
    }
    Acpi { tables, facs: make_facs(v2), rsdp }
}

/// The 36 bytes that begin every table, with length and checksum still zero.
fn header(signature: &[u8; 4], revision: u8, id: &Identity) -> Vec<u8> {
    let mut table = signature.to_vec();
    table.put32(0);
    table.put8(revision);
    table.put8(0);
    table.put_padded(&id.oem_id, 6, b' ');
    table.put_padded(&id.oem_table_id, 8, b' ');
    table.put32(1);
    table.put_padded(&id.creator_id, 4, b' ');
    table.put32(1);
    table
}

/// Fills in length and checksum.
fn finish(mut table: Vec<u8>) -> Vec<u8> {
    let len = table.len() as u32;
    set(&mut table, 4, &len.to_le_bytes());
    table.seal(0, 9);
    table
}

fn make_facs(v2: bool) -> Vec<u8> {
    let mut facs = b"FACS".to_vec();
    facs.put32(FACS_LEN as u32);
    facs.resize(32, 0);
    facs.put8(u8::from(v2));
    facs.resize(FACS_LEN as usize, 0);
    facs
}

/// Generic address of an I/O port block of `len` bytes; all zero for none.
fn io_address(port: u16, len: u8) -> [u8; 12] {
    let mut address = [0; 12];
    if len > 0 {
        address[0] = 1;
        address[1] = len * 8;
        set(&mut address, 4, &u64::from(port).to_le_bytes());
    }
    address
}

fn fadt(platform: &Platform, version: AcpiVersion, pm: &Pm, facs: u32, dsdt: u32) -> Vec<u8> {
    const WBINVD: u32 = 1 << 0;
    const PROC_C1: u32 = 1 << 2;
    // Set means "no such fixed feature": there is a power button but no sleep button and no alarm that wakes.
    const NO_SLEEP_BUTTON: u32 = 1 << 5;
    const NO_FIXED_RTC: u32 = 1 << 6;
    const TIMER_32BIT: u32 = 1 << 8;
    const RESET_REGISTER: u32 = 1 << 10;

    let v2 = version == AcpiVersion::V2;
    let (gpe0, gpe0_len) = pm.gpe0.unwrap_or_default();
    let (event, control, timer) = (pm.base, pm.base.wrapping_add(4), pm.base.wrapping_add(8));
    let mut table = header(b"FACP", if v2 { 3 } else { 1 }, &platform.identity);
    table.put32(facs);
    table.put32(dsdt);
    // ACPI 1.0's INT_MODEL (1: APICs); in 2.0 it is reserved and followed by the preferred profile (1: desktop).
    table.put8(u8::from(!v2 && platform.ioapic.is_some()));
    table.put8(u8::from(v2));
    table.put16(u16::from(pm.sci));
    table.put32(pm.smi.map_or(0, |s| u32::from(s.port)));
    table.put8(pm.smi.map_or(0, |s| s.enable));
    table.put8(pm.smi.map_or(0, |s| s.disable));
    table.put16(0);
    for block in [event, 0, control, 0, 0, timer, gpe0, 0] {
        table.put32(u32::from(block));
    }
    for len in [4, 2, 0, 4, gpe0_len, 0, 0, 0] {
        table.put8(len);
    }
    // C2 and C3 latencies above 100 and 1000 us: neither state exists.
    table.put16(0xFFFF);
    table.put16(0xFFFF);
    // Flush size and stride, duty offset and width, day and month alarm: unused.
    table.extend([0; 8]);
    table.put8(platform.rtc_century.unwrap_or(0));
    // IAPC_BOOT_ARCH, reserved in 1.0: legacy devices, 8042.
    let boot_arch = 1 | u16::from(platform.keyboard || platform.mouse) << 1;
    table.put16(if v2 { boot_arch } else { 0 });
    table.put8(0);
    let mut flags = WBINVD | PROC_C1 | NO_SLEEP_BUTTON | NO_FIXED_RTC;
    flags |= if pm.timer_32bit { TIMER_32BIT } else { 0 };
    let reset = v2 && pm.reset_port;
    table.put32(flags | if reset { RESET_REGISTER } else { 0 });
    if v2 {
        table.extend(if reset { io_address(0xCF9, 1) } else { io_address(0, 0) });
        // Hard reset of the processor.
        table.put32(if reset { 0x06 } else { 0 });
        table.put64(u64::from(facs));
        table.put64(u64::from(dsdt));
        for (port, len) in [(event, 4), (0, 0), (control, 2), (0, 0), (0, 0), (timer, 4), (gpe0, gpe0_len), (0, 0)] {
            table.extend(io_address(port, len));
        }
    }
    finish(table)
}

/// Processors, I/O APIC, overrides, and NMI on every LINT1. `None` without an I/O APIC.
fn madt(platform: &Platform) -> Option<Vec<u8>> {
    let ioapic = platform.ioapic?;
    let mut table = header(b"APIC", 1, &platform.identity);
    table.put32(platform.lapic_base);
    table.put32(u32::from(platform.pic));
    for (index, cpu) in (0u8..).zip(&platform.cpus) {
        table.extend([0, 8, index, cpu.apic_id]);
        table.put32(1);
    }
    table.extend([1, 12, ioapic.id, 0]);
    table.put32(ioapic.base);
    table.put32(0);
    for o in &platform.overrides {
        table.extend([2, 10, 0, o.irq]);
        table.put32(u32::from(o.gsi));
        table.put16(o.flags());
    }
    table.extend([4, 6, 0xFF, 0, 0, 1]);
    Some(finish(table))
}

/// Which processors and which memory are in which domain. `None` without domains.
fn srat(platform: &Platform) -> Option<Vec<u8>> {
    const ENABLED: u32 = 1;
    if platform.domains.is_empty() {
        return None;
    }
    let mut table = header(b"SRAT", 2, &platform.identity);
    table.put32(1);
    table.put64(0);
    for (number, domain) in (0u8..).zip(&platform.domains) {
        for apic_id in &domain.cpus {
            table.extend([0, 16, number, *apic_id]);
            table.put32(ENABLED);
            table.put64(0);
        }
        for range in &domain.memory {
            table.extend([1, 40]);
            table.put32(number.into());
            table.put16(0);
            table.put64(range.start);
            table.put64(range.end - range.start);
            table.put32(0);
            table.put32(ENABLED);
            table.put64(0);
        }
    }
    Some(finish(table))
}

fn hpet(hpet: &Hpet, id: &Identity) -> Vec<u8> {
    let mut table = header(b"HPET", 1, id);
    table.put32(hpet.id);
    // Generic address: memory, 64 bits wide.
    table.put32(0x0000_4000);
    table.put64(u64::from(hpet.base));
    table.put8(0);
    table.put16(hpet.min_tick);
    table.put8(0);
    finish(table)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bytes::{sum, u16_at, u32_at, u64_at};
    use crate::platform::tests::pc;
    use crate::platform::{Domain, Pin, Root, Route};
    use std::process::Command;

    const BASE: u32 = 0x0FFE_0000;
    const FACS: u32 = 0x0FFF_F000;

    fn build(platform: &Platform) -> Acpi {
        super::build(platform, platform.acpi.unwrap(), &platform.pm.unwrap(), BASE, FACS)
    }

    impl Acpi {
        /// The whole table at a guest address.
        pub(crate) fn table(&self, base: u32, address: u64) -> &[u8] {
            let at = (address - u64::from(base)) as usize;
            &self.tables[at..at + u32_at(&self.tables, at + 4).unwrap() as usize]
        }
    }

    /// All tables that the RSDT names, and the DSDT that the FADT names.
    fn walk(acpi: &Acpi) -> Vec<&[u8]> {
        let rsdt = acpi.table(BASE, u32_at(&acpi.rsdp, 16).unwrap().into());
        let mut found: Vec<_> = rsdt[36..].chunks(4).map(|p| acpi.table(BASE, u32_at(p, 0).unwrap().into())).collect();
        let fadt = found.iter().find(|t| t.starts_with(b"FACP")).unwrap();
        found.push(acpi.table(BASE, u32_at(fadt, 40).unwrap().into()));
        found.push(rsdt);
        found
    }

    #[test]
    fn every_table_is_reached_and_sums_to_zero() {
        for version in [AcpiVersion::V1, AcpiVersion::V2] {
            let acpi = build(&Platform { acpi: Some(version), ..pc() });
            let tables = walk(&acpi);
            let names: Vec<_> = tables.iter().map(|t| std::str::from_utf8(&t[..4]).unwrap()).collect();
            assert_eq!(names, ["FACP", "APIC", "HPET", "DSDT", "RSDT"]);
            assert!(tables.iter().all(|t| sum(t) == 0));
            assert_eq!(sum(&acpi.rsdp[..20]), 0);
        }
    }

    #[test]
    fn version_2_has_the_same_tables_in_the_xsdt() {
        let acpi = build(&pc());
        assert_eq!((acpi.rsdp.len(), acpi.rsdp[15], sum(&acpi.rsdp)), (36, 2, 0));
        let xsdt = acpi.table(BASE, u64_at(&acpi.rsdp, 24).unwrap());
        let rsdt = acpi.table(BASE, u32_at(&acpi.rsdp, 16).unwrap().into());
        assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
        let wide: Vec<_> = xsdt[36..].chunks(8).map(|p| u64_at(p, 0).unwrap()).collect();
        let narrow: Vec<_> = rsdt[36..].chunks(4).map(|p| u64::from(u32_at(p, 0).unwrap())).collect();
        assert_eq!(wide, narrow);
        assert_eq!(build(&Platform { acpi: Some(AcpiVersion::V1), ..pc() }).rsdp.len(), 20);
    }

    #[test]
    fn fadt_forms_have_their_lengths_and_agree_on_addresses() {
        let v1 = build(&Platform { acpi: Some(AcpiVersion::V1), ..pc() });
        let v2 = build(&pc());
        let (old, new) = (walk(&v1)[0], walk(&v2)[0]);
        assert_eq!((old.len(), old[8], new.len(), new[8]), (116, 1, 244, 3));
        assert_eq!((u32_at(old, 36), u16_at(old, 46)), (Some(FACS), Some(9)));
        assert_eq!(old[48..110], new[48..110].iter().copied().take(61).chain([0]).collect::<Vec<_>>()[..]);
        for (narrow, wide) in [(56, 148), (64, 172), (76, 208), (80, 220)] {
            assert_eq!(u32_at(new, narrow).map(u64::from), u64_at(new, wide + 4));
        }
        assert_eq!(
            (u32_at(new, 40).map(u64::from), u32_at(new, 36).map(u64::from)),
            (u64_at(new, 140), u64_at(new, 132))
        );
        assert_eq!((u64_at(new, 120), new[128]), (Some(0xCF9), 6));
        assert_eq!((u32_at(old, 112).unwrap() & 1 << 10, u32_at(new, 112).unwrap() & 1 << 10), (0, 1 << 10));
        assert_eq!((old[108], u16_at(new, 109)), (0x32, Some(3)));
    }

    #[test]
    fn madt_lists_processors_ioapic_and_overrides() {
        let acpi = build(&pc());
        let madt = walk(&acpi)[1];
        assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (Some(0xFEE0_0000), Some(1)));
        let mut entries = &madt[44..];
        let mut found = Vec::new();
        while !entries.is_empty() {
            found.push(&entries[..usize::from(entries[1])]);
            entries = &entries[usize::from(entries[1])..];
        }
        assert_eq!(found[1], [0, 8, 1, 1, 1, 0, 0, 0]);
        assert_eq!(found[2], [1, 12, 2, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0]);
        assert_eq!(found[3], [2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
        assert_eq!(found[4], [2, 10, 0, 9, 9, 0, 0, 0, 0x0F, 0], "SCI: level, active low");
        assert_eq!(found.len(), 6);
    }

    #[test]
    fn srat_has_each_domains_processors_and_memory() {
        let memory = [0..0x4000_0000, 1 << 32..(1 << 32) + 0x1000, 0x4000_0000..0x8000_0000];
        let domain = |id, parts: &[_]| Domain { cpus: vec![id], memory: parts.to_vec() };
        let domains = vec![domain(0, &memory[..2]), domain(1, &memory[2..])];
        let acpi = build(&Platform { domains, ..pc() });
        let tables = walk(&acpi);
        let srat = tables.iter().find(|t| t.starts_with(b"SRAT")).unwrap();
        assert_eq!((srat[8], u32_at(srat, 36), srat.len(), sum(srat)), (2, Some(1), 48 + 2 * 16 + 3 * 40, 0));
        assert_eq!(srat[48..64], [0, 16, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let part =
            |at: usize| (u32_at(srat, at + 2), u64_at(srat, at + 8), u64_at(srat, at + 16), u32_at(srat, at + 28));
        assert_eq!(part(64), (Some(0), Some(0), Some(0x4000_0000), Some(1)));
        assert_eq!(part(104), (Some(0), Some(1 << 32), Some(0x1000), Some(1)));
        assert_eq!(srat[144..148], [0, 16, 1, 1]);
        assert_eq!(part(160), (Some(1), Some(0x4000_0000), Some(0x4000_0000), Some(1)));
        let xsdt = acpi.table(BASE, u64_at(&acpi.rsdp, 24).unwrap());
        assert_eq!(xsdt.len(), 36 + 8 * 4);
    }

    /// Machines whose DSDTs differ in shape.
    fn shapes() -> Vec<(&'static str, Platform)> {
        let mut bare = pc();
        bare.acpi = Some(AcpiVersion::V1);
        (bare.ioapic, bare.hpet, bare.pci.window64) = (None, None, None);
        (bare.keyboard, bare.mouse, bare.floppy) = (false, false, false);
        (bare.serial, bare.parallel, bare.overrides) = (Vec::new(), Vec::new(), Vec::new());
        let mut apic_only = pc();
        (apic_only.pic, apic_only.pci.router) = (false, None);
        let mut no_router = pc();
        no_router.pci.router = None;
        let mut eight_links = pc();
        eight_links.cpus = (0..16).map(|apic_id| crate::platform::Cpu { apic_id, package: 0 }).collect();
        eight_links.ioapic.as_mut().unwrap().id = 16;
        let link = |register| crate::platform::Link { register, irq: Some(5) };
        eight_links.pci.links = [0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6A, 0x6B].map(link).to_vec();
        vec![
            ("full", pc()),
            ("v1", Platform { acpi: Some(AcpiVersion::V1), ..pc() }),
            ("bare", bare),
            ("apic", apic_only),
            ("direct", no_router),
            ("eight", eight_links),
            ("roots", with_roots()),
        ]
    }

    /// A machine with two more host bridges, one of which has nothing to pass on.
    fn with_roots() -> Platform {
        let mut platform = pc();
        let root = Root { bus: 1, io: vec![0xC000..=0xC03F, 0xD000..=0xD07F], memory: vec![0xC010_0000..=0xC010_0FFF] };
        platform.pci.roots = vec![root, Root { bus: 0xAB, ..Root::default() }];
        platform.pci.routes.push(Route { bus: 1, device: 0, pin: Pin::A, link: 2, gsi: 18 });
        platform
    }

    #[test]
    fn further_roots_take_their_windows_out_of_that_of_bus_0() {
        let dsdt = |platform: &Platform| {
            let acpi = build(platform);
            walk(&acpi).into_iter().find(|t| t.starts_with(b"DSDT")).unwrap().to_vec()
        };
        // Word and double word address space descriptors: first and last address, length.
        let ports = |first: u16, last: u16| {
            let words = [first, last, 0, last - first + 1];
            words.into_iter().flat_map(u16::to_le_bytes).collect::<Vec<_>>()
        };
        let memory = |first: u32, last: u32| {
            let words = [first, last, 0, last - first + 1];
            words.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<_>>()
        };
        let count = |dsdt: &[u8], bytes: &[u8]| dsdt.windows(bytes.len()).filter(|w| *w == bytes).count();
        let (one, three) = (dsdt(&pc()), dsdt(&with_roots()));
        for window in [ports(0xD00, 0xFFFF), memory(0xC000_0000, 0xFEBF_FFFF)] {
            assert_eq!((count(&one, &window), count(&three, &window)), (1, 0));
        }
        let split = [
            ports(0xD00, 0xBFFF),
            ports(0xC040, 0xCFFF),
            ports(0xD080, 0xFFFF),
            memory(0xC000_0000, 0xC00F_FFFF),
            memory(0xC010_1000, 0xFEBF_FFFF),
        ];
        let own = [ports(0xC000, 0xC03F), ports(0xD000, 0xD07F), memory(0xC010_0000, 0xC010_0FFF)];
        for window in split.iter().chain(&own) {
            assert_eq!((count(&one, window), count(&three, window)), (0, 1), "{window:x?}");
        }
        assert_eq!((count(&three, b"PC01"), count(&three, b"PCAB"), count(&one, b"PC01")), (1, 1, 0));
        assert_eq!((count(&three, b"_BBN\x01"), count(&three, b"_BBN\x0a\xab")), (1, 1));
    }

    /// Runs one of ACPICA's tools in `dir`; `None`, with a line saying so, where it is not installed.
    fn tool(dir: &std::path::Path, name: &str, args: &[&str]) -> Option<String> {
        match Command::new(name).args(args).current_dir(dir).output() {
            Err(_) => {
                println!("skipped: {name} (Debian package acpica-tools) is not installed");
                None
            }
            Ok(output) => Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()),
        }
    }

    #[test]
    fn aml_disassembles_and_compiles_again_without_complaint() {
        for (name, platform) in shapes() {
            let dir = std::env::temp_dir().join(format!("bhyve-rs-dsdt-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            let acpi = build(&platform);
            let tables = walk(&acpi);
            let dsdt = tables.iter().find(|t| t.starts_with(b"DSDT")).unwrap();
            std::fs::write(dir.join("dsdt.aml"), dsdt).unwrap();
            let Some(text) = tool(&dir, "iasl", &["-d", "dsdt.aml"]) else {
                return std::fs::remove_dir_all(&dir).unwrap();
            };
            assert!(text.contains("Disassembly completed") && !text.contains("Error"), "{name}: {text}");
            // Processor objects and a host bridge with both _HID and _ADR: out of fashion since, but what old
            // interpreters were tested with.
            let args = ["-vw", "3168", "-vw", "3073", "-p", "again", "dsdt.dsl"];
            let text = tool(&dir, "iasl", &args).unwrap();
            assert!(text.contains("0 Errors, 0 Warnings"), "{name}: {text}");
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }

    #[test]
    fn aml_loads_and_every_method_runs_in_acpica() {
        for (name, mut platform) in shapes() {
            // The tool's result buffer does not hold the longest possible _PRT.
            platform.pci.routes.truncate(64);
            let dir = std::env::temp_dir().join(format!("bhyve-rs-exec-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            let acpi = build(&platform);
            let tables = walk(&acpi);
            let dsdt = tables.iter().find(|t| t.starts_with(b"DSDT")).unwrap();
            std::fs::write(dir.join("dsdt.aml"), dsdt).unwrap();
            let mut commands = vec!["execute \\_PIC 1", "execute \\_SB.PCI0._PRT", "execute \\_SB.PCI0._CRS"];
            if platform.pci.router.is_some() {
                commands.extend([
                    "execute \\_SB.LNKB._SRS (23 00 08 18 79 00)",
                    "execute \\_SB.LNKB._CRS",
                    "execute \\_SB.LNKB._STA",
                    "execute \\_SB.LNKB._DIS",
                    "execute \\_SB.LNKB._STA",
                ]);
            }
            let Some(text) = tool(&dir, "acpiexec", &["-b", &commands.join("; "), "dsdt.aml"]) else {
                return std::fs::remove_dir_all(&dir).unwrap();
            };
            assert!(!text.contains("Error") && !text.contains("Warning"), "{name}: {text}");
            if platform.pci.router.is_some() {
                // After _SRS of IRQ 11: _CRS holds the same descriptor, _STA goes from 0B to 09 with _DIS.
                assert!(text.contains("23 00 08 18 79 00"), "{name}: {text}");
                assert!(text.contains("000000000000000B") && text.contains("0000000000000009"), "{name}: {text}");
            }
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
}
