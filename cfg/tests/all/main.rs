//! What users of the crate see: good and bad files, and everything that is printed about them.

mod bad_syntax;
mod bad_values;
mod common;
mod files;
mod fuzz;
