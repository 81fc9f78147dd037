//! A client of messages made by hand, against a server on a scratch directory.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use super::wire::{HEADER, kind};
use super::*;

/// A directory with a share in it and a file beside that.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("bhyve-rs-share-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("share")).unwrap();
        fs::create_dir(dir.join("outside")).unwrap();
        fs::write(dir.join("outside/secret"), "not to be seen").unwrap();
        Scratch(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join("share").join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A body of a message.
#[derive(Clone, Default)]
struct Body(Vec<u8>);

impl Body {
    fn u8(mut self, n: u8) -> Body {
        self.0.push(n);
        self
    }
    fn u16(mut self, n: u16) -> Body {
        self.0.extend(n.to_le_bytes());
        self
    }
    fn u32(mut self, n: u32) -> Body {
        self.0.extend(n.to_le_bytes());
        self
    }
    fn u64(mut self, n: u64) -> Body {
        self.0.extend(n.to_le_bytes());
        self
    }
    fn s(self, s: &str) -> Body {
        let mut body = self.u16(s.len() as u16);
        body.0.extend(s.as_bytes());
        body
    }
    fn bytes(mut self, bytes: &[u8]) -> Body {
        self.0.extend(bytes);
        self
    }
}

fn b() -> Body {
    Body::default()
}

fn fid(n: u32) -> Body {
    b().u32(n)
}

fn message(kind: u8, body: &Body) -> Vec<u8> {
    let len = (HEADER + body.0.len()) as u32;
    [&len.to_le_bytes()[..], &[kind, 7, 0], &body.0].concat()
}

const ROOM: usize = 128 << 10;
const ME: u32 = !0;

struct Client {
    server: Server,
}

impl Client {
    fn open(dir: &Scratch, read_only: bool) -> Client {
        let share = Share::open("test", &dir.path(""), read_only).unwrap();
        Client { server: Server::new(share.tree, share.read_only, 16) }
    }

    /// With fid 0 as the root.
    fn new(dir: &Scratch, read_only: bool) -> Client {
        let mut c = Client::open(dir, read_only);
        assert_eq!(c.ask(kind::VERSION, &b().u32(ROOM as u32).s("9P2000.L")).unwrap()[6..], *b"9P2000.L");
        c.ask(kind::ATTACH, &fid(0).u32(!0).s("root").s("").u32(ME)).unwrap();
        c
    }

    /// What comes back, or Linux's number of an error.
    fn ask(&mut self, kind: u8, body: &Body) -> Result<Vec<u8>, u32> {
        let reply = self.server.serve(&message(kind, body), ROOM).expect("there is room");
        assert_eq!(reply[..4], (reply.len() as u32).to_le_bytes());
        assert_eq!(reply[5..7], [7, 0], "the tag");
        match reply[4] {
            7 => Err(u32::from_le_bytes(reply[7..11].try_into().unwrap())),
            said => {
                assert_eq!(said, kind + 1);
                Ok(reply[HEADER..].to_vec())
            }
        }
    }

    /// Walks from the root; how many names there were.
    fn walk(&mut self, to: u32, path: &[&str]) -> Result<usize, u32> {
        let body = path.iter().fold(fid(0).u32(to).u16(path.len() as u16), |body, name| body.s(name));
        self.ask(kind::WALK, &body).map(|reply| usize::from(u16::from_le_bytes([reply[0], reply[1]])))
    }

    fn lopen(&mut self, n: u32, flags: u32) -> Result<Vec<u8>, u32> {
        self.ask(kind::LOPEN, &fid(n).u32(flags))
    }

    /// A new file at a fid that is the root's.
    fn create(&mut self, n: u32, name: &str) -> Result<Vec<u8>, u32> {
        self.walk(n, &[])?;
        self.ask(kind::LCREATE, &fid(n).s(name).u32(2).u32(0o640).u32(ME))
    }

    fn write(&mut self, n: u32, at: u64, text: &str) -> Result<Vec<u8>, u32> {
        self.ask(kind::WRITE, &fid(n).u64(at).u32(text.len() as u32).bytes(text.as_bytes()))
    }

    fn read(&mut self, n: u32, at: u64, count: u32) -> Result<Vec<u8>, u32> {
        self.ask(kind::READ, &fid(n).u64(at).u32(count)).map(|reply| reply[4..].to_vec())
    }

    fn clunk(&mut self, n: u32) {
        self.ask(kind::CLUNK, &fid(n)).unwrap();
    }

    fn size(&mut self, n: u32) -> Result<u64, u32> {
        let reply = self.ask(kind::GETATTR, &fid(n).u64(0x7ff))?;
        Ok(u64::from_le_bytes(reply[49..57].try_into().unwrap()))
    }

    /// The names in an open directory, asked for by so many bytes at a time.
    fn names(&mut self, n: u32, count: u32) -> Vec<String> {
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let reply = self.ask(kind::READDIR, &fid(n).u64(offset).u32(count)).unwrap();
            let mut rest = &reply[4..];
            assert!(rest.len() <= count as usize);
            if rest.is_empty() {
                return names;
            }
            while !rest.is_empty() {
                offset = u64::from_le_bytes(rest[13..21].try_into().unwrap());
                let len = usize::from(u16::from_le_bytes([rest[22], rest[23]]));
                names.push(String::from_utf8(rest[24..24 + len].to_vec()).unwrap());
                rest = &rest[24 + len..];
            }
        }
    }

    fn mkdir(&mut self, n: u32, name: &str) -> Result<Vec<u8>, u32> {
        self.ask(kind::MKDIR, &fid(n).s(name).u32(0o755).u32(ME))
    }

    fn unlink(&mut self, n: u32, name: &str, flags: u32) -> Result<Vec<u8>, u32> {
        self.ask(kind::UNLINKAT, &fid(n).s(name).u32(flags))
    }
}

const ENOENT: u32 = 2;
const EBADF: u32 = 9;
const EROFS: u32 = 30;
const EPROTO: u32 = 71;

#[test]
fn a_client_agrees_on_messages_before_anything_else() {
    let dir = Scratch::new("version");
    let mut c = Client::open(&dir, false);
    assert_eq!(c.ask(kind::ATTACH, &fid(0).u32(!0).s("").s("").u32(0)), Err(EPROTO));
    let said = c.ask(kind::VERSION, &b().u32(8192).s("9P2000.u")).unwrap();
    assert_eq!(said[6..], *b"unknown");
    let said = c.ask(kind::VERSION, &b().u32(1 << 30).s("9P2000.L")).unwrap();
    assert_eq!((&said[..4], &said[6..]), (&(512u32 << 10).to_le_bytes()[..], &b"9P2000.L"[..]));
    c.ask(kind::ATTACH, &fid(0).u32(!0).s("").s("").u32(0)).unwrap();
    assert_eq!(c.walk(1, &[]), Ok(0));
    // A new session has no fids.
    c.ask(kind::VERSION, &b().u32(8192).s("9P2000.L")).unwrap();
    assert_eq!(c.walk(1, &[]), Err(EBADF));
    assert_eq!(c.ask(kind::XATTRWALK, &fid(0)), Err(95));
    assert_eq!(c.ask(200, &b()), Err(95));
}

#[test]
fn no_path_grows_past_its_bound_by_a_rename() {
    let dir = Scratch::new("deep");
    let mut c = Client::new(&dir, false);
    let name = "n".repeat(200);
    let mut bottoms = Vec::new();
    for (at, top) in [(1, "a"), (2, "b")] {
        c.ask(kind::MKDIR, &fid(0).s(top).u32(0o755).u32(ME)).unwrap();
        c.walk(at, &[top]).unwrap();
        let mut path = vec![top.to_owned()];
        for _ in 0..12 {
            c.ask(kind::MKDIR, &fid(at).s(&name).u32(0o755).u32(ME)).unwrap();
            c.ask(kind::WALK, &fid(at).u32(at).u16(1).s(&name)).unwrap();
            path.push(name.clone());
        }
        bottoms.push(path.join("/"));
    }
    // To what is far below there would be no way, and nothing is done.
    assert_eq!(c.ask(kind::RENAMEAT, &fid(0).s("a").u32(2).s("a")), Err(36));
    assert!(bottoms.iter().all(|path| dir.path(path).is_dir()));
    c.ask(kind::CLUNK, &fid(1)).unwrap();
    c.ask(kind::RENAMEAT, &fid(0).s("a").u32(2).s("a")).unwrap();
    assert!(dir.path(&bottoms[1]).join("a").is_dir() && !dir.path("a").exists());
}

#[test]
fn files_are_made_written_renamed_and_removed_while_they_are_open() {
    let dir = Scratch::new("files");
    let mut c = Client::new(&dir, false);
    c.create(1, "new").unwrap();
    assert_eq!(c.create(2, "new").map(drop), Ok(()), "without O_EXCL it is opened");
    assert_eq!(c.write(1, 3, "text"), Ok(vec![4, 0, 0, 0]));
    assert_eq!(c.read(1, 0, 100), Ok(b"\0\0\0text".to_vec()));
    assert_eq!(fs::metadata(dir.path("new")).unwrap().permissions().mode() & 0o7777, 0o640);
    // A directory moves, and what is in it with all fids.
    c.mkdir(0, "d").unwrap();
    c.ask(kind::RENAMEAT, &fid(0).s("new").u32(0).s("d/e")).unwrap_err();
    c.walk(3, &["d"]).unwrap();
    c.ask(kind::RENAMEAT, &fid(0).s("new").u32(3).s("old")).unwrap();
    c.ask(kind::RENAMEAT, &fid(0).s("d").u32(0).s("dir")).unwrap();
    c.walk(4, &["dir", "old"]).unwrap();
    c.write(1, 0, "abc").unwrap();
    assert_eq!((c.size(4), dir.text("dir/old")), (Ok(7), "abctext".to_owned()));
    c.mkdir(3, "below").unwrap();
    assert!(dir.path("dir/below").is_dir());
    // Truncated by its name and by its file, made older, given other permissions.
    let attributes = |n: u32, valid: u32, mode: u32, size: u64| {
        fid(n).u32(valid).u32(mode).u32(0).u32(0).u64(size).u64(5).u64(6).u64(1000).u64(7)
    };
    c.ask(kind::SETATTR, &attributes(4, 1 | 8 | 0x20 | 0x100, 0o604, 5)).unwrap();
    let now = fs::metadata(dir.path("dir/old")).unwrap();
    assert_eq!((now.len(), now.mode() & 0o7777, now.mtime(), now.mtime_nsec()), (5, 0o604, 1000, 7));
    c.ask(kind::SETATTR, &attributes(1, 8, 0, 2)).unwrap();
    assert_eq!(dir.text("dir/old"), "ab");
    // Without a name it goes on for those who have it open, and by them for others.
    c.unlink(3, "old", 0).unwrap();
    c.write(1, 2, "cd").unwrap();
    assert_eq!((c.read(2, 0, 9), c.size(4)), (Ok(b"abcd".to_vec()), Ok(4)));
    c.walk(5, &["dir", "old"]).map(|n| assert_eq!(n, 1)).unwrap();
    assert_eq!(c.size(5), Err(EBADF), "a walk that stops on its way makes no fid");
    assert_eq!(c.walk(5, &["old"]), Err(ENOENT));
    c.unlink(3, "below", 0).unwrap_err();
    c.unlink(3, "below", 0x200).unwrap();
    // Tremove ends the fid, whether it works or not.
    assert_eq!(c.ask(kind::REMOVE, &fid(3)), Ok(vec![]));
    assert_eq!(c.ask(kind::REMOVE, &fid(3)), Err(EBADF));
    assert_eq!(fs::read_dir(dir.path("")).unwrap().count(), 0);
}

#[test]
fn links_and_special_files_are_the_guests() {
    let dir = Scratch::new("links");
    let mut c = Client::new(&dir, false);
    c.create(1, "file").unwrap();
    c.ask(kind::SYMLINK, &fid(0).s("link").s("/etc/passwd").u32(ME)).unwrap();
    c.walk(2, &["link"]).unwrap();
    assert_eq!(c.ask(kind::READLINK, &fid(2)), Ok([&11u16.to_le_bytes()[..], b"/etc/passwd"].concat()));
    c.lopen(2, 0).unwrap_err();
    c.ask(kind::LINK, &fid(0).u32(1).s("hard")).unwrap();
    assert_eq!(fs::metadata(dir.path("file")).unwrap().nlink(), 2);
    let mknod = |mode: u32, name: &str| fid(0).s(name).u32(mode | 0o600).u32(1).u32(3).u32(ME);
    c.ask(kind::MKNOD, &mknod(0o010000, "fifo")).unwrap();
    c.ask(kind::MKNOD, &mknod(0o140000, "socket")).unwrap();
    assert_eq!(c.ask(kind::MKNOD, &mknod(0o020000, "null")), Err(1));
    assert_eq!(c.ask(kind::MKNOD, &mknod(0o060000, "disk")), Err(1));
    // Nobody waits for a FIFO's other end.
    for name in ["fifo", "socket"] {
        c.walk(3, &[name]).unwrap();
        assert_eq!(c.lopen(3, 0), Err(6), "{name}");
        c.clunk(3);
        c.walk(3, &[]).unwrap();
        assert_eq!(c.ask(kind::LCREATE, &fid(3).s(name).u32(1).u32(0).u32(ME)), Err(6), "{name}");
        c.clunk(3);
    }
}

#[test]
fn directories_are_read_from_any_place_on() {
    let dir = Scratch::new("readdir");
    let mut expected: Vec<String> = (0..2000).map(|n| format!("file-{n}")).collect();
    expected.iter().for_each(|name| fs::write(dir.path(name), "").unwrap());
    expected.extend([".".to_owned(), "..".to_owned()]);
    expected.sort();
    let mut c = Client::new(&dir, true);
    c.walk(1, &[]).unwrap();
    c.lopen(1, 0o200000).unwrap();
    for count in [100, 8000, 1 << 20] {
        let mut names = c.names(1, count);
        names.sort();
        assert_eq!(names, expected, "{count}");
    }
    assert_eq!(c.ask(kind::READDIR, &fid(1).u64(0).u32(20)), Err(22), "no entry has room");
    assert_eq!(c.read(1, 0, 10), Err(21));
    let statfs = c.ask(kind::STATFS, &fid(1)).unwrap();
    assert_eq!(statfs[..4], 0x0102_1997u32.to_le_bytes());
}

#[test]
fn nothing_outside_is_reached() {
    let dir = Scratch::new("escape");
    symlink("../outside", dir.path("out")).unwrap();
    symlink("../outside/secret", dir.path("secret")).unwrap();
    symlink("/", dir.path("root")).unwrap();
    fs::create_dir(dir.path("d")).unwrap();
    fs::write(dir.path("plain"), "mine").unwrap();
    let mut c = Client::new(&dir, false);
    let root = c.ask(kind::GETATTR, &fid(0).u64(0)).unwrap()[8..21].to_vec();
    // Above the root is the root.
    c.walk(1, &["..", "..", "d", "..", ".."]).unwrap();
    assert_eq!(c.ask(kind::GETATTR, &fid(1).u64(0)).unwrap()[8..21], root);
    // A link is no directory.
    for path in [["out", "secret"], ["root", "etc"]] {
        assert_eq!(c.walk(2, &path), Ok(1), "{path:?}");
    }
    for name in ["../outside/secret", "/etc/passwd", "d/../../outside", "", "a\0b"] {
        c.walk(2, &[name]).unwrap_err();
        c.mkdir(0, name).unwrap_err();
        c.unlink(0, name, 0).unwrap_err();
        c.ask(kind::RENAMEAT, &fid(0).s("plain").u32(0).s(name)).unwrap_err();
        c.ask(kind::RENAMEAT, &fid(0).s(name).u32(0).s("stolen")).unwrap_err();
        c.ask(kind::SYMLINK, &fid(0).s(name).s("x").u32(ME)).unwrap_err();
    }
    for name in ["..", "."] {
        c.mkdir(0, name).unwrap_err();
        c.unlink(0, name, 0x200).unwrap_err();
        c.ask(kind::RENAMEAT, &fid(0).s("plain").u32(0).s(name)).unwrap_err();
    }
    // Neither opened nor changed through a link, and files are not made through one.
    c.walk(3, &["secret"]).unwrap();
    for flags in [0, 1, 2, 0o1001] {
        c.lopen(3, flags).unwrap_err();
    }
    let change = |valid: u32| fid(3).u32(valid).u32(0o777).u32(1).u32(1).u64(0).u64(0).u64(0).u64(0).u64(0);
    for valid in [1, 8] {
        c.ask(kind::SETATTR, &change(valid)).unwrap_err();
    }
    c.ask(kind::SETATTR, &change(0x10 | 0x20 | 0x80 | 0x100)).unwrap();
    c.walk(4, &[]).unwrap();
    c.ask(kind::LCREATE, &fid(4).s("secret").u32(0o1001).u32(0o600).u32(ME)).unwrap_err();
    let secret = fs::metadata(dir.0.join("outside/secret")).unwrap();
    assert_eq!((secret.len(), secret.mode() & 0o777 == 0o777, secret.mtime() == 0), (14, false, false));
    // Somebody puts a link into the place of a directory that has a fid.
    c.walk(5, &["d"]).unwrap();
    fs::remove_dir(dir.path("d")).unwrap();
    symlink("../outside", dir.path("d")).unwrap();
    c.mkdir(5, "made").unwrap_err();
    c.ask(kind::LCREATE, &fid(5).s("made").u32(1).u32(0o600).u32(ME)).unwrap_err();
    c.unlink(5, "secret", 0).unwrap_err();
    assert_eq!(fs::read_dir(dir.0.join("outside")).unwrap().count(), 1);
    // The root itself stays where it is.
    c.ask(kind::REMOVE, &fid(0)).unwrap_err();
    assert!(dir.path("").is_dir());
}

#[test]
fn a_share_that_is_only_read_refuses_every_change() {
    let dir = Scratch::new("readonly");
    fs::write(dir.path("file"), "text").unwrap();
    let mut c = Client::new(&dir, true);
    c.walk(1, &["file"]).unwrap();
    c.walk(2, &["file"]).unwrap();
    c.walk(3, &[]).unwrap();
    for flags in [1, 2, 0o1000, 0o1002] {
        assert_eq!(c.lopen(1, flags), Err(EROFS));
    }
    c.lopen(1, 0).unwrap();
    assert_eq!(c.read(1, 0, 10), Ok(b"text".to_vec()));
    let attributes = fid(2).u32(1).u32(0).u32(0).u32(0).u64(0).u64(0).u64(0).u64(0).u64(0);
    let changes = [
        (kind::WRITE, fid(1).u64(0).u32(1).bytes(b"x")),
        (kind::LCREATE, fid(3).s("new").u32(2).u32(0o600).u32(0)),
        (kind::CREATE, fid(3).s("new").u32(0o600).u8(1).s("")),
        (kind::MKDIR, fid(3).s("new").u32(0o700).u32(0)),
        (kind::SYMLINK, fid(3).s("new").s("to").u32(0)),
        (kind::MKNOD, fid(3).s("new").u32(0o010600).u32(0).u32(0).u32(0)),
        (kind::LINK, fid(3).u32(2).s("new")),
        (kind::RENAME, fid(2).u32(3).s("new")),
        (kind::RENAMEAT, fid(3).s("file").u32(3).s("new")),
        (kind::UNLINKAT, fid(3).s("file").u32(0)),
        (kind::SETATTR, attributes),
        (kind::REMOVE, fid(2)),
    ];
    for (what, body) in changes {
        assert_eq!(c.ask(what, &body), Err(EROFS), "{what}");
    }
    assert_eq!((fs::read_dir(dir.path("")).unwrap().count(), dir.text("file")), (1, "text".to_owned()));
}

#[test]
fn what_freebsds_client_says_of_9p2000_u_is_understood() {
    let dir = Scratch::new("freebsd");
    let mut c = Client::new(&dir, false);
    let mut make = |n: u32, name: &str, perm: u32, mode: u8, extension: &str| {
        c.walk(n, &[]).unwrap();
        c.ask(kind::CREATE, &fid(n).s(name).u32(perm).u8(mode).s(extension))
    };
    make(1, "file", 0o644, 2, "").unwrap();
    make(2, "dir", 1 << 31 | 0o750, 0, "").unwrap();
    make(3, "link", 1 << 25 | 0o777, 0, "file").unwrap();
    make(4, "fifo", 1 << 21 | 0o600, 0, "").unwrap();
    assert_eq!(make(5, "device", 1 << 23 | 0o600, 0, "c 1 3"), Err(1));
    assert_eq!(make(6, "file", 0o644, 2, ""), Err(17));
    c.write(1, 0, "x").unwrap();
    c.mkdir(2, "below").unwrap();
    assert_eq!((dir.text("file"), fs::read_link(dir.path("link")).unwrap()), ("x".to_owned(), "file".into()));
    assert_eq!(fs::metadata(dir.path("dir")).unwrap().mode() & 0o7777, 0o750);
    assert!(dir.path("dir/below").is_dir());
}

#[test]
fn open_files_fids_and_paths_are_capped() {
    let dir = Scratch::new("caps");
    fs::write(dir.path("file"), "").unwrap();
    let mut c = Client::new(&dir, false);
    for n in 1..=16 {
        c.walk(n, &["file"]).unwrap();
        c.lopen(n, 0).unwrap();
    }
    c.walk(17, &["file"]).unwrap();
    assert_eq!(c.lopen(17, 0), Err(24));
    c.clunk(3);
    c.lopen(17, 0).unwrap();
    assert_eq!(c.walk(18, &["x"; 17]), Err(22));
    assert_eq!(c.mkdir(0, &"n".repeat(256)), Err(36));
    // A path grows to 4096 bytes.
    let name = "n".repeat(255);
    c.walk(20, &[]).unwrap();
    let deep = (0..20).find_map(|_| {
        let made = c.mkdir(20, &name).and_then(|_| c.ask(kind::WALK, &fid(20).u32(20).u16(1).s(&name)));
        made.err()
    });
    assert_eq!(deep, Some(36));
    let mut n = 100;
    let refused = loop {
        if let Err(errno) = c.ask(kind::WALK, &fid(20).u32(n).u16(0)) {
            break errno;
        }
        n += 1;
    };
    assert_eq!(refused, 23);
    assert!((1000..20_000).contains(&n), "the bytes of paths are what is capped: {n}");
}

#[test]
fn a_session_goes_on_where_it_was_saved() {
    let dir = Scratch::new("session");
    let mut c = Client::new(&dir, false);
    for (n, name) in [(1, "kept"), (2, "removed"), (3, "replaced")] {
        c.create(n, name).unwrap();
        c.write(n, 0, name).unwrap();
    }
    c.walk(4, &["kept"]).unwrap();
    c.unlink(0, "removed", 0).unwrap();
    let (saved, lost) = c.server.save();
    assert_eq!(lost, 1);
    fs::remove_file(dir.path("replaced")).unwrap();
    // Not a number that has just become free.
    (0..3).for_each(|n| fs::write(dir.path(&format!("other{n}")), "").unwrap());
    fs::write(dir.path("replaced"), "another").unwrap();
    let mut other = Client::open(&dir, false);
    let lost = other.server.load(saved.clone()).unwrap();
    assert!(lost >= 1);
    assert_eq!(other.server.save().0["message"], saved["message"]);
    other.write(1, 0, "KE").unwrap();
    assert_eq!((other.read(1, 0, 9), other.size(4)), (Ok(b"KEpt".to_vec()), Ok(4)));
    assert_eq!(other.read(2, 0, 9), Err(116), "a stale file");
    other.clunk(2);
    // What nobody has saved.
    for path in ["../outside", "a/b", "", "."] {
        let fids = serde_json::json!([{ "fid": 1, "path": [path.as_bytes()], "uid": 0, "open": null }]);
        other.server.load(serde_json::json!({ "message": 8192, "fids": fids })).unwrap_err();
    }
    other.server.load(serde_json::json!({ "message": 11, "fids": [] })).unwrap_err();
    other.server.load(serde_json::json!(7)).unwrap_err();
}

/// Numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }
}

#[test]
fn hostile_frames_end_in_replies_and_stay_inside() {
    let cases: usize = std::env::var("BHYVE_RS_FUZZ_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(50);
    let dir = Scratch::new("fuzz");
    symlink("../outside", dir.path("out")).unwrap();
    let mut r = Numbers(1);
    let mut answered = 0;
    for _ in 0..cases {
        let mut c = Client::new(&dir, false);
        for _ in 0..400 {
            let kinds = [8, 12, 14, 16, 18, 20, 22, 24, 26, 30, 32, 40, 50, 52, 54, 70, 72, 74, 76, 104, 108, 110];
            let more = [110, 110, 110, 114, 116, 118, 120, 122];
            let all = [&kinds[..], &more].concat();
            let kind = if r.below(200) == 0 { r.next() as u8 } else { all[r.below(all.len())] };
            let mut body = b();
            // Fids first, then names and numbers in the order in which most messages have them.
            for _ in 0..r.below(9) {
                body = match r.below(6) {
                    0 | 1 => body.u32(r.below(6) as u32),
                    2 | 3 => body.s(["a", "b", "..", "out", "secret", ".", "a/b", ""][r.below(8)]),
                    4 => body.u16(r.below(3) as u16),
                    _ => body.u64([0, 1, 0o777, u64::MAX, r.next()][r.below(5)]),
                };
            }
            let mut bytes = message(kind, &body);
            if r.below(10) == 0 {
                let at = r.below(bytes.len());
                bytes[at] = r.next() as u8;
            }
            if r.below(20) == 0 {
                bytes.truncate(r.below(bytes.len()));
            }
            let room = [0, 6, 10, 11, 100, ROOM][r.below(6)];
            if let Some(reply) = c.server.serve(&bytes, room) {
                assert!(reply.len() <= room && reply[..4] == (reply.len() as u32).to_le_bytes());
                answered += usize::from(reply[4] != 7);
            }
            let reset = r.below(300) == 0;
            if reset {
                c = Client::new(&dir, false);
            }
        }
    }
    assert!(answered > cases, "{answered} were no errors");
    let outside: Vec<_> = fs::read_dir(dir.0.join("outside")).unwrap().collect();
    assert_eq!(
        (outside.len(), fs::read_to_string(dir.0.join("outside/secret")).unwrap().as_str()),
        (1, "not to be seen")
    );
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 2);
}

#[test]
fn the_thread_answers_in_order_and_is_kept_to_its_directory() {
    let dir = Scratch::new("thread");
    let root = Share::open("test", &dir.path(""), false).unwrap();
    std::thread::spawn(move || {
        let kept = sandbox::keep_to(root.tree.root(), false);
        if kept.is_err() || cfg!(not(target_os = "linux")) {
            return eprintln!("skipped: this kernel keeps no thread to a directory");
        }
        fs::write(dir.path("inside"), "").unwrap();
        fs::rename(dir.path("inside"), dir.path("moved")).unwrap();
        fs::read(dir.0.join("outside/secret")).unwrap_err();
        fs::write(dir.0.join("outside/new"), "").unwrap_err();
        fs::rename(dir.path("moved"), dir.0.join("outside/moved")).unwrap_err();
    })
    .join()
    .unwrap();
}
