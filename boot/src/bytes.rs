//! Little-endian reads from files that may end anywhere, and writes into tables.

/// The two bytes at `at`, or `None` past the end.
pub(crate) fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(data.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// The four bytes at `at`, or `None` past the end.
pub(crate) fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The eight bytes at `at`, or `None` past the end.
pub(crate) fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(data.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Appends little-endian fields to a table under construction.
pub(crate) trait Put {
    fn put8(&mut self, value: u8);
    fn put16(&mut self, value: u16);
    fn put32(&mut self, value: u32);
    fn put64(&mut self, value: u64);
    /// `text` cut or filled with `fill` to exactly `len` bytes.
    fn put_padded(&mut self, text: &str, len: usize, fill: u8);
    /// Makes the byte at `at` such that all bytes from `start` to the end sum to zero.
    fn seal(&mut self, start: usize, at: usize);
}

impl Put for Vec<u8> {
    fn put8(&mut self, value: u8) {
        self.push(value);
    }

    fn put16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_padded(&mut self, text: &str, len: usize, fill: u8) {
        self.extend(text.bytes().chain(std::iter::repeat(fill)).take(len));
    }

    fn seal(&mut self, start: usize, at: usize) {
        self[at] = 0;
        self[at] = sum(&self[start..]).wrapping_neg();
    }
}

/// Overwrites the bytes at `at`, which must lie inside `table`.
pub(crate) fn set(table: &mut [u8], at: usize, value: &[u8]) {
    table[at..at + value.len()].copy_from_slice(value);
}

/// The byte sum that every firmware table's checksum brings to zero.
pub(crate) fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// `value` rounded up to a multiple of `align`, a power of two; saturates.
pub(crate) fn round_up(value: u64, align: u64) -> u64 {
    value.saturating_add(align - 1) & !(align - 1)
}
