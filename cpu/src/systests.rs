//! Machine code in small machines: protection, paging, interrupts, tasks, modes.
//!
//! A [`Machine`] has 4 MiB of RAM at 0, a register bank of a device behind it, and 256 interrupt handlers that are one
//! HLT each, so that where the processor halts says which vector it took, and the stack says with what.

mod crossing;
mod debug;
mod debugger;
mod gates;
mod io;
mod long;
mod memory;
mod models;
mod monitor;
mod paging;
mod segments;
mod task;
mod v86;

use std::sync::{Arc, Mutex};

use emu::{Access, AddressSpace, Backing, Clock, CpuBus, Ram, RamAddr, RegionId, Rights, Timers, Widths};
use iced_x86::code_asm::CodeAssembler;

use crate::flags::IF;
use crate::insn::{CS, DS, ES, FS, GS, RSP, SS};
use crate::lapic::{ApicBus, Lapic};
use crate::model::Model;
use crate::run::Exit;
use crate::state::{Cpu, Segment, Table};

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const LDT: u64 = 0x3600;
const CODE: u64 = 0x1_0000;
const HANDLERS: u64 = 0x2_0000;
/// Stacks grow down from here: the present one, level 0 of the TSS, the user's, the first of the IST.
const STACK: u64 = 0x9000;
const STACK0: u64 = 0xa000;
const STACK3: u64 = 0xb000;
const IST1: u64 = 0xc000;
/// The device.
const DEVICE: u64 = 0x40_0000;
/// A page of ROM.
const ROM: u64 = 0x41_0000;
const RAM_LEN: u64 = 0x40_0000;

/// Selectors of the GDT that [`Machine`] makes.
mod sel {
    pub(super) const CODE0: u16 = 0x08;
    pub(super) const DATA0: u16 = 0x10;
    pub(super) const CODE3: u16 = 0x1b;
    pub(super) const DATA3: u16 = 0x23;
    pub(super) const TSS: u16 = 0x28;
    /// Free for the tests: 30 to 78.
    pub(super) const FREE: u16 = 0x30;
    pub(super) const CODE64: u16 = 0x80;
    pub(super) const CODE64_3: u16 = 0x8b;
}

/// Flags of descriptors: bits 8 to 15 and 20 to 23 of the second word, in place.
mod flags {
    pub(super) const CODE: u32 = 0x9a00;
    pub(super) const DATA: u32 = 0x9200;
    pub(super) const BIG: u32 = 0xc0_0000;
    pub(super) const LONG: u32 = 0x20_0000;
    pub(super) const DPL3: u32 = 0x6000;
    pub(super) const TSS32: u32 = 0x8900;
    pub(super) const TSS16: u32 = 0x8100;
}

fn descriptor(base: u32, limit: u32, flags: u32) -> u64 {
    let lo = limit & 0xffff | base << 16;
    let hi = base >> 16 & 0xff | base & 0xff00_0000 | limit & 0xf_0000 | flags;
    u64::from(hi) << 32 | u64::from(lo)
}

/// A gate: type and DPL and P in `kind`, bits 8 to 15 of the second word.
fn gate(selector: u16, offset: u32, kind: u32) -> u64 {
    let lo = offset & 0xffff | u32::from(selector) << 16;
    u64::from(offset & 0xffff_0000 | kind) << 32 | u64::from(lo)
}

/// What a device or a port saw: address, width, value of writes.
#[derive(Default)]
struct Log {
    writes: Mutex<Vec<(u64, u8, u64)>>,
    reads: Mutex<Vec<(u64, u8)>>,
}

impl Access for Log {
    fn owner(&self) -> &str {
        "log"
    }

    fn read(&self, _: u32, offset: u64, width: u8) -> u64 {
        let mut reads = self.reads.lock().unwrap();
        reads.push((offset, width));
        0x1100 + reads.len() as u64
    }

    fn write(&self, _: u32, offset: u64, width: u8, value: u64) {
        self.writes.lock().unwrap().push((offset, width, value));
    }
}

struct Machine {
    cpu: Cpu,
    ram: Arc<Ram>,
    space: Arc<AddressSpace>,
    region: RegionId,
    timers: Arc<Timers>,
    clock: Arc<Clock>,
    device: Arc<Log>,
    ports: Arc<Log>,
}

impl Machine {
    /// A processor at its reset vector.
    fn with(model: Model) -> Machine {
        let ram = Arc::new(Ram::new(RAM_LEN + 0x1000).unwrap());
        let block = ram.alloc("ram", RAM_LEN).unwrap();
        let rom = ram.alloc("rom", 0x1000).unwrap();
        let space = AddressSpace::new(ram.clone());
        let (device, ports) = (Arc::new(Log::default()), Arc::new(Log::default()));
        let region = space.add_memory(0, RAM_LEN, 0, Rights::ReadWrite, Backing::Ram(block.start));
        space.enable(region, 0, true);
        let id = space.add_memory(ROM, 0x1000, 0, Rights::Read, Backing::Ram(rom.start));
        space.enable(id, ROM, true);
        let io = Backing::Io(device.clone(), 0, Widths::QWORD);
        let id = space.add_memory(DEVICE, 0x1000, 0, Rights::ReadWrite, io);
        space.enable(id, DEVICE, true);
        let id = space.add_ports(0x100, 0x100, 0, ports.clone(), 0, Widths::DWORD);
        space.enable_ports(id, 0x100, true);
        let clock = Clock::manual();
        let timers = Timers::new(clock.clone());
        let lapic = Lapic::new(0, &ApicBus::new(), &timers, model.tsc_hz);
        let cpu = Cpu::new(Arc::new(model), CpuBus::new(space.clone()), clock.clone(), lapic);
        Machine { cpu, ram, space, region, timers, clock, device, ports }
    }

    fn new() -> Machine {
        Machine::with(Model::default())
    }

    fn write<const N: usize>(&self, at: u64, bytes: [u8; N]) {
        self.ram.write(RamAddr(at), &bytes);
    }

    fn write16(&self, at: u64, v: u16) {
        self.write(at, v.to_le_bytes());
    }

    fn write32(&self, at: u64, v: u32) {
        self.write(at, v.to_le_bytes());
    }

    fn write64(&self, at: u64, v: u64) {
        self.write(at, v.to_le_bytes());
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.read(RamAddr(at), &mut bytes);
        bytes
    }

    fn read16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at))
    }

    fn read32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.read(at))
    }

    fn read64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at))
    }

    fn set_descriptor(&self, selector: u16, d: u64) {
        self.write64(GDT + u64::from(selector & 0xfff8), d);
    }

    /// The byte of a descriptor that holds type, S, DPL and P.
    fn access_byte(&self, selector: u16) -> u8 {
        self.read::<8>(GDT + u64::from(selector & 0xfff8))[5]
    }

    /// 32-bit protected mode at CPL 0, flat.
    fn protected() -> Machine {
        Machine::protected_with(Model::default())
    }

    fn protected_with(model: Model) -> Machine {
        let mut m = Machine::with(model);
        m.set_descriptor(sel::CODE0, descriptor(0, 0xf_ffff, flags::CODE | flags::BIG));
        m.set_descriptor(sel::DATA0, descriptor(0, 0xf_ffff, flags::DATA | flags::BIG));
        m.set_descriptor(sel::CODE3, descriptor(0, 0xf_ffff, flags::CODE | flags::BIG | flags::DPL3));
        m.set_descriptor(sel::DATA3, descriptor(0, 0xf_ffff, flags::DATA | flags::BIG | flags::DPL3));
        m.set_descriptor(sel::TSS, descriptor(TSS as u32, 0x67, flags::TSS32 | 0x200));
        m.set_descriptor(sel::CODE64, descriptor(0, 0xf_ffff, flags::CODE | flags::LONG));
        m.set_descriptor(sel::CODE64_3, descriptor(0, 0xf_ffff, flags::CODE | flags::LONG | flags::DPL3));
        m.write32(TSS + 4, STACK0 as u32);
        m.write16(TSS + 8, sel::DATA0);
        // No I/O bitmap.
        m.write16(TSS + 0x66, 0xffff);
        m.ram.write(RamAddr(HANDLERS), &[0xf4; 0x1000]);
        for v in 0..256 {
            m.set_gate(v as u8, gate(sel::CODE0, (HANDLERS + 16 * v) as u32, 0x8e00));
        }
        // For user code that wants to end.
        m.set_gate(0x30, gate(sel::CODE0, (HANDLERS + 16 * 0x30) as u32, 0xee00));
        let cpu = &mut m.cpu;
        cpu.cr0 = 0x11;
        cpu.gdtr = Table { base: GDT, limit: 0xff };
        cpu.idtr = Table { base: IDT, limit: 0x7ff };
        cpu.tr = Segment { selector: sel::TSS, base: TSS, limit: 0x67, access: 0x8b };
        cpu.ldtr = Segment::null(0);
        m.level(0);
        m
    }

    fn set_gate(&self, vector: u8, g: u64) {
        self.write64(IDT + 8 * u64::from(vector), g);
    }

    /// Flat 32-bit segments of CPL 0 or 3, and a stack.
    fn level(&mut self, cpl: u8) {
        let dpl = u32::from(cpl) << 5;
        let (cs, ds, sp) = if cpl == 0 { (sel::CODE0, sel::DATA0, STACK) } else { (sel::CODE3, sel::DATA3, STACK3) };
        let cpu = &mut self.cpu;
        for s in [ES, SS, DS, FS, GS] {
            cpu.seg[s as usize] = Segment::flat(ds, 0x4093 | dpl);
        }
        cpu.seg[CS as usize] = Segment::flat(cs, 0x409b | dpl);
        cpu.gpr[RSP as usize] = sp;
        cpu.cpl = cpl;
        cpu.mode_changed();
    }

    /// Real mode with all segments at 0, and a vector table that leads to the handlers.
    fn real() -> Machine {
        let mut m = Machine::new();
        m.ram.write(RamAddr(HANDLERS), &[0xf4; 0x1000]);
        for v in 0..256u64 {
            m.write32(4 * v, (HANDLERS as u32) << 12 | (16 * v) as u32);
        }
        let cpu = &mut m.cpu;
        (cpu.seg[CS as usize].selector, cpu.seg[CS as usize].base) = (CODE as u16 >> 4, CODE);
        cpu.seg[CS as usize].selector = (CODE >> 4) as u16;
        cpu.gpr[RSP as usize] = STACK;
        cpu.mode_changed();
        m
    }

    /// Puts machine code at [`CODE`] and RIP on it. In real and virtual-8086 mode, CS has that base.
    fn code(&mut self, bits: u32, f: impl FnOnce(&mut CodeAssembler)) {
        let base = self.cpu.seg[CS as usize].base;
        let mut a = CodeAssembler::new(bits).unwrap();
        f(&mut a);
        let origin = if bits == 64 { CODE } else { CODE - base };
        let bytes = a.assemble(origin).unwrap();
        self.ram.write(RamAddr(CODE), &bytes);
        self.cpu.rip = origin;
        self.cpu.halted = false;
    }

    /// Runs until the processor halts or shuts down.
    fn run(&mut self) -> Exit {
        let limit = self.cpu.icount + 1000;
        self.cpu.run_plain(limit, &self.timers)
    }

    /// Executes one instruction, with what waits before it.
    fn step(&mut self) -> Exit {
        let limit = self.cpu.icount + 1;
        self.cpu.run_plain(limit, &self.timers)
    }

    /// Runs to a handler's HLT. Returns its vector.
    fn vector(&mut self) -> u8 {
        assert_eq!(self.run(), Exit::Halted, "{:?}", self.cpu.regs());
        let lin = self.cpu.seg[CS as usize].base * u64::from(!self.cpu.lma()) + self.cpu.rip - 1;
        assert!((HANDLERS..HANDLERS + 0x1000).contains(&lin), "halted at {lin:x}");
        ((lin - HANDLERS) / 16) as u8
    }

    /// Runs code that ends with HLT by itself.
    fn runs(&mut self) {
        assert_eq!(self.run(), Exit::Halted);
        let lin = self.cpu.seg[CS as usize].base * u64::from(!self.cpu.lma()) + self.cpu.rip - 1;
        assert!(!(HANDLERS..HANDLERS + 0x1000).contains(&lin), "took vector {:x}", (lin - HANDLERS) / 16);
    }

    /// The doublewords on the stack, from the top.
    fn stack32<const N: usize>(&self) -> [u32; N] {
        let sp = self.cpu.gpr[RSP as usize] + self.cpu.seg[SS as usize].base;
        std::array::from_fn(|n| self.read32(sp + 4 * n as u64))
    }

    fn stack16<const N: usize>(&self) -> [u16; N] {
        let sp = (self.cpu.gpr[RSP as usize] & 0xffff) + self.cpu.seg[SS as usize].base;
        std::array::from_fn(|n| self.read16(sp + 2 * n as u64))
    }

    fn stack64<const N: usize>(&self) -> [u64; N] {
        let sp = self.cpu.gpr[RSP as usize];
        std::array::from_fn(|n| self.read64(sp + 8 * n as u64))
    }

    fn gpr(&self, n: u8) -> u64 {
        self.cpu.gpr[usize::from(n)]
    }

    /// Takes an exception whose handler runs on the present level-0 stack: vector and error code.
    fn faults32(&mut self) -> (u8, u32) {
        let v = self.vector();
        let error = if matches!(v, 8 | 10..=14 | 17) { self.stack32::<1>()[0] } else { 0 };
        (v, error)
    }

    fn interrupts_on(&mut self) {
        self.cpu.rflags |= IF;
    }
}
