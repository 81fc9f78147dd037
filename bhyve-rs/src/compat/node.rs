//! The nodes of machines: what stands for `/dev/vmm/NAME`, and what a loader leaves.
//!
//! vmm(4) makes that file with a machine and removes it when somebody destroys it, after the machine's process has
//! ended, and tools take the file for the machine. Where another back end runs the processors, an empty file of ours
//! stands for it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use host::control;
use serde::{Deserialize, Serialize};

/// The variable that says where the nodes are.
const VARIABLE: &str = "BHYVE_RS_VMM_DIR";
/// Where vmm(4) has its own.
const SYSTEM: &str = "/dev/vmm";
/// Longest name, as vmm(4)'s.
const LONGEST: usize = 229;

/// What a loader leaves for who runs the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Which loader.
    pub by: String,
    /// Settings of the machine's configuration, each KEY=VALUE.
    pub settings: Vec<String>,
}

/// The nodes of one user's machines.
pub struct Nodes<'a> {
    run_dir: &'a Path,
    dir: PathBuf,
}

impl Nodes<'_> {
    /// Those of the machines whose control sockets are in a directory.
    pub fn of(run_dir: &Path) -> Nodes<'_> {
        let dir = std::env::var_os(VARIABLE).filter(|dir| !dir.is_empty());
        Nodes { run_dir, dir: dir.map_or_else(|| run_dir.join("vmm"), Into::into) }
    }

    /// Whether a machine is there.
    pub fn exists(&self, name: &str) -> bool {
        let there = |path: PathBuf| path.symlink_metadata().is_ok();
        there(self.dir.join(name)) || cfg!(target_os = "freebsd") && there(Path::new(SYSTEM).join(name))
    }

    /// The names of all that are there.
    pub fn list(&self) -> Vec<String> {
        let dirs = [Some(self.dir.as_path()), cfg!(target_os = "freebsd").then(|| Path::new(SYSTEM))];
        let entries = dirs.into_iter().flatten().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Makes a machine's node, if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(&self, name: &str) -> Result<()> {
        if self.exists(name) {
            return Ok(());
        }
        control::make_run_dir(self.run_dir)?;
        let path = self.dir.join(name);
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&self.dir);
        let made =
            made.and_then(|()| OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path));
        made.map(drop).with_context(|| format!("node {}", path.display()))
    }

    /// Removes a machine's node with what a loader left; false if there was none.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<bool> {
        let there = self.exists(name);
        self.files(name).iter().try_for_each(|file| forget(file))?;
        Ok(there)
    }

    /// The files that a machine has here.
    pub fn files(&self, name: &str) -> Vec<PathBuf> {
        vec![self.left(name), self.dir.join(name)]
    }

    fn left(&self, name: &str) -> PathBuf {
        self.run_dir.join(format!("{name}.loaded"))
    }

    /// Leaves something for who runs the machine, and makes its node.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn leave(&self, name: &str, loaded: &Loaded) -> Result<()> {
        control::make_run_dir(self.run_dir)?;
        let (path, fresh) = (self.left(name), self.run_dir.join(format!(".{name}.{}", std::process::id())));
        // Whole or not at all.
        let written = File::create(&fresh).and_then(|mut file| file.write_all(&serde_json::to_vec(loaded)?));
        let placed = written.and_then(|()| fs::rename(&fresh, &path));
        if placed.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        placed.with_context(|| path.display().to_string())?;
        self.create(name)
    }

    /// Takes what a loader left, if one did: like memory that was loaded it serves one run.
    pub fn take(&self, name: &str) -> Option<Loaded> {
        let path = self.left(name);
        let loaded = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        fs::remove_file(&path).ok()?;
        Some(loaded)
    }
}

/// Removes a file, if it is there.
///
/// # Errors
/// When it cannot be removed.
pub fn forget(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).with_context(|| file.display().to_string()),
        _ => Ok(()),
    }
}

/// Refuses what cannot be the name of a machine.
///
/// # Errors
/// Why not.
pub fn valid(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > LONGEST {
        bail!("the name of a machine has 1 to {LONGEST} bytes");
    }
    if name.starts_with('.') || name.contains(|c: char| c == '/' || c.is_control() || c.is_whitespace()) {
        bail!("{name:?} is no name of a machine: no blanks, no slashes, no dot in front");
    }
    Ok(())
}
