//! New guests, and what is added to old ones.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use host::disk::{Format, tools};

use super::conf::{Change, Conf, edit};
use super::store::{DEFAULT, Host, Store};
use super::{media, templates, usage, util, zfs};

/// The size of a disk whose template says none.
const SIZE: &str = "20G";

/// `vm create`.
///
/// # Errors
/// Why not; then nothing is left of the guest.
pub fn create(host: &Host, args: &[String]) -> Result<u8> {
    let (options, rest) = util::getopt(args, "d:t:s:i:c:m:Ck:n:u:")?;
    let get = |letter: char| options.iter().rfind(|(l, _)| *l == letter).map(|(_, value)| *value);
    let [name] = rest else { return usage::missing("create") };
    util::check_name("virtual machine", name)?;
    if let Some(guest) = host.find(name) {
        bail!("virtual machine already exists in {}", guest.dir().display());
    }
    let store = host.store(get('d').unwrap_or(DEFAULT))?;
    let template = get('t').unwrap_or("default");
    let text = templates::text(host, template)?;
    let mut conf = templates::check(template, &text)?;
    let cloud = CloudInit::new(get)?;
    let image = get('i')
        .map(|image| media::find(host, "img", image).with_context(|| format!("unable to locate img file - {image:?}")))
        .transpose()?;
    let mut changes = vec![Change::set("uuid", util::uuid()?)];
    if conf.get("network0_type").is_some() && conf.get("network0_mac").is_none() {
        changes.push(Change::set("network0_mac", util::mac()?));
    }
    changes.extend(get('c').map(|cpu| Change::set("cpu", cpu)));
    changes.extend(get('m').map(|memory| Change::set("memory", memory)));
    // Sizes are the template's matter.
    let disks = (0..).take_while(|n| conf.get(&format!("disk{n}_name")).is_some()).count();
    changes.extend((0..disks).map(|n| Change::Remove(format!("disk{n}_size"))));
    if cloud.is_some() {
        for (key, value) in [("type", "ahci-cd"), ("name", "seed.iso"), ("dev", "file")] {
            changes.push(Change::set(format!("disk{disks}_{key}"), value));
        }
    }
    if let Some(size) = get('s') {
        conf.put("disk0_size", size);
    }
    for n in 0..disks {
        // Before anything is made.
        util::size(conf.or(&format!("disk{n}_size"), SIZE)).with_context(|| format!("disk{n}_size"))?;
        local(conf.or(&format!("disk{n}_name"), ""), conf.or(&format!("disk{n}_dev"), ""), store)?;
    }
    let mut draft = Draft::new(store, name, conf.or("zfs_dataset_opts", ""))?;
    let path = draft.dir.join(format!("{name}.conf"));
    std::fs::write(&path, &text).with_context(|| path.display().to_string())?;
    edit(&path, &changes)?;
    for n in 0..disks {
        draft.disk(&conf, n, image.as_deref().filter(|_| n == 0))?;
    }
    if let Some(cloud) = cloud {
        cloud.write(&draft.dir, name, &Conf::read(&path))?;
    }
    draft.finish()?;
    Ok(0)
}

/// Refuses an image that is not to be in the guest's directory, or that ZFS would have to have.
fn local(name: &str, dev: &str, store: &Store) -> Result<()> {
    match dev {
        "zvol" | "sparse-zvol" if store.dataset.is_none() => {
            bail!("cannot use ZVOL storage unless ZFS support is enabled")
        }
        "" | "file" if name.contains('/') || name.starts_with('.') => {
            bail!("{name:?}: an image of the guest's own has a plain name; disk_dev=\"custom\" takes a path")
        }
        _ => Ok(()),
    }
}

/// A guest that is being made. Unless it is finished, nothing is left.
struct Draft {
    store: Store,
    name: String,
    dir: PathBuf,
    dataset: Option<String>,
    done: bool,
    _ours: Option<File>,
}

impl Draft {
    fn new(store: &Store, name: &str, zfs_options: &str) -> Result<Draft> {
        let dataset = store.dataset.as_ref().map(|dataset| format!("{dataset}/{name}"));
        let place = store.path.join(name);
        let (dir, ours) = match &dataset {
            // It is mounted where it belongs.
            Some(dataset) => {
                zfs::create(dataset, zfs_options)?;
                (place, None)
            }
            None if place.exists() => bail!("{} already exists", place.display()),
            None => {
                let dir = store.path.join(format!(".{name}.create"));
                let ours = util::draft(&dir)?;
                (dir, Some(ours))
            }
        };
        Ok(Draft { store: store.clone(), name: name.to_owned(), dir, dataset, done: false, _ours: ours })
    }

    /// Makes a disk.
    fn disk(&mut self, conf: &Conf, n: usize, image: Option<&Path>) -> Result<()> {
        let get = |key: &str| conf.get(&format!("disk{n}_{key}")).unwrap_or_default();
        let (name, dev) = (get("name"), get("dev"));
        let size = match get("size") {
            "" => SIZE,
            size => size,
        };
        let path = match dev {
            "custom" | "iscsi" | "9p" => return Ok(()),
            "zvol" | "sparse-zvol" => volume(self.dataset.as_deref(), name, size, dev, conf)?,
            _ => {
                let path = self.dir.join(name);
                empty(&path, util::size(size)?)?;
                path
            }
        };
        let Some(image) = image else { return Ok(()) };
        println!("Copying {} ...", image.display());
        tools::convert((image, Format::Auto), (&path, Format::Raw), true, &mut |_, _| true)?;
        if !dev.ends_with("zvol") {
            let bytes = util::size(size)?;
            // An image that is larger than the disk would lose its end.
            tools::resize(&path, Format::Raw, |old| Some(old.max(bytes)), false)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let place = self.store.path.join(&self.name);
        if self.dir != place {
            std::fs::rename(&self.dir, &place).with_context(|| place.display().to_string())?;
        }
        self.done = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let gone = match &self.dataset {
            Some(dataset) => zfs::destroy(dataset),
            None => std::fs::remove_dir_all(&self.dir).map_err(Into::into),
        };
        if let Err(e) = gone {
            util::warn(format!("{}: {e:#}", self.dir.display()));
        }
    }
}

/// A file for a disk. Only the owner may read what a guest keeps.
fn empty(path: &Path, bytes: u64) -> Result<()> {
    let make = || {
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.set_len(bytes)
    };
    make().with_context(|| path.display().to_string())
}

fn volume(dataset: Option<&str>, name: &str, size: &str, dev: &str, conf: &Conf) -> Result<PathBuf> {
    let dataset = dataset.context("cannot use ZVOL storage unless ZFS support is enabled")?;
    zfs::create_volume(&format!("{dataset}/{name}"), size, dev == "sparse-zvol", conf.or("zfs_zvol_opts", ""))?;
    let path = PathBuf::from(format!("/dev/zvol/{dataset}/{name}"));
    // devfs takes its time.
    for _ in 0..300 {
        if path.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Ok(path)
}

/// `vm add`.
///
/// # Errors
/// Why not.
pub fn add(host: &Host, args: &[String]) -> Result<u8> {
    let (options, rest) = util::getopt(args, "d:t:s:")?;
    let get = |letter: char| options.iter().rfind(|(l, _)| *l == letter).map(|(_, value)| *value);
    let ([name], Some(what)) = (rest, get('s')) else { return usage::missing("add") };
    let guest = host.guest(name)?;
    let conf = &guest.conf;
    let count = |what: &str| (0..).take_while(|n| conf.get(&format!("{what}{n}_type")).is_some()).count();
    match get('d') {
        Some("disk") => {
            let n = count("disk");
            let kind = n.checked_sub(1).and_then(|last| conf.get(&format!("disk{last}_type")));
            let kind = kind.context("failed to get emulation type of the existing guest disks")?;
            let dev = get('t').unwrap_or("file");
            let bytes = util::size(what)?;
            let image = match dev {
                "file" => {
                    let image = format!("disk{n}.img");
                    empty(&guest.file(&image), bytes)?;
                    image
                }
                "zvol" | "sparse-zvol" => {
                    let image = format!("disk{n}");
                    volume(guest.dataset().as_deref(), &image, what, dev, conf)?;
                    image
                }
                _ => bail!("device type must be one of the following: zvol sparse-zvol file"),
            };
            let set = |key: &str, value: &str| Change::set(format!("disk{n}_{key}"), value);
            edit(&guest.conf_path(), &[set("name", &image), set("type", kind), set("dev", dev)])?;
        }
        Some("network") => {
            if !host.system.words("switch_list").iter().any(|switch| switch == what) {
                util::warn(format!("there is no switch {what:?} yet"));
            }
            let n = count("network");
            let kind = n.checked_sub(1).and_then(|last| conf.get(&format!("network{last}_type")));
            let set = |key: &str, value: &str| Change::set(format!("network{n}_{key}"), value);
            edit(&guest.conf_path(), &[set("type", kind.unwrap_or("virtio-net")), set("switch", what)])?;
        }
        _ => bail!("device must be one of the following: disk network"),
    }
    Ok(0)
}

/// What cloud-init in the guest is to find.
struct CloudInit {
    network: Option<Vec<(String, String)>>,
    keys: Vec<String>,
    user_data: Option<Vec<u8>>,
}

impl CloudInit {
    fn new<'a>(get: impl Fn(char) -> Option<&'a str>) -> Result<Option<CloudInit>> {
        for (letter, what) in [('k', "injecting public key"), ('n', "network config"), ('u', "user-data file")] {
            if get(letter).is_some() && get('C').is_none() {
                bail!("cloud-init is required for {what}. Use -C to enable it.");
            }
        }
        if get('k').is_some() && get('u').is_some() {
            bail!("-u and -k are mutually exclusive; use one or the other");
        }
        if get('C').is_none() {
            return Ok(None);
        }
        let read = |path: &str| std::fs::read(path).with_context(|| path.to_owned());
        let keys = get('k').map(read).transpose()?.unwrap_or_default();
        let keys = String::from_utf8(keys).context("the file with public keys is no text")?;
        let keys = keys.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect();
        let network = get('n').map(network_settings).transpose()?;
        Ok(Some(CloudInit { network, keys, user_data: get('u').map(read).transpose()? }))
    }

    fn write(&self, dir: &Path, name: &str, conf: &Conf) -> Result<()> {
        let dir = dir.join(".cloud-init");
        std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        let put = |file: &str, text: &[u8]| {
            let path = dir.join(file);
            std::fs::write(&path, text).with_context(|| path.display().to_string())
        };
        let mut host = name;
        if let Some(network) = &self.network {
            put("network-config", network_config(network, conf.or("network0_mac", "")).as_bytes())?;
            host = network.iter().rfind(|(key, _)| key == "hostname").map_or(host, |(_, value)| value);
        }
        put("meta-data", format!("instance-id: {}\nlocal-hostname: {host}\n", conf.or("uuid", "")).as_bytes())?;
        let mut text = "#cloud-config\nresize_rootfs: True\nmanage_etc_hosts: localhost\n".to_owned();
        if !self.keys.is_empty() {
            text.push_str("ssh_authorized_keys:\n");
            self.keys.iter().for_each(|key| text.push_str(&format!("  - {key}\n")));
        }
        put("user-data", self.user_data.as_deref().unwrap_or(text.as_bytes()))
    }
}

/// `key=value;...`.
fn network_settings(text: &str) -> Result<Vec<(String, String)>> {
    let keys = ["interface", "ip", "gateway4", "gateway6", "nameservers", "searchdomains", "hostname"];
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').with_context(|| format!("invalid netconfig entry - {pair:?}"))?;
        if !keys.contains(&key) {
            bail!("invalid netconfig option - {key:?}; there are {}", keys.join(", "));
        }
        Ok((key.to_owned(), value.to_owned()))
    };
    text.split(';').filter(|part| !part.is_empty()).map(pair).collect()
}

/// Network settings in the form (version 2) that cloud-init reads.
fn network_config(settings: &[(String, String)], mac: &str) -> String {
    let get = |key: &str| settings.iter().rfind(|(k, _)| k == key).map(|(_, value)| value.as_str());
    let get = |key: &str| get(key).filter(|value| !value.is_empty());
    let mut text = "version: 2\nethernets:\n  id0:\n".to_owned();
    let mut line = |depth: usize, line: String| {
        let _ = writeln!(text, "{:depth$}{line}", "");
    };
    line(4, format!("set-name: {}", get("interface").unwrap_or("eth0")));
    line(4, "match:".to_owned());
    line(6, format!("macaddress: {mac}"));
    let addresses = get("ip").unwrap_or_default();
    if !addresses.is_empty() {
        line(4, format!("addresses: [{addresses}]"));
    }
    let has = |mark: char| addresses.split(',').any(|address| address.contains(mark));
    // What has no address of a family gets one from the network.
    if !addresses.split(',').any(|address| address.contains('.') && !address.contains(':')) {
        line(4, "dhcp4: true".to_owned());
    }
    if !has(':') {
        line(4, "dhcp6: true".to_owned());
        line(4, "accept-ra: true".to_owned());
    }
    if get("nameservers").or(get("searchdomains")).is_some() {
        line(4, "nameservers:".to_owned());
        for (key, name) in [("nameservers", "addresses"), ("searchdomains", "search")] {
            if let Some(value) = get(key) {
                line(6, format!("{name}: [{value}]"));
            }
        }
    }
    if get("gateway4").or(get("gateway6")).is_some() {
        line(4, "routes:".to_owned());
        for (key, to) in [("gateway4", "0.0.0.0/0"), ("gateway6", "::/0")] {
            if let Some(via) = get(key) {
                line(6, format!("- to: {to}"));
                line(8, format!("via: {via}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::rcconf::RcConf;

    fn host(name: &str) -> Host {
        let dir = std::env::temp_dir().join(format!("bhyve-rs-create-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Host::new(RcConf::default(), dir.to_str(), &dir.join("run"), false).unwrap()
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_guest_is_a_template_with_a_disk() {
        let host = host("guest");
        assert_eq!(create(&host, &words("-s 1M -c 3 -m 1G web")).unwrap(), 0);
        let guest = host.find("web").unwrap();
        assert_eq!((guest.conf.get("cpu"), guest.conf.get("memory")), (Some("3"), Some("1G")));
        assert_eq!(guest.conf.or("uuid", "").len(), 36);
        assert!(guest.conf.or("network0_mac", "").starts_with("58:9c:fc:0"));
        assert_eq!(std::fs::metadata(guest.file("disk0.img")).unwrap().len(), 1 << 20);
        assert!(create(&host, &words("web")).unwrap_err().to_string().contains("already exists"));
        add(&host, &words("-d disk -s 2M web")).unwrap();
        add(&host, &words("-d network -s public web")).unwrap();
        let guest = host.find("web").unwrap();
        assert_eq!(
            (guest.conf.get("disk1_name"), guest.conf.get("disk1_type")),
            (Some("disk1.img"), Some("virtio-blk"))
        );
        assert_eq!((guest.conf.get("network1_switch"), guest.conf.get("network1_mac")), (Some("public"), None));
        std::fs::remove_dir_all(host.dir()).unwrap();
    }

    #[test]
    fn the_users_template_wins_and_its_sizes_do_not_stay() {
        let host = host("template");
        let text =
            "# mine\nloader=\"uefi\"\ncpu=1\nmemory=1G\ndisk0_type=\"nvme\"\ndisk0_name=\"a.img\"\ndisk0_size=\"4M\"\n";
        std::fs::write(host.dir().join(".templates/default.conf"), text).unwrap();
        create(&host, &words("web")).unwrap();
        let guest = host.find("web").unwrap();
        let conf = std::fs::read_to_string(guest.conf_path()).unwrap();
        assert!(conf.starts_with("# mine\nloader=\"uefi\"\ncpu=1\n") && !conf.contains("size"), "{conf}");
        assert_eq!(std::fs::metadata(guest.file("a.img")).unwrap().len(), 4 << 20);
        std::fs::remove_dir_all(host.dir()).unwrap();
    }

    #[test]
    fn what_cannot_be_made_leaves_nothing() {
        let host = host("nothing");
        let before = std::fs::read_dir(host.dir()).unwrap().count();
        let bad = |text: &str| std::fs::write(host.dir().join(".templates/bad.conf"), text).unwrap();
        for (template, args) in [
            ("disk0_name=x\n", "-t bad -s 1Q web"),
            ("disk0_name=../x\n", "-t bad web"),
            ("disk0_name=x\ndisk0_dev=zvol\n", "-t bad web"),
            ("cpu=1\n", "-t bad web"),
            ("disk0_name=x\n", "-t missing web"),
            ("disk0_name=x\n", "-t bad -i missing.img web"),
            ("disk0_name=x\n", "-t bad -m 1\"G web"),
            ("disk0_name=x\n", "-t ../bad web"),
            ("disk0_name=x\n", "-d missing web"),
            ("disk0_name=x\n", "-t bad a/b"),
            ("disk0_name=x\n", "-t bad -n ip=1 web"),
        ] {
            bad(template);
            assert!(create(&host, &words(args)).is_err(), "{args}");
            assert_eq!(std::fs::read_dir(host.dir()).unwrap().count(), before, "{args}");
        }
        std::fs::remove_dir_all(host.dir()).unwrap();
    }

    #[test]
    fn an_image_fills_the_first_disk_which_keeps_its_size() {
        let host = host("image");
        std::fs::write(host.dir().join(".img/a.img"), [7; 1 << 16]).unwrap();
        create(&host, &words("-s 1M -i a.img web")).unwrap();
        let disk = std::fs::read(host.find("web").unwrap().file("disk0.img")).unwrap();
        assert!(disk.len() == 1 << 20 && disk[..1 << 16].iter().all(|b| *b == 7) && disk[1 << 16] == 0);
        std::fs::remove_dir_all(host.dir()).unwrap();
    }

    #[test]
    fn cloud_init_gets_its_files() {
        let host = host("cloud");
        let net = "ip=10.0.0.2/24;gateway4=10.0.0.1;nameservers=8.8.8.8;hostname=www;";
        create(&host, &words(&format!("-s 1M -C -n {net} web"))).unwrap();
        let guest = host.find("web").unwrap();
        let read = |name: &str| std::fs::read_to_string(guest.file(".cloud-init").join(name)).unwrap();
        assert!(read("meta-data").contains("local-hostname: www"));
        assert!(read("user-data").starts_with("#cloud-config\n"));
        let network = read("network-config");
        assert!(network.contains("    addresses: [10.0.0.2/24]\n    dhcp6: true\n"), "{network}");
        assert!(network.contains("    routes:\n      - to: 0.0.0.0/0\n        via: 10.0.0.1\n"), "{network}");
        assert_eq!(guest.conf.get("disk1_name"), Some("seed.iso"));
        std::fs::remove_dir_all(host.dir()).unwrap();
    }
}
