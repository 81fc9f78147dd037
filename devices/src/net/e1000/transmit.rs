//! Frames that go out: descriptors of all three kinds, and what the card adds to frames.

use serde::{Deserialize, Serialize};

use super::context::{Context, insert};
use super::registers::*;
use super::{E1000, MICROSECOND};
use crate::net::{BROADCAST, FCS, MIN_FRAME};

/// Descriptors or segments in one go; what is left goes on by a timer.
const BUDGET: usize = 256;
/// Bytes of the longest frame, and of the longest that is cut into segments; no driver gives more than 64 KB and headers.
const LONGEST: usize = 16384;
const LONGEST_CUT: usize = 128 << 10;

/// Commands of a descriptor.
const EOP: u8 = 1;
const IFCS: u8 = 1 << 1;
/// In a legacy descriptor: one checksum is inserted.
const IC: u8 = 1 << 2;
/// In the others: the frame is cut into segments.
const TSE: u8 = 1 << 2;
const RS: u8 = 1 << 3;
const RPS: u8 = 1 << 4;
const DEXT: u8 = 1 << 5;
const VLE: u8 = 1 << 6;
const IDE: u8 = 1 << 7;
/// Status.
const DD: u8 = 1;
/// Options of a data descriptor.
const IXSM: u8 = 1;
const TXSM: u8 = 1 << 1;

/// What happens to a frame before it leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Work {
    #[default]
    None,
    /// A legacy descriptor's checksum: start, place.
    Insert(u8, u8),
    /// IXSM and TXSM, by the context for single frames.
    Checksums(u8),
    /// The same, by the context for segments.
    Segments(u8),
}

/// A frame on its way from descriptors to the wire.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outgoing {
    frame: Vec<u8>,
    /// Its first descriptor was there.
    begun: bool,
    work: Work,
    tag: Option<u16>,
    /// The driver put the FCS there itself.
    has_fcs: bool,
    /// It is longer than any can be.
    lost: bool,
    /// The next segment, while a frame is cut.
    segment: Option<usize>,
    /// The contexts for single frames, and for segments.
    contexts: [Context; 2],
}

impl E1000 {
    /// Takes descriptors as long as there are some.
    pub(super) fn transmit(&mut self) {
        let mut ring = self.s.r.ring(TDBAL);
        let (had, mut work) = (ring.owned(), 0);
        while self.s.r[TCTL] & TCTL_EN != 0 && self.dma.enabled() {
            if self.s.out.segment.is_none() && ring.owned() == 0 {
                break;
            }
            if work == BUDGET {
                // Not at once, which would be in the same round of timers.
                self.work.set(self.work.now() + 1);
                break;
            }
            work += 1;
            if let Some(n) = self.s.out.segment {
                self.cut(n);
                continue;
            }
            let at = ring.at();
            let descriptor = self.dma.fetch::<16>(at);
            self.descriptor(&descriptor);
            if descriptor[11] & (RS | RPS) != 0 {
                self.dma.write(at.wrapping_add(12), &[descriptor[12] | DD]);
                self.told(descriptor[11] & IDE != 0);
            }
            ring.step();
        }
        self.s.r.set_head(TDBAL, &ring);
        if had > 0 && ring.owned() == 0 {
            self.raise(icr::TXQE);
        }
        let low = 8 * (self.s.r[TXDCTL] >> 25);
        if low > 0 && had > low && ring.owned() <= low {
            self.raise(icr::TXD_LOW);
        }
    }

    /// A descriptor wanted to be reported.
    fn told(&mut self, delayed: bool) {
        let (delay, absolute) = (u64::from(self.s.r[TIDV]), u64::from(self.s.r[TADV]));
        if !delayed || delay == 0 {
            self.s.transmit_delay.over();
            return self.raise(icr::TXDW);
        }
        self.s.transmit_delay.start(self.delay.now(), delay * MICROSECOND, absolute * MICROSECOND);
        self.set_delay();
    }

    fn descriptor(&mut self, d: &[u8; 16]) {
        let (command, kind, out) = (d[11], d[10] >> 4, &mut self.s.out);
        let extended = command & DEXT != 0;
        if extended && kind == 0 {
            out.contexts[usize::from(command & TSE != 0)] = Context::of(d);
            return;
        }
        let high = if extended { usize::from(d[10] & 15) << 16 } else { 0 };
        let len = usize::from(u16::from_le_bytes([d[8], d[9]])) | high;
        if !out.begun {
            out.begun = true;
            out.work = match (extended, command & TSE != 0) {
                (true, false) => Work::Checksums(d[13]),
                (true, true) => Work::Segments(d[13]),
                (false, _) => Work::None,
            };
        }
        if !extended && command & IC != 0 {
            out.work = Work::Insert(d[13], d[10]);
        }
        if command & VLE != 0 {
            out.tag = Some(u16::from_le_bytes([d[14], d[15]]));
        }
        let longest = if matches!(out.work, Work::Segments(_)) { LONGEST_CUT } else { LONGEST };
        out.lost |= out.frame.len() + len > longest;
        if !out.lost {
            let buffer = u64::from_le_bytes([d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]);
            let from = out.frame.len();
            out.frame.resize(from + len, 0);
            self.dma.read(buffer, &mut out.frame[from..]);
        }
        if command & EOP != 0 {
            out.has_fcs = command & IFCS == 0;
            self.end();
        }
    }

    /// The frame is complete.
    fn end(&mut self) {
        let out = &mut self.s.out;
        let context = match out.work {
            Work::Segments(_) => 1,
            _ => 0,
        };
        let context = out.contexts[context];
        match out.work {
            _ if out.lost => {}
            Work::Segments(_) if context.segments(out.frame.len()) > 0 => {
                self.s.r.count(stat::TSCTC);
                self.s.out.segment = Some(0);
                return;
            }
            Work::Segments(_) => self.s.r.count(stat::TSCTFC),
            work => {
                let mut frame = std::mem::take(&mut out.frame);
                if out.has_fcs {
                    frame.truncate(frame.len().saturating_sub(FCS));
                }
                match work {
                    Work::Insert(start, at) => insert(&mut frame, start, 0, at),
                    Work::Checksums(options) => checksums(&mut frame, &context, options),
                    Work::None | Work::Segments(_) => {}
                }
                self.send(&mut frame);
                self.s.out.frame = frame;
            }
        }
        self.forget();
    }

    /// Sends one of the segments of a frame.
    fn cut(&mut self, n: usize) {
        let out = &mut self.s.out;
        let context = out.contexts[1];
        // A driver's new context does not come in between; a state that somebody else wrote may say anything.
        if n >= context.segments(out.frame.len()) {
            out.segment = None;
            return self.forget();
        }
        let mut segment = std::mem::take(&mut self.segment);
        context.cut(&out.frame, n, &mut segment);
        if let Work::Segments(options) = out.work {
            checksums(&mut segment, &context, options);
        }
        let more = n + 1 < context.segments(out.frame.len());
        out.segment = more.then_some(n + 1);
        self.send(&mut segment);
        self.segment = segment;
        if !more {
            self.forget();
        }
    }

    /// Ready for the next frame.
    fn forget(&mut self) {
        let out = &mut self.s.out;
        (out.begun, out.lost, out.tag, out.work) = (false, false, None, Work::None);
        out.frame.clear();
    }

    /// Puts a frame on the wire, or back into the receiver.
    fn send(&mut self, frame: &mut Vec<u8>) {
        if frame.len() < 14 {
            return;
        }
        if let Some(tag) = self.s.out.tag.filter(|_| self.s.r[CTRL] & ctrl::VME != 0) {
            let [high, low] = tag.to_be_bytes();
            let [kind_high, kind_low] = (self.s.r[VET] as u16).to_be_bytes();
            frame.splice(12..12, [kind_high, kind_low, high, low]);
        }
        if frame.len() < MIN_FRAME {
            frame.resize(MIN_FRAME, 0);
        }
        let (r, octets) = (&mut self.s.r, frame.len() + FCS);
        r.count(stat::GPTC);
        r.count(stat::TPT);
        r.count_octets(stat::GOTC, octets);
        r.count_octets(stat::TOT, octets);
        r.count_size(stat::PTC64, octets);
        match (frame[..6] == BROADCAST, frame[0] & 1 != 0) {
            (true, _) => r.count(stat::BPTC),
            (false, true) => r.count(stat::MPTC),
            (false, false) => {}
        }
        if self.s.r[RCTL] & rctl::LBM != 0 || self.s.phy.loops() {
            self.receive(frame.clone());
        } else if self.s.up
            && let Some(net) = &mut self.net
        {
            net.send(frame);
        }
    }
}

fn checksums(frame: &mut [u8], context: &Context, options: u8) {
    if options & IXSM != 0 {
        insert(frame, context.ip.0, context.ip.2, context.ip.1);
    }
    if options & TXSM != 0 {
        let (start, at, end) = context.transport;
        insert(frame, start, end, at);
    }
}
