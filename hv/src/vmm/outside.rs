//! Machines of vmm(4)'s that another program runs, bhyve(8) itself say, as bhyvectl(8) reaches them.

use std::io;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use vmmapi_sys::{Kernel, Name, Suspend, Vm as KernelVm, Vmm as Attached};

/// A machine that exists in the kernel.
pub struct Outside(KernelVm);

impl Outside {
    /// The machine of this name; none if there is none.
    ///
    /// # Errors
    /// The kernel has no vmm(4), or does not let us.
    pub fn open(kernel: Arc<dyn Kernel>, name: &str) -> Result<Option<Outside>> {
        let vmm = Attached::attach(kernel)?;
        let name = Name::new(name).map_err(|e| anyhow!("the machine's name {name:?} {e}"))?;
        match vmm.open(&name) {
            Ok(vm) => Ok(Some(Outside(vm))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).context("the machine's node"),
        }
    }

    /// Has its program end as if the guest had reset it.
    ///
    /// # Errors
    /// It is not running, or ends already.
    pub fn reset(&self) -> Result<()> {
        self.0.suspend(Suspend::Reset).context("VM_SUSPEND")
    }

    /// Has its program end as if the guest had powered off.
    ///
    /// # Errors
    /// It is not running, or ends already.
    pub fn power_off(&self) -> Result<()> {
        self.0.suspend(Suspend::PowerOff).context("VM_SUSPEND")
    }

    /// Gives a processor an NMI.
    ///
    /// # Errors
    /// There is no such processor.
    pub fn nmi(&self, cpu: u32) -> Result<()> {
        self.0.inject_nmi(cpu).context("VM_INJECT_NMI")
    }

    /// A processor's counters by name.
    ///
    /// # Errors
    /// There is no such processor.
    pub fn stats(&self, cpu: u32) -> Result<Vec<(String, u64)>> {
        let values = self.0.stats(cpu).context("VM_STATS")?;
        let named = |(index, value)| {
            let name = self.0.stat_description(index).context("VM_STAT_DESC")?;
            Ok((name.unwrap_or_else(|| format!("counter {index}")), value))
        };
        (0..).zip(values).map(named).collect()
    }
}
