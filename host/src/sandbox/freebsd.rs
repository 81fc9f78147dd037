//! Capability mode.

use std::io;
use std::os::fd::BorrowedFd;

use anyhow::Result;

use super::Shares;

/// Enters it. The rights of descriptors are limited where they are opened, those of shares' directories, too.
pub fn confine(_: Shares) -> Result<&'static str> {
    #[cfg(target_os = "freebsd")]
    {
        // SAFETY: the call takes nothing and changes the process as a whole.
        #[expect(unsafe_code, reason = "cap_enter(2)")]
        if unsafe { libc::cap_enter() } != 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok("capability mode")
    }
    #[cfg(not(target_os = "freebsd"))]
    Err(io::Error::from(io::ErrorKind::Unsupported).into())
}

/// Nothing more: all that is reached through a descriptor has the rights of it.
pub fn keep_to(_: BorrowedFd, _: bool) -> Result<()> {
    Ok(())
}
