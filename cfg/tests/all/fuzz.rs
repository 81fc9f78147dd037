//! Bytes that nobody meant to write: bounded, and the same on every run.

use std::fs;

use cfg::Draft;

use crate::common::{SCHEMA, directory};

/// Pieces that a mutation puts in; most of them mean something to one of the layers.
const PIECES: &[&str] = &[
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ".",
    ",",
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "\n",
    "\r\n",
    "#",
    "\\",
    "\\u0000",
    "%(",
    ")",
    "%(name)",
    "%(vars.a)",
    "%%",
    "*",
    "0",
    "-1",
    "99999999999999999999",
    "0x",
    "1e9",
    "nan",
    "true",
    "1979-05-27",
    "é",
    "日本語",
    "\u{feff}",
    "\u{1f600}",
    "\u{0}",
    "\u{7f}",
    "disk",
    "nic",
    "boot",
    "vars",
    "name",
    "include",
    "order",
    "a.b.c",
    "[[disk]]\n",
    "[vars]\n",
    "[boot]\n",
    "slot = 3\n",
    "model = 'nvme'\n",
    "= {",
    "= [",
    "\"0.3.0\"",
    "=[[[[[[[[[[[[",
];

const SEED: &str = r#"
name = "fw1"
cpus = 2
memory = "256M"
seed = 0x10
boot = { order = ["cd", "disk"] }
[[nic]]
model = "virtio-net"
mac = "00:a0:98:00:00:01"
slot = "0:3:0"
[[nic]]
forward = ["tcp:8022:22"]
[[serial]]
backend = "tcp"
address = "[::1]:23"
[screen]
vnc = "5900"
[autostart]
delay = "5s"
[vars]
a = "%(name)"
c = "é %(vars.a) 100%"
b = '''
text'''
"#;

/// xorshift64*: the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit.max(1)
    }
}

/// Reads, checks, dumps and writes; a place that is reported has to exist.
fn exercise(text: &str) -> bool {
    let draft = Draft::parse("fuzz", text);
    let result = draft.check(SCHEMA);
    let toml = draft.tree().to_toml(SCHEMA);
    let dump = draft.tree().to_string();
    match result {
        Ok(_) => {
            let again = Draft::parse("again", &toml);
            let same = again.check(SCHEMA);
            assert!(same.is_ok(), "{text:?}\nbecame\n{toml}\n{}", same.unwrap_err());
            assert_eq!(again.tree().to_string(), dump, "{text:?}\nbecame\n{toml}");
            true
        }
        Err(errors) => {
            assert!(!errors.0.is_empty());
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            for error in &errors.0 {
                let line = text.split('\n').nth(error.line as usize - 1).expect("a line that exists");
                let columns = line.chars().count() as u32;
                assert!((1..=columns + 1).contains(&error.column), "{error}\n{text:?}");
                assert_eq!(error.to_string().lines().count(), 1, "{error}");
            }
            false
        }
    }
}

#[test]
fn mutated_configurations_never_panic_and_good_ones_survive_being_written() {
    let mut random = Random(0x0BAD_5EED);
    let mut good = 0;
    for _ in 0..20_000 {
        let mut text: Vec<char> = SEED.chars().collect();
        for _ in 0..=random.below(4) {
            let at = random.below(text.len());
            match random.below(4) {
                0 => drop(text.drain(at..(at + random.below(12)).min(text.len()))),
                1 => drop(text.splice(at..at, PIECES[random.below(PIECES.len())].chars())),
                2 => text[at] = char::from(random.below(128) as u8),
                _ => {
                    let from = random.below(text.len());
                    let copy: Vec<char> = text[from..(from + random.below(40)).min(text.len())].to_vec();
                    drop(text.splice(at..at, copy));
                }
            }
            if text.is_empty() {
                text.push('x');
            }
        }
        good += usize::from(exercise(&text.into_iter().collect::<String>()));
    }
    assert!(good > 500, "only {good} of the mutations were valid: the test has lost its bite");
}

#[test]
fn piles_of_pieces_never_panic() {
    let mut random = Random(0xFEED);
    for _ in 0..10_000 {
        let text: String = (0..random.below(40)).map(|_| PIECES[random.below(PIECES.len())]).collect();
        exercise(&text);
    }
}

#[test]
fn random_bytes_never_panic() {
    let path = directory("fuzz").join("guest.toml");
    let mut random = Random(0xB17E5);
    for _ in 0..2_000 {
        let bytes: Vec<u8> = (0..random.below(200)).map(|_| random.below(256) as u8).collect();
        fs::write(&path, bytes).unwrap();
        let _ = Draft::read(&path).check(SCHEMA);
    }
}

#[test]
fn nesting_ends_in_an_error_and_not_in_a_full_stack() {
    let key = vec!["a"; 79].join(".");
    let tables = format!("[{key}]\n{}", format!("{key} = {{").repeat(2000));
    for text in [tables, "a = ".to_owned() + &"[".repeat(100_000), "a.".repeat(100_000), "[[a]]\n".repeat(10_000)] {
        // A thread's stack is the smallest that the program has.
        let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(move || exercise(&text)).unwrap();
        assert!(!thread.join().expect("no panic"));
    }
}

#[test]
fn a_mebibyte_on_one_line_is_read_in_good_time() {
    let many: String = (0..60_000).map(|i| format!("k{i} = {i}, ")).collect();
    let started = std::time::Instant::now();
    exercise(&format!("name = 'fw1'\nvars = {{ {many} z = 1 }}\n"));
    // Half a second in practice; anything quadratic takes minutes.
    assert!(started.elapsed().as_secs() < 30);
}
