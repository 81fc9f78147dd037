//! Display adapters under other people's drivers: what they draw is what a screenshot shows.

use std::time::{Duration, Instant};

use machine_tests::{Run, Scratch, boot_words, guest, run};

/// A picture: width, height, and red, green and blue of each pixel.
struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    /// Takes a screenshot.
    fn take(dir: &Scratch, machine: &str) -> Picture {
        let path = dir.path("screen.png");
        let taken = run(&["--run-dir", &dir.path("run"), "screenshot", machine, "-o", &path], 60);
        assert_eq!(taken.status, 0, "{}", taken.stderr);
        let file = std::io::BufReader::new(std::fs::File::open(path).expect("the screenshot is there"));
        let mut reader = png::Decoder::new(file).read_info().expect("a PNG file");
        assert_eq!(reader.output_color_type(), (png::ColorType::Rgb, png::BitDepth::Eight));
        let mut bytes = vec![0; reader.output_buffer_size().expect("its size is known")];
        let info = reader.next_frame(&mut bytes).expect("a whole picture");
        let pixels = bytes.as_chunks().0.to_vec();
        Picture { width: info.width as usize, height: info.height as usize, pixels }
    }

    /// The colours of a line, each once, in the order of their first pixels.
    fn colours(&self, line: usize) -> Vec<[u8; 3]> {
        let mut seen = Vec::new();
        for pixel in &self.pixels[line * self.width..][..self.width] {
            if !seen.contains(pixel) {
                seen.push(*pixel);
            }
        }
        seen
    }
}

#[test]
fn linux_draws_with_its_driver_for_the_bochs_extension() {
    let dir = Scratch::new("screen-bochs");
    let Some(mut words) = boot_words("amd64", "test=screen end=shell") else { return };
    words.extend(["--run-dir", &dir.path("run"), "-o", "name=screen-bochs"].map(str::to_owned));
    let mut machine = Run::start(&words, 120);
    machine.expect("RESULT screen");
    machine.expect("RESULT init");
    let picture = Picture::take(&dir, "screen-bochs");
    let said = machine.text();
    let said = said.lines().find(|l| l.starts_with("RESULT screen ")).expect("it was waited for");
    assert!(said.starts_with("RESULT screen pass"), "{said}");
    assert!(said.contains("name=bochs-drmdrmfb size=1024,768 bpp=32 lines=48 128"), "{said}");
    assert_eq!((picture.width, picture.height), (1024, 768));
    for line in 0..16 {
        assert_eq!(picture.colours(line), [[2, 1, 255]], "line {line}");
    }
    // The guest drew the stripe of colour n in its line 41 + n, counted from 1, and then scrolled by ten lines.
    let blue = [0, 0, 0xaa];
    let stripes =
        [[0xaa, 0, 0], [0, 0xaa, 0], [0xaa, 0x55, 0], blue, [0xaa, 0, 0xaa], [0, 0xaa, 0xaa], [0xaa; 3], blue];
    for (n, colour) in (1..).zip(stripes) {
        assert_eq!(picture.colours((41 + n - 1 - 10) * 16 + 8), [colour], "stripe {n}");
    }
}

#[test]
fn grub_draws_the_same_with_each_of_its_drivers() {
    let Some(disc) = guest("media/grub-video.iso") else { return };
    let dir = Scratch::new("screen-grub");
    let toml = format!("name = 'grub'\nmemory = '64M'\n[boot]\norder = ['cd']\n[[cd]]\npath = '{disc}'\n");
    let toml = dir.write("grub.toml", &toml);
    let pictures = ["", "<down>", "<down><down>"].map(|keys| {
        let script = dir.write("script.toml", &format!("[[step]]\nshown = 'bochs'\nkeys = '{keys}<enter>'\n"));
        let _machine = Run::start(&["-c", &toml, "--script", &script, "--run-dir", &dir.path("run")], 120);
        let end = Instant::now() + Duration::from_secs(100);
        // Both lines of text come at once, when GRUB goes to sleep.
        loop {
            assert!(Instant::now() < end, "no picture came");
            let text = run(&["--run-dir", &dir.path("run"), "screenshot", "grub", "--text"], 60);
            if text.stderr.contains("the screen shows graphics") {
                let picture = Picture::take(&dir, "grub");
                // The second line is green.
                if picture.pixels.iter().filter(|p| p[0] < 0x80 && p[1] > 0xf0).count() > 300 {
                    break picture;
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let [planes, vbe, bochs] = &pictures;
    assert_eq!((planes.width, planes.height), (640, 480));
    assert!(vbe.pixels == bochs.pixels);
    // Its palette has the colours themselves, its blending comes close.
    let near = |(a, b): (&[u8; 3], &[u8; 3])| a.iter().zip(b).all(|(a, b)| a.abs_diff(*b) < 4);
    let far = planes.pixels.iter().zip(&vbe.pixels).enumerate().find(|(_, pair)| !near(*pair));
    assert_eq!(far, None, "a pixel and what it is by planes and by VBE");
}

#[test]
#[ignore = "part of tests/matrix"]
fn linux_goes_on_in_the_mode_that_its_boot_code_had_from_the_bios() {
    let Some(disc) = guest("media/isolinux.iso") else { return };
    let dir = Scratch::new("screen-vesa");
    let toml = format!(
        "name = 'vesa'\nmemory = '256M'\n[boot]\norder = ['cd']\n[[cd]]\npath = '{disc}'\n[[serial]]\nbackend = 'stdio'\n"
    );
    let toml = dir.write("vesa.toml", &toml);
    let script = "[[step]]\nshown = 'boot:'\nkeys = 'linux vga=791 end=shell<enter>'\n\
        [[step]]\nseen = 'guest# '\nsend = \"printf '\\\\033[41m\\\\033[2J' >/dev/tty1; cat /proc/fb; echo rea''dy\\n\"\n";
    let script = dir.write("script.toml", script);
    let mut machine = Run::start(&["-c", &toml, "--script", &script, "--run-dir", &dir.path("run")], 200);
    machine.expect("0 VESA VGA");
    machine.expect("ready");
    let picture = Picture::take(&dir, "vesa");
    assert_eq!((picture.width, picture.height), (1024, 768));
    assert_eq!(picture.colours(400), [[0xad, 0, 0]]);
}
