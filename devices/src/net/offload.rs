//! What cards do for their drivers on the way out: checksums and segmentation; and on the way in: checksums looked at.
//!
//! The IP headers are looked at here, not what a chip's descriptors say of them: a driver that leaves lengths or
//! checksums of a frame that is to be cut empty (Intel's do, virtio's do not) gets the same segments.

use emu::backend::Offload;

/// Most segments that one frame is cut into: a driver that asks for more wants to keep us busy.
const MAX_SEGMENTS: usize = 2048;
/// Bytes of headers before each of them; more are of no use but to make much of little.
const MAX_HEADERS: usize = 512;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// TCP flags.
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// The bytes of `frame` as a big-endian word.
fn word(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?))
}

fn set_word(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The sum that Internet checksums are made of (RFC 1071), not folded.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    words.iter().map(|w| u64::from(u32::from_be_bytes(*w))).sum::<u64>() + u64::from(u32::from_be_bytes(last))
}

/// The checksum of a sum. Zero, which means "none" to UDP, is written in its other form.
pub(crate) fn checksum(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
}

/// An IP packet in a frame, not a fragment, with TCP or UDP in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub v6: bool,
    pub tcp: bool,
    /// Where the IP header is, where that of TCP or UDP, and where the data.
    ip: usize,
    transport: usize,
    data: usize,
}

impl Packet {
    /// What `frame` holds, whatever the lengths and checksums in its headers are.
    pub fn of(frame: &[u8]) -> Option<Packet> {
        let mut at = 12;
        while matches!(word(frame, at)?, 0x8100 | 0x88a8) {
            at += 4;
        }
        let ip = at + 2;
        let (v6, protocol, transport) = match word(frame, at)? {
            IPV4 => {
                let header = frame.get(ip..ip + 20)?;
                let (version, len) = (header[0] >> 4, usize::from(header[0] & 15) * 4);
                let fragment = word(header, 6)? & 0x3fff != 0;
                (version == 4 && len >= 20 && !fragment).then_some((false, header[9], ip + len))?
            }
            IPV6 => {
                let header = frame.get(ip..ip + 40)?;
                let (mut next, mut at) = (header[6], ip + 40);
                // Hop-by-hop options, routing, destination options.
                while matches!(next, 0 | 43 | 60) {
                    let [after, len] = *frame.get(at..)?.first_chunk()?;
                    (next, at) = (after, at + 8 + 8 * usize::from(len));
                }
                (header[0] >> 4 == 6).then_some((true, next, at))?
            }
            _ => return None,
        };
        let len = match protocol {
            TCP => usize::from(frame.get(transport + 12)? >> 4) * 4,
            UDP => 8,
            _ => return None,
        };
        let tcp = protocol == TCP;
        let data = transport + len;
        (len >= if tcp { 20 } else { 8 } && data <= frame.len()).then_some(Packet { v6, tcp, ip, transport, data })
    }

    /// Where the checksum of TCP or UDP is.
    fn checksum_at(&self) -> usize {
        self.transport + if self.tcp { 16 } else { 6 }
    }

    /// The sum over the pseudo header, for a segment that ends at `end`.
    fn pseudo(&self, frame: &[u8], end: usize) -> u64 {
        let addresses = if self.v6 { self.ip + 8..self.ip + 40 } else { self.ip + 12..self.ip + 20 };
        sum(&frame[addresses]) + u64::from(if self.tcp { TCP } else { UDP }) + (end - self.transport) as u64
    }

    /// Bytes before the data.
    pub fn headers(&self) -> usize {
        self.data
    }

    /// TCP's CWR, which only the first of several segments may have.
    pub fn marks_congestion(&self, frame: &[u8]) -> bool {
        self.tcp && frame[self.transport + 13] & CWR != 0
    }

    /// Where the packet ends, which may be before the frame does.
    fn end(&self, frame: &[u8]) -> Option<usize> {
        let len = usize::from(word(frame, self.ip + if self.v6 { 4 } else { 2 })?);
        let end = self.ip + len + if self.v6 { 40 } else { 0 };
        (self.data..=frame.len()).contains(&end).then_some(end)
    }

    /// A number that is the same for both directions of a connection.
    pub fn flow(&self, frame: &[u8]) -> u32 {
        let addresses = if self.v6 { self.ip + 8..self.ip + 40 } else { self.ip + 12..self.ip + 20 };
        let folded = frame[addresses].as_chunks::<4>().0.iter().fold(0, |h, w| h ^ u32::from_be_bytes(*w));
        let ports = word(frame, self.transport).unwrap_or(0) ^ word(frame, self.transport + 2).unwrap_or(0);
        (folded ^ u32::from(ports)).wrapping_mul(0x9e37_79b9)
    }
}

/// Whether the checksum of TCP or UDP in a frame, and that of its IP header, is right; `None` if there is none.
pub(crate) fn checksum_is_good(frame: &[u8]) -> Option<bool> {
    let packet = Packet::of(frame)?;
    let end = packet.end(frame)?;
    if !packet.tcp && word(frame, packet.checksum_at())? == 0 {
        return None;
    }
    let all_ones = |sum| checksum(sum) == 0xffff;
    let header = packet.v6 || all_ones(sum(&frame[packet.ip..packet.transport]));
    Some(header && all_ones(packet.pseudo(frame, end) + sum(&frame[packet.transport..end])))
}

/// Sums up `frame` from byte `from` on and puts the checksum `at` bytes behind that, where the sum of the pseudo header
/// is already. False if that is not in the frame.
pub(crate) fn complete(frame: &mut [u8], from: usize, at: usize) -> bool {
    if from + at + 2 > frame.len() {
        return false;
    }
    let value = checksum(sum(&frame[from..]));
    set_word(frame, from + at, value);
    true
}

/// Where the IPv4 header of a frame is and where it ends, whatever is behind it.
fn header_v4(frame: &[u8]) -> Option<(usize, usize)> {
    let mut at = 12;
    while matches!(word(frame, at)?, 0x8100 | 0x88a8) {
        at += 4;
    }
    let ip = at + 2;
    let first = *frame.get(ip)?;
    let end = ip + usize::from(first & 15) * 4;
    (word(frame, at)? == IPV4 && first >> 4 == 4 && end >= ip + 20 && end <= frame.len()).then_some((ip, end))
}

/// Makes the checksums of IPv4 from the frame alone, as chips do that are told no places: that of the header, and those
/// of TCP and of UDP.
pub(crate) fn sum_up(frame: &mut [u8], header: bool, tcp: bool, udp: bool) {
    if let (true, Some((ip, end))) = (header, header_v4(frame)) {
        set_word(frame, ip + 10, 0);
        let value = checksum(sum(&frame[ip..end]));
        set_word(frame, ip + 10, value);
    }
    if let Some(packet) = Packet::of(frame).filter(|p| !p.v6 && if p.tcp { tcp } else { udp })
        && let Some(end) = packet.end(frame)
    {
        set_word(frame, packet.checksum_at(), 0);
        let value = checksum(packet.pseudo(frame, end) + sum(&frame[packet.transport..end]));
        set_word(frame, packet.checksum_at(), value);
    }
}

/// What chips say of a received IPv4 packet: its protocol (that of a fragment is IP), and which checksums are good, or not
/// there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub protocol: u8,
    pub header: bool,
    pub data: bool,
}

/// Looks at the checksums of IPv4 one by one.
pub(crate) fn look(frame: &[u8]) -> Option<Seen> {
    let (ip, end) = header_v4(frame)?;
    let header = checksum(sum(&frame[ip..end])) == 0xffff;
    let Some(packet) = Packet::of(frame) else { return Some(Seen { protocol: 0, header, data: true }) };
    let protocol = if packet.tcp { TCP } else { UDP };
    let none = !packet.tcp && word(frame, packet.checksum_at()) == Some(0);
    let good = packet
        .end(frame)
        .is_some_and(|end| checksum(packet.pseudo(frame, end) + sum(&frame[packet.transport..end])) == 0xffff);
    Some(Seen { protocol, header, data: none || good })
}

/// Cuts a frame with TCP in it into frames of `mss` bytes of data, which `send` gets one by one, with all lengths, numbers
/// and checksums as they should be. False if it cannot be done. `scratch` is where they are made.
pub(crate) fn segment(frame: &[u8], mss: usize, scratch: &mut Vec<u8>, mut send: impl FnMut(&[u8])) -> bool {
    let Some(packet) = Packet::of(frame).filter(|p| p.tcp) else { return false };
    let Packet { v6, ip, transport, data, .. } = packet;
    let (headers, payload) = frame.split_at(data);
    let longest = data - ip + mss.min(payload.len());
    if mss == 0 || payload.len().div_ceil(mss) > MAX_SEGMENTS || data > MAX_HEADERS || longest > 0xffff {
        return false;
    }
    let flags = headers[transport + 13];
    let first = word(headers, transport + 4).zip(word(headers, transport + 6)).unwrap_or_default();
    let sequence = u32::from(first.0) << 16 | u32::from(first.1);
    let id = word(headers, ip + 4).unwrap_or(0);
    let count = payload.len().div_ceil(mss).max(1);
    for n in 0..count {
        let from = n * mss;
        let part = &payload[from..payload.len().min(from + mss)];
        scratch.clear();
        scratch.extend_from_slice(headers);
        scratch.extend_from_slice(part);
        let f = scratch.as_mut_slice();
        let end = f.len();
        if v6 {
            set_word(f, ip + 4, (end - ip - 40) as u16);
        } else {
            set_word(f, ip + 2, (end - ip) as u16);
            set_word(f, ip + 4, id.wrapping_add(n as u16));
            set_word(f, ip + 10, 0);
            let value = checksum(sum(&f[ip..transport]));
            set_word(f, ip + 10, value);
        }
        f[transport + 4..transport + 8].copy_from_slice(&sequence.wrapping_add(from as u32).to_be_bytes());
        let last = if n + 1 == count { 0 } else { FIN | PSH };
        f[transport + 13] = flags & !last & if n == 0 { 0xff } else { !CWR };
        set_word(f, transport + 16, 0);
        let value = checksum(packet.pseudo(f, end) + sum(&f[transport..]));
        set_word(f, transport + 16, value);
        send(f);
    }
    true
}

/// Does what is left to do for a frame, and gives `send` what comes of it; what makes no sense is dropped.
pub(crate) fn finish(frame: &mut [u8], rest: Offload, scratch: &mut Vec<u8>, mut send: impl FnMut(&[u8])) {
    if rest.mss != 0 {
        segment(frame, rest.mss.into(), scratch, send);
    } else if rest.checksum.is_none_or(|(from, at)| complete(frame, from.into(), at.into())) {
        send(frame);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use emu::bench::{Rng, fuzz_cases};

    /// A frame with TCP or UDP in it, of which no checksum is right.
    pub(crate) fn sample(v6: bool, tcp: bool, tags: usize, payload: usize) -> Vec<u8> {
        let mut f = [vec![0x02; 6], vec![0x04; 6]].concat();
        (0..tags).for_each(|_| f.extend([0x81, 0x00, 0x00, 0x05]));
        let transport = if tcp { 24 } else { 8 } + payload;
        let protocol = if tcp { TCP } else { UDP };
        if v6 {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            f.extend((transport as u16 + 8).to_be_bytes());
            f.extend([60, 64]);
            f.extend((0..32).map(|n| n * 7));
            // Destination options: one PadN.
            f.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
        } else {
            f.extend([0x08, 0x00, 0x46, 0]);
            f.extend((transport as u16 + 24).to_be_bytes());
            f.extend([0xff, 0xff, 0x40, 0, 64, protocol, 0, 0, 10, 0, 2, 15, 192, 0, 2, 1, 1, 1, 1, 0]);
        }
        f.extend([0x1f, 0x90, 0xc0, 0x01]);
        if tcp {
            f.extend([
                0xff,
                0xff,
                0xff,
                0xf0,
                0,
                0,
                0,
                1,
                0x60,
                CWR | 0x10 | PSH | FIN,
                2,
                0,
                0,
                0,
                0,
                0,
                2,
                4,
                5,
                0xb4,
            ]);
        } else {
            f.extend((transport as u16).to_be_bytes());
            f.extend([0, 0]);
        }
        f.extend((0..payload).map(|n| (n * 31 + 5) as u8));
        f
    }

    /// What a driver leaves to the card: the sum over the pseudo header where the checksum belongs.
    pub(crate) fn partial(frame: &mut [u8]) -> (u16, u16) {
        let p = Packet::of(frame).unwrap();
        let pseudo = !checksum(p.pseudo(frame, frame.len()));
        set_word(frame, p.checksum_at(), pseudo);
        if !p.v6 {
            let value = checksum(sum(&frame[p.ip..p.transport]));
            set_word(frame, p.ip + 10, value);
        }
        (p.transport as u16, (p.checksum_at() - p.transport) as u16)
    }

    const KINDS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        assert_eq!(checksum(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), !0xddf2);
        assert_eq!(checksum(sum(&[0x12])), !0x1200, "an odd byte is the high one");
        assert_eq!(checksum(0), 0xffff);
        assert_eq!(checksum(0xffff_ffff_ffff), 0xffff, "never zero");
    }

    #[test]
    fn a_completed_checksum_is_good_and_a_changed_byte_is_seen() {
        for (v6, tcp) in KINDS {
            for (tags, payload) in [(0, 0), (1, 1), (2, 1000), (0, 1447)] {
                let mut f = sample(v6, tcp, tags, payload);
                let (from, at) = partial(&mut f);
                assert!(complete(&mut f, from.into(), at.into()));
                // Padding does not count.
                f.extend([0; 6]);
                assert_eq!(checksum_is_good(&f), Some(true), "{v6} {tcp} {tags} {payload}");
                let last = f.len() - 7;
                f[last] ^= 0x10;
                assert_eq!(checksum_is_good(&f), Some(false), "{v6} {tcp} {tags} {payload}");
            }
        }
    }

    #[test]
    fn what_has_no_checksum_to_look_at_is_not_judged() {
        let mut udp = sample(false, false, 0, 100);
        assert_eq!(checksum_is_good(&udp), None, "UDP without a checksum");
        udp[20] = 0x20;
        assert_eq!(Packet::of(&udp), None, "a fragment");
        assert_eq!(checksum_is_good(&[0xff; 60]), None);
        let mut short = sample(false, true, 0, 100);
        partial(&mut short);
        short.truncate(100);
        assert_eq!(checksum_is_good(&short), None, "longer than its frame");
    }

    #[test]
    fn a_frame_is_cut_into_segments_with_good_headers() {
        for (v6, tags) in [(false, 0), (true, 0), (false, 1), (true, 1)] {
            let mut f = sample(v6, true, tags, 3000);
            // Intel's drivers leave lengths and checksums out.
            let ip = 14 + 4 * tags;
            set_word(&mut f, ip + if v6 { 4 } else { 2 }, 0);
            let data = Packet::of(&f).unwrap().data;
            let mut parts = Vec::new();
            assert!(segment(&f, 1400, &mut Vec::new(), |part| parts.push(part.to_vec())));
            assert_eq!(parts.iter().map(|p| p.len() - data).collect::<Vec<_>>(), [1400, 1400, 200], "{v6}");
            let joined: Vec<u8> = parts.iter().flat_map(|p| p[data..].to_vec()).collect();
            assert_eq!(joined, f[data..]);
            for (n, part) in parts.iter().enumerate() {
                assert_eq!(checksum_is_good(part), Some(true), "{v6} {n}");
                let transport = Packet::of(part).unwrap().transport;
                let sequence = u32::from_be_bytes(*part[transport + 4..].first_chunk().unwrap());
                assert_eq!(sequence, 0xffff_fff0u32.wrapping_add(1400 * n as u32), "it wraps");
                let flags = [CWR | 0x10, 0x10, 0x10 | PSH | FIN][n];
                assert_eq!(part[transport + 13], flags, "{n}");
                if !v6 {
                    assert_eq!(word(part, ip + 4), Some(0xffffu16.wrapping_add(n as u16)), "identification");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_cut_is_not() {
        let f = sample(false, true, 0, 60_000);
        let cut = |f: &[u8], mss| segment(f, mss, &mut Vec::new(), |_| {});
        assert!(!cut(&f, 0));
        assert!(!cut(&f, 8), "too many");
        assert!(cut(&f, 100));
        assert!(!cut(&sample(false, false, 0, 3000), 1000), "UDP");
        assert!(cut(&sample(false, true, 0, 0), 1000), "no data at all is one segment");
    }

    #[test]
    fn both_directions_are_one_flow() {
        for v6 in [false, true] {
            let f = sample(v6, true, 0, 10);
            let mut back = f.clone();
            let (from, len) = if v6 { (22, 16) } else { (26, 4) };
            let (a, b) = (f[from..from + len].to_vec(), f[from + len..from + 2 * len].to_vec());
            back[from..from + 2 * len].copy_from_slice(&[b, a].concat());
            let at = Packet::of(&f).unwrap().transport;
            back[at..at + 4].copy_from_slice(&[f[at + 2], f[at + 3], f[at], f[at + 1]]);
            let flow = |f: &[u8]| Packet::of(f).unwrap().flow(f);
            assert_eq!(flow(&f), flow(&back));
            back[at + 1] ^= 1;
            assert_ne!(flow(&f), flow(&back));
        }
    }

    #[test]
    fn random_frames_and_requests_do_no_harm() {
        for case in 0..fuzz_cases() * 20 {
            let mut rng = Rng::new(case);
            let payload = rng.below(3000);
            let mut f = sample(rng.one_in(2), rng.one_in(2), rng.below(3), payload);
            for _ in 0..rng.below(8) {
                let at = rng.below(f.len().min(90));
                f[at] = rng.value() as u8;
            }
            f.truncate(rng.below(2 * f.len()));
            let _ = checksum_is_good(&f);
            let (mut bytes, len) = (0, f.len());
            let rest = Offload {
                checksum: rng.one_in(2).then(|| (rng.value() as u16, rng.value() as u16)),
                mss: if rng.one_in(2) { rng.value() as u16 } else { 0 },
            };
            finish(&mut f, rest, &mut Vec::new(), |part| bytes += part.len());
            assert!(bytes <= len + MAX_SEGMENTS * len.min(2000), "{case}");
        }
    }
}
