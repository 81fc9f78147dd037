//! What is on a machine's screen, in a file.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use emu::{DeviceCell, Display, Picture};

/// Asks the adapter.
fn look<T>(screen: Option<&Arc<DeviceCell>>, f: impl FnOnce(&dyn Display) -> T) -> Result<T, String> {
    let cell = screen.ok_or("the machine has no display adapter")?;
    cell.with(|device| device.display().map(|display| f(display)))
        .flatten()
        .ok_or_else(|| "it has no screen".to_owned())
}

/// The characters on the screen.
///
/// # Errors
/// When there are none.
pub fn text(screen: Option<&Arc<DeviceCell>>) -> Result<String, String> {
    let text = look(screen, |display| display.text())?;
    Ok(host::screen::plain(&text.ok_or("the screen shows graphics: take a picture")?))
}

/// Writes a picture of the screen as PNG.
///
/// # Errors
/// When there is nothing on the screen, or what the host says of the file.
pub fn png(screen: Option<&Arc<DeviceCell>>, path: &Path) -> Result<(), String> {
    let picture = look(screen, |display| display.picture())?;
    if picture.pixels.is_empty() {
        return Err("the guest has not set up its screen yet".to_owned());
    }
    write(&picture, path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(picture: &Picture, path: &Path) -> Result<(), png::EncodingError> {
    let mut encoder =
        png::Encoder::new(BufWriter::new(File::create(path)?), picture.width as u32, picture.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let bytes: Vec<u8> = picture.pixels.iter().flat_map(|p| [(p >> 16) as u8, (p >> 8) as u8, *p as u8]).collect();
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&bytes)?;
    writer.finish()
}
