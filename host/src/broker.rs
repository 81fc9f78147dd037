//! A process that stays outside the sandbox, and opens for the confined one what its configuration allows.
//!
//! The confined process runs the guest's devices; whoever takes it over from inside the guest gets its descriptors and
//! no more. What it needs by name after the guest has begun, it asks of the broker, which answers with descriptors
//! (SCM_RIGHTS): images to put into drives, out of the directories that the configuration names; room for what is
//! written over them; the files that the command line names; the sockets of a NAT; connections to the sockets that cables lead
//! to. And the broker removes names in the file system and interfaces of the host that the process has made, also when it
//! dies of itself.
//!
//! One request is one packet, and so is its reply: JSON, of 64 KiB at most. What may be asked for is said before
//! [`Request::Seal`]; nothing can be added to it later.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::disk::{Access, Opened, temporary};
use crate::net::socket::connect;
use crate::net::{interface, nat};

/// The command by which the program is the broker.
pub const COMMAND: &str = "broker";

/// Bytes of a request or a reply.
const MOST: usize = 64 << 10;
/// How long a bridge in which others are stays before it is looked at again.
const BRIDGE_PAUSE: Duration = Duration::from_millis(500);
/// Descriptors in a reply.
const FDS: usize = 3;

/// Device and inode of a file.
pub(crate) type Id = (u64, u64);

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Images in this directory may be opened.
    Media(PathBuf),
    /// This file may be written, and take another's name that may be.
    Output(PathBuf),
    /// This name is ours: it goes when we ask for it, or are gone.
    Name(PathBuf, Id),
    /// The kernel's machine of this name is ours, and goes with us.
    Machine(String),
    /// These files, and the kernel's machine of this name, may go.
    Leave(Vec<PathBuf>, String),
    /// Sockets for a NAT, by the socket that comes along.
    Network(nat::Rules),
    /// This interface of the host is ours, and goes with us.
    Interface(String),
    /// This bridge was made for us, and goes when it has no members any more.
    Bridge(String),
    /// Connections to this socket may be asked for.
    Peer(PathBuf),
    /// All has been said.
    Seal,
    /// Open, lock and claim an image's file that is none of these.
    Open(PathBuf, Access, Vec<Id>),
    /// A file without a name.
    Temporary,
    /// Connect to a socket that is one of these.
    Connect(PathBuf),
    /// Make an output.
    Create(PathBuf),
    /// Give an output another one's name.
    Rename(PathBuf, PathBuf),
    /// Remove one of our names.
    Remove(PathBuf, Id),
    /// Remove what may go; the machine, when we are gone.
    LetGo,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Reply {
    /// Why it was refused.
    error: Option<String>,
    /// Which of file, direct file and claim come along.
    fds: [bool; FDS],
}

/// The broker's socket, and whether it is the only way already.
static BROKER: Mutex<(Option<OwnedFd>, bool)> = Mutex::new((None, false));

fn broker() -> MutexGuard<'static, (Option<OwnedFd>, bool)> {
    BROKER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the broker: this program, by another command.
///
/// # Errors
/// When it cannot be started.
pub fn start() -> io::Result<()> {
    let (ours, its) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let mut command = Command::new(std::env::current_exe()?);
    // Nobody waits for it: it ends with us, and is then no child any more.
    command.arg(COMMAND).stdin(Stdio::from(its)).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    broker().0 = Some(ours);
    Ok(())
}

/// Allows images of this directory to be opened later.
///
/// # Errors
/// When there is no such directory.
pub fn allow_media(dir: &Path) -> io::Result<()> {
    tell(&Request::Media(dir.canonicalize()?))
}

/// Allows a file to be written later, and to be given the name of another such file. Its path is absolute.
///
/// # Errors
/// When the broker is gone.
pub fn allow_output(path: &Path) -> io::Result<()> {
    tell(&Request::Output(path.to_owned()))
}

/// Has the machine of this name, which a kernel keeps, destroyed when we are gone.
///
/// # Errors
/// When the broker is gone.
pub fn own_machine(name: &str) -> io::Result<()> {
    tell(&Request::Machine(name.to_owned()))
}

/// Has an interface of the host removed when we are gone.
#[cfg(not(target_os = "linux"))]
pub(crate) fn own_interface(name: &str) -> io::Result<()> {
    tell(&Request::Interface(name.to_owned()))
}

/// Has a bridge of the host removed when we are gone and nobody else is in it.
pub(crate) fn own_bridge(name: &str) -> io::Result<()> {
    tell(&Request::Bridge(name.to_owned()))
}

/// Allows connections to this socket to be made later. Its path is absolute.
pub(crate) fn allow_connection(path: &Path) -> io::Result<()> {
    tell(&Request::Peer(path.to_owned()))
}

/// Connects to a socket, without waiting for anybody.
pub(crate) fn connection(path: &Path) -> Result<UnixStream> {
    match asked(|| Request::Connect(path.to_owned())) {
        Some(answer) => {
            let file = answer?.into_iter().flatten().next().context("the broker sent no descriptor")?;
            Ok(UnixStream::from(OwnedFd::from(file)))
        }
        None => Ok(connect(path)?),
    }
}

/// Allows files, and the machine of this name that a kernel keeps, to be removed by [`let_go`] later.
///
/// # Errors
/// When the broker is gone.
pub fn leave(files: &[PathBuf], machine: &str) -> io::Result<()> {
    tell(&Request::Leave(files.to_vec(), machine.to_owned()))
}

/// Has removed what [`leave`] named. False if there is no broker, and who asks may do so.
///
/// # Errors
/// When the broker is gone.
pub fn let_go() -> Result<bool> {
    asked(|| Request::LetGo).map_or(Ok(false), |answer| answer.map(|_| true))
}

/// A channel by which the broker gives a NAT its sockets, if there is a broker.
pub(crate) fn network(rules: &nat::Rules) -> io::Result<Option<OwnedFd>> {
    let broker = broker();
    let Some(socket) = broker.0.as_ref() else { return Ok(None) };
    let (ours, its) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    ask_with(socket, &Request::Network(rules.clone()), &[its.as_fd()]).map_err(io::Error::other)?;
    // The end of the broker waits for us, ours for nobody.
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(Some(ours))
}

/// From now on the broker is asked for what has a name.
///
/// # Errors
/// When it is gone.
pub(crate) fn seal() -> io::Result<()> {
    tell(&Request::Seal)?;
    let mut broker = broker();
    broker.1 = broker.0.is_some();
    Ok(())
}

/// Has the broker know something before the seal, if there is one.
fn tell(request: &Request) -> io::Result<()> {
    match broker().0.as_ref() {
        Some(socket) => ask(socket, request).map(|_| ()).map_err(io::Error::other),
        None => Ok(()),
    }
}

/// What the broker answers; nothing if we may ourselves.
fn asked(request: impl FnOnce() -> Request) -> Option<Result<[Option<File>; FDS]>> {
    match &*broker() {
        (Some(socket), true) => Some(ask(socket, &request())),
        _ => None,
    }
}

/// Opens an image's file, locks and claims it.
pub(crate) fn open(path: &Path, access: Access, chain: &[Id]) -> Result<Opened> {
    match asked(|| Request::Open(path.to_owned(), access, chain.to_vec())) {
        Some(answer) => {
            let [file, direct, claim] = answer?;
            Ok(Opened { file: file.context("the broker sent no file")?, direct, claim })
        }
        None => Opened::at(path, access, chain),
    }
}

/// A file that has no name, with room for what is written over an image.
pub(crate) fn nameless() -> Result<File> {
    match asked(|| Request::Temporary) {
        Some(answer) => answer?.into_iter().flatten().next().context("the broker sent no file"),
        None => temporary(),
    }
}

/// Makes a file, or empties it.
///
/// # Errors
/// What the host says.
pub fn create(path: &Path) -> Result<File> {
    match asked(|| Request::Create(path.to_owned())) {
        Some(answer) => answer?.into_iter().flatten().next().context("the broker sent no file"),
        None => made(path),
    }
}

/// An output: what comes out of a guest is not for everybody.
fn made(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?)
}

/// Gives a file another name.
///
/// # Errors
/// What the host says.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    match asked(|| Request::Rename(from.to_owned(), to.to_owned())) {
        Some(answer) => answer.map(|_| ()),
        None => Ok(std::fs::rename(from, to)?),
    }
}

/// A name in the file system that we have made. It is removed when this is dropped, if it is still ours.
pub(crate) struct Name {
    path: PathBuf,
    id: Id,
}

impl Name {
    /// Takes charge of what is at `path`.
    pub fn of(path: &Path) -> io::Result<Name> {
        let path = std::path::absolute(path)?;
        let there = std::fs::symlink_metadata(&path)?;
        let id = (there.dev(), there.ino());
        tell(&Request::Name(path.clone(), id))?;
        Ok(Name { path, id })
    }

    /// The absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if asked(|| Request::Remove(self.path.clone(), self.id)).is_none() {
            remove(&self.path, self.id);
        }
    }
}

/// Removes a name, unless it is somebody else's by now.
fn remove(path: &Path, id: Id) {
    if std::fs::symlink_metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == id) {
        let _ = std::fs::remove_file(path);
    }
}

/// Sends a request and waits for the answer.
fn ask(socket: &OwnedFd, request: &Request) -> Result<[Option<File>; FDS]> {
    ask_with(socket, request, &[])
}

/// The same, with descriptors.
fn ask_with(socket: &OwnedFd, request: &Request, fds: &[BorrowedFd]) -> Result<[Option<File>; FDS]> {
    send(socket.as_fd(), &serde_json::to_vec(request)?, fds).context("the broker is gone")?;
    let (packet, mut fds) = packet(socket.as_fd()).context("the broker is gone")?;
    let reply: Reply = serde_json::from_slice(&packet).context("the broker is gone")?;
    if let Some(error) = reply.error {
        bail!(error);
    }
    // They come in order, those that come.
    fds.reverse();
    Ok(reply.fds.map(|comes| if comes { fds.pop().map(File::from) } else { None }))
}

/// Sends bytes, and descriptors with the first of them. Returns how many bytes went.
pub(crate) fn send(socket: BorrowedFd, packet: &[u8], fds: &[BorrowedFd]) -> io::Result<usize> {
    let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights: &[_] = if fds.is_empty() { &[] } else { &rights };
    Ok(sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(packet)], rights, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Receives bytes, and descriptors if some came with them: of more than [`FDS`] the rest is closed. No bytes are the
/// end.
pub(crate) fn receive(socket: BorrowedFd, buf: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut room = nix::cmsg_space!([std::os::fd::RawFd; FDS]);
    let mut parts = [IoSliceMut::new(buf)];
    let got = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in got.cmsgs()? {
        if let ControlMessageOwned::ScmRights(sent) = message {
            // SAFETY: the kernel has just made these descriptors for us; nobody else knows them.
            #[expect(unsafe_code, reason = "descriptors come as numbers")]
            fds.extend(sent.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((got.bytes, fds))
}

/// A request or a reply, with what came along.
fn packet(socket: BorrowedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut packet = vec![0; MOST];
    let (len, fds) = loop {
        match receive(socket, &mut packet) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            got => break got?,
        }
    };
    if len == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    packet.truncate(len);
    Ok((packet, fds))
}

/// The broker's side: what the confined process may ask for.
#[derive(Default)]
struct Rules {
    media: Vec<PathBuf>,
    outputs: Vec<PathBuf>,
    names: Vec<(PathBuf, Id)>,
    machines: Vec<String>,
    leave: (Vec<PathBuf>, Vec<String>),
    interfaces: Vec<String>,
    bridges: Vec<String>,
    peers: Vec<PathBuf>,
    sealed: bool,
}

/// Is the broker, at standard input, until the other end is gone. `destroy` is called for each of its machines then.
///
/// # Errors
/// When standard input is not its socket.
pub fn serve(destroy: impl Fn(&str)) -> Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    if !matches!(nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::SockType), Ok(SockType::SeqPacket)) {
        bail!("this command is the program's own, for the process that opens files for a confined one");
    }
    for ours in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        // SAFETY: no handler is set.
        #[expect(unsafe_code, reason = "signal(3)")]
        unsafe {
            // They are the terminal's for the process that runs the machine.
            signal(ours, SigHandler::SigIgn)?;
        }
    }
    let mut rules = Rules::default();
    while let Ok((packet, fds)) = packet(socket.as_fd()) {
        let answer = serde_json::from_slice(&packet).map_err(Into::into).and_then(|request| rules.answer(request, fds));
        let (reply, files) = match answer {
            Ok(files) => (Reply { error: None, fds: files.each_ref().map(Option::is_some) }, files),
            Err(e) => (Reply { error: Some(format!("{e:#}")), ..Reply::default() }, [None, None, None]),
        };
        let fds: Vec<_> = files.iter().flatten().map(AsFd::as_fd).collect();
        if send(socket.as_fd(), &serde_json::to_vec(&reply)?, &fds).is_err() {
            break;
        }
    }
    rules.names.iter().for_each(|(path, id)| remove(path, *id));
    rules.machines.iter().for_each(|name| destroy(name));
    #[cfg(not(target_os = "linux"))]
    for name in &rules.interfaces {
        let _ = interface::destroy(name);
    }
    // Other machines may have joined what was made for this one.
    while !rules.bridges.is_empty() {
        rules.bridges.retain(|name| !interface::remove_empty_bridge(name));
        if !rules.bridges.is_empty() {
            std::thread::sleep(BRIDGE_PAUSE);
        }
    }
    Ok(())
}

impl Rules {
    fn answer(&mut self, request: Request, mut fds: Vec<OwnedFd>) -> Result<[Option<File>; FDS]> {
        let output = |path: &PathBuf| match self.outputs.contains(path) {
            true => Ok(()),
            false => bail!("{} is no output of this machine", path.display()),
        };
        match request {
            Request::Media(_)
            | Request::Output(_)
            | Request::Name(..)
            | Request::Machine(_)
            | Request::Leave(..)
            | Request::Network(_)
            | Request::Interface(_)
            | Request::Bridge(_)
            | Request::Peer(_)
            | Request::Seal
                if self.sealed =>
            {
                bail!("it is too late for that");
            }
            Request::Media(dir) => self.media.push(dir),
            Request::Output(path) => self.outputs.push(path),
            Request::Name(path, id) => self.names.push((path, id)),
            Request::Machine(name) => self.machines.push(name),
            Request::Leave(files, machine) => self.leave = (files, vec![machine]),
            Request::Interface(name) => self.interfaces.push(name),
            Request::Bridge(name) => self.bridges.push(name),
            Request::Peer(path) => self.peers.push(path),
            Request::Connect(path) => {
                if !self.peers.contains(&path) {
                    bail!("{} is no socket of this machine's cables", path.display());
                }
                return Ok([Some(File::from(OwnedFd::from(connect(&path)?))), None, None]);
            }
            Request::LetGo => {
                for file in &self.leave.0 {
                    match std::fs::remove_file(file) {
                        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
                        _ => {}
                    }
                }
                self.machines.append(&mut self.leave.1);
            }
            Request::Network(rules) => {
                let channel = fds.pop().context("no channel came along")?;
                // It ends with the channel, or with us.
                std::thread::Builder::new().name("nat".to_owned()).spawn(move || nat::serve(&channel, &rules))?;
            }
            Request::Seal => self.sealed = true,
            Request::Open(path, access, chain) => {
                let path = path.canonicalize()?;
                if !self.media.iter().any(|dir| path.starts_with(dir)) {
                    bail!(
                        "it is in no directory that the machine may open images from: the sandbox allows those of the \
                         configured images and of the key sandbox.media"
                    );
                }
                let Opened { file, direct, claim } = Opened::at(&path, access, &chain)?;
                return Ok([Some(file), direct, claim]);
            }
            Request::Temporary => return Ok([Some(temporary()?), None, None]),
            Request::Create(path) => {
                output(&path)?;
                return Ok([Some(made(&path)?), None, None]);
            }
            Request::Rename(from, to) => {
                output(&from)?;
                output(&to)?;
                std::fs::rename(from, to)?;
            }
            Request::Remove(path, id) => {
                let ours = self.names.iter().position(|name| *name == (path.clone(), id));
                let ours = ours.with_context(|| format!("{} is no name of this machine", path.display()))?;
                self.names.swap_remove(ours);
                remove(&path, id);
            }
        }
        Ok([None, None, None])
    }
}
