//! xHCI, as bhyve's: Intel's Panther Point controller, 8086:1E31, with four USB 3 ports and four USB 2 ports.
//!
//! eXtensible Host Controller Interface 1.0 ("xHCI" below gives its sections). One interrupter, no streams, no
//! isochronous transfers, no scratchpad, contexts of 32 bytes. All devices are USB 2 devices, so they are
//! at ports 5 to 8. Port resets end at once. Nothing runs by itself: rings are looked at when a doorbell rings, when the
//! guest has made room for events, and when a device that had nothing to say has something now.
//!
//! A guest's rings may lead anywhere. One call follows so many TRBs ([`BUDGET`], [`transfer::MOST_TRBS`]) and leaves the
//! rest to a timer; what would come out of a transfer event by event waits in a queue that stops further work while
//! anything is in it.

mod command;
#[cfg(test)]
mod tests;
mod transfer;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use emu::{
    BarKind, Class, Device, DmaMem, Event, IrqLine, Model, Msi, Params, PciIds, Pin, ResetKind, Slot, State, Timer,
    Widths,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Bus, Speed};

/// The model.
pub static MODEL: Model = Model {
    name: "xhci",
    summary: "USB 3 controller (8086:1E31)",
    class: Class::Usb { ports: USB2_PORTS },
    keys: &[],
    create: |slot, params| Ok(Box::new(Xhci::create(slot, params)?)),
};

/// Ports of each kind; those of USB 3 come first.
const USB3_PORTS: usize = 4;
const USB2_PORTS: usize = 4;
const PORTS: usize = USB3_PORTS + USB2_PORTS;
/// Device slots.
const SLOTS: usize = 64;

/// TRBs of commands that are done in one go.
const BUDGET: usize = 256;
/// How long what is left then waits, nanoseconds.
const PAUSE: u64 = 100_000;

const REGISTERS: u32 = 0;
const LEN: u64 = 0x4000;

/// Where the groups of registers are.
const OPERATIONAL: u64 = 0x20;
const PORT_REGISTERS: u64 = OPERATIONAL + 0x400;
const EXTENDED: u64 = 0x800;
const RUNTIME: u64 = 0x1000;
const DOORBELLS: u64 = 0x2000;

/// Timers.
const MODERATION: u32 = 0;
const WORK: u32 = 1;

/// USBCMD.
mod command_bits {
    pub const RUN: u32 = 1;
    pub const RESET: u32 = 1 << 1;
    pub const INTERRUPTS: u32 = 1 << 2;
    pub const SAVE: u32 = 1 << 8;
    pub const RESTORE: u32 = 1 << 9;
    /// What is kept: run, interrupts, host system errors, wrap events.
    pub const KEPT: u32 = RUN | INTERRUPTS | 1 << 3 | 1 << 10;
}
/// USBSTS.
mod status {
    pub const HALTED: u32 = 1;
    pub const EVENT: u32 = 1 << 3;
    pub const PORT: u32 = 1 << 4;
    pub const RESTORE_ERROR: u32 = 1 << 10;
    pub const ERROR: u32 = 1 << 12;
    /// Cleared by writing ones.
    pub const CLEARS: u32 = 1 << 2 | EVENT | PORT | RESTORE_ERROR;
}
/// PORTSC.
mod portsc {
    pub const CONNECTED: u32 = 1;
    pub const ENABLED: u32 = 1 << 1;
    pub const RESET: u32 = 1 << 4;
    pub const LINK: u32 = 0xf << 5;
    pub const POWER: u32 = 1 << 9;
    pub const CONNECT_CHANGE: u32 = 1 << 17;
    pub const RESET_CHANGE: u32 = 1 << 21;
    pub const LINK_CHANGE: u32 = 1 << 22;
    pub const CHANGES: u32 = 0x7f << 17;
    pub const LINK_WRITE: u32 = 1 << 16;
    pub const WARM_RESET: u32 = 1 << 31;
    /// Indicators and wake-ups.
    pub const KEPT: u32 = 3 << 14 | 7 << 25;
    /// States of the link.
    pub const U0: u32 = 0;
    pub const U3: u32 = 3 << 5;
    pub const RX_DETECT: u32 = 5 << 5;
    pub const POLLING: u32 = 7 << 5;
    pub const RESUME: u32 = 15 << 5;
}
/// IMAN.
const PENDING: u32 = 1;
const ENABLED: u32 = 2;
/// ERDP: the handler is busy.
const BUSY: u64 = 1 << 3;
/// The unit of IMODI, nanoseconds.
const IMOD_UNIT: u64 = 250;
/// A microframe, nanoseconds.
const MICROFRAME: u64 = 125_000;

/// Types of TRBs.
mod kind {
    pub const NORMAL: u32 = 1;
    pub const SETUP: u32 = 2;
    pub const DATA: u32 = 3;
    pub const STATUS: u32 = 4;
    pub const LINK: u32 = 6;
    pub const EVENT_DATA: u32 = 7;
    pub const NO_OP: u32 = 8;
    pub const TRANSFER_EVENT: u32 = 32;
    pub const COMMAND_COMPLETION: u32 = 33;
    pub const PORT_STATUS_CHANGE: u32 = 34;
}
/// Completion codes, xHCI 6.4.5.
mod code {
    pub const SUCCESS: u32 = 1;
    pub const TRANSACTION: u32 = 4;
    pub const TRB: u32 = 5;
    pub const STALL: u32 = 6;
    pub const NO_SLOTS: u32 = 9;
    pub const SLOT_NOT_ENABLED: u32 = 11;
    pub const ENDPOINT_NOT_ENABLED: u32 = 12;
    pub const SHORT_PACKET: u32 = 13;
    pub const PARAMETER: u32 = 17;
    pub const CONTEXT_STATE: u32 = 19;
    pub const COMMAND_RING_STOPPED: u32 = 24;
    pub const STOPPED: u32 = 26;
}

/// A transfer request block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Trb {
    parameter: u64,
    status: u32,
    control: u32,
}

impl Trb {
    const LEN: u64 = 16;
    /// Toggle Cycle, of a link.
    const TOGGLE: u32 = 1 << 1;
    /// Interrupt on Short Packet.
    const SHORT: u32 = 1 << 2;
    const CHAIN: u32 = 1 << 4;
    /// Interrupt On Completion.
    const INTERRUPT: u32 = 1 << 5;
    /// The data are in the TRB.
    const IMMEDIATE: u32 = 1 << 6;
    /// Block Event Interrupt.
    const QUIET: u32 = 1 << 9;
    /// The device sends.
    const READS: u32 = 1 << 16;

    fn fetch(dma: &DmaMem, at: u64) -> Trb {
        let bytes: [u8; 16] = dma.fetch(at);
        let value = u128::from_le_bytes(bytes);
        Trb { parameter: value as u64, status: (value >> 64) as u32, control: (value >> 96) as u32 }
    }

    fn has(&self, bit: u32) -> bool {
        self.control & bit != 0
    }

    fn cycle(&self) -> bool {
        self.has(1)
    }

    fn kind(&self) -> u32 {
        self.control >> 10 & 63
    }

    /// The slot that a command is for.
    fn slot(&self) -> usize {
        (self.control >> 24) as usize
    }
}

/// Where a consumer is in a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ring {
    at: u64,
    cycle: bool,
}

impl Ring {
    /// Of a pointer with the cycle state in bit 0.
    fn new(pointer: u64) -> Ring {
        Ring { at: pointer & !0xf, cycle: pointer & 1 != 0 }
    }

    fn pointer(self) -> u64 {
        self.at | u64::from(self.cycle)
    }

    /// Past `trb`, which is here.
    fn pass(&mut self, trb: &Trb) {
        if trb.kind() == kind::LINK {
            self.at = trb.parameter & !0xf;
            self.cycle ^= trb.has(Trb::TOGGLE);
        } else {
            self.at = self.at.wrapping_add(Trb::LEN);
        }
    }
}

/// The state of a slot, as in its context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Serialize, Deserialize)]
enum SlotState {
    #[default]
    Disabled,
    /// It has no context yet.
    Enabled,
    Default,
    Addressed,
    Configured,
}

/// The state of an endpoint, as in its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum EndpointState {
    Running = 1,
    Halted = 2,
    Stopped = 3,
    Error = 4,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Endpoint {
    state: EndpointState,
    /// Bytes of a packet.
    packet: u16,
    /// Where the next TD begins.
    ring: Ring,
    /// Bytes of it that were moved.
    done: u32,
    /// Its doorbell rang, and it has not yet found the ring empty.
    rung: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct DeviceSlot {
    state: SlotState,
    /// From 0.
    port: usize,
    /// By their number in a context.
    endpoints: BTreeMap<u8, Endpoint>,
}

/// Where the next event goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Producer {
    segment: u32,
    index: u32,
    cycle: bool,
}

const FIRST: Producer = Producer { segment: 0, index: 0, cycle: true };

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Registers {
    command: u32,
    status: u32,
    notifications: u32,
    commands: Ring,
    /// CRR.
    commands_run: bool,
    contexts: u64,
    config: u32,
    iman: u32,
    imod: u32,
    erst_size: u32,
    erst: u64,
    erdp: u64,
    producer: Producer,
    /// Events for which there is no room yet, and whether each is to interrupt.
    events: VecDeque<(Trb, bool)>,
    /// An event is to interrupt: IPE of xHCI 4.17.2.
    wants_interrupt: bool,
    quiet_until: u64,
    ports: Vec<u32>,
    /// PORTPMSC.
    power: Vec<u32>,
    slots: Vec<DeviceSlot>,
    legacy: [u32; 2],
    /// The guest had the state saved.
    kept: bool,
}

impl Default for Registers {
    fn default() -> Registers {
        Registers {
            command: 0,
            status: status::HALTED,
            notifications: 0,
            commands: Ring::default(),
            commands_run: false,
            contexts: 0,
            config: 0,
            iman: 0,
            imod: 4000,
            erst_size: 0,
            erst: 0,
            erdp: 0,
            producer: FIRST,
            events: VecDeque::new(),
            wants_interrupt: false,
            quiet_until: 0,
            ports: vec![portsc::POWER | portsc::RX_DETECT; PORTS],
            power: vec![0; PORTS],
            slots: vec![DeviceSlot::default(); SLOTS + 1],
            legacy: [0; 2],
            kept: false,
        }
    }
}

struct Xhci {
    dma: DmaMem,
    irq: Arc<IrqLine>,
    msi: Msi,
    moderation: Arc<Timer>,
    work: Arc<Timer>,
    bus: Bus,
    r: Registers,
}

impl Xhci {
    fn create(slot: &mut Slot, params: &Params) -> Result<Xhci, String> {
        let function = slot.pci(PciIds {
            vendor: 0x8086,
            device: 0x1e31,
            class: 0x0c_0330,
            revision: 0,
            sub_vendor: 0,
            subsystem: 0,
        })?;
        // SBRN: USB 3.0.
        function.config(|c| c.set8(0x60, 0x30));
        slot.bar(0, BarKind::Mem32, LEN, REGISTERS, Widths::QWORD);
        let (irq, dma) = (slot.intx(Pin::A), slot.dma());
        let msi = slot.msi(1);
        let bus = Bus::create(slot, params, USB2_PORTS);
        let [moderation, work] = [MODERATION, WORK].map(|n| slot.timer(n));
        let mut xhci = Xhci { dma, irq, msi, moderation, work, bus, r: Registers::default() };
        xhci.reset_all();
        Ok(xhci)
    }

    /// HCRST.
    fn reset_all(&mut self) {
        self.bus.reset();
        let legacy = self.r.legacy;
        self.r = Registers { legacy, ..Registers::default() };
        for n in 0..USB2_PORTS {
            if let Some(device) = self.bus.device(n) {
                self.r.ports[USB3_PORTS + n] = portsc::POWER
                    | portsc::CONNECTED
                    | portsc::CONNECT_CHANGE
                    | portsc::POLLING
                    | speed_id(device.speed()) << 10;
            }
        }
        self.moderation.cancel();
        self.work.cancel();
        self.update_line();
    }

    fn running(&self) -> bool {
        self.r.status & (status::HALTED | status::ERROR) == 0
    }

    /// It may look at rings.
    fn works(&self) -> bool {
        self.running() && self.dma.enabled() && self.r.events.is_empty()
    }

    /// The controller cannot go on: only a reset helps.
    fn fail(&mut self) {
        self.r.status |= status::ERROR | status::HALTED;
        self.r.command &= !command_bits::RUN;
        self.r.events.clear();
    }

    // Events, xHCI 4.9.4 and 4.17.

    /// A segment of the event ring: where it is, and how many TRBs it holds.
    fn segment(&self, n: u32) -> Option<(u64, u32)> {
        let entry = Trb::fetch(&self.dma, self.r.erst.wrapping_add(16 * u64::from(n)));
        let size = entry.status & 0xffff;
        (n < self.r.erst_size && (16..=4096).contains(&size)).then_some((entry.parameter & !0x3f, size))
    }

    fn post(&mut self, event: Trb, interrupts: bool) {
        self.r.events.push_back((event, interrupts));
        self.deliver();
    }

    /// Moves events into the ring as far as it has room.
    fn deliver(&mut self) {
        while self.running()
            && self.dma.enabled()
            && let Some((event, interrupts)) = self.r.events.front().copied()
        {
            let here = self.r.producer;
            let mut next = Producer { index: here.index.wrapping_add(1), ..here };
            let Some((base, size)) = self.segment(here.segment) else { return self.fail() };
            let at = base.wrapping_add(Trb::LEN * u64::from(here.index));
            let mut next_at = at.wrapping_add(Trb::LEN);
            if next.index >= size {
                next = Producer { segment: here.segment + 1, index: 0, ..here };
                if next.segment >= self.r.erst_size {
                    next = Producer { segment: 0, index: 0, cycle: !here.cycle };
                }
                let Some((base, _)) = self.segment(next.segment) else { return self.fail() };
                next_at = base;
            }
            // One place stays free, or a full ring would look empty.
            if next_at == self.r.erdp & !0xf {
                break;
            }
            self.dma.write(at, &event.parameter.to_le_bytes());
            self.dma.write_u32(at.wrapping_add(8), event.status);
            self.dma.write_u32(at.wrapping_add(12), event.control & !1 | u32::from(here.cycle));
            self.r.producer = next;
            self.r.events.pop_front();
            self.r.wants_interrupt |= interrupts;
        }
        self.interrupt();
    }

    /// Interrupts if there is something, the guest's handler has ended, and the last time is long enough ago.
    fn interrupt(&mut self) {
        let r = &mut self.r;
        if !r.wants_interrupt || r.erdp & BUSY != 0 {
            return;
        }
        let now = self.moderation.now();
        if now < r.quiet_until {
            return self.moderation.set(r.quiet_until);
        }
        r.quiet_until = now + u64::from(r.imod & 0xffff) * IMOD_UNIT;
        (r.wants_interrupt, r.erdp) = (false, r.erdp | BUSY);
        r.iman |= PENDING;
        r.status |= status::EVENT;
        self.update_line();
    }

    fn update_line(&mut self) {
        let enabled = self.r.iman & ENABLED != 0 && self.r.command & command_bits::INTERRUPTS != 0;
        if enabled && self.r.iman & PENDING != 0 && self.msi.enabled() {
            // The message stands for it.
            self.r.iman &= !PENDING;
            self.msi.send(0);
        }
        self.irq.set(enabled && self.r.iman & PENDING != 0);
    }

    fn set_erdp(&mut self, value: u64) {
        let busy = self.r.erdp & BUSY & !value;
        self.r.erdp = value & !BUSY | busy;
        let producer = self.r.producer;
        if self
            .segment(producer.segment)
            .is_some_and(|(base, _)| base.wrapping_add(Trb::LEN * u64::from(producer.index)) == value & !0xf)
        {
            // It has seen all there is.
            self.r.wants_interrupt = false;
        }
        self.deliver();
        self.resume();
    }

    // Ports, xHCI 4.15 and 4.19.

    /// Sets bits of PORTSC that say what has changed.
    fn changed(&mut self, port: usize, bits: u32) {
        let before = self.r.ports[port];
        self.r.ports[port] |= bits;
        self.r.status |= status::PORT;
        if before & portsc::CHANGES == 0 && self.running() {
            self.tell_change(port);
        }
    }

    fn tell_change(&mut self, port: usize) {
        let event = Trb {
            parameter: (port as u64 + 1) << 24,
            status: code::SUCCESS << 24,
            control: kind::PORT_STATUS_CHANGE << 10,
        };
        self.post(event, true);
    }

    fn set_link(&mut self, port: usize, link: u32) {
        self.r.ports[port] = self.r.ports[port] & !portsc::LINK | link;
    }

    fn device_at(&mut self, port: usize) -> Option<&mut super::Device> {
        self.bus.device(port.checked_sub(USB3_PORTS)?)
    }

    fn write_port(&mut self, port: usize, value: u32) {
        let status = &mut self.r.ports[port];
        *status = *status & !(value & portsc::CHANGES) & !portsc::KEPT | value & portsc::KEPT;
        let connected = *status & portsc::CONNECTED != 0;
        if value & (portsc::RESET | portsc::WARM_RESET) != 0 {
            if connected {
                if let Some(device) = self.device_at(port) {
                    device.reset();
                }
                self.set_link(port, portsc::U0);
                self.r.ports[port] |= portsc::ENABLED;
                self.changed(port, portsc::RESET_CHANGE);
            }
            return;
        }
        if value & portsc::ENABLED != 0 {
            *status &= !portsc::ENABLED;
        }
        if value & portsc::LINK_WRITE == 0 || *status & portsc::ENABLED == 0 {
            return;
        }
        match (*status & portsc::LINK, value & portsc::LINK) {
            (portsc::U0, portsc::U3) => self.set_link(port, portsc::U3),
            (portsc::U3, portsc::RESUME) => self.set_link(port, portsc::RESUME),
            (portsc::U3 | portsc::RESUME, portsc::U0) => {
                self.set_link(port, portsc::U0);
                self.changed(port, portsc::LINK_CHANGE);
                self.resume();
            }
            _ => {}
        }
    }

    // Registers, xHCI 5.

    fn read_register(&mut self, offset: u64) -> u32 {
        let r = &self.r;
        let low = |value: u64| value as u32;
        let high = |value: u64| (value >> 32) as u32;
        match offset {
            // CAPLENGTH and HCIVERSION.
            0x00 => OPERATIONAL as u32 | 0x0100 << 16,
            0x04 => SLOTS as u32 | 1 << 8 | (PORTS as u32) << 24,
            // Up to 16 segments of the event ring.
            0x08 => 4 << 4,
            // 64-bit addresses, no secondary streams, extended capabilities.
            0x10 => 1 | 1 << 7 | (EXTENDED as u32 / 4) << 16,
            0x14 => DOORBELLS as u32,
            0x18 => RUNTIME as u32,
            0x20 => r.command,
            0x24 => r.status,
            // 4 KiB.
            0x28 => 1,
            0x34 => r.notifications,
            0x38 => u32::from(r.commands_run) << 3,
            0x50 => low(r.contexts),
            0x54 => high(r.contexts),
            0x58 => r.config,
            PORT_REGISTERS..EXTENDED => {
                let (port, register) = port_register(offset);
                match register {
                    0 => r.ports.get(port).copied().unwrap_or(0),
                    4 => r.power.get(port).copied().unwrap_or(0),
                    _ => 0,
                }
            }
            // USB Legacy Support, and which ports speak which protocol.
            0x800 => 0x0401 | r.legacy[0],
            0x804 => r.legacy[1],
            0x810 => 0x0200_0402,
            0x820 => 0x0300_0002,
            0x814 | 0x824 => u32::from_le_bytes(*b"USB "),
            0x818 => (USB2_PORTS as u32) << 8 | USB3_PORTS as u32 + 1,
            0x828 => (USB3_PORTS as u32) << 8 | 1,
            // MFINDEX.
            RUNTIME if self.running() => (self.work.now() / MICROFRAME) as u32 & 0x3fff,
            0x1020 => r.iman,
            0x1024 => r.imod,
            0x1028 => r.erst_size,
            0x1030 => low(r.erst),
            0x1034 => high(r.erst),
            0x1038 => low(r.erdp),
            0x103c => high(r.erdp),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        let r = &mut self.r;
        match offset {
            0x20 => self.write_command(value),
            0x24 => r.status &= !(value & status::CLEARS),
            0x34 => r.notifications = value & 0xffff,
            // While the ring runs its address stays, and only stop and abort are heard.
            0x38 if r.commands_run && value & 6 == 0 => {}
            0x38 if r.commands_run => self.stop_commands(),
            0x38 => r.commands = Ring::new(low(r.commands.at)),
            0x3c if !r.commands_run => r.commands.at = high(r.commands.at),
            0x50 => r.contexts = low(r.contexts) & !0x3f,
            0x54 => r.contexts = high(r.contexts),
            0x58 => r.config = value & 0xff,
            PORT_REGISTERS..EXTENDED => {
                let (port, register) = port_register(offset);
                match register {
                    0 if port < PORTS => self.write_port(port, value),
                    4 if port < PORTS => r.power[port] = value,
                    _ => {}
                }
            }
            // The semaphores of system and BIOS.
            0x800 => r.legacy[0] = value & 0x0101_0000,
            0x804 => r.legacy[1] = value & 0xe011,
            0x1020 => {
                r.iman = r.iman & PENDING & !value | value & ENABLED;
                self.update_line();
            }
            0x1024 => r.imod = value,
            0x1028 => r.erst_size = (value & 0xffff).min(16),
            0x1030 => (r.erst, r.producer) = (low(r.erst) & !0x3f, FIRST),
            0x1034 => (r.erst, r.producer) = (high(r.erst), FIRST),
            0x1038 => {
                // Bit 3 is cleared by a one.
                let pointer = low(r.erdp);
                self.set_erdp(pointer);
            }
            0x103c => {
                let pointer = high(r.erdp) & !BUSY;
                self.set_erdp(pointer);
            }
            DOORBELLS.. if value >> 16 == 0 => self.doorbell((offset - DOORBELLS) as usize / 4, value as u8),
            _ => {}
        }
    }

    fn write_command(&mut self, value: u32) {
        if value & command_bits::RESET != 0 {
            return self.reset_all();
        }
        let started = value & !self.r.command & command_bits::RUN != 0;
        self.r.command = value & command_bits::KEPT;
        if self.r.command & command_bits::RUN == 0 {
            self.r.status |= status::HALTED;
            self.r.commands_run = false;
        } else if self.r.status & status::ERROR == 0 {
            self.r.status &= !status::HALTED;
        }
        if value & command_bits::SAVE != 0 {
            self.r.kept = true;
        }
        // All of it is still here, unless there was a reset.
        if value & command_bits::RESTORE != 0 && !self.r.kept {
            self.r.status |= status::RESTORE_ERROR;
        }
        self.update_line();
        if started && self.running() {
            for port in 0..PORTS {
                if self.r.ports[port] & portsc::CHANGES != 0 {
                    self.tell_change(port);
                }
            }
            self.resume();
        }
    }

    fn doorbell(&mut self, slot: usize, target: u8) {
        if slot == 0 {
            if target == 0 && self.running() {
                self.r.commands_run = true;
                self.run_commands();
            }
            return;
        }
        let endpoint = self.r.slots.get_mut(slot).and_then(|slot| slot.endpoints.get_mut(&target));
        let Some(endpoint) = endpoint else { return };
        match endpoint.state {
            EndpointState::Running => endpoint.rung = true,
            EndpointState::Stopped => {
                (endpoint.rung, endpoint.state) = (true, EndpointState::Running);
                self.write_endpoint(slot, target);
            }
            _ => return,
        }
        self.run_endpoint(slot, target);
    }

    /// Goes on with all that waits.
    fn resume(&mut self) {
        if !self.works() {
            return;
        }
        self.run_commands();
        let waiting = |(slot, s): (usize, &DeviceSlot)| {
            s.endpoints.iter().filter(|(_, e)| e.rung).map(|(n, _)| (slot, *n)).collect::<Vec<_>>()
        };
        for (slot, n) in self.r.slots.iter().enumerate().flat_map(waiting).collect::<Vec<_>>() {
            self.run_endpoint(slot, n);
        }
    }

    /// Devices have something to say that had nothing to say.
    fn spoken(&mut self, ports: Vec<usize>) {
        for n in ports {
            let port = USB3_PORTS + n;
            let wakes = self.bus.device(n).is_some_and(|device| device.wakes());
            if wakes && self.r.ports[port] & portsc::LINK == portsc::U3 {
                self.set_link(port, portsc::RESUME);
                self.changed(port, portsc::LINK_CHANGE);
            }
        }
        self.resume();
    }

    fn tell(&mut self) {
        let on = self.running();
        self.bus.tell(on);
    }
}

/// Which port's, and which of its registers.
fn port_register(offset: u64) -> (usize, u64) {
    ((offset - PORT_REGISTERS) as usize / 16, offset % 16)
}

/// As the PORTSC and slot contexts have it.
fn speed_id(speed: Speed) -> u32 {
    match speed {
        Speed::Full => 1,
        Speed::High => 3,
    }
}

impl Device for Xhci {
    fn read(&mut self, _: u32, offset: u64, width: u8) -> u64 {
        let at = offset & !3;
        let value = u64::from(self.read_register(at)) >> (8 * (offset & 3));
        match width {
            8 => value | u64::from(self.read_register(at + 4)) << 32,
            _ => value,
        }
    }

    fn write(&mut self, _: u32, offset: u64, width: u8, value: u64) {
        match width {
            4 | 8 if offset.is_multiple_of(4) => {
                self.write_register(offset, value as u32);
                if width == 8 {
                    self.write_register(offset + 4, (value >> 32) as u32);
                }
            }
            // FreeBSD writes the semaphores by bytes; nothing else is written in parts.
            _ if (EXTENDED..EXTENDED + 4).contains(&offset) => {
                let shift = 8 * (offset & 3);
                let mask = ((1u64 << (8 * u32::from(width).min(4))) - 1) << shift;
                let merged = u64::from(self.r.legacy[0]) & !mask | value << shift & mask;
                self.write_register(EXTENDED, merged as u32);
            }
            _ => {}
        }
        self.tell();
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Timer(MODERATION) => self.interrupt(),
            Event::Timer(_) => self.resume(),
            event => {
                let spoken = self.bus.event(&event);
                if !spoken.is_empty() {
                    self.spoken(spoken);
                }
            }
        }
        self.tell();
    }

    fn config_write(&mut self, _: u16, _: u8) {
        self.msi.config_written();
        self.update_line();
        // Bus mastering may be on again.
        self.deliver();
        self.resume();
        self.tell();
    }

    fn reset(&mut self, _: ResetKind) {
        self.r.legacy = [0; 2];
        self.reset_all();
        self.tell();
    }

    fn state(&mut self) -> &mut dyn State {
        self
    }

    fn restored(&mut self) {
        self.tell();
    }
}

/// All that is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    registers: Registers,
    devices: super::Saved,
}

/// By hand: devices are boxes.
impl State for Xhci {
    fn save(&self) -> Value {
        Saved { registers: self.r.clone(), devices: self.bus.save() }.save()
    }

    fn load(&mut self, value: Value) -> Result<(), String> {
        let Saved { registers: r, devices } = serde_json::from_value(value).map_err(|e| e.to_string())?;
        let lists = [r.ports.len(), r.power.len()] == [PORTS; 2] && r.slots.len() == SLOTS + 1;
        let endpoint = |(n, e): (&u8, &Endpoint)| (1..32).contains(n) && e.packet > 0;
        let slots = |s: &DeviceSlot| s.port < PORTS && s.endpoints.iter().all(endpoint);
        if !lists || !r.slots.iter().all(slots) || r.events.len() > 2 * transfer::MOST_TRBS {
            return Err("its registers have another shape".to_owned());
        }
        self.bus.load(devices)?;
        self.r = r;
        Ok(())
    }
}
