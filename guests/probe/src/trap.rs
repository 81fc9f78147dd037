//! Descriptor tables, exceptions and interrupts.
//!
//! Every gate names an IST stack: the host's `core` uses the red zone, and a broken stack is one of the things that the
//! tests provoke. Interrupts run on IST 1, exceptions on 2, double faults on 3, NMI on 4; handlers keep IF clear, so no
//! stack is entered twice.
//!
//! An exception on the boot processor is offered, in this order, to the hook of a test, to the resume address that
//! `catch!` left, and to the guard around a whole check; only then does the program give up.

use crate::mem::Racy;
use crate::{apic, cpu, entry, mem, pic, power, println};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Processor state as the stubs push it.
#[repr(C)]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// What an exception left behind.
#[derive(Clone, Copy, Default)]
pub struct Caught {
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cr2: u64,
    pub dr6: u64,
    pub cs: u64,
    pub rflags: u64,
}

pub const DE: u64 = 0;
pub const DB: u64 = 1;
pub const BP: u64 = 3;
pub const UD: u64 = 6;
pub const DF: u64 = 8;
pub const NP: u64 = 11;
pub const SS: u64 = 12;
pub const GP: u64 = 13;
pub const PF: u64 = 14;
pub const MF: u64 = 16;
pub const AC: u64 = 17;
pub const XM: u64 = 19;
const NMI: u64 = 2;

pub const CODE: u64 = 0x08;
pub const DATA: u64 = 0x10;
pub const CODE32: u64 = 0x18;
pub const USER32: u64 = 0x20;
pub const USER_DATA: u64 = 0x28;
pub const USER64: u64 = 0x30;
const TASK: u16 = 0x38;
/// A data segment with P clear.
pub const ABSENT: u64 = 0x48;

/// RFLAGS.TF and RFLAGS.RF.
pub const TF: u64 = 1 << 8;
pub const RF: u64 = 1 << 16;
pub const AC_FLAG: u64 = 1 << 18;

// A processor's area: GDT at 0, TSS at TSS_AT (its I/O bitmap covers ports 0 to 3FFh), then the stacks.
const AREA_PAGES: u64 = 13;
const TSS_AT: u64 = 0x100;
const IO_MAP: u64 = 104;
const IO_BYTES: u64 = 0x80;
const IST_SIZE: u64 = 0x2000;
const STACKS_AT: u64 = 0x1000;

static BOOT_AREA: AtomicU64 = AtomicU64::new(0);
static IDT: Racy<[[u64; 2]; 256]> = Racy::new([[0; 2]; 256]);

/// How a handler acknowledges a vector.
pub const EOI_NONE: u8 = 0;
pub const EOI_PIC: u8 = 1;
pub const EOI_APIC: u8 = 2;

static COUNT: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
static STAMP: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
static EOI: [AtomicU8; 256] = [const { AtomicU8::new(0) }; 256];
static HANDLER: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];
static ORDER: [AtomicU8; 16] = [const { AtomicU8::new(0) }; 16];
static ORDER_LEN: AtomicUsize = AtomicUsize::new(0);

/// Where `catch!` goes on after an exception; 0 outside.
pub static RESUME: AtomicU64 = AtomicU64::new(0);
static HOOK: AtomicUsize = AtomicUsize::new(0);
static CAUGHT: Racy<Option<Caught>> = Racy::new(None);
/// Vector and RIP of an exception on another processor, 0 if none.
pub static AP_FAULT: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

#[unsafe(no_mangle)]
static guard_sp: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn guard_call(f: extern "C" fn(*mut ()), arg: *mut ()) -> u64;
    safe static guard_resume: u8;
}

global_asm!(
    r#"
    .text
    .globl guard_call, guard_resume
guard_call:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + guard_sp], rsp
    mov rax, rdi
    mov rdi, rsi
    sub rsp, 8
    call rax
    add rsp, 8
    xor eax, eax
2:  mov qword ptr [rip + guard_sp], 0
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
guard_resume:
    mov eax, 1
    jmp 2b
    "#
);

/// Runs `f(arg)`; an exception that nothing else expects ends it and is returned. What `f` owns is not dropped then.
pub fn guard(f: extern "C" fn(*mut ()), arg: *mut ()) -> Option<Caught> {
    // SAFETY: `arg` is what `f` takes; frames left early hold nothing with a destructor.
    match unsafe { guard_call(f, arg) } {
        0 => None,
        // SAFETY: written by the handler that came back here.
        _ => Some(unsafe { (*CAUGHT.get()).unwrap_or_default() }),
    }
}

/// Takes the exceptions of the boot processor first; true means handled, go on with the frame.
pub fn set_hook(hook: Option<fn(&mut Frame) -> bool>) {
    HOOK.store(hook.map_or(0, |h| h as usize), Relaxed);
}

/// Forgets the last exception.
pub fn begin() {
    // SAFETY: exceptions come only from the code that follows.
    unsafe { *CAUGHT.get() = None };
}

/// The exception since [`begin`], if any.
pub fn end() -> Option<Caught> {
    RESUME.store(0, Relaxed);
    // SAFETY: the code that could fault is over.
    unsafe { *CAUGHT.get() }
}

/// Runs assembly that may fault, as `catch!("text"; operands)`: yields the exception or `None`.
///
/// The text must leave RSP as it was at every point that may fault. Label 77 is taken.
#[macro_export]
macro_rules! catch {
    ($($text:literal),+ ; $($operands:tt)*) => {{
        $crate::trap::begin();
        // SAFETY: the text is the test's own; an exception comes back behind it with the registers of that moment.
        unsafe {
            ::core::arch::asm!(
                "lea {resume}, [rip + 77f]",
                "mov [rip + {slot}], {resume}",
                $($text,)+
                "77:",
                resume = out(reg) _,
                slot = sym $crate::trap::RESUME,
                $($operands)*
            );
        }
        $crate::trap::end()
    }};
}

/// Points a gate at `handler`. `dpl` 3 opens it to INT n from user mode; `ist` 0 uses RSP0 or the present stack.
pub fn set_gate(vector: u8, handler: u64, ist: u64, dpl: u64) {
    let low = handler & 0xffff | CODE << 16 | ist << 32 | (0x8e00 | dpl << 13) << 32 | (handler >> 16 & 0xffff) << 48;
    // SAFETY: one processor changes the table, before the vector is used.
    unsafe { (*IDT.get())[usize::from(vector)] = [low, handler >> 32] };
}

/// Puts the ordinary handler of a vector back.
pub fn reset_gate(vector: u8) {
    let ist = match u64::from(vector) {
        DF => 3,
        NMI => 4,
        0..32 => 2,
        _ => 1,
    };
    set_gate(vector, (&raw const entry::trap_stubs) as u64 + 16 * u64::from(vector), ist, 0);
}

/// Marks a gate as not present: using the vector is then a fault of its own.
pub fn clear_gate(vector: u8) {
    // SAFETY: as in `set_gate`.
    unsafe { (*IDT.get())[usize::from(vector)][0] &= !(1 << 47) };
}

/// Tables for the boot processor.
pub fn init() {
    for vector in 0..=255 {
        reset_gate(vector);
    }
    let area = new_area().unwrap_or_else(|| power::die("no memory for the descriptor tables"));
    BOOT_AREA.store(area, Relaxed);
    load(area);
}

/// Allocates one processor's tables and stacks.
pub fn new_area() -> Option<u64> {
    mem::pages(AREA_PAGES)
}

/// Initial stack pointer of the processor that owns `area`.
pub fn area_stack(area: u64) -> u64 {
    area + AREA_PAGES * mem::PAGE
}

/// Builds GDT and TSS in `area` and loads them with the shared IDT on the processor that calls.
pub fn load(area: u64) {
    let tss = area + TSS_AT;
    let limit = IO_MAP + IO_BYTES;
    let task = limit | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
    let gdt = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        task,
        tss >> 32,
        0x00cf_1300_0000_ffff,
    ];
    for (i, d) in gdt.iter().enumerate() {
        mem::write64(area + 8 * i as u64, *d);
    }
    write_unaligned(tss + 4, area_stack(area) - 0x2000);
    for i in 0..4 {
        write_unaligned(tss + 36 + 8 * i, area + STACKS_AT + (i + 1) * IST_SIZE);
    }
    mem::write8(tss + 102, IO_MAP as u8);
    mem::write8(tss + 103, 0);
    for i in 0..=IO_BYTES {
        mem::write8(tss + IO_MAP + i, 0xff);
    }
    let gdtr = pseudo(area, 10 * 8 - 1);
    let idtr = pseudo(IDT.get() as u64, 0xfff);
    // SAFETY: the tables are complete and stay where they are; CS is reloaded by the far return, and no data segment
    // register is used in 64-bit code.
    unsafe {
        asm!(
            "lgdt [{gdtr}]",
            "lidt [{idtr}]",
            "push {code}",
            "lea {t}, [rip + 2f]",
            "push {t}",
            "retfq",
            "2:",
            "mov ss, {data:e}",
            "ltr {task:x}",
            gdtr = in(reg) gdtr.as_ptr(),
            idtr = in(reg) idtr.as_ptr(),
            code = const CODE,
            data = in(reg) DATA,
            task = in(reg) TASK,
            t = out(reg) _,
        );
    }
}

/// Opens or closes a port below 400h to user mode on the boot processor.
pub fn allow_port(port: u64, open: bool) {
    let byte = BOOT_AREA.load(Relaxed) + TSS_AT + IO_MAP + port / 8;
    let bit = 1 << (port % 8);
    let old = mem::read8(byte);
    mem::write8(byte, if open { old & !bit } else { old | bit });
}

fn write_unaligned(address: u64, value: u64) {
    mem::write_bytes(address, &value.to_le_bytes());
}

fn pseudo(base: u64, limit: u16) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&limit.to_le_bytes());
    bytes[2..].copy_from_slice(&base.to_le_bytes());
    bytes
}

/// Interrupts taken on `vector` since the last [`clear`].
pub fn count(vector: u8) -> u64 {
    COUNT[usize::from(vector)].load(Relaxed)
}

/// TSC at the last interrupt on `vector`.
pub fn stamp(vector: u8) -> u64 {
    STAMP[usize::from(vector)].load(Relaxed)
}

/// Prepares a vector: counts from 0, acknowledges by `eoi`, calls `handler` first (to quiet a device).
pub fn clear(vector: u8, eoi: u8, handler: Option<fn()>) {
    let v = usize::from(vector);
    HANDLER[v].store(handler.map_or(0, |h| h as usize), Relaxed);
    EOI[v].store(eoi, Relaxed);
    COUNT[v].store(0, Relaxed);
}

/// Starts a new list of vectors in their order of arrival.
pub fn clear_order() {
    ORDER_LEN.store(0, Relaxed);
}

/// The `i`th vector since [`clear_order`], 0 if there is none.
pub fn order(i: usize) -> u8 {
    if i < ORDER_LEN.load(Relaxed) { ORDER[i].load(Relaxed) } else { 0 }
}

#[unsafe(no_mangle)]
extern "C" fn trap_entry(f: &mut Frame) {
    if f.vector < 32 && f.vector != NMI {
        exception(f);
        return;
    }
    let v = f.vector as usize & 0xff;
    STAMP[v].store(cpu::rdtsc(), Relaxed);
    COUNT[v].fetch_add(1, Relaxed);
    let n = ORDER_LEN.load(Relaxed);
    if n < ORDER.len() {
        ORDER[n].store(v as u8, Relaxed);
        ORDER_LEN.store(n + 1, Relaxed);
    }
    let handler = HANDLER[v].load(Relaxed);
    if handler != 0 {
        // SAFETY: only `clear` stores here, from a value of this type.
        let call: fn() = unsafe { core::mem::transmute(handler) };
        call();
    }
    match EOI[v].load(Relaxed) {
        EOI_PIC => pic::eoi(v as u8),
        EOI_APIC => apic::eoi(),
        _ => {}
    }
}

fn exception(f: &mut Frame) {
    let caught = Caught {
        vector: f.vector,
        error: f.error,
        rip: f.rip,
        cr2: cpu::cr2(),
        dr6: cpu::dr6(),
        cs: f.cs,
        rflags: f.rflags,
    };
    let here = f as *const Frame as u64;
    let area = BOOT_AREA.load(Relaxed);
    if !(area..area_stack(area)).contains(&here) {
        AP_FAULT[1].store(f.rip, Relaxed);
        AP_FAULT[0].store(f.vector + 1, Relaxed);
        cpu::halt();
    }
    // SAFETY: the code that reads it is interrupted by this handler.
    unsafe { *CAUGHT.get() = Some(caught) };
    let hook = HOOK.load(Relaxed);
    if hook != 0 {
        // SAFETY: only `set_hook` stores here, from a value of this type.
        let hook: fn(&mut Frame) -> bool = unsafe { core::mem::transmute(hook) };
        if hook(f) {
            return;
        }
    }
    let resume = RESUME.swap(0, Relaxed);
    let guard = guard_sp.load(Relaxed);
    f.rflags &= !TF;
    if resume != 0 {
        f.rip = resume;
    } else if guard != 0 {
        f.rip = (&raw const guard_resume) as u64;
        f.rsp = guard;
        f.cs = CODE;
        f.ss = DATA;
        f.rflags = 2;
    } else {
        println!();
        println!(
            "PROBE stopped: exception {} error {:#x} rip {:#x} rsp {:#x} cr2 {:#x} rax {:#x} rcx {:#x} rdx {:#x}",
            f.vector, f.error, f.rip, f.rsp, caught.cr2, f.rax, f.rcx, f.rdx
        );
        power::off();
    }
}
