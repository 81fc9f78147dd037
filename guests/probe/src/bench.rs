//! Loops whose host cost others measure. Each prints
//! `BENCH <name> <iterations> <guest ns by the TSC> <TSC Hz> <guest instructions>`.
//!
//! REP counts as one instruction however far it runs. `none` does nothing: the cost of start and power-off alone.

use crate::cpu;
use crate::mem::{self, PAGE, WINDOW};
use crate::{apic, pic, println, start, time, timers, trap};
use core::arch::{asm, global_asm};

struct Bench {
    name: &'static str,
    /// Iterations without `n=`.
    n: u64,
    /// Runs n iterations; yields the instructions executed, or why it cannot run here.
    run: fn(u64) -> Result<u64, &'static str>,
}

const fn bench(name: &'static str, n: u64, run: fn(u64) -> Result<u64, &'static str>) -> Bench {
    Bench { name, n, run }
}

const BENCHES: &[Bench] = &[
    bench("none", 1, |_| Ok(0)),
    bench("alu", 100_000_000, alu),
    bench("copy", 50_000_000, copy),
    bench("call", 20_000_000, call),
    bench("sse", 10_000_000, sse),
    bench("port61", 3_000_000, |n| Ok(port(0x61, n))),
    bench("portfree", 5_000_000, |n| Ok(port(0x2f0, n))),
    bench("mmio", 5_000_000, mmio),
    bench("hpet", 3_000_000, hpet),
    bench("irq", 500_000, irq),
    bench("softint", 2_000_000, softint),
    bench("stride4m", 5_000_000, |n| stride(4 << 20, n)),
    bench("stride64m", 5_000_000, |n| stride(64 << 20, n)),
    bench("repmovs", 20_000, repmovs),
    bench("repstos", 20_000, repstos),
    bench("smc", 50_000, smc),
];

/// Runs the comma-separated names (`all`: every one, `stride`: both sizes).
pub fn run(names: &str) {
    for name in names.split(',') {
        let mut known = false;
        for b in BENCHES {
            if name == b.name || name == "all" || name == "stride" && b.name.starts_with("stride") {
                known = true;
                one(b);
            }
        }
        if !known {
            println!("BENCH {name} unknown; have:");
            for b in BENCHES {
                println!("  {} (n={})", b.name, b.n);
            }
        }
    }
}

fn one(b: &Bench) {
    let n = start::number("n").unwrap_or(b.n).max(1);
    let mark = mem::mark();
    let before = cpu::rdtsc();
    let result = (b.run)(n);
    let ns = time::ns(cpu::rdtsc() - before);
    mem::unmap_window();
    mem::release(mark);
    match result {
        Ok(instructions) => println!("BENCH {} {n} {ns} {} {instructions}", b.name, time::tsc_hz()),
        Err(why) => println!("BENCH {} skip {why}", b.name),
    }
}

fn alu(n: u64) -> Result<u64, &'static str> {
    // SAFETY: registers only.
    unsafe {
        asm!(
            ".balign 16",
            "2:",
            "add rax, rdx",
            "xor rcx, rax",
            "rol rcx, 7",
            "lea rdx, [rdx + rcx * 2 + 3]",
            "sub rax, rcx",
            "imul rdx, rdx, 0x41c64e6d",
            "or rcx, 1",
            "shr rax, 3",
            "dec {n}",
            "jnz 2b",
            n = inout(reg) n => _,
            inout("rax") 1u64 => _,
            inout("rcx") 2u64 => _,
            inout("rdx") 3u64 => _,
            options(nomem, nostack),
        );
    }
    Ok(n * 10)
}

/// Four quadwords an iteration between two buffers of 16 KiB.
fn copy(n: u64) -> Result<u64, &'static str> {
    let from = mem::pages(8).ok_or("no memory")?;
    // SAFETY: the index stays below 2048 quadwords.
    unsafe {
        asm!(
            "xor ecx, ecx",
            ".balign 16",
            "2:",
            "mov rax, [{from} + rcx * 8]",
            "mov [{to} + rcx * 8], rax",
            "mov rdx, [{from} + rcx * 8 + 8]",
            "mov [{to} + rcx * 8 + 8], rdx",
            "mov rax, [{from} + rcx * 8 + 16]",
            "mov [{to} + rcx * 8 + 16], rax",
            "mov rdx, [{from} + rcx * 8 + 24]",
            "mov [{to} + rcx * 8 + 24], rdx",
            "add ecx, 4",
            "and ecx, 2047",
            "dec {n}",
            "jnz 2b",
            from = in(reg) from,
            to = in(reg) from + 4 * PAGE,
            n = inout(reg) n => _,
            out("rax") _,
            out("rcx") _,
            out("rdx") _,
            options(nostack),
        );
    }
    Ok(n * 12)
}

/// A direct call, a branch that alternates, an indirect call.
fn call(n: u64) -> Result<u64, &'static str> {
    // SAFETY: balanced calls inside the block.
    unsafe {
        asm!(
            "lea {f}, [rip + 5f]",
            "jmp 2f",
            ".balign 16",
            "5:",
            "inc rax",
            "ret",
            ".balign 16",
            "2:",
            "call 5b",
            "test {n:l}, 1",
            "jz 3f",
            "add rax, 2",
            "3:",
            "call {f}",
            "dec {n}",
            "jnz 2b",
            n = inout(reg_abcd) n => _,
            f = out(reg) _,
            out("rax") _,
        );
    }
    Ok(n * 10 + n / 2)
}

fn sse(n: u64) -> Result<u64, &'static str> {
    let values = [0.999f32, 0.999, 0.999, 0.999, 0.001, 0.001, 0.001, 0.001];
    let doubles = [0.999f64, 0.999, 0.001, 0.001];
    // SAFETY: reads the two arrays; registers else.
    unsafe {
        asm!(
            "movups xmm2, [{v}]",
            "movups xmm3, [{v} + 16]",
            "movups xmm4, [{d}]",
            "movups xmm5, [{d} + 16]",
            "movaps xmm0, xmm2",
            "movaps xmm1, xmm4",
            "movaps xmm6, xmm2",
            ".balign 16",
            "2:",
            "mulps xmm0, xmm2",
            "addps xmm0, xmm3",
            "mulpd xmm1, xmm4",
            "addpd xmm1, xmm5",
            "paddd xmm6, xmm2",
            "pxor xmm7, xmm6",
            "mulsd xmm8, xmm4",
            "addsd xmm8, xmm5",
            "dec {n}",
            "jnz 2b",
            v = in(reg) values.as_ptr(),
            d = in(reg) doubles.as_ptr(),
            n = inout(reg) n => _,
            out("xmm0") _,
            out("xmm1") _,
            out("xmm2") _,
            out("xmm3") _,
            out("xmm4") _,
            out("xmm5") _,
            out("xmm6") _,
            inout("xmm7") 0.0f64 => _,
            inout("xmm8") 0.5f64 => _,
            options(nostack),
        );
    }
    Ok(n * 10)
}

fn port(port: u16, n: u64) -> u64 {
    // SAFETY: reads of these ports have no side effect.
    unsafe {
        asm!(".balign 16", "2:", "in al, dx", "dec {n}", "jnz 2b", n = inout(reg) n => _, in("dx") port, out("al") _,
            options(nostack));
    }
    n * 3
}

fn loads(address: u64, n: u64) -> u64 {
    // SAFETY: a register of a chip that is there; reading it has no side effect.
    unsafe {
        asm!(".balign 16", "2:", "mov eax, [{p}]", "dec {n}", "jnz 2b", n = inout(reg) n => _, p = in(reg) address,
            out("eax") _, options(nostack));
    }
    n * 3
}

/// Reads of the local APIC's version register.
fn mmio(n: u64) -> Result<u64, &'static str> {
    if !apic::present() {
        return Err("no local APIC");
    }
    Ok(loads(apic::base() + u64::from(apic::VERSION), n))
}

/// Reads of the HPET's main counter.
fn hpet(n: u64) -> Result<u64, &'static str> {
    let (base, _) = timers::hpet().ok_or("no HPET")?;
    Ok(loads(base + 0xf0, n))
}

global_asm!(
    r#"
    .text
    .globl bench_irq, bench_int
bench_irq:
    inc r14
    mov dword ptr [r13 + 0xb0], 0
bench_int:
    iretq
    "#
);

unsafe extern "C" {
    safe static bench_irq: u8;
    safe static bench_int: u8;
}

/// Self-IPI through the local APIC page, handler, EOI, IRET.
fn irq(n: u64) -> Result<u64, &'static str> {
    if !apic::present() || apic::in_x2apic() {
        return Err("no xAPIC page");
    }
    const VECTOR: u8 = 0x92;
    pic::open(0);
    trap::set_gate(VECTOR, (&raw const bench_irq) as u64, 0, 0);
    // SAFETY: interrupts are on only inside the block, and its only interrupt changes R14 and the APIC.
    unsafe {
        asm!(
            "sti",
            ".balign 16",
            "2:",
            "lea {t}, [r14 + 1]",
            "mov dword ptr [r13 + 0x300], {command}",
            "3:",
            "cmp r14, {t}",
            "jne 3b",
            "dec {n}",
            "jnz 2b",
            "cli",
            t = out(reg) _,
            n = inout(reg) n => _,
            command = const apic::FIXED | apic::SELF | VECTOR as u32,
            in("r13") apic::base(),
            inout("r14") 0u64 => _,
        );
    }
    trap::reset_gate(VECTOR);
    Ok(n * 9)
}

/// INT n and IRET.
fn softint(n: u64) -> Result<u64, &'static str> {
    const VECTOR: u8 = 0x93;
    trap::set_gate(VECTOR, (&raw const bench_int) as u64, 0, 0);
    // SAFETY: the handler is an IRET.
    unsafe {
        asm!(".balign 16", "2:", "int {v}", "dec {n}", "jnz 2b", v = const VECTOR, n = inout(reg) n => _);
    }
    trap::reset_gate(VECTOR);
    Ok(n * 4)
}

/// One load a page (and a cache line further each time) over `size` bytes of 4 KiB pages. Where there is less RAM the
/// pages repeat: the translations are as many, which is what counts.
fn stride(size: u64, n: u64) -> Result<u64, &'static str> {
    const STEP: u64 = PAGE + 64;
    let tables = size / (2 << 20) + 4;
    let frames = (mem::free() / PAGE).saturating_sub(tables).min(size / PAGE);
    let base = mem::mark() + tables * PAGE;
    if frames < 64 {
        return Err("no memory");
    }
    for i in 0..size / PAGE {
        mem::map(WINDOW + i * PAGE, base + i % frames * PAGE, mem::W).ok_or("no memory")?;
    }
    let per_pass = size / STEP;
    let mut left = n;
    while left > 0 {
        let loads = left.min(per_pass);
        // SAFETY: per_pass steps stay inside the mapping.
        unsafe {
            asm!(".balign 16", "2:", "mov rax, [{p}]", "add {p}, {step}", "dec {n}", "jnz 2b",
                p = inout(reg) WINDOW => _, step = const STEP, n = inout(reg) loads => _, out("rax") _,
                options(nostack));
        }
        left -= loads;
    }
    Ok(n * 4)
}

const BLOCK: u64 = 64 << 10;

/// REP MOVSQ of 64 KiB.
fn repmovs(n: u64) -> Result<u64, &'static str> {
    let from = mem::pages(2 * BLOCK / PAGE).ok_or("no memory")?;
    for _ in 0..n {
        // SAFETY: both blocks are ours.
        unsafe {
            asm!("rep movsq", inout("rcx") BLOCK / 8 => _, inout("rsi") from => _, inout("rdi") from + BLOCK => _,
                options(nostack));
        }
    }
    Ok(n * 6)
}

/// REP STOSQ of 64 KiB.
fn repstos(n: u64) -> Result<u64, &'static str> {
    let to = mem::pages(BLOCK / PAGE).ok_or("no memory")?;
    for i in 0..n {
        // SAFETY: the block is ours.
        unsafe { asm!("rep stosq", inout("rcx") BLOCK / 8 => _, inout("rdi") to => _, in("rax") i, options(nostack)) };
    }
    Ok(n * 6)
}

/// Patches the operand of a two-instruction function and calls it.
fn smc(n: u64) -> Result<u64, &'static str> {
    let page = mem::pages(1).ok_or("no memory")?;
    mem::write_bytes(page, &[0xb8, 0, 0, 0, 0, 0xc3]);
    let wrong: u64;
    // SAFETY: the page holds the function.
    unsafe {
        asm!(
            "xor {wrong:e}, {wrong:e}",
            ".balign 16",
            "2:",
            "mov dword ptr [{p} + 1], {n:e}",
            "call {p}",
            "xor eax, {n:e}",
            "or {wrong:e}, eax",
            "dec {n}",
            "jnz 2b",
            p = in(reg) page,
            n = inout(reg) n => _,
            wrong = out(reg) wrong,
            out("rax") _,
        );
    }
    if wrong != 0 {
        return Err("an old operand ran");
    }
    Ok(n * 8)
}
