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

/// Runs of which the median is taken, after one that warms up.
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
    if padding.axes.is_empty() {
        return Ok(());
    }
    let inputs = |rows: usize, length: usize| zeros(signature, padding, padding.rows.unwrap_or(rows), length);
    for [short, long] in LENGTHS {
        let (Ok(one), Ok(other)) = (inputs(1, short), inputs(1, long)) else { continue };
        let (Ok(small), Ok(large)) = (backend.run(&one), backend.run(&other)) else { continue };
        follows(signature, padding, [(short, &small), (long, &large)])?;
        if padding.reach != Reach::Worth {
            return Ok(());
        }
        let mut time = |inputs: Result<Tensors, Error>| time(backend, &inputs?);
        let both = || inputs(2, short);
        let (Ok(one), Ok(two), Ok(longer)) = (time(Ok(one)), time(both()), time(Ok(other))) else { continue };
        let volume = |length: usize| length.pow(padding.axes.len().min(4) as u32) as f64;
        // A run that has its rows whatever comes is saved whole.
        let saved = if padding.rows.is_some() { one } else { 2.0 * one - two };
        let element = (longer - one) / (volume(long) - volume(short));
        padding.set_worth(worth(saved, element));
        return Ok(());
    }
    padding.reach = if padding.reach == Reach::Worth { UNMEASURED } else { padding.reach.clone() };
    Ok(())
}

/// How many elements may be added to save a run: half of what the run would pay for. Large batches cost more for each
/// element than these small ones do, because they leave the caches.
fn worth(saved: f64, element: f64) -> usize {
    // To what costs nothing that could be measured, all may be added; the conversion saturates.
    let elements = saved.max(0.0) / element.max(1e-12) / 2.0;
    elements as usize
}

/// Zeros for every input, `length` long along the axes that are filled up.
fn zeros(signature: &Signature, padding: &Padding, rows: usize, length: usize) -> Result<Tensors, Error> {
    let zero = |(input, spec): (&crate::schedule::padding::PaddedInput, &crate::tensor::TensorSpec)| {
        let dim = |(axis, dim): (usize, &Option<usize>)| match dim {
            _ if axis == 0 => rows,
            _ if input.axes.iter().any(|(padded, _)| *padded == axis) => length,
            dim => dim.unwrap_or(1),
        };
        let shape = Shape::new(spec.dims.iter().enumerate().map(dim));
        samples::made(spec.known_dtype()?, shape, Fill::Zeros, 0).map_err(Error::internal)
    };
    padding.inputs.iter().zip(&signature.inputs).map(zero).collect()
}

/// Seconds of a run, the median.
fn time(backend: &mut dyn Backend, inputs: &Tensors) -> Result<f64, Error> {
    backend.run(inputs)?;
    let begun = Instant::now();
    let mut samples = Vec::with_capacity(SAMPLES);
    while samples.is_empty() || (samples.len() < SAMPLES && begun.elapsed() < PATIENCE) {
        let started = Instant::now();
        backend.run(inputs)?;
        samples.push(started.elapsed().as_secs_f64());
    }
    samples.sort_unstable_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().ok_or_else(|| Error::internal("nothing was measured"))
}

/// Whether every output is as long as the inputs where it is cut back, and does not depend on them anywhere else.
fn follows(signature: &Signature, padding: &Padding, runs: [(usize, &Tensors); 2]) -> Result<(), String> {
    for (at, (axes, spec)) in padding.outputs.iter().zip(&signature.outputs).enumerate() {
        let dims = runs.map(|(_, outputs)| outputs.get(at).map_or(&[][..], |output| output.shape().dims()));
        for axis in 1..spec.dims.len() {
            let found = dims.map(|dims| dims.get(axis).copied().unwrap_or_default());
            let name = &spec.name;
            match axes.iter().find(|(cut, _)| *cut == axis) {
                Some((_, place)) if found != runs.map(|(length, _)| length) => {
                    let (axis, lengths) = (&padding.axes[*place], runs.map(|(length, _)| length));
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

    /// Yields its input and takes so many microseconds for a run and for each element; refuses what is longer than `most`.
    #[derive(Debug)]
    struct Timed {
        fake: Fake,
        run: u64,
        element: u64,
        most: usize,
    }

    impl Backend for Timed {
        fn signature(&self) -> &Arc<Signature> {
            self.fake.signature()
        }

        fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
            let dims = inputs[0].shape().dims();
            if dims[1] > self.most {
                return Err(Error::backend("too long"));
            }
            let until = Instant::now() + Duration::from_micros(self.run + self.element * (dims[0] * dims[1]) as u64);
            while Instant::now() < until {}
            self.fake.run(inputs)
        }
    }

    fn timed(run: u64, element: u64, most: usize) -> Timed {
        let spec = |name: &str| TensorSpec { name: name.into(), dtype: Some(DataType::Int64), dims: vec![None, None] };
        let fake = Fake::with_signature(Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] });
        Timed { fake, run, element, most }
    }

    fn padding(cut: Vec<(usize, usize)>) -> Padding {
        let mut padding = Padding::new(Reach::Worth);
        padding.axes = vec!["seq".into()];
        padding.inputs = vec![PaddedInput { name: "x".into(), axes: vec![(1, 0)], element: vec![0; 8].into() }];
        padding.outputs = vec![cut];
        padding
    }

    fn measured(mut backend: Timed, cut: Vec<(usize, usize)>) -> Result<Padding, String> {
        let mut padding = padding(cut);
        let signature = Arc::clone(backend.signature());
        measure(&mut backend, &signature, &mut padding).map(|()| padding)
    }

    #[test]
    fn a_run_is_worth_what_it_costs_by_itself() {
        // 2 ms a run and 20 µs an element: a hundred, and half of them are given. Wide bounds, for busy machines.
        let worth = measured(timed(2000, 20, 1000), vec![(1, 0)]).unwrap().worth();
        assert!((10..=250).contains(&worth), "{worth}");
        assert_eq!([worth_of(1.0, 0.1), worth_of(-1.0, 0.1)], [5, 0]);
        assert!(worth_of(1.0, 0.0) > 1 << 30, "elements that cost nothing");
    }

    fn worth_of(saved: f64, element: f64) -> usize {
        super::worth(saved, element)
    }

    #[test]
    fn shorter_ones_are_tried_where_a_model_takes_no_others() {
        assert!(measured(timed(2000, 1, 16), vec![(1, 0)]).unwrap().worth() > 0);
        let refused = measured(timed(0, 0, 1), vec![(1, 0)]).unwrap();
        assert_eq!((refused.reach.clone(), refused.worth()), (UNMEASURED, 0));
    }

    #[test]
    fn an_output_that_follows_the_length_by_another_name_is_found_out() {
        let error = measured(timed(0, 0, 1000), Vec::new()).unwrap_err();
        assert!(error.starts_with("output `y` follows the length of the inputs along axis 1"), "{error}");
    }
}
