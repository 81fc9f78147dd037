//! Privilege level 3: ways in and out, and what it may not do.

use crate::cpu::{self, MSR_EFER, MSR_FMASK, MSR_LSTAR, MSR_STAR, rdmsr, wrmsr};
use crate::exceptions::expect;
use crate::mem::{self, PAGE, WINDOW, read64, write64};
use crate::report::Verdict;
use crate::trap::{self, Caught, Frame};
use crate::{ensure, good, skip};
use core::arch::global_asm;

const CODE_AT: u64 = WINDOW;
const DATA_AT: u64 = WINDOW + PAGE;
const STACK_TOP: u64 = WINDOW + 3 * PAGE;
const KERNEL_AT: u64 = WINDOW + 4 * PAGE;
const ABSENT_AT: u64 = WINDOW + 5 * PAGE;
/// INT n from user code back into `enter_user`'s caller, on RSP0.
const EXIT: u8 = 0x81;

unsafe extern "C" {
    fn enter_user(rip: u64, rsp: u64, rflags: u64, argument: u64) -> u64;
    safe static user_exit: u8;
    safe static user_leave: u8;
    safe static user_syscall: u8;
    safe static user_code: u8;
    safe static user_code_end: u8;
    safe static user_cs: u8;
    safe static user_cli: u8;
    safe static user_hlt: u8;
    safe static user_cr: u8;
    safe static user_in: u8;
    safe static user_read: u8;
    safe static user_write: u8;
    safe static user_call: u8;
    safe static user_sys: u8;
    safe static user_unaligned: u8;
}

global_asm!(
    r#"
    .text
    .globl enter_user, user_exit, user_leave, user_syscall
enter_user:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + user_rsp], rsp
    push 0x2b
    push rsi
    push rdx
    push 0x33
    push rdi
    mov rdi, rcx
    xor eax, eax
    iretq
    // By INT 81h: the stack is RSP0, CS and SS are the kernel's.
user_exit:
    mov rsp, [rip + user_rsp]
    // By an exception, with RSP already set.
user_leave:
    cld
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
    // SYSCALL: doubles RDI, adds the masked DF bit as seen here, returns by SYSRET.
user_syscall:
    pushfq
    pop rax
    and eax, 0x400
    lea rax, [rax + rdi * 2]
    sysretq

    .section .bss.user, "aw", @nobits
    .balign 8
user_rsp: .skip 8

    // Copied to a user page; every routine ends in INT 81h.
    .section .rodata.user, "a"
    .balign 16
user_code:
user_cs:
    mov eax, cs
    int 0x81
user_cli:
    cli
    int 0x81
user_hlt:
    hlt
    int 0x81
user_cr:
    mov rax, cr0
    int 0x81
user_in:
    mov dx, di
    in al, dx
    movzx eax, al
    or eax, 0x100
    int 0x81
user_read:
    mov rax, [rdi]
    int 0x81
user_write:
    mov [rdi], rax
    int 0x81
user_call:
    jmp rdi
user_sys:
    std
    syscall
    pushfq
    pop rdx
    cld
    and edx, 0x400
    shl edx, 8
    or eax, edx
    int 0x81
user_unaligned:
    mov eax, [rdi + 1]
    int 0x81
user_code_end:
    "#
);

fn leave(f: &mut Frame) -> bool {
    unsafe extern "C" {
        safe static user_rsp: u64;
    }
    if f.cs & 3 != 3 {
        return false;
    }
    f.rip = (&raw const user_leave) as u64;
    f.cs = trap::CODE;
    f.ss = trap::DATA;
    f.rsp = read64((&raw const user_rsp) as u64);
    f.rflags = 2;
    true
}

/// Runs a routine of `user_code` at level 3: its RAX, or the exception that ended it.
fn run(routine: *const u8, rflags: u64, argument: u64) -> Result<u64, Caught> {
    let rip = CODE_AT + (routine as u64 - (&raw const user_code) as u64);
    trap::set_hook(Some(leave));
    trap::begin();
    // SAFETY: the routine ends in INT 81h or in an exception, and both come back here; it can write only user pages.
    let rax = unsafe { enter_user(rip, STACK_TOP, rflags | 2, argument) };
    trap::set_hook(None);
    match trap::end() {
        Some(c) => Err(c),
        None => Ok(rax),
    }
}

fn prepare() -> Option<()> {
    let frames = mem::pages(4)?;
    let code = &raw const user_code;
    let size = &raw const user_code_end as usize - code as usize;
    // SAFETY: the symbols enclose the routines, the frame is ours.
    unsafe { mem::memcpy(frames as *mut u8, code, size) };
    mem::map(CODE_AT, frames, mem::U)?;
    mem::map(DATA_AT, frames + PAGE, mem::U | mem::W)?;
    mem::map(DATA_AT + PAGE, frames + 2 * PAGE, mem::U | mem::W)?;
    mem::map(KERNEL_AT, frames + 3 * PAGE, mem::W)?;
    write64(frames + PAGE, 0x7777);
    trap::set_gate(EXIT, (&raw const user_exit) as u64, 0, 3);
    Some(())
}

/// IRET to level 3 and INT back; privileged instructions, pages and ports are refused.
pub fn check_user() -> Verdict {
    let Some(()) = prepare() else { skip!("no memory") };
    match run(&raw const user_cs, 0, 0) {
        Ok(cs) => ensure!(cs == trap::USER64 | 3, "CS {cs:#x} at level 3"),
        Err(c) => crate::fail!("exception {} error {:#x} at level 3", c.vector, c.error),
    }
    for (name, routine) in [("CLI", &raw const user_cli), ("HLT", &raw const user_hlt), ("MOV CR0", &raw const user_cr)]
    {
        let c = expect(name, run(routine, 0, 0).err(), trap::GP, 0)?;
        ensure!(c.cs == trap::USER64 | 3, "{name}: saved CS {:#x}", c.cs);
    }
    let nx = if rdmsr(MSR_EFER) & 1 << 11 != 0 || cpu::cr4() & 1 << 20 != 0 { 0x10 } else { 0 };
    let cases = [
        ("read of a kernel page", &raw const user_read, KERNEL_AT, 5),
        ("write to a kernel page", &raw const user_write, KERNEL_AT, 7),
        ("write to a read-only page", &raw const user_write, CODE_AT, 7),
        ("read of an absent page", &raw const user_read, ABSENT_AT, 4),
        ("write to an absent page", &raw const user_write, ABSENT_AT, 6),
        ("jump to a kernel page", &raw const user_call, KERNEL_AT, 5 | nx),
    ];
    for (name, routine, at, error) in cases {
        let c = expect(name, run(routine, 0, at).err(), trap::PF, error)?;
        ensure!(c.cr2 == at, "{name}: CR2 {:#x}, wanted {at:#x}", c.cr2);
    }
    ensure!(run(&raw const user_read, 0, DATA_AT).is_ok_and(|v| v == 0x7777), "a user page cannot be read");
    expect("IN without permission", run(&raw const user_in, 0, 0x61).err(), trap::GP, 0)?;
    trap::allow_port(0x61, true);
    let allowed = run(&raw const user_in, 0, 0x61).is_ok_and(|v| v & 0x100 != 0);
    trap::allow_port(0x61, false);
    ensure!(allowed, "the I/O bitmap opens nothing");
    let c = run(&raw const user_in, 3 << 12, 0x61);
    ensure!(c.is_ok(), "IOPL 3 opens nothing");
    good!("level 3 held back in 10 ways, let in 3")
}

/// SYSCALL and SYSRET with flag mask.
pub fn check_syscall() -> Verdict {
    if cpu::cpuid(0x8000_0001, 0).edx & 1 << 11 == 0 {
        skip!("not offered");
    }
    let Some(()) = prepare() else { skip!("no memory") };
    let efer = rdmsr(MSR_EFER);
    wrmsr(MSR_EFER, efer | 1);
    wrmsr(MSR_STAR, (trap::USER32 | 3) << 48 | trap::CODE << 32);
    wrmsr(MSR_LSTAR, (&raw const user_syscall) as u64);
    wrmsr(MSR_FMASK, 0x400);
    let result = run(&raw const user_sys, 0, 21);
    wrmsr(MSR_EFER, efer & !1);
    let off = run(&raw const user_sys, 0, 21).err();
    wrmsr(MSR_EFER, efer);
    match result {
        Ok(v) => ensure!(v == 0x4_0000 | 42, "result {v:#x}: wanted 42, DF masked inside and restored outside"),
        Err(c) => crate::fail!("exception {} error {:#x} at {:#x}", c.vector, c.error, c.rip),
    }
    expect("SYSCALL with EFER.SCE off", off, trap::UD, 0)?;
    good!("there and back")
}

/// Alignment checking at level 3 (CR0.AM, EFLAGS.AC).
pub fn check_alignment() -> Verdict {
    let Some(()) = prepare() else { skip!("no memory") };
    let cr0 = cpu::cr0();
    cpu::set_cr0(cr0 | 1 << 18);
    let plain = run(&raw const user_unaligned, 0, DATA_AT);
    let checked = run(&raw const user_unaligned, trap::AC_FLAG, DATA_AT);
    cpu::set_cr0(cr0);
    ensure!(plain.is_ok(), "#AC without EFLAGS.AC");
    if checked.is_ok() {
        skip!("no #AC");
    }
    expect("unaligned load", checked.err(), trap::AC, 0)?;
    good!("#AC")
}
