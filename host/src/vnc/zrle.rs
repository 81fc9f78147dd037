//! The encoding ZRLE: tiles of 64 by 64 as runs or with palettes, in one zlib stream a connection.

use emu::Picture;
use flate2::{Compress, Compression, FlushCompress};

use super::format::Converter;
use super::hextile::gather;
use super::region::Rect;

/// Pixels of a side of a tile.
const SIDE: usize = 64;
/// Colours that a palette can hold.
const COLOURS: usize = 127;
/// Colours of a palette whose indices are packed.
const PACKED: usize = 16;

/// The state of a connection.
pub(super) struct Zrle {
    stream: Compress,
    plain: Vec<u8>,
    palette: Palette,
}

impl Zrle {
    /// A stream that compresses by a level from 0 to 9.
    pub fn new(level: u32) -> Zrle {
        let stream = Compress::new(Compression::new(level), true);
        Zrle { stream, plain: Vec::new(), palette: Palette::default() }
    }

    /// A rectangle.
    pub fn encode(
        &mut self,
        picture: &Picture,
        rect: Rect,
        converter: &Converter,
        values: &mut Vec<u32>,
        out: &mut Vec<u8>,
    ) {
        self.plain.clear();
        for y in (rect.y..rect.y + rect.height).step_by(SIDE) {
            for x in (rect.x..rect.x + rect.width).step_by(SIDE) {
                let tile = Rect { x, y, width: SIDE, height: SIDE }.common(rect);
                gather(picture, tile, converter, values);
                tile_of(values, tile.width, converter, &mut self.palette, &mut self.plain);
            }
        }
        let length = out.len();
        out.extend([0; 4]);
        let before = self.stream.total_in();
        loop {
            out.reserve(4 << 10);
            let done = (self.stream.total_in() - before) as usize;
            // Whatever it says of a full buffer, there is more room the next time.
            let _ = self.stream.compress_vec(&self.plain[done..], out, FlushCompress::Sync);
            if self.stream.total_in() - before == self.plain.len() as u64 && out.len() < out.capacity() {
                break;
            }
        }
        let bytes = (out.len() - length - 4) as u32;
        out[length..length + 4].copy_from_slice(&bytes.to_be_bytes());
    }
}

/// The colours of a tile, in a table of hashes.
struct Palette {
    colours: Vec<u32>,
    /// Index of a colour, plus one; 0 is free.
    slots: [u8; 512],
}

impl Default for Palette {
    fn default() -> Palette {
        Palette { colours: Vec::with_capacity(COLOURS), slots: [0; 512] }
    }
}

impl Palette {
    /// Collects the colours of a tile, and says how many runs there are, of one pixel and longer ones. False if the
    /// colours are too many.
    fn collect(&mut self, values: &[u32]) -> (bool, usize, usize) {
        self.colours.clear();
        self.slots.fill(0);
        let (mut fits, mut singles, mut runs) = (true, 0, 0);
        let mut rest = values;
        while let Some(&value) = rest.first() {
            let len = rest.iter().take_while(|v| **v == value).count();
            rest = &rest[len..];
            if len == 1 {
                singles += 1
            } else {
                runs += 1 + (len - 1) / 255
            }
            fits = fits && self.add(value);
        }
        (fits, singles, runs)
    }

    fn slot(&self, value: u32) -> usize {
        let mut at = (value.wrapping_mul(0x9e37_79b1) >> 23) as usize;
        loop {
            match self.slots[at] {
                0 => return at,
                n if self.colours[usize::from(n) - 1] == value => return at,
                _ => at = (at + 1) % self.slots.len(),
            }
        }
    }

    fn add(&mut self, value: u32) -> bool {
        let at = self.slot(value);
        if self.slots[at] == 0 {
            if self.colours.len() == COLOURS {
                return false;
            }
            self.colours.push(value);
            self.slots[at] = self.colours.len() as u8;
        }
        true
    }

    fn index(&self, value: u32) -> u8 {
        self.slots[self.slot(value)].wrapping_sub(1)
    }
}

fn tile_of(values: &[u32], width: usize, converter: &Converter, palette: &mut Palette, out: &mut Vec<u8>) {
    let (fits, singles, runs) = palette.collect(values);
    let pixel = converter.compressed_len();
    let colours = palette.colours.len();
    if fits && colours == 1 {
        out.push(1);
        return converter.put_compressed(values[0], out);
    }
    let raw = values.len() * pixel;
    let plain = (singles + runs) * (pixel + 1);
    let indexed = if fits { colours * pixel + singles + 2 * runs } else { usize::MAX };
    let bits = if colours <= 2 {
        1
    } else if colours <= 4 {
        2
    } else {
        4
    };
    let packed = match fits && colours <= PACKED {
        true => colours * pixel + (width * bits).div_ceil(8) * (values.len() / width),
        false => usize::MAX,
    };
    let least = raw.min(plain).min(indexed).min(packed);
    if least == packed {
        out.push(colours as u8);
        palette.colours.iter().for_each(|colour| converter.put_compressed(*colour, out));
        for line in values.chunks(width) {
            for part in line.chunks(8 / bits) {
                let byte = part.iter().fold(0u8, |byte, value| byte << bits | palette.index(*value));
                out.push(byte << (bits * (8 / bits - part.len())));
            }
        }
    } else if least == indexed {
        out.push(128 + colours as u8);
        palette.colours.iter().for_each(|colour| converter.put_compressed(*colour, out));
        each_run(values, |value, len| {
            let index = palette.index(value);
            if len == 1 {
                out.push(index);
            } else {
                out.push(index | 128);
                length(len, out);
            }
        });
    } else if least == plain {
        out.push(128);
        each_run(values, |value, len| {
            converter.put_compressed(value, out);
            length(len, out);
        });
    } else {
        out.push(0);
        values.iter().for_each(|value| converter.put_compressed(*value, out));
    }
}

fn each_run(values: &[u32], mut f: impl FnMut(u32, usize)) {
    let mut rest = values;
    while let Some(&value) = rest.first() {
        let len = rest.iter().take_while(|v| **v == value).count();
        rest = &rest[len..];
        f(value, len);
    }
}

/// A run's length, in bytes that add up to it less one.
fn length(len: usize, out: &mut Vec<u8>) {
    let mut left = len - 1;
    while left >= 255 {
        out.push(255);
        left -= 255;
    }
    out.push(left as u8);
}
