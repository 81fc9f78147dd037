//! Model-specific registers, the time-stamp counter, and the instructions that read and write them.
//!
//! What is here is what firmware, Linux and the BSDs touch on the processor that CPUID describes: [`Model::has_msr`]
//! says which of them a model has. MTRRs and PAT hold what is written and have no effect. There are no performance
//! counters and no machine-check banks, and the microcode revision is a number to read. Everything else is #GP, or with
//! [`Model::ignore_unknown_msrs`] reads as 0 and ignores writes.

use crate::feature::Feature::*;
use crate::insn::{Insn, RCX, Res};
use crate::mem::canonical;
use crate::model::Model;
use crate::state::Cpu;

pub(crate) const EFER_SCE: u64 = 1;
pub(crate) const EFER_LME: u64 = 1 << 8;
pub(crate) const EFER_LMA: u64 = 1 << 10;
pub(crate) const EFER_NXE: u64 = 1 << 11;

/// Numbers of the registers that have names here.
mod n {
    pub(super) const P5_MC_ADDR: u32 = 0;
    pub(super) const P5_MC_TYPE: u32 = 1;
    pub(super) const TSC: u32 = 0x10;
    pub(super) const PLATFORM_ID: u32 = 0x17;
    pub(super) const APIC_BASE: u32 = 0x1b;
    pub(super) const EBL_CR_POWERON: u32 = 0x2a;
    pub(super) const FEATURE_CONTROL: u32 = 0x3a;
    pub(super) const TSC_ADJUST: u32 = 0x3b;
    pub(super) const BIOS_UPDT_TRIG: u32 = 0x79;
    pub(super) const BIOS_SIGN_ID: u32 = 0x8b;
    pub(super) const PLATFORM_INFO: u32 = 0xce;
    pub(super) const MTRRCAP: u32 = 0xfe;
    pub(super) const ARCH_CAPABILITIES: u32 = 0x10a;
    pub(super) const BBL_CR_CTL3: u32 = 0x11e;
    pub(super) const MISC_FEATURES_ENABLES: u32 = 0x140;
    pub(super) const SYSENTER_CS: u32 = 0x174;
    pub(super) const SYSENTER_ESP: u32 = 0x175;
    pub(super) const SYSENTER_EIP: u32 = 0x176;
    pub(super) const MCG_CAP: u32 = 0x179;
    pub(super) const MCG_STATUS: u32 = 0x17a;
    pub(super) const PERF_STATUS: u32 = 0x198;
    pub(super) const PERF_CTL: u32 = 0x199;
    pub(super) const MISC_ENABLE: u32 = 0x1a0;
    pub(super) const DEBUGCTL: u32 = 0x1d9;
    pub(super) const PAT: u32 = 0x277;
    pub(super) const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub(super) const TSC_DEADLINE: u32 = 0x6e0;
    pub(super) const EFER: u32 = 0xc000_0080;
    pub(super) const STAR: u32 = 0xc000_0081;
    pub(super) const LSTAR: u32 = 0xc000_0082;
    pub(super) const CSTAR: u32 = 0xc000_0083;
    pub(super) const FMASK: u32 = 0xc000_0084;
    pub(super) const FS_BASE: u32 = 0xc000_0100;
    pub(super) const GS_BASE: u32 = 0xc000_0101;
    pub(super) const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub(super) const TSC_AUX: u32 = 0xc000_0103;
    // The P5's counters: control, 0 and 1.
    pub(super) const P5_CESR: u32 = 0x11;
    pub(super) const P5_CTR1: u32 = 0x13;
    // Read and written by systems that find AMD's vendor id.
    pub(super) const AMD_PERF_EVTSEL0: u32 = 0xc001_0000;
    pub(super) const AMD_PERF_CTR3: u32 = 0xc001_0007;
    pub(super) const AMD_SYSCFG: u32 = 0xc001_0010;
    pub(super) const AMD_HWCR: u32 = 0xc001_0015;
    /// IORRs, TOP_MEM and CLK_CTL follow each other.
    pub(super) const AMD_IORR_BASE0: u32 = 0xc001_0016;
    pub(super) const AMD_CLK_CTL: u32 = 0xc001_001b;
    pub(super) const AMD_TOP_MEM2: u32 = 0xc001_001d;
    pub(super) const AMD_NB_CFG: u32 = 0xc001_001f;
    pub(super) const AMD_PATCH_LOADER: u32 = 0xc001_0020;
    pub(super) const AMD_INT_PENDING: u32 = 0xc001_0055;
    pub(super) const AMD_OSVW_LENGTH: u32 = 0xc001_0140;
    pub(super) const AMD_OSVW_STATUS: u32 = 0xc001_0141;
    pub(super) const AMD_DE_CFG: u32 = 0xc001_1029;
    pub(super) const AMD_CU_CFG: std::ops::RangeInclusive<u32> = 0xc001_1020..=0xc001_102a;
}

/// MTRRcap: 8 variable ranges, the fixed ones, write-combining.
const MTRRCAP: u64 = 0x508;
/// MISC_ENABLE as firmware leaves it: fast strings on; branch trace and event sampling not available.
pub(crate) const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;
/// PAT at reset: WB WT UC- UC, twice.
pub(crate) const PAT: u64 = 0x0007_0406_0007_0406;

/// Where a fixed-range MTRR is in `Msrs::mtrr_fixed`.
fn fixed_mtrr(msr: u32) -> Option<usize> {
    match msr {
        0x250 => Some(0),
        0x258 | 0x259 => Some((msr - 0x257) as usize),
        0x268..=0x26f => Some((msr - 0x265) as usize),
        _ => None,
    }
}

/// Whether a byte is a memory type of PAT; MTRRs do not have the last one.
fn memory_type(v: u64, pat: bool) -> bool {
    matches!(v, 0 | 1 | 4 | 5 | 6) || pat && v == 7
}

fn memory_types(v: u64, pat: bool) -> bool {
    v.to_le_bytes().iter().all(|b| memory_type((*b).into(), pat))
}

impl Model {
    /// Whether it has a model-specific register.
    pub fn has_msr(&self, msr: u32) -> bool {
        let amd = self.is_amd();
        let (family, number) = (self.family(), self.number());
        // From the Pentium M and the Pentium 4 on.
        let netburst = !amd && (family == 15 || family == 6 && number >= 0xd);
        let core = !amd && family == 6 && number >= 0xf;
        match msr {
            n::P5_MC_ADDR | n::P5_MC_TYPE => self.has(Mce),
            n::TSC => self.has(Tsc),
            n::P5_CESR..=n::P5_CTR1 => !amd && family == 5,
            // The Pentium's APIC cannot be moved.
            n::APIC_BASE => self.has(Apic) && family >= 6,
            n::TSC_ADJUST => self.has(TscAdjust),
            n::PLATFORM_ID | n::EBL_CR_POWERON | n::BIOS_UPDT_TRIG => !amd && family >= 6,
            n::BIOS_SIGN_ID | n::DEBUGCTL => family >= 6,
            0xc1 | 0xc2 | 0x186 | 0x187 | n::BBL_CR_CTL3 => !amd && family == 6,
            // Counters and event selectors that older systems assume.
            0xc3..=0xc8 | 0x188..=0x18d | n::FEATURE_CONTROL => core,
            n::PLATFORM_INFO | n::MISC_FEATURES_ENABLES => core && number >= 0x1a,
            n::PERF_STATUS | n::PERF_CTL | n::MISC_ENABLE => netburst,
            n::MTRRCAP | n::MTRR_DEF_TYPE | 0x200..=0x20f => self.has(Mtrr),
            _ if fixed_mtrr(msr).is_some() => self.has(Mtrr),
            n::ARCH_CAPABILITIES => self.has(ArchCapabilities),
            n::SYSENTER_CS | n::SYSENTER_ESP | n::SYSENTER_EIP => self.has(Sep),
            n::MCG_CAP | n::MCG_STATUS => self.has(Mca),
            n::PAT => self.has(Pat),
            n::TSC_DEADLINE => self.has(TscDeadline),
            0x800..=0x8ff => self.has(X2apic),
            n::EFER => self.has(Syscall) || self.has(Nx),
            n::STAR => self.has(Syscall),
            n::LSTAR | n::CSTAR | n::FMASK | n::FS_BASE | n::GS_BASE | n::KERNEL_GS_BASE => self.has(Lm),
            n::TSC_AUX => self.has(Rdtscp),
            n::AMD_PERF_EVTSEL0..=n::AMD_PERF_CTR3
            | n::AMD_SYSCFG
            | n::AMD_HWCR
            | n::AMD_IORR_BASE0..=n::AMD_CLK_CTL
            | n::AMD_TOP_MEM2
            | n::AMD_NB_CFG
            | n::AMD_PATCH_LOADER
            | n::AMD_INT_PENDING
            | n::AMD_OSVW_LENGTH
            | n::AMD_OSVW_STATUS => amd,
            _ => amd && n::AMD_CU_CFG.contains(&msr),
        }
    }
}

impl Cpu {
    /// The time-stamp counter as the guest reads it.
    pub(crate) fn tsc(&self) -> u64 {
        self.ticks().wrapping_add(self.tsc_offset)
    }

    /// The time since power-on in TSC ticks.
    fn ticks(&self) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        let now = self.clock.now();
        let hz = self.model.tsc_hz.min(u64::from(u32::MAX) * 4);
        (now / SECOND).wrapping_mul(hz).wrapping_add(now % SECOND * hz / SECOND)
    }

    pub(crate) fn set_tsc(&mut self, v: u64) {
        self.tsc_offset = v.wrapping_sub(self.ticks());
        self.lapic.set_tsc_offset(self.tsc_offset);
    }

    /// Reads an MSR. `None`: #GP.
    pub(crate) fn read_msr(&self, msr: u32) -> Option<u64> {
        let m = &self.msr;
        if !self.model.has_msr(msr) {
            return self.model.ignore_unknown_msrs.then_some(0);
        }
        Some(match msr {
            n::TSC => self.tsc(),
            n::APIC_BASE => self.lapic.apic_base(),
            n::TSC_ADJUST => m.tsc_adjust,
            n::BIOS_SIGN_ID => m.bios_sign,
            n::MTRRCAP => MTRRCAP,
            n::SYSENTER_CS => m.sysenter_cs,
            n::SYSENTER_ESP => m.sysenter_esp,
            n::SYSENTER_EIP => m.sysenter_eip,
            n::MCG_STATUS => m.mcg_status,
            n::DEBUGCTL => m.debugctl,
            n::PAT => m.pat,
            n::MTRR_DEF_TYPE => m.mtrr_def_type,
            0x200..=0x20f => m.mtrr_var[(msr - 0x200) as usize],
            _ if fixed_mtrr(msr).is_some() => m.mtrr_fixed[fixed_mtrr(msr)?],
            n::TSC_DEADLINE => self.lapic.tsc_deadline(),
            0x800..=0x8ff => return self.lapic.read_msr(msr),
            n::EFER => m.efer,
            n::STAR => m.star,
            n::LSTAR => m.lstar,
            n::CSTAR => m.cstar,
            n::FMASK => m.fmask,
            n::FS_BASE => self.seg[4].base,
            n::GS_BASE => self.seg[5].base,
            n::KERNEL_GS_BASE => m.kernel_gs_base,
            n::TSC_AUX => m.tsc_aux,
            // Locked, with nothing enabled.
            n::FEATURE_CONTROL => 1,
            n::PLATFORM_INFO | n::PERF_STATUS | n::PERF_CTL => (self.model.tsc_hz / 100_000_000 & 0xff) << 8,
            n::ARCH_CAPABILITIES => self.model.arch_capabilities,
            n::MISC_ENABLE => m.misc_enable,
            // The TSC runs at constant speed.
            n::AMD_HWCR => 1 << 24,
            // As BIOSes leave it; Linux puts other values right.
            n::AMD_CLK_CTL => 0x2000_0000,
            // LFENCE serialises.
            n::AMD_DE_CFG => 2,
            _ => 0,
        })
    }

    /// Writes an MSR. False: #GP.
    pub(crate) fn write_msr(&mut self, msr: u32, v: u64) -> bool {
        let phys = (1 << self.model.phys_bits) - 1;
        if !self.model.has_msr(msr) {
            return self.model.ignore_unknown_msrs;
        }
        match msr {
            n::TSC => {
                let old = self.tsc_offset;
                self.set_tsc(v);
                self.msr.tsc_adjust = self.msr.tsc_adjust.wrapping_add(self.tsc_offset.wrapping_sub(old));
            }
            n::TSC_ADJUST => {
                let by = v.wrapping_sub(self.msr.tsc_adjust);
                self.msr.tsc_adjust = v;
                self.tsc_offset = self.tsc_offset.wrapping_add(by);
                self.lapic.set_tsc_offset(self.tsc_offset);
            }
            n::APIC_BASE => {
                if !self.lapic.set_apic_base(v) {
                    return false;
                }
                self.flush_tlb(false);
            }
            n::SYSENTER_CS => self.msr.sysenter_cs = v & 0xffff_ffff,
            n::SYSENTER_ESP if canonical(v) => self.msr.sysenter_esp = v,
            n::SYSENTER_EIP if canonical(v) => self.msr.sysenter_eip = v,
            n::MCG_STATUS if v & !7 == 0 => self.msr.mcg_status = v,
            // LBR and BTF are kept, without effect.
            n::DEBUGCTL if v & !3 == 0 => self.msr.debugctl = v,
            n::PAT if memory_types(v, true) => self.msr.pat = v,
            n::MTRR_DEF_TYPE if v & !0xcff == 0 && memory_type(v & 0xff, false) => self.msr.mtrr_def_type = v,
            0x200..=0x20f => {
                let valid = if msr & 1 == 0 { v & 0xf00 == 0 && memory_type(v & 0xff, false) } else { v & 0x7ff == 0 };
                if !valid || v & !phys != 0 {
                    return false;
                }
                self.msr.mtrr_var[(msr - 0x200) as usize] = v;
            }
            _ if fixed_mtrr(msr).is_some() => {
                let Some(k) = fixed_mtrr(msr).filter(|_| memory_types(v, false)) else { return false };
                self.msr.mtrr_fixed[k] = v;
            }
            n::TSC_DEADLINE => self.lapic.set_tsc_deadline(v),
            0x800..=0x8ff => return self.lapic.write_msr(msr, v),
            n::EFER => return self.write_efer(v),
            n::STAR => self.msr.star = v,
            n::LSTAR if canonical(v) => self.msr.lstar = v,
            n::CSTAR if canonical(v) => self.msr.cstar = v,
            n::FMASK if v >> 32 == 0 => self.msr.fmask = v,
            n::FS_BASE if canonical(v) => self.seg[4].base = v,
            n::GS_BASE if canonical(v) => self.seg[5].base = v,
            n::KERNEL_GS_BASE if canonical(v) => self.msr.kernel_gs_base = v,
            n::TSC_AUX if v >> 32 == 0 => self.msr.tsc_aux = v,
            // NX cannot be taken away.
            n::MISC_ENABLE => self.msr.misc_enable = v & !(1 << 34),
            n::MISC_FEATURES_ENABLES => return v == 0,
            // Read-only, or not with this value.
            n::MTRRCAP
            | n::MCG_CAP
            | n::FEATURE_CONTROL
            | n::PLATFORM_ID
            | n::PLATFORM_INFO
            | n::PERF_STATUS
            | n::ARCH_CAPABILITIES
            | n::SYSENTER_ESP..=n::SYSENTER_EIP
            | n::MCG_STATUS
            | n::DEBUGCTL
            | n::PAT
            | n::MTRR_DEF_TYPE
            | n::LSTAR..=n::FMASK
            | n::FS_BASE..=n::TSC_AUX
            | n::AMD_OSVW_LENGTH
            | n::AMD_OSVW_STATUS => return false,
            // The microcode revision, for one, is what the model says; software writes 0 before it asks by CPUID.
            _ => {}
        }
        true
    }

    fn write_efer(&mut self, v: u64) -> bool {
        let mut known = EFER_LMA;
        for (have, bit) in
            [(self.model.has(Syscall), EFER_SCE), (self.model.has(Lm), EFER_LME), (self.model.has(Nx), EFER_NXE)]
        {
            if have {
                known |= bit;
            }
        }
        let old = self.msr.efer;
        if v & !known != 0 || (old ^ v) & EFER_LME != 0 && self.cr0 & crate::control::CR0_PG != 0 {
            return false;
        }
        self.msr.efer = v & !EFER_LMA | old & EFER_LMA;
        if (old ^ v) & EFER_NXE != 0 {
            self.flush_tlb(false);
        }
        true
    }

    fn put_tsc(&mut self) -> Res {
        const TSD: u64 = 1 << 2;
        if self.cr4 & TSD != 0 && self.cpl != 0 {
            return Err(self.gp(0));
        }
        let tsc = self.tsc();
        self.set_edx_eax(tsc);
        Ok(())
    }
}

/// RDMSR.
pub(crate) fn rdmsr(cpu: &mut Cpu, _: &Insn) -> Res {
    cpu.privileged()?;
    let msr = cpu.gpr[usize::from(RCX)] as u32;
    cpu.offer_msr(msr, false)?;
    match cpu.read_msr(msr) {
        Some(v) => cpu.set_edx_eax(v),
        None => return Err(cpu.gp(0)),
    }
    Ok(())
}

/// WRMSR.
pub(crate) fn wrmsr(cpu: &mut Cpu, _: &Insn) -> Res {
    cpu.privileged()?;
    let (msr, v) = (cpu.gpr[usize::from(RCX)] as u32, cpu.edx_eax());
    cpu.offer_msr(msr, true)?;
    if cpu.write_msr(msr, v) { Ok(()) } else { Err(cpu.gp(0)) }
}

/// RDTSC.
pub(crate) fn rdtsc(cpu: &mut Cpu, _: &Insn) -> Res {
    cpu.put_tsc()
}

/// RDTSCP.
pub(crate) fn rdtscp(cpu: &mut Cpu, _: &Insn) -> Res {
    cpu.put_tsc()?;
    cpu.gpr[usize::from(RCX)] = cpu.msr.tsc_aux;
    Ok(())
}

/// RDPMC: there are no counters.
pub(crate) fn rdpmc(cpu: &mut Cpu, _: &Insn) -> Res {
    Err(cpu.gp(0))
}
