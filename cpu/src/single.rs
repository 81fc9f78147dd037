//! Single instructions of a processor that runs elsewhere: a hypervisor hands out those that touch devices, and has no
//! more than their bytes and the registers that it is asked for.
//!
//! [`Executor::decode`] says of an instruction what executing it takes, so that whoever has to fetch registers one
//! system call at a time fetches no others; a plain move between a register and memory needs no more than that
//! ([`Transfer`]). [`Executor::execute`] does everything else, on the same handlers as the software CPU: it walks the
//! guest's page tables and reaches memory and devices by the bus.
//!
//! That is for what lives on general registers and memory. For segment loads, far jumps, the stack and descriptor
//! tables there is [`Executor::execute_whole`], which takes all of [`Regs`], and [`Executor::switch_task`] for what a
//! hypervisor leaves of a task switch. x87, MMX and SSE registers are not at hand, since no hypervisor that hands out
//! instructions shows them ([`Done::Unsupported`]).

use std::sync::Arc;

use emu::{Clock, CpuBus, Timers};

use crate::decode::decode_for;
use crate::feature::{Feature, Features};
use crate::flags::{RF, VM};
use crate::insn::{BLOCK, CS, ES, Insn, Mode, NEXT, OSIZE_SHIFT, REP, REPNE, SS, ZERO};
use crate::lapic::{ApicBus, Lapic};
use crate::model::Model;
use crate::regs::Regs;
use crate::state::{Cpu, Fault, Segment, Why};
use crate::task::TaskSwitch;

/// The state that single instructions work on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// As [`crate::Regs::gpr`].
    pub gpr: [u64; 16],
    /// The address of the instruction, and afterwards of the next.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// ES, CS, SS, DS, FS and GS. Those that [`Decoded::segments`] does not name need not be right.
    pub seg: [Segment; 6],
}

impl Context {
    /// Makes CS what is known of it when an instruction has been fetched: of it no more matters than its base and size.
    pub fn set_code(&mut self, base: u64, size: CodeSize) {
        let size = match size {
            CodeSize::Bits16 => 0,
            CodeSize::Bits32 => Segment::DB,
            CodeSize::Bits64 => Segment::L,
        };
        let access = 0xb | Segment::S | Segment::P | size;
        self.seg[usize::from(CS)] = Segment { selector: 0, base, limit: u32::MAX, access };
    }
}

/// The size of code: what operands and addresses are by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// Real mode, and 16-bit segments.
    Bits16,
    /// 32-bit segments.
    Bits32,
    /// Long mode.
    Bits64,
}

/// What executing an instruction takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes.
    pub len: u8,
    /// Segment registers whose hidden parts matter, bit n for register n of [`Context::seg`]. In long mode the bases of
    /// FS and GS alone do.
    pub segments: u8,
    /// It is but this.
    pub transfer: Option<Transfer>,
}

/// A move between a register or an immediate and memory, of 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Memory takes a register; of 8-bit registers `high` ones are AH, CH, DH and BH.
    Store {
        /// Its number.
        reg: u8,
        /// Bits 8 to 15 are stored.
        high: bool,
        /// Bytes of memory.
        width: u8,
    },
    /// Memory takes a number.
    Immediate {
        /// The number.
        value: u64,
        /// Bytes of memory.
        width: u8,
    },
    /// A register takes memory.
    Load {
        /// Its number.
        reg: u8,
        /// Bits 8 to 15 are replaced.
        high: bool,
        /// Bytes of memory.
        width: u8,
        /// Bytes of the register. Of 1 and 2 the other bits stay, 4 clear the upper half.
        to: u8,
        /// The sign is carried on.
        signed: bool,
    },
}

impl Transfer {
    /// The register that it uses, and whether its old contents matter.
    pub fn register(&self) -> Option<(u8, bool)> {
        match *self {
            Transfer::Store { reg, .. } => Some((reg, true)),
            Transfer::Immediate { .. } => None,
            Transfer::Load { reg, to, .. } => Some((reg, to < 4)),
        }
    }

    /// Bytes of memory.
    pub fn width(&self) -> u8 {
        match *self {
            Transfer::Store { width, .. } | Transfer::Immediate { width, .. } | Transfer::Load { width, .. } => width,
        }
    }

    /// What memory takes, of a register's contents; `None` of a load.
    pub fn stored(&self, register: u64) -> Option<u64> {
        match *self {
            Transfer::Store { high, width, .. } => Some(cut(register >> if high { 8 } else { 0 }, width)),
            Transfer::Immediate { value, width } => Some(cut(value, width)),
            Transfer::Load { .. } => None,
        }
    }

    /// What the register of a load is afterwards, of what it was and what was read.
    pub fn loaded(&self, register: u64, memory: u64) -> u64 {
        let Transfer::Load { high, width, to, signed, .. } = *self else { return register };
        let memory = cut(memory, width);
        let unused = 64 - 8 * u32::from(width);
        let value = if signed { ((memory << unused) as i64 >> unused) as u64 } else { memory };
        match to {
            1 if high => register & !0xff00 | (value & 0xff) << 8,
            1 | 2 => register & !cut(u64::MAX, to) | cut(value, to),
            _ => cut(value, to),
        }
    }
}

fn cut(value: u64, width: u8) -> u64 {
    value & (u64::MAX >> (64 - 8 * u32::from(width)))
}

/// What came of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It is done: [`Context`] is the state after it. A repeated instruction does a piece at a time, and with work left
    /// [`Context::rip`] is still its address.
    Yes,
    /// It raised an exception, which is the caller's to deliver. Of a repeated instruction, what was done is done.
    Fault(Fault),
    /// It is none that can be executed here, and nothing was done.
    Unsupported,
    /// It ended in a triple fault.
    Shutdown,
}

/// Executes single instructions.
pub struct Executor {
    cpu: Cpu,
}

impl Executor {
    /// An executor on a bus of its own.
    pub fn new(bus: CpuBus, timers: &Arc<Timers>, clock: &Arc<Clock>) -> Executor {
        // What else the host's processor has, nobody uses on devices. Its local APIC is the hypervisor's.
        let features = Features::ALL.bereft_of(Feature::Apic);
        let model = Arc::new(Model { features, phys_bits: 52, ..Model::default() });
        let lapic = Lapic::new(0, &ApicBus::new(), timers, model.tsc_hz);
        Executor { cpu: Cpu::new(model, bus, clock.clone(), lapic) }
    }

    /// The bus.
    pub fn bus(&mut self) -> &mut CpuBus {
        self.cpu.bus()
    }

    /// A report of several lines on a processor in this state ([`Cpu::report`]).
    pub fn report(&mut self, regs: &Regs) -> String {
        self.cpu.set_regs(regs);
        self.cpu.report()
    }

    /// Decodes an instruction. `None`: it is incomplete, undefined, or can not be executed here.
    pub fn decode(bytes: &[u8], size: CodeSize) -> Option<Decoded> {
        let mode = match size {
            CodeSize::Bits16 => Mode(0),
            CodeSize::Bits32 => Mode(Mode::D32 | Mode::STACK32),
            CodeSize::Bits64 => Mode(Mode::LONG | Mode::STACK32 | Mode::FLAT),
        };
        let i = decode_for(&bytes[..bytes.len().min(15)], mode, Features::ALL, None).ok()?;
        let uses = uses(&i)?;
        let segments = 1 << i.seg | if uses.string { 1 << ES } else { 0 } | if uses.stack { 1 << SS } else { 0 };
        // ES, CS, SS and DS are flat in long mode.
        let segments = if size == CodeSize::Bits64 { segments & 0x30 } else { segments };
        Some(Decoded { len: i.len, segments, transfer: transfer(&i) })
    }

    /// Executes the instruction at `context.rip`, of which `bytes` are the first; if they do not reach, it is fetched.
    pub fn execute(&mut self, context: &mut Context, bytes: &[u8]) -> Done {
        self.enter(context);
        let done = self.step(bytes, |i| uses(i).is_some());
        if done != Done::Unsupported {
            context.gpr.copy_from_slice(&self.cpu.gpr[..16]);
        }
        if done == Done::Yes {
            context.rip = self.cpu.rip;
            context.rflags = self.cpu.rflags();
        }
        done
    }

    /// As [`Self::execute`], with all of a processor's state: also what uses segment registers, descriptor tables or the
    /// stack. After a fault the state is as before.
    pub fn execute_whole(&mut self, regs: &mut Regs, bytes: &[u8]) -> Done {
        self.enter_whole(regs);
        let done = self.step(bytes, |i| uses(i).is_some() || uses_system(i));
        if done == Done::Yes {
            *regs = self.cpu.regs();
        }
        done
    }

    /// Makes the task switch that a hypervisor has left, with the selector of the new task's TSS, for an instruction
    /// behind which is `next`. Faults that belong to the new task have been delivered to it.
    pub fn switch_task(
        &mut self,
        regs: &mut Regs,
        selector: u16,
        how: TaskSwitch,
        error: Option<u32>,
        next: u64,
    ) -> Done {
        self.enter_whole(regs);
        let done = self.cpu.task_left(selector, how, error, next);
        let done = self.done(done.is_ok());
        if done == Done::Yes {
            *regs = self.cpu.regs();
        }
        done
    }

    /// Executes the instruction at RIP, if it is one of these.
    fn step(&mut self, bytes: &[u8], executes: impl Fn(&Insn) -> bool) -> Done {
        let cpu = &mut self.cpu;
        let given = decode_for(&bytes[..bytes.len().min(15)], cpu.mode, cpu.model.features, None);
        let done = match given.map_or_else(|_| cpu.fetch_decode(), Ok) {
            Ok(insn) if !executes(&insn) => return Done::Unsupported,
            Ok(insn) => {
                cpu.gpr[usize::from(BLOCK)] = cpu.rip;
                cpu.rip = cpu.cut_rip(cpu.rip.wrapping_add(u64::from(insn.len)));
                cpu.rflags &= !RF;
                insn.execute(cpu)
            }
            Err(stop) => Err(stop),
        };
        self.done(done.is_ok())
    }

    fn done(&mut self, ok: bool) -> Done {
        let cpu = &mut self.cpu;
        // Whoever has decoded code of what was written.
        for (at, len) in std::mem::take(&mut cpu.smc) {
            cpu.bus.ram().wrote(at, len.into());
        }
        match std::mem::replace(&mut cpu.why, Why::None) {
            Why::Shutdown => Done::Shutdown,
            _ if ok => Done::Yes,
            Why::Fault(fault) => Done::Fault(fault),
            _ => Done::Unsupported,
        }
    }

    fn enter_whole(&mut self, regs: &Regs) {
        self.cpu.set_regs(regs);
        (self.cpu.pending_db, self.cpu.held_db, self.cpu.may_io) = (0, 0, true);
        self.cpu.sync_map();
        self.load_pdptes();
    }

    /// Takes the state over. Nothing is remembered from the instruction before: the guest has run since.
    fn enter(&mut self, c: &Context) {
        let cpu = &mut self.cpu;
        cpu.gpr[..16].copy_from_slice(&c.gpr);
        cpu.rip = c.rip;
        cpu.rflags = 2;
        cpu.set_rflags(c.rflags, u64::MAX);
        cpu.seg[..6].copy_from_slice(&c.seg);
        (cpu.cr0, cpu.cr3, cpu.cr4, cpu.msr.efer) = (c.cr0, c.cr3, c.cr4, c.efer);
        cpu.cpl = if c.rflags & VM != 0 { 3 } else { c.cpl & 3 };
        (cpu.pending_db, cpu.held_db, cpu.why) = (0, 0, Why::None);
        cpu.may_io = true;
        cpu.flush_tlb(false);
        cpu.sync_map();
        cpu.mode_changed();
        self.load_pdptes();
    }

    /// Not every hypervisor shows those that were loaded with CR3.
    fn load_pdptes(&mut self) {
        const PG: u64 = 1 << 31;
        const PAE: u64 = 1 << 5;
        let cpu = &mut self.cpu;
        if cpu.cr0 & PG != 0 && cpu.cr4 & PAE != 0 && !cpu.lma() {
            for (n, pdpte) in (0..).zip(&mut cpu.pdpte) {
                *pdpte = cpu.bus.read((cpu.cr3 & 0xffff_ffe0) + 8 * n, 8);
            }
        }
    }
}

/// What an instruction uses beside its operand.
struct Uses {
    /// Memory at ES:RDI.
    string: bool,
    /// The stack.
    stack: bool,
}

/// `None` of those that are not for here: registers alone are not what anybody hands out, and of the others the state
/// is not at hand.
fn uses(i: &Insn) -> Option<Uses> {
    let ext = i.reg & 7;
    let (mut string, mut stack) = (false, false);
    match i.op {
        // Arithmetic; MOVSXD, IMUL, TEST, XCHG, MOV.
        0x00..=0x3f if i.op & 7 < 4 => {}
        0x63 | 0x69 | 0x6b | 0x80..=0x8b | 0xa0..=0xa3 => {}
        // INS, MOVS, CMPS, STOS, SCAS; OUTS and LODS.
        0x6c | 0x6d | 0xa4..=0xa7 | 0xaa | 0xab | 0xae | 0xaf => string = true,
        0x6e | 0x6f | 0xac | 0xad => {}
        0x8f if ext == 0 => stack = true,
        // Shifts, MOV of immediates, XLAT, groups 3 and 4.
        0xc0 | 0xc1 | 0xc6 | 0xc7 | 0xd0..=0xd3 | 0xd7 | 0xf6 | 0xf7 | 0xfe => {}
        // INC, DEC; near CALL and JMP, PUSH.
        0xff if ext < 2 || ext == 4 => {}
        0xff if ext == 2 || ext == 6 => stack = true,
        // Hints, CMOVcc, SETcc, bits, SHLD and SHRD, IMUL, CMPXCHG, XADD, MOVZX, MOVSX, POPCNT, MOVNTI, CMPXCHG8B.
        0x0f0d | 0x0f18..=0x0f1f | 0x0f40..=0x0f4f | 0x0f90..=0x0f9f => {}
        0x0fa3..=0x0fa5 | 0x0fab..=0x0fad | 0x0faf | 0x0fb0 | 0x0fb1 | 0x0fb3 => {}
        0x0fb6..=0x0fb8 | 0x0fba..=0x0fbf | 0x0fc0 | 0x0fc1 | 0x0fc3 => {}
        0x0fc7 if ext == 1 => {}
        // CLFLUSH, CRC32.
        0x0fae if ext == 7 => {}
        0x38f0 | 0x38f1 => {}
        _ => return None,
    }
    Some(Uses { string, stack })
}

/// What uses segment registers, descriptor tables or the stack, beside [`uses`].
fn uses_system(i: &Insn) -> bool {
    let ext = i.reg & 7;
    match i.op {
        // PUSH and POP, of segment registers too, PUSHA, POPA, PUSHF, POPF.
        0x06 | 0x07 | 0x0e | 0x16 | 0x17 | 0x1e | 0x1f | 0x50..=0x61 | 0x68 | 0x6a | 0x9c | 0x9d => true,
        0x0fa0 | 0x0fa1 | 0x0fa8 | 0x0fa9 => true,
        // BOUND, MOV of segment registers, LES, LDS, LSS, LFS, LGS.
        0x62 | 0x8c | 0x8e | 0xc4 | 0xc5 | 0x0fb2 | 0x0fb4 | 0x0fb5 => true,
        // CALL, RET, IRET, ENTER, LEAVE; far CALL and JMP.
        0x9a | 0xc2 | 0xc3 | 0xc8..=0xcb | 0xcf | 0xe8 => true,
        0xff => ext == 3 || ext == 5,
        // SLDT, STR, LLDT, LTR, VERR, VERW, SGDT, SIDT, LGDT, LIDT, SMSW, LMSW, LAR, LSL.
        0x0f00 => ext < 6,
        0x0f01 => ext < 5 || ext == 6,
        0x0f02 | 0x0f03 => true,
        _ => false,
    }
}

/// The moves that need no more than a register.
fn transfer(i: &Insn) -> Option<Transfer> {
    // With a register for an operand there is no base, and it is none that is handed out.
    let memory = i.op & !3 == 0xa0 || i.base != ZERO || i.index != ZERO || i.disp != 0;
    if !memory || i.flags & (REP | REPNE) != 0 {
        return None;
    }
    let wide = 2u8 << (i.flags >> OSIZE_SHIFT).min(2);
    let width = if i.op & 1 == 0 { 1 } else { wide };
    let (reg, high) = (if i.reg & 0x80 != 0 { i.reg & 3 } else { i.reg & 15 }, i.reg & 0x80 != 0);
    Some(match i.op {
        0x88 | 0x89 => Transfer::Store { reg, high, width },
        0x8a | 0x8b => Transfer::Load { reg, high, width, to: width, signed: false },
        0xa0 | 0xa1 => Transfer::Load { reg: 0, high: false, width, to: width, signed: false },
        0xa2 | 0xa3 => Transfer::Store { reg: 0, high: false, width },
        0xc6 | 0xc7 if i.base != NEXT => Transfer::Immediate { value: i.imm, width },
        0x0fb6 | 0x0fb7 | 0x0fbe | 0x0fbf => {
            let width = if i.op & 1 == 0 { 1 } else { 2 };
            let signed = i.op >= 0x0fbe;
            Transfer::Load { reg: i.reg & 15, high: false, width, to: wide, signed }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::{Access, AddressSpace, Backing, Ram, RamAddr, Rights, Widths};
    use std::sync::Mutex;

    const DEVICE: u64 = 0x40_0000;

    #[derive(Default)]
    struct Device(Mutex<Vec<(u64, u8, Option<u64>)>>);

    impl Access for Device {
        fn owner(&self) -> &str {
            "device"
        }

        fn read(&self, _: u32, offset: u64, width: u8) -> u64 {
            self.0.lock().unwrap().push((offset, width, None));
            0x8182_8384_8586_8788
        }

        fn write(&self, _: u32, offset: u64, width: u8, value: u64) {
            self.0.lock().unwrap().push((offset, width, Some(value)));
        }
    }

    struct Rig {
        executor: Executor,
        device: Arc<Device>,
        ram: Arc<Ram>,
        context: Context,
    }

    impl Rig {
        fn new(size: CodeSize) -> Rig {
            let ram = Arc::new(Ram::new(1 << 20).unwrap());
            let block = ram.alloc("ram", 1 << 20).unwrap();
            let space = AddressSpace::new(ram.clone());
            let id = space.add_memory(0, 1 << 20, 0, Rights::ReadWrite, Backing::Ram(block.start));
            space.enable(id, 0, true);
            let device = Arc::new(Device::default());
            for (base, ports) in [(DEVICE, false), (0x1f0, true)] {
                if ports {
                    let id = space.add_ports(base as u16, 8, 0, device.clone(), 1, Widths::DWORD);
                    space.enable_ports(id, base as u16, true);
                } else {
                    let backing = Backing::Io(device.clone(), 0, Widths::QWORD);
                    let id = space.add_memory(base, 0x1000, 0, Rights::ReadWrite, backing);
                    space.enable(id, base, true);
                }
            }
            let clock = Clock::manual();
            let executor = Executor::new(CpuBus::new(space), &Timers::new(clock.clone()), &clock);
            let flat = Segment { selector: 8, base: 0, limit: u32::MAX, access: 0xc093 };
            let mut context = Context { cr0: 1, rip: 0x1000, rflags: 2, seg: [flat; 6], ..Context::default() };
            if size == CodeSize::Bits64 {
                context.efer = 0x500;
            }
            context.set_code(0, size);
            Rig { executor, device, ram, context }
        }

        fn run(&mut self, bytes: &[u8]) -> Done {
            self.executor.execute(&mut self.context, bytes)
        }

        fn seen(&self) -> Vec<(u64, u8, Option<u64>)> {
            std::mem::take(&mut self.device.0.lock().unwrap())
        }
    }

    /// What a transfer says of itself must be what the instruction does.
    #[test]
    fn transfers_do_what_the_handlers_do() {
        let forms: [&[u8]; 14] = [
            &[0x88, 0x03],
            &[0x88, 0x23],
            &[0x89, 0x0b],
            &[0x66, 0x89, 0x0b],
            &[0x8a, 0x03],
            &[0x8a, 0x2b],
            &[0x8b, 0x0b],
            &[0x66, 0x8b, 0x0b],
            &[0xc6, 0x03, 0x5a],
            &[0xc7, 0x03, 1, 2, 3, 0x84],
            &[0x0f, 0xb6, 0x0b],
            &[0x0f, 0xbe, 0x0b],
            &[0x0f, 0xb7, 0x0b],
            &[0x66, 0x0f, 0xbe, 0x0b],
        ];
        for size in [CodeSize::Bits32, CodeSize::Bits64] {
            for bytes in forms {
                let mut rig = Rig::new(size);
                rig.context.gpr = [0x1122_3344_5566_7788; 16];
                rig.context.gpr[3] = DEVICE;
                let before = rig.context.clone();
                let decoded = Executor::decode(bytes, size).unwrap();
                let transfer = decoded.transfer.unwrap();
                assert_eq!(usize::from(decoded.len), bytes.len());
                assert_eq!(rig.run(bytes), Done::Yes, "{bytes:x?}");
                let seen = rig.seen();
                assert_eq!(seen.len(), 1);
                assert_eq!(seen[0].1, transfer.width(), "{bytes:x?}");
                let reg = transfer.register().map_or(0, |(reg, _)| usize::from(reg));
                assert_eq!(seen[0].2, transfer.stored(before.gpr[reg]), "{bytes:x?}");
                let mut after = before.clone();
                after.rip += bytes.len() as u64;
                if transfer.stored(0).is_none() {
                    let cut = |v: u64| if size == CodeSize::Bits64 { v } else { v & 0xffff_ffff };
                    after.gpr[reg] = transfer.loaded(before.gpr[reg], 0x8182_8384_8586_8788);
                    assert_eq!(cut(rig.context.gpr[reg]), cut(after.gpr[reg]), "{bytes:x?}");
                    rig.context.gpr[reg] = after.gpr[reg];
                }
                assert_eq!(rig.context, after, "{bytes:x?}");
            }
        }
    }

    /// A word of a sequence that looks random.
    fn dice(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        seed.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// The same instruction by the software CPU, from the same registers and memory.
    fn software(rig: &Rig, fill: &[u8]) -> Option<(Regs, Vec<u8>)> {
        let other = Rig::new(CodeSize::Bits32);
        other.ram.write(RamAddr(0), fill);
        let Executor { mut cpu } = other.executor;
        let c = &rig.context;
        let mut regs = cpu.regs();
        (regs.gpr, regs.rip, regs.rflags) = (c.gpr, c.rip, c.rflags);
        (regs.cr0, regs.cr3, regs.cr4, regs.msrs.efer) = (c.cr0, c.cr3, c.cr4, c.efer);
        [regs.es, regs.cs, regs.ss, regs.ds, regs.fs, regs.gs] = c.seg;
        cpu.set_regs(&regs);
        let timers = Timers::new(Clock::manual());
        let end = cpu.icount() + 1;
        cpu.run_plain(end, &timers);
        let regs = cpu.regs();
        let mut memory = vec![0; fill.len()];
        other.ram.read(RamAddr(0), &mut memory);
        (cpu.icount() == end).then_some((regs, memory))
    }

    /// Random instructions with random operands in memory: what the executor says it has done, the software CPU does.
    #[test]
    fn what_is_executed_is_what_the_software_cpu_does() {
        const PREFIXES: [u8; 10] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x36, 0x64, 0x48, 0x4d];
        const TABLE: u64 = 0x1_0000;
        let (mut seed, mut done, mut forms) = (0x1234_5678_9abc_def1, 0, std::collections::BTreeSet::new());
        let noise: Vec<u8> = (0..TABLE + 0x2000).map(|_| dice(&mut seed) as u8).collect();
        for n in 0..20_000 {
            let size = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64][n % 3];
            let mut bytes = Vec::new();
            for _ in 0..dice(&mut seed) % 3 {
                bytes.push(PREFIXES[dice(&mut seed) as usize % PREFIXES.len()]);
            }
            if dice(&mut seed).is_multiple_of(3) {
                bytes.push(0x0f);
            }
            let opcode_at = bytes.len();
            while bytes.len() < 15 {
                bytes.push(dice(&mut seed) as u8);
            }
            // Displacements that stay in memory.
            bytes[opcode_at + 4..].iter_mut().for_each(|b| *b &= 0x0f);
            let Some(decoded) = Executor::decode(&bytes, size) else { continue };
            let mut rig = Rig::new(size);
            let mut fill = noise.clone();
            fill[0x1000..0x100f].copy_from_slice(&bytes);
            rig.context.gpr = std::array::from_fn(|_| dice(&mut seed) & 0x7fff);
            rig.context.gpr[1] &= 3;
            rig.context.rflags = 2 | dice(&mut seed) & 0x8d5;
            if size == CodeSize::Bits64 {
                // One table each, used before: 1 GiB as it is.
                for (at, entry) in [(TABLE, (TABLE + 0x1000) | 0x27), (TABLE + 0x1000, 0xe7)] {
                    fill[at as usize..][..8].copy_from_slice(&u64::to_le_bytes(entry));
                }
                (rig.context.cr0, rig.context.cr3, rig.context.cr4) = (0x8000_0001, TABLE, 0x20);
            }
            rig.ram.write(RamAddr(0), &fill);
            let Some((regs, memory)) = software(&rig, &fill) else { continue };
            if rig.run(&bytes) != Done::Yes {
                continue;
            }
            let (c, said) = (&rig.context, format!("{size:?} {bytes:02x?}"));
            assert_eq!((c.gpr, c.rip), (regs.gpr, regs.rip), "{said}");
            // What is undefined after an instruction is left as it was by both.
            assert_eq!(c.rflags, regs.rflags, "{said}");
            let mut now = vec![0; memory.len()];
            rig.ram.read(RamAddr(0), &mut now);
            assert!(now == memory, "{said}: memory");
            done += 1;
            forms.insert((size as u8, bytes[opcode_at], decoded.transfer.is_some()));
        }
        assert!(done > 2_000 && forms.len() > 200, "{done} instructions of {} forms", forms.len());
    }

    /// A GDT with a descriptor of each kind, at entries 1 to 7: code, data, 16-bit code, data of level 3, an LDT, a TSS,
    /// and data that is not present.
    const GDT: u64 = 0x1_4000;
    const DESCRIPTORS: [u64; 8] = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x000f_9b00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x0000_8201_4000_003f,
        0x0000_8901_5000_0067,
        0x00cf_1300_0000_ffff,
    ];

    /// The same of what takes all of the state: segment registers, the stack, descriptor tables.
    #[test]
    fn what_is_executed_with_all_state_is_what_the_software_cpu_does() {
        const OPCODES: [&[u8]; 40] = [
            &[0x06],
            &[0x07],
            &[0x0e],
            &[0x16],
            &[0x17],
            &[0x1e],
            &[0x1f],
            &[0x50],
            &[0x5b],
            &[0x60],
            &[0x61],
            &[0x62],
            &[0x68],
            &[0x6a],
            &[0x8c],
            &[0x8e],
            &[0x9c],
            &[0x9d],
            &[0x9a],
            &[0xc2],
            &[0xc3],
            &[0xc4],
            &[0xc5],
            &[0xc8],
            &[0xc9],
            &[0xca],
            &[0xcb],
            &[0xcf],
            &[0xe8],
            &[0xff],
            &[0x0f, 0x00],
            &[0x0f, 0x01],
            &[0x0f, 0x02],
            &[0x0f, 0x03],
            &[0x0f, 0xa0],
            &[0x0f, 0xa1],
            &[0x0f, 0xa9],
            &[0x0f, 0xb2],
            &[0x0f, 0xb4],
            &[0x0f, 0xb5],
        ];
        let (mut seed, mut forms) = (0x1234_5678_9abc_def1, std::collections::BTreeMap::<&[u8], u32>::new());
        for n in 0..12_000 {
            let size = [CodeSize::Bits16, CodeSize::Bits32][n % 2];
            let (real, opcode) = (n % 6 == 0, OPCODES[dice(&mut seed) as usize % OPCODES.len()]);
            let mut bytes = [0; 15];
            let prefixes = dice(&mut seed).is_multiple_of(3);
            bytes[0] = 0x66;
            let at = usize::from(prefixes);
            bytes[at..at + opcode.len()].copy_from_slice(opcode);
            bytes[at + opcode.len()..].iter_mut().for_each(|b| *b = dice(&mut seed) as u8 & 0x3f);
            // Selectors and offsets, wherever a pointer may lie.
            let mut fill: Vec<u8> =
                (0..0x1_6000).map(|k| if k % 4 < 2 { 8 * (dice(&mut seed) as u8 & 7) } else { 0 }).collect();
            for (k, d) in DESCRIPTORS.iter().enumerate() {
                fill[GDT as usize + 8 * k..][..8].copy_from_slice(&d.to_le_bytes());
            }
            fill[0x1000..0x100f].copy_from_slice(&bytes);
            let mut rig = Rig::new(size);
            rig.context.gpr = std::array::from_fn(|_| dice(&mut seed) & 0x7ffe);
            rig.context.cr0 = u64::from(!real);
            rig.ram.write(RamAddr(0), &fill);
            let gdtr = crate::Table { base: GDT, limit: 0x3f };
            let other = Rig::new(size);
            other.ram.write(RamAddr(0), &fill);
            let Executor { mut cpu } = other.executor;
            let mut before = cpu.regs();
            let c = &rig.context;
            (before.gpr, before.rip, before.rflags, before.cr0, before.gdtr) = (c.gpr, c.rip, c.rflags, c.cr0, gdtr);
            [before.es, before.cs, before.ss, before.ds, before.fs, before.gs] = c.seg;
            cpu.set_regs(&before);
            let timers = Timers::new(Clock::manual());
            cpu.run_plain(before.icount + 1, &timers);
            let mut regs = before.clone();
            let (done, said) = (rig.executor.execute_whole(&mut regs, &bytes), format!("{size:?} {real} {bytes:02x?}"));
            if done != Done::Yes {
                assert!(regs == before, "{said}: {done:?}");
                continue;
            }
            let expected = Regs { icount: regs.icount, tsc: regs.tsc, ..cpu.regs() };
            assert_eq!(regs, expected, "{said}");
            let (mut now, mut memory) = (vec![0; fill.len()], vec![0; fill.len()]);
            rig.ram.read(RamAddr(0), &mut now);
            other.ram.read(RamAddr(0), &mut memory);
            assert!(now == memory, "{said}: memory");
            *forms.entry(opcode).or_default() += 1;
        }
        let never: Vec<_> = OPCODES.iter().filter(|o| !forms.contains_key(**o)).collect();
        assert!(never.is_empty(), "never executed: {never:02x?}");
    }

    /// A segment is loaded from a device, and its descriptor from a GDT behind page tables.
    #[test]
    fn a_segment_register_is_loaded_from_a_device() {
        let mut rig = Rig::new(CodeSize::Bits32);
        rig.ram.write(RamAddr(0x8000), &0x9003u32.to_le_bytes());
        for (page, leads_to) in [(5u64, DEVICE), (1, 0x1000), (0x18, GDT)] {
            rig.ram.write(RamAddr(0x9000 + 4 * page), &(leads_to as u32 | 3).to_le_bytes());
        }
        // The device's words are 8788, the selector of a descriptor in page 18.
        let descriptor = 0x00cf_9300_0000_ffffu64;
        rig.ram.write(RamAddr(GDT + 8), &descriptor.to_le_bytes());
        let flat = rig.context.seg[3];
        let gdtr = crate::Table { base: 0x1_8008 - 0x8788, limit: 0xffff };
        let mut regs = Regs {
            rip: 0x1000,
            rflags: 2,
            cr0: 0x8000_0001,
            cr3: 0x8000,
            es: flat,
            ss: flat,
            ds: flat,
            gdtr,
            cs: Segment { access: 0xc09b, ..flat },
            fx: vec![0; 512],
            xcr0: 1,
            ..Regs::default()
        };
        regs.gpr[3] = 0x5010;
        // MOV ES, [EBX] with RPL 0; then LES of a selector that has no descriptor.
        assert_eq!(rig.executor.execute_whole(&mut regs, &[0x8e, 0x03]), Done::Yes);
        assert_eq!((regs.es.selector, regs.es.limit, regs.rip), (0x8788, u32::MAX, 0x1002));
        assert_eq!(rig.seen(), [(0x10, 2, None)]);
        regs.gdtr.limit = 0x7fff;
        let before = regs.clone();
        let fault = Fault { vector: 13, error: Some(0x8788), cr2: 0 };
        assert_eq!(rig.executor.execute_whole(&mut regs, &[0xc4, 0x03]), Done::Fault(fault));
        assert_eq!(regs, before);
    }

    #[test]
    fn a_task_switch_that_was_left_is_made() {
        let mut rig = Rig::new(CodeSize::Bits32);
        for (k, d) in DESCRIPTORS.iter().enumerate() {
            rig.ram.write(RamAddr(GDT + 8 * k as u64), &d.to_le_bytes());
        }
        // The TSS of entry 6: EIP, EFLAGS, EAX, ESP, and flat segments.
        for (offset, value) in [(0x20, 0x2000u32), (0x24, 2), (0x28, 0x55), (0x38, 0x9000)] {
            rig.ram.write(RamAddr(0x1_5000 + offset), &value.to_le_bytes());
        }
        for (n, selector) in [16u16, 8, 16, 16, 0, 0].iter().enumerate() {
            rig.ram.write(RamAddr(0x1_5048 + 4 * n as u64), &selector.to_le_bytes());
        }
        let flat = rig.context.seg[3];
        let tr = Segment { selector: 0x38, base: 0x7000, limit: 0x67, access: 0x8b };
        let start = Regs {
            rip: 0x1000,
            rflags: 2,
            cr0: 1,
            es: flat,
            ss: flat,
            ds: flat,
            tr,
            fx: vec![0; 512],
            xcr0: 1,
            cs: Segment { access: 0xc09b, ..flat },
            gdtr: crate::Table { base: GDT, limit: 0x3f },
            ..Regs::default()
        };
        let mut regs = start.clone();
        assert_eq!(rig.executor.switch_task(&mut regs, 0x30, TaskSwitch::Interrupt, Some(0x18), 0x1007), Done::Yes);
        assert_eq!((regs.rip, regs.gpr[0], regs.gpr[4], regs.tr.selector), (0x2000, 0x55, 0x8ffc, 0x30));
        let word = |at| {
            let mut word = [0; 4];
            rig.ram.read(RamAddr(at), &mut word);
            u32::from_le_bytes(word)
        };
        assert_eq!(
            (word(0x7020), word(0x8ffc), word(0x1_5000) & 0xffff),
            (0x1007, 0x18, 0x38),
            "EIP, error code, link"
        );
        // The task is busy now.
        let mut again = start.clone();
        let busy = Fault { vector: 13, error: Some(0x30), cr2: 0 };
        assert_eq!(rig.executor.switch_task(&mut again, 0x30, TaskSwitch::Jump, None, 0x1007), Done::Fault(busy));
        assert_eq!(again, start);
    }

    #[test]
    fn a_64_bit_move_reads_and_writes_whole_registers() {
        let mut rig = Rig::new(CodeSize::Bits64);
        rig.context.gpr[9] = DEVICE + 0x20;
        // MOV R10, [R9+8].
        assert_eq!(rig.run(&[0x4d, 0x8b, 0x51, 0x08]), Done::Yes);
        assert_eq!(rig.context.gpr[10], 0x8182_8384_8586_8788);
        assert_eq!(rig.seen(), [(0x28, 8, None)]);
    }

    #[test]
    fn real_mode_goes_by_the_segments_that_it_is_given() {
        let mut rig = Rig::new(CodeSize::Bits16);
        rig.context.cr0 = 0;
        // Unreal mode: ES has its base and limit from protected mode.
        rig.context.seg[0] = Segment { selector: 0, base: DEVICE, limit: u32::MAX, access: 0x93 };
        rig.context.gpr[7] = 0x104;
        // MOV ES:[DI], AX.
        let bytes = [0x26, 0x89, 0x05];
        assert_eq!(Executor::decode(&bytes, CodeSize::Bits16).unwrap().segments, 1);
        assert_eq!(rig.run(&bytes), Done::Yes);
        assert_eq!(rig.seen(), [(0x104, 2, Some(0))]);
        assert_eq!(rig.context.rip, 0x1003);
    }

    #[test]
    fn a_repeated_store_does_a_bounded_piece_and_stays() {
        let mut rig = Rig::new(CodeSize::Bits32);
        (rig.context.gpr[0], rig.context.gpr[1], rig.context.gpr[7]) = (0x55, 5000, DEVICE + 0xffe);
        assert_eq!(rig.run(&[0xf3, 0xaa]), Done::Yes);
        assert_eq!(rig.seen(), [(0xffe, 1, Some(0x55)), (0xfff, 1, Some(0x55))]);
        assert_eq!((rig.context.gpr[1], rig.context.rip), (4998, 0x1000));
    }

    #[test]
    fn string_input_lands_in_memory() {
        let mut rig = Rig::new(CodeSize::Bits32);
        (rig.context.gpr[1], rig.context.gpr[2], rig.context.gpr[7]) = (3, 0x1f0, 0x5000);
        assert_eq!(rig.run(&[0xf3, 0x66, 0x6d]), Done::Yes);
        let mut buf = [0; 8];
        rig.ram.read(RamAddr(0x5000), &mut buf);
        assert_eq!(buf, [0x88, 0x87, 0x88, 0x87, 0x88, 0x87, 0, 0]);
        assert_eq!((rig.context.gpr[1], rig.context.gpr[7], rig.context.rip), (0, 0x5006, 0x1003));
    }

    #[test]
    fn page_tables_are_walked_and_their_faults_come_out() {
        let mut rig = Rig::new(CodeSize::Bits32);
        rig.context.cr0 |= 1 << 31;
        rig.context.cr3 = 0x8000;
        // Linear 0 to 4 MiB: page 5 leads to the device, nothing else is there.
        rig.ram.write(RamAddr(0x8000), &0x9003u32.to_le_bytes());
        rig.ram.write(RamAddr(0x9014), &(DEVICE as u32 | 3).to_le_bytes());
        rig.context.gpr[3] = 0x5010;
        assert_eq!(rig.run(&[0x81, 0x0b, 1, 0, 0, 0]), Done::Yes);
        assert_eq!(rig.seen(), [(0x10, 4, None), (0x10, 4, Some(0x8586_8789))]);
        rig.context.gpr[3] = 0x6010;
        let before = rig.context.clone();
        let fault = Fault { vector: 14, error: Some(2), cr2: 0x6010 };
        assert_eq!(rig.run(&[0xc6, 0x03, 1]), Done::Fault(fault));
        assert_eq!(rig.context, before);
    }

    #[test]
    fn what_needs_other_state_is_refused_and_does_nothing() {
        let mut rig = Rig::new(CodeSize::Bits32);
        rig.context.gpr[3] = DEVICE;
        // FLD, MOVAPS, LGDT, LES, MOV ES, an incomplete one without memory behind it.
        for bytes in [&[0xd9, 0x03][..], &[0x0f, 0x28, 0x03], &[0x0f, 0x01, 0x13], &[0xc4, 0x03], &[0x8e, 0x03]] {
            assert_eq!(Executor::decode(bytes, CodeSize::Bits32), None);
            assert_eq!(rig.run(bytes), Done::Unsupported);
        }
        assert_eq!(rig.seen(), []);
    }

    #[test]
    fn any_bytes_are_decoded_and_executed_without_a_panic() {
        let mut rig = Rig::new(CodeSize::Bits64);
        let mut x = 0x1234_5678_9abc_def1u64;
        for _ in 0..200_000 {
            let mut bytes = [0; 16];
            for part in bytes.chunks_mut(8) {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                part.copy_from_slice(&x.to_le_bytes());
            }
            rig.context.gpr[3] = DEVICE;
            rig.context.rip = 0x1000;
            Executor::decode(&bytes[..15], CodeSize::Bits16);
            rig.run(&bytes[..15]);
        }
    }
}
