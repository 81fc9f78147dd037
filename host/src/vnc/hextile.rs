//! The encodings Raw and Hextile.

use emu::Picture;

use super::format::Converter;
use super::region::Rect;

const RAW: u8 = 1;
const BACKGROUND: u8 = 2;
const FOREGROUND: u8 = 4;
const SUBRECTS: u8 = 8;
const COLOURED: u8 = 16;

/// Pixels of a side of a tile.
const SIDE: usize = 16;

/// The values of a part of a picture, line by line; what lies outside of it is black.
pub(super) fn gather(picture: &Picture, rect: Rect, converter: &Converter, out: &mut Vec<u32>) {
    out.clear();
    for y in rect.y..rect.y + rect.height {
        let from = (y * picture.width + rect.x).min(picture.pixels.len());
        let len = if y < picture.height { rect.width.min(picture.width.saturating_sub(rect.x)) } else { 0 };
        converter.values(&picture.pixels[from..from + len], out);
        out.extend(std::iter::repeat_n(converter.value(0), rect.width - len));
    }
}

/// Pixels as they are.
pub(super) fn raw(picture: &Picture, rect: Rect, converter: &Converter, values: &mut Vec<u32>, out: &mut Vec<u8>) {
    gather(picture, rect, converter, values);
    out.reserve(values.len() * converter.len());
    values.iter().for_each(|value| converter.put(*value, out));
}

/// Tiles of 16 by 16 with rectangles of colour in them.
pub(super) fn hextile(picture: &Picture, rect: Rect, converter: &Converter, values: &mut Vec<u32>, out: &mut Vec<u8>) {
    // What the tile before left.
    let mut ground: (Option<u32>, Option<u32>) = (None, None);
    for y in (rect.y..rect.y + rect.height).step_by(SIDE) {
        for x in (rect.x..rect.x + rect.width).step_by(SIDE) {
            let tile = Rect { x, y, width: SIDE, height: SIDE }.common(rect);
            gather(picture, tile, converter, values);
            encode(values, tile.width, converter, &mut ground, out);
        }
    }
}

fn encode(
    values: &mut [u32],
    width: usize,
    converter: &Converter,
    ground: &mut (Option<u32>, Option<u32>),
    out: &mut Vec<u8>,
) {
    let start = out.len();
    let first = values[0];
    let other = values.iter().copied().find(|value| *value != first);
    let two = other.is_none_or(|other| values.iter().all(|value| *value == first || *value == other));
    // The colour of which there is more lies behind.
    let behind = match other {
        Some(other) if 2 * values.iter().filter(|value| **value == other).count() > values.len() => other,
        _ => first,
    };
    let mut flags = 0;
    out.push(0);
    if ground.0 != Some(behind) {
        flags |= BACKGROUND;
        converter.put(behind, out);
    }
    ground.0 = Some(behind);
    let Some(other) = other else {
        out[start] = flags;
        return;
    };
    flags |= SUBRECTS;
    if two {
        let front = if behind == first { other } else { first };
        if ground.1 != Some(front) {
            flags |= FOREGROUND;
            converter.put(front, out);
        }
        ground.1 = Some(front);
    } else {
        flags |= COLOURED;
        // It does not last over a tile with colours.
        ground.1 = None;
    }
    let raw = values.len() * converter.len();
    let count = out.len();
    out.push(0);
    let height = values.len() / width;
    let mut rects = 0u32;
    let mut plain = Vec::new();
    // Rectangles that were told are painted over with what lies behind.
    for at in 0..values.len() {
        let colour = values[at];
        if colour == behind {
            continue;
        }
        if plain.is_empty() {
            plain = values.to_vec();
        }
        let (x, y) = (at % width, at / width);
        let wide = (x..width).take_while(|x| values[y * width + x] == colour).count();
        let same = |y: &usize| values[y * width + x..][..wide].iter().all(|value| *value == colour);
        let high = (y..height).take_while(same).count();
        (y..y + high).for_each(|y| values[y * width + x..][..wide].fill(behind));
        if !two {
            converter.put(colour, out);
        }
        out.extend([(x << 4 | y) as u8, ((wide - 1) << 4 | (high - 1)) as u8]);
        rects += 1;
        if rects > 255 || out.len() - start > raw {
            out.truncate(start);
            out.push(RAW);
            plain.iter().for_each(|value| converter.put(*value, out));
            // After raw pixels nothing is known.
            *ground = (None, None);
            return;
        }
    }
    out[count] = rects as u8;
    out[start] = flags;
}
