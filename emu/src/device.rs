//! What a device is, and how it comes into a machine.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::{Capture, Chardev, Disk, Evdev, InputEvent, Keys, Net, Playback, Pointer, Share, Unit};
use crate::clock::{Clock, Timer, TimerSink, Timers};
use crate::completion::{DiskPort, Queue, SavedAnswer, SharePort};
use crate::display::Display;
use crate::dma::DmaMem;
use crate::irq::{IrqLine, MsiSink, NoMsi};
use crate::pci::{self, Bar, BarKind, Bdf, Msi, Msix, PciBus, PciFunction, PciIds, Pin};
use crate::ram::RamBlock;
use crate::random::Random;
use crate::space::{Access, AddressSpace, Backing, Doorbell, RegionId, Rights, Widths};

/// What happened to a device, other than a guest's access.
#[derive(Debug)]
pub enum Event {
    /// The timer of this number is due.
    Timer(u32),
    /// A disk request is finished.
    Done(crate::backend::Completion),
    /// What was finished has been told: one interrupt may stand for all of it.
    AllDone,
    /// The medium of the disk of this unit was changed or taken out, by somebody outside the machine.
    Medium(usize),
    /// Bytes came in at the character backend of this number.
    Chars(usize, Vec<u8>),
    /// The character backend of this number, which was full, takes bytes again.
    CharsReady(usize),
    /// Somebody is at the other end of the character backend of this number (true), or nobody.
    CharsOpen(usize, bool),
    /// A break came in on a serial line.
    Break,
    /// A frame came in from the wire.
    Frame(Vec<u8>),
    /// One came for which this is left to do; only for cards that asked for them ([`crate::backend::Net::partial`]).
    Partial(Vec<u8>, crate::backend::Offload),
    /// The wire was plugged (true) or pulled.
    Link(bool),
    /// A doorbell at `offset` of region `region` rang, once or more often.
    Doorbell(u32, u64),
    /// A key went down or up: its set-1 scan code, E0 codes with bit 8, and 245 for Pause.
    Key(u16, bool),
    /// The pointer moved by (x right, y up, wheel) with these buttons down.
    Pointer(i32, i32, i32, u8),
    /// The pointer is at (x, y) on the screen, from 0 at the left and at the top to 32767; wheel and buttons as above.
    PointerAt(u16, u16, i32, u8),
    /// An input device of the host said this.
    Input(Vec<InputEvent>),
    /// The power button was pressed.
    PowerButton,
    /// FERR# of processor 0 rose: the x87 has an error, and CR0.NE is 0.
    Ferr,
}

/// Why a device is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKind {
    /// Power came on.
    PowerOn,
    /// The reset line: what has a battery or survives PCIRST# stays.
    System,
}

/// The guest-visible state of a device: one plain struct, power-on values in its `Default`.
pub trait State {
    /// As a JSON value.
    fn save(&self) -> Value;
    /// From one.
    ///
    /// # Errors
    /// When the value does not have the shape of the state.
    fn load(&mut self, value: Value) -> Result<(), String>;
}

impl<T: Serialize + DeserializeOwned> State for T {
    fn save(&self) -> Value {
        serde_json::to_value(self).expect("device state has only string keys")
    }

    fn load(&mut self, value: Value) -> Result<(), String> {
        *self = serde_json::from_value(value).map_err(|e| e.to_string())?;
        Ok(())
    }
}

/// A device. It runs only under a guest's access, a timer or a backend event, and the framework serialises the three.
///
/// Guest accesses have no result type: a guest's bad access is not our error. `region` is the number that the device
/// gave the region when it declared it; `width` is 1, 2, 4 or 8 bytes.
pub trait Device: Send {
    /// A read; the default is what an empty bus gives.
    fn read(&mut self, _region: u32, _offset: u64, _width: u8) -> u64 {
        u64::MAX
    }

    /// A write.
    fn write(&mut self, _region: u32, _offset: u64, _width: u8, _value: u64) {}

    /// `buf.len() / width` reads of one place (REP INS, data ports).
    fn read_many(&mut self, region: u32, offset: u64, width: u8, buf: &mut [u8]) {
        for item in buf.chunks_exact_mut(width as usize) {
            item.copy_from_slice(&self.read(region, offset, width).to_le_bytes()[..width as usize]);
        }
    }

    /// `data.len() / width` writes of one place.
    fn write_many(&mut self, region: u32, offset: u64, width: u8, data: &[u8]) {
        for item in data.chunks_exact(width as usize) {
            let mut value = [0; 8];
            value[..item.len()].copy_from_slice(item);
            self.write(region, offset, width, u64::from_le_bytes(value));
        }
    }

    /// A timer, a backend or the wire.
    fn event(&mut self, _event: Event) {}

    /// The guest wrote `width` bytes at `offset` of configuration space; the register already holds the new value.
    fn config_write(&mut self, _offset: u16, _width: u8) {}

    /// The guest is about to read `width` bytes at `offset` of configuration space, at a register for which
    /// [`PciFunction::ask_before`] was called: the last moment to set it.
    fn config_read(&mut self, _offset: u16, _width: u8) {}

    /// Its screen, if it has one.
    fn display(&mut self) -> Option<&mut dyn Display> {
        None
    }

    /// Goes back to the power-on state, wires and timers included.
    fn reset(&mut self, kind: ResetKind);

    /// The state to save, load and show.
    fn state(&mut self) -> &mut dyn State;

    /// The version of the saved form; raise it when the shape changes.
    fn version(&self) -> u32 {
        1
    }

    /// The state was loaded: put what hangs on it (region kinds, derived caches) in order. The framework has already
    /// set wires, timers and PCI configuration as they were.
    fn restored(&mut self) {}
}

thread_local! {
    static HELD: Cell<bool> = const { Cell::new(false) };
    static WAITING: Cell<bool> = const { Cell::new(false) };
    static UNLOCKED: RefCell<Vec<Box<dyn FnOnce()>>> = const { RefCell::new(Vec::new()) };
}

/// Whether this thread holds a device's lock.
pub(crate) fn holds_device() -> bool {
    HELD.get()
}

/// Runs `f` as soon as this thread holds no device's lock. Waking a thread takes long enough for it to come and wait
/// for the lock that is still held, so whoever asks another thread for something on behalf of a device does that here.
/// `f` must not touch a device.
pub fn when_unlocked(f: impl FnOnce() + 'static) {
    if !holds_device() {
        return f();
    }
    UNLOCKED.with_borrow_mut(|waiting| waiting.push(Box::new(f)));
    WAITING.set(true);
}

/// Runs what waits for the lock's end. Also for those who wait, with the lock held, for what it starts.
#[cold]
pub(crate) fn unlocked() {
    WAITING.set(false);
    UNLOCKED.take().into_iter().for_each(|f| f());
}

/// The present thread takes a device lock. Debug builds see that it holds none.
struct OneLock;

impl OneLock {
    fn take() -> OneLock {
        let held = HELD.replace(true);
        debug_assert!(!held, "a thread took a second device lock");
        OneLock
    }
}

impl Drop for OneLock {
    /// Locals go in reverse order, so that the lock is gone by now.
    fn drop(&mut self) {
        HELD.set(false);
        if WAITING.get() {
            unlocked();
        }
    }
}

/// Levels of wires as they are saved.
pub type IrqSaved = Vec<bool>;

/// A component as it is saved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// [`Device::version`].
    pub version: u32,
    /// [`Device::state`].
    pub state: Value,
    /// PCI configuration, if it is a PCI function.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub pci: Value,
    /// Levels of its interrupt outputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub irqs: IrqSaved,
    /// Deadlines of its timers, then of its doorbells that rang and were not heard, nanoseconds of guest time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timers: Vec<Option<u64>>,
    /// Of each of its disks, and its share, the answers that have not reached it yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Vec<SavedAnswer>>,
}

/// A part of the machine that is reset and saved: a device in its cell, or a leaf chip.
pub trait DeviceState: Send + Sync {
    /// Its name, unique in the machine.
    fn name(&self) -> &str;
    /// Hears what the guest did before this and it was not told of yet. Comes before a reset.
    fn drain(&self) {}
    /// The power-on state.
    fn reset(&self, kind: ResetKind);
    /// What it needs to go on elsewhere.
    fn save(&self) -> Saved;
    /// Takes over a saved state.
    ///
    /// # Errors
    /// When version or shape do not fit.
    fn load(&self, saved: Saved) -> Result<(), String>;
}

#[derive(Default)]
struct Wires {
    pci: Option<Arc<PciFunction>>,
    irqs: Vec<Arc<IrqLine>>,
    timers: Vec<Arc<Timer>>,
    bells: Vec<Arc<Bell>>,
    disks: Vec<Arc<Queue>>,
    /// The device's own numbers of its regions, what they are in the address space, and whether they are ports.
    regions: Vec<(u32, RegionId, bool)>,
}

impl Wires {
    /// Everything with a deadline: the timers, then the doorbells.
    fn timers(&self) -> impl Iterator<Item = &Timer> {
        self.timers.iter().map(|t| &**t).chain(self.bells.iter().map(|b| b.timer()))
    }
}

/// A doorbell. In real time the device hears it at once, on the thread that rings. By the instruction clock, or when
/// the machine is paused, one that was rung is a timer that is due, so that pausing and saving need nothing of their
/// own.
struct Bell {
    cell: Weak<DeviceCell>,
    region: u32,
    offset: u64,
    timer: OnceLock<Timer>,
}

impl Bell {
    fn timer(&self) -> &Timer {
        self.timer.get().expect("set when it was made")
    }

    fn ring(&self) {
        if self.timer().at_once(&|| self.fire(0)) {
            return;
        }
        // One that waits to be heard keeps its time, or a guest that rings without end would never be heard.
        if self.timer().deadline().is_none() {
            self.timer().set(self.timer().now());
        }
    }
}

impl TimerSink for Bell {
    fn fire(&self, _: u32) {
        if let Some(cell) = self.cell.upgrade() {
            cell.event(Event::Doorbell(self.region, self.offset));
        }
    }
}

/// A device behind its lock.
pub struct DeviceCell {
    name: String,
    device: Mutex<Option<Box<dyn Device>>>,
    wires: OnceLock<Wires>,
}

impl DeviceCell {
    /// Runs `f` on the device under its lock.
    pub fn with<T>(&self, f: impl FnOnce(&mut dyn Device) -> T) -> Option<T> {
        let _one = OneLock::take();
        let mut device = self.device.lock().unwrap();
        device.as_mut().map(|d| f(d.as_mut()))
    }

    /// Hands an event to the device.
    pub fn event(&self, event: Event) {
        self.with(|d| d.event(event));
    }
}

impl Access for DeviceCell {
    fn owner(&self) -> &str {
        &self.name
    }

    fn read(&self, region: u32, offset: u64, width: u8) -> u64 {
        self.with(|d| d.read(region, offset, width)).unwrap_or(u64::MAX)
    }

    fn write(&self, region: u32, offset: u64, width: u8, value: u64) {
        self.with(|d| d.write(region, offset, width, value));
    }

    fn read_many(&self, region: u32, offset: u64, width: u8, buf: &mut [u8]) {
        self.with(|d| d.read_many(region, offset, width, buf));
    }

    fn write_many(&self, region: u32, offset: u64, width: u8, data: &[u8]) {
        self.with(|d| d.write_many(region, offset, width, data));
    }
}

impl TimerSink for DeviceCell {
    fn fire(&self, id: u32) {
        self.event(Event::Timer(id));
    }
}

impl DeviceState for DeviceCell {
    fn name(&self) -> &str {
        &self.name
    }

    fn drain(&self) {
        let bells = self.wires.get().map_or(&[][..], |w| &w.bells);
        let mut rang: Vec<_> = bells.iter().filter_map(|b| Some((b.timer().deadline()?, b))).collect();
        rang.sort_by_key(|(rung_at, _)| *rung_at);
        for (_, bell) in rang {
            bell.timer().cancel();
            bell.fire(0);
        }
    }

    fn reset(&self, kind: ResetKind) {
        if let Some(w) = self.wires.get() {
            w.pci.iter().for_each(|pci| pci.reset());
        }
        self.with(|d| d.reset(kind));
    }

    fn save(&self) -> Saved {
        let (version, state) = self.with(|d| (d.version(), d.state().save())).unwrap_or_default();
        let Some(w) = self.wires.get() else { return Saved { version, state, ..Saved::default() } };
        Saved {
            version,
            state,
            pci: w.pci.as_ref().map_or(Value::Null, |p| p.save()),
            irqs: w.irqs.iter().map(|i| i.level()).collect(),
            timers: w.timers().map(|t| t.deadline()).collect(),
            disks: w.disks.iter().map(|d| d.save()).collect(),
        }
    }

    fn load(&self, saved: Saved) -> Result<(), String> {
        let no_wires = Wires::default();
        let w = self.wires.get().unwrap_or(&no_wires);
        if saved.irqs.len() != w.irqs.len()
            || saved.timers.len() != w.timers().count()
            || saved.disks.len() != w.disks.len()
        {
            return Err("it has other wires, timers or disks".to_owned());
        }
        let version = self.with(|d| d.version()).unwrap_or_default();
        if version != saved.version {
            return Err(format!("saved as version {}, this is version {version}", saved.version));
        }
        self.with(|d| d.state().load(saved.state)).unwrap_or(Ok(()))?;
        if let Some(pci) = &w.pci {
            pci.load(saved.pci)?;
        }
        for (line, level) in w.irqs.iter().zip(saved.irqs) {
            line.set(level);
        }
        for (timer, deadline) in w.timers().zip(saved.timers) {
            timer.set(deadline.unwrap_or(u64::MAX));
        }
        for (disk, answers) in w.disks.iter().zip(saved.disks) {
            disk.load(answers);
        }
        self.with(|d| d.restored());
        Ok(())
    }
}

/// The kind of value that a parameter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// true or false.
    Bool,
    /// A number in these bounds.
    Int(i64, i64),
    /// Free text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An Ethernet address.
    Mac,
}

/// A configuration key of a model.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: ParamKind,
    /// Its value when nothing is given; empty for none.
    pub default: &'static str,
    /// One line for the help text and the man page.
    pub help: &'static str,
}

/// The values given to a device, checked against its [`Model::keys`].
#[derive(Clone, Debug, Default)]
pub struct Params(BTreeMap<String, String>);

impl Params {
    /// From name and value pairs.
    pub fn new<K: Into<String>, V: Into<String>>(values: impl IntoIterator<Item = (K, V)>) -> Params {
        Params(values.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }

    /// Gives a value, in place of an earlier one.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// The value for the unit `n` alone, which [`Params::set`] gave to `n.name`; it may be empty.
    pub fn of_unit(&self, n: usize, name: &str) -> Option<&str> {
        self.0.get(&format!("{n}.{name}")).map(String::as_str)
    }

    /// The value, unless it is missing or empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// A truth value; false when it is missing.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| v == "true" || v == "on" || v == "yes" || v == "1")
    }

    /// A number, decimal or 0x.
    pub fn int(&self, name: &str) -> Option<i64> {
        let v = self.get(name)?;
        match v.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16).ok(),
            None => v.parse().ok(),
        }
    }
}

/// What a model is for: which sections of a configuration can name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A controller with places for this many disks, which may be CD-ROM drives.
    Storage {
        /// Places.
        units: usize,
        /// Whether [`Unit::Cd`] can stand there.
        cds: bool,
    },
    /// A network card.
    Network,
    /// A display adapter.
    Display,
    /// The guest's end of serial lines.
    Lines {
        /// How many at most.
        most: usize,
    },
    /// What shows the guest a directory of the host.
    Share,
    /// A USB controller.
    Usb {
        /// Places for devices.
        ports: usize,
    },
    /// Something to type at or to point with.
    Input,
    /// A sound card.
    Sound,
    /// Anything else.
    Other,
}

/// Makes a device, taking its resources from the slot.
pub type Create = fn(&mut Slot, &Params) -> Result<Box<dyn Device>, String>;

/// A kind of device that a configuration can name. Help text, man page, unknown-key errors, the conformance test and
/// the fuzz target all come from tables of these.
pub struct Model {
    /// The name in configurations.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// What it is for.
    pub class: Class,
    /// Its keys.
    pub keys: &'static [Param],
    /// Makes one, taking its resources from the slot.
    pub create: Create,
}

/// What the machine as a whole is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemEvent {
    /// Reset (8042, port 92, CF9, triple fault).
    Reset,
    /// Power off (S5).
    PowerOff,
    /// A20 gate open (true) or closed.
    A20(bool),
    /// INIT on processor 0 only.
    Init,
    /// NMI on processor 0.
    Nmi,
    /// IGNNE# of processor 0 is asserted, until its FERR# falls.
    Ignne,
    /// A stub of the built-in BIOS wants this service of its port.
    Bios(u8),
}

type SystemHook = Box<dyn Fn(SystemEvent) + Send + Sync>;

/// The machine as devices are put into it: one space, one clock, one PCI bus.
pub struct Machine {
    /// The address space.
    pub space: Arc<AddressSpace>,
    /// All timers, and through them the clock.
    pub timers: Arc<Timers>,
    /// PCI bus 0.
    pub pci: Arc<PciBus>,
    isa_irqs: Mutex<Vec<IrqLine>>,
    msi: OnceLock<Arc<dyn MsiSink>>,
    parts: Mutex<Vec<Arc<dyn DeviceState>>>,
    random: OnceLock<Arc<Random>>,
    system: OnceLock<SystemHook>,
}

impl Machine {
    /// An empty machine.
    pub fn new(space: Arc<AddressSpace>, clock: Arc<Clock>) -> Arc<Machine> {
        Arc::new(Machine {
            pci: PciBus::new(space.clone()),
            space,
            timers: Timers::new(clock),
            isa_irqs: Mutex::default(),
            msi: OnceLock::new(),
            parts: Mutex::default(),
            random: OnceLock::new(),
            system: OnceLock::new(),
        })
    }

    /// Its clock.
    pub fn clock(&self) -> &Arc<Clock> {
        self.timers.clock()
    }

    /// The board's sixteen ISA interrupt wires, set once by the board; see [`Machine::isa_irq`].
    pub fn set_isa_irqs(&self, lines: Vec<IrqLine>) {
        *self.isa_irqs.lock().unwrap() = lines;
    }

    /// A new output on an ISA interrupt wire; it leads nowhere if the board has none of that number.
    pub fn isa_irq(&self, n: u32) -> IrqLine {
        self.isa_irqs.lock().unwrap().get(n as usize).map_or_else(IrqLine::unconnected, Clone::clone)
    }

    /// Where message-signalled interrupts go, set once.
    pub fn set_msi(&self, sink: Arc<dyn MsiSink>) {
        let _ = self.msi.set(sink);
    }

    /// Where message-signalled interrupts go.
    pub fn msi(&self) -> Arc<dyn MsiSink> {
        self.msi.get().cloned().unwrap_or_else(|| Arc::new(NoMsi))
    }

    /// Where random numbers come from, set once; part of the machine from then on.
    pub fn set_random(&self, random: Arc<Random>) {
        self.add_part(random.clone());
        let _ = self.random.set(random);
    }

    /// Where random numbers come from; when nobody said, from seed 0.
    pub fn random(&self) -> Arc<Random> {
        self.random.get_or_init(|| Random::seeded(0)).clone()
    }

    /// Who hears [`Machine::request`], set once. The hook must only pass the event on.
    pub fn on_system(&self, hook: impl Fn(SystemEvent) + Send + Sync + 'static) {
        let _ = self.system.set(Box::new(hook));
    }

    /// Asks for something that concerns the whole machine. May be called with a device lock held.
    pub fn request(&self, event: SystemEvent) {
        if let Some(hook) = self.system.get() {
            hook(event);
        }
    }

    /// Adds a leaf chip to what is reset and saved.
    pub fn add_part(&self, part: Arc<dyn DeviceState>) {
        self.parts.lock().unwrap().push(part);
    }

    /// Everything that is reset and saved, in the order in which it was put in.
    pub fn parts(&self) -> Vec<Arc<dyn DeviceState>> {
        self.parts.lock().unwrap().clone()
    }

    /// Resets everything, what was put in last first: wires that move on the way are forgotten by the interrupt chips,
    /// which boards put in before all that drives them. A doorbell that the guest rang before was a write before the
    /// reset: its device hears it first.
    pub fn reset(&self, kind: ResetKind) {
        for part in self.parts() {
            part.drain();
        }
        for part in self.parts().iter().rev() {
            part.reset(kind);
        }
    }

    /// Puts a device of `model` into the machine, as PCI function `bdf` if it asks to be one.
    ///
    /// # Errors
    /// What the model's constructor says.
    pub fn plug(
        self: &Arc<Machine>,
        model: &Model,
        name: &str,
        bdf: Option<Bdf>,
        params: &Params,
        backends: Backends,
    ) -> Result<Arc<DeviceCell>, String> {
        self.plug_with(name, bdf, backends, |slot| (model.create)(slot, params))
    }

    /// As [`Machine::plug`], for a part of the board that no model names.
    ///
    /// # Errors
    /// What `create` says, or that there is a part of that name.
    pub fn plug_with(
        self: &Arc<Machine>,
        name: &str,
        bdf: Option<Bdf>,
        backends: Backends,
        create: impl FnOnce(&mut Slot) -> Result<Box<dyn Device>, String>,
    ) -> Result<Arc<DeviceCell>, String> {
        if self.parts().iter().any(|p| p.name() == name) {
            return Err(format!("two parts of the machine are called {name}"));
        }
        let cell = Arc::new(DeviceCell { name: name.to_owned(), device: Mutex::new(None), wires: OnceLock::new() });
        let mut slot = Slot { machine: self.clone(), cell: cell.clone(), bdf, wires: Wires::default(), backends };
        let device = create(&mut slot)?;
        if slot.backends.rom.is_some() {
            return Err("it has no expansion ROM".to_owned());
        }
        let _ = cell.wires.set(slot.wires);
        *cell.device.lock().unwrap() = Some(device);
        self.add_part(cell.clone());
        Ok(cell)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The space leads to the devices and devices hold on to the space.
        self.space.clear();
    }
}

/// The backends that a device may take.
#[derive(Default)]
pub struct Backends {
    /// Disks, in the order of units.
    pub disks: Vec<Option<Box<dyn Disk>>>,
    /// What stands at these units; [`Unit::Disk`] where this says nothing of a disk.
    pub units: Vec<Unit>,
    /// A network.
    pub net: Option<Box<dyn Net>>,
    /// Character streams, by their number.
    pub chardevs: Vec<Option<Box<dyn Chardev>>>,
    /// Who presses a keyboard's keys.
    pub keys: Option<Box<dyn Keys>>,
    /// A directory of the host.
    pub share: Option<Box<dyn Share>>,
    /// An input device of the host.
    pub evdev: Option<Box<dyn Evdev>>,
    /// Where a sound card plays, if it can.
    pub playback: Option<Box<dyn Playback>>,
    /// Where it records, if it can.
    pub capture: Option<Box<dyn Capture>>,
    /// Who moves a pointer.
    pub pointer: Option<Box<dyn Pointer>>,
    /// The contents of the device's expansion ROM.
    pub rom: Option<Vec<u8>>,
}

/// A region of ports or memory that its device can move, switch and change at run time.
#[derive(Clone)]
pub struct Region {
    space: Arc<AddressSpace>,
    id: RegionId,
    port: bool,
}

impl Region {
    /// Answers at `base`.
    pub fn enable(&self, base: u64) {
        if self.port {
            self.space.enable_ports(self.id, base as u16, true);
        } else {
            self.space.enable(self.id, base, true);
        }
    }

    /// Does not answer any more.
    pub fn disable(&self) {
        if self.port {
            self.space.enable_ports(self.id, 0, false);
        } else {
            self.space.enable(self.id, 0, false);
        }
    }

    /// Changes what a memory region stands for.
    ///
    /// # Panics
    /// On a port region.
    pub fn set_backing(&self, rights: Rights, backing: Backing) {
        assert!(!self.port);
        self.space.set_backing(self.id, rights, backing);
    }
}

/// What a constructor takes its resources from.
pub struct Slot {
    machine: Arc<Machine>,
    cell: Arc<DeviceCell>,
    bdf: Option<Bdf>,
    wires: Wires,
    /// The backends given to the device.
    pub backends: Backends,
}

impl Slot {
    /// The device's name in the machine.
    pub fn name(&self) -> &str {
        &self.cell.name
    }

    /// The machine.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// The clock.
    pub fn clock(&self) -> Arc<Clock> {
        self.machine.clock().clone()
    }

    /// The device's cell, for backends that hand it events. It holds nothing until the constructor has returned.
    pub fn cell(&self) -> Weak<DeviceCell> {
        Arc::downgrade(&self.cell)
    }

    /// Ports that answer from the start.
    pub fn ports(&mut self, region: u32, base: u16, len: u32, widths: Widths) -> Region {
        let r = self.ports_off(region, len, widths);
        r.enable(u64::from(base));
        r
    }

    /// As [`Slot::ports`], over what others claim there.
    pub fn ports_over(&mut self, region: u32, base: u16, len: u32, widths: Widths) -> Region {
        let r = self.add_ports(region, len, 1, widths);
        r.enable(u64::from(base));
        r
    }

    /// Ports that do not answer yet.
    pub fn ports_off(&mut self, region: u32, len: u32, widths: Widths) -> Region {
        self.add_ports(region, len, 0, widths)
    }

    fn add_ports(&mut self, region: u32, len: u32, priority: i32, widths: Widths) -> Region {
        let id = self.machine.space.add_ports(0, len, priority, self.cell.clone(), region, widths);
        self.wires.regions.push((region, id, true));
        Region { space: self.machine.space.clone(), id, port: true }
    }

    /// Device memory that answers from the start.
    pub fn memory(&mut self, region: u32, base: u64, len: u64, priority: i32, widths: Widths) -> Region {
        let r = self.window(len, priority, Rights::ReadWrite, self.io(region, widths));
        self.wires.regions.push((region, r.id, false));
        r.enable(base);
        r
    }

    /// A window of any backing that does not answer yet.
    pub fn window(&mut self, len: u64, priority: i32, rights: Rights, backing: Backing) -> Region {
        let id = self.machine.space.add_memory(0, len, priority, rights, backing);
        Region { space: self.machine.space.clone(), id, port: false }
    }

    /// The backing that leads to the device's own region number `region`.
    pub fn io(&self, region: u32, widths: Widths) -> Backing {
        Backing::Io(self.cell.clone(), region, widths)
    }

    /// Memory of the device's own.
    ///
    /// # Errors
    /// When the host refuses it.
    pub fn ram(&mut self, what: &str, len: u64) -> Result<RamBlock, String> {
        let name = format!("{}.{what}", self.cell.name);
        self.machine.space.ram().alloc(&name, len).map_err(|e| e.to_string())
    }

    /// An output on an ISA interrupt wire.
    pub fn isa_irq(&mut self, n: u32) -> Arc<IrqLine> {
        self.keep(self.machine.isa_irq(n))
    }

    /// Counts an interrupt output among what is saved.
    pub fn keep(&mut self, line: IrqLine) -> Arc<IrqLine> {
        let line = Arc::new(line);
        self.wires.irqs.push(line.clone());
        line
    }

    /// A timer that comes back as [`Event::Timer`] with this number.
    pub fn timer(&mut self, id: u32) -> Arc<Timer> {
        let cell: Weak<DeviceCell> = Arc::downgrade(&self.cell);
        let timer = Arc::new(self.machine.timers.add(cell, id));
        self.wires.timers.push(timer.clone());
        timer
    }

    /// What stands at unit `n`. Ask before [`Slot::disk`].
    pub fn unit(&self, n: usize) -> Unit {
        let disk = || self.backends.disks.get(n).is_some_and(Option::is_some);
        self.backends.units.get(n).copied().unwrap_or(if disk() { Unit::Disk } else { Unit::None })
    }

    /// Takes the disk of unit `n`, if there is one.
    pub fn disk(&mut self, n: usize) -> Option<DiskPort> {
        let disk = self.backends.disks.get_mut(n)?.take()?;
        Some(DiskPort::new(disk, self.requests()))
    }

    /// Takes the share, if there is one.
    pub fn share(&mut self) -> Option<SharePort> {
        let share = self.backends.share.take()?;
        Some(SharePort::new(share, self.requests()))
    }

    /// What keeps the requests to a disk or a share.
    fn requests(&mut self) -> Arc<Queue> {
        let queue = Queue::new(&self.machine.timers, Arc::downgrade(&self.cell));
        self.wires.disks.push(queue.clone());
        queue
    }

    /// Makes the device a PCI function.
    ///
    /// # Errors
    /// When the slot is not a PCI slot, or is taken.
    pub fn pci(&mut self, ids: PciIds) -> Result<Arc<PciFunction>, String> {
        let bdf = self.bdf.ok_or("this device needs a PCI slot")?;
        let cell: Weak<DeviceCell> = Arc::downgrade(&self.cell);
        let function = self.machine.pci.add(bdf, ids, cell)?;
        self.wires.pci = Some(function.clone());
        Ok(function)
    }

    /// A BAR: ports or memory of the device's region `region`. Base and enable follow what the guest writes.
    ///
    /// # Panics
    /// Before [`Slot::pci`], or when the index is out of range or the length is no power of two.
    pub fn bar(&mut self, index: u8, kind: BarKind, len: u64, region: u32, widths: Widths) {
        let backing = self.io(region, widths);
        let function = self.function();
        let space = &self.machine.space;
        let id = match kind {
            BarKind::Io => space.add_ports(0, len as u32, 1, self.cell.clone(), region, widths),
            _ => space.add_memory(0, len, 1, Rights::ReadWrite, backing),
        };
        self.wires.regions.push((region, id, kind == BarKind::Io));
        function.add_bar(index, Bar { kind, len, region: id });
    }

    /// A BAR that is plain memory (frame buffers).
    ///
    /// # Panics
    /// As [`Slot::bar`].
    pub fn bar_ram(&mut self, index: u8, kind: BarKind, block: &RamBlock) {
        let id = self.machine.space.add_memory(0, block.len, 1, Rights::ReadWrite, Backing::Ram(block.start));
        self.function().add_bar(index, Bar { kind, len: block.len, region: id });
    }

    /// The expansion ROM, from [`Backends::rom`] if there is one; its size is the next power of two. It names this device.
    ///
    /// # Errors
    /// When it is larger than 16 MiB or the host has no memory for it.
    ///
    /// # Panics
    /// Before [`Slot::pci`].
    pub fn rom(&mut self) -> Result<(), String> {
        const LEAST: u64 = 2 << 10;
        const MOST: u64 = 16 << 20;
        let Some(mut bytes) = self.backends.rom.take() else { return Ok(()) };
        let (vendor, device) = self.function().config(|c| (c.get16(0), c.get16(2)));
        pci::option::program(&mut bytes, vendor, device);
        let len = (bytes.len() as u64).next_power_of_two().max(LEAST);
        if len > MOST {
            return Err(format!("an expansion ROM of {} bytes is too large", bytes.len()));
        }
        let block = self.ram("rom", len)?;
        let space = &self.machine.space;
        space.ram().write(block.start, &bytes);
        let id = space.add_memory(0, len, 1, Rights::Read, Backing::Ram(block.start));
        // Writes to a ROM vanish, and do not reach what lies below.
        let shield = space.add_memory(0, len, 1, Rights::Write, Backing::Nothing);
        self.function().set_rom(len, [id, shield]);
        Ok(())
    }

    /// The interrupt pin, routed by the board. Silent while the command register disables it.
    pub fn intx(&mut self, pin: Pin) -> Arc<IrqLine> {
        let line = self.machine.pci.intx(self.function().bdf(), pin);
        let function = self.function();
        function.set_pin(pin);
        let line = self.keep(line);
        function.set_intx(line.clone());
        line
    }

    /// An MSI capability with up to `vectors` messages.
    pub fn msi(&mut self, vectors: u8) -> Msi {
        Msi::new(self.function(), vectors, &self.machine)
    }

    /// An MSI-X capability whose table and pending bits lie in `bar` from `offset` on.
    pub fn msix(&mut self, vectors: u16, bar: u8, offset: u32) -> Msix {
        Msix::new(self.function(), vectors, bar, offset, &self.machine)
    }

    /// Guest memory: through the function's bus-master enable, or always for a part of the board.
    pub fn dma(&mut self) -> DmaMem {
        let master = match &self.wires.pci {
            Some(f) => f.bus_master(),
            None => Arc::new(AtomicBool::new(true)),
        };
        DmaMem::new(self.machine.space.clone(), master)
    }

    /// Declares that a write of `width` bytes (0: any), of `value` if one is given, at `offset` of the device's region
    /// `region` carries nothing but the news that it happened. The device gets [`Event::Doorbell`] in its place, from
    /// any thread: at once in real time, after the instruction when instructions drive the clock. With `handoff` the
    /// processor need not wait for the device where a back end can do that; it may then hear a ring late, after a write
    /// that came later, and must take one that has become pointless.
    ///
    /// # Panics
    /// When the region was not declared before.
    pub fn doorbell(&mut self, region: u32, offset: u64, width: u8, value: Option<u64>, handoff: bool) {
        let declared = self.wires.regions.iter().find(|(n, ..)| *n == region);
        let &(_, id, port) = declared.expect("a doorbell lies in a region of the device");
        let cell = Arc::downgrade(&self.cell);
        let bell = Arc::new(Bell { cell, region, offset, timer: OnceLock::new() });
        let sink: Weak<Bell> = Arc::downgrade(&bell);
        let _ = bell.timer.set(self.machine.timers.add(sink, 0));
        self.wires.bells.push(bell.clone());
        let ring = Arc::new(move || bell.ring());
        self.machine.space.add_doorbell(id, Doorbell { addr: offset, port, width, value, handoff, ring });
    }

    fn function(&self) -> Arc<PciFunction> {
        self.wires.pci.clone().expect("the device is a PCI function")
    }
}

#[cfg(test)]
mod tests;
