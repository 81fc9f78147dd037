//! bhyve's frame buffer, FB5D:40FB: memory with a picture in it, and a VGA beside it.
//!
//! Source: bhyve's manual page and what its drivers, the GOP drivers of bhyve's UEFI firmware, do. BAR 0 is 128 bytes
//! of registers (size of the memory; width, height, depth and refresh rate of the mode), which read as they were
//! written, BAR 1 is 32 MiB of memory, 32 bits a pixel without gaps. Width and height are those of the configuration
//! after a reset, by which firmware knows what is wanted. A guest that writes them has its mode, and one that sets both
//! to 0 has the VGA back. There is an MSI capability that nothing uses.
//!
//! `vga=io`, the default, is bhyve's for guests that look for a VGA at its ports. Here there is always memory behind
//! it, too, so that the built-in BIOS and what it boots have a text screen; with `vga=off` there is no VGA at all.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use emu::{
    BarKind, Class, Device, Display, Model, Msi, Param, ParamKind, Params, PciIds, Picture, Ram, RamAddr, RamBlock,
    ResetKind, Slot, State, TextScreen, View, Widths,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::vga::{ADAPTER, Registers, Vga};

/// The model.
pub static MODEL: Model = Model {
    name: "fbuf",
    summary: "bhyve's frame buffer with a VGA (FB5D:40FB)",
    class: Class::Display,
    keys: &[
        Param { name: "w", kind: ParamKind::Int(640, 3840), default: "1024", help: "pixels a line" },
        Param { name: "h", kind: ParamKind::Int(480, 2160), default: "768", help: "lines" },
        Param {
            name: "vga",
            kind: ParamKind::Choice(&["io", "on", "off"]),
            default: "io",
            help: "whether there is a VGA, too; io and on are the same here",
        },
    ],
    create: |slot, params| Ok(Box::new(Fbuf::create(slot, params)?)),
};

const MEMORY: u64 = 32 << 20;
const MOST: (usize, usize) = (3840, 2160);
/// Memory of the VGA.
const VGA_MEMORY: u64 = 256 << 10;

/// BAR 0.
const REGISTERS: u32 = ADAPTER;
const LEN: usize = 128;
/// Offsets of what it holds.
const SIZE: usize = 0;
const WIDTH: usize = 4;
const HEIGHT: usize = 6;
const DEPTH: usize = 8;

struct Fbuf {
    vga: Option<Vga>,
    screen: Screen,
    /// The size of the configuration.
    size: (u16, u16),
    _msi: Msi,
}

/// The frame buffer.
struct Screen {
    registers: Vec<u8>,
    /// It is shown, and not the VGA.
    on: bool,
    ram: Arc<Ram>,
    memory: RamBlock,
}

/// All that is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    vga: Option<Registers>,
    registers: Vec<u8>,
    on: bool,
}

impl Fbuf {
    fn create(slot: &mut Slot, params: &Params) -> Result<Fbuf, String> {
        slot.pci(PciIds {
            vendor: 0xfb5d,
            device: 0x40fb,
            class: 0x03_0000,
            revision: 0,
            sub_vendor: 0,
            subsystem: 0,
        })?;
        let vga = match params.get("vga") {
            Some("off") => None,
            _ => Some(Vga::create(slot, VGA_MEMORY)?),
        };
        let memory = slot.ram("memory", MEMORY)?;
        slot.bar(0, BarKind::Mem32, LEN as u64, REGISTERS, Widths::QWORD);
        slot.bar_ram(1, BarKind::Mem32, &memory);
        let size = |name, usual| params.int(name).and_then(|n| u16::try_from(n).ok()).unwrap_or(usual);
        let screen = Screen { registers: vec![0; LEN], on: false, ram: slot.machine().space.ram().clone(), memory };
        Ok(Fbuf { vga, screen, size: (size("w", 1024), size("h", 768)), _msi: slot.msi(4) })
    }
}

impl Screen {
    fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.registers[at], self.registers[at + 1]])
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.registers[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn size(&self) -> (usize, usize) {
        (usize::from(self.half(WIDTH)).min(MOST.0), usize::from(self.half(HEIGHT)).min(MOST.1))
    }

    /// Reads from the memory; all that can be shown lies in it.
    fn read(&self, at: usize, bytes: &mut [u8]) {
        self.ram.read(RamAddr(self.memory.start.0 + at as u64), bytes);
    }
}

fn pixels(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|p| u32::from_le_bytes(*p) & 0xff_ffff).collect()
}

impl Display for Screen {
    fn text(&self) -> Option<TextScreen> {
        None
    }

    fn picture(&self) -> Picture {
        let (width, height) = self.size();
        let mut bytes = vec![0; width * height * 4];
        self.read(0, &mut bytes);
        Picture { width, height, pixels: pixels(&bytes) }
    }

    fn refresh(&self, view: &mut View) {
        let (width, height) = self.size();
        let mut key = DefaultHasher::new();
        ("fbuf", width).hash(&mut key);
        view.begin(key.finish());
        view.set_size(width, height);
        view.each_line(|view, y| {
            let (at, len) = (4 * width * y, 4 * width);
            let differs = view.differs(at, len, |bytes| self.read(at, bytes));
            if differs {
                let line = pixels(view.bytes(at, len));
                view.put(y, &line);
            }
            differs
        });
    }
}

impl Device for Fbuf {
    fn read(&mut self, region: u32, offset: u64, width: u8) -> u64 {
        let (at, len) = (offset as usize, usize::from(width));
        match &mut self.vga {
            Some(vga) if region < ADAPTER => vga.read(region, offset, width),
            _ => match self.screen.registers.get(at..at + len) {
                Some(bytes) => bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)),
                None => u64::MAX,
            },
        }
    }

    fn write(&mut self, region: u32, offset: u64, width: u8, value: u64) {
        let (at, len) = (offset as usize, usize::from(width));
        if region < ADAPTER {
            return self.vga.iter_mut().for_each(|vga| vga.write(region, offset, width, value));
        }
        if at + len > LEN {
            return;
        }
        self.screen.set(at, &value.to_le_bytes()[..len]);
        match (self.screen.half(WIDTH), self.screen.half(HEIGHT)) {
            (0, 0) => self.screen.on = self.vga.is_none(),
            (0, _) | (_, 0) => {}
            _ => self.screen.on = true,
        }
    }

    fn display(&mut self) -> Option<&mut dyn Display> {
        match &mut self.vga {
            Some(vga) if !self.screen.on => Some(vga),
            _ => Some(&mut self.screen),
        }
    }

    fn reset(&mut self, _: ResetKind) {
        self.vga.iter_mut().for_each(Vga::reset);
        self.screen.registers.fill(0);
        self.screen.set(SIZE, &(MEMORY as u32).to_le_bytes());
        self.screen.set(WIDTH, &self.size.0.to_le_bytes());
        self.screen.set(HEIGHT, &self.size.1.to_le_bytes());
        self.screen.set(DEPTH, &32u16.to_le_bytes());
        self.screen.on = self.vga.is_none();
    }

    fn state(&mut self) -> &mut dyn State {
        self
    }

    fn restored(&mut self) {
        self.vga.iter_mut().for_each(Vga::restored);
    }
}

/// By hand: the registers lie beside what is not state.
impl State for Fbuf {
    fn save(&self) -> Value {
        let Screen { registers, on, .. } = &self.screen;
        Saved { vga: self.vga.as_ref().map(|vga| vga.r.clone()), registers: registers.clone(), on: *on }.save()
    }

    fn load(&mut self, value: Value) -> Result<(), String> {
        let saved: Saved = serde_json::from_value(value).map_err(|e| e.to_string())?;
        if saved.registers.len() != LEN {
            return Err("its registers are of another length".to_owned());
        }
        match (&mut self.vga, saved.vga) {
            (Some(vga), Some(registers)) => vga.r = registers,
            (None, None) => {}
            _ => return Err("one of them has no VGA".to_owned()),
        }
        (self.screen.registers, self.screen.on) = (saved.registers, saved.on || self.vga.is_none());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::bench::Bench;
    use emu::{Backends, DeviceCell, DeviceState};

    const REGS: u64 = 0xfebf_0000;
    const FRAMES: u64 = 0xe000_0000;

    fn rig(params: &[(&str, &str)]) -> (Bench, Arc<DeviceCell>) {
        let b = Bench::new();
        let cell = b.plug(&MODEL, &Params::new(params.iter().copied()), Backends::default());
        b.machine.reset(ResetKind::PowerOn);
        b.config_write(0x10, 4, REGS as u32);
        b.config_write(0x14, 4, FRAMES as u32);
        b.config_write(4, 2, 3);
        (b, cell)
    }

    fn picture(cell: &DeviceCell) -> Picture {
        cell.with(|d| d.display().unwrap().picture()).unwrap()
    }

    #[test]
    fn firmware_finds_the_wanted_size_sets_a_mode_and_gives_it_back() {
        let (mut b, cell) = rig(&[("w", "800"), ("h", "600")]);
        assert_eq!(b.config_read(0, 4), 0x40fb_fb5d);
        assert_eq!(b.bus.read(REGS, 4), MEMORY);
        assert_eq!(b.bus.read(REGS + 4, 8), 32 << 32 | 600 << 16 | 800);
        assert_eq!(picture(&cell), Picture::default(), "the VGA, which nobody has set up");
        b.bus.write(REGS + 4, 2, 640);
        b.bus.write(REGS + 6, 2, 480);
        b.bus.write(FRAMES + 4 * (640 * 479 + 639), 4, 0xff12_3456);
        let shown = picture(&cell);
        assert_eq!((shown.width, shown.height, shown.pixels[640 * 480 - 1]), (640, 480, 0x12_3456));
        let mut view = View::default();
        cell.with(|d| d.display().unwrap().refresh(&mut view)).unwrap();
        assert_eq!(*view.picture(), shown);
        view.take_changes();
        b.bus.write(FRAMES + 4 * 17, 4, 0xff);
        cell.with(|d| d.display().unwrap().refresh(&mut view)).unwrap();
        let changed = view.take_changes();
        assert!(changed.has(1, 0) && !changed.has(0, 0) && !changed.has(39, 29));
        b.bus.write(REGS + 4, 4, 0);
        assert_eq!(picture(&cell), Picture::default());
    }

    #[test]
    fn absurd_sizes_stay_within_memory_and_without_a_vga_it_is_always_shown() {
        let (mut b, cell) = rig(&[("vga", "off")]);
        assert_eq!((picture(&cell).width, picture(&cell).height), (1024, 768));
        assert_eq!(b.inb(0x3cc), 0xff, "no VGA");
        b.bus.write(REGS + 4, 4, u64::from(u32::MAX));
        assert_eq!((picture(&cell).width, picture(&cell).height), MOST);
        b.bus.write(REGS + 4, 4, 0);
        assert_eq!(picture(&cell), Picture::default());
        b.bus.write(REGS + 0x7c, 8, 1);
        let saved = cell.save();
        b.machine.reset(ResetKind::System);
        cell.load(saved).unwrap();
        assert_eq!(b.bus.read(REGS + 4, 4), 0);
    }
}
