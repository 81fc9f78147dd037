//! The command line of bhyve(8) for a guest, slot by slot as vm-bhyve gives them out: a guest that has been installed
//! finds its devices where they were.

use anyhow::{Context, Result};

use super::conf::{Conf, yes};
use super::store::Guest;

/// Ports of virtio consoles that a guest can have.
const CONSOLES: usize = 16;
/// The last slot of bus 0 is the LPC bridge's.
const LPC: u32 = 31;
/// Slots of a bus.
const SLOTS: u32 = 32;

/// What of a guest's command line is not in its settings.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Its UUID.
    pub uuid: String,
    /// The boot ROM, for guests that no loader loads.
    pub bootrom: Option<String>,
    /// Install medium.
    pub media: Option<String>,
    /// The first run since it was started.
    pub first: bool,
    /// Of each NIC: backend and options; `None` if there is no backend for it.
    pub nics: Vec<Option<String>>,
    /// Where its screen listens.
    pub screen: Option<String>,
    /// COM ports: name and other end.
    pub coms: Vec<(String, String)>,
    /// An empty disc.
    pub null_iso: String,
}

/// The parts of the command line, as the log has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Argv {
    /// Devices, first because `-o` of a device must come behind its `-s`.
    pub devices: Vec<String>,
    /// Options.
    pub options: Vec<String>,
    /// The install medium.
    pub media: Vec<String>,
    /// COM ports.
    pub coms: Vec<String>,
}

impl Argv {
    /// All of it.
    pub fn all(&self, name: &str) -> Vec<String> {
        let parts = [&self.devices, &self.options, &self.media, &self.coms];
        parts.into_iter().flatten().cloned().chain([name.to_owned()]).collect()
    }
}

/// The topology that `-c` takes.
///
/// # Errors
/// When the guest has no `cpu`.
pub fn cpu(conf: &Conf) -> Result<String> {
    let mut text = conf.get("cpu").context("cpu is missing in its configuration")?.to_owned();
    for part in ["sockets", "cores", "threads"] {
        if let Some(n) = conf.get(&format!("cpu_{part}")) {
            text.push_str(&format!(",{part}={n}"));
        }
    }
    Ok(text)
}

/// The guest has a screen.
pub fn has_screen(conf: &Conf, setup: &Setup) -> bool {
    setup.bootrom.is_some() && conf.yes("graphics")
}

/// Where devices go.
struct Slots {
    bus: u32,
    slot: u32,
    function: u32,
    end: u32,
    devices: Vec<String>,
}

impl Slots {
    fn add(&mut self, device: &str) {
        let device = format!("{}:{}:{},{device}", self.bus, self.slot, self.function);
        self.devices.extend(["-s".to_owned(), device]);
    }

    /// A device with a slot of its own.
    fn single(&mut self, device: &str) {
        self.function = 0;
        self.add(device);
        self.next();
    }

    fn next(&mut self) {
        self.slot += 1;
        self.function = 0;
        self.wrap();
    }

    fn wrap(&mut self) {
        if self.slot >= self.end {
            // Buses above 0 have no LPC bridge in their last slot.
            (self.bus, self.slot, self.end) = (self.bus + 1, 0, SLOTS);
        }
    }

    fn next_when_full(&mut self) {
        if self.function >= 8 {
            self.function = 0;
            self.slot += 1;
        }
        self.wrap();
    }
}

/// Makes the command line.
///
/// # Errors
/// When the settings are incomplete.
pub fn build(guest: &Guest, setup: &Setup) -> Result<Argv> {
    let conf = &guest.conf;
    let number = |key: &str, default: u32| -> Result<u32> {
        let Some(text) = conf.get(key) else { return Ok(default) };
        text.parse().ok().filter(|n| *n < SLOTS).with_context(|| format!("{key}={text}: a slot is a number below 32"))
    };
    let mut devices = Vec::new();
    match conf.or("hostbridge", "standard") {
        "amd" => devices.extend(["-s".to_owned(), "0,amd_hostbridge".to_owned()]),
        no if no.starts_with("no") => {}
        _ => devices.extend(["-s".to_owned(), "0,hostbridge".to_owned()]),
    }
    let fwcfg = conf.get("fwcfg").map(|kind| format!(",fwcfg={kind}")).unwrap_or_default();
    devices.extend(["-s".to_owned(), format!("{LPC},lpc{fwcfg}")]);
    let mut slots = Slots { bus: 0, slot: number("start_slot", 4)?, function: 0, end: LPC, devices };
    disks(guest, setup, &mut slots)?;
    nics(conf, setup, &mut slots);
    if conf.yes("virt_random") {
        slots.single("virtio-rnd");
    }
    let wired = passthru(conf, &mut slots);
    if let Some(screen) = setup.screen.as_ref().filter(|_| has_screen(conf, setup)) {
        slots.single(&fbuf(conf, setup, screen));
    }
    if conf.yes("xhci_mouse") {
        slots.single("xhci,tablet");
    }
    if conf.yes("sound") {
        let rec = conf.get("sound_rec").map(|rec| format!(",rec={rec}")).unwrap_or_default();
        slots.single(&format!("hda,play={}{rec}", conf.or("sound_play", "/dev/dsp0")));
    }
    consoles(guest, &mut slots);
    let options = options(conf, setup, wired, slots.bus > 0)?;
    let media = match &setup.media {
        Some(path) => {
            let slot = number("install_slot", 3)?;
            let device = match path.to_ascii_lowercase().ends_with(".iso") {
                // What was installed is to start after the installer.
                true if setup.first => format!("{slot}:0,ahci-cd,{path},ro,bootindex=1"),
                true => format!("{slot}:0,ahci-cd,{path},ro"),
                false => format!("{slot}:0,ahci-hd,{path},ro"),
            };
            vec!["-s".to_owned(), device]
        }
        None if conf.or("loader", "") == "uefi" && conf.yes("nulliso_fix") => {
            vec!["-s".to_owned(), format!("{}:0,ahci-cd,{}", number("install_slot", 3)?, setup.null_iso)]
        }
        None => Vec::new(),
    };
    let coms = setup.coms.iter().flat_map(|(port, end)| ["-l".to_owned(), format!("{port},{end}")]).collect();
    Ok(Argv { devices: slots.devices, options, media, coms })
}

fn options(conf: &Conf, setup: &Setup, wired_for_passthru: bool, more_buses: bool) -> Result<Vec<String>> {
    let memory = conf.get("memory").context("memory is missing in its configuration")?;
    let mut options: Vec<String> = ["-c", &cpu(conf)?, "-m", memory].map(str::to_owned).to_vec();
    // The manual page and the program disagree about the key's name.
    let msr = conf.yes("ignore_msr") || conf.yes("ignore_bad_msr");
    options.push(if msr { "-AHPww" } else { "-AHPw" }.to_owned());
    if let Some(rom) = &setup.bootrom {
        options.extend(["-l".to_owned(), format!("bootrom,{rom}")]);
    }
    options.extend(conf.words("bhyve_options"));
    if conf.yes("wired_memory") {
        options.push("-S".to_owned());
    }
    options.extend(["-U".to_owned(), setup.uuid.clone()]);
    if yes(conf.or("utctime", "yes")) {
        options.push("-u".to_owned());
    }
    if wired_for_passthru {
        options.push("-S".to_owned());
    }
    if more_buses {
        options.push("-Y".to_owned());
    }
    Ok(options)
}

/// Disks: a slot each under firmware, which may look at no other function than the first, else a function each.
fn disks(guest: &Guest, setup: &Setup, slots: &mut Slots) -> Result<()> {
    let firmware = setup.bootrom.is_some();
    let limit = guest.conf.get("ahci_device_limit").and_then(|n| n.parse().ok()).unwrap_or(1);
    let limit = if (2..=32).contains(&limit) { limit } else { 1 };
    let advance = |slots: &mut Slots| if firmware { slots.slot += 1 } else { slots.function += 1 };
    let mut group: Vec<String> = Vec::new();
    let disks = guest.disks();
    for disk in &disks {
        slots.next_when_full();
        let path = guest.disk_path(&disk.name, &disk.dev)?;
        let opts = if disk.opts.is_empty() { String::new() } else { format!(",{}", disk.opts) };
        if let (2.., Some(port)) = (limit, disk.kind.strip_prefix("ahci-")) {
            group.push(format!(",{port}:{path}{opts}"));
            if group.len() < limit {
                continue;
            }
            slots.add(&format!("ahci{}", group.concat()));
            group.clear();
        } else {
            slots.add(&format!("{},{path}{opts}", disk.kind));
        }
        advance(slots);
        slots.wrap();
    }
    if !group.is_empty() {
        let place = match slots.bus {
            // As vm-bhyve writes it.
            0 => format!("{}:{}", slots.slot, slots.function),
            bus => format!("{bus}:{}:{}", slots.slot, slots.function),
        };
        slots.devices.extend(["-s".to_owned(), format!("{place},ahci{}", group.concat())]);
        if firmware {
            slots.slot += 1;
        }
    }
    if !disks.is_empty() && !firmware {
        slots.slot += 1;
        slots.function = 0;
    }
    slots.wrap();
    Ok(())
}

fn nics(conf: &Conf, setup: &Setup, slots: &mut Slots) {
    for (n, nic) in setup.nics.iter().enumerate() {
        slots.next_when_full();
        if let (Some(nic), Some(kind)) = (nic, conf.get(&format!("network{n}_type"))) {
            slots.add(&format!("{kind},{nic}"));
            slots.function += 1;
        }
    }
    if !setup.nics.is_empty() {
        slots.next();
    }
}

/// Devices of the host. What was on one slot there may have to stay together here.
fn passthru(conf: &Conf, slots: &mut Slots) -> bool {
    let mut last: Option<&str> = None;
    let mut count = 0;
    slots.function = 0;
    while let Some(device) = conf.get(&format!("passthru{count}")) {
        let options = conf.get(&format!("passthru{count}_options")).map(|o| format!(",{o}")).unwrap_or_default();
        count += 1;
        if let Some((device, place)) = device.split_once('=') {
            slots.devices.extend(["-s".to_owned(), format!("{}:{place},passthru,{device}{options}", slots.bus)]);
            continue;
        }
        let from = device.split('/').next();
        if last.is_some() && last != from {
            slots.next();
        }
        slots.add(&format!("passthru,{device}{options}"));
        last = from;
        slots.function += 1;
    }
    if count > 0 {
        slots.next();
    }
    count > 0
}

fn fbuf(conf: &Conf, setup: &Setup, screen: &str) -> String {
    let mut text = format!("fbuf,tcp={screen}");
    if let Some(resolution) = conf.get("graphics_res") {
        let (w, h) = resolution.split_once('x').unwrap_or((resolution, resolution));
        text.push_str(&format!(",w={w},h={h}"));
    }
    for (key, option) in [("graphics_vga", "vga"), ("vnc_password", "password")] {
        if let Some(value) = conf.get(key) {
            text.push_str(&format!(",{option}={value}"));
        }
    }
    let wait = match conf.or("graphics_wait", "auto") {
        // An installer's first menu should not pass unseen.
        "auto" => setup.media.is_some() && setup.first,
        value => yes(value),
    };
    if wait {
        text.push_str(",wait");
    }
    text
}

/// The names of the ports of the virtio console.
pub fn console_ports(conf: &Conf) -> Vec<String> {
    let port = |n: usize| {
        let name = conf.get(&format!("virt_console{n}"))?;
        let number = ["yes", "on", "1"].iter().any(|yes| name.eq_ignore_ascii_case(yes));
        Some(if number { n.to_string() } else { name.to_owned() })
    };
    (0..CONSOLES).map_while(port).collect()
}

fn consoles(guest: &Guest, slots: &mut Slots) {
    let ports = console_ports(&guest.conf);
    if !ports.is_empty() {
        let port = |name: &String| format!(",{name}={}", guest.file(&format!("vtcon.{name}")).display());
        slots.single(&format!("virtio-console{}", ports.iter().map(port).collect::<String>()));
    }
}

/// The command line of the loader in front of bhyve(8), and the files that it reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loader {
    /// The program.
    pub program: &'static str,
    /// Its arguments.
    pub args: Vec<String>,
    /// Files in the guest's directory.
    pub files: Vec<(&'static str, String)>,
}

/// What loads a guest without firmware. `console` is where it talks to the user, if it is to.
///
/// # Errors
/// When the settings are incomplete, or the loader is not known.
pub fn loader(guest: &Guest, setup: &Setup, console: Option<&str>) -> Result<Loader> {
    let conf = &guest.conf;
    let boot = conf.get("disk0_name").context("non-uefi loaders require a boot disk device")?;
    let boot_dev = conf.or("disk0_dev", "file");
    let disk = guest.disk_path(boot, boot_dev)?;
    let memory = conf.get("memory").context("memory is missing in its configuration")?;
    let timeout = conf.or("loader_timeout", "3");
    let mut args: Vec<String> = Vec::new();
    let mut push = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
    if let Some(console) = console {
        push(&["-c", console]);
    }
    if conf.yes("wired_memory") || conf.get("passthru0").is_some() {
        push(&["-S"]);
    }
    let mut files = Vec::new();
    let program = match conf.or("loader", "") {
        "bhyveload" => {
            push(&["-m", memory]);
            for (name, value) in
                [("smbios.system.uuid", &*setup.uuid), ("autoboot_delay", timeout), ("bhyve_vm_name", &guest.name)]
            {
                push(&["-e", &format!("{name}={value}")]);
            }
            conf.words("bhyveload_args").iter().for_each(|word| push(&[word]));
            if let Some(library) = conf.get("bhyveload_loader") {
                push(&["-l", library]);
            }
            match (&setup.media, boot_dev) {
                (Some(media), _) => push(&["-d", media]),
                (None, "9p") => {
                    let (share, path) = disk
                        .split_once('=')
                        .filter(|(share, path)| !share.is_empty() && !path.is_empty())
                        .context("a virtio-9p boot disk is NAME=/path/to/root")?;
                    push(&["-h", path, "-e", &format!("vfs.root.mountfrom=p9fs:{share}")]);
                }
                (None, _) => push(&["-d", &disk]),
            }
            "bhyveload"
        }
        "grub" => {
            let dir = guest.dir().display().to_string();
            push(&["-m", &format!("{dir}/device.map"), "-M", memory]);
            let mut map = setup.media.as_ref().map(|media| format!("(cd0) {media}\n")).unwrap_or_default();
            map.push_str(&format!("(hd0) {disk}\n"));
            for n in 1.. {
                let Some(name) = conf.get(&format!("disk{n}_name")) else { break };
                let path = guest.disk_path(name, conf.or(&format!("disk{n}_dev"), ""))?;
                map.push_str(&format!("(hd{n}) {path}\n"));
            }
            files.push(("device.map", map));
            let root = match conf.get("grub_run_partition") {
                _ if setup.media.is_some() => "cd0".to_owned(),
                _ if conf.yes("grub_run_no_partition") => "hd0".to_owned(),
                partition => format!("hd0,{}", partition.unwrap_or("1")),
            };
            let kind = if setup.media.is_some() { "install" } else { "run" };
            let commands: Vec<&str> = (0..).map_while(|n| conf.get(&format!("grub_{kind}{n}"))).collect();
            if commands.is_empty() {
                push(&["-r", &root]);
                for (key, option) in [("grub_run_dir", "-d"), ("grub_run_file", "-g")] {
                    if let (None, Some(value)) = (&setup.media, conf.get(key)) {
                        push(&[option, value]);
                    }
                }
            } else {
                let name = &guest.name;
                let mut text = format!("timeout={timeout}\nmenuentry '{name} (bhyve {kind})' {{\n    root={root}\n");
                // An entry boots at its end by itself.
                for command in commands.iter().filter(|command| **command != "boot") {
                    text.push_str(&format!("    {command}\n"));
                }
                text.push_str("}\n");
                files.push(("grub.cfg", text));
                push(&["-r", "host", "-d", &dir]);
            }
            "grub-bhyve"
        }
        other => anyhow::bail!(
            "unsupported loader {other:?}; there are bhyveload, grub, uefi, uefi-csm, uefi-custom, uefi-devel and bios"
        ),
    };
    push(&[&guest.name]);
    Ok(Loader { program, args, files })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::store::Store;

    const BASE: &str = "loader=uefi\ncpu=2\nmemory=1G\ndisk0_type=virtio-blk\ndisk0_name=disk0.img\n";

    fn guest(text: &str) -> Guest {
        let store = Store { name: "default".to_owned(), path: "/vm".into(), dataset: None };
        Guest { name: "web".to_owned(), store, conf: Conf::parse(text) }
    }

    fn setup() -> Setup {
        Setup {
            uuid: "U".to_owned(),
            bootrom: Some("FW".to_owned()),
            first: true,
            screen: Some("0.0.0.0:5900".to_owned()),
            coms: vec![("com1".to_owned(), "console".to_owned())],
            null_iso: "/vm/.config/null.iso".to_owned(),
            ..Setup::default()
        }
    }

    fn legacy() -> Setup {
        Setup { bootrom: None, ..setup() }
    }

    fn nics(setup: Setup, count: usize) -> Setup {
        Setup { nics: (0..count).map(|n| Some(format!("tap{n}"))).collect(), ..setup }
    }

    /// The command line of a guest with more settings than the base.
    fn line(more: &str, setup: &Setup) -> String {
        build(&guest(&format!("{more}\n{BASE}")), setup).unwrap().all("web").join(" ")
    }

    #[test]
    fn devices_are_first_and_the_name_is_last() {
        assert_eq!(
            line("", &setup()),
            "-s 0,hostbridge -s 31,lpc -s 0:4:0,virtio-blk,/vm/web/disk0.img -c 2 -m 1G -AHPw -l bootrom,FW -U U -u \
             -l com1,console web"
        );
    }

    #[test]
    fn the_host_bridge_can_be_another_or_none() {
        assert!(line("hostbridge=amd", &setup()).starts_with("-s 0,amd_hostbridge -s 31,lpc"));
        assert!(line("hostbridge=none", &setup()).starts_with("-s 31,lpc"));
        assert!(line("fwcfg=qemu", &setup()).contains("-s 31,lpc,fwcfg=qemu "));
    }

    #[test]
    fn disks_have_slots_under_firmware_and_functions_else() {
        let two =
            "disk1_type=ahci-hd\ndisk1_name=/dev/da0\ndisk1_dev=custom\ndisk1_opts=nocache,ro\nnetwork0_type=e1000";
        let uefi = line(two, &nics(setup(), 1));
        assert!(
            uefi.contains("0:4:0,virtio-blk,/vm/web/disk0.img -s 0:5:0,ahci-hd,/dev/da0,nocache,ro -s 0:6:0,e1000")
        );
        let bsd = line(two, &nics(legacy(), 1));
        assert!(bsd.contains("0:4:0,virtio-blk,/vm/web/disk0.img -s 0:4:1,ahci-hd,/dev/da0,nocache,ro -s 0:5:0,e1000"));
    }

    #[test]
    fn nine_disks_are_more_than_a_slot_has_functions() {
        let disks: String = (1..10).map(|n| format!("disk{n}_type=nvme\ndisk{n}_name=d{n}\n")).collect();
        let text = line(&disks, &legacy());
        assert!(text.contains("0:4:7,nvme,/vm/web/d7 -s 0:5:0,nvme,/vm/web/d8 -s 0:5:1,nvme,/vm/web/d9"), "{text}");
    }

    #[test]
    fn ahci_disks_share_controllers() {
        let disks = "ahci_device_limit=2\ndisk1_type=ahci-hd\ndisk1_name=b\ndisk1_opts=ro\ndisk2_type=ahci-cd\n\
                     disk2_name=c\ndisk3_type=ahci-hd\ndisk3_name=d";
        let text = line(disks, &setup());
        assert!(text.contains("-s 0:5:0,ahci,hd:/vm/web/b,ro,cd:/vm/web/c -s 6:0,ahci,hd:/vm/web/d -c"), "{text}");
        // One a controller is the default, and so is what is out of bounds.
        assert!(line("ahci_device_limit=33\ndisk1_type=ahci-hd\ndisk1_name=b", &setup()).contains("ahci-hd,/vm/web/b"));
    }

    #[test]
    fn nics_share_a_slot_and_one_without_a_backend_is_left_out() {
        let two = "network0_type=virtio-net\nnetwork1_type=e1000\nvirt_random=yes";
        let mut setup = nics(setup(), 2);
        setup.nics[0] = Some("tap3,mac=58:9c:fc:01:02:03".to_owned());
        let text = line(two, &setup);
        assert!(
            text.contains("-s 0:5:0,virtio-net,tap3,mac=58:9c:fc:01:02:03 -s 0:5:1,e1000,tap1 -s 0:6:0,virtio-rnd")
        );
        setup.nics[0] = None;
        assert!(line(two, &setup).contains("-s 0:5:0,e1000,tap1 -s 0:6:0,virtio-rnd"));
    }

    #[test]
    fn passthru_keeps_functions_together_and_wires_memory() {
        let devices =
            "passthru0=4/0/0\npassthru1=4/0/1\npassthru2=5/0/0\npassthru2_options=rom=/r\npassthru3=6/0/0=8:2";
        let text = line(devices, &setup());
        let places =
            "-s 0:5:0,passthru,4/0/0 -s 0:5:1,passthru,4/0/1 -s 0:6:0,passthru,5/0/0,rom=/r -s 0:8:2,passthru,6/0/0";
        assert!(text.contains(places), "{text}");
        assert!(text.contains("-U U -u -S -l"), "{text}");
    }

    #[test]
    fn screens_are_for_firmware_only_and_wait_while_installing() {
        let screen = "graphics=yes\ngraphics_res=1600x900\ngraphics_vga=off\nvnc_password=x\nxhci_mouse=yes";
        let text = line(screen, &setup());
        let fbuf = "-s 0:5:0,fbuf,tcp=0.0.0.0:5900,w=1600,h=900,vga=off,password=x";
        assert!(text.contains(&format!("{fbuf} -s 0:6:0,xhci,tablet")), "{text}");
        assert!(!line(screen, &legacy()).contains("fbuf"));
        let mut installing = Setup { media: Some("/i.iso".to_owned()), ..setup() };
        assert!(line(screen, &installing).contains(&format!("{fbuf},wait")));
        assert!(!line(&format!("graphics_wait=no\n{screen}"), &installing).contains(",wait"));
        installing.first = false;
        assert!(!line(screen, &installing).contains(",wait"));
        assert!(line(&format!("graphics_wait=yes\n{screen}"), &setup()).contains(",wait"));
    }

    #[test]
    fn sound_and_consoles_come_last() {
        let text = line("sound=yes\nsound_rec=/dev/dsp1\nvirt_console0=yes\nvirt_console1=log", &setup());
        let end = "-s 0:5:0,hda,play=/dev/dsp0,rec=/dev/dsp1 \
                   -s 0:6:0,virtio-console,0=/vm/web/vtcon.0,log=/vm/web/vtcon.log -c";
        assert!(text.contains(end), "{text}");
    }

    #[test]
    fn devices_beyond_the_last_slot_are_on_the_next_bus() {
        let text = line("start_slot=30\nvirt_random=yes\nxhci_mouse=yes", &setup());
        assert!(
            text.contains("0:30:0,virtio-blk,/vm/web/disk0.img -s 1:0:0,virtio-rnd -s 1:1:0,xhci,tablet"),
            "{text}"
        );
        assert!(text.contains("-u -Y -l"), "{text}");
        assert!(build(&guest(&format!("start_slot=99\n{BASE}")), &setup()).is_err());
    }

    #[test]
    fn options_have_their_order() {
        let more = "cpu_sockets=1\ncpu_cores=2\ncpu_threads=1\nignore_msr=yes\nbhyve_options=-w  -o a.b=c\n\
                    wired_memory=yes\nutctime=no";
        let options = "-c 2,sockets=1,cores=2,threads=1 -m 1G -AHPww -l bootrom,FW -w -o a.b=c -S -U U -l com1";
        assert!(line(more, &setup()).contains(options), "{}", line(more, &setup()));
    }

    #[test]
    fn install_media_are_discs_or_disks_by_their_ending() {
        let media = |path: &str| Setup { media: Some(path.to_owned()), ..setup() };
        assert!(line("", &media("/a.ISO")).contains("-s 3:0,ahci-cd,/a.ISO,ro,bootindex=1 -l com1"));
        assert!(line("install_slot=7", &media("/a.img")).contains("-s 7:0,ahci-hd,/a.img,ro -l com1"));
        assert!(line("nulliso_fix=yes", &setup()).contains("-s 3:0,ahci-cd,/vm/.config/null.iso -l com1"));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, what) in [("memory=1G\n", "cpu"), ("cpu=1\n", "memory")] {
            assert!(build(&guest(text), &setup()).unwrap_err().to_string().starts_with(what), "{text}");
        }
    }

    fn load(more: &str, setup: &Setup) -> (String, Vec<(&'static str, String)>) {
        let loader = loader(&guest(&format!("{more}\n{BASE}")), setup, Some("/dev/nmdm-web.1A")).unwrap();
        (format!("{} {}", loader.program, loader.args.join(" ")), loader.files)
    }

    #[test]
    fn bhyveload_gets_the_disk_or_the_medium() {
        let front =
            "bhyveload -c /dev/nmdm-web.1A -m 1G -e smbios.system.uuid=U -e autoboot_delay=3 -e bhyve_vm_name=web";
        assert_eq!(load("loader=bhyveload", &legacy()).0, format!("{front} -d /vm/web/disk0.img web"));
        let more = "loader=bhyveload\nbhyveload_args=-e a=b\nbhyveload_loader=/l.so";
        let media = Setup { media: Some("/i.iso".to_owned()), ..legacy() };
        assert_eq!(load(more, &media).0, format!("{front} -e a=b -l /l.so -d /i.iso web"));
        let p9 = "loader=bhyveload\ndisk0_dev=9p\ndisk0_name=root=/jail";
        assert!(load(p9, &legacy()).0.ends_with("-h /jail -e vfs.root.mountfrom=p9fs:root web"));
    }

    #[test]
    fn grub_gets_a_device_map_and_the_commands_of_the_settings() {
        let (line, files) = load("loader=grub\ndisk1_type=nvme\ndisk1_name=b", &legacy());
        assert_eq!(line, "grub-bhyve -c /dev/nmdm-web.1A -m /vm/web/device.map -M 1G -r hd0,1 web");
        assert_eq!(files, [("device.map", "(hd0) /vm/web/disk0.img\n(hd1) /vm/web/b\n".to_owned())]);
        let (line, files) = load(
            "loader=grub\ngrub_run_partition=openbsd4\ngrub_run0=kopenbsd -h com0 /bsd\ngrub_run1=boot",
            &legacy(),
        );
        assert!(line.ends_with("-r host -d /vm/web web"));
        let menu = "timeout=3\nmenuentry 'web (bhyve run)' {\n    root=hd0,openbsd4\n    kopenbsd -h com0 /bsd\n}\n";
        assert_eq!(files[1], ("grub.cfg", menu.to_owned()));
        let media = Setup { media: Some("/i.iso".to_owned()), ..legacy() };
        let (line, files) = load("loader=grub\ngrub_run_dir=/boot", &media);
        assert!(line.ends_with("-M 1G -r cd0 web"), "{line}");
        assert_eq!(files[0].1, "(cd0) /i.iso\n(hd0) /vm/web/disk0.img\n");
        assert!(
            load("loader=grub\ngrub_run_dir=/boot\ngrub_run_file=g.cfg", &legacy())
                .0
                .ends_with("-d /boot -g g.cfg web")
        );
    }

    #[test]
    fn unknown_loaders_and_guests_without_a_disk_are_refused() {
        assert!(loader(&guest("loader=lilo\nmemory=1G\ndisk0_name=a\n"), &legacy(), None).is_err());
        assert!(loader(&guest("loader=grub\nmemory=1G\n"), &legacy(), None).is_err());
    }
}
