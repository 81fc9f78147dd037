//! `vm _run`: the process that has a guest: loader, bhyve(8), and again for as long as the guest reboots.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::argv::{self, Setup};
use super::conf::{Change, Conf, edit};
use super::net::{self, Net};
use super::store::{Guest, Host};
use super::switch::{Kind, Switch};
use super::{copies, procs, util};
use crate::compat::Tool;

/// There is no such guest.
const NO_GUEST: u8 = 5;
/// It runs already.
const RUNNING: u8 = 10;
/// Something is wrong with its settings, or with the host.
const BAD_SETUP: u8 = 15;

/// Where firmware images are.
const FIRMWARE: &str = "/usr/local/share/uefi-firmware";
/// How long `start` waits for a guest to come up, and for its loader.
const COMING_UP: Duration = Duration::from_secs(10);
const LOADING: Duration = Duration::from_secs(3);
/// Between two looks at a process.
const BETWEEN: Duration = Duration::from_millis(20);
/// What is kept of what a process says.
const LAST_WORDS: usize = 4096;

/// How a guest is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// Its first serial port is this terminal.
    pub foreground: bool,
    /// ... which tmux(1) has made.
    pub tmux: bool,
    /// Who started it reads on standard output how it went.
    pub report: bool,
}

/// This program, as it was called or under another name.
///
/// # Errors
/// When it cannot be found.
pub fn this_program(tool: Tool, host: &Host) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.arg0(tool.name()).env("BHYVE_RS_RUN_DIR", &host.run_dir);
    Ok(command)
}

/// Has bhyvectl(8) do something to a guest.
///
/// # Errors
/// What it says.
pub fn bhyvectl(host: &Host, name: &str, order: &str) -> Result<String> {
    let vm = format!("--vm={name}");
    let out = this_program(Tool::Bhyvectl, host)?.args([order, &vm]).stdin(Stdio::null()).output()?;
    if !out.status.success() {
        bail!("bhyvectl {order} {vm}: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// `vm _run [-ft] NAME [ISO]`; its status says what became of the guest.
///
/// # Errors
/// When the command line is wrong.
pub fn main(host: &Host, args: &[String]) -> Result<u8> {
    let (options, rest) = util::getopt(args, "ftr")?;
    let has = |letter: char| options.iter().any(|(l, _)| *l == letter);
    let how = How { foreground: has('f'), tmux: has('t'), report: has('r') };
    let mut report = Report { wanted: how.report };
    let name = rest.first().map_or("", String::as_str);
    let media = rest.get(1).filter(|media| !media.is_empty()).cloned();
    let Some(guest) = host.find(name) else {
        report.failed("there is no such guest");
        return Ok(NO_GUEST);
    };
    let lock = match guest.lock() {
        Ok(Some(lock)) if procs::stage(&procs::list(), name).is_none() => lock,
        Ok(_) => {
            report.failed("guest appears to be running already");
            return Ok(RUNNING);
        }
        Err(e) => {
            report.failed(format!("{e:#}"));
            return Ok(BAD_SETUP);
        }
    };
    let mut taps = Vec::new();
    let mut runner = Runner { host, guest, how, report, taps: &mut taps };
    let status = runner.run(media).unwrap_or_else(|e| {
        runner.guest.log(&format!("fatal; {e:#}"));
        runner.report.failed(format!("{e:#}"));
        BAD_SETUP
    });
    runner.clear_up();
    drop(lock);
    Ok(status)
}

/// What is said to who started it.
struct Report {
    wanted: bool,
}

impl Report {
    fn line(&mut self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    fn warning(&mut self, text: &str) {
        match self.wanted {
            true => self.line(&format!("warning {text}")),
            false => util::warn(text),
        }
    }

    fn ready(&mut self) {
        if std::mem::take(&mut self.wanted) {
            self.line("ready");
        }
    }

    fn failed(&mut self, text: impl std::fmt::Display) {
        match std::mem::take(&mut self.wanted) {
            true => self.line(&format!("failed {text}")),
            false => eprintln!("vm: ERROR: {text}"),
        }
    }
}

/// What to do when bhyve(8) has ended.
fn goes_on(conf: &Conf, status: u8, asked_for: bool) -> bool {
    match status {
        0 => conf.or("on_restart", "restart") == "restart",
        1 | 2 => asked_for,
        _ => conf.or("on_fault", "shutdown") == "restart",
    }
}

struct Runner<'a> {
    host: &'a Host,
    guest: Guest,
    how: How,
    report: Report,
    taps: &'a mut Vec<String>,
}

impl Runner<'_> {
    fn log(&self, text: &str) {
        self.guest.log(text);
    }

    fn run(&mut self, media: Option<String>) -> Result<u8> {
        copies::finish(&self.guest)?;
        self.seed()?;
        if self.guest.conf.get("uuid").is_none() {
            self.keep("uuid", util::uuid()?)?;
        }
        let conf = self.guest.conf.clone();
        self.log("initialising");
        for (what, key, default) in [
            ("loader", "loader", ""),
            ("cpu", "cpu", ""),
            ("memory", "memory", ""),
            ("hostbridge", "hostbridge", "standard"),
            ("com ports", "comports", "com1"),
            ("uuid", "uuid", ""),
            ("debug mode", "debug", "no"),
            ("primary disk", "disk0_name", ""),
            ("primary disk dev", "disk0_dev", "file"),
        ] {
            self.log(&format!(" [{what}: {}]", conf.or(key, default)));
        }
        for key in ["loader", "cpu", "memory"] {
            conf.get(key).with_context(|| format!("unable to start - {key} is missing in its configuration"))?;
        }
        let mut setup = Setup {
            uuid: conf.or("uuid", "").to_owned(),
            bootrom: self.bootrom()?,
            media: media.clone(),
            first: true,
            coms: self.coms()?,
            null_iso: self.host.dir().join(".config/null.iso").display().to_string(),
            ..Setup::default()
        };
        setup.screen = self.screen(&setup)?;
        setup.nics = self.nics()?;
        // What can be wrong with the settings is found before anything starts.
        argv::build(&self.guest, &setup)?;
        self.log("booting");
        for run in 1_u64.. {
            setup.first = run == 1;
            if let Some(status) = self.load(&setup, media.as_ref().filter(|_| run == 1))? {
                return Ok(status);
            }
            let argv = argv::build(&self.guest, &setup)?;
            self.log(&format!(" [bhyve options: {}]", argv.options.join(" ")));
            self.log(&format!(" [bhyve devices: {}]", argv.devices.join(" ")));
            self.log(&format!(" [bhyve console: {}]", argv.coms.join(" ")));
            if !argv.media.is_empty() {
                self.log(&format!(" [bhyve iso device: {}]", argv.media.join(" ")));
            }
            self.log(&format!("starting bhyve (run {run})"));
            let status = self.bhyve(&argv.all(&self.guest.name))?;
            self.clear_consoles();
            let flag = self.guest.file("restart");
            let asked_for = matches!(status, 1 | 2) && std::fs::remove_file(&flag).is_ok();
            if !goes_on(&conf, status, asked_for) {
                return Ok(status);
            }
            self.log("restarting");
            if status > 2 {
                // What fails at once must not keep the host busy.
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        Ok(BAD_SETUP)
    }

    /// Keeps a setting that was made up.
    fn keep(&mut self, key: &str, value: String) -> Result<()> {
        edit(&self.guest.conf_path(), &[Change::set(key, &*value)])?;
        self.guest.conf.put(key, &value);
        Ok(())
    }

    /// The disc for cloud-init, made when the guest first starts.
    fn seed(&self) -> Result<()> {
        let (files, seed) = (self.guest.file(".cloud-init"), self.guest.file("seed.iso"));
        if !files.is_dir() || seed.exists() {
            return Ok(());
        }
        let (from, to) = (files.display().to_string(), seed.display().to_string());
        let made = if cfg!(target_os = "freebsd") {
            util::output("makefs", &["-t", "cd9660", "-o", "R,L=cidata", &to, &from])
        } else {
            let program = ["genisoimage", "mkisofs", "xorrisofs"].into_iter().find(|p| util::which(p).is_some());
            let program = program.context("cloud-init needs genisoimage, mkisofs or xorrisofs to make seed.iso")?;
            util::output(program, &["-quiet", "-R", "-V", "cidata", "-o", &to, &from])
        };
        made.context("can't write seed.iso for cloud-init")?;
        self.log(&format!("created {to} for cloud-init"));
        Ok(())
    }

    /// The boot ROM, of guests that have no loader.
    fn bootrom(&self) -> Result<Option<String>> {
        let image = |file: &str| Path::new(FIRMWARE).join(file);
        let rom = match self.guest.conf.or("loader", "") {
            "bios" => return Ok(Some("bios".to_owned())),
            // The one that there is instead starts what that image starts.
            "uefi-csm" if !image("BHYVE_UEFI_CSM.fd").exists() => return Ok(Some("bios".to_owned())),
            "uefi-csm" => image("BHYVE_UEFI_CSM.fd"),
            "uefi-devel" => image("BHYVE_UEFI_CODE-devel.fd"),
            "uefi-custom" => self.guest.store.path.join(".config/BHYVE_UEFI.fd"),
            loader if loader == "uefi" || loader.starts_with("uefi-") => image("BHYVE_UEFI.fd"),
            _ => return Ok(None),
        };
        if !rom.exists() {
            bail!("unable to locate firmware {}", rom.display());
        }
        let mut text = rom.display().to_string();
        if self.guest.conf.yes("uefi_vars") {
            let vars = self.guest.file("uefi-vars.fd");
            if !vars.exists() {
                let template = image("BHYVE_UEFI_VARS.fd");
                std::fs::copy(&template, &vars)
                    .with_context(|| format!("UEFI vars template {}", template.display()))?;
            }
            text.push_str(&format!(",{}", vars.display()));
        }
        Ok(Some(text))
    }

    /// The ends of the COM ports, which are written down for `vm console`.
    fn coms(&self) -> Result<Vec<(String, String)>> {
        let mut ports = self.guest.conf.words("comports");
        if ports.is_empty() {
            ports.push("com1".to_owned());
        }
        let nmdm = self.host.system.get("console") == Some("nmdm");
        let mut note = String::new();
        let mut coms = Vec::new();
        for (n, port) in (1..).zip(ports) {
            if self.how.tmux && n == 1 {
                note.push_str(&format!("{port}=tmux/{}\n", tmux_name(&self.guest.name)));
            }
            let end = match () {
                () if self.how.foreground && n == 1 => "stdio".to_owned(),
                () if nmdm => {
                    let pair = format!("/dev/nmdm-{}.{n}", self.guest.name);
                    note.push_str(&format!("{port}={pair}B\n"));
                    format!("{pair}A")
                }
                () => {
                    note.push_str(&format!("{port}=console\n"));
                    "console".to_owned()
                }
            };
            coms.push((port, end));
        }
        let path = self.guest.file("console");
        std::fs::write(&path, note).with_context(|| path.display().to_string())?;
        Ok(coms)
    }

    /// Where the screen listens, if there is one.
    fn screen(&mut self, setup: &Setup) -> Result<Option<String>> {
        let conf = &self.guest.conf;
        if !argv::has_screen(conf, setup) {
            return Ok(None);
        }
        let listen = conf.or("graphics_listen", "0.0.0.0").to_owned();
        let port = match conf.get("graphics_port") {
            Some(port) => port.to_owned(),
            None => {
                let free = |port: &u16| std::net::TcpListener::bind((listen.trim_matches(['[', ']']), *port)).is_ok();
                let Some(port) = (5900..6100).find(free) else {
                    let text = "unable to allocate a network port for graphics/vnc";
                    self.log(&format!("warning; {text}"));
                    self.report.warning(text);
                    return Ok(None);
                };
                self.log(&format!("dynamically allocated port {port} for vnc connections"));
                port.to_string()
            }
        };
        let place = format!("{listen}:{port}");
        let path = self.guest.file("console");
        let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
        writeln!(file, "vnc={place}").with_context(|| path.display().to_string())?;
        Ok(Some(place))
    }

    /// Backends for the NICs.
    fn nics(&mut self) -> Result<Vec<Option<String>>> {
        let mut nics = Vec::new();
        for n in 0.. {
            if self.guest.conf.get(&format!("network{n}_type")).is_none() {
                break;
            }
            let key = format!("network{n}_mac");
            if self.guest.conf.get(&key).is_none() {
                let mac = util::mac()?;
                self.log(&format!("generated static mac {mac}"));
                self.keep(&key, mac)?;
            }
            let mac = self.guest.conf.or(&key, "").to_owned();
            let nic = self.nic(n, &mac).unwrap_or_else(|e| {
                let text = format!("network{n} is not connected: {e:#}");
                self.log(&format!("warning; {text}"));
                self.report.warning(&text);
                None
            });
            nics.push(nic.map(|nic| format!("{nic},mac={mac}")));
        }
        Ok(nics)
    }

    fn nic(&mut self, n: usize, mac: &str) -> Result<Option<String>> {
        let conf = &self.guest.conf;
        let get = |key: &str| conf.get(&format!("network{n}_{key}")).map(str::to_owned);
        let name = get("switch");
        let switch = name.as_deref().map(|name| Switch::of(self.host, name));
        if let Some(Ok(switch)) = &switch {
            match switch.kind {
                Kind::Vale => return Ok(Some(net::vale(&switch.name, mac))),
                Kind::Netgraph => return Ok(Some(net::netgraph(&switch.name))),
                Kind::Standard | Kind::Manual => {}
            }
        }
        let host_net = Net::default();
        let port = format!("vmnet/{}/{n}/{}", self.guest.name, name.as_deref().unwrap_or("custom"));
        let tap = match get("device") {
            Some(tap) => {
                host_net.describe(&tap, &port)?;
                tap
            }
            None => {
                let tap = host_net.create_tap(get("name").as_deref(), &port)?;
                self.taps.push(tap.clone());
                tap
            }
        };
        self.log(&format!("initialising network device {tap}"));
        // A tap without a bridge is still a NIC that the guest may have settings for.
        let join = || -> Result<()> {
            let Some(switch) = switch else { return Ok(()) };
            let switch = switch?;
            let bridge = switch.id().with_context(|| format!("failed to find virtual switch {:?}", switch.name))?;
            if let Some(mtu) = host_net.mtu(&bridge).filter(|mtu| mtu != "1500") {
                self.log(&format!("setting mtu of {tap} to {mtu}"));
                host_net.set_mtu(&tap, &mtu)?;
            }
            let span = conf.yes(&format!("network{n}_span"));
            let member = if span { "span" } else { "addm" };
            self.log(&format!("adding {tap} -> {bridge} ({} {member})", switch.name));
            host_net.add_member(&bridge, &tap, span)?;
            self.log(&format!("bring up {tap} -> {bridge} ({} {member})", switch.name));
            host_net.up(&tap)?;
            if switch.get("private").is_some_and(super::conf::yes) {
                host_net.set_private(&bridge, &tap)?;
            }
            Ok(())
        };
        if let Err(e) = join() {
            let text = format!("{tap} is on no switch: {e:#}");
            self.log(&format!("warning; {text}"));
            self.report.warning(&text);
        }
        Ok(Some(tap))
    }

    /// Prepares a guest for bhyve(8), by its loader if it has one. A status ends the run.
    fn load(&mut self, setup: &Setup, media: Option<&String>) -> Result<Option<u8>> {
        let name = self.guest.name.clone();
        if self.host.has_node(&name) && (setup.bootrom.is_none() || setup.first) {
            // Before the first run it is what a process that died has left.
            bhyvectl(self.host, &name, "--destroy").context("failed to destroy existing vmm device")?;
        }
        self.prestart();
        if setup.bootrom.is_some() {
            return Ok(None);
        }
        let console = setup.coms.first().map(|(_, end)| end.as_str()).filter(|end| end.starts_with("/dev/"));
        let setup = Setup { media: media.cloned(), ..setup.clone() };
        let loader = argv::loader(&self.guest, &setup, console)?;
        for (file, text) in &loader.files {
            let path = self.guest.file(file);
            self.log(&format!("create file {}", path.display()));
            text.lines().for_each(|line| self.log(&format!(" -> {line}")));
            std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        self.log(&format!("{} {}", loader.program, loader.args.join(" ")));
        let tool = if loader.program == "bhyveload" { Tool::Bhyveload } else { Tool::GrubBhyve };
        let (status, said) = self.child(tool, &loader.args, LOADING)?;
        if status != 0 {
            self.log(&format!("fatal; loader returned error {status}"));
            self.report.failed(format!("{} returned error {status}: {said}", loader.program));
            return Ok(Some(status));
        }
        Ok(None)
    }

    /// The user's script, before every start of bhyve(8).
    fn prestart(&self) {
        let Some(script) = self.guest.conf.get("prestart") else { return };
        let script = if script.starts_with('/') { script.into() } else { self.guest.file(script) };
        let dataset = self.guest.dataset().unwrap_or_else(|| format!("/{}", self.guest.name));
        self.log(&format!("running prestart script {} {} {dataset}", script.display(), self.guest.name));
        let mut command = Command::new(&script);
        command.args([&self.guest.name, &dataset]).current_dir(self.guest.dir()).stdin(Stdio::null());
        if !self.how.foreground {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        if let Err(e) = command.status() {
            self.log(&format!("prestart script: {e}"));
        }
    }

    fn bhyve(&mut self, args: &[String]) -> Result<u8> {
        let (status, said) = self.child(Tool::Bhyve, args, COMING_UP)?;
        self.log(&format!("bhyve exited with status {status}"));
        said.lines().for_each(|line| self.log(&format!(" | {line}")));
        if self.report.wanted && status > 2 {
            let last = said.lines().last().unwrap_or("it says nothing; debug=\"yes\" keeps its log").to_owned();
            self.report.failed(format!("bhyve exited with status {status}: {last}"));
        }
        // It ran, if only for a moment.
        self.report.ready();
        Ok(status)
    }

    /// Runs one of our programs to its end; returns its status, and its last words. Who waits hears that it is up when
    /// it has its title, or at the latest after `limit`.
    fn child(&mut self, tool: Tool, args: &[String], limit: Duration) -> Result<(u8, String)> {
        let mut command = this_program(tool, self.host)?;
        command.args(args).current_dir("/");
        let log = self.guest.conf.yes("debug").then(|| self.guest.file("bhyve.log"));
        if !self.how.foreground {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        }
        if let Some(path) = &log {
            let mut options = OpenOptions::new();
            let file = options.create(true).append(true).open(path).with_context(|| path.display().to_string())?;
            // What a loader has said stays.
            if tool == Tool::Bhyve && self.guest.conf.get("loader").is_some_and(|l| l.starts_with("uefi")) {
                file.set_len(0)?;
            }
            command.stderr(file);
        }
        let mut child = command.spawn().with_context(|| format!("cannot start {}", tool.name()))?;
        let words = child.stderr.take().map(|pipe| std::thread::spawn(move || last_words(pipe)));
        if tool == Tool::Bhyve {
            self.limit(child.id());
        }
        let status = self.supervise(&mut child, limit)?;
        // A process that somebody else has become the parent of may still have the pipe.
        let said = match words {
            Some(words) => words.join().unwrap_or_default(),
            None => log.and_then(|path| std::fs::read(path).ok()).map(|text| tail(&text)).unwrap_or_default(),
        };
        let code = status.code().or(status.signal().map(|signal| signal + 128)).unwrap_or(255);
        Ok((u8::try_from(code).unwrap_or(255), said))
    }

    fn supervise(&mut self, child: &mut Child, limit: Duration) -> Result<ExitStatus> {
        let begun = Instant::now();
        let title = format!("bhyve: {}", self.guest.name);
        while self.report.wanted {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if procs::line(child.id()).is_some_and(|line| line == title) || begun.elapsed() > limit {
                self.report.ready();
            }
            std::thread::sleep(BETWEEN);
        }
        Ok(child.wait()?)
    }

    /// Priority and rctl(8) limits of bhyve's process.
    fn limit(&self, pid: u32) {
        let conf = &self.guest.conf;
        let pid = pid.to_string();
        if let Some(priority) = conf.get("priority")
            && let Err(e) = util::output("renice", &[priority, "-p", &pid])
        {
            self.log(&format!("warning; {e:#}"));
        }
        for (key, resource) in [
            ("pcpu", "pcpu:deny"),
            ("rbps", "readbps:throttle"),
            ("wbps", "writebps:throttle"),
            ("riops", "readiops:throttle"),
            ("wiops", "writeiops:throttle"),
        ] {
            let Some(value) = conf.get(&format!("limit_{key}")) else { continue };
            match util::output("rctl", &["-a", &format!("process:{pid}:{resource}={value}")]) {
                Ok(_) => self.log(&format!("rctl {resource}={value}")),
                Err(e) => self.log(&format!("warning; limit_{key}: {e:#}")),
            }
        }
    }

    fn clear_consoles(&self) {
        for port in argv::console_ports(&self.guest.conf) {
            let _ = std::fs::remove_file(self.guest.file(&format!("vtcon.{port}")));
        }
    }

    fn clear_up(&mut self) {
        for tap in self.taps.drain(..) {
            self.guest.log(&format!("destroying network device {tap}"));
            if let Err(e) = Net::default().destroy(&tap) {
                self.guest.log(&format!("warning; {e:#}"));
            }
        }
        self.log("stopped");
        if self.host.has_node(&self.guest.name)
            && let Err(e) = bhyvectl(self.host, &self.guest.name, "--destroy")
        {
            self.log(&format!("warning; {e:#}"));
        }
        let _ = std::fs::remove_file(self.guest.file("console"));
    }
}

/// The name of a session of tmux(1), which takes dots for something else.
pub fn tmux_name(guest: &str) -> String {
    guest.replace('.', "~")
}

/// The end of what comes out of a pipe.
fn last_words(mut pipe: impl Read) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = pipe.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..n]);
        if kept.len() > 2 * LAST_WORDS {
            kept.drain(..kept.len() - LAST_WORDS);
        }
    }
    tail(&kept)
}

fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LAST_WORDS)..]).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_comes_back_when_it_reboots_and_stays_off_when_it_powers_off() {
        let conf = Conf::default();
        assert!(goes_on(&conf, 0, false));
        for status in [1, 2] {
            assert!(!goes_on(&conf, status, false));
            assert!(goes_on(&conf, status, true), "vm restart has left its flag");
        }
        for status in [3, 4, 71, 134] {
            assert!(!goes_on(&conf, status, false));
            assert!(goes_on(&Conf::parse("on_fault=restart\n"), status, false));
        }
        assert!(!goes_on(&Conf::parse("on_restart=shutdown\n"), 0, false));
    }

    #[test]
    fn the_end_of_what_a_process_says_is_kept() {
        assert_eq!(last_words(&b"one\n\ntwo\n"[..]), "one\ntwo");
        let long = "x".repeat(100_000) + "\nthe end\n";
        let kept = last_words(long.as_bytes());
        assert!(kept.ends_with("the end") && kept.len() <= LAST_WORDS, "{}", kept.len());
    }
}
