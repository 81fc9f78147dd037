//! What is booted, as a user sees and changes it: the boot menu, the order, media that come and go.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine_tests::{Scratch, bhyve_rs, guest, until};

/// A boot sector that says what it is and from which drive it came, and then does what keys say: `c` asks for the
/// drive's change line, `d` reads its first sector, `n` gives up, `r` resets.
fn boot_sector(name: u8) -> Vec<u8> {
    build(name).expect("the boot sector's code")
}

/// Where the name is in the sector, and where `d` reads to.
const NAME: usize = 0x1f0;
const BUFFER: u32 = 0x8000;

fn build(name: u8) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    let [mut next, mut put, mut hex, mut digit, mut line, mut result] = std::array::from_fn(|_| a.create_label());
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    // The drive's number stays in BP.
    a.mov(bp, dx)?;
    for byte in b"\r\nI am " {
        a.mov(al, u32::from(*byte))?;
        a.call(put)?;
    }
    a.mov(al, byte_ptr(0x7c00 + NAME as u32))?;
    a.call(put)?;
    a.mov(ax, bp)?;
    a.call(hex)?;
    a.set_label(&mut next)?;
    a.mov(ah, 0u32)?;
    a.int(0x16u32)?;
    for (key, interrupt, function) in [(b'c', 0x13u32, 0x1600u32), (b'd', 0x13, 0x0201), (b'n', 0x18, 0)] {
        let mut other = a.create_label();
        a.cmp(al, u32::from(key))?;
        a.jne(other)?;
        a.mov(ax, function)?;
        a.mov(bx, BUFFER)?;
        a.mov(cx, 1u32)?;
        a.mov(dx, bp)?;
        a.mov(dh, 0u32)?;
        a.mov(byte_ptr(BUFFER + NAME as u32), u32::from(b'?'))?;
        a.int(interrupt)?;
        a.mov(al, ah)?;
        a.push(ax)?;
        a.mov(al, u32::from(key))?;
        a.jmp(result)?;
        a.set_label(&mut other)?;
    }
    a.cmp(al, u32::from(b'r'))?;
    a.jne(next)?;
    a.mov(al, 0xfeu32)?;
    a.out(0x64u32, al)?;
    a.hlt()?;
    // The key, the status, the name that was read.
    a.set_label(&mut result)?;
    a.call(line)?;
    a.call(put)?;
    a.pop(ax)?;
    a.call(hex)?;
    a.mov(al, byte_ptr(BUFFER + NAME as u32))?;
    a.call(put)?;
    a.jmp(next)?;
    a.set_label(&mut line)?;
    a.push(ax)?;
    a.mov(al, 13u32)?;
    a.call(put)?;
    a.mov(al, 10u32)?;
    a.call(put)?;
    a.pop(ax)?;
    a.ret()?;
    // A blank and AL's digits.
    a.set_label(&mut hex)?;
    a.push(ax)?;
    a.mov(al, u32::from(b' '))?;
    a.call(put)?;
    a.pop(ax)?;
    a.push(ax)?;
    a.shr(al, 4u32)?;
    a.call(digit)?;
    a.pop(ax)?;
    a.and(al, 15)?;
    a.set_label(&mut digit)?;
    a.add(al, u32::from(b'0'))?;
    a.cmp(al, u32::from(b'9'))?;
    a.jbe(put)?;
    a.add(al, 7)?;
    a.set_label(&mut put)?;
    a.mov(ah, 0x0eu32)?;
    a.mov(bx, 7u32)?;
    a.int(0x10u32)?;
    a.ret()?;
    let mut sector = a.assemble(0x7c00)?;
    assert!(sector.len() < NAME);
    sector.resize(512, 0);
    sector[NAME] = name;
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(sector)
}

/// A machine in the background with a screen.
struct Machine(Scratch);

impl Machine {
    /// With two disks, A and B, and a floppy F; `more` is of its `boot` section.
    fn start(name: &str, more: &str) -> Machine {
        let dir = Scratch::new(name);
        let image = |file: &str, name: u8, len: usize| {
            let mut image = boot_sector(name);
            image.resize(len, 0);
            std::fs::write(dir.path(file), image).expect("an image");
        };
        image("a.img", b'A', 4 << 20);
        image("b.img", b'B', 4 << 20);
        image("f.img", b'F', 1440 << 10);
        image("g.img", b'G', 720 << 10);
        let drives = "[[disk]]\npath = 'a.img'\n[[disk]]\npath = 'b.img'\n[[floppy]]\npath = 'f.img'\n";
        Machine::of(dir, &format!("[boot]\n{more}\n{drives}"))
    }

    fn of(dir: Scratch, text: &str) -> Machine {
        let toml = dir.write("boots.toml", &format!("name = 'boots'\nmemory = '32M'\n{text}"));
        let started = bhyve_rs(&dir, &["start", "-c", &toml]);
        assert_eq!((started.status, started.stderr.as_str()), (0, ""));
        Machine(dir)
    }

    fn does(&self, words: &[&str]) {
        let ended = bhyve_rs(&self.0, &[&words[..1], &["boots"], &words[1..]].concat());
        assert_eq!(ended.status, 0, "{words:?}: {}", ended.stderr);
    }

    /// Types, and waits until a line of the screen has a text. Gives the screen.
    fn shows(&self, keys: &str, text: &str) -> String {
        if !keys.is_empty() {
            self.does(&["sendkeys", keys]);
        }
        until(text, || {
            let screen = bhyve_rs(&self.0, &["screenshot", "boots", "--text"]);
            screen.console.contains(text).then_some(screen.console)
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        bhyve_rs(&self.0, &["kill", "boots"]);
    }
}

#[test]
fn f12_opens_a_menu_of_the_drives_and_what_is_chosen_boots() {
    let machine = Machine::start("menu", "menu = '60s'\norder = ['disk', 'net']");
    machine.shows("", "Press F12 for the boot menu");
    let menu = machine.shows("<f12>", "Esc  the usual order");
    for line in ["1  disk, IDE primary master", "2  disk, IDE primary slave", "3  network", "4  floppy drive A"] {
        assert!(menu.contains(line), "{line}: {menu}");
    }
    // Chosen although it is not in the order, which goes on when it gives up, and ends with the reasons.
    machine.shows("4", "I am F 00");
    machine.shows("n", "I am A 80");
    machine.shows("n", "I am B 81");
    let reasons = machine.shows("n", "Press a key to try again");
    for line in [
        "IDE primary slave: its boot loader gave up",
        "floppy drive A: its boot loader gave up",
        "network: no network card",
    ] {
        assert!(reasons.contains(line), "{line}: {reasons}");
    }
}

#[test]
fn what_is_booted_once_is_not_booted_after_a_reset() {
    let machine = Machine::start("once", "once = 'floppy'\norder = ['net', 'disk']");
    machine.shows("", "I am F 00");
    let screen = machine.shows("r", "I am A 80");
    assert!(!screen.contains("I am F"), "{screen}");
}

#[test]
fn a_floppy_that_is_changed_is_told_of_and_read() {
    let machine = Machine::start("change", "order = ['floppy']");
    machine.shows("", "I am F 00");
    machine.shows("c", "c 00");
    machine.shows("d", "d 00F");
    machine.does(&["eject", "-d", "floppy0"]);
    machine.shows("c", "c 06");
    machine.shows("d", "d 80?");
    machine.does(&["insert", "-d", "floppy0", "-i", &machine.0.path("g.img")]);
    machine.shows("dd", "d 06?");
    machine.shows("", "d 00G");
    let screen = machine.shows("c", "c 00");
    assert!(screen.lines().map(str::trim).filter(|l| l.starts_with("c 00")).count() <= 2, "{screen}");
}

#[test]
fn a_machine_that_boots_from_the_network_alone_says_why_not() {
    let machine = Machine::start("net", "order = ['net']");
    let screen = machine.shows("", "Press a key to try again");
    assert!(screen.contains("network: no network card has a boot ROM"), "{screen}");
}

#[test]
fn ipxe_has_a_shell_and_finds_a_network_card() {
    let Some(disc) = guest("media/ipxe.iso") else { return };
    let text =
        format!("[boot]\norder = ['cd']\n[[cd]]\npath = '{disc}'\n[[nic]]\nmodel = 'virtio-net'\nbackend = 'none'");
    let machine = Machine::of(Scratch::new("ipxe"), &text);
    machine.shows("", "iPXE initialising devices");
    // Its prompt stands for two seconds; keys that come before it are kept.
    machine.shows("<ctrl-b>", "iPXE>");
    machine.shows("ifstat<enter>", "using virtio-net on 0000:00:03.0");
    machine.shows("config<enter>", "iPXE configuration settings");
}
