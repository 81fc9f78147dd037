//! What an exit asks of user space before the vCPU runs again. A kernel would go on with a machine that is subtly wrong.

use std::time::{Duration, Instant};

use crate::exit;
use crate::regs;
use crate::vie;

/// DEBUG exits of a held vCPU in [`SPELL`] that mean that nobody waits between them.
const SPINNING: u32 = 5_000;
const SPELL: Duration = Duration::from_secs(1);

/// An exit, and what user space has done since.
#[derive(Clone, Debug, Default)]
pub(crate) struct Debts {
    code: Option<i32>,
    /// INOUT: the value comes from user space.
    input: bool,
    /// INST_EMUL without a length.
    undecoded: bool,
    /// INST_EMUL: the general register that is loaded, as instructions number them.
    loads: Option<u8>,
    /// The last VM_RUN failed: there is no exit.
    refused: bool,
    /// And yet registers were set.
    acted: bool,
    /// INOUT_STR: RCX counts, as wide as this many bytes.
    rep: Option<i32>,
    /// TASK_SWITCH by a gate: the event that came by it is still the kernel's to deliver.
    arriving: bool,
    /// IPI: whom an INIT is for.
    init: u64,
    /// Registers that were set, by number.
    set: u64,
    /// RIP was set to where the kernel goes on anyway.
    advanced: bool,
    restarted: bool,
    injected: bool,
    /// DEBUG exits since a moment.
    spell: Option<(Instant, u32)>,
}

const RAX: i32 = 0;
const RDX: i32 = 3;

impl Debts {
    pub(crate) fn exited(&mut self, image: &exit::Image) {
        let u = |at: usize| image.bytes[exit::UNION + at];
        let code = image.code();
        let spell = if code == exit::DEBUG { self.spell } else { None };
        *self = Debts { code: Some(code), spell, ..Debts::default() };
        match code {
            exit::INOUT => self.input = u(0) & 8 != 0,
            exit::INST_EMUL => {
                self.undecoded = image.bytes[4] == 0;
                let vie = &image.bytes[exit::UNION + 56..];
                self.loads = vie::loads(&vie[..15], u(32 + 12) == regs::LONG as u8);
            }
            exit::INOUT_STR => self.rep = (u(0) & 0x20 != 0).then(|| i32::from(u(64))),
            exit::TASK_SWITCH => self.arriving = u(16) == 3,
            exit::IPI if u(1) == 5 => self.init = image.cpus,
            exit::DEBUG => {
                let (start, count) = self.spell.unwrap_or((Instant::now(), 0));
                let old = start.elapsed() > SPELL;
                self.spell = Some(if old { (Instant::now(), 0) } else { (start, count + 1) });
            }
            _ => {}
        }
    }

    /// A register was set; `next` is where the vCPU would have gone on.
    pub(crate) fn set(&mut self, id: i32, value: u64, next: u64) {
        self.set |= 1 << (id & 63);
        self.acted |= self.refused;
        let advanced = matches!(self.code, Some(exit::INOUT | exit::RDMSR | exit::WRMSR));
        self.advanced |= id == regs::RIP && advanced && value == next;
    }

    /// The vCPU has not run since it was made or held.
    pub(crate) fn is_new(&self) -> bool {
        matches!(self.code, None | Some(exit::DEBUG))
    }

    pub(crate) fn refused(&mut self) {
        self.refused = true;
    }

    pub(crate) fn was_injected(&self) -> bool {
        self.injected
    }

    pub(crate) fn restarted(&mut self) {
        self.restarted = true;
    }

    pub(crate) fn injected(&mut self) {
        self.injected = true;
    }

    /// VM_SET_INTINFO took back what was to be delivered.
    pub(crate) fn taken_back(&mut self) {
        self.arriving = false;
    }

    fn was_set(&self, id: i32) -> bool {
        self.set >> id & 1 != 0
    }

    /// What was left undone when the vCPU runs again with this RCX, while these vCPUs are held.
    pub(crate) fn unpaid(&self, rcx: u64, held: u64) -> Option<String> {
        let done = |what: &str| Some(what.to_owned());
        if self.advanced {
            return done("user space advances RIP behind an instruction, which the kernel has done");
        }
        let free = self.init & !held;
        if free != 0 {
            return Some(format!("vCPUs {free:#x} got an INIT and are not held"));
        }
        if self.spell.is_some_and(|(_, count)| count > SPINNING) {
            return done("a held vCPU spins in VM_RUN: every one is a DEBUG exit at once");
        }
        if self.acted {
            return done("VM_RUN failed with EINTR, and an exit that it did not write was acted on");
        }
        let unset = |n: &u8| !(0..20).any(|id| regs::general(id) == Some(*n) && self.was_set(id));
        if let Some(n) = self.loads.filter(unset)
            && !self.injected
        {
            return Some(format!("a load from a device, and register {n}, which its bytes name, was not set"));
        }
        if self.arriving && !self.injected {
            return done("a task switch by an IDT gate, and the event was not taken back: it comes again");
        }
        if self.injected || self.restarted || self.was_set(regs::RIP) {
            return None;
        }
        match self.code? {
            exit::INOUT if self.input && !self.was_set(RAX) => done("IN, and RAX was not set"),
            exit::RDMSR if !(self.was_set(RAX) && self.was_set(RDX)) => {
                done("RDMSR, and RAX and RDX were not set and nothing was injected")
            }
            exit::TASK_SWITCH => done("a task switch, and RIP was not set"),
            exit::BPT => done("a breakpoint that nobody set, and nothing was injected"),
            exit::INST_EMUL if self.undecoded => {
                done("INST_EMUL with inst_length 0, and RIP was not set: it exits for ever")
            }
            exit::INOUT_STR => {
                let width = self.rep?;
                let left = rcx & u64::MAX >> (64 - 8 * width.clamp(1, 8));
                (left != 0).then(|| "rep string I/O has a count left and was not restarted".to_owned())
            }
            _ => None,
        }
    }
}
