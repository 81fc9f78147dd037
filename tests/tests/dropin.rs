//! bhyve(8), bhyvectl(8), bhyveload(8) and grub-bhyve as the tools that know them use them: by name, by exit status, by
//! the title of the process, by the node, and by what they print.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use machine_tests::{Ended, Run, Scratch, guest, program, skip};

/// Seconds for whatever a machine does here.
const SOON: u64 = 120;

/// What runs the processors.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Backend {
    Soft,
    Kvm,
    /// The simulated vmm.ko of this version.
    Vmm(&'static str),
}

/// Each back end; those that are not here are skipped by name.
fn backends() -> Vec<Backend> {
    let mut all = vec![Backend::Soft];
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => all.push(Backend::Kvm),
        Err(_) => skip("/dev/kvm"),
    }
    match program().with_file_name("bhyve-rs-sim").exists() {
        true => all.extend(["13.1", "13", "14", "15"].map(Backend::Vmm)),
        false => skip("bhyve-rs-sim"),
    }
    all
}

/// A place with the tools under their names.
struct Place {
    scratch: Scratch,
    backend: Backend,
}

impl Place {
    fn new(name: &str, backend: Backend) -> Place {
        let scratch = Scratch::new(&format!("dropin-{name}-{backend:?}").replace(['(', ')', '"'], "-"));
        let sim = matches!(backend, Backend::Vmm(_));
        let target = program().with_file_name(if sim { "bhyve-rs-sim" } else { "bhyve-rs" });
        std::fs::create_dir(scratch.path("bin")).expect("a directory");
        for tool in ["bhyve", "bhyvectl", "bhyveload", "grub-bhyve", "vm"] {
            let target = if sim { target.clone() } else { program() };
            std::os::unix::fs::symlink(target, scratch.path(&format!("bin/{tool}"))).expect("a link");
        }
        Place { scratch, backend }
    }

    fn tool(&self, tool: &str, words: &str) -> Command {
        let mut command = Command::new(self.scratch.path(&format!("bin/{tool}")));
        command.args(words.split_whitespace());
        command.env("BHYVE_RS_RUN_DIR", self.scratch.path("run")).env("BHYVE_RS_VMM_DIR", self.scratch.path("vmm"));
        if let Backend::Vmm(version) = self.backend {
            command.env("BHYVE_RS_SIM", version);
        }
        command
    }

    fn run(&self, tool: &str, words: &str) -> Ended {
        Run::of(self.tool(tool, words), SOON).wait()
    }

    /// A bhyve whose guest is a boot sector that does this, with the flags that tools give.
    fn bhyve(&self, name: &str, sector: &[u8], more: &str) -> Run {
        let disk = self.disk(name, sector);
        let backend = match self.backend {
            Backend::Soft => "-o bhyve-rs.backend=soft",
            Backend::Kvm => "-o bhyve-rs.backend=kvm",
            Backend::Vmm(_) => "-o bhyve-rs.backend=vmm",
        };
        let words = format!(
            "-c 1 -m 16M -AHPw -u {backend} -s 0,hostbridge -s 31,lpc -s 4:0,ahci-hd,{disk} -l com1,stdio {more} {name}"
        );
        Run::of(self.tool("bhyve", &words), SOON)
    }

    fn disk(&self, name: &str, sector: &[u8]) -> String {
        let mut image = vec![0; 1 << 20];
        image[..sector.len()].copy_from_slice(sector);
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        let path = self.scratch.path(&format!("{name}.img"));
        std::fs::write(&path, image).expect("an image");
        path
    }

    fn node(&self, name: &str) -> bool {
        Path::new(&self.scratch.path("vmm")).join(name).exists()
    }
}

/// What a guest does after it has said "up" on COM1.
#[derive(Clone, Copy)]
enum Then {
    Reboot,
    PowerOff,
    Halt,
    TripleFault,
    /// Waits for the power button, and powers off.
    Button,
    /// Waits for ever, and hears nothing.
    Deaf,
    /// Reads a port that no device has, and powers off.
    Pokes,
}

fn sector(then: Then) -> Vec<u8> {
    let mut code = vec![0x31, 0xc0, 0x8e, 0xd8, 0xba, 0xf8, 0x03]; // DS = 0, DX = COM1
    for c in b"up\r\n" {
        code.extend([0xb0, *c, 0xee]);
    }
    // OUT of the sleep type 5 to PM1_CNT, then for ever HLT.
    let power_off = [0xba, 0x04, 0x04, 0xb8, 0x00, 0x34, 0xef, 0xf4, 0xeb, 0xfd];
    match then {
        Then::Reboot => code.extend([0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd]),
        Then::PowerOff => code.extend(power_off),
        Then::Halt => code.extend([0xfa, 0xf4]),
        // LIDT of six zeros, into protected mode, INT 3. Kernels that interpret guests do not know that real mode has
        // a limit, too.
        Then::TripleFault => {
            code.extend([0x0f, 0x01, 0x1e, 0x00, 0x7d, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0xcc]);
        }
        Then::Button => {
            // CLI, so that RIP is never the timer's handler in the BIOS; IN AX, PM1_STS until bit 8.
            code.extend([0xfa, 0xba, 0x00, 0x04, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xfa]);
            code.extend(power_off);
        }
        Then::Pokes => {
            code.extend([0xba, 0x34, 0x12, 0xed]);
            code.extend(power_off);
        }
        Then::Deaf => code.extend([0xf4, 0xeb, 0xfd]),
    }
    code
}

const BIOS: &str = "-l bootrom,bios";

#[test]
fn how_a_guest_ends_is_the_exit_status_and_its_node_stays() {
    for backend in backends() {
        let place = Place::new("ends", backend);
        for (then, status) in [(Then::Reboot, 0), (Then::PowerOff, 1), (Then::Halt, 2), (Then::TripleFault, 3)] {
            let name = format!("ends{status}");
            let ended = place.bhyve(&name, &sector(then), BIOS).wait();
            assert_eq!(ended.status, status, "{backend:?} {}\n{}", ended.stderr, ended.console);
            assert!(ended.console.contains("up\n"), "{backend:?} {}", ended.console);
            assert!(place.node(&name), "{backend:?} {name}");
        }
        let destroyed = place.run("bhyvectl", "--vm=ends1 --destroy");
        assert_eq!((destroyed.status, place.node("ends1")), (0, false), "{}", destroyed.stderr);
        assert_eq!(place.run("bhyvectl", "--destroy --vm=ends0").status, 0, "the other way round");
        let again = place.run("bhyvectl", "--vm=ends1 --destroy");
        assert_eq!((again.status, again.stderr.contains("there is no machine")), (1, true), "{}", again.stderr);
        let ended = place.bhyve("gone", &sector(Then::PowerOff), &format!("{BIOS} -D")).wait();
        assert_eq!((ended.status, place.node("gone")), (1, false), "-D takes the node along: {}", ended.stderr);
        let ended = place.bhyve("back", &sector(Then::Reboot), &format!("{BIOS} -D")).wait();
        assert_eq!((ended.status, place.node("back")), (0, true), "but not with a reboot");
    }
}

#[test]
fn a_running_guest_is_found_and_told_what_to_do() {
    for backend in backends() {
        let place = Place::new("runs", backend);
        let name = format!("runs{}", std::process::id());
        let mut machine = place.bhyve(&name, &sector(Then::Button), BIOS);
        machine.expect("up");
        let title = format!("bhyve: {name}");
        let found = Command::new("pgrep").args(["-fx", &title]).output().expect("pgrep");
        let pid = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        assert!(pid.parse::<u32>().is_ok(), "{backend:?}: pgrep finds {pid:?}");
        assert!(place.node(&name), "{backend:?}");
        let stats = place.run("bhyvectl", &format!("--get-stats --vm={name}"));
        let line = stats.console.lines().find(|l| l.starts_with("Resident memory")).map(str::to_owned);
        let third = line.as_deref().and_then(|l| l.split_whitespace().nth(2)).and_then(|n| n.parse::<u64>().ok());
        assert!(third.is_some_and(|n| n > 4096), "{backend:?}: {line:?} {}", stats.stderr);
        assert!(stats.console.starts_with("vcpu0 stats:\n") && stats.console.contains("vcpu total runtime"));
        let rip = place.run("bhyvectl", &format!("--vm={name} --cpu=0 --get-cs --get-rip"));
        assert!(rip.console.contains("rip[0]\t\t0x0000000000007c"), "{backend:?} {} {}", rip.console, rip.stderr);
        let topology = place.run("bhyvectl", &format!("--vm={name} --get-cpu-topology")).console;
        assert_eq!(topology, "cpu_topology:\tsockets=1, cores=1, threads=1, maxcpus=1\n", "{backend:?}");
        let twice = place.bhyve(&name, &sector(Then::PowerOff), BIOS).wait();
        assert_eq!(twice.status, 4, "{backend:?} {}", twice.stderr);
        assert!(twice.stderr.contains("in use") || twice.stderr.contains("running"), "{backend:?} {}", twice.stderr);
        machine.terminate();
        let ended = machine.wait();
        assert_eq!(ended.status, 1, "{backend:?}: SIGTERM is the power button: {}", ended.stderr);
        for (order, status) in [("--force-reset", 0), ("--force-poweroff", 1)] {
            let mut machine = place.bhyve(&name, &sector(Then::Deaf), BIOS);
            machine.expect("up");
            assert_eq!(place.run("bhyvectl", &format!("{order} --vm={name}")).status, 0);
            assert_eq!(machine.wait().status, status, "{backend:?} {order}");
        }
        let mut machine = place.bhyve(&name, &sector(Then::Deaf), BIOS);
        machine.expect("up");
        let destroyed = place.run("bhyvectl", &format!("--destroy --vm={name}"));
        assert_eq!((destroyed.status, place.node(&name)), (0, false), "{backend:?} {}", destroyed.stderr);
        machine.wait();
    }
}

#[test]
fn probes_of_libvirt_and_others_get_their_answers() {
    let place = Place::new("probes", Backend::Soft);
    let help = place.run("bhyve", "-h");
    assert_eq!((help.status, help.console.as_str()), (0, ""), "the usage is on standard error");
    for probe in ["-u:", "-n:", "-A:"] {
        assert!(help.stderr.contains(probe), "{probe}");
    }
    assert!(!help.stderr.contains("-c vcpus"));
    let devices = place.run("bhyve", "-s help");
    assert_eq!((devices.status, devices.stderr.as_str()), (0, ""));
    for device in ["ahci", "nvme", "virtio-blk", "virtio-net", "virtio-rnd", "hostbridge", "lpc"] {
        assert!(devices.console.lines().any(|line| line == device), "{device}");
    }
    assert!(place.run("bhyve", "-l help").console.lines().any(|line| line == "bootrom"));
    let bootrom = place.run("bhyve", "-l bootrom");
    assert!(!bootrom.stderr.contains("invalid lpc device configuration 'bootrom'"), "{}", bootrom.stderr);
    let unknown = place.run("bhyve", "-s 0,nosuch");
    assert_eq!(unknown.status, 4);
    assert!(unknown.stderr.contains("pci slot 0:0:0: unknown device \"nosuch\""), "{}", unknown.stderr);
    let usage = place.run("bhyvectl", "");
    assert_eq!((usage.status, usage.console.as_str()), (1, ""));
    assert!(usage.stderr.contains("--destroy") && !usage.stderr.contains("--suspend="), "{}", usage.stderr);
    let grub = place.run("grub-bhyve", "--help");
    assert!(grub.status == 0 && grub.console.contains("--cons-dev"), "{}", grub.console);
}

#[test]
fn what_cannot_run_is_refused_in_a_line() {
    let place = Place::new("refused", Backend::Soft);
    let disk = place.disk("refused", &sector(Then::PowerOff));
    let long = "n".repeat(300);
    for (words, says) in [
        ("-m 16M nothing", "virtual machine cannot be booted"),
        ("-m 16M -l bootrom,/nonexistent x", "/nonexistent"),
        ("-m 1Q -l bootrom,bios x", "unit"),
        ("-m 16M -l bootrom,bios -s 5,hda,play=/dev/null x", "/dev/null: it is neither a sound device nor a file"),
        ("-m 16M -l bootrom,bios -s 5,fbuf,vga=full x", "vga"),
        ("-m 16M -l bootrom,bios -s 5,passthru,1/2/3 x", "not passed through"),
        ("-m 16M -l bootrom,bios -l tpm,swtpm,/t x", "no TPM"),
        ("-m 16M -l bootrom,bios -c 4,sockets=3 x", "does not match 4 vCPUs"),
        ("-m 16M -l bootrom,bios -s 5,virtio-net,vale0:a x", "vale0:a"),
        ("-m 16M -l bootrom,bios -l com1,/etc/passwd x", "/etc/passwd"),
        ("-m 16M -l bootrom,bios a/b", "is no name of a machine"),
        (&format!("-m 16M -l bootrom,bios {long}"), "1 to 229 bytes"),
        (&format!("-m 16M -l bootrom,bios -s 3,ahci-hd,{disk} -s 4,virtio-blk,{disk} x"), "in use"),
        ("-m 16M -l bootrom,bios -o rtc.use_localtime=maybe x", "no boolean"),
        ("-m 16M -l bootrom,bios -s 1:0:0,virtio-rnd x", "-Y"),
        ("-m 16M -l bootrom,bios -Y -s 1:31:0,lpc x", "bus 0"),
        ("-m 16M -l bootrom,bios -n id=0,size=8M x", "cpus"),
        ("-m 16M -l bootrom,bios -n id=0,cpus=0 -n id=1,cpus=0 x", "in another domain"),
        ("-m 16M -l bootrom,bios -n id=0,cpus=0,size=8M x", "8 MiB together"),
        ("-m 16M -l bootrom,bios -c 2 -n id=0,cpus=0 x", "1 of 2 processors"),
        ("-m 16M -l bootrom,bios -n id=1,cpus=0 x", "there is no domain 0"),
    ] {
        let ended = place.run("bhyve", words);
        assert_eq!(ended.status, 4, "{words}: {}", ended.stderr);
        assert!(ended.stderr.contains(says) && ended.stderr.lines().count() == 1, "{words}: {}", ended.stderr);
        assert!(ended.stderr.starts_with("bhyve: "), "{words}: {}", ended.stderr);
    }
}

#[test]
fn only_if_asked_a_port_that_is_not_there_ends_the_guest() {
    for backend in backends() {
        let place = Place::new("strict", backend);
        let ended = place.bhyve("lax", &sector(Then::Pokes), BIOS).wait();
        assert_eq!(ended.status, 1, "{backend:?}: {}", ended.stderr);
        let ended = place.bhyve("strict", &sector(Then::Pokes), &format!("-e {BIOS}")).wait();
        let told = ended.stderr.contains("a read of 2 bytes at port 0x1234");
        assert_eq!(
            (ended.status, ended.console.contains("up"), told),
            (4, true, true),
            "{backend:?}: {}",
            ended.stderr
        );
    }
}

#[test]
fn a_loader_comes_first_where_there_is_no_boot_rom() {
    let place = Place::new("loader", Backend::Soft);
    let disk = place.disk("two", &sector(Then::PowerOff));
    assert_eq!(place.bhyve("two", &sector(Then::PowerOff), "").wait().status, 4, "nothing loaded it");
    let loaded = place.run("bhyveload", &format!("-c stdio -m 16M -e autoboot_delay=0 -d {disk} two"));
    assert_eq!((loaded.status, place.node("two")), (0, true), "{}", loaded.stderr);
    let ended = place.bhyve("two", &sector(Then::PowerOff), "").wait();
    assert_eq!(ended.status, 1, "{}", ended.stderr);
    let again = place.bhyve("two", &sector(Then::PowerOff), "").wait();
    assert!(again.status == 4 && again.stderr.contains("cannot be booted"), "loaded memory serves one run");
    assert_eq!(place.run("bhyveload", "-m 16M -d /nonexistent two").status, 1);
    assert_eq!(place.run("bhyveload", "-m nonsense two").status, 64);
    // A file stands for the built-in BIOS where a tool insists on one.
    let marker = place.scratch.write("BHYVE_UEFI_CSM.fd", "bhyve-rs built-in BIOS\n");
    let ended = place.bhyve("three", &sector(Then::PowerOff), &format!("-l bootrom,{marker}")).wait();
    assert_eq!(ended.status, 1, "{}", ended.stderr);
}

#[test]
fn a_machine_of_a_file_is_the_one_of_the_command_line() {
    let place = Place::new("file", Backend::Soft);
    let disk = place.disk("file", &sector(Then::PowerOff));
    let line =
        format!("-c 2 -m 16M -AHPw -u -s 0,hostbridge -s 31,lpc -s 4:0,ahci-hd,{disk} -l com1,stdio {BIOS} file");
    let dump = place.run("bhyve", &format!("-o config.dump=1 {line}"));
    assert_eq!((dump.status, dump.stderr.as_str()), (1, ""));
    for line in ["cpus=2", "x86.vmexit_on_hlt=true", "pci.0.4.0.port.0.type=hd", "lpc.com1.path=stdio"] {
        assert!(dump.console.lines().any(|l| l == line), "{line}: {}", dump.console);
    }
    let text = dump.console.replace("config.dump=1\n", "");
    let file = place.scratch.write("bhyve_config.conf", &text);
    let ended = place.run("bhyve", &format!("-k {file} other"));
    assert_eq!((ended.status, ended.console.contains("up\n")), (1, true), "{}", ended.stderr);
    // The same as TOML, run by our own name.
    let mut words = vec!["config", "--from", "bhyve", "--to", "toml", "--"];
    words.extend(line.split_whitespace());
    let toml = machine_tests::run(&words, SOON);
    assert_eq!(toml.status, 0, "{}", toml.stderr);
    let toml = place.scratch.write("file.toml", &toml.console);
    let ended = machine_tests::run(&["--run-dir", &place.scratch.path("run"), "-c", &toml], SOON);
    assert_eq!((ended.status, ended.console.contains("up\n")), (1, true), "{}", ended.stderr);
    let back = machine_tests::run(&["config", "--from", "toml", "--to", "bhyve_config", &toml], SOON);
    assert_eq!(back.status, 0, "{}", back.stderr);
    let ours = |line: &&str| !line.starts_with("acpi_") && !line.starts_with("lpc.fwcfg=");
    let (mut one, mut two): (Vec<&str>, Vec<&str>) =
        (text.lines().filter(ours).collect(), back.console.lines().filter(ours).collect());
    one.sort_unstable();
    two.sort_unstable();
    // Written out, as nobody's default is ours: each processor in a socket of its own.
    two.retain(|line| !["sockets=2", "cores=1", "threads=1"].contains(line));
    assert_eq!(one, two);
}

/// Linux, loaded by grub-bhyve and run by bhyve, over a tap interface in a network namespace of the test's.
#[test]
fn linux_reaches_the_host_over_a_tap_interface() {
    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let namespace = format!("bhyve-rs-{}", std::process::id());
    let ip = |words: &str| {
        let done = Command::new("ip").args(words.split_whitespace()).stderr(Stdio::null()).status();
        done.is_ok_and(|status| status.success())
    };
    struct Namespace(String);
    impl Drop for Namespace {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        }
    }
    if !ip(&format!("netns add {namespace}")) {
        return skip("network namespaces");
    }
    let namespace = Namespace(namespace);
    let inside = format!("netns exec {} ip", namespace.0);
    if !ip(&format!("{inside} tuntap add tap0 mode tap")) {
        return skip("tap interfaces");
    }
    assert!(ip(&format!("{inside} addr add 10.9.0.1/24 dev tap0")) && ip(&format!("{inside} link set tap0 up")));

    let place = Place::new("tap", Backend::Soft);
    std::fs::create_dir(place.scratch.path("grub")).expect("a directory");
    let config = format!("linux {kernel} console=ttyS0 test=net end=shell\ninitrd {initrd}\n");
    place.scratch.write("grub/grub.cfg", &config);
    let directory = place.scratch.path("grub");
    let loaded = place.run("grub-bhyve", &format!("-r host -d {directory} -M 256 lx"));
    assert_eq!(loaded.status, 0, "{}", loaded.stderr);
    let words =
        "-c 1 -m 256M -AHP -s 0,hostbridge -s 31,lpc -s 5:0,virtio-net,tap0,mac=58:9c:fc:00:11:22 -l com1,stdio lx";
    let bhyve = place.tool("bhyve", words);
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &namespace.0]).arg(bhyve.get_program()).args(bhyve.get_args());
    command.envs(bhyve.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut machine = Run::of(command, SOON);
    machine.expect("mac=58:9c:fc:00:11:22");
    machine.expect("guest# ");
    machine.send("ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up; ping -c 5 10.9.0.1; echo do''ne\n");
    machine.expect("5 packets transmitted, 5 packets received");
    machine.expect("done");
    machine.send("ping -c 50 -i 0.02 -s 1400 10.9.0.1; echo do''ne\n");
    machine.expect("50 packets transmitted, 50 packets received");
    machine.expect("done");
    machine.send("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.status, 1, "{}", ended.stderr);
}

#[test]
fn linux_meets_what_less_common_flags_ask_for() {
    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let place = Place::new("flags", Backend::Soft);
    std::fs::create_dir(place.scratch.path("grub")).expect("a directory");
    place.scratch.write("grub/grub.cfg", &format!("linux {kernel} console=ttyS0 end=shell\ninitrd {initrd}\n"));
    let loaded = place.run("grub-bhyve", &format!("-r host -d {} -M 256 lx", place.scratch.path("grub")));
    assert_eq!(loaded.status, 0, "{}", loaded.stderr);
    let disk = place.scratch.path("disk.img");
    std::fs::write(&disk, vec![b'd'; 1 << 20]).expect("an image");
    let file = place.scratch.write("item", "of a file");
    let words = format!(
        "-c 1 -m 256M -AHPW -p 0:0 -l fwcfg,qemu -f opt/test/a,string=of-the-line -f opt/test/b,file={file} \
         -s 0,hostbridge -s 31,lpc -s 4,virtio-blk,{disk} -l com1,stdio lx"
    );
    let mut machine = Run::of(place.tool("bhyve", &words), SOON);
    machine.expect("guest# ");
    let status = std::fs::read_dir(format!("/proc/{}/task", machine.pid())).expect("its threads");
    let allowed = status.flatten().filter_map(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let line = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)).map(|l| l.trim().to_owned());
        line("Name:")?.starts_with("vcpu").then(|| line("Cpus_allowed_list:"))?
    });
    assert_eq!(allowed.collect::<Vec<_>>(), ["0"]);
    machine.send(
        "modprobe virtio_pci; modprobe virtio_blk; modprobe qemu_fw_cfg; until [ -b /dev/vda ]; do usleep 100000; done; \
         tr -d d </dev/vda | wc -c; cd /sys/firmware/qemu_fw_cfg/by_name/opt; cat test/a/raw; echo; cat test/b/raw; echo; \
         hexdump -v -e '1/1 \"%02x\"' bhyve/hw.ncpu/raw; echo; grep virtio /proc/interrupts; echo do''ne\n",
    );
    machine.expect("done");
    machine.send("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.status, 1, "{}", ended.stderr);
    let lines: Vec<&str> = ended.console.lines().map(str::trim).collect();
    for line in ["0", "of-the-line", "of a file", "01000000"] {
        assert!(lines.contains(&line), "{line}: {}", ended.console);
    }
    // Without MSI-X Linux's driver takes the wire; one message is what FreeBSD's would take.
    let wire = |line: &&&str| line.contains("IO-APIC") && line.ends_with("virtio0");
    assert_eq!(lines.iter().filter(wire).count(), 1, "{}", ended.console);
}

/// What vm-bhyve writes when slot 31 is passed: the next devices are on bus 1.
#[test]
fn linux_uses_a_disk_and_a_card_on_buses_of_their_own() {
    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let place = Place::new("buses", Backend::Soft);
    std::fs::create_dir(place.scratch.path("grub")).expect("a directory");
    let disk = place.scratch.path("disk.img");
    std::fs::File::create(&disk).and_then(|f| f.set_len(8 << 20)).expect("an image");
    let words = format!(
        "-c 1 -m 256M -AHPY -s 0,hostbridge -s 31,lpc -s 1:0:0,virtio-blk,{disk} -s 5:31:0,e1000,slirp,open \
         -l com1,stdio lx"
    );
    // The second time what was written is there.
    for (keep, interrupts) in [(0, ""), (1, " pci=nomsi")] {
        let work = format!("test=disk disk.driver=virtio_blk disk.mib=2 disk.keep={keep} end=shell{interrupts}");
        place.scratch.write("grub/grub.cfg", &format!("linux {kernel} console=ttyS0 {work}\ninitrd {initrd}\n"));
        let loaded = place.run("grub-bhyve", &format!("-r host -d {} -M 256 lx", place.scratch.path("grub")));
        assert_eq!(loaded.status, 0, "{}", loaded.stderr);
        let mut machine = Run::of(place.tool("bhyve", &words), SOON);
        machine.expect("guest# ");
        machine.send(
            "modprobe e1000; ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up; ping -c 5 10.0.2.2; \
             ls -1 /sys/bus/pci/devices; dmesg | grep -c 'pci.*\\(conflict\\|no compatible\\|can.t \\|BAR.*no space\\)\\|BUG:'; \
             echo do''ne\n",
        );
        machine.expect("5 packets transmitted, 5 packets received");
        machine.expect("done");
        machine.send("reboot -f\n");
        let ended = machine.wait();
        assert_eq!((ended.status, ended.failures()), (0, Vec::new()), "{}\n{}", ended.console, ended.stderr);
        let lines: Vec<&str> = ended.console.lines().map(str::trim).collect();
        for line in ["0000:01:00.0", "0000:05:1f.0", "0"] {
            assert!(lines.contains(&line), "{line}: {}", ended.console);
        }
    }
}

#[test]
fn linux_finds_the_domains_that_memory_and_processors_are_in() {
    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let place = Place::new("domains", Backend::Soft);
    std::fs::create_dir(place.scratch.path("grub")).expect("a directory");
    place.scratch.write("grub/grub.cfg", &format!("linux {kernel} console=ttyS0 end=shell\ninitrd {initrd}\n"));
    let loaded = place.run("grub-bhyve", &format!("-r host -d {} -M 768 lx", place.scratch.path("grub")));
    assert_eq!(loaded.status, 0, "{}", loaded.stderr);
    let words =
        "-c 3 -AHP -n id=0,size=512M,cpus=0-1 -n id=1,size=256M,cpus=2 -s 0,hostbridge -s 31,lpc -l com1,stdio lx";
    let mut machine = Run::of(place.tool("bhyve", words), SOON);
    machine.expect("guest# ");
    machine.send(
        "cd /sys/devices/system/node; for n in node*; do echo $n $(cat $n/cpulist) \
         $(awk '/MemTotal/ { print ($4 > 150000) + ($4 > 300000) }' $n/meminfo); done; dmesg | grep SRAT; echo do''ne\n",
    );
    machine.expect("done");
    machine.send("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.status, 1, "{}", ended.stderr);
    for line in ["node0 0-1 2", "node1 2 1"] {
        assert!(ended.console.lines().any(|l| l.trim() == line), "{line}: {}", ended.console);
    }
    assert!(ended.console.contains("Node 1 PXM 1 [mem 0x20000000-0x2fffffff]"), "{}", ended.console);
}

#[test]
fn the_bios_starts_a_disk_on_another_bus_wherever_it_is_run() {
    for backend in backends() {
        let place = Place::new("bus", backend);
        let name = format!("bus{}", std::process::id());
        let disk = place.disk("boots", &sector(Then::Reboot));
        for device in ["1:0:0,ahci-hd", "200:31:0,virtio-blk", "3:4:0,nvme"] {
            let backend = match backend {
                Backend::Soft => "soft",
                Backend::Kvm => "kvm",
                Backend::Vmm(_) => "vmm",
            };
            let words = format!(
                "-m 16M -AHPY -o bhyve-rs.backend={backend} -s 0,hostbridge -s 31,lpc -s {device},{disk} \
                 -l com1,stdio {BIOS} {name}"
            );
            for _ in 0..2 {
                let ended = place.run("bhyve", &words);
                let up = ended.console.contains("up\n");
                assert_eq!((ended.status, up), (0, true), "{backend} {device}: {}\n{}", ended.stderr, ended.console);
            }
        }
    }
}

/// The host's end of a line, to which `bhyve` listens.
fn connect(path: &str) -> UnixStream {
    let stream = UnixStream::connect(path).expect("the socket of a port");
    stream.set_read_timeout(Some(Duration::from_secs(SOON))).expect("a limit");
    stream
}

fn hears(stream: &mut UnixStream, what: &str) {
    let mut bytes = vec![0; what.len()];
    stream.read_exact(&mut bytes).expect("what the guest said");
    assert_eq!(String::from_utf8_lossy(&bytes), what);
}

#[test]
fn linux_talks_over_ports_of_a_console_and_a_pci_uart() {
    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let place = Place::new("lines", Backend::Soft);
    std::fs::create_dir(place.scratch.path("grub")).expect("a directory");
    let config = format!("linux {kernel} console=ttyS0 end=shell\ninitrd {initrd}\n");
    place.scratch.write("grub/grub.cfg", &config);
    let loaded = place.run("grub-bhyve", &format!("-r host -d {} -M 256 lx", place.scratch.path("grub")));
    assert_eq!(loaded.status, 0, "{}", loaded.stderr);
    let [agent, second, uart] = ["agent.sock", "second.sock", "uart.sock"].map(|name| place.scratch.path(name));
    let words = format!(
        "-c 1 -m 256M -AHP -s 0,hostbridge -s 31,lpc -s 5,virtio-console,org.test.agent={agent},second={second} \
         -s 6,uart,unix={uart} -l com1,stdio lx"
    );
    let mut machine = Run::of(place.tool("bhyve", &words), SOON);
    machine.expect("guest# ");
    machine.send(
        "modprobe virtio_pci; modprobe virtio_console; cd /sys/class/virtio-ports; \
         port() { d=$(grep -l $1 */name) && echo /dev/${d%/name}; }; \
         until a=$(port org.test.agent) && b=$(port second); do usleep 100000; done; \
         t=/dev/$(dmesg | sed -n 's/.*00:06.0: \\(ttyS[0-9]*\\) at.*/\\1/p'); exec 3<>$t; stty raw -echo <&3; \
         echo por''ts $(ls | wc -l)\n",
    );
    machine.expect("ports 2");
    let (mut to_agent, mut to_second, mut to_uart) = (connect(&agent), connect(&second), connect(&uart));
    machine.send("sleep 1; echo hello >$a; echo hello too >$b; echo by uart >&3; echo sa''id\n");
    machine.expect("said");
    hears(&mut to_agent, "hello\n");
    hears(&mut to_second, "hello too\n");
    hears(&mut to_uart, "by uart\n");
    machine.send("read x <$a; read y <&3; echo heard \"$x\" and \"$y\"\n");
    to_uart.write_all(b"tty\n").expect("a line");
    to_agent.write_all(b"port\n").expect("a line");
    machine.expect("heard port and tty");
    // 4 MiB each way, more than any buffer on the way holds.
    const LEN: usize = 4 << 20;
    machine.send(&format!("head -c {LEN} /dev/zero >$b; echo se''nt\n"));
    let mut zeroes = vec![1; LEN];
    to_second.read_exact(&mut zeroes).expect("4 MiB");
    assert!(zeroes.iter().all(|byte| *byte == 0));
    // What came to a port that is closed would be gone.
    machine.expect("sent");
    machine.send(&format!("head -c {LEN} <$b | md5sum; echo do''ne\n"));
    to_second.write_all(&zeroes).expect("4 MiB");
    machine.expect("b5cfa9d6c8febd618f91ac2843d50a1c");
    machine.expect("done");
    drop(to_agent);
    machine.send("sleep 1; timeout 5 cat $a; echo clo''sed $?\n");
    machine.expect("closed 0");
    machine.send("poweroff -f\n");
    assert_eq!(machine.wait().status, 1);
}
