//! A software x86 processor: 8086 to x86-64-v2, from real mode to long mode, with its local APIC.
//!
//! No operating system, no knowledge of devices: the processor sees a [`emu::CpuBus`], a [`emu::Clock`] and guest
//! memory. It is used three times: as the `soft` back end; as the executor of single instructions that a hypervisor
//! hands to user space; and in tests as an oracle and as the subject of comparison with the host's own processor.
//!
//! An instruction is decoded once into an [`insn::Insn`] of 32 bytes, half a cache line, whose first word is the
//! function that executes it. The plain interpreter ([`Cpu::step`]) decodes and calls one at a time, for ever as an
//! oracle. The engine ([`engine`]) caches runs of decoded instructions by the memory they came from. Both call the same
//! handlers.
//!
//! # How handlers are written
//! * `fn(&mut Cpu, &Insn) -> Res`. `Err(Stop)` means that an instruction did not complete and that [`Cpu::why`] says
//!   why.
//! * Those of the integer family that do not end a block end by executing the next instruction ([`insn::chains`] and
//!   `exec::hit::quick` see to it). The others do their own work only ([`insn::PLAIN`]), or end a block.
//! * Restartable: compute, touch memory (may fault), and only then write registers and flags. Where two memory operands
//!   are written, probe first.
//! * `cpu.rip` already points behind the block when a handler runs; only handlers that end a block (`END`) may write
//!   it. The address of the next instruction is [`Cpu::next_rip`].
//! * Memory is reached by linear address with [`Cpu::load`], [`Cpu::store`] and [`Cpu::load_rmw`]; guest RAM is never
//!   borrowed.

mod control;
mod cpuid;
mod debug;
mod debugger;
mod decode;
#[cfg(test)]
mod difftest;
mod engine;
mod exec;
mod feature;
mod flags;
mod fpu;
mod gates;
mod insn;
mod intr;
mod io;
mod isa;
mod lapic;
mod mem;
mod model;
mod monitor;
mod msr;
mod regs;
mod report;
mod run;
mod seg;
mod single;
pub mod softfloat;
mod sse;
mod state;
mod sys;
#[cfg(test)]
mod systests;
mod tables;
mod task;
mod tlb;
mod walk;

pub use cpuid::Leaf;
pub use debugger::{Stop, Wants, Watch};
pub use engine::Engine;
pub use feature::{Feature, Features};
pub use fpu::ErrorPins;
pub use lapic::{ApicBus, Lapic, LapicState, Message};
pub use model::{Cache, Caches, Model};
pub use monitor::Intercept;
pub use regs::Regs;
pub use report::{code, last_exits};
pub use run::{Exit, NS_PER_INSN};
pub use single::{CodeSize, Context, Decoded, Done, Executor, Transfer};
pub use state::{Cpu, Fault, Msrs, Segment, Table};
pub use task::TaskSwitch;
