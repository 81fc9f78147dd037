//! Verdicts of checks and the lines that tests parse.

use core::fmt::{self, Write};

/// One line of text on the stack, cut when full.
pub struct Text {
    bytes: [u8; 640],
    len: usize,
}

impl Text {
    pub const fn new() -> Self {
        Text { bytes: [0; 640], len: 0 }
    }

    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
    }
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            let c = if c.is_ascii_graphic() || c == ' ' { c as u8 } else { b'?' };
            if self.len < self.bytes.len() {
                self.bytes[self.len] = c;
                self.len += 1;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a check is not ok.
pub enum Bad {
    /// The machine does the wrong thing.
    Fail(Text),
    /// The machine does not have the thing; `need=NAME` makes it a failure.
    Skip(Text),
}

pub type Verdict = Result<Text, Bad>;

#[macro_export]
macro_rules! text {
    ($($arg:tt)*) => {{
        let mut text = $crate::report::Text::new();
        let _ = ::core::fmt::Write::write_fmt(&mut text, format_args!($($arg)*));
        text
    }};
}

/// Ends a check as failed.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => { return Err($crate::report::Bad::Fail($crate::text!($($arg)*))) };
}

/// Ends a check as not applicable.
#[macro_export]
macro_rules! skip {
    ($($arg:tt)*) => { return Err($crate::report::Bad::Skip($crate::text!($($arg)*))) };
}

/// Goes on only if the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($arg:tt)*) => { if !$condition { $crate::fail!($($arg)*) } };
}

/// Ends a check as good, with details.
#[macro_export]
macro_rules! good {
    ($($arg:tt)*) => { Ok($crate::text!($($arg)*)) };
}

/// Parts per million by which `a / b` misses 1.
pub fn ppm(a: u64, b: u64) -> u64 {
    if b == 0 {
        return u64::MAX;
    }
    (u128::from(a.abs_diff(b)) * 1_000_000 / u128::from(b)).min(u128::from(u64::MAX)) as u64
}
