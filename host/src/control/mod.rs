//! The control socket, by which other processes steer a running machine.
//!
//! A UNIX stream socket of mode 0600 that speaks JSON, one object a line. The server begins with `{"version":1}`.
//! Requests are `{"id":7,"verb":"status"}`, with arguments as further members; each gets one reply with its id,
//! `{"id":7,"ok":true}` with results as further members, or `{"id":7,"ok":false,"error":"..."}`. A line that is no
//! request is answered too, with the id null if it has none, and the connection goes on. Replies may come in another
//! order than the requests: that of `wait` comes when the machine ends. A request that needs a file may bring it along as
//! a descriptor (SCM_RIGHTS) with its line, and need then not be allowed to have the machine open it.
//!
//! The sockets of a user's machines lie in one directory, [`run_dir`], and carry the machines' names.

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

pub use client::{CallError, call, call_with};
pub use server::{Reply, Request, Server};

/// The version of the protocol.
pub const VERSION: u64 = 1;

/// The longest request, in bytes.
pub const MAX_LINE: usize = 64 << 10;

/// Results or arguments by name.
pub type Members = Map<String, Value>;

/// Where this user's machines have their sockets: `/var/run/bhyve-rs` for root, otherwise `$XDG_RUNTIME_DIR/bhyve-rs`,
/// or `/tmp/bhyve-rs-UID` where there is no such variable.
pub fn run_dir() -> PathBuf {
    run_dir_of(nix::unistd::geteuid().as_raw(), std::env::var_os("XDG_RUNTIME_DIR").as_deref())
}

fn run_dir_of(uid: u32, xdg: Option<&OsStr>) -> PathBuf {
    match xdg.map(Path::new) {
        // Whatever session root is in, the machines are the same.
        _ if uid == 0 => PathBuf::from("/var/run/bhyve-rs"),
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
