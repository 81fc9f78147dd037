//! Datasets, through zfs(8).

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::util::output;

/// Where a dataset is mounted.
///
/// # Errors
/// When it is not.
pub fn mountpoint(dataset: &str) -> Result<PathBuf> {
    let path = output("zfs", &["get", "-H", "-o", "value", "mountpoint", dataset])?;
    let mounted = output("zfs", &["get", "-H", "-o", "value", "mounted", dataset])?;
    if mounted != "yes" || !path.starts_with('/') {
        bail!("ZFS dataset {dataset} is not mounted");
    }
    Ok(path.into())
}

/// `-o` options of a blank-separated list.
fn options(list: &str) -> Vec<&str> {
    list.split_whitespace().flat_map(|option| ["-o", option]).collect()
}

/// Makes a dataset.
///
/// # Errors
/// As zfs(8) has it; so all of these.
pub fn create(dataset: &str, opts: &str) -> Result<()> {
    output("zfs", &[&["create"], &options(opts)[..], &[dataset]].concat()).map(|_| ())
}

/// Makes a volume.
///
/// # Errors
/// As zfs(8) has it.
pub fn create_volume(dataset: &str, size: &str, sparse: bool, opts: &str) -> Result<()> {
    let kind = if sparse { "-sV" } else { "-V" };
    output("zfs", &[&["create", kind, size, "-o", "volmode=dev"], &options(opts)[..], &[dataset]].concat()).map(|_| ())
}

/// Removes a dataset, or a snapshot, with all that is below it.
///
/// # Errors
/// As zfs(8) has it.
pub fn destroy(dataset: &str) -> Result<()> {
    let force = if dataset.contains('@') { "-r" } else { "-rf" };
    output("zfs", &["destroy", force, dataset]).map(|_| ())
}

/// Renames a dataset.
///
/// # Errors
/// As zfs(8) has it.
pub fn rename(old: &str, new: &str) -> Result<()> {
    output("zfs", &["rename", old, new]).map(|_| ())
}

/// Takes a snapshot of a dataset and what is below it.
///
/// # Errors
/// As zfs(8) has it.
pub fn snapshot(dataset: &str, name: &str) -> Result<()> {
    output("zfs", &["snapshot", "-r", &format!("{dataset}@{name}")]).map(|_| ())
}

/// A dataset and those below it.
///
/// # Errors
/// As zfs(8) has it.
pub fn tree(dataset: &str) -> Result<Vec<String>> {
    let text = output("zfs", &["list", "-rHo", "name", "-t", "filesystem,volume", dataset])?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Goes back to a snapshot; `force` gives up those after it.
///
/// # Errors
/// As zfs(8) has it.
pub fn rollback(dataset: &str, name: &str, force: bool) -> Result<()> {
    for part in tree(dataset)? {
        let snapshot = format!("{part}@{name}");
        let args: &[&str] = if force { &["rollback", "-r", &snapshot] } else { &["rollback", &snapshot] };
        output("zfs", args)?;
    }
    Ok(())
}

/// Clones a snapshot of a dataset, and of what is below it.
///
/// # Errors
/// As zfs(8) has it.
pub fn clone(old: &str, name: &str, new: &str) -> Result<()> {
    let parts = tree(old)?;
    for part in &parts {
        output("zfs", &["get", "creation", &format!("{part}@{name}")])?;
    }
    for part in &parts {
        let below = part.strip_prefix(old).with_context(|| format!("{part} is not below {old}"))?;
        output("zfs", &["clone", &format!("{part}@{name}"), &format!("{new}{below}")])?;
    }
    Ok(())
}

/// The snapshots of a dataset: name, used bytes, creation.
///
/// # Errors
/// As zfs(8) has it.
pub fn snapshots(dataset: &str) -> Result<Vec<String>> {
    let text = output("zfs", &["list", "-o", "name,used,creation", "-s", "creation", "-rHt", "snapshot", dataset])?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// A property's value.
///
/// # Errors
/// As zfs(8) has it.
pub fn property(dataset: &str, name: &str) -> Result<String> {
    output("zfs", &["get", "-Hpo", "value", name, dataset])
}
