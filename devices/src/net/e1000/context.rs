//! What context descriptors ask for, by offsets in the frame: checksums, and the segments of a long frame, one at a time.

use serde::{Deserialize, Serialize};

use crate::net::offload::{checksum, checksum_is_good, sum};

/// Flags of a TCP header that only the last segment has: PSH and FIN.
const LAST_ONLY: u8 = 0x09;

/// Puts the checksum of the bytes from `start` to `end` (its last byte, or 0: to the end of the frame) at `at`. What
/// lies outside of the frame is left alone.
pub fn insert(frame: &mut [u8], start: u8, end: u16, at: u8) {
    let end = match end {
        0 => frame.len(),
        end => (usize::from(end) + 1).min(frame.len()),
    };
    if let Some(bytes) = frame.get(usize::from(start)..end) {
        let value = checksum(sum(bytes));
        put(frame, usize::from(at), value);
    }
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    if let Some(place) = frame.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

fn get(frame: &[u8], at: usize) -> u16 {
    frame.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]))
}

/// What a context descriptor says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// IP header: start, place of its checksum, last byte.
    pub ip: (u8, u8, u16),
    /// TCP or UDP: the same.
    pub transport: (u8, u8, u16),
    /// It is TCP.
    pub tcp: bool,
    /// It is IPv4.
    pub ipv4: bool,
    /// Bytes of all headers.
    pub header: u8,
    /// Bytes of payload in a segment.
    pub mss: u16,
}

impl Context {
    /// From its 16 bytes.
    pub fn of(descriptor: &[u8; 16]) -> Context {
        let d = descriptor;
        let word = |at: usize| u16::from_le_bytes([d[at], d[at + 1]]);
        Context {
            ip: (d[0], d[1], word(2)),
            transport: (d[4], d[5], word(6)),
            tcp: d[11] & 1 != 0,
            ipv4: d[11] & 2 != 0,
            header: d[13],
            mss: word(14),
        }
    }

    /// How many segments a frame of `len` bytes becomes; 0 if it cannot be cut.
    pub fn segments(&self, len: usize) -> usize {
        let (header, mss) = (usize::from(self.header), usize::from(self.mss));
        match header > 0 && mss > 0 && len > header {
            true => (len - header).div_ceil(mss),
            false => 0,
        }
    }

    /// Segment `n` of `whole`, with its own lengths, identification, sequence number and flags, into `segment`.
    pub fn cut(&self, whole: &[u8], n: usize, segment: &mut Vec<u8>) {
        let (header, mss) = (usize::from(self.header), usize::from(self.mss));
        let (from, last) = (header + n * mss, n + 1 == self.segments(whole.len()));
        let to = (from + mss).min(whole.len());
        segment.clear();
        segment.extend_from_slice(&whole[..header]);
        segment.extend_from_slice(&whole[from..to]);
        let (ip, transport) = (usize::from(self.ip.0), usize::from(self.transport.0));
        let len = segment.len();
        if self.ipv4 {
            put(segment, ip + 2, len.saturating_sub(ip) as u16);
            let identification = get(segment, ip + 4).wrapping_add(n as u16);
            put(segment, ip + 4, identification);
        } else {
            put(segment, ip + 4, len.saturating_sub(ip + 40) as u16);
        }
        let length = len.saturating_sub(transport) as u16;
        if self.tcp {
            if let Some(place) = segment.get_mut(transport + 4..transport + 8) {
                let sequence = u32::from_be_bytes([place[0], place[1], place[2], place[3]]);
                place.copy_from_slice(&sequence.wrapping_add((n * mss) as u32).to_be_bytes());
            }
            if let Some(flags) = segment.get_mut(transport + 13).filter(|_| !last) {
                *flags &= !LAST_ONLY;
            }
        } else {
            put(segment, transport + 4, length);
        }
        // The driver's sum of the pseudo-header lacks the length, which differs.
        let at = usize::from(self.transport.1);
        let pseudo = !checksum(u64::from(get(segment, at)) + u64::from(length));
        put(segment, at, pseudo);
    }
}

/// What became of the checksums of a frame that came in: none there, right or wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub ip: Option<bool>,
    /// TCP or UDP.
    pub transport: Option<bool>,
}

/// Checks an Ethernet frame without a tag. Behind a header that is wrong nothing is looked at.
pub fn check(frame: &[u8]) -> Verdict {
    let header = match frame.get(12..15) {
        Some([0x08, 0x00, first @ 0x45..=0x4f]) => frame.get(14..14 + usize::from(first & 15) * 4),
        _ => None,
    };
    let ip = header.map(|header| checksum(sum(header)) == 0xffff);
    let transport = if ip == Some(false) { None } else { checksum_is_good(frame) };
    Verdict { ip, transport }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_out_of_the_frame_are_not_put_there() {
        let mut frame = [1; 60];
        insert(&mut frame, 61, 0, 10);
        insert(&mut frame, 20, 10, 10);
        insert(&mut frame, 14, 0, 59);
        assert_eq!(frame, [1; 60]);
        insert(&mut frame, 58, 0xffff, 10);
        assert_eq!(frame[10..12], [0xfe, 0xfe]);
    }
}
