//! Pictures: what they become, and what is refused of them. That resizing is PIL's is shown over sockets, with its numbers.

use super::*;
use crate::builtin::testing::near;

fn settings() -> Settings {
    Settings {
        width: 2,
        height: 1,
        layout: Layout::Nchw,
        bgr: false,
        scale: 1.0,
        mean: [0.0; 3],
        std: [1.0; 3],
        max_pixels: 64,
        max_images: 2,
    }
}

/// A PNG file of these bytes.
fn file(width: u32, height: u32, color: png::ColorType, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(color);
    encoder.write_header().unwrap().write_image_data(data).unwrap();
    out
}

fn run(settings: Settings, files: &[&[u8]]) -> Result<Tensor, Error> {
    let input = Tensor::strings([files.len()].into(), files).unwrap();
    Image(settings).run(&[input]).map(|outputs| outputs[0].clone())
}

fn two() -> Vec<u8> {
    file(2, 1, png::ColorType::Rgb, &[1, 2, 3, 4, 5, 6])
}

#[test]
fn channels_stand_where_they_are_wanted() {
    let planes = run(settings(), &[&two()]).unwrap();
    assert_eq!(planes.shape().dims(), [1, 3, 1, 2]);
    near(&planes, &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    let together = run(Settings { layout: Layout::Nhwc, bgr: true, ..settings() }, &[&two()]).unwrap();
    assert_eq!(together.shape().dims(), [1, 1, 2, 3]);
    near(&together, &[3.0, 2.0, 1.0, 6.0, 5.0, 4.0]);
}

#[test]
fn values_are_scaled_and_each_channel_has_its_mean_and_deviation() {
    let scaled = Settings { scale: 2.0, mean: [1.0, 0.0, 0.0], std: [0.5, 1.0, 2.0], ..settings() };
    near(&run(scaled, &[&two()]).unwrap(), &[2.0, 14.0, 4.0, 10.0, 3.0, 6.0]);
}

#[test]
fn grey_becomes_three_channels_and_transparency_is_dropped() {
    let grey = file(2, 1, png::ColorType::Grayscale, &[7, 9]);
    let clear = file(2, 1, png::ColorType::Rgba, &[1, 2, 3, 0, 4, 5, 6, 0]);
    let both = run(settings(), &[&grey, &clear]).unwrap();
    near(&both, &[7.0, 9.0, 7.0, 9.0, 7.0, 9.0, 1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
}

#[test]
fn a_mean_of_all_pixels_is_taken_where_they_become_fewer() {
    let wide = file(4, 1, png::ColorType::Grayscale, &[0, 0, 200, 200]);
    let small = run(Settings { width: 1, ..settings() }, &[&wide]).unwrap();
    near(&small, &[100.0; 3]);
}

#[test]
fn what_is_too_large_is_refused_before_it_is_decoded() {
    // The head says 65,000 x 65,000 and there is nothing behind it.
    let mut bomb = file(1, 1, png::ColorType::Rgb, &[0; 3]);
    bomb[16..24].copy_from_slice(&[0, 0, 0xFD, 0xE8, 0, 0, 0xFD, 0xE8]);
    let crc = crc(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    let error = run(settings(), &[&two(), &bomb]).unwrap_err().to_string();
    assert!(error.contains("has 65000 x 65000 pixels, expected 1 to 64 in row 1"), "{error}");
    let error = run(settings(), &[&two(), &two(), &two()]).unwrap_err().to_string();
    assert!(error.contains("has 3 pictures, expected at most 2"), "{error}");
}

/// The checksum of a chunk of PNG, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 * (crc & 1)))
    })
}

#[test]
fn what_is_no_picture_or_is_cut_off_is_refused() {
    let refused = |file: &[u8]| run(settings(), &[file]).unwrap_err().to_string();
    assert!(refused(b"GIF89a").contains("is neither a JPEG nor a PNG file in row 0"));
    assert!(refused(&[0xFF, 0xD8, 0xFF, 0xE0, 0]).contains("is a JPEG file that cannot be decoded"));
    let whole = two();
    assert!(refused(&whole[..whole.len() - 20]).contains("is a PNG file that cannot be decoded"));
}
