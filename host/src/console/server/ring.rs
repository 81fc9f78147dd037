//! The latest output of a console, and where each reader is in it.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write};

/// Bytes that are kept.
pub(super) const RING: usize = 256 << 10;

/// A position counts all bytes since the console was made.
#[derive(Default)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    head: u64,
}

impl Ring {
    /// Takes bytes, in place of the oldest.
    pub(super) fn push(&mut self, data: &[u8]) {
        self.head += data.len() as u64;
        let data = &data[data.len().saturating_sub(RING)..];
        let old = (self.bytes.len() + data.len()).saturating_sub(RING);
        self.bytes.drain(..old);
        self.bytes.extend(data);
    }

    /// Behind the last byte.
    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// The oldest byte.
    pub(super) fn tail(&self) -> u64 {
        self.head - self.bytes.len() as u64
    }

    /// Some bytes from a position on that is not older than the oldest; none at the head.
    pub(super) fn from(&self, at: u64) -> &[u8] {
        let skip = (at - self.tail()) as usize;
        let (first, second) = self.bytes.as_slices();
        first.get(skip..).filter(|part| !part.is_empty()).unwrap_or_else(|| &second[skip - first.len()..])
    }
}

/// Fills a ring as far as its slowest reader allows.
pub(super) struct Fill<'a> {
    pub(super) ring: &'a mut Ring,
    pub(super) room: usize,
}

impl Write for Fill<'_> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let n = data.len().min(self.room);
        if n == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.ring.push(&data[..n]);
        self.room -= n;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_keeps_the_latest_and_counts_all() {
        let mut ring = Ring::default();
        ring.push(b"abc");
        assert_eq!((ring.tail(), ring.head(), ring.from(1), ring.from(3)), (0, 3, &b"bc"[..], &b""[..]));
        let all: Vec<u8> = (0..RING as u32 + 1000).map(|n| (n % 251) as u8).collect();
        for piece in all.chunks(777) {
            ring.push(piece);
        }
        assert_eq!((ring.head() - ring.tail(), ring.head()), (RING as u64, all.len() as u64 + 3));
        let (mut at, mut got) = (ring.tail(), Vec::<u8>::new());
        while at < ring.head() {
            got.extend(ring.from(at));
            at = ring.tail() + got.len() as u64;
        }
        assert!(got == all[all.len() - RING..]);
        ring.push(&vec![7; 3 * RING]);
        assert_eq!((ring.head() - ring.tail(), ring.from(ring.tail())[0]), (RING as u64, 7));
    }
}
