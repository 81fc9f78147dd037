//! WAV files (RIFF, WAVE with a chunk for the format of linear samples).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use emu::backend::{Capture, Frame, Playback};

#[cfg(test)]
mod tests;

/// Bytes before the samples.
const HEADER: u64 = 44;
/// Bytes of a frame that is written.
const FRAME: usize = size_of::<Frame>();
/// Bytes of samples that the 32-bit size of the RIFF chunk can count.
const MOST: u64 = u32::MAX as u64 - HEADER;
/// Bytes that are written in one go: 85 ms at 48 kHz. They go to the host's page cache, from the thread that
/// moves the card's streams; that is cheaper than to wake up another.
const BATCH: usize = 16 << 10;

/// A file that gets what is played: 16 bits, two channels, and the rate of the first stream. Streams of another rate are
/// left out, and the log says so once.
///
/// The samples are written before the header that counts them, so that the file is whole at any moment: a process that
/// is killed leaves one that ends a few milliseconds earlier. A full file (4 GB, or no space) takes no more.
pub(super) struct WavPlayback {
    file: File,
    name: String,
    /// The file's rate, once there was a stream.
    rate: Option<u32>,
    /// Bytes of samples in the file.
    length: u64,
    /// What is not in the file yet.
    waiting: Vec<u8>,
    /// The stream that runs is one for the file.
    takes: bool,
    /// It was said that something is left out.
    told: bool,
}

impl WavPlayback {
    /// Plays into `file`, which is empty and open for writing.
    pub fn new(file: File, name: String) -> Self {
        Self { file, name, rate: None, length: 0, waiting: Vec::new(), takes: false, told: false }
    }

    fn header(&self, rate: u32) -> io::Result<()> {
        let mut header = [0; HEADER as usize];
        header[..4].copy_from_slice(b"RIFF");
        header[4..8].copy_from_slice(&((HEADER - 8 + self.length) as u32).to_le_bytes());
        header[8..16].copy_from_slice(b"WAVEfmt ");
        header[16..20].copy_from_slice(&16u32.to_le_bytes());
        // PCM, two channels.
        header[20..24].copy_from_slice(&[1, 0, 2, 0]);
        header[24..28].copy_from_slice(&rate.to_le_bytes());
        header[28..32].copy_from_slice(&rate.saturating_mul(FRAME as u32).to_le_bytes());
        // Bytes of a frame, bits of a sample.
        header[32..36].copy_from_slice(&[FRAME as u8, 0, 16, 0]);
        header[36..40].copy_from_slice(b"data");
        header[40..44].copy_from_slice(&(self.length as u32).to_le_bytes());
        self.file.write_all_at(&header, 0)
    }

    /// Writes what waits.
    fn flush(&mut self) {
        let Some(rate) = self.rate else { return };
        let waiting = std::mem::take(&mut self.waiting);
        let length = self.length + waiting.len() as u64;
        let result = if length > MOST {
            Err(io::ErrorKind::FileTooLarge.into())
        } else {
            self.file.write_all_at(&waiting, HEADER + self.length).and_then(|()| {
                self.length = length;
                self.header(rate)
            })
        };
        if let Err(e) = result {
            self.tell(&format!("{e}; what follows is not recorded"));
            self.takes = false;
        }
    }

    fn tell(&mut self, what: &str) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!("{}: {what}", self.name);
        }
    }
}

impl Playback for WavPlayback {
    fn open(&mut self, rate: u32) {
        let first = *self.rate.get_or_insert(rate);
        self.takes = first == rate;
        if !self.takes {
            self.tell(&format!("it has {first} frames a second, sound of {rate} is not recorded"));
        }
    }

    fn write(&mut self, frames: &[Frame]) {
        if self.takes {
            self.waiting.extend(frames.as_flattened().iter().flat_map(|sample| sample.to_le_bytes()));
            if self.waiting.len() >= BATCH {
                self.flush();
            }
        }
    }

    fn close(&mut self) {
        if self.takes {
            self.flush();
        }
        self.takes = false;
    }
}

impl Drop for WavPlayback {
    fn drop(&mut self) {
        self.close();
    }
}

/// How a WAV file holds its samples.
#[derive(Clone, Copy)]
struct Format {
    rate: u32,
    channels: usize,
    /// Bytes of a sample. Those of one byte have no sign.
    size: usize,
}

impl Format {
    /// Of the first bytes of a format chunk.
    fn new(chunk: &[u8; 26]) -> Result<Format, &'static str> {
        let word = |at: usize| u16::from_le_bytes([chunk[at], chunk[at + 1]]);
        // WAVE_FORMAT_EXTENSIBLE says it further behind.
        let kind = if word(0) == 0xfffe { word(24) } else { word(0) };
        let rate = u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]);
        let (channels, bits) = (usize::from(word(2)), usize::from(word(14)));
        if kind != 1 || !matches!(bits, 8 | 16 | 24 | 32) {
            return Err("its samples are not linear ones of 8, 16, 24 or 32 bits");
        }
        if !(1..=16).contains(&channels) || usize::from(word(12)) != channels * bits / 8 {
            return Err("its frames are not of 1 to 16 such samples");
        }
        Ok(Format { rate, channels, size: bits / 8 })
    }

    fn frame(self) -> usize {
        self.channels * self.size
    }

    /// Left and right: the first two channels, or the only one.
    fn get(self, frame: &[u8]) -> Frame {
        [0, 1.min(self.channels - 1)].map(|channel| {
            let sample = &frame[channel * self.size..(channel + 1) * self.size];
            match *sample {
                [byte] => i16::from(byte.wrapping_sub(0x80).cast_signed()) << 8,
                [.., low, high] => i16::from_le_bytes([low, high]),
                [] => 0,
            }
        })
    }
}

/// A file that is recorded from, once: silence follows. A stream of another rate than the file's hears silence, and the
/// log says so once.
pub(super) struct WavCapture {
    file: File,
    name: String,
    format: Format,
    /// Where the rest of the samples lies.
    rest: Range<u64>,
    /// The stream that runs is one for the file.
    gives: bool,
    told: bool,
}

impl WavCapture {
    /// Records from `file`.
    ///
    /// # Errors
    /// It cannot be read, or is no WAV file of linear samples of 8, 16, 24 or 32 bits.
    pub fn new(file: File, name: String) -> io::Result<Self> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("no WAV file: {what}"));
        let end = file.metadata()?.len();
        let mut head = [0; 12];
        if end < 12 {
            return Err(bad("it is too short"));
        }
        file.read_exact_at(&mut head, 0)?;
        if &head[..4] != b"RIFF" || &head[8..] != b"WAVE" {
            return Err(bad("it does not begin with RIFF and WAVE"));
        }
        let (mut at, mut format) = (12, None);
        while at + 8 <= end {
            let mut chunk = [0; 8];
            file.read_exact_at(&mut chunk, at)?;
            let size = u64::from(u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]));
            at += 8;
            match &chunk[..4] {
                b"fmt " => {
                    let mut chunk = [0; 26];
                    let there = size.min(26) as usize;
                    if there < 16 || at + there as u64 > end {
                        return Err(bad("its format is cut off"));
                    }
                    file.read_exact_at(&mut chunk[..there], at)?;
                    format = Some(Format::new(&chunk).map_err(bad)?);
                }
                b"data" => {
                    let format = format.ok_or_else(|| bad("the samples come before their format"))?;
                    let rest = at..(at + size).min(end);
                    return Ok(Self { file, name, format, rest, gives: false, told: false });
                }
                _ => {}
            }
            at += size + size % 2;
        }
        Err(bad("it has no samples"))
    }
}

impl Capture for WavCapture {
    fn open(&mut self, rate: u32) {
        self.gives = self.format.rate == rate;
        if !self.gives && !std::mem::replace(&mut self.told, true) {
            let (name, file) = (&self.name, self.format.rate);
            tracing::warn!("{name}: it has {file} frames a second, who records {rate} hears silence");
        }
    }

    fn read(&mut self, frames: &mut [Frame]) {
        frames.fill([0; 2]);
        let frame = self.format.frame();
        let left = self.rest.end.saturating_sub(self.rest.start) / frame as u64;
        let mut bytes = vec![0; left.min(frames.len() as u64) as usize * frame];
        if self.gives && self.file.read_exact_at(&mut bytes, self.rest.start).is_ok() {
            self.rest.start += bytes.len() as u64;
            for (frame, bytes) in frames.iter_mut().zip(bytes.chunks_exact(frame)) {
                *frame = self.format.get(bytes);
            }
        }
    }

    fn close(&mut self) {
        self.gives = false;
    }
}
