//! What a display adapter shows, for whoever wants to look.
//!
//! Viewers come and go and have frame rates of their own, so an adapter does not send pictures: whoever has its cell
//! takes one ([`crate::Device::display`]). Looking changes nothing that the guest could notice, and is allowed while
//! the machine is paused.

/// A character cell as a guest wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// The character, usually of code page 437.
    pub ch: u8,
    /// Colours: foreground in bits 0 to 3, background in bits 4 to 7.
    pub attr: u8,
}

/// A screen of characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextScreen {
    /// Characters a line.
    pub columns: usize,
    /// Lines.
    pub rows: usize,
    /// The cells, row by row.
    pub cells: Vec<Cell>,
    /// Column and row of the cursor, if it is to be seen.
    pub cursor: Option<(usize, usize)>,
    /// Bit 7 of the attributes means blinking, not a bright background.
    pub blink: bool,
}

/// A screen of pixels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// Pixels a line.
    pub width: usize,
    /// Lines.
    pub height: usize,
    /// 0x00RRGGBB, row by row.
    pub pixels: Vec<u32>,
}

/// Something with a screen.
pub trait Display {
    /// The characters on the screen; nothing in a graphics mode.
    fn text(&self) -> Option<TextScreen>;

    /// The screen as it looks, whatever the mode. It has no pixels while the adapter is not set up.
    fn picture(&self) -> Picture;

    /// Brings a viewer's copy up to date. Adapters that can tell from their memory that nothing has changed, or what,
    /// spare it the drawing.
    fn refresh(&self, view: &mut View) {
        view.show(&self.picture());
    }
}

/// Pixels of a side of the squares by which changes are told.
pub const TILE: usize = 16;

/// A set of squares of a screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiles {
    /// Squares a row.
    columns: usize,
    bits: Vec<bool>,
}

impl Tiles {
    /// Those of a screen of this size, all of them or none.
    pub fn new(width: usize, height: usize, all: bool) -> Tiles {
        let columns = width.div_ceil(TILE);
        Tiles { columns, bits: vec![all; columns * height.div_ceil(TILE)] }
    }

    /// Squares a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.bits.len().checked_div(self.columns).unwrap_or(0)
    }

    /// Whether a square is in it.
    pub fn has(&self, column: usize, row: usize) -> bool {
        column < self.columns && self.bits.get(row * self.columns + column).is_some_and(|bit| *bit)
    }

    /// Puts a square in or takes it out.
    pub fn set(&mut self, column: usize, row: usize, on: bool) {
        if column < self.columns
            && let Some(bit) = self.bits.get_mut(row * self.columns + column)
        {
            *bit = on;
        }
    }

    /// Whether there is none in it.
    pub fn is_empty(&self) -> bool {
        !self.bits.contains(&true)
    }

    /// Adds those of another set, as far as this one's screen goes.
    pub fn add(&mut self, other: &Tiles) {
        for (row, bits) in other.bits.chunks(other.columns.max(1)).enumerate() {
            (0..).zip(bits).filter(|(_, bit)| **bit).for_each(|(column, _)| self.set(column, row, true));
        }
    }
}

/// A viewer's copy of a screen, which [`Display::refresh`] brings up to date.
#[derive(Default)]
pub struct View {
    picture: Picture,
    changed: Tiles,
    /// What the picture was made of: how to read the adapter's memory, and what was there.
    key: u64,
    memory: Vec<u8>,
    fresh: bool,
    scratch: Vec<u8>,
    /// How many looks more each row of squares is looked at whole.
    watched: Vec<u8>,
    phase: usize,
}

/// Of so many lines one is looked at where nothing happens.
const SAMPLE: usize = 4;
/// For so many looks a row of squares is watched in which something has changed.
const WATCH: u8 = 30;

impl View {
    /// The copy.
    pub fn picture(&self) -> &Picture {
        &self.picture
    }

    /// What has changed since the last call.
    pub fn take_changes(&mut self) -> Tiles {
        let none = Tiles::new(self.picture.width, self.picture.height, false);
        std::mem::replace(&mut self.changed, none)
    }

    /// For adapters: a picture by other registers than before, which `key` stands for, is made anew.
    pub fn begin(&mut self, key: u64) {
        self.fresh = std::mem::replace(&mut self.key, key) != key || self.picture.pixels.is_empty();
    }

    /// All of the screen is to be looked at the next time.
    pub fn look_closely(&mut self) {
        self.watched.fill(WATCH);
    }

    /// For adapters: calls `draw` with the lines that have to be looked at, which says whether one has changed. Where
    /// nothing has happened lately a line in four is looked at, in turns, and all around it when it has changed: so text
    /// is noticed at once, and whatever else within four looks.
    pub fn each_line(&mut self, mut draw: impl FnMut(&mut View, usize) -> bool) {
        let height = self.picture.height;
        self.watched.resize(height.div_ceil(TILE), WATCH);
        self.phase = (self.phase + 1) % SAMPLE;
        for row in 0..self.watched.len() {
            let lines = row * TILE..((row + 1) * TILE).min(height);
            let (all, phase) = (self.fresh || self.watched[row] > 0, self.phase);
            let sampled = |y: &usize| all || y % SAMPLE == phase;
            let hit = lines.clone().filter(sampled).fold(false, |hit, y| draw(self, y) | hit);
            if hit && !all {
                lines.filter(|y| !sampled(y)).for_each(|y| _ = draw(self, y));
            }
            self.watched[row] = if hit { WATCH } else { self.watched[row].saturating_sub(1) };
        }
    }

    /// For adapters: whether these bytes of what the picture is made of are others than before, or have to be drawn in
    /// any case. [`View::bytes`] has them then.
    pub fn differs(&mut self, at: usize, len: usize, read: impl FnOnce(&mut [u8])) -> bool {
        if self.memory.len() < at + len {
            self.memory.resize(at + len, 0);
        }
        self.scratch.resize(len, 0);
        read(&mut self.scratch);
        let before = &mut self.memory[at..at + len];
        if !self.fresh && *before == self.scratch[..] {
            return false;
        }
        before.copy_from_slice(&self.scratch);
        true
    }

    /// For adapters: what [`View::differs`] has read.
    pub fn bytes(&self, at: usize, len: usize) -> &[u8] {
        &self.memory[at..at + len]
    }

    /// For adapters: the size of the picture; all of one with a new size has changed.
    pub fn set_size(&mut self, width: usize, height: usize) {
        if (self.picture.width, self.picture.height) != (width, height) {
            self.picture = Picture { width, height, pixels: vec![0; width * height] };
            self.changed = Tiles::new(width, height, true);
            self.memory.clear();
            self.watched.clear();
            self.fresh = true;
        }
    }

    /// For adapters: a line of the picture.
    pub fn put(&mut self, y: usize, line: &[u32]) {
        let width = self.picture.width;
        let before = &mut self.picture.pixels[y * width..][..width];
        let parts = before.chunks_mut(TILE).zip(line.chunks(TILE));
        for (column, (before, now)) in parts.enumerate() {
            if before != now {
                before.copy_from_slice(now);
                self.changed.set(column, y / TILE, true);
            }
        }
    }

    /// For adapters: the whole picture.
    pub fn show(&mut self, picture: &Picture) {
        self.set_size(picture.width, picture.height);
        for (y, line) in picture.pixels.chunks(picture.width.max(1)).enumerate() {
            self.put(y, line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_once_and_by_the_squares_that_they_are_in() {
        let mut view = View::default();
        let mut picture = Picture { width: 40, height: 20, pixels: vec![7; 800] };
        view.show(&picture);
        assert_eq!(view.take_changes(), Tiles::new(40, 20, true));
        picture.pixels[17 * 40 + 39] = 8;
        view.show(&picture);
        let changes = view.take_changes();
        let all = (0..2).flat_map(|row| (0..3).map(move |column| (column, row)));
        let set: Vec<_> = all.filter(|(column, row)| changes.has(*column, *row)).collect();
        assert_eq!((set, view.picture()), (vec![(2, 1)], &picture));
        view.show(&picture);
        assert!(view.take_changes().is_empty());
    }

    #[test]
    fn a_line_that_changes_is_found_soon_and_all_around_it_at_once() {
        let mut view = View::default();
        let mut memory = vec![0u8; 64];
        let look = |view: &mut View, memory: &[u8]| {
            view.begin(1);
            view.set_size(1, 64);
            let mut seen = 0;
            view.each_line(|view, y| {
                seen += 1;
                let differs = view.differs(y, 1, |buf| buf.copy_from_slice(&memory[y..y + 1]));
                if differs {
                    view.put(y, &[u32::from(memory[y])]);
                }
                differs
            });
            seen
        };
        assert_eq!(look(&mut view, &memory), 64);
        (0..=WATCH).for_each(|_| _ = look(&mut view, &memory));
        assert_eq!(look(&mut view, &memory), 16);
        memory[16..32].fill(1);
        assert_eq!(look(&mut view, &memory), 16 + 12);
        assert_eq!(view.picture().pixels[16..32], [1; 16]);
        memory[50] = 2;
        (0..SAMPLE).for_each(|_| _ = look(&mut view, &memory));
        assert_eq!(view.picture().pixels[50], 2);
        (0..=WATCH).for_each(|_| _ = look(&mut view, &memory));
        view.look_closely();
        assert_eq!(look(&mut view, &memory), 64);
    }

    #[test]
    fn memory_is_drawn_again_when_it_or_the_way_to_read_it_changes() {
        let mut view = View::default();
        view.begin(1);
        view.set_size(1, 1);
        assert!(view.differs(4, 2, |buf| buf.fill(3)));
        view.begin(1);
        assert!(!view.differs(4, 2, |buf| buf.fill(3)));
        assert!(view.differs(4, 2, |buf| buf.fill(4)));
        assert_eq!(view.bytes(4, 2), [4, 4]);
        view.begin(2);
        assert!(view.differs(4, 2, |buf| buf.fill(4)));
    }
}
