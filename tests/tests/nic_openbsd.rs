//! Network cards under OpenBSD's drivers, those of the 5.1 install floppy (see BHYVE_RS_GUESTS in the README), with the
//! host's own network stack at the other end of a tap: pings of the longest frames without a pause, a file that arrives as it was
//! sent, the interface down and up. A card is a line of the table.
#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use machine_tests::net::with_tap;
use machine_tests::{Run, Scratch, skip, stream};

/// What a row does.
#[derive(Clone, Copy)]
struct Work {
    mib: usize,
    pings: u32,
    resets: u32,
    seconds: u64,
}

const SHORT: Work = Work { mib: 4, pings: 500, resets: 3, seconds: 300 };
const FULL: Work = Work { mib: 200, pings: 20_000, resets: 50, seconds: 3600 };

/// Model and its keys, OpenBSD's name of its first interface, board.
macro_rules! cards {
    ($($(#[$attribute:meta])* $name:ident: $model:literal, $interface:literal, $board:literal;)*) => {
        $(
            #[test]
            $(#[$attribute])*
            fn $name() {
                row($model, $interface, $board, SHORT);
            }
        )*

        mod full {
            $(
                #[test]
                #[ignore = "part of tests/matrix"]
                fn $name() {
                    super::row($model, $interface, $board, super::FULL);
                }
            )*
        }
    };
}

cards! {
    em_82545em: "e1000", "em0", "440bx";
    re_8139c_plus: "rtl8139", "re0", "440fx";
    de_21140: "dec21140", "de0", "440bx";
    dc_21143: "dec21143", "dc0", "440bx";
    #[ignore = "part of tests/matrix"]
    rl_8139c: "rtl8139 revision=10", "rl0", "440bx";
    #[ignore = "part of tests/matrix"]
    re_8169s: "rtl8169", "re0", "440fx";
    #[ignore = "part of tests/matrix"]
    ne_pci: "ne2k-pci", "ne3", "440bx";
    #[ignore = "part of tests/matrix"]
    ne_isa: "ne2k-isa", "ne1", "440fx";
}

fn row(model: &str, interface: &str, board: &str, work: Work) {
    with_tap(|| inside(model, interface, board, work));
}

fn inside(model: &str, interface: &str, board: &str, Work { mib, pings, resets, seconds }: Work) {
    let floppy = "openbsd51-i386-install-floppy.img";
    let floppy = Path::new(&std::env::var("BHYVE_RS_GUESTS").unwrap_or_default()).join(floppy);
    if !floppy.exists() {
        return skip("OpenBSD's floppy");
    }
    let file = stream(mib << 20);
    serve(file.clone());

    let scratch = Scratch::new(&format!("openbsd-{interface}-{}", model.replace(' ', "-")));
    let (copy, disk) = (scratch.path("floppy.img"), scratch.path("disk.img"));
    std::fs::copy(&floppy, &copy).expect("a copy");
    std::fs::File::create(&disk).and_then(|f| f.set_len((mib as u64 + 16) << 20)).expect("an image");
    let steps = [
        format!("ifconfig {interface} 10.9.0.2 netmask 255.255.255.0"),
        "until ping -c 1 -w 1 10.9.0.1; do :; done".to_owned(),
        format!("ping -q -f -s 1472 -c {pings} 10.9.0.1"),
        "ftp -o - http://10.9.0.1/file | dd of=/dev/rwd0c obs=64k".to_owned(),
        format!(
            "n=0; while [ $n -lt {resets} ]; do ifconfig {interface} down; ifconfig {interface} up; n=$((n+1)); \
             until ping -c 1 -w 1 10.9.0.1 >/dev/null; do :; done; done; echo up $n times"
        ),
        format!("ifconfig {interface}; netstat -in; dmesg | grep {interface}; halt -p"),
    ];
    let mut script = String::from(
        "[[step]]\nshown = 'boot>'\nkeys = 'set tty com0<enter>'\n\
         [[step]]\nseen = 'boot>'\nafter = 0.3\nsend = \"boot\\r\"\n\
         [[step]]\nseen = '(S)hell? '\nsend = \"S\\n\"\n",
    );
    for send in steps {
        script += &format!("[[step]]\nseen = '# '\nafter = 0.2\nsend = {:?}\n", send + "\n");
    }
    let script = scratch.write("script.toml", &script);
    let settings = [
        format!("name=nic-{}", std::process::id()),
        format!("board={board}"),
        "memory=64M".to_owned(),
        "acpi.enabled=false".to_owned(),
        "serial.0.backend=stdio".to_owned(),
        format!("floppy.0.path={copy}"),
        format!("disk.0.path={disk}"),
        "boot.order=floppy".to_owned(),
    ];
    let card = format!("model={model} backend=tap interface=tap0");
    let settings: Vec<String> = settings.into_iter().chain(card.split(' ').map(|key| format!("nic.0.{key}"))).collect();
    let mut words = vec!["--script", &script];
    words.extend(settings.iter().flat_map(|s| ["-o", s]));
    let ended = Run::start(&words, seconds).wait();
    let console = &ended.console;
    // A flood does not always wait for the answer before the next one, and ends with the last that it was to get.
    let all = |more| console.contains(&format!("{} packets transmitted, {pings} packets received", pings + more));
    assert!(all(0) || all(1), "{console}\n{}", ended.stderr);
    assert!(console.contains(&format!("up {resets} times")), "{console}\n{}", ended.stderr);
    for said in ["timeout", "autosense failed"] {
        assert!(!console.contains(said), "{console}");
    }
    let mut came = vec![0; file.len()];
    std::fs::File::open(&disk).and_then(|mut f| f.read_exact(&mut came)).expect("the disk");
    assert!(came == file, "the file is not what it was: {console}");
    println!("{model}: {}", console.lines().filter(|line| line.contains("bytes transferred")).collect::<String>());
}

/// Gives the file to whoever asks, as a web server does.
fn serve(file: Vec<u8>) {
    let listener = TcpListener::bind("10.9.0.1:80").expect("port 80");
    std::thread::spawn(move || {
        for mut connection in listener.incoming().map_while(Result::ok) {
            let mut asked = [0; 1024];
            let _ = connection.read(&mut asked);
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", file.len());
            let _ = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(&file));
        }
    });
}
