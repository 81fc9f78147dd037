//! The bus as one vCPU sees it: ports and device memory, looked up in a snapshot of its own.

use std::sync::Arc;

use crate::ram::{Ram, RamAddr};
use crate::space::{AddressSpace, FlatRange, Follower, Map, PortRange, Target, find};

/// A guest's access to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// What was done: `in`, `out`, `read`, `write`.
    pub kind: &'static str,
    /// Port or guest physical address.
    pub addr: u64,
    /// Bytes.
    pub width: u8,
    /// What was read or written.
    pub value: u64,
}

/// The last accesses to devices, for the report of a crash.
#[derive(Default)]
struct Exits {
    ring: [Option<Exit>; 8],
    next: usize,
}

impl Exits {
    #[inline]
    fn note(&mut self, kind: &'static str, addr: u64, width: u8, value: u64) {
        self.ring[self.next % 8] = Some(Exit { kind, addr, width, value });
        self.next = self.next.wrapping_add(1);
    }
}

/// One vCPU's view of the machine.
pub struct CpuBus {
    space: Arc<AddressSpace>,
    map: Arc<Map>,
    last_read: usize,
    last_write: usize,
    exits: Exits,
    follower: Arc<Follower>,
}

impl CpuBus {
    /// A view of `space`.
    pub fn new(space: Arc<AddressSpace>) -> CpuBus {
        let (map, follower) = (space.map(), space.follow());
        CpuBus { space, map, last_read: 0, last_write: 0, exits: Exits::default(), follower }
    }

    /// The arena.
    pub fn ram(&self) -> &Arc<Ram> {
        self.space.ram()
    }

    /// The space.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// The last accesses to devices, the oldest first; of string instructions not every element.
    pub fn exits(&self) -> impl Iterator<Item = Exit> {
        let (newer, older) = self.exits.ring.split_at(self.exits.next % 8);
        older.iter().chain(newer).filter_map(|e| *e)
    }

    /// The generation of the machine's map. A CPU that caches translations drops them when it moves.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.space.generation()
    }

    /// A CPU that caches translations starts to run, with those of `generation`. It looks at [`CpuBus::generation`]
    /// before it goes by them.
    pub fn starts(&self, generation: u64) {
        self.follower.starts(generation);
    }

    /// It has dropped the translations of maps before `generation`.
    pub fn follows(&self, generation: u64) {
        self.follower.follows(generation);
    }

    /// It does not run.
    pub fn rests(&self) {
        self.follower.rests();
    }

    /// The up-to-date map.
    #[inline]
    pub fn map(&mut self) -> &Map {
        self.refresh();
        &self.map
    }

    /// Whether anything is at a guest physical address for reads, or for writes.
    pub fn answers(&mut self, gpa: u64, write: bool) -> bool {
        let map = self.map();
        find(if write { &map.write } else { &map.read }, gpa).is_some()
    }

    #[inline]
    fn refresh(&mut self) {
        if self.map.generation != self.space.generation() {
            self.map = self.space.map();
        }
    }

    /// IN: reads `width` (1, 2 or 4) bytes.
    #[inline]
    pub fn pio_read(&mut self, port: u16, width: u8) -> u32 {
        self.refresh();
        let value = match self.map.port(port) {
            Some(r) if whole(r, port, width) => {
                r.access.read(r.region, u64::from(port - r.base), width) as u32 & (u32::MAX >> (32 - 8 * width))
            }
            _ => self.pio_read_split(port, width),
        };
        self.exits.note("in", u64::from(port), width, u64::from(value));
        value
    }

    #[cold]
    fn pio_read_split(&mut self, port: u16, width: u8) -> u32 {
        let mut value = 0;
        let mut at = 0;
        while at < width {
            let p = port.wrapping_add(u16::from(at));
            let (part, step) = match self.map.port(p) {
                None => (0xff, 1),
                Some(r) => {
                    let step = fit(r, p, width - at);
                    (r.access.read(r.region, u64::from(p - r.base), step) as u32 & (u32::MAX >> (32 - 8 * step)), step)
                }
            };
            value |= part << (8 * at);
            at += step;
        }
        value
    }

    /// OUT: writes `width` (1, 2 or 4) bytes.
    #[inline]
    pub fn pio_write(&mut self, port: u16, width: u8, value: u32) {
        self.refresh();
        self.exits.note("out", u64::from(port), width, u64::from(value));
        if self.ring(u64::from(port), true, width, u64::from(value)) {
            return;
        }
        let map = &self.map;
        let mut at = 0;
        while at < width {
            let p = port.wrapping_add(u16::from(at));
            at += match map.port(p) {
                None => 1,
                Some(r) => {
                    let step = if at == 0 && whole(r, p, width) { width } else { fit(r, p, width - at) };
                    let part = (value >> (8 * at)) & (u32::MAX >> (32 - 8 * step));
                    r.access.write(r.region, u64::from(p - r.base), step, u64::from(part));
                    step
                }
            };
        }
    }

    /// REP INS: `buf.len() / width` reads of one port.
    pub fn pio_read_many(&mut self, port: u16, width: u8, buf: &mut [u8]) {
        self.refresh();
        if let Some(r) = self.map.port(port)
            && whole(r, port, width)
        {
            return r.access.read_many(r.region, u64::from(port - r.base), width, buf);
        }
        for item in buf.chunks_exact_mut(width as usize) {
            item.copy_from_slice(&self.pio_read(port, width).to_le_bytes()[..width as usize]);
        }
    }

    /// REP OUTS: `data.len() / width` writes of one port.
    pub fn pio_write_many(&mut self, port: u16, width: u8, data: &[u8]) {
        self.refresh();
        if let Some(r) = self.map.port(port)
            && whole(r, port, width)
            && self.map.doorbells().is_empty()
        {
            return r.access.write_many(r.region, u64::from(port - r.base), width, data);
        }
        for item in data.chunks_exact(width as usize) {
            let mut value = [0; 4];
            value[..item.len()].copy_from_slice(item);
            self.pio_write(port, width, u32::from_le_bytes(value));
        }
    }

    /// Reads `width` (1 to 8, not crossing a page) bytes of physical memory, wherever they lead.
    pub fn read(&mut self, gpa: u64, width: u8) -> u64 {
        self.refresh();
        let mut value = 0;
        let mut at = 0;
        while at < width {
            let addr = gpa.wrapping_add(u64::from(at));
            let (part, step) = match lookup(&self.map.read, &mut self.last_read, addr) {
                None => (0xff, 1),
                Some(r) => {
                    let step = chunk(r, addr, width - at);
                    let part = match &r.target {
                        Target::Ram(ram) => {
                            let mut buf = [0; 8];
                            self.space.ram().read(RamAddr(ram.0 + (addr - r.start)), &mut buf[..step as usize]);
                            u64::from_le_bytes(buf)
                        }
                        Target::Io(access, region, offset, _) => {
                            let part = access.read(*region, offset + (addr - r.start), step);
                            self.exits.note("read", addr, step, part & (u64::MAX >> (64 - 8 * step)));
                            part
                        }
                    };
                    (part & (u64::MAX >> (64 - 8 * step)), step)
                }
            };
            value |= part << (8 * at);
            at += step;
        }
        value
    }

    /// Writes `width` (1 to 8, not crossing a page) bytes of physical memory, wherever they lead.
    pub fn write(&mut self, gpa: u64, width: u8, value: u64) {
        self.refresh();
        if self.ring(gpa, false, width, value) {
            return;
        }
        let mut at = 0;
        while at < width {
            let addr = gpa.wrapping_add(u64::from(at));
            at += match lookup(&self.map.write, &mut self.last_write, addr) {
                None => 1,
                Some(r) => {
                    let step = chunk(r, addr, width - at);
                    let part = (value >> (8 * at)) & (u64::MAX >> (64 - 8 * step));
                    match &r.target {
                        Target::Ram(ram) => self
                            .space
                            .ram()
                            .write(RamAddr(ram.0 + (addr - r.start)), &part.to_le_bytes()[..step as usize]),
                        Target::Io(access, region, offset, _) => {
                            self.exits.note("write", addr, step, part);
                            access.write(*region, offset + (addr - r.start), step, part);
                        }
                    }
                    step
                }
            };
        }
    }

    #[inline]
    fn ring(&self, addr: u64, port: bool, width: u8, value: u64) -> bool {
        self.map.doorbell(port, addr, width, value).inspect(|d| (d.ring)()).is_some()
    }
}

fn lookup<'a>(ranges: &'a [FlatRange], last: &mut usize, addr: u64) -> Option<&'a FlatRange> {
    if let Some(r) = ranges.get(*last)
        && r.start <= addr
        && addr < r.end
    {
        return Some(r);
    }
    *last = find(ranges, addr)?;
    Some(&ranges[*last])
}

/// Whether an access can be passed on as it is.
#[inline]
fn whole(r: &PortRange, port: u16, width: u8) -> bool {
    width <= r.widths.max && u32::from(port - r.base) + u32::from(width) <= r.len
}

/// The widest power of two that the owner takes at this port.
fn fit(r: &PortRange, port: u16, want: u8) -> u8 {
    let room = r.len - u32::from(port - r.base);
    let mut step = r.widths.max.min(4);
    while step > 1 && (step > want || u32::from(step) > room || u32::from(port) % u32::from(step) != 0) {
        step /= 2;
    }
    step
}

/// The widest power of two that a memory range takes at this address.
fn chunk(r: &FlatRange, addr: u64, want: u8) -> u8 {
    let mut step = match &r.target {
        Target::Ram(_) => 8,
        Target::Io(_, _, _, widths) => widths.max.min(8),
    };
    while step > 1 && (step > want || u64::from(step) > r.end - addr) {
        step /= 2;
    }
    step
}
