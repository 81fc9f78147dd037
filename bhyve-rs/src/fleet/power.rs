//! Starting, stopping, and talking to guests.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::run::{bhyvectl, this_program, tmux_name};
use super::store::{Guest, Host, State};
use super::{media, procs, usage, util};
use crate::compat::Tool;

/// Seconds between two guests that are started or stopped in their order.
const DELAY: u64 = 2;
/// How long a guest that was cut off may take to be gone.
const CUT: Duration = Duration::from_secs(5);

/// Who gets the guest's console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Background,
    Foreground,
    Interactive,
}

fn mode(options: &[(char, &str)]) -> Result<Mode> {
    let has = |letter: char| options.iter().any(|(l, _)| *l == letter);
    match (has('f'), has('i')) {
        (true, true) => bail!("foreground and interactive mode are mutually exclusive"),
        (true, false) => Ok(Mode::Foreground),
        (false, true) => Ok(Mode::Interactive),
        (false, false) => Ok(Mode::Background),
    }
}

fn delay(host: &Host) -> Duration {
    Duration::from_secs(host.rc.get("vm_delay").and_then(|text| text.parse().ok()).unwrap_or(DELAY))
}

/// `vm start`: the status is how many have not started.
///
/// # Errors
/// When the command line is wrong.
pub fn start(host: &Host, args: &[String]) -> Result<u8> {
    let (options, names) = util::getopt(args, "fi")?;
    let mut mode = mode(&options)?;
    if names.is_empty() {
        return usage::missing("start");
    }
    if names.len() > 1 {
        // There is one terminal only.
        mode = Mode::Background;
    }
    let mut failed = 0_u8;
    for (n, name) in names.iter().enumerate() {
        if n > 0 {
            println!("Waiting {} second(s)", delay(host).as_secs());
            std::thread::sleep(delay(host));
        }
        failed = failed.saturating_add(u8::from(!start_one(host, name, None, mode)));
    }
    Ok(failed)
}

/// `vm install`.
///
/// # Errors
/// When there is no such image.
pub fn install(host: &Host, args: &[String]) -> Result<u8> {
    let (options, rest) = util::getopt(args, "fi")?;
    let mode = mode(&options)?;
    let [name, iso] = rest else { return usage::missing("install") };
    let found = media::find(host, "iso", iso).with_context(|| format!("unable to locate iso file - {iso:?}"))?;
    Ok(u8::from(!start_one(host, name, Some(&found.display().to_string()), mode)))
}

/// `vm startall`.
///
/// # Errors
/// When it cannot be done.
pub fn startall(host: &Host) -> Result<u8> {
    let names = host.rc.get("vm_list").unwrap_or_default();
    let args: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    if args.is_empty() { Ok(0) } else { start(host, &args) }
}

/// Starts a guest, and tells how it went.
fn start_one(host: &Host, name: &str, media: Option<&str>, mode: Mode) -> bool {
    println!("Starting {name}");
    match try_start(host, name, media, mode) {
        Ok(()) => true,
        Err(e) => {
            println!("  ! {e:#}");
            false
        }
    }
}

fn try_start(host: &Host, name: &str, media: Option<&str>, mode: Mode) -> Result<()> {
    let guest = host.find(name).with_context(|| format!("{name:?} does not seem to be a valid virtual machine"))?;
    println!("  * found guest in {}", guest.dir().display());
    match host.state(&guest, &procs::list()) {
        State::Stopped | State::Suspended => {}
        State::Locked(by) if by != util::hostname() => bail!("guest is locked by {by}"),
        _ => bail!("guest appears to be running already"),
    }
    for key in ["cpu", "memory"] {
        guest.conf.get(key).with_context(|| format!("incomplete virtual machine configuration: there is no {key}"))?;
    }
    println!("  * booting...");
    let media = media.unwrap_or_default();
    let tmux = host.system.get("console") == Some("tmux");
    let mut command = this_program(Tool::Vm, host)?;
    command.env("VM_DIR", &host.spec).args(["_run"]);
    if mode == Mode::Foreground {
        let status = command.args(["-f", name, media]).status()?;
        if status.code().is_none_or(|code| code > 2) {
            bail!("it ended with {status}");
        }
        return Ok(());
    }
    if tmux {
        return in_tmux(host, name, media, mode);
    }
    // A process group of its own, so that the terminal's signals do not reach it.
    command
        .args(["-r", name, media])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0);
    let mut child = command.spawn()?;
    let out = child.stdout.take().context("no pipe")?;
    let (mut ready, mut failed) = (false, None);
    for said in BufReader::new(out).lines().map_while(|said| said.ok()) {
        match said.split_once(' ').unwrap_or((&said, "")) {
            ("ready", _) => {
                ready = true;
                break;
            }
            ("warning", text) => println!("  ! {text}"),
            // Who hears of it finds everything cleared up.
            ("failed", text) => failed = Some(text.to_owned()),
            _ => {}
        }
    }
    if let Some(text) = failed {
        child.wait()?;
        bail!("{text}");
    }
    if !ready {
        bail!("it ended with {}; see {}", child.wait()?, guest.file("vm-bhyve.log").display());
    }
    if mode == Mode::Interactive {
        attach(host, &guest, None)?;
    }
    Ok(())
}

/// Starts a guest whose terminal is a session of tmux(1).
fn in_tmux(host: &Host, name: &str, media: &str, mode: Mode) -> Result<()> {
    let tmux = util::which("tmux").context("tmux support enabled but misc/tmux not found")?;
    let detached = if mode == Mode::Interactive { "-s" } else { "-ds" };
    let program = std::env::current_exe()?;
    let run_dir = format!("BHYVE_RS_RUN_DIR={}", host.run_dir.display());
    let vm_dir = format!("VM_DIR={}", host.spec);
    let mut command = Command::new(tmux);
    command.args(["new", detached, &tmux_name(name), "env", &run_dir, &vm_dir]).arg(program);
    let status = command.args(["vm", "_run", "-tf", name, media]).status()?;
    if !status.success() {
        bail!("tmux: {status}");
    }
    Ok(())
}

/// Presses a guest's power button; some take the second press only for an order.
fn press(pid: u32) {
    procs::terminate(pid);
    std::thread::sleep(Duration::from_secs(1));
    procs::terminate(pid);
}

/// `vm stop`.
///
/// # Errors
/// When the command line is wrong.
pub fn stop(host: &Host, args: &[String]) -> Result<u8> {
    if args.is_empty() {
        return usage::missing("stop");
    }
    let mut failed = false;
    for name in args {
        failed |= stop_one(host, name).unwrap_or_else(|e| {
            util::warn(format!("{e:#}"));
            true
        });
    }
    Ok(u8::from(failed))
}

/// Stops a guest; true if that is not possible. One that does not run is stopped.
fn stop_one(host: &Host, name: &str) -> Result<bool> {
    let stage = procs::stage(&procs::list(), name);
    match stage {
        Some(procs::Stage::Running(pid)) => {
            println!("Sending ACPI shutdown to {name}");
            press(pid);
            if let Some(guest) = host.find(name) {
                media::discard(&guest)?;
            }
        }
        Some(procs::Stage::Loader(pid)) => {
            if !util::confirm(&format!("Guest {name} is in bootloader stage, do you wish to force exit"))? {
                return Ok(true);
            }
            println!("Killing {name}");
            procs::terminate(pid);
        }
        None => {
            util::warn(format!("{name:?} doesn't appear to be a running virtual machine"));
            return Ok(host.find(name).is_none());
        }
    }
    Ok(false)
}

/// `vm restart`: the guest powers off, and finds itself started again.
///
/// # Errors
/// When it does not run.
pub fn restart(host: &Host, args: &[String]) -> Result<u8> {
    let [name] = args else { return usage::missing("restart") };
    let guest = host.guest(name)?;
    if procs::stage(&procs::list(), name).is_none() {
        bail!("{name} doesn't appear to be a running virtual machine");
    }
    println!("Setting guest restart flag");
    let flag = guest.file("restart");
    std::fs::write(&flag, "").with_context(|| flag.display().to_string())?;
    Ok(u8::from(stop_one(host, name)?))
}

/// `vm reset` and `vm poweroff`.
///
/// # Errors
/// When it does not run.
pub fn cut(host: &Host, args: &[String], off: bool) -> Result<u8> {
    let (options, rest) = util::getopt(args, "f")?;
    let [name] = rest else { return usage::missing(if off { "poweroff" } else { "reset" }) };
    let stage = procs::stage(&procs::list(), name);
    if !host.has_node(name) && stage.is_none() {
        bail!("{name:?} doesn't appear to be a running virtual machine");
    }
    let what = if off { "poweroff" } else { "reset" };
    let sure = format!("Are you sure you want to forcefully {what} this virtual machine");
    if options.is_empty() && !util::confirm(&sure)? {
        return Ok(0);
    }
    bhyvectl(host, name, if off { "--force-poweroff" } else { "--force-reset" })?;
    if off {
        // Who runs it clears up; if nobody does, it is ours to do.
        let end = Instant::now() + CUT;
        while host.has_node(name) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        if host.has_node(name) {
            bhyvectl(host, name, "--destroy")?;
        }
        if let Some(guest) = host.find(name) {
            media::discard(&guest)?;
        }
    }
    Ok(0)
}

/// `vm stopall`: every machine of the host, those of `vm_list` last and in the reverse of their order.
///
/// # Errors
/// When the command line is wrong.
pub fn stopall(host: &Host, args: &[String]) -> Result<u8> {
    let (options, _) = util::getopt(args, "f")?;
    let running = procs::running(&procs::list());
    if running.is_empty() {
        return Ok(0);
    }
    let order = host.rc.get("vm_list").filter(|_| options.is_empty()).unwrap_or_default();
    let ordered: Vec<_> =
        order.split_whitespace().rev().filter_map(|name| running.iter().find(|(running, _)| running == name)).collect();
    let others: Vec<_> = running.iter().filter(|guest| !ordered.contains(guest)).collect();
    println!("Beginning shutdown process");
    if !others.is_empty() {
        let names: Vec<&str> = others.iter().map(|(name, _)| name.as_str()).collect();
        println!("  * parallel shutdown of non-ordered guests: {}", names.join(" "));
        others.iter().for_each(|(_, pid)| procs::terminate(*pid));
        std::thread::sleep(Duration::from_secs(1));
        others.iter().for_each(|(_, pid)| procs::terminate(*pid));
    }
    for (n, (name, pid)) in ordered.iter().enumerate() {
        if n > 0 {
            println!("  * waiting {} second(s)", delay(host).as_secs());
            std::thread::sleep(delay(host));
        }
        println!("  * stopping {name}");
        press(*pid);
    }
    println!();
    let left = || running.iter().filter(|(name, pid)| procs::line(*pid) == Some(format!("bhyve: {name}"))).count();
    while left() > 0 {
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(0)
}

/// `vm console`.
///
/// # Errors
/// When there is no console.
pub fn console(host: &Host, args: &[String]) -> Result<u8> {
    let (options, rest) = util::getopt(args, "w")?;
    let (name, port) = match rest {
        [name] => (name, None),
        [name, port] => (name, Some(port.as_str())),
        _ => return usage::missing("console"),
    };
    let guest = host.guest(name)?;
    let up = || host.has_node(name) && guest.file("console").exists();
    if !options.is_empty() && !up() {
        println!("Waiting for {name} to start...");
        while !up() {
            std::thread::sleep(Duration::from_millis(50));
        }
    } else if !up() {
        bail!("{name} doesn't appear to be a running virtual machine");
    }
    attach(host, &guest, port)
}

/// Connects this terminal to a guest's console.
fn attach(host: &Host, guest: &Guest, port: Option<&str>) -> Result<u8> {
    let text = std::fs::read_to_string(guest.file("console")).unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once('='));
    let found = lines.find(|(name, _)| port.map_or(name.starts_with("com"), |port| *name == port));
    let (port, end) = found.context("unable to locate console device for this virtual machine")?;
    let mut command = match end {
        "console" => {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("--run-dir").arg(&host.run_dir).args(["console", &guest.name, port]);
            command
        }
        _ if end.starts_with("tmux/") => {
            let mut command = Command::new(util::which("tmux").context("misc/tmux not found")?);
            command.args(["attach", "-t", end.trim_start_matches("tmux/")]);
            command
        }
        _ => {
            let mut command = Command::new(util::which("cu").with_context(|| format!("cu(1) not found, for {end}"))?);
            command.args(["-l", end]);
            command
        }
    };
    let status = command.status().context("the console's program")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// `vm configure` and `vm edit`.
///
/// # Errors
/// When there is no such file.
pub fn configure(host: &Host, args: &[String]) -> Result<u8> {
    let (name, what) = match args {
        [name] => (name, None),
        [name, what] => (name, Some(what.as_str())),
        _ => return usage::missing("configure"),
    };
    let guest = host.guest(name)?;
    let path = match what {
        None => guest.conf_path(),
        Some("meta-data" | "network-config" | "user-data") => {
            if !guest.file(".cloud-init").is_dir() {
                bail!("cloud-init is not enabled for this guest");
            }
            let late = "cloud-init has run already. changes won't take effect. edit anyway?";
            if guest.file("seed.iso").exists() && !util::confirm(late)? {
                return Ok(0);
            }
            guest.file(".cloud-init").join(what.unwrap_or_default())
        }
        Some(_) => return usage::missing("configure"),
    };
    let editor = std::env::var("EDITOR").ok().filter(|editor| !editor.trim().is_empty()).unwrap_or("vi".to_owned());
    // It may come with arguments.
    let mut words = editor.split_whitespace();
    let status = Command::new(words.next().unwrap_or("vi")).args(words).arg(path).status().context(editor.clone())?;
    Ok(u8::from(!status.success()))
}
