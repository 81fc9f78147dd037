//! Frames that come in: which are taken, and how they lie in the driver's buffers.

use super::context::{Verdict, check};
use super::registers::*;
use super::{E1000, MICROSECOND};
use crate::net::offload::{checksum, sum};
use crate::net::{BROADCAST, FCS, MIN_FRAME, crc32_le};

/// Status of a descriptor.
const DD: u8 = 1;
const EOP: u8 = 1 << 1;
const IXSM: u8 = 1 << 2;
const VP: u8 = 1 << 3;
const TCPCS: u8 = 1 << 5;
const IPCS: u8 = 1 << 6;
const PIF: u8 = 1 << 7;
/// Errors.
const TCPE: u8 = 1 << 5;
const IPE: u8 = 1 << 6;

/// RXCSUM.
const PCSS: u32 = 0xff;
const IPOFL: u32 = 1 << 8;
const TUOFL: u32 = 1 << 9;

/// Octets of the longest frame, FCS included: without RCTL.LPE, and with it.
const LONGEST: usize = 1522;
const LONGEST_JUMBO: usize = 16384;

/// Where MAC control frames go, and their type.
const PAUSE_TYPE: [u8; 2] = [0x88, 0x08];

/// What the filter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    No,
    Exact,
    /// One of those that the multicast table cannot tell apart.
    Hash,
}

impl E1000 {
    /// A frame came in by the wire, or by the loopback.
    pub(super) fn receive(&mut self, mut frame: Vec<u8>) {
        if self.s.r[RCTL] & rctl::EN == 0 || frame.len() < 14 {
            return;
        }
        if frame.len() < MIN_FRAME {
            frame.resize(MIN_FRAME, 0);
        }
        self.s.r.count(stat::TPR);
        self.s.r.count_octets(stat::TOR, frame.len() + FCS);
        let mut how = self.filter(&frame);
        if how != Match::No && self.is_pause(&frame) {
            how = Match::No;
        }
        let longest = if self.s.r[RCTL] & rctl::LPE != 0 { LONGEST_JUMBO } else { LONGEST };
        if how != Match::No && frame.len() + FCS > longest {
            self.s.r.count(stat::ROC);
        } else if how != Match::No {
            self.hold_or_store(frame, how == Match::Hash);
        }
    }

    /// The card's own buffer is one frame that waits for descriptors; the rest is the backend's.
    fn hold_or_store(&mut self, frame: Vec<u8>, hash: bool) {
        if self.s.held.is_some() {
            self.s.r.count(stat::MPC);
            self.raise(icr::RXO);
        } else if !self.store(&frame, hash) {
            self.s.r.count(stat::RNBC);
            self.s.held = Some((frame, hash));
        }
        self.say_ready();
    }

    /// The driver gave descriptors, or started the receiver.
    pub(super) fn refill(&mut self) {
        if self.s.r[RCTL] & rctl::EN == 0 {
            self.s.held = None;
        } else if let Some((frame, hash)) = self.s.held.take()
            && !self.store(&frame, hash)
        {
            self.s.held = Some((frame, hash));
        }
        self.say_ready();
    }

    /// Tells the backend whether to go on. What comes while the receiver is off is lost, as on a wire.
    pub(super) fn say_ready(&mut self) {
        let on = self.s.r[RCTL] & rctl::EN != 0;
        let ready = !on || self.s.held.is_none() && self.s.r.ring(RDBAL).owned() > 0;
        if self.ready.replace(ready) != Some(ready)
            && let Some(net) = &mut self.net
        {
            net.want(ready);
        }
    }

    fn is_tagged(&self, frame: &[u8]) -> bool {
        frame.len() >= 16 && u16::from_be_bytes([frame[12], frame[13]]) == self.s.r[VET] as u16
    }

    fn filter(&self, frame: &[u8]) -> Match {
        let control = self.s.r[RCTL];
        if control & rctl::VFE != 0 && self.is_tagged(frame) {
            let tag = u32::from(u16::from_be_bytes([frame[14], frame[15]]));
            let cfi = tag & 0x1000 != 0;
            let known = self.s.r[VFTA + 4 * (tag >> 5 & 0x7f)] >> (tag & 0x1f) & 1 != 0;
            if !known || control & rctl::CFIEN != 0 && cfi != (control & rctl::CFI != 0) {
                return Match::No;
            }
        }
        let (to, group) = (&frame[..6], frame[0] & 1 != 0);
        let all = if group { rctl::MPE } else { rctl::UPE };
        let broadcast = *to == BROADCAST && control & rctl::BAM != 0;
        if control & all != 0 || broadcast || self.is_listed(frame) {
            Match::Exact
        } else if group && self.is_hashed(frame) {
            Match::Hash
        } else {
            Match::No
        }
    }

    /// One of the receive addresses is its destination, or its source for those with AS = 1.
    fn is_listed(&self, frame: &[u8]) -> bool {
        (0..16).any(|n| {
            let (low, high) = (self.s.r[RAL + 8 * n], self.s.r[RAH + 8 * n]);
            let address = match high >> 16 & 3 {
                0 => &frame[..6],
                1 => &frame[6..12],
                _ => return false,
            };
            high & RAH_AV != 0 && address[..4] == low.to_le_bytes() && address[4..] == high.to_le_bytes()[..2]
        })
    }

    /// By twelve bits of the last two bytes of a group's address; RCTL.MO says which.
    fn is_hashed(&self, frame: &[u8]) -> bool {
        let low = [4, 3, 2, 0][(self.s.r[RCTL] >> 12 & 3) as usize];
        let hash = (u32::from(u16::from_le_bytes([frame[4], frame[5]])) >> low) & 0xfff;
        self.s.r[MTA + 4 * (hash >> 5)] >> (hash & 0x1f) & 1 != 0
    }

    /// Whether a frame is MAC control, which is counted and goes no further unless the driver wants to see it.
    fn is_pause(&mut self, frame: &[u8]) -> bool {
        let r = &mut self.s.r;
        let (low, high) = (r[FCAL].to_le_bytes(), r[FCAH].to_le_bytes());
        if frame[12..14] != PAUSE_TYPE || frame[..4] != low || frame[4..6] != high[..2] {
            return false;
        }
        match (r[CTRL] & ctrl::RFCE != 0, frame[16..18] == [0, 0]) {
            (false, _) => r.count(stat::FCRUC),
            (true, false) => r.count(stat::XOFFRXC),
            (true, true) => r.count(stat::XONRXC),
        }
        r[RCTL] & rctl::PMCF == 0
    }

    /// Bytes of a buffer.
    fn buffer_size(&self) -> usize {
        let control = self.s.r[RCTL];
        match (control >> 16 & 3, control & rctl::BSEX != 0) {
            (size, false) => 2048 >> size,
            (size @ 1.., true) => 32768 >> size,
            (0, true) => 2048,
        }
    }

    /// Lays a frame into the next buffers. False if there are too few for now.
    fn store(&mut self, frame: &[u8], hash: bool) -> bool {
        let control = self.s.r[RCTL];
        let tagged = self.is_tagged(frame);
        let tag = (tagged && self.s.r[CTRL] & ctrl::VME != 0).then(|| u16::from_be_bytes([frame[14], frame[15]]));
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        bytes.extend_from_slice(&frame[..12]);
        bytes.extend_from_slice(&frame[if tag.is_some() { 16 } else { 12 }..]);
        let (mut status, errors, sum) = self.checks(&bytes);
        if control & rctl::SECRC == 0 {
            bytes.extend_from_slice(&(!crc32_le(frame)).to_le_bytes());
        }
        status |= if hash { PIF } else { 0 } | if tag.is_some() { VP } else { 0 };
        let stored = self.scatter(&bytes, status, errors, sum, tag.unwrap_or(0));
        self.scratch = bytes;
        if stored == Some(true) {
            self.stored(frame);
        }
        stored.is_some()
    }

    /// What the card says of the checksums in a frame: status, errors, and the sum of all from RXCSUM.PCSS on.
    fn checks(&self, frame: &[u8]) -> (u8, u8, u16) {
        let wanted = self.s.r[RXCSUM];
        let all = frame.get((wanted & PCSS) as usize..).map_or(0, |bytes| checksum(sum(bytes)));
        let verdict = if wanted & (IPOFL | TUOFL) != 0 { check(frame) } else { Verdict::default() };
        let ip = verdict.ip.filter(|_| wanted & IPOFL != 0);
        let transport = verdict.transport.filter(|_| wanted & TUOFL != 0);
        let flag = |what: Option<bool>, bit: u8| if what.is_some() { bit } else { 0 };
        let wrong = |what: Option<bool>, bit: u8| if what == Some(false) { bit } else { 0 };
        let status = if ip.or(transport).is_none() { IXSM } else { flag(ip, IPCS) | flag(transport, TCPCS) };
        (status, wrong(ip, IPE) | wrong(transport, TCPE), all)
    }

    /// Fills descriptors. `None`: there are too few for now; false: there can never be enough.
    fn scatter(&mut self, bytes: &[u8], status: u8, errors: u8, sum: u16, special: u16) -> Option<bool> {
        let mut ring = self.s.r.ring(RDBAL);
        let (size, owned) = (self.buffer_size(), ring.owned());
        let needed = bytes.len().div_ceil(size);
        if needed >= ring.len as usize && ring.len > 0 {
            return Some(false);
        }
        if needed > owned as usize || !self.dma.enabled() {
            return None;
        }
        for (n, part) in bytes.chunks(size).enumerate() {
            let at = ring.at();
            let buffer = u64::from_le_bytes(self.dma.fetch(at));
            // A descriptor without a buffer is given back as one whose data nobody wants.
            if buffer != 0 {
                self.dma.write(buffer, part);
            }
            let ([len_low, len_high], [sum_low, sum_high]) = ((part.len() as u16).to_le_bytes(), sum.to_le_bytes());
            let [special_low, special_high] = special.to_le_bytes();
            let end = if n + 1 == needed { status | EOP } else { 0 };
            let back = [len_low, len_high, sum_low, sum_high, DD | end, errors, special_low, special_high];
            self.dma.write(at.wrapping_add(8), &back);
            ring.step();
        }
        self.s.r.set_head(RDBAL, &ring);
        let threshold = ring.len >> (1 + (self.s.r[RCTL] >> 8 & 3).min(2));
        if owned > threshold && ring.owned() <= threshold {
            self.raise(icr::RXDMT0);
        }
        Some(true)
    }

    /// Counts and tells of a frame that the driver has.
    fn stored(&mut self, frame: &[u8]) {
        let (r, octets) = (&mut self.s.r, frame.len() + FCS);
        r.count(stat::GPRC);
        r.count_octets(stat::GORC, octets);
        r.count_size(stat::PRC64, octets);
        match (frame[..6] == BROADCAST, frame[0] & 1 != 0) {
            (true, _) => r.count(stat::BPRC),
            (false, true) => r.count(stat::MPRC),
            (false, false) => {}
        }
        if octets <= r[RSRPD] as usize {
            self.raise(icr::SRPD);
        }
        let (packet, absolute) = (u64::from(self.s.r[RDTR]), u64::from(self.s.r[RADV]));
        if packet == 0 {
            self.s.receive_delay.over();
            return self.raise(icr::RXT0);
        }
        self.s.receive_delay.start(self.delay.now(), packet * MICROSECOND, absolute * MICROSECOND);
        self.set_delay();
    }
}
