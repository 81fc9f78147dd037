//! The console server: who looks at a machine's serial ports and screen, and who types there.
//!
//! Each console keeps its latest 256 KiB of output, which whoever comes is shown first, and can have a log ([`log`]).
//! Any number may read; one of them writes. The first that comes writes, the next ones read, and the oldest of those
//! takes its place when it goes. Who wants it sooner says so, and all are told. There are two ways in: a UNIX socket of
//! mode 0600 that has no protocol, bytes both ways, as expect(1) and socat(1) like it; and a connected socket that comes
//! by the control socket, with which one can say more ([`Wish`]). Who shuts down its writing half is sent nothing more,
//! so that it knows what it has got to the byte when it has read to the end.
//!
//! A reader that falls behind by all that is kept holds up the guest as flow control on a line would, for as long as it
//! takes something at least once a second. After that it is left behind; it is told how many bytes it missed, and goes
//! on with the oldest that is there. Neither it nor a full disk costs anybody else a byte.
//!
//! One thread serves all consoles of a machine. It takes no device's lock on the way of a serial port, so that a guest
//! may wait for it, and it has no timers to keep, so that it may wait for a disk.

mod client;
mod log;
mod port;
mod ring;
mod screen;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use emu::DeviceCell;
use emu::backend::Chardev;
use mio::{Events, Poll, Registry, Token, Waker};

pub use self::log::LogSpec;

use self::log::Log;
use self::port::{Feed, Port};
use self::screen::Screen;
use super::Description;
use super::line::Line;
use crate::io::Io;
use crate::keyboard::Typist;
use crate::unix;

const WAKER: Token = Token(0);
/// How long the last output may take at the end.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// What somebody who comes wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Look only.
    pub readonly: bool,
    /// Write, whoever does so now.
    pub force: bool,
    /// Where to begin.
    pub from: From,
    /// Columns and lines of the terminal on which a screen is to be shown.
    pub size: (usize, usize),
}

/// Where a reader begins, and whether it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With all that is kept.
    Start,
    /// With what comes from now on.
    Now,
    /// With all that is kept, and that is all.
    Past,
}

impl Default for Wish {
    fn default() -> Wish {
        Wish { readonly: false, force: false, from: From::Start, size: (80, 25) }
    }
}

/// What became of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Who it is, for later wishes.
    pub client: u64,
    /// It writes.
    pub writes: bool,
    /// How many others there are.
    pub others: usize,
    /// How many bytes the console has put out since the machine was made, where it counts.
    pub position: u64,
}

/// What the thread is asked to do.
enum Order {
    Add(Box<Port>),
    Attach {
        port: String,
        stream: UnixStream,
        wish: Wish,
        answer: Sender<Result<Place, String>>,
    },
    /// The client writes from now on.
    Take {
        client: u64,
        answer: Sender<Result<(), String>>,
    },
    /// The client's terminal has another size.
    Resize {
        client: u64,
        size: (usize, usize),
    },
    /// Answer when all that there is has gone to all who take it.
    Flush(Sender<()>),
    Stop,
}

/// Where the thread is reached.
struct Desk {
    waker: Waker,
    /// Until the thread ends.
    orders: Mutex<Option<Vec<Order>>>,
    /// It is in the poll or about to be.
    sleeping: AtomicBool,
}

impl Desk {
    fn leave(&self, order: Order) {
        if let Some(orders) = self.orders.lock().unwrap().as_mut() {
            orders.push(order);
        }
        self.wake();
    }

    /// What it is to find was stored before.
    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // It fails only when the kernel's counter is full, and then the thread is awake.
            let _ = self.waker.wake();
        }
    }
}

/// Reaches the console server of a machine, from any thread.
#[derive(Clone)]
pub struct Consoles {
    desk: Arc<Desk>,
    names: Arc<Mutex<Vec<String>>>,
}

impl Consoles {
    /// The consoles there are.
    pub fn names(&self) -> Vec<String> {
        self.names.lock().unwrap().clone()
    }

    /// Connects a stream to a console.
    ///
    /// # Errors
    /// There is no such console, or no place.
    pub fn attach(&self, port: &str, stream: UnixStream, wish: Wish) -> Result<Place, String> {
        let port = port.to_owned();
        self.ask(|answer| Order::Attach { port, stream, wish, answer })
    }

    /// Has a client write that read.
    ///
    /// # Errors
    /// It is there no more, or is not to write.
    pub fn take(&self, client: u64) -> Result<(), String> {
        self.ask(|answer| Order::Take { client, answer })
    }

    /// Says that a client's terminal has so many columns and lines now.
    pub fn resize(&self, client: u64, size: (usize, usize)) {
        self.desk.leave(Order::Resize { client, size });
    }

    fn ask<T>(&self, order: impl FnOnce(Sender<Result<T, String>>) -> Order) -> Result<T, String> {
        let (tx, answer) = channel();
        self.desk.leave(order(tx));
        answer.recv().unwrap_or_else(|_| Err("the machine has ended".to_owned()))
    }

    /// Waits until all that there is has gone to all who take it; false when that takes longer than `limit`.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let (tx, done) = channel();
        self.desk.leave(Order::Flush(tx));
        done.recv_timeout(limit).is_ok()
    }
}

/// The console server of a machine. It ends when it is dropped: all are sent what is there, for a second at most, and
/// then the end.
pub struct Server {
    consoles: Consoles,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts it, without any console.
    ///
    /// # Errors
    /// When the host has no thread or descriptors for it.
    pub fn start() -> Result<Server> {
        let what = "console server";
        let poll = Poll::new().context(what)?;
        let waker = Waker::new(poll.registry(), WAKER).context(what)?;
        let desk = Arc::new(Desk { waker, orders: Mutex::new(Some(Vec::new())), sleeping: AtomicBool::new(false) });
        let work = Work { desk: desk.clone(), poll, ports: Vec::new(), next: WAKER.0 + 1, flushes: Vec::new() };
        let thread = std::thread::Builder::new().name("consoles".to_owned()).spawn(move || work.run()).context(what)?;
        Ok(Server { consoles: Consoles { desk, names: Arc::default() }, thread: Some(thread) })
    }

    /// Where it is reached.
    pub fn consoles(&self) -> Consoles {
        self.consoles.clone()
    }

    /// Adds the console of a serial port, with a socket and a log if there are to be any. With `block` its device
    /// waits instead of being refused, as in [`super::open`].
    ///
    /// # Errors
    /// When socket or log cannot be made.
    pub fn serial(
        &self,
        io: &Arc<Io>,
        name: &str,
        socket: Option<&Path>,
        log: Option<&LogSpec>,
        block: bool,
    ) -> Result<(Box<dyn Chardev>, Description)> {
        let line = Line::patient(name, block);
        line.relay(io);
        let desk = self.consoles.desk.clone();
        line.tell(move || desk.wake());
        self.add(name, Feed::Line(line.clone()), socket, log)?;
        let place = socket.map(|path| path.display().to_string());
        let mut text = "console server".to_owned();
        if let Some(place) = &place {
            text += &format!(", socket {place}");
        }
        if let Some(log) = log {
            text += &format!(", log {}", log.path.display());
        }
        let description =
            Description { server: Some(self.consoles()), ..Description::new(text, place, Some(line.clone())) };
        Ok((line.port(), description))
    }

    /// Adds the console of a display adapter, with a socket if there is to be one.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn screen(&self, screen: Arc<DeviceCell>, typist: Arc<Typist>, socket: Option<&Path>) -> Result<()> {
        self.add("screen", Feed::Screen(Screen::new(screen, typist)), socket, None)
    }

    fn add(&self, name: &str, feed: Feed, socket: Option<&Path>, log: Option<&LogSpec>) -> Result<()> {
        let listener = socket.map(|path| {
            let (listener, file) = unix::listen(path)?;
            listener.set_nonblocking(true)?;
            Ok::<_, io::Error>((mio::net::UnixListener::from_std(listener), file))
        });
        let listener = listener.transpose().with_context(|| match socket {
            Some(path) => format!("console socket {}", path.display()),
            None => String::new(),
        })?;
        let log = log.map(Log::open).transpose()?;
        self.consoles.names.lock().unwrap().push(name.to_owned());
        self.consoles.desk.leave(Order::Add(Box::new(Port::new(name, feed, listener, log))));
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.consoles.desk.leave(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is registered, and by what number.
struct Tokens<'a> {
    registry: &'a Registry,
    next: &'a mut usize,
}

impl Tokens<'_> {
    fn next(&mut self) -> Token {
        *self.next += 1;
        Token(*self.next)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // With the orders go their questions.
        *self.desk.orders.lock().unwrap() = None;
    }
}

/// The thread.
struct Work {
    desk: Arc<Desk>,
    poll: Poll,
    ports: Vec<Port>,
    next: usize,
    flushes: Vec<Sender<()>>,
}

impl Work {
    fn run(mut self) {
        let mut events = Events::with_capacity(64);
        let mut last: Option<Instant> = None;
        let mut more = false;
        loop {
            // From here on whoever leaves an order also wakes us, and what was left before is found below.
            self.desk.sleeping.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            let awaited = (last.is_some() || !self.flushes.is_empty()).then_some(&self.ports);
            let patience = awaited.into_iter().flatten().filter_map(Port::patience);
            let deadline = self.ports.iter().filter_map(Port::deadline).chain(last).chain(patience).min();
            let mut wait = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let waiting = self.desk.orders.lock().unwrap().as_ref().is_some_and(|orders| !orders.is_empty());
            if more || waiting || self.ports.iter().any(Port::has_news) {
                wait = Some(Duration::ZERO);
            }
            let polled = self.poll.poll(&mut events, wait);
            self.desk.sleeping.store(false, Ordering::SeqCst);
            if let Err(e) = polled
                && e.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!("the console server cannot wait: {e}");
                return;
            }
            for event in events.iter().filter(|e| e.is_error() || e.is_write_closed() && e.is_read_closed()) {
                self.ports.iter_mut().for_each(|port| port.hung_up(event.token()));
            }
            let orders = self.desk.orders.lock().unwrap().as_mut().map(std::mem::take).unwrap_or_default();
            let mut stop = false;
            for order in orders {
                stop |= matches!(order, Order::Stop);
                self.follow(order);
            }
            if stop {
                last = Some(Instant::now() + LAST_OUTPUT);
                self.ports.iter_mut().for_each(Port::last_look);
            }
            let mut tokens = Tokens { registry: self.poll.registry(), next: &mut self.next };
            more = false;
            for port in &mut self.ports {
                more |= port.turn(&mut tokens);
            }
            let done = self.ports.iter().all(Port::is_done);
            if done {
                self.flushes.drain(..).for_each(|answer| _ = answer.send(()));
            }
            if last.is_some_and(|end| done || Instant::now() >= end) {
                return;
            }
        }
    }

    fn follow(&mut self, order: Order) {
        let mut tokens = Tokens { registry: self.poll.registry(), next: &mut self.next };
        match order {
            Order::Add(mut port) => match port.register(&mut tokens) {
                Ok(()) => self.ports.push(*port),
                Err(e) => tracing::error!("{}: its socket cannot be served: {e}", port.name()),
            },
            Order::Attach { port, stream, wish, answer } => {
                let there = self.ports.iter_mut().find(|p| p.name() == port);
                let _ = answer.send(match there {
                    Some(there) => there.attach(stream, wish, &mut tokens),
                    None => Err(format!("no console {port:?}")),
                });
            }
            Order::Take { client, answer } => {
                let taken = self.ports.iter_mut().find_map(|port| port.take(client));
                let _ = answer.send(taken.unwrap_or_else(|| Err("that client is gone".to_owned())));
            }
            Order::Resize { client, size } => self.ports.iter_mut().for_each(|port| port.resize(client, size)),
            Order::Flush(answer) => self.flushes.push(answer),
            Order::Stop => {}
        }
    }
}
