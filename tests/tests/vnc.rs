//! The VNC server of a machine in its sandbox: viewers see what a screenshot shows, and what they type arrives.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use machine_tests::{Run, Scratch, bhyve_rs, program, run, until};

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
