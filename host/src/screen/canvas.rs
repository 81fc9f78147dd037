//! A text screen on a terminal: what has changed since the last look, as control sequences (ECMA-48).

use std::fmt::Write;

use emu::{Cell, TextScreen};

use super::cp437;

/// The colours of the PC in the order of terminals: black, red, green, yellow, blue, magenta, cyan, white.
const COLOURS: [u8; 8] = [0, 4, 2, 6, 1, 5, 3, 7];

/// What the terminal shows.
#[derive(Default)]
pub(crate) struct Canvas {
    /// Nothing is known of what is there.
    fresh: bool,
    /// What it shows of the screen.
    columns: usize,
    cells: Vec<Cell>,
    cursor: Option<(usize, usize)>,
    message: Option<String>,
}

impl Canvas {
    /// The terminal shows something else.
    pub(crate) fn forget(&mut self) {
        *self = Canvas { fresh: true, ..Canvas::default() };
    }

    /// Shows a message instead of a screen.
    pub(crate) fn say(&mut self, message: &str) -> String {
        if self.message.as_deref() == Some(message) {
            return String::new();
        }
        *self = Canvas { fresh: true, message: Some(message.to_owned()), ..Canvas::default() };
        format!("\x1b[0m\x1b[2J\x1b[H{message}\x1b[?25l")
    }

    /// What makes the terminal, of `room` columns and lines, show the screen. Where it is too small it shows the part
    /// around the cursor.
    pub(crate) fn show(&mut self, screen: &TextScreen, room: (usize, usize)) -> String {
        let mut out = String::new();
        let (columns, rows) = (screen.columns.min(room.0), screen.rows.min(room.1));
        let (x, y) = screen.cursor.unwrap_or((0, 0));
        let first = (y + 1).saturating_sub(rows);
        let left = (x + 1).saturating_sub(columns);
        if self.fresh || self.message.take().is_some() || (self.columns, self.cells.len()) != (columns, columns * rows)
        {
            out.push_str("\x1b[0m\x1b[2J");
            (self.columns, self.fresh) = (columns, false);
            // No cell is like this one.
            self.cells = vec![Cell { ch: 0, attr: 0 }; columns * rows];
            self.cursor = None;
        }
        let mut attr = None;
        let mut pen = None;
        for row in 0..rows {
            for column in 0..columns {
                let Some(&cell) = screen.cells.get((first + row) * screen.columns + left + column) else { continue };
                let shown = &mut self.cells[row * columns + column];
                if *shown == cell {
                    continue;
                }
                *shown = cell;
                if pen != Some((column, row)) {
                    let _ = write!(out, "\x1b[{};{}H", row + 1, column + 1);
                }
                if attr != Some(cell.attr) {
                    attr = Some(cell.attr);
                    out.push_str(&rendition(cell.attr, screen.blink));
                }
                out.push(cp437::character(cell.ch));
                pen = Some((column + 1, row));
            }
        }
        let cursor = screen.cursor.map(|(x, y)| (x - left.min(x), y - first.min(y)));
        // Writing moved it, if it was there.
        if cursor != self.cursor || !out.is_empty() {
            match cursor {
                Some((x, y)) => _ = write!(out, "\x1b[{};{}H\x1b[?25h", y + 1, x + 1),
                None => out.push_str("\x1b[?25l"),
            }
            self.cursor = cursor;
        }
        out
    }
}

/// An attribute as graphic rendition.
fn rendition(attr: u8, blink: bool) -> String {
    let colour = |n: u8| COLOURS[usize::from(n & 7)];
    let fore = colour(attr) + if attr & 8 != 0 { 90 } else { 30 };
    let back = colour(attr >> 4) + if attr & 0x80 != 0 && !blink { 100 } else { 40 };
    let blinking = if attr & 0x80 != 0 && blink { ";5" } else { "" };
    format!("\x1b[0;{fore};{back}{blinking}m")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(rows: &[&str], cursor: Option<(usize, usize)>) -> TextScreen {
        let columns = rows[0].len();
        let cells = rows.concat().bytes().map(|ch| Cell { ch, attr: 7 }).collect();
        TextScreen { columns, rows: rows.len(), cells, cursor, blink: true }
    }

    #[test]
    fn only_what_has_changed_is_written() {
        let mut canvas = Canvas::default();
        let first = canvas.show(&screen(&["abc", "def"], Some((0, 0))), (80, 24));
        assert_eq!(first, "\x1b[0m\x1b[2J\x1b[1;1H\x1b[0;37;40mabc\x1b[2;1Hdef\x1b[1;1H\x1b[?25h");
        assert_eq!(canvas.show(&screen(&["abc", "def"], Some((0, 0))), (80, 24)), "");
        let moved = canvas.show(&screen(&["abc", "dXf"], Some((2, 1))), (80, 24));
        assert_eq!(moved, "\x1b[2;2H\x1b[0;37;40mX\x1b[2;3H\x1b[?25h");
        assert_eq!(canvas.show(&screen(&["abc", "dXf"], None), (80, 24)), "\x1b[?25l");
    }

    #[test]
    fn colours_blinking_and_line_drawing_come_through() {
        assert_eq!(rendition(0x1e, true), "\x1b[0;93;44m");
        assert_eq!(rendition(0x9c, true), "\x1b[0;91;44;5m");
        assert_eq!(rendition(0x9c, false), "\x1b[0;91;104m");
        let mut one = screen(&["a"], None);
        one.cells[0].ch = 0xc9;
        assert!(Canvas::default().show(&one, (80, 24)).contains('╔'));
    }

    #[test]
    fn a_small_terminal_follows_the_cursor() {
        let rows = ["aa", "bb", "cc"];
        let mut canvas = Canvas::default();
        assert!(canvas.show(&screen(&rows, Some((0, 2))), (80, 2)).contains("bb\x1b[2;1Hcc\x1b[2;1H"));
        assert!(canvas.show(&screen(&rows, Some((0, 0))), (80, 2)).contains("aa\x1b[2;1Hbb\x1b[1;1H"));
    }

    #[test]
    fn a_message_stays_until_there_is_a_screen_again() {
        let mut canvas = Canvas::default();
        assert!(canvas.say("graphics").contains("graphics"));
        assert_eq!(canvas.say("graphics"), "");
        assert!(canvas.show(&screen(&["a"], None), (80, 24)).starts_with("\x1b[0m\x1b[2J"));
    }
}
