//! Memory: the routines that compiled Rust calls, physical access, pages, and a window for paging experiments.

use crate::{cpu, entry, start};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

// `compiler_builtins` of a hosted target leaves these to libc. The string instructions are used because the compiler
// would turn a plain loop into a call of the very function it stands in.

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; the direction flag is clear by the ABI.
    unsafe { asm!("rep movsb", inout("rcx") n => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack)) };
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= n {
        // SAFETY: the target does not begin inside the source, so a copy upwards is right.
        return unsafe { memcpy(to, from, n) };
    }
    // SAFETY: the caller vouches for both ranges; a copy downwards is right here, and DF is put back.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") n => _, inout("rdi") to.add(n).wrapping_sub(1) => _,
            inout("rsi") from.add(n).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, value: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the range.
    unsafe { asm!("rep stosb", inout("rcx") n => _, inout("rdi") to => _, in("al") value as u8, options(nostack)) };
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for i in 0..n {
        // SAFETY: the caller vouches for both ranges; volatile keeps the loop a loop.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, n) }
}

/// A static that only one context uses at a time (the boot processor, or one handler at a time).
#[repr(transparent)]
pub struct Racy<T>(UnsafeCell<T>);

// SAFETY: see the type's text; every use says why it is alone.
unsafe impl<T> Sync for Racy<T> {}

impl<T> Racy<T> {
    pub const fn new(value: T) -> Self {
        Racy(UnsafeCell::new(value))
    }

    pub const fn get(&self) -> *mut T {
        self.0.get()
    }
}

// One instruction each: registers want exactly this access, and tests write words at any address.
macro_rules! physical {
    ($($read:ident, $write:ident, $ty:ty, $class:ident, $form:literal;)*) => {$(
        /// Reads a register or a word of memory at an address that is mapped.
        #[inline]
        pub fn $read(address: u64) -> $ty {
            let value: $ty;
            // SAFETY: callers pass mapped addresses: registers, tables, pages that they own.
            unsafe {
                asm!(concat!("mov {v", $form, "}, [{a}]"), v = out($class) value, a = in(reg) address,
                    options(nostack));
            }
            value
        }
        /// Writes a register or a word of memory at an address that is mapped and owned by the caller.
        #[inline]
        pub fn $write(address: u64, value: $ty) {
            // SAFETY: as for the read; none of these addresses is seen by Rust references.
            unsafe {
                asm!(concat!("mov [{a}], {v", $form, "}"), v = in($class) value, a = in(reg) address, options(nostack));
            }
        }
    )*};
}

physical! {
    read8, write8, u8, reg_byte, "";
    read32, write32, u32, reg, ":e";
    read64, write64, u64, reg, ":r";
}

/// Copies bytes into pages that the caller owns.
pub fn write_bytes(address: u64, bytes: &[u8]) {
    for (i, b) in bytes.iter().enumerate() {
        write8(address + i as u64, *b);
    }
}

/// Little-endian number of `n` bytes at any address, for tables that align nothing.
pub fn read_le(address: u64, n: u64) -> u64 {
    (0..n).fold(0, |sum, i| sum | u64::from(read8(address + i)) << (8 * i))
}

pub const PAGE: u64 = 4096;

static NEXT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Finds the free memory behind the image: the rest of its own RAM range, below any module and below 4 GiB.
pub fn init() {
    let base = (&raw const entry::image_end) as u64;
    let mut end = base;
    for range in start::memory() {
        if range.kind == start::RAM && range.address <= base && base < range.address + range.size {
            end = (range.address + range.size).min(1 << 32);
        }
    }
    for &taken in start::modules() {
        if taken >= base {
            end = end.min(taken);
        }
    }
    NEXT.store(base, Relaxed);
    END.store(end & !(PAGE - 1), Relaxed);
}

/// Bytes that [`pages`] can still give.
pub fn free() -> u64 {
    END.load(Relaxed) - NEXT.load(Relaxed)
}

/// Takes `n` zeroed pages for good; [`mark`] and [`release`] give them back in one go.
pub fn pages(n: u64) -> Option<u64> {
    let at = NEXT.load(Relaxed);
    if n * PAGE > free() {
        return None;
    }
    NEXT.store(at + n * PAGE, Relaxed);
    // SAFETY: the range is RAM behind the image that nobody else has been given.
    unsafe { memset(at as *mut u8, 0, (n * PAGE) as usize) };
    Some(at)
}

pub fn mark() -> u64 {
    NEXT.load(Relaxed)
}

pub fn release(mark: u64) {
    NEXT.store(mark, Relaxed);
}

/// Virtual base of the window for paging experiments: the second 512 GiB, which the boot tables leave empty.
pub const WINDOW: u64 = 1 << 39;

pub const P: u64 = 1;
pub const W: u64 = 1 << 1;
pub const U: u64 = 1 << 2;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
pub const PS: u64 = 1 << 7;
pub const G: u64 = 1 << 8;
pub const NX: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Address of the entry that maps `va` at `level` (1 = 4 KiB page, 2 = 2 MiB, 3 = 1 GiB), with tables made on the way.
pub fn entry(va: u64, level: u32) -> Option<u64> {
    let mut table = (&raw const entry::boot_pml4) as u64;
    let mut here = 4;
    loop {
        let slot = table + (va >> (3 + 9 * here) & 0x1ff) * 8;
        if here == level {
            return Some(slot);
        }
        let value = read64(slot);
        table = if value & P != 0 {
            value & FRAME
        } else {
            let new = pages(1)?;
            write64(slot, new | P | W | U);
            new
        };
        here -= 1;
    }
}

/// Maps one 4 KiB page and drops an older translation; flags are given without P.
pub fn map(va: u64, pa: u64, flags: u64) -> Option<()> {
    write64(entry(va, 1)?, pa | flags | P);
    cpu::invlpg(va);
    Some(())
}

/// Empties the window; its tables are the caller's to release.
pub fn unmap_window() {
    write64((&raw const entry::boot_pml4) as u64 + 8, 0);
    cpu::flush_tlb();
}
