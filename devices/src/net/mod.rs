//! Network cards, each in the file of its chip, and what they share: addresses, the CRC that filters hash with, the
//! EEPROM behind a Microwire bus (`microwire`), the transceiver behind MDIO (`phy`), and checksums and segmentation
//! (`offload`).

pub mod dec21140;
pub mod e1000;
mod microwire;
pub mod ne2000;
pub(crate) mod offload;
pub mod pcnet;
mod phy;
mod realtek;
pub mod rtl8139;
pub mod rtl8169;

use emu::{Param, ParamKind, Params, Slot};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// To everybody.
pub const BROADCAST: Mac = [0xff; 6];

/// Bytes of the shortest frame on the wire, without FCS; a chip pads what is shorter.
pub const MIN_FRAME: usize = 60;
/// Bytes of the frame check sequence, which backends never see.
pub const FCS: usize = 4;

/// The key of the address that every card has. A machine gives each card one, made of its name and slot.
pub const MAC: Param =
    Param { name: "mac", kind: ParamKind::Mac, default: "", help: "address; by default made from the name and slot" };

/// The address that a card is configured with.
///
/// # Errors
/// It is none, or that of a group.
pub fn mac(slot: &Slot, params: &Params) -> Result<Mac, String> {
    match params.get("mac") {
        Some(text) => parse_mac(text).ok_or_else(|| format!("mac: {text:?} is no Ethernet address of a card")),
        None => Ok(default_mac(slot.name())),
    }
}

fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next().filter(|p| p.len() == 2)?, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}

/// One of bhyve's addresses that stays with a name: FNV-1a over it.
fn default_mac(name: &str) -> Mac {
    let hash = name.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193)).to_be_bytes();
    [0x00, 0xa0, 0x98, hash[1], hash[2], hash[3]]
}

/// The CRC of a byte and up to seven zeros behind it, so that eight bytes are one step.
const TABLE: [[u32; 256]; 8] = {
    let mut table = [[0; 256]; 8];
    let mut n = 0;
    while n < 256 {
        let (mut crc, mut bit) = (n as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[0][n] = crc;
        n += 1;
    }
    let mut at = 256;
    while at < 8 * 256 {
        let before: u32 = table[at / 256 - 1][at % 256];
        table[at / 256][at % 256] = before >> 8 ^ table[0][before as usize & 0xff];
        at += 1;
    }
    table
};

/// Ethernet's CRC over `bytes`, least significant bit first and without the final complement (IEEE 802.3, 3.2.9): the FCS
/// is its complement, and filters that count from the low end ("little endian") hash with its low bits.
pub fn crc32_le(bytes: &[u8]) -> u32 {
    let (eights, rest) = bytes.as_chunks::<8>();
    let crc = eights.iter().fold(!0, |crc, eight| {
        let word = u64::from_le_bytes(*eight) ^ u64::from(crc);
        word.to_be_bytes().iter().zip(&TABLE).fold(0, |crc, (byte, table)| crc ^ table[usize::from(*byte)])
    });
    rest.iter().fold(crc, |crc, byte| crc >> 8 ^ TABLE[0][usize::from(crc as u8 ^ byte)])
}

/// The same CRC with its bits the other way round, of which filters take the high bits ("big endian").
pub fn crc32_be(bytes: &[u8]) -> u32 {
    crc32_le(bytes).reverse_bits()
}

/// The key of who the board's maker is.
pub(crate) const SUBSYSTEM: Param = Param {
    name: "subsystem",
    kind: ParamKind::Text,
    default: "",
    help: "PCI subsystem, vendor:device in hexadecimal; by default the chip's own ids",
};

pub(crate) fn subsystem(params: &Params, own: (u16, u16)) -> Result<(u16, u16), String> {
    let Some(text) = params.get("subsystem").filter(|text| !text.is_empty()) else { return Ok(own) };
    let parse = |part: &str| u16::from_str_radix(part, 16).ok();
    let ids = text.split_once(':').and_then(|(vendor, device)| Some((parse(vendor)?, parse(device)?)));
    ids.ok_or_else(|| format!("subsystem: {text:?} is not like 10ec:8139"))
}

/// A received frame as long as any on the wire.
pub(crate) fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    if frame.len() < MIN_FRAME {
        frame.resize(MIN_FRAME, 0);
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_six_bytes_and_no_groups() {
        assert_eq!(parse_mac("00:15:5d:01:02:fe"), Some([0, 0x15, 0x5d, 1, 2, 0xfe]));
        for wrong in
            ["", "00:15:5d:01:02", "00:15:5d:01:02:fe:00", "01:00:5e:00:00:01", "0:15:5d:01:02:fe", "00:15:5d:01:02:fg"]
        {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_crc_is_ethernets() {
        assert_eq!(!crc32_le(b"123456789"), 0xcbf4_3926);
        // What follows a message as its FCS leaves the same remainder behind every one.
        let long: Vec<u8> = (0..203).map(|n| n as u8 ^ 0x5a).collect();
        assert_eq!(crc32_le(&[&long[..], &(!crc32_le(&long)).to_le_bytes()].concat()), 0xdebb_20e3);
        // The all-systems group 224.0.0.1: bit 0 of a table of 64 by the six bits at the high end.
        assert_eq!(crc32_be(&[1, 0, 0x5e, 0, 0, 1]) >> 26, 0x1f);
    }
}
