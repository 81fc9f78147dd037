//! Files that cannot be read, or include too much; files that are good.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{SCHEMA, directory};
use cfg::{Draft, Errors, Origin, PciSlot, Setting};

fn check(path: &Path) -> Result<cfg::Node, Errors> {
    Draft::read(path).check(SCHEMA)
}

fn only_error(path: &Path) -> String {
    let errors = check(path).unwrap_err();
    assert_eq!(errors.0.len(), 1, "{errors}");
    errors.to_string().replace(&format!("{}/", path.parent().unwrap().display()), "")
}

#[test]
fn a_file_that_does_not_exist_is_one_error_and_nothing_is_missing_in_it() {
    let dir = directory("no_file");
    let printed = only_error(&dir.join("guest.toml"));
    assert_eq!(printed, "guest.toml: cannot read \"guest.toml\": No such file or directory");
}

#[test]
fn a_directory_is_not_a_file() {
    let dir = directory("directory_for_a_file");
    fs::create_dir(dir.join("guest.toml")).unwrap();
    let printed = only_error(&dir.join("guest.toml"));
    assert_eq!(printed, "guest.toml: \"guest.toml\" is a directory; allowed: a TOML file");
}

#[cfg(unix)]
#[test]
fn a_file_without_permission_says_so() {
    use std::os::unix::fs::PermissionsExt;
    let dir = directory("no_permission");
    let path = dir.join("guest.toml");
    fs::write(&path, "name = 'fw1'\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&path).is_ok() {
        eprintln!("skipped: root may read everything");
        return;
    }
    assert_eq!(only_error(&path), "guest.toml: cannot read \"guest.toml\": Permission denied");
}

#[test]
fn a_file_of_a_mebibyte_is_read_and_a_larger_one_is_not() {
    let dir = directory("large_file");
    let path = dir.join("guest.toml");
    let text = format!("name = 'fw1'\n#{}", "x".repeat((1 << 20) - 14));
    fs::write(&path, &text).unwrap();
    assert_eq!(check(&path).unwrap().text("name"), "fw1");
    fs::write(&path, text + "x").unwrap();
    assert_eq!(only_error(&path), "guest.toml: \"guest.toml\" is too large; allowed: a TOML file of at most 1 MiB");
}

#[test]
fn includes_go_sixteen_files_deep_and_not_further() {
    let dir = directory("deep_includes");
    for i in 0..17 {
        fs::write(dir.join(format!("{i}.toml")), format!("include = '{}.toml'\nvars.v{i} = {i}\n", i + 1)).unwrap();
    }
    fs::write(dir.join("17.toml"), "name = 'fw1'\n").unwrap();
    assert!(check(&dir.join("2.toml")).is_ok(), "16 files");
    let printed = only_error(&dir.join("1.toml"));
    assert_eq!(
        printed,
        "16.toml:1:11: include: \"17.toml\" is included too deeply; allowed: 16 files within each other"
    );
}

#[test]
fn includes_that_double_at_each_level_end() {
    let dir = directory("doubling_includes");
    for i in 0..14 {
        let next = format!("{}.toml", i + 1);
        fs::write(dir.join(format!("{i}.toml")), format!("include = ['{next}', '{next}']\n")).unwrap();
    }
    fs::write(dir.join("14.toml"), "name = 'fw1'\n").unwrap();
    let errors = check(&dir.join("0.toml")).unwrap_err();
    assert!(errors.0.iter().all(|error| error.message == "too many files are included"), "{errors}");
}

#[test]
fn the_including_file_wins_and_paths_belong_to_the_file_they_are_in() {
    let dir = directory("good_includes");
    fs::create_dir_all(dir.join("base/images")).unwrap();
    fs::write(dir.join("base/images/a.img"), "").unwrap();
    fs::write(dir.join("guest.toml"), "include = ['base/one.toml', 'base/two.toml']\nname = 'fw1'\ncpus = 3\n")
        .unwrap();
    fs::write(dir.join("base/one.toml"), "cpus = 1\nmemory = 64\nclock = 'instructions'\n").unwrap();
    let two = "include = 'one.toml'\ncpus = 2\nmemory = 128\n[[disk]]\npath = '%(vars.images)/a.img'\n";
    fs::write(dir.join("base/two.toml"), format!("{two}[vars]\nimages = 'images'\n")).unwrap();
    let machine = check(&dir.join("guest.toml")).unwrap();
    assert_eq!(machine.int("cpus"), 3);
    assert_eq!(machine.size("memory"), 128 << 20, "the later include lies over the earlier");
    assert_eq!(machine.text("clock"), "instructions", "what both include is read twice without harm");
    assert_eq!(machine.children("disk")[0].path("path"), dir.join("base/images/a.img"));
}

const MACHINE: &str = r#"
name = "fw1"                # é
profile = "xenserver-5.5"
guest = "openbsd-4.6"
cpus = 0x2
memory = "1G"
uuid = "C0FFEE00-1234-5678-9abc-def012345678"
seed = 1_000

[boot]
order = ["cd", "disk"]
kernel = "disk.img"
args = '-s "quoted" \ 日本, 100%'

[[disk]]
path = "disk.img"
model = "nvme"
queues = 4
serial = "A,B"
slot = 3

[[disk]]
path = "./disk.img"
readonly = true

[[nic]]
model = "virtio-net"
mac = "00-A0-98-00-00-01"
forward = ["tcp:8022:22", "a,b\\c"]

[[serial]]
backend = "tcp"
address = "[::1]:2323"

[autostart]
enabled = true
delay = "1500ms"
after = "router"

[vars]
unused = 1
"#;

fn machine(dir: &str) -> Draft {
    let dir = directory(dir);
    fs::write(dir.join("disk.img"), "").unwrap();
    fs::write(dir.join("guest.toml"), MACHINE).unwrap();
    Draft::read(&dir.join("guest.toml"))
}

#[test]
fn a_whole_machine_is_read_with_defaults_where_nothing_is_said() {
    let root = machine("whole").check(SCHEMA).unwrap();
    assert_eq!((root.int("cpus"), root.size("memory"), root.int("seed")), (2, 1 << 30, 1000));
    assert_eq!((root.text("backend"), root.is_given("backend")), ("auto", false));
    assert_eq!(root.maybe("uuid").map(|uuid: [u8; 16]| uuid[0]), Some(0xc0));
    assert_eq!(root.maybe::<&str>("board"), None);
    let boot = root.child("boot");
    assert_eq!((boot.words("order"), boot.key()), (vec!["cd", "disk"], "boot"));
    assert_eq!(boot.text("args"), r#"-s "quoted" \ 日本, 100%"#);
    let [nvme, other] = root.children("disk") else { panic!("two disks") };
    assert_eq!((nvme.int("queues"), nvme.text("serial"), nvme.key(), nvme.index()), (4, "A,B", "disk.0", 0));
    assert_eq!(nvme.maybe("slot"), Some(PciSlot { bus: 0, slot: 3, function: 0 }));
    assert!(other.bool("readonly") && other.maybe::<&str>("model").is_none());
    let nic = &root.children("nic")[0];
    assert_eq!((nic.int("mtu"), nic.maybe("mac")), (1500, Some([0, 0xa0, 0x98, 0, 0, 1])), "a key of the model");
    assert_eq!(root.children("serial")[0].get("address").unwrap().to_string(), "[::1]:2323");
    assert_eq!(root.child("autostart").duration("delay").as_millis(), 1500);
    assert_eq!(root.child("autostart").words("after"), ["router"], "one text is a list of one");
    assert_eq!((root.child("screen").origin().line(), root.children("floppy").len()), (1, 0));
}

/// Every setting of every section, by its dotted key.
fn flat(node: &cfg::Node, out: &mut Vec<(String, Setting)>) {
    for (name, setting) in node.settings() {
        out.push((format!("{}.{name}", node.key()), setting.clone()));
    }
    for name in ["boot", "cpu", "acpi", "screen", "quirks", "autostart"] {
        if node.key().is_empty() {
            flat(node.child(name), out);
        }
    }
    for name in ["disk", "cd", "floppy", "nic", "serial"] {
        if node.key().is_empty() {
            node.children(name).iter().for_each(|child| flat(child, out));
        }
    }
}

fn settings(draft: &Draft) -> Vec<(String, Setting)> {
    let mut out = Vec::new();
    flat(&draft.check(SCHEMA).unwrap_or_else(|errors| panic!("{errors}")), &mut out);
    out
}

#[test]
fn a_dump_sets_the_same_machine_and_so_does_its_toml() {
    let written = machine("round_trip");
    let expected = settings(&written);
    assert!(expected.len() > 40, "{}", expected.len());
    let dir = PathBuf::from(written.tree().root().get("name").unwrap().key.file()).parent().unwrap().to_owned();

    // A path that is set is relative to the current directory, not to the file that it was dumped from.
    let disk = dir.join("disk.img").display().to_string();
    let mut set = Draft::new(Origin::named("nothing"));
    for line in written.tree().to_string().lines() {
        let (key, value) = line.split_once('=').unwrap();
        let value = if value.ends_with("disk.img") { &disk } else { value };
        set.set(&format!("{key}={value}"), &Origin::named("-o"));
    }
    assert_eq!(settings(&set), expected);

    for draft in [&written, &set] {
        let toml = draft.tree().to_toml(SCHEMA);
        assert!(toml.contains("\n[[disk]]\n") && toml.starts_with("cpus = 2\n"), "{toml}");
        fs::write(dir.join("again.toml"), &toml).unwrap();
        let again = Draft::read(&dir.join("again.toml"));
        assert_eq!(settings(&again), expected);
        assert_eq!(again.tree().to_toml(SCHEMA), toml);
    }
}

#[test]
fn an_array_with_a_gap_keeps_its_numbers_in_toml() {
    let mut draft = Draft::parse("guest.toml", "name = 'fw1'\n[[nic]]\n");
    draft.set("nic.2.model=e1000", &Origin::named("-o"));
    let toml = draft.tree().to_toml(SCHEMA);
    assert_eq!(toml, "name = \"fw1\"\n\n[nic.0]\n\n[nic.2]\nmodel = \"e1000\"\n");
    let machine = Draft::parse("again", &toml).check(SCHEMA).unwrap();
    assert_eq!(machine.children("nic").iter().map(cfg::Node::index).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn what_is_set_lies_over_the_file_and_the_profile_under_it() {
    let mut draft = Draft::parse("guest.toml", "name = 'fw1'\ncpus = 2\n[[nic]]\n[[nic]]\nmodel = 'e1000'\n");
    draft.merge_under(Draft::parse(
        "profile",
        "cpus = 1\nmemory = 64\nclock = 'instructions'\n[nic.\"*\"]\nmodel = 'rtl8139'\n[boot]\norder = ['net']\n",
    ));
    for assignment in ["memory=32", "boot.order=cd,disk", "acpi.enabled=off", "nic.1.mac=00:a0:98:00:00:01"] {
        draft.set(assignment, &Origin::named(format!("-o {assignment}")));
    }
    let machine = draft.check(SCHEMA).unwrap();
    assert_eq!((machine.int("cpus"), machine.size("memory"), machine.text("clock")), (2, 32 << 20, "instructions"));
    let models: Vec<&str> = machine.children("nic").iter().map(|nic| nic.text("model")).collect();
    assert_eq!(models, ["rtl8139", "e1000"], "the profile's model where none is given");
    assert_eq!(machine.child("boot").words("order"), ["cd", "disk"], "a list is replaced as a whole");
    assert!(!machine.child("acpi").bool("enabled"));
}

#[test]
fn faults_of_the_command_line_name_the_argument() {
    let mut draft = Draft::parse("guest.toml", "name = 'fw1'\n");
    for assignment in
        ["cpus=99", "cpsu=1", "cpus", "cpus=", "include=x", "a..b=1", "disk.0.slot=3", "nic.17.model=e1000"]
    {
        draft.set(assignment, &Origin::named(format!("-o {assignment}")));
    }
    let printed: Vec<String> = draft.check(SCHEMA).unwrap_err().0.iter().map(|error| error.to_string()).collect();
    let begins = [
        "-o a..b=1: a name is empty; allowed: letters, digits, \"-\" and \"_\"",
        "-o cpsu=1: cpsu: unknown key \"cpsu\"; allowed: include, name, ",
        "-o cpus: \"cpus\" has no \"=\"; allowed: KEY=VALUE",
        "-o cpus=: no value for \"cpus\"; allowed: KEY=VALUE",
        "-o cpus=99: cpus: 99 is out of range; allowed: 1 to 32",
        "-o disk.0.slot=3: disk.0.path: required key is missing; allowed: the path of a file",
        "-o include=x: only a file can include another",
        "-o nic.17.model=e1000: nic.17: one too many; allowed: at most 16",
    ];
    assert_eq!(printed.len(), begins.len(), "{printed:#?}");
    for (line, begin) in printed.iter().zip(begins) {
        assert!(line.starts_with(begin), "{line}");
    }
}

#[test]
fn the_longest_name_has_229_characters() {
    let name = |length: usize| {
        Draft::parse("guest.toml", &format!("name = '{}'", "x".repeat(length))).check(SCHEMA).map(|_| ())
    };
    assert!(name(229).is_ok());
    let printed = name(230).unwrap_err().to_string();
    assert!(printed.starts_with("guest.toml:1:8: name: a name of 230 characters is too long"), "{printed}");
}
