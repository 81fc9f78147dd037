//! Intel 8042 keyboard controller of an AT with PS/2 ports, and what hangs on it: a keyboard and a mouse.
//!
//! Sources: IBM PS/2 Hardware Interface Technical Reference (keyboard and auxiliary device controller), the keyboard's
//! and the mouse's command sets ibid. Ports 60 and 64, IRQ 1 and 12. The controller holds one byte for the host at a
//! time; bytes of the devices wait in their own queues, the controller's answers go first. Scan code set 2 is what the
//! keyboard sends and the controller translates to set 1 unless told not to; sets 1 and 3 are chosen by F0. A byte is
//! visible at once; devices do not take the milliseconds that a wire takes, except that the self-test's result of a
//! reset comes after its acknowledge. A key that stays down is repeated with the delay and rate of F3. Whoever presses
//! keys is told when the guest has read what there was ([`emu::backend::Keys`]), and nothing is lost. The fast reset FE
//! and the A20 output go to the machine.
//!
//! OpenBSD's pckbc wants IRQ 12 only after A8; BSDs and Linux test the ports with AA, AB, A9 and identify with F2.

use std::collections::VecDeque;
use std::sync::Arc;

use emu::backend::Keys;
use emu::scancode::{to_set1, to_set2};
use emu::{Device, Event, IrqLine, ResetKind, Slot, State, SystemEvent, Timer, Widths};
use serde::{Deserialize, Serialize};

const STS_OBF: u8 = 0x01;
const STS_SYS: u8 = 0x04;
const STS_CMD: u8 = 0x08;
const STS_UNLOCKED: u8 = 0x10;
const STS_AUX: u8 = 0x20;

const CFG_KBD_IRQ: u8 = 0x01;
const CFG_AUX_IRQ: u8 = 0x02;
const CFG_SYS: u8 = 0x04;
const CFG_KBD_OFF: u8 = 0x10;
const CFG_AUX_OFF: u8 = 0x20;
const CFG_TRANSLATE: u8 = 0x40;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_OK: u8 = 0xaa;

/// Bytes that the mouse holds back before it drops what the user does.
const QUEUE: usize = 64;
/// Bytes that the keyboard has room for.
const KEYS: usize = 16;
/// Answers the controller holds for a guest that does not read them; the chip has room for one.
const ANSWERS: usize = 16;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Keyboard {
    out: VecDeque<u8>,
    /// The command whose parameter comes next, 0 for none.
    pending: u8,
    scanning: bool,
    set: u8,
    leds: u8,
    rate: u8,
    last: u8,
    /// The key that is repeated while it stays down.
    held: Option<u16>,
}

impl Default for Keyboard {
    fn default() -> Keyboard {
        Keyboard { out: VecDeque::new(), pending: 0, scanning: true, set: 2, leds: 0, rate: 0x2b, last: 0, held: None }
    }
}

/// Keys with codes of their own.
const PRINT_SCREEN: u16 = 0x137;
const PAUSE: u16 = 0x245;

impl Keyboard {
    fn send(&mut self, bytes: &[u8]) {
        self.out.extend(bytes);
    }

    fn receive(&mut self, byte: u8) {
        let pending = std::mem::take(&mut self.pending);
        // A command ends the wait for a parameter.
        if pending != 0 && byte < 0xe0 {
            match pending {
                0xed => self.leds = byte & 7,
                0xf3 => self.rate = byte,
                0xf0 if byte == 0 => return self.send(&[ACK, self.set]),
                0xf0 if byte <= 3 => self.set = byte,
                0xf0 => return self.send(&[RESEND]),
                // FB to FD name single keys of set 3.
                _ => {}
            }
            return self.send(&[ACK]);
        }
        match byte {
            0xed | 0xf0 | 0xf3 | 0xfb..=0xfd => {
                self.pending = byte;
                self.send(&[ACK]);
            }
            0xee => self.send(&[0xee]),
            0xf2 => self.send(&[ACK, 0xab, 0x83]),
            0xf4 => {
                self.scanning = true;
                self.send(&[ACK]);
            }
            0xf5 | 0xf6 => {
                *self = Keyboard { scanning: byte == 0xf6, leds: self.leds, ..Keyboard::default() };
                self.send(&[ACK]);
            }
            0xf7..=0xfa => self.send(&[ACK]),
            0xfe => self.send(&[self.last]),
            0xff => {
                *self = Keyboard::default();
                self.send(&[ACK, SELF_TEST_OK]);
            }
            _ => self.send(&[RESEND]),
        }
    }

    /// Nanoseconds until a key that stays down is repeated, and from one repetition to the next.
    fn typematic(&self) -> (u64, u64) {
        let delay = 250_000_000 * (u64::from(self.rate >> 5 & 3) + 1);
        let period = 4_170_000 * (8 + u64::from(self.rate & 7)) << (self.rate >> 3 & 3);
        (delay, period)
    }

    /// A key, by its code of [`Event::Key`].
    fn key(&mut self, code: u16, down: bool) {
        if !down && self.held == Some(code) {
            self.held = None;
        }
        if !self.scanning || self.out.len() >= KEYS {
            return;
        }
        match code {
            PAUSE if down && self.set == 1 => self.send(&[0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]),
            PAUSE if down => self.send(&[0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77]),
            // It says nothing when it is let go.
            PAUSE => {}
            PRINT_SCREEN => {
                // It comes as if with the left shift key.
                let order = if down { [0x12a, code] } else { [code, 0x12a] };
                order.into_iter().for_each(|part| self.scan(part, down));
            }
            _ => self.scan(code, down),
        }
        if down && code != PAUSE {
            self.held = Some(code);
        }
    }

    fn scan(&mut self, code: u16, down: bool) {
        let (extended, set1) = (code & 0x100 != 0, code as u8 & 0x7f);
        if extended {
            self.send(&[0xe0]);
        }
        if self.set == 1 {
            self.send(&[set1 | if down { 0 } else { 0x80 }]);
        } else if let Some(set2) = to_set2(set1) {
            if !down {
                self.send(&[0xf0]);
            }
            self.send(&[set2]);
        }
    }

    /// The key that is down comes once more, if the guest has read it before.
    fn repeat(&mut self) {
        if let Some(code) = self.held.filter(|_| self.scanning && self.out.is_empty()) {
            self.key(code, true);
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Mouse {
    out: VecDeque<u8>,
    pending: u8,
    reporting: bool,
    remote: bool,
    wrap: bool,
    scale2: bool,
    resolution: u8,
    rate: u8,
    /// The last three rates: 200, 100, 80 makes a wheel mouse of it, 200, 200, 80 one with five buttons.
    rates: [u8; 3],
    id: u8,
    buttons: u8,
    dx: i32,
    dy: i32,
    dz: i32,
}

impl Default for Mouse {
    fn default() -> Mouse {
        Mouse {
            out: VecDeque::new(),
            pending: 0,
            reporting: false,
            remote: false,
            wrap: false,
            scale2: false,
            resolution: 2,
            rate: 100,
            rates: [0; 3],
            id: 0,
            buttons: 0,
            dx: 0,
            dy: 0,
            dz: 0,
        }
    }
}

impl Mouse {
    fn send(&mut self, bytes: &[u8]) {
        self.out.extend(bytes);
    }

    fn receive(&mut self, byte: u8) {
        if self.wrap && byte != 0xff && byte != 0xec {
            return self.send(&[byte]);
        }
        match std::mem::take(&mut self.pending) {
            0xe8 => {
                self.resolution = byte & 3;
                return self.send(&[ACK]);
            }
            0xf3 => {
                self.rate = byte;
                self.rates = [self.rates[1], self.rates[2], byte];
                match self.rates {
                    [200, 100, 80] => self.id = 3,
                    [200, 200, 80] if self.id == 3 => self.id = 4,
                    _ => {}
                }
                return self.send(&[ACK]);
            }
            _ => {}
        }
        match byte {
            0xe6 | 0xe7 => self.scale2 = byte == 0xe7,
            0xe8 | 0xf3 => self.pending = byte,
            0xe9 => {
                let mode = u8::from(self.remote) << 6 | u8::from(self.reporting) << 5 | u8::from(self.scale2) << 4;
                let b = self.buttons;
                let status = mode | (b & 1) << 2 | b >> 1 & 2 | b >> 1 & 1;
                return self.send(&[ACK, status, self.resolution, self.rate]);
            }
            0xea => self.remote = false,
            0xeb => {
                self.send(&[ACK]);
                return self.packet();
            }
            0xec => self.wrap = false,
            0xee => self.wrap = true,
            0xf0 => self.remote = true,
            0xf2 => return self.send(&[ACK, self.id]),
            0xf4 => self.reporting = true,
            0xf5 => self.reporting = false,
            0xf6 => *self = Mouse { id: self.id, buttons: self.buttons, ..Mouse::default() },
            0xff => {
                *self = Mouse { buttons: self.buttons, ..Mouse::default() };
                return self.send(&[ACK, SELF_TEST_OK, 0]);
            }
            _ => return self.send(&[RESEND]),
        }
        self.send(&[ACK]);
    }

    fn packet(&mut self) {
        let step = |v: &mut i32| {
            let s = (*v).clamp(-255, 255);
            *v -= s;
            s
        };
        let (dx, dy) = (step(&mut self.dx), step(&mut self.dy));
        let b = self.buttons;
        let first = b & 7 | 8 | u8::from(dx < 0) << 4 | u8::from(dy < 0) << 5;
        self.send(&[first, dx as u8, dy as u8]);
        let dz = self.dz.clamp(-7, 7);
        match self.id {
            3 => self.send(&[(-dz) as u8]),
            4 => self.send(&[(-dz) as u8 & 15 | (b & 0x18) << 1]),
            _ => {}
        }
        self.dz = 0;
    }

    fn moved(&mut self, dx: i32, dy: i32, dz: i32, buttons: u8) {
        let limit = |a: i32, b: i32| a.saturating_add(b).clamp(-4096, 4096);
        (self.dx, self.dy, self.dz) = (limit(self.dx, dx), limit(self.dy, dy), limit(self.dz, dz));
        self.buttons = buttons & 0x1f;
        if self.reporting && !self.remote && self.out.len() < QUEUE {
            self.packet();
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Regs {
    config: u8,
    output_port: u8,
    /// Status without the buffer bits.
    command_last: bool,
    /// The byte for the host, and whether it is the mouse's.
    output: Option<(u8, bool)>,
    /// The controller's own answers.
    answers: VecDeque<(u8, bool)>,
    /// The command whose parameter comes at port 60, 0 for none.
    pending: u8,
    last: u8,
    /// A set 2 break prefix was taken from the keyboard and waits for its code.
    break_prefix: bool,
    ram: [u8; 32],
    keyboard: Keyboard,
    mouse: Mouse,
}

impl Default for Regs {
    fn default() -> Regs {
        Regs {
            config: CFG_KBD_IRQ | CFG_AUX_IRQ | CFG_SYS | CFG_TRANSLATE,
            output_port: 0x03,
            command_last: false,
            output: None,
            answers: VecDeque::new(),
            pending: 0,
            last: 0,
            break_prefix: false,
            ram: [0; 32],
            keyboard: Keyboard::default(),
            mouse: Mouse::default(),
        }
    }
}

/// The controller and its two devices.
pub struct I8042 {
    regs: Regs,
    irq1: Arc<IrqLine>,
    irq12: Arc<IrqLine>,
    request: Box<dyn Fn(SystemEvent) + Send>,
    repeat: Arc<Timer>,
    keys: Option<Box<dyn Keys>>,
    /// What [`Keys::want`] was told last.
    told: bool,
    /// What [`Keys::lights`] was told last.
    lit: u8,
}

impl I8042 {
    /// Puts it at 60 and 64.
    pub fn create(slot: &mut Slot) -> Box<dyn Device> {
        slot.ports(0, 0x60, 1, Widths::BYTE);
        slot.ports(1, 0x64, 1, Widths::BYTE);
        let machine = Arc::downgrade(slot.machine());
        let request = Box::new(move |event| {
            if let Some(m) = machine.upgrade() {
                m.request(event);
            }
        });
        let mut keys = slot.backends.keys.take();
        if let Some(keys) = &mut keys {
            keys.attach(slot.cell());
        }
        Box::new(I8042 {
            regs: Regs::default(),
            irq1: slot.isa_irq(1),
            irq12: slot.isa_irq(12),
            request,
            repeat: slot.timer(0),
            keys,
            told: false,
            lit: 0,
        })
    }

    /// Tells whoever presses keys whether the next one can come, and which lights are on.
    fn tell(&mut self) {
        let k = &self.regs.keyboard;
        let read = k.out.is_empty() && !matches!(self.regs.output, Some((_, false)));
        let ready = read && k.scanning && self.regs.config & CFG_KBD_OFF == 0;
        if let Some(keys) = self.keys.as_mut().filter(|_| ready != self.told) {
            keys.want(ready);
            self.told = ready;
        }
        if let Some(keys) = self.keys.as_mut().filter(|_| k.leds != self.lit) {
            keys.lights(k.leds);
            self.lit = k.leds;
        }
    }

    /// Fills the output buffer if it is empty, and drives the interrupts.
    fn pump(&mut self) {
        while self.regs.output.is_none() {
            let r = &mut self.regs;
            if let Some(answer) = r.answers.pop_front() {
                r.output = Some(answer);
            } else if r.config & CFG_KBD_OFF == 0 && !r.keyboard.out.is_empty() {
                let byte = r.keyboard.out.pop_front().unwrap_or(0);
                r.keyboard.last = byte;
                if let Some(byte) = self.translate(byte) {
                    self.regs.output = Some((byte, false));
                }
            } else if r.config & CFG_AUX_OFF == 0 && !r.mouse.out.is_empty() {
                r.output = r.mouse.out.pop_front().map(|b| (b, true));
            } else {
                break;
            }
        }
        let r = &self.regs;
        self.irq1.set(matches!(r.output, Some((_, false))) && r.config & CFG_KBD_IRQ != 0);
        self.irq12.set(matches!(r.output, Some((_, true))) && r.config & CFG_AUX_IRQ != 0);
        self.tell();
    }

    /// Set 2 to set 1: F0 becomes bit 7 of the code that follows.
    fn translate(&mut self, byte: u8) -> Option<u8> {
        if self.regs.config & CFG_TRANSLATE == 0 {
            return Some(byte);
        }
        if byte == 0xf0 {
            self.regs.break_prefix = true;
            return None;
        }
        let release = if std::mem::take(&mut self.regs.break_prefix) { 0x80 } else { 0 };
        Some(to_set1(byte) | release)
    }

    fn answer(&mut self, byte: u8) {
        self.queue(byte, false);
    }

    /// Queues an answer as if it came from the keyboard or the mouse. The oldest gives way, as the only one does on
    /// the chip.
    fn queue(&mut self, byte: u8, mouse: bool) {
        let answers = &mut self.regs.answers;
        if answers.len() >= ANSWERS {
            answers.pop_front();
        }
        answers.push_back((byte, mouse));
    }

    fn set_output_port(&mut self, value: u8) {
        let old = std::mem::replace(&mut self.regs.output_port, value);
        if (old ^ value) & 2 != 0 {
            (self.request)(SystemEvent::A20(value & 2 != 0));
        }
        if value & 1 == 0 {
            (self.request)(SystemEvent::Reset);
        }
    }

    fn command(&mut self, value: u8) {
        self.regs.command_last = true;
        self.regs.pending = 0;
        match value {
            0x20 => self.answer(self.regs.config),
            0x21..=0x3f => self.answer(self.regs.ram[value as usize - 0x20]),
            0x60..=0x7f | 0xd1..=0xd4 => self.regs.pending = value,
            0xa7 => self.regs.config |= CFG_AUX_OFF,
            0xa8 => self.regs.config &= !CFG_AUX_OFF,
            0xa9 | 0xab => self.answer(0),
            0xaa => {
                self.regs.config = self.regs.config | CFG_SYS | CFG_KBD_OFF | CFG_AUX_OFF;
                self.regs.output = None;
                self.answer(0x55);
            }
            0xad => self.regs.config |= CFG_KBD_OFF,
            0xae => self.regs.config &= !CFG_KBD_OFF,
            // The input port: keyboard not inhibited, colour display, no manufacturing jumper.
            0xc0 => self.answer(0xb0),
            0xd0 => {
                let full = u8::from(self.regs.output.is_some()) << 4;
                self.answer(self.regs.output_port & 0xcf | full);
            }
            0xdd | 0xdf => {
                let value = self.regs.output_port & !2 | if value == 0xdf { 2 } else { 0 };
                self.set_output_port(value);
            }
            0xe0 => self.answer(0),
            // Pulse output lines; line 0 is RESET.
            0xf0..=0xff if value & 1 == 0 => (self.request)(SystemEvent::Reset),
            _ => {}
        }
    }

    fn data(&mut self, value: u8) {
        self.regs.command_last = false;
        match std::mem::take(&mut self.regs.pending) {
            0x60 => self.regs.config = value & 0x77,
            n @ 0x61..=0x7f => self.regs.ram[n as usize - 0x60] = value,
            0xd1 => self.set_output_port(value),
            0xd2 => self.queue(value, false),
            0xd3 => self.queue(value, true),
            0xd4 => {
                self.regs.config &= !CFG_AUX_OFF;
                self.regs.mouse.out.clear();
                self.regs.mouse.receive(value);
            }
            _ => {
                // Sending to the keyboard enables its clock.
                self.regs.config &= !CFG_KBD_OFF;
                self.regs.keyboard.out.clear();
                self.regs.break_prefix = false;
                self.regs.keyboard.receive(value);
            }
        }
    }
}

impl Device for I8042 {
    fn read(&mut self, region: u32, _offset: u64, _width: u8) -> u64 {
        if region == 1 {
            let r = &self.regs;
            let buffer = match r.output {
                Some((_, true)) => STS_OBF | STS_AUX,
                Some(_) => STS_OBF,
                None => 0,
            };
            let sys = if r.config & CFG_SYS != 0 { STS_SYS } else { 0 };
            let command = if r.command_last { STS_CMD } else { 0 };
            return u64::from(buffer | sys | command | STS_UNLOCKED);
        }
        if let Some((byte, _)) = self.regs.output.take() {
            self.regs.last = byte;
            // The interrupt falls before the next byte raises it, or an edge would be lost.
            self.irq1.set(false);
            self.irq12.set(false);
            self.pump();
        }
        u64::from(self.regs.last)
    }

    fn write(&mut self, region: u32, _offset: u64, _width: u8, value: u64) {
        if region == 1 {
            self.command(value as u8)
        } else {
            self.data(value as u8)
        }
        self.pump();
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Key(code, down) => {
                self.regs.keyboard.key(code, down);
                match self.regs.keyboard.held {
                    Some(held) if down && held == code => {
                        self.repeat.set(self.repeat.now() + self.regs.keyboard.typematic().0);
                    }
                    Some(_) => {}
                    None => self.repeat.cancel(),
                }
            }
            Event::Timer(_) => {
                self.regs.keyboard.repeat();
                if self.regs.keyboard.held.is_some() {
                    self.repeat.set(self.repeat.now() + self.regs.keyboard.typematic().1);
                }
            }
            Event::Pointer(dx, dy, dz, buttons) => self.regs.mouse.moved(dx, dy, dz, buttons),
            _ => return,
        }
        self.pump();
    }

    fn reset(&mut self, _: ResetKind) {
        self.regs = Regs::default();
        self.repeat.cancel();
        self.pump();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.regs
    }

    fn restored(&mut self) {
        self.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::DeviceCell;
    use emu::bench::Bench;

    fn rig() -> (Bench, Arc<DeviceCell>) {
        let bench = Bench::new();
        let cell = bench.part(I8042::create);
        (bench, cell)
    }

    fn read(b: &mut Bench) -> Vec<u8> {
        let mut out = Vec::new();
        while b.inb(0x64) & STS_OBF != 0 {
            out.push(b.inb(0x60));
        }
        out
    }

    #[test]
    fn the_self_tests_answer_as_on_an_at() {
        let (mut b, _) = rig();
        for (command, want) in [(0xaa, 0x55), (0xab, 0), (0xa9, 0)] {
            b.outb(0x64, command);
            assert_eq!(read(&mut b), [want], "{command:02x}");
        }
    }

    #[test]
    fn the_keyboard_resets_identifies_itself_and_echoes() {
        let (mut b, _) = rig();
        // Translation turns the identification's 83 into 41.
        for (command, want) in
            [(0xff, &[0xfa, 0xaa][..]), (0xf2, &[0xfa, 0xab, 0x41]), (0xee, &[0xee]), (0x10, &[0xfe])]
        {
            b.outb(0x60, command);
            assert_eq!(read(&mut b), want, "{command:02x}");
        }
        b.outb(0x64, 0x60);
        b.outb(0x60, 0x05);
        b.outb(0x60, 0xf2);
        assert_eq!(read(&mut b), [0xfa, 0xab, 0x83]);
    }

    #[test]
    fn keys_come_translated_one_interrupt_a_byte() {
        let (mut b, cell) = rig();
        b.edges(1);
        cell.event(Event::Key(0x1e, true));
        cell.event(Event::Key(0x1e, false));
        cell.event(Event::Key(0x148, true));
        assert!(b.irq(1));
        assert_eq!(read(&mut b), [0x1e, 0x9e, 0xe0, 0x48]);
        assert!(!b.irq(1));
        assert_eq!(b.edges(1), 4);
    }

    #[test]
    fn every_ordinary_key_survives_the_way_through_set_2() {
        let (mut b, cell) = rig();
        for code in (1..=0x53).chain([0x56, 0x57, 0x58]) {
            cell.event(Event::Key(code, true));
            cell.event(Event::Key(code, false));
            assert_eq!(read(&mut b), [code as u8, code as u8 | 0x80]);
        }
    }

    #[test]
    fn the_keys_of_two_codes_come_as_they_do_from_a_real_keyboard() {
        let (mut b, cell) = rig();
        let mut press = |code, down| {
            cell.event(Event::Key(code, down));
            read(&mut b)
        };
        assert_eq!(press(PRINT_SCREEN, true), [0xe0, 0x2a, 0xe0, 0x37]);
        assert_eq!(press(PRINT_SCREEN, false), [0xe0, 0xb7, 0xe0, 0xaa]);
        assert_eq!(press(PAUSE, true), [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]);
        assert!(press(PAUSE, false).is_empty());
    }

    #[test]
    fn a_key_that_stays_down_is_repeated_until_it_is_let_go() {
        let (mut b, cell) = rig();
        // 250 ms, 30 a second.
        b.outb(0x60, 0xf3);
        b.outb(0x60, 0x00);
        read(&mut b);
        cell.event(Event::Key(0x1e, true));
        assert_eq!(read(&mut b), [0x1e]);
        b.advance(249_000_000);
        assert!(read(&mut b).is_empty());
        b.advance(1_000_000);
        assert_eq!(read(&mut b), [0x1e]);
        b.advance(33_360_000);
        assert_eq!(read(&mut b), [0x1e]);
        // A guest that does not read is not flooded: a byte waits in the controller, another in the keyboard.
        b.advance(10_000_000_000);
        assert_eq!(read(&mut b), [0x1e, 0x1e]);
        cell.event(Event::Key(0x1e, false));
        b.advance(10_000_000_000);
        assert_eq!(read(&mut b), [0x9e]);
    }

    #[test]
    fn whoever_presses_keys_hears_when_the_guest_has_read_them() {
        #[derive(Clone, Default)]
        struct Typist(Arc<std::sync::Mutex<Vec<bool>>>);
        impl Keys for Typist {
            fn attach(&mut self, _: std::sync::Weak<DeviceCell>) {}
            fn want(&mut self, ready: bool) {
                self.0.lock().unwrap().push(ready);
            }
            fn lights(&mut self, lights: u8) {
                assert_eq!(lights, 4);
                self.0.lock().unwrap().clear();
            }
        }
        let mut b = Bench::new();
        let typist = Typist::default();
        let backends = emu::Backends { keys: Some(Box::new(typist.clone())), ..emu::Backends::default() };
        let cell = b.machine.plug_with("i8042", None, backends, |slot| Ok(I8042::create(slot))).unwrap();
        b.machine.reset(ResetKind::PowerOn);
        cell.event(Event::Key(0x148, true));
        assert_eq!(*typist.0.lock().unwrap(), [true, false]);
        b.inb(0x60);
        assert_eq!(typist.0.lock().unwrap().len(), 2, "one of two bytes is read");
        b.inb(0x60);
        b.outb(0x64, 0xad);
        b.outb(0x64, 0xae);
        assert_eq!(*typist.0.lock().unwrap(), [true, false, true, false, true]);
        b.outb(0x60, 0xed);
        b.outb(0x60, 4);
        assert_eq!(typist.0.lock().unwrap().len(), 0, "it heard of Caps Lock's light");
    }

    #[test]
    fn a_disabled_keyboard_keeps_its_bytes() {
        let (mut b, cell) = rig();
        b.outb(0x64, 0xad);
        cell.event(Event::Key(0x1e, true));
        assert!(read(&mut b).is_empty());
        b.outb(0x64, 0xae);
        assert_eq!(read(&mut b), [0x1e]);
    }

    #[test]
    fn the_wheel_is_unlocked_by_its_knock_and_shows_in_packets() {
        let (mut b, cell) = rig();
        let mouse = |b: &mut Bench, byte| {
            b.outb(0x64, 0xd4);
            b.outb(0x60, byte);
            read(b)
        };
        b.outb(0x64, 0xa8);
        assert_eq!(mouse(&mut b, 0xff), [0xfa, 0xaa, 0]);
        for rate in [200, 100, 80] {
            mouse(&mut b, 0xf3);
            mouse(&mut b, rate);
        }
        assert_eq!(mouse(&mut b, 0xf2), [0xfa, 3]);
        cell.event(Event::Pointer(5, -3, 1, 1));
        assert!(read(&mut b).is_empty(), "not reporting yet");
        mouse(&mut b, 0xf4);
        cell.event(Event::Pointer(0, 0, 0, 0));
        assert!(b.irq(12));
        assert_eq!(b.inb(0x64) & 0x21, 0x21);
        assert_eq!(read(&mut b), [0x28, 5, 0xfd, 0xff]);
    }

    #[test]
    fn the_output_port_moves_a20_and_fe_resets() {
        let (mut b, _) = rig();
        b.outb(0x64, 0xd1);
        b.outb(0x60, 0x01);
        b.outb(0x64, 0xdf);
        b.outb(0x64, 0xfe);
        assert_eq!(b.system_events(), [SystemEvent::A20(false), SystemEvent::A20(true), SystemEvent::Reset]);
    }

    #[test]
    fn a_user_who_types_into_a_dead_guest_does_not_fill_memory() {
        let (_b, cell) = rig();
        for _ in 0..100_000 {
            cell.event(Event::Key(0x1e, true));
            cell.event(Event::Pointer(1, 1, 1, 0));
        }
        let size = cell.with(|d| d.state().save().to_string().len()).unwrap();
        assert!(size < 4000, "{size}");
    }
    #[test]
    fn a_guest_that_reads_no_answers_gets_the_latest() {
        let (mut b, _) = rig();
        (0..1000).for_each(|_| b.outb(0x64, 0xa9));
        b.outb(0x64, 0xaa);
        b.outb(0x64, 0x20);
        let answers = read(&mut b);
        assert!(answers.len() <= ANSWERS + 1);
        assert_eq!(answers[answers.len() - 2..], [0x55, 0x77]);
    }
}
