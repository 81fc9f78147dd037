//! INT 19h: what is booted, and what is said when nothing is.

use super::*;

fn bootable(mark: u8) -> Vec<u8> {
    let mut image = vec![0; 1_474_560];
    image[0] = mark;
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image
}

/// A disc with a boot catalogue for an image of this kind at sector 20.
fn disc(media: u8, sectors: u8) -> Vec<u8> {
    let mut image = vec![0; 800 * 2048];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(17 * 2048, b"\0CD001\x01EL TORITO SPECIFICATION");
    put(17 * 2048 + 0x47, &[19]);
    put(19 * 2048, &[1]);
    put(19 * 2048 + 0x1c, &[0xaa, 0x55, 0x55, 0xaa]);
    put(19 * 2048 + 32, &[0x88, media, 0, 0, 0, 0, sectors, 0, 20]);
    (0..4u8).for_each(|n| put(20 * 2048 + 512 * usize::from(n), &[0xc0 + n]));
    image
}

fn boot(rig: &mut Rig) -> Regs {
    rig.call(0x19, Regs::default())
}

#[test]
fn drives_are_tried_in_order_and_the_first_that_boots_is_entered() {
    let drives =
        || vec![(DriveKind::Floppy, bootable(1)), (DriveKind::Disk, vec![0; 4096]), (DriveKind::Disk, bootable(2))];
    let mut first = rig(drives(), |_| {});
    let r = boot(&mut first);
    assert_eq!((r.cs, r.ip, r.dl(), first.host.memory[0x7c00]), (0, 0x7c00, 0x81, 2));
    assert_eq!(r.flags & IF, IF);
    let mut first = rig(drives(), |o| o.order = vec![DriveKind::Floppy, DriveKind::Disk]);
    assert_eq!(boot(&mut first).dl(), 0);
    // The loader gives up: the next one.
    let r = first.call(0x18, Regs::default());
    assert_eq!((r.dl(), first.host.memory[0x7c00]), (0x81, 2));
}

#[test]
fn once_is_once() {
    let mut rig = rig(vec![(DriveKind::Floppy, bootable(1)), (DriveKind::Disk, bootable(2))], |o| {
        o.once = Some(DriveKind::Floppy);
    });
    assert_eq!(boot(&mut rig).dl(), 0);
    rig.call(service::POST, Regs::default());
    assert_eq!(boot(&mut rig).dl(), 0x80);
}

#[test]
fn the_screen_says_what_was_tried_and_why_it_failed() {
    let mut bad = disc(0, 4);
    bad[19 * 2048 + 32] = 0;
    let drives = vec![(DriveKind::Floppy, Vec::new()), (DriveKind::Disk, vec![0; 4096]), (DriveKind::Cd, bad)];
    let mut rig = rig(drives, |_| {});
    let (mut r, mut status) = (Regs::default(), 0);
    for _ in 0..10 {
        (r, status) = rig.ask(0x19, r, status);
    }
    assert_eq!(status, frame::HALT);
    for line in [
        "Disk 1: no boot signature in the first sector",
        "Cd 2: its boot catalogue has nothing to boot",
        "Floppy 0: no medium",
        "network: ",
    ] {
        assert!(rig.host.typed.contains(line), "{line}: {}", rig.host.typed);
    }
    // A key starts over, with a diskette in the drive now.
    rig.host.disks[0] = bootable(1);
    rig.call(0x16, Regs { ecx: 0x1c0d, ..ax(0x0500) });
    while status != frame::RETURN {
        (r, status) = rig.ask(0x19, r, status);
    }
    assert_eq!((r.dl(), rig.host.memory[0x7c00]), (0, 1));
}

#[test]
fn the_menu_boots_what_is_chosen() {
    let mut rig = rig(vec![(DriveKind::Floppy, bootable(1)), (DriveKind::Disk, bootable(2))], |o| o.menu_ms = 500);
    rig.call(0x16, Regs { ecx: 0x8600, ..ax(0x0500) });
    let (r, status) = rig.ask(0x19, Regs::default(), 0);
    assert!(rig.host.typed.contains("2  Floppy 0"), "{}", rig.host.typed);
    rig.call(0x16, Regs { ecx: 0x0332, ..ax(0x0500) });
    let (mut r, mut status) = rig.ask(0x19, r, status);
    while status != frame::RETURN {
        (r, status) = rig.ask(0x19, r, status);
    }
    assert_eq!(r.dl(), 0);
}

#[test]
fn the_menu_has_drives_that_the_order_leaves_out() {
    let boots = |key: u32| {
        let mut rig = rig(vec![(DriveKind::Floppy, bootable(1)), (DriveKind::Disk, bootable(2))], |o| {
            (o.menu_ms, o.order) = (500, vec![DriveKind::Disk]);
        });
        rig.call(0x16, Regs { ecx: 0x8600, ..ax(0x0500) });
        rig.call(0x16, Regs { ecx: key, ..ax(0x0500) });
        let r = boot(&mut rig);
        assert!(rig.host.typed.contains("1  Disk 1\r\n  2  Floppy 0"), "{}", rig.host.typed);
        let then = rig.call(0x18, Regs { ecx: 0x011b, ..Regs::default() });
        (r.dl(), then.dl())
    };
    assert_eq!(boots(0x0332), (0, 0x80), "the floppy, and then what is in order");
}

#[test]
fn a_disc_without_emulation_is_loaded_and_read_by_its_sectors() {
    let mut rig = rig(vec![(DriveKind::Cd, disc(0, 4))], |_| {});
    let r = boot(&mut rig);
    assert_eq!((r.cs, r.ip, r.dl()), (0, 0x7c00, 0xe0));
    assert_eq!((rig.host.memory[0x7c00], rig.host.memory[0x7c00 + 3 * 512]), (0xc0, 0xc3));
    rig.host.write(0x5_0000, &[16, 0, 1, 0, 0, 0, 0, 0x40, 19, 0, 0, 0, 0, 0, 0, 0]);
    let r = rig.call(0x13, Regs { eax: 0x4200, edx: 0xe0, ds: 0x5000, ..Regs::default() });
    assert_eq!((r.ah(), rig.host.memory[0x4_0000], rig.host.memory[0x4_0020]), (0, 1, 0x88));
    let r = rig.call(0x13, Regs { eax: 0x4b01, edx: 0x7f, ds: 0x5000, ..Regs::default() });
    assert_eq!((carry(&r), rig.host.memory[0x5_0000], rig.host.memory[0x5_0002]), (false, 0x13, 0xe0));
    let r = rig.call(0x13, Regs { eax: 0x4100, ebx: 0x55aa, edx: 0xe0, ..Regs::default() });
    assert_eq!((r.bx(), carry(&r)), (0xaa55, false));
    rig.host.write(0x5_0000, &[0x1a, 0]);
    rig.call(0x13, Regs { eax: 0x4800, edx: 0xe0, ds: 0x5000, ..Regs::default() });
    assert_eq!(rig.word(0x5_0018), 2048);
}

#[test]
fn an_emulated_diskette_is_drive_0_until_it_is_ended() {
    let mut rig = rig(vec![(DriveKind::Floppy, bootable(7)), (DriveKind::Cd, disc(2, 1))], |_| {});
    let r = boot(&mut rig);
    assert_eq!((r.dl(), rig.host.memory[0x7c00]), (0, 0xc0));
    let mut first = |drive: u32| {
        let r = rig.call(0x13, Regs { eax: 0x0201, ecx: 1, edx: drive, es: 0x4000, ..Regs::default() });
        (r.ah(), rig.host.memory[0x4_0000])
    };
    assert_eq!((first(0), first(1)), ((0, 0xc0), (0, 7)));
    assert_eq!(rig.call(0x13, Regs { edx: 0, ..ax(0x0800) }).dl(), 2);
    let r = rig.call(0x13, Regs { eax: 0x0301, ecx: 1, es: 0x4000, ..Regs::default() });
    assert_eq!(r.ah(), 3, "write protected");
    rig.call(0x13, Regs { eax: 0x4b00, edx: 0, ds: 0x5000, ..Regs::default() });
    let r = rig.call(0x13, Regs { eax: 0x0201, ecx: 1, es: 0x4000, ..Regs::default() });
    assert_eq!((r.ah(), rig.host.memory[0x4_0000]), (0, 7));
}

#[test]
fn emulated_diskettes_are_of_three_sizes() {
    for (media, sectors, kind) in [(1, 15, 2), (2, 18, 4), (3, 36, 5)] {
        let mut image = disc(media, 1);
        image.resize(20 * 2048 + (160 * usize::from(sectors)) * 512, 0);
        *image.last_mut().unwrap() = 0xee;
        let mut rig = rig(vec![(DriveKind::Cd, image)], |_| {});
        boot(&mut rig);
        let r = rig.call(0x13, ax(0x0800));
        assert_eq!((r.ch(), r.dh(), r.cl(), r.bl(), r.dl()), (79, 1, sectors, kind, 1));
        let last = Regs { eax: 0x0201, ecx: 79 << 8 | u32::from(sectors), edx: 0x100, es: 0x4000, ..Regs::default() };
        assert_eq!((rig.call(0x13, last).ah(), rig.host.memory[0x4_01ff]), (0, 0xee), "the last sector");
    }
}

#[test]
fn an_emulated_disk_has_the_geometry_of_its_partition() {
    let mut image = disc(4, 1);
    // From sector 63 to cylinder 1, head 15, sector 32.
    image[20 * 2048 + 446..20 * 2048 + 462].copy_from_slice(&[0x80, 1, 1, 0, 6, 15, 32, 1, 32, 0, 0, 0, 0xe0, 3, 0, 0]);
    let mut rig = rig(vec![(DriveKind::Disk, bootable(2)), (DriveKind::Cd, image)], |o| o.order = vec![DriveKind::Cd]);
    assert_eq!(boot(&mut rig).dl(), 0x80);
    let r = rig.call(0x13, Regs { edx: 0x80, ..ax(0x0800) });
    assert_eq!((r.dh(), r.cl(), r.ch(), r.dl()), (15, 32, 1, 2));
    let r = rig.call(0x13, Regs { eax: 0x0201, ecx: 1, edx: 0x81, es: 0x4000, ..Regs::default() });
    assert_eq!((r.ah(), rig.host.memory[0x4_0000]), (0, 2), "the real disk moved up");
}

#[test]
fn damaged_discs_are_told_apart() {
    let why = |damage: &dyn Fn(&mut Vec<u8>)| {
        let mut image = disc(0, 4);
        damage(&mut image);
        let mut rig = rig(vec![(DriveKind::Cd, image)], |_| {});
        let (mut r, mut status) = (Regs::default(), 0);
        for _ in 0..10 {
            (r, status) = rig.ask(0x19, r, status);
        }
        let text = std::mem::take(&mut rig.host.typed);
        text.lines().find(|l| l.contains("Cd 0")).unwrap_or_default().to_owned()
    };
    assert!(why(&|i| i.truncate(10 * 2048)).contains("too small"));
    assert!(why(&|i| i[17 * 2048 + 8] = b'x').contains("no El Torito boot record"));
    assert!(why(&|i| i[17 * 2048 + 0x49] = 9).contains("boot catalogue is not on the disc"));
    assert!(why(&|i| i[19 * 2048 + 5] = 9).contains("damaged"));
    assert!(why(&|i| i[19 * 2048 + 33] = 9).contains("emulation of kind 9"));
    assert!(why(&|i| i[19 * 2048 + 43] = 9).contains("boot image is not on the disc"));
    assert!(why(&|i| i[19 * 2048 + 33] = 4).contains("no partition"));
    assert!(why(&|i| platform(i, 0xef)).contains("bootable on other machines only: UEFI"));
}

/// Makes the catalogue one for another kind of machine.
fn platform(image: &mut [u8], platform: u8) {
    let catalogue = &mut image[19 * 2048..];
    (catalogue[1], catalogue[0x1d]) = (platform, 0x55u8.wrapping_sub(platform));
    // The sum's low byte stays, the high one takes the difference.
    assert_eq!(catalogue[..32].iter().step_by(2).fold(0u8, |s, b| s.wrapping_add(*b)), 0x00);
}

/// A section of the catalogue for a kind of machine, with so many entries.
fn section(last: bool, platform: u8, entries: u8) -> [u8; 32] {
    let mut header = [0; 32];
    header[..3].copy_from_slice(&[if last { 0x91 } else { 0x90 }, platform, entries]);
    header
}

fn entry(indicator: u8, media: u8, sectors: u8, start: u8) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[..9].copy_from_slice(&[indicator, media, 0, 0, 0, 0, sectors, 0, start]);
    entry
}

#[test]
fn the_first_bootable_entry_for_this_kind_of_machine_is_booted() {
    let booted = |records: &[[u8; 32]]| {
        let mut image = disc(0, 4);
        image[19 * 2048 + 32..][..32 * records.len()].copy_from_slice(records.as_flattened());
        (0..10u8).for_each(|n| image[2048 * (30 + usize::from(n))] = n);
        let mut rig = rig(vec![(DriveKind::Cd, image)], |_| {});
        let r = boot(&mut rig);
        (r.dl(), rig.host.memory[0x7c00])
    };
    let extension = |more| {
        let mut e = [0; 32];
        e[..2].copy_from_slice(&[0x44, more]);
        e
    };
    let no = entry(0, 0, 4, 30);
    assert_eq!(booted(&[entry(0x88, 0, 4, 31), section(true, 0, 1), entry(0x88, 0, 4, 32)]), (0xe0, 1));
    assert_eq!(booted(&[no, section(true, 0, 1), entry(0x88, 0, 4, 32)]), (0xe0, 2));
    let uefi = [no, section(false, 0xef, 1), entry(0x88, 0, 4, 33), section(true, 0, 2), no, entry(0x88, 2, 1, 34)];
    assert_eq!(booted(&uefi), (0, 4), "behind one for UEFI, and a diskette");
    let extended = [
        no,
        section(true, 0, 2),
        entry(0, 0x20, 4, 30),
        extension(0x20),
        extension(0),
        entry(0x88, 0x20, 4, 35),
        extension(0),
    ];
    assert_eq!(booted(&extended), (0xe0, 5), "behind entries with selection criteria");
}

#[test]
fn a_loader_with_a_menu_of_its_own_reads_the_catalogue_and_starts_other_images() {
    let mut image = disc(0, 4);
    image[19 * 2048 + 64..][..64].copy_from_slice([section(true, 0, 1), entry(0x88, 2, 1, 40)].as_flattened());
    image[40 * 2048] = 0xd0;
    // A disk of 2 cylinders, 16 heads, 32 sectors.
    image[60 * 2048] = 0xd1;
    image[60 * 2048 + 446..][..16].copy_from_slice(&[0x80, 1, 1, 0, 6, 15, 32, 1, 32, 0, 0, 0, 0xe0, 3, 0, 0]);
    let drives = vec![(DriveKind::Floppy, bootable(7)), (DriveKind::Disk, bootable(8)), (DriveKind::Cd, image)];
    let mut rig = rig(drives, |o| o.order = vec![DriveKind::Cd]);
    assert_eq!(boot(&mut rig).dl(), 0xe0);
    let packet = |rig: &mut Rig, eax: u32, drive: u32, packet: &[u8]| {
        rig.host.write(0x5_0000, packet);
        rig.call(0x13, Regs { eax, edx: drive, ds: 0x5000, ..Regs::default() })
    };
    let first = |rig: &mut Rig, drive: u32| {
        let r = rig.call(0x13, Regs { eax: 0x0201, ecx: 1, edx: drive, es: 0x4000, ..Regs::default() });
        (r.ah(), rig.host.memory[0x4_0000])
    };
    // The catalogue.
    assert_eq!(packet(&mut rig, 0x4d00, 0xe0, &[8, 1, 0x10, 0, 0, 0x40, 0, 0]).ah(), 0);
    assert_eq!((rig.host.memory[0x4_0010], rig.host.memory[0x4_0010 + 96]), (1, 0x88));
    assert_eq!(packet(&mut rig, 0x4d00, 0xe0, &[8, 0, 0x10, 0, 0, 0x40, 0, 0]).ah(), 1);
    // A diskette, emulated beside the real one.
    let mut diskette = [0; 19];
    (diskette[0], diskette[1], diskette[4], diskette[14]) = (0x13, 2, 40, 1);
    assert_eq!(packet(&mut rig, 0x4a00, 0, &diskette).ah(), 0);
    assert_eq!([first(&mut rig, 0), first(&mut rig, 1)], [(0, 0xd0), (0, 7)]);
    assert_eq!(rig.word(0x410) & 0xc1, 0x41, "two diskette drives");
    let r = packet(&mut rig, 0x4b01, 0x7f, &[0; 19]);
    assert_eq!((carry(&r), rig.host.memory[0x5_0001], rig.host.memory[0x5_0004]), (false, 2, 40));
    assert_eq!(rig.host.memory[0x5_0010..0x5_0013], [79, 18, 1]);
    // A disk in its place, behind the real one.
    let mut hard = [0; 19];
    (hard[0], hard[1], hard[2], hard[4]) = (0x13, 4, 0x81, 60);
    assert_eq!(packet(&mut rig, 0x4a00, 0, &hard).ah(), 0);
    assert_eq!([first(&mut rig, 0), first(&mut rig, 0x80), first(&mut rig, 0x81)], [(0, 7), (0, 8), (0, 0xd1)]);
    assert_eq!((rig.word(0x410) & 0xc1, rig.word(0x475) & 0xff), (1, 2));
    // Ended, and nothing is left to end.
    assert_eq!(packet(&mut rig, 0x4b00, 0x7f, &[0; 19]).ah(), 0);
    assert_eq!((first(&mut rig, 0x81).0, packet(&mut rig, 0x4b01, 0x7f, &[0; 19]).ah()), (1, 1));
    // Booted: what comes back is the image's entry.
    let r = packet(&mut rig, 0x4c00, 0, &diskette);
    assert_eq!((r.cs, r.ip, r.dl(), rig.host.memory[0x7c00]), (0, 0x7c00, 0, 0xd0));
    for damage in [(0, 0x12), (1, 9), (2, 0x80), (3, 5), (7, 0xff)] {
        let mut bad = diskette;
        bad[damage.0] = damage.1;
        assert_eq!(packet(&mut rig, 0x4a00, 0, &bad).ah(), 1, "{damage:x?}");
    }
}

#[test]
fn a_disc_in_the_second_drive_is_booted_from_there() {
    let drives = vec![(DriveKind::Cd, Vec::new()), (DriveKind::Cd, disc(0, 4))];
    let mut rig = rig(drives, |o| o.order = vec![DriveKind::Cd]);
    assert_eq!(boot(&mut rig).dl(), 0xe1);
}
