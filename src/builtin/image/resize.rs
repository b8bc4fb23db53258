//! Bilinear resizing as PIL does it, bit for bit: `Image.resize(size, Resampling.BILINEAR)`.
//!
//! When a picture becomes smaller each pixel of the result is a mean of all that it covers, weighted by a triangle; plain
//! bilinear interpolation would look at four of them. Columns first, then rows, each rounded to 8 bits, in fixed point
//! (Pillow 11.3, `src/libImaging/Resample.c`; 13.0 takes the rows of some shapes first, which differs by 1 of 255).

use super::Rgb;
use std::collections::VecDeque;

/// Bits behind the point, `PRECISION_BITS` there.
const BITS: u32 = 32 - 8 - 2;
/// What sums begin at, so that they are rounded and not cut off.
const HALF: i32 = 1 << (BITS - 1);

/// The pixels that one pixel of the result is made of: the first of them, and their weights.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// Takes the rows of a picture one after the other, and is another with so many columns and rows when it has all of them:
/// no more of the picture is held than what the rows that are not done need.
pub(super) struct Resizing {
    /// For each column; `None`: they stay.
    columns: Option<Vec<Window>>,
    /// For each row; `None`: they stay.
    rows: Option<Vec<Window>>,
    width: usize,
    height: usize,
    /// The next row of the source.
    next: usize,
    /// Sums of the rows of the result that are begun and not done; the first is that of row `done`.
    sums: VecDeque<Vec<i32>>,
    done: usize,
    /// A row of the source with the columns of the result.
    line: Vec<u8>,
    data: Vec<u8>,
}

// === impl Resizing ===

impl Resizing {
    /// From a picture of `(columns, rows)` to one of such.
    pub(super) fn new(from: (usize, usize), to: (usize, usize)) -> Self {
        let windows = |from, to| (from != to).then(|| windows(from, to));
        Self {
            columns: windows(from.0, to.0),
            rows: windows(from.1, to.1),
            width: to.0,
            height: to.1,
            next: 0,
            sums: VecDeque::new(),
            done: 0,
            line: Vec::with_capacity(to.0 * 3),
            data: Vec::new(),
        }
    }

    /// Takes the next row, of three bytes for each column.
    pub(super) fn row(&mut self, row: &[u8]) {
        let line = match &self.columns {
            None => row,
            Some(windows) => {
                self.line.clear();
                for window in windows {
                    self.line.extend([0, 1, 2].map(|channel| weighted(window, |x| row[x * 3 + channel])));
                }
                &self.line
            }
        };
        let at = self.next;
        self.next += 1;
        let Some(windows) = &self.rows else { return self.data.extend_from_slice(line) };
        // Windows begin and end in the order of their rows.
        while windows.get(self.done + self.sums.len()).is_some_and(|window| window.first <= at) {
            self.sums.push_back(vec![HALF; line.len()]);
        }
        for (sums, window) in self.sums.iter_mut().zip(&windows[self.done..]) {
            let weight = window.weights.get(at - window.first).copied().unwrap_or(0);
            sums.iter_mut().zip(line).for_each(|(sum, value)| *sum += i32::from(*value) * weight);
        }
        while windows.get(self.done).is_some_and(|window| window.first + window.weights.len() <= self.next) {
            let Some(sums) = self.sums.pop_front() else { break };
            self.data.extend(sums.into_iter().map(rounded));
            self.done += 1;
        }
    }

    /// The result; `None` if rows are missing.
    pub(super) fn finish(self) -> Option<Rgb> {
        let Self { width, height, data, .. } = self;
        (data.len() == width * height * 3).then_some(Rgb { width, height, data })
    }
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
    let places = window.weights.iter().zip(window.first..);
    rounded(places.fold(HALF, |sum, (weight, at)| sum + i32::from(value(at)) * weight))
}

/// A sum of weighted values that began at [`HALF`].
fn rounded(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}
