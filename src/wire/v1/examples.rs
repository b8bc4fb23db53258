//! Classification and regression of examples (contract 03 section 7).
//!
//! An example is an object of features, and a feature is a value or a flat list. That fits a model whose every input takes
//! one feature for each example, and which answers one row of scores, or one number, for each; others are told why not.

use super::{
    NUMBERS,
    column::{Column, Place},
    request::{OWN, array, beside, inputs},
    response::{Writer, finite},
};
use crate::{
    call::{Expected, Labels, NamedTensor},
    error::Error,
    tensor::{DataType, Signature, TensorSpec},
    wire::{
        Settings,
        json::{Reader, twice, write_list, write_string},
    },
};
use bytes::Bytes;

/// What is asked about examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// A list of labels with their scores for each.
    Classify,
    /// A number for each.
    Regress,
}

/// What `context` may make of a body, in bytes of tensors for each byte of text: an element takes two bytes of text at
/// least and eight of memory at most, and what stands once and counts for every example must not be cheaper than that.
const GROWTH: usize = 4;
/// The same is never less than this.
const LEAST: usize = 64 * 1024;

/// Decodes a request to `:classify` or `:regress`: its tensors, and the labels of the classes that the answer names.
///
/// # Errors
///
/// [`Error::Unimplemented`] with the reason if the model is none for `task`; else as
/// [`decode_predict`](super::decode_predict).
pub fn decode_examples(
    body: &[u8],
    expected: &Expected,
    task: Task,
    settings: &Settings,
) -> Result<(Vec<NamedTensor>, Option<Labels>), Error> {
    let labels = task.check(expected)?;
    let mut reader = Reader::new(body, settings.json_depth)?;
    let (mut context, mut examples, mut signed) = (None, None, false);
    let mut members = reader.object()?;
    while let Some(member) = reader.member(&mut members)? {
        let place = match &*member {
            "context" => &mut context,
            "examples" => &mut examples,
            _ => {
                beside(&mut reader, &members, member, &mut signed)?;
                continue;
            }
        };
        reader.peek();
        if place.replace(reader.position()).is_some() {
            return Err(twice(&member));
        }
        reader.skip_with(&NUMBERS)?;
    }
    reader.end()?;
    let Some(examples) = examples else { return Err(Error::invalid("the request has no `examples`")) };
    let most = body.len().saturating_mul(GROWTH).max(LEAST);
    let tensors = tensors(&mut reader, &expected.signature, context, examples, most, settings)?;
    Ok((tensors, labels))
}

/// Encodes the answer: `{"results": …}`, as the server writes it and the written documentation does not.
///
/// # Errors
///
/// [`Error::InvalidTensor`] for numbers that are not finite, where `json.non_finite` refuses them, and for an output
/// that is not one row, or one number, for each example.
pub fn encode_results(
    outputs: &[NamedTensor],
    task: Task,
    labels: Option<&Labels>,
    settings: &Settings,
) -> Result<Bytes, Error> {
    let [NamedTensor { name, tensor }] = outputs else { return Err(Error::internal("a task has one output")) };
    let dims = tensor.shape().dims();
    let mut writer = Writer::of(name, tensor, settings);
    let mut out = Vec::with_capacity(64 + tensor.data().len() * 4);
    out.extend_from_slice(b"{\"results\":");
    match (task, dims) {
        (Task::Classify, [rows, classes]) => write_list(&mut out, 0..*rows, |out, _| {
            write_list(out, 0..*classes, |out, class| {
                out.push(b'[');
                match labels.and_then(|labels| labels.get(class)) {
                    Some(label) => write_string(out, label),
                    // A class beyond the labels is called by its number.
                    None => write_string(out, &class.to_string()),
                }
                out.push(b',');
                writer.value(out, &[]);
                out.push(b']');
            });
        }),
        (Task::Regress, [rows] | [rows, 1]) => write_list(&mut out, 0..*rows, |out, _| writer.value(out, &[])),
        _ => {
            let (shape, what) = (tensor.shape(), task.wants());
            return Err(Error::tensor(name.clone(), format!("has shape {shape}, expected {what}")));
        }
    }
    out.push(b'}');
    finite(name, &*writer)?;
    Ok(out.into())
}

// === impl Task ===

impl Task {
    /// Whether a model is one for this task, and the labels that its answer names.
    fn check(self, expected: &Expected) -> Result<Option<Labels>, Error> {
        let Signature { inputs, outputs } = &*expected.signature;
        let verb = match self {
            Self::Classify => ":classify",
            Self::Regress => ":regress",
        };
        let refused =
            |text: String| Err(Error::Unimplemented(format!("`{verb}` is not for this model: {text}").into()));
        if let Some(spec) = inputs.iter().find(|spec| !(1..=2).contains(&spec.dims.len())) {
            let rank = spec.dims.len();
            return refused(format!("input `{}` has {rank} dimensions, expected 1 or 2 (one feature)", spec.name));
        }
        let (false, [output]) = (inputs.is_empty(), outputs.as_slice()) else {
            let (ins, outs) = (inputs.len(), outputs.len());
            return refused(format!("it has {ins} inputs and {outs} outputs, expected some and exactly one"));
        };
        let (name, dtype, what) = (&output.name, output.dtype_name(), self.wants());
        if !self.takes(output) {
            return refused(format!(
                "its output `{name}` is {dtype} with {} dimensions, expected {what}",
                output.dims.len()
            ));
        }
        let labels = expected.labels.first().cloned().flatten();
        if self == Self::Classify && labels.is_none() {
            return refused(format!("the classes of its output `{name}` have no labels"));
        }
        Ok(labels)
    }

    fn takes(self, output: &TensorSpec) -> bool {
        use DataType::{Bf16, Bool, Bytes, Fp16, Fp32, Fp64};
        match (self, output.dtype, output.dims.as_slice()) {
            (Self::Classify, Some(Fp16 | Bf16 | Fp32 | Fp64), [_, _]) => true,
            (Self::Regress, Some(dtype), [_] | [_, Some(1) | None]) => !matches!(dtype, Bool | Bytes),
            _ => false,
        }
    }

    const fn wants(self) -> &'static str {
        match self {
            Self::Classify => "a float and 2 dimensions (a row of scores for each example)",
            Self::Regress => "a number and 1 dimension, or 2 of which the last is 1 (one for each example)",
        }
    }
}

/// Reads the values that lie at these places.
fn tensors(
    reader: &mut Reader<'_>,
    signature: &Signature,
    context: Option<usize>,
    examples: usize,
    most: usize,
    settings: &Settings,
) -> Result<Vec<NamedTensor>, Error> {
    let mut shared = inputs(signature, &OWN, 0)?;
    if let Some(context) = context {
        reader.seek(context);
        features(reader, &mut shared, &|name| Place::Named("context", name), settings)?;
    }
    let mut columns = inputs(signature, &OWN, reader.rest().len())?;
    reader.seek(examples);
    let mut items = array(reader, "examples")?;
    let (mut example, mut repeated) = (0, 0);
    while reader.item(&mut items)? {
        let place = |name| Place::NamedRow("examples", example, name);
        features(reader, &mut columns, &place, settings)?;
        for (column, shared) in columns.iter_mut().zip(&shared) {
            // An example's own feature counts, not the one of all.
            if column.values() > example {
                continue;
            }
            if shared.values() == 0 {
                return Err(Error::invalid(format!("`examples[{example}]` has no `{}`", column.name())));
            }
            repeated += shared.size();
            if repeated > most {
                return Err(Error::invalid(format!("`context` and its copies are larger than {most} bytes")));
            }
            column.repeat(shared, place(column.name()))?;
        }
        example += 1;
    }
    if example == 0 {
        return Err(Error::invalid("`examples` is empty, expected one at least"));
    }
    columns.into_iter().map(Column::finish_features).collect()
}

/// Reads an object of features, each of which is an input.
fn features<'n>(
    reader: &mut Reader<'_>,
    columns: &mut [Column<'n>],
    place: &dyn Fn(&'n str) -> Place<'n>,
    settings: &Settings,
) -> Result<(), Error> {
    let mut members = reader.object()?;
    let before: smallvec::SmallVec<[usize; 8]> = columns.iter().map(Column::values).collect();
    while let Some(member) = reader.member(&mut members)? {
        let Some(at) = columns.iter().position(|column| column.name() == member) else {
            let member: String = member.chars().take(64).collect();
            return Err(Error::invalid(format!("feature `{member}` is no input of the model")));
        };
        let column = &mut columns[at];
        if column.values() > before[at] {
            return Err(twice(&member));
        }
        column.read(reader, place(column.name()), settings)?;
    }
    Ok(())
}
