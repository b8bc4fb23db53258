//! What a model configuration says of inputs and outputs, held against the model itself.
//!
//! It may leave things out (a type, all dimensions, a whole tensor), and may be narrower than the model where that is free.
//! What contradicts the model is an error that names both: serving it as it says would fail at the first call.

use crate::tensor::{Signature, TensorSpec};
use std::fmt::Write;

/// Holds `declared` against `found`.
///
/// # Errors
///
/// For operators, in plain words: the tensor, what was declared and what the model has.
pub(super) fn check(declared: &Signature, found: &Signature) -> Result<(), String> {
    compare("input", &declared.inputs, &found.inputs)?;
    compare("output", &declared.outputs, &found.outputs)
}

fn compare(what: &str, declared: &[TensorSpec], found: &[TensorSpec]) -> Result<(), String> {
    for spec in declared {
        let Some(model) = found.iter().find(|model| model.name == spec.name) else {
            let names: Vec<_> = found.iter().map(|model| format!("`{}`", model.name)).collect();
            let name = &spec.name;
            return Err(format!("the configuration has {what} `{name}`, the model has {}", names.join(", ")));
        };
        if spec.dtype.is_some() && spec.dtype != model.dtype {
            return Err(format!(
                "the configuration has {what} `{}` of {}, the model has {}",
                spec.name,
                spec.dtype_name(),
                model.dtype_name()
            ));
        }
        let silent = spec.dims.is_empty();
        let fits = spec.dims.len() == model.dims.len()
            && spec.dims.iter().zip(&model.dims).all(|(a, b)| a.is_none() || b.is_none() || a == b);
        if !silent && !fits {
            let (ours, theirs) = (shape(spec), shape(model));
            return Err(format!(
                "the configuration has {what} `{}` of shape {ours}, the model has {theirs}",
                spec.name
            ));
        }
    }
    Ok(())
}

/// The dimensions of `spec` as V2 writes them.
pub(super) fn shape(spec: &TensorSpec) -> String {
    let mut text = String::from("[");
    for (place, dim) in spec.wire_dims().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{}{dim}", if place == 0 { "" } else { ", " });
    }
    text + "]"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DataType;

    fn signature(name: &str, dtype: Option<DataType>, dims: &[Option<usize>]) -> Signature {
        let spec = TensorSpec { name: name.into(), dtype, dims: dims.to_vec() };
        Signature { inputs: vec![spec], outputs: Vec::new() }
    }

    #[test]
    fn a_contradiction_names_both_sides() {
        let model = signature("x", Some(DataType::Fp32), &[None, Some(4)]);
        let against = |declared: Signature| check(&declared, &model);
        assert_eq!(against(signature("x", Some(DataType::Fp32), &[None, Some(4)])), Ok(()));
        assert_eq!(against(signature("x", None, &[Some(8), None])), Ok(()));
        assert_eq!(against(signature("x", None, &[])), Ok(()));
        assert_eq!(against(Signature::default()), Ok(()));
        let error = |declared| against(declared).unwrap_err();
        assert_eq!(error(signature("z", None, &[])), "the configuration has input `z`, the model has `x`");
        assert_eq!(
            error(signature("x", Some(DataType::Int64), &[None, Some(4)])),
            "the configuration has input `x` of INT64, the model has FP32"
        );
        assert_eq!(
            error(signature("x", Some(DataType::Fp32), &[None, Some(5)])),
            "the configuration has input `x` of shape [-1, 5], the model has [-1, 4]"
        );
    }
}
