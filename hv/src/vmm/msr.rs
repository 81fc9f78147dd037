//! Model-specific registers that the kernel does not know: what bhyve(8) answers, by the maker of the host's processor.
//!
//! All others raise #GP, as bhyve does by default.

/// Reads of those that read as 0 on Intel: microcode, platform id, energy counters, turbo.
const INTEL_ZERO: [u32; 7] = [0x8b, 0x17, 0x611, 0x639, 0x641, 0x619, 0x140];
/// Writes that Intel's ignore: microcode load, and performance monitoring of the uncore.
const INTEL_IGNORED: [u32; 4] = [0x79, 0x8b, 0xd04, 0xc24];

/// What RDMSR gives; `None` is #GP.
pub(super) fn read(msr: u32, intel: bool) -> Option<u64> {
    if intel {
        return match msr {
            // IA32_FEATURE_CONTROL: locked.
            0x3a => Some(1),
            // MSR_RAPL_POWER_UNIT.
            0x606 => Some(0x000a_1003),
            _ => INTEL_ZERO.contains(&msr).then_some(0),
        };
    }
    match msr {
        // HWCR: MONITOR needs privilege, TSC at P0's rate; the unimplemented bit is read as one.
        0xc001_0015 => Some(0x0100_0010 | 1 << 9),
        0xc001_1029 => Some(1),
        // VM_CR: SVM is off.
        0xc001_0114 => Some(1 << 4),
        // Microcode; northbridge, load-store and instruction cache configuration; SMM base and mask.
        0x8b | 0xc001_001f | 0xc001_1020 | 0xc001_1021 | 0xc001_0112 | 0xc001_0113 => Some(0),
        // Performance events and counters, P-states.
        0xc001_0000..=0xc001_0007 | 0xc001_0061..=0xc001_0064 => Some(0),
        _ => None,
    }
}

/// Whether WRMSR is ignored; if not, #GP.
pub(super) fn write(msr: u32, intel: bool) -> bool {
    if intel {
        return INTEL_IGNORED.contains(&msr);
    }
    matches!(msr, 0xc001_0015 | 0xc001_001f | 0xc001_1020 | 0xc001_1021 | 0xc001_0000..=0xc001_0007 | 0xc001_0062)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_maker_has_its_own_and_all_else_faults() {
        assert_eq!(read(0x606, true), Some(0x000a_1003));
        assert_eq!((read(0x606, false), read(0xc001_0015, true), read(0, true)), (None, None, None));
        assert_eq!(read(0xc001_0015, false), Some(0x0100_0210));
        assert!(write(0x79, true) && !write(0x79, false) && write(0xc001_0004, false) && !write(0x10, false));
    }
}
