//! vm_exit as bytes.

/// Bytes of a vm_exit.
pub(crate) const SIZE: usize = 136;
/// Where its union starts.
pub(crate) const UNION: usize = 16;
/// What is in bytes that the kernel does not set: whatever was on its stack.
const STALE: u8 = 0xa5;

pub(crate) const INOUT: i32 = 0;
pub(crate) const VMX: i32 = 1;
pub(crate) const BOGUS: i32 = 2;
pub(crate) const RDMSR: i32 = 3;
pub(crate) const WRMSR: i32 = 4;
pub(crate) const MTRAP: i32 = 6;
pub(crate) const INST_EMUL: i32 = 9;
pub(crate) const SPINUP_AP: i32 = 10;
pub(crate) const SUSPENDED: i32 = 14;
pub(crate) const INOUT_STR: i32 = 15;
pub(crate) const TASK_SWITCH: i32 = 16;
pub(crate) const REQIDLE: i32 = 20;
pub(crate) const DEBUG: i32 = 21;
pub(crate) const BPT: i32 = 23;
pub(crate) const IPI: i32 = 24;

/// The names of exit codes, for counts.
pub(crate) fn name(code: i32) -> &'static str {
    match code {
        INOUT => "INOUT",
        VMX => "VMX",
        BOGUS => "BOGUS",
        RDMSR => "RDMSR",
        WRMSR => "WRMSR",
        MTRAP => "MTRAP",
        INST_EMUL => "INST_EMUL",
        SPINUP_AP => "SPINUP_AP",
        SUSPENDED => "SUSPENDED",
        INOUT_STR => "INOUT_STR",
        TASK_SWITCH => "TASK_SWITCH",
        REQIDLE => "REQIDLE",
        DEBUG => "DEBUG",
        BPT => "BPT",
        IPI => "IPI",
        _ => "another",
    }
}

/// An exit on its way to user space.
pub(crate) struct Image {
    pub(crate) bytes: [u8; SIZE],
    /// The set of processors of an IPI exit.
    pub(crate) cpus: u64,
}

impl Image {
    pub(crate) fn new(code: i32, rip: u64, len: u32) -> Image {
        let mut image = Image { bytes: [STALE; SIZE], cpus: 0 };
        image.bytes[..4].copy_from_slice(&code.to_le_bytes());
        image.bytes[4..8].copy_from_slice(&len.to_le_bytes());
        image.bytes[8..16].copy_from_slice(&rip.to_le_bytes());
        image
    }

    pub(crate) fn code(&self) -> i32 {
        i32::from_le_bytes([self.bytes[0], self.bytes[1], self.bytes[2], self.bytes[3]])
    }

    /// Puts bytes at an offset of the union.
    pub(crate) fn with(mut self, at: usize, bytes: &[u8]) -> Image {
        self.bytes[UNION + at..UNION + at + bytes.len()].copy_from_slice(bytes);
        self
    }
}
