//! What `vm` can be asked for.

use anyhow::Result;

/// A command: its name, what is behind it, and what it does.
pub type Entry = (&'static str, &'static [&'static str], &'static str);

/// All commands but the one that is not for people.
pub const COMMANDS: [Entry; 38] = [
    ("version", &[""], "say which version this is"),
    ("usage", &[""], "list the commands"),
    ("help", &["[COMMAND]"], "say how a command is used"),
    ("init", &[""], "prepare the host: make the bridges of the switches; once after each boot"),
    (
        "switch",
        &[
            "list",
            "info [NAME ...]",
            "create [-t standard|manual|vale|netgraph] [-i INTERFACE] [-n VLAN] [-m MTU] [-a ADDRESS] [-b BRIDGE] [-p] NAME",
            "destroy NAME",
            "add|remove NAME INTERFACE",
            "vlan NAME ID",
            "address NAME ADDRESS/BITS|none [delete]",
            "private NAME on|off",
        ],
        "manage the switches that guests are plugged into",
    ),
    (
        "datastore",
        &["list", "add NAME PATH|zfs:DATASET", "iso|img NAME PATH", "remove NAME"],
        "manage the places for guests and media",
    ),
    ("get", &["all", "SETTING ..."], "show settings of the host: console, compress, decompress, suspend"),
    ("set", &["SETTING=VALUE ..."], "change settings of the host"),
    ("passthru", &[""], "PCI devices for guests: there is no passthru in this version"),
    ("list", &["[-rv] [-t TAG]"], "list the guests: -r those that run, -v with their use of the host"),
    ("info", &["[NAME ...]"], "say all about guests"),
    (
        "create",
        &[
            "[-d DATASTORE] [-t TEMPLATE] [-s SIZE] [-c CPUS] [-m MEMORY] [-i IMAGE] [-C [-k KEYS] [-n NETWORK] [-u USERDATA]] NAME",
        ],
        "make a guest of a template",
    ),
    ("rename", &["NAME NEW"], "change a guest's name"),
    ("clone", &["NAME[@SNAPSHOT] NEW"], "make a guest of another one"),
    ("destroy", &["[-f] NAME[@SNAPSHOT]"], "remove a guest, or a snapshot of it"),
    (
        "add",
        &["-d disk -s SIZE [-t file|zvol|sparse-zvol] NAME", "-d network -s SWITCH NAME"],
        "add a device to a guest",
    ),
    ("configure", &["NAME [meta-data|network-config|user-data]"], "edit a guest's settings"),
    ("edit", &["NAME [meta-data|network-config|user-data]"], "as configure"),
    (
        "image",
        &["list", "create [-d DESCRIPTION] [-u] NAME", "provision [-d DATASTORE] UUID NAME", "destroy UUID"],
        "pack guests, and make guests of packed ones (ZFS)",
    ),
    ("console", &["[-w] NAME [com1|com2|com3|com4]"], "connect to a guest's serial port: -w when it has started"),
    ("migrate", &["NAME HOST"], "move a guest: not in this version"),
    ("tags", &["add|remove NAME TAG ...", "list NAME", "find TAG"], "label guests"),
    ("install", &["[-fi] NAME ISO"], "start a guest with an install medium"),
    ("start", &["[-fi] NAME ..."], "start guests: -f on this terminal, -i and connect to the console"),
    ("stop", &["NAME ..."], "press guests' power buttons"),
    ("restart", &["NAME"], "press a guest's power button, and start it again"),
    ("suspend", &["NAME ..."], "stop a guest and keep its memory: not in this version"),
    ("discard", &["[-f] NAME"], "remove the memory of a suspended guest"),
    ("startall", &[""], "start the guests of vm_list"),
    ("stopall", &["[-f]"], "press the power buttons of all machines, in the reverse order of vm_list; -f all at once"),
    ("suspendall", &[""], "as suspend"),
    ("reset", &["[-f] NAME"], "press a guest's reset button"),
    ("poweroff", &["[-f] NAME"], "cut a guest's power"),
    ("snapshot", &["[-f] NAME[@SNAPSHOT]"], "keep a copy of a guest's disks; -f while it runs (ZFS)"),
    ("rollback", &["[-r] NAME@SNAPSHOT"], "go back to a snapshot; -r gives up those after it"),
    ("iso", &["[-46] [-d DATASTORE] [URL]"], "list install media, or get one"),
    ("img", &["[-46] [-d DATASTORE] [URL]"], "list disk images, or get one"),
    ("_run", &["[-ft] NAME [ISO]"], "run a guest to its end; for start"),
];

/// The version, as vm-bhyve says its own.
pub fn version() -> String {
    format!("vm: virtual machine management of bhyve-rs v{}", env!("CARGO_PKG_VERSION"))
}

/// All commands.
pub fn all() -> String {
    let mut text =
        format!("{}\n\nvm [-D DATASTORE] [--json] COMMAND ...; unique beginnings of commands will do\n\n", version());
    for (name, _, what) in COMMANDS.iter().filter(|(name, ..)| !name.starts_with('_')) {
        text.push_str(&format!("  {name:<12} {what}\n"));
    }
    text
}

/// How a command is used.
pub fn of(command: &str) -> Option<String> {
    let (name, uses, what) = COMMANDS.iter().find(|(name, ..)| *name == command)?;
    let mut text = "Usage:\n".to_owned();
    for line in *uses {
        text.push_str(format!("    vm {name} {line}").trim_end());
        text.push('\n');
    }
    text.push_str(&format!("\n{what}\n"));
    Some(text)
}

/// What a command line of somebody who did not know how gets.
///
/// # Errors
/// None; so that it can stand where a command does.
pub fn missing(command: &str) -> Result<u8> {
    eprint!("{}", of(command).unwrap_or_else(all));
    Ok(1)
}
