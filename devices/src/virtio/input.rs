//! virtio-input: a keyboard, a mouse, a tablet, or an input device of the host.
//!
//! Virtio 1.2, 5.8. What a device is, which codes it has and what it reports are evdev's, of Linux's
//! input-event-codes.h and FreeBSD's dev/evdev. bhyve's is a device of the host; the others are what viewers and
//! terminals move and type at, as those on USB. There is no legacy form.
//!
//! A keyboard is typed at as fast as the guest reads. Movements become one while the guest reads none.

use std::collections::VecDeque;

use emu::backend::{Evdev, InputEvent, InputIdentity, Keys, Pointer, Pointing};
use emu::{Class, Event, Model, Params, Slot};
use serde::{Deserialize, Serialize};

use super::pci::{Core, Function, IOEVENTFD, Kind, MSIX, VERSION, VirtioPci};
use super::queue::Chain;
use crate::motion::Motion;

/// The model. Its parameter `device` says what it is, one of [`DEVICES`] or the host's.
pub static MODEL: Model = Model {
    name: "virtio-input",
    summary: "virtio keyboard, mouse, tablet, or an input device of the host",
    class: Class::Input,
    keys: &[IOEVENTFD, MSIX],
    create,
};

/// Those that need no device of the host.
pub const DEVICES: [&str; 3] = ["keyboard", "mouse", "tablet"];

const KIND: Kind = Kind { id: 18, legacy_device: 0, class: 0x09_8000, config: CONFIG };

/// The registers: what is asked for, how long the answer is, and the answer.
const CONFIG: usize = 8 + MOST;
const MOST: usize = 128;

/// What can be asked for.
mod select {
    pub const NAME: u8 = 0x01;
    pub const SERIAL: u8 = 0x02;
    pub const IDS: u8 = 0x03;
    pub const PROPERTIES: u8 = 0x10;
    pub const CODES: u8 = 0x11;
    pub const AXIS: u8 = 0x12;
}

/// Types of events.
mod ev {
    pub const SYN: u16 = 0;
    pub const KEY: u16 = 1;
    pub const REL: u16 = 2;
    pub const ABS: u16 = 3;
    pub const LED: u16 = 0x11;
    pub const REP: u16 = 0x14;
}

const X: u16 = 0;
const Y: u16 = 1;
const WHEEL: u16 = 8;
/// The left button; right, middle, side and extra follow.
const BUTTON: u16 = 0x110;
const BUTTONS: u16 = 5;
/// The largest X and Y of [`Event::PointerAt`].
const FAR: u32 = 0x7fff;
/// Num, Caps and Scroll Lock.
const LEDS: u16 = 3;

const EVENTS: usize = 0;
const STATUS: usize = 1;
/// Bytes of an event: type, code, value.
const EVENT: usize = 8;
/// Events that wait for buffers before the host is told to wait, and at most.
const WAITING: usize = 64;
const LIMIT: usize = 1024;
/// Buffers of a queue that are served in one go.
const BUDGET: usize = 64;

/// Codes of keys by their set-1 code, as in [`Event::Key`]; up to 53 the two are the same.
const CODES: [(u16, u16); 58] = [
    (0x54, 99),
    (0x56, 86),
    (0x57, 87),
    (0x58, 88),
    (0x59, 117),
    (0x5c, 95),
    (0x64, 183),
    (0x65, 184),
    (0x66, 185),
    (0x67, 186),
    (0x68, 187),
    (0x69, 188),
    (0x6a, 189),
    (0x6b, 190),
    (0x6c, 191),
    (0x6d, 192),
    (0x6e, 193),
    (0x70, 93),
    (0x71, 123),
    (0x72, 122),
    (0x73, 89),
    (0x76, 194),
    (0x77, 91),
    (0x78, 90),
    (0x79, 92),
    (0x7b, 94),
    (0x7d, 124),
    (0x7e, 121),
    (0x11c, 96),
    (0x11d, 97),
    (0x120, 113),
    (0x12e, 114),
    (0x130, 115),
    (0x135, 98),
    (0x137, 99),
    (0x138, 100),
    (0x146, 119),
    (0x147, 102),
    (0x148, 103),
    (0x149, 104),
    (0x14b, 105),
    (0x14d, 106),
    (0x14f, 107),
    (0x150, 108),
    (0x151, 109),
    (0x152, 110),
    (0x153, 111),
    (0x15b, 125),
    (0x15c, 126),
    (0x15d, 127),
    (0x15e, 116),
    (0x15f, 142),
    (0x163, 143),
    (0x165, 217),
    (0x166, 156),
    (0x167, 173),
    (0x168, 128),
    (0x245, 119),
];

/// The code of a key.
fn code(key: u16) -> Option<u16> {
    match key {
        1..=0x53 => Some(key),
        _ => CODES.iter().find(|(set1, _)| *set1 == key).map(|(_, code)| *code),
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Registers {
    select: u8,
    subsel: u8,
    /// The driver has come for events.
    listens: bool,
    /// What found no buffer yet.
    pending: VecDeque<InputEvent>,
    /// Where the pointer is, and what the guest will know of that when it has read all.
    now: Motion,
    told: Motion,
    lights: u8,
}

/// Who is at the other end.
enum Hands {
    Keyboard(Option<Box<dyn Keys>>),
    Pointer(Option<Box<dyn Pointer>>, Pointing),
    Host(Box<dyn Evdev>),
}

struct Input {
    hands: Hands,
    identity: InputIdentity,
    s: Registers,
    /// People, or the host, were told that there is room.
    ready: bool,
    chain: Chain,
}

fn create(slot: &mut Slot, params: &Params) -> Result<Box<dyn emu::Device>, String> {
    let word = params.get("device").unwrap_or(DEVICES[0]);
    let (keys, pointer) = (slot.backends.keys.take(), slot.backends.pointer.take());
    let mut hands = match (slot.backends.evdev.take(), word) {
        (Some(host), _) => Hands::Host(host),
        (None, "keyboard") => Hands::Keyboard(keys),
        (None, "mouse") => Hands::Pointer(pointer, Pointing::By),
        (None, "tablet") => Hands::Pointer(pointer, Pointing::At),
        _ => return Err("virtio-input needs a device of the host".to_owned()),
    };
    match &mut hands {
        Hands::Keyboard(keys) => keys.iter_mut().for_each(|keys| keys.attach(slot.cell())),
        Hands::Pointer(pointer, _) => pointer.iter_mut().for_each(|pointer| pointer.attach(slot.cell())),
        Hands::Host(host) => host.attach(slot.cell()),
    }
    let identity = match &hands {
        Hands::Host(host) => host.identity(),
        _ => ours(word),
    };
    let mut params = params.clone();
    params.set(VERSION.name, "modern");
    let ready = matches!(hands, Hands::Host(_));
    let input = Input { hands, identity, s: Registers::default(), ready, chain: Chain::default() };
    VirtioPci::create(slot, &params, &KIND, 2, input)
}

/// The bitmap of these numbers.
fn bits(numbers: impl IntoIterator<Item = u16>) -> Vec<u8> {
    let mut map = Vec::new();
    for n in numbers.into_iter().map(usize::from) {
        map.resize(map.len().max(n / 8 + 1), 0);
        map[n / 8] |= 1 << (n % 8);
    }
    map
}

/// What those of ours are.
fn ours(word: &str) -> InputIdentity {
    let buttons = (ev::KEY as u8, bits(BUTTON..BUTTON + BUTTONS));
    let axis = [0, FAR, 0, 0, 0];
    let (product, name, codes, axes) = match word {
        "keyboard" => {
            let keys = bits((1..=0x53).chain(CODES.map(|(_, code)| code)));
            let codes = [(ev::KEY as u8, keys), (ev::LED as u8, bits(0..LEDS)), (ev::REP as u8, bits(0..2))];
            (2, "virtio Keyboard", codes.to_vec(), Vec::new())
        }
        "mouse" => (3, "virtio Mouse", vec![buttons, (ev::REL as u8, bits([X, Y, WHEEL]))], Vec::new()),
        _ => {
            let codes = vec![buttons, (ev::ABS as u8, bits([X, Y])), (ev::REL as u8, bits([WHEEL]))];
            (1, "virtio Tablet", codes, vec![(X as u8, axis), (Y as u8, axis)])
        }
    };
    // On the virtual bus, with the numbers of those on USB.
    let ids = [6, 0xfb5d, product, 1];
    InputIdentity { name: name.to_owned(), serial: String::new(), ids, properties: Vec::new(), codes, axes }
}

impl Input {
    /// The answer to what the driver asks for; empty if there is none.
    fn answer(&self) -> Vec<u8> {
        let (i, s) = (&self.identity, &self.s);
        let mut answer = match (s.select, s.subsel) {
            (select::NAME, 0) => i.name.clone().into_bytes(),
            (select::SERIAL, 0) => i.serial.clone().into_bytes(),
            (select::IDS, 0) => i.ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
            (select::PROPERTIES, 0) => i.properties.clone(),
            (select::CODES, n) => {
                i.codes.iter().find(|(kind, _)| *kind == n).map_or(Vec::new(), |(_, map)| map.clone())
            }
            (select::AXIS, n) => {
                let axis = i.axes.iter().find(|(axis, _)| *axis == n);
                axis.map_or(Vec::new(), |(_, numbers)| numbers.iter().flat_map(|n| n.to_le_bytes()).collect())
            }
            _ => Vec::new(),
        };
        answer.truncate(MOST);
        answer
    }

    fn push(&mut self, kind: u16, code: u16, value: u32) {
        self.s.pending.push_back(InputEvent { kind, code, value });
    }

    /// Says what the pointer has done, when there is room.
    fn report(&mut self) {
        let Hands::Pointer(_, pointing) = &self.hands else { return };
        let (pointing, now, told) = (*pointing, self.s.now, self.s.told);
        if now == told || self.s.pending.len() >= WAITING {
            return;
        }
        for n in (0..BUTTONS).filter(|n| (now.buttons ^ told.buttons) >> n & 1 != 0) {
            self.push(ev::KEY, BUTTON + n, (now.buttons >> n & 1).into());
        }
        // Movements are told from 0 each time.
        let kind = if pointing == Pointing::At { ev::ABS } else { ev::REL };
        for (axis, now, told) in [(X, now.x, told.x), (Y, now.y, told.y)] {
            if now != told {
                self.push(kind, axis, now as u32);
            }
        }
        if now.wheel != 0 {
            self.push(ev::REL, WHEEL, now.wheel as u32);
        }
        self.push(ev::SYN, 0, 0);
        let still = Motion { wheel: 0, ..now };
        let still = if pointing == Pointing::At { still } else { Motion { x: 0, y: 0, ..still } };
        (self.s.now, self.s.told) = (still, still);
    }

    /// Gives the guest what waits for it.
    fn deliver(&mut self, core: &mut Core) {
        let mut chain = std::mem::take(&mut self.chain);
        let mut left = BUDGET;
        loop {
            self.report();
            if self.s.pending.is_empty() {
                break;
            }
            if left == 0 {
                core.again(EVENTS);
                break;
            }
            if !core.pop(EVENTS, &mut chain) {
                break;
            }
            left -= 1;
            // A buffer that has no room for an event comes back empty.
            let fits = chain.in_len >= EVENT as u64;
            if let Some(event) = fits.then(|| self.s.pending.pop_front()).flatten() {
                let [kind, code] = [event.kind, event.code].map(u16::to_le_bytes);
                chain.write(core.dma(), 0, &[&kind[..], &code, &event.value.to_le_bytes()].concat());
            }
            core.push(EVENTS, chain.head, if fits { EVENT as u32 } else { 0 });
        }
        self.chain = chain;
        core.publish(EVENTS);
        self.ready();
    }

    /// Says whether there is room for more.
    fn ready(&mut self) {
        let (listens, waiting) = (self.s.listens, self.s.pending.len());
        let ready = match self.hands {
            // What happens while there is no driver is not kept.
            Hands::Host(_) => !listens || waiting < WAITING,
            _ => listens && waiting == 0,
        };
        if std::mem::replace(&mut self.ready, ready) == ready {
            return;
        }
        match &mut self.hands {
            Hands::Keyboard(Some(keys)) => keys.want(ready),
            Hands::Host(host) => host.want(ready),
            _ => {}
        }
    }

    /// Tells people whether the guest reads this device.
    fn tell(&mut self) {
        let on = self.s.listens;
        match &mut self.hands {
            Hands::Keyboard(Some(keys)) => {
                keys.listens(on);
                keys.lights(self.s.lights);
            }
            Hands::Pointer(Some(pointer), pointing) => pointer.listens(on.then_some(*pointing)),
            _ => {}
        }
        self.ready();
    }

    /// The driver lights a lamp, or asks a device of the host for something else.
    fn obey(&mut self, event: InputEvent) {
        match &mut self.hands {
            Hands::Host(host) => host.send(event),
            Hands::Keyboard(keys) if event.kind == ev::LED => {
                // Scroll, Num and Caps Lock stand in another order there.
                let Some(bit) = [1, 2, 0].get(usize::from(event.code)) else { return };
                self.s.lights = self.s.lights & !(1 << bit) | u8::from(event.value != 0) << bit;
                keys.iter_mut().for_each(|keys| keys.lights(self.s.lights));
            }
            _ => {}
        }
    }
}

impl Function for Input {
    type Saved = Registers;

    fn features(&self) -> u64 {
        0
    }

    fn config(&self, _: &Core, image: &mut [u8]) {
        let answer = self.answer();
        image[..3].copy_from_slice(&[self.s.select, self.s.subsel, answer.len() as u8]);
        image[8..8 + answer.len()].copy_from_slice(&answer);
    }

    fn config_write(&mut self, _: &mut Core, at: usize, data: &[u8]) {
        for (at, byte) in (at..).zip(data) {
            match at {
                0 => self.s.select = *byte,
                1 => self.s.subsel = *byte,
                _ => {}
            }
        }
    }

    fn kick(&mut self, core: &mut Core, n: usize) {
        if n == EVENTS {
            if !self.s.listens {
                self.s.listens = true;
                self.tell();
            }
            return self.deliver(core);
        }
        let mut events = Vec::new();
        core.drain(STATUS, |core, chain| {
            let mut bytes = [0; EVENT];
            if chain.out_len >= EVENT as u64 && chain.read(core.dma(), 0, &mut bytes) {
                let [a, b, c, d, value @ ..] = bytes;
                let (kind, code) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
                events.push(InputEvent { kind, code, value: u32::from_le_bytes(value) });
            }
            core.push(STATUS, chain.head, 0);
        });
        events.into_iter().for_each(|event| self.obey(event));
    }

    fn event(&mut self, core: &mut Core, event: Event) {
        if !self.s.listens {
            return;
        }
        let s = &mut self.s;
        match (event, &self.hands) {
            (Event::Key(key, down), Hands::Keyboard(_)) => {
                let Some(code) = code(key).filter(|_| s.pending.len() < LIMIT) else { return };
                self.push(ev::KEY, code, down.into());
                self.push(ev::SYN, 0, 0);
            }
            (Event::Pointer(x, y, wheel, buttons), Hands::Pointer(_, Pointing::By)) => {
                let up = y.saturating_neg();
                let sum = |a: i32, b: i32| a.saturating_add(b);
                let (x, y, wheel) = (sum(s.now.x, x), sum(s.now.y, up), sum(s.now.wheel, wheel));
                s.now = Motion { x, y, wheel, buttons };
            }
            (Event::PointerAt(x, y, wheel, buttons), Hands::Pointer(_, Pointing::At)) => {
                s.now = Motion { x: x.into(), y: y.into(), wheel: s.now.wheel.saturating_add(wheel), buttons };
            }
            (Event::Input(events), Hands::Host(_)) => {
                let room = LIMIT.saturating_sub(s.pending.len());
                s.pending.extend(events.into_iter().take(room));
            }
            _ => return,
        }
        self.deliver(core);
    }

    fn reset(&mut self) {
        self.s = Registers::default();
        self.tell();
    }

    fn save(&self) -> Registers {
        self.s.clone()
    }

    fn load(&mut self, saved: Registers) -> Result<(), String> {
        if saved.pending.len() > LIMIT + 2 {
            return Err("more events wait than can".to_owned());
        }
        self.s = saved;
        self.tell();
        Ok(())
    }
}
