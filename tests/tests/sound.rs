//! bhyve's sound card under Linux's snd-hda-intel: what a guest plays is in a WAV file, and a WAV file is what it records.

use machine_tests::{Run, Scratch, guest};

/// Frames a second, of a wave, and of what is played and recorded each time.
const RATE: u32 = 48000;
const PERIOD: i32 = 100;
const PLAYED: usize = 48000;
const RECORDED: usize = 24000;
/// Frames that the file has to be recorded.
const TAPE: u32 = 40 * RATE;

/// As `sound` of tests/guests/src makes it.
fn triangle(at: i32) -> i16 {
    let (quarter, at) = (PERIOD / 4, at % PERIOD);
    let step = match at {
        at if at <= quarter => at,
        at if at <= 3 * quarter => 2 * quarter - at,
        at => at - PERIOD,
    };
    (step * (30000 / quarter)) as i16
}

fn wav(samples: &[u8]) -> Vec<u8> {
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((samples.len() as u32 + 36).to_le_bytes());
    bytes.extend(b"WAVEfmt \x10\0\0\0\x01\0\x02\0");
    bytes.extend([RATE, RATE * 4].into_iter().flat_map(u32::to_le_bytes));
    bytes.extend(b"\x04\0\x10\0data");
    bytes.extend((samples.len() as u32).to_le_bytes());
    bytes.extend(samples);
    bytes
}

/// Plays and records once; the number that was heard first.
fn plays_and_records(m: &mut Run) -> u32 {
    m.send("until [ -e /dev/dsp ]; do usleep 99999; done; sound mixer 100\n");
    m.expect("guest# ");
    m.send(&format!("sound play {RATE} {PERIOD} {PLAYED}\n"));
    m.expect(&format!("DSP rate={RATE} channels=2 format=16"));
    m.expect(&format!("PLAYED {PLAYED}\r"));
    m.expect("guest# ");
    let before = m.text().len();
    m.send(&format!("sound record {RATE} {RECORDED}\n"));
    m.expect(" breaks=0\r");
    m.expect("guest# ");
    let text = m.text()[before..].to_owned();
    let first = text.split("HEARD first=").nth(1).and_then(|rest| rest.split(' ').next()).expect("a number");
    first.parse().expect("a number")
}

#[test]
fn linux_plays_and_records_by_hda_before_and_after_its_driver_and_the_machine_start_anew() {
    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let dir = Scratch::new("sound");
    let tape: Vec<u8> = (0..TAPE).flat_map(|n| (n & 0x7fff | n >> 15 << 16).to_le_bytes()).collect();
    std::fs::write(dir.path("tape.wav"), wav(&tape)).unwrap();
    let [play, rec] = [("play", "heard"), ("rec", "tape")].map(|(key, file)| {
        let file = dir.path(&format!("{file}.wav"));
        format!("sound.0.{key}={file}")
    });
    let words = ["--kernel", &kernel, "--initrd", &initrd, "--args", "console=ttyS0 end=shell", "--stay"];
    let settings = ["-o", "clock=instructions", "-o", "backend=soft", "-o", &play, "-o", &rec];
    let mut m = Run::start(&[&words[..], &settings].concat(), 500);
    let mut firsts = Vec::new();
    // By message, and after the reset by pin.
    for msi in ["", " enable_msi=0"] {
        m.expect("guest# ");
        m.send(&format!("for m in 'snd-hda-intel{msi}' snd-hda-codec-generic snd-pcm-oss; do modprobe $m; done\n"));
        m.expect("guest# ");
        firsts.push(plays_and_records(&mut m));
        if msi.is_empty() {
            m.send("cd /sys/bus/pci/drivers/snd_hda_intel; d=$(ls -d 0000:*); echo $d >unbind; ls /dev/snd | grep -c pcm\n");
            m.expect("\n0\r");
            m.send("echo $d >bind; cd /\n");
            firsts.push(plays_and_records(&mut m));
            m.send("reboot -f\n");
        }
    }
    // What is muted is silent.
    m.send(&format!("sound mixer 0; sound play {RATE} {PERIOD} {PLAYED}\n"));
    m.expect(&format!("PLAYED {PLAYED}\r"));
    m.expect("guest# ");
    m.send("dmesg | grep -i 'snd\\|hda' | grep -ic 'error\\|timeout\\|fail\\|unable\\|spurious\\|no response'; poweroff -f\n");
    m.expect("\n0\r");
    let ended = m.wait();
    assert_eq!(ended.status, 1, "{}", ended.stderr);

    // The first recording is the beginning, each of the others goes on behind what came before.
    assert_eq!(firsts[0], 0);
    assert!(firsts.windows(2).all(|pair| pair[0] + RECORDED as u32 <= pair[1] && pair[1] < TAPE), "{firsts:?}");
    let heard = std::fs::read(dir.path("heard.wav")).unwrap();
    let (header, samples) = heard.split_at(44);
    assert_eq!(header, &wav(samples)[..44]);
    let frames: Vec<[i16; 2]> =
        samples.chunks_exact(4).map(|b| [[b[0], b[1]], [b[2], b[3]]].map(i16::from_le_bytes)).collect();
    let tone: Vec<[i16; 2]> = (0..PLAYED as i32).map(|at| [triangle(at); 2]).collect();
    let (mut rest, mut tones) = (&frames[..], 0);
    while let Some(begin) = rest.iter().position(|frame| *frame != [0; 2]) {
        // It begins with a zero.
        let (now, behind) = rest[begin - 1..].split_at(PLAYED);
        let crossings = now.windows(2).filter(|pair| (pair[0][0] < 0) != (pair[1][0] < 0)).count();
        println!(
            "a tone of {} Hz at {} s",
            crossings.div_ceil(2),
            (frames.len() - rest.len() + begin - 1) as f64 / f64::from(RATE)
        );
        assert!(crossings.abs_diff(2 * PLAYED / PERIOD as usize) <= 1, "{crossings} changes of sign");
        let wrong = now.iter().zip(&tone).position(|(heard, played)| heard != played);
        assert_eq!(wrong, None, "another sound than was played");
        (rest, tones) = (behind, tones + 1);
    }
    assert_eq!(tones, 3);
    assert!(rest.len() >= PLAYED, "{} frames of silence at the end", rest.len());
}
