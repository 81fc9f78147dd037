//! A VNC server: the guest's screen for viewers over a network, and their keys and pointers for the guest.
//!
//! RFB 3.3, 3.7 and 3.8 (RFC 6143), with the extensions that viewers use: DesktopSize and ExtendedDesktopSize, fences
//! and continuous updates, QEMU's key events, pointer movements and lights. Pixels go as Raw, Hextile or ZRLE, in any
//! format of true colour, or as 256 colours of a fixed table.
//!
//! One thread serves all clients. It looks at the adapter only when somebody wants to see something, 33 times a second
//! while something happens there and down to 8 times a second while nothing does; what has changed it remembers for
//! each client by squares ([`emu::Tiles`]). A client that takes nothing is sent nothing: of an update one part is made
//! when the one before has gone, from what the screen shows then, so that no client has more than some hundred KiB here
//! and none waits for another. Nobody is asked to go by one who wants the screen alone, as most viewers are not aware
//! that they ask for it.

mod auth;
mod client;
mod format;
mod hextile;
mod keys;
mod region;
#[cfg(test)]
mod tests;
mod zrle;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use emu::{DeviceCell, Picture, View};
use mio::{Events, Interest, Poll, Token, Waker};

use self::client::{Client, Gone};
use crate::keyboard::{Layout, Typist};
use crate::listen::{Listener, Stream};
use crate::pointer::Motion;

/// Kinds of security.
const NONE: u8 = 1;
const VNC: u8 = 2;

/// Clients at a time.
const CLIENTS: usize = 32;
/// From one look to the next, while something happens and at most.
const LOOK: Duration = Duration::from_millis(30);
const RARELY: Duration = Duration::from_millis(120);
/// After something was typed the answer is looked for this soon.
const SOON: Duration = Duration::from_millis(10);
/// What is shown of an adapter that is not set up.
const NOTHING: (usize, usize) = (640, 480);

const WAKER: Token = Token(0);
/// Listeners have the tokens below this one.
const FIRST_CLIENT: usize = 16;

/// Who may come.
#[derive(Clone, Default)]
pub struct Settings {
    /// The machine's name.
    pub name: String,
    /// The password of those who may type; without any password everybody may come.
    pub password: Option<String>,
    /// The password of those who may only look.
    pub view_password: Option<String>,
    /// Nobody may type.
    pub looks_only: bool,
}

impl Settings {
    fn security(&self) -> u8 {
        if self.password.is_some() || self.view_password.is_some() { VNC } else { NONE }
    }
}

/// The guest's pointer.
pub struct Pointer {
    /// Moves it.
    pub moves: Box<dyn Fn(Motion) + Send>,
    /// Whether the guest goes by where it is, not by how far it moved.
    pub is_absolute: Arc<AtomicBool>,
}

/// What a server shows and reaches of a guest.
pub struct Guest {
    /// The display adapter.
    pub adapter: Arc<DeviceCell>,
    /// Who presses its keys.
    pub typist: Arc<Typist>,
    /// Its pointer.
    pub pointer: Pointer,
    /// Its keyboard.
    pub layout: Layout,
}

/// A server that runs. It ends when it is dropped.
pub struct Server {
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the clients that come to `listeners`. `first` is called when the first of them is in.
    ///
    /// # Errors
    /// When the host has no descriptors or threads.
    pub fn start(
        listeners: Vec<Listener>,
        settings: Settings,
        guest: Guest,
        first: impl FnOnce() + Send + 'static,
    ) -> io::Result<Server> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let stop = Arc::new(AtomicBool::new(false));
        let mut desk = Desk {
            poll,
            listeners,
            settings,
            guest,
            first: Some(Box::new(first)),
            clients: BTreeMap::new(),
            next_token: FIRST_CLIENT,
            view: View::default(),
            nothing: Picture { width: NOTHING.0, height: NOTHING.1, pixels: vec![0; NOTHING.0 * NOTHING.1] },
            pace: LOOK,
            next_look: Instant::now(),
        };
        for (n, listener) in desk.listeners.iter_mut().enumerate() {
            desk.poll.registry().register(listener.source(), Token(n + 1), Interest::READABLE)?;
        }
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("vnc".to_owned()).spawn(move || desk.serve(&stopped))?;
        Ok(Server { waker, stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The server's thread.
struct Desk {
    poll: Poll,
    listeners: Vec<Listener>,
    settings: Settings,
    guest: Guest,
    first: Option<Box<dyn FnOnce() + Send>>,
    clients: BTreeMap<usize, Client>,
    next_token: usize,
    view: View,
    nothing: Picture,
    pace: Duration,
    next_look: Instant,
}

impl Desk {
    fn serve(&mut self, stop: &AtomicBool) {
        let mut events = Events::with_capacity(64);
        while !stop.load(Ordering::Relaxed) {
            match self.poll.poll(&mut events, self.patience()) {
                Err(e) if e.kind() != ErrorKind::Interrupted => {
                    tracing::warn!("the VNC server has ended: {e}");
                    break;
                }
                _ => {}
            }
            for event in &events {
                match event.token() {
                    WAKER => {}
                    Token(n) if n < FIRST_CLIENT => self.accept(n - 1),
                    Token(n) => {
                        if let Some(client) = self.clients.get_mut(&n) {
                            client.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
                            client.writable |= event.is_writable() || event.is_write_closed();
                        }
                    }
                }
            }
            self.turn();
        }
        self.clients.values_mut().for_each(|client| client.leave(&self.guest));
    }

    /// How long nothing has to be done.
    fn patience(&self) -> Option<Duration> {
        let now = Instant::now();
        if self.clients.values().any(Client::is_busy) {
            return Some(Duration::ZERO);
        }
        let looks = self.clients.values().any(Client::wants_update).then_some(self.next_look);
        let next = self.clients.values().filter_map(Client::deadline).chain(looks).min();
        // A timeout is rounded down to milliseconds, and must not come before its time.
        next.map(|next| next.saturating_duration_since(now) + Duration::from_millis(u64::from(next > now)))
    }

    fn accept(&mut self, n: usize) {
        loop {
            let accepted = match self.listeners.get(n) {
                Some(listener) => listener.accept(),
                None => return,
            };
            match accepted {
                Ok(stream) => self.admit(stream),
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) => {
                    tracing::warn!("the VNC server cannot take a client: {e}");
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut stream: Box<dyn Stream>) {
        if self.clients.len() >= CLIENTS {
            // Who has stood at the door longest makes room; those who are in stay.
            let waiting = self.clients.iter().filter_map(|(n, client)| Some((client.waits_since()?, *n))).min();
            let Some((_, n)) = waiting else { return };
            self.dismiss(n, &Gone("others want to come in".to_owned()));
        }
        let token = self.next_token;
        self.next_token += 1;
        let both = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut *stream, Token(token), both).is_ok() {
            self.clients.insert(token, Client::new(stream, self.settings.looks_only));
        }
    }

    fn dismiss(&mut self, n: usize, why: &Gone) {
        if let Some(mut client) = self.clients.remove(&n) {
            tracing::debug!("a VNC client is dismissed: {}", why.0);
            let _ = self.poll.registry().deregister(client.stream());
            client.leave(&self.guest);
        }
    }

    /// Hears all clients, looks at the screen if it is time, and sends what is new.
    fn turn(&mut self) {
        let mut lost: Vec<(usize, Gone)> = Vec::new();
        let mut acted = false;
        for (n, client) in &mut self.clients {
            match client.hear(&self.settings, &self.guest) {
                Ok(did) => acted |= did,
                Err(why) => lost.push((*n, why)),
            }
        }
        let now = Instant::now();
        if acted {
            self.pace = LOOK;
            self.next_look = self.next_look.min(now + SOON);
        }
        let comes = self.clients.values().any(Client::needs_hello);
        if comes || self.clients.values().any(Client::needs_look) {
            self.view.look_closely();
            self.next_look = self.next_look.min(now + SOON);
        }
        if comes || now >= self.next_look && self.clients.values().any(Client::wants_update) {
            self.look(now);
        }
        let picture = shown(&self.view, &self.nothing);
        let lights = self.guest.typist.lights();
        let absolute = self.guest.pointer.is_absolute.load(Ordering::Relaxed);
        for (n, client) in &mut self.clients {
            if client.needs_hello() {
                client.hello(picture, &self.settings.name);
                if let Some(first) = self.first.take() {
                    first();
                }
            }
            client.update(picture, lights, absolute);
            if let Err(why) = client.send(picture) {
                lost.push((*n, why));
            }
        }
        lost.iter().for_each(|(n, why)| self.dismiss(*n, why));
    }

    /// Looks at the screen.
    fn look(&mut self, now: Instant) {
        let size = |view: &View, nothing| {
            let picture: &Picture = shown(view, nothing);
            (picture.width, picture.height)
        };
        let before = size(&self.view, &self.nothing);
        let view = &mut self.view;
        self.guest.adapter.with(|device| device.display().map(|display| display.refresh(view)));
        let changes = view.take_changes();
        if size(&self.view, &self.nothing) != before {
            self.clients.values_mut().for_each(Client::changed_all);
        }
        // While nothing changes it is looked at less and less often.
        self.pace = if changes.is_empty() { (self.pace + self.pace / 8).min(RARELY) } else { LOOK };
        self.next_look = now + self.pace;
        self.clients.values_mut().for_each(|client| client.changed(&changes));
    }
}

/// What clients are shown.
fn shown<'a>(view: &'a View, nothing: &'a Picture) -> &'a Picture {
    if view.picture().pixels.is_empty() { nothing } else { view.picture() }
}
