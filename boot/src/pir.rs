//! The $PIR table: how PCI interrupts reach the 8259 pair, for systems that use neither ACPI nor APICs.
//!
//! i386 BSDs and Linux with `acpi=off noapic` read it, then work the router's registers by themselves: the link
//! values are the register numbers, as every PIIX driver takes them. Source: Microsoft PCI IRQ Routing Table
//! Specification 1.0.

use crate::bytes::{Put, set};
use crate::platform::{Pin, Platform};

/// The table; `None` without an 8259 pair, a router or routes.
pub(crate) fn build(platform: &Platform) -> Option<Vec<u8>> {
    let pci = &platform.pci;
    let router = pci.router.filter(|_| platform.pic && !pci.routes.is_empty())?;
    let mut table = b"$PIR".to_vec();
    table.put16(0x0100);
    table.put16(0);
    // The router's bus and function; no IRQ is kept for PCI alone.
    table.extend([0, router.device << 3 | router.function]);
    table.put16(0);
    table.put16(router.compatible.0);
    table.put16(router.compatible.1);
    // Miniport data, reserved, checksum.
    table.resize(32, 0);
    for (bus, device) in pci.devices() {
        table.extend([bus, device << 3]);
        for pin in Pin::ALL {
            let route = pci.routes.iter().find(|r| (r.bus, r.device, r.pin) == (bus, device, pin));
            let link = route.and_then(|r| pci.links.get(usize::from(r.link)));
            table.put8(link.map_or(0, |l| l.register));
            table.put16(link.map_or(0, |_| router.allowed));
        }
        // Slot number: what is on the board has none.
        table.extend([if (bus, device) == (0, router.device) { 0 } else { device }, 0]);
    }
    let len = table.len() as u16;
    set(&mut table, 6, &len.to_le_bytes());
    table.seal(0, 31);
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{sum, u16_at};
    use crate::platform::tests::pc;

    #[test]
    fn header_names_the_router_and_slots_their_links() {
        let table = build(&pc()).unwrap();
        assert_eq!((&table[..4], sum(&table)), (&b"$PIR"[..], 0));
        assert_eq!(usize::from(u16_at(&table, 6).unwrap()), table.len());
        assert_eq!((table[8], table[9]), (0, 1 << 3));
        assert_eq!((u16_at(&table, 12), u16_at(&table, 14)), (Some(0x8086), Some(0x7000)));
        assert_eq!(table.len(), 32 + 31 * 16);
        let slot_3 = &table[32 + 2 * 16..][..16];
        assert_eq!(slot_3, [0, 3 << 3, 0x62, 0x20, 0x0C, 0x63, 0x20, 0x0C, 0x60, 0x20, 0x0C, 0x61, 0x20, 0x0C, 3, 0]);
    }

    #[test]
    fn unrouted_pins_are_zero_and_no_router_means_no_table() {
        let mut platform = pc();
        platform.pci.routes.retain(|r| r.device == 1 && r.pin == Pin::D);
        let table = build(&platform).unwrap();
        assert_eq!(table[32..], [0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x63, 0x20, 0x0C, 0, 0]);
        platform.pic = false;
        assert!(build(&platform).is_none());
    }
}
