//! The chips inside vmm.ko: 8259 pair, 8254, RTC, HPET, PM timer, I/O APIC. User space never sees their ports.

use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::Duration;

use cpu::ApicBus;
use emu::{Access, AddressSpace, Backends, Clock, CpuBus, DeviceCell, IrqLine, IrqSink, Machine, Ram, ResetKind};
use emu::{PAGE_SIZE, Widths};
use lpc::{Hpet, I8254, I8259, LegacyRoute, Mc146818};
use serde_json::Value;

use crate::ioapic::Ioapic;

/// Address space for guest memory; nothing of it is used before it is allocated.
const ARENA: u64 = 64 << 30;

/// Ports that never exit, by the widths that their handlers take.
pub(crate) fn port_width(port: u16) -> Option<u8> {
    match port {
        0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 | 0x40..=0x43 | 0x61 | 0x70 | 0x71 => Some(1),
        0x408 => Some(4),
        _ => None,
    }
}

/// PIC line and I/O APIC pin of an ISA interrupt of the kernel's own timers.
struct IsaWires {
    pic: Arc<I8259>,
    ioapic: Arc<Ioapic>,
}

impl IrqSink for IsaWires {
    fn set_irq(&self, line: u32, level: bool) {
        self.pic.set_irq(line, level);
        self.ioapic.set_irq(if line == 0 { 2 } else { line }, level);
    }
}

type Create = Box<dyn FnOnce(&mut emu::Slot) -> Box<dyn emu::Device>>;

struct Intr(Arc<ApicBus>);

impl IrqSink for Intr {
    fn set_irq(&self, _: u32, level: bool) {
        if let Some(bsp) = self.0.lapics().first() {
            bsp.set_lint0(level);
        }
    }
}

struct PmTimer(Arc<Clock>);

impl Access for PmTimer {
    fn owner(&self) -> &str {
        "vpmtmr"
    }

    fn read(&self, _: u32, _: u64, _: u8) -> u64 {
        (u128::from(self.0.now()) * 3_579_545 / 1_000_000_000) as u32 as u64
    }

    fn write(&self, _: u32, _: u64, _: u8, _: u64) {}
}

/// Who fires the kernel's timers.
#[derive(Default)]
struct Callout {
    state: Mutex<(u64, bool)>,
    changed: Condvar,
}

impl Callout {
    fn run(&self, machine: &Weak<Machine>) {
        loop {
            let seen = self.state.lock().unwrap().0;
            let Some(m) = machine.upgrade() else { return };
            m.timers.run_due();
            let wait = m.timers.next().saturating_sub(m.clock().now()).min(1_000_000_000);
            drop(m);
            let s = self.state.lock().unwrap();
            if s.1 {
                return;
            }
            let _ = self.changed.wait_timeout_while(s, Duration::from_nanos(wait), |s| s.0 == seen && !s.1).unwrap();
        }
    }

    fn tell(&self, end: bool) {
        let mut s = self.state.lock().unwrap();
        s.0 += 1;
        s.1 |= end;
        self.changed.notify_all();
    }
}

pub(crate) struct Chips {
    pub(crate) machine: Arc<Machine>,
    pub(crate) bus: Arc<ApicBus>,
    pub(crate) ioapic: Arc<Ioapic>,
    pub(crate) pic: Arc<I8259>,
    /// User space's outputs on the PIC's lines.
    pic_lines: Vec<IrqLine>,
    /// How often user space has asserted each.
    pic_asserts: Mutex<[i32; 16]>,
    rtc: Arc<DeviceCell>,
    callout: Arc<Callout>,
    /// To ports of the chips.
    ports: Mutex<CpuBus>,
}

impl Chips {
    pub(crate) fn new() -> std::io::Result<Chips> {
        let space = AddressSpace::new(Arc::new(Ram::new(ARENA)?));
        let machine = Machine::new(space.clone(), Clock::running());
        let bus = ApicBus::new();
        let pic = I8259::new(&machine, IrqLine::new(Arc::new(Intr(bus.clone())), 0));
        let ioapic = Ioapic::new(&machine, &bus);
        let ended = ioapic.clone();
        bus.on_eoi(move |vector| ended.eoi(vector));
        let wires = Arc::new(IsaWires { pic: pic.clone(), ioapic: ioapic.clone() });
        let mut isa: Vec<IrqLine> = (0..16).map(|n| IrqLine::new(wires.clone(), n)).collect();
        let route = LegacyRoute::new(&machine, &mut isa);
        machine.set_isa_irqs(isa);
        let part = |name: &str, create: Create| {
            machine
                .plug_with(name, None, Backends::default(), |s| Ok(create(s)))
                .map_err(|e| std::io::Error::other(format!("{name}: {e}")))
        };
        part("vatpit", Box::new(I8254::create))?;
        let rtc = part("vrtc", Box::new(|s| Mc146818::create(s, 0, Vec::new())))?;
        let pins = (0..32).map(|n| (n, IrqLine::new(ioapic.clone(), u32::from(n)))).collect();
        part("vhpet", Box::new(|s| Hpet::create(s, Hpet::BASE, route, pins)))?;
        let timer = Arc::new(PmTimer(machine.clock().clone()));
        let port = space.add_ports(0, 4, 0, timer, 0, Widths::DWORD);
        space.enable_ports(port, 0x408, true);
        machine.reset(ResetKind::PowerOn);
        machine.clock().resume();
        let callout: Arc<Callout> = Arc::default();
        let told = callout.clone();
        machine.timers.on_earlier(move || told.tell(false));
        let (thread, weak) = (callout.clone(), Arc::downgrade(&machine));
        std::thread::Builder::new().name("vmm-sim".into()).spawn(move || thread.run(&weak))?;
        let pic_lines = (0..16).map(|n| IrqLine::new(pic.clone(), n)).collect();
        let ports = Mutex::new(CpuBus::new(space));
        let pic_asserts = Mutex::new([0; 16]);
        Ok(Chips { machine, bus, ioapic, pic, pic_lines, pic_asserts, rtc, callout, ports })
    }

    /// Counts an assert or deassert of a line of the 8259 pair. Returns the count after it.
    pub(crate) fn pic_count(&self, line: usize, assert: bool) -> i32 {
        let mut counts = self.pic_asserts.lock().unwrap();
        counts[line] += if assert { 1 } else { -1 };
        self.pic_lines[line].set(counts[line] > 0);
        counts[line]
    }

    /// Makes a line of the 8259 pair level or edge triggered.
    pub(crate) fn set_trigger(&self, line: u8, level: bool) {
        let mut ports = self.ports.lock().unwrap();
        let (port, bit) = (0x4d0 + u16::from(line / 8), 1 << (line % 8));
        let old = ports.pio_read(port, 1);
        ports.pio_write(port, 1, if level { old | bit } else { old & !bit });
    }

    fn rtc_state(&self) -> Value {
        self.rtc.with(|d| d.state().save()).unwrap_or_default()
    }

    fn set_rtc_state(&self, state: Value) {
        self.rtc.with(|d| {
            let _ = d.state().load(state);
            d.restored();
        });
    }

    pub(crate) fn nvram(&self, at: usize) -> u8 {
        self.rtc_state()["cmos"][at].as_u64().unwrap_or(0) as u8
    }

    pub(crate) fn set_nvram(&self, at: usize, value: u8) {
        let mut state = self.rtc_state();
        state["cmos"][at] = value.into();
        self.set_rtc_state(state);
    }

    pub(crate) fn time(&self) -> i64 {
        let state = self.rtc_state();
        let gone = self.machine.clock().now().saturating_sub(state["epoch"].as_u64().unwrap_or(0));
        state["base"].as_i64().unwrap_or(0) + (gone / 1_000_000_000) as i64
    }

    pub(crate) fn set_time(&self, seconds: i64) {
        let mut state = self.rtc_state();
        state["base"] = seconds.into();
        state["epoch"] = self.machine.clock().now().into();
        self.set_rtc_state(state);
    }

    /// VM_REINIT: everything but the RTC's memory and time.
    pub(crate) fn reinit(&self) {
        let rtc = self.rtc_state();
        self.machine.reset(ResetKind::System);
        self.ioapic.reset();
        *self.pic_asserts.lock().unwrap() = [0; 16];
        self.pic_lines.iter().for_each(|line| line.set(false));
        self.set_rtc_state(rtc);
        self.bus.lapics().iter().for_each(|l| l.reset());
    }

    /// The low half of the HPET's capability register.
    pub(crate) fn hpet_capabilities(&self) -> u32 {
        Hpet::ID
    }

    /// A device of the kernel's at a guest physical address.
    pub(crate) fn device_read(&self, gpa: u64, width: u8) -> u64 {
        self.ports.lock().unwrap().read(gpa, width)
    }

    pub(crate) fn device_write(&self, gpa: u64, width: u8, value: u64) {
        self.ports.lock().unwrap().write(gpa, width, value);
    }

    /// Reads guest memory; what is not mapped is ones.
    pub(crate) fn read_memory(&self, gpa: u64, buf: &mut [u8]) {
        let mut ports = self.ports.lock().unwrap();
        for (k, byte) in buf.iter_mut().enumerate() {
            let at = gpa + k as u64;
            *byte = match ports.map().ram_for_read(at) {
                Some((ram, _)) => {
                    let mut one = [0];
                    ports.ram().read(ram, &mut one);
                    one[0]
                }
                None => 0xff,
            };
        }
    }

    /// Whether there is memory at an address.
    pub(crate) fn is_memory(&self, gpa: u64) -> bool {
        self.ports.lock().unwrap().map().ram_for_read(gpa & !(PAGE_SIZE - 1)).is_some()
    }

    /// Writes guest memory.
    pub(crate) fn write_memory(&self, gpa: u64, data: &[u8]) {
        let mut ports = self.ports.lock().unwrap();
        for (k, byte) in data.iter().enumerate() {
            ports.write(gpa + k as u64, 1, u64::from(*byte));
        }
    }
}

impl Drop for Chips {
    fn drop(&mut self) {
        self.callout.tell(true);
    }
}
