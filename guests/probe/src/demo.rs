//! The embedded demo: a page about the machine, for people.

use crate::acpi::acpi;
use crate::pci::{self, class_name};
use crate::report::{Bad, Verdict};
use crate::{apic, cmos, cpuid, disk, intr, mem, println, smoke, smp, start, text, time, timers};

fn mhz(hz: u64) -> crate::report::Text {
    text!("{}.{:03} MHz", hz / 1_000_000, hz / 1000 % 1000)
}

fn size(bytes: u64) -> crate::report::Text {
    match bytes {
        0..0x10_0000 => text!("{} KiB", bytes >> 10),
        0x10_0000..0x8000_0000 => text!("{} MiB", bytes >> 20),
        _ => text!("{} GiB", bytes >> 30),
    }
}

/// A verdict as a clause.
fn clause(name: &str, verdict: Verdict) -> bool {
    match verdict {
        Ok(detail) => println!("           {name:<16} {detail}"),
        Err(Bad::Skip(detail)) => println!("           {name:<16} not tried: {detail}"),
        Err(Bad::Fail(detail)) => {
            println!("           {name:<16} WRONG: {detail}");
            return false;
        }
    }
    true
}

/// Prints the report; true if nothing was wrong.
pub fn run() -> bool {
    println!();
    println!("bhyve-rs demo guest: a small program on the bare virtual machine, without an operating system.");
    println!();
    processor();
    memory();
    let good = clocks_and_interrupts();
    let devices = devices();
    println!();
    println!("{}", if good { "All is well." } else { "Something is wrong: see above." });
    println!("Found {devices}. Powering off through ACPI.");
    good
}

fn processor() {
    let (family, model, stepping) = cpuid::signature();
    println!("processor  {} family {family} model {model} stepping {stepping}", cpuid::vendor());
    let brand = cpuid::brand();
    if !brand.as_str().is_empty() {
        println!("           {}", brand.as_str().trim());
    }
    println!("           {}", cpuid::features());
    if let Some(name) = cpuid::hypervisor() {
        println!("           under a hypervisor that calls itself \"{name}\"");
    }
    match smp::start_all() {
        Ok(others) => println!("           {} of {} processors started", others + 1, acpi().cpus.max(1)),
        Err(why) => println!("           one processor used ({why})"),
    }
    smp::park();
}

fn memory() {
    let ram: u64 = start::memory().iter().filter(|r| r.kind == start::RAM).map(|r| r.size).sum();
    println!("memory     {} usable, {} of it free", size(ram), size(mem::free()));
    for r in start::memory() {
        let kind = match r.kind {
            1 => "usable",
            2 => "reserved",
            3 => "ACPI tables",
            4 => "ACPI NVS",
            _ => "other",
        };
        println!("           {:012x}-{:012x} {kind}", r.address, r.address + r.size.max(1) - 1);
    }
}

fn clocks_and_interrupts() -> bool {
    let t = cmos::now();
    println!(
        "clocks     {:04}-{:02}-{:02} {:02}:{:02}:{:02} by the RTC; TSC {} by the 8254",
        t.year,
        t.month,
        t.day,
        t.hour,
        t.minute,
        t.second,
        mhz(time::tsc_hz())
    );
    let mut good = clause("8254", smoke::guarded(timers::check_pit));
    good &= clause("ACPI PM timer", smoke::guarded(timers::check_pm_timer));
    good &= clause("HPET", smoke::guarded(timers::check_hpet));
    println!("interrupts");
    good &= clause("8259 pair, IRQ 0", smoke::guarded(intr::check_pic_irq0));
    good &= clause("8259 pair, IRQ 8", smoke::guarded(intr::check_pic_irq8));
    good &= clause("I/O APIC, 8254", smoke::guarded(intr::check_ioapic_pit));
    if apic::present() {
        good &= clause("local APIC timer", smoke::guarded(timers::check_apic_timer));
    }
    good
}

/// Lists PCI functions and drives; returns a summary.
fn devices() -> crate::report::Text {
    let (mut functions, mut nics, mut controllers, mut drives) = (0, 0, 0, 0);
    if pci::present() {
        println!("PCI");
        pci::walk(|f| {
            functions += 1;
            let (ids, class) = (f.ids(), f.class());
            match class >> 16 {
                1 => controllers += 1,
                2 => nics += 1,
                _ => {}
            }
            let (pin, line) = f.interrupt();
            let wire = match pin {
                1..=4 => text!(", INT{} line {line}", char::from(b'@' + pin)),
                _ => text!(""),
            };
            println!("  {f}  {:04x}:{:04x} {class:06x} {}{wire}", ids & 0xffff, ids >> 16, class_name(class));
            f.each_bar(|n, bar| {
                let kind = match (bar.io, bar.wide, bar.prefetch) {
                    (true, ..) => "ports",
                    (false, true, true) => "memory, 64-bit, prefetchable",
                    (false, true, false) => "memory, 64-bit",
                    (false, false, true) => "memory, prefetchable",
                    (false, false, false) => "memory",
                };
                if bar.io || bar.size < 1024 {
                    println!("           BAR {n} at {:#x}, {} bytes, {kind}", bar.base, bar.size);
                } else {
                    println!("           BAR {n} at {:#x}, {}, {kind}", bar.base, size(bar.size));
                }
            });
        });
    } else {
        println!("PCI        none");
    }
    let mut header = "drives    ";
    for channel in 0..2 {
        for slave in [false, true] {
            let Some(d) = disk::identify(channel, slave) else { continue };
            drives += 1;
            let place = disk::Drive::place(channel, slave);
            if d.packet {
                println!("{header} IDE {place}: {} (removable, ATAPI)", d.model.as_str().trim());
            } else {
                let kind = match d.read_pio() {
                    Some((pio, boots)) => {
                        let dma = match d.read_dma() {
                            Some(Ok(dma)) if dma == pio => "read by PIO and DMA",
                            Some(_) => "WRONG: DMA reads something else",
                            None => "read by PIO",
                        };
                        text!("{} boot sector, {dma} ({pio:08x})", if boots { "has a" } else { "has no" })
                    }
                    None => text!("cannot be read"),
                };
                println!("{header} IDE {place}: {}, {}, {kind}", d.model.as_str().trim(), size(d.sectors * 512));
            }
            header = "          ";
        }
    }
    text!(
        "{functions} PCI function{}, {drives} IDE drive{}, {controllers} storage controller{}, {nics} network card{}",
        if functions == 1 { "" } else { "s" },
        if drives == 1 { "" } else { "s" },
        if controllers == 1 { "" } else { "s" },
        if nics == 1 { "" } else { "s" }
    )
}
