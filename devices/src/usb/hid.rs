//! Keyboard, mouse and tablet: human interface devices.
//!
//! Device Class Definition for HID 1.11, HID Usage Tables 1.4. Keyboard and mouse know the boot protocol, by which a
//! BIOS reads them. The tablet is bhyve's: it says where on the screen the pointer is, so that it does not drift away
//! from the viewer's.

use std::collections::VecDeque;

use emu::backend::Pointing;
use emu::{Event, State};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Function, Hands, Identity, In, Keyboard, Setup, Speed};
use crate::motion::Motion;

/// Reports that wait for the guest. Movements become one when there are more.
const WAITING: usize = 16;
/// Reports of keys that wait; who types waits until there are none.
const KEYS: usize = 64;
/// The endpoint that reports come from.
const ENDPOINT: u8 = 1;
/// Keys in a report.
const HELD: usize = 6;
/// All keys of a report: there are more than fit.
const ROLL_OVER: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tablet,
    Keyboard,
    Mouse,
}

const TABLET: &[u8] = &[
    0x05, 0x01, 0x09, 0x02, 0xa1, 0x01, // Generic Desktop, Mouse, Application
    0x09, 0x01, 0xa1, 0x00, // Pointer, Physical
    0x05, 0x09, 0x19, 0x01, 0x29, 0x05, 0x15, 0x00, 0x25, 0x01, 0x75, 0x01, 0x95, 0x05, 0x81, 0x02, // 5 buttons
    0x75, 0x03, 0x95, 0x01, 0x81, 0x01, // 3 bits of nothing
    0x05, 0x01, 0x09, 0x30, 0x09, 0x31, 0x15, 0x00, 0x26, 0xff, 0x7f, 0x35, 0x00, 0x46, 0xff, 0x7f, 0x75, 0x10, 0x95,
    0x02, 0x81, 0x02, // X, Y: absolute, 16 bits, to 32767
    0x09, 0x38, 0x15, 0x81, 0x25, 0x7f, 0x35, 0x00, 0x45, 0x00, 0x75, 0x08, 0x95, 0x01, 0x81, 0x06, // wheel
    0xc0, 0xc0,
];

const MOUSE: &[u8] = &[
    0x05, 0x01, 0x09, 0x02, 0xa1, 0x01, 0x09, 0x01, 0xa1, 0x00, // as the tablet's
    0x05, 0x09, 0x19, 0x01, 0x29, 0x05, 0x15, 0x00, 0x25, 0x01, 0x75, 0x01, 0x95, 0x05, 0x81, 0x02, // 5 buttons
    0x75, 0x03, 0x95, 0x01, 0x81, 0x01, // 3 bits of nothing
    0x05, 0x01, 0x09, 0x30, 0x09, 0x31, 0x09, 0x38, 0x15, 0x81, 0x25, 0x7f, 0x75, 0x08, 0x95, 0x03, 0x81,
    0x06, // X, Y, wheel: how far they moved
    0xc0, 0xc0,
];

const KEYBOARD: &[u8] = &[
    0x05, 0x01, 0x09, 0x06, 0xa1, 0x01, // Generic Desktop, Keyboard, Application
    0x05, 0x07, 0x19, 0xe0, 0x29, 0xe7, 0x15, 0x00, 0x25, 0x01, 0x75, 0x01, 0x95, 0x08, 0x81, 0x02, // modifiers
    0x75, 0x08, 0x95, 0x01, 0x81, 0x01, // a byte of nothing
    0x05, 0x08, 0x19, 0x01, 0x29, 0x05, 0x75, 0x01, 0x95, 0x05, 0x91, 0x02, // 5 lights, written by the host
    0x75, 0x03, 0x95, 0x01, 0x91, 0x01, // 3 bits of nothing
    0x05, 0x07, 0x19, 0x00, 0x29, 0xff, 0x15, 0x00, 0x26, 0xff, 0x00, 0x75, 0x08, 0x95, 0x06, 0x81,
    0x00, // 6 keys
    0xc0,
];

/// Usages of the keys with set-1 codes up to 7F, on the keyboard page; 0 for none.
#[rustfmt::skip]
const USAGES: [u8; 128] = [
    0x00, 0x29, 0x1e, 0x1f, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x2d, 0x2e, 0x2a, 0x2b,
    0x14, 0x1a, 0x08, 0x15, 0x17, 0x1c, 0x18, 0x0c, 0x12, 0x13, 0x2f, 0x30, 0x28, 0xe0, 0x04, 0x16,
    0x07, 0x09, 0x0a, 0x0b, 0x0d, 0x0e, 0x0f, 0x33, 0x34, 0x35, 0xe1, 0x31, 0x1d, 0x1b, 0x06, 0x19,
    0x05, 0x11, 0x10, 0x36, 0x37, 0x38, 0xe5, 0x55, 0xe2, 0x2c, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e,
    0x3f, 0x40, 0x41, 0x42, 0x43, 0x53, 0x47, 0x5f, 0x60, 0x61, 0x56, 0x5c, 0x5d, 0x5e, 0x57, 0x59,
    0x5a, 0x5b, 0x62, 0x63, 0x46, 0x00, 0x64, 0x44, 0x45, 0x67, 0x00, 0x00, 0x8c, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f, 0x70, 0x71, 0x72, 0x00,
    0x88, 0x91, 0x90, 0x87, 0x00, 0x00, 0x73, 0x93, 0x92, 0x8a, 0x00, 0x8b, 0x00, 0x89, 0x85, 0x00,
];

/// The usage of a key by its code of [`Event::Key`].
fn usage(code: u16) -> Option<u8> {
    let usage = match code {
        0x11c => 0x58,
        0x11d => 0xe4,
        0x135 => 0x54,
        0x137 => 0x46,
        0x138 => 0xe6,
        0x146 | 0x245 => 0x48,
        0x147 => 0x4a,
        0x148 => 0x52,
        0x149 => 0x4b,
        0x14b => 0x50,
        0x14d => 0x4f,
        0x14f => 0x4d,
        0x150 => 0x51,
        0x151 => 0x4e,
        0x152 => 0x49,
        0x153 => 0x4c,
        0x15b => 0xe3,
        0x15c => 0xe7,
        0x15d => 0x65,
        0x15e => 0x66,
        _ => *USAGES.get(usize::from(code))?,
    };
    Some(usage).filter(|usage| *usage != 0)
}

/// What is saved.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Registers {
    /// The boot protocol is on.
    boot: bool,
    idle: u8,
    lights: u8,
    modifiers: u8,
    /// Usages of the keys that are down, other than modifiers.
    held: Vec<u8>,
    keys: VecDeque<[u8; 8]>,
    moves: VecDeque<Motion>,
    /// Where the pointer was, and its buttons.
    last: Motion,
}

pub(super) struct Hid {
    kind: Kind,
    identity: Identity,
    r: Registers,
}

impl Hid {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Hid> {
        let (kind, product, title, serial, boot, packet) = match name {
            "tablet" => (Kind::Tablet, 1, "HID Tablet", "01", [0, 0], 8),
            "keyboard" => (Kind::Keyboard, 2, "HID Keyboard", "02", [1, 1], 8),
            "mouse" => (Kind::Mouse, 3, "HID Mouse", "03", [1, 2], 4),
            _ => return None,
        };
        // As bhyve's, and as usual. Every 8 ms, or 10.
        let speed = if kind == Kind::Tablet { Speed::High } else { Speed::Full };
        let interval = if speed == Speed::High { 7 } else { 10 };
        let configuration = [
            // One interface, powered by the bus, wakes it up, 100 mA.
            &[9, 2, 34, 0, 1, 1, 0, 0xa0, 50][..],
            &[9, 4, 0, 0, 1, 3, boot[0], boot[1], 0],
            &hid_descriptor(kind),
            &[7, 5, 0x80 | ENDPOINT, 3, packet, 0, interval],
        ];
        let strings = ["BHYVE", title, serial];
        let identity = Identity { vendor: 0xfb5d, product, strings, speed, configuration: configuration.concat() };
        Some(Hid { kind, identity, r: Registers::default() })
    }

    /// Adds a movement to those that wait.
    fn moved(&mut self, motion: Motion) {
        let r = &mut self.r;
        let full = r.moves.len() >= WAITING;
        let joins = |before: &Motion| full || (before.buttons, before.wheel, motion.wheel) == (motion.buttons, 0, 0);
        match r.moves.back_mut().filter(|before| joins(before)) {
            Some(before) => {
                if self.kind == Kind::Tablet {
                    (before.x, before.y) = (motion.x, motion.y);
                } else {
                    before.x = before.x.saturating_add(motion.x);
                    before.y = before.y.saturating_add(motion.y);
                }
                before.wheel = before.wheel.saturating_add(motion.wheel);
                before.buttons = motion.buttons;
            }
            None => r.moves.push_back(motion),
        }
    }

    fn key(&mut self, usage: u8, down: bool) -> bool {
        let r = &mut self.r;
        if r.keys.len() >= KEYS {
            return false;
        }
        match usage {
            0xe0..=0xe7 if down => r.modifiers |= 1 << (usage & 7),
            0xe0..=0xe7 => r.modifiers &= !(1 << (usage & 7)),
            _ if down && !r.held.contains(&usage) && r.held.len() < KEYS => r.held.push(usage),
            _ if down => {}
            _ => r.held.retain(|held| *held != usage),
        }
        let report = self.keys_down();
        self.r.keys.push_back(report);
        true
    }

    fn keys_down(&self) -> [u8; 8] {
        let (mut report, held) = ([0; 8], &self.r.held);
        report[0] = self.r.modifiers;
        match held.len() {
            0..=HELD => report[2..2 + held.len()].copy_from_slice(held),
            _ => report[2..].fill(ROLL_OVER),
        }
        report
    }

    /// A report of a movement. What one report has no room for is left.
    fn report(&self, motion: &mut Motion) -> Vec<u8> {
        fn part(n: &mut i32) -> u8 {
            let part = (*n).clamp(-127, 127);
            *n -= part;
            part as i8 as u8
        }
        let wheel = part(&mut motion.wheel);
        if self.kind == Kind::Tablet {
            let [x, y] = [motion.x, motion.y].map(|n| (n.clamp(0, 0x7fff) as u16).to_le_bytes());
            return [&[motion.buttons & 0x1f][..], &x, &y, &[wheel]].concat();
        }
        let mut report = vec![motion.buttons & 0x1f, part(&mut motion.x), part(&mut motion.y), wheel];
        if self.r.boot {
            report.truncate(3);
        }
        report
    }

    /// The next report, if there is one.
    fn next(&mut self) -> Option<Vec<u8>> {
        if self.kind == Kind::Keyboard {
            return self.r.keys.pop_front().map(Vec::from);
        }
        let mut motion = self.r.moves.pop_front()?;
        let report = self.report(&mut motion);
        let rest = match self.kind {
            Kind::Tablet => motion.wheel != 0,
            _ => (motion.x, motion.y) != (0, 0) || motion.wheel != 0 && !self.r.boot,
        };
        if rest {
            self.r.moves.push_front(motion);
        }
        Some(report)
    }
}

/// The descriptor of the class, which says how long that of the reports is.
fn hid_descriptor(kind: Kind) -> [u8; 9] {
    [9, 0x21, 0x11, 0x01, 0, 1, 0x22, reports(kind).len() as u8, 0]
}

fn reports(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::Tablet => TABLET,
        Kind::Keyboard => KEYBOARD,
        Kind::Mouse => MOUSE,
    }
}

impl Function for Hid {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn reset(&mut self) {
        self.r = Registers::default();
    }

    fn request(&mut self, setup: &Setup, data: &[u8]) -> Option<Vec<u8>> {
        let boots = self.kind != Kind::Tablet;
        match setup.request {
            (0x81, 6) => match setup.value >> 8 {
                0x21 => Some(hid_descriptor(self.kind).to_vec()),
                0x22 => Some(reports(self.kind).to_vec()),
                _ => None,
            },
            // Get_Report of what comes from it.
            (0xa1, 1) if setup.value >> 8 == 1 => match self.kind {
                Kind::Keyboard => Some(self.keys_down().to_vec()),
                _ => {
                    let mut last = Motion { wheel: 0, ..self.r.last };
                    Some(self.report(&mut last))
                }
            },
            (0xa1, 2) => Some(vec![self.r.idle]),
            (0xa1, 3) if boots => Some(vec![u8::from(!self.r.boot)]),
            // Set_Report: the lights.
            (0x21, 9) if self.kind == Kind::Keyboard && setup.value >> 8 == 2 => {
                self.r.lights = data.first()? & 0x1f;
                Some(Vec::new())
            }
            (0x21, 10) => {
                self.r.idle = (setup.value >> 8) as u8;
                Some(Vec::new())
            }
            (0x21, 11) if boots && setup.value <= 1 => {
                self.r.boot = setup.value == 0;
                Some(Vec::new())
            }
            _ => None,
        }
    }

    fn receive(&mut self, endpoint: u8, most: usize) -> In {
        if endpoint != ENDPOINT {
            return In::Stall;
        }
        match self.next() {
            Some(mut report) => {
                report.truncate(most);
                In::Data(report)
            }
            None => In::Nak,
        }
    }

    fn event(&mut self, event: &Event) -> bool {
        match (self.kind, event) {
            (Kind::Tablet, Event::PointerAt(x, y, wheel, buttons)) => {
                let now = Motion { x: (*x).into(), y: (*y).into(), wheel: 0, buttons: *buttons };
                if now == self.r.last && *wheel == 0 {
                    return false;
                }
                self.r.last = now;
                self.moved(Motion { wheel: *wheel, ..now });
                true
            }
            (Kind::Mouse, Event::Pointer(x, y, wheel, buttons)) => {
                let now = Motion { buttons: *buttons, ..Motion::default() };
                if now == self.r.last && (*x, *y, *wheel) == (0, 0, 0) {
                    return false;
                }
                self.r.last = now;
                self.moved(Motion { x: *x, y: y.saturating_neg(), wheel: *wheel, ..now });
                true
            }
            (Kind::Keyboard, Event::Key(code, down)) => usage(*code).is_some_and(|usage| self.key(usage, *down)),
            _ => false,
        }
    }

    fn hands(&self) -> Hands {
        // Num, Caps and Scroll Lock stand in another order here.
        let lights = self.r.lights << 1 & 6 | self.r.lights >> 2 & 1;
        match self.kind {
            Kind::Keyboard => {
                Hands { keyboard: Some(Keyboard { ready: self.r.keys.is_empty(), lights }), ..Hands::default() }
            }
            Kind::Tablet => Hands { pointing: Some(Pointing::At), ..Hands::default() },
            Kind::Mouse => Hands { pointing: Some(Pointing::By), ..Hands::default() },
        }
    }

    fn save(&self) -> Value {
        self.r.save()
    }

    fn load(&mut self, value: Value) -> Result<(), String> {
        let mut r = Registers::default();
        r.load(value)?;
        if r.held.len() > KEYS || r.keys.len() > KEYS || r.moves.len() > WAITING {
            return Err("more reports wait than can".to_owned());
        }
        self.r = r;
        Ok(())
    }
}
