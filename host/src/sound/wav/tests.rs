use std::fs;
use std::path::PathBuf;

use emu::backend::{Capture, Frame, Playback};

use super::{BATCH, WavCapture, WavPlayback};

fn place(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("bhyve-rs-wav-{name}-{}", std::process::id()))
}

fn size(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

fn sound(from: usize, frames: usize) -> Vec<Frame> {
    (from..from + frames).map(|n| [n as i16, -(n as i16)]).collect()
}

fn bytes(frames: &[Frame]) -> Vec<u8> {
    frames.as_flattened().iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

fn capture(content: &[u8], name: &str) -> std::io::Result<WavCapture> {
    let path = place(name);
    fs::write(&path, content).unwrap();
    let wav = WavCapture::new(fs::File::open(&path).unwrap(), name.to_owned());
    fs::remove_file(&path).unwrap();
    wav
}

#[test]
fn a_file_is_whole_at_any_time_and_plays_back_what_was_played() {
    let path = place("whole");
    let mut wav = WavPlayback::new(fs::File::create(&path).unwrap(), "a file".to_owned());
    wav.write(&sound(0, 3));
    wav.open(44100);
    let mut played = Vec::new();
    let mut batches = 0;
    for n in 0..100 {
        wav.write(&sound(100 * n, 100));
        played.extend(sound(100 * n, 100));
        let now = fs::read(&path).unwrap();
        if now.is_empty() {
            continue;
        }
        batches += 1;
        assert_eq!((size(&now, 4), size(&now, 40)), (now.len() - 8, now.len() - 44));
        assert_eq!(now[20..36], [1, 0, 2, 0, 0x44, 0xac, 0, 0, 0x10, 0xb1, 2, 0, 4, 0, 16, 0]);
        assert!(bytes(&played).starts_with(&now[44..]) && bytes(&played).len() < now.len() + BATCH);
    }
    assert!(batches > 0);
    wav.close();
    assert_eq!(fs::read(&path).unwrap()[44..], bytes(&played));
    // Another rate, and no stream.
    wav.open(48000);
    wav.write(&sound(7, 40));
    wav.close();
    wav.write(&sound(7, 40));
    assert_eq!(fs::read(&path).unwrap()[44..], bytes(&played));
    // It goes on where it was, and whoever lets it go has it whole.
    wav.open(44100);
    wav.write(&sound(5, 1));
    drop(wav);
    played.extend(sound(5, 1));
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(whole[44..], bytes(&played));

    // What was played can be recorded, with silence behind it.
    let mut wav = capture(&whole, "again").unwrap();
    let mut heard = vec![[1; 2]; 40];
    wav.open(48000);
    wav.read(&mut heard);
    assert_eq!(heard, [[0; 2]; 40]);
    wav.close();
    wav.open(44100);
    let mut heard = vec![[1; 2]; played.len() + 40];
    wav.read(&mut heard);
    assert_eq!(heard[..played.len()], played);
    assert_eq!(heard[played.len()..], [[0; 2]; 40]);
    // Cut anywhere in its header it is refused.
    for n in 0..44 {
        assert!(capture(&whole[..n], "cut").is_err(), "{n} bytes");
    }
    assert!(capture(&whole[..45], "cut").is_ok());
}

/// A file of this kind, channels and bits, with these samples.
fn file(kind: u16, channels: u16, bits: u16, samples: &[u8]) -> Vec<u8> {
    let frame = channels * bits / 8;
    let mut bytes = b"RIFF\0\0\0\0WAVEodd \x03\0\0\0abc\0fmt \x28\0\0\0".to_vec();
    bytes.extend([kind, channels, 8000, 0, 0, 0, frame, bits, 22, bits, 3, 0].into_iter().flat_map(u16::to_le_bytes));
    // The subformat: PCM.
    bytes.extend([1, 0, 0, 0, 0, 0, 16, 0, 128, 0, 0, 170, 0, 56, 155, 113]);
    bytes.extend(b"data");
    bytes.extend((samples.len() as u32).to_le_bytes());
    bytes.extend(samples);
    bytes
}

#[test]
fn samples_of_any_size_are_recorded_and_what_is_none_is_refused() {
    for (channels, bits, samples, first) in [
        (1, 8, &[0x80, 0xff][..], [[0, 0], [0x7f00, 0x7f00]]),
        (2, 16, &[1, 0, 2, 0, 3, 0, 0, 0x80], [[1, 2], [3, -0x8000]]),
        (1, 24, &[9, 1, 0, 9, 2, 0], [[1, 1], [2, 2]]),
        (3, 32, &[9, 9, 1, 0, 9, 9, 2, 0, 9, 9, 3, 0], [[1, 2], [0, 0]]),
    ] {
        for kind in [1, 0xfffe] {
            let mut wav = capture(&file(kind, channels, bits, samples), "kinds").unwrap();
            let mut heard = [[5; 2]; 2];
            wav.open(8000);
            wav.read(&mut heard);
            assert_eq!(heard, first, "{channels} of {bits} bits");
        }
    }
    // Floating point, no channels, bits that are none.
    for (kind, channels, bits) in [(3, 2, 32), (1, 0, 16), (1, 2, 12), (1, 17, 16)] {
        assert!(capture(&file(kind, channels, bits, &[0; 64]), "bad").is_err(), "{kind} {channels} {bits}");
    }
}
