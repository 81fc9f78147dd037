//! The execution phase: sectors between the image and the processor, and how it ends.

use emu::backend::{Completion, DiskOp, DiskRequest};

use super::command::{Op, Stage, Transfer};
use super::{
    CHUNK, CONFIG_EFIFO, CONFIG_EIS, CONFIG_FIFOTHR, DMA_CHANNEL, DOR_GATE, I82077aa, LEAST, PATIENCE, Phase,
    ST0_ABNORMAL, ST0_EQUIPMENT, ST1_DE, ST1_EN, ST1_MA, ST1_ND, ST1_NW, ST1_OR, ST2_CM, ST2_DD, ST2_SH, ST2_SN,
    ST2_WC,
};
use crate::floppy_drive::{FloppyDrive, Medium};

impl I82077aa {
    /// Begins the execution phase.
    pub(super) fn start(&mut self, op: Op, b: &[u8]) {
        let t = Box::new(Transfer::new(op, b));
        if !matches!(op, Op::ReadId) {
            self.regs.eot = t.eot;
        }
        let mut wait = LEAST;
        if self.regs.config & CONFIG_EIS != 0 && !matches!(op, Op::ReadId | Op::Format) {
            let from = self.drive(t.unit).map_or(0, |d| d.state.cylinder);
            wait += self.stepping(t.unit, from.abs_diff(t.c));
            if let Some(drive) = self.drive_mut(t.unit) {
                drive.step_to(t.c);
            }
            self.regs.pcn[usize::from(t.unit)] = t.c;
        }
        if let Some(drive) = self.drive(t.unit).filter(|_| op != Op::ReadId) {
            let place = if op == Op::Format { 0 } else { t.r.max(1) - 1 };
            wait += drive.until(self.execution.now() + wait, place);
        }
        self.put(t, Stage::Positioning);
        self.execution.set(self.execution.now() + wait);
    }

    pub(super) fn put(&mut self, mut t: Box<Transfer>, stage: Stage) {
        t.stage = stage;
        self.regs.phase = Phase::Execution(t);
    }

    /// Takes the command under way if it is in `stage`.
    fn take(&mut self, stages: &[Stage]) -> Option<Box<Transfer>> {
        match std::mem::take(&mut self.regs.phase) {
            Phase::Execution(t) if stages.contains(&t.stage) => Some(t),
            phase => {
                self.regs.phase = phase;
                None
            }
        }
    }

    /// Ends a transfer and interrupts.
    fn finish(&mut self, t: &Transfer, st0: u8, st1: u8, st2: u8) {
        self.execution.cancel();
        self.result(&[st0 | t.side << 2 | t.unit, st1, st2 | t.st2, t.c, t.h, t.r, t.n]);
        self.regs.polled = 0;
        self.interrupt(true);
    }

    fn fail(&mut self, t: &Transfer, (st1, st2): (u8, u8)) {
        self.finish(t, ST0_ABNORMAL, st1, st2);
    }

    /// All sectors are done, and terminal count has not come.
    fn end_of_cylinder(&mut self, t: &Transfer) {
        match t.op {
            Op::Verify if t.left.is_none() => self.finish(t, 0, 0, 0),
            op if op.scans() => self.finish(t, 0, 0, ST2_SN),
            _ => self.fail(t, (ST1_EN, 0)),
        }
    }

    /// What passes under the head of the command's drive: the medium and the cylinder.
    fn track(&self, t: &Transfer) -> Result<(Medium, u8), (u8, u8)> {
        let drive = self.drive(t.unit).filter(|_| self.motor(t.unit) && t.mfm);
        let track = drive.and_then(|d| d.medium(self.rate())).filter(|(m, _)| t.side < m.heads);
        track.ok_or((ST1_MA, 0))
    }

    /// The next sectors: the index of the first in the image, and how many can be had at a time.
    fn find(&self, t: &Transfer) -> Result<(u32, usize), (u8, u8)> {
        let (medium, cylinder) = self.track(t)?;
        if t.c != cylinder {
            return Err((ST1_ND, ST2_WC));
        }
        if t.h != t.side || t.n != medium.code || !(1..=medium.sectors).contains(&t.r) {
            return Err((ST1_ND, 0));
        }
        let last = if t.eot < t.r { medium.sectors } else { t.eot.min(medium.sectors) };
        let mut count = usize::from(last - t.r) + 1;
        count = count.min(t.left.map_or(256, |n| usize::from(n).max(1))).min(CHUNK / t.sector_bytes());
        if t.op.scans() && t.last == 2 {
            count = 1;
        }
        let index = medium.index(cylinder, t.side, t.r);
        let size = self.drive(t.unit).map_or(0, FloppyDrive::size);
        // The end of the image may be missing.
        match (size / t.sector_bytes() as u64).saturating_sub(u64::from(index)) {
            0 => Err((ST1_DE, ST2_DD)),
            there => Ok((index, count.min(there as usize))),
        }
    }

    /// Of `count` sectors those that DMA will take, if it is DMA that takes them; an overrun if none.
    fn wanted(&self, t: &Transfer, count: usize) -> Result<usize, (u8, u8)> {
        if !self.uses_dma() || t.op == Op::Verify {
            return Ok(count);
        }
        match self.dma_left().div_ceil(t.sector_bytes()) {
            0 => Err((ST1_OR, 0)),
            n => Ok(count.min(n)),
        }
    }

    /// Bytes that DMA takes until terminal count.
    fn dma_left(&self) -> usize {
        if self.regs.dor & DOR_GATE == 0 { 0 } else { self.dma.left(DMA_CHANNEL) }
    }

    fn submit(&mut self, t: Box<Transfer>, index: u32, op: DiskOp) {
        let (unit, offset) = (t.unit, u64::from(index) * t.sector_bytes() as u64);
        self.put(t, Stage::Disk);
        if let Some(disk) = self.drive_mut(unit).and_then(|d| d.disk.as_mut()) {
            disk.submit(DiskRequest { tag: u64::from(unit), offset, op });
        }
    }

    /// The head is there.
    fn positioned(&mut self, t: Box<Transfer>) {
        match t.op {
            Op::ReadId => self.read_id(*t),
            op if op.writes() => self.gather(t),
            _ => self.fetch(t),
        }
    }

    fn read_id(&mut self, mut t: Transfer) {
        let now = self.execution.now();
        match (self.track(&t), self.drive(t.unit)) {
            (Ok((medium, cylinder)), Some(drive)) => {
                (t.c, t.h, t.r, t.n) = (cylinder, t.side, drive.next_sector(now, medium), medium.code);
                self.finish(&t, 0, 0, 0);
            }
            (Err(why), _) => self.fail(&t, why),
            (_, None) => self.fail(&t, (ST1_MA, 0)),
        }
    }

    /// Reads what the command wants next.
    fn fetch(&mut self, t: Box<Transfer>) {
        if t.ended {
            return self.end_of_cylinder(&t);
        }
        match self.find(&t).and_then(|(index, count)| Ok((index, self.wanted(&t, count)?))) {
            Ok((index, count)) => {
                let bytes = (count * t.sector_bytes()) as u64;
                self.submit(t, index, DiskOp::ReadBytes(bytes));
            }
            Err(why) => self.fail(&t, why),
        }
    }

    /// Takes what is to be written next.
    fn gather(&mut self, mut t: Box<Transfer>) {
        if t.ended {
            return self.end_of_cylinder(&t);
        }
        let protected = self.drive(t.unit).is_none_or(FloppyDrive::write_protected);
        let room = match self.track(&t) {
            Err(why) => Err(why),
            Ok(_) if protected => Err((ST1_NW, 0)),
            Ok(_) if t.op == Op::Format => Ok(4 * usize::from(t.eot)),
            Ok(_) => self.find(&t).and_then(|(_, n)| Ok(self.wanted(&t, n)? * t.sector_bytes())),
        };
        match room {
            Err(why) => return self.fail(&t, why),
            Ok(0) => return self.finish(&t, 0, 0, 0),
            Ok(room) => (t.data, t.at) = (vec![0; room], 0),
        }
        if !self.uses_dma() {
            return self.ask_host(t);
        }
        let room = if self.dma_left() == 0 { 0 } else { t.data.len() };
        let (moved, tc) = self.dma.transfer(DMA_CHANNEL, &mut t.data[..room]);
        // What is missing of the last sector is zeros; identifiers must be complete.
        let unit = if t.op == Op::Format { room.max(1) } else { t.sector_bytes() };
        t.data.truncate(moved.next_multiple_of(unit));
        t.tc = tc;
        if moved == 0 || t.op == Op::Format && moved < room {
            return self.fail(&t, (ST1_OR, 0));
        }
        self.gathered(t);
    }

    /// What is to be written is there.
    fn gathered(&mut self, mut t: Box<Transfer>) {
        if t.op == Op::Format {
            return self.format(t);
        }
        match self.find(&t) {
            Ok((index, _)) => {
                let data = t.data.clone();
                t.at = data.len();
                self.submit(t, index, DiskOp::WriteBytes(data));
            }
            Err(why) => self.fail(&t, why),
        }
    }

    /// Fills a track if its identifiers are those that the image stands for; any other track it could not hold.
    fn format(&mut self, t: Box<Transfer>) {
        let Ok((medium, cylinder)) = self.track(&t) else { return self.fail(&t, (ST1_MA, 0)) };
        let fits = t.data.chunks_exact(4).all(|id| {
            id[0] == cylinder && id[1] == t.side && (1..=medium.sectors).contains(&id[2]) && id[3] == medium.code
        });
        let index = medium.index(cylinder, t.side, 1);
        let bytes = usize::from(medium.sectors) * medium.sector_bytes();
        let whole = (u64::from(index) * medium.sector_bytes() as u64).saturating_add(bytes as u64)
            <= self.drive(t.unit).map_or(0, FloppyDrive::size);
        if !fits || !whole || t.eot != medium.sectors || t.n != medium.code {
            return self.finish(&t, ST0_ABNORMAL | ST0_EQUIPMENT, 0, 0);
        }
        let fill = vec![t.last; bytes];
        self.submit(t, index, DiskOp::WriteBytes(fill));
    }

    pub(super) fn disk_done(&mut self, completion: Completion) {
        let Some(mut t) = self.take(&[Stage::Disk]) else { return };
        if !completion.ok {
            return match t.op.writes() {
                true => self.finish(&t, ST0_ABNORMAL | ST0_EQUIPMENT, 0, 0),
                false => self.fail(&t, (ST1_DE, ST2_DD)),
            };
        }
        if !t.op.writes() {
            (t.data, t.at) = (completion.data, 0);
        }
        let sectors = if t.op == Op::Format { t.eot.into() } else { (t.data.len() / t.sector_bytes()) as u64 };
        let wait = self.drive(t.unit).map_or(0, |d| d.passing(sectors));
        self.put(t, Stage::Passing);
        self.execution.set(self.execution.now() + wait);
    }

    /// The sectors have passed.
    fn passed(&mut self, mut t: Box<Transfer>) {
        if !t.op.writes() {
            return self.deliver(t);
        }
        let Ok((medium, cylinder)) = self.track(&t) else { return self.fail(&t, (ST1_MA, 0)) };
        let (first, count) = match t.op {
            Op::Format => (medium.index(cylinder, t.side, 1), u32::from(medium.sectors)),
            _ => (medium.index(cylinder, t.side, t.r), (t.data.len() / t.sector_bytes()) as u32),
        };
        if let Some(drive) = self.drive_mut(t.unit) {
            let deleted = &mut drive.state.deleted;
            let sectors = first..first + count;
            match t.op {
                Op::WriteDeleted => deleted.extend(sectors),
                _ if deleted.is_empty() => {}
                _ => deleted.retain(|s| !sectors.contains(s)),
            }
        }
        if t.op == Op::Format {
            return self.finish(&t, 0, 0, 0);
        }
        (0..count).for_each(|_| t.next());
        if t.tc { self.finish(&t, 0, 0, 0) } else { self.gather(t) }
    }

    /// Gives the processor the sectors that were read, or compares them with its own.
    fn deliver(&mut self, mut t: Box<Transfer>) {
        let size = t.sector_bytes();
        while t.at < t.data.len() {
            let sector = t.at..t.at + size;
            if t.sk && self.unwanted(&t) {
                t.st2 |= ST2_CM;
                t.at += size;
                t.next();
                continue;
            }
            if t.op == Op::Verify {
                t.at += size;
                if self.sector_done(&mut t, &[]) {
                    return;
                }
                continue;
            }
            if !self.uses_dma() {
                return self.ask_host(t);
            }
            let (mut host, mut moved) = (Vec::new(), 0);
            if self.dma_left() > 0 {
                if t.op.scans() {
                    host.resize(size, 0);
                    (moved, t.tc) = self.dma.transfer(DMA_CHANNEL, &mut host);
                    host.truncate(moved);
                } else {
                    (moved, t.tc) = self.dma.transfer(DMA_CHANNEL, &mut t.data[sector]);
                }
            }
            if moved < size && !t.tc {
                return self.fail(&t, (ST1_OR, 0));
            }
            t.at += size;
            if self.sector_done(&mut t, &host) {
                return;
            }
        }
        self.fetch(t);
    }

    /// Whether the present sector's data address mark is the other one than the command is for.
    fn unwanted(&self, t: &Transfer) -> bool {
        let track = self.track(t).ok();
        let deleted = track.zip(self.drive(t.unit)).is_some_and(|((medium, cylinder), drive)| {
            (1..=medium.sectors).contains(&t.r) && drive.state.deleted.contains(&medium.index(cylinder, t.side, t.r))
        });
        deleted != (t.op == Op::ReadDeleted)
    }

    /// A sector, which ends at `t.at`, was delivered or compared; says whether the command has ended.
    fn sector_done(&mut self, t: &mut Transfer, host: &[u8]) -> bool {
        let unwanted = self.unwanted(t);
        t.st2 |= if unwanted { ST2_CM } else { 0 };
        let mut hit = false;
        if t.op.scans() {
            let (st2, met) = t.compare(&t.data[t.at - t.sector_bytes()..t.at], host);
            hit = met;
            t.st2 = t.st2 & !(ST2_SH | ST2_SN) | st2;
        }
        t.left = t.left.map(|n| n.saturating_sub(1));
        t.next();
        let marked = unwanted && matches!(t.op, Op::Read | Op::ReadDeleted);
        let done = t.tc || hit || marked || t.left == Some(0);
        if done {
            self.finish(t, 0, 0, 0);
        }
        done
    }

    /// Has the processor move bytes.
    fn ask_host(&mut self, mut t: Box<Transfer>) {
        t.service = self.service();
        self.execution.set(self.execution.now() + PATIENCE);
        self.put(t, Stage::Host);
        self.pulse();
    }

    /// Bytes from one interrupt to the next.
    fn service(&self) -> u8 {
        let fifo = self.regs.config & CONFIG_EFIFO == 0;
        if fifo { 15u8.saturating_sub(self.regs.config & CONFIG_FIFOTHR).max(1) } else { 1 }
    }

    /// The processor moved a byte.
    pub(super) fn host_moved(&mut self) {
        let Some(mut t) = self.take(&[Stage::Host]) else { return };
        let size = t.sector_bytes();
        let sector_ends = if t.op.writes() { t.at == t.data.len() } else { t.at.is_multiple_of(size) };
        if !sector_ends {
            t.service -= 1;
            let ask = t.service == 0;
            if ask {
                t.service = self.service();
            }
            self.put(t, Stage::Host);
            if ask {
                self.pulse();
            }
            return;
        }
        self.interrupt(false);
        self.execution.cancel();
        if t.op.writes() {
            return self.gathered(t);
        }
        let host = std::mem::take(&mut t.host);
        if !self.sector_done(&mut t, &host) {
            self.deliver(t);
        }
    }

    /// What the execution phase waited for is there, or has not come.
    pub(super) fn due(&mut self) {
        let Some(t) = self.take(&[Stage::Positioning, Stage::Passing, Stage::Host]) else { return };
        match t.stage {
            Stage::Positioning => self.positioned(t),
            Stage::Passing => self.passed(t),
            Stage::Disk | Stage::Host => self.fail(&t, (ST1_OR, 0)),
        }
    }
}
