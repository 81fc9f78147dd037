//! A machine without a processor, for the tests of a device: bus, RAM, a clock turned by hand, and interrupt wires that
//! remember.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::backend::{Disk, DiskOp, DiskRequest, Listener, Net};
use crate::bus::CpuBus;
use crate::clock::Clock;
use crate::completion::Ticket;
use crate::device::{Backends, Device, DeviceCell, Event, Machine, Model, Params, Slot, SystemEvent};
use crate::dma::DmaMem;
use crate::irq::{IrqLine, IrqSink, MsiSink};
use crate::pci::Bdf;
use crate::ram::Ram;
use crate::space::{Access, AddressSpace, Backing, Rights};

/// Marsaglia's xorshift64*, for tests that do at random what a guest may do.
pub struct Rng(pub u64);

impl Rng {
    /// One of seed `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n.max(1)
    }

    /// One of `from`.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Now and then.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// What guests write: often nothing, everything, a single bit or a small number.
    pub fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => self.below(16) as u64,
            4 => self.below(64) as u64,
            5 => self.below(256) as u64,
            _ => self.next(),
        }
    }

    /// The width of an access, `max` bytes at most.
    pub fn width(&mut self, max: u8) -> u8 {
        [1, 1, 2, 4, 8][self.below(5)].min(max)
    }
}

/// How many random streams such a test takes: `BHYVE_RS_FUZZ_CASES`, or few enough for every run.
pub fn fuzz_cases() -> u64 {
    std::env::var("BHYVE_RS_FUZZ_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(50)
}

/// Tells where a test of random accesses was when it panics.
pub struct Place(pub String);

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("while: {}", self.0);
        }
    }
}

/// An owner of regions that reads as 0.
pub struct Nobody;

impl Access for Nobody {
    fn owner(&self) -> &str {
        "nobody"
    }

    fn read(&self, _: u32, _: u64, _: u8) -> u64 {
        0
    }

    fn write(&self, _: u32, _: u64, _: u8, _: u64) {}
}

/// What the recording interrupt chip saw: of each line the level, and how often it went up.
#[derive(Default)]
pub struct Wires(Mutex<[(bool, usize); 32]>);

impl IrqSink for Wires {
    fn set_irq(&self, line: u32, level: bool) {
        let mut lines = self.0.lock().unwrap();
        let (now, ups) = &mut lines[line as usize];
        *now = level;
        *ups += usize::from(level);
    }
}

/// What the recording message sink saw.
#[derive(Default)]
pub struct Messages(Mutex<Vec<(u64, u32)>>);

impl MsiSink for Messages {
    fn msi(&self, addr: u64, data: u32) {
        self.0.lock().unwrap().push((addr, data));
    }
}

impl Messages {
    /// The messages since the last call.
    pub fn take(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A disk in memory, for the tests of controllers: clones are handles on one disk.
#[derive(Clone)]
pub struct BenchDisk(Arc<Mutex<DiskInner>>);

struct DiskInner {
    ram: Arc<Ram>,
    bytes: Vec<u8>,
    read_only: bool,
    broken: bool,
    /// While it is held, what was asked for; answered at once otherwise.
    held: Option<Vec<(DiskRequest, Ticket)>>,
    flushes: usize,
    discards: Vec<(u64, u64)>,
}

impl BenchDisk {
    /// A disk with these contents that moves data from and to the memory of `bench`.
    pub fn new(bench: &Bench, bytes: Vec<u8>) -> BenchDisk {
        let ram = bench.machine.space.ram().clone();
        BenchDisk(Arc::new(Mutex::new(DiskInner {
            ram,
            bytes,
            read_only: false,
            broken: false,
            held: None,
            flushes: 0,
            discards: Vec::new(),
        })))
    }

    fn inner(&self) -> MutexGuard<'_, DiskInner> {
        self.0.lock().unwrap()
    }

    /// Refuses writes from now on.
    pub fn protect(&self) {
        self.inner().read_only = true;
    }

    /// Fails all requests, or no longer.
    pub fn set_broken(&self, broken: bool) {
        self.inner().broken = broken;
    }

    /// Keeps requests until [`BenchDisk::release`].
    pub fn hold(&self) {
        self.inner().held = Some(Vec::new());
    }

    /// Answers what was held, and all that comes.
    pub fn release(&self) {
        let held = self.inner().held.take();
        held.into_iter().flatten().for_each(|(request, ticket)| self.serve(request, ticket));
    }

    /// What is on it.
    pub fn bytes(&self) -> Vec<u8> {
        self.inner().bytes.clone()
    }

    /// Replaces what is on it, which may change its size.
    pub fn set_bytes(&self, bytes: Vec<u8>) {
        self.inner().bytes = bytes;
    }

    /// How often it was flushed since the last call.
    pub fn flushes(&self) -> usize {
        std::mem::take(&mut self.inner().flushes)
    }

    /// What was discarded since the last call: offset and length, in bytes.
    pub fn discards(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.inner().discards)
    }

    fn serve(&self, request: DiskRequest, ticket: Ticket) {
        let answer = self.inner().attempt(request);
        ticket.finish(answer.is_some(), answer.unwrap_or_default());
    }
}

impl DiskInner {
    /// `None`: it failed.
    fn attempt(&mut self, request: DiskRequest) -> Option<Vec<u8>> {
        if self.broken {
            return None;
        }
        let mut at = usize::try_from(request.offset).ok()?;
        match request.op {
            DiskOp::Read(iov) => {
                for (addr, len) in iov.parts() {
                    self.ram.write(*addr, self.bytes.get(at..at + *len as usize)?);
                    at += *len as usize;
                }
            }
            DiskOp::Write(iov) => {
                for (addr, len) in iov.parts() {
                    self.ram.read(*addr, self.bytes.get_mut(at..at + *len as usize)?);
                    at += *len as usize;
                }
            }
            DiskOp::ReadBytes(len) => return Some(self.bytes.get(at..at + len as usize)?.to_vec()),
            DiskOp::WriteBytes(data) => self.bytes.get_mut(at..at + data.len())?.copy_from_slice(&data),
            DiskOp::Flush => self.flushes += 1,
            DiskOp::Discard(len) => self.discards.push((request.offset, len)),
        }
        Some(Vec::new())
    }
}

impl Disk for BenchDisk {
    fn size(&self) -> u64 {
        self.inner().bytes.len() as u64
    }

    fn read_only(&self) -> bool {
        self.inner().read_only
    }

    fn submit(&mut self, request: DiskRequest, ticket: Ticket) {
        if let Some(held) = &mut self.inner().held {
            return held.push((request, ticket));
        }
        self.serve(request, ticket);
    }

    fn cancel(&mut self) {
        let dropped = self.inner().held.as_mut().map(std::mem::take);
        drop(dropped);
    }

    fn share(&self) -> Box<dyn Disk> {
        Box::new(self.clone())
    }
}

/// The far end of a cable: keeps what the card sends, and puts frames on it.
#[derive(Clone, Default)]
pub struct BenchNet(Arc<Mutex<NetInner>>);

#[derive(Default)]
struct NetInner {
    sent: Vec<Vec<u8>>,
    card: Option<Weak<dyn Listener>>,
    /// As on the host: nothing comes before the card has said that it wants frames.
    wanted: bool,
}

impl BenchNet {
    fn inner(&self) -> MutexGuard<'_, NetInner> {
        self.0.lock().unwrap()
    }

    /// What the card has sent since the last call.
    pub fn sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.inner().sent)
    }

    /// Whether the card wants frames.
    pub fn ready(&self) -> bool {
        self.inner().wanted
    }

    /// Puts a frame on the cable if the card wants any, and says so.
    pub fn put(&self, frame: &[u8]) -> bool {
        // Two statements: the lock of the first would last to the end of a common one.
        let card = self.inner().card.clone();
        let ready = self.ready();
        if ready && let Some(card) = card.and_then(|card| card.upgrade()) {
            card.event(Event::Frame(frame.to_vec()));
        }
        ready
    }

    /// Plugs or pulls the cable.
    pub fn link(&self, up: bool) {
        let card = self.inner().card.clone();
        if let Some(card) = card.and_then(|card| card.upgrade()) {
            card.event(Event::Link(up));
        }
    }
}

impl Net for BenchNet {
    fn send(&mut self, frame: &[u8]) {
        self.inner().sent.push(frame.to_vec());
    }

    fn attach(&mut self, to: Weak<dyn Listener>) {
        self.inner().card = Some(to);
    }

    fn want(&mut self, ready: bool) {
        self.inner().wanted = ready;
    }
}

/// The bench: ISA wires are lines 0 to 15, the PCI pins A to D lines 16 to 19, of every slot alike.
pub struct Bench {
    /// The machine that devices are plugged into.
    pub machine: Arc<Machine>,
    /// The bus as a processor sees it.
    pub bus: CpuBus,
    wires: Arc<Wires>,
    messages: Arc<Messages>,
    system: Arc<Mutex<Vec<SystemEvent>>>,
}

impl Default for Bench {
    fn default() -> Bench {
        Bench::new()
    }
}

impl Bench {
    /// Bytes of RAM, from address 0.
    pub const RAM: u64 = 1 << 20;

    /// An empty bench.
    ///
    /// # Panics
    /// When the host has no memory.
    pub fn new() -> Bench {
        Bench::with_clock(Clock::manual())
    }

    /// An empty bench with a clock that is not real.
    ///
    /// # Panics
    /// When the host has no memory.
    pub fn with_clock(clock: Arc<Clock>) -> Bench {
        let ram = Arc::new(Ram::new(64 << 20).expect("address space"));
        let block = ram.alloc("ram", Bench::RAM).expect("memory");
        let space = AddressSpace::new(ram);
        let id = space.add_memory(0, Bench::RAM, 0, Rights::ReadWrite, Backing::Ram(block.start));
        space.enable(id, 0, true);
        let machine = Machine::new(space.clone(), clock);
        let wires: Arc<Wires> = Arc::default();
        machine.set_isa_irqs((0..16).map(|n| IrqLine::new(wires.clone(), n)).collect());
        let pins: Vec<IrqLine> = (16..20).map(|n| IrqLine::new(wires.clone(), n)).collect();
        machine.pci.set_routing(Box::new(move |_, pin| pins[pin as usize].clone()));
        let messages: Arc<Messages> = Arc::default();
        machine.set_msi(messages.clone());
        let system: Arc<Mutex<Vec<SystemEvent>>> = Arc::default();
        let log = system.clone();
        machine.on_system(move |e| log.lock().unwrap().push(e));
        Bench { bus: CpuBus::new(space), machine, wires, messages, system }
    }

    /// Plugs a device of `model` in, as PCI function 0:3:0 if it is one.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn plug(&self, model: &Model, params: &Params, backends: Backends) -> Arc<DeviceCell> {
        self.machine.plug(model, model.name, Some(Bdf::new(3, 0)), params, backends).expect("device")
    }

    /// Plugs a part of the board in; the first is called "part".
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn part(&self, create: impl FnOnce(&mut Slot) -> Box<dyn Device>) -> Arc<DeviceCell> {
        let name = match self.machine.parts().len() {
            0 => "part".to_owned(),
            n => format!("part-{n}"),
        };
        self.machine
            .plug_with(&name, Some(Bdf::new(3, 0)), Backends::default(), |slot| Ok(create(slot)))
            .expect("device")
    }

    /// All of guest memory, bus mastering on.
    pub fn dma(&self) -> DmaMem {
        DmaMem::new(self.machine.space.clone(), Arc::new(AtomicBool::new(true)))
    }

    /// Moves the clock on by `ns` nanoseconds, stopping at each timer on the way.
    pub fn advance(&self, ns: u64) {
        let clock = self.machine.clock();
        let end = clock.now() + ns;
        loop {
            let next = self.machine.timers.next();
            if next > end {
                break;
            }
            clock.set(next.max(clock.now()));
            self.machine.timers.run_due();
        }
        clock.set(end);
    }

    /// The level of a wire.
    pub fn irq(&self, line: u32) -> bool {
        self.wires.0.lock().unwrap()[line as usize].0
    }

    /// How often a wire went up since the last call for it.
    pub fn edges(&self, line: u32) -> usize {
        std::mem::take(&mut self.wires.0.lock().unwrap()[line as usize].1)
    }

    /// The messages sent since the last call.
    pub fn messages(&self) -> Vec<(u64, u32)> {
        self.messages.take()
    }

    /// The requests to the machine since the last call.
    pub fn system_events(&self) -> Vec<SystemEvent> {
        std::mem::take(&mut self.system.lock().unwrap())
    }

    /// Writes a byte to a port.
    pub fn outb(&mut self, port: u16, value: u8) {
        self.bus.pio_write(port, 1, u32::from(value));
    }

    /// Reads a byte from a port.
    pub fn inb(&mut self, port: u16) -> u8 {
        self.bus.pio_read(port, 1) as u8
    }

    /// The configuration space of the device in slot 3.
    pub fn config_read(&self, offset: u16, width: u8) -> u32 {
        self.machine.pci.read(Bdf::new(3, 0), offset, width)
    }

    /// Writes it.
    pub fn config_write(&self, offset: u16, width: u8, value: u32) {
        self.machine.pci.write(Bdf::new(3, 0), offset, width, value);
    }
}
