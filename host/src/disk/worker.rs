//! The thread that does a disk's work.
//!
//! It also changes what is in the drive ([`DiskControl::change`]), behind all handles and between two requests, and
//! writes tables that formats keep in memory when the guest leaves it a moment. When the host fails a request, the
//! guest hears of it; or, if the user wants that, the request waits while the machine is paused, and is tried again
//! when it goes on.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use emu::backend::{Disk, DiskOp, DiskRequest};
use emu::{Ram, Ticket};

use super::{Image, Store};

/// A guest can make an error as often as it likes: the log has one of a disk and a kind of request in this time, and
/// the same one again only after a long time.
const BETWEEN_ERRORS: Duration = Duration::from_secs(1);
const BETWEEN_THE_SAME: Duration = Duration::from_secs(60);

/// A disk that nobody asks anything for so long puts its tables on disk.
const LULL: Duration = Duration::from_secs(1);

/// Who made a request.
type Handle = u64;

/// What happens to a request that the host fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The guest hears of it.
    #[default]
    Report,
    /// The machine is paused, and the request is tried again when it goes on.
    Pause,
}

/// Who is told that a disk waits for the machine to be paused and to go on.
type Stalled = Box<dyn Fn() + Send>;

/// Who changes media, for whom there is no handle.
const OUTSIDE: Handle = 0;
/// How long changing a medium may take.
const PATIENCE: Duration = Duration::from_secs(5);

enum Job {
    Request(DiskRequest, Ticket),
    /// Another medium, and who waits for it.
    Change(Image, SyncSender<()>),
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Handle, Job)>,
    /// The thread waits for jobs.
    idle: bool,
    /// Whose job the thread has in hand.
    working: Option<Handle>,
    /// The number of the next handle.
    handles: Handle,
    /// The job in hand waits until the host might do better.
    stalled: bool,
    /// The job in hand is given up.
    abandon: bool,
    /// How many wait until it is done.
    cancelling: usize,
    stop: bool,
}

/// What the thread and the handles have in common.
struct Shared {
    size: AtomicU64,
    read_only: AtomicBool,
    /// The guest wants the medium to stay.
    locked: AtomicBool,
    on_stall: Mutex<Option<Stalled>>,
    queue: Mutex<Queue>,
    /// The queue has something, or is to stop, or a job that is stalled is to go on.
    filled: Condvar,
    /// The job in hand is done.
    done: Condvar,
}

impl Shared {
    /// What handles say of the image.
    fn describe(&self, store: &dyn Store) {
        self.read_only.store(store.read_only(), Ordering::Release);
        self.size.store(store.size(), Ordering::Release);
    }
}

/// Works on a disk from outside the machine.
#[derive(Clone)]
pub struct DiskControl(Weak<Shared>);

impl DiskControl {
    /// Puts something else into the drive, [`Image::empty`] to leave nothing there, after all that was asked for
    /// before. Its device has to be told, by [`emu::Event::Medium`].
    ///
    /// # Errors
    /// When that cannot be now.
    pub fn change(&self, image: Image) -> Result<(), String> {
        let gone = || "the machine has ended".to_owned();
        let shared = self.0.upgrade().ok_or_else(gone)?;
        let (done, changed) = sync_channel(1);
        shared.queue.lock().unwrap().jobs.push_back((OUTSIDE, Job::Change(image, done)));
        shared.filled.notify_all();
        match changed.recv_timeout(PATIENCE) {
            Ok(()) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
            Err(RecvTimeoutError::Timeout) => {
                let mut queue = shared.queue.lock().unwrap();
                let before = queue.jobs.len();
                queue.jobs.retain(|(_, job)| !matches!(job, Job::Change(..)));
                let taken_back = queue.jobs.len() < before;
                drop(queue);
                // Or it is under way.
                if taken_back {
                    Err("the drive waits for the host".to_owned())
                } else {
                    changed.recv().map_err(|_| gone())
                }
            }
        }
    }

    /// Whether the guest keeps the medium from being taken out.
    pub fn locked(&self) -> bool {
        self.0.upgrade().is_some_and(|shared| shared.locked.load(Ordering::Acquire))
    }

    /// Whom to tell when a request waits; see [`OnError::Pause`]. It must not wait for the disk.
    pub fn on_stall(&self, tell: impl Fn() + Send + 'static) {
        if let Some(shared) = self.0.upgrade() {
            *shared.on_stall.lock().unwrap() = Some(Box::new(tell));
        }
    }

    /// Tries again what waits.
    pub fn retry(&self) {
        if let Some(shared) = self.0.upgrade() {
            shared.queue.lock().unwrap().stalled = false;
            shared.filled.notify_all();
        }
    }
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
        self.shared.filled.notify_all();
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
            size: AtomicU64::new(image.store.size()),
            read_only: AtomicBool::new(image.store.read_only()),
            locked: AtomicBool::new(false),
            on_stall: Mutex::default(),
            queue: Mutex::default(),
            filled: Condvar::new(),
            done: Condvar::new(),
        });
        let mut work = Work { image, ram, said: HashMap::new(), written: false };
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

    pub fn control(&self) -> DiskControl {
        DiskControl(Arc::downgrade(&self.thread.shared))
    }
}

impl Disk for Worker {
    fn size(&self) -> u64 {
        self.shared().size.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.shared().read_only.load(Ordering::Acquire)
    }

    fn submit(&mut self, request: DiskRequest, ticket: Ticket) {
        let mut queue = self.shared().queue.lock().unwrap();
        queue.jobs.push_back((self.handle, Job::Request(request, ticket)));
        let idle = std::mem::take(&mut queue.idle);
        drop(queue);
        // A thread that has work finds this behind it, and costs no system call.
        if idle {
            let shared = self.thread.shared.clone();
            emu::when_unlocked(move || shared.filled.notify_one());
        }
    }

    fn cancel(&mut self) {
        let mut queue = self.shared().queue.lock().unwrap();
        let (dropped, kept) = std::mem::take(&mut queue.jobs).into_iter().partition(|(h, ..)| *h == self.handle);
        queue.jobs = kept;
        if queue.working == Some(self.handle) {
            queue.abandon = true;
            self.shared().filled.notify_all();
        }
        queue.cancelling += 1;
        let mut queue = self.shared().done.wait_while(queue, |q| q.working == Some(self.handle)).unwrap();
        queue.cancelling -= 1;
        drop(queue);
        // Tickets tell that they go, which takes locks of others.
        drop::<VecDeque<_>>(dropped);
    }

    fn lock(&mut self, locked: bool) {
        self.shared().locked.store(locked, Ordering::Release);
    }

    fn share(&self) -> Box<dyn Disk> {
        Box::new(Worker::handle(&self.thread))
    }
}

/// What was last said of a kind of request, and how often that happened since.
struct Said {
    at: Instant,
    kind: io::ErrorKind,
    more: u64,
}

struct Work {
    image: Image,
    ram: Arc<Ram>,
    said: HashMap<&'static str, Said>,
    /// Since the tables were put on disk.
    written: bool,
}

impl Work {
    fn run(&mut self, shared: &Shared) {
        let idle = |q: &mut Queue| {
            q.idle = q.jobs.is_empty() && !q.stop;
            q.idle
        };
        loop {
            let queue = shared.queue.lock().unwrap();
            let mut queue = if self.written {
                let (queue, wait) = shared.filled.wait_timeout_while(queue, LULL, idle).unwrap();
                if wait.timed_out() {
                    drop(queue);
                    self.settle("waits in memory");
                    continue;
                }
                queue
            } else {
                shared.filled.wait_while(queue, idle).unwrap()
            };
            let Some((handle, job)) = queue.jobs.pop_front() else {
                drop(queue);
                return self.settle("is lost");
            };
            queue.working = Some(handle);
            drop(queue);
            let answer = match job {
                Job::Request(request, ticket) => Some((ticket, self.serve(request, shared))),
                Job::Change(image, done) => {
                    self.settle("is lost");
                    self.image = image;
                    shared.describe(&*self.image.store);
                    let _ = done.send(());
                    None
                }
            };
            let mut queue = shared.queue.lock().unwrap();
            (queue.working, queue.abandon) = (None, false);
            let cancelling = queue.cancelling > 0;
            drop(queue);
            if cancelling {
                shared.done.notify_all();
            }
            // The device may hear it here and now, and cancel what is left.
            if let Some((ticket, (ok, data))) = answer {
                ticket.finish(ok, data);
            }
        }
    }

    /// Puts on disk what the store keeps in memory; `or` is what becomes of it when that fails.
    fn settle(&mut self, or: &str) {
        self.written = false;
        if self.image.store.unsettled()
            && let Err(error) = self.image.store.flush()
        {
            self.complain("flush", &error, &format!("what the guest has not flushed {or}"));
        }
    }

    /// `so`: what that means.
    fn complain(&mut self, what: &'static str, error: &io::Error, so: &str) {
        let mut before = String::new();
        if let Some(said) = self.said.get_mut(what) {
            let quiet = if said.kind == error.kind() { BETWEEN_THE_SAME } else { BETWEEN_ERRORS };
            if said.at.elapsed() < quiet {
                said.more += 1;
                return;
            }
            if said.more > 0 {
                before = format!(" (after {} more that were not told)", said.more);
            }
        }
        self.said.insert(what, Said { at: Instant::now(), kind: error.kind(), more: 0 });
        tracing::error!("{}: {what}: {error}; {so}{before}", self.image.name);
    }

    fn serve(&mut self, request: DiskRequest, shared: &Shared) -> (bool, Vec<u8>) {
        let DiskRequest { offset, op, .. } = request;
        let what = match &op {
            DiskOp::Read(_) | DiskOp::ReadBytes(_) => "read",
            DiskOp::Write(_) | DiskOp::WriteBytes(_) => "write",
            DiskOp::Flush => "flush",
            DiskOp::Discard(_) => "discard",
        };
        loop {
            match self.attempt(offset, &op) {
                Ok(data) => return (true, data),
                Err(error) if self.image.on_error == OnError::Pause && host_failed(&error) => {
                    tracing::error!(
                        "{}: {what} at byte {offset}: {error}; the machine is paused, and tries again when it is resumed",
                        self.image.name
                    );
                    if !stall(shared) {
                        return (false, Vec::new());
                    }
                }
                Err(error) => {
                    self.complain(what, &error, &format!("the guest sees an error at byte {offset}"));
                    return (false, Vec::new());
                }
            }
        }
    }

    fn attempt(&mut self, offset: u64, op: &DiskOp) -> io::Result<Vec<u8>> {
        let store: &mut dyn Store = &mut *self.image.store;
        let within = |len: u64| match offset.checked_add(len) {
            Some(end) if end <= store.size() => Ok(()),
            _ => Err(io::Error::other("past the end of the disk")),
        };
        let writes = matches!(op, DiskOp::Write(_) | DiskOp::WriteBytes(_) | DiskOp::Discard(_));
        if writes && store.read_only() {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        match op {
            DiskOp::Read(iov) => {
                within(iov.len())?;
                store.read_guest(offset, &self.ram, iov)?;
            }
            DiskOp::ReadBytes(len) => {
                within(*len)?;
                let mut data = vec![0; *len as usize];
                store.read(offset, &mut data)?;
                return Ok(data);
            }
            DiskOp::Write(iov) => {
                within(iov.len())?;
                store.write_guest(offset, &self.ram, iov)?;
            }
            DiskOp::WriteBytes(data) => {
                within(data.len() as u64)?;
                store.write(offset, data)?;
            }
            DiskOp::Flush => store.flush()?,
            DiskOp::Discard(len) => {
                within(*len)?;
                store.discard(offset, *len)?;
            }
        }
        self.written |= writes;
        if writes && self.image.write_through {
            store.flush()?;
        }
        Ok(Vec::new())
    }
}

/// Whether the host is the reason, which may be another one later, and not the request or the image.
fn host_failed(error: &io::Error) -> bool {
    error.raw_os_error().is_some() || matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero)
}

/// Waits until the request in hand is to be tried again; `false` when it is given up.
fn stall(shared: &Shared) -> bool {
    shared.queue.lock().unwrap().stalled = true;
    if let Some(tell) = &*shared.on_stall.lock().unwrap() {
        tell();
    }
    let queue = shared.queue.lock().unwrap();
    let mut queue = shared.filled.wait_while(queue, |q| q.stalled && !q.abandon && !q.stop).unwrap();
    queue.stalled = false;
    !(queue.abandon || queue.stop)
}
