//! Cables that lead to sockets, switches and bridges, and what people do to them while the machine runs, with the sandbox
//! on.
#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use machine_tests::net::{alone, ip};
use machine_tests::{Run, Scratch, bhyve_rs, guest, skip, until};

const PATIENCE: u64 = 240;
const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A station at the other end of a socket: it has 10.9.0.1, answers ARP and echo requests, and nothing else.
fn station(mut stream: UnixStream) {
    let mut length = [0; 4];
    while stream.read_exact(&mut length).is_ok() {
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        if stream.read_exact(&mut frame).is_err() {
            return;
        }
        let (arp, ip) = (frame[12..14] == [8, 6], frame[12..14] == [8, 0]);
        let from: [u8; 6] = frame[6..12].try_into().expect("six bytes");
        if arp && frame[20..22] == [0, 1] && frame[38..42] == [10, 9, 0, 1] {
            frame[21] = 2;
            frame.copy_within(22..32, 32);
            frame[22..28].copy_from_slice(&OURS);
            frame[28..32].copy_from_slice(&[10, 9, 0, 1]);
        } else if ip && frame[23] == 1 && frame[34] == 8 {
            // The sum over both addresses stays what it is.
            let source: [u8; 4] = frame[26..30].try_into().expect("four bytes");
            frame.copy_within(30..34, 26);
            frame[30..34].copy_from_slice(&source);
            echo_reply(&mut frame[34..]);
        } else {
            continue;
        }
        frame[..6].copy_from_slice(&from);
        frame[6..12].copy_from_slice(&OURS);
        let whole = [&(frame.len() as u32).to_be_bytes()[..], &frame].concat();
        if stream.write_all(&whole).is_err() {
            return;
        }
    }
}

/// Makes an echo request the reply to it: the type is another, and so is the checksum.
fn echo_reply(icmp: &mut [u8]) {
    icmp[0] = 0;
    let sum = u16::from_be_bytes([icmp[2], icmp[3]]);
    let (sum, carry) = sum.overflowing_add(0x0800);
    icmp[2..4].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
}

/// What `bhyve-rs WORDS` exits with and prints.
fn ask(dir: &Scratch, words: &[&str]) -> (i32, String) {
    let ended = bhyve_rs(dir, words);
    (ended.status, ended.console + &ended.stderr)
}

#[test]
fn a_guest_speaks_over_a_switch_and_loses_and_finds_its_link_and_is_captured() {
    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let dir = Scratch::new("cables");
    let lan = dir.path("lan");
    let switch = |sockets: &[&str]| {
        let mut switch = Run::start(&[&["switch"], sockets].concat(), PATIENCE);
        switch.expect("the switch listens");
        switch
    };
    // The guest is in VLAN 5 and does not know; the station is on the trunk behind a socket of the same VLAN.
    let (five, other) = (format!("{lan},vlan=5"), format!("{}.station,vlan=5", dir.path("lan")));
    let first = switch(&[&five, &other]);
    let connect = || {
        let stream = until("the switch", || UnixStream::connect(format!("{lan}.station")).ok());
        std::thread::spawn(move || station(stream))
    };
    connect();
    let run_dir = dir.path("run");
    let mut words = vec!["--run-dir", &run_dir, "--kernel", &kernel, "--initrd", &initrd];
    let args = "console=ttyS0 test=net end=shell";
    let path = format!("nic.0.path={lan}");
    words.extend(["--args", args]);
    let settings = ["name=cables", "memory=256M", "nic.0.backend=switch", "nic.0.rate=50M", &path];
    words.extend(settings.iter().flat_map(|s| ["-o", *s]));
    let mut machine = Run::start(&words, PATIENCE);
    machine.expect("guest# ");

    let capture = dir.path("frames.pcap");
    assert_eq!(ask(&dir, &["capture", "cables", "nic0", &capture]), (0, String::new()));
    assert_eq!(ask(&dir, &["capture", "cables", "nic0", &dir.path("other")]).0, 4, "one at a time");
    machine
        .send("ip addr flush eth0; ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up; ping -c 5 -i 0.2 10.9.0.1\n");
    machine.expect("5 packets transmitted, 5 packets received");
    let (status, said) = ask(&dir, &["capture", "cables", "nic0", "stop"]);
    assert!(status == 0 && said.ends_with("frames captured, 0 lost\n"), "{said}");
    let bytes = std::fs::read(&capture).expect("the capture");
    assert_eq!(bytes[..4], 0xa1b2_c3d4u32.to_ne_bytes());
    // Both directions: echo requests and replies with the addresses that they have.
    let has = |what: &[u8]| bytes.windows(what.len()).filter(|window| *window == what).count();
    assert_eq!((has(&[10, 9, 0, 2, 10, 9, 0, 1, 8, 0]), has(&[10, 9, 0, 1, 10, 9, 0, 2, 0, 0])), (5, 5));

    assert_eq!(ask(&dir, &["link", "cables", "nic0", "down"]).0, 0);
    machine.send("until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do usleep 10000; done; echo link is do''wn\n");
    machine.expect("link is down");
    assert_eq!(ask(&dir, &["link", "cables", "nic0", "up"]).0, 0);
    machine.send("until [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do usleep 10000; done; echo link is u''p\n");
    machine.expect("link is up");
    machine.send("ping -c 3 -i 0.2 10.9.0.1\n");
    machine.expect("3 packets transmitted, 3 packets received");
    let (status, said) = ask(&dir, &["link", "cables", "nic1", "down"]);
    assert!(status == 4 && said.contains("there are: nic0"), "{said}");

    // Another switch at the same place: the confined machine finds it by its broker.
    first.terminate();
    assert_eq!(first.wait().status, 0);
    assert!(!std::path::Path::new(&lan).exists());
    let second = switch(&[&five, &other]);
    connect();
    machine.send("until ping -c 1 -W 1 10.9.0.1 >/dev/null; do :; done; echo found aga''in\n");
    machine.expect("found again");
    machine.send("poweroff -f\n");
    assert_eq!(machine.wait().status, 1);
    second.terminate();
    second.wait();
}

#[test]
fn bridges_and_taps_that_were_made_go_with_the_machine_and_the_others_stay() {
    alone(|| {
        if !ip("link add br0 type bridge") {
            return skip("bridges");
        }
        let dir = Scratch::new("bridges");
        let start = |name: &str, backend: &str, interface: &str, create: bool| {
            let [name, backend, interface, create] = [
                format!("name={name}"),
                format!("nic.0.backend={backend}"),
                format!("nic.0.interface={interface}"),
                format!("nic.0.create={create}"),
            ];
            let settings = [&name, "memory=16M", "nic.0.model=virtio-net", &backend, &interface, &create];
            let run_dir = dir.path("run");
            let mut words = vec!["--run-dir", &run_dir];
            words.extend(settings.iter().flat_map(|s| ["-o", *s]));
            Run::start(&words, PATIENCE)
        };
        let refused = start("lost", "bridge", "br7", false).wait();
        assert!(
            refused.status == 4 && refused.stderr.contains("bridge br7: there is no such bridge"),
            "{}",
            refused.stderr
        );
        let refused = start("lost", "tap", "tap7", false).wait();
        assert!(refused.status == 4 && refused.stderr.contains("create = true"), "{}", refused.stderr);
        let refused = start("lost", "bridge", "lo", false).wait();
        assert!(refused.status == 4 && refused.stderr.contains("it is no bridge"), "{}", refused.stderr);

        // Killed, and so nothing of its own can tidy up.
        let member = |bridge: &str| {
            let out = Command::new("ip").args(["-o", "link", "show", "master", bridge]).output().expect("ip(8)");
            String::from_utf8_lossy(&out.stdout).lines().count()
        };
        let there = start("there", "bridge", "br0", false);
        until("the tap in br0", || (member("br0") == 1).then_some(()));
        let one = start("one", "bridge", "br7", true);
        until("the tap in br7", || (member("br7") == 1).then_some(()));
        let two = start("two", "bridge", "br7", false);
        until("both in br7", || (member("br7") == 2).then_some(()));
        let made = start("made", "tap", "tap9", true);
        until("tap9", || ip("link show tap9").then_some(()));
        one.kill();
        until("one is out", || (member("br7") == 1).then_some(()));
        std::thread::sleep(Duration::from_millis(1200));
        assert!(ip("link show br7"), "somebody is in it");
        two.kill();
        until("br7 is gone", || (!ip("link show br7")).then_some(()));
        there.kill();
        made.kill();
        until("taps are gone", || (member("br0") == 0 && !ip("link show tap9")).then_some(()));
        assert!(ip("link show br0"), "it was not ours");
    });
}

#[test]
fn a_second_machine_with_the_same_address_is_refused_and_both_are_named() {
    let dir = Scratch::new("addresses");
    let start = |name: &str| {
        let (run_dir, name) = (dir.path("run"), format!("name={name}"));
        let card = ["nic.0.model=virtio-net", "nic.0.backend=none", "nic.0.mac=00:a0:98:01:02:03"];
        let settings = [&[name.as_str(), "memory=16M"][..], &card].concat();
        let mut words = vec!["--run-dir", &run_dir];
        words.extend(settings.iter().flat_map(|s| ["-o", *s]));
        Run::start(&words, PATIENCE)
    };
    let first = start("web");
    until("web runs", || (bhyve_rs(&dir, &["status", "web"]).status == 0).then_some(()));
    let second = start("mail").wait();
    assert_eq!(second.status, 4);
    assert!(second.stderr.contains("web") && second.stderr.contains("mail"), "{}", second.stderr);
    first.kill();
    let second = start("mail");
    until("mail runs", || (bhyve_rs(&dir, &["status", "mail"]).status == 0).then_some(()));
    second.kill();
}
