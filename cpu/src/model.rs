//! Which processor this is: the named models, and what each of them implies.
//!
//! A model is a vendor, a signature, a set of [`Features`] and the facts of CPUID that are no features: how far the
//! leaves go, caches, brand string, width of addresses. Configurations start from a name and change what they like.
//!
//! Signatures, feature sets, caches and brand strings are those of parts that were common, as their makers' CPUID
//! documents (Intel AP-485, AMD 20734 and 25481) and their owners' /proc/cpuinfo have them, less what this processor
//! does not do: power management and thermal sensors, MONITOR, virtual machines, 3DNow!, serial numbers. No part runs
//! at the clock rate in its brand string.
//!
//! `x86-64-v2` is nobody's part. It has the signature of an in-order Intel Atom (family 6, model 36h): systems since
//! 2018 decide by the signature which speculation faults to work around, and these have none, so Linux leaves
//! page-table isolation, return trampolines and buffer flushes off; IA32_ARCH_CAPABILITIES says the same to those that
//! ask it (FreeBSD, OpenBSD, NetBSD).

use crate::feature::Feature::{self, *};
use crate::feature::Features;
use crate::flags::{AC, ID, VIF, VIP};

/// A cache; 0 KiB where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cache {
    /// Size.
    pub kib: u32,
    /// Associativity.
    pub ways: u32,
}

/// The caches that CPUID describes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caches {
    /// Bytes in a line.
    pub line: u32,
    /// Level 1, data.
    pub data: Cache,
    /// Level 1, code.
    pub code: Cache,
    /// Level 2.
    pub l2: Cache,
    /// Level 3.
    pub l3: Cache,
}

/// What the processor claims to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// What it is called in configurations.
    pub name: &'static str,
    /// Twelve characters of CPUID leaf 0.
    pub vendor: [u8; 12],
    /// Up to 48 characters of leaves 80000002-4.
    pub brand: String,
    /// CPUID.1:EBX[7:0]: what Pentium III had in the place of a brand string.
    pub brand_index: u8,
    /// CPUID.1:EAX, and EDX at reset.
    pub signature: u32,
    /// What it can do.
    pub features: Features,
    /// The highest leaf.
    pub max_leaf: u32,
    /// The highest leaf from 80000000 on, or 0 if there are none.
    pub max_extended: u32,
    /// Leaf 2, where the vendor has it.
    pub descriptors: [u32; 4],
    /// Leaf 4, or 80000005 and 80000006.
    pub caches: Caches,
    /// Physical address bits.
    pub phys_bits: u8,
    /// IA32_ARCH_CAPABILITIES, where there is that feature.
    pub arch_capabilities: u64,
    /// Twelve characters of leaf 40000000, if there is a hypervisor leaf.
    pub hypervisor: Option<[u8; 12]>,
    /// Number of processors in the machine.
    pub cpus: u32,
    /// Cores in a package; 0 if all processors are in one.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
    /// Unknown MSRs read as 0 and ignore writes, instead of #GP.
    pub ignore_unknown_msrs: bool,
    /// TSC ticks a second.
    pub tsc_hz: u64,
}

/// A row of the table.
struct Part {
    name: &'static str,
    vendor: &'static [u8; 12],
    brand: &'static str,
    brand_index: u8,
    signature: u32,
    features: Features,
    max_leaf: u32,
    max_extended: u32,
    descriptors: [u32; 4],
    caches: Caches,
    phys_bits: u8,
}

const INTEL: &[u8; 12] = b"GenuineIntel";
const AMD: &[u8; 12] = b"AuthenticAMD";

const I386: Features = Features::of(&[Fpu]);
const I486DX: Features = I386.with(&[I486]);
const P54C: Features = I486DX.with(&[Cpuid, Vme, De, Pse, Tsc, Msr, Mce, Cx8, Apic]);
const P6: Features = P54C.with(&[Nopl, Pae, Mtrr, Pge, Mca, Cmov]);
const DESCHUTES: Features = P6.with(&[Sep, Pat, Pse36, Mmx, Fxsr]);
const COPPERMINE: Features = DESCHUTES.with(&[Sse]);
const PRESCOTT: Features = COPPERMINE.with(&[Clflush, Sse2, Ss, Ht, Sse3]);
const CONROE: Features = PRESCOTT.with(&[Syscall, Nx, Lm, LahfLm, Ssse3, Cx16]);
const GAINESTOWN: Features = CONROE.with(&[Rdtscp, Sse41, Sse42, Popcnt, NonstopTsc]);
const K7: Features = P6.with(&[Sep, Pat, Pse36, Mmx, Fxsr, Sse, Syscall, Mmxext]);
const K8: Features = K7.with(&[Clflush, Sse2, Nx, Lm]);
const V2: Features = GAINESTOWN.with(&[
    X2apic,
    TscDeadline,
    Xsave,
    Arat,
    Fsgsbase,
    TscAdjust,
    Smep,
    Erms,
    Smap,
    ArchCapabilities,
    Pdpe1gb,
]);

const fn cache(kib: u32, ways: u32) -> Cache {
    Cache { kib, ways }
}

const NO_CACHE: Cache = cache(0, 0);

const fn caches(line: u32, data: Cache, code: Cache, l2: Cache, l3: Cache) -> Caches {
    Caches { line, data, code, l2, l3 }
}

/// The first one is where all rows start from.
const PARTS: [Part; 15] = {
    let v2 = Part {
        name: "x86-64-v2",
        vendor: INTEL,
        brand: "bhyve-rs soft CPU",
        brand_index: 0,
        signature: 0x0003_0661,
        features: V2,
        max_leaf: 0x16,
        max_extended: 0x8000_0008,
        descriptors: [0xb3b1_b001, 0, 0, 0x002c_307d],
        caches: caches(64, cache(32, 8), cache(32, 8), cache(2048, 8), NO_CACHE),
        phys_bits: 40,
    };
    let max = Part { name: "max", features: Features::ALL, ..v2 };
    // An 80386DX with an 80387.
    let i386 = Part {
        name: "386",
        brand: "",
        signature: 0x308,
        features: I386,
        max_leaf: 0,
        max_extended: 0,
        descriptors: [0; 4],
        caches: caches(32, NO_CACHE, NO_CACHE, NO_CACHE, NO_CACHE),
        phys_bits: 32,
        ..v2
    };
    // An i486DX2, too early for CPUID.
    let i486 = Part { name: "486", signature: 0x433, features: I486DX, ..i386 };
    let pentium = Part { name: "pentium", signature: 0x52c, features: P54C, max_leaf: 1, ..i386 };
    let mmx = Part { name: "pentium-mmx", signature: 0x543, features: P54C.with(&[Mmx]), ..pentium };
    let ppro = Part {
        name: "pentium-pro",
        signature: 0x619,
        features: P6,
        max_leaf: 2,
        descriptors: [0x0302_0101, 0, 0, 0x0604_0a42],
        phys_bits: 36,
        ..pentium
    };
    let p2 = Part {
        name: "pentium2",
        signature: 0x652,
        features: DESCHUTES,
        descriptors: [0x0302_0101, 0, 0, 0x0c04_0843],
        ..ppro
    };
    let p3 = Part {
        name: "pentium3",
        brand_index: 2,
        signature: 0x68a,
        features: COPPERMINE,
        descriptors: [0x0302_0101, 0, 0, 0x0c04_0882],
        ..p2
    };
    let p4 = Part {
        name: "pentium4",
        brand: "              Intel(R) Pentium(R) 4 CPU 3.00GHz",
        brand_index: 0,
        signature: 0xf34,
        features: PRESCOTT,
        max_leaf: 5,
        max_extended: 0x8000_0008,
        descriptors: [0x605b_5001, 0, 0, 0x007c_7040],
        caches: caches(64, cache(16, 8), NO_CACHE, cache(1024, 8), NO_CACHE),
        ..p3
    };
    let core2 = Part {
        name: "core2",
        brand: "Intel(R) Core(TM)2 CPU          6600  @ 2.40GHz",
        signature: 0x6f6,
        features: CONROE,
        max_leaf: 0xa,
        descriptors: [0x05b0_b101, 0x0056_57f0, 0, 0x2cb4_3049],
        caches: caches(64, cache(32, 8), cache(32, 8), cache(4096, 16), NO_CACHE),
        ..p4
    };
    let nehalem = Part {
        name: "nehalem",
        brand: "Intel(R) Xeon(R) CPU           X5550  @ 2.67GHz",
        signature: 0x106a5,
        features: GAINESTOWN,
        max_leaf: 0xb,
        descriptors: [0x5503_5a01, 0x00f0_b2dd, 0, 0x09ca_212c],
        caches: caches(64, cache(32, 8), cache(32, 4), cache(256, 8), cache(8192, 16)),
        phys_bits: 40,
        ..core2
    };
    // An Athlon XP of the Barton core.
    let athlon = Part {
        name: "athlon",
        vendor: AMD,
        brand: "AMD Athlon(tm) XP 2500+",
        signature: 0x6a0,
        features: K7,
        max_leaf: 1,
        max_extended: 0x8000_0008,
        caches: caches(64, cache(64, 2), cache(64, 2), cache(512, 16), NO_CACHE),
        phys_bits: 34,
        ..i386
    };
    let athlon64 = Part {
        name: "athlon64",
        brand: "AMD Athlon(tm) 64 Processor 3200+",
        signature: 0x20ff2,
        features: K8.with(&[Sse3, LahfLm]),
        phys_bits: 40,
        ..athlon
    };
    let opteron = Part {
        name: "opteron",
        brand: "AMD Opteron(tm) Processor 246",
        signature: 0xf5a,
        features: K8,
        caches: caches(64, cache(64, 2), cache(64, 2), cache(1024, 16), NO_CACHE),
        ..athlon64
    };
    [v2, max, i386, i486, pentium, mmx, ppro, p2, p3, p4, core2, nehalem, athlon, athlon64, opteron]
};

/// Not affected by Meltdown, L1TF, SSB, MDS, the ITLB multihit, TAA, MMIO stale data (3 bits), BHI, PBRSB, GDS, RFDS,
/// ITS.
const NOT_AFFECTED: u64 =
    1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 7 << 13 | 1 << 20 | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 62;

impl Part {
    fn model(&self) -> Model {
        Model {
            name: self.name,
            vendor: *self.vendor,
            brand: self.brand.to_owned(),
            brand_index: self.brand_index,
            signature: self.signature,
            features: self.features,
            max_leaf: self.max_leaf,
            max_extended: self.max_extended,
            descriptors: self.descriptors,
            caches: self.caches,
            phys_bits: self.phys_bits,
            arch_capabilities: NOT_AFFECTED,
            hypervisor: None,
            cpus: 1,
            cores: 0,
            threads: 1,
            ignore_unknown_msrs: false,
            tsc_hz: 1_000_000_000,
        }
    }
}

impl Default for Model {
    /// `x86-64-v2` at 1 GHz, one processor, no hypervisor leaf.
    fn default() -> Model {
        PARTS[0].model()
    }
}

impl Model {
    /// Leaf 40000000 of KVM. The feature word is empty: Linux takes x2APIC and nothing else from it.
    pub const KVM: [u8; 12] = *b"KVMKVMKVM\0\0\0";
    /// Leaf 40000000 of bhyve.
    pub const BHYVE: [u8; 12] = *b"bhyve bhyve ";

    /// The model of a name.
    pub fn named(name: &str) -> Option<Model> {
        PARTS.iter().find(|part| part.name == name).map(Part::model)
    }

    /// The names of all models.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PARTS.iter().map(|part| part.name)
    }

    /// Replaces the features, and extends the leaves to those that show them.
    pub fn set_features(&mut self, features: Features) {
        self.features = features;
        let leaves = [
            (Features::of(&[Cpuid]), 1),
            (Features::of(&[Arat]), 6),
            (Features::of(&[Fsgsbase, TscAdjust, Smep, Erms, Smap, ArchCapabilities]), 7),
            (Features::of(&[X2apic]), 0xb),
            (Features::of(&[Xsave]), 0xd),
        ];
        for (_, leaf) in leaves.into_iter().filter(|(some, _)| some.meets(features)) {
            self.max_leaf = self.max_leaf.max(leaf);
        }
        if features.meets(Features::of(&[Syscall, Nx, Mmxext, Rdtscp, Prefetchw, NonstopTsc])) {
            self.max_extended = self.max_extended.max(0x8000_0008);
        }
    }

    /// Whether it has a feature.
    #[inline]
    pub fn has(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }

    /// In a few characters, the same for processors that software cannot tell apart.
    pub fn identity(&self) -> String {
        let (vendor, features) = (String::from_utf8_lossy(&self.vendor), self.features.bits());
        let hypervisor = self.hypervisor.as_ref().map_or_else(|| "none".into(), |h| String::from_utf8_lossy(h));
        format!("{}/{vendor}/{:x}/{features:x}/{}", self.name, self.signature, hypervisor.trim_end_matches(['\0', ' ']))
    }

    /// CPUID.1:EDX as firmware tables repeat it.
    pub fn feature_flags(&self) -> u32 {
        self.features.word(crate::feature::Word::Edx1)
    }

    /// The family, without the extended part.
    pub(crate) fn family(&self) -> u32 {
        self.signature >> 8 & 0xf
    }

    /// The model number, extended part included.
    pub(crate) fn number(&self) -> u32 {
        self.signature >> 4 & 0xf | self.signature >> 12 & 0xf0
    }

    pub(crate) fn is_amd(&self) -> bool {
        self.vendor == *AMD
    }

    /// Bits of CR0 that can be written: PE, MP, EM, TS, PG; from the 486 on NE, WP, AM, NW, CD.
    pub(crate) fn cr0_mask(&self) -> u64 {
        if self.has(I486) { 0xe005_002f } else { 0x8000_000f }
    }

    /// The bits of CR4 that can be set. Without any there is no CR4.
    pub(crate) fn cr4_mask(&self) -> u64 {
        const BITS: [(Feature, u64); 14] = [
            (Vme, 3),
            (Tsc, 1 << 2),
            (De, 1 << 3),
            (Pse, 1 << 4),
            (Pae, 1 << 5),
            (Mce, 1 << 6),
            (Pge, 1 << 7),
            (Fxsr, 1 << 9),
            (Sse, 1 << 10),
            (Fsgsbase, 1 << 16),
            (Xsave, 1 << 18),
            (Smep, 1 << 20),
            (Smap, 1 << 21),
            // RDPMC came with both.
            (Mmx, 1 << 8),
        ];
        let rdpmc = if self.has(Cmov) { 1 << 8 } else { 0 };
        BITS.iter().filter(|(feature, _)| self.has(*feature)).fold(rdpmc, |mask, (_, bits)| mask | bits)
    }

    /// The RFLAGS bits that can be changed: AC came with the 486, ID with CPUID, VIF and VIP with virtual-8086 mode
    /// extensions.
    pub(crate) fn flags_mask(&self) -> u64 {
        [(I486, AC), (Cpuid, ID), (Vme, VIF | VIP)]
            .into_iter()
            .filter(|(feature, _)| !self.has(*feature))
            .fold(u64::MAX, |mask, (_, bits)| mask & !bits)
    }

    /// Processors in a package. Without the means to tell of several there is one in each.
    pub(crate) fn siblings(&self) -> u32 {
        match (self.has(Ht), self.cores) {
            (false, _) => 1,
            (true, 0) => self.cpus.max(1),
            (true, cores) => cores.saturating_mul(self.threads).max(1),
        }
    }

    /// Processors in a core.
    pub(crate) fn threads(&self) -> u32 {
        self.threads.clamp(1, self.siblings())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_has_what_its_features_need() {
        for name in Model::names() {
            let m = Model::named(name).unwrap();
            assert_eq!(m.name, name);
            for f in m.features.iter() {
                let missing: Vec<&str> = m.features.missing_for(f).iter().map(Feature::name).collect();
                assert!(missing.is_empty(), "{name}: {} without {missing:?}", f.name());
            }
        }
        assert_eq!(Model::default(), Model::named("x86-64-v2").unwrap());
        assert_eq!(Model::named("pentium5"), None);
    }

    #[test]
    fn the_table_tells_the_generations_apart() {
        // What each has that the one before has not.
        let steps = [
            ("386", Fpu),
            ("486", I486),
            ("pentium", Cpuid),
            ("pentium-mmx", Mmx),
            ("pentium-pro", Cmov),
            ("pentium2", Sep),
            ("pentium3", Sse),
            ("pentium4", Sse2),
            ("core2", Lm),
            ("nehalem", Sse42),
            ("x86-64-v2", Xsave),
            ("max", Mmxext),
        ];
        for pair in steps.windows(2) {
            let (older, newer) = (Model::named(pair[0].0).unwrap(), Model::named(pair[1].0).unwrap());
            assert!(!older.has(pair[1].1) && newer.has(pair[1].1), "{pair:?}");
            if newer.name != "pentium-pro" {
                assert!(older.features.iter().all(|f| newer.has(f)), "{pair:?}");
            }
        }
        let [athlon, athlon64, opteron] = ["athlon", "athlon64", "opteron"].map(|n| Model::named(n).unwrap());
        assert!(!athlon.has(Lm) && athlon64.has(Sse3) && opteron.has(Lm) && !opteron.has(Sse3));
        assert!(athlon.is_amd() && athlon64.is_amd() && opteron.is_amd());
    }

    #[test]
    fn signatures_name_family_and_model() {
        for (name, family, number) in [
            ("386", 3, 0),
            ("486", 4, 3),
            ("pentium", 5, 2),
            ("pentium-mmx", 5, 4),
            ("pentium-pro", 6, 1),
            ("pentium2", 6, 5),
            ("pentium3", 6, 8),
            ("pentium4", 15, 3),
            ("core2", 6, 15),
            ("nehalem", 6, 0x1a),
            ("x86-64-v2", 6, 0x36),
            ("athlon", 6, 10),
            ("athlon64", 15, 0x2f),
            ("opteron", 15, 5),
        ] {
            let m = Model::named(name).unwrap();
            assert_eq!((m.family(), m.number()), (family, number), "{name}");
        }
    }

    #[test]
    fn control_registers_have_the_bits_of_their_time() {
        let mask = |name| Model::named(name).unwrap().cr4_mask();
        assert_eq!(mask("486"), 0);
        assert_eq!(mask("pentium"), 0x5f);
        assert_eq!(mask("pentium-pro"), 0x1ff);
        assert_eq!(mask("pentium2"), 0x3ff);
        assert_eq!(mask("opteron"), 0x7ff);
        assert_eq!(mask("x86-64-v2"), 0x35_07ff);
        assert_eq!(Model::named("386").unwrap().cr0_mask() & 1 << 16, 0, "no WP");
    }
}
