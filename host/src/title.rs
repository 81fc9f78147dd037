//! The title of the process, by which tools find a machine: `pgrep -fx "bhyve: NAME"`.

#![expect(unsafe_code, reason = "the arguments of a process are memory that its system made")]

use std::io;

/// From now on ps(1) and pgrep(1) see the process as this one string in place of its arguments. Environment variables
/// may be overwritten by a title that is longer than the arguments; they are to be read before.
///
/// # Errors
/// When the title has a zero in it, or the system does not say where the arguments are.
pub fn set_title(title: &str) -> io::Result<()> {
    let title = std::ffi::CString::new(title)?;
    set(&title)
}

#[cfg(not(target_os = "linux"))]
fn set(title: &std::ffi::CStr) -> io::Result<()> {
    // SAFETY: both are strings, and the first asks for just one more. A dash leaves out the program's name.
    unsafe { libc::setproctitle(c"-%s".as_ptr(), title.as_ptr()) };
    Ok(())
}

/// The kernel shows what is between two addresses. When the last byte there is no zero, it takes what begins there for
/// one string, up to its zero, even if that lies beyond: which is how a title of any length is shown without zeros
/// behind it.
#[cfg(target_os = "linux")]
fn set(title: &std::ffi::CStr) -> io::Result<()> {
    let (start, end, limit) = places()?;
    let bytes = title.to_bytes_with_nul();
    if start + bytes.len() > limit {
        return Err(io::Error::other("there is no room for it"));
    }
    for (at, byte) in (start..).zip(bytes) {
        // SAFETY: it is in the process's own stack, where the kernel put the arguments; the standard library copied
        // what it wants of them, or reads whole strings, which they stay.
        unsafe { (at as *mut u8).write_volatile(*byte) };
    }
    if start + bytes.len() < end {
        // SAFETY: as above; it is the zero of the last argument, and that of the environment ends the string now.
        unsafe { ((end - 1) as *mut u8).write_volatile(b' ') };
    }
    Ok(())
}

/// Where the arguments begin and end, and where what may be written ends.
#[cfg(target_os = "linux")]
fn places() -> io::Result<(usize, usize, usize)> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The second word is the program's name, which may have blanks; the third follows its parenthesis.
    let words: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let word = |n: usize| words.get(n - 3).and_then(|word| word.parse().ok()).filter(|at| *at != 0);
    let found = || Some((word(48)?, word(49)?, word(51)?));
    found().ok_or_else(|| io::Error::other("the kernel does not say where the arguments are"))
}
