//! Every clock of the machine against every other, over ten minutes of guest time: time-stamp counter, 8254, RTC, HPET,
//! PM timer and local APIC timer are computed from one base, so that none may be off by more than the tick that it is
//! in.
//!
//! The guest counts interrupts and halts in between. Instructions drive the clock and HLT jumps, so ten minutes take
//! seconds.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, Weak};

use emu::{
    AddressSpace, Backends, Backing, Clock, CpuBus, Device, DeviceCell, IrqLine, Machine, Ram, RamAddr, ResetKind,
    Rights, Slot, TimerSink,
};
use hv::{Hypervisor, Runner, Soft, VmConfig};
use lpc::{AcpiPm, Hpet, I8254, I8259, LegacyRoute, Mc146818};

const SECOND: u64 = 1_000_000_000;
/// Ten minutes and a bit, so that no tick is due at the very end.
const END: u64 = 600 * SECOND + 5_000_000;
const PM_BASE: u16 = 0xb000;
/// Counts of a tick of the 8254, which makes 99.998 ticks a second.
const PIT_COUNT: u64 = 11_932;
/// Where the guest counts the ticks of 8254, RTC and local APIC.
const COUNTS: [u64; 3] = [0x500, 0x504, 0x508];

/// Real mode with a data segment of 4 GiB. INC DWORD [count], then what the chip wants to hear, IRET.
const PIT_HANDLER: &[u8] = &[0x66, 0xff, 0x06, 0x00, 0x05, 0xb0, 0x20, 0xe6, 0x20, 0xcf];
/// Register C is read for the next tick to come.
const RTC_HANDLER: &[u8] =
    &[0x66, 0xff, 0x06, 0x04, 0x05, 0xb0, 0x0c, 0xe6, 0x70, 0xe4, 0x71, 0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0xcf];
/// MOV DWORD [FEE000B0], 0 is the EOI.
const APIC_HANDLER: &[u8] =
    &[0x66, 0xff, 0x06, 0x08, 0x05, 0x67, 0x66, 0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0x00, 0x00, 0x00, 0x00, 0xcf];

/// MOV DWORD [FEE00000 + register], value.
fn apic_write(register: u16, value: u32) -> Vec<u8> {
    let mut code = vec![0x67, 0x66, 0xc7, 0x05];
    code.extend((0xfee0_0000 | u32::from(register)).to_le_bytes());
    code.extend(value.to_le_bytes());
    code
}

/// Pauses the machine at its time.
struct Stop(Mutex<Option<Box<dyn Fn() + Send>>>, Mutex<Sender<()>>);

impl TimerSink for Stop {
    fn fire(&self, _: u32) {
        if let Some(pause) = &*self.0.lock().unwrap() {
            pause();
        }
        let _ = self.1.lock().unwrap().send(());
    }
}

type Create = Box<dyn FnOnce(&mut Slot) -> Result<Box<dyn Device>, String>>;

#[test]
fn no_clock_drifts_against_another_in_ten_minutes() {
    let ram = Arc::new(Ram::new(1 << 20).unwrap());
    let block = ram.alloc("ram", 1 << 20).unwrap();
    let put = |at: u64, bytes: &[u8]| ram.write(RamAddr(block.start.0 + at), bytes);
    for (n, (vector, handler)) in
        [(0x20, PIT_HANDLER), (0x28, RTC_HANDLER), (0x40, APIC_HANDLER)].into_iter().enumerate()
    {
        let entry = 0x2000 + 0x40 * n as u32;
        put(entry.into(), handler);
        put(vector * 4, &entry.to_le_bytes());
    }
    // Enabled; divide by 1; periodic, vector 40; 10 ms at 1 GHz.
    let mut main = [(0xf0, 0x1ff), (0x3e0, 0xb), (0x320, 0x2_0040), (0x380, 10_000_000)]
        .into_iter()
        .flat_map(|(register, value)| apic_write(register, value))
        .collect::<Vec<u8>>();
    // STI; HLT; JMP to the HLT.
    main.extend([0xfb, 0xf4, 0xeb, 0xfd]);
    put(0x1000, &main);

    let space = AddressSpace::new(ram.clone());
    let id = space.add_memory(0, 1 << 20, 0, Rights::ReadWrite, Backing::Ram(block.start));
    space.enable(id, 0, true);
    let machine = Machine::new(space.clone(), Clock::instructions());
    let model = cpu::Model::default();
    let tsc_hz = model.tsc_hz;
    let vm = Soft
        .create(&machine, &VmConfig { name: "drift".to_owned(), cpus: 1, model, plain: false, keep: false })
        .unwrap();
    let pic = I8259::new(&machine, IrqLine::new(vm.pins(), 0));
    let acked = pic.clone();
    vm.on_ack(Box::new(move || acked.acknowledge()));
    let mut isa: Vec<IrqLine> = (0..16).map(|n| IrqLine::new(pic.clone(), n)).collect();
    let route = LegacyRoute::new(&machine, &mut isa);
    machine.set_isa_irqs(isa);
    let plug = |name: &str, create: Create| -> Arc<DeviceCell> {
        machine.plug_with(name, None, Backends::default(), create).unwrap()
    };
    plug("pit", Box::new(|s| Ok(I8254::create(s))));
    plug("rtc", Box::new(|s| Ok(Mc146818::create(s, 0, Vec::new()))));
    plug("hpet", Box::new(|s| Ok(Hpet::create(s, Hpet::BASE, route, Vec::new()))));
    plug("pm", Box::new(|s| AcpiPm::create(s, PM_BASE, false)));
    machine.reset(ResetKind::PowerOn);

    let mut bus = CpuBus::new(space);
    let (slave, master) = (
        [(0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1), (0xa1, 0xfe)],
        [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfa)],
    );
    let clocks = [
        // Mode 2.
        (0x43, 0x34),
        (0x40, PIT_COUNT as u32 & 0xff),
        (0x40, PIT_COUNT as u32 >> 8),
        // 1024 Hz.
        (0x70, 0x0a),
        (0x71, 0x26),
        (0x70, 0x0b),
        (0x71, 0x42),
    ];
    for (port, value) in slave.into_iter().chain(master).chain(clocks) {
        bus.pio_write(port, 1, value);
    }
    bus.write(Hpet::BASE + 0x10, 4, 1);

    let (told, stopped) = channel();
    let runner = Runner::new(vm, machine.clone(), |outcome| panic!("{outcome:?}")).unwrap();
    let stop = Arc::new(Stop(Mutex::new(Some(Box::new(runner.pauser()))), Mutex::new(told)));
    let sink: Weak<Stop> = Arc::downgrade(&stop);
    let timer = machine.timers.add(sink, 0);
    timer.set(END);
    let tsc_at_0 = runner.with_vcpus(|v| {
        let mut regs = v.regs().unwrap();
        (regs.cs.selector, regs.cs.base, regs.rip) = (0, 0, 0x1000);
        regs.gpr[4] = 0x8000;
        regs.ds.limit = u32::MAX;
        regs.ds.access |= 0x8000;
        v.set_regs(&regs).unwrap();
        regs.tsc
    })[0];
    runner.resume();
    stopped.recv().unwrap();
    runner.pause();

    let now = machine.clock().now();
    assert!((END..END + 1000).contains(&now), "the machine stopped at {now}");
    let per = |hz: u64| (u128::from(now) * u128::from(hz) / u128::from(SECOND)) as u64;
    let count = |at: u64| {
        let mut buf = [0; 4];
        ram.read(RamAddr(block.start.0 + at), &mut buf);
        u64::from(u32::from_le_bytes(buf))
    };
    let [pit, rtc, apic] = COUNTS.map(count);
    assert_eq!(pit, per(1_193_182) / PIT_COUNT, "8254");
    assert_eq!(rtc, per(1024), "periodic interrupt of the RTC");
    assert_eq!(apic, 60_000, "local APIC timer");
    let tsc = runner.with_vcpus(|v| v.regs().unwrap().tsc)[0] - tsc_at_0;
    assert!(tsc.abs_diff(per(tsc_hz)) <= 1, "time-stamp counter: {tsc} and not {}", per(tsc_hz));
    assert_eq!(bus.read(Hpet::BASE + 0xf0, 8), now / 100, "HPET");
    assert_eq!(u64::from(bus.pio_read(PM_BASE + 8, 4)), per(3_579_545) & 0xff_ffff, "PM timer");
    let mut cmos = |index| {
        bus.pio_write(0x70, 1, index);
        bus.pio_read(0x71, 1)
    };
    assert_eq!([cmos(4), cmos(2), cmos(0)], [0, 0x10, 0], "time of day");
}
