//! A directory of the host that a guest mounts: what is behind `virtio-9p`.
//!
//! The directory is opened before the process is confined, and everything in it is reached from that descriptor
//! (`tree`). A share has a thread, which speaks the protocol (`server`) and waits for the host's disks, so that no
//! processor of the guest and no other device does. Its requests are served in order; the device bounds how many there
//! are. docs/SHARES.md says what it means for who shares something.

mod entries;
mod server;
#[cfg(test)]
mod tests;
mod tree;
mod wire;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use emu::Ticket;
use emu::backend;
use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::stat::Mode;
use serde_json::Value;

use crate::{sandbox, sys};
use server::Server;
use tree::Tree;

/// Files that a guest can have open in a share: as many as the host lets this process have more than it has
/// without it, within these bounds.
const MOST_OPEN: rlim_t = 1024;
const LEAST_OPEN: rlim_t = 64;

/// A directory that is open, and that nobody serves yet.
pub struct Share {
    name: String,
    tree: Tree,
    read_only: bool,
}

impl Share {
    /// Opens a directory. `name` is for the log.
    ///
    /// # Errors
    /// When it cannot be opened, or is no directory.
    pub fn open(name: &str, path: &Path, read_only: bool) -> Result<Share> {
        #[cfg(target_os = "linux")]
        let how = OFlag::O_PATH;
        #[cfg(not(target_os = "linux"))]
        let how = OFlag::O_RDONLY;
        let at = || path.display().to_string();
        let root: OwnedFd = open(path, how | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).with_context(at)?;
        sys::limit_directory(&root, !read_only).with_context(at)?;
        Ok(Share { name: name.to_owned(), tree: Tree::new(root).with_context(at)?, read_only })
    }

    /// Starts its thread.
    ///
    /// # Errors
    /// The host has no more threads.
    pub fn serve(self) -> Result<Box<dyn backend::Share>> {
        let (jobs, todo) = channel();
        let current = Arc::new(AtomicU64::new(0));
        let server = Server::new(self.tree, self.read_only, more_files());
        let worker = Worker { name: self.name, read_only: self.read_only, server, current: current.clone() };
        let thread = std::thread::Builder::new().name("share".to_owned()).spawn(move || worker.run(&todo))?;
        Ok(Box::new(Handle { jobs: Some(jobs), session: current, thread: Some(thread) }))
    }
}

/// Raises the limit of open files for one more share; how many files it can have open.
fn more_files() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return LEAST_OPEN as usize };
    let wanted = soft.saturating_add(MOST_OPEN).min(hard);
    let raised = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).map_or(0, |()| wanted - soft);
    raised.clamp(LEAST_OPEN, MOST_OPEN) as usize
}

enum Job {
    /// A message, the room for its reply, and the session that it belongs to.
    Message(Vec<u8>, usize, Ticket, u64),
    Reset,
    Save(SyncSender<Value>),
    Load(Value, SyncSender<Result<(), String>>),
}

struct Worker {
    name: String,
    read_only: bool,
    server: Server,
    /// The number of the session that the device is in.
    current: Arc<AtomicU64>,
}

impl Worker {
    fn run(mut self, todo: &Receiver<Job>) {
        // Beside what the process as a whole is confined to, and whether it is or not.
        if let Err(e) = sandbox::keep_to(self.server.tree().root(), self.read_only) {
            tracing::debug!("share {}: its thread is not confined to its directory: {e:#}", self.name);
        }
        for job in todo {
            match job {
                Job::Message(message, room, ticket, session) => {
                    // Nobody waits for what was asked before a reset.
                    if session == self.current.load(Ordering::Acquire) {
                        match self.server.serve(&message, room) {
                            Some(reply) => ticket.finish(true, reply),
                            None => ticket.finish(false, Vec::new()),
                        }
                    }
                }
                Job::Reset => self.server.reset(),
                Job::Save(to) => {
                    let (session, lost) = self.server.save();
                    if lost > 0 {
                        let name = &self.name;
                        tracing::warn!("share {name}: {lost} open files are removed, and end with this machine");
                    }
                    let _ = to.send(session);
                }
                Job::Load(session, to) => {
                    let lost = self.server.load(session);
                    if let Ok(lost @ 1..) = lost {
                        tracing::warn!("share {}: {lost} files that the guest has open are gone", self.name);
                    }
                    let _ = to.send(lost.map(drop));
                }
            }
        }
    }
}

/// The device's end. The thread ends with it.
struct Handle {
    jobs: Option<Sender<Job>>,
    /// The number of the session.
    session: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    fn send(&self, job: Job) {
        // The thread is there as long as this.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
    }
}

impl backend::Share for Handle {
    fn submit(&mut self, message: Vec<u8>, room: usize, ticket: Ticket) {
        self.send(Job::Message(message, room, ticket, self.session.load(Ordering::Relaxed)));
    }

    fn reset(&mut self) {
        self.session.fetch_add(1, Ordering::Release);
        self.send(Job::Reset);
    }

    fn save(&self) -> Value {
        let (to, session) = sync_channel(1);
        self.send(Job::Save(to));
        session.recv().unwrap_or_default()
    }

    fn load(&mut self, saved: Value) -> Result<(), String> {
        let (to, done) = sync_channel(1);
        self.session.fetch_add(1, Ordering::Release);
        self.send(Job::Load(saved, to));
        done.recv().unwrap_or_else(|_| Err("its thread has ended".to_owned()))
    }
}

impl Drop for Handle {
    /// What was asked for is done first.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
