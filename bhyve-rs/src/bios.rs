//! The built-in BIOS in the machine: its ROM, its port, its disks, and what it sees of memory.
//!
//! [`boot::bios`] is the BIOS; this is its [`boot::bios::Host`]. A stub's OUT reaches [`Port`], a device, which passes
//! it on as a message to the main thread. That stops the processors and calls [`Services::serve`], which reads and
//! writes memory through the paging of the processor that called. Disks are handles of the BIOS's own on the images;
//! their answers are events of the device, and raise IRQ 14 to end the stub's HLT.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result, anyhow};
use boot::bios::{
    Access, Bios, Config, Diskette, Drive, DriveKind, Host, LATCH_PORT, LATCHED, Options, PORT, Place, Rom, Ticket,
};
use boot::platform::Platform;
use boot::{MemoryMap, Piece};
use emu::backend::{Disk, DiskOp, DiskRequest};
use emu::{
    Backends, Backing, CpuBus, Device, DeviceCell, DiskPort, Event, IrqLine, Machine, ResetKind, Rights, Slot, State,
    SystemEvent, Timer, Widths,
};
use hv::Runner;
use lpc::Medium;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::firmware;
use crate::paging::{Paging, units};
use crate::plan::Plugged;
use crate::watch::BIOS;

/// Regions of the device: the stubs' port, the latch's control and the latch.
const CALL: u32 = 0;
const CONTROL: u32 = 1;
const LATCH: u32 = 2;

/// The interrupt of disks.
const DISK_IRQ: u32 = 14;
/// How long it stays when nobody asks for the answer: shorter than anybody waits for a disk, longer than an interrupt
/// takes to be served.
const IRQ_NS: u64 = 5_000_000;

/// The ROM's other place, where processors start.
const TOP: u64 = 0xffff_0000;

/// Where option ROMs go.
const OPTION_ROMS: std::ops::Range<u64> = 0xc_8000..Rom::BASE;

/// Registers that go through the latch.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Latch {
    words: [u32; LATCHED],
    next: usize,
}

impl Latch {
    fn step(&mut self) -> usize {
        let at = self.next % LATCHED;
        self.next = at + 1;
        at
    }
}

/// What the device and the services have in common. Its lock is taken below the device's, and by the main thread while
/// the machine stands still.
struct Shared {
    bios: Bios,
    latch: Latch,
    disks: Vec<Option<DiskPort>>,
    /// How often each disk's medium was changed.
    changes: Vec<u64>,
    answers: BTreeMap<Ticket, Result<Vec<u8>, ()>>,
    next: Ticket,
    irq: Arc<IrqLine>,
    timer: Arc<Timer>,
}

/// As it is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    bios: Value,
    latch: Latch,
    changes: Vec<u64>,
    answers: BTreeMap<Ticket, Result<Vec<u8>, ()>>,
    next: Ticket,
}

/// Answers that nobody asks for are forgotten one by one.
const ANSWERS: usize = 16;

/// The device behind the ports.
struct Port {
    state: Handle,
    request: Box<dyn Fn(u8) + Send>,
}

#[derive(Clone)]
struct Handle(Arc<Mutex<Shared>>);

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap()
    }
}

impl State for Handle {
    fn save(&self) -> Value {
        let mut s = self.lock();
        let saved = Saved {
            bios: State::save(s.bios.state()),
            latch: s.latch.clone(),
            changes: s.changes.clone(),
            answers: s.answers.clone(),
            next: s.next,
        };
        State::save(&saved)
    }

    fn load(&mut self, value: Value) -> Result<(), String> {
        let saved: Saved = serde_json::from_value(value).map_err(|e| e.to_string())?;
        let mut s = self.lock();
        if saved.changes.len() != s.disks.len() {
            return Err("it has other disks".to_owned());
        }
        s.bios.state().load(saved.bios)?;
        (s.latch, s.changes, s.answers, s.next) = (saved.latch, saved.changes, saved.answers, saved.next);
        Ok(())
    }
}

impl Device for Port {
    fn read(&mut self, region: u32, _offset: u64, width: u8) -> u64 {
        if region != LATCH || width != 4 {
            return u64::MAX;
        }
        let latch = &mut self.state.lock().latch;
        let at = latch.step();
        latch.words[at].into()
    }

    fn write(&mut self, region: u32, _offset: u64, width: u8, value: u64) {
        match (region, width) {
            (CALL, _) => (self.request)(0),
            (CONTROL, _) => {
                self.state.lock().latch.next = 0;
                if value as u8 != 0 {
                    (self.request)(value as u8);
                }
            }
            (LATCH, 4) => {
                let latch = &mut self.state.lock().latch;
                let at = latch.step();
                latch.words[at] = value as u32;
            }
            _ => {}
        }
    }

    fn event(&mut self, event: Event) {
        let mut s = self.state.lock();
        match event {
            Event::Done(answer) => {
                let result = if answer.ok { Ok(answer.data) } else { Err(()) };
                s.answers.insert(answer.tag, result);
                while s.answers.len() > ANSWERS {
                    s.answers.pop_first();
                }
                s.irq.set(true);
                s.timer.set(s.timer.now() + IRQ_NS);
            }
            Event::Timer(_) => s.irq.set(false),
            Event::Medium(n) => {
                if let Some(changes) = s.changes.get_mut(n) {
                    *changes += 1;
                }
            }
            _ => {}
        }
    }

    fn reset(&mut self, _: ResetKind) {
        let mut s = self.state.lock();
        s.disks.iter_mut().flatten().for_each(DiskPort::cancel);
        s.answers.clear();
        s.latch = Latch::default();
        s.irq.set(false);
        s.timer.cancel();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.state
    }
}

/// The BIOS of a machine, for the thread that serves its calls.
pub struct Services {
    shared: Handle,
    rom: Vec<u8>,
    /// Hears when what is in a drive changes.
    pub cell: Arc<DeviceCell>,
}

impl Services {
    /// Puts ROM and port into the machine. `tables` are the firmware tables, of which those in the BIOS's segment
    /// become part of the ROM.
    ///
    /// # Errors
    /// When there is no memory for the ROM or the port's place is taken.
    pub fn create(
        machine: &Arc<Machine>,
        platform: &Platform,
        memory: &MemoryMap,
        options: &Options,
        tables: &[Piece],
        plugged: Vec<Plugged>,
    ) -> Result<Services> {
        let drives = plugged.iter().enumerate().map(|(n, p)| drive(n, p)).collect();
        let config =
            Config { platform: platform.clone(), memory: memory.regions().to_vec(), drives, options: options.clone() };
        let disks: Vec<Option<Box<dyn Disk>>> = plugged.into_iter().map(|p| p.disk).collect();
        let mut rom = Rom::build()?.bytes().to_vec();
        for piece in tables.iter().filter(|p| p.gpa >= Rom::BASE && p.range().end <= Rom::BASE + Rom::LEN as u64) {
            let at = (piece.gpa - Rom::BASE) as usize;
            rom[at..at + piece.bytes.len()].copy_from_slice(&piece.bytes);
        }
        let space = &machine.space;
        let block = space.ram().alloc("bios", Rom::LEN as u64).context("no memory for the BIOS")?;
        space.ram().write(block.start, &rom);
        // Below the chipset's shadow, which is RAM.
        for (base, priority) in [(Rom::BASE, -1), (TOP, 0)] {
            let id = space.add_memory(base, block.len, priority, Rights::Read, Backing::Ram(block.start));
            space.enable(id, base, true);
        }
        if !firmware::shadows(machine) {
            // What a chipset lays out for option ROMs.
            let (base, len) = (OPTION_ROMS.start, OPTION_ROMS.end - OPTION_ROMS.start);
            let block = space.ram().alloc("option ROMs", len).context("no memory for option ROMs")?;
            let id = space.add_memory(base, len, -1, Rights::ReadWrite, Backing::Ram(block.start));
            space.enable(id, base, true);
        }
        let mut handle = None;
        let told = machine.clone();
        let backends = Backends { disks, ..Backends::default() };
        let create = |slot: &mut Slot| -> Result<Box<dyn Device>, String> {
            let count = slot.backends.disks.len();
            let shared = Handle(Arc::new(Mutex::new(Shared {
                bios: Bios::new(config),
                latch: Latch::default(),
                disks: (0..count).map(|n| slot.disk(n)).collect(),
                changes: vec![0; count],
                answers: BTreeMap::new(),
                next: 0,
                irq: slot.isa_irq(DISK_IRQ),
                timer: slot.timer(0),
            })));
            slot.ports(CALL, PORT, 1, Widths::BYTE);
            slot.ports(CONTROL, LATCH_PORT - 1, 1, Widths::BYTE);
            slot.ports(LATCH, LATCH_PORT, 4, Widths::DWORD);
            handle = Some(shared.clone());
            let told = Arc::downgrade(&told);
            let request = Box::new(move |service| {
                if let Some(machine) = told.upgrade() {
                    machine.request(SystemEvent::Bios(service));
                }
            });
            Ok(Box::new(Port { state: shared, request }))
        };
        let cell = machine.plug_with(BIOS, None, backends, create).map_err(|e| anyhow!(e))?;
        Ok(Services { shared: handle.expect("made above"), rom, cell })
    }

    /// The ROM's contents, for its shadow.
    pub fn rom(&self) -> Piece {
        Piece { gpa: Rom::BASE, bytes: self.rom.clone() }
    }

    /// Serves a call: service 0 is one by a frame, others are by the latch. All processors stand still.
    pub fn serve(&self, machine: &Machine, runner: &Runner, service: u8, a20: bool) -> Result<()> {
        let all: Vec<cpu::Regs> = runner.with_vcpus(|v| v.regs()).into_iter().collect::<Result<_>>()?;
        let mut shared = self.shared.lock();
        let Shared { bios, latch, disks, changes, answers, next, irq, timer } = &mut *shared;
        let mut view = View {
            bus: CpuBus::new(machine.space.clone()),
            paging: Paging::default(),
            a20,
            now: machine.clock().now(),
            disks,
            changes,
            answers,
            next,
            irq,
            timer,
        };
        if service != 0 {
            latch.next = 0;
            bios.serve_latch(&mut view, service, &mut latch.words);
            return Ok(());
        }
        // Whose memory holds a frame: nearly always it is the first processor's. Emulators of real mode in kernels
        // (x86bios of FreeBSD) have their low memory elsewhere, but it is the machine's own.
        for paging in all.iter().map(Paging::of).chain([Paging::default()]) {
            view.paging = paging;
            if Bios::is_called(&mut view) {
                bios.serve(&mut view);
                break;
            }
        }
        Ok(())
    }
}

/// A drive as the BIOS knows it.
fn drive(n: usize, plugged: &Plugged) -> Drive {
    let cd = plugged.kind == DriveKind::Cd;
    let what = if cd { "CD-ROM drive" } else { "disk" };
    let (name, place) = match plugged.place {
        None => (format!("floppy drive {}", if n == 0 { "A" } else { "B" }), None),
        // The board's IDE controller, in compatibility mode.
        Some((_, bdf, unit)) if bdf.func == 1 => {
            let (channel, slave) = (unit / 2, unit % 2);
            let words = (["primary", "secondary"][channel % 2], ["master", "slave"][slave]);
            let ide = [(0x1f0, 0x3f6, 14), (0x170, 0x376, 15)][channel % 2];
            let interface = if cd { "ATAPI" } else { "ATA" };
            let place = Place {
                pci: (bdf.bus, bdf.dev, bdf.func),
                interface,
                unit: (channel as u8, slave as u8),
                ide: Some(ide),
            };
            (format!("{what}, IDE {} {}", words.0, words.1), Some(place))
        }
        Some((model, bdf, unit)) => {
            let (interface, unit_there) = match (model.name, cd) {
                ("virtio-scsi", _) => ("SCSI", (0, unit as u8)),
                (_, true) => ("ATAPI", (unit as u8, 0)),
                _ => ("ATA", (unit as u8, 0)),
            };
            let place = Place { pci: (bdf.bus, bdf.dev, bdf.func), interface, unit: unit_there, ide: None };
            (format!("{what} {unit}, {} {bdf}", model.name), Some(place))
        }
    };
    let read_only = plugged.disk.as_ref().is_some_and(|d| d.read_only());
    let floppy = plugged.floppy.map_or(0, |model| model as u8);
    Drive { kind: plugged.kind, disk: n, name, read_only, floppy, place }
}

/// The machine as the BIOS sees it during one call.
struct View<'a> {
    bus: CpuBus,
    paging: Paging,
    a20: bool,
    now: u64,
    disks: &'a mut Vec<Option<DiskPort>>,
    changes: &'a [u64],
    answers: &'a mut BTreeMap<Ticket, Result<Vec<u8>, ()>>,
    next: &'a mut Ticket,
    irq: &'a IrqLine,
    timer: &'a Timer,
}

const PAGE: u64 = 0x1000;

impl View<'_> {
    /// Calls `f` with each part of a linear range that lies in one page: where it is, if anywhere, and which bytes.
    fn parts(&mut self, linear: u64, len: usize, mut f: impl FnMut(&mut Self, Option<u64>, std::ops::Range<usize>)) {
        let mut at = 0;
        while at < len {
            let address = linear.wrapping_add(at as u64);
            let n = (PAGE - address % PAGE).min((len - at) as u64) as usize;
            let gpa = self.paging.translate(&mut self.bus, self.a20, address);
            f(self, gpa, at..at + n);
            at += n;
        }
    }
}

impl Host for View<'_> {
    fn read(&mut self, linear: u64, buf: &mut [u8]) {
        self.parts(linear, buf.len(), |view, gpa, range| {
            let buf = &mut buf[range];
            let Some(gpa) = gpa else { return buf.fill(0xff) };
            match view.bus.map().ram_for_read(gpa) {
                Some((ram, len)) if len >= buf.len() as u64 => view.bus.ram().read(ram, buf),
                _ => {
                    for (at, part) in units(gpa, buf.len()) {
                        let value = view.bus.read(gpa + at as u64, part as u8).to_le_bytes();
                        buf[at..at + part].copy_from_slice(&value[..part]);
                    }
                }
            }
        });
    }

    fn write(&mut self, linear: u64, data: &[u8]) {
        self.parts(linear, data.len(), |view, gpa, range| {
            let data = &data[range];
            let Some(gpa) = gpa else { return };
            match view.bus.map().ram_for_write(gpa) {
                Some((ram, len)) if len >= data.len() as u64 => view.bus.ram().write(ram, data),
                _ => {
                    for (at, part) in units(gpa, data.len()) {
                        let mut value = [0; 8];
                        value[..part].copy_from_slice(&data[at..at + part]);
                        view.bus.write(gpa + at as u64, part as u8, u64::from_le_bytes(value));
                    }
                }
            }
        });
    }

    fn ignore_a20(&mut self) {
        self.a20 = true;
    }

    fn inp(&mut self, port: u16, width: u8) -> u32 {
        self.bus.pio_read(port, width)
    }

    fn outp(&mut self, port: u16, width: u8, value: u32) {
        self.bus.pio_write(port, width, value);
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn submit(&mut self, disk: usize, access: Access) -> Ticket {
        let tag = *self.next;
        *self.next += 1;
        self.irq.set(false);
        let (offset, op) = match access {
            Access::Read { offset, len } => (offset, DiskOp::ReadBytes(len)),
            Access::Write { offset, data } => (offset, DiskOp::WriteBytes(data)),
        };
        match self.disks.get_mut(disk) {
            Some(Some(port)) => port.submit(DiskRequest { tag, offset, op }),
            _ => _ = self.answers.insert(tag, Err(())),
        }
        tag
    }

    fn answer(&mut self, ticket: Ticket) -> Option<Result<Vec<u8>, ()>> {
        let answer = self.answers.remove(&ticket)?;
        self.irq.set(false);
        self.timer.cancel();
        Some(answer)
    }

    fn medium(&mut self, disk: usize) -> (u64, u64) {
        let size = self.disks.get(disk).and_then(Option::as_ref).map_or(0, DiskPort::size);
        (size, self.changes.get(disk).copied().unwrap_or(0))
    }

    fn diskette(&mut self, disk: usize) -> Option<Diskette> {
        let m = Medium::of(self.medium(disk).0)?;
        let sector_bytes = m.sector_bytes() as u16;
        Some(Diskette { cylinders: m.cylinders, heads: m.heads, sectors: m.sectors, sector_bytes })
    }

    fn log(&mut self, line: &str) {
        tracing::debug!(target: "firmware", "{line}");
    }

    fn called(&mut self, call: std::fmt::Arguments<'_>) {
        let (s, us) = (self.now / 1_000_000_000, self.now / 1000 % 1_000_000);
        tracing::trace!(target: BIOS, "{s:5}.{us:06} {BIOS} {call}");
    }
}
