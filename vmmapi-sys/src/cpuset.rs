//! Sets of processors: bitmaps of little-endian words, of a size that differs by kernel.

use crate::common::MAX_CPUS;

/// A set of vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuSet([u64; MAX_CPUS / 64]);

impl CpuSet {
    /// The set of which `bytes` is the bitmap; what is beyond the largest set is left out.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> CpuSet {
        let mut set = CpuSet::default();
        for (index, byte) in bytes.iter().enumerate().take(MAX_CPUS / 8) {
            set.0[index / 8] |= u64::from(*byte) << (index % 8 * 8);
        }
        set
    }

    /// Whether `cpu` is in it.
    #[must_use]
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.get(cpu as usize / 64).is_some_and(|word| word >> (cpu % 64) & 1 != 0)
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Those that are, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..MAX_CPUS as u32).filter(|cpu| self.contains(*cpu))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_n_of_the_bytes_is_vcpu_n() {
        let set = CpuSet::from_bytes(&[0x05, 0, 0, 0, 0, 0, 0, 0, 0x80]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 2, 71]);
        assert!(set.contains(71) && !set.contains(7) && !set.contains(u32::MAX) && !set.is_empty());
    }

    #[test]
    fn what_lies_past_the_largest_set_is_left_out() {
        let mut bytes = [0; 200];
        bytes[127] = 0x80;
        bytes[128] = 0xff;
        assert_eq!(CpuSet::from_bytes(&bytes).iter().collect::<Vec<_>>(), [1023]);
        assert!(CpuSet::from_bytes(&[]).is_empty());
    }
}
