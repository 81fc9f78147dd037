//! Messages of 9P2000.L as bytes: little-endian numbers, and strings with two bytes of length before them.

use nix::errno::Errno;

/// Kinds of messages. A reply's is one more than its request's.
pub mod kind {
    pub const LERROR: u8 = 6;
    pub const STATFS: u8 = 8;
    pub const LOPEN: u8 = 12;
    pub const LCREATE: u8 = 14;
    pub const SYMLINK: u8 = 16;
    pub const MKNOD: u8 = 18;
    pub const RENAME: u8 = 20;
    pub const READLINK: u8 = 22;
    pub const GETATTR: u8 = 24;
    pub const SETATTR: u8 = 26;
    pub const XATTRWALK: u8 = 30;
    pub const XATTRCREATE: u8 = 32;
    pub const READDIR: u8 = 40;
    pub const FSYNC: u8 = 50;
    pub const LOCK: u8 = 52;
    pub const GETLOCK: u8 = 54;
    pub const LINK: u8 = 70;
    pub const MKDIR: u8 = 72;
    pub const RENAMEAT: u8 = 74;
    pub const UNLINKAT: u8 = 76;
    pub const VERSION: u8 = 100;
    pub const ATTACH: u8 = 104;
    pub const FLUSH: u8 = 108;
    pub const WALK: u8 = 110;
    /// Of 9P2000.u. FreeBSD's p9fs(4) says it in .L, too.
    pub const CREATE: u8 = 114;
    pub const READ: u8 = 116;
    pub const WRITE: u8 = 118;
    pub const CLUNK: u8 = 120;
    pub const REMOVE: u8 = 122;
}

/// Bytes of a message before what it says: length, kind, tag.
pub const HEADER: usize = 7;
/// The tag of messages that have none.
pub const NO_TAG: u16 = !0;

/// What a file is to the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qid {
    pub kind: u8,
    pub version: u32,
    pub path: u64,
}

impl Qid {
    pub const DIRECTORY: u8 = 0x80;
    pub const SYMLINK: u8 = 0x02;
    pub const FILE: u8 = 0;
}

/// What a request says, read from its begin. What is not there is a broken message.
pub struct Args<'a>(pub &'a [u8]);

impl<'a> Args<'a> {
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], Errno> {
        let (here, rest) = self.0.split_at_checked(n).ok_or(Errno::EPROTO)?;
        self.0 = rest;
        Ok(here)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        self.bytes(N)?.try_into().map_err(|_| Errno::EPROTO)
    }

    pub fn u8(&mut self) -> Result<u8, Errno> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Result<u16, Errno> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn string(&mut self) -> Result<&'a [u8], Errno> {
        let len = self.u16()?;
        self.bytes(len.into())
    }
}

/// A reply in the making.
pub struct Reply {
    bytes: Vec<u8>,
    /// Bytes that it can have.
    room: usize,
}

impl Reply {
    pub fn new(room: usize) -> Reply {
        Reply { bytes: vec![0; HEADER], room }
    }

    /// Bytes that can still be put in.
    pub fn left(&self) -> usize {
        self.room.saturating_sub(self.bytes.len())
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    pub fn u8(&mut self, n: u8) {
        self.put(&[n]);
    }

    pub fn u16(&mut self, n: u16) {
        self.put(&n.to_le_bytes());
    }

    pub fn u32(&mut self, n: u32) {
        self.put(&n.to_le_bytes());
    }

    pub fn u64(&mut self, n: u64) {
        self.put(&n.to_le_bytes());
    }

    /// A string. None is longer than a path, or than what the guest wrote.
    pub fn string(&mut self, s: &[u8]) {
        self.u16(s.len() as u16);
        self.put(s);
    }

    pub fn qid(&mut self, qid: Qid) {
        self.u8(qid.kind);
        self.u32(qid.version);
        self.u64(qid.path);
    }

    /// `len` bytes that somebody fills, who says how many of them there are; their number stands before them.
    pub fn counted(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> Result<usize, Errno>) -> Result<(), Errno> {
        let at = self.bytes.len();
        self.bytes.resize(at + 4 + len, 0);
        let n = fill(&mut self.bytes[at + 4..])?;
        self.bytes[at..at + 4].copy_from_slice(&(n as u32).to_le_bytes());
        self.bytes.truncate(at + 4 + n);
        Ok(())
    }

    /// The message, if there is room for it.
    pub fn finish(mut self, kind: u8, tag: u16) -> Option<Vec<u8>> {
        let len = self.bytes.len();
        self.bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
        self.bytes[4] = kind;
        self.bytes[5..HEADER].copy_from_slice(&tag.to_le_bytes());
        (len <= self.room).then_some(self.bytes)
    }
}

/// Linux's number for an error, which is the protocol's.
pub fn linux(errno: Errno) -> u32 {
    use Errno::*;
    match errno {
        EPERM => 1,
        ENOENT => 2,
        EINTR => 4,
        ENXIO => 6,
        EBADF => 9,
        EAGAIN => 11,
        ENOMEM => 12,
        EACCES => 13,
        EBUSY => 16,
        EEXIST => 17,
        EXDEV => 18,
        ENODEV => 19,
        ENOTDIR => 20,
        EISDIR => 21,
        EINVAL => 22,
        ENFILE => 23,
        EMFILE => 24,
        ENOTTY => 25,
        ETXTBSY => 26,
        EFBIG => 27,
        ENOSPC => 28,
        ESPIPE => 29,
        EROFS => 30,
        EMLINK => 31,
        EPIPE => 32,
        ERANGE => 34,
        EDEADLK => 35,
        ENAMETOOLONG => 36,
        ENOLCK => 37,
        ENOSYS => 38,
        ENOTEMPTY => 39,
        ELOOP => 40,
        EPROTO => 71,
        EOVERFLOW => 75,
        EMSGSIZE => 90,
        Errno::EOPNOTSUPP => 95,
        ESTALE => 116,
        EDQUOT => 122,
        // What capability mode says.
        #[cfg(target_os = "freebsd")]
        ENOTCAPABLE | ECAPMODE => 1,
        _ => 5,
    }
}
