//! JPEG and PNG to red, green and blue. Grey becomes all three, and transparency is dropped, as PIL's `convert("RGB")` does.

use super::Rgb;
use png::{BitDepth, ColorType, Transformations};
use std::io::Cursor;
use zune_jpeg::{
    JpegDecoder,
    zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions},
};

/// What a JPEG file begins with, and a PNG file.
const JPEG: &[u8] = &[0xFF, 0xD8, 0xFF];
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Scans of a progressive JPEG at most: each goes over the whole picture. Encoders write ten.
const SCANS: usize = 32;
/// What a decoder may need besides the picture, bytes.
const BESIDES: usize = 1 << 20;

/// Decodes `file` if it has no more than `max_pixels`.
///
/// # Errors
///
/// For callers, after the name of the tensor: what is wrong with the file.
pub(super) fn decode(file: &[u8], max_pixels: usize) -> Result<Rgb, String> {
    if file.starts_with(JPEG) {
        jpeg(file, max_pixels)
    } else if file.starts_with(PNG) {
        png(file, max_pixels)
    } else {
        Err("is neither a JPEG nor a PNG file".to_owned())
    }
}

fn check(width: usize, height: usize, max_pixels: usize) -> Result<(), String> {
    let pixels = width.saturating_mul(height);
    if pixels == 0 || pixels > max_pixels {
        return Err(format!("has {width} x {height} pixels, expected 1 to {max_pixels}"));
    }
    Ok(())
}

fn jpeg(file: &[u8], max_pixels: usize) -> Result<Rgb, String> {
    let options = DecoderOptions::default().jpeg_set_max_scans(SCANS).jpeg_set_out_colorspace(ColorSpace::RGB);
    let options = options.set_max_width(usize::from(u16::MAX)).set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    let wrong = |error: &dyn std::fmt::Debug| {
        tracing::debug!(?error, "a JPEG file could not be decoded");
        "is a JPEG file that cannot be decoded".to_owned()
    };
    decoder.decode_headers().map_err(|error| wrong(&error))?;
    let info = decoder.info().ok_or_else(|| wrong(&"no head"))?;
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    check(width, height, max_pixels)?;
    let data = decoder.decode().map_err(|error| wrong(&error))?;
    match data.len() == width * height * 3 {
        true => Ok(Rgb { width, height, data }),
        false => Err(wrong(&data.len())),
    }
}

fn png(file: &[u8], max_pixels: usize) -> Result<Rgb, String> {
    let wrong = |error: &dyn std::fmt::Display| {
        tracing::debug!(%error, "a PNG file could not be decoded");
        "is a PNG file that cannot be decoded".to_owned()
    };
    // The largest pixel has four channels of 16 bits.
    let limits = png::Limits { bytes: max_pixels.saturating_mul(8).saturating_add(BESIDES) };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(file), limits);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let head = decoder.read_header_info().map_err(|error| wrong(&error))?;
    let (width, height) = (head.width as usize, head.height as usize);
    check(width, height, max_pixels)?;
    let mut reader = decoder.read_info().map_err(|error| wrong(&error))?;
    let size = reader.output_buffer_size().ok_or_else(|| wrong(&"its size overflows"))?;
    let mut buffer = vec![0; size];
    let frame = reader.next_frame(&mut buffer).map_err(|error| wrong(&error))?;
    let used = &buffer[..frame.buffer_size()];
    let data: Vec<u8> = match (frame.color_type, frame.bit_depth) {
        (ColorType::Rgb, BitDepth::Eight) => used.to_vec(),
        (ColorType::Rgba, BitDepth::Eight) => used.as_chunks::<4>().0.iter().flat_map(|p| [p[0], p[1], p[2]]).collect(),
        (ColorType::Grayscale, BitDepth::Eight) => used.iter().flat_map(|grey| [*grey; 3]).collect(),
        (ColorType::GrayscaleAlpha, BitDepth::Eight) => {
            used.as_chunks::<2>().0.iter().flat_map(|pixel| [pixel[0]; 3]).collect()
        }
        (color, depth) => return Err(wrong(&format!("{color:?} of {depth:?} bits"))),
    };
    match data.len() == width * height * 3 {
        true => Ok(Rgb { width, height, data }),
        false => Err(wrong(&data.len())),
    }
}
