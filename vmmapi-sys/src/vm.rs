//! A machine's node, and the requests that make it run.

use std::io;
use std::ptr::from_mut;
use std::sync::Arc;

use crate::abi::{Abi, RunLayout, Version};
use crate::common::{self, MAX_CPUS};
use crate::cpuset::CpuSet;
use crate::exit::{EXIT_SIZE, VmExit};
use crate::ids::Suspend;
use crate::kernel::{Access, Kernel, Node};
use crate::layout::Plain;
use crate::request::Request;
use crate::vmm::Name;
use crate::{v13, v14, v15};

/// Room for an exit. Only the kernel knows the size of its own, and it writes all of that.
#[repr(C, align(8))]
struct ExitRoom {
    image: [u8; EXIT_SIZE],
    beyond: [u8; 256 - EXIT_SIZE],
}

/// Room for the largest set of processors.
#[repr(C, align(8))]
struct CpuRoom([u8; MAX_CPUS / 8]);

/// A request without pointers.
#[expect(unsafe_code, reason = "the boundary to the kernel")]
pub(crate) fn call<T: Plain>(node: &dyn Node, request: Request<T>, arg: &mut T) -> io::Result<()> {
    const { assert!(!T::POINTS) };
    // SAFETY: there are no pointers in it.
    unsafe { call_pointing(node, request, arg) }
}

/// A request whose argument has pointers.
///
/// # Safety
/// The kernel may read and write what they point to.
#[expect(unsafe_code, reason = "the boundary to the kernel")]
pub(crate) unsafe fn call_pointing<T: Plain>(node: &dyn Node, request: Request<T>, arg: &mut T) -> io::Result<()> {
    // SAFETY: the size is part of the code, computed from `T`, whose bytes may all be read and written; what it points
    // to is the caller's promise.
    unsafe { node.ioctl(request.code, from_mut(arg).cast()) }
}

/// A vCPU's number as the kernel has it. One beyond all limits stays so, and is refused.
pub(crate) fn id(cpu: u32) -> i32 {
    i32::try_from(cpu).unwrap_or(i32::MAX)
}

/// A pointer for a kernel to follow.
pub(crate) fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// What a vCPU's thread keeps between runs: room for the kernel's answer.
pub struct RunBuffer {
    embedded: v13::vm_run_13,
    exit: ExitRoom,
    cpus: CpuRoom,
}

impl Default for RunBuffer {
    fn default() -> RunBuffer {
        let exit = ExitRoom { image: [0; EXIT_SIZE], beyond: [0; 256 - EXIT_SIZE] };
        RunBuffer { embedded: Plain::ZERO, exit, cpus: CpuRoom([0; MAX_CPUS / 8]) }
    }
}

/// A machine of vmm(4).
pub struct Vm {
    pub(crate) node: Box<dyn Node>,
    /// A machine that goes with the control node stays as long as this is open.
    _control: Option<Arc<dyn Node>>,
    pub(crate) kernel: Arc<dyn Kernel>,
    name: Name,
    abi: &'static Abi,
}

impl Vm {
    /// Leaves its node the requests of its ABI, for capability mode.
    ///
    /// # Errors
    /// As `cap_rights_limit(2)`.
    pub fn limit(&self) -> io::Result<()> {
        self.node.limit(&self.abi.requests().map(|(_, code)| code).collect::<Vec<_>>())
    }

    pub(crate) fn open(kernel: Arc<dyn Kernel>, name: &Name, control: Option<Arc<dyn Node>>) -> io::Result<Vm> {
        let node = kernel.open(&format!("/dev/vmm/{}", name.as_str()), Access::ReadWrite)?;
        let abi = detect(&*node)?.abi();
        Ok(Vm { node, _control: control, kernel, name: name.clone(), abi })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The kernel's ABI.
    #[must_use]
    pub fn abi(&self) -> &'static Abi {
        self.abi
    }

    /// The machine's node, for its rights to be limited.
    #[must_use]
    pub fn node(&self) -> &dyn Node {
        &*self.node
    }

    pub(crate) fn call<T: Plain>(&self, request: Request<T>, arg: &mut T) -> io::Result<()> {
        call(&*self.node, request, arg)
    }

    /// `VM_RUN`: runs a vCPU until it exits. The kernel goes on at the right instruction by itself.
    ///
    /// # Errors
    /// `EINVAL`: the vCPU is not activated, or has already been told of the machine's suspension. `EFAULT`: a guest
    /// page cannot be resolved, as when read-only memory is written. `EIO`: one of the kernel's devices refused an
    /// access. `EINTR`: run again. `ENXIO`: the machine is being destroyed. Nothing is known of an exit then.
    pub fn run(&self, cpu: u32, buffer: &mut RunBuffer) -> io::Result<VmExit> {
        match self.abi.run_layout {
            RunLayout::Embedded => {
                buffer.embedded.cpuid = id(cpu);
                self.call(v13::VM_RUN, &mut buffer.embedded)?;
                Ok(VmExit::decode(&buffer.embedded.vm_exit, self.abi.ipi_mask, &[]))
            }
            RunLayout::Pointers => {
                run_pointing(&*self.node, id(cpu), &mut buffer.exit, &mut buffer.cpus)?;
                Ok(VmExit::decode(&buffer.exit.image, self.abi.ipi_mask, &buffer.cpus.0))
            }
        }
    }

    /// `VM_SUSPEND`: stops the machine for a reason, and wakes its vCPUs. Each returns with
    /// [`crate::Exit::Suspended`] once all that are active have come in. That it is already suspended is no error.
    ///
    /// # Errors
    /// `EINVAL`: the kernel does not know the reason.
    pub fn suspend(&self, how: Suspend) -> io::Result<()> {
        match self.call(common::VM_SUSPEND, &mut common::vm_suspend { how: how as i32 }) {
            Err(error) if error.raw_os_error() == Some(libc::EALREADY) => Ok(()),
            result => result,
        }
    }

    /// `VM_REINIT`: power-on state for all but memory's contents and the RTC's; mappings of device memory, capabilities
    /// and the sets of processors are gone.
    ///
    /// # Errors
    /// `EBUSY`: an active vCPU is not suspended.
    #[expect(unsafe_code, reason = "the boundary to the kernel")]
    pub fn reinit(&self) -> io::Result<()> {
        // SAFETY: the request takes nothing.
        unsafe { self.node.ioctl(common::VM_REINIT.code, std::ptr::null_mut()) }
    }

    /// `VM_ACTIVATE_CPU`, without which a vCPU does not run.
    ///
    /// # Errors
    /// `EBUSY`: it is active. `EINVAL`: there is none of this number.
    pub fn activate_cpu(&self, cpu: u32) -> io::Result<()> {
        self.call(common::VM_ACTIVATE_CPU, &mut common::vm_activate_cpu { vcpuid: id(cpu) })
    }

    /// `VM_SUSPEND_CPU`: holds a vCPU, or all: `VM_RUN` returns [`crate::Exit::Debug`] at once.
    ///
    /// # Errors
    /// `EINVAL`: it is not active.
    pub fn suspend_cpu(&self, cpu: Option<u32>) -> io::Result<()> {
        self.call(common::VM_SUSPEND_CPU, &mut common::vm_activate_cpu { vcpuid: cpu.map_or(-1, id) })
    }

    /// `VM_RESUME_CPU`: lets a vCPU that is held, or all, run.
    ///
    /// # Errors
    /// `EINVAL`: it is not held.
    pub fn resume_cpu(&self, cpu: Option<u32>) -> io::Result<()> {
        self.call(common::VM_RESUME_CPU, &mut common::vm_activate_cpu { vcpuid: cpu.map_or(-1, id) })
    }

    /// `VM_GET_CPUS`: the vCPUs that are active.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn active_cpus(&self) -> io::Result<CpuSet> {
        self.cpus(common::VM_ACTIVE_CPUS)
    }

    /// `VM_GET_CPUS`: those that have been told of the machine's suspension.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn suspended_cpus(&self) -> io::Result<CpuSet> {
        self.cpus(common::VM_SUSPENDED_CPUS)
    }

    /// `VM_GET_CPUS`: those that are held.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn held_cpus(&self) -> io::Result<CpuSet> {
        self.cpus(common::VM_DEBUG_CPUS)
    }

    /// Kernels want the size of their own sets, which is told by refusing others.
    fn cpus(&self, which: i32) -> io::Result<CpuSet> {
        let own = self.abi.cpuset_bytes;
        let other = if own == v13::CPUSET_BYTES { MAX_CPUS / 8 } else { v13::CPUSET_BYTES };
        match self.cpus_of_size(which, own) {
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) => self.cpus_of_size(which, other),
            result => result,
        }
    }

    #[expect(unsafe_code, reason = "the boundary to the kernel")]
    fn cpus_of_size(&self, which: i32, bytes: usize) -> io::Result<CpuSet> {
        let mut set = CpuRoom([0; MAX_CPUS / 8]);
        let cpus = address(from_mut(&mut set));
        let mut request = common::vm_cpuset { which, cpusetsize: bytes as i32, cpus };
        // SAFETY: no kernel writes more than the size told, which is at most the largest set's.
        unsafe { call_pointing(&*self.node, common::VM_GET_CPUS, &mut request)? };
        Ok(CpuSet::from_bytes(&set.0))
    }

    /// `VM_SET_TOPOLOGY`: what CPUID tells, before any vCPU runs. It makes no vCPUs.
    ///
    /// # Errors
    /// `EINVAL`: too many.
    pub fn set_topology(&self, sockets: u16, cores: u16, threads: u16) -> io::Result<()> {
        // 13.0 and 13.1 refuse a limit, and the others ignore it.
        self.call(common::VM_SET_TOPOLOGY, &mut common::vm_cpu_topology { sockets, cores, threads, maxcpus: 0 })
    }

    /// `VM_GET_TOPOLOGY`: with the kernel's limit.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn topology(&self) -> io::Result<common::vm_cpu_topology> {
        let mut topology = Plain::ZERO;
        self.call(common::VM_GET_TOPOLOGY, &mut topology)?;
        Ok(topology)
    }
}

/// The kernel's ABI by what it takes: an unknown code is `ENOTTY`, whatever the argument.
#[expect(unsafe_code, reason = "the boundary to the kernel")]
fn detect(node: &dyn Node) -> io::Result<Version> {
    let unknown = |result: io::Result<()>| match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Ok(true),
        // The machine is gone: every request says so, known or not.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Err(error),
        _ => Ok(false),
    };
    let mut memseg = Plain::ZERO;
    // SAFETY: its pointer is null, and stays unused.
    if !unknown(unsafe { call_pointing(node, v15::VM_GET_MEMSEG, &mut memseg) })? {
        return Ok(Version::V15);
    }
    let mut buffer = RunBuffer::default();
    let run = run_pointing(node, -1, &mut buffer.exit, &mut buffer.cpus);
    Ok(if unknown(run)? { Version::V13 } else { Version::V14 })
}

/// `VM_RUN` with the exit elsewhere.
#[expect(unsafe_code, reason = "the boundary to the kernel")]
fn run_pointing(node: &dyn Node, cpuid: i32, exit: &mut ExitRoom, cpus: &mut CpuRoom) -> io::Result<()> {
    const { assert!(size_of::<ExitRoom>() == 256 && size_of::<CpuRoom>() == MAX_CPUS / 8) };
    let mut run = v14::vm_run {
        cpuid,
        cpuset: address(from_mut(cpus)),
        cpusetsize: size_of::<CpuRoom>() as u64,
        vm_exit: address(from_mut(exit)),
        ..Plain::ZERO
    };
    // SAFETY: both are there for the call. The sets' size is told; the exit's has room for twice what is known.
    unsafe { call_pointing(node, v14::VM_RUN, &mut run) }
}
