//! Little-endian fields. What lies behind the end reads as zeros: each caller has read as much as it looks at.

fn field<const N: usize>(data: &[u8], at: usize) -> [u8; N] {
    let bytes = at.checked_add(N).and_then(|end| data.get(at..end));
    bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

pub(crate) fn u16_at(data: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(data, at))
}

pub(crate) fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(data, at))
}

pub(crate) fn u64_at(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(data, at))
}

/// A field of text that blanks or zeros fill up.
pub(crate) fn text(data: &[u8]) -> String {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    String::from_utf8_lossy(&data[..end]).trim_end().to_owned()
}
