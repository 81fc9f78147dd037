//! The standard VGA: a VGA with the Bochs VBE extension as a PCI function, 1234:1111, as QEMU's is.
//!
//! BAR 0 is video memory, BAR 2 holds registers of 8 and 16 bits: the VGA's ports 3C0-3DF from 400 on, DISPI's
//! registers from 500 on, and revision 2's own from 600 on (a size, and the byte order of the frame buffer, which stays
//! little endian). DISPI is also at ports 1CE (index), 1CF and 1D0 (data). The ROM that external firmware runs comes
//! from the configuration. There is no EDID: drivers fall back on a list of modes.
//!
//! Drivers: SeaVGABIOS and the LGPL'd VGABIOS, GRUB, OVMF, Linux's bochs and vesafb, X's vesa, and whatever drives a
//! VGA.

use emu::{BarKind, Class, Device, Display, Model, Param, ParamKind, PciIds, ResetKind, Slot, State, Widths};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::dispi::Dispi;
use super::vga::{ADAPTER, Registers, Vga};

/// The model.
pub static MODEL: Model = Model {
    name: "vga",
    summary: "standard VGA with Bochs VBE (1234:1111)",
    class: Class::Display,
    keys: &[Param { name: "vram", kind: ParamKind::Int(1, 64), default: "16", help: "video memory in MiB" }],
    create: |slot, params| {
        let mib = params.int("vram").unwrap_or(16);
        Ok(Box::new(StdVga::create(slot, mib as u64)?))
    },
};

/// DISPI's ports.
const DISPI_PORTS: u32 = ADAPTER;
/// BAR 2.
const MMIO: u32 = ADAPTER + 1;
const MMIO_LEN: u64 = 4 << 10;

/// Parts of BAR 2.
const MMIO_VGA: u64 = 0x400;
const MMIO_DISPI: u64 = 0x500;
const MMIO_OWN: u64 = 0x600;
/// What the last part holds: its length, and the byte order.
const OWN_LEN: u32 = 8;
const LITTLE_ENDIAN: u32 = 0x1e1e_1e1e;

struct StdVga {
    vga: Vga,
    dispi: Dispi,
}

/// All that is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    vga: Registers,
    dispi: Dispi,
}

impl StdVga {
    fn create(slot: &mut Slot, mib: u64) -> Result<StdVga, String> {
        if !mib.is_power_of_two() {
            return Err(format!("video memory of {mib} MiB is no power of two"));
        }
        slot.pci(PciIds {
            vendor: 0x1234,
            device: 0x1111,
            class: 0x03_0000,
            revision: 2,
            sub_vendor: 0x1af4,
            subsystem: 0x1100,
        })?;
        let vga = Vga::create(slot, mib << 20)?;
        slot.bar_ram(0, BarKind::Mem32Prefetch, vga.vram());
        slot.bar(2, BarKind::Mem32, MMIO_LEN, MMIO, Widths::WORD);
        slot.ports(DISPI_PORTS, 0x1ce, 4, Widths::WORD);
        slot.rom()?;
        Ok(StdVga { vga, dispi: Dispi::default() })
    }

    fn mmio_read(&mut self, offset: u64, width: u8) -> u64 {
        match offset {
            MMIO_VGA..0x420 => {
                let port = 0x3c0 + (offset - MMIO_VGA) as u16;
                (0..u16::from(width)).fold(0, |v, n| v | u64::from(self.vga.port_read(port + n)) << (8 * n))
            }
            MMIO_DISPI..0x516 => {
                let value = self.dispi.read(((offset - MMIO_DISPI) / 2) as u16, &self.vga);
                u64::from(value) >> (8 * (offset & 1))
            }
            MMIO_OWN..0x608 => {
                let value = if offset & 4 == 0 { OWN_LEN } else { LITTLE_ENDIAN };
                u64::from(value >> (8 * (offset & 3)))
            }
            _ => 0,
        }
    }

    fn mmio_write(&mut self, offset: u64, width: u8, value: u64) {
        match offset {
            MMIO_VGA..0x420 => {
                let port = 0x3c0 + (offset - MMIO_VGA) as u16;
                (0..u16::from(width)).for_each(|n| self.vga.port_write(port + n, (value >> (8 * n)) as u8));
            }
            // A register is written whole.
            MMIO_DISPI..0x516 if width == 2 && offset & 1 == 0 => {
                self.dispi.write(((offset - MMIO_DISPI) / 2) as u16, value as u16, &mut self.vga);
            }
            _ => {}
        }
    }
}

impl Device for StdVga {
    fn read(&mut self, region: u32, offset: u64, width: u8) -> u64 {
        match region {
            MMIO => self.mmio_read(offset, width),
            DISPI_PORTS if offset == 0 => self.dispi.index().into(),
            DISPI_PORTS => self.dispi.read(self.dispi.index(), &self.vga).into(),
            _ => self.vga.read(region, offset, width),
        }
    }

    fn write(&mut self, region: u32, offset: u64, width: u8, value: u64) {
        match region {
            MMIO => self.mmio_write(offset, width, value),
            DISPI_PORTS if offset == 0 => self.dispi.select(value as u16),
            DISPI_PORTS => self.dispi.write(self.dispi.index(), value as u16, &mut self.vga),
            _ => self.vga.write(region, offset, width, value),
        }
    }

    fn display(&mut self) -> Option<&mut dyn Display> {
        Some(&mut self.vga)
    }

    fn reset(&mut self, _: ResetKind) {
        self.dispi = Dispi::default();
        self.vga.reset();
    }

    fn state(&mut self) -> &mut dyn State {
        self
    }

    fn restored(&mut self) {
        self.dispi.restored(&mut self.vga);
    }
}

/// By hand: the registers lie in two parts beside what is not state.
impl State for StdVga {
    fn save(&self) -> Value {
        Saved { vga: self.vga.r.clone(), dispi: self.dispi.clone() }.save()
    }

    fn load(&mut self, value: Value) -> Result<(), String> {
        let saved: Saved = serde_json::from_value(value).map_err(|e| e.to_string())?;
        (self.vga.r, self.dispi) = (saved.vga, saved.dispi);
        Ok(())
    }
}
