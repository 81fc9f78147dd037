//! vmm(4) as a whole: whether it is there, and how machines are made, found and destroyed.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::abi::Version;
use crate::common::MAX_NAME;
use crate::kernel::{Access, Kernel, Node};
use crate::layout::Plain;
use crate::v15;
use crate::vm::{Vm, call};

/// The name of a machine: one path component, short enough for its nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(String);

impl Name {
    /// # Errors
    /// What a name must be, as a sentence's end: "must ...".
    pub fn new(name: &str) -> Result<Name, String> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(format!("must be of 1 to {MAX_NAME} bytes, not {}", name.len()));
        }
        if let Some(bad) = name.chars().find(|c| *c == '/' || c.is_control()) {
            return Err(format!("must not contain {bad:?}"));
        }
        if matches!(name, "." | "..") {
            return Err("must not be a directory's".into());
        }
        Ok(Name(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why vmm(4) cannot be used at all.
#[derive(Debug)]
pub enum AttachError {
    /// There is no `kern.osreldate`.
    NotFreeBsd(io::Error),
    /// The kernel is older than 13.
    TooOld(u32),
    /// The module is not there, and loading it failed.
    NoModule(io::Error),
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttachError::NotFreeBsd(error) => write!(f, "this is no FreeBSD: kern.osreldate: {error}"),
            AttachError::TooOld(osreldate) => {
                write!(
                    f,
                    "this kernel (kern.osreldate {osreldate}) is older than FreeBSD 13, whose vmm(4) is the oldest known"
                )
            }
            AttachError::NoModule(error) => write!(f, "vmm(4) is not loaded, and loading vmm.ko failed: {error}"),
        }
    }
}

impl std::error::Error for AttachError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AttachError::NotFreeBsd(error) | AttachError::NoModule(error) => Some(error),
            AttachError::TooOld(_) => None,
        }
    }
}

/// How long a machine lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until `/dev/vmmctl`, as the [`Vmm`] that made it has it open, is closed; its [`Vm`]s keep it open too.
    Descriptor,
    /// Until it is destroyed, with all its memory.
    Destroyed,
}

/// `/dev/vmmctl`.
enum Control {
    Open(Arc<dyn Node>),
    /// It is there, and this is why it could not be opened.
    Refused(i32),
    /// The kernel has none: `sysctl(3)` does.
    Absent,
}

/// vmm(4) of the running kernel.
pub struct Vmm {
    kernel: Arc<dyn Kernel>,
    osreldate: u32,
    control: Control,
}

impl Vmm {
    /// Loads vmm.ko if it is not there, and opens the control node of kernels that have one.
    ///
    /// # Errors
    /// There is no vmm(4) that this crate knows. Rights to make machines are found out by [`Self::create`].
    pub fn attach(kernel: Arc<dyn Kernel>) -> Result<Vmm, AttachError> {
        let osreldate = kernel.sysctl("kern.osreldate").map_err(AttachError::NotFreeBsd)?;
        let osreldate = u32::try_from(osreldate).unwrap_or(0);
        if Version::of_osreldate(osreldate).is_none() {
            return Err(AttachError::TooOld(osreldate));
        }
        let loaded = if kernel.module("vmm") { Ok(()) } else { kernel.load_module("vmm") };
        let control = match kernel.open("/dev/vmmctl", Access::ReadWrite) {
            Ok(node) => Control::Open(node.into()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) | None => Control::Absent,
                Some(errno) => Control::Refused(errno),
            },
        };
        // It may be part of the kernel itself, where there is nothing to load.
        if let (Err(error), Control::Absent) = (loaded, &control)
            && kernel.sysctl("hw.vmm.ipinum").is_err()
        {
            return Err(AttachError::NoModule(error));
        }
        Ok(Vmm { kernel, osreldate, control })
    }

    /// `kern.osreldate`.
    #[must_use]
    pub fn osreldate(&self) -> u32 {
        self.osreldate
    }

    /// Whether the kernel has `/dev/vmmctl`.
    #[must_use]
    pub fn has_control_node(&self) -> bool {
        !matches!(self.control, Control::Absent)
    }

    /// The node of `/dev/vmmctl`, for its rights to be limited.
    #[must_use]
    pub fn control(&self) -> Option<&dyn Node> {
        match &self.control {
            Control::Open(node) => Some(&**node),
            _ => None,
        }
    }

    /// How many processors a machine can have. The first kernels of 13 do not tell: 16.
    #[must_use]
    pub fn max_cpus(&self) -> u32 {
        self.kernel.sysctl("hw.vmm.maxcpu").ok().and_then(|cpus| u32::try_from(cpus).ok()).unwrap_or(16)
    }

    /// An integer under `hw.vmm`, where the kernel has it.
    #[must_use]
    pub fn sysctl(&self, name: &str) -> Option<i64> {
        self.kernel.sysctl(&format!("hw.vmm.{name}")).ok()
    }

    /// Makes a machine, which goes with this process if `lifetime` asks for it and the kernel can: the answer is what
    /// came of it.
    ///
    /// # Errors
    /// `EEXIST`: there is one of this name. `ENXIO`: the processor has no virtualization, or it is off. `EPERM`: the
    /// rights are lacking, or the jail has no `allow.vmm`; `EACCES` for `/dev/vmmctl`. `ENOMEM`: too many machines.
    pub fn create(&self, name: &Name, lifetime: Lifetime) -> io::Result<Lifetime> {
        let node = match &self.control {
            Control::Open(node) => node,
            Control::Refused(errno) => return Err(io::Error::from_raw_os_error(*errno)),
            Control::Absent => {
                self.kernel.set_sysctl("hw.vmm.create", name.0.as_bytes())?;
                return Ok(Lifetime::Destroyed);
            }
        };
        let ask = |flags| {
            let mut request = v15::vmmctl_vm_create { name: field(&name.0), flags, ..Plain::ZERO };
            call(&**node, v15::VMMCTL_VM_CREATE, &mut request)
        };
        if lifetime == Lifetime::Descriptor {
            match ask(v15::VMMCTL_CREATE_DESTROY_ON_CLOSE) {
                // The word was reserved before the flag was there.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                result => return result.map(|()| Lifetime::Descriptor),
            }
        }
        ask(0).map(|()| Lifetime::Destroyed)
    }

    /// Destroys a machine. Before 15 it waits for processors that run: suspend the machine first.
    ///
    /// # Errors
    /// `EINVAL`: there is none of this name, or it is being destroyed.
    pub fn destroy(&self, name: &Name) -> io::Result<()> {
        match &self.control {
            Control::Open(node) => {
                let mut request = v15::vmmctl_vm_destroy { name: field(&name.0), ..Plain::ZERO };
                call(&**node, v15::VMMCTL_VM_DESTROY, &mut request)
            }
            Control::Refused(errno) => Err(io::Error::from_raw_os_error(*errno)),
            Control::Absent => self.kernel.set_sysctl("hw.vmm.destroy", name.0.as_bytes()),
        }
    }

    /// Opens a machine, and finds out by harmless requests which ABI its kernel has.
    ///
    /// # Errors
    /// `ENOENT`: there is none of this name. `EACCES`: it is somebody else's. `ENXIO`: it is being destroyed.
    pub fn open(&self, name: &Name) -> io::Result<Vm> {
        let control = match &self.control {
            Control::Open(node) => Some(Arc::clone(node)),
            _ => None,
        };
        Vm::open(Arc::clone(&self.kernel), name, control)
    }
}

/// A name in a field of `N` bytes, with NULs after it.
pub(crate) fn field<const N: usize>(name: &str) -> [u8; N] {
    let mut field = [0; N];
    field[..name.len()].copy_from_slice(name.as_bytes());
    field
}
