//! What padding is worth to a model: how many elements cost as much as a run, measured at warm-up.
//!
//! A run of a model costs something by itself, and something for each element along the axes that are filled up. Two calls
//! that run together save the first and pay the second for what fills the shorter one up. On one core of a CPU a transformer's
//! run is worth some ten tokens; with many cores, or an accelerator, hundreds.

use super::{Fill, samples, shapes::UNMEASURED};
use crate::{
    backend::Backend,
    error::Error,
    schedule::padding::{Padding, Reach},
    tensor::{Shape, Signature, Tensors},
};
use std::time::{Duration, Instant};

/// Pairs of lengths that are compared; the first that the model takes.
const LENGTHS: [[usize; 2]; 3] = [[16, 64], [4, 16], [2, 4]];

/// Runs of which the shortest is taken, after one that warms up: what disturbs a run only makes it longer.
const SAMPLES: usize = 5;

/// No more samples after this.
const PATIENCE: Duration = Duration::from_millis(100);

/// Runs the model at two lengths, sees whether its outputs can be cut back, and says to `padding` what a run is worth.
/// `signature` is the model's as callers see it.
///
/// A model that takes no zeros of any of these lengths is not measured.
///
/// # Errors
///
/// For operators, in plain words: an output that follows the lengths and cannot be cut back.
pub(super) fn measure(backend: &mut dyn Backend, signature: &Signature, padding: &mut Padding) -> Result<(), String> {
    measure_by(&mut time, backend, signature, padding)
}

/// Seconds of a run.
type Clock<'a> = &'a mut dyn FnMut(&mut dyn Backend, &Tensors) -> Result<f64, Error>;

fn measure_by(
    clock: Clock<'_>,
    backend: &mut dyn Backend,
    signature: &Signature,
    padding: &mut Padding,
) -> Result<(), String> {
    if padding.axes.is_empty() {
        return Ok(());
    }
    // Of different lengths along different axes, if the model takes those: an output whose axes have changed places looks right
    // where all are the same.
    let spreads = if padding.axes.len() > 1 { &[1, 0][..] } else { &[0] };
    for ([short, long], spread) in
        LENGTHS.iter().flat_map(|lengths| spreads.iter().map(move |spread| (*lengths, *spread)))
    {
        let along = |length: usize, place: usize| length + spread * place;
        let inputs = |rows: usize, length: usize| {
            zeros(signature, padding, padding.rows.unwrap_or(rows), &|place| along(length, place))
        };
        let (Ok(one), Ok(two), Ok(other)) = (inputs(1, short), inputs(2, short), inputs(1, long)) else { continue };
        let (Ok(small), Ok(large)) = (backend.run(&one), backend.run(&other)) else { continue };
        follows(signature, padding, [(short, &small), (long, &large)], &along)?;
        if padding.reach != Reach::Worth {
            return Ok(());
        }
        let mut time = |inputs| clock(backend, inputs);
        let (Ok(one), Ok(two), Ok(longer)) = (time(&one), time(&two), time(&other)) else { continue };
        let volume =
            |length: usize| (0..padding.axes.len()).fold(1.0, |volume, place| volume * along(length, place) as f64);
        // A run that has its rows whatever comes is saved whole.
        let saved = if padding.rows.is_some() { one } else { 2.0 * one - two };
        let element = (longer - one) / (volume(long) - volume(short));
        padding.set_worth(worth(saved, element));
        return Ok(());
    }
    if padding.reach == Reach::Worth {
        padding.reach = UNMEASURED;
    }
    Ok(())
}

/// How many elements may be added to save a run: half of what the run would pay for. Large batches cost more for each
/// element than these small ones do, because they leave the caches.
fn worth(saved: f64, element: f64) -> usize {
    // To what costs nothing that could be measured, all may be added; the conversion saturates.
    let elements = saved.max(0.0) / element.max(1e-12) / 2.0;
    elements as usize
}

/// Zeros for every input, `length` of its place long along each axis that is filled up.
fn zeros(
    signature: &Signature,
    padding: &Padding,
    rows: usize,
    length: &dyn Fn(usize) -> usize,
) -> Result<Tensors, Error> {
    let zero = |(input, spec): (&crate::schedule::padding::PaddedInput, &crate::tensor::TensorSpec)| {
        let dim = |(axis, dim): (usize, &Option<usize>)| match dim {
            _ if axis == 0 => rows,
            dim => match input.axes.iter().find(|(padded, _)| *padded == axis) {
                Some((_, place)) => length(*place),
                None => dim.unwrap_or(1),
            },
        };
        let shape = Shape::new(spec.dims.iter().enumerate().map(dim));
        samples::made(spec.known_dtype()?, shape, Fill::Zeros, 0).map_err(Error::internal)
    };
    padding.inputs.iter().zip(&signature.inputs).map(zero).collect()
}

/// Seconds of the shortest run.
fn time(backend: &mut dyn Backend, inputs: &Tensors) -> Result<f64, Error> {
    backend.run(inputs)?;
    let begun = Instant::now();
    let mut shortest = f64::INFINITY;
    for sample in 0..SAMPLES {
        if sample > 0 && begun.elapsed() >= PATIENCE {
            break;
        }
        let started = Instant::now();
        backend.run(inputs)?;
        shortest = shortest.min(started.elapsed().as_secs_f64());
    }
    Ok(shortest)
}

/// Whether every output is as long as the inputs where it is cut back, and does not depend on them anywhere else.
fn follows(
    signature: &Signature,
    padding: &Padding,
    runs: [(usize, &Tensors); 2],
    along: &dyn Fn(usize, usize) -> usize,
) -> Result<(), String> {
    for (at, (axes, spec)) in padding.outputs.iter().zip(&signature.outputs).enumerate() {
        let dims = runs.map(|(_, outputs)| outputs.get(at).map_or(&[][..], |output| output.shape().dims()));
        for axis in 1..spec.dims.len() {
            let found = dims.map(|dims| dims.get(axis).copied().unwrap_or_default());
            let name = &spec.name;
            match axes.iter().find(|(cut, _)| *cut == axis) {
                Some((_, place)) if found != runs.map(|(length, _)| along(length, *place)) => {
                    let (axis, lengths) = (&padding.axes[*place], runs.map(|(length, _)| along(length, *place)));
                    return Err(format!(
                        "output `{name}` is {found:?} long along `{axis}` where the inputs are {lengths:?}, so it cannot be cut \
                         back; write `batching: {{ pad: off }}`"
                    ));
                }
                None if found[0] != found[1] => {
                    return Err(format!(
                        "output `{name}` follows the length of the inputs along axis {axis}, which has another name than \
                         theirs, so it cannot be cut back; write `batching: {{ pad: off }}`"
                    ));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::fake::Fake,
        schedule::padding::PaddedInput,
        tensor::{DataType, Tensor, TensorSpec},
    };
    use std::sync::Arc;

    /// Yields its input, and refuses what is longer than `most`.
    #[derive(Debug)]
    struct Limited {
        fake: Fake,
        most: usize,
    }

    impl Backend for Limited {
        fn signature(&self) -> &Arc<Signature> {
            self.fake.signature()
        }

        fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
            match inputs[0].shape().dims()[1] {
                length if length > self.most => Err(Error::backend("too long")),
                _ => self.fake.run(inputs),
            }
        }
    }

    fn padding(cut: Vec<(usize, usize)>) -> Padding {
        let mut padding = Padding::new(Reach::Worth);
        padding.axes = vec!["seq".into()];
        padding.inputs = vec![PaddedInput { name: "x".into(), axes: vec![(1, 0)], element: vec![0; 8].into() }];
        padding.outputs = vec![cut];
        padding
    }

    /// Measured by a clock of its own: so many seconds for a run and for each element.
    fn measured(most: usize, [run, element]: [f64; 2], mut padding: Padding) -> Result<Padding, String> {
        let spec = |name: &str| TensorSpec { name: name.into(), dtype: Some(DataType::Int64), dims: vec![None, None] };
        let fake = Fake::with_signature(Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] });
        let signature = Arc::clone(fake.signature());
        let mut clock = |_: &mut dyn Backend, inputs: &Tensors| {
            Ok(run + element * inputs[0].shape().elements().unwrap_or_default() as f64)
        };
        let mut backend = Limited { fake, most };
        measure_by(&mut clock, &mut backend, &signature, &mut padding).map(|()| padding)
    }

    fn worth_of(most: usize, cost: [f64; 2]) -> usize {
        measured(most, cost, padding(vec![(1, 0)])).unwrap().worth()
    }

    #[test]
    fn a_run_is_worth_half_of_what_it_costs_by_itself() {
        assert_eq!(worth_of(1000, [1.0, 0.125]), 4);
        assert_eq!(worth_of(1000, [0.0, 0.125]), 0, "nothing is saved");
        assert!(worth_of(1000, [1.0, 0.0]) > 1 << 30, "elements that cost nothing");
        let mut fixed = padding(vec![(1, 0)]);
        fixed.rows = Some(2);
        // 1 + 2 × 16 × 0.125 seconds are saved, and each column costs 0.25.
        assert_eq!(measured(1000, [1.0, 0.125], fixed).unwrap().worth(), 10);
    }

    #[test]
    fn shorter_ones_are_tried_where_a_model_takes_no_others() {
        assert_eq!(worth_of(16, [1.0, 0.125]), 4);
        let refused = measured(1, [1.0, 0.125], padding(vec![(1, 0)])).unwrap();
        assert_eq!((refused.reach.clone(), refused.worth()), (UNMEASURED, 0));
    }

    #[test]
    fn what_is_configured_is_not_measured() {
        let mut configured = padding(vec![(1, 0)]);
        configured.reach = Reach::Ratio(200);
        let measured = measured(1000, [1.0, 0.125], configured).unwrap();
        assert_eq!((measured.reach.clone(), measured.worth()), (Reach::Ratio(200), 0));
    }

    /// Yields its input with its second and third axes in each other's place, or as it is.
    #[derive(Debug)]
    struct Swaps {
        fake: Fake,
        swaps: bool,
    }

    impl Backend for Swaps {
        fn signature(&self) -> &Arc<Signature> {
            self.fake.signature()
        }

        fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
            let dims = inputs[0].shape().dims();
            let dims = if self.swaps { [dims[0], dims[2], dims[1]] } else { [dims[0], dims[1], dims[2]] };
            let output = Tensor::new(DataType::Int64, dims.into(), inputs[0].data().clone());
            Ok([output.map_err(|error| Error::backend(error.to_string()))?].into_iter().collect())
        }
    }

    #[test]
    fn axes_that_have_changed_places_are_found_out() {
        let spec =
            |name: &str| TensorSpec { name: name.into(), dtype: Some(DataType::Int64), dims: vec![None, None, None] };
        let measured = |swaps: bool| {
            let fake = Fake::with_signature(Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] });
            let signature = Arc::clone(fake.signature());
            let mut padding = padding(vec![(1, 0), (2, 1)]);
            padding.axes = vec!["a".into(), "b".into()];
            padding.inputs[0].axes = vec![(1, 0), (2, 1)];
            measure(&mut Swaps { fake, swaps }, &signature, &mut padding)
        };
        assert_eq!(measured(false), Ok(()));
        let error = measured(true).unwrap_err();
        assert!(error.starts_with("output `y` is [17, 65] long along `a` where the inputs are [16, 64]"), "{error}");
    }

    #[test]
    fn a_run_takes_time() {
        assert!(
            time(&mut Fake::new(), &[Tensor::of(DataType::Fp32, [1, 4].into(), vec![0_f32; 4]).unwrap()].into())
                .unwrap()
                > 0.0
        );
    }

    #[test]
    fn an_output_that_follows_the_length_by_another_name_is_found_out() {
        let error = measured(1000, [0.0, 0.0], padding(Vec::new())).unwrap_err();
        assert!(error.starts_with("output `y` follows the length of the inputs along axis 1"), "{error}");
    }
}
