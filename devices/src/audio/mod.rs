//! Sound cards.

pub mod hda;
