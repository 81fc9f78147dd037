//! [`Regs`] and what else there is of a processor, in KVM's terms.

use anyhow::{Context, bail, ensure};
use cpu::{Fault, Regs, Segment, Table};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI,
    Msrs as MsrList, kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
    kvm_vcpu_events, kvm_xcr, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::vcpu::KvmVcpu;

const TSC_DEADLINE: u32 = 0x6e0;
/// Bytes of the XSAVE area that FXSAVE writes, and where the header says what else is there.
const LEGACY: usize = 512;
/// Bytes of these that hold state.
const FX: usize = 416;
const IF: u64 = 1 << 9;
const VM: u64 = 1 << 17;
const CR0_PE: u64 = 1;
/// CR0.CD and NW, which INIT leaves alone.
const CR0_CACHE: u64 = 0x6000_0000;

/// The model-specific registers of [`cpu::Msrs`] but EFER: number, and place.
fn msrs(m: &mut cpu::Msrs) -> Vec<(u32, &mut u64)> {
    let mut out = vec![
        (0xc000_0081, &mut m.star),
        (0xc000_0082, &mut m.lstar),
        (0xc000_0083, &mut m.cstar),
        (0xc000_0084, &mut m.fmask),
        (0xc000_0102, &mut m.kernel_gs_base),
        (0xc000_0103, &mut m.tsc_aux),
        (0x174, &mut m.sysenter_cs),
        (0x175, &mut m.sysenter_esp),
        (0x176, &mut m.sysenter_eip),
        (0x277, &mut m.pat),
        (0x2ff, &mut m.mtrr_def_type),
        (0x1a0, &mut m.misc_enable),
        (0x8b, &mut m.bios_sign),
        (0x3b, &mut m.tsc_adjust),
        (0x17a, &mut m.mcg_status),
        (0x1d9, &mut m.debugctl),
    ];
    out.extend((0x200..).zip(m.mtrr_var.iter_mut()));
    let fixed = [0x250, 0x258, 0x259].into_iter().chain(0x268..=0x26f);
    out.extend(fixed.zip(m.mtrr_fixed.iter_mut()));
    out
}

/// What a processor is like at power-on, and which of [`msrs`] it has.
pub(super) struct PowerOn {
    pub(super) regs: Regs,
    lapic: kvm_lapic_state,
    apic_base: u64,
    msrs: Vec<u32>,
}

impl PowerOn {
    /// Of a processor that was made just now. The registers are to follow.
    pub(super) fn of(fd: &VcpuFd) -> anyhow::Result<PowerOn> {
        let all: Vec<u32> = msrs(&mut cpu::Msrs::default()).into_iter().map(|(n, _)| n).collect();
        Ok(PowerOn {
            regs: Regs::default(),
            lapic: fd.get_lapic().context("KVM_GET_LAPIC")?,
            apic_base: fd.get_sregs().context("KVM_GET_SREGS")?.apic_base,
            msrs: all.into_iter().filter(|n| get_msrs(fd, &[*n]).is_ok()).collect(),
        })
    }
}

/// All of a processor's state.
#[derive(Serialize, Deserialize)]
pub(super) struct Saved {
    regs: Regs,
    apic_base: u64,
    lapic: Vec<u8>,
    tsc_deadline: u64,
    /// An interrupt that is being delivered: vector, and whether INT n made it.
    interrupt: Option<(u8, bool)>,
    /// The XSAVE area from its header on.
    extended: Vec<u32>,
}

fn get_msrs(fd: &VcpuFd, numbers: &[u32]) -> anyhow::Result<Vec<u64>> {
    let entries: Vec<_> = numbers.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut list = MsrList::from_entries(&entries).context("too many MSRs")?;
    let got = fd.get_msrs(&mut list).context("KVM_GET_MSRS")?;
    ensure!(got == numbers.len(), "KVM does not give MSR {:#x}", numbers[got]);
    Ok(list.as_slice().iter().map(|e| e.data).collect())
}

fn set_msrs(fd: &VcpuFd, values: &[(u32, u64)]) -> anyhow::Result<()> {
    let entries: Vec<_> =
        values.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    let list = MsrList::from_entries(&entries).context("too many MSRs")?;
    let set = fd.set_msrs(&list).context("KVM_SET_MSRS")?;
    ensure!(set == values.len(), "KVM does not take {:#x} for MSR {:#x}", values[set].1, values[set].0);
    Ok(())
}

fn segment(s: &kvm_segment) -> Segment {
    let bit = |value: u8, n: u32| u32::from(value) << n;
    let access = bit(s.type_, 0)
        | bit(s.s, 4)
        | bit(s.dpl, 5)
        | bit(s.present, 7)
        | bit(s.avl, 12)
        | bit(s.l, 13)
        | bit(s.db, 14)
        | bit(s.g, 15)
        | bit(s.unusable, 16);
    Segment { selector: s.selector, base: s.base, limit: s.limit, access }
}

fn kvm_segment_of(s: &Segment) -> kvm_segment {
    let bits = |n: u32, mask: u32| (s.access >> n & mask) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: bits(0, 15),
        s: bits(4, 1),
        dpl: bits(5, 3),
        present: bits(7, 1),
        avl: bits(12, 1),
        l: bits(13, 1),
        db: bits(14, 1),
        g: bits(15, 1),
        unusable: bits(16, 1),
        padding: 0,
    }
}

fn table(t: &kvm_dtable) -> Table {
    Table { base: t.base, limit: t.limit }
}

fn kvm_table(t: &Table) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, ..Default::default() }
}

fn legacy(xsave: &kvm_xsave) -> Vec<u8> {
    let mut fx: Vec<u8> = xsave.region[..LEGACY / 4].iter().flat_map(|word| word.to_le_bytes()).collect();
    // Software's part of the image is no state.
    fx[FX..].fill(0);
    fx
}

impl KvmVcpu {
    pub(super) fn events(&self) -> anyhow::Result<kvm_vcpu_events> {
        self.page.fd.get_vcpu_events().context("KVM_GET_VCPU_EVENTS")
    }

    pub(super) fn set_events(&self, events: &kvm_vcpu_events) -> anyhow::Result<()> {
        // Only what is said here, and nothing of SMM.
        let flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
        self.page.fd.set_vcpu_events(&kvm_vcpu_events { flags, ..*events }).context("KVM_SET_VCPU_EVENTS")
    }

    fn sregs(&self) -> anyhow::Result<kvm_sregs> {
        self.page.fd.get_sregs().context("KVM_GET_SREGS")
    }

    fn xcr0(&self) -> Option<kvm_xcrs> {
        self.model.has(cpu::Feature::Xsave).then(|| self.page.fd.get_xcrs().ok()).flatten()
    }

    /// Whether LINT1 of its local APIC is open and brings an NMI.
    pub(super) fn lint1_is_nmi(&self) -> anyhow::Result<bool> {
        const MASK_AND_MODE: u32 = 0x1_0700;
        const NMI: u32 = 0x400;
        Ok(lapic_word(&self.page.fd.get_lapic().context("KVM_GET_LAPIC")?, 0x360) & MASK_AND_MODE == NMI)
    }

    /// The state in our terms.
    pub(super) fn read(&self) -> anyhow::Result<Regs> {
        let fd = &self.page.fd;
        let r = fd.get_regs().context("KVM_GET_REGS")?;
        let s = self.sregs()?;
        let d = fd.get_debug_regs().context("KVM_GET_DEBUGREGS")?;
        let events = self.events()?;
        let state = self.mp_state()?;
        let mut m = cpu::Msrs { efer: s.efer, ..cpu::Msrs::default() };
        let values = get_msrs(fd, &self.power_on.msrs)?;
        let mut places = msrs(&mut m);
        for (number, value) in self.power_on.msrs.iter().zip(values) {
            if let Some((_, place)) = places.iter_mut().find(|(n, _)| n == number) {
                **place = value;
            }
        }
        let e = &events.exception;
        let exception = (e.injected != 0 || e.pending != 0).then(|| Fault {
            vector: e.nr,
            error: (e.has_error_code != 0).then_some(e.error_code),
            cr2: if e.nr == 14 { s.cr2 } else { 0 },
        });
        Ok(Regs {
            gpr: [
                r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
                r.r15,
            ],
            rip: r.rip,
            rflags: r.rflags,
            es: segment(&s.es),
            cs: segment(&s.cs),
            ss: segment(&s.ss),
            ds: segment(&s.ds),
            fs: segment(&s.fs),
            gs: segment(&s.gs),
            ldtr: segment(&s.ldt),
            tr: segment(&s.tr),
            gdtr: table(&s.gdt),
            idtr: table(&s.idt),
            cpl: match (s.cr0 & CR0_PE, r.rflags & VM) {
                (0, _) => 0,
                (_, 0) => s.ss.dpl,
                _ => 3,
            },
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            xcr0: self.xcr0().map_or(1, |x| x.xcrs[0].value),
            dr: d.db,
            dr6: d.dr6,
            dr7: d.dr7,
            msrs: m,
            tsc: self.tsc.get(fd, &self.shared.tsc).context("the TSC's offset")?,
            fx: legacy(&fd.get_xsave().context("KVM_GET_XSAVE")?),
            shadow: events.interrupt.shadow != 0,
            nmi_blocked: events.nmi.masked != 0,
            nmi_pending: events.nmi.pending != 0 || events.nmi.injected != 0,
            halted: state == KVM_MP_STATE_HALTED,
            wait_sipi: matches!(state, KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED),
            exception,
            ..Regs::default()
        })
    }

    /// Sets the state; `old` is what it is.
    pub(super) fn write(&mut self, old: &Regs, new: &Regs) -> anyhow::Result<()> {
        self.write_special(new, None)?;
        let fd = &self.page.fd;
        let g = new.gpr;
        let regs = kvm_regs {
            rax: g[0],
            rcx: g[1],
            rdx: g[2],
            rbx: g[3],
            rsp: g[4],
            rbp: g[5],
            rsi: g[6],
            rdi: g[7],
            r8: g[8],
            r9: g[9],
            r10: g[10],
            r11: g[11],
            r12: g[12],
            r13: g[13],
            r14: g[14],
            r15: g[15],
            rip: new.rip,
            rflags: new.rflags,
        };
        fd.set_regs(&regs).context("KVM_SET_REGS")?;
        let debug = kvm_debugregs { db: new.dr, dr6: new.dr6, dr7: new.dr7, ..Default::default() };
        fd.set_debug_regs(&debug).context("KVM_SET_DEBUGREGS")?;
        self.write_msrs(&old.msrs, &new.msrs)?;
        if new.xcr0 != old.xcr0 {
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: new.xcr0, ..Default::default() };
            fd.set_xcrs(&xcrs).with_context(|| format!("KVM does not take {:#x} for XCR0", new.xcr0))?;
        }
        if new.fx != old.fx {
            ensure!(new.fx.len() == LEGACY, "an FXSAVE image of {} bytes", new.fx.len());
            let mut xsave = fd.get_xsave().context("KVM_GET_XSAVE")?;
            for (to, from) in xsave.region.iter_mut().zip(new.fx.chunks_exact(4)) {
                *to = u32::from_le_bytes(from.try_into().expect("four bytes"));
            }
            // x87 and SSE are there.
            xsave.region[LEGACY / 4] |= 3;
            self.write_xsave(&xsave)?;
        }
        if new.tsc != old.tsc {
            self.tsc.set(&self.page.fd, &self.shared.tsc, new.tsc).context("the TSC's offset")?;
        }
        self.write_events(new)?;
        self.set_mp_state(match (new.wait_sipi, new.halted) {
            (true, _) => KVM_MP_STATE_INIT_RECEIVED,
            (_, true) => KVM_MP_STATE_HALTED,
            _ => KVM_MP_STATE_RUNNABLE,
        })
    }

    #[expect(unsafe_code, reason = "KVM_SET_XSAVE, which reads as much as the host's XSAVE state is long")]
    fn write_xsave(&self, xsave: &kvm_xsave) -> anyhow::Result<()> {
        // SAFETY: without KVM_CAP_XSAVE2's dynamic features, which nobody has asked for, that is no more than this.
        unsafe { self.page.fd.set_xsave(xsave) }.context("KVM_SET_XSAVE")
    }

    fn write_special(&self, new: &Regs, apic_base: Option<u64>) -> anyhow::Result<()> {
        let old = self.sregs()?;
        let mut sregs = kvm_sregs {
            es: kvm_segment_of(&new.es),
            cs: kvm_segment_of(&new.cs),
            ss: kvm_segment_of(&new.ss),
            ds: kvm_segment_of(&new.ds),
            fs: kvm_segment_of(&new.fs),
            gs: kvm_segment_of(&new.gs),
            ldt: kvm_segment_of(&new.ldtr),
            tr: kvm_segment_of(&new.tr),
            gdt: kvm_table(&new.gdtr),
            idt: kvm_table(&new.idtr),
            cr0: new.cr0,
            cr2: new.exception.filter(|f| f.vector == 14).map_or(new.cr2, |f| f.cr2),
            cr3: new.cr3,
            cr4: new.cr4,
            efer: new.msrs.efer,
            apic_base: apic_base.unwrap_or(old.apic_base),
            // The interrupt under way is among the events.
            interrupt_bitmap: [0; 4],
            cr8: old.cr8,
        };
        // The privilege level is the stack segment's.
        sregs.ss.dpl = if new.rflags & VM != 0 { 3 } else { new.cpl & 3 };
        self.page.fd.set_sregs(&sregs).context("KVM refuses control registers or segments (KVM_SET_SREGS)")
    }

    fn write_msrs(&self, old: &cpu::Msrs, new: &cpu::Msrs) -> anyhow::Result<()> {
        let (mut old, mut new) = (old.clone(), new.clone());
        let places = msrs(&mut old).into_iter().zip(msrs(&mut new));
        let changed: Vec<(u32, u64)> = places.filter(|(a, b)| a.1 != b.1).map(|(_, (n, v))| (n, *v)).collect();
        if let Some((number, _)) = changed.iter().find(|(n, _)| !self.power_on.msrs.contains(n)) {
            bail!("KVM has no MSR {number:#x} here");
        }
        if changed.is_empty() { Ok(()) } else { set_msrs(&self.page.fd, &changed) }
    }

    fn write_events(&self, new: &Regs) -> anyhow::Result<()> {
        let mut events = self.events()?;
        // STI holds interrupts back with IF set only; what MOV SS does holds in any case.
        events.interrupt.shadow = match (new.shadow, new.rflags & IF) {
            (false, _) => 0,
            (true, 0) => KVM_X86_SHADOW_INT_MOV_SS as u8,
            (true, _) => KVM_X86_SHADOW_INT_STI as u8,
        };
        events.nmi.masked = new.nmi_blocked.into();
        events.nmi.pending = new.nmi_pending.into();
        events.nmi.injected = 0;
        events.exception.pending = 0;
        events.exception.injected = new.exception.is_some().into();
        if let Some(fault) = new.exception {
            events.exception.nr = fault.vector;
            // In real mode there are none.
            let error = fault.error.filter(|_| new.cr0 & CR0_PE != 0);
            events.exception.has_error_code = error.is_some().into();
            events.exception.error_code = error.unwrap_or(0);
        }
        self.set_events(&events)
    }

    /// Power-on state. Application processors wait for a SIPI, and not for an INIT before it.
    pub(super) fn power_up(&mut self) -> anyhow::Result<()> {
        const ENABLE: u64 = 1 << 11;
        // A processor without a local APIC has INTR and NMI as pins, which is what a disabled one makes of them.
        let unused = if self.model.has(cpu::Feature::Apic) { 0 } else { ENABLE };
        let mut regs = self.power_on.regs.clone();
        regs.gpr[2] = self.model.signature.into();
        regs.wait_sipi = self.index > 0;
        regs.tsc = 0;
        self.start_over(&regs, Some(self.power_on.apic_base & !unused))
    }

    /// INIT: FPU, MTRRs, TSC and caches stay as they are.
    pub(super) fn init_state(&mut self) -> anyhow::Result<()> {
        let (now, fresh) = (self.read()?, self.power_on.regs.clone());
        let mut regs = Regs { msrs: cpu::Msrs { efer: 0, ..now.msrs }, tsc: now.tsc, fx: now.fx, ..fresh };
        regs.xcr0 = now.xcr0;
        regs.cr0 = regs.cr0 & !CR0_CACHE | now.cr0 & CR0_CACHE;
        regs.gpr[2] = self.model.signature.into();
        regs.wait_sipi = self.index > 0;
        self.start_over(&regs, None)
    }

    /// Takes the TSC deadline of its timer out of the kernel, which would go by a TSC that does not stand still.
    pub(super) fn hold_deadline(&mut self) -> anyhow::Result<()> {
        if self.model.has(cpu::Feature::TscDeadline) && self.deadline == 0 {
            self.deadline = get_msrs(&self.page.fd, &[TSC_DEADLINE])?[0];
            if self.deadline != 0 {
                set_msrs(&self.page.fd, &[(TSC_DEADLINE, 0)])?;
            }
        }
        Ok(())
    }

    /// Gives it back. The TSC goes on where it stood.
    pub(super) fn release_deadline(&mut self) -> anyhow::Result<()> {
        match std::mem::take(&mut self.deadline) {
            0 => Ok(()),
            deadline => set_msrs(&self.page.fd, &[(TSC_DEADLINE, deadline)]),
        }
    }

    fn start_over(&mut self, regs: &Regs, apic_base: Option<u64>) -> anyhow::Result<()> {
        let mut events = self.events()?;
        events.interrupt.injected = 0;
        self.set_events(&events)?;
        self.write_special(regs, apic_base)?;
        // Its timer stops with it.
        self.deadline = 0;
        self.page.fd.set_lapic(&self.power_on.lapic).context("KVM_SET_LAPIC")?;
        let old = self.read()?;
        self.write(&old, regs)
    }

    /// A SIPI.
    pub(super) fn start_at(&mut self, vector: u8) -> anyhow::Result<()> {
        let old = self.read()?;
        if !old.wait_sipi {
            return Ok(());
        }
        let selector = u16::from(vector) << 8;
        let mut new = Regs { wait_sipi: false, rip: 0, ..old.clone() };
        (new.cs.selector, new.cs.base) = (selector, u64::from(selector) << 4);
        self.write(&old, &new)
    }

    pub(super) fn saved(&self) -> anyhow::Result<Saved> {
        let fd = &self.page.fd;
        let events = self.events()?.interrupt;
        let lapic = fd.get_lapic().context("KVM_GET_LAPIC")?;
        let mut extended = fd.get_xsave().context("KVM_GET_XSAVE")?.region[LEGACY / 4..].to_vec();
        let used = extended.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        extended.truncate(used);
        Ok(Saved {
            regs: self.read()?,
            apic_base: self.sregs()?.apic_base,
            lapic: lapic.regs.iter().map(|byte| byte.cast_unsigned()).collect(),
            // One that halted for good was not held.
            tsc_deadline: match self.deadline {
                0 => get_msrs(fd, &[TSC_DEADLINE]).map_or(0, |values| values[0]),
                held => held,
            },
            interrupt: (events.injected != 0).then_some((events.nr, events.soft != 0)),
            extended,
        })
    }

    pub(super) fn restore(&mut self, saved: &Saved) -> anyhow::Result<()> {
        let mut lapic = kvm_lapic_state::default();
        ensure!(saved.lapic.len() == lapic.regs.len(), "a local APIC of {} bytes", saved.lapic.len());
        lapic.regs.iter_mut().zip(&saved.lapic).for_each(|(to, from)| *to = from.cast_signed());
        self.write_special(&saved.regs, Some(saved.apic_base))?;
        let old = self.read()?;
        self.write(&old, &saved.regs)?;
        let fd = &self.page.fd;
        let mut xsave = fd.get_xsave().context("KVM_GET_XSAVE")?;
        let extended = &mut xsave.region[LEGACY / 4..];
        ensure!(saved.extended.len() <= extended.len(), "an XSAVE area of {} words", saved.extended.len());
        extended.fill(0);
        extended[..saved.extended.len()].copy_from_slice(&saved.extended);
        self.write_xsave(&xsave)?;
        self.learn_level(&lapic)?;
        self.page.fd.set_lapic(&lapic).context("KVM_SET_LAPIC")?;
        self.deadline = saved.tsc_deadline;
        if let Some((vector, soft)) = saved.interrupt {
            let mut events = self.events()?;
            (events.interrupt.injected, events.interrupt.nr, events.interrupt.soft) = (1, vector, soft.into());
            self.set_events(&events)?;
        }
        Ok(())
    }

    /// Level-triggered interrupts that wait or are in service must end with an exit.
    fn learn_level(&self, lapic: &kvm_lapic_state) -> anyhow::Result<()> {
        const ISR: usize = 0x100;
        const TMR: usize = 0x180;
        const IRR: usize = 0x200;
        for word in 0..8 {
            let at = |base: usize| lapic_word(lapic, base + 16 * word);
            let level = at(TMR) & (at(ISR) | at(IRR));
            for bit in (0..32).filter(|bit| level >> bit & 1 != 0) {
                let (addr, data) = (0xfee0_0000 | self.index << 12, 0x8000 | word as u32 * 32 + bit);
                self.shared.routes.lock().unwrap().learn(addr, data).context("KVM_SET_GSI_ROUTING")?;
            }
        }
        Ok(())
    }
}

/// A register of a local APIC.
fn lapic_word(lapic: &kvm_lapic_state, at: usize) -> u32 {
    let byte = |n: usize| lapic.regs[at + n].cast_unsigned();
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}
