//! The boundary to the kernel: the few system calls that vmm(4) is reached by.
//!
//! A test may bring a kernel of its own that takes the same numbers and the same bytes.

use std::ffi::c_void;
use std::io;

/// How a node is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `O_RDONLY`.
    Read,
    /// `O_RDWR`, with `O_CLOEXEC`.
    ReadWrite,
}

/// A kernel that may have vmm(4). Errors carry the `errno` of the call ([`io::Error::raw_os_error`]).
pub trait Kernel: Send + Sync {
    /// The integer `sysctl(3)` of this name, of 4 or 8 bytes.
    ///
    /// # Errors
    /// `ENOENT` when there is none.
    fn sysctl(&self, name: &str) -> io::Result<i64>;

    /// Writes `value`, as it is, to the `sysctl(3)` of this name.
    ///
    /// # Errors
    /// As the node answers.
    fn set_sysctl(&self, name: &str, value: &[u8]) -> io::Result<()>;

    /// `modfind(2)`: whether the module is there.
    fn module(&self, name: &str) -> bool;

    /// `kldload(2)`.
    ///
    /// # Errors
    /// `EPERM` for users, `ENOENT` when there is no such file.
    fn load_module(&self, name: &str) -> io::Result<()>;

    /// `open(2)` of a device node. It is closed by being dropped.
    ///
    /// # Errors
    /// As `open(2)`.
    fn open(&self, path: &str, access: Access) -> io::Result<Box<dyn Node>>;
}

/// An open device node.
#[expect(unsafe_code, reason = "what a request does to memory is told by its number alone")]
pub trait Node: Send + Sync {
    /// `ioctl(2)`.
    ///
    /// # Errors
    /// As the request; nothing was written to `arg` then.
    ///
    /// # Safety
    /// `arg` must be what `request` takes: its size is in the code, and pointers in it must be good for the call.
    unsafe fn ioctl(&self, request: u32, arg: *mut c_void) -> io::Result<()>;

    /// `mmap(2)` with `MAP_SHARED | MAP_FIXED | MAP_NOCORE`, readable and writable.
    ///
    /// # Errors
    /// As `mmap(2)`; what was at `at` is still there then.
    ///
    /// # Safety
    /// The `len` bytes from `at` must be a mapping of the caller's that nothing refers to by Rust references.
    unsafe fn map(&self, at: *mut u8, len: usize, offset: u64) -> io::Result<()>;

    /// Leaves the descriptor nothing but these requests and mappings: `cap_rights_limit(2)`, `cap_ioctls_limit(2)`.
    ///
    /// # Errors
    /// As those; a kernel without capsicum(4) is none.
    fn limit(&self, requests: &[u32]) -> io::Result<()> {
        let _ = requests;
        Ok(())
    }
}
