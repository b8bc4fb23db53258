//! JPEG and PNG to red, green and blue. Grey becomes all three, and transparency is dropped, as PIL's `convert("RGB")` does.

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

/// A picture whose head was read.
pub(super) enum Head<'a> {
    Jpeg(Box<JpegDecoder<ZCursor<&'a [u8]>>>),
    Png(Box<png::Decoder<Cursor<&'a [u8]>>>),
}

/// Reads the head of `file`: columns and rows, and what decodes the rest. `max_pixels` bounds the memory of that.
///
/// # Errors
///
/// For callers, after the name of the tensor: what is wrong with the file.
pub(super) fn head(file: &[u8], max_pixels: usize) -> Result<(usize, usize, Head<'_>), String> {
    if file.starts_with(JPEG) {
        let options = DecoderOptions::default().jpeg_set_max_scans(SCANS).jpeg_set_out_colorspace(ColorSpace::RGB);
        let options = options.set_max_width(usize::from(u16::MAX)).set_max_height(usize::from(u16::MAX));
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
        decoder.decode_headers().map_err(|error| wrong(JPEG_FILE, &error))?;
        let info = decoder.info().ok_or_else(|| wrong(JPEG_FILE, &"no head"))?;
        Ok((info.width.into(), info.height.into(), Head::Jpeg(Box::new(decoder))))
    } else if file.starts_with(PNG) {
        // The largest pixel has four channels of 16 bits.
        let limits = png::Limits { bytes: max_pixels.saturating_mul(8).saturating_add(BESIDES) };
        let mut decoder = png::Decoder::new_with_limits(Cursor::new(file), limits);
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
        let head = decoder.read_header_info().map_err(|error| wrong(PNG_FILE, &error))?;
        Ok((head.width as usize, head.height as usize, Head::Png(Box::new(decoder))))
    } else {
        Err("is neither a JPEG nor a PNG file".to_owned())
    }
}

const JPEG_FILE: &str = "is a JPEG file that cannot be decoded";
const PNG_FILE: &str = "is a PNG file that cannot be decoded";

fn wrong(what: &str, error: &dyn std::fmt::Debug) -> String {
    tracing::debug!(?error, what, "a picture could not be decoded");
    what.to_owned()
}

impl Head<'_> {
    /// Decodes the rest and hands out its rows, red, green and blue, from the top down, for as long as `row` wants more. Of a
    /// PNG file whose rows stand in their order no more than one is held.
    ///
    /// # Errors
    ///
    /// As [`head`].
    pub(super) fn rows(self, row: impl FnMut(&[u8]) -> bool) -> Result<(), String> {
        match self {
            Self::Jpeg(decoder) => jpeg(*decoder, row),
            Self::Png(decoder) => png(*decoder, row),
        }
    }
}

fn jpeg(mut decoder: JpegDecoder<ZCursor<&[u8]>>, row: impl FnMut(&[u8]) -> bool) -> Result<(), String> {
    let data = decoder.decode().map_err(|error| wrong(JPEG_FILE, &error))?;
    let info = decoder.info().ok_or_else(|| wrong(JPEG_FILE, &"no head"))?;
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    if data.len() != width * height * 3 {
        return Err(wrong(JPEG_FILE, &data.len()));
    }
    // All of them, or whoever takes them wants no more.
    let _ = data.chunks_exact(width * 3).all(row);
    Ok(())
}

fn png(decoder: png::Decoder<Cursor<&[u8]>>, mut row: impl FnMut(&[u8]) -> bool) -> Result<(), String> {
    let mut reader = decoder.read_info().map_err(|error| wrong(PNG_FILE, &error))?;
    let (color, BitDepth::Eight) = reader.output_color_type() else { return Err(wrong(PNG_FILE, &"its depth")) };
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    let mut line = Vec::with_capacity(width * 3);
    let mut handed = |used: &[u8]| {
        line.clear();
        match color {
            ColorType::Rgb => line.extend_from_slice(used),
            ColorType::Rgba => line.extend(used.as_chunks::<4>().0.iter().flat_map(|p| [p[0], p[1], p[2]])),
            ColorType::Grayscale => line.extend(used.iter().flat_map(|grey| [*grey; 3])),
            ColorType::GrayscaleAlpha => line.extend(used.as_chunks::<2>().0.iter().flat_map(|pixel| [pixel[0]; 3])),
            // What is indexed was expanded.
            ColorType::Indexed => {}
        }
        match line.len() == width * 3 {
            true => Ok(row(&line)),
            false => Err(wrong(PNG_FILE, &color)),
        }
    };
    if reader.info().interlaced {
        let size = reader.output_buffer_size().ok_or_else(|| wrong(PNG_FILE, &"its size overflows"))?;
        let mut buffer = vec![0; size];
        let frame = reader.next_frame(&mut buffer).map_err(|error| wrong(PNG_FILE, &error))?;
        for used in buffer[..frame.buffer_size()].chunks_exact(frame.line_size) {
            if !handed(used)? {
                break;
            }
        }
        return Ok(());
    }
    for at in 0..height {
        let used = reader.next_row().map_err(|error| wrong(PNG_FILE, &error))?;
        if !handed(used.ok_or_else(|| wrong(PNG_FILE, &at))?.data())? {
            return Ok(());
        }
    }
    // What is behind the last row is read as well: a file that is cut off there is as broken.
    reader.next_row().map_err(|error| wrong(PNG_FILE, &error)).map(drop)
}
