//! Interrupt controllers: the 8259A pair, the I/O APIC, the local APIC, and the ways between them.

use crate::acpi::acpi;
use crate::cpu::{self, inb, outb};
use crate::report::{Bad, Verdict};
use crate::serial::{COM1, IER, IIR};
use crate::time::{self, PIT_HZ};
use crate::{apic, catch, cmos, ensure, good, mem, pic, skip, text, trap, x87};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

const VECTOR: u8 = 0x50;
const HIGH: u8 = 0x91;

/// Waits for one interrupt on `vector` in a bounded number of open windows.
fn take(vector: u8, ms: u64) -> bool {
    time::spin_until(ms, || {
        cpu::interrupt_window();
        trap::count(vector) != 0
    })
}

/// Mask registers, request and service registers, ELCR.
pub fn check_pic_registers() -> Verdict {
    for value in [0x00, 0x55, 0xaa, 0xff] {
        outb(pic::MASTER + 1, value);
        outb(pic::SLAVE + 1, value ^ 0xf0);
        let (m, s) = (inb(pic::MASTER + 1), inb(pic::SLAVE + 1));
        ensure!(
            m == value && s == value ^ 0xf0,
            "IMR: wrote {value:#x} and {:#x}, read {m:#x} and {s:#x}",
            value ^ 0xf0
        );
    }
    pic::open(0);
    ensure!(pic::isr() == 0, "in service: {:#x} with interrupts off", pic::isr());
    if inb(pic::ELCR) == 0xff && inb(pic::ELCR + 1) == 0xff {
        return good!("IMR; no ELCR");
    }
    let old = (inb(pic::ELCR), inb(pic::ELCR + 1));
    outb(pic::ELCR, 0xff);
    outb(pic::ELCR + 1, 0xff);
    let all = (inb(pic::ELCR), inb(pic::ELCR + 1));
    outb(pic::ELCR, 0);
    outb(pic::ELCR + 1, 0);
    let none = (inb(pic::ELCR), inb(pic::ELCR + 1));
    outb(pic::ELCR, old.0);
    outb(pic::ELCR + 1, old.1);
    // IRQ 0, 1, 2, 8 and 13 are edge-triggered for ever.
    ensure!(all == (0xf8, 0xde) && none == (0, 0), "ELCR: ones give {:#x} {:#x}, zeros {none:?}", all.0, all.1);
    good!("IMR, ELCR {:#x} {:#x}", old.0, old.1)
}

/// Times five periods of the 8254, which runs at 100 Hz, on `vector`.
fn five_ticks(vector: u8) -> Result<u64, Bad> {
    let us = time::nearest(50_000, || {
        let start = trap::count(vector);
        let reach = |n| {
            time::spin_until(1000, || {
                cpu::interrupt_window();
                trap::count(vector) >= start + n
            })
        };
        ensure!(reach(1), "no interrupt");
        let first = trap::stamp(vector);
        ensure!(reach(6), "{} of 6", trap::count(vector) - start);
        Ok(time::ns(trap::stamp(vector) - first) / 1000)
    })?;
    ensure!(time::punctual(us, 50_000), "five periods of 10 ms took {us} us");
    Ok(us)
}

/// IRQ 0 through the 8259A pair, and HLT wakes on it.
pub fn check_pic_irq0() -> Verdict {
    let vector = pic::vector(0);
    trap::clear(vector, trap::EOI_PIC, None);
    time::start_channel0((PIT_HZ / 100) as u16);
    pic::open(1);
    let us = five_ticks(vector)?;
    let before = trap::count(vector);
    for _ in 0..3 {
        cpu::sti_hlt_cli();
    }
    let woken = trap::count(vector) - before;
    ensure!(woken == 3, "{woken} interrupts in three times HLT");
    time::ticks_work();
    good!("five periods of 10 ms took {us} us, HLT wakes")
}

/// IRQ 8 (RTC, 1024 Hz) through the slave.
pub fn check_pic_irq8() -> Verdict {
    let vector = pic::vector(8);
    trap::clear(vector, trap::EOI_PIC, Some(cmos::quiet));
    let us = cmos::periodic(|| {
        time::nearest(31_250, || {
            let start = trap::count(vector);
            ensure!(time::idle_until(1000, 1 << 8, || trap::count(vector) > start), "no interrupt");
            let first = trap::stamp(vector);
            let came = time::idle_until(1000, 1 << 8, || trap::count(vector) > start + 32);
            ensure!(came, "{} interrupts, 33 wanted", trap::count(vector) - start);
            Ok(time::ns(trap::stamp(vector) - first) / 1000)
        })
    })?;
    ensure!(time::punctual(us, 31_250), "32 periods (31250 us) took {us} us");
    good!("32 periods (31250 us) took {us} us")
}

fn quiet_pit() {
    outb(pic::MASTER + 1, inb(pic::MASTER + 1) | 1);
}

fn quiet_rtc() {
    cmos::quiet();
    outb(pic::SLAVE + 1, inb(pic::SLAVE + 1) | 1);
}

/// Three lines pending at once are served by priority: 0, 8 (behind the cascade at 2), 4. Each handler silences its own
/// line, so that no second tick comes between.
pub fn check_pic_priority() -> Verdict {
    crate::serial::drain();
    for (irq, quiet) in [(0, quiet_pit as fn()), (8, quiet_rtc), (4, quiet_uart)] {
        trap::clear(pic::vector(irq), trap::EOI_PIC, Some(quiet));
    }
    time::start_channel0((PIT_HZ / 200) as u16);
    let requests = cmos::periodic(|| {
        outb(COM1 + IER, 2);
        time::spin_until(500, || pic::irr() & 0x111 == 0x111);
        let requests = pic::irr();
        trap::clear_order();
        pic::open(1 | 1 << 4 | 1 << 8);
        for _ in 0..8 {
            cpu::interrupt_window();
        }
        pic::open(0);
        requests
    });
    outb(COM1 + IER, 0);
    ensure!(requests & 0x111 == 0x111, "requests {requests:#x}, wanted 0x111");
    let order = [trap::order(0), trap::order(1), trap::order(2)];
    ensure!(order == [pic::vector(0), pic::vector(8), pic::vector(4)], "vectors {order:x?}, wanted 20, 28, 24");
    good!("IRQ 0, 8, 4 in this order")
}

fn quiet_uart() {
    outb(COM1 + IER, 0);
    inb(COM1 + IIR);
}

/// The poll command acknowledges without the processor.
pub fn check_pic_poll() -> Verdict {
    time::start_channel0((PIT_HZ / 200) as u16);
    pic::open(1);
    let pending = time::spin_until(500, || pic::irr() & 1 != 0);
    outb(pic::MASTER, 0x0c);
    let answer = inb(pic::MASTER);
    let service = pic::isr();
    pic::eoi(pic::vector(0));
    let after = pic::isr();
    pic::open(0);
    ensure!(pending, "IRQ 0 never pending");
    ensure!(answer == 0x80, "poll answers {answer:#x}");
    ensure!(service & 1 == 1 && after & 1 == 0, "in service {service:#x}, after EOI {after:#x}");
    good!("IRQ 0 by poll")
}

// The ordinary entry saves the x87 unit and puts it back, error and all. This one is what systems had then.
core::arch::global_asm!(
    ".text",
    ".globl irq13",
    "irq13:",
    "push rax",
    "inc qword ptr [rip + {count}]",
    "out 0xf0, al",
    // Passes while IGNNE# is asserted.
    "fwait",
    "fnclex",
    "mov al, 0x20",
    "out 0xa0, al",
    "out 0x20, al",
    "pop rax",
    "iretq",
    count = sym X87_ERRORS,
);

static X87_ERRORS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn irq13();
}

/// With CR0.NE clear an x87 error is IRQ 13, and a write to port F0 lets its handler use the unit.
pub fn check_pic_irq13() -> Verdict {
    const NE: u64 = 1 << 5;
    let vector = pic::vector(13);
    X87_ERRORS.store(0, Relaxed);
    trap::set_gate(vector, irq13 as *const () as u64, 1, 0);
    cpu::set_cr0(cpu::cr0() & !NE);
    pic::open(1 << 13);
    let error = || {
        catch!("fninit", "mov word ptr [{p}], 0x037b", "fldcw [{p}]", "fld1", "fldz", "fdivp st(1), st(0)", "sti",
            "nop", "fwait", "cli"; p = in(reg) x87::area())
    };
    let caught = [error(), error()];
    cpu::cli();
    pic::open(0);
    trap::reset_gate(vector);
    let taken = X87_ERRORS.load(Relaxed);
    match caught.into_iter().flatten().next() {
        Some(c) if c.vector == trap::MF => skip!("#MF all the same"),
        Some(c) => return Err(Bad::Fail(text!("exception {} at {:#x}", c.vector, c.rip))),
        None => {}
    }
    ensure!(taken == 2, "{taken} interrupts for two errors");
    good!("an interrupt for each error, answered by port F0")
}

/// An acknowledge cycle with nothing pending yields vector 7 and leaves the service register alone. The I/O APIC's
/// ExtINT mode is the one way to order such a cycle.
pub fn check_pic_spurious() -> Verdict {
    let Some(chip) = apic::IoApic::find() else { skip!("no I/O APIC") };
    let vector = pic::vector(7);
    trap::clear(vector, trap::EOI_NONE, None);
    pic::open(0);
    let (pin, _) = apic::isa_pin(0);
    chip.route(pin, apic::id(), 0x700);
    time::start_channel0((PIT_HZ / 200) as u16);
    let came = take(vector, 50);
    let service = pic::isr();
    chip.mask_all();
    if !came {
        skip!("no acknowledge cycle without a request");
    }
    ensure!(service & 0x80 == 0, "in service: {service:#x}");
    good!("vector {vector:#x}, nothing in service")
}

/// Registers of the I/O APIC.
pub fn check_ioapic() -> Verdict {
    let Some(chip) = apic::IoApic::find() else { skip!("no I/O APIC in the MADT") };
    let (version, pins) = (chip.read(1) & 0xff, chip.pins());
    ensure!((0x10..=0x2f).contains(&version) && (16..=240).contains(&pins), "version {version:#x}, {pins} pins");
    for pin in 0..pins {
        ensure!(chip.read(0x10 + 2 * pin) & apic::MASKED != 0, "pin {pin} is not masked");
        chip.write(0x11 + 2 * pin, 0x0500_0000);
        chip.write(0x10 + 2 * pin, 0x1_a9c5);
        let entry = (chip.read(0x11 + 2 * pin), chip.read(0x10 + 2 * pin));
        // Delivery status and remote IRR (bits 12 and 14) are the chip's own.
        ensure!(entry.0 >> 24 == 5 && entry.1 & 0x1_afff == 0x1_a9c5 & 0x1_afff, "pin {pin} reads back {entry:x?}");
        chip.write(0x10 + 2 * pin, apic::MASKED);
        chip.write(0x11 + 2 * pin, 0);
    }
    good!("version {version:#x}, {pins} pins, id {} (MADT {})", chip.read(0) >> 24 & 0xf, acpi().ioapic_id)
}

/// The 8254 through the I/O APIC, at the pin that the MADT's override names.
pub fn check_ioapic_pit() -> Verdict {
    let Some(chip) = apic::IoApic::find() else { skip!("no I/O APIC") };
    let (pin, low) = apic::isa_pin(0);
    pic::open(0);
    trap::clear(VECTOR, trap::EOI_APIC, None);
    time::start_channel0((PIT_HZ / 100) as u16);
    chip.route(pin, apic::id(), low | u32::from(VECTOR));
    let us = five_ticks(VECTOR);
    chip.mask_all();
    good!("pin {pin}, five periods of 10 ms took {} us", us?)
}

/// RTC periodic interrupts through the I/O APIC.
pub fn check_ioapic_rtc() -> Verdict {
    let Some(chip) = apic::IoApic::find() else { skip!("no I/O APIC") };
    let (pin, low) = apic::isa_pin(8);
    trap::clear(VECTOR, trap::EOI_APIC, Some(cmos::quiet));
    chip.route(pin, apic::id(), low | u32::from(VECTOR));
    let came = cmos::periodic(|| {
        time::spin_until(1000, || {
            cpu::interrupts_for_a_while();
            trap::count(VECTOR) >= 8
        })
    });
    chip.mask_all();
    ensure!(came, "{} interrupts, 8 wanted", trap::count(VECTOR));
    good!("pin {pin}")
}

static LEFT: AtomicU64 = AtomicU64::new(0);

fn quiet_uart_at_last() {
    if LEFT.fetch_sub(1, Relaxed) == 1 {
        quiet_uart();
    }
}

/// A level-triggered pin that stays high comes again after each EOI (remote IRR), until the device is quiet.
pub fn check_ioapic_level() -> Verdict {
    let Some(chip) = apic::IoApic::find() else { skip!("no I/O APIC") };
    crate::serial::drain();
    let (pin, _) = apic::isa_pin(4);
    trap::clear(VECTOR, trap::EOI_APIC, Some(quiet_uart_at_last));
    LEFT.store(3, Relaxed);
    chip.route(pin, apic::id(), 1 << 15 | u32::from(VECTOR));
    outb(COM1 + IER, 2);
    let came = time::spin_until(500, || {
        cpu::interrupts_for_a_while();
        trap::count(VECTOR) >= 3
    });
    for _ in 0..8 {
        cpu::interrupt_window();
    }
    outb(COM1 + IER, 0);
    let stuck = chip.read(0x10 + 2 * pin) & 1 << 14;
    chip.mask_all();
    ensure!(came, "{} interrupts, 3 wanted", trap::count(VECTOR));
    ensure!(trap::count(VECTOR) == 3, "{} interrupts after the line fell", trap::count(VECTOR));
    ensure!(stuck == 0, "remote IRR stays set");
    good!("pin {pin}: three deliveries for three EOIs")
}

/// Registers of the local APIC.
pub fn check_apic() -> Verdict {
    if !apic::present() {
        skip!("no local APIC");
    }
    let version = apic::read(apic::VERSION);
    ensure!((0x10..=0x2f).contains(&(version & 0xff)), "version {version:#x}");
    ensure!(version >> 16 & 0xff >= 3, "highest LVT entry {}", version >> 16 & 0xff);
    ensure!(acpi().lapic == apic::base() || acpi().lapic == 0, "at {:#x}, MADT {:#x}", apic::base(), acpi().lapic);
    ensure!(acpi().apic_ids[..acpi().cpus].contains(&apic::id()) || acpi().cpus == 0, "id {} not in MADT", apic::id());
    let told = cpu::cpuid(1, 0).ebx >> 24;
    ensure!(told == apic::id(), "id {}, CPUID says {told}", apic::id());
    for (name, register, mask) in
        [("TPR", apic::TPR, 0xff), ("LDR", apic::LDR, 0xff00_0000), ("DFR", apic::DFR, 0xf000_0000)]
    {
        let old = apic::read(register);
        apic::write(register, 0x5a5a_5a5a & mask);
        let got = apic::read(register) & mask;
        apic::write(register, old);
        ensure!(got == 0x5a5a_5a5a & mask, "{name} reads back {got:#x}");
    }
    apic::write(apic::ESR, 0);
    ensure!(apic::read(apic::ESR) == 0, "ESR {:#x}", apic::read(apic::ESR));
    good!("version {version:#x}, id {}", apic::id())
}

static IN_SERVICE: AtomicU64 = AtomicU64::new(0);

fn note_service() {
    IN_SERVICE.store(u64::from(apic::bit(apic::ISR, VECTOR)) | u64::from(apic::read(apic::PPR)) << 8, Relaxed);
}

/// Self-IPI: pending while IF is clear, in service in the handler, gone after EOI; the higher of two comes first.
pub fn check_ipi() -> Verdict {
    if !apic::present() {
        skip!("no local APIC");
    }
    trap::clear(VECTOR, trap::EOI_APIC, Some(note_service));
    trap::clear(HIGH, trap::EOI_APIC, None);
    apic::send(0, apic::FIXED | apic::SELF | u32::from(VECTOR));
    ensure!(time::spin_until(100, || apic::bit(apic::IRR, VECTOR)), "not in IRR");
    ensure!(trap::count(VECTOR) == 0, "delivered with IF clear");
    apic::send(0, apic::FIXED | apic::SELF | u32::from(HIGH));
    ensure!(time::spin_until(100, || apic::bit(apic::IRR, HIGH)), "the second is not in IRR");
    trap::clear_order();
    for _ in 0..4 {
        cpu::interrupt_window();
    }
    let order = [trap::order(0), trap::order(1), trap::order(2)];
    ensure!(order == [HIGH, VECTOR, 0], "vectors {order:x?}, wanted {HIGH:x}, {VECTOR:x}");
    let seen = IN_SERVICE.load(Relaxed);
    ensure!(seen & 1 == 1, "not in ISR in its handler");
    ensure!(seen >> 8 & 0xf0 == u64::from(VECTOR & 0xf0), "PPR {:#x} in the handler", seen >> 8);
    ensure!(!apic::bit(apic::ISR, VECTOR) && !apic::bit(apic::IRR, VECTOR), "still in ISR or IRR after EOI");
    good!("IRR, ISR, PPR, higher vector first")
}

/// TPR and CR8 hold back vectors of their class and below.
pub fn check_tpr() -> Verdict {
    if !apic::present() {
        skip!("no local APIC");
    }
    for by_cr8 in [false, true] {
        let set = |class: u64| if by_cr8 { cpu::set_cr8(class) } else { apic::write(apic::TPR, (class << 4) as u32) };
        trap::clear(VECTOR, trap::EOI_APIC, None);
        trap::clear(HIGH, trap::EOI_APIC, None);
        set(5);
        let both = if by_cr8 { apic::read(apic::TPR) == 0x50 } else { cpu::cr8() == 5 };
        apic::send(0, apic::FIXED | apic::SELF | u32::from(VECTOR));
        apic::send(0, apic::FIXED | apic::SELF | u32::from(HIGH));
        let high = take(HIGH, 100);
        time::spin_until(1, || false);
        cpu::interrupt_window();
        let held = trap::count(VECTOR) == 0 && apic::bit(apic::IRR, VECTOR);
        set(0);
        let low = take(VECTOR, 100);
        let name = if by_cr8 { "CR8" } else { "TPR" };
        ensure!(both, "{name}: TPR {:#x} and CR8 {} disagree", apic::read(apic::TPR), cpu::cr8());
        ensure!(high, "{name} 5x holds back vector {HIGH:#x}");
        ensure!(held, "{name} 5x lets vector {VECTOR:#x} through");
        ensure!(low, "{name}: vector {VECTOR:#x} does not come at 0");
    }
    good!("class 5 held by TPR and by CR8")
}

/// NMI by interrupt command comes with IF clear, and never twice inside its handler.
pub fn check_nmi() -> Verdict {
    if !apic::present() {
        skip!("no local APIC");
    }
    trap::clear(2, trap::EOI_NONE, Some(another_nmi));
    LEFT.store(1, Relaxed);
    apic::send(apic::id(), apic::NMI);
    let came = time::spin_until(100, || trap::count(2) >= 2);
    let nested = IN_SERVICE.load(Relaxed) != 0;
    ensure!(came, "{} of 2", trap::count(2));
    ensure!(!nested, "the second came inside the handler of the first");
    good!("two in a row, not nested")
}

fn another_nmi() {
    if LEFT.load(Relaxed) == 1 {
        LEFT.store(0, Relaxed);
        IN_SERVICE.store(0, Relaxed);
        apic::send(apic::id(), apic::NMI);
        let start = trap::count(2);
        time::spin_until(1, || trap::count(2) != start);
        IN_SERVICE.store(u64::from(trap::count(2) != start), Relaxed);
    }
}

/// x2APIC: registers as MSRs, self-IPI, EOI, timer, and the way back.
pub fn check_x2apic() -> Verdict {
    if !apic::present() || cpu::cpuid(1, 0).ecx & 1 << 21 == 0 {
        skip!("not offered");
    }
    let id = apic::id();
    apic::enter_x2apic();
    let result = x2apic_inside(id);
    apic::leave_x2apic();
    let detail = result?;
    ensure!(!apic::in_x2apic() && apic::id() == id, "no way back to xAPIC");
    Ok(detail)
}

fn x2apic_inside(id: u32) -> Verdict {
    ensure!(apic::in_x2apic(), "APIC_BASE bit 10 does not stay set");
    apic::write(apic::SVR, 0x1ff);
    apic::write(apic::LVT_LINT0, 0x700);
    ensure!(apic::id() == id, "id {}, was {id}", apic::id());
    let ldr = apic::read(apic::LDR);
    ensure!(ldr == (id >> 4) << 16 | 1 << (id & 15), "LDR {ldr:#x} for id {id}");
    let fault = catch_wrmsr(0x80d, 0).is_some_and(|c| c.vector == trap::GP);
    ensure!(fault, "a write to the read-only LDR does not fault");
    trap::clear(VECTOR, trap::EOI_APIC, None);
    cpu::wrmsr(0x83f, u64::from(VECTOR));
    ensure!(take(VECTOR, 100), "no self-IPI through MSR 83Fh");
    trap::clear(VECTOR, trap::EOI_APIC, None);
    apic::send(id, apic::FIXED | u32::from(VECTOR));
    ensure!(take(VECTOR, 100), "no IPI through MSR 830h");
    ensure!(!apic::bit(apic::ISR, VECTOR), "EOI through MSR 80Bh does nothing");
    trap::clear(VECTOR, trap::EOI_APIC, None);
    apic::write(apic::TIMER_DIVIDE, 0x0b);
    apic::write(apic::LVT_TIMER, u32::from(VECTOR));
    apic::write(apic::TIMER_INITIAL, 100_000);
    ensure!(take(VECTOR, 1000), "no timer interrupt");
    good!("id {id}, LDR {ldr:#x}, self-IPI, IPI, EOI, timer")
}

/// WRMSR that may fault.
pub fn catch_wrmsr(msr: u32, value: u64) -> Option<trap::Caught> {
    crate::catch!("wrmsr"; in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32)
}

/// RDMSR that may fault.
pub fn catch_rdmsr(msr: u32) -> Option<trap::Caught> {
    crate::catch!("rdmsr"; in("ecx") msr, out("eax") _, out("edx") _)
}

/// Interrupts without an error code switch to the stack that the gate names and keep the flags.
pub fn check_software_int() -> Verdict {
    trap::clear(0x90, trap::EOI_NONE, None);
    let (before, after): (u64, u64);
    // SAFETY: the gate of vector 90h is an ordinary one.
    unsafe {
        core::arch::asm!("stc", "std", "pushfq", "int 0x90", "pushfq", "cld", "pop {after}", "pop {before}",
            before = out(reg) before, after = out(reg) after);
    }
    ensure!(trap::count(0x90) == 1, "INT 90h taken {} times", trap::count(0x90));
    ensure!(before == after, "RFLAGS {before:#x} became {after:#x}");
    let unused = mem::free();
    good!("INT 90h, RFLAGS {after:#x} kept ({} KiB free)", unused >> 10)
}
