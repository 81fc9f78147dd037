//! NVM Express: a controller with one namespace for each disk.
//!
//! NVM Express 1.4, NVMe over PCIe. Identity (FB5D:0A0A), options and their defaults are bhyve(8)'s.
//!
//! Modelled: the administrator's queue and up to 16 pairs of others, served in turn; reads, writes, flushes, writes of
//! zeroes and discards; PRP lists; identification, features, logs, asynchronous events (errors, a namespace that
//! changes); shadow doorbells; MSI-X, MSI and INTA#; the shutdown, which ends when everything is on stable storage. Not
//! modelled: scatter gather lists and Compare, which drivers use only where Identify says so (SGLS, ONCS) and do not
//! need; metadata, fused commands, firmware updates, formatting, a memory buffer, subsystem resets. A command that a
//! disk works at cannot be aborted.
//!
//! A command is fetched when the completion queue has room for its entry, so that entries never wait. A doorbell's
//! value is its message, therefore doorbells are writes like others, and a ring serves 64 commands; what is left is
//! taken up by a timer that is due at once, so that no guest holds a processor in here.
//!
//! Guests: nvme(4) of FreeBSD 9.2, OpenBSD 6.1 and NetBSD 8 and later, Linux, SeaBIOS, UEFI.

use std::collections::VecDeque;
use std::sync::Arc;

use emu::backend::{Completion as Answer, DiskOp, DiskRequest};
use emu::{
    BarKind, Class, Device, DiskPort, DmaMem, Event, IrqLine, Model, Msi, Msix, Param, ParamKind, Params, PciIds, Pin,
    ResetKind, Slot, State, Timer, Widths,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::nvme_queue::*;
use super::sata::name;

/// The model.
pub static NVME: Model = Model {
    name: "nvme",
    summary: "NVMe controller, a namespace for each of up to 16 disks",
    class: Class::Storage { units: 16, cds: false },
    keys: &[
        Param { name: "maxq", kind: ParamKind::Int(1, 16), default: "16", help: "queues beside the administrator's" },
        Param {
            name: "qsz",
            kind: ParamKind::Int(2, 65536),
            default: "2048",
            help: "largest number of entries of a queue",
        },
        Param {
            name: "ioslots",
            kind: ParamKind::Int(1, 1024),
            default: "8",
            help: "commands that are at work together",
        },
        Param {
            name: "sectsz",
            kind: ParamKind::Choice(&["auto", "512", "4096", "8192"]),
            default: "auto",
            help: "bytes in a block; auto is 512",
        },
        Param { name: "ser", kind: ParamKind::Text, default: "", help: "serial number, 20 characters" },
        Param {
            name: "eui64",
            kind: ParamKind::Text,
            default: "",
            help: "identifier of the first namespace, hexadecimal",
        },
        Param {
            name: "dsm",
            kind: ParamKind::Choice(&["auto", "enable", "disable"]),
            default: "auto",
            help: "whether blocks can be discarded",
        },
    ],
    create: Nvme::create,
};

/// Regions, which are BARs: the registers, and the vectors.
const REGISTERS: u32 = 0;
const VECTORS: u32 = 4;

/// The registers, by their offset.
mod reg {
    pub const CAP: u64 = 0x00;
    pub const CAP_HIGH: u64 = 0x04;
    pub const VS: u64 = 0x08;
    pub const INTMS: u64 = 0x0c;
    pub const INTMC: u64 = 0x10;
    pub const CC: u64 = 0x14;
    pub const CSTS: u64 = 0x1c;
    pub const AQA: u64 = 0x24;
    pub const ASQ: u64 = 0x28;
    pub const ASQ_HIGH: u64 = 0x2c;
    pub const ACQ: u64 = 0x30;
    pub const ACQ_HIGH: u64 = 0x34;
}
const DOORBELLS: u64 = 0x1000;

pub(super) const VERSION: u32 = 0x0001_0400;
/// Contiguous queues only; ready within 10 s.
const CAP_BASE: u32 = 1 << 16 | 20 << 24;
/// The NVM command set; doorbells side by side; pages of 4 KiB.
const CAP_NVM: u32 = 1 << 5;

const CC_EN: u32 = 1;
const CC_SHN: u32 = 3 << 14;
/// What else than 0 is not supported: arbitration, page size, command set.
const CC_FIXED: u32 = 0x3ff0;
const CSTS_RDY: u32 = 1;
const CSTS_CFS: u32 = 1 << 1;
const CSTS_SHST: u32 = 3 << 2;

/// Commands that are fetched at a time.
const BURST: u32 = 64;
/// The longest transfer, as a power of two of pages: 2 MiB.
pub(super) const MDTS: u8 = 9;
/// Bytes of zeroes that are written at a time.
const ZEROES: u64 = 256 << 10;
/// Asynchronous event requests that can wait; less one, as identified.
pub(super) const EVENT_REQUESTS: usize = 4;
/// Entries of the error log.
pub(super) const ERRORS: usize = 16;

/// What a disk does for a command.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Work {
    Read,
    Write {
        through: bool,
    },
    Flush,
    /// Bytes from, and how many are left.
    Zeroes {
        at: u64,
        left: u64,
        through: bool,
    },
    /// Offset and length of what is still to be discarded.
    Discard(Vec<(u64, u64)>),
}

/// A command that a disk works at.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Running {
    tag: u64,
    sq: u16,
    cid: u16,
    unit: usize,
    lba: u64,
    work: Work,
}

/// An entry of the error log.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Failure {
    pub sq: u16,
    pub cid: u16,
    pub status: Status,
    pub lba: u64,
    pub nsid: u32,
}

/// What SMART counts: commands, and blocks of 512 bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Counters {
    pub reads: u64,
    pub writes: u64,
    pub blocks_read: u64,
    pub blocks_written: u64,
    pub failures: u64,
    pub errors: u64,
}

/// What a reset of the controller leaves.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Kept {
    aqa: u32,
    asq: u64,
    acq: u64,
    tags: u64,
    pub counters: Counters,
    pub failures: VecDeque<Failure>,
}

/// What it does not leave.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Run {
    cc: u32,
    csts: u32,
    intms: u32,
    pub sqs: Vec<Option<Submission>>,
    pub cqs: Vec<Option<Completion>>,
    /// The queue looked at first.
    next: usize,
    running: Vec<Running>,
    /// Flushes of the shutdown, by their tags.
    shutdown: Vec<u64>,
    pub shadows: Option<Shadows>,
    /// By identifier, what Set Features said.
    pub features: [u32; 16],
    /// Commands that wait for an event, and events that wait for a command.
    pub event_requests: Vec<u16>,
    events: Vec<u32>,
    /// Types of events that are not told again before their log is read.
    pub told: u8,
    /// Namespaces that have changed, as bits.
    pub changed: u32,
}

/// All that is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    kept: Kept,
    run: Run,
    vectors: (Vec<[u32; 4]>, Vec<bool>),
}

/// The function.
pub(super) struct Nvme {
    pub dma: DmaMem,
    irq: Arc<IrqLine>,
    msi: Msi,
    msix: Msix,
    again: Arc<Timer>,
    pub disks: Vec<Option<DiskPort>>,
    /// Queues beside the administrator's.
    pub queues: usize,
    pub queue_size: u32,
    slots: usize,
    pub block: u64,
    pub serial: String,
    pub eui64: u64,
    pub discards: bool,
    pub kept: Kept,
    pub run: Run,
}

/// How a command ends, unless it fails.
pub(super) enum Done {
    /// With this double word.
    Now(u32),
    /// When the disk is done with it.
    Later,
    /// When something happens, for which no entry is promised.
    Never,
}

impl Nvme {
    fn create(slot: &mut Slot, params: &Params) -> Result<Box<dyn Device>, String> {
        let int = |name: &str, default: u32| params.int(name).and_then(|n| u32::try_from(n).ok()).unwrap_or(default);
        let queues = int("maxq", 16).clamp(1, 16) as usize;
        let ids = PciIds { vendor: 0xfb5d, device: 0x0a0a, class: 0x01_0802, ..PciIds::default() };
        let function = slot.pci(ids)?;
        slot.bar(REGISTERS as u8, BarKind::Mem64, 0x4000, REGISTERS, Widths::QWORD);
        slot.bar(VECTORS as u8, BarKind::Mem32, 0x1000, VECTORS, Widths::QWORD);
        let irq = slot.intx(Pin::A);
        let msi = slot.msi(1);
        let msix = slot.msix(queues as u16 + 1, VECTORS as u8, 0);
        let (dma, again) = (slot.dma(), slot.timer(0));
        let bdf = function.bdf();
        let place = u64::from(bdf.dev) << 8 | u64::from(bdf.func);
        let eui64 = match params.get("eui64") {
            Some(text) => u64::from_str_radix(text.trim_start_matches("0x"), 16)
                .map_err(|_| format!("eui64 {text} is no hexadecimal number of 64 bits"))?,
            None => 0x589c_fc00_0000_0001 | place << 8,
        };
        let mut disks: Vec<Option<DiskPort>> = (0..16).map(|n| slot.disk(n)).collect();
        disks.truncate(disks.iter().rposition(Option::is_some).map_or(1, |n| n + 1));
        let mut nvme = Nvme {
            dma,
            irq,
            msi,
            msix,
            again,
            disks,
            queues,
            queue_size: int("qsz", 2048).clamp(2, 65536),
            slots: int("ioslots", 8).clamp(1, 1024) as usize,
            block: params.int("sectsz").map_or(512, |n| n as u64),
            serial: name(params.get("ser").unwrap_or(&format!("BRS{:02}{}", bdf.dev, bdf.func)), 20),
            eui64,
            discards: params.get("dsm") != Some("disable"),
            kept: Kept::default(),
            run: Run::default(),
        };
        nvme.forget();
        Ok(Box::new(nvme))
    }

    /// No queues, no commands; the registers as after a reset.
    fn forget(&mut self) {
        self.disks.iter_mut().flatten().for_each(DiskPort::cancel);
        self.again.cancel();
        self.irq.set(false);
        let none = 1 + self.queues;
        self.run = Run { sqs: vec![None; none], cqs: vec![None; none], ..Run::default() };
        self.default_features();
    }

    /// Blocks of the namespace at unit `n`; none if it is not there.
    pub fn blocks(&self, n: usize) -> u64 {
        self.disks.get(n).and_then(Option::as_ref).map_or(0, |d| d.size() / self.block)
    }

    pub fn read_only(&self, n: usize) -> bool {
        self.disks.get(n).and_then(Option::as_ref).is_none_or(DiskPort::read_only)
    }

    /// The unit of an active namespace.
    pub fn unit(&self, nsid: u32) -> Result<usize, Status> {
        let n = (nsid as usize).wrapping_sub(1);
        if self.blocks(n) > 0 { Ok(n) } else { Err(INVALID_NAMESPACE) }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let k = &self.kept;
        match offset {
            reg::CAP => self.queue_size - 1 | CAP_BASE,
            reg::CAP_HIGH => CAP_NVM,
            reg::VS => VERSION,
            reg::INTMS | reg::INTMC => self.run.intms,
            reg::CC => self.run.cc,
            reg::CSTS => self.run.csts,
            reg::AQA => k.aqa,
            reg::ASQ => k.asq as u32,
            reg::ASQ_HIGH => (k.asq >> 32) as u32,
            reg::ACQ => k.acq as u32,
            reg::ACQ_HIGH => (k.acq >> 32) as u32,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let k = &mut self.kept;
        let low = |old: u64| old & !0xffff_ffff | u64::from(value & !0xfff);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            reg::INTMS => self.run.intms |= value,
            reg::INTMC => {
                self.run.intms &= !value;
                // What was masked is told now.
                self.run.cqs.iter_mut().flatten().for_each(|cq| cq.news |= cq.head != cq.tail);
            }
            reg::CC => self.configure(value),
            reg::AQA => k.aqa = value & 0x0fff_0fff,
            reg::ASQ => k.asq = low(k.asq),
            reg::ASQ_HIGH => k.asq = high(k.asq),
            reg::ACQ => k.acq = low(k.acq),
            reg::ACQ_HIGH => k.acq = high(k.acq),
            DOORBELLS.. if self.run.csts & CSTS_RDY != 0 => self.ring((offset - DOORBELLS) as usize / 4, value),
            _ => {}
        }
    }

    fn configure(&mut self, value: u32) {
        let old = std::mem::replace(&mut self.run.cc, value & 0x00ff_fff1);
        match (old & CC_EN != 0, value & CC_EN != 0) {
            (false, true) => self.enable(),
            (true, false) => {
                self.forget();
                self.run.cc = value & 0x00ff_fff1;
            }
            _ => {}
        }
        if value & CC_SHN != 0 && old & CC_SHN == 0 {
            self.shut_down();
        }
    }

    fn enable(&mut self) {
        let k = &self.kept;
        let (submission, completion) = (k.aqa & 0xfff, k.aqa >> 16);
        if self.run.cc & CC_FIXED != 0 || submission == 0 || completion == 0 {
            self.run.csts = CSTS_CFS;
            return;
        }
        self.run.sqs[0] = Some(Submission::new(k.asq, submission + 1, 0));
        self.run.cqs[0] = Some(Completion::new(k.acq, completion + 1, Some(0)));
        self.run.csts = CSTS_RDY;
    }

    /// Everything goes to stable storage.
    fn shut_down(&mut self) {
        self.run.csts = self.run.csts & !CSTS_SHST | 1 << 2;
        for n in 0..self.disks.len() {
            if self.disks[n].is_some() {
                let tag = self.ask(n, 0, DiskOp::Flush);
                self.run.shutdown.push(tag);
            }
        }
        self.shut();
    }

    fn shut(&mut self) {
        if self.run.shutdown.is_empty() && self.run.csts & CSTS_SHST == 1 << 2 {
            self.run.csts = self.run.csts & !CSTS_SHST | 2 << 2;
        }
    }

    /// Doorbell `n`: tails of submission queues, and between them heads of completion queues.
    fn ring(&mut self, n: usize, value: u32) {
        let q = n / 2;
        let place = match n & 1 {
            0 => self.run.sqs.get_mut(q).and_then(Option::as_mut).map(|s| (&mut s.tail, s.size)),
            _ => self.run.cqs.get_mut(q).and_then(Option::as_mut).map(|c| (&mut c.head, c.size)),
        };
        match place {
            // Errors: no such doorbell, no such place.
            None => self.raise(0, 0, 1),
            Some((_, size)) if value >= size => self.raise(0, 1, 1),
            Some((place, _)) => *place = value,
        }
        self.kick();
    }

    /// Takes over what the guest wrote to shadow doorbells. The administrator's queue has none that drivers fill.
    fn look(&mut self) {
        let Some(shadows) = self.run.shadows else { return };
        for (q, s) in self.run.sqs.iter_mut().enumerate().skip(1) {
            if let Some(s) = s {
                s.tail = Some(shadows.tail(q, &self.dma)).filter(|t| *t < s.size).unwrap_or(s.tail);
            }
        }
        for (q, c) in self.run.cqs.iter_mut().enumerate().skip(1) {
            if let Some(c) = c {
                c.head = Some(shadows.head(q, &self.dma)).filter(|h| *h < c.size).unwrap_or(c.head);
            }
        }
    }

    /// Asks the guest to ring for what comes next. Whether there is something already.
    fn want_rings(&mut self) -> bool {
        let Some(shadows) = self.run.shadows else { return false };
        let wired = !self.msix.enabled() && !self.msi.enabled();
        for (q, (s, c)) in self.run.sqs.iter().zip(&self.run.cqs).enumerate().skip(1) {
            if let Some(s) = s {
                shadows.want_tail(q, s.tail, &self.dma);
            }
            // Of a head it hears when the wire or a command waits for it.
            if let Some(c) = c
                && (wired || !c.has_room())
            {
                shadows.want_head(q, c.head, &self.dma);
            }
        }
        let before: Vec<_> = self.run.sqs.iter().flatten().map(|s| s.tail).collect();
        self.look();
        self.run.sqs.iter().flatten().zip(before).any(|(s, tail)| s.tail != tail) || self.next_queue().is_some()
    }

    /// The next queue with a command that can be fetched.
    fn next_queue(&self) -> Option<usize> {
        let n = self.run.sqs.len();
        (0..n).map(|k| (self.run.next + k) % n).find(|q| {
            let Some(s) = self.run.sqs[*q].as_ref().filter(|s| s.filled()) else { return false };
            let room = self.run.cqs[usize::from(s.cq)].as_ref().is_some_and(Completion::has_room);
            room && (*q == 0 || self.run.running.len() < self.slots)
        })
    }

    /// Serves the queues in turn.
    fn kick(&mut self) {
        if self.run.csts & CSTS_RDY == 0 {
            return;
        }
        self.tell_events();
        let mut left = BURST;
        self.look();
        loop {
            if left == 0 {
                return self.resume();
            }
            while let Some(q) = self.next_queue() {
                if left == 0 {
                    return self.resume();
                }
                left -= 1;
                self.run.next = (q + 1) % self.run.sqs.len();
                self.serve(q as u16);
                if self.run.csts & CSTS_RDY == 0 {
                    return;
                }
            }
            if !self.want_rings() {
                return;
            }
            // Another processor can move shadow doorbells as fast as they are looked at.
            left = left.saturating_sub(1);
        }
    }

    /// Fetches a command and starts it.
    fn serve(&mut self, sq: u16) {
        let Some(s) = &mut self.run.sqs[usize::from(sq)] else { return };
        let command = s.fetch(&self.dma);
        let cq = usize::from(s.cq);
        self.promise(cq, 1);
        let result = match sq {
            _ if !command.plain() => Err(INVALID_FIELD),
            0 => self.administer(&command),
            _ => self.start(sq, &command),
        };
        match result {
            Ok(Done::Now(dword)) => self.complete(sq, command.cid(), Ok(dword)),
            Ok(Done::Later) => {}
            Ok(Done::Never) => self.promise(cq, -1),
            Err(status) => {
                let lba = if sq == 0 { 0 } else { command.wide(10) };
                self.failed(sq, command.cid(), status, lba, command.nsid());
                self.complete(sq, command.cid(), Err(status));
            }
        }
    }

    /// Comes back soon.
    pub fn resume(&self) {
        self.again.set(self.again.now());
    }

    pub fn promise(&mut self, cq: usize, n: i32) {
        if let Some(cq) = &mut self.run.cqs[cq] {
            cq.promised = cq.promised.saturating_add_signed(n);
        }
    }

    /// Posts the entry that a command was promised.
    pub fn complete(&mut self, sq: u16, cid: u16, result: Result<u32, Status>) {
        let Some(s) = &self.run.sqs[usize::from(sq)] else { return };
        if let Some(cq) = &mut self.run.cqs[usize::from(s.cq)] {
            cq.promised = cq.promised.saturating_sub(1);
            cq.post((sq, s.head), cid, result, &self.dma);
        }
    }

    fn failed(&mut self, sq: u16, cid: u16, status: Status, lba: u64, nsid: u32) {
        self.kept.counters.errors += 1;
        self.kept.failures.truncate(ERRORS - 1);
        self.kept.failures.push_front(Failure { sq, cid, status, lba, nsid });
    }

    /// An asynchronous event: its type, what it is, and the log that says more.
    fn raise(&mut self, kind: u32, what: u32, log: u32) {
        let event = kind | what << 8 | log << 16;
        if self.run.told >> kind & 1 == 0 && !self.run.events.contains(&event) && self.run.events.len() < EVENT_REQUESTS
        {
            self.run.events.push(event);
        }
    }

    fn tell_events(&mut self) {
        while !self.run.events.is_empty() && !self.run.event_requests.is_empty() {
            if !self.run.cqs[0].as_ref().is_some_and(Completion::has_room) {
                return;
            }
            let (event, cid) = (self.run.events.remove(0), self.run.event_requests.remove(0));
            self.run.told |= 1 << (event & 7);
            self.promise(0, 1);
            self.complete(0, cid, Ok(event));
        }
    }

    /// A command of the NVM command set.
    fn start(&mut self, sq: u16, c: &Command) -> Result<Done, Status> {
        if !matches!(c.opcode(), 0x00..=0x02 | 0x08 | 0x09) {
            return Err(INVALID_OPCODE);
        }
        let unit = self.unit(c.nsid())?;
        let block = self.block;
        let (lba, count) = (c.wide(10), u64::from(c.dword(12) & 0xffff) + 1);
        let range = |lba: u64, count: u64| match lba.checked_add(count) {
            Some(end) if end <= self.blocks(unit) => Ok((lba * block, count * block)),
            _ => Err(LBA_RANGE),
        };
        if !matches!(c.opcode(), 0x00 | 0x02) && self.read_only(unit) {
            return Err(WRITE_PROTECTED);
        }
        // Forced unit access, or no cache.
        let through = c.dword(12) >> 30 & 1 != 0 || self.run.features[6] & 1 == 0;
        let (offset, op, work) = match c.opcode() {
            0x00 => (0, DiskOp::Flush, Work::Flush),
            0x01 | 0x02 => {
                if count * block > PAGE << MDTS {
                    return Err(INVALID_FIELD);
                }
                let (offset, len) = range(lba, count)?;
                let iov = c.memory(len, c.opcode() == 0x02, &self.dma)?;
                let counters = &mut self.kept.counters;
                if c.opcode() == 0x02 {
                    counters.reads += 1;
                    counters.blocks_read += len / 512;
                    (offset, DiskOp::Read(iov), Work::Read)
                } else {
                    counters.writes += 1;
                    counters.blocks_written += len / 512;
                    (offset, DiskOp::Write(iov), Work::Write { through })
                }
            }
            0x08 => {
                let (at, left) = range(lba, count)?;
                let work = Work::Zeroes { at, left, through };
                return Ok(self.go_on(Running { tag: 0, sq, cid: c.cid(), unit, lba, work }));
            }
            _ => {
                let list = c.take(16 * (c.dword(10) as usize & 0xff) + 16, &self.dma)?;
                let mut ranges = Vec::new();
                for entry in list.chunks_exact(16) {
                    let count = u32::from_le_bytes(std::array::from_fn(|n| entry[4 + n]));
                    let lba = u64::from_le_bytes(std::array::from_fn(|n| entry[8 + n]));
                    ranges.push(range(lba, count.into())?);
                }
                // Other attributes are hints.
                let discard = c.dword(11) & 4 != 0 && self.discards;
                ranges.retain(|(_, len)| discard && *len > 0);
                return Ok(self.go_on(Running { tag: 0, sq, cid: c.cid(), unit, lba, work: Work::Discard(ranges) }));
            }
        };
        let tag = self.ask(unit, offset, op);
        Ok(self.keep(Running { tag, sq, cid: c.cid(), unit, lba, work }))
    }

    /// The next step of a command that has several.
    fn go_on(&mut self, mut r: Running) -> Done {
        let (offset, op) = match &mut r.work {
            Work::Zeroes { at, left, .. } if *left > 0 => {
                let (from, n) = (*at, ZEROES.min(*left));
                (*at, *left) = (*at + n, *left - n);
                (from, DiskOp::WriteBytes(vec![0; n as usize]))
            }
            Work::Discard(ranges) if !ranges.is_empty() => {
                let (offset, len) = ranges.remove(0);
                (offset, DiskOp::Discard(len))
            }
            Work::Write { through: true } | Work::Zeroes { through: true, .. } => {
                r.work = Work::Flush;
                (0, DiskOp::Flush)
            }
            _ => return Done::Now(0),
        };
        r.tag = self.ask(r.unit, offset, op);
        self.keep(r)
    }

    fn keep(&mut self, r: Running) -> Done {
        if let Some(s) = &mut self.run.sqs[usize::from(r.sq)] {
            s.running += 1;
        }
        self.run.running.push(r);
        Done::Later
    }

    fn ask(&mut self, unit: usize, offset: u64, op: DiskOp) -> u64 {
        self.kept.tags += 1;
        let tag = self.kept.tags;
        if let Some(disk) = &mut self.disks[unit] {
            disk.submit(DiskRequest { tag, offset, op });
        }
        tag
    }

    /// A disk's answer.
    fn answered(&mut self, answer: &Answer) {
        if let Some(n) = self.run.shutdown.iter().position(|tag| *tag == answer.tag) {
            self.run.shutdown.swap_remove(n);
            return self.shut();
        }
        let Some(n) = self.run.running.iter().position(|r| r.tag == answer.tag) else { return };
        let r = self.run.running.swap_remove(n);
        if let Some(s) = &mut self.run.sqs[usize::from(r.sq)] {
            s.running -= 1;
        }
        let (sq, cid) = (r.sq, r.cid);
        if answer.ok {
            if let Done::Now(dword) = self.go_on(r) {
                self.complete(sq, cid, Ok(dword));
            }
        } else {
            let status = match r.work {
                Work::Read => READ_ERROR,
                Work::Flush | Work::Discard(_) => INTERNAL,
                Work::Write { .. } | Work::Zeroes { .. } => WRITE_FAULT,
            };
            self.kept.counters.failures += 1;
            self.failed(sq, cid, status, r.lba, r.unit as u32 + 1);
            self.complete(sq, cid, Err(status));
        }
        self.delete_idle(sq);
    }

    /// Deletes a queue that was to be deleted once its last command is done.
    pub fn delete_idle(&mut self, sq: u16) {
        if let Some(s) = &self.run.sqs[usize::from(sq)]
            && s.running == 0
            && let Some(cid) = s.deleted_by
        {
            self.run.sqs[usize::from(sq)] = None;
            self.complete(0, cid, Ok(0));
        }
    }

    /// Interrupts for what is new, and as long as there is something for the wire.
    fn interrupt(&mut self) {
        let (msix, msi) = (self.msix.enabled(), self.msi.enabled());
        let mut level = false;
        for cq in self.run.cqs.iter_mut().flatten() {
            let news = std::mem::take(&mut cq.news);
            let Some(vector) = cq.vector else { continue };
            let masked = self.run.intms >> (vector & 31) & 1 != 0;
            match (msix, msi) {
                (true, _) if news => self.msix.send(vector),
                (false, true) if news && !masked => self.msi.send(0),
                (false, false) => level |= cq.head != cq.tail && !masked,
                _ => {}
            }
        }
        self.irq.set(level);
    }
}

impl Device for Nvme {
    fn read(&mut self, region: u32, offset: u64, width: u8) -> u64 {
        if region == VECTORS {
            return self.msix.read(offset, width);
        }
        let low = u64::from(self.read_register(offset & !3)) >> (8 * (offset & 3));
        match width {
            8 => low | u64::from(self.read_register(offset + 4)) << 32,
            _ => low & (u64::MAX >> (64 - 8 * u32::from(width))),
        }
    }

    /// Registers take whole double words, and pairs of them.
    fn write(&mut self, region: u32, offset: u64, width: u8, value: u64) {
        if region == VECTORS {
            return self.msix.write(offset, width, value);
        }
        if width < 4 || !offset.is_multiple_of(4) {
            return;
        }
        self.write_register(offset, value as u32);
        if width == 8 {
            self.write_register(offset + 4, (value >> 32) as u32);
        }
        self.interrupt();
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Done(answer) => return self.answered(&answer),
            Event::AllDone | Event::Timer(_) => self.kick(),
            Event::Medium(n) if n < self.disks.len() => {
                self.run.changed |= 1 << n;
                // Namespace attribute notices.
                if self.run.features[0xb] >> 8 & 1 != 0 {
                    self.raise(2, 0, 4);
                }
                self.kick();
            }
            _ => {}
        }
        self.interrupt();
    }

    fn config_write(&mut self, _: u16, _: u8) {
        self.msi.config_written();
        self.msix.unmasked();
        self.interrupt();
    }

    fn reset(&mut self, _: ResetKind) {
        self.kept = Kept::default();
        self.forget();
        self.msix.reset();
    }

    fn state(&mut self) -> &mut dyn State {
        self
    }
}

/// By hand: disks and vectors are beside the state.
impl State for Nvme {
    fn save(&self) -> Value {
        Saved { kept: self.kept.clone(), run: self.run.clone(), vectors: self.msix.save() }.save()
    }

    fn load(&mut self, value: Value) -> Result<(), String> {
        let saved: Saved = serde_json::from_value(value).map_err(|e| e.to_string())?;
        let queues = 1 + self.queues;
        let known = |r: &Running| self.disks.get(r.unit).is_some_and(Option::is_some) && usize::from(r.sq) < queues;
        let units = saved.run.running.iter().all(known);
        if saved.run.sqs.len() != queues || saved.run.cqs.len() != queues || !units {
            return Err("it has other queues or namespaces".to_owned());
        }
        self.kept = saved.kept;
        self.run = saved.run;
        self.msix.load(&saved.vectors.0, &saved.vectors.1);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
