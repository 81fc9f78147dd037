//! Transfer rings, xHCI 4.10 and 4.11.

use super::super::{In, Out};
use super::{EndpointState, PAUSE, Ring, Trb, Xhci, code, kind, portsc};

/// TRBs of a TD, links included, and those that are done in one go.
pub(super) const MOST_TRBS: usize = 4096;
/// Bytes that go from or to a device in one go.
const CHUNK: usize = 64 << 10;

/// The TRBs of a TD with their addresses, without links, and where the next TD begins.
struct Td {
    trbs: Vec<(u64, Trb)>,
    after: Ring,
    /// TRBs on the way, links included.
    walked: usize,
}

/// What is next in a ring.
enum Next {
    Td(Td),
    /// The guest has not made all of it yet.
    Nothing,
    /// It does not end.
    Endless,
}

/// How a transfer ended.
enum End {
    /// All bytes were moved.
    Full,
    /// The device had no more.
    Short,
    Failed(u32),
    /// It has not: the device wants to be asked again.
    Not,
}

/// Bytes that a TRB is for.
fn len(trb: &Trb) -> usize {
    match trb.kind() {
        kind::NORMAL | kind::SETUP | kind::DATA => (trb.status & 0x1_ffff) as usize,
        _ => 0,
    }
}

impl Td {
    fn len(&self) -> usize {
        self.trbs.iter().map(|(_, trb)| len(trb)).sum()
    }

    /// The TRB that byte `done` is of, the last one at the end: its address, itself, and how many of its bytes are left.
    fn at(&self, done: usize) -> (u64, Trb, usize) {
        let mut end = 0;
        for (at, trb) in &self.trbs {
            end += len(trb);
            if done < end {
                return (*at, *trb, end - done);
            }
        }
        let (at, trb) = self.trbs.last().copied().unwrap_or_default();
        (at, trb, 0)
    }

    /// The stretches that bytes from `from` on go to, up to `most` of them: the TRB, where in it, and how many.
    fn parts(&self, from: usize, most: usize) -> impl Iterator<Item = (&Trb, usize, usize)> {
        let mut start = 0;
        self.trbs.iter().filter_map(move |(_, trb)| {
            let begin = start;
            start += len(trb);
            let (first, last) = (from.max(begin), (from + most).min(start));
            (first < last).then(|| (trb, first - begin, last - first))
        })
    }
}

impl Xhci {
    /// Does what the guest wants of an endpoint, until it wants nothing more or the device has nothing to say.
    pub(super) fn run_endpoint(&mut self, slot: usize, n: u8) {
        let mut budget = MOST_TRBS;
        while budget > 0 {
            if !self.works() {
                return;
            }
            let Some(e) = self.r.slots[slot].endpoints.get(&n).copied() else { return };
            let (enabled, awake) = (portsc::ENABLED, portsc::U0);
            let port = self.r.ports[self.r.slots[slot].port];
            if e.state != EndpointState::Running || !e.rung || port & (enabled | portsc::LINK) != enabled | awake {
                return;
            }
            match self.next_td(e.ring) {
                Next::Nothing => return self.update(slot, n, |e| (e.rung, e.done) = (false, 0)),
                Next::Endless => {
                    self.update(slot, n, |e| (e.state, e.rung) = (EndpointState::Error, false));
                    self.write_endpoint(slot, n);
                    return self.report(slot, n, e.ring.at, code::TRB, 0, Trb::default());
                }
                Next::Td(td) => {
                    budget = budget.saturating_sub(td.walked);
                    let mut done = (e.done as usize).min(td.len());
                    let end = self.transfer(slot, n, &td, &mut done);
                    if !self.finish(slot, n, &td, done, &end) {
                        return;
                    }
                }
            }
        }
        self.work.set(self.work.now() + PAUSE);
    }

    fn update(&mut self, slot: usize, n: u8, f: impl FnOnce(&mut super::Endpoint)) {
        if let Some(e) = self.r.slots[slot].endpoints.get_mut(&n) {
            f(e);
        }
    }

    fn next_td(&self, mut ring: Ring) -> Next {
        let mut trbs: Vec<(u64, Trb)> = Vec::new();
        for walked in 1..=MOST_TRBS {
            let (at, trb) = (ring.at, Trb::fetch(&self.dma, ring.at));
            if trb.cycle() != ring.cycle {
                return Next::Nothing;
            }
            ring.pass(&trb);
            if trb.kind() == kind::LINK {
                continue;
            }
            trbs.push((at, trb));
            if !trb.has(Trb::CHAIN) {
                return Next::Td(Td { trbs, after: ring, walked });
            }
        }
        Next::Endless
    }

    /// Moves the data of a TD, from byte `done` on.
    fn transfer(&mut self, slot: usize, n: u8, td: &Td, done: &mut usize) -> End {
        let first = td.trbs.first().map(|(_, trb)| *trb).unwrap_or_default();
        let port = self.r.slots[slot].port;
        let Some(e) = self.r.slots[slot].endpoints.get(&n).copied() else { return End::Not };
        if first.kind() == kind::NO_OP {
            return End::Full;
        }
        let reads = match (n, first.kind()) {
            (1, kind::SETUP) => {
                let Some(device) = self.device_at(port) else { return End::Failed(code::TRANSACTION) };
                device.setup(first.parameter.to_le_bytes());
                *done = td.len();
                return End::Full;
            }
            (1, kind::DATA | kind::STATUS) => first.has(Trb::READS),
            (2.., kind::NORMAL) => n & 1 != 0,
            _ => return End::Failed(code::TRB),
        };
        let (total, packet) = (td.len(), usize::from(e.packet));
        loop {
            let want = (total - *done).min((CHUNK / packet).max(1) * packet);
            let Some(device) = self.device_at(port) else { return End::Failed(code::TRANSACTION) };
            if reads {
                match device.receive(n / 2, want) {
                    In::Data(bytes) => {
                        self.scatter(td, *done, &bytes);
                        *done += bytes.len();
                        if bytes.len() < want && (bytes.is_empty() || !bytes.len().is_multiple_of(packet)) {
                            return End::Short;
                        }
                    }
                    In::Nak => return End::Not,
                    In::Stall => return End::Failed(code::STALL),
                }
            } else {
                let bytes = self.gather(td, *done, want);
                let Some(device) = self.device_at(port) else { return End::Failed(code::TRANSACTION) };
                match device.send(n / 2, &bytes) {
                    Out::Taken => *done += want,
                    Out::Stall => return End::Failed(code::STALL),
                }
            }
            if *done >= total {
                return End::Full;
            }
        }
    }

    fn scatter(&self, td: &Td, from: usize, mut bytes: &[u8]) {
        for (trb, at, len) in td.parts(from, bytes.len()) {
            self.dma.write(trb.parameter.wrapping_add(at as u64), &bytes[..len]);
            bytes = &bytes[len..];
        }
    }

    fn gather(&self, td: &Td, from: usize, most: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(most);
        for (trb, at, len) in td.parts(from, most) {
            let start = bytes.len();
            bytes.resize(start + len, 0);
            match trb.has(Trb::IMMEDIATE) {
                true => {
                    let own = trb.parameter.to_le_bytes();
                    bytes[start..].iter_mut().zip(own.iter().skip(at)).for_each(|(byte, own)| *byte = *own);
                }
                false => self.dma.read(trb.parameter.wrapping_add(at as u64), &mut bytes[start..]),
            }
        }
        bytes
    }

    /// Tells the guest how a TD ended. Whether there may be more to do.
    fn finish(&mut self, slot: usize, n: u8, td: &Td, done: usize, end: &End) -> bool {
        match *end {
            End::Not => {
                self.update(slot, n, |e| e.done = done as u32);
                false
            }
            End::Failed(code) => {
                let (at, trb, left) = td.at(done);
                let state = if code == code::TRB { EndpointState::Error } else { EndpointState::Halted };
                self.update(slot, n, |e| (e.state, e.rung, e.done) = (state, false, 0));
                self.write_endpoint(slot, n);
                self.report(slot, n, at, code, left, trb);
                false
            }
            End::Full | End::Short => {
                self.update(slot, n, |e| (e.ring, e.done) = (td.after, 0));
                self.tell_end(slot, n, td, done, matches!(end, End::Short));
                true
            }
        }
    }

    /// The events of a TD that ended well.
    fn tell_end(&mut self, slot: usize, n: u8, td: &Td, done: usize, short: bool) {
        let (mut start, mut since) = (0, 0);
        // The device's last packet was of this TRB or one before, and whether that was said.
        let (mut over, mut said) = (false, false);
        for (index, (at, trb)) in td.trbs.iter().enumerate() {
            let code = if over { code::SHORT_PACKET } else { code::SUCCESS };
            if trb.kind() == kind::EVENT_DATA {
                if trb.has(Trb::INTERRUPT) {
                    let status = since as u32 & 0xff_ffff | code << 24;
                    // Event Data.
                    self.transfer_event(slot, n, trb.parameter, status, 1 << 2, trb);
                }
                since = 0;
                continue;
            }
            let (begin, own) = (start, len(trb));
            start += own;
            let got = done.saturating_sub(begin).min(own);
            since += got;
            if short && !over && done < start {
                over = true;
                if trb.has(Trb::SHORT | Trb::INTERRUPT) {
                    self.report(slot, n, *at, code::SHORT_PACKET, own - got, *trb);
                    said = true;
                }
            } else if trb.has(Trb::INTERRUPT) && !(over && (said || index + 1 < td.trbs.len())) {
                self.report(slot, n, *at, code, own - got, *trb);
            }
        }
    }

    /// A transfer event of the TRB at `at`, of which `left` bytes were not moved.
    fn report(&mut self, slot: usize, n: u8, at: u64, code: u32, left: usize, trb: Trb) {
        self.transfer_event(slot, n, at, left as u32 & 0xff_ffff | code << 24, 0, &trb);
    }

    fn transfer_event(&mut self, slot: usize, n: u8, parameter: u64, status: u32, flags: u32, trb: &Trb) {
        let control = kind::TRANSFER_EVENT << 10 | u32::from(n) << 16 | (slot as u32) << 24 | flags;
        self.post(Trb { parameter, status, control }, !trb.has(Trb::QUIET));
    }

    /// Where a TD that is under way has come to.
    pub(super) fn position(&self, slot: usize, n: u8) -> Option<Ring> {
        let e = self.r.slots[slot].endpoints.get(&n).filter(|e| e.done > 0)?;
        let Next::Td(td) = self.next_td(e.ring) else { return None };
        let (current, _, _) = td.at(e.done as usize);
        let mut ring = e.ring;
        // It is in the way that was just gone.
        for _ in 0..MOST_TRBS {
            if ring.at == current {
                break;
            }
            let trb = Trb::fetch(&self.dma, ring.at);
            ring.pass(&trb);
        }
        Some(ring)
    }

    /// Says where an endpoint is stopped, if that is within a TD.
    pub(super) fn stop_transfer(&mut self, slot: usize, n: u8) {
        let Some(e) = self.r.slots[slot].endpoints.get(&n).copied().filter(|e| e.rung) else { return };
        if let Next::Td(td) = self.next_td(e.ring) {
            let (at, trb, left) = td.at((e.done as usize).min(td.len()));
            self.report(slot, n, at, code::STOPPED, left, trb);
        }
    }
}
