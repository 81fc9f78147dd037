//! A debugger's processor (KVM_SET_GUEST_DEBUG): INT3s in guest memory, the four debug registers, single steps. As long
//! as it has them, the guest's own debug registers are without effect.

use anyhow::{Context, ensure};
use cpu::{Fault, Regs, Stop, Watch};
use kvm_bindings::{
    KVM_CAP_SET_GUEST_DEBUG2, KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug,
};

use super::vcpu::KvmVcpu;
use crate::{Debug, DebugCaps, Exit};

/// Debug registers.
const PLACES: usize = 4;
const BREAKPOINT: u8 = 3;
const DEBUG: u8 = 1;
/// DR6: single step.
const BS: u64 = 1 << 14;
/// RFLAGS: the breakpoint at the next instruction does not count.
const RF: u64 = 1 << 16;

pub(super) const CAPS: DebugCaps = DebugCaps { places: Some(PLACES), reads: false, int3: true, watches: true };

/// What a debug register is for.
enum Place {
    Breakpoint(u64),
    Watch(Watch),
}

/// The debug registers that are wanted, in order.
fn places(debug: &Debug) -> impl Iterator<Item = Place> {
    let breakpoints = debug.wants.breakpoints.iter().map(|address| Place::Breakpoint(*address));
    breakpoints.chain(debug.wants.watches.iter().map(|watch| Place::Watch(*watch)))
}

/// An address and its bits of DR7: type and length; enabled.
fn register(n: usize, place: &Place) -> anyhow::Result<(u64, u64)> {
    const EXECUTE: u64 = 0;
    const WRITE: u64 = 1;
    const READ_OR_WRITE: u64 = 3;
    let (address, kind, len) = match place {
        Place::Breakpoint(address) => (*address, EXECUTE, 0),
        Place::Watch(watch) => {
            let len = match watch.len {
                1 => 0,
                2 => 1,
                4 => 3,
                8 => 2,
                len => anyhow::bail!("{len} bytes to watch; a debug register takes 1, 2, 4 or 8"),
            };
            ensure!(watch.address % watch.len == 0, "a debug register takes aligned addresses");
            (watch.address, if watch.reads { READ_OR_WRITE } else { WRITE }, len)
        }
    };
    Ok((address, 2 << (2 * n) | (kind | len << 2) << (16 + 4 * n)))
}

impl KvmVcpu {
    pub(super) fn set_debug(&mut self, debug: Option<&Debug>) -> anyhow::Result<()> {
        let mut out = kvm_guest_debug::default();
        if let Some(debug) = debug {
            out.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
            // What is always set.
            let mut dr7 = 0x400;
            for (n, place) in places(debug).enumerate() {
                ensure!(n < PLACES, "there are {PLACES} debug registers");
                let (address, bits) = register(n, &place)?;
                out.control |= KVM_GUESTDBG_USE_HW_BP;
                out.arch.debugreg[n] = address;
                dr7 |= bits;
            }
            out.arch.debugreg[7] = dr7;
            if debug.wants.step {
                out.control |= KVM_GUESTDBG_SINGLESTEP;
                let known = self.shared.fd.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into());
                if known > 0 && known.cast_unsigned() & KVM_GUESTDBG_BLOCKIRQ != 0 {
                    out.control |= KVM_GUESTDBG_BLOCKIRQ;
                }
            }
            if debug.wants.past.is_some() && !debug.wants.breakpoints.is_empty() {
                let mut regs = self.page.fd.get_regs().context("KVM_GET_REGS")?;
                regs.rflags |= RF;
                self.page.fd.set_regs(&regs).context("KVM_SET_REGS")?;
            }
        }
        self.page.fd.set_guest_debug(&out).context("KVM_SET_GUEST_DEBUG")?;
        self.debug = debug.cloned();
        Ok(())
    }

    /// A debug exit: for the debugger, or the guest's own.
    pub(super) fn debug_exit(&mut self, exception: u32, pc: u64, dr6: u64) -> anyhow::Result<Option<Exit>> {
        let debug = self.debug.clone().unwrap_or_default();
        let breakpoint = exception == u32::from(BREAKPOINT);
        let stop = match breakpoint {
            true => debug.int3s.contains(&pc).then_some(Stop::Breakpoint),
            false => {
                let hit = places(&debug).enumerate().find(|(n, _)| dr6 >> n & 1 != 0).map(|(_, place)| match place {
                    Place::Breakpoint(_) => Stop::Breakpoint,
                    Place::Watch(watch) => Stop::Watch(watch),
                });
                hit.or_else(|| (debug.wants.step && dr6 & BS != 0).then_some(Stop::Step))
            }
        };
        if let Some(stop) = stop {
            // It stands still from here on, and time with it.
            self.hold_deadline()?;
            return Ok(Some(Exit::Debug(stop)));
        }
        let old = self.read()?;
        let vector = if breakpoint { BREAKPOINT } else { DEBUG };
        let dr6 = if breakpoint { old.dr6 } else { old.dr6 | dr6 };
        let fault = Fault { vector, error: None, cr2: 0 };
        self.write(&old, &Regs { exception: Some(fault), dr6, ..old.clone() })?;
        Ok(None)
    }
}
