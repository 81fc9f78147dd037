//! What a terminal sends when keys are pressed, as keys: characters, control codes and escape sequences (ECMA-48,
//! xterm).

use super::keymap::{self, ALT, CTRL, SHIFT};
use super::{Press, language};

/// What follows ESC [ with a letter at its end, or ESC O.
const LETTERS: [(u8, &str); 12] = [
    (b'A', "up"),
    (b'B', "down"),
    (b'C', "right"),
    (b'D', "left"),
    (b'E', "kp5"),
    (b'F', "end"),
    (b'H', "home"),
    (b'P', "f1"),
    (b'Q', "f2"),
    (b'R', "f3"),
    (b'S', "f4"),
    (b'M', "kpenter"),
];
/// The number of ESC [ number ~.
const NUMBERS: [(u32, &str); 20] = [
    (1, "home"),
    (2, "insert"),
    (3, "delete"),
    (4, "end"),
    (5, "pageup"),
    (6, "pagedown"),
    (7, "home"),
    (8, "end"),
    (11, "f1"),
    (12, "f2"),
    (13, "f3"),
    (14, "f4"),
    (15, "f5"),
    (17, "f6"),
    (18, "f7"),
    (19, "f8"),
    (20, "f9"),
    (21, "f10"),
    (23, "f11"),
    (24, "f12"),
];
/// The longest sequence that is waited for.
const LONGEST: usize = 16;

/// The state between two bytes.
#[derive(Default)]
pub(crate) struct Decoder {
    /// A sequence that is not complete, ESC included, or the first bytes of a character.
    held: Vec<u8>,
}

impl Decoder {
    /// The keys of the next bytes. What comes in one read belongs together: an ESC at its end is the key.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<Press> {
        let mut out = Vec::new();
        for &byte in bytes {
            self.held.push(byte);
            self.step(&mut out);
        }
        if self.held == [0x1b] {
            self.held.clear();
            language::chord(&mut out, [0x01].into_iter());
        }
        out
    }

    fn step(&mut self, out: &mut Vec<Press>) {
        match self.held[..] {
            [0x1b] | [0x1b, b'[' | b'O'] => {}
            // ESC before a character is Alt with it.
            [0x1b, byte] => {
                self.held.clear();
                if let Some((code, shift, ctrl)) = keymap::of_character(byte.into()) {
                    press(out, code, shift, true, ctrl);
                }
            }
            [0x1b, _, .., last] if (0x40..=0x7e).contains(&last) => {
                let sequence = std::mem::take(&mut self.held);
                sequence_keys(out, &sequence[2..]);
            }
            [0x1b, ..] if self.held.len() >= LONGEST => self.held.clear(),
            [0x1b, ..] => {}
            _ => match std::str::from_utf8(&self.held) {
                Ok(text) => {
                    // What is on no key cannot be typed.
                    text.chars().for_each(|c| _ = language::type_character(out, c));
                    self.held.clear();
                }
                Err(e) if e.error_len().is_some() || self.held.len() >= 4 => self.held.clear(),
                Err(_) => {}
            },
        }
    }
}

fn press(out: &mut Vec<Press>, code: u16, shift: bool, alt: bool, ctrl: bool) {
    let held = [(shift, SHIFT), (ctrl, CTRL), (alt, ALT)];
    language::chord(out, held.into_iter().filter(|(on, _)| *on).map(|(_, code)| code).chain([code]));
}

/// Parameters and the final byte of a sequence.
fn sequence_keys(out: &mut Vec<Press>, sequence: &[u8]) {
    let [parameters @ .., last] = sequence else { return };
    let parameters = String::from_utf8_lossy(parameters);
    let mut numbers = parameters.split(';').map(|n| n.parse::<u32>().unwrap_or(1));
    let first = numbers.next().unwrap_or(1);
    // The second number is 1 and the bits of Shift, Alt and Ctrl.
    let bits = numbers.next().unwrap_or(1).saturating_sub(1);
    let name = match last {
        b'~' => NUMBERS.iter().find(|(n, _)| *n == first).map(|(_, name)| *name),
        b'Z' => return press(out, 0x0f, true, false, false),
        last => LETTERS.iter().find(|(letter, _)| letter == last).map(|(_, name)| *name),
    };
    if let Some(code) = name.and_then(keymap::of_name) {
        press(out, code, bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyboard::parse;

    #[test]
    fn sequences_are_the_keys_that_send_them() {
        for (bytes, keys) in [
            (&b"a"[..], "a"),
            (b"\r", "<enter>"),
            (b"\x03", "<ctrl-c>"),
            (b"\x7f", "<backspace>"),
            (b"\x1b", "<esc>"),
            (b"\x1b[A", "<up>"),
            (b"\x1bOP", "<f1>"),
            (b"\x1b[24~", "<f12>"),
            (b"\x1b[1;5C", "<ctrl-right>"),
            (b"\x1b[3;2~", "<shift-delete>"),
            (b"\x1b[Z", "<shift-tab>"),
            (b"\x1bx", "<alt-x>"),
            (b"\x1b[99~", ""),
            ("é".as_bytes(), ""),
        ] {
            assert_eq!(Decoder::default().feed(bytes), parse(keys).unwrap(), "{keys}");
        }
    }

    #[test]
    fn bytes_that_make_no_sense_are_forgotten() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.feed(&[b"\x1b[", [b'1'; LONGEST - 2].as_slice()].concat()), []);
        decoder.feed(b"\xff\xff\xc3");
        decoder.feed(b"(");
        assert_eq!(decoder.feed(b"b"), parse("b").unwrap());
    }
}
