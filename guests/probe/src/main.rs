//! `probe`: a freestanding guest in one ELF, booted by PVH, that talks on COM1.
//!
//! Words of the command line choose what it does (`demo` without any): `demo`, `smoke`, `bench=NAME`, `clock`, `loop`,
//! `echo`, `button`, `reset=WAY`, `halt`, `poweroff`. README.md has the details and the lines that it prints.

#![no_std]
#![no_main]

mod acpi;
mod apic;
mod bench;
mod cmos;
mod cpu;
mod cpuid;
mod demo;
mod disk;
mod entry;
mod exceptions;
mod intr;
mod isa;
mod kbd;
mod mem;
mod paging;
mod pci;
mod pic;
mod power;
mod report;
mod serial;
mod smc;
mod smoke;
mod smp;
mod sse;
mod start;
mod strict;
mod strings;
mod time;
mod timers;
mod trap;
mod uart;
mod user;
mod x87;

use cpu::inb;
use serial::{COM1, IER, IIR, LSR, LSR_DR};

/// First Rust code, on the boot stack, with interrupts off; `info` is the physical address of start_info.
#[unsafe(no_mangle)]
extern "C" fn probe_main(info: u64) -> ! {
    serial::init();
    start::take(info);
    acpi::init();
    mem::init();
    trap::init();
    pic::init();
    apic::init();
    if let Some(chip) = apic::IoApic::find() {
        chip.mask_all();
    }
    time::calibrate();
    paging::enable_nx();

    let words = || start::line().split_ascii_whitespace();
    let mode = words().find(|w| is_mode(w.split('=').next().unwrap_or(w))).unwrap_or("demo");
    let (name, value) = mode.split_once('=').unwrap_or((mode, ""));
    match name {
        "smoke" => drop(smoke::run()),
        "bench" => bench::run(if value.is_empty() { "all" } else { value }),
        "clock" => timers::long_run(start::number("n").unwrap_or(10)),
        "loop" => idle(),
        "echo" => echo(),
        "button" => power::wait_for_button(),
        "reset" => power::reset(if value.is_empty() { "kbd" } else { value }),
        "halt" => {
            println!("PROBE halt");
            serial::drain();
            cpu::halt()
        }
        "poweroff" => println!("PROBE poweroff"),
        _ => drop(demo::run()),
    }
    power::off()
}

fn is_mode(word: &str) -> bool {
    matches!(word, "demo" | "smoke" | "bench" | "clock" | "loop" | "echo" | "button" | "reset" | "halt" | "poweroff")
}

/// Sleeps for ever; `hz=N` lets the 8254 tick meanwhile.
fn idle() -> ! {
    let hz = start::number("hz").unwrap_or(0);
    println!("PROBE loop hz {hz}");
    serial::drain();
    if hz >= 19 {
        trap::clear(pic::vector(0), trap::EOI_PIC, None);
        time::start_channel0((time::PIT_HZ / hz).min(0xffff) as u16);
        pic::open(1);
    }
    loop {
        cpu::sti_hlt_cli();
    }
}

static ENDED: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);

/// Sends every received byte back from the interrupt handler, until Ctrl-D.
fn echo() {
    fn handler() {
        while inb(COM1 + IIR) & 1 == 0 {
            while inb(COM1 + LSR) & LSR_DR != 0 {
                match inb(COM1) {
                    4 => ENDED.store(true, core::sync::atomic::Ordering::Relaxed),
                    b'\r' => print!("\n"),
                    byte => serial::put(byte),
                }
            }
        }
    }
    println!("PROBE echo (Ctrl-D ends)");
    trap::clear(pic::vector(4), trap::EOI_PIC, Some(handler));
    pic::open(1 << 4);
    cpu::outb(COM1 + IER, 1);
    while !ENDED.load(core::sync::atomic::Ordering::Relaxed) {
        cpu::sti_hlt_cli();
    }
    pic::open(0);
    println!("PROBE echo end");
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    println!("PROBE stopped: {info}");
    power::off()
}
