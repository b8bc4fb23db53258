//! How far two answers to one question are apart.

use crate::{
    call::NamedTensor,
    telemetry::metrics::ShadowDifference,
    tensor::{
        DataType, Tensor,
        half::{BF16, FP16},
    },
};

/// Holds what a shadow answered against what the caller was told.
pub(super) fn compare(told: &[NamedTensor], found: &[NamedTensor]) -> ShadowDifference {
    let mut difference = ShadowDifference { outputs: told.len() != found.len(), ..ShadowDifference::default() };
    for ours in told {
        let theirs = found.iter().find(|theirs| theirs.name == ours.name).map(|theirs| &theirs.tensor);
        let comparable =
            |theirs: &&Tensor| theirs.dtype() == ours.tensor.dtype() && theirs.shape() == ours.tensor.shape();
        match theirs.filter(comparable) {
            Some(theirs) => of_tensors(&ours.tensor, theirs, &mut difference),
            None => difference.outputs = true,
        }
    }
    difference
}

/// Whether the two are the same but for rounding: no number is further from its fellow than `share` of the largest of them.
pub(super) fn is_alike(ours: &Tensor, theirs: &Tensor, share: f64) -> bool {
    if ours.data() == theirs.data() || ours.dtype() != theirs.dtype() || ours.shape() != theirs.shape() {
        return ours.dtype() == theirs.dtype() && ours.shape() == theirs.shape();
    }
    if ours.dtype() == DataType::Bytes {
        return false;
    }
    let pairs = || numbers(ours).zip(numbers(theirs));
    let finite = |number: f64| if number.is_finite() { number.abs() } else { 0.0 };
    let largest = pairs().map(|(a, b)| finite(a).max(finite(b))).fold(0.0, f64::max);
    pairs().all(|(a, b)| apart(a, b) <= share * largest)
}

fn of_tensors(ours: &Tensor, theirs: &Tensor, difference: &mut ShadowDifference) {
    if ours.dtype() == DataType::Bytes {
        difference.text |= ours.data() != theirs.data();
        return;
    }
    let largest = if ours.data() == theirs.data() {
        0.0
    } else {
        let pairs = numbers(ours).zip(numbers(theirs));
        let (columns, mut row) = (classes(ours), Row::default());
        let mut largest = 0.0_f64;
        for (place, (a, b)) in pairs.enumerate() {
            largest = largest.max(apart(a, b));
            if let Some(columns) = columns {
                row.see(place % columns, a, b);
                difference.class |= place % columns == columns - 1 && row.is_decided_otherwise();
            }
        }
        largest
    };
    difference.largest = Some(difference.largest.unwrap_or(0.0).max(largest));
}

/// How many classes the rows of an output choose among, if it may be a classifier's: fractions, row by row.
fn classes(tensor: &Tensor) -> Option<usize> {
    let is_fraction = matches!(tensor.dtype(), DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64);
    let columns = *tensor.shape().dims().last()?;
    (is_fraction && tensor.shape().rank() == 2 && columns > 1).then_some(columns)
}

/// The best of each side, so far; of equal ones the first.
#[derive(Debug, Default)]
struct Row {
    ours: (usize, f64),
    theirs: (usize, f64),
}

impl Row {
    fn see(&mut self, column: usize, a: f64, b: f64) {
        for (best, value) in [(&mut self.ours, a), (&mut self.theirs, b)] {
            // What is no number is better than nothing, and worse than every number.
            if column == 0 || value > best.1 || (best.1.is_nan() && !value.is_nan()) {
                *best = (column, value);
            }
        }
    }

    fn is_decided_otherwise(&self) -> bool {
        self.ours.0 != self.theirs.0
    }
}

/// The distance of two numbers; infinite where only one is a number, or one is infinite.
fn apart(a: f64, b: f64) -> f64 {
    if a == b || (a.is_nan() && b.is_nan()) {
        return 0.0;
    }
    let distance = (a - b).abs();
    if distance.is_nan() { f64::INFINITY } else { distance }
}

/// The elements as 64-bit floats: integers beyond 2^53 lose their last bits.
fn numbers(tensor: &Tensor) -> Box<dyn Iterator<Item = f64> + '_> {
    fn each<'a, const SIZE: usize>(
        data: &'a [u8],
        number: impl Fn([u8; SIZE]) -> f64 + 'a,
    ) -> Box<dyn Iterator<Item = f64> + 'a> {
        Box::new(data.as_chunks().0.iter().map(move |bytes| number(*bytes)))
    }
    let data = &tensor.data()[..];
    match tensor.dtype() {
        DataType::Bool | DataType::Uint8 => each(data, |[byte]: [u8; 1]| f64::from(byte)),
        DataType::Uint16 => each(data, |bytes| f64::from(u16::from_le_bytes(bytes))),
        DataType::Uint32 => each(data, |bytes| f64::from(u32::from_le_bytes(bytes))),
        DataType::Uint64 => each(data, |bytes| u64::from_le_bytes(bytes) as f64),
        DataType::Int8 => each(data, |bytes| f64::from(i8::from_le_bytes(bytes))),
        DataType::Int16 => each(data, |bytes| f64::from(i16::from_le_bytes(bytes))),
        DataType::Int32 => each(data, |bytes| f64::from(i32::from_le_bytes(bytes))),
        DataType::Int64 => each(data, |bytes| i64::from_le_bytes(bytes) as f64),
        DataType::Fp16 => each(data, |bytes| FP16.value(u16::from_le_bytes(bytes)).into()),
        DataType::Bf16 => each(data, |bytes| BF16.value(u16::from_le_bytes(bytes)).into()),
        DataType::Fp32 => each(data, |bytes| f64::from(f32::from_le_bytes(bytes))),
        DataType::Fp64 => each(data, f64::from_le_bytes),
        DataType::Bytes => Box::new(std::iter::empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    fn floats(name: &str, shape: &[usize], values: Vec<f32>) -> NamedTensor {
        let tensor = Tensor::of(DataType::Fp32, Shape::new(shape.iter().copied()), values).unwrap();
        NamedTensor { name: name.into(), tensor }
    }

    fn difference(ours: NamedTensor, theirs: NamedTensor) -> ShadowDifference {
        compare(&[ours], &[theirs])
    }

    #[test]
    fn the_largest_distance_counts_and_equal_answers_have_none() {
        let ours = || floats("y", &[3], vec![1.0, f32::NAN, -0.0]);
        assert_eq!(difference(ours(), ours()), ShadowDifference { largest: Some(0.0), ..Default::default() });
        let same = difference(ours(), floats("y", &[3], vec![1.0, f32::NAN, 0.0]));
        assert_eq!(same.largest, Some(0.0), "signs of zero and what is no number are no difference");
        let near = difference(ours(), floats("y", &[3], vec![1.5, f32::NAN, 0.25]));
        assert_eq!(near, ShadowDifference { largest: Some(0.5), ..Default::default() });
        for other in [f32::NAN, f32::INFINITY] {
            assert_eq!(difference(ours(), floats("y", &[3], vec![other, 1.0, 0.0])).largest, Some(f64::INFINITY));
        }
    }

    #[test]
    fn a_row_whose_best_class_is_another_is_told() {
        let ours = || floats("y", &[2, 2], vec![0.9, 0.1, 0.4, 0.6]);
        assert!(!difference(ours(), floats("y", &[2, 2], vec![0.6, 0.4, 0.1, 0.9])).class);
        assert!(difference(ours(), floats("y", &[2, 2], vec![0.9, 0.1, 0.6, 0.4])).class);
        assert!(difference(ours(), floats("y", &[2, 2], vec![f32::NAN, 0.1, 0.4, 0.6])).class);
        assert!(!difference(floats("y", &[2], vec![1.0, 0.0]), floats("y", &[2], vec![0.0, 1.0])).class, "no row");
    }

    #[test]
    fn what_cannot_be_compared_is_told_and_the_rest_is_compared() {
        let ours = floats("y", &[2], vec![1.0, 2.0]);
        let shape = difference(ours.clone(), floats("y", &[1], vec![1.0]));
        assert_eq!(shape, ShadowDifference { outputs: true, ..Default::default() });
        assert!(difference(ours.clone(), floats("z", &[2], vec![1.0, 2.0])).outputs);
        let more = compare(std::slice::from_ref(&ours), &[floats("z", &[1], vec![0.0]), ours.clone()]);
        assert_eq!(more, ShadowDifference { outputs: true, largest: Some(0.0), ..Default::default() });
        let text =
            |text: &str| NamedTensor { name: "t".into(), tensor: Tensor::strings(Shape::new([1]), [text]).unwrap() };
        assert!(difference(text("a"), text("b")).text && !difference(text("a"), text("a")).text);
    }

    #[test]
    fn every_type_of_number_is_compared_by_value() {
        for dtype in DataType::ALL.into_iter().filter(|dtype| *dtype != DataType::Bytes) {
            let made = |seed| {
                let tensor = crate::model::made_up(dtype, Shape::new([64]), crate::model::Fill::Random, seed).unwrap();
                NamedTensor { name: "y".into(), tensor }
            };
            let largest = difference(made(1), made(2)).largest.unwrap();
            assert!(largest > 0.0 && largest <= 1.0, "{dtype}: {largest}");
        }
    }
}
