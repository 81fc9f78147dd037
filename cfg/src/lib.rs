//! One tree of dotted keys (`pci.0.3.0.device=rtl8139`), the shape of bhyve_config(5).
