//! How a machine is stopped: the guest is asked once, asked again every so often, and in the end its power is cut.
//!
//! The machine's own process does that, so that it is done whatever becomes of whoever asked for it.

use std::time::{Duration, Instant};

use anyhow::Result;
use cfg::Node;
use host::control::Members;
use serde_json::Value;

/// How the guest is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By the power button if it has taken over ACPI, else by Ctrl-Alt-Delete.
    Auto,
    /// By the power button.
    Acpi,
    /// By Ctrl-Alt-Delete. The reset that follows is the end.
    Keyboard,
    /// Not at all.
    Kill,
}

/// How a machine is to be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How the guest is asked.
    pub method: Method,
    /// Time between two times; none asks it once.
    pub repeat: Option<Duration>,
    /// When its power is cut, if ever.
    pub timeout: Option<Duration>,
}

impl Policy {
    /// What a configuration says.
    pub fn of(node: &Node) -> Policy {
        let stop = node.child("stop");
        let time = |key: &str| stop.maybe::<Duration>(key).filter(|time| !time.is_zero());
        Policy { method: method(stop.text("method")), repeat: time("repeat"), timeout: time("timeout") }
    }

    /// Time between two times. Who has little patience asks more often: a guest that has just started may not listen yet.
    fn interval(&self) -> Option<Duration> {
        let most = self.timeout.map_or(Duration::MAX, |timeout| timeout / 4);
        self.repeat.map(|repeat| repeat.min(most))
    }

    /// With what a request says in its place.
    ///
    /// # Errors
    /// For the user.
    pub fn with(self, args: &Members) -> Result<Policy, String> {
        let time = |key: &str, before: Option<Duration>| match args.get(key) {
            None => Ok(before),
            Some(value) => match value.as_f64().map(Duration::try_from_secs_f64) {
                Some(Ok(time)) => Ok(Some(time).filter(|time| !time.is_zero())),
                _ => Err(format!("{key:?} is a number of seconds")),
            },
        };
        let chosen = match args.get("method").map(Value::as_str) {
            None => self.method,
            Some(Some(word @ ("auto" | "acpi" | "keyboard" | "kill"))) => method(word),
            Some(_) => return Err("\"method\" is \"auto\", \"acpi\", \"keyboard\" or \"kill\"".to_owned()),
        };
        Ok(Policy { method: chosen, repeat: time("repeat", self.repeat)?, timeout: time("timeout", self.timeout)? })
    }
}

fn method(word: &str) -> Method {
    match word {
        "acpi" => Method::Acpi,
        "keyboard" => Method::Keyboard,
        "kill" => Method::Kill,
        _ => Method::Auto,
    }
}

/// A machine that is to stop.
pub struct Stopping {
    policy: Policy,
    begun: Instant,
    /// When the guest is asked the next time.
    press: Option<Instant>,
}

impl Stopping {
    /// From now on.
    pub fn begin(policy: Policy) -> Stopping {
        let begun = Instant::now();
        Stopping { policy, begun, press: Some(begun) }
    }

    fn end(&self) -> Option<Instant> {
        match self.policy.method {
            Method::Kill => Some(self.begun),
            _ => self.policy.timeout.and_then(|limit| self.begun.checked_add(limit)),
        }
    }

    /// When there is something to do.
    pub fn next(&self) -> Option<Instant> {
        self.press.into_iter().chain(self.end()).min()
    }

    /// What the user is to know when the power has to be cut now.
    pub fn is_over(&self) -> Option<String> {
        self.end().filter(|end| *end <= Instant::now())?;
        Some(match (self.policy.method, self.policy.timeout) {
            (Method::Kill, _) | (_, None) => "its power is cut, as stop.method says".to_owned(),
            (_, Some(limit)) => {
                format!("the guest has not powered off in {} s; its power is cut", limit.as_secs_f64())
            }
        })
    }

    /// How the guest is to be asked, if it is time.
    pub fn press(&mut self) -> Option<Method> {
        let now = Instant::now();
        self.press.filter(|at| *at <= now)?;
        self.press = self.policy.interval().and_then(|interval| now.checked_add(interval));
        Some(self.policy.method)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn args(value: Value) -> Members {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn a_request_says_over_what_the_configuration_said() {
        let node = crate::config::from_settings(&["name=x", "stop.repeat=3s", "stop.timeout=0s"]).unwrap();
        let policy = Policy::of(&node);
        let repeat = Some(Duration::from_secs(3));
        assert_eq!(policy, Policy { method: Method::Auto, repeat, timeout: None });
        assert_eq!(policy.with(&Members::new()), Ok(policy));
        let other = policy.with(&args(json!({"method": "keyboard", "repeat": 0, "timeout": 1.5}))).unwrap();
        assert_eq!(
            other,
            Policy { method: Method::Keyboard, repeat: None, timeout: Some(Duration::from_millis(1500)) }
        );
        for wrong in
            [json!({"method": "ask"}), json!({"timeout": -1}), json!({"repeat": "x"}), json!({"timeout": 1e300})]
        {
            assert!(policy.with(&args(wrong.clone())).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_guest_is_asked_at_once_and_again_and_has_an_end() {
        let hour = Some(Duration::from_secs(3600));
        let mut once = Stopping::begin(Policy { method: Method::Acpi, repeat: None, timeout: hour });
        assert_eq!((once.press(), once.press(), once.is_over()), (Some(Method::Acpi), None, None));
        assert_eq!(once.next(), once.end());
        let mut again = Stopping::begin(Policy { method: Method::Auto, repeat: hour, timeout: None });
        assert!(again.press().is_some() && again.press().is_none() && again.is_over().is_none());
        assert!(again.next() > Some(Instant::now() + Duration::from_secs(3000)));
        let soon = Policy { method: Method::Auto, repeat: hour, timeout: Some(Duration::from_secs(8)) };
        assert_eq!(soon.interval(), Some(Duration::from_secs(2)));
        let none = Some(Duration::ZERO);
        assert!(Stopping::begin(Policy { method: Method::Auto, repeat: None, timeout: none }).is_over().is_some());
        assert!(Stopping::begin(Policy { method: Method::Kill, repeat: None, timeout: None }).is_over().is_some());
    }
}
