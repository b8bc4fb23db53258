//! What a model's configuration says of inputs in which rows lie one behind the other, held against the model.
//!
//! Callers see such a model as any other that runs rows together: an axis of rows, and one of lengths where the model has
//! one for both. The inputs that say where rows are they do not see at all.

use super::{Absent, ModelSettings, RaggedSettings, declared, shapes::Shapes};
use crate::{
    schedule::{
        Layout, Ragged,
        ragged::{Made, RaggedInput, Source},
    },
    tensor::{AxisNames, Marks, Signature, TensorSpec},
};
use std::sync::Arc;

/// What is found out about the inputs and outputs of a model.
struct Reader<'a> {
    settings: &'a ModelSettings,
    found: &'a Signature,
    names: &'a AxisNames,
    axes: Vec<Arc<str>>,
    /// The axis of each input in which rows lie one behind the other.
    ragged: Vec<Option<usize>>,
    /// What is made for an input that no call sends.
    made: Vec<Option<Made>>,
    outputs: Vec<Option<usize>>,
}

/// As [`super::shapes::shapes`], for a model with ragged inputs.
pub(super) fn shapes(settings: &ModelSettings, found: &Signature, names: &AxisNames) -> Result<Shapes, String> {
    combined(settings)?;
    let nothing = |count: usize| vec![None; count];
    let mut reader = Reader {
        settings,
        found,
        names,
        axes: Vec::new(),
        ragged: nothing(found.inputs.len()),
        made: vec![None; found.inputs.len()],
        outputs: nothing(found.outputs.len()),
    };
    reader.inputs()?;
    reader.outputs()?;
    let (signature, ragged) = (reader.signature()?, reader.layout()?);
    let lines = told(&ragged, &signature);
    let layout = Some(Layout::Ragged(ragged));
    Ok(Shapes { signature: Arc::new(signature), layout, absent: Absent::default(), lines })
}

/// What cannot be said besides.
fn combined(settings: &ModelSettings) -> Result<(), String> {
    let padded =
        |(_, input): &&(Arc<str>, super::InputSettings)| input.pad.is_some() || input.mask.is_some() || input.optional;
    if let Some((name, _)) = settings.inputs.iter().find(padded) {
        return Err(format!(
            "`inputs.{name}`: `pad`, `mask` and `optional` are not for a model with `ragged`, where nothing is filled up"
        ));
    }
    if settings.fixed_rows {
        return Err(
            "`batching.rows: fixed` is not for a model with `ragged`, whose runs have any number of rows".to_owned()
        );
    }
    if settings.batching.enabled == Some(false) {
        return Err(
            "`batching.enabled: false` is not for a model with `ragged`; with `batching.max_rows: 1` calls run one by one"
                .to_owned(),
        );
    }
    Ok(())
}

impl Reader<'_> {
    fn inputs(&mut self) -> Result<(), String> {
        for (name, settings) in &self.settings.inputs {
            let key = format!("`inputs.{name}.ragged`");
            let at = place(&key, "input", name, &self.found.inputs)?;
            let Some(RaggedSettings { made, outputs: _ }) = &settings.ragged else { continue };
            let spec = &self.found.inputs[at];
            if !spec.has_free_rows() {
                let shape = declared::shape(spec);
                return Err(format!("{key}: `{name}` has shape {shape}, expected a free first dimension"));
            }
            let axis = self.axis(at);
            self.ragged[at] = Some(axis);
            for (what, target) in made {
                self.make(&format!("`inputs.{name}.ragged.{}`", what.name()), axis, *what, target)?;
            }
        }
        // Whoever has the same axis lies along it.
        for at in 0..self.found.inputs.len() {
            let known = self.names.input(at, 0).and_then(|name| self.axes.iter().position(|axis| axis == name));
            let Some(axis) = known else { continue };
            if let Some(made) = &self.made[at] {
                let (name, axis) = (&made.name, &self.axes[axis]);
                return Err(format!(
                    "`inputs`: `{name}` has the axis `{axis}` of a ragged input, so it cannot say where its rows are"
                ));
            }
            self.ragged[at] = Some(axis);
        }
        Ok(())
    }

    /// The axis along which rows of the input at this place lie: one that has no name is its own.
    fn axis(&mut self, at: usize) -> usize {
        let name = self.names.input(at, 0).unwrap_or(&self.found.inputs[at].name);
        self.axes.iter().position(|axis| axis == name).unwrap_or_else(|| {
            self.axes.push(Arc::clone(name));
            self.axes.len() - 1
        })
    }

    fn make(&mut self, key: &str, axis: usize, what: Marks, target: &str) -> Result<(), String> {
        let at = place(key, "input", target, &self.found.inputs)?;
        let spec = &self.found.inputs[at];
        let dtype = spec.dtype.filter(|dtype| Marks::most(*dtype) > 0);
        let (Some(dtype), [None]) = (dtype, &*spec.dims) else {
            let (dtype, shape) = (spec.dtype_name(), declared::shape(spec));
            let types: Vec<_> = Marks::TYPES.iter().map(|(dtype, _)| dtype.name()).collect();
            return Err(format!(
                "{key}: `{target}` is {dtype} of shape {shape}, expected {} of shape [-1]",
                types.join(" or ")
            ));
        };
        if self.settings.inputs.iter().any(|(name, _)| **name == *target) {
            return Err(format!("{key}: `{target}` is made of the lengths, and something else is said of it too"));
        }
        match self.made[at].replace(Made { name: Arc::clone(&spec.name), axis, what, dtype }) {
            Some(_) => Err(format!("{key}: `{target}` is made of the lengths twice")),
            None => Ok(()),
        }
    }

    fn outputs(&mut self) -> Result<(), String> {
        for at in 0..self.found.outputs.len() {
            self.outputs[at] = self.names.output(at, 0).and_then(|name| self.axes.iter().position(|axis| axis == name));
        }
        for (name, settings) in &self.settings.inputs {
            let Some(ragged) = &settings.ragged else { continue };
            let key = format!("`inputs.{name}.ragged.outputs`");
            let input = place(&key, "input", name, &self.found.inputs)?;
            for output in &ragged.outputs {
                let at = place(&key, "output", output, &self.found.outputs)?;
                let axis = self.ragged[input];
                if self.outputs[at].is_some() && self.outputs[at] != axis {
                    return Err(format!("{key}: `{output}` follows another ragged input too"));
                }
                self.outputs[at] = axis;
            }
        }
        match self.found.outputs.iter().find(|spec| !spec.has_free_rows()) {
            Some(spec) => Err(rowless(spec)),
            None => Ok(()),
        }
    }

    /// The model as its callers see it.
    fn signature(&self) -> Result<Signature, String> {
        let seen = |spec: &TensorSpec, axis: Option<usize>| {
            let mut spec = spec.clone();
            if axis.is_some() {
                spec.dims.insert(1, None);
            }
            spec
        };
        let mut signature = Signature::default();
        for (at, spec) in self.found.inputs.iter().enumerate().filter(|(at, _)| self.made[*at].is_none()) {
            if !spec.has_free_rows() {
                return Err(rowless(spec));
            }
            signature.inputs.push(seen(spec, self.ragged[at]));
        }
        signature.outputs =
            self.found.outputs.iter().zip(&self.outputs).map(|(spec, axis)| seen(spec, *axis)).collect();
        Ok(signature)
    }

    fn layout(self) -> Result<Ragged, String> {
        let Self { settings, found, axes, ragged, made, outputs, .. } = self;
        let most = made.iter().flatten().map(|made| Marks::most(made.dtype)).min().unwrap_or(usize::MAX);
        let max_elements = match settings.batching.max_elements {
            Some(elements) if elements > most => {
                return Err(format!(
                    "`batching.max_elements` is {elements}, and what is made of the lengths has numbers up to {most}"
                ));
            }
            _ => settings.batching.elements().min(most),
        };
        let (mut inputs, mut run) = (Vec::new(), Vec::new());
        for ((spec, axis), made) in found.inputs.iter().zip(ragged).zip(made) {
            run.push(made.map_or(Source::Sent(inputs.len()), Source::Made));
            if let Some(Source::Sent(_)) = run.last() {
                inputs.push(RaggedInput { name: Arc::clone(&spec.name), axis });
            }
        }
        Ok(Ragged { axes, inputs, run, outputs, max_elements })
    }
}

impl Ragged {
    /// What a `config.pbtxt` may speak of: the model as callers see it, and the inputs that they do not, which `found` has.
    pub(super) fn declared(&self, seen: &Signature, found: &Signature) -> Signature {
        let made = self.made().filter_map(|made| found.inputs.iter().find(|spec| spec.name == made.name));
        Signature { inputs: seen.inputs.iter().chain(made).cloned().collect(), outputs: seen.outputs.clone() }
    }
}

/// What is wrong with an output, found out by running the model, that does not follow what it should.
pub(super) fn stray(ragged: &Ragged, signature: &Signature, output: usize) -> String {
    let name = signature.outputs.get(output).map_or("", |spec| &spec.name);
    match ragged.outputs.get(output).copied().flatten() {
        Some(axis) => {
            let axis = &ragged.axes[axis];
            format!(
                "output `{name}` does not have an element for each of the inputs' along `{axis}`, so it cannot be cut apart"
            )
        }
        None => format!(
            "output `{name}` does not have one row for each row of the inputs, so it cannot be cut apart; if it has an \
             element for each of a ragged input's, name it in `outputs` of that input's `ragged`"
        ),
    }
}

fn rowless(spec: &TensorSpec) -> String {
    let shape = declared::shape(spec);
    format!("`inputs.*.ragged`: `{}` has shape {shape}, expected a free first dimension", spec.name)
}

/// Where a tensor of this name is.
fn place(key: &str, what: &str, name: &str, specs: &[TensorSpec]) -> Result<usize, String> {
    specs.iter().position(|spec| *spec.name == *name).ok_or_else(|| {
        let names: Vec<_> = specs.iter().map(|spec| format!("`{}`", spec.name)).collect();
        format!("{key}: the model has no {what} `{name}`; it has {}", names.join(", "))
    })
}

/// What is done, for those who run `check`.
fn told(ragged: &Ragged, signature: &Signature) -> Vec<String> {
    let along = |axis: usize| {
        let inputs = ragged.inputs.iter().filter(|input| input.axis == Some(axis));
        inputs.map(|input| format!("`{}`", input.name)).collect::<Vec<_>>().join(", ")
    };
    let mut lines: Vec<_> = (0..ragged.axes.len())
        .map(|axis| {
            let (inputs, most) = (along(axis), ragged.max_elements);
            format!("{inputs}: rows of any lengths run together, one behind the other, up to {most} elements")
        })
        .collect();
    lines.extend(ragged.made().map(|made| {
        let says = match made.what {
            Marks::Counts => "how long each row is",
            Marks::Starts => "where each row begins",
            Marks::Ends => "where each row ends",
            Marks::Bounds => "where each row begins, and where the last one ends",
        };
        format!("`{}` is not sent: it says {says} in {}", made.name, along(made.axis))
    }));
    lines.extend(signature.outputs.iter().zip(&ragged.outputs).map(|(spec, axis)| match axis {
        Some(axis) => format!("`{}` is cut by the lengths of {}", spec.name, along(*axis)),
        None => format!("`{}` has one row for each row", spec.name),
    }));
    lines
}

#[cfg(test)]
#[path = "ragged_tests.rs"]
mod tests;
