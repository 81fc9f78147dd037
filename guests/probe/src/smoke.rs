//! The smoke test: one line a check, in an order in which each may rely on those before it.

use crate::cpu;
use crate::report::{Bad, Text, Verdict};
use crate::{
    apic, cmos, cpuid, disk, exceptions, intr, isa, kbd, mem, paging, pci, pic, println, serial, smc, smp, sse, start,
    strict, strings, text, timers, trap, uart, user, x87,
};
use core::arch::asm;

type Check = fn() -> Verdict;

const CHECKS: &[(&str, Check)] = &[
    ("start", check_start),
    ("acpi", check_acpi),
    ("cpuid", cpuid::check),
    ("msr", cpuid::check_msrs),
    ("exc-de", exceptions::check_divide),
    ("exc-ud", exceptions::check_undefined),
    ("exc-gp", exceptions::check_protection),
    ("exc-control", exceptions::check_control),
    ("exc-bp", exceptions::check_breakpoint),
    ("exc-df", exceptions::check_double_fault),
    ("exc-step", exceptions::check_single_step),
    ("exc-debug", exceptions::check_debug_registers),
    ("softint", intr::check_software_int),
    ("compat32", exceptions::check_compatibility),
    ("page-fault", paging::check_faults),
    ("page-ad", paging::check_accessed_dirty),
    ("page-tlb", paging::check_invalidation),
    ("page-large", paging::check_large),
    ("page-smap", paging::check_supervisor),
    ("user", user::check_user),
    ("user-syscall", user::check_syscall),
    ("user-ac", user::check_alignment),
    ("string-plain", strings::check_plain),
    ("string-fault", strings::check_faults),
    ("string-resume", strings::check_resume),
    ("smc-page", smc::check_same_page),
    ("smc-alias", smc::check_alias),
    ("smc-straddle", smc::check_straddle),
    ("x87-pi", x87::check_pi),
    ("x87-arith", x87::check_arithmetic),
    ("x87-exc", x87::check_exceptions),
    ("x87-state", x87::check_state),
    ("sse-arith", sse::check_arithmetic),
    ("sse-int", sse::check_integer),
    ("fpu-lazy", sse::check_lazy),
    ("xsave", sse::check_xsave),
    ("tsc", timers::check_tsc),
    ("pit", timers::check_pit),
    ("pit-modes", timers::check_pit_modes),
    ("pmtimer", timers::check_pm_timer),
    ("hpet", timers::check_hpet),
    ("pic", intr::check_pic_registers),
    ("pic-irq0", intr::check_pic_irq0),
    ("pic-irq8", intr::check_pic_irq8),
    ("pic-priority", intr::check_pic_priority),
    ("pic-poll", intr::check_pic_poll),
    ("pic-irq13", intr::check_pic_irq13),
    ("hpet-irq", timers::check_hpet_irq),
    ("lapic", intr::check_apic),
    ("lapic-ipi", intr::check_ipi),
    ("lapic-tpr", intr::check_tpr),
    ("lapic-nmi", intr::check_nmi),
    ("lapic-timer", timers::check_apic_timer),
    ("lapic-deadline", timers::check_deadline),
    ("ioapic", intr::check_ioapic),
    ("ioapic-pit", intr::check_ioapic_pit),
    ("ioapic-rtc", intr::check_ioapic_rtc),
    ("ioapic-level", intr::check_ioapic_level),
    ("pic-spurious", intr::check_pic_spurious),
    ("rtc", cmos::check_rtc),
    ("rtc-update", cmos::check_update),
    ("kbc", kbd::check_controller),
    ("keyboard", kbd::check_keyboard),
    ("mouse", kbd::check_mouse),
    ("a20", kbd::check_a20),
    ("uart", uart::check),
    ("uart-irq", uart::check_irq),
    ("dma", isa::check_dma),
    ("pci-mech", pci::check_mechanism),
    ("pci-walk", pci::check_walk),
    ("ide", disk::check),
    ("strict", strict::check),
    ("smp-start", smp::check_start),
    ("smp-atomics", smp::check_atomics),
    ("smp-tsc", smp::check_tsc),
    ("smp-ipi", smp::check_ipi),
    ("smp-code", smp::check_cross_code),
    ("smp-tlb", smp::check_shootdown),
    ("smp-end", smp::check_end),
    // Last, because not every machine finds its way back from x2APIC mode.
    ("x2apic", intr::check_x2apic),
    ("smp-x2apic", smp::check_x2apic),
];

/// Runs all checks but those of `not=a,b`, or those of `only=a,b`; `need=a,b` turns a skip into a failure. Returns the number of failures.
pub fn run() -> u32 {
    println!("PROBE smoke {} checks", CHECKS.len());
    let (mut good, mut bad, mut skipped) = (0, 0, 0);
    for (name, check) in CHECKS {
        let wanted = start::option("only").is_none() || start::listed("only", name);
        if !wanted || start::listed("not", name) {
            continue;
        }
        let (word, detail) = match guarded(*check) {
            Ok(detail) => {
                good += 1;
                ("ok", detail)
            }
            Err(Bad::Skip(detail)) if !start::listed("need", name) => {
                skipped += 1;
                ("skip", detail)
            }
            Err(Bad::Skip(detail) | Bad::Fail(detail)) => {
                bad += 1;
                ("FAIL", detail)
            }
        };
        println!("PROBE {name} {word} {detail}");
    }
    println!("PROBE done {good} {bad} {skipped}");
    bad
}

struct Call {
    check: Check,
    verdict: Option<Verdict>,
}

extern "C" fn call(arg: *mut ()) {
    // SAFETY: `guarded` passes its own `Call`.
    let call = unsafe { &mut *arg.cast::<Call>() };
    call.verdict = Some((call.check)());
}

/// Runs one check; an exception that it does not expect is its failure, and whatever it changed is put back.
pub fn guarded(check: Check) -> Verdict {
    let (cr0, cr4, mark) = (cpu::cr0(), cpu::cr4(), mem::mark());
    let mut arg = Call { check, verdict: None };
    let fault = trap::guard(call, (&raw mut arg).cast());
    cpu::cli();
    cpu::set_cr0(cr0);
    cpu::set_cr4(cr4);
    cpu::set_dr7(0x400);
    let mxcsr = 0x1f80u32;
    // SAFETY: puts the floating-point units into their usual state.
    unsafe { asm!("cld", "fninit", "ldmxcsr [{}]", in(reg) &raw const mxcsr) };
    trap::set_hook(None);
    trap::end();
    // Also forgets requests that were latched and never served.
    pic::init();
    mem::unmap_window();
    // Other processors keep their stacks from one check to the next.
    if !smp::running() {
        mem::release(mark);
    }
    match fault {
        Some(c) => {
            serial::init();
            for vector in 0..32 {
                trap::reset_gate(vector);
            }
            Err(Bad::Fail(text!(
                "exception {} error {:#x} at {:#x}, CR2 {:#x}, RFLAGS {:#x}",
                c.vector,
                c.error,
                c.rip,
                c.cr2,
                c.rflags
            )))
        }
        None => arg.verdict.unwrap_or(Err(Bad::Fail(Text::new()))),
    }
}

/// The hand-over itself: magic, memory map.
fn check_start() -> Verdict {
    crate::ensure!(start::valid(), "start_info has a wrong magic number");
    crate::ensure!(!start::memory().is_empty(), "no memory map");
    let ram: u64 = start::memory().iter().filter(|r| r.kind == start::RAM).map(|r| r.size).sum();
    for (i, a) in start::memory().iter().enumerate() {
        for b in &start::memory()[i + 1..] {
            let apart = a.address + a.size <= b.address || b.address + b.size <= a.address;
            crate::ensure!(apart, "ranges at {:#x} and {:#x} overlap", a.address, b.address);
        }
    }
    crate::good!("{} ranges, {} KiB of RAM, {} KiB free", start::memory().len(), ram >> 10, mem::free() >> 10)
}

fn check_acpi() -> Verdict {
    let a = crate::acpi::acpi();
    if a.rsdp == 0 {
        crate::skip!("no RSDP");
    }
    crate::ensure!(a.bad == 0, "{} of {} tables have a wrong checksum or size", a.bad, a.tables);
    crate::ensure!(a.fadt != 0, "no FADT");
    crate::ensure!(a.s5.is_some(), "no \\_S5 in the DSDT");
    crate::ensure!(a.madt != 0 || !apic::present(), "no MADT");
    crate::good!("revision {}, {} tables, {} processors, PM1a_CNT {:#x}", a.revision, a.tables, a.cpus, a.pm1a_cnt)
}
