//! Requests by hand: bytes to a node, as no library of ours would make them.

#![allow(dead_code, reason = "each test uses a part")]

use std::sync::Arc;

use vmm_sim::{Sim, Version};
use vmmapi_sys::{Access, Kernel, Node};

/// A VM with 2 MiB of memory.
pub struct Guest {
    pub sim: Arc<Sim>,
    pub version: Version,
    pub control: Option<Box<dyn Node>>,
    pub node: Box<dyn Node>,
}

/// Bytes of memory.
pub const MEMORY: usize = 2 << 20;

/// An argument: little-endian fields one after the other.
#[derive(Clone, Default)]
pub struct Arg(pub Vec<u8>);

impl Arg {
    pub fn i32(mut self, v: i32) -> Arg {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub fn u64(mut self, v: u64) -> Arg {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub fn bytes(mut self, v: &[u8]) -> Arg {
        self.0.extend(v);
        self
    }
}

pub fn arg() -> Arg {
    Arg::default()
}

pub const SET_REGISTER: u32 = 0x8010_7614;
pub const GET_REGISTER: u32 = 0xc010_7615;
pub const SET_SEGMENT: u32 = 0x8018_7616;
pub const ACTIVATE: u32 = 0x8004_765a;
pub const SUSPEND: u32 = 0x8004_7604;
pub const MMAP: u32 = 0x8028_7610;
pub const SET_CAPABILITY: u32 = 0x8010_7602;
pub const RAX: i32 = 0;
pub const RBX: i32 = 1;
pub const RIP: i32 = 20;

/// An exit.
#[derive(Debug)]
pub struct Exit(pub [u8; 136]);

impl Exit {
    pub fn code(&self) -> i32 {
        self.u32(0) as i32
    }

    pub fn len(&self) -> u32 {
        self.u32(4)
    }

    pub fn rip(&self) -> u64 {
        self.u64(8)
    }

    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.0[at..at + 2].try_into().unwrap())
    }

    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }
}

/// Makes a request.
#[expect(unsafe_code, reason = "what the test is about")]
pub fn ioctl(node: &dyn Node, code: u32, arg: &mut Arg) -> Result<(), i32> {
    let size = (code >> 16 & 0x1fff) as usize;
    assert_eq!(size, arg.0.len(), "the test's own argument of {code:#x}");
    // SAFETY: as many bytes as the code says; pointers in it are the test's own buffers.
    unsafe { node.ioctl(code, arg.0.as_mut_ptr().cast()) }.map_err(|e| e.raw_os_error().unwrap_or(0))
}

impl Guest {
    /// A VM whose vCPU 0 is active, in real mode at 0:1000.
    pub fn new(version: Version) -> Guest {
        let guest = Guest::bare(Sim::new(version), version);
        guest.memory_at_0();
        guest.start_at(0, 0x1000);
        guest
    }

    /// A VM without memory.
    pub fn bare(sim: Arc<Sim>, version: Version) -> Guest {
        sim.no_bogus();
        let control = if version == Version::V15 {
            let control = sim.open("/dev/vmmctl", Access::ReadWrite).unwrap();
            let mut name = [0; 296];
            name[..4].copy_from_slice(b"test");
            name[232] = 1;
            ioctl(control.as_ref(), 0xc128_5600, &mut arg().bytes(&name)).unwrap();
            Some(control)
        } else {
            sim.set_sysctl("hw.vmm.create", b"test").unwrap();
            None
        };
        let node = sim.open("/dev/vmm/test", Access::ReadWrite).unwrap();
        Guest { sim, version, control, node }
    }

    pub fn new_segment(&self, id: i32, len: u64, name: &str) -> Result<(), i32> {
        let mut field = [0; 16];
        field[..name.len()].copy_from_slice(name.as_bytes());
        let arg = arg().i32(id).i32(0).u64(len).bytes(&field);
        if self.version == Version::V15 {
            self.ioctl(0x8038_760e, arg.u64(0).u64(0).i32(0).i32(0))
        } else {
            self.ioctl(0x8020_760e, arg)
        }
    }

    pub fn map(&self, gpa: u64, id: i32, offset: u64, len: u64, prot: i32) -> Result<(), i32> {
        self.ioctl(MMAP, arg().u64(gpa).i32(id).i32(0).u64(offset).u64(len).i32(prot).i32(0))
    }

    fn memory_at_0(&self) {
        self.new_segment(0, MEMORY as u64, "").unwrap();
        self.map(0, 0, 0, MEMORY as u64, 7).unwrap();
    }

    /// User space's view of memory.
    #[expect(unsafe_code, reason = "mmap(2)")]
    pub fn host(&self) -> *mut u8 {
        // SAFETY: a new mapping, and another in its place.
        unsafe {
            let at =
                libc::mmap(std::ptr::null_mut(), MEMORY, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANON, -1, 0);
            self.node.map(at.cast(), MEMORY, 0).unwrap();
            at.cast()
        }
    }

    /// Puts bytes into memory.
    #[expect(unsafe_code, reason = "guest memory")]
    pub fn put(&self, gpa: usize, bytes: &[u8]) {
        let host = self.host();
        // SAFETY: inside the mapping, which goes away after it.
        unsafe {
            host.add(gpa).copy_from(bytes.as_ptr(), bytes.len());
            libc::munmap(host.cast(), MEMORY);
        }
    }

    /// Makes a vCPU active, in real mode with CS 0.
    pub fn start_at(&self, n: i32, rip: u64) {
        self.ioctl(SET_CAPABILITY, arg().i32(n).i32(3).i32(1).i32(0)).unwrap();
        self.ioctl(ACTIVATE, arg().i32(n)).unwrap();
        self.set(n, 23, 0);
        self.ioctl(SET_SEGMENT, arg().i32(n).i32(23).u64(0).i32(0xffff).i32(0x93)).unwrap();
        self.set(n, RIP, rip);
    }

    pub fn set(&self, n: i32, register: i32, value: u64) {
        self.ioctl(SET_REGISTER, arg().i32(n).i32(register).u64(value)).unwrap();
    }

    pub fn get(&self, n: i32, register: i32) -> u64 {
        let mut a = arg().i32(n).i32(register).u64(0);
        ioctl(self.node.as_ref(), GET_REGISTER, &mut a).unwrap();
        u64::from_le_bytes(a.0[8..].try_into().unwrap())
    }

    pub fn ioctl(&self, code: u32, mut arg: Arg) -> Result<(), i32> {
        ioctl(self.node.as_ref(), code, &mut arg)
    }

    /// VM_RUN.
    pub fn run(&self, n: i32) -> Result<Exit, i32> {
        if self.version < Version::V14 {
            let mut a = arg().i32(n).i32(0).bytes(&[0; 136]);
            ioctl(self.node.as_ref(), 0xc090_7601, &mut a)?;
            return Ok(Exit(a.0[8..].try_into().unwrap()));
        }
        let (mut exit, mut cpus) = ([0u8; 136], [0u8; 128]);
        let a = arg().i32(n).i32(0).u64(cpus.as_mut_ptr() as u64).u64(128).u64(exit.as_mut_ptr() as u64);
        self.ioctl(0x8020_7601, a)?;
        Ok(Exit(exit))
    }

    /// The rule that the last calls broke.
    pub fn broken(&self) -> String {
        self.sim.violations().pop().unwrap_or_default()
    }
}
