//! The serial ROM: the card's address, and which media it has, in the format of DEC's SROM specification (EC-QPF8),
//! version 1 for one controller.
//!
//! The design says what a driver finds, and so what it does about the medium:
//! - `fixed`: 100BASE-TX and nothing else, without an indicator of the link. De(4) probes nothing, and takes the link
//!   for up as long as it runs.
//! - `auto`: autosensing between 10BASE-T and 100BASE-TX. The 21140 senses by general purpose pins, and de(4) by frames
//!   that it sends itself; the 21143 negotiates by its own serial interface.
//! - `mii`: a transceiver behind MDIO, at address 1.

use crate::net::{Mac, crc32_le};

/// A design.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Design {
    Fixed,
    Auto,
    Mii,
}

impl Design {
    /// By the word in the configuration.
    pub(super) fn of(word: &str) -> Design {
        match word {
            "auto" => Design::Auto,
            "mii" => Design::Mii,
            _ => Design::Fixed,
        }
    }
}

/// The pins that drivers sense by: low for 10 Mbit/s, high for 100.
pub(super) const LINK_10: u8 = 1 << 7;
pub(super) const LINK_100: u8 = 1 << 6;
/// Of the pins, the outputs.
const OUTPUTS: u8 = 0x1f;

/// Where the controller's leaf begins.
const LEAF: usize = 0x1e;

/// Connection types.
const TX_100: u16 = 0x0003;
const AUTOSENSE: u16 = 0x0800;

/// Modes of CSR6 in blocks: PS 18, TTM 22, PCS 23 and SCR 24 as bits 0, 4, 5 and 6; bits 1 to 3 say which pin senses,
/// bit 7 that it is low then, bit 15 that there is none.
const MODE_10: u16 = 7 << 1 | 1 << 7 | 1 << 4;
const MODE_100: u16 = 6 << 1 | 1 << 6 | 1 << 5 | 1;
const MODE_100_BLIND: u16 = 1 << 15 | 1 << 6 | 1 << 5 | 1;

/// Capabilities, advertisement, full duplex and threshold of a transceiver: all of 10 and 100 Mbit/s.
const MII: [u16; 4] = [0x7800, 0x01e0, 0x5000, 0x1800];

fn block(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[0x80 | (body.len() as u8 + 1), kind], body].concat()
}

fn mii(kind: u8, last: &[u8]) -> Vec<u8> {
    // The first PHY there is, without sequences that select or reset it.
    let body = [0, 0, 0].into_iter().chain(MII.iter().flat_map(|word| word.to_le_bytes()));
    block(kind, &body.chain(last.iter().copied()).collect::<Vec<u8>>())
}

fn leaf_21140(design: Design) -> Vec<u8> {
    let pins = |media: u8, mode: u16| [&[media, 0], &mode.to_le_bytes()[..]].concat();
    let (connection, blocks) = match design {
        Design::Fixed => (TX_100, vec![pins(3, MODE_100_BLIND)]),
        Design::Auto => (AUTOSENSE, vec![pins(0, MODE_10), pins(3, MODE_100)]),
        Design::Mii => (AUTOSENSE, vec![mii(1, &[])]),
    };
    let head = [&connection.to_le_bytes()[..], &[OUTPUTS, blocks.len() as u8]].concat();
    [head, blocks.concat()].concat()
}

fn leaf_21143(design: Design) -> Vec<u8> {
    let serial = |media: u8| block(2, &[media, 0, 0, 0, 0]);
    let symbol = |media: u8| block(4, &[&[media, 0, 0, 0, 0], &MODE_100_BLIND.to_le_bytes()[..]].concat());
    let (connection, blocks) = match design {
        Design::Fixed => (TX_100, vec![symbol(3)]),
        Design::Auto => (AUTOSENSE, vec![serial(0), serial(4), symbol(3), symbol(5)]),
        Design::Mii => (AUTOSENSE, vec![mii(3, &[0])]),
    };
    let head = [&connection.to_le_bytes()[..], &[blocks.len() as u8]].concat();
    [head, blocks.concat()].concat()
}

/// The words of a 93C46.
pub(super) fn words(is_21143: bool, design: Design, mac: Mac, subsystem: (u16, u16)) -> Vec<u16> {
    let mut bytes = [0; 128];
    bytes[..2].copy_from_slice(&subsystem.0.to_le_bytes());
    bytes[2..4].copy_from_slice(&subsystem.1.to_le_bytes());
    // Version, and number of controllers.
    (bytes[0x12], bytes[0x13]) = (1, 1);
    bytes[0x14..0x1a].copy_from_slice(&mac);
    bytes[0x1b] = LEAF as u8;
    let leaf = if is_21143 { leaf_21143(design) } else { leaf_21140(design) };
    bytes[LEAF..LEAF + leaf.len()].copy_from_slice(&leaf);
    let crc = !crc32_le(&bytes[..0x7e]) as u16;
    bytes[0x7e..].copy_from_slice(&crc.to_le_bytes());
    bytes.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_find_address_media_and_checksum() {
        for is_21143 in [false, true] {
            for design in [Design::Fixed, Design::Auto, Design::Mii] {
                let words = words(is_21143, design, [0, 0x15, 0x5d, 1, 2, 3], (0x0a00, 0x2114));
                let rom: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                assert_eq!(
                    (rom.len(), &rom[..4], &rom[0x14..0x1a]),
                    (128, &[0, 10, 0x14, 0x21][..], &[0, 0x15, 0x5d, 1, 2, 3][..])
                );
                let crc = u16::from_le_bytes([rom[126], rom[127]]);
                assert_eq!((crc32_le(&rom[..126]) & 0xffff) ^ 0xffff, u32::from(crc));
                // The blocks fill the leaf to the byte: what follows is empty.
                let mut at = rom[27] as usize + 2 + usize::from(!is_21143);
                let blocks = rom[at];
                at += 1;
                for _ in 0..blocks {
                    at += if rom[at] & 0x80 == 0 { 4 } else { 1 + usize::from(rom[at] & 0x7f) };
                }
                assert!(rom[at..126].iter().all(|byte| *byte == 0), "{is_21143} {design:?}");
            }
        }
    }
}
