//! The names that bhyve's tools and users know: bhyve(8), bhyvectl(8), bhyveload(8), grub-bhyve and vm-bhyve's vm.
//!
//! Each is this program, called by that name or as `bhyve-rs NAME ...`. Their command lines are not ours to choose, and
//! none goes through the parser of our own.

mod bhyve;
mod bhyvectl;
mod bhyveload;
mod grub_bhyve;
pub mod node;
pub mod translate;

pub use node::forget;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use crate::backend::Backends;
use crate::fleet;

/// One of the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// bhyve(8).
    Bhyve,
    /// bhyvectl(8).
    Bhyvectl,
    /// bhyveload(8).
    Bhyveload,
    /// The port grub2-bhyve's.
    GrubBhyve,
    /// vm-bhyve's.
    Vm,
}

impl Tool {
    /// All of them.
    pub const ALL: [Tool; 5] = [Tool::Bhyve, Tool::Bhyvectl, Tool::Bhyveload, Tool::GrubBhyve, Tool::Vm];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Tool::Bhyve => "bhyve",
            Tool::Bhyvectl => "bhyvectl",
            Tool::Bhyveload => "bhyveload",
            Tool::GrubBhyve => "grub-bhyve",
            Tool::Vm => "vm",
        }
    }

    /// What it says of its command line.
    pub fn usage(self) -> String {
        match self {
            Tool::Bhyve => bhyve::USAGE.to_owned(),
            Tool::Bhyvectl => bhyvectl::usage(),
            Tool::Bhyveload => bhyveload::USAGE.to_owned(),
            Tool::GrubBhyve => grub_bhyve::HELP.to_owned(),
            Tool::Vm => fleet::usage::all(),
        }
    }

    /// The one that a program was called as.
    pub fn called(argv0: &OsStr) -> Option<Tool> {
        let name = Path::new(argv0).file_name()?;
        Tool::ALL.into_iter().find(|tool| name == tool.name())
    }

    /// Does what its command line says; `dir` is where the control sockets are.
    pub fn run(self, args: &[String], dir: &Path, backends: &Backends) -> ExitCode {
        ExitCode::from(match self {
            Tool::Bhyve => bhyve::main(args, dir, backends),
            Tool::Bhyvectl => bhyvectl::main(args, dir),
            Tool::Bhyveload => bhyveload::main(args, dir),
            Tool::GrubBhyve => grub_bhyve::main(args, dir),
            Tool::Vm => fleet::main(args, dir),
        })
    }
}
