//! CD-ROM drives on ATA: PACKET of ATA/ATAPI-6, by PIO and DMA. What is in the packets is the business of `mmc`.

use emu::backend::{Completion, DiskOp};
use emu::{DmaMem, IoVec};
use serde::{Deserialize, Serialize};

use super::ata::{cable_word, dma_words, seal};
use super::drive::{ABRT, Buffer, CommandSet, DRDY, Drive, DriveState, Job, Phase};
use super::mmc::{ATAPI, Answer, BAD_FIELD, Mmc, READ_ERROR, SECTOR, Sense};
use super::sata::serial_words;

/// Sectors that a PIO read fetches at once.
const LOOK_AHEAD: u32 = 8;
/// The longest list of parameters that is taken.
const MAX_PARAMETERS: usize = 256;

/// The interrupt reason, in the sector count register: a packet is wanted, data go to the host, the command is over.
const REASON_PACKET: u8 = 1;
const REASON_TO_HOST: u8 = 2;
const REASON_OVER: u8 = 3;

/// The packet command under way.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Packet {
    /// Data move by DMA.
    dma: bool,
    /// The most bytes that the guest takes in one block of PIO.
    limit: usize,
    /// The twelve bytes are here, and what follows is parameters.
    known: bool,
    /// Sectors to read: where, and how many are left.
    lba: u64,
    left: u32,
}

/// What the command set remembers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Atapi {
    packet: Packet,
    #[serde(flatten)]
    drive: Mmc,
    dma_mode: u8,
}

impl Default for Atapi {
    fn default() -> Atapi {
        Atapi { packet: Packet::default(), drive: Mmc::default(), dma_mode: 0x22 }
    }
}

impl Atapi {
    /// SRST and DEVICE RESET leave the tray and what is to be told alone.
    pub fn soft_reset(&mut self) {
        self.packet = Packet::default();
    }

    /// DMA goes by whole units: sectors of the disc, or bytes of an answer.
    pub fn dma_unit(&self) -> u64 {
        if self.packet.left > 0 { SECTOR } else { 1 }
    }
}

impl DriveState {
    /// Whether it is one of a drive with packet commands.
    pub fn packet(&self) -> bool {
        matches!(self.set, CommandSet::Atapi(_))
    }
}

impl Drive {
    fn atapi(&mut self) -> &mut Atapi {
        match &mut self.state.set {
            CommandSet::Atapi(atapi) => atapi,
            CommandSet::Ata(_) => unreachable!("only drives with this command set come here"),
        }
    }

    /// Whether the block that it asks for is a packet.
    pub fn wants_packet(&self) -> bool {
        self.state.phase == Phase::HostWrites && matches!(&self.state.set, CommandSet::Atapi(a) if !a.packet.known)
    }

    pub fn atapi_command(&mut self, command: u8) {
        self.state.regs.status = DRDY;
        match command {
            0xa0 => {
                let r = self.state.regs;
                // Overlapped commands.
                if r.features.now & 2 != 0 {
                    return self.fail(ABRT);
                }
                let limit = match usize::from(u16::from_le_bytes([r.lba[1].now, r.lba[2].now])) {
                    0 | 0xffff => 0xfffe,
                    n => n,
                };
                self.atapi().packet = Packet { dma: r.features.now & 1 != 0, limit, ..Packet::default() };
                self.state.regs.set_count(REASON_PACKET);
                self.let_host_write(12);
            }
            0xa1 => {
                let bytes: Vec<u8> = self.identify_packet().iter().flat_map(|w| w.to_le_bytes()).collect();
                self.atapi().packet = Packet::default();
                self.state.buffer = Buffer { bytes, at: 0, end: 0 };
                self.let_host_read(512);
                self.state.intrq = true;
            }
            // The power modes are all alike.
            0xe0..=0xe3 | 0xe6 => self.over(),
            0xe5 => {
                self.over();
                self.state.regs.set_count(0xff);
            }
            0xef => {
                let value = self.state.regs.count.now;
                match (self.state.regs.features.now, value >> 3, value & 7) {
                    (0x03, 0, 0 | 1) | (0x03, 1, 0..=4) | (0x66 | 0xcc, ..) => {}
                    (0x03, 4, 0..=2) | (0x03, 8, 0..=5) => self.atapi().dma_mode = value,
                    _ => return self.fail(ABRT),
                }
                self.over();
            }
            // What disks take is refused in a way that tells what this is.
            0x20 | 0xec => {
                self.state.regs.sign(true);
                self.fail(ABRT);
            }
            _ => self.fail(ABRT),
        }
    }

    /// The command is over and went well.
    fn over(&mut self) {
        self.finish();
        self.state.regs.status = DRDY;
    }

    /// The packet's command is over.
    fn packet_over(&mut self) {
        self.atapi().packet = Packet::default();
        self.over();
        self.state.regs.set_count(REASON_OVER);
    }

    /// CHECK CONDITION.
    fn check(&mut self, sense: Sense) {
        let atapi = self.atapi();
        atapi.packet = Packet::default();
        atapi.drive.told.sense = sense;
        self.fail(sense.0 << 4 | if sense.0 == 5 { ABRT } else { 0 });
        self.state.regs.set_count(REASON_OVER);
    }

    /// The guest has written a block: the packet, or its parameters.
    pub fn atapi_block_written(&mut self) {
        let bytes = std::mem::take(&mut self.state.buffer).bytes;
        let atapi = self.atapi();
        if atapi.packet.known {
            return self.packet_over();
        }
        atapi.packet.known = true;
        let CommandSet::Atapi(atapi) = &mut self.state.set else { return };
        match atapi.drive.execute(&bytes, &mut self.disk, ATAPI) {
            Ok(Answer::Done) => self.packet_over(),
            Ok(Answer::Data(mut bytes, allowed)) => {
                bytes.truncate(allowed);
                self.answer(bytes);
            }
            Ok(Answer::Read(lba, count)) => {
                let packet = &mut self.atapi().packet;
                (packet.lba, packet.left) = (lba, count);
                match packet.dma {
                    true if count > 0 => self.atapi_ask_for_dma(),
                    _ => self.more(),
                }
            }
            Ok(Answer::Parameters(len)) => {
                if len == 0 {
                    return self.packet_over();
                }
                let packet = &self.atapi().packet;
                if len > MAX_PARAMETERS || len > packet.limit || packet.dma {
                    return self.check(BAD_FIELD);
                }
                self.let_host_write(len);
                self.announce_packet(0, len);
            }
            Err(sense) => self.check(sense),
        }
    }

    /// Sends a command's answer.
    fn answer(&mut self, bytes: Vec<u8>) {
        if bytes.is_empty() {
            return self.packet_over();
        }
        self.state.buffer = Buffer { bytes, at: 0, end: 0 };
        if self.atapi().packet.dma {
            self.atapi_ask_for_dma();
        } else {
            self.show_block();
        }
    }

    /// Interrupts for a block of PIO.
    fn announce_packet(&mut self, reason: u8, len: usize) {
        let r = &mut self.state.regs;
        r.set_count(reason);
        (r.lba[1].now, r.lba[2].now) = (len as u8, (len >> 8) as u8);
        self.state.intrq = true;
    }

    fn show_block(&mut self) {
        let (rest, limit) = (self.state.buffer.rest(), self.atapi().packet.limit);
        // Only a last block may be odd.
        let len = if rest <= limit { rest } else { (limit & !1).max(2) };
        self.let_host_read(len);
        self.announce_packet(REASON_TO_HOST, len);
    }

    /// The guest has read a block.
    pub fn atapi_block_read(&mut self) {
        if !self.atapi().packet.known {
            // IDENTIFY PACKET DEVICE.
            self.state.phase = Phase::Idle;
            self.state.buffer = Buffer::default();
        } else if self.state.buffer.rest() > 0 {
            self.show_block();
        } else {
            self.more();
        }
    }

    /// Reads on from the disc, or ends the command.
    fn more(&mut self) {
        let (lba, left) = (self.atapi().packet.lba, self.atapi().packet.left);
        match left.min(LOOK_AHEAD) {
            0 => self.packet_over(),
            n => self.submit(lba * SECTOR, DiskOp::ReadBytes(u64::from(n) * SECTOR)),
        }
    }

    pub fn atapi_ask_for_dma(&mut self) {
        let left = u64::from(self.atapi().packet.left) * SECTOR;
        let bytes = if left > 0 { left } else { (self.state.buffer.bytes.len() - self.state.buffer.at) as u64 };
        self.state.regs.set_count(REASON_TO_HOST);
        self.state.phase = Phase::BusMaster { to_memory: true, bytes };
    }

    pub fn atapi_bus_master(&mut self, iov: IoVec, parts: &[(u64, u32)], dma: &DmaMem) {
        let (lba, left) = (self.atapi().packet.lba, self.atapi().packet.left);
        if left > 0 {
            return self.submit(lba * SECTOR, DiskOp::Read(iov));
        }
        let b = &mut self.state.buffer;
        for (at, len) in parts {
            let n = (*len as usize).min(b.bytes.len() - b.at);
            dma.write(*at, &b.bytes[b.at..b.at + n]);
            b.at += n;
        }
        if b.at == b.bytes.len() { self.packet_over() } else { self.atapi_ask_for_dma() }
    }

    /// The disc has answered.
    pub fn atapi_done(&mut self, job: Job, completion: Completion) {
        if !completion.ok {
            return self.check(READ_ERROR);
        }
        let moved = match job {
            Job::Dma(n) | Job::Pio(n) => n / SECTOR,
            Job::Flush => 0,
        };
        let packet = &mut self.atapi().packet;
        packet.lba += moved;
        packet.left = packet.left.saturating_sub(moved as u32);
        match (packet.left, job) {
            (0, Job::Dma(_)) => self.packet_over(),
            (_, Job::Dma(_)) => self.atapi_ask_for_dma(),
            _ => {
                self.state.buffer = Buffer { bytes: completion.data, at: 0, end: 0 };
                self.show_block();
            }
        }
    }

    /// Somebody outside put another disc in, or took it out, and closed the tray.
    pub fn medium_changed(&mut self) {
        if let CommandSet::Atapi(atapi) = &mut self.state.set {
            atapi.drive.medium_changed(&self.disk);
        }
    }

    /// IDENTIFY PACKET DEVICE.
    fn identify_packet(&mut self) -> [u16; 256] {
        let mut w = [0; 256];
        // CD-ROM, removable, DRQ soon after PACKET, packets of 12 bytes.
        w[0] = 0x85c0;
        self.names(&mut w);
        // IORDY, LBA, DMA.
        w[49] = 0x0f00;
        w[50] = 0x4000;
        w[53] = 0x0006;
        dma_words(&mut w, self.atapi().dma_mode);
        w[80] = 0x007e;
        // NOP, DEVICE RESET, PACKET, power management.
        w[82] = 0x4218;
        w[83] = 0x4000;
        w[84] = 0x4000;
        w[85] = 0x4218;
        w[87] = 0x4000;
        w[93] = cable_word(self.slave());
        if self.make.serial_link {
            serial_words(&mut w);
        }
        seal(&mut w);
        w
    }
}
