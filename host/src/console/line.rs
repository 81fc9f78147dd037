//! The line between a device and a console: what is under way in both directions.
//!
//! Output waits in a buffer of 64 KiB. When it is full the device has to wait, as for a real line with flow control,
//! except where that would tie the machine to somebody who may never come: while nobody is connected, or when a client
//! has taken nothing for a second, the line keeps the latest 64 KiB and drops what is older. A client that reads again,
//! or the next one, gets them. Under the instruction clock the guest must not see the host's speed, so there the
//! writing thread waits instead of the device.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use emu::backend::Chardev;
use emu::{DeviceCell, Event};

use crate::io::{Gate, Io, Key, Source};

/// Bytes of output that may wait.
pub(super) const OUTPUT: usize = 64 << 10;
/// Bytes of input that may wait for a guest that does not read.
const INPUT: usize = 4 << 10;
/// How long a machine waits for a client that takes nothing.
const STALL: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Out {
    bytes: VecDeque<u8>,
    /// A writer thread is inside write(2) with bytes that are no longer in `bytes`.
    writing: bool,
    /// Nobody is connected.
    nobody: bool,
    /// The device was told that somebody is.
    told_open: bool,
    /// The client takes nothing.
    stalled: bool,
    /// The device, or the thread that writes, waits for room: since when, or since the last bytes went out.
    waiting: Option<Instant>,
    /// The device let go of the line.
    closed: bool,
}

impl Out {
    /// Whether the buffer takes everything and drops its oldest bytes.
    fn keeps_latest(&self) -> bool {
        self.nobody || self.stalled
    }

    fn room(&self) -> usize {
        OUTPUT.saturating_sub(self.bytes.len())
    }
}

#[derive(Default)]
struct Input {
    /// Bytes that the device can take.
    want: usize,
    /// What came in and was not wanted yet.
    pending: VecDeque<u8>,
}

/// A line. The device holds its [`Port`], a [`Source`] or a thread the other end.
pub(super) struct Line {
    name: String,
    /// Wait for room instead of refusing bytes.
    block: bool,
    /// Whether the other end may be given up for lost.
    may_stall: bool,
    /// The source that has a turn when there is something to do.
    source: OnceLock<(Weak<Io>, Key)>,
    /// Who is told, too: the thread that takes the output and brings the input.
    told: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// The device, and its number for the line.
    cell: Mutex<(Weak<DeviceCell>, usize)>,
    out: Mutex<Out>,
    /// Bytes were added to or taken from `out`, or the line was closed.
    out_changed: Condvar,
    input: Mutex<Input>,
    /// There is room in `input` again.
    input_taken: Condvar,
}

impl Line {
    /// A line to somebody who will take the bytes in the end: a terminal, a file.
    pub(super) fn patient(name: &str, block: bool) -> Arc<Line> {
        Line::new(name, block, false)
    }

    /// A line to somebody who may stay away.
    pub(super) fn loose(name: &str, block: bool) -> Arc<Line> {
        Line::new(name, block, true)
    }

    fn new(name: &str, block: bool, may_stall: bool) -> Arc<Line> {
        Arc::new(Line {
            name: name.to_owned(),
            block,
            may_stall,
            source: OnceLock::new(),
            told: OnceLock::new(),
            cell: Mutex::default(),
            out: Mutex::default(),
            out_changed: Condvar::new(),
            input: Mutex::default(),
            input_taken: Condvar::new(),
        })
    }

    /// Says which source serves the line.
    pub(super) fn serve(&self, io: &Arc<Io>, key: Key) {
        let _ = self.source.set((Arc::downgrade(io), key));
    }

    /// Lets a source that only delivers serve the line; something else feeds it.
    pub(super) fn relay(self: &Arc<Line>, io: &Arc<Io>) {
        let key = io.key();
        self.serve(io, key);
        io.add(key, Box::new(Relay(self.clone())));
    }

    /// Has somebody told when there is output, room for input, or the end.
    pub(super) fn tell(&self, told: impl Fn() + Send + Sync + 'static) {
        let _ = self.told.set(Box::new(told));
    }

    /// What to call it in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The device's end.
    pub(super) fn port(self: &Arc<Line>) -> Box<dyn Chardev> {
        Box::new(Port(self.clone()))
    }

    fn ring(&self) {
        if let Some(told) = self.told.get() {
            told();
        }
        if let Some((io, key)) = self.source.get()
            && let Some(io) = io.upgrade()
        {
            io.ring(*key);
        }
    }

    /// Whether the device let go of the line.
    pub(super) fn closed(&self) -> bool {
        self.out.lock().unwrap().closed
    }

    /// Says whether anybody is at the other end.
    pub(super) fn connected(&self, yes: bool) {
        let mut out = self.out.lock().unwrap();
        (out.nobody, out.stalled) = (!yes, false);
        drop(out);
        self.out_changed.notify_all();
    }

    /// How many bytes of input the line takes now.
    pub(super) fn input_room(&self) -> usize {
        let input = self.input.lock().unwrap();
        input.want.min(INPUT).saturating_sub(input.pending.len())
    }

    /// Takes input, dropping what goes beyond 4 KiB: nobody reads it.
    pub(super) fn put(&self, bytes: &[u8]) {
        let mut input = self.input.lock().unwrap();
        let room = INPUT.saturating_sub(input.pending.len());
        input.pending.extend(&bytes[..bytes.len().min(room)]);
        drop(input);
        self.ring();
    }

    /// How much input it takes, wanted by the device or not.
    pub(super) fn room_to_put(&self) -> usize {
        INPUT.saturating_sub(self.input.lock().unwrap().pending.len())
    }

    /// Whether there is output to be taken.
    pub(super) fn has_output(&self) -> bool {
        !self.out.lock().unwrap().bytes.is_empty()
    }

    /// Takes input, waiting for room.
    pub(super) fn put_all(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut input = self.input.lock().unwrap();
            while input.pending.len() >= INPUT {
                input = self.input_taken.wait(input).unwrap();
            }
            let n = bytes.len().min(INPUT - input.pending.len());
            input.pending.extend(&bytes[..n]);
            drop(input);
            bytes = &bytes[n..];
            self.ring();
        }
    }

    /// Output that does not come from the device.
    pub(super) fn notice(&self, text: &str) {
        self.out.lock().unwrap().bytes.extend(text.as_bytes());
        self.out_changed.notify_all();
    }

    /// Reads what is wanted from a descriptor that does not block. False at its end.
    pub(super) fn receive(&self, from: &mut (impl Read + ?Sized)) -> std::io::Result<bool> {
        let mut buf = [0; INPUT];
        loop {
            let n = self.input_room();
            if n == 0 {
                return Ok(true);
            }
            match from.read(&mut buf[..n]) {
                Ok(0) => return Ok(false),
                Ok(n) => self.input.lock().unwrap().pending.extend(&buf[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Writes what waits to a descriptor that does not block.
    pub(super) fn send(&self, to: &mut (impl Write + ?Sized)) -> std::io::Result<()> {
        let mut out = self.out.lock().unwrap();
        while !out.bytes.is_empty() {
            match to.write(out.bytes.as_slices().0) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    out.bytes.drain(..n);
                    out.stalled = false;
                    out.waiting = out.waiting.map(|_| Instant::now());
                    self.out_changed.notify_all();
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Moves what waits to where it fails for want of room only, on a thread that does not deliver.
    pub(super) fn drain(&self, to: &mut impl Write) {
        let _ = self.send(to);
        if self.out.lock().unwrap().waiting.is_some() {
            self.ring();
        }
    }

    /// Waits for output, and takes it for a thread that writes and blocks; `None` when there will be no more. The
    /// thread comes back when it has written it.
    pub(super) fn take(&self) -> Option<VecDeque<u8>> {
        let mut out = self.out.lock().unwrap();
        out.writing = false;
        self.out_changed.notify_all();
        while out.bytes.is_empty() {
            if out.closed {
                return None;
            }
            out = self.out_changed.wait(out).unwrap();
        }
        out.writing = true;
        let bytes = std::mem::take(&mut out.bytes);
        let waiting = out.waiting.is_some();
        drop(out);
        self.out_changed.notify_all();
        if waiting {
            self.ring();
        }
        Some(bytes)
    }

    /// When the client will be given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let out = self.out.lock().unwrap();
        out.waiting.filter(|_| self.may_stall && !out.keeps_latest()).map(|since| since + STALL)
    }

    fn give_up(&self, out: &mut Out) {
        out.stalled = true;
        tracing::warn!("{}: the client reads nothing; output older than {OUTPUT} bytes is dropped", self.name);
    }

    /// A turn of a source whose other end may go and come back: errors are of those who have it now. False at the end.
    pub(super) fn exchange(&self, mut device: impl Read + Write, gate: &Gate) -> bool {
        let _ = self.receive(&mut device);
        let _ = self.send(&mut device);
        self.deliver(gate);
        !self.closed()
    }

    /// Gives the device what is there for it, if the gate is open.
    pub(super) fn deliver(&self, gate: &Gate) {
        if self.deadline().is_some_and(|d| d <= Instant::now()) {
            self.give_up(&mut self.out.lock().unwrap());
            self.out_changed.notify_all();
        }
        // A turn ends when the device takes no more; each round takes something out of a bounded buffer.
        while self.deliverable() {
            let passed = gate.try_pass(|| {
                let (cell, number) = self.cell.lock().unwrap().clone();
                let Some(cell) = cell.upgrade() else { return false };
                if let Some(open) = self.presence(true) {
                    cell.event(Event::CharsOpen(number, open));
                }
                if self.room_to_tell() {
                    self.out.lock().unwrap().waiting = None;
                    cell.event(Event::CharsReady(number));
                }
                let bytes: Vec<u8> = {
                    let mut input = self.input.lock().unwrap();
                    let n = input.want.min(input.pending.len());
                    input.want -= n;
                    input.pending.drain(..n).collect()
                };
                if !bytes.is_empty() {
                    self.input_taken.notify_all();
                    if let Some(told) = self.told.get() {
                        told();
                    }
                    cell.event(Event::Chars(number, bytes));
                }
                true
            });
            if passed != Some(true) {
                return;
            }
        }
    }

    fn deliverable(&self) -> bool {
        let input = self.input.lock().unwrap();
        let chars = input.want > 0 && !input.pending.is_empty();
        drop(input);
        chars || self.room_to_tell() || self.presence(false).is_some()
    }

    /// Whether somebody is there, if the device does not know it yet; `tell`: now it does. That a client is gone is told
    /// after all that it had to say.
    fn presence(&self, tell: bool) -> Option<bool> {
        let said_all = self.input.lock().unwrap().pending.is_empty();
        let mut out = self.out.lock().unwrap();
        let open = !out.nobody || out.told_open && !said_all;
        let news = (open != out.told_open).then_some(open);
        if tell {
            out.told_open = open;
        }
        news
    }

    /// Whether a device that was refused is told to go on; half a buffer makes that worth while.
    fn room_to_tell(&self) -> bool {
        let out = self.out.lock().unwrap();
        !self.block && out.waiting.is_some() && (out.keeps_latest() || out.room() >= OUTPUT / 2)
    }

    /// Waits until all that the guest wrote is with the host; false when nobody takes it, or not within `limit`.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut out = self.out.lock().unwrap();
        while !out.bytes.is_empty() || out.writing {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || out.keeps_latest() {
                return false;
            }
            out = self.out_changed.wait_timeout(out, left).unwrap().0;
        }
        true
    }
}

/// Delivers what a thread puts into a line.
struct Relay(Arc<Line>);

impl Source for Relay {
    fn turn(&mut self, gate: &Gate) -> bool {
        self.0.deliver(gate);
        !self.0.closed()
    }
}

/// The device's end of a line.
struct Port(Arc<Line>);

impl Chardev for Port {
    fn write(&mut self, data: &[u8]) -> usize {
        let line = &self.0;
        let mut out = line.out.lock().unwrap();
        while line.block && out.room() == 0 && !out.keeps_latest() {
            let since = *out.waiting.get_or_insert_with(Instant::now);
            if !line.may_stall {
                out = line.out_changed.wait(out).unwrap();
            } else if since.elapsed() < STALL {
                out = line.out_changed.wait_timeout(out, STALL - since.elapsed().min(STALL)).unwrap().0;
            } else {
                line.give_up(&mut out);
            }
        }
        let all = line.block || out.keeps_latest();
        let n = if all { data.len() } else { data.len().min(out.room()) };
        let was_idle = out.bytes.is_empty();
        out.bytes.extend(&data[..n]);
        if out.keeps_latest() {
            let old = out.bytes.len().saturating_sub(OUTPUT);
            out.bytes.drain(..old);
        }
        // The source has to know of the first byte, and of the first refusal for its deadline.
        let mut news = was_idle && n > 0;
        if n < data.len() {
            news |= out.waiting.is_none();
            out.waiting.get_or_insert_with(Instant::now);
        } else if line.block {
            out.waiting = None;
        }
        drop(out);
        if news {
            line.out_changed.notify_all();
            line.ring();
        }
        n
    }

    fn attach(&mut self, to: Weak<DeviceCell>, number: usize) {
        *self.0.cell.lock().unwrap() = (to, number);
    }

    fn want(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.0.input.lock().unwrap().want, bytes);
        if before == 0 && bytes > 0 {
            self.0.ring();
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.0.out.lock().unwrap().closed = true;
        self.0.out_changed.notify_all();
        self.0.ring();
    }
}
