//! A back end without a processor: it plays the instructions of a [`Listing`] by their meaning. It is there for what
//! the suite says of everything around a processor: threads, kicks, the pause barrier, memory that is mapped and
//! unmapped by a listener, refusal of state. Memory it reaches only through the slots that it was told of, as a kernel
//! would.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use cpu::{Fault, Regs, Segment, Table};
use emu::{CpuBus, IrqSink, Machine, MsiSink, NoMsi, Ram, RamAddr};
use serde_json::Value;

use crate::conformance::listing::{AX, CX, DI, DX, Listing, Op, SI, SP};
use crate::{Ack, Caps, Exit, Hypervisor, Lacking, MemoryMap, PageTables, Slot, Vcpu, Vm, VmConfig};

/// The mock.
pub(crate) struct Mock {
    /// What it plays.
    pub(crate) listing: Listing,
    /// All processors on one thread.
    pub(crate) one_thread: bool,
    /// Fields that it pretends to have no access to.
    pub(crate) lacks: &'static [&'static str],
}

impl Hypervisor for Mock {
    fn name(&self) -> &'static str {
        "mock"
    }

    fn available(&self) -> Result<String, String> {
        Ok("for tests".to_owned())
    }

    fn create(&self, machine: &Arc<Machine>, config: &VmConfig) -> anyhow::Result<Arc<dyn Vm>> {
        let memory = Arc::new(MemoryMap::new(Mapped::default(), machine.space.ram().clone()));
        machine.space.add_listener(memory.clone());
        let shared = Arc::new(Shared {
            memory,
            kicks: (0..config.cpus).map(|_| AtomicBool::new(false)).collect(),
            pins: [AtomicBool::new(false), AtomicBool::new(false)],
            ack: OnceLock::new(),
            wake: OnceLock::new(),
            one_thread: self.one_thread,
        });
        let listing = Arc::new(self.listing.clone());
        let vcpus = (0..config.cpus).map(|index| {
            let bus = CpuBus::new(machine.space.clone());
            let (listing, shared) = (listing.clone(), shared.clone());
            let mut vcpu = MockVcpu { index, regs: Regs::default(), bus, listing, shared, lacks: self.lacks };
            vcpu.reset();
            Box::new(vcpu) as Box<dyn Vcpu>
        });
        Ok(Arc::new(MockVm { vcpus: Mutex::new(vcpus.collect()), shared }))
    }
}

/// The slots that are mapped, checked as a kernel checks them.
#[derive(Default)]
struct Mapped(Mutex<Vec<Slot>>);

impl PageTables for Mapped {
    fn map(&self, slot: &Slot) {
        let mut slots = self.0.lock().unwrap();
        assert!(slots.iter().all(|s| s.gpa + s.len <= slot.gpa || slot.gpa + slot.len <= s.gpa), "{slot:?} overlaps");
        slots.push(*slot);
    }

    fn unmap(&self, slot: &Slot) {
        let mut slots = self.0.lock().unwrap();
        let n = slots.iter().position(|s| (s.gpa, s.len, s.ram) == (slot.gpa, slot.len, slot.ram));
        slots.remove(n.expect("a slot that is mapped"));
    }

    // Writes below go through `Ram::write`, which logs.
    fn log(&self, _: &Slot, _: &Ram) {}
}

struct Shared {
    memory: Arc<MemoryMap<Mapped>>,
    kicks: Vec<AtomicBool>,
    /// INTR, NMI.
    pins: [AtomicBool; 2],
    ack: OnceLock<Ack>,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
    one_thread: bool,
}

impl Shared {
    fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }
}

impl IrqSink for Shared {
    fn set_irq(&self, line: u32, level: bool) {
        self.pins[line as usize].store(level, Ordering::SeqCst);
        self.wake();
    }
}

struct MockVm {
    vcpus: Mutex<Vec<Box<dyn Vcpu>>>,
    shared: Arc<Shared>,
}

impl Vm for MockVm {
    fn caps(&self) -> Caps {
        Caps { one_thread: self.shared.one_thread, ..Caps::default() }
    }

    fn take_vcpus(&self) -> Vec<Box<dyn Vcpu>> {
        std::mem::take(&mut self.vcpus.lock().unwrap())
    }

    fn msi(&self) -> Arc<dyn MsiSink> {
        Arc::new(NoMsi)
    }

    fn pins(&self) -> Arc<dyn IrqSink> {
        self.shared.clone()
    }

    fn on_ack(&self, ack: Ack) {
        let _ = self.shared.ack.set(ack);
    }

    fn on_eoi(&self, _: Box<dyn Fn(u8) + Send + Sync>) {}

    fn set_a20(&self, _: bool) {}

    fn kick(&self, vcpu: u32) {
        self.shared.kicks[vcpu as usize].store(true, Ordering::SeqCst);
        self.shared.wake();
    }

    fn on_wake(&self, wake: Box<dyn Fn() + Send + Sync>) {
        let _ = self.shared.wake.set(wake);
    }
}

struct MockVcpu {
    index: u32,
    regs: Regs,
    bus: CpuBus,
    listing: Arc<Listing>,
    shared: Arc<Shared>,
    lacks: &'static [&'static str],
}

const IF: u64 = 1 << 9;

impl MockVcpu {
    /// Where `width` bytes at `gpa` lie in the arena, if they need no exit.
    fn slot(&self, gpa: u64, width: u8, write: bool) -> Option<RamAddr> {
        let slots = self.shared.memory.tables().0.lock().unwrap();
        let s = slots.iter().find(|s| s.gpa <= gpa && gpa + u64::from(width) <= s.gpa + s.len)?;
        (s.writable || !write).then(|| RamAddr(s.ram.0 + (gpa - s.gpa)))
    }

    fn load(&mut self, gpa: u64, width: u8) -> u64 {
        let Some(at) = self.slot(gpa, width, false) else { return self.bus.read(gpa, width) };
        let mut buf = [0; 8];
        self.bus.ram().read(at, &mut buf[..usize::from(width)]);
        u64::from_le_bytes(buf)
    }

    fn store(&mut self, gpa: u64, width: u8, value: u64) {
        match self.slot(gpa, width, true) {
            Some(at) => self.bus.ram().write(at, &value.to_le_bytes()[..usize::from(width)]),
            None => self.bus.write(gpa, width, value),
        }
    }

    fn merge(&mut self, reg: usize, width: u8, value: u64) {
        let mask = u64::MAX >> (64 - 8 * u32::from(width));
        self.regs.gpr[reg] = self.regs.gpr[reg] & !mask | value & mask;
    }

    fn push(&mut self, value: u64) {
        let sp = (self.regs.gpr[SP] as u16).wrapping_sub(2);
        self.merge(SP, 2, u64::from(sp));
        self.store(self.regs.ss.base + u64::from(sp), 2, value);
    }

    fn pop(&mut self) -> u64 {
        let sp = self.regs.gpr[SP] as u16;
        self.merge(SP, 2, u64::from(sp.wrapping_add(2)));
        self.load(self.regs.ss.base + u64::from(sp), 2)
    }

    fn set_cs(&mut self, selector: u16) {
        (self.regs.cs.selector, self.regs.cs.base) = (selector, u64::from(selector) << 4);
    }

    /// Goes to the handler of a vector, as real mode does. False: triple fault.
    fn enter(&mut self, vector: u8) -> bool {
        self.regs.halted = false;
        if u32::from(self.regs.idtr.limit) < u32::from(vector) * 4 + 3 {
            return false;
        }
        self.push(self.regs.rflags);
        self.push(u64::from(self.regs.cs.selector));
        self.push(self.regs.rip);
        self.regs.rflags &= !IF;
        let entry = self.load(self.regs.idtr.base + u64::from(vector) * 4, 4);
        self.set_cs((entry >> 16) as u16);
        self.regs.rip = entry & 0xffff;
        true
    }

    /// What waits between two instructions.
    fn boundary(&mut self) -> Option<Exit> {
        let shadow = std::mem::take(&mut self.regs.shadow);
        let fault = || Some(Exit::TripleFault("the mock cannot deliver".to_owned()));
        if let Some(exception) = self.regs.exception.take() {
            if !self.enter(exception.vector) {
                return fault();
            }
        } else if self.regs.nmi_pending && !self.regs.nmi_blocked && !shadow {
            (self.regs.nmi_pending, self.regs.nmi_blocked) = (false, true);
            if !self.enter(2) {
                return fault();
            }
        } else if self.regs.rflags & IF != 0 && !shadow && self.index == 0 && self.shared.pins[0].load(Ordering::SeqCst)
        {
            let vector = self.shared.ack.get().map_or(0xff, |ack| ack());
            if !self.enter(vector) {
                return fault();
            }
        }
        self.regs.halted.then_some(Exit::Halted)
    }

    fn step(&mut self) -> Option<Exit> {
        let at = self.regs.cs.base + self.regs.rip;
        let Some(&(op, len)) = self.listing.ops.get(&(at as u32)) else {
            return Some(Exit::Failed(format!("nothing is written for {at:#x}")));
        };
        self.regs.rip = (self.regs.rip + u64::from(len)) & 0xffff;
        let ds = self.regs.ds.base;
        let dx = self.regs.gpr[DX] as u16;
        match op {
            Op::Mov(r, value) => self.merge(r, 2, u64::from(value)),
            Op::SetDs => {
                let ax = self.regs.gpr[AX] as u16;
                (self.regs.ds.selector, self.regs.ds.base) = (ax, u64::from(ax) << 4);
            }
            Op::Load(offset, width) => {
                let value = self.load(ds + u64::from(offset), width);
                self.merge(AX, width, value);
            }
            Op::Store(offset, width) => self.store(ds + u64::from(offset), width, self.regs.gpr[AX]),
            Op::Inc(offset) => {
                let value = self.load(ds + u64::from(offset), 1);
                self.store(ds + u64::from(offset), 1, value + 1);
            }
            Op::In(width) => {
                let value = self.bus.pio_read(dx, width);
                self.merge(AX, width, u64::from(value));
            }
            Op::Out(width) => {
                let mask = u32::MAX >> (32 - 8 * u32::from(width));
                self.bus.pio_write(dx, width, self.regs.gpr[AX] as u32 & mask);
            }
            Op::RepIn => {
                let mut buf = vec![0; usize::from(self.regs.gpr[CX] as u16)];
                self.bus.pio_read_many(dx, 1, &mut buf);
                for byte in buf {
                    let di = self.regs.gpr[DI] as u16;
                    self.store(self.regs.es.base + u64::from(di), 1, u64::from(byte));
                    self.merge(DI, 2, u64::from(di.wrapping_add(1)));
                }
                self.merge(CX, 2, 0);
            }
            Op::RepOut => {
                let (si, n) = (self.regs.gpr[SI] as u16, self.regs.gpr[CX] as u16);
                let data: Vec<u8> = (0..n).map(|i| self.load(ds + u64::from(si.wrapping_add(i)), 1) as u8).collect();
                self.bus.pio_write_many(dx, 1, &data);
                self.merge(SI, 2, u64::from(si.wrapping_add(n)));
                self.merge(CX, 2, 0);
            }
            Op::If(on) => {
                self.regs.shadow = on && self.regs.rflags & IF == 0;
                self.regs.rflags = self.regs.rflags & !IF | if on { IF } else { 0 };
            }
            Op::Hlt => self.regs.halted = true,
            Op::Jump(to) => self.regs.rip = u64::from(to),
            Op::Iret => {
                self.regs.rip = self.pop();
                let cs = self.pop();
                self.set_cs(cs as u16);
                self.regs.rflags = self.pop();
                self.regs.nmi_blocked = false;
            }
        }
        None
    }
}

impl Vcpu for MockVcpu {
    fn index(&self) -> u32 {
        self.index
    }

    fn run(&mut self, insns: u64) -> Exit {
        for _ in 0..insns {
            if self.shared.kicks[self.index as usize].swap(false, Ordering::SeqCst) {
                return Exit::Kicked;
            }
            if self.regs.wait_sipi {
                return Exit::Halted;
            }
            if let Some(exit) = self.boundary().or_else(|| self.step()) {
                return exit;
            }
        }
        Exit::Slice
    }

    fn dead(&self) -> bool {
        self.regs.wait_sipi || self.regs.halted && self.regs.rflags & IF == 0
    }

    fn debug(&mut self, _: Option<&crate::Debug>) -> anyhow::Result<()> {
        Ok(())
    }

    fn lacks(&self) -> &'static [&'static str] {
        self.lacks
    }

    fn regs(&self) -> anyhow::Result<Regs> {
        Ok(self.regs.clone())
    }

    fn set_regs(&mut self, regs: &Regs) -> anyhow::Result<()> {
        Lacking::check("mock", self.lacks, &self.regs, regs)?;
        self.regs = regs.clone();
        Ok(())
    }

    fn reset(&mut self) {
        self.regs = Regs { wait_sipi: self.index > 0, ..power_on() };
    }

    fn inject(&mut self, exception: Fault) -> anyhow::Result<()> {
        anyhow::ensure!(self.regs.exception.is_none(), "an exception waits");
        self.regs.exception = Some(exception);
        Ok(())
    }

    fn nmi(&mut self) {
        self.regs.nmi_pending = true;
        self.shared.wake();
    }

    fn init(&mut self) {
        self.reset();
        self.shared.wake();
    }

    fn sipi(&mut self, vector: u8) {
        if std::mem::take(&mut self.regs.wait_sipi) {
            self.set_cs(u16::from(vector) << 8);
            self.regs.rip = 0;
            self.shared.wake();
        }
    }

    fn icount(&self) -> Option<u64> {
        None
    }

    fn save(&self) -> anyhow::Result<Value> {
        if !self.lacks.is_empty() {
            return Err(Lacking { backend: "mock", fields: self.lacks.to_vec() }.into());
        }
        Ok(serde_json::to_value(&self.regs)?)
    }

    fn load(&mut self, state: Value) -> anyhow::Result<()> {
        self.regs = serde_json::from_value(state)?;
        Ok(())
    }
}

/// What matters of a processor at power-on here.
fn power_on() -> Regs {
    let data = Segment { selector: 0, base: 0, limit: 0xffff, access: 0x93 };
    Regs {
        rip: 0xfff0,
        rflags: 2,
        cr0: 0x10,
        cs: Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, access: 0x9b },
        ss: data,
        ds: data,
        es: data,
        idtr: Table { base: 0, limit: 0xffff },
        fx: vec![0; 512],
        ..Regs::default()
    }
}
