//! The MultiProcessor table: how systems without ACPI find processors, I/O APIC and interrupt wiring.
//!
//! OpenBSD and FreeBSD/i386 of 2009, and Linux with `acpi=off`, read it. A floating pointer in the BIOS area points to
//! the configuration table. PCI bus 0 comes first, ISA is bus 1; a machine with more PCI buses has no such table. An ISA IRQ whose pin
//! an override has taken is left out.
//! Source: Intel MultiProcessor Specification 1.4, chapters 4 and appendix D.

use crate::bytes::{Put, set};
use crate::platform::Platform;

const POINTER_LEN: u32 = 16;
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Level, active low: PCI.
const LEVEL_LOW: u16 = 0x0F;
const ALL_LAPICS: u8 = 0xFF;

/// Floating pointer and configuration table for address `at`; `None` without an I/O APIC, or with PCI buses above 0.
pub(crate) fn build(platform: &Platform, at: u32) -> Option<Vec<u8>> {
    let table = configuration(platform)?;
    let mut out = b"_MP_".to_vec();
    out.put32(at + POINTER_LEN);
    // Length in paragraphs, revision 1.4, checksum, no default configuration, no IMCR.
    out.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    out.seal(0, 10);
    out.extend(table);
    Some(out)
}

fn configuration(platform: &Platform) -> Option<Vec<u8>> {
    let ioapic = platform.ioapic.filter(|_| platform.pci.roots.is_empty())?;
    let id = &platform.identity;
    let mut table = b"PCMP".to_vec();
    table.extend([0, 0, 4, 0]);
    table.put_padded(&id.oem_id, 8, b' ');
    table.put_padded(&id.product, 12, b' ');
    // No OEM table; the entry count follows later.
    table.extend([0; 8]);
    table.put32(platform.lapic_base);
    table.put32(0);

    let mut count = 0u16;
    let mut entry = |bytes: &[u8]| {
        table.extend_from_slice(bytes);
        count += 1;
    };
    for (index, cpu) in platform.cpus.iter().enumerate() {
        // Local APIC version 0x14; enabled, and the first is the boot processor.
        let mut bytes = vec![0, cpu.apic_id, 0x14, 1 | u8::from(index == 0) << 1];
        bytes.put32(platform.processor.signature);
        bytes.put32(platform.processor.features);
        bytes.put64(0);
        entry(&bytes);
    }
    let isa = 1;
    entry(b"\x01\x00PCI   ");
    entry(b"\x01\x01ISA   ");
    let mut bytes = vec![2, ioapic.id, ioapic.version, 1];
    bytes.put32(ioapic.base);
    entry(&bytes);

    let mut interrupt = |kind: u8, flags: u16, bus: u8, irq: u8, pin: u8| {
        let [low, high] = flags.to_le_bytes();
        entry(&[3, kind, low, high, bus, irq, ioapic.id, pin]);
    };
    let has_own_pin = |irq: u8| platform.overrides.iter().find(|o| o.irq == irq);
    let pin_is_taken = |pin: u8| platform.overrides.iter().any(|o| o.gsi == pin);
    let mut pin_0_is_free = true;
    for irq in 0..16u8 {
        match has_own_pin(irq) {
            Some(o) => interrupt(INT, o.flags(), isa, irq, o.gsi),
            // The cascade never interrupts by itself.
            None if irq == 2 || irq >= ioapic.pins || pin_is_taken(irq) => continue,
            None => interrupt(INT, 0, isa, irq, irq),
        }
        pin_0_is_free &= has_own_pin(irq).map_or(irq, |o| o.gsi) != 0;
    }
    if platform.pic && pin_0_is_free {
        interrupt(EXT_INT, 0, isa, 0, 0);
    }
    for route in &platform.pci.routes {
        interrupt(INT, LEVEL_LOW, 0, route.device << 2 | route.pin as u8, route.gsi);
    }
    if platform.pic {
        entry(&[4, EXT_INT, 0, 0, isa, 0, ALL_LAPICS, 0]);
    }
    entry(&[4, NMI, 0, 0, isa, 0, ALL_LAPICS, 1]);

    let len = table.len() as u16;
    set(&mut table, 4, &len.to_le_bytes());
    set(&mut table, 34, &count.to_le_bytes());
    table.seal(0, 7);
    Some(table)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bytes::{sum, u16_at, u32_at};
    use crate::platform::tests::pc;

    /// The entries of a table built for `at`.
    pub(crate) fn entries(table: &[u8], at: u32) -> Vec<&[u8]> {
        assert_eq!((&table[..4], sum(&table[..16])), (&b"_MP_"[..], 0));
        let config = &table[(u32_at(table, 4).unwrap() - at) as usize..];
        assert_eq!(&config[..4], b"PCMP");
        let config = &config[..usize::from(u16_at(config, 4).unwrap())];
        assert_eq!(sum(config), 0);
        let mut rest = &config[44..];
        let mut found = Vec::new();
        while let Some(kind) = rest.first() {
            let (entry, tail) = rest.split_at(if *kind == 0 { 20 } else { 8 });
            found.push(entry);
            rest = tail;
        }
        assert_eq!(found.len(), usize::from(u16_at(config, 34).unwrap()));
        assert!(found.is_sorted_by_key(|e| e[0]), "entries are in order of type");
        found
    }

    #[test]
    fn processors_buses_and_interrupts_are_listed() {
        let table = build(&pc(), 0xF_1000).unwrap();
        let entries = entries(&table, 0xF_1000);
        assert_eq!(entries[0][..4], [0, 0, 0x14, 3]);
        assert_eq!(entries[1][..4], [0, 1, 0x14, 1]);
        assert_eq!(entries[2], b"\x01\x00PCI   ");
        assert_eq!(entries[3], b"\x01\x01ISA   ");
        assert_eq!(entries[4], [2, 2, 0x11, 1, 0, 0, 0xC0, 0xFE]);
        let isa: Vec<_> =
            entries.iter().filter(|e| e[0] == 3 && e[4] == 1 && e[1] == INT).map(|e| (e[5], e[7])).collect();
        let expected: Vec<_> = [(0, 2), (1, 1)].into_iter().chain((3..16).map(|i| (i, i))).collect();
        assert_eq!(isa, expected, "IRQ 0 at pin 2, no IRQ 2");
        assert!(entries.contains(&&[3, EXT_INT, 0, 0, 1, 0, 2, 0][..]));
        assert!(entries.contains(&&[3, INT, 0x0F, 0, 1, 9, 2, 9][..]), "SCI: level, active low");
        assert!(entries.contains(&&[4, NMI, 0, 0, 1, 0, 0xFF, 1][..]));
    }

    #[test]
    fn isa_interrupt_yields_its_pin_to_an_override() {
        let mut platform = pc();
        platform.overrides[1].gsi = 5;
        let table = build(&platform, 0).unwrap();
        let of = |pin: u8| -> Vec<u8> {
            entries(&table, 0).into_iter().filter(|e| e[0] == 3 && e[7] == pin).map(|e| e[5]).collect()
        };
        assert_eq!((of(5), of(9)), (vec![9], vec![]));
    }

    #[test]
    fn without_override_irq_0_keeps_pin_0_for_itself() {
        let mut platform = pc();
        platform.overrides.clear();
        let table = build(&platform, 0).unwrap();
        let pin_0: Vec<_> = entries(&table, 0).into_iter().filter(|e| e[0] == 3 && e[7] == 0).map(|e| e[1]).collect();
        assert_eq!(pin_0, [INT]);
        platform.ioapic = None;
        assert!(build(&platform, 0).is_none());
    }
}
