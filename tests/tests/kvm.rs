//! KVM, where the host has it. Some hosts' kernels interpret guests instead of having the processor run them, at one or
//! two million instructions a second, so the guests are small; `tests/nested-kvm` boots Linux on a processor that
//! virtualizes.

use std::fs::OpenOptions;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine_tests::{Ended, Scratch, guest, probe, run, skip};

/// Whether there is KVM here; a named skip if not.
fn kvm() -> bool {
    let there = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if !there {
        skip("/dev/kvm");
    }
    there
}

fn start(name: &str, words: &[&str], settings: &[&str], seconds: u64) -> Ended {
    let name = format!("name=kvm-{name}-{}", std::process::id());
    let mut args: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
    for s in settings.iter().copied().chain([name.as_str(), "backend=kvm"]) {
        args.extend(["-o".to_owned(), s.to_owned()]);
    }
    run(&args, seconds)
}

/// What KVM is without: FERR#, for which the check waits for ever, breakpoints on ports, and on AMD's processors the lower
/// half of the TPR.
const LACKS: &str = "pic-irq13,exc-debug,lapic";
/// What is beyond kernels that interpret guests: traps and faults between the elements of string instructions, rights of
/// pages for user code, instructions that they take for undefined, CMPXCHG16B in one piece, a window of one instruction
/// for interrupts, which comes often enough or not as the host is busy, the end of an interrupt at once, and time.
const INTERPRETED: &str = "exc-step,page-smap,user,user-syscall,user-ac,string-fault,sse-int,xsave,smp-atomics,\
                           pic-irq8,pic-priority,hpet-irq,uart-irq,lapic-ipi,lapic-tpr,ioapic-level,x2apic,\
                           smp-x2apic";

/// Whether the processor runs guests itself.
fn virtualizes() -> bool {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    info.lines().any(|l| l.starts_with("flags") && l.split_whitespace().any(|flag| flag == "svm" || flag == "vmx"))
}

fn probe_passes(name: &str, settings: &[&str]) {
    if !kvm() {
        return;
    }
    let not = if virtualizes() { LACKS.to_owned() } else { format!("{LACKS},{INTERPRETED}") };
    let words = format!("smoke not={not} late=400");
    let ended = start(name, &["--kernel", &probe(), "--args", &words], settings, 300);
    let failed: Vec<&str> = ended.console.lines().filter(|l| l.contains(" FAIL")).collect();
    assert_eq!(failed, Vec::<&str>::new(), "{}", ended.stderr);
    assert!(ended.console.lines().any(|l| l.starts_with("PROBE done ")), "{}\n{}", ended.console, ended.stderr);
    assert_eq!(ended.status, 1, "{}", ended.stderr);
}

#[test]
fn the_probe_passes_on_one_processor() {
    probe_passes("probe1", &[]);
}

#[test]
fn the_probe_passes_on_four_processors() {
    probe_passes("probe4", &["cpus=4"]);
}

#[test]
fn a_triple_fault_reports_the_registers_and_the_code() {
    if !kvm() {
        return;
    }
    let ended = start("triple", &["--kernel", &probe(), "--args", "reset=triple"], &[], 60);
    assert_eq!(ended.status, 3, "{}", ended.stderr);
    assert!(ended.stderr.contains("RIP=") && ended.stderr.contains("code ("), "{}", ended.stderr);
}

#[test]
fn processors_that_nothing_can_wake_end_the_machine() {
    if kvm() {
        assert_eq!(start("halt", &["--kernel", &probe(), "--args", "halt"], &["cpus=2"], 60).status, 2);
    }
}

/// A boot sector that says so at COM1 by INT 14h and resets the machine by the 8042.
fn boot_sector() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    for byte in b"BOOTED\r\n" {
        a.mov(ax, 0x100 | u32::from(*byte))?;
        a.xor(dx, dx)?;
        a.int(0x14u32)?;
    }
    a.mov(al, 0xfeu32)?;
    a.out(0x64u32, al)?;
    a.hlt()?;
    let mut sector = a.assemble(0x7c00)?;
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    Ok(sector)
}

fn boots(name: &str, firmware: &[&str]) -> Option<Ended> {
    if !kvm() {
        return None;
    }
    let scratch = Scratch::new(&format!("kvm-{name}"));
    let path = scratch.path("disk.img");
    std::fs::write(&path, boot_sector().expect("the boot sector's code")).expect("a scratch file");
    let disk = format!("disk.0.path={path}");
    let settings = [&[disk.as_str(), "serial.0.backend=stdio", "memory=32M"], firmware].concat();
    let ended = start(name, &["--trace", "firmware"], &settings, 300);
    assert!(ended.console.contains("BOOTED"), "{}\n{}", ended.console, ended.stderr);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    Some(ended)
}

#[test]
fn the_built_in_bios_boots_a_disk() {
    boots("bios", &[]);
}

#[test]
fn seabios_comes_to_its_boot_prompt_and_boots_a_disk() {
    let Some(image) = guest("media/bios-256k.bin") else { return };
    let Some(ended) = boots("seabios", &[&format!("boot.firmware={image}")]) else { return };
    assert!(ended.stderr.contains("Booting from Hard Disk..."), "{}", ended.stderr);
}
