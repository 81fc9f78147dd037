//! What happens to a machine, for whoever listens at its control socket.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use mio::Waker;
use serde_json::{Value, json};

use super::Members;

/// Events that are kept for who comes later, or is slow.
const KEPT: usize = 256;

#[derive(Default)]
struct Log {
    /// The number of the next event.
    next: u64,
    kept: VecDeque<Members>,
    told: Option<Arc<Waker>>,
}

/// The events of a machine. Each has a number, `seq`, and a time in seconds since 1970.
#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<Log>>);

impl Events {
    /// Tells of an event.
    ///
    /// # Panics
    /// When `more` is no object.
    pub fn tell(&self, event: &str, more: Value) {
        let Value::Object(mut members) = more else { panic!("{more} is no object") };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        members.insert("event".to_owned(), event.into());
        members.insert("time".to_owned(), json!(now.as_millis() as f64 / 1e3));
        let mut log = self.0.lock().unwrap();
        members.insert("seq".to_owned(), log.next.into());
        log.next += 1;
        if log.kept.len() == KEPT {
            log.kept.pop_front();
        }
        log.kept.push_back(members);
        if let Some(waker) = &log.told {
            // It fails only when the kernel's counter is full, and then the server is awake.
            let _ = waker.wake();
        }
    }

    /// Who is woken by events.
    pub(super) fn wake(&self, waker: Arc<Waker>) {
        self.0.lock().unwrap().told = Some(waker);
    }

    /// The number of the next event.
    pub(super) fn next(&self) -> u64 {
        self.0.lock().unwrap().next
    }

    /// The event of this number; if it is not kept any more, the number of those that are lost, as an event.
    pub(super) fn get(&self, seq: u64) -> Option<(u64, Members)> {
        let log = self.0.lock().unwrap();
        let first = log.next - log.kept.len() as u64;
        if seq < first {
            let lost = json!({ "event": "lost", "count": first - seq });
            return Some((first, lost.as_object().cloned().unwrap_or_default()));
        }
        log.kept.get((seq - first) as usize).map(|event| (seq + 1, event.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_numbered_and_who_is_too_slow_learns_how_many_are_lost() {
        let events = Events::default();
        assert_eq!((events.next(), events.get(0)), (0, None));
        for n in 0..300 {
            events.tell("tick", json!({ "n": n }));
        }
        let (next, lost) = events.get(0).unwrap();
        assert_eq!((next, &lost["event"], &lost["count"]), (44, &json!("lost"), &json!(44)));
        let (next, event) = events.get(next).unwrap();
        assert_eq!((next, &event["seq"], &event["n"]), (45, &json!(44), &json!(44)));
        assert!(events.get(300).is_none() && events.get(u64::MAX).is_none());
    }
}
