//! What Linux's taps have before each frame (IFF_VNET_HDR): virtio 0.9.5's header, with what is left to do for the frame.
//! Other systems' have nothing there.

use std::io::{IoSlice, Write};

use emu::Event;
use emu::backend::Offload;

/// Whether the taps of this system have the header.
const HERE: bool = cfg!(target_os = "linux");
/// Its bytes.
const HEADER: usize = 10;

const NEEDS_CSUM: u8 = 1;
const TCPV4: u8 = 1;
const TCPV6: u8 = 4;
const ECN: u8 = 0x80;
const CWR: u8 = 0x80;

/// What was read, as the card hears it.
pub(super) fn received(bytes: &[u8]) -> Option<Event> {
    if !HERE {
        return Some(Event::Frame(bytes.to_vec()));
    }
    let (about, frame) = bytes.split_at_checked(HEADER)?;
    let frame = frame.to_vec();
    if about[0] & NEEDS_CSUM == 0 {
        return Some(Event::Frame(frame));
    }
    let word = |at: usize| u16::from_ne_bytes([about[at], about[at + 1]]);
    let mss = if about[1] == 0 { 0 } else { word(4) };
    Some(Event::Partial(frame, Offload { checksum: Some((word(6), word(8))), mss }))
}

/// Sends a frame behind its header. What the interface has no room for is lost.
pub(super) fn send(to: &mut impl Write, frame: &[u8], rest: Offload) {
    let _ = if HERE {
        to.write_vectored(&[IoSlice::new(&header(frame, rest)), IoSlice::new(frame)])
    } else {
        to.write(frame)
    };
}

fn header(frame: &[u8], rest: Offload) -> [u8; HEADER] {
    let mut about = [0; HEADER];
    let Some((from, at)) = rest.checksum else { return about };
    let mut put = |at: usize, value: u16| about[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    put(6, from);
    put(8, at);
    let byte = |at: usize| frame.get(at).copied().unwrap_or(0);
    let tcp = usize::from(from);
    if rest.mss != 0 {
        // Where the data begins: the kernel wants all headers in one piece.
        put(2, from.saturating_add(u16::from(byte(tcp + 12) >> 4) * 4));
        put(4, rest.mss);
        let mut kind = 12;
        while matches!((byte(kind), byte(kind + 1)), (0x81, 0x00) | (0x88, 0xa8)) {
            kind += 4;
        }
        let v6 = (byte(kind), byte(kind + 1)) == (0x86, 0xdd);
        let ecn = if byte(tcp + 13) & CWR != 0 { ECN } else { 0 };
        about[1] = if v6 { TCPV6 } else { TCPV4 } | ecn;
    }
    about[0] = NEEDS_CSUM;
    about
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// An Ethernet header with a tag, then an IP header that nobody looks at, and TCP's at 58 with CWR.
    fn large(v6: bool) -> Vec<u8> {
        let mut frame = vec![0; 3000];
        frame[12..18].copy_from_slice(if v6 { b"\x81\x00\x00\x05\x86\xdd" } else { b"\x81\x00\x00\x05\x08\x00" });
        (frame[58 + 12], frame[58 + 13]) = (0x80, 0x90);
        frame
    }

    #[test]
    fn what_is_left_to_do_goes_both_ways() {
        for (v6, mss, kind) in [(false, 0, 0), (false, 1400, TCPV4 | ECN), (true, 1400, TCPV6 | ECN)] {
            let (frame, rest) = (large(v6), Offload { checksum: Some((58, 16)), mss });
            let mut sent = Vec::new();
            send(&mut sent, &frame, rest);
            assert_eq!(sent[..2], [NEEDS_CSUM, kind]);
            let headers = if mss == 0 { 0 } else { 58 + 32 };
            assert_eq!(u16::from_ne_bytes([sent[2], sent[3]]), headers);
            match received(&sent) {
                Some(Event::Partial(came, left)) => assert_eq!((came, left), (frame, rest)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_frame_that_is_whole_has_an_empty_header() {
        let mut sent = Vec::new();
        send(&mut sent, &[7; 60], Offload::default());
        assert_eq!(sent, [vec![0; HEADER], vec![7; 60]].concat());
        assert!(matches!(received(&sent), Some(Event::Frame(frame)) if frame == [7; 60]));
        assert!(received(&sent[..9]).is_none());
    }
}
