//! The IBM VGA: what every display adapter of a PC begins as.
//!
//! Sources: IBM PS/2 Hardware Interface Technical Reference (video subsystem), and what drivers of the BSDs, Linux and
//! X do with it. Ports 3B4-3B5, 3BA, 3C0-3CF, 3D4-3D5, 3DA; memory at A0000-BFFFF. Sequencer, CRT controller, graphics
//! and attribute controller, DAC; the four write and two read modes, latches, odd/even and chain-4 addressing; retrace
//! from guest time. Not modelled: the vertical interrupt, light pen, and the 64 KiB card (SR04 bit 1).
//!
//! Byte n of plane p is byte 4n + p of video memory, as on the chips that made the VGA's memory linear. What the VGA
//! spreads by dropping address bits (odd/even, chain-4) is packed here, and the CRT controller's word and double-word
//! modes, which undo it, need no work: a character or a pixel that is written appears where it must. Only a program
//! that writes in one addressing mode and reads in another could tell.
//!
//! Where an access means one byte of memory, it is plain memory for the processor: chain-4 and linear modes are video
//! memory itself, and text, whose characters and attributes alternate while they lie 4 bytes apart in the planes, is a
//! block of its own that is copied from and to planes 0 and 1 when the mode is entered and left. Everything else is
//! trapped. [`Vga::settle`] chooses after each register write.

use std::sync::Arc;

use emu::{Backing, Clock, Ram, RamAddr, RamBlock, Region, Rights, Slot, Widths};
use serde::{Deserialize, Serialize};

use super::dispi::Linear;

/// Numbers of the core's own regions; an adapter's follow.
const PORTS_MONO: u32 = 0;
const PORTS: u32 = 1;
const PORTS_COLOUR: u32 = 2;
const WINDOW: u32 = 3;
/// The first number that is free for the adapter's regions.
pub const ADAPTER: u32 = 8;

/// The parts of A0000-BFFFF that can be mapped apart: offset and length.
const WINDOWS: [(u32, u32); 3] = [(0, 0x1_0000), (0x1_0000, 0x8000), (0x1_8000, 0x8000)];
const WINDOW_BASE: u64 = 0xa_0000;
/// Bytes of text that can be plain memory: the whole of B8000 or B0000.
const TEXT: u32 = 0x8000;

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// Dots a second by the clock that the miscellaneous output register selects.
const DOT_CLOCKS: [u64; 4] = [25_175_000, 28_322_000, 28_322_000, 28_322_000];

/// What stands behind A0000-BFFFF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mapping {
    /// Nothing.
    #[default]
    Off,
    /// Each access is looked at; the map of GR06.
    Trapped(u8),
    /// Video memory from 0 on, at A0000; the map of GR06.
    Chained(u8),
    /// Characters and attributes, at B0000 (2) or B8000 (3).
    Text(u8),
    /// 64 KiB of video memory from this offset on, at A0000.
    Bank(u32),
}

/// What the guest can see of the core.
#[derive(Clone, Debug, Default, PartialEq, Hash, Serialize, Deserialize)]
pub struct Registers {
    /// Miscellaneous output.
    pub misc: u8,
    /// Feature control.
    pub feature: u8,
    /// Video subsystem enable.
    pub enable: u8,
    /// Sequencer.
    pub seq_index: u8,
    /// SR00 to SR04.
    pub seq: [u8; 5],
    /// CRT controller.
    pub crtc_index: u8,
    /// CR00 to CR18.
    pub crtc: [u8; 25],
    /// Graphics controller.
    pub gfx_index: u8,
    /// GR00 to GR08.
    pub gfx: [u8; 9],
    /// Attribute controller; bit 5 lets the palette drive the screen.
    pub attr_index: u8,
    /// The next write to 3C0 is data.
    pub attr_data: bool,
    /// AR00 to AR14.
    pub attr: [u8; 21],
    /// DAC: mask, index, the next colour (0 red, 1 green, 2 blue), and what 3C7 was last written for.
    pub dac_mask: u8,
    /// Index of the colour that is read or written next.
    pub dac_index: u8,
    /// Which of its three parts.
    pub dac_part: u8,
    /// The DAC was set up for reading.
    pub dac_reading: bool,
    /// The parts of the colour being written; it is taken over when it is complete.
    pub dac_new: [u8; 3],
    /// 256 colours, red, green and blue, of `dac_bits` bits each.
    pub dac: [[[u8; 3]; 16]; 16],
    /// Colours have 8 bits instead of 6.
    pub dac_wide: bool,
    /// The four bytes that were read last.
    pub latch: [u8; 4],
    /// What stands behind A0000-BFFFF.
    pub mapping: Mapping,
}

/// The core.
pub struct Vga {
    /// What is saved.
    pub r: Registers,
    /// An extension's linear mode, if one is in force.
    pub linear: Option<Linear>,
    clock: Arc<Clock>,
    pub(super) ram: Arc<Ram>,
    pub(super) vram: RamBlock,
    pub(super) text: RamBlock,
    windows: [(Region, Backing); 3],
}

impl Vga {
    /// The core, with `vram` bytes of video memory (256 KiB at least), in a slot whose regions below [`ADAPTER`] are
    /// its.
    ///
    /// # Errors
    /// When the host has no memory.
    pub fn create(slot: &mut Slot, vram: u64) -> Result<Vga, String> {
        assert!(vram >= 256 << 10);
        slot.ports(PORTS_MONO, 0x3b0, 12, Widths::BYTE);
        slot.ports(PORTS, 0x3c0, 16, Widths::BYTE);
        slot.ports(PORTS_COLOUR, 0x3d0, 16, Widths::BYTE);
        let windows = std::array::from_fn(|n| {
            let trap = slot.io(WINDOW + n as u32, Widths::DWORD);
            (slot.window(u64::from(WINDOWS[n].1), 1, Rights::ReadWrite, trap.clone()), trap)
        });
        Ok(Vga {
            r: Registers::default(),
            linear: None,
            clock: slot.clock(),
            ram: slot.machine().space.ram().clone(),
            vram: slot.ram("vram", vram)?,
            text: slot.ram("text", u64::from(TEXT))?,
            windows,
        })
    }

    /// Video memory.
    pub fn vram(&self) -> &RamBlock {
        &self.vram
    }

    /// Bytes of video memory.
    pub fn vram_len(&self) -> u32 {
        self.vram.len as u32
    }

    /// The power-on state. What is in memory stays.
    pub fn reset(&mut self) {
        self.linear = None;
        self.r = Registers { mapping: self.r.mapping, enable: 1, dac_mask: 0xff, ..Registers::default() };
        self.settle();
    }

    /// A read of one of the core's regions.
    pub fn read(&mut self, region: u32, offset: u64, width: u8) -> u64 {
        let mut bytes = [0xff; 8];
        for (n, byte) in (0u64..).zip(&mut bytes[..width as usize]) {
            *byte = match region {
                PORTS_MONO => self.port_read(0x3b0 + (offset + n) as u16),
                PORTS => self.port_read(0x3c0 + (offset + n) as u16),
                PORTS_COLOUR => self.port_read(0x3d0 + (offset + n) as u16),
                _ => self.window_read(window_offset(region, offset + n)),
            };
        }
        u64::from_le_bytes(bytes)
    }

    /// A write to one of the core's regions.
    pub fn write(&mut self, region: u32, offset: u64, width: u8, value: u64) {
        for (n, byte) in (0u64..).zip(value.to_le_bytes()).take(width as usize) {
            match region {
                PORTS_MONO => self.port_write(0x3b0 + (offset + n) as u16, byte),
                PORTS => self.port_write(0x3c0 + (offset + n) as u16, byte),
                PORTS_COLOUR => self.port_write(0x3d0 + (offset + n) as u16, byte),
                _ => self.window_write(window_offset(region, offset + n), byte),
            }
        }
    }

    /// Whether the port is where the CRT controller and status register 1 are now: 3Dx for colour, 3Bx for monochrome.
    fn answers(&self, port: u16) -> bool {
        port & 0x3f0 == 0x3c0 || (port & 0x3f0 == 0x3d0) == (self.r.misc & 1 != 0)
    }

    /// A read of 3B0 to 3DF.
    pub fn port_read(&mut self, port: u16) -> u8 {
        if !self.answers(port) {
            return 0xff;
        }
        let r = &mut self.r;
        match port {
            0x3c0 => r.attr_index,
            0x3c1 => r.attr.get(usize::from(r.attr_index & 31)).copied().unwrap_or(0),
            // A colour monitor is there.
            0x3c2 => 0x10,
            0x3c3 => r.enable,
            0x3c4 => r.seq_index,
            0x3c5 => r.seq.get(usize::from(r.seq_index)).copied().unwrap_or(0),
            0x3c6 => r.dac_mask,
            0x3c7 => 3 * u8::from(r.dac_reading),
            0x3c8 => r.dac_index,
            0x3c9 => {
                let colour = r.dac[usize::from(r.dac_index >> 4)][usize::from(r.dac_index & 15)];
                let value = colour[usize::from(r.dac_part % 3)];
                r.next_part();
                value
            }
            0x3ca => r.feature,
            0x3cc => r.misc,
            0x3ce => r.gfx_index,
            0x3cf => r.gfx.get(usize::from(r.gfx_index)).copied().unwrap_or(0),
            0x3b4 | 0x3d4 => r.crtc_index,
            0x3b5 | 0x3d5 => r.crtc.get(usize::from(r.crtc_index)).copied().unwrap_or(0),
            0x3ba | 0x3da => {
                r.attr_data = false;
                self.status()
            }
            _ => 0xff,
        }
    }

    /// A write to 3B0 to 3DF.
    pub fn port_write(&mut self, port: u16, value: u8) {
        // The bits that exist.
        const SEQ: [u8; 5] = [0x03, 0x3d, 0x0f, 0x3f, 0x0e];
        const GFX: [u8; 9] = [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff];
        if !self.answers(port) {
            return;
        }
        let r = &mut self.r;
        match port {
            0x3c0 if !r.attr_data => {
                r.attr_index = value & 0x3f;
                r.attr_data = true;
            }
            0x3c0 => {
                let mask = [0x3f, 0xef, 0xff, 0x3f, 0x0f, 0x0f];
                let n = usize::from(r.attr_index & 31);
                if let Some(a) = r.attr.get_mut(n) {
                    *a = value & mask[n.saturating_sub(15)];
                }
                r.attr_data = false;
            }
            0x3c2 => r.misc = value,
            0x3c3 => r.enable = value & 1,
            0x3c4 => r.seq_index = value,
            0x3c5 => {
                let n = usize::from(r.seq_index);
                if let Some(s) = r.seq.get_mut(n) {
                    *s = value & SEQ[n];
                }
            }
            0x3c6 => r.dac_mask = value,
            0x3c7 | 0x3c8 => {
                (r.dac_index, r.dac_part, r.dac_reading) = (value, 0, port == 0x3c7);
            }
            0x3c9 => {
                r.dac_new[usize::from(r.dac_part % 3)] = if r.dac_wide { value } else { value & 0x3f };
                if r.dac_part == 2 {
                    r.dac[usize::from(r.dac_index >> 4)][usize::from(r.dac_index & 15)] = r.dac_new;
                }
                r.next_part();
            }
            0x3ce => r.gfx_index = value,
            0x3cf => {
                let n = usize::from(r.gfx_index);
                if let Some(g) = r.gfx.get_mut(n) {
                    *g = value & GFX[n];
                }
            }
            0x3b4 | 0x3d4 => r.crtc_index = value,
            0x3b5 | 0x3d5 => r.write_crtc(value),
            0x3ba | 0x3da => r.feature = value,
            _ => return,
        }
        if matches!(port, 0x3c2 | 0x3c3 | 0x3c5 | 0x3cf) {
            self.settle();
        }
    }

    /// Status register 1: display disabled, and vertical retrace, from guest time and the CRT controller's timing.
    fn status(&self) -> u8 {
        let cr = |n: usize| u64::from(self.r.crtc[n]);
        let overflow = |low: u64, bits: [u32; 2]| low | (cr(7) >> bits[0] & 1) << 8 | (cr(7) >> bits[1] & 1) << 9;
        let dots = if self.r.seq[1] & 1 != 0 { 8 } else { 9 };
        let clock = DOT_CLOCKS[usize::from(self.r.misc >> 2 & 3)] >> (self.r.seq[1] >> 3 & 1);
        let chars = cr(0) + 5;
        let lines = overflow(cr(6), [0, 5]) + 2;
        // A controller that nobody has set up would retrace faster than a processor can look.
        let line = (chars * dots * SECOND / clock).max(5_000);
        let frame = (lines * line).max(5_000_000);
        let now = self.clock.now() % frame;
        let y = now / line;
        let x = now % line * chars / line;
        let (shown, start) = (overflow(cr(0x12), [1, 6]) + 1, overflow(cr(0x10), [2, 7]));
        let length = cr(0x11).wrapping_sub(start) & 15;
        let retrace = (start..start + length.max(1)).contains(&y.min(lines - 1));
        let disabled = retrace || y >= shown || x > cr(1);
        // Bits 4 and 5 show two colour bits to diagnostics; they must change.
        let colours = if self.clock.now() / line & 1 != 0 { 0x30 } else { 0 };
        u8::from(retrace) << 3 | u8::from(disabled) | if self.r.attr[0x12] & 0x30 != 0 { colours } else { 0 }
    }

    /// The offset within video memory's planes, or nothing if the map leaves the address out.
    fn placed(&self, offset: u32) -> Option<u32> {
        let Mapping::Trapped(map) = self.r.mapping else { return None };
        match map {
            0 => Some(offset),
            1 => (offset < 0x1_0000).then_some(offset),
            2 => (0x1_0000..0x1_8000).contains(&offset).then(|| offset - 0x1_0000),
            _ => offset.checked_sub(0x1_8000),
        }
    }

    /// The index in the planes. With chain odd/even the lowest address bit chooses planes.
    fn index(&self, at: u32) -> u32 {
        match self.linear {
            Some(mode) => at + mode.bank,
            None if self.chained() => at >> 2,
            None if self.r.gfx[6] & 2 != 0 => at >> 1,
            None => at,
        }
    }

    fn chained(&self) -> bool {
        self.r.seq[4] & 8 != 0
    }

    /// The four bytes at an index of the planes.
    pub(super) fn planes(&self, index: u32) -> [u8; 4] {
        let mut bytes = [0; 4];
        self.ram.read(self.at(index), &mut bytes);
        bytes
    }

    fn at(&self, index: u32) -> RamAddr {
        RamAddr(self.vram.start.0 + u64::from(index) * 4 % self.vram.len)
    }

    fn window_read(&mut self, offset: u32) -> u8 {
        let Some(at) = self.placed(offset) else { return 0xff };
        let latch = self.planes(self.index(at));
        self.r.latch = latch;
        let g = &self.r.gfx;
        if g[5] & 8 != 0 {
            // Read mode 1: a bit is set where all the planes that count have the colour to compare with.
            return (0..4)
                .filter(|p| g[7] >> p & 1 != 0)
                .fold(0xff, |same, p| same & if g[2] >> p & 1 != 0 { latch[p] } else { !latch[p] });
        }
        let plane = if self.chained() {
            at & 3
        } else if g[5] & 0x10 != 0 {
            u32::from(g[4] & 2) | at & 1
        } else {
            u32::from(g[4])
        };
        latch[plane as usize & 3]
    }

    fn window_write(&mut self, offset: u32, value: u8) {
        let Some(at) = self.placed(offset) else { return };
        let mut planes = self.r.seq[2];
        if self.chained() {
            planes &= 1 << (at & 3);
        } else if self.r.seq[4] & 4 == 0 {
            planes &= 5 << (at & 1);
        }
        let index = self.index(at);
        let new = self.combine(value);
        let mut bytes = self.planes(index);
        (0..4).filter(|p| planes >> p & 1 != 0).for_each(|p| bytes[p] = new[p]);
        self.ram.write(self.at(index), &bytes);
    }

    /// What the graphics controller makes of a byte and the latches, for each plane.
    fn combine(&self, value: u8) -> [u8; 4] {
        let g = &self.r.gfx;
        let latch = self.r.latch;
        let rotated = value.rotate_right(u32::from(g[3] & 7));
        let spread = |bits: u8, p: usize| if bits >> p & 1 != 0 { 0xff } else { 0 };
        let (mode, mut mask) = (g[5] & 3, g[8]);
        if mode == 3 {
            mask &= rotated;
        }
        std::array::from_fn(|p| {
            let data = match mode {
                0 if g[1] >> p & 1 != 0 => spread(g[0], p),
                0 => rotated,
                1 => return latch[p],
                2 => spread(value, p),
                _ => spread(g[0], p),
            };
            let data = match g[3] >> 3 & 3 {
                0 => data,
                1 => data & latch[p],
                2 => data | latch[p],
                _ => data ^ latch[p],
            };
            data & mask | latch[p] & !mask
        })
    }

    /// What must stand behind A0000-BFFFF for the registers to mean what they say.
    fn mapping(&self) -> Mapping {
        let r = &self.r;
        let (s, g) = (&r.seq, &r.gfx);
        if r.enable == 0 {
            return Mapping::Off;
        }
        if let Some(mode) = self.linear {
            return if mode.planar() { Mapping::Trapped(1) } else { Mapping::Bank(mode.bank) };
        }
        if r.misc & 2 == 0 {
            return Mapping::Off;
        }
        let map = g[6] >> 2 & 3;
        // A byte is a byte: write and read mode 0, no set/reset, no rotation, no function, all bits.
        let plain = g[5] & 0x0b == 0 && g[1] == 0 && g[3] == 0 && g[8] == 0xff;
        if plain && s[4] & 8 != 0 && s[2] == 15 && map < 2 {
            return Mapping::Chained(map);
        }
        let text = s[4] & 0x0c == 0 && g[5] & 0x10 != 0 && g[6] & 3 == 2;
        if plain && text && s[2] == 3 && g[4] & 2 == 0 && map >= 2 {
            return Mapping::Text(map);
        }
        Mapping::Trapped(map)
    }

    /// Puts behind A0000-BFFFF what the registers ask for.
    pub fn settle(&mut self) {
        let new = self.mapping();
        let old = std::mem::replace(&mut self.r.mapping, new);
        if old == new {
            return;
        }
        let is_text = |m| matches!(m, Mapping::Text(_));
        match (is_text(old), is_text(new)) {
            (true, false) => self.leave_text(),
            (false, true) => self.enter_text(),
            _ => {}
        }
        self.map();
    }

    /// The registers were loaded, and memory as it was with them.
    pub fn restored(&mut self) {
        self.r.mapping = self.mapping();
        self.map();
    }

    /// Lays out the windows for the present mapping.
    fn map(&self) {
        let memory = |at: u64| Backing::Ram(RamAddr(self.vram.start.0 + at));
        for (n, ((offset, len), (region, trap))) in WINDOWS.iter().zip(&self.windows).enumerate() {
            let backing = match self.r.mapping {
                Mapping::Off => None,
                // An address that the map leaves out is not the adapter's.
                Mapping::Trapped(map) => (map == 0 || usize::from(map) == n + 1).then(|| trap.clone()),
                Mapping::Chained(map) => (map == 0 || n == 0).then(|| memory(u64::from(*offset))),
                Mapping::Text(map) => (usize::from(map) == n + 1).then_some(Backing::Ram(self.text.start)),
                Mapping::Bank(at) => {
                    let fits = u64::from(at) + u64::from(*len) <= self.vram.len;
                    (n == 0 && fits).then(|| memory(u64::from(at)))
                }
            };
            match backing {
                Some(backing) => {
                    region.set_backing(Rights::ReadWrite, backing);
                    region.enable(WINDOW_BASE + u64::from(*offset));
                }
                None => region.disable(),
            }
        }
    }

    fn enter_text(&self) {
        let mut planes = vec![0; 2 * TEXT as usize];
        self.ram.read(self.vram.start, &mut planes);
        let text: Vec<u8> = planes.chunks_exact(4).flat_map(|p| [p[0], p[1]]).collect();
        self.ram.write(self.text.start, &text);
    }

    fn leave_text(&self) {
        let mut text = vec![0; TEXT as usize];
        self.ram.read(self.text.start, &mut text);
        let mut planes = vec![0; 2 * TEXT as usize];
        self.ram.read(self.vram.start, &mut planes);
        planes.chunks_exact_mut(4).zip(text.chunks_exact(2)).for_each(|(p, t)| p[..2].copy_from_slice(t));
        self.ram.write(self.vram.start, &planes);
    }
}

/// The offset from A0000 of an offset in one of the windows.
fn window_offset(region: u32, offset: u64) -> u32 {
    WINDOWS[(region - WINDOW) as usize % WINDOWS.len()].0 + offset as u32
}

impl Registers {
    fn next_part(&mut self) {
        if self.dac_part < 2 {
            self.dac_part += 1;
        } else {
            self.dac_part = 0;
            self.dac_index = self.dac_index.wrapping_add(1);
        }
    }

    fn write_crtc(&mut self, value: u8) {
        let n = usize::from(self.crtc_index);
        // CR11 bit 7 protects the timing, but for the line compare bit.
        let protected = self.crtc[0x11] & 0x80 != 0;
        if protected && n == 7 {
            self.crtc[7] = self.crtc[7] & !0x10 | value & 0x10;
        } else if !(protected && n < 7)
            && let Some(register) = self.crtc.get_mut(n)
        {
            *register = value;
        }
    }
}
