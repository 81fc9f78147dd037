//! Kernels that are gzip files, as OpenBSD's of install media are.
//!
//! Source: RFC 1952.

use crate::bytes::{u16_at, u32_at};
use anyhow::{Context, Result, bail, ensure};
use miniz_oxide::inflate::{TINFLStatus, decompress_to_vec_with_limit};

const MAGIC: &[u8] = b"\x1F\x8B\x08";
/// Flags: a checksum of the header, an extra field, a name, a comment.
const HCRC: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;

/// What is in a gzip file, up to `limit` bytes; `None` if it is none.
///
/// # Errors
/// Damaged, truncated, or larger than that.
pub(crate) fn unpack(file: &[u8], limit: u64) -> Result<Option<Vec<u8>>> {
    if !file.starts_with(MAGIC) {
        return Ok(None);
    }
    let truncated = "truncated gzip file";
    let flags = *file.get(3).context(truncated)?;
    let mut at = 10;
    if flags & EXTRA != 0 {
        at += 2 + usize::from(u16_at(file, at).context(truncated)?);
    }
    for flag in [NAME, COMMENT] {
        if flags & flag != 0 {
            let rest = file.get(at..).context(truncated)?;
            at += 1 + rest.iter().position(|byte| *byte == 0).context(truncated)?;
        }
    }
    if flags & HCRC != 0 {
        at += 2;
    }
    let packed = file.get(at..).context(truncated)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let bytes = match decompress_to_vec_with_limit(packed, limit) {
        Ok(bytes) => bytes,
        Err(e) if e.status == TINFLStatus::HasMoreOutput => bail!("gzip file of more than {limit} bytes"),
        Err(_) => bail!("damaged gzip file"),
    };
    let len = file.len().checked_sub(4).and_then(|at| u32_at(file, at));
    ensure!(len == Some(bytes.len() as u32), "damaged gzip file: {} bytes are not what it says", bytes.len());
    Ok(Some(bytes))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::linux::tests::{MIB, bzimage, layout};
    use crate::memory::MemoryMap;

    /// A gzip file with a name.
    pub(crate) fn pack(bytes: &[u8]) -> Vec<u8> {
        let mut file = b"\x1F\x8B\x08\x08\0\0\0\0\0\x03bsd\0".to_vec();
        file.extend(miniz_oxide::deflate::compress_to_vec(bytes, 6));
        file.extend([0; 4]);
        file.extend((bytes.len() as u32).to_le_bytes());
        file
    }

    #[test]
    fn a_packed_kernel_is_the_kernel() {
        let map = MemoryMap::new(256 * MIB, 0xC000_0000).unwrap();
        let kernel = bzimage(64);
        let plain = crate::load(&kernel, None, "x", &layout(&map)).unwrap();
        let packed = crate::load(&pack(&kernel), None, "x", &layout(&map)).unwrap();
        assert!(plain.what == packed.what && plain.pieces == packed.pieces);
    }

    #[test]
    fn bombs_and_damage_are_refused() {
        let file = pack(&vec![0; 1 << 20]);
        assert_eq!(unpack(&file, 1 << 20).unwrap().unwrap().len(), 1 << 20);
        let error = unpack(&file, 1 << 19).unwrap_err().to_string();
        assert_eq!(error, "gzip file of more than 524288 bytes");
        for len in 3..file.len() {
            assert!(unpack(&file[..len], 1 << 21).is_err(), "{len}");
        }
        assert!(unpack(b"\x7fELF", 1).unwrap().is_none());
    }
}
