//! The life of a machine: assembly, start, reset, power-off, and the exit status that tells which it was.

mod debug;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use boot::platform::{IsaPort, Platform};
use boot::{Image, Layout, MemoryMap};
use cpu::{Feature, Regs};
use emu::backend::Chardev;
use emu::{
    Access, AddressSpace, Backends, Backing, Clock, DeviceCell, Event, Machine, Ram, RamAddr, Random, ResetKind,
    Rights, SystemEvent,
};
use host::console::{Desk, Nothing, Script, Step};
use host::control::Events;
use host::keyboard::Typist;
use host::net::Cable;
use host::{Gate, Io, IoThread};
use hv::{DebugCaps, Hypervisor, Outcome, Runner, Vcpu, VmConfig};
use lpc::Ns16550;
use serde_json::json;

use crate::backoff::Backoff;
use crate::bios;
use crate::board::{self, Board};
use crate::config;
use crate::firmware;
use crate::media::{Change, Media};
use crate::plan::{Peripherals, Plan};
use crate::processor::LOW_LIMIT;
use crate::rom::{self, Firmware};
use crate::state::Paused;
use crate::stop::{Method, Policy, Stopping};
use crate::strict;
use crate::watch::Watch;

pub use self::debug::{Planted, linear_rip};

/// The control register of the power management block, and its bit that says whether the guest has taken over ACPI.
const PM1_CNT: u64 = 4;
const SCI_EN: u64 = 1;

/// Ports and interrupts of COM1 to COM4.
const COM: [IsaPort; 4] = [
    IsaPort { port: 0x3f8, irq: 4 },
    IsaPort { port: 0x2f8, irq: 3 },
    IsaPort { port: 0x3e8, irq: 4 },
    IsaPort { port: 0x2e8, irq: 3 },
];

/// A kernel to start without firmware.
pub struct Kernel {
    /// What it is called in messages.
    pub name: String,
    /// Its file's contents.
    pub bytes: Vec<u8>,
    /// Its initial RAM disk.
    pub initrd: Option<Vec<u8>>,
    /// Its command line.
    pub args: String,
}

/// What runs first.
pub enum Start {
    /// A kernel, at its entry point.
    Kernel(Kernel),
    /// The built-in BIOS.
    Bios(boot::bios::Options),
    /// Firmware from a file, at the reset vector.
    Firmware(Firmware),
}

/// What a machine is made of.
pub struct Spec {
    /// Its name.
    pub name: String,
    /// Number of processors.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Which board.
    pub board: &'static board::Kind,
    /// What the processors claim to be.
    pub model: cpu::Model,
    /// Use the plain interpreter.
    pub plain: bool,
    /// Executed instructions drive the clock.
    pub instruction_clock: bool,
    /// What random numbers start from, then.
    pub seed: u64,
    /// Seconds since 1970 at power-on.
    pub rtc_start: i64,
    /// SMBIOS UUID.
    pub uuid: [u8; 16],
    /// SMBIOS strings in place of the board's.
    pub strings: board::Strings,
    /// NUMA domains in the order of their memory.
    pub domains: Vec<config::Domain>,
    /// Give the guest ACPI tables.
    pub acpi: bool,
    /// Give the guest an MP table.
    pub mptable: bool,
    /// Keep guest memory from being swapped out.
    pub wired: bool,
    /// Put guest memory into core dumps.
    pub core: bool,
    /// A reset starts the guest again instead of ending the run.
    pub stay: bool,
    /// One that comes of triple faults has to wait when they are many.
    pub back_off: bool,
    /// The hypervisor keeps the machine when the run has ended, for others to destroy.
    pub keep: bool,
    /// Pairs of a processor and one of the host's that runs it; without any for it all do.
    pub pins: Vec<(u32, usize)>,
    /// An access to a port that no device has ends the machine.
    pub strictio: bool,
    /// The files that fw_cfg has for the guest, if it is there.
    pub fw_cfg: Option<Vec<config::Item>>,
    /// What runs first.
    pub start: Start,
}

/// How a machine ended; the numbers are bhyve(8)'s exit statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ended {
    /// The guest reset the machine.
    Reboot = 0,
    /// The guest powered off.
    PowerOff = 1,
    /// All processors halted with interrupts off.
    Halt = 2,
    /// Triple fault.
    TripleFault = 3,
    /// Something went wrong on our side.
    Error = 4,
}

impl Ended {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Ended::Reboot => "rebooted",
            Ended::PowerOff => "powered off",
            Ended::Halt => "halted",
            Ended::TripleFault => "triple fault",
            Ended::Error => "error",
        }
    }
}

/// Which memory the domains have: it is dealt out from address 0 on.
fn domains(of: &[config::Domain], low: u64) -> Vec<boot::platform::Domain> {
    let mut next = 0;
    let domain = |domain: &config::Domain| {
        let (first, end) = (next, next + domain.size);
        next = end;
        let above = |at: u64| (1 << 32) + at - low;
        let below = (first < low).then(|| first..end.min(low));
        let beyond = (end > low).then(|| above(first.max(low))..above(end));
        boot::platform::Domain { cpus: domain.cpus.clone(), memory: below.into_iter().chain(beyond).collect() }
    };
    of.iter().map(domain).collect()
}

/// What people and other programs ask of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Press the power button: the guest decides.
    PowerButton,
    /// Press the reset button.
    Reset,
    /// Cut the power.
    Kill,
    /// Stop the processors and guest time.
    Pause,
    /// Let them go on.
    Resume,
    /// Send a break to the serial port of this number.
    Break(usize),
    /// Say how things are.
    Query,
}

/// How things are when an order has been followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Stopped by [`Order::Pause`].
    pub paused: bool,
    /// Nanoseconds of guest time since power-on.
    pub guest_ns: u64,
    /// How often the guest was started again.
    pub resets: u64,
}

/// What is to be done with the machine between two orders, and whether it is paused.
type Question = Box<dyn FnOnce(&Instance, bool) + Send>;

type Answer = Option<Sender<Result<Status, String>>>;

/// What the main thread hears of.
enum Message {
    Outcome(Outcome),
    System(SystemEvent),
    Order(Order, Answer),
    Change(Box<(Change, host::disk::Image)>, Sender<Result<(), String>>),
    Stop(Policy, Sender<Result<(), String>>),
    Question(Question),
    /// A debugger has the machine stopped, or lets it go on.
    Debugger(bool, Sender<Result<(), String>>),
}

/// Who keeps the machine from running. It runs when nobody does.
#[derive(Clone, Copy, Default)]
struct Held {
    /// By [`Order::Pause`].
    people: bool,
    debugger: bool,
}

impl Held {
    fn any(self) -> bool {
        self.people || self.debugger
    }
}

/// Gives orders to a machine, from any thread.
#[derive(Clone)]
pub struct Handle(Sender<Message>, Events);

impl Handle {
    /// Passes an order on, without waiting.
    pub fn send(&self, order: Order) {
        send(&self.0, Message::Order(order, None));
    }

    /// Passes an order on and waits until it has been followed.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn ask(&self, order: Order) -> Result<Status, String> {
        let (tx, answer) = channel();
        send(&self.0, Message::Order(order, Some(tx)));
        // The machine drops the questions that it does not live to answer.
        answer.recv().unwrap_or_else(|_| Err("the machine has ended".to_owned()))
    }
}

impl Handle {
    /// What happens to the machine.
    pub fn events(&self) -> &Events {
        &self.1
    }

    /// Has the machine stopped by a policy, and waits until that has begun.
    ///
    /// # Errors
    /// It has ended.
    pub fn stop(&self, policy: Policy) -> Result<(), String> {
        let (tx, answer) = channel();
        send(&self.0, Message::Stop(policy, tx));
        answer.recv().unwrap_or_else(|_| Err("the machine has ended".to_owned()))
    }

    /// Stops the machine for a debugger, or lets it go on as far as the debugger is concerned.
    ///
    /// # Errors
    /// It has ended.
    pub fn debugger_holds(&self, holds: bool) -> Result<(), String> {
        let (tx, answer) = channel();
        send(&self.0, Message::Debugger(holds, tx));
        answer.recv().unwrap_or_else(|_| Err("the machine has ended".to_owned()))
    }

    /// Changes what is in a drive, and waits until that is done.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn change(&self, change: Change, image: host::disk::Image) -> Result<(), String> {
        let (tx, answer) = channel();
        send(&self.0, Message::Change(Box::new((change, image)), tx));
        answer.recv().unwrap_or_else(|_| Err("the machine has ended".to_owned()))
    }

    /// Has `f` called with the machine and whether it is paused, and waits for the result.
    ///
    /// # Errors
    /// What `f` says.
    pub fn ask_machine<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Instance, bool) -> Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let (tx, answer) = channel();
        let question = move |machine: &Instance, paused| _ = tx.send(f(machine, paused).map_err(|e| format!("{e:#}")));
        send(&self.0, Message::Question(Box::new(question)));
        answer.recv().unwrap_or_else(|_| Err("the machine has ended".to_owned()))
    }
}

/// Where a machine's orders come in.
pub struct Inbox(Receiver<Message>);

/// The two ends of a machine's orders.
pub fn orders() -> (Handle, Inbox) {
    let (tx, rx) = channel();
    (Handle(tx, Events::default()), Inbox(rx))
}

/// What runs first, made for the machine.
enum Started {
    Kernel(Box<Image>),
    Bios(bios::Services),
    Firmware,
}

/// A machine that is ready to run.
pub struct Instance {
    machine: Arc<Machine>,
    runner: Runner,
    gate: Arc<Gate>,
    board: Board,
    /// The display adapter.
    screen: Option<Arc<DeviceCell>>,
    serial: BTreeMap<usize, Arc<DeviceCell>>,
    media: Arc<Media>,
    cables: BTreeMap<u32, Cable>,
    platform: Platform,
    start: Started,
    tables: Vec<boot::Piece>,
    a20: Arc<AtomicBool>,
    /// Whether the next access to a port that no device has ends the machine.
    strict: Option<Arc<AtomicBool>>,
    ram: RamAddr,
    low: u64,
    shape: String,
    stay: bool,
    resets: u64,
    /// A triple fault has been reported.
    faulted: bool,
    /// Of triple faults, if they are to wait.
    backoff: Option<Backoff>,
    /// When the guest was started.
    started: Instant,
    events: Events,
    /// People had the machine end, or asked the guest to.
    asked: bool,
    stopping: Option<Stopping>,
    messages: Option<Receiver<Message>>,
    /// Who holds it when it begins.
    held: Held,
    /// Who is told of what stops a debugger's processor.
    debugger: Option<debug::Tell>,
    debug_caps: DebugCaps,
    _io: IoThread,
}

/// What a machine is connected to.
pub struct Connections {
    /// Where its backends were opened.
    pub io: Arc<Io>,
    /// The backends of COM1 and on.
    pub serial: Vec<Option<Box<dyn Chardev>>>,
    /// What is typed at COM1 in place of what comes from its backend.
    pub script: Option<Vec<Step>>,
    /// What is plugged in.
    pub plan: Plan,
    /// Its orders.
    pub orders: (Handle, Inbox),
}

impl Instance {
    /// Assembles the machine; nothing runs yet. `watch` sees the accesses to its devices.
    ///
    /// # Errors
    /// One line for the user.
    pub fn new(
        spec: &Spec,
        hypervisor: &dyn Hypervisor,
        connections: Connections,
        watch: Option<&Arc<Watch>>,
    ) -> Result<Instance> {
        let Connections { io, mut serial, script, plan, orders: (Handle(tx, events), Inbox(messages)) } = connections;
        let low = spec.memory.min(LOW_LIMIT);
        let refused = || {
            let mib = spec.memory >> 20;
            format!(
                "the host has no room for {mib} MiB of guest memory; lower `memory`, or raise the limit (ulimit -v)"
            )
        };
        let ram = Arc::new(Ram::new(spec.memory + (64 << 20)).with_context(refused)?);
        let block = ram.alloc("ram", spec.memory).with_context(refused)?;
        if !spec.core {
            ram.leave_out_of_dumps().context("guest memory in core dumps")?;
        }
        if spec.wired {
            ram.wire().context("host.wired: the host does not let this user wire so much memory (ulimit -l)")?;
        }
        let space = AddressSpace::new(ram.clone());
        for (base, len, at) in
            [(0, 0xa_0000, 0), (0x10_0000, low.saturating_sub(0x10_0000), 0x10_0000), (1 << 32, spec.memory - low, low)]
        {
            let id = space.add_memory(base, len, 0, Rights::ReadWrite, Backing::Ram(RamAddr(block.start.0 + at)));
            space.enable(id, base, true);
        }
        let clock = if spec.instruction_clock { Clock::instructions() } else { Clock::running() };
        if let Some(watch) = watch {
            watch.attach(&space, &clock);
        }
        let machine = Machine::new(space, clock);
        let random = if spec.instruction_clock { Random::seeded(spec.seed) } else { Random::host()? };
        machine.set_random(random);
        let config = VmConfig {
            name: spec.name.clone(),
            cpus: spec.cpus,
            model: spec.model.clone(),
            plain: spec.plain,
            keep: spec.keep,
        };
        let vm = hypervisor.create(&machine, &config)?;
        let parts = board::Parts {
            kind: spec.board,
            ram: block.start,
            memory: spec.memory,
            low_memory: low,
            rtc_start: spec.rtc_start,
            cpus: spec.cpus,
            uuid: spec.uuid,
            floppies: plan.floppies(),
        };
        let floppy = !parts.floppies.is_empty();
        let board = board::build(&machine, &vm, &parts)?;
        let shape = format!(
            "{} processors {}, {} bytes of memory, board {}, {plan}",
            spec.cpus,
            spec.model.identity(),
            spec.memory,
            spec.board.name
        );
        let mut items = board::fw_cfg_items(&parts)?;
        for (n, (name, data)) in spec.fw_cfg.iter().flatten().enumerate() {
            items.file(name, data.clone()).map_err(|e| anyhow::anyhow!("fwcfg.{n}: {e}"))?;
        }
        let boot_order = match &spec.start {
            Start::Firmware(firmware) => plan.boot_order(&firmware.order),
            _ => Vec::new(),
        };
        let coms = plan.coms(serial.len());
        let Peripherals { drives, mut media, screen, wires, cables } = plan.plug(&machine, &io, &board, &mut serial)?;
        let told = tx.clone();
        media.on_stall(move || send(&told, Message::Order(Order::Pause, None)));
        let ports: Vec<IsaPort> = COM[..coms.len()].to_vec();
        if let Some(steps) = script {
            for (n, step) in steps.iter().enumerate() {
                if let Some((nic, _)) = step.frame.as_ref().filter(|(nic, _)| !wires.contains_key(nic)) {
                    bail!("script, step {}: there is no network card {nic} with backend = \"script\"", n + 1);
                }
            }
            let desk = Some(Desk { typist: board.typist.clone(), screen: screen.clone(), wires });
            // Without a console at COM1 there is still the keyboard.
            let mut nobody = None;
            let com1 = coms.first().map_or(&mut nobody, |com1| &mut serial[*com1]);
            let output = com1.take().unwrap_or_else(|| Box::new(Nothing));
            *com1 = Some(Script::start(&machine, "com1-script", steps, output, desk).1);
        }
        let mut uarts = BTreeMap::new();
        for (n, (port, line)) in ports.iter().zip(coms).enumerate() {
            let backends = Backends { chardevs: vec![serial[line].take()], ..Backends::default() };
            let (base, irq) = (port.port, u32::from(port.irq));
            let uart = machine
                .plug_with(&format!("com{}", n + 1), None, backends, |slot| Ok(Ns16550::create(slot, base, irq)))
                .map_err(|e| anyhow::anyhow!(e))?;
            uarts.insert(line, uart);
        }

        let chips = vm.chips();
        let mut platform = board::platform(spec.board, chips.as_deref(), spec.cpus, &spec.model, low, ports, spec.uuid);
        platform.floppy = floppy;
        platform.fw_cfg = spec.fw_cfg.is_some();
        platform.mptable = spec.mptable;
        platform.domains = domains(&spec.domains, low);
        let functions = machine.pci.functions();
        let mut beyond: Vec<(u8, u8)> =
            functions.iter().map(|f| (f.bdf().bus, f.bdf().dev)).filter(|(bus, _)| *bus > 0).collect();
        beyond.dedup();
        platform.pci.routes.extend(beyond.into_iter().flat_map(|(bus, device)| spec.board.routes(bus, device)));
        platform.pci.roots = firmware::planned_roots(&machine, &platform)?;
        board::rename(&mut platform.identity, &spec.strings);
        if !spec.acpi {
            platform.acpi = None;
        }
        let mut map = MemoryMap::new(spec.memory, LOW_LIMIT)?;
        let mut pieces = Vec::new();
        let start = match &spec.start {
            Start::Kernel(k) => {
                let made = boot::tables::build(&platform, &mut map)?;
                pieces.extend(made.pieces);
                pieces.extend(boot::tables::bios_data(&platform));
                let long_mode = spec.model.has(Feature::Lm);
                let layout = Layout { map: &map, rsdp: made.rsdp, vga_text: screen.is_some(), long_mode };
                let image = boot::load(&k.bytes, k.initrd.as_deref(), &k.args, &layout);
                let image = image.with_context(|| k.name.clone())?;
                suits(k, &spec.model)?;
                Started::Kernel(Box::new(image))
            }
            Start::Firmware(firmware) => {
                rom::plug(firmware, &machine, spec.board)?;
                if spec.fw_cfg.is_some() {
                    rom::files(&mut items, &machine, &platform, &map, &boot_order, spec.board)?;
                }
                Started::Firmware
            }
            Start::Bios(options) => {
                pieces.extend(boot::tables::build(&platform, &mut map)?.pieces);
                let bios = bios::Services::create(&machine, &platform, &map, options, &pieces, drives)?;
                media.tell(&bios.cell);
                pieces.insert(0, bios.rom());
                Started::Bios(bios)
            }
        };
        if spec.fw_cfg.is_some() {
            board::fw_cfg(&machine, items)?;
        }

        let (tell, told) = (tx.clone(), tx.clone());
        let debug_caps = vm.caps().debug;
        let runner = Runner::new(vm.clone(), machine.clone(), move |outcome| send(&told, Message::Outcome(outcome)))?;
        let pause = runner.pauser();
        let a20 = Arc::new(AtomicBool::new(true));
        let gate_a20 = a20.clone();
        machine.on_system(move |event| match event {
            SystemEvent::A20(open) => {
                gate_a20.store(open, Ordering::Relaxed);
                vm.set_a20(open);
            }
            SystemEvent::Ignne => vm.ignne(),
            event => {
                pause();
                send(&tx, Message::System(event));
            }
        });
        runner.pin(&spec.pins).context("cpu.pin: this process may use none of these host processors")?;
        let strict = spec.strictio.then(|| {
            let pause = runner.pauser();
            strict::attach(&machine.space, move |what| {
                pause();
                send(&tell, Message::Outcome(Outcome::Failed(what)));
            })
        });
        let gate = Gate::new();
        let io = IoThread::start_on(&io, &machine.timers, &gate)?;
        let instance = Instance {
            machine,
            runner,
            gate,
            board,
            screen,
            serial: uarts,
            media: Arc::new(media),
            cables,
            platform,
            start,
            tables: pieces,
            a20,
            strict,
            ram: block.start,
            low,
            shape,
            stay: spec.stay,
            resets: 0,
            faulted: false,
            backoff: spec.back_off.then(Backoff::default),
            started: Instant::now(),
            events,
            asked: false,
            stopping: None,
            messages: Some(messages),
            held: Held::default(),
            debugger: None,
            debug_caps,
            _io: io,
        };
        instance.start(ResetKind::PowerOn)?;
        Ok(instance)
    }

    /// Resets all parts. For a kernel and the built-in BIOS it does what firmware does first, and loads them; firmware
    /// from a file finds registers and memory as the reset leaves them.
    fn start(&self, kind: ResetKind) -> Result<()> {
        self.machine.reset(kind);
        self.runner.with_vcpus(|v| v.reset());
        if matches!(self.start, Started::Firmware) {
            return Ok(());
        }
        firmware::assign(&self.machine, &self.platform)?;
        let Started::Kernel(image) = &self.start else {
            // The BIOS starts where the processor does.
            self.tables.iter().for_each(|piece| self.store(piece.gpa, &piece.bytes));
            return Ok(());
        };
        if self.screen.is_some() {
            firmware::text_mode(&self.machine);
        }
        for range in &image.zero {
            let zeros = vec![0; 1 << 16];
            let mut at = range.start;
            while at < range.end {
                let n = (range.end - at).min(zeros.len() as u64);
                self.store(at, &zeros[..n as usize]);
                at += n;
            }
        }
        for piece in self.tables.iter().chain(&image.pieces) {
            self.store(piece.gpa, &piece.bytes);
        }
        let entry = image.entry;
        self.runner
            .with_vcpus(|v| {
                if v.index() > 0 {
                    return Ok(());
                }
                let mut regs = v.regs()?;
                crate::entry::apply(&mut regs, &entry);
                v.set_regs(&regs)
            })
            .into_iter()
            .collect()
    }

    /// Writes RAM whatever the chipset makes of the address.
    fn store(&self, gpa: u64, bytes: &[u8]) {
        let offset = if gpa >= 1 << 32 { gpa - (1 << 32) + self.low } else { gpa };
        self.machine.space.ram().write(RamAddr(self.ram.0 + offset), bytes);
    }

    /// The machine as something to save or load; it must be paused.
    pub fn paused(&self) -> Paused<'_> {
        Paused { machine: &self.machine, runner: &self.runner, shape: &self.shape }
    }

    /// Who types at the keyboard.
    pub fn typist(&self) -> Arc<Typist> {
        self.board.typist.clone()
    }

    /// The cell of the display adapter.
    pub fn screen(&self) -> Option<Arc<DeviceCell>> {
        self.screen.clone()
    }

    /// Who moves the pointer. What it does while the machine is paused is lost.
    pub fn pointer(&self) -> host::vnc::Pointer {
        let (gate, pointers) = (self.gate.clone(), self.board.pointers.clone());
        host::vnc::Pointer {
            is_absolute: self.board.pointers.is_absolute(),
            moves: Box::new(move |motion| {
                gate.try_pass(|| pointers.moves(motion));
            }),
        }
    }

    /// The machine is to be paused when it begins to run, until [`Order::Resume`].
    pub fn hold(&mut self) {
        self.held.people = true;
    }

    /// Runs until the machine ends, or its processors have executed `until` instructions: then there is no way in which
    /// it ended. The second value is for the user, if there is something to say. It runs once.
    pub fn run(&mut self, until: Option<u64>) -> (Option<Ended>, Option<String>) {
        if let Some(n) = until {
            self.runner.pause_at(n);
        }
        // Dropped at the end, and with it the questions that came too late.
        let messages = self.messages.take();
        if !self.held.any() {
            self.go();
        }
        let ended = messages.map_or((None, None), |messages| self.follow(&messages, until));
        self.halt();
        ended
    }

    /// Lets processors, time and backends go on.
    fn go(&self) {
        self.gate.open();
        self.runner.resume();
    }

    /// Stops them all.
    fn halt(&self) {
        self.runner.pause();
        self.gate.close();
    }

    fn follow(&mut self, messages: &Receiver<Message>, until: Option<u64>) -> (Option<Ended>, Option<String>) {
        let mut kept: VecDeque<Message> = VecDeque::new();
        let mut held = self.held;
        let mut pressed = false;
        // What the guest is told when the machine goes on.
        let mut news: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
        loop {
            let paused = held.any();
            let message = match kept.pop_front().map_or_else(|| self.next_message(messages), Ok) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => match self.press_again(paused, &mut pressed) {
                    Some(why) => return (Some(Ended::PowerOff), Some(why)),
                    None => continue,
                },
                Err(RecvTimeoutError::Disconnected) => {
                    return (Some(Ended::Error), Some("the processors' threads are gone".to_owned()));
                }
            };
            match message {
                // It has done what it was asked for: on the way down some systems can only reset.
                Message::System(SystemEvent::Reset) if self.stopping.is_some() => return (Some(Ended::Reboot), None),
                Message::System(SystemEvent::Reset) | Message::Order(Order::Reset, _) if self.stay => {
                    if let Err(e) = self.start_again(messages, &mut kept) {
                        return (Some(Ended::Error), Some(format!("{e:#}")));
                    }
                    let by = if matches!(message, Message::System(_)) { "guest" } else { "order" };
                    self.events.tell("reset", json!({ "by": by }));
                    self.answer(message, paused);
                    if !paused {
                        self.go();
                    }
                }
                Message::System(SystemEvent::Reset) => return (Some(Ended::Reboot), None),
                Message::System(SystemEvent::PowerOff) => return (Some(Ended::PowerOff), None),
                Message::System(SystemEvent::Bios(service)) => {
                    self.halt();
                    let was_strict = self.strict.as_ref().is_some_and(|strict| strict.swap(false, Ordering::Relaxed));
                    if let Started::Bios(bios) = &self.start
                        && let Err(e) =
                            bios.serve(&self.machine, &self.runner, service, self.a20.load(Ordering::Relaxed))
                    {
                        return (Some(Ended::Error), Some(format!("{e:#}")));
                    }
                    if let Some(strict) = self.strict.as_ref().filter(|_| was_strict) {
                        strict.store(true, Ordering::Relaxed);
                    }
                    if !paused {
                        self.go();
                    }
                }
                Message::System(event) => {
                    self.with_vcpus(paused, |v| match event {
                        SystemEvent::Init if v.index() == 0 => v.init(),
                        SystemEvent::Nmi if v.index() == 0 => v.nmi(),
                        _ => {}
                    });
                }
                Message::Outcome(Outcome::TripleFault(report)) if self.stay && self.stopping.is_none() => {
                    // A PC resets. 386BSD and FreeBSD 8's loader reboot in no other way, so it is said once.
                    if !std::mem::replace(&mut self.faulted, true) {
                        tracing::warn!("a triple fault resets the machine; further ones are not reported\n{report}");
                    }
                    if let Some(ended) = self.wait_after_fault(messages, &mut kept) {
                        return (Some(ended), None);
                    }
                    if let Err(e) = self.start_again(messages, &mut kept) {
                        return (Some(Ended::Error), Some(format!("{e:#}")));
                    }
                    self.events.tell("reset", json!({ "by": "triple fault" }));
                    // The outcome took the place of the end that was ordered.
                    if let Some(n) = until {
                        self.runner.pause_at(n);
                    }
                    if !paused {
                        self.go();
                    }
                }
                Message::Outcome(Outcome::TripleFault(report)) => {
                    return (Some(Ended::TripleFault), Some(format!("triple fault\n{report}")));
                }
                Message::Outcome(Outcome::Halted) => return (Some(Ended::Halt), None),
                Message::Outcome(Outcome::Failed(why)) => return (Some(Ended::Error), Some(why)),
                Message::Outcome(Outcome::Limit) => return (None, None),
                // Another processor was first: this one will come to the same place again.
                Message::Outcome(Outcome::Debug(..)) if held.debugger => {}
                Message::Outcome(Outcome::Debug(cpu, stop)) => match &self.debugger {
                    Some(tell) => {
                        self.halt();
                        held.debugger = true;
                        tell(cpu, stop);
                    }
                    None if paused => {}
                    None => self.go(),
                },
                Message::Debugger(true, answer) => {
                    if !paused {
                        self.halt();
                    }
                    held.debugger = true;
                    let _ = answer.send(Ok(()));
                }
                Message::Debugger(false, answer) => {
                    let _ = answer.send(Ok(()));
                    if std::mem::take(&mut held.debugger) && !held.people {
                        self.go_on(&mut news, &mut pressed);
                    }
                }
                Message::Change(what, answer) => {
                    let (change, image) = *what;
                    let done = self.media.change(&change, image).map(|tell| match paused {
                        true => news.push(Box::new(tell)),
                        false => self.gate.pass(tell),
                    });
                    let _ = answer.send(done);
                }
                Message::Question(question) => question(self, paused),
                Message::Stop(policy, answer) => {
                    self.asked = true;
                    self.stopping = Some(Stopping::begin(policy));
                    let _ = answer.send(Ok(()));
                    if let Some(why) = self.press_again(paused, &mut pressed) {
                        return (Some(Ended::PowerOff), Some(why));
                    }
                }
                Message::Order(order, _) => {
                    match order {
                        Order::PowerButton => {
                            self.asked = true;
                            pressed |= paused;
                            if !paused {
                                self.press();
                            }
                            self.events.tell("power-button", json!({}));
                        }
                        Order::Break(port) => {
                            if let Some(uart) = self.serial.get(&port)
                                && !paused
                            {
                                self.gate.pass(|| uart.event(Event::Break));
                            }
                        }
                        Order::Pause if !held.people => {
                            if !paused {
                                self.halt();
                            }
                            held.people = true;
                            self.events.tell("paused", json!({}));
                        }
                        Order::Resume if held.people => {
                            held.people = false;
                            self.media.retry();
                            if !held.debugger {
                                self.go_on(&mut news, &mut pressed);
                            }
                            self.events.tell("resumed", json!({}));
                        }
                        Order::Pause | Order::Resume | Order::Query | Order::Reset | Order::Kill => {}
                    }
                    self.asked |= matches!(order, Order::Reset | Order::Kill);
                    self.answer(message, held.any());
                    match order {
                        Order::Reset => return (Some(Ended::Reboot), None),
                        Order::Kill => return (Some(Ended::PowerOff), None),
                        _ => {}
                    }
                }
            }
        }
    }

    /// Goes on after a pause, and tells the guest of what came meanwhile.
    fn go_on(&self, news: &mut Vec<Box<dyn FnOnce() + Send>>, pressed: &mut bool) {
        self.go();
        news.drain(..).for_each(|tell| self.gate.pass(tell));
        if std::mem::take(pressed) {
            self.press();
        }
    }

    /// Runs `f` on all processors, which stand still for it.
    fn with_vcpus<T>(&self, paused: bool, f: impl FnMut(&mut dyn Vcpu) -> T) -> Vec<T> {
        self.halt();
        let results = self.runner.with_vcpus(f);
        if !paused {
            self.go();
        }
        results
    }

    /// Each processor's counters.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn stats(&self) -> Result<Vec<Vec<(String, u64)>>> {
        self.runner.stats()
    }

    /// Each processor's registers.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn registers(&self, paused: bool) -> Result<Vec<Regs>> {
        self.with_vcpus(paused, |v| v.regs()).into_iter().collect()
    }

    /// Sends a processor an NMI.
    ///
    /// # Errors
    /// There is no such processor.
    pub fn nmi(&self, cpu: u32, paused: bool) -> Result<()> {
        let sent = self.with_vcpus(paused, |v| (v.index() == cpu).then(|| v.nmi()));
        if sent.iter().all(Option::is_none) {
            bail!("there is no processor {cpu}; the last one is {}", sent.len() - 1);
        }
        Ok(())
    }

    /// Stops everything and brings the machine to where it is after a reset.
    fn start_again(&mut self, messages: &Receiver<Message>, kept: &mut VecDeque<Message>) -> Result<()> {
        self.halt();
        // What the old run had to say is of no interest to the new one; orders are.
        kept.extend(messages.try_iter().filter(|m| !matches!(m, Message::Outcome(_) | Message::System(_))));
        self.start(ResetKind::System)?;
        self.resets += 1;
        self.started = Instant::now();
        Ok(())
    }

    fn press(&self) {
        self.gate.pass(|| self.board.pm.event(Event::PowerButton));
    }

    /// The next message, if it comes before the machine has to be asked again to stop.
    fn next_message(&self, messages: &Receiver<Message>) -> Result<Message, RecvTimeoutError> {
        match self.stopping.as_ref().and_then(Stopping::next) {
            Some(next) => messages.recv_timeout(next.saturating_duration_since(Instant::now())),
            None => Ok(messages.recv()?),
        }
    }

    /// Asks the guest to stop, if it is time for that. When it is time to cut the power, what the user is to know.
    fn press_again(&mut self, paused: bool, pressed: &mut bool) -> Option<String> {
        let stopping = self.stopping.as_mut()?;
        if let Some(why) = stopping.is_over() {
            self.events.tell("forced", json!({ "why": why }));
            return Some(why);
        }
        let method = stopping.press()?;
        let acpi = self.board.pm.read(0, PM1_CNT, 2) & SCI_EN != 0;
        let keys = match method {
            Method::Auto => !acpi,
            Method::Keyboard => true,
            Method::Acpi | Method::Kill => false,
        };
        if keys {
            // What has no place among the keys that wait is typed the next time.
            let keys = host::keyboard::parse("<ctrl-alt-delete>").unwrap_or_default();
            self.board.typist.press(&keys);
        } else if paused {
            *pressed = true;
        } else {
            self.press();
        }
        let how = if keys { "ctrl-alt-delete" } else { "power-button" };
        self.events.tell(how, json!({ "by": "stop" }));
        None
    }

    /// Waits before the guest is started again after a triple fault, if there were others lately. Orders are followed
    /// as far as they can be; the end that is asked for comes at once.
    fn wait_after_fault(&mut self, messages: &Receiver<Message>, kept: &mut VecDeque<Message>) -> Option<Ended> {
        let wait = self.backoff.as_mut()?.after(self.started.elapsed());
        if wait.is_zero() {
            return None;
        }
        self.halt();
        self.events.tell("waiting", json!({ "seconds": wait.as_secs(), "after": "triple fault" }));
        let end = Instant::now() + wait;
        loop {
            match messages.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(message @ Message::Order(Order::Query, _)) => self.answer(message, false),
                Ok(message @ Message::Order(Order::Reset, _)) => {
                    self.answer(message, false);
                    return None;
                }
                Ok(message @ Message::Order(Order::Kill | Order::PowerButton, _)) => {
                    self.asked = true;
                    self.answer(message, false);
                    return Some(Ended::TripleFault);
                }
                Ok(Message::Stop(_, answer)) => {
                    self.asked = true;
                    let _ = answer.send(Ok(()));
                    return Some(Ended::TripleFault);
                }
                Ok(Message::Question(question)) => question(self, true),
                Ok(message) => kept.push_back(message),
                Err(_) => return None,
            }
        }
    }

    /// Whether the end was asked for by people.
    pub fn asked(&self) -> bool {
        self.asked
    }

    /// Answers an order that has been followed.
    fn answer(&self, message: Message, paused: bool) {
        if let Message::Order(_, Some(to)) = message {
            let status = Status { paused, guest_ns: self.machine.clock().now(), resets: self.resets };
            let _ = to.send(Ok(status));
        }
    }

    /// What its drives have in them.
    pub fn media(&self) -> Arc<Media> {
        self.media.clone()
    }

    /// What its network cards are connected by, by their numbers.
    pub fn cables(&self) -> BTreeMap<u32, Cable> {
        self.cables.clone()
    }

    /// Instructions executed by all processors, where they are counted, and nanoseconds of guest time.
    pub fn counts(&self) -> (Option<u64>, u64) {
        let counts = self.runner.with_vcpus(|v| v.icount());
        (counts.into_iter().sum(), self.machine.clock().now())
    }
}

/// Refuses a kernel that says it needs what the processor lacks: started directly, it would not look, and die mute.
fn suits(kernel: &Kernel, model: &cpu::Model) -> Result<()> {
    let lacks = |name: &&str| !Feature::named(name).is_some_and(|f| model.has(f));
    let missing: Vec<&str> = boot::required_features(&kernel.bytes).into_iter().filter(lacks).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (name, cpu, missing) = (&kernel.name, model.name, missing.join(" "));
    bail!("{name}: it was built for processors with features that the guest's ({cpu}) lacks: {missing}");
}

fn send(to: &Sender<Message>, message: Message) {
    // The main thread hears nothing any more once the machine has ended.
    let _ = to.send(message);
}
