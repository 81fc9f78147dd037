//! A cable to another machine on this host, or to a switch, over a UNIX stream socket.
//!
//! Of two machines with one path the first listens there, and the other connects; so does everybody to a switch. When the
//! other end goes, who listens waits for the next one, and who connected tries again every second, by the broker. A peer
//! that comes while there is one takes its place: it is the same machine after a restart.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use emu::Event;
use emu::backend::{Listener, Net};
use mio::Interest;
use mio::unix::SourceFd;

use super::frames::{Decoder, Encoder};
use crate::broker::{self, Name};
use crate::io::{Gate, Io, Key, Source};
use crate::unix;

/// Frames that one turn may take, so that other sources get theirs.
const BURST: usize = 64;
/// The shortest that is a frame: two addresses and a type.
const SHORTEST: usize = 14;
/// How long who has lost a peer waits before it tries again.
const PAUSE: Duration = Duration::from_secs(1);

/// Where peers come from.
enum Role {
    /// They connect to us; the file goes with the socket.
    Listens(UnixListener, #[expect(dead_code, reason = "removes the file when it is dropped")] Name),
    /// We connect to them, again from this time on.
    Connects(PathBuf, Instant),
}

/// Makes a cable to whoever has this path, or comes there. With `switch` somebody has to be there, and stays in charge.
///
/// # Errors
/// When the path can be had in neither way.
pub fn socket(io: &Arc<Io>, path: &Path, switch: bool) -> Result<Box<dyn Net>> {
    let path = std::path::absolute(path)?;
    let (role, peer) = meet(&path, switch).with_context(|| path.display().to_string())?;
    let key = io.key();
    let shared = Arc::new(Shared {
        state: Mutex::new(State { peer: None, card: None, full: true }),
        gone: AtomicBool::new(false),
    });
    if let Role::Listens(listener, _) = &role {
        listener.set_nonblocking(true)?;
        io.registry().register(&mut SourceFd(&listener.as_raw_fd()), key.token(), Interest::READABLE)?;
    }
    let mut ours = Ours { io: io.clone(), key, role, shared: shared.clone(), decoder: Decoder::default(), next: None };
    if let Some(peer) = peer {
        ours.take(peer)?;
    }
    io.add(key, Box::new(ours));
    Ok(Box::new(Plug { io: io.clone(), key, shared }))
}

fn meet(path: &Path, switch: bool) -> Result<(Role, Option<UnixStream>)> {
    // Another machine may come or go between these two.
    for _ in 0..8 {
        match connect(path) {
            Ok(peer) => {
                broker::allow_connection(path)?;
                return Ok((Role::Connects(path.to_owned(), Instant::now()), Some(peer)));
            }
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Err(e.into()),
            Err(_) if switch => bail!("there is no switch; bhyve-rs switch {} is one", path.display()),
            Err(_) => match unix::listen(path) {
                Ok((listener, name)) => return Ok((Role::Listens(listener, name), None)),
                Err(e) if e.kind() == ErrorKind::AddrInUse => {}
                Err(e) => return Err(e.into()),
            },
        }
    }
    bail!("others come and go there");
}

/// Connects without waiting for anybody.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

/// What the card's side and the io thread share.
struct Shared {
    state: Mutex<State>,
    /// The card is.
    gone: AtomicBool,
}

struct State {
    peer: Option<(UnixStream, Encoder)>,
    card: Option<Weak<dyn Listener>>,
    /// The card has no room.
    full: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// The io thread's side.
struct Ours {
    io: Arc<Io>,
    key: Key,
    role: Role,
    shared: Arc<Shared>,
    decoder: Decoder,
    /// A frame that was read while the machine was paused.
    next: Option<Vec<u8>>,
}

impl Ours {
    /// Has a peer in the place of the present one.
    fn take(&mut self, peer: UnixStream) -> io::Result<()> {
        peer.set_nonblocking(true)?;
        let both = Interest::READABLE | Interest::WRITABLE;
        self.io.registry().register(&mut SourceFd(&peer.as_raw_fd()), self.key.token(), both)?;
        self.decoder = Decoder::default();
        // What it has sent so far is read in this turn.
        self.shared.state().peer = Some((peer, Encoder::default()));
        Ok(())
    }

    /// Looks for a peer.
    fn look(&mut self) {
        let found = match &mut self.role {
            Role::Listens(listener, _) => listener.accept().map(|(peer, _)| peer).ok(),
            Role::Connects(path, again) => {
                let now = Instant::now();
                if self.shared.state().peer.is_some() || *again > now {
                    return;
                }
                *again = now + PAUSE;
                broker::connection(path).ok()
            }
        };
        if let Some(peer) = found
            && let Err(e) = self.take(peer)
        {
            tracing::warn!("a cable to another machine: {e}");
        }
    }

    /// Reads a frame; an error other than that there is none now ends the connection.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        // The descriptor is read without the lock, which the card needs to send.
        let Some(peer) = self.shared.state().peer.as_ref().map(|(peer, _)| peer.try_clone()) else {
            return Err(ErrorKind::WouldBlock.into());
        };
        self.decoder.next(&mut peer?)
    }

    fn lose(&mut self, why: &io::Error) {
        if why.kind() != ErrorKind::UnexpectedEof {
            tracing::warn!("the machine at the other end of a cable is gone: {why}");
        }
        self.shared.state().peer = None;
        if let Role::Connects(_, again) = &mut self.role {
            *again = Instant::now() + PAUSE;
        }
    }
}

impl Source for Ours {
    fn turn(&mut self, gate: &Gate) -> bool {
        if self.shared.gone.load(Ordering::Acquire) {
            return false;
        }
        self.look();
        if let Some((peer, encoder)) = &mut self.shared.state().peer {
            // A broken connection is found by the read below.
            let _ = encoder.flush(peer);
        }
        for _ in 0..BURST {
            let (full, card) = {
                let state = self.shared.state();
                (state.full, state.card.as_ref().and_then(Weak::upgrade))
            };
            if full {
                return true;
            }
            if self.next.is_none() {
                match self.read() {
                    Ok(frame) if frame.len() < SHORTEST => continue,
                    Ok(frame) => self.next = Some(frame),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                    Err(e) => {
                        self.lose(&e);
                        return true;
                    }
                }
            }
            let next = &mut self.next;
            let passed = gate.try_pass(|| {
                if let Some((frame, card)) = next.take().zip(card) {
                    card.event(Event::Frame(frame));
                }
            });
            if passed.is_none() {
                return true;
            }
        }
        self.io.ring(self.key);
        true
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.role {
            Role::Connects(_, again) if self.shared.state().peer.is_none() => Some(*again),
            _ => None,
        }
    }
}

/// The cable as the card knows it.
struct Plug {
    io: Arc<Io>,
    key: Key,
    shared: Arc<Shared>,
}

impl Net for Plug {
    fn send(&mut self, frame: &[u8]) {
        if let Some((peer, encoder)) = &mut self.shared.state().peer {
            // What there is no room for is lost, and a connection that breaks is found by who reads.
            let _ = encoder.send(peer, frame);
        }
    }

    fn attach(&mut self, to: Weak<dyn Listener>) {
        self.shared.state().card = Some(to);
    }

    fn want(&mut self, ready: bool) {
        let mut state = self.shared.state();
        if std::mem::replace(&mut state.full, !ready) && ready {
            self.io.ring(self.key);
        }
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::Release);
        self.io.ring(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::IoThread;
    use emu::bench::Bench;
    use std::io::{Read, Write};
    use std::sync::mpsc::{Receiver, Sender, channel};

    const SOON: Duration = Duration::from_secs(20);

    struct Card(Mutex<Sender<Vec<u8>>>);

    impl Listener for Card {
        fn event(&self, event: Event) {
            if let Event::Frame(frame) = event {
                let _ = self.0.lock().unwrap().send(frame);
            }
        }
    }

    struct End {
        net: Box<dyn Net>,
        heard: Receiver<Vec<u8>>,
        _card: Arc<Card>,
        _io: IoThread,
    }

    fn end(path: &Path, switch: bool) -> Result<End> {
        let (bench, gate) = (Bench::new(), Gate::new());
        let io = IoThread::start(&bench.machine, &gate).unwrap();
        gate.open();
        let mut net = socket(io.io(), path, switch)?;
        let (tx, heard) = channel();
        let card = Arc::new(Card(Mutex::new(tx)));
        let weak: Weak<Card> = Arc::downgrade(&card);
        net.attach(weak);
        net.want(true);
        Ok(End { net, heard, _card: card, _io: io })
    }

    /// Sends until it is heard: whoever comes is connected by another thread.
    fn reach(from: &mut End, to: &End, frame: &[u8]) {
        let begun = Instant::now();
        loop {
            from.net.send(frame);
            match to.heard.recv_timeout(Duration::from_millis(20)) {
                Ok(got) if got == frame => return,
                Ok(_) => {}
                Err(_) => assert!(begun.elapsed() < SOON, "nobody hears"),
            }
        }
    }

    #[test]
    fn two_ends_meet_whoever_comes_first_and_again_when_either_restarts() {
        let dir = crate::net::tests::Scratch::new("socket-meet");
        let path = dir.path("cable");
        let mut one = end(&path, false).unwrap();
        let mut two = end(&path, false).unwrap();
        reach(&mut one, &two, &[1; 60]);
        reach(&mut two, &one, &[2; 60]);
        drop(two);
        let mut two = end(&path, false).unwrap();
        reach(&mut two, &one, &[3; 60]);
        // Now the one that listens.
        drop(one);
        assert!(!path.exists(), "the name goes with the socket");
        let mut one = end(&path, false).unwrap();
        reach(&mut one, &two, &[4; 60]);
        reach(&mut two, &one, &[5; 60]);
    }

    #[test]
    fn frames_are_those_of_qemu_and_a_short_one_is_none() {
        let dir = crate::net::tests::Scratch::new("socket-wire");
        let path = dir.path("cable");
        let mut ours = end(&path, false).unwrap();
        let mut peer = UnixStream::connect(&path).unwrap();
        peer.write_all(&[0, 0, 0, 2, 9, 9, 0, 0, 0, 14]).unwrap();
        peer.write_all(&[7; 14]).unwrap();
        assert_eq!(ours.heard.recv_timeout(SOON).unwrap(), [7; 14]);
        ours.net.send(&[8; 60]);
        let mut got = [0; 64];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(got[..4], [0, 0, 0, 60]);
        assert_eq!(got[4..], [8; 60]);
        // One that speaks something else is shown the door, and the next is let in.
        peer.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!(peer.read(&mut got).unwrap(), 0);
        let mut peer = UnixStream::connect(&path).unwrap();
        peer.write_all(&[0, 0, 0, 14, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]).unwrap();
        assert_eq!(ours.heard.recv_timeout(SOON).unwrap()[13], 14);
    }

    #[test]
    fn without_a_switch_there_is_a_line_that_says_how_to_start_one() {
        let dir = crate::net::tests::Scratch::new("socket-switch");
        let said = end(&dir.path("lan"), true).err().map(|e| format!("{e:#}")).unwrap();
        assert!(said.contains("bhyve-rs switch"), "{said}");
        std::fs::write(dir.path("file"), "").unwrap();
        assert!(end(&dir.path("file"), false).is_err());
    }
}
