//! Starting the machines of the directory one after the other, and the record by which others see how far that is.
//!
//! In the run directory `.autostart.lock` is held by the process that starts machines, or stops them, and says which
//! it is; `.autostart.json` is the record, and `.autostart.log` what a process without a terminal said.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use host::process;
use serde::{Deserialize, Serialize};

use super::machine::{self, State};
use super::roster::{Fault, Guest, Roster};

/// How long a process that starts machines may take to come to an end.
const LAST_START: Duration = Duration::from_secs(10);

/// What the holder of the lock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// It starts machines.
    Start,
    /// It stops them.
    Stop,
}

/// Who holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// What it does.
    pub work: Work,
    /// Its process.
    pub pid: u32,
}

/// The lock that keeps those who start machines and those who stop them apart; given back when it is dropped.
pub struct Lock(#[expect(dead_code, reason = "held")] File);

impl Lock {
    /// Takes the lock, or says who has it.
    ///
    /// # Errors
    /// When the run directory does not have it.
    pub fn take(run: &Path, work: Work) -> Result<Result<Lock, Option<Holder>>> {
        let path = run.join(".autostart.lock");
        let what = || path.display().to_string();
        let mut options = OpenOptions::new();
        let open = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = open.with_context(what)?;
        match file.try_lock() {
            Ok(()) => {
                let text = serde_json::to_vec(&Holder { work, pid: std::process::id() })?;
                let written = file.set_len(0).and_then(|()| file.write_all(&text));
                written.with_context(what)?;
                Ok(Ok(Lock(file)))
            }
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                file.rewind().and_then(|()| file.read_to_string(&mut text)).with_context(what)?;
                // It may not have said yet who it is.
                Ok(Err(serde_json::from_str(&text).ok()))
            }
            Err(TryLockError::Error(e)) => Err(e).with_context(what),
        }
    }

    /// Takes the lock from whoever starts machines, once the start that is under way is over. Another process that stops
    /// machines keeps it.
    ///
    /// # Errors
    /// When the run directory does not have it.
    pub fn take_over(run: &Path) -> Result<Option<Lock>> {
        let begun = Instant::now();
        let mut told = false;
        loop {
            match Lock::take(run, Work::Stop)? {
                Ok(lock) => return Ok(Some(lock)),
                Err(Some(Holder { work: Work::Stop, .. })) => return Ok(None),
                Err(Some(Holder { pid, .. })) if begun.elapsed() > LAST_START => _ = process::kill(pid),
                Err(Some(Holder { pid, .. })) if !told => {
                    told = true;
                    let _ = process::terminate(pid);
                }
                Err(_) => {}
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// How far a machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "lowercase")]
pub enum Step {
    /// Others come first.
    Waiting,
    /// It is its turn at this time, in seconds since 1970.
    Delayed {
        /// The time.
        until: i64,
    },
    /// It is being started.
    Starting,
    /// It ran.
    Started,
    /// It does not start.
    Failed {
        /// The reason.
        why: String,
    },
}

/// How far all are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// By name.
    pub guests: BTreeMap<String, Step>,
}

impl Record {
    fn path(run: &Path) -> PathBuf {
        run.join(".autostart.json")
    }

    /// That of the last start, if there is one.
    pub fn read(run: &Path) -> Record {
        let text = std::fs::read(Record::path(run)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Forgets it.
    pub fn remove(run: &Path) {
        let _ = std::fs::remove_file(Record::path(run));
    }

    fn note(&mut self, run: &Path, name: &str, step: Step) {
        self.guests.insert(name.to_owned(), step);
        // For people to look at: no machine waits for a full disk.
        let fresh = run.join(".autostart.json.new");
        let text = serde_json::to_vec(self).unwrap_or_default();
        let _ = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, Record::path(run)));
    }
}

/// Starts those of the machines that are wanted, and returns what did not start. `end` ends it before the next one, and
/// `delays` is whether their delays are waited for.
pub fn run(
    run: &Path,
    roster: &Roster,
    wanted: &BTreeSet<String>,
    end: &Receiver<()>,
    delays: bool,
    told: &mut dyn FnMut(&str, Option<&str>),
) -> Vec<Fault> {
    let mut record = Record::default();
    let (guests, mut faults) = roster.plan(wanted);
    for guest in &guests {
        record.guests.insert(guest.name.clone(), Step::Waiting);
    }
    for fault in &faults {
        record.note(run, &fault.guest, Step::Failed { why: fault.why.clone() });
        told(&fault.guest, Some(&fault.why));
    }
    for guest in guests {
        match turn(run, roster, guest, &faults, &mut record, end, delays) {
            Ok(true) => {
                record.note(run, &guest.name, Step::Started);
                told(&guest.name, None);
            }
            Ok(false) => {
                record.guests.retain(|_, step| !matches!(step, Step::Waiting | Step::Delayed { .. }));
                record.note(run, &guest.name, Step::Failed { why: "the start was broken off".to_owned() });
                told(&guest.name, Some("the start is broken off here"));
                break;
            }
            Err(why) => {
                let why = format!("{why:#}");
                record.note(run, &guest.name, Step::Failed { why: why.clone() });
                told(&guest.name, Some(&why));
                faults.push(Fault { guest: guest.name.clone(), why });
            }
        }
    }
    faults
}

/// One machine's turn; false if that is the end of all.
fn turn(
    run: &Path,
    roster: &Roster,
    guest: &Guest,
    faults: &[Fault],
    record: &mut Record,
    end: &Receiver<()>,
    delays: bool,
) -> Result<bool> {
    if State::of(&machine::socket(guest, run)?) != State::Stopped {
        return Ok(true);
    }
    for before in &guest.after {
        if faults.iter().any(|fault| fault.guest == *before) {
            anyhow::bail!("it comes after {before}, which did not start");
        }
        // The plan knows that there is such a machine.
        let other = &roster.guests[before];
        if State::of(&machine::socket(other, run)?) == State::Stopped {
            anyhow::bail!("it comes after {before}, which does not run");
        }
    }
    let delay = if delays { guest.delay } else { Duration::ZERO };
    if !delay.is_zero() {
        let until = crate::config::now() + delay.as_secs() as i64;
        record.note(run, &guest.name, Step::Delayed { until });
    }
    match end.recv_timeout(delay) {
        Err(RecvTimeoutError::Timeout) => {}
        Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(false),
    }
    record.note(run, &guest.name, Step::Starting);
    machine::start(guest, run)?;
    Ok(true)
}

/// Lets another process start the machines, and returns at once.
///
/// # Errors
/// When there is no such process.
pub fn leave(run: &Path, dir: &Path) -> Result<()> {
    let log = run.join(".autostart.log");
    let mut options = OpenOptions::new();
    // That of the last start; each says what there is to say again.
    let out = options.create(true).write(true).truncate(true).mode(0o600).open(&log);
    let out = out.with_context(|| log.display().to_string())?;
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.arg("--run-dir").arg(run).args(["autostart", "start", "--in-background", "--dir"]).arg(dir);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    // Whoever waits for the end of what they have started waits not for this.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().context("cannot start a process")?;
    Ok(())
}
