//! A debugger outside of the guest, which the guest does not notice.
//!
//! Breakpoints leave memory as it is. The engine begins no block at an address whose place in its page is that of one of
//! them, and ends those that reach it, so such an instruction is executed alone, and only there is anybody asked. Single
//! steps and watched memory take the processor off its blocks altogether ([`Cpu::debugged`]). Pages with watched memory
//! have no tags in the TLB, as those that the guest's own debug registers watch. A processor without a debugger pays for
//! none of it.
//!
//! Every stop is an end of the run ([`crate::Exit::Kicked`]) that [`Cpu::take_stop`] explains.

use emu::PAGE_SIZE;

use crate::insn::{CS, Mode};
use crate::run::Exit;
use crate::state::Cpu;

/// Memory that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Linear address of the first byte.
    pub address: u64,
    /// Bytes, at least one.
    pub len: u64,
    /// Loads stop the processor.
    pub reads: bool,
    /// Stores do.
    pub writes: bool,
}

impl Watch {
    fn meets(&self, first: u64, len: u64) -> bool {
        let last = |first: u64, len: u64| first.saturating_add(len.max(1) - 1);
        self.address <= last(first, len) && first <= last(self.address, self.len)
    }
}

/// What a debugger wants of a processor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// It stops after one instruction, which no interrupt comes before.
    pub step: bool,
    /// It stops before these instructions: linear addresses, in order.
    pub breakpoints: Vec<u64>,
    /// It stops after an instruction that touches them.
    pub watches: Vec<Watch>,
    /// The breakpoint here has been told of, and does not stop it before it has been past it.
    pub past: Option<u64>,
}

/// Why a debugger's processor stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After one instruction.
    Step,
    /// Before the instruction of a breakpoint.
    Breakpoint,
    /// After an instruction that touched watched memory.
    Watch(Watch),
}

/// A debugger's processor.
#[derive(Default)]
pub(crate) struct Debugger {
    wants: Wants,
    stop: Option<Stop>,
}

impl Cpu {
    /// Gives the processor to a debugger, or takes it back.
    pub fn debug(&mut self, wants: Option<&Wants>) {
        self.debugger = wants.map(|wants| Box::new(Debugger { wants: wants.clone(), stop: None }));
        // Pages with watched memory lose their tags.
        self.flush_tlb(false);
    }

    /// Why the debugger's processor ended its last run, if it was for the debugger.
    pub fn take_stop(&mut self) -> Option<Stop> {
        self.debugger.as_mut()?.stop.take()
    }

    /// Whether it runs one instruction at a time.
    pub(crate) fn is_debugged_closely(&self) -> bool {
        self.debugger.as_ref().is_some_and(|debugger| debugger.wants.step || !debugger.wants.watches.is_empty())
    }

    /// Breakpoints, in order.
    pub(crate) fn breakpoints(&self) -> &[u64] {
        self.debugger.as_ref().map_or(&[], |debugger| &debugger.wants.breakpoints)
    }

    /// Stops at a breakpoint.
    #[cold]
    #[inline(never)]
    pub(crate) fn meets_breakpoint(&mut self) -> Option<Exit> {
        let base = if self.mode.has(Mode::LONG) { 0 } else { self.seg[usize::from(CS)].base };
        let address = base.wrapping_add(self.rip) & if self.mode.has(Mode::LONG) { u64::MAX } else { 0xffff_ffff };
        let debugger = self.debugger.as_mut()?;
        if debugger.wants.breakpoints.binary_search(&address).is_err() {
            return None;
        }
        if debugger.wants.past == Some(address) {
            debugger.wants.past = None;
            return None;
        }
        debugger.stop = Some(Stop::Breakpoint);
        Some(Exit::Kicked)
    }

    /// One instruction, and what waits before it.
    pub(crate) fn debugged(&mut self) -> Option<Exit> {
        let step = self.debugger.as_ref().is_some_and(|debugger| debugger.wants.step);
        if self.attention() || self.has_work() {
            let (shadow, waits) = (self.shadow, self.halted);
            // What is stepped over is not interrupted; what waits for an interrupt is.
            let holds = step && !waits;
            self.shadow |= holds;
            if let Some(exit) = self.boundary() {
                self.shadow = if holds { shadow } else { self.shadow };
                return Some(exit);
            }
            if self.pending_db != 0 {
                return None;
            }
            if step && waits {
                return self.stop_for(Stop::Step);
            }
        }
        if let Some(exit) = self.execute_one() {
            return Some(exit);
        }
        match self.debugger.as_ref().and_then(|debugger| debugger.stop) {
            Some(_) => Some(Exit::Kicked),
            None if step => self.stop_for(Stop::Step),
            None => None,
        }
    }

    fn stop_for(&mut self, stop: Stop) -> Option<Exit> {
        self.debugger.as_mut()?.stop = Some(stop);
        Some(Exit::Kicked)
    }

    /// Whether a debugger watches anything in the page of a linear address.
    pub(crate) fn is_watched_closely(&self, lin: u64) -> bool {
        let page = lin & !(PAGE_SIZE - 1);
        self.debugger.as_ref().is_some_and(|d| d.wants.watches.iter().any(|watch| watch.meets(page, PAGE_SIZE)))
    }

    /// Notes that an instruction touched what a debugger watches.
    pub(crate) fn watch_closely(&mut self, lin: u64, len: u64, write: bool) {
        let Some(debugger) = self.debugger.as_mut().filter(|_| len != 0) else { return };
        let hit = |watch: &&Watch| if write { watch.writes } else { watch.reads } && watch.meets(lin, len);
        if let Some(watch) = debugger.wants.watches.iter().find(hit) {
            debugger.stop.get_or_insert(Stop::Watch(*watch));
        }
    }
}
