//! Input devices of the host, by evdev: `/dev/input/eventN` on Linux and on FreeBSD.
//!
//! Once a machine has such a device nobody else reads it (EVIOCGRAB). When events were lost, and when the device is
//! pulled out, the guest hears that all keys were let go, so that none stays down.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use anyhow::{Context, Result, anyhow};
use emu::backend::{Evdev, InputEvent, InputIdentity};
use emu::{DeviceCell, Event};
use mio::Interest;
use mio::unix::SourceFd;

use crate::io::{Gate, Io, Key, Source};

/// Bytes of a struct input_event: a time of two longs, type, code, value.
const EVENT: usize = 24;
const TIME: usize = 16;
/// Events that are read in one go.
const BATCH: usize = 64;
/// Times that a turn reads.
const BURST: usize = 16;

/// Types, and codes of the first.
const SYN: u16 = 0;
const KEY: u16 = 1;
const ABS: u8 = 3;
const DROPPED: u16 = 3;
/// Types of events that a device may have codes of, and the axes that it may have.
const TYPES: std::ops::Range<u8> = 1..0x20;
const AXES: std::ops::Range<u8> = 0..0x40;

mod ioctl {
    nix::ioctl_read!(
        /// Bus, vendor, product, version.
        eviocgid,
        b'E',
        0x02,
        [u16; 4]
    );
    nix::ioctl_read_buf!(
        /// The name, with a zero behind it.
        eviocgname,
        b'E',
        0x06,
        u8
    );
    nix::ioctl_read_buf!(
        /// The serial number, or what stands for it.
        eviocguniq,
        b'E',
        0x08,
        u8
    );
    nix::ioctl_read_buf!(
        /// Properties.
        eviocgprop,
        b'E',
        0x09,
        u8
    );
    nix::ioctl_write_int!(
        /// Nobody else reads the device.
        eviocgrab,
        b'E',
        0x90
    );
}

/// A device that is open.
#[derive(Debug)]
pub struct Host {
    file: File,
    identity: InputIdentity,
    name: String,
}

impl Host {
    /// Opens the device at `path` for a machine alone.
    ///
    /// # Errors
    /// There is none, it is no input device, or the rights are missing.
    pub fn open(path: &Path) -> Result<Host> {
        let name = path.display().to_string();
        let open = || -> Result<Host> {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
            let identity = identify(&file).map_err(|e| match e {
                nix::Error::ENOTTY | nix::Error::EINVAL => anyhow!("it is no input device"),
                e => e.into(),
            })?;
            // SAFETY: the descriptor is open, and the request has no memory.
            #[expect(unsafe_code, reason = "ioctl(2)")]
            unsafe { ioctl::eviocgrab(file.as_raw_fd(), 1) }.map_err(|e| match e {
                nix::Error::EBUSY => anyhow!("another program has it"),
                e => e.into(),
            })?;
            Ok(Host { file, identity, name: name.clone() })
        };
        open().with_context(|| name.clone())
    }

    /// The end that goes into the machine's device.
    ///
    /// # Errors
    /// The host cannot wait for it.
    pub fn plug(self, io: &Arc<Io>) -> Result<Box<dyn Evdev>> {
        let Host { file, identity, name } = self;
        let send = file.try_clone().with_context(|| name.clone())?;
        Plug::between(file, send, identity, name, io)
    }
}

/// What a device says of itself.
fn identify(file: &File) -> nix::Result<InputIdentity> {
    let fd = file.as_raw_fd();
    let mut identity = InputIdentity::default();
    let mut text = [[0; 129]; 2];
    let mut properties = [0; 4];
    // SAFETY: the descriptor is open, and the requests write no more than the arrays that they are given.
    #[expect(unsafe_code, reason = "ioctl(2)")]
    unsafe {
        ioctl::eviocgid(fd, &raw mut identity.ids)?;
        ioctl::eviocgname(fd, &mut text[0][..128])?;
        // Not every device has one.
        let _ = ioctl::eviocguniq(fd, &mut text[1][..128]);
        let _ = ioctl::eviocgprop(fd, &mut properties);
    }
    let [name, serial] = text.map(|text| {
        let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        String::from_utf8_lossy(&text[..end]).into_owned()
    });
    (identity.name, identity.serial) = (name, serial);
    identity.properties = used(&properties);
    for kind in TYPES {
        let mut map = [0; 96];
        // Of some types there are none.
        let _ = query(file, 0x20 + kind, &mut map);
        let map = used(&map);
        if !map.is_empty() {
            identity.codes.push((kind, map));
        }
    }
    let axes = identity.codes.iter().find(|(kind, _)| *kind == ABS).map_or(Vec::new(), |(_, map)| map.clone());
    for axis in AXES.filter(|n| axes.get(usize::from(n / 8)).is_some_and(|byte| byte >> (n % 8) & 1 != 0)) {
        // struct input_absinfo: where it is, and what follows.
        let mut numbers = [0; 24];
        query(file, 0x40 + axis, &mut numbers)?;
        let word = |n: usize| u32::from_ne_bytes(numbers.as_chunks().0[n]);
        identity.axes.push((axis, [1, 2, 3, 4, 5].map(word)));
    }
    Ok(identity)
}

/// EVIOCGBIT and EVIOCGABS, whose number is part of the request.
fn query(file: &File, number: u8, answer: &mut [u8]) -> nix::Result<()> {
    let request = nix::request_code_read!(b'E', number, answer.len());
    // SAFETY: the descriptor is open, and the request has the length of what it writes.
    #[expect(unsafe_code, reason = "ioctl(2)")]
    let done = unsafe { libc::ioctl(file.as_raw_fd(), request, answer.as_mut_ptr()) };
    nix::errno::Errno::result(done).map(drop)
}

/// A bitmap without the zeros at its end.
fn used(map: &[u8]) -> Vec<u8> {
    map[..map.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1)].to_vec()
}

/// What both ends know.
#[derive(Default)]
struct Shared {
    cell: Mutex<Weak<DeviceCell>>,
    full: AtomicBool,
    gone: AtomicBool,
}

/// What comes from the host.
struct Reader<R> {
    from: R,
    io: Arc<Io>,
    key: Key,
    shared: Arc<Shared>,
    name: String,
    /// Keys that the guest believes to be down.
    down: BTreeSet<u16>,
    /// Events were lost, and those up to the next report are parts.
    lost: bool,
    /// What was read while the machine was paused.
    next: Vec<InputEvent>,
}

impl<R> Reader<R> {
    /// What the guest is told of these bytes.
    fn events(&mut self, bytes: &[u8]) -> Vec<InputEvent> {
        let mut events = Vec::new();
        for event in bytes.as_chunks::<EVENT>().0 {
            let half = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
            let (kind, code) = (half(TIME), half(TIME + 2));
            let value = u32::from_ne_bytes(event[TIME + 4..].try_into().unwrap_or_default());
            if (kind, code) == (SYN, DROPPED) {
                self.lost = true;
                events.extend(self.let_go());
                continue;
            }
            if self.lost {
                self.lost = kind != SYN;
                continue;
            }
            match value {
                _ if kind != KEY => {}
                0 => _ = self.down.remove(&code),
                _ => _ = self.down.insert(code),
            }
            events.push(InputEvent { kind, code, value });
        }
        events
    }

    /// All keys that are down go up.
    fn let_go(&mut self) -> Vec<InputEvent> {
        let up = std::mem::take(&mut self.down).into_iter();
        let mut events: Vec<_> = up.map(|code| InputEvent { kind: KEY, code, value: 0 }).collect();
        if !events.is_empty() {
            events.push(InputEvent { kind: SYN, code: 0, value: 0 });
        }
        events
    }

    /// Hands on what was read. False if the machine is paused.
    fn pass(&mut self, gate: &Gate) -> bool {
        let next = &mut self.next;
        let cell = self.shared.cell.lock().unwrap().upgrade();
        let passed = gate.try_pass(|| {
            let events = std::mem::take(next);
            if let Some(cell) = cell.filter(|_| !events.is_empty()) {
                cell.event(Event::Input(events));
            }
        });
        passed.is_some()
    }
}

impl<R: Read + Send> Source for Reader<R> {
    fn turn(&mut self, gate: &Gate) -> bool {
        for _ in 0..BURST {
            if self.shared.gone.load(Ordering::Acquire) {
                return false;
            }
            if !self.pass(gate) || self.shared.full.load(Ordering::Acquire) {
                return true;
            }
            let mut buffer = [0; EVENT * BATCH];
            match self.from.read(&mut buffer) {
                Ok(n) if n > 0 => self.next = self.events(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                ended => {
                    let why = ended.err().map_or("it ended".to_owned(), |e| e.to_string());
                    tracing::warn!("{}: {why}; the guest has it no longer", self.name);
                    self.next = self.let_go();
                    self.pass(gate);
                    return false;
                }
            }
        }
        // There may be more, and nothing tells of what was there already.
        self.io.ring(self.key);
        true
    }
}

/// The device of the host as the machine's knows it.
struct Plug<W> {
    to: W,
    io: Arc<Io>,
    key: Key,
    identity: InputIdentity,
    shared: Arc<Shared>,
}

impl<W: Write + Send + 'static> Plug<W> {
    fn between<R: Read + AsRawFd + Send + 'static>(
        from: R,
        to: W,
        identity: InputIdentity,
        name: String,
        io: &Arc<Io>,
    ) -> Result<Box<dyn Evdev>> {
        let key = io.key();
        let fd = from.as_raw_fd();
        io.registry().register(&mut SourceFd(&fd), key.token(), Interest::READABLE).with_context(|| name.clone())?;
        let shared = Arc::<Shared>::default();
        let reader = Reader {
            from,
            io: io.clone(),
            key,
            shared: shared.clone(),
            name,
            down: BTreeSet::new(),
            lost: false,
            next: Vec::new(),
        };
        io.add(key, Box::new(reader));
        Ok(Box::new(Plug { to, io: io.clone(), key, identity, shared }))
    }
}

impl<W: Write + Send> Evdev for Plug<W> {
    fn identity(&self) -> InputIdentity {
        self.identity.clone()
    }

    fn attach(&mut self, to: Weak<DeviceCell>) {
        *self.shared.cell.lock().unwrap() = to;
    }

    fn want(&mut self, ready: bool) {
        if self.shared.full.swap(!ready, Ordering::AcqRel) && ready {
            self.io.ring(self.key);
        }
    }

    fn send(&mut self, event: InputEvent) {
        let [kind, code] = [event.kind, event.code].map(u16::to_ne_bytes);
        // A lamp that cannot be lit is no harm.
        let _ = self.to.write(&[&[0; TIME][..], &kind, &code, &event.value.to_ne_bytes()].concat());
    }
}

impl<W> Drop for Plug<W> {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::Release);
        self.io.ring(self.key);
    }
}

#[cfg(test)]
mod tests;
