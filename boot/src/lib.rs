//! What runs before the guest's kernel: firmware tables, kernel loaders and the built-in BIOS.
