//! Disks whose images are on a file system that fails, and then is gone: the guest sees errors of its disks, the user a
//! line for each, and a flush that has failed once is not forgotten.
#![cfg(target_os = "linux")]

use std::ffi::OsStr;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use machine_tests::{Run, Scratch, guest, skip};

const MIB: usize = 1 << 20;
/// Models of disks, and Linux's drivers.
const DISKS: [(&str, &str); 4] =
    [("ide", "ata_piix"), ("ahci", "ahci"), ("nvme", "nvme"), ("virtio-blk", "virtio_blk")];

/// Nothing fails.
const SOUND: u8 = 0;
/// Reads and writes are EIO.
const BAD: u8 = 1;
/// Syncs are.
const SYNC: u8 = 2;

/// A directory of files `disk0` and on; their inode numbers are 2 and on.
struct Failing {
    files: [Mutex<Vec<u8>>; DISKS.len()],
    how: Arc<AtomicU8>,
}

impl Failing {
    fn fails(&self, how: u8) -> bool {
        self.how.load(Ordering::SeqCst) == how
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        let file = u64::from(ino).checked_sub(2).map(|n| self.files[n as usize].lock().unwrap().len() as u64);
        let (kind, perm) = if file.is_some() { (FileType::RegularFile, 0o600) } else { (FileType::Directory, 0o700) };
        let size = file.unwrap_or(0);
        let (nlink, uid, gid, rdev, blksize, flags) = (1, 0, 0, 0, 4096, 0);
        let (atime, mtime, ctime, crtime) = (UNIX_EPOCH, UNIX_EPOCH, UNIX_EPOCH, UNIX_EPOCH);
        let blocks = size / 512;
        FileAttr { ino, size, blocks, atime, mtime, ctime, crtime, kind, perm, nlink, uid, gid, rdev, blksize, flags }
    }
}

impl Filesystem for Failing {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.strip_prefix("disk")?.parse::<u64>().ok());
        match number.filter(|n| *n < DISKS.len() as u64) {
            Some(n) => reply.entry(&Duration::ZERO, &self.attr(INodeNo(n + 2)), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &self.attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // No cache of the host's hides what fails.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        at: u64,
        len: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.fails(BAD) {
            return reply.error(Errno::EIO);
        }
        let file = self.files[u64::from(ino) as usize - 2].lock().unwrap();
        let from = file.len().min(at as usize);
        reply.data(&file[from..file.len().min(from + len as usize)]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        at: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut file = self.files[u64::from(ino) as usize - 2].lock().unwrap();
        match file.get_mut(at as usize..at as usize + data.len()) {
            Some(place) if !self.fails(BAD) => {
                place.copy_from_slice(data);
                reply.written(data.len() as u32);
            }
            _ => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if self.fails(SYNC) { reply.error(Errno::EIO) } else { reply.ok() }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}

#[test]
fn a_disk_that_fails_or_vanishes_is_an_error_for_the_guest_and_a_line_for_the_user() {
    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let scratch = Scratch::new("eio");
    let place = scratch.path("host");
    std::fs::create_dir(&place).expect("a scratch directory");
    let how = Arc::new(AtomicU8::new(SOUND));
    let failing = Failing { files: DISKS.map(|_| Mutex::new(vec![0; 8 * MIB])), how: how.clone() };
    let Ok(session) = fuser::spawn_mount(failing, &place, &Config::default()) else { return skip("fuse(4)") };
    let mut words: Vec<String> = ["--kernel", &kernel, "--initrd", &initrd].map(str::to_owned).to_vec();
    words.extend(["--args", "console=ttyS0 test=errors errors.mib=1 end=poweroff"].map(str::to_owned));
    let disk = |n: usize| format!("{place}/disk{n}");
    for (n, (model, _)) in DISKS.iter().enumerate() {
        words.extend(["-o".to_owned(), format!("disk.{n}.model={model}")]);
        words.extend(["-o".to_owned(), format!("disk.{n}.path={}", disk(n))]);
    }
    let mut machine = Run::start(&words, 900);
    machine.expect("READY");
    let mut all = |state: u8, order: &str, answer: &str| {
        how.store(state, Ordering::SeqCst);
        machine.send(&format!("{order} 0\n"));
        DISKS.iter().for_each(|(_, driver)| machine.expect(&format!("{order} 0 {driver} {answer}")));
    };
    all(SOUND, "write", "ok");
    all(SOUND, "read", "ok");
    all(BAD, "read", "failed");
    all(BAD, "write", "failed");
    all(SOUND, "write", "ok");
    all(SOUND, "read", "ok");
    all(SYNC, "write", "failed");
    // Whether it arrived, nobody can tell any more.
    all(SOUND, "write", "failed");
    // Ends the connection, busy or not.
    let _ = Command::new("umount").args(["-f", &place]).output();
    all(SOUND, "read", "failed");
    drop(session);
    machine.send("end\n");
    let ended = machine.wait();
    assert_eq!((ended.result("errors").0, ended.status), ("pass", 1), "{}", ended.console);
    for n in 0..DISKS.len() {
        let said: Vec<&str> = ended.stderr.lines().filter(|line| line.contains(&disk(n))).collect();
        assert!((3..=6).contains(&said.len()), "{}", ended.stderr);
        assert!(said.iter().all(|line| line.contains("the guest sees an error")), "{}", ended.stderr);
        assert!(said[0].contains("Input/output error"), "{}", said[0]);
    }
}
