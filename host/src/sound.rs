//! Where a sound card plays to, and records from: WAV files, and OSS, which FreeBSD has and Linux imitates.
//!
//! All is opened before the sandbox is entered.

mod oss;
mod wav;

use std::fs::{File, OpenOptions};
use std::path::Path;

use anyhow::{Context, Result};
use emu::backend::{Capture, Frame, Playback};

use oss::Oss;
use wav::{WavCapture, WavPlayback};

/// What a file's name ends with that is no device.
fn is_wav(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("wav"))
}

/// Opens what is played into: a WAV file by the end of its name, which is made anew, or else a device.
///
/// # Errors
/// It cannot be written, or is no sound device.
pub fn playback(path: &Path) -> Result<Box<dyn Playback>> {
    let name = || path.display().to_string();
    if is_wav(path) {
        let file = File::create(path).with_context(name)?;
        return Ok(Box::new(WavPlayback::new(file, name())));
    }
    Ok(Box::new(Oss::open(path, OpenOptions::new().write(true)).with_context(name)?))
}

/// Opens what is recorded: a WAV file by the end of its name, or else a device.
///
/// # Errors
/// It cannot be read, is no WAV file of linear samples of 8, 16, 24 or 32 bits, or no sound device.
pub fn capture(path: &Path) -> Result<Box<dyn Capture>> {
    let name = || path.display().to_string();
    if is_wav(path) {
        let wav = File::open(path).and_then(|file| WavCapture::new(file, name())).with_context(name)?;
        return Ok(Box::new(wav));
    }
    Ok(Box::new(Oss::open(path, OpenOptions::new().read(true)).with_context(name)?))
}

/// Nothing: what is played is lost, and what is recorded is silence.
pub struct Nowhere;

impl Playback for Nowhere {
    fn open(&mut self, _: u32) {}
    fn write(&mut self, _: &[Frame]) {}
    fn close(&mut self) {}
}

impl Capture for Nowhere {
    fn open(&mut self, _: u32) {}
    fn read(&mut self, frames: &mut [Frame]) {
        frames.fill([0; 2]);
    }
    fn close(&mut self) {}
}
