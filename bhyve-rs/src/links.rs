//! `bhyve-rs links`: the names of other programs, and the file that stands for the built-in BIOS.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::SUCCESS;
use crate::compat::Tool;
use crate::compat::translate::MARKER;
use crate::tell::say;

/// The firmware that tools ask for when a guest needs a BIOS.
const CSM: &str = "BHYVE_UEFI_CSM.fd";

/// Make links in a directory by whose names other tools call this program: bhyve, bhyvectl, bhyveload, grub-bhyve, vm.
///
/// Only these links and the file of --firmware are made; what is there already and not ours is left alone.
#[derive(Args)]
pub struct Links {
    /// The directory of the links.
    #[arg(value_name = "DIR", required_unless_present = "firmware")]
    dir: Option<PathBuf>,
    /// Only these names.
    #[arg(value_name = "NAME", value_parser = Tool::ALL.map(Tool::name))]
    tools: Vec<String>,
    /// Put a file BHYVE_UEFI_CSM.fd that stands for the built-in BIOS into this directory.
    #[arg(long, value_name = "DIR")]
    firmware: Option<PathBuf>,
    /// Replace what is there.
    #[arg(long, conflicts_with = "remove")]
    force: bool,
    /// Take away what this command has made.
    #[arg(long)]
    remove: bool,
}

impl Links {
    /// Does it and returns the exit status.
    ///
    /// # Errors
    /// One line for the user.
    pub fn run(&self) -> Result<u8> {
        let program = std::env::current_exe().context("cannot find this program")?;
        if let Some(dir) = &self.dir {
            // All or none: a folder with half of them would call two programs in turn.
            let asked = |tool: &Tool| self.tools.is_empty() || self.tools.iter().any(|name| name == tool.name());
            let paths: Vec<PathBuf> = Tool::ALL.iter().filter(|t| asked(t)).map(|tool| dir.join(tool.name())).collect();
            for path in &paths {
                if !self.force && !self.remove && !is_free(path)? {
                    bail!("{}: it is there and not ours; --force replaces it", path.display());
                }
            }
            for path in &paths {
                match self.remove {
                    true => remove(path, is_ours(path)?)?,
                    false => place(path, || symlink(&program, path))?,
                }
            }
        }
        if let Some(dir) = &self.firmware {
            let path = dir.join(CSM);
            let ours = is_marker(&path);
            if self.remove {
                remove(&path, ours)?;
            } else if !ours && !self.force && path.symlink_metadata().is_ok() {
                bail!("{}: it is there and not ours; --force replaces it", path.display());
            } else {
                place(&path, || fs::write(&path, format!("{MARKER}\n")))?;
            }
        }
        Ok(SUCCESS)
    }
}

/// Puts something where nothing is that is to stay.
fn place(path: &Path, make: impl FnOnce() -> std::io::Result<()>) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).with_context(|| path.display().to_string()),
        _ => make().with_context(|| path.display().to_string())?,
    }
    say(&path.display().to_string());
    Ok(())
}

fn remove(path: &Path, ours: bool) -> Result<()> {
    if ours {
        fs::remove_file(path).with_context(|| path.display().to_string())?;
        say(&format!("{}: removed", path.display()));
    } else if path.symlink_metadata().is_ok() {
        eprintln!("bhyve-rs: {}: it is not ours, and stays", path.display());
    }
    Ok(())
}

fn is_free(path: &Path) -> Result<bool> {
    Ok(path.symlink_metadata().is_err() || is_ours(path)?)
}

/// Whether it is a link to a program of this name, of whatever version.
fn is_ours(path: &Path) -> Result<bool> {
    match fs::read_link(path) {
        Ok(target) => Ok(target.file_name().is_some_and(|name| name == "bhyve-rs")),
        // InvalidInput: no link.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => Ok(false),
        Err(e) => Err(e).with_context(|| path.display().to_string()),
    }
}

fn is_marker(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.starts_with(MARKER.as_bytes()))
}
