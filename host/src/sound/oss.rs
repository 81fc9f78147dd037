//! A sound device by OSS: `/dev/dspN` of FreeBSD, and of Linux with its emulation.
//!
//! Open Sound System 4.x, Programmer's Guide. It is asked for two channels of 16 bits and the guest's rate; what it cannot
//! do at that rate is lost. Nothing waits: a full device drops frames, an empty one has silence.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use emu::backend::{Capture, Frame, Playback};

/// Those but the last are made after the sandbox was entered, which knows them.
mod ioctl {
    nix::ioctl_none!(reset, b'P', 0);
    nix::ioctl_readwrite!(speed, b'P', 2, i32);
    nix::ioctl_readwrite!(set_format, b'P', 5, i32);
    nix::ioctl_readwrite!(channels, b'P', 6, i32);
    nix::ioctl_readwrite!(set_fragment, b'P', 10, i32);
}

/// AFMT_S16_LE.
const S16_LE: i32 = 0x10;
/// Eight fragments of 2 KiB: 85 ms of a CD's sound.
const FRAGMENTS: i32 = 8 << 16 | 11;
/// The rate by which a device is tried when it is opened.
const USUAL: u32 = 48000;
/// Frames in a second over those of silence that a device is given before what is played, as a cushion: 40 ms. What comes
/// late comes whole, so that the cushion is there again after a device has run dry.
const CUSHION: u32 = 25;
/// Bytes of a frame.
const FRAME: usize = size_of::<Frame>();

/// A device that is open, for one direction.
pub(super) struct Oss {
    file: File,
    name: String,
    /// A stream runs that the device takes.
    runs: bool,
    /// A rate was refused, and the log has it.
    told: bool,
}

impl Oss {
    /// Opens the device at `path` in the direction of `options`.
    ///
    /// # Errors
    /// There is none, it is busy, or it does not know our format.
    pub fn open(path: &Path, options: &mut OpenOptions) -> Result<Oss> {
        let file = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
        let oss = Oss { file, name: path.display().to_string(), runs: false, told: false };
        let mut fragments = FRAGMENTS;
        // SAFETY: the descriptor is open, and the request has a number to read and write.
        #[expect(unsafe_code, reason = "ioctl(2)")]
        unsafe { ioctl::set_fragment(oss.file.as_raw_fd(), &raw mut fragments) }
            .map_err(|e| anyhow!("it is neither a sound device nor a file whose name ends in .wav ({e})"))?;
        oss.set(USUAL)?;
        Ok(oss)
    }

    fn set(&self, rate: u32) -> Result<()> {
        let fd = self.file.as_raw_fd();
        let (mut format, mut channels, mut speed) = (S16_LE, 2, rate.cast_signed());
        // SAFETY: the descriptor is open, and the requests have a number each to read and write.
        #[expect(unsafe_code, reason = "ioctl(2)")]
        unsafe {
            ioctl::reset(fd)?;
            ioctl::set_format(fd, &raw mut format)?;
            ioctl::channels(fd, &raw mut channels)?;
            ioctl::speed(fd, &raw mut speed)?;
        }
        // Devices may come close to a rate.
        let near = speed.cast_unsigned().abs_diff(rate) <= rate / 50;
        ensure!((format, channels) == (S16_LE, 2) && near, "it cannot do {rate} frames a second of two 16-bit samples");
        Ok(())
    }

    fn begin(&mut self, rate: u32) {
        let result = self.set(rate);
        self.runs = result.is_ok();
        if let Err(e) = result.as_ref().map_err(|e| e.to_string())
            && !std::mem::replace(&mut self.told, true)
        {
            tracing::warn!("{}: {e}; such sound is lost", self.name);
        }
    }

    fn end(&mut self) {
        self.runs = false;
    }
}

impl Playback for Oss {
    fn open(&mut self, rate: u32) {
        self.begin(rate);
        self.write(&vec![Frame::default(); (rate / CUSHION) as usize]);
    }

    fn write(&mut self, frames: &[Frame]) {
        if self.runs {
            let bytes: Vec<u8> = frames.as_flattened().iter().flat_map(|sample| sample.to_le_bytes()).collect();
            // It takes whole frames, and no more than it has room for.
            let _ = self.file.write(&bytes);
        }
    }

    fn close(&mut self) {
        self.end();
    }
}

impl Capture for Oss {
    fn open(&mut self, rate: u32) {
        self.begin(rate);
    }

    fn read(&mut self, frames: &mut [Frame]) {
        let mut bytes = vec![0; frames.len() * FRAME];
        if self.runs {
            let _ = self.file.read(&mut bytes);
        }
        for (frame, [a, b, c, d]) in frames.iter_mut().zip(bytes.as_chunks::<FRAME>().0) {
            *frame = [i16::from_le_bytes([*a, *b]), i16::from_le_bytes([*c, *d])];
        }
    }

    fn close(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_sound_device_is_refused() {
        let error = Oss::open(Path::new("/dev/null"), OpenOptions::new().write(true)).err().expect("it is none");
        assert!(error.to_string().starts_with("it is neither a sound device nor a file"), "{error}");
        assert!(Oss::open(Path::new("/dev/nonexistent"), OpenOptions::new().read(true)).is_err());
    }
}
