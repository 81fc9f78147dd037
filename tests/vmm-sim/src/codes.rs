//! The table of requests: number, lock and padding by kernel.

/// What a request wants of the vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    /// Nothing.
    None,
    /// The vCPU whose number comes first is idle.
    Vcpu,
    /// The same from 15 on; before that it may run.
    VcpuFrom15,
    /// All are idle.
    All,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Run13,
    Run14,
    SetCapability,
    GetCapability,
    Suspend,
    Reinit,
    GpaPmap,
    Gla2Gpa,
    AllocMemseg,
    GetMemseg,
    MmapMemseg,
    MmapGetnext,
    MunmapMemseg,
    SetRegister,
    GetRegister,
    SetSegment,
    GetSegment,
    SetRegisters,
    GetRegisters,
    GetKernemu,
    SetKernemu,
    GetIntinfo,
    SetIntinfo,
    InjectException,
    LapicIrq,
    InjectNmi,
    IoapicAssert,
    IoapicDeassert,
    IoapicPulse,
    LapicMsi,
    LapicLocalIrq,
    IoapicPincount,
    Restart,
    Passthrough,
    Stats,
    StatDesc,
    SetX2apic,
    GetX2apic,
    HpetCapabilities,
    SetTopology,
    GetTopology,
    IsaAssert,
    IsaDeassert,
    IsaPulse,
    IsaTrigger,
    Activate,
    GetCpus,
    SuspendCpu,
    ResumeCpu,
    RtcRead,
    RtcWrite,
    RtcSetTime,
    RtcGetTime,
}

/// A request.
pub(crate) struct Row {
    pub(crate) code: u32,
    pub(crate) name: &'static str,
    pub(crate) op: Op,
    pub(crate) lock: Lock,
    /// The ABIs that have it: 1 for 13, 2 for 14, 4 for 15.
    pub(crate) abis: u8,
    /// Bytes that must be 0: start and end.
    pub(crate) zero: &'static [(usize, usize)],
}

impl Row {
    pub(crate) fn size(&self) -> usize {
        size(self.code)
    }
}

/// The size in a request's code.
pub(crate) fn size(code: u32) -> usize {
    (code >> 16 & 0x1fff) as usize
}

/// Whether the argument is read.
pub(crate) fn copies_in(code: u32) -> bool {
    code & 0x8000_0000 != 0
}

/// Whether the argument is written.
pub(crate) fn copies_out(code: u32) -> bool {
    code & 0x4000_0000 != 0
}

const EVERY: u8 = 7;

macro_rules! rows {
    ($($code:literal $name:literal $op:ident $lock:ident $abis:tt [$($from:literal..$to:literal)*];)*) => {
        &[$(Row {
            code: $code,
            name: $name,
            op: Op::$op,
            lock: Lock::$lock,
            abis: $abis,
            zero: &[$(($from, $to)),*],
        }),*]
    };
}

/// All that a node of a VM takes.
pub(crate) static REQUESTS: &[Row] = rows! {
    0xc090_7601 "VM_RUN" Run13 None 1 [4..8];
    0x8020_7601 "VM_RUN" Run14 None 6 [4..8];
    0x8010_7602 "VM_SET_CAPABILITY" SetCapability Vcpu EVERY [];
    0xc010_7603 "VM_GET_CAPABILITY" GetCapability Vcpu EVERY [];
    0x8004_7604 "VM_SUSPEND" Suspend None EVERY [];
    0x2000_7605 "VM_REINIT" Reinit All EVERY [];
    0xc030_760c "VM_GET_GPA_PMAP" GpaPmap None EVERY [44..48];
    0xc038_760d "VM_GLA2GPA" Gla2Gpa Vcpu EVERY [36..40 44..48];
    0x8020_760e "VM_ALLOC_MEMSEG" AllocMemseg All 3 [4..8];
    0x8038_760e "VM_ALLOC_MEMSEG" AllocMemseg All 4 [4..8 52..56];
    0xc020_760f "VM_GET_MEMSEG" GetMemseg None 3 [4..8];
    0xc038_760f "VM_GET_MEMSEG" GetMemseg None 4 [4..8 52..56];
    0x8028_7610 "VM_MMAP_MEMSEG" MmapMemseg All EVERY [12..16];
    0xc028_7611 "VM_MMAP_GETNEXT" MmapGetnext None EVERY [12..16];
    0xc038_7612 "VM_GLA2GPA_NOFAULT" Gla2Gpa Vcpu EVERY [36..40 44..48];
    0x8010_7613 "VM_MUNMAP_MEMSEG" MunmapMemseg All EVERY [];
    0x8010_7614 "VM_SET_REGISTER" SetRegister Vcpu EVERY [];
    0xc010_7615 "VM_GET_REGISTER" GetRegister Vcpu EVERY [];
    0x8018_7616 "VM_SET_SEGMENT_DESCRIPTOR" SetSegment Vcpu EVERY [];
    0xc018_7617 "VM_GET_SEGMENT_DESCRIPTOR" GetSegment Vcpu EVERY [];
    0x8018_7618 "VM_SET_REGISTER_SET" SetRegisters Vcpu EVERY [];
    0xc018_7619 "VM_GET_REGISTER_SET" GetRegisters Vcpu EVERY [];
    0xc018_761a "VM_GET_KERNEMU_DEV" GetKernemu Vcpu EVERY [5..8];
    0x8018_761b "VM_SET_KERNEMU_DEV" SetKernemu Vcpu EVERY [5..8];
    0xc018_761c "VM_GET_INTINFO" GetIntinfo Vcpu EVERY [4..8];
    0x8018_761d "VM_SET_INTINFO" SetIntinfo Vcpu EVERY [4..8];
    0x8014_761e "VM_INJECT_EXCEPTION" InjectException Vcpu EVERY [];
    0x8008_761f "VM_LAPIC_IRQ" LapicIrq VcpuFrom15 EVERY [];
    0x8004_7620 "VM_INJECT_NMI" InjectNmi VcpuFrom15 EVERY [];
    0x8004_7621 "VM_IOAPIC_ASSERT_IRQ" IoapicAssert None EVERY [];
    0x8004_7622 "VM_IOAPIC_DEASSERT_IRQ" IoapicDeassert None EVERY [];
    0x8004_7623 "VM_IOAPIC_PULSE_IRQ" IoapicPulse None EVERY [];
    0x8010_7624 "VM_LAPIC_MSI" LapicMsi None EVERY [];
    0x8008_7625 "VM_LAPIC_LOCAL_IRQ" LapicLocalIrq None EVERY [];
    0x4004_7626 "VM_IOAPIC_PINCOUNT" IoapicPincount None EVERY [];
    0x8004_7627 "VM_RESTART_INSTRUCTION" Restart Vcpu EVERY [];
    0x800c_7628 "VM_BIND_PPTDEV" Passthrough All EVERY [];
    0x800c_7629 "VM_UNBIND_PPTDEV" Passthrough All EVERY [];
    0x8028_762a "VM_MAP_PPTDEV_MMIO" Passthrough All EVERY [12..16];
    0x8028_762b "VM_PPTDEV_MSI" Passthrough None EVERY [20..24];
    0x8030_762c "VM_PPTDEV_MSIX" Passthrough None EVERY [20..24 36..40];
    0x800c_762d "VM_PPTDEV_DISABLE_MSIX" Passthrough None EVERY [];
    0x8028_762e "VM_UNMAP_PPTDEV_MMIO" Passthrough All EVERY [12..16];
    0xc218_7632 "VM_STATS" Stats None 1 [];
    0xc220_7632 "VM_STATS" Stats VcpuFrom15 6 [12..16];
    0xc084_7633 "VM_STAT_DESC" StatDesc None EVERY [];
    0x8008_763c "VM_SET_X2APIC_STATE" SetX2apic Vcpu EVERY [];
    0xc008_763d "VM_GET_X2APIC_STATE" GetX2apic VcpuFrom15 EVERY [];
    0x4004_763e "VM_GET_HPET_CAPABILITIES" HpetCapabilities None EVERY [];
    0x8008_763f "VM_SET_TOPOLOGY" SetTopology None EVERY [];
    0x4008_7640 "VM_GET_TOPOLOGY" GetTopology None EVERY [];
    0x8008_7650 "VM_ISA_ASSERT_IRQ" IsaAssert None EVERY [];
    0x8008_7651 "VM_ISA_DEASSERT_IRQ" IsaDeassert None EVERY [];
    0x8008_7652 "VM_ISA_PULSE_IRQ" IsaPulse None EVERY [];
    0x8008_7653 "VM_ISA_SET_IRQ_TRIGGER" IsaTrigger None EVERY [];
    0x8004_765a "VM_ACTIVATE_CPU" Activate Vcpu EVERY [];
    0x8010_765b "VM_GET_CPUS" GetCpus None EVERY [];
    0x8004_765c "VM_SUSPEND_CPU" SuspendCpu None EVERY [];
    0x8004_765d "VM_RESUME_CPU" ResumeCpu None EVERY [];
    0xc008_7664 "VM_RTC_READ" RtcRead None EVERY [4..8];
    0x8008_7665 "VM_RTC_WRITE" RtcWrite None EVERY [5..8];
    0x8008_7666 "VM_RTC_SETTIME" RtcSetTime None EVERY [];
    0x4008_7667 "VM_RTC_GETTIME" RtcGetTime None EVERY [];
};

/// Requests of kernels with snapshots, which none of these is.
const SNAPSHOTS: [u32; 3] = [0xc048_7671, 0xc040_7671, 0xc004_7673];

/// Whether some kernel knows the code, so that a probe may try it.
pub(crate) fn known_elsewhere(code: u32) -> bool {
    REQUESTS.iter().any(|r| r.code == code) || SNAPSHOTS.contains(&code)
}

pub(crate) const VM_CREATE: u32 = 0xc128_5600;
pub(crate) const VM_DESTROY: u32 = 0xc128_5601;
