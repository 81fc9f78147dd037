//! What all flows share on the host's side: the poll, the way to new sockets, and whose turn it is.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::outside::{Dialer, Request, Rules};

/// Who waits for a socket, or has something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    Tcp(usize),
    Udp(usize),
    Dns(usize),
    Ping(usize),
    Tftp(usize),
    Listener(usize),
    Broker,
}

impl Owner {
    const KINDS: usize = 7;

    fn token(self) -> Token {
        let (kind, number) = match self {
            Owner::Tcp(n) => (0, n),
            Owner::Udp(n) => (1, n),
            Owner::Dns(n) => (2, n),
            Owner::Ping(n) => (3, n),
            Owner::Tftp(n) => (4, n),
            Owner::Listener(n) => (5, n),
            Owner::Broker => (6, 0),
        };
        Token(number * Owner::KINDS + kind)
    }

    fn of(Token(token): Token) -> Owner {
        let number = token / Owner::KINDS;
        match token % Owner::KINDS {
            0 => Owner::Tcp(number),
            1 => Owner::Udp(number),
            2 => Owner::Dns(number),
            3 => Owner::Ping(number),
            4 => Owner::Tftp(number),
            5 => Owner::Listener(number),
            _ => Owner::Broker,
        }
    }
}

/// What the host says of a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    pub owner: Owner,
    pub readable: bool,
    pub writable: bool,
    /// Its end, or an error, can be read.
    pub closed: bool,
}

/// The host.
pub(super) struct Host {
    poll: Poll,
    events: Events,
    dialer: Dialer,
    asked: HashMap<u64, Owner>,
    next: u64,
    work: VecDeque<Owner>,
    queued: HashSet<Owner>,
}

impl Host {
    pub fn new(rules: Rules) -> io::Result<Host> {
        let host = Host {
            poll: Poll::new()?,
            events: Events::with_capacity(256),
            dialer: Dialer::new(rules)?,
            asked: HashMap::new(),
            next: 0,
            work: VecDeque::new(),
            queued: HashSet::new(),
        };
        if let Some(channel) = host.dialer.channel() {
            host.watch(&channel, Owner::Broker)?;
        }
        Ok(host)
    }

    /// What becomes readable when the host has something to say.
    pub fn fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }

    /// Waits for a descriptor. It is forgotten when it is closed.
    pub fn watch(&self, fd: &impl AsFd, owner: Owner) -> io::Result<()> {
        let fd = fd.as_fd().as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&fd), owner.token(), Interest::READABLE | Interest::WRITABLE)
    }

    /// What the host has to say now.
    pub fn ready(&mut self) -> Vec<Ready> {
        // An interrupted call is made again at the next turn.
        if self.poll.poll(&mut self.events, Some(std::time::Duration::ZERO)).is_err() {
            return Vec::new();
        }
        let ready = |event: &mio::event::Event| Ready {
            owner: Owner::of(event.token()),
            readable: event.is_readable() || event.is_error(),
            writable: event.is_writable() || event.is_error(),
            closed: event.is_read_closed() || event.is_error(),
        };
        self.events.iter().map(ready).collect()
    }

    /// Asks for a descriptor. It comes under the number that is returned.
    pub fn ask(&mut self, owner: Owner, request: &Request) -> u64 {
        self.next += 1;
        self.asked.insert(self.next, owner);
        self.dialer.ask(self.next, request);
        self.next
    }

    /// The descriptors that have come, which the broker's channel tells of.
    pub fn answers(&mut self) -> Vec<(Owner, u64, io::Result<OwnedFd>)> {
        let answers = self.dialer.answers();
        answers.into_iter().filter_map(|(ticket, fd)| Some((self.asked.remove(&ticket)?, ticket, fd))).collect()
    }

    /// Whoever asked no longer wants it.
    pub fn forget(&mut self, ticket: u64) {
        self.asked.remove(&ticket);
    }

    /// Gives a turn.
    pub fn work(&mut self, owner: Owner) {
        if self.queued.insert(owner) {
            self.work.push_back(owner);
        }
    }

    /// Whose turn it is.
    pub fn next(&mut self) -> Option<Owner> {
        let owner = self.work.pop_front()?;
        self.queued.remove(&owner);
        Some(owner)
    }

    /// How many wait for their turn.
    pub fn waiting(&self) -> usize {
        self.work.len()
    }
}
