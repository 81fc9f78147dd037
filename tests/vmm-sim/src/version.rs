//! What differs between the kernels that can be simulated.

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// FreeBSD 13.1: no IPI exits, at most 16 vCPUs.
    V13_1,
    /// FreeBSD 13.2.
    V13,
    /// FreeBSD 14.1.
    V14,
    /// FreeBSD 15.0.
    V15,
}

impl Version {
    /// All of them.
    pub const ALL: [Version; 4] = [Version::V13_1, Version::V13, Version::V14, Version::V15];

    /// By the name that `BHYVE_RS_SIM` takes.
    pub fn named(name: &str) -> Option<Version> {
        Version::ALL.into_iter().find(|v| v.name() == name)
    }

    /// `13.1`, `13`, `14` or `15`.
    pub fn name(self) -> &'static str {
        match self {
            Version::V13_1 => "13.1",
            Version::V13 => "13",
            Version::V14 => "14",
            Version::V15 => "15",
        }
    }

    pub(crate) fn osreldate(self) -> i64 {
        match self {
            Version::V13_1 => 1_301_000,
            Version::V13 => 1_302_001,
            Version::V14 => 1_401_000,
            Version::V15 => 1_500_068,
        }
    }

    /// The bit that stands for its ABI in the table of requests.
    pub(crate) fn abi(self) -> u8 {
        match self {
            Version::V13_1 | Version::V13 => 1,
            Version::V14 => 2,
            Version::V15 => 4,
        }
    }

    /// The first register number that there is not.
    pub(crate) fn registers(self) -> i32 {
        if self >= Version::V14 { 49 } else { 45 }
    }

    /// The first capability that there is not.
    pub(crate) fn capabilities(self) -> i32 {
        match self {
            Version::V13_1 => 8,
            Version::V13 => 9,
            _ => 11,
        }
    }

    pub(crate) fn segments(self) -> usize {
        if self == Version::V15 { 11 } else { 4 }
    }

    pub(crate) fn mappings(self) -> usize {
        if self == Version::V15 { 22 } else { 8 }
    }

    /// The first segment that is device memory.
    pub(crate) fn first_device_segment(self) -> i32 {
        if self == Version::V15 { 8 } else { 1 }
    }

    /// Bytes of a set of processors in the kernel.
    pub(crate) fn cpuset(self) -> usize {
        if self >= Version::V14 { 128 } else { 32 }
    }

    /// VM_LAPIC_IRQ, VM_INJECT_NMI and their like want an idle vCPU.
    pub(crate) fn id_requests_lock(self) -> bool {
        self == Version::V15
    }

    /// Highest reason of VM_SUSPEND.
    pub(crate) fn last_suspend(self) -> u32 {
        if self == Version::V15 { 5 } else { 4 }
    }

    pub(crate) fn max_cpus(self) -> i32 {
        16
    }
}
