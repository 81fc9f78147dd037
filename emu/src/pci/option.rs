//! Expansion ROMs (PCI Local Bus Specification 2.1, 6.3).

/// Has the images for PCs in a ROM name this device, as the maker of a card has its ROM do: firmware takes no other, and
/// one ROM is for a family of chips. The byte behind the entry's jump makes up for it in the checksum, as in iPXE's.
pub(crate) fn program(bytes: &mut [u8], vendor: u16, device: u16) {
    const JUMP: usize = 3;
    const BALANCE: usize = 6;
    let word = |b: &[u8], at: usize| Some(u16::from_le_bytes(*b.get(at..)?.first_chunk()?));
    let mut at = 0;
    while let Some(image) = bytes.get_mut(at..).filter(|i| i.starts_with(&[0x55, 0xaa])) {
        let Some(pcir) = word(image, 0x18).map(usize::from) else { return };
        let Some(header) = image.get(pcir..pcir + 0x18).filter(|h| h.starts_with(b"PCIR")) else { return };
        let (code, last) = (header[0x14], header[0x15] & 0x80 != 0);
        let len = usize::from(u16::from_le_bytes([header[0x10], header[0x11]])) * 512;
        let old: [u8; 4] = [header[4], header[5], header[6], header[7]];
        let ids = (u32::from(vendor) | u32::from(device) << 16).to_le_bytes();
        if code == 0 && matches!(image[JUMP], 0xe9 | 0xeb) {
            let sum = |b: [u8; 4]| b.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
            image[BALANCE] = image[BALANCE].wrapping_add(sum(old)).wrapping_sub(sum(ids));
            image[pcir + 4..pcir + 8].copy_from_slice(&ids);
        }
        if last || len == 0 {
            return;
        }
        at += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(code: u8, last: bool) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[..7].copy_from_slice(&[0x55, 0xaa, 2, 0xe9, 0x10, 0, 0]);
        image[0x18] = 0x40;
        image[0x40..0x48].copy_from_slice(b"PCIR\xec\x10\x39\x81");
        (image[0x50], image[0x54], image[0x55]) = (2, code, if last { 0x80 } else { 0 });
        image[6] = image.iter().fold(0u8, |s, b| s.wrapping_add(*b)).wrapping_neg();
        image
    }

    #[test]
    fn all_images_for_pcs_name_the_device_and_still_add_up() {
        let mut rom = [image(0, false), image(3, false), image(0, true)].concat();
        program(&mut rom, 0x1af4, 0x1000);
        for (n, image) in rom.chunks(1024).enumerate() {
            let ids: &[u8] = if n == 1 { b"\xec\x10\x39\x81" } else { b"\xf4\x1a\x00\x10" };
            assert_eq!(&image[0x44..0x48], ids);
            assert_eq!(image.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
        }
    }

    #[test]
    fn what_is_no_rom_stays_as_it_is() {
        for at in [0, 0x18, 0x19, 0x40] {
            let mut rom = image(0, true);
            rom[at] = 0xff;
            let before = rom.clone();
            program(&mut rom, 1, 2);
            assert_eq!(rom, before, "{at:x}");
        }
        for len in [0, 1, 2, 0x19, 0x1a, 0x41, 0x57] {
            let mut rom = image(0, true)[..len].to_vec();
            program(&mut rom, 1, 2);
            assert_eq!(rom, image(0, true)[..len]);
        }
    }
}
