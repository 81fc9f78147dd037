//! `bhyve-rs autostart`: the machines that start and stop with the host, each a file of the guests' directory with its
//! `[autostart]`. rc.d and systemd call it.

mod machine;
mod roster;
mod sequence;
mod stop;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, Subcommand};
use host::control;
use host::process;
use serde_json::json;

pub use self::machine::State;
pub use self::roster::Roster;
use self::roster::{Fault, Guest};
use self::sequence::{Lock, Record, Step, Work};
use self::stop::{How, Running};
use crate::SUCCESS;
use crate::tell::{self, Tone, say, table};

/// The exit status when it is done, but not for every machine.
const SOME_FAILED: u8 = 1;

/// Where the guests' files are.
pub const GUESTS: &str = if cfg!(target_os = "linux") { "/etc/bhyve-rs" } else { "/usr/local/etc/bhyve-rs" };

/// How long stopping may take: less than what FreeBSD gives rc.shutdown(8), 90 s, and init(8) that, 120 s.
pub const STOP_SECONDS: u64 = 75;
/// What the others need that are stopped at the same time.
const OTHERS: u64 = 5;

/// Start and stop the machines of the guests' directory, as they are to with the host.
///
/// Exits with 0 if all is as it should be, with 1 if that is not so for one of the machines, and with 4 on errors.
#[derive(Args)]
pub struct Autostart {
    #[command(subcommand)]
    action: Action,
}

/// Machines of a directory.
#[derive(Args)]
struct Which {
    /// Their names [default: start, restart and status: those with autostart.enabled; stop: all that run].
    names: Vec<String>,
    /// The guests' directory, with a file NAME.toml for each.
    #[arg(long, value_name = "DIR", default_value = GUESTS)]
    dir: PathBuf,
}

#[derive(Subcommand)]
enum Action {
    /// Start machines in their order; without names in the background, with their delays.
    Start {
        #[command(flatten)]
        which: Which,
        /// Wait until all have been started.
        #[arg(long)]
        wait: bool,
        #[arg(long, hide = true)]
        in_background: bool,
    },
    /// Stop machines, all at a time, but none before those that come after it.
    Stop {
        #[command(flatten)]
        which: Which,
        /// Time for all of it; what is not down by then has its power cut.
        #[arg(long, value_name = "SECONDS", default_value_t = STOP_SECONDS)]
        timeout: u64,
    },
    /// Stop machines that run, and start them.
    Restart {
        #[command(flatten)]
        which: Which,
        /// Time for stopping.
        #[arg(long, value_name = "SECONDS", default_value_t = STOP_SECONDS)]
        timeout: u64,
    },
    /// Show the machines of the directory. Exits with 0 if those that are to start with the host, or are named, run.
    Status {
        #[command(flatten)]
        which: Which,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Start the machine of a file with the rights of a user.
    #[command(hide = true)]
    As { user: String, file: PathBuf },
}

impl Autostart {
    /// Does it and returns the exit status; `run` is the run directory.
    ///
    /// # Errors
    /// One line for the user.
    pub fn run(&self, run: &Path) -> Result<u8> {
        match &self.action {
            Action::As { user, file } => return machine::start_as(user, run, file),
            _ => control::make_run_dir(run)?,
        }
        match &self.action {
            Action::Start { which, in_background: true, .. } => start_all(run, which, true),
            Action::Start { which, wait, .. } => start(run, which, *wait),
            Action::Stop { which, timeout } => stop(run, which, Duration::from_secs(*timeout)),
            Action::Restart { which, timeout } => restart(run, which, Duration::from_secs(*timeout)),
            Action::Status { which, json } => status(run, which, *json),
            Action::As { .. } => Ok(SUCCESS),
        }
    }
}

fn complain(guest: &str, why: &str) {
    // The errors of a file say themselves where.
    for line in why.lines() {
        eprintln!("bhyve-rs: {guest}: {line}");
    }
}

/// Those that are to start with the host.
fn enabled(roster: &Roster) -> BTreeSet<String> {
    roster.guests.values().filter(|guest| guest.enabled).map(|guest| guest.name.clone()).collect()
}

/// Those of the names that there are, and a complaint for each of the others.
fn named(roster: &Roster, names: &[String]) -> (BTreeSet<String>, bool) {
    let mut known = BTreeSet::new();
    for name in names {
        match roster.faults.iter().find(|fault| fault.guest == *name) {
            _ if roster.guests.contains_key(name) => _ = known.insert(name.clone()),
            Some(fault) => complain(name, &fault.why),
            None => complain(name, "there is no such machine in the guests' directory"),
        }
    }
    let all = names.iter().all(|name| known.contains(name));
    (known, all)
}

fn start(run: &Path, which: &Which, wait: bool) -> Result<u8> {
    if which.names.is_empty() && wait {
        return start_all(run, which, false);
    }
    let roster = Roster::read(&which.dir)?;
    if !which.names.is_empty() {
        return start_named(run, &roster, &which.names);
    }
    let wanted = enabled(&roster);
    let (_, faults) = roster.plan(&wanted);
    let faults: Vec<&Fault> = roster.faults.iter().chain(&faults).collect();
    faults.iter().for_each(|fault| complain(&fault.guest, &fault.why));
    if !wanted.is_empty() {
        sequence::leave(run, &std::path::absolute(&which.dir)?)?;
    }
    Ok(if faults.is_empty() { SUCCESS } else { SOME_FAILED })
}

/// Starts machines that somebody asked for: at once.
fn start_named(run: &Path, roster: &Roster, names: &[String]) -> Result<u8> {
    let (wanted, all) = named(roster, names);
    let (_hold, end) = channel();
    let faults = sequence::run(run, roster, &wanted, &end, false, &mut told);
    Ok(if all && faults.is_empty() { SUCCESS } else { SOME_FAILED })
}

fn told(name: &str, why: Option<&str>) {
    match why {
        None => say(&format!("{name}: runs")),
        Some(why) => complain(name, why),
    }
}

/// Starts what is to start with the host, to the end.
fn start_all(run: &Path, which: &Which, background: bool) -> Result<u8> {
    let lock = match Lock::take(run, Work::Start)? {
        Ok(lock) => lock,
        Err(holder) => {
            let process = holder.map_or_else(String::new, |holder| format!(" (process {})", holder.pid));
            let busy = match holder.map(|holder| holder.work) {
                Some(Work::Stop) => "stopped",
                _ => "started",
            };
            eprintln!("bhyve-rs: machines are being {busy} already{process}");
            return Ok(SOME_FAILED);
        }
    };
    let (tell, end) = channel();
    host::watch_signals(move |_| _ = tell.send(()))?;
    let roster = Roster::read(&which.dir)?;
    for fault in &roster.faults {
        complain(&fault.guest, &fault.why);
    }
    let mut heard = |name: &str, why: Option<&str>| {
        told(name, why);
        if let Some(why) = why.filter(|_| background) {
            log_to_system(name, why);
        }
    };
    if background {
        roster.faults.iter().for_each(|fault| log_to_system(&fault.guest, &fault.why));
    }
    let faults = sequence::run(run, &roster, &enabled(&roster), &end, true, &mut heard);
    drop(lock);
    Ok(if roster.faults.is_empty() && faults.is_empty() { SUCCESS } else { SOME_FAILED })
}

/// Where nobody looks on, failures go to syslog as well.
fn log_to_system(name: &str, why: &str) {
    if process::user() == 0 {
        let mut logger = Command::new("logger");
        logger.args(["-t", "bhyve_rs", "-p", "daemon.err", &format!("{name}: {why}")]);
        let _ = logger.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// What runs: of the directory, and whatever else has a control socket in the run directory.
fn running(run: &Path, roster: &Roster) -> Result<Vec<Running>> {
    let mut places: Vec<(String, PathBuf, Vec<String>)> = Vec::new();
    for guest in roster.guests.values() {
        // Without its user there is no machine of it either.
        if let Ok(socket) = machine::socket(guest, run) {
            places.push((guest.name.clone(), socket, guest.after.clone()));
        }
    }
    for entry in std::fs::read_dir(run)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let known = places.iter().any(|(_, socket, _)| *socket == path);
        if path.extension().is_some_and(|ending| ending == "sock") && !known && !name.starts_with('.') {
            places.push((name, path, Vec::new()));
        }
    }
    // One that does not answer costs its time once, and not once for each.
    let states: Vec<State> = std::thread::scope(|scope| {
        let asked: Vec<_> = places.iter().map(|(_, socket, _)| scope.spawn(|| State::of(socket))).collect();
        let silent = || State::Silent("nobody could ask it".to_owned());
        asked.into_iter().map(|thread| thread.join().unwrap_or_else(|_| silent())).collect()
    });
    let machines = places.into_iter().zip(states).filter(|(_, state)| *state != State::Stopped);
    Ok(machines.map(|((name, socket, after), state)| Running { name, socket, after, state }).collect())
}

fn stop(run: &Path, which: &Which, limit: Duration) -> Result<u8> {
    if which.names.is_empty() {
        exceeding(limit.as_secs()).iter().for_each(|warning| eprintln!("bhyve-rs: warning: {warning}"));
    }
    // A directory that is gone is no reason to leave machines running.
    let roster = Roster::read(&which.dir).unwrap_or_default();
    if which.names.is_empty() {
        return stop_those(run, &roster, None, limit);
    }
    let names: BTreeSet<String> = which.names.iter().cloned().collect();
    stop_those(run, &roster, Some(&names), limit)
}

/// Stops what runs of `names`, or all that runs.
fn stop_those(run: &Path, roster: &Roster, names: Option<&BTreeSet<String>>, limit: Duration) -> Result<u8> {
    let begun = Instant::now();
    // Who starts machines would go on behind our back.
    let _lock = if names.is_none() { Lock::take_over(run)? } else { None };
    let mut machines = running(run, roster)?;
    if let Some(names) = names {
        for name in names.iter().filter(|name| !machines.iter().any(|machine| machine.name == **name)) {
            say(&format!("{name}: does not run"));
        }
        for other in machines.iter().filter(|machine| !names.contains(&machine.name)) {
            for name in other.after.iter().filter(|name| names.contains(*name)) {
                eprintln!("bhyve-rs: warning: {} runs, and comes after {name}", other.name);
            }
        }
        machines.retain(|machine| names.contains(&machine.name));
    } else {
        Record::remove(run);
    }
    let told = |name: &str, how: &How, took: Duration| {
        let seconds = took.as_secs_f64();
        match how {
            How::Cleanly => say(&format!("{name}: stopped in {seconds:.1} s")),
            How::Forced => complain(name, &format!("it has not stopped in {seconds:.1} s; its power was cut")),
            How::Not(why) => complain(name, why),
        }
    };
    let ended = stop::all(&machines, limit.saturating_sub(begun.elapsed()), &told);
    Ok(if ended.iter().all(|how| *how == How::Cleanly) { SUCCESS } else { SOME_FAILED })
}

fn restart(run: &Path, which: &Which, limit: Duration) -> Result<u8> {
    let roster = Roster::read(&which.dir)?;
    if which.names.is_empty() {
        let stopped = stop_those(run, &roster, Some(&enabled(&roster)), limit)?;
        return Ok(stopped.max(start(run, which, false)?));
    }
    let (known, all) = named(&roster, &which.names);
    let stopped = stop_those(run, &roster, Some(&known), limit)?;
    let started = start_named(run, &roster, &known.into_iter().collect::<Vec<_>>())?;
    Ok(stopped.max(started).max(if all { SUCCESS } else { SOME_FAILED }))
}

/// The host's own limits that a stop of so many seconds, and what else is to be stopped, is too long for.
pub fn exceeding(seconds: u64) -> Vec<String> {
    let ask = |program: &str, name: &str| -> Option<u64> {
        let out = Command::new(program).args(["-n", name]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        String::from_utf8_lossy(&out.stdout).trim().parse().ok()
    };
    let limits = [
        ("rcshutdown_timeout", ask("sysrc", "rcshutdown_timeout"), "sysrc rcshutdown_timeout="),
        (
            "kern.init_shutdown_timeout",
            ask("sysctl", "kern.init_shutdown_timeout"),
            "sysctl kern.init_shutdown_timeout=",
        ),
    ];
    // 0 is no limit.
    let over = limits.into_iter().filter_map(|(name, limit, cure)| Some((name, limit.filter(|l| *l > 0)?, cure)));
    over.filter(|(_, limit, _)| seconds + OTHERS > *limit)
        .map(|(name, limit, cure)| {
            let fits = limit.saturating_sub(OTHERS);
            let more = seconds + OTHERS;
            format!(
                "machines may take {seconds} s to stop, but {name} is {limit} s: sysrc bhyve_rs_timeout={fits}, or {cure}{more}"
            )
        })
        .collect()
}

/// What is shown of a machine.
struct Line {
    guest: Option<Guest>,
    name: String,
    state: State,
    fault: Option<String>,
    step: Option<Step>,
}

impl Line {
    /// As it should be, to be looked at, or wrong; and why.
    fn verdict(&self) -> (Tone, Option<String>) {
        let enabled = self.guest.as_ref().is_some_and(|guest| guest.enabled);
        match (&self.state, &self.fault, &self.step) {
            (State::Running(_), None, _) => (Tone::Good, None),
            (_, Some(fault), _) => (Tone::Bad, Some(fault.clone())),
            (State::Silent(why), ..) => (Tone::Bad, Some(why.clone())),
            (State::Stopped, _, Some(Step::Failed { why })) => (Tone::Bad, Some(why.clone())),
            (State::Stopped, _, Some(Step::Waiting)) => (Tone::Warning, Some("others start first".to_owned())),
            (State::Stopped, _, Some(Step::Delayed { until })) => {
                let left = (until - crate::config::now()).max(0);
                (Tone::Warning, Some(format!("starts in {left} s")))
            }
            (State::Stopped, _, Some(Step::Starting)) => (Tone::Warning, Some("is being started".to_owned())),
            (State::Stopped, ..) if enabled => (Tone::Warning, None),
            (State::Stopped, ..) => (Tone::Good, None),
        }
    }

    fn row(&self) -> (Vec<String>, Tone) {
        let (tone, why) = self.verdict();
        let dash = || "-".to_owned();
        let (auto, order, after) = match &self.guest {
            None => (dash(), dash(), dash()),
            Some(guest) => {
                let after = if guest.after.is_empty() { dash() } else { guest.after.join(",") };
                (if guest.enabled { "yes" } else { "no" }.to_owned(), guest.order.to_string(), after)
            }
        };
        let pid = self.state.process("pid").map_or_else(dash, |pid| pid.to_string());
        let word = self.state.word();
        // The rest of several lines is for `check`.
        let why = why.and_then(|why| why.lines().next().map(str::to_owned));
        let state = why.map_or_else(|| word.to_owned(), |why| format!("{word}: {why}"));
        (vec![self.name.clone(), auto, order, after, pid, state], tone)
    }

    fn json(&self) -> serde_json::Value {
        let guest = self.guest.as_ref();
        json!({
            "name": self.name,
            "file": guest.map(|guest| guest.file.display().to_string()),
            "enabled": guest.map(|guest| guest.enabled),
            "order": guest.map(|guest| guest.order),
            "after": guest.map(|guest| &guest.after),
            "delay": guest.map(|guest| guest.delay.as_secs_f64()),
            "restart": guest.map(|guest| &guest.restart),
            "user": guest.map(|guest| &guest.user),
            "state": self.state.word(),
            "pid": self.state.process("pid"),
            "why": self.verdict().1,
        })
    }
}

fn status(run: &Path, which: &Which, as_json: bool) -> Result<u8> {
    let roster = Roster::read(&which.dir)?;
    let record = Record::read(run);
    let mut machines = running(run, &roster)?;
    let (_, faults) = roster.plan(&enabled(&roster));
    let mut lines: Vec<Line> = Vec::new();
    let mut planned: Vec<&Guest> = roster.guests.values().collect();
    planned.sort_by_key(|guest| (guest.order, &guest.name));
    for guest in planned {
        let at = machines.iter().position(|machine| machine.name == guest.name);
        let state = at.map_or(State::Stopped, |at| machines.remove(at).state);
        let fault = machine::socket(guest, run).err().map(|e| format!("{e:#}"));
        let fault = fault.or_else(|| faults.iter().find(|fault| fault.guest == guest.name).map(|f| f.why.clone()));
        let step = record.guests.get(&guest.name).cloned();
        lines.push(Line { guest: Some(guest.clone()), name: guest.name.clone(), state, fault, step });
    }
    for fault in &roster.faults {
        let at = machines.iter().position(|machine| machine.name == fault.guest);
        let state = at.map_or(State::Stopped, |at| machines.remove(at).state);
        let (name, fault) = (fault.guest.clone(), Some(fault.why.clone()));
        lines.push(Line { guest: None, name, state, fault, step: None });
    }
    for machine in machines {
        lines.push(Line { guest: None, name: machine.name, state: machine.state, fault: None, step: None });
    }
    if !which.names.is_empty() {
        if let Some(unknown) = which.names.iter().find(|name| !lines.iter().any(|line| line.name == **name)) {
            complain(unknown, "there is no such machine in the guests' directory");
            return Ok(SOME_FAILED);
        }
        lines.retain(|line| which.names.contains(&line.name));
    }
    if as_json {
        println!("{}", json!(lines.iter().map(Line::json).collect::<Vec<_>>()));
    } else if !tell::quiet() {
        let rows: Vec<_> = lines.iter().map(Line::row).collect();
        print!("{}", table(&["NAME", "AUTO", "ORDER", "AFTER", "PID", "STATE"], &rows));
    }
    let as_wanted = |line: &Line| match line.state {
        State::Running(_) => true,
        _ if !which.names.is_empty() => false,
        _ => line.fault.is_none() && !line.guest.as_ref().is_some_and(|guest| guest.enabled),
    };
    Ok(if lines.iter().all(as_wanted) { SUCCESS } else { SOME_FAILED })
}
