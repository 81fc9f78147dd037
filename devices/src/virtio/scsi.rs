//! virtio-scsi: a host adapter with disks and CD-ROM drives.
//!
//! Virtio 1.2, 5.6. The number of a drive at its controller is its target, which has unit 0 alone. Modelled: several
//! request queues, residuals, sense data, aborts and resets of tasks, events for media that are changed and disks that
//! come and go. Not modelled: protection information, priorities and orders of tasks, asynchronous notification of
//! media (their changes are events), requests with data both ways.
//!
//! A single task cannot be taken back from a disk: an abort takes all of its unit's back and gives out the others anew.

use emu::backend::Completion;
use emu::{Class, Event, Model, Param, ParamKind, Params, Slot, Unit};
use serde::{Deserialize, Serialize};

use super::blk::sector_sizes;
use super::blk::{NODELETE, SECTORSIZE};
use super::pci::{Core, Function, IOEVENTFD, Kind, MSIX, VERSION, VirtioPci};
use super::queue::Chain;
use crate::storage::scsi::{
    CHECK_CONDITION, Change, GOOD, LogicalUnit, MAX_BYTES, Make, NEXUS_LOST, Next, Places, UNIT_RESET, UnitState, Work,
    no_unit,
};

/// The model.
pub static MODEL: Model = Model {
    name: "virtio-scsi",
    summary: "virtio SCSI host adapter, up to 256 disks and CD-ROM drives",
    class: Class::Storage { units: TARGETS, cds: true },
    keys: &[
        VERSION,
        IOEVENTFD,
        MSIX,
        Param { name: "ser", kind: ParamKind::Text, default: "", help: "serial number, up to 20 characters" },
        Param { name: "product", kind: ParamKind::Text, default: "", help: "name of the drive, up to 16 characters" },
        SECTORSIZE,
        NODELETE,
        Param {
            name: "queues",
            kind: ParamKind::Int(1, MAX_QUEUES),
            default: "4",
            help: "request queues, for processors each",
        },
    ],
    create,
};

const KIND: Kind = Kind { id: 8, legacy_device: 0x1004, class: 0x01_0000, config: 36 };

const TARGETS: usize = 256;
const MAX_QUEUES: i64 = 16;

/// The queues; those for requests follow.
const CONTROL: usize = 0;
const EVENTS: usize = 1;
const REQUESTS: usize = 2;

/// Feature bits.
const HOTPLUG: u64 = 1 << 1;
const CHANGE: u64 = 1 << 2;

/// What a request begins with, before its command block; and its answer, before the sense data.
const HEADER: u64 = 19;
const ANSWER: u64 = 12;
/// Bytes of command blocks and sense data, unless the driver says otherwise, and at most.
const CDB_SIZE: u32 = 32;
const SENSE_SIZE: u32 = 96;
const MOST_SIZE: u32 = 252;
const SENSE_REGISTER: usize = 20;
const CDB_REGISTER: usize = 24;
/// Bytes of an event.
const EVENT: u64 = 16;
/// Buffers of a request: what the longest chain has beside header and answer.
const SEG_MAX: u32 = 254;
const CMD_PER_LUN: u32 = 128;

/// Responses.
mod response {
    pub const OK: u8 = 0;
    pub const OVERRUN: u8 = 1;
    pub const ABORTED: u8 = 2;
    pub const BAD_TARGET: u8 = 3;
    pub const RESET: u8 = 4;
    pub const FAILURE: u8 = 9;
    pub const FUNCTION_COMPLETE: u8 = 0;
    pub const FUNCTION_SUCCEEDED: u8 = 10;
    pub const FUNCTION_REJECTED: u8 = 11;
    pub const INCORRECT_LUN: u8 = 12;
}

/// Events, and the reasons of a transport reset.
mod event {
    pub const NONE: u32 = 0;
    pub const TRANSPORT_RESET: u32 = 1;
    pub const PARAM_CHANGE: u32 = 3;
    pub const MISSED: u32 = 1 << 31;
    pub const RESCAN: u32 = 1;
    pub const REMOVED: u32 = 2;
}

/// A request under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Request {
    queue: usize,
    head: u16,
    /// The driver's name for it.
    id: u64,
    target: usize,
    /// Where the answer goes.
    answer: Places,
    /// Bytes that the driver gave or wants, and those that were moved.
    room: u64,
    moved: u64,
    /// Whether they go to memory.
    to_memory: bool,
    work: Option<Work>,
}

/// All that is saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// By their tags, and the tags that are free.
    requests: Vec<Option<Request>>,
    free: Vec<usize>,
    cdb_size: u32,
    sense_size: u32,
    /// Events found no buffer.
    missed: bool,
    units: Vec<Option<UnitState>>,
}

struct Scsi {
    s: Saved,
    units: Vec<Option<LogicalUnit>>,
    queues: usize,
}

fn create(slot: &mut Slot, params: &Params) -> Result<Box<dyn emu::Device>, String> {
    let queues = params.int("queues").unwrap_or(4).clamp(1, MAX_QUEUES) as usize;
    let mut units: Vec<Option<LogicalUnit>> = Vec::new();
    for n in 0..TARGETS {
        let (unit, disk) = (slot.unit(n), slot.disk(n));
        units.push(match unit {
            Unit::None => None,
            Unit::Disk if disk.is_none() => return Err(format!("virtio-scsi target {n} has no disk")),
            Unit::Disk | Unit::Cd => Some(LogicalUnit::new(disk, unit == Unit::Cd, make(slot, params, n, unit)?)),
        });
    }
    let used = units.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    units.truncate(used);
    let scsi = Scsi { s: Saved::new(), units, queues };
    VirtioPci::create(slot, params, &KIND, REQUESTS + queues, scsi)
}

/// What the unit of target `n` calls itself.
fn make(slot: &Slot, params: &Params, n: usize, unit: Unit) -> Result<Make, String> {
    let own = |key: &str| params.of_unit(n, key).or(params.get(key)).filter(|text| !text.is_empty());
    let text = |key: &str, usual: String, most: usize| -> String {
        let text = own(key).map_or(usual, str::to_owned);
        text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).take(most).collect()
    };
    let (logical, physical) = sector_sizes(own("sectorsize").unwrap_or("512"))?;
    let place: String = slot.name().chars().filter(char::is_ascii_digit).collect();
    let usual = if unit == Unit::Cd { "CD-ROM" } else { "HARDDISK" };
    Ok(Make {
        product: text("product", usual.to_owned(), 16),
        serial: text("ser", format!("BRS{place}{n:03}"), 20),
        logical,
        physical,
        delete: !matches!(own("nodelete"), Some("true" | "on" | "yes" | "1")),
    })
}

impl Saved {
    fn new() -> Saved {
        Saved {
            requests: Vec::new(),
            free: Vec::new(),
            cdb_size: CDB_SIZE,
            sense_size: SENSE_SIZE,
            missed: false,
            units: Vec::new(),
        }
    }

    /// The tags of a target's requests.
    fn of(&self, target: usize) -> impl Iterator<Item = usize> {
        self.requests
            .iter()
            .enumerate()
            .filter(move |(_, r)| r.as_ref().is_some_and(|r| r.target == target))
            .map(|r| r.0)
    }

    fn take(&mut self, tag: usize) -> Option<Request> {
        let request = self.requests.get_mut(tag)?.take()?;
        self.free.push(tag);
        Some(request)
    }
}

/// Target and unit of an address, of which only single level ones are known.
fn address(lun: [u8; 8]) -> Option<(usize, u16)> {
    match lun {
        [1, target, high, low, ..] if high & 0x80 == 0 => Some((target.into(), u16::from_be_bytes([high & 0x3f, low]))),
        _ => None,
    }
}

impl Scsi {
    fn unit(&mut self, target: usize) -> Option<&mut LogicalUnit> {
        self.units.get_mut(target)?.as_mut().filter(|unit| unit.is_there())
    }

    /// Starts what a chain asks for, or answers it.
    fn start(&mut self, core: &mut Core, queue: usize, chain: &Chain) {
        let header = HEADER + u64::from(self.s.cdb_size);
        let answer = ANSWER + u64::from(self.s.sense_size);
        let mut bytes = vec![0; header as usize];
        let place = chain.places(true, 0, answer);
        let (true, Some(place)) = (chain.read(core.dma(), 0, &mut bytes), place) else {
            // There is no place for an answer.
            return core.broken();
        };
        let (out, inn) = (chain.out_len - header, chain.in_len - answer);
        let mut request = Request {
            queue,
            head: chain.head,
            id: u64::from_le_bytes(bytes[8..16].try_into().unwrap_or_default()),
            target: 0,
            answer: place,
            room: out + inn,
            moved: 0,
            to_memory: inn > 0,
            work: None,
        };
        let block = &bytes[HEADER as usize..];
        let Some((target, lun)) = address(bytes[..8].try_into().unwrap_or_default()) else {
            return self.answer(core, &request, response::BAD_TARGET, GOOD, &[]);
        };
        request.target = target;
        let Some(unit) = self.unit(target) else {
            return self.answer(core, &request, response::BAD_TARGET, GOOD, &[]);
        };
        // Data go one way.
        if out > 0 && inn > 0 {
            return self.answer(core, &request, response::FAILURE, GOOD, &[]);
        }
        if lun != 0 {
            return match no_unit(block) {
                Ok(bytes) => self.send(core, chain, request, &bytes),
                Err(sense) => self.answer(core, &request, response::OK, CHECK_CONDITION, &sense),
            };
        }
        let mut next = unit.command(block);
        if let Some(Next::Out(len)) = next {
            if (len as u64) > out {
                return self.answer(core, &request, response::OVERRUN, GOOD, &[]);
            }
            let mut parameters = vec![0; len];
            chain.read(core.dma(), header, &mut parameters);
            request.moved = len as u64;
            next = unit.parameters(block, &parameters);
        }
        let work = match next {
            None => {
                let sense = unit.take_sense();
                request.moved = 0;
                return self.answer(core, &request, response::OK, CHECK_CONDITION, &sense);
            }
            Some(Next::Good | Next::Out(_)) => return self.answer(core, &request, response::OK, GOOD, &[]),
            Some(Next::In(bytes)) => return self.send(core, chain, request, &bytes),
            Some(Next::Work(work)) => Some(work),
            Some(Next::Read(at, len)) => {
                request.moved = len;
                chain.places(true, answer, len).map(|places| Work::Read(at, places))
            }
            Some(Next::Write(at, len, stable)) => {
                request.moved = len;
                chain.places(false, header, len).map(|places| Work::Write(at, places, stable))
            }
        };
        match work {
            Some(work) => self.submit(core, Request { work: Some(work), ..request }),
            None => {
                request.moved = 0;
                self.answer(core, &request, response::OVERRUN, GOOD, &[]);
            }
        }
    }

    /// Answers with data.
    fn send(&mut self, core: &mut Core, chain: &Chain, mut request: Request, bytes: &[u8]) {
        let room = if request.to_memory { request.room } else { 0 };
        let fits = &bytes[..(bytes.len() as u64).min(room) as usize];
        chain.write(core.dma(), ANSWER + u64::from(self.s.sense_size), fits);
        request.moved = fits.len() as u64;
        let response = if fits.len() < bytes.len() { response::OVERRUN } else { response::OK };
        self.answer(core, &request, response, GOOD, &[]);
    }

    /// Has the first step of a request's work done.
    fn submit(&mut self, core: &mut Core, request: Request) {
        let tag = self.s.free.pop().unwrap_or_else(|| {
            self.s.requests.push(None);
            self.s.requests.len() - 1
        });
        self.s.requests[tag] = Some(request);
        self.ask(core, tag);
    }

    fn ask(&mut self, core: &mut Core, tag: usize) {
        let Some(Some(Request { target, work: Some(work), .. })) = self.s.requests.get(tag) else { return };
        let unit = self.units.get_mut(*target).and_then(Option::as_mut);
        if !unit.is_some_and(|unit| unit.submit(tag as u64, work, core.dma()))
            && let Some(request) = self.s.take(tag)
        {
            self.answer(core, &Request { moved: 0, ..request }, response::FAILURE, GOOD, &[]);
        }
    }

    fn done(&mut self, core: &mut Core, completion: &Completion) {
        let Some(mut request) = self.s.take(completion.tag as usize) else { return };
        let Some(work) = request.work.take() else { return };
        if !completion.ok {
            let unit = self.units.get_mut(request.target).and_then(Option::as_mut);
            let sense = unit.map(|unit| {
                unit.failed(&work);
                unit.take_sense()
            });
            request.moved = 0;
            return self.answer(core, &request, response::OK, CHECK_CONDITION, &sense.unwrap_or_default());
        }
        match work.rest() {
            Some(rest) => self.submit(core, Request { work: Some(rest), ..request }),
            None => self.answer(core, &request, response::OK, GOOD, &[]),
        }
    }

    /// Answers; the driver hears of it when the queue is published.
    fn answer(&self, core: &mut Core, request: &Request, response: u8, status: u8, sense: &[u8]) {
        let mut bytes = vec![0; (ANSWER + u64::from(self.s.sense_size)) as usize];
        let len = sense.len().min(bytes.len() - ANSWER as usize);
        let residual = request.room.saturating_sub(request.moved).min(u32::MAX.into()) as u32;
        bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&residual.to_le_bytes());
        (bytes[10], bytes[11]) = (status, response);
        bytes[ANSWER as usize..ANSWER as usize + len].copy_from_slice(&sense[..len]);
        let mut rest = &bytes[..];
        for (at, len) in &request.answer {
            let (here, more) = rest.split_at((*len).min(rest.len() as u64) as usize);
            core.dma().write(*at, here);
            rest = more;
        }
        let data = if request.to_memory { request.moved } else { 0 };
        core.push(request.queue, request.head, (bytes.len() as u64 + data) as u32);
    }

    /// Ends requests of a target, all or the one of this name, without a status of their own.
    fn abort(&mut self, core: &mut Core, target: usize, id: Option<u64>, response: u8) {
        let tags: Vec<usize> = self.s.of(target).collect();
        let named = |s: &Saved, tag: usize| id.is_none_or(|id| s.requests[tag].as_ref().is_some_and(|r| r.id == id));
        if !tags.iter().any(|tag| named(&self.s, *tag)) {
            return;
        }
        if let Some(unit) = self.units.get_mut(target).and_then(Option::as_mut) {
            unit.cancel();
        }
        for tag in tags {
            if !named(&self.s, tag) {
                self.ask(core, tag);
            } else if let Some(request) = self.s.take(tag) {
                self.answer(core, &Request { moved: 0, ..request }, response, GOOD, &[]);
            }
        }
        (REQUESTS..REQUESTS + self.queues).for_each(|n| core.publish(n));
    }

    /// Does what a chain of the control queue asks for.
    fn control(&mut self, core: &mut Core, chain: &Chain) {
        let mut kind = [0; 4];
        let mut body = [0; 20];
        // Task management has its answer alone, the others a word before it.
        let known = chain.read(core.dma(), 0, &mut kind);
        let (kind, body_len, len) = match u32::from_le_bytes(kind) {
            0 => (0, 20, 1),
            n => (n, 12, 5),
        };
        let whole = known && chain.read(core.dma(), 4, &mut body[..body_len]) && chain.in_len >= len;
        if !whole || kind > 2 {
            return core.broken();
        }
        let answer = match kind {
            0 => vec![self.manage(core, &body)],
            // Nothing is told in this way.
            _ => vec![0, 0, 0, 0, response::OK],
        };
        chain.write(core.dma(), 0, &answer);
        core.push(CONTROL, chain.head, answer.len() as u32);
    }

    /// Task management: its response.
    fn manage(&mut self, core: &mut Core, body: &[u8; 20]) -> u8 {
        let function = u32::from_le_bytes(body[..4].try_into().unwrap_or_default());
        let id = u64::from_le_bytes(body[12..].try_into().unwrap_or_default());
        let target = match address(body[4..12].try_into().unwrap_or_default()) {
            Some((target, lun)) if self.unit(target).is_some() => match lun {
                0 => target,
                _ => return response::INCORRECT_LUN,
            },
            _ => return response::BAD_TARGET,
        };
        let why = match function {
            // ABORT TASK; ABORT and CLEAR TASK SET.
            0 => {
                self.abort(core, target, Some(id), response::ABORTED);
                return response::FUNCTION_COMPLETE;
            }
            1 | 3 => {
                self.abort(core, target, None, response::ABORTED);
                return response::FUNCTION_COMPLETE;
            }
            // I_T NEXUS RESET and LOGICAL UNIT RESET.
            4 => NEXUS_LOST,
            5 => UNIT_RESET,
            // QUERY TASK and QUERY TASK SET.
            6 | 7 => {
                let s = &self.s;
                let there = |tag: usize| function == 7 || s.requests[tag].as_ref().is_some_and(|r| r.id == id);
                return match s.of(target).any(there) {
                    true => response::FUNCTION_SUCCEEDED,
                    false => response::FUNCTION_COMPLETE,
                };
            }
            _ => return response::FUNCTION_REJECTED,
        };
        self.abort(core, target, None, response::RESET);
        if let Some(unit) = self.unit(target) {
            unit.reset(why);
        }
        response::FUNCTION_COMPLETE
    }

    /// Tells the driver of an event, or later that it missed one.
    fn tell(&mut self, core: &mut Core, kind: u32, target: usize, reason: u32) {
        let mut chain = Chain::default();
        if !core.pop(EVENTS, &mut chain) {
            self.s.missed = true;
            return;
        }
        let missed = if std::mem::take(&mut self.s.missed) { event::MISSED } else { 0 };
        let mut bytes = (kind | missed).to_le_bytes().to_vec();
        bytes.extend([1, target as u8, 0x40, 0, 0, 0, 0, 0]);
        bytes.extend(reason.to_le_bytes());
        let len = chain.in_len.min(EVENT);
        chain.write(core.dma(), 0, &bytes[..len as usize]);
        core.push(EVENTS, chain.head, len as u32);
        core.publish(EVENTS);
    }

    fn medium(&mut self, core: &mut Core, target: usize) {
        let unit = self.units.get_mut(target).and_then(Option::as_mut);
        let (kind, reason, needs) = match unit.and_then(LogicalUnit::medium_changed) {
            Some(Change::Parameters(sense)) => {
                (event::PARAM_CHANGE, u32::from(sense.1) | u32::from(sense.2) << 8, CHANGE)
            }
            Some(Change::Gone) => (event::TRANSPORT_RESET, event::REMOVED, HOTPLUG),
            Some(Change::Back) => (event::TRANSPORT_RESET, event::RESCAN, HOTPLUG),
            None => return,
        };
        if core.has(needs) {
            self.tell(core, kind, target, reason);
        }
    }
}

impl Function for Scsi {
    type Saved = Saved;

    fn features(&self) -> u64 {
        HOTPLUG | CHANGE
    }

    fn config(&self, _: &Core, image: &mut [u8]) {
        let mut put = |at: usize, value: u32| image[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0, self.queues as u32);
        put(4, SEG_MAX);
        put(8, (MAX_BYTES / 512) as u32);
        put(12, CMD_PER_LUN);
        put(16, EVENT as u32);
        put(SENSE_REGISTER, self.s.sense_size);
        put(CDB_REGISTER, self.s.cdb_size);
        // One channel, whose last target this is, with one unit each.
        put(28, (self.units.len().saturating_sub(1) as u32) << 16);
        put(32, 0);
    }

    fn config_write(&mut self, _: &mut Core, at: usize, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        match at {
            SENSE_REGISTER if value <= MOST_SIZE => self.s.sense_size = value,
            CDB_REGISTER if (1..=MOST_SIZE).contains(&value) => self.s.cdb_size = value,
            _ => {}
        }
    }

    fn kick(&mut self, core: &mut Core, n: usize) {
        match n {
            CONTROL => core.drain(n, |core, chain| self.control(core, chain)),
            // Buffers wait there for events.
            EVENTS if self.s.missed => self.tell(core, event::NONE, 0, 0),
            EVENTS => {}
            _ => core.drain(n, |core, chain| self.start(core, n, chain)),
        }
    }

    fn event(&mut self, core: &mut Core, event: Event) {
        match event {
            Event::Done(completion) => self.done(core, &completion),
            Event::AllDone => (REQUESTS..REQUESTS + self.queues).for_each(|n| core.publish(n)),
            Event::Medium(target) => self.medium(core, target),
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.units.iter_mut().flatten().for_each(LogicalUnit::power_on);
        self.s = Saved::new();
    }

    fn save(&self) -> Saved {
        let units = self.units.iter().map(|unit| unit.as_ref().map(LogicalUnit::save)).collect();
        Saved { units, ..self.s.clone() }
    }

    fn load(&mut self, saved: Saved) -> Result<(), String> {
        let known = |tag: &usize| saved.requests.get(*tag).is_some_and(Option::is_none);
        let queues = REQUESTS..REQUESTS + self.queues;
        if saved.requests.iter().flatten().any(|r| !queues.contains(&r.queue)) || !saved.free.iter().all(known) {
            return Err("it has other queues".to_owned());
        }
        if saved.sense_size > MOST_SIZE || saved.cdb_size > MOST_SIZE || saved.units.len() != self.units.len() {
            return Err("it has other units".to_owned());
        }
        for (unit, state) in self.units.iter_mut().zip(&saved.units) {
            match (unit, state) {
                (Some(unit), Some(state)) => unit.load(state.clone())?,
                (None, None) => {}
                _ => return Err("it has other units".to_owned()),
            }
        }
        self.s = Saved { units: Vec::new(), ..saved };
        Ok(())
    }
}
