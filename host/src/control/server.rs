//! The answering side: one thread for all clients, so that verbs come one after the other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mio::net::{UnixListener, UnixStream};
use mio::{Events, Interest, Poll, Token, Waker};
use serde_json::Value;

use super::{Events as Happenings, MAX_LINE, Members, VERSION};
use crate::broker::{self, Name};
use crate::unix;

/// Clients at a time.
const MAX_CLIENTS: usize = 16;
/// Requests of one client that may wait for the end of the machine.
const MAX_WAITS: usize = 16;
/// Bytes of replies that a client may leave unread before its requests have to wait.
const MAX_UNREAD: usize = 256 << 10;
/// How long the last replies may take.
const GRACE: Duration = Duration::from_secs(1);

const WAKER: Token = Token(0);
const LISTENER: Token = Token(1);
const CLIENTS: usize = 2;

/// What a client asks for.
#[derive(Debug)]
pub struct Request {
    /// The verb.
    pub verb: String,
    /// The members that are neither id nor verb.
    pub args: Members,
    /// The file that came along.
    pub file: Option<File>,
}

/// What it gets.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// It is done; the results.
    Done(Members),
    /// It cannot be done; why.
    Failed(String),
    /// The answer is what [`Server::end`] says, when it does.
    AtEnd,
    /// It is done, and the client hears of events: from the one of this number on, or of those to come.
    Events(Option<u64>),
}

#[derive(Default)]
struct State {
    stop: bool,
    ended: Option<Members>,
}

struct Shared {
    waker: Arc<Waker>,
    state: Mutex<State>,
}

/// The server of a machine. Dropped, it sends what it still has to send, for a second at most, and removes the socket.
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    file: Option<Name>,
}

impl Server {
    /// Listens at `path`, and passes events on. The handler is called on the server's thread, for one request at a time; it must return once
    /// the server is being dropped.
    ///
    /// # Errors
    /// When another process listens there, and whatever the system says.
    pub fn start(
        path: &Path,
        events: &Happenings,
        handler: impl FnMut(Request) -> Reply + Send + 'static,
    ) -> Result<Server> {
        let what = || format!("control socket {}", path.display());
        // Two that find the same stale socket must not both replace it.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let lock = std::fs::File::open(dir).and_then(|dir| dir.lock().map(|()| dir)).with_context(what)?;
        let (listener, file) = unix::listen(path).with_context(what)?;
        drop(lock);
        listener.set_nonblocking(true).with_context(what)?;
        let mut listener = UnixListener::from_std(listener);
        let poll = Poll::new().with_context(what)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE).with_context(what)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).with_context(what)?);
        events.wake(waker.clone());
        let shared = Arc::new(Shared { waker, state: Mutex::default() });
        let (clients, events) = (BTreeMap::new(), events.clone());
        let service = Service { shared: shared.clone(), poll, listener, clients, next: CLIENTS, happenings: events };
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || service.work(handler))
            .with_context(what)?;
        Ok(Server { shared, thread: Some(thread), file: Some(file) })
    }

    /// The machine has ended: answers all that wait for it, and all that will.
    pub fn end(&self, results: Members) {
        self.shared.state.lock().unwrap().ended = Some(results);
        let _ = self.shared.waker.wake();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // From here on the machine is not running for whoever asks.
        self.file = None;
        self.shared.state.lock().unwrap().stop = true;
        let _ = self.shared.waker.wake();
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

struct Service {
    shared: Arc<Shared>,
    poll: Poll,
    listener: UnixListener,
    clients: BTreeMap<Token, Client>,
    next: usize,
    happenings: Happenings,
}

impl Service {
    fn work(mut self, mut handler: impl FnMut(Request) -> Reply) {
        let mut events = Events::with_capacity(MAX_CLIENTS + 2);
        let mut last: Option<Instant> = None;
        loop {
            let left = last.map(|end| end.saturating_duration_since(Instant::now()));
            if let Err(e) = self.poll.poll(&mut events, left)
                && e.kind() != ErrorKind::Interrupted
            {
                tracing::error!("the control socket cannot wait: {e}");
                return;
            }
            let (stop, ended) = {
                let state = self.shared.state.lock().unwrap();
                (state.stop, state.ended.clone())
            };
            if stop && last.is_none() {
                last = Some(Instant::now() + GRACE);
                for client in self.clients.values_mut() {
                    client.close(ended.as_ref(), &self.happenings);
                }
            }
            if last.is_none() && events.iter().any(|e| e.token() == LISTENER) {
                self.accept();
            }
            for event in events.iter().filter(|e| e.is_write_closed() || e.is_error()) {
                if let Some(client) = self.clients.get_mut(&event.token()) {
                    client.deaf = true;
                }
            }
            let events = &self.happenings;
            self.clients.retain(|_, client| client.turn(&mut handler, ended.as_ref(), events));
            if last.is_some_and(|end| self.clients.is_empty() || Instant::now() >= end) {
                return;
            }
        }
    }

    fn accept(&mut self) {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => continue,
                Err(e) => {
                    if e.kind() != ErrorKind::WouldBlock {
                        tracing::warn!("the control socket cannot take a client: {e}");
                    }
                    return;
                }
            };
            if self.clients.len() >= MAX_CLIENTS {
                let _ = stream.write(&failure(None, "too many clients"));
                continue;
            }
            let token = Token(self.next);
            self.next += 1;
            if self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).is_ok() {
                self.clients.insert(token, Client::new(stream));
            }
        }
    }
}

fn line(members: Members) -> Vec<u8> {
    format!("{}\n", Value::from(members)).into_bytes()
}

fn success(id: u64, results: &Members) -> Vec<u8> {
    let mut members = results.clone();
    members.insert("id".to_owned(), id.into());
    members.insert("ok".to_owned(), true.into());
    line(members)
}

fn failure(id: Option<u64>, why: &str) -> Vec<u8> {
    let mut members = Members::new();
    members.insert("id".to_owned(), id.into());
    members.insert("ok".to_owned(), false.into());
    members.insert("error".to_owned(), why.into());
    line(members)
}

struct Client {
    stream: UnixStream,
    /// What came in and is no whole line yet.
    input: Vec<u8>,
    /// The last file that came along with it.
    file: Option<File>,
    /// The line was too long and was answered; its rest is skipped.
    skipping: bool,
    /// It says nothing more.
    at_end: bool,
    /// It hears nothing more. What it asked for before is done all the same.
    deaf: bool,
    output: Vec<u8>,
    /// The ids of requests that are answered when the machine ends.
    waits: Vec<u64>,
    /// The number of the next event that it hears of, if it wants to.
    events: Option<u64>,
}

impl Client {
    fn new(stream: UnixStream) -> Client {
        let mut hello = Members::new();
        hello.insert("version".to_owned(), VERSION.into());
        let output = line(hello);
        Client {
            stream,
            input: Vec::new(),
            file: None,
            skipping: false,
            at_end: false,
            deaf: false,
            output,
            waits: Vec::new(),
            events: None,
        }
    }

    /// Does all that can be done now. False when the client is finished.
    fn turn(
        &mut self,
        handler: &mut impl FnMut(Request) -> Reply,
        ended: Option<&Members>,
        events: &Happenings,
    ) -> bool {
        if let Some(results) = ended {
            self.output.extend(self.waits.drain(..).flat_map(|id| success(id, results)));
        }
        loop {
            self.send();
            // Whoever does not read is not answered further.
            if self.output.len() > MAX_UNREAD {
                return true;
            }
            if self.hear(events) {
                continue;
            }
            if let Some(request) = self.next_line() {
                self.answer(&request, handler, ended, events);
            } else if self.at_end {
                let done = self.output.is_empty() && self.waits.is_empty() && self.events.is_none();
                return !(self.deaf || done);
            } else if !self.receive() {
                return true;
            }
        }
    }

    /// Puts the next event into its output. False when there is none.
    fn hear(&mut self, events: &Happenings) -> bool {
        let Some((next, event)) = self.events.and_then(|seq| events.get(seq)) else { return false };
        self.events = Some(next);
        self.output.extend(line(event));
        true
    }

    /// The server is about to end: no more requests.
    fn close(&mut self, ended: Option<&Members>, events: &Happenings) {
        while self.output.len() <= MAX_UNREAD && self.hear(events) {}
        self.events = None;
        if ended.is_none() {
            self.output.extend(self.waits.drain(..).flat_map(|id| failure(Some(id), "the machine is gone")));
        }
        self.input.clear();
        self.at_end = true;
    }

    fn send(&mut self) {
        while !self.output.is_empty() && !self.deaf {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.deaf = true,
            }
        }
        if self.deaf {
            self.output.clear();
        }
    }

    /// Reads some more. False when there is nothing to be had now.
    fn receive(&mut self) -> bool {
        let mut buf = [0; 4096];
        match broker::receive(self.stream.as_fd(), &mut buf) {
            Ok((0, _)) => self.at_end = true,
            Ok((n, files)) => {
                self.input.extend(&buf[..n]);
                self.file = files.into_iter().next().map(File::from).or(self.file.take());
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => self.at_end = true,
        }
        true
    }

    /// The next line that is not blank. The last one may lack its end.
    fn next_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let end = self.input.iter().position(|b| *b == b'\n');
            if !self.skipping && end.unwrap_or(self.input.len()) > MAX_LINE {
                self.output.extend(failure(None, &format!("a line is longer than {MAX_LINE} bytes")));
                self.skipping = true;
            }
            let found: Vec<u8> = match end {
                Some(end) => self.input.drain(..=end).collect(),
                None if self.at_end || self.skipping => std::mem::take(&mut self.input),
                None => return None,
            };
            let skipped = self.skipping;
            self.skipping &= end.is_none();
            if found.is_empty() {
                return None;
            }
            if !skipped && !found.trim_ascii().is_empty() {
                return Some(found);
            }
        }
    }

    fn answer(
        &mut self,
        text: &[u8],
        handler: &mut impl FnMut(Request) -> Reply,
        ended: Option<&Members>,
        events: &Happenings,
    ) {
        let reply = match parse(text) {
            Err((id, why)) => failure(id, &why),
            Ok((id, request)) => match (handler(Request { file: self.file.take(), ..request }), ended) {
                (Reply::Done(results), _) => success(id, &results),
                (Reply::Failed(why), _) => failure(Some(id), &why),
                (Reply::Events(since), _) => {
                    let next = since.unwrap_or(events.next());
                    self.events = Some(next);
                    let mut results = Members::new();
                    results.insert("seq".to_owned(), next.into());
                    success(id, &results)
                }
                (Reply::AtEnd, Some(results)) => success(id, results),
                (Reply::AtEnd, None) if self.waits.len() < MAX_WAITS => {
                    self.waits.push(id);
                    return;
                }
                (Reply::AtEnd, None) => failure(Some(id), "too many requests of this client wait already"),
            },
        };
        self.output.extend(reply);
    }
}

/// Reads a request; the error carries the id, if there is one.
fn parse(text: &[u8]) -> Result<(u64, Request), (Option<u64>, String)> {
    let value: Value = serde_json::from_slice(text).map_err(|e| (None, format!("this is not JSON: {e}")))?;
    let Value::Object(mut args) = value else {
        return Err((None, "a request is an object".to_owned()));
    };
    let Some(id) = args.remove("id").and_then(|id| id.as_u64()) else {
        return Err((None, "a request needs an \"id\", a number".to_owned()));
    };
    match args.remove("verb") {
        Some(Value::String(verb)) => Ok((id, Request { verb, args, file: None })),
        _ => Err((Some(id), "a request needs a \"verb\", a text".to_owned())),
    }
}
