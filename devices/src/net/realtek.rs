//! What Realtek's controllers have in common: registers that lie at the same places in the 8139 and the 8169, the
//! filter, the timer, the EEPROM, and the rings of descriptors that came with the 8139C+ ("C+ mode") and that all
//! gigabit chips have.
//!
//! RTL8139C(+), RTL8169S-32/64 and RTL8110S data sheets, and what drivers of Linux, the BSDs and iPXE rely on.
//!
//! A ring of descriptors has no doorbell on the way in: when the next descriptor is the driver's, the backend is told to
//! wait, and the ring is looked at again when the driver touches the interrupt registers, and by a timer.

use std::sync::Arc;

use emu::backend::Net;
use emu::{BarKind, Clock, Device, DmaMem, Event, IrqLine, Params, PciIds, Pin, ResetKind, Slot, Timer, Widths};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::microwire::{Lines, Microwire};
use super::offload;
use super::phy::Phy;
use super::{BROADCAST, FCS, MIN_FRAME, Mac, crc32_be, crc32_le, padded, subsystem};

/// Command register (CR).
pub(super) mod cr {
    pub const BUFE: u8 = 1 << 0;
    pub const TE: u8 = 1 << 2;
    pub const RE: u8 = 1 << 3;
    pub const RST: u8 = 1 << 4;
}

/// Interrupt status and mask (ISR, IMR).
pub(super) mod isr {
    pub const ROK: u16 = 1 << 0;
    pub const TOK: u16 = 1 << 2;
    /// The receive buffer is full; in C+ mode, no descriptor is left.
    pub const RXOVW: u16 = 1 << 4;
    /// The link changed; in the 8139 also that a packet was never finished.
    pub const LINK_CHANGE: u16 = 1 << 5;
    pub const TDU: u16 = 1 << 7;
    pub const SOFTWARE: u16 = 1 << 8;
    pub const TIMEOUT: u16 = 1 << 14;
}

/// Receive configuration (RCR).
mod rcr {
    pub const AAP: u32 = 1 << 0;
    pub const APM: u32 = 1 << 1;
    pub const AM: u32 = 1 << 2;
    pub const AB: u32 = 1 << 3;
    /// All but 9356SEL, which says what EEPROM there is.
    pub const WRITABLE: u32 = 0x0fff_ffbf;
}

/// What of the transmit configuration (TCR) is written: CRS and the like at its top are the version's.
const TCR_WRITABLE: u32 = 0x0307_07f0;
const TCR_LOOPBACK: u32 = 3 << 17;

/// The C+ command register.
pub(super) mod cpcr {
    pub const TX: u16 = 1 << 0;
    pub const RX: u16 = 1 << 1;
    pub const RX_CHECKSUM: u16 = 1 << 5;
    pub const RX_VLAN: u16 = 1 << 6;
}

/// TPPoll.
pub(super) mod poll {
    pub const HIGH: u8 = 1 << 7;
    pub const NORMAL: u8 = 1 << 6;
    pub const SOFTWARE: u8 = 1 << 0;
}

/// 9346CR: what the pins of the EEPROM, and the registers that it loads, are used for.
mod eecr {
    pub const MODE: u8 = 3 << 6;
    pub const AUTO_LOAD: u8 = 1 << 6;
    pub const PROGRAM: u8 = 2 << 6;
    pub const CONFIG_WRITE: u8 = 3 << 6;
    pub const CS: u8 = 1 << 3;
    pub const SK: u8 = 1 << 2;
    pub const DI: u8 = 1 << 1;
    pub const DO: u8 = 1 << 0;
}

/// What a frame was taken in for: the bits in the 8139's header of a received frame, and 11 bits higher in a descriptor.
const MULTICAST: u16 = 1 << 15;
const PHYSICAL: u16 = 1 << 14;
const TO_ALL: u16 = 1 << 13;
const HEADER_TO_DESCRIPTOR: u32 = 11;

/// A descriptor's first double word.
const OWN: u32 = 1 << 31;
const EOR: u32 = 1 << 30;
const FS: u32 = 1 << 29;
const LS: u32 = 1 << 28;
const LGSEN: u32 = 1 << 27;
const IPCS: u32 = 1 << 18;
const UDPCS: u32 = 1 << 17;
const TCPCS: u32 = 1 << 16;
/// Its second: the frame has a tag to be put in, or had one.
const TAG_IN: u32 = 1 << 17;
const TAG_OUT: u32 = 1 << 16;
/// What was received, in the 8139C+'s places: protocol, and checksums that are wrong.
const PROTOCOL_TCP: u32 = 1 << 16;
const PROTOCOL_UDP: u32 = 2 << 16;
const PROTOCOL_IP: u32 = 3 << 16;
const IP_FAIL: u32 = 1 << 15;
const UDP_FAIL: u32 = 1 << 14;
const TCP_FAIL: u32 = 1 << 13;

/// CONFIG1: memory and I/O are mapped, power management is there.
const CONFIG1: u8 = 0x0d;
/// Bits of CONFIG0 to 5 that can be written.
const CONFIG_WRITABLE: [u8; 6] = [0, 0xf2, 0, 0x70, 0xf5, 0x7f];

/// Nanoseconds of a PCI clock, which the timer counts.
const PCI_CLOCK: u64 = 30;
/// Bytes of the largest frame that is sent, which is one to be cut.
const MAX_SEND: usize = 0x1_1000;
/// Bytes that are sent in one go.
const BURST: usize = 1 << 20;
/// When a ring that has more is gone on with.
const GO_ON: u64 = 10_000;
/// How soon a receive ring that had no descriptor is looked at again, at first and in the long run.
const LOOK_FIRST: u64 = 50_000;
const LOOK_LAST: u64 = 10_000_000;

/// Timers.
const TIMEOUT: u32 = 0;
const SEND: u32 = 1;
const LOOK: u32 = 2;

/// How the chips differ.
pub(super) struct Chip {
    pub ids: PciIds,
    /// TCR's bits that tell versions apart.
    pub version: u32,
    /// TCR.LBK when what is sent comes back.
    pub loopback: u32,
    /// Descriptors of the longest ring.
    pub ring: u32,
    /// Bits of a received frame's length. All status bits lie higher by what is more than 13.
    pub length_bits: u32,
    pub phy: u32,
    pub gigabit: bool,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Ring {
    base: u64,
    index: u32,
}

impl Ring {
    fn at(&self) -> u64 {
        (self.base & !0xff).wrapping_add(16 * u64::from(self.index))
    }

    /// To the descriptor that follows one with these flags.
    fn advance(&mut self, flags: u32, most: u32) {
        self.index = if flags & EOR != 0 || self.index + 1 >= most { 0 } else { self.index + 1 };
    }

    /// A write of the low (0) or high (1) half of its address. The low half comes last, and begins anew.
    fn set(&mut self, half: usize, value: u32, lanes: u32) {
        let old = (self.base >> (32 * half)) as u32;
        let new = u64::from(merge(old, value, lanes));
        if half == 0 {
            (self.base, self.index) = (self.base & !0xffff_ffff | new, 0);
        } else {
            self.base = self.base & 0xffff_ffff | new << 32;
        }
    }

    fn half(&self, half: usize) -> u32 {
        (self.base >> (32 * half)) as u32
    }
}

/// A descriptor as it was fetched.
#[derive(Clone, Copy, Debug, Default)]
struct Descriptor {
    at: u64,
    flags: u32,
    vlan: u32,
    buffer: u64,
}

impl Descriptor {
    fn fetch(dma: &DmaMem, at: u64) -> Descriptor {
        let bytes: [u8; 16] = dma.fetch(at);
        let word = |n: usize| u32::from_le_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]);
        let buffer = u64::from(word(8)) | u64::from(word(12)) << 32;
        Descriptor { at, flags: word(0), vlan: word(4), buffer }
    }

    fn ours(&self) -> bool {
        self.flags & OWN != 0
    }
}

/// Statistics that the chip dumps on demand.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Tally {
    sent: u64,
    received: u64,
    send_errors: u64,
    receive_errors: u32,
    missed: u16,
    physical: u64,
    broadcast: u64,
    multicast: u32,
}

impl Tally {
    fn bytes(&self) -> [u8; 64] {
        let mut dump = [0; 64];
        let mut put = |at: usize, bytes: &[u8]| dump[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sent.to_le_bytes());
        put(8, &self.received.to_le_bytes());
        put(16, &self.send_errors.to_le_bytes());
        put(24, &self.receive_errors.to_le_bytes());
        put(28, &self.missed.to_le_bytes());
        // No alignment errors, and no collisions.
        put(40, &self.physical.to_le_bytes());
        put(48, &self.broadcast.to_le_bytes());
        put(56, &self.multicast.to_le_bytes());
        dump
    }
}

/// The registers.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct State {
    mac: Mac,
    mar: u64,
    pub command: u8,
    pub imr: u16,
    pub isr: u16,
    tcr: u32,
    pub rcr: u32,
    missed: u32,
    /// When TCTR was 0.
    timer_since: u64,
    timer_int: u32,
    eecr: u8,
    pub config: [u8; 6],
    pub multiple_interrupt: u16,
    pub cpcr: u16,
    /// Normal and high priority.
    tx: [Ring; 2],
    rx: Ring,
    /// Of TPPoll the rings that are not through.
    polling: u8,
    dump: u64,
    tally: Tally,
    eeprom: Microwire,
    pub phy: Phy,
    /// The backend was told to wait.
    starved: bool,
    /// When a ring without descriptors is looked at again.
    look: u64,
}

/// What a write of CR began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Started {
    pub reset: bool,
    pub receiver: bool,
    pub transmitter: bool,
}

/// What the chips share.
pub(super) struct Core {
    pub chip: Chip,
    pub dma: DmaMem,
    irq: Arc<IrqLine>,
    net: Option<Box<dyn Net>>,
    clock: Arc<Clock>,
    timers: [Arc<Timer>; 3],
    /// What the EEPROM is made with.
    words: Vec<u16>,
    pub s: State,
    /// What was sent and has to be received, in loopback.
    pub looped: Vec<Vec<u8>>,
    /// For a frame, one with its tag or cut off it, and its descriptors.
    frame: Vec<u8>,
    scratch: Vec<u8>,
    tagged: Vec<u8>,
    taken: Vec<Descriptor>,
}

/// What a driver leaves of a register that it writes some bytes of.
pub(super) fn merge(old: u32, value: u32, lanes: u32) -> u32 {
    old & !lanes | value & lanes
}

/// A chip: what all have, and what it has of its own.
pub(super) struct Realtek<Own> {
    pub core: Core,
    pub s: Own,
}

/// What is each chip's matter.
pub(super) trait Registers {
    /// Registers are accessed as PCI does it: double words, and which of their bytes count.
    fn get(&mut self, at: u8, lanes: u32) -> u32;
    fn set(&mut self, at: u8, value: u32, lanes: u32);
    /// A frame has come, padded.
    fn receive(&mut self, frame: &[u8]);
}

/// What a chip has of its own, from the power-on state on.
pub(super) trait Own: Default + Clone + Serialize + DeserializeOwned + Send + 'static {
    /// Whether a state that another machine saved is this chip's.
    fn fits(&self) -> bool;
}

impl<O> Realtek<O>
where
    Realtek<O>: Registers,
{
    /// What was sent in loopback is received; the wire follows ISR and IMR.
    fn settle(&mut self) {
        for frame in std::mem::take(&mut self.core.looped) {
            self.receive(&frame);
        }
        self.core.update();
    }
}

impl<O: Own> Device for Realtek<O>
where
    Realtek<O>: Registers,
{
    fn read(&mut self, _: u32, offset: u64, width: u8) -> u64 {
        read(self, offset, width)
    }

    fn write(&mut self, _: u32, offset: u64, width: u8, value: u64) {
        write(self, offset, width, value);
        self.settle();
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Frame(frame) if self.core.link() => self.receive(&padded(frame)),
            Event::Link(up) => self.core.set_link(up),
            Event::Timer(id) => self.core.timer(id),
            _ => {}
        }
        self.settle();
    }

    fn reset(&mut self, kind: ResetKind) {
        self.s = O::default();
        self.core.reset(kind);
    }

    fn state(&mut self) -> &mut dyn emu::State {
        self
    }
}

/// By hand: two structures.
impl<O: Own> emu::State for Realtek<O>
where
    Realtek<O>: Registers,
{
    fn save(&self) -> Value {
        (self.core.s.clone(), self.s.clone()).save()
    }

    fn load(&mut self, value: Value) -> Result<(), String> {
        let (core, own): (State, O) = serde_json::from_value(value).map_err(|e| e.to_string())?;
        if !own.fits() {
            return Err("the registers are those of another chip".to_owned());
        }
        self.core.load(core);
        self.s = own;
        Ok(())
    }
}

/// The one or two double words of an access: where, and the lanes.
fn double_words(offset: u64, width: u8) -> (u8, u32, [u32; 2]) {
    let skip = 8 * (offset as u32 & 3);
    let lanes = (u64::MAX >> (64 - 8 * u32::from(width.min(4)))) << skip;
    (offset as u8 & !3, skip, [lanes as u32, (lanes >> 32) as u32])
}

/// A read of any width at any place.
fn read(registers: &mut impl Registers, offset: u64, width: u8) -> u64 {
    let (at, skip, lanes) = double_words(offset, width);
    let mut value = 0;
    for (n, lanes) in lanes.into_iter().enumerate() {
        if let (true, Some(at)) = (lanes != 0, at.checked_add(4 * n as u8)) {
            value |= u64::from(registers.get(at, lanes) & lanes) << (32 * n);
        }
    }
    value >> skip
}

/// A write.
fn write(registers: &mut impl Registers, offset: u64, width: u8, value: u64) {
    let (at, skip, lanes) = double_words(offset, width);
    let value = (value & 0xffff_ffff) << skip;
    for (n, lanes) in lanes.into_iter().enumerate() {
        if let (true, Some(at)) = (lanes != 0, at.checked_add(4 * n as u8)) {
            registers.set(at, (value >> (32 * n)) as u32, lanes);
        }
    }
}

impl Core {
    pub fn create(slot: &mut Slot, params: &Params, mut chip: Chip) -> Result<Core, String> {
        let mac = super::mac(slot, params)?;
        let ids = &mut chip.ids;
        (ids.sub_vendor, ids.subsystem) = subsystem(params, (ids.vendor, ids.device))?;
        let function = slot.pci(*ids)?;
        slot.bar(0, BarKind::Io, 0x100, 0, Widths::DWORD);
        slot.bar(1, BarKind::Mem32, 0x100, 0, Widths::DWORD);
        slot.rom()?;
        let power = usize::from(function.add_capability(0x01, 8));
        function.config(|c| {
            // MIN_GNT and MAX_LAT.
            c.set16(0x3e, 0x4020);
            // D1, D2; version 1.1. No wake-up signal leaves the card.
            c.set16(power + 2, 0x0602);
            c.writable(power + 4, &[0x03]);
        });
        let irq = slot.intx(Pin::A);
        let mut net = slot.backends.net.take();
        if let Some(net) = &mut net {
            net.attach(slot.cell());
        }
        let mut words = vec![0; 64];
        words[..7].copy_from_slice(&[0x8129, ids.vendor, ids.device, ids.sub_vendor, ids.subsystem, 0x4020, 0xe110]);
        for (word, bytes) in words[7..].iter_mut().zip(mac.as_chunks::<2>().0) {
            *word = u16::from_le_bytes(*bytes);
        }
        words[10] = u16::from(CONFIG1) << 8;
        let s = State {
            mac,
            mar: 0,
            command: 0,
            imr: 0,
            isr: 0,
            tcr: 0,
            rcr: 0,
            missed: 0,
            timer_since: 0,
            timer_int: 0,
            eecr: 0,
            config: [0; 6],
            multiple_interrupt: 0,
            cpcr: 0,
            tx: Default::default(),
            rx: Ring::default(),
            polling: 0,
            dump: 0,
            tally: Tally::default(),
            eeprom: Microwire::new(words.clone()),
            phy: Phy::new(chip.phy, chip.gigabit, net.is_some()),
            starved: false,
            look: LOOK_FIRST,
        };
        Ok(Core {
            chip,
            dma: slot.dma(),
            irq,
            net,
            clock: slot.clock(),
            timers: [TIMEOUT, SEND, LOOK].map(|id| slot.timer(id)),
            words,
            s,
            looped: Vec::new(),
            frame: Vec::new(),
            scratch: Vec::new(),
            tagged: Vec::new(),
            taken: Vec::new(),
        })
    }

    /// Power-on, or the reset line: what the EEPROM says is loaded.
    pub fn reset(&mut self, kind: ResetKind) {
        if kind == ResetKind::PowerOn {
            self.s.eeprom = Microwire::new(self.words.clone());
        }
        self.s.eeprom.drive(Lines::default());
        self.s.phy = Phy::new(self.chip.phy, self.chip.gigabit, self.s.phy.link());
        (self.s.mar, self.s.tcr, self.s.rcr, self.s.missed) = (0, 0, 0, 0);
        (self.s.timer_int, self.s.eecr, self.s.multiple_interrupt) = (0, 0, 0);
        (self.s.dump, self.s.tally) = (0, Tally::default());
        self.auto_load();
        self.soft_reset();
    }

    /// CR's reset: the address, the filter and the configuration stay.
    fn soft_reset(&mut self) {
        let s = &mut self.s;
        (s.command, s.imr, s.isr, s.cpcr, s.polling) = (0, 0, 0, 0, 0);
        (s.tx, s.rx) = Default::default();
        s.timer_since = self.clock.now();
        self.timers[SEND as usize].cancel();
        self.set_timer();
        self.feed();
        self.update();
    }

    fn auto_load(&mut self) {
        self.s.eeprom.drive(Lines::default());
        for (bytes, n) in self.s.mac.as_chunks_mut::<2>().0.iter_mut().zip(7..) {
            *bytes = self.s.eeprom.word(n).to_le_bytes();
        }
        self.s.config = [0, CONFIG1, 0, 0, 0, 0];
    }

    /// The state was replaced.
    pub fn load(&mut self, s: State) {
        self.s = s;
        if self.net.is_none() {
            self.s.phy.set_link(false);
        }
        if let Some(net) = &mut self.net {
            net.want(!self.s.starved);
        }
    }

    /// Drives the interrupt wire.
    pub fn update(&self) {
        self.irq.set(self.s.isr & self.s.imr != 0);
    }

    pub fn get(&mut self, at: u8) -> u32 {
        let s = &self.s;
        match at {
            0x00 => u32::from_le_bytes([s.mac[0], s.mac[1], s.mac[2], s.mac[3]]),
            0x04 => u32::from_le_bytes([s.mac[4], s.mac[5], 0, 0]),
            0x08 => s.mar as u32,
            0x0c => (s.mar >> 32) as u32,
            0x10 => s.dump as u32,
            0x14 => (s.dump >> 32) as u32,
            0x20..=0x2c => s.tx[usize::from(at >> 3 & 1)].half(usize::from(at >> 2 & 1)),
            0x34 => u32::from(s.command) << 24,
            0x3c => u32::from(s.imr) | u32::from(s.isr) << 16,
            0x40 => s.tcr | self.chip.version,
            0x44 => s.rcr,
            0x48 => ((self.clock.now() - s.timer_since) / PCI_CLOCK) as u32,
            0x4c => s.missed,
            0x50 => u32::from_le_bytes([self.eecr(), s.config[0], s.config[1], s.config[2]]),
            0x5c => s.multiple_interrupt.into(),
            0xe0 => s.cpcr.into(),
            0xe4 => s.rx.half(0),
            0xe8 => s.rx.half(1),
            _ => 0,
        }
    }

    pub fn set(&mut self, at: u8, value: u32, lanes: u32) {
        let bytes = (value & lanes).to_le_bytes();
        let s = &mut self.s;
        match at {
            0x00 | 0x04 => {
                for (n, byte) in bytes.iter().enumerate().filter(|(n, _)| lanes >> (8 * n) & 1 != 0) {
                    if let Some(old) = s.mac.get_mut(usize::from(at) + n) {
                        *old = *byte;
                    }
                }
            }
            0x08 => s.mar = s.mar & !u64::from(lanes) | u64::from(value & lanes),
            0x0c => s.mar = s.mar & !(u64::from(lanes) << 32) | u64::from(value & lanes) << 32,
            0x10 => {
                let low = merge(s.dump as u32, value, lanes);
                self.dump(low);
            }
            0x14 => s.dump = s.dump & 0xffff_ffff | u64::from(merge((s.dump >> 32) as u32, value, lanes)) << 32,
            0x20..=0x2c => s.tx[usize::from(at >> 3 & 1)].set(usize::from(at >> 2 & 1), value, lanes),
            0x3c => {
                s.imr = merge(s.imr.into(), value, lanes) as u16;
                s.isr &= !((value & lanes) >> 16) as u16;
                if self.ring_receives() {
                    self.look();
                }
            }
            0x40 => s.tcr = merge(s.tcr, value, lanes) & TCR_WRITABLE,
            0x44 => s.rcr = merge(s.rcr, value, lanes) & rcr::WRITABLE,
            0x48 => {
                s.timer_since = self.clock.now();
                self.set_timer();
            }
            0x4c => s.missed = 0,
            0x50 => {
                if lanes & 0xff != 0 {
                    self.set_eecr(bytes[0]);
                }
                (0..3).filter(|n| lanes >> (8 * n + 8) & 1 != 0).for_each(|n| self.set_config(n, bytes[n + 1]));
            }
            0x5c => s.multiple_interrupt = merge(s.multiple_interrupt.into(), value, lanes) as u16 & 0xfff,
            0xe0 => s.cpcr = merge(s.cpcr.into(), value, lanes) as u16,
            0xe4 => s.rx.set(0, value, lanes),
            0xe8 => s.rx.set(1, value, lanes),
            _ => {}
        }
    }

    /// CONFIGn, which is locked in most modes of 9346CR.
    pub fn set_config(&mut self, n: usize, value: u8) {
        if self.s.eecr & eecr::MODE == eecr::CONFIG_WRITE {
            let mask = CONFIG_WRITABLE[n];
            self.s.config[n] = self.s.config[n] & !mask | value & mask;
        }
    }

    fn eecr(&self) -> u8 {
        let out = if self.s.eecr & eecr::MODE == eecr::PROGRAM && self.s.eeprom.data_out() { eecr::DO } else { 0 };
        self.s.eecr | out
    }

    fn set_eecr(&mut self, value: u8) {
        let mode = value & eecr::MODE;
        if mode == eecr::AUTO_LOAD {
            self.auto_load();
            self.s.eecr = 0;
            return;
        }
        self.s.eecr = value & (eecr::MODE | eecr::CS | eecr::SK | eecr::DI);
        let line = |bit: u8| mode == eecr::PROGRAM && value & bit != 0;
        self.s.eeprom.drive(Lines { cs: line(eecr::CS), sk: line(eecr::SK), di: line(eecr::DI) });
    }

    /// DTCCR: where statistics go, and the command to dump them, which is done at once.
    fn dump(&mut self, value: u32) {
        const COMMAND: u32 = 1 << 3;
        self.s.dump = self.s.dump & !0xffff_ffff | u64::from(value & !0x3f);
        if value & COMMAND != 0 {
            self.dma.write(self.s.dump, &self.s.tally.bytes());
        }
    }

    /// CR: the reset, and the receiver and the transmitter, which begin at the start of their rings.
    pub fn set_command(&mut self, value: u8) -> Started {
        if value & cr::RST != 0 {
            self.soft_reset();
            return Started { reset: true, ..Started::default() };
        }
        let (started, stopped) = (value & !self.s.command, self.s.command & !value);
        self.s.command = value & (cr::TE | cr::RE);
        if started & cr::TE != 0 {
            self.s.tx.iter_mut().for_each(|ring| ring.index = 0);
        }
        if started & cr::RE != 0 {
            self.s.rx.index = 0;
        }
        if (started | stopped) & cr::RE != 0 {
            self.feed();
        }
        Started { reset: false, receiver: started & cr::RE != 0, transmitter: started & cr::TE != 0 }
    }

    pub fn timer_int(&self) -> u32 {
        self.s.timer_int
    }

    pub fn set_timer_int(&mut self, value: u32, lanes: u32) {
        self.s.timer_int = merge(self.s.timer_int, value, lanes);
        self.set_timer();
    }

    /// The timer interrupts when TCTR comes to TimerInt, unless that is 0.
    fn set_timer(&mut self) {
        const ROUND: u64 = PCI_CLOCK << 32;
        let timer = &self.timers[TIMEOUT as usize];
        if self.s.timer_int == 0 {
            return timer.cancel();
        }
        let (now, since) = (self.clock.now(), self.s.timer_since);
        let first = since + PCI_CLOCK * u64::from(self.s.timer_int);
        let rounds = if first > now { 0 } else { 1 + (now - first) / ROUND };
        timer.set(first + rounds * ROUND);
    }

    /// A timer is due.
    pub fn timer(&mut self, id: u32) {
        match id {
            TIMEOUT => {
                self.s.isr |= isr::TIMEOUT;
                self.set_timer();
            }
            SEND => self.transmit(),
            _ => {
                if !self.ring_receives() {
                    self.s.isr |= isr::ROK;
                }
                self.look_again();
            }
        }
    }

    /// The cable was plugged or pulled.
    pub fn set_link(&mut self, up: bool) {
        if self.s.phy.set_link(up) {
            self.s.isr |= isr::LINK_CHANGE;
        }
    }

    pub fn link(&self) -> bool {
        self.s.phy.link()
    }

    fn loopback(&self) -> bool {
        self.s.tcr & TCR_LOOPBACK == self.chip.loopback || self.s.phy.loopback()
    }

    /// Puts a frame on the wire, or back into the receiver. False: it went nowhere, as there is no link.
    pub fn send(&mut self, frame: &mut Vec<u8>) -> bool {
        if frame.len() < MIN_FRAME {
            frame.resize(MIN_FRAME, 0);
        }
        self.s.tally.sent += 1;
        if self.loopback() {
            self.looped.push(frame.clone());
            return true;
        }
        let up = self.link();
        if let Some(net) = self.net.as_mut().filter(|_| up) {
            net.send(frame);
        }
        up
    }

    /// What the receiver takes a frame in for, if it does.
    pub fn accepts(&mut self, frame: &[u8]) -> Option<u16> {
        let to = frame.first_chunk::<6>()?;
        let s = &self.s;
        if s.command & cr::RE == 0 || !(self.link() || self.loopback()) {
            return None;
        }
        let takes = |bit: u32| s.rcr & bit != 0;
        if *to == BROADCAST {
            takes(rcr::AB).then_some(TO_ALL)
        } else if to[0] & 1 != 0 {
            (takes(rcr::AM) && s.mar >> (crc32_be(to) >> 26) & 1 != 0).then_some(MULTICAST)
        } else if *to == s.mac {
            takes(rcr::APM | rcr::AAP).then_some(PHYSICAL)
        } else {
            takes(rcr::AAP).then_some(0)
        }
    }

    /// A frame was taken in.
    pub fn received(&mut self, kind: u16) {
        let tally = &mut self.s.tally;
        tally.received += 1;
        match kind {
            MULTICAST => tally.multicast = tally.multicast.wrapping_add(1),
            TO_ALL => tally.broadcast += 1,
            _ => tally.physical += 1,
        }
        self.s.isr |= isr::ROK;
    }

    /// There was no room for one.
    pub fn missed(&mut self) {
        self.s.missed = self.s.missed + 1 & 0xff_ffff;
        self.s.tally.missed = self.s.tally.missed.wrapping_add(1);
        self.s.isr |= isr::RXOVW;
    }

    /// One that the chip cannot take was on the wire.
    pub fn refused(&mut self) {
        self.s.tally.receive_errors = self.s.tally.receive_errors.wrapping_add(1);
    }

    /// The backend has to wait until there is room.
    pub fn starve(&mut self) {
        self.s.starved = true;
        if let Some(net) = &mut self.net {
            net.want(false);
        }
        self.look_again();
    }

    pub fn starved(&self) -> bool {
        self.s.starved
    }

    /// There is room again, or nobody wants frames, which are lost then.
    pub fn feed(&mut self) {
        self.timers[LOOK as usize].cancel();
        (self.s.starved, self.s.look) = (false, LOOK_FIRST);
        if let Some(net) = &mut self.net {
            net.want(true);
        }
    }

    fn ring_receives(&self) -> bool {
        self.s.cpcr & cpcr::RX != 0 || self.chip.gigabit
    }

    /// Looks for room to receive into, and again later if there is none. The driver may have left frames behind that it
    /// was told of (8139too does when its budget is up), and on a wire the next one would remind it: here that one waits
    /// at the other end, so the ring of bytes reminds the driver itself.
    fn look_again(&mut self) {
        self.look();
        if self.s.starved {
            self.timers[LOOK as usize].set(self.clock.now() + self.s.look);
            self.s.look = (self.s.look * 2).min(LOOK_LAST);
        }
    }

    fn has_descriptor(&self) -> bool {
        self.dma.enabled() && Descriptor::fetch(&self.dma, self.s.rx.at()).ours()
    }

    /// The same, once.
    fn look(&mut self) {
        if !self.s.starved {
            return;
        }
        if self.ring_receives() && self.has_descriptor() {
            self.feed();
        }
    }

    /// Puts a frame into the descriptors' buffers.
    pub fn receive_into_ring(&mut self, frame: &[u8], kind: u16) {
        let (mut status, mut vlan, mut tag) = (u32::from(kind) << HEADER_TO_DESCRIPTOR, 0, None);
        if self.s.cpcr & cpcr::RX_CHECKSUM != 0 {
            status |= checksums(frame);
        }
        if self.s.cpcr & cpcr::RX_VLAN != 0
            && let [.., 0x81, 0x00, high, low] = frame[..16]
        {
            vlan = TAG_OUT | u32::from(low) << 8 | u32::from(high);
            tag = Some(12..16);
        }
        let mut bytes = std::mem::take(&mut self.frame);
        bytes.clear();
        bytes.extend_from_slice(frame);
        tag.into_iter().for_each(|tag| drop(bytes.drain(tag)));
        let fcs = !crc32_le(&bytes);
        bytes.extend_from_slice(&fcs.to_le_bytes());
        let stored = self.store(&bytes, status, vlan);
        self.frame = bytes;
        if stored {
            self.received(kind);
        } else {
            self.missed();
        }
        if self.s.rx.base != 0 && !self.has_descriptor() {
            self.starve();
        }
    }

    /// False: the descriptors have not enough room.
    fn store(&mut self, frame: &[u8], status: u32, vlan: u32) -> bool {
        let most = self.chip.ring;
        let length = (1 << self.chip.length_bits) - 1;
        let (mut ring, mut room) = (self.s.rx, 0);
        self.taken.clear();
        if !self.dma.enabled() {
            return false;
        }
        while room < frame.len() {
            let descriptor = Descriptor::fetch(&self.dma, ring.at());
            if !descriptor.ours() || self.taken.len() as u32 == most || ring.base == 0 {
                return false;
            }
            room += (descriptor.flags & length) as usize;
            ring.advance(descriptor.flags, most);
            self.taken.push(descriptor);
        }
        let (mut rest, last) = (frame, self.taken.len() - 1);
        for (n, descriptor) in self.taken.iter_mut().enumerate() {
            let (part, more) = rest.split_at(rest.len().min((descriptor.flags & length) as usize));
            self.dma.write(descriptor.buffer, part);
            rest = more;
            descriptor.flags = descriptor.flags & EOR
                | if n == 0 { FS } else { 0 }
                | if n == last { LS | frame.len() as u32 } else { part.len() as u32 }
                | status << (self.chip.length_bits - 13);
        }
        // The first comes last: whoever sees it sees all.
        for descriptor in self.taken.iter().rev() {
            self.dma.write_u32(descriptor.at + 4, vlan);
            self.dma.write_u32(descriptor.at, descriptor.flags);
        }
        self.s.rx = ring;
        true
    }

    /// TPPoll.
    pub fn poll(&mut self, value: u8) {
        if value & poll::SOFTWARE != 0 {
            self.s.isr |= isr::SOFTWARE;
        }
        self.s.polling |= value & (poll::HIGH | poll::NORMAL);
        self.transmit();
    }

    pub fn polling(&self) -> u8 {
        self.s.polling
    }

    /// Sends what the rings hold that were polled.
    fn transmit(&mut self) {
        for (n, bit) in [(1, poll::HIGH), (0, poll::NORMAL)] {
            if self.s.polling & bit != 0 && !self.send_ring(n) {
                self.s.polling &= !bit;
                self.s.isr |= isr::TDU;
            }
        }
        if self.s.polling != 0 {
            self.timers[SEND as usize].set(self.clock.now() + GO_ON);
        }
    }

    /// Sends what a ring holds, one round at most; true if there may be more.
    fn send_ring(&mut self, n: usize) -> bool {
        let enabled = self.s.command & cr::TE != 0 && (self.s.cpcr & cpcr::TX != 0 || self.chip.gigabit);
        if !enabled || !self.dma.enabled() || self.s.tx[n].base == 0 {
            return false;
        }
        let (mut descriptors, mut bytes) = (0, 0);
        while descriptors < self.chip.ring as usize && bytes < BURST {
            let Some((ring, whole)) = self.gather(n) else { return false };
            (descriptors, bytes) = (descriptors + self.taken.len(), bytes + self.frame.len());
            self.s.tx[n] = ring;
            if let (true, Some(first)) = (whole, self.taken.first().copied()) {
                self.send_as_told(first);
            } else {
                self.s.tally.send_errors += 1;
            }
            for descriptor in &self.taken {
                self.dma.write_u32(descriptor.at, descriptor.flags & (EOR | FS | LS | 0xffff));
            }
            self.s.isr |= isr::TOK;
        }
        true
    }

    /// Collects a frame and its descriptors. Gives where the next one begins, and whether this one is good. `None`: the
    /// driver has not given all of it.
    fn gather(&mut self, n: usize) -> Option<(Ring, bool)> {
        let (mut ring, mut good) = (self.s.tx[n], true);
        self.taken.clear();
        self.frame.clear();
        // What has no end in a round has none.
        for _ in 0..self.chip.ring {
            let descriptor = Descriptor::fetch(&self.dma, ring.at());
            if !descriptor.ours() {
                return None;
            }
            let (from, size) = (self.frame.len(), (descriptor.flags & 0xffff) as usize);
            good &= from + size <= MAX_SEND;
            if good {
                self.frame.resize(from + size, 0);
                self.dma.read(descriptor.buffer, &mut self.frame[from..]);
            }
            self.taken.push(descriptor);
            ring.advance(descriptor.flags, self.chip.ring);
            if descriptor.flags & LS != 0 {
                return Some((ring, good && !self.frame.is_empty()));
            }
        }
        Some((ring, false))
    }

    /// Sends the frame that was gathered, with what its first descriptor asks for.
    fn send_as_told(&mut self, first: Descriptor) {
        let (mut frame, mut scratch) = (std::mem::take(&mut self.frame), std::mem::take(&mut self.scratch));
        let tag = (first.vlan & TAG_IN != 0).then_some([0x81, 0x00, first.vlan as u8, (first.vlan >> 8) as u8]);
        let flags = first.flags;
        let mss = (flags >> 16 & 0x7ff) as usize;
        if flags & LGSEN != 0 && mss != 0 {
            offload::segment(&frame, mss, &mut scratch, |part| self.send_tagged(part, tag));
        } else {
            let asked = |bit: u32| flags & LGSEN == 0 && flags & bit != 0;
            offload::sum_up(&mut frame, asked(IPCS), asked(TCPCS), asked(UDPCS));
            self.send_tagged(&frame, tag);
        }
        (self.frame, self.scratch) = (frame, scratch);
    }

    fn send_tagged(&mut self, frame: &[u8], tag: Option<[u8; 4]>) {
        let mut bytes = std::mem::take(&mut self.tagged);
        bytes.clear();
        let (addresses, rest) = frame.split_at(frame.len().min(12));
        [addresses, tag.as_ref().map_or(&[], |tag| &tag[..]), rest]
            .iter()
            .for_each(|part| bytes.extend_from_slice(part));
        self.send(&mut bytes);
        self.tagged = bytes;
    }
}

/// What a descriptor says of the checksums of a frame, in the 8139C+'s places.
fn checksums(frame: &[u8]) -> u32 {
    let Some(seen) = offload::look(frame) else { return 0 };
    let (protocol, fail) = match seen.protocol {
        offload::TCP => (PROTOCOL_TCP, TCP_FAIL),
        offload::UDP => (PROTOCOL_UDP, UDP_FAIL),
        _ => (PROTOCOL_IP, 0),
    };
    protocol | if seen.header { 0 } else { IP_FAIL } | if seen.data { 0 } else { fail }
}

/// Bytes of a received frame with its FCS.
pub(super) fn with_fcs(frame: &[u8]) -> usize {
    frame.len() + FCS
}
