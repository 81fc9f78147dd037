//! What is on a machine's screen, as others can show it.

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

/// A picture of the screen, as PNG.
///
/// # Errors
/// When there is nothing on the screen.
pub fn png(screen: Option<&Arc<DeviceCell>>) -> Result<Vec<u8>, String> {
    let picture = look(screen, |display| display.picture())?;
    if picture.pixels.is_empty() {
        return Err("the guest has not set up its screen yet".to_owned());
    }
    encode(&picture).map_err(|e| e.to_string())
}

fn encode(picture: &Picture) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, picture.width as u32, picture.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let bytes: Vec<u8> = picture.pixels.iter().flat_map(|p| [(p >> 16) as u8, (p >> 8) as u8, *p as u8]).collect();
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&bytes)?;
    writer.finish()?;
    Ok(file)
}
