//! Capability mode.

use std::io;

use anyhow::Result;

/// Enters it. The rights of descriptors are limited where they are opened.
pub fn confine() -> Result<&'static str> {
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
