//! Which frames a card takes in, and the commands that say so.

use serde::{Deserialize, Serialize};

use super::feature;
use crate::net::Mac;

/// Classes of commands, and those of each.
const RX: u8 = 0;
pub(super) const MAC: u8 = 1;
const MAC_TABLE_SET: u8 = 0;
const VLAN: u8 = 2;
const VLAN_ADD: u8 = 0;
const VLAN_DEL: u8 = 1;

/// Addresses in a table.
const MAX_ADDRESSES: usize = 64;

/// Which frames the card takes in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Filter {
    /// By the number of their command: promiscuous, all multicast, all unicast, no multicast, no unicast, no broadcast.
    modes: [bool; 6],
    unicast: Vec<Mac>,
    multicast: Vec<Mac>,
    /// The table was too long: take all of the kind.
    unicast_full: bool,
    multicast_full: bool,
    /// VLANs that are let in.
    vlans: Vec<u16>,
}

const PROMISC: usize = 0;
const ALL_MULTI: usize = 1;
const ALL_UNI: usize = 2;
const NO_MULTI: usize = 3;
const NO_UNI: usize = 4;
const NO_BROADCAST: usize = 5;

impl Default for Filter {
    /// A driver that knows no control queue gets everything.
    fn default() -> Filter {
        Filter {
            modes: [true, false, false, false, false, false],
            unicast: Vec::new(),
            multicast: Vec::new(),
            unicast_full: false,
            multicast_full: false,
            vlans: Vec::new(),
        }
    }
}

impl Filter {
    pub fn takes(&self, frame: &[u8], mac: Mac, by_vlan: bool) -> bool {
        let Some(to) = frame.first_chunk::<6>() else { return false };
        if self.modes[PROMISC] {
            return true;
        }
        if by_vlan && frame[12..14] == [0x81, 0x00] {
            let tag = frame.get(14..16).map_or(0, |t| u16::from_be_bytes([t[0], t[1]]) & 0xfff);
            if self.vlans.binary_search(&tag).is_err() {
                return false;
            }
        }
        if *to == [0xff; 6] {
            !self.modes[NO_BROADCAST]
        } else if to[0] & 1 != 0 {
            !self.modes[NO_MULTI] && (self.modes[ALL_MULTI] || self.multicast_full || self.multicast.contains(to))
        } else {
            let known = *to == mac || self.modes[ALL_UNI] || self.unicast_full || self.unicast.contains(to);
            !self.modes[NO_UNI] && known
        }
    }

    /// Obeys a command if the driver has the feature for it; `None`: it is not understood.
    pub fn obey(&mut self, has: impl Fn(u64) -> bool, class: u8, command: u8, data: &[u8]) -> Option<()> {
        match (class, command) {
            (RX, mode) => {
                let needs = if mode <= ALL_MULTI as u8 { feature::CTRL_RX } else { feature::CTRL_RX_EXTRA };
                let mode = self.modes.get_mut(usize::from(mode)).filter(|_| has(needs))?;
                *mode = *data.first()? != 0;
            }
            (MAC, MAC_TABLE_SET) if has(feature::CTRL_RX) => {
                let (unicast, rest) = table(data)?;
                let (multicast, _) = table(rest)?;
                self.unicast_full = unicast.len() > MAX_ADDRESSES;
                self.multicast_full = multicast.len() > MAX_ADDRESSES;
                self.unicast = if self.unicast_full { Vec::new() } else { unicast };
                self.multicast = if self.multicast_full { Vec::new() } else { multicast };
            }
            (VLAN, VLAN_ADD | VLAN_DEL) if has(feature::CTRL_VLAN) => {
                let vlan = u16::from_le_bytes(data.try_into().ok()?);
                match (self.vlans.binary_search(&vlan), command) {
                    (Err(at), VLAN_ADD) if vlan < 4096 => self.vlans.insert(at, vlan),
                    (Ok(at), VLAN_DEL) => {
                        self.vlans.remove(at);
                    }
                    (Ok(_), _) => {}
                    _ => return None,
                }
            }
            _ => return None,
        }
        Some(())
    }
}

/// A table of addresses, and what follows it.
fn table(data: &[u8]) -> Option<(Vec<Mac>, &[u8])> {
    let (count, rest) = data.split_first_chunk()?;
    let bytes = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(6)?;
    let (macs, rest) = rest.split_at_checked(bytes)?;
    Some((macs.as_chunks().0.to_vec(), rest))
}
