//! Dots, and characters made of them, in the modes that have no characters.

use super::super::{Call, linear};
use super::{Window, height, mode};

/// How a mode keeps its dots.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Four in a byte, odd lines apart.
    Cga4,
    /// Eight in a byte, odd lines apart.
    Cga2,
    /// A bit in each of four planes.
    Planar,
    /// A byte.
    Bytes,
}

fn kind(number: u8) -> Kind {
    match number {
        4 | 5 => Kind::Cga4,
        6 => Kind::Cga2,
        0x13 => Kind::Bytes,
        _ => Kind::Planar,
    }
}

/// The byte that holds dot (x, y) of a page, if the screen has it.
fn place(c: &mut Call, page: u8, x: u16, y: u16) -> Option<u64> {
    let mode = mode(c);
    let width = u16::from(mode.columns) * 8;
    if mode.text || x >= width || y >= u16::from(mode.rows) * u16::from(mode.height) {
        return None;
    }
    let (x, y, wide) = (u64::from(x), u64::from(y), u64::from(width));
    let offset = match kind(mode.number) {
        Kind::Cga4 => (y & 1) * 0x2000 + y / 2 * 80 + x / 4,
        Kind::Cga2 => (y & 1) * 0x2000 + y / 2 * 80 + x / 8,
        Kind::Planar => u64::from(page & 7) * u64::from(mode.page) + y * (wide / 8) + x / 8,
        Kind::Bytes => y * wide + x,
    };
    Some(linear(mode.segment, 0) + (offset & 0xffff))
}

/// Bits of the byte and where they lie in it.
fn bits(kind: Kind, x: u16) -> (u8, u16) {
    match kind {
        Kind::Cga4 => (3, 6 - 2 * (x & 3)),
        _ => (1, 7 - (x & 7)),
    }
}

/// Puts the graphics controller back to what the BIOS leaves it in.
fn plain(c: &mut Call) {
    for (n, value) in [(0, 0), (1, 0), (3, 0), (5, 0), (8, 0xff)] {
        c.set_indexed(0x3ce, n, value);
    }
    c.set_indexed(0x3c4, 2, 0x0f);
}

/// Writes bits of one byte of the planes in a colour; `xor` combines it with what is there.
fn paint(c: &mut Call, at: u64, mask: u8, colour: u8, xor: bool) {
    c.set_indexed(0x3ce, 5, 2);
    c.set_indexed(0x3ce, 3, if xor { 0x18 } else { 0 });
    c.set_indexed(0x3ce, 8, mask);
    // The latches.
    c.byte(at);
    c.set_byte(at, colour);
    plain(c);
}

/// Function 0Ch. Bit 7 of the colour combines it with what is there, where a dot has fewer than 8 bits.
pub(super) fn write_dot(c: &mut Call, page: u8, x: u16, y: u16, colour: u8) {
    let Some(at) = place(c, page, x, y) else { return };
    let xor = colour & 0x80 != 0;
    match kind(mode(c).number) {
        Kind::Bytes => c.set_byte(at, colour),
        Kind::Planar => paint(c, at, 0x80 >> (x & 7), colour & 15, xor),
        kind => {
            let (mask, shift) = bits(kind, x);
            let old = c.byte(at);
            let dot = (colour & mask) << shift;
            c.set_byte(at, if xor { old ^ dot } else { old & !(mask << shift) | dot });
        }
    }
}

/// Function 0Dh.
pub(super) fn read_dot(c: &mut Call, page: u8, x: u16, y: u16) -> u8 {
    let Some(at) = place(c, page, x, y) else { return 0 };
    match kind(mode(c).number) {
        Kind::Bytes => c.byte(at),
        Kind::Planar => {
            let mut dot = 0;
            for plane in 0..4 {
                c.set_indexed(0x3ce, 4, plane);
                dot |= (c.byte(at) >> (7 - (x & 7)) & 1) << plane;
            }
            c.set_indexed(0x3ce, 4, 0);
            dot
        }
        kind => {
            let (mask, shift) = bits(kind, x);
            c.byte(at) >> shift & mask
        }
    }
}

/// The dots of a character, from where INT 43h points, and INT 1Fh for the upper half in the CGA's modes.
fn glyph(c: &mut Call, ch: u8) -> Vec<u8> {
    let height = height(c);
    let upper = matches!(mode(c).number, 4..=6) && ch >= 0x80;
    let pointer = c.dword(4 * if upper { 0x1f } else { 0x43 });
    let n = u64::from(if upper { ch - 0x80 } else { ch });
    let mut dots = vec![0; height.into()];
    c.host.read(linear((pointer >> 16) as u16, pointer as u16) + n * u64::from(height), &mut dots);
    dots
}

/// Draws a character at column x of line y.
pub(super) fn draw_character(c: &mut Call, page: u8, x: u16, y: u16, ch: u8, colour: u8) {
    let dots = glyph(c, ch);
    let top = y * dots.len() as u16;
    let kind = kind(mode(c).number);
    for (row, byte) in (top..).zip(dots) {
        let Some(at) = place(c, page, x * 8, row) else { continue };
        match kind {
            Kind::Planar => {
                let xor = colour & 0x80 != 0;
                if !xor {
                    paint(c, at, !byte, 0, false);
                }
                paint(c, at, byte, colour & 15, xor);
            }
            Kind::Bytes => {
                let line: Vec<u8> = (0..8).map(|n| if byte << n & 0x80 != 0 { colour } else { 0 }).collect();
                c.host.write(at, &line);
            }
            _ => {
                for n in 0..8 {
                    let on = byte << n & 0x80 != 0;
                    if on || colour & 0x80 == 0 {
                        write_dot(c, page, x * 8 + n, row, if on { colour } else { 0 });
                    }
                }
            }
        }
    }
}

/// The character whose dots are at column x of line y; 0 if there is none.
pub(super) fn read_character(c: &mut Call, page: u8, x: u16, y: u16) -> u8 {
    let height = u16::from(height(c));
    let mut seen = Vec::new();
    for row in y * height..(y + 1) * height {
        seen.push((0..8).fold(0, |bits, n| bits << 1 | u8::from(read_dot(c, page, x * 8 + n, row) != 0)));
    }
    (0..=255).find(|ch| glyph(c, *ch) == seen).unwrap_or(0)
}

/// Moves a window of characters by `n` lines.
pub(super) fn scroll(c: &mut Call, page: u8, n: u16, colour: u8, w: Window, up: bool) {
    let high = u16::from(height(c));
    let (top, lines) = (w.top * high, (w.bottom - w.top + 1) * high);
    let kind = kind(mode(c).number);
    let each = match kind {
        Kind::Bytes => 8,
        Kind::Cga4 => 2,
        _ => 1,
    };
    let width = usize::from(w.right - w.left + 1) * each;
    let shift = n * high;
    let filler = match kind {
        Kind::Cga4 => (colour & 3) * 0x55,
        Kind::Cga2 => (colour & 1) * 0xff,
        _ => colour,
    };
    for step in 0..lines {
        let y = if up { top + step } else { top + lines - 1 - step };
        let Some(to) = place(c, page, w.left * 8, y) else { continue };
        let moved = step + shift < lines;
        let from = moved.then(|| place(c, page, w.left * 8, if up { y + shift } else { y - shift })).flatten();
        match (kind, from) {
            // Write mode 1 moves all planes at once.
            (Kind::Planar, Some(from)) => {
                c.set_indexed(0x3ce, 5, 1);
                for n in 0..width as u64 {
                    let byte = c.byte(from + n);
                    c.set_byte(to + n, byte);
                }
            }
            (Kind::Planar, None) => {
                c.set_indexed(0x3ce, 5, 2);
                c.host.write(to, &vec![colour & 15; width]);
            }
            (_, Some(from)) => {
                let mut row = vec![0; width];
                c.host.read(from, &mut row);
                c.host.write(to, &row);
            }
            (_, None) => c.host.write(to, &vec![filler; width]),
        }
    }
    if kind == Kind::Planar {
        plain(c);
    }
}
