//! What `bhyve-rs image` does: make, copy, resize, check and describe images.
//!
//! A new image is written under another name and gets its own when all of it is on disk, so that there never is a half
//! one. Stretches of zeros take no room in it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::file::{Access, Bytes, HostFile, holder};
use super::open::{self, Format, How, detect};
use super::qcow2::{self, Backing, Header, Qcow2, Scan};
use super::raw::Raw;
use super::{SECTOR, Store};

/// Bytes that are copied at a time, and those of them that are looked at for zeros together.
const STEP: u64 = 1 << 20;
const GRAIN: usize = 4096;
/// The usual clusters of a qcow2 image.
const CLUSTER_BITS: u32 = 16;

/// Hears how many bytes of how many are done, and says whether to go on.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// A file that has its name only when it is complete.
struct Draft {
    path: PathBuf,
    temporary: PathBuf,
    /// What is replaced, so that no machine has it.
    _old: Option<Flock<File>>,
}

impl Draft {
    fn new(path: &Path, replace: bool) -> Result<(Draft, HostFile)> {
        let mut draft = Draft { path: path.to_owned(), temporary: PathBuf::new(), _old: None };
        let mut mode = 0o666;
        if path.exists() {
            ensure!(replace, "it exists already");
            // Not the link that leads there.
            draft.path = path.canonicalize()?;
            let old = Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock);
            let old = old.map_err(|(file, e)| match e {
                Errno::EWOULDBLOCK => anyhow!("it is in use: {}", holder(&file)),
                e => anyhow!(e),
            })?;
            mode = old.metadata()?.mode() & 0o777;
            draft._old = Some(old);
        }
        let name = draft.path.file_name().context("it is no name of a file")?.to_string_lossy();
        let temporary = draft.path.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(&temporary)?;
        draft.temporary = temporary;
        Ok((draft, HostFile::own(file)?))
    }

    /// All of it is on disk.
    fn finish(self) -> Result<()> {
        std::fs::rename(&self.temporary, &self.path)?;
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // The name is on disk as well, where directories can be synced.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Makes an empty image. With a backing file, which is looked for beside the image, the size can be left out.
///
/// # Errors
/// When it cannot be made; the message names the file.
pub fn create(path: &Path, format: Format, size: Option<u64>, backing: Option<(&str, Format)>) -> Result<()> {
    let make = || {
        let behind = backing.map(|(name, format)| -> Result<(Backing, u64)> {
            let place = open::beside(path, name);
            let read = || -> Result<_> {
                let mut file = HostFile::open(&place, Access::default())?;
                let format = if format == Format::Auto { detect(&mut file)? } else { format };
                drop(file);
                let store = open::open(&place, How { format, read_only: true, ..How::default() })?;
                Ok((Backing { name: name.to_owned(), format: Some(format.to_string()) }, store.size()))
            };
            read().with_context(|| format!("backing file {}", place.display()))
        });
        let (backing, base_size) = behind.transpose()?.unzip();
        let size = size.or(base_size).context("how large is it to be?")?;
        ensure!(size > 0, "a disk has at least a sector");
        ensure!(size.is_multiple_of(SECTOR), "{size} bytes are no whole number of sectors");
        if format == Format::Raw && backing.is_some() {
            bail!("raw images have no backing file; use qcow2");
        }
        let (draft, mut file) = Draft::new(path, false)?;
        target(&mut file, format, size, backing)?;
        file.sync()?;
        draft.finish()
    };
    make().with_context(|| path.display().to_string())
}

/// Lays out an empty image in an empty file.
fn target(file: &mut HostFile, format: Format, size: u64, backing: Option<Backing>) -> Result<()> {
    match format {
        Format::Raw => Ok(file.set_len(size)?),
        Format::Qcow2 => qcow2::create(file, size, CLUSTER_BITS, backing).map(|_| ()),
        other => bail!("{other} images are not made; there are raw and qcow2"),
    }
}

/// Copies an image, whatever is behind it included, into a new one. `to` can be a disk device, which becomes raw.
///
/// # Errors
/// When it cannot be done; the message names the file.
pub fn convert(from: (&Path, Format), to: (&Path, Format), replace: bool, progress: Progress) -> Result<()> {
    let how = How { format: from.1, read_only: true, ..How::default() };
    let mut source = open::open(from.0, how).with_context(|| from.0.display().to_string())?;
    let size = source.size();
    let device =
        std::fs::metadata(to.0).is_ok_and(|m| m.file_type().is_block_device() || m.file_type().is_char_device());
    let named = |e: anyhow::Error| e.context(to.0.display().to_string());
    if device {
        let open = || {
            ensure!(to.1 == Format::Raw, "a disk device can be raw only");
            let file = HostFile::open(to.0, Access { write: true, direct: false })?;
            ensure!(file.len() >= size, "the device has {} bytes, and {size} are needed", file.len());
            Ok(Raw::new(Box::new(file), false, false))
        };
        let mut target = open().map_err(named)?;
        return copy((from.0, &mut *source), (to.0, &mut target), true, progress);
    }
    let make = || {
        let (draft, mut file) = Draft::new(to.0, replace)?;
        target(&mut file, to.1, size, None)?;
        let target: Box<dyn Store> = match to.1 {
            Format::Qcow2 => {
                let header = Header::read(&mut file)?;
                Box::new(Qcow2::open(Box::new(file), header, None, false, false)?)
            }
            _ => Box::new(Raw::new(Box::new(file), false, false)),
        };
        Ok((draft, target))
    };
    let (draft, mut target) = make().map_err(named)?;
    copy((from.0, &mut *source), (to.0, &mut *target), false, progress)?;
    drop(target);
    draft.finish().map_err(named)
}

/// Copies a disk. What is zero is not written unless `zeros`. An error names the file that it is about.
fn copy(
    (name, from): (&Path, &mut dyn Store),
    (new, to): (&Path, &mut dyn Store),
    zeros: bool,
    progress: Progress,
) -> Result<()> {
    let source = || name.display().to_string();
    let target = || new.display().to_string();
    let size = from.size();
    let mut buf = vec![0; STEP as usize];
    let mut at = 0;
    while at < size {
        let (run, zero) = from.extent(at).with_context(source)?;
        let mut run = run.min(size - at);
        if !zero || zeros {
            run = run.min(STEP);
            let buf = &mut buf[..run as usize];
            from.read(at, buf).with_context(source)?;
            write_filled(to, at, buf, zeros).with_context(target)?;
        }
        at += run;
        ensure!(progress(at, size), "{}: interrupted after {at} of {size} bytes", target());
    }
    to.flush().with_context(target)
}

/// Writes what is not zero, in stretches as long as possible.
fn write_filled(to: &mut dyn Store, at: u64, buf: &[u8], zeros: bool) -> io::Result<()> {
    let filled = |n: usize| zeros || buf[n..(n + GRAIN).min(buf.len())].iter().any(|byte| *byte != 0);
    let mut n = 0;
    while n < buf.len() {
        let begin = n;
        let here = filled(n);
        while n < buf.len() && filled(n) == here {
            n += GRAIN;
        }
        if here {
            to.write(at + begin as u64, &buf[begin..n.min(buf.len())])?;
        }
    }
    Ok(())
}

/// Makes an image's disk larger, or with `shrink` smaller: what is cut off is lost. `size` makes the new size of the
/// old.
///
/// # Errors
/// When it cannot be done; the message names the file.
pub fn resize(path: &Path, format: Format, size: impl FnOnce(u64) -> Option<u64>, shrink: bool) -> Result<(u64, u64)> {
    let change = || {
        let mut file = HostFile::open(path, Access { write: true, direct: false })?;
        let format = if format == Format::Auto { detect(&mut file)? } else { format };
        let new = |old: u64| -> Result<u64> {
            let new = size(old).context("that is no size of a disk")?;
            ensure!(new > 0 && new.is_multiple_of(SECTOR), "{new} bytes are no whole number of sectors");
            ensure!(shrink || new >= old, "it would lose what is behind byte {new}; --shrink allows that");
            Ok(new)
        };
        match format {
            Format::Raw => {
                let (old, regular) = (file.len(), std::fs::metadata(path)?.is_file());
                ensure!(regular, "it is a device");
                let new = new(old.next_multiple_of(SECTOR))?;
                file.set_len(new)?;
                file.sync()?;
                Ok((old, new))
            }
            Format::Qcow2 => {
                drop(file);
                let mut image = qcow2_image(path, false)?;
                let old = image.size();
                let new = new(old)?;
                image.resize(new)?;
                Ok((old, new))
            }
            other => bail!("{other} images keep their size; convert it first"),
        }
    };
    change().with_context(|| path.display().to_string())
}

/// Opens a qcow2 image and what is behind it, to change it.
fn qcow2_image(path: &Path, repair: bool) -> Result<Qcow2> {
    let mut file = HostFile::open(path, Access { write: true, direct: false })?;
    let header = Header::read(&mut file)?;
    let backing = header.backing.as_ref().map(|backing| {
        let format = backing.format.as_deref().map_or(Some(Format::Auto), Format::named);
        let how = How { format: format.unwrap_or_default(), read_only: true, ..How::default() };
        let place = open::beside(path, &backing.name);
        open::open(&place, how).with_context(|| format!("backing file {}", place.display()))
    });
    Qcow2::open(Box::new(file), header, backing.transpose()?, false, repair)
}

/// What a check of an image found.
#[derive(Debug, Default)]
pub struct Report {
    /// What is wrong, the first of it.
    pub problems: Vec<String>,
    /// How much is wrong that loses data, or would.
    pub errors: u64,
    /// Clusters that are lost to nobody's use.
    pub leaks: u64,
    /// Clusters of the disk that have a place in the file, and how many there are. Of formats that have clusters.
    pub allocated: Option<(u64, u64)>,
    /// The refcounts were wrong, and are right now.
    pub repaired: bool,
}

/// Goes through an image's tables. With `repair` wrong refcounts of qcow2 are put right.
///
/// # Errors
/// When it cannot be read, or repaired; the message names the file.
pub fn check(path: &Path, format: Format, repair: bool, progress: Progress) -> Result<Report> {
    let mut look = || {
        let mut file = HostFile::open(path, Access::default())?;
        let format = if format == Format::Auto { detect(&mut file)? } else { format };
        if format != Format::Qcow2 {
            drop(file);
            ensure!(!repair, "{format} images are not repaired");
            return walk(&mut *open::open(path, How { format, read_only: true, ..How::default() })?, progress);
        }
        let header = Header::read(&mut file)?;
        let scan = Scan::new(&mut file, &header)?;
        drop(file);
        let bad_blocks = u64::from(scan.bad_blocks);
        let mut report = Report {
            errors: scan.wrong + scan.low + bad_blocks,
            leaks: scan.leaks,
            allocated: Some((scan.allocated, header.size.div_ceil(header.cluster()))),
            problems: scan.problems,
            repaired: false,
        };
        if scan.low > 0 {
            report.problems.push(format!("{} refcounts are too low", scan.low));
        }
        if repair && scan.wrong == 0 && report.errors + report.leaks > 0 {
            drop(qcow2_image(path, true)?);
            report.repaired = true;
        }
        Ok(report)
    };
    look().with_context(|| path.display().to_string())
}

/// Goes through the map of another format.
fn walk(store: &mut dyn Store, progress: Progress) -> Result<Report> {
    let (mut report, mut at, size) = (Report::default(), 0, store.size());
    while at < size {
        match store.extent(at) {
            Ok((run, _)) => at += run.min(size - at).max(SECTOR),
            Err(e) => {
                report.errors += 1;
                if report.problems.len() < 20 {
                    report.problems.push(format!("at byte {at}: {e}"));
                }
                at += STEP;
            }
        }
        ensure!(progress(at.min(size), size), "interrupted");
    }
    Ok(report)
}

/// What an image is.
#[derive(Debug)]
pub struct Info {
    /// Its format.
    pub format: Format,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes that its file takes on the host.
    pub used: u64,
    /// Further facts: a name and a text each.
    pub facts: Vec<(&'static str, String)>,
    /// Its backing file.
    pub backing: Option<PathBuf>,
}

/// Describes an image. It need not be possible to use it.
///
/// # Errors
/// When it cannot be read; the message names the file.
pub fn info(path: &Path, format: Format) -> Result<Info> {
    let look = || -> Result<_> {
        // A running machine may have it: nothing is locked to look at it.
        let mut file = HostFile::look(path)?;
        let sector = file.sector();
        let used = if sector.is_some() { file.len() } else { std::fs::metadata(path)?.blocks() * 512 };
        let format = if format == Format::Auto { detect(&mut file)? } else { format };
        let facts = sector.map(|bytes| ("device with sectors of", format!("{bytes} bytes"))).into_iter().collect();
        let mut info = Info { format, size: file.len(), used, facts, backing: None };
        if format == Format::Qcow2 {
            let header = Header::read(&mut file)?;
            info.size = header.size;
            info.facts.push(("version", header.version.to_string()));
            info.facts.push(("cluster", header.cluster().to_string()));
            info.facts.push(("snapshots", header.snapshots.to_string()));
            if let Some(backing) = header.backing {
                info.facts.push(("backing format", backing.format.unwrap_or_else(|| "not said".to_owned())));
                info.backing = Some(open::beside(path, &backing.name));
            }
        } else if format != Format::Raw {
            drop(file);
            info.size = open::open(path, How { format, read_only: true, ..How::default() })?.size();
        }
        Ok(info)
    };
    look().with_context(|| path.display().to_string())
}
