//! Intel 82077AA floppy disk controller with up to two drives, at 3F0 to 3F5 and 3F7, IRQ 6 and DMA channel 2.
//!
//! Datasheet: Intel 82077AA (290166), in its PC AT mode. All of its commands are there, by DMA and by programmed I/O
//! with and without the FIFO, with implied seeks, multi-track transfers and the FORMAT, SCAN and deleted-data commands
//! that hardly anyone uses. The drives and their media are those of `floppy_drive.rs`.
//!
//! A drive is a thousand times faster than a real one unless it is told otherwise: seeks and the passing of sectors
//! take microseconds, the order of what happens is the same. Motors start at once. Not modelled: FM (nothing is found),
//! precompensation, tape drives, power-down, and CRC errors, except that a sector that the host cannot read has one.
//!
//! A real 82077AA waits for index pulses, without end, when there is no medium or the motor is off; here the command
//! ends with a missing address mark after a while, where drivers would run into their timeouts.
//!
//! Who needs what: BSD drivers tell drives apart by RECALIBRATE, Linux reads DUMPREG, LOCK and PERPENDICULAR to name
//! the chip and tells media apart by READ ID at different data rates; both look at the disk-change line.

use std::sync::Arc;

use emu::{Device, Event, IrqLine, ResetKind, Slot, State, Timer, Widths};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::command::{Command, INWARDS, LOCK, Stage, Transfer};
use crate::I8237;
use crate::floppy_drive::{DriveState, FloppyDrive, FloppyModel};

mod command;
mod execution;

/// The registers from 3F0 on, and the one at 3F7.
const REGS: u32 = 0;
const DIR: u32 = 1;

const DMA_CHANNEL: usize = 2;

/// Digital output register: not in reset; interrupts and DMA reach the bus; motor of drive 0.
const DOR_RESET: u8 = 0x04;
const DOR_GATE: u8 = 0x08;
const DOR_MOTOR: u8 = 0x10;
/// Data rate select register: software reset; the rate.
const DSR_RESET: u8 = 0x80;
const DSR_RATE: u8 = 0x03;
/// Main status register.
const MSR_RQM: u8 = 0x80;
const MSR_DIO: u8 = 0x40;
const MSR_NON_DMA: u8 = 0x20;
const MSR_BUSY: u8 = 0x10;
/// Digital input register.
const DIR_CHANGED: u8 = 0x80;

/// CONFIGURE: implied seeks, no FIFO, its threshold.
const CONFIG_EIS: u8 = 0x40;
const CONFIG_EFIFO: u8 = 0x20;
const CONFIG_FIFOTHR: u8 = 0x0f;
/// PERPENDICULAR MODE: overwrite the drives' bits; those.
const PERPENDICULAR_OW: u8 = 0x80;
const PERPENDICULAR_DRIVES: u8 = 0x3c;
/// SPECIFY, second byte: no DMA.
const SPECIFY_ND: u8 = 0x01;

/// Status register 0.
const ST0_ABNORMAL: u8 = 0x40;
const ST0_INVALID: u8 = 0x80;
const ST0_POLLED: u8 = 0xc0;
const ST0_SEEK_END: u8 = 0x20;
const ST0_EQUIPMENT: u8 = 0x10;
/// Status register 1: end of cylinder, data error, overrun, no data, not writable, missing address mark.
const ST1_EN: u8 = 0x80;
const ST1_DE: u8 = 0x20;
const ST1_OR: u8 = 0x10;
const ST1_ND: u8 = 0x04;
const ST1_NW: u8 = 0x02;
const ST1_MA: u8 = 0x01;
/// Status register 2: control mark, data error in data field, wrong cylinder, scan equal hit, scan not satisfied.
const ST2_CM: u8 = 0x40;
const ST2_DD: u8 = 0x20;
const ST2_WC: u8 = 0x10;
const ST2_SH: u8 = 0x08;
const ST2_SN: u8 = 0x04;
/// Status register 3: write protected, track 0, and two that are always 1.
const ST3_WP: u8 = 0x40;
const ST3_TRACK0: u8 = 0x10;
const ST3_ONES: u8 = 0x28;

/// Timers: one for each drive's seeks, and this.
const EXECUTION: u32 = 4;
/// Nanoseconds that anything takes.
const LEAST: u64 = 10_000;
/// Nanoseconds that a processor may take for a sector by programmed I/O until that is an overrun. A real one has 16 us
/// for a byte, which would have emulated processors fail at random.
const PATIENCE: u64 = 500_000_000;
/// Bytes that are read or written at a time.
const CHUNK: usize = 4608;
/// Steps of a RECALIBRATE.
const RECALIBRATE_STEPS: u8 = 79;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
enum Phase {
    /// Takes the bytes of a command.
    #[default]
    Command,
    Execution(Box<Transfer>),
    /// Gives the bytes of a result.
    Result,
}

/// A seek under way.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Seek {
    /// Where the head will be.
    cylinder: u8,
    /// The present cylinder number that the chip will have.
    pcn: u8,
    /// What SENSE INTERRUPT STATUS will say.
    st0: u8,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Regs {
    dor: u8,
    tdr: u8,
    dsr: u8,
    specify: [u8; 2],
    config: u8,
    precompensation: u8,
    perpendicular: u8,
    lock: bool,
    /// The last EOT or SC that came.
    eot: u8,
    phase: Phase,
    /// Bytes of the command that came, or of the result that have not gone.
    fifo: Vec<u8>,
    /// Present cylinder numbers.
    pcn: [u8; 4],
    seeking: [Option<Seek>; 4],
    /// What SENSE INTERRUPT STATUS has to tell of seeks.
    ended: [Option<u8>; 4],
    /// For how many drives it has to tell that a reset made them ready.
    polled: u8,
    interrupt: bool,
}

impl Default for Regs {
    fn default() -> Regs {
        Regs {
            dor: 0,
            tdr: 0,
            dsr: 2,
            specify: [0; 2],
            config: CONFIG_EFIFO,
            precompensation: 0,
            perpendicular: 0,
            lock: false,
            eot: 0,
            phase: Phase::Command,
            fifo: Vec::new(),
            pcn: [0; 4],
            seeking: [None; 4],
            ended: [None; 4],
            polled: 0,
            interrupt: false,
        }
    }
}

/// All that is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    regs: Regs,
    drives: [Option<DriveState>; 2],
}

/// A drive to put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloppyUnit {
    /// Its kind.
    pub model: FloppyModel,
    /// It need not be as slow as a real one.
    pub turbo: bool,
}

/// The controller.
pub struct I82077aa {
    regs: Regs,
    drives: [Option<FloppyDrive>; 2],
    dma: Arc<I8237>,
    irq: Arc<IrqLine>,
    seeks: [Arc<Timer>; 4],
    execution: Arc<Timer>,
}

impl I82077aa {
    /// The controller with these drives, which find their disks among the slot's under the same numbers.
    pub fn create(slot: &mut Slot, dma: Arc<I8237>, units: [Option<FloppyUnit>; 2]) -> Box<dyn Device> {
        slot.ports(REGS, 0x3f0, 6, Widths::BYTE);
        slot.ports(DIR, 0x3f7, 1, Widths::BYTE);
        let mut disks = [slot.disk(0), slot.disk(1)].into_iter();
        let drives = units.map(|unit| {
            let disk = disks.next().flatten();
            unit.map(|u| FloppyDrive::new(u.model, u.turbo, disk))
        });
        let irq = slot.isa_irq(6);
        let seeks = std::array::from_fn(|n| slot.timer(n as u32));
        let execution = slot.timer(EXECUTION);
        Box::new(I82077aa { regs: Regs::default(), drives, dma, irq, seeks, execution })
    }

    fn drive(&self, unit: u8) -> Option<&FloppyDrive> {
        self.drives.get(usize::from(unit))?.as_ref()
    }

    fn drive_mut(&mut self, unit: u8) -> Option<&mut FloppyDrive> {
        self.drives.get_mut(usize::from(unit))?.as_mut()
    }

    fn motor(&self, unit: u8) -> bool {
        self.regs.dor & DOR_MOTOR << unit != 0
    }

    fn uses_dma(&self) -> bool {
        self.regs.specify[1] & SPECIFY_ND == 0
    }

    /// Drives the interrupt.
    fn settle(&self) {
        self.irq.set(self.regs.interrupt && self.regs.dor & (DOR_GATE | DOR_RESET) == DOR_GATE | DOR_RESET);
    }

    fn interrupt(&mut self, on: bool) {
        self.regs.interrupt = on;
        self.settle();
    }

    /// A new edge, whatever was before.
    fn pulse(&mut self) {
        self.interrupt(false);
        self.interrupt(true);
    }

    /// Stops all that is under way.
    fn abort(&mut self) {
        for disk in self.drives.iter_mut().flatten().filter_map(|d| d.disk.as_mut()) {
            disk.cancel();
        }
        self.seeks.iter().for_each(|t| t.cancel());
        self.execution.cancel();
        let r = &mut self.regs;
        (r.phase, r.seeking, r.ended, r.polled) = (Phase::Command, [None; 4], [None; 4], 0);
        r.fifo.clear();
        self.interrupt(false);
    }

    /// A reset by DOR or DSR is over: polling finds all drives ready.
    fn reset_ended(&mut self) {
        let r = &mut self.regs;
        if !r.lock {
            (r.config, r.precompensation) = (CONFIG_EFIFO, 0);
        }
        r.config &= CONFIG_EFIFO | CONFIG_FIFOTHR;
        r.perpendicular &= PERPENDICULAR_DRIVES;
        r.pcn = [0; 4];
        r.polled = 4;
        self.interrupt(true);
    }

    fn write_dor(&mut self, value: u8) {
        let old = std::mem::replace(&mut self.regs.dor, value);
        match (old & DOR_RESET != 0, value & DOR_RESET != 0) {
            (true, false) => self.abort(),
            (false, true) => self.reset_ended(),
            _ => self.settle(),
        }
    }

    fn write_dsr(&mut self, value: u8) {
        self.regs.dsr = value & !DSR_RESET;
        if value & DSR_RESET != 0 && self.regs.dor & DOR_RESET != 0 {
            self.abort();
            self.reset_ended();
        }
    }

    fn status(&self) -> u8 {
        if self.regs.dor & DOR_RESET == 0 {
            return 0;
        }
        let seeking = (0..4).fold(0, |bits, n| bits | u8::from(self.regs.seeking[n].is_some()) << n);
        seeking
            | match &self.regs.phase {
                Phase::Command if self.regs.fifo.is_empty() => MSR_RQM,
                Phase::Command => MSR_RQM | MSR_BUSY,
                Phase::Execution(t) if t.stage != Stage::Host => MSR_BUSY,
                Phase::Execution(t) if t.op.takes_bytes() => MSR_RQM | MSR_NON_DMA | MSR_BUSY,
                Phase::Execution(_) => MSR_RQM | MSR_DIO | MSR_NON_DMA | MSR_BUSY,
                Phase::Result => MSR_RQM | MSR_DIO | MSR_BUSY,
            }
    }

    /// The disk-change line of the drive that is selected.
    fn changed(&self) -> bool {
        let unit = self.regs.dor & 3;
        self.motor(unit) && self.drive(unit).is_some_and(|d| d.state.changed || d.size() == 0)
    }

    fn read_fifo(&mut self) -> u8 {
        match &mut self.regs.phase {
            Phase::Result => {
                let byte = self.regs.fifo.remove(0);
                let last = self.regs.fifo.is_empty();
                if last {
                    self.regs.phase = Phase::Command;
                }
                self.interrupt(false);
                // Of seeks that ended in the meantime nobody has heard.
                self.interrupt(last && self.regs.ended.iter().any(Option::is_some));
                byte
            }
            Phase::Execution(t) if t.stage == Stage::Host && !t.op.takes_bytes() => {
                let byte = t.data[t.at];
                t.at += 1;
                self.host_moved();
                byte
            }
            _ => 0,
        }
    }

    fn write_fifo(&mut self, byte: u8) {
        if self.regs.dor & DOR_RESET == 0 {
            return;
        }
        match &mut self.regs.phase {
            Phase::Command => {
                self.regs.fifo.push(byte);
                let (command, parameters) = Command::decode(self.regs.fifo[0]);
                if self.regs.fifo.len() > parameters {
                    let bytes = std::mem::take(&mut self.regs.fifo);
                    self.run(command, &bytes);
                }
            }
            Phase::Execution(t) if t.stage == Stage::Host && t.op.takes_bytes() => {
                if t.op.scans() {
                    t.host.push(byte);
                } else {
                    t.data[t.at] = byte;
                }
                t.at += 1;
                self.host_moved();
            }
            _ => {}
        }
    }

    fn run(&mut self, command: Command, b: &[u8]) {
        let r = &mut self.regs;
        match command {
            Command::Transfer(op) => self.start(op, b),
            Command::Specify => r.specify = [b[1], b[2]],
            Command::Configure => {
                (r.config, r.precompensation) = (b[2] & 0x7f, b[3]);
            }
            Command::Perpendicular => {
                let keep = if b[1] & PERPENDICULAR_OW == 0 { PERPENDICULAR_DRIVES } else { 0 };
                r.perpendicular = r.perpendicular & keep | b[1] & 0x3f & !keep;
            }
            Command::Lock => {
                r.lock = b[0] & LOCK != 0;
                self.result(&[u8::from(b[0] & LOCK != 0) << 4]);
            }
            Command::Version => self.result(&[0x90]),
            Command::DumpReg => {
                let lock = u8::from(r.lock) << 7 | r.perpendicular;
                let [p0, p1, p2, p3] = r.pcn;
                let bytes = [p0, p1, p2, p3, r.specify[0], r.specify[1], r.eot, lock, r.config, r.precompensation];
                self.result(&bytes);
            }
            Command::SenseDrive => {
                let mut st3 = ST3_ONES | b[1] & 7;
                if let Some(drive) = self.drive(b[1] & 3) {
                    st3 |= if drive.write_protected() { ST3_WP } else { 0 };
                    st3 |= if drive.state.cylinder == 0 { ST3_TRACK0 } else { 0 };
                }
                self.result(&[st3]);
            }
            Command::SenseInterrupt => self.sense_interrupt(),
            Command::Recalibrate => {
                // A drive that is not there never says that it is at track 0.
                let unit = b[1] & 3;
                let cylinder = self.drive(unit).map(|d| d.state.cylinder.saturating_sub(RECALIBRATE_STEPS));
                let far = if cylinder == Some(0) { 0 } else { ST0_ABNORMAL | ST0_EQUIPMENT };
                self.seek(unit, Seek { cylinder: cylinder.unwrap_or(0), pcn: 0, st0: ST0_SEEK_END | far | unit });
            }
            // To that cylinder even if the head is not where the chip believes: no driver counts on the difference.
            Command::Seek => {
                self.seek(b[1] & 3, Seek { cylinder: b[2], pcn: b[2], st0: ST0_SEEK_END | b[1] & 7 });
            }
            Command::RelativeSeek => {
                let (unit, st0) = (b[1] & 3, ST0_SEEK_END | b[1] & 7);
                let pcn = r.pcn[usize::from(unit)];
                let at = self.drive(unit).map_or(0, |d| d.state.cylinder);
                self.seek(
                    unit,
                    match b[0] & INWARDS {
                        0 => Seek { cylinder: at.saturating_sub(b[2]), pcn: pcn.wrapping_sub(b[2]), st0 },
                        _ => Seek { cylinder: at.saturating_add(b[2]), pcn: pcn.wrapping_add(b[2]), st0 },
                    },
                );
            }
            Command::Invalid => self.result(&[ST0_INVALID]),
        }
    }

    fn result(&mut self, bytes: &[u8]) {
        self.regs.fifo = bytes.to_vec();
        self.regs.phase = Phase::Result;
    }

    fn sense_interrupt(&mut self) {
        let r = &mut self.regs;
        // A driver may not ask for all four drives after a reset: those do not keep the line up.
        let st0 = if r.polled > 0 {
            r.polled -= 1;
            Some(ST0_POLLED | (3 - r.polled))
        } else {
            r.ended.iter_mut().find_map(Option::take)
        };
        self.interrupt(false);
        match st0 {
            Some(st0) => self.result(&[st0, self.regs.pcn[usize::from(st0 & 3)]]),
            None => self.result(&[ST0_INVALID]),
        }
    }

    /// Nanoseconds of a number of steps, at the rate that SPECIFY gave.
    fn stepping(&self, unit: u8, steps: u8) -> u64 {
        let us = u64::from(16 - (self.regs.specify[0] >> 4)) * [1000, 1667, 2000, 500][usize::from(self.rate())];
        self.drive(unit).map_or(0, |d| d.wait(us * 1000 * u64::from(steps)))
    }

    fn rate(&self) -> u8 {
        self.regs.dsr & DSR_RATE
    }

    fn seek(&mut self, unit: u8, seek: Seek) {
        let from = self.drive(unit).map_or(0, |d| d.state.cylinder);
        let n = usize::from(unit);
        self.regs.seeking[n] = Some(seek);
        self.regs.ended[n] = None;
        let timer = &self.seeks[n];
        timer.set(timer.now() + LEAST.max(self.stepping(unit, from.abs_diff(seek.cylinder))));
    }

    fn seek_ended(&mut self, unit: u8) {
        let n = usize::from(unit);
        let Some(Seek { cylinder, pcn, st0 }) = self.regs.seeking[n].take() else { return };
        if let Some(drive) = self.drive_mut(unit) {
            drive.step_to(cylinder);
        }
        self.regs.pcn[n] = pcn;
        self.regs.ended[n] = Some(st0);
        self.regs.polled = 0;
        self.interrupt(true);
    }
}

impl Device for I82077aa {
    fn read(&mut self, region: u32, offset: u64, _width: u8) -> u64 {
        u64::from(match (region, offset) {
            (DIR, _) => u8::from(self.changed()) * DIR_CHANGED,
            (_, 2) => self.regs.dor,
            (_, 3) => self.regs.tdr,
            (_, 4) => self.status(),
            (_, 5) => self.read_fifo(),
            // Status registers A and B are those of a PS/2.
            _ => 0xff,
        })
    }

    fn write(&mut self, region: u32, offset: u64, _width: u8, value: u64) {
        let value = value as u8;
        match (region, offset) {
            // Configuration control register.
            (DIR, _) => self.regs.dsr = self.regs.dsr & !DSR_RATE | value & DSR_RATE,
            (_, 2) => self.write_dor(value),
            (_, 3) => self.regs.tdr = value & 3,
            (_, 4) => self.write_dsr(value),
            (_, 5) => self.write_fifo(value),
            _ => {}
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Timer(EXECUTION) => self.due(),
            Event::Timer(n) => self.seek_ended(n as u8 & 3),
            Event::Done(completion) => self.disk_done(completion),
            Event::Medium(n) => {
                if let Some(Some(drive)) = self.drives.get_mut(n) {
                    drive.medium_changed();
                }
            }
            _ => {}
        }
    }

    fn reset(&mut self, _: ResetKind) {
        self.abort();
        self.regs = Regs::default();
        self.drives.iter_mut().flatten().for_each(|d| d.state = DriveState::default());
        self.settle();
    }

    fn state(&mut self) -> &mut dyn State {
        self
    }
}

/// By hand: the drives hold their disks beside their state.
impl State for I82077aa {
    fn save(&self) -> Value {
        let drives = self.drives.each_ref().map(|d| d.as_ref().map(|d| d.state.clone()));
        Saved { regs: self.regs.clone(), drives }.save()
    }

    fn load(&mut self, value: Value) -> Result<(), String> {
        let saved: Saved = serde_json::from_value(value).map_err(|e| e.to_string())?;
        for (drive, state) in self.drives.iter_mut().zip(saved.drives) {
            match (drive, state) {
                (Some(drive), Some(state)) => drive.state = state,
                (None, None) => {}
                _ => return Err("it has other drives".to_owned()),
            }
        }
        self.regs = saved.regs;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
