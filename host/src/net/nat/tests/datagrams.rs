//! UDP, name service, echo, TFTP, and fragments.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use smoltcp::wire::IpProtocol;

use super::super::link::{IPV4, IPV6, Link};
use super::super::resolver;
use super::dhcp::frame;
use super::*;

/// The guest's side of the cable, frame by frame.
struct Hand {
    cable: Cable,
    link: Link,
}

/// A datagram that the guest got.
#[derive(Debug, PartialEq, Eq)]
struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    data: Vec<u8>,
}

impl Hand {
    fn new(config: Config) -> Hand {
        let mut link = Link::new(config.addresses.clone());
        let mut cable = Cable::new(config);
        let gateway = link.mac;
        link.mac = MAC;
        for (address, neighbor) in [(GUEST, GATEWAY), (GUEST6, GATEWAY6)] {
            link.learn(neighbor, gateway);
            // So that it knows where we are.
            link.icmp(address, neighbor, vec![if address.is_ipv4() { 8 } else { 128 }, 0, 0, 0, 0, 1, 0, 1]);
        }
        while let Some(frame) = link.pop() {
            cable.send(&frame);
        }
        cable.turn();
        cable.to_guest.clear();
        Hand { cable, link }
    }

    fn send(&mut self) {
        while let Some(mut frame) = self.link.pop() {
            // Whatever the address, it is beyond the gateway.
            frame[..6].copy_from_slice(&Link::new(config().addresses).mac);
            self.cable.send(&frame);
        }
    }

    fn udp(&mut self, from: SocketAddr, to: SocketAddr, data: &[u8]) {
        self.link.learn(to.ip(), [2; 6]);
        self.link.udp(from, to, data);
        self.send();
    }

    /// The next datagram for the guest; in fragments they are put together.
    fn datagram(&mut self) -> Datagram {
        let mut parts: Vec<u8> = Vec::new();
        self.cable.until("datagram", |frame| {
            let v4 = frame[12..14] == IPV4.to_be_bytes();
            let packet = &frame[14..];
            let ip = |at: usize| match v4 {
                true => IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap()),
                false => IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap()),
            };
            let (protocol, from, to, header) = match v4 {
                true => (packet[9], ip(12), ip(16), 20),
                false => (packet[6], ip(8), ip(24), 40),
            };
            let (protocol, more, payload) = match protocol {
                44 => (packet[40], packet[43] & 1 != 0, &packet[48..]),
                _ => (protocol, v4 && packet[6] & 0x20 != 0, &packet[header..]),
            };
            if protocol != 17 {
                return None;
            }
            parts.extend_from_slice(payload);
            if more {
                return None;
            }
            assert_eq!(super::super::link::sum(from, to, IpProtocol::Udp, &parts), 0);
            let port = |at: usize| u16::from_be_bytes([parts[at], parts[at + 1]]);
            let (from, to) = (SocketAddr::new(from, port(0)), SocketAddr::new(to, port(2)));
            Some(Datagram { from, to, data: parts[8..].to_vec() })
        })
    }

    /// The next ICMP message: who it is from, its type and code, and the rest from the fifth byte on.
    fn icmp(&mut self) -> (IpAddr, [u8; 2], Vec<u8>) {
        self.cable.until("ICMP message", |frame| {
            let packet = &frame[14..];
            if frame[12..14] == IPV4.to_be_bytes() && packet[9] == 1 {
                let from = <[u8; 4]>::try_from(&packet[12..16]).unwrap();
                return Some((from.into(), [packet[20], packet[21]], packet[24..].to_vec()));
            }
            // Neighbour discovery is not meant.
            let is_message =
                frame[12..14] == IPV6.to_be_bytes() && packet[6] == 58 && !(133..=137).contains(&packet[40]);
            let from = is_message.then(|| <[u8; 16]>::try_from(&packet[8..24]).unwrap())?;
            Some((from.into(), [packet[40], packet[41]], packet[44..].to_vec()))
        })
    }
}

fn loopback(v6: bool) -> (UdpSocket, SocketAddr, SocketAddr) {
    let host: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let socket = UdpSocket::bind((host, 0)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let (guest, gateway) = if v6 { (GUEST6, GATEWAY6) } else { (GUEST, GATEWAY) };
    (socket, SocketAddr::new(gateway, port), SocketAddr::new(guest, 4000))
}

#[test]
fn datagrams_of_all_sizes_go_both_ways() {
    for v6 in [false, true] {
        let (socket, server, guest) = loopback(v6);
        let mut hand = Hand::new(config());
        for len in [0, 1, 1400, 1472, 1473, 4000, 60_000] {
            let data: Vec<u8> = (0..len).map(|n| (n % 253) as u8).collect();
            hand.udp(guest, server, &data);
            hand.cable.turn();
            let mut got = vec![0; 1 << 16];
            let (n, peer) = socket.recv_from(&mut got).unwrap();
            assert!(got[..n] == data, "{len}");
            socket.send_to(&data, peer).unwrap();
            assert!(hand.datagram() == Datagram { from: server, to: guest, data }, "{len}");
        }
        assert_eq!(hand.cable.engine.flows().1, 1);
    }
}

#[test]
fn a_closed_port_is_unreachable_and_so_is_what_leads_nowhere() {
    for v6 in [false, true] {
        let (socket, server, guest) = loopback(v6);
        drop(socket);
        let mut hand = Hand::new(config());
        hand.udp(guest, server, b"x");
        let (from, kind, quote) = hand.icmp();
        assert_eq!((from, kind), (server.ip(), if v6 { [1, 4] } else { [3, 3] }));
        assert_eq!(quote[4], if v6 { 0x60 } else { 0x45 }, "it quotes the packet");
        let nowhere = if v6 { "[fd00:0:0:2::99]:1" } else { "10.0.2.99:1" };
        hand.udp(guest, nowhere.parse().unwrap(), b"x");
        assert_eq!(hand.icmp().1, if v6 { [1, 3] } else { [3, 1] });
    }
    let mut hand = Hand::new(Config { outbound: false, ..config() });
    hand.udp(SocketAddr::new(GUEST, 1), "192.0.2.1:9".parse().unwrap(), b"x");
    assert_eq!(hand.icmp().1, [3, 13]);
}

#[test]
fn flows_are_bounded_and_the_oldest_goes() {
    let (_socket, server, guest) = loopback(false);
    let mut hand = Hand::new(config());
    for port in 1..=1100 {
        hand.udp(SocketAddr::new(guest.ip(), port), server, b"x");
        hand.cable.turn();
    }
    assert_eq!(hand.cable.engine.flows().1, 1024);
}

/// A query for `x`, with a number.
fn query(number: u8) -> Vec<u8> {
    vec![0, number, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1]
}

#[test]
fn names_are_asked_of_the_hosts_servers_and_of_the_next_if_one_is_dead() {
    for v6 in [false, true] {
        let (dead, ..) = loopback(false);
        let gone = dead.local_addr().unwrap();
        drop(dead);
        let (server, _, guest) = loopback(v6);
        let resolvers = vec![gone, server.local_addr().unwrap()];
        let mut hand = Hand::new(Config { resolvers, ..config() });
        let dns: SocketAddr = if v6 { "[fd00:0:0:2::3]:53" } else { "10.0.2.3:53" }.parse().unwrap();
        for number in [1, 2] {
            hand.udp(guest, dns, &query(number));
            server.set_nonblocking(true).unwrap();
            let mut got = [0; 100];
            let end = Instant::now() + SOON;
            let (len, peer) = loop {
                assert!(Instant::now() < end);
                hand.cable.turn();
                if let Ok(got) = server.recv_from(&mut got) {
                    break got;
                }
            };
            assert_eq!(got[..len], query(number));
            got[2] |= 0x80;
            server.send_to(&got[..len], peer).unwrap();
            assert_eq!(hand.datagram(), Datagram { from: dns, to: guest, data: got[..len].to_vec() });
        }
    }
}

#[test]
fn without_a_name_server_the_guest_hears_so_soon() {
    let (dead, ..) = loopback(false);
    let (silent, _, guest) = loopback(false);
    let gone = dead.local_addr().unwrap();
    drop(dead);
    for (resolvers, limit) in [(vec![gone], 2), (vec![silent.local_addr().unwrap()], 8)] {
        let mut hand = Hand::new(Config { resolvers, ..config() });
        let begun = Instant::now();
        hand.udp(guest, "10.0.2.3:53".parse().unwrap(), &query(7));
        let answer = hand.datagram().data;
        assert!(begun.elapsed() < Duration::from_secs(limit));
        assert_eq!((answer[..2].to_vec(), answer[2] & 0x80, answer[3] & 15), (vec![0, 7], 0x80, 2));
        assert_eq!(answer[12..], query(7)[12..]);
    }
    let mut hand = Hand::new(Config { outbound: false, ..config() });
    hand.udp(guest, "10.0.2.3:53".parse().unwrap(), &query(7));
    assert_eq!(hand.datagram().data[3] & 15, 5);
    assert!(resolver("nonsense").is_err());
}

#[test]
fn the_gateway_and_the_name_server_answer_echoes() {
    let mut hand = Hand::new(config());
    for to in ["10.0.2.2", "10.0.2.3", "fe80::2", "fd00:0:0:2::2", "fd00:0:0:2::3"] {
        let to: IpAddr = to.parse().unwrap();
        let (guest, request, reply) = if to.is_ipv4() { (GUEST, 8, 0) } else { (GUEST6, 128, 129) };
        hand.link.learn(to, [2; 6]);
        let mut message = vec![request, 0, 0, 0, 1, 2, 3, 4];
        message.extend([0x55; 1000]);
        hand.link.icmp(guest, to, message.clone());
        hand.send();
        let (from, kind, rest) = hand.icmp();
        assert_eq!((from, kind), (to, [reply, 0]));
        assert_eq!(rest, message[4..]);
    }
}

#[test]
fn hops_are_counted() {
    let mut hand = Hand::new(config());
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 1, 17, 0, 0, 10, 0, 2, 15, 192, 0, 2, 1];
    let sum = !smoltcp::wire::checksum::data(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0x82, 0x9b, 0x82, 0x9b, 0, 8, 0, 0]);
    hand.cable.send(&frame(Link::new(config().addresses).mac, IPV4, &packet));
    assert_eq!(hand.icmp().1, [11, 0]);
}

/// A directory with a file of this many bytes, `boot/file`.
fn directory(name: &str, len: usize) -> (PathBuf, Vec<u8>) {
    let dir = std::env::temp_dir().join(format!("bhyve-rs-nat-{name}-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("boot")).unwrap();
    let data: Vec<u8> = (0..len).map(|n| (n % 249) as u8).collect();
    std::fs::write(dir.join("boot/file"), &data).unwrap();
    (dir, data)
}

#[test]
fn files_come_by_tftp_with_and_without_options() {
    // The second is a multiple of the block's size: an empty block ends it.
    for (len, options, block) in [(1300, "", 512), (1024, "", 512), (3000, "blksize\x001468\0tsize\x000\0", 1468)] {
        let (dir, data) = directory("tftp", len);
        let mut hand = Hand::new(Config { tftp: Some(dir.clone()), ..config() });
        let guest = SocketAddr::new(GUEST, 2000);
        let request = |name: &str| [b"\0\x01", name.as_bytes(), b"\0octet\0", options.as_bytes()].concat();
        hand.udp(guest, SocketAddr::new(GATEWAY, 69), &request("../boot/file"));
        assert_eq!(hand.datagram().data[..4], [0, 5, 0, 2]);
        hand.udp(guest, SocketAddr::new(GATEWAY, 69), &request("boot/none"));
        assert_eq!(hand.datagram().data[..4], [0, 5, 0, 1]);
        hand.udp(guest, SocketAddr::new(GATEWAY, 69), &request("/boot/file"));
        let mut packet = hand.datagram();
        let server = packet.from;
        if !options.is_empty() {
            assert_eq!(packet.data, format!("\0\x06blksize\x001468\0tsize\0{len}\0").as_bytes());
            hand.udp(guest, server, &[0, 4, 0, 0]);
            packet = hand.datagram();
        }
        let mut got: Vec<u8> = Vec::new();
        for number in 1u16.. {
            assert_eq!(packet.data[..4], [&[0, 3][..], &number.to_be_bytes()].concat());
            got.extend(&packet.data[4..]);
            if number == 2 {
                // Not acknowledged, it comes again; acknowledged twice, the next comes once.
                assert_eq!(hand.datagram(), packet);
                hand.udp(guest, server, &[0, 4, 0, 1]);
            }
            hand.udp(guest, server, &[&[0, 4][..], &number.to_be_bytes()].concat());
            if packet.data.len() < 4 + block {
                break;
            }
            packet = hand.datagram();
        }
        assert!(got == data, "{len}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}

#[test]
fn forwarded_datagrams_reach_the_guest_and_their_answers_the_sender() {
    for v6 in [false, true] {
        let probe = loopback(v6).0.local_addr().unwrap();
        let mut hand = Hand::new(Config { forwards: vec![forward(&format!("udp:{probe}:53"))], ..config() });
        let clients = [loopback(v6).0, loopback(v6).0];
        for (n, client) in clients.iter().enumerate() {
            client.send_to(&[n as u8], probe).unwrap();
            let got = hand.datagram();
            assert_eq!(got.data, [n as u8]);
            assert_eq!(got.to, SocketAddr::new(if v6 { GUEST6 } else { GUEST }, 53));
            assert_eq!(got.from.ip(), if v6 { GATEWAY6 } else { GATEWAY });
            for again in [10, 20] {
                hand.udp(got.to, got.from, &[n as u8 + again]);
                hand.cable.turn();
                let mut buffer = [0; 10];
                let (len, from) = client.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..len], from), (&[n as u8 + again][..], probe));
            }
            // What follows comes by the same flow.
            client.send_to(&[99], probe).unwrap();
            assert_eq!(hand.datagram(), Datagram { data: vec![99], ..got });
        }
        let taken = Nat::open(Config { forwards: vec![forward(&format!("udp:{probe}:1"))], ..config() });
        let error = format!("{:#}", taken.err().expect("the port is in use"));
        assert!(error.contains("the forward udp:") && error.contains("in use"), "{error}");
    }
}

#[test]
fn echoes_pass_to_the_outside_where_the_host_lets_them() {
    // An address of the host's that is not its loopback, if it has one.
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr());
    let Some(IpAddr::V4(own)) = own.ok().map(|own| own.ip()).filter(|own| !own.is_loopback()) else {
        return eprintln!("skipped: the host has no network");
    };
    let mut hand = Hand::new(config());
    hand.link.learn(own.into(), [2; 6]);
    hand.link.icmp(GUEST, own.into(), vec![8, 0, 0, 0, 7, 7, 0, 1, 1, 2, 3]);
    hand.send();
    let (from, kind, rest) = hand.icmp();
    if kind == [3, 13] {
        return eprintln!("skipped: net.ipv4.ping_group_range lets us ping nobody");
    }
    assert_eq!((from, kind, &rest[..]), (own.into(), [0, 0], &[7, 7, 0, 1, 1, 2, 3][..]));
}
