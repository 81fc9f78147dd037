//! FreeBSD's own calls.

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{null, null_mut};

use crate::kernel::{Access, Kernel, Node};

#[expect(unsafe_code, reason = "the libc crate lacks these")]
// SAFETY: as <sys/module.h> and <sys/linker.h> declare them.
unsafe extern "C" {
    fn modfind(name: *const c_char) -> c_int;
    fn kldload(file: *const c_char) -> c_int;
}

/// The running kernel.
#[derive(Clone, Copy, Debug)]
pub struct System;

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[expect(unsafe_code, reason = "system calls")]
impl Kernel for System {
    fn sysctl(&self, name: &str) -> io::Result<i64> {
        let name = c_string(name)?;
        let mut value = [0_u8; 8];
        let mut len = value.len();
        // SAFETY: the name ends with a NUL, and `len` is the size of `value`.
        check(unsafe { libc::sysctlbyname(name.as_ptr(), value.as_mut_ptr().cast(), &raw mut len, null(), 0) })?;
        match len {
            4 => Ok(i32::from_ne_bytes([value[0], value[1], value[2], value[3]]).into()),
            8 => Ok(i64::from_ne_bytes(value)),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    fn set_sysctl(&self, name: &str, value: &[u8]) -> io::Result<()> {
        let name = c_string(name)?;
        // SAFETY: the name ends with a NUL; the value is only read.
        check(unsafe {
            libc::sysctlbyname(name.as_ptr(), null_mut(), null_mut(), value.as_ptr().cast(), value.len())
        })?;
        Ok(())
    }

    fn module(&self, name: &str) -> bool {
        // SAFETY: the name ends with a NUL.
        c_string(name).is_ok_and(|name| unsafe { modfind(name.as_ptr()) } >= 0)
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        let name = c_string(name)?;
        // SAFETY: the name ends with a NUL.
        check(unsafe { kldload(name.as_ptr()) })?;
        Ok(())
    }

    fn open(&self, path: &str, access: Access) -> io::Result<Box<dyn Node>> {
        let path = c_string(path)?;
        let flags = match access {
            Access::Read => libc::O_RDONLY,
            Access::ReadWrite => libc::O_RDWR,
        };
        // SAFETY: the path ends with a NUL.
        let fd = check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) })?;
        // SAFETY: it was just opened, and nobody else has it.
        Ok(Box::new(Descriptor(unsafe { OwnedFd::from_raw_fd(fd) })))
    }
}

struct Descriptor(OwnedFd);

#[expect(unsafe_code, reason = "system calls")]
impl Node for Descriptor {
    unsafe fn ioctl(&self, request: u32, arg: *mut c_void) -> io::Result<()> {
        // SAFETY: the caller's promise.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request.into(), arg) })?;
        Ok(())
    }

    unsafe fn map(&self, at: *mut u8, len: usize, offset: u64) -> io::Result<()> {
        let offset = offset.try_into().map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: what is replaced is the caller's, and nothing refers to it.
        let mapped = unsafe {
            libc::mmap(
                at.cast(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NOCORE,
                self.0.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn limit(&self, requests: &[u32]) -> io::Result<()> {
        let fd = self.0.as_raw_fd();
        let requests: Vec<libc::c_ulong> = requests.iter().map(|&code| code.into()).collect();
        // SAFETY: a set of rights is numbers alone; the list of those to put in ends with 0; the descriptor is open.
        let done = unsafe {
            let mut rights: libc::cap_rights_t = std::mem::zeroed();
            let mapped = libc::CAP_MMAP_RW;
            libc::__cap_rights_init(libc::CAP_RIGHTS_VERSION, &raw mut rights, mapped, libc::CAP_IOCTL, 0u64);
            check(libc::cap_rights_limit(fd, &raw const rights))
                .and_then(|_| check(libc::cap_ioctls_limit(fd, requests.as_ptr(), requests.len())))
        };
        match done {
            Err(e) if e.raw_os_error() != Some(libc::ENOSYS) => Err(e),
            _ => Ok(()),
        }
    }
}
