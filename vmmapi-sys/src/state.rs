//! The state of processors. All of it wants a vCPU that is not running: one that runs is forced out of `VM_RUN`.

use std::io;

use crate::common::{self, seg_desc, vm_guest_paging};
use crate::ids::{Cap, Reg};
use crate::layout::Plain;
use crate::vm::{Vm, address, call_pointing, id};

/// What a linear address translates to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// This guest-physical address.
    Gpa(u64),
    /// A fault, which the kernel has injected.
    Fault,
}

impl Vm {
    /// `VM_GET_REGISTER`; of a segment register, the selector.
    ///
    /// # Errors
    /// `EINVAL`: the kernel does not know it.
    pub fn register(&self, cpu: u32, reg: Reg) -> io::Result<u64> {
        let mut register = common::vm_register { cpuid: id(cpu), regnum: reg as i32, regval: 0 };
        self.call(common::VM_GET_REGISTER, &mut register)?;
        Ok(register.regval)
    }

    /// `VM_SET_REGISTER`. RIP is also where the vCPU goes on.
    ///
    /// # Errors
    /// `EINVAL`: the kernel does not know it.
    pub fn set_register(&self, cpu: u32, reg: Reg, value: u64) -> io::Result<()> {
        let mut register = common::vm_register { cpuid: id(cpu), regnum: reg as i32, regval: value };
        self.call(common::VM_SET_REGISTER, &mut register)
    }

    /// `VM_GET_REGISTER_SET`: several at once.
    ///
    /// # Errors
    /// `EINVAL`: the kernel does not know one of them.
    ///
    /// # Panics
    /// When there are not as many values.
    #[expect(unsafe_code, reason = "the boundary to the kernel")]
    pub fn registers(&self, cpu: u32, regs: &[Reg], values: &mut [u64]) -> io::Result<()> {
        assert_eq!(regs.len(), values.len());
        let mut set = common::vm_register_set {
            cpuid: id(cpu),
            count: regs.len() as u32,
            regnums: address(regs.as_ptr()),
            regvals: address(values.as_mut_ptr()),
        };
        // SAFETY: as many numbers, which the kernel reads, as values, which it writes.
        unsafe { call_pointing(&*self.node, common::VM_GET_REGISTER_SET, &mut set) }
    }

    /// `VM_SET_REGISTER_SET`: several at once, in this order.
    ///
    /// # Errors
    /// `EINVAL`: the kernel does not know one of them; those before it are set.
    ///
    /// # Panics
    /// When there are not as many values.
    #[expect(unsafe_code, reason = "the boundary to the kernel")]
    pub fn set_registers(&self, cpu: u32, regs: &[Reg], values: &[u64]) -> io::Result<()> {
        assert_eq!(regs.len(), values.len());
        let mut set = common::vm_register_set {
            cpuid: id(cpu),
            count: regs.len() as u32,
            regnums: address(regs.as_ptr()),
            regvals: address(values.as_ptr()),
        };
        // SAFETY: as many numbers as values, and the kernel reads both.
        unsafe { call_pointing(&*self.node, common::VM_SET_REGISTER_SET, &mut set) }
    }

    /// `VM_GET_SEGMENT_DESCRIPTOR`: the hidden part of a segment register, or a table's base and limit.
    ///
    /// # Errors
    /// `EINVAL`: it has none.
    pub fn segment(&self, cpu: u32, reg: Reg) -> io::Result<seg_desc> {
        let mut segment = common::vm_seg_desc { cpuid: id(cpu), regnum: reg as i32, desc: Plain::ZERO };
        self.call(common::VM_GET_SEGMENT_DESCRIPTOR, &mut segment)?;
        Ok(segment.desc)
    }

    /// `VM_SET_SEGMENT_DESCRIPTOR`.
    ///
    /// # Errors
    /// `EINVAL`: it has none.
    pub fn set_segment(&self, cpu: u32, reg: Reg, desc: seg_desc) -> io::Result<()> {
        let mut segment = common::vm_seg_desc { cpuid: id(cpu), regnum: reg as i32, desc };
        self.call(common::VM_SET_SEGMENT_DESCRIPTOR, &mut segment)
    }

    /// `VM_GET_CAPABILITY`.
    ///
    /// # Errors
    /// `ENOENT`: the host cannot. `EINVAL`: the kernel does not know it.
    pub fn capability(&self, cpu: u32, cap: Cap) -> io::Result<bool> {
        let mut capability = common::vm_capability { cpuid: id(cpu), captype: cap as i32, ..Plain::ZERO };
        self.call(common::VM_GET_CAPABILITY, &mut capability)?;
        Ok(capability.capval != 0)
    }

    /// `VM_SET_CAPABILITY`.
    ///
    /// # Errors
    /// `ENOENT`: the host cannot. `EINVAL`: the kernel does not know it, or it cannot be set so.
    pub fn set_capability(&self, cpu: u32, cap: Cap, on: bool) -> io::Result<()> {
        let mut capability =
            common::vm_capability { cpuid: id(cpu), captype: cap as i32, capval: on.into(), ..Plain::ZERO };
        self.call(common::VM_SET_CAPABILITY, &mut capability)
    }

    /// `VM_GET_X2APIC_STATE`.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn x2apic(&self, cpu: u32) -> io::Result<bool> {
        let mut x2apic = common::vm_x2apic { cpuid: id(cpu), state: 0 };
        self.call(common::VM_GET_X2APIC_STATE, &mut x2apic)?;
        Ok(x2apic.state == 1)
    }

    /// `VM_SET_X2APIC_STATE`: whether the local APIC is in x2APIC mode, from reset on and for good. Before the vCPU's
    /// first run, and after each [`Self::reinit`].
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn set_x2apic(&self, cpu: u32, on: bool) -> io::Result<()> {
        self.call(common::VM_SET_X2APIC_STATE, &mut common::vm_x2apic { cpuid: id(cpu), state: on.into() })
    }

    /// `VM_RESTART_INSTRUCTION`: the next run starts at the instruction that exited, not after it.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn restart_instruction(&self, cpu: u32) -> io::Result<()> {
        self.call(common::VM_RESTART_INSTRUCTION, &mut common::int { value: id(cpu) })
    }

    /// `VM_INJECT_EXCEPTION`; faults restart the instruction, traps do not. CR2 is to be set before.
    ///
    /// # Errors
    /// `EINVAL`: no exception has this vector, or it is #DF. `EBUSY`: another is pending.
    pub fn inject_exception(&self, cpu: u32, vector: u8, error_code: Option<u32>, restart: bool) -> io::Result<()> {
        let mut exception = common::vm_exception {
            cpuid: id(cpu),
            vector: vector.into(),
            error_code: error_code.unwrap_or(0),
            error_code_valid: error_code.is_some().into(),
            restart_instruction: restart.into(),
        };
        self.call(common::VM_INJECT_EXCEPTION, &mut exception)
    }

    /// `VM_INJECT_NMI`.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn inject_nmi(&self, cpu: u32) -> io::Result<()> {
        self.call(common::VM_INJECT_NMI, &mut common::vm_nmi { cpuid: id(cpu) })
    }

    /// `VM_GET_INTINFO`: the event whose delivery an exit interrupted, and the exception that is pending; see
    /// [`crate::ids::VM_INTINFO_VALID`].
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn intinfo(&self, cpu: u32) -> io::Result<[u64; 2]> {
        let mut info = common::vm_intinfo { vcpuid: id(cpu), ..Plain::ZERO };
        self.call(common::VM_GET_INTINFO, &mut info)?;
        Ok([info.info1, info.info2])
    }

    /// `VM_SET_INTINFO`: the event whose delivery is to be finished; 0: none.
    ///
    /// # Errors
    /// `EINVAL`: it is none.
    pub fn set_intinfo(&self, cpu: u32, info: u64) -> io::Result<()> {
        self.call(common::VM_SET_INTINFO, &mut common::vm_intinfo { vcpuid: id(cpu), info1: info, ..Plain::ZERO })
    }

    /// `VM_GLA2GPA`: translates as an access by the guest does: it sets accessed and dirty bits, and faults.
    ///
    /// # Errors
    /// `EFAULT`: the tables cannot be read.
    pub fn translate(&self, cpu: u32, paging: &vm_guest_paging, gla: u64, prot: i32) -> io::Result<Translation> {
        self.gla2gpa(common::VM_GLA2GPA, cpu, paging, gla, prot)
    }

    /// `VM_GLA2GPA_NOFAULT`: translates without leaving a trace, as debuggers do.
    ///
    /// # Errors
    /// `EFAULT`: the tables cannot be read.
    pub fn peek(&self, cpu: u32, paging: &vm_guest_paging, gla: u64, prot: i32) -> io::Result<Translation> {
        self.gla2gpa(common::VM_GLA2GPA_NOFAULT, cpu, paging, gla, prot)
    }

    fn gla2gpa(
        &self,
        request: crate::Request<common::vm_gla2gpa>,
        cpu: u32,
        paging: &vm_guest_paging,
        gla: u64,
        prot: i32,
    ) -> io::Result<Translation> {
        let paging = vm_guest_paging { pad: 0, ..*paging };
        let mut walk = common::vm_gla2gpa { vcpuid: id(cpu), prot, gla, paging, ..Plain::ZERO };
        self.call(request, &mut walk)?;
        Ok(if walk.fault == 0 { Translation::Gpa(walk.gpa) } else { Translation::Fault })
    }
}
