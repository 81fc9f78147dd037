//! What a model does not have: instructions, flags, control registers and MSRs; and what CPUID says of each.

use iced_x86::code_asm::*;

use super::*;
use crate::feature::Feature::{self, *};
use crate::feature::Features;
use crate::flags::{AC, ID};
use crate::fpu::ErrorPins;
use crate::insn::{RAX, RCX};

/// A machine of a model with everything switched on that an instruction could ask for.
fn machine(model: Model, long: bool) -> Machine {
    let mut m = if long { super::long::machine_with(model, 0) } else { Machine::protected_with(model) };
    m.cpu.cr4 |= m.cpu.model.cr4_mask() & (1 << 9 | 1 << 10 | 1 << 16 | 1 << 18);
    m.cpu.msr.efer |= 1;
    m.cpu.gpr[RAX as usize] = 0x6000;
    m
}

/// Whether a processor with these features knows an instruction, whatever else it thinks of it.
fn known(features: Features, bytes: &[u8], long: bool) -> bool {
    // SYSCALL outside 64-bit code is AMD's.
    let model = Model { features, vendor: *b"AuthenticAMD", ..Model::default() };
    let mut m = machine(model, long);
    m.code(if long { 64 } else { 32 }, |a| a.db(&[bytes, &[0xf4]].concat()).unwrap());
    let shut = m.step() == Exit::Shutdown;
    assert!(!shut, "{bytes:02x?}");
    !(HANDLERS + 6 * 16..HANDLERS + 7 * 16).contains(&m.cpu.rip)
}

#[test]
fn an_instruction_without_its_feature_is_undefined() {
    // With EAX or RAX as the address of memory operands. Where several features have the instruction, it is there
    // until the last is gone.
    let table: &[(&[u8], &[Feature])] = &[
        (&[0x0f, 0xb1, 0x08], &[I486]),
        (&[0x0f, 0xc1, 0x08], &[I486]),
        (&[0x0f, 0xc8], &[I486]),
        (&[0x0f, 0x01, 0x38], &[I486]),
        (&[0x0f, 0x09], &[I486]),
        (&[0x0f, 0xa2], &[Cpuid]),
        (&[0x0f, 0x1f, 0x00], &[Nopl]),
        (&[0x0f, 0x18, 0x00], &[Nopl, Sse, Mmxext]),
        (&[0x0f, 0x0d, 0x08], &[Lm, Prefetchw]),
        (&[0x0f, 0x31], &[Tsc]),
        (&[0x0f, 0x32], &[Msr]),
        (&[0x0f, 0x30], &[Msr]),
        (&[0x0f, 0x33], &[Mmx, Cmov]),
        (&[0x0f, 0xc7, 0x08], &[Cx8]),
        (&[0x0f, 0x34], &[Sep]),
        (&[0x0f, 0x05], &[Syscall]),
        (&[0x0f, 0x40, 0xc1], &[Cmov]),
        (&[0xda, 0xc1], &[Cmov]),
        (&[0xdb, 0xf1], &[Cmov]),
        (&[0xdf, 0xe9], &[Cmov]),
        (&[0x0f, 0xae, 0x38], &[Clflush]),
        (&[0x0f, 0x77], &[Mmx]),
        (&[0x0f, 0x6f, 0xc1], &[Mmx]),
        (&[0x0f, 0xfc, 0xc1], &[Mmx]),
        (&[0x0f, 0x71, 0xd0, 1], &[Mmx]),
        (&[0x0f, 0x70, 0xc1, 0], &[Sse, Mmxext]),
        (&[0x0f, 0xe0, 0xc1], &[Sse, Mmxext]),
        (&[0x0f, 0xae, 0xf8], &[Sse, Mmxext]),
        (&[0x0f, 0xd4, 0xc1], &[Sse2]),
        (&[0x0f, 0xf4, 0xc1], &[Sse2]),
        (&[0x0f, 0xae, 0x00], &[Fxsr]),
        (&[0x0f, 0xae, 0x18], &[Sse]),
        (&[0x0f, 0x28, 0xc1], &[Sse]),
        (&[0xf3, 0x0f, 0x58, 0xc1], &[Sse]),
        (&[0xf3, 0x0f, 0x2a, 0xc1], &[Sse]),
        (&[0x66, 0x0f, 0x28, 0xc1], &[Sse2]),
        (&[0xf2, 0x0f, 0x58, 0xc1], &[Sse2]),
        (&[0x0f, 0x5a, 0xc1], &[Sse2]),
        (&[0xf3, 0x0f, 0x5b, 0xc1], &[Sse2]),
        (&[0xf3, 0x0f, 0x6f, 0xc1], &[Sse2]),
        (&[0x66, 0x0f, 0xfc, 0xc1], &[Sse2]),
        (&[0x66, 0x0f, 0xc4, 0xc1, 0], &[Sse2]),
        (&[0xf3, 0x0f, 0xd6, 0xc1], &[Sse2]),
        (&[0x66, 0x0f, 0xe6, 0xc1], &[Sse2]),
        (&[0x0f, 0xc3, 0x08], &[Sse2]),
        (&[0x0f, 0xae, 0xe8], &[Sse2]),
        (&[0x0f, 0xae, 0xf0], &[Sse2]),
        (&[0xf2, 0x0f, 0x12, 0xc1], &[Sse3]),
        (&[0xf3, 0x0f, 0x16, 0xc1], &[Sse3]),
        (&[0x66, 0x0f, 0x7c, 0xc1], &[Sse3]),
        (&[0xf2, 0x0f, 0xf0, 0x00], &[Sse3]),
        (&[0xdf, 0x08], &[Sse3]),
        (&[0x0f, 0x38, 0x00, 0xc1], &[Ssse3]),
        (&[0x66, 0x0f, 0x3a, 0x0f, 0xc1, 1], &[Ssse3]),
        (&[0x66, 0x0f, 0x38, 0x17, 0xc1], &[Sse41]),
        (&[0x66, 0x0f, 0x3a, 0x14, 0xc1, 1], &[Sse41]),
        (&[0x66, 0x0f, 0x38, 0x37, 0xc1], &[Sse42]),
        (&[0x66, 0x0f, 0x3a, 0x62, 0xc1, 0], &[Sse42]),
        (&[0xf2, 0x0f, 0x38, 0xf0, 0xc1], &[Sse42]),
        (&[0xf3, 0x0f, 0xb8, 0xc1], &[Popcnt]),
        (&[0x0f, 0x01, 0xcb], &[Smap]),
        (&[0x0f, 0x01, 0xd0], &[Xsave]),
        (&[0x0f, 0xae, 0x20], &[Xsave]),
        (&[0x0f, 0x01, 0xf9], &[Rdtscp]),
    ];
    let long: &[(&[u8], &[Feature])] = &[
        (&[0x9f], &[LahfLm]),
        (&[0x48, 0x0f, 0xc7, 0x08], &[Cx16]),
        (&[0xf3, 0x0f, 0xae, 0xc0], &[Fsgsbase]),
        (&[0x0f, 0x01, 0xf8], &[Lm]),
    ];
    for (table, long) in [(table, false), (long, true)] {
        for (bytes, features) in table {
            assert!(known(Features::ALL, bytes, long), "{bytes:02x?}");
            let mut left = Features::ALL;
            for feature in *features {
                assert!(known(left, bytes, long), "{bytes:02x?} before {}", feature.name());
                left = left.without(&[*feature]);
            }
            assert!(!known(left, bytes, long), "{bytes:02x?} without {features:?}");
        }
    }
    // Nobody lacks these.
    for bytes in [&[0x0f, 0xa3, 0xc8][..], &[0x0f, 0xb6, 0xc1], &[0xd9, 0xe8], &[0x0f, 0x20, 0xc0], &[0xf3, 0x90]] {
        assert!(known(Features::NONE, bytes, false), "{bytes:02x?}");
    }
    let i486 = Model::named("486").unwrap().features;
    assert!(!known(i486, &[0x0f, 0x20, 0xe0], false), "CR4");
    assert!(known(i486.with(&[Pse]), &[0x0f, 0x20, 0xe0], false));
}

#[test]
fn eflags_tell_the_386_the_486_and_those_with_cpuid_apart() {
    for (name, kept) in [("386", 0), ("486", AC), ("pentium", AC | ID), ("opteron", AC | ID)] {
        let mut m = Machine::protected_with(Model::named(name).unwrap());
        m.code(32, |a| {
            a.push((AC | ID) as i32).unwrap();
            a.popfd().unwrap();
            a.pushfd().unwrap();
            a.pop(eax).unwrap();
            a.hlt().unwrap();
        });
        m.runs();
        assert_eq!(m.gpr(RAX) & (AC | ID), kept, "{name}");
    }
}

#[test]
fn cr0_of_the_386_has_no_wp_and_no_ne() {
    for (name, want) in [("386", 0x1f), ("486", 0x0005_003f)] {
        let mut m = Machine::protected_with(Model::named(name).unwrap());
        m.code(32, |a| {
            a.mov(eax, 0x0005_003f).unwrap();
            a.mov(cr0, eax).unwrap();
            a.mov(eax, cr0).unwrap();
            a.hlt().unwrap();
        });
        m.runs();
        assert_eq!(m.gpr(RAX), want, "{name}");
    }
}

#[test]
fn registers_of_other_models_are_not_there() {
    const TSC: u32 = 0x10;
    const APIC_BASE: u32 = 0x1b;
    const MTRRCAP: u32 = 0xfe;
    const SYSENTER_CS: u32 = 0x174;
    const MCG_CAP: u32 = 0x179;
    const MISC_ENABLE: u32 = 0x1a0;
    const PAT: u32 = 0x277;
    const EFER: u32 = 0xc000_0080;
    const LSTAR: u32 = 0xc000_0082;
    const TSC_AUX: u32 = 0xc000_0103;
    const HWCR: u32 = 0xc001_0015;
    let all = [TSC, APIC_BASE, MTRRCAP, SYSENTER_CS, MCG_CAP, MISC_ENABLE, PAT, EFER, LSTAR, TSC_AUX, HWCR];
    for (name, there) in [
        ("486", &[][..]),
        ("pentium", &[TSC]),
        ("pentium-pro", &[TSC, APIC_BASE, MTRRCAP, MCG_CAP]),
        ("pentium3", &[TSC, APIC_BASE, MTRRCAP, SYSENTER_CS, MCG_CAP, PAT]),
        ("pentium4", &[TSC, APIC_BASE, MTRRCAP, SYSENTER_CS, MCG_CAP, MISC_ENABLE, PAT]),
        ("athlon", &[TSC, APIC_BASE, MTRRCAP, SYSENTER_CS, MCG_CAP, PAT, EFER, HWCR]),
        ("opteron", &[TSC, APIC_BASE, MTRRCAP, SYSENTER_CS, MCG_CAP, PAT, EFER, LSTAR, HWCR]),
        ("core2", &[TSC, APIC_BASE, MTRRCAP, SYSENTER_CS, MCG_CAP, MISC_ENABLE, PAT, EFER, LSTAR]),
    ] {
        let mut m = Machine::protected_with(Model::named(name).unwrap());
        for msr in all {
            assert_eq!(m.cpu.read_msr(msr).is_some(), there.contains(&msr), "{name} {msr:x}");
            assert!(there.contains(&msr) || !m.cpu.write_msr(msr, 0), "{name} {msr:x}");
        }
    }
}

#[test]
fn efer_has_the_bits_of_the_features() {
    for (name, bits) in [("athlon", 1), ("opteron", 0x901), ("core2", 0x901)] {
        let mut m = Machine::protected_with(Model::named(name).unwrap());
        for bit in 0..16 {
            let bit = 1 << bit;
            assert_eq!(m.cpu.write_msr(0xc000_0080, bit), bits & bit != 0 || bit == 1 << 10, "{name} {bit:x}");
        }
    }
}

#[test]
fn leaves_go_as_far_as_the_model_does() {
    // Highest leaf, highest extended leaf, bytes in a line of CLFLUSH, first bytes of the brand.
    for (name, max, extended, line, brand) in [
        ("pentium", 1, 0, 0, ""),
        ("pentium3", 2, 0, 0, ""),
        ("pentium4", 5, 0x8000_0008u32, 8, "              Intel(R) Pentium(R) 4"),
        ("core2", 10, 0x8000_0008, 8, "Intel(R) Core(TM)2"),
        ("opteron", 1, 0x8000_0008, 8, "AMD Opteron(tm)"),
        ("athlon", 1, 0x8000_0008, 0, "AMD Athlon(tm) XP"),
    ] {
        let m = Machine::with(Model::named(name).unwrap());
        assert_eq!(m.cpu.cpuid(0, 0)[0], max, "{name}");
        if extended == 0 {
            assert_eq!(m.cpu.cpuid(0x8000_0000, 0), m.cpu.cpuid(max, 0), "{name}: as the highest leaf");
            assert!(m.cpu.cpuid(0x8000_0000, 0)[0] < 0x8000_0000, "{name}");
        } else {
            assert_eq!(m.cpu.cpuid(0x8000_0000, 0)[0], extended, "{name}");
            let text = (2..5).flat_map(|n| m.cpu.cpuid(0x8000_0000 + n, 0)).flat_map(u32::to_le_bytes);
            assert!(String::from_utf8(text.collect()).unwrap().starts_with(brand), "{name}");
        }
        let [signature, b, ..] = m.cpu.cpuid(1, 0);
        assert_eq!((signature, b >> 8 & 0xff), (m.cpu.model.signature, line), "{name}");
        assert_eq!(m.cpu.regs().gpr[2], u64::from(signature), "{name}: EDX at reset");
    }
    let p3 = Machine::with(Model::named("pentium3").unwrap());
    assert_eq!((p3.cpu.cpuid(1, 0)[1] & 0xff, p3.cpu.cpuid(2, 0)[3]), (2, 0x0c04_0882));
}

#[test]
fn caches_are_as_large_as_they_say() {
    let size = |[a, b, c, _]: [u32; 4]| (a & 31, (b >> 22) + 1, ((b >> 22) + 1) * ((b & 0xfff) + 1) * (c + 1) >> 10);
    let m = Machine::with(Model::named("nehalem").unwrap());
    let all: Vec<_> = (0..5).map(|n| m.cpu.cpuid(4, n)).collect();
    assert_eq!(
        all[..4].iter().map(|c| size(*c)).collect::<Vec<_>>(),
        [(1, 8, 32), (2, 4, 32), (3, 8, 256), (3, 16, 8192)]
    );
    assert_eq!(all[4], [0; 4]);
    let p4 = Machine::with(Model::named("pentium4").unwrap());
    assert_eq!(size(p4.cpu.cpuid(4, 1)), (3, 8, 1024), "a trace cache is not listed");
    let k8 = Machine::with(Model::named("opteron").unwrap());
    assert_eq!(k8.cpu.cpuid(0x8000_0005, 0)[2..], [0x4002_0140, 0x4002_0140]);
    assert_eq!(k8.cpu.cpuid(0x8000_0006, 0)[2], 0x0400_8140);
}

#[test]
fn amd_repeats_leaf_1_and_shows_syscall_in_every_mode() {
    let m = Machine::with(Model::named("opteron").unwrap());
    let [_, _, _, basic] = m.cpu.cpuid(1, 0);
    let [_, _, _, extended] = m.cpu.cpuid(0x8000_0001, 0);
    assert_eq!(extended, basic & 0x0183_f3ff | 1 << 11 | 1 << 20 | 1 << 22 | 1 << 29);
    let m = Machine::with(Model::named("core2").unwrap());
    assert_eq!(m.cpu.cpuid(0x8000_0001, 0)[3], 1 << 20 | 1 << 29);
}

#[test]
fn older_processors_are_packages_of_their_own() {
    for (name, ht, ids) in [("pentium3", false, 0), ("core2", true, 4), ("opteron", false, 0)] {
        let m = Machine::with(Model { cpus: 4, ..Model::named(name).unwrap() });
        let [_, b, _, d] = m.cpu.cpuid(1, 0);
        assert_eq!((d >> 28 & 1 != 0, b >> 16 & 0xff), (ht, ids), "{name}");
    }
}

#[test]
fn without_an_apic_the_8259_is_wired_to_the_processor() {
    let mut m = Machine::protected_with(Model::named("486").unwrap());
    m.cpu.lapic.on_ack(|| 0x77);
    m.interrupts_on();
    m.cpu.lapic.reset();
    m.cpu.lapic.set_lint0(true);
    m.code(32, |a| {
        a.nop().unwrap();
        a.mov(eax, dword_ptr(0xfee0_0030u32)).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.vector(), 0x77);
    // Where the APIC would be there is nothing.
    m.cpu.lapic.set_lint0(false);
    m.code(32, |a| {
        a.mov(eax, dword_ptr(0xfee0_0030u32)).unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!(m.gpr(RAX), 0xffff_ffff);
}

/// Port F0 as boards have it.
struct PortF0 {
    lapic: Arc<Lapic>,
    pins: Arc<ErrorPins>,
}

impl Access for PortF0 {
    fn owner(&self) -> &str {
        "port f0"
    }

    fn read(&self, _: u32, _: u64, _: u8) -> u64 {
        0xff
    }

    fn write(&self, _: u32, _: u64, _: u8, _: u64) {
        self.lapic.set_lint0(false);
        self.pins.ignore();
    }
}

#[test]
fn an_x87_error_with_ne_clear_comes_as_an_interrupt_and_ignne_lets_the_handler_work() {
    for plain in [true, false] {
        let mut m = Machine::protected_with(Model::named("486").unwrap());
        m.interrupts_on();
        let (lapic, pins) = (m.cpu.lapic.clone(), m.cpu.error_pins().clone());
        lapic.on_ack(|| 0x75);
        let wire = lapic.clone();
        pins.on_ferr(move || wire.set_lint0(true));
        let id = m.space.add_ports(0xf0, 1, 0, Arc::new(PortF0 { lapic, pins }), 0, Widths::BYTE);
        m.space.enable_ports(id, 0xf0, true);
        let handler = 0x2_8000u32;
        m.set_gate(0x75, gate(sel::CODE0, handler, 0x8e00));
        let mut a = CodeAssembler::new(32).unwrap();
        a.inc(ecx).unwrap();
        a.out(0xf0, al).unwrap();
        a.fnstsw(ax).unwrap();
        // A waiting instruction goes through although the error is still there.
        a.fld1().unwrap();
        a.fnclex().unwrap();
        a.iretd().unwrap();
        m.ram.write(RamAddr(handler.into()), &a.assemble(handler.into()).unwrap());
        m.code(32, |a| {
            for _ in 0..2 {
                a.fninit().unwrap();
                // Zero divide unmasked.
                a.push(0x037b).unwrap();
                a.fldcw(word_ptr(esp)).unwrap();
                a.fldz().unwrap();
                a.fld1().unwrap();
                a.fdivrp(st1, st0).unwrap();
                a.nop().unwrap();
                a.wait().unwrap();
            }
            a.hlt().unwrap();
        });
        let exit = if plain { m.run() } else { crate::engine::Engine::new().run(&mut m.cpu, 1000, &m.timers) };
        assert_eq!(exit, Exit::Halted, "{:?}", m.cpu.regs());
        assert_eq!(m.gpr(RCX), 2, "one interrupt for each error");
        assert_eq!(m.gpr(RAX) & 0x84, 0x84, "zero divide and ES, as the handler saw them");
        assert!(!m.cpu.fpu.ferr);
    }
}
