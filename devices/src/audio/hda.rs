//! Intel High Definition Audio, as bhyve's: the controller of the ICH7, 8086:27D8, and a codec with a line out and a line in.
//!
//! High Definition Audio Specification 1.0a ("HDA" below gives its sections). Four input streams, four output streams, rings of
//! 256 commands and responses, positions in memory, immediate commands. The codec has a converter and a pin for each
//! direction that the host has something for; nodes, formats and identity are those of bhyve's. Unlike there its
//! volumes and mutes are heard, so that a guest which sets up nothing hears nothing, as on most hardware.
//!
//! Streams move by the machine's clock, [`TICK`] by [`TICK`], whatever the host's sound does: positions, interrupts and
//! what was played are the same in each run by the instruction clock. A tick that comes late moves what is due, but no
//! more than [`MOST_LATE`]: the rest of the delay is the stream's. A guest's list of buffers may be anything; one tick follows
//! [`MOST_PIECES`] of its entries.

use std::sync::Arc;

use emu::backend::{Capture, Frame, Playback};
use emu::{
    BarKind, Class, Device, DmaMem, Event, IrqLine, Model, Msi, Params, PciIds, Pin, ResetKind, Slot, State, Timer,
    Widths,
};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The model. It has what its [`emu::Backends`] have: a line out, a line in, both, or no codec at all.
pub static MODEL: Model =
    Model { name: "hda", summary: "Intel HD Audio (8086:27D8)", class: Class::Sound, keys: &[], create };

const REGISTERS: u32 = 0;
const LEN: u64 = 0x4000;

/// Streams of each direction; those in come first.
const INPUTS: usize = 4;
const STREAMS: usize = 8;

/// How often streams move, nanoseconds.
const TICK: u64 = 1_000_000;
/// By how much a stream moves at once at most, nanoseconds.
const MOST_LATE: u64 = 500_000_000;
/// Entries of a buffer descriptor list that are followed in one go.
const MOST_PIECES: usize = 256;

/// Entries of both rings, and a byte that says so: 256, and nothing else can be chosen.
const RING: u8 = 0x42;
/// Bytes of an output stream's FIFO, less one.
const FIFO: u32 = 0xff;

/// Registers, HDA 3.3, at the words that they are in. Streams follow.
mod at {
    pub const GCAP: u64 = 0x00;
    pub const PAYLOAD: u64 = 0x04;
    pub const GCTL: u64 = 0x08;
    /// WAKEEN and STATESTS.
    pub const WAKE: u64 = 0x0c;
    /// GSTS.
    pub const STATUS: u64 = 0x10;
    pub const INTCTL: u64 = 0x20;
    pub const INTSTS: u64 = 0x24;
    pub const WALCLK: u64 = 0x30;
    /// SSYNC: where the ICH7 has it, and where the specification.
    pub const SSYNC_ICH: u64 = 0x34;
    pub const SSYNC: u64 = 0x38;
    pub const CORBLBASE: u64 = 0x40;
    pub const CORBUBASE: u64 = 0x44;
    /// CORBWP and CORBRP.
    pub const CORBWP: u64 = 0x48;
    /// CORBCTL, CORBSTS, CORBSIZE.
    pub const CORBCTL: u64 = 0x4c;
    pub const RIRBLBASE: u64 = 0x50;
    pub const RIRBUBASE: u64 = 0x54;
    /// RIRBWP and RINTCNT.
    pub const RIRBWP: u64 = 0x58;
    /// RIRBCTL, RIRBSTS, RIRBSIZE.
    pub const RIRBCTL: u64 = 0x5c;
    pub const ICOI: u64 = 0x60;
    pub const ICII: u64 = 0x64;
    pub const ICIS: u64 = 0x68;
    pub const DPLBASE: u64 = 0x70;
    pub const DPUBASE: u64 = 0x74;
    pub const STREAMS: u64 = 0x80;
    pub const STREAMS_END: u64 = STREAMS + super::STREAMS as u64 * 0x20;
    /// WALCLK and each stream's LPIB once more.
    pub const WALCLK_ALIAS: u64 = 0x2030;
    pub const LPIB_ALIAS: u64 = 0x2084;
    pub const LPIB_ALIAS_END: u64 = LPIB_ALIAS + super::STREAMS as u64 * 0x20;
}

/// GCTL.
const CRST: u32 = 1;
const FCNTRL: u32 = 1 << 1;
const UNSOL: u32 = 1 << 8;
/// GSTS.
const FSTS: u32 = 1 << 1;
/// INTCTL and INTSTS.
const CIE: u32 = 1 << 30;
const GIE: u32 = 1 << 31;
/// CORBCTL, CORBRP.
const CORBRUN: u8 = 1 << 1;
const CORBRPRST: u16 = 1 << 15;
/// RIRBCTL and RIRBSTS.
const RINTCTL: u8 = 1;
const RIRBDMAEN: u8 = 1 << 1;
const RINTFL: u8 = 1;
/// ICIS.
const ICB: u32 = 1;
const IRV: u32 = 1 << 1;
/// DPLBASE.
const DMAPBE: u32 = 1;

/// SDnCTL, and SDnSTS above it.
mod sd {
    pub const SRST: u32 = 1;
    pub const RUN: u32 = 1 << 1;
    pub const IOCE: u32 = 1 << 2;
    /// With the stream's number, and what we have no use for: other interrupts, stripes, priority.
    pub const KEPT: u32 = 0xf7_001e;
    pub const BCIS: u32 = 1 << 26;
    pub const FIFORDY: u32 = 1 << 29;
}

/// A stream descriptor.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Stream {
    ctl: u32,
    /// BCIS.
    completed: bool,
    lpib: u32,
    cbl: u32,
    lvi: u8,
    fmt: u16,
    bdl: u64,
    /// The entry of the list where it is, and how many of its bytes were moved.
    entry: u8,
    done: u32,
    /// When it began to move in this format, and frames since.
    since: u64,
    moved: u64,
}

/// What a stream consists of, SDnFMT and HDA 3.7.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Format {
    rate: u32,
    channels: usize,
    /// Bytes of a sample. Shorter ones are in the upper bits.
    size: usize,
}

impl Format {
    /// Nothing for what is reserved, or no PCM.
    fn of(fmt: u16) -> Option<Format> {
        let base = if fmt >> 14 & 1 != 0 { 44100 } else { 48000 };
        let (multiple, divisor) = (u32::from(fmt >> 11 & 7), u32::from(fmt >> 8 & 7));
        let size = match fmt >> 4 & 7 {
            0 => 1,
            1 => 2,
            2..=4 => 4,
            _ => return None,
        };
        let channels = usize::from(fmt & 15) + 1;
        let rate = base * (multiple + 1) / (divisor + 1);
        (fmt >> 15 == 0 && multiple < 4).then_some(Format { rate, channels, size })
    }

    fn frame(self) -> usize {
        self.channels * self.size
    }

    /// Frames in so many nanoseconds.
    fn frames(self, ns: u64) -> u64 {
        (u128::from(ns) * u128::from(self.rate) / 1_000_000_000) as u64
    }

    /// The sample of a channel; channels that are not there are as the last one.
    fn get(self, frame: &[u8], channel: usize) -> i16 {
        let at = channel.min(self.channels - 1) * self.size;
        match self.size {
            1 => i16::from(frame[at].wrapping_sub(0x80).cast_signed()) << 8,
            size => i16::from_le_bytes([frame[at + size - 2], frame[at + size - 1]]),
        }
    }

    fn set(self, frame: &mut [u8], channel: usize, sample: i16) {
        if channel >= self.channels {
            return;
        }
        let (at, [low, high]) = (channel * self.size, sample.to_le_bytes());
        match self.size {
            1 => frame[at] = high.wrapping_add(0x80),
            size => frame[at + size - 2..at + size].copy_from_slice(&[low, high]),
        }
    }

    /// Bytes of silence.
    fn silence(self, frames: usize) -> Vec<u8> {
        vec![if self.size == 1 { 0x80 } else { 0 }; frames * self.frame()]
    }
}

impl Stream {
    /// The format that it moves in, if it moves.
    fn moves(&self) -> Option<Format> {
        let runs = self.ctl & (sd::RUN | sd::SRST) == sd::RUN && self.cbl != 0;
        Format::of(self.fmt).filter(|_| runs)
    }

    /// Its number on the link, 0 for none.
    fn tag(&self) -> u8 {
        (self.ctl >> 20) as u8 & 15
    }

    /// Counts frames from here on: it moves, or goes on in another format.
    fn begin(&mut self, now: u64) {
        (self.since, self.moved) = (now, 0);
    }

    /// Frames that are due, which count as moved.
    fn due(&mut self, format: Format, now: u64) -> usize {
        let total = format.frames(now.saturating_sub(self.since));
        let due = total.saturating_sub(self.moved).min(format.frames(MOST_LATE));
        self.moved = total;
        due as usize
    }

    /// Hands `piece` the places of the next `bytes` bytes in guest memory, as (address, range of the bytes), and counts
    /// them. It ends early where the list is nothing but empty entries, or has too many of few bytes.
    fn follow(&mut self, dma: &DmaMem, bytes: usize, mut piece: impl FnMut(u64, std::ops::Range<usize>)) {
        let mut at = 0;
        for _ in 0..MOST_PIECES {
            // Address, length, and what to do at its end.
            let descriptor: [u8; 16] = dma.fetch(self.bdl.wrapping_add(16 * u64::from(self.entry)));
            let descriptor = u128::from_le_bytes(descriptor);
            let (address, length) = (descriptor as u64, (descriptor >> 64) as u32);
            let n = (length.saturating_sub(self.done) as usize).min(bytes - at);
            piece(address.wrapping_add(self.done.into()), at..at + n);
            at += n;
            self.done = self.done.saturating_add(n as u32);
            self.lpib = ((u64::from(self.lpib) + n as u64) % u64::from(self.cbl)) as u32;
            if self.done >= length {
                self.done = 0;
                self.entry = if self.entry >= self.lvi { 0 } else { self.entry + 1 };
                self.completed |= descriptor >> 96 & 1 != 0;
            }
            if at == bytes {
                break;
            }
        }
    }
}

/// Nodes of the codec.
mod node {
    pub const ROOT: u8 = 0;
    /// The audio function group.
    pub const GROUP: u8 = 1;
    pub const DAC: u8 = 2;
    pub const LINE_OUT: u8 = 3;
    pub const ADC: u8 = 4;
    pub const LINE_IN: u8 = 5;
}

/// Parameters, HDA 7.3.4.
mod parameter {
    pub const VENDOR_ID: u8 = 0x00;
    pub const REVISION_ID: u8 = 0x02;
    pub const NODES: u8 = 0x04;
    pub const GROUP_TYPE: u8 = 0x05;
    pub const WIDGET: u8 = 0x09;
    pub const PCM: u8 = 0x0a;
    pub const FORMATS: u8 = 0x0b;
    pub const PIN: u8 = 0x0c;
    pub const INPUT_AMPLIFIER: u8 = 0x0d;
    pub const CONNECTIONS: u8 = 0x0e;
    pub const POWER: u8 = 0x0f;
    pub const OUTPUT_AMPLIFIER: u8 = 0x12;
}

/// Steps of an amplifier, a decibel each; the last one changes nothing.
const STEPS: u8 = 74;
const AMPLIFIER: u32 = 1 << 31 | 3 << 16 | (STEPS as u32) << 8 | STEPS as u32;
const MUTE: u8 = 0x80;

/// What the steps multiply by, in 32768ths.
const GAINS: [i32; STEPS as usize + 1] = {
    let mut gains = [0; STEPS as usize + 1];
    // 10^(-1/20) in 2^-32, which is a decibel.
    const DECIBEL: u64 = 3_827_893_632;
    let (mut n, mut gain) = (gains.len(), 1u64 << 32);
    while n > 0 {
        n -= 1;
        gains[n] = (gain >> 17) as i32;
        gain = gain * DECIBEL >> 32;
    }
    gains
};

/// A converter with its amplifier.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Converter {
    format: u16,
    /// The stream's number, and the first channel.
    stream: u8,
    /// Left and right: [`MUTE`] and the step.
    amplifier: [u8; 2],
}

impl Default for Converter {
    fn default() -> Converter {
        Converter { format: 0, stream: 0, amplifier: [MUTE | STEPS; 2] }
    }
}

impl Converter {
    fn tag(&self) -> u8 {
        self.stream >> 4
    }

    fn channel(&self) -> usize {
        usize::from(self.stream & 15)
    }

    fn amplify(&self, frame: Frame) -> Frame {
        let gain = |n: usize| match self.amplifier[n] {
            muted if muted & MUTE != 0 => 0,
            step => GAINS[usize::from(step.min(STEPS))],
        };
        [0, 1].map(|n| (i32::from(frame[n]) * gain(n) >> 15) as i16)
    }

    /// A verb with 16 bits; `direction` is where its amplifier is.
    fn command(&mut self, verb: u32, payload: u16, direction: u16) -> u32 {
        match verb {
            0x2 => self.format = payload,
            0xa => return self.format.into(),
            0x3 if payload & direction != 0 => {
                for (n, side) in [1 << 13, 1 << 12].into_iter().enumerate() {
                    if payload & side != 0 {
                        self.amplifier[n] = payload as u8;
                    }
                }
            }
            // Here one bit tells the directions apart.
            0xb if (payload & OUTPUT != 0) == (direction == OUTPUT) => {
                return self.amplifier[if payload & 1 << 13 != 0 { 0 } else { 1 }].into();
            }
            _ => {}
        }
        0
    }
}

/// Where an amplifier is, in the payload of its verbs.
const OUTPUT: u16 = 1 << 15;
const INPUT: u16 = 1 << 14;

/// What the guest sets in the codec.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Codec {
    dac: Converter,
    adc: Converter,
    /// Pin controls of line out and line in.
    pins: [u8; 2],
    /// Power state of the function group.
    power: u8,
}

impl Default for Codec {
    fn default() -> Codec {
        Codec { dac: Converter::default(), adc: Converter::default(), pins: [1 << 6, 1 << 5], power: 0 }
    }
}

/// Which ways a codec goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ways {
    out: bool,
    line_in: bool,
}

impl Ways {
    /// There is a codec.
    fn any(self) -> bool {
        self.out || self.line_in
    }

    /// There is such a node.
    fn has(self, node: u8) -> bool {
        match node {
            node::ROOT | node::GROUP => true,
            node::DAC | node::LINE_OUT => self.out,
            node::ADC | node::LINE_IN => self.line_in,
            _ => false,
        }
    }

    /// The first node below the group, and how many there are.
    fn widgets(self) -> u32 {
        let first = if self.out { node::DAC } else { node::ADC };
        u32::from(first) << 16 | 2 * (u32::from(self.out) + u32::from(self.line_in))
    }
}

impl Codec {
    /// What is answered to a verb for a node that is there.
    fn command(&mut self, ways: Ways, node: u8, verb: u32) -> u32 {
        let payload = verb as u8;
        let converter = match node {
            node::DAC => Some((&mut self.dac, OUTPUT)),
            node::ADC => Some((&mut self.adc, INPUT)),
            _ => None,
        };
        // Verbs are of 12 bits, those with long payloads of 4.
        if verb >> 16 & 7 != 7 {
            return converter.map_or(0, |(c, direction)| c.command(verb >> 16 & 15, verb as u16, direction));
        }
        let pin = match node {
            node::LINE_OUT => Some(&mut self.pins[0]),
            node::LINE_IN => Some(&mut self.pins[1]),
            _ => None,
        };
        match (verb >> 8 & 0xfff, node) {
            (0xf00, _) => return Codec::parameter(ways, node, payload),
            // Connections: where the sound comes from.
            (0xf02, node::LINE_OUT) if payload == 0 => return node::DAC.into(),
            (0xf02, node::ADC) if payload == 0 => return node::LINE_IN.into(),
            (0x705, node::GROUP) => self.power = payload & 3,
            // What is set, and what is.
            (0xf05, node::GROUP) => return u32::from(self.power) << 4 | u32::from(self.power),
            (0x706, _) => {
                if let Some((converter, _)) = converter {
                    converter.stream = payload;
                }
            }
            (0xf06, _) => return converter.map_or(0, |(c, _)| c.stream.into()),
            (0x707, _) => {
                if let Some(pin) = pin {
                    *pin = payload & 0xe7;
                }
            }
            (0xf07, _) => return pin.map_or(0, |pin| (*pin).into()),
            // Pin sense: something is plugged in.
            (0xf09, node::LINE_OUT | node::LINE_IN) => return 1 << 31,
            // Configuration: black and red jacks, a line out and a line in.
            (0xf1c, node::LINE_OUT) => return 0x0000_1010,
            (0xf1c, node::LINE_IN) => return 0x0080_5020,
            // Subsystem.
            (0xf20, node::GROUP) => return 0x8086_0001,
            (0x7ff, node::GROUP) => *self = Codec::default(),
            _ => {}
        }
        0
    }

    fn parameter(ways: Ways, node: u8, parameter: u8) -> u32 {
        match (parameter, node) {
            (parameter::VENDOR_ID, node::ROOT) => 0x8086,
            (parameter::REVISION_ID, node::ROOT) => 0xffff,
            (parameter::NODES, node::ROOT) => u32::from(node::GROUP) << 16 | 1,
            (parameter::NODES, node::GROUP) => ways.widgets(),
            // Audio.
            (parameter::GROUP_TYPE, node::GROUP) => 1,
            // D0 to D3.
            (parameter::POWER, node::GROUP) => 0xf,
            // 8 to 32 bits, 8 to 192 kHz; the converters have 16 bits and begin at 16 kHz.
            (parameter::PCM, node::GROUP) => 0x1f_07ff,
            (parameter::PCM, node::DAC | node::ADC) => 0x02_07fc,
            (parameter::FORMATS, node::GROUP | node::DAC | node::ADC) => 1,
            // The kind; stereo; amplifiers and formats of their own; connections.
            (parameter::WIDGET, node::DAC) => 0x1d,
            (parameter::WIDGET, node::LINE_OUT) => 4 << 20 | 1 << 8 | 1,
            (parameter::WIDGET, node::ADC) => 1 << 20 | 1 << 8 | 0x1b,
            (parameter::WIDGET, node::LINE_IN) => 4 << 20 | 1,
            // Out or in, and it knows whether something is plugged in.
            (parameter::PIN, node::LINE_OUT) => 1 << 4 | 1 << 2,
            (parameter::PIN, node::LINE_IN) => 1 << 5 | 1 << 2,
            (parameter::CONNECTIONS, node::LINE_OUT | node::ADC) => 1,
            (parameter::OUTPUT_AMPLIFIER, node::DAC) | (parameter::INPUT_AMPLIFIER, node::ADC) => AMPLIFIER,
            _ => 0,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Registers {
    gctl: u32,
    flushed: bool,
    wakeen: u16,
    statests: u16,
    intctl: u32,
    /// When WALCLK began.
    wall: u64,
    ssync: u32,
    corb: u64,
    corbwp: u8,
    /// With [`CORBRPRST`].
    corbrp: u16,
    corbctl: u8,
    rirb: u64,
    rirbwp: u8,
    rintcnt: u8,
    rirbctl: u8,
    rirbsts: u8,
    /// Responses since the last interrupt.
    responses: u16,
    icoi: u32,
    icii: u32,
    icis: u32,
    /// DPLBASE and DPUBASE.
    positions: u64,
    streams: [Stream; STREAMS],
    codec: Codec,
    /// Interrupts that were told by a message.
    told: u32,
}

struct Hda {
    dma: DmaMem,
    irq: Arc<IrqLine>,
    msi: Msi,
    timer: Arc<Timer>,
    ways: Ways,
    playback: Option<Box<dyn Playback>>,
    capture: Option<Box<dyn Capture>>,
    /// The streams that the host plays and records, and their rates.
    playing: Option<(usize, u32)>,
    recording: Option<(usize, u32)>,
    r: Registers,
}

fn create(slot: &mut Slot, _: &Params) -> Result<Box<dyn Device>, String> {
    let function = slot.pci(PciIds { vendor: 0x8086, device: 0x27d8, class: 0x04_0300, ..PciIds::default() })?;
    // HDCTL: HD Audio, no AC'97.
    function.config(|c| c.set8(0x40, 1));
    slot.bar(0, BarKind::Mem32, LEN, REGISTERS, Widths::DWORD);
    let (irq, dma, timer, msi) = (slot.intx(Pin::A), slot.dma(), slot.timer(0), slot.msi(1));
    let (playback, capture) = (slot.backends.playback.take(), slot.backends.capture.take());
    let ways = Ways { out: playback.is_some(), line_in: capture.is_some() };
    let r = Registers::default();
    Ok(Box::new(Hda { dma, irq, msi, timer, ways, playback, capture, playing: None, recording: None, r }))
}

/// The value of a word of which `lanes` are written.
fn merge(old: u32, value: u32, lanes: u32) -> u32 {
    old & !lanes | value & lanes
}

fn low(old: u64, value: u32, lanes: u32) -> u64 {
    old & !0xffff_ffff | u64::from(merge(old as u32, value, lanes) & !0x7f)
}

fn high(old: u64, value: u32, lanes: u32) -> u64 {
    old & 0xffff_ffff | u64::from(merge((old >> 32) as u32, value, lanes)) << 32
}

impl Hda {
    fn runs(&self) -> bool {
        self.r.gctl & CRST != 0
    }

    /// The link goes down, and all is as it was at the beginning but for what wakes the system.
    fn reset_link(&mut self) {
        let Registers { wakeen, statests, told, .. } = self.r;
        self.r = Registers { wakeen, statests, told, ..Registers::default() };
    }

    fn write_gctl(&mut self, value: u32) {
        if value & CRST == 0 {
            return self.reset_link();
        }
        if !self.runs() {
            self.r.wall = self.timer.now();
            // The codec says that it is there.
            self.r.statests |= u16::from(self.ways.any());
        }
        self.r.gctl = value & (CRST | UNSOL);
        self.r.flushed |= value & FCNTRL != 0;
    }

    // Commands, HDA 4.4.

    /// The response to a command, if anybody hears it.
    fn command(&mut self, command: u32) -> Option<u32> {
        if command >> 28 != 0 || !self.ways.any() {
            return None;
        }
        let (node, verb) = ((command >> 20) as u8, command & 0xf_ffff);
        Some(if self.ways.has(node) { self.r.codec.command(self.ways, node, verb) } else { 0 })
    }

    fn respond(&mut self, response: u32) {
        if self.r.rirbctl & RIRBDMAEN == 0 {
            return;
        }
        self.r.rirbwp = self.r.rirbwp.wrapping_add(1);
        // The upper word: from codec 0, and asked for.
        let at = self.r.rirb.wrapping_add(8 * u64::from(self.r.rirbwp));
        self.dma.write(at, &u64::from(response).to_le_bytes());
        self.r.responses = self.r.responses.saturating_add(1);
        // 0 stands for 256.
        if self.r.responses > u16::from(self.r.rintcnt.wrapping_sub(1)) {
            self.responded();
        }
    }

    fn responded(&mut self) {
        if std::mem::take(&mut self.r.responses) > 0 {
            self.r.rirbsts |= RINTFL;
        }
    }

    /// Runs all commands that are there.
    fn run_corb(&mut self) {
        if self.r.corbctl & CORBRUN == 0 || self.r.corbrp & CORBRPRST != 0 || !self.dma.enabled() {
            return;
        }
        while self.r.corbrp as u8 != self.r.corbwp {
            let next = (self.r.corbrp as u8).wrapping_add(1);
            self.r.corbrp = next.into();
            let command = self.dma.read_u32(self.r.corb.wrapping_add(4 * u64::from(next)));
            if let Some(response) = self.command(command) {
                self.respond(response);
            }
        }
        // Also where fewer came than are counted.
        self.responded();
    }

    fn immediate(&mut self, value: u32) {
        self.r.icis &= !(value & IRV);
        if value & ICB != 0
            && let Some(response) = self.command(self.r.icoi)
        {
            (self.r.icii, self.r.icis) = (response, self.r.icis | IRV);
        }
    }

    // Streams, HDA 4.5.

    /// The format that a stream moves in, unless it is held.
    fn moves(&self, n: usize) -> Option<Format> {
        self.r.streams[n].moves().filter(|_| self.r.ssync >> n & 1 == 0)
    }

    fn write_stream(&mut self, n: usize, register: u64, value: u32, lanes: u32) {
        let s = &mut self.r.streams[n];
        match register {
            0x00 => {
                s.completed &= value & lanes & sd::BCIS == 0;
                let ctl = merge(s.ctl, value, lanes) & 0xff_ffff;
                if ctl & sd::SRST != 0 {
                    *s = Stream { ctl: sd::SRST, ..Stream::default() };
                } else {
                    s.ctl = ctl & sd::KEPT;
                }
            }
            0x08 => s.cbl = merge(s.cbl, value, lanes),
            0x0c => s.lvi = merge(s.lvi.into(), value, lanes) as u8,
            0x10 => s.fmt = (merge(u32::from(s.fmt) << 16, value, lanes) >> 16) as u16,
            0x18 => s.bdl = low(s.bdl, value, lanes),
            0x1c => s.bdl = high(s.bdl, value, lanes),
            _ => {}
        }
    }

    fn read_stream(&self, n: usize, register: u64) -> u32 {
        let s = &self.r.streams[n];
        match register {
            0x00 => {
                let ready = if s.ctl & sd::RUN != 0 { sd::FIFORDY } else { 0 };
                s.ctl | if s.completed { sd::BCIS } else { 0 } | ready
            }
            0x04 => s.lpib,
            0x08 => s.cbl,
            0x0c => s.lvi.into(),
            0x10 => FIFO | u32::from(s.fmt) << 16,
            0x18 => s.bdl as u32,
            0x1c => (s.bdl >> 32) as u32,
            _ => 0,
        }
    }

    /// Moves all streams up to now.
    fn tick(&mut self) {
        let now = self.timer.now();
        for n in 0..STREAMS {
            let Some(format) = self.moves(n) else { continue };
            let frames = self.r.streams[n].due(format, now);
            if frames == 0 || !self.dma.enabled() {
                continue;
            }
            if n < INPUTS {
                self.record(n, format, frames);
            } else {
                self.play(n, format, frames);
            }
            if self.r.positions & u64::from(DMAPBE) != 0 {
                let at = (self.r.positions & !0x7f).wrapping_add(8 * n as u64);
                self.dma.write_u32(at, self.r.streams[n].lpib);
            }
        }
    }

    fn play(&mut self, n: usize, format: Format, frames: usize) {
        let (mut bytes, dma) = (format.silence(frames), &self.dma);
        self.r.streams[n].follow(dma, bytes.len(), |at, range| dma.read(at, &mut bytes[range]));
        let Some(playback) = self.playback.as_mut().filter(|_| self.playing.is_some_and(|(of, _)| of == n)) else {
            return;
        };
        let dac = &self.r.codec.dac;
        let channel = dac.channel();
        let frame = |bytes: &[u8]| dac.amplify([format.get(bytes, channel), format.get(bytes, channel + 1)]);
        let heard: Vec<Frame> = bytes.chunks_exact(format.frame()).map(frame).collect();
        playback.write(&heard);
    }

    fn record(&mut self, n: usize, format: Format, frames: usize) {
        let (mut bytes, dma) = (format.silence(frames), &self.dma);
        if let Some(capture) = self.capture.as_mut().filter(|_| self.recording.is_some_and(|(of, _)| of == n)) {
            let adc = &self.r.codec.adc;
            let mut heard = vec![Frame::default(); frames];
            capture.read(&mut heard);
            for (bytes, frame) in bytes.chunks_exact_mut(format.frame()).zip(heard) {
                let [left, right] = adc.amplify(frame);
                format.set(bytes, adc.channel(), left);
                format.set(bytes, adc.channel() + 1, right);
            }
        }
        self.r.streams[n].follow(dma, bytes.len(), |at, range| dma.write(at, &bytes[range]));
    }

    /// The one of `streams` that a converter is at, if it moves, and its rate.
    fn stream_of(&self, converter: &Converter, mut streams: std::ops::Range<usize>) -> Option<(usize, u32)> {
        let at = |n: &usize| self.r.streams[*n].tag() == converter.tag() && self.moves(*n).is_some();
        let n = streams.find(at).filter(|_| converter.tag() != 0)?;
        Some((n, self.moves(n)?.rate))
    }

    /// After anything that may have changed: what the host plays and records, the timer, and the interrupt.
    fn update(&mut self) {
        let playing = self.stream_of(&self.r.codec.dac, INPUTS..STREAMS);
        let before = std::mem::replace(&mut self.playing, playing);
        if let Some(playback) = self.playback.as_mut().filter(|_| before != playing) {
            before.iter().for_each(|_| playback.close());
            playing.iter().for_each(|(_, rate)| playback.open(*rate));
        }
        let recording = self.stream_of(&self.r.codec.adc, 0..INPUTS);
        let before = std::mem::replace(&mut self.recording, recording);
        if let Some(capture) = self.capture.as_mut().filter(|_| before != recording) {
            before.iter().for_each(|_| capture.close());
            recording.iter().for_each(|(_, rate)| capture.open(*rate));
        }
        match (0..STREAMS).any(|n| self.moves(n).is_some()) {
            false => self.timer.cancel(),
            true if self.timer.deadline().is_none() => self.timer.set(self.timer.now() + TICK),
            true => {}
        }
        self.interrupt();
    }

    fn intsts(&self) -> u32 {
        let stream = |(n, s): (usize, &Stream)| u32::from(s.completed && s.ctl & sd::IOCE != 0) << n;
        let controller =
            self.r.rirbsts & self.r.rirbctl & RINTCTL & RINTFL != 0 || self.r.statests & self.r.wakeen != 0;
        let all = self.r.streams.iter().enumerate().map(stream).sum::<u32>() | if controller { CIE } else { 0 };
        all | if all & self.r.intctl != 0 { GIE } else { 0 }
    }

    fn interrupt(&mut self) {
        let wanted = if self.r.intctl & GIE != 0 { self.intsts() & self.r.intctl & !GIE } else { 0 };
        self.irq.set(wanted != 0);
        if wanted & !self.r.told != 0 && self.msi.enabled() {
            self.msi.send(0);
        }
        self.r.told = wanted;
    }

    fn read_word(&mut self, offset: u64) -> u32 {
        let r = &self.r;
        match offset {
            // 64-bit addresses, the streams; version 1.0.
            at::GCAP => 1 | (INPUTS as u32) << 8 | ((STREAMS - INPUTS) as u32) << 12 | 1 << 24,
            // Words of a frame on the link, out and in.
            at::PAYLOAD => 0x3c | 0x1d << 16,
            at::GCTL => r.gctl,
            at::WAKE => u32::from(r.wakeen) | u32::from(r.statests) << 16,
            at::STATUS if r.flushed => FSTS,
            at::INTCTL => r.intctl,
            at::INTSTS => self.intsts(),
            // 24 MHz, and still while the link is down.
            at::WALCLK | at::WALCLK_ALIAS if self.runs() => {
                (u128::from(self.timer.now().saturating_sub(r.wall)) * 24 / 1000) as u32
            }
            at::SSYNC_ICH | at::SSYNC => r.ssync,
            at::CORBLBASE => r.corb as u32,
            at::CORBUBASE => (r.corb >> 32) as u32,
            at::CORBWP => u32::from(r.corbwp) | u32::from(r.corbrp) << 16,
            at::CORBCTL => u32::from_le_bytes([r.corbctl, 0, RING, 0]),
            at::RIRBLBASE => r.rirb as u32,
            at::RIRBUBASE => (r.rirb >> 32) as u32,
            at::RIRBWP => u32::from(r.rirbwp) | u32::from(r.rintcnt) << 16,
            at::RIRBCTL => u32::from_le_bytes([r.rirbctl, r.rirbsts, RING, 0]),
            at::ICOI => r.icoi,
            at::ICII => r.icii,
            at::ICIS => r.icis,
            at::DPLBASE => r.positions as u32,
            at::DPUBASE => (r.positions >> 32) as u32,
            at::STREAMS..at::STREAMS_END => {
                let offset = offset - at::STREAMS;
                self.read_stream((offset / 0x20) as usize, offset % 0x20)
            }
            at::LPIB_ALIAS..at::LPIB_ALIAS_END if offset % 0x20 == 4 => {
                r.streams[((offset - at::LPIB_ALIAS) / 0x20) as usize].lpib
            }
            _ => 0,
        }
    }

    fn write_word(&mut self, offset: u64, value: u32, lanes: u32) {
        let [_, second, third, fourth] = [0, 8, 16, 24].map(|n| lanes >> n & 1 != 0);
        match offset {
            at::GCTL => return self.write_gctl(merge(self.r.gctl, value, lanes)),
            at::WAKE => {
                self.r.wakeen = merge(self.r.wakeen.into(), value, lanes) as u16 & 0x7fff;
                self.r.statests &= !((value & lanes) >> 16) as u16;
                return;
            }
            _ if !self.runs() => return,
            _ => {}
        }
        let r = &mut self.r;
        match offset {
            at::STATUS if value & lanes & FSTS != 0 => r.flushed = false,
            at::INTCTL => r.intctl = merge(r.intctl, value, lanes) & (GIE | CIE | ((1 << STREAMS) - 1)),
            at::SSYNC_ICH | at::SSYNC => {
                r.ssync = merge(r.ssync, value, lanes) & ((1 << STREAMS) - 1);
            }
            at::CORBLBASE => r.corb = low(r.corb, value, lanes),
            at::CORBUBASE => r.corb = high(r.corb, value, lanes),
            at::CORBWP => {
                r.corbwp = merge(r.corbwp.into(), value, lanes) as u8;
                if fourth {
                    let reset = (value >> 16) as u16 & CORBRPRST;
                    r.corbrp = if reset != 0 { CORBRPRST } else { r.corbrp & !CORBRPRST };
                }
                self.run_corb();
            }
            at::CORBCTL => {
                r.corbctl = merge(r.corbctl.into(), value, lanes) as u8 & 3;
                self.run_corb();
            }
            at::RIRBLBASE => r.rirb = low(r.rirb, value, lanes),
            at::RIRBUBASE => r.rirb = high(r.rirb, value, lanes),
            at::RIRBWP => {
                // RIRBWPRST.
                if second && value & 1 << 15 != 0 {
                    r.rirbwp = 0;
                }
                if third {
                    r.rintcnt = (value >> 16) as u8;
                }
            }
            at::RIRBCTL => {
                r.rirbctl = merge(r.rirbctl.into(), value, lanes) as u8 & 7;
                r.rirbsts &= !((value & lanes) >> 8) as u8;
            }
            at::ICOI => r.icoi = merge(r.icoi, value, lanes),
            at::ICIS => self.immediate(value & lanes),
            at::DPLBASE => {
                let enabled = u64::from(merge(r.positions as u32, value, lanes) & DMAPBE);
                r.positions = low(r.positions, value, lanes) | enabled;
            }
            at::DPUBASE => r.positions = high(r.positions, value, lanes),
            at::STREAMS..at::STREAMS_END => {
                let offset = offset - at::STREAMS;
                self.write_stream((offset / 0x20) as usize, offset % 0x20, value, lanes);
            }
            _ => {}
        }
    }
}

impl Device for Hda {
    fn read(&mut self, _: u32, offset: u64, width: u8) -> u64 {
        // Whoever looks after a tick that is late would take a position that lags behind its clock for one of the turn before.
        if self.timer.deadline().is_some() {
            self.tick();
            self.update();
        }
        // An access does not cross a word unless a guest wants it to.
        let within = 8 * (offset & 3);
        u64::from(self.read_word(offset & !3)) >> within & (u64::MAX >> (64 - 8 * u32::from(width.min(8))))
    }

    fn write(&mut self, _: u32, offset: u64, width: u8, value: u64) {
        let within = 8 * (offset & 3);
        let lanes = (u32::MAX >> (32 - 8 * u32::from(width.min(4)))) << within;
        let before: [_; STREAMS] = std::array::from_fn(|n| self.moves(n));
        self.write_word(offset & !3, (value << within) as u32, lanes);
        let now = self.timer.now();
        for (n, before) in before.into_iter().enumerate() {
            if self.moves(n) != before {
                self.r.streams[n].begin(now);
            }
        }
        self.update();
    }

    fn event(&mut self, event: Event) {
        if let Event::Timer(_) = event {
            self.tick();
            self.update();
        }
    }

    fn config_write(&mut self, _: u16, _: u8) {
        self.msi.config_written();
    }

    fn reset(&mut self, _: ResetKind) {
        self.r = Registers::default();
        self.update();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.r
    }

    fn restored(&mut self) {
        self.update();
    }
}
