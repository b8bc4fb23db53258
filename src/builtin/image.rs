//! Pictures to tensors: JPEG and PNG, decoded, resized and put into the numbers that a classifier was trained on.
//!
//! How large a picture is, is asked of its head before anything is decoded: a file of a few hundred bytes may say that it
//! is gigabytes (attack of decompression bombs). What else is in it, comments and profiles, is not read.

mod decode;
mod resize;

use super::{Builtin, Fed, Pieces, Wanted, spec, yielded};
use crate::{
    error::Error,
    tensor::{DataType, Shape, Signature, Tensor, Tensors},
};
use resize::Resizing;
use std::sync::Arc;

/// Bytes of JSON that take as long as one byte of a picture: some 20 MB of JPEG are decoded in a second.
const DECODING: usize = 16;

/// How pictures become numbers: `(value · scale - mean) / std` for each channel, the value from 0 to 255.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Columns of the result, at least 1.
    pub width: usize,
    /// Rows of the result, at least 1.
    pub height: usize,
    /// Where the channels stand.
    pub layout: Layout,
    /// Whether blue comes first.
    pub bgr: bool,
    /// What values are multiplied with.
    pub scale: f32,
    /// What is taken off each channel, in the result's order.
    pub mean: [f32; 3],
    /// What each channel is divided by, in the result's order; not 0.
    pub std: [f32; 3],
    /// Most pixels that a picture may have.
    pub max_pixels: usize,
    /// Most pictures of a call.
    pub max_images: usize,
    /// Most pixels that the pictures of a call may have together.
    pub max_call_pixels: usize,
}

/// Pictures of the most pixels that a call may have, unless it is said how many pixels that is.
pub const LARGEST: usize = 8;

/// None of its numbers is NaN: a configuration cannot say that.
impl Eq for Settings {}

/// Where the channels of a tensor stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[rows, 3, height, width]`.
    Nchw,
    /// `[rows, height, width, 3]`.
    Nhwc,
}

/// `image`, BYTES `[rows]`, to `pixels`, FP32 in the layout that is set.
#[derive(Debug)]
pub struct Image(pub(super) Settings);

/// A picture of three channels of 8 bits, red first, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rgb {
    width: usize,
    height: usize,
    /// `width · height · 3` bytes.
    data: Vec<u8>,
}

impl Builtin for Image {
    fn signature(&self, fed: &Fed<'_>) -> Result<Signature, String> {
        let rows = fed("image").and_then(|spec| *spec.dims.first()?);
        let Settings { width, height, layout, .. } = self.0;
        let dims = match layout {
            Layout::Nchw => [3, height, width],
            Layout::Nhwc => [height, width, 3],
        };
        let dims = [rows].into_iter().chain(dims.map(Some));
        Ok(Signature {
            inputs: vec![spec("image", DataType::Bytes, [rows])],
            outputs: vec![spec("pixels", DataType::Fp32, dims)],
        })
    }

    /// A small file may hold a large picture, so none is decoded on a lane.
    fn work(&self, inputs: &[Tensor]) -> usize {
        let bytes = inputs.iter().map(|input| input.data().len().saturating_mul(DECODING)).sum::<usize>();
        if inputs.iter().all(|input| input.rows() == 0) { 0 } else { bytes.saturating_add(1 << 20) }
    }

    fn begin(self: Arc<Self>, inputs: Tensors) -> Pieces {
        let mut pictures = Pictures { settings: self.0.clone(), files: inputs[0].clone(), done: 0, pixels: Vec::new() };
        Box::new(move |wanted| pictures.next(wanted))
    }
}

/// Pictures of a call, some of which were done.
struct Pictures {
    settings: Settings,
    files: Tensor,
    done: usize,
    pixels: Vec<f32>,
}

impl Pictures {
    /// Does one more. Before the first the heads of all are looked at.
    fn next(&mut self, wanted: &Wanted<'_>) -> Result<Option<Tensors>, Error> {
        if self.done == 0 {
            self.check(wanted)?;
        }
        let (rows, row) = (self.files.rows(), self.done);
        let (width, height) = (self.settings.width, self.settings.height);
        if let Some(file) = self.files.iter_strings().nth(row) {
            let wrong = |reason: String| Error::tensor("image", format!("{reason} in row {row}"));
            let (columns, lines, head) = decode::head(file, self.settings.max_pixels).map_err(wrong)?;
            let mut resizing = Resizing::new((columns, lines), (width, height));
            let mut left = false;
            let taken = head.rows(|row| {
                resizing.row(row);
                left = !wanted();
                !left
            });
            taken.map_err(wrong)?;
            let picture = resizing.finish().ok_or_else(|| match left {
                true => Error::Cancelled,
                false => Error::internal("a picture lacks rows"),
            })?;
            self.pixels.reserve_exact((rows - row) * width * height * 3);
            self.settings.write(&picture, &mut self.pixels);
            self.done += 1;
        }
        if self.done < rows {
            return Ok(None);
        }
        let dims = match self.settings.layout {
            Layout::Nchw => [rows, 3, height, width],
            Layout::Nhwc => [rows, height, width, 3],
        };
        let pixels = std::mem::take(&mut self.pixels);
        Ok(Some([yielded(Tensor::of(DataType::Fp32, Shape::from(dims), pixels))?].into()))
    }

    /// Looks at how many pictures there are and how large each says it is.
    fn check(&self, wanted: &Wanted<'_>) -> Result<(), Error> {
        let Settings { width, height, max_pixels, max_images, max_call_pixels, .. } = self.settings;
        let wrong = |reason: String| Error::tensor("image", reason);
        let rows = self.files.rows();
        if rows > max_images {
            return Err(wrong(format!("has {rows} pictures, expected at most {max_images}")));
        }
        let mut all = 0_usize;
        for (row, file) in self.files.iter_strings().enumerate() {
            if !wanted() {
                return Err(Error::Cancelled);
            }
            let read = decode::head(file, max_pixels);
            let (columns, lines, _) = read.map_err(|reason| wrong(format!("{reason} in row {row}")))?;
            let pixels = columns.saturating_mul(lines);
            if pixels == 0 || pixels > max_pixels {
                let text = format!("has {columns} x {lines} pixels, expected 1 to {max_pixels} in row {row}");
                return Err(wrong(text));
            }
            // Columns come first, so a picture that is narrow and tall is made wide before it is made short.
            let widened = width.saturating_mul(lines);
            let most = max_pixels.max(width * height);
            if widened > most {
                let text = format!(
                    "has {columns} x {lines} pixels, which would be {width} x {lines} while it is resized, expected at \
                     most {most} in row {row}"
                );
                return Err(wrong(text));
            }
            all = all.saturating_add(pixels.max(widened));
        }
        if all > max_call_pixels {
            return Err(wrong(format!("has pictures of {all} pixels together, expected at most {max_call_pixels}")));
        }
        Ok(())
    }
}

impl Settings {
    fn write(&self, picture: &Rgb, pixels: &mut Vec<f32>) {
        let value = |pixel: &[u8; 3], channel: usize| {
            let source = if self.bgr { 2 - channel } else { channel };
            (f32::from(pixel[source]) * self.scale - self.mean[channel]) / self.std[channel]
        };
        let all = picture.data.as_chunks::<3>().0;
        match self.layout {
            Layout::Nchw => (0..3).for_each(|channel| pixels.extend(all.iter().map(|pixel| value(pixel, channel)))),
            Layout::Nhwc => pixels.extend(all.iter().flat_map(|pixel| [0, 1, 2].map(|channel| value(pixel, channel)))),
        }
    }
}

#[cfg(test)]
#[path = "image/tests.rs"]
mod tests;
