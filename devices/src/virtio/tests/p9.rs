use std::sync::{Arc, Mutex};

use emu::backend::Share;
use emu::{Backends, DeviceState, Ticket};
use serde_json::{Value, json};

use super::*;
use crate::virtio::p9::MODEL;

/// The host's end: it answers with what it was asked, backwards.
#[derive(Clone, Default)]
struct End(Arc<Mutex<EndState>>);

#[derive(Default)]
struct EndState {
    /// While it is held, what was asked.
    held: Option<Vec<(Vec<u8>, usize, Ticket)>>,
    asked: usize,
    resets: usize,
    loaded: Value,
}

fn answer(mut message: Vec<u8>, room: usize, ticket: Ticket) {
    message.reverse();
    message.truncate(room);
    ticket.finish(true, message);
}

impl Share for End {
    fn submit(&mut self, message: Vec<u8>, room: usize, ticket: Ticket) {
        let mut s = self.0.lock().unwrap();
        s.asked += 1;
        match &mut s.held {
            Some(held) => held.push((message, room, ticket)),
            None => answer(message, room, ticket),
        }
    }

    fn reset(&mut self) {
        self.0.lock().unwrap().resets += 1;
    }

    fn save(&self) -> Value {
        json!({ "fids": 3 })
    }

    fn load(&mut self, saved: Value) -> Result<(), String> {
        self.0.lock().unwrap().loaded = saved;
        Ok(())
    }
}

impl End {
    fn hold(&self) {
        self.0.lock().unwrap().held = Some(Vec::new());
    }

    fn release(&self) {
        let held = self.0.lock().unwrap().held.take();
        held.into_iter().flatten().for_each(|(message, room, ticket)| answer(message, room, ticket));
    }

    fn asked(&self) -> usize {
        self.0.lock().unwrap().asked
    }
}

/// A driver that is ready.
fn rig(via: Via) -> (Rig, End) {
    let end = End::default();
    let share = Some(Box::new(end.clone()) as Box<dyn Share>);
    let mut r = Rig::new(&MODEL, via, &[("name", "work")], |_| Backends { share, ..Backends::default() });
    r.start(EVENT_IDX | INDIRECT | 1, 1);
    (r, end)
}

#[test]
fn messages_and_replies_go_through_whatever_buffers_they_are_cut_into() {
    for via in WAYS {
        let (mut r, _) = rig(via);
        assert_eq!(r.features & 1, 1, "the mount tag");
        let tag: Vec<u8> = (0..6).map(|n| r.config(n, 1) as u8).collect();
        assert_eq!(tag, b"\x04\0work", "{via:?}");
        r.dma().write(DATA, b"a long ");
        r.dma().write(DATA + 0x1000, b"message");
        let cut = [(DATA, 7, false), (DATA + 0x1000, 7, false), (DATA + 0x2000, 5, true), (DATA + 0x3000, 100, true)];
        let head = r.add(0, &cut);
        r.kick(0);
        assert_eq!(r.used(0), [(head, 14)], "{via:?}");
        assert_eq!(
            (r.memory(DATA + 0x2000, 6), r.memory(DATA + 0x3000, 10)),
            (b"egass\0".into(), b"em gnol a\0".into())
        );
        assert_eq!(r.interrupt(), 1);
        // No more than there is room for, and nothing where there is none for a header.
        let heads = [r.add(0, &[cut[0], (DATA, 8, true)]), r.add(0, &[cut[0], (DATA, 6, true)]), r.add(0, &[cut[0]])];
        r.kick(0);
        assert_eq!(r.used(0).iter().map(|(_, len)| *len).sum::<u32>(), 7, "{heads:?}");
        assert_eq!(r.memory(DATA, 7), b" gnol a");
    }
}

#[test]
fn the_share_has_a_limited_number_of_messages_and_the_rest_waits_in_the_queue() {
    let (mut r, end) = rig(WAYS[3]);
    end.hold();
    for n in 0..30 {
        r.add(0, &[(DATA, 16, false), (DATA + 0x1000 + 64 * n, 64, true)]);
    }
    r.kick(0);
    for n in 30..60 {
        let table = DATA + 0x8000 + 64 * n;
        r.add_table(0, table, &[(DATA, 16, false), (DATA + 0x1000 + 64 * n, 64, true)]);
        r.kick(0);
    }
    assert_eq!((end.asked(), r.used(0).len()), (32, 0));
    end.release();
    r.settle();
    assert_eq!((end.asked(), r.used(0).len()), (60, 60));
}

#[test]
fn a_reset_forgets_what_was_asked_and_what_is_open() {
    let (mut r, end) = rig(WAYS[2]);
    end.hold();
    r.dma().write(DATA, b"message");
    r.add(0, &[(DATA, 7, false), (DATA + 0x1000, 64, true)]);
    r.kick(0);
    let before = end.0.lock().unwrap().resets;
    r.set_status(0);
    assert_eq!(end.0.lock().unwrap().resets, before + 1);
    end.release();
    r.settle();
    assert_eq!(r.memory(DATA + 0x1000, 7), [0; 7]);
    r.start(EVENT_IDX, 1);
    r.add(0, &[(DATA, 7, false), (DATA + 0x1000, 64, true)]);
    r.kick(0);
    assert_eq!((r.used(0).len(), r.memory(DATA + 0x1000, 7)), (1, b"egassem".to_vec()));
}

#[test]
fn a_reply_on_its_way_and_the_session_are_saved() {
    let (mut r, _) = rig(WAYS[3]);
    r.dma().write(DATA, b"message");
    let head = r.add(0, &[(DATA, 7, false), (DATA + 0x1000, 4, true), (DATA + 0x2000, 64, true)]);
    // It is answered, and time stands still.
    r.notify(0);
    r.bench.machine.timers.run_due();
    let saved = r.cell.save();
    let (mut twin, end) = rig(WAYS[3]);
    twin.dma().write(0, &r.memory(0, 0x8_0000));
    twin.cell.load(saved.clone()).unwrap();
    twin.rings = r.rings;
    assert_eq!(end.0.lock().unwrap().loaded, json!({ "fids": 3 }));
    twin.settle();
    assert_eq!(twin.used(0), [(head, 7)]);
    assert_eq!((twin.memory(DATA + 0x1000, 5), twin.memory(DATA + 0x2000, 3)), (b"egas\0".into(), b"sem".into()));
    for (was, is) in [("\"requests\":[", "\"requests\":[null,"), ("\"head\":0", "\"head\":-1")] {
        let mut wrong = saved.clone();
        wrong.state = serde_json::from_str(&saved.state.to_string().replace(was, is)).unwrap();
        if wrong.state != saved.state {
            assert!(twin.cell.load(wrong).is_err(), "{is}");
        }
    }
}
