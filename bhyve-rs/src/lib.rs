//! bhyve-rs: the user space of a hypervisor, for BSD people.

mod address;
mod autostart;
mod backend;
mod backoff;
mod bios;
mod board;
mod compat;
mod config;
mod convert;
mod debug;
mod doctor;
mod entry;
mod firmware;
mod fleet;
mod image;
mod inspect;
mod keeper;
mod life;
mod links;
mod log;
mod manual;
mod media;
mod new;
mod paging;
mod plan;
mod processor;
mod remote;
mod rom;
mod screenshot;
mod script;
mod state;
mod stop;
mod strict;
mod switch;
mod tell;
mod visit;
mod vm;
mod watch;
mod within;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use cfg::Node;
use clap::{Args, CommandFactory, Parser, Subcommand};
use host::control::{self, Members};
use host::keyboard::Layout;
use host::screen::Terminal;
use host::{EndSignal, Io, broker, console, sandbox, vnc};
use hv::Hypervisor;
use serde_json::json;

use crate::backend::Backends;
use crate::compat::Tool;
use crate::config::Reachable;
use crate::plan::Plan;
use crate::remote::{Reach, Verb};
use crate::stop::Policy;
use crate::vm::{Connections, Ended, Handle, Instance, Order, Spec};
use crate::watch::Watch;

/// Runs BSD guests, old ones above all, on the hardware that they have drivers for.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Directory of the control sockets [default: /var/run/bhyve-rs, or one of the user's].
    #[arg(long, value_name = "DIR", global = true)]
    run_dir: Option<PathBuf>,
    /// Say nothing but results and errors.
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Run the machine of a configuration file until it ends.
    Run(RunArgs),
    /// Start the machine of a configuration file in the background.
    Start {
        /// Configuration file.
        #[arg(short, long = "config", value_name = "FILE")]
        config: PathBuf,
        /// Set a key, over the file: -o memory=1G.
        #[arg(short = 'o', value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    #[command(flatten)]
    Verb(Verb),
    /// Show the machines that run.
    List(life::List),
    /// Show what happens to a machine.
    Events(life::Events),
    /// Print what a machine in the background has said, or what came out of one of its consoles.
    Log(life::Log),
    /// Run a machine in the background, and start it again when it fails.
    #[command(hide = true)]
    Keep {
        /// Configuration file.
        #[arg(short, long = "config", value_name = "FILE")]
        config: PathBuf,
        /// Set a key, over the file.
        #[arg(short = 'o', value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Go to a serial port or to the text screen of a machine; ~? there shows the commands, ~. leaves.
    Console(visit::Console),
    /// Check a configuration file and print everything that is wrong with it.
    Check {
        /// Configuration file.
        file: PathBuf,
    },
    /// Make, copy, resize, check and describe disk images.
    #[command(subcommand)]
    Image(image::Image),
    New(new::New),
    Autostart(autostart::Autostart),
    Doctor(doctor::Doctor),
    Links(links::Links),
    Manual(manual::Manual),
    Completion(manual::Completion),
    /// Boot the embedded demo guest.
    Demo(RunOptions),
    Switch(switch::Switch),
    /// Open files for a confined process.
    #[command(hide = true)]
    Broker,
    /// Write a machine's configuration in another form: TOML, bhyve(8)'s arguments, bhyve_config(5).
    Config(convert::Convert),
    /// Show the back ends of this host and which one `auto` takes.
    Info,
    /// As bhyve(8).
    #[command(disable_help_flag = true)]
    Bhyve(ToolArgs),
    /// As bhyvectl(8).
    #[command(disable_help_flag = true)]
    Bhyvectl(ToolArgs),
    /// As bhyveload(8).
    #[command(disable_help_flag = true)]
    Bhyveload(ToolArgs),
    /// As the port grub2-bhyve's program.
    #[command(disable_help_flag = true)]
    GrubBhyve(ToolArgs),
    /// As vm-bhyve's program.
    #[command(disable_help_flag = true)]
    Vm(ToolArgs),
}

/// The command line of a program that we stand for.
#[derive(Args)]
struct ToolArgs {
    /// As that program takes them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    args: Vec<String>,
}

#[derive(Args, Default, PartialEq)]
struct RunArgs {
    /// Configuration file.
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set a key, over the file: -o memory=1G.
    #[arg(short = 'o', value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Kernel to start; as -o boot.kernel=PATH.
    #[arg(long, value_name = "PATH")]
    kernel: Option<String>,
    /// Its initial RAM disk; as -o boot.initrd=PATH.
    #[arg(long, value_name = "PATH")]
    initrd: Option<String>,
    /// Its command line; as -o boot.args=TEXT.
    #[arg(long, value_name = "TEXT")]
    args: Option<String>,
    #[command(flatten)]
    options: RunOptions,
}

#[derive(Args, Default, PartialEq)]
struct RunOptions {
    /// Report instructions, time, speed and exits by device at the end.
    #[arg(long)]
    stats: bool,
    /// Show a device's every access on standard error (`bios`: every call), the log of the firmware, or all;
    /// repeatable.
    #[arg(long, value_name = "TARGET")]
    trace: Vec<String>,
    /// Type at COM1 and the keyboard what a file says, when it says (see script.rs); nothing else is typed at COM1.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Start the guest again when it reboots, instead of ending with status 0.
    #[arg(long)]
    stay: bool,
    /// Do not confine the process, for debugging.
    #[arg(long)]
    no_sandbox: bool,
    /// Have no terminal: what is on stdio is on a socket in the run directory.
    #[arg(long, hide = true)]
    background: bool,
    /// The process that starts the machine again.
    #[arg(long, hide = true, requires = "background")]
    keeper: Option<u32>,
    /// Stop when the processors have executed this many instructions, and print a digest of the machine's state.
    #[arg(long, value_name = "N")]
    until: Option<u64>,
    /// Save the machine's state to a file when --until stops it.
    #[arg(long, value_name = "FILE", requires = "until")]
    save: Option<PathBuf>,
    /// Start from a state that --save wrote. The configuration must be the one it was saved with.
    #[arg(long, value_name = "FILE")]
    restore: Option<PathBuf>,
    /// Interpret instruction by instruction, without the code cache (slow; for checking the engine).
    #[arg(long)]
    plain: bool,
    /// What the process is called once its devices are up. Its machine is then another's to destroy, as bhyve(8)'s is.
    #[arg(skip)]
    title: Option<String>,
    /// Files that go, with what a kernel has of the machine, when the guest powers off.
    #[arg(skip)]
    leaves: Vec<PathBuf>,
}

/// The exit status of a command that is no machine's run and did what it should.
const SUCCESS: u8 = 0;

/// Does what the command line says. `backends` are what the program can run processors by, in the order in which `auto`
/// prefers them.
pub fn main(backends: Vec<Box<dyn Hypervisor>>) -> ExitCode {
    let backends = Backends(backends);
    if let Some(tool) = std::env::args_os().next().as_deref().and_then(Tool::called) {
        return match std::env::args_os().skip(1).map(OsString::into_string).collect::<Result<Vec<_>, _>>() {
            Ok(args) => tool.run(&args, &control::run_dir(), &backends),
            Err(arg) => {
                eprintln!("{}: {arg:?} is no UTF-8", tool.name());
                ExitCode::from(Ended::Error as u8)
            }
        };
    }
    let cli = match Cli::try_parse() {
        Ok(cli) if cli.command.is_none() || cli.run == RunArgs::default() => cli,
        Ok(_) => {
            eprintln!("bhyve-rs: options of a command come behind it: bhyve-rs run -c FILE");
            return ExitCode::from(Ended::Error as u8);
        }
        Err(e) => {
            let _ = e.print();
            // 1 and 2, which clap would choose, say how a guest ended.
            return ExitCode::from(if e.use_stderr() { Ended::Error as u8 } else { SUCCESS });
        }
    };
    if cli.quiet {
        tell::be_quiet();
    }
    let dir = cli.run_dir.unwrap_or_else(control::run_dir);
    let status = match cli.command {
        Some(Command::Run(args)) => run(&args, &dir, &backends),
        Some(Command::Start { config, set }) => remote::start(&dir, &config, &set),
        Some(Command::Verb(verb)) => verb.run(&dir),
        Some(Command::List(list)) => list.run(&dir),
        Some(Command::Events(events)) => events.run(&dir),
        Some(Command::Log(log)) => log.run(&dir),
        Some(Command::Keep { config, set }) => keeper::keep(&dir, &config, &set),
        Some(Command::Console(visit)) => visit.run(&dir),
        Some(Command::Check { file }) => check(&file),
        Some(Command::Image(image)) => image.run(),
        Some(Command::New(new)) => new.run(),
        Some(Command::Autostart(autostart)) => autostart.run(&dir),
        Some(Command::Doctor(doctor)) => doctor.run(&dir, &backends),
        Some(Command::Links(links)) => links.run(),
        Some(Command::Manual(manual)) => manual.run(&Cli::command()),
        Some(Command::Completion(completion)) => completion.run(&Cli::command(), &dir),
        Some(Command::Demo(options)) => demo(&options, &backends),
        Some(Command::Switch(switch)) => switch.run(),
        Some(Command::Broker) => broker::serve(hv::destroy).map(|()| SUCCESS),
        Some(Command::Config(convert)) => convert.run(),
        Some(Command::Info) => info(&backends),
        Some(Command::Bhyve(ToolArgs { args })) => return Tool::Bhyve.run(&args, &dir, &backends),
        Some(Command::Bhyvectl(ToolArgs { args })) => return Tool::Bhyvectl.run(&args, &dir, &backends),
        Some(Command::Bhyveload(ToolArgs { args })) => return Tool::Bhyveload.run(&args, &dir, &backends),
        Some(Command::GrubBhyve(ToolArgs { args })) => return Tool::GrubBhyve.run(&args, &dir, &backends),
        Some(Command::Vm(ToolArgs { args })) => return Tool::Vm.run(&args, &dir, &backends),
        None if cli.run.config.is_none() && cli.run.kernel.is_none() && cli.run.set.is_empty() => {
            demo(&cli.run.options, &backends)
        }
        None => run(&cli.run, &dir, &backends),
    };
    match status {
        Ok(status) => ExitCode::from(status),
        Err(e) => {
            host::restore_terminal();
            // What is wrong with a configuration says itself where.
            match e.downcast_ref::<cfg::Errors>() {
                Some(errors) => eprintln!("{errors}"),
                None => eprintln!("bhyve-rs: {e:#}"),
            }
            ExitCode::from(Ended::Error as u8)
        }
    }
}

fn check(file: &Path) -> Result<u8> {
    config::read(file, &[])?;
    Ok(SUCCESS)
}

fn run(args: &RunArgs, dir: &Path, backends: &Backends) -> Result<u8> {
    let mut set = Vec::new();
    if args.config.is_none() {
        set.push("name=guest".to_owned());
        // Whoever wants the screen on the terminal has no COM1 there.
        if !args.set.iter().any(|s| s == "screen.backend=terminal") {
            set.push("serial.0.backend=stdio".to_owned());
        }
    }
    set.extend(args.set.iter().cloned());
    for (key, value) in [("kernel", &args.kernel), ("initrd", &args.initrd), ("args", &args.args)] {
        set.extend(value.iter().map(|v| format!("boot.{key}={v}")));
    }
    let node = match &args.config {
        Some(file) => config::read(file, &set),
        None => config::from_settings(&set),
    }?;
    let mut spec = config::spec(&node, config::start(&node)?, args.options.plain)?;
    let restart = node.child("autostart").text("restart") != "never";
    spec.stay = args.options.stay || args.options.background && restart;
    spec.back_off = args.options.background;
    // A machine that nobody configured has no name by which others could find it.
    let named = args.config.is_some() || args.set.iter().any(|s| s.starts_with("name="));
    let ended = start(&spec, &node, plan::open(&node)?, &args.options, named.then_some(dir), backends)?;
    Ok(ended.map_or(SUCCESS, |ended| ended as u8))
}

fn demo(options: &RunOptions, backends: &Backends) -> Result<u8> {
    #[cfg(probe)]
    {
        // It compares clocks, which on a busy host only instructions keep in step.
        let keys = ["name=demo", "memory=64M", "serial.0.backend=stdio", "clock=instructions"];
        let node = config::from_settings(&keys)?;
        let kernel = vm::Kernel {
            name: "the embedded demo guest".to_owned(),
            bytes: include_bytes!(env!("PROBE_ELF")).to_vec(),
            initrd: None,
            args: "demo".to_owned(),
        };
        let mut spec = config::spec(&node, vm::Start::Kernel(kernel), options.plain)?;
        spec.rtc_start = config::now();
        let mut plan = Plan::new(spec.board);
        plan.disk("ide", demo_disk())?;
        plan.nic("virtio-net", "demo")?;
        // Its power-off is the demo's success.
        Ok(match start(&spec, &node, plan, options, None, backends)? {
            None | Some(Ended::PowerOff) => SUCCESS,
            Some(ended) => ended as u8,
        })
    }
    #[cfg(not(probe))]
    {
        let _ = (options, backends);
        anyhow::bail!("this build has no embedded demo guest: it needs an x86-64 host; try --kernel")
    }
}

/// A disk for the demo guest to find: 4 MiB that look like a boot disk and hold a pattern it can check.
#[cfg(probe)]
fn demo_disk() -> host::disk::Image {
    let mut bytes: Vec<u8> = (0..4u32 << 20).map(|n| (n ^ n >> 9) as u8).collect();
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    host::disk::Image::memory("the demo's disk", bytes)
}

fn info(backends: &Backends) -> Result<u8> {
    println!("bhyve-rs {}", env!("CARGO_PKG_VERSION"));
    print!("{}", backends.report());
    // DOS extenders and loaders that test the gate by wrapped addresses need to know.
    println!("A20 gate: masks address bit 20 on soft; on kvm and vmm it reads back as written, and nothing is masked");
    Ok(SUCCESS)
}

/// SIGTERM presses the power button, as bhyve(8) has it, and so does losing the terminal: the guest decides. SIGINT is
/// for a guest's console, or from somebody who wants an end.
fn follow_signals(to: Handle) -> std::io::Result<()> {
    host::watch_signals(move |signal| {
        to.send(match signal {
            EndSignal::Terminate | EndSignal::Hangup => Order::PowerButton,
            EndSignal::Interrupt => Order::Kill,
        });
    })
}

/// What a machine's status says of it beside what changes.
fn facts(spec: &Spec, node: &Node, backend: &str, consoles: &config::Consoles, keeper: Option<u32>) -> Members {
    let places = consoles.descriptions.iter().map(|(port, d)| (port.clone(), json!(d.text))).collect::<Members>();
    let mut facts = json!({
        "name": node.text("name"),
        "pid": std::process::id(),
        "backend": backend,
        "cpus": spec.cpus,
        // Without a topology all are cores of one package.
        "cores": if spec.model.cores == 0 { spec.cpus } else { spec.model.cores },
        "threads": spec.model.threads,
        "memory": spec.memory,
        "consoles": places,
        "started": config::now(),
    });
    if let Some(keeper) = keeper {
        facts["keeper"] = keeper.into();
    }
    facts.as_object().cloned().unwrap_or_default()
}

/// Starts the process that opens for this one, when it is confined, what the configuration and `--save` allow.
fn start_broker(node: &Node, save: Option<&Path>) -> Result<()> {
    broker::start().context("the process that opens files for the machine's")?;
    for dir in config::media_directories(node) {
        broker::allow_media(&dir).with_context(|| format!("sandbox.media: {}", dir.display()))?;
    }
    for path in save.into_iter().flat_map(|path| [path.to_owned(), state::beside(path)]) {
        broker::allow_output(&path).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Runs a machine to its end, or to where `--until` stops it, with a control socket if there is a directory for it.
fn start(
    spec: &Spec,
    node: &Node,
    plan: Plan,
    options: &RunOptions,
    dir: Option<&Path>,
    backends: &Backends,
) -> Result<Option<Ended>> {
    let begun = Instant::now();
    log::start(&options.trace);
    let counted = spec.instruction_clock || spec.plain || options.until.is_some() || options.restore.is_some();
    let backend = backends.choose(node, counted)?;
    // A confined process does not know where it is.
    let save = options.save.as_ref().map(std::path::absolute).transpose().context("--save")?;
    if !options.no_sandbox {
        start_broker(node, save.as_deref())?;
        let leaves: Vec<PathBuf> = options.leaves.iter().map(std::path::absolute).collect::<Result<_, _>>()?;
        broker::leave(&leaves, &spec.name)?;
    }
    let orders = vm::orders();
    let handle = orders.0.clone();
    let events = handle.events().clone();
    // Before there are other threads.
    follow_signals(handle.clone()).context("signals")?;
    let _addresses = dir.map(|dir| address::claim(dir, node.text("name"), &plan.addresses())).transpose()?;
    let io = Io::new().context("event loop")?;
    let reachable = Reachable { dir, background: options.background };
    let (listeners, viewers) = config::vnc(node)?;
    let debugger = config::debugger(node)?;
    let mut consoles = config::consoles(node, &io, spec.instruction_clock, &handle, reachable)?;
    let mut facts = facts(spec, node, backend.name(), &consoles, options.keeper);
    if !listeners.is_empty() {
        let places: Vec<_> = listeners.iter().map(|listener| listener.place().to_owned()).collect();
        facts.insert("vnc".to_owned(), places.join(", ").into());
    }
    if let Some(debugger) = &debugger {
        facts.insert("debugger".to_owned(), debugger.place().into());
    }
    let serial = std::mem::take(&mut consoles.devices);
    let watch = (options.stats || !options.trace.is_empty()).then(|| Watch::new(&options.trace));
    let script = options.script.as_deref().map(script::read).transpose()?;
    let connections = Connections { io, serial, script, plan, orders };
    let mut instance = Instance::new(spec, backend, connections, watch.as_ref())?;
    if let Some(watch) = &watch {
        watch.check()?;
    }
    if let Some(file) = &options.restore {
        instance.paused().load(file)?;
    }
    let terminal = match instance.screen() {
        Some(screen) if config::screen_on_terminal(node) && !options.background => {
            let hook = config::commands(&handle, 0);
            Some(Terminal::start(screen, instance.typist(), hook).context("screen.backend = \"terminal\"")?)
        }
        _ => None,
    };
    if let (Some(server), Some(dir), Some(screen)) = (&consoles.server, dir, instance.screen()) {
        let socket = control::console_path(dir, node.text("name"), "screen");
        server.screen(screen, instance.typist(), Some(&socket))?;
    }
    let vnc = match instance.screen() {
        Some(adapter) if !listeners.is_empty() => {
            let screen = node.child("screen");
            // As bhyve it goes on without.
            let read =
                |path: &str| Layout::read(path).inspect_err(|e| tracing::warn!("screen.keyboard_file: {path}: {e:#}"));
            let named = || Layout::named(screen.text("keyboard")).unwrap_or_default();
            let layout = screen.maybe("keyboard_file").map_or_else(named, |path| read(path).unwrap_or_default());
            let guest = vnc::Guest { adapter, typist: instance.typist(), pointer: instance.pointer(), layout };
            let held = screen.bool("vnc_wait");
            if held {
                instance.hold();
            }
            let to = handle.clone();
            let first = move || {
                if held {
                    to.send(Order::Resume);
                }
            };
            Some(vnc::Server::start(listeners, viewers, guest, first).context("the VNC server")?)
        }
        _ => None,
    };
    let wait = node.child("debug").bool("wait");
    let debugger = debugger.map(|at| debug::Server::start(at, spec, &mut instance, &handle, wait)).transpose()?;
    let reach = Reach {
        handle,
        facts,
        screen: instance.screen(),
        typist: instance.typist(),
        media: instance.media(),
        cables: instance.cables(),
        consoles: consoles.server.as_ref().map(console::Server::consoles),
        stop: Policy::of(node),
    };
    let server = dir.map(|dir| remote::serve(dir, node.text("name"), reach)).transpose()?;
    if let Some(title) = &options.title {
        host::set_title(title).context("the title of the process")?;
    }
    if !options.no_sandbox {
        // By now it is ours. A confined process cannot ask the kernels of 13 and 14 to destroy it.
        if backend.name() == "vmm" && options.title.is_none() {
            broker::own_machine(&spec.name).context("the machine's name")?;
        }
        let sandbox = sandbox::enter(config::shares(node))?;
        tracing::debug!("the process is confined by {sandbox}");
    }
    events.tell("started", json!({ "pid": std::process::id(), "backend": backend.name() }));
    let (ended, why) = instance.run(options.until);
    drop(vnc);
    if let Some(debugger) = debugger {
        debugger.end(ended.map_or(SUCCESS, |ended| ended as u8));
    }
    consoles.flush();
    if ended == Some(Ended::PowerOff) && !options.leaves.is_empty() && !broker::let_go()? {
        options.leaves.iter().try_for_each(|file| compat::forget(file))?;
        hv::destroy(&spec.name);
    }
    if terminal.is_some() {
        drop(terminal);
        // What the guest said last goes with its screen, which the user may want to read.
        if let Ok(text) = screenshot::text(instance.screen().as_ref()) {
            println!("{}", text.trim_end());
        }
    }
    host::restore_terminal();
    if let Some(server) = server {
        let policy = node.child("autostart").text("restart");
        let again = options.keeper.is_some() && !instance.asked() && keeper::again(policy, ended.map(|e| e as u8));
        let results = remote::results(ended, instance.asked(), why.as_deref(), again);
        events.tell("ended", results.clone());
        server.end(results.as_object().cloned().unwrap_or_default());
    }
    if options.keeper.is_some() && instance.asked() {
        keeper::tell_asked();
    }
    if let Some(why) = why {
        eprintln!("bhyve-rs: {why}");
    }
    if options.stats {
        eprint!("{}", report(&instance, ended, begun));
        if let Some(watch) = &watch {
            eprint!("{}", watch.report());
        }
    }
    if ended.is_none() {
        eprintln!("state {:016x}", instance.paused().digest()?);
        if let Some(file) = &save {
            instance.paused().save(file)?;
        }
    }
    Ok(ended)
}

/// The run report's first line.
fn report(instance: &Instance, ended: Option<Ended>, begun: Instant) -> String {
    let seconds = begun.elapsed().as_secs_f64();
    let (instructions, guest_ns) = instance.counts();
    let n = instructions.unwrap_or(0);
    format!(
        "{}: {n} instructions, {seconds:.2} s, {:.2} guest s, {:.2} host CPU s, {:.1} MIPS\n",
        ended.map_or("stopped", Ended::text),
        guest_ns as f64 / 1e9,
        host::cpu_time().as_secs_f64(),
        n as f64 / seconds / 1e6
    )
}
