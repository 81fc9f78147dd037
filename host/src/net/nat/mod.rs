//! A network of the user's own: the guest's connections become sockets of this process.
//!
//! It needs no privileges. The guest's cable leads to a network with a gateway, a name server and the guest, for IPv4
//! (DHCP) and IPv6 (router advertisements); what it sends further is taken apart here, and goes on from sockets that the
//! [broker](crate::broker) makes. Nothing is saved with a machine: a guest that comes back finds its connections reset,
//! and its address still its own. Time is the host's, whatever the guest's clock follows.

mod config;
mod dhcp4;
mod dns;
mod engine;
mod host;
mod icmp;
mod link;
mod neighbors;
mod outside;
mod reassembly;
mod router6;
mod slab;
mod tcp;
#[cfg(test)]
mod tests;
mod tftp;
mod udp;

pub use config::{Addresses, Config, Forward, Protocol, resolver};
pub(crate) use outside::{Rules, serve};

use std::collections::VecDeque;
use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use anyhow::{Context, Result};
use emu::Event;
use emu::backend::{Listener, Net};
use mio::Interest;
use mio::unix::SourceFd;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};

use crate::io::{Gate, Io, Key, Source};
use engine::{Engine, Listening};

/// Frames of the guest's that wait for the io thread; more are lost, as on a wire.
const WAITING: usize = 1024;
/// Frames that one turn takes either way, so that other sources get theirs.
const BURST: usize = 256;

/// A NAT whose ports are open.
pub struct Nat {
    config: Config,
    listening: Vec<Listening>,
}

impl Nat {
    /// Opens the ports of the host that lead to the guest.
    ///
    /// # Errors
    /// Somebody has one of them, or it is not for us to have; there is no such directory of files.
    pub fn open(mut config: Config) -> Result<Nat> {
        let listening = config.forwards.iter().map(|f| listen(f).with_context(|| format!("the forward {f}")));
        let listening = listening.collect::<Result<_>>()?;
        if let Some(dir) = &mut config.tftp {
            *dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
        }
        // One descriptor a connection, and the limit is what programs of old can bear.
        if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
            && soft < hard
        {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
        Ok(Nat { config, listening })
    }

    /// The end that goes into the card.
    ///
    /// # Errors
    /// The host has no descriptors for it.
    pub fn plug(self, io: &Arc<Io>) -> Result<Box<dyn Net>> {
        let engine = Engine::new(&self.config, self.listening, Instant::now()).context("the NAT")?;
        let key = io.key();
        let fd = engine.fd();
        io.registry().register(&mut SourceFd(&fd), key.token(), Interest::READABLE).context("the NAT")?;
        let cable = Arc::new(Cable {
            cell: Mutex::default(),
            sent: Mutex::default(),
            full: AtomicBool::new(true),
            gone: AtomicBool::new(false),
        });
        let reader = Reader { engine, io: io.clone(), key, cable: cable.clone(), next: None };
        io.add(key, Box::new(reader));
        Ok(Box::new(Plug { io: io.clone(), key, cable }))
    }
}

fn listen(forward: &Forward) -> std::io::Result<Listening> {
    Ok(match forward.protocol {
        Protocol::Tcp => {
            let socket = TcpListener::bind(forward.host)?;
            socket.set_nonblocking(true)?;
            Listening::Tcp(socket, forward.guest)
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind(forward.host)?;
            socket.set_nonblocking(true)?;
            // Only now: the port is ours, and whom it leads to gets sockets of the same name.
            setsockopt(&socket, sockopt::ReusePort, &true)?;
            Listening::Udp(socket, forward.guest)
        }
    })
}

/// What both ends know of each other.
struct Cable {
    cell: Mutex<Option<Weak<dyn Listener>>>,
    /// Frames of the guest's.
    sent: Mutex<VecDeque<Vec<u8>>>,
    full: AtomicBool,
    gone: AtomicBool,
}

/// The end on the io thread.
struct Reader {
    engine: Engine,
    io: Arc<Io>,
    key: Key,
    cable: Arc<Cable>,
    /// A frame that the machine was paused for.
    next: Option<Vec<u8>>,
}

impl Reader {
    /// Hands frames to the card. False: there was more than one turn's.
    fn deliver(&mut self, gate: &Gate) -> bool {
        let cell = self.cable.cell.lock().unwrap().as_ref().and_then(Weak::upgrade);
        let Some(cell) = cell else { return true };
        for _ in 0..BURST {
            if self.cable.full.load(Ordering::Acquire) {
                return true;
            }
            self.next = self.next.take().or_else(|| self.engine.pop());
            let next = &mut self.next;
            if next.is_none() {
                return true;
            }
            let passed = gate.try_pass(|| next.take().into_iter().for_each(|frame| cell.event(Event::Frame(frame))));
            if passed.is_none() {
                return true;
            }
        }
        false
    }
}

impl Source for Reader {
    fn turn(&mut self, gate: &Gate) -> bool {
        if self.cable.gone.load(Ordering::Acquire) {
            return false;
        }
        let now = Instant::now();
        let mut sent = self.cable.sent.lock().unwrap();
        let turn = sent.len().min(BURST);
        let rest = sent.split_off(turn);
        let more = !rest.is_empty();
        let frames = std::mem::replace(&mut *sent, rest);
        drop(sent);
        frames.iter().for_each(|frame| self.engine.input(frame, now));
        self.engine.turn(now);
        let delivered = self.deliver(gate);
        // There may be more, and nothing tells of what was there already.
        if more || !delivered || self.engine.is_busy() {
            self.io.ring(self.key);
        }
        true
    }

    fn deadline(&self) -> Option<Instant> {
        self.engine.deadline()
    }
}

/// The cable as the card knows it.
struct Plug {
    io: Arc<Io>,
    key: Key,
    cable: Arc<Cable>,
}

impl Net for Plug {
    fn send(&mut self, frame: &[u8]) {
        let mut sent = self.cable.sent.lock().unwrap();
        if sent.len() == WAITING {
            return;
        }
        sent.push_back(frame.to_vec());
        if sent.len() == 1 {
            drop(sent);
            self.io.ring(self.key);
        }
    }

    fn attach(&mut self, to: Weak<dyn Listener>) {
        *self.cable.cell.lock().unwrap() = Some(to);
    }

    fn want(&mut self, ready: bool) {
        if self.cable.full.swap(!ready, Ordering::AcqRel) && ready {
            self.io.ring(self.key);
        }
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.cable.gone.store(true, Ordering::Release);
        self.io.ring(self.key);
    }
}
