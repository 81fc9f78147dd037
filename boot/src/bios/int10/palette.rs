//! Functions 0Bh and 10h: the attribute controller's palette and the DAC.

use super::super::{Call, data, linear};
use super::mode;
use crate::video::screen_on;

/// Writes a register of the attribute controller and lets the palette drive the screen again.
fn set_attribute(c: &mut Call, n: u8, value: u8) {
    let port = c.crtc();
    c.inb(port + 6);
    c.outb(0x3c0, n & 31);
    c.outb(0x3c0, value);
    c.ports(&screen_on(port));
}

fn attribute(c: &mut Call, n: u8) -> u8 {
    let port = c.crtc();
    c.inb(port + 6);
    c.outb(0x3c0, n & 31);
    let value = c.inb(0x3c1);
    c.ports(&screen_on(port));
    value
}

/// Function 0Bh: border or background, and the CGA's two palettes.
pub(super) fn cga(c: &mut Call) {
    let value = c.r.bl();
    let mut colours = c.byte(data::CGA_COLOURS);
    if c.r.bh() == 0 {
        colours = colours & !0x1f | value & 0x1f;
        // On the CGA's dark and bright colours: 10h more for the bright ones.
        let colour = value & 7 | (value & 8) << 1;
        set_attribute(c, 0x11, colour);
        if !mode(c).text {
            set_attribute(c, 0, colour);
        }
    } else {
        colours = colours & !0x20 | (value & 1) << 5;
        let bright = (colours & 0x10) & (attribute(c, 1) & 0x10);
        for n in 1..=3 {
            set_attribute(c, n, 2 * n | value & 1 | bright);
        }
    }
    c.set_byte(data::CGA_COLOURS, colours);
}

/// A colour of the DAC.
fn colour(c: &mut Call, n: u8) -> [u8; 3] {
    c.outb(0x3c7, n);
    [c.inb(0x3c9), c.inb(0x3c9), c.inb(0x3c9)]
}

fn set_colour(c: &mut Call, n: u8, parts: [u8; 3]) {
    c.outb(0x3c8, n);
    parts.into_iter().for_each(|part| c.outb(0x3c9, part));
}

/// Function 10h.
pub(super) fn service(c: &mut Call) {
    let (bl, bh) = (c.r.bl(), c.r.bh());
    let table = linear(c.r.es, c.r.dx());
    match c.r.al() {
        0x00 => set_attribute(c, bl, bh),
        0x01 => set_attribute(c, 0x11, bh),
        0x02 => {
            let mut all = [0; 17];
            c.host.read(table, &mut all);
            (0..16).for_each(|n| set_attribute(c, n, all[usize::from(n)]));
            set_attribute(c, 0x11, all[16]);
        }
        0x03 => {
            let control = attribute(c, 0x10) & !8;
            set_attribute(c, 0x10, control | (bl & 1) << 3);
        }
        0x07 => {
            let value = attribute(c, bl);
            c.r.set_bh(value);
        }
        0x08 => {
            let value = attribute(c, 0x11);
            c.r.set_bh(value);
        }
        0x09 => {
            let all: Vec<u8> = (0..16).chain([0x11]).map(|n| attribute(c, n)).collect();
            c.host.write(table, &all);
        }
        0x10 => set_colour(c, bl, [c.r.dh(), c.r.ch(), c.r.cl()]),
        0x12 => {
            let count = usize::from(c.r.cx()).min(256);
            let mut parts = vec![0; 3 * count];
            c.host.read(table, &mut parts);
            c.outb(0x3c8, bl);
            parts.into_iter().for_each(|part| c.outb(0x3c9, part));
        }
        0x13 => {
            let control = attribute(c, 0x10);
            if bl == 0 {
                set_attribute(c, 0x10, control & 0x7f | (bh & 1) << 7);
            } else {
                set_attribute(c, 0x14, if control & 0x80 != 0 { bh & 15 } else { bh << 2 & 12 });
            }
        }
        0x15 => {
            let [r, g, b] = colour(c, bl);
            c.r.set_dh(r);
            c.r.set_cx(u16::from_le_bytes([b, g]));
        }
        0x17 => {
            let count = c.r.cx().min(256);
            let parts: Vec<u8> = (0..count).flat_map(|n| colour(c, bl.wrapping_add(n as u8))).collect();
            c.host.write(table, &parts);
        }
        0x18 => c.outb(0x3c6, bl),
        0x19 => {
            let mask = c.inb(0x3c6);
            c.r.set_bl(mask);
        }
        0x1a => {
            let paged = attribute(c, 0x10) >> 7;
            let select = attribute(c, 0x14);
            c.r.set_bx(u16::from_le_bytes([paged, if paged != 0 { select & 15 } else { select >> 2 & 3 }]));
        }
        // To shades of grey, by how bright red, green and blue look.
        0x1b => {
            for n in 0..c.r.cx().min(256) {
                let at = bl.wrapping_add(n as u8);
                let [r, g, b] = colour(c, at).map(u16::from);
                let grey = ((30 * r + 59 * g + 11 * b) / 100).min(63) as u8;
                set_colour(c, at, [grey; 3]);
            }
        }
        _ => {}
    }
}
