//! Power-on, RESET and INIT, and the processor's whole state as a value.

use std::sync::Arc;

use emu::{Clock, CpuBus};
use serde::{Deserialize, Serialize};

use crate::debug::Traps;
use crate::feature::Feature;
use crate::flags::{Flags, VM};
use crate::fpu::Fpu;
use crate::insn::{CS, DS, ES, FS, GS, HALF, RDX, SS};
use crate::lapic::Lapic;
use crate::mem::Tlb;
use crate::model::Model;
use crate::state::{Cpu, Fault, Msrs, Segment, Table, Why};

/// Everything that a processor's software can see or will feel, in terms that every back end has: what saving,
/// inspection and moving between back ends work with. The local APIC and the A20 gate have state of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regs {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS, all bits.
    pub rflags: u64,
    /// Extra segment.
    pub es: Segment,
    /// Code segment.
    pub cs: Segment,
    /// Stack segment.
    pub ss: Segment,
    /// Data segment.
    pub ds: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: Table,
    /// Interrupt descriptor table.
    pub idtr: Table,
    /// Current privilege level; in real mode 0 whatever the selectors are.
    pub cpl: u8,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// The page directory pointers of PAE paging as they were loaded with CR3.
    pub pdpte: [u64; 4],
    /// XCR0.
    pub xcr0: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// The model-specific registers without a place of their own here.
    pub msrs: Msrs,
    /// The time-stamp counter.
    pub tsc: u64,
    /// x87, MMX and SSE state: the 512 bytes that FXSAVE writes with REX.W.
    pub fx: Vec<u8>,
    /// Code segment of the last x87 instruction and data segment of its operand, which the image leaves out.
    pub fcs_fds: (u16, u16),
    /// FERR# and IGNNE#.
    pub ferr_ignne: (bool, bool),
    /// Interrupts wait for one instruction (STI, MOV SS, POP SS).
    pub shadow: bool,
    /// NMIs wait for IRET.
    pub nmi_blocked: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// HLT has been executed.
    pub halted: bool,
    /// Waits for a SIPI.
    pub wait_sipi: bool,
    /// An exception that is to be delivered before the next instruction.
    pub exception: Option<Fault>,
    /// Debug traps to be delivered before the next instruction, as DR6 will show them, and those that wait for one
    /// more.
    pub debug_traps: (u64, u64),
    /// Instructions executed.
    pub icount: u64,
}

const CR0_RESET: u64 = 0x6000_0010;
const CR0_ET: u64 = 1 << 4;
/// CR0.CD and NW, which INIT leaves alone.
const CR0_CACHE: u64 = 0x6000_0000;
const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;

impl Cpu {
    /// A processor at power-on. The one whose local APIC says that it is the bootstrap processor starts at the reset
    /// vector, others wait for a SIPI.
    pub fn new(model: Arc<Model>, bus: CpuBus, clock: Arc<Clock>, lapic: Arc<Lapic>) -> Cpu {
        if !model.has(Feature::Apic) {
            lapic.remove();
        }
        let mut cpu = Cpu {
            gpr: [0; 32],
            rip: 0,
            flags: Flags::from_bits(0),
            rflags: 2,
            seg: [Segment::default(); 8],
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: Table::default(),
            idtr: Table::default(),
            cr0: CR0_RESET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            xcr0: 1,
            dr: [0; 8],
            msr: Msrs::default(),
            cpl: 0,
            mode: crate::insn::Mode::default(),
            flat_mask: 0xffff_ffff,
            fpu: Fpu::default(),
            error_pins: Arc::default(),
            tlb: Tlb::default(),
            pdpte: [0; 4],
            a20_mask: u64::MAX,
            shadow: false,
            nmi_blocked: false,
            nmi_pending: false,
            halted: false,
            wait_sipi: false,
            pending_db: 0,
            held_db: 0,
            traps: Traps::Deliver,
            why: Why::None,
            may_io: true,
            stopped: 0,
            icount: 0,
            clock_bias: 0,
            clock_follows: false,
            smc: Vec::new(),
            faults: Vec::new(),
            code_epoch: 0,
            tsc_offset: 0,
            model,
            bus,
            clock,
            lapic,
            monitor: None,
            debugger: None,
        };
        cpu.reset();
        cpu
    }

    /// RESET. The local APIC has a reset of its own.
    pub fn reset(&mut self) {
        self.msr =
            Msrs { pat: crate::msr::PAT, misc_enable: crate::msr::MISC_ENABLE, bios_sign: 1 << 32, ..Msrs::default() };
        self.xcr0 = 1;
        self.fpu = Fpu::default();
        self.cr0 = CR0_RESET & (self.model.cr0_mask() | CR0_ET);
        self.nmi_pending = false;
        self.set_tsc(0);
        self.init();
    }

    /// INIT: the machine checks, MTRRs, caches, TSC and FPU stay as they are.
    pub(crate) fn init(&mut self) {
        self.gpr = [0; 32];
        self.gpr[usize::from(HALF)] = 1 << 31;
        self.gpr[usize::from(RDX)] = self.model.signature.into();
        self.rip = 0xfff0;
        self.flags = Flags::from_bits(0);
        self.rflags = 2;
        let data = Segment { selector: 0, base: 0, limit: 0xffff, access: 0x93 };
        self.seg = [data; 8];
        self.seg[usize::from(CS)] = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, access: 0x9b };
        self.ldtr = Segment { access: 0x82, ..data };
        self.tr = Segment { access: 0x8b, ..data };
        self.gdtr = Table { base: 0, limit: 0xffff };
        self.idtr = self.gdtr;
        self.cr0 = self.cr0 & CR0_CACHE | CR0_ET;
        (self.cr2, self.cr3, self.cr4) = (0, 0, 0);
        self.pdpte = [0; 4];
        self.dr = [0, 0, 0, 0, 0, 0, DR6_RESET, DR7_RESET];
        self.msr.efer = 0;
        self.cpl = 0;
        (self.shadow, self.nmi_blocked, self.halted) = (false, false, false);
        (self.pending_db, self.held_db, self.traps) = (0, 0, Traps::Deliver);
        self.why = Why::None;
        const BSP: u64 = 1 << 8;
        self.wait_sipi = self.lapic.apic_base() & BSP == 0;
        self.flush_tlb(false);
        self.mode_changed();
    }

    /// Starts a processor that waits for a SIPI, at page `vector` of the first megabyte.
    pub(crate) fn start_at(&mut self, vector: u8) {
        self.wait_sipi = false;
        let selector = u16::from(vector) << 8;
        let cs = &mut self.seg[usize::from(CS)];
        (cs.selector, cs.base) = (selector, u64::from(selector) << 4);
        self.rip = 0;
        self.mode_changed();
    }

    /// The state between two instructions.
    pub fn regs(&self) -> Regs {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.gpr[..16]);
        let seg = |n: u8| self.seg[usize::from(n)];
        Regs {
            gpr,
            rip: self.rip,
            rflags: self.rflags(),
            es: seg(ES),
            cs: seg(CS),
            ss: seg(SS),
            ds: seg(DS),
            fs: seg(FS),
            gs: seg(GS),
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cpl: self.cpl,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            pdpte: self.pdpte,
            xcr0: self.xcr0,
            dr: [self.dr[0], self.dr[1], self.dr[2], self.dr[3]],
            dr6: self.dr[6],
            dr7: self.dr[7],
            msrs: self.msr.clone(),
            tsc: self.tsc(),
            fx: self.fpu.to_fxsave().to_vec(),
            fcs_fds: (self.fpu.fcs, self.fpu.fds),
            ferr_ignne: (self.fpu.ferr, self.error_pins.ignored()),
            shadow: self.shadow,
            nmi_blocked: self.nmi_blocked,
            nmi_pending: self.nmi_pending,
            halted: self.halted,
            wait_sipi: self.wait_sipi,
            exception: None,
            debug_traps: (self.pending_db, self.held_db),
            icount: self.icount,
        }
    }

    /// Takes over a state. The clock must stand where the state's TSC is meant to go on from, and guest memory must be
    /// in place if there is an exception to be delivered.
    pub fn set_regs(&mut self, r: &Regs) {
        self.gpr[..16].copy_from_slice(&r.gpr);
        self.rip = r.rip;
        self.flags = Flags::from_bits(r.rflags);
        self.rflags = 2;
        self.set_rflags(r.rflags, u64::MAX);
        for (n, s) in [(ES, r.es), (CS, r.cs), (SS, r.ss), (DS, r.ds), (FS, r.fs), (GS, r.gs)] {
            self.seg[usize::from(n)] = s;
        }
        (self.ldtr, self.tr, self.gdtr, self.idtr) = (r.ldtr, r.tr, r.gdtr, r.idtr);
        (self.cr0, self.cr2, self.cr3, self.cr4) = (r.cr0, r.cr2, r.cr3, r.cr4);
        self.cpl = if self.rflags & VM != 0 { 3 } else { r.cpl & 3 };
        self.pdpte = r.pdpte;
        self.xcr0 = r.xcr0;
        self.dr = [r.dr[0], r.dr[1], r.dr[2], r.dr[3], 0, 0, r.dr6, r.dr7];
        self.msr = r.msrs.clone();
        self.set_tsc(r.tsc);
        let mut fx = [0; 512];
        fx.iter_mut().zip(&r.fx).for_each(|(to, from)| *to = *from);
        self.fpu.from_fxsave(&fx);
        (self.fpu.fcs, self.fpu.fds) = r.fcs_fds;
        self.fpu.ferr = r.ferr_ignne.0;
        self.error_pins.restore(r.ferr_ignne.1);
        self.shadow = r.shadow;
        self.nmi_blocked = r.nmi_blocked;
        self.nmi_pending = r.nmi_pending;
        self.halted = r.halted;
        self.wait_sipi = r.wait_sipi;
        (self.pending_db, self.held_db) = r.debug_traps;
        self.traps = Traps::Deliver;
        self.why = Why::None;
        self.icount = r.icount;
        self.flush_tlb(false);
        self.mode_changed();
        if let Some(f) = r.exception {
            self.deliver(f);
        }
    }
}
