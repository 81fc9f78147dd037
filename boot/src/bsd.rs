//! What OpenBSD's and NetBSD's own protocols share: which kernels they are for, the command line, and where the kernel
//! goes.
//!
//! The command line has the options of GRUB's `kopenbsd` and `knetbsd`: single letters for the flags of boot(8),
//! `-h [comN[,SPEED]]` for a serial console, `-r DEVICE` for the root.
//!
//! Symbols are not loaded: the kernels' debugger does without.

use crate::elf::Elf;
use crate::image::{self, Entry, Image, Registers};
use crate::kernel::Layout;
use crate::memory::{EBDA, Kind};
use crate::place::Placer;
use crate::{netbsd, openbsd};
use anyhow::{Context, Result, bail, ensure};

/// The kernels are linked behind a base of their own, and run from there on.
const PHYSICAL: u64 = 0x0FFF_FFFF;
const PAGE: u64 = 4096;
/// Baud, where nothing is said.
const SPEED: u32 = 9600;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    OpenBsd,
    NetBsd,
}

/// The system whose kernel a file is, and its version, by the text that what(1) looks for.
pub(crate) fn system(file: &[u8]) -> Option<(System, (u32, u32))> {
    let mut rest = file;
    while let Some(at) = rest.windows(4).position(|four| four == b"@(#)") {
        rest = &rest[at + 4..];
        for (name, system) in [(&b"OpenBSD "[..], System::OpenBsd), (b"NetBSD ", System::NetBsd)] {
            let Some(version) = rest.strip_prefix(name) else { continue };
            let version: String = version.iter().take(16).map(|byte| char::from(*byte)).collect();
            let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
            if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) {
                return Some((system, (major, minor)));
            }
        }
    }
    None
}

/// What a command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Flags of the system's `sys/reboot.h`.
    pub(crate) howto: u32,
    /// The serial console's number and speed.
    pub(crate) serial: Option<(u32, u32)>,
    /// The root device.
    pub(crate) root: Option<String>,
}

impl Options {
    /// Takes a command line apart; `flags` are the letters that the system knows.
    pub(crate) fn parse(cmdline: &str, flags: &[(char, u32)]) -> Result<Options> {
        let mut options = Options::default();
        let mut words = cmdline.split_whitespace().peekable();
        while let Some(word) = words.next() {
            let letters = word.strip_prefix('-').filter(|letters| !letters.is_empty());
            let letters = letters.with_context(|| format!("{word:?}: expected flags, such as -s, or -r DEVICE"))?;
            for letter in letters.chars() {
                match letter {
                    'h' => {
                        options.serial = Some(serial(words.next_if(|word| !word.starts_with('-')).unwrap_or("com0"))?)
                    }
                    'r' => options.root = Some(words.next().context("-r: which device?")?.to_owned()),
                    letter => {
                        let flag = flags.iter().find(|(known, _)| *known == letter);
                        let known = || flags.iter().map(|(letter, _)| *letter).collect::<String>();
                        options.howto |= flag.with_context(|| format!("-{letter}: expected one of {}hr", known()))?.1;
                    }
                }
            }
        }
        Ok(options)
    }
}

/// `comN[,SPEED]`.
fn serial(text: &str) -> Result<(u32, u32)> {
    let (port, speed) = text.split_once(',').unwrap_or((text, ""));
    let unit = port.strip_prefix("com").and_then(|unit| unit.parse().ok()).filter(|unit| *unit < 4);
    let speed = if speed.is_empty() { Some(SPEED) } else { speed.parse().ok().filter(|speed| *speed > 0) };
    unit.zip(speed).with_context(|| format!("-h {text}: expected com0 to com3, and perhaps a comma and the speed"))
}

/// Loads a kernel of one of these systems.
pub(crate) fn load(
    (system, version): (System, (u32, u32)),
    mut elf: Elf,
    initrd: Option<&[u8]>,
    cmdline: &str,
    layout: &Layout,
) -> Result<Image> {
    let name = match system {
        System::OpenBsd => "OpenBSD",
        System::NetBsd => "NetBSD",
    };
    ensure!(initrd.is_none(), "{name} takes no initrd");
    ensure!(layout.long_mode || !elf.wide, "64-bit {name} kernel, but the guest's processor has no long mode");
    elf.mask(PHYSICAL);
    let entry = u32::try_from(elf.entry).ok().filter(|_| elf.holds_physical(elf.entry));
    let Some(entry) = entry else { bail!("damaged {name} kernel: its entry 0x{:x} is not what it loads", elf.entry) };
    let mut placer = Placer::new(layout.map);
    let zero = elf.place(&mut placer)?;
    // A page of its own: OpenBSD/i386 maps the page that the address is in, and reads from its begin.
    let mut page = |what| placer.lowest(0, PAGE, what).context("there is no conventional memory");
    let (info, gdt) = (page("what the kernel is told")?, page("the kernel's first stack")?);
    let stack = gdt + image::GDT_LEN;
    let (words, told) = match system {
        System::OpenBsd => openbsd::tell(cmdline, info as u32, elf.wide && version >= (7, 3), layout)?,
        System::NetBsd => netbsd::tell(cmdline, info as u32, layout)?,
    };
    ensure!(told.len() as u64 <= PAGE, "the memory map has too many entries: {}", layout.map.regions().len());
    let mut bytes = image::gdt32();
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    placer.fill(gdt, bytes);
    placer.fill(info, told);
    let registers = Registers { rsp: stack, ..Registers::default() };
    Ok(Image {
        what: format!("{} kernel ({name} {}.{}, entry 0x{entry:x})", elf.describe(), version.0, version.1),
        pieces: placer.into_pieces(),
        zero,
        entry: Entry::flat32(entry, gdt, registers),
    })
}

/// KiB of conventional memory, and KiB from 1 MiB up to the first hole.
pub(crate) fn memory_sizes(layout: &Layout) -> (u32, u32) {
    let above = layout.map.regions().iter().find(|r| r.kind == Kind::Ram && r.base == 1 << 20);
    ((EBDA >> 10) as u32, above.map_or(0, |r| (r.len >> 10) as u32))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bytes::{Put, u32_at, u64_at};
    use crate::linux::tests::{MIB, layout, memory};
    use crate::memory::MemoryMap;

    /// A kernel for 32 bits with a text of its version, linked as the systems link them.
    pub(crate) fn kernel(base: u32, version: &str) -> Vec<u8> {
        let mut file = b"\x7fELF\x01\x01\x01".to_vec();
        file.resize(16, 0);
        for word in [3 << 16 | 2, 1, base + 0x120, 52, 0, 0, 32 << 16 | 52, 1, 0] {
            file.put32(word);
        }
        for word in [1, 0x100, base + 0x100, base + 0x100, 0x80, 0x1000, 7, 0x1000] {
            file.put32(word);
        }
        file.resize(0x180, 0x90);
        file[0x140..0x140 + version.len()].copy_from_slice(version.as_bytes());
        file
    }

    fn loaded(version: &str, cmdline: &str) -> Result<Image> {
        let map = MemoryMap::new(64 * MIB, 0xC000_0000)?;
        crate::load(&kernel(0xD020_0000, version), None, cmdline, &layout(&map))
    }

    #[test]
    fn openbsd_is_told_on_the_stack() {
        let image = loaded("@(#)OpenBSD 5.1 (X)", "-sc -h com1,19200 -r wd1b").unwrap();
        assert_eq!(image.what, "32-bit i386 ELF kernel (OpenBSD 5.1, entry 0x200120)");
        assert_eq!((image.entry.rip, image.zero[0].clone()), (0x20_0120, 0x20_0180..0x20_1100));
        let stack = memory(&image, image.entry.registers.rsp, 36).to_vec();
        let word = |n: usize| u32_at(&stack, 4 * n).unwrap();
        assert_eq!((word(1), word(2), word(3), word(4)), (0x402, 0xA001_0100, 0xE, 0));
        assert_eq!((word(5), word(6)), (63 << 10, 639));
        assert_eq!(word(8) % 4096, 0, "the begin of a page, of which the kernel reads");
        let args = memory(&image, word(8).into(), word(7) as usize);
        let (mut at, mut seen) = (0, Vec::new());
        while u32_at(args, at) != Some(u32::MAX) {
            let len = u32_at(args, at + 4).unwrap() as usize;
            seen.push((u32_at(args, at).unwrap(), &args[at + 12..at + len]));
            at += len;
        }
        let [(0, memory), (5, console)] = seen[..] else { panic!("{seen:?}") };
        assert_eq!((u64_at(memory, 0), u64_at(memory, 8)), (Some(0), Some(0x9_FC00)));
        assert!(memory.ends_with(&[0; 20]));
        assert_eq!(console, [0x801_u32, 19200, u32::MAX, 0].map(u32::to_le_bytes).concat());
    }

    #[test]
    fn netbsd_is_told_by_its_records() {
        let image = loaded("@(#)NetBSD 9.3 (X)", "-a -h -r dk0").unwrap();
        let stack = memory(&image, image.entry.registers.rsp, 28).to_vec();
        let word = |n: usize| u32_at(&stack, 4 * n).unwrap();
        assert_eq!((word(1), word(2), word(4), word(5), word(6)), (1, 0, 0, 63 << 10, 639));
        let list = memory(&image, word(3).into(), 16).to_vec();
        assert_eq!(u32_at(&list, 0), Some(3));
        let record = |n: usize| memory(&image, u32_at(&list, 4 + 4 * n).unwrap().into(), 12).to_vec();
        assert_eq!(u32_at(&record(0), 4), Some(9));
        assert_eq!((u32_at(&record(1), 4), &record(1)[8..12]), (Some(6), &b"com\0"[..]));
        assert_eq!((u32_at(&record(2), 4), &record(2)[8..12]), (Some(1), &b"dk0\0"[..]));
    }

    #[test]
    fn command_lines_that_mean_nothing_are_refused() {
        for version in ["@(#)OpenBSD 5.1", "@(#)NetBSD 9.3"] {
            for cmdline in ["single", "-", "-Z", "-r", "-h com9", "-h com0,x", "-h ttyS0"] {
                assert!(loaded(version, cmdline).is_err(), "{version} {cmdline}");
            }
        }
        for root in ["wd0", "xd0a", "sd16a", "sd0q", "a", "0a"] {
            assert!(loaded("@(#)OpenBSD 5.1", &format!("-r {root}")).is_err(), "{root}");
        }
        assert!(loaded("@(#)NetBSD 9.3", "-r a-name-of-16-char").is_err());
        assert!(loaded("@(#)OpenBSD x", "").is_err(), "the version is what tells");
    }
}
