//! NE2000: National's DP8390 with 16 KiB of memory of its own behind a data port, on PCI (Realtek 8029AS) and on ISA.
//!
//! DP8390D and RTL8029AS data sheets. The driver moves frames through the data port ("remote DMA"), bytes or words as DCR
//! says, and the chip receives them into a ring of 256-byte pages, each behind a header of status, next page and length.
//! Pages 0 to 2 of the registers are the DP8390's; the 8029 has its name on page 0, and page 3.
//!
//! Modelled: both directions, the filter with its hash, the tally counters, overflow, the address in a PROM of doubled
//! bytes. The cable holds frames back while a long one would not fit. In loopback frames go nowhere, as the chip would
//! keep them in its FIFO. Not modelled: CRC and alignment errors, collisions.

use std::sync::Arc;

use emu::backend::Net;
use emu::{
    BarKind, Class, Device, Event, IrqLine, Model, Param, ParamKind, Params, PciIds, Pin, ResetKind, Slot, State,
    Timer, Widths,
};
use serde::{Deserialize, Serialize};

use super::{BROADCAST, MAC, MIN_FRAME, Mac, SUBSYSTEM, crc32_be, crc32_le, padded, subsystem};

/// On PCI.
pub static PCI: Model = Model {
    name: "ne2k-pci",
    summary: "NE2000 on PCI, a Realtek 8029AS",
    class: Class::Network,
    keys: &[MAC, SUBSYSTEM],
    create: Ne2000::create_pci,
};

/// On ISA.
pub static ISA: Model = Model {
    name: "ne2k-isa",
    summary: "NE2000 on ISA",
    class: Class::Network,
    keys: &[
        MAC,
        Param {
            name: "port",
            kind: ParamKind::Choice(&["0x240", "0x280", "0x300", "0x320", "0x340", "0x360"]),
            default: "0x300",
            help: "I/O address",
        },
        Param {
            name: "irq",
            kind: ParamKind::Choice(&["3", "4", "5", "9", "10", "11", "12", "15"]),
            default: "10",
            help: "interrupt line",
        },
    ],
    create: Ne2000::create_isa,
};

/// Ports: the DP8390's registers, the data port, and a read of which resets.
const PORTS: u32 = 0x20;
const DATA: u64 = 0x10;
const RESET: u64 = 0x18;

/// Command register.
mod cr {
    pub const STP: u8 = 1 << 0;
    pub const STA: u8 = 1 << 1;
    pub const TXP: u8 = 1 << 2;
    /// The remote DMA's direction, and its end.
    pub const REMOTE: u8 = 7 << 3;
    pub const READ: u8 = 1 << 3;
    pub const WRITE: u8 = 2 << 3;
    pub const ABORT: u8 = 4 << 3;
    pub const PAGE: u8 = 3 << 6;
}

/// Interrupt status; all but RST can be masked.
mod isr {
    pub const PRX: u8 = 1 << 0;
    pub const PTX: u8 = 1 << 1;
    pub const TXE: u8 = 1 << 3;
    pub const OVW: u8 = 1 << 4;
    pub const CNT: u8 = 1 << 5;
    pub const RDC: u8 = 1 << 6;
    pub const RST: u8 = 1 << 7;
}

/// Receive configuration.
mod rcr {
    pub const AB: u8 = 1 << 2;
    pub const AM: u8 = 1 << 3;
    pub const PRO: u8 = 1 << 4;
    pub const MON: u8 = 1 << 5;
}

/// Receive status: received, and to a group.
const RSR_PRX: u8 = 1 << 0;
const RSR_PHY: u8 = 1 << 5;
/// Transmit status: sent, and without a carrier.
const TSR_PTX: u8 = 1 << 0;
const TSR_CRS: u8 = 1 << 4;
/// TCR: any loopback.
const TCR_LOOPBACK: u8 = 3 << 1;
/// DCR: the data port moves words.
const DCR_WTS: u8 = 1 << 0;

/// The memory, and the PROM below it.
const MEMORY: usize = 0x4000;
const MEMORY_LEN: usize = 0x4000;
const PROM_LEN: usize = 32;
/// Bytes of a page of the ring.
const PAGE: usize = 256;
/// Bytes of the header of a received frame, of its length; and of FCS, which lies in the ring as well.
const HEADER: usize = 4;
/// The longest frame that is taken, without FCS, and pages that it needs.
const MAX_FRAME: usize = 1518;
const MAX_PAGES: usize = (HEADER + MAX_FRAME + super::FCS).div_ceil(PAGE);
/// How soon after it has acknowledged them a driver is reminded of frames that it left in the ring.
const REMIND: u64 = 1_000_000;
/// Where the tally counters stop.
const MOST: u8 = 192;

#[derive(Clone, Serialize, Deserialize)]
struct Registers {
    cr: u8,
    isr: u8,
    imr: u8,
    dcr: u8,
    rcr: u8,
    tcr: u8,
    tsr: u8,
    rsr: u8,
    start: u8,
    stop: u8,
    boundary: u8,
    current: u8,
    tx_page: u8,
    tx_count: u16,
    /// The remote DMA's start and length, and where it is.
    remote_start: u16,
    remote_count: u16,
    remote: u16,
    par: Mac,
    mar: [u8; 8],
    /// Frames that were missed; no others are counted.
    missed: u8,
    /// CONFIG2 and 3 of the 8029, and its 9346CR.
    config: [u8; 2],
    eecr: u8,
    memory: Vec<u8>,
    link: bool,
    /// The backend was told to wait.
    starved: bool,
}

impl Registers {
    fn new(link: bool) -> Registers {
        Registers {
            cr: cr::STP | cr::ABORT,
            isr: isr::RST,
            imr: 0,
            dcr: 0,
            rcr: 0,
            tcr: 0,
            tsr: 0,
            rsr: 0,
            start: 0,
            stop: 0,
            boundary: 0,
            current: 0,
            tx_page: 0,
            tx_count: 0,
            remote_start: 0,
            remote_count: 0,
            remote: 0,
            par: [0; 6],
            mar: [0; 8],
            missed: 0,
            config: [0; 2],
            eecr: 0,
            memory: vec![0; MEMORY_LEN],
            link,
            starved: false,
        }
    }
}

struct Ne2000 {
    irq: Arc<IrqLine>,
    net: Option<Box<dyn Net>>,
    timer: Arc<Timer>,
    prom: [u8; PROM_LEN],
    /// It is a Realtek 8029.
    rtl8029: bool,
    s: Registers,
}

/// One half of a register of 16 bits is written.
fn set_half(register: &mut u16, high: bool, value: u8) {
    let [old_low, old_high] = register.to_le_bytes();
    *register = u16::from_le_bytes(if high { [old_low, value] } else { [value, old_high] });
}

impl Ne2000 {
    fn create_pci(slot: &mut Slot, params: &Params) -> Result<Box<dyn Device>, String> {
        let (vendor, device) = (0x10ec, 0x8029);
        let (sub_vendor, sub) = subsystem(params, (vendor, device))?;
        slot.pci(PciIds { vendor, device, class: 0x02_0000, revision: 0, sub_vendor, subsystem: sub })?;
        slot.bar(0, BarKind::Io, PORTS.into(), 0, Widths::DWORD);
        slot.rom()?;
        let irq = slot.intx(Pin::A);
        Ne2000::create(slot, params, irq, true)
    }

    fn create_isa(slot: &mut Slot, params: &Params) -> Result<Box<dyn Device>, String> {
        let port = params.get("port").and_then(|p| u16::from_str_radix(p.trim_start_matches("0x"), 16).ok());
        let irq = params.get("irq").and_then(|irq| irq.parse().ok());
        slot.ports(0, port.unwrap_or(0x300), PORTS, Widths::WORD);
        let irq = slot.isa_irq(irq.unwrap_or(10));
        Ne2000::create(slot, params, irq, false)
    }

    fn create(slot: &mut Slot, params: &Params, irq: Arc<IrqLine>, rtl8029: bool) -> Result<Box<dyn Device>, String> {
        let mac = super::mac(slot, params)?;
        let mut net = slot.backends.net.take();
        if let Some(net) = &mut net {
            net.attach(slot.cell());
        }
        // Each byte twice, and at the end what says that the bus is 16 bits wide.
        let mut prom = [0; PROM_LEN];
        for (pair, byte) in prom.as_chunks_mut::<2>().0.iter_mut().zip(mac) {
            *pair = [byte; 2];
        }
        prom[28..].fill(0x57);
        let s = Registers::new(net.is_some());
        Ok(Box::new(Ne2000 { irq, net, timer: slot.timer(0), prom, rtl8029, s }))
    }

    /// What a read of the reset port does: as after power-on, but for what is in memory.
    fn soft_reset(&mut self) {
        let s = &mut self.s;
        (s.cr, s.isr) = (cr::STP | cr::ABORT | s.cr & cr::PAGE, isr::RST);
        self.feed();
    }

    fn command(&mut self, value: u8) {
        let s = &mut self.s;
        // Neither start nor stop leaves the chip as it is: Linux's 8390 writes that in its interrupt handler.
        let state = if value & (cr::STP | cr::STA) == 0 { s.cr & (cr::STP | cr::STA) } else { 0 };
        s.cr = value & !cr::TXP | state;
        if value & cr::STP != 0 {
            s.isr |= isr::RST;
            s.cr &= !cr::STA;
        } else if value & cr::STA != 0 {
            s.isr &= !isr::RST;
        }
        match value & cr::REMOTE {
            cr::READ | cr::WRITE => {
                s.remote = s.remote_start;
                if s.remote_count == 0 {
                    s.isr |= isr::RDC;
                }
            }
            _ => {}
        }
        if value & cr::TXP != 0 && s.isr & isr::RST == 0 {
            self.transmit();
        }
        self.feed();
    }

    fn transmit(&mut self) {
        let s = &mut self.s;
        let (from, len) = (usize::from(s.tx_page) * PAGE, usize::from(s.tx_count));
        let frame = from.checked_sub(MEMORY).and_then(|at| s.memory.get(at..at + len));
        let Some(frame) = frame.filter(|_| (1..=MAX_FRAME).contains(&len)) else {
            // What is no frame ends as one that could not be sent.
            s.tsr = 0;
            s.isr |= isr::TXE;
            return;
        };
        s.tsr = TSR_PTX;
        if s.tcr & TCR_LOOPBACK == 0 {
            match self.net.as_mut().filter(|_| s.link) {
                Some(net) if len < MIN_FRAME => net.send(&[frame, &[0; MIN_FRAME][len..]].concat()),
                Some(net) => net.send(frame),
                None => s.tsr |= TSR_CRS,
            }
        }
        s.isr |= isr::PTX;
    }

    /// Pages of the ring, if there is one in memory.
    fn ring(&self) -> Option<usize> {
        let s = &self.s;
        let (start, stop) = (usize::from(s.start) * PAGE, usize::from(s.stop) * PAGE);
        let inside = (s.start..s.stop).contains(&s.current);
        (start >= MEMORY && stop <= MEMORY + MEMORY_LEN && inside).then(|| usize::from(s.stop - s.start))
    }

    /// Pages that a frame may take, which must not let the chip come to the page that the driver is at. That may be the
    /// one before the ring's first, where Linux means its last.
    fn free(&self, pages: usize) -> usize {
        let ahead = i32::from(self.s.boundary) - i32::from(self.s.current);
        let ahead = ahead.rem_euclid(pages as i32) as usize;
        if ahead == 0 { pages } else { ahead - 1 }
    }

    fn runs(&self) -> bool {
        self.s.cr & (cr::STP | cr::STA) == cr::STA && self.s.tcr & TCR_LOOPBACK == 0
    }

    fn receive(&mut self, frame: &[u8]) {
        let Some(to) = frame.first_chunk::<6>() else { return };
        let s = &self.s;
        let has = |bit: u8| s.rcr & bit != 0;
        let bit = crc32_be(to) >> 26;
        let (takes, group) = match () {
            () if *to == BROADCAST => (has(rcr::AB), true),
            () if to[0] & 1 != 0 => (has(rcr::AM) && s.mar[bit as usize / 8] >> (bit % 8) & 1 != 0, true),
            () => (*to == s.par || has(rcr::PRO), false),
        };
        if !takes || !self.runs() || frame.len() > MAX_FRAME {
            return;
        }
        if has(rcr::MON) {
            return self.miss();
        }
        let Some(pages) = self.ring() else { return self.miss() };
        let need = (HEADER + frame.len() + super::FCS).div_ceil(PAGE);
        if need > self.free(pages) {
            self.miss();
            self.s.isr |= isr::OVW;
            return self.starve();
        }
        let s = &mut self.s;
        let start = usize::from(s.start);
        let next = start + (usize::from(s.current) - start + need) % pages;
        s.rsr = RSR_PRX | if group { RSR_PHY } else { 0 };
        let [low, high] = ((HEADER + frame.len()) as u16).to_le_bytes();
        let fcs = (!crc32_le(frame)).to_le_bytes();
        let bytes = [s.rsr, next as u8, low, high].into_iter().chain(frame.iter().copied()).chain(fcs);
        let (first, ring) = (usize::from(s.current) * PAGE - MEMORY, start * PAGE - MEMORY);
        for (n, byte) in bytes.enumerate() {
            s.memory[ring + (first - ring + n) % (pages * PAGE)] = byte;
        }
        s.current = next as u8;
        s.isr |= isr::PRX;
        if self.free(pages) < MAX_PAGES && pages > MAX_PAGES {
            self.starve();
        }
    }

    fn miss(&mut self) {
        self.s.missed = (self.s.missed + 1).min(MOST);
        if self.s.missed >= 0x80 {
            self.s.isr |= isr::CNT;
        }
    }

    /// The driver acknowledges interrupts. Some leave frames behind that they were told of until the next one comes
    /// (Linux's 8390 reads nine at a time), which on a wire of 10 Mbit/s is soon enough and here may be never: so they are
    /// told again.
    fn acknowledge(&mut self, value: u8) {
        // RST only says whether the chip runs.
        self.s.isr &= !value | isr::RST;
        if value & isr::PRX != 0 && self.holds_frames() {
            self.timer.set(self.timer.now() + REMIND);
        }
    }

    /// The driver has not read all of the ring. When it has, it is at the page before the chip's, or, before the first
    /// frame, at the same.
    fn holds_frames(&self) -> bool {
        self.runs() && self.ring().is_some_and(|pages| self.free(pages) + 2 < pages)
    }

    /// The cable waits.
    fn starve(&mut self) {
        self.s.starved = true;
        if let Some(net) = &mut self.net {
            net.want(false);
        }
    }

    /// Lets frames come again if there is room, or nobody wants them.
    fn feed(&mut self) {
        let full = self.runs() && self.ring().is_some_and(|pages| self.free(pages) < MAX_PAGES.min(pages));
        if self.s.starved && !full {
            self.s.starved = false;
            if let Some(net) = &mut self.net {
                net.want(true);
            }
        }
    }

    /// How many bytes an access to the data port moves.
    fn units(&self, width: u8) -> u8 {
        if self.s.dcr & DCR_WTS != 0 { width.max(2) } else { 1 }
    }

    /// On by a byte; past the ring's end at its start.
    fn remote_next(&mut self) {
        let s = &mut self.s;
        s.remote = s.remote.wrapping_add(1);
        if s.remote == u16::from(s.stop) << 8 {
            s.remote = u16::from(s.start) << 8;
        }
        s.remote_count -= 1;
        if s.remote_count == 0 {
            s.isr |= isr::RDC;
        }
    }

    fn data_read(&mut self, width: u8) -> u64 {
        let mut value = [0; 8];
        for byte in value.iter_mut().take(self.units(width).into()) {
            if self.s.remote_count == 0 || self.s.cr & cr::REMOTE != cr::READ {
                break;
            }
            let at = usize::from(self.s.remote);
            *byte = match at.checked_sub(MEMORY) {
                None => self.prom[at % PROM_LEN],
                Some(at) => self.s.memory.get(at).copied().unwrap_or(0xff),
            };
            self.remote_next();
        }
        u64::from_le_bytes(value) & (u64::MAX >> (64 - 8 * u32::from(width)))
    }

    fn data_write(&mut self, width: u8, value: u64) {
        for byte in value.to_le_bytes().into_iter().take(self.units(width).into()) {
            if self.s.remote_count == 0 || self.s.cr & cr::REMOTE != cr::WRITE {
                break;
            }
            let at = usize::from(self.s.remote).checked_sub(MEMORY);
            if let Some(cell) = at.and_then(|at| self.s.memory.get_mut(at)) {
                *cell = byte;
            }
            self.remote_next();
        }
    }

    fn get(&mut self, register: u8) -> u8 {
        let s = &mut self.s;
        match (s.cr >> 6, register) {
            (_, 0) => s.cr,
            (0, 1) | (0, 8) | (2, 7) => s.remote as u8,
            (0, 2) | (0, 9) | (2, 6) => (s.remote >> 8) as u8,
            (0, 3) => s.boundary,
            (0, 4) => s.tsr,
            (0, 7) => s.isr,
            (0, 10) if self.rtl8029 => b'P',
            (0, 11) if self.rtl8029 => b'C',
            (0, 12) => s.rsr,
            (0, 15) => std::mem::take(&mut s.missed),
            (1, 1..=6) => s.par[usize::from(register) - 1],
            (1, 7) => s.current,
            (1, 8..) => s.mar[usize::from(register) - 8],
            (2, 1) => s.start,
            (2, 2) => s.stop,
            (2, 4) => s.tx_page,
            (2, 5) => s.current,
            (2, 12) => s.rcr,
            (2, 13) => s.tcr,
            (2, 14) => s.dcr,
            (2, 15) => s.imr,
            (3, 1) if self.rtl8029 => s.eecr,
            (3, 5) if self.rtl8029 => s.config[0],
            (3, 6) if self.rtl8029 => s.config[1],
            (3, 14) if self.rtl8029 => 0x29,
            (3, 15) if self.rtl8029 => 0x80,
            _ => 0,
        }
    }

    fn set(&mut self, register: u8, value: u8) {
        let s = &mut self.s;
        match (s.cr >> 6, register) {
            (_, 0) => self.command(value),
            (0, 1) => s.start = value,
            (0, 2) => s.stop = value,
            (0, 3) => {
                s.boundary = value;
                self.feed();
            }
            (0, 4) => s.tx_page = value,
            (0, 5 | 6) => set_half(&mut s.tx_count, register == 6, value),
            (0, 7) => self.acknowledge(value),
            (0, 8 | 9) => set_half(&mut s.remote_start, register == 9, value),
            (0, 10 | 11) => set_half(&mut s.remote_count, register == 11, value),
            (0, 12) => s.rcr = value & 0x3f,
            (0, 13) => {
                s.tcr = value & 0x1f;
                self.feed();
            }
            (0, 14) => s.dcr = value & 0x7f,
            (0, 15) => s.imr = value & 0x7f,
            (1, 1..=6) => s.par[usize::from(register) - 1] = value,
            (1, 7) => s.current = value,
            (1, 8..) => s.mar[usize::from(register) - 8] = value,
            (3, 1) if self.rtl8029 => s.eecr = value & 0xce,
            // Locked unless 9346CR says otherwise.
            (3, 5 | 6) if self.rtl8029 && s.eecr >> 6 == 3 => s.config[usize::from(register) - 5] = value,
            _ => {}
        }
    }

    fn update(&self) {
        self.irq.set(self.s.isr & self.s.imr & !isr::RST != 0);
    }
}

impl Device for Ne2000 {
    fn read(&mut self, _: u32, offset: u64, width: u8) -> u64 {
        let value = match offset {
            DATA..RESET => self.data_read(width),
            RESET.. => {
                self.soft_reset();
                0
            }
            _ => (0..width).map(|n| u64::from(self.get((offset as u8 + n) & 15)) << (8 * n)).sum(),
        };
        self.update();
        value
    }

    fn write(&mut self, _: u32, offset: u64, width: u8, value: u64) {
        match offset {
            DATA..RESET => self.data_write(width, value),
            // Drivers write back what they have read there.
            RESET.. => {}
            _ => (0..width).for_each(|n| self.set((offset as u8 + n) & 15, (value >> (8 * n)) as u8)),
        }
        self.update();
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Frame(frame) if self.s.link => self.receive(&padded(frame)),
            Event::Link(up) => self.s.link = up,
            Event::Timer(_) if self.holds_frames() => self.s.isr |= isr::PRX,
            _ => {}
        }
        self.update();
    }

    fn reset(&mut self, _: ResetKind) {
        self.s = Registers::new(self.s.link);
        self.timer.cancel();
        if let Some(net) = &mut self.net {
            net.want(true);
        }
        self.update();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.s
    }

    fn restored(&mut self) {
        self.s.memory.resize(MEMORY_LEN, 0);
        self.s.link &= self.net.is_some();
        let starved = self.s.starved;
        if let Some(net) = &mut self.net {
            net.want(!starved);
        }
    }
}

#[cfg(test)]
mod tests;
