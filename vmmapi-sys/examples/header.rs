//! Prints a C program of static assertions: that FreeBSD's `machine/vmm.h` and `vmm_dev.h`, of 15, say what this crate
//! does. A C compiler for FreeBSD with those headers then tells whether it is so.

use std::fmt::Write as _;
use std::mem::{offset_of, size_of};

use vmmapi_sys::exit::{self, code};
use vmmapi_sys::ids::{self, CpuMode, PagingMode};
use vmmapi_sys::{Cap, Part, Reg, Suspend, Version, common, v14, v15};

struct Assertions(String);

impl Assertions {
    fn equal(&mut self, c: &str, value: i128) {
        // A literal beyond the signed ones is not warned of as such.
        let suffix = if value > i64::MAX.into() { "ULL" } else { "LL" };
        writeln!(self.0, "_Static_assert(({c}) == {value}{suffix}, \"{c} is not {value}\");").expect("a string grows");
    }
}

/// A structure of the same name and fields on both sides.
macro_rules! same {
    ($to:ident, $module:ident: $($name:ident { $($field:ident)* })*) => {$(
        $to.equal(concat!("sizeof(struct ", stringify!($name), ")"), size_of::<$module::$name>() as i128);
        $($to.equal(
            concat!("offsetof(struct ", stringify!($name), ", ", stringify!($field), ")"),
            offset_of!($module::$name, $field) as i128,
        );)*
    )*};
}

/// A member of the exit's union.
macro_rules! union {
    ($to:ident: $($member:ident is $name:ident { $($field:ident)* })*) => {$(
        $($to.equal(
            concat!("offsetof(struct vm_exit, u.", stringify!($member), ".", stringify!($field), ")"),
            (size_of::<exit::head>() + offset_of!(exit::$name, $field)) as i128,
        );)*
    )*};
}

fn main() {
    let mut to = Assertions(String::new());
    same! { to, common:
        vm_activate_cpu { vcpuid }
        vm_nmi { cpuid }
        vm_suspend { how }
        vm_capability { cpuid captype capval allcpus }
        vm_register { cpuid regnum regval }
        seg_desc { base limit access }
        vm_seg_desc { cpuid regnum desc }
        vm_register_set { cpuid count regnums regvals }
        vm_memmap { gpa segid segoff len prot flags }
        vm_munmap { gpa len }
        vm_gpa_pte { gpa pte ptenum }
        vm_guest_paging { cr3 cpl cpu_mode paging_mode }
        vm_gla2gpa { vcpuid prot gla paging fault gpa }
        vm_exception { cpuid vector error_code error_code_valid restart_instruction }
        vm_intinfo { vcpuid info1 info2 }
        vm_readwrite_kernemu_device { vcpuid gpa value }
        vm_lapic_msi { msg addr }
        vm_lapic_irq { cpuid vector }
        vm_ioapic_irq { irq }
        vm_isa_irq { atpic_irq ioapic_irq }
        vm_isa_irq_trigger { atpic_irq trigger }
        vm_pptdev { bus slot func }
        vm_pptdev_mmio { bus slot func gpa hpa len }
        vm_pptdev_msi { vcpu bus slot func numvec msg addr }
        vm_pptdev_msix { vcpu bus slot func idx msg vector_control addr }
        vm_stat_desc { index desc }
        vm_x2apic { cpuid state }
        vm_hpet_cap { capabilities }
        vm_cpu_topology { sockets cores threads maxcpus }
        vm_cpuset { which cpusetsize cpus }
        vm_rtc_data { offset value }
        vm_rtc_time { secs }
        timeval { tv_sec tv_usec }
    }
    same! { to, v14:
        vm_run { cpuid cpuset cpusetsize vm_exit }
        vm_stats { cpuid index num_entries tv statbuf }
        vm_snapshot_buffer { buf_start buf_size buf buf_rem }
        vm_snapshot_meta { dev_data dev_name dev_req buffer op }
    }
    same! { to, v15: vm_memseg { segid len name ds_mask ds_mask_size ds_policy } }
    same! { to, exit:
        vm_inout { port eax }
        vie { inst num_valid num_processed decoded }
        vm_task_switch { tsssel ext errcode errcode_valid reason paging }
    }
    to.equal("sizeof(struct vm_exit)", exit::EXIT_SIZE as i128);
    union! { to:
        inout is vm_inout { port eax }
        inout_str is vm_inout_str { inout paging rflags cr0 index count addrsize seg_name seg_desc }
        paging is paging { gpa fault_type }
        inst_emul is inst_emul { gpa gla cs_base cs_d paging vie }
        vmx is vmx { status exit_reason exit_qualification inst_type inst_error }
        svm is svm { exitcode exitinfo1 exitinfo2 }
        bpt is bpt { inst_length }
        dbg is dbg { trace_trap pushf_intercept tf_shadow_val paging }
        msr is msr { code wval }
        spinup_ap is spinup_ap { vcpu rip }
        hlt is hlt { rflags intr_status }
        ioapic_eoi is ioapic_eoi { vector }
        suspended is suspended { how }
        ipi is ipi { mode vector }
        task_switch is vm_task_switch { tsssel paging }
    }
    for (name, code) in Version::V15.abi().requests() {
        to.equal(name, code.into());
    }
    for (code, name) in code::ALL {
        to.equal(name, (*code).into());
    }
    let ids = Reg::ALL.iter().map(|(id, name)| (*id as i32, *name));
    let ids = ids.chain(Cap::ALL.iter().map(|(id, name)| (*id as i32, *name)));
    let ids = ids.chain(Suspend::ALL.iter().map(|(id, name)| (*id as i32, *name)));
    let ids = ids.chain(CpuMode::ALL.iter().map(|(id, name)| (*id as i32, *name)));
    let ids = ids.chain(PagingMode::ALL.iter().map(|(id, name)| (*id as i32, *name)));
    let ids = ids.chain(Part::ALL.iter().map(|(id, name)| (*id as i32, *name)));
    for (id, name) in ids {
        to.equal(name, id.into());
    }
    for (name, value) in [
        ("VM_MAX_NAMELEN", common::MAX_NAME as i128),
        ("VM_MAX_SUFFIXLEN", common::MAX_SEGMENT_NAME as i128),
        ("MAX_VM_STATS", common::MAX_STATS as i128),
        ("CPU_MAXSIZE", common::MAX_CPUS as i128),
        ("sizeof(cpuset_t)", Version::V15.abi().cpuset_bytes as i128),
        ("VM_MEMMAP_F_WIRED", common::VM_MEMMAP_F_WIRED.into()),
        ("VM_MEMMAP_F_IOMMU", common::VM_MEMMAP_F_IOMMU.into()),
        ("VM_ACTIVE_CPUS", common::VM_ACTIVE_CPUS.into()),
        ("VM_SUSPENDED_CPUS", common::VM_SUSPENDED_CPUS.into()),
        ("VM_DEBUG_CPUS", common::VM_DEBUG_CPUS.into()),
        ("VM_INTINFO_VALID", ids::VM_INTINFO_VALID.into()),
        ("VM_INTINFO_DEL_ERRCODE", ids::VM_INTINFO_DEL_ERRCODE.into()),
        ("VM_INTINFO_HWINTR", ids::VM_INTINFO_HWINTR.into()),
        ("VM_INTINFO_NMI", ids::VM_INTINFO_NMI.into()),
        ("VM_INTINFO_HWEXCEPTION", ids::VM_INTINFO_HWEXCEPTION.into()),
        ("VM_INTINFO_SWINTR", ids::VM_INTINFO_SWINTR.into()),
        ("SEG_DESC_UNUSABLE(0x10000)", (ids::SEGMENT_UNUSABLE == 0x10000).into()),
        // The policy that no mask goes with.
        ("DOMAINSET_POLICY_INVALID", 0),
        // What the calls beside the requests are declared as here.
        ("__builtin_types_compatible_p(__typeof__(modfind), int(const char *))", 1),
        ("__builtin_types_compatible_p(__typeof__(kldload), int(const char *))", 1),
    ] {
        to.equal(name, value);
    }
    println!("#include <sys/param.h>\n#include <sys/cpuset.h>\n#include <sys/domainset.h>\n#include <sys/ioccom.h>");
    println!(
        "#include <sys/linker.h>\n#include <sys/module.h>\n#include <sys/time.h>\n#include <stddef.h>\n#include <machine/vmm.h>"
    );
    println!("#include <machine/vmm_dev.h>\n\n{}", to.0);
}
