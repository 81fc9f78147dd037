//! The VNC server of a machine in its sandbox: viewers see what a screenshot shows, and what they type arrives.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use machine_tests::{Run, Scratch, bhyve_rs, guest, program, run, until};

/// A viewer of RFB 3.8 that understands plain pixels.
struct Viewer {
    stream: UnixStream,
    size: (usize, usize),
}

impl Viewer {
    fn connect(path: &str) -> Viewer {
        let stream = until("the VNC server's socket", || UnixStream::connect(path).ok());
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let mut viewer = Viewer { stream, size: (0, 0) };
        viewer.read(12);
        viewer.send(b"RFB 003.008\n");
        assert_eq!(viewer.read(2), [1, 1], "no password is asked for");
        viewer.send(&[1]);
        assert_eq!(viewer.read(4), [0; 4]);
        viewer.send(&[1]);
        let init = viewer.read(24);
        viewer.size = (two(&init[0..]), two(&init[2..]));
        viewer.read(two(&init[22..]));
        // Raw, and another size when the screen has one.
        viewer.send(&[2, 0, 0, 2, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x21]);
        viewer
    }

    fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).expect("the server goes on");
        bytes
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server hears");
    }

    fn key(&mut self, keysym: u16) {
        let [high, low] = keysym.to_be_bytes();
        [1, 0].into_iter().for_each(|down| self.send(&[4, down, 0, 0, 0, 0, high, low]));
    }

    /// The pointer is here, with these buttons down; where that is for a tablet.
    fn points(&mut self, at: [usize; 2], buttons: u8) -> [usize; 2] {
        let mut message = vec![5, buttons];
        message.extend(at.into_iter().flat_map(|n| (n as u16).to_be_bytes()));
        self.send(&message);
        [at[0] * 0x7fff / (self.size.0 - 1), at[1] * 0x7fff / (self.size.1 - 1)]
    }

    /// The whole screen: its size, and red, green and blue of each pixel.
    fn picture(&mut self) -> (usize, usize, Vec<u8>) {
        loop {
            let ((w, h), mut ask) = (self.size, vec![3, 0, 0, 0, 0, 0]);
            ask.extend([w as u16, h as u16].into_iter().flat_map(u16::to_be_bytes));
            self.send(&ask);
            let mut pixels = vec![0; 3 * w * h];
            let head = self.read(4);
            let mut resized = false;
            for _ in 0..two(&head[2..]) {
                let rect = self.read(12);
                let [x, y, width, height] = [0, 2, 4, 6].map(|at| two(&rect[at..]));
                if rect[8] != 0 {
                    (self.size, resized) = ((width, height), true);
                    continue;
                }
                let bytes = self.read(4 * width * height);
                for (n, pixel) in bytes.chunks(4).enumerate() {
                    let at = 3 * ((y + n / width) * w + x + n % width);
                    pixels[at..at + 3].copy_from_slice(&[pixel[2], pixel[1], pixel[0]]);
                }
            }
            if !resized {
                return (w, h, pixels);
            }
        }
    }
}

fn two(bytes: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn screenshot(dir: &Scratch, machine: &str) -> (usize, usize, Vec<u8>) {
    let path = dir.path("screen.png");
    let taken = run(&["--run-dir", &dir.path("run"), "screenshot", machine, "-o", &path], 60);
    assert_eq!(taken.status, 0, "{}", taken.stderr);
    let file = std::io::BufReader::new(std::fs::File::open(path).expect("the screenshot is there"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG file");
    let mut bytes = vec![0; reader.output_buffer_size().expect("its size is known")];
    let info = reader.next_frame(&mut bytes).expect("a whole picture");
    (info.width as usize, info.height as usize, bytes)
}

/// Waits for a text on the screen.
fn shows(dir: &Scratch, machine: &str, text: &str) {
    until(text, || {
        let shown = bhyve_rs(dir, &["screenshot", machine, "--text"]);
        shown.console.contains(text).then_some(())
    });
}

#[test]
fn a_viewer_sees_what_a_screenshot_shows_and_types() {
    let dir = Scratch::new("vnc-bios");
    let socket = dir.path("vnc");
    let toml = format!(
        "name = 'vnc-bios'\nmemory = '16M'\n[boot]\nmenu = '600s'\n[screen]\nbackend = 'vnc'\nvnc_socket = '{socket}'\n"
    );
    let toml = dir.write("machine.toml", &toml);
    let _machine = Run::start(&["-c", &toml, "--run-dir", &dir.path("run")], 120);
    let mut viewer = Viewer::connect(&socket);
    shows(&dir, "vnc-bios", "Press F12");
    assert!(viewer.picture() == screenshot(&dir, "vnc-bios"));
    viewer.key(0xffc9);
    shows(&dir, "vnc-bios", "Boot from:");
    assert!(viewer.picture() == screenshot(&dir, "vnc-bios"));
    let status = bhyve_rs(&dir, &["status", "vnc-bios"]);
    assert!(status.console.contains(&format!("vnc            {socket}")), "{}", status.console);
}

#[test]
fn a_machine_of_bhyves_command_line_waits_for_its_viewer() {
    let dir = Scratch::new("vnc-fbuf");
    let socket = dir.path("vnc");
    let mut command = Command::new(program());
    command.args(["bhyve", "-m", "16M", "-l", "bootrom,bios", "-o", "bhyve-rs.boot.menu=600s", "-s"]);
    command.arg(format!("29,fbuf,rfb=unix:{socket},w=800,h=600,wait")).arg("vnc-fbuf");
    command.env("BHYVE_RS_RUN_DIR", dir.path("run")).env("BHYVE_RS_VMM_DIR", dir.path("vmm")).stdin(Stdio::null());
    let _machine = Run::of(command, 120);
    let state = |state: &str| {
        until(state, || bhyve_rs(&dir, &["status", "vnc-fbuf"]).console.contains(state).then_some(()));
    };
    state("paused");
    let mut viewer = Viewer::connect(&socket);
    state("running");
    shows(&dir, "vnc-fbuf", "bhyve-rs BIOS");
    let seen = viewer.picture();
    assert_eq!((seen.0, seen.1), (720, 400), "the text mode of the VGA beside it");
    assert!(seen == screenshot(&dir, "vnc-fbuf"));
}

/// Points with Linux's tablet of this make and types at its keyboard, each time at another place.
fn points_and_types(m: &mut Run, viewer: &mut Viewer, make: &str, at: usize) {
    m.send("both\n");
    m.expect(&format!("INPUT {make} Tablet abs=32767"));
    let [x, y] = viewer.points([at, 2 * at], 0);
    m.expect(&format!("EV 3 0 {x}\r\nEV 3 1 {y}"));
    let [x, _] = viewer.points([at + 1, 2 * at], 1);
    m.expect(&format!("EV 1 272 1\r\nEV 3 0 {x}"));
    // The wheel up, once.
    viewer.points([at + 1, 2 * at], 9);
    m.expect("EV 2 8 1");
    viewer.points([at + 1, 2 * at], 0);
    m.expect("EV 1 272 0");
    m.expect(&format!("INPUT {make} Keyboard abs=0"));
    viewer.key(0x61);
    m.expect("EV 1 30 1\r\nEV 1 30 0");
    // Return.
    viewer.key(0xff0d);
    m.expect("EV 1 28 0");
    m.expect("guest# ");
}

/// A tablet and a keyboard under Linux, at work before and after their driver and the machine start anew.
struct Input {
    /// What their names begin with.
    make: &'static str,
    /// The section of the configuration.
    section: &'static str,
    modules: &'static str,
    /// The driver, and its devices there.
    driver: &'static str,
    devices: &'static str,
}

fn linux_points_and_types(input: &Input) {
    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let Input { make, section, modules, driver, devices } = input;
    let dir = Scratch::new(&format!("vnc-{section}"));
    let socket = dir.path("vnc");
    let words = ["--kernel", &kernel, "--initrd", &initrd, "--args", "console=ttyS0 end=shell", "--stay"];
    let settings = [
        format!("screen.vnc_socket={socket}"),
        format!("{section}.0.device=tablet"),
        format!("{section}.1.device=keyboard"),
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["-o", setting]).collect();
    let mut m = Run::start(&[&words[..], &settings].concat(), 400);
    let mut viewer = Viewer::connect(&socket);
    let ready = format!(
        "cd /sys/bus/{driver}; w() {{ until grep -q \"{make} $1\" /proc/bus/input/devices; do usleep 99999; done; }}; \
         both() {{ w Tablet; w Keyb; input '{make} Tablet' 272; input '{make} Keyboard' 28; }}\n"
    );
    for start in 0..2 {
        m.expect("guest# ");
        m.send(&format!("for m in evdev {modules}; do modprobe $m; done\n"));
        m.expect("guest# ");
        m.send(&ready);
        m.expect("guest# ");
        points_and_types(&mut m, &mut viewer, make, 50 + start);
        if start == 0 {
            m.send(&format!(
                "all=$(ls -d {devices}); for d in $all; do echo $d >unbind; done; grep -c '{make} ' \
                 /proc/bus/input/devices; for d in $all; do echo $d >bind; done\n"
            ));
            m.expect("\n0\r");
            m.expect("guest# ");
            points_and_types(&mut m, &mut viewer, make, 60);
            m.send("reboot -f\n");
        }
    }
    m.send("dmesg | grep -i '\\(xhci\\|virtio\\).*\\(error\\|warn\\|halt\\|timeout\\)' | wc -l; poweroff -f\n");
    m.expect("\n0\r");
    assert_eq!(m.wait().status, 1);
}

#[test]
fn linux_has_a_tablet_and_a_keyboard_at_xhci_before_and_after_its_driver_and_the_machine_start_anew() {
    let (modules, driver, devices) = ("xhci-pci usbhid hid-generic", "pci/drivers/xhci_hcd", "0000:*");
    linux_points_and_types(&Input { make: "HID", section: "usb", modules, driver, devices });
}

#[test]
fn linux_has_a_virtio_tablet_and_keyboard_before_and_after_their_driver_and_the_machine_start_anew() {
    let (modules, driver, devices) = ("virtio_pci virtio_input", "virtio/drivers/virtio_input", "virtio*");
    linux_points_and_types(&Input { make: "virtio", section: "input", modules, driver, devices });
}
