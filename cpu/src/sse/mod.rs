//! MMX, and SSE up to SSE4.2.
//!
//! Source: Intel SDM volume 1 chapters 9 to 12, volume 2 for the instructions. Integer operations are done on 64-bit
//! words ([`lanes`]), one for an MMX register and two for an XMM register, so most have a single definition. Arithmetic
//! on floating point numbers is in [`crate::softfloat`], which uses the host's where MXCSR cannot tell the difference.
//!
//! Which of the up to four instructions of an opcode is meant follows from the prefixes: F2 and F3 before 66.
//! Combinations that name no instruction are #UD. So are SSE4a, AES, PCLMULQDQ, SHA and AVX, which are not offered.
//!
//! Memory operands of 16 bytes must be aligned (#GP(0)) but for the moves that say otherwise and PCMPxSTRx. MMX
//! instructions report pending x87 exceptions, and leave no x87 register empty and TOP 0.
//!
//! Kernels and C libraries use the moves, logic, PCMPEQB and PMOVMSKB all the time; hash functions PADDD, shifts and
//! shuffles; these have a handler for each way of addressing.

/// What every instruction with XMM registers begins with. It leaves by a jump, so that handlers keep no stack frame for
/// it.
macro_rules! enter {
    ($cpu:expr) => {
        if $cpu.sse_off() {
            return $cpu.sse_refused();
        }
    };
}

/// Handlers that come in a quick form, which may give up without having done anything and is followed by the sure one.
/// The body must change nothing before the last thing in it that can fail.
macro_rules! handlers {
    ($(
        $(#[$doc:meta])*
        fn $name:ident<
            $($o:ident: $bound:ident,)? @ $p:ident: $place:ident $(, $t:ident: $int:ident)? $(; const $c:ident: bool)?
        >($cpu:ident, $i:ident) $body:block
    )*) => {$(
        $(#[$doc])*
        #[inline(never)]
        pub(super) fn $name<$($o: $bound,)? $p: $place $(, $t: $int)? $(, const $c: bool)?>(
            cpu: &mut Cpu,
            i: &Insn,
        ) -> Res {
            #[inline(always)]
            fn body<$($o: $bound,)? $p: $place $(, $t: $int)? $(, const $c: bool)?>($cpu: &mut Cpu, $i: &Insn) -> Res
                $body

            if $p::QUICK {
                if !cpu.sse_off() && body::<$($o,)? $p $(, $t)? $(, $c)?>(cpu, i).is_ok() {
                    return Ok(());
                }
                return $name::<$($o,)? $crate::exec::Gen $(, $t)? $(, $c)?>(cpu, i);
            }
            enter!(cpu);
            body::<$($o,)? $p $(, $t)? $(, $c)?>(cpu, i)
        }
    )*};
}

mod convert;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod diff;
mod float;
mod imm;
mod int;
mod lanes;
mod mov;
mod operand;
mod partial;
mod select;
mod string;
#[cfg(test)]
mod tests;

use crate::fpu::{CR0_EM, CR0_TS};
use crate::insn::{Res, Stop};
use crate::softfloat::Sse;
use crate::state::Cpu;

pub(crate) use select::select;

/// CR4: the system saves the XMM registers with FXSAVE; it handles #XM.
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;

impl Cpu {
    /// Whether the XMM registers are out of reach.
    #[inline(always)]
    fn sse_off(&self) -> bool {
        self.cr0 & (CR0_EM | CR0_TS) | !self.cr4 & CR4_OSFXSR != 0
    }

    /// #UD or #NM.
    #[cold]
    #[inline(never)]
    fn sse_refused(&mut self) -> Res {
        let fault = if self.cr0 & CR0_EM != 0 || self.cr4 & CR4_OSFXSR == 0 { self.ud() } else { self.nm() };
        // A compiler that knows the result would not jump here but call, and save registers for that in every handler.
        std::hint::black_box(Err(fault))
    }

    /// For instructions of other families.
    pub(crate) fn sse(&mut self) -> Res {
        if self.sse_off() { self.sse_refused() } else { Ok(()) }
    }

    /// Ends arithmetic: MXCSR takes its exceptions. An error means that the destination must not be written.
    #[inline(always)]
    fn settle(&mut self, mut s: Sse) -> Res {
        let fault = s.finish();
        self.fpu.mxcsr = s.mxcsr;
        if fault { Err(self.xm()) } else { Ok(()) }
    }

    /// #XM, or #UD for a system that does not know it.
    #[cold]
    fn xm(&mut self) -> Stop {
        if self.cr4 & CR4_OSXMMEXCPT != 0 { self.fault(19, None) } else { self.ud() }
    }
}
