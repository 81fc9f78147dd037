//! Descriptors: four double words each, in a ring or in a chain, with two buffers.

use super::filter::{Filter, Kind, SETUP};
use super::late::Done;
use super::rules::Rule;
use super::{Dec21140, LOOK, LOOK_RARELY, POLL, Process, WORK, mode, sts};
use crate::net::{BROADCAST, FCS, MIN_FRAME, crc32_le};

/// Descriptors that one kick may take; the rest is for the timer.
const KICK: usize = 128;
/// Descriptors that one received frame may take.
const MOST: usize = 64;
/// Bytes of the longest frame that goes out; the jabber timer cuts off what is longer.
const JABBER: usize = 4096;
/// Bytes, without FCS, of the longest frame that comes in; the watchdog cuts off what is longer.
const WATCHDOG: usize = 2560;
/// Bytes of the longest frame that is not "too long".
const LONGEST: usize = 1518;

/// RDES0.DT: from the wire, or by the loopbacks.
pub(super) const SERIAL: u32 = 0;
const INTERNAL: u32 = 1;
const EXTERNAL: u32 = 2;

const OWN: u32 = 1 << 31;
/// DES1: the list begins again behind this one, or goes on where buffer 2 points.
const END_OF_RING: u32 = 1 << 25;
const CHAINED: u32 = 1 << 24;
/// TDES0.
const TO: u32 = 1 << 14;
const LO: u32 = 1 << 11;
const NC: u32 = 1 << 10;
/// TDES0 and RDES0.
const ES: u32 = 1 << 15;
/// TDES1.
pub(super) const IC: u32 = 1 << 31;
pub(super) const TX_LS: u32 = 1 << 30;
const TX_FS: u32 = 1 << 29;
const FT1: u32 = 1 << 28;
pub(super) const SET: u32 = 1 << 27;
const AC: u32 = 1 << 26;
const FT0: u32 = 1 << 22;
/// RDES0.
const FF: u32 = 1 << 30;
const DE: u32 = 1 << 14;
const MF: u32 = 1 << 10;
const RX_FS: u32 = 1 << 9;
const RX_LS: u32 = 1 << 8;
const TL: u32 = 1 << 7;
const FT: u32 = 1 << 5;
const RW: u32 = 1 << 4;
/// What a setup frame's descriptor says afterwards.
const SETUP_DONE: u32 = 0x7fff_ffff;

/// A descriptor, fetched once.
#[derive(Clone, Copy)]
struct Descriptor {
    at: u32,
    words: [u32; 4],
}

impl Descriptor {
    fn owned(self) -> bool {
        self.words[0] & OWN != 0
    }

    /// Address and length of its buffers.
    fn buffers(self) -> [(u64, usize); 2] {
        let size = |shift: u32| (self.words[1] >> shift & 0x7ff) as usize;
        let second = if self.words[1] & CHAINED == 0 { size(11) } else { 0 };
        [(self.words[2].into(), size(0)), (self.words[3].into(), second)]
    }
}

/// How long the transmitter waits between two looks by itself (CSR0.TAP), in nanoseconds.
fn polling(bus_mode: u32) -> Option<u64> {
    match bus_mode >> 17 & 7 {
        0 => None,
        1 => Some(200_000),
        2 => Some(800_000),
        3 => Some(1_600_000),
        n => Some(12_800 << (n - 4)),
    }
}

impl Dec21140 {
    /// `None` if nobody is there: such reads give ones.
    fn fetch(&self, at: u32) -> Option<Descriptor> {
        let bytes: [u8; 16] = self.dma.fetch(at.into());
        let words = std::array::from_fn(|n| u32::from_le_bytes(std::array::from_fn(|k| bytes[4 * n + k])));
        (words != [u32::MAX; 4]).then_some(Descriptor { at, words })
    }

    /// Where the list goes on.
    fn next(&self, descriptor: Descriptor, list: u32) -> u32 {
        let skip = 16 + 4 * (self.s.bus_mode >> 2 & 31);
        match descriptor.words[1] {
            flags if flags & END_OF_RING != 0 && Rule::RingsEnd.holds() => list,
            flags if flags & CHAINED != 0 => descriptor.words[3] & !3,
            _ => descriptor.at.wrapping_add(skip),
        }
    }

    /// The driver, or a timer, wants the transmit list to be looked at.
    pub(super) fn demand(&mut self) {
        if self.s.tx == Process::Suspended {
            self.s.tx = Process::Running;
        }
        self.transmit();
    }

    /// Sends what the list has, for a while.
    pub(super) fn transmit(&mut self) {
        if !self.dma.enabled() {
            return;
        }
        let mut sent = 0;
        while self.s.tx == Process::Running {
            if sent == KICK {
                self.s.poll = 0;
                return self.after(WORK, 1000);
            }
            if self.is_late(self.s.tx_at) {
                self.give_all_back();
            }
            let Some(descriptor) = self.fetch(self.s.tx_at) else { return self.fatal() };
            if !descriptor.owned() {
                return self.no_transmit_buffer(sent > 0);
            }
            sent += 1;
            let setup = descriptor.words[1] & SET != 0
                && (Rule::SetupWithSegmentBits.holds() || descriptor.words[1] & (TX_FS | TX_LS) == 0);
            let status = if setup { self.setup(descriptor) } else { self.gather(descriptor) };
            let Some(status) = status else { return };
            self.s.tx_at = self.next(descriptor, self.s.tx_list);
            self.done(Done { at: descriptor.at, status, flags: descriptor.words[1] });
        }
    }

    fn no_transmit_buffer(&mut self, worked: bool) {
        self.s.tx = Process::Suspended;
        if !Rule::NoBufferSuspends.holds() {
            self.s.tx = Process::Stopped;
        }
        // Said once, and not at each look that the chip takes by itself.
        if worked || self.s.poll == 0 {
            self.s.status |= sts::TU;
            self.s.poll = 0;
        }
        self.suspend_polling();
    }

    /// Looks again after a while, if it is to do that by itself: as often as asked for while there is something to send,
    /// and then ever more rarely.
    pub(super) fn suspend_polling(&mut self) {
        match polling(self.s.bus_mode).filter(|_| self.s.tx == Process::Suspended) {
            Some(least) => {
                self.s.poll = (2 * self.s.poll).clamp(least, LOOK_RARELY.max(least));
                self.after(POLL, self.s.poll);
            }
            None => self.cancel(POLL),
        }
    }

    /// Takes a setup frame. `None`: not now.
    fn setup(&mut self, descriptor: Descriptor) -> Option<u32> {
        if self.s.rx == Process::Stopped && !Rule::SetupWhileStopped.holds() {
            self.s.tx = Process::Suspended;
            return None;
        }
        let mut setup = [0; SETUP];
        let mut done = 0;
        for (at, len) in descriptor.buffers() {
            let len = len.min(SETUP - done);
            self.dma.read(at, &mut setup[done..done + len]);
            done += len;
        }
        let kind = Kind::of(descriptor.words[1] & FT1 != 0, descriptor.words[1] & FT0 != 0);
        self.s.filter = Filter::new(kind, &setup);
        let shown = match kind {
            Kind::Perfect => 0,
            Kind::HashPerfect => mode::HP,
            Kind::Inverse => mode::IF,
            Kind::HashOnly => mode::HP | mode::HO,
        };
        self.s.mode = self.s.mode & !mode::FILTER | shown;
        self.s.late.is_de = descriptor.words[1] & (TX_FS | TX_LS) == TX_FS | TX_LS;
        Some(if Rule::SetupIsReturned.holds() { SETUP_DONE } else { descriptor.words[0] })
    }

    /// Takes a part of a frame, and sends it if it is the last.
    fn gather(&mut self, descriptor: Descriptor) -> Option<u32> {
        let flags = descriptor.words[1];
        if flags & TX_FS != 0 {
            self.s.sending.clear();
        }
        let buffers = descriptor.buffers();
        let used = if Rule::SecondBufferCounts.holds() { &buffers[..] } else { &buffers[..1] };
        for (at, len) in used {
            let from = self.s.sending.len();
            // One byte too many tells that it was too long.
            self.s.sending.resize((from + len).min(JABBER + 1), 0);
            self.dma.read(*at, &mut self.s.sending[from..]);
        }
        if flags & TX_LS == 0 {
            return Some(0);
        }
        let mut frame = std::mem::take(&mut self.s.sending);
        let status = self.send(&mut frame, flags & AC != 0);
        // The next one needs the room.
        frame.clear();
        self.s.sending = frame;
        Some(status)
    }

    /// Sends a frame, and says how that went.
    fn send(&mut self, frame: &mut Vec<u8>, has_fcs: bool) -> u32 {
        if frame.len() > JABBER {
            self.s.status |= sts::TJT;
            return ES | TO;
        }
        if has_fcs {
            frame.truncate(frame.len().saturating_sub(FCS));
        }
        if frame.is_empty() {
            return 0;
        }
        if frame.len() < MIN_FRAME && Rule::ShortFramesArePadded.holds() {
            frame.resize(MIN_FRAME, 0);
        }
        let looped = match self.s.mode & mode::OM {
            0 if self.has_phy && self.s.phy.loopback() => EXTERNAL,
            0 => 0,
            mode::OM_INTERNAL => INTERNAL,
            _ => EXTERNAL,
        };
        if looped != 0 {
            self.arrive(frame.clone(), looped);
            return 0;
        }
        if !self.s.link {
            // Full duplex does not listen for a carrier.
            return if self.has(mode::FD) { 0 } else { ES | LO | NC };
        }
        if let Some(net) = &mut self.net {
            net.send(frame);
        }
        if Rule::SentFramesHaveCarrier.holds() { 0 } else { ES | NC }
    }

    /// A frame reached the chip.
    pub(super) fn arrive(&mut self, frame: Vec<u8>, how: u32) {
        let Some(to) = frame.first_chunk::<6>() else { return };
        if self.s.rx == Process::Stopped || how == SERIAL && (self.s.mode & mode::OM != 0 || !self.s.link) {
            return;
        }
        let listed = self.s.filter.takes(*to);
        let group = to[0] & 1 != 0 && (*to != BROADCAST || Rule::AllMulticastIsBroadcast.holds());
        if !(listed || self.has(mode::PR | mode::RA) || group && self.has(mode::PM)) {
            return;
        }
        if self.s.waiting.is_some() {
            self.s.missed_more |= self.s.missed == u16::MAX;
            self.s.missed = self.s.missed.wrapping_add(1);
            return;
        }
        let failed = if !listed && self.has(mode::RA) { FF } else { 0 };
        self.s.waiting = Some((frame, how << 12 | failed));
        self.receive();
    }

    /// Puts the frame that waits into the driver's buffers, if there are any.
    pub(super) fn receive(&mut self) {
        if !self.dma.enabled() || self.s.late.pace != 0 {
            return;
        }
        let Some((mut frame, mut status)) = self.s.waiting.take() else { return };
        frame.resize(frame.len().max(MIN_FRAME), 0);
        if frame.len() > WATCHDOG {
            frame.truncate(WATCHDOG);
            self.s.status |= sts::RWT;
            status |= RW | ES;
        }
        let Some(descriptors) = self.find_room(frame.len() + FCS) else { return };
        if descriptors.is_empty() {
            self.s.waiting = Some((frame, status));
            return self.no_receive_buffer();
        }
        let len = frame.len();
        self.place(&descriptors, frame, status);
        if self.s.rx != Process::Stopped {
            self.s.rx = Process::Running;
        }
        self.s.look = LOOK;
        self.s.status |= sts::RI;
        if self.starved {
            self.cancel(super::LOOKING);
        }
        let waits = self.pace(len);
        if self.starved != waits {
            self.set_starved(waits);
        }
    }

    /// The descriptors for so many bytes; none if the driver has not given enough back, or `None` if there is no list.
    fn find_room(&mut self, len: usize) -> Option<Vec<Descriptor>> {
        let (mut found, mut room, mut at) = (Vec::new(), 0, self.s.rx_at);
        while room < len && found.len() < MOST {
            let Some(descriptor) = self.fetch(at) else {
                self.fatal();
                return None;
            };
            // A list that is too small as a whole has to do.
            if found.iter().any(|d: &Descriptor| d.at == at) {
                break;
            }
            if !descriptor.owned() {
                return Some(Vec::new());
            }
            room += descriptor.buffers().iter().map(|(_, len)| len).sum::<usize>();
            found.push(descriptor);
            at = self.next(descriptor, self.s.rx_list);
        }
        Some(found)
    }

    fn no_receive_buffer(&mut self) {
        if self.s.rx == Process::Running {
            self.s.rx = Process::Suspended;
            self.s.status |= sts::RU;
            self.s.look = LOOK;
        }
        if !self.starved {
            self.set_starved(true);
        }
        if Rule::ReceiverLooksAgain.holds() {
            self.after(super::LOOKING, self.s.look);
            self.s.look = (2 * self.s.look).min(LOOK_RARELY);
        }
    }

    /// Lays a frame into descriptors, the last of which says how it is.
    fn place(&mut self, descriptors: &[Descriptor], mut frame: Vec<u8>, mut status: u32) {
        let fcs = !crc32_le(&frame);
        frame.extend(fcs.to_le_bytes());
        let counted = if Rule::LengthCountsFcs.holds() { frame.len() } else { frame.len() - FCS };
        status |= (counted as u32) << 16 | if frame[0] & 1 != 0 { MF } else { 0 };
        let kind = u16::from_be_bytes([frame[12], frame[13]]);
        status |= if kind > 1500 { FT } else { 0 };
        // Without ES: frames with a VLAN's tag are as long, and drivers that look at ES would drop them.
        status |= if frame.len() > LONGEST { TL } else { 0 };
        let mut rest = &frame[..];
        for (n, descriptor) in descriptors.iter().enumerate() {
            for (at, len) in descriptor.buffers() {
                let (part, more) = rest.split_at(len.min(rest.len()));
                self.dma.write(at, part);
                rest = more;
            }
            let last = n + 1 == descriptors.len();
            let mut says = if last { status | RX_LS } else { 0 } | if n == 0 { RX_FS } else { 0 };
            if last && !rest.is_empty() {
                says |= DE | ES;
            }
            if last && !Rule::GoodFramesHaveNoError.holds() {
                says |= ES;
            }
            self.s.rx_at = self.next(*descriptor, self.s.rx_list);
            // The driver may take it from here on.
            self.dma.write_u32(descriptor.at.into(), says);
        }
    }
}
