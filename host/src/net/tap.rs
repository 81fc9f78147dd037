//! A cable to a tap interface of the host: tap(4) and vmnet(4) on FreeBSD, tun.c's on Linux.
//!
//! An interface that was there stays as it is: its addresses and its bridge are the administrator's. One that is made for
//! the machine goes with it: on Linux by itself when its descriptor is closed, elsewhere by the broker. Frames that the host
//! does not take at once are lost, as on a wire, and those for a card without room wait with the host.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use anyhow::{Context, Result, anyhow, bail};
use emu::Event;
use emu::backend::{Listener, Net, Offload};
use mio::Interest;
use mio::unix::SourceFd;

use super::{interface, vnet};
use crate::broker;
use crate::io::{Gate, Io, Key, Source};

/// Longest frame that is read, with what is before it: more than any interface hands over.
const LONGEST: usize = 68 << 10;
/// Frames that one turn may take, so that other sources get theirs.
const BURST: usize = 64;

/// An interface that is open.
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Opens the interface `name`. No other program can have it open. With `create` it is made if it is not there, and
    /// goes with this process, however that ends.
    ///
    /// # Errors
    /// The interface is missing or somebody else's, or the rights are.
    pub fn open(name: &str, create: bool) -> Result<Tap> {
        let open = || -> Result<Tap> {
            let there = interface::exists(name);
            if !there && !create {
                bail!("there is no such interface; create = true makes it");
            }
            let (file, name) = attach(name, !there).map_err(|e| explain(e, name))?;
            if !there {
                interface::up(&name)?;
            }
            Ok(Tap { file, name })
        };
        open().with_context(|| format!("network interface {name}"))
    }

    /// Makes an interface that goes with this process, and a member of a bridge of it. With `create` the bridge is made if it
    /// is not there, and goes when it is empty again.
    ///
    /// # Errors
    /// There is no such bridge, or the rights for it.
    pub fn bridged(bridge: &str, create: bool) -> Result<Tap> {
        let open = || -> Result<Tap> {
            if !interface::exists(bridge) {
                if !create {
                    bail!("there is no such bridge; create = true makes it");
                }
                interface::create_bridge(bridge).context("it cannot be made")?;
                broker::own_bridge(bridge)?;
            }
            let (file, name) = attach("", true).map_err(|e| explain(e, "tap"))?;
            interface::join(bridge, &name).map_err(|e| match e.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL) => anyhow!("it is no bridge ({e})"),
                _ => anyhow!(e).context(format!("{name} cannot join it")),
            })?;
            interface::up(&name)?;
            Ok(Tap { file, name })
        };
        open().with_context(|| format!("bridge {bridge}"))
    }

    /// The end that goes into the card.
    ///
    /// # Errors
    /// The host cannot wait for it.
    pub fn plug(self, io: &Arc<Io>) -> Result<Box<dyn Net>> {
        let what = || format!("network interface {}", self.name);
        let key = io.key();
        let send = self.file.try_clone().with_context(what)?;
        let fd = self.file.as_raw_fd();
        io.registry().register(&mut SourceFd(&fd), key.token(), Interest::READABLE).with_context(what)?;
        let card = Arc::new(Card { cell: Mutex::default(), full: AtomicBool::new(true), gone: AtomicBool::new(false) });
        let reader =
            Reader { file: self.file, io: io.clone(), key, card: card.clone(), next: None, buffer: vec![0; LONGEST] };
        io.add(key, Box::new(reader));
        Ok(Box::new(Plug { file: send, io: io.clone(), key, card }))
    }
}

/// Opens the interface of this name, or any that is new, and returns its name.
#[cfg(target_os = "linux")]
fn attach(name: &str, _: bool) -> io::Result<(File, String)> {
    /// struct ifreq: a name, and here flags.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    nix::ioctl_readwrite_bad!(
        /// TUNSETIFF: makes the descriptor that of an interface, and returns its name.
        tunsetiff,
        0x4004_54ca,
        Request
    );
    let mut request = Request {
        name: [0; 16],
        flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        rest: [0; 22],
    };
    if name.len() >= request.name.len() {
        return Err(ErrorKind::InvalidInput.into());
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: the descriptor is open, and the request a struct ifreq that outlives the call.
    #[expect(unsafe_code, reason = "ioctl(2)")]
    unsafe {
        tunsetiff(file.as_raw_fd(), &raw mut request)?;
    }
    let name = request.name.split(|b| *b == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    offload(&file, false)?;
    Ok((file, name))
}

/// Says whether frames for the card may have work left over.
#[cfg(target_os = "linux")]
fn offload(file: &File, on: bool) -> io::Result<()> {
    nix::ioctl_write_int_bad!(
        /// TUNSETOFFLOAD: what the kernel may leave to whoever reads.
        tunsetoffload,
        0x4004_54d0
    );
    // Checksums, TCP segmentation with IPv4, with IPv6, and with ECN.
    const ALL: libc::c_int = 0x0f;
    // SAFETY: the descriptor is open, and the request has no memory.
    #[expect(unsafe_code, reason = "ioctl(2)")]
    unsafe {
        tunsetoffload(file.as_raw_fd(), if on { ALL } else { 0 })?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn offload(_: &File, _: bool) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Opens the interface of this name, or any that is new, and returns its name.
#[cfg(not(target_os = "linux"))]
fn attach(name: &str, create: bool) -> io::Result<(File, String)> {
    let mut name = name.to_owned();
    if create {
        name = interface::create(if name.is_empty() { "tap" } else { &name })?;
        broker::own_interface(&name).map_err(io::Error::other)?;
    }
    let path = format!("/dev/{name}");
    Ok((OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?, name))
}

/// What the system says, and what helps.
fn explain(error: io::Error, name: &str) -> anyhow::Error {
    let cure = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if cfg!(target_os = "linux") => {
            format!("it takes CAP_NET_ADMIN, or an interface of this user's: ip tuntap add {name} mode tap user USER")
        }
        Some(libc::EPERM | libc::EACCES) => format!("it takes root, or chown USER /dev/{name}"),
        Some(libc::EBUSY) => "another program has it".to_owned(),
        Some(libc::EINVAL) if cfg!(target_os = "linux") => "it is no tap interface".to_owned(),
        Some(libc::ENOENT | libc::ENODEV) if cfg!(target_os = "linux") => {
            "the kernel lacks tun: modprobe tun".to_owned()
        }
        Some(libc::ENOENT) => "the kernel lacks if_tuntap: kldload if_tuntap".to_owned(),
        _ => return error.into(),
    };
    anyhow!("{error}; {cure}")
}

/// What both ends know of the card.
struct Card {
    cell: Mutex<Option<Weak<dyn Listener>>>,
    full: AtomicBool,
    gone: AtomicBool,
}

/// What comes from the host.
struct Reader {
    file: File,
    io: Arc<Io>,
    key: Key,
    card: Arc<Card>,
    /// A frame that was read while the machine was paused.
    next: Option<Event>,
    buffer: Vec<u8>,
}

impl Source for Reader {
    fn turn(&mut self, gate: &Gate) -> bool {
        for _ in 0..BURST {
            if self.card.gone.load(Ordering::Acquire) {
                return false;
            }
            if self.card.full.load(Ordering::Acquire) {
                return true;
            }
            if self.next.is_none() {
                match self.file.read(&mut self.buffer) {
                    Ok(0) => return true,
                    Ok(n) => self.next = vnet::received(&self.buffer[..n]),
                    Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                    // Also an interface that is down; it becomes readable when it is up again.
                    Err(_) => return true,
                }
            }
            let next = &mut self.next;
            let cell = self.card.cell.lock().unwrap().as_ref().and_then(Weak::upgrade);
            let passed = gate.try_pass(|| {
                if let Some((event, cell)) = next.take().zip(cell) {
                    cell.event(event);
                }
            });
            if passed.is_none() {
                return true;
            }
        }
        // There may be more, and nothing tells of what was there already.
        self.io.ring(self.key);
        true
    }
}

/// The cable as the card knows it.
struct Plug {
    file: File,
    io: Arc<Io>,
    key: Key,
    card: Arc<Card>,
}

impl Net for Plug {
    fn send(&mut self, frame: &[u8]) {
        vnet::send(&mut self.file, frame, Offload::default());
    }

    fn partial(&mut self) -> bool {
        offload(&self.file, true).is_ok()
    }

    fn send_partial(&mut self, frame: &[u8], rest: Offload) {
        vnet::send(&mut self.file, frame, rest);
    }

    fn attach(&mut self, to: Weak<dyn Listener>) {
        *self.card.cell.lock().unwrap() = Some(to);
    }

    fn want(&mut self, ready: bool) {
        if self.card.full.swap(!ready, Ordering::AcqRel) && ready {
            self.io.ring(self.key);
        }
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.card.gone.store(true, Ordering::Release);
        self.io.ring(self.key);
    }
}
