//! Floating point arithmetic of the x86: the x87 coprocessor and the SSE unit, in safe, portable code.
//!
//! Two front ends share one arithmetic core (`real.rs`): operands are unpacked to a sign, an exponent and a 128-bit
//! significand whose last bit is sticky, the operation is done there, and the result is rounded once to the target
//! format.
//!
//! * [`X87`] holds the control word during one instruction and collects the exception flags and C1. Its methods work
//!   on [`F80`], the 80-bit double extended format. Source: Intel SDM volume 1 chapter 8 and the instruction pages of
//!   volume 2. Where Intel and AMD parts are known to differ, Intel is followed (see the notes at the methods); where
//!   the manuals say nothing, an AMD Zen 4 part is.
//! * [`Sse`] holds MXCSR and the exceptions raised since the last [`Sse::finish`]. Its methods work on the bits of
//!   `f32` and `f64`. Source: Intel SDM volume 1 chapter 11. As long as nothing new can be signalled (all exceptions
//!   masked, PE already sticky, round to nearest, normal operands and result) they use the arithmetic of the host,
//!   which is the same for every IEEE 754 machine; anything else is computed here.
//!
//! Guests that look closely: memory testers and old kernels probe the x87 (FDIV check, FNSTSW after each operation,
//! BCD loads), Windows and the BSDs save and restore unmasked exceptions, and C libraries test MXCSR after arithmetic.
//!
//! Not modelled: the register stack, tags and instruction pointers of the x87 (the caller's work), and the exact
//! approximation tables of RCPPS and RSQRTPS, which differ from one processor to the next.

mod elementary;
mod f80;
mod real;
mod sse;
mod sse_convert;
mod transcendental;
mod x87_arith;
mod x87_convert;

#[cfg(all(test, target_arch = "x86_64"))]
mod host_tests;
#[cfg(test)]
mod tests;

pub use f80::{Class, Constant, F80, X87};
pub use real::Round;
pub use sse::{Predicate, Sse};
pub use x87_arith::Remainder;

/// Invalid operation. The six exception bits have the same place in the x87 status word, the masks of the control
/// word and MXCSR.
pub const IE: u8 = 1 << 0;
/// Denormal operand.
pub const DE: u8 = 1 << 1;
/// Division by zero.
pub const ZE: u8 = 1 << 2;
/// Overflow.
pub const OE: u8 = 1 << 3;
/// Underflow.
pub const UE: u8 = 1 << 4;
/// Precision: the result is not exact.
pub const PE: u8 = 1 << 5;
