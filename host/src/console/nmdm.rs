//! A null modem cable, nmdm(4): two terminal devices, `/dev/nmdm0A` and `/dev/nmdm0B`, what is written to one is read from
//! the other. FreeBSD makes the pair when one of them is opened. Elsewhere a pty stands for it: the machine has the
//! master, and the name of the other end is a link to the slave, so that `cu -l` works as there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::line::Line;
use super::{Description, pty, tty};
use crate::io::Io;

/// The name of the other end.
fn other_end(path: &Path) -> io::Result<PathBuf> {
    let name = path.to_str().unwrap_or_default();
    let wrong = || io::Error::other("the name of an end ends in A or B, as in /dev/nmdm0A");
    let (pair, other) = match name.char_indices().next_back().ok_or_else(wrong)? {
        (at, 'A') => (&name[..at], 'B'),
        (at, 'B') => (&name[..at], 'A'),
        _ => return Err(wrong()),
    };
    Ok(PathBuf::from(format!("{pair}{other}")))
}

/// Opens one end.
pub(super) fn open(io: &Arc<Io>, path: &Path, block: bool) -> io::Result<(Arc<Line>, Description)> {
    let other = other_end(path)?;
    if cfg!(target_os = "freebsd") {
        return tty::open(io, path, block);
    }
    let (line, description) = pty::open(io, Some(&other), block)?;
    let text = format!("nmdm {}, the other end is {}", path.display(), other.display());
    Ok((line, Description { text, place: Some(other.display().to_string()), ..description }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_has_the_other_letter() {
        let other = |name| other_end(Path::new(name)).ok();
        assert_eq!(other("/dev/nmdm0A"), Some("/dev/nmdm0B".into()));
        assert_eq!(other("/dev/nmdm-fw1.1B"), Some("/dev/nmdm-fw1.1A".into()));
        for wrong in ["/dev/nmdm0", "/dev/nmdm0a", "", "/dev/nmdmA/\u{e4}"] {
            assert_eq!(other(wrong), None, "{wrong}");
        }
    }
}
