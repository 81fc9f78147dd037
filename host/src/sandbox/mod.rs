//! Confines the process that runs a guest, between the making of the machine and the guest's first instruction.
//!
//! What the process has open stays open, and it can make memory, threads and pipes. It can open nothing by name, connect
//! to nothing and bind nothing, run no program, signal and trace no other process, and change nothing about networks or
//! mounts. Such a call fails; it does not end the machine. For what the configuration allows by name there is the
//! [`broker`].
//!
//! FreeBSD: capability mode, capsicum(4). Linux: seccomp(2) for all threads by a list of the calls that are allowed, and
//! landlock(7), where the kernel has it, for the threads that are made from then on.
//!
//! What is shared with the guest is reached by names below an open directory. A directory's rights bound that on
//! FreeBSD. On Linux it needs the calls that take names, which seccomp(2) cannot tell from others of the kind: it lets
//! them through if there is a [`Shares`], and landlock(7) keeps the share's thread to its directory and the threads of
//! processors from all.

#[cfg(not(target_os = "linux"))]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
use freebsd as system;
#[cfg(target_os = "linux")]
use linux as system;

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};

use crate::broker;

/// What directories are shared with the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shares {
    /// None.
    #[default]
    None,
    /// Some, all of them to be read.
    Read,
    /// Some that the guest changes.
    Write,
}

/// Keeps this thread, and those that it makes, from all files but those below a directory. The rest of the process
/// goes its way.
///
/// # Errors
/// When the kernel lacks it.
pub(crate) fn keep_to(directory: BorrowedFd, read_only: bool) -> Result<()> {
    system::keep_to(directory, read_only)
}

/// Enters the sandbox, and says in a few words what it consists of. There is no way out.
///
/// # Errors
/// When the kernel lacks it; the process is then not confined, or not wholly.
pub fn enter(shares: Shares) -> Result<&'static str> {
    broker::seal().context("the broker")?;
    system::confine(shares).context("the sandbox cannot be entered; --no-sandbox runs without it")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::Command;

    use nix::errno::Errno;

    fn refused<T>(what: &str, result: std::io::Result<T>) {
        let errno = result.map(|_| ()).expect_err(what).raw_os_error();
        assert!(matches!(errno, Some(libc::EPERM | libc::EACCES)), "{what}: {errno:?}");
    }

    /// What a request to the interfaces of the host returns.
    fn interface_request(socket: &impl AsRawFd, request: libc::c_ulong) -> std::io::Result<()> {
        let mut room = [0u8; 64];
        // SAFETY: the structures of these requests are shorter.
        #[expect(unsafe_code, reason = "ioctl(2)")]
        let done = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut room) };
        if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }

    #[test]
    #[ignore = "run by the other test, in a process of its own"]
    fn inside() {
        let dir = std::env::temp_dir().join(format!("bhyve-rs-sandbox-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let file = dir.join("file");
        std::fs::write(&file, "open before").unwrap();
        let mut open = File::open(&file).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        // A thread that is there before it is confined with the others.
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let early = {
            let file = file.clone();
            std::thread::spawn(move || {
                wait.recv().unwrap();
                refused("open on another thread", File::open(file));
            })
        };
        super::enter(super::Shares::None).unwrap();
        go.send(()).unwrap();
        early.join().unwrap();

        refused("open", File::open(&file));
        refused("create", File::create(dir.join("new")));
        refused("unlink", std::fs::remove_file(&file));
        refused("rename", std::fs::rename(&file, dir.join("other")));
        refused("stat", std::fs::metadata(&file));
        refused("list", std::fs::read_dir(&dir));
        refused("chmod", std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o777)));
        refused("connect", TcpStream::connect(address));
        refused("bind", TcpListener::bind("127.0.0.1:0"));
        refused("connect, UNIX", UnixStream::connect(&file));
        refused("bind, UNIX", UnixListener::bind(dir.join("socket")));
        refused("run a program", Command::new("/bin/true").status());
        refused("signal another process", nix::sys::signal::kill(nix::unistd::getppid(), None).map_err(Errno::into));
        for request in [libc::SIOCGIFCONF, libc::SIOCSIFFLAGS, libc::SIOCSIFADDR] {
            refused("interface request", interface_request(&listener, request));
        }

        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "open before");
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"!").unwrap();
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"!");
        assert_eq!(std::thread::spawn(|| vec![1; 1 << 24].len()).join().unwrap(), 1 << 24);
        let (mine, yours) = UnixStream::pair().unwrap();
        drop((mine, yours));
        // For whoever started us to see, and to tidy up.
        println!("all of it {}", dir.display());
    }

    #[test]
    fn a_confined_process_keeps_what_it_has_and_reaches_for_nothing_more() {
        let us = std::env::current_exe().unwrap();
        let words = ["--exact", "sandbox::tests::inside", "--ignored", "--nocapture"];
        let out = Command::new(us).args(words).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        let dir = said.lines().find_map(|line| line.split_once("all of it ").map(|(_, dir)| dir.to_owned()));
        assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
        std::fs::remove_dir_all(dir.expect("it came to its end")).unwrap();
    }
}
