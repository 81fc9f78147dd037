//! A learning switch with VLANs for the machines of this host, in a process of its own.
//!
//! A port is a connection to one of the switch's sockets, and the socket says which VLANs it has: whoever may connect to
//! it may speak there. Frames of a VLAN reach the port that their destination was last heard at, else all ports of that
//! VLAN but the one they came from. There is no spanning tree, and no way to make a loop: a switch connects to nobody.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use super::frames::{Decoder, Encoder};
use crate::broker::Name;
use crate::sandbox::{self, Shares};
use crate::unix;

/// Connections at a time.
const PORTS: usize = 256;
/// Addresses that one port may have, so that none crowds out the others.
const ADDRESSES: usize = 256;
/// How long an address that is not heard stays.
const AGE: Duration = Duration::from_secs(300);
/// Frames of one port in a row.
const BURST: usize = 64;
/// The VLAN of frames without a tag, where nobody says otherwise.
const NATIVE: u16 = 1;
/// The largest VLAN number.
const LAST: u16 = 4094;
/// 802.1Q's.
const TAG: [u8; 2] = [0x81, 0x00];
/// Two addresses and a type.
const HEADER: usize = 14;

type Mac = [u8; 6];

/// Which VLANs a port has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vlans {
    /// All of them: frames without a tag are VLAN 1's.
    All,
    /// One, whose frames have no tag.
    Access(u16),
    /// These, whose frames all have their tags.
    Trunk(Vec<u16>),
}

impl Vlans {
    /// The VLAN of a frame with this tag, if the port has it.
    fn of(&self, tag: Option<u16>) -> Option<u16> {
        // A tag of VLAN 0 says no more than a priority.
        match (self, tag.map(|tag| tag & 0xfff).filter(|vlan| *vlan != 0)) {
            (Vlans::All, None) => Some(NATIVE),
            (Vlans::All, Some(vlan)) => Some(vlan).filter(|vlan| *vlan <= LAST),
            (Vlans::Access(vlan), None) => Some(*vlan),
            (Vlans::Trunk(all), Some(vlan)) => Some(vlan).filter(|vlan| all.contains(vlan)),
            (Vlans::Access(_), Some(_)) | (Vlans::Trunk(_), None) => None,
        }
    }

    /// Whether frames of this VLAN go out, and if so with a tag or without.
    fn tagged(&self, vlan: u16) -> Option<bool> {
        match self {
            Vlans::All => Some(vlan != NATIVE),
            Vlans::Access(own) => (*own == vlan).then_some(false),
            Vlans::Trunk(all) => all.contains(&vlan).then_some(true),
        }
    }
}

/// Where an address was heard.
struct Heard {
    port: usize,
    at: Instant,
}

/// What the switch has learnt.
#[derive(Default)]
struct Table {
    heard: HashMap<(u16, Mac), Heard>,
}

impl Table {
    fn learn(&mut self, vlan: u16, from: Mac, port: usize, now: Instant) {
        // A group is nobody's address.
        if from[0] & 1 != 0 {
            return;
        }
        if let Some(heard) = self.heard.get_mut(&(vlan, from)).filter(|heard| heard.port == port) {
            heard.at = now;
            return;
        }
        let own = || self.heard.iter().filter(|(_, heard)| heard.port == port);
        if own().count() >= ADDRESSES
            && let Some(oldest) = own().min_by_key(|(_, heard)| heard.at).map(|(key, _)| *key)
        {
            self.heard.remove(&oldest);
        }
        self.heard.insert((vlan, from), Heard { port, at: now });
    }

    fn find(&self, vlan: u16, to: Mac, now: Instant) -> Option<usize> {
        let heard = self.heard.get(&(vlan, to))?;
        (now.saturating_duration_since(heard.at) < AGE).then_some(heard.port)
    }

    fn forget(&mut self, port: usize) {
        self.heard.retain(|_, heard| heard.port != port);
    }
}

/// A frame taken apart: its tag, and what it is without.
struct Frame<'a> {
    addresses: &'a [u8],
    tag: Option<u16>,
    rest: &'a [u8],
}

impl Frame<'_> {
    fn of(bytes: &[u8]) -> Option<Frame<'_>> {
        if bytes.len() < HEADER {
            return None;
        }
        let (addresses, rest) = bytes.split_at(12);
        Some(match rest {
            [a, b, high, low, rest @ ..] if [*a, *b] == TAG && rest.len() >= 2 => {
                Frame { addresses, tag: Some(u16::from_be_bytes([*high, *low])), rest }
            }
            _ => Frame { addresses, tag: None, rest },
        })
    }

    /// The frame with a tag of this VLAN, or without one. What it had of priority stays with the tag.
    fn with(&self, vlan: Option<u16>) -> Vec<u8> {
        let mut bytes = self.addresses.to_vec();
        if let Some(vlan) = vlan {
            bytes.extend(TAG);
            bytes.extend((self.tag.unwrap_or(0) & 0xf000 | vlan).to_be_bytes());
        }
        bytes.extend(self.rest);
        bytes
    }
}

/// The ports that a frame goes to, and as what. `ports` are those that there are.
fn forward(
    table: &mut Table,
    ports: &[(usize, &Vlans)],
    from: usize,
    bytes: &[u8],
    now: Instant,
) -> Vec<(usize, Vec<u8>)> {
    let vlans = ports.iter().find(|(port, _)| *port == from).map(|(_, vlans)| *vlans);
    let Some((frame, vlans)) = Frame::of(bytes).zip(vlans) else { return Vec::new() };
    let Some(vlan) = vlans.of(frame.tag) else { return Vec::new() };
    let mac = |at: usize| -> Mac { std::array::from_fn(|n| frame.addresses[at + n]) };
    table.learn(vlan, mac(6), from, now);
    let one = table.find(vlan, mac(0), now);
    let to = ports.iter().filter(|(port, _)| *port != from && one.is_none_or(|one| one == *port));
    let out = to.filter_map(|(port, vlans)| Some((*port, frame.with(vlans.tagged(vlan)?.then_some(vlan)))));
    out.collect()
}

/// Somebody's connection.
struct Port {
    stream: UnixStream,
    vlans: Vlans,
    decoder: Decoder,
    encoder: Encoder,
}

/// A socket to which ports connect.
struct Entry {
    listener: UnixListener,
    vlans: Vlans,
    /// Removes the file when it is dropped.
    _name: Name,
}

/// A switch that listens.
pub struct Switch {
    entries: Vec<Entry>,
    ports: HashMap<usize, Port>,
    table: Table,
    poll: Poll,
    next: usize,
    stop: Stop,
}

/// Ends a switch.
#[derive(Clone)]
pub struct Stop(Arc<(AtomicBool, Waker)>);

impl Stop {
    /// Has it end.
    pub fn stop(&self) {
        self.0.0.store(true, Ordering::Release);
        let _ = self.0.1.wake();
    }
}

const WAKER: usize = 0;
/// The first socket's token; the ports' come behind them.
const ENTRIES: usize = 1;

impl Switch {
    /// Listens at these sockets.
    ///
    /// # Errors
    /// When one cannot be had.
    pub fn listen(places: &[(PathBuf, Vlans)]) -> Result<Switch> {
        let poll = Poll::new().context("event loop")?;
        let stop = Stop(Arc::new((AtomicBool::new(false), Waker::new(poll.registry(), Token(WAKER))?)));
        let entry = |(n, (path, vlans)): (usize, &(PathBuf, Vlans))| -> Result<Entry> {
            let (listener, name) = unix::listen(path).with_context(|| path.display().to_string())?;
            listener.set_nonblocking(true)?;
            poll.registry().register(&mut SourceFd(&listener.as_raw_fd()), Token(ENTRIES + n), Interest::READABLE)?;
            Ok(Entry { listener, vlans: vlans.clone(), _name: name })
        };
        let entries: Vec<Entry> = places.iter().enumerate().map(entry).collect::<Result<_>>()?;
        let next = ENTRIES + entries.len();
        Ok(Switch { entries, ports: HashMap::new(), table: Table::default(), poll, next, stop })
    }

    /// What ends it.
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    /// Forwards frames until it is stopped, confined if it is to be.
    ///
    /// # Errors
    /// The system cannot confine it, or cannot wait.
    pub fn run(mut self, confined: bool) -> Result<()> {
        if confined {
            sandbox::enter(Shares::None)?;
        }
        let mut events = Events::with_capacity(64);
        // Ports that may have more than they were asked for.
        let mut more: Vec<usize> = Vec::new();
        loop {
            let wait = if more.is_empty() { None } else { Some(Duration::ZERO) };
            match self.poll.poll(&mut events, wait) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                polled => polled.context("event loop")?,
            }
            if self.stop.0.0.load(Ordering::Acquire) {
                return Ok(());
            }
            let mut turns = std::mem::take(&mut more);
            for event in &events {
                match event.token().0 {
                    WAKER => {}
                    token if token < ENTRIES + self.entries.len() => self.accept(token - ENTRIES),
                    token if turns.contains(&token) => {}
                    token => turns.push(token),
                }
            }
            for port in turns {
                match self.turn(port) {
                    Ok(true) => more.push(port),
                    Ok(false) => {}
                    Err(e) => self.close(port, &e),
                }
            }
        }
    }

    fn accept(&mut self, entry: usize) {
        let Entry { listener, vlans, .. } = &self.entries[entry];
        while let Ok((stream, _)) = listener.accept() {
            let token = self.next;
            let ready = stream.set_nonblocking(true).and_then(|()| {
                let both = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(&mut SourceFd(&stream.as_raw_fd()), Token(token), both)
            });
            match ready {
                Ok(()) if self.ports.len() < PORTS => {
                    let (decoder, encoder) = (Decoder::default(), Encoder::default());
                    self.ports.insert(token, Port { stream, vlans: vlans.clone(), decoder, encoder });
                    self.next += 1;
                    tracing::info!("port {token} is connected");
                }
                Ok(()) => tracing::warn!("all {PORTS} ports are taken"),
                Err(e) => tracing::warn!("a port cannot be connected: {e}"),
            }
        }
    }

    /// Serves a port; whether it may have more.
    fn turn(&mut self, port: usize) -> io::Result<bool> {
        for _ in 0..BURST {
            let Some(Port { stream, decoder, encoder, .. }) = self.ports.get_mut(&port) else { return Ok(false) };
            encoder.flush(stream)?;
            let bytes = match decoder.next(stream) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            };
            let ports: Vec<(usize, &Vlans)> = self.ports.iter().map(|(n, port)| (*n, &port.vlans)).collect();
            for (to, frame) in forward(&mut self.table, &ports, port, &bytes, Instant::now()) {
                if let Some(Port { stream, encoder, .. }) = self.ports.get_mut(&to) {
                    // A port that is broken is found when its turn comes.
                    let _ = encoder.send(stream, &frame);
                }
            }
        }
        Ok(true)
    }

    fn close(&mut self, port: usize, why: &io::Error) {
        match why.kind() {
            ErrorKind::UnexpectedEof => tracing::info!("port {port} is gone"),
            _ => tracing::warn!("port {port} is closed: {why}"),
        }
        self.ports.remove(&port);
        self.table.forget(port);
    }
}

/// A socket of a switch as people write it: `PATH`, `PATH,vlan=5`, `PATH,trunk=5+6`.
///
/// # Errors
/// One line for the user.
pub fn parse(text: &str) -> Result<(PathBuf, Vlans), String> {
    let number = |word: &str| match word.parse() {
        Ok(vlan @ 1..=LAST) => Ok(vlan),
        _ => Err(format!("{word:?} is no VLAN; allowed: 1 to {LAST}")),
    };
    let Some((path, words)) = text.rsplit_once(',') else { return Ok((PathBuf::from(text), Vlans::All)) };
    let vlans = match words.split_once('=') {
        Some(("vlan", vlan)) => Vlans::Access(number(vlan)?),
        Some(("trunk", all)) => Vlans::Trunk(all.split('+').map(number).collect::<Result<_, _>>()?),
        _ => return Err(format!("unknown word {words:?} behind the socket; allowed: vlan=N, trunk=N+N")),
    };
    Ok((Path::new(path).to_owned(), vlans))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tests::Scratch;
    use std::io::{Read, Write};

    const A: Mac = [2, 0, 0, 0, 0, 0xa];
    const B: Mac = [2, 0, 0, 0, 0, 0xb];
    const C: Mac = [2, 0, 0, 0, 0, 0xc];
    const ALL: Mac = [0xff; 6];

    fn frame(to: Mac, from: Mac, tag: Option<u16>) -> Vec<u8> {
        let tag = tag.map_or(Vec::new(), |tag| [TAG, tag.to_be_bytes()].concat());
        [&to[..], &from, &tag, &[0x88, 0xb5], &[7; 46]].concat()
    }

    /// A switch with a port of each of these VLANs, without sockets.
    struct Rig(Table, Vec<Vlans>, Instant);

    impl Rig {
        fn new(vlans: &[Vlans]) -> Rig {
            Rig(Table::default(), vlans.to_vec(), Instant::now())
        }

        fn send(&mut self, from: usize, bytes: &[u8]) -> Vec<(usize, Vec<u8>)> {
            let ports: Vec<_> = self.1.iter().enumerate().collect();
            forward(&mut self.0, &ports, from, bytes, self.2)
        }

        fn ports(&mut self, from: usize, bytes: &[u8]) -> Vec<usize> {
            self.send(from, bytes).into_iter().map(|(port, _)| port).collect()
        }
    }

    #[test]
    fn unknown_and_group_addresses_reach_all_others_and_known_ones_their_port() {
        let mut r = Rig::new(&[Vlans::All, Vlans::All, Vlans::All]);
        assert_eq!(r.ports(0, &frame(B, A, None)), [1, 2]);
        assert_eq!(r.ports(1, &frame(A, B, None)), [0]);
        assert_eq!(r.ports(0, &frame(B, A, None)), [1]);
        assert_eq!(r.ports(0, &frame(ALL, A, None)), [1, 2]);
        assert_eq!(r.ports(0, &frame([1, 0, 0x5e, 1, 2, 3], A, None)), [1, 2]);
        // To itself, as it is known to be there.
        assert_eq!(r.ports(0, &frame(A, A, None)), [0usize; 0]);
        // It moves.
        assert_eq!(r.ports(2, &frame(ALL, B, None)), [0, 1]);
        assert_eq!(r.ports(0, &frame(B, A, None)), [2]);
        r.2 += AGE;
        assert_eq!(r.ports(0, &frame(B, A, None)), [1, 2], "it has not been heard for long");
        assert!(r.send(0, &[0; 13]).is_empty());
        // A group is no sender.
        r.send(2, &frame(A, ALL, None));
        assert_eq!(r.ports(0, &frame(ALL, A, None)), [1, 2]);
    }

    #[test]
    fn vlans_are_apart_and_get_and_lose_their_tags_at_the_ports() {
        let all = [Vlans::Access(5), Vlans::Access(6), Vlans::Trunk(vec![5, 7]), Vlans::All, Vlans::Access(5)];
        let mut r = Rig::new(&all);
        let (plain, five) = (frame(ALL, A, None), frame(ALL, A, Some(5)));
        assert_eq!(r.send(0, &plain), [(2, five.clone()), (3, five.clone()), (4, plain.clone())]);
        assert_eq!(r.send(2, &five), [(0, plain.clone()), (3, five.clone()), (4, plain.clone())]);
        assert_eq!(r.send(1, &plain), [(3, frame(ALL, A, Some(6)))]);
        assert!(r.send(2, &frame(ALL, A, Some(6))).is_empty(), "a VLAN that the trunk has not");
        assert!(r.send(2, &plain).is_empty(), "a trunk has nothing without a tag");
        assert!(r.send(0, &frame(ALL, A, Some(6))).is_empty(), "nobody chooses another VLAN by a tag");
        assert!(r.send(3, &plain).is_empty(), "VLAN 1 is nowhere else");
        assert_eq!(r.send(0, &frame(ALL, A, Some(0xe000)))[0].1, frame(ALL, A, Some(0xe005)), "a priority stays");
        assert!(r.send(3, &frame(ALL, A, Some(4095))).is_empty());
        // One address in two VLANs is at two ports.
        let mut r = Rig::new(&[Vlans::Access(5), Vlans::Access(6), Vlans::All]);
        r.send(0, &frame(ALL, C, None));
        r.send(1, &frame(ALL, C, None));
        assert_eq!(r.ports(2, &frame(C, A, Some(5))), [0]);
        assert_eq!(r.ports(2, &frame(C, A, Some(6))), [1]);
    }

    #[test]
    fn a_port_that_makes_addresses_up_crowds_nobody_out() {
        let mut r = Rig::new(&[Vlans::All, Vlans::All, Vlans::All]);
        r.send(1, &frame(ALL, B, None));
        for n in 0..10_000u32 {
            let [_, _, x, y] = n.to_be_bytes();
            r.send(0, &frame(ALL, [2, 1, 0, 0, x, y], None));
        }
        assert_eq!(r.0.heard.len(), ADDRESSES + 1);
        assert_eq!(r.ports(2, &frame(B, C, None)), [1]);
        r.0.forget(0);
        assert_eq!(r.0.heard.len(), 2);
    }

    #[test]
    fn what_people_write_is_a_socket_and_its_vlans() {
        assert_eq!(parse("/run/lan").unwrap(), ("/run/lan".into(), Vlans::All));
        assert_eq!(parse("lan,vlan=5").unwrap(), ("lan".into(), Vlans::Access(5)));
        assert_eq!(parse("lan,trunk=5+4094").unwrap(), ("lan".into(), Vlans::Trunk(vec![5, 4094])));
        for wrong in ["lan,vlan=0", "lan,vlan=4095", "lan,trunk=", "lan,tag=5", "lan,vlan"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn machines_come_and_go_at_its_sockets() {
        let dir = Scratch::new("switch");
        let places = [(dir.path("lan"), Vlans::All), (dir.path("five"), Vlans::Access(5))];
        let switch = Switch::listen(&places).unwrap();
        let stop = switch.stopper();
        let running = std::thread::spawn(move || switch.run(false));
        let join = |name: &str, mac: Mac| {
            let mut stream = UnixStream::connect(dir.path(name)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            send(&mut stream, &frame(ALL, mac, None));
            stream
        };
        fn send(stream: &mut UnixStream, frame: &[u8]) {
            stream.write_all(&[&(frame.len() as u32).to_be_bytes()[..], frame].concat()).unwrap();
        }
        fn receive(stream: &mut UnixStream) -> Vec<u8> {
            let mut length = [0; 4];
            stream.read_exact(&mut length).unwrap();
            let mut frame = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut frame).unwrap();
            frame
        }
        /// What others have sent to all may come before.
        fn expect(stream: &mut UnixStream, frame: &[u8]) {
            while receive(stream) != frame {}
        }
        let mut a = join("lan", A);
        let mut b = join("lan", B);
        expect(&mut a, &frame(ALL, B, None));
        let mut c = join("five", C);
        expect(&mut a, &frame(ALL, C, Some(5)));
        expect(&mut b, &frame(ALL, C, Some(5)));
        send(&mut b, &frame(A, B, None));
        assert_eq!(receive(&mut a), frame(A, B, None));
        send(&mut a, &frame(C, A, Some(5)));
        assert_eq!(receive(&mut c), frame(C, A, None));
        // One that does not speak its language is put out, and the others stay.
        c.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!(c.read(&mut [0; 16]).unwrap(), 0);
        send(&mut b, &frame(A, B, None));
        assert_eq!(receive(&mut a), frame(A, B, None));
        stop.stop();
        running.join().unwrap().unwrap();
        assert!(!dir.path("lan").exists() && !dir.path("five").exists());
    }
}
