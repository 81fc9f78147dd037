//! A processor's place in the kernel, and how its thread is called out of it.
//!
//! KVM_RUN ends for a signal to its thread; one that comes just before is caught by `immediate_exit`, which makes the
//! call end at once. Who calls sets a bit first and looks for the thread afterwards; the thread says that it goes in
//! first and looks for bits afterwards. So one of them sees the other.

use std::sync::Mutex;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering};

use crate::stats::Counter;

/// [`crate::Vm::kick`].
pub(super) const KICK: u32 = 1;
/// The 8259's output is up.
pub(super) const INTR: u32 = 2;
/// LINT1 went up.
pub(super) const NMI: u32 = 4;
/// Look whether anything can still wake it.
pub(super) const LOOK: u32 = 8;
/// Come out and look together with all others.
pub(super) const GATHER: u32 = 16;
/// The machine cannot go on.
pub(super) const FAILED: u32 = 32;

/// The thread that runs a processor, and the byte `immediate_exit` in the page that it shares with the kernel.
struct Thread {
    id: i32,
    /// Of the time for which it ran.
    clock: libc::clockid_t,
    immediate_exit: AtomicPtr<u8>,
}

/// See above.
#[derive(Default)]
pub(super) struct Seat {
    attention: AtomicU32,
    inside: AtomicBool,
    /// Locked while the byte is written: it is gone with the processor.
    thread: Mutex<Option<Thread>>,
    /// What KVM_RUN ended for.
    pub(super) counters: Counters,
}

/// Ends of KVM_RUN: all, for ports, for memory, and because interrupts could be taken again.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) all: Counter,
    pub(super) ports: Counter,
    pub(super) memory: Counter,
    pub(super) windows: Counter,
}

impl Seat {
    /// Makes the processor's thread look at `bits`.
    #[expect(unsafe_code, reason = "a byte in a page shared with the kernel, and a signal to one thread")]
    pub(super) fn alert(&self, bits: u32) {
        self.attention.fetch_or(bits, Ordering::SeqCst);
        if !self.inside.load(Ordering::SeqCst) {
            return;
        }
        let thread = self.thread.lock().unwrap();
        let Some(thread) = &*thread else { return };
        // SAFETY: the page is mapped until `leave`, which waits for the lock. The kernel only reads this byte.
        unsafe { AtomicU8::from_ptr(thread.immediate_exit.load(Ordering::Relaxed)) }.store(1, Ordering::SeqCst);
        // SAFETY: a system call without pointers. Should the thread have ended, nobody gets the signal.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.id, signal()) };
    }

    /// Takes bits back.
    pub(super) fn calm(&self, bits: u32) {
        self.attention.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The calling thread runs the processor from now on, whose page has its `immediate_exit` here.
    #[expect(unsafe_code, reason = "gettid(2), and the clock of this thread")]
    pub(super) fn sit(&self, immediate_exit: *mut u8) {
        catch();
        // SAFETY: a system call without arguments.
        let id = unsafe { libc::gettid() };
        let mut clock = 0;
        // SAFETY: the calling thread exists, and there is room for a number. For this thread it does not fail.
        unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        *self.thread.lock().unwrap() = Some(Thread { id, clock, immediate_exit: AtomicPtr::new(immediate_exit) });
    }

    /// Nanoseconds for which the processor's thread has run.
    #[expect(unsafe_code, reason = "clock_gettime(2)")]
    pub(super) fn ran(&self) -> u64 {
        let thread = self.thread.lock().unwrap();
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        if let Some(thread) = &*thread {
            // SAFETY: there is room for a time. The clock of a thread that has ended is an error, and 0 here.
            unsafe { libc::clock_gettime(thread.clock, &raw mut time) };
        }
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }

    /// The page goes.
    pub(super) fn leave(&self) {
        self.thread.lock().unwrap().take();
    }

    /// What the thread must look at before it goes in; it goes in if that is nothing.
    #[inline]
    pub(super) fn go_in(&self) -> u32 {
        self.inside.store(true, Ordering::SeqCst);
        self.attention.load(Ordering::SeqCst)
    }

    /// It is out.
    #[inline]
    pub(super) fn out(&self) {
        self.inside.store(false, Ordering::Relaxed);
    }
}

/// The first real-time signal that the C library leaves alone: nobody else sends it.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn nothing(_: libc::c_int) {}

/// Lets the signal interrupt system calls and do nothing else.
#[expect(unsafe_code, reason = "sigaction(2)")]
fn catch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all zeros are a valid sigaction; the handler does nothing, which is safe at any time.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(signal(), &raw const action, std::ptr::null_mut());
        }
    });
}
