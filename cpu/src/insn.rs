//! A decoded instruction.

use crate::state::Cpu;

/// An instruction did not complete; [`Cpu::stop`] says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop;

/// What a handler returns.
pub type Res<T = ()> = Result<T, Stop>;

/// Executes an instruction, and those behind it up to the end of their run; see [`go_on`].
pub type Handler = fn(&mut Cpu, &Insn) -> Res;

/// A decoded instruction: half a cache line.
///
/// Register numbers are indices into [`Cpu::gpr`]: 0 to 15 the architectural ones, [`ZERO`], [`BLOCK`] and [`NEXT`]. An
/// 8-bit operand that is AH, CH, DH or BH is 0x80 + (0 to 3). For x87, MMX and SSE operands the numbers are those of
/// the respective file; segment, control and debug registers likewise.
///
/// The address of a memory operand is `gpr[base] + (gpr[index] << scale) + disp`, cut to the address size, in segment
/// `seg`. There is always a base and an index, if only [`ZERO`]. RIP-relative operands have base [`BLOCK`] and a
/// displacement that counts from the start of the block.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Insn {
    /// The function that executes it.
    pub exec: Handler,
    /// Immediate, sign-extended to 64 bits where the instruction does so. Far pointers: offset | selector << 32. ENTER:
    /// size | level << 16. Near branches: displacement of the target from the start of the *next* instruction.
    pub imm: u64,
    /// Displacement of the memory operand.
    pub disp: i32,
    /// Base register of the memory operand.
    pub base: u8,
    /// Index register of the memory operand.
    pub index: u8,
    /// Shift of the index, 0 to 3.
    pub scale: u8,
    /// Segment of the memory operand: [`ES`] to [`GS`].
    pub seg: u8,
    /// The register operand (ModRM.reg, or the one in the opcode).
    pub reg: u8,
    /// The register in ModRM.rm, when it is one.
    pub rm: u8,
    /// Bytes.
    pub len: u8,
    /// The constants below.
    pub flags: u8,
    /// Where the next instruction starts, counted from the start of the block.
    pub next: u16,
    /// The opcode: 0x00xx one byte, 0x0Fxx two bytes, 0x38xx and 0x3Axx the three-byte maps. For traces and fusing.
    pub op: u16,
}

const _: () = assert!(size_of::<Insn>() == 32);

/// Mask of [`Insn::flags`]: address size, 0 for 16 bits, 1 for 32, 2 for 64.
pub const ASIZE: u8 = 0x03;
/// REP or REPE (F3).
pub const REP: u8 = 0x04;
/// REPNE (F2).
pub const REPNE: u8 = 0x08;
/// The instruction ends a block: it may transfer control, change what follows means, or must be seen by the run loop.
pub const END: u8 = 0x10;
/// The handler executes but this one instruction, where others go on with the next.
pub const PLAIN: u8 = 0x20;
/// Shift of the operand size in [`Insn::flags`], 0 for 16 bits, 1 for 32, 2 for 64 (of what is not in the handler's
/// type).
pub const OSIZE_SHIFT: u32 = 6;

/// [`Insn::op`] of what stands between instructions and is none.
const NONE: u16 = 0xffff;

impl Insn {
    /// Behind the last instruction of a run that does not end it by itself.
    pub(crate) const DONE: Insn = Insn {
        exec: done,
        imm: 0,
        disp: 0,
        base: ZERO,
        index: ZERO,
        scale: 0,
        seg: DS,
        reg: 0,
        rm: 0,
        len: 0,
        flags: END,
        next: 0,
        op: NONE,
    };

    /// Before an instruction whose handler is [`PLAIN`].
    pub(crate) const RELAY: Insn = Insn { exec: relay, ..Insn::DONE };

    /// Before the last instruction of a run if it may touch devices.
    pub(crate) const GATE: Insn = Insn { exec: gate, ..Insn::DONE };

    /// Whether this is an instruction of the guest's.
    pub(crate) fn is_real(&self) -> bool {
        self.op != NONE
    }

    /// Executes this instruction alone.
    pub(crate) fn execute(self, cpu: &mut Cpu) -> Res {
        let run = [self, Insn::DONE];
        run.as_ptr().expose_provenance();
        let done = (run[0].exec)(cpu, &run[0]);
        cpu.stopped = 0;
        done
    }

    /// The instruction behind this one in its run.
    #[inline(always)]
    #[expect(unsafe_code, reason = "dispatch without a bounds check")]
    pub(crate) fn following(&self) -> &Insn {
        let here = std::ptr::from_ref(self).addr();
        // SAFETY: instructions are executed in arrays alone, whose provenance is exposed, and an array's last handler
        // does not ask for the next.
        unsafe { &*std::ptr::with_exposed_provenance(here + size_of::<Insn>()) }
    }
}

/// Ends a handler by executing the next instruction. In an optimised build this is a jump; in any other the stack
/// grows, but not beyond the frames of the few instructions that a block has.
#[inline(always)]
pub(crate) fn go_on(cpu: &mut Cpu, i: &Insn) -> Res {
    let next = i.following();
    (next.exec)(cpu, next)
}

/// Ends a handler that could not complete.
#[cold]
#[inline(never)]
pub(crate) fn stop_at(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.stopped = std::ptr::from_ref(i).addr();
    // A compiler that knows the result would not jump here but call, and save registers for that in every handler.
    std::hint::black_box(Err(Stop))
}

fn done(_: &mut Cpu, _: &Insn) -> Res {
    Ok(())
}

/// Executes the instruction behind it and goes on.
fn relay(cpu: &mut Cpu, i: &Insn) -> Res {
    let plain = i.following();
    match (plain.exec)(cpu, plain) {
        Ok(()) => go_on(cpu, plain),
        Err(_) => stop_at(cpu, plain),
    }
}

/// Executes the instruction behind it, which may touch devices: it sees the time.
fn gate(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.may_io = true;
    cpu.publish_clock();
    go_on(cpu, i)
}

/// Makes handlers that go on with the next instruction.
macro_rules! chains {
    ($(
        $(#[$doc:meta])*
        fn $name:ident$(<$($p:ident: $bound:ident),*>)?($cpu:pat, $i:pat) $body:block
    )*) => {$(
        $(#[$doc])*
        fn $name$(<$($p: $bound),*>)?(cpu: &mut $crate::state::Cpu, i: &$crate::insn::Insn) -> $crate::insn::Res {
            #[inline(always)]
            fn body$(<$($p: $bound),*>)?($cpu: &mut $crate::state::Cpu, $i: &$crate::insn::Insn) -> $crate::insn::Res
                $body

            match body$(::<$($p),*>)?(cpu, i) {
                Ok(()) => $crate::insn::go_on(cpu, i),
                Err(_) => $crate::insn::stop_at(cpu, i),
            }
        }
    )*};
}

pub(crate) use chains;

/// The register that is always 0.
pub const ZERO: u8 = 16;
/// The register that holds RIP at the start of the block.
pub const BLOCK: u8 = 17;
/// A scratch register that a zero-length pseudo instruction can set, for displacements that do not fit.
pub const NEXT: u8 = 18;
/// The register that is always 2 GiB: the index of RIP-relative operands whose displacement does not reach that far.
pub const HALF: u8 = 19;

/// Segment register numbers as ModRM.reg encodes them.
pub const ES: u8 = 0;
/// Code segment.
pub const CS: u8 = 1;
/// Stack segment.
pub const SS: u8 = 2;
/// Data segment.
pub const DS: u8 = 3;
/// FS.
pub const FS: u8 = 4;
/// GS.
pub const GS: u8 = 5;

/// General register numbers.
pub const RAX: u8 = 0;
/// RCX.
pub const RCX: u8 = 1;
/// RDX.
pub const RDX: u8 = 2;
/// RBX.
pub const RBX: u8 = 3;
/// RSP.
pub const RSP: u8 = 4;
/// RBP.
pub const RBP: u8 = 5;
/// RSI.
pub const RSI: u8 = 6;
/// RDI.
pub const RDI: u8 = 7;

/// What the decoder must know of the processor's mode; part of the key of cached blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Mode(pub u8);

impl Mode {
    /// 64-bit code (CS.L under EFER.LMA).
    pub const LONG: u8 = 1;
    /// CS.D: 32-bit operands and addresses.
    pub const D32: u8 = 2;
    /// SS.B (or 64-bit mode): the stack pointer is more than SP.
    pub const STACK32: u8 = 4;
    /// ES, CS, SS and DS have base 0 and limit 4 GiB (always so in 64-bit code).
    pub const FLAT: u8 = 8;
    /// Real-address or virtual-8086 mode.
    pub const REAL: u8 = 16;
    /// EFLAGS.VM.
    pub const V86: u8 = 32;
    /// CPL 3.
    pub const USER: u8 = 64;

    /// Whether the bit is set.
    #[inline]
    pub fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

/// What the decoder found beside the [`Insn`]; the selectors of the instruction families choose a handler by it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dec {
    /// The mode that the bytes were decoded in.
    pub mode: Mode,
    /// Opcode, as [`Insn::op`].
    pub op: u16,
    /// Operand size: 0 for 16 bits, 1 for 32, 2 for 64 (default, 66 and REX.W applied; 64-bit defaults of PUSH and near
    /// branches are the selector's business).
    pub osize: u8,
    /// Address size: 0 for 16 bits, 1 for 32, 2 for 64.
    pub asize: u8,
    /// The REX prefix, 0 if there is none.
    pub rex: u8,
    /// There is a 66 prefix.
    pub p66: bool,
    /// The last of F2 and F3, or 0.
    pub rep: u8,
    /// There is a LOCK prefix.
    pub lock: bool,
    /// A segment prefix, or 0xff.
    pub segment: u8,
    /// The ModRM byte.
    pub modrm: u8,
    /// ModRM names memory.
    pub mem: bool,
}

impl Dec {
    /// ModRM.reg without REX: the opcode extension of groups.
    pub fn ext(&self) -> u8 {
        self.modrm >> 3 & 7
    }
}

/// A selector: sets the handler and what else of the [`Insn`] depends on the instruction ([`END`], register codes of
/// 8-bit operands). `None` is #UD.
pub type Select = fn(&mut Insn, &Dec) -> Option<Handler>;
