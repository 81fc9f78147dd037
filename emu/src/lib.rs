//! The vocabulary of the machine: what a device, a bus, a wire, a clock and guest memory are.
