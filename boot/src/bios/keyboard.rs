//! INT 09h's translation of scan codes, and INT 16h.
//!
//! Scan codes are of set 1, as the 8042 translates them. The layout is the United States' one, as in every BIOS. The
//! codes that programs get are IBM's of the AT and the enhanced keyboard: functions 00h to 02h hide what came with
//! the latter.

use serde::{Deserialize, Serialize};

use super::{Call, Flow, data, serial};

/// What INT 09h has to do after a key, in AH: INT 1Bh, INT 05h, INT 15h/85h.
pub(super) const BREAK: u8 = 1;
pub(super) const PRINT: u8 = 2;
pub(super) const SYSRQ: u8 = 3;

/// Bits of the shift flags.
const RIGHT_SHIFT: u8 = 1;
const LEFT_SHIFT: u8 = 2;
const CTRL: u8 = 4;
const ALT: u8 = 8;
const SCROLL: u8 = 0x10;
const NUM: u8 = 0x20;
const CAPS: u8 = 0x40;
const INSERT: u8 = 0x80;
/// Bits of [`data::KEYBOARD`].
const LAST_E1: u8 = 1;
const LAST_E0: u8 = 2;
const RIGHT_CTRL: u8 = 4;
const RIGHT_ALT: u8 = 8;

/// Scan codes.
const DELETE: u8 = 0x53;
const PRINT_SCREEN: u8 = 0x37;

/// What has no place in the data area: how many bytes of the Pause key are still to come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    skip: u8,
    /// An escape sequence of the serial terminal.
    pub(super) escape: Vec<u8>,
}

/// From scan code 02 to 0D, 10 to 1B, 1E to 29, 2B to 35, without and with shift.
const PLAIN: [(u8, &[u8], &[u8]); 4] = [
    (0x02, b"1234567890-=", b"!@#$%^&*()_+"),
    (0x10, b"qwertyuiop[]", b"QWERTYUIOP{}"),
    (0x1e, b"asdfghjkl;'`", b"ASDFGHJKL:\"~"),
    (0x2b, b"\\zxcvbnm,./", b"|ZXCVBNM<>?"),
];
/// The keypad from 47 on: digits, and codes with Ctrl.
const KEYPAD: &[u8; 13] = b"789-456+1230.";
const KEYPAD_CTRL: [u8; 13] = [0x77, 0x8d, 0x84, 0x8e, 0x73, 0x8f, 0x74, 0x90, 0x75, 0x91, 0x76, 0x92, 0x93];

/// The letter or sign of a key, without and with shift.
fn plain(scan: u8) -> Option<(u8, u8)> {
    PLAIN.iter().find_map(|(first, low, high)| {
        let n = usize::from(scan.checked_sub(*first)?);
        Some((*low.get(n)?, *high.get(n)?))
    })
}

/// The key that makes a character, for input that comes as text.
pub(super) fn code_of(ascii: u8) -> u16 {
    let scan = match ascii {
        0x1b => 0x01,
        b'\r' => 0x1c,
        b'\n' => 0x1c,
        0x08 | 0x7f => 0x0e,
        b'\t' => 0x0f,
        b' ' => 0x39,
        1..=0x1a => return code_of(ascii + 0x60) & 0xff00 | u16::from(ascii),
        _ => (0x02..0x36).find(|s| plain(*s).is_some_and(|(a, b)| a == ascii || b == ascii)).unwrap_or(0),
    };
    let ascii = match ascii {
        b'\n' => b'\r',
        0x7f => 0x08,
        other => other,
    };
    u16::from(scan) << 8 | u16::from(ascii)
}

/// The code of a key with these shift flags; `extended` for those with E0 before them.
fn code(scan: u8, extended: bool, flags: u8) -> Option<u16> {
    let (shift, ctrl, alt) = (flags & (LEFT_SHIFT | RIGHT_SHIFT) != 0, flags & CTRL != 0, flags & ALT != 0);
    let of = |scan: u8, ascii: u8| Some(u16::from(scan) << 8 | u16::from(ascii));
    if extended {
        return match scan {
            0x1c if alt => of(0xa6, 0),
            0x1c => of(0xe0, if ctrl { 0x0a } else { 0x0d }),
            0x35 if alt => of(0xa4, 0),
            0x35 if ctrl => of(0x95, 0),
            0x35 => of(0xe0, b'/'),
            0x47..=0x53 if alt => of(scan + 0x50, 0),
            0x47..=0x53 if ctrl => of(KEYPAD_CTRL[usize::from(scan - 0x47)], 0xe0),
            0x47..=0x53 => of(scan, 0xe0),
            _ => None,
        };
    }
    match scan {
        0x01 => of(scan, if alt { 0 } else { 0x1b }),
        0x0e if alt => of(scan, 0),
        0x0e => of(scan, if ctrl { 0x7f } else { 0x08 }),
        0x0f if alt => of(0xa5, 0),
        0x0f if ctrl => of(0x94, 0),
        0x0f => of(scan, if shift { 0 } else { b'\t' }),
        0x1c if alt => of(scan, 0),
        0x1c => of(scan, if ctrl { 0x0a } else { 0x0d }),
        0x39 => of(scan, b' '),
        0x02..=0x0d if alt => of(scan + 0x76, 0),
        0x37 if alt => of(scan, 0),
        0x37 if ctrl => of(0x96, 0),
        0x37 => of(scan, b'*'),
        0x3b..=0x44 => of(
            match (alt, ctrl, shift) {
                (true, ..) => scan + 0x2d,
                (_, true, _) => scan + 0x23,
                (_, _, true) => scan + 0x19,
                _ => scan,
            },
            0,
        ),
        0x57 | 0x58 => {
            let step = if alt {
                6
            } else if ctrl {
                4
            } else if shift {
                2
            } else {
                0
            };
            of(scan - 0x57 + 0x85 + step, 0)
        }
        // The key between left shift and Z.
        0x56 if !alt && !ctrl => of(scan, if shift { b'|' } else { b'\\' }),
        0x47..=0x53 => {
            let n = usize::from(scan - 0x47);
            let sign = matches!(KEYPAD[n], b'-' | b'+');
            match (alt, ctrl) {
                (true, _) if sign => of(scan, 0),
                // The digits make a number.
                (true, _) => None,
                (_, true) => of(KEYPAD_CTRL[n], 0),
                _ if sign || (flags & NUM != 0) != shift => of(scan, KEYPAD[n]),
                _ if KEYPAD[n] == b'5' => of(scan, 0),
                _ => of(scan, 0),
            }
        }
        _ => {
            let (low, high) = plain(scan)?;
            if alt {
                return of(scan, 0);
            }
            if ctrl {
                return match low {
                    b'a'..=b'z' => of(scan, low - 0x60),
                    b'2' => of(scan, 0),
                    b'6' => of(scan, 0x1e),
                    b'-' => of(scan, 0x1f),
                    b'[' => of(scan, 0x1b),
                    b'\\' => of(scan, 0x1c),
                    b']' => of(scan, 0x1d),
                    _ => None,
                };
            }
            let caps = flags & CAPS != 0 && low.is_ascii_lowercase();
            of(scan, if shift != caps { high } else { low })
        }
    }
}

/// Puts a code into the buffer; `false` when it is full.
pub(super) fn put(c: &mut Call, code: u16) -> bool {
    let (head, tail) = (c.word(data::KEY_HEAD), c.word(data::KEY_TAIL));
    let next = advance(c, tail);
    if next == head {
        return false;
    }
    c.set_word(0x400 + u64::from(tail), code);
    c.set_word(data::KEY_TAIL, next);
    true
}

fn advance(c: &mut Call, at: u16) -> u16 {
    let next = at.wrapping_add(2);
    if next == c.word(data::KEY_BUFFER_END_PTR) { c.word(data::KEY_BUFFER_START_PTR) } else { next }
}

/// The next code that functions 00h or 10h may see. What they may not is dropped.
pub(super) fn peek(c: &mut Call, enhanced: bool) -> Option<u16> {
    // No more than the buffer holds, whatever the pointers say.
    for _ in 0..=0x80 {
        let (head, tail) = (c.word(data::KEY_HEAD), c.word(data::KEY_TAIL));
        if head == tail {
            return None;
        }
        let code = c.word(0x400 + u64::from(head));
        let (scan, ascii) = ((code >> 8) as u8, code as u8);
        if enhanced {
            return Some(code);
        }
        match (scan, ascii) {
            (0xe0, b'/') => return Some(0x352f),
            (0xe0, _) => return Some(0x1c00 | u16::from(ascii)),
            (0..=0x84, 0xe0) if scan != 0 => return Some(u16::from(scan) << 8),
            (0..=0x84, _) => return Some(code),
            _ => take(c),
        }
    }
    None
}

/// Takes the code that [`peek`] showed.
pub(super) fn take(c: &mut Call) {
    let head = c.word(data::KEY_HEAD);
    let next = advance(c, head);
    c.set_word(data::KEY_HEAD, next);
}

/// Service [`super::service::KEY`]: a byte of the keyboard is in AL. AH gets what is to be done beyond.
pub(super) fn key(c: &mut Call) -> Flow {
    let byte = c.r.al();
    c.r.set_ax(0);
    if c.state.keyboard.skip > 0 {
        c.state.keyboard.skip -= 1;
        return Flow::Done;
    }
    let prefix = c.byte(data::KEYBOARD);
    match byte {
        // Pause comes as E1 and two codes of two, pressed and released at once.
        0xe1 => {
            c.state.keyboard.skip = 5;
            return Flow::Done;
        }
        0xe0 => {
            c.set_byte(data::KEYBOARD, prefix | LAST_E0);
            return Flow::Done;
        }
        // Answers to commands. AA, the result of its self-test, releases the left shift key as well.
        0xfa | 0xfe | 0x00 | 0xff => return Flow::Done,
        _ => {}
    }
    let extended = prefix & LAST_E0 != 0;
    c.set_byte(data::KEYBOARD, prefix & !(LAST_E0 | LAST_E1));
    let (scan, down) = (byte & 0x7f, byte & 0x80 == 0);
    if !modifier(c, scan, extended, down) {
        press(c, scan, extended, down);
    }
    Flow::Done
}

/// Shift keys and locks; `true` when the key is done with.
fn modifier(c: &mut Call, scan: u8, extended: bool, down: bool) -> bool {
    let (mut flags, mut flags2, mut more) = (c.byte(data::SHIFT), c.byte(data::SHIFT2), c.byte(data::KEYBOARD));
    let set = |v: &mut u8, bit: u8| *v = if down { *v | bit } else { *v & !bit };
    let mut lock = 0;
    match (scan, extended) {
        // Shifts with E0 are sent around the grey keys and mean nothing.
        (0x2a | 0x36, true) => return true,
        (0x2a, false) => set(&mut flags, LEFT_SHIFT),
        (0x36, false) => set(&mut flags, RIGHT_SHIFT),
        (0x1d, _) => {
            if extended {
                set(&mut more, RIGHT_CTRL)
            } else {
                set(&mut flags2, 1)
            }
            flags = flags & !CTRL | if more & RIGHT_CTRL != 0 || flags2 & 1 != 0 { CTRL } else { 0 };
        }
        (0x38, _) => {
            if extended {
                set(&mut more, RIGHT_ALT)
            } else {
                set(&mut flags2, 2)
            }
            flags = flags & !ALT | if more & RIGHT_ALT != 0 || flags2 & 2 != 0 { ALT } else { 0 };
            let number = c.byte(data::ALT_NUMBER);
            if flags & ALT == 0 && number != 0 {
                c.set_byte(data::ALT_NUMBER, 0);
                put(c, number.into());
            }
        }
        (0x3a, false) => (lock, _) = (CAPS, set(&mut flags2, 0x40)),
        (0x45, false) => (lock, _) = (NUM, set(&mut flags2, 0x20)),
        (0x46, false) => (lock, _) = (SCROLL, set(&mut flags2, 0x10)),
        _ => return false,
    }
    // A key that repeats does not toggle.
    let held = c.byte(data::SHIFT2);
    let toggles = lock != 0 && down && held & lock == 0;
    if toggles {
        flags ^= lock;
    }
    c.set_byte(data::SHIFT, flags);
    c.set_byte(data::SHIFT2, flags2);
    c.set_byte(data::KEYBOARD, more);
    if toggles {
        // The acknowledgements come as scan codes FA.
        let leds = flags >> 4 & 7;
        c.set_byte(data::LEDS, leds);
        c.outb(0x60, 0xed);
        c.outb(0x60, leds);
    }
    true
}

/// A key that is not a modifier.
fn press(c: &mut Call, scan: u8, extended: bool, down: bool) {
    let flags = c.byte(data::SHIFT);
    let (ctrl, alt) = (flags & CTRL != 0, flags & ALT != 0);
    if scan == 0x54 {
        c.r.set_ax(u16::from(SYSRQ) << 8 | u16::from(!down));
        return;
    }
    let flags2 = c.byte(data::SHIFT2);
    if scan == 0x52 {
        c.set_byte(data::SHIFT2, if down { flags2 | INSERT } else { flags2 & !INSERT });
    }
    if !down {
        return;
    }
    match scan {
        DELETE if ctrl && alt => {
            c.set_word(data::RESET_FLAG, 0x1234);
            c.outb(0x64, 0xfe);
        }
        // Break.
        0x46 if extended && ctrl => {
            let start = c.word(data::KEY_BUFFER_START_PTR);
            c.set_word(data::KEY_HEAD, start);
            c.set_word(data::KEY_TAIL, start);
            c.set_byte(0x471, 0x80);
            put(c, 0);
            c.r.set_ah(BREAK);
        }
        PRINT_SCREEN if extended && ctrl => _ = put(c, 0x7200),
        PRINT_SCREEN if extended => c.r.set_ah(PRINT),
        0x47..=0x52 if alt && !ctrl && !extended && KEYPAD[usize::from(scan - 0x47)].is_ascii_digit() => {
            let digit = KEYPAD[usize::from(scan - 0x47)] - b'0';
            let number = c.byte(data::ALT_NUMBER).wrapping_mul(10).wrapping_add(digit);
            c.set_byte(data::ALT_NUMBER, number);
        }
        _ => {
            if let Some(code) = code(scan, extended, flags) {
                if scan == 0x52 && !ctrl && !alt && code as u8 != b'0' && flags2 & INSERT == 0 {
                    c.set_byte(data::SHIFT, flags ^ INSERT);
                }
                put(c, code);
            }
        }
    }
}

/// INT 16h.
pub(super) fn service(c: &mut Call) -> Flow {
    serial::poll(c);
    match c.r.ah() {
        function @ (0x00 | 0x10 | 0x20) => {
            let Some(code) = peek(c, function != 0) else { return Flow::Wait };
            take(c);
            c.r.set_ax(code);
        }
        function @ (0x01 | 0x11 | 0x21) => {
            let code = peek(c, function != 1);
            c.r.set_zero(code.is_none());
            if let Some(code) = code {
                c.r.set_ax(code);
            }
        }
        0x02 => {
            let flags = c.byte(data::SHIFT);
            c.r.set_al(flags);
        }
        // Typematic rate: the keyboard's own is good.
        0x03 => {}
        0x05 => {
            let code = c.r.cx();
            let stored = put(c, code);
            c.r.set_al(u8::from(!stored));
        }
        // Functions 0A, 10 to 12, 20 to 22.
        0x09 => c.r.set_al(0x64),
        0x0a => c.r.set_bx(0x41ab),
        0x12 | 0x22 => {
            let (flags, flags2, more) = (c.byte(data::SHIFT), c.byte(data::SHIFT2), c.byte(data::KEYBOARD));
            let held = flags2 & 0x73 | if flags2 & 4 != 0 { 0x80 } else { 0 };
            c.r.set_ax(u16::from(held | more & (RIGHT_CTRL | RIGHT_ALT)) << 8 | u16::from(flags));
        }
        // Programs that ask for keyboards of 122 keys look at AH.
        0x92 => c.r.set_ah(0x80),
        _ => {}
    }
    Flow::Done
}
