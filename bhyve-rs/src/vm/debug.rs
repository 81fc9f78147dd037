//! What a debugger does to a machine that it has stopped: registers, memory as a processor sees it, breakpoints.

use anyhow::{Context, Result, ensure};
use cpu::Regs;
use emu::{CpuBus, PAGE_SIZE, RamAddr};
use hv::{Debug, DebugCaps, Vcpu};

use super::Instance;
use crate::paging::{Paging, units};

/// Hears which processor stopped, and why.
pub type Tell = Box<dyn Fn(u32, cpu::Stop) + Send>;

/// INT3.
const INT3: u8 = 0xcc;

/// What an INT3 took the place of.
#[derive(Clone, Copy, Debug)]
pub struct Planted {
    at: RamAddr,
    byte: u8,
}

impl Planted {
    /// Shows what was there.
    pub fn hide(&self, byte: &mut u8) {
        if *byte == INT3 {
            *byte = self.byte;
        }
    }
}

/// The linear address of the next instruction.
pub fn linear_rip(regs: &Regs) -> u64 {
    match regs.code_bits() {
        64 => regs.rip,
        _ => regs.cs.base.wrapping_add(regs.rip) & 0xffff_ffff,
    }
}

/// Guest physical address of a stretch that is whole in physical memory, and which of the bytes it is.
type Part = (u64, std::ops::Range<usize>);

impl Instance {
    /// Has `tell` hear of what stops processors for a debugger. With `wait` the debugger holds the machine from the
    /// first instruction on.
    pub fn debugged_by(&mut self, tell: Tell, wait: bool) {
        self.debugger = Some(tell);
        self.held.debugger |= wait;
    }

    /// What a debugger can have.
    pub fn debug_caps(&self) -> DebugCaps {
        self.debug_caps
    }

    fn on_vcpu<T>(&self, cpu: u32, f: impl Fn(&mut dyn Vcpu) -> Result<T>) -> Result<T> {
        let results = self.runner.with_vcpus(|v| (v.index() == cpu).then(|| f(v)));
        results.into_iter().flatten().next().context("there is no such processor")?
    }

    /// A processor's registers; the machine must be stopped, as for all that follows.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn regs_of(&self, cpu: u32) -> Result<(Regs, &'static [&'static str])> {
        self.on_vcpu(cpu, |v| Ok((v.regs()?, v.lacks())))
    }

    /// Sets them.
    ///
    /// # Errors
    /// What the back end refuses.
    pub fn set_regs_of(&self, cpu: u32, regs: &Regs) -> Result<()> {
        self.on_vcpu(cpu, |v| v.set_regs(regs))
    }

    /// The parts of a linear range that lie in one page each, with their physical addresses, as far as they are mapped.
    fn parts(&self, cpu: u32, address: u64, len: usize) -> Result<(CpuBus, Vec<Part>)> {
        let (regs, _) = self.regs_of(cpu)?;
        let paging = Paging::of(&regs);
        let a20 = self.a20.load(std::sync::atomic::Ordering::Relaxed);
        let mut bus = CpuBus::new(self.machine.space.clone());
        let most = if paging.is_long() { u64::MAX } else { 0xffff_ffff };
        let (mut parts, mut at) = (Vec::new(), 0);
        while at < len {
            let Some(linear) = address.checked_add(at as u64).filter(|linear| *linear <= most) else { break };
            let n = (PAGE_SIZE - linear % PAGE_SIZE).min((len - at) as u64) as usize;
            let Some(gpa) = paging.translate(&mut bus, a20, linear) else { break };
            parts.push((gpa, at..at + n));
            at += n;
        }
        Ok((bus, parts))
    }

    /// Reads memory at a linear address, as a processor sees it. As many bytes as there are before the first page that is
    /// not mapped.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn peek(&self, cpu: u32, address: u64, len: usize) -> Result<Vec<u8>> {
        let (mut bus, parts) = self.parts(cpu, address, len)?;
        let mut bytes = vec![0; parts.last().map_or(0, |(_, range)| range.end)];
        for (gpa, range) in parts {
            let buf = &mut bytes[range];
            match bus.map().ram_for_read(gpa) {
                Some((ram, len)) if len >= buf.len() as u64 => bus.ram().read(ram, buf),
                _ => {
                    for (at, part) in units(gpa, buf.len()) {
                        let value = bus.read(gpa + at as u64, part as u8).to_le_bytes();
                        buf[at..at + part].copy_from_slice(&value[..part]);
                    }
                }
            }
        }
        Ok(bytes)
    }

    /// Writes memory at a linear address, read-only memory and read-only pages too: all of it, or nothing.
    ///
    /// # Errors
    /// When not all of it is mapped, and what the host refuses.
    pub fn poke(&self, cpu: u32, address: u64, bytes: &[u8]) -> Result<()> {
        let (mut bus, parts) = self.parts(cpu, address, bytes.len())?;
        ensure!(parts.last().map_or(0, |(_, range)| range.end) == bytes.len(), "not mapped");
        for (gpa, range) in parts {
            let data = &bytes[range];
            match bus.map().ram_for_read(gpa) {
                Some((ram, len)) if len >= data.len() as u64 => bus.ram().write(ram, data),
                _ => {
                    for (at, part) in units(gpa, data.len()) {
                        let mut value = [0; 8];
                        value[..part].copy_from_slice(&data[at..at + part]);
                        bus.write(gpa + at as u64, part as u8, u64::from_le_bytes(value));
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts an INT3 at a linear address.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn plant(&self, cpu: u32, address: u64) -> Result<Planted> {
        let (mut bus, parts) = self.parts(cpu, address, 1)?;
        let gpa = parts.first().context("not mapped")?.0;
        let (at, _) = bus.map().ram_for_read(gpa).context("no memory")?;
        let mut byte = [0];
        bus.ram().read(at, &mut byte);
        bus.ram().write(at, &[INT3]);
        Ok(Planted { at, byte: byte[0] })
    }

    /// Takes it out again, unless the guest has written there.
    pub fn unplant(&self, planted: Planted) {
        let ram = self.machine.space.ram();
        let mut byte = [0];
        ram.read(planted.at, &mut byte);
        if byte[0] == INT3 {
            ram.write(planted.at, &[planted.byte]);
        }
    }

    /// Gives the processors to a debugger, each with what is wanted of it, and keeps those of a mask from running; or
    /// takes them back.
    ///
    /// # Errors
    /// What the back end cannot do.
    pub fn debug(&self, wants: Option<&[Debug]>, frozen: u64) -> Result<()> {
        self.runner.freeze(frozen);
        let give = |v: &mut dyn Vcpu| {
            let Some(mut debug) = wants.and_then(|all| all.get(v.index() as usize)).cloned() else {
                return v.debug(None);
            };
            if debug.wants.past.is_some() {
                let here = linear_rip(&v.regs()?);
                debug.wants.past = debug.wants.past.filter(|past| *past == here);
            }
            v.debug(Some(&debug))
        };
        self.runner.with_vcpus(give).into_iter().collect()
    }
}
