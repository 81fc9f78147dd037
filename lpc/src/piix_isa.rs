//! PCI-to-ISA bridge of the 82371SB (PIIX3) and 82371AB/EB (PIIX4).
//!
//! Datasheets: 82371SB (290550), 82371AB (290562). Modelled: the PIRQ route registers 60-63, the reset control
//! register CF9, port 92 (fast A20 and INIT), the coprocessor error latch F0, and configuration registers that
//! firmware stores into. FERR# ([`Event::Ferr`]) makes IRQ 13; a write to F0 takes that back and asserts IGNNE#. The
//! other parts of the chip (8259, 8254, 8237, IDE, USB, power management) are devices of their own.

use std::sync::Arc;

use emu::{Device, Event, IrqLine, PciFunction, PciIds, ResetKind, Slot, State, SystemEvent, Widths};
use serde::{Deserialize, Serialize};

use crate::pirq::Pirq;

/// Which of the bridges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piix {
    /// 8086:7000.
    Piix3,
    /// 8086:7110.
    Piix4,
}

const PIRQRC: usize = 0x60;
const CF9: u32 = 0;
const PORT92: u32 = 1;
const PORTF0: u32 = 2;

/// The ports through which an ISA bridge reaches the processor's pins.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SystemPorts {
    /// CF9.
    reset_control: u8,
    /// Port 92.
    port92: u8,
}

impl SystemPorts {
    /// Takes CF9, 92 and F0, as the owner's regions 0 to 2, and IRQ 13.
    pub(crate) fn claim(slot: &mut Slot) -> Arc<IrqLine> {
        slot.ports_over(CF9, 0xcf9, 1, Widths::BYTE);
        slot.ports(PORT92, 0x92, 1, Widths::BYTE);
        slot.ports(PORTF0, 0xf0, 2, Widths::BYTE);
        slot.isa_irq(13)
    }

    pub(crate) fn read(&self, region: u32) -> u64 {
        match region {
            CF9 => u64::from(self.reset_control),
            PORT92 => u64::from(self.port92),
            _ => 0xff,
        }
    }

    pub(crate) fn write(&mut self, region: u32, value: u8, irq13: &IrqLine, request: impl Fn(SystemEvent)) {
        match region {
            CF9 => {
                // Bit 2 going up resets; bit 1 chooses a hard reset, and a soft one is INIT.
                let go = value & 4 != 0 && self.reset_control & 4 == 0;
                self.reset_control = value & 0x06;
                if go {
                    request(if value & 2 != 0 { SystemEvent::Reset } else { SystemEvent::Init });
                }
            }
            PORT92 => {
                let old = std::mem::replace(&mut self.port92, value & 3);
                if (old ^ value) & 2 != 0 {
                    request(SystemEvent::A20(value & 2 != 0));
                }
                if value & 1 != 0 && old & 1 == 0 {
                    request(SystemEvent::Init);
                }
            }
            _ => {
                irq13.set(false);
                request(SystemEvent::Ignne);
            }
        }
    }
}

/// The bridge.
pub struct PiixIsa {
    ports: SystemPorts,
    function: Arc<PciFunction>,
    pirq: Arc<Pirq>,
    irq13: Arc<IrqLine>,
    request: Box<dyn Fn(SystemEvent) + Send>,
}

impl PiixIsa {
    /// The bridge, whose route registers govern `pirq`.
    ///
    /// # Errors
    /// When the slot is taken.
    pub fn create(slot: &mut Slot, kind: Piix, pirq: Arc<Pirq>) -> Result<Box<dyn Device>, String> {
        let device = if kind == Piix::Piix3 { 0x7000 } else { 0x7110 };
        let ids = PciIds { vendor: 0x8086, device, class: 0x06_0100, revision: 1, ..PciIds::default() };
        let function = slot.pci(ids)?;
        function.set_multifunction();
        function.config(|c| {
            c.set16(0x04, 0x0007);
            c.set16(0x06, 0x0280);
            c.writable(0x04, &[0x08, 0x01]);
            c.set8(0x4c, 0x4d);
            c.set16(0x4e, 0x0003);
            c.set8(PIRQRC, 0x80);
            (0..4).for_each(|n| c.set8(PIRQRC + n, 0x80));
            c.writable(PIRQRC, &[0x8f; 4]);
            for (at, len) in [(0x4c, 4), (0x64, 1), (0x69, 3), (0x70, 2), (0x76, 3), (0x80, 4), (0xa0, 0x30), (0xcb, 1)]
            {
                c.writable(at, &vec![0xff; len]);
            }
            c.set8(0x69, 0x02);
        });
        let irq13 = SystemPorts::claim(slot);
        let machine = Arc::downgrade(slot.machine());
        let request = Box::new(move |event| {
            if let Some(m) = machine.upgrade() {
                m.request(event);
            }
        });
        Ok(Box::new(PiixIsa { ports: SystemPorts::default(), function, pirq, irq13, request }))
    }

    fn apply_routes(&mut self) {
        for n in 0..4 {
            let r = self.function.config(|c| c.get8(PIRQRC + n));
            self.pirq.route(n, (r & 0x80 == 0).then_some(r & 15));
        }
    }
}

impl Device for PiixIsa {
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

    fn config_write(&mut self, offset: u16, width: u8) {
        if (offset as usize) < PIRQRC + 4 && offset as usize + width as usize > PIRQRC {
            self.apply_routes();
        }
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
    use emu::bench::Bench;
    use emu::{DeviceCell, IrqSink};

    fn rig() -> (Bench, Arc<Pirq>) {
        let (bench, pirq, _) = rig_with_cell();
        (bench, pirq)
    }

    fn rig_with_cell() -> (Bench, Arc<Pirq>, Arc<DeviceCell>) {
        let bench = Bench::new();
        let pirq = Pirq::new(&bench.machine, std::array::from_fn(|_| IrqLine::unconnected()));
        let p = pirq.clone();
        let cell = bench.part(|slot| PiixIsa::create(slot, Piix::Piix3, p).unwrap());
        (bench, pirq, cell)
    }

    #[test]
    fn ferr_makes_irq_13_until_port_f0_asserts_ignne() {
        let (mut bench, _, cell) = rig_with_cell();
        cell.event(Event::Ferr);
        assert!(bench.irq(13));
        assert!(bench.system_events().is_empty());
        bench.outb(0xf0, 0);
        assert!(!bench.irq(13));
        assert_eq!(bench.system_events(), [SystemEvent::Ignne]);
        cell.event(Event::Ferr);
        bench.machine.reset(ResetKind::System);
        assert!(!bench.irq(13));
    }

    #[test]
    fn the_route_registers_lead_pirqs_to_isa_interrupts() {
        let (bench, pirq) = rig();
        assert_eq!(bench.config_read(0x60, 4), 0x8080_8080);
        pirq.set_irq(2, true);
        bench.config_write(0x62, 1, 0x0b);
        assert!(bench.irq(11));
        bench.config_write(0x60, 4, 0x8085_8080);
        assert!(!bench.irq(11));
    }

    #[test]
    fn cf9_resets_when_bit_2_rises() {
        let (mut bench, _) = rig();
        bench.outb(0xcf9, 2);
        assert!(bench.system_events().is_empty());
        bench.outb(0xcf9, 6);
        bench.outb(0xcf9, 6);
        assert_eq!(bench.system_events(), [SystemEvent::Reset]);
        bench.outb(0xcf9, 0);
        bench.outb(0xcf9, 4);
        assert_eq!(bench.system_events(), [SystemEvent::Init]);
    }

    #[test]
    fn port_92_moves_the_a20_gate_and_pulses_init() {
        let (mut bench, _) = rig();
        bench.outb(0x92, 2);
        bench.outb(0x92, 2);
        bench.outb(0x92, 3);
        bench.outb(0x92, 0);
        let events = bench.system_events();
        assert_eq!(events, [SystemEvent::A20(true), SystemEvent::Init, SystemEvent::A20(false)]);
        assert_eq!(bench.inb(0x92), 0);
    }
}
