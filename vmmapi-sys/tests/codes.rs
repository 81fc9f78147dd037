//! Every request number, written down a second time: a slip in a structure, a direction or a number shows here.

use vmmapi_sys::{Version, common, v13, v14, v15};

const COMMON: &[(&str, u32)] = &[
    ("VM_SET_CAPABILITY", 0x8010_7602),
    ("VM_GET_CAPABILITY", 0xc010_7603),
    ("VM_SUSPEND", 0x8004_7604),
    ("VM_REINIT", 0x2000_7605),
    ("VM_GET_GPA_PMAP", 0xc030_760c),
    ("VM_GLA2GPA", 0xc038_760d),
    ("VM_MMAP_MEMSEG", 0x8028_7610),
    ("VM_MMAP_GETNEXT", 0xc028_7611),
    ("VM_GLA2GPA_NOFAULT", 0xc038_7612),
    ("VM_MUNMAP_MEMSEG", 0x8010_7613),
    ("VM_SET_REGISTER", 0x8010_7614),
    ("VM_GET_REGISTER", 0xc010_7615),
    ("VM_SET_SEGMENT_DESCRIPTOR", 0x8018_7616),
    ("VM_GET_SEGMENT_DESCRIPTOR", 0xc018_7617),
    ("VM_SET_REGISTER_SET", 0x8018_7618),
    ("VM_GET_REGISTER_SET", 0xc018_7619),
    ("VM_GET_KERNEMU_DEV", 0xc018_761a),
    ("VM_SET_KERNEMU_DEV", 0x8018_761b),
    ("VM_GET_INTINFO", 0xc018_761c),
    ("VM_SET_INTINFO", 0x8018_761d),
    ("VM_INJECT_EXCEPTION", 0x8014_761e),
    ("VM_LAPIC_IRQ", 0x8008_761f),
    ("VM_INJECT_NMI", 0x8004_7620),
    ("VM_IOAPIC_ASSERT_IRQ", 0x8004_7621),
    ("VM_IOAPIC_DEASSERT_IRQ", 0x8004_7622),
    ("VM_IOAPIC_PULSE_IRQ", 0x8004_7623),
    ("VM_LAPIC_MSI", 0x8010_7624),
    ("VM_LAPIC_LOCAL_IRQ", 0x8008_7625),
    ("VM_IOAPIC_PINCOUNT", 0x4004_7626),
    ("VM_RESTART_INSTRUCTION", 0x8004_7627),
    ("VM_BIND_PPTDEV", 0x800c_7628),
    ("VM_UNBIND_PPTDEV", 0x800c_7629),
    ("VM_MAP_PPTDEV_MMIO", 0x8028_762a),
    ("VM_PPTDEV_MSI", 0x8028_762b),
    ("VM_PPTDEV_MSIX", 0x8030_762c),
    ("VM_PPTDEV_DISABLE_MSIX", 0x800c_762d),
    ("VM_UNMAP_PPTDEV_MMIO", 0x8028_762e),
    ("VM_STAT_DESC", 0xc084_7633),
    ("VM_SET_X2APIC_STATE", 0x8008_763c),
    ("VM_GET_X2APIC_STATE", 0xc008_763d),
    ("VM_GET_HPET_CAPABILITIES", 0x4004_763e),
    ("VM_SET_TOPOLOGY", 0x8008_763f),
    ("VM_GET_TOPOLOGY", 0x4008_7640),
    ("VM_ISA_ASSERT_IRQ", 0x8008_7650),
    ("VM_ISA_DEASSERT_IRQ", 0x8008_7651),
    ("VM_ISA_PULSE_IRQ", 0x8008_7652),
    ("VM_ISA_SET_IRQ_TRIGGER", 0x8008_7653),
    ("VM_ACTIVATE_CPU", 0x8004_765a),
    ("VM_GET_CPUS", 0x8010_765b),
    ("VM_SUSPEND_CPU", 0x8004_765c),
    ("VM_RESUME_CPU", 0x8004_765d),
    ("VM_RTC_READ", 0xc008_7664),
    ("VM_RTC_WRITE", 0x8008_7665),
    ("VM_RTC_SETTIME", 0x8008_7666),
    ("VM_RTC_GETTIME", 0x4008_7667),
    ("VM_RESTORE_TIME", 0xc004_7673),
];

/// Run, allocate and get a segment, statistics, snapshot.
const OWN: &[(Version, [u32; 5])] = &[
    (Version::V13, [0xc090_7601, 0x8020_760e, 0xc020_760f, 0xc218_7632, 0xc048_7671]),
    (Version::V14, [0x8020_7601, 0x8020_760e, 0xc020_760f, 0xc220_7632, 0xc040_7671]),
    (Version::V15, [0x8020_7601, 0x8038_760e, 0xc038_760f, 0xc220_7632, 0xc040_7671]),
];

#[test]
fn common_requests_have_the_numbers_of_the_kernels() {
    assert_eq!(common::REQUESTS, COMMON);
}

#[test]
fn each_abi_has_its_own_five() {
    for (version, codes) in OWN {
        let abi = version.abi();
        assert_eq!(abi.version, *version);
        assert_eq!([abi.run, abi.alloc_memseg, abi.get_memseg, abi.stats, abi.snapshot], *codes, "{version:?}");
    }
}

#[test]
fn the_control_node_has_its_group() {
    assert_eq!(v15::CONTROL_REQUESTS, [("VMMCTL_VM_CREATE", 0xc128_5600), ("VMMCTL_VM_DESTROY", 0xc128_5601)]);
}

#[test]
fn an_abi_lists_all_that_its_machines_take_once() {
    for (version, own) in OWN {
        let mut listed: Vec<u32> = version.abi().requests().map(|(_, code)| code).collect();
        let mut expected: Vec<u32> = COMMON.iter().map(|(_, code)| *code).chain(own.iter().copied()).collect();
        listed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(listed, expected, "{version:?}");
    }
}

#[test]
fn releases_tell_their_abi() {
    let of = Version::of_osreldate;
    assert_eq!([of(1_201_000), of(1_299_999)], [None, None]);
    assert_eq!([of(1_300_139), of(1_302_001)], [Some(Version::V13); 2]);
    assert_eq!([of(1_400_097), of(1_499_999)], [Some(Version::V14); 2]);
    assert_eq!([of(1_500_068), of(1_600_000)], [Some(Version::V15); 2]);
}

#[test]
fn no_number_changed_its_request_between_the_tables() {
    let tables = [common::REQUESTS, v13::REQUESTS, v13::MEMSEG_REQUESTS, v14::REQUESTS, v15::REQUESTS];
    let all: Vec<(&str, u32)> = tables.into_iter().flatten().copied().collect();
    for (name, code) in &all {
        for (other, its) in &all {
            assert_eq!(name == other, code & 0xff == its & 0xff, "{name} {code:x}, {other} {its:x}");
        }
    }
}
