//! Output into a file; there is no input.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use super::Description;
use super::line::Line;
use super::stdio::spawn_writer;
use crate::io::Io;

/// Opens the file, with what it holds kept or not.
pub(super) fn open(io: &Arc<Io>, path: &Path, append: bool, block: bool) -> io::Result<(Arc<Line>, Description)> {
    // A FIFO would not open before somebody reads it.
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut options = OpenOptions::new();
    // What a guest prints is not for everybody.
    options.create(true).mode(0o600);
    let file = if append { options.append(true) } else { options.write(true).truncate(true) }.open(path)?;
    let place = path.display().to_string();
    let line = Line::patient(&place, block);
    line.relay(io);
    spawn_writer("console file", &line, file)?;
    Ok((line.clone(), Description::new(format!("file {place}"), Some(place), Some(line))))
}
