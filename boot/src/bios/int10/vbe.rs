//! Function 4Fh: VESA's modes, on adapters that have Bochs' display interface.
//!
//! Modes have the numbers that VESA gave them and, above, those that SeaVGABIOS uses. All but those of 4 bits a pixel
//! have a linear frame buffer. There is no protected-mode interface and no saved state; banks are moved by function 05.

use super::super::{Call, data, linear};
use super::far;

/// Where the manufacturer's name lies in the ROM.
pub(super) const STRING: u16 = 0xd040;

/// Registers of DISPI.
const ID: u16 = 0;
const XRES: u16 = 1;
const YRES: u16 = 2;
const BPP: u16 = 3;
const ENABLE: u16 = 4;
const BANK: u16 = 5;
const VIRT_WIDTH: u16 = 6;
const X_OFFSET: u16 = 8;
const Y_OFFSET: u16 = 9;
const MEMORY: u16 = 10;

const ENABLED: u16 = 1;
const DAC_8BIT: u16 = 0x20;
const LFB: u16 = 0x40;
const NO_CLEAR: u16 = 0x80;

/// Number, width, height, bits a pixel.
const MODES: [(u16, u16, u16, u8); 30] = [
    (0x100, 640, 400, 8),
    (0x101, 640, 480, 8),
    (0x102, 800, 600, 4),
    (0x103, 800, 600, 8),
    (0x104, 1024, 768, 4),
    (0x105, 1024, 768, 8),
    (0x107, 1280, 1024, 8),
    (0x10d, 320, 200, 15),
    (0x10e, 320, 200, 16),
    (0x10f, 320, 200, 24),
    (0x110, 640, 480, 15),
    (0x111, 640, 480, 16),
    (0x112, 640, 480, 24),
    (0x113, 800, 600, 15),
    (0x114, 800, 600, 16),
    (0x115, 800, 600, 24),
    (0x116, 1024, 768, 15),
    (0x117, 1024, 768, 16),
    (0x118, 1024, 768, 24),
    (0x119, 1280, 1024, 15),
    (0x11a, 1280, 1024, 16),
    (0x11b, 1280, 1024, 24),
    (0x11c, 1600, 1200, 8),
    (0x11e, 1600, 1200, 16),
    (0x11f, 1600, 1200, 24),
    (0x140, 320, 200, 32),
    (0x142, 640, 480, 32),
    (0x143, 800, 600, 32),
    (0x144, 1024, 768, 32),
    (0x145, 1280, 1024, 32),
];

fn read(c: &mut Call, n: u16) -> u16 {
    c.host.outp(0x1ce, 2, n.into());
    c.host.inp(0x1cf, 2) as u16
}

fn write(c: &mut Call, n: u16, value: u16) {
    c.host.outp(0x1ce, 2, n.into());
    c.host.outp(0x1cf, 2, value.into());
}

fn there(c: &mut Call) -> bool {
    (0xb0c0..=0xb0c5).contains(&read(c, ID))
}

/// The standard modes are about to come back.
pub(super) fn leave(c: &mut Call) {
    if there(c) {
        write(c, ENABLE, 0);
    }
}

/// The frame buffer's address: BAR 0 of the display function.
fn frame_buffer(c: &mut Call) -> u32 {
    for device in 0..32u32 {
        let mut config = |register: u32| {
            c.host.outp(0xcf8, 4, 0x8000_0000 | device << 11 | register);
            c.host.inp(0xcfc, 4)
        };
        if config(8) >> 16 == 0x0300 {
            return config(0x10) & !15;
        }
    }
    0
}

/// Bytes of a line.
fn pitch(width: u16, bpp: u8) -> u16 {
    match bpp {
        4 => width / 8,
        15 => width * 2,
        bpp => width * (u16::from(bpp) / 8),
    }
}

fn bytes(width: u16, height: u16, bpp: u8) -> u32 {
    u32::from(pitch(width, bpp)) * u32::from(height) * if bpp == 4 { 4 } else { 1 }
}

/// The modes that fit the adapter's memory.
fn modes(c: &mut Call) -> impl Iterator<Item = &'static (u16, u16, u16, u8)> {
    let memory = u32::from(read(c, MEMORY)) << 16;
    MODES.iter().filter(move |(_, w, h, bpp)| bytes(*w, *h, *bpp) <= memory)
}

/// Function 00: what there is. Callers that say VBE2 have room for 512 bytes.
fn information(c: &mut Call) {
    let at = linear(c.r.es, c.r.di());
    let mut asked = [0; 4];
    c.host.read(at, &mut asked);
    let (es, di) = (c.r.es, c.r.di());
    let mut info = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| info[at..at + bytes.len()].copy_from_slice(bytes);
    let name = far(data::ROM_SEGMENT, STRING).to_le_bytes();
    put(0, b"VESA");
    put(4, &[0x00, 0x02]);
    put(6, &name);
    // The DAC can be switched to 8 bits.
    put(10, &[1]);
    // The list of modes follows in the caller's own block.
    put(14, &far(es, di.wrapping_add(0x40)).to_le_bytes());
    put(18, &read(c, MEMORY).to_le_bytes());
    put(22, &name);
    put(26, &name);
    let mut list: Vec<u16> = modes(c).map(|mode| mode.0).collect();
    list.push(0xffff);
    put(0x40, &list.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>());
    let len = if asked == *b"VBE2" { 512 } else { 256 };
    c.host.write(at, &info[..len]);
}

/// Function 01: what a mode is like.
fn mode_information(c: &mut Call) -> bool {
    let number = c.r.cx() & 0x1ff;
    let Some(&(_, width, height, bpp)) = modes(c).find(|mode| mode.0 == number) else { return false };
    let planar = bpp == 4;
    let lfb = if planar { 0 } else { frame_buffer(c) };
    let mut info = [0; 256];
    let mut put = |at: usize, bytes: &[u8]| info[at..at + bytes.len()].copy_from_slice(bytes);
    // Supported, colour, graphics, information complete; a linear frame buffer.
    put(0, &[0x1b | if lfb != 0 { 0x80 } else { 0 }, 0]);
    // Window A: it exists, can be read and written, moves by 64 KiB, is as large, and lies at A000.
    put(2, &[7, 0, 64, 0, 64, 0, 0x00, 0xa0, 0, 0]);
    put(16, &pitch(width, bpp).to_le_bytes());
    put(18, &width.to_le_bytes());
    put(20, &height.to_le_bytes());
    let depth = if bpp == 15 { 16 } else { bpp };
    let model = match bpp {
        4 => 3,
        8 => 4,
        _ => 6,
    };
    put(22, &[8, 16, if planar { 4 } else { 1 }, depth, 1, model, 0, 0, 1]);
    let masks: [u8; 8] = match bpp {
        15 => [5, 10, 5, 5, 5, 0, 1, 15],
        16 => [5, 11, 6, 5, 5, 0, 0, 0],
        24 => [8, 16, 8, 8, 8, 0, 0, 0],
        32 => [8, 16, 8, 8, 8, 0, 8, 24],
        _ => [0; 8],
    };
    put(31, &masks);
    put(40, &lfb.to_le_bytes());
    let at = linear(c.r.es, c.r.di());
    c.host.write(at, &info);
    true
}

/// Function 02: sets a mode, a standard one too.
fn set_mode(c: &mut Call) -> bool {
    let (number, keep) = (c.r.bx() & 0x1ff, c.r.bx() & 0x8000 != 0);
    if number < 0x100 {
        super::set_mode(c, number as u8 & 0x7f | if keep { 0x80 } else { 0 });
        return true;
    }
    let Some(&(_, width, height, bpp)) = modes(c).find(|mode| mode.0 == number) else { return false };
    // The registers that matter beside: 16 colours in planes, or the DAC's 256.
    super::set_mode(c, if bpp == 4 { 0x12 } else { 0x13 } | 0x80);
    write(c, XRES, width);
    write(c, YRES, height);
    write(c, BPP, bpp.into());
    write(c, ENABLE, ENABLED | LFB | if keep { NO_CLEAR } else { 0 });
    // Programs ask for the columns and rows that characters would have.
    c.set_word(data::COLUMNS, width / 8);
    c.set_byte(data::ROWS, (height / 16 - 1) as u8);
    c.set_word(data::CHAR_HEIGHT, 16);
    true
}

/// The mode in force.
fn current(c: &mut Call) -> u16 {
    if read(c, ENABLE) & ENABLED == 0 {
        return c.byte(data::VIDEO_MODE).into();
    }
    let (width, height, bpp) = (read(c, XRES), read(c, YRES), read(c, BPP));
    let found = MODES.iter().find(|m| (m.1, m.2, u16::from(m.3)) == (width, height, bpp));
    found.map_or(0, |mode| mode.0 | 0x4000)
}

/// Functions 06: the length of a line.
fn line_length(c: &mut Call) -> bool {
    let bpp = read(c, BPP) as u8;
    match c.r.bl() {
        0 => {
            let width = c.r.cx();
            write(c, VIRT_WIDTH, width);
        }
        2 => {
            let each = pitch(8, bpp).max(1);
            let width = c.r.cx() / each * 8;
            write(c, VIRT_WIDTH, width);
        }
        1 | 3 => {}
        _ => return false,
    }
    let memory = u32::from(read(c, MEMORY)) << 16;
    let widest = (memory / bytes(8, read(c, YRES).max(1), bpp).max(1) * 8).min(0xffff) as u16;
    let width = if c.r.bl() == 3 { widest } else { read(c, VIRT_WIDTH) };
    let lines = (memory / bytes(width.max(8), 1, bpp).max(1)).min(0xffff);
    c.r.set_bx(pitch(width, bpp));
    c.r.set_cx(width);
    c.r.set_dx(lines as u16);
    true
}

/// Function 09: the DAC's colours, blue first.
fn colours(c: &mut Call) -> bool {
    let count = usize::from(c.r.cx()).min(256 - usize::from(c.r.dl()));
    let (first, at) = (c.r.dl(), linear(c.r.es, c.r.di()));
    let mut table = vec![0; 4 * count];
    match c.r.bl() {
        0x00 | 0x80 => {
            c.host.read(at, &mut table);
            c.outb(0x3c8, first);
            for colour in table.chunks_exact(4) {
                [colour[2], colour[1], colour[0]].into_iter().for_each(|part| c.outb(0x3c9, part));
            }
        }
        0x01 => {
            c.outb(0x3c7, first);
            for colour in table.chunks_exact_mut(4) {
                [2, 1, 0].into_iter().for_each(|n| colour[n] = c.inb(0x3c9));
            }
            c.host.write(at, &table);
        }
        _ => return false,
    }
    true
}

/// Function 4Fh. AL is 4F where the function exists, AH 0 where it worked.
pub(super) fn service(c: &mut Call) {
    if !there(c) {
        return;
    }
    let enabled = read(c, ENABLE) & ENABLED != 0;
    let worked = match c.r.al() {
        0x00 => {
            information(c);
            true
        }
        0x01 => mode_information(c),
        0x02 => set_mode(c),
        0x03 => {
            let mode = current(c);
            c.r.set_bx(mode);
            true
        }
        0x05 if c.r.bl() != 0 || !enabled => false,
        0x05 => {
            if c.r.bh() == 0 {
                let bank = c.r.dx();
                write(c, BANK, bank);
            } else {
                let bank = read(c, BANK);
                c.r.set_dx(bank);
            }
            true
        }
        0x06 => enabled && line_length(c),
        0x07 => match c.r.bl() {
            _ if !enabled => false,
            0x00 | 0x80 => {
                let (x, y) = (c.r.cx(), c.r.dx());
                write(c, X_OFFSET, x);
                write(c, Y_OFFSET, y);
                true
            }
            0x01 => {
                let (x, y) = (read(c, X_OFFSET), read(c, Y_OFFSET));
                c.r.set_bh(0);
                c.r.set_cx(x);
                c.r.set_dx(y);
                true
            }
            _ => false,
        },
        0x08 => {
            let mut enable = read(c, ENABLE);
            if c.r.bl() == 0 {
                enable = if c.r.bh() >= 8 { enable | DAC_8BIT } else { enable & !DAC_8BIT };
                // The picture stays.
                write(c, ENABLE, enable | NO_CLEAR);
            }
            c.r.set_bh(if enable & DAC_8BIT != 0 { 8 } else { 6 });
            c.r.bl() <= 1
        }
        0x09 => colours(c),
        _ => return,
    };
    c.r.set_ax(if worked { 0x004f } else { 0x014f });
}
