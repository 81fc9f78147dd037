//! Which frames the chip takes in: what the last setup frame said.

use serde::{Deserialize, Serialize};

use super::rules::Rule;
use crate::net::{BROADCAST, Mac, crc32_le};

/// Bytes of a setup frame: 48 double words of which the low halves count.
pub(super) const SETUP: usize = 192;
const WORDS: usize = SETUP / 4;

/// Where the single address of a table of hashes lies, in words.
const ADDRESS: usize = 39;

/// How the table is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// Sixteen addresses.
    #[default]
    Perfect,
    /// 512 bits for groups, and one address.
    HashPerfect,
    /// All but sixteen addresses.
    Inverse,
    /// 512 bits for all.
    HashOnly,
}

impl Kind {
    /// By TDES1.FT1 and FT0.
    pub(super) fn of(ft1: bool, ft0: bool) -> Kind {
        match (ft1, ft0) {
            (false, false) => Kind::Perfect,
            (false, true) => Kind::HashPerfect,
            (true, false) => Kind::Inverse,
            (true, true) => Kind::HashOnly,
        }
    }
}

/// The table.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Filter {
    pub(super) kind: Kind,
    words: Vec<u16>,
}

impl Filter {
    /// Of a setup frame.
    pub(super) fn new(kind: Kind, setup: &[u8; SETUP]) -> Filter {
        Filter { kind, words: setup.chunks_exact(4).map(|dword| u16::from_le_bytes([dword[0], dword[1]])).collect() }
    }

    /// Whether a frame to this address is let in. Before the first setup frame none is.
    pub(super) fn takes(&self, to: Mac) -> bool {
        if self.words.len() != WORDS {
            return false;
        }
        let group = to[0] & 1 != 0;
        match self.kind {
            Kind::Perfect => self.lists(to) && (!group || to == BROADCAST || Rule::GroupsInTheList.holds()),
            Kind::Inverse => !self.lists(to),
            Kind::HashPerfect if !group => is(&self.words[ADDRESS..ADDRESS + 3], to),
            Kind::HashPerfect | Kind::HashOnly => self.hashes(to) && Rule::HashesCount.holds(),
        }
    }

    fn lists(&self, to: Mac) -> bool {
        self.words.chunks_exact(3).any(|address| is(address, to))
    }

    fn hashes(&self, to: Mac) -> bool {
        let hash = crc32_le(&to) & 0x1ff;
        self.words[(hash >> 4) as usize] >> (hash & 15) & 1 != 0
    }
}

fn is(words: &[u16], mac: Mac) -> bool {
    words.iter().zip(mac.as_chunks::<2>().0).all(|(word, bytes)| word.to_le_bytes() == *bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [0x00, 0x15, 0x5d, 1, 2, 3];

    fn setup(words: &[(usize, u16)]) -> [u8; SETUP] {
        let mut bytes = [0xa5; SETUP];
        bytes.chunks_exact_mut(4).for_each(|dword| dword[..2].fill(0));
        for (at, word) in words {
            bytes[4 * at..4 * at + 2].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn address(at: usize, mac: Mac) -> Vec<(usize, u16)> {
        (0..3).map(|n| (at + n, u16::from_le_bytes([mac[2 * n], mac[2 * n + 1]]))).collect()
    }

    /// Of all groups that IPv6 addresses join, and of other cards, those that pass.
    fn pass(filter: &Filter) -> usize {
        let group = |n: u32| [0x33, 0x33, 0xff, (n >> 16) as u8, (n >> 8) as u8, n as u8];
        let card = |n: u32| [0x00, 0x15, 0x5d, (n >> 16) as u8, (n >> 8) as u8, n as u8];
        (0..4096).filter(|n| filter.takes(group(*n))).count() + (0..4096).filter(|n| filter.takes(card(*n))).count()
    }

    #[test]
    fn a_list_is_exact_and_the_other_way_round_as_well() {
        let group = [0x33, 0x33, 0xff, 0, 0x0c, 0x0d];
        let words = [address(0, OWN), address(45, group)].concat();
        let filter = Filter::new(Kind::Perfect, &setup(&words));
        assert!(filter.takes(OWN) && filter.takes(group) && !filter.takes(BROADCAST));
        assert_eq!(pass(&filter), 1, "the group; OWN is none of these cards");
        let filter = Filter::new(Kind::Inverse, &setup(&words));
        assert!(!filter.takes(OWN) && !filter.takes(group) && filter.takes(BROADCAST));
        assert_eq!(pass(&filter), 2 * 4096 - 1);
        assert!(!Filter::default().takes(OWN));
    }

    #[test]
    fn a_hash_lets_one_in_of_512_and_stands_for_all_or_for_groups() {
        let hash = (crc32_le(&[0x33, 0x33, 0xff, 0, 0, 7]) & 0x1ff) as usize;
        let words = [address(ADDRESS, OWN), vec![(hash >> 4, 1 << (hash & 15))]].concat();
        let filter = Filter::new(Kind::HashPerfect, &setup(&words));
        assert!(filter.takes([0x33, 0x33, 0xff, 0, 0, 7]) && filter.takes(OWN) && !filter.takes(BROADCAST));
        assert_eq!(pass(&filter), 8, "groups alone");
        let filter = Filter::new(Kind::HashOnly, &setup(&words));
        assert_eq!(pass(&filter), 16, "cards as well");
        assert!(!filter.takes(OWN));
    }
}
