//! When the answer to a request of a disk, or of a share, reaches its device.
//!
//! A device holds a [`DiskPort`] or a [`SharePort`], a back end gets a [`Ticket`] with each request and answers it from any thread. In
//! between is a list of the requests under way and a timer, which delivers what is due while the machine runs.
//!
//! In real time an answer is due when it is there, and the thread that has it delivers it: waking another up for that
//! costs more than all else. By the instruction clock it is due [`DISK_LATENCY`] after the
//! request, however fast the host is, and the processor waits for the host as soon as it has made the request: the
//! guest's memory, too, then changes at one instruction in every run.
//!
//! A paused machine's requests go on at the host. Whoever saves waits for them; what is finished and not yet
//! delivered is saved with the device.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::{Completion, Disk, DiskRequest, Share};
use crate::clock::{Timer, TimerSink, Timers};
use crate::device::{DeviceCell, Event};

/// Nanoseconds of guest time that a request takes when instructions drive the clock.
pub const DISK_LATENCY: u64 = 100_000;

/// A request whose answer has not reached the device.
struct Request {
    tag: u64,
    /// When the answer is due; `None` while that depends on the host.
    due: Option<u64>,
    answer: Option<(bool, Vec<u8>)>,
}

impl Request {
    /// When the answer can be delivered, if it can.
    fn ready(&self) -> Option<u64> {
        self.answer.as_ref().and(self.due)
    }
}

/// An answer that is saved on its way to the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedAnswer {
    /// Nanoseconds of guest time.
    due: u64,
    tag: u64,
    ok: bool,
    data: Vec<u8>,
}

#[derive(Default)]
struct UnderWay {
    /// By the order in which they were made. A number is never used twice.
    requests: BTreeMap<u64, Request>,
    next: u64,
    /// Somebody waits for answers.
    settling: bool,
}

/// The requests of one device to one disk or share. The lock is a leaf below the device's.
pub(crate) struct Queue {
    under_way: Mutex<UnderWay>,
    answered: Condvar,
    timer: OnceLock<Timer>,
    to: Weak<DeviceCell>,
    by_instructions: bool,
    real: bool,
}

impl Queue {
    pub(crate) fn new(timers: &Arc<Timers>, to: Weak<DeviceCell>) -> Arc<Queue> {
        let queue = Arc::new(Queue {
            under_way: Mutex::default(),
            answered: Condvar::new(),
            timer: OnceLock::new(),
            to,
            by_instructions: timers.clock().by_instructions(),
            real: timers.clock().is_real(),
        });
        let sink: Weak<Queue> = Arc::downgrade(&queue);
        let _ = queue.timer.set(timers.add(sink, 0));
        queue
    }

    fn timer(&self) -> &Timer {
        self.timer.get().expect("set when it was made")
    }

    fn begin(self: &Arc<Queue>, tag: u64) -> Ticket {
        let mut u = self.under_way.lock().unwrap();
        let due = self.by_instructions.then(|| self.timer().now() + DISK_LATENCY);
        let number = u.next;
        u.next += 1;
        u.requests.insert(number, Request { tag, due, answer: None });
        Ticket { queue: self.clone(), number, answer: Some((false, Vec::new())) }
    }

    fn answer(&self, number: u64, answer: (bool, Vec<u8>)) {
        let mut u = self.under_way.lock().unwrap();
        // Unless it was cancelled.
        let Some(request) = u.requests.get_mut(&number) else { return };
        request.answer = Some(answer);
        request.due.get_or_insert_with(|| self.timer().now());
        if u.settling {
            self.answered.notify_all();
        }
        if !self.real {
            // Who waits for the host finds the timer set.
            return self.arm(&u);
        }
        drop(u);
        if !self.timer().at_once(&|| self.fire(0)) {
            self.arm(&self.under_way.lock().unwrap());
        }
    }

    fn arm(&self, u: &UnderWay) {
        self.timer().set(u.requests.values().filter_map(Request::ready).min().unwrap_or(u64::MAX));
    }

    /// Waits until the host is done with every request.
    fn settle(&self) {
        crate::device::unlocked();
        let waits = |u: &mut UnderWay| {
            u.settling = u.requests.values().any(|r| r.answer.is_none());
            u.settling
        };
        drop(self.answered.wait_while(self.under_way.lock().unwrap(), waits).unwrap());
    }

    fn forget(&self) {
        let mut u = self.under_way.lock().unwrap();
        u.requests.clear();
        self.arm(&u);
    }

    /// The first answer that is due, of the requests made before number `before`.
    fn take_due(&self, before: u64) -> Option<Completion> {
        let mut u = self.under_way.lock().unwrap();
        let now = self.timer().now();
        let due = |(_, r): &(&u64, &Request)| r.ready().is_some_and(|at| at <= now);
        let number = *u.requests.range(..before).find(due)?.0;
        let request = u.requests.remove(&number)?;
        let (ok, data) = request.answer?;
        Some(Completion { tag: request.tag, ok, data })
    }

    pub(crate) fn save(&self) -> Vec<SavedAnswer> {
        self.settle();
        let saved = |r: &Request| {
            let (ok, data) = r.answer.clone()?;
            Some(SavedAnswer { due: r.due?, tag: r.tag, ok, data })
        };
        self.under_way.lock().unwrap().requests.values().filter_map(saved).collect()
    }

    pub(crate) fn load(&self, saved: Vec<SavedAnswer>) {
        let mut u = self.under_way.lock().unwrap();
        u.requests.clear();
        for s in saved {
            let number = u.next;
            u.next += 1;
            u.requests.insert(number, Request { tag: s.tag, due: Some(s.due), answer: Some((s.ok, s.data)) });
        }
        self.arm(&u);
    }
}

impl TimerSink for Queue {
    fn fire(&self, _: u32) {
        let Some(cell) = self.to.upgrade() else { return };
        // What the device asks for when it gets an answer waits for the next time, or a fast host would keep the
        // thread.
        let before = self.under_way.lock().unwrap().next;
        // Answers leave the list under the device's lock: whoever cancels under it meets none on its way.
        cell.with(|device| {
            let mut any = false;
            while let Some(completion) = self.take_due(before) {
                any = true;
                device.event(Event::Done(completion));
            }
            if any {
                device.event(Event::AllDone);
            }
        });
        self.arm(&self.under_way.lock().unwrap());
    }
}

/// A back end's right to answer one request. Dropped without an answer it says that the request failed.
pub struct Ticket {
    queue: Arc<Queue>,
    number: u64,
    answer: Option<(bool, Vec<u8>)>,
}

impl Ticket {
    /// Answers. `data` is what [`crate::backend::DiskOp::ReadBytes`] read, or a share's reply. Nobody hears it if the request was
    /// cancelled. The device may hear it from this thread, which should hold no lock of its own.
    pub fn finish(mut self, ok: bool, data: Vec<u8>) {
        self.answer = Some((ok, data));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            self.queue.answer(self.number, answer);
        }
    }
}

/// A disk as its device sees it. Answers come as [`Event::Done`].
pub struct DiskPort {
    disk: Box<dyn Disk>,
    queue: Arc<Queue>,
}

impl DiskPort {
    pub(crate) fn new(disk: Box<dyn Disk>, queue: Arc<Queue>) -> DiskPort {
        DiskPort { disk, queue }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.disk.size()
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    /// Starts a request.
    pub fn submit(&mut self, request: DiskRequest) {
        let ticket = self.queue.begin(request.tag);
        self.disk.submit(request, ticket);
        if self.queue.by_instructions {
            self.queue.settle();
        }
    }

    /// The guest wants the medium to stay in the drive, or no longer wants that: who would change it is to know.
    pub fn lock(&mut self, locked: bool) {
        self.disk.lock(locked);
    }

    /// Forgets all requests: after this none touches guest memory, and none is answered. A device that is reset must
    /// do it.
    pub fn cancel(&mut self) {
        self.disk.cancel();
        self.queue.forget();
    }
}

/// A share as its device sees it. Replies come as [`Event::Done`].
pub struct SharePort {
    share: Box<dyn Share>,
    queue: Arc<Queue>,
}

impl SharePort {
    pub(crate) fn new(share: Box<dyn Share>, queue: Arc<Queue>) -> SharePort {
        SharePort { share, queue }
    }

    /// Hands a message over, whose reply the device knows by `tag` and has `room` bytes for.
    pub fn submit(&mut self, tag: u64, message: Vec<u8>, room: usize) {
        let ticket = self.queue.begin(tag);
        self.share.submit(message, room, ticket);
        if self.queue.by_instructions {
            self.queue.settle();
        }
    }

    /// Forgets all requests, and what the guest has open. A device that is reset must do it.
    pub fn reset(&mut self) {
        // First, so that the share's end of a request finds none.
        self.queue.forget();
        self.share.reset();
    }

    /// What the guest has open. The machine is paused.
    pub fn save(&self) -> Value {
        self.share.save()
    }

    /// Opens it again.
    ///
    /// # Errors
    /// As [`Share::load`].
    pub fn load(&mut self, saved: Value) -> Result<(), String> {
        self.queue.forget();
        self.share.load(saved)
    }
}

#[cfg(test)]
mod tests;
