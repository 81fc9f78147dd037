//! Hardware tasks and breakpoints of a guest over the simulated vmm.ko: the processor leaves them to user space.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cpu::Segment;
use emu::{Access, AddressSpace, Backing, Clock, Machine, Ram, RamAddr, Rights, Widths};
use hv::{Hypervisor, VmConfig, Vmm};
use vmm_sim::{Sim, Version};
use vmmapi_sys::{Kernel, Node};

/// What was written to port 80.
#[derive(Default)]
struct Port(Mutex<Vec<u8>>);

impl Access for Port {
    fn owner(&self) -> &str {
        "port"
    }

    fn read(&self, _: u32, _: u64, _: u8) -> u64 {
        0
    }

    fn write(&self, _: u32, _: u64, _: u8, value: u64) {
        self.0.lock().unwrap().push(value as u8);
    }
}

const GDT: u64 = 0x3000;
const TSS: [u64; 3] = [0x4000, 0x4100, 0x4200];
const IDT: u64 = 0x5000;

/// The guest's memory: three tasks, the first of which begins at 1000.
fn memory() -> Vec<u8> {
    let mut memory = vec![0; 0x9000];
    let mut put = |at: u64, bytes: &[u8]| memory[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    let out = |n: u8| [0xb0, n, 0xe6, 0x80];
    let first = [
        // lgdt [2F00]; lidt [2F08]; mov ax,18; ltr ax
        &[0x0f, 0x01, 0x15, 0x00, 0x2f, 0, 0, 0x0f, 0x01, 0x1d, 0x08, 0x2f, 0, 0][..],
        &[0x66, 0xb8, 0x18, 0, 0x0f, 0x00, 0xd8],
        &out(1),
        // jmp 20:0
        &[0xea, 0, 0, 0, 0, 0x20, 0],
        &out(3),
        // int 40
        &[0xcd, 0x40],
        &out(5),
        // int3
        &[0xcc],
        // mov ax,1000; mov ds,ax
        &[0x66, 0xb8, 0x00, 0x10, 0x8e, 0xd8],
        &out(8),
        // cli; hlt
        &[0xfa, 0xf4],
    ];
    put(0x1000, &first.concat());
    // jmp 18:0; iret, from where INT 40 came.
    put(0x1100, &[&out(2)[..], &[0xea, 0, 0, 0, 0, 0x18, 0], &out(4), &[0xcf]].concat());
    // pop eax; movzx eax,ah; out 80,al; add dword [4020],2, past the instruction that faulted; iret
    put(0x1200, &[0x58, 0x0f, 0xb6, 0xc4, 0xe6, 0x80, 0x83, 0x05, 0x20, 0x40, 0, 0, 2, 0xcf]);
    put(0x1300, &[&out(6)[..], &[0xcf]].concat());
    put(0x2f00, &[0x37, 0, 0, 0x30, 0, 0]);
    put(0x2f08, &[0xff, 0x07, 0, 0x50, 0, 0]);
    let tss = |n: usize| 0x0000_8900_0000_0067 | TSS[n] << 16;
    for (n, d) in [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, tss(0), tss(1), tss(2)].iter().enumerate() {
        put(GDT + 8 * n as u64, &u64::to_le_bytes(*d));
    }
    // INT3 by an interrupt gate, #GP and INT 40 by task gates.
    for (vector, gate) in [(3, 0x0000_8e00_0008_1300), (13, 0x0000_8500_0028_0000), (0x40, 0x0000_8500_0020_0000)] {
        put(IDT + 8 * vector, &u64::to_le_bytes(gate));
    }
    for (n, entry) in [(1, 0x1100u32), (2, 0x1200)] {
        put(TSS[n] + 0x20, &entry.to_le_bytes());
        put(TSS[n] + 0x24, &2u32.to_le_bytes());
        put(TSS[n] + 0x38, &(0x8000 + 0x400 * n as u32).to_le_bytes());
        for (k, selector) in [0x10u32, 8, 0x10, 0x10, 0, 0].iter().enumerate() {
            put(TSS[n] + 0x48 + 4 * k as u64, &selector.to_le_bytes());
        }
    }
    memory
}

/// Somebody turns an exit on for INT3, as a debugger of the host would.
#[expect(unsafe_code, reason = "a request by hand")]
fn leave_breakpoints(node: &dyn Node) {
    const SET_CAPABILITY: u32 = 0x8010_7602;
    let mut bytes: Vec<u8> = [0i32, 5, 1, 0].iter().flat_map(|n| n.to_le_bytes()).collect();
    // SAFETY: as many bytes as the code says.
    unsafe { node.ioctl(SET_CAPABILITY, bytes.as_mut_ptr().cast()) }.expect("VM_SET_CAPABILITY");
}

fn run(version: Version, breakpoints: bool) -> (Vec<u8>, Arc<Sim>) {
    let sim = Sim::new(version);
    let ram = Arc::new(Ram::new(16 << 20).unwrap());
    let block = ram.alloc("ram", 4 << 20).unwrap();
    let space = AddressSpace::new(ram.clone());
    let id = space.add_memory(0, 4 << 20, 0, Rights::ReadWrite, Backing::Ram(block.start));
    space.enable(id, 0, true);
    let port = Arc::new(Port::default());
    let id = space.add_ports(0x80, 1, 0, port.clone(), 0, Widths::DWORD);
    space.enable_ports(id, 0x80, true);
    let machine = Machine::new(space, Clock::running());
    machine.clock().resume();
    let model = cpu::Model::default();
    let config = VmConfig { name: "tasks".to_owned(), cpus: 1, model, plain: false, keep: false };
    let vm = Vmm::over(sim.clone(), "vmm").create(&machine, &config).expect("a machine");
    let mut vcpu = vm.take_vcpus().remove(0);
    vcpu.reset();
    if breakpoints {
        leave_breakpoints(&*sim.open("/dev/vmm/tasks", vmmapi_sys::Access::ReadWrite).expect("its node"));
    }
    ram.write(RamAddr(block.start.0), &memory());
    let mut regs = vcpu.regs().unwrap();
    let data = Segment { selector: 0x10, base: 0, limit: u32::MAX, access: 0xc093 };
    (regs.ds, regs.es, regs.ss, regs.fs, regs.gs) = (data, data, data, data, data);
    regs.cs = Segment { selector: 8, access: 0xc09b, ..data };
    (regs.rip, regs.cr0, regs.rflags, regs.gpr[4]) = (0x1000, 0x31, 2, 0x8000);
    vcpu.set_regs(&regs).unwrap();
    let late = AtomicBool::new(false);
    std::thread::scope(|s| {
        let (late, vm) = (&late, &vm);
        s.spawn(move || {
            let end = Instant::now() + Duration::from_secs(20);
            while !late.load(Ordering::Relaxed) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            late.store(true, Ordering::Relaxed);
            vm.kick(0);
        });
        while !vcpu.dead() && !late.load(Ordering::Relaxed) {
            match vcpu.run(1000) {
                hv::Exit::Failed(why) | hv::Exit::TripleFault(why) => panic!("{why}"),
                _ => {}
            }
        }
        late.store(true, Ordering::Relaxed);
    });
    let written = std::mem::take(&mut *port.0.lock().unwrap());
    (written, sim)
}

/// By JMP, by INT n and IRET, and by an exception with an error code, which the new task finds on its stack.
#[test]
fn tasks_are_switched_in_the_processors_place() {
    for version in Version::ALL {
        let (written, sim) = run(version, false);
        assert_eq!(written, [1, 2, 3, 4, 5, 6, 0x10, 8], "{version:?}");
        assert_eq!(sim.exits().get("TASK_SWITCH"), Some(&6), "{version:?}: {:?}", sim.exits());
        assert_eq!(sim.exits().get("BPT"), None);
    }
}

#[test]
fn a_breakpoint_exit_is_the_guests_own_exception() {
    let (written, sim) = run(Version::V14, true);
    assert_eq!(written, [1, 2, 3, 4, 5, 6, 0x10, 8]);
    assert_eq!(sim.exits().get("BPT"), Some(&1), "{:?}", sim.exits());
}
