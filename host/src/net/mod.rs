//! What the cable of a network card leads to.

mod wire;

pub use wire::Wire;
