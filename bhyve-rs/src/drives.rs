//! Disks and CD-ROM drives: from `[[disk]]` and `[[cd]]` to the places on a controller.

use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use cfg::{Error, Node, Problem};
use emu::backend::Disk;
use emu::{Ram, Unit};
use host::disk::{Image, ImageOptions};

use crate::board;

/// Places on the IDE controller.
const PLACES: usize = 4;
/// Where disks go, and where CD-ROM drives go: to a cable of their own while there is room.
const DISK_ORDER: [usize; PLACES] = [0, 1, 2, 3];
const CD_ORDER: [usize; PLACES] = [2, 3, 1, 0];

/// What hangs on the IDE controller: primary master and slave, secondary master and slave.
#[derive(Default)]
pub struct Drives {
    /// The kinds of drives.
    pub units: [Unit; PLACES],
    /// What is in them.
    pub images: [Option<Image>; PLACES],
}

impl Drives {
    /// Puts a drive at the first free place of `order`.
    fn put(&mut self, order: [usize; PLACES], unit: Unit, image: Option<Image>) {
        if let Some(at) = order.into_iter().find(|at| self.units[*at] == Unit::None) {
            (self.units[at], self.images[at]) = (unit, image);
        }
    }

    /// Adds a disk.
    pub fn disk(&mut self, image: Image) {
        self.put(DISK_ORDER, Unit::Disk, Some(image));
    }

    /// Makes back ends of the images, for the controller to take in the order of its units.
    ///
    /// # Errors
    /// When the host has no threads for them.
    pub fn attach(self, ram: &Arc<Ram>) -> Result<Vec<Option<Box<dyn Disk>>>> {
        self.images.into_iter().map(|image| image.map(|i| i.attach(ram)).transpose()).collect()
    }
}

/// What drives there are and how large what is in them, in a line.
impl fmt::Display for Drives {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.units.iter().zip(&self.images).try_for_each(|(unit, image)| match image {
            Some(image) => write!(f, "[{unit:?} {}]", image.size()),
            None => write!(f, "[{unit:?}]"),
        })
    }
}

/// What this version cannot do.
pub fn check(node: &Node, board: board::Kind) -> Vec<Error> {
    let say = |message: &str, allowed: &str| Problem::new(message).allowed(allowed);
    let mut errors = Vec::new();
    for disk in node.children("disk") {
        if !matches!(disk.text("format"), "auto" | "raw") {
            errors.push(disk.error("format", say("this version reads raw images only", "auto, raw")));
        }
        if disk.text("cache") == "none" {
            errors.push(disk.error("cache", say("not in this version yet", "writeback, writethrough")));
        }
    }
    let room = if board.ide().is_some() { PLACES } else { 0 };
    for (section, drive) in
        ["disk", "cd"].into_iter().flat_map(|s| node.children(s).iter().map(move |d| (s, d))).skip(room)
    {
        let problem = match room {
            0 => say("this board has no IDE controller", "profile = \"pc\", board = \"440fx\" or board = \"440bx\""),
            _ => say("the IDE controller is full", "four disks and CD-ROM drives together"),
        };
        errors.push(Error::new(drive.origin(), format!("{section}.{}", drive.index()), problem));
    }
    errors
}

/// Opens and locks the images.
///
/// # Errors
/// When one cannot be had; the message names it.
pub fn open(node: &Node) -> Result<Drives> {
    let mut drives = Drives::default();
    for disk in node.children("disk") {
        let options =
            ImageOptions { read_only: disk.bool("readonly"), write_through: disk.text("cache") == "writethrough" };
        drives.disk(Image::open(disk.path("path"), options)?);
    }
    for cd in node.children("cd") {
        let options = ImageOptions { read_only: true, ..ImageOptions::default() };
        let disc = cd.is_given("path").then(|| Image::open(cd.path("path"), options)).transpose()?;
        drives.put(CD_ORDER, Unit::Cd, disc);
    }
    Ok(drives)
}
