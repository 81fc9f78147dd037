//! The back end over a kernel that plays exits, byte by byte, and writes down what is asked of it.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_void;

use emu::{AddressSpace, Backing, Clock, Ram, Rights, Widths};
use vmmapi_sys::{Access, Node, Reg};

use super::*;
use crate::Exit;

/// Requests by their numbers.
const RUN: u8 = 1;
const SET_REGISTER: u8 = 20;
const SET_REGISTER_SET: u8 = 24;
const GET_REGISTER: u8 = 21;
const GET_REGISTER_SET: u8 = 25;
const INJECT_EXCEPTION: u8 = 30;
const LAPIC_MSI: u8 = 36;
const RESTART: u8 = 39;
const ASSERT: u8 = 80;
const DEASSERT: u8 = 81;
const SUSPEND_CPU: u8 = 92;
const RESUME_CPU: u8 = 93;

const DEVICE: u64 = 0x40_0000;

/// What `VM_RUN` does next: an exit, or an error.
type Played = Result<[u8; 136], i32>;

#[derive(Default)]
struct Script {
    exits: Mutex<VecDeque<Played>>,
    regs: Mutex<BTreeMap<i32, u64>>,
    log: Mutex<Vec<(u8, Vec<u8>)>>,
    /// What requests are refused with.
    refuse: Mutex<BTreeMap<u8, i32>>,
    create: Mutex<Option<i32>>,
}

struct Played14(Arc<Script>);

impl Kernel for Played14 {
    fn sysctl(&self, name: &str) -> io::Result<i64> {
        match name {
            "kern.osreldate" => Ok(1_400_097),
            "hw.vmm.maxcpu" => Ok(4),
            "hw.vmm.vmx.initialized" => Ok(1),
            _ => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        }
    }

    fn set_sysctl(&self, name: &str, _: &[u8]) -> io::Result<()> {
        match *self.0.create.lock().unwrap() {
            Some(errno) if name == "hw.vmm.create" => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }

    fn module(&self, _: &str) -> bool {
        true
    }

    fn load_module(&self, _: &str) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }

    fn open(&self, path: &str, _: Access) -> io::Result<Box<dyn Node>> {
        if path == "/dev/vmmctl" {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        // Who may not make it was not given it either.
        if *self.0.create.lock().unwrap() == Some(libc::EPERM) {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        Ok(Box::new(PlayedNode(self.0.clone())))
    }
}

struct PlayedNode(Arc<Script>);

#[expect(unsafe_code, reason = "a kernel's side of requests")]
impl Node for PlayedNode {
    unsafe fn ioctl(&self, request: u32, arg: *mut c_void) -> io::Result<()> {
        let (number, len) = (request as u8, (request >> 16 & 0x1fff) as usize);
        let bytes: &mut [u8] = match len {
            // There is no argument.
            0 => &mut [],
            // SAFETY: the request tells the argument's size.
            _ => unsafe { std::slice::from_raw_parts_mut(arg.cast(), len) },
        };
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let int = |at: usize| i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        self.0.log.lock().unwrap().push((number, bytes.to_vec()));
        let fail = |errno| Err(io::Error::from_raw_os_error(errno));
        if let Some(errno) = self.0.refuse.lock().unwrap().get(&number) {
            return fail(*errno);
        }
        let mut regs = self.0.regs.lock().unwrap();
        match (number, len) {
            // 15's structure.
            (15, 56) => return fail(libc::ENOTTY),
            (RUN, _) if int(0) < 0 => return fail(libc::EINVAL),
            (RUN, _) => {
                let played = self.0.exits.lock().unwrap().pop_front();
                let image = match played.unwrap_or_else(|| Ok(exit(14, 0, 0, &3i32.to_le_bytes()))) {
                    Ok(image) => image,
                    Err(errno) => return fail(errno),
                };
                let at = std::ptr::with_exposed_provenance_mut::<u8>(word(24) as usize);
                // SAFETY: the caller has room for an exit there.
                unsafe { at.copy_from_nonoverlapping(image.as_ptr(), image.len()) };
                let cpus = std::ptr::with_exposed_provenance_mut::<u8>(word(8) as usize);
                // SAFETY: and for a set of processors, here of processor 1.
                unsafe { cpus.write(2) };
            }
            (17, _) => return fail(libc::ENOENT),
            (SET_REGISTER, _) => _ = regs.insert(int(4), word(8)),
            (GET_REGISTER, _) => {
                let value = regs.get(&int(4)).copied().unwrap_or(0);
                bytes[8..16].copy_from_slice(&value.to_le_bytes());
            }
            (SET_REGISTER_SET | GET_REGISTER_SET, _) => {
                let (numbers, values) = (word(8) as usize, word(16) as usize);
                for n in 0..int(4) as usize {
                    // SAFETY: as many numbers and values as the caller says.
                    unsafe {
                        let reg = *std::ptr::with_exposed_provenance::<i32>(numbers).add(n);
                        let value = std::ptr::with_exposed_provenance_mut::<u64>(values).add(n);
                        if number == SET_REGISTER_SET {
                            regs.insert(reg, *value);
                        } else {
                            *value = regs.get(&reg).copied().unwrap_or(0);
                        }
                    }
                }
            }
            // Flat segments.
            (23, _) => bytes[16..24].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x93, 0xc0, 0, 0]),
            (38, _) => bytes.copy_from_slice(&32i32.to_le_bytes()),
            _ => {}
        }
        Ok(())
    }

    unsafe fn map(&self, _: *mut u8, _: usize, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// The bytes of an exit.
fn exit(code: i32, inst_length: i32, rip: u64, union: &[u8]) -> [u8; 136] {
    let mut image = [0xa5; 136];
    image[..4].copy_from_slice(&code.to_le_bytes());
    image[4..8].copy_from_slice(&inst_length.to_le_bytes());
    image[8..16].copy_from_slice(&rip.to_le_bytes());
    image[16..16 + union.len()].copy_from_slice(union);
    image
}

fn inout(flags: u16, port: u16, eax: u32) -> [u8; 136] {
    let mut union = [0; 8];
    union[..2].copy_from_slice(&flags.to_le_bytes());
    union[2..4].copy_from_slice(&port.to_le_bytes());
    union[4..].copy_from_slice(&eax.to_le_bytes());
    exit(0, 1, 0x7000, &union)
}

/// An access of an instruction in 32-bit code without paging; not decoded by the kernel, if `len` is 0.
fn emulate(bytes: &[u8], gpa: u64, len: i32) -> [u8; 136] {
    let mut union = [0; 120];
    union[..8].copy_from_slice(&gpa.to_le_bytes());
    union[24] = 1;
    union[44] = 1;
    union[56..56 + bytes.len()].copy_from_slice(bytes);
    union[56 + 15] = 15;
    union[56 + 56] = u8::from(len > 0);
    exit(9, len, 0x7000, &union)
}

#[derive(Default)]
struct Device(Mutex<Vec<(u64, u8, Option<u64>)>>);

impl emu::Access for Device {
    fn owner(&self) -> &str {
        "device"
    }

    fn read(&self, _: u32, offset: u64, width: u8) -> u64 {
        self.0.lock().unwrap().push((offset, width, None));
        0x8586_8788
    }

    fn write(&self, _: u32, offset: u64, width: u8, value: u64) {
        self.0.lock().unwrap().push((offset, width, Some(value)));
    }
}

struct Rig {
    script: Arc<Script>,
    machine: Arc<Machine>,
    device: Arc<Device>,
    vm: Arc<dyn Vm>,
    vcpus: Vec<Box<dyn Vcpu>>,
}

fn machine() -> (Arc<Machine>, Arc<Device>) {
    let ram = Arc::new(Ram::new(4 << 20).unwrap());
    let block = ram.alloc("ram", 2 << 20).unwrap();
    let space = AddressSpace::new(ram);
    for (base, len) in [(0, 0xa_0000), (0x10_0000, 0x10_0000)] {
        let at = emu::RamAddr(block.start.0 + base);
        let id = space.add_memory(base, len, 0, Rights::ReadWrite, Backing::Ram(at));
        space.enable(id, base, true);
    }
    let device = Arc::new(Device::default());
    let backing = Backing::Io(device.clone(), 0, Widths::QWORD);
    let id = space.add_memory(DEVICE, 0x1000, 0, Rights::ReadWrite, backing);
    space.enable(id, DEVICE, true);
    let id = space.add_ports(0x1f0, 8, 0, device.clone(), 1, Widths::DWORD);
    space.enable_ports(id, 0x1f0, true);
    (Machine::new(space, Clock::manual()), device)
}

fn config(cpus: u32) -> VmConfig {
    VmConfig { name: "tested".to_owned(), cpus, model: cpu::Model::default(), plain: false, keep: false }
}

impl Rig {
    fn new(cpus: u32, exits: &[Played]) -> Rig {
        let script = Arc::new(Script::default());
        let (machine, device) = machine();
        let vm = Vmm::over(Arc::new(Played14(script.clone())), "vmm").create(&machine, &config(cpus)).unwrap();
        let mut vcpus = vm.take_vcpus();
        vcpus.iter_mut().for_each(|v| v.reset());
        script.exits.lock().unwrap().extend(exits);
        let mut rig = Rig { script, machine, device, vm, vcpus };
        for (reg, value) in
            [(Reg::Cr0, 1), (Reg::Rflags, 2), (Reg::Rbx, DEVICE + 0x10), (Reg::Rax, 0x1122_3344_5566_7788)]
        {
            rig.set(reg, value);
        }
        rig.asked();
        rig
    }

    fn set(&mut self, reg: Reg, value: u64) {
        self.script.regs.lock().unwrap().insert(reg as i32, value);
    }

    fn reg(&self, reg: Reg) -> u64 {
        self.script.regs.lock().unwrap()[&(reg as i32)]
    }

    /// The requests since the last call.
    fn asked(&self) -> Vec<u8> {
        std::mem::take(&mut *self.script.log.lock().unwrap()).into_iter().map(|(n, _)| n).collect()
    }

    fn seen(&self) -> Vec<(u64, u8, Option<u64>)> {
        std::mem::take(&mut self.device.0.lock().unwrap())
    }
}

#[test]
fn a_port_out_costs_no_request_but_the_run_and_an_in_one() {
    let out = inout(2, 0x1f2, 0xdead_beef);
    let mut rig = Rig::new(1, &[Ok(out), Ok(inout(1 | 8, 0x1f7, 0xdead_beef)), Ok(out)]);
    assert_eq!(rig.vcpus[0].run(0), Exit::Halted);
    assert_eq!(rig.asked(), [RUN, RUN, SET_REGISTER, RUN, RUN]);
    assert_eq!(rig.seen(), [(2, 2, Some(0xbeef)), (7, 1, None), (2, 2, Some(0xbeef))]);
    assert_eq!(rig.reg(Reg::Rax), 0xdead_be88);
}

#[test]
fn moves_take_one_request_and_set_rip_where_the_kernel_did_not_decode() {
    // MOV [EBX], EAX; MOV ECX, [EBX]; the same undecoded.
    let (store, load) = (&[0x89, 0x03][..], &[0x8b, 0x0b][..]);
    let at = DEVICE + 0x10;
    let mut rig = Rig::new(1, &[Ok(emulate(store, at, 2)), Ok(emulate(load, at, 2))]);
    rig.vcpus[0].run(0);
    assert_eq!(rig.asked(), [RUN, GET_REGISTER, RUN, SET_REGISTER, RUN]);
    assert_eq!(rig.seen(), [(0x10, 4, Some(0x5566_7788)), (0x10, 4, None)]);
    assert_eq!(rig.reg(Reg::Rcx), 0x8586_8788);
    let mut rig = Rig::new(1, &[Ok(emulate(load, at, 0))]);
    rig.vcpus[0].run(0);
    assert_eq!(rig.asked(), [RUN, SET_REGISTER_SET, RUN]);
    assert_eq!((rig.reg(Reg::Rip), rig.reg(Reg::Rcx)), (0x7002, 0x8586_8788));
    assert_eq!(rig.vcpus[0].regs().unwrap().rip, 0, "the last exit's");
}

#[test]
fn a_segment_register_is_loaded_from_a_device_with_its_descriptor() {
    const SET_DESCRIPTOR: u8 = 22;
    // MOV ES, [EBX]: the device has the selector 8788.
    let mut rig = Rig::new(1, &[Ok(emulate(&[0x8e, 0x03], DEVICE + 0x10, 0))]);
    let ram = rig.machine.space.ram();
    ram.write(emu::RamAddr(0x8788), &0x00cf_9212_3456_ffffu64.to_le_bytes());
    assert_eq!(rig.vcpus[0].run(0), Exit::Halted);
    assert_eq!(rig.seen(), [(0x10, 2, None)]);
    assert_eq!((rig.reg(Reg::Es), rig.reg(Reg::Rip)), (0x8788, 0x7002));
    let log = std::mem::take(&mut *rig.script.log.lock().unwrap());
    let int = |arg: &[u8], at: usize| u32::from_le_bytes(arg[at..at + 4].try_into().unwrap());
    let es = log.iter().find(|(n, arg)| *n == SET_DESCRIPTOR && int(arg, 4) == Reg::Es as u32).expect("a descriptor");
    // Base, limit, access: the processor has set the accessed bit.
    assert_eq!((int(&es.1, 8), int(&es.1, 16), int(&es.1, 20)), (0x12_3456, u32::MAX, 0xc093));
    // One that is not there is a fault of the instruction.
    let mut rig = Rig::new(1, &[Ok(emulate(&[0x8e, 0x03], DEVICE + 0x10, 2))]);
    rig.vcpus[0].run(0);
    let log = std::mem::take(&mut *rig.script.log.lock().unwrap());
    let args: Vec<u8> = [0i32, 13, 0x8788, 1, 1].iter().flat_map(|n| n.to_le_bytes()).collect();
    assert!(log.contains(&(INJECT_EXCEPTION, args)), "#GP(8788)");
}

#[test]
fn breakpoints_and_debug_exceptions_are_the_guests_own() {
    // INT3 of a byte, of which the kernel has kept the length back; then a step.
    let mut rig = Rig::new(1, &[Ok(exit(23, 0, 0x7000, &1i32.to_le_bytes())), Ok(exit(25, 0, 0x7000, &[0; 40]))]);
    assert_eq!(rig.vcpus[0].run(0), Exit::Halted);
    assert_eq!(rig.reg(Reg::EntryInstLength), 1);
    let log = std::mem::take(&mut *rig.script.log.lock().unwrap());
    let injected: Vec<_> = log.iter().filter(|(n, _)| *n == INJECT_EXCEPTION).map(|(_, arg)| arg).collect();
    // Traps: without an error code, and the instruction is not begun again.
    let args = |vector: i32| [0, vector, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(injected, [&args(3), &args(1)]);
}

#[test]
fn a_repeated_instruction_with_work_left_is_restarted() {
    // REP STOSD at the end of the page: one, of three.
    let mut rig = Rig::new(1, &[Ok(emulate(&[0xf3, 0xab], DEVICE + 0xffc, 2))]);
    rig.set(Reg::Rdi, DEVICE + 0xffc);
    rig.set(Reg::Rcx, 3);
    rig.vcpus[0].run(0);
    assert!(rig.asked().ends_with(&[SET_REGISTER_SET, RESTART, RUN]));
    assert_eq!((rig.reg(Reg::Rdi), rig.reg(Reg::Rcx)), (DEVICE + 0x1000, 2));
    assert_eq!(rig.seen(), [(0xffc, 4, Some(0x5566_7788))]);
}

#[test]
fn string_output_takes_its_bytes_from_memory() {
    let mut union = [0; 88];
    // Two bytes, string, REP; a flat segment DS.
    union[0] = 2 | 1 << 4 | 1 << 5;
    union[2..4].copy_from_slice(&0x1f0u16.to_le_bytes());
    union[20] = 1;
    union[32] = 2;
    union[40] = 1;
    union[64] = 4;
    union[68] = 25;
    union[80..84].copy_from_slice(&[0xff; 4]);
    union[84..86].copy_from_slice(&[0x93, 0xc0]);
    let mut rig = Rig::new(1, &[Ok(exit(15, 2, 0x7000, &union))]);
    rig.set(Reg::Rsi, 0x5000);
    rig.set(Reg::Rcx, 2);
    let ram = rig.machine.space.ram();
    ram.write(emu::RamAddr(0x5000), &[1, 2, 3, 4]);
    rig.vcpus[0].run(0);
    assert_eq!(rig.seen(), [(0, 2, Some(0x201)), (0, 2, Some(0x403))]);
    assert_eq!((rig.reg(Reg::Rsi), rig.reg(Reg::Rcx)), (0x5004, 0));
    assert!(!rig.asked().contains(&RESTART));
}

#[test]
fn msrs_that_nobody_knows_raise_a_fault_that_restarts() {
    let msr = |n: u32| Ok(exit(3, 2, 0x7000, &n.to_le_bytes()));
    let mut rig = Rig::new(1, &[msr(0x606), msr(0x1234)]);
    rig.vcpus[0].run(0);
    let log = std::mem::take(&mut *rig.script.log.lock().unwrap());
    assert_eq!((rig.reg(Reg::Rax), rig.reg(Reg::Rdx)), (0x000a_1003, 0));
    let injected: Vec<_> = log.iter().filter(|(n, _)| *n == INJECT_EXCEPTION).collect();
    // Processor 0, #GP, error code 0, which is there, restart.
    let args: Vec<u8> = [0i32, 13, 0, 1, 1].iter().flat_map(|n| n.to_le_bytes()).collect();
    assert_eq!(injected, [&(INJECT_EXCEPTION, args)]);
}

#[test]
fn a_start_up_ipi_starts_the_processor_that_waits() {
    let ipi = |mode: u32, vector: u8| {
        let mut union = [0; 8];
        union[..4].copy_from_slice(&mode.to_le_bytes());
        union[4] = vector;
        Ok(exit(24, 0, 0x7000, &union))
    };
    let mut rig = Rig::new(2, &[ipi(0x500, 0), ipi(0x600, 0x9a)]);
    assert_eq!(rig.vcpus[0].run(0), Exit::Halted);
    rig.script.exits.lock().unwrap().push_back(Ok(inout(1, 0x1f0, 0x42)));
    rig.vcpus[1].run(0);
    assert_eq!(rig.seen(), [(0, 1, Some(0x42))]);
    assert_eq!((rig.reg(Reg::Cs), rig.reg(Reg::Rip)), (0x9a00, 0));
    let log = std::mem::take(&mut *rig.script.log.lock().unwrap());
    let one = 1i32.to_le_bytes().to_vec();
    assert!(log.contains(&(RESUME_CPU, one.clone())), "it is let go");
    let before = log.iter().position(|e| *e == (RESUME_CPU, one.clone()));
    assert!(before < log.iter().position(|(n, arg)| *n == RUN && arg[..4] == one[..]), "before it runs");
}

#[test]
fn a_kick_ends_the_run_that_comes_and_no_other() {
    let mut rig = Rig::new(1, &[Ok(exit(21, 0, 0, &[])), Ok(inout(1, 0x1f0, 1))]);
    rig.vm.kick(0);
    assert_eq!(rig.vcpus[0].run(0), Exit::Kicked);
    assert_eq!(rig.asked(), [SUSPEND_CPU, RESUME_CPU]);
    // A hold that is none of ours is waited for, not taken away.
    assert_eq!(rig.vcpus[0].run(0), Exit::Halted);
    assert_eq!(rig.asked(), [RUN, RUN, RUN]);
}

#[test]
fn a_suspended_machine_is_told_once_and_by_its_reason() {
    let suspended = |how: i32| Ok(exit(14, 0, 0x7000, &how.to_le_bytes()));
    let mut rig = Rig::new(2, &[suspended(4), suspended(4)]);
    assert!(matches!(rig.vcpus[0].run(0), Exit::TripleFault(_)));
    assert_eq!(rig.vcpus[1].run(0), Exit::Halted);
    assert!(!rig.vcpus[1].dead());
    rig.asked();
    assert_eq!(rig.vcpus[0].run(0), Exit::Halted, "it is over");
    assert!(rig.asked().is_empty());
    let mut rig = Rig::new(1, &[suspended(3)]);
    assert_eq!(rig.vcpus[0].run(0), Exit::Halted);
    assert!(rig.vcpus[0].dead());
    let mut rig = Rig::new(1, &[suspended(9)]);
    assert!(matches!(rig.vcpus[0].run(0), Exit::Failed(why) if why.contains("unknown reason 9")));
}

#[test]
fn exits_that_mean_trouble_are_reported() {
    let mut vmx = [0; 24];
    vmx[4] = 33;
    vmx[20] = 7;
    for (image, text) in [
        (exit(1, 0, 0, &vmx), "exit reason 33"),
        (exit(12, 0, 0, &[]), "Rendezvous"),
        (exit(13, 0, 0, &[0; 4]), "IoapicEoi"),
        (exit(8, 0, 0, &[0; 16]), "Paging"),
        (exit(26, 0, 0, &[]), "unknown code 26"),
        (emulate(&[0x0f, 0x28, 0x03], DEVICE, 3), "[0f, 28, 03"),
    ] {
        let mut rig = Rig::new(1, &[Ok(image)]);
        let Exit::Failed(why) = rig.vcpus[0].run(0) else { panic!("{text}") };
        assert!(why.contains(text) && why.contains("RAX"), "{why}");
    }
}

#[test]
fn errors_of_the_run_are_told_apart() {
    let mut rig = Rig::new(1, &[Err(libc::EINTR), Ok(inout(1, 0x1f0, 1))]);
    assert_eq!(rig.vcpus[0].run(0), Exit::Halted);
    assert_eq!(rig.seen().len(), 1);
    // MOV [EBX], EAX, where the kernel found memory that is read-only.
    let mut rig = Rig::new(1, &[Err(libc::EFAULT)]);
    rig.set(Reg::Rip, 0x7000);
    rig.machine.space.ram().write(emu::RamAddr(0x7000), &[0x89, 0x03]);
    assert_eq!(rig.vcpus[0].run(0), Exit::Halted);
    assert_eq!(rig.seen(), [(0x10, 4, Some(0x5566_7788))]);
    assert_eq!(rig.reg(Reg::Rip), 0x7002);
    let mut rig = Rig::new(1, &[Err(libc::EINVAL)]);
    assert!(matches!(rig.vcpus[0].run(0), Exit::Failed(why) if why.contains("VM_RUN")));
}

#[test]
fn interrupts_are_told_as_changes_and_only_to_local_apics() {
    let rig = Rig::new(1, &[]);
    let chips = rig.vm.chips().unwrap();
    let line = chips.isa();
    [true, true, false, false].into_iter().for_each(|level| line.set_irq(10, level));
    assert_eq!(rig.asked(), [ASSERT, DEASSERT]);
    let msi = rig.vm.msi();
    msi.msi(0x1000, 0x41);
    msi.msi(0x1_fee0_0000, 0x41);
    assert!(rig.asked().is_empty());
    msi.msi(0xfee0_1000, 0x41);
    msi.msi(0xfee0_1004, 0x41);
    let log = std::mem::take(&mut *rig.script.log.lock().unwrap());
    // The data first; a logical destination needs the hint.
    let sent = |addr: u64| (LAPIC_MSI, [0x41, addr].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>());
    assert_eq!(log, [sent(0xfee0_1000), sent(0xfee0_100c)]);
}

#[test]
fn what_the_host_refuses_is_said_with_a_remedy() {
    let refused = |cpus: u32, create: Option<i32>, request: Option<(u8, i32)>| {
        let script = Arc::new(Script::default());
        *script.create.lock().unwrap() = create;
        script.refuse.lock().unwrap().extend(request);
        let (machine, _) = machine();
        let made = Vmm::over(Arc::new(Played14(script)), "vmm").create(&machine, &config(cpus));
        format!("{:#}", made.err().expect("it is refused"))
    };
    const REINIT: u8 = 5;
    const CAPABILITY: u8 = 3;
    const ALLOC: u8 = 14;
    for (why, remedy) in [
        (refused(5, None, None), "set cpus = 4"),
        (refused(1, Some(libc::ENXIO), None), "backend = \"soft\""),
        (refused(1, Some(libc::EPERM), None), "allow.vmm"),
        (refused(1, Some(libc::EEXIST), Some((REINIT, libc::EBUSY))), "choose another name"),
        (refused(2, None, Some((CAPABILITY, libc::ENOENT))), "set cpus = 1"),
        (refused(1, None, Some((ALLOC, libc::ENOMEM))), "set a smaller memory"),
        (refused(1, None, Some((ALLOC, libc::EINVAL))), "bhyvectl --destroy"),
    ] {
        assert!(why.contains(remedy) && !why.contains('\n'), "{why}");
    }
}

#[test]
fn system_memory_is_there_once_and_the_plan_is_kept() {
    let script = Arc::new(Script::default());
    let (machine, _) = machine();
    let _vm = Vmm::over(Arc::new(Played14(script.clone())), "vmm").create(&machine, &config(1)).unwrap();
    const MMAP: u8 = 16;
    let log = script.log.lock().unwrap();
    let maps: Vec<_> = log.iter().filter(|(n, _)| *n == MMAP).collect();
    let word = |arg: &[u8], at: usize| u64::from_le_bytes(arg[at..at + 8].try_into().unwrap());
    let maps: Vec<_> = maps.iter().map(|(_, a)| (word(a, 0), word(a, 16), word(a, 24))).collect();
    assert_eq!(maps, [(0, 0, 0xa_0000), (0xc_0000, 0xc_0000, 0x14_0000)]);
}
