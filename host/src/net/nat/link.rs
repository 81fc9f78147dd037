//! The cable's side of the NAT: who is who on it, and the frames that go to the guest.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::{IpProtocol, checksum};

use super::config::Addresses;

/// Longest IP packet on the cable.
pub(super) const MTU: usize = 1500;
/// Longest Ethernet header that we write.
pub(super) const ETHERNET: usize = 14;
/// Frames that may wait for the card before flows have to.
const ROOM: usize = 256;
/// Frames beyond which not even answers to the guest's own frames wait.
const MOST: usize = 2 * ROOM;
/// Addresses of the guest that are known at a time. A guest that uses more has its oldest asked for again.
const NEIGHBORS: usize = 256;
/// Frames that wait for the guest to say where an address is.
const UNRESOLVED: usize = 32;

pub(super) type Mac = [u8; 6];
const BROADCAST: Mac = [0xff; 6];

pub(super) const IPV4: u16 = 0x0800;
pub(super) const ARP: u16 = 0x0806;
pub(super) const IPV6: u16 = 0x86dd;

/// The cable.
pub(super) struct Link {
    pub addresses: Addresses,
    /// Ours.
    pub mac: Mac,
    out: VecDeque<Vec<u8>>,
    neighbors: HashMap<IpAddr, Mac>,
    /// The keys of `neighbors` as they came.
    order: VecDeque<IpAddr>,
    last: Option<(IpAddr, Mac)>,
    unresolved: VecDeque<(IpAddr, Vec<u8>)>,
    /// The next datagram that is sent in fragments.
    ident: u32,
}

impl Link {
    pub fn new(addresses: Addresses) -> Link {
        let [a, b, c, d] = addresses.gateway4().octets();
        Link {
            addresses,
            // Locally administered, and the same in every run: guests keep it in their caches.
            mac: [0x52, 0x55, a, b, c, d],
            out: VecDeque::new(),
            neighbors: HashMap::new(),
            order: VecDeque::new(),
            last: None,
            unresolved: VecDeque::new(),
            ident: 0,
        }
    }

    /// Whether a flow may send now.
    pub fn has_room(&self) -> bool {
        self.out.len() < ROOM
    }

    /// The next frame for the card.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.out.pop_front()
    }

    /// Bytes that wait, for the tests of bounds.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.out.iter().chain(self.unresolved.iter().map(|(_, frame)| frame)).map(Vec::len).sum()
    }

    /// Notes where an address of the guest is, and sends what waited for it.
    pub fn learn(&mut self, address: IpAddr, mac: Mac) {
        if self.last == Some((address, mac)) || mac[0] & 1 != 0 {
            return;
        }
        self.last = Some((address, mac));
        if self.neighbors.insert(address, mac).is_none() {
            self.order.push_back(address);
            if self.order.len() > NEIGHBORS
                && let Some(oldest) = self.order.pop_front()
            {
                self.neighbors.remove(&oldest);
            }
        }
        for (to, mut frame) in std::mem::take(&mut self.unresolved) {
            if to == address {
                frame[..6].copy_from_slice(&mac);
                self.push(frame);
            } else {
                self.unresolved.push_back((to, frame));
            }
        }
    }

    /// The guest's IPv4 address: the one that it gets by DHCP, or one that it has given itself.
    pub fn guest4(&self) -> Option<Ipv4Addr> {
        let leased = self.addresses.guest4(0);
        if leased.is_some_and(|leased| self.neighbors.contains_key(&leased.into())) {
            return leased;
        }
        let own = self.order.iter().rev().find_map(|address| match address {
            IpAddr::V4(a) => Some(*a),
            IpAddr::V6(_) => None,
        });
        own.or(leased)
    }

    /// The guest's latest IPv6 address that others can send to.
    pub fn guest6(&self) -> Option<Ipv6Addr> {
        self.order.iter().rev().find_map(|address| match address {
            IpAddr::V6(a) if self.addresses.prefix_of(*a).is_some() => Some(*a),
            _ => None,
        })
    }

    fn push(&mut self, frame: Vec<u8>) {
        // A guest that asks and asks, and reads none of it, loses the answers.
        if self.out.len() < MOST {
            self.out.push_back(frame);
        }
    }

    /// A frame to an Ethernet address.
    pub fn frame_to(&mut self, mac: Mac, kind: u16, packet: &[u8]) {
        let mut frame = Vec::with_capacity(ETHERNET + packet.len());
        self.header(&mut frame, mac, kind);
        frame.extend_from_slice(packet);
        self.push(frame);
    }

    fn header(&self, frame: &mut Vec<u8>, mac: Mac, kind: u16) {
        frame.extend_from_slice(&mac);
        frame.extend_from_slice(&self.mac);
        frame.extend_from_slice(&kind.to_be_bytes());
    }

    /// A frame with an IP packet of `len` bytes, which `fill` writes.
    pub fn frame<R>(&mut self, to: IpAddr, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mac = self.mac_of(to);
        let mut frame = Vec::with_capacity(ETHERNET + len);
        self.header(&mut frame, mac.unwrap_or(BROADCAST), if to.is_ipv4() { IPV4 } else { IPV6 });
        frame.resize(ETHERNET + len, 0);
        let done = fill(&mut frame[ETHERNET..]);
        if mac.is_some() {
            self.push(frame);
            return done;
        }
        self.solicit(to);
        if self.unresolved.len() == UNRESOLVED {
            self.unresolved.pop_front();
        }
        self.unresolved.push_back((to, frame));
        done
    }

    fn mac_of(&self, to: IpAddr) -> Option<Mac> {
        match (self.last, to) {
            (Some((address, mac)), _) if address == to => Some(mac),
            (_, IpAddr::V6(a)) if a.is_multicast() => Some(multicast(a)),
            (_, IpAddr::V4(a)) if a.is_broadcast() || a == self.addresses.broadcast4() => Some(BROADCAST),
            _ => self.neighbors.get(&to).copied(),
        }
    }

    /// Sends what IP carries, in fragments if need be.
    pub fn packet(&mut self, from: IpAddr, to: IpAddr, protocol: IpProtocol, payload: &[u8]) {
        let protocol = u8::from(protocol);
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.packet4(from, to, protocol, payload),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.packet6(from, to, protocol, payload),
            _ => {}
        }
    }

    fn packet4(&mut self, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) {
        const HEADER: usize = 20;
        let whole = HEADER + payload.len() <= MTU;
        if !whole {
            self.ident += 1;
        }
        let ident = if whole { 0 } else { self.ident as u16 };
        let step = if whole { payload.len().max(1) } else { (MTU - HEADER) & !7 };
        let mut offset = 0;
        loop {
            let part = &payload[offset..payload.len().min(offset + step)];
            let more = offset + part.len() < payload.len();
            let flags = if whole { 0x4000 } else { u16::from(more) << 13 | (offset / 8) as u16 };
            self.frame(to.into(), HEADER + part.len(), |packet| {
                packet[0] = 0x45;
                packet[2..4].copy_from_slice(&((HEADER + part.len()) as u16).to_be_bytes());
                packet[4..6].copy_from_slice(&ident.to_be_bytes());
                packet[6..8].copy_from_slice(&flags.to_be_bytes());
                packet[8] = 64;
                packet[9] = protocol;
                packet[12..16].copy_from_slice(&from.octets());
                packet[16..20].copy_from_slice(&to.octets());
                let sum = !checksum::data(&packet[..HEADER]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
                packet[HEADER..].copy_from_slice(part);
            });
            offset += part.len();
            if !more {
                return;
            }
        }
    }

    fn packet6(&mut self, from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) {
        const HEADER: usize = 40;
        const FRAGMENT: usize = 8;
        let whole = HEADER + payload.len() <= MTU;
        if !whole {
            self.ident += 1;
        }
        let ident = self.ident;
        let step = if whole { payload.len().max(1) } else { (MTU - HEADER - FRAGMENT) & !7 };
        let extra = if whole { 0 } else { FRAGMENT };
        let mut offset = 0;
        loop {
            let part = &payload[offset..payload.len().min(offset + step)];
            let more = offset + part.len() < payload.len();
            self.frame(to.into(), HEADER + extra + part.len(), |packet| {
                packet[0] = 0x60;
                packet[4..6].copy_from_slice(&((extra + part.len()) as u16).to_be_bytes());
                packet[6] = if whole { protocol } else { IpProtocol::Ipv6Frag.into() };
                // Neighbour discovery is only believed with all hops left.
                packet[7] = 255;
                packet[8..24].copy_from_slice(&from.octets());
                packet[24..40].copy_from_slice(&to.octets());
                if !whole {
                    packet[40] = protocol;
                    packet[42..44].copy_from_slice(&(offset as u16 | u16::from(more)).to_be_bytes());
                    packet[44..48].copy_from_slice(&ident.to_be_bytes());
                }
                packet[HEADER + extra..].copy_from_slice(part);
            });
            offset += part.len();
            if !more {
                return;
            }
        }
    }

    /// Sends a UDP datagram.
    pub fn udp(&mut self, from: SocketAddr, to: SocketAddr, data: &[u8]) {
        let len = 8 + data.len();
        if len > 0xffff {
            return;
        }
        let mut datagram = Vec::with_capacity(len);
        datagram.extend_from_slice(&from.port().to_be_bytes());
        datagram.extend_from_slice(&to.port().to_be_bytes());
        datagram.extend_from_slice(&(len as u16).to_be_bytes());
        datagram.extend_from_slice(&[0, 0]);
        datagram.extend_from_slice(data);
        // 0 stands for none.
        let sum = match sum(from.ip(), to.ip(), IpProtocol::Udp, &datagram) {
            0 => 0xffff,
            sum => sum,
        };
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        self.packet(from.ip(), to.ip(), IpProtocol::Udp, &datagram);
    }

    /// Sends an ICMP or ICMPv6 message, whose checksum is still to be filled in.
    pub fn icmp(&mut self, from: IpAddr, to: IpAddr, mut message: Vec<u8>) {
        message[2..4].fill(0);
        let (protocol, sum) = match from {
            IpAddr::V4(_) => (IpProtocol::Icmp, !checksum::data(&message)),
            IpAddr::V6(_) => (IpProtocol::Icmpv6, sum(from, to, IpProtocol::Icmpv6, &message)),
        };
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.packet(from, to, protocol, &message);
    }

    /// Asks the guest where an address of its is.
    fn solicit(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => {
                let request = super::neighbors::arp(1, self.mac, self.addresses.gateway4(), [0; 6], address);
                self.frame_to(BROADCAST, ARP, &request);
            }
            IpAddr::V6(address) => {
                let message = super::neighbors::solicitation(address, self.mac);
                let to = super::neighbors::solicited_node(address);
                self.icmp(super::config::ROUTER.into(), to.into(), message);
            }
        }
    }
}

/// The checksum of a message with the pseudo header of its protocol; 0 if the message carries the right one.
pub(super) fn sum(from: IpAddr, to: IpAddr, protocol: IpProtocol, message: &[u8]) -> u16 {
    let header = checksum::pseudo_header(&from.into(), &to.into(), protocol, message.len() as u32);
    !checksum::combine(&[header, checksum::data(message)])
}

fn multicast(address: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = address.octets();
    [0x33, 0x33, a, b, c, d]
}
