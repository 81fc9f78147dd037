//! The FreeBSD vmm(4) kernel interface on amd64, for 13, 14 and 15.
//!
//! The structures, numbers and requests are plain data, asserted on every host: [`common`] is what all kernels agree
//! on, [`v13`], [`v14`] and [`v15`] what each brought, [`Abi`] the table of what differs, [`exit`] why a processor
//! comes out. Only the final system calls, behind [`Kernel`], are conditional on the target, so that the
//! calls can be tested where no FreeBSD is. The crate holds no policy: `hv` decides what to ask the kernel for.

pub mod abi;
pub mod common;
mod cpuset;
mod devices;
pub mod exit;
pub mod ids;
mod kernel;
mod layout;
pub mod memory;
pub mod request;
mod state;
#[cfg(target_os = "freebsd")]
mod system;
pub mod v13;
pub mod v14;
pub mod v15;
mod vm;
mod vmm;

pub use abi::{Abi, Version};
pub use cpuset::CpuSet;
pub use devices::{HostFunction, Msi};
pub use exit::{Exit, VmExit};
pub use ids::{Cap, Part, Reg, Suspend};
pub use kernel::{Access, Kernel, Node};
pub use layout::Plain;
pub use memory::Memseg;
pub use request::Request;
pub use state::Translation;
#[cfg(target_os = "freebsd")]
pub use system::System;
pub use vm::{RunBuffer, Vm};
pub use vmm::{AttachError, Lifetime, Name, Vmm};
