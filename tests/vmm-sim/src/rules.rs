//! What user space must not do, and what it did.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::exit;

/// The book of broken rules, and counts of requests and exits.
#[derive(Default)]
pub(crate) struct Rules {
    broken: Mutex<Vec<String>>,
    /// Broken rules are only written down.
    record: AtomicBool,
    no_bogus: AtomicBool,
    interrupts: AtomicBool,
    restricted: AtomicBool,
    requests: Mutex<BTreeMap<&'static str, u64>>,
    exits: Mutex<BTreeMap<&'static str, u64>>,
    /// Instructions that user space was given, by their bytes up to the ModRM byte's form.
    emulated: Mutex<BTreeMap<String, u64>>,
    verbose: AtomicBool,
    patience: Mutex<Option<Duration>>,
}

impl Rules {
    /// User space broke a rule: the test fails here, unless it wants to see what comes of it.
    pub(crate) fn broken(&self, what: &str) {
        self.broken.lock().unwrap().push(what.to_owned());
        if !self.record.load(Ordering::Relaxed) {
            // Not by the macro, whose output a test that does not end keeps to itself.
            let _ = writeln!(std::io::stderr(), "vmm-sim: a rule of vmm(4) is broken: {what}");
            std::process::abort();
        }
    }

    /// Something legal that is seldom meant.
    pub(crate) fn note(&self, what: &str) {
        if self.verbose.load(Ordering::Relaxed) {
            eprintln!("vmm-sim: {what}");
        }
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.broken.lock().unwrap().clone()
    }

    pub(crate) fn set_record(&self) {
        self.record.store(true, Ordering::Relaxed);
    }

    pub(crate) fn set_verbose(&self) {
        self.verbose.store(true, Ordering::Relaxed);
    }

    pub(crate) fn set_patience(&self, most: Duration) {
        *self.patience.lock().unwrap() = Some(most);
    }

    /// How long user space has to bring every active vCPU into VM_RUN after VM_SUSPEND.
    pub(crate) fn patience(&self) -> Duration {
        self.patience.lock().unwrap().unwrap_or(Duration::from_secs(10))
    }

    pub(crate) fn set_no_bogus(&self) {
        self.no_bogus.store(true, Ordering::Relaxed);
    }

    pub(crate) fn bogus(&self) -> bool {
        !self.no_bogus.load(Ordering::Relaxed)
    }

    pub(crate) fn set_interrupts(&self) {
        self.interrupts.store(true, Ordering::Relaxed);
    }

    /// VM_RUN fails with EINTR now and then.
    pub(crate) fn interrupts(&self) -> bool {
        self.interrupts.load(Ordering::Relaxed)
    }

    pub(crate) fn set_restricted(&self) {
        self.restricted.store(true, Ordering::Relaxed);
    }

    /// The processor runs real mode by itself.
    pub(crate) fn unrestricted(&self) -> bool {
        !self.restricted.load(Ordering::Relaxed)
    }

    pub(crate) fn requested(&self, name: &'static str) {
        *self.requests.lock().unwrap().entry(name).or_default() += 1;
    }

    pub(crate) fn exited(&self, code: i32) {
        *self.exits.lock().unwrap().entry(exit::name(code)).or_default() += 1;
    }

    pub(crate) fn emulated(&self, bytes: &[u8], decoded: usize) {
        let len = if decoded == 0 { bytes.len().min(4) } else { decoded.min(4) };
        let form: Vec<String> = bytes[..len].iter().map(|b| format!("{b:02x}")).collect();
        let mut forms = self.emulated.lock().unwrap();
        if forms.len() < 4096 {
            *forms.entry(form.join(" ")).or_default() += 1;
        }
    }

    pub(crate) fn requests(&self) -> BTreeMap<&'static str, u64> {
        self.requests.lock().unwrap().clone()
    }

    pub(crate) fn exits(&self) -> BTreeMap<&'static str, u64> {
        self.exits.lock().unwrap().clone()
    }

    pub(crate) fn forms(&self) -> BTreeMap<String, u64> {
        self.emulated.lock().unwrap().clone()
    }
}
