//! 9P2000.L: what a guest asks of a share, one message after the other.
//!
//! The protocol is that of Linux's 9p(5), as its client and the public descriptions of diod's server have it; FreeBSD's
//! p9fs(4) says in it what it says in 9P2000.u where files are made (Tcreate). A fid is a path and, once it is opened,
//! a file or directory. Paths are kept up to date with what this guest renames and removes; what others on the host
//! rename is gone for it, as with any server that goes by names.
//!
//! * Who the guest's users are is the guest's to know: this process's rights are what counts. New files belong to who
//!   attached, as far as this process may give them away.
//! * Locks are granted, as bhyve's server does: clients keep those of their own programs apart before they ask.
//! * Messages are served in order, so there is nothing to flush. There are no extended attributes.
//! * Everything that a client can make more of is capped: fids, the bytes of their paths, open files, the message.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use super::entries;
use super::tree::{self, Attr, Change, How, Name, Owner, Tree};
use super::wire::{Args, HEADER, NO_TAG, Qid, Reply, kind, linux};

/// Bytes of the longest message. Linux's client asks for 500 KiB at most.
pub const MAX_MESSAGE: u32 = 512 << 10;
/// And of the shortest that is agreed to: a path has room in it.
const MIN_MESSAGE: u32 = 4096 + 64;
/// Bytes of a message with data beside the data, as clients count them.
const DATA_HEADER: u32 = 24;

const MAX_FIDS: usize = 1 << 16;
/// Bytes of the paths of all fids.
const MAX_PATHS: usize = 32 << 20;
/// Names in one walk.
const MAX_WALK: u16 = 16;

/// The user of who attached without one, and a group that is not said.
const NOBODY: u32 = !0;

/// Flags of an open file, which are Linux's.
mod flag {
    pub const ACCESS: u32 = 3;
    pub const EXCL: u32 = 0o200;
    pub const TRUNC: u32 = 0o1000;
    pub const APPEND: u32 = 0o2000;
    pub const DIRECTORY: u32 = 0o200000;
}

/// Bits of Tcreate's permissions beside those of files, and its modes.
mod plain {
    pub const DIRECTORY: u32 = 1 << 31;
    pub const SYMLINK: u32 = 1 << 25;
    pub const LINK: u32 = 1 << 24;
    pub const DEVICE: u32 = 1 << 23;
    pub const FIFO: u32 = 1 << 21;
    pub const SOCKET: u32 = 1 << 20;
    pub const SETUID: u32 = 1 << 19;
    pub const SETGID: u32 = 1 << 18;
    pub const TRUNC: u8 = 0x10;
}

/// What Tsetattr changes.
mod set {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_SET: u32 = 1 << 7;
    pub const MTIME_SET: u32 = 1 << 8;
}

/// What Rgetattr says: all but birth, generation and version.
const ATTRIBUTES: u64 = 0x7ff;
/// The flag of Tunlinkat.
const REMOVE_DIRECTORY: u32 = 0x200;
/// The type of file system that Linux shows for it.
const MAGIC: u32 = 0x0102_1997;
/// Locks: granted, and the type of none.
const GRANTED: u8 = 0;
const UNLOCKED: u8 = 2;

/// Where a fid's file is.
#[derive(Clone)]
enum Place {
    Path(Vec<Name>),
    /// Without a name, and perhaps open by another fid.
    Gone(Option<Arc<File>>),
}

#[derive(Clone)]
struct Open {
    file: Arc<File>,
    flags: u32,
    directory: bool,
}

struct Fid {
    place: Place,
    uid: u32,
    open: Option<Open>,
}

impl Fid {
    fn path(&self) -> Result<&[Name], Errno> {
        match &self.place {
            Place::Path(path) => Ok(path),
            Place::Gone(_) => Err(Errno::ENOENT),
        }
    }

    /// The file, where it can be reached without its name.
    fn file(&self) -> Option<&File> {
        match (&self.open, &self.place) {
            (Some(open), _) => Some(&open.file),
            (None, Place::Gone(file)) => file.as_deref(),
            (None, Place::Path(_)) => None,
        }
    }

    fn opened(&self, directory: bool) -> Result<&Open, Errno> {
        match &self.open {
            Some(open) if open.directory == directory => Ok(open),
            Some(_) => Err(if directory { Errno::ENOTDIR } else { Errno::EISDIR }),
            // It was open when the machine was saved.
            None if matches!(self.place, Place::Gone(_)) => Err(Errno::ESTALE),
            None => Err(Errno::EBADF),
        }
    }

    fn weight(&self) -> usize {
        match &self.place {
            Place::Path(path) => weight_of(path),
            Place::Gone(_) => 0,
        }
    }
}

/// Bytes that a path takes.
fn weight_of(path: &[Name]) -> usize {
    path.iter().map(|name| name.len() + size_of::<Name>()).sum()
}

/// A fid as it is saved.
#[derive(Serialize, Deserialize)]
struct SavedFid {
    fid: u32,
    /// `None` if the file has no name any more.
    path: Option<Vec<Name>>,
    uid: u32,
    /// Of an open one its flags and the number of its file.
    open: Option<(u32, u64)>,
}

/// What a guest has of a share.
#[derive(Serialize, Deserialize)]
struct Session {
    message: u32,
    fids: Vec<SavedFid>,
}

/// The server of a share.
pub struct Server {
    tree: Tree,
    read_only: bool,
    /// Files that can be open at a time.
    max_open: usize,
    /// Bytes of the longest message that was agreed to; 0 before.
    message: u32,
    fids: BTreeMap<u32, Fid>,
    /// Bytes of their paths.
    weight: usize,
}

impl Server {
    pub fn new(tree: Tree, read_only: bool, max_open: usize) -> Server {
        Server { tree, read_only, max_open, message: 0, fids: BTreeMap::new(), weight: 0 }
    }

    /// Its directory.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Forgets everything that the guest has.
    pub fn reset(&mut self) {
        self.message = 0;
        self.fids.clear();
        self.weight = 0;
    }

    /// The reply to a message, of at most `room` bytes; `None` if there is none that fits.
    pub fn serve(&mut self, message: &[u8], room: usize) -> Option<Vec<u8>> {
        let mut args = Args(message);
        let (Ok(len), Ok(kind), Ok(tag)) = (args.u32(), args.u8(), args.u16()) else {
            return refusal(NO_TAG, room, Errno::EPROTO);
        };
        let body = (len as usize).checked_sub(HEADER).and_then(|len| args.0.get(..len));
        let agreed = if self.message == 0 { MAX_MESSAGE } else { self.message };
        let mut reply = Reply::new(room.min(agreed as usize));
        let done = match body {
            Some(_) if len > agreed => Err(Errno::EMSGSIZE),
            // Before anything else.
            Some(_) if self.message == 0 && kind != kind::VERSION => Err(Errno::EPROTO),
            Some(body) => self.answer(kind, &mut Args(body), &mut reply),
            None => Err(Errno::EPROTO),
        };
        match done.map(|()| reply.finish(kind + 1, tag)) {
            Ok(Some(reply)) => Some(reply),
            Ok(None) => refusal(tag, room, Errno::EMSGSIZE),
            Err(errno) => refusal(tag, room, errno),
        }
    }

    fn answer(&mut self, kind: u8, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        match kind {
            kind::VERSION => self.version(a, r),
            kind::ATTACH => self.attach(a, r),
            kind::FLUSH => Ok(()),
            kind::WALK => self.walk(a, r),
            kind::LOPEN => self.lopen(a, r),
            kind::LCREATE => self.lcreate(a, r),
            kind::CREATE => self.create(a, r),
            kind::READ => self.read(a, r),
            kind::WRITE => self.write(a, r),
            kind::READDIR => self.readdir(a, r),
            kind::CLUNK => self.remove(a.u32()?).map(drop),
            kind::REMOVE => self.unlink(a),
            kind::UNLINKAT => self.unlinkat(a),
            kind::GETATTR => self.getattr(a, r),
            kind::SETATTR => self.setattr(a),
            kind::STATFS => self.statfs(a, r),
            kind::FSYNC => self.fsync(a),
            kind::MKDIR => self.mkdir(a, r),
            kind::SYMLINK => self.symlink(a, r),
            kind::MKNOD => self.mknod(a, r),
            kind::LINK => self.link(a),
            kind::READLINK => self.readlink(a, r),
            kind::RENAME => self.rename(a),
            kind::RENAMEAT => self.renameat(a),
            kind::LOCK => {
                self.fid(a.u32()?)?;
                r.u8(GRANTED);
                Ok(())
            }
            kind::GETLOCK => self.getlock(a, r),
            kind::XATTRWALK | kind::XATTRCREATE => Err(Errno::EOPNOTSUPP),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn fid(&self, fid: u32) -> Result<&Fid, Errno> {
        self.fids.get(&fid).ok_or(Errno::EBADF)
    }

    fn path(&self, fid: u32) -> Result<&[Name], Errno> {
        self.fid(fid)?.path()
    }

    /// The path of a name in a fid's directory.
    fn below(&self, fid: u32, name: &[u8]) -> Result<Vec<Name>, Errno> {
        tree::join(self.path(fid)?, name)
    }

    fn insert(&mut self, number: u32, fid: Fid) -> Result<(), Errno> {
        let weight = self.weight + fid.weight();
        if self.fids.len() >= MAX_FIDS || weight > MAX_PATHS {
            return Err(Errno::ENFILE);
        }
        if self.fids.contains_key(&number) {
            return Err(Errno::EBADF);
        }
        self.weight = weight;
        self.fids.insert(number, fid);
        Ok(())
    }

    fn remove(&mut self, number: u32) -> Result<Fid, Errno> {
        let fid = self.fids.remove(&number).ok_or(Errno::EBADF)?;
        self.weight -= fid.weight();
        Ok(fid)
    }

    fn writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// Whether one more file can be opened.
    fn may_open(&self) -> Result<(), Errno> {
        let open = self.fids.values().filter(|fid| fid.open.is_some()).count();
        if open < self.max_open { Ok(()) } else { Err(Errno::EMFILE) }
    }

    /// How a client wants a file opened.
    fn how(&self, flags: u32) -> Result<How, Errno> {
        let access = match flags & flag::ACCESS {
            0 => OFlag::O_RDONLY,
            1 => OFlag::O_WRONLY,
            2 => OFlag::O_RDWR,
            _ => return Err(Errno::EINVAL),
        };
        let truncate = flags & flag::TRUNC != 0;
        if truncate || access != OFlag::O_RDONLY {
            self.writable()?;
        }
        Ok(How { access, truncate, append: flags & flag::APPEND != 0 })
    }

    fn owner(&self, fid: u32, mode: u32, gid: u32) -> Result<Owner, Errno> {
        let some = |id: u32| Some(id).filter(|id| *id != NOBODY);
        Ok(Owner { uid: some(self.fid(fid)?.uid), gid: some(gid), mode })
    }

    /// Says what was made.
    fn made(&self, path: &[Name], r: &mut Reply) -> Result<(), Errno> {
        r.qid(self.tree.qid(&self.tree.stat(path)?));
        Ok(())
    }

    fn version(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        let (message, version) = (a.u32()?, a.string()?);
        // A new session in any case.
        self.reset();
        let known = version == b"9P2000.L" && message >= MIN_MESSAGE;
        let message = message.min(MAX_MESSAGE);
        if known {
            self.message = message;
        }
        r.u32(message);
        r.string(if known { version } else { b"unknown" });
        Ok(())
    }

    fn attach(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        // Nobody has to prove who he is, and there is one tree, by whatever name clients call it.
        let (fid, _, _, _, uid) = (a.u32()?, a.u32()?, a.string()?, a.string()?, a.u32()?);
        self.made(&[], r)?;
        self.insert(fid, Fid { place: Place::Path(Vec::new()), uid, open: None })
    }

    fn walk(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        let (fid, new, count) = (a.u32()?, a.u32()?, a.u16()?);
        if count > MAX_WALK {
            return Err(Errno::EINVAL);
        }
        let from = self.fid(fid)?;
        let (mut place, uid) = (from.place.clone(), from.uid);
        let mut qids = Vec::new();
        for n in 0..count {
            let Place::Path(path) = &place else { return Err(Errno::ENOENT) };
            let next = match a.string()? {
                b"." => Ok(path.clone()),
                // Above the root is the root.
                b".." => Ok(path[..path.len().saturating_sub(1)].to_vec()),
                name => tree::join(path, name),
            };
            match next.and_then(|path| Ok((self.tree.stat(&path)?, path))) {
                Ok((attr, path)) => {
                    qids.push(self.tree.qid(&attr));
                    place = Place::Path(path);
                }
                Err(errno) if n == 0 => return Err(errno),
                // The client sees by the number of them how far it came, and there is no new fid.
                Err(_) => break,
            }
        }
        if qids.len() == usize::from(count) {
            if fid == new {
                let old = self.remove(fid)?;
                if old.open.is_some() && count > 0 {
                    self.insert(fid, old)?;
                    return Err(Errno::EBADF);
                }
                self.insert(new, Fid { place, ..old })?;
            } else {
                self.insert(new, Fid { place, uid, open: None })?;
            }
        }
        r.u16(qids.len() as u16);
        qids.into_iter().for_each(|qid| r.qid(qid));
        Ok(())
    }

    /// Makes a fid an open one, and says so.
    fn opened(&mut self, fid: u32, file: File, flags: u32, r: &mut Reply) -> Result<(), Errno> {
        let attr = tree::attr(&file)?;
        r.qid(self.tree.qid(&attr));
        r.u32(self.message - DATA_HEADER);
        let open = Open { file: Arc::new(file), flags, directory: attr.is_dir() };
        self.fids.get_mut(&fid).ok_or(Errno::EBADF)?.open = Some(open);
        Ok(())
    }

    fn lopen(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        let (number, flags) = (a.u32()?, a.u32()?);
        let fid = self.fid(number)?;
        if fid.open.is_some() {
            return Err(Errno::EBADF);
        }
        self.may_open()?;
        let file = self.tree.open(fid.path()?, self.how(flags)?)?;
        if flags & flag::DIRECTORY != 0 && !tree::attr(&file)?.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        self.opened(number, file, flags, r)
    }

    /// Moves a fid from a directory to what was made in it.
    fn enter(&mut self, number: u32, path: Vec<Name>) -> Result<(), Errno> {
        let fid = self.remove(number)?;
        self.insert(number, Fid { place: Place::Path(path), ..fid })
    }

    fn lcreate(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        let (fid, name, flags, mode, gid) = (a.u32()?, a.string()?, a.u32()?, a.u32()?, a.u32()?);
        self.make(fid, name, flags, self.owner(fid, mode, gid)?, r)
    }

    /// Makes a file, or opens the one that is there, and its fid stands for it from then on.
    fn make(&mut self, fid: u32, name: &[u8], flags: u32, owner: Owner, r: &mut Reply) -> Result<(), Errno> {
        self.writable()?;
        if self.fid(fid)?.open.is_some() {
            return Err(Errno::EBADF);
        }
        self.may_open()?;
        let (path, how) = (self.below(fid, name)?, self.how(flags)?);
        let file = match self.tree.create(&path, how, owner) {
            Err(Errno::EEXIST) if flags & flag::EXCL == 0 => self.tree.open(&path, how)?,
            made => made?,
        };
        self.enter(fid, path)?;
        self.opened(fid, file, flags & !flag::TRUNC, r)
    }

    fn create(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        let (fid, name, perm, mode, extension) = (a.u32()?, a.string()?, a.u32()?, a.u8()?, a.string()?);
        self.writable()?;
        let bit = |bit: u32, mode: u32| if perm & bit != 0 { mode } else { 0 };
        let permissions = perm & 0o777 | bit(plain::SETUID, 0o4000) | bit(plain::SETGID, 0o2000);
        let owner = self.owner(fid, permissions, NOBODY)?;
        let path = self.below(fid, name)?;
        let is = |bit: u32| perm & bit != 0;
        if is(plain::DEVICE) || is(plain::LINK) {
            return Err(Errno::EPERM);
        }
        if is(plain::SYMLINK) {
            self.tree.symlink(&path, extension, owner)?;
        } else if is(plain::FIFO) || is(plain::SOCKET) {
            let kind = if is(plain::FIFO) { SFlag::S_IFIFO } else { SFlag::S_IFSOCK };
            self.tree.mknod(&path, kind, owner)?;
        } else if is(plain::DIRECTORY) {
            self.may_open()?;
            self.tree.mkdir(&path, owner)?;
            let file = self.tree.open(&path, self.how(0)?)?;
            self.enter(fid, path)?;
            return self.opened(fid, file, 0, r);
        } else {
            let truncate = if mode & plain::TRUNC != 0 { flag::TRUNC } else { 0 };
            // Mode 3 is execution.
            let access = if mode & 3 == 3 { 0 } else { u32::from(mode & 3) };
            return self.make(fid, name, access | truncate | flag::EXCL, owner, r);
        }
        self.made(&path, r)?;
        r.u32(0);
        self.enter(fid, path)
    }

    fn read(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        let (fid, offset, count) = (a.u32()?, a.u64()?, a.u32()?);
        let open = self.fid(fid)?.opened(false)?;
        let count = r.left().saturating_sub(4).min(count as usize);
        r.counted(count, |data| {
            let mut done = 0;
            while done < data.len() {
                let at = offset.checked_add(done as u64).ok_or(Errno::EINVAL)?;
                match open.file.read_at(&mut data[done..], at) {
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) if done > 0 => break,
                    Err(e) => return Err(errno_of(&e)),
                }
            }
            Ok(done)
        })
    }

    fn write(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        let (fid, offset, count) = (a.u32()?, a.u64()?, a.u32()?);
        let data = a.bytes(count as usize)?;
        self.writable()?;
        let open = self.fid(fid)?.opened(false)?;
        let n = loop {
            match open.file.write_at(data, offset) {
                Ok(n) => break n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(errno_of(&e)),
            }
        };
        r.u32(n as u32);
        Ok(())
    }

    fn readdir(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        /// Bytes of an entry beside its name.
        const ENTRY: usize = 24;
        let (number, offset, count) = (a.u32()?, a.u64()?, a.u32()?);
        let fid = self.fid(number)?;
        let dir = &fid.opened(true)?.file;
        let count = r.left().saturating_sub(4).min(count as usize);
        let own = tree::attr(dir)?;
        let at_root = fid.path().is_ok_and(<[Name]>::is_empty);
        let mut buf = vec![0; count.clamp(entries::LONGEST, 64 << 10)];
        let n = entries::fill(dir.as_fd(), offset, &mut buf)?;
        let mut bytes = &buf[..n];
        let mut list = Reply::new(count + HEADER);
        let mut any = false;
        while let Some(entry) = entries::next(&mut bytes) {
            any = true;
            if list.left() < ENTRY + entry.name.len() {
                break;
            }
            // What is above the root is not the guest's to know.
            let ino = if at_root && entry.name == b".." { own.ino } else { entry.ino };
            let kind = match entry.kind {
                libc::DT_DIR => Qid::DIRECTORY,
                libc::DT_LNK => Qid::SYMLINK,
                _ => Qid::FILE,
            };
            list.qid(Qid { kind, version: 0, path: self.tree.number(own.dev, ino) });
            list.u64(entry.next);
            list.u8(entry.kind);
            list.string(entry.name);
        }
        let list = list.finish(0, 0).ok_or(Errno::EINVAL)?;
        // None would say that this is the end.
        if any && list.len() == HEADER {
            return Err(Errno::EINVAL);
        }
        r.u32((list.len() - HEADER) as u32);
        r.put(&list[HEADER..]);
        Ok(())
    }

    fn getattr(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        let fid = self.fid(a.u32()?)?;
        let attr = match fid.file() {
            Some(file) => tree::attr(&file)?,
            None => self.tree.stat(fid.path()?)?,
        };
        let Attr { mode, uid, gid, links, rdev, size, block_size, blocks, times, .. } = attr;
        r.u64(ATTRIBUTES);
        r.qid(self.tree.qid(&attr));
        [mode, uid, gid].into_iter().for_each(|n| r.u32(n));
        [links, rdev, size, block_size, blocks].into_iter().for_each(|n| r.u64(n));
        // The fourth is the time of birth.
        for (seconds, nanoseconds) in times.into_iter().chain([(0, 0)]) {
            r.u64(seconds);
            r.u64(nanoseconds);
        }
        // Generation and version.
        r.u64(0);
        r.u64(0);
        Ok(())
    }

    fn setattr(&mut self, a: &mut Args) -> Result<(), Errno> {
        let (fid, valid, mode, uid, gid, size) = (a.u32()?, a.u32()?, a.u32()?, a.u32()?, a.u32()?, a.u64()?);
        let given = [TimeSpec::new(a.u64()? as _, a.u64()? as _), TimeSpec::new(a.u64()? as _, a.u64()? as _)];
        self.writable()?;
        let when = |bit: u32| valid & bit != 0;
        let time = |change: u32, to: u32, given: TimeSpec| match (when(change), when(to)) {
            (true, true) => given,
            (true, false) => TimeSpec::UTIME_NOW,
            (false, _) => TimeSpec::UTIME_OMIT,
        };
        let times = (time(set::ATIME, set::ATIME_SET, given[0]), time(set::MTIME, set::MTIME_SET, given[1]));
        let change = Change {
            mode: when(set::MODE).then_some(mode),
            uid: when(set::UID).then_some(uid),
            gid: when(set::GID).then_some(gid),
            size: when(set::SIZE).then_some(size),
            times: (when(set::ATIME) || when(set::MTIME)).then_some(times),
        };
        let fid = self.fid(fid)?;
        match (fid.path(), fid.file()) {
            (Ok(path), file) => self.tree.set(path, file, &change),
            (Err(_), Some(file)) => self.tree.set(&[], Some(file), &change),
            (Err(errno), None) => Err(errno),
        }
    }

    fn statfs(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        let fid = self.fid(a.u32()?)?;
        let s = self.tree.statfs(fid.path().unwrap_or_default())?;
        r.u32(MAGIC);
        r.u32(s.fragment_size() as u32);
        let counts = [s.blocks(), s.blocks_free(), s.blocks_available(), s.files(), s.files_free()];
        counts.into_iter().for_each(|n| r.u64(n));
        r.u64(0);
        r.u32(s.name_max() as u32);
        Ok(())
    }

    fn fsync(&mut self, a: &mut Args) -> Result<(), Errno> {
        let (fid, data) = (a.u32()?, a.u32().unwrap_or(0));
        let fid = self.fid(fid)?;
        let open = fid.open.as_ref().ok_or(Errno::EBADF)?;
        let done = if data != 0 { open.file.sync_data() } else { open.file.sync_all() };
        done.map_err(|e| errno_of(&e))
    }

    fn mkdir(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        let (fid, name, mode, gid) = (a.u32()?, a.string()?, a.u32()?, a.u32()?);
        self.writable()?;
        let path = self.below(fid, name)?;
        self.tree.mkdir(&path, self.owner(fid, mode, gid)?)?;
        self.made(&path, r)
    }

    fn symlink(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        let (fid, name, target, gid) = (a.u32()?, a.string()?, a.string()?, a.u32()?);
        self.writable()?;
        let path = self.below(fid, name)?;
        self.tree.symlink(&path, target, self.owner(fid, 0o777, gid)?)?;
        self.made(&path, r)
    }

    fn mknod(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        let (fid, name, mode, _, _, gid) = (a.u32()?, a.string()?, a.u32()?, a.u32()?, a.u32()?, a.u32()?);
        self.writable()?;
        let path = self.below(fid, name)?;
        let kind = SFlag::from_bits_truncate(mode as libc::mode_t & SFlag::S_IFMT.bits());
        let kind = if kind.is_empty() { SFlag::S_IFREG } else { kind };
        self.tree.mknod(&path, kind, self.owner(fid, mode, gid)?)?;
        self.made(&path, r)
    }

    fn link(&mut self, a: &mut Args) -> Result<(), Errno> {
        let (dir, fid, name) = (a.u32()?, a.u32()?, a.string()?);
        self.writable()?;
        self.tree.link(self.path(fid)?, &self.below(dir, name)?)
    }

    fn readlink(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        r.string(&self.tree.readlink(self.path(a.u32()?)?)?);
        Ok(())
    }

    fn rename(&mut self, a: &mut Args) -> Result<(), Errno> {
        let (fid, dir, name) = (a.u32()?, a.u32()?, a.string()?);
        self.writable()?;
        self.moved(self.path(fid)?.to_vec(), self.below(dir, name)?)
    }

    fn renameat(&mut self, a: &mut Args) -> Result<(), Errno> {
        let (from, old, to, new) = (a.u32()?, a.string()?, a.u32()?, a.string()?);
        self.writable()?;
        self.moved(self.below(from, old)?, self.below(to, new)?)
    }

    /// Renames, and all fids beneath with it.
    fn moved(&mut self, old: Vec<Name>, new: Vec<Name>) -> Result<(), Errno> {
        // What is far below may come to be too far: a guest could make paths longer without end.
        let (mut beneath, mut weight) = (Vec::new(), self.weight);
        for (number, fid) in &self.fids {
            let Place::Path(path) = &fid.place else { continue };
            let Some(rest) = path.strip_prefix(&old[..]) else { continue };
            let path = rest.iter().try_fold(new.clone(), |path, name| tree::join(&path, name))?;
            weight = weight - fid.weight() + weight_of(&path);
            if weight > MAX_PATHS {
                return Err(Errno::ENFILE);
            }
            beneath.push((*number, path));
        }
        self.tree.rename(&old, &new)?;
        if old == new {
            return Ok(());
        }
        self.forget(&new);
        for (number, path) in beneath {
            if let Some(fid) = self.fids.get_mut(&number) {
                fid.place = Place::Path(path);
            }
        }
        self.weight = self.fids.values().map(Fid::weight).sum();
        Ok(())
    }

    /// A path's file has lost that name. Who has it open keeps it, and others by them.
    fn forget(&mut self, path: &[Name]) {
        let is = |fid: &&mut Fid| fid.path().is_ok_and(|own| own == path);
        let mut file = None;
        for fid in self.fids.values_mut().filter(is) {
            file = file.or_else(|| fid.open.as_ref().map(|open| open.file.clone()));
        }
        for fid in self.fids.values_mut().filter(|fid| is(fid)) {
            self.weight -= fid.weight();
            fid.place = Place::Gone(file.clone());
        }
    }

    fn unlinked(&mut self, path: &[Name], directory: bool) -> Result<(), Errno> {
        self.tree.unlink(path, directory)?;
        self.forget(path);
        Ok(())
    }

    fn unlink(&mut self, a: &mut Args) -> Result<(), Errno> {
        // The fid ends here, whatever becomes of the file.
        let fid = self.remove(a.u32()?)?;
        self.writable()?;
        let path = fid.path()?;
        let directory = self.tree.stat(path)?.is_dir();
        self.unlinked(path, directory)
    }

    fn unlinkat(&mut self, a: &mut Args) -> Result<(), Errno> {
        let (fid, name, flags) = (a.u32()?, a.string()?, a.u32()?);
        self.writable()?;
        let path = self.below(fid, name)?;
        self.unlinked(&path, flags & REMOVE_DIRECTORY != 0)
    }

    fn getlock(&mut self, a: &mut Args, r: &mut Reply) -> Result<(), Errno> {
        let (fid, _, start, length, process, client) = (a.u32()?, a.u8()?, a.u64()?, a.u64()?, a.u32()?, a.string()?);
        self.fid(fid)?;
        r.u8(UNLOCKED);
        r.u64(start);
        r.u64(length);
        r.u32(process);
        r.string(client);
        Ok(())
    }

    /// What the guest has, and how many of its open files cannot be found again by a name.
    pub fn save(&self) -> (serde_json::Value, usize) {
        let fid = |(number, fid): (&u32, &Fid)| {
            let number_of = |open: &Open| tree::attr(&*open.file).map_or(0, |attr| attr.ino);
            SavedFid {
                fid: *number,
                path: fid.path().ok().map(<[Name]>::to_vec),
                uid: fid.uid,
                open: fid.open.as_ref().map(|open| (open.flags, number_of(open))),
            }
        };
        let session = Session { message: self.message, fids: self.fids.iter().map(fid).collect() };
        let lost = session.fids.iter().filter(|fid| fid.open.is_some() && fid.path.is_none()).count();
        (serde_json::to_value(session).expect("plain fields"), lost)
    }

    /// Opens again what was saved, and says how many of the open files are not there any more.
    pub fn load(&mut self, saved: serde_json::Value) -> Result<usize, String> {
        let session: Session = serde_json::from_value(saved).map_err(|e| e.to_string())?;
        self.reset();
        if session.message != 0 && !(MIN_MESSAGE..=MAX_MESSAGE).contains(&session.message) {
            return Err(format!("no messages have {} bytes", session.message));
        }
        self.message = session.message;
        let mut lost = 0;
        for SavedFid { fid, path, uid, open } in session.fids {
            let whole = |path: Vec<Name>| {
                path.iter().try_fold(Vec::new(), |path, name| tree::join(&path, name)).map_err(|e| e.to_string())
            };
            let path = path.map(whole).transpose()?;
            let file = path.as_ref().zip(open).and_then(|(path, (flags, ino))| {
                let how = self.how(flags & !flag::TRUNC).ok()?;
                let file = self.tree.open(path, how).ok()?;
                let attr = tree::attr(&file).ok()?;
                let open = Open { file: Arc::new(file), flags, directory: attr.is_dir() };
                (attr.ino == ino && self.may_open().is_ok()).then_some(open)
            });
            let gone = open.is_some() && file.is_none();
            lost += usize::from(gone);
            let place = path.filter(|_| !gone).map_or(Place::Gone(None), Place::Path);
            self.insert(fid, Fid { place, uid, open: file }).map_err(|e| e.to_string())?;
        }
        Ok(lost)
    }
}

fn errno_of(e: &std::io::Error) -> Errno {
    e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The reply that says that it did not work.
fn refusal(tag: u16, room: usize, errno: Errno) -> Option<Vec<u8>> {
    let mut reply = Reply::new(room);
    reply.u32(linux(errno));
    reply.finish(kind::LERROR + 1, tag)
}
