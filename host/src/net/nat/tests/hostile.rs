//! Guests that mean no good.

use emu::bench::{Place, Rng, fuzz_cases};
use smoltcp::wire::{IpProtocol, checksum};

use super::super::link::{IPV4, IPV6, sum};
use super::dhcp::frame;
use super::*;

/// Frames that one case sends.
const FRAMES: usize = 400;

/// Mostly well-formed all the way down to what is wrong with it.
fn packet(rng: &mut Rng) -> Vec<u8> {
    let v6 = rng.one_in(2);
    let mut payload = payload(rng);
    let protocol = rng.pick(&[6u8, 6, 6, 17, 17, 1, 58, 2, 44, 0, 43, 60, 132, 255]);
    let (from, to) = match v6 {
        false => (
            rng.pick(&["10.0.2.15", "10.0.2.15", "10.0.2.16", "0.0.0.0", "10.0.2.2", "192.0.2.1"]),
            rng.pick(&["10.0.2.2", "10.0.2.2", "10.0.2.3", "127.0.0.1", "10.0.2.255", "255.255.255.255", "224.0.0.1"]),
        ),
        true => (
            rng.pick(&["fd00:0:0:2::15", "fd00:0:0:2::15", "fe80::1", "::", "2001:db8::1"]),
            rng.pick(&["fd00:0:0:2::2", "fd00:0:0:2::2", "fe80::2", "fd00:0:0:2::3", "::1", "ff02::1", "ff02::1:2"]),
        ),
    };
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    // The right checksum more often than not, or nothing behind it is ever reached.
    let place = match protocol {
        6 => 16,
        17 => 6,
        1 | 58 => 2,
        _ => usize::MAX,
    };
    if !rng.one_in(16)
        && let Some(at) = payload.get_mut(place..place.saturating_add(2))
    {
        at.fill(0);
        if protocol == 17 && !rng.one_in(8) {
            let len = (payload.len() as u16).to_be_bytes();
            payload[4..6].copy_from_slice(&len);
        }
        let sum = match protocol {
            1 => !checksum::data(&payload),
            _ => sum(from, to, IpProtocol::from(protocol), &payload),
        };
        payload[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let len = (20 + payload.len()) as u16;
            let [l1, l0] = if rng.one_in(16) { (rng.next() as u16).to_be_bytes() } else { len.to_be_bytes() };
            let [f1, f0] = if rng.one_in(8) { (rng.next() as u16).to_be_bytes() } else { [0, 0] };
            let mut header = vec![0x45, 0, l1, l0, 0, rng.below(4) as u8, f1, f0, 64, protocol, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = !checksum::data(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let [l1, l0] = (payload.len() as u16).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, l1, l0, protocol, rng.pick(&[1, 64, 255])];
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        _ => unreachable!(),
    };
    packet.extend(payload);
    if rng.one_in(16) {
        packet.truncate(rng.below(packet.len()));
    }
    frame(
        [0xff; 6],
        if rng.one_in(64) {
            rng.next() as u16
        } else if v6 {
            IPV6
        } else {
            IPV4
        },
        &packet,
    )
}

/// What IP carries: few ports and sequence numbers, so that segments meet connections.
fn payload(rng: &mut Rng) -> Vec<u8> {
    let mut payload: Vec<u8> = (0..8 + rng.below(80)).map(|_| rng.value() as u8).collect();
    if rng.one_in(8) {
        payload.resize(rng.below(1480), 0);
    }
    if payload.len() >= 20 && !rng.one_in(4) {
        let far = rng.pick(&[PORT.load(std::sync::atomic::Ordering::Relaxed), 53, 67, 69, 547]);
        payload[..2].copy_from_slice(&(1000 + rng.below(4) as u16).to_be_bytes());
        payload[2..4].copy_from_slice(&far.to_be_bytes());
        payload[12] = rng.pick(&[0x50, 0x50, 0x60, 0x80, 0xf0, 0]);
        payload[13] = rng.pick(&[2, 2, 0x10, 0x10, 0x18, 0x11, 4, 0x14, 0x12, 0xff, 0]);
        if !rng.one_in(3) {
            payload[4..12].fill(0);
            payload[7] = rng.below(40) as u8;
        }
    }
    payload
}

/// Where the host listens.
static PORT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);

#[test]
fn arbitrary_frames_neither_stop_it_nor_fill_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    PORT.store(listener.local_addr().unwrap().port(), std::sync::atomic::Ordering::Relaxed);
    for case in 0..fuzz_cases() {
        let _place = Place(format!("case {case}"));
        let mut rng = Rng::new(case);
        let dir = std::env::temp_dir();
        let mut cable = Cable::new(Config { tftp: Some(dir), bootfile: Some("x".to_owned()), ..config() });
        cable.full = true;
        let mut streams = Vec::new();
        let mut acks: Vec<Vec<u8>> = Vec::new();
        for _ in 0..FRAMES {
            let mut next = packet(&mut rng);
            // An answer in the middle of a connection has numbers that nobody guesses.
            if rng.one_in(2)
                && let Some(answer) = acks.last()
                && let Some(reply) = follow(&mut rng, answer)
            {
                next = reply;
            }
            cable.send(&next);
            if rng.one_in(4) {
                cable.engine.turn(Instant::now());
            }
            if rng.one_in(8) {
                while let Some(frame) = cable.engine.pop() {
                    acks.push(frame);
                }
            }
            streams.extend(listener.accept().ok());
            if rng.one_in(16) {
                streams.pop();
            }
            assert!(cable.engine.waiting() < 2 << 20);
        }
        let (tcp, udp) = cable.engine.flows();
        assert!(tcp <= FRAMES && udp <= 1024);
    }
}

/// A segment that fits to one which the guest got, more or less.
fn follow(rng: &mut Rng, got: &[u8]) -> Option<Vec<u8>> {
    if got.get(12..14) != Some(&IPV4.to_be_bytes()) || got.get(23) != Some(&6) || got.len() < 54 {
        return None;
    }
    let tcp = &got[34..];
    let near = |rng: &mut Rng, at: usize| {
        let number = u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
        number.wrapping_add(rng.pick(&[0, 0, 0, 1, 1, 2, u32::MAX, 100, 1 << 16, 1 << 31]))
    };
    let data = rng.pick(&[0, 0, 1, 10, 1000]);
    let mut segment = [&tcp[2..4], &tcp[..2]].concat();
    segment.extend(near(rng, 8).to_be_bytes());
    segment.extend(near(rng, 4).to_be_bytes());
    segment.extend([0x50, rng.pick(&[0x10, 0x10, 0x18, 0x11, 0x19, 0x14, 4, 2, 0x12])]);
    segment.extend((rng.value() as u16).to_be_bytes());
    segment.extend([0; 4]);
    segment.resize(20 + data, 7);
    let (from, to) = (GUEST, GATEWAY);
    let sum = sum(from, to, IpProtocol::Tcp, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut link = super::super::link::Link::new(config().addresses);
    let mac = std::mem::replace(&mut link.mac, MAC);
    link.learn(to, mac);
    link.packet(from, to, IpProtocol::Tcp, &segment);
    link.pop()
}
