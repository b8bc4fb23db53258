//! What a model's configuration says of shapes: which axes are filled up and with what, how many rows a run has, and which
//! inputs a call may leave out. Held against the model, whose axes have names of their own.
//!
//! Runs nothing. How different lengths may be before padding costs more than it saves is measured elsewhere (`worth`).

use super::{
    ModelSettings,
    absent::{Absent, Made},
    decision::may_batch,
    declared, ragged,
    spec::{InputSettings, Pad},
};
use crate::{
    schedule::{
        Layout, Ragged,
        padding::{PaddedInput, Padding, Reach},
    },
    tensor::{AxisNames, DataType, Signature, TensorSpec, half},
};
use bytes::Bytes;
use serde_json::Value;
use std::sync::Arc;

/// Where nothing was measured, lengths may differ by a quarter: what that costs is lost in what a run costs on a CPU, and
/// more was not (see `benches/README.md`, mixed lengths).
pub(super) const UNMEASURED: Reach = Reach::Ratio(125);

/// A model as its callers see it.
#[derive(Debug)]
pub(super) struct Shapes {
    /// With free rows, where a run has a fixed number that is filled up; with rows and their lengths, where they lie one
    /// behind the other.
    pub(super) signature: Arc<Signature>,
    /// How jobs are laid together; `None`: those of one shape, by their rows.
    pub(super) layout: Option<Layout>,
    /// What calls may leave out.
    pub(super) absent: Absent,
    /// The same in words.
    pub(super) lines: Vec<String>,
}

/// An input as it is configured.
struct Input<'a> {
    spec: &'a TensorSpec,
    /// What fills it up, as an element.
    element: Option<Bytes>,
    /// The place of the input that it is the mask of.
    masks: Option<usize>,
}

// === impl Shapes ===

impl Shapes {
    /// The rows that every run has, if that is fixed.
    pub(super) fn rows(&self) -> Option<usize> {
        self.padding().and_then(|padding| padding.rows)
    }

    /// What is filled up, if anything is.
    pub(super) fn padding(&self) -> Option<&Padding> {
        self.layout.as_ref().and_then(Layout::padding)
    }

    /// How rows lie one behind the other, if they do.
    pub(super) fn ragged(&self) -> Option<&Ragged> {
        self.layout.as_ref().and_then(Layout::ragged)
    }
}

/// Holds what `settings` say of shapes against what the model has: `found`, whose axes have `names`.
///
/// # Errors
///
/// For operators, in plain words: the key, what was found and what was expected.
pub(super) fn shapes(settings: &ModelSettings, found: &Arc<Signature>, names: &AxisNames) -> Result<Shapes, String> {
    if settings.is_ragged() {
        return ragged::shapes(settings, found, names);
    }
    let (signature, rows) = if settings.fixed_rows { with_free_rows(found)? } else { (Arc::clone(found), None) };
    let inputs = configured(settings, &signature)?;
    let absent = may_be_absent(settings, &signature, &inputs, names)?;
    let mut shapes = Shapes { signature: Arc::clone(&signature), layout: None, absent, lines: Vec::new() };
    let mut padding = match may_batch(settings, &shapes.signature) {
        true => padding(settings, &shapes.signature, &inputs, names)?,
        false => None,
    };
    if let Some(rows) = rows {
        padding.get_or_insert_with(|| unpadded(&inputs, &shapes.signature)).rows = Some(rows);
        shapes.lines.push(format!("a run has {rows} rows: what is missing is filled up and cut off again"));
    }
    shapes.layout = padding.map(Layout::Padded);
    shapes.lines.extend(told(settings, &shapes, &inputs));
    Ok(shapes)
}

/// The signature with free rows, and how many a run has.
fn with_free_rows(found: &Signature) -> Result<(Arc<Signature>, Option<usize>), String> {
    let first = found.inputs.first().and_then(|spec| *spec.dims.first()?);
    let specs = || found.inputs.iter().chain(&found.outputs);
    if let Some(spec) = specs().find(|spec| first.is_none() || spec.dims.first() != Some(&first)) {
        let expected = first.map_or_else(|| "a fixed first dimension".to_owned(), |rows| format!("{rows} rows"));
        let shape = declared::shape(spec);
        return Err(format!("`batching.rows: fixed`: `{}` has shape {shape}, expected {expected}", spec.name));
    }
    let Some(rows) = first.filter(|rows| *rows > 0) else {
        return Err("`batching.rows: fixed`: the model has no inputs with rows".to_owned());
    };
    let mut signature = found.clone();
    for spec in signature.inputs.iter_mut().chain(&mut signature.outputs) {
        spec.dims[0] = None;
    }
    Ok((Arc::new(signature), Some(rows)))
}

/// What is configured of each input, in the signature's order.
fn configured<'a>(settings: &ModelSettings, signature: &'a Signature) -> Result<Vec<Input<'a>>, String> {
    let specs = &signature.inputs;
    let mut inputs: Vec<_> = specs.iter().map(|spec| Input { spec, element: None, masks: None }).collect();
    let place = |key: String, name: &str| {
        specs.iter().position(|spec| *spec.name == *name).ok_or_else(|| {
            let names: Vec<_> = specs.iter().map(|spec| format!("`{}`", spec.name)).collect();
            format!("{key}: the model has no input `{name}`; it has {}", names.join(", "))
        })
    };
    for (name, InputSettings { pad, mask, .. }) in &settings.inputs {
        let at = place("`inputs`".to_owned(), name)?;
        if let Some(pad) = pad {
            let element = element(inputs[at].spec, pad).map_err(|reason| format!("`inputs.{name}.pad`: {reason}"))?;
            inputs[at].element = Some(element);
        }
        let Some(mask) = mask else { continue };
        let key = format!("`inputs.{name}.mask`");
        let other = place(key.clone(), mask)?;
        if pad.is_none() {
            return Err(format!("{key}: there is no `pad` for `{name}`, so nothing is masked"));
        }
        let (spec, of) = (inputs[other].spec, inputs[at].spec);
        let size = spec.dtype.and_then(DataType::size);
        let (Some(size), true, true) = (size, spec.dims == of.dims, other != at) else {
            let (found, expected) = (declared::shape(spec), declared::shape(of));
            let dtype = spec.dtype_name();
            return Err(format!("{key}: `{mask}` is {dtype} of shape {found}, expected numbers of shape {expected}"));
        };
        let said = settings.inputs.iter().any(|(name, input)| name == mask && input.pad.is_some());
        if said || inputs[other].masks.replace(at).is_some() {
            return Err(format!("{key}: `{mask}` is filled up with 0, and something else is said of it too"));
        }
        inputs[other].element = Some(Bytes::from(vec![0; size]));
    }
    Ok(inputs)
}

/// What calls may leave out: masks, which are 1 where their inputs are, and what is `optional`.
fn may_be_absent(
    settings: &ModelSettings,
    signature: &Signature,
    inputs: &[Input<'_>],
    names: &AxisNames,
) -> Result<Absent, String> {
    let is_optional =
        |spec: &TensorSpec| settings.inputs.iter().any(|(name, input)| *name == spec.name && input.optional);
    let mut made = Vec::with_capacity(inputs.len());
    for (at, input) in inputs.iter().enumerate() {
        let spec = input.spec;
        if let Some(masked) = input.masks {
            let one = element(spec, &Value::from(1)).map_err(|reason| format!("`{}`: {reason}", spec.name))?;
            let like = (0..spec.dims.len()).map(|axis| Ok((masked, axis))).collect();
            made.push(Some(Made { element: one, dims: like }));
            continue;
        }
        if !is_optional(spec) {
            made.push(None);
            continue;
        }
        let key = format!("`inputs.{}.optional`", spec.name);
        if inputs.iter().any(|mask| mask.masks == Some(at)) {
            return Err(format!("{key}: `{}` has a mask, which says where it is", spec.name));
        }
        let Some(element) = input.element.clone() else {
            return Err(format!("{key}: there is no `pad`, which would stand for what is left out"));
        };
        // Whose length it takes: an input that is always there, and the same axis in it.
        let source = |axis: usize| {
            let rows = || (axis == 0 && may_batch(settings, signature)).then_some(0);
            let name = names.input(at, axis);
            let others =
                inputs.iter().enumerate().filter(|(_, other)| !is_optional(other.spec) && other.masks.is_none());
            let same = |other: usize, spec: &TensorSpec| {
                rows().or_else(|| (0..spec.dims.len()).find(|axis| name.is_some() && names.input(other, *axis) == name))
            };
            others.filter_map(|(other, input)| Some((other, same(other, input.spec)?))).next()
        };
        let dims = spec.dims.iter().enumerate().map(|(axis, dim)| match dim {
            Some(dim) => Ok(Err(*dim)),
            None => source(axis).map(Ok).ok_or_else(|| {
                format!(
                    "{key}: axis {axis} of `{}` is free, and no input that is always sent has it by name",
                    spec.name
                )
            }),
        });
        made.push(Some(Made { element, dims: dims.collect::<Result<_, String>>()? }));
    }
    Ok(Absent::new(made))
}

/// A padding that fills up no axis.
fn unpadded(inputs: &[Input<'_>], signature: &Signature) -> Padding {
    let zero = |spec: &TensorSpec| Bytes::from(vec![0; spec.dtype.and_then(DataType::size).unwrap_or(0)]);
    let input = |input: &Input<'_>| PaddedInput {
        name: Arc::clone(&input.spec.name),
        axes: Vec::new(),
        element: input.element.clone().unwrap_or_else(|| zero(input.spec)),
    };
    let mut padding = Padding::new(UNMEASURED);
    padding.inputs = inputs.iter().map(input).collect();
    padding.outputs = vec![Vec::new(); signature.outputs.len()];
    padding
}

fn padding(
    settings: &ModelSettings,
    signature: &Signature,
    inputs: &[Input<'_>],
    names: &AxisNames,
) -> Result<Option<Padding>, String> {
    let mut padding = unpadded(inputs, signature);
    padding.reach = match &settings.pad {
        Pad::Off => return Ok(None),
        Pad::Auto if settings.warmup => Reach::Worth,
        Pad::Auto => UNMEASURED,
        Pad::Ratio(hundredths) => Reach::Ratio(*hundredths),
        Pad::Lengths(lengths) => Reach::Lengths(lengths.clone()),
    };
    let free = |spec: &TensorSpec| (1..spec.dims.len()).filter(|axis| spec.dims[*axis].is_none()).collect::<Vec<_>>();
    let name = |at: usize, axis: usize| {
        let masked = inputs[at].masks.and_then(|masked| names.input(masked, axis));
        names.input(at, axis).or(masked).cloned()
    };
    let is_nameless = |at: usize| free(inputs[at].spec).into_iter().any(|axis| name(at, axis).is_none());
    let padded: Vec<_> = (0..inputs.len()).filter(|at| inputs[*at].element.is_some()).collect();
    let own = padded.iter().filter(|at| inputs[**at].masks.is_none()).count();
    for at in padded.iter().copied() {
        let spec = inputs[at].spec;
        if is_nameless(at) && own > 1 {
            return Err(format!(
                "`inputs.{}.pad`: its free axes have no names, so nobody knows which axes of the other inputs are the same; \
                 give them names in the model, or take `pad` out",
                spec.name
            ));
        }
        for axis in free(spec) {
            let called = name(at, axis).unwrap_or_else(|| format!("axis {axis}").into());
            let known = padding.axes.iter().position(|axis| *axis == called);
            let place = known.unwrap_or_else(|| {
                padding.axes.push(called);
                padding.axes.len() - 1
            });
            padding.inputs[at].axes.push((axis, place));
        }
    }
    if padding.axes.is_empty() {
        return Ok(None);
    }
    for (at, input) in inputs.iter().enumerate().filter(|(_, input)| input.element.is_none()) {
        let shared =
            free(input.spec).into_iter().filter_map(|axis| name(at, axis)).find(|axis| padding.axes.contains(axis));
        if let Some(axis) = shared {
            let name = &input.spec.name;
            return Err(format!(
                "`inputs`: `{name}` has the axis `{axis}`, which is filled up, and no `pad` of its own"
            ));
        }
    }
    for (at, spec) in signature.outputs.iter().enumerate() {
        for axis in free(spec) {
            match names.output(at, axis) {
                Some(called) => {
                    let place = padding.axes.iter().position(|axis| axis == called);
                    padding.outputs[at].extend(place.map(|place| (axis, place)));
                }
                None => {
                    let (name, shape) = (&spec.name, declared::shape(spec));
                    return Err(format!(
                        "`inputs.*.pad`: output `{name}` has shape {shape} and axis {axis} has no name, so it cannot be cut \
                         back; give it a name in the model, or take `pad` out"
                    ));
                }
            }
        }
    }
    Ok(Some(padding))
}

/// One element as tensors hold it; a string without its length.
fn element(spec: &TensorSpec, value: &Value) -> Result<Bytes, String> {
    let dtype = spec.dtype.ok_or("the input is of a type that the protocol cannot carry")?;
    let number = match value {
        Value::String(word) => match &**word {
            "nan" => Some(f64::NAN),
            "inf" => Some(f64::INFINITY),
            "-inf" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        value => value.as_f64(),
    };
    let integer = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
    let halved = |half: half::Half| {
        let value = number?;
        let bits = match value {
            value if value.is_nan() => half.nan(),
            value if value.is_infinite() => half.infinity() | if value < 0.0 { 0x8000 } else { 0 },
            value => half.of(value)?,
        };
        Some(bits.to_le_bytes().to_vec())
    };
    macro_rules! whole {
        ($type:ty) => {
            integer.and_then(|integer| <$type>::try_from(integer).ok()).map(|integer| integer.to_le_bytes().to_vec())
        };
    }
    let bytes = match dtype {
        DataType::Bool => value
            .as_bool()
            .or(integer.and_then(|n| [false, true].get(usize::try_from(n).ok()?).copied()))
            .map(|flag| vec![u8::from(flag)]),
        DataType::Uint8 => whole!(u8),
        DataType::Uint16 => whole!(u16),
        DataType::Uint32 => whole!(u32),
        DataType::Uint64 => whole!(u64),
        DataType::Int8 => whole!(i8),
        DataType::Int16 => whole!(i16),
        DataType::Int32 => whole!(i32),
        DataType::Int64 => whole!(i64),
        DataType::Fp16 => halved(half::FP16),
        DataType::Bf16 => halved(half::BF16),
        DataType::Fp32 => number.map(|number| (number as f32).to_le_bytes().to_vec()),
        DataType::Fp64 => number.map(|number| number.to_le_bytes().to_vec()),
        DataType::Bytes => value.as_str().map(|text| text.as_bytes().to_vec()),
    };
    bytes.map(Bytes::from).ok_or_else(|| format!("is {value}, expected a value of {dtype}"))
}

/// What is done, for those who run `check`.
fn told(settings: &ModelSettings, shapes: &Shapes, inputs: &[Input<'_>]) -> Vec<String> {
    let mut lines = Vec::new();
    let list = |names: Vec<String>| names.join(", ");
    match shapes.padding() {
        Some(padding) if !padding.axes.is_empty() => {
            let axes = list(padding.axes.iter().map(|axis| format!("`{axis}`")).collect());
            let how = match &padding.reach {
                Reach::Worth => {
                    "calls of different lengths run together where that costs less than a run, which is measured \
                                 at warm-up"
                        .to_owned()
                }
                Reach::Ratio(hundredths) => {
                    let (whole, part) = (hundredths / 100, hundredths % 100);
                    format!("calls run together whose lengths differ by a factor of {whole}.{part:02} at most")
                }
                Reach::Lengths(steps) => {
                    format!(
                        "filled up to {}; longer ones as they are",
                        list(steps.iter().map(usize::to_string).collect())
                    )
                }
            };
            lines.push(format!("along {axes}: {how}"));
            for (padded, input) in padding.inputs.iter().zip(inputs).filter(|(padded, _)| !padded.axes.is_empty()) {
                let name = &padded.name;
                lines.push(match input.masks {
                    Some(of) => format!("`{name}` is filled up with 0, the mask of `{}`", inputs[of].spec.name),
                    None => {
                        let said = settings.inputs.iter().find(|(said, _)| said == name);
                        let pad = said.and_then(|(_, said)| said.pad.clone()).unwrap_or_default();
                        format!("`{name}` is filled up with {pad}")
                    }
                });
            }
            for (axes, spec) in padding.outputs.iter().zip(&shapes.signature.outputs) {
                let back = if axes.is_empty() { "has no such axis and is left as it is" } else { "is cut back" };
                lines.push(format!("`{}` {back}", spec.name));
            }
        }
        _ if inputs.iter().any(|input| input.element.is_some()) => {
            lines.push("nothing is filled up: only calls of one shape run together".to_owned());
        }
        _ => {}
    }
    for input in (0..).zip(inputs).filter_map(|(at, input)| shapes.absent.allows(at).then_some(input)) {
        let instead = if input.masks.is_some() { "1 for every element" } else { "its `pad`" };
        lines.push(format!("`{}` may be left out: it is then {instead}", input.spec.name));
    }
    lines
}

#[cfg(test)]
#[path = "shapes_tests.rs"]
mod tests;
