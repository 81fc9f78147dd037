//! What every back end must do, as one suite: each function below is a test of a [`Hypervisor`], and [`suite`] makes
//! them the tests of one. The guests are a few instructions in real mode; they tell what they see on port 100.
//!
//! No test sleeps: a guest's reports are waited for, and what must not happen is looked for after something that comes
//! later.

pub(crate) mod bells;
#[cfg(target_os = "linux")]
mod kvm;
pub(crate) mod listing;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cpu::{Fault, Regs};
use emu::{
    AddressSpace, Backends, Backing, Clock, Device, Event, IrqLine, IrqSink, Machine, Ram, RamAddr, RamBlock, Region,
    ResetKind, Rights, Slot, State, Widths,
};

use crate::lacking::fields;
use crate::{Exit, Hypervisor, Lacking, Outcome, Runner, Vm, VmConfig};
pub(crate) use bells::a_doorbell_that_is_handed_over_is_known_when_the_processors_are_paused;
use listing::{AX, CX, DI, DX, Listing, Op, SI};

/// Makes the back end for the programs of a test.
pub(crate) type Make<'a> = &'a dyn Fn(&Listing) -> Box<dyn Hypervisor>;

/// A failure, not a measure of speed.
const SOON: Duration = Duration::from_secs(60);

/// Where processor 0 starts, and where its stack ends.
const ENTRY: u32 = 0x1000;
const STACK: u64 = 0x8000;
/// The last page of RAM is here as well.
const TOP: u32 = 0xffff_f000;
const RESET_VECTOR: u32 = 0xffff_fff0;
/// Handlers, 16 bytes each.
const HANDLERS: u32 = 0x2000;
const REPORT: u16 = 0x100;
/// Reads as 4, 3, 2, 1 of these bytes.
const FIXED: u16 = 0x104;
const FIXED_VALUE: u32 = 0x4433_2211;
/// Reads as 1, 2, 3 and so on.
const STREAM: u16 = 0x108;
const BELL: u16 = 0x10c;
/// Makes the window RAM (0), ROM above the RAM (1) or trapped (2).
const SWITCH: u16 = 0x110;
const WINDOW: u64 = 0xc0000;
const MMIO: u64 = 0xd0000;
const MEMORY: u64 = 1 << 20;

/// What the guest did to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Out(u16, u8, u64),
    Mmio(u64, u8, u64),
    Trapped(u64, u64),
    Bell,
}

fn report(value: u8) -> Seen {
    Seen::Out(REPORT, 1, value.into())
}

/// Region 0 are the ports, 1 the device memory, 2 the window while it is trapped.
struct Tester {
    tell: Sender<Seen>,
    window: Region,
    rom: RamAddr,
    trapped: Backing,
    stream: u8,
}

impl Tester {
    fn create(slot: &mut Slot, tell: Sender<Seen>) -> Box<dyn Device> {
        slot.ports(0, REPORT, 0x20, Widths::DWORD);
        slot.doorbell(0, u64::from(BELL - REPORT), 2, None, false);
        slot.memory(1, MMIO, 0x1000, 1, Widths::DWORD);
        let rom = slot.ram("rom", 0x1000).expect("memory").start;
        let window = slot.window(0x1000, 1, Rights::ReadWrite, Backing::Ram(rom));
        window.enable(WINDOW);
        Box::new(Tester { tell, window, rom, trapped: slot.io(2, Widths::BYTE), stream: 0 })
    }
}

impl Device for Tester {
    fn read(&mut self, region: u32, offset: u64, _: u8) -> u64 {
        match (region, offset as u16 + REPORT) {
            (0, FIXED) => u64::from(FIXED_VALUE),
            (0, STREAM) => {
                self.stream += 1;
                self.stream.into()
            }
            (0, _) => u64::MAX,
            _ => 0xa0 + offset,
        }
    }

    fn write(&mut self, region: u32, offset: u64, width: u8, value: u64) {
        let port = offset as u16 + REPORT;
        let seen = match region {
            0 if port == SWITCH => {
                return match value {
                    0 => self.window.set_backing(Rights::ReadWrite, Backing::Ram(self.rom)),
                    1 => self.window.set_backing(Rights::Read, Backing::Ram(self.rom)),
                    _ => self.window.set_backing(Rights::ReadWrite, self.trapped.clone()),
                };
            }
            0 => Seen::Out(port, width, value),
            1 => Seen::Mmio(offset, width, value),
            _ => Seen::Trapped(offset, value),
        };
        let _ = self.tell.send(seen);
    }

    fn event(&mut self, event: Event) {
        if let Event::Doorbell(..) = event {
            let _ = self.tell.send(Seen::Bell);
        }
    }

    fn reset(&mut self, _: ResetKind) {}

    fn state(&mut self) -> &mut dyn State {
        &mut self.stream
    }
}

/// Holds INTR up until the processor acknowledges.
struct Pic {
    intr: IrqLine,
    vector: AtomicU32,
    acks: AtomicU32,
}

impl Pic {
    fn raise(&self, vector: u8) {
        self.vector.store(vector.into(), Ordering::SeqCst);
        self.intr.set(true);
    }
}

struct Rig {
    machine: Arc<Machine>,
    vm: Arc<dyn Vm>,
    pic: Arc<Pic>,
    block: RamBlock,
    seen: Receiver<Seen>,
    outcomes: Receiver<Outcome>,
    tell: Mutex<Option<Sender<Outcome>>>,
}

impl Rig {
    /// A machine whose processor 0 is to start with `write` at [`ENTRY`]. A handler for each of `vectors` reports its
    /// vector.
    fn new(make: Make, cpus: u32, vectors: &[u8], write: impl FnOnce(&mut Listing)) -> Rig {
        Rig::with(Clock::running(), make, cpus, vectors, write)
    }

    /// As [`Rig::new`], by another clock.
    fn with(clock: Arc<Clock>, make: Make, cpus: u32, vectors: &[u8], write: impl FnOnce(&mut Listing)) -> Rig {
        let mut listing = Listing::default();
        for (n, vector) in vectors.iter().enumerate() {
            listing.org(HANDLERS + 16 * n as u32).out(REPORT, *vector).op(Op::Iret);
        }
        write(listing.org(ENTRY));

        let ram = Arc::new(Ram::new(2 << 20).unwrap());
        let block = ram.alloc("ram", MEMORY).unwrap();
        for (at, bytes) in &listing.code {
            let at = if *at >= TOP { u64::from(at - TOP) + MEMORY - 0x1000 } else { u64::from(*at) };
            ram.write(RamAddr(block.start.0 + at), bytes);
        }
        for (n, vector) in vectors.iter().enumerate() {
            let entry = HANDLERS + 16 * n as u32;
            ram.write(RamAddr(block.start.0 + u64::from(*vector) * 4), &entry.to_le_bytes());
        }
        let space = AddressSpace::new(ram);
        let id = space.add_memory(0, MEMORY, 0, Rights::ReadWrite, Backing::Ram(block.start));
        space.enable(id, 0, true);
        let last = RamAddr(block.start.0 + MEMORY - 0x1000);
        let top = space.add_memory(0, 0x1000, 0, Rights::ReadWrite, Backing::Ram(last));
        space.enable(top, TOP.into(), true);
        let machine = Machine::new(space, clock);
        let (tell, seen) = channel();
        machine.plug_with("tester", None, Backends::default(), |slot| Ok(Tester::create(slot, tell))).unwrap();

        let config =
            VmConfig { name: "conformance".to_owned(), cpus, model: cpu::Model::default(), plain: false, keep: false };
        let vm = make(&listing).create(&machine, &config).unwrap();
        let pins: Arc<dyn IrqSink> = vm.pins();
        let pic = Arc::new(Pic { intr: IrqLine::new(pins, 0), vector: AtomicU32::new(0), acks: AtomicU32::new(0) });
        let acked = Arc::downgrade(&pic);
        vm.on_ack(Box::new(move || {
            let pic = acked.upgrade().expect("the rig");
            pic.acks.fetch_add(1, Ordering::SeqCst);
            // As an 8259 does, it lowers its output meanwhile.
            pic.intr.set(false);
            pic.vector.load(Ordering::SeqCst) as u8
        }));
        let (told, outcomes) = channel();
        Rig { machine, vm, pic, block, seen, outcomes, tell: Mutex::new(Some(told)) }
    }

    /// Its processors on their threads, paused, processor 0 at [`ENTRY`].
    fn runner(&self) -> Runner {
        let tell = Mutex::new(self.tell.lock().unwrap().take().expect("one runner"));
        let runner = Runner::new(self.vm.clone(), self.machine.clone(), move |outcome| {
            let _ = tell.lock().unwrap().send(outcome);
        })
        .unwrap();
        runner.with_vcpus(|v| {
            if v.index() == 0 {
                v.set_regs(&at_entry(v.regs().unwrap())).unwrap();
            }
        });
        runner
    }

    /// As [`Rig::runner`], and they run.
    fn run(&self) -> Runner {
        let runner = self.runner();
        runner.resume();
        runner
    }

    /// The next things that the guest does to the device are these.
    fn expect(&self, wanted: &[Seen]) {
        for w in wanted {
            assert_eq!(self.seen.recv_timeout(SOON).as_ref(), Ok(w));
        }
    }

    fn byte(&self, gpa: u64) -> u8 {
        let mut buf = [0];
        self.machine.space.ram().read(RamAddr(self.block.start.0 + gpa), &mut buf);
        buf[0]
    }
}

fn at_entry(regs: Regs) -> Regs {
    let mut r = regs;
    (r.cs.selector, r.cs.base) = (0, 0);
    r.rip = ENTRY.into();
    r.gpr[listing::SP] = STACK;
    r
}

/// The one processor of a pair of fresh machines of the same kind, for tests of state.
fn lone(make: Make) -> (Rig, Runner) {
    let rig = Rig::new(make, 1, &[], |l| {
        l.wait();
    });
    let runner = rig.runner();
    (rig, runner)
}

pub(crate) fn ports_are_reached_with_the_width_of_the_access(make: Make) {
    let rig = Rig::new(make, 1, &[], |l| {
        for width in [1, 2, 4] {
            l.mov(AX, 0xffff).mov(DX, FIXED).op(Op::In(width)).mov(DX, REPORT).op(Op::Out(width));
        }
        // Nobody is there.
        l.mov(DX, 0x300).op(Op::In(2)).mov(DX, REPORT).op(Op::Out(2)).wait();
    });
    let _runner = rig.run();
    let out = |width, value| Seen::Out(REPORT, width, value);
    rig.expect(&[out(1, 0x11), out(2, 0x2211), out(4, 0x4433_2211), out(2, 0xffff)]);
}

pub(crate) fn device_memory_is_reached_with_the_width_of_the_access(make: Make) {
    let rig = Rig::new(make, 1, &[], |l| {
        l.ds((MMIO >> 4) as u16);
        l.mov(AX, 0x1234).op(Op::Store(8, 2)).op(Op::Store(0x10, 1));
        l.op(Op::Load(3, 1)).mov(DX, REPORT).op(Op::Out(1)).wait();
    });
    let _runner = rig.run();
    rig.expect(&[Seen::Mmio(8, 2, 0x1234), Seen::Mmio(0x10, 1, 0x34), report(0xa3)]);
}

pub(crate) fn string_instructions_move_between_ports_and_memory(make: Make) {
    let rig = Rig::new(make, 1, &[], |l| {
        l.mov(DI, 0x6000).mov(CX, 5).mov(DX, STREAM).op(Op::RepIn);
        l.mov(SI, 0x6001).mov(CX, 3).mov(DX, REPORT).op(Op::RepOut);
        l.wait();
    });
    let runner = rig.run();
    rig.expect(&[report(2), report(3), report(4)]);
    runner.pause();
    assert_eq!((0x6000..0x6006).map(|a| rig.byte(a)).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 0]);
    let regs = runner.with_vcpus(|v| v.regs().unwrap()).remove(0);
    assert_eq!((regs.gpr[CX], regs.gpr[SI], regs.gpr[DI]), (0, 0x6004, 0x6005));
}

pub(crate) fn memory_changes_its_kind_before_the_access_that_asks_for_it_is_over(make: Make) {
    const ROUNDS: usize = 50;
    let rig = Rig::new(make, 1, &[], |l| {
        let again = l.ds((WINDOW >> 4) as u16).here();
        let store = |l: &mut Listing, value| {
            l.mov(AX, value).op(Op::Store(7, 1));
        };
        let load = |l: &mut Listing| {
            l.op(Op::Load(7, 1)).mov(DX, REPORT).op(Op::Out(1));
        };
        store(l, 1);
        l.out(SWITCH, 1);
        // To the RAM below.
        store(l, 2);
        load(l);
        l.out(SWITCH, 2);
        store(l, 3);
        load(l);
        l.out(SWITCH, 0);
        load(l);
        store(l, 4);
        load(l);
        l.op(Op::Jump(again));
    });
    let runner = rig.run();
    for _ in 0..ROUNDS {
        rig.expect(&[report(1), Seen::Trapped(7, 3), report(0xa7), report(1), report(4)]);
    }
    runner.pause();
    assert_eq!(rig.byte(WINDOW + 7), 2);
}

pub(crate) fn an_interrupt_is_acknowledged_when_the_guest_takes_it(make: Make) {
    let rig = Rig::new(make, 1, &[0x40], |l| {
        l.op(Op::If(false)).out(REPORT, 1).out(REPORT, 2).wait();
    });
    let runner = rig.runner();
    rig.pic.raise(0x40);
    runner.resume();
    rig.expect(&[report(1), report(2), report(0x40)]);
    assert_eq!(rig.pic.acks.load(Ordering::SeqCst), 1);
}

pub(crate) fn no_interrupt_that_wakes_from_hlt_is_lost(make: Make) {
    const ROUNDS: u32 = 2000;
    let rig = Rig::new(make, 1, &[0x40, 0x41], |l| {
        l.wait();
    });
    let _runner = rig.run();
    for n in 0..ROUNDS {
        let vector = 0x40 + (n % 2) as u8;
        rig.pic.raise(vector);
        rig.expect(&[report(vector)]);
    }
    assert_eq!(rig.pic.acks.load(Ordering::SeqCst), ROUNDS);
}

pub(crate) fn an_nmi_comes_through_with_interrupts_off(make: Make) {
    let rig = Rig::new(make, 1, &[2, 0x40], |l| {
        let again = l.op(Op::If(false)).out(REPORT, 1).here();
        l.op(Op::Hlt).op(Op::Jump(again));
    });
    let runner = rig.runner();
    rig.pic.raise(0x40);
    runner.resume();
    rig.expect(&[report(1)]);
    for _ in 0..10 {
        runner.pause();
        runner.with_vcpus(|v| v.nmi());
        runner.resume();
        rig.expect(&[report(2)]);
    }
    assert_eq!(rig.pic.acks.load(Ordering::SeqCst), 0);
}

pub(crate) fn an_application_processor_waits_for_its_sipi(make: Make) {
    let rig = Rig::new(make, 2, &[], |l| {
        l.out(REPORT, 1).wait();
        l.org(0x5000).out(REPORT, 0xa1).wait();
        l.org(0x7000).out(REPORT, 0xa2).wait();
    });
    let runner = rig.run();
    rig.expect(&[report(1)]);
    let ap = |f: fn(&mut dyn crate::Vcpu)| {
        runner.pause();
        runner.with_vcpus(|v| (v.index() == 1).then(|| f(v)));
        runner.resume();
    };
    ap(|v| v.sipi(5));
    rig.expect(&[report(0xa1)]);
    // It does not wait any more, until there is an INIT.
    ap(|v| v.sipi(7));
    ap(|v| v.init());
    ap(|v| v.sipi(7));
    rig.expect(&[report(0xa2)]);
    ap(|v| v.init());
    ap(|v| v.sipi(5));
    rig.expect(&[report(0xa1)]);
    assert!(rig.seen.try_recv().is_err());
}

pub(crate) fn init_and_reset_take_the_bootstrap_processor_to_the_reset_vector(make: Make) {
    let rig = Rig::new(make, 1, &[], |l| {
        l.out(REPORT, 1).wait();
        l.org(RESET_VECTOR).out(REPORT, 2).op(Op::Hlt);
    });
    let runner = rig.run();
    rig.expect(&[report(1)]);
    for _ in 0..2 {
        runner.pause();
        runner.with_vcpus(|v| v.init());
        runner.resume();
        rig.expect(&[report(2)]);
    }
    runner.pause();
    runner.with_vcpus(|v| v.reset());
    runner.resume();
    rig.expect(&[report(2)]);
}

pub(crate) fn an_exception_is_taken_before_the_next_instruction(make: Make) {
    let rig = Rig::new(make, 1, &[6, 13], |l| {
        l.out(REPORT, 1).op(Op::If(false)).op(Op::Hlt).out(REPORT, 2).wait();
    });
    let runner = rig.runner();
    let inject = |vector, error| {
        runner.with_vcpus(|v| v.inject(Fault { vector, error, cr2: 0 }).unwrap());
    };
    inject(6, None);
    runner.resume();
    rig.expect(&[report(6), report(1)]);
    // Wherever it is between its report and HLT, or in HLT, it goes on with what follows: HLT does not last.
    loop {
        runner.pause();
        if runner.with_vcpus(|v| v.regs().unwrap().halted)[0] {
            break;
        }
        runner.resume();
        (0..100).for_each(|_| std::thread::yield_now());
    }
    inject(13, Some(0));
    runner.resume();
    rig.expect(&[report(13), report(2)]);
}

pub(crate) fn an_exception_that_cannot_be_delivered_is_a_triple_fault(make: Make) {
    let (rig, runner) = lone(make);
    runner.with_vcpus(|v| {
        let mut regs = v.regs().unwrap();
        regs.idtr.limit = 0;
        v.set_regs(&regs).unwrap();
        v.inject(Fault { vector: 6, error: None, cr2: 0 }).unwrap();
    });
    runner.resume();
    assert!(matches!(rig.outcomes.recv_timeout(SOON), Ok(Outcome::TripleFault(_))));
}

pub(crate) fn processors_that_nothing_can_wake_are_the_end(make: Make) {
    let rig = Rig::new(make, 3, &[], |l| {
        l.op(Op::If(false)).op(Op::Hlt);
    });
    let _runner = rig.run();
    assert_eq!(rig.outcomes.recv_timeout(SOON), Ok(Outcome::Halted));
}

pub(crate) fn a_kick_before_the_run_ends_the_run(make: Make) {
    let rig = Rig::new(make, 1, &[], |l| {
        let here = l.here();
        l.op(Op::Jump(here));
    });
    let mut vcpu = rig.vm.take_vcpus().remove(0);
    assert!(rig.vm.take_vcpus().is_empty());
    vcpu.set_regs(&at_entry(vcpu.regs().unwrap())).unwrap();
    rig.machine.clock().resume();
    for _ in 0..1000 {
        rig.vm.kick(0);
        assert_eq!(vcpu.run(u64::MAX), Exit::Kicked);
    }
    // And one in the midst of it.
    for _ in 0..50 {
        std::thread::scope(|s| {
            s.spawn(|| rig.vm.kick(0));
            assert_eq!(vcpu.run(u64::MAX), Exit::Kicked);
        });
    }
}

pub(crate) fn kicks_from_many_threads_do_not_disturb_the_guest(make: Make) {
    let rig = Rig::new(make, 2, &[0x40], |l| {
        let again = l.out(REPORT, 1).op(Op::If(true)).here();
        l.op(Op::Inc(0x7000)).op(Op::Jump(again));
    });
    let runner = rig.run();
    rig.expect(&[report(1)]);
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        for n in 0..4 {
            let (vm, over) = (&rig.vm, &over);
            s.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    vm.kick(n % 2);
                    std::thread::yield_now();
                }
            });
        }
        for _ in 0..200 {
            rig.pic.raise(0x40);
            rig.expect(&[report(0x40)]);
            runner.pause();
            runner.resume();
        }
        over.store(true, Ordering::SeqCst);
    });
    assert!(rig.outcomes.try_recv().is_err());
}

pub(crate) fn after_a_pause_no_processor_runs_until_it_is_resumed(make: Make) {
    const CPUS: u32 = 4;
    let counter = |n: u32| 0x7000 + 0x1000 * u64::from(n);
    let rig = Rig::new(make, CPUS, &[], |l| {
        for n in 0..CPUS {
            let again = l.org(if n == 0 { ENTRY } else { 0x4000 + 0x100 * n }).here();
            l.op(Op::Inc(counter(n) as u16)).op(Op::Jump(again));
        }
    });
    let runner = rig.runner();
    runner.with_vcpus(|v| {
        if v.index() > 0 {
            let mut regs = at_entry(v.regs().unwrap());
            (regs.wait_sipi, regs.rip) = (false, u64::from(0x4000 + 0x100 * v.index()));
            v.set_regs(&regs).unwrap();
        }
    });
    let counts = || (0..CPUS).map(|n| rig.byte(counter(n))).collect::<Vec<_>>();
    for _ in 0..20 {
        let before = counts();
        runner.resume();
        while counts().iter().zip(&before).any(|(a, b)| a == b) {
            std::thread::yield_now();
        }
        runner.pause();
        let (time, stopped) = (rig.machine.clock().now(), counts());
        (0..100).for_each(|_| std::thread::yield_now());
        assert_eq!(counts(), stopped);
        assert_eq!(rig.machine.clock().now(), time, "guest time stands still");
    }
}

pub(crate) fn reset_is_power_on_again(make: Make) {
    let rig = Rig::new(make, 2, &[], |l| {
        l.ds(0x1234).mov(CX, 0x5678).out(REPORT, 1).wait();
    });
    let fresh = rig.runner();
    // Not counting the entry, which is the rig's.
    let power_on = fresh.with_vcpus(|v| {
        v.reset();
        Regs { icount: 0, ..v.regs().unwrap() }
    });
    fresh.with_vcpus(|v| (v.index() == 0).then(|| v.set_regs(&at_entry(v.regs().unwrap())).unwrap()));
    fresh.resume();
    rig.expect(&[report(1)]);
    fresh.pause();
    let after = fresh.with_vcpus(|v| {
        let used = Regs { icount: 0, ..v.regs().unwrap() };
        v.reset();
        (used, Regs { icount: 0, ..v.regs().unwrap() })
    });
    assert_ne!(after[0].0, power_on[0]);
    assert_eq!(after.into_iter().map(|(_, r)| r).collect::<Vec<_>>(), power_on);
}

/// A state in which every field has a value of its own.
fn unlike(r: &Regs) -> Regs {
    let mut n = r.clone();
    n.gpr = std::array::from_fn(|i| 0x0101_0101_0101_0101 * (i as u64 + 1));
    (n.rip, n.rflags) = (0x1234, 0x0ad7);
    for (i, s) in [&mut n.es, &mut n.cs, &mut n.ss, &mut n.ds, &mut n.fs, &mut n.gs].into_iter().enumerate() {
        (s.selector, s.base) = (0x100 * (i as u16 + 1), 0x1000 * (i as u64 + 1));
    }
    (n.ldtr.selector, n.ldtr.base) = (0x28, 0x7777);
    (n.tr.selector, n.tr.base) = (0x30, 0x8888);
    (n.gdtr.base, n.gdtr.limit) = (0x9999, 0x77);
    (n.idtr.base, n.idtr.limit) = (0xaaaa, 0x3ff);
    (n.cr0, n.cr2, n.cr3, n.cr4) = (r.cr0 ^ 0x2, 0xdead_beef, 0x5000, 0x600);
    n.pdpte = [0x1001, 0x2001, 0x3001, 0x4001];
    n.xcr0 = 3;
    n.dr = [1, 2, 3, 4];
    (n.dr6, n.dr7) = (0xffff_0ff1, 0x401);
    (n.msrs.star, n.msrs.lstar, n.msrs.sysenter_eip) = (1 << 40, 2 << 40, 0x1000);
    n.msrs.mtrr_fixed = [0x0606_0606_0606_0606; 11];
    n.tsc = 0x1234_5678_9abc;
    n.fx = (0..512).map(|i| if i < 416 { i as u8 } else { 0 }).collect();
    // Control and tag words, MXCSR: reserved bits clear. The mask of MXCSR is the processor's own.
    n.fx[..6].copy_from_slice(&[0x7f, 0x03, 0x00, 0x38, 0xff, 0x00]);
    n.fx[24..32].copy_from_slice(&[0xa0, 0x1f, 0, 0, r.fx[28], r.fx[29], r.fx[30], r.fx[31]]);
    for st in 0..8 {
        n.fx[32 + 16 * st + 10..][..6].fill(0);
    }
    n.fcs_fds = (0x10, 0x18);
    n.ferr_ignne = (true, true);
    (n.shadow, n.nmi_blocked, n.nmi_pending, n.halted) = (true, true, true, true);
    n.debug_traps = (1, 2);
    n
}

pub(crate) fn state_that_is_set_is_what_is_got(make: Make) {
    let (_rig, runner) = lone(make);
    runner.with_vcpus(|v| {
        let old = v.regs().unwrap();
        v.set_regs(&old).unwrap();
        assert_eq!(v.regs().unwrap(), old);
        let mut new = fields(&unlike(&old));
        for lacked in v.lacks() {
            assert!(new.get(lacked).is_some(), "there is no field {lacked}");
            new[*lacked] = fields(&old)[*lacked].clone();
        }
        let new: Regs = serde_json::from_value(new).unwrap();
        v.set_regs(&new).unwrap();
        let got = fields(&v.regs().unwrap());
        for (name, value) in fields(&new).as_object().unwrap() {
            assert_eq!(&got[name], value, "{name}");
        }
    });
}

pub(crate) fn state_that_a_back_end_lacks_is_refused_by_name(make: Make) {
    let (_rig, runner) = lone(make);
    runner.with_vcpus(|v| {
        let old = v.regs().unwrap();
        for lacked in v.lacks() {
            let mut new = fields(&old);
            new[*lacked] = fields(&unlike(&old))[*lacked].clone();
            let error = v.set_regs(&serde_json::from_value(new).unwrap()).unwrap_err();
            assert_eq!(error.downcast::<Lacking>().unwrap().fields, [*lacked]);
            assert_eq!(v.regs().unwrap(), old, "nothing is set");
        }
        match v.save() {
            Err(error) => assert_eq!(error.downcast::<Lacking>().unwrap().fields, v.lacks()),
            // In its own terms it may have all that there is.
            Ok(saved) => v.load(saved).unwrap(),
        }
    });
}

pub(crate) fn a_saved_processor_goes_on_in_another_machine(make: Make) {
    let program = |l: &mut Listing| {
        l.mov(CX, 0x77).out(REPORT, 1).op(Op::If(true)).op(Op::Hlt).out(REPORT, 2).wait();
    };
    let (one, two) = (Rig::new(make, 1, &[0x40], program), Rig::new(make, 1, &[0x40], program));
    let (first, second) = (one.run(), two.runner());
    one.expect(&[report(1)]);
    first.pause();
    let saved = first.with_vcpus(|v| v.save()).remove(0);
    let Ok(saved) = saved else { return };
    two.machine.clock().set(one.machine.clock().now());
    second.with_vcpus(|v| {
        v.load(saved.clone()).unwrap();
        assert_eq!(v.save().unwrap(), saved);
    });
    second.resume();
    two.pic.raise(0x40);
    two.expect(&[report(0x40), report(2)]);
    second.pause();
    assert!(second.with_vcpus(|v| v.load("nonsense".into()).is_err())[0]);
}

pub(crate) fn the_log_has_the_pages_that_the_guest_writes(make: Make) {
    let rig = Rig::new(make, 1, &[0x40], |l| {
        let again = l.op(Op::Inc(0x5000)).op(Op::Inc(0x9fff)).out(REPORT, 1).here();
        // The interrupt comes in HLT and nowhere else.
        l.op(Op::If(true)).op(Op::Hlt).op(Op::If(false)).op(Op::Inc(0x5004)).out(REPORT, 2).op(Op::Jump(again));
    });
    let runner = rig.runner();
    // Vectors, program and handlers are only read. KVM logs a page that it maps for a read, since it is writable then.
    let harvest = || {
        let pages = rig.machine.space.harvest_dirty(&rig.block);
        pages.into_iter().filter(|page| *page > 2).collect::<Vec<_>>()
    };
    rig.machine.space.set_dirty_log(true);
    runner.resume();
    rig.expect(&[report(1)]);
    runner.pause();
    assert_eq!(harvest(), [5, 9]);
    assert!(harvest().is_empty());
    for _ in 0..2 {
        runner.resume();
        rig.pic.raise(0x40);
        rig.expect(&[report(0x40), report(2)]);
        runner.pause();
        // The stack of the handler is one of them.
        assert_eq!(harvest(), [5, 7]);
    }
    rig.machine.space.set_dirty_log(false);
    runner.resume();
    rig.pic.raise(0x40);
    rig.expect(&[report(0x40), report(2)]);
    runner.pause();
    assert!(harvest().is_empty());
}

pub(crate) fn a_doorbell_is_heard_but_not_by_the_write(make: Make) {
    let rig = Rig::new(make, 1, &[], |l| {
        l.mov(DX, BELL).op(Op::Out(2)).op(Op::Out(2)).out(REPORT, 1).mov(DX, BELL).op(Op::Out(4)).wait();
    });
    let _runner = rig.run();
    // There is no io thread here, so nobody hears the bell before the processor has nothing to do.
    rig.expect(&[report(1)]);
    assert!(matches!(rig.seen.recv_timeout(SOON), Ok(Seen::Out(BELL, 4, _))), "another width is an ordinary write");
    rig.machine.timers.run_due();
    rig.expect(&[Seen::Bell]);
}

/// Makes the suite the tests of one back end. The second argument says of a test why it cannot be made on this host.
macro_rules! suite {
    ($make:expr) => {
        $crate::conformance::suite!($make, |_: &str| None::<String>);
    };
    ($make:expr, $skip:expr) => {
        $crate::conformance::suite!($make, $skip;
            ports_are_reached_with_the_width_of_the_access
            device_memory_is_reached_with_the_width_of_the_access
            string_instructions_move_between_ports_and_memory
            memory_changes_its_kind_before_the_access_that_asks_for_it_is_over
            an_interrupt_is_acknowledged_when_the_guest_takes_it
            no_interrupt_that_wakes_from_hlt_is_lost
            an_nmi_comes_through_with_interrupts_off
            an_application_processor_waits_for_its_sipi
            init_and_reset_take_the_bootstrap_processor_to_the_reset_vector
            an_exception_is_taken_before_the_next_instruction
            an_exception_that_cannot_be_delivered_is_a_triple_fault
            processors_that_nothing_can_wake_are_the_end
            a_kick_before_the_run_ends_the_run
            kicks_from_many_threads_do_not_disturb_the_guest
            after_a_pause_no_processor_runs_until_it_is_resumed
            reset_is_power_on_again
            state_that_is_set_is_what_is_got
            state_that_a_back_end_lacks_is_refused_by_name
            a_saved_processor_goes_on_in_another_machine
            the_log_has_the_pages_that_the_guest_writes
            a_doorbell_is_heard_but_not_by_the_write
            a_doorbell_that_is_handed_over_is_known_when_the_processors_are_paused
        );
    };
    ($make:expr, $skip:expr; $($name:ident)*) => {
        $(#[test]
        fn $name() {
            match $skip(stringify!($name)) {
                Some(why) => println!("skipped: {why}"),
                None => $crate::conformance::$name(&$make),
            }
        })*
    };
}
pub(crate) use suite;

mod soft {
    use crate::Soft;
    crate::conformance::suite!(|_: &super::Listing| Box::new(Soft));

    #[test]
    fn by_the_instruction_clock_a_doorbell_is_heard_before_the_next_instruction() {
        use super::*;
        let soft = |_: &Listing| -> Box<dyn Hypervisor> { Box::new(Soft) };
        let rig = Rig::with(Clock::instructions(), &soft, 1, &[], |l| {
            l.mov(DX, BELL).mov(AX, 0).op(Op::Out(2)).mov(DX, REPORT).op(Op::Out(2)).mov(DX, BELL);
            // Two at once are two: the first is heard before the second rings.
            l.op(Op::Out(2)).op(Op::Out(2)).out(REPORT, 1).op(Op::Hlt);
        });
        let _runner = rig.run();
        let first = Seen::Out(REPORT, 2, 0);
        rig.expect(&[Seen::Bell, first, Seen::Bell, Seen::Bell, report(1)]);
    }
}

mod mock {
    use crate::mock::Mock;
    crate::conformance::suite!(|l: &super::Listing| Box::new(Mock {
        listing: l.clone(),
        one_thread: false,
        lacks: &[]
    }));
}

/// On one thread, and without access to some of the state.
mod mock_on_one_thread {
    use crate::mock::Mock;
    const LACKS: &[&str] = &["ferr_ignne", "fx"];
    crate::conformance::suite!(|l: &super::Listing| {
        Box::new(Mock { listing: l.clone(), one_thread: true, lacks: LACKS })
    });
}
