//! What 13, 14 and 15 have in common: nearly all.
//!
//! Fields and requests have the names of the kernel's headers, so that the two can be compared by name
//! (`examples/header.rs`).

use crate::layout::layouts;
use crate::request::requests;

/// Bytes of a VM's name, without the NUL.
pub const MAX_NAME: usize = 229;
/// Bytes of a segment's name, without the NUL.
pub const MAX_SEGMENT_NAME: usize = 15;
/// What `VM_STATS` holds at most.
pub const MAX_STATS: usize = 64;
/// Processors that the largest processor set has bits for (14 and later).
pub const MAX_CPUS: usize = 1024;

/// [`vm_memmap::flags`]: the memory is wired.
pub const VM_MEMMAP_F_WIRED: i32 = 1;
/// [`vm_memmap::flags`], as the kernel reports it: it is in the IOMMU too.
pub const VM_MEMMAP_F_IOMMU: i32 = 2;

/// [`vm_cpuset::which`].
pub const VM_ACTIVE_CPUS: i32 = 0;
/// [`vm_cpuset::which`].
pub const VM_SUSPENDED_CPUS: i32 = 1;
/// [`vm_cpuset::which`].
pub const VM_DEBUG_CPUS: i32 = 2;

layouts! {
    /// A processor, for requests that take nothing else.
    vm_activate_cpu(4) { 0 vcpuid: i32, }
    /// `VM_INJECT_NMI`.
    vm_nmi(4) { 0 cpuid: i32, }
    /// An integer: `VM_IOAPIC_PINCOUNT`, `VM_RESTART_INSTRUCTION` (a vCPU), `VM_RESTORE_TIME` (ignored).
    int(4) { 0 value: i32, }
    /// `VM_SUSPEND`.
    vm_suspend(4) { 0 how: i32, }
    /// Capabilities.
    vm_capability(16) { 0 cpuid: i32, 4 captype: i32, 8 capval: i32, 12 allcpus: i32, }
    /// A register.
    vm_register(16) { 0 cpuid: i32, 4 regnum: i32, 8 regval: u64, }
    /// The hidden part of a segment register: the limit in bytes, the access word as the VMX has it.
    seg_desc(16) { 0 base: u64, 8 limit: u32, 12 access: u32, }
    /// A segment register's hidden part.
    vm_seg_desc(24) { 0 cpuid: i32, 4 regnum: i32, 8 desc: seg_desc, }
    /// A range of guest-physical addresses backed by a segment.
    vm_memmap(40) {
        0 gpa: u64, 8 segid: i32, 12 pad: u32, 16 segoff: i64, 24 len: u64, 32 prot: i32, 36 flags: i32,
    }
    /// The exact range of a mapping.
    vm_munmap(16) { 0 gpa: u64, 8 len: u64, }
    /// Nested page table entries of an address.
    vm_gpa_pte(48) { 0 gpa: u64, 8 pte: [u64; 4], 40 ptenum: i32, 44 pad: u32, }
    /// How linear addresses are to be translated.
    vm_guest_paging(24) { 0 cr3: u64, 8 cpl: i32, 12 cpu_mode: i32, 16 paging_mode: i32, 20 pad: u32, }
    /// A translation.
    vm_gla2gpa(56) {
        0 vcpuid: i32, 4 prot: i32, 8 gla: u64, 16 paging: vm_guest_paging, 40 fault: i32, 44 pad: u32, 48 gpa: u64,
    }
    /// An exception.
    vm_exception(20) {
        0 cpuid: i32, 4 vector: i32, 8 error_code: u32, 12 error_code_valid: i32, 16 restart_instruction: i32,
    }
    /// What is being delivered, and what is pending.
    vm_intinfo(24) { 0 vcpuid: i32, 4 pad: u32, 8 info1: u64, 16 info2: u64, }
    /// A register of a device in the kernel: bits 0-2 of `access_width` are log2 of the bytes.
    vm_readwrite_kernemu_device(24) { 0 vcpuid: i32, 4 access_width: u32, 8 gpa: u64, 16 value: u64, }
    /// A message signalled interrupt: the data first.
    vm_lapic_msi(16) { 0 msg: u64, 8 addr: u64, }
    /// A vector, or an index into the local vector table.
    vm_lapic_irq(8) { 0 cpuid: i32, 4 vector: i32, }
    /// A pin of the I/O APIC.
    vm_ioapic_irq(4) { 0 irq: i32, }
    /// A line of the 8259 pair and a pin of the I/O APIC (-1: none).
    vm_isa_irq(8) { 0 atpic_irq: i32, 4 ioapic_irq: i32, }
    /// The trigger of a line.
    vm_isa_irq_trigger(8) { 0 atpic_irq: i32, 4 trigger: i32, }
    /// A PCI device that is passed through.
    vm_pptdev(12) { 0 bus: i32, 4 slot: i32, 8 func: i32, }
    /// A BAR of one.
    vm_pptdev_mmio(40) {
        0 bus: i32, 4 slot: i32, 8 func: i32, 12 pad: u32, 16 gpa: u64, 24 hpa: u64, 32 len: u64,
    }
    /// The MSI of one; `vcpu` is not used.
    vm_pptdev_msi(40) {
        0 vcpu: i32, 4 bus: i32, 8 slot: i32, 12 func: i32, 16 numvec: i32, 20 pad: u32, 24 msg: u64, 32 addr: u64,
    }
    /// An entry of the MSI-X table of one; `vcpu` is not used.
    vm_pptdev_msix(48) {
        0 vcpu: i32, 4 bus: i32, 8 slot: i32, 12 func: i32, 16 idx: i32, 20 pad: u32, 24 msg: u64,
        32 vector_control: u32, 36 pad1: u32, 40 addr: u64,
    }
    /// The text of a statistic.
    vm_stat_desc(132) { 0 index: i32, 4 desc: [u8; 128], }
    /// Whether the local APIC is in x2APIC mode.
    vm_x2apic(8) { 0 cpuid: i32, 4 state: i32, }
    /// The low half of the HPET's capability register.
    vm_hpet_cap(4) { 0 capabilities: u32, }
    /// What CPUID tells of the topology.
    vm_cpu_topology(8) { 0 sockets: u16, 2 cores: u16, 4 threads: u16, 6 maxcpus: u16, }
    /// A byte of the RTC's memory.
    vm_rtc_data(8) { 0 offset: i32, 4 value: u8, 5 pad: [u8; 3], }
    /// The RTC's time, in seconds since 1970.
    vm_rtc_time(8) { 0 secs: i64, }
    /// `struct timeval`.
    timeval(16) { 0 tv_sec: i64, 8 tv_usec: i64, }
}

layouts! {
    pointers:
    /// Several registers: `regnums` points to `i32`s, `regvals` to `u64`s.
    vm_register_set(24) { 0 cpuid: i32, 4 count: u32, 8 regnums: u64, 16 regvals: u64, }
    /// A set of processors; `cpus` points to `cpusetsize` bytes.
    vm_cpuset(16) { 0 which: i32, 4 cpusetsize: i32, 8 cpus: u64, }
}

requests! {
    REQUESTS:
    VM_SET_CAPABILITY: vm_capability = w 2;
    VM_GET_CAPABILITY: vm_capability = rw 3;
    VM_SUSPEND: vm_suspend = w 4;
    VM_REINIT: () = void 5;
    VM_GET_GPA_PMAP: vm_gpa_pte = rw 12;
    VM_GLA2GPA: vm_gla2gpa = rw 13;
    VM_MMAP_MEMSEG: vm_memmap = w 16;
    VM_MMAP_GETNEXT: vm_memmap = rw 17;
    VM_GLA2GPA_NOFAULT: vm_gla2gpa = rw 18;
    VM_MUNMAP_MEMSEG: vm_munmap = w 19;
    VM_SET_REGISTER: vm_register = w 20;
    VM_GET_REGISTER: vm_register = rw 21;
    VM_SET_SEGMENT_DESCRIPTOR: vm_seg_desc = w 22;
    VM_GET_SEGMENT_DESCRIPTOR: vm_seg_desc = rw 23;
    VM_SET_REGISTER_SET: vm_register_set = w 24;
    VM_GET_REGISTER_SET: vm_register_set = rw 25;
    VM_GET_KERNEMU_DEV: vm_readwrite_kernemu_device = rw 26;
    VM_SET_KERNEMU_DEV: vm_readwrite_kernemu_device = w 27;
    VM_GET_INTINFO: vm_intinfo = rw 28;
    VM_SET_INTINFO: vm_intinfo = w 29;
    VM_INJECT_EXCEPTION: vm_exception = w 30;
    VM_LAPIC_IRQ: vm_lapic_irq = w 31;
    VM_INJECT_NMI: vm_nmi = w 32;
    VM_IOAPIC_ASSERT_IRQ: vm_ioapic_irq = w 33;
    VM_IOAPIC_DEASSERT_IRQ: vm_ioapic_irq = w 34;
    VM_IOAPIC_PULSE_IRQ: vm_ioapic_irq = w 35;
    VM_LAPIC_MSI: vm_lapic_msi = w 36;
    VM_LAPIC_LOCAL_IRQ: vm_lapic_irq = w 37;
    VM_IOAPIC_PINCOUNT: int = r 38;
    /// The integer is the vCPU.
    VM_RESTART_INSTRUCTION: int = w 39;
    VM_BIND_PPTDEV: vm_pptdev = w 40;
    VM_UNBIND_PPTDEV: vm_pptdev = w 41;
    VM_MAP_PPTDEV_MMIO: vm_pptdev_mmio = w 42;
    VM_PPTDEV_MSI: vm_pptdev_msi = w 43;
    VM_PPTDEV_MSIX: vm_pptdev_msix = w 44;
    VM_PPTDEV_DISABLE_MSIX: vm_pptdev = w 45;
    VM_UNMAP_PPTDEV_MMIO: vm_pptdev_mmio = w 46;
    VM_STAT_DESC: vm_stat_desc = rw 51;
    VM_SET_X2APIC_STATE: vm_x2apic = w 60;
    VM_GET_X2APIC_STATE: vm_x2apic = rw 61;
    VM_GET_HPET_CAPABILITIES: vm_hpet_cap = r 62;
    VM_SET_TOPOLOGY: vm_cpu_topology = w 63;
    VM_GET_TOPOLOGY: vm_cpu_topology = r 64;
    VM_ISA_ASSERT_IRQ: vm_isa_irq = w 80;
    VM_ISA_DEASSERT_IRQ: vm_isa_irq = w 81;
    VM_ISA_PULSE_IRQ: vm_isa_irq = w 82;
    VM_ISA_SET_IRQ_TRIGGER: vm_isa_irq_trigger = w 83;
    VM_ACTIVATE_CPU: vm_activate_cpu = w 90;
    /// "W" although it has a result: that goes through the pointer.
    VM_GET_CPUS: vm_cpuset = w 91;
    VM_SUSPEND_CPU: vm_activate_cpu = w 92;
    VM_RESUME_CPU: vm_activate_cpu = w 93;
    VM_RTC_READ: vm_rtc_data = rw 100;
    VM_RTC_WRITE: vm_rtc_data = w 101;
    VM_RTC_SETTIME: vm_rtc_time = w 102;
    VM_RTC_GETTIME: vm_rtc_time = r 103;
    VM_RESTORE_TIME: int = rw 115;
}
