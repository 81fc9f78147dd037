//! Linux's drivers of network cards.

use machine_tests::{Scratch, boot_words, run};

const MAC: &str = "00:a0:98:01:02:03";

/// An ICMP echo request in an Ethernet frame, with its checksums, as hexadecimal digits.
fn echo_request(number: u16) -> String {
    let checksum = |bytes: &[u8]| {
        let sum: u32 = bytes.chunks(2).map(|b| u32::from(u16::from_be_bytes([b[0], b[1]]))).sum();
        (!(sum % 0xffff) as u16).to_be_bytes()
    };
    let mut icmp = [&[8, 0, 0, 0, 0x12, 0x34][..], &number.to_be_bytes(), &[0x55; 48]].concat();
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    let mut ip = vec![0x45, 0, 0, 20 + icmp.len() as u8, 0, number as u8, 0, 0, 64, 1, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let mac = [0x00, 0xa0, 0x98, 1, 2, 3];
    let frame = [&mac[..], &[2, 0, 0, 0, 0, 1], &[8, 0], &ip, &icmp].concat();
    frame.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn frames_of_a_script_reach_linux_at_the_same_instruction_in_every_run() {
    const FRAMES: u16 = 40;
    let dir = Scratch::new("frames");
    let mut script = String::from("[[step]]\nseen = 'guest# '\nsend = \"ip link set eth0 up; echo rea''dy\\n\"\n");
    let first = "seen = 'ready'\nafter = 0.5\n".to_owned();
    let when = std::iter::once(first).chain((1..).map(|_| "at = 0\n".to_owned()));
    for (number, when) in (0..FRAMES).zip(when) {
        script += &format!("[[step]]\n{when}frame = '{}'\n", echo_request(number));
    }
    script += "[[step]]\nseen = '# '\nafter = 0.5\nsend = \"grep ^Icmp: /proc/net/snmp; poweroff -f\\n\"\n";
    let script = dir.write("script.toml", &script);
    let Some(mut words) = boot_words("amd64", "test=net end=shell") else { return };
    words.extend(["--script".to_owned(), script]);
    for setting in ["nic.0.model=virtio-net", "nic.0.backend=script", &format!("nic.0.mac={MAC}")] {
        words.extend(["-o".to_owned(), setting.to_owned()]);
    }
    let [one, two] = [0, 1].map(|_| run(&words, 120));
    assert!(one.result("net").1.contains(" carrier=1 "), "{}", one.console);
    // InMsgs, InErrors, InCsumErrors.
    assert!(one.console.contains(&format!("Icmp: {FRAMES} 0 0 ")), "{}", one.console);
    assert_eq!((&one.console, one.instructions()), (&two.console, two.instructions()));
}
