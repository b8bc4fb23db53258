//! Where rows of different lengths are that lie one behind the other: tensors that say so, for models that want to know.

use super::{DataType, Shape, Tensor};
use crate::error::Error;
use std::sync::Arc;

/// What is said of n rows that lie one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// How long each is: n numbers.
    Counts,
    /// Where each begins: n numbers, the first is 0.
    Starts,
    /// Where each ends: n numbers, the last is how many elements there are.
    Ends,
    /// Where each begins, and behind that where the last one ends: n + 1 numbers.
    Bounds,
}

// === impl Marks ===

impl Marks {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Counts, Self::Starts, Self::Ends, Self::Bounds];

    /// Types that say it, those of Triton's batch inputs, and the number up to which each has every one.
    pub const TYPES: [(DataType, usize); 3] =
        [(DataType::Int32, i32::MAX as usize), (DataType::Int64, i64::MAX as usize), (DataType::Fp32, 1 << 24)];

    /// The word in `model.yaml`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counts => "counts",
            Self::Starts => "starts",
            Self::Ends => "ends",
            Self::Bounds => "bounds",
        }
    }

    /// The number up to which a type has every one; 0 for one that is not among [`Marks::TYPES`].
    pub fn most(dtype: DataType) -> usize {
        Self::TYPES.iter().find(|(known, _)| *known == dtype).map_or(0, |(_, most)| *most)
    }

    /// What is said of rows of these lengths: a tensor of shape `[n]`, or `[n + 1]`.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] for a type that is not among [`Marks::TYPES`].
    pub fn of(self, lengths: impl IntoIterator<Item = usize>, dtype: DataType) -> Result<Tensor, Error> {
        let mut at = 0;
        let mut marks = Vec::new();
        for length in lengths {
            marks.push(match self {
                Self::Counts => length,
                Self::Starts | Self::Bounds => at,
                Self::Ends => at + length,
            });
            at += length;
        }
        if self == Self::Bounds {
            marks.push(at);
        }
        let shape = Shape::from([marks.len()]);
        let tensor = match dtype {
            DataType::Int32 => Tensor::of(dtype, shape, marks.iter().map(|mark| *mark as i32).collect()),
            DataType::Int64 => Tensor::of(dtype, shape, marks.iter().map(|mark| *mark as i64).collect()),
            DataType::Fp32 => Tensor::of(dtype, shape, marks.iter().map(|mark| *mark as f32).collect()),
            other => return Err(Error::internal(format!("lengths of rows as {other}"))),
        };
        tensor.map_err(|error| Error::Internal(Arc::new(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_says_where_rows_are_in_its_own_way() {
        for (marks, expected) in [
            (Marks::Counts, vec![2, 0, 3]),
            (Marks::Starts, vec![0, 2, 2]),
            (Marks::Ends, vec![2, 2, 5]),
            (Marks::Bounds, vec![0, 2, 2, 5]),
        ] {
            let made = marks.of([2, 0, 3], DataType::Int32).unwrap();
            assert_eq!(made.try_elements::<i32>().unwrap(), expected, "{marks:?}");
            assert_eq!(made.shape().dims(), [expected.len()]);
            let wide: Vec<i64> = expected.iter().map(|mark| i64::from(*mark)).collect();
            assert_eq!(marks.of([2, 0, 3], DataType::Int64).unwrap().try_elements::<i64>().unwrap(), wide);
            let real: Vec<f32> = expected.iter().map(|mark| *mark as f32).collect();
            assert_eq!(marks.of([2, 0, 3], DataType::Fp32).unwrap().try_elements::<f32>().unwrap(), real);
            assert!(marks.of([1], DataType::Uint8).is_err() && Marks::most(DataType::Uint8) == 0);
        }
    }

    #[test]
    fn of_no_rows_only_bounds_say_something() {
        for marks in Marks::ALL {
            let made = marks.of([], DataType::Int64).unwrap();
            assert_eq!(made.shape().dims(), [usize::from(marks == Marks::Bounds)], "{marks:?}");
        }
    }

    #[test]
    fn the_largest_number_of_a_type_is_exact() {
        for (dtype, most) in [(DataType::Int32, Marks::most(DataType::Int32)), (DataType::Fp32, 1 << 24)] {
            let made = Marks::Ends.of([most - 1, 1], dtype).unwrap();
            let last = match dtype {
                DataType::Int32 => made.try_elements::<i32>().unwrap()[1] as usize,
                _ => made.try_elements::<f32>().unwrap()[1] as usize,
            };
            assert_eq!(last, most);
        }
    }
}
