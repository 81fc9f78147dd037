//! A software x86 processor. No operating system, no knowledge of devices.
