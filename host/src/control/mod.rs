//! The control socket, by which other processes steer a running machine.
//!
//! A UNIX stream socket of mode 0600 that speaks JSON, one object a line. The server begins with `{"version":1}`.
//! Requests are `{"id":7,"verb":"status"}`, with arguments as further members; each gets one reply with its id,
//! `{"id":7,"ok":true}` with results as further members, or `{"id":7,"ok":false,"error":"..."}`. A line that is no
//! request is answered too, with the id null if it has none, and the connection goes on. Replies may come in another
//! order than the requests: that of `wait` comes when the machine ends. After `events` come lines with an `event` and no
//! `id`, as things happen. docs/CONTROL.md has it all. A request that needs a file may bring it along as
//! a descriptor (SCM_RIGHTS) with its line, and need then not be allowed to have the machine open it.
//!
//! The sockets of a user's machines lie in one directory, [`run_dir`], and carry the machines' names.

mod client;
mod events;
mod server;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

pub use client::{CallError, Calls, call, call_with};
pub use events::Events;
pub use server::{Reply, Request, Server};

/// The version of the protocol.
pub const VERSION: u64 = 1;

/// Where root's machines have their sockets.
const SYSTEM_DIR: &str = "/var/run/bhyve-rs";

/// The longest request, in bytes.
pub const MAX_LINE: usize = 64 << 10;

/// Results or arguments by name.
pub type Members = Map<String, Value>;

/// Where this user's machines have their sockets: `$BHYVE_RS_RUN_DIR`, else `/var/run/bhyve-rs` for root,
/// `$XDG_RUNTIME_DIR/bhyve-rs` for others, or `/tmp/bhyve-rs-UID` where there is no such variable.
pub fn run_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("BHYVE_RS_RUN_DIR").filter(|dir| !dir.is_empty()) {
        return dir.into();
    }
    run_dir_of(nix::unistd::geteuid().as_raw(), std::env::var_os("XDG_RUNTIME_DIR").as_deref())
}

fn run_dir_of(uid: u32, xdg: Option<&OsStr>) -> PathBuf {
    match xdg.map(Path::new) {
        // Whatever session root is in, the machines are the same.
        _ if uid == 0 => PathBuf::from(SYSTEM_DIR),
        Some(xdg) if xdg.is_absolute() => xdg.join("bhyve-rs"),
        _ => PathBuf::from(format!("/tmp/bhyve-rs-{uid}")),
    }
}

/// Makes the directory `dir` for sockets, mode 0700, if it is not there.
///
/// # Errors
/// When it cannot be made, or when others have made it or can get into it.
pub fn make_run_dir(dir: &Path) -> Result<()> {
    let what = || format!("run directory {}", dir.display());
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e).with_context(what),
        _ => {}
    }
    let there = std::fs::symlink_metadata(dir).with_context(what)?;
    if !there.is_dir() {
        bail!("{}: it is no directory", what());
    }
    if there.uid() != nix::unistd::geteuid().as_raw() {
        bail!("{}: it belongs to user {}", what(), there.uid());
    }
    if there.mode() & 0o077 != 0 {
        bail!("{}: its mode is {:o}, but only its owner may have access (0700)", what(), there.mode() & 0o7777);
    }
    Ok(())
}

/// The socket of the machine `name` in `dir`.
pub fn socket_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.sock"))
}

/// The socket of a console of the machine `name` in `dir`: bytes, and no protocol.
pub fn console_path(dir: &Path, name: &str, port: &str) -> PathBuf {
    dir.join(format!("{name}.{port}"))
}

/// Makes the directory of the logs of machines in the background whose sockets are in `dir`: `$BHYVE_RS_LOG_DIR`,
/// `/var/log/bhyve-rs` for those in `/var/run/bhyve-rs`, or `dir` itself.
///
/// # Errors
/// As [`make_run_dir`].
pub fn make_log_dir(dir: &Path) -> Result<PathBuf> {
    let logs = log_dir(dir);
    make_run_dir(&logs).map(|()| logs)
}

/// That directory.
pub fn log_dir(dir: &Path) -> PathBuf {
    match std::env::var_os("BHYVE_RS_LOG_DIR").filter(|dir| !dir.is_empty()) {
        Some(logs) => logs.into(),
        None if dir == Path::new(SYSTEM_DIR) => PathBuf::from("/var/log/bhyve-rs"),
        None => dir.to_owned(),
    }
}

/// What the process of the machine `name` has to say, in the directory of the logs.
pub fn machine_log(logs: &Path, name: &str) -> PathBuf {
    logs.join(format!("{name}.log"))
}

/// What came out of a console of it.
pub fn console_log(logs: &Path, name: &str, port: &str) -> PathBuf {
    logs.join(format!("{name}.{port}.out"))
}

/// Removes the sockets in `dir` that no process has open: those of machines that were cut off, with their host perhaps.
///
/// # Errors
/// When the directory cannot be read.
pub fn sweep(dir: &Path) -> Result<()> {
    let what = || format!("run directory {}", dir.display());
    let lock = match std::fs::File::open(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        open => open.with_context(what)?,
    };
    // Whoever makes a control socket holds it.
    lock.lock().with_context(what)?;
    for entry in std::fs::read_dir(dir).with_context(what)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            crate::unix::remove_dead(&entry.path());
        }
    }
    Ok(())
}
