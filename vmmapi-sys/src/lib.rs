//! The FreeBSD vmm(4) kernel interface.
//!
//! This crate will hold every structure, constant and request number of vmm(4) on amd64 for FreeBSD 13, 14 and 15, in
//! one module per ABI, with const assertions of all sizes, offsets and request codes that hold on every host, so that
//! the layout is tested where no FreeBSD is. Only the final `ioctl(2)`, `sysctl(3)` and `mmap(2)` calls, behind
//! [`Kernel`], are conditional on the target. It holds no policy: `hv` decides what to ask the kernel for.

mod kernel;

pub use kernel::{Access, Kernel, Node};
