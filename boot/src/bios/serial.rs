//! The text console's mirror on COM1, for hosts without a screen.
//!
//! What INT 10h writes goes out as text with the control sequences of a VT100, and what is typed there comes in by
//! INT 16h as keys. The line is served when a service is called: bytes that the chip does not take wait in a queue.
//!
//! The terminal's cursor is moved only before text, and when a key is asked for, and by as little as it takes: programs
//! that place every character themselves, such as FreeBSD's loader, leave lines that can be read and searched. Rows are
//! addressed only from one to another that is not the next, since the terminal may have more of them than the screen.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Call, data, int10, keyboard};

/// Bytes that wait for a line that does not go on.
const QUEUE: usize = 1 << 14;

const LSR_DATA: u8 = 0x01;
const LSR_THRE: u8 = 0x20;

/// Output that waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mirror {
    out: VecDeque<u8>,
    /// The terminal's cursor: column and row.
    at: (u16, u16),
}

fn port(c: &Call) -> Option<u16> {
    let port = c.config.platform.serial.first()?.port;
    c.config.options.serial.then_some(port)
}

/// Whether there is a mirror.
pub(super) fn is_on(c: &Call) -> bool {
    port(c).is_some()
}

/// Sets COM1 to 115200 bits a second, 8N1.
pub(super) fn start(c: &mut Call) {
    let Some(port) = port(c) else { return };
    for (register, value) in [(3, 0x83), (0, 1), (1, 0), (3, 0x03), (1, 0), (2, 0x07), (4, 0x03)] {
        c.outb(port + register, value);
    }
}

/// Sends text, if there is a mirror.
pub(super) fn put(c: &mut Call, bytes: &[u8]) {
    if port(c).is_none() {
        return;
    }
    let room = QUEUE.saturating_sub(c.state.mirror.out.len());
    c.state.mirror.out.extend(&bytes[..bytes.len().min(room)]);
    flush(c);
}

/// Empties the terminal, for a screen that was set up anew.
pub(super) fn reset(c: &mut Call) {
    put(c, b"\x1b[0m\x1b[2J\x1b[H");
    c.state.mirror.at = (0, 0);
}

/// Empties the terminal. Its cursor stays.
pub(super) fn clear(c: &mut Call) {
    put(c, b"\x1b[2J");
}

/// Moves the terminal's cursor.
pub(super) fn follow(c: &mut Call, x: u16, y: u16) {
    let (from, row) = std::mem::replace(&mut c.state.mirror.at, (x, y));
    // Behind the last column terminals differ in where the cursor is.
    let backward = if from < c.word(data::COLUMNS) { from } else { 0 };
    let motion = if y == row.wrapping_add(1) && x == 0 {
        "\r\n".to_owned()
    } else if y != row {
        format!("\x1b[{};{}H", y + 1, x + 1)
    } else if x == from {
        return;
    } else if x == 0 {
        "\r".to_owned()
    } else if x + 1 == backward {
        "\x08".to_owned()
    } else if x < backward {
        format!("\x1b[{}D", from - x)
    } else if x > from {
        format!("\x1b[{}C", x - from)
    } else {
        format!("\r\x1b[{x}C")
    };
    put(c, motion.as_bytes());
}

/// Shows printable text at a place.
pub(super) fn text(c: &mut Call, x: u16, y: u16, text: &[u8]) {
    follow(c, x, y);
    put(c, text);
    c.state.mirror.at.0 += text.len() as u16;
}

/// Sends CR, LF, BS and BEL, after which the cursor is at a place.
pub(super) fn control(c: &mut Call, bytes: &[u8], x: u16, y: u16) {
    put(c, bytes);
    c.state.mirror.at = (x, y);
}

/// The whole screen went up by `n` lines, of which `last` is the lowest.
pub(super) fn scrolled(c: &mut Call, n: u16, last: u16) {
    let (x, y) = c.state.mirror.at;
    if y != last {
        follow(c, x, last);
    }
    put(c, &vec![b'\n'; n.into()]);
}

fn flush(c: &mut Call) {
    let Some(port) = port(c) else { return };
    while !c.state.mirror.out.is_empty() && c.inb(port + 5) & LSR_THRE != 0 {
        for _ in 0..16 {
            let Some(byte) = c.state.mirror.out.pop_front() else { break };
            c.outb(port, byte);
        }
    }
}

/// Keys of escape sequences: what follows ESC, and the code.
const SEQUENCES: [(&[u8], u16); 32] = [
    (b"[A", 0x48e0),
    (b"[B", 0x50e0),
    (b"[C", 0x4de0),
    (b"[D", 0x4be0),
    (b"OA", 0x48e0),
    (b"OB", 0x50e0),
    (b"OC", 0x4de0),
    (b"OD", 0x4be0),
    (b"[H", 0x47e0),
    (b"[F", 0x4fe0),
    (b"[1~", 0x47e0),
    (b"[2~", 0x52e0),
    (b"[3~", 0x53e0),
    (b"[4~", 0x4fe0),
    (b"[5~", 0x49e0),
    (b"[6~", 0x51e0),
    (b"OP", 0x3b00),
    (b"OQ", 0x3c00),
    (b"OR", 0x3d00),
    (b"OS", 0x3e00),
    (b"[11~", 0x3b00),
    (b"[12~", 0x3c00),
    (b"[13~", 0x3d00),
    (b"[14~", 0x3e00),
    (b"[15~", 0x3f00),
    (b"[17~", 0x4000),
    (b"[18~", 0x4100),
    (b"[19~", 0x4200),
    (b"[20~", 0x4300),
    (b"[21~", 0x4400),
    (b"[23~", 0x8500),
    (b"[24~", 0x8600),
];

/// Serves the line: output that waits, and input into the key buffer.
pub(super) fn poll(c: &mut Call) {
    let Some(port) = port(c) else { return };
    if let Some((x, y)) = int10::visible_cursor(c) {
        follow(c, x, y);
    }
    flush(c);
    for _ in 0..16 {
        if c.inb(port + 5) & LSR_DATA == 0 {
            break;
        }
        let byte = c.inb(port);
        input(c, byte);
    }
    // Nobody types a sequence byte by byte: what came so far is one, or ESC itself.
    if c.state.keyboard.escape == [0x1b] {
        c.state.keyboard.escape.clear();
        keyboard::put(c, 0x011b);
    }
}

fn input(c: &mut Call, byte: u8) {
    let mut sequence = std::mem::take(&mut c.state.keyboard.escape);
    if sequence.is_empty() && byte != 0x1b {
        keyboard::put(c, keyboard::code_of(byte));
        return;
    }
    sequence.push(byte);
    let tail = &sequence[1..];
    if let Some((_, code)) = SEQUENCES.iter().find(|(s, _)| *s == tail) {
        keyboard::put(c, *code);
    } else if SEQUENCES.iter().any(|(s, _)| s.starts_with(tail)) {
        c.state.keyboard.escape = sequence;
    } else {
        sequence.iter().for_each(|b| _ = keyboard::put(c, keyboard::code_of(*b)));
    }
}
