//! Comparison with the processor the tests run on, for x86-64 hosts.
//!
//! Operands are random, but drawn from the neighbourhood of what goes wrong: special values, exponents close to each
//! other or to the ends of the range, significands of few bits or just beside a rounding boundary. Seeds are fixed.
//! `SOFTFLOAT_CASES` sets the number of cases for each operation.

mod sse;
mod x87;

/// Cases for each operation.
fn cases() -> u64 {
    std::env::var("SOFTFLOAT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(50_000)
}

/// The xorshift64* generator.
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        ((self.next() >> 32) * n) >> 32
    }

    fn signed(&mut self, magnitude: i32) -> i32 {
        self.below(2 * magnitude as u64 + 1) as i32 - magnitude
    }

    /// A significand of `bits` bits, the integer bit on top.
    fn significand(&mut self, bits: u32) -> u64 {
        let top = 1 << (bits - 1);
        let mask = top | (top - 1);
        let random = self.next();
        let bit = 1_u64 << self.below(bits.into());
        (match self.below(8) {
            0 => 0,
            1 => random & random >> 7 & random << 13,
            2 => bit,
            3 => mask ^ bit,
            // Beside a rounding boundary.
            4 => random & bit.wrapping_neg() | bit >> 1,
            5 => (random & bit.wrapping_neg() | bit >> 1).wrapping_add(self.next() % 3).wrapping_sub(1),
            6 => (random & bit.wrapping_neg()).wrapping_sub(self.next() % 2),
            _ => random,
        } & mask
            | top)
    }
}

/// Collects mismatches, to show some of them and the number of all.
struct Report {
    name: &'static str,
    cases: u64,
    shown: Vec<String>,
    failed: u64,
}

impl Report {
    fn new(name: &'static str) -> Self {
        Self { name, cases: 0, shown: Vec::new(), failed: 0 }
    }

    fn check(&mut self, same: bool, describe: impl FnOnce() -> String) {
        self.cases += 1;
        if !same {
            self.failed += 1;
            if self.shown.len() < 12 {
                self.shown.push(describe());
            }
        }
    }

    fn finish(self) {
        let Self { name, cases, shown, failed } = self;
        assert!(failed == 0, "{name}: {failed} of {cases} differ\n{}", shown.join("\n"));
    }
}
