//! `ensemble` in `model.yaml`: what each step is and what it is told. Whether the steps fit each other is known only
//! beside their models, when the ensemble is loaded.

use super::models::{OUTSIDE, is_inside, is_plain};
use crate::{
    builtin::{self, image, tokenize},
    call::ModelRef,
    config::{Problems, raw::ensemble as raw},
    model::ensemble::{Declared, Settings, Step, What},
    tensor::DataType,
};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// Most steps of an ensemble: a graph that people can still read.
const STEPS: usize = 64;
/// Most classes of `builtin/top_k`.
const CLASSES: usize = 1_000_000;
/// Most tokens of a text.
const TOKENS: usize = 1 << 20;
/// Longest side of what `builtin/image` yields, pixels.
const SIDE: usize = 8192;
/// Most pixels that a picture may be allowed.
const PIXELS: usize = 1 << 28;
/// Most pictures that a call may be allowed.
const IMAGES: usize = 1 << 16;

/// The graph that `raw` says, if it can be one.
pub(super) fn ensemble(raw: &raw::Ensemble, problems: &mut Problems) -> Settings {
    if raw.steps.is_empty() {
        problems.missing("ensemble.steps", "the list is empty, expected one step at least");
    }
    if raw.steps.len() > STEPS {
        problems.push("ensemble.steps", format!("{} steps, expected at most {STEPS}", raw.steps.len()));
    }
    let steps = raw.steps.iter().enumerate();
    Settings {
        steps: steps.filter_map(|(at, raw)| step(&format!("ensemble.steps[{at}]"), raw, problems)).collect(),
        in_flight: raw.in_flight.0,
        inputs: raw.inputs.as_ref().map(|raw| declared("ensemble.inputs", raw, problems)),
        outputs: raw.outputs.as_ref().map(|raw| declared("ensemble.outputs", raw, problems)),
    }
}

fn step(path: &str, raw: &raw::Step, problems: &mut Problems) -> Option<Step> {
    let what = match raw.model.strip_prefix(builtin::PREFIX) {
        Some(name) => {
            if raw.version.is_some() {
                problems.push(format!("{path}.version"), "is not for built-in steps, which have none");
            }
            What::Builtin(built_in(path, name, raw, problems)?)
        }
        None => {
            if raw.parameters.is_some() {
                let text = "are for built-in steps; a model of the repository takes tensors and nothing else";
                problems.push(format!("{path}.parameters"), text);
            }
            if !is_plain(&raw.model) {
                let text = format!("`{}` is not a model's name, expected letters, digits and `._-`", raw.model);
                problems.push(format!("{path}.model"), text);
                return None;
            }
            let version = raw.version.as_ref().map(|version| match version {
                raw::Named::Version(version) => version.0.to_string(),
                raw::Named::Label(label) => label.clone(),
            });
            What::Model(ModelRef { name: raw.model.as_str().into(), version: version.map(Into::into) })
        }
    };
    if raw.outputs.is_empty() {
        problems.missing(format!("{path}.outputs"), "is empty, and a step that nobody hears of is of no use");
    }
    let named = |list: &BTreeMap<String, String>| -> Vec<(Arc<str>, Arc<str>)> {
        list.iter().map(|(name, tensor)| (name.as_str().into(), tensor.as_str().into())).collect()
    };
    Some(Step { what, inputs: named(&raw.inputs), outputs: named(&raw.outputs) })
}

fn built_in(path: &str, name: &str, raw: &raw::Step, problems: &mut Problems) -> Option<builtin::Settings> {
    let path = format!("{path}.parameters");
    Some(match name {
        "softmax" | "mean_pool" | "normalize" => {
            let _: raw::Nothing = parameters(&path, raw, problems)?;
            match name {
                "softmax" => builtin::Settings::Softmax,
                "mean_pool" => builtin::Settings::MeanPool,
                _ => builtin::Settings::Normalize,
            }
        }
        "top_k" => {
            let found: raw::TopK = parameters(&path, raw, problems)?;
            most(&format!("{path}.k"), found.k.0, CLASSES, problems);
            if let Some(labels) = &found.labels {
                inside(&format!("{path}.labels"), labels, problems);
            }
            builtin::Settings::TopK { k: found.k.0, labels: found.labels }
        }
        "tokenize" => {
            let found: raw::Tokenize = parameters(&path, raw, problems)?;
            inside(&format!("{path}.file"), &found.file, problems);
            most(&format!("{path}.max_length"), found.max_length.0, TOKENS, problems);
            most(&format!("{path}.max_texts"), found.max_texts.0, IMAGES, problems);
            builtin::Settings::Tokenize(tokenize::Settings {
                file: found.file,
                max_length: found.max_length.0,
                fill: found.pad == raw::Pad::MaxLength,
                special_tokens: found.special_tokens,
                max_bytes: found.max_bytes.0,
                max_texts: found.max_texts.0,
            })
        }
        "image" => builtin::Settings::Image(picture(&path, raw, problems)?),
        _ => {
            let known = builtin::NAMES.map(|name| format!("`{}{name}`", builtin::PREFIX)).join(", ");
            let text = format!("there is no built-in step `{name}`, expected one of {known}");
            problems.push(path.replace(".parameters", ".model"), text);
            return None;
        }
    })
}

/// What a built-in step is told, in its own form.
fn parameters<T: DeserializeOwned + Default>(path: &str, raw: &raw::Step, problems: &mut Problems) -> Option<T> {
    let Some(value) = &raw.parameters else { return Some(T::default()) };
    match serde_path_to_error::deserialize(value.clone()) {
        Ok(found) => Some(found),
        Err(error) => {
            let place = error.path().to_string();
            let path = if place == "." { path.to_owned() } else { format!("{path}.{place}") };
            problems.push(path, error.into_inner().to_string());
            None
        }
    }
}

fn picture(path: &str, raw: &raw::Step, problems: &mut Problems) -> Option<image::Settings> {
    let found: raw::Image = parameters(path, raw, problems)?;
    for (key, number, limit) in [
        ("width", found.width, SIDE),
        ("height", found.height, SIDE),
        ("max_pixels", found.max_pixels, PIXELS),
        ("max_images", found.max_images, IMAGES),
    ] {
        most(&format!("{path}.{key}"), number.0, limit, problems);
    }
    for (key, numbers, divides) in
        [("scale", &[found.scale][..], true), ("mean", &found.mean[..], false), ("std", &found.std[..], true)]
    {
        if numbers.iter().any(|number| !number.is_finite() || (divides && *number == 0.0)) {
            let expected = if divides { "finite numbers other than 0" } else { "finite numbers" };
            problems.push(format!("{path}.{key}"), format!("{numbers:?} is not valid, expected {expected}"));
        }
    }
    // What is made of a picture is work as well as what it was.
    let largest = found.max_pixels.0.max(found.width.0.saturating_mul(found.height.0));
    let max_call_pixels = found.max_call_pixels.map_or(largest.saturating_mul(image::LARGEST), |number| number.0);
    if max_call_pixels < found.max_pixels.0 {
        let text =
            format!("{max_call_pixels} is below `max_pixels`, {}: a call may have one picture", found.max_pixels.0);
        problems.push(format!("{path}.max_call_pixels"), text);
    }
    Some(image::Settings {
        width: found.width.0,
        height: found.height.0,
        layout: match found.layout {
            raw::Layout::Nchw => image::Layout::Nchw,
            raw::Layout::Nhwc => image::Layout::Nhwc,
        },
        bgr: found.channels == raw::Channels::Bgr,
        scale: found.scale,
        mean: found.mean,
        std: found.std,
        max_pixels: found.max_pixels.0,
        max_images: found.max_images.0,
        max_call_pixels,
    })
}

fn most(path: &str, found: usize, most: usize, problems: &mut Problems) {
    if found > most {
        problems.push(path, format!("{found} is above {most}"));
    }
}

fn inside(path: &str, file: &Path, problems: &mut Problems) {
    if !is_inside(file) {
        problems.push(path, format!("`{}` {OUTSIDE}", file.display()));
    }
}

fn declared(path: &str, raw: &BTreeMap<String, raw::Tensor>, problems: &mut Problems) -> Vec<Declared> {
    let one = |(name, tensor): (&String, &raw::Tensor)| {
        let dtype = tensor.datatype.as_ref().and_then(|text| {
            let found = DataType::parse(text);
            if found.is_none() {
                let text = format!("`{text}` is not a datatype, expected one like FP32, INT64 or BYTES");
                problems.push(format!("{path}.{name}.datatype"), text);
            }
            found
        });
        let dims = tensor.shape.as_ref().map(|shape| {
            let dim = |dim: i64| match (dim, usize::try_from(dim)) {
                (-1, _) => Some(None),
                (_, Ok(dim)) => Some(Some(dim)),
                (_, Err(_)) => None,
            };
            let dims: Option<Vec<_>> = shape.iter().map(|given| dim(*given)).collect();
            dims.unwrap_or_else(|| {
                let text = format!("{shape:?} is not a shape, expected numbers from 0 up, or -1 for a free one");
                problems.push(format!("{path}.{name}.shape"), text);
                Vec::new()
            })
        });
        Declared { name: name.as_str().into(), dtype, dims }
    };
    raw.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(parameters: serde_json::Value) -> (Option<image::Settings>, String) {
        let raw = raw::Step { model: "builtin/image".into(), parameters: Some(parameters), ..raw::Step::default() };
        let mut problems = Problems::new("model.yaml");
        let found = picture("parameters", &raw, &mut problems);
        (found, problems.to_string())
    }

    #[test]
    fn a_call_may_have_eight_of_the_largest_pictures_unless_it_says_otherwise() {
        let most = |parameters| image(parameters).0.unwrap().max_call_pixels;
        assert_eq!(most(serde_json::json!({})), 8 * (16 << 20));
        assert_eq!(most(serde_json::json!({ "max_pixels": 1000, "width": 100, "height": 100 })), 80_000);
        assert_eq!(most(serde_json::json!({ "max_pixels": 1000, "max_call_pixels": 1000 })), 1000);
        let (_, problem) = image(serde_json::json!({ "max_pixels": 1000, "max_call_pixels": 999 }));
        assert!(problem.contains("parameters.max_call_pixels"), "{problem}");
        assert!(problem.contains("999 is below `max_pixels`, 1000: a call may have one picture"), "{problem}");
    }
}
