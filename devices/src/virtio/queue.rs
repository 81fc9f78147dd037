//! Split virtqueues (virtio 1.2, 2.7; the layout of 0.9.5 is the same).
//!
//! The driver owns a table of descriptors and the ring of available chains, the device the ring of used ones; each side
//! has an index that counts what it has put in. With EVENT_IDX each side also says at which index it wants to be
//! notified, otherwise there is a flag that it wants to be left alone.
//!
//! Nothing in guest memory is looked at twice: an index, a descriptor or a table of descriptors is copied into host
//! memory and judged there. What does not follow the rules (a head outside of the table, a chain that does not end,
//! more chains under way than there are descriptors) is [`Broken`]. Where a buffer lies is judged when it is used:
//! outside of RAM nothing is read or written.

use std::sync::atomic::{Ordering, fence};

use emu::{DmaMem, IoVec};
use serde::{Deserialize, Serialize};

/// Descriptors in the largest queue.
pub(crate) const MAX_SIZE: u16 = 256;
/// Descriptors in the longest chain, whether in the queue's table or in one of its own.
const MAX_CHAIN: usize = MAX_SIZE as usize;
/// No MSI-X vector.
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Flag of the available ring: no interrupts, please; and of the used ring: no kicks.
const LEAVE_ALONE: u16 = 1;

/// Bytes of a descriptor.
const DESC: usize = 16;

/// The driver does not follow the rules: the device stops until it is reset.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken;

/// A descriptor, fetched.
#[derive(Clone, Copy)]
struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Desc {
    fn of(b: &[u8]) -> Desc {
        let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        Desc {
            addr: u64::from(word(0)) | u64::from(word(4)) << 32,
            len: word(8),
            flags: word(12) as u16,
            next: (word(12) >> 16) as u16,
        }
    }
}

/// A chain of buffers: first those that the device reads, then those that it writes.
#[derive(Default)]
pub(crate) struct Chain {
    /// What the used ring calls it.
    pub head: u16,
    /// Address and length of each buffer, in host memory.
    buffers: Vec<(u64, u32)>,
    /// How many of them are to be read.
    readable: usize,
    /// Bytes to be read, and to be written.
    pub out_len: u64,
    pub in_len: u64,
}

impl Chain {
    fn clear(&mut self, head: u16) {
        self.head = head;
        self.buffers.clear();
        (self.readable, self.out_len, self.in_len) = (0, 0, 0);
    }

    fn add(&mut self, d: Desc) -> Result<(), Broken> {
        if self.buffers.len() == MAX_CHAIN {
            return Err(Broken);
        }
        if d.flags & WRITE != 0 {
            self.in_len += u64::from(d.len);
        } else if self.readable == self.buffers.len() {
            self.readable += 1;
            self.out_len += u64::from(d.len);
        } else {
            return Err(Broken);
        }
        self.buffers.push((d.addr, d.len));
        Ok(())
    }

    /// Calls `f` with address and length of each stretch of bytes `from..from + len` of one side, until it says no.
    fn stretches(&self, write: bool, from: u64, len: u64, mut f: impl FnMut(u64, u64) -> bool) -> bool {
        let (mut skip, mut left) = (from, len);
        let side = if write { &self.buffers[self.readable..] } else { &self.buffers[..self.readable] };
        for &(addr, n) in side {
            let n = u64::from(n);
            if skip >= n {
                skip -= n;
                continue;
            }
            if left == 0 {
                break;
            }
            let here = left.min(n - skip);
            if !f(addr.wrapping_add(skip), here) {
                return false;
            }
            left -= here;
            skip = 0;
        }
        left == 0
    }

    /// Copies what the driver wrote, from byte `from` on; ones where there is no memory. False if there is less.
    pub fn read(&self, dma: &DmaMem, from: u64, buf: &mut [u8]) -> bool {
        let mut done = 0;
        self.stretches(false, from, buf.len() as u64, |addr, n| {
            dma.read(addr, &mut buf[done..done + n as usize]);
            done += n as usize;
            true
        })
    }

    /// Copies to the driver, from byte `from` of what it gave on. False if it gave less.
    pub fn write(&self, dma: &DmaMem, from: u64, data: &[u8]) -> bool {
        let mut done = 0;
        self.stretches(true, from, data.len() as u64, |addr, n| {
            dma.write(addr, &data[done..done + n as usize]);
            done += n as usize;
            true
        })
    }

    /// The memory of bytes `from..from + len` of one side, for a disk; `None` if it is not all RAM.
    pub fn memory(&self, dma: &DmaMem, write: bool, from: u64, len: u64) -> Option<IoVec> {
        let mut iov = IoVec::default();
        self.stretches(write, from, len, |addr, n| dma.gather(&mut iov, addr, n, write)).then_some(iov)
    }

    /// The buffers that are to be written, for an answer that comes later.
    pub fn writable(&self) -> &[(u64, u32)] {
        &self.buffers[self.readable..]
    }

    /// Address and length of each stretch of bytes `from..from + len` of one side; `None` if there are fewer.
    pub fn places(&self, write: bool, from: u64, len: u64) -> Option<Vec<(u64, u64)>> {
        let mut places = Vec::new();
        let all = self.stretches(write, from, len, |addr, n| {
            places.push((addr, n));
            true
        });
        all.then_some(places)
    }

    /// Where byte `at` of what the driver gave to be written lies.
    pub fn place(&self, at: u64) -> Option<u64> {
        let mut place = None;
        self.stretches(true, at, 1, |addr, _| {
            place = Some(addr);
            true
        });
        place
    }
}

/// A queue as it is saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Queue {
    /// Entries; a power of two.
    pub size: u16,
    pub enabled: bool,
    /// Descriptor table, available ring and used ring.
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    /// MSI-X vector.
    pub vector: u16,
    /// Index of the next chain to take, and how far chains are known to be there.
    next_avail: u16,
    seen_avail: u16,
    /// Index of the next used chain, and how far the driver knows.
    next_used: u16,
    told_used: u16,
    /// Chains taken and not given back.
    under_way: u16,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue {
            size: MAX_SIZE,
            enabled: false,
            desc: 0,
            avail: 0,
            used: 0,
            vector: NO_VECTOR,
            next_avail: 0,
            seen_avail: 0,
            next_used: 0,
            told_used: 0,
            under_way: 0,
        }
    }
}

fn read_u16(dma: &DmaMem, at: u64) -> u16 {
    u16::from_le_bytes(dma.fetch(at))
}

fn write_u16(dma: &DmaMem, at: u64, value: u16) {
    dma.write(at, &value.to_le_bytes());
}

impl Queue {
    /// Lays the three parts out behind each other from `base` on, as 0.9.5 has them.
    pub fn set_legacy(&mut self, base: u64) {
        let size = u64::from(self.size);
        self.desc = base;
        self.avail = base + DESC as u64 * size;
        self.used = (self.avail + 6 + 2 * size).next_multiple_of(4096);
        self.enabled = true;
    }

    /// Forgets where it was.
    pub fn reset(&mut self) {
        *self = Queue { vector: self.vector, ..Queue::default() };
    }

    /// Whether size and addresses are what virtio 1.x allows.
    pub fn well_formed(&self) -> bool {
        self.size.is_power_of_two()
            && self.size <= MAX_SIZE
            && self.desc.is_multiple_of(16)
            && self.avail.is_multiple_of(2)
            && self.used.is_multiple_of(4)
    }

    /// Whether chains have been taken and not given back.
    pub fn busy(&self) -> bool {
        self.under_way > 0
    }

    fn mask(&self, index: u16) -> u64 {
        u64::from(index & (self.size - 1))
    }

    /// Whether there is a chain to take.
    fn available(&mut self, dma: &DmaMem) -> Result<bool, Broken> {
        if self.seen_avail == self.next_avail {
            self.seen_avail = read_u16(dma, self.avail.wrapping_add(2));
            if self.seen_avail.wrapping_sub(self.next_avail) > self.size {
                return Err(Broken);
            }
            // The index is read before what it covers.
            fence(Ordering::Acquire);
        }
        Ok(self.seen_avail != self.next_avail)
    }

    /// Takes the next chain; false if there is none.
    pub fn pop(&mut self, dma: &DmaMem, chain: &mut Chain) -> Result<bool, Broken> {
        if !self.available(dma)? {
            return Ok(false);
        }
        // A chain has a descriptor of the table at least.
        if self.under_way == self.size {
            return Err(Broken);
        }
        let head = read_u16(dma, self.avail.wrapping_add(4 + 2 * self.mask(self.next_avail)));
        self.walk(dma, head, chain)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        self.under_way += 1;
        Ok(true)
    }

    /// Leaves the chain that was taken last for the next time.
    pub fn put_back(&mut self) {
        self.next_avail = self.next_avail.wrapping_sub(1);
        self.under_way -= 1;
    }

    fn walk(&self, dma: &DmaMem, head: u16, chain: &mut Chain) -> Result<(), Broken> {
        chain.clear(head);
        let mut at = head;
        // One descriptor more than there are is a loop.
        for _ in 0..self.size {
            if at >= self.size {
                return Err(Broken);
            }
            let bytes: [u8; DESC] = dma.fetch(self.desc.wrapping_add(DESC as u64 * u64::from(at)));
            let d = Desc::of(&bytes);
            if d.flags & INDIRECT != 0 {
                return if d.flags & NEXT != 0 { Err(Broken) } else { Queue::walk_table(dma, d, chain) };
            }
            chain.add(d)?;
            if d.flags & NEXT == 0 {
                return Ok(());
            }
            at = d.next;
        }
        Err(Broken)
    }

    /// A chain in a table of its own, which is fetched as a whole.
    fn walk_table(dma: &DmaMem, table: Desc, chain: &mut Chain) -> Result<(), Broken> {
        let len = table.len as usize;
        if len == 0 || !len.is_multiple_of(DESC) || len > DESC * MAX_CHAIN {
            return Err(Broken);
        }
        let mut buf = [0; DESC * MAX_CHAIN];
        let entries = &mut buf[..len];
        dma.read(table.addr, entries);
        let mut at = 0;
        for _ in 0..len / DESC {
            let d = Desc::of(entries.get(at * DESC..).filter(|rest| !rest.is_empty()).ok_or(Broken)?);
            if d.flags & INDIRECT != 0 {
                return Err(Broken);
            }
            chain.add(d)?;
            if d.flags & NEXT == 0 {
                return Ok(());
            }
            at = usize::from(d.next);
        }
        Err(Broken)
    }

    /// Gives a chain back, of which `len` bytes were written. The driver hears of it by [`Queue::publish`].
    pub fn push(&mut self, dma: &DmaMem, head: u16, len: u32) {
        let mut element = [0; 8];
        element[..2].copy_from_slice(&head.to_le_bytes());
        element[4..].copy_from_slice(&len.to_le_bytes());
        dma.write(self.used.wrapping_add(4 + 8 * self.mask(self.next_used)), &element);
        self.next_used = self.next_used.wrapping_add(1);
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// Moves the used index over what was given back; whether the driver wants an interrupt for it.
    pub fn publish(&mut self, dma: &DmaMem, event_idx: bool) -> bool {
        if self.next_used == self.told_used {
            return false;
        }
        fence(Ordering::Release);
        write_u16(dma, self.used.wrapping_add(2), self.next_used);
        let before = std::mem::replace(&mut self.told_used, self.next_used);
        // The driver writes what it wants and then looks at the index; so one of us sees the other.
        fence(Ordering::SeqCst);
        if !event_idx {
            return read_u16(dma, self.avail) & LEAVE_ALONE == 0;
        }
        let event = read_u16(dma, self.avail.wrapping_add(4 + 2 * u64::from(self.size)));
        self.next_used.wrapping_sub(event).wrapping_sub(1) < self.next_used.wrapping_sub(before)
    }

    /// Tells the driver that it need not kick.
    pub fn leave_alone(&mut self, dma: &DmaMem, event_idx: bool) {
        // With an index that lies behind there are no kicks anyway.
        if !event_idx {
            write_u16(dma, self.used, LEAVE_ALONE);
        }
    }

    /// Tells the driver to kick for the next chain. True if it put one in meanwhile, perhaps without a kick.
    pub fn listen(&mut self, dma: &DmaMem, event_idx: bool) -> Result<bool, Broken> {
        if event_idx {
            let at = self.used.wrapping_add(4 + 8 * u64::from(self.size));
            write_u16(dma, at, self.next_avail);
        } else {
            write_u16(dma, self.used, 0);
        }
        fence(Ordering::SeqCst);
        self.available(dma)
    }
}
