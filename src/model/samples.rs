//! Made-up inputs, and the runs that a model's configuration asks for before it is ready (`model_warmup`).
//!
//! What is made up is the same each time, so that what fails once fails again. Which samples there are is the
//! configuration's to say; that they fit the model is checked here, as requests are.

use super::{Fill, ModelSettings, shapes::Shapes, signature};
use crate::{
    backend::Backend,
    call::NamedTensor,
    tensor::{DataType, Shape, Tensor, Tensors, view},
};
use std::{ops::ControlFlow, sync::Arc};

/// An input larger than this is not made up only to warm a model up.
const LARGEST: usize = 256 << 20;

/// A sample whose inputs are there, in the signature's order.
#[derive(Debug)]
pub(super) struct Made {
    name: Arc<str>,
    inputs: Tensors,
    runs: usize,
}

/// Makes the inputs of every sample of `settings`, as calls of the model that has these `shapes` are made: what may be left out
/// may be. `batches` as in [`signature::check`].
///
/// # Errors
///
/// For operators, in plain words: the sample, what it has and what the model has.
pub(super) fn make(settings: &ModelSettings, shapes: &Shapes, batches: bool) -> Result<Vec<Made>, String> {
    let signature = &shapes.signature;
    let mut samples = Vec::with_capacity(settings.samples.len());
    for sample in &settings.samples {
        let wrong = |reason: &dyn std::fmt::Display| format!("warm-up sample `{}`: {reason}", sample.name);
        let mut inputs = Vec::with_capacity(sample.inputs.len());
        for (seed, input) in (1..).zip(&sample.inputs) {
            let tensor = match &input.given {
                Some(tensor) => Ok(tensor.clone()),
                None => made(input.dtype, Shape::new(input.dims.iter().copied()), input.fill, seed),
            };
            let tensor = tensor.map_err(|reason| wrong(&format!("input `{}`: {reason}", input.name)))?;
            inputs.push(NamedTensor { name: Arc::clone(&input.name), tensor });
        }
        shapes.absent.complete(signature, &mut inputs).map_err(|error| wrong(&error))?;
        let checked = signature::check(signature, batches, inputs).map_err(|error| wrong(&error))?;
        signature::check_outputs(signature, &sample.outputs).map_err(|error| wrong(&error))?;
        let inputs = match &shapes.layout {
            Some(layout) => layout.alone(checked.inputs).map_err(|error| wrong(&error))?,
            None => checked.inputs,
        };
        samples.push(Made { name: Arc::clone(&sample.name), inputs, runs: sample.runs });
    }
    Ok(samples)
}

/// Runs every sample as often as it asks for.
///
/// # Errors
///
/// For operators, in plain words: the sample, and why its run failed.
pub(super) fn run(samples: &[Made], backend: &mut dyn Backend) -> Result<(), String> {
    for Made { name, inputs, runs } in samples {
        for _ in 0..*runs {
            let ran = if backend.is_decoupled() {
                backend.stream(inputs, &mut |_| ControlFlow::Continue(()))
            } else {
                backend.run(inputs).map(drop)
            };
            ran.map_err(|error| format!("warm-up sample `{name}` failed: {}", super::workshop::reason(&error)))?;
        }
    }
    Ok(())
}

/// A tensor that is made up; of two with different seeds, the random values differ.
///
/// # Errors
///
/// In plain words, that it is too large.
pub fn made(dtype: DataType, shape: Shape, fill: Fill, seed: u64) -> Result<Tensor, String> {
    let elements = shape.elements().unwrap_or(usize::MAX);
    // An empty string is its length and nothing else: four zero bytes.
    let size = dtype.size().unwrap_or(4);
    let bytes = elements.checked_mul(size).filter(|bytes| *bytes <= LARGEST);
    let bytes = bytes.ok_or_else(|| format!("has shape {shape}, too large to make up"))?;
    let data = match fill {
        // Words, so that the bytes lie on the alignment of every type.
        Fill::Zeros => view::bytes_of(vec![0_u64; bytes.div_ceil(8)]).slice(..bytes),
        Fill::Random => view::aligned_copy(&random(dtype, elements, bytes, seed)),
    };
    Tensor::new(dtype, shape, data).map_err(|error| error.to_string())
}

fn random(dtype: DataType, elements: usize, bytes: usize, seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    let mut data = Vec::with_capacity(bytes);
    // The upper bits of a number, as many as the fraction of a float has: below 1, and exact.
    let fraction = |number: u64, bits: u32| number >> (64 - bits);
    for number in numbers.by_ref().take(elements) {
        match dtype {
            DataType::Fp64 => data.extend((fraction(number, 53) as f64 / 2_f64.powi(53)).to_le_bytes()),
            DataType::Fp32 => data.extend((fraction(number, 24) as f32 / 2_f32.powi(24)).to_le_bytes()),
            // The exponent of one half, and a fraction behind it: from 0.5 to 1.
            DataType::Fp16 => data.extend((0x3800_u16 | fraction(number, 10) as u16).to_le_bytes()),
            DataType::Bf16 => data.extend((0x3F00_u16 | fraction(number, 7) as u16).to_le_bytes()),
            DataType::Bytes => data.extend([0; 4]),
            DataType::Bool | DataType::Uint8 | DataType::Int8 => data.push(fraction(number, 1) as u8),
            DataType::Uint16 | DataType::Int16 => data.extend((fraction(number, 1) as u16).to_le_bytes()),
            DataType::Uint32 | DataType::Int32 => data.extend((fraction(number, 1) as u32).to_le_bytes()),
            DataType::Uint64 | DataType::Int64 => data.extend(fraction(number, 1).to_le_bytes()),
        }
    }
    data
}

/// SplitMix64: a handful of operations for each number, and good enough for values that nobody has to guess at.
struct Numbers(u64);

impl Iterator for Numbers {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Some(mixed ^ (mixed >> 31))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{InputSettings, Sample, SampleInput, shapes::shapes},
        schedule::testing::{self, Script},
        tensor::{AxisNames, Signature, TensorSpec},
    };
    use std::slice::from_ref;

    fn settings(dims: &[usize], runs: usize) -> ModelSettings {
        let input = SampleInput {
            name: "x".into(),
            dtype: DataType::Fp32,
            dims: dims.to_vec(),
            fill: Fill::Random,
            given: None,
        };
        let samples = vec![Sample { name: "warm".into(), inputs: vec![input], outputs: Vec::new(), runs }];
        ModelSettings { samples, ..ModelSettings::default() }
    }

    fn shaped(settings: &ModelSettings, signature: &Arc<Signature>) -> Shapes {
        shapes(settings, signature, &AxisNames::default()).unwrap()
    }

    #[test]
    fn a_sample_may_leave_out_what_a_call_may() {
        let spec =
            |name: &str| TensorSpec { name: name.into(), dtype: Some(DataType::Fp32), dims: vec![None, Some(4)] };
        let signature = Arc::new(Signature { inputs: vec![spec("x"), spec("bias")], outputs: vec![spec("y")] });
        let optional = InputSettings { pad: Some(0.5.into()), optional: true, ..InputSettings::default() };
        let batches = Some(true);
        let mut settings = ModelSettings { inputs: vec![("bias".into(), optional)], ..settings(&[2, 4], 1) };
        settings.batching.enabled = batches;
        let made = make(&settings, &shaped(&settings, &signature), true).unwrap();
        let expected = Tensor::of(DataType::Fp32, [2, 4].into(), vec![0.5_f32; 8]).unwrap();
        assert_eq!(made[0].inputs[1..], *from_ref(&expected));
        settings.inputs.clear();
        let error = make(&settings, &shaped(&settings, &signature), true).unwrap_err();
        assert_eq!(error, "warm-up sample `warm`: input `bias` is missing");
    }

    #[test]
    fn a_sample_is_run_as_often_as_it_says() {
        let script = Script::default();
        let mut backend = testing::backend(&script);
        let settings = settings(&[2, 4], 3);
        let samples = make(&settings, &shaped(&settings, backend.signature()), true).unwrap();
        run(&samples, &mut *backend).unwrap();
        assert_eq!(script.batches(), [2, 2, 2]);
    }

    #[test]
    fn a_sample_that_contradicts_the_model_names_both() {
        let backend = testing::backend(&Script::default());
        let make = |settings: &ModelSettings| make(settings, &shaped(settings, backend.signature()), true);
        let error = make(&settings(&[2, 5], 1)).unwrap_err();
        assert_eq!(error, "warm-up sample `warm`: tensor `x` has shape [2, 5], expected [-1, 4]");
        let nothing = Sample { name: "nothing".into(), inputs: Vec::new(), outputs: Vec::new(), runs: 1 };
        let nothing = ModelSettings { samples: vec![nothing], ..ModelSettings::default() };
        let error = make(&nothing).unwrap_err();
        assert_eq!(error, "warm-up sample `nothing`: input `x` is missing");
        let mut asking = settings(&[2, 4], 1);
        asking.samples[0].outputs = vec!["nope".into()];
        let error = make(&asking).unwrap_err();
        assert!(error.starts_with("warm-up sample `warm`: output `nope` is unknown"), "{error}");
        let error = make(&settings(&[usize::MAX, 4], 1)).unwrap_err();
        assert!(error.ends_with("too large to make up"), "{error}");
    }

    #[test]
    fn random_values_are_sensible_and_the_same_each_time() {
        for dtype in DataType::ALL {
            let tensor = || made(dtype, Shape::new([3, 5]), Fill::Random, 7).unwrap();
            assert_eq!(tensor(), tensor(), "{dtype}");
        }
        let of = |dtype, seed| made(dtype, Shape::new([64]), Fill::Random, seed).unwrap();
        let floats = of(DataType::Fp32, 1);
        let floats = floats.try_elements::<f32>().unwrap();
        assert!(floats.iter().all(|value| (0.0..1.0).contains(value)) && floats.windows(2).any(|two| two[0] != two[1]));
        let integers = of(DataType::Int64, 1);
        assert!(integers.try_elements::<i64>().unwrap().iter().all(|value| (0..=1).contains(value)));
        assert_ne!(of(DataType::Fp32, 1), of(DataType::Fp32, 2));
        // One half is 0x3800 in half precision, and 1.0 is 0x3C00.
        let halves = of(DataType::Fp16, 1);
        assert!(halves.try_elements::<u16>().unwrap().iter().all(|bits| (0x3800..0x3C00).contains(bits)));
    }
}
