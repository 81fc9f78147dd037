//! A port of an AHCI host bus adapter: its registers, its link, and how it carries out the command list.
//!
//! Serial ATA AHCI 1.3.1, chapters 3.3, 5 and 10. The drive at the other end is the one that IDE has; where a cable
//! has wires and a data port, the link has frames (FISes): the port takes a command's registers from guest memory,
//! moves its data along the table of physical region descriptors, and puts the registers of the answer into the area
//! for received FISes.
//!
//! A step takes up to [`PIECES`] descriptors. A drive that needs more waits for the disk in between, so that no
//! command, however it is scattered, holds up the machine.

use emu::{DmaMem, IoVec};
use serde::{Deserialize, Serialize};

use super::drive::{BSY, DRQ, Deep, Drive, DriveState, ERR, Phase};

/// The registers, by their offset.
mod reg {
    pub const CLB: u64 = 0x00;
    pub const CLBU: u64 = 0x04;
    pub const FB: u64 = 0x08;
    pub const FBU: u64 = 0x0c;
    pub const IS: u64 = 0x10;
    pub const IE: u64 = 0x14;
    pub const CMD: u64 = 0x18;
    pub const TFD: u64 = 0x20;
    pub const SIG: u64 = 0x24;
    pub const SSTS: u64 = 0x28;
    pub const SCTL: u64 = 0x2c;
    pub const SERR: u64 = 0x30;
    pub const SACT: u64 = 0x34;
    pub const CI: u64 = 0x38;
}

/// PxIS: a register FIS, a PIO setup FIS, set device bits.
const DHRS: u32 = 1 << 0;
const PSS: u32 = 1 << 1;
const SDBS: u32 = 1 << 3;
/// The link came up, and the link's state changed: both follow PxSERR.
const PCS: u32 = 1 << 6;
const PRCS: u32 = 1 << 22;
/// More data than memory; a frame that is none; memory that is none; the drive's error.
const OFS: u32 = 1 << 24;
const IFS: u32 = 1 << 27;
const HBFS: u32 = 1 << 29;
const TFES: u32 = 1 << 30;
/// The bits of PxIE that exist.
const INTERRUPTS: u32 = 0xfdc0_00ff;

/// PxCMD. POD is fixed: where software may clear it (CPD), Linux does and never sets it again.
const ST: u32 = 1 << 0;
const SUD: u32 = 1 << 1;
const POD: u32 = 1 << 2;
const CLO: u32 = 1 << 3;
const FRE: u32 = 1 << 4;
const FR: u32 = 1 << 14;
const CR: u32 = 1 << 15;
const CPS: u32 = 1 << 16;
const HPCP: u32 = 1 << 18;
const ATAPI: u32 = 1 << 24;
const DLAE: u32 = 1 << 25;

/// PxSERR: the link's state changed; the link came up.
const DIAG_N: u32 = 1 << 16;
const DIAG_X: u32 = 1 << 26;

/// PxSSTS: a drive is there, and the interface is active.
const ONLINE: u32 = 0x103;
/// The fastest of three speeds.
const SPEEDS: u32 = 3;
/// PxTFD and PxSIG while nothing is there.
const NO_STATUS: u32 = 0x7f;
const NO_SIGNATURE: u32 = u32::MAX;

/// Kinds of frames: a register from the host, and where others lie in the area for received ones.
const FIS_COMMAND: u8 = 0x27;
const RECEIVED_PIO_SETUP: u64 = 0x20;
const RECEIVED_REGISTERS: u64 = 0x40;
const RECEIVED_DEVICE_BITS: u64 = 0x58;
/// The interrupt bit of a frame, and the direction of a PIO setup.
const FIS_I: u8 = 0x40;
const FIS_TO_HOST: u8 = 0x20;

/// Where a command table has the packet, and the descriptors.
const TABLE_PACKET: u64 = 0x40;
const TABLE_REGIONS: u64 = 0x80;

/// Descriptors in a step, and how many are fetched at once.
const PIECES: usize = 256;
const BATCH: usize = 32;

/// A command's table of physical region descriptors, and how far it is used.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Regions {
    at: u64,
    entries: u16,
    /// The next descriptor, and how much of it is used.
    index: u16,
    offset: u32,
    /// Bytes moved.
    moved: u32,
}

impl Regions {
    /// Stretches of memory with the next `want` bytes, or as many as there are. The last may be longer.
    fn take(&self, want: u64, dma: &DmaMem) -> Vec<(u64, u32)> {
        let mut parts = Vec::new();
        let (mut have, mut skip) = (0, self.offset);
        let (mut index, entries) = (usize::from(self.index), usize::from(self.entries));
        while have < want && index < entries && parts.len() < PIECES {
            let mut batch = [0; 16 * BATCH];
            let n = BATCH.min(entries - index);
            dma.read(self.at + 16 * index as u64, &mut batch[..16 * n]);
            for d in batch[..16 * n].chunks_exact(16) {
                if have >= want {
                    break;
                }
                let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|k| d[at + k]));
                let at = u64::from(word(0) & !1) | u64::from(word(4)) << 32;
                let len = (word(12) | 1) & 0x3f_ffff;
                let len = len + 1 - skip.min(len);
                parts.push((at.wrapping_add(skip.into()), len));
                have += u64::from(len);
                skip = 0;
            }
            index += n;
        }
        parts
    }

    /// `n` bytes of `parts` were used.
    fn advance(&mut self, mut n: u64, parts: &[(u64, u32)]) {
        self.moved = self.moved.wrapping_add(n as u32);
        for (_, len) in parts {
            if n < u64::from(*len) {
                self.offset += n as u32;
                return;
            }
            n -= u64::from(*len);
            self.index += 1;
            self.offset = 0;
        }
    }
}

/// What of a port is saved, its drive aside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PortState {
    clb: u64,
    fb: u64,
    is: u32,
    ie: u32,
    cmd: u32,
    tfd: u32,
    sig: u32,
    ssts: u32,
    sctl: u32,
    serr: u32,
    sact: u32,
    ci: u32,
    /// The slot whose command the drive is at, queued commands aside.
    current: Option<u8>,
    /// The slot looked at first.
    next: u8,
    /// After an error, until PxCMD.ST is cleared.
    halted: bool,
    /// The drive's first frame after a reset, which is not received yet.
    greeting: bool,
    /// By slot, of queued commands by tag.
    regions: [Regions; 32],
}

impl Default for PortState {
    fn default() -> PortState {
        PortState {
            clb: 0,
            fb: 0,
            is: 0,
            ie: 0,
            cmd: SUD,
            tfd: NO_STATUS,
            sig: NO_SIGNATURE,
            ssts: 0,
            sctl: 0,
            serr: 0,
            sact: 0,
            ci: 0,
            current: None,
            next: 0,
            halted: false,
            greeting: false,
            regions: [Regions::default(); 32],
        }
    }
}

/// A port with its drive.
pub(crate) struct Port {
    pub drive: Option<Drive>,
    pub s: PortState,
}

impl Port {
    /// At power-on.
    pub fn new(drive: Option<Drive>, dma: &DmaMem) -> Port {
        let mut port = Port { drive, s: PortState::default() };
        port.reset(dma);
        port
    }

    /// As after a reset of the adapter.
    pub fn reset(&mut self, dma: &DmaMem) {
        self.s = PortState::default();
        self.link_up(dma);
    }

    /// What it wants to interrupt for.
    pub fn interrupts(&self) -> u32 {
        self.status() & self.s.ie
    }

    fn status(&self) -> u32 {
        let diag = |bit: u32, is: u32| if self.s.serr & bit != 0 { is } else { 0 };
        self.s.is | diag(DIAG_X, PCS) | diag(DIAG_N, PRCS)
    }

    /// Whether something is plugged in. A disk whose image was taken out is not.
    fn present(&self) -> bool {
        self.drive.as_ref().is_some_and(|d| d.packet() || d.sectors() > 0)
    }

    fn online(&self) -> bool {
        self.s.ssts & 15 == 3
    }

    pub fn read(&self, offset: u64) -> u32 {
        let s = &self.s;
        match offset {
            reg::CLB => s.clb as u32,
            reg::CLBU => (s.clb >> 32) as u32,
            reg::FB => s.fb as u32,
            reg::FBU => (s.fb >> 32) as u32,
            reg::IS => self.status(),
            reg::IE => s.ie,
            reg::CMD => {
                let on = |bit: u32, shown: u32| if s.cmd & bit != 0 { shown } else { 0 };
                let there = if self.present() { CPS } else { 0 };
                s.cmd | on(ST, CR) | on(FRE, FR) | there | POD | HPCP | u32::from(s.current.unwrap_or(0)) << 8
            }
            reg::TFD => s.tfd,
            reg::SIG => s.sig,
            reg::SSTS => s.ssts,
            reg::SCTL => s.sctl,
            reg::SERR => s.serr,
            reg::SACT => s.sact,
            reg::CI => s.ci,
            _ => 0,
        }
    }

    pub fn write(&mut self, offset: u64, value: u32, dma: &DmaMem) {
        let s = &mut self.s;
        let low = |old: u64, mask: u32| old & !0xffff_ffff | u64::from(value & mask);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            reg::CLB => s.clb = low(s.clb, !0x3ff),
            reg::CLBU => s.clb = high(s.clb),
            reg::FB => s.fb = low(s.fb, !0xff),
            reg::FBU => s.fb = high(s.fb),
            reg::IS => s.is &= !value,
            reg::IE => s.ie = value & INTERRUPTS,
            reg::CMD => self.write_command(value, dma),
            reg::SCTL => self.write_control(value & 0xfff, dma),
            reg::SERR => s.serr &= !value,
            reg::SACT if s.cmd & ST != 0 => s.sact |= value,
            reg::CI if s.cmd & ST != 0 => {
                s.ci |= value;
                self.run(dma);
            }
            _ => {}
        }
    }

    fn write_command(&mut self, value: u32, dma: &DmaMem) {
        let old = self.s.cmd;
        let new = value & (ST | SUD | FRE | ATAPI | DLAE);
        self.s.cmd = new;
        let (rose, fell) = (new & !old, old & !new);
        if fell & ST != 0 {
            self.forget();
        }
        if value & CLO != 0 && new & ST == 0 {
            self.s.tfd &= !u32::from(BSY | DRQ);
        }
        if rose & SUD != 0 && !self.online() {
            self.link_up(dma);
        }
        if rose & FRE != 0 {
            self.greet(dma);
        }
    }

    /// PxSCTL: 1 is COMRESET as long as it stands there, 4 switches the link off.
    fn write_control(&mut self, value: u32, dma: &DmaMem) {
        let old = std::mem::replace(&mut self.s.sctl, value);
        match (old & 15, value & 15) {
            (_, 1 | 4) => {
                self.link_down();
                self.s.ssts = value & 4;
            }
            (1 | 4, 0) => {
                self.s.ssts = 0;
                self.link_up(dma);
            }
            _ => {}
        }
    }

    fn link_down(&mut self) {
        if self.online() {
            self.s.serr |= DIAG_N;
        }
        self.forget();
        if let Some(drive) = &mut self.drive {
            drive.hold_reset();
        }
        (self.s.ssts, self.s.tfd, self.s.greeting) = (0, NO_STATUS, false);
    }

    /// The drive, if there is one, comes out of its reset and tells what it is.
    fn link_up(&mut self, dma: &DmaMem) {
        self.s.tfd = NO_STATUS;
        if !self.present() || self.s.cmd & SUD == 0 || self.s.sctl & 15 != 0 {
            return;
        }
        let allowed = match self.s.sctl >> 4 & 15 {
            0 => SPEEDS,
            n => n.min(SPEEDS),
        };
        self.s.ssts = ONLINE | allowed << 4;
        self.s.serr |= DIAG_N | DIAG_X;
        if let Some(drive) = &mut self.drive {
            drive.hold_reset();
        }
        self.signature(dma);
    }

    /// A reset of the drive is over.
    fn signature(&mut self, dma: &DmaMem) {
        let Some(drive) = &mut self.drive else { return };
        drive.diagnosed();
        let r = &drive.state.regs;
        self.s.sig = u32::from_le_bytes([r.count.now, r.lba[0].now, r.lba[1].now, r.lba[2].now]);
        self.s.greeting = true;
        self.show_status();
        self.greet(dma);
    }

    fn greet(&mut self, dma: &DmaMem) {
        if self.s.cmd & FRE != 0 && std::mem::take(&mut self.s.greeting) {
            self.receive_registers(0, dma);
        }
    }

    /// The drive was plugged in or pulled out, or has another medium.
    pub fn medium_changed(&mut self, dma: &DmaMem) {
        if let Some(drive) = &mut self.drive
            && drive.packet()
        {
            return drive.medium_changed();
        }
        self.link_down();
        self.link_up(dma);
    }

    /// Gives up the command list.
    fn forget(&mut self) {
        if let Some(drive) = &mut self.drive
            && drive.state.phase != Phase::Reset
        {
            drive.stop();
            drive.state.intrq = false;
        }
        let s = &mut self.s;
        (s.ci, s.sact, s.current, s.halted, s.next) = (0, 0, None, false, 0);
        if self.online() {
            self.show_status();
        }
    }

    /// PxTFD as the drive's registers are.
    fn show_status(&mut self) {
        if let Some(drive) = &self.drive {
            self.s.tfd = u32::from(drive.status()) | u32::from(drive.state.regs.error) << 8;
        }
    }

    /// Something ended the command list.
    fn halt(&mut self, why: u32) {
        self.s.is |= why;
        self.s.halted = true;
    }

    /// Goes on with the current command and with those in the queue, and issues others as long as the drive takes them.
    pub fn run(&mut self, dma: &DmaMem) {
        self.proceed(dma);
        for _ in 0..=32 {
            self.serve_queue(dma);
            let busy = self.s.tfd & u32::from(BSY | DRQ) != 0;
            let ready = self.s.cmd & ST != 0 && self.online() && !self.s.halted && self.s.current.is_none() && !busy;
            if !ready || self.s.ci == 0 {
                return;
            }
            let slot = (self.s.next + self.s.ci.rotate_right(self.s.next.into()).trailing_zeros() as u8) & 31;
            self.s.next = (slot + 1) & 31;
            self.issue(slot, dma);
        }
    }

    /// Takes the command of a slot from memory.
    fn issue(&mut self, slot: u8, dma: &DmaMem) {
        let header: [u8; 16] = dma.fetch(self.s.clb + 32 * u64::from(slot));
        let table = u64::from_le_bytes(std::array::from_fn(|n| header[8 + n])) & !0x7f;
        let fis: [u8; 20] = dma.fetch(table);
        if header[0] & 0x1f < 5 || fis[0] != FIS_COMMAND {
            return self.halt(IFS);
        }
        let entries = u16::from_le_bytes([header[2], header[3]]);
        let regions = Regions { at: table + TABLE_REGIONS, entries, ..Regions::default() };
        let Some(drive) = &mut self.drive else { return };
        if fis[1] & 0x80 == 0 {
            // Device control: a reset begins or ends, or nothing that matters here.
            let (held, reset) = (drive.state.phase == Phase::Reset, fis[15] & 4 != 0);
            match (held, reset) {
                (false, true) => drive.hold_reset(),
                (true, false) => self.signature(dma),
                _ => {}
            }
            self.s.ci &= !(1 << slot);
            return;
        }
        let r = &mut drive.state.regs;
        let deep = |now: usize, before: usize| Deep { now: fis[now], before: fis[before] };
        (r.features, r.count, r.device) = (deep(3, 11), deep(12, 13), fis[7]);
        r.lba = [deep(4, 8), deep(5, 9), deep(6, 10)];
        match fis[2] {
            // EXECUTE DEVICE DIAGNOSTIC.
            0x90 if !drive.busy() => {
                drive.diagnosed();
                drive.state.intrq = true;
            }
            command => {
                let queued = matches!(command, 0x60 | 0x61);
                let place = if queued { drive.state.regs.count.now >> 3 } else { slot };
                self.s.regions[usize::from(place)] = regions;
                drive.command(command);
            }
        }
        self.s.current = Some(slot);
        self.s.tfd = BSY.into();
        self.proceed(dma);
    }

    /// Goes on with the current command, until the drive waits for the disk or is done.
    fn proceed(&mut self, dma: &DmaMem) {
        let Some(slot) = self.s.current else { return };
        while !self.s.halted
            && let Some(drive) = &mut self.drive
        {
            let regions = &mut self.s.regions[usize::from(slot)];
            match drive.state.phase {
                Phase::Disk(..) | Phase::Reset => return,
                Phase::Idle => return self.complete(slot, dma),
                Phase::BusMaster { to_memory, bytes } => {
                    let parts = regions.take(bytes, dma);
                    match drive.bus_master(&parts, dma) {
                        None => return self.halt(HBFS),
                        // The drive waits for memory that never comes.
                        Some(0) => {
                            self.s.is |= if to_memory { OFS } else { 0 };
                            return;
                        }
                        Some(n) => regions.advance(n, &parts),
                    }
                }
                Phase::HostReads => {
                    let mut bytes = vec![0; drive.block()];
                    let interrupt = std::mem::take(&mut drive.state.intrq);
                    drive.data_read(&mut bytes);
                    match move_bytes(regions, &mut bytes, true, dma) {
                        None => return self.halt(HBFS),
                        Some(n) if n < bytes.len() => self.s.is |= OFS,
                        Some(_) => {}
                    }
                    self.receive_pio_setup(FIS_TO_HOST, interrupt, bytes.len(), dma);
                }
                Phase::HostWrites => {
                    let mut bytes = vec![0; drive.block()];
                    if drive.wants_packet() {
                        dma.read(regions.at - TABLE_REGIONS + TABLE_PACKET, &mut bytes);
                    } else {
                        match move_bytes(regions, &mut bytes, false, dma) {
                            None => return self.halt(HBFS),
                            Some(n) if n < bytes.len() => return,
                            Some(_) => {}
                        }
                    }
                    let interrupt = std::mem::take(&mut drive.state.intrq);
                    drive.data_write(&bytes);
                    self.receive_pio_setup(0, interrupt, bytes.len(), dma);
                }
            }
        }
    }

    /// The drive is done with the command of a slot, or has put it into its queue.
    fn complete(&mut self, slot: u8, dma: &DmaMem) {
        let Some(drive) = &mut self.drive else { return };
        self.s.current = None;
        let failed = drive.status() & ERR != 0;
        // A command without an interrupt was told of by the frame that announced its last data.
        let interrupt = std::mem::take(&mut drive.state.intrq);
        self.show_status();
        if interrupt {
            self.receive_registers(FIS_I, dma);
            self.s.is |= DHRS;
        }
        if failed {
            // The slot stays in PxCI, and PxCMD.CCS names it.
            self.s.current = Some(slot);
            return self.halt(TFES);
        }
        let moved = self.s.regions[usize::from(slot)].moved;
        if moved > 0 {
            dma.write_u32(self.s.clb + 32 * u64::from(slot) + 4, moved);
        }
        self.s.ci &= !(1 << slot);
    }

    /// Gives queued commands the memory that they ask for, and tells of those that ended.
    fn serve_queue(&mut self, dma: &DmaMem) {
        let Some(drive) = &mut self.drive else { return };
        if self.s.halted {
            return;
        }
        let mut stuck = 0u32;
        while let Some((tag, bytes)) = drive.queue_wants(stuck) {
            let regions = &mut self.s.regions[usize::from(tag)];
            let parts = regions.take(bytes, dma);
            match drive.queue_bus_master(tag, &parts, dma) {
                None => return self.halt(HBFS),
                Some(0) => stuck |= 1 << tag,
                Some(n) => regions.advance(n, &parts),
            }
        }
        let Some((finished, failed)) = drive.state.queue.take_news() else { return };
        let (status, error) = (drive.status(), drive.state.regs.error);
        let [a, b, c, d] = finished.to_le_bytes();
        // The bits that matter to the protocol are not the queue's to change.
        self.receive(RECEIVED_DEVICE_BITS, &[0xa1, FIS_I, status & 0x77, error, a, b, c, d], dma);
        self.s.sact &= !finished;
        self.s.tfd = self.s.tfd & 0x88 | u32::from(status & 0x77) | u32::from(error) << 8;
        self.s.is |= SDBS;
        if failed {
            self.halt(TFES);
        }
    }

    /// Puts a frame into the area for received ones.
    fn receive(&mut self, at: u64, frame: &[u8], dma: &DmaMem) {
        if self.s.cmd & FRE != 0 {
            dma.write(self.s.fb + at, frame);
        }
    }

    /// The registers as frames carry them.
    fn frame(&self, kind: u8, flags: u8) -> [u8; 20] {
        let mut f = [0; 20];
        if let Some(drive) = &self.drive {
            let r = &drive.state.regs;
            f[..8].copy_from_slice(&[
                kind,
                flags,
                drive.status(),
                r.error,
                r.lba[0].now,
                r.lba[1].now,
                r.lba[2].now,
                r.device,
            ]);
            f[8..14].copy_from_slice(&[
                r.lba[0].before,
                r.lba[1].before,
                r.lba[2].before,
                0,
                r.count.now,
                r.count.before,
            ]);
        }
        f
    }

    fn receive_registers(&mut self, flags: u8, dma: &DmaMem) {
        let frame = self.frame(0x34, flags);
        self.receive(RECEIVED_REGISTERS, &frame, dma);
    }

    /// The frame before a block of PIO, which has what the status is after the block.
    fn receive_pio_setup(&mut self, direction: u8, interrupt: bool, len: usize, dma: &DmaMem) {
        let mut frame = self.frame(0x5f, direction | if interrupt { FIS_I } else { 0 });
        frame[15] = frame[2];
        frame[2] |= DRQ;
        frame[16..18].copy_from_slice(&(len as u16).to_le_bytes());
        self.receive(RECEIVED_PIO_SETUP, &frame, dma);
        self.s.is |= if interrupt { PSS } else { 0 };
    }

    /// Takes over a saved state.
    ///
    /// # Errors
    /// When it has another drive.
    pub fn load(&mut self, state: PortState, drive: Option<DriveState>) -> Result<(), String> {
        match (&mut self.drive, drive) {
            (Some(mine), Some(its)) if mine.packet() == its.packet() => mine.state = its,
            (None, None) => {}
            _ => return Err("it has other drives".to_owned()),
        }
        self.s = state;
        Ok(())
    }
}

/// Moves bytes between memory and a block of PIO, and says how many there was room for. `None`: it is no memory.
fn move_bytes(regions: &mut Regions, bytes: &mut [u8], to_memory: bool, dma: &DmaMem) -> Option<usize> {
    let mut done = 0;
    while done < bytes.len() {
        let parts = regions.take((bytes.len() - done) as u64, dma);
        if parts.is_empty() {
            break;
        }
        let mut moved = 0;
        for (at, len) in &parts {
            let n = (*len as usize).min(bytes.len() - done);
            if !dma.gather(&mut IoVec::default(), *at, n as u64, to_memory) {
                return None;
            }
            match to_memory {
                true => dma.write(*at, &bytes[done..done + n]),
                false => dma.read(*at, &mut bytes[done..done + n]),
            }
            done += n;
            moved += n as u64;
        }
        regions.advance(moved, &parts);
    }
    Some(done)
}
