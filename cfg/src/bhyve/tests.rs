use super::*;

fn config(line: &str) -> Config {
    match asked(line) {
        Ok(Asked::Run(config)) => config,
        other => panic!("{line}: {other:?}"),
    }
}

/// A command line without quotes, its first word the program.
fn asked(line: &str) -> Result<Asked, Refusal> {
    let args: Vec<String> = line.split_whitespace().skip(1).map(str::to_owned).collect();
    parse(&args, &[])
}

fn refused(line: &str) -> (u8, String) {
    match asked(line) {
        Err(refusal) => (refusal.status, refusal.message),
        Ok(asked) => panic!("{line}: {asked:?}"),
    }
}

/// Command lines as tools and manuals have them, each with the tree that it makes: the keys that were given, in order.
const LINES: &[(&str, &str)] = &[
    // The smallest, and what the positional name does.
    ("bhyve vm", "name=vm"),
    ("bhyve -o name=a b", "name=b"),
    ("bhyve -o name=a", "name=a"),
    ("bhyve -- vm", "name=vm"),
    // Clusters, repeated flags, glued arguments.
    ("bhyve -AHPww vm", "acpi_tables=true name=vm x86.strictmsr=false x86.vmexit_on_hlt=true x86.vmexit_on_pause=true"),
    ("bhyve -AI -xY vm", "acpi_tables=true name=vm x86.mptable=false x86.x2apic=true"),
    (
        "bhyve -CDSuWe vm",
        "destroy_on_poweroff=true memory.guest_in_core=true memory.wired=true name=vm \
                          rtc.use_localtime=false virtio_msix=false x86.strictio=true",
    ),
    ("bhyve -xa vm", "name=vm x86.x2apic=false"),
    ("bhyve -lcom1,/dev/nmdm0A -m512 -c2 vm", "cpus=2 lpc.com1.path=/dev/nmdm0A memory.size=512 name=vm"),
    ("bhyve -Hlcom1,stdio vm", "lpc.com1.path=stdio name=vm x86.vmexit_on_hlt=true"),
    ("bhyve -s10:0,virtio-rnd vm", "name=vm pci.0.10.0.device=virtio-rnd"),
    ("bhyve -ltpm,swtpm,/var/run/tpm.sock vm", "name=vm tpm.path=/var/run/tpm.sock tpm.type=swtpm"),
    ("bhyve -M vm", "monitor=true name=vm"),
    // Processors.
    ("bhyve -c 4 vm", "cpus=4 name=vm"),
    ("bhyve -c cpus=8,sockets=2,cores=2,threads=2 vm", "cores=2 cpus=8 name=vm sockets=2 threads=2"),
    ("bhyve -c 4,cores=4 vm", "cores=4 cpus=4 name=vm"),
    ("bhyve -c sockets=2,cores=4 vm", "cores=4 name=vm sockets=2"),
    ("bhyve -p 0:3 -p 0:4 -p 1:5 vm", "name=vm vcpu.0.cpuset=3,4 vcpu.1.cpuset=5"),
    (
        "bhyve -n id=0,size=1G,cpus=0-3 -n id=1,size=1G,cpus=4-7,domain_policy=prefer:1 vm",
        "domains.0.cpus=0-3 domains.0.size=1G domains.1.cpus=4-7 domains.1.domain_policy=prefer:1 domains.1.size=1G name=vm",
    ),
    // Memory as CBSD and libvirt send it.
    ("bhyve -m 1073741824 vm", "memory.size=1073741824 name=vm"),
    ("bhyve -m 214 vm", "memory.size=214 name=vm"),
    ("bhyve -m 2G -m 4G vm", "memory.size=4G name=vm"),
    // Debugging.
    ("bhyve -G 1234 vm", "gdb.port=1234 name=vm"),
    ("bhyve -G w127.0.0.1:1234 vm", "gdb.address=127.0.0.1 gdb.port=1234 gdb.wait=true name=vm"),
    ("bhyve -g 0 vm", "name=vm"),
    // Boot ROM, serial ports and others at the LPC bridge.
    ("bhyve -l bootrom,/fw/BHYVE_UEFI.fd vm", "bootrom=/fw/BHYVE_UEFI.fd name=vm"),
    ("bhyve -l bootrom,/fw/CODE.fd,/vm/vars.fd vm", "bootrom=/fw/CODE.fd bootvars=/vm/vars.fd name=vm"),
    (
        "bhyve -l bootrom,/fw/CODE.fd,/vm/vars.fd,fwcfg=qemu vm",
        "bootrom=/fw/CODE.fd bootvars=/vm/vars.fd lpc.fwcfg=qemu name=vm",
    ),
    ("bhyve -l bootrom,/fw/CODE.fd,fwcfg=qemu vm", "bootrom=/fw/CODE.fd lpc.fwcfg=qemu name=vm"),
    ("bhyve -l BootROM,bios vm", "bootrom=bios name=vm"),
    (
        "bhyve -l com1,stdio -l COM2,/dev/nmdm2A -l com3,tcp=127.0.0.1:4000 -l com4,/dev/ttyu1 vm",
        "lpc.com1.path=stdio lpc.com2.path=/dev/nmdm2A lpc.com3.path=tcp=127.0.0.1:4000 lpc.com4.path=/dev/ttyu1 name=vm",
    ),
    ("bhyve -l fwcfg,qemu -l pc-testdev vm", "lpc.fwcfg=qemu lpc.pc-testdev=true name=vm"),
    ("bhyve -l tpm,passthru,/dev/tpm0,version=2.0 vm", "name=vm tpm.path=/dev/tpm0 tpm.type=passthru tpm.version=2.0"),
    (
        "bhyve -f opt/a,string=hello -f name=opt/b,file=/b vm",
        "fwcfg.0.name=opt/a fwcfg.0.string=hello fwcfg.1.file=/b fwcfg.1.name=opt/b name=vm",
    ),
    (
        "bhyve -K us_unix -U 11111111-2222-3333-4444-555555555555 vm",
        "keyboard.layout=us_unix name=vm uuid=11111111-2222-3333-4444-555555555555",
    ),
    (
        "bhyve -o bios.vendor=ACME -o rtc.use_localtime=no -o a.b.c=d=e vm",
        "a.b.c=d=e bios.vendor=ACME name=vm rtc.use_localtime=no",
    ),
    // Places.
    (
        "bhyve -s 0,hostbridge -s 31:0,lpc -s 0:5:1,virtio-rnd -s 1:2:3,virtio-rnd vm",
        "name=vm pci.0.0.0.device=hostbridge pci.0.5.1.device=virtio-rnd pci.0.31.0.device=lpc pci.1.2.3.device=virtio-rnd",
    ),
    (
        "bhyve -s 0:0,amd_hostbridge vm",
        "name=vm pci.0.0.0.device=hostbridge pci.0.0.0.pcireg.device=0x7432 pci.0.0.0.pcireg.vendor=0x1022",
    ),
    (
        "bhyve -s 31,lpc,fwcfg=qemu,pcireg.vendor=host vm",
        "name=vm pci.0.31.0.device=lpc pci.0.31.0.fwcfg=qemu pci.0.31.0.pcireg.vendor=host",
    ),
    // Block devices.
    ("bhyve -s 3,virtio-blk,/vm/disk0.img vm", "name=vm pci.0.3.0.device=virtio-blk pci.0.3.0.path=/vm/disk0.img"),
    (
        "bhyve -s 3,virtio-blk,/dev/zvol/z/a,nocache,direct,ro,sectorsize=512/4096,nodelete,bootindex=1,ser=AB vm",
        "name=vm pci.0.3.0.bootindex=1 pci.0.3.0.device=virtio-blk pci.0.3.0.direct=true pci.0.3.0.nocache=true \
      pci.0.3.0.nodelete=true pci.0.3.0.path=/dev/zvol/z/a pci.0.3.0.ro=true pci.0.3.0.sectorsize=512/4096 pci.0.3.0.ser=AB",
    ),
    (
        "bhyve -s 3,ahci-hd,/a.img,ser=S,rev=2,model=M,nmrr=7200 vm",
        "name=vm pci.0.3.0.device=ahci pci.0.3.0.port.0.model=M pci.0.3.0.port.0.nmrr=7200 pci.0.3.0.port.0.path=/a.img \
      pci.0.3.0.port.0.rev=2 pci.0.3.0.port.0.ser=S pci.0.3.0.port.0.type=hd",
    ),
    (
        "bhyve -s 3:0,ahci-cd,/iso/install.iso,ro,bootindex=1 vm",
        "name=vm pci.0.3.0.device=ahci pci.0.3.0.port.0.bootindex=1 pci.0.3.0.port.0.path=/iso/install.iso \
      pci.0.3.0.port.0.ro=true pci.0.3.0.port.0.type=cd",
    ),
    ("bhyve -s 3,ahci-cd vm", "name=vm pci.0.3.0.device=ahci pci.0.3.0.port.0.type=cd"),
    (
        "bhyve -s 2:0,ahci,hd:/a,cd:/b,hd:/c,ro,nmrr=1 vm",
        "name=vm pci.0.2.0.device=ahci pci.0.2.0.port.0.path=/a pci.0.2.0.port.0.type=hd pci.0.2.0.port.1.path=/b \
      pci.0.2.0.port.1.type=cd pci.0.2.0.port.2.nmrr=1 pci.0.2.0.port.2.path=/c pci.0.2.0.port.2.ro=true \
      pci.0.2.0.port.2.type=hd",
    ),
    (
        "bhyve -s 2:0,ahci,hd:/a,nmrr=5400,cd: vm",
        "name=vm pci.0.2.0.device=ahci pci.0.2.0.port.0.nmrr=5400 pci.0.2.0.port.0.path=/a pci.0.2.0.port.0.type=hd \
      pci.0.2.0.port.1.type=cd",
    ),
    (
        "bhyve -s 4,nvme,/a,maxq=4,qsz=256,ioslots=4,sectsz=4096,ser=X,eui64=1,dsm=enable vm",
        "name=vm pci.0.4.0.device=nvme pci.0.4.0.dsm=enable pci.0.4.0.eui64=1 pci.0.4.0.ioslots=4 pci.0.4.0.maxq=4 \
      pci.0.4.0.path=/a pci.0.4.0.qsz=256 pci.0.4.0.sectsz=4096 pci.0.4.0.ser=X",
    ),
    ("bhyve -s 4,nvme,ram=64 vm", "name=vm pci.0.4.0.device=nvme pci.0.4.0.ram=64"),
    (
        "bhyve -s 4,virtio-scsi,/dev/cam/ctl1.0,iid=3 vm",
        "name=vm pci.0.4.0.dev=/dev/cam/ctl1.0 pci.0.4.0.device=virtio-scsi pci.0.4.0.iid=3",
    ),
    (
        "bhyve -s 4,virtio-scsi,target=/a,target=7:/b,target=/c,iid=1 vm",
        "name=vm pci.0.4.0.device=virtio-scsi pci.0.4.0.iid=1 pci.0.4.0.target.0=/a pci.0.4.0.target.7=/b \
         pci.0.4.0.target.8=/c",
    ),
    ("bhyve -s 4,virtio-scsi vm", "name=vm pci.0.4.0.device=virtio-scsi"),
    (
        "bhyve -s 5,virtio-9p,share=/usr/share,ro vm",
        "name=vm pci.0.5.0.device=virtio-9p pci.0.5.0.path=/usr/share pci.0.5.0.ro=true pci.0.5.0.sharename=share",
    ),
    // Networks.
    (
        "bhyve -s 5:0,virtio-net,tap3,mac=58:9c:fc:00:00:01 vm",
        "name=vm pci.0.5.0.backend=tap3 pci.0.5.0.device=virtio-net pci.0.5.0.mac=58:9c:fc:00:00:01",
    ),
    (
        "bhyve -s 5,e1000,vmnet0,mtu=9000 vm",
        "name=vm pci.0.5.0.backend=vmnet0 pci.0.5.0.device=e1000 pci.0.5.0.mtu=9000",
    ),
    (
        "bhyve -s 5,virtio-net,netgraph,path=sw0:,peerhook=link2,socket=s vm",
        "name=vm pci.0.5.0.backend=netgraph pci.0.5.0.device=virtio-net pci.0.5.0.path=sw0: pci.0.5.0.peerhook=link2 \
      pci.0.5.0.socket=s",
    ),
    (
        "bhyve -s 5,virtio-net,vale1:vm,mac=00:a0:98:00:00:02 vm",
        "name=vm pci.0.5.0.backend=vale1:vm pci.0.5.0.device=virtio-net pci.0.5.0.mac=00:a0:98:00:00:02",
    ),
    (
        "bhyve -s 2:0,virtio-net,slirp,hostfwd=tcp:127.0.0.1:2222-:22 vm",
        "name=vm pci.0.2.0.backend=slirp pci.0.2.0.device=virtio-net pci.0.2.0.hostfwd=tcp:127.0.0.1:2222-:22",
    ),
    (
        "bhyve -s 2:0,virtio-net,slirp,mac=52:54:00:00:00:01,open vm",
        "name=vm pci.0.2.0.backend=slirp pci.0.2.0.device=virtio-net pci.0.2.0.mac=52:54:00:00:00:01 pci.0.2.0.open=true",
    ),
    // Screens, pointers, sound, consoles, host devices.
    (
        "bhyve -s 29,fbuf,tcp=0.0.0.0:5900,w=800,h=600,vga=off,password=secret,wait vm",
        "name=vm pci.0.29.0.device=fbuf pci.0.29.0.h=600 pci.0.29.0.password=secret pci.0.29.0.rfb=0.0.0.0:5900 \
      pci.0.29.0.vga=off pci.0.29.0.w=800 pci.0.29.0.wait=true",
    ),
    ("bhyve -s 29,fbuf,rfb=unix:/run/vnc.sock vm", "name=vm pci.0.29.0.device=fbuf pci.0.29.0.rfb=unix:/run/vnc.sock"),
    ("bhyve -s 30:0,xhci,tablet vm", "name=vm pci.0.30.0.device=xhci pci.0.30.0.slot.1.device=tablet"),
    (
        "bhyve -s 7,hda,play=/dev/dsp0,rec=/dev/dsp1 vm",
        "name=vm pci.0.7.0.device=hda pci.0.7.0.play=/dev/dsp0 pci.0.7.0.rec=/dev/dsp1",
    ),
    (
        "bhyve -s 8,virtio-console,org.qemu.guest_agent.0=/run/a.sock,b=/run/b.sock vm",
        "name=vm pci.0.8.0.device=virtio-console pci.0.8.0.port.0.name=org.qemu.guest_agent.0 \
      pci.0.8.0.port.0.path=/run/a.sock pci.0.8.0.port.1.name=b pci.0.8.0.port.1.path=/run/b.sock",
    ),
    (
        "bhyve -s 9,virtio-input,/dev/input/event4 vm",
        "name=vm pci.0.9.0.device=virtio-input pci.0.9.0.path=/dev/input/event4",
    ),
    ("bhyve -s 9,uart,/dev/nmdm5A vm", "name=vm pci.0.9.0.device=uart pci.0.9.0.path=/dev/nmdm5A"),
    (
        "bhyve -s 6,passthru,2/0/1,rom=/r.rom vm",
        "name=vm pci.0.6.0.bus=2 pci.0.6.0.device=passthru pci.0.6.0.func=1 pci.0.6.0.rom=/r.rom pci.0.6.0.slot=0",
    ),
    (
        "bhyve -s 6,passthru,pci2:0:1 -s 7,passthru,ppt3 vm",
        "name=vm pci.0.6.0.bus=2 pci.0.6.0.device=passthru pci.0.6.0.func=1 pci.0.6.0.slot=0 pci.0.7.0.device=passthru \
      pci.0.7.0.pptdev=ppt3",
    ),
    // -o after -s adds to the device.
    (
        "bhyve -s 3,virtio-blk,/a -o pci.0.3.0.ro=true vm",
        "name=vm pci.0.3.0.device=virtio-blk pci.0.3.0.path=/a pci.0.3.0.ro=true",
    ),
    (
        "bhyve -s 5,dummy -s 1,lpc -s 2,virtio-rnd vm",
        "name=vm pci.0.1.0.device=lpc pci.0.2.0.device=virtio-rnd pci.0.5.0.device=dummy",
    ),
];

#[test]
fn command_lines_make_the_trees_that_bhyve_makes_of_them() {
    assert!(LINES.len() >= 60, "{}", LINES.len());
    for (line, tree) in LINES {
        let dump = config(line).dump(false);
        assert_eq!(dump.lines().collect::<Vec<_>>(), tree.split_whitespace().collect::<Vec<_>>(), "{line}");
    }
}

#[test]
fn a_tree_survives_being_written_as_arguments_and_as_a_file() {
    for (line, _) in LINES {
        let first = config(line);
        let again = match parse(&first.to_args(), &[]) {
            Ok(Asked::Run(config)) => config,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(again.dump(true), first.dump(true), "{line}: {:?}", first.to_args());
        let mut read = Config::new();
        read.read_text(&Origin::named("file"), &first.dump(false)).unwrap();
        assert_eq!(read.dump(true), first.dump(true), "{line}");
    }
}

#[test]
fn what_tools_look_for_in_refusals_is_there() {
    assert_eq!(refused("bhyve -s 0,X vm"), (4, "pci slot 0:0:0: unknown device \"X\"".to_owned()));
    assert_eq!(refused("bhyve -s 3,lpc -s 3:0,virtio-rnd vm"), (4, "pci slot 0:3:0 already occupied!".to_owned()));
    for bad in ["3", "32,lpc", "0:8,lpc", "256:0:0,lpc", "x,lpc", "1:2:3:4,lpc", "-1,lpc", "3foo,lpc", ",lpc"] {
        let (status, message) = refused(&format!("bhyve -s {bad} vm"));
        assert_eq!((status, message.contains("Invalid PCI slot info field")), (4, true), "{bad}: {message}");
    }
    assert_eq!(refused("bhyve -l X vm"), (64, "bhyve: invalid lpc device configuration 'X'".to_owned()));
    assert!(!refused("bhyve -l bootrom").1.contains("invalid lpc device"), "libvirt would see no UEFI");
    let password = refused("bhyve -s 0,fbuf,password=");
    assert_eq!(password, (1, String::new()), "libvirt would see no passwords");
    assert!(refused("bhyve -s 3,virtio-blck,/a vm").1.ends_with("did you mean \"virtio-blk\"?"));
}

#[test]
fn statuses_are_bhyves() {
    for (line, status) in [
        ("bhyve", 1),
        ("bhyve a b", 1),
        ("bhyve -Z vm", 1),
        ("bhyve -r file vm", 1),
        ("bhyve -c", 1),
        ("bhyve vm -c 2", 1),
        ("bhyve -c foo=1 vm", 64),
        ("bhyve -p x vm", 64),
        ("bhyve -p 1:99999 vm", 64),
        ("bhyve -o novalue vm", 64),
        ("bhyve -o empty= vm", 64),
        ("bhyve -l com1 vm", 64),
        ("bhyve -l tpm,swtpm vm", 64),
        ("bhyve -l fwcfg,x vm", 64),
        ("bhyve -n size=1G vm", 64),
        ("bhyve -f x vm", 64),
        ("bhyve -g 5 vm", 64),
        ("bhyve -G x vm", 4),
        ("bhyve -k /nonexistent vm", 4),
        ("bhyve -o a=1 -o a.b=2 vm", 4),
        ("bhyve -o a.b=1 -o a=2 vm", 4),
        ("bhyve -s 3,ahci,/a vm", 4),
        ("bhyve -s 3,virtio-9p,x vm", 4),
        ("bhyve -s 3,passthru,x vm", 4),
        ("bhyve -s 3,virtio-console,a vm", 4),
    ] {
        assert_eq!(refused(line).0, status, "{line}");
    }
    assert_eq!(asked("bhyve -h"), Ok(Asked::Usage));
    for help in ["h", "he", "help"] {
        assert_eq!(asked(&format!("bhyve -s {help}")), Ok(Asked::Devices));
        assert_eq!(asked(&format!("bhyve -l {help}")), Ok(Asked::LpcDevices));
    }
}

#[test]
fn a_file_has_one_assignment_a_line() {
    let mut config = Config::new();
    let text = "# comment\n\nname=vm\nmemory.size=%(size)\nsize=1%(unit)\r\nunit=G\na=100%% %(gone)\ncpus=0x4\nx=Yes\n";
    config.read_text(&Origin::named("f"), text).unwrap();
    assert_eq!(config.text("memory.size").unwrap().unwrap(), "1G");
    assert_eq!(config.text("a").unwrap().unwrap(), "100% ");
    assert_eq!(config.missing(), ["gone"]);
    assert_eq!((config.int("cpus", 1..=9).unwrap(), config.bool("x", false).unwrap()), (Some(4), true));
    assert!(config.int("cpus", 5..=9).is_err() && config.bool("cpus", false).is_err());
    for (bad, line) in [("name", 1), ("a=b\nname=\n", 2), ("a=1\n\na.b=2", 3), ("=x", 1), ("a b=c", 1)] {
        let refusal = Config::new().read_text(&Origin::named("f"), bad).unwrap_err();
        assert!(refusal.message.contains(&format!("f:{line}:1")), "{bad:?}: {refusal}");
    }
    let mut round = Config::new();
    round.read_text(&Origin::named("f"), "a=%(b)\nb=%(a)\n").unwrap();
    assert!(round.text("a").is_err());
}

#[test]
fn numbers_are_cs() {
    for (text, value) in [("0", 0), ("010", 8), ("0x1F", 31), ("-3", -3), ("12", 12), ("+7", 7)] {
        assert_eq!(number(text), Some(value), "{text}");
    }
    for text in ["", "-", "0x", "08", "1a", "0x-1", "--1", "99999999999999999999"] {
        assert_eq!(number(text), None, "{text}");
    }
}

/// Nothing that is typed panics, and what is taken survives being written.
#[test]
fn any_words_are_parsed_or_refused() {
    let pieces = [
        "-",
        "s",
        "l",
        "c",
        "o",
        "k",
        "n",
        "p",
        "G",
        "f",
        "A",
        "3",
        "0:",
        ",",
        "=",
        "virtio-blk",
        "ahci",
        "hd:",
        "cd:",
        "fbuf",
        "xhci",
        "passthru",
        "virtio-9p",
        "virtio-console",
        "nvme",
        "ram=",
        "com1",
        "bootrom",
        "tpm",
        "é",
        "%(",
        "%",
        "\n",
        "pci.0.3.0",
        ".",
        "device",
        "id=1",
        "size",
        "cpus",
        "1/2/3",
        "w",
        "name",
        " ",
        "\u{0}",
        "-s",
        "-o",
        "-l",
    ];
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % n as u64) as usize
    };
    let mut ran = 0;
    for _ in 0..20_000 {
        // A line that is right, with pieces put in somewhere.
        let line = LINES[random(LINES.len())].0;
        let mut args: Vec<String> = line.split_whitespace().skip(1).map(str::to_owned).collect();
        for _ in 0..random(3) {
            let (at, piece) = (random(args.len()), pieces[random(pieces.len())]);
            let word: Vec<char> = args[at].chars().collect();
            let cut = random(word.len() + 1);
            args[at] = word[..cut].iter().chain(&piece.chars().collect::<Vec<_>>()).chain(&word[cut..]).collect();
        }
        if let Ok(Asked::Run(config)) = parse(&args, &[]) {
            let again = parse(&config.to_args(), &[]);
            let Ok(Asked::Run(again)) = again else { panic!("{args:?}: {:?}: {again:?}", config.to_args()) };
            assert_eq!(again.dump(true), config.dump(true), "{args:?}");
            ran += 1;
        }
    }
    assert!(ran > 5000, "{ran}");
}
