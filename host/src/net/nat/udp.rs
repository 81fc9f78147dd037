//! UDP: a connected socket of the host for each pair of endpoints.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::config::Behind;
use super::engine::{Ends, Packet};
use super::host::{Host, Owner, Ready};
use super::icmp::{Unreachable, gateway, unreachable};
use super::link::Link;
use super::outside::Request;
use super::slab::Slab;

/// Flows at a time; one more ends the one that was idle for longest.
const FLOWS: usize = 1024;
/// How long a flow may be idle: as long as most name no longer, and DNS is asked once.
const PATIENCE: Duration = Duration::from_secs(60);
const BRIEF: Duration = Duration::from_secs(10);
const DNS: u16 = 53;
/// Datagrams that wait for their flow's socket.
const WAITING: usize = 16;
/// Datagrams that one turn of a flow or a listener takes.
const BURST: usize = 64;
/// What a port of the host is forwarded with: its index among the listeners.
type Listener = usize;

struct Flow {
    key: Ends,
    ticket: u64,
    socket: Option<UdpSocket>,
    waiting: Vec<Vec<u8>>,
    quote: Vec<u8>,
    last: Instant,
}

/// A port of the host that leads to the guest.
struct Open {
    socket: UdpSocket,
    guest: u16,
}

/// All flows.
#[derive(Default)]
pub(super) struct Udp {
    flows: Slab<Flow>,
    by_key: HashMap<Ends, usize>,
    listeners: Vec<Open>,
    buffer: Vec<u8>,
}

impl Udp {
    /// Adds a port of the host.
    pub fn listen(&mut self, socket: UdpSocket, guest: u16) {
        self.listeners.push(Open { socket, guest });
    }

    /// A datagram of the guest's.
    pub fn input(
        &mut self,
        link: &mut Link,
        host: &mut Host,
        reach: Reach,
        packet: &Packet,
        data: &[u8],
        now: Instant,
    ) {
        let key = packet.ends();
        if let Some(&at) = self.by_key.get(&key) {
            return self.send(host, at, packet, data, now);
        }
        let to = match link.addresses.behind(packet.to) {
            Behind::Gateway if reach.loopback => SocketAddr::new(loopback(packet.to), key.far.port()),
            Behind::Outside if reach.outbound => key.far,
            Behind::Outside => return unreachable(link, packet.from, packet.raw, Unreachable::Prohibited),
            _ if packet.is_multicast(link) => return,
            Behind::Nobody => return unreachable(link, packet.from, packet.raw, Unreachable::Host),
            _ => return unreachable(link, packet.from, packet.raw, Unreachable::Port),
        };
        let at = self.begin(host, key, &Request::Udp(to), now);
        self.send(host, at, packet, data, now);
    }

    fn begin(&mut self, host: &mut Host, key: Ends, request: &Request, now: Instant) -> usize {
        if self.flows.len() >= FLOWS
            && let Some((oldest, _)) = self.flows.iter().min_by_key(|(_, flow)| flow.last)
        {
            self.remove(host, oldest);
        }
        let flow = Flow { key, ticket: 0, socket: None, waiting: Vec::new(), quote: Vec::new(), last: now };
        let at = self.flows.insert(flow);
        self.by_key.insert(key, at);
        let ticket = host.ask(Owner::Udp(at), request);
        self.flows.get_mut(at).expect("just put there").ticket = ticket;
        at
    }

    fn send(&mut self, host: &mut Host, at: usize, packet: &Packet, data: &[u8], now: Instant) {
        let Some(flow) = self.flows.get_mut(at) else { return };
        flow.last = now;
        flow.quote.clear();
        flow.quote.extend(&packet.raw[..packet.raw.len().min(128)]);
        let Some(socket) = &flow.socket else {
            if flow.waiting.len() < WAITING {
                flow.waiting.push(data.to_vec());
            }
            return;
        };
        // An error is one of an earlier datagram; it is read with what comes.
        if socket.send(data).is_err_and(|e| e.kind() != ErrorKind::WouldBlock) {
            host.work(Owner::Udp(at));
        }
    }

    /// A flow's socket has come, or not.
    pub fn answered(&mut self, link: &mut Link, host: &mut Host, at: usize, ticket: u64, fd: io::Result<OwnedFd>) {
        let Some(flow) = self.flows.get_mut(at).filter(|flow| flow.ticket == ticket) else { return };
        let socket = fd.map(UdpSocket::from).and_then(|socket| {
            host.watch(&socket, Owner::Udp(at))?;
            Ok(socket)
        });
        match socket {
            Ok(socket) => {
                for data in flow.waiting.drain(..) {
                    // As on a wire.
                    let _ = socket.send(&data);
                }
                flow.socket = Some(socket);
                host.work(Owner::Udp(at));
            }
            Err(_) => {
                let (guest, quote) = (flow.key.guest.ip(), std::mem::take(&mut flow.quote));
                if !quote.is_empty() {
                    unreachable(link, guest, &quote, Unreachable::Host);
                }
                self.remove(host, at);
            }
        }
    }

    /// The host says something of a socket.
    pub fn ready(host: &mut Host, ready: &Ready) {
        // That there is room again is nothing to a protocol that drops.
        if ready.readable {
            host.work(ready.owner);
        }
    }

    /// Takes what has come for a flow. False: there is more, or was no room.
    pub fn turn(&mut self, link: &mut Link, at: usize, now: Instant) -> bool {
        self.buffer.resize(1 << 16, 0);
        let Some(flow) = self.flows.get_mut(at) else { return true };
        let Some(socket) = &flow.socket else { return true };
        for _ in 0..BURST {
            if !link.has_room() {
                return false;
            }
            match socket.recv(&mut self.buffer) {
                Ok(len) => {
                    flow.last = now;
                    link.udp(flow.key.far, flow.key.guest, &self.buffer[..len]);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    let why = match e.kind() {
                        ErrorKind::ConnectionRefused => Unreachable::Port,
                        _ => Unreachable::Host,
                    };
                    let quote = std::mem::take(&mut flow.quote);
                    if !quote.is_empty() {
                        unreachable(link, flow.key.guest.ip(), &quote, why);
                    }
                }
            }
        }
        false
    }

    /// Takes what has come for a port of the host. False: there is more, or was no room.
    pub fn listener(&mut self, link: &mut Link, host: &mut Host, at: Listener, now: Instant) -> bool {
        self.buffer.resize(1 << 16, 0);
        for _ in 0..BURST {
            if !link.has_room() {
                return false;
            }
            let Some(open) = self.listeners.get(at) else { return true };
            let (len, peer) = match open.socket.recv_from(&mut self.buffer) {
                Ok(got) => got,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => continue,
            };
            let Some((guest, far)) = inward(link, peer, open.guest) else { continue };
            let key = Ends { guest, far };
            // Answers leave by a socket of their own: a confined process on FreeBSD may send nowhere else than to whom a
            // socket is connected.
            let flow = match self.by_key.get(&key) {
                Some(flow) => *flow,
                None => self.begin(host, key, &Request::Answer(at, peer), now),
            };
            if let Some(flow) = self.flows.get_mut(flow) {
                flow.last = now;
            }
            link.udp(far, guest, &self.buffer[..len]);
        }
        false
    }

    /// Forgets those that nobody uses. Returns whether there are others.
    pub fn sweep(&mut self, host: &mut Host, now: Instant) -> bool {
        let patience = |flow: &Flow| if flow.key.far.port() == DNS { BRIEF } else { PATIENCE };
        let old: Vec<usize> =
            self.flows.iter().filter(|(_, flow)| flow.last + patience(flow) <= now).map(|(at, _)| at).collect();
        old.into_iter().for_each(|at| self.remove(host, at));
        self.flows.len() > 0
    }

    fn remove(&mut self, host: &mut Host, at: usize) {
        if let Some(flow) = self.flows.remove(at) {
            self.by_key.remove(&flow.key);
            host.forget(flow.ticket);
        }
    }

    /// Flows, for the tests of bounds.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.flows.len()
    }
}

/// Where the guest may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    pub outbound: bool,
    pub loopback: bool,
}

/// The host's loopback address of a family.
pub(super) fn loopback(family: IpAddr) -> IpAddr {
    if family.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

/// The ends of a flow that a port of the host forwards, as the guest sees them: the one that it has, and the peer, for
/// which the gateway stands if the guest could not answer it otherwise.
pub(super) fn inward(link: &Link, peer: SocketAddr, port: u16) -> Option<(SocketAddr, SocketAddr)> {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let guest: IpAddr = match link.guest6() {
        Some(guest) if peer.is_ipv6() => guest.into(),
        _ => link.guest4()?.into(),
    };
    let direct = peer.is_ipv4() == guest.is_ipv4() && link.addresses.behind(peer.ip()) == Behind::Outside;
    let far = if direct { peer.ip() } else { gateway(link, guest) };
    Some((SocketAddr::new(guest, port), SocketAddr::new(far, peer.port())))
}
