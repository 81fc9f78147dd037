//! Listening UNIX sockets in the file system, for their owner only.

use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen as listen_on, socket,
};

use crate::broker::Name;

/// Listens at `path`, mode 0600. The socket of a process that is gone is replaced.
///
/// # Errors
/// When somebody listens there, when something else has the name, or what the system says.
pub(crate) fn listen(path: &Path) -> io::Result<(UnixListener, Name)> {
    let address = UnixAddr::new(path).map_err(|e| match e {
        Errno::ENAMETOOLONG => io::Error::new(ErrorKind::InvalidFilename, "the path is too long for a socket's name"),
        e => e.into(),
    })?;
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    match bind(fd.as_raw_fd(), &address) {
        Err(Errno::EADDRINUSE) => {
            remove_stale(path, &address)?;
            bind(fd.as_raw_fd(), &address)?;
        }
        bound => bound?,
    }
    let name = Name::of(path)?;
    // Nobody connects before it listens, so there is no moment at which the mode is wrong.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listen_on(&fd, Backlog::new(16)?)?;
    Ok((UnixListener::from(fd), name))
}

/// Removes a socket that nobody has open; anything else stays.
pub(crate) fn remove_dead(path: &Path) {
    if let Ok(address) = UnixAddr::new(path) {
        let _ = remove_stale(path, &address);
    }
}

/// Removes a socket that nobody has open.
fn remove_stale(path: &Path, address: &UnixAddr) -> io::Result<()> {
    if !std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "it exists and is no socket"));
    }
    // A socket of another type tells a live one (EPROTOTYPE) from a dead one without becoming its client.
    let probe = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    match connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) => std::fs::remove_file(path),
        Ok(()) | Err(Errno::EPROTOTYPE) => Err(io::Error::new(ErrorKind::AddrInUse, "another process listens there")),
        Err(e) => Err(e.into()),
    }
}
