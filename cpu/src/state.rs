//! The processor's registers.

use std::sync::Arc;

use emu::{Clock, CpuBus, RamAddr};
use serde::{Deserialize, Serialize};

use crate::debug::Traps;
use crate::debugger::Debugger;
use crate::flags::Flags;
use crate::fpu::{ErrorPins, Fpu};
use crate::insn::{Insn, Mode, Stop};
use crate::lapic::Lapic;
use crate::mem::Tlb;
use crate::model::Model;
use crate::monitor::Monitor;

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Highest offset (granularity applied).
    pub limit: u32,
    /// Bits 8 to 23 of the descriptor's second word, shifted down by 8: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B
    /// 14, G 15. Bit 16: unusable (null selector loaded).
    pub access: u32,
}

impl Segment {
    /// [`Segment::access`]: present.
    pub const P: u32 = 0x80;
    /// [`Segment::access`]: code or data, not system.
    pub const S: u32 = 0x10;
    /// [`Segment::access`]: 64-bit code.
    pub const L: u32 = 0x2000;
    /// [`Segment::access`]: 32-bit.
    pub const DB: u32 = 0x4000;
    /// [`Segment::access`]: loaded with a null selector.
    pub const UNUSABLE: u32 = 0x1_0000;
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, minus one.
    pub limit: u16,
}

/// A fault, trap or abort to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Error code, where the vector has one.
    pub error: Option<u32>,
    /// The linear address of a page fault, for CR2.
    pub cr2: u64,
}

/// Why an instruction did not complete, or why the run loop must look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nothing to report.
    None,
    /// An exception at this instruction.
    Fault(Fault),
    /// The instruction touches a device or code of its own block, in the middle of a block: run it again alone.
    Alone,
    /// The access is for the monitor.
    Left,
    /// Triple fault.
    Shutdown,
}

/// Model-specific registers that only hold what is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs {
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub mtrr_def_type: u64,
    /// Variable MTRRs, base and mask in turn.
    pub mtrr_var: [u64; 16],
    /// Fixed MTRRs in the order of their numbers: 250, 258, 259, 268-26F.
    pub mtrr_fixed: [u64; 11],
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_BIOS_SIGN_ID.
    pub bios_sign: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// IA32_MCG_STATUS.
    pub mcg_status: u64,
    /// IA32_DEBUGCTL.
    pub debugctl: u64,
}

/// A processor.
///
/// Everything that a guest can see is in here; the framework saves it with [`Cpu::save`].
pub struct Cpu {
    /// RAX to R15, then the pseudo registers [`crate::insn::ZERO`], `BLOCK` and `NEXT`, then padding to a power of two
    /// so that a masked number never needs a bounds check.
    pub(crate) gpr: [u64; 32],
    /// RIP. While a block runs: the address behind it, or the target of the jump that ended it.
    pub(crate) rip: u64,
    /// CF, PF, AF, ZF, SF and OF, lazily.
    pub(crate) flags: Flags,
    /// The other bits of RFLAGS (TF 8, IF 9, DF 10, IOPL 12-13, NT 14, RF 16, VM 17, AC 18, VIF 19, VIP 20, ID 21). The
    /// six arithmetic bits are 0 here and bit 1 is 1.
    pub(crate) rflags: u64,
    /// ES CS SS DS FS GS.
    pub(crate) seg: [Segment; 8],
    pub(crate) ldtr: Segment,
    pub(crate) tr: Segment,
    pub(crate) gdtr: Table,
    pub(crate) idtr: Table,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) xcr0: u64,
    /// DR0-3, DR6, DR7 at their numbers.
    pub(crate) dr: [u64; 8],
    pub(crate) msr: Msrs,
    /// 0 to 3; 0 in real mode, 3 in virtual-8086 mode.
    pub(crate) cpl: u8,
    /// Kept by `mode_changed` from the registers above.
    pub(crate) mode: Mode,
    /// The cut of an address in a flat segment: all ones in 64-bit code, else 32 bits.
    pub(crate) flat_mask: u64,
    /// x87, MMX and SSE state.
    pub(crate) fpu: Fpu,
    /// FERR# and IGNNE#.
    pub(crate) error_pins: Arc<ErrorPins>,
    /// Translations.
    pub(crate) tlb: Tlb,
    /// The PDPTEs as loaded with CR3 (PAE without long mode).
    pub(crate) pdpte: [u64; 4],
    /// A20 masks bit 20 of physical addresses when off.
    pub(crate) a20_mask: u64,
    /// Interrupts wait for one more instruction (STI, MOV SS, POP SS).
    pub(crate) shadow: bool,
    /// NMIs wait for IRET.
    pub(crate) nmi_blocked: bool,
    pub(crate) nmi_pending: bool,
    /// HLT was executed and nothing has woken the processor yet.
    pub(crate) halted: bool,
    /// An application processor that waits for a SIPI.
    pub(crate) wait_sipi: bool,
    /// A #DB trap to be delivered after the present instruction: bits for DR6.
    pub(crate) pending_db: u64,
    /// Traps that MOV SS or POP SS holds back for one more instruction.
    pub(crate) held_db: u64,
    /// What becomes of the traps of the present instruction.
    pub(crate) traps: Traps,
    pub(crate) why: Why,
    /// The instruction that runs is the last of its block, or alone: it may touch devices.
    pub(crate) may_io: bool,
    /// Where the instruction is that stopped in the middle of a run; 0 for the last one.
    pub(crate) stopped: usize,
    /// Instructions executed, the present one (or the present block) included.
    pub(crate) icount: u64,
    /// Time at instruction 0, as if every instruction since had taken its time; see `begin_slice`.
    pub(crate) clock_bias: u64,
    /// Instructions drive the clock.
    pub(crate) clock_follows: bool,
    /// Stores that hit decoded code, for the engine: place and length.
    pub(crate) smc: Vec<(RamAddr, u32)>,
    /// What was delivered last, up to the triple fault that it became; for the report.
    pub(crate) faults: Vec<Fault>,
    /// The engine's count of code pages that the translations agree with.
    pub(crate) code_epoch: u64,
    /// TSC = clock in TSC ticks + this.
    pub(crate) tsc_offset: u64,
    pub(crate) model: Arc<Model>,
    pub(crate) bus: CpuBus,
    pub(crate) clock: Arc<Clock>,
    pub(crate) lapic: Arc<Lapic>,
    pub(crate) monitor: Option<Monitor>,
    pub(crate) debugger: Option<Box<Debugger>>,
}

impl Cpu {
    /// Records an exception; `return Err(cpu.fault(..))`.
    #[cold]
    pub(crate) fn fault(&mut self, vector: u8, error: Option<u32>) -> Stop {
        self.why = Why::Fault(Fault { vector, error, cr2: 0 });
        Stop
    }

    /// #UD.
    #[cold]
    pub(crate) fn ud(&mut self) -> Stop {
        self.fault(6, None)
    }

    /// #GP with an error code.
    #[cold]
    pub(crate) fn gp(&mut self, error: u32) -> Stop {
        self.fault(13, Some(error))
    }

    /// #NM.
    #[cold]
    pub(crate) fn nm(&mut self) -> Stop {
        self.fault(7, None)
    }

    /// RIP of the instruction after `i`, before it is cut to the size of the code segment.
    #[inline(always)]
    pub(crate) fn next_rip(&self, i: &Insn) -> u64 {
        self.gpr[crate::insn::BLOCK as usize].wrapping_add(u64::from(i.next))
    }

    /// RIP of `i` itself.
    #[inline(always)]
    pub(crate) fn this_rip(&self, i: &Insn) -> u64 {
        self.next_rip(i).wrapping_sub(u64::from(i.len))
    }

    /// Whether the processor is in protected mode, virtual-8086 mode excluded.
    #[inline]
    pub(crate) fn protected(&self) -> bool {
        !self.mode.has(Mode::REAL)
    }

    /// Whether EFER.LMA is set.
    #[inline]
    pub(crate) fn lma(&self) -> bool {
        self.msr.efer & 1 << 10 != 0
    }
}

/// An unsigned integer of an operand size.
pub trait Int: Copy + Eq + Ord + Default + std::fmt::Debug + 'static {
    /// Width in bits.
    const BITS: u32;
    /// Width in bytes.
    const BYTES: u8;
    /// Truncates.
    fn from_u64(v: u64) -> Self;
    /// Zero-extends.
    fn to_u64(self) -> u64;
    /// Sign-extends.
    fn sext(self) -> u64;
}

macro_rules! int {
    ($($t:ty, $s:ty);*) => {$(
        impl Int for $t {
            const BITS: u32 = <$t>::BITS;
            const BYTES: u8 = (<$t>::BITS / 8) as u8;
            #[inline(always)]
            fn from_u64(v: u64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn sext(self) -> u64 {
                self as $s as i64 as u64
            }
        }
    )*};
}
int!(u8, i8; u16, i16; u32, i32; u64, i64);
