//! Directories of the host under Linux's 9p. What the guest says it made, the host looks for.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use machine_tests::{Scratch, bhyve_rs, boot, boot_words, guest, run, stream};

/// A scratch directory with two shares, and the settings that bring them to a guest.
fn shares(name: &str) -> (Scratch, Vec<String>) {
    let dir = Scratch::new(name);
    for place in ["files", "docs", "outside"] {
        fs::create_dir(dir.path(place)).unwrap();
    }
    dir.write("files/from-host", "of the host\n");
    dir.write("docs/text", "to be read\n");
    dir.write("outside/secret", "not to be seen\n");
    symlink("../outside", dir.path("files/out")).unwrap();
    symlink("../outside/secret", dir.path("files/secret")).unwrap();
    let settings = vec![
        "share.0.name=files".to_owned(),
        format!("share.0.path={}", dir.path("files")),
        "share.1.name=docs".to_owned(),
        format!("share.1.path={}", dir.path("docs")),
        "share.1.readonly=true".to_owned(),
    ];
    (dir, settings)
}

/// What the workload leaves behind.
fn look(dir: &Scratch, mib: usize, files: usize) {
    assert!(fs::read(dir.path("files/tree/big")).unwrap() == stream(mib << 20), "the large file differs");
    assert_eq!(fs::read_to_string(dir.path("files/tree/a/b/c/deep")).unwrap(), "deep\n");
    assert_eq!(fs::read_link(dir.path("files/tree/link")).unwrap().to_str(), Some("a/b/c/deep"));
    assert_eq!(fs::read_link(dir.path("files/top")).unwrap().to_str(), Some("/"));
    assert_eq!(fs::read_dir(dir.path("files/many")).unwrap().count(), files / 2);
    let file = fs::metadata(dir.path("files/file")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.nlink(), file.len()), (0o640, 2, 7));
    assert!(!fs::exists(dir.path("files/disk")).unwrap() && !fs::exists(dir.path("files/place")).unwrap());
    assert_eq!(fs::read_dir(dir.path("docs")).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(dir.path("docs/text")).unwrap(), "to be read\n");
    assert_eq!(fs::read_dir(dir.path("outside")).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(dir.path("outside/secret")).unwrap(), "not to be seen\n");
}

#[test]
fn linux_does_all_its_work_in_a_share_and_finds_it_when_it_starts_again() {
    let (dir, settings) = shares("share");
    let Some(first) = boot("amd64", &settings, "test=share end=poweroff", 900) else { return };
    assert_eq!(first.result("share").0, "pass", "{}", first.console);
    look(&dir, 64, 2000);
    let again = boot("amd64", &settings, "test=share end=poweroff", 900).expect("it was there");
    assert_eq!(again.result("share").0, "pass", "{}", again.console);
    assert!(again.result("share").1.contains("kept"), "{}", again.console);
}

#[test]
#[ignore = "part of tests/matrix"]
fn a_guest_that_reboots_mounts_its_shares_again() {
    let (dir, _) = shares("share-reboot");
    let (Some(kernel), Some(initrd)) = (guest("linux-686/vmlinuz"), guest("initramfs-i386.cpio")) else { return };
    let args = "console=ttyS0 test=share share.mib=1 share.files=20 end=reboot";
    let (shared, docs) = (dir.path("files"), dir.path("docs"));
    let toml = dir.write(
        "twice.toml",
        &format!(
            "name = 'twice'\n[boot]\nkernel = '{kernel}'\ninitrd = '{initrd}'\nargs = '{args}'\n[[serial]]\n\
             backend = 'console'\n[[share]]\nname = 'files'\npath = '{shared}'\n[[share]]\nname = 'docs'\npath = '{docs}'\n\
             readonly = true\nslot = 9\n"
        ),
    );
    let started = bhyve_rs(&dir, &["start", "-c", &toml]);
    assert_eq!((started.status, started.stderr.as_str()), (0, ""));
    let kept = run(&["--run-dir", &dir.path("run"), "wait", "twice", "--for", "kept", "--timeout", "500"], 520);
    bhyve_rs(&dir, &["kill", "twice"]);
    assert_eq!(kept.status, 0, "{}", kept.stderr);
    look(&dir, 1, 20);
}

#[test]
fn a_machine_that_is_saved_again_and_again_while_it_works_in_a_share_goes_on() {
    /// Instructions before the end at which it is saved first, and between that and the next time.
    const BEFORE: u64 = 900_000_000;
    const STEP: u64 = 90_000_000;
    let Some(words) = boot_words("686", "test=share share.mib=4 share.files=40 end=poweroff") else { return };
    let with = |more: &[String]| {
        let settings = more.iter().flat_map(|s| ["-o".to_owned(), s.clone()]);
        words.iter().cloned().chain(settings).collect::<Vec<String>>()
    };
    let (_dir, settings) = shares("share-whole");
    let whole = run(&with(&settings), 900);
    assert_eq!(whole.result("share").0, "pass", "{}", whole.console);

    let (dir, settings) = shares("share-saved");
    let (words, state) = (with(&settings), dir.path("state"));
    let mut until = whole.instructions() - BEFORE;
    let to = |until: u64| ["--until".to_owned(), until.to_string(), "--save".to_owned(), state.clone()];
    let mut part = run(&[&words[..], &to(until)].concat(), 900);
    let (mut console, mut open) = (part.console, 0);
    while !console.contains("RESULT init") {
        assert!(until < 2 * whole.instructions(), "{console}{}", part.stderr);
        // By now it is not only mounted.
        let text = String::from_utf8_lossy(&fs::read(&state).expect("the state")).into_owned();
        open += usize::from(text.contains("\"open\":["));
        until += STEP;
        let restore = ["--restore".to_owned(), state.clone()];
        part = run(&[&words[..], &restore, &to(until)].concat(), 300);
        console += &part.console;
    }
    assert!(console.contains("RESULT share pass"), "{console}{}", part.stderr);
    assert!(open > 0, "no file was open when it was saved");
    look(&dir, 4, 40);
}
