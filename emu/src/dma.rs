//! Guest memory as a bus-mastering device sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::ram::RamAddr;
use crate::space::AddressSpace;

/// Stretches of guest RAM that a request may touch, already validated: what a descriptor list becomes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoVec {
    parts: Vec<(RamAddr, u64)>,
    len: u64,
}

impl IoVec {
    /// Total bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The stretches, in order.
    pub fn parts(&self) -> &[(RamAddr, u64)] {
        &self.parts
    }

    /// The `len` bytes of it from byte `from` on.
    ///
    /// # Panics
    /// When it has fewer.
    pub fn part(&self, from: u64, len: u64) -> IoVec {
        assert!(from.checked_add(len).is_some_and(|end| end <= self.len), "a part that is not there");
        let (mut skip, mut part) = (from, IoVec::default());
        for (at, n) in &self.parts {
            let here = n.saturating_sub(skip).min(len - part.len);
            if here > 0 {
                part.push(RamAddr(at.0 + skip), here);
            }
            skip = skip.saturating_sub(*n);
        }
        part
    }

    fn push(&mut self, at: RamAddr, len: u64) {
        self.len += len;
        match self.parts.last_mut() {
            Some((start, n)) if start.0 + *n == at.0 => *n += len,
            _ => self.parts.push((at, len)),
        }
    }
}

/// A device's window on guest memory. It reaches only RAM: elsewhere reads give ones and writes vanish, as they do
/// while the device's bus-master enable is clear.
#[derive(Clone)]
pub struct DmaMem {
    space: Arc<AddressSpace>,
    master: Arc<AtomicBool>,
}

impl DmaMem {
    /// A window that is open while `master` is set.
    pub fn new(space: Arc<AddressSpace>, master: Arc<AtomicBool>) -> DmaMem {
        DmaMem { space, master }
    }

    /// Whether bus mastering is enabled.
    pub fn enabled(&self) -> bool {
        self.master.load(Ordering::Relaxed)
    }

    /// Reads `buf.len()` bytes from guest physical address `gpa`.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) {
        if !self.enabled() {
            return buf.fill(0xff);
        }
        let map = self.space.map();
        let mut at = 0;
        while at < buf.len() {
            let here = gpa.wrapping_add(at as u64);
            match map.ram_for_read(here) {
                Some((addr, run)) => {
                    let n = run.min((buf.len() - at) as u64) as usize;
                    self.space.ram().read(addr, &mut buf[at..at + n]);
                    at += n;
                }
                None => {
                    buf[at] = 0xff;
                    at += 1;
                }
            }
        }
    }

    /// Writes `data` to guest physical address `gpa`.
    pub fn write(&self, gpa: u64, data: &[u8]) {
        if !self.enabled() {
            return;
        }
        let map = self.space.map();
        let mut at = 0;
        while at < data.len() {
            let here = gpa.wrapping_add(at as u64);
            match map.ram_for_write(here) {
                Some((addr, run)) => {
                    let n = run.min((data.len() - at) as u64) as usize;
                    self.space.ram().write(addr, &data[at..at + n]);
                    at += n;
                }
                None => at += 1,
            }
        }
    }

    /// Reads a fixed-size structure once, into host memory, to be judged there.
    pub fn fetch<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut buf = [0; N];
        self.read(gpa, &mut buf);
        buf
    }

    /// Reads a little-endian 32-bit word.
    pub fn read_u32(&self, gpa: u64) -> u32 {
        u32::from_le_bytes(self.fetch(gpa))
    }

    /// Writes a little-endian 32-bit word.
    pub fn write_u32(&self, gpa: u64, value: u32) {
        self.write(gpa, &value.to_le_bytes());
    }

    /// Appends `len` bytes from `gpa` to a request. `false`, with `iov` unchanged, when any byte is not RAM or bus
    /// mastering is off.
    pub fn gather(&self, iov: &mut IoVec, gpa: u64, len: u64, write: bool) -> bool {
        if !self.enabled() || gpa.checked_add(len).is_none() {
            return false;
        }
        let map = self.space.map();
        let (parts, before, last) = (iov.parts.len(), iov.len, iov.parts.last().copied());
        let mut at = 0;
        while at < len {
            let run = if write { map.ram_for_write(gpa + at) } else { map.ram_for_read(gpa + at) };
            let Some((addr, run)) = run else {
                iov.parts.truncate(parts);
                if let (Some(end), Some(last)) = (iov.parts.last_mut(), last) {
                    *end = last;
                }
                iov.len = before;
                return false;
            };
            iov.push(addr, run.min(len - at));
            at += run.min(len - at);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    #[test]
    fn without_bus_mastering_reads_are_ones_and_writes_vanish() {
        let bench = Bench::new();
        let dma = DmaMem::new(bench.machine.space.clone(), Arc::new(AtomicBool::new(false)));
        dma.write(0x1000, &[1, 2, 3]);
        assert_eq!(dma.fetch::<2>(0x1000), [0xff, 0xff]);
        dma.master.store(true, Ordering::Relaxed);
        assert_eq!(dma.fetch::<2>(0x1000), [0, 0]);
    }

    #[test]
    fn a_part_has_the_bytes_that_it_names() {
        let bench = Bench::new();
        let (dma, mut iov) = (bench.dma(), IoVec::default());
        assert!([(0, 10), (100, 20), (200, 5)].iter().all(|(at, len)| dma.gather(&mut iov, *at, *len, true)));
        let start = iov.parts()[0].0.0;
        let places =
            |from, len| iov.part(from, len).parts().iter().map(|(at, n)| (at.0 - start, *n)).collect::<Vec<_>>();
        assert_eq!(places(0, 35), [(0, 10), (100, 20), (200, 5)]);
        assert_eq!(places(4, 8), [(4, 6), (100, 2)]);
        assert_eq!(places(10, 20), [(100, 20)]);
        assert_eq!(places(15, 17), [(105, 15), (200, 2)]);
        assert_eq!(places(35, 0), []);
    }

    #[test]
    fn a_transfer_past_the_end_of_ram_does_what_it_can() {
        let bench = Bench::new();
        let dma = bench.dma();
        let end = Bench::RAM;
        dma.write(end - 2, &[1, 2, 3, 4]);
        assert_eq!(dma.fetch::<4>(end - 2), [1, 2, 0xff, 0xff]);
        let mut iov = IoVec::default();
        assert!(!dma.gather(&mut iov, end - 2, 4, true));
        assert!(!dma.gather(&mut iov, u64::MAX, 4, true));
        assert!(iov.is_empty() && iov.parts().is_empty());
        assert!(dma.gather(&mut iov, end - 8, 4, true));
        let four = iov.clone();
        assert!(!dma.gather(&mut iov, end - 4, 5, true), "adjacent, but not all of it");
        assert_eq!(iov, four);
        iov = IoVec::default();
        assert!(dma.gather(&mut iov, end - 4, 2, true) && dma.gather(&mut iov, end - 2, 2, true));
        assert_eq!(iov.parts().len(), 1, "adjacent stretches become one");
    }
}
