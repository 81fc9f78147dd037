//! bhyve-rs: the user space of a hypervisor, for BSD people.

mod board;
mod config;
mod entry;
mod firmware;
mod state;
mod vm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::vm::{Ended, Instance, Spec};

/// Runs BSD guests, old ones above all, on the hardware that they have drivers for.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Run the machine of a configuration file until it ends.
    Run(RunArgs),
    /// Check a configuration file and print everything that is wrong with it.
    Check {
        /// Configuration file.
        file: PathBuf,
    },
    /// Boot the embedded demo guest.
    Demo(RunOptions),
    /// Show the back ends of this host and which one `auto` takes.
    Info,
}

#[derive(Args)]
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

#[derive(Args, Default)]
struct RunOptions {
    /// Report instructions, time and speed at the end.
    #[arg(long)]
    stats: bool,
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
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        Some(Command::Run(args)) => run(&args),
        Some(Command::Check { file }) => check(&file),
        Some(Command::Demo(options)) => demo(&options),
        Some(Command::Info) => info(),
        None if cli.run.config.is_none() && cli.run.kernel.is_none() => demo(&cli.run.options),
        None => run(&cli.run),
    };
    match ended {
        Ok(ended) => ExitCode::from(ended as u8),
        Err(e) => {
            eprintln!("bhyve-rs: {e:#}");
            ExitCode::from(Ended::Error as u8)
        }
    }
}

fn check(file: &Path) -> Result<Ended> {
    match config::read(file, &[]) {
        // `check` has nothing to reboot: 0 is the status of success here.
        Ok(_) => Ok(Ended::Reboot),
        Err(errors) => {
            eprintln!("{errors}");
            Ok(Ended::Error)
        }
    }
}

fn run(args: &RunArgs) -> Result<Ended> {
    let mut set = Vec::new();
    if args.config.is_none() {
        set.push("name=guest".to_owned());
        set.push("serial.0.backend=stdio".to_owned());
    }
    set.extend(args.set.iter().cloned());
    for (key, value) in [("kernel", &args.kernel), ("initrd", &args.initrd), ("args", &args.args)] {
        set.extend(value.iter().map(|v| format!("boot.{key}={v}")));
    }
    let checked = match &args.config {
        Some(file) => config::read(file, &set),
        None => config::from_settings(&set, false),
    };
    match checked {
        Ok(node) => {
            let spec = config::spec(&node, config::kernel(&node)?, args.options.plain)?;
            start(&spec, &node, &args.options)
        }
        Err(errors) => {
            eprintln!("{errors}");
            Ok(Ended::Error)
        }
    }
}

fn demo(options: &RunOptions) -> Result<Ended> {
    #[cfg(probe)]
    {
        // It compares clocks, which on a busy host only instructions keep in step.
        let keys = ["name=demo", "memory=64M", "serial.0.backend=stdio", "clock=instructions"];
        let node = config::from_settings(&keys, true).map_err(|e| anyhow::anyhow!("{e}"))?;
        let kernel = vm::Kernel {
            name: "the embedded demo guest".to_owned(),
            bytes: include_bytes!(env!("PROBE_ELF")).to_vec(),
            initrd: None,
            args: "demo".to_owned(),
        };
        let mut spec = config::spec(&node, kernel, options.plain)?;
        spec.rtc_start = config::now();
        let ended = start(&spec, &node, options)?;
        // Its power-off is the demo's success.
        Ok(if ended == Ended::PowerOff { Ended::Reboot } else { ended })
    }
    #[cfg(not(probe))]
    {
        let _ = options;
        anyhow::bail!("this build has no embedded demo guest: it needs an x86-64 host; try --kernel")
    }
}

fn info() -> Result<Ended> {
    use hv::Hypervisor;
    println!("bhyve-rs {}", env!("CARGO_PKG_VERSION"));
    let soft = hv::Soft;
    match soft.available() {
        Ok(why) => println!("{:<6} yes  {why}", soft.name()),
        Err(why) => println!("{:<6} no   {why}", soft.name()),
    }
    for (name, why) in [("kvm", "not in this version yet"), ("vmm", "not in this version yet")] {
        println!("{name:<6} no   {why}");
    }
    println!("auto takes soft: it is the only back end of this version");
    Ok(Ended::Reboot)
}

/// SIGTERM presses the power button, as bhyve(8) has it: the guest decides.
fn press_on_sigterm(press: impl Fn() + Send + 'static) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM])?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || signals.forever().for_each(|_| press()))?;
    Ok(())
}

fn start(spec: &Spec, node: &cfg::Node, options: &RunOptions) -> Result<Ended> {
    let begun = Instant::now();
    let gate = host::Gate::new();
    let mut consoles = config::consoles(node, &gate, spec.instruction_clock)?;
    let instance = Instance::new(spec, gate, &hv::Soft, std::mem::take(&mut consoles.devices))?;
    press_on_sigterm(instance.power_button())?;
    if let Some(file) = &options.restore {
        instance.paused().load(file)?;
    }
    let (ended, why) = instance.run(options.until);
    consoles.flush();
    if let Some(why) = why {
        eprintln!("bhyve-rs: {why}");
    }
    if options.stats {
        let s = instance.stats(begun);
        let n = s.instructions.unwrap_or(0);
        eprintln!(
            "{}: {n} instructions, {:.2} s, {:.2} guest s, {:.1} MIPS",
            ended.map_or("stopped", Ended::text),
            s.seconds,
            s.guest_seconds,
            n as f64 / s.seconds / 1e6
        );
    }
    let Some(ended) = ended else {
        eprintln!("state {:016x}", instance.paused().digest()?);
        if let Some(file) = &options.save {
            instance.paused().save(file)?;
        }
        return Ok(Ended::Reboot);
    };
    Ok(ended)
}
