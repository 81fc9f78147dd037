//! The file that keeps a console's output. When it has reached its size it becomes `NAME.0`, that one `NAME.1`, and so
//! on, as newsyslog(8) names them; the oldest goes.
//!
//! The process that runs a guest may not make files and rename them, so the broker does. A disk that is full stops no
//! guest: it is said once, the file goes on where it stopped as soon as there is room, and says what it lacks if that
//! came too late.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::ring::Ring;
use crate::broker;

/// How far a file may go beyond its size to end with a line.
const LINE: u64 = 4 << 10;
/// When a disk that was full is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Where a console's output is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSpec {
    /// The file.
    pub path: PathBuf,
    /// Bytes at which it is put aside.
    pub size: u64,
    /// How many older ones are kept.
    pub keep: u32,
}

impl LogSpec {
    /// The older files, the latest first.
    pub fn older(&self) -> Vec<PathBuf> {
        (0..self.keep).map(|n| PathBuf::from(format!("{}.{n}", self.path.display()))).collect()
    }
}

/// The log of a console: one more reader of its ring.
pub(super) struct Log {
    spec: LogSpec,
    file: File,
    /// Bytes in the file.
    size: u64,
    /// The size at which it is put aside: more than wanted after that has failed.
    limit: u64,
    /// How far it is in the ring.
    at: u64,
    /// Since when it cannot be written.
    failed: Option<Instant>,
}

impl Log {
    /// Opens the file, with what it holds kept.
    pub(super) fn open(spec: &LogSpec) -> Result<Log> {
        let spec = LogSpec { path: std::path::absolute(&spec.path)?, ..spec.clone() };
        let what = || format!("console log {}", spec.path.display());
        // A FIFO would not open before somebody reads it.
        if std::fs::metadata(&spec.path).is_ok_and(|m| !m.is_file()) {
            bail!("{}: it is no regular file", what());
        }
        for path in [&spec.path].into_iter().chain(&spec.older()) {
            broker::allow_output(path).with_context(what)?;
        }
        // What a guest prints is not for everybody.
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&spec.path).with_context(what)?;
        let size = file.metadata().with_context(what)?.len();
        Ok(Log { limit: spec.size, spec, file, size, at: 0, failed: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.spec.path
    }

    /// Writes what there is to write.
    pub(super) fn pump(&mut self, ring: &Ring) {
        if self.failed.is_some_and(|since| since.elapsed() < AGAIN) {
            return;
        }
        match self.write(ring) {
            Ok(()) if self.failed.take().is_some() => {
                tracing::warn!("console log {}: it can be written again", self.path().display());
            }
            Ok(()) => {}
            Err(e) => {
                if self.failed.replace(Instant::now()).is_none() {
                    tracing::warn!("console log {}: it cannot be written for now: {e}", self.path().display());
                }
            }
        }
    }

    fn write(&mut self, ring: &Ring) -> std::io::Result<()> {
        if self.at < ring.tail() {
            let gap = format!("\n[bhyve-rs: {} bytes are missing here]\n", ring.tail() - self.at);
            self.file.write_all(gap.as_bytes())?;
            self.size += gap.len() as u64;
            self.at = ring.tail();
        }
        while self.at < ring.head() {
            if self.size >= self.limit {
                self.rotate();
            }
            let bytes = ring.from(self.at);
            let room = usize::try_from(self.limit.saturating_sub(self.size)).unwrap_or(usize::MAX);
            let n = match bytes.get(room..) {
                None => bytes.len(),
                Some(rest) => {
                    let rest = &rest[..rest.len().min(LINE as usize)];
                    room + rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |end| end + 1)
                }
            };
            let n = self.file.write(&bytes[..n])?;
            self.at += n as u64;
            self.size += n as u64;
        }
        Ok(())
    }

    /// Puts the file aside and begins another.
    fn rotate(&mut self) {
        match self.begin_anew() {
            Ok(file) => (self.file, self.size, self.limit) = (file, 0, self.spec.size),
            Err(e) => {
                // It grows on, and is tried again when it has grown as much again.
                self.limit += self.spec.size;
                tracing::warn!("console log {}: it cannot be put aside: {e:#}", self.path().display());
            }
        }
    }

    fn begin_anew(&self) -> Result<File> {
        let names: Vec<PathBuf> = [self.spec.path.clone()].into_iter().chain(self.spec.older()).collect();
        for pair in names.windows(2).rev() {
            // The older ones need not be there.
            let renamed = broker::rename(&pair[0], &pair[1]);
            if pair[0] == self.spec.path {
                renamed?;
            }
        }
        broker::create(&self.spec.path)
    }

    /// Whether all is written, or cannot be.
    pub(super) fn is_done(&self, ring: &Ring) -> bool {
        self.failed.is_some() || self.at >= ring.head()
    }

    /// When a file that could not be written is tried again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.failed.map(|since| since + AGAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::Dir;

    #[test]
    fn a_file_that_is_full_is_put_aside_at_a_line_and_the_oldest_goes() {
        let dir = Dir::new();
        let spec = LogSpec { path: dir.0.join("com1.out"), size: 100, keep: 2 };
        let (mut log, mut ring) = (Log::open(&spec).unwrap(), Ring::default());
        let lines: Vec<String> = (0..100).map(|n| format!("line {n:04}\n")).collect();
        for line in &lines {
            ring.push(line.as_bytes());
            log.pump(&ring);
        }
        let read = |name: &str| std::fs::read_to_string(dir.0.join(name)).unwrap();
        let kept = read("com1.out.1") + &read("com1.out.0") + &read("com1.out");
        assert_eq!(kept, lines[lines.len() - kept.len() / 10..].concat(), "whole lines in order");
        assert!(read("com1.out.0").len() >= 100 && read("com1.out.0").len() <= 110);
        assert!(!dir.0.join("com1.out.2").exists());
        // What is there is continued.
        drop(log);
        std::fs::write(&spec.path, "half").unwrap();
        let mut ring = Ring::default();
        ring.push(b" a line\n");
        Log::open(&spec).unwrap().pump(&ring);
        assert_eq!(read("com1.out"), "half a line\n");
    }

    #[test]
    fn a_line_without_end_is_cut_and_no_file_is_kept_if_none_is_wanted() {
        let dir = Dir::new();
        let spec = LogSpec { path: dir.0.join("x"), size: 1000, keep: 0 };
        let (mut log, mut ring) = (Log::open(&spec).unwrap(), Ring::default());
        ring.push(&[b'x'; 20_000]);
        log.pump(&ring);
        let size = std::fs::metadata(&spec.path).unwrap().len();
        assert!(size <= 1000 + LINE, "{size}");
        assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 1);
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_written_later_or_counted() {
        let dir = Dir::new();
        let spec = LogSpec { path: dir.0.join("x"), size: 1 << 20, keep: 1 };
        let (mut log, mut ring) = (Log::open(&spec).unwrap(), Ring::default());
        let good = std::mem::replace(&mut log.file, OpenOptions::new().write(true).open("/dev/full").unwrap());
        ring.push(b"first");
        log.pump(&ring);
        assert!(log.failed.is_some() && log.is_done(&ring) && log.deadline().is_some());
        log.file = good;
        log.pump(&ring);
        assert_eq!(log.at, 0, "not before its time");
        log.failed = log.failed.map(|since| since - AGAIN);
        log.pump(&ring);
        assert_eq!(std::fs::read(&spec.path).unwrap(), b"first");
        ring.push(&vec![b'y'; super::super::ring::RING + 3]);
        log.pump(&ring);
        let text = std::fs::read_to_string(&spec.path).unwrap();
        assert!(text.starts_with("first\n[bhyve-rs: 3 bytes are missing here]\ny"), "{}", &text[..60]);
    }
}
