//! A client's keys and pointer, as keys and movements of the guest's.

use crate::keyboard::Press;
use crate::keyboard::layout::{ALT_GR, Layout, Meaning, Stroke, meaning};
use crate::pointer::Motion;

const SHIFTS: [u16; 2] = [0x2a, 0x36];
/// Ctrl and Alt: what is typed with them is no text.
const COMMANDS: [u16; 3] = [0x1d, 0x11d, 0x38];
/// Keys that one client can hold.
const HELD: usize = 64;
/// The light of Caps Lock.
const CAPS: u8 = 4;

/// The hands of a client.
#[derive(Default)]
pub(super) struct Hands {
    /// What it holds: a keysym, or nothing if it said which key it is; and the key.
    held: Vec<(Option<u32>, u16)>,
    position: Option<(i32, i32)>,
    /// The same, as [`Motion::at`].
    at: Option<(u16, u16)>,
    wheel: u8,
    buttons: u8,
}

impl Hands {
    /// A key by what is on it. `lights` are the guest's.
    pub fn keysym(&mut self, keysym: u32, down: bool, layout: &Layout, lights: u8) -> Vec<Press> {
        if !down {
            let held = self.held.iter().position(|(k, _)| *k == Some(keysym));
            return held.map(|n| Press::Key(self.held.remove(n).1, false)).into_iter().collect();
        }
        // The guest's keyboard repeats by itself.
        if self.held.len() >= HELD || self.held.iter().any(|(k, _)| *k == Some(keysym)) {
            return Vec::new();
        }
        match layout.key(keysym).map(Meaning::Key).or_else(|| meaning(keysym)) {
            Some(Meaning::Key(code)) => {
                self.held.push((Some(keysym), code));
                vec![Press::Key(code, true)]
            }
            Some(Meaning::Character(c)) => {
                let Some(stroke) = layout.find(c) else { return Vec::new() };
                let presses = self.strike(c, stroke, lights);
                self.held.push((Some(keysym), stroke.code));
                presses
            }
            None => Vec::new(),
        }
    }

    /// Presses the key of a character, with Shift and AltGr as the guest's layout wants them and not as the client
    /// holds them for its own.
    fn strike(&self, c: char, stroke: Stroke, lights: u8) -> Vec<Press> {
        let holds = |codes: &[u16]| -> Vec<u16> {
            self.held.iter().map(|(_, code)| *code).filter(|code| codes.contains(code)).collect()
        };
        let mut around: Vec<(u16, bool)> = Vec::new();
        if holds(&COMMANDS).is_empty() {
            let upside_down = c.is_alphabetic() && lights & CAPS != 0;
            for (codes, wanted) in [(&SHIFTS[..], stroke.shift != upside_down), (&[ALT_GR], stroke.alt_gr)] {
                match (holds(codes), wanted) {
                    (held, true) if held.is_empty() => around.push((codes[0], true)),
                    (held, false) => around.extend(held.into_iter().map(|code| (code, false))),
                    _ => {}
                }
            }
        }
        let before = around.iter().map(|(code, down)| Press::Key(*code, *down));
        let after = around.iter().rev().map(|(code, down)| Press::Key(*code, !down));
        before.chain([Press::Key(stroke.code, true)]).chain(after).collect()
    }

    /// A key by its place: QEMU's message has set 1 codes, those after E0 with bit 7.
    pub fn scan_code(&mut self, keycode: u32, down: bool) -> Vec<Press> {
        let code = match keycode {
            0xc6 => 0x245,
            1..=0x7f => keycode as u16,
            0x80..=0xff => 0x100 | keycode as u16 & 0x7f,
            _ => return Vec::new(),
        };
        let held = self.held.iter().position(|(k, held)| k.is_none() && *held == code);
        match (held, down) {
            (None, true) if self.held.len() < HELD => self.held.push((None, code)),
            (Some(n), false) => _ = self.held.remove(n),
            _ => return Vec::new(),
        }
        vec![Press::Key(code, down)]
    }

    /// Lets go of everything.
    pub fn release(&mut self) -> Vec<Press> {
        self.held.drain(..).rev().map(|(_, code)| Press::Key(code, false)).collect()
    }

    /// Whether a button of the pointer is down.
    pub fn drags(&self) -> bool {
        self.buttons != 0
    }

    /// The pointer is somewhere on a screen of this size, or without one has moved by so much, with buttons in RFB's
    /// order.
    pub fn pointer(&mut self, x: i32, y: i32, mask: u8, screen: Option<(usize, usize)>) -> Motion {
        let (dx, dy) = match self.position {
            _ if screen.is_none() => (x, y),
            Some((old_x, old_y)) => (x - old_x, y - old_y),
            None => (0, 0),
        };
        if let Some((width, height)) = screen {
            let part = |n: i32, of: usize| {
                let most = i64::try_from(of).unwrap_or(1).max(2) - 1;
                (i64::from(n).clamp(0, most) * 0x7fff / most) as u16
            };
            (self.position, self.at) = (Some((x, y)), Some((part(x, width), part(y, height))));
        }
        // The wheel turns when its button goes down.
        let turned = mask & !self.wheel;
        self.wheel = mask & 0x18;
        let wheel = i32::from(turned >> 3 & 1) - i32::from(turned >> 4 & 1);
        self.buttons = mask & 1 | mask >> 1 & 2 | mask << 1 & 4 | mask >> 4 & 8;
        Motion { dx, dy: -dy, wheel, buttons: self.buttons, at: self.at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `code+` and `code-`.
    fn shown(presses: Vec<Press>) -> String {
        let show = |press| match press {
            Press::Key(code, down) => format!("{code:x}{}", if down { '+' } else { '-' }),
            Press::Wait(_) => String::new(),
        };
        presses.into_iter().map(show).collect::<Vec<_>>().join(" ")
    }

    fn hands(keys: &[(u32, bool)], layout: &str, lights: u8) -> String {
        let mut hands = Hands::default();
        let layout = Layout::named(layout).unwrap();
        keys.iter().map(|(key, down)| shown(hands.keysym(*key, *down, &layout, lights))).collect::<Vec<_>>().join(" ")
    }

    const SHIFT: u32 = 0xffe1;

    #[test]
    fn characters_come_with_the_shifts_of_the_guests_layout() {
        assert_eq!(hands(&[(SHIFT, true), (0x41, true), (0x41, false), (SHIFT, false)], "us", 0), "2a+ 1e+ 1e- 2a-");
        assert_eq!(hands(&[(0x41, true), (0x41, false)], "us", 0), "2a+ 1e+ 2a- 1e-", "a client without a Shift key");
        // Shift and 7 on a German keyboard; the guest's is American.
        assert_eq!(hands(&[(SHIFT, true), (0x2f, true)], "us", 0), "2a+ 2a- 35+ 2a+");
        assert_eq!(hands(&[(0x40, true)], "de", 0), "138+ 10+ 138-");
        assert_eq!(hands(&[(0xffe3, true), (0x43, true)], "us", 0), "1d+ 2e+", "Ctrl is left as it is");
    }

    #[test]
    fn a_file_says_which_key_and_the_client_what_is_held() {
        let file = std::env::temp_dir().join(format!("bhyve-rs-layout-{}", std::process::id()));
        std::fs::write(&file, "'@',0x15;\n0xfe51,0x55;\n").unwrap();
        let layout = Layout::read(file.to_str().unwrap());
        std::fs::remove_file(&file).unwrap();
        let (layout, mut hands) = (layout.unwrap(), Hands::default());
        let mut press = |keysym| shown(hands.keysym(keysym, true, &layout, 0));
        assert_eq!([press(0x40), press(0x22), press(0xfe51), press(0xfe03)], ["10+", "28+", "d+", "138+"]);
        assert!(Layout::read("/dev/null").is_err());
    }

    #[test]
    fn caps_lock_of_the_guest_turns_letters_over_and_nothing_else() {
        assert_eq!(hands(&[(0x61, true), (0x41, true), (0x31, true)], "us", CAPS), "2a+ 1e+ 2a- 1e+ 2+");
    }

    #[test]
    fn keys_are_let_go_once_by_whatever_they_were_pressed_and_all_at_the_end() {
        let mut hands = Hands::default();
        let us = Layout::default();
        assert_eq!(shown(hands.keysym(0x61, true, &us, 0)), "1e+");
        assert_eq!(shown(hands.keysym(0x61, true, &us, 0)), "", "it repeats");
        assert_eq!(shown(hands.scan_code(0xc8, true)), "148+");
        assert_eq!(shown(hands.scan_code(0xc6, true)), "245+");
        assert_eq!(shown(hands.keysym(0x62, false, &us, 0)), "");
        assert_eq!(shown(hands.release()), "245- 148- 1e-");
        assert_eq!(shown(hands.release()), "");
        assert_eq!(shown(hands.scan_code(0x1_0000, true)), "");
        (0..1000).for_each(|n| _ = hands.keysym(n, true, &us, 0));
        (0..1000).for_each(|n| _ = hands.scan_code(n, true));
        assert!(hands.release().len() <= HELD);
    }

    #[test]
    fn the_pointer_tells_how_far_it_moved_and_the_wheel_once_a_turn() {
        let mut hands = Hands::default();
        let (screen, still) = (Some((201, 101)), Motion::default());
        let at = Some((0x7fff / 2, 0x7fff));
        assert_eq!(hands.pointer(100, 100, 0, screen), Motion { at, ..still }, "nobody knows from where");
        let at = Some(((0x7fff_u32 * 105 / 200) as u16, (0x7fff_u32 * 98 / 100) as u16));
        assert_eq!(hands.pointer(105, 98, 5, screen), Motion { dx: 5, dy: 2, wheel: 0, buttons: 3, at });
        assert_eq!(hands.pointer(105, 98, 0x0a, screen), Motion { wheel: 1, buttons: 4, at, ..still });
        assert_eq!(hands.pointer(105, 98, 0x08, screen).wheel, 0);
        assert_eq!(hands.pointer(105, 98, 0x10, screen).wheel, -1);
        assert_eq!(hands.pointer(-3, 2, 0x80, None), Motion { dx: -3, dy: -2, wheel: 0, buttons: 8, at });
        assert_eq!(hands.pointer(900, -1, 0, screen).at, Some((0x7fff, 0)));
        assert_eq!(hands.pointer(9, 9, 0, Some((0, 1))).at, Some((0x7fff, 0x7fff)));
    }
}
