//! Doorbells that a device hands over: the host's kernel may take the write, and another thread tell the device.

use super::*;

const PORT: u16 = 0x200;
/// Rings for a 7 only.
const SEVEN: u16 = 4;
/// Moves the ports to the value.
const MOVE: u16 = 8;

/// What a device heard, and whether the processor's thread told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Heard {
    Bell(u64, bool),
    Write(u64, u64, bool),
}

struct Belled {
    tell: Sender<Heard>,
    ports: Region,
    nothing: u8,
}

impl Belled {
    fn plug(rig: &Rig, name: &str) -> Receiver<Heard> {
        let (tell, heard) = channel();
        let create = |slot: &mut Slot| -> Result<Box<dyn Device>, String> {
            let ports = slot.ports(0, PORT, 0x10, Widths::DWORD);
            slot.doorbell(0, 0, 2, None, true);
            slot.doorbell(0, SEVEN.into(), 2, Some(7), true);
            Ok(Box::new(Belled { tell, ports, nothing: 0 }))
        };
        rig.machine.plug_with(name, None, Backends::default(), create).unwrap();
        heard
    }

    fn by_processor() -> bool {
        std::thread::current().name().is_some_and(|name| name.starts_with("vcpu"))
    }
}

impl Device for Belled {
    fn write(&mut self, _: u32, offset: u64, _: u8, value: u64) {
        if offset == u64::from(MOVE) {
            self.ports.enable(value);
        }
        let _ = self.tell.send(Heard::Write(offset, value, Belled::by_processor()));
    }

    fn event(&mut self, event: Event) {
        if let Event::Doorbell(_, offset) = event {
            let _ = self.tell.send(Heard::Bell(offset, Belled::by_processor()));
        }
    }

    fn reset(&mut self, _: ResetKind) {}

    fn state(&mut self) -> &mut dyn State {
        &mut self.nothing
    }
}

fn ring(l: &mut Listing, port: u16, value: u16) -> &mut Listing {
    l.mov(DX, port).mov(AX, value).op(Op::Out(2))
}

pub(crate) fn a_doorbell_that_is_handed_over_is_known_when_the_processors_are_paused(make: Make) {
    for _ in 0..20 {
        let rig = Rig::new(make, 1, &[], |l| {
            // It does not wait: a thread that has nothing else to do may see to timers.
            let again = ring(ring(l, PORT, 0), PORT, 0).out(REPORT, 1).here();
            l.op(Op::Jump(again));
        });
        let heard = Belled::plug(&rig, "belled");
        let runner = rig.run();
        rig.expect(&[report(1)]);
        runner.pause();
        // The gate is shut here, as it is in a machine that is paused.
        assert!(heard.try_recv().is_err());
        assert!(rig.machine.timers.next() < u64::MAX, "it waits for the machine, and is saved with it");
        rig.machine.reset(ResetKind::System);
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [Heard::Bell(0, false)], "the reset came later");
        runner.resume();
        runner.pause();
        rig.machine.timers.run_due();
        assert!(heard.try_recv().is_err(), "and it came once");
    }
}

#[cfg(target_os = "linux")]
mod kvm {
    use super::*;
    use crate::conformance::kvm::{kvm, there};

    fn open(rig: &Rig) {
        rig.machine.timers.set_gate(|f| {
            f();
            true
        });
    }

    #[test]
    fn the_kernel_takes_what_rings_and_nothing_else_wherever_its_region_lies() {
        const MOVED: u16 = 0x300;
        if !there() {
            return;
        }
        let rig = Rig::new(&kvm, 1, &[0x40], |l| {
            let wait = |l: &mut Listing| {
                l.op(Op::If(true)).op(Op::Hlt).op(Op::If(false));
            };
            wait(ring(l, PORT, 5));
            ring(ring(l, PORT + SEVEN, 7), PORT + SEVEN, 8);
            l.mov(AX, 9).mov(DX, PORT).op(Op::Out(4));
            wait(ring(l, PORT + MOVE, MOVED));
            ring(ring(l, PORT, 5), MOVED, 5).out(REPORT, 1).wait();
        });
        let heard = Belled::plug(&rig, "belled");
        open(&rig);
        let _runner = rig.run();
        let next = |n: usize| {
            let mut next: Vec<_> = (0..n).map(|_| heard.recv_timeout(SOON).unwrap()).collect();
            next.sort();
            next
        };
        assert_eq!(next(1), [Heard::Bell(0, false)]);
        rig.pic.raise(0x40);
        let seven = Heard::Bell(SEVEN.into(), false);
        let writes = [(0, 9), (SEVEN.into(), 8), (MOVE.into(), MOVED.into())].map(|(at, v)| Heard::Write(at, v, true));
        assert_eq!(next(4), [[seven].as_slice(), &writes].concat());
        rig.expect(&[report(0x40)]);
        rig.pic.raise(0x40);
        assert_eq!(next(1), [Heard::Bell(0, false)]);
        rig.expect(&[report(0x40), report(1)]);
        assert!(heard.try_recv().is_err(), "nobody is at the old place");
    }

    #[test]
    fn two_doorbells_in_one_place_are_one() {
        if !there() {
            return;
        }
        let rig = Rig::new(&kvm, 1, &[], |l| {
            ring(l, PORT, 5).out(REPORT, 1).wait();
        });
        let (first, second) = (Belled::plug(&rig, "first"), Belled::plug(&rig, "second"));
        open(&rig);
        let runner = rig.run();
        rig.expect(&[report(1)]);
        runner.pause();
        assert_eq!(first.try_iter().collect::<Vec<_>>(), [Heard::Bell(0, false)]);
        assert!(second.try_recv().is_err());
        assert!(rig.outcomes.try_recv().is_err());
    }
}
