//! Numbers that requests take: registers, capabilities, modes.

macro_rules! ids {
    ($(#[$meta:meta])* $name:ident { $($(#[$item_meta:meta])* $item:ident = $id:literal $c:literal,)* }) => {
        $(#[$meta])*
        #[repr(i32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$item_meta])* #[doc = concat!("`", $c, "`.")] $item = $id,)*
        }

        impl $name {
            /// All of them, with their names in the kernel's headers.
            pub const ALL: &[($name, &'static str)] = &[$(($name::$item, $c)),*];

            /// The one of this number.
            #[must_use]
            pub fn from_id(id: i32) -> Option<$name> {
                match id {
                    $($id => Some($name::$item),)*
                    _ => None,
                }
            }
        }
    };
}

ids! {
    /// Registers. A segment register's number gives its selector; the hidden part has requests of its own.
    Reg {
        Rax = 0 "VM_REG_GUEST_RAX",
        Rbx = 1 "VM_REG_GUEST_RBX",
        Rcx = 2 "VM_REG_GUEST_RCX",
        Rdx = 3 "VM_REG_GUEST_RDX",
        Rsi = 4 "VM_REG_GUEST_RSI",
        Rdi = 5 "VM_REG_GUEST_RDI",
        Rbp = 6 "VM_REG_GUEST_RBP",
        R8 = 7 "VM_REG_GUEST_R8",
        R9 = 8 "VM_REG_GUEST_R9",
        R10 = 9 "VM_REG_GUEST_R10",
        R11 = 10 "VM_REG_GUEST_R11",
        R12 = 11 "VM_REG_GUEST_R12",
        R13 = 12 "VM_REG_GUEST_R13",
        R14 = 13 "VM_REG_GUEST_R14",
        R15 = 14 "VM_REG_GUEST_R15",
        Cr0 = 15 "VM_REG_GUEST_CR0",
        Cr3 = 16 "VM_REG_GUEST_CR3",
        Cr4 = 17 "VM_REG_GUEST_CR4",
        Dr7 = 18 "VM_REG_GUEST_DR7",
        Rsp = 19 "VM_REG_GUEST_RSP",
        /// After an exit it reads as the instruction that exited; writing it also sets where the vCPU goes on.
        Rip = 20 "VM_REG_GUEST_RIP",
        Rflags = 21 "VM_REG_GUEST_RFLAGS",
        Es = 22 "VM_REG_GUEST_ES",
        Cs = 23 "VM_REG_GUEST_CS",
        Ss = 24 "VM_REG_GUEST_SS",
        Ds = 25 "VM_REG_GUEST_DS",
        Fs = 26 "VM_REG_GUEST_FS",
        Gs = 27 "VM_REG_GUEST_GS",
        Ldtr = 28 "VM_REG_GUEST_LDTR",
        Tr = 29 "VM_REG_GUEST_TR",
        /// By the descriptor requests only.
        Idtr = 30 "VM_REG_GUEST_IDTR",
        /// By the descriptor requests only.
        Gdtr = 31 "VM_REG_GUEST_GDTR",
        Efer = 32 "VM_REG_GUEST_EFER",
        Cr2 = 33 "VM_REG_GUEST_CR2",
        Pdpte0 = 34 "VM_REG_GUEST_PDPTE0",
        Pdpte1 = 35 "VM_REG_GUEST_PDPTE1",
        Pdpte2 = 36 "VM_REG_GUEST_PDPTE2",
        Pdpte3 = 37 "VM_REG_GUEST_PDPTE3",
        IntrShadow = 38 "VM_REG_GUEST_INTR_SHADOW",
        Dr0 = 39 "VM_REG_GUEST_DR0",
        Dr1 = 40 "VM_REG_GUEST_DR1",
        Dr2 = 41 "VM_REG_GUEST_DR2",
        Dr3 = 42 "VM_REG_GUEST_DR3",
        Dr6 = 43 "VM_REG_GUEST_DR6",
        EntryInstLength = 44 "VM_REG_GUEST_ENTRY_INST_LENGTH",
        /// From 14.1 or so on, as those that follow.
        FsBase = 45 "VM_REG_GUEST_FS_BASE",
        GsBase = 46 "VM_REG_GUEST_GS_BASE",
        KgsBase = 47 "VM_REG_GUEST_KGS_BASE",
        Tpr = 48 "VM_REG_GUEST_TPR",
    }
}

ids! {
    /// Capabilities of a vCPU. All are off after power-on and `VM_REINIT`.
    Cap {
        /// Without it an idle guest keeps the host's processor busy.
        HaltExit = 0 "VM_CAP_HALT_EXIT",
        /// Single steps (Intel).
        MtrapExit = 1 "VM_CAP_MTRAP_EXIT",
        PauseExit = 2 "VM_CAP_PAUSE_EXIT",
        /// Real mode, for boot ROMs and all processors but the first; always on where AMD is.
        UnrestrictedGuest = 3 "VM_CAP_UNRESTRICTED_GUEST",
        EnableInvpcid = 4 "VM_CAP_ENABLE_INVPCID",
        BptExit = 5 "VM_CAP_BPT_EXIT",
        /// Can be read only.
        Rdpid = 6 "VM_CAP_RDPID",
        /// Can be read only.
        Rdtscp = 7 "VM_CAP_RDTSCP",
        /// From 13.2 on: INIT and start-up IPIs are exits of the sender.
        IpiExit = 8 "VM_CAP_IPI_EXIT",
        /// From 14.1 or so on.
        MaskHwintr = 9 "VM_CAP_MASK_HWINTR",
        /// From 14.1 or so on (AMD).
        RflagsTf = 10 "VM_CAP_RFLAGS_TF",
    }
}

ids! {
    /// Why a machine is suspended.
    Suspend {
        Reset = 1 "VM_SUSPEND_RESET",
        PowerOff = 2 "VM_SUSPEND_POWEROFF",
        /// All processors halted with interrupts off.
        Halt = 3 "VM_SUSPEND_HALT",
        TripleFault = 4 "VM_SUSPEND_TRIPLEFAULT",
        /// Since 15: it is being destroyed.
        Destroy = 5 "VM_SUSPEND_DESTROY",
    }
}

ids! {
    /// The mode of a processor, in [`crate::common::vm_guest_paging`].
    CpuMode {
        Real = 0 "CPU_MODE_REAL",
        Protected = 1 "CPU_MODE_PROTECTED",
        Compatibility = 2 "CPU_MODE_COMPATIBILITY",
        Long = 3 "CPU_MODE_64BIT",
    }
}

ids! {
    /// Its paging, in the same place.
    PagingMode {
        Flat = 0 "PAGING_MODE_FLAT",
        Bits32 = 1 "PAGING_MODE_32",
        Pae = 2 "PAGING_MODE_PAE",
        Levels4 = 3 "PAGING_MODE_64",
        Levels5 = 4 "PAGING_MODE_64_LA57",
    }
}

ids! {
    /// Parts of the kernel's state that `VM_SNAPSHOT_REQ` saves.
    Part {
        Vioapic = 1 "STRUCT_VIOAPIC",
        Vm = 2 "STRUCT_VM",
        Vlapic = 3 "STRUCT_VLAPIC",
        Memory = 4 "VM_MEM",
        Vhpet = 5 "STRUCT_VHPET",
        /// The processors.
        Vmcx = 6 "STRUCT_VMCX",
        Vatpic = 7 "STRUCT_VATPIC",
        Vatpit = 8 "STRUCT_VATPIT",
        Vpmtmr = 9 "STRUCT_VPMTMR",
        Vrtc = 10 "STRUCT_VRTC",
    }
}

/// [`crate::common::seg_desc::access`]: the segment cannot be used.
pub const SEGMENT_UNUSABLE: u32 = 1 << 16;

/// The word of `VM_SET_INTINFO`: there is an event in it.
pub const VM_INTINFO_VALID: u64 = 0x8000_0000;
/// It has an error code, in bits 32-63.
pub const VM_INTINFO_DEL_ERRCODE: u64 = 0x800;
/// It is an external interrupt.
pub const VM_INTINFO_HWINTR: u64 = 0;
/// It is an NMI.
pub const VM_INTINFO_NMI: u64 = 2 << 8;
/// It is an exception.
pub const VM_INTINFO_HWEXCEPTION: u64 = 3 << 8;
/// It is INT n.
pub const VM_INTINFO_SWINTR: u64 = 4 << 8;
