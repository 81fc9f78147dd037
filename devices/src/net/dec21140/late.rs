//! What keeps de(4) of OpenBSD going.
//!
//! From 4.5 on, OpenBSD gathers up to eight packets before it calls a driver's start routine, once; that of de(4) takes
//! one packet a call as long as the ring has room, and nothing else looks at the queue. (With ALTQ it takes all, so
//! GENERIC does not know this; the kernel of the install media does.) Each time that two packets are ready at once, one
//! stays behind until the next packet, for ever: so acknowledgements fall behind until the window is shut. The real chip
//! has no remedy. This one has two, for a driver that sends setup frames as de(4) does (with FS and LS, which no other
//! does), hears of received frames, and has masked TI:
//!
//! - The next frame comes when the driver has taken note of the last one, and the cable has had the time for it. Two at
//!   once would be answered at once.
//! - What was sent comes back late: one frame each time that the driver unmasks TI, which it does when its ring is full.
//!   With a ring that is always full, each packet goes by way of the interrupt, where de(4) takes the whole queue. One
//!   comes back by itself each 300 ms, since after two seconds without any its watchdog says "transmission timeout".

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::ring::{IC, SET, TX_LS};
use super::rules::Rule;
use super::{Dec21140, sts};

/// Timers.
pub(super) const LATE: u32 = 5;
pub(super) const PACE: u32 = 6;

/// Nanoseconds until a frame comes back by itself.
const AT_LAST: u64 = 300_000_000;
/// How long a frame waits for a driver that takes no note of the last one.
const PATIENCE: u64 = 20_000_000;
/// What a byte takes at 100 Mbit/s, and what a frame has besides its bytes: FCS, preamble and gap.
const BYTE: u64 = 80;
const BESIDES: usize = 24;
/// Descriptors that may be late.
const MOST: usize = 1024;

/// A descriptor of the transmit list that the chip is through with: where it is, its status, and TDES1.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Done {
    pub at: u32,
    pub status: u32,
    pub flags: u32,
}

/// All that is saved.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Late {
    /// The driver's setup frames are de(4)'s.
    pub is_de: bool,
    /// What comes back late.
    done: VecDeque<Done>,
    /// What the cable takes for the last frame, while the next one waits; or nothing.
    pub pace: u64,
}

impl Dec21140 {
    /// De(4), at work.
    fn is_de(&self) -> bool {
        self.s.late.is_de && self.s.mask & (sts::RI | sts::TI) == sts::RI
    }

    /// The chip is through with a descriptor.
    pub(super) fn done(&mut self, done: Done) {
        let late = self.is_de() && done.flags & SET == 0 && Rule::SentFramesComeLate.holds();
        if !late && self.s.late.done.is_empty() {
            return self.give_back(done);
        }
        if self.s.late.done.is_empty() {
            self.after(LATE, AT_LAST);
        }
        self.s.late.done.push_back(done);
        if done.flags & SET != 0 || self.s.late.done.len() > MOST {
            self.give_all_back();
        }
        self.tell();
    }

    /// Gives a descriptor back.
    fn give_back(&mut self, done: Done) {
        let setup = done.flags & SET != 0;
        let tells = if setup { Rule::SetupInterrupts.holds() } else { done.flags & TX_LS != 0 };
        if done.flags & IC != 0 && tells {
            self.s.status |= sts::TI;
        }
        self.dma.write_u32(done.at.into(), done.status);
    }

    /// Gives the descriptors of the first frame back.
    pub(super) fn give_one_back(&mut self) {
        while let Some(done) = self.s.late.done.pop_front() {
            self.give_back(done);
            if done.flags & TX_LS != 0 {
                break;
            }
        }
        if self.s.late.done.is_empty() {
            self.cancel(LATE);
        } else {
            self.after(LATE, AT_LAST);
        }
    }

    pub(super) fn give_all_back(&mut self) {
        while !self.s.late.done.is_empty() {
            self.give_one_back();
        }
    }

    /// The list has come round to a descriptor that is late.
    pub(super) fn is_late(&self, at: u32) -> bool {
        self.s.late.done.front().is_some_and(|done| done.at == at)
    }

    /// The driver wrote CSR5 or CSR7: it may want to hear of what was sent.
    pub(super) fn tell(&mut self) {
        if self.s.late.done.is_empty() {
            return;
        }
        if self.s.mask & sts::RI == 0 {
            self.give_all_back();
        } else if self.s.mask & sts::TI != 0 && self.s.status & sts::TI == 0 {
            self.give_one_back();
        }
    }

    /// A frame of so many bytes has been received. Whether the next one is to wait.
    pub(super) fn pace(&mut self, len: usize) -> bool {
        if self.is_de() && Rule::FramesComeOneByOne.holds() {
            self.s.late.pace = BYTE * (len + BESIDES) as u64;
            self.after(PACE, PATIENCE);
        }
        self.s.late.pace != 0
    }

    /// The driver has taken note of it.
    pub(super) fn noted(&self) {
        if self.s.late.pace != 0 {
            self.after(PACE, self.s.late.pace);
        }
    }

    /// The next frame may come.
    pub(super) fn paced(&mut self) {
        self.s.late.pace = 0;
        self.receive();
        if self.s.waiting.is_none() && self.s.late.pace == 0 {
            self.set_starved(false);
        }
    }
}
