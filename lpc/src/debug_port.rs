//! Debug console ports: 402, where SeaBIOS and OVMF write their log, and E9, Bochs's.
//!
//! Each takes bytes and reads back E9, by which firmware knows that somebody listens (QEMU's debugcon, Bochs's port E9
//! hack). Lines of the two ports are collected apart and go to one sink, whole.

use emu::{Device, ResetKind, Slot, State, Widths};
use serde::{Deserialize, Serialize};

/// What the ports read as.
const PRESENT: u64 = 0xe9;
/// Where they are; the region's number is the index.
const PORTS: [u16; 2] = [0x402, 0xe9];
/// Bytes after which a line is broken.
const LONGEST: usize = 256;

/// The beginnings of lines.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Lines([String; 2]);

/// Both ports.
pub struct DebugPorts {
    lines: Lines,
    sink: Box<dyn FnMut(&str) + Send>,
}

impl DebugPorts {
    /// Puts the ports in; `sink` gets each line without its end. It runs under the device lock.
    pub fn create(slot: &mut Slot, sink: Box<dyn FnMut(&str) + Send>) -> Box<dyn Device> {
        for (n, port) in PORTS.into_iter().enumerate() {
            slot.ports(n as u32, port, 1, Widths::BYTE);
        }
        Box::new(DebugPorts { lines: Lines::default(), sink })
    }

    fn flush(&mut self, n: usize) {
        (self.sink)(&self.lines.0[n]);
        self.lines.0[n].clear();
    }
}

impl Device for DebugPorts {
    fn read(&mut self, _region: u32, _offset: u64, _width: u8) -> u64 {
        PRESENT
    }

    fn write(&mut self, region: u32, _offset: u64, _width: u8, value: u64) {
        let n = region as usize;
        match value as u8 {
            b'\n' => self.flush(n),
            b'\r' => {}
            byte => {
                // The log ends up on somebody's terminal: what is not plain text must not drive it.
                let plain = byte == b'\t' || (0x20..0x7f).contains(&byte);
                self.lines.0[n].push(if plain { byte.into() } else { '.' });
                if self.lines.0[n].len() >= LONGEST {
                    self.flush(n);
                }
            }
        }
    }

    fn reset(&mut self, _: ResetKind) {
        // The last words before a reset are often the interesting ones.
        for n in 0..PORTS.len() {
            if !self.lines.0[n].is_empty() {
                self.flush(n);
            }
        }
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::bench::Bench;
    use std::sync::{Arc, Mutex};

    type Log = Arc<Mutex<Vec<String>>>;

    fn rig() -> (Bench, Log) {
        let (bench, log) = (Bench::new(), Log::default());
        let to = log.clone();
        bench.part(|s| DebugPorts::create(s, Box::new(move |line| to.lock().unwrap().push(line.to_owned()))));
        (bench, log)
    }

    fn say(b: &mut Bench, port: u16, text: &[u8]) {
        b.bus.pio_write_many(port, 1, text);
    }

    #[test]
    fn whole_lines_come_out_and_the_ports_do_not_mix() {
        let (mut b, log) = rig();
        say(&mut b, 0x402, b"SeaBIOS (ver");
        say(&mut b, 0xe9, b"bochs\r\n");
        assert_eq!(*log.lock().unwrap(), ["bochs"]);
        say(&mut b, 0x402, b"sion 1)\n\n");
        assert_eq!(*log.lock().unwrap(), ["bochs", "SeaBIOS (version 1)", ""]);
        assert_eq!((b.inb(0x402), b.inb(0xe9)), (0xe9, 0xe9));
    }

    #[test]
    fn a_line_without_end_is_broken_and_escapes_are_taken_out() {
        let (mut b, log) = rig();
        say(&mut b, 0xe9, &[b'x'; 1000]);
        assert_eq!(log.lock().unwrap().iter().map(String::len).collect::<Vec<_>>(), [256, 256, 256]);
        say(&mut b, 0x402, b"\x1b[2J\xff\tok\n");
        assert_eq!(log.lock().unwrap().last().unwrap(), ".[2J.\tok");
    }

    #[test]
    fn reset_lets_the_last_words_out() {
        let (mut b, log) = rig();
        say(&mut b, 0x402, b"panic");
        b.machine.reset(ResetKind::System);
        b.machine.reset(ResetKind::System);
        assert_eq!(*log.lock().unwrap(), ["panic"]);
    }
}
