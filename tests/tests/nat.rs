//! A guest behind the NAT as a user starts it: confined, its sockets from the broker. The servers are the test's own, on
//! the host's loopback.
#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;

use machine_tests::{Run, Scratch, guest, stream, until};

/// Bytes of a page.
const PAGE: usize = 4 << 20;

/// Serves the page to all who ask, by HTTP.
fn pages(host: IpAddr) -> u16 {
    let listener = TcpListener::bind((host, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let page = stream(PAGE);
            let _ = client.read(&mut [0; 4096]);
            let _ = client.write_all(format!("HTTP/1.0 200 OK\r\nContent-Length: {PAGE}\r\n\r\n").as_bytes());
            let _ = client.write_all(&page);
        }
    });
    port
}

/// Takes one upload, and says whether it was the page.
fn upload(host: IpAddr) -> (u16, JoinHandle<bool>) {
    let listener = TcpListener::bind((host, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let taken = std::thread::spawn(move || {
        let mut got = vec![0; PAGE];
        listener.accept().unwrap().0.read_exact(&mut got).is_ok() && got == stream(PAGE)
    });
    (port, taken)
}

/// Answers every query by 192.0.2.77.
fn names() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut query) {
            let v4 = query[..len].windows(4).any(|w| w == [0, 1, 0, 1]);
            let mut answer = query[..len].to_vec();
            (answer[2], answer[3], answer[7]) = (0x81, 0x80, u8::from(v4));
            if v4 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 77]);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    address
}

#[test]
fn linux_gets_addresses_names_pages_and_files_and_is_reached() {
    let dir = Scratch::new("nat");
    std::fs::create_dir(dir.path("tftp")).unwrap();
    std::fs::write(dir.path("tftp/file"), stream(300_000)).unwrap();
    let forwarded = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let Some(image) = guest("linux-amd64/vmlinuz") else { return };
    let Some(initrd) = guest("initramfs-amd64.cpio") else { return };
    let mut words = ["--kernel", &image, "--initrd", &initrd, "--args", "console=ttyS0 test=net end=shell"]
        .map(str::to_owned)
        .to_vec();
    for setting in [
        "nic.0.model=virtio-net",
        "nic.0.host_loopback=true",
        &format!("nic.0.dns={}", names()),
        &format!("nic.0.forward=tcp:{forwarded}:22"),
        &format!("nic.0.tftp={}", dir.path("tftp")),
    ] {
        words.extend(["-o".to_owned(), setting.to_owned()]);
    }
    let mut run = Run::start(&words, 240);
    let script = "#!/bin/sh\n[ $1 = bound ] && ip addr add $ip/24 dev eth0 && ip route add default via $router && \
                  echo lease $ip $dns\n";
    let encoded: String = script.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
    let mut step = |command: &str, answer: &str| {
        run.expect("guest# ");
        run.send(&format!("{command}\n"));
        run.expect(answer);
    };
    // What the guest is told is no answer: the quotes are not in what it says.
    step(&format!("printf '{encoded}' >/tmp/dhcp; chmod +x /tmp/dhcp; ip link set eth0 up"), "");
    step("udhcpc -n -q -s /tmp/dhcp -i eth0 | grep le'ase 10'", "lease 10.0.2.15 10.0.2.3");
    step("ping -c 1 10.0.2.2 | grep 'tran''smitted'", "1 packets transmitted, 1 packets received");
    step("until ip -6 route | grep -q ^default; do usleep 100000; done; echo rou''ted", "routed");
    step("until ping6 -c 1 fd00:0:0:2::2 >/dev/null; do :; done; echo ech''oed", "echoed");
    step("nslookup name.example 10.0.2.3 | grep '192.0''.2.77'", "192.0.2.77");
    for (host, gateway) in
        [(IpAddr::from(Ipv4Addr::LOCALHOST), "10.0.2.2"), (Ipv6Addr::LOCALHOST.into(), "[fd00:0:0:2::2]")]
    {
        let (port, (back, taken)) = (pages(host), upload(host));
        let plain = gateway.trim_matches(['[', ']']);
        step(&format!("wget -q -O - http://{gateway}:{port}/ | nc {plain} {back}; echo lo''aded"), "loaded");
        assert!(taken.join().unwrap(), "{gateway}: other bytes than were sent");
    }
    step("tftp -g -r file -l /tmp/file 10.0.2.2; wc -c </tmp/file | sed s/^/si''ze=/", "size=300000");
    // A background job that reads the console would be stopped.
    step("echo from the guest | nc -l -p 22 & echo lis''tens", "listens");
    let said = until("the guest to answer", || {
        let mut stream = TcpStream::connect(forwarded).ok()?;
        let mut text = [0; 14];
        stream.read_exact(&mut text).ok().map(|()| text)
    });
    assert_eq!(&said, b"from the guest");
    step("poweroff -f", "");
    let ended = run.wait();
    // Powered off.
    assert_eq!((ended.status, ended.stderr.lines().any(|line| line.contains("panic"))), (1, false));
}
