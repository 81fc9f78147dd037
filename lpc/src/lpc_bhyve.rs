//! The two functions that bhyve's own board consists of: a host bridge without registers and an LPC bridge.
//!
//! Facts: bhyve(8) and its behaviour in FreeBSD 13 to 15. The host bridge is 1275:1275 (NetApp), or 1022:7432 where it
//! stands for an AMD one; its PCI Express capability, of a root port, is what makes FreeBSD believe that the machine
//! does message signalled interrupts. It shadows nothing: C0000-FFFFF is as the board lays it out. The LPC bridge has
//! the ids of the PIIX3's ISA bridge (8086:7000) but the interrupt router of an ICH: eight inputs, registers 60-63 and
//! 68-6B. Power management lies at fixed ports ([`crate::AcpiPm::create_bhyve`]) and is no function.
//!
//! Guests that bhyve runs find here what they find there, down to the numbers in their ACPI tables.

use std::sync::Arc;

use emu::{Device, Event, IrqLine, PciFunction, PciIds, ResetKind, Slot, State, SystemEvent};

use crate::piix_isa::SystemPorts;
use crate::pirq::Pirq;

/// Ids of the host bridge.
pub const HOST_BRIDGE: PciIds =
    PciIds { vendor: 0x1275, device: 0x1275, class: 0x06_0000, revision: 0, sub_vendor: 0, subsystem: 0 };
/// Ids of the host bridge under the name `amd_hostbridge`.
pub const AMD_HOST_BRIDGE: PciIds = PciIds { vendor: 0x1022, device: 0x7432, ..HOST_BRIDGE };
/// Ids of the LPC bridge.
pub const LPC_BRIDGE: PciIds = PciIds { vendor: 0x8086, device: 0x7000, class: 0x06_0100, ..HOST_BRIDGE };

/// First port of the power management block: PM1 event, control at +4, timer at +8, general-purpose event at +C (a
/// byte of status, a byte of enable).
pub const PM_BASE: u16 = 0x400;
/// What the command port, B2, takes to give the SCI to the operating system.
pub const ACPI_ENABLE: u8 = 0xa0;
/// And to take it back.
pub const ACPI_DISABLE: u8 = 0xa1;
/// The sleep type that powers off.
pub const PM_S5: u16 = 5;

/// Number of PIRQs.
pub const PIRQS: usize = 8;

/// The PIRQ (0 to 7) that pin `pin` (0 for INTA#) of device `dev` is wired to while external firmware routes it.
pub fn pirq_of(dev: u8, pin: u8) -> u8 {
    (dev & 31) + (pin & 3) + 5 & 7
}

/// The host bridge.
pub struct BhyveHostBridge(());

impl BhyveHostBridge {
    /// A host bridge with these ids.
    ///
    /// # Errors
    /// When the slot is taken.
    pub fn create(slot: &mut Slot, ids: PciIds) -> Result<Box<dyn Device>, String> {
        let function = slot.pci(ids)?;
        let at = usize::from(function.add_capability(0x10, 0x3c));
        function.config(|c| {
            // Version 2, root port; a link of one lane at 2.5 GT/s, as capability and as status.
            c.set16(at + 0x02, 0x0042);
            c.set32(at + 0x0c, 0x0411);
            c.set16(at + 0x12, 0x0011);
            // Device, link and root control hold what is written.
            c.writable(at + 0x08, &[0xff, 0x7f]);
            c.writable(at + 0x10, &[0xff, 0x0f]);
            c.writable(at + 0x1c, &[0x1f]);
        });
        Ok(Box::new(BhyveHostBridge(())))
    }
}

impl Device for BhyveHostBridge {
    fn reset(&mut self, _: ResetKind) {}

    fn state(&mut self) -> &mut dyn State {
        &mut self.0
    }
}

/// The LPC bridge.
pub struct BhyveLpc {
    ports: SystemPorts,
    function: Arc<PciFunction>,
    pirq: Arc<Pirq>,
    irq13: Arc<IrqLine>,
    request: Box<dyn Fn(SystemEvent) + Send>,
}

impl BhyveLpc {
    /// The bridge with these ids, whose route registers govern `pirq`, which has [`PIRQS`] inputs.
    ///
    /// # Errors
    /// When the slot is taken.
    pub fn create(slot: &mut Slot, ids: PciIds, pirq: Arc<Pirq>) -> Result<Box<dyn Device>, String> {
        let function = slot.pci(ids)?;
        function.config(|c| {
            for n in 0..PIRQS {
                c.set8(route_register(n), 0x80);
                c.writable(route_register(n), &[0x8f]);
            }
        });
        let irq13 = SystemPorts::claim(slot);
        let machine = Arc::downgrade(slot.machine());
        let request = Box::new(move |event| {
            if let Some(m) = machine.upgrade() {
                m.request(event);
            }
        });
        Ok(Box::new(BhyveLpc { ports: SystemPorts::default(), function, pirq, irq13, request }))
    }

    fn apply_routes(&mut self) {
        for n in 0..PIRQS {
            let r = self.function.config(|c| c.get8(route_register(n)));
            self.pirq.route(n, (r & 0x80 == 0).then_some(r & 15));
        }
    }
}

/// Where PIRQ `n` is routed: A to D at 60-63, E to H at 68-6B.
fn route_register(n: usize) -> usize {
    0x60 + n / 4 * 8 + n % 4
}

impl Device for BhyveLpc {
    fn read(&mut self, region: u32, _offset: u64, _width: u8) -> u64 {
        self.ports.read(region)
    }

    fn write(&mut self, region: u32, _offset: u64, _width: u8, value: u64) {
        self.ports.write(region, value as u8, &self.irq13, &self.request);
    }

    fn event(&mut self, event: Event) {
        if matches!(event, Event::Ferr) {
            self.irq13.set(true);
        }
    }

    fn config_write(&mut self, _offset: u16, _width: u8) {
        self.apply_routes();
    }

    fn reset(&mut self, _: ResetKind) {
        self.ports = SystemPorts::default();
        self.irq13.set(false);
        self.apply_routes();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.ports
    }

    fn restored(&mut self) {
        self.apply_routes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::IrqSink;
    use emu::bench::Bench;

    #[test]
    fn the_host_bridge_shows_a_root_port_capability_that_config_writes_cannot_destroy() {
        let bench = Bench::new();
        bench.part(|s| BhyveHostBridge::create(s, AMD_HOST_BRIDGE).unwrap());
        assert_eq!(bench.config_read(0, 4), 0x7432_1022);
        assert_eq!(bench.config_read(8, 4), 0x0600_0000);
        assert_eq!(bench.config_read(6, 2) & 0x10, 0x10);
        let cap = bench.config_read(0x34, 1) as u16;
        for at in (0..256).step_by(4) {
            bench.config_write(at, 4, u32::MAX);
            bench.config_write(at, 4, 0);
        }
        assert_eq!(bench.config_read(cap, 4), 0x0042_0010);
        assert_eq!(bench.config_read(cap + 0x10, 4), 0x0011_0000);
    }

    #[test]
    fn all_eight_pirqs_have_a_route_register() {
        let bench = Bench::new();
        let pirq = Pirq::with_inputs(&bench.machine, (0..PIRQS).map(|_| IrqLine::unconnected()).collect());
        let p = pirq.clone();
        bench.part(|s| BhyveLpc::create(s, LPC_BRIDGE, p).unwrap());
        assert_eq!((bench.config_read(0, 4), bench.config_read(8, 4)), (0x7000_8086, 0x0601_0000));
        assert_eq!((bench.config_read(0x60, 4), bench.config_read(0x68, 4)), (0x8080_8080, 0x8080_8080));
        pirq.set_irq(6, true);
        bench.config_write(0x6a, 1, 0x0a);
        assert!(bench.irq(10));
        bench.config_write(0x68, 4, 0x8005_8080);
        assert!(bench.irq(5) && !bench.irq(10));
        bench.machine.reset(ResetKind::System);
        assert!(!bench.irq(5));
    }

    #[test]
    fn pins_are_spread_as_firmware_for_bhyve_expects() {
        // Slot 1, INTA#: PIRQ G.
        assert_eq!(pirq_of(1, 0), 6);
        assert_eq!(pirq_of(3, 0), 0);
        assert_eq!(pirq_of(31, 3), 7);
    }
}
