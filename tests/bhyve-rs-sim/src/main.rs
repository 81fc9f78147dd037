//! bhyve-rs over the simulated vmm.ko, as the back end `vmm-sim`; for tests, never for users.
//!
//! `BHYVE_RS_SIM` names the kernel: 13.1, 13, 14 (the default) or 15; words behind a comma take something away from the
//! host (`14,no-vt`) or make a VM that the user is given (`14,given=NAME,no-root`). `BHYVE_RS_SIM_REPORT` names a file for counts of requests and exits.

use std::fmt::Write;
use std::process::ExitCode;
use std::sync::Arc;

use emu::Machine;
use hv::{Hypervisor, Soft, Vm, VmConfig, Vmm};
use vmm_sim::{Lack, Sim, Version};

/// The back end, whose machines the simulator must know to be coherent with them.
struct Over {
    sim: Arc<Sim>,
    vmm: Vmm,
}

impl Hypervisor for Over {
    fn name(&self) -> &'static str {
        self.vmm.name()
    }

    fn available(&self) -> Result<String, String> {
        self.vmm.available()
    }

    fn create(&self, machine: &Arc<Machine>, config: &VmConfig) -> anyhow::Result<Arc<dyn Vm>> {
        self.sim.coherent(machine.space.ram());
        self.vmm.create(machine, config)
    }
}

/// The kernel that the environment asks for.
fn kernel() -> Arc<Sim> {
    let asked = std::env::var("BHYVE_RS_SIM").unwrap_or_else(|_| "14".to_owned());
    let mut words = asked.split(',');
    let version = words.next().and_then(Version::named).expect("BHYVE_RS_SIM names 13.1, 13, 14 or 15");
    let sim = Sim::new(version);
    for word in words {
        match word {
            "not-loaded" => sim.lack(Lack::Loaded),
            "no-module" => sim.lack(Lack::Module),
            "no-vt" => sim.lack(Lack::Virtualization),
            "no-unrestricted" => sim.lack(Lack::UnrestrictedGuest),
            "no-rights" => sim.lack(Lack::Rights),
            "no-root" => sim.lack(Lack::Root),
            "jail" => sim.lack(Lack::Jail),
            "no-nodes" => sim.lack(Lack::Nodes),
            "no-destroy-on-close" => sim.lack(Lack::DestroyOnClose),
            "no-bogus" => sim.no_bogus(),
            "verbose" => sim.verbose(),
            given if given.starts_with("given=") => sim.made_by_root(&given["given=".len()..]),
            other => panic!("BHYVE_RS_SIM does not know {other}"),
        }
    }
    sim
}

fn report(sim: &Sim) -> String {
    let mut out = String::new();
    for (name, n) in sim.requests() {
        let _ = writeln!(out, "request {name} {n}");
    }
    for (name, n) in sim.exits() {
        let _ = writeln!(out, "exit {name} {n}");
    }
    for (form, n) in sim.emulated() {
        let _ = writeln!(out, "emulated {form} {n}");
    }
    for name in sim.vms() {
        let _ = writeln!(out, "left {name}");
    }
    out
}

fn main() -> ExitCode {
    let sim = kernel();
    let vmm = Vmm::over(sim.clone(), "vmm");
    // Opened before the program confines itself.
    let file = std::env::var_os("BHYVE_RS_SIM_REPORT").map(|path| std::fs::File::create(path).expect("a report"));
    let over = Over { sim: sim.clone(), vmm };
    let status = bhyve_rs::main(vec![Box::new(over), Box::new(Soft)]);
    if let Some(mut file) = file {
        let _ = std::io::Write::write_all(&mut file, report(&sim).as_bytes());
    }
    status
}
