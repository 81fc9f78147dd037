//! `bhyve-rs console`: the user at a serial port or at the text screen of a machine that runs somewhere else.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use host::console::{Consoles, From, Left, Wish, terminal_size};
use host::control::{Members, Request};
use host::{ConsoleCommand, EndSignal, console};
use serde_json::{Value, json};

use crate::{SUCCESS, remote};

/// How often a screen is looked at that something is waited for on.
const LOOK: Duration = Duration::from_millis(100);

/// Goes to a console of a machine.
#[derive(Args)]
pub struct Console {
    /// The machine's name.
    name: String,
    /// Which console: com1 to com4, or screen.
    #[arg(default_value = "com1")]
    port: String,
    /// Look only, and do not write even when nobody else does.
    #[arg(short, long)]
    readonly: bool,
    /// Write, in place of whoever does so now, who is told.
    #[arg(short, long, conflicts_with = "readonly")]
    force: bool,
    /// Show only what comes from now on.
    #[arg(long)]
    new: bool,
    /// Print what the console has kept of its output, and leave.
    #[arg(long, conflicts_with_all = ["force", "new"])]
    log: bool,
    /// What a command begins with at the start of a line: a character, ^X for one with the control key, or none.
    #[arg(short, long, value_name = "ESC", default_value = "~", value_parser = escape)]
    escape: Escape,
}

/// The escape character, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Escape(Option<u8>);

fn escape(text: &str) -> Result<Escape, String> {
    match *text.as_bytes() {
        _ if text == "none" => Ok(Escape(None)),
        [byte @ 0x21..=0x7e] => Ok(Escape(Some(byte))),
        [b'^', byte @ (b'@'..=b'_' | b'a'..=b'z')] if !matches!(byte & 0x1f, 0x0a | 0x0d) => {
            Ok(Escape(Some(byte & 0x1f)))
        }
        _ => Err("it is a character, ^ and a letter, or none".to_owned()),
    }
}

impl Console {
    /// Stays until the user leaves or the machine ends.
    ///
    /// # Errors
    /// One line for the user.
    pub fn run(&self, dir: &Path) -> Result<u8> {
        let socket = remote::socket_of(dir, &self.name)?;
        host::watch_signals(|signal| {
            host::restore_terminal();
            std::process::exit(match signal {
                EndSignal::Hangup => 129,
                EndSignal::Interrupt => 130,
                EndSignal::Terminate => 143,
            });
        })?;
        let screen = self.port == "screen";
        let (columns, lines) = terminal_size().unwrap_or(Wish::default().size);
        let from = if self.log {
            "past"
        } else if self.new {
            "now"
        } else {
            "start"
        };
        let args = json!({
            "port": self.port, "readonly": self.readonly, "force": self.force, "from": from,
            "columns": columns, "lines": lines,
        });
        let (stream, place) = remote::attach(&socket, &args)?;
        let client = place.get("client").cloned().unwrap_or_default();
        if !self.log && !self.readonly && place.get("writes") == Some(&Value::Bool(false)) {
            eprintln!("bhyve-rs: another client writes here; you read, and {}w takes over", self.escape_text());
        }
        let ask = |verb: &str, args: Value| {
            if let Err(e) = remote::ask(&socket, verb, &args) {
                eprint!("\r\n[bhyve-rs: {e:#}]\r\n");
            }
        };
        let command = |command| match command {
            ConsoleCommand::TakeOver => ask("take", json!({ "client": client })),
            ConsoleCommand::PowerButton => ask("stop", json!({})),
            ConsoleCommand::Reset => ask("reset", json!({})),
            ConsoleCommand::Break => ask("break", json!({ "port": self.port })),
            ConsoleCommand::Quit => {}
        };
        let resized = |(columns, lines)| ask("resize", json!({ "client": client, "columns": columns, "lines": lines }));
        let visit = console::Visit {
            escape: self.escape.0,
            screen,
            readonly: self.readonly || self.log,
            command: &command,
            resized: &resized,
        };
        let left = visit.make(stream).context("standard input and output")?;
        if !self.log {
            match left {
                Left::Detached => eprintln!("\r\n[left {} of {}]", self.port, self.name),
                Left::Ended => eprintln!("\r\n[{} has ended]", self.name),
            }
        }
        Ok(SUCCESS)
    }

    fn escape_text(&self) -> String {
        match self.escape.0 {
            Some(byte) if byte < 0x20 => format!("^{}", char::from(byte | 0x40)),
            Some(byte) => char::from(byte).to_string(),
            None => String::new(),
        }
    }
}

/// Waits until a text comes out of a console; false when the time is over before.
///
/// # Errors
/// When the machine ends before, or cannot be asked.
pub fn wait_for(socket: &Path, port: &str, text: &str, new: bool, limit: Option<Duration>) -> Result<bool> {
    let end = limit.map(|limit| Instant::now() + limit);
    if port == "screen" {
        return wait_for_screen(socket, text, new, end);
    }
    let from = if new { "now" } else { "start" };
    let args = json!({ "port": port, "readonly": true, "from": from });
    let (mut stream, _) = remote::attach(socket, &args)?;
    let mut seen: Vec<u8> = Vec::new();
    let mut buf = [0; 16 << 10];
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
        stream.set_read_timeout(left)?;
        match stream.read(&mut buf) {
            Ok(0) => bail!("the machine has ended before {text:?} came out of {port}"),
            Ok(n) => seen.extend(&buf[..n]),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => continue,
            Err(e) => return Err(e.into()),
        }
        if seen.windows(text.len()).any(|window| window == text.as_bytes()) {
            return Ok(true);
        }
        let old = seen.len().saturating_sub(text.len());
        seen.drain(..old);
    }
}

/// As [`wait_for`], on the text screen. What changes there comes in pieces, so it is looked at as a whole.
fn wait_for_screen(socket: &Path, text: &str, new: bool, end: Option<Instant>) -> Result<bool> {
    let mut before = new;
    loop {
        let screen = remote::ask(socket, "screenshot", &json!({ "as": "text" }))?;
        let shown = screen.get("text").and_then(Value::as_str).is_some_and(|screen| screen.contains(text));
        if shown && !before {
            return Ok(true);
        }
        before &= shown;
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
}

/// The machine's side of the verb `console`: the stream that came along is connected.
///
/// # Errors
/// For the user.
pub fn attach(consoles: &Consoles, request: Request) -> Result<Members, String> {
    let args = &request.args;
    let port = args.get("port").and_then(Value::as_str).unwrap_or("com1");
    let names = consoles.names();
    if !names.iter().any(|name| name == port) {
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(format!(
            "no console {port:?} can be visited; there are: {there}. A serial port can if its backend is \"console\", \
             or \"stdio\" in the background"
        ));
    }
    let stream = request.file.ok_or("console needs a connected stream socket along with the request")?;
    let stream = UnixStream::from(OwnedFd::from(stream));
    stream.peer_addr().map_err(|_| "what came along is no connected stream socket")?;
    let flag = |key: &str| args.get(key).and_then(Value::as_bool).unwrap_or(false);
    let size = size(args).unwrap_or(Wish::default().size);
    let from = match args.get("from").and_then(Value::as_str).unwrap_or("start") {
        "start" => From::Start,
        "now" => From::Now,
        "past" => From::Past,
        _ => return Err("\"from\" is \"start\", \"now\" or \"past\"".to_owned()),
    };
    let wish = Wish { readonly: flag("readonly"), force: flag("force"), from, size };
    let place = consoles.attach(port, stream, wish)?;
    let members = json!({
        "port": port, "client": place.client, "writes": place.writes, "others": place.others,
        "position": place.position,
    });
    Ok(members.as_object().cloned().unwrap_or_default())
}

/// Columns and lines, if they are there and sensible.
fn size(args: &Members) -> Option<(usize, usize)> {
    let number = |key: &str| args.get(key).and_then(Value::as_u64).filter(|n| (1..=1000).contains(n));
    Some((number("columns")? as usize, number("lines")? as usize))
}

/// The verbs `take` and `resize`, of a client that came before.
///
/// # Errors
/// For the user.
pub fn change(consoles: &Consoles, verb: &str, args: &Members) -> Result<Members, String> {
    let client = args.get("client").and_then(Value::as_u64).ok_or("which client?")?;
    match verb {
        "take" => consoles.take(client)?,
        _ => consoles.resize(client, size(args).ok_or("it needs \"columns\" and \"lines\", from 1 to 1000")?),
    }
    Ok(Members::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escape_character_is_one_that_a_line_does_not_end_with() {
        assert_eq!(escape("~"), Ok(Escape(Some(b'~'))));
        assert_eq!(escape("^]"), Ok(Escape(Some(0x1d))));
        assert_eq!(escape("^a"), Ok(Escape(Some(1))));
        assert_eq!(escape("none"), Ok(Escape(None)));
        for wrong in ["", "ab", "^M", "^j", "\u{e4}", " "] {
            assert!(escape(wrong).is_err(), "{wrong:?}");
        }
    }
}
