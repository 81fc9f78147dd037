//! DEC 21140A and 21143: Fast Ethernet, "Tulip".
//!
//! DECchip 21140A hardware reference manual (EC-QN7NC), 21143 hardware reference manual (278074-001), SROM format
//! (EC-QPF8). The 21140A is the card of Hyper-V's and Virtual PC's machines ("legacy network adapter"), and what de(4)
//! was written for; the 21143 has a serial interface of its own (SIA) that negotiates.
//!
//! Modelled: rings and chains of descriptors with two buffers (`ring.rs`), setup frames with their four kinds of filter
//! (`filter.rs`), the serial ROM (`srom.rs`), MDIO, general purpose pins, the SIA's negotiation, missed frames, the
//! general purpose timer, automatic polling of the transmit list, both loopbacks. What drivers beyond that rely on is
//! in `rules.rs`. Not modelled: thresholds (all is store and forward), early interrupts, interrupt mitigation (an
//! interrupt comes at once), the boot ROM behind CSR9 (it is in the ROM BAR), big-endian buses, power states.
//!
//! Frames are sent while the driver writes CSR1. One that finds no descriptor waits in the chip, which looks again when
//! the driver reads CSR5 or writes CSR2, and from time to time; so long the backend keeps what follows.
//!
//! Guests: de(4) and dc(4) of the BSDs, tlp(4), tulip of Linux, iPXE, the in-box drivers of Windows.

mod filter;
mod late;
mod ring;
mod rules;
mod srom;

use std::sync::Arc;

use emu::backend::Net;
use emu::{
    BarKind, Class, Device, DmaMem, Event, IrqLine, Model, Param, ParamKind, Params, PciIds, Pin, ResetKind, Slot,
    State, Timer, Widths,
};
use serde::{Deserialize, Serialize};

use self::filter::Filter;
use self::late::{LATE, Late, PACE};
use self::rules::Rule;
use self::srom::Design;
use super::microwire::{Lines, Microwire};
use super::phy::{Frame, Mdio, Phy};
use super::{MAC, Mac, mac};

const fn srom(default: &'static str) -> Param {
    Param {
        name: "srom",
        kind: ParamKind::Choice(&["fixed", "auto", "mii"]),
        default,
        help: "media in the serial ROM: 100BASE-TX alone, sensed ones, or an MII transceiver",
    }
}

/// The card of Hyper-V.
pub static DEC21140: Model = Model {
    name: "dec21140",
    summary: "DEC 21140A (Tulip), 100 Mbit/s network card, as in Hyper-V and Virtual PC",
    class: Class::Network,
    keys: &[
        MAC,
        srom("fixed"),
        Param { name: "rev", kind: ParamKind::Choice(&["20", "22"]), default: "20", help: "revision, hexadecimal" },
    ],
    create: |slot, params| Dec21140::create(slot, params, false),
};

/// The one with a serial interface.
pub static DEC21143: Model = Model {
    name: "dec21143",
    summary: "DEC 21143 (Tulip), 100 Mbit/s network card",
    class: Class::Network,
    keys: &[MAC, srom("mii")],
    create: |slot, params| Dec21140::create(slot, params, true),
};

/// CSR0.
const SWR: u32 = 1;
/// CSR5: what a written 1 clears.
mod sts {
    pub const TI: u32 = 1;
    pub const TPS: u32 = 1 << 1;
    pub const TU: u32 = 1 << 2;
    pub const TJT: u32 = 1 << 3;
    /// The 21143 negotiated, or its 10BASE-T link passed.
    pub const ANC: u32 = 1 << 4;
    pub const RI: u32 = 1 << 6;
    pub const RU: u32 = 1 << 7;
    pub const RPS: u32 = 1 << 8;
    pub const RWT: u32 = 1 << 9;
    pub const GTE: u32 = 1 << 11;
    /// The link of the 21143 failed.
    pub const LNF: u32 = 1 << 12;
    pub const FBE: u32 = 1 << 13;
    pub const AIS: u32 = 1 << 15;
    pub const NIS: u32 = 1 << 16;
    /// The link of the 21143 changed.
    pub const LC: u32 = 1 << 27;
    pub const NORMAL: u32 = TI | TU | RI | GTE | 1 << 14;
    pub const ABNORMAL: u32 = TPS | TJT | ANC | 1 << 5 | RU | RPS | RWT | 1 << 10 | LNF | FBE | LC;
    /// EB: the bus master met nobody.
    pub const MASTER_ABORT: u32 = 2 << 23;
}
/// CSR6.
mod mode {
    pub const HP: u32 = 1;
    pub const SR: u32 = 1 << 1;
    pub const HO: u32 = 1 << 2;
    pub const IF: u32 = 1 << 4;
    pub const PR: u32 = 1 << 6;
    pub const PM: u32 = 1 << 7;
    pub const FD: u32 = 1 << 9;
    pub const OM_INTERNAL: u32 = 1 << 10;
    pub const OM: u32 = 3 << 10;
    pub const ST: u32 = 1 << 13;
    pub const PS: u32 = 1 << 18;
    pub const RA: u32 = 1 << 30;
    /// Shows the kind of filter.
    pub const FILTER: u32 = HP | HO | IF;
    pub const RESET: u32 = 0x3200_0040;
    /// The port's choice: PS, HBD, TTM, PCS, SCR. A software reset leaves it alone.
    pub const PORT: u32 = PS | 1 << 19 | 1 << 22 | 1 << 23 | 1 << 24;
    pub const MUST_BE_ONE: u32 = 1 << 25;
}
/// CSR9.
mod serial {
    pub const CS: u32 = 1;
    pub const SK: u32 = 1 << 1;
    pub const DI: u32 = 1 << 2;
    pub const DO: u32 = 1 << 3;
    pub const SR: u32 = 1 << 11;
    pub const MDC: u32 = 1 << 16;
    pub const MDO: u32 = 1 << 17;
    /// Reads: MDO is not driven.
    pub const MII: u32 = 1 << 18;
    pub const MDI: u32 = 1 << 19;
    pub const WRITABLE: u32 = 0x0007_78f7;
}
/// CSR12: direction follows, on the 21140.
const GPC: u32 = 1 << 8;
/// CSR12 of the 21143: link fails, and the negotiation's state in bits 12 to 14, the partner negotiates, its word.
const LS_100: u32 = 1 << 1;
const LS_10: u32 = 1 << 2;
const ANS_COMPLETE: u32 = 5;
const PARTNER: u32 = 0x41e1 << 16 | 1 << 15;
/// CSR13: out of reset. CSR14: negotiation.
const SIA_ON: u32 = 1;
const ANE: u32 = 1 << 7;

/// What a negotiation takes; drivers start it before they can hear of its end.
const NEGOTIATION: u64 = 100_000_000;
/// Between looks at a receive descriptor that the driver did not give back, at first and at last.
const LOOK: u64 = 50_000;
const LOOK_RARELY: u64 = 1_600_000;

/// Timers.
const WORK: u32 = 0;
const POLL: u32 = 1;
const LOOKING: u32 = 2;
const GENERAL: u32 = 3;
const NEGOTIATING: u32 = 4;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Process {
    Stopped,
    /// Sends, or waits for a frame.
    Running,
    /// Found a descriptor that is not its own.
    Suspended,
}

/// All that is saved.
#[derive(Clone, Serialize, Deserialize)]
struct Chip {
    /// CSR0, 3, 4, 5 (what was latched), 6, 7, 9 to 15 as they were written.
    bus_mode: u32,
    rx_list: u32,
    tx_list: u32,
    status: u32,
    mode: u32,
    mask: u32,
    serial: u32,
    rom_address: u32,
    timer: u32,
    sia: [u32; 3],
    /// CSR8: frames, and whether there were too many to count.
    missed: u16,
    missed_more: bool,
    /// CSR12 of the 21140.
    outputs: u8,
    pins: u8,
    /// The negotiation's state, CSR12 of the 21143.
    nway: u32,
    tx: Process,
    rx: Process,
    /// The next descriptors.
    tx_at: u32,
    rx_at: u32,
    /// What was gathered of a frame to send.
    sending: Vec<u8>,
    /// A frame that waits for a descriptor, and how it came (RDES0.DT).
    waiting: Option<(Vec<u8>, u32)>,
    /// What the next look at the lists waits for.
    look: u64,
    poll: u64,
    late: Late,
    filter: Filter,
    rom: Microwire,
    mdio: Mdio,
    phy: Phy,
    link: bool,
}

impl Chip {
    fn new(rom: Microwire, phy: Phy) -> Chip {
        Chip {
            bus_mode: 0xfe00_0000,
            rx_list: 0,
            tx_list: 0,
            status: 0,
            mode: mode::RESET,
            mask: 0,
            serial: 0,
            rom_address: 0,
            timer: 0,
            sia: [0, 0xffff, 0],
            missed: 0,
            missed_more: false,
            outputs: 0,
            pins: 0,
            nway: 0,
            tx: Process::Stopped,
            rx: Process::Stopped,
            tx_at: 0,
            rx_at: 0,
            sending: Vec::new(),
            waiting: None,
            look: LOOK,
            poll: 0,
            late: Late::default(),
            filter: Filter::default(),
            rom,
            mdio: Mdio::default(),
            link: phy.link(),
            phy,
        }
    }

    /// The serial interface is on, and may negotiate.
    fn negotiates(&self) -> bool {
        self.sia[1] & ANE != 0 && self.sia[0] & SIA_ON != 0
    }
}

/// The function.
struct Dec21140 {
    s: Chip,
    net: Option<Box<dyn Net>>,
    dma: DmaMem,
    irq: Arc<IrqLine>,
    /// By the numbers of the timers.
    timers: [Arc<Timer>; 7],
    is_21143: bool,
    has_phy: bool,
    /// What the ROM has at power-on.
    rom: Vec<u16>,
    /// The backend was told to wait.
    starved: bool,
}

impl Dec21140 {
    fn create(slot: &mut Slot, params: &Params, is_21143: bool) -> Result<Box<dyn Device>, String> {
        let mac: Mac = mac(slot, params)?;
        let design = Design::of(params.get("srom").unwrap_or(if is_21143 { "mii" } else { "fixed" }));
        let (device, revision, subsystem, window) = match (is_21143, params.get("rev")) {
            (true, _) => (0x0019, 0x41, (0x1011, 0x500b), 0x400),
            (false, Some("22")) => (0x0009, 0x22, (0x0a00, 0x2114), 0x1000),
            (false, _) => (0x0009, 0x20, (0x0a00, 0x2114), 0x1000),
        };
        let function = slot.pci(PciIds {
            vendor: 0x1011,
            device,
            class: 0x02_0000,
            revision,
            sub_vendor: subsystem.0,
            subsystem: subsystem.1,
        })?;
        function.config(|c| {
            c.set16(0x06, 0x0280);
            // MIN_GNT and MAX_LAT.
            c.set16(0x3e, 0x2814);
            // CFDD: sleep and snooze, which drivers clear, and a byte of theirs.
            c.writable(0x40, &[0, 0xff, 0, 0xc0]);
        });
        slot.bar(0, BarKind::Io, 0x80, 0, Widths::DWORD);
        slot.bar(1, BarKind::Mem32, window, 1, Widths::DWORD);
        slot.rom()?;
        let mut net = slot.backends.net.take();
        if let Some(net) = &mut net {
            net.attach(slot.cell());
        }
        let rom = srom::words(is_21143, design, mac, subsystem);
        let s = Chip::new(Microwire::new(rom.clone()), phy(net.is_some()));
        Ok(Box::new(Dec21140 {
            s,
            net,
            dma: slot.dma(),
            irq: slot.intx(Pin::A),
            timers: [WORK, POLL, LOOKING, GENERAL, NEGOTIATING, LATE, PACE].map(|n| slot.timer(n)),
            is_21143,
            has_phy: design == Design::Mii,
            rom,
            starved: false,
        }))
    }

    fn after(&self, timer: u32, ns: u64) {
        let timer = &self.timers[timer as usize];
        timer.set(timer.now() + ns);
    }

    fn cancel(&self, timer: u32) {
        self.timers[timer as usize].cancel();
    }

    fn has(&self, bits: u32) -> bool {
        self.s.mode & bits != 0
    }

    /// CSR5 with its summaries.
    fn status(&self) -> u32 {
        let Chip { status, mask, tx, rx, .. } = self.s;
        let seen = if Rule::MaskedStatusIsSilent.holds() { status & mask } else { status };
        let summary = |bits: u32, bit: u32| if seen & bits != 0 { bit } else { 0 };
        let transmitter = [0, 3, 6][tx as usize] << 20;
        let receiver = [0, 3, 4][rx as usize] << 17;
        let bus = if status & sts::FBE != 0 { sts::MASTER_ABORT } else { 0 };
        let ones = if self.is_21143 { 0xf000_0000 } else { 0xfc00_0000 };
        let summaries = summary(sts::NORMAL, sts::NIS) | summary(sts::ABNORMAL, sts::AIS);
        ones | status | summaries | transmitter | receiver | bus
    }

    /// Drives the interrupt: level, by what is latched and not masked.
    fn update(&self) {
        let mask = if Rule::MaskedStatusIsSilent.holds() { self.s.mask } else { sts::NIS | sts::AIS };
        self.irq.set(self.status() & mask & (sts::NIS | sts::AIS) != 0);
    }

    /// Tells the backend whether there is room.
    fn set_starved(&mut self, starved: bool) {
        self.starved = starved;
        if let Some(net) = &mut self.net {
            net.want(!starved);
        }
    }

    fn software_reset(&mut self) {
        let port = self.s.mode & mode::PORT;
        let mut fresh = Chip::new(self.s.rom.clone(), self.s.phy.clone());
        fresh.rom.drive(Lines::default());
        fresh.mode |= port;
        // The pins are the board's.
        (fresh.outputs, fresh.pins) = (self.s.outputs, self.s.pins);
        self.s = fresh;
        (WORK..=PACE).for_each(|timer| self.cancel(timer));
        self.set_starved(false);
    }

    fn set_mode(&mut self, value: u32) {
        let old = self.s.mode;
        self.s.mode = value & !mode::FILTER | old & mode::FILTER | mode::MUST_BE_ONE;
        let (set, cleared) = (self.s.mode & !old, old & !self.s.mode);
        if set & mode::SR != 0 {
            self.s.rx = Process::Running;
            if !Rule::RestartGoesOn.holds() {
                self.s.rx_at = self.s.rx_list;
            }
        }
        if cleared & mode::SR != 0 {
            self.stop_receiver();
        }
        if set & mode::ST != 0 {
            self.s.tx = Process::Running;
            if Rule::StartPolls.holds() {
                self.transmit();
            } else {
                self.s.tx = Process::Suspended;
            }
        }
        if cleared & mode::ST != 0 {
            self.stop_transmitter();
        }
    }

    fn stop_receiver(&mut self) {
        self.s.rx = Process::Stopped;
        if Rule::StopIsTold.holds() {
            self.s.status |= sts::RPS;
        }
        self.s.waiting = None;
        self.s.late.pace = 0;
        self.cancel(LOOKING);
        self.cancel(PACE);
        self.set_starved(false);
        // De(4) is about to change the filter, for which it needs descriptors.
        self.give_all_back();
    }

    fn stop_transmitter(&mut self) {
        self.s.tx = Process::Stopped;
        self.s.status |= sts::TPS;
        self.give_all_back();
        self.s.sending.clear();
        self.s.poll = 0;
        self.cancel(WORK);
        self.cancel(POLL);
    }

    /// Nobody answered on the bus: both processes stop.
    fn fatal(&mut self) {
        self.s.status |= sts::FBE;
        self.s.mode &= !(mode::ST | mode::SR);
        self.stop_receiver();
        self.stop_transmitter();
    }

    fn set_serial(&mut self, value: u32) {
        self.s.serial = value & serial::WRITABLE;
        let bit = |bit: u32| value & bit != 0;
        let lines = Lines { cs: bit(serial::CS), sk: bit(serial::SK), di: bit(serial::DI) };
        self.s.rom.drive(if bit(serial::SR) { lines } else { Lines::default() });
        let address = u8::from(self.has_phy);
        match self.s.mdio.drive(bit(serial::MDC), bit(serial::MDO) || bit(serial::MII)) {
            Some(Frame::Read { address: 1, register }) if address == 1 => {
                let value = self.s.phy.read(register);
                self.s.mdio.answer(Some(value));
            }
            Some(Frame::Read { .. }) => self.s.mdio.answer(None),
            Some(Frame::Write { address: 1, register, value }) if address == 1 => {
                self.s.phy.write(register, value);
            }
            Some(Frame::Write { .. }) | None => {}
        }
    }

    fn serial(&self) -> u32 {
        let out = if self.s.serial & serial::SR != 0 && self.s.rom.data_out() { serial::DO } else { 0 };
        self.s.serial | out | if self.s.mdio.data_in() { serial::MDI } else { 0 }
    }

    /// A tick of the general purpose timer.
    fn tick(&self) -> u64 {
        if self.has(mode::PS) { 81_920 } else { 819_200 }
    }

    fn set_timer(&mut self, value: u32) {
        self.s.timer = value & 0x1_ffff;
        match u64::from(self.s.timer & 0xffff) {
            0 => self.cancel(GENERAL),
            ticks => self.after(GENERAL, ticks * self.tick()),
        }
    }

    fn timer(&self) -> u32 {
        let timer = &self.timers[GENERAL as usize];
        let left = timer.deadline().map_or(0, |at| at.saturating_sub(timer.now()).div_ceil(self.tick()));
        self.s.timer & 1 << 16 | left.min(0xffff) as u32
    }

    /// CSR12: pins of the 21140, the serial interface's status of the 21143.
    fn csr12(&self) -> u32 {
        if !self.is_21143 {
            let inputs = srom::LINK_10 | if self.s.link { srom::LINK_100 } else { 0 };
            return u32::from(self.s.pins & self.s.outputs | inputs & !self.s.outputs);
        }
        let negotiated = self.s.nway == ANS_COMPLETE;
        let link_100 = self.s.link && (negotiated || self.has(mode::PS));
        let link_10 = self.s.link && !self.s.negotiates() && !self.has(mode::PS);
        let partner = if negotiated && self.s.link { PARTNER } else { 0 };
        let fails = if link_100 { 0 } else { LS_100 } | if link_10 { 0 } else { LS_10 };
        fails | self.s.nway << 12 | partner
    }

    fn set_csr12(&mut self, value: u32) {
        match (self.is_21143, value & GPC != 0) {
            (false, true) => self.s.outputs = value as u8,
            (false, false) => self.s.pins = value as u8,
            // "Transmit disable" starts a negotiation.
            (true, _) if value >> 12 & 7 == 1 => self.negotiate(),
            (true, _) => {}
        }
    }

    /// Begins a negotiation, if the serial interface is to.
    fn negotiate(&mut self) {
        if self.s.negotiates() {
            self.s.nway = 2;
            self.after(NEGOTIATING, NEGOTIATION);
        } else {
            self.s.nway = 0;
            self.cancel(NEGOTIATING);
        }
    }

    fn set_sia(&mut self, n: usize, value: u32) {
        let before = self.s.negotiates();
        self.s.sia[n] = value;
        if self.is_21143 && before != self.s.negotiates() {
            self.negotiate();
        }
    }

    fn set_link(&mut self, up: bool) {
        self.s.phy.set_link(up);
        if std::mem::replace(&mut self.s.link, up) == up || !self.is_21143 || self.has_phy {
            return;
        }
        self.s.status |= sts::LC | if up { 0 } else { sts::LNF };
        if self.s.negotiates() {
            self.negotiate();
        } else if up && !self.has(mode::PS) {
            self.s.status |= sts::ANC;
        }
    }

    fn take_missed(&mut self) -> u32 {
        let missed = std::mem::take(&mut self.s.missed);
        let more = std::mem::take(&mut self.s.missed_more);
        let fifo = if missed > 0 && !Rule::NoFifoOverflows.holds() { 1 << 17 } else { 0 };
        u32::from(missed) | u32::from(more) << 16 | fifo
    }

    fn read_csr(&mut self, n: u64) -> u32 {
        match n {
            0 => self.s.bus_mode,
            3 => self.s.rx_list,
            4 => self.s.tx_list,
            5 => {
                // Drivers read it again when they have given descriptors back.
                if Rule::ReceiverLooksAgain.holds() {
                    self.receive();
                }
                self.status()
            }
            6 => self.s.mode,
            7 => self.s.mask | if self.is_21143 { 0xf000_0000 } else { 0xfffe_0000 },
            8 => self.take_missed(),
            9 => self.serial(),
            10 => self.s.rom_address,
            11 => self.timer(),
            12 => self.csr12(),
            13..16 if self.is_21143 || n == 15 => self.s.sia[n as usize - 13],
            _ => u32::MAX,
        }
    }

    fn write_csr(&mut self, n: u64, value: u32) {
        match n {
            0 if value & SWR != 0 => {
                self.software_reset();
                self.s.bus_mode |= if Rule::ResetIsShort.holds() { 0 } else { SWR };
            }
            0 => {
                self.s.bus_mode = value & 0x01ff_ffff;
                self.suspend_polling();
            }
            _ if self.s.bus_mode & SWR != 0 => {}
            1 if Rule::PollDemandIsHeard.holds() => self.demand(),
            2 => self.receive(),
            3 => (self.s.rx_list, self.s.rx_at) = (value & !3, value & !3),
            4 => {
                self.give_all_back();
                (self.s.tx_list, self.s.tx_at) = (value & !3, value & !3);
                self.demand();
            }
            5 => {
                self.s.status &= !(value & (sts::NORMAL | sts::ABNORMAL));
                if value & sts::RI != 0 {
                    self.noted();
                }
                self.tell();
            }
            6 => self.set_mode(value),
            7 => {
                self.s.mask = value & (sts::NORMAL | sts::ABNORMAL | sts::NIS | sts::AIS);
                self.tell();
            }
            9 => self.set_serial(value),
            10 => self.s.rom_address = value & 0x3_ffff,
            11 => self.set_timer(value),
            12 => self.set_csr12(value),
            13..16 => self.set_sia(n as usize - 13, value),
            _ => {}
        }
        if n != 7 || Rule::UnmaskedStatusInterrupts.holds() {
            self.update();
        }
    }
}

/// Of no maker that a driver has a quirk for: those of known chips are expected to have registers beyond the standard's.
fn phy(link: bool) -> Phy {
    Phy::new(0x0282_6010, false, link)
}

impl Device for Dec21140 {
    fn read(&mut self, region: u32, offset: u64, width: u8) -> u64 {
        if region == 1 && !Rule::RegistersInMemory.holds() {
            return u64::MAX;
        }
        let value = if offset & 4 == 0 { self.read_csr(offset >> 3) } else { 0 };
        self.update();
        u64::from(value >> (8 * (offset & 3))) & (u64::MAX >> (64 - 8 * u32::from(width)))
    }

    fn write(&mut self, _: u32, offset: u64, width: u8, value: u64) {
        let n = offset >> 3;
        if offset & 4 != 0 {
            return;
        }
        // Linux writes the low half of CSR15 alone.
        let at = 8 * (offset & 3) as u32;
        let mask = (u32::MAX >> (32 - 8 * u32::from(width.min(4)))) << at;
        let kept = match n {
            13..16 => self.s.sia[n as usize - 13] & !mask,
            _ => 0,
        };
        self.write_csr(n, (value as u32) << at & mask | kept);
    }

    fn config_write(&mut self, _: u16, _: u8) {
        // Bus mastering may be on now.
        self.transmit();
        self.receive();
        self.update();
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Frame(frame) => self.arrive(frame, ring::SERIAL),
            Event::Link(up) => self.set_link(up),
            Event::Timer(WORK | POLL) => self.demand(),
            Event::Timer(LOOKING) => self.receive(),
            Event::Timer(LATE) => self.give_one_back(),
            Event::Timer(PACE) => self.paced(),
            Event::Timer(GENERAL) => {
                self.s.status |= sts::GTE;
                let again = if self.s.timer & 1 << 16 != 0 { self.s.timer } else { 0 };
                self.set_timer(again);
            }
            Event::Timer(NEGOTIATING) if self.s.link => {
                self.s.nway = ANS_COMPLETE;
                self.s.status |= sts::ANC | sts::LC;
            }
            _ => {}
        }
        self.update();
    }

    fn reset(&mut self, kind: ResetKind) {
        self.software_reset();
        let rom = match kind {
            ResetKind::PowerOn => Microwire::new(self.rom.clone()),
            ResetKind::System => Microwire::new(self.s.rom.words().to_vec()),
        };
        self.s = Chip::new(rom, phy(self.s.link));
        self.update();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.s
    }

    fn restored(&mut self) {
        self.s.link &= self.net.is_some();
        self.set_starved(self.s.waiting.is_some() || self.s.late.pace != 0);
    }
}

#[cfg(test)]
mod tests;
