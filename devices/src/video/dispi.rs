//! The display interface of the Bochs VBE adapter (DISPI), version B0C5: modes set by a few registers.
//!
//! Source: the interface description that comes with Bochs (VBE display API), and its drivers: SeaVGABIOS, GRUB's
//! video_bochs, Linux's bochs. An index and a data register of 16 bits; resolutions up to what video memory holds, 4,
//! 8, 15, 16, 24 and 32 bits a pixel, a virtual screen that can be panned, and a bank at A0000 for who has no linear
//! frame buffer. While it is enabled the VGA's own modes rest, but its DAC and, for 4 bits a pixel, its planes are in
//! use.

use serde::{Deserialize, Serialize};

use super::vga::Vga;

/// Registers.
const ID: usize = 0;
const XRES: usize = 1;
const YRES: usize = 2;
const BPP: usize = 3;
const ENABLE: usize = 4;
const BANK: usize = 5;
const VIRT_WIDTH: usize = 6;
const VIRT_HEIGHT: usize = 7;
const X_OFFSET: usize = 8;
const Y_OFFSET: usize = 9;
/// Size of video memory in 64 KiB.
const MEMORY: usize = 10;

const ENABLED: u16 = 0x01;
/// XRES, YRES and BPP read as their greatest values.
const GET_CAPS: u16 = 0x02;
const DAC_8BIT: u16 = 0x20;
const NO_CLEAR: u16 = 0x80;

/// The lowest and the highest version.
const VERSIONS: std::ops::RangeInclusive<u16> = 0xb0c0..=0xb0c5;
const MAX_X: u16 = 4096;
const MAX_Y: u16 = 4096;
const MAX_BPP: u16 = 32;

/// A mode in which pixels lie one after the other, or in planes of more than 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Linear {
    /// Pixels a line.
    pub width: u16,
    /// Lines.
    pub height: u16,
    /// Bits a pixel: 4 (planar), 8, 15, 16, 24 or 32.
    pub bpp: u8,
    /// Bytes from one line to the next; in each plane if it is planar.
    pub pitch: u32,
    /// Offset of the first pixel's byte; in each plane if it is planar.
    pub start: u32,
    /// Offset of what is at A0000; in each plane if it is planar.
    pub bank: u32,
}

impl Linear {
    /// A pixel's bits lie in the four planes.
    pub fn planar(self) -> bool {
        self.bpp == 4
    }

    /// Bytes a pixel of those that lie one after the other.
    pub fn pixel_bytes(self) -> usize {
        usize::from(self.bpp).div_ceil(8)
    }

    /// Offset of line `y`.
    pub fn line(self, y: u16) -> u32 {
        self.start.wrapping_add(u32::from(y).wrapping_mul(self.pitch))
    }
}

/// The registers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dispi {
    index: u16,
    regs: [u16; MEMORY],
}

impl Default for Dispi {
    fn default() -> Dispi {
        let mut regs = [0; MEMORY];
        regs[ID] = *VERSIONS.end();
        Dispi { index: 0, regs }
    }
}

impl Dispi {
    /// The index register.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Sets it.
    pub fn select(&mut self, index: u16) {
        self.index = index;
    }

    /// Register `n`.
    pub fn read(&self, n: u16, vga: &Vga) -> u16 {
        let n = usize::from(n);
        if self.regs[ENABLE] & GET_CAPS != 0 {
            match n {
                XRES => return MAX_X,
                YRES => return MAX_Y,
                BPP => return MAX_BPP,
                _ => {}
            }
        }
        match n {
            MEMORY => (vga.vram_len() >> 16) as u16,
            VIRT_HEIGHT if self.enabled() => self.virtual_height(vga),
            _ => self.regs.get(n).copied().unwrap_or(0),
        }
    }

    /// Writes register `n`.
    pub fn write(&mut self, n: u16, value: u16, vga: &mut Vga) {
        let n = usize::from(n);
        match n {
            ID if VERSIONS.contains(&value) => self.regs[ID] = value,
            // A mode that is in force does not change under its user.
            XRES | YRES | BPP if !self.enabled() => self.regs[n] = value,
            ENABLE => return self.enable(value, vga),
            BANK | VIRT_WIDTH | X_OFFSET | Y_OFFSET => self.regs[n] = value,
            _ => return,
        }
        if self.enabled() {
            self.apply(vga);
        }
    }

    fn enabled(&self) -> bool {
        self.regs[ENABLE] & ENABLED != 0
    }

    fn enable(&mut self, value: u16, vga: &mut Vga) {
        let was = self.enabled();
        self.regs[ENABLE] = value;
        let wide = value & DAC_8BIT != 0;
        if vga.r.dac_wide != wide {
            vga.r.dac_wide = wide;
            // Colours look as before.
            let fit = |c: u8| if wide { c << 2 | c >> 4 } else { c >> 2 };
            vga.r.dac.as_flattened_mut().as_flattened_mut().iter_mut().for_each(|c| *c = fit(*c));
        }
        if self.enabled() && !was {
            [BANK, VIRT_WIDTH, X_OFFSET, Y_OFFSET].into_iter().for_each(|n| self.regs[n] = 0);
            self.apply(vga);
            if value & NO_CLEAR == 0 {
                vga.clear(self.mode(vga));
            }
        } else if was && !self.enabled() {
            self.apply(vga);
        }
    }

    /// Bits a pixel in memory.
    fn stored(&self) -> u32 {
        match self.regs[BPP] {
            15 => 16,
            n => u32::from(n),
        }
    }

    /// Makes the registers a mode that is possible.
    fn fit(&mut self, vga: &Vga) {
        if !matches!(self.regs[BPP], 4 | 8 | 15 | 16 | 24 | 32) {
            self.regs[BPP] = 8;
        }
        let bits = vga.vram_len() * 8;
        let x = self.regs[XRES].clamp(8, MAX_X) & !7;
        let y = self.regs[YRES].clamp(1, MAX_Y).min((bits / (u32::from(x) * self.stored())).min(0xffff) as u16);
        (self.regs[XRES], self.regs[YRES]) = (x, y);
        let widest = (bits / (u32::from(y) * self.stored())).min(0xfff8) as u16;
        self.regs[VIRT_WIDTH] = self.regs[VIRT_WIDTH].clamp(x, widest.max(x)) & !7;
    }

    /// Bytes that so many pixels take; a plane has one of four bits.
    fn bytes(&self, pixels: u16) -> u32 {
        let bits = if self.regs[BPP] == 4 { 1 } else { self.stored() };
        u32::from(pixels) * bits / 8
    }

    fn pitch(&self) -> u32 {
        self.bytes(self.regs[VIRT_WIDTH])
    }

    fn planes(&self) -> u32 {
        if self.regs[BPP] == 4 { 4 } else { 1 }
    }

    fn virtual_height(&self, vga: &Vga) -> u16 {
        (vga.vram_len() / self.planes() / self.pitch().max(1)).min(0xffff) as u16
    }

    fn mode(&self, vga: &Vga) -> Linear {
        let len = vga.vram_len() / self.planes();
        let down = u32::from(self.regs[Y_OFFSET]).wrapping_mul(self.pitch());
        Linear {
            width: self.regs[XRES],
            height: self.regs[YRES],
            bpp: self.regs[BPP] as u8,
            pitch: self.pitch(),
            start: down.wrapping_add(self.bytes(self.regs[X_OFFSET])) % len,
            bank: (u32::from(self.regs[BANK]) << 16) % len,
        }
    }

    /// Brings the registers into force.
    fn apply(&mut self, vga: &mut Vga) {
        if self.enabled() {
            self.fit(vga);
        }
        vga.linear = self.enabled().then(|| self.mode(vga));
        vga.settle();
    }

    /// As [`Dispi::apply`], after the state was loaded: memory is as it must be already.
    pub fn restored(&mut self, vga: &mut Vga) {
        vga.linear = None;
        if self.enabled() {
            // A state from a file may hold anything.
            self.fit(vga);
            vga.linear = Some(self.mode(vga));
        }
        vga.restored();
    }
}
