//! TCP: the guest's connections end here, in a small stack each, and go on by a socket of the host.
//!
//! The guest's SYN is kept until the host's connection stands, so that the guest hears of a refusal as it would on the
//! way. Both ends are read only into room that the other has left: a slow reader on one side is a full window on the
//! other. Each connection has an interface of smoltcp's for itself, as a set of many sockets is searched from its
//! beginning for every segment.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::config::Behind;
use super::engine::{Ends, Packet};
use super::host::{Host, Owner, Ready};
use super::icmp::{Unreachable, unreachable};
use super::link::{Link, MTU, sum};
use super::outside::{Request, prepare};
use super::slab::Slab;
use super::udp::{Reach, inward, loopback};

/// Connections at a time.
const FLOWS: usize = 4096;
/// Bytes under way each way of a connection; of those beyond the first few hundred, less.
/// A window that needs no scale.
const BUFFER: usize = 0xffff;
const FEW: usize = 256;
const SMALL_BUFFER: usize = 16 << 10;
/// How often a silent guest is asked whether it still has a connection, and how long it may say nothing.
const KEEP_ALIVE: Duration = Duration::from_secs(300);
const PATIENCE: Duration = Duration::from_secs(900);
/// How long a connection may take to be made: longer than guests try.
const CONNECTING: Duration = Duration::from_secs(150);
/// Connections that one turn of a listener takes.
const BURST: usize = 64;
const DNS: u16 = 53;
/// The flag of a segment that ends a connection.
const RST: u8 = 4;

struct Flow {
    key: Ends,
    stage: Stage,
    /// When it is looked at whatever happens; its entry in `Tcp::timers`.
    timer: Option<Instant>,
}

enum Stage {
    /// A socket was asked for. The guest's SYN waits, as an IP packet.
    Asked {
        ticket: u64,
        syn: Vec<u8>,
    },
    /// The socket is being connected.
    Connecting {
        host: TcpStream,
        syn: Vec<u8>,
    },
    Open(Box<Open>),
}

struct Open {
    host: TcpStream,
    readable: bool,
    writable: bool,
    /// The host's end has come or can be read.
    closed: bool,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// The host has sent all.
    host_done: bool,
    /// The guest has sent all,
    guest_done: bool,
    /// and the host was told.
    shut: bool,
    /// When both had, and the host had yet to read: smoltcp would forget that after 10 s.
    waiting_since: Option<Instant>,
}

/// A port of the host that leads to the guest.
struct Listening {
    socket: TcpListener,
    guest: u16,
}

/// All connections.
pub(super) struct Tcp {
    flows: Slab<Flow>,
    by_key: HashMap<Ends, usize>,
    timers: BTreeSet<(Instant, usize)>,
    listeners: Vec<Listening>,
    begun: Instant,
    seeds: RandomState,
    seed: u64,
    told: bool,
}

impl Tcp {
    pub fn new(now: Instant) -> Tcp {
        Tcp {
            flows: Slab::default(),
            by_key: HashMap::new(),
            timers: BTreeSet::new(),
            listeners: Vec::new(),
            begun: now,
            seeds: RandomState::new(),
            seed: 0,
            told: false,
        }
    }

    /// Adds a port of the host.
    pub fn listen(&mut self, socket: TcpListener, guest: u16) {
        self.listeners.push(Listening { socket, guest });
    }

    /// smoltcp's time.
    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(now.saturating_duration_since(self.begun).as_micros() as i64)
    }

    /// A segment of the guest's; `resolver` is the name server that answers.
    pub fn input(
        &mut self,
        link: &mut Link,
        host: &mut Host,
        reach: Reach,
        resolver: usize,
        packet: &Packet,
        now: Instant,
    ) {
        let key = packet.ends();
        if let Some(&at) = self.by_key.get(&key) {
            return self.segment(link, host, at, packet, now);
        }
        let Ok(segment) = TcpPacket::new_checked(packet.payload) else { return };
        // What smoltcp would not take later never becomes a connection: port 0, SYN with FIN, options that end too soon.
        let parsed = TcpRepr::parse(&segment, &packet.from.into(), &packet.to.into(), &ChecksumCapabilities::default());
        if parsed.is_err() || segment.rst() || packet.is_multicast(link) {
            return;
        }
        if !segment.syn() || segment.ack() {
            // Of a machine that was restored, or of a connection that is over.
            return reset(link, key, &segment);
        }
        let request = match link.addresses.behind(packet.to) {
            Behind::Dns if key.far.port() == DNS && reach.outbound => Request::TcpResolver(resolver),
            Behind::Gateway if reach.loopback => Request::Tcp(SocketAddr::new(loopback(packet.to), key.far.port())),
            Behind::Outside if reach.outbound => Request::Tcp(key.far),
            _ => return reset(link, key, &segment),
        };
        if self.flows.len() >= FLOWS {
            self.tell_full();
            return reset(link, key, &segment);
        }
        let at = self.insert(Flow { key, stage: Stage::Asked { ticket: 0, syn: packet.raw.to_vec() }, timer: None });
        let asked = host.ask(Owner::Tcp(at), &request);
        if let Some(Flow { stage: Stage::Asked { ticket, .. }, .. }) = self.flows.get_mut(at) {
            *ticket = asked;
        }
        self.set_timer(at, Some(now + CONNECTING));
    }

    fn tell_full(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                "the guest has {FLOWS} TCP connections under way, as many as there may be: more are refused"
            );
        }
    }

    fn insert(&mut self, flow: Flow) -> usize {
        let key = flow.key;
        let at = self.flows.insert(flow);
        self.by_key.insert(key, at);
        at
    }

    fn set_timer(&mut self, at: usize, timer: Option<Instant>) {
        let Some(flow) = self.flows.get_mut(at) else { return };
        // One that comes early does no harm, and most are put off before they are due.
        if let (Some(set), Some(wanted)) = (flow.timer, timer)
            && set <= wanted
        {
            return;
        }
        if let Some(set) = flow.timer {
            self.timers.remove(&(set, at));
        }
        flow.timer = timer;
        self.timers.extend(timer.map(|timer| (timer, at)));
    }

    fn segment(&mut self, link: &mut Link, host: &mut Host, at: usize, packet: &Packet, now: Instant) {
        let time = self.time(now);
        let Some(flow) = self.flows.get_mut(at) else { return };
        match &mut flow.stage {
            Stage::Open(open) => {
                let state = open.sockets.get::<Socket>(open.handle).state();
                let Some(flags) = packet.payload.get(13) else { return };
                // smoltcp would listen again, or take a second beginning for the first one's: neither is a connection
                // that the host still has.
                if matches!(state, State::Listen | State::SynReceived) && flags & RST != 0 {
                    if sum(packet.from, packet.to, IpProtocol::Tcp, packet.payload) == 0 {
                        self.remove(host, at);
                    }
                    return;
                }
                let mut port = Port { link, packet: Some(packet.raw), guest: flow.key.guest };
                open.interface.poll_ingress_single(time, &mut port, &mut open.sockets);
                host.work(Owner::Tcp(at));
            }
            // The guest is patient, and sends its SYN again, or it is not.
            Stage::Asked { .. } | Stage::Connecting { .. } => {
                let Ok(segment) = TcpPacket::new_checked(packet.payload) else { return };
                if segment.rst() && sum(packet.from, packet.to, IpProtocol::Tcp, packet.payload) == 0 {
                    self.remove(host, at);
                }
            }
        }
    }

    /// A socket has come, or not.
    pub fn answered(&mut self, link: &mut Link, host: &mut Host, at: usize, ticket: u64, fd: io::Result<OwnedFd>) {
        let Some(flow) = self.flows.get_mut(at) else { return };
        let Stage::Asked { ticket: asked, syn } = &mut flow.stage else { return };
        if *asked != ticket {
            return;
        }
        let socket = fd.map(TcpStream::from).and_then(|socket| {
            host.watch(&socket, Owner::Tcp(at))?;
            Ok(socket)
        });
        match socket {
            Ok(host) => flow.stage = Stage::Connecting { host, syn: std::mem::take(syn) },
            Err(e) => self.refuse(link, host, at, &e),
        }
    }

    /// The connection cannot be made: the guest hears why.
    fn refuse(&mut self, link: &mut Link, host: &mut Host, at: usize, error: &io::Error) {
        let Some(flow) = self.flows.get_mut(at) else { return };
        let key = flow.key;
        let (Stage::Asked { syn, .. } | Stage::Connecting { syn, .. }) = &mut flow.stage else { return };
        let syn = std::mem::take(syn);
        match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ETIMEDOUT) => {
                unreachable(link, key.guest.ip(), &syn, Unreachable::Host);
            }
            _ => {
                let header = if key.guest.is_ipv4() { usize::from(syn[0] & 15) * 4 } else { 40 };
                if let Ok(segment) = TcpPacket::new_checked(&syn[header..]) {
                    reset(link, key, &segment);
                }
            }
        }
        self.remove(host, at);
    }

    /// The host says something of a socket.
    pub fn ready(&mut self, host: &mut Host, at: usize, ready: &Ready) {
        if let Some(Flow { stage: Stage::Open(open), .. }) = self.flows.get_mut(at) {
            open.readable |= ready.readable;
            open.writable |= ready.writable;
            open.closed |= ready.closed;
        }
        host.work(Owner::Tcp(at));
    }

    /// Does what can be done for a connection. False: it wants to send, and there was no room.
    pub fn turn(&mut self, link: &mut Link, host: &mut Host, at: usize, now: Instant) -> bool {
        let time = self.time(now);
        let Some(flow) = self.flows.get_mut(at) else { return true };
        if let Stage::Connecting { host: socket, .. } = &flow.stage {
            match socket.take_error() {
                Ok(None) if socket.peer_addr().is_err() => return true,
                Ok(None) => self.establish(link, host, at, now),
                Ok(Some(e)) | Err(e) => {
                    self.refuse(link, host, at, &e);
                    return true;
                }
            }
        }
        let Some(flow) = self.flows.get_mut(at) else { return true };
        let Stage::Open(open) = &mut flow.stage else { return true };
        let over = open.exchange(link, flow.key.guest, time, now);
        if over {
            self.remove(host, at);
            return true;
        }
        if let Some(since) = open.waiting_since {
            self.set_timer(at, Some(since + PATIENCE));
            return true;
        }
        let next = open.interface.poll_at(time, &open.sockets).map(|next| next.total_micros().max(0) as u64);
        let next = next.map(|next| self.begun + Duration::from_micros(next));
        if next.is_some_and(|next| next <= now) && !link.has_room() {
            return false;
        }
        // A millisecond is smoltcp's shortest time.
        self.set_timer(at, next.map(|next| next.max(now + Duration::from_millis(1))));
        true
    }

    /// The host's connection stands: now the guest gets its answer.
    fn establish(&mut self, link: &mut Link, host: &mut Host, at: usize, now: Instant) {
        let time = self.time(now);
        let buffer = if self.flows.len() <= FEW { BUFFER } else { SMALL_BUFFER };
        self.seed += 1;
        let seed = self.seeds.hash_one(self.seed);
        let Some(flow) = self.flows.get_mut(at) else { return };
        let stage = std::mem::replace(&mut flow.stage, Stage::Asked { ticket: 0, syn: Vec::new() });
        let Stage::Connecting { host: socket, syn } = stage else { return };
        let mut open = Open::new(link, socket, flow.key, buffer, seed, time);
        let socket = open.sockets.get_mut::<Socket>(open.handle);
        let listens = socket.listen(endpoint(flow.key.far)).is_ok();
        let mut port = Port { link, packet: Some(&syn), guest: flow.key.guest };
        open.interface.poll_ingress_single(time, &mut port, &mut open.sockets);
        let answers = open.sockets.get::<Socket>(open.handle).state() == State::SynReceived;
        flow.stage = Stage::Open(Box::new(open));
        // A socket that still listens would do so for ever.
        if !listens || !answers {
            self.remove(host, at);
        }
    }

    /// Takes who wants to connect to a port of the host. False: there are more.
    pub fn listener(&mut self, link: &mut Link, host: &mut Host, at: usize, now: Instant) -> bool {
        for _ in 0..BURST {
            let Some(listening) = self.listeners.get(at) else { return true };
            let (socket, peer) = match listening.socket.accept() {
                Ok(accepted) => accepted,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => continue,
                Err(_) => return true,
            };
            let guest = listening.guest;
            self.accept(link, host, socket, peer, guest, now);
        }
        false
    }

    fn accept(
        &mut self,
        link: &mut Link,
        host: &mut Host,
        socket: TcpStream,
        peer: SocketAddr,
        port: u16,
        now: Instant,
    ) {
        let prepared = socket.set_nonblocking(true).and_then(|()| prepare(&socket));
        let Some((guest, mut far)) = inward(link, peer, port) else { return abort(socket) };
        // One peer may come by two ports of the host.
        while self.by_key.contains_key(&Ends { guest, far }) {
            far.set_port(far.port().checked_add(1).unwrap_or(1024));
        }
        if self.flows.len() >= FLOWS {
            self.tell_full();
            return abort(socket);
        }
        let key = Ends { guest, far };
        let time = self.time(now);
        let buffer = if self.flows.len() < FEW { BUFFER } else { SMALL_BUFFER };
        self.seed += 1;
        let mut open = Open::new(link, socket, key, buffer, self.seeds.hash_one(self.seed), time);
        let tcp = open.sockets.get_mut::<Socket>(open.handle);
        let connecting = tcp.connect(open.interface.context(), endpoint(guest), endpoint(far));
        let at = self.insert(Flow { key, stage: Stage::Open(Box::new(open)), timer: None });
        let Some(Flow { stage: Stage::Open(open), .. }) = self.flows.get_mut(at) else { return };
        if prepared.is_err() || connecting.is_err() || host.watch(&open.host, Owner::Tcp(at)).is_err() {
            return self.remove(host, at);
        }
        host.work(Owner::Tcp(at));
    }

    /// The next time that a connection wants a turn.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Gives a turn to those whose time has come.
    pub fn tick(&mut self, host: &mut Host, now: Instant) {
        while let Some(&(due, at)) = self.timers.first()
            && due <= now
        {
            self.timers.pop_first();
            let Some(flow) = self.flows.get_mut(at) else { continue };
            flow.timer = None;
            match flow.stage {
                Stage::Open(_) => host.work(Owner::Tcp(at)),
                _ => self.remove(host, at),
            }
        }
    }

    fn remove(&mut self, host: &mut Host, at: usize) {
        let Some(flow) = self.flows.remove(at) else { return };
        self.by_key.remove(&flow.key);
        if let Some(timer) = flow.timer {
            self.timers.remove(&(timer, at));
        }
        match flow.stage {
            Stage::Asked { ticket, .. } => host.forget(ticket),
            Stage::Open(open) if !(open.host_done && open.shut) => abort(open.host),
            _ => {}
        }
    }

    /// Connections, for the tests of bounds.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.flows.len()
    }
}

impl Open {
    fn new(
        link: &mut Link,
        host: TcpStream,
        key: Ends,
        buffer: usize,
        seed: u64,
        time: smoltcp::time::Instant,
    ) -> Open {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut Port { link, packet: None, guest: key.guest }, time);
        // Its address is the other end's, and the whole world on its cable.
        interface.update_ip_addrs(|all| all.extend([IpCidr::new(IpAddress::from(key.far.ip()), 0)]));
        let room = || SocketBuffer::new(vec![0; buffer]);
        let mut socket = Socket::new(room(), room());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(KEEP_ALIVE.into()));
        socket.set_timeout(Some(CONNECTING.into()));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Open {
            host,
            readable: true,
            writable: true,
            // It may have been said before there was anybody to note it.
            closed: true,
            interface,
            sockets,
            handle,
            host_done: false,
            guest_done: false,
            shut: false,
            waiting_since: None,
        }
    }

    /// Moves bytes both ways. True when the connection is over.
    fn exchange(&mut self, link: &mut Link, guest: SocketAddr, time: smoltcp::time::Instant, now: Instant) -> bool {
        let socket = self.sockets.get_mut::<Socket>(self.handle);
        if socket.state() == State::Established && socket.timeout() != Some(PATIENCE.into()) {
            socket.set_timeout(Some(PATIENCE.into()));
        }
        self.guest_done |=
            matches!(socket.state(), State::CloseWait | State::Closing | State::LastAck | State::TimeWait);
        // It has taken the guest's bytes and cannot take more, or the guest has gone without a word.
        let mut broken = socket.state() == State::Closed && !(self.guest_done && self.host_done);
        while self.writable && !broken && socket.can_recv() {
            let host = &mut self.host;
            let mut all = 0;
            let written = socket.recv(|data| {
                all = data.len();
                let written = host.write(data);
                (*written.as_ref().unwrap_or(&0), written)
            });
            match written {
                Ok(Ok(n)) => self.writable = n == all,
                Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                Ok(Err(e)) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                Ok(Err(_)) => broken = true,
                Err(_) => break,
            }
        }
        if self.guest_done && !self.shut && !broken && socket.recv_queue() == 0 {
            self.shut = true;
            // It fails when the host's end is gone, which reading tells.
            let _ = self.host.shutdown(Shutdown::Write);
        }
        while (self.readable || self.closed) && !self.host_done && !broken && socket.can_send() {
            let host = &mut self.host;
            let mut all = 0;
            let read = socket.send(|room| {
                all = room.len();
                let read = host.read(room);
                (*read.as_ref().unwrap_or(&0), read)
            });
            match read {
                Ok(Ok(0)) => {
                    self.host_done = true;
                    socket.close();
                }
                Ok(Ok(n)) => self.readable = n == all,
                Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                Ok(Err(e)) if e.kind() == ErrorKind::WouldBlock => {
                    (self.readable, self.closed) = (false, false);
                }
                Ok(Err(_)) => broken = true,
                Err(_) => break,
            }
        }
        if broken {
            socket.abort();
        }
        if self.waiting_since.is_none() {
            self.send(link, guest, time);
        }
        let socket = self.sockets.get_mut::<Socket>(self.handle);
        let over = match socket.state() {
            State::TimeWait => true,
            // With an endpoint it still has to say so.
            State::Closed => socket.local_endpoint().is_none(),
            _ => return false,
        };
        if !over || broken || self.shut || !self.guest_done {
            return over;
        }
        // The host reads slowly what the guest sent before its end.
        *self.waiting_since.get_or_insert(now) + PATIENCE <= now
    }

    fn send(&mut self, link: &mut Link, guest: SocketAddr, time: smoltcp::time::Instant) {
        let mut port = Port { link, packet: None, guest };
        while self.interface.poll_egress(time, &mut port, &mut self.sockets) == PollResult::SocketStateChanged {}
    }
}

/// Ends a connection of the host so that the other end hears that it was cut.
pub(super) fn abort(socket: TcpStream) {
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(&socket, sockopt::Linger, &now);
}

fn endpoint(of: SocketAddr) -> (IpAddress, u16) {
    (of.ip().into(), of.port())
}

/// Answers a segment that belongs to no connection.
fn reset(link: &mut Link, key: Ends, segment: &TcpPacket<&[u8]>) {
    if segment.rst() {
        return;
    }
    let len = segment.payload().len() + usize::from(segment.syn()) + usize::from(segment.fin());
    let (seq, ack) = match segment.ack() {
        true => (segment.ack_number(), None),
        false => (TcpSeqNumber(0), Some(segment.seq_number() + len)),
    };
    let answer = TcpRepr {
        src_port: key.far.port(),
        dst_port: key.guest.port(),
        control: TcpControl::Rst,
        seq_number: seq,
        ack_number: ack,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let mut bytes = vec![0; answer.buffer_len()];
    let (from, to) = (key.far.ip(), key.guest.ip());
    answer.emit(
        &mut TcpPacket::new_unchecked(&mut bytes[..]),
        &from.into(),
        &to.into(),
        &phy::ChecksumCapabilities::default(),
    );
    link.packet(from, to, IpProtocol::Tcp, &bytes);
}

/// The cable as one connection's interface sees it: a packet that has come, or room for those that go.
struct Port<'a> {
    link: &'a mut Link,
    packet: Option<&'a [u8]>,
    guest: SocketAddr,
}

struct Incoming<'a>(&'a [u8]);

impl phy::RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Outgoing<'a>(&'a mut Link, SocketAddr);

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.frame(self.1.ip(), len, f)
    }
}

impl phy::Device for Port<'_> {
    type RxToken<'t>
        = Incoming<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outgoing<'t>
    where
        Self: 't;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        self.packet.take().map(|packet| (Incoming(packet), Outgoing(self.link, self.guest)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        self.link.has_room().then_some(Outgoing(self.link, self.guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}
