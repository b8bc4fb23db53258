//! Pictures to tensors: JPEG and PNG, decoded, resized and put into the numbers that a classifier was trained on.
//!
//! How large a picture is, is asked of its head before anything is decoded: a file of a few hundred bytes may say that it
//! is gigabytes (attack of decompression bombs). What else is in it, comments and profiles, is not read.

mod decode;
mod resize;

use super::{Builtin, Fed, spec, yielded};
use crate::{
    error::Error,
    tensor::{DataType, Shape, Signature, Tensor, Tensors},
};
use resize::resize;

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
}

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

    fn run(&self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        let settings = &self.0;
        let rows = inputs[0].rows();
        let wrong = |reason: String| Error::tensor("image", reason);
        if rows > settings.max_images {
            return Err(wrong(format!("has {rows} pictures, expected at most {}", settings.max_images)));
        }
        let (width, height) = (settings.width, settings.height);
        let mut pixels = Vec::with_capacity(rows * width * height * 3);
        for (row, file) in inputs[0].iter_strings().enumerate() {
            let picture = decode::decode(file, settings.max_pixels);
            let picture = picture.map_err(|reason| wrong(format!("{reason} in row {row}")))?;
            settings.write(&resize(picture, width, height), &mut pixels);
        }
        let dims = match settings.layout {
            Layout::Nchw => [rows, 3, height, width],
            Layout::Nhwc => [rows, height, width, 3],
        };
        Ok([yielded(Tensor::of(DataType::Fp32, Shape::from(dims), pixels))?].into())
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
