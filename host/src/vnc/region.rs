//! Rectangles of a screen, and those that cover what has changed.

use emu::{TILE, Tiles};

/// A rectangle, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rect {
    pub x: usize,
    pub y: usize,
    pub width: usize,
    pub height: usize,
}

impl Rect {
    /// The whole of a screen.
    pub fn whole((width, height): (usize, usize)) -> Rect {
        Rect { x: 0, y: 0, width, height }
    }

    /// x, y, width and height as they are in messages.
    pub fn read(bytes: &[u8; 8]) -> Rect {
        let [x, y, width, height] =
            std::array::from_fn(|n| usize::from(u16::from_be_bytes([bytes[2 * n], bytes[2 * n + 1]])));
        Rect { x, y, width, height }
    }

    pub fn bytes(self) -> [u8; 8] {
        let [[x1, x0], [y1, y0], [w1, w0], [h1, h0]] =
            [self.x, self.y, self.width, self.height].map(|n| (n as u16).to_be_bytes());
        [x1, x0, y1, y0, w1, w0, h1, h0]
    }

    /// The part that both have.
    pub fn common(self, other: Rect) -> Rect {
        let part = |a: usize, a_len: usize, b: usize, b_len: usize| {
            let (from, to) = (a.max(b), (a + a_len).min(b + b_len));
            (from, to.saturating_sub(from))
        };
        let (x, width) = part(self.x, self.width, other.x, other.width);
        let (y, height) = part(self.y, self.height, other.y, other.height);
        Rect { x, y, width, height }
    }

    /// One that holds both.
    pub fn joined(self, other: Rect) -> Rect {
        if self.is_empty() || other.is_empty() {
            return if self.is_empty() { other } else { self };
        }
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let right = (self.x + self.width).max(other.x + other.width);
        let bottom = (self.y + self.height).max(other.y + other.height);
        Rect { x, y, width: right - x, height: bottom - y }
    }

    pub fn is_empty(self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// Adds the tiles that it touches.
    pub fn mark(self, tiles: &mut Tiles) {
        if self.is_empty() {
            return;
        }
        for row in self.y / TILE..=(self.y + self.height - 1) / TILE {
            (self.x / TILE..=(self.x + self.width - 1) / TILE).for_each(|column| tiles.set(column, row, true));
        }
    }
}

/// Takes the tiles within `area` out, as rectangles that cover them and lie in `area` and in a screen of `size`, no
/// more than `most` pixels each: as wide as they are changed, and as high as the same columns go on.
pub(super) fn take(tiles: &mut Tiles, area: Rect, size: (usize, usize), most: usize) -> Vec<Rect> {
    let area = area.common(Rect::whole(size));
    let mut out: Vec<Rect> = Vec::new();
    if area.is_empty() {
        return out;
    }
    // Where those end that can grow: index by their rectangle.
    let mut open: Vec<usize> = Vec::new();
    let columns = area.x / TILE..(area.x + area.width).div_ceil(TILE);
    for row in area.y / TILE..(area.y + area.height).div_ceil(TILE) {
        let mut here = Vec::new();
        let mut column = columns.start;
        while column < columns.end {
            if !tiles.has(column, row) {
                column += 1;
                continue;
            }
            let first = column;
            while column < columns.end && tiles.has(column, row) {
                tiles.set(column, row, false);
                column += 1;
            }
            let run = Rect { x: first * TILE, y: row * TILE, width: (column - first) * TILE, height: TILE };
            let run = run.common(area);
            let grows = open.iter().copied().find(|n| {
                let above: &Rect = &out[*n];
                (above.x, above.width) == (run.x, run.width) && above.width * (above.height + run.height) <= most
            });
            let at = match grows {
                Some(at) => {
                    out[at].height += run.height;
                    at
                }
                None => {
                    out.push(run);
                    out.len() - 1
                }
            };
            here.push(at);
        }
        open = here;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectangles_cover_what_has_changed_within_the_area_and_no_more() {
        let size = (100, 70);
        let mut tiles = Tiles::new(size.0, size.1, false);
        for (column, row) in [(0, 0), (1, 0), (0, 1), (1, 1), (6, 4), (3, 2)] {
            tiles.set(column, row, true);
        }
        let rects = take(&mut tiles, Rect { x: 10, y: 0, width: 90, height: 70 }, size, 1 << 20);
        let rect = |x, y, width, height| Rect { x, y, width, height };
        assert_eq!(rects, [rect(10, 0, 22, 32), rect(48, 32, 16, 16), rect(96, 64, 4, 6)]);
        assert!(tiles.is_empty());
    }

    #[test]
    fn no_rectangle_has_more_pixels_than_allowed() {
        let mut tiles = Tiles::new(1024, 768, true);
        let rects = take(&mut tiles, Rect::whole((1024, 768)), (1024, 768), 1 << 16);
        assert!(rects.iter().all(|r| r.width == 1024 && r.height == 64), "{rects:?}");
        assert_eq!(rects.len(), 12);
    }

    #[test]
    fn areas_far_outside_are_empty() {
        let far = Rect { x: 65535, y: 65535, width: 65535, height: 65535 };
        let mut tiles = Tiles::new(64, 64, true);
        assert!(take(&mut tiles, far, (64, 64), 1 << 16).is_empty());
        far.mark(&mut tiles);
        assert!(far.common(Rect::whole((64, 64))).is_empty());
    }
}
