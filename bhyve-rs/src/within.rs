//! Files inside of disk images, as GRUB names them: `(DEVICE[,PARTITION])/PATH`.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cfg::Node;
use fsys::{Disk, Source};
use host::disk::{Format, Image, ImageOptions};

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What it is in: `disk0`, or the path of an image.
    pub device: String,
    /// The partition's name; the whole disk if it is empty.
    pub partition: String,
    /// The path there.
    pub path: String,
}

impl Place {
    /// Takes a name apart; `None` if it is that of a file of the host.
    ///
    /// # Errors
    /// When it begins as one and does not go on.
    pub fn parse(text: &str) -> Result<Option<Place>> {
        let Some(rest) = text.strip_prefix('(') else { return Ok(None) };
        // An image's own name may have parentheses and commas.
        let parts = rest.split_once(")/").with_context(|| format!("{text}: expected (DEVICE,PARTITION)/PATH"))?;
        let (mut device, path) = (parts.0, format!("/{}", parts.1));
        let number = |name: &str| {
            let digits = name.trim_start_matches(|c: char| c.is_ascii_lowercase());
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
        };
        while let Some((before, _)) = device.rsplit_once(',').filter(|(_, name)| number(name)) {
            device = before;
        }
        let partition = parts.0[device.len()..].trim_start_matches(',').to_owned();
        Ok(Some(Place { device: device.to_owned(), partition, path }))
    }
}

struct Opened(Image);

impl Source for Opened {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, buf)
    }
}

/// Opens an image to look into it. Nobody can write it meanwhile.
///
/// # Errors
/// When it cannot be opened, or somebody writes it.
pub fn open(image: &Path, format: Format, limit: u64) -> Result<Disk> {
    let options = ImageOptions { format, read_only: true, ..ImageOptions::default() };
    Ok(Disk::new(Box::new(Opened(Image::open(image, options)?)), limit))
}

/// Reads a file of the host, or one inside of a drive's image, for a machine.
///
/// # Errors
/// When there is none, or it is larger than the machine's memory.
pub fn read(node: &Node, file: &Path) -> Result<Vec<u8>> {
    let limit = node.size("memory");
    let name = || file.display().to_string();
    let Some(place) = Place::parse(&file.to_string_lossy())? else {
        return std::fs::read(file).with_context(name);
    };
    let (image, format) = drive(node, &place.device).with_context(name)?;
    let look = || open(&image, format, limit)?.volume(&place.partition)?.read(&place.path);
    look().with_context(name)
}

/// The image of `diskN`, `cdN` or `floppyN`, or of a path, and what format it has.
fn drive(node: &Node, device: &str) -> Result<(PathBuf, Format)> {
    let format = |section: &str, drive: &Node| match section {
        "disk" => Format::named(drive.text("format")).unwrap_or_default(),
        _ => Format::Auto,
    };
    const SECTIONS: [&str; 3] = ["disk", "cd", "floppy"];
    let drives = |section| node.children(section).iter().filter_map(|d| Some((d.maybe::<&Path>("path")?, d)));
    if device.starts_with('/') {
        let path = Path::new(device);
        // The machine's own word for what is in it counts, not what a guest has written there.
        let all = SECTIONS.iter().flat_map(|section| drives(section).map(|(path, d)| (path, format(section, d))));
        let known = all.into_iter().find(|(known, _)| *known == path);
        return Ok((path.to_owned(), known.map_or(Format::Raw, |(_, format)| format)));
    }
    let kind = device.trim_end_matches(|c: char| c.is_ascii_digit());
    ensure!(SECTIONS.contains(&kind), "{device}: expected diskN, cdN, floppyN or the whole path of an image");
    let all = node.children(kind);
    let found = device[kind.len()..].parse().ok().and_then(|n: usize| all.get(n));
    let Some(found) = found else { bail!("there is no {device}: the machine has {} of that kind", all.len()) };
    let path = found.maybe::<&Path>("path").with_context(|| format!("{device} is empty"))?;
    Ok((path.to_owned(), format(kind, found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let place = |device: &str, partition: &str, path: &str| {
            Some(Place { device: device.to_owned(), partition: partition.to_owned(), path: path.to_owned() })
        };
        for (text, expected) in [
            ("(disk0)/bsd", place("disk0", "", "/bsd")),
            ("(disk0,openbsd1)/bsd", place("disk0", "openbsd1", "/bsd")),
            ("(hd0,2,1)/boot/kernel/kernel", place("hd0", "2,1", "/boot/kernel/kernel")),
            ("(/a,b (1).img,gpt2)/x", place("/a,b (1).img", "gpt2", "/x")),
            ("/boot/(a)/b", None),
        ] {
            assert_eq!(Place::parse(text).unwrap(), expected, "{text}");
        }
        for text in ["(", "(disk0", "(disk0)", "(disk0)bsd"] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn drives_that_are_not_there_are_named() {
        let node = crate::config::from_settings(&["name=a", "cd.0.model=ide"]).unwrap();
        for (text, why) in [
            ("(disk0)/bsd", "there is no disk0: the machine has 0 of that kind"),
            ("(cd0)/bsd", "cd0 is empty"),
            ("(hd0)/bsd", "hd0: expected diskN, cdN, floppyN or the whole path of an image"),
        ] {
            assert_eq!(read(&node, Path::new(text)).map_err(|e| e.root_cause().to_string()), Err(why.to_owned()));
        }
    }
}
