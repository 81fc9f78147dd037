//! Drives as people see them who stand before a machine: what is in them can be changed while it runs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use emu::{DeviceCell, Event};
use host::disk::{DiskControl, Image, ImageOptions};

/// A drive of a machine.
pub struct Drive {
    /// Its section and its number there: `cd0`.
    pub name: String,
    /// How images for it are opened.
    pub options: ImageOptions,
    /// Its medium.
    pub control: DiskControl,
    /// Who hears of a change, and by which number it knows the drive.
    pub listeners: Vec<(Arc<DeviceCell>, usize)>,
}

/// What is to be changed: a drive, and an image for it or nothing.
pub struct Change {
    /// The drive's name.
    pub drive: String,
    /// What goes in.
    pub path: Option<PathBuf>,
    /// The file there, if it came along.
    pub file: Option<File>,
    /// Whatever the guest thinks of it.
    pub force: bool,
}

/// The drives of a machine.
#[derive(Default)]
pub struct Media(pub Vec<Drive>);

impl Media {
    /// Opens what is to go in, if it can.
    ///
    /// # Errors
    /// For the user.
    pub fn open(&self, change: &mut Change) -> Result<Image, String> {
        let drive = self.find(change)?;
        match &change.path {
            Some(path) => Image::lent(path, change.file.take(), drive.options).map_err(|e| format!("{e:#}")),
            None => Ok(Image::empty(&drive.name)),
        }
    }

    fn find(&self, change: &Change) -> Result<&Drive, String> {
        let removable = |d: &&Drive| !d.name.starts_with("disk");
        let names = || self.0.iter().filter(removable).map(|d| d.name.as_str()).collect::<Vec<_>>().join(", ");
        let drive = self.0.iter().filter(removable).find(|drive| drive.name == change.drive);
        let drive = drive.ok_or_else(|| format!("there is no drive {:?}; there are: {}", change.drive, names()))?;
        if drive.control.locked() && !change.force {
            return Err(format!("the guest has locked {}; --force takes the medium out all the same", drive.name));
        }
        Ok(drive)
    }

    /// Changes the medium. What comes back tells the guest, once the machine runs.
    ///
    /// # Errors
    /// For the user.
    pub fn change(&self, change: &Change, image: Image) -> Result<impl FnOnce() + Send + use<>, String> {
        let drive = self.find(change)?;
        drive.control.change(image)?;
        let listeners = drive.listeners.clone();
        Ok(move || listeners.into_iter().for_each(|(cell, unit)| cell.event(Event::Medium(unit))))
    }

    /// Has somebody hear of changes who knows the drives by their order.
    pub fn tell(&mut self, cell: &Arc<DeviceCell>) {
        self.0.iter_mut().enumerate().for_each(|(n, drive)| drive.listeners.push((cell.clone(), n)));
    }

    /// Has `tell` called when a request waits for the host, and the machine is to be paused.
    pub fn on_stall(&self, tell: impl Fn() + Clone + Send + 'static) {
        self.0.iter().for_each(|drive| drive.control.on_stall(tell.clone()));
    }

    /// The machine goes on: what waits for the host is tried again.
    pub fn retry(&self) {
        self.0.iter().for_each(|drive| drive.control.retry());
    }
}

/// A path as the machine's process has to see it.
///
/// # Errors
/// When there is no such file.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    use anyhow::Context;
    path.canonicalize().with_context(|| path.display().to_string())
}
