//! The IDE function of the 82371SB (PIIX3) and the 82371AB/EB (PIIX4).
//!
//! Datasheets: 82371SB (290550), 82371AB (290562), and ATA/ATAPI-6 for the cable. Two channels at the legacy places,
//! 1F0-1F7/3F6 with IRQ 14 and 170-177/376 with IRQ 15, decoded while IDETIM and the command register enable them, and
//! a bus master at BAR 4. The timing registers hold what is written: transfers take what the disk takes.
//!
//! A cable without drives floats: its registers read 7F, DD7 being pulled down. Device 0 answers for a device 1 that is
//! not there with zeros; nobody answers for a missing device 0.

use std::sync::Arc;

use emu::{
    BarKind, Class, Device, DmaMem, Event, IrqLine, Model, PciFunction, PciIds, Region, ResetKind, Slot, State, Unit,
    Widths,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bus_master::{BusMaster, Engine};
use super::drive::{DEV, Drive, DriveState, drive_of_tag, reg};
use super::sata::Make;

/// Which of the functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// 8086:7010.
    Piix3,
    /// 8086:7111, which has Ultra DMA.
    Piix4,
}

/// The PIIX3's.
pub static PIIX3: Model = Model {
    name: "piix3-ide",
    summary: "IDE controller of the PIIX3: two channels, bus master",
    class: Class::Storage { units: 4, cds: true },
    keys: &[],
    create: |slot, _| PiixIde::create(slot, Kind::Piix3),
};

/// The PIIX4's.
pub static PIIX4: Model = Model {
    name: "piix4-ide",
    summary: "IDE controller of the PIIX4: two channels, bus master, Ultra DMA 33",
    class: Class::Storage { units: 4, cds: true },
    keys: &[],
    create: |slot, _| PiixIde::create(slot, Kind::Piix4),
};

const IDETIM: usize = 0x40;
/// High byte of IDETIM: the channel is decoded.
const IDE_ENABLE: u8 = 0x80;

/// Regions: twice the channel's number, for the command block, and the next, for the control block.
const BUS_MASTER: u32 = 4;

const LEGACY: [(u16, u16, u32); 2] = [(0x1f0, 0x3f6, 14), (0x170, 0x376, 15)];

/// Device control: 48-bit registers show the byte before, the reset line, no interrupts.
const HOB: u8 = 0x80;
const SRST: u8 = 0x04;
const NIEN: u8 = 0x02;

/// What a cable that nobody drives reads.
const FLOATING: u8 = 0x7f;

/// Two drives on a cable, and how software reaches them.
struct Channel {
    drives: [Option<Drive>; 2],
    s: ChannelState,
    irq: Arc<IrqLine>,
    command_block: Region,
    control_block: Region,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct ChannelState {
    /// Device control.
    control: u8,
    /// The DEV bit written last.
    select: usize,
    master: BusMaster,
}

impl Channel {
    fn selected(&mut self) -> Option<&mut Drive> {
        self.drives[self.s.select].as_mut()
    }

    fn read(&mut self, offset: u64) -> u8 {
        let before = self.s.control & HOB != 0;
        match (self.selected(), offset) {
            (Some(drive), _) => drive.read(offset, before),
            (None, _) => self.nobody(),
        }
    }

    /// What registers of the selected device read that is not there.
    fn nobody(&self) -> u8 {
        if self.s.select == 1 && self.drives[0].is_some() { 0 } else { FLOATING }
    }

    fn write(&mut self, offset: u64, value: u8) {
        self.s.control &= !HOB;
        if offset == reg::STATUS {
            return self.command(value);
        }
        if offset == reg::DEVICE {
            self.s.select = usize::from(value & DEV != 0);
        }
        // Both drives take what is written to the registers.
        self.drives.iter_mut().flatten().for_each(|d| d.write(offset, value));
    }

    fn command(&mut self, command: u8) {
        // EXECUTE DEVICE DIAGNOSTIC is for both, and device 0 answers.
        if command == 0x90 {
            if self.drives.iter().flatten().any(Drive::busy) {
                return;
            }
            self.s.select = 0;
            for drive in self.drives.iter_mut().flatten() {
                drive.diagnosed();
                drive.state.intrq = !drive.slave();
            }
        } else if let Some(drive) = self.selected() {
            drive.command(command);
        }
    }

    fn read_alternate(&mut self) -> u8 {
        match self.selected() {
            Some(drive) => drive.status(),
            None => self.nobody(),
        }
    }

    fn write_control(&mut self, value: u8) {
        let old = std::mem::replace(&mut self.s.control, value & (HOB | SRST | NIEN));
        match (old & SRST != 0, value & SRST != 0) {
            (false, true) => self.drives.iter_mut().flatten().for_each(Drive::hold_reset),
            (true, false) => {
                self.s.select = 0;
                self.drives.iter_mut().flatten().for_each(Drive::diagnosed);
            }
            _ => {}
        }
    }

    /// Lets the bus master and the drive that asks for it get together, and drives the interrupt.
    fn settle(&mut self, dma: &DmaMem) {
        let ChannelState { select, master, control } = &mut self.s;
        let drive = &mut self.drives[*select];
        if let Some(drive) = drive
            && let Some((to_memory, bytes)) = drive.wants_bus_master()
            && master.ready(to_memory)
        {
            match master.take(bytes, dma) {
                Some(parts) if drive.bus_master(&parts, dma).is_some() => {
                    if !drive.busy() {
                        master.moved();
                    }
                }
                _ => master.fault(),
            }
        }
        let level = *control & NIEN == 0 && drive.as_ref().is_some_and(|d| d.state.intrq);
        if level && !self.irq.level() {
            master.interrupt();
        }
        self.irq.set(level);
    }
}

/// All that is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    channels: [ChannelState; 2],
    drives: [Option<DriveState>; 4],
}

/// The function.
struct PiixIde {
    function: Arc<PciFunction>,
    dma: DmaMem,
    channels: [Channel; 2],
}

impl PiixIde {
    /// The function. The slot's first four units are primary master and slave and secondary master and slave.
    fn create(slot: &mut Slot, kind: Kind) -> Result<Box<dyn Device>, String> {
        let (device, revision) = if kind == Kind::Piix3 { (0x7010, 0) } else { (0x7111, 1) };
        let ids = PciIds { vendor: 0x8086, device, class: 0x01_0180, revision, ..PciIds::default() };
        let function = slot.pci(ids)?;
        function.config(|c| {
            c.set16(0x06, 0x0280);
            // Of the command register only I/O and bus mastering exist.
            c.writable(0x04, &[0x05, 0x00]);
            c.clears(0x06, &[0x00, 0x38]);
            c.writable(0x0c, &[0x00, 0xf0]);
            c.writable(IDETIM, &[0xff, 0xf3, 0xff, 0xf3, 0xff]);
            // Not so on the chip, where it is the BIOS that enables both channels. OVMF does not know that it has to,
            // and waits minutes for drives at ports that nobody answers.
            c.set16(IDETIM, 0x8000);
            c.set16(IDETIM + 2, 0x8000);
            if kind == Kind::Piix4 {
                c.writable(0x48, &[0x0f, 0x00, 0x33, 0x33]);
            }
        });
        slot.bar(4, BarKind::Io, 16, BUS_MASTER, Widths::BYTE);
        let dma = slot.dma();
        let mut drives = Vec::new();
        for n in 0..4 {
            let unit = slot.unit(n);
            let disk = slot.disk(n);
            drives.push(match unit {
                Unit::None => None,
                Unit::Disk if disk.is_none() => return Err(format!("IDE unit {n} has no disk")),
                Unit::Disk | Unit::Cd => {
                    Some(Drive::new(n, unit == Unit::Cd, disk, Make::parallel(n, unit == Unit::Cd)))
                }
            });
        }
        let mut drives = drives.into_iter();
        let channels = std::array::from_fn(|n| {
            let (command, control, irq) = LEGACY[n];
            let region = 2 * n as u32;
            let command_block = slot.ports(region, command, 8, Widths::DWORD);
            let control_block = slot.ports(region + 1, control, 1, Widths::BYTE);
            Channel {
                drives: [drives.next().flatten(), drives.next().flatten()],
                s: ChannelState::default(),
                irq: slot.isa_irq(irq),
                command_block,
                control_block,
            }
        });
        let ide = PiixIde { function, dma, channels };
        ide.decode();
        Ok(Box::new(ide))
    }

    /// Which channels answer.
    fn decode(&self) {
        for (n, channel) in self.channels.iter().enumerate() {
            let on = self.function.config(|c| c.get8(0x04) & 1 != 0 && c.get8(IDETIM + 1 + 2 * n) & IDE_ENABLE != 0);
            if on {
                channel.command_block.enable(LEGACY[n].0.into());
                channel.control_block.enable(LEGACY[n].1.into());
            } else {
                channel.command_block.disable();
                channel.control_block.disable();
            }
        }
    }

    /// The channel that a region belongs to, or for the bus master's an offset; and guest memory.
    fn channel(&mut self, region: u32, offset: u64) -> (&mut Channel, &DmaMem) {
        let n = if region == BUS_MASTER { (offset >> 3) as usize } else { (region >> 1) as usize };
        (&mut self.channels[n & 1], &self.dma)
    }
}

/// Whether it is the data port, which alone is wider than a byte.
fn is_data_port(region: u32, offset: u64) -> bool {
    region < BUS_MASTER && region & 1 == 0 && offset == reg::DATA
}

impl Device for PiixIde {
    fn read(&mut self, region: u32, offset: u64, width: u8) -> u64 {
        let mut bytes = [0; 8];
        let wide = &mut bytes[..width as usize];
        if is_data_port(region, offset) {
            self.read_many(region, offset, width, wide);
        } else {
            let (channel, dma) = self.channel(region, offset);
            for (n, byte) in wide.iter_mut().enumerate() {
                *byte = match region {
                    BUS_MASTER => channel.s.master.read(offset & 7),
                    _ if region & 1 != 0 => channel.read_alternate(),
                    _ => channel.read(offset + n as u64),
                };
            }
            channel.settle(dma);
        }
        u64::from_le_bytes(bytes)
    }

    fn write(&mut self, region: u32, offset: u64, width: u8, value: u64) {
        let bytes = value.to_le_bytes();
        if is_data_port(region, offset) {
            return self.write_many(region, offset, width, &bytes[..width as usize]);
        }
        let (channel, dma) = self.channel(region, offset);
        for (n, byte) in bytes[..width as usize].iter().enumerate() {
            match region {
                BUS_MASTER => {
                    if channel.s.master.write(offset & 7, *byte) == Engine::Stopped
                        && let Some(drive) = channel.selected()
                    {
                        drive.bus_master_stopped();
                    }
                }
                _ if region & 1 != 0 => channel.write_control(*byte),
                _ => channel.write(offset + n as u64, *byte),
            }
        }
        channel.settle(dma);
    }

    fn read_many(&mut self, region: u32, offset: u64, width: u8, buf: &mut [u8]) {
        if !is_data_port(region, offset) {
            for item in buf.chunks_exact_mut(width as usize) {
                item.copy_from_slice(&self.read(region, offset, width).to_le_bytes()[..width as usize]);
            }
            return;
        }
        let (channel, dma) = self.channel(region, offset);
        match channel.selected() {
            Some(drive) => drive.data_read(buf),
            None => buf.fill(channel.nobody()),
        }
        channel.settle(dma);
    }

    fn write_many(&mut self, region: u32, offset: u64, width: u8, data: &[u8]) {
        if !is_data_port(region, offset) {
            for item in data.chunks_exact(width as usize) {
                let mut value = [0; 8];
                value[..item.len()].copy_from_slice(item);
                self.write(region, offset, width, u64::from_le_bytes(value));
            }
            return;
        }
        let (channel, dma) = self.channel(region, offset);
        if let Some(drive) = channel.selected() {
            drive.data_write(data);
        }
        channel.settle(dma);
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Done(completion) => {
                let n = drive_of_tag(completion.tag);
                let channel = &mut self.channels[n / 2];
                if let Some(drive) = &mut channel.drives[n % 2] {
                    drive.done(completion);
                    channel.s.master.moved();
                }
                channel.settle(&self.dma);
            }
            Event::Medium(n) => {
                if let Some(drive) =
                    self.channels.iter_mut().flat_map(|c| &mut c.drives).nth(n).and_then(Option::as_mut)
                {
                    drive.medium_changed();
                }
            }
            _ => {}
        }
    }

    fn config_write(&mut self, offset: u16, width: u8) {
        let (from, to) = (offset as usize, offset as usize + width as usize);
        if from <= 0x05 && to > 0x04 || from < IDETIM + 4 && to > IDETIM {
            self.decode();
        }
    }

    fn reset(&mut self, _: ResetKind) {
        for channel in &mut self.channels {
            channel.s = ChannelState::default();
            channel.drives.iter_mut().flatten().for_each(Drive::power_on);
            channel.irq.set(false);
        }
        self.decode();
    }

    fn state(&mut self) -> &mut dyn State {
        self
    }

    fn restored(&mut self) {
        self.decode();
    }
}

/// By hand: the drives hold their disks beside their state.
impl State for PiixIde {
    fn save(&self) -> Value {
        let mut drives = self.channels.iter().flat_map(|c| &c.drives).map(|d| d.as_ref().map(|d| d.state.clone()));
        let saved = Saved {
            channels: std::array::from_fn(|n| self.channels[n].s.clone()),
            drives: std::array::from_fn(|_| drives.next().unwrap_or_default()),
        };
        saved.save()
    }

    fn load(&mut self, value: Value) -> Result<(), String> {
        let saved: Saved = serde_json::from_value(value).map_err(|e| e.to_string())?;
        let drives = self.channels.iter_mut().flat_map(|c| &mut c.drives);
        for (drive, state) in drives.zip(&saved.drives) {
            match (drive, state) {
                (Some(drive), Some(state)) if drive.packet() == state.packet() => drive.state = state.clone(),
                (None, None) => {}
                _ => return Err("it has other drives".to_owned()),
            }
        }
        for (channel, state) in self.channels.iter_mut().zip(saved.channels) {
            channel.s = state;
        }
        Ok(())
    }
}
