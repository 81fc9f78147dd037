//! The life of a machine: assembly, start, reset, power-off, and the exit status that tells which it was.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result, bail};
use boot::platform::{IsaPort, Platform};
use boot::{Image, Layout, MemoryMap};
use cpu::Feature;
use emu::backend::Chardev;
use emu::{
    AddressSpace, Backends, Backing, Clock, DeviceCell, Event, Machine, Ram, RamAddr, Random, ResetKind, Rights,
    SystemEvent,
};
use host::console::{Desk, Nothing, Script, Step};
use host::keyboard::Typist;
use host::{Gate, Io, IoThread};
use hv::{Hypervisor, Outcome, Runner, VmConfig};
use lpc::Ns16550;

use crate::bios;
use crate::board::{self, Board};
use crate::firmware;
use crate::media::{Change, Media};
use crate::plan::{Peripherals, Plan};
use crate::processor::LOW_LIMIT;
use crate::rom::{self, Firmware};
use crate::state::Paused;
use crate::watch::Watch;

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
    /// Give the guest ACPI tables.
    pub acpi: bool,
    /// A reset starts the guest again instead of ending the run.
    pub stay: bool,
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

type Answer = Option<Sender<Result<Status, String>>>;

/// What the main thread hears of.
enum Message {
    Outcome(Outcome),
    System(SystemEvent),
    Order(Order, Answer),
    Change(Box<(Change, host::disk::Image)>, Sender<Result<(), String>>),
}

/// Gives orders to a machine, from any thread.
#[derive(Clone)]
pub struct Handle(Sender<Message>);

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
    /// Changes what is in a drive, and waits until that is done.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn change(&self, change: Change, image: host::disk::Image) -> Result<(), String> {
        let (tx, answer) = channel();
        send(&self.0, Message::Change(Box::new((change, image)), tx));
        answer.recv().unwrap_or_else(|_| Err("the machine has ended".to_owned()))
    }
}

/// Where a machine's orders come in.
pub struct Inbox(Receiver<Message>);

/// The two ends of a machine's orders.
pub fn orders() -> (Handle, Inbox) {
    let (tx, rx) = channel();
    (Handle(tx), Inbox(rx))
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
    serial: Vec<Arc<DeviceCell>>,
    media: Arc<Media>,
    platform: Platform,
    start: Started,
    tables: Vec<boot::Piece>,
    a20: Arc<AtomicBool>,
    ram: RamAddr,
    low: u64,
    shape: String,
    stay: bool,
    resets: u64,
    /// A triple fault has been reported.
    faulted: bool,
    messages: Option<Receiver<Message>>,
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
        let Connections { io, mut serial, script, plan, orders: (Handle(tx), Inbox(messages)) } = connections;
        let low = spec.memory.min(LOW_LIMIT);
        let ram = Arc::new(Ram::new(spec.memory + (64 << 20)).context("cannot reserve guest memory")?);
        let block = ram.alloc("ram", spec.memory).context("cannot allocate guest memory")?;
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
        let config =
            VmConfig { name: spec.name.clone(), cpus: spec.cpus, model: spec.model.clone(), plain: spec.plain };
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
        let boot_order = match &spec.start {
            Start::Firmware(firmware) => plan.boot_order(&firmware.order),
            _ => Vec::new(),
        };
        let Peripherals { drives, mut media, screen, wires } = plan.plug(&machine, &board)?;
        let told = tx.clone();
        media.on_stall(move || send(&told, Message::Order(Order::Pause, None)));
        let ports: Vec<IsaPort> = COM[..serial.len().min(4)].to_vec();
        if let Some(steps) = script {
            for (n, step) in steps.iter().enumerate() {
                if let Some((nic, _)) = step.frame.as_ref().filter(|(nic, _)| !wires.contains_key(nic)) {
                    bail!("script, step {}: there is no network card {nic} with backend = \"script\"", n + 1);
                }
            }
            let desk = Some(Desk { typist: board.typist.clone(), screen: screen.clone(), wires });
            // Without a console at COM1 there is still the keyboard.
            let mut nobody = None;
            let com1 = serial.first_mut().unwrap_or(&mut nobody);
            let output = com1.take().unwrap_or_else(|| Box::new(Nothing));
            *com1 = Some(Script::start(&machine, "com1-script", steps, output, desk).1);
        }
        let mut uarts = Vec::new();
        for (n, (port, chardev)) in ports.iter().zip(serial).enumerate() {
            let backends = Backends { chardev, ..Backends::default() };
            let (base, irq) = (port.port, u32::from(port.irq));
            let uart = machine
                .plug_with(&format!("com{}", n + 1), None, backends, |slot| Ok(Ns16550::create(slot, base, irq)))
                .map_err(|e| anyhow::anyhow!(e))?;
            uarts.push(uart);
        }

        let chips = vm.chips();
        let mut platform = board::platform(spec.board, chips.as_deref(), spec.cpus, &spec.model, low, ports, spec.uuid);
        platform.floppy = floppy;
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
                if spec.board.fw_cfg {
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
        if spec.board.fw_cfg {
            board::fw_cfg(&machine, items)?;
        }

        let told = tx.clone();
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
            platform,
            start,
            tables: pieces,
            a20,
            ram: block.start,
            low,
            shape,
            stay: spec.stay,
            resets: 0,
            faulted: false,
            messages: Some(messages),
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

    /// Runs until the machine ends, or its processors have executed `until` instructions: then there is no way in which
    /// it ended. The second value is for the user, if there is something to say. It runs once.
    pub fn run(&mut self, until: Option<u64>) -> (Option<Ended>, Option<String>) {
        if let Some(n) = until {
            self.runner.pause_at(n);
        }
        // Dropped at the end, and with it the questions that came too late.
        let messages = self.messages.take();
        self.go();
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
        let mut paused = false;
        let mut pressed = false;
        // What the guest is told when the machine goes on.
        let mut news: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
        loop {
            let message = match kept.pop_front().map_or_else(|| messages.recv(), Ok) {
                Ok(message) => message,
                Err(_) => return (Some(Ended::Error), Some("the processors' threads are gone".to_owned())),
            };
            match message {
                Message::System(SystemEvent::Reset) | Message::Order(Order::Reset, _) if self.stay => {
                    if let Err(e) = self.start_again(messages, &mut kept) {
                        return (Some(Ended::Error), Some(format!("{e:#}")));
                    }
                    self.answer(message, paused);
                    if !paused {
                        self.go();
                    }
                }
                Message::System(SystemEvent::Reset) => return (Some(Ended::Reboot), None),
                Message::System(SystemEvent::PowerOff) => return (Some(Ended::PowerOff), None),
                Message::System(SystemEvent::Bios(service)) => {
                    self.halt();
                    if let Started::Bios(bios) = &self.start
                        && let Err(e) =
                            bios.serve(&self.machine, &self.runner, service, self.a20.load(Ordering::Relaxed))
                    {
                        return (Some(Ended::Error), Some(format!("{e:#}")));
                    }
                    if !paused {
                        self.go();
                    }
                }
                Message::System(event) => {
                    self.halt();
                    self.runner.with_vcpus(|v| match event {
                        SystemEvent::Init if v.index() == 0 => v.init(),
                        SystemEvent::Nmi if v.index() == 0 => v.nmi(),
                        _ => {}
                    });
                    if !paused {
                        self.go();
                    }
                }
                Message::Outcome(Outcome::TripleFault(report)) if self.stay => {
                    // A PC resets. 386BSD and FreeBSD 8's loader reboot in no other way, so it is said once.
                    if !std::mem::replace(&mut self.faulted, true) {
                        tracing::warn!("a triple fault resets the machine; further ones are not reported\n{report}");
                    }
                    if let Err(e) = self.start_again(messages, &mut kept) {
                        return (Some(Ended::Error), Some(format!("{e:#}")));
                    }
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
                Message::Change(what, answer) => {
                    let (change, image) = *what;
                    let done = self.media.change(&change, image).map(|tell| match paused {
                        true => news.push(Box::new(tell)),
                        false => self.gate.pass(tell),
                    });
                    let _ = answer.send(done);
                }
                Message::Order(order, _) => {
                    match order {
                        Order::PowerButton if paused => pressed = true,
                        Order::PowerButton => self.press(),
                        Order::Break(port) => {
                            if let Some(uart) = self.serial.get(port)
                                && !paused
                            {
                                self.gate.pass(|| uart.event(Event::Break));
                            }
                        }
                        Order::Pause if !paused => {
                            self.halt();
                            paused = true;
                        }
                        Order::Resume if paused => {
                            paused = false;
                            self.media.retry();
                            self.go();
                            news.drain(..).for_each(|tell| self.gate.pass(tell));
                            if std::mem::take(&mut pressed) {
                                self.press();
                            }
                        }
                        Order::Pause | Order::Resume | Order::Query | Order::Reset | Order::Kill => {}
                    }
                    self.answer(message, paused);
                    match order {
                        Order::Reset => return (Some(Ended::Reboot), None),
                        Order::Kill => return (Some(Ended::PowerOff), None),
                        _ => {}
                    }
                }
            }
        }
    }

    /// Stops everything and brings the machine to where it is after a reset.
    fn start_again(&mut self, messages: &Receiver<Message>, kept: &mut VecDeque<Message>) -> Result<()> {
        self.halt();
        // What the old run had to say is of no interest to the new one; orders are.
        kept.extend(messages.try_iter().filter(|m| matches!(m, Message::Order(..) | Message::Change(..))));
        self.start(ResetKind::System)?;
        self.resets += 1;
        Ok(())
    }

    fn press(&self) {
        self.gate.pass(|| self.board.pm.event(Event::PowerButton));
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
