//! How the parts of a machine that live on the host's side are saved: a state and one timer.

use emu::{Saved, Timer};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What is saved.
pub fn save<S: Serialize>(version: u32, state: &S, timer: &Timer) -> Saved {
    let state = serde_json::to_value(state).expect("it has only string keys");
    Saved { version, state, timers: vec![timer.deadline()], ..Saved::default() }
}

/// The state that was saved; sets the timer.
///
/// # Errors
/// It is another part's, or another version's.
pub fn load<S: DeserializeOwned>(version: u32, saved: Saved, timer: &Timer) -> Result<S, String> {
    if saved.version != version {
        return Err(format!("saved as version {}, this is version {version}", saved.version));
    }
    let [deadline] = saved.timers[..] else { return Err("it has other timers".to_owned()) };
    let state = serde_json::from_value(saved.state).map_err(|e| e.to_string())?;
    timer.set(deadline.unwrap_or(u64::MAX));
    Ok(state)
}
