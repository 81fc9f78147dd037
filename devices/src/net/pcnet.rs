//! AMD's PCnet: Am79C970A (PCnet-PCI II, VMware's `vlance`) and Am79C973 (PCnet-FAST III, with a PHY).
//!
//! Am79C970A and Am79C973/975 data sheets (19436, 21510). A LANCE grown wide: 128 control and status registers (CSR) and
//! 64 bus configuration registers (BCR) behind an address register, at ports or in memory, and a PROM with the address.
//! A 16-bit driver finds the registers two bytes apart; the first dword write at RDP makes them four bytes wide until
//! the next power-on.
//!
//! Modelled: initialisation blocks and descriptors of all software styles, frames over several buffers both ways, the
//! address filters, every interrupt that frames cause with its mask, suspend, loopback, the software timer and the MII
//! of the Am79C973, LEDs that tell of the link. Not modelled: the EEPROM's lines (its contents are in the PROM), magic
//! packets, the time that anything takes.
//!
//! Drivers give receive descriptors without telling the card. It holds one frame that has no descriptor yet, and looks
//! again whenever the driver says anything, and each millisecond; a guest whose host is busy has two seconds before the
//! frame counts as missed.
//!
//! Guests: le(4) and pcn(4) of the BSDs, lnc(4) of FreeBSD before 7, pcnet32 of Linux, iPXE, DOS packet drivers.

use std::sync::Arc;

use emu::backend::Net;
use emu::{
    BarKind, Class, Device, DmaMem, Event, IrqLine, Model, Params, PciIds, Pin, ResetKind, Slot, State, Timer, Widths,
};
use serde::{Deserialize, Serialize};

use super::phy::Phy;
use super::{BROADCAST, FCS, MAC, MIN_FRAME, Mac, SUBSYSTEM, crc32_le, subsystem};

/// Ten megabits.
pub static PCNET: Model = Model {
    name: "pcnet",
    summary: "AMD Am79C970A (PCnet-PCI II) network card",
    class: Class::Network,
    keys: &[MAC, SUBSYSTEM],
    create: |slot, params| Pcnet::create(slot, params, &AM79C970A),
};

/// A hundred, with a PHY.
pub static PCNET_FAST: Model = Model {
    name: "pcnet-fast",
    summary: "AMD Am79C973 (PCnet-FAST III) network card",
    class: Class::Network,
    keys: &[MAC, SUBSYSTEM],
    create: |slot, params| Pcnet::create(slot, params, &AM79C973),
};

struct Chip {
    revision: u8,
    /// CSR88 and 89.
    id: u32,
    /// Where the PHY is and what it says, if there is one.
    phy: Option<(u8, u32)>,
}

static AM79C970A: Chip = Chip { revision: 0x10, id: 0x0262_1003, phy: None };
static AM79C973: Chip = Chip { revision: 0x40, id: 0x0262_5003, phy: Some((30, 0x0000_6b60)) };

const AMD: u16 = 0x1022;
const DEVICE: u16 = 0x2000;

/// Regions, by their BARs.
const PORTS: u32 = 0;
const MEMORY: u32 = 1;

/// Timers: looking for descriptors, the software timer, what is left to send.
const LOOK: u32 = 0;
const SOFTWARE: u32 = 1;
const WORK: u32 = 2;

/// Nanoseconds between two looks for a descriptor, and how many there are.
const LOOK_AGAIN: u64 = 1_000_000;
const LOOKS: u32 = 2000;
/// The unit of BCR31.
const SOFTWARE_UNIT: u64 = 12_800;
/// Descriptors in one go.
const BUDGET: usize = 256;
/// Bytes of the longest frame that is sent, and of the longest that is none that babbles.
const LONGEST: usize = 16384;
const NO_BABBLE: usize = 1518;
/// Descriptors in the longest ring.
const LONGEST_RING: u32 = 512;

/// CSR0.
mod csr0 {
    pub const INIT: u16 = 1;
    pub const STRT: u16 = 1 << 1;
    pub const STOP: u16 = 1 << 2;
    pub const TDMD: u16 = 1 << 3;
    pub const TXON: u16 = 1 << 4;
    pub const RXON: u16 = 1 << 5;
    pub const IENA: u16 = 1 << 6;
    pub const INTR: u16 = 1 << 7;
    pub const IDON: u16 = 1 << 8;
    pub const TINT: u16 = 1 << 9;
    pub const RINT: u16 = 1 << 10;
    pub const MERR: u16 = 1 << 11;
    pub const MISS: u16 = 1 << 12;
    pub const CERR: u16 = 1 << 13;
    pub const BABL: u16 = 1 << 14;
    pub const ERR: u16 = 1 << 15;
    /// Those that a 1 clears.
    pub const CAUSES: u16 = 0x7f00;
    /// Those that interrupt; CSR3 has their masks.
    pub const INTERRUPTS: u16 = BABL | MISS | MERR | RINT | TINT | IDON;
}

/// CSR4: causes have their masks one bit below.
mod csr4 {
    pub const TXSTRT: u16 = 1 << 3;
    pub const UINT: u16 = 1 << 6;
    pub const UINTCMD: u16 = 1 << 7;
    pub const ASTRP_RCV: u16 = 1 << 10;
    /// JAB, TXSTRT, RCVCCO and MFCO.
    pub const CAUSES: u16 = 1 << 1 | TXSTRT | 1 << 5 | 1 << 9;
}

/// CSR5.
mod csr5 {
    pub const SPND: u16 = 1;
    pub const LTINTEN: u16 = 1 << 14;
    pub const TOKINTD: u16 = 1 << 15;
    /// Magic packet, excessive deferral, sleep and system interrupts, which never come; enabled one bit below.
    pub const CAUSES: u16 = 1 << 4 | 1 << 7 | 1 << 9 | 1 << 11;
}

/// CSR7, of chips with MII: causes are enabled one bit below.
const STINT: u16 = 1 << 11;
const CSR7_CAUSES: u16 = 0x0aaa;

/// CSR15, and the first word of an initialisation block.
mod mode {
    pub const DRX: u16 = 1;
    pub const DTX: u16 = 1 << 1;
    pub const LOOP: u16 = 1 << 2;
    pub const DXMTFCS: u16 = 1 << 3;
    pub const DRCVPA: u16 = 1 << 13;
    pub const DRCVBC: u16 = 1 << 14;
    pub const PROM: u16 = 1 << 15;
}

/// CSRs by their numbers, of pairs the low one.
mod csr {
    pub const IADR: usize = 1;
    pub const MASKS: usize = 3;
    pub const FEATURES: usize = 4;
    pub const EXTENDED: usize = 5;
    pub const EXTENDED_2: usize = 7;
    pub const LADRF: usize = 8;
    pub const PADR: usize = 12;
    pub const MODE: usize = 15;
    /// Base addresses of the rings, receive and transmit.
    pub const RINGS: [usize; 2] = [24, 30];
    pub const STYLE: usize = 58;
    /// Where in the rings the card is, counted down to 1, and their lengths, negative.
    pub const PLACES: [usize; 2] = [72, 74];
    pub const LENGTHS: [usize; 2] = [76, 78];
    pub const ID: usize = 88;
    pub const MISSED: usize = 112;
}

/// BCRs.
mod bcr {
    pub const MISC: usize = 2;
    pub const LED0: usize = 4;
    pub const BURST: usize = 18;
    pub const EEPROM: usize = 19;
    pub const STYLE: usize = 20;
    pub const PCI_LATENCY: usize = 22;
    pub const STVAL: usize = 31;
    pub const MIICAS: usize = 32;
    pub const MIIADDR: usize = 33;
    pub const MIIMDR: usize = 34;
    pub const PCI_VENDOR: usize = 35;
}

/// The PROM may be written.
const APROMWE: u16 = 1 << 8;
/// BCR18: registers are four bytes wide.
const DWIO: u16 = 1 << 7;
/// BCR20: structures are of 32 bits; CSRs are those of PCnet.
const SSIZE32: u16 = 1 << 8;
const CSRPCNET: u16 = 1 << 9;

/// Status of a descriptor, in the upper half of its second dword.
mod status {
    pub const OWN: u16 = 1 << 15;
    pub const ERR: u16 = 1 << 14;
    pub const ADD_FCS: u16 = 1 << 13;
    pub const LTINT: u16 = 1 << 12;
    pub const STP: u16 = 1 << 9;
    pub const ENP: u16 = 1 << 8;
    /// How a frame matched: by the address, by the hash, as a broadcast.
    pub const PAM: u16 = 1 << 6;
    pub const LAFM: u16 = 1 << 5;
    pub const BAM: u16 = 1 << 4;
}

/// Rings.
const RX: usize = 0;
const TX: usize = 1;

/// A descriptor, whatever its style.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    at: u64,
    buffer: u32,
    status: u16,
    len: usize,
    /// It lies where nothing is.
    nowhere: bool,
}

/// What is saved.
#[derive(Clone, Serialize, Deserialize)]
struct Card {
    csr: Vec<u16>,
    bcr: Vec<u16>,
    prom: [u8; 16],
    /// RAP.
    index: u8,
    phy: Phy,
    /// The next descriptors.
    next: [u32; 2],
    /// A frame that waits for descriptors, and how often they were looked for.
    held: Option<(Vec<u8>, u32)>,
}

struct Pcnet {
    chip: &'static Chip,
    dma: DmaMem,
    irq: Arc<IrqLine>,
    net: Option<Box<dyn Net>>,
    look: Arc<Timer>,
    software: Arc<Timer>,
    work: Arc<Timer>,
    /// What the backend was told: it gives nothing before that.
    ready: Option<bool>,
    mac: Mac,
    /// A frame on its way out.
    frame: Vec<u8>,
    s: Card,
}

impl Pcnet {
    fn create(slot: &mut Slot, params: &Params, chip: &'static Chip) -> Result<Box<dyn Device>, String> {
        let mac = super::mac(slot, params)?;
        let ids = subsystem(params, (AMD, DEVICE))?;
        slot.pci(PciIds {
            vendor: AMD,
            device: DEVICE,
            class: 0x02_0000,
            revision: chip.revision,
            sub_vendor: ids.0,
            subsystem: ids.1,
        })?;
        slot.bar(PORTS as u8, BarKind::Io, 0x20, PORTS, Widths::DWORD);
        slot.bar(MEMORY as u8, BarKind::Mem32, 0x20, MEMORY, Widths::DWORD);
        slot.rom()?;
        let irq = slot.intx(Pin::A);
        let dma = slot.dma();
        let mut net = slot.backends.net.take();
        if let Some(net) = &mut net {
            net.attach(slot.cell());
        }
        let [look, software, work] = [LOOK, SOFTWARE, WORK].map(|n| slot.timer(n));
        let s = Card {
            csr: vec![0; 128],
            bcr: vec![0; 64],
            prom: prom(mac),
            index: 0,
            phy: Phy::new(chip.phy.map_or(0, |(_, id)| id), false, net.is_some()),
            next: [0; 2],
            held: None,
        };
        let mut card = Pcnet { chip, dma, irq, net, look, software, work, ready: None, mac, frame: Vec::new(), s };
        card.power_on();
        Ok(Box::new(card))
    }

    /// H_RESET.
    fn power_on(&mut self) {
        self.s.csr.fill(0);
        let bcr = &mut self.s.bcr;
        bcr.fill(0);
        bcr[0] = 5;
        bcr[1] = 5;
        bcr[bcr::MISC] = 2;
        // Link, receive, receive polarity and transmit.
        bcr[bcr::LED0..=7].copy_from_slice(&[0x00c0, 0x0084, 0x0088, 0x0090]);
        bcr[bcr::BURST] = 0x9001;
        // An EEPROM that was read and is right.
        bcr[bcr::EEPROM] = 0xa000;
        bcr[bcr::STYLE] = CSRPCNET;
        bcr[bcr::PCI_LATENCY] = 0xff06;
        bcr[bcr::STVAL] = 0xffff;
        bcr[bcr::MIICAS] = 0x0400;
        bcr[bcr::PCI_VENDOR] = AMD;
        self.s.phy.reset();
        self.reset();
    }

    /// S_RESET, which reading the reset register does: the BCRs stay, and where initialisation block and rings are.
    fn reset(&mut self) {
        let (csr, prom) = (&mut self.s.csr, &self.s.prom);
        csr[csr::MASKS..csr::LADRF].fill(0);
        csr[csr::MODE] = 0;
        csr[0] = csr0::STOP;
        csr[csr::FEATURES] = 0x0115;
        for n in 0..3 {
            csr[csr::PADR + n] = u16::from_le_bytes([prom[2 * n], prom[2 * n + 1]]);
        }
        csr[csr::ID] = self.chip.id as u16;
        csr[csr::ID + 1] = (self.chip.id >> 16) as u16;
        (self.s.index, self.s.next) = (0, [0; 2]);
        [&self.software, &self.work].into_iter().for_each(|timer| timer.cancel());
        self.drop_held();
    }

    fn has_mii(&self) -> bool {
        self.chip.phy.is_some()
    }

    fn pair(&self, n: usize) -> u32 {
        u32::from(self.s.csr[n + 1]) << 16 | u32::from(self.s.csr[n])
    }

    fn set_pair(&mut self, n: usize, value: u32) {
        (self.s.csr[n], self.s.csr[n + 1]) = (value as u16, (value >> 16) as u16);
    }

    /// Whether structures are of 32 bits.
    fn wide(&self) -> bool {
        self.s.bcr[bcr::STYLE] & SSIZE32 != 0
    }

    fn runs(&self, on: u16) -> bool {
        self.s.csr[0] & on != 0 && self.s.csr[csr::EXTENDED] & csr5::SPND == 0 && self.dma.enabled()
    }

    fn mode(&self, bits: u16) -> bool {
        self.s.csr[csr::MODE] & bits != 0
    }

    fn update_line(&mut self) {
        let csr = &self.s.csr;
        let masked = csr[csr::MASKS] & csr0::INTERRUPTS;
        let features = csr[csr::FEATURES];
        let (five, seven) = (csr[csr::EXTENDED], if self.has_mii() { csr[csr::EXTENDED_2] } else { 0 });
        let interrupts = csr[0] & csr0::INTERRUPTS & !masked != 0
            || features & csr4::CAUSES & !(features << 1) != 0
            || features & csr4::UINT != 0
            || five & csr5::CAUSES & (five << 1) != 0
            || seven & CSR7_CAUSES & (seven << 1) != 0;
        let csr0 = self.s.csr[0] & !csr0::INTR;
        self.s.csr[0] = csr0 | if interrupts { csr0::INTR } else { 0 };
        self.irq.set(interrupts && csr0 & csr0::IENA != 0);
    }

    fn raise(&mut self, causes: u16) {
        self.s.csr[0] |= causes;
    }

    /// Reads the initialisation block that CSR1 and 2 point at.
    fn initialise(&mut self) {
        let at = u64::from(self.pair(csr::IADR));
        let block = self.dma.fetch::<28>(at);
        let word = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
        let double = |at: usize| u32::from(word(at + 2)) << 16 | u32::from(word(at));
        self.s.csr[csr::MODE] = word(0);
        let (padr, ladrf, rings, codes) = if self.wide() {
            (4, 12, [double(20), double(24)], [block[2] >> 4, block[3] >> 4])
        } else {
            let high = self.pair(csr::IADR) & 0xff00_0000;
            let ring = |at: usize| double(at) & 0x00ff_ffff | high;
            (2, 8, [ring(16), ring(20)], [block[19] >> 5, block[23] >> 5])
        };
        for n in 0..3 {
            self.s.csr[csr::PADR + n] = word(padr + 2 * n);
        }
        for n in 0..4 {
            self.s.csr[csr::LADRF + n] = word(ladrf + 2 * n);
        }
        for ring in [RX, TX] {
            let align = if self.wide() { !0xf } else { !7 };
            self.set_pair(csr::RINGS[ring], rings[ring] & align);
            self.s.csr[csr::LENGTHS[ring]] = (1u16 << codes[ring].min(9)).wrapping_neg();
            self.s.next[ring] = 0;
        }
        self.raise(csr0::IDON);
    }

    fn ring_len(&self, ring: usize) -> u32 {
        u32::from(self.s.csr[csr::LENGTHS[ring]].wrapping_neg()).clamp(1, LONGEST_RING)
    }

    /// The descriptor `ahead` of the next one.
    fn descriptor(&self, ring: usize, ahead: u32) -> Descriptor {
        let n = (self.s.next[ring] + ahead) % self.ring_len(ring);
        let base = u64::from(self.pair(csr::RINGS[ring]));
        if !self.wide() {
            let at = base + 8 * u64::from(n);
            let bytes = self.dma.fetch::<8>(at);
            let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            let high = self.pair(csr::IADR) & 0xff00_0000;
            let buffer = high | u32::from(word(2) & 0xff) << 16 | u32::from(word(0));
            return Descriptor::of(at, buffer, word(2) & 0xff00, word(4), bytes == [0xff; 8]);
        }
        let at = base + 16 * u64::from(n);
        let bytes = self.dma.fetch::<16>(at);
        let double =
            |n: usize| u32::from_le_bytes([bytes[4 * n], bytes[4 * n + 1], bytes[4 * n + 2], bytes[4 * n + 3]]);
        let buffer = double(if self.swapped() { 2 } else { 0 });
        Descriptor::of(at, buffer, (double(1) >> 16) as u16, double(1) as u16, bytes == [0xff; 16])
    }

    /// Software style 3 has the buffer where the others have lengths and errors.
    fn swapped(&self) -> bool {
        self.s.bcr[bcr::STYLE] & 0xff == 3
    }

    /// Gives a descriptor back: what became of it, then who owns it.
    fn give_back(&self, d: &Descriptor, status: u16, count: u16) {
        let len = (4096 - d.len) as u16 | 0xf000;
        if !self.wide() {
            let word = status | (d.buffer >> 16) as u16 & 0xff;
            self.dma.write(d.at + 6, &count.to_le_bytes());
            return self.dma.write(d.at + 2, &word.to_le_bytes());
        }
        self.dma.write_u32(d.at + if self.swapped() { 0 } else { 8 }, count.into());
        self.dma.write_u32(d.at + 4, u32::from(status) << 16 | u32::from(len));
    }

    fn step(&mut self, ring: usize, by: u32) {
        self.s.next[ring] = (self.s.next[ring] + by) % self.ring_len(ring);
    }

    /// A ring that is nowhere stops its half of the card.
    fn memory_error(&mut self, on: u16) {
        self.s.csr[0] &= !on;
        self.raise(csr0::MERR);
    }

    /// Sends what the driver gave away.
    fn transmit(&mut self) {
        let mut budget = BUDGET as u32;
        while self.runs(csr0::TXON) {
            // How many descriptors the next frame has, if all of them are ours.
            let mut count = 0;
            let whole = loop {
                let d = self.descriptor(TX, count);
                if d.nowhere {
                    return self.memory_error(csr0::TXON);
                }
                if d.status & status::OWN == 0 || count == self.ring_len(TX) {
                    break false;
                }
                count += 1;
                // One that no frame starts in is passed over.
                if d.status & status::ENP != 0 || count == 1 && d.status & status::STP == 0 {
                    break true;
                }
            };
            if !whole {
                return;
            }
            // The first is sent in any case, however long. Not at once, which would be in the same round of timers.
            if budget < count && budget < BUDGET as u32 {
                return self.work.set(self.work.now() + 1);
            }
            budget = budget.saturating_sub(count);
            self.send(count);
        }
    }

    /// Sends the frame of the next `count` descriptors. Each is looked at again, once.
    fn send(&mut self, count: u32) {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        let (mut starts, mut last, mut fits) = (false, 0, true);
        for n in 0..count {
            let d = self.descriptor(TX, 0);
            (starts, last) = (starts || n == 0 && d.status & status::STP != 0, d.status);
            fits &= frame.len() + d.len <= LONGEST;
            if fits {
                let from = frame.len();
                frame.resize(from + d.len, 0);
                self.dma.read(d.buffer.into(), &mut frame[from..]);
            }
            self.give_back(&d, d.status & !(status::OWN | status::ERR), 0);
            self.step(TX, 1);
        }
        if starts {
            if self.mode(mode::DXMTFCS) && last & status::ADD_FCS == 0 {
                frame.truncate(frame.len().saturating_sub(FCS));
            }
            if !fits || frame.len() + FCS > NO_BABBLE {
                self.raise(csr0::BABL);
            }
            self.s.csr[csr::FEATURES] |= csr4::TXSTRT;
            if fits {
                self.put_on_wire(&mut frame);
            }
            let (five, told) = (self.s.csr[csr::EXTENDED], last & status::LTINT != 0);
            if five & csr5::TOKINTD == 0 && (five & csr5::LTINTEN == 0 || told) {
                self.raise(csr0::TINT);
            }
        }
        self.frame = frame;
    }

    fn put_on_wire(&mut self, frame: &mut Vec<u8>) {
        if frame.len() < 14 {
            return;
        }
        if frame.len() < MIN_FRAME {
            frame.resize(MIN_FRAME, 0);
        }
        if self.mode(mode::LOOP) || self.s.phy.loopback() {
            self.receive(frame.clone());
        } else if self.s.phy.link()
            && let Some(net) = &mut self.net
        {
            net.send(frame);
        }
    }

    /// How a frame is for us, as a descriptor says it.
    fn filter(&self, frame: &[u8]) -> Option<u16> {
        let to = &frame[..6];
        let mine = (0..3).all(|n| to[2 * n..2 * n + 2] == self.s.csr[csr::PADR + n].to_le_bytes());
        let hash = (crc32_le(to) >> 26) as usize;
        if *to == BROADCAST && !self.mode(mode::DRCVBC) {
            Some(status::BAM)
        } else if to[0] & 1 != 0 && self.s.csr[csr::LADRF + hash / 16] >> (hash % 16) & 1 != 0 {
            Some(status::LAFM)
        } else if mine && !self.mode(mode::DRCVPA) {
            Some(status::PAM)
        } else {
            self.mode(mode::PROM).then_some(0)
        }
    }

    /// A frame came in.
    fn receive(&mut self, mut frame: Vec<u8>) {
        if self.s.csr[0] & csr0::RXON == 0 || frame.len() < 14 {
            return;
        }
        frame.resize(frame.len().max(MIN_FRAME), 0);
        let Some(how) = self.filter(&frame) else { return };
        if self.s.held.is_some() {
            return self.missed();
        }
        if !self.store(&frame, how) && self.s.csr[0] & csr0::RXON != 0 {
            self.s.held = Some((frame, 0));
            self.look.set(self.look.now() + LOOK_AGAIN);
        }
        self.say_ready();
    }

    fn missed(&mut self) {
        self.s.csr[csr::MISSED] = self.s.csr[csr::MISSED].wrapping_add(1);
        self.raise(csr0::MISS);
    }

    /// Looks for descriptors for the frame that waits.
    fn look(&mut self) {
        let Some((frame, looks)) = self.s.held.take() else { return };
        let how = self.filter(&frame).unwrap_or(0);
        if !self.store(&frame, how) {
            self.s.held = Some((frame, looks));
        }
        self.say_ready();
    }

    /// It was time to look, but not for ever.
    fn look_again(&mut self) {
        self.look();
        if let Some((_, looks)) = &mut self.s.held {
            *looks += 1;
            if *looks < LOOKS {
                return self.look.set(self.look.now() + LOOK_AGAIN);
            }
            self.missed();
            self.drop_held();
        }
    }

    fn drop_held(&mut self) {
        self.s.held = None;
        self.look.cancel();
        self.say_ready();
    }

    fn say_ready(&mut self) {
        let ready = self.s.held.is_none();
        if self.ready.replace(ready) != Some(ready)
            && let Some(net) = &mut self.net
        {
            net.want(ready);
        }
    }

    /// Lays a frame into the next buffers. False if there are too few for now.
    fn store(&mut self, frame: &[u8], how: u16) -> bool {
        if !self.runs(csr0::RXON) {
            return false;
        }
        // The pad and FCS of a frame that says how short it is can be left out.
        let kind = usize::from(u16::from_be_bytes([frame[12], frame[13]]));
        let stripped = self.s.csr[csr::FEATURES] & csr4::ASTRP_RCV != 0 && kind < 46;
        let (data, fcs) = match stripped {
            true => (&frame[..14 + kind], &[][..]),
            false => (frame, &(!crc32_le(frame)).to_le_bytes()[..]),
        };
        let bytes = [data, fcs].concat();
        let (mut room, mut count) = (0, 0);
        while room < bytes.len() {
            let d = self.descriptor(RX, count);
            if d.nowhere {
                self.memory_error(csr0::RXON);
                return false;
            }
            if d.status & status::OWN == 0 {
                return false;
            }
            (room, count) = (room + d.len, count + 1);
            if count == self.ring_len(RX) && room < bytes.len() {
                // It would not fit into all of them.
                self.missed();
                return true;
            }
        }
        let mut rest = &bytes[..];
        for n in 0..count {
            let d = self.descriptor(RX, 0);
            let (part, left) = rest.split_at(d.len.min(rest.len()));
            self.dma.write(d.buffer.into(), part);
            rest = left;
            let (first, last) = (n == 0, n + 1 == count);
            let how = if self.wide() { how } else { 0 };
            let ends = if first { status::STP } else { 0 } | if last { status::ENP | how } else { 0 };
            self.give_back(&d, ends, if last { bytes.len() as u16 } else { 0 });
            self.step(RX, 1);
        }
        self.raise(csr0::RINT);
        true
    }

    fn write_csr0(&mut self, value: u16) {
        let old = self.s.csr[0] & !(value & csr0::CAUSES);
        if value & csr0::STOP != 0 {
            self.s.csr[0] = csr0::STOP;
            self.work.cancel();
            return self.drop_held();
        }
        self.s.csr[0] = old & !csr0::IENA | value & csr0::IENA;
        if value & csr0::INIT != 0 {
            self.s.csr[0] = self.s.csr[0] & !csr0::STOP | csr0::INIT;
            self.initialise();
        }
        if value & csr0::STRT != 0 {
            let off = |bit: u16, on: u16| if self.mode(bit) { 0 } else { on };
            let on = off(mode::DRX, csr0::RXON) | off(mode::DTX, csr0::TXON);
            self.s.csr[0] = self.s.csr[0] & !csr0::STOP | csr0::STRT | on;
        }
        // Without CSR4.DPOLL the card looks by itself; here it does when the driver says anything.
        if value & (csr0::TDMD | csr0::STRT) != 0 || self.s.csr[0] & csr0::TXON != 0 {
            self.transmit();
        }
        self.look();
    }

    fn read_csr(&self) -> u16 {
        let csr = &self.s.csr;
        match usize::from(self.s.index) & 0x7f {
            0 => {
                let error = csr[0] & (csr0::BABL | csr0::CERR | csr0::MISS | csr0::MERR) != 0;
                csr[0] | if error { csr0::ERR } else { 0 }
            }
            16 => csr[csr::IADR],
            17 => csr[csr::IADR + 1],
            csr::STYLE => self.s.bcr[bcr::STYLE],
            n => match csr::PLACES.iter().position(|place| *place == n) {
                Some(ring) => self.ring_len(ring).saturating_sub(self.s.next[ring]) as u16,
                None => csr[n],
            },
        }
    }

    fn write_csr(&mut self, value: u16) {
        let n = usize::from(self.s.index) & 0x7f;
        let csr = &mut self.s.csr;
        match n {
            0 => self.write_csr0(value),
            16 | 17 => csr[n - 15] = value,
            csr::FEATURES => {
                let causes = csr4::CAUSES | csr4::UINT;
                let left = csr[n] & causes & !value;
                let called = if value & csr4::UINTCMD != 0 { csr4::UINT } else { 0 };
                csr[n] = value & !(causes | csr4::UINTCMD) | left | called;
            }
            csr::EXTENDED => {
                csr[n] = value & !csr5::CAUSES | csr[n] & csr5::CAUSES & !value;
                self.transmit();
                self.look();
            }
            csr::EXTENDED_2 => csr[n] = value & !CSR7_CAUSES | csr[n] & CSR7_CAUSES & !value,
            csr::STYLE => self.set_style(value),
            // Identity, and where the rings are.
            88 | 89 | 72 | 74 => {}
            _ => csr[n] = value,
        }
        self.update_line();
    }

    fn set_style(&mut self, value: u16) {
        let style = value & 0xff;
        self.s.bcr[bcr::STYLE] = match style {
            0 => CSRPCNET,
            1 => SSIZE32 | style,
            2 | 3 => CSRPCNET | SSIZE32 | style,
            // Reserved; Linux leaves 4 for drivers that want 16 bits.
            _ => CSRPCNET,
        };
    }

    /// The register that BCR33 names, if there is a PHY at its address.
    fn mii(&self) -> Option<u8> {
        let (address, named) = (self.chip.phy?.0, self.s.bcr[bcr::MIIADDR]);
        (named >> 5 & 31 == u16::from(address)).then_some((named & 31) as u8)
    }

    fn read_bcr(&mut self) -> u16 {
        let n = usize::from(self.s.index) & 0x3f;
        match n {
            bcr::LED0..=7 => {
                // LEDOUT: whatever this one shows is so, as far as it is the link.
                let lit = self.s.bcr[n] & 0x40 != 0 && self.s.phy.link();
                self.s.bcr[n] & 0x7fff | if lit { 0x8000 } else { 0 }
            }
            bcr::MIIMDR => match self.mii() {
                Some(register) => self.s.phy.read(register),
                None => 0xffff,
            },
            _ => self.s.bcr[n],
        }
    }

    fn write_bcr(&mut self, value: u16) {
        let n = usize::from(self.s.index) & 0x3f;
        match n {
            bcr::STYLE => self.set_style(value),
            bcr::BURST => self.s.bcr[n] = value & !DWIO | self.s.bcr[n] & DWIO,
            // Its lines lead nowhere.
            bcr::EEPROM | bcr::PCI_VENDOR => {}
            bcr::STVAL => {
                self.s.bcr[n] = value;
                self.start_software_timer();
            }
            bcr::MIIMDR => {
                if let Some(register) = self.mii() {
                    self.s.phy.write(register, value);
                }
            }
            _ => self.s.bcr[n] = value,
        }
    }

    fn start_software_timer(&mut self) {
        let value = u64::from(self.s.bcr[bcr::STVAL]);
        if self.has_mii() && value != 0 {
            self.software.set(self.software.now() + value * SOFTWARE_UNIT);
        } else {
            self.software.cancel();
        }
    }

    fn dwio(&self) -> bool {
        self.s.bcr[bcr::BURST] & DWIO != 0
    }
}

impl Descriptor {
    /// Its length is a negative number of twelve bits.
    fn of(at: u64, buffer: u32, status: u16, len: u16, nowhere: bool) -> Descriptor {
        Descriptor { at, buffer, status, len: 4096 - usize::from(len & 0xfff), nowhere }
    }
}

/// The PROM: the address, what kind of card it is, a checksum, and the mark of AMD's boards.
fn prom(mac: Mac) -> [u8; 16] {
    let mut prom = [0; 16];
    prom[..6].copy_from_slice(&mac);
    prom[9] = 0x11;
    prom[14..].fill(0x57);
    let sum: u16 = prom.iter().map(|b| u16::from(*b)).sum();
    prom[12..14].copy_from_slice(&sum.to_le_bytes());
    prom
}

impl Device for Pcnet {
    fn read(&mut self, _: u32, offset: u64, width: u8) -> u64 {
        if offset < 16 {
            let bytes = (0..u64::from(width)).rev();
            return bytes.fold(0, |value, n| value << 8 | u64::from(self.s.prom[(offset + n) as usize & 15]));
        }
        let (dwio, step) = if self.dwio() { (true, 4) } else { (false, 2) };
        if width != step {
            return u64::MAX >> (64 - 8 * u32::from(width));
        }
        let value = match (offset - 16) / u64::from(step) {
            0 => self.read_csr(),
            1 => self.s.index.into(),
            2 => {
                self.reset();
                self.update_line();
                0
            }
            3 => self.read_bcr(),
            _ => 0,
        };
        if dwio { u64::from(value) } else { u64::from(value) & 0xffff }
    }

    fn write(&mut self, _: u32, offset: u64, width: u8, value: u64) {
        if offset < 16 {
            if self.s.bcr[bcr::MISC] & APROMWE != 0 {
                let bytes = value.to_le_bytes();
                (0..usize::from(width)).for_each(|n| self.s.prom[(offset as usize + n) & 15] = bytes[n]);
            }
            return;
        }
        if !self.dwio() && width == 4 && offset == 16 {
            self.s.bcr[bcr::BURST] |= DWIO;
        }
        let step = if self.dwio() { 4 } else { 2 };
        if width != step {
            return;
        }
        match (offset - 16) / u64::from(step) {
            0 => self.write_csr(value as u16),
            1 => self.s.index = value as u8 & 0x7f,
            3 => self.write_bcr(value as u16),
            _ => {}
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Frame(frame) if self.s.phy.link() => self.receive(frame),
            Event::Link(up) => {
                self.s.phy.set_link(up);
            }
            Event::Timer(LOOK) => self.look_again(),
            Event::Timer(SOFTWARE) => {
                self.s.csr[csr::EXTENDED_2] |= STINT;
                self.start_software_timer();
            }
            Event::Timer(WORK) => self.transmit(),
            _ => {}
        }
        self.update_line();
    }

    fn config_write(&mut self, _: u16, _: u8) {
        // Bus mastering may be on now.
        self.transmit();
        self.update_line();
    }

    fn reset(&mut self, kind: ResetKind) {
        if kind == ResetKind::PowerOn {
            self.s.prom = prom(self.mac);
        }
        self.power_on();
        self.update_line();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.s
    }

    fn restored(&mut self) {
        let s = &mut self.s;
        // Somebody else may have written it.
        (s.csr, s.bcr) = (resized(&s.csr, 128), resized(&s.bcr, 64));
        if self.net.is_none() {
            self.s.phy.set_link(false);
        }
        self.ready = None;
        self.say_ready();
    }
}

fn resized(registers: &[u16], len: usize) -> Vec<u16> {
    registers.iter().copied().chain(std::iter::repeat(0)).take(len).collect()
}

#[cfg(test)]
mod tests;
