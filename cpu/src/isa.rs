//! Which feature an instruction came with. On a processor without it the opcode is undefined.
//!
//! Source: the CPUID feature flag column of the Intel SDM volume 2, and AMD's volume 3 for its extensions to MMX. What
//! a feature needs in turn ([`Feature::needs`]) is not repeated: whoever has SSE2 has MMX.

use crate::feature::Feature::*;
use crate::feature::Features;
use crate::insn::{Dec, Mode};

/// RDPMC came with the Pentium MMX and the P6.
const RDPMC: Features = Features::of(&[Mmx, Cmov]);
/// The MMX instructions that SSE brought, which the K7 had before.
const MMXEXT: Features = Features::of(&[Sse, Mmxext]);
/// Prefetch hints are NOPs where there is nothing to prefetch for.
const PREFETCH: Features = Features::of(&[Nopl, Sse, Mmxext]);
/// Every 64-bit processor knows PREFETCHW, if only as a NOP.
const PREFETCHW: Features = Features::of(&[Lm, Prefetchw]);
/// Any of these has a bit in CR4.
const CR4: Features =
    Features::of(&[Vme, Tsc, De, Pse, Pae, Mce, Pge, Mmx, Cmov, Fxsr, Sse, Fsgsbase, Xsave, Smep, Smap]);

/// Whether a processor with these features has the instruction.
#[inline]
pub(crate) fn offered(d: &Dec, features: Features) -> bool {
    let any = came_with(d);
    any.is_empty() || any.meets(features)
}

/// The features any of which will do. Empty: the 386 had it.
fn came_with(d: &Dec) -> Features {
    let low = d.op as u8;
    match d.op {
        0x9e | 0x9f if d.mode.has(Mode::LONG) => Features::of(&[LahfLm]),
        0xda | 0xdb | 0xdd | 0xdf => x87(d),
        0x0f00..=0x0fff => two_bytes(d, low),
        0x38f0 | 0x38f1 => Features::of(&[Sse42]),
        0x3800..=0x38ff => Features::of(&[match low {
            0x00..=0x0b | 0x1c..=0x1e => Ssse3,
            0x37 => Sse42,
            _ => Sse41,
        }]),
        0x3a00..=0x3aff => Features::of(&[match low {
            0x0f => Ssse3,
            0x60..=0x63 => Sse42,
            _ => Sse41,
        }]),
        _ => Features::NONE,
    }
}

fn x87(d: &Dec) -> Features {
    match (d.op, d.mem, d.ext()) {
        // FISTTP.
        (0xdb | 0xdd | 0xdf, true, 1) => Features::of(&[Sse3]),
        // FCMOVcc; FUCOMI, FCOMI and the forms that pop.
        (0xda | 0xdb, false, 0..=3) | (0xdb | 0xdf, false, 5 | 6) => Features::of(&[Cmov]),
        _ => Features::NONE,
    }
}

fn two_bytes(d: &Dec, low: u8) -> Features {
    let prefixed = d.p66 || d.rep != 0;
    let feature = match low {
        0x01 => return group_7(d),
        0x05 | 0x07 => Syscall,
        // INVD, WBINVD, CMPXCHG, XADD, BSWAP.
        0x08 | 0x09 | 0xb0 | 0xb1 | 0xc0 | 0xc1 | 0xc8..=0xcf => I486,
        0x0d => return PREFETCHW,
        0x18 => return PREFETCH,
        0x19..=0x1f => Nopl,
        0x20 | 0x22 if d.ext() == 4 => return CR4,
        0x30 | 0x32 => Msr,
        0x31 => Tsc,
        0x33 => return RDPMC,
        0x34 | 0x35 => Sep,
        0x40..=0x4f => Cmov,
        0x10..=0x17 | 0x28..=0x2f | 0x50..=0x5f | 0xc2 | 0xc6 => float(d, low),
        0x7c | 0x7d | 0xd0 | 0xf0 => Sse3,
        0xa2 => Cpuid,
        0xae => return group_15(d),
        0xb8 => Popcnt,
        // MOVNTI.
        0xc3 => Sse2,
        0xc7 if d.ext() == 1 && d.rex & 8 != 0 => Cx16,
        0xc7 if d.ext() == 1 => Cx8,
        0x60..=0x7f | 0xc4 | 0xc5 | 0xd1..=0xfe if prefixed => Sse2,
        // MOVQ2DQ and the conversions have prefixes; PADDQ, PMULUDQ and PSUBQ were new.
        0xd4 | 0xd6 | 0xe6 | 0xf4 | 0xfb => Sse2,
        0x70 | 0xc4 | 0xc5 | 0xd7 | 0xda | 0xde | 0xe0 | 0xe3 | 0xe4 | 0xe7 | 0xea | 0xee | 0xf6 | 0xf7 => {
            return MMXEXT;
        }
        0x60..=0x7f | 0xd1..=0xfe => Mmx,
        _ => return Features::NONE,
    };
    Features::of(&[feature])
}

/// INVLPG, and those that have a ModRM byte to themselves.
fn group_7(d: &Dec) -> Features {
    Features::of(&[match d.modrm {
        _ if d.mem && d.ext() == 7 => I486,
        0xca | 0xcb => Smap,
        0xd0 | 0xd1 => Xsave,
        0xf8 => Lm,
        0xf9 => Rdtscp,
        _ => return Features::NONE,
    }])
}

/// FXSAVE and what else there is in its group.
fn group_15(d: &Dec) -> Features {
    Features::of(&[match (d.mem, d.ext()) {
        (true, 0 | 1) => Fxsr,
        (true, 2 | 3) => Sse,
        (true, 4 | 5) => Xsave,
        (true, _) => Clflush,
        (false, _) if d.rep == 0xf3 => Fsgsbase,
        (false, 7) => return MMXEXT,
        (false, _) => Sse2,
    }])
}

/// Moves, conversions and arithmetic on floating point numbers: 66 and F2 stand for doubles.
fn float(d: &Dec, low: u8) -> crate::feature::Feature {
    match (low, d.rep) {
        (0x12, 0xf2 | 0xf3) | (0x16, 0xf3) => Sse3,
        (0x5a | 0x5b, _) | (_, 0xf2) => Sse2,
        (_, 0) if d.p66 => Sse2,
        _ => Sse,
    }
}
