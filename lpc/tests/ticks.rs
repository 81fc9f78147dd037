//! Ticks of the 8254 on their way through the 8259 pair or the I/O APIC to a processor that the host does not always
//! let run.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use emu::bench::{Bench, Messages};
use emu::{Clock, IrqLine, IrqSink, MsiSink, ResetKind};
use lpc::{Hpet, I8254, I8259, IoApic, LegacyRoute};

const MS: u64 = 1_000_000;

#[derive(Default)]
struct Intr(AtomicBool, AtomicUsize);

impl IrqSink for Intr {
    fn set_irq(&self, _: u32, level: bool) {
        self.0.store(level, Ordering::Relaxed);
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

/// A guest that ticks at 1000 Hz by the 8259.
struct Guest {
    bench: Bench,
    pic: Arc<I8259>,
    intr: Arc<Intr>,
    ticks: u64,
}

impl Guest {
    fn new(clock: Arc<Clock>, control: u8) -> Guest {
        let mut bench = Bench::with_clock(clock);
        let intr: Arc<Intr> = Arc::default();
        let pic = I8259::new(&bench.machine, IrqLine::new(intr.clone(), 0));
        let sink = pic.clone();
        bench.machine.set_isa_irqs((0..16).map(|n| IrqLine::new(sink.clone(), n)).collect());
        bench.part(I8254::create);
        bench.machine.reset(ResetKind::PowerOn);
        let pic_up = [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe)];
        for (port, value) in pic_up.into_iter().chain([(0x43, control), (0x40, 0xa9), (0x40, 0x04)]) {
            bench.outb(port, value);
        }
        let mut guest = Guest { bench, pic, intr, ticks: 0 };
        guest.serve();
        guest.ticks = 0;
        guest
    }

    /// Takes what interrupts there are.
    fn serve(&mut self) {
        while self.intr.0.load(Ordering::Relaxed) {
            assert_eq!(self.pic.acknowledge(), 0x20, "spurious");
            self.bench.outb(0x20, 0x20);
            self.ticks += 1;
        }
    }

    /// `ms` milliseconds in which the processor's thread runs for `share` of each ten, with the timer's thread awake.
    fn run(&mut self, ms: u64, share: u64) {
        for step in 0..ms * 20 {
            self.bench.advance(MS / 20);
            if step / 20 % 10 < share {
                self.serve();
            }
        }
    }
}

#[test]
fn no_tick_is_lost_while_the_host_runs_others_than_the_processor() {
    for control in [0x34, 0x36] {
        let mut guest = Guest::new(Clock::manual(), control);
        guest.run(10_000, 3);
        guest.run(10, 10);
        let expected = 10_010 * 1_193_182 / 1193 / 1000;
        assert!((expected - 1..=expected).contains(&guest.ticks), "{control:02x}: {} of {expected}", guest.ticks);
    }
}

#[test]
fn after_a_long_stop_a_second_of_ticks_is_made_up_for_in_haste_but_not_in_a_storm() {
    for control in [0x34, 0x36] {
        let mut guest = Guest::new(Clock::manual(), control);
        let mut fired = 0;
        for _ in 0..60_000 {
            guest.bench.machine.clock().set(guest.bench.machine.clock().now() + MS);
            fired += guest.bench.machine.timers.run_due();
        }
        assert!(fired <= 60_000, "{control:02x}: the timer's thread works {fired} times in vain");
        guest.run(20, 10);
        assert!((150..=320).contains(&guest.ticks), "{control:02x}: {} in the first 20 ms", guest.ticks);
        guest.run(980, 10);
        assert!((1995..=2005).contains(&guest.ticks), "{control:02x}: {} in the first second", guest.ticks);
        guest.run(1000, 10);
        assert!((2995..=3005).contains(&guest.ticks), "{control:02x}: {} in two seconds", guest.ticks);
    }
}

#[test]
fn by_the_instruction_clock_a_guest_loses_what_it_does_not_take_in_time_as_on_the_chip() {
    let mut guest = Guest::new(Clock::instructions(), 0x34);
    guest.run(1000, 3);
    // Three each ten, and the last of the other seven.
    assert!((395..=405).contains(&guest.ticks), "{}", guest.ticks);
}

#[test]
fn ticks_that_are_owed_are_saved() {
    let mut first = Guest::new(Clock::manual(), 0x36);
    first.run(500, 10);
    first.run(21, 0);
    let saved: Vec<_> = first.bench.machine.parts().iter().map(|p| p.save()).collect();
    let mut second = Guest::new(Clock::manual(), 0x36);
    second.bench.machine.clock().set(first.bench.machine.clock().now());
    for (part, saved) in second.bench.machine.parts().iter().zip(saved).rev() {
        part.load(saved).expect("state");
    }
    second.ticks = first.ticks;
    for guest in [&mut first, &mut second] {
        guest.run(100, 10);
        assert!((620..=621).contains(&guest.ticks), "{}", guest.ticks);
    }
    assert_eq!(first.ticks, second.ticks);
}

#[test]
fn a_request_is_not_withdrawn_from_a_processor_that_may_be_about_to_take_it() {
    let mut bench = Bench::new();
    let intr: Arc<Intr> = Arc::default();
    let pic = I8259::new(&bench.machine, IrqLine::new(intr.clone(), 0));
    let mut isa: Vec<IrqLine> = (0..16).map(|n| IrqLine::new(pic.clone(), n)).collect();
    let route = LegacyRoute::new(&bench.machine, &mut isa);
    bench.machine.set_isa_irqs(isa);
    bench.part(I8254::create);
    bench.part(|slot| Hpet::create(slot, Hpet::BASE, route, Vec::new()));
    bench.machine.reset(ResetKind::PowerOn);
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
        bench.outb(port, value);
    }
    // Periodic in 32 bits, a millisecond, under legacy replacement.
    for (at, value) in [(0x100, 0x14c), (0x108, 10_000), (0x108, 10_000), (0x10, 3)] {
        bench.bus.write(Hpet::BASE + at, 4, value);
    }
    bench.advance(MS + MS / 2);
    intr.1.store(0, Ordering::Relaxed);
    bench.advance(9 * MS);
    assert_eq!(intr.1.load(Ordering::Relaxed), 0, "INTR stays up");
    assert_eq!(pic.acknowledge(), 0x20);
    bench.outb(0x20, 0x20);
    bench.advance(MS);
    assert_eq!(pic.acknowledge(), 0x20, "the next one comes");
    // The 8254 alike.
    bench.bus.write(Hpet::BASE + 0x10, 4, 0);
    bench.outb(0x20, 0x20);
    for (port, value) in [(0x43, 0x36), (0x40, 0xa9), (0x40, 0x04)] {
        bench.outb(port, value);
    }
    bench.advance(2 * MS);
    intr.1.store(0, Ordering::Relaxed);
    bench.advance(10 * MS);
    assert_eq!(intr.1.load(Ordering::Relaxed), 0);
    assert_eq!(pic.acknowledge(), 0x20);
}

/// A local APIC's request register of one bit.
#[derive(Default)]
struct Request {
    sent: Messages,
    waits: Mutex<bool>,
}

impl MsiSink for Request {
    fn msi(&self, addr: u64, data: u32) {
        *self.waits.lock().unwrap() = true;
        self.sent.msi(addr, data);
    }

    fn pending(&self, _: u64, data: u32) -> bool {
        data & 0xff == 0x30 && *self.waits.lock().unwrap()
    }
}

#[test]
fn a_tick_that_waits_in_a_local_apic_is_not_sent_again_but_afterwards() {
    let mut bench = Bench::new();
    let request: Arc<Request> = Arc::default();
    let chip = IoApic::new(&bench.machine, 0xfec0_0000, request.clone());
    bench.machine.set_isa_irqs(vec![IrqLine::new(chip.clone(), 2)]);
    bench.part(I8254::create);
    bench.machine.reset(ResetKind::PowerOn);
    for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
        bench.outb(port, value);
    }
    bench.advance(3 * MS / 2);
    assert!(chip.pending(2), "an edge under the mask waits in the I/O APIC");
    for (register, value) in [(0x15, 0), (0x14, 0x30)] {
        bench.bus.write(0xfec0_0000, 4, register);
        bench.bus.write(0xfec0_0010, 4, value);
    }
    assert_eq!(request.sent.take().len(), 1);
    bench.advance(10 * MS);
    assert!(request.sent.take().is_empty());
    let mut ticks = 0;
    for _ in 0..200 {
        *request.waits.lock().unwrap() = false;
        bench.advance(MS / 10);
        ticks += request.sent.take().len();
    }
    assert_eq!(ticks, 30);
}
