//! Screens: what a display adapter shows, as text and on the user's terminal.

mod canvas;
mod cp437;
mod terminal;

use emu::TextScreen;

pub(crate) use canvas::Canvas;
pub use terminal::Terminal;

/// What is shown of a guest that shows graphics.
pub(crate) const NO_TEXT: &str = "The guest shows no text now; bhyve-rs screenshot takes a picture of its screen.";

/// A screen of characters as lines of text, without the spaces at their ends.
pub fn plain(screen: &TextScreen) -> String {
    let mut out = String::new();
    for row in screen.cells.chunks(screen.columns.max(1)) {
        let line: String = row.iter().map(|cell| cp437::character(cell.ch)).collect();
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::Cell;

    #[test]
    fn lines_end_where_their_text_does() {
        let cells = b" a\0\xc4b  ".iter().map(|ch| Cell { ch: *ch, attr: 7 }).chain([Cell::default()]).collect();
        let screen = TextScreen { columns: 4, rows: 2, cells, ..TextScreen::default() };
        assert_eq!(plain(&screen), " a ─\nb\n");
    }
}
