//! CPUID: the leaves of a [`Model`].
//!
//! Bits that mirror a register (OSXSAVE, APIC, SYSCALL outside 64-bit mode) or follow from the machine (hypervisor,
//! HTT) are computed. A leaf beyond the highest shows that one's, as Intel's processors have it; software that looks
//! for leaf 80000000 on one without extended leaves finds a number that is too small.

use crate::feature::Feature::{Apic, Clflush, Cpuid, Ht, Lm, Syscall, Xsave};
use crate::feature::Word;
use crate::insn::{Insn, Mode, RAX, RCX, Res};
use crate::model::{Cache, Model};
use crate::state::Cpu;
use crate::sys::put_cpuid;

/// Leaf 1, EDX.
const APIC: u32 = 1 << 9;
const HTT: u32 = 1 << 28;
/// Leaf 1, ECX.
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 80000001, EDX: what AMD repeats of leaf 1.
const AMD_REPEATS: u32 = 0x0183_f3ff;

/// The state components that XCR0 can enable: x87 and SSE.
pub(crate) const XCR0_ALL: u64 = 3;
/// Bytes of an XSAVE area with these: the legacy region and the header.
const XSAVE_AREA: u32 = 576;

const MAX_HYPERVISOR_LEAF: u32 = 0x4000_0010;

/// The local APIC's timer counts at this rate before its divider; leaf 15h calls it the crystal clock, from which
/// systems take it.
const CRYSTAL_HZ: u64 = 1_000_000_000;

impl Model {
    /// Bits of an APIC id below the package.
    fn id_bits(&self) -> u32 {
        self.siblings().next_power_of_two().trailing_zeros()
    }

    /// Bits of an APIC id below the core.
    fn thread_bits(&self) -> u32 {
        self.threads().next_power_of_two().trailing_zeros()
    }

    /// Leaf 4: type and level, ways, sets, ids that share it.
    fn cache(&self, kind: u32, level: u32, c: Cache) -> [u32; 4] {
        let line = self.caches.line;
        let sets = (c.kib << 10) / (line * c.ways);
        let cores = (1 << (self.id_bits() - self.thread_bits())) - 1;
        // In a topology that was asked for, the last level is the package's; the others are a core's.
        let package = level == 3 && self.cores != 0;
        let sharing = (1 << if package { self.id_bits() } else { self.thread_bits() }) - 1;
        [kind | level << 5 | 1 << 8 | sharing << 14 | cores << 26, (c.ways - 1) << 22 | (line - 1), sets - 1, 0]
    }

    /// Leaf 80000005: a level 1 cache.
    fn amd_l1(&self, c: Cache) -> u32 {
        c.kib << 24 | c.ways << 16 | 1 << 8 | self.caches.line
    }

    /// Leaf 80000006: the level 2 cache.
    fn amd_l2(&self) -> u32 {
        let ways = match self.caches.l2.ways {
            n @ (1 | 2 | 4) => n,
            8 => 6,
            _ => 8,
        };
        self.caches.l2.kib << 16 | ways << 12 | if self.is_amd() { 1 << 8 } else { 0 } | self.caches.line
    }
}

/// What CPUID shows of a processor's registers.
#[derive(Clone, Copy, Debug)]
struct Shown {
    /// The local APIC's id.
    apic_id: u32,
    /// The local APIC is enabled.
    apic: bool,
    /// CR4.OSXSAVE.
    osxsave: bool,
    /// MISC_ENABLE can limit the leaves for Windows NT 4.
    limited: bool,
    /// In 64-bit mode.
    long: bool,
}

/// A leaf of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// EAX.
    pub leaf: u32,
    /// ECX, where it matters.
    pub sub: Option<u32>,
    /// EAX, EBX, ECX, EDX.
    pub regs: [u32; 4],
}

impl Model {
    /// The leaves of the processor whose local APIC has the id `apic_id`, for a hypervisor whose kernel answers CPUID
    /// and adds what mirrors registers. Of a model without CPUID there are none.
    pub fn leaves(&self, apic_id: u32) -> Vec<Leaf> {
        if !self.has(Cpuid) {
            return Vec::new();
        }
        let shown = Shown { apic_id, apic: true, osxsave: false, limited: false, long: true };
        let hypervisor = if self.hypervisor.is_some() { MAX_HYPERVISOR_LEAF } else { 0 };
        let extended = 0x8000_0000..=self.max_extended;
        let leaves = (0..=self.max_leaf).chain(0x4000_0000..=hypervisor).chain(extended);
        leaves
            .flat_map(|leaf| {
                let subs = match leaf {
                    4 => Some(0..=4),
                    7 | 0xd => Some(0..=0),
                    0xb => Some(0..=2),
                    _ => None,
                };
                let subs = subs.map_or(vec![None], |subs| subs.map(Some).collect());
                subs.into_iter().map(move |sub| (leaf, sub))
            })
            .map(|(leaf, sub)| Leaf { leaf, sub, regs: self.cpuid(leaf, sub.unwrap_or(0), &shown) })
            .collect()
    }

    /// EAX, EBX, ECX and EDX of a leaf.
    fn cpuid(&self, leaf: u32, sub: u32, shown: &Shown) -> [u32; 4] {
        let m = self;
        let amd = m.is_amd();
        let max = if shown.limited { m.max_leaf.min(3) } else { m.max_leaf };
        let leaf = match leaf {
            0..=0x3fff_ffff if leaf > max => max,
            0x4000_0000..=0x4fff_ffff if m.hypervisor.is_none() => max,
            MAX_HYPERVISOR_LEAF..=0x7fff_ffff if leaf > MAX_HYPERVISOR_LEAF => max,
            0x8000_0000.. if leaf > m.max_extended => max,
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
                // FreeBSD steps by the line size whenever there is CLFLUSH: neither goes without the other.
                let line = if m.has(Clflush) { m.caches.line / 8 << 8 } else { 0 };
                let ids = if m.has(Ht) { (1 << m.id_bits() & 0xff) << 16 } else { 0 };
                let mut ecx = m.features.word(Word::Ecx1);
                if shown.osxsave {
                    ecx |= OSXSAVE;
                }
                if m.hypervisor.is_some() {
                    ecx |= HYPERVISOR;
                }
                let mut edx = m.feature_flags();
                if !shown.apic {
                    edx &= !APIC;
                }
                if m.siblings() < 2 {
                    edx &= !HTT;
                }
                let id = if m.has(Apic) { shown.apic_id << 24 } else { 0 };
                [m.signature, id | ids | line | u32::from(m.brand_index), ecx, edx]
            }
            2 if !amd => m.descriptors,
            4 if !amd => {
                let c = &m.caches;
                let list = [(1, 1, c.data), (2, 1, c.code), (3, 2, c.l2), (3, 3, c.l3)];
                let mut there = list.into_iter().filter(|(_, _, cache)| cache.kib != 0);
                there.nth(sub as usize).map_or([0; 4], |(kind, level, cache)| m.cache(kind, level, cache))
            }
            6 => [m.features.word(Word::Eax6), 0, 0, 0],
            7 if sub == 0 => [0, m.features.word(Word::Ebx7), 0, m.features.word(Word::Edx7)],
            0xb if m.has(Apic) => {
                let id = shown.apic_id;
                match sub {
                    0 => [m.thread_bits(), m.threads(), 1 << 8, id],
                    1 => [m.id_bits(), m.siblings(), 2 << 8 | 1, id],
                    _ => [0, 0, sub & 0xff, id],
                }
            }
            0xd if m.has(Xsave) && sub == 0 => [XCR0_ALL as u32, XSAVE_AREA, XSAVE_AREA, 0],
            0x15 if !amd => crystal_ratio(m.tsc_hz)
                .map_or([0; 4], |(denominator, numerator)| [denominator, numerator, CRYSTAL_HZ as u32, 0]),
            0x16 if !amd => {
                let mhz = khz.saturating_add(500) / 1000;
                [mhz, mhz, 100, 0]
            }
            0x4000_0000 => {
                let id = m.hypervisor.unwrap_or_default();
                [MAX_HYPERVISOR_LEAF, word(&id, 0), word(&id, 1), word(&id, 2)]
            }
            // The rates of TSC and APIC timer in kHz.
            MAX_HYPERVISOR_LEAF => [khz, (CRYSTAL_HZ / 1000) as u32, 0, 0],
            0x8000_0000 if amd => [m.max_extended, word(&m.vendor, 0), word(&m.vendor, 2), word(&m.vendor, 1)],
            0x8000_0000 => [m.max_extended, 0, 0, 0],
            0x8000_0001 => {
                let (ecx, edx) = (m.features.word(Word::EcxExt), m.features.word(Word::EdxExt));
                // Intel's processors have SYSCALL in 64-bit mode only, and say so only there.
                let hidden = if shown.long { 0 } else { Syscall.place().1 };
                if amd {
                    [m.signature, 0, ecx, edx | m.feature_flags() & AMD_REPEATS]
                } else {
                    [0, 0, ecx, edx & !hidden]
                }
            }
            0x8000_0002..=0x8000_0004 => {
                let n = (leaf - 0x8000_0002) as usize * 4;
                [0, 1, 2, 3].map(|k| word(m.brand.as_bytes(), n + k))
            }
            // With the K8's translation buffers.
            0x8000_0005 if amd => [0xff08_ff08, 0xff20_ff20, m.amd_l1(m.caches.data), m.amd_l1(m.caches.code)],
            0x8000_0006 if amd => [0, 0x4200_4200, m.amd_l2(), 0],
            0x8000_0006 => [0, 0, m.amd_l2(), 0],
            0x8000_0007 => [0, 0, 0, m.features.word(Word::EdxPower)],
            0x8000_0008 => {
                let linear = if m.has(Lm) { 48 } else { 32 };
                [linear << 8 | u32::from(m.phys_bits), 0, if amd { m.siblings() - 1 } else { 0 }, 0]
            }
            _ => [0; 4],
        }
    }
}

impl Cpu {
    /// EAX, EBX, ECX and EDX of a leaf.
    pub(crate) fn cpuid(&self, leaf: u32, sub: u32) -> [u32; 4] {
        const X2: u64 = 1 << 10;
        let (id, base) = (self.lapic.read(0x20), self.lapic.apic_base());
        let shown = Shown {
            apic_id: if base & X2 != 0 { id } else { id >> 24 },
            apic: base & 1 << 11 != 0,
            osxsave: self.cr4 & 1 << 18 != 0,
            limited: self.msr.misc_enable & 1 << 22 != 0,
            long: self.mode.has(Mode::LONG),
        };
        self.model.cpuid(leaf, sub, &shown)
    }
}

/// Denominator and numerator of a TSC's rate over the crystal's, within 2 ppm. Without them systems measure. Linux
/// multiplies the crystal's kHz by the numerator in 32 bits (native_calibrate_tsc), which leaves room for small ones only;
/// rates that KVM has measured seldom have any.
fn crystal_ratio(tsc_hz: u64) -> Option<(u32, u32)> {
    const MOST: u64 = u32::MAX as u64 / (CRYSTAL_HZ / 1000);
    let near = |numerator: u64| {
        let denominator = (numerator * CRYSTAL_HZ + tsc_hz / 2).checked_div(tsc_hz).filter(|d| *d > 0)?;
        // In parts of 10^9.
        let error = (denominator * tsc_hz).abs_diff(numerator * CRYSTAL_HZ) / (numerator * CRYSTAL_HZ / 1_000_000_000);
        Some((error, denominator as u32, numerator as u32))
    };
    let (error, denominator, numerator) = (1..=MOST).filter_map(near).min()?;
    (error <= 2000).then_some((denominator, numerator))
}

/// CPUID.
pub(crate) fn cpuid(cpu: &mut Cpu, _: &Insn) -> Res {
    let (leaf, sub) = (cpu.gpr[usize::from(RAX)] as u32, cpu.gpr[usize::from(RCX)] as u32);
    put_cpuid(cpu, cpu.cpuid(leaf, sub));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::Features;

    #[test]
    fn the_leaves_for_a_kernel_show_the_model_and_nothing_that_it_lacks() {
        let features = Features::of(&[Clflush]);
        let mut m = Model::default();
        m.set_features(m.features.without(&[Clflush]));
        let leaves = m.leaves(3);
        let leaf = |n: u32, sub| leaves.iter().find(|l| l.leaf == n && l.sub == sub).unwrap().regs;
        assert_eq!(leaf(1, None)[3] & features.word(Word::Edx1), 0);
        assert_eq!(leaf(1, None)[1] & 0xff00_ff00, 3 << 24, "the APIC id, and no line size without CLFLUSH");
        assert_eq!(leaf(0xb, Some(1))[3], 3);
        assert!(leaves.iter().all(|l| !(0x4000_0000..0x8000_0000).contains(&l.leaf)), "no hypervisor's leaf");
        assert_eq!(leaves.last().unwrap().leaf, m.max_extended);
        assert!(Model::named("486").unwrap().leaves(0).is_empty());
    }

    #[test]
    fn features_are_found_where_cpuid_shows_them() {
        let m = Model::named("max").unwrap();
        let leaves = m.leaves(0);
        let register = |leaf, n: usize| leaves.iter().find(|l| l.leaf == leaf).map_or(0, |l| l.regs[n]);
        let shown = Features::shown(register);
        // It shows with several processors only.
        assert_eq!(shown.with(&[Ht]), m.features);
    }
}
