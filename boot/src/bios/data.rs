//! The data areas: BIOS data area at 40:0, extended BIOS data area at [`super::EBDA`].
//!
//! Addresses are linear. What is where in the BIOS data area is IBM's (Technical Reference, AT and PS/2), and so are
//! the first bytes of the extended one.

use super::EBDA;

pub(super) const SERIAL_PORTS: u64 = 0x400;
pub(super) const PARALLEL_PORTS: u64 = 0x408;
/// Segment of the extended BIOS data area.
pub(super) const EBDA_SEGMENT: u64 = 0x40e;
pub(super) const EQUIPMENT: u64 = 0x410;
/// KiB of conventional memory.
pub(super) const BASE_MEMORY: u64 = 0x413;
/// Shift flags, one byte each.
pub(super) const SHIFT: u64 = 0x417;
pub(super) const SHIFT2: u64 = 0x418;
/// The number that Alt and the keypad make.
pub(super) const ALT_NUMBER: u64 = 0x419;
/// Offsets in segment 40 of the key buffer's next word to take and next free word.
pub(super) const KEY_HEAD: u64 = 0x41a;
pub(super) const KEY_TAIL: u64 = 0x41c;
pub(super) const KEY_BUFFER: u16 = 0x1e;
pub(super) const KEY_BUFFER_END: u16 = 0x3e;
pub(super) const FLOPPY_STATUS: u64 = 0x441;
pub(super) const TICKS: u64 = 0x46c;
pub(super) const MIDNIGHT: u64 = 0x470;
/// 1234 for a start without the memory test.
pub(super) const RESET_FLAG: u64 = 0x472;
pub(super) const DISK_STATUS: u64 = 0x474;
pub(super) const DISK_COUNT: u64 = 0x475;
pub(super) const PARALLEL_TIMEOUT: u64 = 0x478;
pub(super) const SERIAL_TIMEOUT: u64 = 0x47c;
pub(super) const KEY_BUFFER_START_PTR: u64 = 0x480;
pub(super) const KEY_BUFFER_END_PTR: u64 = 0x482;
pub(super) const FLOPPY_HISTORY: u64 = 0x48f;
pub(super) const FLOPPY_MEDIA: u64 = 0x490;
/// Bit 4: enhanced keyboard; 1 and 0: the last byte was E1, E0.
pub(super) const KEYBOARD: u64 = 0x496;
pub(super) const LEDS: u64 = 0x497;
/// Far pointer to the flag of INT 15h/83h.
pub(super) const WAIT_FLAG_PTR: u64 = 0x498;
/// Microseconds left.
pub(super) const WAIT_COUNT: u64 = 0x49c;
/// Bit 0: a wait is under way; bit 7: it is over.
pub(super) const WAIT_ACTIVE: u64 = 0x4a0;
/// Where a restart with CMOS shutdown code 5 or 0A goes on.
pub(super) const RESTART: u64 = 0x467;

/// Far pointer to the mouse's handler.
pub(super) const MOUSE_HANDLER: u64 = EBDA + 0x22;
/// Bits 2 to 0: bytes of the packet that are here; bit 7 of the second: there is a handler; bits 2 to 0: length minus
/// 1.
pub(super) const MOUSE_INDEX: u64 = EBDA + 0x26;
pub(super) const MOUSE_FLAGS: u64 = EBDA + 0x27;
pub(super) const MOUSE_PACKET: u64 = EBDA + 0x28;
/// Fixed disk parameter tables of disks 80 and 81, 16 bytes each.
pub(super) const DISK_TABLES: u64 = EBDA + 0x3d;
/// Device parameter table extensions, 16 bytes each.
pub(super) const DPTE: u64 = EBDA + 0x60;
/// How many of them there is room for.
pub(super) const DPTES: usize = 8;
/// The stack of POST grows down from here.
pub(super) const STACK: u16 = 0x3c0;
/// What a stub leaves: [`ARMED`], then SP and SS of the frame.
pub(super) const BLOCK_OFFSET: u16 = 0x3d0;
pub(super) const BLOCK: u64 = EBDA + BLOCK_OFFSET as u64;
pub(super) const ARMED: u16 = 0xb105;

/// The segment of the BIOS.
pub(super) const ROM_SEGMENT: u16 = 0xf000;
/// The segment of the extended BIOS data area.
pub(super) const EBDA_BASE: u16 = (EBDA >> 4) as u16;

/// The screen: mode, columns, bytes of a page, offset of the page that is shown.
pub(super) const VIDEO_MODE: u64 = 0x449;
pub(super) const COLUMNS: u64 = 0x44a;
pub(super) const PAGE_SIZE: u64 = 0x44c;
pub(super) const PAGE_START: u64 = 0x44e;
/// Column and row of the cursor on each of eight pages.
pub(super) const CURSORS: u64 = 0x450;
/// Last and first line of the cursor.
pub(super) const CURSOR_SHAPE: u64 = 0x460;
pub(super) const PAGE: u64 = 0x462;
/// Index port of the CRT controller.
pub(super) const CRTC: u64 = 0x463;
/// What a CGA's mode and colour registers would hold.
pub(super) const CGA_MODE: u64 = 0x465;
pub(super) const CGA_COLOURS: u64 = 0x466;
/// Lines of text less 1, lines of a character.
pub(super) const ROWS: u64 = 0x484;
pub(super) const CHAR_HEIGHT: u64 = 0x485;
/// Bit 7: the last mode was set without clearing; bit 0: cursor shapes are not translated.
pub(super) const VIDEO_CONTROL: u64 = 0x487;
pub(super) const VIDEO_SWITCHES: u64 = 0x488;
pub(super) const VIDEO_OPTIONS: u64 = 0x489;
/// Index of the display combination.
pub(super) const DISPLAY: u64 = 0x48a;
/// Far pointer to the table of video pointers.
pub(super) const VIDEO_POINTERS: u64 = 0x4a8;
