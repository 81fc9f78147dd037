//! Packets that come in fragments.

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Packets under way at a time; the oldest makes room for another.
const PACKETS: usize = 16;
/// Fragments of a packet. One of 64 KiB has 45 on Ethernet.
const FRAGMENTS: usize = 128;
/// Bytes that IP can carry.
const LONGEST: usize = 0xffff;
const PATIENCE: Duration = Duration::from_secs(15);

/// Whose fragments these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    pub ident: u32,
}

/// A fragment.
pub(super) struct Fragment<'a> {
    pub offset: usize,
    pub more: bool,
    pub data: &'a [u8],
}

struct Partial {
    id: Id,
    begun: Instant,
    data: Vec<u8>,
    /// What is there, in order and without overlaps: from, to.
    there: Vec<(usize, usize)>,
    /// Known from the last fragment.
    len: Option<usize>,
}

/// All packets under way.
#[derive(Default)]
pub(super) struct Reassembly {
    packets: Vec<Partial>,
}

impl Reassembly {
    /// Takes a fragment. Returns the whole if it was the last that was missing.
    pub fn add(&mut self, id: Id, fragment: &Fragment, now: Instant) -> Option<Vec<u8>> {
        self.packets.retain(|p| now < p.begun + PATIENCE);
        let at = match self.packets.iter().position(|p| p.id == id) {
            Some(at) => at,
            None => {
                if self.packets.len() == PACKETS {
                    self.packets.remove(0);
                }
                self.packets.push(Partial { id, begun: now, data: Vec::new(), there: Vec::new(), len: None });
                self.packets.len() - 1
            }
        };
        match self.packets[at].add(fragment) {
            // Overlaps are an attack or an error: nothing of such a packet is used.
            Err(()) => {
                self.packets.remove(at);
                None
            }
            Ok(false) => None,
            Ok(true) => Some(self.packets.remove(at).data),
        }
    }
}

impl Partial {
    /// Whether it is whole now.
    fn add(&mut self, fragment: &Fragment) -> Result<bool, ()> {
        let (from, to) = (fragment.offset, fragment.offset + fragment.data.len());
        let odd = fragment.more && (fragment.data.is_empty() || !fragment.data.len().is_multiple_of(8));
        if to > LONGEST || odd || self.there.len() == FRAGMENTS || self.len.is_some_and(|len| to > len) {
            return Err(());
        }
        if !fragment.more {
            if self.len.is_some_and(|len| len != to) || self.data.len() > to {
                return Err(());
            }
            self.len = Some(to);
        }
        // A fragment that was sent twice is no overlap.
        if self.there.contains(&(from, to)) {
            return Ok(false);
        }
        if self.there.iter().any(|(a, b)| from < *b && *a < to) {
            return Err(());
        }
        if self.data.len() < to {
            self.data.resize(to, 0);
        }
        self.data[from..to].copy_from_slice(fragment.data);
        self.there.push((from, to));
        Ok(self.len == Some(self.there.iter().map(|(a, b)| b - a).sum()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn id(ident: u32) -> Id {
        Id { from: Ipv4Addr::LOCALHOST.into(), to: Ipv4Addr::LOCALHOST.into(), protocol: 17, ident }
    }

    fn add(r: &mut Reassembly, ident: u32, offset: usize, more: bool, data: &[u8]) -> Option<Vec<u8>> {
        r.add(id(ident), &Fragment { offset, more, data }, Instant::now())
    }

    #[test]
    fn fragments_come_in_any_order_and_twice() {
        let mut r = Reassembly::default();
        assert_eq!(add(&mut r, 1, 16, false, b"end"), None);
        assert_eq!(add(&mut r, 2, 0, true, &[7; 8]), None);
        assert_eq!(add(&mut r, 1, 0, true, b"01234567"), None);
        assert_eq!(add(&mut r, 1, 0, true, b"01234567"), None);
        assert_eq!(add(&mut r, 1, 8, true, b"89abcdef").unwrap(), b"0123456789abcdefend");
        assert_eq!(r.packets.len(), 1);
    }

    #[test]
    fn overlaps_and_packets_past_64_kib_are_dropped() {
        let mut r = Reassembly::default();
        add(&mut r, 1, 0, true, &[1; 16]);
        assert_eq!(add(&mut r, 1, 8, false, &[2; 16]), None);
        assert!(r.packets.is_empty());
        assert_eq!(add(&mut r, 1, 65528, false, &[0; 16]), None);
        add(&mut r, 2, 16, true, &[0; 8]);
        assert_eq!(add(&mut r, 2, 0, false, &[0; 8]), None, "the end lies before what is there");
        assert!(r.packets.is_empty());
    }

    #[test]
    fn what_is_never_completed_takes_bounded_room_and_goes() {
        let mut r = Reassembly::default();
        (0..100).for_each(|n| drop(add(&mut r, n, 65520, true, &[0; 8])));
        assert_eq!(r.packets.len(), PACKETS);
        let later = Instant::now() + PATIENCE;
        r.add(id(1000), &Fragment { offset: 0, more: true, data: &[0; 8] }, later);
        assert_eq!(r.packets.len(), 1);
    }
}
