//! Which function executes which x87 opcode.

use super::arith::{
    Abs, Add, Chs, Div, DivR, Extract, F2xm1, Mul, Patan, RoundInt, Scale, SinCos, Sqrt, Sub, SubR, Tan, Yl2x, Yl2xp1,
    arith_mem, arith_st0, arith_sti, compare, compare_flags, compare_mem, fprem, fsin, ftst, fxam, into_st1,
    on_st0_st1, split, unary,
};
use super::control::{
    emms, fldcw, fldenv, fnclex, fninit, fnsave, fnstcw, fnstenv, fnstsw, fnstsw_ax, frstor, nothing,
};
use super::load::{
    F32, F64, I16, I32, I64, Trunc, constant, fcmov, ffree, fnop, fstpnce, fxch, load, load_bcd, load_st, load80,
    store, store_bcd, store_st, store80, turn,
};
use super::{Cpu, xsave};
use crate::exec::{Base, Flat, Gen, Kind, kind};
use crate::insn::{Dec, Handler, Insn, PLAIN};

/// Picks the handler of an x87 instruction, EMMS, or one of the FXSAVE group.
pub(crate) fn select(i: &mut Insn, d: &Dec) -> Option<Handler> {
    i.flags |= PLAIN;
    match d.op {
        0x9b => Some(Cpu::fwait),
        0x0f77 => (!d.p66 && d.rep == 0).then_some(emms as Handler),
        0x0fae => xsave::select(i, d),
        _ => {
            // What FOP keeps: three bits of the first byte, and ModRM.
            i.imm = u64::from(d.op & 7) << 8 | u64::from(d.modrm);
            if d.mem { memory(i, d) } else { register(i, d) }
        }
    }
}

/// `f::<P.., A>` with the way of addressing.
macro_rules! at {
    ($i:expr, $d:expr, $f:ident $(, $p:tt)*; $($c:tt)*) => {
        match kind($i, $d) {
            Kind::Base => $f::<$($p,)* Base $($c)*> as Handler,
            Kind::Flat => $f::<$($p,)* Flat $($c)*>,
            _ => $f::<$($p,)* Gen $($c)*>,
        }
    };
}

/// The forms with a number in memory that come in four formats.
macro_rules! arithmetic {
    ($i:expr, $d:expr, $n:tt) => {
        match $d.ext() {
            0 => at!($i, $d, arith_mem, Add, $n;),
            1 => at!($i, $d, arith_mem, Mul, $n;),
            2 => at!($i, $d, compare_mem, $n; , false),
            3 => at!($i, $d, compare_mem, $n; , true),
            4 => at!($i, $d, arith_mem, Sub, $n;),
            5 => at!($i, $d, arith_mem, SubR, $n;),
            6 => at!($i, $d, arith_mem, Div, $n;),
            _ => at!($i, $d, arith_mem, DivR, $n;),
        }
    };
}

type TruncI16 = Trunc<I16>;
type TruncI32 = Trunc<I32>;
type TruncI64 = Trunc<I64>;

fn memory(i: &Insn, d: &Dec) -> Option<Handler> {
    Some(match (d.op & 7, d.ext()) {
        (0, _) => arithmetic!(i, d, F32),
        (2, _) => arithmetic!(i, d, I32),
        (4, _) => arithmetic!(i, d, F64),
        (6, _) => arithmetic!(i, d, I16),
        (1, 0) => at!(i, d, load, F32;),
        (1, 2) => at!(i, d, store, F32; , false),
        (1, 3) => at!(i, d, store, F32; , true),
        (1, 4) => fldenv,
        (1, 5) => fldcw,
        (1, 6) => fnstenv,
        (1, 7) => fnstcw,
        (3, 0) => at!(i, d, load, I32;),
        (3, 1) => at!(i, d, store, TruncI32; , true),
        (3, 2) => at!(i, d, store, I32; , false),
        (3, 3) => at!(i, d, store, I32; , true),
        (3, 5) => load80,
        (3, 7) => store80,
        (5, 0) => at!(i, d, load, F64;),
        (5, 1) => at!(i, d, store, TruncI64; , true),
        (5, 2) => at!(i, d, store, F64; , false),
        (5, 3) => at!(i, d, store, F64; , true),
        (5, 4) => frstor,
        (5, 6) => fnsave,
        (5, 7) => fnstsw,
        (7, 0) => at!(i, d, load, I16;),
        (7, 1) => at!(i, d, store, TruncI16; , true),
        (7, 2) => at!(i, d, store, I16; , false),
        (7, 3) => at!(i, d, store, I16; , true),
        (7, 4) => load_bcd,
        (7, 5) => at!(i, d, load, I64;),
        (7, 6) => store_bcd,
        (7, 7) => at!(i, d, store, I64; , true),
        _ => return None,
    })
}

/// The register forms, with the aliases that parts have had since the 8087: DC D0, DC D8, DE D0 (FCOM, FCOMP), DD C8
/// and DF C8 (FXCH), D9 D8, DF D0 and DF D8 (FSTP).
fn register(i: &Insn, d: &Dec) -> Option<Handler> {
    let rm = i.rm & 7;
    Some(match (d.op & 7, d.ext()) {
        (0, 0) => arith_st0::<Add>,
        (0, 1) => arith_st0::<Mul>,
        (0 | 4, 2) => compare::<false, 0>,
        (0 | 4, 3) | (6, 2) => compare::<false, 1>,
        (0, 4) => arith_st0::<Sub>,
        (0, 5) => arith_st0::<SubR>,
        (0, 6) => arith_st0::<Div>,
        (0, 7) => arith_st0::<DivR>,

        (1, 0) => load_st,
        (1 | 5 | 7, 1) => fxch,
        (1, 2) if rm == 0 => fnop,
        (1, 3) => fstpnce,
        (7, 2 | 3) => store_st::<true>,
        (1, 4) => match rm {
            0 => unary::<Chs>,
            1 => unary::<Abs>,
            4 => ftst,
            5 => fxam,
            _ => return None,
        },
        (1, 5) if rm != 7 => constant,
        (1, 6) => match rm {
            0 => unary::<F2xm1>,
            1 => into_st1::<Yl2x>,
            2 => split::<Tan>,
            3 => into_st1::<Patan>,
            4 => split::<Extract>,
            5 => fprem::<true>,
            6 => turn::<7>,
            _ => turn::<1>,
        },
        (1, 7) => match rm {
            0 => fprem::<false>,
            1 => into_st1::<Yl2xp1>,
            2 => unary::<Sqrt>,
            3 => split::<SinCos>,
            4 => unary::<RoundInt>,
            5 => on_st0_st1::<Scale>,
            6 => fsin::<false>,
            _ => fsin::<true>,
        },

        (2, 0) => fcmov::<2>,
        (2, 1) => fcmov::<4>,
        (2, 2) => fcmov::<6>,
        (2, 3) => fcmov::<10>,
        (2, 5) if rm == 1 => compare::<true, 2>,

        (3, 0) => fcmov::<3>,
        (3, 1) => fcmov::<5>,
        (3, 2) => fcmov::<7>,
        (3, 3) => fcmov::<11>,
        (3, 4) => match rm {
            0 | 1 | 4 => nothing,
            2 => fnclex,
            3 => fninit,
            _ => return None,
        },
        (3, 5) => compare_flags::<true, false>,
        (3, 6) => compare_flags::<false, false>,

        (4, 0) => arith_sti::<Add, false>,
        (4, 1) => arith_sti::<Mul, false>,
        (4, 4) => arith_sti::<SubR, false>,
        (4, 5) => arith_sti::<Sub, false>,
        (4, 6) => arith_sti::<DivR, false>,
        (4, 7) => arith_sti::<Div, false>,

        (5, 0) => ffree::<false>,
        (5, 2) => store_st::<false>,
        (5, 3) => store_st::<true>,
        (5, 4) => compare::<true, 0>,
        (5, 5) => compare::<true, 1>,

        (6, 0) => arith_sti::<Add, true>,
        (6, 1) => arith_sti::<Mul, true>,
        (6, 3) if rm == 1 => compare::<false, 2>,
        (6, 4) => arith_sti::<SubR, true>,
        (6, 5) => arith_sti::<Sub, true>,
        (6, 6) => arith_sti::<DivR, true>,
        (6, 7) => arith_sti::<Div, true>,

        (7, 0) => ffree::<true>,
        (7, 4) if rm == 0 => fnstsw_ax,
        (7, 5) => compare_flags::<true, true>,
        (7, 6) => compare_flags::<false, true>,
        _ => return None,
    })
}
