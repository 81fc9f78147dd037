//! The page that a processor shares with the kernel (struct kvm_run): KVM_RUN, and why it ended.
//!
//! kvm-ioctls' own decoder leaves out the width of a string instruction's elements, so this is done here, and without a
//! second look at each exit.

use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_IN, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_INTERNAL_ERROR_EMULATION, kvm_run,
};
use kvm_ioctls::VcpuFd;

/// _IO(KVMIO, 0x80).
const KVM_RUN: libc::c_ulong = 0xae80;

/// Why KVM_RUN ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// IN or OUT, `count` times at one port. The data are [`Page::data`].
    Io { port: u16, width: u8, count: u32, input: bool },
    /// An access to memory that is nobody's slot.
    Mmio { gpa: u64, width: u8, write: bool, value: u64 },
    /// RDMSR, or WRMSR with this value, of a register that KVM does not know.
    Msr { index: u32, write: Option<u64> },
    /// A level-triggered interrupt ended.
    Eoi(u8),
    /// The processor can take an external interrupt now.
    Window,
    /// A signal or `immediate_exit`.
    Interrupted,
    /// HLT that is ours to serve.
    Halt,
    /// An instruction that the kernel does not emulate.
    Emulate,
    /// Triple fault.
    Shutdown,
    /// For a debugger: an exception, the linear address, and DR6.
    Debug { exception: u32, pc: u64, dr6: u64 },
    /// It cannot go on; why.
    Failed(String),
}

/// A processor in the kernel.
pub(super) struct Page {
    pub(super) fd: VcpuFd,
    /// Bytes that are mapped.
    len: usize,
    run: *mut kvm_run,
}

// SAFETY: the pointer is to a mapping that `fd` owns, and is used by whoever has the value.
#[expect(unsafe_code, reason = "a pointer into a mapping that goes where its owner goes")]
unsafe impl Send for Page {}

#[expect(unsafe_code, reason = "a page that the kernel writes while KVM_RUN is called, and not otherwise")]
impl Page {
    pub(super) fn new(mut fd: VcpuFd, len: usize) -> Page {
        let run = std::ptr::from_mut(fd.get_kvm_run());
        Page { fd, len, run }
    }

    fn run_page(&self) -> &kvm_run {
        // SAFETY: mapped as long as `fd` is there. The one byte that other threads write, `immediate_exit`, is not read
        // through this.
        unsafe { &*self.run }
    }

    /// Where other threads ask for an end at once.
    pub(super) fn immediate_exit(&self) -> *mut u8 {
        // SAFETY: a field of a valid structure.
        unsafe { &raw mut (*self.run).immediate_exit }
    }

    /// Sets or clears that.
    pub(super) fn set_immediate_exit(&mut self, on: bool) {
        // SAFETY: as above; other threads write it atomically too.
        unsafe { std::sync::atomic::AtomicU8::from_ptr(self.immediate_exit()) }
            .store(on.into(), std::sync::atomic::Ordering::SeqCst);
    }

    /// Whether KVM_RUN is to end when the processor can take an external interrupt.
    #[inline]
    pub(super) fn want_window(&mut self, on: bool) {
        // SAFETY: a field of a valid structure, which the kernel reads in KVM_RUN.
        unsafe { (*self.run).request_interrupt_window = on.into() };
    }

    /// Whether it could when it came out.
    pub(super) fn ready(&self) -> bool {
        self.run_page().ready_for_interrupt_injection != 0
    }

    /// KVM_RUN.
    #[inline]
    pub(super) fn enter(&mut self) -> Stop {
        // SAFETY: the request takes no argument; what the kernel writes is guest memory and the page.
        if unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_RUN as _, 0) } != 0 {
            return Page::refused();
        }
        let run = self.run_page();
        let u = &run.__bindgen_anon_1;
        // SAFETY: `exit_reason` says which member of the union the kernel has written.
        unsafe {
            match run.exit_reason {
                KVM_EXIT_IO => {
                    let io = u.io;
                    let input = u32::from(io.direction) == KVM_EXIT_IO_IN;
                    Stop::Io { port: io.port, width: io.size, count: io.count, input }
                }
                KVM_EXIT_MMIO => {
                    let m = u.mmio;
                    let width = m.len.min(8) as u8;
                    Stop::Mmio { gpa: m.phys_addr, width, write: m.is_write != 0, value: u64::from_le_bytes(m.data) }
                }
                KVM_EXIT_X86_RDMSR => Stop::Msr { index: u.msr.index, write: None },
                KVM_EXIT_X86_WRMSR => Stop::Msr { index: u.msr.index, write: Some(u.msr.data) },
                KVM_EXIT_IOAPIC_EOI => Stop::Eoi(u.eoi.vector),
                KVM_EXIT_IRQ_WINDOW_OPEN => Stop::Window,
                KVM_EXIT_INTR => Stop::Interrupted,
                KVM_EXIT_HLT => Stop::Halt,
                KVM_EXIT_SHUTDOWN => Stop::Shutdown,
                KVM_EXIT_FAIL_ENTRY => Stop::Failed(format!(
                    "the processor refuses the guest's state, reason {:#x}",
                    u.fail_entry.hardware_entry_failure_reason
                )),
                KVM_EXIT_INTERNAL_ERROR if u.internal.suberror == KVM_INTERNAL_ERROR_EMULATION => Stop::Emulate,
                KVM_EXIT_INTERNAL_ERROR => {
                    let e = u.internal;
                    let data = &e.data[..(e.ndata as usize).min(e.data.len())];
                    Stop::Failed(format!("internal error of KVM, suberror {}, data {data:x?}", e.suberror))
                }
                KVM_EXIT_DEBUG => {
                    let d = u.debug.arch;
                    Stop::Debug { exception: d.exception, pc: d.pc, dr6: d.dr6 }
                }
                reason => Stop::Failed(format!("KVM ended the run for reason {reason}, which is not known here")),
            }
        }
    }

    /// KVM_RUN failed.
    #[cold]
    fn refused() -> Stop {
        let error = std::io::Error::last_os_error();
        match error.raw_os_error() {
            // EAGAIN: an application processor left the state in which it waited.
            Some(libc::EINTR | libc::EAGAIN) => Stop::Interrupted,
            _ => Stop::Failed(format!("KVM_RUN: {error}")),
        }
    }

    /// The data of [`Stop::Io`], `len` bytes.
    pub(super) fn data(&mut self, len: usize) -> &mut [u8] {
        // SAFETY: asked for after that exit, so that it is this member.
        let offset = unsafe { self.run_page().__bindgen_anon_1.io.data_offset } as usize;
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "the kernel's data lie in its page");
        // SAFETY: inside the mapping, which nobody else has while this is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.run.cast::<u8>().add(offset), len) }
    }

    /// Answers [`Stop::Mmio`].
    pub(super) fn answer_mmio(&mut self, value: u64) {
        // SAFETY: called after that exit.
        unsafe { (*self.run).__bindgen_anon_1.mmio.data = value.to_le_bytes() };
    }

    /// Answers [`Stop::Msr`]: the value, or #GP.
    pub(super) fn answer_msr(&mut self, value: Option<u64>) {
        // SAFETY: called after that exit.
        unsafe {
            (*self.run).__bindgen_anon_1.msr.error = value.is_none().into();
            (*self.run).__bindgen_anon_1.msr.data = value.unwrap_or(0);
        }
    }
}
