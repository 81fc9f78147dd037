//! CPUID, and what else depends on the processor model.
//!
//! The default model has the instructions of x86-64-v2 and the signature of an in-order Intel Atom (family 6, model
//! 36h). Systems since 2018 decide by the signature which speculation faults to work around, and these processors have
//! none, so Linux leaves page-table isolation, return trampolines and buffer flushes off; IA32_ARCH_CAPABILITIES says
//! the same to those that ask it (FreeBSD, OpenBSD, NetBSD). Its model-specific registers are few.
//!
//! Offered features are words of the [`Model`], which a configuration can change; bits that mirror a register (OSXSAVE,
//! APIC, SYSCALL outside 64-bit mode) or follow from the model (hypervisor, HTT) are computed.

use crate::insn::{Insn, Mode, RAX, RCX, Res};
use crate::state::{Cpu, Model};
use crate::sys::put_cpuid;

/// Features of leaf 1, EDX.
const FPU: u32 = 1;
const VME: u32 = 1 << 1;
const DE: u32 = 1 << 2;
const PSE: u32 = 1 << 3;
const TSC: u32 = 1 << 4;
const MSR: u32 = 1 << 5;
const PAE: u32 = 1 << 6;
const MCE: u32 = 1 << 7;
const CX8: u32 = 1 << 8;
const APIC: u32 = 1 << 9;
const SEP: u32 = 1 << 11;
const MTRR: u32 = 1 << 12;
const PGE: u32 = 1 << 13;
const MCA: u32 = 1 << 14;
const CMOV: u32 = 1 << 15;
const PAT: u32 = 1 << 16;
const PSE36: u32 = 1 << 17;
const CLFLUSH: u32 = 1 << 19;
const MMX: u32 = 1 << 23;
const FXSR: u32 = 1 << 24;
const SSE: u32 = 1 << 25;
const SSE2: u32 = 1 << 26;
const HTT: u32 = 1 << 28;
/// Leaf 1, ECX.
const SSE3: u32 = 1;
const SSSE3: u32 = 1 << 9;
const CX16: u32 = 1 << 13;
const SSE41: u32 = 1 << 19;
const SSE42: u32 = 1 << 20;
const X2APIC: u32 = 1 << 21;
const POPCNT: u32 = 1 << 23;
const TSC_DEADLINE: u32 = 1 << 24;
const XSAVE: u32 = 1 << 26;
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 7, EBX.
const EBX7_FSGSBASE: u32 = 1;
const EBX7_TSC_ADJUST: u32 = 1 << 1;
const EBX7_SMEP: u32 = 1 << 7;
const EBX7_ERMS: u32 = 1 << 9;
pub(crate) const EBX7_SMAP: u32 = 1 << 20;
/// Leaf 7, EDX.
const EDX7_ARCH_CAPABILITIES: u32 = 1 << 29;
/// Leaf 80000001, EDX.
const SYSCALL: u32 = 1 << 11;
const NX: u32 = 1 << 20;
const PAGE1GB: u32 = 1 << 26;
const RDTSCP: u32 = 1 << 27;
const LM: u32 = 1 << 29;
/// Leaf 80000001, ECX.
const LAHF: u32 = 1;

/// Not affected by Meltdown, L1TF, SSB, MDS, the ITLB multihit, TAA, MMIO stale data (3 bits), BHI, PBRSB, GDS, RFDS,
/// ITS.
const NOT_AFFECTED: u64 =
    1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 7 << 13 | 1 << 20 | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 62;

/// The state components that XCR0 can enable: x87 and SSE.
pub(crate) const XCR0_ALL: u64 = 3;
/// Bytes of an XSAVE area with these: the legacy region and the header.
const XSAVE_AREA: u32 = 576;

/// The highest leaf.
const MAX_LEAF: u32 = 0x16;
const MAX_HYPERVISOR_LEAF: u32 = 0x4000_0010;
const MAX_EXTENDED_LEAF: u32 = 0x8000_0008;

/// The local APIC's timer counts at this rate before its divider; leaf 15h calls it the crystal clock, from which
/// systems take it.
const CRYSTAL_HZ: u64 = 1_000_000_000;

impl Default for Model {
    /// x86-64-v2 at 1 GHz, one processor, no hypervisor leaf.
    fn default() -> Model {
        Model {
            vendor: *b"GenuineIntel",
            brand: "bhyve-rs soft CPU".to_owned(),
            signature: 0x0003_0661,
            edx1: FPU
                | VME
                | DE
                | PSE
                | TSC
                | MSR
                | PAE
                | MCE
                | CX8
                | APIC
                | SEP
                | MTRR
                | PGE
                | MCA
                | CMOV
                | PAT
                | PSE36
                | CLFLUSH
                | MMX
                | FXSR
                | SSE
                | SSE2,
            ecx1: SSE3 | SSSE3 | CX16 | SSE41 | SSE42 | X2APIC | POPCNT | TSC_DEADLINE | XSAVE,
            ebx7: EBX7_FSGSBASE | EBX7_TSC_ADJUST | EBX7_SMEP | EBX7_ERMS | EBX7_SMAP,
            edx7: EDX7_ARCH_CAPABILITIES,
            edx_ext: SYSCALL | NX | PAGE1GB | RDTSCP | LM,
            ecx_ext: LAHF,
            hypervisor: None,
            cpus: 1,
            phys_bits: 40,
            arch_capabilities: NOT_AFFECTED,
            ignore_unknown_msrs: false,
            tsc_hz: 1_000_000_000,
        }
    }
}

impl Model {
    /// Leaf 40000000 of KVM. The feature word is empty: Linux takes x2APIC and nothing else from it.
    pub const KVM: [u8; 12] = *b"KVMKVMKVM\0\0\0";
    /// Leaf 40000000 of bhyve.
    pub const BHYVE: [u8; 12] = *b"bhyve bhyve ";

    pub(crate) fn family(&self) -> u32 {
        self.signature >> 8 & 0xf
    }

    /// A processor without a signature has no CPUID.
    pub(crate) fn has_cpuid(&self) -> bool {
        self.signature != 0
    }

    pub(crate) fn is_amd(&self) -> bool {
        self.vendor == *b"AuthenticAMD"
    }

    pub(crate) fn has_sysenter(&self) -> bool {
        self.edx1 & SEP != 0
    }

    pub(crate) fn has_syscall(&self) -> bool {
        self.edx_ext & SYSCALL != 0
    }

    pub(crate) fn has_nx(&self) -> bool {
        self.edx_ext & NX != 0
    }

    pub(crate) fn has_long_mode(&self) -> bool {
        self.edx_ext & LM != 0
    }

    pub(crate) fn has_rdtscp(&self) -> bool {
        self.edx_ext & RDTSCP != 0
    }

    pub(crate) fn has_tsc_adjust(&self) -> bool {
        self.ebx7 & EBX7_TSC_ADJUST != 0
    }

    pub(crate) fn has_tsc_deadline(&self) -> bool {
        self.ecx1 & TSC_DEADLINE != 0
    }

    pub(crate) fn has_arch_capabilities(&self) -> bool {
        self.edx7 & EDX7_ARCH_CAPABILITIES != 0
    }

    /// The bits of CR4 that can be set.
    pub(crate) fn cr4_mask(&self) -> u64 {
        let edx1 = [
            (VME, 3),
            (TSC, 1 << 2),
            (DE, 1 << 3),
            (PSE, 1 << 4),
            (PAE, 1 << 5),
            (MCE, 1 << 6),
            (PGE, 1 << 7),
            (MMX, 1 << 8),
            (FXSR, 1 << 9),
            (SSE, 1 << 10),
        ];
        let ebx7 = [(EBX7_FSGSBASE, 1 << 16), (EBX7_SMEP, 1 << 20), (EBX7_SMAP, 1 << 21)];
        let of = |word: u32, list: &[(u32, u64)]| {
            list.iter().filter(|(feature, _)| word & feature != 0).fold(0, |mask, (_, bits)| mask | bits)
        };
        of(self.edx1, &edx1) | of(self.ecx1, &[(XSAVE, 1 << 18)]) | of(self.ebx7, &ebx7)
    }

    /// Bits of an APIC id below the package.
    fn id_bits(&self) -> u32 {
        self.cpus.max(1).next_power_of_two().trailing_zeros()
    }
}

/// Leaf 4: type and level, ways, sets, ids that share it.
fn cache(kind: u32, level: u32, ways: u32, sets: u32, id_bits: u32) -> [u32; 4] {
    [kind | level << 5 | 1 << 8 | ((1 << id_bits) - 1) << 26, (ways - 1) << 22 | 63, sets - 1, 0]
}

impl Cpu {
    fn apic_id(&self) -> u32 {
        const X2: u64 = 1 << 10;
        let id = self.lapic.read(0x20);
        if self.lapic.apic_base() & X2 != 0 { id } else { id >> 24 }
    }

    /// EAX, EBX, ECX and EDX of a leaf.
    pub(crate) fn cpuid(&self, leaf: u32, sub: u32) -> [u32; 4] {
        let m = &self.model;
        let amd = m.is_amd();
        // MISC_ENABLE can limit the leaves for Windows NT 4.
        let max = if self.msr.misc_enable & 1 << 22 != 0 { 3 } else { MAX_LEAF };
        let leaf = match leaf {
            0..=0x3fff_ffff if leaf > max => max,
            0x4000_0000..=0x4fff_ffff if m.hypervisor.is_none() => max,
            MAX_HYPERVISOR_LEAF..=0x7fff_ffff if leaf > MAX_HYPERVISOR_LEAF => max,
            MAX_EXTENDED_LEAF.. if leaf > MAX_EXTENDED_LEAF => max,
            _ => leaf,
        };
        let word = |bytes: &[u8], n: usize| {
            let mut w = [0; 4];
            w.iter_mut().zip(bytes.iter().skip(4 * n)).for_each(|(to, from)| *to = *from);
            u32::from_le_bytes(w)
        };
        let khz = u32::try_from(m.tsc_hz / 1000).unwrap_or(u32::MAX);
        match leaf {
            0 => [max, word(&m.vendor, 0), word(&m.vendor, 2), word(&m.vendor, 1)],
            1 => {
                let ids = if m.cpus > 1 { 1 << m.id_bits() } else { 1 };
                let mut ecx = m.ecx1 & !OSXSAVE;
                if self.cr4 & 1 << 18 != 0 {
                    ecx |= OSXSAVE;
                }
                if m.hypervisor.is_some() {
                    ecx |= HYPERVISOR;
                }
                let mut edx = m.edx1;
                if self.lapic.apic_base() & 1 << 11 == 0 {
                    edx &= !APIC;
                }
                if m.cpus > 1 {
                    edx |= HTT;
                }
                [m.signature, self.apic_id() << 24 | (ids & 0xff) << 16 | 8 << 8, ecx, edx]
            }
            // Translation buffers, and the caches of leaf 4.
            2 if !amd => [0xb3b1_b001, 0, 0, 0x002c_307d],
            4 if !amd => match sub {
                0 => cache(1, 1, 8, 64, m.id_bits()),
                1 => cache(2, 1, 8, 64, m.id_bits()),
                2 => cache(3, 2, 8, 4096, m.id_bits()),
                _ => [0; 4],
            },
            // ARAT: the APIC timer does not stop.
            6 => [1 << 2, 0, 0, 0],
            7 if sub == 0 => [0, m.ebx7, 0, m.edx7],
            0xb if m.ecx1 & X2APIC != 0 => {
                let id = self.apic_id();
                match sub {
                    0 => [0, 1, 1 << 8, id],
                    1 => [m.id_bits(), m.cpus, 2 << 8 | 1, id],
                    _ => [0, 0, sub & 0xff, id],
                }
            }
            0xd if m.ecx1 & XSAVE != 0 && sub == 0 => [XCR0_ALL as u32, XSAVE_AREA, XSAVE_AREA, 0],
            0x15 if !amd && m.tsc_hz != 0 => {
                let common = gcd(m.tsc_hz, CRYSTAL_HZ);
                let ratio = u32::try_from(m.tsc_hz / common).unwrap_or(0);
                [(CRYSTAL_HZ / common) as u32, ratio, CRYSTAL_HZ as u32, 0]
            }
            0x16 if !amd => [khz / 1000, khz / 1000, 100, 0],
            0x4000_0000 => {
                let id = m.hypervisor.unwrap_or_default();
                [MAX_HYPERVISOR_LEAF, word(&id, 0), word(&id, 1), word(&id, 2)]
            }
            // The rates of TSC and APIC timer in kHz.
            MAX_HYPERVISOR_LEAF => [khz, (CRYSTAL_HZ / 1000) as u32, 0, 0],
            0x8000_0000 if amd => [MAX_EXTENDED_LEAF, word(&m.vendor, 0), word(&m.vendor, 2), word(&m.vendor, 1)],
            0x8000_0000 => [MAX_EXTENDED_LEAF, 0, 0, 0],
            0x8000_0001 if amd => [m.signature, 0, m.ecx_ext, m.edx_ext | m.edx1 & 0x0183_f3ff],
            0x8000_0001 => {
                // Intel's processors have SYSCALL in 64-bit mode only, and say so only there.
                let hidden = if self.mode.has(Mode::LONG) { 0 } else { SYSCALL };
                [0, 0, m.ecx_ext, m.edx_ext & !hidden]
            }
            0x8000_0002..=0x8000_0004 => {
                let n = (leaf - 0x8000_0002) as usize * 4;
                [0, 1, 2, 3].map(|k| word(m.brand.as_bytes(), n + k))
            }
            0x8000_0005 if amd => [0, 0, 32 << 24 | 8 << 16 | 1 << 8 | 64, 32 << 24 | 8 << 16 | 1 << 8 | 64],
            0x8000_0006 => [0, 0, 2048 << 16 | 6 << 12 | if amd { 1 << 8 } else { 0 } | 64, 0],
            // The TSC runs at a constant rate.
            0x8000_0007 => [0, 0, 0, 1 << 8],
            0x8000_0008 => {
                let linear = if m.has_long_mode() { 48 } else { 32 };
                [linear << 8 | u32::from(m.phys_bits), 0, if amd { m.cpus - 1 } else { 0 }, 0]
            }
            _ => [0; 4],
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// CPUID.
pub(crate) fn cpuid(cpu: &mut Cpu, _: &Insn) -> Res {
    if !cpu.model.has_cpuid() {
        return Err(cpu.ud());
    }
    let (leaf, sub) = (cpu.gpr[usize::from(RAX)] as u32, cpu.gpr[usize::from(RCX)] as u32);
    put_cpuid(cpu, cpu.cpuid(leaf, sub));
    Ok(())
}
