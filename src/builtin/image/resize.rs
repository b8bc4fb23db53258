//! Bilinear resizing as PIL does it, bit for bit: `Image.resize(size, Resampling.BILINEAR)`.
//!
//! When a picture becomes smaller each pixel of the result is a mean of all that it covers, weighted by a triangle; plain
//! bilinear interpolation would look at four of them. Columns first, then rows, each rounded to 8 bits, in fixed point
//! (Pillow 11.3, `src/libImaging/Resample.c`; 13.0 takes the rows of some shapes first, which differs by 1 of 255).

use super::Rgb;

/// Bits behind the point, `PRECISION_BITS` there.
const BITS: u32 = 32 - 8 - 2;

/// The pixels that one pixel of the result is made of: the first of them, and their weights.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// The picture with so many columns and rows.
pub(super) fn resize(picture: Rgb, width: usize, height: usize) -> Rgb {
    let wide = if picture.width == width { picture } else { columns(&picture, width) };
    if wide.height == height { wide } else { rows(&wide, height) }
}

fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    // Half the width of the triangle, in pixels of the source.
    let support = scale.max(1.0);
    let window = |at: usize| {
        let center = (at as f64 + 0.5) * scale;
        // The casts cut off towards zero, and what is below it becomes zero.
        let first = (center - support + 0.5) as usize;
        let last = ((center + support + 0.5) as usize).min(from);
        let weight = |x: usize| (1.0 - ((x as f64 - center + 0.5) / support).abs()).max(0.0);
        let weights: Vec<f64> = (first..last).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: f64| (weight / sum * f64::from(1_u32 << BITS) + 0.5) as i32;
        Window { first, weights: weights.into_iter().map(fixed).collect() }
    };
    (0..to).map(window).collect()
}

/// One channel of one pixel: `value` of each pixel of the window, by its weight.
fn weighted(window: &Window, value: impl Fn(usize) -> u8) -> u8 {
    let half = 1_i32 << (BITS - 1);
    let places = window.weights.iter().zip(window.first..);
    let sum = places.fold(half, |sum, (weight, at)| sum + i32::from(value(at)) * weight);
    (sum >> BITS).clamp(0, 255) as u8
}

fn columns(picture: &Rgb, width: usize) -> Rgb {
    let windows = windows(picture.width, width);
    let mut data = Vec::with_capacity(width * picture.height * 3);
    for row in picture.data.chunks_exact(picture.width * 3) {
        for window in &windows {
            data.extend([0, 1, 2].map(|channel| weighted(window, |x| row[x * 3 + channel])));
        }
    }
    Rgb { width, height: picture.height, data }
}

fn rows(picture: &Rgb, height: usize) -> Rgb {
    let stride = picture.width * 3;
    let mut data = Vec::with_capacity(stride * height);
    for window in &windows(picture.height, height) {
        data.extend((0..stride).map(|x| weighted(window, |y| picture.data[y * stride + x])));
    }
    Rgb { width: picture.width, height, data }
}
