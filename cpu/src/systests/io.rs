//! Ports, MSRs, CPUID, the time-stamp counter, power-on state.

use iced_x86::code_asm::*;

use super::*;
use crate::flags::{DF, IOPL};
use crate::insn::{RAX, RBX, RCX, RDI, RDX, RSI};

#[test]
fn widths_of_in_and_out() {
    let mut m = Machine::protected();
    m.cpu.gpr[RBX as usize] = u64::MAX;
    m.code(32, |a| {
        a.mov(edx, 0x110).unwrap();
        a.mov(eax, -1).unwrap();
        a.in_(al, dx).unwrap();
        a.mov(ebx, eax).unwrap();
        a.in_(ax, dx).unwrap();
        a.mov(ecx, eax).unwrap();
        a.in_(eax, dx).unwrap();
        a.out(dx, al).unwrap();
        a.out(dx, eax).unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!(*m.ports.reads.lock().unwrap(), [(0x10, 1), (0x10, 2), (0x10, 4)]);
    assert_eq!((m.gpr(RBX), m.gpr(RCX), m.gpr(RAX)), (0xffff_ff01, 0xffff_1102, 0x1103));
    assert_eq!(*m.ports.writes.lock().unwrap(), [(0x10, 1, 3), (0x10, 4, 0x1103)]);
}

/// Reads port 100h at level 3 under this I/O bitmap byte; whether it was allowed.
fn permitted(iopl: u64, limit: u32, bits: [u8; 2], width: u8) -> bool {
    let mut m = Machine::protected();
    m.level(3);
    m.cpu.rflags |= iopl << 12;
    m.cpu.tr.limit = limit;
    m.write16(TSS + 0x66, 0x68);
    m.write(TSS + 0x68 + 0x20, bits);
    m.code(32, |a| {
        a.mov(edx, 0x106).unwrap();
        match width {
            1 => a.in_(al, dx).unwrap(),
            2 => a.in_(ax, dx).unwrap(),
            _ => a.in_(eax, dx).unwrap(),
        }
        a.int(0x30).unwrap();
    });
    m.vector() == 0x30
}

#[test]
fn the_io_bitmap_allows_ports_one_by_one() {
    assert!(permitted(3, 0x67, [0xff, 0xff], 4));
    assert!(!permitted(0, 0x67, [0, 0], 1), "no bitmap");
    assert!(permitted(0, 0x89, [!0x40, 0xff], 1));
    assert!(!permitted(0, 0x89, [!0x40, 0xff], 2), "the next port is not allowed");
    assert!(permitted(0, 0x89, [0x3f, 0xfc], 4), "across bytes");
    assert!(!permitted(0, 0x89, [0x3f, 0xfe], 4));
    assert!(!permitted(0, 0x88, [0, 0], 1), "the byte after must be inside the limit, too");
}

#[test]
fn rep_insw_fills_memory_by_one_bulk_read() {
    let mut m = Machine::protected();
    m.code(32, |a| {
        a.mov(edi, 0x5ffd).unwrap();
        a.mov(ecx, 6).unwrap();
        a.mov(edx, 0x100).unwrap();
        a.rep().insw().unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!((m.gpr(RCX), m.gpr(RDI)), (0, 0x5ffd + 12));
    for n in 0..6 {
        assert_eq!(m.read16(0x5ffd + 2 * n), 0x1101 + n as u16, "also across the page's end");
    }
    assert_eq!(m.ports.reads.lock().unwrap().len(), 6);
}

#[test]
fn rep_ins_stops_before_the_element_that_faults_and_loses_nothing() {
    let mut m = Machine::protected();
    // ES ends in the middle of the fourth dword.
    m.set_descriptor(sel::FREE, descriptor(0x5000, 0xd, flags::DATA));
    m.code(32, |a| {
        a.mov(eax, u32::from(sel::FREE)).unwrap();
        a.mov(es, eax).unwrap();
        a.xor(edi, edi).unwrap();
        a.mov(ecx, 8).unwrap();
        a.mov(edx, 0x100).unwrap();
        a.rep().insd().unwrap();
    });
    assert_eq!(m.faults32(), (13, 0));
    assert_eq!((m.gpr(RCX), m.gpr(RDI)), (5, 12));
    assert_eq!(m.ports.reads.lock().unwrap().len(), 3, "the device was not read for what could not be stored");
}

#[test]
fn rep_outs_goes_both_ways_and_obeys_segment_overrides() {
    let mut m = Machine::protected();
    m.write(0x6000, [1, 2, 3, 4]);
    m.cpu.seg[FS as usize].base = 0x1000;
    m.cpu.rflags |= DF;
    m.code(32, |a| {
        a.mov(esi, 0x5003).unwrap();
        a.mov(ecx, 4).unwrap();
        a.mov(edx, 0x101).unwrap();
        a.db(&[0x64, 0xf3, 0x6e]).unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!(*m.ports.writes.lock().unwrap(), [(1, 1, 4), (1, 1, 3), (1, 1, 2), (1, 1, 1)]);
    assert_eq!(m.gpr(RSI), 0x4fff);
    m.ports.writes.lock().unwrap().clear();
    m.cpu.rflags &= !DF;
    m.code(32, |a| {
        a.mov(ecx, 0).unwrap();
        a.rep().outsb().unwrap();
        a.outsd().unwrap();
        a.hlt().unwrap();
    });
    m.cpu.gpr[RSI as usize] = 0x6000;
    m.runs();
    assert_eq!(*m.ports.writes.lock().unwrap(), [(1, 4, 0x0403_0201)], "a count of 0 does nothing");
}

#[test]
fn sixteen_bit_addresses_wrap_in_string_io() {
    let mut m = Machine::real();
    m.write(0xfffe, [7, 8]);
    m.write(0, [9, 10]);
    m.code(16, |a| {
        a.mov(si, 0xfffe).unwrap();
        a.mov(cx, 4).unwrap();
        a.mov(dx, 0x100).unwrap();
        a.rep().outsb().unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    let values: Vec<u64> = m.ports.writes.lock().unwrap().iter().map(|w| w.2).collect();
    assert_eq!(values, [7, 8, 9, 10]);
    assert_eq!(m.gpr(RSI), 2);
}

fn wrmsr(m: &mut Machine, msr: u32, v: u64) -> bool {
    m.level(0);
    m.cpu.gpr[RCX as usize] = msr.into();
    m.cpu.gpr[RAX as usize] = v & 0xffff_ffff;
    m.cpu.gpr[RDX as usize] = v >> 32;
    m.code(32, |a| {
        a.wrmsr().unwrap();
        a.hlt().unwrap();
    });
    m.run();
    m.cpu.rip < HANDLERS
}

fn rdmsr(m: &mut Machine, msr: u32) -> Option<u64> {
    m.level(0);
    m.cpu.gpr[RCX as usize] = msr.into();
    m.code(32, |a| {
        a.rdmsr().unwrap();
        a.hlt().unwrap();
    });
    m.run();
    (m.cpu.rip < HANDLERS).then(|| m.gpr(RAX) | m.gpr(RDX) << 32)
}

#[test]
fn msrs_keep_what_fits_and_refuse_the_rest() {
    let mut m = Machine::protected();
    for (msr, v) in [
        (0x174, 0x1234),
        (0x175, 0x1_0000),
        (0x200, 0xd000_0006),
        (0x201, 0xff_f000_0800),
        (0x250, 0x0606_0606_0606_0606),
        (0x26f, 0x0505_0505_0505_0505),
        (0x277, 0x0007_0406_0007_0405),
        (0x2ff, 0xc06),
        (0xc000_0080, 0x901),
        (0xc000_0081, 0x23_0010_0000_0000),
        (0xc000_0103, 7),
    ] {
        assert!(wrmsr(&mut m, msr, v), "{msr:x}");
        assert_eq!(rdmsr(&mut m, msr), Some(v), "{msr:x}");
    }
    for (msr, v) in [
        (0x175, 1 << 63),
        (0x200, 0x2),
        (0x201, 1 << 45),
        (0x250, 0x07),
        (0x277, 0x02),
        (0x2ff, 0x1_0000),
        (0xc000_0080, 2),
        (0xc000_0082, 1 << 47),
        (0xc000_0084, 1 << 32),
        (0x10a, 0),
        (0xfe, 0),
        (0x1234_5678, 0),
        (0x830, 0),
    ] {
        assert!(!wrmsr(&mut m, msr, v), "{msr:x}");
    }
    for (msr, v) in [(0xfe, 0x508), (0x3a, 1), (0x8b, 1 << 32), (0x179, 0)] {
        assert_eq!(rdmsr(&mut m, msr), Some(v), "{msr:x}");
    }
    assert_eq!(rdmsr(&mut m, 0x10a).map(|v| v & 0x21), Some(0x21), "not affected by Meltdown and MDS");
    assert_eq!(rdmsr(&mut m, 0x1234_5678), None);
    let model = Model { ignore_unknown_msrs: true, ..Model::default() };
    let mut m = Machine::protected_with(model);
    assert!(wrmsr(&mut m, 0x1234_5678, 5));
    assert_eq!(rdmsr(&mut m, 0x1234_5678), Some(0));
}

#[test]
fn the_tsc_follows_the_clock_and_can_be_set() {
    let model = Model { tsc_hz: 2_500_000_000, ..Model::default() };
    let mut m = Machine::protected_with(model);
    m.clock.set(10_000_000_004);
    assert_eq!(m.cpu.tsc(), 25_000_000_010);
    assert!(wrmsr(&mut m, 0x10, 1000));
    assert_eq!(rdmsr(&mut m, 0x3b), Some(1000u64.wrapping_sub(25_000_000_010)), "TSC_ADJUST shows it");
    m.clock.set(10_000_000_008);
    assert_eq!(m.cpu.tsc(), 1010);
    assert!(wrmsr(&mut m, 0x3b, 0));
    assert_eq!(m.cpu.tsc(), 25_000_000_020);
    m.cpu.msr.tsc_aux = 9;
    m.code(32, |a| {
        a.rdtscp().unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!((m.gpr(RAX) | m.gpr(RDX) << 32, m.gpr(RCX)), (25_000_000_020, 9));
    let mut m = Machine::protected();
    m.level(3);
    m.cpu.cr4 = 4;
    m.code(32, |a| a.rdtsc().unwrap());
    assert_eq!(m.faults32(), (13, 0), "CR4.TSD");
}

#[test]
fn a_timer_is_awaited_by_a_processor_that_is_ahead_of_the_clock_or_behind() {
    let mut m = Machine::new();
    let nobody: std::sync::Weak<Lapic> = std::sync::Weak::new();
    let timer = m.timers.add(nobody, 0);
    timer.set(5000);
    (m.cpu.clock_follows, m.cpu.icount) = (true, 1000);
    let ns = crate::run::NS_PER_INSN;
    // The time now, and the instructions until the timer.
    for (now, wait) in [(5000 - 10 * ns, 10), (5000 - 10 * ns + 1, 10), (5000, 0), (6000, 0), (0, 5000 / ns)] {
        m.cpu.clock_bias = now.wrapping_sub(1000 * ns);
        assert_eq!(m.cpu.next_timer(&m.timers), 1000 + wait, "at {now} ns");
    }
}

#[test]
fn cpuid_mirrors_the_registers_that_it_should() {
    let mut m = Machine::protected();
    assert_eq!(m.cpu.cpuid(0, 0), [0x16, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
    let [a, b, c, d] = m.cpu.cpuid(1, 0);
    assert_eq!((a, b), (0x30661, 0x0001_0800));
    assert_eq!((c >> 27 & 1, c >> 31, d >> 9 & 1, d >> 28 & 1), (0, 0, 1, 0));
    m.cpu.cr4 |= 1 << 18;
    assert!(wrmsr(&mut m, 0x1b, 0xfee0_0000));
    let [_, _, c, d] = m.cpu.cpuid(1, 0);
    assert_eq!((c >> 27 & 1, d >> 9 & 1), (1, 0), "OSXSAVE and APIC");
    assert_eq!(m.cpu.cpuid(0x8000_0001, 0)[3] >> 11 & 1, 0, "SYSCALL only in 64-bit mode");
    assert_eq!(m.cpu.cpuid(0xd, 0), [3, 576, 576, 0]);
    assert_eq!(m.cpu.cpuid(0x8000_0008, 0)[0], 48 << 8 | 40);
    assert_eq!(m.cpu.cpuid(0x4000_0000, 0), m.cpu.cpuid(0x16, 0), "no hypervisor: as the highest leaf");
    assert!(wrmsr(&mut m, 0x1a0, 1 << 22 | 1));
    assert_eq!(m.cpu.cpuid(0, 0)[0], 3, "MISC_ENABLE limits the leaves");
}

#[test]
fn cpuid_describes_topology_clock_and_hypervisor() {
    let model = Model {
        cpus: 6,
        hypervisor: Some(Model::KVM),
        tsc_hz: 2_394_454_000,
        brand: "a brand of some length that goes on".to_owned(),
        ..Model::default()
    };
    let m = Machine::with(model);
    assert_eq!(m.cpu.cpuid(1, 0)[1] >> 16 & 0xff, 8);
    assert_eq!(m.cpu.cpuid(4, 0)[0] >> 26, 7);
    assert_eq!(m.cpu.cpuid(0xb, 0)[..3], [0, 1, 0x100]);
    assert_eq!(m.cpu.cpuid(0xb, 1)[..3], [3, 6, 0x201]);
    assert_eq!(m.cpu.cpuid(0x16, 0)[..2], [2394, 2394]);
    assert_eq!(m.cpu.cpuid(0x4000_0000, 0)[1], u32::from_le_bytes(*b"KVMK"));
    assert_eq!(m.cpu.cpuid(0x4000_0001, 0), [0; 4]);
    let brand: Vec<u8> = (2..5).flat_map(|n| m.cpu.cpuid(0x8000_0000 + n, 0)).flat_map(u32::to_le_bytes).collect();
    assert!(brand.starts_with(b"a brand of some length that goes on\0"));
}

#[test]
fn the_crystal_tells_linux_the_rate_of_the_tsc_in_32_bits_or_nothing() {
    let told = |tsc_hz: u64| {
        let [den, num, hz, _] = Machine::with(Model { tsc_hz, ..Model::default() }).cpu.cpuid(0x15, 0);
        // As in its native_calibrate_tsc.
        (den != 0).then(|| u64::from((hz / 1000).wrapping_mul(num) / den))
    };
    for khz in [1_000_000, 2_500_000, 2_893_000, 3_600_000, 4_200_000] {
        assert_eq!(told(khz * 1000), Some(khz));
    }
    // KVM measures such.
    assert_eq!(told(999_999_000), Some(1_000_000));
    let mut nothing = 0;
    for khz in (800_000..4_290_000).step_by(999) {
        match told(khz * 1000) {
            Some(there) => assert!(there.abs_diff(khz) * 400_000 <= khz, "{khz} became {there}"),
            None => nothing += 1,
        }
    }
    assert!(nothing < 1000, "{nothing} of 3493");
}

#[test]
fn cpuid_describes_the_topology_that_was_asked_for() {
    let sockets = Machine::with(Model { cpus: 4, cores: 1, ..Model::default() });
    assert_eq!(sockets.cpu.cpuid(1, 0)[3] & 1 << 28, 0, "each is alone in its package");
    assert_eq!((sockets.cpu.cpuid(4, 0)[0] >> 14, sockets.cpu.cpuid(0xb, 1)[1]), (0, 1));
    let threads = Machine::with(Model { cpus: 8, cores: 2, threads: 2, ..Model::default() });
    assert_eq!(threads.cpu.cpuid(1, 0)[1] >> 16 & 0xff, 4);
    assert_eq!((threads.cpu.cpuid(4, 0)[0] >> 26, threads.cpu.cpuid(4, 0)[0] >> 14 & 0xfff), (1, 1));
    assert_eq!(threads.cpu.cpuid(4, 2)[0] >> 14 & 0xfff, 1, "a cache of the core's");
    assert_eq!(threads.cpu.cpuid(0xb, 0)[..3], [1, 2, 0x100]);
    assert_eq!(threads.cpu.cpuid(0xb, 1)[..3], [2, 4, 0x201]);
}

#[test]
fn xcr0_keeps_x87_on() {
    for (ecx_in, v, ok) in [(0, 3, true), (0, 1, true), (0, 2, false), (0, 7, false), (1, 3, false)] {
        let mut m = Machine::protected();
        m.cpu.cr4 |= 1 << 18;
        m.code(32, |a| {
            a.mov(ecx, ecx_in).unwrap();
            a.mov(eax, v).unwrap();
            a.xor(edx, edx).unwrap();
            a.xsetbv().unwrap();
            a.xor(eax, eax).unwrap();
            a.xgetbv().unwrap();
            a.hlt().unwrap();
        });
        if ok {
            m.runs();
            assert_eq!(m.gpr(RAX), v as u64);
        } else {
            assert_eq!(m.faults32(), (13, 0));
        }
    }
    let mut m = Machine::protected();
    m.code(32, |a| a.xgetbv().unwrap());
    assert_eq!(m.vector(), 6);
}

#[test]
fn power_on_is_as_the_manual_says() {
    let m = Machine::new();
    let r = m.cpu.regs();
    assert_eq!((r.rip, r.cs.selector, r.cs.base, r.cs.limit), (0xfff0, 0xf000, 0xffff_0000, 0xffff));
    assert_eq!((r.cr0, r.rflags, r.gpr[2]), (0x6000_0010, 2, 0x30661));
    assert_eq!((r.dr6, r.dr7, r.idtr.limit, r.xcr0), (0xffff_0ff0, 0x400, 0xffff, 1));
    assert!(!r.wait_sipi);
}

#[test]
fn init_keeps_what_it_must_and_an_application_processor_waits() {
    let mut m = Machine::protected();
    m.cpu.msr.pat = 0x0606;
    m.cpu.msr.efer = 0x901;
    m.cpu.cr0 |= 1 << 29;
    m.cpu.fpu.mxcsr = 0x1fa0;
    m.cpu.init();
    assert_eq!((m.cpu.msr.pat, m.cpu.msr.efer, m.cpu.fpu.mxcsr), (0x0606, 0, 0x1fa0));
    assert_eq!(m.cpu.cr0, 0x2000_0010);
    assert_eq!((m.cpu.rip, m.cpu.wait_sipi), (0xfff0, false));
    m.cpu.start_at(0x9a);
    assert_eq!((m.cpu.seg[CS as usize].base, m.cpu.rip), (0x9_a000, 0));
    m.cpu.reset();
    assert_eq!(m.cpu.msr.pat, 0x0007_0406_0007_0406);
}

#[test]
fn the_whole_state_survives_a_save() {
    let mut m = Machine::protected();
    m.interrupts_on();
    m.cpu.rflags |= IOPL;
    m.clock.set(1000);
    m.cpu.gpr[15] = 15;
    m.cpu.msr.lstar = 77;
    m.cpu.dr[1] = 0x5000;
    m.cpu.write_dr7(0x1_0008);
    m.cpu.fpu.xmm[3] = [1, 2];
    m.cpu.fpu.fcs = 9;
    m.cpu.shadow = true;
    m.cpu.nmi_blocked = true;
    m.cpu.set_tsc(5);
    let saved = m.cpu.regs();
    let json = serde_json::to_string(&saved).unwrap();
    let mut other = Machine::new();
    other.clock.set(1000);
    other.cpu.set_regs(&serde_json::from_str(&json).unwrap());
    assert_eq!(other.cpu.regs(), saved);
    assert_eq!(other.cpu.mode, m.cpu.mode);
    assert_eq!((other.cpu.cpl, other.cpu.fpu.xmm[3]), (0, [1, 2]));
}

#[test]
fn an_exception_in_the_state_is_delivered() {
    let mut m = Machine::protected();
    m.code(32, |a| a.nop().unwrap());
    let mut r = m.cpu.regs();
    r.exception = Some(crate::state::Fault { vector: 14, error: Some(4), cr2: 0x1234 });
    m.cpu.set_regs(&r);
    assert_eq!((m.faults32(), m.cpu.cr2), ((14, 4), 0x1234));
}
