//! The processor compared with the host's own, one instruction at a time.
//!
//! A [`Generate`] makes instructions with registers, flags and memory to run them on. Each is run twice, on the host in
//! user mode and by its handler, and the two outcomes must agree: exception or none, RIP, registers, flags that the
//! architecture defines, memory.
//!
//! The host side needs no machine code of ours. An INT3 in the test raises SIGTRAP; its handler puts the state of the
//! case in the place of the interrupted one and returns into the instruction. What follows the instruction, and fills
//! the rest of the code page, is INT3 again; its handler, or that of the exception that the instruction raised, takes
//! the state away and puts the test's back. A case costs two signals, some microseconds. 32-bit code runs in Linux's
//! compatibility segments, 16-bit code in segments of a local descriptor table, with bases and limits.
//!
//! `BHYVE_RS_DIFF_CASES` sets the number of cases of each test, `BHYVE_RS_DIFF_SEED` the seed. With `BHYVE_RS_DIFF_ALL`
//! set, undefined flags are compared too, and disagreements only counted by opcode: what is undefined differs by maker.

mod build;
mod guest;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod host;
mod int;

/// Another host.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod host {
    use super::{Bits, Case, Outcome};

    pub(super) enum Host {}

    impl Host {
        pub(super) fn new(_: Bits) -> Option<Host> {
            None
        }

        pub(super) fn run(&mut self, _: &Case, _: &[u8]) -> Outcome {
            match *self {}
        }
    }
}

pub(crate) use build::Builder;
use guest::Guest;
use host::Host;

use crate::flags::{ARITH, DF};

/// Where the data window is, in both machines.
pub(crate) const DATA: u64 = 0x1000_0000;
/// Its size: two pages; what surrounds it is not mapped.
pub(crate) const DATA_LEN: usize = 0x2000;
/// The page that holds the instruction.
pub(crate) const CODE: u64 = 0x1001_0000;
/// Where in its page the instruction is.
pub(crate) const ENTRY: u64 = 0x400;

/// The size of the code that a case runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    /// 16-bit segments: CS at [`CODE`] with a limit of a page; SS and DS at [`DATA`], limit two pages; ES half a page
    /// on.
    B16,
    /// Flat 32-bit segments.
    B32,
    /// 64-bit code.
    B64,
}

/// How far into the data window the base of ES is in 16-bit code.
pub(crate) const ES_SKEW: u64 = 0x800;

impl Bits {
    /// RIP of the instruction.
    pub(crate) fn entry(self) -> u64 {
        if self == Bits::B16 { ENTRY } else { CODE + ENTRY }
    }

    /// The offset in DS or SS of the data window.
    pub(crate) fn data(self) -> u64 {
        if self == Bits::B16 { 0 } else { DATA }
    }
}

/// An image as FXSAVE stores it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub(crate) struct Fx(pub(crate) [u8; 512]);

/// Registers before or after a case.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) gpr: [u64; 16],
    pub(crate) rip: u64,
    pub(crate) flags: u64,
    pub(crate) fx: Fx,
}

/// One instruction to try.
pub(crate) struct Case {
    pub(crate) bits: Bits,
    pub(crate) code: Vec<u8>,
    pub(crate) state: State,
    /// Contents of the data window that matter: place and bytes.
    pub(crate) patches: Vec<(usize, Vec<u8>)>,
    /// Flags that the architecture leaves undefined here.
    pub(crate) undefined: u64,
    /// The x87 and SSE state is loaded and compared.
    pub(crate) fp: bool,
}

/// What became of a case.
pub(crate) struct Outcome {
    /// The exception; 3 if the instruction completed.
    pub(crate) vector: u8,
    pub(crate) state: State,
    pub(crate) data: Vec<u8>,
}

/// A family of instructions.
pub(crate) trait Generate {
    /// A case; `None` if the random choices made none.
    fn case(&mut self, rng: &mut Rng, bits: Bits) -> Option<Case>;

    /// Makes equal in both states what may differ beside undefined flags.
    fn forgive(&self, _case: &Case, _host: &mut Outcome, _guest: &mut Outcome) {}
}

/// A xorshift generator: quick, and the same everywhere.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An operand: anything, or one of the values around which things change.
    pub(crate) fn value(&mut self) -> u64 {
        const EDGES: [u64; 16] = [
            0,
            1,
            2,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
            u64::MAX,
            u64::MAX - 1,
        ];
        match self.below(8) {
            0..=3 => self.next(),
            4 => self.pick(&EDGES),
            5 => self.pick(&EDGES).wrapping_add(self.below(5)).wrapping_sub(2),
            6 => 1 << self.below(64),
            _ => (self.next() as i64 >> self.below(64)) as u64,
        }
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Runs a family against the host in code of the sizes given.
pub(crate) fn compare(family: &mut dyn Generate, sizes: &[Bits], default_cases: u64) {
    let cases = setting("BHYVE_RS_DIFF_CASES", default_cases);
    let mut rng = Rng::new(setting("BHYVE_RS_DIFF_SEED", 1));
    let all = std::env::var_os("BHYVE_RS_DIFF_ALL").is_some();
    let mut undefined = std::collections::BTreeMap::<String, [u64; 12]>::new();
    for bits in sizes {
        let Some(mut host) = Host::new(*bits) else {
            eprintln!("the host cannot run {bits:?} code: skipped");
            continue;
        };
        let mut guest = Guest::new(*bits);
        let mut background = vec![0; DATA_LEN];
        let (mut ran, mut completed, mut bad) = (0u64, 0u64, 0);
        while ran < cases / sizes.len() as u64 {
            if ran.is_multiple_of(64) {
                background.chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&rng.value().to_le_bytes()));
            }
            let Some(case) = family.case(&mut rng, *bits) else { continue };
            ran += 1;
            let mut data = background.clone();
            for (at, bytes) in &case.patches {
                data[*at..*at + bytes.len()].copy_from_slice(bytes);
            }
            let mut real = host.run(&case, &data);
            let mut ours = guest.run(&case, &data);
            completed += u64::from(real.vector == 3);
            family.forgive(&case, &mut real, &mut ours);
            if all && case.undefined != 0 && real.vector == 3 {
                let differs = (real.state.flags ^ ours.state.flags) & case.undefined;
                let counts = undefined.entry(case.name()).or_default();
                counts.iter_mut().enumerate().for_each(|(bit, n)| *n += differs >> bit & 1);
                // Bit 1 is no flag: it counts the cases.
                counts[1] += 1;
            }
            if let Some(what) = difference(&case, &real, &ours) {
                bad += 1;
                eprintln!("{}", report(&case, &data, &real, &ours, &what));
                assert!(bad < 8, "too many disagreements with the host");
            }
        }
        eprintln!("{bits:?}: {ran} cases, {completed} of them without an exception, {bad} disagreements");
        assert_eq!(bad, 0, "disagreements with the host");
    }
    for (name, n) in &undefined {
        const FLAGS: [(usize, &str); 6] = [(0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (11, "OF")];
        let differ: Vec<_> = FLAGS.iter().filter(|f| n[f.0] != 0).map(|f| format!("{} {}", f.1, n[f.0])).collect();
        eprintln!("undefined flags of {name}: {} cases, differ: {}", n[1], differ.join(", "));
    }
}

/// What the two disagree on.
fn difference(case: &Case, real: &Outcome, ours: &Outcome) -> Option<String> {
    if real.vector != ours.vector {
        return Some(format!("exception {} here, {} there (3: none)", real.vector, ours.vector));
    }
    if real.state.rip != ours.state.rip {
        return Some("RIP".into());
    }
    if real.state.gpr != ours.state.gpr {
        return Some("registers".into());
    }
    // After an exception the flags are as they were, but for instructions whose flags are undefined.
    if (real.state.flags ^ ours.state.flags) & (ARITH | DF) & !case.undefined != 0 {
        return Some("flags".into());
    }
    if case.fp && real.state.fx != ours.state.fx {
        let at = real.state.fx.0.iter().zip(&ours.state.fx.0).position(|(a, b)| a != b);
        return Some(format!("byte {at:?} of the FXSAVE image"));
    }
    if real.data != ours.data {
        let at = real.data.iter().zip(&ours.data).position(|(a, b)| a != b);
        return Some(format!("byte {at:x?} of the data window"));
    }
    None
}

impl Case {
    fn text(&self) -> String {
        use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
        let bits = match self.bits {
            Bits::B16 => 16,
            Bits::B32 => 32,
            Bits::B64 => 64,
        };
        let mut text = String::new();
        let insn = Decoder::with_ip(bits, &self.code, self.state.rip, DecoderOptions::NONE).decode();
        IntelFormatter::new().format(&insn, &mut text);
        text
    }

    /// The mnemonic.
    fn name(&self) -> String {
        self.text().split(' ').next().unwrap_or_default().to_owned()
    }
}

fn report(case: &Case, data: &[u8], real: &Outcome, ours: &Outcome, what: &str) -> String {
    use std::fmt::Write;
    let mut out = format!("{:?} {:02x?} {}: {what} differ", case.bits, case.code, case.text());
    const NAMES: [&str; 8] = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"];
    for r in 0..16 {
        let (before, host, soft) = (case.state.gpr[r], real.state.gpr[r], ours.state.gpr[r]);
        let name = NAMES.get(r).map_or(format!("r{r}"), |n| n.to_string());
        let mark = if host == soft { ' ' } else { '*' };
        let _ = write!(out, "\n {mark}{name:>6}: {before:16x} host {host:16x} soft {soft:16x}");
    }
    let _ = write!(
        out,
        "\n    rip: {:16x} host {:16x} soft {:16x}\n  flags: {:16x} host {:16x} soft {:16x} undefined {:x}",
        case.state.rip,
        real.state.rip,
        ours.state.rip,
        case.state.flags,
        real.state.flags & (ARITH | DF),
        ours.state.flags & (ARITH | DF),
        case.undefined
    );
    if case.fp {
        for at in (0..512).step_by(16) {
            let (b, h, s) =
                (&case.state.fx.0[at..at + 16], &real.state.fx.0[at..at + 16], &ours.state.fx.0[at..at + 16]);
            if h != s {
                let _ = write!(out, "\n  fx {at:3}: {b:02x?}\n    host: {h:02x?}\n    soft: {s:02x?}");
            }
        }
    }
    if let Some(at) = real.data.iter().zip(&ours.data).position(|(a, b)| a != b) {
        let to = (at + 16).min(DATA_LEN);
        let (b, h, s) = (&data[at..to], &real.data[at..to], &ours.data[at..to]);
        let _ = write!(out, "\n  data {at:x}: {b:02x?}\n    host: {h:02x?}\n    soft: {s:02x?}");
    }
    out
}
