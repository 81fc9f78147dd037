//! Pixels as a client wants them.

/// RFB's PIXEL_FORMAT: how a pixel lies in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    /// Bits a pixel: 8, 16 or 32.
    pub bits: u8,
    pub depth: u8,
    pub big_endian: bool,
    /// Red, green and blue: the greatest value, and the bit where it begins.
    pub parts: [(u16, u8); 3],
    /// The client has a table of colours, which must be told what [`Format::parts`] stand for.
    pub mapped: bool,
}

/// Bytes of a format in a message.
pub(super) const LEN: usize = 16;

impl Format {
    /// What the server offers: the pixels of [`emu::Picture`].
    pub const OWN: Format =
        Format { bits: 32, depth: 24, big_endian: false, parts: [(255, 16), (255, 8), (255, 0)], mapped: false };
    /// What stands in for a table of 256 colours.
    const MAPPED: Format =
        Format { bits: 8, depth: 8, big_endian: false, parts: [(7, 0), (7, 3), (3, 6)], mapped: true };

    /// From a message; nothing if no pixel can look like that.
    pub fn read(bytes: &[u8; LEN]) -> Option<Format> {
        let [bits, depth, big, colours, r1, r0, g1, g0, b1, b0, r, g, b, ..] = *bytes;
        if !matches!(bits, 8 | 16 | 32) {
            return None;
        }
        if colours == 0 {
            return (bits == 8).then_some(Format::MAPPED);
        }
        let max = |high, low| u16::from_be_bytes([high, low]);
        let parts = [(max(r1, r0), r), (max(g1, g0), g), (max(b1, b0), b)];
        let fits = |(max, shift): &(u16, u8)| {
            *max > 0 && (*max & max.wrapping_add(1)) == 0 && u32::from(*shift) + max.count_ones() <= u32::from(bits)
        };
        parts.iter().all(fits).then_some(Format { bits, depth, big_endian: big != 0, parts, mapped: false })
    }

    /// As in a message.
    pub fn bytes(self) -> [u8; LEN] {
        let [(r, red), (g, green), (b, blue)] = self.parts;
        let [[r1, r0], [g1, g0], [b1, b0]] = [r, g, b].map(u16::to_be_bytes);
        let colours = u8::from(!self.mapped);
        [self.bits, self.depth, self.big_endian.into(), colours, r1, r0, g1, g0, b1, b0, red, green, blue, 0, 0, 0]
    }

    /// The 256 colours of a table, 16 bits a part.
    pub fn colours(self) -> impl Iterator<Item = [u16; 3]> {
        (0..256u32).map(move |n| {
            self.parts.map(|(max, shift)| {
                let value = n >> shift & u32::from(max);
                (value * 0xffff / u32::from(max)) as u16
            })
        })
    }

    /// Where a compressed pixel's three bytes are within its four, if it has that form.
    fn compressed(self) -> Option<std::ops::Range<usize>> {
        if self.bits != 32 || self.depth > 24 {
            return None;
        }
        let used = self.parts.iter().fold(0u32, |used, (max, shift)| used | u32::from(*max) << shift);
        match (used >> 24 == 0, used & 0xff == 0, self.big_endian) {
            (true, _, false) | (false, true, true) => Some(0..3),
            (true, _, true) | (false, true, false) => Some(1..4),
            _ => None,
        }
    }
}

/// Makes pixels of a format from those of a picture.
pub(super) struct Converter {
    format: Format,
    same: bool,
    /// Of each part of a colour the bits of the pixel.
    tables: Box<[[u32; 256]; 3]>,
    compressed: std::ops::Range<usize>,
}

impl Converter {
    pub fn new(format: Format) -> Converter {
        let table = |(max, shift): (u16, u8)| {
            std::array::from_fn(|value| ((value as u32 * u32::from(max) + 127) / 255) << shift)
        };
        let whole = 0..usize::from(format.bits / 8);
        Converter {
            format,
            same: format.parts == Format::OWN.parts,
            tables: Box::new(format.parts.map(table)),
            compressed: format.compressed().unwrap_or(whole),
        }
    }

    /// The value of a pixel.
    #[inline]
    pub fn value(&self, pixel: u32) -> u32 {
        if self.same {
            return pixel;
        }
        let [_, r, g, b] = pixel.to_be_bytes();
        let [red, green, blue] = &*self.tables;
        red[usize::from(r)] | green[usize::from(g)] | blue[usize::from(b)]
    }

    /// The values of pixels.
    pub fn values(&self, pixels: &[u32], out: &mut Vec<u32>) {
        if self.same {
            out.extend_from_slice(pixels);
        } else {
            out.extend(pixels.iter().map(|pixel| self.value(*pixel)));
        }
    }

    /// Bytes a pixel.
    pub fn len(&self) -> usize {
        usize::from(self.format.bits / 8)
    }

    /// Bytes a compressed pixel.
    pub fn compressed_len(&self) -> usize {
        self.compressed.len()
    }

    fn laid_out(&self, value: u32) -> [u8; 4] {
        match (self.format.bits, self.format.big_endian) {
            (16, true) => {
                let [a, b] = (value as u16).to_be_bytes();
                [a, b, 0, 0]
            }
            (32, true) => value.to_be_bytes(),
            _ => value.to_le_bytes(),
        }
    }

    /// Writes a value as a pixel.
    #[inline]
    pub fn put(&self, value: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.laid_out(value)[..self.len()]);
    }

    /// Writes a value as a compressed pixel (ZRLE).
    #[inline]
    pub fn put_compressed(&self, value: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.laid_out(value)[self.compressed.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(format: Format, pixel: u32) -> (Vec<u8>, Vec<u8>) {
        let converter = Converter::new(format);
        let (mut whole, mut compressed) = (Vec::new(), Vec::new());
        converter.put(converter.value(pixel), &mut whole);
        converter.put_compressed(converter.value(pixel), &mut compressed);
        (whole, compressed)
    }

    #[test]
    fn a_pixel_lies_as_the_format_says() {
        assert_eq!(one(Format::OWN, 0x12_3456), (vec![0x56, 0x34, 0x12, 0], vec![0x56, 0x34, 0x12]));
        let big = Format { big_endian: true, ..Format::OWN };
        assert_eq!(one(big, 0x12_3456), (vec![0, 0x12, 0x34, 0x56], vec![0x12, 0x34, 0x56]));
        let high = Format { parts: [(255, 24), (255, 16), (255, 8)], ..Format::OWN };
        assert_eq!(one(high, 0x12_3456), (vec![0, 0x56, 0x34, 0x12], vec![0x56, 0x34, 0x12]));
        let r565 = Format { bits: 16, depth: 16, parts: [(31, 11), (63, 5), (31, 0)], ..Format::OWN };
        assert_eq!(one(r565, 0xff_00ff).0, [0x1f, 0xf8]);
        assert_eq!(one(Format { big_endian: true, ..r565 }, 0xff_00ff).0, [0xf8, 0x1f]);
        let deep = Format { depth: 32, ..Format::OWN };
        assert_eq!(one(deep, 1).1.len(), 4);
    }

    #[test]
    fn formats_pass_through_a_message_and_absurd_ones_are_refused() {
        assert_eq!(Format::read(&Format::OWN.bytes()), Some(Format::OWN));
        let with = |at: usize, value: u8| {
            let mut bytes = Format::OWN.bytes();
            bytes[at] = value;
            Format::read(&bytes)
        };
        assert_eq!((with(0, 24), with(0, 0), with(10, 25), with(5, 0), with(5, 254)), (None, None, None, None, None));
        assert_eq!(with(3, 0), None, "a table of 4 G colours");
        let mut bytes = Format::OWN.bytes();
        (bytes[0], bytes[3]) = (8, 0);
        let mapped = Format::read(&bytes).unwrap();
        assert_eq!((mapped.colours().nth(0xff), mapped.colours().nth(7)), (Some([0xffff; 3]), Some([0xffff, 0, 0])));
        assert_eq!(mapped.bytes()[3], 0);
    }
}
