//! What the processor says of itself, and whether it keeps to it.

use crate::cpu::{self, MSR_GS_BASE, MSR_KERNEL_GS_BASE, MSR_TSC_AUX, cpuid, rdmsr, wrmsr};
use crate::report::{Text, Verdict};
use crate::{apic, ensure, good, intr};
use core::arch::asm;
use core::fmt::Write;

fn spell(text: &mut Text, words: &[u32]) {
    for word in words {
        for byte in word.to_le_bytes() {
            if byte != 0 {
                let _ = text.write_char(char::from(byte));
            }
        }
    }
}

/// The vendor string of leaf 0.
pub fn vendor() -> Text {
    let leaf = cpuid(0, 0);
    let mut text = Text::new();
    spell(&mut text, &[leaf.ebx, leaf.edx, leaf.ecx]);
    text
}

/// The brand string, empty if there is none.
pub fn brand() -> Text {
    let mut text = Text::new();
    if cpuid(0x8000_0000, 0).eax >= 0x8000_0004 {
        for leaf in 0x8000_0002..=0x8000_0004 {
            let r = cpuid(leaf, 0);
            spell(&mut text, &[r.eax, r.ebx, r.ecx, r.edx]);
        }
    }
    text
}

/// Hypervisor leaf 40000000h, if the hypervisor bit is set.
pub fn hypervisor() -> Option<Text> {
    if cpuid(1, 0).ecx >> 31 == 0 {
        return None;
    }
    let leaf = cpuid(0x4000_0000, 0);
    let mut text = Text::new();
    spell(&mut text, &[leaf.ebx, leaf.ecx, leaf.edx]);
    Some(text)
}

/// Family, model, stepping.
pub fn signature() -> (u32, u32, u32) {
    let eax = cpuid(1, 0).eax;
    let family = eax >> 8 & 15;
    let model = eax >> 4 & 15;
    let whole = if family == 15 { family + (eax >> 20 & 0xff) } else { family };
    let long = if family == 6 || family == 15 { model | eax >> 12 & 0xf0 } else { model };
    (whole, long, eax & 15)
}

/// Names of the features that matter to old and new guests.
pub fn features() -> Text {
    let (one, ext) = (cpuid(1, 0), cpuid(0x8000_0001, 0));
    let seven = if cpuid(0, 0).eax >= 7 { cpuid(7, 0).ebx } else { 0 };
    let table = [
        (one.edx, 0, "fpu"),
        (one.edx, 1, "vme"),
        (one.edx, 3, "pse"),
        (one.edx, 4, "tsc"),
        (one.edx, 6, "pae"),
        (one.edx, 9, "apic"),
        (one.edx, 11, "sep"),
        (one.edx, 12, "mtrr"),
        (one.edx, 13, "pge"),
        (one.edx, 23, "mmx"),
        (one.edx, 25, "sse"),
        (one.edx, 26, "sse2"),
        (one.ecx, 0, "sse3"),
        (one.ecx, 9, "ssse3"),
        (one.ecx, 13, "cx16"),
        (one.ecx, 19, "sse4.1"),
        (one.ecx, 20, "sse4.2"),
        (one.ecx, 21, "x2apic"),
        (one.ecx, 23, "popcnt"),
        (one.ecx, 26, "xsave"),
        (one.ecx, 28, "avx"),
        (seven, 7, "smep"),
        (seven, 20, "smap"),
        (ext.edx, 11, "syscall"),
        (ext.edx, 20, "nx"),
        (ext.edx, 26, "1g-pages"),
        (ext.edx, 27, "rdtscp"),
        (ext.edx, 29, "lm"),
    ];
    let mut text = Text::new();
    for (_, _, name) in table.iter().filter(|(word, bit, _)| word >> bit & 1 != 0) {
        let _ = write!(text, "{}{name}", if text.as_str().is_empty() { "" } else { " " });
    }
    text
}

/// Leaves hang together, and bits that mirror other registers do.
pub fn check() -> Verdict {
    let max = cpuid(0, 0).eax;
    ensure!((1..0x100).contains(&max), "highest leaf {max:#x}");
    let name = vendor();
    ensure!(name.as_str().len() == 12 && !name.as_str().contains('?'), "vendor {name}");
    let one = cpuid(1, 0);
    let floor = 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 13 | 1 << 15 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26;
    ensure!(one.edx & floor == floor, "leaf 1 EDX {:#x} lacks {:#x} of x86-64's floor", one.edx, floor & !one.edx);
    ensure!((one.edx & 1 << 9 != 0) == apic::present(), "the APIC bit does not follow APIC_BASE");
    ensure!((one.ecx & 1 << 27 != 0) == (cpu::cr4() & 1 << 18 != 0), "OSXSAVE does not follow CR4");
    let top = cpuid(0x8000_0000, 0).eax;
    ensure!((0x8000_0001..0x8000_0100).contains(&top), "highest extended leaf {top:#x}");
    let ext = cpuid(0x8000_0001, 0).edx;
    ensure!(ext & 1 << 29 != 0, "no LM in a processor in long mode");
    if top >= 0x8000_0008 {
        let sizes = cpuid(0x8000_0008, 0).eax;
        let (physical, linear) = (sizes & 0xff, sizes >> 8 & 0xff);
        ensure!((32..=52).contains(&physical) && matches!(linear, 48 | 57), "address bits {physical}, {linear}");
    }
    if max >= 4 && name.as_str() == "GenuineIntel" {
        let last = (0..16).find(|i| cpuid(4, *i).eax & 31 == 0);
        ensure!(last.is_some(), "leaf 4 does not end");
    }
    if max >= 0xb {
        let levels = (0..8).take_while(|i| cpuid(0xb, *i).ecx >> 8 & 0xff != 0).count();
        ensure!(levels < 8, "leaf Bh does not end");
        if levels > 0 && apic::present() {
            ensure!(cpuid(0xb, 0).edx & 0xff == apic::id() & 0xff, "leaf Bh: x2APIC id {:#x}", cpuid(0xb, 0).edx);
        }
    }
    let (f, m, s) = signature();
    good!("{name} family {f:#x} model {m:#x} stepping {s}, leaves to {max:#x} and {top:#x}")
}

/// FS, GS and SWAPGS, RDTSCP, and the MSRs that every kernel touches.
pub fn check_msrs() -> Verdict {
    let (gs, kernel) = (rdmsr(MSR_GS_BASE), rdmsr(MSR_KERNEL_GS_BASE));
    wrmsr(MSR_GS_BASE, 0x1111_0000_2222);
    wrmsr(MSR_KERNEL_GS_BASE, 0x3333_0000_4444);
    // SAFETY: GS is not used by compiled code.
    unsafe { asm!("swapgs") };
    let swapped = (rdmsr(MSR_GS_BASE), rdmsr(MSR_KERNEL_GS_BASE));
    let words = [0x1234_5678_9abc_def0u64, 7];
    wrmsr(MSR_GS_BASE, words.as_ptr() as u64 - 0x100);
    let loaded: u64;
    // SAFETY: GS base + 100h is `words`.
    unsafe { asm!("mov {v}, gs:[{a}]", v = out(reg) loaded, a = in(reg) 0x100u64) };
    wrmsr(MSR_GS_BASE, gs);
    wrmsr(MSR_KERNEL_GS_BASE, kernel);
    ensure!(swapped == (0x3333_0000_4444, 0x1111_0000_2222), "SWAPGS: {swapped:x?}");
    ensure!(loaded == words[0], "load through GS: {loaded:#x}");
    let mut rdtscp = "no RDTSCP";
    if cpuid(0x8000_0001, 0).edx & 1 << 27 != 0 {
        let old = rdmsr(MSR_TSC_AUX);
        wrmsr(MSR_TSC_AUX, 0x4711);
        let aux: u32;
        // SAFETY: offered.
        unsafe { asm!("rdtscp", out("eax") _, out("edx") _, out("ecx") aux) };
        wrmsr(MSR_TSC_AUX, old);
        ensure!(aux == 0x4711, "RDTSCP gives TSC_AUX {aux:#x}");
        rdtscp = "RDTSCP";
    }
    let one = cpuid(1, 0).edx;
    for (bit, msr) in [(5, 0x10), (9, 0x1b), (12, 0xfe), (12, 0x2ff), (16, 0x277), (11, 0x174), (14, 0x179)] {
        if one & 1 << bit != 0 {
            let fault = intr::catch_rdmsr(msr);
            ensure!(fault.is_none(), "MSR {msr:#x} faults, though leaf 1 EDX bit {bit} offers it");
        }
    }
    good!("SWAPGS, GS base, {rdtscp}, TSC to MCG_CAP")
}
