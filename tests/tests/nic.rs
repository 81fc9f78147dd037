//! Network cards under Linux's drivers, with the host's own network stack at the other end of the cable: a tap interface
//! in a network namespace of the test's, which needs root and no more.
//!
//! A chip is a line of the table below. What the guest does is in tests/guests/initramfs/tests/nic; what the rows of
//! `full` do takes hours and is part of tests/matrix.
#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};

use machine_tests::net::{ip, with_tap};
use machine_tests::{Run, guest, numbers};

/// What a row does.
#[derive(Clone, Copy)]
struct Work {
    mib: u32,
    frames: u32,
    resets: u32,
    /// Milliseconds of the longest ping. On a host with other work a second says nothing of the card.
    longest: u32,
    /// Within how many seconds.
    seconds: u64,
}

const SHORT: Work = Work { mib: 16, frames: 2000, resets: 10, longest: 4000, seconds: 300 };
const FULL: Work = Work { mib: 1024, frames: 100_000, resets: 200, longest: 1000, seconds: 7200 };

/// Model with keys of its own, Linux's driver and what it is told, kernel, board.
macro_rules! cards {
    ($($(#[$attribute:meta])* $name:ident: $model:literal, $driver:literal, $kernel:literal, $board:literal;)*) => {
        $(
            #[test]
            $(#[$attribute])*
            fn $name() {
                row($model, $driver, $kernel, $board, SHORT);
            }
        )*

        mod full {
            $(
                #[test]
                #[ignore = "part of tests/matrix"]
                fn $name() {
                    super::row($model, $driver, $kernel, $board, super::FULL);
                }
            )*
        }
    };
}

cards! {
    virtio_net_amd64: "virtio-net version=modern", "virtio_net", "amd64", "440fx";
    #[ignore = "part of tests/matrix"]
    virtio_net_i386: "virtio-net version=legacy", "virtio_net", "686", "440bx";
    e1000_amd64: "e1000", "e1000", "amd64", "440fx";
    #[ignore = "part of tests/matrix"]
    e1000_i386: "e1000-82540em", "e1000", "686", "440bx";
    #[ignore = "part of tests/matrix"]
    e1000_82543gc_amd64: "e1000-82543gc", "e1000", "amd64", "440fx";
    pcnet_amd64: "pcnet-fast", "pcnet32", "amd64", "440fx";
    #[ignore = "part of tests/matrix"]
    pcnet_i386: "pcnet", "pcnet32", "686", "440bx";
    dec21140_amd64: "dec21140", "tulip", "amd64", "440bx";
    #[ignore = "part of tests/matrix"]
    dec21140_i386: "dec21140", "tulip", "686", "440bx";
    #[ignore = "part of tests/matrix"]
    dec21140_mii: "dec21140 srom=mii", "tulip", "amd64", "440fx";
    dec21143_amd64: "dec21143", "tulip", "amd64", "440fx";
    #[ignore = "part of tests/matrix"]
    dec21143_i386: "dec21143 srom=auto", "tulip", "686", "440fx";
    rtl8139_plus: "rtl8139", "8139cp", "amd64", "440fx";
    rtl8139: "rtl8139 revision=10", "8139too", "686", "440fx";
    rtl8169: "rtl8169", "r8169", "amd64", "440bx";
    ne2000_pci: "ne2k-pci", "ne2k-pci", "amd64", "440fx";
    #[ignore = "part of tests/matrix"]
    ne2000_isa: "ne2k-isa", "ne io=0x300", "686", "440fx";
}

fn row(model: &str, driver: &str, kernel: &str, board: &str, work: Work) {
    with_tap(|| inside(model, driver, kernel, board, work));
}

fn inside(model: &str, driver: &str, kernel: &str, board: &str, work: Work) {
    let Some(image) = guest(&format!("linux-{kernel}/vmlinuz")) else { return };
    let arch = if kernel == "amd64" { "amd64" } else { "i386" };
    let Some(initrd) = guest(&format!("initramfs-{arch}.cpio")) else { return };
    let mut set: Vec<_> = (0..4).map(|n| format!("-6 addr add fd00:9:{n}::1/64 dev tap0 nodad")).collect();
    set.push("route add 224.0.0.0/4 dev tap0".to_owned());
    set.iter().for_each(|words| assert!(ip(words), "ip {words}"));
    serve();

    let Work { mib, frames, resets, longest, seconds } = work;
    let (driver, args) = driver.split_once(' ').unwrap_or((driver, ""));
    let args = format!(
        "console=ttyS0 test=nic nic.driver={driver} nic.args={} nic.mib={mib} nic.frames={frames} nic.resets={resets} \
         nic.longest={longest} end=poweroff",
        args.replace(' ', ",")
    );
    let mut keys = model.split(' ');
    let model = keys.next().unwrap_or(model);
    let keys: Vec<_> = keys.map(|key| format!("nic.0.{key}")).collect();
    let settings = [
        &format!("board={board}"),
        "memory=256M",
        &format!("nic.0.model={model}"),
        "nic.0.backend=tap",
        "nic.0.interface=tap0",
    ];
    let mut words = vec!["--kernel", &image, "--initrd", &initrd, "--args", &args];
    words.extend(settings.iter().flat_map(|s| ["-o", *s]));
    words.extend(keys.iter().flat_map(|key| ["-o", key.as_str()]));
    let ended = Run::start(&words, seconds).wait();
    let said = ended.console.split_once("RESULT boot").map_or(&*ended.console, |(_, said)| said);
    assert!(said.contains("RESULT nic pass "), "{said}\n{}", ended.stderr);
    println!("{model}: {}", ended.result("nic").1);
}

/// The host's side of the workload.
fn serve() {
    let listener = TcpListener::bind("[::]:7000").expect("port 7000");
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || streams(connection));
        }
    });
    let echo = UdpSocket::bind("[::]:7001").expect("port 7001");
    std::thread::spawn(move || {
        let mut frame = vec![0; 65536];
        while let Ok((size, from)) = echo.recv_from(&mut frame) {
            let _ = echo.send_to(&frame[..size], from);
        }
    });
    let groups = UdpSocket::bind("[::]:7002").expect("port 7002");
    std::thread::spawn(move || {
        let mut text = [0; 64];
        while let Ok((size, _)) = groups.recv_from(&mut text) {
            let group = std::str::from_utf8(&text[..size]).ok().and_then(|text| text.parse().ok()).expect("a group");
            let to: SocketAddr = match group {
                IpAddr::V4(group) => (group.to_ipv6_mapped(), 7002).into(),
                // tap0 is the second interface of its namespace.
                IpAddr::V6(group) => SocketAddrV6::new(group, 7002, 0, 2).into(),
            };
            for n in 0..10 {
                groups.send_to(&[n], to).expect("a route to the group");
            }
        }
    });
}

/// Bytes of the stream that are made at a time.
const BLOCK: usize = 64 << 10;

/// The first `left` bytes of the stream, block by block.
fn blocks(mut left: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut numbers = numbers();
    std::iter::from_fn(move || {
        let block: Vec<u8> = numbers.by_ref().take(BLOCK / 8).flatten().take(left).collect();
        left -= block.len();
        (!block.is_empty()).then_some(block)
    })
}

/// Takes as many bytes as the guest says, and gives it as many as it says, both at once; tells it whether they were those
/// of the stream.
fn streams(mut connection: TcpStream) {
    let number = |connection: &mut TcpStream| {
        let mut bytes = [0; 8];
        connection.read_exact(&mut bytes).map(|()| u64::from_le_bytes(bytes) as usize)
    };
    let (Ok(takes), Ok(gives)) = (number(&mut connection), number(&mut connection)) else { return };
    let mut to = connection.try_clone().expect("a descriptor");
    let right = std::thread::scope(|threads| {
        threads.spawn(move || blocks(gives).try_for_each(|block| to.write_all(&block)));
        blocks(takes).all(|block| {
            let mut got = vec![0; block.len()];
            connection.read_exact(&mut got).is_ok() && got == block
        })
    });
    let _ = connection.write_all(if right { b"y" } else { b"n" });
}
