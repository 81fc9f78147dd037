//! The registers: where they are, which bits a driver can write, what they are after a reset.
//!
//! PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (317453), 13. What is not here reads as 0.

use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub const CTRL: u32 = 0x0000;
pub const STATUS: u32 = 0x0008;
pub const EECD: u32 = 0x0010;
pub const EERD: u32 = 0x0014;
pub const CTRL_EXT: u32 = 0x0018;
pub const MDIC: u32 = 0x0020;
pub const FCAL: u32 = 0x0028;
pub const FCAH: u32 = 0x002c;
pub const FCT: u32 = 0x0030;
pub const VET: u32 = 0x0038;
pub const ICR: u32 = 0x00c0;
pub const ITR: u32 = 0x00c4;
pub const ICS: u32 = 0x00c8;
pub const IMS: u32 = 0x00d0;
pub const IMC: u32 = 0x00d8;
pub const RCTL: u32 = 0x0100;
pub const FCTTV: u32 = 0x0170;
pub const TXCW: u32 = 0x0178;
pub const TCTL: u32 = 0x0400;
pub const TIPG: u32 = 0x0410;
pub const TBT: u32 = 0x0448;
pub const AIT: u32 = 0x0458;
pub const LEDCTL: u32 = 0x0e00;
pub const PBA: u32 = 0x1000;
pub const FCRTL: u32 = 0x2160;
pub const FCRTH: u32 = 0x2168;
pub const RDBAL: u32 = 0x2800;
pub const RDT: u32 = 0x2818;
pub const RDTR: u32 = 0x2820;
pub const RXDCTL: u32 = 0x2828;
pub const RADV: u32 = 0x282c;
pub const RSRPD: u32 = 0x2c00;
pub const TXDMAC: u32 = 0x3000;
pub const TDBAL: u32 = 0x3800;
pub const TDT: u32 = 0x3818;
pub const TIDV: u32 = 0x3820;
pub const TXDCTL: u32 = 0x3828;
pub const TADV: u32 = 0x382c;
pub const TSPMT: u32 = 0x3830;
pub const RXCSUM: u32 = 0x5000;
pub const MTA: u32 = 0x5200;
pub const RAL: u32 = 0x5400;
pub const RAH: u32 = 0x5404;
pub const VFTA: u32 = 0x5600;
pub const WUC: u32 = 0x5800;
pub const WUFC: u32 = 0x5808;
pub const MANC: u32 = 0x5820;
pub const WUPM: u32 = 0x5a00;
const IPAV: u32 = 0x5838;
const IP4AT: u32 = 0x5840;
const IP6AT: u32 = 0x5880;
const LEN: u32 = 0x6000;

/// Of a ring, counted from its RDBAL or TDBAL.
const HIGH: u32 = 0x04;
const LENGTH: u32 = 0x08;
const HEAD: u32 = 0x10;
const TAIL: u32 = 0x18;

/// Statistics: cleared by reading; the octet counters have a high half behind them, with which they are cleared.
pub mod stat {
    pub const FIRST: u32 = 0x4000;
    pub const END: u32 = 0x4128;
    pub const MPC: u32 = 0x4010;
    pub const XONRXC: u32 = 0x4048;
    pub const XOFFRXC: u32 = 0x4050;
    pub const FCRUC: u32 = 0x4058;
    pub const PRC64: u32 = 0x405c;
    pub const GPRC: u32 = 0x4074;
    pub const BPRC: u32 = 0x4078;
    pub const MPRC: u32 = 0x407c;
    pub const GPTC: u32 = 0x4080;
    pub const GORC: u32 = 0x4088;
    pub const GOTC: u32 = 0x4090;
    pub const RNBC: u32 = 0x40a0;
    pub const ROC: u32 = 0x40ac;
    pub const TOR: u32 = 0x40c0;
    pub const TOT: u32 = 0x40c8;
    pub const TPR: u32 = 0x40d0;
    pub const TPT: u32 = 0x40d4;
    pub const PTC64: u32 = 0x40d8;
    pub const MPTC: u32 = 0x40f0;
    pub const BPTC: u32 = 0x40f4;
    pub const TSCTC: u32 = 0x40f8;
    pub const TSCTFC: u32 = 0x40fc;
    /// Those of 64 bits.
    pub const WIDE: [u32; 4] = [GORC, GOTC, TOR, TOT];
}

pub mod ctrl {
    pub const FD: u32 = 1;
    pub const SLU: u32 = 1 << 6;
    pub const SPEED_1000: u32 = 2 << 8;
    pub const FRCSPD: u32 = 1 << 11;
    pub const FRCDPX: u32 = 1 << 12;
    /// The 82543's PHY hangs on general purpose pins.
    pub const MDIO: u32 = 1 << 20;
    pub const MDC: u32 = 1 << 21;
    pub const MDIO_OUT: u32 = 1 << 24;
    pub const RST: u32 = 1 << 26;
    pub const RFCE: u32 = 1 << 27;
    pub const VME: u32 = 1 << 30;
    pub const PHY_RST: u32 = 1 << 31;
}

pub mod ctrl_ext {
    /// Of the 82543: the reset input of its PHY, low, and whether it is driven.
    pub const SDP4: u32 = 1 << 4;
    pub const SDP4_OUT: u32 = 1 << 8;
    pub const EE_RST: u32 = 1 << 13;
}

pub mod eecd {
    pub const SK: u32 = 1;
    pub const CS: u32 = 1 << 1;
    pub const DI: u32 = 1 << 2;
    pub const DO: u32 = 1 << 3;
    pub const REQ: u32 = 1 << 6;
    pub const GNT: u32 = 1 << 7;
    pub const PRES: u32 = 1 << 8;
}

/// Causes of interrupts.
pub mod icr {
    pub const TXDW: u32 = 1;
    pub const TXQE: u32 = 1 << 1;
    pub const LSC: u32 = 1 << 2;
    pub const RXDMT0: u32 = 1 << 4;
    pub const RXO: u32 = 1 << 6;
    pub const RXT0: u32 = 1 << 7;
    pub const MDAC: u32 = 1 << 9;
    pub const TXD_LOW: u32 = 1 << 15;
    pub const SRPD: u32 = 1 << 16;
    pub const ALL: u32 = 0x1_ffff;
}

pub mod rctl {
    pub const EN: u32 = 1 << 1;
    pub const UPE: u32 = 1 << 3;
    pub const MPE: u32 = 1 << 4;
    pub const LPE: u32 = 1 << 5;
    pub const LBM: u32 = 3 << 6;
    pub const BAM: u32 = 1 << 15;
    pub const VFE: u32 = 1 << 18;
    pub const CFIEN: u32 = 1 << 19;
    pub const CFI: u32 = 1 << 20;
    pub const PMCF: u32 = 1 << 23;
    pub const BSEX: u32 = 1 << 25;
    pub const SECRC: u32 = 1 << 26;
}

pub const TCTL_EN: u32 = 1 << 1;
pub const RAH_AV: u32 = 1 << 31;
/// RDTR: what waits is told now.
pub const RDTR_FPD: u32 = 1 << 31;

/// The bits of a register that a driver can write; reading gives them back. Registers in which writing does more are
/// looked after elsewhere, and here only with what they keep.
fn writable(at: u32) -> u32 {
    match at {
        CTRL | FCAL | TXCW | LEDCTL | WUFC | MANC | IPAV | AIT | TBT => !0,
        CTRL_EXT => !ctrl_ext::EE_RST,
        FCAH | FCT | VET | ITR | FCTTV | RDTR | RADV | TIDV | TADV => 0xffff,
        EECD => 0x77,
        RCTL => 0x07ff_ffff,
        TCTL => 0x07ff_fffe,
        TIPG => 0x3fff_ffff,
        PBA => 0x007f_007f,
        FCRTL => 0x8000_fff8,
        FCRTH => 0x0000_fff8,
        RXDCTL => 0x013f_3f3f,
        TXDCTL => 0xff3f_3f3f,
        RSRPD => 0x0fff,
        TXDMAC => 1,
        TSPMT => !0,
        RXCSUM => 0x07ff,
        WUC => 0x0f,
        MTA..0x5400 | VFTA..WUC | IP4AT..0x5860 | IP6AT..0x5890 | WUPM..0x5a80 => !0,
        RAL..0x5480 if at & 4 == 0 => !0,
        RAL..0x5480 => 0x8003_ffff,
        _ => [RDBAL, TDBAL].into_iter().find(|ring| (*ring..*ring + RING).contains(&at)).map_or(0, |ring| {
            match at - ring {
                0 => !0xf,
                HIGH => !0,
                LENGTH => 0x000f_ff80,
                HEAD | TAIL => 0xffff,
                _ => 0,
            }
        }),
    }
}

/// Bytes that the registers of a ring take.
const RING: u32 = 0x20;

/// All registers, by their offset.
#[derive(Clone)]
pub struct Registers(Vec<u32>);

impl Index<u32> for Registers {
    type Output = u32;

    fn index(&self, at: u32) -> &u32 {
        &self.0[at as usize / 4]
    }
}

impl IndexMut<u32> for Registers {
    fn index_mut(&mut self, at: u32) -> &mut u32 {
        &mut self.0[at as usize / 4]
    }
}

impl Default for Registers {
    /// As they are after a reset.
    fn default() -> Registers {
        let mut all = Registers(vec![0; LEN as usize / 4]);
        all[CTRL] = ctrl::FD | ctrl::SPEED_1000;
        all[VET] = 0x8100;
        // LED 0 shows the link, 1 activity, 2 and 3 the speed.
        all[LEDCTL] = 0x0706_8302;
        // 48 KB of buffer for what comes, 16 KB for what goes.
        all[PBA] = 0x0010_0030;
        all[RXDCTL] = 0x0101_0000;
        all
    }
}

/// A ring of descriptors of 16 bytes, as its registers say.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    base: u64,
    /// Descriptors in it.
    pub len: u32,
    /// The next one of the card.
    pub head: u32,
    /// The first one that is not the card's any more.
    pub tail: u32,
}

impl Ring {
    /// How many descriptors are the card's. None if head or tail is outside.
    pub fn owned(&self) -> u32 {
        match self.head < self.len && self.tail < self.len {
            true => (self.tail + self.len - self.head) % self.len,
            false => 0,
        }
    }

    /// The address of the next one.
    pub fn at(&self) -> u64 {
        self.base.wrapping_add(16 * u64::from(self.head))
    }

    /// Goes on to the one behind it.
    pub fn step(&mut self) {
        self.head = if self.head + 1 >= self.len { 0 } else { self.head + 1 };
    }
}

impl Registers {
    /// Stores what can be written of a register that is there.
    pub fn write(&mut self, at: u32, value: u32) {
        if at < LEN {
            self[at] = self[at] & !writable(at) | value & writable(at);
        }
    }

    /// What a register holds. Statistics are gone after that.
    pub fn read(&mut self, at: u32) -> u32 {
        match at {
            LEN.. => 0,
            stat::FIRST..stat::END if stat::WIDE.contains(&at) => self[at],
            stat::FIRST..stat::END => {
                if stat::WIDE.contains(&(at - 4)) {
                    self[at - 4] = 0;
                }
                std::mem::take(&mut self[at])
            }
            _ => self[at],
        }
    }

    /// The ring whose registers begin at `at`.
    pub fn ring(&self, at: u32) -> Ring {
        Ring {
            base: u64::from(self[at + HIGH]) << 32 | u64::from(self[at]),
            len: self[at + LENGTH] / 16,
            head: self[at + HEAD],
            tail: self[at + TAIL],
        }
    }

    /// The card has come so far.
    pub fn set_head(&mut self, at: u32, ring: &Ring) {
        self[at + HEAD] = ring.head;
    }

    /// Counts one; a counter stays at its end.
    pub fn count(&mut self, at: u32) {
        self[at] = self[at].saturating_add(1);
    }

    /// Counts octets.
    pub fn count_octets(&mut self, at: u32, octets: usize) {
        let sum = (u64::from(self[at + 4]) << 32 | u64::from(self[at])).saturating_add(octets as u64);
        (self[at], self[at + 4]) = (sum as u32, (sum >> 32) as u32);
    }

    /// Counts a frame of so many octets among those of its size, of which the first counter is at `first`.
    pub fn count_size(&mut self, first: u32, octets: usize) {
        let class = [64, 127, 255, 511, 1023].iter().filter(|most| octets > **most).count();
        self.count(first + 4 * class as u32);
    }
}

/// Most are 0: what is not is saved, by its offset.
impl Serialize for Registers {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().enumerate().filter(|(_, value)| **value != 0).map(|(n, value)| (4 * n, value)))
    }
}

impl<'de> Deserialize<'de> for Registers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Registers, D::Error> {
        let mut all = Registers(vec![0; LEN as usize / 4]);
        for (at, value) in BTreeMap::<u32, u32>::deserialize(from)? {
            if let Some(register) = all.0.get_mut(at as usize / 4) {
                *register = value;
            }
        }
        Ok(all)
    }
}
