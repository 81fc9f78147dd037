//! From the VGA's registers and memory to characters and pixels.
//!
//! The CRT controller is followed line by line, as it counts: memory address, row scan, line compare. Pictures have the
//! mode's pixels once: where the hardware shows a line twice or a pixel two dots wide, as in 320x200, they are not
//! repeated. The cursor and blinking characters are drawn as in the phase in which they are seen.

use std::hash::{DefaultHasher, Hash, Hasher};

use emu::{Cell, Display, Picture, TextScreen, View};

use super::dispi::Linear;
use super::vga::{Mapping, Vga};

/// What the counters say at the start of a line.
#[derive(Clone, Copy)]
struct Line {
    /// Memory address counter.
    at: u32,
    /// Row scan counter.
    row: u8,
}

/// The VGA's 64 K of addresses; the counters wrap there.
const ADDRESSES: u32 = 0xffff;

impl Vga {
    fn cr(&self, n: usize) -> usize {
        usize::from(self.r.crtc[n])
    }

    /// Characters a line, or groups of eight dots.
    fn columns(&self) -> usize {
        self.cr(1) + 1
    }

    fn set_up(&self) -> bool {
        self.r.crtc[0] != 0
    }

    fn graphics(&self) -> bool {
        self.r.gfx[6] & 1 != 0
    }

    /// The screen is dark whatever is in memory.
    fn blank(&self) -> bool {
        self.r.attr_index & 0x20 == 0 || self.linear.is_none() && self.r.seq[1] & 0x20 != 0
    }

    /// Lines of a character.
    fn cell_height(&self) -> usize {
        (self.cr(9) & 31) + 1
    }

    /// The visible lines, lines that are scanned twice once.
    fn lines(&self) -> Vec<Line> {
        let overflow = |low: usize, bits: [usize; 2]| {
            self.cr(low) | (self.cr(7) >> bits[0] & 1) << 8 | (self.cr(7) >> bits[1] & 1) << 9
        };
        let double = self.cr(9) >> 7;
        let count = (overflow(0x12, [1, 6]) + 1) >> double;
        let compare = (self.cr(0x18) | (self.cr(7) >> 4 & 1) << 8 | (self.cr(9) >> 6 & 1) << 9) >> double;
        let stride = self.stride();
        let start = (self.cr(0x0c) << 8 | self.cr(0x0d)) + (self.cr(8) >> 5 & 3);
        let mut line = Line { at: start as u32, row: self.r.crtc[8] & 31 };
        let mut lines = Vec::with_capacity(count);
        for y in 0..count {
            lines.push(line);
            if y == compare {
                line = Line { at: 0, row: 0 };
            } else if usize::from(line.row) + 1 >= self.cell_height() {
                line = Line { at: line.at + stride, row: 0 };
            } else {
                line.row += 1;
            }
        }
        lines
    }

    /// Addresses from one row to the next.
    fn stride(&self) -> u32 {
        2 * u32::from(self.r.crtc[0x13])
    }

    /// The character and its attribute at an address.
    fn cell(&self, at: u32) -> Cell {
        let at = at & ADDRESSES;
        let mut bytes = [0; 2];
        if matches!(self.r.mapping, Mapping::Text(_)) && u64::from(2 * at) < self.text.len {
            self.ram.read(emu::RamAddr(self.text.start.0 + u64::from(2 * at)), &mut bytes);
        } else {
            bytes.copy_from_slice(&self.planes(at)[..2]);
        }
        Cell { ch: bytes[0], attr: bytes[1] }
    }

    /// The lines of the cursor within its character, if it is on.
    fn cursor_lines(&self) -> Option<std::ops::RangeInclusive<u8>> {
        let (start, end) = (self.r.crtc[0x0a], self.r.crtc[0x0b] & 31);
        let first = start & 31;
        let on = start & 0x20 == 0 && first <= end && usize::from(first) < self.cell_height();
        on.then_some(first..=end)
    }

    fn cursor_at(&self) -> u32 {
        (self.cr(0x0e) << 8 | self.cr(0x0f)) as u32
    }

    /// A colour of the DAC.
    fn dac(&self, n: u8) -> u32 {
        let n = n & self.r.dac_mask;
        let parts = self.r.dac[usize::from(n >> 4)][usize::from(n & 15)];
        let [r, g, b] = parts.map(|c| u32::from(if self.r.dac_wide { c } else { c << 2 | c >> 4 & 3 }));
        r << 16 | g << 8 | b
    }

    /// The sixteen colours that the attribute controller makes of four bits.
    fn palette(&self) -> [u32; 16] {
        let a = &self.r.attr;
        std::array::from_fn(|n| {
            let low = a[n & usize::from(a[0x12] & 15)];
            let whole = if a[0x10] & 0x80 != 0 {
                low & 0x0f | (a[0x14] & 0x0f) << 4
            } else {
                low & 0x3f | (a[0x14] & 0x0c) << 4
            };
            self.dac(whole)
        })
    }

    /// The eight dots of one line of a character.
    fn glyph(&self, cell: Cell, row: u8) -> u8 {
        let select = self.r.seq[3];
        let set = if cell.attr & 8 != 0 { select >> 2 & 3 | select >> 3 & 4 } else { select & 3 | select >> 2 & 4 };
        let base = u32::from(set & 3) << 14 | u32::from(set >> 2) << 13;
        self.planes(base + 32 * u32::from(cell.ch) + u32::from(row))[2]
    }

    fn text_picture(&self) -> Picture {
        let wide = if self.r.seq[1] & 1 != 0 { 8 } else { 9 };
        let (columns, lines) = (self.columns(), self.lines());
        let (palette, cursor) = (self.palette(), self.cursor_lines());
        let mode = self.r.attr[0x10];
        let underline = if mode & 2 != 0 { self.r.crtc[0x14] & 31 } else { 0xff };
        let background = if mode & 8 != 0 { 7 } else { 15 };
        let mut pixels = Vec::with_capacity(columns * wide * lines.len());
        let mut cells = Vec::new();
        let mut of = u32::MAX;
        for line in &lines {
            // All lines of a row show the same cells.
            if of != line.at {
                of = line.at;
                cells = (0..columns as u32).map(|x| self.cell(line.at + x)).collect();
            }
            for (x, cell) in (0..).zip(&cells) {
                let mut dots = self.glyph(*cell, line.row);
                let (fore, back) = (palette[usize::from(cell.attr & 15)], cell.attr >> 4 & background);
                let back = palette[usize::from(back)];
                let here = (line.at + x) & ADDRESSES == self.cursor_at();
                let block = here && cursor.as_ref().is_some_and(|lines| lines.contains(&line.row));
                if block || line.row == underline && cell.attr & 7 == 1 {
                    dots = 0xff;
                }
                pixels.extend((0..8).map(|bit| if dots << bit & 0x80 != 0 { fore } else { back }));
                if wide == 9 {
                    // Line drawing characters go on into the gap.
                    let joined = block || mode & 4 != 0 && (0xc0..=0xdf).contains(&cell.ch);
                    pixels.push(if joined && dots & 1 != 0 { fore } else { back });
                }
            }
        }
        Picture { width: columns * wide, height: lines.len(), pixels }
    }

    /// The address that the controller puts out: row scan bits may stand for two of its bits, as on a CGA.
    fn address(&self, at: u32, row: u8) -> u32 {
        let mode = self.r.crtc[0x17];
        // Word and double-word addresses are not shifted here.
        let shift = if self.r.crtc[0x14] & 0x40 != 0 { 2 } else { u32::from(mode & 0x40 == 0) };
        let mut at = at;
        for (n, bit) in [(0, 13 - shift), (1, 14 - shift)] {
            if mode >> n & 1 == 0 {
                at = at & !(1 << bit) | u32::from(row >> n & 1) << bit;
            }
        }
        at & ADDRESSES
    }

    fn graphics_picture(&self) -> Picture {
        let lines = self.lines();
        // Where the row scan is no part of the address, its lines are one line shown several times.
        let repeat = if self.r.crtc[0x17] & 3 == 3 { self.cell_height() } else { 1 };
        let shift = self.r.gfx[5] >> 5 & 3;
        let each = if shift >= 2 { 4 } else { 8 };
        let width = self.columns() * each;
        let palette = self.palette();
        let panning = usize::from(self.r.attr[0x13] & 7) / (8 / each);
        let mut pixels = Vec::with_capacity(width * lines.len() / repeat);
        let mut row = Vec::with_capacity(width + each);
        for line in lines.iter().step_by(repeat) {
            row.clear();
            for x in 0..=self.columns() as u32 {
                let p = self.planes(self.address(line.at + x, line.row));
                match shift {
                    0 => row.extend(planar(p).map(|n| palette[n])),
                    1 => row.extend(interleaved(p).map(|n| palette[n])),
                    _ => row.extend(p.map(|n| self.dac(n))),
                }
            }
            pixels.extend_from_slice(&row[panning..panning + width]);
        }
        Picture { width, height: lines.len().div_ceil(repeat), pixels }
    }

    fn linear_picture(&self, mode: Linear) -> Picture {
        let (width, height) = (usize::from(mode.width), usize::from(mode.height));
        let mut pixels = Vec::with_capacity(width * height);
        let palette = self.palette();
        let mut bytes = vec![0; width * mode.pixel_bytes()];
        for y in 0..mode.height {
            let at = mode.line(y);
            if mode.planar() {
                let groups = (0..mode.width.div_ceil(8)).flat_map(|x| planar(self.planes(at.wrapping_add(x.into()))));
                pixels.extend(groups.take(width).map(|n| palette[n]));
                continue;
            }
            self.linear_read(at, &mut bytes);
            self.pixels(mode, &bytes, &mut pixels);
        }
        Picture { width, height, pixels }
    }

    /// Adds the pixels of a part of a line to `out`.
    fn pixels(&self, mode: Linear, bytes: &[u8], out: &mut Vec<u32>) {
        match mode.bpp {
            15 => out.extend(bytes.as_chunks().0.iter().map(|p| expand(u16::from_le_bytes(*p), 10, 5, 5))),
            16 => out.extend(bytes.as_chunks().0.iter().map(|p| expand(u16::from_le_bytes(*p), 11, 6, 5))),
            24 => out.extend(bytes.as_chunks().0.iter().map(|[b, g, r]| u32::from_le_bytes([*b, *g, *r, 0]))),
            32 => out.extend(bytes.as_chunks().0.iter().map(|p| u32::from_le_bytes(*p) & 0xff_ffff)),
            _ => out.extend(bytes.iter().map(|n| self.dac(*n))),
        }
    }

    /// As [`Display::refresh`] for a mode whose pixels lie one after the other: only lines that differ are drawn.
    fn refresh_linear(&self, mode: Linear, view: &mut View) {
        let len = usize::from(mode.width) * mode.pixel_bytes();
        view.set_size(mode.width.into(), mode.height.into());
        let mut line = Vec::with_capacity(mode.width.into());
        view.each_line(|view, y| {
            let at = y * len;
            let differs = view.differs(at, len, |bytes| self.linear_read(mode.line(y as u16), bytes));
            if differs {
                line.clear();
                self.pixels(mode, view.bytes(at, len), &mut line);
                view.put(y, &line);
            }
            differs
        });
    }

    /// Reads video memory, which begins again at its end.
    fn linear_read(&self, at: u32, buf: &mut [u8]) {
        let at = u64::from(at) % self.vram.len;
        let first = buf.len().min((self.vram.len - at) as usize);
        let (head, tail) = buf.split_at_mut(first);
        self.ram.read(emu::RamAddr(self.vram.start.0 + at), head);
        self.ram.read(self.vram.start, tail);
    }

    /// Clears the screen of a linear mode.
    pub(super) fn clear(&self, mode: Linear) {
        let planes = if mode.planar() { 4 } else { 1 };
        let len = (u64::from(mode.pitch) * u64::from(mode.height) * planes).min(self.vram.len);
        self.ram.write(self.vram.start, &vec![0; len as usize]);
    }
}

/// Eight pixels, a bit in each plane.
fn planar(p: [u8; 4]) -> impl Iterator<Item = usize> {
    let bit = move |plane: usize, n: usize| usize::from(p[plane] >> (7 - n) & 1);
    (0..8).map(move |n| bit(0, n) | bit(1, n) << 1 | bit(2, n) << 2 | bit(3, n) << 3)
}

/// Eight pixels of the CGA: pairs of bits, four in plane 0 and then four in plane 1; planes 2 and 3 give the upper
/// pair.
fn interleaved(p: [u8; 4]) -> impl Iterator<Item = usize> {
    (0..8).map(move |n| {
        let pair = |plane: usize| usize::from(p[plane] >> (6 - 2 * (n & 3)) & 3);
        pair(n >> 2) | pair(2 + (n >> 2)) << 2
    })
}

/// A pixel of 5 bits blue, `green` bits, and 5 bits red from bit `red` on.
fn expand(pixel: u16, red: u16, green: u16, blue: u16) -> u32 {
    let part = |value: u16, bits: u16| {
        let value = u32::from(value & ((1 << bits) - 1)) << (8 - bits);
        value | value >> bits
    };
    part(pixel >> red, 5) << 16 | part(pixel >> blue, green) << 8 | part(pixel, blue)
}

impl Display for Vga {
    fn text(&self) -> Option<TextScreen> {
        if self.linear.is_some() || self.graphics() || !self.set_up() {
            return None;
        }
        let columns = self.columns();
        let lines = self.lines();
        let starts: Vec<u32> = lines.iter().filter(|l| l.row == 0).map(|l| l.at).collect();
        // A row that is cut off at the bottom is none.
        let rows = starts.len().min(lines.len() / self.cell_height()).max(1).min(starts.len());
        let mut screen = TextScreen { columns, rows, blink: self.r.attr[0x10] & 8 != 0, ..TextScreen::default() };
        for (y, at) in starts.iter().take(rows).enumerate() {
            screen.cells.extend((0..columns as u32).map(|x| self.cell(at + x)));
            let x = self.cursor_at().wrapping_sub(*at) & ADDRESSES;
            if (x as usize) < columns && screen.cursor.is_none() && self.cursor_lines().is_some() {
                screen.cursor = Some((x as usize, y));
            }
        }
        Some(screen)
    }

    fn picture(&self) -> Picture {
        let mut picture = match self.linear {
            Some(mode) => self.linear_picture(mode),
            None if !self.set_up() => Picture::default(),
            None if self.graphics() => self.graphics_picture(),
            None => self.text_picture(),
        };
        if self.blank() {
            picture.pixels.fill(0);
        }
        picture
    }

    fn refresh(&self, view: &mut View) {
        /// Memory that modes other than linear ones show.
        const PLANES: usize = 256 << 10;
        let mut key = DefaultHasher::new();
        (&self.r, self.linear).hash(&mut key);
        view.begin(key.finish());
        match self.linear {
            Some(mode) if !mode.planar() && !self.blank() => self.refresh_linear(mode, view),
            // Large modes of this kind are rare; they are drawn at each look.
            Some(_) => view.show(&self.picture()),
            None => {
                let planes = view.differs(0, PLANES, |bytes| self.ram.read(self.vram.start, bytes));
                let text = self.text.len as usize;
                if view.differs(PLANES, text, |bytes| self.ram.read(self.text.start, bytes)) || planes {
                    view.show(&self.picture());
                }
            }
        }
    }
}
