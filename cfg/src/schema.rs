//! The sections and keys of a machine.
//!
//! Which words name a profile, a guest, a board, a processor or a device model is the caller's to say; the classes
//! asked of its [`Catalogue`](crate::Catalogue) are `profile`, `guest`, `board`, `cpu`, `cpu-feature`, `disk`, `cd`,
//! `floppy`, `nic`, `share`, `device` and `screen`. A model brings the keys that its device declares to the section that names
//! it.

use crate::key::{Key, Kind, PathCheck, Rule, Section, Shape};

/// Guest RAM that the machine can have, in bytes. Below the first a BIOS has nowhere to put a boot loader.
const MEMORY: Kind = Kind::Size { min: 1 << 20, max: 1 << 40 };
/// A vmm(4) name can be this long and no longer.
const NAME: Kind = Kind::Word { max: 229 };
const READABLE: Kind = Kind::Path(PathCheck::File);
const BOOTABLE: Kind = Kind::Path(PathCheck::Inside);
const IN_DIRECTORY: Kind = Kind::Path(PathCheck::Parent);
const AUTO: Kind = Kind::Choice(&["auto", "on", "off"]);

const fn key(name: &'static str, kind: Kind, default: Option<&'static str>, help: &'static str) -> Key {
    Key { name, kind, default, help }
}

/// Where on the PCI bus a device sits. Drives of one model in one slot are at one controller.
const SLOT: Key = key("slot", Kind::PciSlot, None, "PCI slot; by default the first that is free");

/// Where on a controller a drive is.
const UNIT: Key = key(
    "unit",
    Kind::Int { min: 0, max: 31 },
    None,
    "its place at the controller in that slot, from 0; by default the first that is free",
);

/// A whole machine: the root of every configuration.
pub static MACHINE: Section = Section {
    help: "the machine",
    keys: &[
        key("include", Kind::List(&Kind::Path(PathCheck::Any)), None, "files to lay under this one"),
        key("name", NAME, None, "name of the machine"),
        key("profile", Kind::Named("profile"), Some("pc"), "machine to stand for"),
        key("guest", Kind::Named("guest"), None, "guest system, for its defaults and quirks"),
        key("board", Kind::Named("board"), None, "main board; by default the profile's"),
        key("cpus", Kind::Int { min: 1, max: 32 }, Some("1"), "virtual processors"),
        key("memory", MEMORY, Some("256M"), "guest memory"),
        key("backend", Kind::Choice(&["auto", "vmm", "kvm", "soft"]), Some("auto"), "what runs the processors"),
        key("uuid", Kind::Uuid, None, "SMBIOS system UUID; by default made from the name"),
        key("clock", Kind::Choice(&["real", "instructions"]), Some("real"), "what guest time follows"),
        key(
            "seed",
            Kind::Int { min: 0, max: i64::MAX },
            Some("0"),
            "start of everything random (numbers, date, UUID, MACs) if clock = instructions",
        ),
    ],
    sections: &[
        BOOT, DISK, CD, FLOPPY, NIC, SHARE, USB, INPUT, SOUND, DEVICE, SERIAL, CPU, DOMAIN, ACPI, SCREEN, RTC, LPC,
        FWCFG, SMBIOS, HOST, QUIRKS, SANDBOX, DEBUG, STOP, AUTOSTART, VARS, BHYVE,
    ],
    rules: &[
        Rule::Required("name"),
        Rule::Unique {
            keys: &[
                "disk.*.slot",
                "cd.*.slot",
                "nic.*.slot",
                "share.*.slot",
                "usb.*.slot",
                "input.*.slot",
                "sound.*.slot",
                "device.*.slot",
                "serial.*.slot",
                "screen.slot",
            ],
            // One controller has several drives, or devices at its ports, and one console several ports.
            share: &["disk.*.slot", "cd.*.slot", "usb.*.slot", "serial.*.slot"],
            only: None,
            what: "PCI slot",
        },
        Rule::Unique { keys: &["nic.*.mac"], share: &[], only: None, what: "MAC address" },
        Rule::Unique { keys: &["share.*.name"], share: &[], only: None, what: "name" },
        Rule::Unique { keys: &["serial.*.backend"], share: &[], only: Some("stdio"), what: "backend" },
        Rule::Unique {
            keys: &["serial.*.address", "screen.vnc", "debug.address"],
            share: &[],
            only: None,
            what: "address",
        },
    ],
    ..Section::EMPTY
};

const BOOT: Section = Section {
    name: "boot",
    help: "what runs first",
    keys: &[
        key(
            "order",
            Kind::List(&Kind::Choice(&["floppy", "cd", "disk", "net"])),
            Some("disk,cd,floppy,net"),
            "where the BIOS looks for a boot loader",
        ),
        key(
            "once",
            Kind::Choice(&["floppy", "cd", "disk", "net"]),
            None,
            "where the BIOS looks first when the machine starts, but not when it starts again",
        ),
        key("menu", Kind::Duration, Some("0s"), "how long the BIOS waits for F12, which opens its boot menu"),
        key("serial", Kind::Bool, Some("false"), "mirror the BIOS's text console to COM1"),
        key("kernel", BOOTABLE, None, "kernel to start without any firmware, also (disk0,PARTITION)/PATH"),
        key("initrd", BOOTABLE, None, "its initial RAM disk"),
        key("args", Kind::Text, None, "its command line"),
        key("firmware", READABLE, None, "firmware image instead of the built-in BIOS"),
        key("vars", READABLE, None, "its flash variables, below it in memory"),
    ],
    rules: &[
        Rule::Exclusive(&["kernel", "firmware"]),
        Rule::Needs("initrd", "kernel"),
        Rule::Needs("args", "kernel"),
        Rule::Needs("vars", "firmware"),
    ],
    ..Section::EMPTY
};

const DISK: Section = Section {
    name: "disk",
    help: "a disk",
    shape: Shape::Array { max: 32 },
    keys: &[
        key("path", READABLE, None, "image file or disk device"),
        key("model", Kind::Named("disk"), None, "controller; by default the profile's"),
        key(
            "format",
            Kind::Choice(&["auto", "raw", "qcow2", "vmdk", "vhd", "vhdx"]),
            Some("auto"),
            "format of the image",
        ),
        key("readonly", Kind::Bool, Some("false"), "refuse writes"),
        key(
            "cache",
            Kind::Choice(&["writeback", "writethrough", "none", "directsync"]),
            Some("writeback"),
            "use of the host's cache",
        ),
        key("snapshot", Kind::Bool, Some("false"), "forget with the machine what it writes"),
        key(
            "on_error",
            Kind::Choice(&["report", "pause"]),
            Some("report"),
            "when the host fails: the guest sees a device error, or the machine waits to be resumed",
        ),
        SLOT,
        UNIT,
    ],
    rules: &[Rule::Required("path"), Rule::Needs("unit", "slot")],
    ..Section::EMPTY
};

const CD: Section = Section {
    name: "cd",
    help: "a CD-ROM drive",
    shape: Shape::Array { max: 4 },
    keys: &[
        key("path", READABLE, None, "ISO image or drive; without one the tray is empty"),
        key("model", Kind::Named("cd"), None, "controller; by default the profile's"),
        SLOT,
        UNIT,
    ],
    rules: &[Rule::Needs("unit", "slot")],
    ..Section::EMPTY
};

const FLOPPY: Section = Section {
    name: "floppy",
    help: "a floppy drive",
    shape: Shape::Array { max: 2 },
    keys: &[
        key("path", READABLE, None, "image; without one the drive is empty"),
        key("model", Kind::Named("floppy"), None, "drive; by default as large as the image needs"),
        key("readonly", Kind::Bool, Some("false"), "write-protected"),
        key("turbo", Kind::Bool, Some("true"), "as fast as the host; false: as slow as a real drive"),
    ],
    ..Section::EMPTY
};

const NIC: Section = Section {
    name: "nic",
    help: "a network card",
    shape: Shape::Array { max: 16 },
    keys: &[
        key("model", Kind::Named("nic"), None, "chip; by default the profile's"),
        key(
            "backend",
            Kind::Choice(&["nat", "tap", "bridge", "socket", "switch", "script", "none"]),
            Some("nat"),
            "where the cable goes",
        ),
        key("mac", Kind::Mac, None, "MAC address; by default made from the name and the slot"),
        key("rate", Kind::Text, None, "bits a second each way, 10M; by default as fast as it goes"),
        key("create", Kind::Bool, None, "make the tap or bridge if it is not there, until the machine ends"),
        key("forward", Kind::List(&Kind::Text), None, "ports of the host that reach the guest: tcp:127.0.0.1:2222:22"),
        key("network", Kind::Text, Some("10.0.2.0/24"), "IPv4 network; gateway, name server, guest are its 2, 3, 15"),
        key("prefix6", Kind::List(&Kind::Text), Some("fd00:0:0:2::/64"), "IPv6 prefixes; none for no IPv6"),
        key("dns", Kind::List(&Kind::Text), None, "name servers that are asked; by default the host's"),
        key("outbound", Kind::Bool, Some("true"), "whether the guest reaches others than this machine's own network"),
        key("host_loopback", Kind::Bool, Some("false"), "whether the gateway's address leads to the host's loopback"),
        key("tftp", Kind::Path(PathCheck::Directory), None, "directory that the gateway offers by TFTP"),
        key("bootfile", Kind::Text, None, "file that DHCP names to who boots from the network"),
        key("interface", Kind::Word { max: 15 }, None, "tap interface, or bridge to join"),
        key("path", IN_DIRECTORY, None, "socket of the cable, or of a switch"),
        key("rom", READABLE, None, "the card's boot ROM, such as iPXE's"),
        SLOT,
    ],
    rules: &[
        Rule::OnlyWhen { key: "forward", when: "backend", is: &["nat"] },
        Rule::OnlyWhen { key: "network", when: "backend", is: &["nat"] },
        Rule::OnlyWhen { key: "prefix6", when: "backend", is: &["nat"] },
        Rule::OnlyWhen { key: "dns", when: "backend", is: &["nat"] },
        Rule::OnlyWhen { key: "outbound", when: "backend", is: &["nat"] },
        Rule::OnlyWhen { key: "host_loopback", when: "backend", is: &["nat"] },
        Rule::OnlyWhen { key: "tftp", when: "backend", is: &["nat"] },
        Rule::OnlyWhen { key: "bootfile", when: "backend", is: &["nat"] },
        Rule::OnlyWhen { key: "interface", when: "backend", is: &["tap", "bridge"] },
        Rule::OnlyWhen { key: "create", when: "backend", is: &["tap", "bridge"] },
        Rule::OnlyWhen { key: "path", when: "backend", is: &["socket", "switch"] },
        Rule::NeedsWhen { key: "backend", is: "bridge", needs: "interface" },
        Rule::NeedsWhen { key: "backend", is: "tap", needs: "interface" },
        Rule::NeedsWhen { key: "backend", is: "socket", needs: "path" },
        Rule::NeedsWhen { key: "backend", is: "switch", needs: "path" },
    ],
    ..Section::EMPTY
};

const SHARE: Section = Section {
    name: "share",
    help: "a directory that the guest mounts by 9P",
    shape: Shape::Array { max: 8 },
    keys: &[
        key("name", Kind::Text, None, "what the guest mounts it by, its tag"),
        key("path", Kind::Path(PathCheck::Directory), None, "the directory"),
        key("readonly", Kind::Bool, Some("false"), "refuse changes"),
        key("model", Kind::Named("share"), Some("virtio-9p"), "device"),
        SLOT,
    ],
    rules: &[Rule::Required("name"), Rule::Required("path")],
    ..Section::EMPTY
};

const DOMAIN: Section = Section {
    name: "domain",
    help: "a NUMA domain: processors, and the memory that is near to them",
    shape: Shape::Array { max: 8 },
    keys: &[
        key("cpus", Kind::List(&Kind::Text), None, "its processors, as \"0\" or \"0-3\""),
        key("size", MEMORY, None, "its memory; by default an equal share"),
    ],
    rules: &[Rule::Required("cpus")],
    ..Section::EMPTY
};

const USB: Section = Section {
    name: "usb",
    help: "a USB device",
    shape: Shape::Array { max: 32 },
    keys: &[
        key("device", Kind::Named("usb-device"), None, "what it is"),
        key("model", Kind::Named("usb"), Some("xhci"), "controller"),
        SLOT,
        key("unit", Kind::Int { min: 0, max: 15 }, None, "place at its controller, from 0; by default the next"),
    ],
    rules: &[Rule::Required("device")],
    ..Section::EMPTY
};

const INPUT: Section = Section {
    name: "input",
    help: "a keyboard, or something to point with, that is no USB device",
    shape: Shape::Array { max: 8 },
    keys: &[
        key(
            "device",
            Kind::Choice(&["keyboard", "mouse", "tablet", "evdev"]),
            None,
            "what it is; evdev is the device of the host at `path`",
        ),
        key("path", Kind::Path(PathCheck::Any), None, "the host's device, such as /dev/input/event3"),
        key("model", Kind::Named("input"), Some("virtio-input"), "how the guest sees it"),
        SLOT,
    ],
    rules: &[
        Rule::Required("device"),
        Rule::NeedsWhen { key: "device", is: "evdev", needs: "path" },
        Rule::OnlyWhen { key: "path", when: "device", is: &["evdev"] },
    ],
    ..Section::EMPTY
};

const SOUND: Section = Section {
    name: "sound",
    help: "a sound card",
    shape: Shape::Array { max: 4 },
    keys: &[
        key("play", IN_DIRECTORY, None, "where it plays: a device of the host such as /dev/dsp0, or a file NAME.wav"),
        key("rec", Kind::Path(PathCheck::Any), None, "what it records: a device of the host, or a file NAME.wav"),
        key("model", Kind::Named("sound"), Some("hda"), "the card"),
        SLOT,
    ],
    ..Section::EMPTY
};

const DEVICE: Section = Section {
    name: "device",
    help: "a device of any other kind",
    shape: Shape::Array { max: 32 },
    keys: &[key("model", Kind::Named("device"), None, "what it is"), SLOT],
    rules: &[Rule::Required("model")],
    ..Section::EMPTY
};

const SERIAL: Section = Section {
    name: "serial",
    help: "a serial port; the first is COM1",
    shape: Shape::Array { max: 24 },
    keys: &[
        key(
            "model",
            Kind::Named("serial"),
            None,
            "one of COM1 to COM4 (com) unless it is a PCI port, or a port of a virtio console",
        ),
        key("port", Kind::Text, None, "what a guest's programs know the port of a virtio console by"),
        SLOT,
        key(
            "backend",
            Kind::Choice(&["stdio", "console", "socket", "pty", "tty", "nmdm", "tcp", "file", "none"]),
            None,
            "where the other end of the cable is",
        ),
        key("path", IN_DIRECTORY, None, "socket, file, terminal device, end of a null modem, or name for the pty"),
        key("address", Kind::Address, None, "TCP address to listen on"),
        key("log", IN_DIRECTORY, None, "file that keeps its output; in the background there is one in any case"),
        key("log_size", Kind::Size { min: 4 << 10, max: 1 << 40 }, Some("1M"), "when that file is put aside"),
        key("log_keep", Kind::Int { min: 0, max: 99 }, Some("3"), "how many of those are kept"),
    ],
    rules: &[
        Rule::Required("backend"),
        Rule::OnlyWhen { key: "port", when: "model", is: &["virtio-console"] },
        Rule::OnlyWhen { key: "slot", when: "model", is: &["uart", "virtio-console"] },
        Rule::OnlyWhen { key: "log", when: "backend", is: &["console"] },
        Rule::NeedsWhen { key: "backend", is: "socket", needs: "path" },
        Rule::NeedsWhen { key: "backend", is: "file", needs: "path" },
        Rule::NeedsWhen { key: "backend", is: "tty", needs: "path" },
        Rule::NeedsWhen { key: "backend", is: "nmdm", needs: "path" },
        Rule::NeedsWhen { key: "backend", is: "tcp", needs: "address" },
        Rule::OnlyWhen { key: "path", when: "backend", is: &["console", "socket", "pty", "tty", "nmdm", "file"] },
        Rule::OnlyWhen { key: "address", when: "backend", is: &["tcp"] },
    ],
    ..Section::EMPTY
};

const CPU: Section = Section {
    name: "cpu",
    help: "what CPUID shows",
    keys: &[
        key("model", Kind::Named("cpu"), None, "processor; by default the profile's"),
        key("vendor", Kind::Choice(&["intel", "amd", "via"]), None, "vendor string"),
        key("family", Kind::Int { min: 3, max: 270 }, None, "family, extended part included"),
        key("number", Kind::Int { min: 0, max: 255 }, None, "model number, extended part included"),
        key("stepping", Kind::Int { min: 0, max: 15 }, None, "stepping"),
        key("enable", Kind::List(&Kind::Named("cpu-feature")), None, "features to add"),
        key("disable", Kind::List(&Kind::Named("cpu-feature")), None, "features to take away"),
        key("hypervisor", Kind::Choice(&["none", "bhyve", "kvm"]), Some("none"), "hypervisor leaf"),
        key("sockets", Kind::Int { min: 1, max: 32 }, None, "packages; by default all processors are in one"),
        key("cores", Kind::Int { min: 1, max: 32 }, None, "cores in each"),
        key("threads", Kind::Int { min: 1, max: 32 }, None, "threads in each core"),
        key(
            "pin",
            Kind::List(&Kind::Text),
            None,
            "host processors that run a virtual one, 0:2 or 0:4-7; by default all run any",
        ),
        key("strictio", Kind::Bool, Some("false"), "an access to a port that no device has ends the machine"),
        key("strictmsr", Kind::Bool, Some("true"), "an unknown MSR raises #GP; else it reads as 0"),
    ],
    ..Section::EMPTY
};

const ACPI: Section = Section {
    name: "acpi",
    help: "firmware tables",
    keys: &[
        key("enabled", Kind::Bool, Some("true"), "give the guest ACPI tables"),
        key("version", Kind::Choice(&["auto", "1.0", "2.0"]), Some("auto"), "their version"),
        key("mptable", Kind::Bool, Some("true"), "give the guest an MP table"),
    ],
    ..Section::EMPTY
};

const SCREEN: Section = Section {
    name: "screen",
    help: "the display adapter; a word alone is its backend",
    short: Some("backend"),
    keys: &[
        key("model", Kind::Named("screen"), None, "adapter, or none; by default the profile's"),
        key(
            "backend",
            Kind::Choice(&["none", "terminal", "vnc"]),
            Some("none"),
            "who looks at it: terminal shows its text where bhyve-rs was started, and types there; vnc: any viewer",
        ),
        key("rom", READABLE, None, "the adapter's BIOS, for external firmware"),
        key(
            "vnc",
            Kind::Address,
            None,
            "TCP address of the VNC server; with backend = \"vnc\" alone 5900 of this host",
        ),
        key("vnc_socket", IN_DIRECTORY, None, "UNIX socket of the VNC server"),
        key("vnc_remote", Kind::Bool, Some("false"), "other hosts may reach it without a password, too"),
        key("vnc_password", Kind::Text, None, "password of its viewers, of which eight letters matter"),
        key("vnc_password_file", READABLE, None, "file whose first line is that"),
        key("vnc_view_password_file", READABLE, None, "file with the password of viewers that cannot type"),
        key("vnc_readonly", Kind::Bool, Some("false"), "no viewer can type"),
        key("vnc_wait", Kind::Bool, Some("false"), "the guest starts when the first viewer is there"),
        key(
            "keyboard",
            Kind::Choice(&["us", "gb", "de", "fr", "es", "jp"]),
            Some("us"),
            "the guest's keyboard, for viewers that send characters and no keys",
        ),
        key(
            "keyboard_file",
            Kind::Path(PathCheck::Any),
            None,
            "in its place: a file as those in /usr/share/bhyve/kbdlayout",
        ),
        SLOT,
    ],
    rules: &[Rule::Exclusive(&["vnc_password", "vnc_password_file"]), Rule::Exclusive(&["keyboard", "keyboard_file"])],
    ..Section::EMPTY
};

const RTC: Section = Section {
    name: "rtc",
    help: "the clock that runs when the machine is off",
    keys: &[key("use_localtime", Kind::Bool, Some("false"), "it shows the host's local time instead of UTC")],
    ..Section::EMPTY
};

const LPC: Section = Section {
    name: "lpc",
    help: "the bridge to the ISA bus of the board bhyve",
    keys: &[
        key("slot", Kind::Int { min: 1, max: 31 }, Some("31"), "its PCI slot"),
        key(
            "fwcfg",
            Kind::Choice(&["none", "qemu"]),
            Some("none"),
            "whether firmware and guest find QEMU's configuration device; where there are items, they do",
        ),
    ],
    ..Section::EMPTY
};

const FWCFG: Section = Section {
    name: "fwcfg",
    help: "an item of QEMU's firmware configuration device",
    shape: Shape::Array { max: 64 },
    keys: &[
        key("name", Kind::Text, None, "its file name; those of users begin with opt/"),
        key("string", Kind::Text, None, "what is in it"),
        key("file", READABLE, None, "file that is in it"),
    ],
    rules: &[Rule::Required("name"), Rule::Exclusive(&["string", "file"])],
    ..Section::EMPTY
};

/// Strings of SMBIOS, by bhyve_config(5)'s names. Without one it is the board's.
const fn string(name: &'static str, help: &'static str) -> Key {
    key(name, Kind::Text, None, help)
}

const SMBIOS: Section = Section {
    name: "smbios",
    help: "what SMBIOS says of the machine",
    sections: &[
        Section {
            name: "bios",
            help: "BIOS",
            keys: &[
                string("vendor", "vendor"),
                string("version", "version"),
                string("release_date", "date, MM/DD/YYYY"),
            ],
            ..Section::EMPTY
        },
        Section {
            name: "system",
            help: "system",
            keys: &[
                string("manufacturer", "manufacturer"),
                string("product_name", "product"),
                string("version", "version"),
                string("serial_number", "serial number"),
                string("sku", "SKU"),
                string("family_name", "family"),
            ],
            ..Section::EMPTY
        },
        Section {
            name: "board",
            help: "main board",
            keys: &[
                string("manufacturer", "manufacturer"),
                string("product_name", "product"),
                string("version", "version"),
                string("serial_number", "serial number"),
                string("asset_tag", "asset tag"),
                string("location", "location in the chassis"),
            ],
            ..Section::EMPTY
        },
        Section {
            name: "chassis",
            help: "chassis",
            keys: &[
                string("manufacturer", "manufacturer"),
                string("version", "version"),
                string("serial_number", "serial number"),
                string("asset_tag", "asset tag"),
                string("sku", "SKU"),
            ],
            ..Section::EMPTY
        },
    ],
    ..Section::EMPTY
};

const HOST: Section = Section {
    name: "host",
    help: "what the machine's process asks of the host",
    keys: &[
        key("wired", Kind::Bool, Some("false"), "keep guest memory from being swapped out"),
        key("core", Kind::Bool, Some("false"), "put guest memory into core dumps"),
    ],
    ..Section::EMPTY
};

const QUIRKS: Section = Section {
    name: "quirks",
    help: "work-arounds; auto follows guest, profile and backend",
    keys: &[
        key("clflush", AUTO, Some("auto"), "keep the guest from CLFLUSH on device memory"),
        key("uhci", AUTO, Some("auto"), "leave out, or disable in the guest, a UHCI that it would hang on"),
        key("apm", AUTO, Some("auto"), "offer the APM BIOS"),
    ],
    ..Section::EMPTY
};

const SANDBOX: Section = Section {
    name: "sandbox",
    help: "what a machine's process may open while it runs",
    keys: &[key(
        "media",
        Kind::List(&Kind::Path(PathCheck::Directory)),
        None,
        "directories of images to insert, beside those of the images that are configured",
    )],
    ..Section::EMPTY
};

const DEBUG: Section = Section {
    name: "debug",
    help: "a debug server, for GDB",
    keys: &[
        key("address", Kind::Address, None, "TCP address to listen on"),
        key("socket", IN_DIRECTORY, None, "UNIX socket to listen on instead"),
        key("remote", Kind::Bool, Some("false"), "other hosts may reach it, and own the guest"),
        key("wait", Kind::Bool, Some("false"), "the guest starts when a debugger lets it"),
    ],
    rules: &[Rule::Exclusive(&["address", "socket"])],
    ..Section::EMPTY
};

const STOP: Section = Section {
    name: "stop",
    help: "how the guest is brought to an end",
    keys: &[
        key(
            "method",
            Kind::Choice(&["auto", "acpi", "keyboard", "kill"]),
            Some("auto"),
            "power button, Ctrl-Alt-Delete, or neither; auto: the button for a guest that has taken over ACPI",
        ),
        key("repeat", Kind::Duration, Some("10s"), "time until it is asked again; 0s: never"),
        key("timeout", Kind::Duration, Some("60s"), "time until its power is cut; 0s: never"),
    ],
    ..Section::EMPTY
};

const AUTOSTART: Section = Section {
    name: "autostart",
    help: "start with the host",
    keys: &[
        key("enabled", Kind::Bool, Some("false"), "start with the host"),
        key("order", Kind::Int { min: 0, max: 9999 }, Some("100"), "lower ones start first"),
        key("after", Kind::List(&NAME), None, "machines that must run before"),
        key("delay", Kind::Duration, Some("0s"), "wait before the start"),
        key("restart", Kind::Choice(&["never", "reboot", "failure", "always"]), Some("reboot"), "when to start again"),
        key("user", Kind::Word { max: 32 }, None, "whose process it is; by default root's, as the one who starts it"),
    ],
    ..Section::EMPTY
};

const VARS: Section =
    Section { name: "vars", help: "names of one's own, for %(vars.name)", shape: Shape::Free, ..Section::EMPTY };

const BHYVE: Section = Section {
    name: "bhyve",
    help: "bhyve_config(5)'s keys that this has no key of its own for, as a conversion keeps them",
    shape: Shape::Tree,
    ..Section::EMPTY
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Catalogue, Draft, Origin, Schema};
    use std::collections::HashSet;

    struct Nothing;

    impl Catalogue for Nothing {
        fn words(&self, class: &str) -> Vec<&str> {
            match class {
                "profile" => vec!["pc"],
                "share" => vec!["virtio-9p"],
                "usb" => vec!["xhci"],
                "input" => vec!["virtio-input"],
                "sound" => vec!["hda"],
                _ => Vec::new(),
            }
        }
    }

    #[test]
    fn every_default_is_a_valid_value() {
        let mut draft = Draft::new(Origin::named("test"));
        draft.set("name=x", &Origin::named("test"));
        let machine = draft.check(Schema { root: &MACHINE, catalogue: &Nothing }).unwrap();
        assert_eq!(machine.size("memory"), 256 << 20);
        assert_eq!(machine.child("boot").words("order"), ["disk", "cd", "floppy", "net"]);
        // Arrays have no elements by default; their keys are tried one by one.
        let mut defaults = 0;
        MACHINE.walk(&mut |path, _, key| {
            let Some(default) = key.default else { return };
            let mut draft = draft.clone();
            draft.set(&format!("{}={default}", path.replace('*', "0")), &Origin::named(path));
            let errors = draft.check(Schema { root: &MACHINE, catalogue: &Nothing }).err().map_or(Vec::new(), |e| e.0);
            // The element that holds the key may want others; a key that wants another has no default.
            assert!(errors.iter().all(|error| error.message.contains("missing")), "{errors:?}");
            defaults += 1;
        });
        assert!(defaults > 15);
    }

    #[test]
    fn names_are_unique_and_explained() {
        fn walk(section: &Section) {
            let mut names = HashSet::new();
            for (name, help) in section.keys.iter().map(|key| (key.name, key.help)) {
                assert!(names.insert(name) && !help.is_empty(), "{}.{name}", section.name);
            }
            for below in section.sections {
                assert!(names.insert(below.name) && !below.help.is_empty(), "{}.{}", section.name, below.name);
                walk(below);
            }
        }
        walk(&MACHINE);
    }

    #[test]
    fn rules_speak_of_keys_that_exist() {
        fn walk(section: &Section) {
            let known = |key: &str| assert!(section.keys.iter().any(|k| k.name == key), "{}.{key}", section.name);
            for rule in section.rules {
                match *rule {
                    Rule::Required(key) => known(key),
                    Rule::Exclusive(keys) => keys.iter().for_each(|key| known(key)),
                    Rule::Needs(key, needs) | Rule::NeedsWhen { key, needs, .. } => {
                        [key, needs].into_iter().for_each(known)
                    }
                    Rule::OnlyWhen { key, when, .. } => [key, when].into_iter().for_each(known),
                    Rule::Unique { keys, .. } => {
                        let mut paths = HashSet::new();
                        MACHINE.walk(&mut |path, _, _| paths.extend([path.to_owned()]));
                        assert!(keys.iter().all(|key| paths.contains(*key)), "{keys:?}");
                    }
                }
            }
            section.sections.iter().for_each(walk);
        }
        walk(&MACHINE);
    }
}
