//! Our processor, in the state that the host's is in: compatibility or 64-bit code at CPL 3 under paging.

use std::sync::Arc;

use emu::{AddressSpace, Backing, Clock, CpuBus, Ram, RamAddr, Rights, Timers};

use super::{Bits, CODE, Case, DATA, DATA_LEN, ENTRY, ES_SKEW, Outcome, State};
use crate::decode::decode;
use crate::flags::Flags;
use crate::insn::{BLOCK, CS, DS, ES, SS};
use crate::lapic::{ApicBus, Lapic};
use crate::model::Model;
use crate::state::{Cpu, Segment, Why};

/// Bytes of memory from [`DATA`] on: data, code, then page tables.
const RAM_LEN: u64 = 0x2_0000;
/// Physical address of the page tables, one page for each level.
const TABLES: u64 = DATA + 0x1_8000;

pub(super) struct Guest {
    cpu: Cpu,
    bits: Bits,
}

/// A code or data segment of CPL 3.
fn segment(selector: u16, base: u64, limit: u32, kind: u32, flags: u32) -> Segment {
    Segment { selector, base, limit, access: kind | 0xe0 | Segment::S | flags }
}

impl Guest {
    pub(super) fn new(bits: Bits) -> Guest {
        let ram = Arc::new(Ram::new(RAM_LEN).unwrap());
        let block = ram.alloc("ram", RAM_LEN).unwrap();
        let space = AddressSpace::new(ram);
        let id = space.add_memory(DATA, RAM_LEN, 0, Rights::ReadWrite, Backing::Ram(block.start));
        space.enable(id, DATA, true);
        let mut bus = CpuBus::new(space);

        // Present, writable, user, accessed, dirty.
        const FLAGS: u64 = 0x67;
        for level in 0..3 {
            let (table, next) = (TABLES + level * 0x1000, TABLES + (level + 1) * 0x1000);
            let index = DATA >> (39 - 9 * level) & 511;
            bus.write(table + 8 * index, 8, next | FLAGS);
        }
        let mut page = |at: u64, flags| bus.write(TABLES + 0x3000 + 8 * (at >> 12 & 511), 8, at | flags);
        (DATA..DATA + DATA_LEN as u64).step_by(0x1000).for_each(|at| page(at, FLAGS));
        // Not writable.
        page(CODE, FLAGS & !2);

        let clock = Clock::manual();
        let lapic = Lapic::new(0, &ApicBus::new(), &Timers::new(clock.clone()), 1_000_000_000);
        let mut cpu = Cpu::new(Arc::new(Model::default()), bus, clock, lapic);
        cpu.cr0 = 0x8000_0033;
        cpu.cr3 = TABLES;
        cpu.cr4 = 0x4_0620;
        cpu.xcr0 = 3;
        cpu.msr.efer = 0x500;
        cpu.cpl = 3;
        let data = match bits {
            Bits::B16 => segment(0xf, DATA, DATA_LEN as u32 - 1, 3, 0),
            _ => segment(0x2b, 0, u32::MAX, 3, Segment::DB | 0x8000),
        };
        cpu.seg[usize::from(DS)] = data;
        cpu.seg[usize::from(SS)] = data;
        cpu.seg[usize::from(ES)] = match bits {
            Bits::B16 => segment(0x17, DATA + ES_SKEW, DATA_LEN as u32 - 1 - ES_SKEW as u32, 3, 0),
            _ => data,
        };
        cpu.seg[usize::from(CS)] = match bits {
            Bits::B16 => segment(7, CODE, 0xfff, 0xb, 0),
            Bits::B32 => segment(0x23, 0, u32::MAX, 0xb, Segment::DB | 0x8000),
            Bits::B64 => segment(0x33, 0, u32::MAX, 0xb, Segment::L | 0x8000),
        };
        cpu.mode_changed();
        cpu.bus.ram().write(RamAddr(block.start.0 + CODE - DATA), &[0xcc; 0x1000]);
        Guest { cpu, bits }
    }

    /// Runs a case with the data window as given.
    pub(super) fn run(&mut self, case: &Case, data: &[u8]) -> Outcome {
        debug_assert_eq!(case.bits, self.bits);
        let cpu = &mut self.cpu;
        let code = RamAddr(CODE - DATA + ENTRY);
        cpu.bus.ram().write(RamAddr(0), data);
        cpu.bus.ram().write(code, &case.code);
        cpu.gpr[..16].copy_from_slice(&case.state.gpr);
        cpu.flags = Flags::from_bits(case.state.flags);
        cpu.rflags = case.state.flags & !crate::flags::ARITH;
        if case.fp {
            cpu.fpu.from_fxsave(&case.state.fx.0);
        }
        cpu.rip = case.state.rip;
        let mut vector = 3;
        // A REP instruction comes back until its count is used up.
        while vector == 3 {
            cpu.why = Why::None;
            cpu.may_io = true;
            let done = decode(&case.code, cpu.mode).map(|insn| {
                cpu.gpr[usize::from(BLOCK)] = case.state.rip;
                cpu.rip = case.state.rip.wrapping_add(u64::from(insn.len));
                insn.execute(cpu)
            });
            match done {
                Ok(Ok(())) if cpu.rip == case.state.rip => continue,
                Ok(Ok(())) => break,
                Ok(Err(_)) => {
                    let Why::Fault(f) = cpu.why else { panic!("{:?} instead of a fault", cpu.why) };
                    vector = f.vector;
                }
                Err(_) => vector = 13,
            }
            cpu.rip = case.state.rip;
        }
        let mut state = State { rip: cpu.rip, flags: cpu.flags.bits() | cpu.rflags, ..case.state.clone() };
        state.gpr.copy_from_slice(&cpu.gpr[..16]);
        if case.fp {
            state.fx.0 = cpu.fpu.to_fxsave();
        }
        let mut after = vec![0; DATA_LEN];
        cpu.bus.ram().read(RamAddr(0), &mut after);
        cpu.bus.ram().write(code, &[0xcc; 15][..case.code.len()]);
        Outcome { vector, state, data: after }
    }
}
