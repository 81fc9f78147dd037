//! ICMP and ICMPv6: echo, and the errors that the guest is told of.
//!
//! The NAT answers echo requests to itself. Those to the outside go through sockets of the host, one for each address
//! and identifier, where the host has such sockets for us; elsewhere the guest hears that it is administratively
//! prohibited.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::config::Behind;
use super::engine::Packet;
use super::host::{Host, Owner};
use super::link::Link;
use super::outside::Request;
use super::slab::Slab;

/// Pings under way at a time.
const FLOWS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests that wait for their socket.
const WAITING: usize = 4;
/// Bytes of a header that carries echoes.
const HEADER: usize = 8;

/// What the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    Host,
    Port,
    Prohibited,
    /// The packet's hops are used up.
    Hops,
}

/// The words of one family for echoes.
fn echo(family: IpAddr) -> (u8, u8) {
    if family.is_ipv4() { (8, 0) } else { (128, 129) }
}

/// Tells the guest why its packet (from the IP header on) went no further.
pub(super) fn unreachable(link: &mut Link, guest: IpAddr, raw: &[u8], why: Unreachable) {
    let (kind, code) = match (guest, why) {
        (IpAddr::V4(_), Unreachable::Host) => (3, 1),
        (IpAddr::V4(_), Unreachable::Port) => (3, 3),
        (IpAddr::V4(_), Unreachable::Prohibited) => (3, 13),
        (IpAddr::V4(_), Unreachable::Hops) => (11, 0),
        (IpAddr::V6(_), Unreachable::Host) => (1, 3),
        (IpAddr::V6(_), Unreachable::Port) => (1, 4),
        (IpAddr::V6(_), Unreachable::Prohibited) => (1, 1),
        (IpAddr::V6(_), Unreachable::Hops) => (3, 0),
    };
    // As much as stays below the least that every link carries.
    let most = if guest.is_ipv4() { 576 - 28 } else { 1280 - 48 };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(&raw[..raw.len().min(most)]);
    let from = gateway(link, guest);
    link.icmp(from, guest, message);
}

/// The gateway as an address of the guest's sees it.
pub(super) fn gateway(link: &Link, guest: IpAddr) -> IpAddr {
    match guest {
        IpAddr::V4(_) => link.addresses.gateway4().into(),
        IpAddr::V6(a) => match link.addresses.prefix_of(a) {
            Some(prefix) => link.addresses.gateway6(prefix).into(),
            None => super::config::ROUTER.into(),
        },
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    guest: IpAddr,
    to: IpAddr,
    ident: u16,
}

struct Ping {
    key: Key,
    ticket: u64,
    socket: Option<UdpSocket>,
    /// Messages from the identifier on.
    waiting: Vec<Vec<u8>>,
    /// The start of the latest request.
    quote: Vec<u8>,
    last: Instant,
}

/// Pings of the outside.
#[derive(Default)]
pub(super) struct Pings {
    flows: Slab<Ping>,
    by_key: HashMap<Key, usize>,
    told: bool,
    buffer: Vec<u8>,
}

impl Pings {
    /// An ICMP or ICMPv6 message of the guest that is no neighbour discovery.
    pub fn input(&mut self, link: &mut Link, host: &mut Host, outbound: bool, packet: &Packet, now: Instant) {
        let message = packet.payload;
        let (request, reply) = echo(packet.from);
        if message.len() < HEADER || message[0] != request {
            return;
        }
        match link.addresses.behind(packet.to) {
            Behind::Gateway | Behind::Dns => answer(link, packet.to, packet.from, reply, message),
            Behind::Outside if outbound => self.send(host, packet, now),
            Behind::Outside => unreachable(link, packet.from, packet.raw, Unreachable::Prohibited),
            Behind::Nobody if packet.is_multicast(link) => {
                let from = gateway(link, packet.from);
                answer(link, from, packet.from, reply, message);
            }
            Behind::Nobody => unreachable(link, packet.from, packet.raw, Unreachable::Host),
        }
    }

    fn send(&mut self, host: &mut Host, packet: &Packet, now: Instant) {
        let ident = u16::from_be_bytes([packet.payload[4], packet.payload[5]]);
        let key = Key { guest: packet.from, to: packet.to, ident };
        let at = match self.by_key.get(&key) {
            Some(at) => *at,
            None => {
                if self.flows.len() >= FLOWS {
                    return;
                }
                let ping = Ping { key, ticket: 0, socket: None, waiting: Vec::new(), quote: Vec::new(), last: now };
                let at = self.flows.insert(ping);
                self.by_key.insert(key, at);
                let ticket = host.ask(Owner::Ping(at), &Request::Ping(packet.to));
                self.flows.get_mut(at).expect("just put there").ticket = ticket;
                at
            }
        };
        let Some(ping) = self.flows.get_mut(at) else { return };
        ping.last = now;
        ping.quote = packet.raw[..packet.raw.len().min(128)].to_vec();
        match &ping.socket {
            Some(socket) => drop(socket.send(packet.payload)),
            None if ping.waiting.len() < WAITING => ping.waiting.push(packet.payload.to_vec()),
            None => {}
        }
        host.work(Owner::Ping(at));
    }

    /// Its socket has come, or not.
    pub fn answered(&mut self, link: &mut Link, host: &mut Host, at: usize, ticket: u64, fd: io::Result<OwnedFd>) {
        let Some(ping) = self.flows.get_mut(at).filter(|ping| ping.ticket == ticket) else { return };
        let Ok(fd) = fd else {
            if !std::mem::replace(&mut self.told, true) {
                tracing::warn!(
                    "the host lets us ping nobody outside (net.ipv4.ping_group_range on Linux, root on FreeBSD): the \
                     guest is told that it is administratively prohibited"
                );
            }
            let (guest, quote) = (ping.key.guest, std::mem::take(&mut ping.quote));
            unreachable(link, guest, &quote, Unreachable::Prohibited);
            return self.remove(at);
        };
        let socket = UdpSocket::from(fd);
        if host.watch(&socket, Owner::Ping(at)).is_err() {
            return self.remove(at);
        }
        ping.waiting.drain(..).for_each(|message| drop(socket.send(&message)));
        ping.socket = Some(socket);
    }

    /// Takes what has come for one of them. False: there was no room for all of it.
    pub fn turn(&mut self, link: &mut Link, at: usize) -> bool {
        self.buffer.resize(1 << 16, 0);
        let Some(ping) = self.flows.get_mut(at) else { return true };
        let Some(socket) = &ping.socket else { return true };
        let (_, reply) = echo(ping.key.to);
        let mut gone = None;
        while link.has_room() {
            match socket.recv(&mut self.buffer) {
                Ok(len) => {
                    let message = body(ping.key.to, &self.buffer[..len]);
                    // A raw socket hears of the pings of others, too. One for pings has an identifier of its own.
                    let ours = cfg!(target_os = "linux") || message.get(4..6) == Some(&ping.key.ident.to_be_bytes());
                    if message.len() < HEADER || message[0] != reply || !ours {
                        continue;
                    }
                    let mut message = message.to_vec();
                    message[4..6].copy_from_slice(&ping.key.ident.to_be_bytes());
                    link.icmp(ping.key.to, ping.key.guest, message);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => {
                    gone = Some((ping.key.guest, std::mem::take(&mut ping.quote)));
                    break;
                }
            }
        }
        let Some((guest, quote)) = gone else { return false };
        if !quote.is_empty() {
            unreachable(link, guest, &quote, Unreachable::Host);
        }
        true
    }

    /// Forgets those that nobody uses. Returns whether there are others.
    pub fn sweep(&mut self, now: Instant) -> bool {
        let old: Vec<usize> =
            self.flows.iter().filter(|(_, ping)| ping.last + PATIENCE <= now).map(|(at, _)| at).collect();
        old.into_iter().for_each(|at| self.remove(at));
        self.flows.len() > 0
    }

    fn remove(&mut self, at: usize) {
        if let Some(ping) = self.flows.remove(at) {
            self.by_key.remove(&ping.key);
        }
    }
}

/// The ICMP message in what a socket received: a raw one of IPv4 puts the IP header before it.
fn body(family: IpAddr, received: &[u8]) -> &[u8] {
    match received.first() {
        Some(first) if family.is_ipv4() && first >> 4 == 4 => {
            received.get(usize::from(first & 15) * 4..).unwrap_or_default()
        }
        _ => received,
    }
}

fn answer(link: &mut Link, from: IpAddr, to: IpAddr, reply: u8, request: &[u8]) {
    let mut message = request.to_vec();
    message[0] = reply;
    link.icmp(from, to, message);
}
