//! Breakpoints and single step (Intel SDM volume 3, chapter 18).
//!
//! Instruction breakpoints are faults before the instruction; data and I/O breakpoints, single step and the T bit of a
//! TSS are traps after it, collected in `pending_db` as the bits that DR6 will show. Pages with an armed data
//! breakpoint have no tags in the TLB, so only they cost anything. The run loop executes single instructions while
//! anything here is armed.
//!
//! MOV SS and POP SS hold the traps back until the instruction after them has been executed, because that is the one
//! that loads the stack pointer. An INT instruction, SYSCALL with TF in its mask, and a task switch give no single-step
//! trap.

use crate::flags::TF;
use crate::state::{Cpu, Fault};

/// DR6: single step.
pub(crate) const DR6_BS: u64 = 1 << 14;
/// DR6: the T bit of the task switched to.
pub(crate) const DR6_BT: u64 = 1 << 15;
/// DR6: access to a debug register under DR7.GD.
pub(crate) const DR6_BD: u64 = 1 << 13;
/// DR7: general detect.
pub(crate) const DR7_GD: u64 = 1 << 13;
/// DR7: L0 to G3.
const DR7_ARMED: u64 = 0xff;

/// What a breakpoint watches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    Execute,
    Write,
    Io,
    ReadWrite,
}

/// What becomes of the traps of an instruction that completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Traps {
    /// They are delivered after it.
    #[default]
    Deliver,
    /// There is no single-step trap.
    NoStep,
    /// They wait for the next instruction.
    Hold,
}

impl Cpu {
    fn armed(&self, n: usize) -> Option<Watch> {
        if self.dr[7] >> (2 * n) & 3 == 0 {
            return None;
        }
        match self.dr[7] >> (16 + 4 * n) & 3 {
            0 => Some(Watch::Execute),
            1 => Some(Watch::Write),
            2 if self.cr4 & 8 != 0 => Some(Watch::Io),
            2 => None,
            _ => Some(Watch::ReadWrite),
        }
    }

    /// First and last address that breakpoint `n` watches.
    fn watched(&self, n: usize) -> (u64, u64) {
        let len = [1, 2, 8, 4][(self.dr[7] >> (18 + 4 * n) & 3) as usize];
        let first = self.dr[n] & !(len - 1);
        (first, first + (len - 1))
    }

    fn matching(&self, first: u64, len: u64, kinds: impl Fn(Watch) -> bool) -> u64 {
        let last = first.saturating_add(len - 1);
        (0..4)
            .filter(|n| self.armed(*n).is_some_and(&kinds))
            .filter(|n| {
                let (from, to) = self.watched(*n);
                from <= last && first <= to
            })
            .fold(0, |bits, n| bits | 1 << n)
    }

    /// Whether a data breakpoint lies in the page of a linear address.
    pub(crate) fn data_watched(&self, lin: u64) -> bool {
        self.is_watched_closely(lin)
            || self.dr[7] & DR7_ARMED != 0
                && self.matching(lin & !0xfff, 4096, |w| matches!(w, Watch::Write | Watch::ReadWrite)) != 0
    }

    /// Notes the data breakpoints that an access hits.
    pub(crate) fn watch_data(&mut self, lin: u64, len: u64, write: bool) {
        if self.dr[7] & DR7_ARMED != 0 && len != 0 {
            self.pending_db |= self.matching(lin, len, |w| w == Watch::ReadWrite || write && w == Watch::Write);
        }
        self.watch_closely(lin, len, write);
    }

    /// Notes the I/O breakpoints that an access hits.
    pub(crate) fn watch_io(&mut self, port: u16, width: u8) {
        if self.dr[7] & DR7_ARMED != 0 {
            self.pending_db |= self.matching(port.into(), width.into(), |w| w == Watch::Io);
        }
    }

    /// Looks for a breakpoint on the instruction at RIP and, if there is one, records the fault.
    pub(crate) fn code_breakpoint(&mut self) -> bool {
        let lin = if self.mode.has(crate::insn::Mode::LONG) {
            self.rip
        } else {
            self.seg[crate::insn::CS as usize].base.wrapping_add(self.rip) & 0xffff_ffff
        };
        // The length field of an instruction breakpoint has to be 0.
        let hit = self.matching(lin, 1, |w| w == Watch::Execute);
        if hit != 0 {
            self.pending_db |= hit;
            let _ = self.fault(1, None);
        }
        hit != 0
    }

    /// Adds the traps of an instruction that completed to what is pending; `tf` is EFLAGS.TF from before it.
    pub(crate) fn after_insn(&mut self, tf: bool) {
        let held = std::mem::take(&mut self.held_db);
        match std::mem::take(&mut self.traps) {
            Traps::Deliver if tf => self.pending_db |= held | DR6_BS,
            Traps::Deliver | Traps::NoStep => self.pending_db |= held,
            Traps::Hold => self.held_db = held | std::mem::take(&mut self.pending_db),
        }
    }

    /// The present instruction's effect on its traps; of no consequence unless some are armed.
    pub(crate) fn set_traps(&mut self, traps: Traps) {
        if self.rflags & TF != 0 || self.dr[7] & DR7_ARMED != 0 {
            self.traps = traps;
        }
    }

    /// Delivers the pending traps.
    pub(crate) fn debug_trap(&mut self) {
        self.deliver(Fault { vector: 1, error: None, cr2: 0 });
    }

    /// What #DB does to the debug registers.
    pub(crate) fn latch_dr6(&mut self) {
        let bits = std::mem::take(&mut self.pending_db);
        if bits != 0 {
            self.dr[6] = self.dr[6] & !0xf | bits;
        }
        self.dr[7] &= !DR7_GD;
    }
}
