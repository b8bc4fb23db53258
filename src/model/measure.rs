//! Warms a model up and finds out how long it runs.
//!
//! The inputs are zeros in the smallest shape that the signature allows. What is measured decides
//! whether a model runs on lanes, and how many rows it may take there.

use super::{Fill, compare::is_alike, samples};
use crate::{
    backend::Backend,
    error::Error,
    schedule::{Ragged, TurnSettings},
    tensor::{Shape, Signature, Tensors, batch},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Runs before time is taken: the first ones allocate arenas and fault pages in.
const WARM: usize = 3;

/// Runs of which the median is taken.
const SAMPLES: usize = 9;

/// No more samples after this: a slow model need not be measured precisely, and whoever waits for it waits for that too.
const PATIENCE: Duration = Duration::from_millis(5);

/// How far rows may be from what they are alone, as a share of the largest number. Sums in another order differ by a millionth; what is
/// quantised while it runs is rounded by the largest number of all rows, which is a hundredth or two.
const ROUNDING: f64 = 0.05;

/// What running a model has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Measured {
    /// The median of single runs; absent if zeros are not good enough for the model.
    pub(super) run: Option<Duration>,
    /// Most rows of a batch that stays below the turn budget, at least 1.
    pub(super) max_rows: usize,
    /// The elements of ragged inputs in such a batch; `None` where there are none.
    pub(super) max_elements: Option<usize>,
    /// An output whose rows are not those of the inputs: such a model must not be batched.
    pub(super) stray: Option<usize>,
    /// Rows that run together are answered otherwise than each alone: such a model must not be batched either.
    pub(super) mixed: bool,
    /// The medians of runs by their size, which is rows or elements of ragged inputs: what is known of the cost of batches
    /// before there are calls.
    pub(super) costs: Vec<(usize, Duration)>,
}

/// What rows look like on which a model is run.
#[derive(Clone, Copy, Debug)]
enum Rows<'a> {
    /// As small as the model's signature allows.
    Least,
    /// So long, of ragged inputs of a model with this signature for its callers.
    Ragged { signature: &'a Signature, ragged: &'a Ragged, length: usize },
}

/// Runs the model a few times. `max_rows` above 1 says that batches are wanted.
///
/// A run that fails is no error: what zeros in the smallest shape do to a model says little about
/// real inputs. It is then not measured.
pub(super) fn measure(backend: &mut dyn Backend, max_rows: usize, turn: &TurnSettings) -> Measured {
    measure_rows(backend, Rows::Least, max_rows, turn)
}

/// The same for a model with ragged inputs: on rows of the length of which a full batch has as many elements as it may have,
/// or on shorter ones if the model does not take those. `signature` is the model's as callers see it.
pub(super) fn measure_ragged(
    backend: &mut dyn Backend,
    signature: &Signature,
    ragged: &Ragged,
    max_rows: usize,
    turn: &TurnSettings,
) -> Measured {
    // Two at least, so that elements can be told from rows.
    let rows = max_rows.max(1) * ragged.axes.len().max(1);
    let longest = (ragged.max_elements / rows).clamp(2, super::spec::ELEMENTS);
    let mut measured = Measured::default();
    for length in [longest, longest.min(16), 2] {
        let look = Rows::Ragged { signature, ragged, length };
        measured = measure_rows(backend, look, max_rows, turn);
        measured.max_elements = Some(look.size(measured.max_rows));
        if measured.run.is_some() {
            break;
        }
    }
    measured
}

fn measure_rows(backend: &mut dyn Backend, look: Rows<'_>, max_rows: usize, turn: &TurnSettings) -> Measured {
    let mut measured = Measured { max_rows: 1, ..Measured::default() };
    let Ok(run) = median(backend, look, 1) else { return measured };
    measured.run = Some(run);
    measured.costs.push((look.size(1), run));
    if max_rows < 2 && matches!(look, Rows::Least) {
        return measured;
    }
    measured.stray = look.stray_output(backend);
    measured.mixed = measured.stray.is_none() && matches!(look, Rows::Least) && mixes_rows(backend).unwrap_or(false);
    if measured.stray.is_some() || measured.mixed || run > turn.run {
        return measured;
    }
    let mut rows = 2;
    while measured.max_rows < max_rows {
        rows = rows.min(max_rows);
        let Ok(took) = median(backend, look, rows) else { break };
        measured.costs.push((look.size(rows), took));
        if took > turn.budget {
            break;
        }
        measured.max_rows = rows;
        rows *= 2;
    }
    measured
}

/// Runs a model on zeros of one row, and where there is time of two and of three: all that loading it does to it.
///
/// # Errors
///
/// The first run's; it says little, see [`measure`].
pub fn run_on_zeros(backend: &mut dyn Backend) -> Result<(), Error> {
    let began = Instant::now();
    run(backend, 1)?;
    for rows in 2..=3 {
        if began.elapsed() < PATIENCE {
            let _ = run(backend, rows);
        }
    }
    Ok(())
}

// === impl Rows ===

impl Rows<'_> {
    /// What the cost of so many rows goes with.
    fn size(self, rows: usize) -> usize {
        match self {
            Self::Least => rows,
            Self::Ragged { ragged, length, .. } => rows * length * ragged.axes.len(),
        }
    }

    /// So many rows as a run takes them.
    fn inputs(self, backend: &dyn Backend, rows: usize) -> Result<Tensors, Error> {
        match self {
            Self::Least => zeros(backend.signature(), rows, 1),
            Self::Ragged { signature, ragged, length } => ragged.alone(&zeros(signature, rows, length)?),
        }
    }

    /// The first output that does not have as many rows as went in, or elements where it should.
    fn stray_output(self, backend: &mut dyn Backend) -> Option<usize> {
        [2, 3].into_iter().find_map(|rows| match self {
            Self::Least => run(backend, rows).ok()?.iter().position(|output| output.rows() != rows),
            Self::Ragged { signature, ragged, length } => {
                let sent = zeros(signature, rows, length).ok()?;
                ragged.stray(&sent, |inputs| backend.run(inputs)).ok()?
            }
        })
    }
}

/// Whether two rows that differ are answered otherwise together than alone. A model that answers the same row twice in two ways
/// is none of which that could be said, nor one that does not run on what is made up.
fn mixes_rows(backend: &mut dyn Backend) -> Result<bool, Error> {
    let signature = Arc::clone(backend.signature());
    let sent = made(&signature, 2, 1, Fill::Random)?;
    let row = |tensors: &Tensors, row: usize| {
        tensors.iter().map(|it| batch::rows(it, row..row + 1)).collect::<Result<Tensors, _>>()
    };
    let alike = |a: &Tensors, b: &Tensors| a.iter().zip(b).all(|(a, b)| is_alike(a, b, ROUNDING));
    let together = backend.run(&sent)?;
    for at in 0..2 {
        let one = row(&sent, at)?;
        let alone = backend.run(&one)?;
        if !row(&together, at).is_ok_and(|part| alike(&alone, &part)) {
            return Ok(alike(&alone, &backend.run(&one)?));
        }
    }
    Ok(false)
}

fn median(backend: &mut dyn Backend, look: Rows<'_>, rows: usize) -> Result<Duration, Error> {
    let inputs = look.inputs(backend, rows)?;
    let begun = Instant::now();
    let mut samples = Vec::with_capacity(SAMPLES);
    for round in 0..WARM + SAMPLES {
        let started = Instant::now();
        backend.run(&inputs)?;
        let took = started.elapsed();
        // The very first run is never a sample: it may be many times slower than the rest.
        let out_of_patience = round > 0 && begun.elapsed() > PATIENCE;
        if round >= WARM || out_of_patience {
            samples.push(took);
        }
        if out_of_patience {
            break;
        }
    }
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().ok_or_else(|| Error::internal("nothing was measured"))
}

fn run(backend: &mut dyn Backend, rows: usize) -> Result<Tensors, Error> {
    let inputs = zeros(backend.signature(), rows, 1)?;
    backend.run(&inputs)
}

fn zeros(signature: &Signature, rows: usize, length: usize) -> Result<Tensors, Error> {
    made(signature, rows, length, Fill::Zeros)
}

/// Something for every input: `rows` in a free first dimension, `length` in a free second one, 1 in every other free one.
fn made(signature: &Signature, rows: usize, length: usize, fill: Fill) -> Result<Tensors, Error> {
    let one = |(seed, spec): (u64, &crate::tensor::TensorSpec)| {
        let dtype = spec.dtype.ok_or_else(|| Error::internal("a type without a name"))?;
        let dims = spec.dims.iter().enumerate();
        let shape = Shape::new(dims.map(|(axis, dim)| dim.unwrap_or([rows, length].get(axis).copied().unwrap_or(1))));
        samples::made(dtype, shape, fill, seed).map_err(Error::internal)
    };
    (1..).zip(&signature.inputs).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        schedule::testing::{self, Fault, Script},
        tensor::{DataType, TensorSpec},
    };

    /// Settings that a model in a debug build on a busy machine meets.
    const LAX: TurnSettings = TurnSettings {
        run: Duration::from_secs(9),
        budget: Duration::from_secs(9),
        weights: 1 << 20,
        limit: Duration::from_secs(9),
    };

    #[test]
    fn a_fast_model_may_take_all_rows() {
        let measured = measure(&mut *testing::backend(&Script::default()), 24, &LAX);
        assert!(measured.run.is_some());
        assert_eq!((measured.max_rows, measured.stray), (24, None));
        let sizes: Vec<_> = measured.costs.iter().map(|cost| cost.0).collect();
        assert_eq!(sizes, [1, 2, 4, 8, 16, 24]);
    }

    #[test]
    fn rows_are_capped_by_the_budget() {
        let turn = TurnSettings { budget: Duration::ZERO, ..LAX };
        assert_eq!(measure(&mut *testing::backend(&Script::default()), 24, &turn).max_rows, 1);
    }

    #[test]
    fn outputs_that_do_not_follow_the_rows_are_noticed() {
        let script = Script::default();
        script.set(Fault::ExtraRow);
        assert_eq!(measure(&mut *testing::backend(&script), 24, &LAX).stray, Some(0));
    }

    #[test]
    fn rows_that_depend_on_each_other_are_noticed() {
        let script = Script::default();
        assert!(!measure(&mut *testing::backend(&script), 24, &LAX).mixed);
        script.set(Fault::Reversed);
        let measured = measure(&mut *testing::backend(&script), 24, &LAX);
        assert_eq!((measured.mixed, measured.max_rows, measured.stray), (true, 1, None));
        assert!(!measure(&mut *testing::backend(&script), 1, &LAX).mixed, "nobody wants batches");
    }

    #[test]
    fn a_model_that_refuses_zeros_is_not_measured() {
        let script = Script::default();
        script.fail_on(0.0);
        assert_eq!(measure(&mut *testing::backend(&script), 24, &LAX).run, None);
    }

    #[test]
    fn zeros_fit_every_type_and_shape() {
        let specs = DataType::ALL.map(|dtype| TensorSpec {
            name: dtype.name().into(),
            dtype: Some(dtype),
            dims: vec![None, Some(3), None],
        });
        let signature = Signature { inputs: specs.into(), outputs: Vec::new() };
        for tensor in zeros(&signature, 2, 1).unwrap() {
            assert_eq!(tensor.shape().dims(), [2, 3, 1]);
        }
    }
}
