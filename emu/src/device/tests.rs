use super::*;
use crate::bench::Bench;

/// Counts what happens to it. Region 0 is memory at D0000000, region 1 a port BAR.
struct Counter {
    regs: Regs,
    line: Option<Arc<IrqLine>>,
    timer: Option<Arc<Timer>>,
    bells: Arc<Mutex<Vec<(u32, u64)>>>,
    version: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Regs {
    value: u64,
    ticks: u32,
    resets: u32,
    restored: u32,
}

const BASE: u64 = 0xd000_0000;

impl Device for Counter {
    fn read(&mut self, _: u32, offset: u64, _: u8) -> u64 {
        self.regs.value + offset
    }

    fn write(&mut self, _: u32, _: u64, _: u8, value: u64) {
        self.regs.value = value;
        if let (Some(line), Some(timer)) = (&self.line, &self.timer) {
            line.set(value & 1 != 0);
            timer.set(timer.now() + value);
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Timer(7) => self.regs.ticks += 1,
            Event::Doorbell(region, offset) => self.bells.lock().unwrap().push((region, offset)),
            _ => {}
        }
    }

    fn reset(&mut self, kind: ResetKind) {
        if let Some(line) = &self.line {
            line.pulse();
        }
        let resets = self.regs.resets + 1;
        self.regs = Regs { resets, value: u64::from(kind == ResetKind::PowerOn), ..Regs::default() };
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.regs
    }

    fn version(&self) -> u32 {
        self.version
    }

    fn restored(&mut self) {
        self.regs.restored += 1;
    }
}

const IDS: PciIds = PciIds { vendor: 1, device: 2, class: 0, revision: 0, sub_vendor: 0, subsystem: 0 };

fn counter(slot: &mut Slot) -> Counter {
    slot.pci(IDS).unwrap();
    slot.memory(0, BASE, 0x1000, 1, Widths::QWORD);
    slot.bar(0, BarKind::Io, 0x40, 1, Widths::DWORD);
    let (line, timer) = (Some(slot.isa_irq(5)), Some(slot.timer(7)));
    Counter { regs: Regs::default(), line, timer, bells: Arc::default(), version: 3 }
}

fn rig() -> (Bench, Arc<DeviceCell>) {
    let bench = Bench::new();
    let cell = bench.part(|slot| Box::new(counter(slot)));
    (bench, cell)
}

#[test]
fn a_saved_device_goes_on_elsewhere_with_wires_timers_and_configuration() {
    let (mut b, cell) = rig();
    b.config_write(0x10, 4, 0xc000);
    b.config_write(4, 2, 1);
    b.bus.write(BASE, 8, 1001);
    let saved = cell.save();
    assert_eq!((saved.version, &saved.irqs[..], &saved.timers[..]), (3, &[true][..], &[Some(1001)][..]));

    let (mut c, other) = rig();
    other.load(saved.clone()).unwrap();
    assert!(c.irq(5));
    assert_eq!(c.bus.pio_read(0xc000, 4), 1001);
    let again = other.save();
    assert_eq!((&again.pci, &again.irqs, &again.timers), (&saved.pci, &saved.irqs, &saved.timers));
    assert_eq!(again.state["restored"], 1, "the device is told");
    c.advance(1000);
    assert_eq!(other.save().state["ticks"], 0);
    c.advance(1);
    assert_eq!(other.save().state["ticks"], 1);
    assert_eq!(other.save().timers, [None]);
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_leaves_the_wires_alone() {
    let (_b, cell) = rig();
    let good = Saved { irqs: vec![true], timers: vec![Some(5)], ..cell.save() };
    let bad = [
        (Saved { version: 2, ..good.clone() }, "version 2"),
        (Saved { irqs: Vec::new(), ..good.clone() }, "wires"),
        (Saved { timers: vec![None; 2], ..good.clone() }, "timers"),
        (Saved { state: Value::from("text"), ..good.clone() }, "invalid type"),
        (Saved { pci: Value::Null, ..good.clone() }, "PCI"),
    ];
    for (saved, why) in bad {
        let error = cell.load(saved).unwrap_err();
        assert!(error.contains(why), "{error}");
        let now = cell.save();
        assert_eq!((now.irqs, now.timers), (vec![false], vec![None]), "{why}");
    }
    cell.load(good).unwrap();
}

#[test]
fn the_saved_form_survives_json() {
    let (mut b, cell) = rig();
    b.bus.write(BASE, 8, u64::MAX);
    let saved = cell.save();
    let text = serde_json::to_string(&saved).unwrap();
    assert_eq!(serde_json::from_str::<Saved>(&text).unwrap(), saved);
}

#[test]
fn interrupt_chips_forget_the_edges_of_resetting() {
    /// Counts rising edges; put in first, like an interrupt chip.
    #[derive(Default)]
    struct Chip(Mutex<u32>);
    impl crate::IrqSink for Chip {
        fn set_irq(&self, _: u32, level: bool) {
            *self.0.lock().unwrap() += u32::from(level);
        }
    }
    impl DeviceState for Chip {
        fn name(&self) -> &str {
            "chip"
        }
        fn reset(&self, _: ResetKind) {
            *self.0.lock().unwrap() = 0;
        }
        fn save(&self) -> Saved {
            Saved::default()
        }
        fn load(&self, _: Saved) -> Result<(), String> {
            Ok(())
        }
    }
    let b = Bench::new();
    let chip: Arc<Chip> = Arc::default();
    b.machine.add_part(chip.clone());
    let wire = IrqLine::new(chip.clone(), 0);
    b.part(|slot| Box::new(Counter { line: Some(slot.keep(wire)), ..counter(slot) }));
    b.machine.reset(ResetKind::System);
    assert_eq!(*chip.0.lock().unwrap(), 0, "the device moved its wire");
}

#[test]
fn reset_reaches_every_part_with_its_kind() {
    let (mut b, cell) = rig();
    b.config_write(0x3c, 1, 9);
    b.machine.reset(ResetKind::PowerOn);
    assert_eq!(b.bus.read(BASE, 8), 1);
    b.machine.reset(ResetKind::System);
    assert_eq!(b.bus.read(BASE, 8), 0);
    assert_eq!(cell.save().state["resets"], 2);
    assert_eq!(b.config_read(0x3c, 1), 0);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "second device lock")]
fn a_thread_that_takes_two_device_locks_is_caught() {
    let b = Bench::new();
    let bare = |_: &mut Slot| -> Box<dyn Device> {
        Box::new(Counter { regs: Regs::default(), line: None, timer: None, bells: Arc::default(), version: 1 })
    };
    let (one, two) = (b.part(bare), b.part(bare));
    one.with(|_| two.with(|_| ()));
}

#[test]
#[cfg(debug_assertions)]
fn a_device_that_panics_does_not_leave_its_thread_marked() {
    let (_b, cell) = rig();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cell.with(|_| panic!("device"))));
    assert!(caught.is_err());
    assert_eq!(rig().1.with(|d| d.version()), Some(3));
}

/// Region and offset of each doorbell that was heard.
type Bells = Arc<Mutex<Vec<(u32, u64)>>>;

fn belled() -> (Bench, Arc<DeviceCell>, Bells) {
    let b = Bench::new();
    let bells: Bells = Arc::default();
    let cell = b.part(|slot| {
        let device = Counter { bells: Arc::clone(&bells), line: None, ..counter(slot) };
        slot.doorbell(1, 0x10, 2, Some(3), false);
        slot.doorbell(0, 0x20, 0, None, false);
        Box::new(device)
    });
    (b, cell, bells)
}

#[test]
fn a_doorbell_rings_in_place_of_the_write_it_names_wherever_its_region_lies() {
    let (mut b, _cell, bells) = belled();
    let rang = |b: &Bench| {
        b.advance(0);
        std::mem::take(&mut *bells.lock().unwrap())
    };
    b.bus.write(BASE + 0x20, 8, 55);
    assert!(bells.lock().unwrap().is_empty(), "the writer does not wait for the device");
    assert_eq!(rang(&b), [(0, 0x20)]);
    assert_eq!(b.bus.read(BASE, 8), 0, "the device does not see the write");
    b.bus.write(BASE + 0x20, 1, 55);
    b.bus.write(BASE + 0x20, 8, 55);
    assert_eq!(rang(&b), [(0, 0x20)], "two rings before it is heard are one");
    b.config_write(0x10, 4, 0xc000);
    b.bus.pio_write(0xc010, 2, 3);
    assert!(rang(&b).is_empty(), "it does not decode yet");
    b.config_write(4, 2, 1);
    b.bus.pio_write(0xc010, 2, 3);
    assert_eq!(rang(&b), [(1, 0x10)]);
    b.bus.pio_write_many(0xc010, 2, &[3, 0, 3, 0]);
    assert_eq!(rang(&b), [(1, 0x10)]);
    b.bus.pio_write(0xc010, 2, 4);
    assert_eq!((b.bus.read(BASE, 8), rang(&b).len()), (4, 0), "another value is an ordinary write");
    b.bus.pio_write(0xc010, 4, 3);
    assert_eq!((b.bus.read(BASE, 8), rang(&b).len()), (3, 0), "and so is another width");
    b.config_write(0x10, 4, 0xd000);
    b.bus.pio_write(0xc010, 2, 3);
    assert!(rang(&b).is_empty());
    b.bus.pio_write(0xd010, 2, 3);
    assert_eq!(rang(&b), [(1, 0x10)], "it moves with its BAR");
}

#[test]
fn in_real_time_a_doorbell_is_heard_by_the_write() {
    let space = AddressSpace::new(Arc::new(crate::Ram::new(1 << 20).unwrap()));
    let machine = Machine::new(space.clone(), Clock::running());
    let bells: Bells = Arc::default();
    let create = |slot: &mut Slot| -> Result<Box<dyn Device>, String> {
        slot.memory(0, BASE, 0x1000, 0, Widths::QWORD);
        slot.doorbell(0, 0x20, 0, None, false);
        let bells = Arc::clone(&bells);
        Ok(Box::new(Counter { regs: Regs::default(), line: None, timer: None, bells, version: 3 }))
    };
    machine.plug_with("counter", None, Backends::default(), create).unwrap();
    let mut bus = crate::CpuBus::new(space);
    bus.write(BASE + 0x20, 4, 0);
    assert!(bells.lock().unwrap().is_empty(), "nobody knows whether the machine runs");
    assert_eq!(machine.timers.run_due(), 1);
    machine.timers.set_gate(|f| {
        f();
        true
    });
    bus.write(BASE + 0x20, 4, 0);
    assert_eq!((bells.lock().unwrap().len(), machine.timers.next()), (2, u64::MAX));
}

#[test]
fn what_waits_for_the_lock_is_done_when_it_is_free() {
    let (_b, cell, bells) = belled();
    let note = |n| {
        let bells = Arc::clone(&bells);
        when_unlocked(move || bells.lock().unwrap().push((0, n)));
    };
    cell.with(|_| {
        note(1);
        note(2);
        assert!(bells.lock().unwrap().is_empty());
    });
    assert_eq!(*bells.lock().unwrap(), [(0, 1), (0, 2)]);
    note(3);
    cell.with(|_| ());
    assert_eq!(bells.lock().unwrap().len(), 3);
}

#[test]
fn a_doorbell_that_was_not_heard_yet_is_saved_and_heard_before_a_reset() {
    let (mut b, cell, bells) = belled();
    b.advance(500);
    b.bus.write(BASE + 0x20, 4, 0);
    let saved = cell.save();
    assert_eq!(saved.timers, [None, None, Some(500)]);
    b.machine.reset(ResetKind::System);
    assert_eq!(*bells.lock().unwrap(), [(0, 0x20)]);
    b.advance(1000);
    assert_eq!(bells.lock().unwrap().len(), 1, "and not once more");
    let (c, other, heard) = belled();
    other.load(saved).unwrap();
    c.advance(500);
    assert_eq!(*heard.lock().unwrap(), [(0, 0x20)]);
}

#[test]
fn a_guest_that_rings_without_end_is_heard() {
    let (mut b, _cell, bells) = belled();
    b.bus.write(BASE + 0x20, 4, 0);
    let rung = b.machine.clock().now();
    b.machine.clock().set(rung + 1000);
    b.bus.write(BASE + 0x20, 4, 0);
    assert_eq!(b.machine.timers.next(), rung, "the second ring does not put the first one off");
    b.machine.timers.run_due();
    assert_eq!(bells.lock().unwrap().len(), 1);
}

#[test]
fn a_device_that_cannot_be_made_says_why() {
    let b = Bench::new();
    let plug = |name, bdf, create: Create| {
        b.machine.plug_with(name, bdf, Backends::default(), |s| create(s, &Params::default()))
    };
    let pci: Create = |slot, _| Ok(Box::new(counter_or(slot)?));
    fn counter_or(slot: &mut Slot) -> Result<Counter, String> {
        slot.pci(IDS)?;
        Ok(Counter { regs: Regs::default(), line: None, timer: None, bells: Arc::default(), version: 1 })
    }
    let slot = Some(Bdf::new(4, 0));
    assert!(plug("x", slot, pci).is_ok());
    assert_eq!(plug("y", slot, pci).err().unwrap(), "PCI slot 0:4:0 is taken");
    assert_eq!(plug("z", None, pci).err().unwrap(), "this device needs a PCI slot");
    assert_eq!(plug("z", None, |_, _| Err("no such tape".into())).err().unwrap(), "no such tape");
    assert_eq!(plug("x", None, pci).err().unwrap(), "two parts of the machine are called x");
    assert_eq!(b.machine.parts().len(), 1, "what failed is not part of the machine");
}

#[test]
fn nobody_answers_before_the_constructor_has_returned() {
    let b = Bench::new();
    b.part(|slot| {
        let device = counter(slot);
        let cell = slot.cell().upgrade().unwrap();
        cell.event(Event::Timer(7));
        assert_eq!(Access::read(&*cell, 0, 0, 4), u64::MAX);
        Box::new(device)
    });
}

#[test]
fn repeated_accesses_go_to_one_place_in_order() {
    let (mut b, cell) = rig();
    let mut buf = [0; 8];
    b.bus.write(BASE, 8, 0x0102_0304);
    Access::read_many(&*cell, 0, 2, 4, &mut buf);
    assert_eq!(buf, [6, 3, 2, 1, 6, 3, 2, 1]);
    Access::write_many(&*cell, 0, 0, 2, &[1, 0, 0x34, 0x12]);
    assert_eq!(b.bus.read(BASE, 8), 0x1234);
}

#[test]
fn device_memory_follows_the_bus_master_bit() {
    let b = Bench::new();
    let mut dma = None;
    b.part(|slot| {
        let device = counter(slot);
        dma = Some(slot.dma());
        Box::new(device)
    });
    let dma = dma.unwrap();
    assert!(!dma.enabled());
    b.config_write(4, 2, 4);
    assert!(dma.enabled());
    b.machine.reset(ResetKind::System);
    assert!(!dma.enabled());
}

#[test]
fn parameters_are_read_as_what_they_are() {
    let p = Params::new([("a", "0x1f"), ("b", "on"), ("c", ""), ("d", "-3"), ("e", "12q")]);
    assert_eq!((p.int("a"), p.int("d"), p.int("e"), p.int("z")), (Some(31), Some(-3), None, None));
    assert!(p.flag("b") && !p.flag("a") && !p.flag("c") && !p.flag("z"));
    assert_eq!((p.get("c"), p.get("b")), (None, Some("on")));
}

#[test]
fn a_wire_that_the_board_does_not_have_leads_nowhere() {
    let b = Bench::new();
    b.machine.isa_irq(99).set(true);
    let line = b.machine.isa_irq(15);
    line.set(true);
    assert!(b.irq(15));
    b.machine.request(SystemEvent::Reset);
    assert_eq!(b.system_events(), [SystemEvent::Reset]);
    assert!(b.machine.pci.functions().is_empty());
}

#[test]
fn a_machine_that_is_gone_takes_its_devices_along() {
    let b = Bench::new();
    let mut parts = None;
    let cell = b.part(|slot| {
        let device = counter(slot);
        // What devices usually keep leads back to the machine.
        parts = Some((slot.dma(), slot.msi(1)));
        slot.doorbell(0, 8, 4, None, false);
        Box::new(device)
    });
    let weak = Arc::downgrade(&cell);
    drop((b, cell));
    assert!(weak.upgrade().is_none());
    drop(parts);
}
