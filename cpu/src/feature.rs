//! What processors may or may not have: names, places in CPUID, and what needs what.
//!
//! Names are those of Linux's /proc/cpuinfo, which every user can look up; SSE3 goes by `sse3` beside `pni`. Three have
//! no bit: `i486` is what the 486 added to the 386, `cpuid` the instruction that shows all others, and `nopl` the
//! multi-byte NOPs of the P6 and the K7.
//!
//! A feature is more than its bit. Without it the instructions raise #UD ([`crate::isa`]), its bits of CR0, CR4, EFER
//! and RFLAGS cannot be set, and its MSRs are not there. `ss`, `erms`, `arat`, `nonstop_tsc` and `ht` are promises
//! only; `ht` shows when there are several processors in the package.

/// Where CPUID shows a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Nowhere.
    None,
    /// Leaf 1.
    Edx1,
    Ecx1,
    /// Leaf 6.
    Eax6,
    /// Leaf 7.
    Ebx7,
    Edx7,
    /// Leaf 80000001.
    EdxExt,
    EcxExt,
    /// Leaf 80000007.
    EdxPower,
}

impl Word {
    /// The leaf, and its register: EAX, EBX, ECX, EDX.
    const fn place(self) -> Option<(u32, usize)> {
        match self {
            Word::None => None,
            Word::Edx1 => Some((1, 3)),
            Word::Ecx1 => Some((1, 2)),
            Word::Eax6 => Some((6, 0)),
            Word::Ebx7 => Some((7, 1)),
            Word::Edx7 => Some((7, 3)),
            Word::EdxExt => Some((0x8000_0001, 3)),
            Word::EcxExt => Some((0x8000_0001, 2)),
            Word::EdxPower => Some((0x8000_0007, 3)),
        }
    }
}

macro_rules! features {
    ($($feature:ident $name:literal $word:ident $bit:literal [$($needs:ident)*])*) => {
        /// A feature of a processor.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "the names are the documentation")]
        pub enum Feature { $($feature),* }

        impl Feature {
            /// All that there are.
            pub const ALL: &[Feature] = &[$(Feature::$feature),*];

            /// What it is called.
            pub const fn name(self) -> &'static str {
                match self { $(Feature::$feature => $name),* }
            }

            /// Where CPUID shows it.
            pub(crate) const fn place(self) -> (Word, u32) {
                match self { $(Feature::$feature => (Word::$word, 1 << $bit)),* }
            }

            /// What it cannot be without, one step deep.
            pub const fn needs(self) -> Features {
                match self { $(Feature::$feature => Features::of(&[$(Feature::$needs),*])),* }
            }
        }
    };
}

features! {
    I486 "i486" None 0 []
    Cpuid "cpuid" None 0 [I486]
    Nopl "nopl" None 0 []
    Fpu "fpu" Edx1 0 []
    Vme "vme" Edx1 1 []
    De "de" Edx1 2 []
    Pse "pse" Edx1 3 []
    Tsc "tsc" Edx1 4 []
    Msr "msr" Edx1 5 []
    Pae "pae" Edx1 6 [Cx8]
    Mce "mce" Edx1 7 [Msr]
    Cx8 "cx8" Edx1 8 []
    Apic "apic" Edx1 9 []
    Sep "sep" Edx1 11 [Msr]
    Mtrr "mtrr" Edx1 12 [Msr]
    Pge "pge" Edx1 13 []
    Mca "mca" Edx1 14 [Mce]
    Cmov "cmov" Edx1 15 []
    Pat "pat" Edx1 16 [Mtrr]
    Pse36 "pse36" Edx1 17 [Pse]
    Clflush "clflush" Edx1 19 []
    Mmx "mmx" Edx1 23 [Fpu]
    Fxsr "fxsr" Edx1 24 [Fpu]
    Sse "sse" Edx1 25 [Fxsr Mmx]
    Sse2 "sse2" Edx1 26 [Sse]
    Ss "ss" Edx1 27 []
    Ht "ht" Edx1 28 [Apic]
    Sse3 "pni" Ecx1 0 [Sse2]
    Ssse3 "ssse3" Ecx1 9 [Sse3]
    Cx16 "cx16" Ecx1 13 [Lm]
    Sse41 "sse4_1" Ecx1 19 [Ssse3]
    Sse42 "sse4_2" Ecx1 20 [Sse41]
    X2apic "x2apic" Ecx1 21 [Apic Msr]
    Popcnt "popcnt" Ecx1 23 []
    TscDeadline "tsc_deadline_timer" Ecx1 24 [Apic Tsc Msr]
    Xsave "xsave" Ecx1 26 [Sse2]
    Arat "arat" Eax6 2 [Apic]
    Fsgsbase "fsgsbase" Ebx7 0 [Lm]
    TscAdjust "tsc_adjust" Ebx7 1 [Tsc Msr]
    Smep "smep" Ebx7 7 []
    Erms "erms" Ebx7 9 []
    Smap "smap" Ebx7 20 []
    ArchCapabilities "arch_capabilities" Edx7 29 [Msr]
    Syscall "syscall" EdxExt 11 [Msr]
    Nx "nx" EdxExt 20 [Pae Msr]
    Mmxext "mmxext" EdxExt 22 [Mmx]
    Pdpe1gb "pdpe1gb" EdxExt 26 [Lm]
    Rdtscp "rdtscp" EdxExt 27 [Tsc Msr]
    Lm "lm" EdxExt 29 [Syscall Pae Cmov Sse2]
    LahfLm "lahf_lm" EcxExt 0 [Lm]
    Prefetchw "3dnowprefetch" EcxExt 8 []
    NonstopTsc "nonstop_tsc" EdxPower 8 [Tsc]
}

const _: () = assert!(Feature::ALL.len() <= 64);

/// Features that other processors have, by name.
const ELSEWHERE: &[&str] = &[
    "3dnow",
    "3dnowext",
    "abm",
    "acpi",
    "adx",
    "aes",
    "amx_tile",
    "avx",
    "avx2",
    "avx512f",
    "bmi1",
    "bmi2",
    "cet",
    "clflushopt",
    "clwb",
    "dts",
    "est",
    "f16c",
    "fma",
    "fma4",
    "fxsr_opt",
    "gfni",
    "hypervisor",
    "invpcid",
    "la57",
    "monitor",
    "movbe",
    "mpx",
    "ospke",
    "osxsave",
    "pbe",
    "pcid",
    "pclmulqdq",
    "pdcm",
    "pku",
    "pn",
    "rdpid",
    "rdrand",
    "rdseed",
    "sha_ni",
    "sse4a",
    "svm",
    "tbm",
    "tm",
    "tm2",
    "umip",
    "vaes",
    "vmx",
    "vpclmulqdq",
    "waitpkg",
    "xop",
    "xsavec",
    "xsaveopt",
    "xsaves",
    "xtpr",
];

impl Feature {
    /// The feature of a name.
    pub fn named(name: &str) -> Option<Feature> {
        let name = if name == "sse3" { "pni" } else { name };
        Feature::ALL.iter().copied().find(|f| f.name() == name)
    }

    /// Every name that [`Feature::named`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Feature::ALL.iter().map(|f| f.name()).chain(["sse3"])
    }

    /// Names of features that exist, but not here.
    pub fn names_elsewhere() -> &'static [&'static str] {
        ELSEWHERE
    }
}

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    /// None.
    pub const NONE: Features = Features(0);
    /// Every one that there is.
    pub const ALL: Features = Features::of(Feature::ALL);

    /// These.
    pub const fn of(list: &[Feature]) -> Features {
        Features::NONE.with(list)
    }

    /// These and the ones that are there.
    #[must_use]
    pub const fn with(mut self, list: &[Feature]) -> Features {
        let mut n = 0;
        while n < list.len() {
            self.0 |= 1 << list[n] as u8;
            n += 1;
        }
        self
    }

    /// All but these.
    #[must_use]
    pub const fn without(self, list: &[Feature]) -> Features {
        Features(self.0 & !Features::of(list).0)
    }

    /// All but one and everything that needs it.
    #[must_use]
    pub fn bereft_of(self, feature: Feature) -> Features {
        let mut gone = Features::of(&[feature]);
        loop {
            let more: Vec<Feature> = self.iter().filter(|f| f.needs().meets(gone)).collect();
            let next = gone.with(&more);
            if next == gone {
                return Features(self.0 & !gone.0);
            }
            gone = next;
        }
    }

    /// Whether one is there.
    #[inline(always)]
    pub const fn has(self, feature: Feature) -> bool {
        self.0 >> feature as u8 & 1 != 0
    }

    /// Whether at least one of the others is there.
    pub const fn meets(self, others: Features) -> bool {
        self.0 & others.0 != 0
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What one needs and these do not have, however deep.
    pub fn missing_for(self, feature: Feature) -> Features {
        let mut needed = feature.needs();
        loop {
            let next = needed.iter().fold(needed, |all, f| Features(all.0 | f.needs().0));
            if next == needed {
                return Features(needed.0 & !self.0);
            }
            needed = next;
        }
    }

    /// One after the other.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.iter().copied().filter(move |f| self.has(*f))
    }

    /// The bits of a CPUID register.
    pub(crate) fn word(self, word: Word) -> u32 {
        self.iter().map(Feature::place).filter(|(w, _)| *w == word).fold(0, |bits, (_, bit)| bits | bit)
    }

    /// Those that a processor shows: `register` gives a leaf's EAX, EBX, ECX or EDX by its place. Those without a bit
    /// are among them.
    pub fn shown(register: impl Fn(u32, usize) -> u32) -> Features {
        let there = |f: &Feature| {
            let (word, bit) = f.place();
            word.place().is_none_or(|(leaf, n)| register(leaf, n) & bit != 0)
        };
        Feature::ALL.iter().copied().filter(there).fold(Features::NONE, |all, f| all.with(&[f]))
    }

    /// As one number, the same for equal sets.
    pub fn bits(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_feature_has_a_name_and_a_bit_of_its_own() {
        let mut names: HashSet<&str> = HashSet::new();
        let mut places = Vec::new();
        for f in Feature::ALL {
            assert!(names.insert(f.name()), "{}", f.name());
            assert_eq!(Feature::named(f.name()), Some(*f));
            if f.place().0 != Word::None {
                assert!(!places.contains(&f.place()), "{}", f.name());
                places.push(f.place());
            }
        }
        assert!(ELSEWHERE.iter().all(|name| names.insert(name)), "known here after all");
        assert_eq!(Feature::named("sse3"), Some(Feature::Sse3));
        assert_eq!(Feature::named("avx"), None);
    }

    #[test]
    fn without_sse2_there_is_nothing_that_is_built_on_it() {
        let left = Features::ALL.bereft_of(Feature::Sse2);
        for f in [Feature::Sse2, Feature::Sse42, Feature::Xsave, Feature::Lm, Feature::Cx16, Feature::Fsgsbase] {
            assert!(!left.has(f), "{}", f.name());
        }
        for f in [Feature::Sse, Feature::Popcnt, Feature::Nx, Feature::Syscall] {
            assert!(left.has(f), "{}", f.name());
        }
    }

    #[test]
    fn what_is_missing_is_named_however_deep() {
        let sse = Features::of(&[Feature::Fpu, Feature::Fxsr, Feature::Mmx, Feature::Sse]);
        let missing: Vec<&str> = sse.missing_for(Feature::Sse41).iter().map(Feature::name).collect();
        assert_eq!(missing, ["sse2", "pni", "ssse3"]);
        assert!(Features::ALL.missing_for(Feature::Sse42).is_empty());
    }
}
