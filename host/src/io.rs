//! The io thread: timers in real time.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use emu::Machine;

/// Whether events may reach devices. Backends hold it open while they deliver; closing waits for them.
#[derive(Default)]
pub struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    /// A gate that is closed.
    pub fn new() -> Arc<Gate> {
        Arc::new(Gate { closed: Mutex::new(true), opened: Condvar::new() })
    }

    /// Runs `f` while the gate is open; waits until it is.
    pub fn pass<T>(&self, f: impl FnOnce() -> T) -> T {
        let mut closed = self.closed.lock().unwrap();
        while *closed {
            closed = self.opened.wait(closed).unwrap();
        }
        f()
    }

    /// Closes the gate. On return nothing is under way.
    pub fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    /// Opens it.
    pub fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }
}

#[derive(Default)]
struct Bell {
    rung: Mutex<(bool, bool)>,
    changed: Condvar,
}

/// The thread. It ends when it is dropped.
pub struct IoThread {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
    gate: Arc<Gate>,
}

impl IoThread {
    /// Starts the thread for a machine. The gate is the machine's.
    ///
    /// # Errors
    /// When the host has no thread for it.
    pub fn start(machine: &Arc<Machine>, gate: &Arc<Gate>) -> std::io::Result<IoThread> {
        let bell: Arc<Bell> = Arc::default();
        let ring = Arc::downgrade(&bell);
        machine.timers.on_earlier(move || {
            if let Some(bell) = ring.upgrade() {
                bell.rung.lock().unwrap().0 = true;
                bell.changed.notify_one();
            }
        });
        let (b, m, g) = (bell.clone(), machine.clone(), gate.clone());
        let thread = std::thread::Builder::new().name("io".to_owned()).spawn(move || work(&b, &m, &g))?;
        Ok(IoThread { bell, thread: Some(thread), gate: gate.clone() })
    }
}

fn work(bell: &Bell, machine: &Machine, gate: &Gate) {
    let clock = machine.clock();
    loop {
        {
            let mut rung = bell.rung.lock().unwrap();
            if rung.1 {
                return;
            }
            let next = machine.timers.next();
            let now = clock.now();
            if !rung.0 && next > now {
                // A clock that is not real is served by whoever moves it.
                let wait = if clock.is_real() && next != u64::MAX { next - now } else { 3_600_000_000_000 };
                rung = bell.changed.wait_timeout(rung, Duration::from_nanos(wait)).unwrap().0;
            }
            rung.0 = false;
            if rung.1 {
                return;
            }
        }
        if clock.is_real() {
            gate.pass(|| machine.timers.run_due());
        }
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.bell.rung.lock().unwrap().1 = true;
        self.bell.changed.notify_all();
        self.gate.open();
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}
