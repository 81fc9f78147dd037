//! INT 10h: the text screen.

use super::{Call, Flow, serial};

/// What lies in the ROM for it: offset in the BIOS's segment and bytes.
pub(super) fn rom_tables() -> Vec<(u16, &'static [u8])> {
    Vec::new()
}

/// Sets up the adapter at power-on.
pub(super) fn start(_c: &mut Call) {}

/// Writes a character at the cursor as a terminal does.
pub(super) fn teletype(c: &mut Call, byte: u8) {
    serial::put(c, &[byte]);
}

/// INT 10h.
pub(super) fn service(c: &mut Call) -> Flow {
    if c.r.ah() == 0x0e {
        let byte = c.r.al();
        teletype(c, byte);
    }
    Flow::Done
}
