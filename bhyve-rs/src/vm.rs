//! The life of a machine: assembly, start, reset, power-off, and the exit status that tells which it was.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use anyhow::{Context, Result};
use boot::platform::{IsaPort, Platform};
use boot::{Image, Layout, MemoryMap};
use emu::backend::Chardev;
use emu::{AddressSpace, Backends, Backing, Clock, Event, Machine, Ram, RamAddr, ResetKind, Rights, SystemEvent};
use host::{Gate, IoThread};
use hv::{Hypervisor, Outcome, Runner, VmConfig};
use lpc::Ns16550;

use crate::board::{self, Board};
use crate::firmware;
use crate::state::Paused;

/// RAM below this address; the rest lies above 4 GiB.
const LOW_LIMIT: u64 = 0xc000_0000;
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

/// What a machine is made of.
pub struct Spec {
    /// Number of processors.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Which board.
    pub board: board::Kind,
    /// What the processors claim to be.
    pub model: cpu::Model,
    /// Use the plain interpreter.
    pub plain: bool,
    /// Executed instructions drive the clock.
    pub instruction_clock: bool,
    /// Seconds since 1970 at power-on.
    pub rtc_start: i64,
    /// SMBIOS UUID.
    pub uuid: [u8; 16],
    /// Give the guest ACPI tables.
    pub acpi: bool,
    /// The kernel.
    pub kernel: Kernel,
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

/// What the main thread hears of.
enum Message {
    Outcome(Outcome),
    System(SystemEvent),
    PowerButton,
}

/// Counts for the run report.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// Instructions executed by all processors, where they are counted.
    pub instructions: Option<u64>,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Guest seconds.
    pub guest_seconds: f64,
}

/// A machine that is ready to run.
pub struct Instance {
    machine: Arc<Machine>,
    runner: Runner,
    gate: Arc<Gate>,
    board: Board,
    platform: Platform,
    image: Image,
    tables: Vec<boot::Piece>,
    ram: RamAddr,
    low: u64,
    shape: String,
    messages: Receiver<Message>,
    sender: Sender<Message>,
    _io: IoThread,
}

impl Instance {
    /// Assembles the machine. `serial` are the backends of COM1 and on; nothing runs yet.
    ///
    /// # Errors
    /// One line for the user.
    pub fn new(
        spec: &Spec,
        gate: Arc<Gate>,
        hypervisor: &dyn Hypervisor,
        serial: Vec<Option<Box<dyn Chardev>>>,
    ) -> Result<Instance> {
        let low = spec.memory.min(LOW_LIMIT);
        let ram = Arc::new(Ram::new(spec.memory + (64 << 20)).context("cannot reserve guest memory")?);
        let block = ram.alloc("ram", spec.memory).context("cannot allocate guest memory")?;
        let space = AddressSpace::new(ram);
        for (base, len, at) in
            [(0, 0xa_0000, 0), (0x10_0000, low.saturating_sub(0x10_0000), 0x10_0000), (1 << 32, spec.memory - low, low)]
        {
            let id = space.add_memory(base, len, 0, Rights::ReadWrite, Backing::Ram(RamAddr(block.start.0 + at)));
            space.enable(id, base, true);
        }
        let clock = if spec.instruction_clock { Clock::instructions() } else { Clock::running() };
        let machine = Machine::new(space, clock);
        let config = VmConfig { cpus: spec.cpus, model: spec.model.clone(), plain: spec.plain };
        let vm = hypervisor.create(&machine, &config)?;
        let parts = board::Parts {
            kind: spec.board,
            ram: block.start,
            memory: spec.memory,
            low_memory: low,
            rtc_start: spec.rtc_start,
        };
        let board = board::build(&machine, &vm, &parts)?;
        let ports: Vec<IsaPort> = COM[..serial.len().min(4)].to_vec();
        for (n, (port, chardev)) in ports.iter().zip(serial).enumerate() {
            let backends = Backends { chardev, ..Backends::default() };
            let (base, irq) = (port.port, u32::from(port.irq));
            machine
                .plug_with(&format!("com{}", n + 1), None, backends, |slot| Ok(Ns16550::create(slot, base, irq)))
                .map_err(|e| anyhow::anyhow!(e))?;
        }

        let mut platform = board::platform(spec.board, spec.cpus, &spec.model, low, ports, spec.uuid);
        if !spec.acpi {
            platform.acpi = None;
        }
        let mut map = MemoryMap::new(spec.memory, LOW_LIMIT)?;
        let tables = boot::tables::build(&platform, &mut map)?;
        let layout = Layout { map: &map, rsdp: tables.rsdp, vga_text: false, long_mode: true };
        let k = &spec.kernel;
        let image = boot::load(&k.bytes, k.initrd.as_deref(), &k.args, &layout).with_context(|| k.name.clone())?;
        let mut pieces = tables.pieces;
        pieces.extend(boot::tables::bios_data(&platform));

        let (tx, messages) = channel();
        let (told, sender) = (tx.clone(), tx.clone());
        let runner = Runner::new(vm.clone(), machine.clone(), move |outcome| send(&told, Message::Outcome(outcome)))?;
        let pause = runner.pauser();
        machine.on_system(move |event| match event {
            SystemEvent::A20(open) => vm.set_a20(open),
            event => {
                pause();
                send(&tx, Message::System(event));
            }
        });
        let io = IoThread::start(&machine, &gate)?;
        let instance = Instance {
            machine,
            runner,
            gate,
            board,
            platform,
            image,
            tables: pieces,
            ram: block.start,
            low,
            shape: format!("{} processors, {} bytes of memory, board {:?}", spec.cpus, spec.memory, spec.board),
            messages,
            sender,
            _io: io,
        };
        instance.power_on()?;
        Ok(instance)
    }

    /// A way to press the power button from any thread.
    pub fn power_button(&self) -> impl Fn() + Send + 'static {
        let to = self.sender.clone();
        move || send(&to, Message::PowerButton)
    }

    /// Brings all parts to their power-on state, does what firmware does, and loads the kernel.
    fn power_on(&self) -> Result<()> {
        self.machine.reset(ResetKind::PowerOn);
        self.runner.with_vcpus(|v| v.reset());
        firmware::assign(&self.machine, &self.platform)?;
        for range in &self.image.zero {
            let zeros = vec![0; 1 << 16];
            let mut at = range.start;
            while at < range.end {
                let n = (range.end - at).min(zeros.len() as u64);
                self.store(at, &zeros[..n as usize]);
                at += n;
            }
        }
        for piece in self.tables.iter().chain(&self.image.pieces) {
            self.store(piece.gpa, &piece.bytes);
        }
        let entry = self.image.entry;
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

    /// Runs until the machine ends, or its processors have executed `until` instructions: then there is no way in which it
    /// ended. The second value is for the user, if there is something to say.
    pub fn run(&self, until: Option<u64>) -> (Option<Ended>, Option<String>) {
        if let Some(n) = until {
            self.runner.pause_at(n);
        }
        self.gate.open();
        self.runner.resume();
        let (ended, why) = loop {
            match self.messages.recv() {
                Ok(Message::System(SystemEvent::Reset)) => break (Some(Ended::Reboot), None),
                Ok(Message::System(SystemEvent::PowerOff)) => break (Some(Ended::PowerOff), None),
                Ok(Message::PowerButton) => self.gate.pass(|| self.board.pm.event(Event::PowerButton)),
                Ok(Message::System(event)) => {
                    self.runner.pause();
                    self.runner.with_vcpus(|v| match event {
                        SystemEvent::Init if v.index() == 0 => v.init(),
                        SystemEvent::Nmi if v.index() == 0 => v.nmi(),
                        _ => {}
                    });
                    self.runner.resume();
                }
                Ok(Message::Outcome(Outcome::TripleFault(report))) => break (Some(Ended::TripleFault), Some(report)),
                Ok(Message::Outcome(Outcome::Halted)) => break (Some(Ended::Halt), None),
                Ok(Message::Outcome(Outcome::Failed(why))) => break (Some(Ended::Error), Some(why)),
                Ok(Message::Outcome(Outcome::Limit)) => break (None, None),
                Err(_) => break (Some(Ended::Error), Some("the processors' threads are gone".to_owned())),
            }
        };
        self.runner.pause();
        self.gate.close();
        (ended, why)
    }

    /// The counts so far, for a run that began at `start`.
    pub fn stats(&self, start: Instant) -> Stats {
        let counts = self.runner.with_vcpus(|v| v.icount());
        Stats {
            instructions: counts.into_iter().sum(),
            seconds: start.elapsed().as_secs_f64(),
            guest_seconds: self.machine.clock().now() as f64 / 1e9,
        }
    }
}

fn send(to: &Sender<Message>, message: Message) {
    // The main thread hears nothing any more once the machine has ended.
    let _ = to.send(message);
}
