//! Function 11h: the fonts of text and graphics modes.

use super::super::{Call, data, linear};
use super::{far, mode};
use crate::video::{self, FONT_8X8, FONT_8X16, font_8x14};

/// Where the fonts lie in the ROM. Programs know the lower half of 8x8 at FA6E.
const ROM_8X16: u16 = 0xa000;
const ROM_8X14: u16 = 0xb000;
const ROM_8X8: u16 = 0xbe00;
const LOW_8X8: u16 = 0xfa6e;
/// The upper half of 8x8, for INT 1Fh.
pub(super) const HIGH_8X8: u16 = ROM_8X8 + 0x400;

pub(super) fn rom_tables() -> Vec<(u16, Vec<u8>)> {
    vec![
        (ROM_8X16, FONT_8X16.as_flattened().to_vec()),
        (ROM_8X14, font_8x14().as_flattened().to_vec()),
        (ROM_8X8, FONT_8X8.as_flattened().to_vec()),
        (LOW_8X8, FONT_8X8[..128].as_flattened().to_vec()),
    ]
}

/// The font in the ROM for characters of a height.
pub(super) fn of_height(height: u8) -> u16 {
    match height {
        16 => ROM_8X16,
        14 => ROM_8X14,
        _ => ROM_8X8,
    }
}

/// Loads `count` glyphs of 32 bytes from character `first` on into a block of plane 2.
pub(super) fn load(c: &mut Call, glyphs: &[u8], block: u8, first: u16, count: u16) {
    let crtc = c.crtc();
    c.ports(&video::FONT_OPEN);
    let at = linear(0xa000, video::font_block(block)) + 32 * u64::from(first & 255);
    let len = (usize::from(count) * 32).min(glyphs.len()).min(0x2000 - 32 * usize::from(first & 255));
    c.host.write(at, &glyphs[..len]);
    c.ports(&video::font_close(crtc));
}

/// As many lines of text as fit characters of a height; the CRT controller follows.
fn adopt(c: &mut Call, height: u8) {
    let height = height.clamp(1, 32);
    let port = c.crtc();
    let old = c.indexed(port, 9);
    c.set_indexed(port, 9, old & 0xe0 | (height - 1));
    let overflow = c.indexed(port, 7);
    let lines = u16::from(c.indexed(port, 0x12)) | u16::from(overflow & 2) << 7 | u16::from(overflow & 0x40) << 3;
    let rows = ((lines + 1) >> (old >> 7)) / u16::from(height);
    // Lines that are no whole character's are not shown.
    let last = (rows * u16::from(height)) << (old >> 7);
    let end = last.max(1) - 1;
    c.set_indexed(port, 0x12, end as u8);
    c.set_byte(data::ROWS, (rows.clamp(1, 256) - 1) as u8);
    c.set_word(data::CHAR_HEIGHT, height.into());
    let page = 2 * c.word(data::COLUMNS).wrapping_mul(rows);
    c.set_word(data::PAGE_SIZE, page.wrapping_add(0x1ff) & 0xfe00);
    let (first, last) = if height >= 14 { (height - 3, height - 2) } else { (height.max(2) - 2, height - 1) };
    c.set_indexed(port, 0x0a, first);
    c.set_indexed(port, 0x0b, last);
    c.set_word(data::CURSOR_SHAPE, u16::from_le_bytes([last, first]));
}

/// Names a font for graphics modes.
fn graphics(c: &mut Call, pointer: u32, height: u8) {
    c.set_dword(4 * 0x43, pointer);
    let lines = u16::from(mode(c).rows) * u16::from(mode(c).height);
    let rows = match c.r.bl() {
        1 => 14,
        2 => 25,
        3 => 43,
        _ if c.r.dl() != 0 => u16::from(c.r.dl()),
        _ => lines / u16::from(height.max(1)),
    };
    c.set_byte(data::ROWS, (rows.max(1) - 1) as u8);
    c.set_word(data::CHAR_HEIGHT, height.clamp(1, 32).into());
}

/// Function 11h.
pub(super) fn service(c: &mut Call) {
    let (al, block) = (c.r.al(), c.r.bl());
    match al {
        0x00 | 0x10 => {
            let height = c.r.bh().clamp(1, 32);
            let (first, count) = (c.r.dx() & 255, c.r.cx().min(256));
            let mut dots = vec![0; usize::from(count) * usize::from(height)];
            c.host.read(linear(c.r.es, c.r.bp()), &mut dots);
            let mut glyphs = vec![0; usize::from(count) * 32];
            for (to, from) in glyphs.chunks_exact_mut(32).zip(dots.chunks_exact(height.into())) {
                to[..from.len()].copy_from_slice(from);
            }
            load(c, &glyphs, block, first, count);
            if al == 0x10 {
                adopt(c, height);
            }
        }
        0x01 | 0x02 | 0x04 | 0x11 | 0x12 | 0x14 => {
            let (glyphs, height) = match al & 7 {
                1 => (video::glyphs(&font_8x14()), 14),
                2 => (video::glyphs(&FONT_8X8), 8),
                _ => (video::glyphs(&FONT_8X16), 16),
            };
            load(c, &glyphs, block, 0, 256);
            if al >= 0x10 {
                adopt(c, height);
            }
        }
        0x03 => c.set_indexed(0x3c4, 3, block),
        0x20 => {
            let pointer = far(c.r.es, c.r.bp());
            c.set_dword(4 * 0x1f, pointer);
        }
        0x21 => {
            let (pointer, height) = (far(c.r.es, c.r.bp()), c.r.cl());
            graphics(c, pointer, height);
        }
        0x22..=0x24 => {
            let height = [14, 8, 16][usize::from(al - 0x22)];
            graphics(c, far(data::ROM_SEGMENT, of_height(height)), height);
        }
        0x30 => {
            let pointer = match c.r.bh() {
                0 => c.dword(4 * 0x1f),
                1 => c.dword(4 * 0x43),
                2 | 5 => far(data::ROM_SEGMENT, ROM_8X14),
                3 => far(data::ROM_SEGMENT, ROM_8X8),
                4 => far(data::ROM_SEGMENT, HIGH_8X8),
                6 | 7 => far(data::ROM_SEGMENT, ROM_8X16),
                _ => return,
            };
            c.r.es = (pointer >> 16) as u16;
            c.r.set_bp(pointer as u16);
            let (height, rows) = (c.word(data::CHAR_HEIGHT), c.byte(data::ROWS));
            c.r.set_cx(height);
            c.r.set_dl(rows);
        }
        _ => {}
    }
}
