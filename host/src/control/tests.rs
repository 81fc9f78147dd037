use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::console::tests::{Dir, until};

const SOON: Option<Duration> = Some(Duration::from_secs(20));

fn members(value: Value) -> Members {
    match value {
        Value::Object(members) => members,
        _ => panic!("{value} is no object"),
    }
}

/// A server that echoes arguments, and the verbs that it was asked.
fn server(path: &Path) -> (Server, Receiver<String>) {
    let (tx, asked) = channel();
    let server = Server::start(path, &Events::default(), move |request| {
        let _ = tx.send(request.verb.clone());
        match request.verb.as_str() {
            "echo" => Reply::Done(request.args.clone()),
            "large" => Reply::Done(members(json!({"text": "x".repeat(100_000)}))),
            "wait" => Reply::AtEnd,
            verb => Reply::Failed(format!("there is no verb {verb}")),
        }
    });
    (server.unwrap(), asked)
}

/// A server in a directory of its own, and its socket's path.
fn served() -> (Dir, PathBuf, Server, Receiver<String>) {
    let dir = Dir::new();
    let path = dir.0.join("fw1.sock");
    let (server, asked) = server(&path);
    (dir, path, server, asked)
}

/// A client that says what it likes.
struct Raw(BufReader<UnixStream>);

impl Raw {
    fn connect(path: &Path) -> Raw {
        let mut raw = Raw::unread(path);
        assert_eq!(raw.line(), json!({"version": 1}));
        raw
    }

    fn unread(path: &Path) -> Raw {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(SOON).unwrap();
        Raw(BufReader::new(stream))
    }

    fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    #[track_caller]
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    #[track_caller]
    fn refused(&mut self, id: Value, why: &str) {
        let line = self.line();
        assert_eq!((&line["id"], &line["ok"]), (&id, &Value::Bool(false)));
        assert!(line["error"].as_str().unwrap().contains(why), "{line}");
    }

    fn is_over(&mut self) -> bool {
        self.0.read(&mut [0]).unwrap() == 0
    }
}

#[test]
fn a_call_brings_results_or_the_reason_why_not() {
    let (_dir, path, _server, asked) = served();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let args = members(json!({"n": 5, "text": "ä\n\"", "deep": {"a": [1, null]}}));
    assert_eq!(call(&path, "echo", &args, SOON).unwrap(), args);
    assert_eq!(asked.recv().unwrap(), "echo");
    match call(&path, "dance", &Members::new(), SOON) {
        Err(CallError::Refused(why)) => assert_eq!(why, "there is no verb dance"),
        other => panic!("{other:?}"),
    }
    assert_eq!(call(&path, "large", &Members::new(), SOON).unwrap()["text"].as_str().unwrap().len(), 100_000);
}

#[test]
fn a_machine_that_is_not_there_or_does_not_answer_is_told_apart() {
    let dir = Dir::new();
    let path = dir.0.join("fw1.sock");
    let ask = |limit| call(&path, "status", &Members::new(), limit);
    assert!(matches!(ask(SOON), Err(CallError::NotRunning(p)) if p == path));
    let listener = UnixListener::bind(&path).unwrap();
    assert!(matches!(ask(Some(Duration::from_millis(20))), Err(CallError::TimedOut)));
    drop(listener);
    assert!(matches!(ask(SOON), Err(CallError::NotRunning(_))), "a stale socket");

    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    for (hello, why) in [("SSH-2.0\n", "no bhyve-rs"), ("{\"version\":2}\n", "another version"), ("", "ended")] {
        let client = std::thread::scope(|s| {
            let client = s.spawn(|| ask(SOON));
            listener.accept().unwrap().0.write_all(hello.as_bytes()).unwrap();
            client.join().unwrap()
        });
        assert!(matches!(&client, Err(CallError::Broken(how)) if how.contains(why)), "{client:?}");
    }
}

#[test]
fn what_is_no_request_is_answered_and_the_next_request_too() {
    let (_dir, path, _server, _asked) = served();
    let mut raw = Raw::connect(&path);
    for (line, id, why) in [
        (&b"hello"[..], Value::Null, "not JSON"),
        (b"\xff\xfe\0", Value::Null, "not JSON"),
        (b"[1]", Value::Null, "object"),
        (b"{\"verb\":\"echo\"}", Value::Null, "\"id\""),
        (b"{\"id\":-1,\"verb\":\"echo\"}", Value::Null, "\"id\""),
        (b"{\"id\":7}", json!(7), "\"verb\""),
        (b"{\"id\":8,\"verb\":8}", json!(8), "\"verb\""),
        (b"{\"id\":9,\"verb\":\"\"}", json!(9), "no verb"),
        (b"{\"id\":10,", Value::Null, "not JSON"),
        ("[".repeat(10_000).as_bytes(), Value::Null, "not JSON"),
    ] {
        raw.say(line);
        raw.say("\n");
        raw.refused(id, why);
    }
    raw.say("\n  \r\n{\"id\":18446744073709551615,\"verb\":\"echo\",\"a\":1}\r\n");
    assert_eq!(raw.line(), json!({"id": u64::MAX, "ok": true, "a": 1}));
}

#[test]
fn a_line_that_is_too_long_costs_its_sender_that_line_only() {
    let (_dir, path, _server, _asked) = served();
    let mut raw = Raw::connect(&path);
    for len in [MAX_LINE + 1, 10 * MAX_LINE] {
        raw.say(vec![b'x'; len]);
        raw.say("\n{\"id\":1,\"verb\":\"echo\"}\n");
        raw.refused(Value::Null, "longer than 65536");
        assert_eq!(raw.line(), json!({"id": 1, "ok": true}));
    }
    let text = "x".repeat(MAX_LINE - 40);
    raw.say(format!("{{\"id\":2,\"verb\":\"echo\",\"t\":\"{text}\"}}\n"));
    assert_eq!(raw.line()["t"], text);
    // Many lines at once, blank ones among them, are no long line.
    raw.say("\n".repeat(2 * MAX_LINE));
    raw.say("{\"id\":3,\"verb\":\"echo\"}\n".repeat(5000));
    for _ in 0..5000 {
        assert_eq!(raw.line(), json!({"id": 3, "ok": true}));
    }
}

#[test]
fn requests_in_pieces_and_without_a_last_newline_are_understood() {
    let (_dir, path, _server, _asked) = served();
    let mut raw = Raw::connect(&path);
    for byte in b"{\"id\":1,\"verb\":\"echo\"}\n{\"id\":2,\"verb\":\"echo\"}" {
        raw.say([*byte]);
    }
    assert_eq!(raw.line()["id"], 1);
    raw.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(raw.line()["id"], 2);
    assert!(raw.is_over());
}

#[test]
fn a_request_is_done_though_its_sender_does_not_stay_for_the_reply() {
    let (_dir, path, _server, asked) = served();
    Raw::unread(&path).say("{\"id\":1,\"verb\":\"stop\"}\n");
    assert_eq!(asked.recv_timeout(SOON.unwrap()).unwrap(), "stop");
}

#[test]
fn two_clients_do_not_wait_for_each_other() {
    let (_dir, path, _server, _asked) = served();
    let (mut a, mut b) = (Raw::connect(&path), Raw::connect(&path));
    a.say("{\"id\":1,\"verb\":\"wait\"}\n{\"id\":2,");
    b.say("{\"id\":1,\"verb\":\"echo\",\"who\":\"b\"}\n");
    assert_eq!(b.line(), json!({"id": 1, "ok": true, "who": "b"}));
    a.say("\"verb\":\"echo\",\"who\":\"a\"}\n");
    assert_eq!(a.line(), json!({"id": 2, "ok": true, "who": "a"}));
}

#[test]
fn a_client_that_does_not_read_is_not_answered_without_end() {
    let (_dir, path, _server, asked) = served();
    let mut raw = Raw::connect(&path);
    for id in 0..100 {
        raw.say(format!("{{\"id\":{id},\"verb\":\"large\"}}\n"));
    }
    // Others are served meanwhile.
    call(&path, "echo", &Members::new(), SOON).unwrap();
    assert!(asked.try_iter().count() < 50, "10 MB of replies would wait");
    for id in 0..100 {
        assert_eq!(raw.line()["id"], id);
    }
}

#[test]
fn there_is_an_end_to_clients_and_to_waits() {
    let (_dir, path, _server, _asked) = served();
    let mut clients: Vec<Raw> = (0..16).map(|_| Raw::connect(&path)).collect();
    match call(&path, "echo", &Members::new(), SOON) {
        Err(CallError::Refused(why)) => assert_eq!(why, "too many clients"),
        other => panic!("{other:?}"),
    }
    clients[0].say("{\"id\":1,\"verb\":\"wait\"}\n".repeat(17));
    clients[0].refused(json!(1), "too many requests");
    // A client that waits and goes leaves its place.
    drop(clients);
    until("there is room", || call(&path, "echo", &Members::new(), SOON).is_ok());
}

#[test]
fn wait_is_answered_at_the_end_for_those_before_and_after() {
    let (_dir, path, server, asked) = served();
    let wait = {
        let path = path.clone();
        std::thread::spawn(move || call(&path, "wait", &Members::new(), None))
    };
    let mut half = Raw::connect(&path);
    half.say("{\"id\":4,\"verb\":\"wait\"}\n");
    half.0.get_ref().shutdown(Shutdown::Write).unwrap();
    asked.recv().unwrap();
    asked.recv().unwrap();
    assert!(!wait.is_finished());
    let end = members(json!({"ended": "power-off", "status": 1}));
    server.end(end.clone());
    assert_eq!(wait.join().unwrap().unwrap(), end);
    assert_eq!(half.line(), json!({"id": 4, "ok": true, "ended": "power-off", "status": 1}));
    assert_eq!(call(&path, "wait", &Members::new(), SOON).unwrap(), end);
}

#[test]
fn a_server_that_goes_tells_who_waits_and_removes_its_socket() {
    let (_dir, path, server, asked) = served();
    let mut raw = Raw::connect(&path);
    raw.say("{\"id\":1,\"verb\":\"wait\"}\n");
    asked.recv().unwrap();
    drop(server);
    raw.refused(json!(1), "gone");
    assert!(raw.is_over());
    assert!(!path.exists());
}

#[test]
fn the_end_and_the_going_of_the_server_lose_no_reply() {
    let (_dir, path, server, asked) = served();
    let mut raw = Raw::connect(&path);
    raw.say("{\"id\":1,\"verb\":\"wait\"}\n");
    asked.recv().unwrap();
    server.end(members(json!({"status": 0})));
    drop(server);
    assert_eq!(raw.line(), json!({"id": 1, "ok": true, "status": 0}));
    assert!(raw.is_over());
}

#[test]
fn a_live_socket_is_refused_and_a_stale_one_replaced() {
    let dir = Dir::new();
    let path = dir.0.join("fw1.sock");
    let (first, _asked) = server(&path);
    let why = match Server::start(&path, &Events::default(), |_| Reply::AtEnd) {
        Ok(_) => panic!("two servers at one path"),
        Err(e) => format!("{e:#}"),
    };
    assert!(why.contains("fw1.sock") && why.contains("another process listens"), "{why}");
    assert!(call(&path, "echo", &Members::new(), SOON).is_ok(), "the first goes on");
    drop(first);
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let (_second, _asked) = server(&path);
    assert!(call(&path, "echo", &Members::new(), SOON).is_ok());
}

#[test]
fn nobody_replaces_a_stale_socket_while_another_may_be_at_it() {
    let dir = Dir::new();
    let path = dir.0.join("s");
    drop(UnixListener::bind(&path).unwrap());
    let stale = path.metadata().unwrap().ino();
    let other = std::fs::File::open(&dir.0).unwrap();
    other.lock().unwrap();
    let p = path.clone();
    let starting =
        std::thread::spawn(move || Server::start(&p, &Events::default(), |_| Reply::Done(Members::new())).unwrap());
    std::thread::park_timeout(Duration::from_millis(50));
    assert!(!starting.is_finished());
    assert_eq!(path.metadata().unwrap().ino(), stale);
    other.unlock().unwrap();
    let _server = starting.join().unwrap();
    assert!(call(&path, "x", &Members::new(), SOON).is_ok());
}

#[test]
fn the_run_directory_is_the_users_own() {
    let of = |uid, xdg: Option<&str>| run_dir_of(uid, xdg.map(OsStr::new));
    assert_eq!(of(0, Some("/run/user/0")), Path::new("/var/run/bhyve-rs"));
    assert_eq!(of(7, Some("/run/user/7")), Path::new("/run/user/7/bhyve-rs"));
    assert_eq!(of(7, None), Path::new("/tmp/bhyve-rs-7"));
    assert_eq!(of(7, Some("relative")), Path::new("/tmp/bhyve-rs-7"));

    let dir = Dir::new();
    let run = dir.0.join("run");
    for _ in 0..2 {
        make_run_dir(&run).unwrap();
        assert_eq!(run.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    }
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o750)).unwrap();
    let why = format!("{:#}", make_run_dir(&run).unwrap_err());
    assert!(why.contains("run") && why.contains("750"), "{why}");
    let link = dir.0.join("link");
    std::os::unix::fs::symlink(&dir.0, &link).unwrap();
    assert!(make_run_dir(&link).is_err());
    assert_eq!(socket_path(&run, "fw1"), run.join("fw1.sock"));
}

#[test]
fn who_asks_for_events_gets_those_to_come_and_the_last_before_the_end() {
    let dir = Dir::new();
    let (path, events) = (dir.0.join("fw1.sock"), Events::default());
    events.tell("before", json!({}));
    let server = Server::start(&path, &events, |request| match request.verb.as_str() {
        "events" => Reply::Events(request.args.get("since").and_then(Value::as_u64)),
        _ => Reply::Done(Members::new()),
    });
    let server = server.unwrap();
    let mut calls = Calls::open(&path, SOON).unwrap();
    assert_eq!(calls.ask("events", &Members::new(), None).unwrap()["seq"], 1);
    let mut late = Calls::open(&path, SOON).unwrap();
    late.ask("events", &members(json!({"since": 0})), None).unwrap();
    events.tell("reset", json!({"by": "guest"}));
    let event = calls.event().unwrap();
    assert_eq!((&event["event"], &event["seq"], &event["by"]), (&json!("reset"), &json!(1), &json!("guest")));
    assert_eq!([late.event().unwrap()["event"].clone(), late.event().unwrap()["event"].clone()], ["before", "reset"]);
    // Requests go on beside them.
    assert!(calls.ask("x", &Members::new(), None).unwrap().is_empty());
    events.tell("ended", json!({"status": 1}));
    drop(server);
    assert_eq!(calls.event().unwrap()["status"], 1);
    assert!(matches!(calls.event(), Err(CallError::Broken(_))));
}

/// Whatever is said, each line that is no request is answered by one that says why, and the server goes on.
#[test]
fn nothing_that_is_said_ends_the_server_or_leaves_a_line_without_answer() {
    let (_dir, path, _server, _asked) = served();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % n as u64) as usize
    };
    let words: [&[u8]; 16] = [
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"id\"",
        b"\"verb\"",
        b":",
        b",",
        b"1",
        b"\"echo\"",
        b"\"wait\"",
        b"null",
        b"\xff",
        b"\\u0000",
        b"1e999",
        b" ",
    ];
    for _ in 0..300 {
        let mut raw = Raw::connect(&path);
        let mut lines = 0;
        for _ in 0..random(20) {
            let text: Vec<u8> = match random(3) {
                0 => (0..random(200)).map(|_| random(256) as u8).filter(|b| *b != b'\n').collect(),
                1 => (0..random(30)).flat_map(|_| words[random(words.len())].to_vec()).collect(),
                _ => {
                    let mut text = br#"{"id":3,"verb":"echo","a":[1,{"b":null}],"c":"\u00e4"}"#.to_vec();
                    let at = random(text.len());
                    text[at] = random(256) as u8;
                    text.retain(|b| *b != b'\n');
                    text
                }
            };
            lines += usize::from(!text.trim_ascii().is_empty());
            raw.say(text);
            raw.say("\n");
        }
        raw.say("{\"id\":77777,\"verb\":\"echo\"}\n");
        // Requests to wait are answered later.
        let answers = (0..=lines).map(|_| raw.line()).take_while(|line| line["id"] != 77777).count();
        assert!(answers <= lines);
    }
    assert!(call(&path, "echo", &Members::new(), SOON).is_ok());
}

#[test]
fn a_socket_of_another_user_is_refused_by_name() {
    if nix::unistd::geteuid().is_root() {
        // Root may ask everybody's machines.
        return;
    }
    match call(Path::new("/proc/1/stat"), "status", &Members::new(), SOON) {
        Err(CallError::Refused(why)) => assert!(why.contains("/proc/1/stat belongs to another user (uid 0)"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sweeping_removes_dead_sockets_and_nothing_else() {
    let dir = Dir::new();
    let (_server, _asked) = server(&dir.0.join("live.sock"));
    drop(UnixListener::bind(dir.0.join("dead.sock")).unwrap());
    drop(UnixListener::bind(dir.0.join("dead.com1")).unwrap());
    std::fs::write(dir.0.join("file.sock"), "").unwrap();
    sweep(&dir.0).unwrap();
    let mut left: Vec<_> = std::fs::read_dir(&dir.0).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["file.sock", "live.sock"]);
    sweep(&dir.0.join("none")).unwrap();
}
