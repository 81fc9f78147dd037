//! Says what a file is that cannot be booted as a kernel, and what its owner probably wants to do about it.

use crate::bytes::{u16_at, u32_at};

/// Formats told by a fixed text at a fixed place, most specific first.
const MAGICS: &[(usize, &[u8], &str)] = &[
    (0, b"\xFD7zXZ\0", "an xz file (unpack it first if a kernel is inside)"),
    (0, b"\x28\xB5\x2F\xFD", "a zstd file (unpack it first if a kernel is inside)"),
    (0, b"BZh", "a bzip2 file (unpack it first if a kernel is inside)"),
    (0, b"\x04\x22\x4D\x18", "an lz4 file (unpack it first if a kernel is inside)"),
    (0, b"\x02\x21\x4C\x18", "an lz4 file (unpack it first if a kernel is inside)"),
    (0, b"PK\x03\x04", "a zip file"),
    (0, b"!<arch>\n", "an ar archive or Debian package (unpack it first if a kernel is inside)"),
    (0, b"070701", "a cpio archive (an initramfs belongs in initrd)"),
    (0, b"070702", "a cpio archive (an initramfs belongs in initrd)"),
    (0, b"070707", "a cpio archive (an initramfs belongs in initrd)"),
    (0, b"QFI\xFB", "a QCOW disk image (attach it as a disk)"),
    (0, b"KDMV", "a VMDK disk image (attach it as a disk)"),
    (0, b"conectix", "a VHD disk image (attach it as a disk)"),
    (0, b"vhdxfile", "a VHDX disk image (attach it as a disk)"),
    (0, b"hsqs", "a squashfs image"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image, for another kind of machine"),
    (0, b"\xD0\x0D\xFE\xED", "a device tree or FIT image, for another kind of machine"),
    (0, b"\xCE\xFA\xED\xFE", "a Mach-O file"),
    (0, b"\xCF\xFA\xED\xFE", "a Mach-O file"),
    (0, b"#!", "a script"),
    (0x8001, b"CD001", "an ISO 9660 CD image (attach it as a cd)"),
    (0x101, b"ustar", "a tar archive"),
    (4, b"zimg", "a compressed Linux EFI image (zboot), which only UEFI firmware can start"),
    (0x38, b"ARM\x64", "a Linux kernel for ARM64"),
    (0x38, b"RSC\x05", "a Linux kernel for RISC-V"),
    (0x24, b"\x18\x28\x6F\x01", "a Linux kernel for 32-bit ARM"),
];

/// A noun phrase for `file`.
pub(crate) fn describe(file: &[u8]) -> String {
    if file.is_empty() {
        return "an empty file".to_string();
    }
    if let Some((.., name)) = MAGICS.iter().find(|(at, magic, _)| file.get(*at..at + magic.len()) == Some(*magic)) {
        return (*name).to_string();
    }
    if file.starts_with(b"MZ") {
        return describe_pe(file);
    }
    if let Some(system) = a_out(file) {
        return format!("an a.out kernel or program ({system})");
    }
    if u16_at(file, 0x1FE) == Some(0xAA55) {
        return "a disk image or boot sector (attach it as a disk)".to_string();
    }
    if file.iter().all(|b| *b == 0) {
        return format!("{} zero bytes", file.len());
    }
    let text = |b: &u8| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7E | 0x80..);
    if file.iter().take(512).all(text) && std::str::from_utf8(&file[..file.len().min(64)]).is_ok() {
        return "a text file".to_string();
    }
    "no known format (neither bzImage, ELF nor multiboot)".to_string()
}

/// DOS and Windows programs and EFI applications.
fn describe_pe(file: &[u8]) -> String {
    let pe =
        u32_at(file, 0x3C).map(|at| at as usize).filter(|at| file.get(*at..at.saturating_add(4)) == Some(b"PE\0\0"));
    let Some(pe) = pe else { return "a DOS program".to_string() };
    let machine = match u16_at(file, pe + 4) {
        Some(0x014C) => "i386",
        Some(0x8664) => "x86-64",
        Some(0xAA64) => "ARM64",
        Some(0x01C0 | 0x01C2 | 0x01C4) => "32-bit ARM",
        Some(0x5032 | 0x5064) => "RISC-V",
        Some(0x6232 | 0x6264) => "LoongArch",
        Some(0x0200) => "Itanium",
        _ => "an unknown machine",
    };
    // The optional header follows the 24 bytes of signature and file header; its subsystem field is at 68.
    match u16_at(file, pe + 24 + 68) {
        Some(10..=13) => format!("an EFI program for {machine}, which only UEFI firmware can start"),
        _ => format!("a Windows program for {machine}"),
    }
}

/// a.out magics of the BSDs: 0407, 0410, 0413 and 0314 with a machine number.
fn a_out(file: &[u8]) -> Option<&'static str> {
    const MAGICS: [u32; 3] = [0o407, 0o410, 0o413];
    let word = u32_at(file, 0)?;
    let (magic, machine) = (word & 0xFFFF, word >> 16 & 0x3FF);
    if (MAGICS.contains(&magic) || magic == 0o314) && matches!(machine, 0 | 100 | 134) {
        return Some("old FreeBSD, Linux or 386BSD");
    }
    // NetBSD and OpenBSD write the word big-endian.
    let word = word.swap_bytes();
    match (MAGICS.contains(&(word & 0xFFFF)), word >> 16 & 0x3FF) {
        (true, 134) => Some("old NetBSD or OpenBSD, i386"),
        (true, 1..) => Some("old NetBSD or OpenBSD, another machine"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::set;

    fn at(offset: usize, magic: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 0x9000];
        set(&mut file, offset, magic);
        file
    }

    fn pe(machine: u16, subsystem: u16) -> Vec<u8> {
        let mut file = at(0, b"MZ");
        set(&mut file, 0x3C, &[0x80]);
        set(&mut file, 0x80, b"PE\0\0");
        set(&mut file, 0x84, &machine.to_le_bytes());
        set(&mut file, 0x80 + 24 + 68, &subsystem.to_le_bytes());
        file
    }

    #[test]
    fn foreign_kernels_are_named() {
        let mut arm64 = pe(0xAA64, 10);
        set(&mut arm64, 0x38, b"ARM\x64");
        assert_eq!(describe(&arm64), "a Linux kernel for ARM64");
        let mut zboot = pe(0x8664, 10);
        set(&mut zboot, 4, b"zimg");
        assert!(describe(&zboot).contains("zboot"));
        assert_eq!(describe(&pe(0x8664, 10)), "an EFI program for x86-64, which only UEFI firmware can start");
        assert_eq!(describe(&pe(0x14C, 3)), "a Windows program for i386");
    }

    #[test]
    fn images_for_other_slots_say_where_they_belong() {
        assert!(describe(&at(0x8001, b"CD001")).contains("cd"));
        assert!(describe(&at(0x1FE, &[0x55, 0xAA])).contains("disk"));
        assert!(describe(&at(0, b"070701")).contains("initrd"));
    }

    #[test]
    fn plain_files_are_named() {
        assert_eq!(describe(b""), "an empty file");
        assert_eq!(describe(&[0; 10]), "10 zero bytes");
        assert_eq!(describe(b"name = \"guest\"\n"), "a text file");
        assert_eq!(describe(&[1, 2, 3]), "no known format (neither bzImage, ELF nor multiboot)");
        assert_eq!(describe(&[0xCC, 0, 0x64, 0]), "an a.out kernel or program (old FreeBSD, Linux or 386BSD)");
    }

    #[test]
    fn short_files_never_panic() {
        for (offset, magic, _) in MAGICS {
            let file = at(*offset, magic);
            for len in (0..0x200).chain([0x8001, 0x8005]) {
                assert!(!describe(&file[..len]).is_empty());
            }
        }
        let file = pe(0x8664, 10);
        for len in 0..0x100 {
            assert!(!describe(&file[..len]).is_empty());
        }
    }
}
