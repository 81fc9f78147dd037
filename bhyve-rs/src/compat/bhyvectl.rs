//! bhyvectl(8): machines from outside, our own by their control sockets.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use host::control::{self, CallError, Members};
use serde_json::Value;

use super::node::{self, Nodes};
use crate::inspect;

/// Its status for all that fails.
const FAILED: u8 = 1;
/// How long a machine may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What it can be asked, in the order in which it does what it is asked. Tools look into the usage for what is there:
/// `--suspend=` would be snapshots.
const REQUESTS: [(&str, Request); 8] = [
    ("create", Request::Create),
    ("inject-nmi", Request::Nmi),
    ("get-stats", Request::Stats),
    ("get-all", Request::All),
    ("get-cpu-topology", Request::Topology),
    ("force-reset", Request::Reset),
    ("force-poweroff", Request::PowerOff),
    ("destroy", Request::Destroy),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Create,
    Nmi,
    Stats,
    All,
    Topology,
    Reset,
    PowerOff,
    Destroy,
}

/// Registers, each with a `--get-` of its own.
const REGISTERS: [&str; 28] = [
    "cr0", "cr2", "cr3", "cr4", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7", "rsp", "rip", "rax", "rbx", "rcx", "rdx",
    "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rflags",
];
const SEGMENTS: [&str; 8] = ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr"];
const TABLES: [&str; 2] = ["gdtr", "idtr"];

pub fn usage() -> String {
    let requests = REQUESTS.map(|(name, _)| format!("       [--{name}]\n")).concat();
    format!(
        "usage: bhyvectl --vm=<vmname>\n       [--cpu=<vcpu_number>]\n{requests}       [--get-efer] \
         [--get-<{}>]\n       [--get-<{}>] [--get-desc-<{}>]\n       [--get-<{}>]\n",
        REGISTERS.join("|"),
        SEGMENTS.join("|"),
        SEGMENTS.join("|"),
        TABLES.join("|"),
    )
}

/// What a command line asks for.
#[derive(Debug, Default)]
struct Asked {
    vm: Option<String>,
    cpu: Option<u32>,
    requests: Vec<Request>,
    /// Names of `--get-`, without it.
    gets: Vec<String>,
}

/// Does what the command line says, and returns the exit status.
pub fn main(args: &[String], dir: &Path) -> u8 {
    let asked = match parse(args) {
        Ok(asked) if asked.vm.is_some() => asked,
        Ok(_) => {
            eprint!("{}", usage());
            return FAILED;
        }
        Err(why) => {
            eprintln!("bhyvectl: {why}");
            eprint!("{}", usage());
            return FAILED;
        }
    };
    match carry_out(&asked, dir) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("bhyvectl: {e:#}");
            FAILED
        }
    }
}

fn parse(args: &[String]) -> Result<Asked> {
    let mut names: BTreeMap<String, Option<Request>> =
        REQUESTS.into_iter().map(|(name, request)| (name.to_owned(), Some(request))).collect();
    let gets = REGISTERS.into_iter().chain(["efer"]).chain(SEGMENTS).chain(TABLES).map(str::to_owned);
    let gets = gets.chain(SEGMENTS.into_iter().chain(TABLES).map(|name| format!("desc-{name}")));
    names.extend(gets.map(|name| (format!("get-{name}"), None)));
    let mut asked = Asked::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let option = arg.strip_prefix("--").filter(|option| !option.is_empty());
        let option = option.ok_or_else(|| anyhow!("{arg:?} is no option"))?;
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        if matches!(name, "vm" | "cpu") {
            let value = value.or_else(|| rest.next().map(String::as_str));
            let value = value.ok_or_else(|| anyhow!("option --{name} requires an argument"))?;
            match name {
                "vm" => asked.vm = Some(value.to_owned()),
                _ => asked.cpu = Some(value.parse().with_context(|| format!("--cpu={value:?}"))?),
            }
            continue;
        }
        // getopt_long(3) takes what only one name begins with.
        let full: Vec<&String> = match names.contains_key(name) {
            true => names.keys().filter(|known| *known == name).collect(),
            false => names.keys().filter(|known| known.starts_with(name)).collect(),
        };
        let &[full] = &full[..] else { bail!("unrecognized option '--{}'", name.escape_debug()) };
        if value.is_some() {
            bail!("option '--{full}' takes no argument");
        }
        match names[full] {
            Some(request) => asked.requests.push(request),
            None => asked.gets.push(full["get-".len()..].to_owned()),
        }
    }
    Ok(asked)
}

fn carry_out(asked: &Asked, dir: &Path) -> Result<()> {
    let name = asked.vm.as_deref().unwrap_or_default();
    node::valid(name)?;
    let nodes = Nodes::of(dir);
    if asked.requests.contains(&Request::Create) {
        if nodes.exists(name) {
            bail!("{name} is there already");
        }
        nodes.create(name)?;
    } else if !nodes.exists(name) && !control::socket_path(dir, name).exists() {
        bail!("there is no machine {name:?}");
    }
    let machine = Machine { dir, name, cpu: asked.cpu.unwrap_or(0) };
    if !control::socket_path(dir, name).exists()
        && let Some(outside) = hv::outside(name)?
    {
        return of_others(asked, &machine, &outside, &nodes);
    }
    if !asked.gets.is_empty() {
        let registers = machine.one("registers")?;
        asked.gets.iter().for_each(|get| print!("{}", show(get, machine.cpu, &registers)));
    }
    for (_, request) in REQUESTS.into_iter().filter(|(_, request)| asked.requests.contains(request)) {
        match request {
            Request::Create => {}
            Request::Nmi => _ = machine.ask("nmi")?,
            Request::Stats => print!("{}", inspect::show_stats(&machine.ask("stats")?)),
            Request::All => {
                let registers = machine.one("registers")?;
                let names = REGISTERS.into_iter().chain(["efer"]).chain(SEGMENTS).map(str::to_owned);
                let names = names.chain(SEGMENTS.into_iter().chain(TABLES).map(|name| format!("desc-{name}")));
                names.for_each(|get| print!("{}", show(&get, machine.cpu, &registers)));
            }
            Request::Topology => {
                let status = machine.call("status", &Members::new())?;
                let [cpus, cores, threads] =
                    ["cpus", "cores", "threads"].map(|key| status.get(key).and_then(Value::as_u64).unwrap_or(1).max(1));
                let sockets = cpus / (cores * threads).min(cpus);
                println!("cpu_topology:\tsockets={sockets}, cores={cores}, threads={threads}, maxcpus={cpus}");
            }
            Request::Reset => _ = machine.call("reset", &Members::new())?,
            Request::PowerOff => _ = machine.call("kill", &Members::new())?,
            Request::Destroy => machine.destroy(&nodes)?,
        }
    }
    Ok(())
}

/// Does it to a machine of the kernel's that another program runs, or nobody.
fn of_others(asked: &Asked, machine: &Machine, outside: &hv::Outside, nodes: &Nodes) -> Result<()> {
    if let Some(get) = asked.gets.first() {
        bail!("--get-{get}: only of machines that bhyve-rs runs");
    }
    for (option, request) in REQUESTS.into_iter().filter(|(_, request)| asked.requests.contains(request)) {
        match request {
            Request::Create => {}
            Request::Nmi => outside.nmi(machine.cpu)?,
            Request::Stats => print!("{}", inspect::stats_text(machine.cpu, &outside.stats(machine.cpu)?)),
            Request::Reset => outside.reset()?,
            Request::PowerOff => outside.power_off()?,
            Request::Destroy => machine.destroy(nodes)?,
            Request::All | Request::Topology => bail!("--{option}: only of machines that bhyve-rs runs"),
        }
    }
    Ok(())
}

/// A machine of ours.
struct Machine<'a> {
    dir: &'a Path,
    name: &'a str,
    cpu: u32,
}

impl Machine<'_> {
    fn call(&self, verb: &str, args: &Members) -> Result<Members> {
        let socket = control::socket_path(self.dir, self.name);
        control::call(&socket, verb, args, Some(PATIENCE)).map_err(|e| match e {
            CallError::NotRunning(_) => anyhow!("{} is not running", self.name),
            e => e.into(),
        })
    }

    /// Asks something about the processor.
    fn ask(&self, verb: &str) -> Result<Members> {
        self.call(verb, &Members::from_iter([("cpu".to_owned(), self.cpu.into())]))
    }

    /// The answer for the one processor.
    fn one(&self, verb: &str) -> Result<Value> {
        let results = self.ask(verb)?;
        let first = results.get("cpus").and_then(Value::as_array).and_then(|cpus| cpus.first());
        first.cloned().context("the machine does not answer that")
    }

    /// Ends the machine if it runs, and removes it.
    fn destroy(&self, nodes: &Nodes) -> Result<()> {
        let socket = control::socket_path(self.dir, self.name);
        let begun = Instant::now();
        // Until it has gone: its end may also cut off the answer.
        loop {
            match control::call(&socket, "kill", &Members::new(), Some(PATIENCE)) {
                Err(CallError::NotRunning(_)) => break,
                Err(e) if begun.elapsed() > PATIENCE => return Err(e).context("it does not end"),
                Ok(_) if begun.elapsed() > PATIENCE => bail!("{} does not end", self.name),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        hv::destroy(self.name);
        nodes.remove(self.name)?;
        Ok(())
    }
}

/// A register as bhyvectl(8) prints it.
fn show(get: &str, cpu: u32, registers: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let (name, desc) = get.strip_prefix("desc-").map_or((get, false), |name| (name, true));
    let register = &registers[name];
    let part = |part: &str| number(&register[part]);
    let is_table = TABLES.contains(&name);
    match () {
        () if is_table => format!("{name}[{cpu}]\t\t0x{:016x}/0x{:08x}\n", part("base"), part("limit")),
        () if desc => {
            let (base, limit, access) = (part("base"), part("limit"), part("access"));
            format!("{name} desc[{cpu}]\t0x{base:016x}/0x{limit:08x}/0x{access:08x}\n")
        }
        () if SEGMENTS.contains(&name) => format!("{name}[{cpu}]\t\t0x{:04x}\n", part("selector")),
        () => format!("{name}[{cpu}]\t\t0x{:016x}\n", number(register)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(args: &[&str]) -> Result<Asked> {
        parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_come_in_any_order_and_abbreviated() {
        for args in [&["--vm=x", "--destroy"][..], &["--destroy", "--vm", "x"], &["--dest", "--vm=x"]] {
            let asked = asked(args).unwrap();
            assert_eq!((asked.vm.as_deref(), &asked.requests[..]), (Some("x"), &[Request::Destroy][..]), "{args:?}");
        }
        let asked = asked(&["--vm=x", "--cpu=3", "--get-rip", "--get-desc-cs"]).unwrap();
        assert_eq!((asked.cpu, asked.gets), (Some(3), vec!["rip".to_owned(), "desc-cs".to_owned()]));
    }

    #[test]
    fn what_is_no_option_is_refused() {
        for args in [&["--vm"][..], &["--force"], &["--vm=x", "--frob"], &["x"], &["--cpu=x"], &["--destroy=1"]] {
            assert!(asked(args).is_err(), "{args:?}");
        }
        assert!(!usage().contains("--suspend="), "tools take it for snapshots");
    }

    #[test]
    fn registers_look_as_scripts_know_them() {
        let registers = json!({"rip": 0xfff0, "cs": {"selector": 8, "base": 0, "limit": 0xffff, "access": 0x9b},
                               "gdtr": {"base": 1, "limit": 7}});
        assert_eq!(show("rip", 0, &registers), "rip[0]\t\t0x000000000000fff0\n");
        assert_eq!(show("cs", 1, &registers), "cs[1]\t\t0x0008\n");
        assert_eq!(show("desc-cs", 0, &registers), "cs desc[0]\t0x0000000000000000/0x0000ffff/0x0000009b\n");
        assert_eq!(show("gdtr", 0, &registers), "gdtr[0]\t\t0x0000000000000001/0x00000007\n");
    }
}
