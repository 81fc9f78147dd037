//! The Linux x86 boot protocol: bzImage files, and the "zero page" for plain ELF kernels.
//!
//! The real-mode setup code in front of a bzImage is never run: it would only ask a BIOS what we know already. Its
//! header (file offset 0x1F1) is copied into a `boot_params` page, the protected-mode part goes to the address that
//! the header asks for, and the kernel is entered in 64-bit mode where it offers that (XLF_KERNEL_64) and the
//! processor can, else in flat 32-bit mode. Protocol 2.02 (Linux 2.4.0) is the oldest taken: older ones have no
//! command line pointer. memtest86+ 6 and later speaks the same protocol in both forms, without the relocation and
//! initrd parts.
//!
//! What else the setup code does is to refuse a processor that lacks what the kernel was built for; past it, such a
//! kernel dies without a word. It holds the names of what is needed, to print them ([`required_features`]).
//!
//! Source: Documentation/arch/x86/boot.rst and zero-page.rst of the Linux tree.

use crate::bytes::{set, u16_at, u32_at, u64_at};
use crate::image::{self, Entry, Image, Registers};
use crate::kernel::{Layout, mib_up};
use crate::place::Placer;
use anyhow::{Context, Result, ensure};

const SECTOR: usize = 512;
/// File offsets of header fields are also their offsets in `boot_params`.
const HEADER: usize = 0x1F1;
/// The header may grow up to here in `boot_params`; the EDD area follows.
const HEADER_MAX: usize = 0x290;
const FOUR_GIB: u64 = 1 << 32;

const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;

/// Low memory from here up holds `boot_params`, command line, GDT and page tables.
const LOW_AREA: u64 = 0x1_0000;

const E820_MAX: usize = 128;

/// The fields of a setup header that a loader acts on.
#[derive(Debug)]
struct Header<'a> {
    /// From 0x1F1 to the end that the header itself gives.
    raw: &'a [u8],
    version: u16,
    /// The protected-mode part of the file.
    payload: &'a [u8],
    load: u64,
    /// Bytes that must be free from `load` up.
    need: u64,
    /// Whether `need` is the kernel's own init_size (protocol 2.10) or only the size of the file.
    need_is_init_size: bool,
    /// One past the last byte that an initrd may occupy.
    initrd_end: u64,
    cmdline_max: usize,
    entry64: bool,
}

/// Whether `file` carries the setup header's magic, whole or not.
pub(crate) fn is_bzimage(file: &[u8]) -> bool {
    u16_at(file, 0x1FE) == Some(0xAA55) && file.get(0x202..0x206) == Some(b"HdrS")
}

impl<'a> Header<'a> {
    fn parse(file: &'a [u8]) -> Result<Self> {
        let header_end = 0x202 + usize::from(*file.get(0x201).context("truncated Linux kernel: no setup header")?);
        let version = u16_at(file, 0x206).context("truncated Linux kernel: the file ends inside the setup header")?;
        ensure!(
            version >= 0x202,
            "Linux kernel with boot protocol {}.{:02}: 2.02 (Linux 2.4.0) is the oldest supported",
            version >> 8,
            version & 0xFF
        );
        let raw = file.get(HEADER..header_end.min(HEADER_MAX)).filter(|_| file.len() >= 0x238).with_context(|| {
            format!("truncated Linux kernel: the file has {} bytes and ends inside the setup header", file.len())
        })?;
        let missing = "truncated Linux kernel: the file ends inside the setup header";
        // A field that the version promises but the header's own length does not cover reads as zero.
        let u8_field = |at: usize| raw.get(at - HEADER).copied().unwrap_or(0);
        let u16_field = |at: usize| u16_at(raw, at - HEADER).unwrap_or(0);
        let u32_field = |at: usize| u32_at(raw, at - HEADER).unwrap_or(0);
        let u64_field = |at: usize| u64_at(raw, at - HEADER).unwrap_or(0);

        ensure!(
            u8_field(0x211) & LOADED_HIGH != 0,
            "zImage Linux kernel (it loads below 1 MiB): only bzImage kernels are supported"
        );
        let setup_sects = match *file.get(HEADER).context(missing)? {
            0 => 4,
            n => usize::from(n),
        };
        let start = (setup_sects + 1) * SECTOR;
        // syssize counts 16-byte paragraphs and is a 16-bit field before 2.04. A short last paragraph is no damage.
        let paragraphs = if version >= 0x204 { u32_field(0x1F4) } else { u32::from(u16_field(0x1F4)) };
        let promised = start as u64 + u64::from(paragraphs) * 16;
        ensure!(
            file.len() > start && file.len() as u64 + 15 >= promised,
            "truncated Linux kernel: its header promises {promised} bytes, the file has {}",
            file.len()
        );
        // A boot-time signature may follow the kernel proper: it stays behind.
        let end = if paragraphs == 0 { file.len() } else { file.len().min(promised as usize) };
        let payload = &file[start..end];

        let has_init_size = version >= 0x20A && u32_field(0x260) != 0;
        let load = if version >= 0x20A { u64_field(0x258) } else { u64::from(u32_field(0x214)) };
        let need = if has_init_size { u64::from(u32_field(0x260)) } else { 0 }.max(payload.len() as u64);
        ensure!(
            load >= 0x10_0000 && load.saturating_add(need) <= FOUR_GIB,
            "damaged Linux kernel: its header asks for the load address 0x{load:x} and 0x{need:x} bytes there"
        );
        Ok(Self {
            raw,
            version,
            payload,
            load,
            need,
            need_is_init_size: has_init_size,
            initrd_end: if version >= 0x203 { u64::from(u32_field(0x22C)) + 1 } else { 0x3800_0000 },
            cmdline_max: if version >= 0x206 { u32_field(0x238) as usize } else { 255 },
            entry64: version >= 0x20C && u16_field(0x236) & XLF_KERNEL_64 != 0,
        })
    }
}

/// Loads a bzImage.
pub(crate) fn load(file: &[u8], initrd: Option<&[u8]>, cmdline: &str, layout: &Layout) -> Result<Image> {
    let header = Header::parse(file)?;
    ensure!(
        cmdline.len() <= header.cmdline_max,
        "the command line has {} bytes, this kernel takes at most {}",
        cmdline.len(),
        header.cmdline_max
    );
    ensure!(
        layout.long_mode || !header.entry64,
        "64-bit kernel ({}), but the guest's processor has no long mode",
        name(file)
    );
    let mut placer = Placer::new(layout.map);
    let initrd_len = initrd.map_or(0, |i| i.len() as u64);
    let initrd_at = placer
        .claim(header.load, header.need, "the kernel")
        .ok()
        .and_then(|()| match initrd {
            Some(_) => placer.highest(header.initrd_end.min(FOUR_GIB), initrd_len, "the initrd"),
            None => Some(0),
        })
        .with_context(|| does_not_fit(&header, initrd.map(|_| initrd_len), &placer))?;
    placer.fill(header.load, header.payload.to_vec());
    if let Some(initrd) = initrd {
        placer.fill(initrd_at, initrd.to_vec());
    }

    let mut params = boot_params(layout);
    set(&mut params, HEADER, header.raw);
    // code32_start: a 32-bit kernel that was moved looks here for where it is.
    set(&mut params, 0x214, &(header.load as u32).to_le_bytes());
    let entry = if header.entry64 { Start::Long(header.load + 0x200) } else { Start::Flat(header.load) };
    let entry = finish(&mut placer, params, cmdline, (initrd_at, initrd_len), entry)?;
    let what = format!(
        "{} (boot protocol {}.{:02}, {}-bit entry)",
        name(file),
        header.version >> 8,
        header.version & 0xFF,
        if entry.efer == 0 { 32 } else { 64 }
    );
    Ok(Image { what, pieces: placer.into_pieces(), zero: Vec::new(), entry })
}

/// What the setup code prints before the names of the features that it misses.
const MISSING: &[u8] = b"features not present on the CPU:\n\0";
/// Words of features that Linux has.
const WORDS: u8 = 32;
/// Between that text and the table of names are formats and padding.
const GAP: usize = 64;

/// The processor features that a Linux kernel says it needs, by the names of /proc/cpuinfo. None where `file` is not a
/// bzImage, or does not say (before 2.6.26, or built without the names).
pub fn required_features(file: &[u8]) -> Vec<&str> {
    let sectors = usize::from(file.get(HEADER).copied().unwrap_or(0));
    let setup = file.get(..(sectors + 1) * SECTOR).filter(|_| is_bzimage(file)).unwrap_or(&[]);
    let Some(text) = setup.windows(MISSING.len()).position(|w| w == MISSING) else { return Vec::new() };
    let from = text + MISSING.len();
    let tables = (from..from + GAP).map(|at| features_at(setup.get(at..).unwrap_or(&[])));
    tables.into_iter().max_by_key(Vec::len).unwrap_or_default()
}

/// Entries of a word, a bit of it and a name that ends with a zero byte; what follows the last has another form.
fn features_at(mut table: &[u8]) -> Vec<&str> {
    let mut names = Vec::new();
    while let [0..WORDS, 0..32, rest @ ..] = table {
        let len = rest.iter().take_while(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_')).count();
        let (name, end) = rest.split_at(len);
        if len < 2 || end.first() != Some(&0) {
            break;
        }
        names.extend(std::str::from_utf8(name));
        table = &end[1..];
    }
    names
}

/// The sum that shows why kernel and initrd do not fit.
fn does_not_fit(header: &Header, initrd: Option<u64>, placer: &Placer) -> String {
    let source = if header.need_is_init_size { "init_size" } else { "its size" };
    let total = mib_up(header.load + header.need + initrd.map_or(0, |len| crate::bytes::round_up(len, 0x1000)));
    let initrd = initrd.map(|len| format!(" + initrd {len} bytes")).unwrap_or_default();
    format!(
        "does not fit: the kernel needs 0x{:x} bytes ({source}) at 0x{:x}{initrd} = {total} MiB, the guest has {}",
        header.need,
        header.load,
        placer.describe_ram()
    )
}

/// Name and version without build details; the offset at 0x20E is relative to 0x200.
fn name(file: &[u8]) -> String {
    let at = u16_at(file, 0x20E).filter(|offset| *offset != 0).map_or(file.len(), |offset| usize::from(offset) + 0x200);
    let text = file.get(at..).unwrap_or(&[]);
    let text: String = text.iter().take(64).take_while(|b| matches!(b, b' '..=b'~')).map(|b| char::from(*b)).collect();
    let text = text.split(" (").next().unwrap_or_default();
    match text.chars().next() {
        None => "Linux kernel".to_string(),
        // Linux gives only its number.
        Some('0'..='9') => format!("Linux {text}"),
        Some(_) => text.to_string(),
    }
}

/// Where to start, and in which mode.
pub(crate) enum Start {
    /// 64-bit mode at this address.
    Long(u64),
    /// Flat 32-bit mode at this address.
    Flat(u64),
}

/// A `boot_params` page with everything that the machine says and nothing of the kernel's.
pub(crate) fn boot_params(layout: &Layout) -> Vec<u8> {
    let mut params = vec![0; 4096];
    if layout.vga_text {
        // screen_info: what the setup code would have found by INT 10h. vgacon takes no console without it, and
        // memtest86+ no screen. Columns, mode 3, lines, "is a VGA", 16 scan lines a character.
        set(&mut params, 0x06, &[3, 80]);
        set(&mut params, 0x0E, &[25, 1]);
        set(&mut params, 0x10, &16u16.to_le_bytes());
    }
    set(&mut params, 0x70, &layout.rsdp.unwrap_or(0).to_le_bytes());
    let e820 = layout.map.e820();
    let count = (e820.len() / 20).min(E820_MAX);
    params[0x1E8] = count as u8;
    set(&mut params, 0x2D0, &e820[..count * 20]);
    params
}

/// Completes `boot_params`, places it with command line, GDT and page tables in low memory, and makes the entry state.
/// `initrd` is address and length, the length zero for none.
pub(crate) fn finish(
    placer: &mut Placer,
    mut params: Vec<u8>,
    cmdline: &str,
    initrd: (u64, u64),
    start: Start,
) -> Result<Entry> {
    let mut low = |len: u64, what: &str| {
        placer.lowest(LOW_AREA, len, what).with_context(|| format!("no room below 4 GiB for {what} of {len} bytes"))
    };
    let params_at = low(4096, "boot_params")?;
    let gdt_at = low(image::GDT_LEN, "GDT")?;
    let cmdline_at = low(cmdline.len() as u64 + 1, "command line")?;
    let tables_at = match start {
        Start::Long(_) => low(image::IDENTITY_MAP_LEN, "page tables")?,
        Start::Flat(_) => 0,
    };

    // vid_mode "normal"; type_of_loader "undefined"; ext_ramdisk words stay zero, all is below 4 GiB.
    set(&mut params, 0x1FA, &0xFFFFu16.to_le_bytes());
    params[0x210] = 0xFF;
    set(&mut params, 0x218, &(initrd.0 as u32).to_le_bytes());
    set(&mut params, 0x21C, &(initrd.1 as u32).to_le_bytes());
    set(&mut params, 0x228, &(cmdline_at as u32).to_le_bytes());

    let registers = Registers { rsi: params_at, ..Registers::default() };
    let mut text = cmdline.as_bytes().to_vec();
    text.push(0);
    placer.fill(params_at, params);
    placer.fill(cmdline_at, text);
    Ok(match start {
        Start::Long(rip) => {
            placer.fill(gdt_at, image::gdt64());
            placer.fill(tables_at, image::identity_map(tables_at));
            Entry::long64(rip, gdt_at, tables_at, registers)
        }
        Start::Flat(eip) => {
            placer.fill(gdt_at, image::gdt32());
            Entry::flat32(eip as u32, gdt_at, registers)
        }
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::image::Mode;
    use crate::memory::MemoryMap;

    pub(crate) const MIB: u64 = 1 << 20;

    /// A bzImage of the newest protocol: 0x600 bytes of setup, then `payload` bytes of 0x90.
    pub(crate) fn bzimage(payload: usize) -> Vec<u8> {
        let mut file = vec![0u8; 0x600 + payload];
        file[0x600..].fill(0x90);
        file[0x1F1] = 2;
        set(&mut file, 0x1F4, &(payload.div_ceil(16) as u32).to_le_bytes());
        set(&mut file, 0x1FE, &[0x55, 0xAA, 0xEB, 0x6A]);
        set(&mut file, 0x202, b"HdrS");
        set(&mut file, 0x206, &0x20Fu16.to_le_bytes());
        set(&mut file, 0x20E, &0x100u16.to_le_bytes());
        set(&mut file, 0x300, b"6.1.0-test (builder) #1\0");
        file[0x211] = LOADED_HIGH;
        set(&mut file, 0x214, &0x10_0000u32.to_le_bytes());
        set(&mut file, 0x22C, &0x7FFF_FFFFu32.to_le_bytes());
        set(&mut file, 0x230, &0x20_0000u32.to_le_bytes());
        file[0x234] = 1;
        file[0x235] = 0x15;
        set(&mut file, 0x236, &0x7Fu16.to_le_bytes());
        set(&mut file, 0x238, &2047u32.to_le_bytes());
        set(&mut file, 0x258, &0x100_0000u64.to_le_bytes());
        set(&mut file, 0x260, &0x3F9_8000u32.to_le_bytes());
        file
    }

    pub(crate) fn layout(map: &MemoryMap) -> Layout<'_> {
        Layout { map, rsdp: Some(0xF_0000), vga_text: true, long_mode: true }
    }

    fn map(mib: u64) -> MemoryMap {
        MemoryMap::new(mib * MIB, 0xC000_0000).unwrap()
    }

    /// Reads `len` bytes of guest memory as the image leaves it.
    pub(crate) fn memory(image: &Image, gpa: u64, len: usize) -> &[u8] {
        let piece = image.pieces.iter().find(|p| p.range().contains(&gpa)).unwrap();
        let at = (gpa - piece.gpa) as usize;
        &piece.bytes[at..at + len]
    }

    #[test]
    fn long_mode_entry_points_rsi_at_complete_boot_params() {
        let map = map(256);
        let initrd = vec![7u8; 5000];
        let image = load(&bzimage(4096), Some(&initrd), "console=ttyS0", &layout(&map)).unwrap();
        assert_eq!(image.what, "Linux 6.1.0-test (boot protocol 2.15, 64-bit entry)");
        let entry = image.entry;
        assert_eq!((entry.mode(), entry.rip), (Mode::Long64, 0x100_0200));
        assert_eq!(memory(&image, 0x100_0000, 4096), [0x90; 4096]);

        let params = memory(&image, entry.registers.rsi, 4096);
        assert_eq!(params[0x210], 0xFF);
        assert_eq!(&params[0x202..0x206], b"HdrS");
        assert_eq!(u32_at(params, 0x214), Some(0x100_0000));
        assert_eq!(u64_at(params, 0x70), Some(0xF_0000));
        assert_eq!(usize::from(params[0x1E8]), map.regions().len());
        assert_eq!(params[0x2D0..][..map.e820().len()], map.e820());
        assert_eq!((params[0x06], params[0x07], params[0x0E], params[0x0F]), (3, 80, 25, 1));
        let cmdline = u32_at(params, 0x228).unwrap();
        assert_eq!(memory(&image, cmdline.into(), 14), b"console=ttyS0\0");
        let (at, len) = (u32_at(params, 0x218).unwrap(), u32_at(params, 0x21C).unwrap());
        assert_eq!((at, len), (256 * MIB as u32 - 0x2000, 5000));
        assert_eq!(memory(&image, at.into(), 5000), initrd);
        assert_eq!(memory(&image, entry.gdt.base, 32), image::gdt64());
        assert_eq!(memory(&image, entry.cr3, 8), (entry.cr3 + 0x1003).to_le_bytes());
    }

    #[test]
    fn a_32_bit_kernel_is_entered_flat_and_a_64_bit_one_needs_long_mode() {
        let map = map(256);
        let mut kernel32 = bzimage(4096);
        set(&mut kernel32, 0x236, &[0, 0]);
        let no_long = Layout { long_mode: false, ..layout(&map) };
        for layout in [&layout(&map), &no_long] {
            let image = load(&kernel32, None, "", layout).unwrap();
            assert_eq!((image.entry.mode(), image.entry.rip), (Mode::Flat32, 0x100_0000));
            assert_eq!((image.entry.cs.selector, image.entry.ds.selector), (0x10, 0x18));
            assert_eq!(memory(&image, image.entry.gdt.base, 32), image::gdt32());
        }
        let error = load(&bzimage(4096), None, "", &no_long).unwrap_err();
        assert_eq!(error.to_string(), "64-bit kernel (Linux 6.1.0-test), but the guest's processor has no long mode");
    }

    #[test]
    fn the_setup_code_names_the_features_that_the_kernel_needs() {
        let mut file = bzimage(64);
        assert_eq!(required_features(&file), Vec::<&str>::new());
        let text = b"following features not present on the CPU:\n\0%s \0%d:%d \0\0\0\0\0fpu\0\0\x0fcmov\0\x03\x14nopl\0\x15\x1f\0This";
        set(&mut file, 0x400, text);
        assert_eq!(required_features(&file), ["fpu", "cmov", "nopl"]);
        for len in 0..file.len() {
            let _ = required_features(&file[..len]);
        }
        file[0x400..0x600].fill(0);
        let cut = b"features not present on the CPU:\n\0\0\0fpu";
        set(&mut file, 0x600 - cut.len(), cut);
        assert_eq!(required_features(&file), Vec::<&str>::new());
    }

    #[test]
    fn pieces_lie_in_ram_and_never_overlap() {
        let map = map(128);
        let image = load(&bzimage(70_001), Some(&[1; 123_457]), "quiet", &layout(&map)).unwrap();
        let mut ranges: Vec<_> = image.pieces.iter().map(|p| p.range()).collect();
        ranges.sort_by_key(|r| r.start);
        assert!(ranges.windows(2).all(|w| w[0].end <= w[1].start), "{ranges:x?}");
        let ram = |r: &std::ops::Range<u64>| {
            let whole = |m: &crate::Region| m.kind == crate::Kind::Ram && m.base <= r.start && r.end <= m.end();
            map.regions().iter().any(whole)
        };
        assert!(ranges.iter().all(ram), "{ranges:x?}");
    }

    #[test]
    fn kernel_too_large_is_refused_with_the_sum() {
        let map = map(64);
        let error = load(&bzimage(4096), None, "", &layout(&map)).unwrap_err().to_string();
        assert_eq!(
            error,
            "does not fit: the kernel needs 0x3f98000 bytes (init_size) at 0x1000000 = 80 MiB, \
             the guest has 64 MiB of RAM"
        );
    }

    #[test]
    fn initrd_too_large_is_refused_with_the_sum() {
        let map = map(96);
        let initrd = vec![0u8; 20 * MIB as usize + 1];
        let error = load(&bzimage(4096), Some(&initrd), "", &layout(&map)).unwrap_err().to_string();
        assert_eq!(
            error,
            "does not fit: the kernel needs 0x3f98000 bytes (init_size) at 0x1000000 + initrd 20971521 bytes \
             = 100 MiB, the guest has 96 MiB of RAM"
        );
    }

    #[test]
    fn initrd_stays_below_the_address_that_the_header_gives() {
        let map = MemoryMap::new(8 << 30, 0xC000_0000).unwrap();
        let image = load(&bzimage(4096), Some(&[1; 4096]), "", &layout(&map)).unwrap();
        let params = memory(&image, image.entry.registers.rsi, 4096);
        assert_eq!(u32_at(params, 0x218), Some(0x7FFF_F000));
    }

    #[test]
    fn command_line_longer_than_the_kernel_takes_is_refused() {
        let map = map(256);
        assert!(load(&bzimage(64), None, &"x".repeat(2047), &layout(&map)).is_ok());
        let error = load(&bzimage(64), None, &"x".repeat(2048), &layout(&map)).unwrap_err().to_string();
        assert_eq!(error, "the command line has 2048 bytes, this kernel takes at most 2047");
    }

    #[test]
    fn truncation_anywhere_is_an_error_of_one_line() {
        let map = map(256);
        let whole = bzimage(4096);
        for len in (0x206..0x700).chain([whole.len() - 4096, whole.len() - 17]) {
            let error = load(&whole[..len], None, "", &layout(&map)).unwrap_err().to_string();
            assert!(error.starts_with("truncated Linux kernel") && !error.contains('\n'), "{len:x}: {error}");
        }
        for len in 0..0x206 {
            assert!(crate::load(&whole[..len], None, "", &layout(&map)).is_err());
        }
        // memtest86+'s file ends inside its last paragraph: that is not damage.
        assert!(load(&whole[..whole.len() - 8], None, "", &layout(&map)).is_ok());
    }

    #[test]
    fn old_protocols_use_the_fields_that_they_have() {
        let map = map(128);
        let mut old = bzimage(4096);
        set(&mut old, 0x206, &0x203u16.to_le_bytes());
        let image = load(&old, None, &"y".repeat(255), &layout(&map)).unwrap();
        assert_eq!((image.entry.mode(), image.entry.rip), (Mode::Flat32, 0x10_0000));
        set(&mut old, 0x206, &0x201u16.to_le_bytes());
        let error = load(&old, None, "", &layout(&map)).unwrap_err().to_string();
        assert_eq!(error, "Linux kernel with boot protocol 2.01: 2.02 (Linux 2.4.0) is the oldest supported");
        set(&mut old, 0x206, &0x20Fu16.to_le_bytes());
        old[0x211] = 0;
        assert!(load(&old, None, "", &layout(&map)).unwrap_err().to_string().starts_with("zImage"));
    }

    #[test]
    fn hostile_headers_never_panic() {
        let map = map(128);
        let whole = bzimage(256);
        for at in HEADER..0x270 {
            for value in [0u8, 1, 0x7F, 0x80, 0xFF] {
                let mut file = whole.clone();
                file[at] = value;
                let _ = load(&file, Some(&[0; 10]), "a", &layout(&map));
                set(&mut file, at, &[value; 8]);
                let _ = load(&file, Some(&[0; 10]), "a", &layout(&map));
            }
        }
        let mut far = whole;
        set(&mut far, 0x258, &u64::MAX.to_le_bytes());
        let error = load(&far, None, "", &layout(&map)).unwrap_err().to_string();
        assert!(error.starts_with("damaged Linux kernel"), "{error}");
    }

    #[test]
    fn without_initrd_the_ramdisk_fields_are_zero() {
        let map = map(256);
        let image = load(&bzimage(64), None, "", &layout(&map)).unwrap();
        let params = memory(&image, image.entry.registers.rsi, 4096);
        assert_eq!((u32_at(params, 0x218), u32_at(params, 0x21C)), (Some(0), Some(0)));
    }
}
