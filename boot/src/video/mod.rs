//! What firmware knows of a VGA: the parameters of the standard modes, the colours and the fonts.
//!
//! Sources: IBM PS/2 Hardware Interface Technical Reference (register values of modes 0 to 13h), IBM PS/2 and PC BIOS
//! Interface Technical Reference (video parameter table). The built-in BIOS's INT 10h sets modes with these; a kernel
//! that is started without firmware finds mode 3 set.

mod font;

pub use font::{FONT_8X8, FONT_8X16, font_8x14};

/// An access to a port, a byte wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// A read, for what it does.
    In(u16),
    /// A write.
    Out(u16, u8),
}

/// The colours that a mode's DAC is loaded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// The EGA's 64.
    Ega,
    /// The CGA's 16, for modes of 200 lines.
    Cga,
    /// Shades of a monochrome screen.
    Mono,
    /// 16 colours, 16 greys, and 216 of three intensities and saturations.
    Many,
}

/// A mode of the VGA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// The number in INT 10h, function 0.
    pub number: u8,
    /// Characters a line.
    pub columns: u8,
    /// Lines of text.
    pub rows: u8,
    /// Lines of a character.
    pub height: u8,
    /// Where it is in memory: a segment.
    pub segment: u16,
    /// Bytes of a page of text or graphics, as the BIOS counts them.
    pub page: u16,
    /// It shows characters, not dots.
    pub text: bool,
    /// What the DAC holds.
    pub colours: Colours,
    misc: u8,
    seq: [u8; 4],
    crtc: [u8; 25],
    gfx: [u8; 9],
    attr: [u8; 20],
}

impl Mode {
    /// The mode of this number.
    pub fn find(number: u8) -> Option<&'static Mode> {
        MODES.iter().find(|m| m.number == number)
    }

    /// Miscellaneous output.
    pub fn misc(&self) -> u8 {
        self.misc
    }

    /// The port of the CRT controller's index.
    pub fn crtc_port(&self) -> u16 {
        if self.misc & 1 != 0 { 0x3d4 } else { 0x3b4 }
    }

    /// First and last line of the cursor.
    pub fn cursor(&self) -> (u8, u8) {
        (self.crtc[0x0a], self.crtc[0x0b])
    }

    /// The 64 bytes of its entry in the BIOS's video parameter table.
    pub fn parameters(&self) -> [u8; 64] {
        let mut table = [0; 64];
        table[..5].copy_from_slice(&[
            self.columns,
            self.rows - 1,
            self.height,
            self.page as u8,
            (self.page >> 8) as u8,
        ]);
        table[5..9].copy_from_slice(&self.seq);
        table[9] = self.misc;
        table[10..35].copy_from_slice(&self.crtc);
        table[35..55].copy_from_slice(&self.attr);
        table[55..].copy_from_slice(&self.gfx);
        table
    }

    /// Sets the registers, the palette too. The screen stays dark until [`screen_on`].
    pub fn registers(&self) -> Vec<Port> {
        let crtc = self.crtc_port();
        let status = crtc + 6;
        // The address of the attribute controller without its bit 5 makes the screen dark.
        let mut out = vec![Port::Out(0x3c3, 1), Port::Out(0x3c2, self.misc), Port::In(status), Port::Out(0x3c0, 0)];
        let mut indexed = |index: u16, n: usize, value: u8| {
            out.extend([Port::Out(index, n as u8), Port::Out(index + 1, value)]);
        };
        indexed(0x3c4, 0, 1);
        self.seq.iter().enumerate().for_each(|(n, v)| indexed(0x3c4, n + 1, *v));
        indexed(0x3c4, 0, 3);
        // Registers 0 to 7 are protected by 11.
        indexed(crtc, 0x11, self.crtc[0x11] & 0x7f);
        self.crtc.iter().enumerate().for_each(|(n, v)| indexed(crtc, n, *v));
        self.gfx.iter().enumerate().for_each(|(n, v)| indexed(0x3ce, n, *v));
        out.push(Port::In(status));
        let attr = self.attr.iter().chain(&[0]).enumerate();
        out.extend(attr.flat_map(|(n, v)| [Port::Out(0x3c0, n as u8), Port::Out(0x3c0, *v)]));
        out
    }

    /// Loads the DAC.
    pub fn dac(&self) -> Vec<Port> {
        let mut out = vec![Port::Out(0x3c6, 0xff), Port::Out(0x3c8, 0)];
        out.extend(self.colours.table().as_flattened().iter().map(|part| Port::Out(0x3c9, *part)));
        out
    }
}

/// Lets the palette drive the screen; `crtc` is [`Mode::crtc_port`].
pub fn screen_on(crtc: u16) -> [Port; 2] {
    [Port::In(crtc + 6), Port::Out(0x3c0, 0x20)]
}

/// Makes A0000 a window on plane 2, where the fonts are, whatever the mode.
pub const FONT_OPEN: [Port; 10] = [
    Port::Out(0x3c4, 2),
    Port::Out(0x3c5, 4),
    Port::Out(0x3c4, 4),
    Port::Out(0x3c5, 6),
    Port::Out(0x3ce, 4),
    Port::Out(0x3cf, 2),
    Port::Out(0x3ce, 5),
    Port::Out(0x3cf, 0),
    Port::Out(0x3ce, 6),
    Port::Out(0x3cf, 4),
];

/// Undoes [`FONT_OPEN`] in a text mode; `crtc` is [`Mode::crtc_port`].
pub fn font_close(crtc: u16) -> [Port; 10] {
    let map = if crtc == 0x3b4 { 0x0a } else { 0x0e };
    [
        Port::Out(0x3c4, 2),
        Port::Out(0x3c5, 3),
        Port::Out(0x3c4, 4),
        Port::Out(0x3c5, 2),
        Port::Out(0x3ce, 4),
        Port::Out(0x3cf, 0),
        Port::Out(0x3ce, 5),
        Port::Out(0x3cf, 0x10),
        Port::Out(0x3ce, 6),
        Port::Out(0x3cf, map),
    ]
}

/// Where font `block` (0 to 7) begins in plane 2.
pub fn font_block(block: u8) -> u16 {
    u16::from(block & 3) << 14 | u16::from(block >> 2 & 1) << 13
}

/// Glyphs as they lie in plane 2: 32 bytes each.
pub fn glyphs<const N: usize>(font: &[[u8; N]]) -> Vec<u8> {
    let mut out = vec![0; 32 * font.len()];
    out.chunks_exact_mut(32).zip(font).for_each(|(to, glyph)| to[..N].copy_from_slice(glyph));
    out
}

impl Colours {
    /// The DAC's 256 colours, red, green and blue of 6 bits.
    pub fn table(self) -> [[u8; 3]; 256] {
        let mut table = [[0; 3]; 256];
        match self {
            Colours::Ega => table.iter_mut().take(64).zip(0u8..).for_each(|(c, n)| {
                *c = [2, 1, 0].map(|bit| 0x2a * (n >> bit & 1) + 0x15 * (n >> (bit + 3) & 1));
            }),
            Colours::Cga => table.iter_mut().take(64).zip(0u8..).for_each(|(c, n)| *c = cga(n & 7, n & 0x10 != 0)),
            Colours::Mono => table.iter_mut().take(64).zip(0u8..).for_each(|(c, n)| {
                *c = [[0, 0x2a, 0x15, 0x3f][usize::from(n >> 3 & 3)]; 3];
            }),
            Colours::Many => {
                for (c, n) in table.iter_mut().zip(0u8..16) {
                    *c = cga(n & 7, n & 8 != 0);
                }
                const GREYS: [u8; 16] = [0, 5, 8, 11, 14, 17, 20, 24, 28, 32, 36, 40, 45, 50, 56, 63];
                table[16..32].iter_mut().zip(GREYS).for_each(|(c, grey)| *c = [grey; 3]);
                table[32..248].iter_mut().zip(WHEELS.iter().flat_map(wheel)).for_each(|(c, hue)| *c = hue);
            }
        }
        table
    }
}

/// The CGA's colours; its monitors show dark yellow as brown.
fn cga(n: u8, bright: bool) -> [u8; 3] {
    let light = if bright { 0x15 } else { 0 };
    match [2, 1, 0].map(|bit| 0x2a * (n >> bit & 1) + light) {
        [0x2a, 0x2a, 0] => [0x2a, 0x15, 0],
        colour => colour,
    }
}

/// Five levels each of three saturations in three intensities.
const WHEELS: [[u8; 5]; 9] = [
    [0x00, 0x10, 0x1f, 0x2f, 0x3f],
    [0x1f, 0x27, 0x2f, 0x37, 0x3f],
    [0x2d, 0x31, 0x36, 0x3a, 0x3f],
    [0x00, 0x07, 0x0e, 0x15, 0x1c],
    [0x0e, 0x11, 0x15, 0x18, 0x1c],
    [0x14, 0x16, 0x18, 0x1a, 0x1c],
    [0x00, 0x04, 0x08, 0x0c, 0x10],
    [0x08, 0x0a, 0x0c, 0x0e, 0x10],
    [0x0b, 0x0c, 0x0d, 0x0f, 0x10],
];

/// The 24 hues from blue by red and green back to blue, in these levels.
fn wheel(levels: &[u8; 5]) -> impl Iterator<Item = [u8; 3]> {
    (0..24).map(|n| {
        let up = n % 4;
        let hue = match n / 4 {
            0 => [up, 0, 4],
            1 => [4, 0, 4 - up],
            2 => [4, up, 0],
            3 => [4 - up, 4, 0],
            4 => [0, 4, up],
            _ => [0, 4 - up, 4],
        };
        hue.map(|level| levels[level])
    })
}

const TEXT_CRTC: [u8; 25] = [
    0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0, 0x4f, 0x0d, 0x0e, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28, 0x1f,
    0x96, 0xb9, 0xa3, 0xff,
];
/// 40 columns, 200 lines; the bytes that differ among the modes are 9, 14 and 17.
const LOW_CRTC: [u8; 25] = [
    0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80, 0xbf, 0x1f, 0, 0xc1, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x14, 0, 0x96, 0xb9,
    0xa2, 0xff,
];
/// 80 columns, 200 lines.
const WIDE_CRTC: [u8; 25] = [
    0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0, 0xc1, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28, 0, 0x96, 0xb9,
    0xc2, 0xff,
];
/// 80 columns, 350 lines.
const EGA_CRTC: [u8; 25] = [
    0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0, 0x40, 0, 0, 0, 0, 0, 0, 0x83, 0x85, 0x5d, 0x28, 0x0f, 0x63,
    0xba, 0xe3, 0xff,
];
/// 80 columns, 480 lines.
const VGA_CRTC: [u8; 25] = [
    0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0b, 0x3e, 0, 0x40, 0, 0, 0, 0, 0, 0, 0xea, 0x8c, 0xdf, 0x28, 0, 0xe7, 0x04,
    0xe3, 0xff,
];

const fn with(mut crtc: [u8; 25], changes: &[(usize, u8)]) -> [u8; 25] {
    let mut n = 0;
    while n < changes.len() {
        crtc[changes[n].0] = changes[n].1;
        n += 1;
    }
    crtc
}

const TEXT_GFX: [u8; 9] = [0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff];
const PLANAR_GFX: [u8; 9] = [0, 0, 0, 0, 0, 0, 0x05, 0x0f, 0xff];

/// Palettes with the attribute controller's registers 10 to 13 behind them.
const EGA_ATTR: [u8; 20] =
    [0, 1, 2, 3, 4, 5, 0x14, 7, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x01, 0, 0x0f, 0];
const CGA_ATTR: [u8; 20] = [0, 1, 2, 3, 4, 5, 6, 7, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x01, 0, 0x0f, 0];

/// A palette of black and one colour.
const fn two(colour: u8) -> [u8; 20] {
    let mut attr = [colour; 20];
    attr[0] = 0;
    attr
}

/// A palette with other registers 10 to 13.
const fn ending(mut attr: [u8; 20], end: [u8; 4]) -> [u8; 20] {
    let mut n = 0;
    while n < 4 {
        attr[16 + n] = end[n];
        n += 1;
    }
    attr
}

const TEXT: Mode = Mode {
    number: 3,
    columns: 80,
    rows: 25,
    height: 16,
    segment: 0xb800,
    page: 0x1000,
    text: true,
    colours: Colours::Ega,
    misc: 0x67,
    seq: [0x00, 0x03, 0x00, 0x02],
    crtc: TEXT_CRTC,
    gfx: TEXT_GFX,
    attr: ending(EGA_ATTR, [0x0c, 0, 0x0f, 0x08]),
};
const TEXT_40: Mode = Mode {
    number: 1,
    columns: 40,
    page: 0x0800,
    seq: [0x08, 0x03, 0x00, 0x02],
    crtc: with(LOW_CRTC, &[(5, 0xa0), (9, 0x4f), (0x0a, 0x0d), (0x0b, 0x0e), (0x14, 0x1f), (0x17, 0xa3)]),
    ..TEXT
};
const CGA: Mode = Mode {
    number: 4,
    columns: 40,
    height: 8,
    page: 0x4000,
    text: false,
    colours: Colours::Cga,
    misc: 0x63,
    seq: [0x09, 0x03, 0x00, 0x02],
    crtc: LOW_CRTC,
    gfx: [0, 0, 0, 0, 0, 0x30, 0x0f, 0, 0xff],
    attr: [0, 0x13, 0x15, 0x17, 2, 4, 6, 7, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x01, 0, 0x03, 0],
    ..TEXT
};
const PLANAR: Mode = Mode {
    number: 0x0e,
    height: 8,
    segment: 0xa000,
    page: 0x4000,
    text: false,
    colours: Colours::Cga,
    misc: 0x63,
    seq: [0x01, 0x0f, 0x00, 0x06],
    crtc: with(WIDE_CRTC, &[(9, 0xc0), (0x17, 0xe3)]),
    gfx: PLANAR_GFX,
    attr: CGA_ATTR,
    ..TEXT
};
const PLANAR_480: Mode = Mode {
    number: 0x12,
    rows: 30,
    height: 16,
    page: 0xa000,
    colours: Colours::Ega,
    misc: 0xe3,
    crtc: VGA_CRTC,
    attr: EGA_ATTR,
    ..PLANAR
};

/// All of them.
pub static MODES: [Mode; 15] = [
    Mode { number: 0, ..TEXT_40 },
    TEXT_40,
    Mode { number: 2, ..TEXT },
    TEXT,
    CGA,
    Mode { number: 5, ..CGA },
    Mode {
        number: 6,
        columns: 80,
        seq: [0x01, 0x01, 0x00, 0x06],
        crtc: WIDE_CRTC,
        gfx: [0, 0, 0, 0, 0, 0, 0x0d, 0, 0xff],
        attr: ending(two(0x17), [0x01, 0, 0x01, 0]),
        ..CGA
    },
    Mode {
        number: 7,
        segment: 0xb000,
        colours: Colours::Mono,
        misc: 0x66,
        crtc: with(TEXT_CRTC, &[(0x14, 0x0d)]),
        gfx: [0, 0, 0, 0, 0, 0x10, 0x0a, 0, 0xff],
        attr: [0, 8, 8, 8, 8, 8, 8, 8, 0x10, 0x18, 0x18, 0x18, 0x18, 0x18, 0x18, 0x18, 0x0e, 0, 0x0f, 0x08],
        ..TEXT
    },
    Mode {
        number: 0x0d,
        columns: 40,
        page: 0x2000,
        seq: [0x09, 0x0f, 0x00, 0x06],
        crtc: with(LOW_CRTC, &[(9, 0xc0), (0x17, 0xe3)]),
        ..PLANAR
    },
    PLANAR,
    Mode {
        number: 0x0f,
        height: 14,
        page: 0x8000,
        colours: Colours::Mono,
        misc: 0xa2,
        crtc: EGA_CRTC,
        gfx: [0, 0, 0, 0, 0, 0, 0x05, 0x05, 0xff],
        attr: [0, 8, 0, 0, 0x18, 0x18, 0, 0, 0, 8, 0, 0, 0, 0x18, 0, 0, 0x0b, 0, 0x05, 0],
        ..PLANAR
    },
    Mode {
        number: 0x10,
        height: 14,
        page: 0x8000,
        colours: Colours::Ega,
        misc: 0xa3,
        crtc: EGA_CRTC,
        attr: EGA_ATTR,
        ..PLANAR
    },
    Mode {
        number: 0x11,
        crtc: with(VGA_CRTC, &[(0x17, 0xc3)]),
        attr: ending(two(0x3f), [0x01, 0, 0x0f, 0]),
        ..PLANAR_480
    },
    PLANAR_480,
    Mode {
        number: 0x13,
        columns: 40,
        page: 0xfa00,
        colours: Colours::Many,
        seq: [0x01, 0x0f, 0x00, 0x0e],
        crtc: with(WIDE_CRTC, &[(9, 0x41), (0x14, 0x40), (0x17, 0xa3)]),
        gfx: [0, 0, 0, 0, 0, 0x40, 0x05, 0x0f, 0xff],
        attr: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0x41, 0, 0x0f, 0],
        ..PLANAR
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_has_as_many_columns_and_lines_as_its_registers_show() {
        for m in &MODES {
            assert_eq!(m.crtc[1] + 1, if m.number == 0x13 { 2 * m.columns } else { m.columns }, "mode {:x}", m.number);
            let lines = u16::from(m.crtc[0x12]) + 1 + (u16::from(m.crtc[7]) >> 1 & 1) * 256;
            let double = if m.crtc[9] & 0x80 != 0 || m.number == 0x13 { 2 } else { 1 };
            assert_eq!(lines / double, u16::from(m.rows) * u16::from(m.height), "mode {:x}", m.number);
        }
    }

    #[test]
    fn the_parameter_table_has_the_order_that_programs_know() {
        let table = Mode::find(3).unwrap().parameters();
        assert_eq!(table[..10], [80, 24, 16, 0, 0x10, 0, 3, 0, 2, 0x67]);
        assert_eq!((table[10], table[34], table[35], table[54], table[55], table[63]), (0x5f, 0xff, 0, 8, 0, 0xff));
    }

    #[test]
    fn colours_are_those_of_the_adapters_before() {
        let (ega, cga, many) = (Colours::Ega.table(), Colours::Cga.table(), Colours::Many.table());
        assert_eq!((ega[7], ega[0x14], ega[0x38]), ([0x2a; 3], [0x2a, 0x15, 0], [0x15; 3]));
        assert_eq!((cga[6], cga[0x16]), ([0x2a, 0x15, 0], [0x3f, 0x3f, 0x15]));
        assert_eq!(
            (many[32], many[40], many[247], many[248]),
            ([0, 0, 0x3f], [0x3f, 0, 0], [0x0b, 0x0c, 0x10], [0; 3])
        );
    }

    #[test]
    fn fonts_agree_on_what_is_blank_and_what_is_solid() {
        let middle = font_8x14();
        for n in [0, 0x20, 0xff] {
            assert_eq!((FONT_8X8[n], middle[n], FONT_8X16[n]), ([0; 8], [0; 14], [0; 16]));
        }
        assert_eq!((FONT_8X8[0xdb], middle[0xdb], FONT_8X16[0xdb]), ([0xff; 8], [0xff; 14], [0xff; 16]));
        assert!((0x21..0x7f).all(|n| FONT_8X8[n] != [0; 8] && FONT_8X16[n] != [0; 16]));
    }
}
