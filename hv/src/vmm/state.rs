//! A processor's registers between [`cpu::Regs`] and the kernel's requests.

use std::io;

use cpu::{Regs, Segment, Table};
use vmmapi_sys::common::seg_desc;
use vmmapi_sys::{Reg, Vm};

/// The general registers in the order of [`Regs::gpr`].
pub(super) const GPRS: [Reg; 16] = [
    Reg::Rax,
    Reg::Rcx,
    Reg::Rdx,
    Reg::Rbx,
    Reg::Rsp,
    Reg::Rbp,
    Reg::Rsi,
    Reg::Rdi,
    Reg::R8,
    Reg::R9,
    Reg::R10,
    Reg::R11,
    Reg::R12,
    Reg::R13,
    Reg::R14,
    Reg::R15,
];

/// ES, CS, SS, DS, FS and GS, as instructions number them.
pub(super) const SEGMENTS: [Reg; 6] = [Reg::Es, Reg::Cs, Reg::Ss, Reg::Ds, Reg::Fs, Reg::Gs];

/// What no request reaches. Of the MSRs, EFER can be.
pub(super) const LACKS: &[&str] = &[
    "xcr0",
    "msrs",
    "tsc",
    "fx",
    "fcs_fds",
    "ferr_ignne",
    "nmi_blocked",
    "nmi_pending",
    "halted",
    "wait_sipi",
    "exception",
    "debug_traps",
];

/// Those that are fetched and set together.
const OTHERS: [Reg; 10] =
    [Reg::Rflags, Reg::Cr0, Reg::Cr2, Reg::Cr3, Reg::Cr4, Reg::Efer, Reg::Dr7, Reg::Dr6, Reg::Rip, Reg::IntrShadow];
const DEBUG: [Reg; 4] = [Reg::Dr0, Reg::Dr1, Reg::Dr2, Reg::Dr3];
const PDPTES: [Reg; 4] = [Reg::Pdpte0, Reg::Pdpte1, Reg::Pdpte2, Reg::Pdpte3];

pub(super) fn segment(vm: &Vm, cpu: u32, reg: Reg) -> io::Result<Segment> {
    let seg_desc { base, limit, access } = vm.segment(cpu, reg)?;
    Ok(Segment { selector: vm.register(cpu, reg)? as u16, base, limit, access })
}

pub(super) fn set_segment(vm: &Vm, cpu: u32, reg: Reg, s: &Segment) -> io::Result<()> {
    vm.set_segment(cpu, reg, seg_desc { base: s.base, limit: s.limit, access: s.access })?;
    vm.set_register(cpu, reg, s.selector.into())
}

fn table(vm: &Vm, cpu: u32, reg: Reg) -> io::Result<Table> {
    let seg_desc { base, limit, .. } = vm.segment(cpu, reg)?;
    Ok(Table { base, limit: limit as u16 })
}

/// Fetches all that can be; `rip` is where the processor goes on, which the kernel does not tell.
pub(super) fn get(vm: &Vm, cpu: u32, rip: u64) -> io::Result<Regs> {
    let mut gpr = [0; 16];
    vm.registers(cpu, &GPRS, &mut gpr)?;
    let mut other = [0; OTHERS.len()];
    vm.registers(cpu, &OTHERS, &mut other)?;
    let [rflags, cr0, cr2, cr3, cr4, efer, dr7, dr6, _, shadow] = other;
    let mut dr = [0; 4];
    vm.registers(cpu, &DEBUG, &mut dr)?;
    let mut pdpte = [0; 4];
    // Processors of AMD have none.
    let _ = vm.registers(cpu, &PDPTES, &mut pdpte);
    let seg = |n: usize| segment(vm, cpu, SEGMENTS[n]);
    let (cs, ss) = (seg(1)?, seg(2)?);
    const VM86: u64 = 1 << 17;
    let cpl = match (cr0 & 1, rflags & VM86) {
        (0, _) => 0,
        (_, 0) => (ss.access >> 5 & 3) as u8,
        _ => 3,
    };
    Ok(Regs {
        gpr,
        rip,
        rflags,
        es: seg(0)?,
        cs,
        ss,
        ds: seg(3)?,
        fs: seg(4)?,
        gs: seg(5)?,
        ldtr: segment(vm, cpu, Reg::Ldtr)?,
        tr: segment(vm, cpu, Reg::Tr)?,
        gdtr: table(vm, cpu, Reg::Gdtr)?,
        idtr: table(vm, cpu, Reg::Idtr)?,
        cpl,
        cr0,
        cr2,
        cr3,
        cr4,
        pdpte,
        dr,
        dr6,
        dr7,
        shadow: shadow & 1 != 0,
        msrs: cpu::Msrs { efer, ..lacking().msrs },
        ..lacking()
    })
}

/// Sets all that can be.
pub(super) fn set(vm: &Vm, cpu: u32, r: &Regs) -> io::Result<()> {
    let values = [r.rflags, r.cr0, r.cr2, r.cr3, r.cr4, r.msrs.efer, r.dr7, r.dr6, r.rip, 0];
    // The shadow of STI and MOV SS can be ended, but not begun.
    let count = if r.shadow { OTHERS.len() - 1 } else { OTHERS.len() };
    vm.set_registers(cpu, &GPRS, &r.gpr)?;
    vm.set_registers(cpu, &OTHERS[..count], &values[..count])?;
    vm.set_registers(cpu, &DEBUG, &r.dr)?;
    let _ = vm.set_registers(cpu, &PDPTES, &r.pdpte);
    for (reg, s) in SEGMENTS.into_iter().zip([&r.es, &r.cs, &r.ss, &r.ds, &r.fs, &r.gs]) {
        set_segment(vm, cpu, reg, s)?;
    }
    set_segment(vm, cpu, Reg::Ldtr, &r.ldtr)?;
    set_segment(vm, cpu, Reg::Tr, &r.tr)?;
    for (reg, t) in [(Reg::Gdtr, r.gdtr), (Reg::Idtr, r.idtr)] {
        vm.set_segment(cpu, reg, seg_desc { base: t.base, limit: t.limit.into(), access: 0 })?;
    }
    Ok(())
}

/// The values of what cannot be reached: those of power-on.
fn lacking() -> Regs {
    Regs { xcr0: 1, fx: vec![0; 512], ..Regs::default() }
}

/// The state after RESET and INIT.
pub(super) fn reset() -> Regs {
    let data = Segment { selector: 0, base: 0, limit: 0xffff, access: 0x93 };
    let mut gpr = [0; 16];
    // EDX: a family 15 part of no maker.
    gpr[2] = 0xf00;
    Regs {
        gpr,
        rip: 0xfff0,
        rflags: 2,
        cs: Segment { selector: 0xf000, base: 0xffff_0000, ..data },
        es: data,
        ss: data,
        ds: data,
        fs: data,
        gs: data,
        ldtr: Segment { access: 0x82, ..data },
        tr: Segment { access: 0x8b, limit: 0, ..data },
        gdtr: Table { base: 0, limit: 0xffff },
        idtr: Table { base: 0, limit: 0xffff },
        // NE: vmm(4) has no FERR#.
        cr0: 0x20,
        dr6: 0xffff_0ff0,
        dr7: 0x400,
        ..lacking()
    }
}

/// The state in which a start-up IPI starts a processor.
pub(super) fn start_up(vector: u8) -> Regs {
    let mut r = reset();
    (r.cs.selector, r.cs.base, r.rip) = (u16::from(vector) << 8, u64::from(vector) << 12, 0);
    r
}
