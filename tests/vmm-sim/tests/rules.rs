//! The rules of vmm(4), each with a call that breaks it and what the simulator says of it.

mod raw;

use std::time::Duration;

use raw::{ACTIVATE, Guest, RAX, RIP, SUSPEND, arg};
use vmm_sim::{Sim, Version};
use vmmapi_sys::{Access, Kernel};

const V13: Version = Version::V13;
const V14: Version = Version::V14;
const V15: Version = Version::V15;

/// A rule, a call that breaks it, and what is written down.
struct Rule {
    rule: &'static str,
    version: Version,
    wrong: fn(&Guest),
    says: &'static str,
}

/// out 80,al for ever.
const OUT: [u8; 4] = [0xe6, 0x80, 0xeb, 0xfc];

fn run_out(g: &Guest) {
    g.put(0x1000, &OUT);
    g.run(0).unwrap();
}

const RULES: &[Rule] = &[
    Rule {
        rule: "VM_RUN changed between 13 and 14: the other form is for probing only",
        version: V14,
        wrong: |g| {
            run_out(g);
            assert_eq!(g.ioctl(0xc090_7601, arg().bytes(&[0; 144])).unwrap_err(), libc::ENOTTY);
        },
        says: "no request 0xc0907601 in 14",
    },
    Rule {
        rule: "a request that no kernel knows",
        version: V13,
        wrong: |g| assert_eq!(g.ioctl(0x8010_7642, arg().bytes(&[0; 16])).unwrap_err(), libc::ENOTTY),
        says: "no request 0x80107642",
    },
    Rule {
        rule: "a request of another size",
        version: V14,
        wrong: |g| assert_eq!(g.ioctl(0x8018_7624, arg().bytes(&[0; 24])).unwrap_err(), libc::ENOTTY),
        says: "no request 0x80187624",
    },
    Rule {
        rule: "segment 1 is the boot ROM on 13 and 14, and a NUMA domain on 15",
        version: V15,
        wrong: |g| g.new_segment(1, 0x1000, "bootrom").unwrap(),
        says: "segment 1 is system memory in 15, its name is \"bootrom\"",
    },
    Rule {
        rule: "the segments of 15 do not exist before",
        version: V14,
        wrong: |g| {
            assert_eq!(g.new_segment(8, 0x1000, "bootrom").unwrap_err(), libc::EINVAL);
            g.new_segment(1, 0x1000, "").unwrap();
        },
        says: "segment 1 is device memory in 14, its name is \"\"",
    },
    Rule {
        rule: "padding is 0",
        version: V13,
        wrong: |g| {
            let padding = -1;
            g.ioctl(raw::MMAP, arg().u64(0x40_0000).i32(0).i32(padding).u64(0).u64(0x1000).i32(7).i32(0)).unwrap();
        },
        says: "VM_MMAP_MEMSEG: bytes 12 to 16, which are padding, are not 0",
    },
    Rule {
        rule: "the kernel advances RIP, user space never does",
        version: V14,
        wrong: |g| {
            run_out(g);
            g.set(0, RIP, 0x1002);
            g.run(0).unwrap();
        },
        says: "user space advances RIP",
    },
    Rule {
        rule: "the value of IN comes from user space",
        version: V14,
        wrong: |g| {
            g.put(0x1000, &[0xe4, 0x60, 0xe6, 0x80]);
            g.run(0).unwrap();
            g.run(0).unwrap();
        },
        says: "IN, and RAX was not set",
    },
    Rule {
        rule: "RDMSR is answered with two registers, or with #GP",
        version: V14,
        wrong: |g| {
            // mov ecx,8B; rdmsr; out 80,al
            g.put(0x1000, &[0x66, 0xb9, 0x8b, 0, 0, 0, 0x0f, 0x32, 0xe6, 0x80]);
            assert_eq!(g.run(0).unwrap().code(), 3);
            g.set(0, RAX, 0);
            g.run(0).unwrap();
        },
        says: "RDMSR, and RAX and RDX were not set",
    },
    Rule {
        rule: "what the kernel does not decode exits for ever",
        version: V13,
        wrong: |g| {
            g.ioctl(raw::SET_SEGMENT, arg().i32(0).i32(25).u64(0).i32(-1).i32(0xc093)).unwrap();
            g.put(0x1000, &[0x67, 0xa1, 0, 0, 0x40, 0]);
            assert_eq!(g.run(0).unwrap().len(), 0);
            assert_eq!(g.run(0).unwrap().code(), 9, "again");
        },
        says: "INST_EMUL with inst_length 0",
    },
    Rule {
        rule: "rep string I/O with a count left is restarted",
        version: V15,
        wrong: |g| {
            g.put(0x1000, &[0xba, 0x20, 0, 0xb9, 3, 0, 0xf3, 0x6e, 0xe6, 0x80]);
            g.run(0).unwrap();
            g.set(0, 2, 2);
            g.run(0).unwrap();
        },
        says: "rep string I/O has a count left",
    },
    Rule {
        rule: "a fault restarts its instruction",
        version: V14,
        wrong: |g| g.ioctl(0x8014_761e, arg().i32(0).i32(13).i32(0).i32(1).i32(0)).unwrap(),
        says: "vector 13 is a fault and does not restart",
    },
    Rule {
        rule: "an exception has an error code or has none",
        version: V14,
        wrong: |g| g.ioctl(0x8014_761e, arg().i32(0).i32(6).i32(0).i32(1).i32(1)).unwrap(),
        says: "vector 6 with error code",
    },
    Rule {
        rule: "SUSPENDED is a barrier over all active vCPUs",
        version: V14,
        wrong: |g| {
            g.sim.patience(Duration::from_millis(50));
            g.start_at(1, 0x1000);
            g.ioctl(SUSPEND, arg().i32(2)).unwrap();
            assert_eq!(g.run(0).unwrap().code(), 14);
        },
        says: "vCPUs 0x2 are active and do not come into VM_RUN",
    },
    Rule {
        rule: "SUSPENDED is told once",
        version: V15,
        wrong: |g| {
            g.ioctl(SUSPEND, arg().i32(1)).unwrap();
            assert_eq!(g.run(0).unwrap().code(), 14);
            assert_eq!(g.run(0).unwrap_err(), libc::EINVAL);
        },
        says: "after it was told SUSPENDED",
    },
    Rule {
        rule: "only an active vCPU runs",
        version: V13,
        wrong: |g| assert_eq!(g.run(1).unwrap_err(), libc::EINVAL),
        says: "vCPU 1, which is not active",
    },
    Rule {
        rule: "a held vCPU does not block",
        version: V14,
        wrong: |g| {
            g.ioctl(0x8004_765c, arg().i32(0)).unwrap();
            (0..5100).for_each(|_| assert_eq!(g.run(0).unwrap().code(), 21));
        },
        says: "a held vCPU spins",
    },
    Rule {
        rule: "asserts of I/O APIC pins are counted",
        version: V14,
        wrong: |g| (0..2).for_each(|_| g.ioctl(0x8004_7621, arg().i32(17)).unwrap()),
        says: "I/O APIC pin 17 is asserted twice",
    },
    Rule {
        rule: "and so are deasserts",
        version: V15,
        wrong: |g| g.ioctl(0x8004_7622, arg().i32(17)).unwrap(),
        says: "I/O APIC pin 17 is deasserted twice",
    },
    Rule {
        rule: "and those of ISA lines",
        version: V13,
        wrong: |g| (0..2).for_each(|_| g.ioctl(0x8008_7650, arg().i32(4).i32(-1)).unwrap()),
        says: "8259 line 4 is asserted twice",
    },
    Rule {
        rule: "the message of an MSI comes before its address",
        version: V14,
        wrong: |g| assert_eq!(g.ioctl(0x8010_7624, arg().u64(0xfee0_0000).u64(0x31)).unwrap_err(), libc::EINVAL),
        says: "it and the message are swapped",
    },
    Rule {
        rule: "an MSI goes to FEExxxxx, or the call restarts for ever",
        version: V15,
        wrong: |g| assert!(g.ioctl(0x8010_7624, arg().u64(0x31).u64(0x1_fee0_0000)).is_err()),
        says: "the address is 0x1fee00000",
    },
    Rule {
        rule: "the topology's last word is 0, and it comes before the first run",
        version: V14,
        wrong: |g| g.ioctl(0x8008_763f, arg().bytes(&[1, 0, 1, 0, 1, 0, 1, 0])).unwrap(),
        says: "maxcpus is not 0",
    },
    Rule {
        rule: "the topology is fixed once a vCPU has run",
        version: V13,
        wrong: |g| {
            run_out(g);
            g.ioctl(0x8008_763f, arg().bytes(&[1, 0, 2, 0, 1, 0, 0, 0])).unwrap();
        },
        says: "VM_SET_TOPOLOGY after a vCPU has run",
    },
    Rule {
        rule: "x2APIC mode is chosen before the first run",
        version: V15,
        wrong: |g| {
            run_out(g);
            g.ioctl(0x8008_763c, arg().i32(0).i32(1)).unwrap();
        },
        says: "VM_SET_X2APIC_STATE of vCPU 0, which has run",
    },
    Rule {
        rule: "real mode needs UNRESTRICTED_GUEST",
        version: V14,
        wrong: |g| {
            g.ioctl(raw::SET_CAPABILITY, arg().i32(0).i32(3).i32(0).i32(0)).unwrap();
            run_out(g);
        },
        says: "vCPU 0 starts without paging",
    },
    Rule {
        rule: "limits of segments are in bytes, and fit the granularity",
        version: V14,
        wrong: |g| g.ioctl(raw::SET_SEGMENT, arg().i32(0).i32(25).u64(0).i32(-1).i32(0x4093)).unwrap(),
        says: "access 0x4093 and limit 0xffffffff do not fit",
    },
    Rule {
        rule: "a processor that is started is released",
        version: V14,
        wrong: |g| {
            send_ipis(g);
            assert_eq!((g.run(0).unwrap().u32(16), g.ioctl(0x8004_765c, arg().i32(1))), (0x500, Ok(())));
            assert_eq!(g.run(0).unwrap().u32(16), 0x600);
            g.sim.patience(Duration::ZERO);
            g.run(0).unwrap();
        },
        says: "vCPU 1 was started by a SIPI and is still held",
    },
    Rule {
        rule: "a processor that gets an INIT is held",
        version: V15,
        wrong: |g| {
            send_ipis(g);
            assert_eq!(g.run(0).unwrap().u32(16), 0x500);
            g.run(0).unwrap();
        },
        says: "vCPUs 0x2 got an INIT and are not held",
    },
    Rule {
        rule: "a processor starts at the SIPI's page, in its reset state",
        version: V13,
        wrong: |g| {
            send_ipis(g);
            g.ioctl(0x8004_765c, arg().i32(1)).unwrap();
            assert_eq!((g.run(0).unwrap().u32(16), g.run(0).unwrap().u32(16)), (0x500, 0x600));
            g.ioctl(0x8004_765d, arg().i32(1)).unwrap();
            g.put(0x1100, &OUT);
            g.set(1, RIP, 0x1100);
            g.run(1).unwrap();
        },
        says: "vCPU 1 was started at page 0x9 and runs with CS 0 at 0, RIP 1100",
    },
    Rule {
        rule: "VM_GLA2GPA takes the paging of the exit",
        version: V14,
        wrong: |g| {
            assert!(g.ioctl(0xc038_760d, arg().i32(0).i32(1).u64(0).u64(0).i32(4).i32(0).u64(0).u64(0).u64(0)).is_err())
        },
        says: "is no way to translate",
    },
    Rule {
        rule: "before 15 nothing kicks the vCPUs of a VM that is destroyed",
        version: V14,
        wrong: |g| {
            g.put(0x1000, &[0xeb, 0xfe]);
            std::thread::scope(|s| {
                let running = s.spawn(|| g.run(0).map(|e| e.code()).unwrap_or_else(|e| e));
                while !g.sim.vms().is_empty() && !g.sim.requests().contains_key("VM_RUN") {
                    std::thread::yield_now();
                }
                std::thread::sleep(Duration::from_millis(20));
                g.sim.set_sysctl("hw.vmm.destroy", b"test").unwrap();
                assert_eq!(running.join().unwrap(), libc::ENXIO);
            });
        },
        says: "destroyed while vCPUs are in VM_RUN",
    },
];

/// vCPU 0 with IPI exits, whose guest sends INIT and a SIPI for page 9 to vCPU 1, which is active.
fn send_ipis(g: &Guest) {
    g.start_at(1, 0x1000);
    g.ioctl(raw::SET_CAPABILITY, arg().i32(0).i32(8).i32(1).i32(0)).unwrap();
    for segment in [23, 24, 25] {
        let access = if segment == 23 { 0xc09b } else { 0xc093 };
        g.ioctl(raw::SET_SEGMENT, arg().i32(0).i32(segment).u64(0).i32(-1).i32(access)).unwrap();
    }
    g.set(0, 15, 0x31);
    let mut code = Vec::new();
    let store = |code: &mut Vec<u8>, at: u32, value: u32| {
        code.extend([0xc7, 0x05]);
        code.extend(at.to_le_bytes());
        code.extend(value.to_le_bytes());
    };
    store(&mut code, 0xfee0_0310, 1 << 24);
    store(&mut code, 0xfee0_0300, 0x4500);
    store(&mut code, 0xfee0_0300, 0x4609);
    code.extend(OUT);
    g.put(0x1000, &code);
}

#[test]
fn each_rule_that_is_broken_is_told() {
    for rule in RULES {
        let g = Guest::new(rule.version);
        g.sim.record();
        assert_eq!(g.sim.violations(), Vec::<String>::new(), "{}: before it is broken", rule.rule);
        (rule.wrong)(&g);
        let said = g.sim.violations();
        assert!(said.iter().any(|v| v.contains(rule.says)), "{}: {said:?}", rule.rule);
    }
}

#[test]
fn errors_are_the_kernels() {
    let g = Guest::new(V14);
    let e = |result: Result<(), i32>| result.unwrap_err();
    assert_eq!(e(g.new_segment(0, 1 << 20, "")), libc::EINVAL, "another length");
    assert_eq!(e(g.new_segment(0, 2 << 20, "")), libc::EEXIST);
    assert_eq!(e(g.new_segment(2, 0x1001, "fb")), libc::EINVAL, "no whole pages");
    assert_eq!(e(g.map(0x10_0000, 0, 0, 0x1000, 7)), libc::EFAULT, "occupied");
    assert_eq!(e(g.map(0x40_0000, 0, 0x20_0000, 0x1000, 7)), libc::EINVAL, "behind the segment's end");
    assert_eq!(e(g.map(0x40_0000, 3, 0, 0x1000, 7)), libc::EINVAL, "no segment");
    for n in 1..8 {
        g.map(0x100_0000 * n, 0, 0, 0x1000, 7).unwrap();
    }
    assert_eq!(e(g.map(0x4000_0000, 0, 0, 0x1000, 7)), libc::ENOSPC);
    assert_eq!(e(g.ioctl(0x8010_7613, arg().u64(0x100_0000).u64(0x2000))), libc::EINVAL);
    g.ioctl(0x8010_7613, arg().u64(0x100_0000).u64(0x1000)).unwrap();
    assert_eq!(e(g.ioctl(ACTIVATE, arg().i32(0))), libc::EBUSY);
    assert_eq!(e(g.ioctl(0x2000_7605, arg())), libc::EBUSY, "an active vCPU is not suspended");
    assert_eq!(e(g.ioctl(0x8004_765d, arg().i32(0))), libc::EINVAL, "not held");
    assert_eq!(e(g.ioctl(0x8004_765c, arg().i32(3))), libc::EINVAL, "not active");
    assert_eq!(e(g.ioctl(SUSPEND, arg().i32(5))), libc::EINVAL, "a reason of 15");
    g.ioctl(SUSPEND, arg().i32(1)).unwrap();
    assert_eq!(e(g.ioctl(SUSPEND, arg().i32(2))), libc::EALREADY);
    let mut set = [0u8; 128];
    let cpus = |size: i32, at: u64| arg().i32(0).i32(size).u64(at);
    let at = set.as_mut_ptr() as u64;
    assert_eq!(e(g.ioctl(0x8010_765b, cpus(32, at))), libc::ERANGE);
    g.ioctl(0x8010_765b, cpus(128, at)).unwrap();
    assert_eq!(set[0], 1);
    assert_eq!(e(g.ioctl(0x8014_761e, arg().i32(0).i32(8).i32(0).i32(1).i32(1))), libc::EINVAL);
    let gp = || arg().i32(0).i32(13).i32(0).i32(1).i32(1);
    g.ioctl(0x8014_761e, gp()).unwrap();
    assert_eq!(e(g.ioctl(0x8014_761e, gp())), libc::EBUSY);
    assert_eq!(e(g.ioctl(raw::SET_CAPABILITY, arg().i32(0).i32(11).i32(1).i32(0))), libc::EINVAL);
    assert_eq!(e(g.ioctl(raw::SET_CAPABILITY, arg().i32(0).i32(4).i32(1).i32(0))), libc::ENOENT);
    assert_eq!(e(g.ioctl(raw::GET_REGISTER, arg().i32(0).i32(49).u64(0))), libc::EINVAL);
    assert_eq!(e(g.ioctl(0x8008_7665, arg().i32(4).i32(0))), libc::EINVAL, "a register of the clock");
    assert_eq!(e(g.ioctl(0x8008_7653, arg().i32(8).i32(1))), libc::EINVAL, "IRQ 8 by level");
    assert_eq!(g.sim.violations(), Vec::<String>::new());
}

#[test]
fn probes_of_other_kernels_requests_are_no_mistake_before_the_first_run() {
    for version in Version::ALL {
        let g = Guest::new(version);
        let unknown = |code: u32, len: usize| g.ioctl(code, arg().bytes(&vec![0; len])) == Err(libc::ENOTTY);
        assert_eq!(unknown(0xc038_760f, 56), version != V15);
        assert!(unknown(0xc048_7671, 72));
        let probe = g.ioctl(0x8020_7601, arg().i32(-1).i32(0).u64(0).u64(0).u64(0));
        assert_eq!(probe.unwrap_err(), if version < V14 { libc::ENOTTY } else { libc::EINVAL });
    }
}

#[test]
fn vms_are_made_by_the_node_on_15_and_by_sysctl_before() {
    let old = Sim::new(V14);
    assert_eq!(old.open("/dev/vmmctl", Access::ReadWrite).err().and_then(|e| e.raw_os_error()), Some(libc::ENOENT));
    old.set_sysctl("hw.vmm.create", b"a").unwrap();
    assert_eq!(old.set_sysctl("hw.vmm.create", b"a").unwrap_err().raw_os_error(), Some(libc::EEXIST));
    old.set_sysctl("hw.vmm.destroy", b"a").unwrap();
    assert_eq!(old.set_sysctl("hw.vmm.destroy", b"a").unwrap_err().raw_os_error(), Some(libc::EINVAL));
    let g = Guest::bare(Sim::new(V15), V15);
    assert_eq!(g.sim.vms(), ["test"]);
    let refused = g.sim.open("/dev/vmmctl", Access::Read).err().and_then(|e| e.raw_os_error());
    assert_eq!(refused, Some(libc::EPERM));
    let sim = g.sim.clone();
    drop(g);
    assert_eq!(sim.vms(), Vec::<String>::new(), "it goes with the descriptor that made it");
}
