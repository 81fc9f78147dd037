//! virtio-blk: a disk.
//!
//! Virtio 1.2, 5.2. Modelled: reading, writing, flushing, discarding, writing zeroes and the serial number, on several
//! queues; the switch between write-back and write-through; a disk that changes its size. Not modelled: secure erase,
//! zones, SCSI commands, and the maximum size of a segment: FreeBSD does not attach to a disk that has one below its
//! own MAXPHYS, which the user can raise, and nobody needs it.
//!
//! A driver that has not accepted FLUSH cannot ask for it, so each of its writes is on stable storage before it is told
//! of its end; as is each write while the driver has turned the cache off.

use emu::backend::{Completion, DiskOp, DiskRequest};
use emu::{Class, DiskPort, Event, Model, Param, ParamKind, Params, Slot};
use serde::{Deserialize, Serialize};

use super::pci::{Core, Function, IOEVENTFD, Kind, MSIX, VERSION, VirtioPci};
use super::queue::Chain;

/// Keys of virtio's disks.
pub(super) const SECTORSIZE: Param = Param {
    name: "sectorsize",
    kind: ParamKind::Text,
    default: "512",
    help: "bytes in a sector of a disk, logical or logical/physical",
};
pub(super) const NODELETE: Param = Param {
    name: "nodelete",
    kind: ParamKind::Bool,
    default: "false",
    help: "do not take news of contents that are no longer needed",
};

/// The model.
pub static MODEL: Model = Model {
    name: "virtio-blk",
    summary: "virtio disk",
    class: Class::Storage { units: 1, cds: false },
    keys: &[
        VERSION,
        IOEVENTFD,
        MSIX,
        Param {
            name: "ser",
            kind: ParamKind::Text,
            default: "",
            help: "serial number, up to 20 characters; by default the device's name",
        },
        SECTORSIZE,
        NODELETE,
        Param {
            name: "queues",
            kind: ParamKind::Int(1, MAX_QUEUES),
            default: "4",
            help: "queues, for processors each",
        },
    ],
    create,
};

const MAX_QUEUES: i64 = 16;

const KIND: Kind = Kind { id: 2, legacy_device: 0x1001, class: 0x01_0000, config: 60 };

/// Feature bits.
mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const GEOMETRY: u64 = 1 << 4;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Types of requests.
mod request {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    /// What drafts of 0.9 called a flush.
    pub const FLUSH_OUT: u32 = 5;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// The register that turns the cache on and off.
const WRITEBACK: usize = 0x20;

/// The tag of what no driver asked for.
const NOBODY: u64 = u64::MAX;

/// What sectors are counted in, whatever the disk's own are.
const SECTOR: u64 = 512;
/// Bytes before the data: type, priority, sector.
const HEADER: u64 = 16;
/// Buffers of a request: what the longest chain has beside header and status.
const SEG_MAX: u32 = 254;
/// Bytes of the longest request. No driver comes near; one that wants to keep the host busy is refused.
const MAX_BYTES: u64 = 256 << 20;
/// Sectors that a request can discard.
const MAX_DISCARD: u32 = 1 << 22;
/// Sectors that a request can fill with zeroes, and bytes that are written at a time.
const MAX_ZEROES: u32 = 1 << 15;
const ZEROES: u64 = 16 << 10;
/// Bytes of a serial number.
const ID_LEN: usize = 20;

/// What the disk does for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Job {
    Read,
    Write,
    /// A flush, or a discard: one step.
    Plain,
    /// Zeroes from this byte on, and so many of them, are still to be written.
    Zeroes(u64, u64),
}

/// A request under way.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Request {
    queue: usize,
    head: u16,
    /// Where the status goes.
    status: u64,
    /// Bytes that the driver gets beside it.
    bytes: u32,
    job: Job,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Disk {
    /// By their tags, and the tags that are free.
    requests: Vec<Option<Request>>,
    free: Vec<usize>,
    /// The driver wants writes to be cached.
    writeback: bool,
    /// Bytes.
    size: u64,
}

impl Disk {
    fn new(size: u64) -> Disk {
        Disk { requests: Vec::new(), free: Vec::new(), writeback: true, size }
    }
}

struct Blk {
    s: Disk,
    disk: DiskPort,
    id: [u8; ID_LEN],
    logical: u64,
    physical: u64,
    delete: bool,
    queues: usize,
}

fn create(slot: &mut Slot, params: &Params) -> Result<Box<dyn emu::Device>, String> {
    let disk = slot.disk(0).ok_or("virtio-blk needs a disk")?;
    let (logical, physical) = sector_sizes(params.get("sectorsize").unwrap_or("512"))?;
    let serial = params.get("ser").unwrap_or(slot.name()).as_bytes();
    let mut id = [0; ID_LEN];
    let len = serial.len().min(ID_LEN);
    id[..len].copy_from_slice(&serial[..len]);
    let queues = params.int("queues").unwrap_or(4).clamp(1, MAX_QUEUES) as usize;
    let s = Disk::new(disk.size());
    let blk = Blk { s, disk, id, logical, physical, delete: !params.flag("nodelete"), queues };
    VirtioPci::create(slot, params, &KIND, queues, blk)
}

/// Bytes of logical and physical sectors.
pub(super) fn sector_sizes(text: &str) -> Result<(u64, u64), String> {
    let (logical, physical) = text.split_once('/').unwrap_or((text, text));
    let good = |t: &str| t.parse().ok().filter(|n: &u64| n.is_power_of_two() && (512..=65536).contains(n));
    match (good(logical), good(physical)) {
        (Some(l), Some(p)) if l <= p => Ok((l, p)),
        _ => {
            Err(format!("sectorsize: {text:?} is not a power of two from 512 to 65536, or two of them, like 512/4096"))
        }
    }
}

impl Blk {
    fn sectors(&self) -> u64 {
        self.s.size / self.logical * self.logical / SECTOR
    }

    /// Whether writes may lie in the host's cache.
    fn cached(&self, core: &Core) -> bool {
        if core.has(feature::CONFIG_WCE) { self.s.writeback } else { core.has(feature::FLUSH) }
    }

    /// Where these bytes are on the disk, if all of them are there and nothing but whole sectors.
    fn range(&self, sector: u64, bytes: u64) -> Option<u64> {
        let at = sector.checked_mul(SECTOR)?;
        let end = at.checked_add(bytes)?;
        let whole = at.is_multiple_of(self.logical) && bytes.is_multiple_of(self.logical);
        (whole && end <= self.sectors() * SECTOR).then_some(at)
    }

    /// Starts what a chain asks for, or answers it.
    fn start(&mut self, core: &mut Core, n: usize, chain: &Chain) {
        let mut header = [0; HEADER as usize];
        let status = chain.in_len.checked_sub(1).and_then(|last| chain.place(last));
        let (true, Some(status)) = (chain.read(core.dma(), 0, &mut header), status) else {
            // There is no place for an answer.
            return core.broken();
        };
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap_or_default());
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap_or_default());
        let request = Request { queue: n, head: chain.head, status, bytes: 0, job: Job::Plain };
        match self.begin(core, chain, kind, sector) {
            Ok((bytes, job, at, op)) => self.submit(Request { bytes, job, ..request }, at, op),
            Err((answer, bytes)) => finish(core, &Request { bytes, ..request }, answer),
        }
    }

    /// What is to be done, and where: bytes that the driver gets, job, byte of the disk, operation. Or an answer at
    /// once, and how many bytes it has.
    fn begin(&self, core: &Core, chain: &Chain, kind: u32, sector: u64) -> Result<(u32, Job, u64, DiskOp), (u8, u32)> {
        let (out, inn) = (chain.out_len - HEADER, chain.in_len - 1);
        let refuse = (IOERR, 0);
        let read_only = self.disk.read_only();
        match kind {
            request::IN | request::OUT => {
                let read = kind == request::IN;
                let bytes = if read { inn } else { out };
                let at = self.range(sector, bytes).filter(|_| bytes <= MAX_BYTES && (read || !read_only));
                let at = at.ok_or(refuse)?;
                if bytes == 0 {
                    return Err((OK, 0));
                }
                let from = if read { 0 } else { HEADER };
                let iov = chain.memory(core.dma(), read, from, bytes).ok_or(refuse)?;
                Ok(if read {
                    (bytes as u32, Job::Read, at, DiskOp::Read(iov))
                } else {
                    (0, Job::Write, at, DiskOp::Write(iov))
                })
            }
            request::FLUSH | request::FLUSH_OUT => Ok((0, Job::Plain, 0, DiskOp::Flush)),
            request::GET_ID => {
                let bytes = inn.min(ID_LEN as u64) as u32;
                chain.write(core.dma(), 0, &self.id[..bytes as usize]);
                Err((OK, bytes))
            }
            request::DISCARD | request::WRITE_ZEROES => {
                let discard = kind == request::DISCARD;
                let needs = if discard { feature::DISCARD } else { feature::WRITE_ZEROES };
                if !core.has(needs) {
                    return Err((UNSUPP, 0));
                }
                let mut segment = [0; 16];
                if out != 16 || !chain.read(core.dma(), HEADER, &mut segment) || read_only {
                    return Err(refuse);
                }
                let word = |at: usize| u32::from_le_bytes(segment[at..at + 4].try_into().unwrap_or_default());
                let (first, count, flags) = (u64::from(word(0)) | u64::from(word(4)) << 32, word(8), word(12));
                // Zeroes may be unmapped, which this device does not; nothing else has a flag.
                if flags & !u32::from(!discard) != 0 {
                    return Err((UNSUPP, 0));
                }
                let bytes = u64::from(count) * SECTOR;
                let most = if discard { MAX_DISCARD } else { MAX_ZEROES };
                let at = self.range(first, bytes).filter(|_| count <= most).ok_or(refuse)?;
                match (bytes, discard) {
                    (0, _) => Err((OK, 0)),
                    (_, true) => Ok((0, Job::Plain, at, DiskOp::Discard(bytes))),
                    _ => Ok(zeroes(at, bytes)),
                }
            }
            _ => Err((UNSUPP, 0)),
        }
    }

    fn submit(&mut self, request: Request, offset: u64, op: DiskOp) {
        let tag = self.s.free.pop().unwrap_or_else(|| {
            self.s.requests.push(None);
            self.s.requests.len() - 1
        });
        self.s.requests[tag] = Some(request);
        self.disk.submit(DiskRequest { tag: tag as u64, offset, op });
    }

    fn done(&mut self, core: &mut Core, completion: &Completion) {
        let tag = completion.tag as usize;
        let Some(request) = self.s.requests.get_mut(tag).and_then(Option::take) else { return };
        self.s.free.push(tag);
        if !completion.ok {
            return finish(core, &Request { bytes: 0, ..request }, IOERR);
        }
        match request.job {
            Job::Zeroes(at, left) if left > 0 => {
                let (_, job, at, op) = zeroes(at, left);
                self.submit(Request { job, ..request }, at, op);
            }
            Job::Write | Job::Zeroes(..) if !self.cached(core) => {
                self.submit(Request { job: Job::Plain, ..request }, 0, DiskOp::Flush);
            }
            _ => finish(core, &request, OK),
        }
    }
}

/// The next step of writing zeroes.
fn zeroes(at: u64, left: u64) -> (u32, Job, u64, DiskOp) {
    let n = left.min(ZEROES);
    (0, Job::Zeroes(at + n, left - n), at, DiskOp::WriteBytes(vec![0; n as usize]))
}

/// Answers; the driver hears of it when the queue is published.
fn finish(core: &mut Core, request: &Request, status: u8) {
    core.dma().write(request.status, &[status]);
    core.push(request.queue, request.head, request.bytes + 1);
}

impl Function for Blk {
    type Saved = Disk;

    fn features(&self) -> u64 {
        use feature::*;
        let delete = if self.delete { DISCARD } else { 0 };
        let writes = if self.disk.read_only() { RO } else { CONFIG_WCE | WRITE_ZEROES | delete };
        let queues = if self.queues > 1 { MQ } else { 0 };
        SEG_MAX | GEOMETRY | BLK_SIZE | FLUSH | TOPOLOGY | writes | queues
    }

    fn config(&self, _: &Core, image: &mut [u8]) {
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let sectors = self.sectors();
        let cylinders = (sectors / (16 * 63)).clamp(1, 65535) as u16;
        let exponent = (self.physical / self.logical).trailing_zeros() as u8;
        let alignment = (self.logical / SECTOR) as u32;
        put(0x00, &sectors.to_le_bytes());
        put(0x0c, &SEG_MAX.to_le_bytes());
        put(0x10, &cylinders.to_le_bytes());
        put(0x12, &[16, 63]);
        put(0x14, &(self.logical as u32).to_le_bytes());
        // Topology: physical sectors as a power of two of logical ones, the first is aligned, they are best written
        // whole.
        put(0x18, &[exponent, 0]);
        put(0x1a, &(1u16 << exponent).to_le_bytes());
        put(WRITEBACK, &[u8::from(self.s.writeback)]);
        put(0x22, &(self.queues as u16).to_le_bytes());
        put(0x24, &MAX_DISCARD.to_le_bytes());
        put(0x28, &1u32.to_le_bytes());
        put(0x2c, &alignment.to_le_bytes());
        put(0x30, &MAX_ZEROES.to_le_bytes());
        put(0x34, &1u32.to_le_bytes());
    }

    fn config_write(&mut self, core: &mut Core, at: usize, data: &[u8]) {
        if at == WRITEBACK && data.len() == 1 && core.has(feature::CONFIG_WCE) {
            let before = std::mem::replace(&mut self.s.writeback, data[0] & 1 != 0);
            if before && !self.s.writeback {
                // What was cached so far goes to the disk, too. Nobody waits for it.
                self.disk.submit(DiskRequest { tag: NOBODY, offset: 0, op: DiskOp::Flush });
            }
        }
    }

    fn kick(&mut self, core: &mut Core, n: usize) {
        core.drain(n, |core, chain| self.start(core, n, chain));
    }

    fn event(&mut self, core: &mut Core, event: Event) {
        match event {
            Event::Done(completion) => self.done(core, &completion),
            Event::AllDone => (0..self.queues).for_each(|n| core.publish(n)),
            Event::Medium(_) if self.disk.size() != self.s.size => {
                self.s.size = self.disk.size();
                core.config_changed();
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.disk.cancel();
        self.s = Disk::new(self.disk.size());
    }

    fn save(&self) -> Disk {
        self.s.clone()
    }

    fn load(&mut self, saved: Disk) -> Result<(), String> {
        let known = |tag: &usize| saved.requests.get(*tag).is_some_and(Option::is_none);
        if saved.requests.iter().flatten().any(|r| r.queue >= self.queues) || !saved.free.iter().all(known) {
            return Err("it has other queues".to_owned());
        }
        self.s = saved;
        Ok(())
    }
}
