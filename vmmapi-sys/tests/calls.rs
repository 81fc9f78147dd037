//! The bytes that calls send, and what they make of answers and errors, over a kernel that follows a script.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::io;
use std::sync::{Arc, Mutex};

use vmmapi_sys::common::vm_memmap;
use vmmapi_sys::{
    Access, AttachError, Cap, Exit, HostFunction, Kernel, Lifetime, Msi, Name, Node, Part, Plain, Reg, RunBuffer,
    Suspend, Translation, Version, Vm, Vmm, v13, v14, v15,
};

/// What the script says a call does.
enum Answer {
    /// It succeeds, and these bytes are copied out at these offsets of the argument.
    Ok(Vec<(usize, Vec<u8>)>),
    /// It succeeds, and these bytes are copied out where the pointer at this offset of the argument points.
    Through(Vec<(usize, Vec<u8>)>),
    /// It fails, after rubbish was written wherever the kernel could have written.
    Errno(i32),
}

#[derive(Default)]
struct Script {
    answers: VecDeque<Answer>,
    /// Path, code and bytes of each request; names and values of sysctls that were set.
    calls: Vec<(String, u32, Vec<u8>)>,
}

/// A kernel: what it takes beside the script is told by its version.
struct Scripted {
    version: Version,
    script: Arc<Mutex<Script>>,
    control: Result<(), i32>,
    module: Result<bool, i32>,
    sysctls: Vec<(&'static str, i64)>,
}

struct File {
    path: String,
    version: Version,
    script: Arc<Mutex<Script>>,
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Kernel for Scripted {
    fn sysctl(&self, name: &str) -> io::Result<i64> {
        self.sysctls.iter().find(|(have, _)| *have == name).map(|(_, value)| *value).ok_or_else(|| errno(libc::ENOENT))
    }

    fn set_sysctl(&self, name: &str, value: &[u8]) -> io::Result<()> {
        let mut script = self.script.lock().unwrap();
        script.calls.push((name.into(), 0, value.to_vec()));
        match script.answers.pop_front() {
            Some(Answer::Errno(number)) => Err(errno(number)),
            _ => Ok(()),
        }
    }

    fn module(&self, _name: &str) -> bool {
        self.module == Ok(true)
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        assert_eq!(name, "vmm");
        self.module.map(drop).map_err(errno)
    }

    fn open(&self, path: &str, access: Access) -> io::Result<Box<dyn Node>> {
        assert_eq!(access, Access::ReadWrite);
        if path == "/dev/vmmctl" {
            self.control.map_err(errno)?;
        }
        Ok(Box::new(File { path: path.into(), version: self.version, script: Arc::clone(&self.script) }))
    }
}

#[expect(unsafe_code, reason = "a kernel reaches through pointers")]
impl Node for File {
    unsafe fn ioctl(&self, request: u32, arg: *mut c_void) -> io::Result<()> {
        let size = (request >> 16 & 0x1fff) as usize;
        let arg: &mut [u8] = if size == 0 {
            assert!(arg.is_null());
            &mut []
        } else {
            // SAFETY: the size is in the code.
            unsafe { std::slice::from_raw_parts_mut(arg.cast(), size) }
        };
        let mut script = self.script.lock().unwrap();
        script.calls.push((self.path.clone(), request, arg.to_vec()));
        let known = self.version.abi().requests().any(|(_, code)| code == request);
        let answer = match script.answers.pop_front() {
            _ if !known && request >> 8 & 0xff == u32::from(b'v') => Answer::Errno(libc::ENOTTY),
            // Probing for the ABI: there is no vCPU -1.
            None if request == v14::VM_RUN.code => Answer::Errno(libc::EINVAL),
            answer => answer.unwrap_or(Answer::Ok(Vec::new())),
        };
        match answer {
            Answer::Ok(parts) => {
                assert!(parts.is_empty() || request & 0x4000_0000 != 0, "{request:x} copies nothing out");
                for (offset, bytes) in parts {
                    arg[offset..][..bytes.len()].copy_from_slice(&bytes);
                }
                Ok(())
            }
            Answer::Through(parts) => {
                for (offset, bytes) in parts {
                    let pointer = u64::from_le_bytes(arg[offset..][..8].try_into().unwrap());
                    let pointer = std::ptr::with_exposed_provenance_mut::<u8>(pointer as usize);
                    // SAFETY: the caller of `ioctl` promises room for what the request writes.
                    unsafe { pointer.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
                }
                Ok(())
            }
            Answer::Errno(number) => {
                if request & 0x4000_0000 != 0 {
                    arg.fill(0xee);
                }
                Err(errno(number))
            }
        }
    }

    unsafe fn map(&self, _at: *mut u8, _len: usize, offset: u64) -> io::Result<()> {
        self.script.lock().unwrap().calls.push((self.path.clone(), 0, offset.to_le_bytes().into()));
        Ok(())
    }
}

/// A kernel with a machine.
struct Rig {
    script: Arc<Mutex<Script>>,
    vmm: Vmm,
    vm: Vm,
}

fn kernel(version: Version) -> Scripted {
    let (osreldate, control) = match version {
        Version::V13 => (1_302_001, Err(libc::ENOENT)),
        Version::V14 => (1_401_000, Err(libc::ENOENT)),
        Version::V15 => (1_500_068, Ok(())),
    };
    let sysctls = vec![("kern.osreldate", osreldate), ("hw.vmm.ipinum", 0xf0)];
    Scripted { version, script: Arc::default(), control, module: Ok(true), sysctls }
}

fn rig(version: Version) -> Rig {
    let kernel = kernel(version);
    let script = Arc::clone(&kernel.script);
    let vmm = Vmm::attach(Arc::new(kernel)).unwrap();
    let vm = vmm.open(&Name::new("fw1").unwrap()).unwrap();
    script.lock().unwrap().calls.clear();
    Rig { script, vmm, vm }
}

impl Rig {
    fn answer(&self, answer: Answer) {
        self.script.lock().unwrap().answers.push_back(answer);
    }

    fn calls(&self) -> Vec<(String, u32, Vec<u8>)> {
        std::mem::take(&mut self.script.lock().unwrap().calls)
    }
}

const VERSIONS: [Version; 3] = [Version::V13, Version::V14, Version::V15];

/// 4-byte little-endian words.
fn words(words: &[i32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn the_abi_is_what_the_kernel_takes() {
    for version in VERSIONS {
        assert_eq!(rig(version).vm.abi().version, version);
    }
    // A kernel of 15-CURRENT before the change: the release number lies, the probes do not.
    let early = Scripted { sysctls: vec![("kern.osreldate", 1_500_018)], ..kernel(Version::V14) };
    let vmm = Vmm::attach(Arc::new(early)).unwrap();
    assert_eq!(vmm.osreldate(), 1_500_018);
    assert_eq!(vmm.open(&Name::new("fw1").unwrap()).unwrap().abi().version, Version::V14);
}

#[test]
fn requests_send_their_fields_in_order_and_nothing_in_the_padding() {
    let Rig { script, vm, .. } = rig(Version::V15);
    let function = HostFunction { bus: 2, slot: 3, func: 1 };
    let msi = Msi { address: 0xfee0_1000, data: 0x41 };
    let mapping = vm_memmap { gpa: 0x1000, segid: 8, pad: 7, segoff: 0x2000, len: 0x3000, prot: 5, flags: 1 };
    let paging = vmmapi_sys::common::vm_guest_paging { cr3: 9, cpl: 3, cpu_mode: 1, paging_mode: 2, pad: 5 };
    type Send<'a> = Box<dyn Fn() -> io::Result<()> + 'a>;
    let table: Vec<(u32, Vec<i32>, Send<'_>)> = vec![
        (0x8004_7604, vec![2], Box::new(|| vm.suspend(Suspend::PowerOff))),
        (0x2000_7605, vec![], Box::new(|| vm.reinit())),
        (0x8004_765a, vec![3], Box::new(|| vm.activate_cpu(3))),
        (0x8004_765c, vec![-1], Box::new(|| vm.suspend_cpu(None))),
        (0x8004_765d, vec![2], Box::new(|| vm.resume_cpu(Some(2)))),
        (0x8008_763f, vec![0x0002_0001, 0x0000_0003], Box::new(|| vm.set_topology(1, 2, 3))),
        (0x8010_7602, vec![1, 8, 1, 0], Box::new(|| vm.set_capability(1, Cap::IpiExit, true))),
        (0x8010_7614, vec![1, 20, 0x10, 0], Box::new(|| vm.set_register(1, Reg::Rip, 0x10))),
        (
            0x8018_7616,
            vec![0, 23, -65536, 0, 0xffff, 0x93],
            Box::new(|| {
                vm.set_segment(
                    0,
                    Reg::Cs,
                    vmmapi_sys::common::seg_desc { base: 0xffff_0000, limit: 0xffff, access: 0x93 },
                )
            }),
        ),
        (0x8004_7627, vec![1], Box::new(|| vm.restart_instruction(1))),
        (0x8014_761e, vec![1, 13, 0, 1, 1], Box::new(|| vm.inject_exception(1, 13, Some(0), true))),
        (0x8014_761e, vec![0, 1, 0, 0, 0], Box::new(|| vm.inject_exception(0, 1, None, false))),
        (0x8004_7620, vec![0], Box::new(|| vm.inject_nmi(0))),
        (0x8018_761d, vec![1, 0, 0x21, 0, 0, 0], Box::new(|| vm.set_intinfo(1, 0x21))),
        (0x8008_763c, vec![1, 1], Box::new(|| vm.set_x2apic(1, true))),
        (0x8010_7624, vec![0x41, 0, 0xfee0_1000_u32 as i32, 0], Box::new(|| vm.lapic_msi(msi))),
        (0x8008_761f, vec![1, 0x41], Box::new(|| vm.lapic_irq(1, 0x41))),
        (0x8008_7625, vec![-1, 1], Box::new(|| vm.lapic_local_irq(None, 1))),
        (0x8004_7621, vec![17], Box::new(|| vm.set_ioapic_pin(17, true))),
        (0x8004_7622, vec![17], Box::new(|| vm.set_ioapic_pin(17, false))),
        (0x8004_7623, vec![17], Box::new(|| vm.pulse_ioapic_pin(17))),
        (0x8008_7650, vec![4, 4], Box::new(|| vm.set_isa_irq(4, Some(4), true))),
        (0x8008_7651, vec![4, -1], Box::new(|| vm.set_isa_irq(4, None, false))),
        (0x8008_7652, vec![1, 1], Box::new(|| vm.pulse_isa_irq(1, Some(1)))),
        (0x8008_7653, vec![11, 1], Box::new(|| vm.set_isa_trigger(11, true))),
        (0x8008_7665, vec![0x34, 0xf0], Box::new(|| vm.rtc_write(0x34, 0xf0))),
        (0x8008_7666, vec![0x1234, 0], Box::new(|| vm.set_rtc_time(0x1234))),
        (0x8018_761b, vec![1, 2, 0xfee0_0000_u32 as i32, 0, 7, 0], Box::new(|| vm.kernemu_write(1, 0xfee0_0000, 4, 7))),
        (0xc018_761a, vec![1, 0, 0x10, 0, 0, 0], Box::new(|| vm.kernemu_read(1, 0x10, 1).map(drop))),
        (0x8028_7610, vec![0x1000, 0, 8, 0, 0x2000, 0, 0x3000, 0, 5, 1], Box::new(|| vm.mmap_memseg(&mapping))),
        (0x8010_7613, vec![0x1000, 0, 0x3000, 0], Box::new(|| vm.munmap_memseg(0x1000, 0x3000))),
        (
            0xc038_760d,
            vec![1, 2, 0x500, 0, 9, 0, 3, 1, 2, 0, 0, 0, 0, 0],
            Box::new(|| vm.translate(1, &paging, 0x500, 2).map(drop)),
        ),
        (0x800c_7628, vec![2, 3, 1], Box::new(|| vm.bind_pptdev(function))),
        (0x800c_7629, vec![2, 3, 1], Box::new(|| vm.unbind_pptdev(function))),
        (
            0x8028_762a,
            vec![2, 3, 1, 0, 0x1000, 0, 0x3000, 0, 0x2000, 0],
            Box::new(|| vm.map_pptdev_mmio(function, 0x1000, 0x2000, 0x3000)),
        ),
        (
            0x8028_762e,
            vec![2, 3, 1, 0, 0x1000, 0, 0, 0, 0x2000, 0],
            Box::new(|| vm.unmap_pptdev_mmio(function, 0x1000, 0x2000)),
        ),
        (
            0x8028_762b,
            vec![0, 2, 3, 1, 4, 0, 0x41, 0, 0xfee0_1000_u32 as i32, 0],
            Box::new(|| vm.pptdev_msi(function, msi, 4)),
        ),
        (
            0x8030_762c,
            vec![0, 2, 3, 1, 5, 0, 0x41, 0, 1, 0, 0xfee0_1000_u32 as i32, 0],
            Box::new(|| vm.pptdev_msix(function, 5, msi, 1)),
        ),
        (0x800c_762d, vec![2, 3, 1], Box::new(|| vm.pptdev_disable_msix(function))),
        (0xc004_7673, vec![0], Box::new(|| vm.restore_time())),
    ];
    for (code, argument, send) in &table {
        send().unwrap();
        let calls = std::mem::take(&mut script.lock().unwrap().calls);
        assert_eq!(calls, [("/dev/vmm/fw1".into(), *code, words(argument))], "{code:x}");
        // And the errno comes back as it is.
        script.lock().unwrap().answers.push_back(Answer::Errno(libc::EBUSY));
        assert_eq!(send().unwrap_err().raw_os_error(), Some(libc::EBUSY), "{code:x}");
        script.lock().unwrap().calls.clear();
    }
}

#[test]
fn answers_are_read_from_their_places() {
    let rig = rig(Version::V14);
    let vm = &rig.vm;
    let ok = |offset: usize, bytes: &[u8]| rig.answer(Answer::Ok(vec![(offset, bytes.to_vec())]));
    ok(8, &0x1122_3344_5566_7788_u64.to_le_bytes());
    assert_eq!(vm.register(0, Reg::Rsp).unwrap(), 0x1122_3344_5566_7788);
    ok(8, &words(&[0x1000, 0, 0xffff, 0x9b]));
    let cs = vm.segment(0, Reg::Cs).unwrap();
    assert_eq!((cs.base, cs.limit, cs.access), (0x1000, 0xffff, 0x9b));
    ok(8, &words(&[1]));
    assert!(vm.capability(0, Cap::HaltExit).unwrap());
    ok(4, &words(&[1]));
    assert!(vm.x2apic(0).unwrap());
    ok(0, &words(&[32]));
    assert_eq!(vm.ioapic_pins().unwrap(), 32);
    ok(0, &words(&[0x8086_a201_u32 as i32]));
    assert_eq!(vm.hpet_capabilities().unwrap(), 0x8086_a201);
    ok(4, &[0x55]);
    assert_eq!(vm.rtc_read(0x34).unwrap(), 0x55);
    ok(0, &77_i64.to_le_bytes());
    assert_eq!(vm.rtc_time().unwrap(), 77);
    ok(0, &[1, 0, 2, 0, 3, 0, 16, 0]);
    let topology = vm.topology().unwrap();
    assert_eq!((topology.sockets, topology.cores, topology.threads, topology.maxcpus), (1, 2, 3, 16));
    ok(8, &words(&[1, 0, 2, 0]));
    assert_eq!(vm.intinfo(0).unwrap(), [1, 2]);
    ok(16, &words(&[0x1234, 0]));
    assert_eq!(vm.kernemu_read(0, 0xfed0_0000, 4).unwrap(), 0x1234);
    ok(48, &0xabcd_u64.to_le_bytes());
    assert_eq!(vm.translate(0, &Plain::ZERO, 0, 1).unwrap(), Translation::Gpa(0xabcd));
    ok(40, &words(&[1]));
    assert_eq!(vm.peek(0, &Plain::ZERO, 0, 1).unwrap(), Translation::Fault);
    rig.answer(Answer::Ok(vec![(8, words(&[7, 0, 8, 0])), (40, words(&[2]))]));
    assert_eq!(vm.gpa_pmap(0).unwrap(), [7, 8]);
    rig.answer(Answer::Ok(vec![(40, words(&[99]))]));
    assert_eq!(vm.gpa_pmap(0).unwrap().len(), 4);
    ok(4, b"total number of vm exits\0rubbish");
    assert_eq!(vm.stat_description(0).unwrap().as_deref(), Some("total number of vm exits"));
    rig.answer(Answer::Errno(libc::EINVAL));
    assert_eq!(vm.stat_description(99).unwrap(), None);
    rig.answer(Answer::Errno(libc::ENOENT));
    assert_eq!(vm.next_mapping(0).unwrap(), None);
    rig.answer(Answer::Errno(libc::EALREADY));
    vm.suspend(Suspend::Reset).unwrap();
}

#[test]
fn an_exit_comes_back_in_the_argument_on_13() {
    let rig = rig(Version::V13);
    let mut buffer = RunBuffer::default();
    rig.answer(Answer::Ok(vec![(8, words(&[24])), (8 + 16, words(&[0x600, 0x9a])), (8 + 24, vec![0x02])]));
    let exit = rig.vm.run(1, &mut buffer).unwrap();
    let Exit::Ipi { mode: 0x600, vector: 0x9a, cpus } = exit.exit else { panic!("{exit:?}") };
    assert_eq!(cpus.iter().collect::<Vec<_>>(), [1]);
    let [(_, code, argument)] = &rig.calls()[..] else { panic!() };
    assert_eq!((*code, &argument[..8]), (v13::VM_RUN.code, &words(&[1, 0])[..]));
}

#[test]
fn an_exit_comes_back_through_pointers_since_14() {
    for version in [Version::V14, Version::V15] {
        let rig = rig(version);
        let mut buffer = RunBuffer::default();
        // A kernel whose exits have grown, and whose sets are the largest.
        let mut exit = vec![0x77; 256];
        exit[..8].copy_from_slice(&words(&[24, 0]));
        exit[16..24].copy_from_slice(&words(&[0x500, 0]));
        let mut set = vec![0; 128];
        set[127] = 0x80;
        rig.answer(Answer::Through(vec![(24, exit), (8, set)]));
        let exit = rig.vm.run(3, &mut buffer).unwrap();
        let Exit::Ipi { mode: 0x500, cpus, .. } = exit.exit else { panic!("{exit:?}") };
        assert_eq!(cpus.iter().collect::<Vec<_>>(), [1023]);
        let [(_, code, argument)] = &rig.calls()[..] else { panic!() };
        assert_eq!((*code, &argument[..8], argument[16]), (v14::VM_RUN.code, &words(&[3, 0])[..], 128));
    }
}

#[test]
fn a_run_that_fails_tells_nothing_of_the_exit_before() {
    for version in VERSIONS {
        let rig = rig(version);
        let mut buffer = RunBuffer::default();
        rig.answer(Answer::Ok(Vec::new()));
        assert!(matches!(rig.vm.run(0, &mut buffer).unwrap().exit, Exit::Unknown));
        for number in [libc::EINTR, libc::EINVAL, libc::EFAULT, libc::ENXIO] {
            rig.answer(Answer::Errno(number));
            assert_eq!(rig.vm.run(0, &mut buffer).unwrap_err().raw_os_error(), Some(number));
        }
    }
}

#[test]
fn segments_are_allocated_in_the_native_form() {
    for (version, code, size) in [
        (Version::V13, v13::VM_ALLOC_MEMSEG.code, 32),
        (Version::V14, v13::VM_ALLOC_MEMSEG.code, 32),
        (Version::V15, v15::VM_ALLOC_MEMSEG.code, 56),
    ] {
        let rig = rig(version);
        let bootrom = rig.vm.abi().segments.bootrom;
        rig.vm.alloc_memseg(bootrom, 1 << 24, Some("bootrom")).unwrap();
        let mut expected = words(&[bootrom, 0, 1 << 24, 0]);
        expected.extend(b"bootrom");
        expected.resize(size, 0);
        assert_eq!(rig.calls(), [("/dev/vmm/fw1".into(), code, expected)]);
        rig.answer(Answer::Ok(vec![(8, words(&[4096, 0])), (16, b"fb\0".to_vec())]));
        let memseg = rig.vm.memseg(9).unwrap().unwrap();
        assert_eq!((memseg.len, memseg.name.as_deref()), (4096, Some("fb")));
        assert_eq!(rig.vm.memseg(0).unwrap(), None);
        let long = rig.vm.alloc_memseg(bootrom, 4096, Some("sixteen-letters-")).unwrap_err();
        assert_eq!(long.raw_os_error(), Some(libc::EINVAL));
    }
}

#[test]
fn device_memory_has_a_node_of_its_own() {
    let rig = rig(Version::V14);
    let node = rig.vm.devmem("bootrom").unwrap();
    #[expect(unsafe_code, reason = "the script maps nothing")]
    // SAFETY: the script maps nothing.
    unsafe {
        node.map(std::ptr::null_mut(), 4096, 0x2000).unwrap();
        rig.vm.map_memory(std::ptr::null_mut(), 4096, 0x1_0000_0000).unwrap();
    }
    let calls = rig.calls();
    assert_eq!(calls[0], ("/dev/vmm.io/fw1.bootrom".into(), 0, 0x2000_u64.to_le_bytes().into()));
    assert_eq!(calls[1], ("/dev/vmm/fw1".into(), 0, 0x1_0000_0000_u64.to_le_bytes().into()));
}

#[test]
fn sets_of_processors_are_asked_for_in_the_size_that_the_kernel_wants() {
    for (version, first, second) in [(Version::V13, 32, 128), (Version::V15, 128, 32)] {
        let rig = rig(version);
        rig.answer(Answer::Through(vec![(8, vec![0x81])]));
        assert_eq!(rig.vm.active_cpus().unwrap().iter().collect::<Vec<_>>(), [0, 7]);
        rig.answer(Answer::Errno(libc::ERANGE));
        rig.answer(Answer::Through(vec![(8, vec![0x02])]));
        assert_eq!(rig.vm.held_cpus().unwrap().iter().collect::<Vec<_>>(), [1]);
        let sent: Vec<_> = rig.calls().into_iter().map(|(_, _, bytes)| (bytes[0], bytes[4])).collect();
        assert_eq!(sent, [(0, first), (2, first), (2, second)]);
    }
}

#[test]
fn register_sets_point_to_numbers_and_values() {
    let rig = rig(Version::V14);
    let mut values = [0; 2];
    rig.answer(Answer::Through(vec![(16, words(&[5, 0, 6, 0]))]));
    rig.vm.registers(1, &[Reg::Rax, Reg::Cr2], &mut values).unwrap();
    assert_eq!(values, [5, 6]);
    rig.vm.set_registers(1, &[Reg::Rax, Reg::Cr2], &values).unwrap();
    for (_, code, argument) in rig.calls() {
        assert!([0xc018_7619, 0x8018_7618].contains(&code));
        assert_eq!(argument[..8], words(&[1, 2]));
    }
}

#[test]
fn statistics_come_in_parts_since_14() {
    let rig13 = rig(Version::V13);
    rig13.answer(Answer::Ok(vec![(4, words(&[2])), (24, words(&[7, 0, 8, 0]))]));
    assert_eq!(rig13.vm.stats(0).unwrap(), [7, 8]);
    let rig = rig(Version::V15);
    rig.answer(Answer::Ok(vec![(8, words(&[64])), (32, words(&[7, 0]))]));
    rig.answer(Answer::Ok(vec![(8, words(&[1])), (32, words(&[9, 0]))]));
    let stats = rig.vm.stats(0).unwrap();
    assert_eq!((stats.len(), stats[0], stats[64]), (65, 7, 9));
    let indices: Vec<u8> = rig.calls().into_iter().map(|(_, _, bytes)| bytes[4]).collect();
    assert_eq!(indices, [0, 64]);
}

#[test]
fn a_snapshot_is_as_long_as_the_kernel_says() {
    for (version, shift) in [(Version::V13, 8), (Version::V14, 0), (Version::V15, 0)] {
        let rig = rig(version);
        let mut buffer = [0; 100];
        rig.answer(Answer::Ok(vec![(48 + shift, 60_u64.to_le_bytes().into())]));
        assert_eq!(rig.vm.save(Part::Vlapic, &mut buffer).unwrap(), 40);
        rig.vm.restore(Part::Vlapic, &buffer[..40]).unwrap();
        let calls = rig.calls();
        assert_eq!((calls[0].2[16 + shift], calls[0].2[32 + shift], calls[0].2[56 + shift]), (3, 100, 0));
        assert_eq!((calls[1].2[16 + shift], calls[1].2[32 + shift], calls[1].2[56 + shift]), (3, 40, 1));
    }
}

#[test]
fn a_bad_msi_address_never_reaches_the_kernel() {
    let rig = rig(Version::V15);
    for address in [0, 0xfed0_0000, 0x1_fee0_0000] {
        assert_eq!(rig.vm.lapic_msi(Msi { address, data: 0x41 }).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
    assert!(rig.calls().is_empty());
}

#[test]
fn machines_are_made_by_sysctl_before_15() {
    let rig = rig(Version::V14);
    let name = Name::new("fw1").unwrap();
    assert_eq!(rig.vmm.create(&name, Lifetime::Descriptor).unwrap(), Lifetime::Destroyed);
    rig.answer(Answer::Errno(libc::EEXIST));
    assert_eq!(rig.vmm.create(&name, Lifetime::Destroyed).unwrap_err().raw_os_error(), Some(libc::EEXIST));
    rig.vmm.destroy(&name).unwrap();
    let calls = rig.calls();
    assert_eq!(calls[0], ("hw.vmm.create".into(), 0, b"fw1".to_vec()));
    assert_eq!(calls[2], ("hw.vmm.destroy".into(), 0, b"fw1".to_vec()));
    assert_eq!(rig.vmm.max_cpus(), 16);
}

#[test]
fn machines_of_15_go_with_the_control_node_where_the_kernel_can() {
    let rig = rig(Version::V15);
    let name = Name::new("fw1").unwrap();
    let request = |flags| {
        let mut bytes = b"fw1".to_vec();
        bytes.resize(296, 0);
        bytes[232] = flags;
        bytes
    };
    assert_eq!(rig.vmm.create(&name, Lifetime::Descriptor).unwrap(), Lifetime::Descriptor);
    rig.answer(Answer::Errno(libc::EEXIST));
    assert_eq!(rig.vmm.create(&name, Lifetime::Descriptor).unwrap_err().raw_os_error(), Some(libc::EEXIST));
    assert_eq!(rig.calls().iter().map(|call| call.2.clone()).collect::<Vec<_>>(), [request(1), request(1)]);
    // A kernel that still reserves the word. What it left in the argument is not sent again.
    rig.answer(Answer::Errno(libc::EINVAL));
    assert_eq!(rig.vmm.create(&name, Lifetime::Descriptor).unwrap(), Lifetime::Destroyed);
    rig.vmm.destroy(&name).unwrap();
    let node = || String::from("/dev/vmmctl");
    assert_eq!(
        rig.calls(),
        [
            (node(), v15::VMMCTL_VM_CREATE.code, request(1)),
            (node(), v15::VMMCTL_VM_CREATE.code, request(0)),
            (node(), v15::VMMCTL_VM_DESTROY.code, request(0)),
        ]
    );
}

#[test]
fn what_is_lacking_is_told_apart() {
    let attach = |kernel| Vmm::attach(Arc::new(kernel)).map(drop);
    let linux = Scripted { sysctls: Vec::new(), ..kernel(Version::V13) };
    assert!(matches!(attach(linux), Err(AttachError::NotFreeBsd(_))));
    let old = Scripted { sysctls: vec![("kern.osreldate", 1_201_000)], ..kernel(Version::V13) };
    assert!(matches!(attach(old), Err(AttachError::TooOld(1_201_000))));
    let bare = || Scripted { module: Err(libc::EPERM), ..kernel(Version::V13) };
    let missing = Scripted { sysctls: vec![("kern.osreldate", 1_302_001)], ..bare() };
    let Err(AttachError::NoModule(error)) = attach(missing) else { panic!() };
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    // Part of the kernel: nothing to load, yet there.
    attach(bare()).unwrap();
    // A user without rights on the control node can still open a machine that is his.
    let refused = Scripted { control: Err(libc::EACCES), ..kernel(Version::V15) };
    let vmm = Vmm::attach(Arc::new(refused)).unwrap();
    let name = Name::new("fw1").unwrap();
    assert_eq!(vmm.create(&name, Lifetime::Destroyed).unwrap_err().raw_os_error(), Some(libc::EACCES));
    assert!(vmm.has_control_node() && vmm.control().is_none() && vmm.open(&name).is_ok());
}

#[test]
fn names_fit_into_paths() {
    assert!(Name::new(&"x".repeat(229)).is_ok());
    for bad in ["", &"x".repeat(230), "a/b", "a\0b", "a\nb", ".", ".."] {
        assert!(Name::new(bad).unwrap_err().starts_with("must"), "{bad:?}");
    }
}
