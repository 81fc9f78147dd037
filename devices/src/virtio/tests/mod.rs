//! A driver for the devices, of either age, and what it finds.

mod blk;
mod console;
mod driver;
mod input;
mod net;
mod p9;
mod racing;
mod rnd;
mod scsi;
mod transport;

use driver::*;
