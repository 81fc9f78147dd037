//! A guest's console on the terminal that the program was started from.

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, Weak};

use emu::backend::Chardev;
use emu::{DeviceCell, Event};

use crate::io::Gate;

/// Bytes that may wait for a slow terminal before the guest's transmitter has to.
const BUFFER: usize = 64 << 10;

#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    /// The writer is inside write(2) with bytes that are no longer in `bytes`.
    writing: bool,
    /// The device was told that there is no room.
    full: bool,
    cell: Weak<DeviceCell>,
}

#[derive(Default)]
struct In {
    /// Bytes that the device can take.
    want: usize,
    cell: Weak<DeviceCell>,
}

#[derive(Default)]
struct Shared {
    out: Mutex<Out>,
    out_changed: Condvar,
    input: Mutex<In>,
    input_changed: Condvar,
}

/// Standard input and output. Output is written by a thread of its own, so that a terminal that is stopped does not stop
/// the machine before its buffer is full. The end of the input does not end anything.
pub struct Stdio {
    shared: Arc<Shared>,
    /// Wait for room instead of refusing bytes: what a guest sees must not depend on the host's speed.
    block: bool,
}

impl Stdio {
    /// Takes over standard output, and standard input if `input`.
    ///
    /// # Errors
    /// When the host has no threads for it.
    pub fn open(gate: &Arc<Gate>, input: bool, block: bool) -> std::io::Result<Stdio> {
        let shared: Arc<Shared> = Arc::default();
        let (s, g) = (shared.clone(), gate.clone());
        std::thread::Builder::new().name("stdout".to_owned()).spawn(move || write_out(&s, &g))?;
        if input {
            let (s, g) = (shared.clone(), gate.clone());
            std::thread::Builder::new().name("stdin".to_owned()).spawn(move || read_in(&s, &g))?;
        }
        Ok(Stdio { shared, block })
    }

    /// Waits until all that the guest wrote is out.
    pub fn flusher(&self) -> impl Fn() + Send + use<> {
        let shared = self.shared.clone();
        move || {
            let mut out = shared.out.lock().unwrap();
            while !out.bytes.is_empty() || out.writing {
                out = shared.out_changed.wait(out).unwrap();
            }
        }
    }
}

fn write_out(shared: &Shared, gate: &Gate) {
    let mut stdout = std::io::stdout();
    loop {
        let bytes = {
            let mut out = shared.out.lock().unwrap();
            while out.bytes.is_empty() {
                out = shared.out_changed.wait(out).unwrap();
            }
            out.writing = true;
            std::mem::take(&mut out.bytes)
        };
        // A closed terminal is no reason to stop a guest.
        let _ = stdout.write_all(&bytes).and_then(|()| stdout.flush());
        let mut out = shared.out.lock().unwrap();
        out.writing = false;
        let waiting = std::mem::take(&mut out.full);
        let cell = out.cell.clone();
        drop(out);
        shared.out_changed.notify_all();
        if waiting && let Some(cell) = cell.upgrade() {
            gate.pass(|| cell.event(Event::CharsReady));
        }
    }
}

fn read_in(shared: &Shared, gate: &Gate) {
    let mut stdin = std::io::stdin();
    let mut buf = [0; 256];
    loop {
        let n = match stdin.read(&mut buf) {
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        let mut sent = 0;
        while sent < n {
            let (count, cell) = {
                let mut input = shared.input.lock().unwrap();
                while input.want == 0 {
                    input = shared.input_changed.wait(input).unwrap();
                }
                let count = input.want.min(n - sent);
                input.want -= count;
                (count, input.cell.clone())
            };
            let Some(cell) = cell.upgrade() else { return };
            let bytes = buf[sent..sent + count].to_vec();
            gate.pass(|| cell.event(Event::Chars(bytes)));
            sent += count;
        }
    }
}

impl Chardev for Stdio {
    fn write(&mut self, data: &[u8]) -> usize {
        let mut out = self.shared.out.lock().unwrap();
        while self.block && out.bytes.len() >= BUFFER {
            out = self.shared.out_changed.wait(out).unwrap();
        }
        let n = if self.block { data.len() } else { data.len().min(BUFFER - out.bytes.len().min(BUFFER)) };
        out.full |= n < data.len();
        out.bytes.extend_from_slice(&data[..n]);
        drop(out);
        self.shared.out_changed.notify_all();
        n
    }

    fn attach(&mut self, to: Weak<DeviceCell>) {
        self.shared.out.lock().unwrap().cell = to.clone();
        self.shared.input.lock().unwrap().cell = to;
    }

    fn want(&mut self, bytes: usize) {
        self.shared.input.lock().unwrap().want = bytes;
        self.shared.input_changed.notify_all();
    }
}
