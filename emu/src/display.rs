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
}
