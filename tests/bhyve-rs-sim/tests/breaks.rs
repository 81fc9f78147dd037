//! hv::Vmm, broken on purpose: a kernel in between changes what it asks for, and the simulator must notice.
//!
//! The guest is a few instructions in flat 32-bit code on two processors: ports in and out, string I/O, an MSR, an
//! interrupt line, an MSI, INIT and SIPI, and at the end both processors halt for good.

use std::ffi::c_void;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cpu::Segment;
use emu::{AddressSpace, Backing, Clock, Machine, Ram, Rights};
use hv::{Exit, Hypervisor, Vcpu, VmConfig, Vmm};
use vmm_sim::{Sim, Version};
use vmmapi_sys::{Access, Kernel, Node};

/// What to do to a request on its way: its code and its bytes. `true`: it is swallowed.
type Bend = fn(&dyn Node, &mut u32, &mut [u8]) -> bool;

/// A kernel in front of another.
struct Bent {
    sim: Arc<Sim>,
    bend: Bend,
}

impl Kernel for Bent {
    fn sysctl(&self, name: &str) -> io::Result<i64> {
        self.sim.sysctl(name)
    }

    fn set_sysctl(&self, name: &str, value: &[u8]) -> io::Result<()> {
        self.sim.set_sysctl(name, value)
    }

    fn module(&self, name: &str) -> bool {
        self.sim.module(name)
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        self.sim.load_module(name)
    }

    fn open(&self, path: &str, access: Access) -> io::Result<Box<dyn Node>> {
        Ok(Box::new(BentNode { node: self.sim.open(path, access)?, bend: self.bend }))
    }
}

struct BentNode {
    node: Box<dyn Node>,
    bend: Bend,
}

#[expect(unsafe_code, reason = "the trait's")]
impl Node for BentNode {
    unsafe fn ioctl(&self, request: u32, arg: *mut c_void) -> io::Result<()> {
        let len = (request >> 16 & 0x1fff) as usize;
        let mut code = request;
        let mut bytes = vec![0u8; len];
        // SAFETY: the caller's argument has as many bytes as its request says.
        unsafe { std::ptr::copy_nonoverlapping(arg.cast::<u8>(), bytes.as_mut_ptr(), len) };
        let sent = bytes.clone();
        if (self.bend)(self.node.as_ref(), &mut code, &mut bytes) {
            return Ok(());
        }
        if code == request && bytes == sent {
            // SAFETY: the caller's.
            return unsafe { self.node.ioctl(request, arg) };
        }
        bytes.resize((code >> 16 & 0x1fff) as usize, 0);
        // SAFETY: as many bytes as the bent code says; pointers in it are the caller's.
        let done = unsafe { self.node.ioctl(code, bytes.as_mut_ptr().cast()) };
        let back = bytes.len().min(len);
        // SAFETY: inside the caller's argument.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), arg.cast::<u8>(), back) };
        done
    }

    unsafe fn map(&self, at: *mut u8, len: usize, offset: u64) -> io::Result<()> {
        // SAFETY: the caller's.
        unsafe { self.node.map(at, len, offset) }
    }
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn get(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Sends a request of the test's own.
#[expect(unsafe_code, reason = "a request by hand")]
fn send(node: &dyn Node, code: u32, words: &[u32]) {
    let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    // SAFETY: as many words as the code says.
    let _ = unsafe { node.ioctl(code, bytes.as_mut_ptr().cast()) };
}

const RUN_13: u32 = 0xc090_7601;
const RUN_14: u32 = 0x8020_7601;

/// Makes VM_RUN of 14 in the caller's place.
#[expect(unsafe_code, reason = "a request of the caller's")]
fn run_14(node: &dyn Node, bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: the caller's argument, with its pointers.
    unsafe { node.ioctl(RUN_14, bytes.as_mut_ptr().cast()) }
}

/// The exit of VM_RUN of 14, which user space will look at.
#[expect(unsafe_code, reason = "where the caller's request points to")]
fn exit_14(bytes: &mut [u8]) -> &mut [u8; 136] {
    let at = u64::from_le_bytes(bytes[24..32].try_into().unwrap()) as usize;
    // SAFETY: the caller has room for an exit there, which nobody else looks at until the request is over.
    unsafe { &mut *std::ptr::with_exposed_provenance_mut::<[u8; 136]>(at) }
}

struct Break {
    what: &'static str,
    version: Version,
    bend: Bend,
    says: &'static str,
}

const BREAKS: &[Break] = &[
    Break {
        what: "a port of the kernel's is emulated",
        version: Version::V14,
        bend: |_, code, b| {
            static SET: AtomicU32 = AtomicU32::new(0);
            // The registers of a processor that is to reach the port, and its run.
            if *code == 0x8018_7618 && get(b, 4) == 7 {
                SET.fetch_add(1, Ordering::Relaxed);
            }
            if *code != RUN_14 || get(b, 0) != 0 || SET.load(Ordering::Relaxed) != 1 {
                return false;
            }
            let exit = exit_14(b);
            // OUT to port 80 of a number that was made up.
            exit.fill(0);
            put(exit, 4, 2);
            put(exit, 16, 1 | 0x80 << 16);
            put(exit, 20, 0x5a);
            true
        },
        says: "string I/O at the kernel's port 0x71",
    },
    Break {
        what: "an exit is acted on that VM_RUN did not write",
        version: Version::V14,
        bend: |node, code, b| {
            let runs = *code == RUN_14 && get(b, 0) == 0;
            if runs {
                let _ = run_14(node, b);
            }
            runs
        },
        says: "VM_RUN failed with EINTR, and an exit",
    },
    Break {
        what: "the kernel's own decoding of an instruction is believed",
        version: Version::V14,
        bend: |node, code, b| {
            if *code != RUN_14 || get(b, 0) != 0 {
                return false;
            }
            let done = run_14(node, b);
            let exit = exit_14(b);
            if done.is_ok() && get(exit, 0) == 9 {
                // The register in ModRM, from where the kernel has it.
                let vie = &mut exit[16 + 56..];
                vie[1] = vie[1] & !0x38 | vie[19] >> 1 & 0x38;
            }
            done.is_ok()
        },
        says: "a load from a device, and register 1,",
    },
    Break {
        what: "message and address of an MSI change places",
        version: Version::V14,
        bend: |_, code, b| {
            if *code == 0x8010_7624 {
                b.rotate_left(8);
            }
            false
        },
        says: "it and the message are swapped",
    },
    Break {
        what: "an interrupt line is asserted twice",
        version: Version::V13,
        bend: |node, code, b| {
            if *code == 0x8008_7650 {
                send(node, *code, &[get(b, 0), get(b, 4)]);
            }
            false
        },
        says: "is asserted twice",
    },
    Break {
        what: "the boot ROM's segment has its number of 14",
        version: Version::V15,
        bend: |_, code, b| {
            if *code == 0x8038_760e && get(b, 0) == 8 {
                put(b, 0, 1);
            }
            false
        },
        says: "segment 1 is system memory in 15",
    },
    Break {
        what: "padding is not cleared",
        version: Version::V14,
        bend: |_, code, b| {
            if *code == 0x8028_7610 {
                put(b, 12, 0x5a5a_5a5a);
            }
            false
        },
        says: "padding, are not 0",
    },
    Break {
        what: "a request has another size",
        version: Version::V15,
        bend: |_, code, _| {
            if *code == 0x8010_7624 {
                *code = 0x8018_7624;
            }
            false
        },
        says: "no request 0x80187624",
    },
    Break {
        what: "VM_RUN of another kernel",
        version: Version::V14,
        bend: |node, code, b| {
            if *code == RUN_14 && get(b, 0) == 0 {
                static RUNS: AtomicBool = AtomicBool::new(false);
                if RUNS.swap(true, Ordering::Relaxed) {
                    send(node, RUN_13, &[0; 36]);
                }
            }
            false
        },
        says: "no request 0xc0907601",
    },
    Break {
        what: "real mode without the capability for it",
        version: Version::V13,
        bend: |_, code, b| *code == 0x8010_7602 && get(b, 4) == 3,
        says: "UNRESTRICTED_GUEST is off",
    },
    Break {
        what: "RAX is not written after IN",
        version: Version::V15,
        bend: |_, code, b| *code == 0x8010_7614 && get(b, 4) == 0,
        says: "IN, and RAX was not set",
    },
    Break {
        what: "RIP is advanced",
        version: Version::V14,
        bend: |node, code, b| {
            if *code == 0x8010_7614 && get(b, 4) == 0 {
                // Behind `in al,dx`.
                send(node, *code, &[0, 20, ENTRY as u32 + 6, 0]);
            }
            false
        },
        says: "user space advances RIP",
    },
    Break {
        what: "a processor that a SIPI starts is not released",
        version: Version::V14,
        bend: |_, code, b| *code == 0x8004_765d && get(b, 0) == 1,
        says: "was started by a SIPI and is still held",
    },
    Break {
        what: "a processor starts elsewhere than the SIPI says",
        version: Version::V15,
        bend: |_, code, b| {
            if *code == 0x8018_7616 && get(b, 0) == 1 && get(b, 4) == 23 && get(b, 8) == 0x9000 {
                put(b, 8, 0x8000);
            }
            false
        },
        says: "vCPU 1 was started at page 0x9",
    },
    Break {
        what: "the topology's last word is used",
        version: Version::V15,
        bend: |_, code, b| {
            if *code == 0x8008_763f {
                b[6] = 1;
            }
            false
        },
        says: "maxcpus is not 0",
    },
    Break {
        what: "a set of processors that is too small",
        version: Version::V14,
        bend: |_, code, b| {
            if *code == RUN_14 {
                put(b, 16, 32);
            }
            false
        },
        says: "a set of 32 bytes",
    },
    Break {
        what: "VM_RUN after SUSPENDED",
        version: Version::V13,
        bend: |node, code, b| {
            if *code == 0x8010_765b && get(b, 0) == 1 {
                return false;
            }
            if *code == RUN_13 && get(b, 0) == 0 {
                static DONE: AtomicBool = AtomicBool::new(false);
                if !DONE.swap(true, Ordering::Relaxed) {
                    send(node, 0x8004_7604, &[1]);
                    std::thread::scope(|s| {
                        let other = s.spawn(|| send(node, RUN_13, &[&[1], &[0; 35][..]].concat()));
                        send(node, RUN_13, &[0; 36]);
                        let _ = other.join();
                    });
                }
            }
            false
        },
        says: "after it was told SUSPENDED",
    },
];

const ENTRY: u64 = 0x1000;
const MEMORY: u64 = 4 << 20;
/// The other processor's code, at the page of the SIPI.
const OTHER: u64 = 0x9000;

/// Flat 32-bit code.
fn guest() -> Vec<u8> {
    let mut code = vec![0xba, 0, 1, 0, 0, 0xec, 0xe6, 0x80];
    // mov ecx,8B; rdmsr
    code.extend([0xb9, 0x8b, 0, 0, 0, 0x0f, 0x32]);
    // mov edi,5000; mov ecx,3; rep insb
    code.extend([0xbf, 0, 0x50, 0, 0, 0xb9, 3, 0, 0, 0, 0xf3, 0x6c]);
    // mov edx,71; insb: of the kernel's RTC. mov ecx,[FE000000]
    code.extend([0xba, 0x71, 0, 0, 0, 0x6c, 0x8b, 0x0d, 0, 0, 0, 0xfe]);
    for (at, value) in [(0xfee0_0310u32, 1u32 << 24), (0xfee0_0300, 0x4500), (0xfee0_0300, 0x4609)] {
        code.extend([0xc7, 0x05]);
        code.extend(at.to_le_bytes());
        code.extend(value.to_le_bytes());
    }
    // cli; out 81,al; jmp to the out
    code.extend([0xfa, 0xe6, 0x81, 0xeb, 0xfc]);
    code
}

/// Runs flat 32-bit code on two processors over a bent kernel, until `enough` says so or for a while.
fn run(version: Version, bend: Bend, code: &[u8], enough: impl Fn(&Sim) -> bool) -> Arc<Sim> {
    run_on(Sim::new(version), bend, code, enough)
}

fn run_on(sim: Arc<Sim>, bend: Bend, code: &[u8], enough: impl Fn(&Sim) -> bool) -> Arc<Sim> {
    sim.record();
    sim.no_bogus();
    sim.patience(Duration::from_millis(200));
    let kernel = Arc::new(Bent { sim: sim.clone(), bend });
    let ram = Arc::new(Ram::new(16 << 20).unwrap());
    let block = ram.alloc("ram", MEMORY).unwrap();
    let space = AddressSpace::new(ram.clone());
    let id = space.add_memory(0, MEMORY, 0, Rights::ReadWrite, Backing::Ram(block.start));
    space.enable(id, 0, true);
    // Boot ROM, for the segment.
    let rom = ram.alloc("rom", 0x1_0000).unwrap();
    let id = space.add_memory(0xffff_0000, 0x1_0000, 0, Rights::Read, Backing::Ram(rom.start));
    space.enable(id, 0xffff_0000, true);
    let machine = Machine::new(space, Clock::running());
    machine.clock().resume();
    let config =
        VmConfig { name: "breaks".to_owned(), cpus: 2, model: cpu::Model::default(), plain: false, keep: false };
    let Ok(vm) = Vmm::over(kernel, "vmm-sim").create(&machine, &config) else { return sim };
    let mut vcpus = vm.take_vcpus();
    vcpus.iter_mut().for_each(|v| v.reset());
    let at = |n: u64| emu::RamAddr(block.start.0 + n);
    ram.write(at(ENTRY), code);
    ram.write(at(OTHER), &[0xfa, 0xf4]);
    start(vcpus[0].as_mut());
    if let Some(chips) = vm.chips() {
        chips.isa().set_irq(4, true);
        chips.isa().set_irq(4, false);
    }
    vm.msi().msi(0xfee0_0000, 0x31);
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for mut vcpu in vcpus {
            let done = &done;
            s.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    if matches!(vcpu.run(1000), Exit::Failed(_) | Exit::TripleFault(_) | Exit::Halted) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(20);
        while !enough(&sim) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        done.store(true, Ordering::Relaxed);
        (0..2).for_each(|n| vm.kick(n));
    });
    sim
}

/// Flat 32-bit code at [`ENTRY`].
fn start(vcpu: &mut dyn Vcpu) {
    let mut regs = vcpu.regs().unwrap();
    let data = Segment { selector: 0x10, base: 0, limit: u32::MAX, access: 0xc093 };
    (regs.ds, regs.es, regs.ss, regs.fs, regs.gs) = (data, data, data, data, data);
    regs.cs = Segment { selector: 8, access: 0xc09b, ..data };
    (regs.rip, regs.cr0, regs.rflags) = (ENTRY, 0x31, 2);
    vcpu.set_regs(&regs).unwrap();
}

#[test]
fn each_break_is_noticed_and_nothing_is_broken_without_one() {
    const STARTED: u64 = 10;
    for version in Version::ALL {
        let asked = |sim: &Sim| sim.exits().get("INOUT").is_some_and(|n| *n > STARTED);
        let sim = Sim::new(version);
        sim.interrupts();
        let sim = run_on(sim, |_, _, _| false, &guest(), asked);
        assert_eq!(sim.violations(), Vec::<String>::new(), "{version:?}, as it is");
        assert!(asked(&sim), "{version:?}: {:?}", sim.exits());
        let start = if version == Version::V13_1 { "SPINUP_AP" } else { "IPI" };
        assert!(sim.exits().contains_key(start), "{version:?}: {:?}", sim.exits());
    }
    for b in BREAKS {
        let sim = Sim::new(b.version);
        if b.says.contains("EINTR") {
            sim.interrupts();
        }
        let said = run_on(sim, b.bend, &guest(), |sim| !sim.violations().is_empty()).violations();
        assert!(said.iter().any(|v| v.contains(b.says)), "{}: {said:?}", b.what);
    }
}

#[test]
fn a_port_out_costs_one_system_call_and_a_port_in_two() {
    const COUNT: u32 = 1000;
    // mov ecx,COUNT; out 80,al; loop; mov ecx,COUNT; in al,81; loop; jmp to itself
    let mut code = Vec::new();
    for port in [[0xe6, 0x80], [0xe4, 0x81]] {
        code.push(0xb9);
        code.extend(COUNT.to_le_bytes());
        code.extend(port);
        code.extend([0xe2, 0xfc]);
    }
    code.extend([0xeb, 0xfe]);
    let all = u64::from(2 * COUNT);
    let sim = run(Version::V15, |_, _, _| false, &code, |sim| sim.exits().get("INOUT") == Some(&all));
    let (requests, exits) = (sim.requests(), sim.exits());
    assert_eq!(exits.get("INOUT"), Some(&all));
    // What the machine's start and the other processor's looks into the kernel cost beside.
    let runs = requests["VM_RUN"] - exits.values().sum::<u64>();
    assert!(runs <= 2, "VM_RUN without an exit: {runs}");
    let others = requests.iter().filter(|(name, _)| **name != "VM_RUN" && **name != "VM_SUSPEND_CPU");
    let others = others.filter(|(name, _)| **name != "VM_RESUME_CPU").map(|(_, n)| n).sum::<u64>();
    assert!((u64::from(COUNT)..u64::from(COUNT) + 200).contains(&others), "{requests:?}");
    assert_eq!(sim.violations(), Vec::<String>::new());
}
