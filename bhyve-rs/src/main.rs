//! The program; all of it is in the library, so that tests can bring back ends of their own.

use std::process::ExitCode;

fn main() -> ExitCode {
    bhyve_rs::main(hv::all())
}
