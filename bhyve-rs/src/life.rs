//! The life of machines as their users see it: which there are, what happens to them, how they end, and what they said.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use host::control::{self, CallError, Calls, Members};
use serde_json::{Value, json};

use crate::remote::{self, PATIENCE, TIMED_OUT, answered, name_of};
use crate::tell::say;
use crate::{SUCCESS, compat};

/// How long one of many machines may take to answer.
const GLANCE: Duration = Duration::from_secs(2);
/// How long the process after one that crashed may take until it is there; nobody has said that there will be one.
const AFTER_CRASH: Duration = Duration::from_secs(5);
/// How long the process may take that was announced.
const ANNOUNCED: Duration = Duration::from_secs(60);
/// Between two looks for that.
const BRIEFLY: Duration = Duration::from_millis(20);
/// How often a file that grows is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Shows the machines that run, and tidies up behind those that were cut off.
#[derive(Args)]
pub struct List {
    /// As JSON: an array of what `status --json` shows.
    #[arg(long)]
    json: bool,
}

impl List {
    /// Shows them.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn run(&self, dir: &Path) -> Result<u8> {
        let machines = machines(dir)?;
        if self.json {
            println!("{}", Value::from(machines));
            return Ok(SUCCESS);
        }
        let text = |machine: &Value, key: &str| match &machine[key] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let mut rows = vec![["NAME", "STATE", "PID", "CPUS", "MEMORY", "BACKEND", "UP"].map(str::to_owned)];
        for machine in &machines {
            let memory = machine["memory"].as_u64().map_or("-".to_owned(), |bytes| format!("{}M", bytes >> 20));
            let up = machine["started"].as_u64().map_or("-".to_owned(), |then| span(now().saturating_sub(then)));
            let [name, state, pid, cpus, backend] =
                ["name", "state", "pid", "cpus", "backend"].map(|key| text(machine, key));
            rows.push([name, state, pid, cpus, memory, backend, up]);
        }
        let width = |n: usize| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        for row in &rows {
            let cells: String = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
            println!("{cells}{}", row[6]);
        }
        Ok(SUCCESS)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A time in the two largest of its units.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// The status of each machine whose socket is in the directory, by name.
fn machines(dir: &Path) -> Result<Vec<Value>> {
    control::sweep(dir)?;
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| dir.display().to_string())?,
    };
    let mut sockets: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    sockets.retain(|path| path.extension().is_some_and(|extension| extension == "sock"));
    sockets.sort();
    let mut machines = Vec::new();
    for socket in sockets {
        match control::call(&socket, "status", &Members::new(), Some(GLANCE)) {
            Ok(status) => machines.push(Value::from(status)),
            // It has ended since we looked.
            Err(CallError::NotRunning(_)) => {}
            Err(e) => {
                machines.push(json!({ "name": name_of(&socket), "state": "silent", "error": e.to_string() }));
            }
        }
    }
    Ok(machines)
}

/// Shows what happens to a machine, a line an event, until it ends.
#[derive(Args)]
pub struct Events {
    /// Its name.
    name: String,
    /// As JSON, an object a line.
    #[arg(long)]
    json: bool,
    /// Begin with the event of this number; 0: with all that are kept.
    #[arg(long, value_name = "SEQ")]
    since: Option<u64>,
}

impl Events {
    /// Shows them.
    ///
    /// # Errors
    /// One line for the user.
    pub fn run(&self, dir: &Path) -> Result<u8> {
        let socket = remote::socket_of(dir, &self.name)?;
        let args = self.since.map(|since| ("since".to_owned(), since.into())).into_iter().collect();
        let mut calls = subscribe(&socket, &args)?;
        let mut out = std::io::stdout();
        while let Ok(event) = calls.event() {
            let line = if self.json { Value::from(event).to_string() } else { show(&event) };
            // Whoever reads them has read enough.
            if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
                break;
            }
        }
        Ok(SUCCESS)
    }
}

fn subscribe(socket: &Path, args: &Members) -> Result<Calls> {
    let mut calls = answered(socket, Calls::open(socket, None))?;
    answered(socket, calls.ask("events", args, None))?;
    Ok(calls)
}

/// An event as a line: its number, what it is, and what there is to say of it.
fn show(event: &Members) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let about = event.iter().filter(|(key, _)| !["seq", "time", "event"].contains(&key.as_str()));
    let about: String = about.map(|(key, value)| format!("  {key} {}", text(value))).collect();
    format!("{:>5}  {}{about}", event.get("seq").map(text).unwrap_or_default(), text(&event["event"]))
}

/// Has a machine stopped, and waits until it has ended, unless that is not wanted.
///
/// # Errors
/// One line for the user.
pub fn stop(socket: &Path, args: Members, no_wait: bool) -> Result<u8> {
    let mut calls = subscribe(socket, &Members::new())?;
    answered(socket, calls.ask("shutdown", &args, None))?;
    if no_wait {
        return Ok(SUCCESS);
    }
    loop {
        let event = match calls.event() {
            Ok(event) => event,
            Err(e) => bail!("{}: {e}; its log says more", name_of(socket)),
        };
        let text = |key: &str| event.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        match text("event").as_str() {
            "forced" => eprintln!("bhyve-rs: {}", text("why")),
            "ended" => {
                say(&format!("{}: {} (status {})", name_of(socket), text("how"), event["status"]));
                return Ok(SUCCESS);
            }
            _ => {}
        }
    }
}

/// Waits for the end of a machine, over all its restarts, and says with what status it ended.
///
/// # Errors
/// One line for the user.
pub fn wait(socket: &Path, limit: Option<Duration>) -> Result<u8> {
    let end = limit.map(|limit| Instant::now() + limit);
    // Until when it may be away.
    let mut away: Option<Instant> = None;
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(TIMED_OUT);
        }
        let begun = Instant::now();
        let answer = control::call(socket, "wait", &Members::new(), left);
        if begun.elapsed() > AFTER_CRASH {
            // It was there.
            away = None;
        }
        match answer {
            Err(CallError::TimedOut) => return Ok(TIMED_OUT),
            Err(CallError::Broken(_)) if away.is_none() => away = Some(Instant::now() + AFTER_CRASH),
            Err(CallError::NotRunning(_) | CallError::Broken(_)) if away.is_some_and(|end| Instant::now() < end) => {
                std::thread::sleep(BRIEFLY);
            }
            Err(CallError::NotRunning(_)) if away.is_some() => bail!("the process of {} is gone", name_of(socket)),
            results => {
                let results = answered(socket, results)?;
                if results.get("again") == Some(&Value::Bool(true)) {
                    away = Some(Instant::now() + ANNOUNCED);
                    continue;
                }
                let status = results.get("status").and_then(Value::as_u64);
                let status = status.and_then(|status| u8::try_from(status).ok());
                return status.ok_or_else(|| anyhow!("the machine does not say how it ended"));
            }
        }
    }
}

/// Prints what a machine in the background has said, or what came out of one of its consoles.
#[derive(Args)]
pub struct Log {
    /// Its name.
    name: String,
    /// A console: com1 to com4. Without one, what the machine's process had to say.
    port: Option<String>,
    /// Go on as it grows, until the machine has ended.
    #[arg(short, long)]
    follow: bool,
}

impl Log {
    /// Prints it.
    ///
    /// # Errors
    /// One line for the user.
    pub fn run(&self, dir: &Path) -> Result<u8> {
        compat::node::valid(&self.name)?;
        let logs = control::log_dir(dir);
        let path = match self.port.as_deref() {
            None => control::machine_log(&logs, &self.name),
            Some(port @ ("com1" | "com2" | "com3" | "com4")) => control::console_log(&logs, &self.name, port),
            Some(port) => bail!("{port:?} has no log; com1, com2, com3 and com4 can have one"),
        };
        let mut out = std::io::stdout();
        let mut older: Vec<PathBuf> = (0..100).map(|n| PathBuf::from(format!("{}.{n}", path.display()))).collect();
        older.retain(|path| path.exists());
        for path in older.iter().rev() {
            copy(&mut File::open(path).with_context(|| path.display().to_string())?, &mut out)?;
        }
        let mut file = File::open(&path).with_context(|| path.display().to_string())?;
        copy(&mut file, &mut out)?;
        if self.follow {
            follow(&control::socket_path(dir, &self.name), &path, file, &mut out)?;
        }
        Ok(SUCCESS)
    }
}

/// Copies what comes to a file, and to those that take its name, as long as the machine runs.
fn follow(socket: &Path, path: &Path, mut file: File, out: &mut impl Write) -> Result<()> {
    loop {
        let status = control::call(socket, "status", &Members::new(), Some(PATIENCE));
        let runs = !matches!(status, Err(CallError::NotRunning(_)));
        std::thread::sleep(LOOK);
        copy(&mut file, out)?;
        if let Ok(mut next) = File::open(path)
            && same(&next, &file).is_some_and(|same| !same)
        {
            copy(&mut next, out)?;
            file = next;
        }
        if !runs {
            return Ok(());
        }
    }
}

fn same(a: &File, b: &File) -> Option<bool> {
    use std::os::unix::fs::MetadataExt;
    Some(a.metadata().ok()?.ino() == b.metadata().ok()?.ino())
}

/// Copies the rest of a file; one that was emptied begins anew.
fn copy(file: &mut File, out: &mut impl Write) -> Result<()> {
    if file.metadata()?.len() < file.stream_position()? {
        file.seek(SeekFrom::Start(0))?;
    }
    let mut buf = [0; 16 << 10];
    loop {
        match file.read(&mut buf)? {
            0 => return Ok(out.flush()?),
            n => out.write_all(&buf[..n])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_two_units() {
        assert_eq!([0, 59, 61, 3661, 90_000].map(span), ["0s", "59s", "1m01s", "1h01m", "1d01h"]);
    }

    #[test]
    fn an_event_is_a_line() {
        let event = json!({ "seq": 7, "time": 1.5, "event": "reset", "by": "guest", "n": 1 });
        assert_eq!(show(event.as_object().unwrap()), "    7  reset  by guest  n 1");
    }
}
