//! What is below a share's root, by names that the guest gives.
//!
//! A path is a list of names, none of which is `..` or has a slash. It is walked one directory after the other from the
//! root's descriptor, and no symbolic link is followed on the way or at its end: they are the guest's to follow. So
//! nothing above the root can be reached, whoever else changes the tree meanwhile. Of what is there, directories and
//! regular files are opened; devices, FIFOs and sockets are names for the guest's own.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::{self, AtFlags, OFlag};
use nix::sys::stat::{self, FileStat, Mode, SFlag, UtimensatFlags};
use nix::sys::statvfs::{Statvfs, fstatvfs};
use nix::sys::time::TimeSpec;
use nix::unistd::{self, Gid, Uid, UnlinkatFlags};

use super::wire::Qid;

/// A name in a directory.
pub type Name = Vec<u8>;

/// Bytes of the longest name, and of the longest path.
const MAX_NAME: usize = 255;
const MAX_PATH: usize = 4096;

/// How a directory is opened to find something in it.
#[cfg(target_os = "linux")]
const TO_WALK: OFlag = OFlag::O_PATH;
#[cfg(not(target_os = "linux"))]
const TO_WALK: OFlag = OFlag::O_RDONLY;

/// Whether a guest can use this as a name.
pub fn check_name(name: &[u8]) -> Result<(), Errno> {
    match name {
        b"" | b"." | b".." => Err(Errno::EINVAL),
        _ if name.len() > MAX_NAME => Err(Errno::ENAMETOOLONG),
        _ if name.iter().any(|b| matches!(b, 0 | b'/')) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

/// A path with one more name.
pub fn join(path: &[Name], name: &[u8]) -> Result<Vec<Name>, Errno> {
    check_name(name)?;
    let mut path = path.to_vec();
    path.push(name.to_vec());
    if path.iter().map(|name| name.len() + 1).sum::<usize>() > MAX_PATH {
        return Err(Errno::ENAMETOOLONG);
    }
    Ok(path)
}

/// The same for a name in a directory, as system calls want it.
fn c_name(name: &[u8]) -> Result<CString, Errno> {
    CString::new(name).map_err(|_| Errno::EINVAL)
}

/// A file's attributes.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    pub dev: u64,
    pub ino: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u64,
    /// As Linux's 32-bit numbers of devices.
    pub rdev: u64,
    pub size: u64,
    pub block_size: u64,
    /// Of 512 bytes.
    pub blocks: u64,
    /// Last access, change of content, change of these: seconds and nanoseconds.
    pub times: [(u64, u64); 3],
}

impl Attr {
    #[allow(clippy::unnecessary_cast, reason = "the widths differ between systems")]
    fn of(s: &FileStat) -> Attr {
        let (major, minor) = (libc::major(s.st_rdev) as u64, libc::minor(s.st_rdev) as u64);
        Attr {
            dev: s.st_dev as u64,
            ino: s.st_ino as u64,
            mode: s.st_mode as u32,
            uid: s.st_uid,
            gid: s.st_gid,
            links: s.st_nlink as u64,
            rdev: minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12,
            size: s.st_size as u64,
            block_size: s.st_blksize as u64,
            blocks: s.st_blocks as u64,
            times: [
                (s.st_atime as u64, s.st_atime_nsec as u64),
                (s.st_mtime as u64, s.st_mtime_nsec as u64),
                (s.st_ctime as u64, s.st_ctime_nsec as u64),
            ],
        }
    }

    pub fn kind(&self) -> SFlag {
        SFlag::from_bits_truncate(self.mode as libc::mode_t & SFlag::S_IFMT.bits())
    }

    pub fn is_dir(&self) -> bool {
        self.kind() == SFlag::S_IFDIR
    }
}

/// How a file is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub access: OFlag,
    pub append: bool,
    pub truncate: bool,
}

impl How {
    fn flags(self) -> OFlag {
        let append = if self.append { OFlag::O_APPEND } else { OFlag::empty() };
        // Nothing that is opened by mistake, because somebody on the host has just put it there, makes us wait.
        self.access | append | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC
    }
}

/// A new file's owner and permissions.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mode: u32,
}

/// What [`Tree::set`] changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    /// Last access and change of content.
    pub times: Option<(TimeSpec, TimeSpec)>,
}

/// A directory that something is looked up in.
enum Dir<'a> {
    Root(BorrowedFd<'a>),
    Below(OwnedFd),
}

impl AsFd for Dir<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Dir::Root(root) => *root,
            Dir::Below(dir) => dir.as_fd(),
        }
    }
}

fn mode_of(bits: u32) -> Mode {
    Mode::from_bits_truncate(bits as libc::mode_t)
}

fn stat_at(dir: &impl AsFd, name: &CString) -> Result<Attr, Errno> {
    stat::fstatat(dir, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).map(|s| Attr::of(&s))
}

/// Changes the permissions of what may be a symbolic link by now.
#[cfg(target_os = "linux")]
fn chmod_at(dir: &impl AsFd, name: &CString, mode: Mode) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let (fd, flags) = (dir.as_fd().as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW);
    // SAFETY: the name ends with a zero.
    #[expect(unsafe_code, reason = "fchmodat2(2), which no C library of today has by name")]
    let done = unsafe { libc::syscall(libc::SYS_fchmodat2, fd, name.as_ptr(), mode.bits(), flags) };
    match Errno::result(done) {
        // Before Linux 6.6.
        Err(Errno::ENOSYS) => {
            let how = How { access: OFlag::O_RDONLY, append: false, truncate: false };
            stat::fchmod(fcntl::openat(dir, name.as_c_str(), how.flags(), Mode::empty())?, mode)
        }
        done => done.map(drop),
    }
}

#[cfg(not(target_os = "linux"))]
fn chmod_at(dir: &impl AsFd, name: &CString, mode: Mode) -> Result<(), Errno> {
    stat::fchmodat(dir, name.as_c_str(), mode, stat::FchmodatFlags::NoFollowSymlink)
}

/// Leaves alone what this process has no right to give away.
fn unless_refused(done: Result<(), Errno>) -> Result<(), Errno> {
    match done {
        Err(Errno::EPERM | Errno::EACCES | Errno::EINVAL) => Ok(()),
        done => done,
    }
}

/// The share's directory.
pub struct Tree {
    root: OwnedFd,
    dev: u64,
}

impl Tree {
    pub fn new(root: OwnedFd) -> Result<Tree, Errno> {
        let dev = Attr::of(&stat::fstat(&root)?).dev;
        Ok(Tree { root, dev })
    }

    /// Its descriptor.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn dir(&self, path: &[Name]) -> Result<Dir<'_>, Errno> {
        let mut dir = Dir::Root(self.root.as_fd());
        for name in path {
            let flags = TO_WALK | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            dir = Dir::Below(fcntl::openat(&dir, c_name(name)?.as_c_str(), flags, Mode::empty())?);
        }
        Ok(dir)
    }

    /// The directory in which a path ends, and the name there.
    fn place(&self, path: &[Name]) -> Result<(Dir<'_>, CString), Errno> {
        match path.split_last() {
            Some((name, above)) => Ok((self.dir(above)?, c_name(name)?)),
            None => Ok((self.dir(path)?, c_name(b".")?)),
        }
    }

    /// As [`Tree::place`], for what cannot be done to the root.
    fn entry(&self, path: &[Name]) -> Result<(Dir<'_>, CString), Errno> {
        if path.is_empty() { Err(Errno::EBUSY) } else { self.place(path) }
    }

    /// What identifies a file. Other file systems that are mounted in the tree have numbers of their own.
    pub fn qid(&self, attr: &Attr) -> Qid {
        let kind = match attr.kind() {
            SFlag::S_IFDIR => Qid::DIRECTORY,
            SFlag::S_IFLNK => Qid::SYMLINK,
            _ => Qid::FILE,
        };
        Qid { kind, version: 0, path: self.number(attr.dev, attr.ino) }
    }

    /// The number of a file in the protocol.
    pub fn number(&self, dev: u64, ino: u64) -> u64 {
        ino ^ (dev ^ self.dev).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    pub fn stat(&self, path: &[Name]) -> Result<Attr, Errno> {
        let (dir, name) = self.place(path)?;
        stat_at(&dir, &name)
    }

    pub fn statfs(&self, path: &[Name]) -> Result<Statvfs, Errno> {
        let attr = self.stat(path)?;
        // A file's, a link's and a device's is that of their directory.
        let dir = if attr.is_dir() { path } else { &path[..path.len().saturating_sub(1)] };
        fstatvfs(self.dir(dir)?)
    }

    pub fn open(&self, path: &[Name], how: How) -> Result<File, Errno> {
        let (dir, name) = self.place(path)?;
        let flags = match stat_at(&dir, &name)?.kind() {
            SFlag::S_IFREG => how.flags(),
            SFlag::S_IFDIR if how.access != OFlag::O_RDONLY || how.truncate => return Err(Errno::EISDIR),
            SFlag::S_IFDIR => how.flags() | OFlag::O_DIRECTORY,
            SFlag::S_IFLNK => return Err(Errno::ELOOP),
            _ => return Err(Errno::ENXIO),
        };
        let file = fcntl::openat(&dir, name.as_c_str(), flags, Mode::empty())?;
        if !matches!(attr(&file)?.kind(), SFlag::S_IFREG | SFlag::S_IFDIR) {
            return Err(Errno::ENXIO);
        }
        // Not by a flag, as only now it is known to be a file. Of what is open for reading a guest cuts by attributes.
        if how.truncate && how.access != OFlag::O_RDONLY {
            unistd::ftruncate(&file, 0)?;
        }
        Ok(file.into())
    }

    /// Makes a file; `EEXIST` if there is something of that name.
    pub fn create(&self, path: &[Name], how: How, owner: Owner) -> Result<File, Errno> {
        let (dir, name) = self.entry(path)?;
        let flags = how.flags() | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = fcntl::openat(&dir, name.as_c_str(), flags, mode_of(owner.mode & 0o777))?;
        self.own(&dir, &name, owner)?;
        Ok(file.into())
    }

    /// Gives a new file to its owner, as far as this process can, and the permissions that were asked for whatever this
    /// process's mask is.
    fn own(&self, dir: &Dir, name: &CString, owner: Owner) -> Result<(), Errno> {
        let (uid, gid) = (owner.uid.map(Uid::from_raw), owner.gid.map(Gid::from_raw));
        unless_refused(unistd::fchownat(dir, name.as_c_str(), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW))?;
        let now = stat_at(dir, name)?;
        // A directory's group is inherited with this bit.
        let inherited = if now.is_dir() { now.mode & 0o2000 } else { 0 };
        let wanted = owner.mode & 0o7777 | inherited;
        if now.kind() != SFlag::S_IFLNK && now.mode & 0o7777 != wanted {
            chmod_at(dir, name, mode_of(wanted))?;
        }
        Ok(())
    }

    pub fn mkdir(&self, path: &[Name], owner: Owner) -> Result<(), Errno> {
        let (dir, name) = self.entry(path)?;
        stat::mkdirat(&dir, name.as_c_str(), mode_of(owner.mode & 0o777))?;
        self.own(&dir, &name, owner)
    }

    pub fn symlink(&self, path: &[Name], target: &[u8], owner: Owner) -> Result<(), Errno> {
        let (dir, name) = self.entry(path)?;
        if target.len() >= MAX_PATH {
            return Err(Errno::ENAMETOOLONG);
        }
        unistd::symlinkat(c_name(target)?.as_c_str(), &dir, name.as_c_str())?;
        self.own(&dir, &name, owner)
    }

    /// Makes a FIFO, a socket's name or a file. The host's devices are nothing that a guest makes names for.
    pub fn mknod(&self, path: &[Name], kind: SFlag, owner: Owner) -> Result<(), Errno> {
        let (dir, name) = self.entry(path)?;
        let mode = mode_of(owner.mode & 0o777);
        match kind {
            SFlag::S_IFREG => {
                let how = How { access: OFlag::O_WRONLY, append: false, truncate: false };
                return self.create(path, how, owner).map(drop);
            }
            SFlag::S_IFIFO => unistd::mkfifoat(&dir, name.as_c_str(), mode)?,
            SFlag::S_IFSOCK => stat::mknodat(&dir, name.as_c_str(), kind, mode, 0)?,
            _ => return Err(Errno::EPERM),
        }
        self.own(&dir, &name, owner)
    }

    pub fn link(&self, old: &[Name], new: &[Name]) -> Result<(), Errno> {
        let ((from, old), (to, new)) = (self.entry(old)?, self.entry(new)?);
        unistd::linkat(&from, old.as_c_str(), &to, new.as_c_str(), AtFlags::empty())
    }

    pub fn rename(&self, old: &[Name], new: &[Name]) -> Result<(), Errno> {
        let ((from, old), (to, new)) = (self.entry(old)?, self.entry(new)?);
        fcntl::renameat(&from, old.as_c_str(), &to, new.as_c_str())
    }

    pub fn unlink(&self, path: &[Name], directory: bool) -> Result<(), Errno> {
        let (dir, name) = self.entry(path)?;
        let flag = if directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        unistd::unlinkat(&dir, name.as_c_str(), flag)
    }

    pub fn readlink(&self, path: &[Name]) -> Result<Vec<u8>, Errno> {
        let (dir, name) = self.entry(path).map_err(|_| Errno::EINVAL)?;
        fcntl::readlinkat(&dir, name.as_c_str()).map(OsStringExt::into_vec)
    }

    /// Changes attributes: those of `file` where it is one that the guest has open.
    pub fn set(&self, path: &[Name], file: Option<&File>, change: &Change) -> Result<(), Errno> {
        let owner = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
        let given = owner.0.is_some() || owner.1.is_some();
        if let Some(size) = change.size {
            let size = libc::off_t::try_from(size).map_err(|_| Errno::EFBIG)?;
            let how = How { access: OFlag::O_WRONLY, append: false, truncate: false };
            match file.map_or(Err(Errno::EINVAL), |file| unistd::ftruncate(file, size)) {
                // It is open for reading only.
                Err(Errno::EINVAL | Errno::EBADF) if !path.is_empty() => {
                    unistd::ftruncate(self.open(path, how)?, size)?;
                }
                done => done?,
            }
        }
        // What takes away bits of the mode comes first.
        if let Some(file) = file {
            if given {
                unistd::fchown(file, owner.0, owner.1)?;
            }
            if let Some(mode) = change.mode {
                stat::fchmod(file, mode_of(mode & 0o7777))?;
            }
            if let Some((access, content)) = &change.times {
                stat::futimens(file, access, content)?;
            }
            return Ok(());
        }
        let (dir, name) = self.place(path)?;
        if given {
            unistd::fchownat(&dir, name.as_c_str(), owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        if let Some(mode) = change.mode {
            chmod_at(&dir, &name, mode_of(mode & 0o7777))?;
        }
        if let Some((access, content)) = &change.times {
            stat::utimensat(&dir, name.as_c_str(), access, content, UtimensatFlags::NoFollowSymlink)?;
        }
        Ok(())
    }
}

/// The attributes of what is open.
pub fn attr(file: &impl AsFd) -> Result<Attr, Errno> {
    stat::fstat(file).map(|s| Attr::of(&s))
}
