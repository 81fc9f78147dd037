//! What the commands show to people: progress on long work, colours, and nothing at all under `--quiet`.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Columns of a progress bar, and the time between two of its pictures.
const BAR: usize = 40;
const BETWEEN: Duration = Duration::from_millis(100);

static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on there are results and errors only.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether there are results and errors only.
pub fn quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Says what somebody at a terminal may want to know.
pub fn say(text: &str) {
    if !quiet() {
        println!("{text}");
    }
}

/// What a word is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// To be looked at.
    Warning,
    /// Wrong.
    Bad,
}

/// The word in its colour if standard output is a terminal that has some, and nobody said NO_COLOR.
pub fn paint(word: &str, tone: Tone) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
        || std::env::var_os("TERM").is_none_or(|term| term == "dumb")
        || !std::io::stdout().is_terminal();
    let number = match tone {
        Tone::Good => 32,
        Tone::Warning => 33,
        Tone::Bad => 31,
    };
    if plain { word.to_owned() } else { format!("\x1b[{number}m{word}\x1b[0m") }
}

/// Rows in columns, each as wide as its widest; `tones` colours the last one of a row.
pub fn table(head: &[&str], rows: &[(Vec<String>, Tone)]) -> String {
    let wide = |n: usize| rows.iter().map(|(row, _)| row[n].chars().count()).chain([head[n].len()]).max();
    let widths: Vec<usize> = (0..head.len()).map(|n| wide(n).unwrap_or(0)).collect();
    let last = head.len() - 1;
    let line = |cells: &mut dyn Iterator<Item = String>| {
        let padded = cells.enumerate().map(|(n, cell)| {
            let gap = if n == last { 0 } else { widths[n].saturating_sub(cell.chars().count()) };
            format!("{cell}{}", " ".repeat(gap))
        });
        let mut text = padded.collect::<Vec<_>>().join("  ");
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    };
    let mut out = line(&mut head.iter().map(|cell| (*cell).to_owned()));
    for (row, tone) in rows {
        let cell = |(n, cell): (usize, &String)| if n == last { paint(cell, *tone) } else { cell.clone() };
        out += &line(&mut row.iter().enumerate().map(cell));
    }
    out
}

/// Bytes for people.
pub fn short(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} bytes"),
    }
}

/// Shows how far something is, on a terminal only.
pub struct Bar {
    begun: Instant,
    shown: Option<Instant>,
    wanted: bool,
}

impl Bar {
    /// Shows nothing yet.
    pub fn new() -> Bar {
        Bar { begun: Instant::now(), shown: None, wanted: std::io::stderr().is_terminal() && !quiet() }
    }

    /// So many bytes of all are done.
    pub fn show(&mut self, done: u64, all: u64) {
        if !self.wanted || self.shown.is_some_and(|at| at.elapsed() < BETWEEN) {
            return;
        }
        self.shown = Some(Instant::now());
        let part = done as f64 / all.max(1) as f64;
        let filled = (part * BAR as f64) as usize;
        let seconds = self.begun.elapsed().as_secs_f64();
        let left = if part > 0.0 { (seconds / part - seconds) as u64 } else { 0 };
        let (full, empty) = ("#".repeat(filled), "-".repeat(BAR - filled.min(BAR)));
        eprint!("\r[{full}{empty}] {:3.0} %  {} of {}  {left} s left ", part * 100.0, short(done), short(all));
        let _ = std::io::stderr().flush();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            (vec!["a".to_owned(), "running".to_owned()], Tone::Good),
            (vec!["longer".to_owned(), "no".to_owned()], Tone::Bad),
        ];
        assert_eq!(table(&["NAME", "STATE"], &rows), "NAME    STATE\na       running\nlonger  no\n");
    }
}
