use std::sync::Arc;

use emu::bench::{Bench, BenchNet};
use emu::{Backends, DeviceCell, DeviceState, DmaMem, Event, Params, ResetKind};

use super::{DEC21140, DEC21143, sts};

mod basics;
mod de;

/// Where firmware puts the BARs, and the pin.
const PORTS: u16 = 0xc000;
const MEMORY: u64 = 0xe000_0000;
const INTA: u32 = 16;

const MAC: [u8; 6] = [0x00, 0x15, 0x5d, 1, 2, 3];
const BROADCAST: [u8; 6] = [0xff; 6];

/// CSR6.
const SR: u32 = 2;
const ST: u32 = 1 << 13;
/// Descriptors.
const OWN: u32 = 1 << 31;
const IC: u32 = 1 << 31;
const LS: u32 = 1 << 30;
const FS: u32 = 1 << 29;
const SET: u32 = 1 << 27;
const END: u32 = 1 << 25;
const CHAIN: u32 = 1 << 24;

/// A card with a cable, and how its registers are reached.
struct Rig {
    bench: Bench,
    cell: Arc<DeviceCell>,
    net: BenchNet,
    by_memory: bool,
}

impl Rig {
    fn new(is_21143: bool, srom: &str, by_memory: bool) -> Rig {
        let bench = Bench::new();
        let net = BenchNet::default();
        let backends = Backends { net: Some(Box::new(net.clone())), ..Backends::default() };
        let params = Params::new([("mac", "00:15:5d:01:02:03"), ("srom", srom)]);
        let cell = bench.plug(if is_21143 { &DEC21143 } else { &DEC21140 }, &params, backends);
        let rig = Rig { bench, cell, net, by_memory };
        rig.bench.machine.reset(ResetKind::PowerOn);
        rig.firmware();
        rig
    }

    fn firmware(&self) {
        self.bench.config_write(0x10, 4, PORTS.into());
        self.bench.config_write(0x14, 4, MEMORY as u32);
        self.bench.config_write(0x04, 2, 7);
    }

    fn read(&mut self, csr: u16) -> u32 {
        match self.by_memory {
            true => self.bench.bus.read(MEMORY + 8 * u64::from(csr), 4) as u32,
            false => self.bench.bus.pio_read(PORTS + 8 * csr, 4),
        }
    }

    fn write(&mut self, csr: u16, value: u32) {
        match self.by_memory {
            true => self.bench.bus.write(MEMORY + 8 * u64::from(csr), 4, value.into()),
            false => self.bench.bus.pio_write(PORTS + 8 * csr, 4, value),
        }
    }

    fn dma(&self) -> DmaMem {
        self.bench.dma()
    }

    fn descriptor(&self, at: u64, words: [u32; 4]) {
        // The owner last, as drivers do it.
        for n in (0..4).rev() {
            self.dma().write_u32(at + 4 * n as u64, words[n]);
        }
    }

    fn word(&self, at: u64) -> u32 {
        self.dma().read_u32(at)
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.dma().read(at, &mut bytes);
        bytes
    }

    fn irq(&self) -> bool {
        self.bench.irq(INTA)
    }
}

/// A frame with contents of its own.
fn frame(to: [u8; 6], len: usize, seed: u8) -> Vec<u8> {
    let head = to.into_iter().chain([0, 0x15, 0x5d, 9, 9, 9, 0x08, 0x00]);
    head.chain((14..).map(move |n| (n as u8).wrapping_mul(7) ^ seed)).take(len).collect()
}
