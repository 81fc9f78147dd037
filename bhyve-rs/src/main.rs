//! bhyve-rs: the user space of a hypervisor, for BSD people.
fn main() {}
