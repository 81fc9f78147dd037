//! The host's processor, reached by signals; see [`super`].
#![expect(unsafe_code, reason = "signal handlers that replace the interrupted context")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::{Bits, CODE, Case, DATA, DATA_LEN, ENTRY, ES_SKEW, Fx, Outcome, State};

const PAGE: usize = 4096;
/// Where the code page can be written: far from where 32-bit code reaches.
const WRITABLE: u64 = 0x1357_9bdf_0000;
const SIGNALS: [i32; 5] = [libc::SIGTRAP, libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL];
/// Room for the signal frame with all vector registers that a host may have.
const STACK: usize = 256 << 10;

/// ucontext's order of general registers: for each of ours, where it is there.
const ORDER: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// What the handler exchanges with [`Host::run`].
struct Exchange {
    /// 0: enter; 1: in the case; 2: out of it.
    phase: u8,
    gregs: [i64; 23],
    saved_fx: Fx,
    selectors: i64,
    state: State,
    fp: bool,
    vector: u8,
}

static EXCHANGE: AtomicPtr<Exchange> = AtomicPtr::new(std::ptr::null_mut());
static THREAD: AtomicI32 = AtomicI32::new(0);
static LOCK: Mutex<()> = Mutex::new(());

fn thread() -> i32 {
    // SAFETY: no preconditions.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

extern "C" fn handler(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let x = EXCHANGE.load(Ordering::SeqCst);
    if x.is_null() || THREAD.load(Ordering::SeqCst) != thread() {
        // Somebody else's fault: let it be fatal.
        // SAFETY: no preconditions.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the pointer is to a live `Exchange` that the interrupted thread, this one, does not touch meanwhile; the
    // kernel gives a valid context.
    let (x, mc) = unsafe { (&mut *x, &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext) };
    // SAFETY: the kernel's frame holds an FXSAVE image, and behind it, on every host with XSAVE, the header of an XSAVE
    // area.
    let (fx, xstate_bv) = unsafe {
        let p = mc.fpregs.cast::<Fx>();
        (&mut *p, &mut *p.add(1).cast::<u64>())
    };
    match x.phase {
        0 => {
            x.gregs = mc.gregs;
            x.saved_fx = *fx;
            for (r, at) in ORDER.iter().enumerate() {
                mc.gregs[*at as usize] = x.state.gpr[r] as i64;
            }
            mc.gregs[libc::REG_RIP as usize] = x.state.rip as i64;
            mc.gregs[libc::REG_EFL as usize] = x.state.flags as i64;
            mc.gregs[libc::REG_CSGSFS as usize] = mc.gregs[libc::REG_CSGSFS as usize] & 0xffff_ffff_0000 | x.selectors;
            if x.fp {
                // The last bytes say to the kernel that an XSAVE area follows.
                fx.0[..464].copy_from_slice(&x.state.fx.0[..464]);
                *xstate_bv |= 3;
            }
            x.phase = 1;
        }
        1 => {
            for (r, at) in ORDER.iter().enumerate() {
                x.state.gpr[r] = mc.gregs[*at as usize] as u64;
            }
            x.state.rip = mc.gregs[libc::REG_RIP as usize] as u64;
            x.state.flags = mc.gregs[libc::REG_EFL as usize] as u64;
            x.vector = mc.gregs[libc::REG_TRAPNO as usize] as u8;
            if x.fp {
                x.state.fx.0[..464].copy_from_slice(&fx.0[..464]);
                fx.0[..464].copy_from_slice(&x.saved_fx.0[..464]);
                *xstate_bv |= 3;
            }
            mc.gregs = x.gregs;
            x.phase = 2;
        }
        _ => unsafe {
            // SAFETY: no preconditions. A fault of the harness itself.
            libc::signal(signal, libc::SIG_DFL);
        },
    }
}

/// The host's processor.
pub(super) struct Host {
    _lock: MutexGuard<'static, ()>,
    bits: Bits,
    /// CS and SS, where ucontext has them.
    selectors: i64,
    old: Vec<(i32, libc::sigaction)>,
    old_stack: libc::stack_t,
    _stack: Vec<u8>,
}

/// The kernel's `struct user_desc`.
#[repr(C)]
struct UserDesc {
    entry: u32,
    base: u32,
    limit: u32,
    bits: u32,
}

/// Makes a 16-bit descriptor of the local descriptor table: `kind` is 0 for data, 2 for code.
fn descriptor(entry: u32, base: u64, limit: u32, kind: u32) -> Option<u16> {
    let d = UserDesc { entry, base: base as u32, limit, bits: kind << 1 };
    // SAFETY: a valid descriptor of the size given.
    let r = unsafe { libc::syscall(libc::SYS_modify_ldt, 0x11, &d, size_of::<UserDesc>()) };
    (r as i32 == 0).then_some((entry << 3 | 7) as u16)
}

/// Maps pages where nothing is, or the pages of a file.
fn map(address: u64, len: usize, prot: i32, file: Option<&OwnedFd>) -> Option<()> {
    let sharing = if file.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
    let fd = file.map_or(-1, |f| f.as_raw_fd());
    // SAFETY: NOREPLACE: nothing that exists is touched.
    let p = unsafe { libc::mmap(address as *mut libc::c_void, len, prot, sharing | libc::MAP_FIXED_NOREPLACE, fd, 0) };
    (p as u64 == address).then_some(())
}

impl Host {
    /// `None` if this host cannot run code of that size.
    pub(super) fn new(bits: Bits) -> Option<Host> {
        let lock = LOCK.lock().unwrap_or_else(|e| e.into_inner());
        // The code page must not be writable for the cases; we write it elsewhere.
        // SAFETY: a name that ends with 0.
        let fd = unsafe { libc::memfd_create(c"code".as_ptr(), 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: nobody else has the descriptor.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: as above.
        if unsafe { libc::ftruncate(fd, PAGE as i64) } != 0 {
            return None;
        }
        map(DATA, DATA_LEN, libc::PROT_READ | libc::PROT_WRITE, None)?;
        map(CODE, PAGE, libc::PROT_READ | libc::PROT_EXEC, Some(&file))?;
        map(WRITABLE, PAGE, libc::PROT_READ | libc::PROT_WRITE, Some(&file))?;
        let mut selectors: (u16, u16, u16) = (0x33, 0x2b, 0x2b);
        let mut extra = 0x2b;
        match bits {
            Bits::B64 => {}
            Bits::B32 => selectors.0 = 0x23,
            Bits::B16 => {
                let data = descriptor(1, DATA, DATA_LEN as u32 - 1, 0)?;
                extra = descriptor(2, DATA + ES_SKEW, DATA_LEN as u32 - 1 - ES_SKEW as u32, 0)?;
                selectors = (descriptor(0, CODE, PAGE as u32 - 1, 2)?, data, data);
            }
        }
        // SAFETY: 64-bit code does not use DS and ES; the selectors are of data segments.
        unsafe {
            std::arch::asm!("mov ds, {0:x}", "mov es, {1:x}", in(reg) selectors.2, in(reg) extra);
        }
        let mut stack = vec![0u8; STACK];
        // SAFETY: zero is a value of these plain structures; the stack outlives its use, see `drop`.
        unsafe {
            let mut old_stack: libc::stack_t = std::mem::zeroed();
            let ss = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK };
            assert_eq!(libc::sigaltstack(&ss, &mut old_stack), 0);
            let mut act: libc::sigaction = std::mem::zeroed();
            act.sa_sigaction = handler as *const () as usize;
            act.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let mut old = Vec::new();
            for s in SIGNALS {
                let mut before = std::mem::zeroed();
                assert_eq!(libc::sigaction(s, &act, &mut before), 0);
                old.push((s, before));
            }
            std::ptr::write_bytes(WRITABLE as *mut u8, 0xcc, PAGE);
            let selectors = i64::from(selectors.0) | i64::from(selectors.1) << 48;
            let mut host = Host { _lock: lock, bits, selectors, old, old_stack, _stack: stack };
            // A kernel may have the selectors and still not let us run there.
            let state = State { gpr: [0; 16], rip: bits.entry(), flags: 0x202, fx: Fx([0; 512]) };
            let nop = Case { bits, code: vec![0x90], state, patches: Vec::new(), undefined: 0, fp: false };
            (host.run(&nop, &[0; DATA_LEN]).vector == 3).then_some(host)
        }
    }

    /// Runs a case with the data window as given.
    pub(super) fn run(&mut self, case: &Case, data: &[u8]) -> Outcome {
        debug_assert_eq!(case.bits, self.bits);
        let x = Box::into_raw(Box::new(Exchange {
            phase: 0,
            gregs: [0; 23],
            saved_fx: Fx([0; 512]),
            selectors: self.selectors,
            state: case.state.clone(),
            fp: case.fp,
            vector: 0,
        }));
        // SAFETY: the pages are this harness's own, and nothing else refers to them. The handler leaves all registers
        // as they were at the INT3.
        unsafe {
            let code = (WRITABLE + ENTRY) as *mut u8;
            std::ptr::copy_nonoverlapping(case.code.as_ptr(), code, case.code.len());
            std::ptr::copy_nonoverlapping(data.as_ptr(), DATA as *mut u8, DATA_LEN);
            THREAD.store(thread(), Ordering::SeqCst);
            EXCHANGE.store(x, Ordering::SeqCst);
            std::arch::asm!("int3");
            EXCHANGE.store(std::ptr::null_mut(), Ordering::SeqCst);
            std::ptr::write_bytes(code, 0xcc, case.code.len());
            let x = Box::from_raw(x);
            let mut state = x.state.clone();
            if self.bits != Bits::B64 {
                // Above a 16-bit stack pointer the kernel leaves what it likes.
                state.gpr.iter_mut().for_each(|r| *r &= 0xffff_ffff);
            }
            if x.vector == 3 {
                // Behind the INT3.
                state.rip = state.rip.wrapping_sub(1);
            }
            let data = std::slice::from_raw_parts(DATA as *const u8, DATA_LEN).to_vec();
            Outcome { vector: x.vector, state, data }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: puts back what `new` replaced, and unmaps what it mapped.
        unsafe {
            for (s, act) in &self.old {
                libc::sigaction(*s, act, std::ptr::null_mut());
            }
            libc::sigaltstack(&self.old_stack, std::ptr::null_mut());
            libc::munmap(DATA as *mut libc::c_void, DATA_LEN);
            libc::munmap(CODE as *mut libc::c_void, PAGE);
            libc::munmap(WRITABLE as *mut libc::c_void, PAGE);
            std::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) 0);
        }
    }
}
