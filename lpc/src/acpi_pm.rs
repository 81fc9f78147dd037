//! ACPI fixed hardware as the power management function of the 82371AB (PIIX4) has it: PM1 event and control, the PM
//! timer, one general-purpose event block, the SMI command port.
//!
//! Datasheet: 82371AB (290562), chapter 7; ACPI 1.0b, chapter 4. On boards with the PIIX4 function (8086:7113) the
//! guest or its firmware moves the block by PMBA and switches it on by PMREGMISC; elsewhere it lies where the board
//! puts it. The PM timer is 24 bits wide (32 on bhyve's board) at 3.579545 MHz. SLP_EN with the S5 type powers off;
//! other sleep types are not offered and do nothing. SMM is not offered: a write to the command port acts at once, and
//! APMC_EN (DEVACTB bit 25) reads 1 so that firmware leaves SMM alone. The SMBus and the idle timers of the chip are
//! registers that hold what is written.

use std::sync::Arc;

use emu::{Device, Event, IrqLine, PciFunction, PciIds, Region, ResetKind, Slot, State, SystemEvent, Timer, Widths};
use serde::{Deserialize, Serialize};

use crate::lpc_bhyve;

/// PM timer counts a second.
const HZ: u64 = 3_579_545;
const NS: u64 = 1_000_000_000;

/// Writing this to the command port gives the SCI to the operating system.
pub const ACPI_ENABLE: u8 = 0xf1;
/// Writing this takes it back.
pub const ACPI_DISABLE: u8 = 0xf0;

/// What boards do differently.
#[derive(Clone, Copy)]
struct Layout {
    /// Bytes of the block.
    len: u32,
    /// Width of the PM timer.
    timer_bits: u32,
    /// General-purpose status and enable are bytes side by side, not words.
    byte_gpe: bool,
    /// The sleep type that powers off.
    s5: u16,
    /// What the command port takes as [`ACPI_ENABLE`] and [`ACPI_DISABLE`].
    commands: [u8; 2],
}

const PIIX4: Layout =
    Layout { len: LEN, timer_bits: 24, byte_gpe: false, s5: 0, commands: [ACPI_ENABLE, ACPI_DISABLE] };
const BHYVE: Layout = Layout {
    len: 0x10,
    timer_bits: 32,
    byte_gpe: true,
    s5: lpc_bhyve::PM_S5,
    commands: [lpc_bhyve::ACPI_ENABLE, lpc_bhyve::ACPI_DISABLE],
};

const STS_TMR: u16 = 1;
const STS_PWRBTN: u16 = 1 << 8;
const CNT_SCI_EN: u16 = 1;
const CNT_SLP_EN: u16 = 1 << 13;

const BLOCK: u32 = 0;
const APM: u32 = 1;
/// Bytes of the PIIX4's block.
const LEN: u32 = 0x40;

const PMBA: usize = 0x40;
const DEVACTB: usize = 0x58;
const PMREGMISC: usize = 0x80;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Regs {
    sts: u16,
    en: u16,
    cnt: u16,
    gpe_sts: u16,
    gpe_en: u16,
    /// The rest of the block, which holds what is written.
    other: Vec<u8>,
    apmc: u8,
    apms: u8,
}

/// The power management block.
pub struct AcpiPm {
    regs: Regs,
    layout: Layout,
    function: Option<Arc<PciFunction>>,
    block: Region,
    sci: Arc<IrqLine>,
    overflow: Arc<Timer>,
    power_off: Box<dyn Fn() + Send>,
}

impl AcpiPm {
    /// The PIIX4's block at `base`, with the SCI on ISA interrupt 9; as PCI function 8086:7113 if `pci`, then `base`
    /// is what the firmware programs.
    ///
    /// # Errors
    /// When the slot is taken.
    pub fn create(slot: &mut Slot, base: u16, pci: bool) -> Result<Box<dyn Device>, String> {
        let function = if pci {
            let ids = PciIds { vendor: 0x8086, device: 0x7113, class: 0x06_8000, revision: 3, ..PciIds::default() };
            let f = slot.pci(ids)?;
            f.config(|c| {
                c.set16(0x06, 0x0280);
                c.set8(0x3d, 1);
                c.set32(PMBA, 1);
                c.writable(PMBA, &[0xc0, 0xff]);
                c.writable(0x44, &[0xff; 0x14]);
                c.writable(DEVACTB, &[0xff, 0xff, 0xff, 0xfd]);
                c.set32(DEVACTB, 1 << 25);
                c.writable(0x5c, &[0xff; 0x1c]);
                c.writable(PMREGMISC, &[1]);
                c.set32(0x90, 1);
                c.writable(0x90, &[0xf0, 0xff]);
                c.writable(0xd2, &[0xff; 4]);
            });
            Some(f)
        } else {
            None
        };
        let pm = AcpiPm::build(slot, PIIX4, function);
        if !pci {
            pm.block.enable(u64::from(base));
        }
        Ok(Box::new(pm))
    }

    /// The block as bhyve's board has it: at [`lpc_bhyve::PM_BASE`], SCI on ISA interrupt 9, a 32-bit timer.
    pub fn create_bhyve(slot: &mut Slot) -> Box<dyn Device> {
        let pm = AcpiPm::build(slot, BHYVE, None);
        pm.block.enable(u64::from(lpc_bhyve::PM_BASE));
        Box::new(pm)
    }

    fn build(slot: &mut Slot, layout: Layout, function: Option<Arc<PciFunction>>) -> AcpiPm {
        let block = slot.ports_off(BLOCK, layout.len, Widths::DWORD);
        slot.ports(APM, 0xb2, 2, Widths::BYTE);
        let machine = Arc::downgrade(slot.machine());
        let power_off = Box::new(move || {
            if let Some(m) = machine.upgrade() {
                m.request(SystemEvent::PowerOff);
            }
        });
        let (sci, overflow) = (slot.isa_irq(9), slot.timer(0));
        let regs = Regs { other: vec![0; LEN as usize], ..Regs::default() };
        AcpiPm { regs, layout, function, block, sci, overflow, power_off }
    }

    /// Counts since power-on.
    fn total(&self) -> u128 {
        u128::from(self.overflow.now()) * u128::from(HZ) / u128::from(NS)
    }

    /// What the timer shows.
    fn count(&self) -> u32 {
        self.total() as u32 & (u32::MAX >> (32 - self.layout.timer_bits))
    }

    /// The SCI from status and enables, and the timer for the next change of the count's top bit, if anybody wants it.
    fn update(&mut self) {
        let gpe = self.regs.gpe_sts & self.regs.gpe_en != 0;
        let pm1 = self.regs.sts & self.regs.en & 0x0521 != 0;
        self.sci.set(self.regs.cnt & CNT_SCI_EN != 0 && (pm1 || gpe));
        if self.regs.en & STS_TMR == 0 {
            self.overflow.cancel();
            return;
        }
        let top = self.layout.timer_bits - 1;
        let next = ((self.total() >> top) + 1) << top;
        self.overflow.set((next * u128::from(NS)).div_ceil(u128::from(HZ)) as u64);
    }

    fn apply_config(&mut self) {
        let Some(f) = &self.function else { return };
        let (base, on) = f.config(|c| (c.get32(PMBA) & 0xffc0, c.get8(PMREGMISC) & 1 != 0));
        if on && base != 0 { self.block.enable(u64::from(base)) } else { self.block.disable() }
    }

    fn read16(&self, offset: u64) -> u16 {
        match offset {
            0x00 => self.regs.sts,
            0x02 => self.regs.en,
            0x04 => self.regs.cnt,
            0x08 => self.count() as u16,
            0x0a => (self.count() >> 16) as u16,
            0x0c if self.layout.byte_gpe => self.regs.gpe_sts & 0xff | self.regs.gpe_en << 8,
            0x0c => self.regs.gpe_sts,
            0x0e if !self.layout.byte_gpe => self.regs.gpe_en,
            _ => {
                let at = offset as usize & 0x3e;
                u16::from_le_bytes([self.regs.other[at], self.regs.other[at + 1]])
            }
        }
    }

    /// Writes the bytes of `mask` (00FF, FF00 or FFFF) of a word.
    fn write16(&mut self, offset: u64, value: u16, mask: u16) {
        let merge = |old: u16| old & !mask | value & mask;
        match offset {
            0x00 => self.regs.sts &= !(value & mask),
            0x02 => self.regs.en = merge(self.regs.en) & 0x0521,
            0x04 => {
                self.regs.cnt = merge(self.regs.cnt) & !CNT_SLP_EN;
                if value & mask & CNT_SLP_EN != 0 && self.regs.cnt >> 10 & 7 == self.layout.s5 {
                    (self.power_off)();
                }
            }
            0x08 | 0x0a => {}
            0x0c if self.layout.byte_gpe => {
                self.regs.gpe_sts &= !(value & mask & 0xff);
                self.regs.gpe_en = merge(self.regs.gpe_en << 8) >> 8;
            }
            0x0c => self.regs.gpe_sts &= !(value & mask),
            0x0e if !self.layout.byte_gpe => self.regs.gpe_en = merge(self.regs.gpe_en),
            _ => {
                let at = offset as usize & 0x3e;
                let word = merge(u16::from_le_bytes([self.regs.other[at], self.regs.other[at + 1]]));
                self.regs.other[at..at + 2].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
}

impl Device for AcpiPm {
    fn read(&mut self, region: u32, offset: u64, width: u8) -> u64 {
        if region == APM {
            return u64::from(if offset == 0 { self.regs.apmc } else { self.regs.apms });
        }
        let first = offset & !1;
        if offset & 3 == 0 && width == 4 && offset == 8 {
            return u64::from(self.count());
        }
        let low = u64::from(self.read16(first));
        let high = if first + 2 < u64::from(LEN) { u64::from(self.read16(first + 2)) } else { 0 };
        (low | high << 16) >> (8 * (offset & 1))
    }

    fn write(&mut self, region: u32, offset: u64, width: u8, value: u64) {
        if region == APM {
            if offset == 0 {
                self.regs.apmc = value as u8;
                if value as u8 == self.layout.commands[0] {
                    self.regs.cnt |= CNT_SCI_EN;
                } else if value as u8 == self.layout.commands[1] {
                    self.regs.cnt &= !CNT_SCI_EN;
                }
            } else {
                self.regs.apms = value as u8;
            }
        } else {
            let shift = 8 * (offset & 1);
            let (value, mask) = (value << shift, (u64::MAX >> (64 - 8 * u32::from(width))) << shift);
            for n in 0..3 {
                let (v, m) = ((value >> (16 * n)) as u16, (mask >> (16 * n)) as u16);
                if m != 0 && (offset & !1) + 2 * n < u64::from(LEN) {
                    self.write16((offset & !1) + 2 * n, v, m);
                }
            }
        }
        self.update();
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Timer(_) => self.regs.sts |= STS_TMR,
            Event::PowerButton => self.regs.sts |= STS_PWRBTN,
            _ => return,
        }
        self.update();
    }

    fn config_write(&mut self, _offset: u16, _width: u8) {
        self.apply_config();
    }

    fn reset(&mut self, _: ResetKind) {
        self.regs = Regs { other: vec![0; LEN as usize], ..Regs::default() };
        self.apply_config();
        self.update();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.regs
    }

    fn restored(&mut self) {
        self.regs.other.resize(LEN as usize, 0);
        self.apply_config();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::DeviceCell;
    use emu::bench::Bench;

    const BASE: u16 = 0xb000;

    fn rig() -> (Bench, Arc<DeviceCell>) {
        let bench = Bench::new();
        let cell = bench.part(|slot| AcpiPm::create(slot, BASE, true).unwrap());
        bench.config_write(0x40, 4, u32::from(BASE) | 1);
        bench.config_write(0x80, 1, 1);
        (bench, cell)
    }

    #[test]
    fn the_block_follows_its_base_register_and_enable() {
        let (mut b, _) = rig();
        b.bus.pio_write(BASE + 2, 2, 0x0101);
        assert_eq!(b.bus.pio_read(BASE + 2, 2), 0x0101);
        b.config_write(0x40, 4, 0x601);
        assert_eq!(b.bus.pio_read(BASE + 2, 2), 0xffff);
        assert_eq!(b.bus.pio_read(0x602, 2), 0x0101);
        assert_eq!(b.bus.pio_read(0x600, 4), 0x0101_0000);
        b.config_write(0x80, 1, 0);
        assert_eq!(b.bus.pio_read(0x602, 2), 0xffff);
    }

    #[test]
    fn the_power_button_interrupts_in_acpi_mode_until_its_status_is_cleared() {
        let (mut b, cell) = rig();
        b.bus.pio_write(BASE + 2, 2, 0x100);
        cell.event(Event::PowerButton);
        assert!(!b.irq(9), "without SCI_EN it would be an SMI");
        b.outb(0xb2, ACPI_ENABLE);
        assert_eq!(b.bus.pio_read(BASE + 4, 2) & 1, 1);
        assert!(b.irq(9));
        b.bus.pio_write(BASE, 1, 0xff);
        assert!(b.irq(9), "the low byte is another register's");
        b.bus.pio_write(BASE + 1, 1, 0x01);
        assert!(!b.irq(9));
    }

    #[test]
    fn sleep_type_0_powers_off_and_others_do_nothing() {
        let (mut b, _) = rig();
        b.bus.pio_write(BASE + 4, 2, 1 << 13 | 1 << 10);
        assert!(b.system_events().is_empty());
        b.bus.pio_write(BASE + 4, 2, 1 << 13 | 1);
        assert_eq!(b.system_events(), [SystemEvent::PowerOff]);
        assert_eq!(b.bus.pio_read(BASE + 4, 2), 1, "SLP_EN reads 0");
    }

    #[test]
    fn the_timer_counts_24_bits_at_its_rate_without_drift() {
        let (mut b, _) = rig();
        b.advance(NS);
        assert_eq!(b.bus.pio_read(BASE + 8, 4), 3_579_545);
        b.advance(599 * NS);
        assert_eq!(u64::from(b.bus.pio_read(BASE + 8, 4)), 600 * HZ & 0xff_ffff);
    }

    #[test]
    fn a_carry_of_bit_23_sets_the_timer_status() {
        let (mut b, _) = rig();
        b.outb(0xb2, ACPI_ENABLE);
        b.bus.pio_write(BASE + 2, 2, 1);
        b.advance(2 * NS);
        assert!(!b.irq(9));
        b.advance(NS / 2);
        assert!(b.irq(9));
        b.bus.pio_write(BASE, 2, 1);
        assert!(!b.irq(9));
        b.advance(2 * NS + NS / 2);
        assert!(b.irq(9));
    }
    #[test]
    fn bhyves_board_has_its_own_addresses_commands_and_sleep_type() {
        let mut b = Bench::new();
        let cell = b.part(AcpiPm::create_bhyve);
        b.bus.pio_write(0x402, 2, 0x100);
        cell.event(Event::PowerButton);
        b.outb(0xb2, ACPI_ENABLE);
        assert!(!b.irq(9));
        b.outb(0xb2, lpc_bhyve::ACPI_ENABLE);
        assert!(b.irq(9));
        b.bus.pio_write(0x40c, 2, 0x5500);
        assert_eq!((b.inb(0x40c), b.inb(0x40d)), (0, 0x55));
        b.bus.pio_write(0x404, 2, 1 << 13);
        assert!(b.system_events().is_empty());
        b.bus.pio_write(0x404, 2, 1 << 13 | 5 << 10);
        assert_eq!(b.system_events(), [SystemEvent::PowerOff]);
        b.advance(10 * NS);
        assert_eq!(b.bus.pio_read(0x408, 4), 35_795_450, "more than 24 bits");
        assert_eq!(b.bus.pio_read(0x410, 1), 0xff);
    }
}
