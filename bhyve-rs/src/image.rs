//! `bhyve-rs image`: makes, copies, resizes, checks and describes disk images.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, anyhow, bail};
use clap::Subcommand;
use host::disk::Format;
use host::disk::tools;
use serde_json::json;

use crate::SUCCESS;
use crate::tell::{Bar, short};

/// What `check` exits with when an image is damaged, and when it only wastes space.
const DAMAGED: u8 = 2;
const WASTEFUL: u8 = 3;

/// The user has had enough.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What to do with an image.
#[derive(Subcommand)]
pub enum Image {
    /// Make an empty image, or an overlay that keeps what is written apart from its backing file.
    Create {
        /// Its format: raw or qcow2 [default: by the name's ending, or raw; qcow2 with a backing file].
        #[arg(short, long, value_parser = format)]
        format: Option<Format>,
        /// Backing file; a relative path begins at the image.
        #[arg(short, long, value_name = "FILE")]
        backing: Option<String>,
        /// Format of the backing file [default: what it looks like].
        #[arg(short = 'F', long, value_parser = format, requires = "backing")]
        backing_format: Option<Format>,
        /// The new image.
        path: PathBuf,
        /// Size of the disk, as 512M or 20G [default: the backing file's].
        size: Option<String>,
    },
    /// Copy an image, with what is behind it, into a new one.
    Convert {
        /// Format of the source [default: what it looks like].
        #[arg(short, long, value_parser = format)]
        from: Option<Format>,
        /// Format of the target: raw or qcow2 [default: by the name's ending, or raw].
        #[arg(short = 'O', long, value_parser = format)]
        to: Option<Format>,
        /// Replace a target that exists.
        #[arg(long)]
        replace: bool,
        /// Source.
        source: PathBuf,
        /// Target: a new file, or a disk device.
        target: PathBuf,
    },
    /// Make a disk larger, or smaller.
    Resize {
        /// Format of the image [default: what it looks like].
        #[arg(short, long, value_parser = format)]
        format: Option<Format>,
        /// Allow what loses the disk's end.
        #[arg(long)]
        shrink: bool,
        /// Image.
        path: PathBuf,
        /// New size, as 20G, or the difference, as +5G.
        size: String,
    },
    /// Check an image's tables. Exits with 0 when it is clean, 2 when it is damaged, 3 when it only wastes space.
    Check {
        /// Format of the image [default: what it looks like].
        #[arg(short, long, value_parser = format)]
        format: Option<Format>,
        /// Put the refcounts of a qcow2 image right.
        #[arg(long)]
        repair: bool,
        /// Image.
        path: PathBuf,
    },
    /// Describe an image and what is behind it.
    Info {
        /// Format of the image [default: what it looks like].
        #[arg(short, long, value_parser = format)]
        format: Option<Format>,
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Image.
        path: PathBuf,
    },
}

fn format(name: &str) -> Result<Format, String> {
    Format::named(name).ok_or_else(|| "there are raw, qcow2, vmdk, vhd and vhdx".to_owned())
}

/// The format that a new file's name asks for.
fn by_name(path: &Path) -> Format {
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    ending.and_then(|ending| Format::named(&ending)).filter(|f| *f != Format::Auto).unwrap_or(Format::Raw)
}

/// A number of bytes with a unit of 1024.
pub fn size(text: &str) -> Result<u64> {
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let shift = match unit.to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => bail!("{text:?} is no size; 512M or 20G would be"),
    };
    let number: u64 = number.parse().map_err(|_| anyhow!("{text:?} is no size; 512M or 20G would be"))?;
    number.checked_mul(1 << shift).ok_or_else(|| anyhow!("{text} is too large"))
}

impl Image {
    /// Does it and returns the exit status.
    ///
    /// # Errors
    /// One line for the user.
    pub fn run(&self) -> Result<u8> {
        let mut bar = Bar::new();
        let mut progress = |done, all| {
            bar.show(done, all);
            !INTERRUPTED.load(Ordering::Relaxed)
        };
        match self {
            Image::Create { format, backing, backing_format, path, size: text } => {
                let bytes = text.as_deref().map(size).transpose()?;
                let format = format.unwrap_or(if backing.is_some() { Format::Qcow2 } else { by_name(path) });
                let backing = backing.as_deref().map(|name| (name, backing_format.unwrap_or_default()));
                tools::create(path, format, bytes, backing)?;
            }
            Image::Convert { from, to, replace, source, target } => {
                // What is half done is cleared away.
                host::watch_signals(|_| INTERRUPTED.store(true, Ordering::Relaxed))?;
                let from = (source.as_path(), from.unwrap_or_default());
                let to = (target.as_path(), to.unwrap_or_else(|| by_name(target)));
                tools::convert(from, to, *replace, &mut progress)?;
            }
            Image::Resize { format, shrink, path, size: text } => {
                let bytes = size(text.trim_start_matches('+'))?;
                let new = |old: u64| if text.starts_with('+') { old.checked_add(bytes) } else { Some(bytes) };
                let (old, new) = tools::resize(path, format.unwrap_or_default(), new, *shrink)?;
                println!("{}: {old} bytes before, {new} now", path.display());
            }
            Image::Check { format, repair, path } => {
                let report = tools::check(path, format.unwrap_or_default(), *repair, &mut progress)?;
                drop(bar);
                return Ok(tell(path, &report));
            }
            Image::Info { format, json, path } => info(path, format.unwrap_or_default(), *json)?,
        }
        Ok(SUCCESS)
    }
}

fn tell(path: &Path, report: &tools::Report) -> u8 {
    let name = path.display();
    for problem in &report.problems {
        println!("{name}: {problem}");
    }
    if report.leaks > 0 {
        println!("{name}: {} clusters are used by nobody", report.leaks);
    }
    if let Some((used, all)) = report.allocated {
        println!("{name}: {used} of {all} clusters have a place in the file");
    }
    let (text, status) = match report {
        tools::Report { repaired: true, .. } => ("repaired", SUCCESS),
        tools::Report { errors: 1.., .. } => ("damaged", DAMAGED),
        tools::Report { leaks: 1.., .. } => ("wastes space", WASTEFUL),
        _ => ("clean", SUCCESS),
    };
    println!("{name}: {text}");
    status
}

/// Describes an image, and then what is behind it.
fn info(path: &Path, format: Format, as_json: bool) -> Result<()> {
    let mut next = Some((path.to_owned(), format));
    let mut chain = Vec::new();
    while let Some((path, format)) = next.take() {
        // Loops end somewhere.
        if chain.len() >= 64 {
            bail!("{}: more than 64 images are behind one another", path.display());
        }
        let info = tools::info(&path, format)?;
        if !as_json {
            println!(
                "{}: {}, {} ({} bytes), takes {}",
                path.display(),
                info.format,
                short(info.size),
                info.size,
                short(info.used)
            );
            info.facts.iter().for_each(|(name, text)| println!("  {name}: {text}"));
            info.backing.iter().for_each(|backing| println!("  backing file: {}", backing.display()));
        }
        let mut members = json!({
            "path": path.display().to_string(),
            "format": info.format.to_string(),
            "size": info.size,
            "used": info.used,
        });
        for (name, text) in &info.facts {
            members[name.replace(' ', "_")] = json!(text);
        }
        chain.push(members);
        let behind = |path| {
            let said = info.facts.iter().find(|(name, _)| *name == "backing format").map(|(_, text)| text.as_str());
            (path, said.and_then(Format::named).unwrap_or_default())
        };
        next = info.backing.clone().map(behind);
    }
    if as_json {
        println!("{}", json!(chain));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_units() {
        for (text, bytes) in [("512", 512), ("4k", 4096), ("20G", 20 << 30), ("1GiB", 1 << 30), ("3mb", 3 << 20)] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "12Q", "99999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_ending_of_a_name_is_a_format() {
        assert_eq!(by_name(Path::new("a.qcow2")), Format::Qcow2);
        assert_eq!(by_name(Path::new("a.img")), Format::Raw);
        assert_eq!(by_name(Path::new("a.auto")), Format::Raw);
    }
}
