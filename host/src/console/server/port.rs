//! One console: its output, its clients, and who of them writes.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use mio::net::UnixListener;
use mio::{Interest, Token};

use super::client::Client;
use super::log::Log;
use super::ring::{Fill, RING, Ring};
use super::screen::Screen;
use super::{From, Place, Tokens, Wish};
use crate::broker::Name;
use crate::console::line::Line;

/// Clients of a console at a time.
const MOST: usize = 32;
/// Rounds of output before other consoles have their turn.
const ROUNDS: usize = 8;

/// Where output comes from and input goes to.
pub(super) enum Feed {
    Line(Arc<Line>),
    Screen(Screen),
}

pub(super) struct Port {
    name: String,
    feed: Feed,
    ring: Ring,
    log: Option<Log>,
    listener: Option<(UnixListener, Name)>,
    clients: Vec<Client>,
    /// Who writes, of the clients.
    writer: Option<usize>,
}

impl Port {
    pub(super) fn new(name: &str, feed: Feed, listener: Option<(UnixListener, Name)>, log: Option<Log>) -> Port {
        let name = name.to_owned();
        Port { name, feed, ring: Ring::default(), log, listener, clients: Vec::new(), writer: None }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn register(&mut self, tokens: &mut Tokens) -> io::Result<()> {
        match &mut self.listener {
            Some((listener, _)) => tokens.registry.register(listener, tokens.next(), Interest::READABLE),
            None => Ok(()),
        }
    }

    /// Takes in a client that has said what it wants.
    pub(super) fn attach(&mut self, stream: UnixStream, wish: Wish, tokens: &mut Tokens) -> Result<Place, String> {
        stream.set_nonblocking(true).map_err(|e| e.to_string())?;
        let id = self.join(mio::net::UnixStream::from_std(stream), wish, tokens)?;
        let writes = self.writer == Some(id);
        Ok(Place { client: id as u64, writes, others: self.clients.len() - 1, position: self.ring.head() })
    }

    fn join(&mut self, mut stream: mio::net::UnixStream, wish: Wish, tokens: &mut Tokens) -> Result<usize, String> {
        if self.clients.len() >= MOST {
            return Err(format!("{} has {MOST} clients already", self.name));
        }
        let token = tokens.next();
        let both = Interest::READABLE | Interest::WRITABLE;
        tokens.registry.register(&mut stream, token, both).map_err(|e| e.to_string())?;
        let (start, now) = (self.ring.tail(), self.ring.head());
        let (at, until) = match wish.from {
            From::Start => (start, None),
            From::Now => (now, None),
            From::Past => (start, Some(now)),
        };
        let mut client = Client::new(token.0, stream, at, until);
        client.readonly = wish.readonly || until.is_some();
        client.size = wish.size;
        if matches!(self.feed, Feed::Screen(_)) {
            client.canvas.forget();
        }
        let readonly = client.readonly;
        self.clients.push(client);
        if !readonly && (wish.force || self.writer.is_none()) {
            self.promote(token.0);
        }
        Ok(token.0)
    }

    /// Has a client write. `None` when it is none of ours.
    pub(super) fn take(&mut self, id: u64) -> Option<Result<(), String>> {
        let client = self.clients.iter().find(|client| client.id as u64 == id)?;
        if client.readonly {
            return Some(Err("it came to read only".to_owned()));
        }
        self.promote(client.id);
        Some(Ok(()))
    }

    /// Makes it the writer, and tells all others if that was another before.
    fn promote(&mut self, id: usize) {
        let Some(before) = self.writer.replace(id).filter(|before| *before != id) else { return };
        let speaks = matches!(self.feed, Feed::Line(_));
        for client in self.clients.iter_mut().filter(|client| client.id != id) {
            if client.id == before {
                client.reads();
            }
            match (speaks, client.id == before) {
                // A screen has no place for it.
                (false, _) => {}
                (true, true) => client.tell("another client has taken over; you read on"),
                (true, false) => client.tell("another client has taken over from the one that wrote"),
            }
        }
    }

    pub(super) fn resize(&mut self, id: u64, size: (usize, usize)) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id as u64 == id) {
            client.size = size;
            client.canvas.forget();
        }
    }

    /// The client with this token is gone altogether.
    pub(super) fn hung_up(&mut self, token: Token) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == token.0) {
            // What it typed before is read as far as the guest takes it.
            let mut buf = [0; 4096];
            let room = self.feed.room(&mut buf);
            if let Some(n) = client.typed(room).filter(|_| self.writer == Some(client.id)) {
                self.feed.put(client, &buf[..n]);
            }
            client.gone = true;
        }
    }

    /// Whether the line has output to be taken that there is room for.
    pub(super) fn has_news(&self) -> bool {
        match &self.feed {
            Feed::Line(line) => line.has_output() && self.room() > 0,
            Feed::Screen(_) => false,
        }
    }

    /// How many bytes the ring takes without leaving behind a reader that is waited for.
    fn room(&self) -> usize {
        let waited_for = self.clients.iter().filter(|client| !client.stalled).map(|client| client.at);
        waited_for
            .min()
            .map_or(RING, |at| RING - (self.ring.head() - at.max(self.ring.tail())).min(RING as u64) as usize)
    }

    /// Does what can be done now. True when there is more to do at once.
    pub(super) fn turn(&mut self, tokens: &mut Tokens) -> bool {
        self.accept(tokens);
        let mut rounds = 0;
        let more = loop {
            let before = self.ring.head();
            let room = self.room();
            if let Feed::Line(line) = &self.feed {
                line.drain(&mut Fill { ring: &mut self.ring, room });
            }
            if let Feed::Screen(screen) = &mut self.feed {
                screen.look(&mut self.clients);
            }
            if let Some(log) = &mut self.log {
                log.pump(&self.ring);
            }
            let mut went = self.ring.head() != before;
            for client in &mut self.clients {
                went |= client.pump(&self.ring);
                if client.holds(&self.ring) && client.deadline().is_some_and(|end| end <= Instant::now()) {
                    client.stalled = true;
                    went = true;
                    tracing::warn!("{}: a client reads nothing; it is left behind", self.name);
                }
            }
            rounds += 1;
            if !went || rounds >= ROUNDS {
                break went;
            }
        };
        self.hear();
        self.part();
        more
    }

    fn accept(&mut self, tokens: &mut Tokens) {
        while let Some((listener, _)) = &self.listener {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => continue,
                Err(e) => {
                    if e.kind() != io::ErrorKind::WouldBlock {
                        tracing::warn!("{}: it cannot take a client: {e}", self.name);
                    }
                    return;
                }
            };
            if self.clients.len() >= MOST {
                let _ =
                    io::Write::write(&mut stream, format!("bhyve-rs: there are {MOST} clients already\r\n").as_bytes());
                continue;
            }
            // What can fail now has failed.
            let _ = self.join(stream, Wish::default(), tokens);
        }
    }

    /// Takes in what is typed.
    fn hear(&mut self) {
        let mut buf = [0; 4096];
        for client in &mut self.clients {
            loop {
                let writes = self.writer == Some(client.id);
                let room = if writes { self.feed.room(&mut buf) } else { &mut buf[..] };
                let Some(n) = client.typed(room) else { break };
                if writes {
                    self.feed.put(client, &buf[..n]);
                } else if matches!(self.feed, Feed::Line(_)) {
                    client.warn();
                    client.pump(&self.ring);
                }
            }
        }
    }

    /// Lets go who is gone, or says nothing more, and finds another writer if that one was it.
    fn part(&mut self) {
        self.clients.retain(|client| !client.gone && !client.at_end);
        if self.writer.is_some_and(|id| !self.clients.iter().any(|client| client.id == id)) {
            self.writer = None;
            if let Some(client) = self.clients.iter_mut().find(|client| !client.readonly) {
                self.writer = Some(client.id);
                if matches!(self.feed, Feed::Line(_)) {
                    client.tell("the client that wrote is gone; you write now");
                    client.pump(&self.ring);
                }
            }
        }
    }

    /// When something has to happen that nobody wakes us for.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let stalls = self.clients.iter().filter(|client| client.holds(&self.ring)).filter_map(Client::deadline);
        let look = match &self.feed {
            Feed::Screen(screen) if !self.clients.is_empty() => Some(screen.next_look()),
            _ => None,
        };
        stalls.chain(look).chain(self.log.as_ref().and_then(Log::deadline)).min()
    }

    /// When the next client is given up whose last output somebody waits for.
    pub(super) fn patience(&self) -> Option<Instant> {
        let now = Instant::now();
        self.clients.iter().filter_map(Client::deadline).filter(|end| *end > now).min()
    }

    /// The machine is at its end: shows what is there.
    pub(super) fn last_look(&mut self) {
        if let Feed::Screen(screen) = &mut self.feed {
            screen.at_once();
        }
    }

    /// Whether all have got all that there is.
    pub(super) fn is_done(&self) -> bool {
        !self.has_news()
            && self.log.as_ref().is_none_or(|log| log.is_done(&self.ring))
            && self.clients.iter().all(|client| client.is_done(&self.ring))
    }
}

impl Feed {
    /// The part of a buffer that there is room for behind it.
    fn room<'a>(&self, buf: &'a mut [u8]) -> &'a mut [u8] {
        match self {
            Feed::Line(line) => {
                let room = line.room_to_put().min(buf.len());
                &mut buf[..room]
            }
            Feed::Screen(_) => buf,
        }
    }

    /// What the writer has typed.
    fn put(&self, client: &mut Client, bytes: &[u8]) {
        match self {
            Feed::Line(line) => line.put(bytes),
            Feed::Screen(screen) => screen.press(client, bytes),
        }
    }
}
