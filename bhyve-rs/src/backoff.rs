//! How long to wait before what has failed is started again.

use std::time::Duration;

/// Whoever has run for so long begins anew.
const WELL: Duration = Duration::from_secs(60);
/// The longest wait.
const MOST: Duration = Duration::from_secs(60);

/// Waits that grow: none, then 1 s, 2 s, 4 s ... to a minute.
#[derive(Debug, Default)]
pub struct Backoff(u32);

impl Backoff {
    /// The wait after a run of this length.
    pub fn after(&mut self, ran: Duration) -> Duration {
        if ran >= WELL {
            self.0 = 0;
        }
        let wait = match self.0 {
            0 => Duration::ZERO,
            n => Duration::from_secs(1 << (n - 1).min(6)).min(MOST),
        };
        self.0 = self.0.saturating_add(1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_minute_and_begin_anew_after_one_that_went_well() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..9).map(|_| backoff.after(Duration::from_secs(59)).as_secs()).collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff.after(WELL), Duration::ZERO);
        assert_eq!(backoff.after(Duration::ZERO).as_secs(), 1);
        let mut long = Backoff(u32::MAX);
        assert_eq!((long.after(Duration::ZERO), long.after(Duration::ZERO)), (MOST, MOST));
    }
}
