//! The thread that does a disk's work.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use emu::backend::{Disk, DiskOp, DiskRequest};
use emu::{Ram, Ticket};

use super::{Image, Store};

/// A guest can make an error as often as it likes; the log has one of a disk in this time.
const BETWEEN_ERRORS: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(DiskRequest, Ticket)>,
    /// The thread has a job in hand.
    working: bool,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// The queue has something, or is to stop.
    filled: Condvar,
    /// The job in hand is done.
    done: Condvar,
}

/// A disk with its thread.
pub(super) struct Worker {
    size: u64,
    read_only: bool,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub fn start(image: Image, ram: Arc<Ram>) -> io::Result<Worker> {
        let shared = Arc::<Shared>::default();
        let (size, read_only) = (image.store.size(), image.store.read_only());
        let mut work = Work { image, ram, last_error: None };
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("disk".to_owned()).spawn(move || work.run(&theirs))?;
        Ok(Worker { size, read_only, shared, thread: Some(thread) })
    }
}

impl Disk for Worker {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn submit(&mut self, request: DiskRequest, ticket: Ticket) {
        self.shared.queue.lock().unwrap().jobs.push_back((request, ticket));
        self.shared.filled.notify_one();
    }

    fn cancel(&mut self) {
        let mut queue = self.shared.queue.lock().unwrap();
        let dropped = std::mem::take(&mut queue.jobs);
        drop(self.shared.done.wait_while(queue, |q| q.working).unwrap());
        // Tickets tell that they go, which takes locks of others.
        drop(dropped);
    }
}

impl Drop for Worker {
    /// What was asked for is done first: a guest that powered off has seen no error.
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap().stop = true;
        self.shared.filled.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work {
    image: Image,
    ram: Arc<Ram>,
    last_error: Option<Instant>,
}

impl Work {
    fn run(&mut self, shared: &Shared) {
        loop {
            let queue = shared.queue.lock().unwrap();
            let mut queue = shared.filled.wait_while(queue, |q| q.jobs.is_empty() && !q.stop).unwrap();
            let Some((request, ticket)) = queue.jobs.pop_front() else { return };
            queue.working = true;
            drop(queue);
            let (ok, data) = self.serve(request);
            ticket.finish(ok, data);
            shared.queue.lock().unwrap().working = false;
            shared.done.notify_all();
        }
    }

    fn serve(&mut self, request: DiskRequest) -> (bool, Vec<u8>) {
        let DiskRequest { offset, op, .. } = request;
        let what = match &op {
            DiskOp::Read(_) | DiskOp::ReadBytes(_) => "read",
            DiskOp::Write(_) | DiskOp::WriteBytes(_) => "write",
            DiskOp::Flush => "flush",
            DiskOp::Discard(_) => "discard",
        };
        match self.attempt(offset, op) {
            Ok(data) => (true, data),
            Err(error) => {
                if self.last_error.is_none_or(|at| at.elapsed() >= BETWEEN_ERRORS) {
                    self.last_error = Some(Instant::now());
                    tracing::error!("{}: {what} at byte {offset}: {error}", self.image.name);
                }
                (false, Vec::new())
            }
        }
    }

    fn attempt(&mut self, offset: u64, op: DiskOp) -> io::Result<Vec<u8>> {
        let store: &mut dyn Store = &mut *self.image.store;
        let within = |len: u64| match offset.checked_add(len) {
            Some(end) if end <= store.size() => Ok(()),
            _ => Err(io::Error::other("past the end of the disk")),
        };
        let writes = matches!(op, DiskOp::Write(_) | DiskOp::WriteBytes(_));
        if writes && store.read_only() {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        match op {
            DiskOp::Read(iov) => {
                within(iov.len())?;
                store.read_guest(offset, &self.ram, &iov)?;
            }
            DiskOp::ReadBytes(len) => {
                within(len)?;
                let mut data = vec![0; len as usize];
                store.read(offset, &mut data)?;
                return Ok(data);
            }
            DiskOp::Write(iov) => {
                within(iov.len())?;
                store.write_guest(offset, &self.ram, &iov)?;
            }
            DiskOp::WriteBytes(data) => {
                within(data.len() as u64)?;
                store.write(offset, &data)?;
            }
            DiskOp::Flush => store.flush()?,
            // The contents may stay.
            DiskOp::Discard(_) => {}
        }
        if writes && self.image.write_through {
            store.flush()?;
        }
        Ok(Vec::new())
    }
}
