//! INT 13h.

use super::super::disk::Geometry;
use super::*;

/// Each sector begins with its number.
fn numbered(sectors: u32, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; sectors as usize * size];
    bytes.chunks_mut(size).zip(0u32..).for_each(|(s, n)| s[..4].copy_from_slice(&n.to_le_bytes()));
    bytes
}

fn sector(rig: &Rig, at: usize) -> u32 {
    u32::from_le_bytes(rig.host.memory[at..at + 4].try_into().unwrap())
}

fn packet(rig: &mut Rig, function: u8, drive: u8, count: u16, lba: u64) -> Regs {
    let mut p = vec![16, 0];
    p.extend(count.to_le_bytes());
    p.extend([0, 0, 0, 0x40]);
    p.extend(lba.to_le_bytes());
    rig.host.write(0x5_0000, &p);
    rig.call(0x13, Regs { eax: u32::from(function) << 8, edx: drive.into(), ds: 0x5000, ..Regs::default() })
}

#[test]
fn chs_and_packets_reach_the_same_sectors() {
    let mut rig = rig(vec![(DriveKind::Disk, numbered(40_000, 512))], |_| {});
    let r = rig.call(0x13, Regs { eax: 0x0800, edx: 0x80, ..Regs::default() });
    let (heads, sectors) = (u32::from(r.dh()) + 1, u32::from(r.cl() & 0x3f));
    assert_eq!((heads, sectors, r.dl(), r.ch()), (16, 63, 1, 38));
    // Cylinder 21, head 3, sector 9.
    let lba = (21 * heads + 3) * sectors + 8;
    let r = Regs { eax: 0x0202, ecx: 21 << 8 | 9, edx: 0x0380, es: 0x4000, ebx: 0x10, ..Regs::default() };
    let r = rig.call(0x13, r);
    assert_eq!((carry(&r), r.ax()), (false, 0x0002));
    assert_eq!((sector(&rig, 0x4_0010), sector(&rig, 0x4_0210)), (lba, lba + 1));
    let r = packet(&mut rig, 0x42, 0x80, 1, lba.into());
    assert_eq!((carry(&r), r.ah(), sector(&rig, 0x4_0000)), (false, 0, lba));
    rig.host.write(0x4_0000, b"new!");
    assert_eq!(packet(&mut rig, 0x43, 0x80, 1, 7).ah(), 0);
    assert_eq!(&rig.host.disks[0][7 * 512..7 * 512 + 4], b"new!");
}

#[test]
fn what_does_not_exist_is_refused_and_remembered() {
    let mut rig = rig(vec![(DriveKind::Disk, numbered(2016, 512))], |_| {});
    let r = packet(&mut rig, 0x42, 0x80, 2, 2015);
    assert_eq!((carry(&r), r.ah(), rig.word(0x5_0002)), (true, 4, 0), "past the end, and nothing moved");
    let r = packet(&mut rig, 0x42, 0x80, 1, 1 << 40);
    assert_eq!(r.ah(), 4, "beyond 32 bits");
    assert_eq!(rig.call(0x13, Regs { eax: 0x0100, edx: 0x80, ..Regs::default() }).ah(), 4, "the last status");
    assert_eq!(packet(&mut rig, 0x42, 0x81, 1, 0).ah(), 1, "no such disk");
    let r = Regs { eax: 0x0201, ecx: 1, edx: 0xff80, ..Regs::default() };
    assert_eq!(rig.call(0x13, r).ah(), 1, "no such head");
    assert_eq!(rig.call(0x13, Regs { eax: 0x0200, ecx: 1, edx: 0x80, ..Regs::default() }).ah(), 1, "no sectors");
}

#[test]
fn a_disk_that_is_not_done_makes_the_stub_wait_and_nested_calls_do_not_mix() {
    let mut rig = rig(vec![(DriveKind::Disk, numbered(2016, 512))], |_| {});
    rig.host.late = true;
    let r = Regs { eax: 0x0201, ecx: 5, edx: 0x80, es: 0x4000, ..Regs::default() };
    let (r, status) = rig.ask(0x13, r, 0);
    assert_eq!(status, frame::HALT);
    // An interrupt handler's call from another stack.
    rig.host.write(data::BLOCK, &[0x05, 0xb1, 0x00, 0x00, 0x00, 0x09]);
    let mut inner = vec![0; frame::LEN];
    inner[frame::SERVICE] = 0x13;
    inner[frame::EAX..frame::EAX + 2].copy_from_slice(&[0x01, 0x02]);
    inner[frame::ECX] = 9;
    inner[frame::EDX] = 0x80;
    inner[frame::ES..frame::ES + 2].copy_from_slice(&[0x00, 0x60]);
    rig.host.write(0x9000, &inner);
    rig.host.late = false;
    rig.bios.serve(&mut rig.host);
    assert_eq!(rig.word(0x9002), frame::HALT, "each call is asked for twice");
    rig.host.write(data::BLOCK, &[0x05, 0xb1]);
    rig.bios.serve(&mut rig.host);
    assert_eq!((rig.word(0x9002), sector(&rig, 0x6_0000)), (frame::RETURN, 8));
    let (r, status) = rig.ask(0x13, r, status);
    assert_eq!((status, r.ax(), sector(&rig, 0x4_0000)), (frame::RETURN, 1, 4));
}

#[test]
fn extended_parameters_fill_what_there_is_room_for() {
    let mut rig = rig(vec![(DriveKind::Disk, numbered(40_000, 512))], |_| {});
    rig.bios.config.drives[0].place =
        Some(disk::Place { pci: (0, 1, 1), interface: "ATA", unit: (1, 1), ide: Some((0x170, 0x376, 15)) });
    let mut ask = |room: u16| {
        rig.host.write(0x5_0000, &[0xcc; 0x60]);
        rig.host.write(0x5_0000, &room.to_le_bytes());
        let r = Regs { eax: 0x4800, edx: 0x80, ds: 0x5000, ..Regs::default() };
        let r = rig.call(0x13, r);
        (r.ah(), rig.host.memory[0x5_0000..0x5_0060].to_vec())
    };
    assert_eq!(ask(0x19).0, 1);
    let (status, out) = ask(0x1a);
    assert_eq!((status, out[0], out[0x1a]), (0, 0x1a, 0xcc));
    assert_eq!(u64::from_le_bytes(out[16..24].try_into().unwrap()), 40_000);
    let (_, out) = ask(0x42);
    assert_eq!((out[0], &out[0x24..0x2c], out[0x42]), (0x42, &b"PCI ATA "[..], 0xcc));
    assert_eq!(out[0x1e..0x42].iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
    let extension = usize::from(u16::from_le_bytes([out[0x1a], out[0x1b]])) + 0x9_fc00;
    let table = &rig.host.memory[extension..extension + 16];
    assert_eq!((table[0], table[1], table[6], table[4]), (0x70, 0x01, 15, 0xf0));
    assert_eq!(table.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
}

#[test]
fn floppies_have_the_geometry_of_their_image_and_tell_of_a_change_once() {
    for (kib, cylinders, heads, sectors, bytes) in [
        (360, 40, 2, 9, 512),
        (720, 80, 2, 9, 512),
        (1200, 80, 2, 15, 512),
        (1232, 77, 2, 8, 1024),
        (1440, 80, 2, 18, 512),
        (2880, 80, 2, 36, 512),
    ] {
        let all = (kib << 10) / bytes;
        let mut rig = rig(vec![(DriveKind::Floppy, numbered(all, bytes as usize))], |_| {});
        let r = rig.call(0x13, ax(0x0800));
        assert_eq!((r.ch() + 1, r.dh() + 1, r.cl(), r.bl(), r.dl()), (cylinders, heads, sectors, 4, 1));
        let last = Regs {
            eax: 0x0201,
            ecx: u32::from(cylinders - 1) << 8 | u32::from(sectors),
            edx: u32::from(heads - 1) << 8,
            es: 0x4000,
            ..Regs::default()
        };
        assert_eq!(rig.call(0x13, last).ax(), 1);
        assert_eq!(sector(&rig, 0x4_0000), all - 1);
        rig.host.changes[0] += 1;
        let r = rig.call(0x13, last);
        assert_eq!((carry(&r), r.ah()), (true, 6));
        assert_eq!(rig.call(0x13, last).ah(), 0);
        assert_eq!(rig.call(0x13, ax(0x1500)).ah(), 2, "it has a change line");
    }
    let mut rig = rig(vec![(DriveKind::Floppy, vec![0; 4 << 20])], |_| {});
    assert_eq!(rig.call(0x13, Regs { eax: 0x0201, ecx: 1, es: 0x4000, ..Regs::default() }).ah(), 0x0c, "too large");
}

#[test]
fn the_data_area_knows_the_kinds_of_floppy_drives() {
    let mut rig = rig(vec![(DriveKind::Floppy, Vec::new()), (DriveKind::Floppy, Vec::new())], |_| {});
    assert_eq!((rig.word(0x48f) & 0xff, rig.word(0x490)), (0x77, 0x1717));
    rig.bios.config.drives[1].floppy = 1;
    rig.call(service::POST, Regs::default());
    assert_eq!((rig.word(0x48f) & 0xff, rig.word(0x490)), (0x47, 0x9317));
    let r = rig.call(0x13, Regs { edx: 1, ..ax(0x0800) });
    assert_eq!((r.ch(), r.cl(), r.bl(), r.dl()), (39, 9, 1, 2), "what it is made for");
    assert_eq!(rig.call(0x13, Regs { edx: 1, ..ax(0x1500) }).ah(), 1, "and no change line");
}

#[test]
fn an_empty_or_missing_floppy_drive_times_out() {
    let mut rig = rig(vec![(DriveKind::Floppy, Vec::new())], |_| {});
    let read = Regs { eax: 0x0201, ecx: 1, es: 0x4000, ..Regs::default() };
    assert_eq!(rig.call(0x13, read).ah(), 0x80);
    assert_eq!(rig.call(0x13, Regs { edx: 1, ..read }).ah(), 0x80);
    assert_eq!(rig.call(0x13, Regs { edx: 1, ..ax(0x1500) }).ax(), 0, "no such drive");
}

#[test]
fn geometries_cover_the_disk_up_to_the_limit_of_chs() {
    for (gib, heads) in [(0.3, 16), (0.9, 32), (1.9, 64), (3.9, 128), (7.8, 255), (600.0, 255)] {
        let sectors = (gib * 2_097_152.0) as u64;
        let g = Geometry::of_disk(sectors);
        assert_eq!(g.heads, heads, "{gib} GiB");
        assert!(g.cylinders <= 1024 && (g.cylinders == 1024 || sectors - g.total() < u64::from(g.heads * 63)));
    }
}

/// A first sector whose partitions have these first and last sectors, named by a geometry of so many heads and sectors.
fn table(parts: &[(u64, u64)], heads: u64, sectors: u64) -> Vec<u8> {
    let mut sector = vec![0; 512];
    for (entry, (first, last)) in sector[446..510].chunks_mut(16).zip(parts) {
        for (at, lba) in [(1, *first), (5, *last)] {
            let (cylinder, track) = (lba / (heads * sectors), lba % (heads * sectors));
            let place = if cylinder > 1023 {
                (1023, heads - 1, sectors)
            } else {
                (cylinder, track / sectors, track % sectors + 1)
            };
            entry[at] = place.1 as u8;
            entry[at + 1] = (place.2 | place.0 >> 2 & 0xc0) as u8;
            entry[at + 2] = place.0 as u8;
        }
        entry[4] = 0xa5;
        entry[8..12].copy_from_slice(&(*first as u32).to_le_bytes());
        entry[12..16].copy_from_slice(&((last - first + 1) as u32).to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[test]
fn a_partition_table_tells_the_geometry_that_it_was_made_with() {
    let of = |sector: &[u8], total| Geometry::of_table(sector, total).map(|g| (g.cylinders, g.heads, g.sectors));
    // A disk of 1000 MiB: 32 heads would be usual.
    let total = 2_048_000;
    assert_eq!(of(&table(&[(63, 1_028_159)], 255, 63), total), Some((127, 255, 63)));
    assert_eq!(of(&table(&[(32, 65_535), (65_536, 2_047_999)], 64, 32), total), Some((1000, 64, 32)));
    assert_eq!(of(&table(&[(2048, 1_000_000)], 255, 63), total), Some((127, 255, 63)), "not at a cylinder's end");
    assert_eq!(of(&table(&[(63, 2_047_999)], 16, 63), total), Some((1024, 16, 63)), "beyond what can be named");
    assert_eq!(of(&table(&[(63, 1_028_159)], 32, 63), total), Some((1015, 32, 63)), "as usual");
    // What does not tell: nothing, contradictions, FreeBSD's table of a disk without partitions, one cylinder only.
    assert_eq!(of(&vec![0; 512], total), None);
    assert_eq!(of(&table(&[], 255, 63), total), None);
    let mut wrong = table(&[(63, 1_028_159)], 255, 63);
    wrong[446 + 8] += 1;
    assert_eq!(of(&wrong, total), None);
    let mut dedicated = table(&[(0, 49_999)], 255, 63);
    dedicated[446 + 5..446 + 8].copy_from_slice(&[0xff; 3]);
    assert_eq!(of(&dedicated, total), None);
    assert_eq!(of(&table(&[(1, 40)], 16, 63), total), None);
}

#[test]
fn a_disk_from_another_machine_is_read_as_it_was_written() {
    let mut image = numbered(200_000, 512);
    image[..512].copy_from_slice(&table(&[(32, 199_679)], 64, 32));
    let mut rig = rig(vec![(DriveKind::Disk, image)], |_| {});
    let r = rig.call(0x13, Regs { eax: 0x0800, edx: 0x80, ..Regs::default() });
    assert_eq!((r.dh(), r.cl() & 0x3f, r.ch()), (63, 32, 96));
    let r = Regs { eax: 0x0201, ecx: 5 << 8 | 9, edx: 0x0380, es: 0x4000, ..Regs::default() };
    assert_eq!(rig.call(0x13, r).ah(), 0);
    assert_eq!(sector(&rig, 0x4_0000), (5 * 64 + 3) * 32 + 8);
}
