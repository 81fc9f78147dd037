//! vm-bhyve's `vm`: guests in a datastore, with its sub-commands, files and output.
//!
//! A guest is a folder with a `.conf` file. `vm start` leaves a process behind, `vm _run` (run.rs), which has the guest
//! for as long as it runs: it makes the command line of bhyve(8) (argv.rs), runs this program by that name, and does
//! what its exit status asks for. Nothing else remembers anything: what runs, the processes say.

mod argv;
mod conf;
mod copies;
mod create;
mod list;
mod media;
mod net;
mod power;
mod procs;
mod rcconf;
mod run;
mod store;
mod switch;
mod templates;
pub mod usage;
mod util;
mod zfs;

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::json;

use rcconf::RcConf;
use store::Host;

/// What all commands fail with.
const FAILED: u8 = 1;

/// Does what the command line says, and returns the exit status.
pub fn main(args: &[String], dir: &Path) -> u8 {
    run(args, dir).unwrap_or_else(|e| {
        eprintln!("vm: ERROR: {e:#}");
        FAILED
    })
}

/// Takes `--json` out, wherever it stands.
fn json_wanted(args: &[String]) -> (Vec<String>, bool) {
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let wanted = |(n, arg): &(usize, &String)| *n < end && *arg == "--json";
    let rest = args.iter().enumerate().filter(|arg| !wanted(arg)).map(|(_, arg)| arg.clone()).collect();
    (rest, args.iter().enumerate().any(|arg| wanted(&arg)))
}

fn run(args: &[String], run_dir: &Path) -> Result<u8> {
    let (args, json) = json_wanted(args);
    if matches!(args.first().map(String::as_str), Some("-h" | "--help")) {
        print!("{}", usage::all());
        return Ok(0);
    }
    let (options, rest) = util::getopt(&args, "D:")?;
    let Some((command, args)) = rest.split_first() else {
        eprint!("{}", usage::all());
        return Ok(FAILED);
    };
    let names: Vec<&str> = usage::COMMANDS.iter().map(|(name, ..)| *name).collect();
    let command = util::unique(command, &names)?;
    let help = match (command, args.first().map(String::as_str)) {
        ("help", Some(about)) => Some(util::unique(about, &names)?),
        (_, Some("-h" | "--help")) => Some(command),
        _ => None,
    };
    if let Some(about) = help {
        print!("{}", usage::of(about).unwrap_or_else(usage::all));
        return Ok(0);
    }
    match command {
        "version" if json => println!("{}", json!({ "version": env!("CARGO_PKG_VERSION") })),
        "version" => println!("{}", usage::version()),
        "usage" | "help" => print!("{}", usage::all()),
        _ => {
            let variable = std::env::var("VM_DIR").ok().filter(|dir| !dir.is_empty());
            let dir = options.last().map(|(_, dir)| (*dir).to_owned()).or(variable);
            let rc = RcConf::read(Path::new("/"));
            // Who names a datastore has enabled it.
            let enabled = |text: &str| ["yes", "true", "on", "1"].iter().any(|yes| text.eq_ignore_ascii_case(yes));
            let forced = std::env::var_os("rc_force").is_some_and(|force| !force.is_empty());
            if cfg!(target_os = "freebsd") && dir.is_none() && !forced && !rc.get("vm_enable").is_some_and(enabled) {
                bail!("$vm_enable is not enabled in /etc/rc.conf!");
            }
            let mut host = Host::new(rc, dir.as_deref(), run_dir, json)?;
            return dispatch(&mut host, command, args);
        }
    }
    Ok(0)
}

fn dispatch(host: &mut Host, command: &str, args: &[String]) -> Result<u8> {
    match command {
        "init" => {
            for module in ["nmdm", "if_bridge", "if_tuntap"].iter().filter(|_| cfg!(target_os = "freebsd")) {
                if util::output("kldstat", &["-qm", module]).is_err() {
                    util::output("kldload", &[module])?;
                }
            }
            if cfg!(target_os = "freebsd") {
                util::output("sysctl", &["net.link.tap.up_on_open=1"])?;
            }
            switch::init(host).map(|()| 0)
        }
        "switch" => switch::main(host, args),
        "datastore" => media::datastore(host, args),
        "image" => copies::image(host, args),
        "get" => list::get(host, args),
        "set" => list::set(host, args),
        "list" => list::list(host, args),
        "info" => list::info(host, args),
        "tags" => list::tags(host, args),
        "create" => create::create(host, args),
        "add" => create::add(host, args),
        "destroy" => copies::destroy(host, args),
        "rename" => copies::rename(host, args),
        "clone" => copies::clone(host, args),
        "snapshot" => copies::snapshot(host, args),
        "rollback" => copies::rollback(host, args),
        "discard" => copies::discard(host, args),
        "install" => power::install(host, args),
        "start" => power::start(host, args),
        "startall" => power::startall(host),
        "stop" => power::stop(host, args),
        "stopall" => power::stopall(host, args),
        "restart" => power::restart(host, args),
        "reset" => power::cut(host, args, false),
        "poweroff" => power::cut(host, args, true),
        "console" => power::console(host, args),
        "configure" | "edit" => power::configure(host, args),
        "iso" => media::show_or_fetch(host, "iso", args),
        "img" => media::show_or_fetch(host, "img", args),
        "_run" => run::main(host, args),
        "suspend" | "suspendall" => {
            util::warn("bhyve on this host does not support suspend");
            bail!("unable to suspend the guest")
        }
        "passthru" => bail!("there is no PCI passthrough in this version"),
        other => bail!("{other} is not in this version"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_an_option_of_every_command() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(json_wanted(&words("list --json -v")), (words("list -v"), true));
        assert_eq!(json_wanted(&words("create -- --json")), (words("create -- --json"), false));
    }

    #[test]
    fn every_command_is_known_and_has_a_use() {
        for (name, uses, what) in usage::COMMANDS {
            assert!(!uses.is_empty() && !what.is_empty(), "{name}");
            assert!(usage::of(name).is_some_and(|text| text.contains(&format!("vm {name}"))), "{name}");
        }
    }
}
