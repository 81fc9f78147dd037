//! A small driver, which does what Linux's xhci_hcd does, in its order.

use std::sync::{Arc, Mutex, Weak};

use emu::backend::{Keys, Pointer, Pointing};
use emu::bench::{Bench, Place, Rng, fuzz_cases};
use emu::{Backends, DeviceCell, DeviceState};

use super::*;

const BAR: u64 = 0xfebf_0000;
/// Where things lie in memory.
const CONTEXTS: u64 = 0x1000;
const COMMANDS: u64 = 0x2000;
const EVENTS: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const INPUT: u64 = 0x5000;
const DEVICE: u64 = 0x6000;
const CONTROL_RING: u64 = 0x7000;
const RING: u64 = 0x8000;
const BUFFER: u64 = 0x9000;

const EVENT_TRBS: u32 = 16;
/// The port of the first device.
const PORT: u32 = 5;
/// Number of its interrupt endpoint in contexts.
const INTERRUPT_IN: u8 = 3;
const MESSAGE: u64 = 0xfee0_0000;

/// What people were told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    pointing: Option<Pointing>,
    ready: Option<bool>,
    lights: u8,
    typing: bool,
}

#[derive(Clone, Default)]
struct People(Arc<Mutex<Told>>);

impl Pointer for People {
    fn attach(&mut self, _: Weak<DeviceCell>) {}
    fn listens(&mut self, kind: Option<Pointing>) {
        self.0.lock().unwrap().pointing = kind;
    }
}

impl Keys for People {
    fn attach(&mut self, _: Weak<DeviceCell>) {}
    fn want(&mut self, ready: bool) {
        self.0.lock().unwrap().ready = Some(ready);
    }
    fn lights(&mut self, lights: u8) {
        self.0.lock().unwrap().lights = lights;
    }
    fn listens(&mut self, on: bool) {
        self.0.lock().unwrap().typing = on;
    }
}

struct Driver {
    b: Bench,
    cell: Arc<DeviceCell>,
    people: People,
    commands: u64,
    control: u64,
    ring: u64,
    /// The next event, and its cycle.
    event: (u32, bool),
}

fn trb(parameter: u64, status: u32, control: u32) -> Trb {
    Trb { parameter, status, control }
}

impl Driver {
    /// With what is plugged in, and nothing set up.
    fn plug(device: &str) -> Driver {
        let b = Bench::new();
        let people = People::default();
        let backends = Backends {
            keys: Some(Box::new(people.clone())),
            pointer: Some(Box::new(people.clone())),
            ..Backends::default()
        };
        let cell = b.plug(&MODEL, &Params::new([("0.device", device)]), backends);
        b.machine.reset(ResetKind::PowerOn);
        b.config_write(0x10, 4, BAR as u32);
        b.config_write(4, 2, 6);
        Driver { b, cell, people, commands: COMMANDS, control: CONTROL_RING, ring: RING, event: (0, true) }
    }

    fn read(&mut self, offset: u64) -> u32 {
        self.b.bus.read(BAR + offset, 4) as u32
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.b.bus.write(BAR + offset, 4, value.into());
    }

    fn write64(&mut self, offset: u64, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }

    /// By MSI, if a message can be sent; starts the controller.
    fn start(device: &str, msi: bool) -> Driver {
        let mut d = Driver::plug(device);
        if msi {
            let at = d.b.config_read(0x34, 1) as u16;
            assert_eq!(d.b.config_read(at, 1), 5);
            d.b.config_write(at + 4, 4, MESSAGE as u32);
            d.b.config_write(at + 0xc, 2, 0x41);
            d.b.config_write(at + 2, 2, 1);
        }
        d.run();
        d
    }

    fn run(&mut self) {
        self.write(0x20, command_bits::RESET);
        (self.commands, self.control, self.ring, self.event) = (COMMANDS, CONTROL_RING, RING, (0, true));
        (COMMANDS..BUFFER).step_by(8).for_each(|at| self.b.dma().write(at, &[0; 8]));
        assert_eq!(self.read(0x20), 0);
        assert_eq!(self.read(0x24), status::HALTED);
        self.write(0x58, SLOTS as u32);
        self.write64(0x50, CONTEXTS);
        self.write64(0x38, COMMANDS | 1);
        self.b.dma().write(TABLE, &EVENTS.to_le_bytes());
        self.b.dma().write_u32(TABLE + 8, EVENT_TRBS);
        self.write(0x1028, 1);
        self.write64(0x1038, EVENTS);
        self.write64(0x1030, TABLE);
        self.write(0x1024, 0);
        self.write(0x1020, 2);
        self.write(0x20, command_bits::RUN | command_bits::INTERRUPTS);
        assert_eq!(self.read(0x24) & status::HALTED, 0);
    }

    fn put(&self, at: u64, t: Trb) {
        self.b.dma().write(at, &t.parameter.to_le_bytes());
        self.b.dma().write_u32(at + 8, t.status);
        self.b.dma().write_u32(at + 12, t.control | 1);
    }

    /// The next event, unless there is none; the dequeue pointer follows.
    fn event(&mut self) -> Option<Trb> {
        let (n, cycle) = self.event;
        let got = Trb::fetch(&self.b.dma(), EVENTS + 16 * u64::from(n));
        if got.cycle() != cycle {
            return None;
        }
        self.event = if n + 1 == EVENT_TRBS { (0, !cycle) } else { (n + 1, cycle) };
        self.write64(0x1038, (EVENTS + 16 * u64::from(self.event.0)) | BUSY);
        Some(got)
    }

    fn events(&mut self) -> Vec<Trb> {
        std::iter::from_fn(|| self.event()).collect()
    }

    /// Gives a command. Its code and slot; events before its own are lost.
    fn command(&mut self, kind: u32, parameter: u64, more: u32) -> (u32, u32) {
        let at = self.commands;
        self.put(at, trb(parameter, 0, kind << 10 | more));
        self.commands += 16;
        self.write(DOORBELLS, 0);
        let done = self.events().into_iter().find(|e| e.kind() == kind::COMMAND_COMPLETION).expect("an answer");
        assert_eq!(done.parameter, at);
        (done.status >> 24, done.control >> 24)
    }

    fn words(&self, at: u64) -> [u32; 8] {
        std::array::from_fn(|n| self.b.dma().read_u32(at + 4 * n as u64))
    }

    /// Resets the port and addresses the device: the slot is 1.
    fn address(&mut self) {
        let at = PORT_REGISTERS + 16 * u64::from(PORT - 1);
        assert_eq!(self.read(at) & portsc::ENABLED, 0);
        self.write(at, portsc::POWER | portsc::RESET);
        let port = self.read(at);
        assert_eq!(port & (portsc::ENABLED | portsc::RESET | portsc::LINK), portsc::ENABLED);
        assert!(port & portsc::RESET_CHANGE != 0);
        self.write(at, portsc::POWER | portsc::CHANGES);
        assert_eq!(self.read(at) & portsc::CHANGES, 0);
        assert_eq!(self.command(9, 0, 0), (code::SUCCESS, 1));
        self.b.dma().write(CONTEXTS + 8, &DEVICE.to_le_bytes());
        let dma = self.b.dma();
        dma.write_u32(INPUT + 4, 3);
        dma.write_u32(INPUT + 32, 1 << 27 | 3 << 20);
        dma.write_u32(INPUT + 36, PORT << 16);
        dma.write_u32(INPUT + 68, 64 << 16 | 4 << 3 | 3 << 1);
        dma.write(INPUT + 72, &(CONTROL_RING | 1).to_le_bytes());
        assert_eq!(self.command(11, INPUT, 1 << 24), (code::SUCCESS, 1));
        assert_eq!(self.words(DEVICE)[3], 2 << 27 | 1, "addressed, as 1");
        assert_eq!(self.words(DEVICE + 32)[0] & 7, 1, "endpoint 0 runs");
    }

    /// A control transfer: the code of its last event, and what came.
    fn control(&mut self, setup: [u8; 8], data: &[u8]) -> (u32, Vec<u8>) {
        let reads = setup[0] & 0x80 != 0;
        let len = u16::from_le_bytes([setup[6], setup[7]]);
        self.b.dma().write(BUFFER, data);
        let mut stages = vec![trb(u64::from_le_bytes(setup), 8, kind::SETUP << 10 | Trb::IMMEDIATE)];
        if len > 0 {
            let dir = if reads { Trb::READS | Trb::SHORT } else { 0 };
            stages.push(trb(BUFFER, len.into(), kind::DATA << 10 | dir));
        }
        let dir = if reads && len > 0 { 0 } else { Trb::READS };
        stages.push(trb(0, 0, kind::STATUS << 10 | Trb::INTERRUPT | dir));
        for stage in stages {
            self.put(self.control, stage);
            self.control += 16;
        }
        self.write(DOORBELLS + 4, 1);
        let events = self.events();
        let left = events.iter().find(|e| e.status >> 24 == code::SHORT_PACKET).map_or(0, |e| e.status & 0xff_ffff);
        let mut got = vec![0; usize::from(len) - left as usize];
        self.b.dma().read(BUFFER, &mut got);
        (events.last().map_or(0, |e| e.status >> 24), got)
    }

    /// Sets the device's configuration and the interrupt endpoint.
    fn configure(&mut self) {
        assert_eq!(self.control([0, 9, 1, 0, 0, 0, 0, 0], &[]).0, code::SUCCESS);
        let dma = self.b.dma();
        dma.write_u32(INPUT + 4, 1 | 1 << INTERRUPT_IN);
        dma.write_u32(INPUT + 32, 3 << 27 | 3 << 20);
        let at = INPUT + 32 * (u64::from(INTERRUPT_IN) + 1);
        dma.write_u32(at + 4, 8 << 16 | 7 << 3 | 3 << 1);
        dma.write(at + 8, &(RING | 1).to_le_bytes());
        assert_eq!(self.command(12, INPUT, 1 << 24), (code::SUCCESS, 1));
        assert_eq!(self.words(DEVICE)[3] >> 27, 3, "configured");
        assert_eq!(self.words(DEVICE)[0] >> 27, 3, "with so many contexts");
    }

    fn all_up(device: &str) -> Driver {
        let mut d = Driver::start(device, false);
        d.address();
        d.configure();
        d
    }

    /// Asks for a report.
    fn ask(&mut self) -> u64 {
        let at = self.ring;
        self.put(at, trb(BUFFER, 8, kind::NORMAL << 10 | Trb::SHORT | Trb::INTERRUPT));
        self.ring += 16;
        self.write(DOORBELLS + 4, INTERRUPT_IN.into());
        at
    }

    /// The report that came, for the TRB at `at`.
    fn report(&mut self, at: u64) -> Vec<u8> {
        let events = self.events();
        let [event] = events[..] else { panic!("{events:?}") };
        assert_eq!((event.kind(), event.parameter), (kind::TRANSFER_EVENT, at));
        assert_eq!(event.control >> 16, 1 << 8 | u32::from(INTERRUPT_IN));
        let left = event.status & 0xff_ffff;
        assert_eq!(event.status >> 24, if left > 0 { code::SHORT_PACKET } else { code::SUCCESS });
        let mut report = vec![0; 8 - left as usize];
        self.b.dma().read(BUFFER, &mut report);
        report
    }
}

#[test]
fn it_is_bhyves_with_its_ports() {
    let mut d = Driver::plug("tablet");
    assert_eq!(d.b.config_read(0, 4), 0x1e31_8086);
    assert_eq!(d.b.config_read(8, 4), 0x0c03_3000);
    assert_eq!(d.b.config_read(0x60, 1), 0x30);
    assert_eq!(d.read(0) & 0xff, 0x20);
    assert_eq!(d.read(4), 0x0800_0140);
    assert_eq!(d.b.bus.read(BAR, 8), 0x0800_0140_0100_0020);
    // The list of what there is: legacy support, USB 2 at ports 5 to 8, USB 3 at 1 to 4.
    let mut at = u64::from(d.read(0x10) >> 16) * 4;
    let mut seen = Vec::new();
    loop {
        let head = d.read(at);
        seen.push((head & 0xff, head >> 24, d.read(at + 8)));
        match head >> 8 & 0xff {
            0 => break,
            next => at += u64::from(next) * 4,
        }
    }
    assert_eq!(seen, [(1, 0, 0), (2, 2, 0x405), (2, 3, 0x401)]);
    // FreeBSD takes it from the BIOS by a byte.
    d.b.bus.write(BAR + EXTENDED + 3, 1, 1);
    assert_eq!(d.read(EXTENDED) >> 16, 0x0100);
}

#[test]
fn a_tablet_is_enumerated_and_says_where_it_is() {
    let mut d = Driver::start("tablet", false);
    let change = d.event().expect("of a port");
    assert_eq!((change.kind(), change.parameter), (kind::PORT_STATUS_CHANGE, u64::from(PORT) << 24));
    d.address();
    let (code, descriptor) = d.control([0x80, 6, 0, 1, 0, 0, 18, 0], &[]);
    assert_eq!((code, descriptor[8..12].to_vec()), (code::SUCCESS, vec![0x5d, 0xfb, 1, 0]));
    let (_, short) = d.control([0x80, 6, 0, 2, 0, 0, 0xff, 0], &[]);
    assert_eq!((short.len(), short[2]), (34, 34), "and no more than there is");
    let (_, report) = d.control([0x81, 6, 0, 0x22, 0, 0, short[25], 0], &[]);
    assert_eq!((report.len(), report[..2].to_vec()), (usize::from(short[25]), vec![5, 1]));
    assert_eq!(d.people.0.lock().unwrap().pointing, None);
    d.configure();
    let at = d.ask();
    assert_eq!(d.events(), [], "it has nothing to say");
    assert_eq!(d.people.0.lock().unwrap().pointing, Some(Pointing::At));
    d.cell.event(Event::PointerAt(0x1234, 0x7fff, 0, 1));
    assert!(d.b.irq(16));
    assert_eq!(d.report(at), [1, 0x34, 0x12, 0xff, 0x7f, 0]);
    d.write(0x1020, PENDING | ENABLED);
    assert!(!d.b.irq(16));
    // What the guest was too slow for is one movement.
    d.cell.event(Event::PointerAt(1, 1, 0, 1));
    d.cell.event(Event::PointerAt(2, 2, 0, 1));
    d.cell.event(Event::PointerAt(2, 2, -1, 1));
    let at = d.ask();
    assert_eq!(d.report(at), [1, 2, 0, 2, 0, 0]);
    let at = d.ask();
    assert_eq!(d.report(at), [1, 2, 0, 2, 0, 0xff]);
    // The same again is nothing.
    d.cell.event(Event::PointerAt(2, 2, 0, 1));
    d.ask();
    assert_eq!(d.events(), []);
    d.write(0x20, 0);
    assert_eq!(d.people.0.lock().unwrap().pointing, None, "nobody listens to a controller that is stopped");
}

#[test]
fn a_keyboard_types_and_shows_its_lights() {
    let mut d = Driver::all_up("keyboard");
    let at = d.ask();
    let told = Told { ready: Some(true), typing: true, ..Told::default() };
    assert_eq!(*d.people.0.lock().unwrap(), told);
    // Shift and A.
    d.cell.event(Event::Key(0x2a, true));
    assert_eq!(d.report(at), [2, 0, 0, 0, 0, 0, 0, 0]);
    d.cell.event(Event::Key(0x1e, true));
    assert_eq!(d.people.0.lock().unwrap().ready, Some(false), "the guest has not asked for it yet");
    let at = d.ask();
    assert_eq!(d.report(at), [2, 0, 4, 0, 0, 0, 0, 0]);
    for code in 2..8 {
        d.cell.event(Event::Key(code, true));
        let at = d.ask();
        let report = d.report(at);
        assert_eq!(report[2..] == [1; 6], code == 7, "the seventh key is one too many");
    }
    assert_eq!(d.control([0x21, 9, 0, 2, 0, 0, 1, 0], &[0b111]).0, code::SUCCESS);
    assert_eq!(d.people.0.lock().unwrap().lights, 0b111);
    d.control([0x21, 9, 0, 2, 0, 0, 1, 0], &[0b010]);
    assert_eq!(d.people.0.lock().unwrap().lights, 0b100, "Caps Lock");
}

#[test]
fn a_mouse_moves_as_far_as_it_was_moved() {
    let mut d = Driver::all_up("mouse");
    d.cell.event(Event::Pointer(200, 5, 0, 0));
    let mut sum = (0, 0);
    for _ in 0..2 {
        let at = d.ask();
        let report = d.report(at);
        sum = (sum.0 + i32::from(report[1] as i8), sum.1 + i32::from(report[2] as i8));
    }
    assert_eq!(sum, (200, -5), "down is positive");
    d.ask();
    assert_eq!(d.events(), []);
    // The boot protocol has no wheel.
    assert_eq!(d.control([0x21, 11, 0, 0, 0, 0, 0, 0], &[]).0, code::SUCCESS);
    d.cell.event(Event::Pointer(1, 0, 1, 2));
    let at = d.ring - 16;
    assert_eq!(d.report(at), [2, 1, 0]);
}

#[test]
fn a_request_that_a_device_does_not_know_stalls_until_the_endpoint_is_reset() {
    let mut d = Driver::all_up("tablet");
    assert_eq!(d.control([0xc0, 0x77, 0, 0, 0, 0, 4, 0], &[]).0, code::STALL);
    assert_eq!(d.words(DEVICE + 32)[0] & 7, 2, "halted");
    let setup = [0x80, 6, 0, 1, 0, 0, 18, 0];
    assert_eq!(d.control(setup, &[]).0, 0, "a doorbell does not help");
    assert_eq!(d.command(14, 0, 1 << 24 | 2 << 16).0, code::ENDPOINT_NOT_ENABLED);
    assert_eq!(d.command(16, CONTROL_RING | 1, 1 << 24 | 1 << 16).0, code::CONTEXT_STATE);
    assert_eq!(d.command(14, 0, 1 << 24 | 1 << 16).0, code::SUCCESS);
    let next = d.control;
    assert_eq!(d.command(16, next | 1, 1 << 24 | 1 << 16).0, code::SUCCESS);
    assert_eq!(d.words(DEVICE + 32)[2], next as u32 | 1);
    assert_eq!(d.control(setup, &[]).1.len(), 18);
}

#[test]
fn an_endpoint_that_is_stopped_says_where_and_goes_on_from_there() {
    let mut d = Driver::all_up("tablet");
    let at = d.ask();
    d.put(d.commands, trb(0, 0, 15 << 10 | 1 << 24 | u32::from(INTERRUPT_IN) << 16));
    d.commands += 16;
    d.write(DOORBELLS, 0);
    let events = d.events();
    assert_eq!(events.len(), 2);
    assert_eq!((events[0].kind(), events[0].parameter, events[0].status), (32, at, code::STOPPED << 24 | 8));
    assert_eq!(events[1].kind(), kind::COMMAND_COMPLETION);
    let context = DEVICE + 32 * u64::from(INTERRUPT_IN);
    assert_eq!((d.words(context)[0] & 7, d.words(context)[2]), (3, at as u32 | 1));
    d.cell.event(Event::PointerAt(7, 7, 0, 0));
    assert_eq!(d.events(), []);
    d.write(DOORBELLS + 4, INTERRUPT_IN.into());
    assert_eq!(d.words(context)[0] & 7, 1);
    assert_eq!(d.report(at), [0, 7, 0, 7, 0, 0]);
    assert_eq!(d.command(15, 0, 1 << 24 | u32::from(INTERRUPT_IN) << 16).0, code::SUCCESS);
    assert_eq!(d.command(15, 0, 1 << 24 | u32::from(INTERRUPT_IN) << 16).0, code::CONTEXT_STATE);
}

#[test]
fn links_chains_and_event_data_are_followed() {
    let mut d = Driver::all_up("tablet");
    // A TD of two buffers, 4 and 8 bytes, with a link and event data in it. The report has 6.
    let other = RING + 0x800;
    let flags = kind::NORMAL << 10 | Trb::CHAIN | Trb::SHORT;
    d.put(RING, trb(BUFFER, 4, flags));
    d.put(RING + 16, trb(other, 0, kind::LINK << 10 | Trb::CHAIN | Trb::TOGGLE));
    // The other cycle from here on.
    let put = |at, parameter, status, control: u32| {
        d.put(at, trb(parameter, status, control));
        d.b.dma().write_u32(at + 12, control & !1);
    };
    put(other, BUFFER + 0x100, 8, flags);
    put(other + 16, 0x1234_5678_9abc, 0, kind::EVENT_DATA << 10 | Trb::INTERRUPT);
    put(other + 32, 0, 0, 1);
    d.b.dma().write_u32(other + 44, 1);
    d.write(DOORBELLS + 4, INTERRUPT_IN.into());
    d.cell.event(Event::PointerAt(0x201, 0x403, 3, 5));
    let events = d.events();
    let told = |e: &Trb| (e.parameter, e.status >> 24, e.status & 0xff_ffff, e.control >> 2 & 1);
    assert_eq!(
        events.iter().map(told).collect::<Vec<_>>(),
        [(other, code::SHORT_PACKET, 6, 0), (0x1234_5678_9abc, code::SHORT_PACKET, 6, 1)]
    );
    let mut bytes = [0; 6];
    d.b.dma().read(BUFFER, &mut bytes[..4]);
    d.b.dma().read(BUFFER + 0x100, &mut bytes[4..]);
    assert_eq!(bytes, [5, 1, 2, 3, 4, 3]);
}

#[test]
fn events_wait_for_room_and_hold_back_what_makes_more() {
    let mut d = Driver::start("tablet", false);
    for n in 0..2 * u64::from(EVENT_TRBS) {
        d.put(COMMANDS + 16 * n, trb(0, 0, 23 << 10));
    }
    d.write(DOORBELLS, 0);
    let full = Trb::fetch(&d.b.dma(), EVENTS + 16 * (u64::from(EVENT_TRBS) - 1));
    assert!(!full.cycle(), "one place stays free");
    let answers: Vec<u64> =
        d.events().iter().filter(|e| e.kind() == kind::COMMAND_COMPLETION).map(|e| e.parameter).collect();
    let all: Vec<u64> = (0..2 * u64::from(EVENT_TRBS)).map(|n| COMMANDS + 16 * n).collect();
    assert_eq!(answers, all);
}

#[test]
fn a_message_comes_for_each_event_that_the_guest_has_dealt_with_the_one_before() {
    let mut d = Driver::start("tablet", true);
    assert_eq!(d.b.messages(), [(MESSAGE, 0x41)]);
    assert_eq!(d.read(0x1020), ENABLED, "the message stands for it");
    d.put(COMMANDS, trb(0, 0, 23 << 10));
    d.write(DOORBELLS, 0);
    assert_eq!(d.b.messages(), [], "its handler is busy");
    // It looks at both before it says so.
    d.event.0 += 1;
    assert!(d.event().is_some());
    assert_eq!(d.b.messages(), []);
    d.put(COMMANDS + 16, trb(0, 0, 23 << 10));
    d.write(DOORBELLS, 0);
    assert_eq!(d.b.messages().len(), 1);
    assert!(!d.b.irq(16));
    // Moderation: 4000 times 250 ns from one to the next.
    d.events();
    d.write(0x1024, 4000);
    d.commands = COMMANDS + 32;
    d.command(23, 0, 0);
    assert_eq!(d.b.messages().len(), 1);
    d.put(COMMANDS + 48, trb(0, 0, 23 << 10));
    d.write(DOORBELLS, 0);
    d.b.advance(999_999);
    assert_eq!(d.b.messages(), []);
    d.b.advance(1);
    assert_eq!(d.b.messages().len(), 1);
}

#[test]
fn a_sleeping_port_is_woken_up_by_a_device_that_may() {
    let mut d = Driver::all_up("tablet");
    let at = d.ask();
    let port = PORT_REGISTERS + 16 * u64::from(PORT - 1);
    let sleep = |d: &mut Driver| d.write(port, portsc::POWER | portsc::LINK_WRITE | portsc::U3);
    sleep(&mut d);
    d.cell.event(Event::PointerAt(7, 7, 0, 0));
    assert_eq!((d.events(), d.read(port) & portsc::LINK), (vec![], portsc::U3), "it may not");
    d.write(port, portsc::POWER | portsc::LINK_WRITE | portsc::U0);
    let events = d.events();
    assert_eq!(events.iter().map(Trb::kind).collect::<Vec<_>>(), [kind::PORT_STATUS_CHANGE, kind::TRANSFER_EVENT]);
    assert_eq!(events[1].parameter, at);
    d.write(port, portsc::POWER | portsc::CHANGES);
    assert_eq!(d.control([0, 3, 1, 0, 0, 0, 0, 0], &[]).0, code::SUCCESS);
    sleep(&mut d);
    d.cell.event(Event::PointerAt(8, 8, 0, 0));
    assert_eq!(d.read(port) & (portsc::LINK | portsc::LINK_CHANGE), portsc::RESUME | portsc::LINK_CHANGE);
    assert_eq!(d.events().len(), 1);
}

#[test]
fn nothing_is_read_or_written_without_bus_mastering() {
    let mut d = Driver::all_up("tablet");
    let at = d.ask();
    d.b.config_write(4, 2, 2);
    d.cell.event(Event::PointerAt(7, 7, 0, 0));
    assert_eq!(d.b.dma().fetch::<8>(BUFFER)[1], 0);
    d.b.config_write(4, 2, 6);
    assert_eq!(d.report(at), [0, 7, 0, 7, 0, 0], "it goes on when it may");
}

#[test]
fn what_was_saved_goes_on_elsewhere_and_what_cannot_be_is_refused() {
    let mut d = Driver::all_up("keyboard");
    let at = d.ask();
    let saved = d.cell.save();
    let other = Driver::plug("keyboard");
    let (mut all, mut ram) = (vec![0; 0xa000], d.b.dma());
    ram.read(0, &mut all);
    ram = other.b.dma();
    ram.write(0, &all);
    other.cell.load(saved.clone()).unwrap();
    assert!(other.people.0.lock().unwrap().typing, "the guest listens to it");
    let mut other = Driver { ring: d.ring, event: d.event, ..other };
    other.cell.event(Event::Key(0x1e, true));
    assert_eq!(other.report(at), [0, 0, 4, 0, 0, 0, 0, 0]);
    assert!(Driver::plug("mouse").cell.load(saved.clone()).is_err());
    let mut bad = saved.clone();
    bad.state["registers"]["ports"] = serde_json::json!([]);
    assert!(other.cell.load(bad).is_err());
    let mut bad = saved.clone();
    bad.state["registers"]["slots"][1]["port"] = serde_json::json!(99);
    assert!(other.cell.load(bad).is_err());
    let mut bad = saved;
    bad.state["registers"]["slots"][1]["endpoints"]["1"]["packet"] = serde_json::json!(0);
    assert!(other.cell.load(bad).is_err(), "packets of no bytes");
    // The guest resets it: the board's keyboard is what it listens to.
    other.run();
    assert!(!other.people.0.lock().unwrap().typing);
}

#[test]
fn rings_that_lead_nowhere_or_in_circles_end() {
    let mut d = Driver::all_up("tablet");
    // A link to itself.
    d.put(RING, trb(RING, 0, kind::LINK << 10));
    d.write(DOORBELLS + 4, INTERRUPT_IN.into());
    let events = d.events();
    assert_eq!(events.last().map(|e| e.status >> 24), Some(code::TRB));
    assert_eq!(d.words(DEVICE + 32 * u64::from(INTERRUPT_IN))[0] & 7, 4, "in error");
    // Commands without an end, none of which says anything.
    d.put(d.commands, trb(d.commands, 0, kind::LINK << 10));
    d.write(DOORBELLS, 0);
    assert_eq!(d.events(), []);
    // An event ring of no segments.
    d.write(0x1028, 0);
    d.write(PORT_REGISTERS + 16 * 4, portsc::POWER | portsc::RESET);
    assert_ne!(d.read(0x24) & status::ERROR, 0);
    d.run();
    d.address();
}

#[test]
fn whatever_a_guest_writes_it_neither_panics_nor_keeps_more_than_it_may() {
    let places = [
        0x20, 0x24, 0x38, 0x3c, 0x50, 0x58, 0x470, 0x460, 0x480, 0x800, 0x803, 0x1020, 0x1024, 0x1028, 0x1030, 0x1038,
        0x2000, 0x2004, 0x2008, 0x20fc,
    ];
    for case in 0..fuzz_cases() {
        let mut rng = Rng::new(case);
        let mut d = Driver::all_up(["tablet", "keyboard", "mouse"][case as usize % 3]);
        let _place = Place(format!("case {case}"));
        for _ in 0..400 {
            match rng.below(8) {
                0..3 => {
                    let (at, value) = (rng.pick(&places) + rng.below(2) as u64 * 4, rng.value());
                    let width = rng.width(8);
                    d.b.bus.write(BAR + at, width, value);
                }
                3 | 4 => {
                    let at = COMMANDS + 8 * rng.below(0xe00) as u64;
                    let kind = rng.below(24) as u32;
                    let pointer = rng.pick(&[INPUT, RING, COMMANDS, CONTROL_RING, DEVICE, 0, u64::MAX]);
                    let control = kind << 10 | rng.value() as u32 & 0x1ff_03ff | 1 << 24;
                    d.put(at & !15, trb(pointer | rng.below(2) as u64, rng.value() as u32, control));
                }
                5 => d.write(DOORBELLS, 0),
                6 => {
                    let target = rng.below(5) as u32;
                    d.write(DOORBELLS + 4, target);
                }
                _ => match rng.below(4) {
                    0 => d.cell.event(Event::Key(rng.next() as u16, rng.one_in(2))),
                    1 => d.cell.event(Event::Pointer(rng.next() as i32, rng.next() as i32, rng.value() as i32, 1)),
                    2 => d.cell.event(Event::PointerAt(rng.next() as u16, 1, rng.next() as i32, rng.next() as u8)),
                    _ => d.b.advance(200_000),
                },
            }
        }
        let saved = d.cell.save();
        d.cell.load(saved).unwrap();
    }
}
