//! A driver that touches the chip as de(4) of FreeBSD 7 and 8 and of OpenBSD does: TI masked as long as its ring has
//! room, the receiver off for each change of the filter and on again only in the setup frame's interrupt, CSR1 after
//! each packet, CSR2 never, and OpenBSD's way to its start routine (`late.rs` of the device). Its scenario ends with an error where the real one would stall, and each of the chip's
//! rules, broken on purpose, has to lead there.

use std::collections::VecDeque;

use super::super::rules::{RULES, Rule};
use super::*;
use crate::net::crc32_le;

const RX_RING: u64 = 0x1_0000;
const TX_RING: u64 = 0x1_1000;
const SETUP: u64 = 0x1_2000;
const RX_DATA: u64 = 0x2_0000;
const TX_DATA: u64 = 0x4_0000;
const BUFFER: u64 = 0x800;
/// Descriptors, and of those for reception the ones that it hands out.
const RX_COUNT: usize = 48;
const RX_TARGET: usize = 32;
const TX_COUNT: usize = 128;
/// Ticks of the watchdog, of a second each, in which something has to be sent.
const TICKS: u32 = 2;

const PM: u32 = 1 << 7;
const ALL: u32 = sts::NIS | sts::RI | sts::TI | sts::AIS | sts::FBE | sts::TPS | 1 << 5 | sts::TJT | sts::RPS;
const NC_EC: u32 = 1 << 10 | 1 << 8;

type Stall = Result<(), String>;

fn stall<T>(why: &str) -> Result<T, String> {
    Err(why.to_owned())
}

fn must(holds: bool, why: &str) -> Stall {
    if holds { Ok(()) } else { stall(why) }
}

/// Its state, with the names of its flags.
struct De {
    r: Rig,
    cmdmode: u32,
    intrmask: u32,
    want_setup: bool,
    doing_setup: bool,
    want_txstart: bool,
    txprobe: bool,
    probe_failed: bool,
    hash: bool,
    allmulti: bool,
    groups: Vec<[u8; 6]>,
    setup: Vec<[u8; 6]>,
    /// Ring positions: where it looks next, where it puts next, and how many descriptors are free or handed out.
    rx_in: usize,
    rx_out: usize,
    rx_held: usize,
    tx_in: usize,
    tx_out: usize,
    tx_free: usize,
    tx_timer: u32,
    queue: VecDeque<Vec<u8>>,
    /// The start routine takes one packet.
    start_one: bool,
    got: Vec<Vec<u8>>,
    /// The most frames that one interrupt brought.
    most: usize,
}

impl De {
    fn attach(by_memory: bool) -> Result<De, String> {
        let mut r = Rig::new(false, "auto", by_memory);
        let rom: Vec<u8> = (0..64).flat_map(|n| srom_word(&mut r, n).to_le_bytes()).collect();
        let crc = u16::from_le_bytes([rom[126], rom[127]]);
        must((crc32_le(&rom[..126]) & 0xffff) ^ 0xffff == u32::from(crc), "can't read ENET ROM (why=-4)")?;
        must(rom[0x14..0x1a] == MAC, "another address")?;
        Ok(De {
            r,
            cmdmode: 1 << 25 | 1 << 21,
            intrmask: 0,
            want_setup: false,
            doing_setup: false,
            want_txstart: false,
            txprobe: false,
            probe_failed: false,
            hash: false,
            allmulti: false,
            groups: Vec::new(),
            setup: Vec::new(),
            rx_in: 0,
            rx_out: 0,
            rx_held: 0,
            tx_in: 0,
            tx_out: 0,
            tx_free: TX_COUNT,
            tx_timer: 0,
            queue: VecDeque::new(),
            start_one: false,
            got: Vec::new(),
            most: 0,
        })
    }

    fn end(n: usize, count: usize) -> u32 {
        if n + 1 == count { END } else { 0 }
    }

    fn reset(&mut self) {
        self.r.write(0, 1);
        self.r.write(4, TX_RING as u32);
        self.r.write(3, RX_RING as u32);
        self.r.write(0, 0x0100_0000 | 1 << 21 | 1 << 14);
        (0..TX_COUNT).for_each(|n| self.r.descriptor(TX_RING + 16 * n as u64, [0, De::end(n, TX_COUNT), 0, 0]));
        (0..RX_COUNT).for_each(|n| self.r.descriptor(RX_RING + 16 * n as u64, [0, De::end(n, RX_COUNT), 0, 0]));
        (self.rx_in, self.rx_out, self.rx_held) = (0, 0, 0);
        (self.tx_in, self.tx_out, self.tx_free) = (0, 0, TX_COUNT);
        self.intrmask |= ALL;
        (self.doing_setup, self.want_setup) = (false, false);
        (self.tx_timer, self.start_one) = (0, false);
        self.addr_filter();
    }

    fn addr_filter(&mut self) {
        self.want_setup = true;
        self.want_txstart = true;
        self.cmdmode &= !SR;
        self.intrmask &= !sts::RPS;
        self.hash = self.groups.len() > 14 && !self.allmulti;
        self.setup = self.groups.clone();
        if self.allmulti {
            self.setup.clear();
        } else {
            self.setup.push(BROADCAST);
        }
    }

    fn init(&mut self) -> Stall {
        self.cmdmode = self.cmdmode & !PM | if self.allmulti { PM } else { 0 } | ST;
        if self.txprobe || self.want_setup {
            self.cmdmode &= !SR;
            self.intrmask &= !sts::RPS;
        } else {
            self.rx_intr(false)?;
            self.cmdmode |= SR;
            self.intrmask |= sts::RPS;
        }
        self.r.write(7, self.intrmask);
        self.r.write(6, self.cmdmode);
        if self.want_setup && !self.txprobe {
            self.txput_setup()?;
        }
        Ok(())
    }

    /// A change of the list of groups, as SIOCADDMULTI does it.
    fn join(&mut self, group: [u8; 6]) -> Stall {
        self.groups.push(group);
        self.addr_filter();
        self.init()
    }

    fn setup_bytes(&self) -> Vec<u8> {
        let mut words = [0u32; 48];
        let parts = |mac: [u8; 6]| [0, 2, 4].map(|n| u32::from(u16::from_le_bytes([mac[n], mac[n + 1]])));
        if self.hash {
            for mac in &self.setup {
                let hash = crc32_le(mac) & 0x1ff;
                words[(hash >> 4) as usize] |= 1 << (hash & 15);
            }
            words[39..42].copy_from_slice(&parts(MAC));
        } else {
            let all = self.setup.iter().copied().chain(std::iter::repeat(MAC));
            words.chunks_exact_mut(3).zip(all).for_each(|(three, mac)| three.copy_from_slice(&parts(mac)));
        }
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn txput_setup(&mut self) -> Stall {
        if self.tx_free < 2 {
            self.tx_intr()?;
        }
        if self.doing_setup || self.tx_free == 1 {
            (self.want_txstart, self.start_one) = (true, false);
            return Ok(());
        }
        self.r.dma().write(SETUP, &self.setup_bytes());
        (self.want_setup, self.doing_setup) = (false, true);
        let kind = if self.hash { 1 << 22 } else { 0 };
        let flags = De::end(self.tx_out, TX_COUNT) | FS | LS | SET | IC | kind | 192;
        self.put(flags, SETUP as u32, 0);
        self.r.write(1, 1);
        if self.intrmask & sts::TI == 0 {
            self.intrmask |= sts::TI;
            self.r.write(7, self.intrmask);
        }
        Ok(())
    }

    /// Takes a descriptor. The one behind it is the driver's first.
    fn put(&mut self, flags: u32, one: u32, two: u32) {
        let at = self.tx_out;
        self.tx_out = (at + 1) % TX_COUNT;
        self.tx_free -= 1;
        self.r.dma().write_u32(TX_RING + 16 * self.tx_out as u64, 0);
        self.r.descriptor(TX_RING + 16 * at as u64, [OWN, flags, one, two]);
    }

    /// Puts a packet into the ring, in two buffers. False if there is no room.
    fn txput(&mut self, packet: &[u8]) -> Result<bool, String> {
        if self.tx_free <= 1 {
            self.tx_intr()?;
        }
        let room = self.tx_free > 1;
        if room {
            let buffer = TX_DATA + BUFFER * self.tx_out as u64;
            let first = packet.len().min(14);
            self.r.dma().write(buffer, &packet[..first]);
            self.r.dma().write(buffer + 0x100, &packet[first..]);
            let sizes = first as u32 | ((packet.len() - first) as u32) << 11;
            let flags = De::end(self.tx_out, TX_COUNT) | FS | LS | IC | sizes;
            self.put(flags, buffer as u32, buffer as u32 + 0x100);
            if self.txprobe {
                self.r.write(1, 1);
                return Ok(true);
            }
            self.want_txstart = false;
            self.tx_timer = if self.tx_timer == 0 { TICKS } else { self.tx_timer };
        } else {
            self.want_txstart = true;
        }
        let listens = self.want_txstart || self.doing_setup;
        self.start_one &= !listens;
        if listens != (self.intrmask & sts::TI != 0) {
            self.intrmask ^= sts::TI;
            self.r.write(7, self.intrmask);
        }
        self.r.write(1, 1);
        Ok(room)
    }

    fn start(&mut self) -> Stall {
        if self.want_setup && !self.txprobe {
            self.txput_setup()?;
        }
        while let Some(packet) = self.queue.pop_front() {
            if !self.txput(&packet)? {
                self.queue.push_front(packet);
                break;
            }
        }
        self.start_one = self.queue.is_empty();
        Ok(())
    }

    /// What OpenBSD calls, once for up to eight packets.
    fn start_by_softnet(&mut self) -> Stall {
        if !self.start_one {
            return self.start();
        }
        if let Some(packet) = self.queue.pop_front()
            && !self.txput(&packet)?
        {
            self.queue.push_front(packet);
        }
        Ok(())
    }

    fn tx_intr(&mut self) -> Stall {
        let mut sent = false;
        while self.tx_free < TX_COUNT {
            let at = TX_RING + 16 * self.tx_in as u64;
            let status = self.r.word(at);
            if status & OWN != 0 {
                break;
            }
            self.tx_free += 1;
            self.tx_in = (self.tx_in + 1) % TX_COUNT;
            if self.r.word(at + 4) & SET == 0 {
                if self.txprobe {
                    self.txprobe = false;
                    self.probe_failed = status & NC_EC != 0;
                    break;
                }
                must(status & 0x8000 == 0, "a frame was not sent")?;
                sent = true;
                continue;
            }
            self.doing_setup = false;
            if !self.want_setup && !self.txprobe {
                self.rx_intr(false)?;
                self.cmdmode |= SR;
                self.intrmask |= sts::RPS;
                self.r.write(5, sts::RPS);
                self.r.write(7, self.intrmask);
                self.r.write(6, self.cmdmode);
            }
        }
        self.tx_timer = match self.tx_free {
            TX_COUNT => 0,
            _ if sent => TICKS,
            _ => self.tx_timer,
        };
        Ok(())
    }

    fn rx_intr(&mut self, ignore: bool) -> Stall {
        loop {
            while self.rx_held < RX_TARGET {
                let n = self.rx_out;
                let buffer = (RX_DATA + BUFFER * n as u64) as u32;
                let flags = De::end(n, RX_COUNT) | 1024 | 1020 << 11;
                self.r.descriptor(RX_RING + 16 * n as u64, [OWN, flags, buffer, buffer + 1024]);
                (self.rx_out, self.rx_held) = ((n + 1) % RX_COUNT, self.rx_held + 1);
            }
            let status = self.r.word(RX_RING + 16 * self.rx_in as u64);
            if status & OWN != 0 {
                return Ok(());
            }
            must(status & 0x300 == 0x300, "a frame in pieces")?;
            let len = (status >> 16 & 0x7fff) as usize - 4;
            if !ignore && status & 0x8000 == 0 {
                let packet = self.r.bytes(RX_DATA + BUFFER * self.rx_in as u64, len);
                must((status & 0x400 != 0) == (packet[0] & 1 != 0), "MF is wrong")?;
                self.got.push(packet);
            }
            (self.rx_in, self.rx_held) = ((self.rx_in + 1) % RX_COUNT, self.rx_held - 1);
        }
    }

    /// Stops the receiver, waits for that with all interrupts off, and drops what it has.
    fn overflow(&mut self) -> Stall {
        self.r.write(6, self.cmdmode & !SR);
        let stopped = (0..10_000).any(|_| self.r.read(5) & sts::RPS != 0);
        must(stopped, "waits for RPS for ever")?;
        must(self.r.read(5) >> 17 & 7 == 0, "the receiver runs on")?;
        self.r.write(5, sts::RPS);
        self.rx_intr(true)?;
        self.r.write(6, self.cmdmode);
        Ok(())
    }

    fn intr(&mut self) -> Stall {
        for round in 0.. {
            let csr = self.r.read(5);
            if csr & self.intrmask == 0 {
                break;
            }
            must(csr & self.intrmask & !(sts::NIS | sts::AIS) != 0, "an interrupt for nothing")?;
            must(round < 1000 && csr & sts::FBE == 0, "the handler never ends")?;
            self.r.write(5, csr);
            if csr & (sts::RI | sts::RU) != 0 {
                let misses = self.r.read(8);
                if misses & 0x0ffe_0000 != 0 {
                    self.overflow()?;
                }
                let before = self.got.len();
                self.rx_intr(false)?;
                self.most = self.most.max(self.got.len() - before);
            }
            if csr & sts::AIS != 0 {
                self.r.write(6, self.cmdmode);
            }
            if self.want_txstart || self.txprobe || self.doing_setup {
                self.tx_intr()?;
                if !self.txprobe {
                    self.start()?;
                }
            }
        }
        Ok(())
    }

    /// What the processor does while the pin is up.
    fn service(&mut self) -> Stall {
        for _ in 0..100 {
            if !self.r.irq() {
                return Ok(());
            }
            self.intr()?;
        }
        stall("the interrupt does not go away")
    }

    /// Some time passes.
    fn wait(&mut self) -> Stall {
        for _ in 0..20 {
            self.service()?;
            self.r.bench.advance(200_000);
        }
        self.service()
    }

    /// The watchdog's seconds, in which nothing is left in the queue, and something of what was sent comes back.
    fn watchdog(&mut self) -> Stall {
        for _ in 0..8 {
            self.wait()?;
            self.r.bench.advance(1_000_000_000);
            self.service()?;
            if self.tx_timer != 0 {
                self.tx_intr()?;
            }
            must(self.tx_timer != 1, "transmission timeout")?;
            self.tx_timer = self.tx_timer.saturating_sub(1);
        }
        must(self.queue.is_empty(), "packets are left in the queue")
    }

    fn receives(&mut self) -> Stall {
        self.wait()?;
        must(self.cmdmode & SR != 0, "the receiver was never started again")?;
        must(self.r.read(5) >> 17 & 7 == 3, "the receiver does not wait for frames")
    }

    /// Sends `count` packets at once, which have to go out.
    fn sends(&mut self, count: usize, seed: u8) -> Stall {
        let packets: Vec<_> = (0..count).map(|n| frame(BROADCAST, 60 + n * 7 % 1455, seed ^ n as u8)).collect();
        self.r.net.sent();
        self.queue.extend(packets.iter().cloned());
        self.start()?;
        self.watchdog()?;
        must(self.r.net.sent() == packets, "other frames went out")
    }

    /// What came in of these; the cable holds a frame back while the card wants none.
    fn comes(&mut self, frames: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, String> {
        self.got.clear();
        for frame in frames {
            for tries in 0.. {
                if self.r.net.put(frame) {
                    break;
                }
                must(tries < 10, "reception has ended")?;
                self.wait()?;
            }
        }
        self.wait()?;
        Ok(std::mem::take(&mut self.got))
    }

    fn passes(&mut self, frames: &[Vec<u8>], others: &[Vec<u8>], why: &str) -> Stall {
        let all: Vec<_> = others.iter().chain(frames).cloned().collect();
        let came = self.comes(&all)?;
        must(came == frames, why)
    }
}

/// A word of the ROM, clocked as de does it.
fn srom_word(r: &mut Rig, address: u32) -> u16 {
    const SELECT: u32 = 0x4800;
    r.write(9, 0x800);
    r.write(9, SELECT);
    r.write(9, SELECT | 1);
    r.write(9, SELECT | 3);
    for n in (0..9).rev() {
        let di = (0b110 << 6 | address) >> n & 1;
        for sk in [0, 1] {
            r.write(9, SELECT | 1 | di << 2 | sk << 1);
        }
    }
    r.write(9, SELECT | 1);
    let word = (0..16).fold(0, |word, _| {
        r.write(9, SELECT | 3);
        let bit = r.read(9) >> 3 & 1;
        r.write(9, SELECT | 1);
        word << 1 | bit as u16
    });
    r.write(9, SELECT);
    r.write(9, 0);
    word
}

fn group(n: u8) -> [u8; 6] {
    [0x33, 0x33, 0xff, 0, 0x40, n]
}

/// All that de does in a day.
fn scenario(by_memory: bool) -> Stall {
    let mut de = De::attach(by_memory)?;
    de.reset();
    de.init()?;
    de.receives()?;

    // The medium is probed with a frame to itself, of 17 bytes.
    de.txprobe = true;
    de.intrmask |= sts::TI;
    de.r.write(7, de.intrmask);
    let test = frame(MAC, 17, 0);
    must(de.txput(&test)?, "no room for the probe")?;
    de.wait()?;
    must(!de.txprobe, "the probe never ended")?;
    must(!de.probe_failed, "autosense failed: cable problem?")?;
    let out = de.r.net.sent();
    must(out.len() == 1 && out[0].len() == 60 && out[0][..17] == test, "the probe is no frame")?;
    de.init()?;

    // Traffic both ways, beyond the ends of the rings, with TI masked.
    for seed in 0..5 {
        de.sends(60, seed)?;
        let frames: Vec<_> = (0..45).map(|n| frame(MAC, 60 + n * 33 % 1455, seed ^ n as u8)).collect();
        let others = [frame([0, 0x15, 0x5d, 1, 2, 4], 60, 1), frame(group(0), 60, 2)];
        de.passes(&frames, &others, "frames were lost, or came that were for others")?;
    }
    must(de.intrmask & sts::TI == 0, "TI is masked while there is room")?;

    // Frames come together, and each finds the driver ready.
    must(de.most == 1, "answers stay in the queue")?;
    // Packets are there together, and OpenBSD starts de once.
    de.queue.extend((0..TX_COUNT).map(|n| frame(BROADCAST, 60, n as u8)));
    de.start()?;
    de.service()?;
    must(de.r.net.sent().len() == TX_COUNT, "a full ring stops the driver")?;
    for count in [1, 2, 7] {
        de.queue.extend((0..count).map(|n| frame(BROADCAST, 60, n)));
        de.start_by_softnet()?;
        de.service()?;
        must(de.r.net.sent().len() == usize::from(count) && de.queue.is_empty(), "packets stay in the queue")?;
    }
    // A medium without traffic, for long: there is room again.
    for _ in 0..10 {
        de.watchdog()?;
    }
    must(de.tx_free == TX_COUNT, "what was sent has not come back")?;

    // The bus is slow: the ring fills, and TI is awaited again.
    de.r.net.sent();
    de.r.bench.config_write(0x04, 2, 3);
    de.queue.extend((0..200).map(|n| frame(BROADCAST, 60, n)));
    de.start()?;
    de.wait()?;
    must(de.want_txstart && de.intrmask & sts::TI != 0, "200 packets fit into the ring")?;
    de.r.bench.config_write(0x04, 2, 7);
    de.watchdog()?;
    must(de.r.net.sent().len() == 200, "packets were lost")?;

    // A burst that the driver is too busy for: all descriptors used up, and one frame missed.
    let burst: Vec<_> = (0..RX_TARGET as u8 + 1).map(|n| frame(MAC, 100, n)).collect();
    de.got.clear();
    for frame in &burst {
        de.r.cell.event(Event::Frame(frame.clone()));
        de.r.bench.advance(25_000_000);
    }
    de.r.cell.event(Event::Frame(frame(MAC, 100, 99)));
    de.wait()?;
    must(de.got == burst, "what came before an overflow was lost")?;
    let after: Vec<_> = (0..50).map(|n| frame(MAC, 100, n)).collect();
    de.passes(&after, &[], "reception has ended after a burst")?;

    // Groups are joined, as each IPv6 address does, with frames and setup frames on their way: a list, then hashes.
    for (from, to) in [(0, 12), (12, 20)] {
        for n in from..to {
            de.queue.push_back(frame(BROADCAST, 90, n));
            de.start()?;
            de.join(group(n))?;
            if n % 3 == 0 {
                de.service()?;
            }
        }
        de.receives()?;
        de.watchdog()?;
        let mine: Vec<_> = (0..to).map(|n| frame(group(n), 90, n)).chain([frame(BROADCAST, 90, 0)]).collect();
        de.passes(&mine, &[frame(group(0x81), 90, 0)], "groups are not let in, or others are")?;
        de.sends(130, to)?;
    }
    de.groups.clear();
    de.allmulti = true;
    de.addr_filter();
    de.init()?;
    de.receives()?;
    let all = [frame(group(77), 90, 0), frame(BROADCAST, 90, 1), frame(MAC, 90, 2)];
    de.passes(&all, &[frame([0, 0x15, 0x5d, 1, 2, 4], 60, 1)], "not all groups are let in")?;
    de.allmulti = false;

    // An overflow as other chips have them, and down and up under traffic.
    de.overflow()?;
    for n in 0..3 {
        de.queue.extend((0..10).map(|k| frame(BROADCAST, 60, k)));
        de.start()?;
        de.queue.clear();
        de.reset();
        de.init()?;
        de.receives()?;
        de.sends(140, n)?;
        de.passes(&[frame(MAC, 700, n)], &[], "nothing comes after up")?;
    }

    // Linux prepares its setup frame first, and starts the transmitter behind it.
    de.reset();
    de.r.write(7, ALL);
    de.r.descriptor(TX_RING, [OWN, FS | LS | SET | IC | 192, SETUP as u32, 0]);
    de.r.write(6, de.cmdmode | ST);
    must(de.r.word(TX_RING) & OWN == 0 && de.r.irq(), "a list that was there before ST is not looked at")
}

#[test]
fn de_runs_by_ports_and_by_memory() {
    for by_memory in [false, true] {
        scenario(by_memory).expect("no stall");
    }
}

#[test]
fn de_stalls_when_any_of_the_rules_is_broken() {
    for &rule in RULES {
        Rule::set_broken(Some(rule));
        let ended = std::panic::catch_unwind(|| scenario(true));
        Rule::set_broken(None);
        match ended {
            Ok(Err(why)) => println!("{rule:?}: {why}"),
            Ok(Ok(())) => panic!("nobody notices without {rule:?}"),
            Err(_) => panic!("{rule:?}: the driver panics"),
        }
    }
}
