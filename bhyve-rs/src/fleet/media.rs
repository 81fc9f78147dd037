//! Datastores, and the install media and images in them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::conf::{Change, edit};
use super::store::{DEFAULT, Guest, Host, media, resolve};
use super::{usage, util};

/// The commands of `vm datastore`.
pub const COMMANDS: [&str; 5] = ["list", "add", "remove", "iso", "img"];

/// `vm datastore ...`.
///
/// # Errors
/// Why not.
pub fn datastore(host: &Host, args: &[String]) -> Result<u8> {
    let Some((command, args)) = args.split_first() else { return usage::missing("datastore") };
    match (util::unique(command, &COMMANDS)?, args) {
        ("list", []) => list(host),
        (kind @ ("add" | "iso" | "img"), [name, spec]) => add(host, kind, name, spec)?,
        ("remove", [name]) => {
            if name == DEFAULT {
                bail!("cannot remove default datastore");
            }
            if !host.system.words("datastore_list").contains(name) {
                bail!("unable to locate the datastore {name:?}");
            }
            let list = Change::Take("datastore_list".to_owned(), vec![name.clone()]);
            edit(&host.system_conf(), &[list, Change::Remove(format!("path_{name}"))])?;
        }
        _ => return usage::missing("datastore"),
    }
    Ok(0)
}

fn add(host: &Host, kind: &str, name: &str, spec: &str) -> Result<()> {
    util::check_name("datastore", name)?;
    if name == DEFAULT || host.system.words("datastore_list").iter().any(|other| other == name) {
        bail!("datastore {name:?} already exists");
    }
    let Some((path, _)) = resolve(spec)? else { bail!("{spec} doesn't seem to be a valid directory") };
    if path == host.dir() {
        bail!("specified path already exists as default datastore");
    }
    let spec = match kind {
        "add" if spec.starts_with("zfs:") => spec.to_owned(),
        "add" => path.display().to_string(),
        kind => format!("{kind}:{}", path.display()),
    };
    let list = Change::Add("datastore_list".to_owned(), vec![name.to_owned()]);
    edit(&host.system_conf(), &[list, Change::set(format!("path_{name}"), spec)])
}

fn list(host: &Host) {
    let default = &host.stores[0];
    let kind = |dataset: &Option<String>| if dataset.is_some() { "zfs" } else { "directory" };
    let mut rows = vec![(default.name.clone(), kind(&default.dataset), default.path.clone(), default.dataset.clone())];
    for name in host.system.words("datastore_list") {
        let spec = host.system.or(&format!("path_{name}"), "");
        if name == DEFAULT || spec.is_empty() {
            continue;
        }
        rows.push(match (media(spec), spec.strip_prefix("zfs:")) {
            (Some((kind, path)), _) => (name, kind, path.into(), None),
            (None, Some(dataset)) => {
                let path = host.stores.iter().find(|store| store.name == name).map(|store| store.path.clone());
                (name, "zfs", path.unwrap_or_default(), Some(dataset.to_owned()))
            }
            (None, None) => (name, "directory", spec.into(), None),
        });
    }
    if host.json {
        let row = |(name, kind, path, dataset): &(String, &str, PathBuf, Option<String>)| json!({ "name": name, "type": kind, "path": path.display().to_string(), "dataset": dataset });
        println!("{}", rows.iter().map(row).collect::<Value>());
        return;
    }
    println!("{:<15} {:<11} {:<25} ZFS DATASET", "NAME", "TYPE", "PATH");
    for (name, kind, path, dataset) in rows {
        println!("{name:<15} {kind:<11} {:<25} {}", path.display(), dataset.as_deref().unwrap_or("-"));
    }
}

/// Where media of a kind are: datastore and directory.
fn places(host: &Host, kind: &str) -> Vec<(String, PathBuf)> {
    let mut places = vec![(DEFAULT.to_owned(), host.dir().join(format!(".{kind}")))];
    for name in host.system.words("datastore_list") {
        if let Some((_, path)) = media(host.system.or(&format!("path_{name}"), "")).filter(|(k, _)| *k == kind) {
            let path = path.into();
            places.push((name, path));
        }
    }
    places
}

/// A medium by its path, or by its name in this directory or one for media.
pub fn find(host: &Host, kind: &str, file: &str) -> Option<PathBuf> {
    let path = std::path::absolute(file).ok()?;
    if path.is_file() {
        return Some(path);
    }
    places(host, kind).into_iter().map(|(_, dir)| dir.join(file)).find(|path| path.is_file())
}

/// `vm iso` and `vm img`: shows what there is, or gets more.
///
/// # Errors
/// When it cannot be got.
pub fn show_or_fetch(host: &Host, kind: &'static str, args: &[String]) -> Result<u8> {
    let (options, rest) = util::getopt(args, "46d:u")?;
    let places = places(host, kind);
    if let [url] = rest {
        let store = options.iter().rfind(|(letter, _)| *letter == 'd').map_or(DEFAULT, |(_, name)| name);
        let place = places.iter().find(|(name, _)| name == store);
        let (_, dir) = place.with_context(|| format!("unable to locate path for datastore {store:?}"))?;
        let family = options.iter().rfind(|(letter, _)| matches!(letter, '4' | '6')).map(|(letter, _)| *letter);
        fetch(url, dir, family)?;
        return Ok(0);
    }
    if !rest.is_empty() {
        return usage::missing(kind);
    }
    let mut found = Vec::new();
    for (store, dir) in places {
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter(|e| e.path().is_file()).filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        found.extend(names.into_iter().map(|name| (store.clone(), dir.join(&name), name)));
    }
    if host.json {
        let row = |(store, path, name): &(String, PathBuf, String)| {
            let size = std::fs::metadata(path).map(|m| m.len()).ok();
            json!({ "datastore": store, "filename": name, "path": path.display().to_string(), "size": size })
        };
        println!("{}", found.iter().map(row).collect::<Value>());
        return Ok(0);
    }
    println!("{:<20}FILENAME", "DATASTORE");
    for (store, _, name) in found {
        println!("{store:<20}{name}");
    }
    Ok(0)
}

/// Gets a file into a directory, and unpacks it. It has its name when it is complete.
fn fetch(url: &str, dir: &Path, family: Option<char>) -> Result<()> {
    let name = url.split(['?', '#']).next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    if name.is_empty() || name.starts_with('.') || url.starts_with('-') {
        bail!("{url:?} does not say which file it is");
    }
    let fresh = dir.join(format!(".{name}.part"));
    let family = family.map(|family| format!("-{family}"));
    let mut command = match (util::which("fetch"), util::which("curl")) {
        (Some(fetch), _) => Command::new(fetch),
        (None, Some(curl)) => {
            let mut command = Command::new(curl);
            command.args(["-fL"]);
            command
        }
        (None, None) => bail!("neither fetch(1) nor curl(1) is there to get {url}"),
    };
    let got = command.args(family).arg("-o").arg(&fresh).arg(url).stdin(Stdio::null()).status();
    let path = dir.join(name);
    let placed = match got {
        Ok(status) if status.success() => std::fs::rename(&fresh, &path).with_context(|| path.display().to_string()),
        Ok(status) => Err(anyhow::anyhow!("getting {url} ended with {status}")),
        Err(e) => Err(e.into()),
    };
    if placed.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    placed?;
    let text = path.display().to_string();
    match () {
        () if name.ends_with(".tar.gz") => {
            util::output("tar", &["xzf", &text, "-C", &dir.display().to_string()])?;
            std::fs::remove_file(&path)?;
        }
        () if name.ends_with(".xz") => drop(util::output("xz", &["-d", &text])?),
        () if name.ends_with(".gz") => drop(util::output("gunzip", &[&text])?),
        () => {}
    }
    Ok(())
}

/// Removes the memory of a suspended guest; false if there is none.
///
/// # Errors
/// When it cannot be removed.
pub fn discard(guest: &Guest) -> Result<bool> {
    let mut found = false;
    for ending in ["save", "save.kern", "save.meta"] {
        let path = guest.file(&format!("{}.{ending}", guest.name));
        match std::fs::remove_file(&path) {
            Ok(()) => found = true,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        }
    }
    Ok(found)
}
