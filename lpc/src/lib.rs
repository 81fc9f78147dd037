//! ISA and chipset parts that every PC has.
