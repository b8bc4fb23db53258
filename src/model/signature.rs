//! Checks a request against a model's inputs and outputs (contract 01 section 2.3).
//!
//! After [`check`] nothing below looks a name up again: the inputs are in the signature's order.
//! The happy path formats and allocates nothing but the list of tensors.

use super::classify;
use crate::{
    call::{NamedTensor, RequestedOutput},
    error::Error,
    tensor::{Signature, Tensor, TensorSpec, Tensors},
};
use std::{fmt::Write, sync::Arc};

/// The largest dimension of a tensor without elements. It costs its sender nothing, and a model may make something of each
/// row: of a thousand million rows of nothing, gigabytes.
const MOST_OF_NOTHING: usize = 1 << 20;

/// Inputs that a model takes.
#[derive(Debug)]
pub struct Checked {
    /// In the signature's order.
    pub inputs: Tensors,
    /// Rows that they bring to a batch; 1 where the model does not batch.
    pub rows: usize,
}

/// Checks `inputs` and puts them into the signature's order. `batches`: the model runs rows of
/// several calls together, so that all inputs must agree in their first dimension.
///
/// # Errors
///
/// [`Error::InvalidTensor`] or [`Error::InvalidRequest`] with what was found and what was expected;
/// [`Error::Unimplemented`] for a model with a type that V2 cannot name (contract 01 section 3.1).
pub fn check(signature: &Signature, batches: bool, mut inputs: Vec<NamedTensor>) -> Result<Checked, Error> {
    let specs = &signature.inputs;
    for (place, spec) in specs.iter().enumerate() {
        match inputs.iter().skip(place).position(|input| input.name == spec.name) {
            Some(0) => {}
            Some(further) => inputs.swap(place, place + further),
            None => return Err(misnamed(signature, &inputs)),
        }
    }
    if inputs.len() > specs.len() {
        return Err(misnamed(signature, &inputs));
    }
    for spec in specs.iter().chain(&signature.outputs) {
        spec.known_dtype()?;
    }
    for (input, spec) in inputs.iter().zip(specs) {
        check_tensor(&input.tensor, spec)?;
    }
    let rows = if batches { common_rows(&inputs)? } else { 1 };
    Ok(Checked { inputs: inputs.into_iter().map(|input| input.tensor).collect(), rows })
}

/// Checks the outputs that a request wants; none means all.
///
/// # Errors
///
/// [`Error::InvalidRequest`] names an output that the model has not, or that was asked for twice;
/// [`Error::InvalidTensor`] one whose classes are wanted and that has none.
pub fn check_outputs(signature: &Signature, wanted: &[RequestedOutput]) -> Result<(), Error> {
    for (place, RequestedOutput { name, classes }) in wanted.iter().enumerate() {
        let Some(spec) = signature.outputs.iter().find(|spec| spec.name == *name) else {
            return Err(unknown("output", name, &signature.outputs));
        };
        if wanted[..place].iter().any(|other| other.name == *name) {
            return Err(Error::invalid(format!("output `{name}` is requested twice")));
        }
        if classes.is_some() {
            classify::check(spec)?;
        }
    }
    Ok(())
}

/// Those of `outputs` that are wanted, in the order of `wanted`, which [`check_outputs`] has
/// accepted; all if it is empty.
pub fn select(mut outputs: Vec<NamedTensor>, wanted: &[RequestedOutput]) -> Vec<NamedTensor> {
    if wanted.is_empty() {
        return outputs;
    }
    for (place, RequestedOutput { name, .. }) in wanted.iter().enumerate() {
        if let Some(further) = outputs.iter().skip(place).position(|output| output.name == *name) {
            outputs.swap(place, place + further);
        }
    }
    outputs.truncate(wanted.len());
    outputs
}

fn check_tensor(tensor: &Tensor, spec: &TensorSpec) -> Result<(), Error> {
    if spec.dtype != Some(tensor.dtype()) {
        let text = format!("has datatype {}, expected {}", tensor.dtype(), spec.dtype_name());
        return Err(Error::tensor(Arc::clone(&spec.name), text));
    }
    let dims = tensor.shape().dims();
    let fits = dims.len() == spec.dims.len()
        && dims.iter().zip(&spec.dims).all(|(found, expected)| expected.is_none_or(|expected| expected == *found));
    if !fits {
        let mut text = format!("has shape {}, expected [", tensor.shape());
        write_list(&mut text, spec.wire_dims());
        text.push(']');
        return Err(Error::tensor(Arc::clone(&spec.name), text));
    }
    // Other tensors are bounded by their bytes.
    if tensor.data().is_empty() && dims.iter().any(|dim| *dim > MOST_OF_NOTHING) {
        let text = format!(
            "has shape {}, expected at most {MOST_OF_NOTHING} in each dimension where a tensor has no elements",
            tensor.shape()
        );
        return Err(Error::tensor(Arc::clone(&spec.name), text));
    }
    Ok(())
}

fn common_rows(inputs: &[NamedTensor]) -> Result<usize, Error> {
    let Some((first, others)) = inputs.split_first() else { return Ok(1) };
    let rows = first.tensor.rows();
    match others.iter().find(|input| input.tensor.rows() != rows) {
        None => Ok(rows),
        Some(other) => {
            let text = format!("has {} rows, expected {rows} as in tensor `{}`", other.tensor.rows(), first.name);
            Err(Error::tensor(Arc::clone(&other.name), text))
        }
    }
}

/// What is wrong with the names: one that is unknown explains one that is missing, so it comes first.
fn misnamed(signature: &Signature, inputs: &[NamedTensor]) -> Error {
    let specs = &signature.inputs;
    if let Some(input) = inputs.iter().find(|input| !specs.iter().any(|spec| spec.name == input.name)) {
        return unknown("input", &input.name, specs);
    }
    let twice = |name: &Arc<str>| inputs.iter().filter(|input| input.name == *name).count() > 1;
    if let Some(spec) = specs.iter().find(|spec| twice(&spec.name)) {
        return Error::invalid(format!("input `{}` is given twice", spec.name));
    }
    let missing = specs.iter().find(|spec| !inputs.iter().any(|input| input.name == spec.name));
    Error::invalid(match missing {
        Some(spec) => format!("input `{}` is missing", spec.name),
        None => format!("{} inputs, expected {}", inputs.len(), specs.len()),
    })
}

fn unknown(what: &str, name: &str, specs: &[TensorSpec]) -> Error {
    let mut text = format!("{what} `{name}` is unknown, expected ");
    match specs {
        [] => text.push_str("none"),
        specs => write_list(&mut text, specs.iter().map(|spec| format!("`{}`", spec.name))),
    }
    Error::invalid(text)
}

fn write_list(text: &mut String, items: impl Iterator<Item = impl std::fmt::Display>) {
    for (place, item) in items.enumerate() {
        let comma = if place == 0 { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(text, "{comma}{item}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DataType;

    fn spec(name: &str, dtype: Option<DataType>, dims: &[Option<usize>]) -> TensorSpec {
        TensorSpec { name: name.into(), dtype, dims: dims.to_vec() }
    }

    fn signature() -> Signature {
        Signature {
            inputs: vec![
                spec("image", Some(DataType::Fp32), &[None, Some(64)]),
                spec("scale", Some(DataType::Fp32), &[None, Some(1)]),
            ],
            outputs: vec![
                spec("label", Some(DataType::Int64), &[None]),
                spec("scores", Some(DataType::Fp32), &[None, Some(10)]),
            ],
        }
    }

    fn input(name: &str, rows: usize, width: usize) -> NamedTensor {
        let values = vec![0.0_f32; rows * width];
        NamedTensor { name: name.into(), tensor: Tensor::of(DataType::Fp32, [rows, width].into(), values).unwrap() }
    }

    fn refusal(inputs: Vec<NamedTensor>) -> String {
        check(&signature(), true, inputs).unwrap_err().to_string()
    }

    #[test]
    fn inputs_are_put_into_the_models_order() {
        let checked = check(&signature(), true, vec![input("scale", 3, 1), input("image", 3, 64)]).unwrap();
        let widths: Vec<_> = checked.inputs.iter().map(|input| input.shape().dims()[1]).collect();
        assert_eq!(widths, [64, 1]);
        assert_eq!(checked.rows, 3);
    }

    #[test]
    fn rows_of_nothing_cost_their_sender_nothing_and_are_bounded() {
        let free = Signature { inputs: vec![spec("x", Some(DataType::Fp32), &[None, None])], outputs: Vec::new() };
        let of = |rows| check(&free, true, vec![input("x", rows, 0)]).map(|checked| checked.rows);
        assert_eq!(of(MOST_OF_NOTHING).unwrap(), MOST_OF_NOTHING);
        let refused = of(1_000_000_000).unwrap_err().to_string();
        let expected = "tensor `x` has shape [1000000000, 0], expected at most 1048576 in each dimension where a tensor has no elements";
        assert_eq!(refused, expected);
    }

    #[test]
    fn every_mismatch_says_what_was_found_and_what_was_expected() {
        let table = [
            (vec![input("imag", 1, 64), input("scale", 1, 1)], "input `imag` is unknown, expected `image`, `scale`"),
            (vec![input("image", 1, 64), input("image", 1, 64)], "input `image` is given twice"),
            (vec![input("image", 1, 64), input("scale", 1, 1), input("scale", 1, 1)], "input `scale` is given twice"),
            (vec![input("image", 1, 64)], "input `scale` is missing"),
            (vec![], "input `image` is missing"),
            (vec![input("image", 1, 63), input("scale", 1, 1)], "tensor `image` has shape [1, 63], expected [-1, 64]"),
            (
                vec![input("image", 2, 64), input("scale", 1, 1)],
                "tensor `scale` has 1 rows, expected 2 as in tensor `image`",
            ),
        ];
        for (inputs, expected) in table {
            assert_eq!(refusal(inputs), expected);
        }
    }

    #[test]
    fn the_type_must_be_the_models() {
        let image = Tensor::of(DataType::Fp64, [1, 64].into(), vec![0.0_f64; 64]).unwrap();
        let inputs = vec![NamedTensor { name: "image".into(), tensor: image }, input("scale", 1, 1)];
        assert_eq!(refusal(inputs), "tensor `image` has datatype FP64, expected FP32");
    }

    #[test]
    fn the_rank_must_be_the_models() {
        let image = Tensor::of(DataType::Fp32, [64].into(), vec![0.0_f32; 64]).unwrap();
        let inputs = vec![NamedTensor { name: "image".into(), tensor: image }, input("scale", 1, 1)];
        assert_eq!(refusal(inputs), "tensor `image` has shape [64], expected [-1, 64]");
    }

    #[test]
    fn rows_may_differ_where_nothing_is_batched() {
        let checked = check(&signature(), false, vec![input("image", 2, 64), input("scale", 1, 1)]).unwrap();
        assert_eq!(checked.rows, 1);
    }

    #[test]
    fn no_rows_are_rows_too() {
        let checked = check(&signature(), true, vec![input("image", 0, 64), input("scale", 0, 1)]).unwrap();
        assert_eq!(checked.rows, 0);
    }

    #[test]
    fn a_type_without_a_name_is_unimplemented() {
        let mut signature = signature();
        signature.outputs[0].dtype = None;
        let error = check(&signature, true, vec![input("image", 1, 64), input("scale", 1, 1)]).unwrap_err();
        assert_eq!(error.code(), crate::error::Code::Unimplemented);
    }

    #[test]
    fn outputs_are_those_requested_in_that_order() {
        let all = || vec![input("label", 1, 1), input("scores", 1, 10)];
        let names = |wanted: &[&str]| {
            let wanted: Vec<RequestedOutput> = wanted.iter().map(|name| (*name).into()).collect();
            check_outputs(&signature(), &wanted).unwrap();
            select(all(), &wanted).iter().map(|output| output.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["label", "scores"]);
        assert_eq!(names(&["scores"]), ["scores"]);
        assert_eq!(names(&["scores", "label"]), ["scores", "label"]);
    }

    #[test]
    fn outputs_must_exist_and_be_named_once() {
        let refusal = |wanted: &[&str]| {
            let wanted: Vec<RequestedOutput> = wanted.iter().map(|name| (*name).into()).collect();
            check_outputs(&signature(), &wanted).unwrap_err().to_string()
        };
        assert_eq!(refusal(&["logits"]), "output `logits` is unknown, expected `label`, `scores`");
        assert_eq!(refusal(&["label", "label"]), "output `label` is requested twice");
    }
}
