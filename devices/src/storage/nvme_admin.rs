//! The administrator's commands of an NVMe controller: NVM Express 1.4, chapters 5 and 6.

use super::nvme::{Done, ERRORS, EVENT_REQUESTS, MDTS, Nvme, VERSION};
use super::nvme_queue::*;

/// Identifier of our vendor, and the OUI that bhyve has for its namespaces.
const VENDOR: u16 = 0xfb5d;
const OUI: [u8; 3] = [0xfc, 0x9c, 0x58];
const MODEL: &str = "bhyve-rs NVMe";
/// Kelvin: what it always has, and where it would warn.
const TEMPERATURE: u16 = 303;
const WARNING: u16 = 343;

/// Features: arbitration, temperature threshold, write cache, queues, interrupts by vector, events.
const ARBITRATION: u8 = 0x01;
const POWER: u8 = 0x02;
const THRESHOLD: u8 = 0x04;
const CACHE: u8 = 0x06;
const QUEUES: u8 = 0x07;
const COALESCING: u8 = 0x08;
const VECTOR: u8 = 0x09;
const EVENTS: u8 = 0x0b;

/// Writes numbers into a structure.
fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Characters, filled up with blanks.
fn text(page: &mut [u8], at: usize, len: usize, text: &str) {
    page[at..at + len].fill(b' ');
    put(page, at, &text.as_bytes()[..text.len().min(len)]);
}

impl Nvme {
    pub(super) fn administer(&mut self, c: &Command) -> Result<Done, Status> {
        match c.opcode() {
            0x00 => return self.delete_submission(c),
            0x01 => self.create_submission(c)?,
            0x02 => self.log(c)?,
            0x04 => self.delete_completion(c)?,
            0x05 => self.create_completion(c)?,
            0x06 => self.identify(c)?,
            0x08 => return Ok(Done::Now(self.abort(c.dword(10)))),
            0x09 => return self.set_feature(c).map(Done::Now),
            0x0a => return self.get_feature(c).map(Done::Now),
            0x0c => {
                if self.run.event_requests.len() == EVENT_REQUESTS {
                    return Err(TOO_MANY_EVENTS);
                }
                self.run.event_requests.push(c.cid());
                self.resume();
                return Ok(Done::Never);
            }
            // Doorbell Buffer Config.
            0x7c => {
                let (doorbells, events) = (c.prp1(), c.prp2());
                if !doorbells.is_multiple_of(PAGE) || !events.is_multiple_of(PAGE) {
                    return Err(INVALID_FIELD);
                }
                self.run.shadows = Some(Shadows::new(doorbells, events));
            }
            _ => return Err(INVALID_OPCODE),
        }
        Ok(Done::Now(0))
    }

    /// A number of an I/O queue.
    fn queue(&self, n: u32) -> Result<usize, Status> {
        let n = n as usize & 0xffff;
        if (1..=self.queues).contains(&n) { Ok(n) } else { Err(INVALID_QUEUE) }
    }

    /// The number and the size in a command that creates a queue.
    fn new_queue(&self, c: &Command) -> Result<(usize, u32), Status> {
        let (n, size) = (self.queue(c.dword(10))?, (c.dword(10) >> 16) + 1);
        if !(2..=self.queue_size).contains(&size) {
            return Err(INVALID_QUEUE_SIZE);
        }
        // Queues lie in one piece.
        if c.dword(11) & 1 == 0 {
            return Err(INVALID_FIELD);
        }
        if c.prp1().is_multiple_of(PAGE) { Ok((n, size)) } else { Err(PRP_OFFSET) }
    }

    fn create_completion(&mut self, c: &Command) -> Result<(), Status> {
        let (n, size) = self.new_queue(c)?;
        let (interrupts, vector) = (c.dword(11) & 2 != 0, c.dword(11) >> 16);
        if self.run.cqs[n].is_some() {
            return Err(INVALID_QUEUE);
        }
        if vector as usize > self.queues {
            return Err(INVALID_VECTOR);
        }
        self.run.cqs[n] = Some(Completion::new(c.prp1(), size, interrupts.then_some(vector as u16)));
        Ok(())
    }

    fn create_submission(&mut self, c: &Command) -> Result<(), Status> {
        let (n, size) = self.new_queue(c)?;
        let cq = self.queue(c.dword(11) >> 16).map_err(|_| INVALID_CQ)?;
        if self.run.sqs[n].is_some() {
            return Err(INVALID_QUEUE);
        }
        if self.run.cqs[cq].is_none() {
            return Err(INVALID_CQ);
        }
        self.run.sqs[n] = Some(Submission::new(c.prp1(), size, cq as u16));
        Ok(())
    }

    fn delete_completion(&mut self, c: &Command) -> Result<(), Status> {
        let n = self.queue(c.dword(10))?;
        if self.run.cqs[n].is_none() {
            return Err(INVALID_QUEUE);
        }
        if self.run.sqs.iter().flatten().any(|s| usize::from(s.cq) == n) {
            return Err(INVALID_DELETION);
        }
        self.run.cqs[n] = None;
        Ok(())
    }

    fn delete_submission(&mut self, c: &Command) -> Result<Done, Status> {
        let n = self.queue(c.dword(10))?;
        match &mut self.run.sqs[n] {
            Some(s) if s.deleted_by.is_none() => s.deleted_by = Some(c.cid()),
            _ => return Err(INVALID_QUEUE),
        }
        self.delete_idle(n as u16);
        Ok(Done::Later)
    }

    /// Only what waits for an event can be aborted. 1: it was not.
    fn abort(&mut self, what: u32) -> u32 {
        let (sq, cid) = (what & 0xffff, (what >> 16) as u16);
        let found = self.run.event_requests.iter().position(|c| *c == cid);
        match (sq, found) {
            (0, Some(n)) if self.run.cqs[0].as_ref().is_some_and(Completion::has_room) => {
                self.run.event_requests.remove(n);
                self.promise(0, 1);
                self.complete(0, cid, Err(ABORT_REQUESTED));
                0
            }
            _ => 1,
        }
    }

    fn identify(&mut self, c: &Command) -> Result<(), Status> {
        let mut page = vec![0; PAGE as usize];
        match c.dword(10) as u8 {
            // A namespace; one that is not there is nothing but zeroes.
            0x00 => match self.unit(c.nsid()) {
                Ok(n) => self.identify_namespace(n, &mut page),
                Err(_) if (1..=self.disks.len() as u32).contains(&c.nsid()) => {}
                Err(status) => return Err(status),
            },
            0x01 => self.identify_controller(&mut page),
            // The active namespaces after one.
            0x02 => {
                if c.nsid() >= 0xffff_fffe {
                    return Err(INVALID_NAMESPACE);
                }
                let active = (c.nsid().saturating_add(1)..=self.disks.len() as u32).filter(|n| self.unit(*n).is_ok());
                for (k, nsid) in active.enumerate() {
                    put(&mut page, 4 * k, &nsid.to_le_bytes());
                }
            }
            // Descriptors of a namespace: its EUI-64.
            0x03 => {
                let n = self.unit(c.nsid())?;
                put(&mut page, 0, &[1, 8, 0, 0]);
                put(&mut page, 4, &self.identifier(n));
            }
            _ => return Err(INVALID_FIELD),
        }
        c.give(&page, &self.dma)
    }

    fn identifier(&self, unit: usize) -> [u8; 8] {
        self.eui64.wrapping_add(unit as u64).to_be_bytes()
    }

    fn identify_namespace(&self, n: usize, page: &mut [u8]) {
        let blocks = self.blocks(n).to_le_bytes();
        for at in [0, 8, 16] {
            put(page, at, &blocks);
        }
        // Write protected.
        page[99] = self.read_only(n).into();
        put(page, 120, &self.identifier(n));
        // The one format: no metadata, the size as a power of two.
        page[130] = self.block.trailing_zeros() as u8;
    }

    fn identify_controller(&self, page: &mut [u8]) {
        put(page, 0, &VENDOR.to_le_bytes());
        text(page, 4, 20, &self.serial);
        text(page, 24, 40, MODEL);
        text(page, 64, 8, env!("CARGO_PKG_VERSION"));
        page[72] = 4;
        put(page, 73, &OUI);
        page[77] = MDTS;
        put(page, 80, &VERSION.to_le_bytes());
        // Events: namespace attributes.
        put(page, 92, &(1u32 << 8).to_le_bytes());
        // An I/O controller.
        page[111] = 1;
        // Doorbell buffers.
        put(page, 256, &(1u16 << 8).to_le_bytes());
        (page[258], page[259]) = (3, EVENT_REQUESTS as u8 - 1);
        // One slot for firmware, read-only; logs from any offset.
        (page[260], page[261], page[262]) = (3, 4, ERRORS as u8 - 1);
        put(page, 266, &WARNING.to_le_bytes());
        put(page, 268, &(WARNING + 10).to_le_bytes());
        (page[512], page[513]) = (0x66, 0x44);
        put(page, 516, &(self.disks.len() as u32).to_le_bytes());
        // Write zeroes, and discards.
        page[520] = 8 | u8::from(self.discards) << 2;
        // A write cache, which is flushed namespace by namespace.
        page[525] = 1 | 2 << 1;
        let name = format!("nqn.2014.08.org.nvmexpress:{VENDOR:04x}{VENDOR:04x}{:<20}{MODEL:<40}", self.serial);
        put(page, 768, name.as_bytes());
        // The one power state: 25 W.
        put(page, 2048, &2500u16.to_le_bytes());
    }

    pub(super) fn default_features(&mut self) {
        let f = &mut self.run.features;
        f.fill(0);
        f[usize::from(THRESHOLD)] = WARNING.into();
        f[usize::from(CACHE)] = 1;
    }

    /// Queues beside the administrator's, as numbers of submission and completion queues less one.
    fn queue_count(&self) -> u32 {
        let n = self.queues as u32 - 1;
        n | n << 16
    }

    fn set_feature(&mut self, c: &Command) -> Result<u32, Status> {
        let (id, value) = (c.dword(10) as u8, c.dword(11));
        if c.dword(10) >> 31 != 0 {
            return Err(NOT_SAVEABLE);
        }
        match id {
            POWER if value & 0x1f != 0 => return Err(INVALID_FIELD),
            QUEUES => {
                if value & 0xffff == 0xffff || value >> 16 == 0xffff {
                    return Err(INVALID_FIELD);
                }
                let created = self.run.sqs.iter().skip(1).any(Option::is_some)
                    || self.run.cqs.iter().skip(1).any(Option::is_some);
                return if created { Err(SEQUENCE) } else { Ok(self.queue_count()) };
            }
            // The lower threshold, or one of a sensor that is not there.
            THRESHOLD if value >> 16 != 0 => {}
            VECTOR if (value & 0xffff) as usize > self.queues => return Err(INVALID_FIELD),
            CACHE => self.run.features[usize::from(id)] = value & 1,
            EVENTS => self.run.features[usize::from(id)] = value & 0x1ff,
            ARBITRATION..=COALESCING | 0x0a => self.run.features[usize::from(id)] = value,
            VECTOR => {}
            _ => return Err(INVALID_FIELD),
        }
        Ok(0)
    }

    fn get_feature(&mut self, c: &Command) -> Result<u32, Status> {
        let id = c.dword(10) as u8;
        match id {
            QUEUES => Ok(self.queue_count()),
            // No thresholds but one; no coalescing.
            THRESHOLD if c.dword(11) >> 16 != 0 => Ok(0),
            VECTOR if (c.dword(11) & 0xffff) as usize > self.queues => Err(INVALID_FIELD),
            VECTOR => Ok(c.dword(11) & 0xffff),
            // Ranges of blocks have no types.
            0x03 => Err(INVALID_FIELD),
            ARBITRATION..=EVENTS => Ok(self.run.features[usize::from(id)]),
            _ => Err(INVALID_FIELD),
        }
    }

    /// Get Log Page.
    fn log(&mut self, c: &Command) -> Result<(), Status> {
        let (kind, keep) = (c.dword(10) as u8, c.dword(10) >> 15 & 1 != 0);
        let len = (u64::from(c.dword(10) >> 16) | u64::from(c.dword(11) & 0xffff) << 16) * 4 + 4;
        let mut page = match kind {
            1 => self.error_log(),
            2 => self.smart_log(),
            // Firmware: slot 1 is active.
            3 => {
                let mut page = vec![0; 512];
                page[0] = 1;
                text(&mut page, 8, 8, env!("CARGO_PKG_VERSION"));
                page
            }
            4 => {
                let mut page = vec![0; PAGE as usize];
                let changed = (0..self.disks.len()).filter(|n| self.run.changed >> n & 1 != 0);
                for (k, n) in changed.enumerate() {
                    put(&mut page, 4 * k, &(n as u32 + 1).to_le_bytes());
                }
                page
            }
            _ => return Err(INVALID_LOG),
        };
        let from = c.wide(12);
        if from >= page.len() as u64 || from & 3 != 0 || len > PAGE << MDTS {
            return Err(INVALID_FIELD);
        }
        page.drain(..from as usize);
        page.resize(len as usize, 0);
        c.give(&page, &self.dma)?;
        if !keep {
            let event = match kind {
                1 => 0,
                2 => 1,
                _ => 2,
            };
            self.run.told &= !(1 << event);
            if kind == 4 {
                self.run.changed = 0;
            }
        }
        Ok(())
    }

    fn error_log(&self) -> Vec<u8> {
        let mut page = vec![0; 64 * ERRORS];
        let count = self.kept.counters.errors;
        for (k, f) in self.kept.failures.iter().enumerate() {
            let entry = &mut page[64 * k..][..64];
            put(entry, 0, &(count - k as u64).to_le_bytes());
            put(entry, 8, &f.sq.to_le_bytes());
            put(entry, 10, &f.cid.to_le_bytes());
            put(entry, 12, &(f.status << 1).to_le_bytes());
            put(entry, 14, &[0xff, 0xff]);
            put(entry, 16, &f.lba.to_le_bytes());
            put(entry, 24, &f.nsid.to_le_bytes());
        }
        page
    }

    fn smart_log(&self) -> Vec<u8> {
        let (mut page, counters) = (vec![0; 512], &self.kept.counters);
        put(&mut page, 1, &TEMPERATURE.to_le_bytes());
        // Spare capacity, and when it would be too little.
        (page[3], page[4]) = (100, 10);
        // Data are counted in thousands of blocks.
        let rounded = |blocks: u64| blocks.div_ceil(1000);
        for (at, n) in [
            (32, rounded(counters.blocks_read)),
            (48, rounded(counters.blocks_written)),
            (64, counters.reads),
            (80, counters.writes),
            (160, counters.failures),
            (176, counters.errors),
        ] {
            put(&mut page, at, &n.to_le_bytes());
        }
        page
    }
}
