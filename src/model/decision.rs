//! How a model is going to run: with batches or without, on lanes or on threads. What is configured is held against what the
//! model is and what was measured of it.

use super::{
    ModelSettings, declared, measure::Measured, ragged, scan::Found, shapes::Shapes, spec::ELEMENTS, workshop::Workshop,
};
use crate::{
    backend::Backend,
    schedule::Execution,
    tensor::{DataType, Signature},
};

/// How a model is going to run, once it has been measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) batches: bool,
    /// Rows that run together are answered otherwise than each alone.
    pub(super) mixed: bool,
    /// Most rows of a batch on a lane; `None`: threads.
    pub(super) turn_rows: Option<usize>,
    /// Most elements of ragged inputs in such a batch; of other models its rows.
    pub(super) turn_elements: usize,
    /// Why it runs where it runs, for operators.
    pub(super) why: &'static str,
}

// === impl Workshop ===

impl Workshop {
    /// Holds what is configured of a model's batches and place against what it is and how it ran; `shapes` are the model's
    /// as callers see them.
    ///
    /// # Errors
    ///
    /// For operators, in plain words: what is asked for and cannot be.
    pub(super) fn decide(
        &self,
        found: &Found,
        backend: &dyn Backend,
        shapes: &Shapes,
        measured: &Measured,
    ) -> Result<Decision, String> {
        let settings = &found.settings;
        let turn = &self.settings.turn;
        let signature = &*shapes.signature;
        if let Some(ragged) = shapes.ragged() {
            if backend.is_decoupled() {
                return Err("`inputs.*.ragged` is not for a model that answers with streams".to_owned());
            }
            if let Some(output) = measured.stray {
                return Err(ragged::stray(ragged, signature, output));
            }
        }
        if settings.batching.enabled == Some(true) {
            check_rows(settings, signature)?;
            if !signature.is_batchable() || backend.is_decoupled() {
                return Err(format!("{BATCHING}, and the model has no inputs or answers with streams"));
            }
            if let Some(output) = measured.stray.and_then(|index| signature.outputs.get(index)) {
                return Err(format!("{BATCHING}: output `{}` does not follow the rows of the inputs", output.name));
            }
        }
        // Who asks for batches in so many words has them: some answers are meant to depend on the company.
        let is_mixed = measured.mixed && settings.batching.enabled != Some(true);
        let batches =
            may_batch(settings, signature) && measured.stray.is_none() && !is_mixed && !backend.is_decoupled();
        let (on_lanes, why) = match settings.execution {
            Execution::Thread => (false, "`execution` says so"),
            Execution::Turn if settings.batching.preserve_order => {
                return Err(
                    "`batching.preserve_order` is not for `execution: turn`: each lane answers by itself".to_owned()
                );
            }
            Execution::Turn if self.lanes == 0 => {
                return Err("`execution: turn` needs `runtime.kind: lanes`".to_owned());
            }
            Execution::Turn if backend.is_decoupled() => return Err("`execution: turn` is not for streams".to_owned()),
            Execution::Turn => (true, "`execution` says so"),
            Execution::Auto if self.lanes == 0 => (false, "there are no lanes"),
            Execution::Auto if settings.batching.preserve_order => (false, "`batching.preserve_order` is asked for"),
            Execution::Auto if backend.is_decoupled() => (false, "it answers with streams"),
            Execution::Auto if !is_cpu_only(settings) => (false, "not the CPU alone runs it"),
            Execution::Auto if found.bytes.max(backend.weight_bytes()) > turn.weights => {
                (false, "its weights are above `runtime.turn.weights`")
            }
            Execution::Auto if backend.grows_with_values() => {
                (false, "how long it runs may depend on the values of its inputs")
            }
            Execution::Auto => match measured.run {
                Some(run) if run <= turn.run => (true, "a run takes no longer than `runtime.turn.run`"),
                Some(_) => (false, "a run takes longer than `runtime.turn.run`"),
                None => (false, "its run was not measured"),
            },
        };
        let turn_rows = on_lanes.then_some(measured.max_rows);
        let turn_elements = match (measured.max_elements, measured.run) {
            (Some(elements), Some(_)) => elements,
            // As many as a row may be expected to have.
            _ if shapes.ragged().is_some() => ELEMENTS,
            _ => measured.max_rows,
        };
        Ok(Decision { batches, mixed: measured.mixed, turn_rows, turn_elements, why })
    }
}

pub(super) fn is_cpu_only(settings: &ModelSettings) -> bool {
    settings.session(1, 1).is_cpu_only()
}

/// How batching is asked for, in messages.
const BATCHING: &str = "batching is asked for (`batching.enabled`, or `max_batch_size` in a model configuration)";

/// Where batching is asked for, every first dimension must be free to count rows.
///
/// # Errors
///
/// For operators, in plain words: the tensor whose first dimension is not.
pub(super) fn check_rows(settings: &ModelSettings, signature: &Signature) -> Result<(), String> {
    let mut specs = signature.inputs.iter().chain(&signature.outputs);
    match specs.find(|spec| settings.batching.enabled == Some(true) && !spec.has_free_rows()) {
        Some(spec) => {
            let found = declared::shape(spec);
            Err(format!("{BATCHING}: `{}` has shape {found}, expected a free first dimension", spec.name))
        }
        None => Ok(()),
    }
}

/// Whether rows of several calls may run together, before the model was run.
pub(super) fn may_batch(settings: &ModelSettings, signature: &Signature) -> bool {
    // Whoever asks for batches of one row wants the first dimension to count rows, as Triton's clients then expect.
    settings.batching.enabled.unwrap_or(settings.fixed_rows || settings.is_ragged() || settings.batching.max_rows > 1)
        && signature.is_batchable()
}

/// Whether all rows have one shape, so that their number alone says what a batch costs.
pub(super) fn is_even(signature: &Signature) -> bool {
    let is_fixed = |dims: &[Option<usize>]| dims.iter().skip(1).all(Option::is_some);
    signature.inputs.iter().all(|spec| spec.dtype != Some(DataType::Bytes) && is_fixed(&spec.dims))
}
