//! `bhyve-rs switch`: a learning switch with VLANs, to whose sockets machines connect.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use host::net::switch::{self, Vlans};
use host::{broker, watch_signals};

use crate::tell::say;
use crate::{SUCCESS, log};

/// Be a switch for the machines of this host (backend = "switch"), until a signal ends it.
///
/// Whoever may connect to a socket (its owner, and root) may speak in the VLANs that it has: all of them, of which 1 comes
/// and goes without a tag; with ",vlan=5" only that one, without tags; with ",trunk=5+6" these, with tags.
#[derive(Args)]
pub struct Switch {
    /// Sockets, which are made: PATH, PATH,vlan=N, PATH,trunk=N+N.
    #[arg(required = true, value_name = "SOCKET", value_parser = switch::parse)]
    sockets: Vec<(PathBuf, Vlans)>,
    /// Do not confine the process, for debugging.
    #[arg(long)]
    no_sandbox: bool,
}

impl Switch {
    /// Is the switch, and returns the exit status.
    ///
    /// # Errors
    /// When a socket cannot be had.
    pub fn run(&self) -> Result<u8> {
        log::start(&[]);
        if !self.no_sandbox {
            broker::start().context("the process that tidies up")?;
        }
        let switch = switch::Switch::listen(&self.sockets)?;
        let stop = switch.stopper();
        watch_signals(move |_| stop.stop()).context("signals")?;
        for (path, _) in &self.sockets {
            say(&format!("the switch listens at {}", path.display()));
        }
        switch.run(!self.no_sandbox)?;
        Ok(SUCCESS)
    }
}
