//! Machines in the background: their start, and the process that starts them again when they fail.
//!
//! With `autostart.restart = "failure"` or `"always"` a keeper, which is this program, runs the machine's process as its
//! child. Resets are the machine's own business; what the keeper is there for is the end of the process, also by a
//! crash. It waits longer from time to time ([`crate::backoff`]), and while it does it answers at the machine's control
//! socket, so that `status` tells and `stop` works. An end that people asked for is one.

use std::fs::{File, OpenOptions};
use std::io::{PipeReader, PipeWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use host::control::{self, Events, Members, Reply, Server};
use serde_json::json;

use crate::SUCCESS;
use crate::backoff::Backoff;
use crate::remote::PATIENCE;
use crate::vm::Ended;

/// How long a started machine may take until its control socket is there.
const STARTUP: Duration = Duration::from_secs(60);
/// What the machine's process says to its keeper when people had it end.
const ASKED: &[u8] = b"asked";

/// Starts the machine of a configuration file in the background, and returns when it runs. What it has to say goes to
/// its log ([`control::machine_log`]).
///
/// # Errors
/// Why it does not run.
pub fn start(dir: &Path, file: &Path, set: &[String]) -> Result<u8> {
    let node = crate::config::read(file, set)?;
    let name = node.text("name");
    control::make_run_dir(dir)?;
    // Who comes second waits until the first has got through, and finds the machine running.
    let _turn = Turn::take(&dir.join(format!(".{name}.lock"))).context("the lock of those who start machines")?;
    let socket = control::socket_path(dir, name);
    if control::call(&socket, "status", &Members::new(), Some(PATIENCE)).is_ok() {
        bail!("{name} is running already");
    }
    let log = control::machine_log(&control::make_log_dir(dir)?, name);
    let out = OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
    let out = out.with_context(|| format!("log {}", log.display()))?;
    let begin = out.metadata()?.len();
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.arg("--run-dir").arg(dir);
    match restarts(node.child("autostart").text("restart")) {
        true => command.args(["keep", "-c"]),
        false => command.args(["run", "--background", "-c"]),
    };
    command.arg(file).args(set.iter().flat_map(|s| ["-o", s]));
    // A process group of its own, so that the terminal's signals do not reach it.
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
    let mut child = command.spawn().context("cannot start a process")?;
    let deadline = Instant::now() + STARTUP;
    loop {
        if let Ok(status) = control::call(&socket, "status", &Members::new(), Some(PATIENCE)) {
            // A machine of the name that somebody else started in the meantime is not ours.
            if ["pid", "keeper"].iter().any(|key| status.get(*key) == Some(&child.id().into())) {
                return Ok(SUCCESS);
            }
        }
        if let Some(status) = child.try_wait()? {
            let said = tail(&log, begin);
            let said = said.lines().last().unwrap_or("it says nothing");
            bail!("{name} did not start ({status}): {}", said.trim_start_matches("bhyve-rs: "));
        }
        if Instant::now() > deadline {
            bail!("{name} does not answer; its log is {}", log.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn tail(log: &Path, from: u64) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(log) {
        let _ = file.seek(SeekFrom::Start(from)).and_then(|_| file.take(64 << 10).read_to_end(&mut text));
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The turn of one who starts a machine. The file goes with it.
struct Turn {
    path: PathBuf,
    _lock: File,
}

impl Turn {
    fn take(path: &Path) -> std::io::Result<Turn> {
        loop {
            let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
            file.lock()?;
            // Who had it before has removed it, perhaps this very file.
            if std::fs::metadata(path).is_ok_and(|there| Some(there.ino()) == file.metadata().ok().map(|m| m.ino())) {
                return Ok(Turn { path: path.to_owned(), _lock: file });
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether a policy has a machine's process started again at all.
fn restarts(policy: &str) -> bool {
    matches!(policy, "failure" | "always")
}

/// Whether a machine that ended with this status, or by a crash, and was not asked to, is started again.
pub fn again(policy: &str, status: Option<u8>) -> bool {
    match policy {
        "always" => true,
        "failure" => status.is_none_or(|status| status >= Ended::TripleFault as u8),
        _ => false,
    }
}

/// Tells the keeper that people had the machine end.
pub fn tell_asked() {
    // Without a keeper that listens nobody starts it again.
    let _ = std::io::stdin().as_fd().try_clone_to_owned().map(|fd| File::from(fd).write_all(ASKED));
}

/// What the keeper hears of.
enum News {
    /// The machine's process is gone, and was asked to.
    Gone(bool),
    /// It is to end.
    Stop,
    /// It is to go on at once.
    Now,
}

/// A machine that is kept.
struct Kept<'a> {
    dir: &'a Path,
    file: &'a Path,
    set: &'a [String],
    name: String,
    to: Sender<News>,
    news: Receiver<News>,
    restarts: u64,
}

/// Runs the machine of a configuration file as a child, again and again as its policy says.
///
/// # Errors
/// When it cannot be run.
pub fn keep(dir: &Path, file: &Path, set: &[String]) -> Result<u8> {
    let node = crate::config::read(file, set)?;
    let policy = node.child("autostart").text("restart").to_owned();
    let (to, news) = channel();
    let signals = to.clone();
    host::watch_signals(move |_| _ = signals.send(News::Stop)).context("signals")?;
    let mut kept = Kept { dir, file, set, name: node.text("name").to_owned(), to, news, restarts: 0 };
    let mut backoff = Backoff::default();
    loop {
        let begun = Instant::now();
        let (status, asked) = kept.run()?;
        let how = match status.and_then(ended) {
            Some(ended) => ended.text().to_owned(),
            None => "its process crashed".to_owned(),
        };
        let code = status.unwrap_or(Ended::Error as u8);
        // What is wrong with it now will be so the next time: whoever started it is told.
        let never_ran = kept.restarts == 0 && status == Some(Ended::Error as u8) && begun.elapsed() < PATIENCE;
        if asked || never_ran || !again(&policy, status) {
            return Ok(code);
        }
        let wait = backoff.after(begun.elapsed());
        eprintln!("bhyve-rs: {}: {how}; it starts again in {} s", kept.name, wait.as_secs());
        if !kept.rest(wait, code, &how) {
            return Ok(code);
        }
        kept.restarts += 1;
    }
}

/// How a status says that a machine ended.
fn ended(status: u8) -> Option<Ended> {
    let all = [Ended::Reboot, Ended::PowerOff, Ended::Halt, Ended::TripleFault, Ended::Error];
    all.into_iter().find(|ended| *ended as u8 == status)
}

impl Kept<'_> {
    /// Runs it once; its exit status, none if it crashed, and whether it was asked to end.
    fn run(&self) -> Result<(Option<u8>, bool)> {
        let (reader, writer) = std::io::pipe().context("a pipe")?;
        let mut child = self.spawn(writer).context("cannot start a process")?;
        let to = self.to.clone();
        std::thread::Builder::new().name("child".to_owned()).spawn(move || _ = to.send(News::Gone(listen(reader))))?;
        let mut stopped = false;
        let said = loop {
            match self.news.recv()? {
                News::Gone(asked) => break asked,
                News::Stop => {
                    stopped = true;
                    // It may not be there yet, or no more.
                    let socket = control::socket_path(self.dir, &self.name);
                    let _ = control::call(&socket, "stop", &Members::new(), Some(PATIENCE));
                }
                News::Now => {}
            }
        };
        let status = child.wait()?;
        Ok((status.code().and_then(|code| u8::try_from(code).ok()), said || stopped))
    }

    fn spawn(&self, said: PipeWriter) -> Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--run-dir").arg(self.dir).args(["run", "--background", "--keeper"]);
        command.arg(std::process::id().to_string()).arg("-c").arg(self.file);
        command.args(self.set.iter().flat_map(|s| ["-o", s]));
        Ok(command.stdin(Stdio::from(said)).spawn()?)
    }

    /// Waits before the next run, and answers for the machine. False when there is to be none.
    fn rest(&self, wait: Duration, code: u8, how: &str) -> bool {
        if wait.is_zero() {
            // An end that was asked for between the two.
            return !self.news.try_iter().any(|news| matches!(news, News::Stop));
        }
        let end = Instant::now() + wait;
        let (to, restarts) = (self.to.clone(), self.restarts);
        let facts = json!({ "name": self.name, "state": "waiting", "pid": std::process::id(), "ended": how });
        let handler = move |request: control::Request| match request.verb.as_str() {
            "stop" | "shutdown" | "kill" => answered(&to, News::Stop),
            "reset" => answered(&to, News::Now),
            "status" => {
                let mut facts = facts.as_object().cloned().unwrap_or_default();
                let left = end.saturating_duration_since(Instant::now());
                facts.insert("seconds".to_owned(), json!(left.as_secs_f64().ceil()));
                facts.insert("restarts".to_owned(), restarts.into());
                Reply::Done(facts)
            }
            "wait" => Reply::AtEnd,
            "events" => Reply::Events(None),
            _ => Reply::Failed("the machine waits to be started again; stop and reset end that".to_owned()),
        };
        let events = Events::default();
        let server = match Server::start(&control::socket_path(self.dir, &self.name), &events, handler) {
            Ok(server) => server,
            Err(e) => {
                eprintln!("bhyve-rs: {}: it is not started again: {e:#}", self.name);
                return false;
            }
        };
        let go_on = match self.news.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(News::Stop) => false,
            Ok(News::Now | News::Gone(_)) | Err(_) => true,
        };
        let results = json!({ "status": code, "how": how, "asked": !go_on, "again": go_on });
        if !go_on {
            events.tell("ended", results.clone());
        }
        server.end(results.as_object().cloned().unwrap_or_default());
        go_on
    }
}

fn answered(to: &Sender<News>, news: News) -> Reply {
    let _ = to.send(news);
    Reply::Done(Members::new())
}

/// Waits for the end of a machine's process; whether it said that it was asked to.
fn listen(mut from: PipeReader) -> bool {
    let mut said = Vec::new();
    // Whatever else is there, the process is gone when it ends.
    let _ = from.read_to_end(&mut said);
    said == ASKED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_says_after_which_end_there_is_another_start() {
        for (policy, starts) in [
            ("never", [false; 6]),
            ("reboot", [false; 6]),
            ("failure", [false, false, false, true, true, true]),
            ("always", [true; 6]),
        ] {
            let ends = [Some(0), Some(1), Some(2), Some(3), Some(4), None];
            assert_eq!(ends.map(|status| again(policy, status)), starts, "{policy}");
        }
    }

    #[test]
    fn those_who_start_the_same_machine_take_turns() {
        let path = std::env::temp_dir().join(format!("bhyve-rs-turn-{}", std::process::id()));
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _turn = Turn::take(&path).unwrap();
                        use std::sync::atomic::Ordering::SeqCst;
                        assert_eq!(inside.fetch_add(1, SeqCst), 0);
                        inside.fetch_sub(1, SeqCst);
                    }
                });
            }
        });
        assert!(!path.exists());
    }
}
