//! The quick half of memory accesses.
//!
//! A handler that may call the slow half of a load must keep registers across the call, and so saves and restores them
//! even when the TLB hits, which is nearly always. [`quick!`] makes two of each handler: one that knows hits only,
//! calls nothing, and gives up without having done anything; and one behind it, out of the way, that does it all again
//! as the architecture wants it. That a handler may be begun twice is no new demand: it must be restartable after a
//! fault anyway.

use emu::PAGE_SIZE;

use crate::insn::{Insn, Res, Stop, go_on};
use crate::state::{Cpu, Int};

/// A place in guest memory that the TLB allows an access of a certain size to: a host address.
#[derive(Clone, Copy)]
pub(super) struct Hit(u64);

/// A scalar at an address of any alignment.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

impl Cpu {
    /// For a load.
    #[inline(always)]
    pub(super) fn read_hit<T: Int>(&self, lin: u64) -> Res<Hit> {
        let e = self.tlb.entry(lin);
        let offset = lin.wrapping_sub(e.read);
        if offset <= PAGE_SIZE - u64::from(T::BYTES) { Ok(Hit(e.host.wrapping_add(offset))) } else { Err(Stop) }
    }

    /// For a store, and a load before it.
    #[inline(always)]
    pub(super) fn write_hit<T: Int>(&self, lin: u64) -> Res<Hit> {
        let e = self.tlb.entry(lin);
        let offset = lin.wrapping_sub(e.write);
        if offset <= PAGE_SIZE - u64::from(T::BYTES) { Ok(Hit(e.host.wrapping_add(offset))) } else { Err(Stop) }
    }
}

#[expect(unsafe_code, reason = "guest memory is reached by raw pointers, never borrowed")]
impl Hit {
    /// Loads; T is that of the access.
    #[inline(always)]
    pub(super) fn get<T: Int>(self) -> T {
        let p = std::ptr::with_exposed_provenance::<Unaligned<T>>(self.0 as usize);
        // SAFETY: a TLB entry with a tag has the host address of a page in the arena, and the access lies in the page.
        let v = unsafe { p.read_volatile() }.0;
        if cfg!(target_endian = "big") { T::from_u64(v.to_u64().swap_bytes() >> (64 - T::BITS)) } else { v }
    }

    /// Stores.
    #[inline(always)]
    pub(super) fn set<T: Int>(self, v: T) {
        let v = if cfg!(target_endian = "big") { T::from_u64(v.to_u64().swap_bytes() >> (64 - T::BITS)) } else { v };
        if self.0 & u64::from(T::BYTES - 1) == 0 {
            // SAFETY: as in `get`; the address is aligned, so that other processors and devices see all or nothing.
            unsafe { std::ptr::with_exposed_provenance_mut::<T>(self.0 as usize).write_volatile(v) };
        } else {
            // SAFETY: as in `get`.
            unsafe {
                std::ptr::with_exposed_provenance_mut::<Unaligned<T>>(self.0 as usize).write_volatile(Unaligned(v))
            };
        }
    }
}

/// Defines a handler by one body, made twice: with the types in the first brackets, whose accesses are quick and may
/// give up, and behind that with those in the second. The body must change nothing before the last thing in it that can
/// fail. Behind it the next instruction follows.
macro_rules! quick {
    ($($handlers:tt)*) => {
        $crate::exec::hit::two! { (), $crate::exec::hit::next, $crate::insn::stop_at, $($handlers)* }
    };
}

/// The same for handlers that end a block.
macro_rules! last {
    ($($handlers:tt)*) => {
        $crate::exec::hit::two! { (), $crate::exec::hit::done, $crate::exec::hit::failed, $($handlers)* }
    };
}

/// The same with a type for what the body gives, and the two ends of the handler.
macro_rules! two {
    ($out:ty, $end:path, $fail:path, $(
        $(#[$doc:meta])*
        fn $name:ident<$($p:ident: $bound:ident),*>[$($quick:ty),*][$($slow:ty),*]($cpu:ident, $i:ident) $body:block
    )*) => {$(
        $(#[$doc])*
        fn $name<$($p: $bound),*>(cpu: &mut $crate::state::Cpu, i: &$crate::insn::Insn) -> $crate::insn::Res {
            #[inline(always)]
            fn body<$($p: $bound),*>($cpu: &mut $crate::state::Cpu, $i: &$crate::insn::Insn) -> $crate::insn::Res<$out>
                $body

            #[cold]
            #[inline(never)]
            fn slow<$($p: $bound),*>(cpu: &mut $crate::state::Cpu, i: &$crate::insn::Insn) -> $crate::insn::Res {
                match body::<$($p),*>(cpu, i) {
                    Ok(out) => $end(cpu, i, out),
                    Err(_) => $fail(cpu, i),
                }
            }

            match body::<$($quick),*>(cpu, i) {
                Ok(out) => $end(cpu, i, out),
                Err(_) => slow::<$($slow),*>(cpu, i),
            }
        }
    )*};
}

#[inline(always)]
pub(super) fn next(cpu: &mut Cpu, i: &Insn, (): ()) -> Res {
    go_on(cpu, i)
}

#[inline(always)]
pub(super) fn done(_: &mut Cpu, _: &Insn, (): ()) -> Res {
    Ok(())
}

#[inline(always)]
pub(super) fn failed(_: &mut Cpu, _: &Insn) -> Res {
    Err(Stop)
}

pub(super) use {last, quick, two};
