//! The first minutes: a new machine's file, what the host lacks, the names of other tools, manual and completion.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use machine_tests::{Scratch, bhyve_rs, program, root, skip};

fn there(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", program]).stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success()) || {
        skip(program);
        false
    }
}

#[test]
fn a_new_machine_passes_the_check_and_nothing_is_replaced() {
    let dir = Scratch::new("new");
    let iso = dir.write("install.iso", "not much of one");
    let here = dir.path("");
    let new = |words: &[&str]| bhyve_rs(&dir, &[&["new", "--dir", &here], words].concat());
    let made = new(&["fresh", "--guest", "openbsd", "--iso", &iso, "--disk", "1G", "--memory", "64M", "--cpus", "2"]);
    assert_eq!((made.status, made.stderr.as_str()), (0, ""));
    assert!(made.console.contains("bhyve-rs start -c"), "{}", made.console);
    assert_eq!(fs::metadata(dir.path("fresh.img")).expect("a disk").len(), 1 << 30);
    assert_eq!(bhyve_rs(&dir, &["check", &dir.path("fresh.toml")]).status, 0);
    let text = fs::read_to_string(dir.path("fresh.toml")).expect("a file");
    assert!(text.contains("memory = \"64M\"\ncpus = 2\n") && text.contains("set tty com0"), "{text}");

    for (words, said) in [
        (&["fresh"][..], "fresh.img: it exists, and is not replaced"),
        (&["a/b"], "name: "),
        (&["..", "--disk", "1M"], "name: "),
        (&["x", "--guest", "openbds"], "did you mean openbsd?"),
        (&["x", "--iso", "/nowhere.iso"], "/nowhere.iso: No such file or directory"),
        (&["x", "--disk", "12Q"], "--disk: \"12Q\" is no size"),
        (&["x", "--memory", "1K"], "memory: "),
        (&["x", "--cpus", "99"], "cpus: "),
    ] {
        let refused = new(words);
        assert!(refused.status == 4 && refused.stderr.contains(said), "{words:?}: {}", refused.stderr);
    }
    let long = "n".repeat(300);
    assert_eq!(new(&[&long]).status, 4);
    let left: Vec<_> = fs::read_dir(&here).expect("the folder").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(left.len(), 3, "what was refused leaves nothing behind: {left:?}");
}

#[test]
fn the_doctor_finds_what_is_wrong_and_says_what_helps() {
    let dir = Scratch::new("doctor");
    let guests = dir.path("guests");
    fs::create_dir(&guests).expect("the guests' directory");
    dir.write("guests/good.toml", "name = 'good'\n");
    let look = || bhyve_rs(&dir, &["doctor", "--dir", &guests, "--json"]);
    let findings = |text: &str| -> Vec<String> {
        text.split("{\"").filter(|part| part.contains("\"problem\"")).map(str::to_owned).collect()
    };
    let healthy = look();
    assert_eq!(findings(&healthy.console), Vec::<String>::new(), "{}", healthy.console);

    dir.write("guests/bad.toml", "name = 'bad'\nmemory = '12Q'\n");
    dir.write("guests/lost.toml", "name = 'lost'\n[autostart]\nenabled = true\nafter = ['gone']\n");
    let ill = look();
    assert_eq!(ill.status, 1);
    let found = findings(&ill.console);
    assert!(found.len() == 2 && found.iter().all(|f| f.starts_with("fix\":\"")), "{found:?}");
    assert!(found[0].contains("bad.toml:2:10: memory") && found[1].contains("lost: autostart.after"), "{found:?}");
    // Text for people has no colours where there is no terminal.
    let text = bhyve_rs(&dir, &["doctor", "--dir", &guests]).console;
    assert!(text.contains("problem  ") && text.contains("fix: ") && !text.contains('\x1b'), "{text}");
    // A machine that ended without cleaning up.
    drop(std::os::unix::net::UnixListener::bind(dir.path("run/crashed.sock")).expect("a socket"));
    assert!(look().console.contains("crashed ended without cleaning up"));
}

#[test]
fn links_have_the_names_of_other_tools_and_leave_alone_what_is_not_ours() {
    let dir = Scratch::new("links");
    let bin = dir.path("bin");
    fs::create_dir(&bin).expect("a folder");
    let links = |words: &[&str]| bhyve_rs(&dir, &[&["links"], words].concat());
    assert_eq!(links(&[&bin]).status, 0);
    let asked = Command::new(dir.path("bin/bhyve")).args(["-s", "help"]).output().expect("the program as bhyve");
    assert!(String::from_utf8_lossy(&asked.stdout).lines().any(|line| line == "virtio-blk"));
    assert_eq!(links(&[&bin]).status, 0, "ours are replaced");
    assert_eq!(links(&[&bin, "--remove"]).status, 0);
    assert_eq!(fs::read_dir(&bin).expect("a folder").count(), 0);

    symlink("/usr/sbin/bhyve", dir.path("bin/bhyve")).expect("a link");
    dir.write("bin/vm", "somebody's own");
    let refused = links(&[&bin]);
    assert!(refused.status == 4 && refused.stderr.contains("bhyve: it is there and not ours"), "{}", refused.stderr);
    assert_eq!(fs::read_dir(&bin).expect("a folder").count(), 2, "all or none");
    assert_eq!(links(&[&bin, "bhyvectl"]).status, 0);
    assert_eq!(links(&[&bin, "--remove"]).status, 0);
    assert_eq!(fs::read_dir(&bin).expect("a folder").count(), 2, "what is not ours stays");
    assert_eq!(links(&[&bin, "--force"]).status, 0);
    assert_eq!(fs::read_dir(&bin).expect("a folder").count(), 5);

    assert_eq!(links(&["--firmware", &bin]).status, 0);
    let marker = fs::read_to_string(dir.path("bin/BHYVE_UEFI_CSM.fd")).expect("a file");
    assert_eq!(marker, "bhyve-rs built-in BIOS\n");
    dir.write("bin/BHYVE_UEFI_CSM.fd", "real firmware");
    assert_eq!(links(&["--firmware", &bin]).status, 4);
    assert_eq!(links(&["--firmware", &bin, "--remove"]).status, 0);
    assert_eq!(fs::read_to_string(dir.path("bin/BHYVE_UEFI_CSM.fd")).expect("a file"), "real firmware");
}

#[test]
fn every_manual_page_is_right_mdoc() {
    let dir = Scratch::new("manual");
    let man = dir.path("man");
    assert_eq!(bhyve_rs(&dir, &["--quiet", "manual", &man]).status, 0);
    let pages: Vec<_> = ["man5", "man8"]
        .iter()
        .flat_map(|section| fs::read_dir(format!("{man}/{section}")).expect("pages"))
        .map(|entry| entry.expect("a page").path())
        .collect();
    assert!(pages.len() > 25, "{pages:?}");
    if there("mandoc") {
        let checked = Command::new("mandoc").args(["-Tlint", "-Wwarning"]).args(&pages).output().expect("mandoc");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    }
}

#[test]
fn shells_complete_commands_and_the_names_of_machines() {
    let dir = Scratch::new("shells");
    let file = |shell: &str, program: &str| {
        let text = bhyve_rs(&dir, &["completion", shell, program]).console;
        assert!(!text.contains("broker"), "hidden commands are nobody's to complete");
        dir.write(shell, &text)
    };
    for (shell, check) in [("sh", "-n"), ("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        for program in ["vm", "bhyve-rs"] {
            let file = file(shell, program);
            if there(shell) {
                let checked = Command::new(shell).args([check, &file]).output().expect("the shell");
                assert!(checked.status.success(), "{shell}: {}", String::from_utf8_lossy(&checked.stderr));
            }
        }
    }
    if there("bash") {
        drop(std::os::unix::net::UnixListener::bind(dir.path("run-web.sock")).expect("a socket"));
        fs::create_dir_all(dir.path("run")).expect("a folder");
        fs::rename(dir.path("run-web.sock"), dir.path("run/web.sock")).expect("a socket");
        let script = format!(
            "bhyve-rs() {{ {} \"$@\"; }}; . {}; complete() {{ :; }}\nask() {{ COMP_WORDS=(bhyve-rs \"$@\"); \
             COMP_CWORD=$#; COMPREPLY=(); _bhyve_rs_named bhyve-rs \"${{@: -1}}\" \"$1\"; echo \"${{COMPREPLY[@]}}\"; }}\n\
             ask sto; ask stop we; ask autostart restar",
            program().display(),
            dir.path("bash")
        );
        let asked = Command::new("bash").args(["-c", &script]).env("BHYVE_RS_RUN_DIR", dir.path("run")).output();
        let said = asked.map(|out| String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned());
        assert_eq!(said.expect("bash"), "stop\nweb\nrestart\n");
    }
}

#[test]
fn what_is_packaged_names_what_there_is() {
    // The port's list has each name that `links` makes, and the units call commands that exist.
    let list = fs::read_to_string(root().join("packaging/freebsd/pkg-plist")).expect("the list");
    for tool in ["bhyve", "bhyvectl", "bhyveload", "grub-bhyve", "vm"] {
        assert!(list.lines().any(|line| line == format!("libexec/bhyve-rs/{tool}")), "{tool}");
    }
    for unit in ["bhyve-rs.service", "bhyve-rs@.service"] {
        let text = fs::read_to_string(root().join("packaging/systemd").join(unit)).expect("a unit");
        for line in text.lines().filter_map(|line| line.split_once("=/usr/sbin/bhyve-rs ")) {
            let words: Vec<&str> = line.1.split_whitespace().chain(["--help"]).collect();
            let help = Command::new(program()).args(&words).output().expect("the program");
            assert!(help.status.success(), "{unit}: {}: {}", line.1, String::from_utf8_lossy(&help.stderr));
        }
    }
}
