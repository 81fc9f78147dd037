//! What there is: `vm list`, `vm info`, `vm tags`, and the settings of the host.

use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::conf::{Change, edit};
use super::net::Net;
use super::run::bhyvectl;
use super::store::{Guest, Host, State};
use super::{argv, copies, procs, usage, util, zfs};

/// The settings of the host that `vm set` changes.
pub const SETTINGS: [&str; 4] = ["console", "compress", "decompress", "suspend"];

/// The VNC server of a running guest.
fn vnc(guest: &Guest, state: &State) -> Option<String> {
    state.pid().filter(|_| guest.conf.yes("graphics"))?;
    let text = std::fs::read_to_string(guest.file("console")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("vnc=")).map(str::to_owned)
}

/// Where in `vm_list` a guest is, from 1.
fn autostart(host: &Host, name: &str) -> Option<usize> {
    let list = host.rc.get("vm_list").unwrap_or_default();
    list.split_whitespace().position(|word| word == name).map(|n| n + 1)
}

/// What ps(1) knows of a process: processor, resident KiB, and for how long it is there.
fn usage_of(pid: u32) -> Option<(String, u64, String)> {
    let text = util::output("ps", &["-o", "%cpu=", "-o", "rss=", "-o", "etime=", "-p", &pid.to_string()]).ok()?;
    let mut words = text.split_whitespace();
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?, words.next()?.replace('-', "d ")))
}

/// `vm list`.
///
/// # Errors
/// When the command line is wrong.
pub fn list(host: &Host, args: &[String]) -> Result<u8> {
    let (options, rest) = util::getopt(args, "rvt:")?;
    if !rest.is_empty() {
        return usage::missing("list");
    }
    let has = |letter: char| options.iter().any(|(l, _)| *l == letter);
    let tag = options.iter().rfind(|(letter, _)| *letter == 't').map(|(_, tag)| *tag);
    let verbose = has('v');
    let mut head = vec!["NAME", "DATASTORE", "LOADER", "CPU", "MEMORY", "VNC", "AUTO", "STATE", "TAGS"];
    if verbose {
        head.splice(7..7, [" %CPU", "     RSZ", "        UPTIME"]);
    }
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    let mut values = Vec::new();
    let processes = procs::list();
    for guest in host.stores.iter().flat_map(|store| host.guests(store)) {
        let tags = guest.conf.words("tags");
        let state = host.state(&guest, &processes);
        let off = matches!(state, State::Stopped | State::Suspended);
        if tag.is_some_and(|tag| !tags.iter().any(|t| t == tag)) || has('r') && off {
            continue;
        }
        let usage = state.pid().filter(|_| verbose).and_then(usage_of);
        let (vnc, auto) = (vnc(&guest, &state), autostart(host, &guest.name));
        let get = |key: &str| guest.conf.get(key);
        if host.json {
            let mut value = describe(host, &guest, &state);
            if let Some((cpu, resident, uptime)) = usage {
                value["cpu_percent"] = json!(cpu.parse::<f64>().ok());
                value["resident"] = json!(resident * 1024);
                value["uptime"] = json!(uptime);
            }
            values.push(value);
            continue;
        }
        let text = |value: Option<&str>| value.unwrap_or("-").to_owned();
        let auto = auto.map_or("No".to_owned(), |n| format!("Yes [{n}]"));
        let mut row = vec![
            guest.name.clone(),
            guest.store.name.clone(),
            get("loader").unwrap_or("none").to_owned(),
            text(get("cpu")),
            text(get("memory")),
            text(vnc.as_deref()),
            auto,
            state.text(),
            if tags.is_empty() { "-".to_owned() } else { tags.join(",") },
        ];
        if verbose {
            let resident = usage.as_ref().map_or("-".to_owned(), |(_, rss, _)| util::human(*rss, 1, 1));
            let (cpu, uptime) = usage.map_or(("-".to_owned(), "-".to_owned()), |(cpu, _, uptime)| (cpu, uptime));
            row.splice(7..7, [format!("{cpu:>5}"), format!("{resident:>8}"), format!("{uptime:>14}")]);
        }
        rows.push(row);
    }
    if host.json {
        println!("{}", Value::from(values));
    } else {
        print!("{}", util::columns(&rows));
    }
    Ok(0)
}

/// What the list has of a guest, as JSON.
fn describe(host: &Host, guest: &Guest, state: &State) -> Value {
    let get = |key: &str| guest.conf.get(key);
    json!({
        "name": guest.name,
        "datastore": guest.store.name,
        "loader": get("loader"),
        "cpu": get("cpu").and_then(|n| n.parse::<u32>().ok()),
        "memory": get("memory"),
        "vnc": vnc(guest, state),
        "autostart": autostart(host, &guest.name),
        "state": state.word(),
        "pid": state.pid(),
        "locked_by": match state {
            State::Locked(host) => Some(host),
            _ => None,
        },
        "tags": guest.conf.words("tags"),
    })
}

/// Facts in groups, for people and as JSON.
struct Facts {
    text: String,
}

impl Facts {
    fn line(&mut self, depth: usize, name: &str, value: &str) {
        self.text.push_str(&format!("{:depth$}{name}: {value}\n", ""));
    }

    fn group(&mut self, name: &str) {
        self.text.push_str(&format!("\n  {name}\n"));
    }

    fn bytes(&mut self, depth: usize, name: &str, bytes: u64) {
        self.line(depth, name, &format!("{bytes} ({})", util::human(bytes, 3, 0)));
    }
}

/// `vm info`.
///
/// # Errors
/// When a guest is not there.
pub fn info(host: &Host, names: &[String]) -> Result<u8> {
    let guests = if names.is_empty() {
        host.stores.iter().flat_map(|store| host.guests(store)).collect()
    } else {
        let guest =
            |name: &String| host.find(name).with_context(|| format!("unable to locate virtual machine {name:?}"));
        names.iter().map(guest).collect::<Result<Vec<_>>>()?
    };
    let processes = procs::list();
    let mut values = Vec::new();
    for guest in guests {
        let (text, value) = one(host, &guest, &host.state(&guest, &processes));
        values.push(value);
        if !host.json {
            println!("{text}");
        }
    }
    if host.json {
        println!("{}", Value::from(values));
    }
    Ok(0)
}

fn one(host: &Host, guest: &Guest, state: &State) -> (String, Value) {
    let conf = &guest.conf;
    let mut facts = Facts { text: String::new() };
    let mut value = describe(host, guest, state);
    let line = "-".repeat(24);
    facts.text.push_str(&format!("{line}\nVirtual Machine: {}\n{line}\n", guest.name));
    facts.line(2, "state", &state.text().to_lowercase());
    facts.line(2, "datastore", &guest.store.name);
    facts.line(2, "loader", conf.or("loader", "none"));
    facts.line(2, "uuid", conf.or("uuid", "auto"));
    facts.line(2, "cpu", conf.or("cpu", "-"));
    value["uuid"] = json!(conf.get("uuid"));
    value["path"] = json!(guest.dir().display().to_string());
    if conf.get("cpu_sockets").is_some() {
        let parts = ["sockets", "cores", "threads"];
        let part = |part: &str| conf.get(&format!("cpu_{part}")).map(|n| format!("{part}={n}"));
        facts.line(2, "cpu-topology", &parts.into_iter().filter_map(part).collect::<Vec<_>>().join(", "));
    }
    facts.line(2, "memory", conf.or("memory", "-"));
    let up = host.has_node(&guest.name);
    let mut consoles = serde_json::Map::new();
    if up {
        let stats = bhyvectl(host, &guest.name, "--get-stats").unwrap_or_default();
        let resident = stats.lines().find(|line| line.starts_with("Resident memory"));
        if let Some(bytes) = resident.and_then(|line| line.split_whitespace().last()?.parse().ok()) {
            facts.bytes(2, "memory-resident", bytes);
            value["resident"] = json!(bytes);
        }
        if let Ok(text) = std::fs::read_to_string(guest.file("console")) {
            facts.group("console-ports");
            for (name, end) in text.lines().filter_map(|line| line.split_once('=')) {
                facts.line(4, name, end);
                consoles.insert(name.to_owned(), end.into());
            }
            for (n, port) in argv::console_ports(conf).iter().enumerate() {
                let path = guest.file(&format!("vtcon.{port}")).display().to_string();
                facts.line(4, &format!("vtcon{n}"), &path);
                consoles.insert(format!("vtcon{n}"), path.into());
            }
        }
    }
    value["consoles"] = consoles.into();
    value["networks"] = networks(guest, up, &mut facts);
    value["disks"] = disks(guest, &mut facts);
    let snapshots = copies::snapshots(guest).unwrap_or_default();
    if !snapshots.is_empty() {
        facts.group("snapshots");
        snapshots.iter().for_each(|line| facts.text.push_str(&format!("    {line}\n")));
    }
    let names =
        snapshots.iter().filter_map(|line| line.split(['\t', ' ']).next()?.split_once('@')).map(|(_, name)| name);
    value["snapshots"] = names.collect();
    if let Some(origin) =
        guest.dataset().and_then(|dataset| zfs::property(&dataset, "origin").ok()).filter(|o| o != "-")
    {
        facts.group("clone-origin");
        facts.text.push_str(&format!("    {origin}\n"));
        value["clone_origin"] = json!(origin);
    }
    (facts.text, value)
}

fn networks(guest: &Guest, up: bool, facts: &mut Facts) -> Value {
    let (conf, net) = (&guest.conf, Net::default());
    let ports = if up { net.ports() } else { Vec::new() };
    let mut values = Vec::new();
    for n in 0.. {
        let get = |key: &str| conf.get(&format!("network{n}_{key}"));
        let Some(kind) = get("type") else { break };
        facts.group("network-interface");
        facts.line(4, "number", &n.to_string());
        facts.line(4, "emulation", kind);
        for (name, key) in [("virtual-switch", "switch"), ("fixed-mac-address", "mac"), ("fixed-device", "device")] {
            facts.line(4, name, get(key).unwrap_or("-"));
        }
        let mut value =
            json!({ "emulation": kind, "switch": get("switch"), "mac": get("mac"), "device": get("device") });
        let ours = format!("vmnet/{}/{n}/", guest.name);
        if up {
            let port = ports.iter().find(|(_, port)| port.starts_with(&ours));
            facts.line(4, "active-device", port.map_or("-", |(tap, _)| tap));
            facts.line(4, "desc", port.map_or("-", |(_, port)| port));
            if let Some((tap, _)) = port {
                facts.line(4, "mtu", net.mtu(tap).as_deref().unwrap_or("-"));
                value["active_device"] = json!(tap);
                if let Some((read, wrote)) = net.bytes(tap) {
                    // What comes in at the tap goes out of the guest.
                    facts.bytes(4, "bytes-in", wrote);
                    facts.bytes(4, "bytes-out", read);
                    value["bytes_in"] = json!(wrote);
                    value["bytes_out"] = json!(read);
                }
            }
        }
        values.push(value);
    }
    values.into()
}

fn disks(guest: &Guest, facts: &mut Facts) -> Value {
    let mut values = Vec::new();
    for disk in guest.disks() {
        let dev = if disk.dev.is_empty() { "file" } else { &disk.dev };
        let path = guest.disk_path(&disk.name, dev).ok();
        facts.group("virtual-disk");
        facts.line(4, "number", &disk.number.to_string());
        facts.line(4, "device-type", dev);
        facts.line(4, "emulation", &disk.kind);
        facts.line(4, "options", if disk.opts.is_empty() { "-" } else { &disk.opts });
        facts.line(4, "system-path", path.as_deref().unwrap_or("-"));
        let sizes = path.as_deref().and_then(|path| match dev {
            "file" => std::fs::metadata(path).ok().map(|m| (m.len(), m.blocks() * 512)),
            "zvol" | "sparse-zvol" => {
                let dataset = path.strip_prefix("/dev/zvol/")?;
                let number = |name: &str| zfs::property(dataset, name).ok()?.parse().ok();
                Some((number("volsize")?, number("refer")?))
            }
            _ => None,
        });
        if let Some((size, used)) = sizes {
            facts.bytes(4, "bytes-size", size);
            facts.bytes(4, "bytes-used", used);
        }
        values.push(json!({
            "number": disk.number,
            "device_type": dev,
            "emulation": disk.kind,
            "options": disk.opts,
            "path": path,
            "size": sizes.map(|(size, _)| size),
            "used": sizes.map(|(_, used)| used),
        }));
    }
    values.into()
}

/// The commands of `vm tags`.
pub const TAGS: [&str; 5] = ["add", "remove", "list", "find", "help"];

/// `vm tags ...`.
///
/// # Errors
/// Why not.
pub fn tags(host: &Host, args: &[String]) -> Result<u8> {
    let Some((command, args)) = args.split_first() else { return usage::missing("tags") };
    match (util::unique(command, &TAGS)?, args) {
        (change @ ("add" | "remove"), [name, tags @ ..]) if !tags.is_empty() => {
            tags.iter().try_for_each(|tag| util::check_name("tag", tag))?;
            let guest = host.guest(name)?;
            let change = if change == "add" { Change::Add } else { Change::Take };
            edit(&guest.conf_path(), &[change("tags".to_owned(), tags.to_vec())])?;
        }
        ("list", [name]) => {
            let tags = host.guest(name)?.conf.words("tags");
            if host.json {
                println!("{}", json!(tags));
            } else {
                println!("{}", tags.join(" "));
            }
        }
        ("find", [tag]) => {
            let guests = host.stores.iter().flat_map(|store| host.guests(store));
            let names: Vec<_> =
                guests.filter(|guest| guest.conf.words("tags").contains(tag)).map(|guest| guest.name).collect();
            if host.json {
                println!("{}", json!(names));
            } else {
                println!("{}", names.join(" "));
            }
        }
        ("help", _) => print!("{}", usage::of("tags").unwrap_or_default()),
        _ => return usage::missing("tags"),
    }
    Ok(0)
}

/// `vm get`.
///
/// # Errors
/// When there is no such setting.
pub fn get(host: &Host, args: &[String]) -> Result<u8> {
    let names: Vec<&str> = match args {
        [] => return usage::missing("get"),
        [all] if all == "all" => SETTINGS.to_vec(),
        names => names.iter().map(String::as_str).collect(),
    };
    if let Some(unknown) = names.iter().find(|name| !SETTINGS.contains(name)) {
        bail!("invalid configuration setting - {unknown:?}; there are {}", SETTINGS.join(", "));
    }
    if host.json {
        let values = names.iter().map(|name| ((*name).to_owned(), json!(host.system.get(name))));
        println!("{}", Value::Object(values.collect()));
        return Ok(0);
    }
    println!("{:<20}VALUE", "SETTING");
    for name in names {
        println!("{name:<20}{}", host.system.or(name, "-"));
    }
    Ok(0)
}

/// `vm set`.
///
/// # Errors
/// When there is no such setting, or it cannot have the value.
pub fn set(host: &Host, args: &[String]) -> Result<u8> {
    if args.is_empty() {
        return usage::missing("set");
    }
    let mut changes = Vec::new();
    for pair in args {
        let (key, value) = pair.split_once('=').with_context(|| format!("{pair:?} is no SETTING=VALUE"))?;
        if !SETTINGS.contains(&key) {
            bail!("invalid configuration setting - {key:?}; there are {}", SETTINGS.join(", "));
        }
        if key == "console" && !["", "console", "nmdm", "tmux"].contains(&value) {
            bail!("console={value:?}; there are console, nmdm and tmux");
        }
        changes.push(Change::set(key, value));
    }
    edit(&host.system_conf(), &changes)?;
    Ok(0)
}
