//! The NAT by itself: frames in, frames out, and the host's sockets between them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use smoltcp::wire::{IpProtocol, Ipv4Packet, UdpPacket, checksum};

use super::config::{Behind, Config, Protocol};
use super::dhcp4::{self, Dhcp};
use super::dns::Dns;
use super::host::{Host, Owner};
use super::icmp::{Pings, Unreachable, unreachable};
use super::link::{ARP, ETHERNET, IPV4, IPV6, Link, Mac, sum};
use super::neighbors;
use super::outside::Rules;
use super::reassembly::{Fragment, Id, Reassembly};
use super::router6::{self, Router};
use super::tcp::Tcp;
use super::tftp::Tftp;
use super::udp::{Reach, Udp};

/// How often idle flows are looked for.
const SWEEP: Duration = Duration::from_secs(1);
const DNS: u16 = 53;
/// Extension headers of an IPv6 packet.
const EXTENSIONS: usize = 8;

/// A packet of the guest's.
pub(super) struct Packet<'a> {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: IpProtocol,
    pub hops: u8,
    /// The Ethernet address that it came from.
    pub mac: Mac,
    /// What IP carries.
    pub payload: &'a [u8],
    /// All of it, from the IP header on, which for IPv6 has no extensions.
    pub raw: &'a [u8],
}

/// What a flow is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    pub guest: SocketAddr,
    /// The other end as the guest sees it.
    pub far: SocketAddr,
}

impl Packet<'_> {
    fn port(&self, at: usize) -> u16 {
        self.payload.get(at..at + 2).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]))
    }

    /// The guest's end.
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(self.from, self.port(0))
    }

    /// The other end.
    pub fn target(&self) -> SocketAddr {
        SocketAddr::new(self.to, self.port(2))
    }

    pub fn ends(&self) -> Ends {
        Ends { guest: self.source(), far: self.target() }
    }

    /// Whether it is for many.
    pub fn is_multicast(&self, link: &Link) -> bool {
        match self.to {
            IpAddr::V4(a) => a.is_multicast() || a.is_broadcast() || a == link.addresses.broadcast4(),
            IpAddr::V6(a) => a.is_multicast(),
        }
    }
}

/// The NAT.
pub(super) struct Engine {
    link: Link,
    host: Host,
    reach: Reach,
    bootfile: Option<String>,
    has_tftp: bool,
    dhcp: Dhcp,
    router: Router,
    dns: Dns,
    pings: Pings,
    udp: Udp,
    tcp: Tcp,
    tftp: Tftp,
    fragments: Reassembly,
    sweep: Option<Instant>,
    /// Protocols that the log has had its line on, a bit each.
    told: [u128; 2],
    /// Which of `Owner::Listener` are what.
    listeners: Vec<(Protocol, usize)>,
}

/// A port of the host, open.
pub(super) enum Listening {
    Tcp(TcpListener, u16),
    Udp(UdpSocket, u16),
}

impl Engine {
    pub fn new(config: &Config, listening: Vec<Listening>, now: Instant) -> io::Result<Engine> {
        let local = |listening: &Listening| match listening {
            Listening::Tcp(..) => None,
            Listening::Udp(socket, _) => Some(socket.local_addr()),
        };
        let rules = Rules {
            loopback: config.host_loopback,
            outbound: config.outbound,
            resolvers: config.resolvers.clone(),
            listeners: listening.iter().filter_map(local).collect::<io::Result<_>>()?,
            tftp: config.tftp.clone(),
        };
        let mut engine = Engine {
            link: Link::new(config.addresses.clone()),
            host: Host::new(rules)?,
            reach: Reach { outbound: config.outbound, loopback: config.host_loopback },
            bootfile: config.bootfile.clone(),
            has_tftp: config.tftp.is_some(),
            dhcp: Dhcp::default(),
            router: Router::default(),
            dns: Dns::default(),
            pings: Pings::default(),
            udp: Udp::default(),
            tcp: Tcp::new(now),
            tftp: Tftp::default(),
            fragments: Reassembly::default(),
            sweep: None,
            told: [0; 2],
            listeners: Vec::new(),
        };
        let (mut tcp, mut udp) = (0, 0);
        for listening in listening {
            let owner = Owner::Listener(engine.listeners.len());
            match listening {
                Listening::Tcp(socket, guest) => {
                    engine.host.watch(&socket, owner)?;
                    engine.tcp.listen(socket, guest);
                    engine.listeners.push((Protocol::Tcp, tcp));
                    tcp += 1;
                }
                Listening::Udp(socket, guest) => {
                    engine.host.watch(&socket, owner)?;
                    engine.udp.listen(socket, guest);
                    engine.listeners.push((Protocol::Udp, udp));
                    udp += 1;
                }
            }
        }
        Ok(engine)
    }

    /// What becomes readable when the host has something to say.
    pub fn fd(&self) -> RawFd {
        self.host.fd()
    }

    /// The next frame for the card.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.link.pop()
    }

    /// Connections and flows, for the tests of bounds.
    #[cfg(test)]
    pub fn flows(&self) -> (usize, usize) {
        (self.tcp.len(), self.udp.len())
    }

    /// Bytes that wait for the card, for the tests of bounds.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.link.waiting()
    }

    /// Whether flows could go on at once.
    pub fn is_busy(&self) -> bool {
        self.host.waiting() > 0 && self.link.has_room()
    }

    /// When it wants a turn whatever happens.
    pub fn deadline(&self) -> Option<Instant> {
        let all = [self.sweep, self.tcp.deadline(), self.dns.deadline(), self.tftp.deadline(), self.router.deadline()];
        all.into_iter().flatten().min()
    }

    /// Does what can be done, a bounded piece of it, for the host and by the time.
    pub fn turn(&mut self, now: Instant) {
        let Engine { link, host, dns, pings, udp, tcp, tftp, .. } = self;
        for ready in host.ready() {
            match ready.owner {
                Owner::Tcp(at) => tcp.ready(host, at, &ready),
                Owner::Broker => {}
                _ => Udp::ready(host, &ready),
            }
        }
        for (owner, ticket, fd) in host.answers() {
            match owner {
                Owner::Tcp(at) => tcp.answered(link, host, at, ticket, fd),
                Owner::Udp(at) => udp.answered(link, host, at, ticket, fd),
                Owner::Dns(at) => dns.answered(link, host, at, ticket, fd, now),
                Owner::Ping(at) => pings.answered(link, host, at, ticket, fd),
                Owner::Tftp(at) => tftp.answered(link, host, at, ticket, fd, now),
                Owner::Listener(_) | Owner::Broker => {}
            }
        }
        tcp.tick(host, now);
        if dns.deadline().is_some_and(|due| due <= now) {
            dns.tick(link, host, now);
        }
        if tftp.deadline().is_some_and(|due| due <= now) {
            tftp.tick(link, host, now);
        }
        self.router.tick(link, now);
        for _ in 0..host.waiting() {
            let Some(owner) = host.next() else { break };
            let done = match owner {
                Owner::Tcp(at) => tcp.turn(link, host, at, now),
                Owner::Udp(at) => udp.turn(link, at, now),
                Owner::Dns(at) => dns.turn(link, host, at, now),
                Owner::Ping(at) => pings.turn(link, at),
                Owner::Listener(n) => match self.listeners[n] {
                    (Protocol::Tcp, at) => tcp.listener(link, host, at, now),
                    (Protocol::Udp, at) => udp.listener(link, host, at, now),
                },
                Owner::Tftp(_) | Owner::Broker => true,
            };
            if !done {
                host.work(owner);
            }
        }
        if self.sweep.is_none_or(|sweep| sweep <= now) {
            let (udp, pings) = (self.udp.sweep(&mut self.host, now), self.pings.sweep(now));
            self.sweep = (udp || pings).then(|| now + SWEEP);
        }
    }

    /// A frame of the guest's.
    pub fn input(&mut self, frame: &[u8], now: Instant) {
        let Some((header, packet)) = frame.split_at_checked(ETHERNET) else { return };
        let to: Mac = header[..6].try_into().expect("6 of 14");
        let mac: Mac = header[6..12].try_into().expect("6 of 14");
        if to[0] & 1 == 0 && to != self.link.mac {
            return;
        }
        match u16::from_be_bytes([header[12], header[13]]) {
            ARP => neighbors::arp_input(&mut self.link, packet),
            IPV4 => self.ipv4(mac, packet, now),
            IPV6 => self.ipv6(mac, packet, false, now),
            // Bridges and switches talk to each other, and names of old networks to nobody.
            _ => {}
        }
    }

    fn ipv4(&mut self, mac: Mac, bytes: &[u8], now: Instant) {
        let Ok(header) = Ipv4Packet::new_checked(bytes) else { return };
        if header.version() != 4 || !header.verify_checksum() {
            return;
        }
        let (from, to) = (header.src_addr(), header.dst_addr());
        let raw = &bytes[..usize::from(header.total_len())];
        if header.more_frags() || header.frag_offset() != 0 {
            if !self.link.addresses.is_guests(from.into()) {
                return;
            }
            let protocol = header.next_header().into();
            let id = Id { from: from.into(), to: to.into(), protocol, ident: header.ident().into() };
            let fragment =
                Fragment { offset: header.frag_offset().into(), more: header.more_frags(), data: header.payload() };
            if let Some(payload) = self.fragments.add(id, &fragment, now)
                && let Some(whole) = whole4(from, to, protocol, header.hop_limit(), &payload)
            {
                self.ipv4(mac, &whole, now);
            }
            return;
        }
        let packet = Packet {
            from: from.into(),
            to: to.into(),
            protocol: header.next_header(),
            hops: header.hop_limit(),
            mac,
            payload: header.payload(),
            raw,
        };
        // A client of DHCP has no address yet.
        let asks =
            from.is_unspecified() && packet.protocol == IpProtocol::Udp && packet.target().port() == dhcp4::SERVER;
        if self.link.addresses.is_guests(packet.from) {
            self.link.learn(packet.from, mac);
        } else if !asks {
            return;
        }
        self.packet(&packet, now);
    }

    /// `reassembled`: it came in fragments, and is none.
    fn ipv6(&mut self, mac: Mac, bytes: &[u8], reassembled: bool, now: Instant) {
        const HEADER: usize = 40;
        let Some((header, rest)) = bytes.split_at_checked(HEADER) else { return };
        let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let Some(mut payload) = rest.get(..len).filter(|_| header[0] >> 4 == 6) else { return };
        let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&header[at..at + 16]).expect("16 bytes"));
        let (from, to) = (address(8), address(24));
        let guest = self.link.addresses.is_guests(from.into()) && !self.link.addresses.prefixes().is_empty();
        if !guest && !from.is_unspecified() {
            return;
        }
        let mut next = header[6];
        let mut plain = true;
        for _ in 0..EXTENSIONS {
            let extension = match IpProtocol::from(next) {
                IpProtocol::HopByHop | IpProtocol::Ipv6Route | IpProtocol::Ipv6Opts => {
                    payload.get(1).map(|units| (usize::from(*units) + 1) * 8)
                }
                IpProtocol::Ipv6Frag => Some(8),
                _ => break,
            };
            let Some((extension, rest)) = extension.and_then(|len| payload.split_at_checked(len)) else { return };
            if IpProtocol::from(next) == IpProtocol::Ipv6Frag {
                // A whole that is one, too, could go on like that for as long as it has bytes.
                if reassembled {
                    return;
                }
                let place = u16::from_be_bytes([extension[2], extension[3]]);
                let ident = u32::from_be_bytes([extension[4], extension[5], extension[6], extension[7]]);
                let id = Id { from: from.into(), to: to.into(), protocol: extension[0], ident };
                let fragment = Fragment { offset: usize::from(place & !7), more: place & 1 != 0, data: rest };
                // A fragment that is a whole is taken as one by others, too.
                if let Some(payload) = self.fragments.add(id, &fragment, now)
                    && let Some(whole) = whole6(header, extension[0], &payload)
                {
                    self.ipv6(mac, &whole, true, now);
                }
                return;
            }
            (next, payload, plain) = (extension[0], rest, false);
        }
        if guest {
            self.link.learn(from.into(), mac);
        }
        let stripped;
        let raw = match plain {
            true => &bytes[..HEADER + len],
            false => {
                let Some(whole) = whole6(header, next, payload) else { return };
                stripped = whole;
                &stripped[..]
            }
        };
        let packet = Packet {
            from: from.into(),
            to: to.into(),
            protocol: next.into(),
            hops: header[7],
            mac,
            payload: &raw[HEADER..],
            raw,
        };
        if guest || packet.protocol == IpProtocol::Icmpv6 {
            self.packet(&packet, now);
        }
    }

    fn packet(&mut self, packet: &Packet, now: Instant) {
        let Engine { link, host, reach, pings, tcp, .. } = self;
        if packet.hops <= 1 && link.addresses.behind(packet.to) == Behind::Outside {
            return unreachable(link, packet.from, packet.raw, Unreachable::Hops);
        }
        match packet.protocol {
            IpProtocol::Tcp => tcp.input(link, host, *reach, self.dns.good(), packet, now),
            IpProtocol::Udp => self.datagram(packet, now),
            IpProtocol::Icmp if packet.from.is_ipv4() => {
                if checksum::data(packet.payload) == 0xffff {
                    pings.input(link, host, reach.outbound, packet, now);
                    self.keep_sweeping(now);
                }
            }
            IpProtocol::Icmpv6 if packet.from.is_ipv6() => {
                if sum(packet.from, packet.to, IpProtocol::Icmpv6, packet.payload) == 0 {
                    self.icmpv6(packet, now);
                }
            }
            protocol => {
                let number = u8::from(protocol);
                let (word, bit) = (usize::from(number >> 7), 1 << (number & 127));
                // Group membership is reported to routers; there is nothing to route.
                if self.told[word] & bit == 0 && !packet.is_multicast(&self.link) {
                    self.told[word] |= bit;
                    tracing::warn!(
                        "the guest sends IP protocol {number}, which a NAT cannot pass on; a tap or a bridge can"
                    );
                }
            }
        }
    }

    fn icmpv6(&mut self, packet: &Packet, now: Instant) {
        let (IpAddr::V6(from), Some(kind)) = (packet.from, packet.payload.first()) else { return };
        match *kind {
            router6::SOLICITATION => {
                if packet.hops == 255 {
                    self.router.advertise(&mut self.link, now);
                }
            }
            134..=137 => neighbors::ndp_input(&mut self.link, from, packet.hops, packet.mac, packet.payload),
            _ if from.is_unspecified() => {}
            _ => {
                self.pings.input(&mut self.link, &mut self.host, self.reach.outbound, packet, now);
                self.keep_sweeping(now);
            }
        }
    }

    fn keep_sweeping(&mut self, now: Instant) {
        self.sweep.get_or_insert(now + SWEEP);
    }

    fn datagram(&mut self, packet: &Packet, now: Instant) {
        let Ok(datagram) = UdpPacket::new_checked(packet.payload) else { return };
        // For IPv6 there is none without a checksum.
        let unsummed = datagram.checksum() == 0 && packet.from.is_ipv4();
        if !unsummed && sum(packet.from, packet.to, IpProtocol::Udp, &packet.payload[..datagram.len().into()]) != 0 {
            return;
        }
        let data = datagram.payload();
        let Engine { link, host, reach, .. } = self;
        let behind = link.addresses.behind(packet.to);
        let to_us = behind == Behind::Gateway;
        match (packet.from, datagram.dst_port()) {
            (IpAddr::V4(from), dhcp4::SERVER) if to_us || packet.is_multicast(link) => {
                return self.dhcp.input(link, self.bootfile.as_deref(), from, data);
            }
            (IpAddr::V6(_), router6::DHCP_SERVER) if to_us || packet.to == router6::DHCP_SERVERS => {
                return router6::dhcp_input(link, self.bootfile.as_deref(), packet.source(), data);
            }
            (_, DNS) if behind == Behind::Dns => {
                return self.dns.input(link, host, reach.outbound, packet, data, now);
            }
            _ => {}
        }
        if to_us && self.has_tftp && self.tftp.input(link, host, packet, data, now) {
            return;
        }
        self.udp.input(link, host, *reach, packet, data, now);
        self.keep_sweeping(now);
    }
}

/// An IPv4 packet of fragments.
fn whole4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, hops: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(20 + payload.len()).ok()?;
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0, 0, 0, hops, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = !checksum::data(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    Some(packet)
}

/// An IPv6 packet without extensions.
fn whole6(header: &[u8], protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(payload.len()).ok()?;
    let mut packet = header.to_vec();
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    packet[6] = protocol;
    packet.extend(payload);
    Some(packet)
}
