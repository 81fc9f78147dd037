//! `vm`, as a user calls it: guests in a datastore, run by bhyve(8)'s name on the software processor.

use std::path::Path;
use std::process::{Command, Output};

use machine_tests::{Run, Scratch, program, root, until};

/// A datastore, and what goes with it.
struct Fleet {
    dir: Scratch,
}

impl Fleet {
    fn new(name: &str) -> Fleet {
        let fleet = Fleet { dir: Scratch::new(&format!("fleet-{name}")) };
        std::fs::create_dir_all(fleet.dir.path("vm/.templates")).expect("a datastore");
        // No network: that would need rights, and change the host.
        let template = "loader=\"bios\"\ncpu=1\nmemory=32M\ndisk0_type=\"virtio-blk\"\ndisk0_name=\"disk0.img\"\n\
                        disk0_size=\"1M\"\nbhyve_options=\"-o x.y=z\"\n";
        fleet.dir.write("vm/.templates/default.conf", template);
        fleet
    }

    fn command(&self) -> Command {
        let mut command = Command::new(program());
        command.arg("vm").env("VM_DIR", self.dir.path("vm")).env("BHYVE_RS_RUN_DIR", self.dir.path("run"));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command().args(words).output().expect("the program starts")
    }

    /// Status and output.
    fn vm(&self, line: &str) -> (i32, String) {
        let out = self.run(&line.split(' ').collect::<Vec<_>>());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.code().unwrap_or(-1), text(&out.stdout) + &text(&out.stderr))
    }

    /// What a command that works prints.
    fn good(&self, line: &str) -> String {
        let (status, text) = self.vm(line);
        assert_eq!(status, 0, "vm {line}: {text}");
        text
    }

    /// What a command that fails says.
    fn bad(&self, line: &str) -> String {
        let (status, text) = self.vm(line);
        assert_eq!(status, 1, "vm {line}: {text}");
        text
    }

    /// Makes a guest that says that it is up, echoes, and powers off when its power button is pressed.
    fn create(&self, name: &str) {
        self.good(&format!("create {name}"));
        let made =
            Command::new("sh").arg(root().join("tests/guests/button")).arg(self.file(name, "disk0.img")).status();
        assert!(made.expect("sh(1)").success());
    }

    fn file(&self, guest: &str, name: &str) -> String {
        self.dir.path(&format!("vm/{guest}/{name}"))
    }

    fn log(&self, guest: &str) -> String {
        std::fs::read_to_string(self.file(guest, "vm-bhyve.log")).unwrap_or_default()
    }

    fn stopped(&self, name: &str) {
        until("it stops", || self.good("list --json").contains("\"state\":\"stopped\"").then_some(()));
        assert!(!Path::new(&self.file(name, "run.lock")).exists());
    }
}

impl Drop for Fleet {
    /// A machine of a test that failed does not stay.
    fn drop(&mut self) {
        let guests = std::fs::read_dir(self.dir.path("vm")).into_iter().flatten().flatten();
        for name in guests.filter_map(|entry| entry.file_name().into_string().ok()).filter(|n| !n.starts_with('.')) {
            let running = self.vm("list --json").1.contains("\"state\":\"running\"");
            if running {
                let _ = self.vm(&format!("poweroff -f {name}"));
            }
        }
    }
}

#[test]
fn a_guest_lives_from_a_template_to_its_end() {
    let fleet = Fleet::new("life");
    fleet.create("web-life");
    let head = fleet.good("list");
    assert!(
        head.starts_with("NAME      DATASTORE  LOADER  CPU  MEMORY  VNC  AUTO  STATE    TAGS\nweb-life  "),
        "{head}"
    );
    let started = fleet.good("start web-life");
    assert!(started.contains("  * booting...\n"), "{started}");
    assert!(fleet.good("list -r").contains("Running ("));
    assert!(fleet.good("info web-life").contains("state: running ("));
    assert!(fleet.bad("start web-life").contains("running already"));
    assert!(fleet.bad("destroy -f web-life").contains("running"));
    assert!(fleet.bad("clone web-life other").contains("running"));
    fleet.good("reset -f web-life");
    until("it starts again", || fleet.log("web-life").contains("starting bhyve (run 2)").then_some(()));
    until("it is up again", || fleet.good("list").contains("Running (").then_some(()));
    fleet.good("stop web-life");
    fleet.stopped("web-life");
    let log = fleet.log("web-life");
    assert!(log.contains("[bhyve options: -c 1 -m 32M -AHPw -l bootrom,bios -o x.y=z -U "), "{log}");
    assert!(log.contains("bhyve exited with status 0") && log.contains("bhyve exited with status 1"), "{log}");
    assert!(!Path::new(&fleet.dir.path("run/vmm/web-life")).exists(), "its node is gone");
    // A guest that is off stays so, without an error for scripts.
    fleet.good("stop web-life");
    fleet.good("destroy -f web-life");
    assert_eq!(fleet.good("list --json"), "[]\n");
}

#[test]
fn the_console_has_what_the_guest_said_and_takes_what_is_typed() {
    let fleet = Fleet::new("console");
    fleet.create("web-console");
    fleet.good("start web-console");
    let mut command = fleet.command();
    command.args(["console", "web-console"]);
    let mut console = Run::of(command, 60);
    // It came before anybody looked.
    console.expect("guest is up");
    console.send("echo me");
    console.expect("echo me");
    fleet.good("stop web-console");
    console.expect("button pressed");
    console.wait();
    fleet.stopped("web-console");
    assert!(fleet.bad("console web-console").contains("running virtual machine"));
}

#[test]
fn power_is_cut_from_a_guest_that_must_go() {
    let fleet = Fleet::new("cut");
    fleet.create("web-cut");
    fleet.good("start web-cut");
    fleet.good("poweroff -f web-cut");
    fleet.stopped("web-cut");
    assert!(fleet.bad("poweroff -f web-cut").contains("running virtual machine"));
}

#[test]
fn of_two_starts_at_once_one_wins() {
    let fleet = Fleet::new("two");
    fleet.create("web-two");
    let mut starts: Vec<_> = (0..2)
        .map(|_| {
            let mut command = fleet.command();
            command.args(["start", "web-two"]).stdout(std::process::Stdio::piped());
            command.spawn().expect("the program starts")
        })
        .collect();
    let outs: Vec<_> = starts.drain(..).map(|child| child.wait_with_output().expect("it ends")).collect();
    let mut statuses: Vec<_> = outs.iter().map(|out| out.status.code()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [Some(0), Some(1)]);
    let loser = outs.iter().find(|out| !out.status.success()).expect("a loser");
    assert!(String::from_utf8_lossy(&loser.stdout).contains("guest appears to be running already"));
    fleet.good("poweroff -f web-two");
    fleet.stopped("web-two");
}

#[test]
fn a_process_that_died_is_no_obstacle() {
    let fleet = Fleet::new("dead");
    fleet.create("web-dead");
    fleet.good("start web-dead");
    let pids = Command::new("pgrep").args(["-f", "web-dead$"]).output().expect("pgrep(1)").stdout;
    for pid in String::from_utf8_lossy(&pids).split_whitespace() {
        let _ = Command::new("kill").args(["-KILL", pid]).status();
    }
    until("they are gone", || fleet.good("list --json").contains("\"state\":\"stopped\"").then_some(()));
    assert!(Path::new(&fleet.file("web-dead", "run.lock")).exists(), "nobody has cleared up");
    fleet.good("start web-dead");
    fleet.good("poweroff -f web-dead");
    fleet.stopped("web-dead");
}

#[test]
fn what_bhyve_refuses_start_says() {
    let fleet = Fleet::new("refused");
    fleet.create("web-bad");
    let conf = fleet.file("web-bad", "web-bad.conf");
    let text = std::fs::read_to_string(&conf).expect("its settings");
    std::fs::write(&conf, text.replace("virtio-blk", "virtio-bulk")).expect("its settings");
    let said = fleet.bad("start web-bad");
    assert!(said.contains("  ! bhyve exited with status 4") && said.contains("virtio-bulk"), "{said}");
    fleet.stopped("web-bad");
    std::fs::write(&conf, text.replace("cpu=1", "")).expect("its settings");
    assert!(fleet.bad("start web-bad").contains("there is no cpu"));
    std::fs::write(&conf, text.replace("\"bios\"", "\"lilo\"")).expect("its settings");
    assert!(fleet.bad("start web-bad").contains("unsupported loader"));
    // Each guest that did not start counts.
    let (status, _) = fleet.vm("start no-such web-bad");
    assert_eq!(status, 2);
}

#[test]
fn bad_names_and_commands_are_refused() {
    let fleet = Fleet::new("names");
    let long = "a".repeat(300);
    for name in ["a/b", "a b", "a\tb", "a\u{7}b", "../a", ".a", "-a", "a", "", &long] {
        let out = fleet.run(&["create", name]);
        assert_eq!(out.status.code(), Some(1), "{name:?}");
        assert!(out.stderr.len() < 700, "a short line for {name:?}");
        for command in ["info", "destroy", "console", "start", "stop"] {
            assert_eq!(fleet.run(&[command, name]).status.code(), Some(1), "{command} {name:?}");
        }
    }
    assert!(fleet.bad("create -t missing web").contains("unable to find template"));
    assert!(fleet.bad("sta web").contains("ambiguous"));
    assert!(fleet.bad("frobnicate").contains("unknown command"));
    assert!(fleet.bad("create").contains("Usage"));
    assert!(fleet.bad("create -x web").contains("no option -x"));
    assert_eq!(fleet.vm("_run no-such").0, 5);
    assert_eq!(fleet.good("list --json"), "[]\n");
}

#[test]
fn facts_come_as_json() {
    let fleet = Fleet::new("json");
    fleet.create("web-json");
    fleet.good("tags add web-json www test");
    let list = fleet.good("list --json");
    for part in ["\"name\":\"web-json\"", "\"state\":\"stopped\"", "\"cpu\":1", "\"tags\":[\"www\",\"test\"]"] {
        assert!(list.contains(part), "{part} in {list}");
    }
    assert_eq!(fleet.good("list --json -t other"), "[]\n");
    assert_eq!(fleet.good("tags find www --json"), "[\"web-json\"]\n");
    assert!(fleet.good("info web-json --json").contains("\"size\":1048576"));
    assert!(fleet.good("datastore list --json").starts_with("[{\"dataset\":null,\"name\":\"default\""));
    assert!(fleet.good("get all --json").contains("\"console\":null"));
    assert_eq!(fleet.good("switch list --json"), "[]\n");
}

#[test]
fn a_snapshot_brings_the_disk_back() {
    let fleet = Fleet::new("snapshot");
    fleet.create("web-snap");
    let disk = fleet.file("web-snap", "disk0.img");
    let before = std::fs::read(&disk).expect("its disk");
    fleet.good("snapshot web-snap@clean");
    std::fs::write(&disk, "lost").expect("its disk");
    fleet.good("clone web-snap@clean copy-snap");
    assert_eq!(std::fs::read(fleet.file("copy-snap", "disk0.img")).expect("its disk"), before);
    fleet.good("rollback web-snap@clean");
    assert_eq!(std::fs::read(&disk).expect("its disk"), before);
    assert!(fleet.good("info web-snap").contains("web-snap@clean"));
}

#[test]
fn on_zfs_guests_are_datasets() {
    let fleet = Fleet::new("zfs");
    std::fs::create_dir_all(fleet.dir.path("zfs/tank")).expect("a pool");
    std::fs::rename(fleet.dir.path("vm"), fleet.dir.path("zfs/tank/vm")).expect("a dataset");
    let stand_ins = root().join("tests/freebsd-stand-ins").display().to_string();
    let path = format!("{stand_ins}:{}", std::env::var("PATH").expect("PATH"));
    let vm = |line: &str| {
        let mut command = fleet.command();
        command.env("VM_DIR", "zfs:tank/vm").env("STAND_INS", fleet.dir.path("")).env("PATH", &path);
        let out = command.args(line.split(' ')).output().expect("the program starts");
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        (out.status.code(), text)
    };
    let good = |line: &str| {
        let (status, text) = vm(line);
        assert_eq!(status, Some(0), "vm {line}: {text}");
        text
    };
    let disk = |guest: &str| fleet.dir.path(&format!("zfs/tank/vm/{guest}/disk0.img"));
    good("create web-zfs");
    std::fs::write(disk("web-zfs"), "one").expect("its disk");
    good("snapshot web-zfs@a");
    std::fs::write(disk("web-zfs"), "two").expect("its disk");
    good("clone web-zfs copy-zfs");
    good("clone web-zfs@a old-zfs");
    good("rollback -r web-zfs@a");
    let texts = ["web-zfs", "copy-zfs", "old-zfs"].map(|guest| std::fs::read_to_string(disk(guest)).expect("its disk"));
    assert_eq!(texts, ["one", "two", "one"]);
    assert!(good("info web-zfs").contains("tank/vm/web-zfs@a"));
    assert!(good("datastore list").contains("zfs         "));
    good("rename old-zfs older-zfs");
    good("destroy -f copy-zfs");
    let packed = good("image create -u -d small web-zfs");
    let uuid = packed.split_whitespace().last().expect("a UUID").to_owned();
    assert!(good("image list").contains("  web-zfs  ") && good("image list --json").contains("\"small\""));
    good(&format!("image provision {uuid} new-zfs"));
    assert_eq!(std::fs::read_to_string(disk("new-zfs")).expect("its disk"), "one");
    good(&format!("image destroy {uuid}"));
    assert_eq!(vm("image provision ../x other").0, Some(1));
    good("destroy web-zfs@a");
    assert_eq!(vm("snapshot no-such@a").0, Some(1));
    let log = std::fs::read_to_string(fleet.dir.path("zfs.log")).expect("what zfs(8) was asked");
    for line in [
        "zfs create tank/vm/web-zfs",
        "zfs snapshot -r tank/vm/web-zfs@a",
        "zfs clone tank/vm/web-zfs@a tank/vm/old-zfs",
        "zfs rollback -r tank/vm/web-zfs@a",
        "zfs rename tank/vm/old-zfs tank/vm/older-zfs",
        "zfs destroy -rf tank/vm/copy-zfs",
        "zfs destroy -r tank/vm/web-zfs@a",
    ] {
        assert!(log.lines().any(|l| l == line), "{line} in\n{log}");
    }
    std::fs::rename(fleet.dir.path("zfs/tank/vm"), fleet.dir.path("vm")).expect("the datastore");
}
