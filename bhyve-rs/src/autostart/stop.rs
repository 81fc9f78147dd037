//! Stopping machines: all at once, but none before those that come after it, and all within a time.
//!
//! A machine that others wait for may take all that is left but [`KEPT`] for each of these, or an equal share where that
//! is more. When that is over its power is cut. So everything is down in time, and one that hangs costs the others no
//! clean stop.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use host::control::{self, CallError, Members};
use host::process;

use super::machine::State;

/// How long a machine may take to take an order.
const PATIENCE: Duration = Duration::from_secs(2);
/// Kept of the whole time for cutting the power: for a request, and for the process to go.
const RESERVE: Duration = Duration::from_secs(5);
/// Kept of the time for each that stops after a machine.
const KEPT: Duration = Duration::from_secs(10);
/// How long a process may take to go when its power is cut, and when it is killed.
const GOING: Duration = Duration::from_millis(1500);
/// How long it may linger when its socket is gone: a parent that does not look after it keeps its number.
const LINGER: Duration = Duration::from_secs(1);
/// How long it may take to say that it is there.
const GLANCE: Duration = Duration::from_millis(200);

/// A machine that runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// Its control socket.
    pub socket: PathBuf,
    /// What it comes after.
    pub after: Vec<String>,
    /// How it was.
    pub state: State,
}

/// How a machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// By itself.
    Cleanly,
    /// Its power was cut.
    Forced,
    /// It did not; why.
    Not(String),
}

/// Stops all of these within `limit`; `told` hears of each, and how long it took.
pub fn all(machines: &[Running], limit: Duration, told: &(dyn Fn(&str, &How, Duration) + Sync)) -> Vec<How> {
    let levels = levels(machines);
    let begun = Instant::now();
    let end = begun + limit.saturating_sub(RESERVE.min(limit / 4));
    let (gone, changed) = (Mutex::new(BTreeSet::new()), Condvar::new());
    let one = |machine: &Running| {
        // Of a circle, which cannot be started but can be written later, nobody waits for the rest.
        let level = levels[&machine.name];
        let waits_for = |other: &&Running| other.after.contains(&machine.name) && levels[&other.name] > level;
        let others: Vec<&str> = machines.iter().filter(waits_for).map(|other| other.name.as_str()).collect();
        let mut done = gone.lock().unwrap();
        while !others.iter().all(|name| done.contains(*name)) {
            done = changed.wait(done).unwrap();
        }
        drop(done);
        let turn = Instant::now();
        let how = stop(machine, share(end.saturating_duration_since(turn), level));
        told(&machine.name, &how, turn.elapsed());
        gone.lock().unwrap().insert(machine.name.clone());
        changed.notify_all();
        how
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = machines.iter().map(|machine| scope.spawn(|| one(machine))).collect();
        let crashed = || How::Not("the thread that stops it ended".to_owned());
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| crashed())).collect()
    })
}

/// What a machine may take of the time that is left, with so many that stop one after the other from its turn on.
fn share(left: Duration, level: u32) -> Duration {
    left.saturating_sub(KEPT * (level - 1)).max(left / level)
}

/// Of each machine how many stop one after the other from its turn on, itself included.
fn levels(machines: &[Running]) -> BTreeMap<String, u32> {
    let mut levels: BTreeMap<String, u32> = machines.iter().map(|machine| (machine.name.clone(), 1)).collect();
    // As many rounds as the longest way can be; a circle would go on.
    for _ in 1..machines.len() {
        for machine in machines {
            let below = machine.after.iter().filter(|name| **name != machine.name).filter_map(|name| levels.get(name));
            let level = 1 + below.max().copied().unwrap_or(0);
            levels.insert(machine.name.clone(), level.min(machines.len() as u32));
        }
    }
    levels
}

fn call(socket: &Path, verb: &str, limit: Duration) -> Result<Members, CallError> {
    control::call(socket, verb, &Members::new(), Some(limit))
}

/// Has the guest end, and cuts the power after `limit`.
fn stop(machine: &Running, limit: Duration) -> How {
    let begun = Instant::now();
    // One that is paused would not hear of it.
    if machine.state.word() == "paused" {
        let _ = call(&machine.socket, "resume", PATIENCE);
    }
    let ended = ask(machine, limit).and_then(|_| {
        let left = limit.saturating_sub(begun.elapsed());
        call(&machine.socket, "wait", left)
    });
    match ended {
        Ok(_) | Err(CallError::NotRunning(_) | CallError::Broken(_)) if is_gone(machine) => How::Cleanly,
        _ => force(machine),
    }
}

/// Has the machine's own process ask the guest, repeat that, and cut the power should nobody be there any more to do so.
fn ask(machine: &Running, limit: Duration) -> Result<Members, CallError> {
    let patience = PATIENCE.min(limit.max(Duration::from_millis(100)));
    let args = Members::from_iter([("timeout".to_owned(), (limit + GOING).as_secs_f64().into())]);
    match control::call(&machine.socket, "shutdown", &args, Some(patience)) {
        // A process of before the last upgrade knows the button alone.
        Err(CallError::Refused(_)) => call(&machine.socket, "stop", patience),
        answer => answer,
    }
}

fn force(machine: &Running) -> How {
    let _ = call(&machine.socket, "kill", PATIENCE);
    if is_gone(machine) {
        return How::Forced;
    }
    let pid = machine.state.process("pid").or_else(|| process::listener(&machine.socket));
    // Who would start it again goes first.
    let keeper = machine.state.process("keeper").or_else(|| process::parent_called(pid?, "keep"));
    let _ = keeper.map(process::kill);
    match pid.map(process::kill) {
        Some(Ok(())) if is_gone(machine) => How::Forced,
        Some(Ok(())) => How::Not("its process does not go".to_owned()),
        Some(Err(e)) => How::Not(format!("its process cannot be killed: {e}")),
        None => How::Not("it does not answer, and has not said which process it is".to_owned()),
    }
}

/// Waits until nobody is at the socket and the process is gone, with its locks on images.
fn is_gone(machine: &Running) -> bool {
    let begun = Instant::now();
    let runs = || ["pid", "keeper"].iter().any(|which| machine.state.process(which).is_some_and(process::exists));
    let answers = || !matches!(call(&machine.socket, "status", GLANCE), Err(CallError::NotRunning(_)));
    while answers() || runs() && begun.elapsed() < LINGER {
        if begun.elapsed() > GOING {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machines(rows: &[(&str, &[&str])]) -> Vec<Running> {
        let machine = |(name, after): &(&str, &[&str])| Running {
            name: (*name).to_owned(),
            socket: PathBuf::from("/nonexistent/x.sock"),
            after: after.iter().map(|name| (*name).to_owned()).collect(),
            state: State::Stopped,
        };
        rows.iter().map(machine).collect()
    }

    #[test]
    fn who_has_more_behind_it_gets_less_of_the_time() {
        let levels = levels(&machines(&[("web", &["app"]), ("app", &["db", "gone"]), ("db", &[]), ("alone", &[])]));
        assert_eq!(
            levels,
            BTreeMap::from([("web", 3), ("app", 2), ("db", 1), ("alone", 1)].map(|(n, l)| (n.into(), l)))
        );
    }

    #[test]
    fn every_one_of_a_row_that_hangs_gets_ten_seconds_or_its_part() {
        let all_hang = |mut left: u64, levels: u32| {
            (1..=levels).rev().for_each(|level| {
                let took = share(Duration::from_secs(left), level).as_secs();
                assert!(took >= 10 || took >= left / u64::from(level), "{took} of {left} at {level}");
                left -= took;
            });
            left
        };
        assert_eq!(share(Duration::from_secs(70), 1), Duration::from_secs(70));
        assert_eq!(share(Duration::from_secs(70), 3), Duration::from_secs(50));
        assert_eq!(share(Duration::from_secs(70), 20), Duration::from_millis(3500));
        assert_eq!((all_hang(70, 1), all_hang(70, 6), all_hang(70, 7)), (0, 0, 0));
    }

    #[test]
    fn a_circle_does_not_hang_the_stop() {
        let machines = machines(&[("a", &["b"]), ("b", &["a"]), ("c", &["c"])]);
        let ended = all(&machines, Duration::from_secs(1), &|_, _, _| {});
        assert_eq!(ended, [How::Cleanly, How::Cleanly, How::Cleanly]);
    }
}
