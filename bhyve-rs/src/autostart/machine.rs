//! A machine of the directory as other processes see it: where it runs, and whether.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use host::control::{self, CallError, Members};
use host::process;
use serde_json::Value;

use super::roster::Guest;
use crate::remote;

/// How long a machine may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a machine is.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Nobody listens at its socket.
    Stopped,
    /// It answers; its status.
    Running(Members),
    /// It is there and does not answer; why.
    Silent(String),
}

impl State {
    /// That of the machine whose control socket is this.
    pub fn of(socket: &Path) -> State {
        match control::call(socket, "status", &Members::new(), Some(PATIENCE)) {
            Ok(status) => State::Running(status),
            Err(CallError::NotRunning(_)) => State::Stopped,
            Err(e) => State::Silent(e.to_string()),
        }
    }

    /// In a word.
    pub fn word(&self) -> &str {
        match self {
            State::Stopped => "stopped",
            State::Running(status) => status.get("state").and_then(Value::as_str).unwrap_or("running"),
            State::Silent(_) => "silent",
        }
    }

    /// The process that is this to it: `pid`, its own, or `keeper`, that of who starts it again.
    pub fn process(&self, which: &str) -> Option<u32> {
        match self {
            State::Running(status) => status.get(which).and_then(Value::as_u64).and_then(|pid| pid.try_into().ok()),
            _ => None,
        }
    }
}

/// The directory of a machine's control socket: that of the others, or for another user's machine one beside it that
/// is that user's.
///
/// # Errors
/// When there is no such user.
pub fn run_dir(guest: &Guest, dir: &Path) -> Result<PathBuf> {
    let Some(user) = &guest.user else { return Ok(dir.to_owned()) };
    let number = process::user_number(user).with_context(|| format!("autostart.user: {user}"))?;
    let number = number.ok_or_else(|| anyhow!("autostart.user: there is no user {user:?}"))?;
    if number == process::user() {
        return Ok(dir.to_owned());
    }
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(format!("-{number}"));
    Ok(dir.with_file_name(name))
}

/// The control socket of a machine.
///
/// # Errors
/// When its user does not exist.
pub fn socket(guest: &Guest, dir: &Path) -> Result<PathBuf> {
    Ok(control::socket_path(&run_dir(guest, dir)?, &guest.name))
}

/// Starts a machine, and returns when it runs.
///
/// # Errors
/// Why it does not.
pub fn start(guest: &Guest, dir: &Path) -> Result<()> {
    let own = run_dir(guest, dir)?;
    let Some(user) = guest.user.as_deref().filter(|_| own != *dir) else {
        return remote::start(dir, &guest.file, &[]).map(|_| ());
    };
    if process::user() != 0 {
        bail!("autostart.user is {user:?}, and only root starts machines of others");
    }
    let number = process::user_number(user)?.unwrap_or_default();
    process::make_dir(&own, number).with_context(|| own.display().to_string())?;
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.arg("--run-dir").arg(&own).args(["autostart", "as", user]).arg(&guest.file);
    let out = command.stdin(Stdio::null()).output().context("cannot start a process")?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    bail!("{}", said.trim().trim_start_matches("bhyve-rs: "))
}

/// The other end: starts the machine of a file with the rights of a user.
///
/// # Errors
/// Why it does not run.
pub fn start_as(user: &str, dir: &Path, file: &Path) -> Result<u8> {
    process::become_user(user).with_context(|| format!("cannot take the rights of {user}"))?;
    remote::start(dir, file, &[])
}
