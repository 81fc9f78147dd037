//! Where the log goes: standard error, one line an event, in the form of all that the program says.

use std::fmt;
use std::io::Write;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::watch::{BIOS, FIRMWARE};

/// Shows warnings and errors, and what `traced` asks for.
pub fn start(traced: &[String]) {
    let asked = |target: &str| traced.iter().any(|t| t == target || t == "all");
    let filter = Targets::new()
        .with_default(Level::WARN)
        .with_target("trace", Level::INFO)
        .with_target(BIOS, if asked(BIOS) { Level::TRACE } else { Level::WARN })
        .with_target(FIRMWARE, if asked(FIRMWARE) { Level::DEBUG } else { Level::WARN });
    let lines = tracing_subscriber::fmt::layer().event_format(Line).with_writer(Terminal);
    tracing_subscriber::registry().with(lines).with(filter).init();
}

/// `bhyve-rs: warning: text` for the program's own, `target: text` for what was asked for.
struct Line;

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N> for Line {
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        match (*event.metadata().level(), event.metadata().target()) {
            (_, FIRMWARE) => write!(to, "{FIRMWARE}: ")?,
            (_, "trace" | BIOS) => {}
            (Level::ERROR, _) => write!(to, "bhyve-rs: ")?,
            (Level::WARN, _) => write!(to, "bhyve-rs: warning: ")?,
            _ => write!(to, "bhyve-rs: note: ")?,
        }
        context.field_format().format_fields(to.by_ref(), event)?;
        // A raw terminal moves down only.
        to.write_str(if host::terminal_is_raw() { "\r\n" } else { "\n" })
    }
}

struct Terminal;

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = Stderr;

    fn make_writer(&'a self) -> Stderr {
        Stderr
    }
}

/// Standard error; a reader that went away is no reason to fail.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let _ = std::io::stderr().write_all(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
