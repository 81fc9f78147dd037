//! Media that are changed under Linux, in drives that it has open and has not: it sees what is there now.

use std::process::{Command, Stdio};

use machine_tests::{Ended, Run, Scratch, guest, run};

/// A medium in a file: its path, and its MD5.
struct Medium(String, String);

impl Medium {
    fn new(scratch: &Scratch, name: &str, kib: usize, fill: u8) -> Medium {
        let path = scratch.path(name);
        let bytes: Vec<u8> = (0..kib << 10).map(|n| fill ^ (n >> 9) as u8).collect();
        std::fs::write(&path, bytes).expect("a scratch file");
        let file = std::fs::File::open(&path).expect("the file");
        let out = Command::new("md5sum").stdin(Stdio::from(file)).output().expect("md5sum(1)");
        Medium(path, String::from_utf8_lossy(&out.stdout[..32]).into_owned())
    }
}

#[test]
#[ignore = "part of tests/matrix"]
fn linux_sees_each_medium_that_is_put_into_a_drive() {
    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let scratch = Scratch::new("changes");
    let discs =
        [("disc-a", 700, 0x11), ("disc-b", 1300, 0x22)].map(|(n, kib, fill)| Medium::new(&scratch, n, kib, fill));
    let diskettes = [("floppy-a", 1440, 0x33), ("floppy-b", 1440, 0x44), ("floppy-c", 720, 0x55)]
        .map(|(n, kib, fill)| Medium::new(&scratch, n, kib, fill));
    let run_dir = scratch.path("run");
    let settings = [
        "name=changes".to_owned(),
        format!("cd.0.path={}", discs[0].0),
        format!("cd.1.path={}", discs[0].0),
        "cd.1.model=ahci".to_owned(),
        format!("floppy.0.path={}", diskettes[0].0),
    ];
    let mut words = ["--run-dir", &run_dir, "--kernel", &kernel, "--initrd", &initrd].map(str::to_owned).to_vec();
    words.extend(settings.into_iter().flat_map(|s| ["-o".to_owned(), s]));
    words.extend(["--args", "console=ttyS0 test=media end=poweroff"].map(str::to_owned));
    let mut machine = Run::start(&words, 900);
    machine.expect("READY");
    let order = |words: &[&str]| -> Ended { run(&[&["--run-dir", &run_dir], words].concat(), 60) };
    let done = |words: &[&str]| {
        let ended = order(words);
        assert_eq!((ended.status, ended.stderr.as_str()), (0, ""), "{words:?}");
    };
    let insert = |drive: &str, medium: &Medium| done(&["insert", "changes", "-d", drive, "-i", &medium.0]);
    let mut sees = |orders: &str, drive: &str, medium: Option<&Medium>| {
        machine.send(&format!("{orders}sum {drive}\n"));
        machine.expect(&format!("sum {drive} {}", medium.map_or("none", |m| &m.1)));
    };

    for (ours, its) in [("cd0", "sr0"), ("cd1", "sr1")] {
        sees("", its, Some(&discs[0]));
        insert(ours, &discs[1]);
        sees("", its, Some(&discs[1]));
        done(&["eject", "changes", "-d", ours]);
        sees("", its, None);
        insert(ours, &discs[0]);
        // Linux keeps in the drive what somebody has open.
        sees(&format!("hold {its}\n"), its, Some(&discs[0]));
        let refused = order(&["insert", "changes", "-d", ours, "-i", &discs[1].0]);
        assert_eq!(refused.status, 4);
        assert!(refused.stderr.contains(&format!("the guest has locked {ours}; --force")), "{}", refused.stderr);
        done(&["insert", "changes", "-d", ours, "-i", &discs[1].0, "--force"]);
        sees("", its, Some(&discs[1]));
        sees(&format!("free {its}\n"), its, Some(&discs[1]));
        done(&["eject", "changes", "-d", ours]);
    }
    sees("", "fd0", Some(&diskettes[0]));
    for medium in &diskettes[1..] {
        insert("floppy0", medium);
        sees("", "fd0", Some(medium));
    }
    done(&["eject", "changes", "-d", "floppy0"]);
    sees("", "fd0", None);
    insert("floppy0", &diskettes[0]);
    sees("hold fd0\n", "fd0", Some(&diskettes[0]));
    insert("floppy0", &diskettes[1]);
    sees("free fd0\n", "fd0", Some(&diskettes[1]));
    machine.send("end\n");
    let ended = machine.wait();
    assert_eq!((ended.result("media").0, ended.status), ("pass", 1), "{}", ended.console);
    assert_eq!(ended.stderr, "");
}
