//! `bhyve-rs doctor`: what of the host would keep machines from running well, and what helps.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;
use clap::Args;
use host::control;
use host::disk::{Format, tools};
use serde_json::json;

use crate::SUCCESS;
use crate::autostart::{self, GUESTS, Roster, STOP_SECONDS, State};
use crate::backend::Backends;
use crate::compat::node::Nodes;
use crate::config;
use crate::tell::{Tone, paint, quiet, short};

/// The exit status when there is something to be done.
const FINDINGS: u8 = 1;
/// Less than this is too little room for logs and for what guests write.
const LITTLE: u64 = 1 << 30;
const FREEBSD: bool = cfg!(target_os = "freebsd");

/// Look at the host for what keeps machines from running well, and say what helps.
///
/// Exits with 0 if there is nothing to be done, and with 1 if there is.
#[derive(Args)]
pub struct Doctor {
    /// Look for the machine of this file as well.
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The guests' directory.
    #[arg(long, value_name = "DIR", default_value = GUESTS)]
    dir: PathBuf,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
struct Finding {
    tone: Tone,
    what: String,
    /// What helps.
    cure: Option<String>,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn good(&mut self, what: impl Into<String>) {
        self.0.push(Finding { tone: Tone::Good, what: what.into(), cure: None });
    }

    fn warning(&mut self, what: impl Into<String>, cure: impl Into<String>) {
        self.0.push(Finding { tone: Tone::Warning, what: what.into(), cure: Some(cure.into()) });
    }

    fn bad(&mut self, what: impl Into<String>, cure: impl Into<String>) {
        self.0.push(Finding { tone: Tone::Bad, what: what.into(), cure: Some(cure.into()) });
    }
}

fn word(tone: Tone) -> &'static str {
    match tone {
        Tone::Good => "ok",
        Tone::Warning => "warning",
        Tone::Bad => "problem",
    }
}

impl Doctor {
    /// Looks and returns the exit status.
    ///
    /// # Errors
    /// None so far: what cannot be looked at is a finding.
    pub fn run(&self, run: &Path, backends: &Backends) -> Result<u8> {
        let mut found = Findings::default();
        processors(&mut found, backends);
        if FREEBSD {
            modules(&mut found);
            bridges(&mut found);
        }
        run_dir(&mut found, run);
        let roster = guests(&mut found, &self.dir, self.config.as_deref());
        space(&mut found, &roster, run);
        memory(&mut found, &roster);
        stale(&mut found, run);
        timeouts(&mut found);
        if self.json {
            let row = |f: &Finding| json!({"level": word(f.tone), "what": f.what, "fix": f.cure});
            println!("{}", json!(found.0.iter().map(row).collect::<Vec<_>>()));
        } else {
            for Finding { tone, what, cure } in found.0.iter().filter(|f| f.tone != Tone::Good || !quiet()) {
                let gap = " ".repeat("problem".len() - word(*tone).len());
                println!("{}{gap}  {what}", paint(word(*tone), *tone));
                cure.iter().for_each(|cure| println!("         fix: {cure}"));
            }
        }
        Ok(if found.0.iter().all(|f| f.tone == Tone::Good) { SUCCESS } else { FINDINGS })
    }
}

/// What a program of the host's prints, if there is one and it succeeds.
fn ask(words: &[&str]) -> Option<String> {
    let out = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Whether the processor virtualizes, and whether we get at it.
fn processors(found: &mut Findings, backends: &Backends) {
    let of = |name: &str| backends.0.iter().find(|b| b.name() == name);
    for (name, cure) in [
        (
            "kvm",
            "turn virtualization (VT-x, SVM) on in the firmware; modprobe kvm_intel or kvm_amd; join the group of \
             /dev/kvm: usermod -aG kvm USER",
        ),
        (
            "vmm",
            "turn virtualization (VT-x, SVM) on in the firmware; kldload vmm, and sysrc kld_list+=vmm for every boot",
        ),
    ] {
        let Some(backend) = of(name) else { continue };
        match (backend.available(), backend.worthwhile()) {
            (Ok(why), Ok(())) => found.good(format!("{name} runs the processors: {why}")),
            (Ok(_), Err(but)) => found.warning(
                format!("{name} is there, but {but}; machines run on the software CPU"),
                "turn virtualization (VT-x, SVM) on in the firmware, or nested virtualization in the host around this one",
            ),
            (Err(why), _) => found.warning(format!("no {name}: {why}; machines run on the software CPU, slower"), cure),
        }
    }
}

fn modules(found: &mut Findings) {
    for (module, what) in [
        ("vmm", "it runs machines on the processor"),
        ("nmdm", "consoles named /dev/nmdm need it"),
        ("if_bridge", "bridges of network cards need it"),
        ("if_tuntap", "network cards on taps need it"),
    ] {
        if ask(&["kldstat", "-q", "-m", module]).is_some() {
            found.good(format!("the kernel has {module}"));
        } else {
            let cure = format!("kldload {module}, and sysrc kld_list+={module} for every boot");
            found.warning(format!("the kernel does not have {module}: {what}"), cure);
        }
    }
    if host::process::user() != 0 {
        found.warning("only root has the right to make machines in vmm(4)", "run bhyve-rs as root");
    }
}

/// From FreeBSD 15 on a member of a bridge has no addresses of its own, unless a sysctl allows it.
fn bridges(found: &mut Findings) {
    if ask(&["sysctl", "-n", "net.link.bridge.member_ifaddrs"]).as_deref() != Some("0") {
        return;
    }
    for bridge in ask(&["ifconfig", "-g", "bridge"]).unwrap_or_default().split_whitespace() {
        for member in members(&ask(&["ifconfig", bridge]).unwrap_or_default()) {
            if has_address(&ask(&["ifconfig", member]).unwrap_or_default()) {
                let cure = format!(
                    "give them to {bridge}: sysrc ifconfig_{member}=up, and ifconfig_{bridge}=\"addm {member} ADDRESS\""
                );
                found.bad(format!("{member} is in {bridge} and has addresses, which FreeBSD 15 refuses"), cure);
            }
        }
    }
}

/// The members in what ifconfig(8) says of a bridge.
fn members(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.trim().strip_prefix("member: ")?.split_whitespace().next()).collect()
}

/// Whether what ifconfig(8) says of an interface has an address. Link-local ones come by themselves.
fn has_address(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .any(|line| line.starts_with("inet ") || line.starts_with("inet6 ") && !line.starts_with("inet6 fe80:"))
}

fn run_dir(found: &mut Findings, run: &Path) {
    match control::make_run_dir(run) {
        Ok(()) => found.good(format!("the run directory is {}", run.display())),
        Err(e) => {
            let cure = format!("make it yours alone: chown {} and chmod 700, or name another by --run-dir", user());
            found.bad(format!("{e:#}"), cure);
        }
    }
}

fn user() -> String {
    host::process::user().to_string()
}

/// The machines of the directory, and the one of a file.
fn guests(found: &mut Findings, dir: &Path, file: Option<&Path>) -> Roster {
    let mut roster = match Roster::read(dir) {
        Ok(roster) => roster,
        // Whoever asks for one machine may have no others.
        Err(_) if file.is_some() && !dir.exists() => Roster::default(),
        Err(e) if !dir.exists() => {
            let cure = format!("mkdir -p {}; bhyve-rs new NAME --dir {0} makes a machine's file", dir.display());
            found.warning(format!("{e:#}"), cure);
            Roster::default()
        }
        Err(e) => {
            found.bad(format!("{e:#}"), format!("chmod u+rx {}", dir.display()));
            Roster::default()
        }
    };
    if let Some(file) = file {
        roster.add_file(file);
    }
    let wanted = roster.guests.values().filter(|guest| guest.enabled).map(|guest| guest.name.clone()).collect();
    let planned = roster.plan(&wanted).1;
    for fault in roster.faults.iter().chain(&planned) {
        for line in fault.why.lines() {
            found.bad(format!("{}: {line}", fault.guest), "put the file right; bhyve-rs check FILE looks again");
        }
    }
    for guest in roster.guests.values() {
        let mode = std::fs::metadata(&guest.file).map(|m| m.mode()).unwrap_or(0);
        if mode & 0o022 != 0 {
            let cure = format!("chmod go-w {}", guest.file.display());
            found.bad(format!("{}: others may write its file, and so choose what it reads", guest.name), cure);
        }
    }
    if !roster.guests.is_empty() && roster.faults.is_empty() && planned.is_empty() {
        found.good(match roster.guests.len() {
            1 => "the file of a machine is right".to_owned(),
            n => format!("the files of {n} machines are right"),
        });
    }
    roster
}

/// What the disks of machines may still grow by, and what there is.
fn space(found: &mut Findings, roster: &Roster, run: &Path) {
    let mut wanted: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    let places = roster.guests.values().flat_map(|guest| {
        let Ok(node) = config::read(&guest.file, &[]) else { return Vec::new() };
        let disks = node.children("disk").iter().filter(|disk| !disk.bool("readonly") && !disk.bool("snapshot"));
        disks.map(|disk| disk.path("path").to_owned()).collect()
    });
    for path in places {
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        // A device has its room, and one that a machine has open is no one's to look into.
        let Some(info) = Some(&path).filter(|_| meta.is_file()).and_then(|p| tools::info(p, Format::Auto).ok()) else {
            continue;
        };
        let more = wanted.entry(meta.dev()).or_insert_with(|| (path.clone(), 0));
        more.1 += info.size.saturating_sub(info.used);
    }
    for (path, more) in wanted.into_values() {
        let place = path.parent().unwrap_or(&path).display().to_string();
        match host::free_space(&path) {
            Ok(free) if free < more => found.warning(
                format!("disks in {place} and beside it may grow by {}, and there are {}", short(more), short(free)),
                "make room, or add on_error = \"pause\" to the disks, so that the machines wait for it",
            ),
            Ok(free) => found.good(format!("{place} has {} for disks that may grow by {}", short(free), short(more))),
            Err(e) => found.bad(format!("{place}: {e}"), "look at the file system"),
        }
    }
    match host::free_space(run) {
        Ok(free) if free < LITTLE / 64 => {
            found.bad(format!("{} has {} left", run.display(), short(free)), "make room: logs and sockets lie there");
        }
        _ => {}
    }
}

/// What all machines that start with the host have together.
fn memory(found: &mut Findings, roster: &Roster) {
    let enabled = roster.guests.values().filter(|guest| guest.enabled);
    let sizes = enabled.filter_map(|guest| Some(config::read(&guest.file, &[]).ok()?.size("memory")));
    let (all, have) = (sizes.sum::<u64>(), host_memory());
    if have > 0 && all + LITTLE / 4 > have {
        found.warning(
            format!(
                "machines that start with the host have {} of memory together, the host has {}",
                short(all),
                short(have)
            ),
            "give them less (memory), or start fewer (autostart.enabled)",
        );
    } else if all > 0 {
        found.good(format!("machines that start with the host have {} of the host's {}", short(all), short(have)));
    }
}

/// Bytes of memory of the host; 0 if it does not say.
fn host_memory() -> u64 {
    if FREEBSD {
        return ask(&["sysctl", "-n", "hw.physmem"]).and_then(|text| text.parse().ok()).unwrap_or(0);
    }
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    total.and_then(|kib| kib.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

/// What machines left that are no more.
fn stale(found: &mut Findings, run: &Path) {
    let names = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
    };
    let mut running = Vec::new();
    for socket in names(run).into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "sock")) {
        let name = socket.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match State::of(&socket) {
            State::Running(_) => running.push(name),
            State::Stopped => found.warning(
                format!("{name} ended without cleaning up: {}", socket.display()),
                format!("rm {}, or start {name}, which replaces it", socket.display()),
            ),
            State::Silent(why) => {
                found.bad(
                    format!("{name}: {why}"),
                    format!("bhyve-rs kill {name}, and kill -9 its process if that fails"),
                );
            }
        }
    }
    for name in Nodes::of(run).list().into_iter().filter(|name| !running.contains(name)) {
        if ask(&["pgrep", "-fx", &format!("bhyve: {name}")]).is_none() {
            found.warning(
                format!("{name} is there for vmm(4)'s tools, and no process runs it"),
                format!(
                    "bhyvectl --vm={name} --destroy (bhyve-rs bhyvectl ...), unless its manager is about to start it"
                ),
            );
        }
    }
}

/// Whether the host gives machines the time that they may take to stop.
fn timeouts(found: &mut Findings) {
    let seconds = ask(&["sysrc", "-n", "bhyve_rs_timeout"]).and_then(|text| text.parse().ok()).unwrap_or(STOP_SECONDS);
    let over = autostart::exceeding(seconds);
    if over.is_empty() {
        found.good(format!("machines may take {seconds} s to stop, which the host gives them"));
    }
    for text in over {
        let (what, cure) = text.split_once(": ").unwrap_or((&text, ""));
        found.bad(what, cure);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str = "\
bridge0: flags=1008843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST,LOWER_UP> metric 0 mtu 1500
\toptions=10<VLAN_HWTAGGING>
\tether 58:9c:fc:10:ff:9d
\tmember: tap0 flags=143<LEARNING,DISCOVER,AUTOEDGE,AUTOPTP>
\t        port 5 priority 128 path cost 2000000
\tmember: em0 flags=143<LEARNING,DISCOVER,AUTOEDGE,AUTOPTP>
";

    #[test]
    fn members_of_a_bridge_and_their_addresses_are_found() {
        assert_eq!(members(BRIDGE), ["tap0", "em0"]);
        assert!(!has_address(BRIDGE));
        assert!(has_address("em0: flags=8843\n\tinet 192.0.2.7 netmask 0xffffff00 broadcast 192.0.2.255\n"));
        assert!(!has_address("em0: flags=8843\n\tinet6 fe80::1%em0 prefixlen 64 scopeid 0x1\n"));
        assert!(has_address("em0: flags=8843\n\tinet6 2001:db8::1 prefixlen 64\n"));
    }
}
