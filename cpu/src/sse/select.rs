//! Which function executes which MMX or SSE opcode.

use super::convert::{
    cvtdq2pd, cvtdq2ps, cvtpd2dq, cvtpd2pi, cvtpd2ps, cvtpi2pd, cvtpi2ps, cvtpi2ps_mem, cvtps2dq, cvtps2pd, cvtps2pi,
    cvtsd2si, cvtsd2ss, cvtsi2sd, cvtsi2ss, cvtss2sd, cvtss2si, cvttpd2dq, cvttps2dq,
};
use super::float::{self, approximate_ps, approximate_ss, combine, comisd, comiss, pd, ps, sd, ss};
use super::imm::{
    Alignr, Blendpd, Blendps, Blendw, Mpsadbw, Shufd, Shufhw, Shuflw, Shufpd, Shufps, blendv, insertps, insertps_mem,
    mm_palignr, pshufw, xmm_imm,
};
use super::int::*;
use super::mov::*;
use super::operand::{Hit, Reg};
use super::partial::{
    extract, extract_mem, insert, insert_mem, mm_pextrw, mm_pinsrw, mm_pinsrw_mem, pextrw, ptest, widen,
};
use super::string::pcmpstr;
use crate::exec::{self, Base, Flat, Gen, Kind, kind};
use crate::insn::{Dec, Handler, Insn, PLAIN, RDI, ZERO};

/// `f::<P.., place, T..>` for the operand that ModRM.rm names, with a handler of its own for each way of addressing.
macro_rules! at {
    ($i:expr, $d:expr, $f:ident $(, $p:ty)* $(; $($t:tt)+)?) => {
        match kind($i, $d) {
            Kind::Reg => $f::<$($p,)* Reg $(, $($t)+)?> as Handler,
            Kind::Base => $f::<$($p,)* Hit<Base> $(, $($t)+)?>,
            Kind::Flat => $f::<$($p,)* Hit<Flat> $(, $($t)+)?>,
            Kind::Gen => $f::<$($p,)* Gen $(, $($t)+)?>,
        }
    };
}

/// The same for instructions that are rare: memory is addressed in the general way.
macro_rules! rare {
    ($d:expr, $f:ident $(, $p:ty)* $(; $($t:tt)+)?) => {
        if $d.mem { $f::<$($p,)* Gen $(, $($t)+)?> as Handler } else { $f::<$($p,)* Reg $(, $($t)+)?> }
    };
}

/// The same for memory alone.
macro_rules! memory {
    ($i:expr, $d:expr, $f:ident $(; $($t:tt)+)?) => {
        match kind($i, $d) {
            Kind::Reg => return None,
            Kind::Base => $f::<Hit<Base> $(, $($t)+)?> as Handler,
            Kind::Flat => $f::<Hit<Flat> $(, $($t)+)?>,
            Kind::Gen => $f::<Gen $(, $($t)+)?>,
        }
    };
}

/// Which of the instructions of an opcode the prefixes choose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Prefix {
    None,
    P66,
    F3,
    F2,
}

fn prefix(d: &Dec) -> Prefix {
    match d.rep {
        0xf3 => Prefix::F3,
        0xf2 => Prefix::F2,
        _ if d.p66 => Prefix::P66,
        _ => Prefix::None,
    }
}

/// Picks the handler of an MMX or SSE instruction.
pub(crate) fn select(i: &mut Insn, d: &Dec) -> Option<Handler> {
    i.flags |= PLAIN;
    match d.op {
        0x0f10..=0x0f17 | 0x0f28 | 0x0f29 | 0x0f2b | 0x0f50 | 0x0f6e | 0x0f6f | 0x0f7e | 0x0f7f => moves(i, d),
        0x0fd6 | 0x0fd7 | 0x0fe7 | 0x0ff0 | 0x0ff7 => moves(i, d),
        0x0f2a | 0x0f2c | 0x0f2d | 0x0f5a | 0x0f5b | 0x0fe6 => conversion(d),
        0x0f2e | 0x0f2f | 0x0f51..=0x0f59 | 0x0f5c..=0x0f5f | 0x0f7c | 0x0f7d | 0x0fc2 | 0x0fd0 => arithmetic(i, d),
        0x0f70..=0x0f73 | 0x0fc4..=0x0fc6 => shuffle(i, d),
        0x0f60..=0x0fff => integer(i, d),
        0x3800..=0x38ff => map38(i, d),
        0x3a00..=0x3aff => map3a(i, d),
        _ => None,
    }
}

fn moves(i: &mut Insn, d: &Dec) -> Option<Handler> {
    use Prefix::{F2, F3, None as Plain, P66};
    let (p, w, mem) = (prefix(d), d.rex & 8 != 0, d.mem);
    Some(match (d.op & 0xff, p) {
        (0x10, Plain | P66) | (0x6f, F3) => at!(i, d, load_any),
        (0x11, Plain | P66) | (0x7f, F3) if mem => memory!(i, d, store16; false),
        (0x11, Plain | P66) | (0x29, Plain | P66) | (0x7f, P66 | F3) if !mem => store_reg,
        (0x10, F3) if mem => memory!(i, d, load_low; u32),
        (0x10, F2) if mem => memory!(i, d, load_low; u64),
        (0x11, F3) if mem => memory!(i, d, store_low; u32),
        (0x11, F2) | (0x13, Plain | P66) | (0xd6, P66) if mem => memory!(i, d, store_low; u64),
        (0x10, F3) => movss,
        (0x10, F2) => movsd,
        (0x11, F3) => movss_store,
        (0x11, F2) => movsd_store,
        (0x12, Plain | P66) if mem => memory!(i, d, load_half; false),
        (0x12, Plain) => movhlps,
        (0x12, F3) => rare!(d, xmm_op, Movsldup),
        (0x12, F2) => rare!(d, movddup),
        (0x14, Plain) => at!(i, d, xmm_op, Unpckldq),
        (0x14, P66) => at!(i, d, xmm_op, Unpcklqdq),
        (0x15, Plain) => at!(i, d, xmm_op, Unpckhdq),
        (0x15, P66) => at!(i, d, xmm_op, Unpckhqdq),
        (0x16, Plain | P66) if mem => memory!(i, d, load_half; true),
        (0x16, Plain) => movlhps,
        (0x16, F3) => rare!(d, xmm_op, Movshdup),
        (0x17, Plain | P66) if mem => memory!(i, d, store_high),
        (0x28, Plain | P66) | (0x6f, P66) => at!(i, d, load_aligned),
        (0x29 | 0x2b, Plain | P66) | (0x7f | 0xe7, P66) if mem => memory!(i, d, store16; true),
        (0x50, Plain) if !mem => movmskps,
        (0x50, P66) if !mem => movmskpd,

        (0x6e, Plain) => match (mem, w) {
            (true, true) => mm_load::<u64>,
            (true, false) => mm_load::<u32>,
            (false, true) => mm_from_gpr::<u64>,
            (false, false) => mm_from_gpr::<u32>,
        },
        (0x6e, P66) => match (mem, w) {
            (true, true) => memory!(i, d, load_low; u64),
            (true, false) => memory!(i, d, load_low; u32),
            (false, true) => from_gpr::<u64>,
            (false, false) => from_gpr::<u32>,
        },
        (0x7e, Plain) => match (mem, w) {
            (true, true) => mm_store::<u64>,
            (true, false) => mm_store::<u32>,
            (false, true) => mm_to_gpr::<u64>,
            (false, false) => mm_to_gpr::<u32>,
        },
        (0x7e, P66) => match (mem, w) {
            (true, true) => memory!(i, d, store_low; u64),
            (true, false) => memory!(i, d, store_low; u32),
            (false, true) => to_gpr::<u64>,
            (false, false) => to_gpr::<u32>,
        },
        (0x7e, F3) => at!(i, d, load_low; u64),
        (0x6f, Plain) if mem => mm_load::<u64>,
        (0x6f, Plain) => mm_move::<false>,
        (0x7f, Plain) if !mem => mm_move::<true>,
        (0x7f | 0xe7, Plain) if mem => mm_store::<u64>,
        (0xd6, P66) => movq_store,
        (0xd6, F3) if !mem => movq2dq,
        (0xd6, F2) if !mem => movdq2q,
        (0xd7, Plain) if !mem => mm_pmovmskb,
        (0xd7, P66) if !mem => pmovmskb,
        (0xf0, F2) if mem => memory!(i, d, load_any),
        (0xf7, Plain | P66) if !mem => {
            // The destination is not in ModRM; the segment, if a prefix named one, is in place.
            (i.base, i.index, i.disp) = (RDI, ZERO, 0);
            if p == P66 { maskmovdqu } else { maskmovq }
        }
        _ => return None,
    })
}

fn conversion(d: &Dec) -> Option<Handler> {
    use Prefix::{F2, F3, None as Plain, P66};
    /// Conversions that involve a general register have a 64-bit form.
    macro_rules! gpr {
        ($f:ident $(; $t:literal)?) => {
            if d.rex & 8 != 0 { rare!(d, $f; $($t,)? true) } else { rare!(d, $f; $($t,)? false) }
        };
    }
    macro_rules! from_gpr {
        ($f:ident) => {
            match (d.mem, d.rex & 8 != 0) {
                (true, true) => $f::<Gen, true> as Handler,
                (true, false) => $f::<Gen, false>,
                (false, true) => $f::<exec::Reg, true>,
                (false, false) => $f::<exec::Reg, false>,
            }
        };
    }
    Some(match (d.op & 0xff, prefix(d)) {
        (0x2a, Plain) if d.mem => cvtpi2ps_mem,
        (0x2a, Plain) => cvtpi2ps,
        // From memory it has nothing to do with MMX registers.
        (0x2a, P66) if d.mem => cvtdq2pd::<Gen>,
        (0x2a, P66) => cvtpi2pd,
        (0x2a, F3) => from_gpr!(cvtsi2ss),
        (0x2a, F2) => from_gpr!(cvtsi2sd),
        (0x2c, Plain) => rare!(d, cvtps2pi; true),
        (0x2c, P66) => rare!(d, cvtpd2pi; true),
        (0x2c, F3) => gpr!(cvtss2si; true),
        (0x2c, F2) => gpr!(cvtsd2si; true),
        (0x2d, Plain) => rare!(d, cvtps2pi; false),
        (0x2d, P66) => rare!(d, cvtpd2pi; false),
        (0x2d, F3) => gpr!(cvtss2si; false),
        (0x2d, F2) => gpr!(cvtsd2si; false),
        (0x5a, Plain) => rare!(d, cvtps2pd),
        (0x5a, P66) => rare!(d, cvtpd2ps),
        (0x5a, F3) => rare!(d, cvtss2sd),
        (0x5a, F2) => rare!(d, cvtsd2ss),
        (0x5b, Plain) => rare!(d, cvtdq2ps),
        (0x5b, P66) => rare!(d, cvtps2dq),
        (0x5b, F3) => rare!(d, cvttps2dq),
        (0xe6, P66) => rare!(d, cvttpd2dq),
        (0xe6, F3) => rare!(d, cvtdq2pd),
        (0xe6, F2) => rare!(d, cvtpd2dq),
        _ => return None,
    })
}

/// The four forms of an operation.
macro_rules! four {
    ($i:expr, $d:expr, $o:ty) => {
        match prefix($d) {
            Prefix::None => at!($i, $d, ps, $o),
            Prefix::P66 => at!($i, $d, pd, $o),
            Prefix::F3 => at!($i, $d, ss, $o),
            Prefix::F2 => at!($i, $d, sd, $o),
        }
    };
}

fn arithmetic(i: &Insn, d: &Dec) -> Option<Handler> {
    use Prefix::{F2, F3, None as Plain, P66};
    let p = prefix(d);
    Some(match (d.op & 0xff, p) {
        (0x2e, Plain) => at!(i, d, comiss; true),
        (0x2e, P66) => at!(i, d, comisd; true),
        (0x2f, Plain) => at!(i, d, comiss; false),
        (0x2f, P66) => at!(i, d, comisd; false),
        (0x51, _) => four!(i, d, float::Sqrt),
        (0x52, Plain) => rare!(d, approximate_ps; true),
        (0x52, F3) => rare!(d, approximate_ss; true),
        (0x53, Plain) => rare!(d, approximate_ps; false),
        (0x53, F3) => rare!(d, approximate_ss; false),
        (0x54, Plain | P66) => at!(i, d, xmm_op, And),
        (0x55, Plain | P66) => at!(i, d, xmm_op, Andn),
        (0x56, Plain | P66) => at!(i, d, xmm_op, Or),
        (0x57, Plain | P66) => at!(i, d, xmm_op, Xor),
        (0x58, _) => four!(i, d, float::Add),
        (0x59, _) => four!(i, d, float::Mul),
        (0x5c, _) => four!(i, d, float::Sub),
        (0x5d, _) => four!(i, d, float::Min),
        (0x5e, _) => four!(i, d, float::Div),
        (0x5f, _) => four!(i, d, float::Max),
        (0x7c, P66) => rare!(d, combine, float::Haddpd),
        (0x7c, F2) => rare!(d, combine, float::Haddps),
        (0x7d, P66) => rare!(d, combine, float::Hsubpd),
        (0x7d, F2) => rare!(d, combine, float::Hsubps),
        (0xc2, _) => four!(i, d, float::Cmp),
        (0xd0, P66) => rare!(d, combine, float::Addsubpd),
        (0xd0, F2) => rare!(d, combine, float::Addsubps),
        _ => return None,
    })
}

fn shuffle(i: &Insn, d: &Dec) -> Option<Handler> {
    use Prefix::{F2, F3, None as Plain, P66};
    let p = prefix(d);
    Some(match (d.op & 0xff, p, d.ext()) {
        (0x70, Plain, _) => rare!(d, pshufw),
        (0x70, P66, _) => at!(i, d, xmm_imm, Shufd),
        (0x70, F3, _) => rare!(d, xmm_imm, Shufhw),
        (0x70, F2, _) => rare!(d, xmm_imm, Shuflw),
        (0x71..=0x73, Plain | P66, _) if !d.mem => return shift(d, p == P66),
        (0xc4, Plain, _) => {
            if d.mem {
                mm_pinsrw_mem
            } else {
                mm_pinsrw
            }
        }
        (0xc4, P66, _) => {
            if d.mem {
                insert_mem::<u16>
            } else {
                insert::<u16>
            }
        }
        (0xc5, Plain, _) if !d.mem => mm_pextrw,
        (0xc5, P66, _) if !d.mem => pextrw,
        (0xc6, Plain, _) => at!(i, d, xmm_imm, Shufps),
        (0xc6, P66, _) => at!(i, d, xmm_imm, Shufpd),
        _ => return None,
    })
}

/// Shifts by an immediate: groups 12 to 14.
fn shift(d: &Dec, xmm: bool) -> Option<Handler> {
    macro_rules! by {
        ($o:ty) => {
            if xmm { xmm_shift::<$o> as Handler } else { mm_shift::<$o> }
        };
    }
    Some(match (d.op & 0xff, d.ext()) {
        (0x71, 2) => by!(Srlw),
        (0x71, 4) => by!(Sraw),
        (0x71, 6) => by!(Sllw),
        (0x72, 2) => by!(Srld),
        (0x72, 4) => by!(Srad),
        (0x72, 6) => by!(Slld),
        (0x73, 2) => by!(Srlq),
        (0x73, 6) => by!(Sllq),
        (0x73, 3) if xmm => shift_bytes::<false>,
        (0x73, 7) if xmm => shift_bytes::<true>,
        _ => return None,
    })
}

/// Operations of both register files.
macro_rules! both {
    ($i:expr, $d:expr, $o:ty) => {
        if $d.p66 { at!($i, $d, xmm_op, $o) } else { rare!($d, mm_op, $o) }
    };
}

fn integer(i: &Insn, d: &Dec) -> Option<Handler> {
    if d.rep != 0 {
        return None;
    }
    // The MMX forms that take the lower half of their operand read but that from memory.
    macro_rules! low {
        ($o:ty) => {
            if d.mem && !d.p66 { mm_op_m32::<$o, Gen> } else { both!(i, d, $o) }
        };
    }
    Some(match d.op & 0xff {
        0x60 => low!(Unpcklbw),
        0x61 => low!(Unpcklwd),
        0x62 => low!(Unpckldq),
        0x63 => both!(i, d, Packsswb),
        0x64 => both!(i, d, Cmpgtb),
        0x65 => both!(i, d, Cmpgtw),
        0x66 => both!(i, d, Cmpgtd),
        0x67 => both!(i, d, Packuswb),
        0x68 => both!(i, d, Unpckhbw),
        0x69 => both!(i, d, Unpckhwd),
        0x6a => both!(i, d, Unpckhdq),
        0x6b => both!(i, d, Packssdw),
        0x6c if d.p66 => at!(i, d, xmm_op, Unpcklqdq),
        0x6d if d.p66 => at!(i, d, xmm_op, Unpckhqdq),
        0x74 => both!(i, d, Cmpeqb),
        0x75 => both!(i, d, Cmpeqw),
        0x76 => both!(i, d, Cmpeqd),
        0xd1 => both!(i, d, Srlw),
        0xd2 => both!(i, d, Srld),
        0xd3 => both!(i, d, Srlq),
        0xd4 => both!(i, d, Addq),
        0xd5 => both!(i, d, Mullw),
        0xd8 => both!(i, d, Subusb),
        0xd9 => both!(i, d, Subusw),
        0xda => both!(i, d, Minub),
        0xdb => both!(i, d, And),
        0xdc => both!(i, d, Addusb),
        0xdd => both!(i, d, Addusw),
        0xde => both!(i, d, Maxub),
        0xdf => both!(i, d, Andn),
        0xe0 => both!(i, d, Avgb),
        0xe1 => both!(i, d, Sraw),
        0xe2 => both!(i, d, Srad),
        0xe3 => both!(i, d, Avgw),
        0xe4 => both!(i, d, Mulhuw),
        0xe5 => both!(i, d, Mulhw),
        0xe8 => both!(i, d, Subsb),
        0xe9 => both!(i, d, Subsw),
        0xea => both!(i, d, Minsw),
        0xeb => both!(i, d, Or),
        0xec => both!(i, d, Addsb),
        0xed => both!(i, d, Addsw),
        0xee => both!(i, d, Maxsw),
        0xef => both!(i, d, Xor),
        0xf1 => both!(i, d, Sllw),
        0xf2 => both!(i, d, Slld),
        0xf3 => both!(i, d, Sllq),
        0xf4 => both!(i, d, Muludq),
        0xf5 => both!(i, d, Maddwd),
        0xf6 => both!(i, d, Sadbw),
        0xf8 => both!(i, d, Subb),
        0xf9 => both!(i, d, Subw),
        0xfa => both!(i, d, Subd),
        0xfb => both!(i, d, Subq),
        0xfc => both!(i, d, Addb),
        0xfd => both!(i, d, Addw),
        0xfe => both!(i, d, Addd),
        _ => return None,
    })
}

/// SSSE3 and SSE4 in the map 0F 38.
fn map38(i: &Insn, d: &Dec) -> Option<Handler> {
    if d.rep != 0 {
        return None;
    }
    let ssse3 = matches!(d.op & 0xff, 0x00..=0x0b | 0x1c..=0x1e);
    if !ssse3 && !d.p66 {
        return None;
    }
    macro_rules! pmov {
        ($s:ty, $t:ty, $u:ty) => {
            if d.op & 0x10 == 0 {
                rare!(d, widen; $s, $t, $u, true)
            } else {
                rare!(d, widen; $s, $t, $u, false)
            }
        };
    }
    Some(match d.op & 0xff {
        0x00 => both!(i, d, Shufb),
        0x01 => both!(i, d, Haddw),
        0x02 => both!(i, d, Haddd),
        0x03 => both!(i, d, Haddsw),
        0x04 => both!(i, d, Maddubsw),
        0x05 => both!(i, d, Hsubw),
        0x06 => both!(i, d, Hsubd),
        0x07 => both!(i, d, Hsubsw),
        0x08 => both!(i, d, Signb),
        0x09 => both!(i, d, Signw),
        0x0a => both!(i, d, Signd),
        0x0b => both!(i, d, Mulhrsw),
        0x10 => rare!(d, blendv; 1),
        0x14 => rare!(d, blendv; 4),
        0x15 => rare!(d, blendv; 8),
        0x17 => rare!(d, ptest),
        0x1c => both!(i, d, Absb),
        0x1d => both!(i, d, Absw),
        0x1e => both!(i, d, Absd),
        0x20 | 0x30 => pmov!(u64, u8, u16),
        0x21 | 0x31 => pmov!(u32, u8, u32),
        0x22 | 0x32 => pmov!(u16, u8, u64),
        0x23 | 0x33 => pmov!(u64, u16, u32),
        0x24 | 0x34 => pmov!(u32, u16, u64),
        0x25 | 0x35 => pmov!(u64, u32, u64),
        0x28 => rare!(d, xmm_op, Muldq),
        0x29 => rare!(d, xmm_op, Cmpeqq),
        0x2a if d.mem => load_aligned::<Gen>,
        0x2b => rare!(d, xmm_op, Packusdw),
        0x37 => rare!(d, xmm_op, Cmpgtq),
        0x38 => rare!(d, xmm_op, Minsb),
        0x39 => rare!(d, xmm_op, Minsd),
        0x3a => rare!(d, xmm_op, Minuw),
        0x3b => rare!(d, xmm_op, Minud),
        0x3c => rare!(d, xmm_op, Maxsb),
        0x3d => rare!(d, xmm_op, Maxsd),
        0x3e => rare!(d, xmm_op, Maxuw),
        0x3f => rare!(d, xmm_op, Maxud),
        0x40 => rare!(d, xmm_op, Mulld),
        0x41 => rare!(d, xmm_op, Phminposuw),
        _ => return None,
    })
}

/// SSSE3 and SSE4 in the map 0F 3A.
fn map3a(i: &Insn, d: &Dec) -> Option<Handler> {
    if d.rep != 0 {
        return None;
    }
    if d.op == 0x3a0f && !d.p66 {
        return Some(rare!(d, mm_palignr));
    }
    if !d.p66 {
        return None;
    }
    let w = d.rex & 8 != 0;
    macro_rules! lane {
        ($mem:ident, $reg:ident, $t:ty) => {
            if d.mem { $mem::<$t> as Handler } else { $reg::<$t> }
        };
    }
    Some(match d.op & 0xff {
        0x08 => rare!(d, ps, float::Round),
        0x09 => rare!(d, pd, float::Round),
        0x0a => rare!(d, ss, float::Round),
        0x0b => rare!(d, sd, float::Round),
        0x0c => rare!(d, xmm_imm, Blendps),
        0x0d => rare!(d, xmm_imm, Blendpd),
        0x0e => rare!(d, xmm_imm, Blendw),
        0x0f => at!(i, d, xmm_imm, Alignr),
        0x14 => lane!(extract_mem, extract, u8),
        0x15 => lane!(extract_mem, extract, u16),
        0x16 if w => lane!(extract_mem, extract, u64),
        0x16 | 0x17 => lane!(extract_mem, extract, u32),
        0x20 => lane!(insert_mem, insert, u8),
        0x21 => {
            if d.mem {
                insertps_mem::<Gen>
            } else {
                insertps
            }
        }
        0x22 if w => lane!(insert_mem, insert, u64),
        0x22 => lane!(insert_mem, insert, u32),
        0x40 => rare!(d, combine, float::Dpps),
        0x41 => rare!(d, combine, float::Dppd),
        0x42 => rare!(d, xmm_imm, Mpsadbw),
        0x60 => rare!(d, pcmpstr; true, false),
        0x61 => rare!(d, pcmpstr; true, true),
        0x62 => rare!(d, pcmpstr; false, false),
        0x63 => rare!(d, pcmpstr; false, true),
        _ => return None,
    })
}
