//! Other users and other processes, for what starts and stops machines with the host.

use std::ffi::CString;
use std::fs::DirBuilder;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

use nix::sys::signal::{Signal, kill as send};
use nix::unistd::{Gid, Pid, Uid, User, geteuid, initgroups, setgid, setuid};

/// The number of the user whose rights the process has.
pub fn user() -> u32 {
    geteuid().as_raw()
}

/// The number of a user, if there is one of the name.
///
/// # Errors
/// When the system cannot say.
pub fn user_number(name: &str) -> io::Result<Option<u32>> {
    Ok(User::from_name(name)?.map(|user| user.uid.as_raw()))
}

/// Takes a user's rights, groups included, for good.
///
/// # Errors
/// When there is no such user, or the process is not root's.
pub fn become_user(name: &str) -> io::Result<()> {
    let user = User::from_name(name)?.ok_or_else(|| io::Error::new(ErrorKind::NotFound, "there is no such user"))?;
    let name = CString::new(name).map_err(|_| ErrorKind::InvalidInput)?;
    initgroups(&name, user.gid)?;
    setgid(Gid::from_raw(user.gid.as_raw()))?;
    setuid(Uid::from_raw(user.uid.as_raw()))?;
    Ok(())
}

/// Makes a directory that is a user's alone, unless it is there.
///
/// # Errors
/// When it cannot be made.
pub fn make_dir(path: &Path, owner: u32) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => chown(path, Some(owner), None),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// Whether a process of this number holds anything. Where the host has no /proc, one that only waits for its parent
/// counts as well.
pub fn exists(pid: u32) -> bool {
    let Some(number) = i32::try_from(pid).ok().filter(|pid| *pid > 0) else { return false };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let zombie = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
    !zombie && send(Pid::from_raw(number), None) != Err(nix::errno::Errno::ESRCH)
}

/// The process that listens at a socket, also if it is stopped, where the host says so: Linux does.
#[cfg(target_os = "linux")]
pub fn listener(socket: &Path) -> Option<u32> {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    let stream = mio::net::UnixStream::connect(socket).ok()?;
    let peer = getsockopt(&stream, PeerCredentials).ok()?;
    u32::try_from(peer.pid()).ok()
}

/// The process that listens at a socket, where the host says so.
#[cfg(not(target_os = "linux"))]
pub fn listener(_: &Path) -> Option<u32> {
    None
}

/// The parent of a process if that was called with this word, where the host has a /proc.
pub fn parent_called(pid: u32, word: &str) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
    let words = std::fs::read(format!("/proc/{parent}/cmdline")).ok()?;
    words.split(|byte| *byte == 0).any(|own| own == word.as_bytes()).then_some(parent)
}

/// Sends SIGTERM to a process.
///
/// # Errors
/// When it is gone, or somebody else's.
pub fn terminate(pid: u32) -> io::Result<()> {
    signal(pid, Signal::SIGTERM)
}

/// Sends SIGKILL to a process.
///
/// # Errors
/// When it is gone, or somebody else's.
pub fn kill(pid: u32) -> io::Result<()> {
    signal(pid, Signal::SIGKILL)
}

fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    // 0 and negative numbers are groups of processes.
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(ErrorKind::InvalidInput)?;
    Ok(send(Pid::from_raw(pid), signal)?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_that_only_waits_for_its_parent_holds_nothing() {
        assert!(exists(std::process::id()) && !exists(0) && !exists(u32::MAX));
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep(1)");
        assert!(exists(child.id()));
        assert_eq!(parent_called(child.id(), "no such word"), None);
        kill(child.id()).expect("killed");
        if cfg!(target_os = "linux") {
            while exists(child.id()) {
                std::thread::yield_now();
            }
        }
        child.wait().expect("its end");
        assert!(!exists(child.id()));
    }
}
