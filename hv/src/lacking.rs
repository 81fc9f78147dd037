//! What a back end cannot reach of a processor's state.

use std::fmt;

use cpu::Regs;
use serde_json::Value;

/// The error of a back end that lacks parts of [`Regs`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// The back end.
    pub backend: &'static str,
    /// The fields, as [`Regs`] names them.
    pub fields: Vec<&'static str>,
}

impl Lacking {
    /// Checks that `new` asks nothing of the fields that are lacked: they must be as in `old`, what the back end gives.
    ///
    /// # Errors
    /// The fields that differ.
    pub fn check(backend: &'static str, lacks: &'static [&'static str], old: &Regs, new: &Regs) -> Result<(), Lacking> {
        let (old, new) = (fields(old), fields(new));
        let fields: Vec<_> = lacks.iter().copied().filter(|f| old.get(f) != new.get(f)).collect();
        if fields.is_empty() { Ok(()) } else { Err(Lacking { backend, fields }) }
    }
}

/// By name, as they are saved.
pub(crate) fn fields(regs: &Regs) -> Value {
    serde_json::to_value(regs).expect("registers have only string keys")
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} has no access to the processor state {}", self.backend, self.fields.join(", "))
    }
}

impl std::error::Error for Lacking {}
