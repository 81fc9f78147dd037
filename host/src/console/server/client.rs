//! Somebody who looks at a console.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::net::UnixStream;

use super::ring::{RING, Ring};
use crate::keyboard::Decoder;
use crate::screen::Canvas;

/// How long a guest waits for a reader that takes nothing.
const STALL: Duration = Duration::from_secs(1);

/// What the guest did not write, so that everybody sees that.
fn notice(text: &str) -> Vec<u8> {
    format!("\r\n[bhyve-rs: {text}]\r\n").into_bytes()
}

pub(super) struct Client {
    pub(super) id: usize,
    stream: UnixStream,
    /// Where it is in the output.
    pub(super) at: u64,
    /// Where its output ends, if it is not to have more.
    until: Option<u64>,
    /// What it is sent first.
    notices: Vec<u8>,
    /// Bytes that were too old when it came to them, and that it has not been told of.
    missed: u64,
    /// Since when it takes nothing.
    blocked: Option<Instant>,
    /// Nobody waits for it.
    pub(super) stalled: bool,
    /// It never writes.
    pub(super) readonly: bool,
    /// It has been told that it does not write.
    warned: bool,
    /// It says nothing more.
    pub(super) at_end: bool,
    /// It is there no more.
    pub(super) gone: bool,
    /// Of a screen: what its terminal shows, the size of that, and what its keys mean.
    pub(super) canvas: Canvas,
    pub(super) size: (usize, usize),
    pub(super) decoder: Decoder,
}

impl Client {
    pub(super) fn new(id: usize, stream: UnixStream, at: u64, until: Option<u64>) -> Client {
        Client {
            id,
            stream,
            at,
            until,
            notices: Vec::new(),
            missed: 0,
            blocked: None,
            stalled: false,
            readonly: false,
            warned: false,
            at_end: false,
            gone: false,
            canvas: Canvas::default(),
            size: (80, 25),
            decoder: Decoder::default(),
        }
    }

    /// Sends it something that the guest did not write.
    pub(super) fn tell(&mut self, text: &str) {
        self.notices.extend(notice(text));
    }

    /// Sends it bytes as they are.
    pub(super) fn show(&mut self, bytes: &[u8]) {
        self.notices.extend(bytes);
    }

    /// Whether all that it was shown has gone to it.
    pub(super) fn has_room(&self) -> bool {
        self.notices.is_empty()
    }

    /// Sends what there is to send. Returns whether something went.
    pub(super) fn pump(&mut self, ring: &Ring) -> bool {
        let mut went = false;
        while !self.gone {
            if self.at < ring.tail() {
                self.missed += ring.tail() - self.at;
                self.at = ring.tail();
            }
            // How much that is in the end is known when it takes something again.
            let gap = match self.missed {
                0 => Vec::new(),
                missed => notice(&format!("{missed} bytes are missing here")),
            };
            let own = if self.notices.is_empty() { &gap } else { &self.notices };
            let bytes = if own.is_empty() { ring.from(self.at) } else { own };
            let left = self.until.map_or(u64::MAX, |end| end.saturating_sub(self.at));
            let bytes = match usize::try_from(left) {
                Ok(left) if own.is_empty() => &bytes[..bytes.len().min(left)],
                _ => bytes,
            };
            if bytes.is_empty() {
                self.blocked = None;
                self.gone = self.until.is_some();
                break;
            }
            match self.stream.write(bytes) {
                Ok(n) => {
                    (went, self.stalled, self.blocked) = (true, false, None);
                    if !self.notices.is_empty() {
                        self.notices.drain(..n);
                    } else if !gap.is_empty() {
                        self.missed = 0;
                        self.notices = gap[n..].to_vec();
                    } else {
                        self.at += n as u64;
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.blocked.get_or_insert_with(Instant::now);
                    break;
                }
                Err(_) => self.gone = true,
            }
        }
        went
    }

    /// Whether a full ring waits for it.
    pub(super) fn holds(&self, ring: &Ring) -> bool {
        !self.stalled && ring.head() - self.at.min(ring.head()) >= RING as u64
    }

    /// When it will be given up, if it holds anything up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.blocked.map(|since| since + STALL)
    }

    /// Whether it has all, or takes nothing.
    pub(super) fn is_done(&self, ring: &Ring) -> bool {
        self.stalled
            || self.deadline().is_some_and(|end| end <= Instant::now())
            || self.notices.is_empty() && self.missed == 0 && self.at >= ring.head()
    }

    /// Reads what it has typed, at most so much. `None` when there is nothing now.
    pub(super) fn typed(&mut self, buf: &mut [u8]) -> Option<usize> {
        while !self.at_end && !self.gone && !buf.is_empty() {
            match self.stream.read(buf) {
                Ok(0) => self.at_end = true,
                Ok(n) => return Some(n),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(_) => self.at_end = true,
            }
        }
        None
    }

    /// It types in vain; it is told so once.
    pub(super) fn warn(&mut self) {
        if !std::mem::replace(&mut self.warned, true) {
            self.tell(match self.readonly {
                true => "you came to read only; what you type goes nowhere",
                false => "another client writes; what you type goes nowhere",
            });
        }
    }

    /// It may be told so again.
    pub(super) fn reads(&mut self) {
        self.warned = false;
    }
}
