//! What a pointer does.

use serde::{Deserialize, Serialize};

/// A movement, or a place: the wheel up, Y down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Motion {
    pub x: i32,
    pub y: i32,
    pub wheel: i32,
    /// A bit for each that is down, the left one first.
    pub buttons: u8,
}
