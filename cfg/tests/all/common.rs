//! What the caller of the crate brings: words for models, and a directory of files.

use std::fs;
use std::path::PathBuf;

use cfg::{Catalogue, Draft, Key, Kind, Schema};

/// A few models, two of which have keys of their own.
struct Words;

static NVME: [Key; 2] = [
    Key { name: "queues", kind: Kind::Int { min: 1, max: 16 }, default: Some("16"), help: "queues" },
    Key { name: "serial", kind: Kind::Text, default: None, help: "serial number" },
];
static VIRTIO_NET: [Key; 1] =
    [Key { name: "mtu", kind: Kind::Int { min: 68, max: 9000 }, default: Some("1500"), help: "largest packet" }];

impl Catalogue for Words {
    fn words(&self, class: &str) -> Vec<&str> {
        match class {
            "profile" => vec!["pc", "bhyve", "hyper-v-2008r2", "xenserver-5.5", "esxi-4.0"],
            "guest" => vec!["freebsd", "netbsd", "openbsd"],
            "board" => vec!["440fx", "440bx"],
            "disk" => vec!["ahci", "ide", "nvme"],
            "cd" => vec!["ahci", "ide"],
            "nic" => vec!["dec21140", "e1000", "rtl8139", "virtio-net"],
            "screen" => vec!["cirrus", "s3-trio64"],
            "cpu-feature" => vec!["clflush", "sse2", "x2apic"],
            _ => Vec::new(),
        }
    }

    fn knows(&self, class: &str, word: &str) -> bool {
        let system = if class == "guest" { word.split('-').next().unwrap_or(word) } else { word };
        self.words(class).contains(&system)
    }

    fn keys(&self, class: &str, word: &str) -> &[Key] {
        match (class, word) {
            ("disk", "nvme") => &NVME,
            ("nic", "virtio-net") => &VIRTIO_NET,
            _ => &[],
        }
    }
}

/// The machine's declarations with the words above.
pub(crate) const SCHEMA: Schema<'static> = Schema { root: &cfg::schema::MACHINE, catalogue: &Words };

/// An empty directory of the test called `name`.
pub(crate) fn directory(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Keys and sections at the top, as errors list them; `{top}` in an expected line.
const TOP: &str = "include, name, profile, guest, board, cpus, memory, backend, uuid, clock, seed, [boot], [[disk]], \
                   [[cd]], [[floppy]], [[nic]], [[share]], [[usb]], [[input]], [[sound]], [[device]], [[serial]], [cpu], [[domain]], [acpi], [screen], \
                   [rtc], [lpc], [[fwcfg]], [smbios], [host], [quirks], [sandbox], [debug], [stop], [autostart], [vars], [bhyve]";

/// Reads the first of `files`, beside an empty `disk.img`, and asserts every line that is printed about it.
pub(crate) fn refuses(name: &str, files: &[(&str, impl AsRef<[u8]>)], expected: &[&str]) {
    let dir = directory(&format!("refuses/{name}"));
    fs::write(dir.join("disk.img"), "").unwrap();
    for (file, text) in files {
        fs::write(dir.join(file), text).unwrap();
    }
    let result = Draft::read(&dir.join(files[0].0)).check(SCHEMA);
    let errors = result.expect_err(name).to_string();
    let printed = errors.replace(&format!("{}/", dir.display()), "").replace(TOP, "{top}");
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected, "{name}");
}
