//! The asking side.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Members, VERSION};
use crate::broker;

/// The longest reply, in bytes: what answers may be no bhyve-rs at all.
const MAX_REPLY: u64 = 16 << 20;

/// Why a call failed.
#[derive(Debug)]
pub enum CallError {
    /// Nobody listens at the path.
    NotRunning(PathBuf),
    /// The machine refused; why.
    Refused(String),
    /// No answer came in time.
    TimedOut,
    /// The other side does not speak the protocol, or the connection broke; how.
    Broken(String),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CallError::NotRunning(path) => write!(f, "no machine is running at {}", path.display()),
            CallError::Refused(why) => f.write_str(why),
            CallError::TimedOut => f.write_str("the machine does not answer"),
            CallError::Broken(how) => write!(f, "control socket: {how}"),
        }
    }
}

impl std::error::Error for CallError {}

impl From<std::io::Error> for CallError {
    fn from(e: std::io::Error) -> CallError {
        match e.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => CallError::TimedOut,
            _ => CallError::Broken(e.to_string()),
        }
    }
}

/// Asks the machine whose socket is at `path` and returns the results. Without `limit` it waits for ever, as `wait`
/// needs.
///
/// # Errors
/// [`CallError`].
pub fn call(path: &Path, verb: &str, args: &Members, limit: Option<Duration>) -> Result<Members, CallError> {
    call_with(path, verb, args, None, limit)
}

/// As [`call`], with a file that the machine gets.
///
/// # Errors
/// [`CallError`].
pub fn call_with(
    path: &Path,
    verb: &str,
    args: &Members,
    file: Option<&File>,
    limit: Option<Duration>,
) -> Result<Members, CallError> {
    Calls::open(path, limit)?.ask(verb, args, file)
}

/// A connection to a machine.
pub struct Calls {
    lines: Lines,
}

impl Calls {
    /// Connects to the machine whose socket is at `path`. All must be over within `limit`, if there is one.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn open(path: &Path, limit: Option<Duration>) -> Result<Calls, CallError> {
        let me = nix::unistd::geteuid();
        if let Ok(there) = std::fs::symlink_metadata(path)
            && there.uid() != me.as_raw()
            && !me.is_root()
        {
            let why = format!("{} belongs to another user (uid {})", path.display(), there.uid());
            return Err(CallError::Refused(why));
        }
        // Not std's connect: that of a machine that is stopped, with many waiting already, would wait without limit.
        let stream = mio::net::UnixStream::connect(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => CallError::NotRunning(path.to_owned()),
            _ => e.into(),
        })?;
        let stream = UnixStream::from(stream);
        stream.set_nonblocking(false)?;
        let mut lines = Lines { input: BufReader::new(stream), end: limit.map(|l| Instant::now() + l) };
        let hello = lines.next()?;
        if hello.get("version") != Some(&Value::from(VERSION)) {
            // A server with no room for a client says so in place of a greeting.
            let error = hello.get("error").and_then(Value::as_str).map(str::to_owned);
            let other =
                || format!("the machine speaks another version of the protocol than {VERSION}: {}", Value::from(hello));
            return Err(error.map_or_else(|| CallError::Broken(other()), CallError::Refused));
        }
        Ok(Calls { lines })
    }

    /// Asks, and returns the results.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn ask(&mut self, verb: &str, args: &Members, file: Option<&File>) -> Result<Members, CallError> {
        let mut request = args.clone();
        request.insert("id".to_owned(), 1.into());
        request.insert("verb".to_owned(), verb.into());
        let request = format!("{}\n", Value::from(request)).into_bytes();
        let files: Vec<_> = file.map(File::as_fd).into_iter().collect();
        let sent = broker::send(self.lines.input.get_ref().as_fd(), &request, &files)?;
        self.lines.input.get_mut().write_all(&request[sent..])?;
        loop {
            let mut reply = self.lines.next()?;
            if reply.remove("id") != Some(1.into()) {
                continue;
            }
            return match (reply.remove("ok"), reply.get("error")) {
                (Some(Value::Bool(true)), _) => Ok(reply),
                (_, Some(Value::String(why))) => Err(CallError::Refused(why.clone())),
                _ => Err(CallError::Broken("a reply says neither yes nor no".to_owned())),
            };
        }
    }

    /// The next event, after the verb `events`.
    ///
    /// # Errors
    /// [`CallError`]; at the end it is `Broken`.
    pub fn event(&mut self) -> Result<Members, CallError> {
        loop {
            let line = self.lines.next()?;
            if line.contains_key("event") {
                return Ok(line);
            }
        }
    }
}

struct Lines {
    input: BufReader<UnixStream>,
    end: Option<Instant>,
}

impl Lines {
    fn next(&mut self) -> Result<Members, CallError> {
        if let Some(end) = self.end {
            let left = end.saturating_duration_since(Instant::now());
            // Zero would mean no limit.
            self.input.get_ref().set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        }
        let mut line = Vec::new();
        self.input.by_ref().take(MAX_REPLY).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(CallError::Broken("the machine ended before it answered".to_owned()));
        }
        serde_json::from_slice(&line).map_err(|_| CallError::Broken("what answers is no bhyve-rs".to_owned()))
    }
}
