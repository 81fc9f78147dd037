//! Copies of guests: clones and snapshots, and what else is done to guests as a whole.
//!
//! ZFS has its own. Elsewhere a snapshot is a folder in the guest's `.snapshots` with copies of its files, sparse, and
//! sharing blocks with the original where the file system can. A copy has its name when it is complete.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use host::disk::{Format, tools};
use serde_json::{Value, json};

use super::conf::{Change, Conf, edit};
use super::store::{Guest, Host};
use super::{media, usage, util, zfs};

/// Where snapshots are, and what a rollback is about to put in place.
const SNAPSHOTS: &str = ".snapshots";
const ROLLBACK: &str = ".rollback";
/// The guest's settings in a snapshot.
const CONF: &str = "guest.conf";

/// `NAME@SNAPSHOT`.
fn split(text: &str) -> (&str, Option<&str>) {
    text.split_once('@').map_or((text, None), |(name, snapshot)| (name, Some(snapshot)))
}

/// Refuses what cannot be a snapshot's name; a time can.
fn check_snapshot(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    if name.is_empty() || name.len() > 128 || name.starts_with(['.', '-']) || !name.chars().all(good) {
        bail!("invalid snapshot name {name:?}: letters, digits and . _ - :");
    }
    Ok(())
}

/// The files of a guest that make it up, beside its settings.
fn files(guest: &Guest) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for disk in guest.disks() {
        match (disk.is_file(), disk.kind.as_str()) {
            (true, _) if guest.file(&disk.name).is_file() => files.push(disk.name),
            // The disc of cloud-init is made when it is needed.
            (_, "ahci-cd") => {}
            (true, _) => bail!("disk{}: {} is not there", disk.number, guest.file(&disk.name).display()),
            (false, _) => bail!("disk{} is no file of the guest's, and there is no copy of it", disk.number),
        }
    }
    if guest.file("uefi-vars.fd").is_file() {
        files.push("uefi-vars.fd".to_owned());
    }
    Ok(files)
}

/// Copies a file, and has it on disk.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    // cp(1) knows the host's ways to share blocks and to keep holes.
    let options: &[&str] = if cfg!(target_os = "linux") { &["--reflink=auto", "--sparse=always"] } else { &[] };
    util::output("cp", &[&["-p"], options, &["--", &from, &to]].concat())?;
    fs::File::open(&to).and_then(|file| file.sync_all()).context(to)
}

/// A folder that has its name when it is complete.
fn folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = path.file_name().context("it is no name of a folder")?.to_string_lossy();
    let fresh = path.with_file_name(format!(".{}.part", name.trim_start_matches('.')));
    let _ours = util::draft(&fresh)?;
    let make = || {
        fill(&fresh)?;
        if path.exists() {
            bail!("{} already exists", path.display());
        }
        fs::rename(&fresh, path).with_context(|| path.display().to_string())
    };
    make().inspect_err(|_| {
        let _ = fs::remove_dir_all(&fresh);
    })
}

/// The snapshots of a guest on a file system, the oldest first.
fn list(guest: &Guest) -> Vec<(String, SystemTime)> {
    let entries = fs::read_dir(guest.file(SNAPSHOTS)).into_iter().flatten().flatten();
    let snapshot = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.'))?;
        Some((name, entry.metadata().and_then(|m| m.modified()).ok()?))
    };
    let mut found: Vec<_> = entries.filter_map(snapshot).collect();
    found.sort_by_key(|(_, time)| *time);
    found
}

fn snapshot_dir(guest: &Guest, name: &str) -> Result<PathBuf> {
    check_snapshot(name)?;
    let dir = guest.file(SNAPSHOTS).join(name);
    if !dir.is_dir() {
        bail!("snapshot {}@{name} doesn't seem to exist", guest.name);
    }
    Ok(dir)
}

/// The names of a guest's snapshots.
///
/// # Errors
/// As zfs(8) has it.
pub fn snapshots(guest: &Guest) -> Result<Vec<String>> {
    match guest.dataset() {
        Some(dataset) => zfs::snapshots(&dataset),
        None => Ok(list(guest).into_iter().map(|(name, _)| format!("{}@{name}", guest.name)).collect()),
    }
}

/// `vm snapshot`.
///
/// # Errors
/// Why not; then there is none.
pub fn snapshot(host: &Host, args: &[String]) -> Result<u8> {
    let (options, rest) = util::getopt(args, "f")?;
    let [text] = rest else { return usage::missing("snapshot") };
    let (name, snapshot) = split(text);
    let guest = host.guest(name)?;
    let snapshot = snapshot.map_or_else(
        || {
            let [y, mo, d, h, mi, s] = util::utc();
            format!("{y:04}-{mo:02}-{d:02}-{h:02}:{mi:02}:{s:02}")
        },
        str::to_owned,
    );
    check_snapshot(&snapshot)?;
    let stopped = host.confirm_stopped(&guest);
    if let Some(dataset) = guest.dataset() {
        if options.is_empty() {
            stopped.context("it must be powered off first (use -f to override)")?;
        }
        zfs::snapshot(&dataset, &snapshot)?;
    } else {
        // Only ZFS has a copy of all at one time.
        stopped.context("it must be powered off first")?;
        let lock = guest.lock()?.context("it is being started")?;
        take(&guest, &snapshot)?;
        drop(lock);
    }
    if host.json {
        println!("{}", json!({ "name": guest.name, "snapshot": snapshot }));
    }
    Ok(0)
}

fn take(guest: &Guest, snapshot: &str) -> Result<()> {
    finish(guest)?;
    let files = files(guest)?;
    let place = guest.file(SNAPSHOTS);
    fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
    folder(&place.join(snapshot), |dir| {
        files.iter().try_for_each(|file| copy(&guest.file(file), &dir.join(file)))?;
        copy(&guest.conf_path(), &dir.join(CONF))
    })
}

/// `vm rollback`.
///
/// # Errors
/// Why not; then the guest is as it was.
pub fn rollback(host: &Host, args: &[String]) -> Result<u8> {
    let (options, rest) = util::getopt(args, "r")?;
    let [text] = rest else { return usage::missing("rollback") };
    let (name, Some(snapshot)) = split(text) else {
        bail!("a snapshot name must be provided in guest@snapshot format");
    };
    let guest = host.guest(name)?;
    host.confirm_stopped(&guest)?;
    check_snapshot(snapshot)?;
    if let Some(dataset) = guest.dataset() {
        zfs::rollback(&dataset, snapshot, !options.is_empty())?;
        return Ok(0);
    }
    let lock = guest.lock()?.context("it is being started")?;
    let dir = snapshot_dir(&guest, snapshot)?;
    let all = list(&guest);
    let newer: Vec<_> = all.iter().skip_while(|(name, _)| name != snapshot).skip(1).map(|(name, _)| name).collect();
    if !newer.is_empty() && options.is_empty() {
        let names: Vec<&str> = newer.iter().map(|name| name.as_str()).collect();
        bail!("more recent snapshots exist, which -r destroys: {}", names.join(" "));
    }
    finish(&guest)?;
    folder(&guest.file(ROLLBACK), |fresh| {
        for entry in fs::read_dir(&dir)? {
            let name = entry?.file_name();
            copy(&dir.join(&name), &fresh.join(&name))?;
        }
        Ok(())
    })?;
    finish(&guest)?;
    for name in newer {
        fs::remove_dir_all(guest.file(SNAPSHOTS).join(name))?;
    }
    drop(lock);
    Ok(0)
}

/// Puts in place what a rollback has prepared. One that was interrupted goes on here.
///
/// # Errors
/// When a file cannot be moved; the next call goes on.
pub fn finish(guest: &Guest) -> Result<()> {
    let dir = guest.file(ROLLBACK);
    let Ok(entries) = fs::read_dir(&dir) else { return Ok(()) };
    for entry in entries {
        let name = entry?.file_name();
        let to = if name == CONF { guest.conf_path() } else { guest.dir().join(&name) };
        fs::rename(dir.join(&name), &to).with_context(|| to.display().to_string())?;
    }
    fs::remove_dir(&dir).with_context(|| dir.display().to_string())
}

/// `vm clone`.
///
/// # Errors
/// Why not; then there is no clone.
pub fn clone(host: &Host, args: &[String]) -> Result<u8> {
    let [old, new] = args else { return usage::missing("clone") };
    let (old, snapshot) = split(old);
    util::check_name("virtual machine", new)?;
    if let Some(guest) = host.find(new) {
        bail!("new guest already exists in {}", guest.dir().display());
    }
    let guest = host.guest(old)?;
    if snapshot.is_none() {
        host.confirm_stopped(&guest)?;
        if guest.file(&format!("{old}.save")).exists() {
            bail!("guest appears to be suspended, stop it before cloning");
        }
    }
    if let (Some(dataset), Some(parent)) = (guest.dataset(), &guest.store.dataset) {
        let made = match snapshot {
            Some(snapshot) => snapshot.to_owned(),
            None => {
                let name: String = util::uuid()?.chars().take(8).collect();
                zfs::snapshot(&dataset, &name)?;
                name
            }
        };
        zfs::clone(&dataset, &made, &format!("{parent}/{new}"))?;
        let dir = guest.store.path.join(new);
        let _ = fs::remove_file(dir.join("vm-bhyve.log"));
        let conf = dir.join(format!("{new}.conf"));
        fs::rename(dir.join(format!("{old}.conf")), &conf).with_context(|| conf.display().to_string())?;
        generalise(&conf)?;
        return Ok(0);
    }
    let lock = guest.lock()?.context("it is being started")?;
    finish(&guest)?;
    let from = snapshot.map_or_else(|| Ok(guest.dir()), |name| snapshot_dir(&guest, name))?;
    let conf = if snapshot.is_some() { from.join(CONF) } else { guest.conf_path() };
    let source = Guest { conf: Conf::read(&conf), ..guest.clone() };
    let files = files(&source)?;
    folder(&guest.store.path.join(new), |dir| {
        for file in &files {
            clone_file(&guest, &from.join(file), &dir.join(file))?;
        }
        if guest.file(".cloud-init").is_dir() {
            let from = guest.file(".cloud-init").display().to_string();
            util::output("cp", &["-Rp", &from, &dir.display().to_string()])?;
        }
        let to = dir.join(format!("{new}.conf"));
        copy(&conf, &to)?;
        generalise(&to)
    })?;
    drop(lock);
    Ok(0)
}

/// Copies an image for another guest.
fn clone_file(guest: &Guest, from: &Path, to: &Path) -> Result<()> {
    match tools::info(from, Format::Auto) {
        // What is behind it may be named by a path from the old place.
        Ok(info) if info.backing.is_some() => {
            let at = guest.dir().join(from.file_name().unwrap_or_default());
            if at != from {
                bail!("{} has a backing file; clone the guest without naming a snapshot", from.display());
            }
            tools::convert((from, Format::Auto), (to, Format::Qcow2), false, &mut |_, _| true)
        }
        _ => copy(from, to),
    }
}

/// Takes out of settings what only one guest can have; it is made up again when the guest starts.
pub fn generalise(conf: &Path) -> Result<()> {
    let settings = Conf::read(conf);
    let own = |key: &str| key == "uuid" || key.starts_with("network") && key.ends_with("_mac");
    let changes: Vec<_> =
        settings.all().filter(|(key, _)| own(key)).map(|(key, _)| Change::Remove(key.to_owned())).collect();
    edit(conf, &changes)
}

/// `vm rename`.
///
/// # Errors
/// Why not.
pub fn rename(host: &Host, args: &[String]) -> Result<u8> {
    let [old, new] = args else { return usage::missing("rename") };
    util::check_name("virtual machine", new)?;
    let guest = host.guest(old)?;
    if let Some(other) = host.find(new) {
        bail!("directory {} already exists", other.dir().display());
    }
    host.confirm_stopped(&guest)?;
    let to = guest.store.path.join(new);
    if to.exists() {
        bail!("{} already exists", to.display());
    }
    let lock = guest.lock()?.context("it is being started")?;
    finish(&guest)?;
    // Whenever it is interrupted there is a guest of one of the names.
    let conf = guest.file(&format!("{new}.conf"));
    let _ = fs::remove_file(&conf);
    fs::hard_link(guest.conf_path(), &conf).with_context(|| conf.display().to_string())?;
    for ending in ["save", "save.kern", "save.meta"] {
        let _ = fs::rename(guest.file(&format!("{old}.{ending}")), guest.file(&format!("{new}.{ending}")));
    }
    drop(lock);
    match (guest.dataset(), &guest.store.dataset) {
        (Some(dataset), Some(parent)) => zfs::rename(&dataset, &format!("{parent}/{new}"))?,
        _ => fs::rename(guest.dir(), &to).with_context(|| to.display().to_string())?,
    }
    fs::remove_file(to.join(format!("{old}.conf"))).with_context(|| format!("{old}.conf"))?;
    Ok(0)
}

/// `vm destroy`, of a guest or a snapshot.
///
/// # Errors
/// Why not.
pub fn destroy(host: &Host, args: &[String]) -> Result<u8> {
    let (options, rest) = util::getopt(args, "f")?;
    let [text] = rest else { return usage::missing("destroy") };
    let (name, snapshot) = split(text);
    let guest = host.guest(name)?;
    if let Some(snapshot) = snapshot {
        check_snapshot(snapshot)?;
        match guest.dataset() {
            Some(dataset) => zfs::destroy(&format!("{dataset}@{snapshot}"))?,
            None => fs::remove_dir_all(snapshot_dir(&guest, snapshot)?)?,
        }
        return Ok(0);
    }
    host.confirm_stopped(&guest)?;
    let sure = "Are you sure you want to completely remove this virtual machine";
    if options.is_empty() && !util::confirm(sure)? {
        return Ok(0);
    }
    // It may have been started while somebody thought about it.
    let Some(_lock) = guest.lock()? else { bail!("{name} appears to be running") };
    if let Some(dataset) = guest.dataset() {
        zfs::destroy(&dataset)?;
    }
    let gone = guest.store.path.join(format!(".{name}.destroy"));
    let _ = fs::remove_dir_all(&gone);
    match fs::rename(guest.dir(), &gone) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
        renamed => {
            renamed.with_context(|| guest.dir().display().to_string())?;
            fs::remove_dir_all(&gone).with_context(|| gone.display().to_string())?;
            Ok(0)
        }
    }
}

/// `vm discard`.
///
/// # Errors
/// When there is nothing to discard.
pub fn discard(host: &Host, args: &[String]) -> Result<u8> {
    let (options, rest) = util::getopt(args, "f")?;
    let [name] = rest else { return usage::missing("discard") };
    let guest = host.guest(name)?;
    host.confirm_stopped(&guest)?;
    let sure = "Are you sure you want to remove the saved state of this virtual machine";
    if options.is_empty() && !util::confirm(sure)? {
        return Ok(0);
    }
    if !media::discard(&guest)? && options.is_empty() {
        bail!("no saved state exists for {name}");
    }
    Ok(0)
}

/// The commands of `vm image`.
pub const IMAGES: [&str; 4] = ["list", "create", "provision", "destroy"];

/// `vm image ...`: packed guests, of ZFS alone.
///
/// # Errors
/// Why not.
pub fn image(host: &Host, args: &[String]) -> Result<u8> {
    let Some((command, args)) = args.split_first() else { return usage::missing("image") };
    let command = util::unique(command, &IMAGES)?;
    let Some(dataset) = &host.stores[0].dataset else {
        bail!("$vm_dir must be a ZFS datastore to use these functions");
    };
    let dir = host.dir().join("images");
    let manifest = |uuid: &str| -> Result<PathBuf> {
        let path = dir.join(format!("{uuid}.manifest"));
        // Nothing but a UUID leads to a file.
        if !uuid.chars().all(|c| c.is_ascii_hexdigit() || c == '-') || !path.is_file() {
            bail!("unable to locate image with uuid {uuid:?}");
        }
        Ok(path)
    };
    match command {
        "list" => list_images(host, &dir),
        "create" => {
            let (options, rest) = util::getopt(args, "d:u")?;
            let [name] = rest else { return usage::missing("image") };
            let get = |letter: char| options.iter().rfind(|(l, _)| *l == letter).map(|(_, value)| *value);
            let guest = host.guest(name)?;
            let source = guest.dataset().context("this command is only supported on zfs datastores")?;
            if !dir.exists() {
                zfs::create(&format!("{dataset}/images"), "")?;
            }
            let uuid = util::uuid()?;
            let system = &host.system;
            let custom = system.get("compress").zip(system.get("decompress"));
            let (pack, unpack) = custom.unwrap_or(("xz -T0", "xz -d"));
            let plain = get('u').is_some();
            let file = format!("{uuid}.zfs{}", if plain { "" } else { ".z" });
            let snapshot: String = uuid.chars().take(8).collect();
            zfs::snapshot(&source, &snapshot)?;
            println!("Creating guest image, this may take some time...");
            let path = dir.join(&file);
            let pack = if plain { "cat" } else { pack };
            let from = zfs_with(&["send", "-R", &format!("{source}@{snapshot}")]);
            let sent = pipe(from, shell(&format!("{pack} > \"$1\""), &path));
            let _ = zfs::destroy(&format!("{source}@{snapshot}"));
            if sent.is_err() {
                let _ = fs::remove_file(&path);
            }
            sent?;
            let set = |key: &str, value: &str| Change::set(key, value);
            let created = util::timestamp();
            edit(
                &dir.join(format!("{uuid}.manifest")),
                &[
                    set("description", get('d').unwrap_or("No description provided")),
                    set("created", &created),
                    set("name", name),
                    set("filename", &file),
                    set("decompress", unpack),
                ],
            )?;
            println!("Image of {name} created with UUID {uuid}");
        }
        "provision" => {
            let (options, rest) = util::getopt(args, "d:")?;
            let [uuid, name] = rest else { return usage::missing("image") };
            util::check_name("virtual machine", name)?;
            let facts = Conf::read(&manifest(uuid)?);
            if let Some(guest) = host.find(name) {
                bail!("new guest already exists in {}", guest.dir().display());
            }
            let store = host.store(options.first().map_or(super::store::DEFAULT, |(_, store)| store))?;
            let target = store.dataset.as_ref().context("this command is only supported on zfs datastores")?;
            let (file, old) = facts.get("filename").zip(facts.get("name")).context("its manifest is incomplete")?;
            let unpack = match Path::new(file).extension().and_then(|e| e.to_str()) {
                Some("zfs") => "cat",
                Some("xz") => "xz -dc",
                Some("z") => facts.get("decompress").context("its manifest does not say how it is packed")?,
                _ => bail!("unsupported guest image type - {file:?}"),
            };
            println!("Unpacking guest image, this may take some time...");
            let to = zfs_with(&["recv", &format!("{target}/{name}")]);
            pipe(shell(&format!("{unpack} < \"$1\""), &dir.join(file)), to)?;
            let snapshot: String = uuid.chars().take(8).collect();
            let _ = zfs::destroy(&format!("{target}/{name}@{snapshot}"));
            let place = store.path.join(name);
            let conf = place.join(format!("{name}.conf"));
            fs::rename(place.join(format!("{old}.conf")), &conf).with_context(|| conf.display().to_string())?;
            for leftover in ["run.lock", "vm-bhyve.log"] {
                let _ = fs::remove_file(place.join(leftover));
            }
            generalise(&conf)?;
        }
        _ => {
            let [uuid] = args else { return usage::missing("image") };
            let path = manifest(uuid)?;
            let file = Conf::read(&path).get("filename").map(str::to_owned).context("its manifest names no file")?;
            if file.contains('/') {
                bail!("{file:?}: an image is in {}", dir.display());
            }
            let _ = fs::remove_file(dir.join(file));
            fs::remove_file(path)?;
        }
    }
    Ok(0)
}

/// Runs one program into another, and fails if either does.
fn pipe(mut from: Command, mut to: Command) -> Result<()> {
    let mut first = from.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("the first of a pipe")?;
    let out = first.stdout.take().context("no pipe")?;
    let second = to.stdin(out).status();
    let first = first.wait()?;
    let second = second.context("the second of a pipe")?;
    if !first.success() || !second.success() {
        bail!("{:?} ended with {first}, and {:?} with {second}", from.get_program(), to.get_program());
    }
    Ok(())
}

/// A command line of the user's settings, between a file and a pipe.
fn shell(script: &str, file: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(file);
    command
}

fn zfs_with(args: &[&str]) -> Command {
    let mut command = Command::new("zfs");
    command.args(args);
    command
}

fn list_images(host: &Host, dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    let mut rows = vec![["UUID", "NAME", "CREATED", "DESCRIPTION"].map(str::to_owned).to_vec()];
    for uuid in names.iter().filter_map(|name| name.strip_suffix(".manifest")) {
        let facts = Conf::read(&dir.join(format!("{uuid}.manifest")));
        let keys = ["name", "created", "description"].map(|key| facts.or(key, "-").to_owned());
        rows.push([uuid.to_owned()].into_iter().chain(keys).collect());
    }
    if host.json {
        let row = |r: &Vec<String>| json!({ "uuid": r[0], "name": r[1], "created": r[2], "description": r[3] });
        println!("{}", rows[1..].iter().map(row).collect::<Value>());
    } else {
        print!("{}", util::columns(&rows));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::rcconf::RcConf;

    fn host(name: &str) -> Host {
        let dir = std::env::temp_dir().join(format!("bhyve-rs-copies-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let host = Host::new(RcConf::default(), dir.to_str(), &dir.join("run"), false).unwrap();
        let web = dir.join("web");
        fs::create_dir(&web).unwrap();
        let conf = "cpu=1\nuuid=u\nnetwork0_type=e1000\nnetwork0_mac=m\ndisk0_type=nvme\ndisk0_name=disk0.img\n";
        fs::write(web.join("web.conf"), conf).unwrap();
        fs::write(web.join("disk0.img"), "one").unwrap();
        fs::write(web.join("vm-bhyve.log"), "old").unwrap();
        host
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn disk(host: &Host, name: &str) -> String {
        fs::read_to_string(host.find(name).unwrap().file("disk0.img")).unwrap()
    }

    #[test]
    fn a_clone_has_the_disks_but_not_the_identity() {
        let host = host("clone");
        clone(&host, &words("web copy")).unwrap();
        let copy = host.find("copy").unwrap();
        assert_eq!(
            (disk(&host, "copy").as_str(), copy.conf.get("uuid"), copy.conf.get("network0_mac")),
            ("one", None, None)
        );
        assert_eq!(copy.conf.get("network0_type"), Some("e1000"));
        assert!(!copy.file("vm-bhyve.log").exists() && !copy.file("web.conf").exists());
        assert!(clone(&host, &words("web copy")).is_err());
        assert!(clone(&host, &words("web ../x")).is_err());
        assert!(clone(&host, &words("web@no other")).is_err() && host.find("other").is_none());
        fs::remove_dir_all(host.dir()).unwrap();
    }

    #[test]
    fn a_rollback_goes_back_to_the_snapshot_and_only_with_r_past_others() {
        let host = host("rollback");
        let put = |text: &str| fs::write(host.dir().join("web/disk0.img"), text).unwrap();
        snapshot(&host, &words("web@first")).unwrap();
        put("two");
        edit(&host.find("web").unwrap().conf_path(), &[Change::set("cpu", "4")]).unwrap();
        snapshot(&host, &words("web@second")).unwrap();
        put("three");
        assert!(snapshot(&host, &words("web@second")).is_err());
        rollback(&host, &words("web@second")).unwrap();
        assert_eq!(disk(&host, "web"), "two");
        let e = rollback(&host, &words("web@first")).unwrap_err().to_string();
        assert!(e.contains("second"), "{e}");
        assert_eq!(disk(&host, "web"), "two");
        rollback(&host, &words("-r web@first")).unwrap();
        let guest = host.find("web").unwrap();
        assert_eq!((disk(&host, "web").as_str(), guest.conf.get("cpu")), ("one", Some("1")));
        assert_eq!(snapshots(&guest).unwrap(), ["web@first"]);
        clone(&host, &words("web@first copy")).unwrap();
        assert_eq!(disk(&host, "copy"), "one");
        destroy(&host, &words("web@first")).unwrap();
        assert!(snapshots(&guest).unwrap().is_empty());
        fs::remove_dir_all(host.dir()).unwrap();
    }

    #[test]
    fn an_interrupted_rollback_is_finished_later() {
        let host = host("interrupted");
        let guest = host.find("web").unwrap();
        fs::create_dir(guest.file(ROLLBACK)).unwrap();
        fs::write(guest.file(ROLLBACK).join(CONF), "cpu=9\n").unwrap();
        finish(&guest).unwrap();
        assert_eq!(host.find("web").unwrap().conf.get("cpu"), Some("9"));
        assert!(!guest.file(ROLLBACK).exists());
        fs::remove_dir_all(host.dir()).unwrap();
    }

    #[test]
    fn snapshots_are_whole_or_not_at_all() {
        let host = host("whole");
        let guest = host.find("web").unwrap();
        let more = [
            Change::set("disk1_type", "nvme"),
            Change::set("disk1_name", "/dev/null"),
            Change::set("disk1_dev", "custom"),
        ];
        edit(&guest.conf_path(), &more).unwrap();
        assert!(snapshot(&host, &words("web@x")).is_err());
        assert!(snapshots(&guest).unwrap().is_empty());
        for bad in ["web@", "web@a/b", "web@../x", "web@a b", "no@x"] {
            assert!(snapshot(&host, &[bad.to_owned()]).is_err(), "{bad}");
        }
        fs::remove_dir_all(host.dir()).unwrap();
    }

    #[test]
    fn guests_change_their_names_and_go() {
        let host = host("rename");
        rename(&host, &words("web www")).unwrap();
        assert!(host.find("web").is_none() && disk(&host, "www") == "one");
        assert!(!host.dir().join("www/web.conf").exists());
        assert!(rename(&host, &words("www a/b")).is_err());
        fs::create_dir(host.dir().join("taken")).unwrap();
        assert!(rename(&host, &words("www taken")).is_err());
        let lock = host.find("www").unwrap().lock().unwrap();
        assert!(destroy(&host, &words("-f www")).is_err() && rename(&host, &words("www web")).is_err());
        drop(lock);
        destroy(&host, &words("-f www")).unwrap();
        assert!(!host.dir().join("www").exists());
        fs::remove_dir_all(host.dir()).unwrap();
    }
}
