//! The host's settings, the datastores, and the guests in them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::conf::Conf;
use super::procs::{self, Process, Stage};
use super::rcconf::RcConf;
use super::{util, zfs};
use crate::compat::node::Nodes;

/// The name of the datastore that is `vm_dir` itself.
pub const DEFAULT: &str = "default";

/// A place for guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// Its dataset, on ZFS.
    pub dataset: Option<String>,
}

/// What all commands need to know.
pub struct Host {
    /// Settings of rc.conf(5).
    pub rc: RcConf,
    /// The default datastore's specification.
    pub spec: String,
    /// The datastores, the default one first.
    pub stores: Vec<Store>,
    /// The settings of the default datastore.
    pub system: Conf,
    /// Where control sockets are.
    pub run_dir: PathBuf,
    /// Facts are to be printed as JSON.
    pub json: bool,
}

/// A guest.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub store: Store,
    /// Its settings.
    pub conf: Conf,
}

/// What a guest does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Stopped,
    /// Nothing, and its memory is in a file.
    Suspended,
    /// It runs, or may run, on another host, or is just being started on this one.
    Locked(String),
    /// Its loader runs.
    Loading(u32),
    /// It runs.
    Running(u32),
}

impl State {
    /// The process.
    pub fn pid(&self) -> Option<u32> {
        match self {
            State::Loading(pid) | State::Running(pid) => Some(*pid),
            _ => None,
        }
    }

    /// As the list has it.
    pub fn text(&self) -> String {
        match self {
            State::Stopped => "Stopped".to_owned(),
            State::Suspended => "Suspended".to_owned(),
            State::Locked(host) => format!("Locked ({host})"),
            State::Loading(pid) => format!("Bootloader ({pid})"),
            State::Running(pid) => format!("Running ({pid})"),
        }
    }

    /// As JSON has it.
    pub fn word(&self) -> &'static str {
        match self {
            State::Stopped => "stopped",
            State::Suspended => "suspended",
            State::Locked(_) => "locked",
            State::Loading(_) => "bootloader",
            State::Running(_) => "running",
        }
    }
}

impl Host {
    /// Reads the settings and makes the directories of the default datastore.
    ///
    /// # Errors
    /// When there is no datastore.
    pub fn new(rc: RcConf, dir: Option<&str>, run_dir: &Path, json: bool) -> Result<Host> {
        let spec = dir.or(rc.get("vm_dir")).map(str::to_owned);
        let hint = "set vm_dir in /etc/rc.conf, or say where it is with vm -D DIR or $VM_DIR";
        let spec = spec.with_context(|| format!("no datastore is configured: {hint}"))?;
        let Some((path, dataset)) = resolve(&spec)? else { bail!("vm_dir is no directory: {spec}; {hint}") };
        for folder in ["", ".config", ".templates", ".iso", ".img"] {
            let folder = path.join(folder);
            if !folder.is_dir() {
                std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
            }
        }
        let null = path.join(".config/null.iso");
        if !null.exists() {
            File::create(&null).with_context(|| null.display().to_string())?;
        }
        let store = Store { name: DEFAULT.to_owned(), path, dataset };
        let mut host =
            Host { spec, rc, stores: vec![store], system: Conf::default(), run_dir: run_dir.to_owned(), json };
        host.load();
        Ok(host)
    }

    /// Reads the settings of the default datastore.
    pub fn load(&mut self) {
        self.system = Conf::read(&self.system_conf());
        self.stores.truncate(1);
        for name in self.system.words("datastore_list") {
            let spec = self.system.or(&format!("path_{name}"), "");
            if spec.is_empty() || name == DEFAULT || media(spec).is_some() {
                continue;
            }
            match resolve(spec) {
                Ok(Some((path, dataset))) => self.stores.push(Store { name, path, dataset }),
                Ok(None) => {}
                Err(e) => util::warn(format!("datastore {name}: {e:#}")),
            }
        }
    }

    /// The default datastore's directory.
    pub fn dir(&self) -> &Path {
        &self.stores[0].path
    }

    /// Where the settings of the default datastore are.
    pub fn system_conf(&self) -> PathBuf {
        self.dir().join(".config/system.conf")
    }

    /// A datastore.
    ///
    /// # Errors
    /// When there is none of the name.
    pub fn store(&self, name: &str) -> Result<&Store> {
        let found = self.stores.iter().find(|store| store.name == name);
        found.with_context(|| format!("unable to load datastore - {name:?}"))
    }

    /// A guest, if there is one of the name.
    pub fn find(&self, name: &str) -> Option<Guest> {
        // A name that cannot be one must not lead anywhere.
        if !util::valid_name(name) {
            return None;
        }
        let there = |store: &&Store| store.path.join(name).join(format!("{name}.conf")).is_file();
        self.stores.iter().find(there).map(|store| Guest::new(name, store))
    }

    /// A guest.
    ///
    /// # Errors
    /// When there is none of the name.
    pub fn guest(&self, name: &str) -> Result<Guest> {
        self.find(name).with_context(|| format!("{name:?} doesn't appear to be a valid virtual machine"))
    }

    /// All guests of a datastore, by name.
    pub fn guests(&self, store: &Store) -> Vec<Guest> {
        let entries = std::fs::read_dir(&store.path).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        names.retain(|name| util::valid_name(name) && store.path.join(name).join(format!("{name}.conf")).is_file());
        names.iter().map(|name| Guest::new(name, store)).collect()
    }

    /// What a guest does.
    pub fn state(&self, guest: &Guest, processes: &[Process]) -> State {
        match procs::stage(processes, &guest.name) {
            Some(Stage::Running(pid)) => return State::Running(pid),
            Some(Stage::Loader(pid)) => return State::Loading(pid),
            None => {}
        }
        match guest.locked_by() {
            Some(host) => State::Locked(host),
            None if guest.file(&format!("{}.save", guest.name)).exists() => State::Suspended,
            None => State::Stopped,
        }
    }

    /// Makes sure that a guest does not run anywhere.
    ///
    /// # Errors
    /// When it does, or may.
    pub fn confirm_stopped(&self, guest: &Guest) -> Result<()> {
        match self.state(guest, &procs::list()) {
            State::Stopped | State::Suspended => Ok(()),
            State::Locked(host) => bail!("{} appears to be running on {host} (locked)", guest.name),
            State::Loading(pid) | State::Running(pid) => bail!("{} appears to be running (process {pid})", guest.name),
        }
    }

    /// The node of a guest is there.
    pub fn has_node(&self, name: &str) -> bool {
        Nodes::of(&self.run_dir).exists(name)
    }
}

/// What kind of install media a datastore is for, and where it is.
pub fn media(spec: &str) -> Option<(&'static str, &str)> {
    ["iso", "img"].into_iter().find_map(|kind| Some((kind, spec.strip_prefix(kind)?.strip_prefix(':')?)))
}

/// The directory, and the dataset, of a datastore's specification. `None` if it is not there.
///
/// # Errors
/// When ZFS does not know it.
pub fn resolve(spec: &str) -> Result<Option<(PathBuf, Option<String>)>> {
    if let Some(dataset) = spec.strip_prefix("zfs:") {
        return Ok(Some((zfs::mountpoint(dataset)?, Some(dataset.to_owned()))));
    }
    let path = Path::new(spec);
    // It goes into command lines of processes that are somewhere else.
    Ok(path.is_dir().then(|| (std::path::absolute(path).unwrap_or_else(|_| path.to_owned()), None)))
}

impl Guest {
    fn new(name: &str, store: &Store) -> Guest {
        let conf = Conf::read(&store.path.join(name).join(format!("{name}.conf")));
        Guest { name: name.to_owned(), store: store.clone(), conf }
    }

    /// Its directory.
    pub fn dir(&self) -> PathBuf {
        self.store.path.join(&self.name)
    }

    /// A file in its directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Where its settings are.
    pub fn conf_path(&self) -> PathBuf {
        self.file(&format!("{}.conf", self.name))
    }

    /// Its dataset, on ZFS.
    pub fn dataset(&self) -> Option<String> {
        self.store.dataset.as_ref().map(|dataset| format!("{dataset}/{}", self.name))
    }

    /// Its disks: number, name, emulation and kind of image.
    pub fn disks(&self) -> Vec<Disk> {
        let disk = |n: usize| {
            let get = |key: &str| self.conf.get(&format!("disk{n}_{key}"));
            let text = |key: &str| get(key).unwrap_or_default().to_owned();
            Some(Disk {
                number: n,
                name: get("name")?.to_owned(),
                kind: text("type"),
                dev: text("dev"),
                opts: text("opts"),
            })
        };
        (0..).map_while(disk).take_while(|disk| !disk.kind.is_empty()).collect()
    }

    /// Where an image is.
    ///
    /// # Errors
    /// When the system does not know.
    pub fn disk_path(&self, name: &str, dev: &str) -> Result<String> {
        Ok(match dev {
            "zvol" | "sparse-zvol" => {
                let dataset = self.dataset().with_context(|| format!("{name}: a zvol needs a ZFS datastore"))?;
                format!("/dev/zvol/{dataset}/{name}")
            }
            "custom" | "9p" => name.to_owned(),
            "iscsi" => iscsi(name)?,
            _ => self.file(name).display().to_string(),
        })
    }

    /// Appends to its log, which starts anew at 1 MB.
    pub fn log(&self, text: &str) {
        let path = self.file("vm-bhyve.log");
        if std::fs::metadata(&path).is_ok_and(|m| m.len() >= 1 << 20) {
            let old = self.file("vm-bhyve.log.0");
            let _ = std::fs::rename(&path, &old);
            // Whoever reads old logs expects them packed; without gzip(1) they stay as they are.
            let _ = util::output("gzip", &["-f", &old.display().to_string()]);
        }
        let lines: String = text.lines().map(|line| format!("{}: {line}\n", util::timestamp())).collect();
        // What cannot be logged, on a full disk say, must not stop the guest.
        let _ =
            OpenOptions::new().create(true).append(true).open(&path).and_then(|mut f| f.write_all(lines.as_bytes()));
    }

    /// The host that has locked it, unless that is this one and the process is gone.
    pub fn locked_by(&self) -> Option<String> {
        let mut text = String::new();
        let mut file = File::open(self.file("run.lock")).ok()?;
        let _ = file.read_to_string(&mut text);
        let host = text.lines().next().unwrap_or_default().to_owned();
        let ours = host.is_empty() || host == util::hostname();
        if ours && file.try_lock_shared().is_ok() { None } else { Some(host) }
    }

    /// Locks it for a process that runs it; `None` if another one does.
    ///
    /// # Errors
    /// When the lock cannot be written.
    pub fn lock(&self) -> Result<Option<Lock>> {
        let path = self.file("run.lock");
        let take = || -> Result<Option<Lock>> {
            loop {
                let mut options = OpenOptions::new();
                let mut file = options.read(true).write(true).create(true).truncate(false).mode(0o644).open(&path)?;
                match file.try_lock() {
                    Ok(()) => {}
                    Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
                    Err(std::fs::TryLockError::Error(e)) => return Err(e.into()),
                }
                // Who had it may have removed it between our opening and locking.
                let same = |there: std::fs::Metadata, ours: std::fs::Metadata| there.ino() == ours.ino();
                if !std::fs::metadata(&path).is_ok_and(|there| file.metadata().is_ok_and(|ours| same(there, ours))) {
                    continue;
                }
                let mut host = String::new();
                file.read_to_string(&mut host)?;
                let host = host.trim();
                if !host.is_empty() && host != util::hostname() {
                    return Ok(None);
                }
                std::io::Seek::rewind(&mut file)?;
                file.set_len(0)?;
                writeln!(file, "{}", util::hostname())?;
                return Ok(Some(Lock { path: path.clone(), _file: file }));
            }
        };
        take().with_context(|| path.display().to_string())
    }
}

/// A disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its number in the settings.
    pub number: usize,
    /// The image's name.
    pub name: String,
    /// The emulation.
    pub kind: String,
    /// What kind of thing the image is; empty is a file.
    pub dev: String,
    /// Options of the device.
    pub opts: String,
}

impl Disk {
    /// It is a file in the guest's directory.
    pub fn is_file(&self) -> bool {
        self.dev.is_empty() || self.dev == "file"
    }
}

/// A guest that is this process's to run.
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The device of an iSCSI target, `NAME[/LUN]`, of which iscsictl(8) must know one.
fn iscsi(target: &str) -> Result<String> {
    let (name, lun) = target.rsplit_once('/').unwrap_or((target, "0"));
    let lun: usize = lun.parse().with_context(|| format!("{target}: no number of a LUN"))?;
    let text = util::output("iscsictl", &["-L"])?;
    let mut lines = text.lines().filter(|line| line.contains(name));
    let (Some(line), None) = (lines.next(), lines.next()) else { bail!("no unique iSCSI device {name}") };
    // Target, portal and state are in front of the devices.
    let device = line.split_whitespace().nth(lun + 3).filter(|device| device.starts_with("da"));
    Ok(format!("/dev/{}", device.with_context(|| format!("no iSCSI device {target}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host with a datastore of its own.
    pub fn host(name: &str) -> Host {
        let dir = std::env::temp_dir().join(format!("bhyve-rs-fleet-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Host::new(RcConf::default(), dir.to_str(), &dir.join("run"), false).unwrap()
    }

    fn add(host: &Host, name: &str) -> Guest {
        let dir = host.dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(format!("{name}.conf")), "cpu=1\n").unwrap();
        host.find(name).unwrap()
    }

    #[test]
    fn guests_are_folders_with_a_conf_of_their_name() {
        let host = host("names");
        add(&host, "web");
        std::fs::create_dir(host.dir().join("empty")).unwrap();
        assert_eq!(host.guests(&host.stores[0]).iter().map(|g| g.name.as_str()).collect::<Vec<_>>(), ["web"]);
        for bad in ["empty", "../web", "", "web/", "."] {
            assert!(host.guest(bad).is_err(), "{bad}");
        }
        std::fs::remove_dir_all(host.dir()).unwrap();
    }

    #[test]
    fn one_process_at_a_time_has_a_guest() {
        let host = host("lock");
        let guest = add(&host, "web");
        let lock = guest.lock().unwrap().expect("nobody has it");
        assert!(guest.lock().unwrap().is_none());
        assert_eq!(guest.locked_by(), Some(util::hostname()));
        assert!(host.confirm_stopped(&guest).is_err());
        drop(lock);
        assert!(!guest.file("run.lock").exists());
        assert!(guest.lock().unwrap().is_some());
        std::fs::remove_dir_all(host.dir()).unwrap();
    }

    #[test]
    fn the_lock_of_a_dead_process_is_none_but_another_hosts_is() {
        let host = host("stale");
        let guest = add(&host, "web");
        std::fs::write(guest.file("run.lock"), format!("{}\n", util::hostname())).unwrap();
        assert_eq!(guest.locked_by(), None);
        assert!(guest.lock().unwrap().is_some());
        std::fs::write(guest.file("run.lock"), "elsewhere\n").unwrap();
        assert_eq!(host.state(&guest, &[]), State::Locked("elsewhere".to_owned()));
        assert!(guest.lock().unwrap().is_none());
        assert_eq!(std::fs::read_to_string(guest.file("run.lock")).unwrap(), "elsewhere\n");
        std::fs::remove_dir_all(host.dir()).unwrap();
    }

    #[test]
    fn media_are_told_from_guests_by_their_specification() {
        assert_eq!(media("iso:/x"), Some(("iso", "/x")));
        assert_eq!(media("img:/y"), Some(("img", "/y")));
        assert_eq!(media("/isos"), None);
    }

    #[test]
    fn disks_end_at_the_first_that_is_not_there() {
        let host = host("disks");
        let mut guest = add(&host, "web");
        guest.conf = Conf::parse("disk0_name=a\ndisk0_type=nvme\ndisk1_name=b\ndisk2_name=c\ndisk2_type=nvme\n");
        assert_eq!(guest.disks().len(), 1);
        assert_eq!(guest.disk_path("a", "custom").unwrap(), "a");
        assert!(guest.disk_path("a", "").unwrap().ends_with("/web/a"));
        assert!(guest.disk_path("a", "zvol").is_err());
        std::fs::remove_dir_all(host.dir()).unwrap();
    }
}
