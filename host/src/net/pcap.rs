//! Frames into a file of the format that tcpdump(1) reads, on a thread of its own: neither a processor nor the io thread
//! waits for a disk.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

/// Frames that may wait for the disk.
const WAITING: usize = 1024;
/// The longest frame that a reader has to expect; longer ones are cut off.
const LONGEST: u32 = 64 << 10;
/// The number that says: microseconds, in this machine's byte order.
const MAGIC: u32 = 0xa1b2_c3d4;
/// Its version, 2.4.
const VERSION: u32 = 2 | 4 << 16;
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;

/// A capture under way. It ends when this is dropped, and then the file is whole.
pub struct Capture {
    frames: Option<SyncSender<(SystemTime, Vec<u8>)>>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

/// What has become of a capture.
#[derive(Default)]
struct Counts {
    written: AtomicU64,
    lost: AtomicU64,
    error: Mutex<Option<io::Error>>,
}

impl Capture {
    /// Writes to a file, whose contents go.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn start(mut file: File) -> io::Result<Capture> {
        let header = [MAGIC, VERSION, 0, 0, LONGEST, ETHERNET];
        file.set_len(0)?;
        file.write_all(&header.map(u32::to_ne_bytes).concat())?;
        let (frames, incoming) = sync_channel(WAITING);
        let counts = Arc::new(Counts::default());
        let its = counts.clone();
        let thread = std::thread::Builder::new().name("capture".to_owned()).spawn(move || {
            if let Err(e) = write(BufWriter::new(file), &incoming, &its) {
                tracing::warn!("a capture of frames ends: {e}");
                *its.error.lock().unwrap() = Some(e);
            }
        })?;
        Ok(Capture { frames: Some(frames), counts, thread: Some(thread) })
    }

    /// Takes a frame, unless the disk is too slow.
    pub fn take(&self, frame: &[u8]) {
        let Some(frames) = &self.frames else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            frames.try_send((SystemTime::now(), frame.to_vec()))
        {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends the capture, and says how many frames are in the file and how many it lacks.
    ///
    /// # Errors
    /// What kept the file from being written.
    pub fn stop(mut self) -> io::Result<(u64, u64)> {
        self.end();
        match self.counts.error.lock().unwrap().take() {
            Some(e) => Err(e),
            None => Ok((self.counts.written.load(Ordering::Relaxed), self.counts.lost.load(Ordering::Relaxed))),
        }
    }

    fn end(&mut self) {
        self.frames = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

fn write(mut file: BufWriter<File>, frames: &Receiver<(SystemTime, Vec<u8>)>, counts: &Counts) -> io::Result<()> {
    loop {
        let next = match frames.try_recv() {
            Err(TryRecvError::Empty) => {
                // Whoever looks at the file while it grows sees all that came.
                file.flush()?;
                frames.recv().ok()
            }
            next => next.ok(),
        };
        let Some((time, frame)) = next else { return file.flush() };
        let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let kept = &frame[..frame.len().min(LONGEST as usize)];
        let header = [time.as_secs() as u32, time.subsec_micros(), kept.len() as u32, frame.len() as u32];
        file.write_all(&header.map(u32::to_ne_bytes).concat())?;
        file.write_all(kept)?;
        counts.written.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn frames_stand_in_the_file_in_order_with_their_lengths() {
        let mut file = crate::disk::temporary().unwrap();
        let capture = Capture::start(file.try_clone().unwrap()).unwrap();
        capture.take(&[1; 60]);
        capture.take(&[2; 1514]);
        assert_eq!(capture.stop().unwrap(), (2, 0));
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(16), word(20)), (0xa1b2_c3d4, 65536, 1));
        assert_eq!((bytes[4], bytes[6]), (2, 4));
        assert_eq!((word(32), word(36), &bytes[40..100]), (60, 60, &[1; 60][..]));
        assert_eq!((word(108), word(112), &bytes[116..]), (1514, 1514, &[2; 1514][..]));
    }

    #[test]
    fn a_file_that_takes_nothing_is_an_error_of_the_end() {
        let full = File::options().write(true).open("/dev/full");
        let Ok(full) = full else { return };
        assert!(Capture::start(full).is_err());
    }
}
