//! The machine as gdbstub's target: processors are threads, addresses are linear ones of the processor at hand.

use std::collections::{BTreeMap, BTreeSet};

use cpu::Watch;
use gdbstub::arch::{self, Arch};
use gdbstub::common::{Signal, Tid};
use gdbstub::outputln;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use hv::{Debug, DebugCaps};

use super::registers::Layout;
use super::tid;
use crate::vm::{Handle, Instance, Order, Planted, linear_rip};

/// Most breakpoints, and most watches.
const MOST: usize = 1024;
/// Most bytes that are watched at one place, if it is not for the processor to say.
const WATCHED: u64 = 1 << 20;
/// More than there are registers.
const REGISTERS: usize = 256;

/// An x86 processor, of which [`Layout`] knows more.
pub struct X86;

impl Arch for X86 {
    type Usize = u64;
    type Registers = Registers;
    type BreakpointKind = usize;
    type RegId = Number;
}

/// All registers, in GDB's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registers {
    bytes: Vec<Option<u8>>,
    rip: u64,
}

impl arch::Registers for Registers {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.rip
    }

    fn gdb_serialize(&self, write_byte: impl FnMut(Option<u8>)) {
        self.bytes.iter().copied().for_each(write_byte);
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.bytes = bytes.iter().copied().map(Some).collect();
        Ok(())
    }
}

/// GDB's number of a register.
#[derive(Clone, Copy, Debug)]
pub struct Number(usize);

impl arch::RegId for Number {
    fn from_raw_id(id: usize) -> Option<(Number, Option<std::num::NonZeroUsize>)> {
        (id < REGISTERS).then_some((Number(id), None))
    }
}

/// How a client has asked for a breakpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Breakpoint {
    Soft,
    Hard,
}

/// What a processor does next.
#[derive(Clone, Copy)]
enum Action {
    Go,
    Step,
}

/// See above.
pub struct Guest {
    handle: Handle,
    caps: DebugCaps,
    layout: Layout,
    xml: String,
    /// The processor that stopped, or was asked after last.
    current: u32,
    /// Breakpoints that are the processor's own as far as there is room, and else INT3s.
    soft: BTreeMap<u64, Option<Planted>>,
    hard: BTreeSet<u64>,
    watches: Vec<Watch>,
    actions: Vec<Option<Action>>,
    locked: bool,
    /// Where each processor was said to have stopped.
    told: Vec<Option<u64>>,
}

impl Guest {
    pub fn new(handle: Handle, caps: DebugCaps, cpus: u32, wide: bool) -> Guest {
        let layout = Layout::new(wide);
        let cpus = cpus as usize;
        Guest {
            handle,
            caps,
            xml: layout.xml(),
            layout,
            current: 0,
            soft: BTreeMap::new(),
            hard: BTreeSet::new(),
            watches: Vec::new(),
            actions: vec![None; cpus],
            locked: false,
            told: vec![None; cpus],
        }
    }

    /// Stops the machine for a new client.
    pub fn take(&mut self) -> Result<(), String> {
        self.told.fill(None);
        self.current = 0;
        self.halt()
    }

    /// Stops the machine.
    pub fn halt(&self) -> Result<(), String> {
        self.handle.debugger_holds(true)
    }

    /// Lets the machine go on without a debugger, and follow an order.
    pub fn let_go(&mut self, order: Option<Order>) {
        // Nobody has stopped it if the client went while it ran.
        let planted: Vec<Planted> = std::mem::take(&mut self.soft).into_values().flatten().collect();
        self.hard.clear();
        self.watches.clear();
        // It may have ended.
        let _ = self.halt();
        let _ = self.handle.ask_machine(move |machine, _| {
            planted.into_iter().for_each(|planted| machine.unplant(planted));
            machine.debug(None, 0)
        });
        if let Some(order) = order {
            self.handle.send(order);
        }
        let _ = self.handle.debugger_holds(false);
    }

    /// The thread that was looked at last.
    pub fn current(&self) -> Tid {
        tid(self.current)
    }

    /// Notes that a processor has stopped; its thread, and which breakpoint GDB finds there.
    pub fn stopped(&mut self, cpu: u32) -> (Tid, Option<Breakpoint>) {
        self.current = cpu;
        let place = self.ask(move |machine| {
            let (regs, _) = machine.regs_of(cpu)?;
            Ok((linear_rip(&regs), regs.rip))
        });
        let here = place.as_ref().ok().map(|(here, _)| *here);
        if let Some(told) = self.told.get_mut(cpu as usize) {
            *told = here;
        }
        // GDB knows of no segments, and looks for a breakpoint at RIP.
        let found = place.ok().filter(|(here, rip)| here == rip).and_then(|(here, _)| {
            let soft = self.soft.contains_key(&here).then_some(Breakpoint::Soft);
            soft.or_else(|| self.hard.contains(&here).then_some(Breakpoint::Hard))
        });
        (tid(cpu), found)
    }

    fn ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Instance) -> anyhow::Result<T> + Send + 'static,
    ) -> TargetResult<T, Guest> {
        self.handle.ask_machine(|machine, _| f(machine)).map_err(|e| {
            tracing::debug!("a debugger's wish: {e}");
            TargetError::NonFatal
        })
    }

    fn cpu(&self, tid: Tid) -> TargetResult<u32, Guest> {
        let n = tid.get() - 1;
        if n < self.actions.len() { Ok(n as u32) } else { Err(TargetError::NonFatal) }
    }

    /// Whether the processor has room for more breakpoints of its own.
    fn has_room(&self, more: usize) -> bool {
        self.hard.len() + self.watches.len() + more <= self.caps.places.unwrap_or(MOST)
    }

    /// A range as the watches that the back end can have.
    fn watch(&self, address: u64, len: u64, kind: WatchKind) -> Option<Vec<Watch>> {
        address.checked_add(len.checked_sub(1)?)?;
        let reads = kind != WatchKind::Write;
        // Processors know no watch of loads alone.
        let writes = kind != WatchKind::Read || !self.caps.reads;
        let watch = |address, len| Watch { address, len, reads, writes };
        if self.caps.places.is_none() {
            return (len <= WATCHED).then(|| vec![watch(address, len)]);
        }
        let (mut at, mut left, mut watches) = (address, len, Vec::new());
        while left > 0 && watches.len() <= self.caps.places.unwrap_or(0) {
            let n = [8, 4, 2, 1].into_iter().find(|n| *n <= left && at.is_multiple_of(*n)).unwrap_or(1);
            watches.push(watch(at, n));
            (at, left) = (at.wrapping_add(n), left - n);
        }
        (left == 0).then_some(watches)
    }

    /// Puts INT3s where there is no room left for breakpoints of the processor's own.
    fn plant(&mut self) {
        let room = self.caps.places.unwrap_or(MOST).saturating_sub(self.hard.len() + self.watches.len());
        let cpu = self.current;
        let rest: Vec<u64> =
            self.soft.iter().filter(|(_, planted)| planted.is_none()).map(|(at, _)| *at).skip(room).collect();
        for address in rest {
            match self.ask(move |machine| machine.plant(cpu, address)) {
                Ok(planted) => _ = self.soft.insert(address, Some(planted)),
                Err(_) => tracing::warn!("the breakpoint at {address:#x} has no memory any more"),
            }
        }
    }

    /// What each processor is to do, and those that stay where they are.
    fn orders(&self) -> (Vec<Debug>, u64) {
        let own = self.soft.iter().filter(|(_, planted)| planted.is_none()).map(|(at, _)| *at);
        let breakpoints: BTreeSet<u64> = self.hard.iter().copied().chain(own).collect();
        let breakpoints: Vec<u64> = breakpoints.into_iter().take(self.caps.places.unwrap_or(2 * MOST)).collect();
        let int3s: Vec<u64> = self.soft.iter().filter_map(|(at, planted)| planted.map(|_| *at)).collect();
        let mut frozen = 0;
        let mut orders = Vec::new();
        for (n, action) in self.actions.iter().enumerate() {
            if action.is_none() && self.locked {
                frozen |= 1 << n;
            }
            let wants = cpu::Wants {
                step: matches!(action, Some(Action::Step)),
                breakpoints: breakpoints.clone(),
                watches: self.watches.clone(),
                past: self.told[n],
            };
            orders.push(Debug { wants, int3s: int3s.clone() });
        }
        (orders, frozen)
    }
}

impl Target for Guest {
    type Arch = X86;
    type Error = String;

    fn base_ops(&mut self) -> BaseOps<'_, X86, String> {
        BaseOps::MultiThread(self)
    }

    fn guard_rail_implicit_sw_breakpoints(&self) -> bool {
        true
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(&mut self) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Guest {
    fn read_registers(&mut self, registers: &mut Registers, tid: Tid) -> TargetResult<(), Self> {
        let cpu = self.cpu(tid)?;
        let (regs, lacks) = self.ask(move |machine| machine.regs_of(cpu))?;
        registers.rip = regs.rip;
        for n in 0..self.layout.len() {
            match self.layout.get(n, &regs, lacks) {
                Some(bytes) => registers.bytes.extend(bytes.into_iter().map(Some)),
                None => registers.bytes.extend(vec![None; self.layout.bytes(n).unwrap_or(0)]),
            }
        }
        Ok(())
    }

    fn write_registers(&mut self, registers: &Registers, tid: Tid) -> TargetResult<(), Self> {
        let cpu = self.cpu(tid)?;
        let (mut regs, lacks) = self.ask(move |machine| machine.regs_of(cpu))?;
        let mut rest = registers.bytes.as_slice();
        for n in 0..self.layout.len() {
            let len = self.layout.bytes(n).unwrap_or(0);
            // Who sends fewer means those alone.
            let Some((bytes, after)) = rest.split_at_checked(len) else { break };
            rest = after;
            // What cannot be set is sent along.
            if let Some(bytes) = bytes.iter().copied().collect::<Option<Vec<u8>>>() {
                self.layout.set(n, &bytes, &mut regs, lacks);
            }
        }
        self.ask(move |machine| machine.set_regs_of(cpu, &regs))
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let (cpu, len) = (self.cpu(tid)?, data.len());
        self.current = cpu;
        if start.checked_add(len as u64).is_none() {
            return Err(TargetError::NonFatal);
        }
        let mut bytes = self.ask(move |machine| machine.peek(cpu, start, len))?;
        if bytes.is_empty() && len > 0 {
            return Err(TargetError::NonFatal);
        }
        // INT3s are ours to know of.
        for (at, planted) in self.soft.range(start..start.saturating_add(bytes.len() as u64)) {
            if let (Some(byte), Some(planted)) = (bytes.get_mut((at - start) as usize), planted) {
                planted.hide(byte);
            }
        }
        data[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let (cpu, data) = (self.cpu(tid)?, data.to_vec());
        self.current = cpu;
        self.ask(move |machine| machine.poke(cpu, start, &data))
    }

    fn list_active_threads(&mut self, thread_is_active: &mut dyn FnMut(Tid)) -> Result<(), String> {
        (0..self.actions.len() as u32).map(tid).for_each(thread_is_active);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for Guest {
    fn read_register(&mut self, tid: Tid, Number(n): Number, buf: &mut [u8]) -> TargetResult<usize, Self> {
        let cpu = self.cpu(tid)?;
        let (regs, lacks) = self.ask(move |machine| machine.regs_of(cpu))?;
        let bytes = self.layout.get(n, &regs, lacks).filter(|bytes| bytes.len() <= buf.len());
        let bytes = bytes.ok_or(TargetError::NonFatal)?;
        buf[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write_register(&mut self, tid: Tid, Number(n): Number, value: &[u8]) -> TargetResult<(), Self> {
        let cpu = self.cpu(tid)?;
        let (mut regs, lacks) = self.ask(move |machine| machine.regs_of(cpu))?;
        if !self.layout.set(n, value, &mut regs, lacks) {
            return Err(TargetError::NonFatal);
        }
        self.ask(move |machine| machine.set_regs_of(cpu, &regs))
    }
}

impl ThreadExtraInfo for Guest {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, String> {
        let Ok(cpu) = self.cpu(tid) else { return Ok(0) };
        let text = match self.ask(move |machine| machine.regs_of(cpu)) {
            Ok((regs, _)) if regs.wait_sipi => format!("processor {cpu}, not started"),
            Ok((regs, _)) if regs.halted => format!("processor {cpu}, halted"),
            Ok((regs, _)) => format!("processor {cpu}, {} bits, ring {}", regs.code_bits(), regs.cpl),
            Err(_) => format!("processor {cpu}"),
        };
        let len = text.len().min(buf.len());
        buf[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

impl MultiThreadResume for Guest {
    fn resume(&mut self) -> Result<(), String> {
        self.plant();
        let (orders, frozen) = self.orders();
        self.handle.ask_machine(move |machine, _| machine.debug(Some(&orders), frozen)).inspect_err(|e| {
            tracing::warn!("the debugger cannot have its way: {e}");
        })?;
        self.told.fill(None);
        self.handle.debugger_holds(false)
    }

    fn clear_resume_actions(&mut self) -> Result<(), String> {
        self.actions.fill(None);
        self.locked = false;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), String> {
        if let Some(action) = self.actions.get_mut(tid.get() - 1) {
            *action = Some(Action::Go);
        }
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Guest {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), String> {
        if let Some(action) = self.actions.get_mut(tid.get() - 1) {
            *action = Some(Action::Step);
        }
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Guest {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), String> {
        self.locked = true;
        Ok(())
    }
}

impl Breakpoints for Guest {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        (self.caps.places != Some(0)).then_some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        self.caps.watches.then_some(self)
    }
}

impl SwBreakpoint for Guest {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        if self.soft.contains_key(&address) {
            return Ok(true);
        }
        if self.soft.len() >= MOST {
            return Ok(false);
        }
        // What may have to be an INT3 needs memory.
        let cpu = self.current;
        if self.caps.int3 && self.ask(move |machine| machine.peek(cpu, address, 1))?.is_empty() {
            return Ok(false);
        }
        self.soft.insert(address, None);
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        match self.soft.remove(&address) {
            Some(Some(planted)) => self.ask(move |machine| {
                machine.unplant(planted);
                Ok(true)
            }),
            found => Ok(found.is_some()),
        }
    }
}

impl HwBreakpoint for Guest {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.hard.contains(&address) || self.has_room(1) && self.hard.insert(address))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.hard.remove(&address))
    }
}

impl HwWatchpoint for Guest {
    fn add_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let Some(mut watches) = self.watch(address, len, kind) else { return Ok(false) };
        watches.retain(|watch| !self.watches.contains(watch));
        let fits = self.has_room(watches.len());
        if fits {
            self.watches.extend(watches);
        }
        Ok(fits)
    }

    fn remove_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let Some(watches) = self.watch(address, len, kind) else { return Ok(false) };
        self.watches.retain(|watch| !watches.contains(watch));
        Ok(true)
    }
}

impl TargetDescriptionXmlOverride for Guest {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        buf: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return Err(TargetError::NonFatal);
        }
        let rest = usize::try_from(offset).ok().and_then(|offset| self.xml.as_bytes().get(offset..)).unwrap_or(&[]);
        let len = rest.len().min(length).min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

/// What `monitor` knows.
const HELP: &str = "help: this text\ninfo: the machine\nnmi N: send processor N an NMI\npowerdown: press the power button\n\
                    reset: press the reset button (then: maintenance flush register-cache)";

impl MonitorCmd for Guest {
    fn handle_monitor_cmd(&mut self, line: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), String> {
        let line = String::from_utf8_lossy(line);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["info"] => match self.handle.ask(Order::Query) {
                Ok(status) => {
                    let (s, ms) = (status.guest_ns / 1_000_000_000, status.guest_ns / 1_000_000 % 1000);
                    outputln!(out, "{s}.{ms:03} s since power-on, {} resets", status.resets);
                }
                Err(e) => outputln!(out, "{e}"),
            },
            ["reset"] => {
                if let Err(e) = self.handle.ask(Order::Reset) {
                    outputln!(out, "{e}");
                }
            }
            ["powerdown"] => self.handle.send(Order::PowerButton),
            ["nmi", n] if let Ok(n) = n.parse() => {
                if let Err(e) = self.handle.ask_machine(move |machine, paused| machine.nmi(n, paused)) {
                    outputln!(out, "{e}");
                }
            }
            _ => outputln!(out, "{HELP}"),
        }
        Ok(())
    }
}
