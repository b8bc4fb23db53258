//! Pictures: what they become, and what is refused of them. That resizing is PIL's is shown over sockets, with its numbers.

use super::*;
use crate::builtin::testing::{self, near};
use std::cell::Cell;

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
        max_call_pixels: 100,
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
    testing::run(Image(settings), &[input]).map(|outputs| outputs[0].clone())
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

#[test]
fn pictures_are_bounded_together_and_while_they_are_resized() {
    let grey = |width, height| file(width, height, png::ColorType::Grayscale, &vec![7; (width * height) as usize]);
    let (large, tall) = (grey(8, 8), grey(1, 40));
    assert!(run(settings(), &[&large]).is_ok());
    let error = run(settings(), &[&large, &large]).unwrap_err().to_string();
    assert!(error.contains("has pictures of 128 pixels together, expected at most 100"), "{error}");
    let error = run(settings(), &[&tall]).unwrap_err().to_string();
    assert!(error.contains("has 1 x 40 pixels, which would be 2 x 40 while it is resized"), "{error}");
    assert!(error.contains("expected at most 64 in row 0"), "{error}");
    // What is made of it is allowed to be larger.
    assert!(run(Settings { height: 100, ..settings() }, &[&tall]).is_ok());
}

#[test]
fn each_picture_is_a_piece_and_one_that_nobody_waits_for_ends_between_two_rows() {
    let small = two();
    let input = Tensor::strings([2].into(), [&small, &small]).unwrap();
    let mut pieces = Arc::new(Image(settings())).begin([input].into());
    assert!(pieces(&|| true).unwrap().is_none());
    assert_eq!(pieces(&|| true).unwrap().unwrap()[0].shape().dims(), [2, 3, 1, 2]);
    let square = file(8, 8, png::ColorType::Grayscale, &[7; 64]);
    let mut pieces = Arc::new(Image(settings())).begin([Tensor::strings([1].into(), [&square]).unwrap()].into());
    let asked = Cell::new(0);
    let twice = || {
        asked.set(asked.get() + 1);
        asked.get() <= 2
    };
    assert!(matches!(pieces(&twice).unwrap_err(), Error::Cancelled));
    // Once for its head and twice for rows, of eight.
    assert_eq!(asked.get(), 3);
}

#[test]
fn rows_that_are_interlaced_are_those_of_the_picture() {
    // PIL's `Image.new("L", (3, 2))` with 1 to 6 in it, as Adam7 has it: passes 1, 4, 5, 6 and 7.
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, 1, 1);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
    let mut file = out[..8].to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        let named = [&kind[..], data].concat();
        file.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        file.extend(&named);
        file.extend(crc(&named).to_be_bytes());
    };
    chunk(b"IHDR", &[0, 0, 0, 3, 0, 0, 0, 2, 8, 0, 0, 0, 1]);
    // One stored block of deflate: a filter byte before each row of each pass.
    let passes = [0, 1, 0, 3, 0, 2, 0, 4, 5, 6];
    let (a, b) = passes.iter().fold((1_u32, 0_u32), |(a, b), byte| (a + byte, b + a + byte));
    let mut data = vec![0x78, 0x01, 1, 10, 0, 0xF5, 0xFF];
    data.extend(passes.map(|byte| byte as u8));
    data.extend((b << 16 | a).to_be_bytes());
    chunk(b"IDAT", &data);
    chunk(b"IEND", &[]);
    let as_it_is = Settings { width: 3, height: 2, ..settings() };
    near(&run(as_it_is, &[&file]).unwrap(), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0].repeat(3));
}
