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

/// Who made a request.
type Handle = u64;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Handle, DiskRequest, Ticket)>,
    /// Whose job the thread has in hand.
    working: Option<Handle>,
    /// The number of the next handle.
    handles: Handle,
    stop: bool,
}

/// What the thread and the handles have in common.
struct Shared {
    size: u64,
    read_only: bool,
    queue: Mutex<Queue>,
    /// The queue has something, or is to stop.
    filled: Condvar,
    /// The job in hand is done.
    done: Condvar,
}

/// The thread; it ends with its last handle.
struct Thread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Thread {
    /// What was asked for is done first: a guest that powered off has seen no error.
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap().stop = true;
        self.shared.filled.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A handle on a disk with its thread.
pub(super) struct Worker {
    thread: Arc<Thread>,
    handle: Handle,
}

impl Worker {
    pub fn start(image: Image, ram: Arc<Ram>) -> io::Result<Worker> {
        let shared = Arc::new(Shared {
            size: image.store.size(),
            read_only: image.store.read_only(),
            queue: Mutex::default(),
            filled: Condvar::new(),
            done: Condvar::new(),
        });
        let mut work = Work { image, ram, last_error: None };
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("disk".to_owned()).spawn(move || work.run(&theirs))?;
        Ok(Worker::handle(&Arc::new(Thread { shared, thread: Some(thread) })))
    }

    fn handle(thread: &Arc<Thread>) -> Worker {
        let mut queue = thread.shared.queue.lock().unwrap();
        queue.handles += 1;
        Worker { handle: queue.handles, thread: thread.clone() }
    }

    fn shared(&self) -> &Shared {
        &self.thread.shared
    }
}

impl Disk for Worker {
    fn size(&self) -> u64 {
        self.shared().size
    }

    fn read_only(&self) -> bool {
        self.shared().read_only
    }

    fn submit(&mut self, request: DiskRequest, ticket: Ticket) {
        self.shared().queue.lock().unwrap().jobs.push_back((self.handle, request, ticket));
        self.shared().filled.notify_one();
    }

    fn cancel(&mut self) {
        let mut queue = self.shared().queue.lock().unwrap();
        let (dropped, kept) = std::mem::take(&mut queue.jobs).into_iter().partition(|(h, ..)| *h == self.handle);
        queue.jobs = kept;
        drop(self.shared().done.wait_while(queue, |q| q.working == Some(self.handle)).unwrap());
        // Tickets tell that they go, which takes locks of others.
        drop::<VecDeque<_>>(dropped);
    }

    fn share(&self) -> Box<dyn Disk> {
        Box::new(Worker::handle(&self.thread))
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
            let Some((handle, request, ticket)) = queue.jobs.pop_front() else { return };
            queue.working = Some(handle);
            drop(queue);
            let (ok, data) = self.serve(request);
            ticket.finish(ok, data);
            shared.queue.lock().unwrap().working = None;
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
