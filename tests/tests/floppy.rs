//! The floppy controller and its drives under Linux's driver. What the guest says it wrote, the host looks for.

use machine_tests::{Ended, Scratch, boot, stream};

/// Boots Linux with drives that hold blank media of these sizes in KiB, and gives the images as they were left.
fn floppies(name: &str, sizes: &[usize], settings: &[&str], args: &str) -> Option<(Ended, Vec<Vec<u8>>)> {
    let dir = Scratch::new(name);
    let image = |n: usize| dir.path(&format!("{n}.img"));
    let mut all: Vec<String> = settings.iter().map(ToString::to_string).collect();
    for (n, kib) in sizes.iter().enumerate() {
        std::fs::write(image(n), vec![0x5a; kib << 10]).expect("a scratch file");
        all.push(format!("floppy.{n}.path={}", image(n)));
    }
    let args = format!("test=floppy,dmesg floppy.drives={} {args} end=poweroff", sizes.len());
    let ended = boot("amd64", &all, &args, 600)?;
    assert_eq!(ended.failures(), Vec::<&str>::new(), "{}", ended.console);
    let images = (0..sizes.len()).map(|n| std::fs::read(image(n)).expect("the image")).collect();
    Some((ended, images))
}

#[test]
fn two_drives_are_filled_at_once_and_twice_in_the_same_way() {
    let run = || floppies("floppy-twice", &[720, 360], &["floppy.1.model=1.2M"], "");
    let (Some((first, images)), Some((second, again))) = (run(), run()) else { return };
    let found = first.result("floppy").1;
    assert!(found.contains("chip=52 drive=D720 medium=80x2x9 rate=2"), "an 82077AA: {found}");
    assert!(found.contains("drive=h1200 medium=40x2x9 rate=1"), "with double steps: {found}");
    assert!(images[0] == stream(720 << 10) && images[1] == stream(360 << 10), "not what the guest wrote");
    assert_eq!(first.instructions(), second.instructions());
    assert_eq!(first.console, second.console);
    assert!(images == again, "the images differ");
}

#[test]
fn a_high_density_disk_is_formatted_and_filled_beside_one_that_is_protected() {
    let settings = ["board=440bx", "floppy.0.readonly=true", "floppy.1.model=2.88M"];
    let Some((_, images)) = floppies("floppy-format", &[1680, 1440], &settings, "floppy.format=1 floppy.write=0")
    else {
        return;
    };
    assert!(images[0].iter().all(|b| *b == 0x5a), "it is write-protected");
    assert!(images[1].iter().all(|b| *b == 0xf6), "it was formatted");
}
