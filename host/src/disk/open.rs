//! From a path to what is in the image: formats, and the files behind images.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Store;
use super::file::{Access, Bytes, HostFile};
use super::mapped::{Map, Mapped};
use super::overlay::Overlay;
use super::qcow2::{self, Header, Qcow2};
use super::raw::Raw;
use super::vhd::{self, Vhd};
use super::vhdx::{self, Vhdx};
use super::vmdk::{self, Vmdk};
use crate::broker::Id;

/// Bytes at the beginning of an image that can tell what format it has.
pub(crate) const HEADER: usize = 512;
/// Files that an image can consist of.
const DEPTH: usize = 64;

/// A format of images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// What the image looks like.
    #[default]
    Auto,
    /// The disk's bytes.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Virtual PC's.
    Vhd,
    /// Hyper-V's.
    Vhdx,
}

impl Format {
    /// The format of this name. Some programs call VHD images vpc.
    pub fn named(name: &str) -> Option<Format> {
        Some(match name {
            "auto" => Format::Auto,
            "raw" => Format::Raw,
            "qcow2" => Format::Qcow2,
            "vmdk" => Format::Vmdk,
            "vhd" | "vpc" => Format::Vhd,
            "vhdx" => Format::Vhdx,
            _ => return None,
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Format::Auto => "auto",
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Vmdk => "vmdk",
            Format::Vhd => "vhd",
            Format::Vhdx => "vhdx",
        })
    }
}

/// What an image that begins so looks like, if not like a raw one.
pub(crate) fn looks_like(head: &[u8; HEADER]) -> Option<Format> {
    if head[..4] == qcow2::MAGIC.to_be_bytes() {
        Some(Format::Qcow2)
    } else if head[..4] == vmdk::MAGIC || head.starts_with(vmdk::DESCRIPTOR) {
        Some(Format::Vmdk)
    } else if head[..8] == vhd::MAGIC {
        Some(Format::Vhd)
    } else if head[..8] == vhdx::MAGIC {
        Some(Format::Vhdx)
    } else {
        None
    }
}

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct How {
    pub format: Format,
    pub read_only: bool,
    pub direct: bool,
    pub snapshot: bool,
    /// Put wrong refcounts right.
    pub repair: bool,
}

/// Opens an image and whatever is behind it.
///
/// # Errors
/// When it cannot be had; the message does not name the image itself.
pub(crate) fn open(path: &Path, how: How) -> Result<Box<dyn Store>> {
    open_lent(path, None, how)
}

/// As [`open`], of an image whose own file may be open already.
///
/// # Errors
/// When it cannot be had; the message does not name the image itself.
pub(crate) fn open_lent(path: &Path, lent: Option<File>, how: How) -> Result<Box<dyn Store>> {
    let base = How { read_only: how.read_only || how.snapshot, ..how };
    let store = layer(path, lent, base, &mut Vec::new())?;
    Ok(if how.snapshot && !how.read_only { Box::new(Overlay::new(store)?) } else { store })
}

/// The format of an image's file.
pub(crate) fn detect(file: &mut dyn Bytes) -> Result<Format> {
    let mut head = [0; HEADER];
    file.read(0, &mut head)?;
    Ok(looks_like(&head).unwrap_or(Format::Raw))
}

/// Where a name in an image leads.
pub(crate) fn beside(image: &Path, name: &str) -> PathBuf {
    image.parent().unwrap_or(Path::new("")).join(name)
}

/// Opens one more file, which must not have been opened on the way here: `chain` has those.
fn link(path: &Path, lent: Option<File>, access: Access, chain: &mut Vec<Id>) -> Result<Box<dyn Bytes>> {
    if chain.len() >= DEPTH {
        bail!("more than {DEPTH} files belong to the image");
    }
    let file = match lent {
        Some(file) => HostFile::lent(file, access)?,
        None => HostFile::link(path, access, chain)?,
    };
    chain.push(file.id()?);
    Ok(Box::new(file))
}

/// `chain`: what files have been opened on the way here.
fn layer(path: &Path, lent: Option<File>, how: How, chain: &mut Vec<Id>) -> Result<Box<dyn Store>> {
    let access = Access { write: !how.read_only, direct: how.direct };
    let mut file = link(path, lent, access, chain)?;
    if file.len() == 0 {
        bail!("it is empty");
    }
    let guessed = how.format == Format::Auto;
    let format = if guessed { detect(&mut *file)? } else { how.format };
    match format {
        Format::Qcow2 => {
            let header = Header::read(&mut *file)?;
            let backing = header.backing.as_ref().map(|backing| {
                let format = backing.format.as_deref().map_or(Some(Format::Auto), Format::named);
                let behind = beside(path, &backing.name);
                let mut open = || {
                    let format = format.context("its format is not known")?;
                    layer(&behind, None, How { format, read_only: true, ..how }, chain)
                };
                open().with_context(|| format!("backing file {}", behind.display()))
            });
            let backing = backing.transpose()?;
            Ok(Box::new(Qcow2::open(file, header, backing, how.read_only, how.repair)?))
        }
        Format::Vmdk => {
            let mut files = vec![file];
            let map = Vmdk::open(&mut files, |name| {
                link(&beside(path, name), None, access, chain).with_context(|| format!("extent {name}"))
            })?;
            mapped(files, map, how, format)
        }
        Format::Vhd => {
            let mut files = vec![file];
            let map = Vhd::open(&mut files)?;
            mapped(files, map, how, format)
        }
        Format::Vhdx => {
            let mut files = vec![file];
            let map = Vhdx::open(&mut files)?;
            mapped(files, map, how, format)
        }
        Format::Raw | Format::Auto => Ok(Box::new(Raw::new(file, how.read_only, guessed))),
    }
}

fn mapped<M: Map + 'static>(files: Vec<Box<dyn Bytes>>, map: M, how: How, format: Format) -> Result<Box<dyn Store>> {
    if !how.read_only && !map.fixed() {
        bail!(
            "{format} images of this kind cannot be written; use snapshot = true or readonly = true, or make an overlay \
             or a copy with `bhyve-rs image`"
        );
    }
    Ok(Box::new(Mapped { files, map, read_only: how.read_only }))
}
