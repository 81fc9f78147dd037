//! A look at what a guest does with its devices: counts for the run report, lines for `--trace`.
//!
//! Nothing of it lies in the path of an access unless it is asked for.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Result, bail};
use emu::{Access, AddressSpace, Clock};

/// Targets of `--trace` that are no devices: all of these, and what firmware writes to its debug ports.
const ALL: &str = "all";
/// The log of the firmware.
pub const FIRMWARE: &str = "firmware";
/// The built-in BIOS, with each of its calls.
pub const BIOS: &str = "bios";

/// Accesses to one owner's registers.
#[derive(Default)]
struct Counts {
    reads: AtomicU64,
    writes: AtomicU64,
}

/// Counts and traces.
pub struct Watch {
    traced: Vec<String>,
    owners: Mutex<BTreeMap<String, Arc<Counts>>>,
}

impl Watch {
    /// A watch that traces these targets.
    pub fn new(traced: &[String]) -> Arc<Watch> {
        Arc::new(Watch { traced: traced.to_vec(), owners: Mutex::default() })
    }

    /// Watches everything that is put into `space` from now on.
    pub fn attach(self: &Arc<Watch>, space: &AddressSpace, clock: &Arc<Clock>) {
        let (watch, clock) = (self.clone(), clock.clone());
        space.watch(Box::new(move |owner| {
            let name = owner.owner().to_owned();
            let trace = watch.traced.iter().any(|t| *t == name || t == ALL).then(|| clock.clone());
            let counts = watch.owners.lock().unwrap().entry(name).or_default().clone();
            Arc::new(Watched { owner, counts, trace })
        }));
    }

    /// Whether all targets are there, now that the machine is.
    ///
    /// # Errors
    /// The first that is not, and what there is.
    pub fn check(&self) -> Result<()> {
        let owners = self.owners.lock().unwrap();
        let names: Vec<&str> = owners.keys().map(String::as_str).chain([FIRMWARE, ALL]).collect();
        for target in &self.traced {
            if !names.contains(&target.as_str()) {
                let nearest = cfg::nearest(target, names.iter().copied());
                let nearest = nearest.map_or_else(String::new, |n| format!(" (did you mean {n:?}?)"));
                bail!("--trace {target}: no such target{nearest}; there are {}", names.join(", "));
            }
        }
        Ok(())
    }

    /// Accesses by device, the busiest first; a heading and a line each.
    pub fn report(&self) -> String {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let owners = self.owners.lock().unwrap();
        let mut rows: Vec<_> = owners.iter().map(|(name, c)| (name, load(&c.reads), load(&c.writes))).collect();
        rows.retain(|(_, reads, writes)| reads + writes > 0);
        rows.sort_by_key(|(name, reads, writes)| (std::cmp::Reverse(reads + writes), *name));
        let mut out = format!("{:<16} {:>12} {:>12}\n", "exits by device", "reads", "writes");
        for (name, reads, writes) in rows {
            let _ = writeln!(out, "{name:<16} {reads:>12} {writes:>12}");
        }
        out
    }
}

/// An owner under observation.
struct Watched {
    owner: Arc<dyn Access>,
    counts: Arc<Counts>,
    trace: Option<Arc<Clock>>,
}

impl Watched {
    fn trace(&self, what: &str, region: u32, offset: u64, width: u8, value: impl FnOnce() -> String) {
        if let Some(clock) = &self.trace {
            let now = clock.now();
            let (s, us) = (now / 1_000_000_000, now / 1000 % 1_000_000);
            let (name, value) = (self.owner.owner(), value());
            tracing::info!(target: "trace", "{s:5}.{us:06} {name} {what} {region}:{offset:x}/{width} {value}");
        }
    }

    fn count(counter: &AtomicU64, bytes: usize, width: u8) {
        counter.fetch_add((bytes / usize::from(width.max(1))) as u64, Ordering::Relaxed);
    }
}

/// The elements of a string transfer, shortened.
fn elements(bytes: &[u8], width: u8) -> String {
    const SHOWN: usize = 16;
    let mut text = format!("{} of", bytes.len() / usize::from(width.max(1)));
    for byte in bytes.iter().take(SHOWN) {
        let _ = write!(text, " {byte:02x}");
    }
    if bytes.len() > SHOWN {
        text.push_str(" ...");
    }
    text
}

impl Access for Watched {
    fn owner(&self) -> &str {
        self.owner.owner()
    }

    fn read(&self, region: u32, offset: u64, width: u8) -> u64 {
        Watched::count(&self.counts.reads, usize::from(width), width);
        let value = self.owner.read(region, offset, width);
        let shown = value & (u64::MAX >> (64 - 8 * u32::from(width.clamp(1, 8))));
        self.trace("read", region, offset, width, || format!("{shown:x}"));
        value
    }

    fn write(&self, region: u32, offset: u64, width: u8, value: u64) {
        Watched::count(&self.counts.writes, usize::from(width), width);
        self.trace("write", region, offset, width, || format!("{value:x}"));
        self.owner.write(region, offset, width, value);
    }

    fn read_many(&self, region: u32, offset: u64, width: u8, buf: &mut [u8]) {
        Watched::count(&self.counts.reads, buf.len(), width);
        self.owner.read_many(region, offset, width, buf);
        self.trace("read", region, offset, width, || elements(buf, width));
    }

    fn write_many(&self, region: u32, offset: u64, width: u8, data: &[u8]) {
        Watched::count(&self.counts.writes, data.len(), width);
        self.trace("write", region, offset, width, || elements(data, width));
        self.owner.write_many(region, offset, width, data);
    }
}
