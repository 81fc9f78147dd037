//! A door for one visitor at a time, who speaks a protocol of bytes: where a debugger comes in.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token, Waker};

use crate::listen::{Listener, Stream};

const BELL: Token = Token(0);
const LISTENER: Token = Token(1);
const VISITOR: Token = Token(2);

/// How long a visitor may take to take what is said.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was heard at the door.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// A visitor is in.
    Visitor,
    /// The visitor says something.
    Bytes(Vec<u8>),
    /// The visitor has gone.
    Gone,
    /// [`Bell::ring`].
    Bell,
}

/// Wakes whoever waits at a door.
#[derive(Clone)]
pub struct Bell(Arc<Waker>);

impl Bell {
    /// Rings. [`Door::wait`] hears it once, however often it was rung meanwhile.
    pub fn ring(&self) {
        // A host that is out of memory for an event has nothing to wait for.
        let _ = self.0.wake();
    }
}

/// See above.
pub struct Door {
    poll: Poll,
    bell: Bell,
    listener: Listener,
    visitor: Option<Box<dyn Stream>>,
    rung: bool,
    knocked: bool,
    readable: bool,
}

impl Door {
    /// Opens the door.
    ///
    /// # Errors
    /// When the host has no descriptors.
    pub fn open(mut listener: Listener) -> io::Result<Door> {
        let poll = Poll::new()?;
        let bell = Bell(Arc::new(Waker::new(poll.registry(), BELL)?));
        poll.registry().register(listener.source(), LISTENER, Interest::READABLE)?;
        Ok(Door { poll, bell, listener, visitor: None, rung: false, knocked: false, readable: false })
    }

    /// Its bell.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Waits until there is something to hear.
    ///
    /// # Errors
    /// What the system says; there is no more to be heard.
    pub fn wait(&mut self) -> io::Result<Heard> {
        loop {
            if std::mem::take(&mut self.rung) {
                return Ok(Heard::Bell);
            }
            if std::mem::take(&mut self.knocked) && self.admit() {
                return Ok(Heard::Visitor);
            }
            if self.readable
                && let Some(heard) = self.listen()
            {
                return Ok(heard);
            }
            self.poll(None)?;
        }
    }

    /// Says something to the visitor.
    ///
    /// # Errors
    /// The visitor has gone, or does not take it.
    pub fn say(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        while !bytes.is_empty() {
            let Some(visitor) = &mut self.visitor else { return Err(ErrorKind::NotConnected.into()) };
            match visitor.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(ErrorKind::TimedOut.into());
                    }
                    self.poll(Some(left))?;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Sends the visitor away.
    pub fn dismiss(&mut self) {
        if let Some(mut visitor) = self.visitor.take() {
            let _ = self.poll.registry().deregister(&mut *visitor);
        }
        self.readable = false;
    }

    fn poll(&mut self, patience: Option<Duration>) -> io::Result<()> {
        let mut events = Events::with_capacity(8);
        match self.poll.poll(&mut events, patience) {
            Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e),
            _ => {}
        }
        for event in &events {
            match event.token() {
                BELL => self.rung = true,
                LISTENER => self.knocked = true,
                VISITOR => self.readable |= event.is_readable() || event.is_read_closed() || event.is_error(),
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets the first in who comes, and sends all others away.
    fn admit(&mut self) -> bool {
        let mut admitted = false;
        loop {
            match self.listener.accept() {
                Ok(mut stream) if self.visitor.is_none() => {
                    let both = Interest::READABLE | Interest::WRITABLE;
                    if self.poll.registry().register(&mut *stream, VISITOR, both).is_ok() {
                        self.visitor = Some(stream);
                        (self.readable, admitted) = (true, true);
                    }
                }
                Ok(_) => tracing::debug!("a second debugger is sent away"),
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return admitted,
                Err(e) => {
                    tracing::warn!("a debugger cannot be let in: {e}");
                    return admitted;
                }
            }
        }
    }

    fn listen(&mut self) -> Option<Heard> {
        let visitor = self.visitor.as_mut()?;
        let mut bytes = vec![0; 4096];
        match visitor.read(&mut bytes) {
            Ok(0) => Some(Heard::Gone),
            Ok(n) => {
                bytes.truncate(n);
                Some(Heard::Bytes(bytes))
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => None,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                None
            }
            Err(_) => Some(Heard::Gone),
        }
    }
}
