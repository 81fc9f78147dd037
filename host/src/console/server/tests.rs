use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use super::*;
use crate::console::tests::{Dir, Plugged, Rig, SOON, connect, expect, pattern, read, read_up_to, until};

/// The console of a serial port, in a directory of its own.
struct Served {
    rig: Rig,
    dir: Dir,
    server: Server,
    com: Plugged,
    description: Description,
}

fn served(log: Option<u64>, block: bool) -> Served {
    let (rig, dir, server) = (Rig::new(), Dir::new(), Server::start().unwrap());
    let log = log.map(|size| LogSpec { path: dir.0.join("out"), size, keep: 3 });
    let (console, description) =
        server.serial(rig.io(), "com1", Some(&dir.0.join("com1")), log.as_ref(), block).unwrap();
    let com = rig.plug(console, true);
    Served { rig, dir, server, com, description }
}

impl Served {
    fn connect(&self) -> UnixStream {
        connect(&self.dir.0.join("com1"))
    }

    fn attach(&self, wish: Wish) -> (UnixStream, Place) {
        let (ours, its) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(SOON)).unwrap();
        (ours, self.server.consoles().attach("com1", its, wish).unwrap())
    }
}

/// Lines that say which they are.
fn numbered(lines: std::ops::Range<u32>) -> String {
    lines.map(|n| format!("{n:07}\n")).collect()
}

const READ: Wish = Wish { readonly: true, force: false, from: From::Start, size: (80, 25) };
const WRITE: Wish = Wish { readonly: false, ..READ };
const FORCE: Wish = Wish { force: true, ..WRITE };

#[test]
fn whoever_comes_is_shown_what_was_there_and_all_see_what_follows() {
    let s = served(None, false);
    assert_eq!(s.dir.0.join("com1").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    s.com.print(b"early\n");
    let (mut raw, (mut reader, place)) = (s.connect(), s.attach(READ));
    assert!(!place.writes);
    for client in [&mut raw, &mut reader] {
        expect(client, b"early\n");
    }
    s.com.print(b"now\n");
    for client in [&mut raw, &mut reader, &mut s.connect()] {
        assert!(read_up_to(client, b"now\n").ends_with(b"now\n"));
    }
    raw.write_all(b"typed").unwrap();
    s.com.awaits(b"typed");
    let (mut fresh, place) = s.attach(Wish { from: From::Now, ..READ });
    assert_eq!((place.position, place.others), (10, 2));
    s.com.print(b"later\n");
    expect(&mut fresh, b"later\n");
    let (mut past, _) = s.attach(Wish { from: From::Past, ..READ });
    let mut all = String::new();
    past.read_to_string(&mut all).unwrap();
    assert_eq!(all, "early\nnow\nlater\n");
    assert!(s.server.consoles().attach("com2", UnixStream::pair().unwrap().0, READ).unwrap_err().contains("com2"));
}

#[test]
fn attaching_and_detaching_while_the_guest_prints_loses_and_doubles_nothing() {
    let s = served(Some(1 << 30), false);
    let all = numbered(0..20_000);
    let com = &s.com;
    let mut got = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for line in all.as_bytes().chunks(8) {
                com.print(line);
                // No faster than somebody can attach fifty times.
                if line.ends_with(b"00\n") {
                    std::thread::park_timeout(Duration::from_millis(1));
                }
            }
        });
        let mut seen = 0;
        for n in 0..50 {
            let (mut client, place) = s.attach(if n % 2 == 0 { READ } else { WRITE });
            // It begins with the first byte that there was.
            let mut text = Vec::new();
            while text.len() < seen + 8 {
                text.extend(read(&mut client));
            }
            client.shutdown(std::net::Shutdown::Write).unwrap();
            client.read_to_end(&mut text).unwrap();
            assert!(text.len() as u64 + 256 * 1024 > place.position);
            assert!(all.as_bytes().starts_with(&text), "attachment {n} has a gap or something twice");
            seen = text.len();
            got = text;
        }
    });
    assert!(got.len() > 8 * 50);
    assert!(s.description.flush(SOON));
    assert!(fs::read_to_string(s.dir.0.join("out")).unwrap() == all, "the log has all of it");
}

#[test]
fn the_first_writes_until_another_takes_over_and_all_are_told() {
    let s = served(None, false);
    let (mut first, place) = s.attach(WRITE);
    assert!(place.writes);
    let (mut second, place) = s.attach(WRITE);
    assert!(!place.writes && place.others == 1);
    let mut reader = s.attach(READ).0;
    second.write_all(b"x").unwrap();
    let told = read_up_to(&mut second, b"nowhere]\r\n");
    assert!(String::from_utf8(told).unwrap().contains("another client writes"));
    s.server.consoles().take(place.client).unwrap();
    assert!(String::from_utf8(read(&mut first)).unwrap().contains("taken over; you read on"));
    assert!(String::from_utf8(read(&mut reader)).unwrap().contains("taken over"));
    second.write_all(b"second").unwrap();
    s.com.awaits(b"second");
    first.write_all(b"first").unwrap();
    read_up_to(&mut first, b"nowhere]\r\n");
    s.com.print(b"!");
    for client in [&mut first, &mut second, &mut reader] {
        expect(client, b"!");
    }

    let (mut third, place) = s.attach(FORCE);
    assert!(place.writes);
    expect(&mut third, b"!");
    third.write_all(b", third").unwrap();
    s.com.awaits(b"second, third");
    // The oldest that may follows when it goes.
    drop(third);
    assert!(String::from_utf8(read_up_to(&mut first, b"now]\r\n")).unwrap().contains("you write now"));
    first.write_all(b", first").unwrap();
    s.com.awaits(b"second, third, first");
    drop(first);
    read_up_to(&mut second, b"you write now]\r\n");
    let (_, place) = s.attach(READ);
    assert!(s.server.consoles().take(place.client).is_err());
    assert!(s.server.consoles().take(12345).is_err());
}

#[test]
fn a_reader_that_stops_costs_neither_the_guest_nor_the_others_a_byte() {
    let s = served(Some(1 << 30), false);
    s.com.print(b"!");
    let mut stopped = s.connect();
    expect(&mut stopped, b"!");
    let mut good = s.attach(WRITE).0;
    expect(&mut good, b"!");
    let all = pattern(4 << 20);
    let end = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut got = Vec::new();
            while got.len() < all.len() {
                got.extend(read(&mut good));
            }
            got
        });
        s.com.print(&all);
        until("the guest goes on", || s.com.unsent() == 0);
        reader.join().unwrap()
    });
    assert!(end == all, "the other reader has all");
    assert!(s.description.flush(SOON));
    assert!(fs::read(s.dir.0.join("out")).unwrap()[1..] == all, "and the log");
    // What the kernel's buffer had, how much is missing, and the ring.
    let got = read_up_to(&mut stopped, &all[all.len() - 64..]);
    let at = got.windows(11).position(|w| w == b"\r\n[bhyve-rs").unwrap();
    assert!(got[..at] == all[..at]);
    let text = String::from_utf8_lossy(&got[at..at + 80]).into_owned();
    let missed: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(text.contains(&format!("{missed} bytes are missing here]\r\n")), "{text}");
    let rest = &got[at + format!("\r\n[bhyve-rs: {missed} bytes are missing here]\r\n").len()..];
    assert_eq!(at + missed + rest.len(), all.len());
    assert!(rest.len() >= 256 << 10 && rest == &all[all.len() - rest.len()..]);
    // It reads again, and misses nothing any more.
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        while got.len() < 4 << 20 {
            got.extend(read(&mut stopped));
        }
        got
    });
    s.com.print(&all);
    drop(good);
    assert!(reader.join().unwrap() == all);
}

#[test]
fn under_the_instruction_clock_the_guest_waits_and_nothing_is_lost() {
    let s = served(Some(1 << 30), true);
    let all = pattern(1 << 20);
    all.chunks(16).for_each(|piece| s.com.print(piece));
    assert_eq!(s.com.unsent(), 0);
    assert!(s.description.flush(SOON));
    assert!(fs::read(s.dir.0.join("out")).unwrap() == all);
}

#[test]
fn what_is_typed_waits_for_a_guest_that_does_not_read() {
    let s = served(None, false);
    let mut client = s.connect();
    s.rig.gate.close();
    let all = pattern(64 << 10);
    let (mut typing, text) = (client.try_clone().unwrap(), all.clone());
    let typist = std::thread::spawn(move || typing.write_all(&text).unwrap());
    // The console goes on meanwhile.
    s.com.print(b"here");
    expect(&mut client, b"here");
    s.rig.gate.open();
    s.com.awaits(&all);
    typist.join().unwrap();
    // Who types and goes at once is heard.
    client.write_all(b"bye").unwrap();
    drop(client);
    until("the last word", || s.com.input().ends_with(b"bye"));
}

#[test]
fn the_end_comes_to_all_behind_the_last_output_and_the_socket_goes() {
    let s = served(Some(1000), false);
    let mut client = s.connect();
    s.com.print(b"last words");
    assert!(s.description.flush(SOON));
    let consoles = s.server.consoles();
    drop(s.server);
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
    assert!(!s.dir.0.join("com1").exists());
    assert!(consoles.attach("com1", client, READ).unwrap_err().contains("ended"));
}

#[test]
fn there_is_an_end_to_clients() {
    let s = served(None, false);
    let all: Vec<_> = (0..32).map(|_| s.attach(READ)).collect();
    let (_, its) = UnixStream::pair().unwrap();
    assert!(s.server.consoles().attach("com1", its, READ).unwrap_err().contains("32 clients"));
    let mut late = String::new();
    s.connect().read_to_string(&mut late).unwrap();
    assert!(late.contains("32 clients"), "{late}");
    drop(all);
    until("there is room", || s.server.consoles().attach("com1", UnixStream::pair().unwrap().1, READ).is_ok());
}

#[test]
fn the_end_does_not_wait_for_who_does_not_read() {
    let s = served(None, false);
    let client = s.connect();
    // More than the socket takes, less than the ring keeps.
    let some = pattern(200 << 10);
    s.com.print(&some);
    s.com.print(&some);
    until("the guest goes on", || s.com.unsent() == 0);
    let begun = Instant::now();
    assert!(s.description.flush(SOON));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(client);
}
