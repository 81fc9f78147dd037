//! Why `VM_RUN` came back: `struct vm_exit`, the same 136 bytes in 13, 14 and 15 but for the destinations of an IPI.

use crate::common::{seg_desc, vm_guest_paging};
use crate::cpuset::CpuSet;
use crate::ids::Reg;
use crate::layout::{Plain, layouts};
use crate::v13;

/// Bytes of `struct vm_exit` in every kernel known.
pub const EXIT_SIZE: usize = 136;
/// Where the union starts in it.
const UNION: usize = 16;
/// [`inst_emul::gla`] when the kernel does not know it.
const GLA_UNKNOWN: u64 = 1 << 63;

layouts! {
    /// The head of `struct vm_exit`, which a union of 120 bytes follows.
    head(16) { 0 exitcode: i32, 4 inst_length: i32, 8 rip: u64, }
    /// Bits 0-2 of `flags` are the bytes, 3 in, 4 string, 5 rep.
    vm_inout(8) { 0 flags: u16, 2 port: u16, 4 eax: u32, }
    /// String I/O. 15 has the code segment's size and base after it, which nobody needs.
    vm_inout_str(88) {
        0 inout: vm_inout, 8 paging: vm_guest_paging, 32 rflags: u64, 40 cr0: u64, 48 index: u64, 56 count: u64,
        64 addrsize: i32, 68 seg_name: i32, 72 seg_desc: seg_desc,
    }
    /// A page that the nested tables lack.
    paging(16) { 0 gpa: u64, 8 fault_type: i32, 12 pad: u32, }
    /// The kernel's decoding of an instruction. Its numbers are its own and change, so all but the bytes is opaque.
    vie(64) {
        0 inst: [u8; 15], 15 num_valid: u8, 16 num_processed: u8, 17 opaque: [u8; 39], 56 decoded: u8,
        57 opaque1: [u8; 7],
    }
    /// An access that needs emulation.
    inst_emul(120) {
        0 gpa: u64, 8 gla: u64, 16 cs_base: u64, 24 cs_d: i32, 28 pad: u32, 32 paging: vm_guest_paging, 56 vie: vie,
    }
    /// An exit of VT-x that has no code of its own, or that failed.
    vmx(24) { 0 status: i32, 4 exit_reason: u32, 8 exit_qualification: u64, 16 inst_type: i32, 20 inst_error: i32, }
    /// One of SVM.
    svm(24) { 0 exitcode: u64, 8 exitinfo1: u64, 16 exitinfo2: u64, }
    /// A breakpoint.
    bpt(4) { 0 inst_length: i32, }
    /// A debug exception, from 14.1 or so on.
    dbg(40) { 0 trace_trap: i32, 4 pushf_intercept: i32, 8 tf_shadow_val: i32, 12 pad: u32, 16 paging: vm_guest_paging, }
    /// A model specific register.
    msr(16) { 0 code: u32, 4 pad: u32, 8 wval: u64, }
    /// A start-up IPI, where those are not exits of their own.
    spinup_ap(16) { 0 vcpu: i32, 4 pad: u32, 8 rip: u64, }
    /// HLT.
    hlt(16) { 0 rflags: u64, 8 intr_status: u64, }
    /// The end of a level-triggered interrupt.
    ioapic_eoi(4) { 0 vector: i32, }
    /// The machine is suspended.
    suspended(4) { 0 how: i32, }
    /// INIT and start-up IPIs since 14: the destinations are where `vm_run` pointed.
    ipi(8) { 0 mode: u32, 4 vector: u8, 5 pad: [u8; 3], }
    /// The same in 13.2: the destinations are here.
    ipi_13(40) { 0 mode: u32, 4 vector: u8, 5 pad: [u8; 3], 8 mask: [u8; v13::CPUSET_BYTES], }
    /// A task switch.
    vm_task_switch(48) {
        0 tsssel: u16, 2 pad: u16, 4 ext: i32, 8 errcode: u32, 12 errcode_valid: i32, 16 reason: i32, 20 pad1: u32,
        24 paging: vm_guest_paging,
    }
}

const _: () = assert!(UNION == size_of::<head>() && UNION + size_of::<inst_emul>() == EXIT_SIZE);

macro_rules! codes {
    ($($name:ident = $code:literal,)*) => {
        /// The exit codes; [`Exit`] tells what they are.
        pub mod code {
            $(#[doc = concat!("`VM_EXITCODE_", stringify!($name), "`.")] pub const $name: i32 = $code;)*

            /// All of them, by name.
            pub const ALL: &[(i32, &str)] = &[$(($name, concat!("VM_EXITCODE_", stringify!($name)))),*];
        }
    };
}

codes! {
    INOUT = 0,
    VMX = 1,
    BOGUS = 2,
    RDMSR = 3,
    WRMSR = 4,
    HLT = 5,
    MTRAP = 6,
    PAUSE = 7,
    PAGING = 8,
    INST_EMUL = 9,
    SPINUP_AP = 10,
    DEPRECATED1 = 11,
    RENDEZVOUS = 12,
    IOAPIC_EOI = 13,
    SUSPENDED = 14,
    INOUT_STR = 15,
    TASK_SWITCH = 16,
    MONITOR = 17,
    MWAIT = 18,
    SVM = 19,
    REQIDLE = 20,
    DEBUG = 21,
    VMINSN = 22,
    BPT = 23,
    IPI = 24,
    DB = 25,
}

/// Where the destinations of an IPI are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpiMask {
    /// In the exit (13.2).
    Exit,
    /// Where `vm_run::cpuset` pointed (14, 15).
    Buffer,
}

/// A port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inout {
    /// The port.
    pub port: u16,
    /// 1, 2 or 4.
    pub bytes: u8,
    /// IN, not OUT.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
    /// With a REP prefix.
    pub rep: bool,
    /// EAX before the instruction: what OUT writes.
    pub eax: u32,
}

/// INS or OUTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InoutStr {
    /// The port access.
    pub inout: Inout,
    /// How its linear addresses translate.
    pub paging: vm_guest_paging,
    /// RFLAGS.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// RSI or RDI, unmasked.
    pub index: u64,
    /// RCX with a REP prefix, else 1.
    pub count: u64,
    /// Bytes of an address: 2, 4 or 8.
    pub address_bytes: u8,
    /// The segment: ES for INS.
    pub segment: Reg,
    /// Its hidden part.
    pub desc: seg_desc,
}

/// An access to an address where nothing is mapped, to be executed by user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstEmul {
    /// The guest-physical address.
    pub gpa: u64,
    /// The linear one, where the kernel knows it.
    pub gla: Option<u64>,
    /// CS's base.
    pub cs_base: u64,
    /// CS.D.
    pub cs_d: bool,
    /// The mode, and how linear addresses translate.
    pub paging: vm_guest_paging,
    /// The instruction's bytes and what follows it.
    pub bytes: [u8; 15],
    /// How many of them are there.
    pub valid: u8,
    /// Whether the kernel decoded it. If not, RIP stays where it is.
    pub decoded: bool,
    /// The length that it found then.
    pub processed: u8,
}

/// Why a vCPU came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A port that the kernel has no device at.
    Inout(Inout),
    /// String I/O, at any port.
    InoutStr(InoutStr),
    /// An access that nothing is mapped for.
    InstEmul(InstEmul),
    /// RDMSR of a register that the kernel does not know.
    ReadMsr {
        /// ECX.
        msr: u32,
    },
    /// WRMSR of one.
    WriteMsr {
        /// ECX.
        msr: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// Nothing: run again.
    Bogus,
    /// The vCPU was wanted by another request: run again.
    ReqIdle,
    /// The vCPU is held by `VM_SUSPEND_CPU`.
    Debug,
    /// The machine was suspended, and all active vCPUs have come in.
    Suspended {
        /// `VM_SUSPEND_*`, see [`Suspend`](crate::ids::Suspend).
        how: i32,
    },
    /// HLT; the kernel keeps those.
    Halt {
        /// RFLAGS.
        rflags: u64,
    },
    /// PAUSE.
    Pause,
    /// A step by the monitor trap.
    Mtrap,
    /// An IPI that starts or stops processors, seen on the sender.
    Ipi {
        /// The APIC's delivery mode: [`IPI_INIT`] or [`IPI_STARTUP`].
        mode: u32,
        /// The vector of a start-up IPI.
        vector: u8,
        /// The destinations.
        cpus: CpuSet,
    },
    /// A start-up IPI, where IPI exits are off or unknown.
    SpinupAp {
        /// The destination.
        vcpu: i32,
        /// Where it starts: the vector, shifted.
        rip: u64,
    },
    /// A task switch.
    TaskSwitch(vm_task_switch),
    /// INT3, with breakpoint exits on.
    Breakpoint {
        /// Its length.
        inst_length: i32,
    },
    /// A debug exception.
    DebugException(dbg),
    /// VT-x: an exit without a code, or a failure.
    Vmx(vmx),
    /// SVM: an exit without a code.
    Svm(svm),
    /// A page fault of the nested tables; the kernel keeps those.
    Paging(paging),
    /// The end of a level-triggered interrupt; the kernel keeps those.
    IoapicEoi {
        /// Its vector.
        vector: i32,
    },
    /// A rendezvous; the kernel keeps those.
    Rendezvous,
    /// MONITOR; the kernel keeps those.
    Monitor,
    /// MWAIT; the kernel keeps those.
    Mwait,
    /// An instruction of VT-x or SVM; the kernel keeps those.
    VmInstruction,
    /// A code that this crate does not know, or what no kernel sends with the code: [`VmExit::code`] has it.
    Unknown,
}

/// INIT, in [`Exit::Ipi`].
pub const IPI_INIT: u32 = 0x500;
/// STARTUP, in [`Exit::Ipi`].
pub const IPI_STARTUP: u32 = 0x600;

/// A decoded `struct vm_exit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmExit {
    /// The kernel's code, one of [`code`].
    pub code: i32,
    /// The address of the instruction. The kernel goes on after it by itself when its length is known.
    pub rip: u64,
    /// The instruction's length. 0: unknown, and the kernel enters at `rip` again.
    pub inst_length: u8,
    /// Why.
    pub exit: Exit,
}

impl VmExit {
    /// Decodes an exit. `cpus` is what `vm_run::cpuset` points to, looked at only where the kernel wrote it.
    #[must_use]
    pub fn decode(image: &[u8; EXIT_SIZE], mask: IpiMask, cpus: &[u8]) -> VmExit {
        let head = head::at(image, 0);
        let union = &image[UNION..];
        let exit = match head.exitcode {
            code::INOUT => inout(vm_inout::at(union, 0)).map(Exit::Inout),
            code::INOUT_STR => inout_str(&vm_inout_str::at(union, 0)).map(Exit::InoutStr),
            code::INST_EMUL => Some(Exit::InstEmul(emul(&inst_emul::at(union, 0)))),
            code::RDMSR => Some(Exit::ReadMsr { msr: msr::at(union, 0).code }),
            code::WRMSR => {
                let msr = msr::at(union, 0);
                Some(Exit::WriteMsr { msr: msr.code, value: msr.wval })
            }
            code::BOGUS => Some(Exit::Bogus),
            code::REQIDLE => Some(Exit::ReqIdle),
            code::DEBUG => Some(Exit::Debug),
            code::SUSPENDED => Some(Exit::Suspended { how: suspended::at(union, 0).how }),
            code::HLT => Some(Exit::Halt { rflags: hlt::at(union, 0).rflags }),
            code::PAUSE => Some(Exit::Pause),
            code::MTRAP => Some(Exit::Mtrap),
            code::IPI => {
                let ipi_13 { mode, vector, mask: inside, .. } = ipi_13::at(union, 0);
                let cpus = CpuSet::from_bytes(if mask == IpiMask::Exit { &inside } else { cpus });
                Some(Exit::Ipi { mode, vector, cpus })
            }
            code::SPINUP_AP => {
                let spinup_ap { vcpu, rip, .. } = spinup_ap::at(union, 0);
                Some(Exit::SpinupAp { vcpu, rip })
            }
            code::TASK_SWITCH => Some(Exit::TaskSwitch(vm_task_switch::at(union, 0))),
            code::BPT => Some(Exit::Breakpoint { inst_length: bpt::at(union, 0).inst_length }),
            code::DB => Some(Exit::DebugException(dbg::at(union, 0))),
            code::VMX => Some(Exit::Vmx(vmx::at(union, 0))),
            code::SVM => Some(Exit::Svm(svm::at(union, 0))),
            code::PAGING => Some(Exit::Paging(paging::at(union, 0))),
            code::IOAPIC_EOI => Some(Exit::IoapicEoi { vector: ioapic_eoi::at(union, 0).vector }),
            code::RENDEZVOUS => Some(Exit::Rendezvous),
            code::MONITOR => Some(Exit::Monitor),
            code::MWAIT => Some(Exit::Mwait),
            code::VMINSN => Some(Exit::VmInstruction),
            _ => None,
        };
        VmExit {
            code: head.exitcode,
            rip: head.rip,
            inst_length: u8::try_from(head.inst_length).unwrap_or(0),
            exit: exit.unwrap_or(Exit::Unknown),
        }
    }
}

fn inout(raw: vm_inout) -> Option<Inout> {
    let bytes = (raw.flags & 7) as u8;
    matches!(bytes, 1 | 2 | 4).then_some(Inout {
        port: raw.port,
        bytes,
        input: raw.flags & 1 << 3 != 0,
        string: raw.flags & 1 << 4 != 0,
        rep: raw.flags & 1 << 5 != 0,
        eax: raw.eax,
    })
}

fn inout_str(raw: &vm_inout_str) -> Option<InoutStr> {
    let segment = Reg::from_id(raw.seg_name).filter(|reg| (Reg::Es..=Reg::Gs).contains(reg))?;
    matches!(raw.addrsize, 2 | 4 | 8).then_some(InoutStr {
        inout: inout(raw.inout)?,
        paging: raw.paging,
        rflags: raw.rflags,
        cr0: raw.cr0,
        index: raw.index,
        count: raw.count,
        address_bytes: raw.addrsize as u8,
        segment,
        desc: raw.seg_desc,
    })
}

fn emul(raw: &inst_emul) -> InstEmul {
    InstEmul {
        gpa: raw.gpa,
        gla: (raw.gla != GLA_UNKNOWN).then_some(raw.gla),
        cs_base: raw.cs_base,
        cs_d: raw.cs_d != 0,
        paging: raw.paging,
        bytes: raw.vie.inst,
        valid: raw.vie.num_valid.min(15),
        decoded: raw.vie.decoded == 1,
        processed: raw.vie.num_processed,
    }
}
