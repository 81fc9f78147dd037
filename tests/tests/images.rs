//! Images that something is wrong with, through the program: one line that names the file and the reason, or an error
//! of the device, and the image stays as it was.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use machine_tests::{Ended, Run, Scratch, probe, program, run, skip};

const MIB: usize = 1 << 20;

fn image(words: &[&str]) -> Ended {
    run(&[&["image"], words].concat(), 60)
}

fn done(ended: &Ended) {
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""), "{}", ended.console);
}

/// A machine with this disk.
fn machine(disk: &str, more: &[&str]) -> Ended {
    let (kernel, disk) = (probe(), format!("disk.0.path={disk}"));
    run(&[&["--kernel", &kernel, "--args", "poweroff", "-o", "memory=64M", "-o", &disk][..], more].concat(), 60)
}

fn refused(ended: &Ended, path: &str, says: &str) {
    assert_eq!((ended.status, ended.stderr.trim_end().lines().count()), (4, 1), "{path}: {}", ended.stderr);
    assert!(ended.stderr.contains(path), "{}", ended.stderr);
    assert!(ended.stderr.contains(says), "no {says:?} in {}", ended.stderr);
}

fn pattern() -> Vec<u8> {
    (0..MIB as u32).map(|n| (n.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect()
}

fn u64_at(bytes: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(bytes[at as usize..at as usize + 8].try_into().expect("eight bytes"))
}

#[test]
fn what_is_no_image_is_refused_for_what_it_is() {
    let scratch = Scratch::new("no-image");
    let (empty, pipe, secret) = (scratch.write("empty", ""), scratch.path("pipe"), scratch.path("secret"));
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|status| status.success()));
    let folder = scratch.path("");
    let cases = [
        (empty.as_str(), "it is empty"),
        (&pipe, "a FIFO"),
        (&folder, "a directory"),
        ("/nowhere/disk", "/nowhere/disk"),
        ("/dev/null", "not a disk"),
    ];
    // Outside of a configuration nobody has looked before.
    let plainly = |says: &'static str| match says {
        "a FIFO" => "a named pipe",
        says if says.starts_with("/nowhere") => "No such file",
        says => says,
    };
    for (path, says) in cases {
        refused(&machine(path, &[]), path, says);
        refused(&machine(path, &["-o", "disk.0.readonly=true"]), path, says);
        refused(&machine(path, &["-o", "disk.0.snapshot=true"]), path, says);
        if path != empty {
            for words in [&["check", path][..], &["info", path], &["convert", path, &scratch.path("copy")]] {
                refused(&image(words), path, plainly(says));
            }
        }
    }
    // Nobody is kept from anything as root.
    std::fs::write(&secret, pattern()).expect("a scratch file");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o0)).expect("no permissions");
    let nobody = ["--reuid=65534", "--clear-groups", "--"];
    match Command::new("setpriv").args(nobody).arg("true").status() {
        Ok(status) if status.success() => {}
        _ => return skip("setpriv(1)"),
    }
    let out = Command::new("setpriv").args(nobody).arg(program()).args(["image", "info", &secret]).output();
    let said = String::from_utf8_lossy(&out.expect("the program starts").stderr).into_owned();
    assert!(said.contains(&secret) && said.contains("Permission denied"), "{said}");
}

#[test]
fn a_qcow2_image_that_is_damaged_or_cut_short_is_not_written() {
    let scratch = Scratch::new("damaged");
    let (plain, good, bad) = (scratch.path("plain"), scratch.path("good"), scratch.path("bad"));
    std::fs::write(&plain, pattern()).expect("a scratch file");
    done(&image(&["convert", "-O", "qcow2", &plain, &good]));
    let bytes = std::fs::read(&good).expect("the image");
    let (l1, refs) = (u64_at(&bytes, 40), u64_at(&bytes, 48));
    let offset = |raw: u64| raw & 0x00ff_ffff_ffff_fe00;
    let (l2, block) = (offset(u64_at(&bytes, l1)), u64_at(&bytes, refs));
    let first = u64_at(&bytes, l2);
    let outside = (1 << 63) | 1 << 40;
    // Where, what, what is said, and whether it can be read all the same.
    let cases: [(u64, &[u8], &str, bool); 15] = [
        (4, &9u32.to_be_bytes(), "version 9", false),
        (20, &40u32.to_be_bytes(), "clusters of 2^40", false),
        (24, &u64::MAX.to_be_bytes(), "a disk of", false),
        (36, &u32::MAX.to_be_bytes(), "L1 table", false),
        (40, &(1u64 << 50).to_be_bytes(), "the L1 table lies outside the file", false),
        (40, &(l1 + 512).to_be_bytes(), "begins within a cluster", false),
        (48, &(1u64 << 50).to_be_bytes(), "the refcount table lies outside the file", false),
        (72, &(1u64 << 40).to_be_bytes(), "unknown features", false),
        (l1, &u64::to_be_bytes(outside), "entry 0 of the L1 table", true),
        (l1, &(l1 | 1 << 63).to_be_bytes(), "is where something else is", true),
        (l2, &u64::to_be_bytes(outside), "entry 0 of L2 table 0 lies outside the file", true),
        (l2, &(l2 | 1 << 63).to_be_bytes(), "is where something else is", true),
        (l2 + 8, &first.to_be_bytes(), "is where something else is", true),
        (block, &[0; 16], "refcounts", true),
        (refs, &(1u64 << 40).to_be_bytes(), "refcounts", true),
    ];
    for (at, value, says, readable) in cases {
        let mut damaged = bytes.clone();
        damaged[at as usize..][..value.len()].copy_from_slice(value);
        std::fs::write(&bad, &damaged).expect("a scratch file");
        refused(&machine(&bad, &[]), &bad, says);
        if readable {
            let check = image(&["check", &bad]);
            assert_eq!(check.status, 2, "{says}: {}", check.console);
            assert!(check.console.trim_end().ends_with("damaged"), "{}", check.console);
            assert_eq!(machine(&bad, &["-o", "disk.0.readonly=true"]).status, 1, "{says}");
        } else {
            refused(&image(&["check", &bad]), &bad, says);
            refused(&image(&["info", &bad]), &bad, says);
        }
        assert!(std::fs::read(&bad).expect("the image") == damaged, "{says}: it was written");
        // Either all of it can be read, or there is no copy.
        let (copy, into) = (scratch.path("copy"), ["convert", "--replace", "-O", "raw"]);
        let _ = std::fs::remove_file(&copy);
        let copied = image(&[&into[..], &[&bad, &copy]].concat());
        if copied.status != 0 {
            assert_eq!((copied.status, copied.stderr.trim_end().lines().count()), (4, 1), "{}", copied.stderr);
            assert!(copied.stderr.starts_with(&format!("bhyve-rs: {bad}: ")), "{}", copied.stderr);
            assert!(std::fs::metadata(&copy).is_err(), "{says}: half a copy");
        }
    }
    for part in [2, 16] {
        std::fs::write(&bad, &bytes[..bytes.len() / part]).expect("a scratch file");
        refused(&machine(&bad, &[]), &bad, "outside the file");
    }
    // Refcounts can be put right.
    let mut damaged = bytes.clone();
    damaged[block as usize..][..16].fill(0);
    std::fs::write(&bad, &damaged).expect("a scratch file");
    assert!(image(&["check", "--repair", &bad]).console.contains("repaired"));
    assert_eq!(image(&["check", &bad]).status, 0);
}

#[test]
fn a_backing_file_that_is_missing_or_behind_itself_is_named() {
    let scratch = Scratch::new("behind");
    let (base, middle, top) = (scratch.path("base"), scratch.path("middle"), scratch.path("top"));
    done(&image(&["create", "-f", "qcow2", &base, "1M"]));
    done(&image(&["create", "-b", "base", &middle]));
    done(&image(&["create", "-b", "middle", &top]));
    let _ = std::fs::remove_file(&base);
    refused(&machine(&top, &[]), &top, &format!("backing file {base}: No such file"));
    refused(&image(&["convert", &top, &scratch.path("copy")]), &top, &base);
    // The base becomes the top.
    std::fs::rename(&top, &base).expect("renamed");
    refused(&machine(&middle, &[]), &middle, "the image is behind itself");
    let info = image(&["info", &middle]);
    assert!(info.status == 4 && info.stderr.contains("behind one another"), "{}", info.stderr);
}

#[test]
fn foreign_images_that_are_damaged_are_refused_by_name() {
    let scratch = Scratch::new("foreign");
    let path = scratch.path("disk");
    let header = |magic: &[u8], len: usize| [magic, &vec![0; len - magic.len()]].concat();
    let line = |extent: &str| format!("# Disk DescriptorFile\nparentCID=ffffffff\n{extent}\n").into_bytes();
    let cases = [
        (header(b"KDMV", 4096), "vmdk version 0 is not known"),
        (b"KDMV".to_vec(), "vmdk"),
        (line("RW 8 FLAT \"none.vmdk\" 0"), "extent none.vmdk"),
        (line("RW 8 FLAT \"../base\" 0"), "not in the folder"),
        (line("RW 8 FLAT \"disk\" 0"), "behind itself"),
        (line(""), "no extents"),
        (header(b"conectix", 1024), "vhd: the footer is missing or damaged"),
        (header(b"vhdxfile", MIB), "vhdx: both headers are damaged"),
        (b"vhdxfile".to_vec(), "vhdx"),
    ];
    for (bytes, says) in cases {
        std::fs::write(&path, &bytes).expect("a scratch file");
        for more in [&[][..], &["-o", "disk.0.readonly=true"]] {
            refused(&machine(&path, more), &path, says);
        }
        refused(&image(&["check", &path]), &path, says);
        refused(&image(&["info", &path]), &path, says);
    }
}

#[test]
fn a_snapshot_leaves_nothing_behind_when_its_machine_is_killed() {
    let scratch = Scratch::new("snapshot");
    let (disk, folder) = (scratch.path("disk"), scratch.path("tmp"));
    std::fs::write(&disk, pattern()).expect("a scratch file");
    std::fs::create_dir_all(&folder).expect("a scratch folder");
    let (kernel, disk) = (probe(), format!("disk.0.path={disk}"));
    let words = ["--kernel", &kernel, "--args", "loop", "-o", "memory=64M", "-o", &disk, "-o", "disk.0.snapshot=true"];
    let machine = Command::new(program()).args(words).env("TMPDIR", &folder).stdout(Stdio::piped()).spawn();
    let mut machine = machine.expect("the program starts");
    let mut out = BufReader::new(machine.stdout.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("PROBE loop") {
        line.clear();
        assert!(out.read_line(&mut line).expect("a console") > 0, "it ended");
    }
    let open = std::fs::read_dir(format!("/proc/{}/fd", machine.id())).map(|files| {
        let paths = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        paths.filter(|path| path.starts_with(&folder)).count()
    });
    let left = std::fs::read_dir(&folder).expect("the folder").count();
    machine.kill().and_then(|()| machine.wait()).expect("killed");
    assert_eq!(left, 0, "it has no name even while the machine runs");
    assert_eq!(open.unwrap_or(1), 1, "it is there");
    assert_eq!(std::fs::read_dir(&folder).expect("the folder").count(), 0);
}

#[test]
fn discs_that_cannot_be_booted_are_named_with_the_reason() {
    let scratch = Scratch::new("discs");
    let (data, beyond) = (scratch.path("data.iso"), scratch.path("beyond.iso"));
    let mut disc = vec![0; 20 * 2048];
    std::fs::write(&data, &disc).expect("a scratch file");
    disc[17 * 2048..][..30].copy_from_slice(b"\0CD001\x01EL TORITO SPECIFICATION");
    disc[17 * 2048 + 0x47..][..4].copy_from_slice(&5000u32.to_le_bytes());
    std::fs::write(&beyond, &disc).expect("a scratch file");
    let run_dir = scratch.path("run");
    let toml = format!(
        "name = 'discs'\nmemory = '32M'\n[boot]\norder = ['cd']\n[[cd]]\npath = '{data}'\n[[cd]]\npath = '{beyond}'\n"
    );
    let toml = scratch.write("discs.toml", &toml);
    let machine = Run::start(&["--run-dir", &run_dir, "-c", &toml], 60);
    let mut shown = String::new();
    for _ in 0..1000 {
        shown = run(&["--run-dir", &run_dir, "screenshot", "discs", "--text"], 20).console;
        if shown.contains("try again") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    machine.kill();
    assert!(shown.contains("master: no El Torito boot record"), "{shown}");
    assert!(shown.contains("slave: its boot catalogue is not on the disc"), "{shown}");
}
