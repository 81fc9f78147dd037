use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::backend::DiskOp;
use crate::bench::Bench;
use crate::device::{Backends, Device, Machine, ResetKind, Slot, State};
use crate::ram::Ram;
use crate::space::AddressSpace;
use crate::{Clock, DeviceState, when_unlocked};

/// A disk whose requests the test answers, or a thread of its own.
#[derive(Clone)]
struct Scripted(Sender<(DiskRequest, Ticket)>);

impl Disk for Scripted {
    fn size(&self) -> u64 {
        4096
    }
    fn read_only(&self) -> bool {
        true
    }
    fn submit(&mut self, request: DiskRequest, ticket: Ticket) {
        let to = self.0.clone();
        when_unlocked(move || to.send((request, ticket)).unwrap());
    }
    fn cancel(&mut self) {}
    fn share(&self) -> Box<dyn Disk> {
        Box::new(self.clone())
    }
}

/// Reads 4 bytes whenever it is written to, and remembers the answers in its state.
struct Reader {
    disk: DiskPort,
    heard: Vec<(u64, bool, Vec<u8>)>,
    /// Cancels when it has heard this tag.
    cancel_at: u64,
    /// Asks again at each answer.
    greedy: bool,
}

impl Reader {
    fn ask(&mut self, tag: u64) {
        self.disk.submit(DiskRequest { tag, offset: 0, op: DiskOp::ReadBytes(4) });
    }
}

impl Device for Reader {
    fn write(&mut self, _: u32, _: u64, _: u8, value: u64) {
        self.ask(value);
    }

    fn event(&mut self, event: Event) {
        let Event::Done(c) = event else { return };
        self.heard.push((c.tag, c.ok, c.data));
        if c.tag == self.cancel_at {
            self.disk.cancel();
        }
        if self.greedy {
            self.ask(c.tag + 1);
        }
    }

    fn reset(&mut self, _: ResetKind) {
        self.disk.cancel();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.heard
    }
}

fn reader(slot: &mut Slot) -> Box<dyn Device> {
    let disk = slot.disk(0).unwrap();
    assert!(slot.disk(0).is_none() && slot.disk(1).is_none());
    assert_eq!((disk.size(), disk.read_only()), (4096, true));
    Box::new(Reader { disk, heard: Vec::new(), cancel_at: u64::MAX, greedy: false })
}

type Jobs = Receiver<(DiskRequest, Ticket)>;

fn rig(machine: &Arc<Machine>) -> (Arc<DeviceCell>, Jobs) {
    let (tx, jobs) = channel();
    let backends = Backends { disks: vec![Some(Box::new(Scripted(tx)))], ..Backends::default() };
    (machine.plug_with("reader", None, backends, |slot| Ok(reader(slot))).unwrap(), jobs)
}

fn ask(cell: &DeviceCell, tag: u64) {
    cell.with(|d| d.write(0, 0, 4, tag));
}

fn heard(cell: &DeviceCell) -> Vec<u64> {
    let state = cell.with(|d| d.state().save()).unwrap();
    serde_json::from_value::<Vec<(u64, bool, Vec<u8>)>>(state).unwrap().iter().map(|h| h.0).collect()
}

#[test]
fn answers_come_by_a_timer_in_the_order_of_the_requests_that_are_done() {
    let b = Bench::new();
    let (cell, jobs) = rig(&b.machine);
    (1..=3).for_each(|tag| ask(&cell, tag));
    let tickets: Vec<Ticket> = jobs.try_iter().map(|(_, t)| t).collect();
    let [one, two, three] = tickets.try_into().ok().unwrap();
    b.advance(1_000_000_000);
    assert!(heard(&cell).is_empty(), "nobody has answered");
    three.finish(true, vec![3; 4]);
    one.finish(true, vec![1; 4]);
    assert!(heard(&cell).is_empty(), "the worker's thread does not touch the device");
    b.advance(0);
    assert_eq!(heard(&cell), [1, 3]);
    drop(two);
    b.advance(0);
    assert_eq!(cell.save().state[2], serde_json::json!([2, false, []]), "a lost request has failed");
}

fn running() -> Arc<Machine> {
    let machine = Machine::new(AddressSpace::new(Arc::new(Ram::new(1 << 20).unwrap())), Clock::running());
    machine.clock().resume();
    machine
}

#[test]
fn in_real_time_who_answers_delivers_and_only_while_the_machine_runs() {
    let machine = running();
    let (cell, jobs) = rig(&machine);
    let open = Arc::new(AtomicBool::new(true));
    let gate = open.clone();
    machine.timers.set_gate(move |f| {
        let open = gate.load(Ordering::Relaxed);
        if open {
            f();
        }
        open
    });
    ask(&cell, 1);
    jobs.recv().unwrap().1.finish(true, vec![1; 4]);
    assert_eq!((heard(&cell), machine.timers.next()), (vec![1], u64::MAX));
    open.store(false, Ordering::Relaxed);
    ask(&cell, 2);
    jobs.recv().unwrap().1.finish(true, vec![2; 4]);
    assert_eq!(heard(&cell), [1]);
    machine.timers.run_due();
    assert_eq!(heard(&cell), [1, 2]);
}

#[test]
fn nothing_is_heard_of_what_was_cancelled() {
    let b = Bench::new();
    let (cell, jobs) = rig(&b.machine);
    (1..=3).for_each(|tag| ask(&cell, tag));
    let mut tickets = jobs.try_iter().map(|(_, t)| t);
    tickets.next().unwrap().finish(true, Vec::new());
    b.machine.reset(ResetKind::System);
    tickets.for_each(|t| t.finish(true, Vec::new()));
    b.advance(1);
    assert!(heard(&cell).is_empty());
    ask(&cell, 9);
    jobs.recv().unwrap().1.finish(true, Vec::new());
    b.advance(0);
    assert_eq!(heard(&cell), [9]);
}

#[test]
fn answers_that_are_due_together_end_with_one_word() {
    /// Counts the answers of each batch.
    struct Counter(DiskPort, Vec<u64>);
    impl Device for Counter {
        fn write(&mut self, _: u32, _: u64, _: u8, tag: u64) {
            self.0.submit(DiskRequest { tag, offset: 0, op: DiskOp::Flush });
        }
        fn event(&mut self, event: Event) {
            match event {
                Event::Done(_) => *self.1.last_mut().unwrap() += 1,
                Event::AllDone => self.1.push(0),
                _ => {}
            }
        }
        fn reset(&mut self, _: ResetKind) {}
        fn state(&mut self) -> &mut dyn State {
            &mut self.1
        }
    }
    let b = Bench::new();
    let (tx, jobs) = channel();
    let backends = Backends { disks: vec![Some(Box::new(Scripted(tx)))], ..Backends::default() };
    let make =
        |slot: &mut Slot| -> Result<Box<dyn Device>, String> { Ok(Box::new(Counter(slot.disk(0).unwrap(), vec![0]))) };
    let cell = b.machine.plug_with("counter", None, backends, make).unwrap();
    (1..=3).for_each(|tag| ask(&cell, tag));
    jobs.try_iter().take(2).for_each(|(_, ticket)| ticket.finish(true, Vec::new()));
    b.advance(1);
    jobs.try_iter().for_each(|(_, ticket)| ticket.finish(true, Vec::new()));
    b.advance(1);
    assert_eq!(cell.with(|d| d.state().save()), Some(serde_json::json!([2, 1, 0])));
}

#[test]
fn a_device_that_cancels_while_it_hears_one_answer_does_not_hear_the_next() {
    let b = Bench::new();
    let (tx, jobs) = channel();
    let backends = Backends { disks: vec![Some(Box::new(Scripted(tx)))], ..Backends::default() };
    let create = |slot: &mut Slot| -> Result<Box<dyn Device>, String> {
        let disk = slot.disk(0).unwrap();
        Ok(Box::new(Reader { disk, heard: Vec::new(), cancel_at: 1, greedy: false }))
    };
    let cell = b.machine.plug_with("reader", None, backends, create).unwrap();
    (1..=2).for_each(|tag| ask(&cell, tag));
    jobs.try_iter().for_each(|(_, t)| t.finish(true, Vec::new()));
    b.advance(0);
    assert_eq!(heard(&cell), [1]);
}

#[test]
fn a_fast_host_and_a_greedy_device_do_not_keep_the_thread() {
    /// Answers at once, that is as soon as the clock shows another time than when the delivery began.
    #[derive(Clone)]
    struct Fast(Arc<Clock>);
    impl Disk for Fast {
        fn size(&self) -> u64 {
            0
        }
        fn read_only(&self) -> bool {
            true
        }
        fn submit(&mut self, _: DiskRequest, ticket: Ticket) {
            let start = self.0.now();
            while self.0.now() == start {}
            ticket.finish(true, Vec::new());
        }
        fn cancel(&mut self) {}
        fn share(&self) -> Box<dyn Disk> {
            Box::new(self.clone())
        }
    }
    let machine = running();
    machine.timers.set_gate(|f| {
        f();
        true
    });
    let fast = Box::new(Fast(machine.clock().clone()));
    let backends = Backends { disks: vec![Some(fast)], ..Backends::default() };
    let create = |slot: &mut Slot| -> Result<Box<dyn Device>, String> {
        let disk = slot.disk(0).unwrap();
        Ok(Box::new(Reader { disk, heard: Vec::new(), cancel_at: u64::MAX, greedy: true }))
    };
    let cell = machine.plug_with("reader", None, backends, create).unwrap();
    ask(&cell, 1);
    for n in 1..4 {
        assert_eq!(machine.timers.run_due(), 1);
        assert_eq!(heard(&cell).len(), n);
    }
}

fn by_instructions() -> (Arc<Machine>, Arc<DeviceCell>, std::thread::JoinHandle<usize>) {
    let machine = Machine::new(AddressSpace::new(Arc::new(Ram::new(1 << 20).unwrap())), Clock::instructions());
    let (cell, jobs) = rig(&machine);
    // The host's speed differs from request to request.
    let worker = std::thread::spawn(move || {
        let mut served = 0;
        for (request, ticket) in jobs {
            (0..request.tag % 7 * 1000).for_each(|_| std::thread::yield_now());
            ticket.finish(true, request.tag.to_le_bytes()[..4].to_vec());
            served += 1;
        }
        served
    });
    (machine, cell, worker)
}

#[test]
fn by_the_instruction_clock_an_answer_takes_the_same_time_whatever_the_host_does() {
    let (machine, cell, worker) = by_instructions();
    for tag in 1..20 {
        let start = tag * 1_000_000;
        machine.clock().set(start);
        ask(&cell, tag);
        assert_eq!(machine.timers.next(), start + DISK_LATENCY);
        machine.clock().set(start + DISK_LATENCY - 1);
        machine.timers.run_due();
        assert_eq!(heard(&cell).len() as u64, tag - 1);
        machine.clock().set(start + DISK_LATENCY);
        machine.timers.run_due();
        assert_eq!(heard(&cell).len() as u64, tag);
    }
    drop((machine, cell));
    assert_eq!(worker.join().unwrap(), 19);
}

#[test]
fn answers_on_their_way_are_saved_and_arrive_elsewhere_at_their_time() {
    let (machine, cell, _) = by_instructions();
    machine.clock().set(500);
    ask(&cell, 5);
    machine.clock().set(700);
    ask(&cell, 6);
    let saved = cell.save();
    assert_eq!(saved.timers, []);

    let (other, there, _) = by_instructions();
    other.clock().set(700);
    there.load(saved.clone()).unwrap();
    assert_eq!(there.save(), saved);
    other.clock().set(DISK_LATENCY + 699);
    other.timers.run_due();
    assert_eq!(heard(&there), [5]);
    other.clock().set(DISK_LATENCY + 700);
    other.timers.run_due();
    assert_eq!(there.save().state[1], serde_json::json!([6, true, [6, 0, 0, 0]]));
    let fewer = crate::Saved { disks: Vec::new(), ..saved };
    assert!(there.load(fewer).unwrap_err().contains("disks"));
}

#[test]
fn who_saves_waits_for_the_host() {
    let b = Bench::new();
    let (cell, jobs) = rig(&b.machine);
    ask(&cell, 1);
    let (_, ticket) = jobs.recv().unwrap();
    let saver = std::thread::spawn(move || cell.save());
    // The answer may come before the wait begins or after; it must be in the file either way.
    std::thread::yield_now();
    ticket.finish(true, vec![7]);
    assert_eq!(saver.join().unwrap().disks, [[SavedAnswer { due: 0, tag: 1, ok: true, data: vec![7] }]]);
}
