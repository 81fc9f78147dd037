//! Intel 82441FX (440FX) and 82443BX (440BX) host bridges, and PCI configuration mechanism 1.
//!
//! Datasheets: 82441FX (290549), 82443BX (290633). What guests and firmware use: CF8 and CFC, the programmable
//! attribute map that shadows C0000-FFFFF (PAM0-6 at 59-5F), and registers that BIOSes store into (DRB, FDHC, SMRAM:
//! SMM is not offered, so SMRAM only holds what is written). Byte and word accesses to CF8-CFB belong to whoever sits
//! there (CF9 is the south bridge's) and never disturb the address; a probe for mechanism 2 finds nothing, since CF8 as
//! a byte reads ones. AGP is not modelled: Hyper-V's 440BX shows 7192, the id with AGP disabled, and drivers stay away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use emu::{
    Access, Backing, Bdf, Device, DeviceState, Machine, PciBus, PciFunction, PciIds, RamAddr, Region, ResetKind,
    Rights, Saved, Slot, State, Widths,
};
/// Which of the bridges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostBridge {
    /// 82441FX, 8086:1237.
    I440fx,
    /// 82443BX with AGP disabled, 8086:7192.
    I440bx,
}

/// PCI configuration mechanism 1 (PCI 3.0, 3.2.2.3.2): a leaf, since a configuration write calls the device it is for.
pub struct Mechanism1 {
    bus: Arc<PciBus>,
    address: AtomicU32,
}

impl Mechanism1 {
    /// Puts it at CF8 to CFF.
    pub fn new(machine: &Machine) -> Arc<Mechanism1> {
        let chip = Arc::new(Mechanism1 { bus: machine.pci.clone(), address: AtomicU32::new(0) });
        for (region, base) in [(0, 0xcf8), (1, 0xcfc)] {
            let id = machine.space.add_ports(base, 4, 0, chip.clone(), region, Widths::DWORD);
            machine.space.enable_ports(id, base, true);
        }
        machine.add_part(chip.clone());
        chip
    }

    /// The function and register that the address names, if it is enabled.
    fn target(&self, offset: u64) -> Option<(Bdf, u16)> {
        let a = self.address.load(Ordering::Relaxed);
        let bdf = Bdf { bus: (a >> 16) as u8, dev: (a >> 11) as u8 & 31, func: (a >> 8) as u8 & 7 };
        (a >> 31 != 0).then_some((bdf, (a & 0xfc) as u16 + offset as u16))
    }
}

impl Access for Mechanism1 {
    fn owner(&self) -> &str {
        self.name()
    }

    fn read(&self, region: u32, offset: u64, width: u8) -> u64 {
        if region == 0 {
            return if width == 4 { u64::from(self.address.load(Ordering::Relaxed)) } else { u64::MAX };
        }
        self.target(offset).map_or(u64::MAX, |(bdf, reg)| u64::from(self.bus.read(bdf, reg, width)))
    }

    fn write(&self, region: u32, offset: u64, width: u8, value: u64) {
        if region == 0 {
            if width == 4 {
                self.address.store(value as u32 & 0x80ff_fffc, Ordering::Relaxed);
            }
        } else if let Some((bdf, reg)) = self.target(offset) {
            self.bus.write(bdf, reg, width, value as u32);
        }
    }
}

impl DeviceState for Mechanism1 {
    fn name(&self) -> &str {
        "pci-config"
    }

    fn reset(&self, _: ResetKind) {
        self.address.store(0, Ordering::Relaxed);
    }

    fn save(&self) -> Saved {
        Saved { version: 1, state: self.address.load(Ordering::Relaxed).into(), ..Saved::default() }
    }

    fn load(&self, saved: Saved) -> Result<(), String> {
        let address = saved.state.as_u64().ok_or("no address")?;
        self.address.store(address as u32, Ordering::Relaxed);
        Ok(())
    }
}

const PAM0: usize = 0x59;
const DRB0: usize = 0x60;
const SMRAM: usize = 0x72;

/// The thirteen shadowed areas: base, length, PAM register, and whether its high nibble governs.
const AREAS: [(u64, u64, usize, bool); 13] = [
    (0xf_0000, 0x1_0000, 0, true),
    (0xc_0000, 0x4000, 1, false),
    (0xc_4000, 0x4000, 1, true),
    (0xc_8000, 0x4000, 2, false),
    (0xc_c000, 0x4000, 2, true),
    (0xd_0000, 0x4000, 3, false),
    (0xd_4000, 0x4000, 3, true),
    (0xd_8000, 0x4000, 4, false),
    (0xd_c000, 0x4000, 4, true),
    (0xe_0000, 0x4000, 5, false),
    (0xe_4000, 0x4000, 5, true),
    (0xe_8000, 0x4000, 6, false),
    (0xe_c000, 0x4000, 6, true),
];

/// A host bridge.
pub struct I440 {
    /// All registers lie in configuration space.
    state: (),
    function: Arc<PciFunction>,
    areas: Vec<Region>,
    ram: RamAddr,
}

impl I440 {
    /// The bridge of a machine whose RAM from address 0 on lies at `ram`, at least 1 MiB of it.
    ///
    /// # Errors
    /// When the slot is taken.
    pub fn create(slot: &mut Slot, kind: HostBridge, ram: RamAddr) -> Result<Box<dyn Device>, String> {
        let (device, revision) = if kind == HostBridge::I440fx { (0x1237, 2) } else { (0x7192, 3) };
        let ids = PciIds { vendor: 0x8086, device, class: 0x06_0000, revision, ..PciIds::default() };
        let function = slot.pci(ids)?;
        function.config(|c| {
            c.set16(0x04, 0x0006);
            c.set16(0x06, 0x0280);
            c.writable(0x04, &[0x40, 0x01]);
            // What BIOSes program and nobody acts on: PMCCFG to FDHC, except PAM.
            c.writable(0x50, &[0xff; 9]);
            c.writable(PAM0, &[0x33; 7]);
            c.set8(PAM0, 0);
            c.writable(PAM0, &[0x30]);
            c.writable(DRB0, &[0xff; 9]);
            c.set8(SMRAM, 0x02);
            c.writable(SMRAM, &[0x7f, 0xff]);
            c.writable(0x80, &[0xff; 0x70]);
            for row in 0..8 {
                c.set8(DRB0 + row, 1);
            }
        });
        let areas = AREAS
            .iter()
            .map(|(base, len, ..)| {
                let backing = Backing::Ram(RamAddr(ram.0 + base));
                slot.window(*len, 3, Rights::ReadWrite, backing)
            })
            .collect();
        Ok(Box::new(I440 { state: (), function, areas, ram }))
    }

    /// Lays the shadowed areas out as PAM says.
    fn apply(&mut self) {
        let pam: [u8; 7] = self.function.config(|c| std::array::from_fn(|n| c.get8(PAM0 + n)));
        for (area, (base, _, n, high)) in self.areas.iter().zip(AREAS) {
            let rights = match pam[n] >> if high { 4 } else { 0 } & 3 {
                0 => {
                    area.disable();
                    continue;
                }
                1 => Rights::Read,
                2 => Rights::Write,
                _ => Rights::ReadWrite,
            };
            area.set_backing(rights, Backing::Ram(RamAddr(self.ram.0 + base)));
            area.enable(base);
        }
    }
}

impl Device for I440 {
    fn config_write(&mut self, offset: u16, width: u8) {
        let (first, last) = (offset as usize, offset as usize + width as usize);
        if first < PAM0 + 7 && last > PAM0 {
            self.apply();
        }
    }

    fn reset(&mut self, _: ResetKind) {
        self.apply();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.state
    }

    fn restored(&mut self) {
        self.apply();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::bench::Bench;

    fn rig() -> Bench {
        let bench = Bench::new();
        Mechanism1::new(&bench.machine);
        let ram = bench.machine.space.ram().blocks()[0].start;
        // Below the shadow: nothing, as on a bus without a ROM.
        let hole = bench.machine.space.add_memory(0, 0x4_0000, 1, Rights::ReadWrite, Backing::Nothing);
        bench.machine.space.enable(hole, 0xc_0000, true);
        bench
            .machine
            .plug_with("host", Some(Bdf::new(0, 0)), Default::default(), |s| I440::create(s, HostBridge::I440fx, ram))
            .unwrap();
        bench
    }

    fn config(b: &mut Bench, reg: u8) {
        b.bus.pio_write(0xcf8, 4, 0x8000_0000 | u32::from(reg & 0xfc));
    }

    #[test]
    fn narrow_accesses_to_cf8_neither_disturb_nor_answer() {
        let mut b = rig();
        config(&mut b, 0);
        b.bus.pio_write(0xcf8, 1, 0);
        b.bus.pio_write(0xcfa, 1, 0);
        b.bus.pio_write(0xcf8, 2, 0);
        assert_eq!(b.bus.pio_read(0xcf8, 1), 0xff, "the probe for mechanism 2 finds none");
        assert_eq!(b.bus.pio_read(0xcf8, 4), 0x8000_0000);
        assert_eq!(b.bus.pio_read(0xcfc, 4), 0x1237_8086);
        assert_eq!(b.bus.pio_read(0xcfe, 2), 0x1237);
        assert_eq!(b.bus.pio_read(0xcff, 1), 0x12);
    }

    #[test]
    fn absent_functions_and_a_disabled_address_read_ones() {
        let mut b = rig();
        b.bus.pio_write(0xcf8, 4, 0x8000_0800);
        assert_eq!(b.bus.pio_read(0xcfc, 4), u32::MAX);
        b.bus.pio_write(0xcf8, 4, 0);
        assert_eq!(b.bus.pio_read(0xcfc, 4), u32::MAX);
    }

    #[test]
    fn pam_sends_reads_and_writes_where_its_bits_say() {
        let mut b = rig();
        b.bus.write(0xe_4000, 1, 0x55);
        assert_eq!(b.bus.read(0xe_4000, 1), 0xff, "off: nobody there");
        config(&mut b, 0x5c);
        b.bus.pio_write(0xcfe, 1, 0x20);
        b.bus.write(0xe_4000, 1, 0x66);
        assert_eq!(b.bus.read(0xe_4000, 1), 0xff, "write only");
        b.bus.pio_write(0xcfe, 1, 0x10);
        b.bus.write(0xe_4000, 1, 0x77);
        assert_eq!(b.bus.read(0xe_4000, 1), 0x66, "read only");
        b.bus.pio_write(0xcfe, 1, 0x30);
        b.bus.write(0xe_4000, 1, 0x88);
        assert_eq!(b.bus.read(0xe_4000, 1), 0x88);
        assert_eq!(b.bus.read(0xe_8000, 1), 0xff, "its neighbour is still off");
        b.bus.pio_write(0xcfc, 4, 0);
        assert_eq!(b.bus.pio_read(0xcfe, 1), 0);
    }

    #[test]
    fn reset_uncovers_what_lies_below_the_shadow() {
        let mut b = rig();
        for part in b.machine.parts() {
            part.reset(ResetKind::PowerOn);
        }
        config(&mut b, 0x58);
        b.bus.pio_write(0xcfd, 1, 0x30);
        b.bus.write(0xf_0000, 4, 0x1234_5678);
        assert_eq!(b.bus.read(0xf_0000, 4), 0x1234_5678);
        for part in b.machine.parts() {
            part.reset(ResetKind::System);
        }
        assert_eq!(b.bus.read(0xf_0000, 4), 0xffff_ffff);
    }
}
