//! bhyve-rs: the user space of a hypervisor, for BSD people.

mod board;
mod entry;
mod firmware;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;

use crate::vm::{Ended, Instance, Kernel, Spec};

#[derive(Parser)]
struct Args {
    /// Kernel to start.
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long)]
    initrd: Option<PathBuf>,
    #[arg(long, default_value = "")]
    args: String,
    #[arg(long, default_value_t = 256)]
    memory: u64,
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    #[arg(long)]
    plain: bool,
    #[arg(long)]
    instruction_clock: bool,
    #[arg(long)]
    stats: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(ended) => ExitCode::from(ended as u8),
        Err(e) => {
            eprintln!("bhyve-rs: {e:#}");
            ExitCode::from(Ended::Error as u8)
        }
    }
}

fn run(args: &Args) -> Result<Ended> {
    let start = Instant::now();
    let read = |p: &PathBuf| std::fs::read(p).with_context(|| p.display().to_string());
    let spec = Spec {
        cpus: args.cpus,
        memory: args.memory << 20,
        board: board::Kind::Pc,
        model: cpu::Model::default(),
        plain: args.plain,
        instruction_clock: args.instruction_clock,
        rtc_start: 1_262_304_000,
        uuid: [0; 16],
        kernel: Kernel {
            name: args.kernel.display().to_string(),
            bytes: read(&args.kernel)?,
            initrd: args.initrd.as_ref().map(read).transpose()?,
            args: args.args.clone(),
        },
    };
    let gate = host::Gate::new();
    let console = host::Stdio::open(&gate, true, spec.instruction_clock)?;
    let flush = console.flusher();
    let instance = Instance::new(&spec, gate, &hv::Soft, vec![Some(Box::new(console))])?;
    let (ended, why) = instance.run();
    flush();
    if let Some(why) = why {
        eprintln!("bhyve-rs: {why}");
    }
    if args.stats {
        let s = instance.stats(start);
        eprintln!(
            "{ended:?}: {} instructions, {:.2} s, {:.2} guest s, {:.1} MIPS",
            s.instructions.unwrap_or(0),
            s.seconds,
            s.guest_seconds,
            s.instructions.unwrap_or(0) as f64 / s.seconds / 1e6
        );
    }
    Ok(ended)
}
